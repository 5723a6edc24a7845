"""What a search without labels to filter by finds: `Labels: []`, and no Labels at all (R31)."""

from __future__ import annotations

from collections.abc import Iterable

from airflow_provider_r7mail.client.check.evidence import Page
from airflow_provider_r7mail.client.check.inquiry import FIRST_PAGE, Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, unknown


class EmptyLabels(Question):
    """Whether `Labels: []` finds all mail, and whether it can be left out."""

    about = "an empty list of labels"
    subjects = (
        Subject(
            "empty_labels",
            "R31",
            "Labels: []",
            "Leaves Labels out unless this is known to find all mail.",
        ),
        Subject("without_labels", "R31", "A search without Labels", "Sends `[]` if necessary."),
    )

    def ask(self, inquiry: Inquiry) -> Findings:
        """List the folder without Labels, and compare what has been listed with `[]`."""
        without = inquiry.try_fetch(FIRST_PAGE, labels=None)
        if inquiry.is_empty:
            return {subject.key: unknown("the folder is empty") for subject in self.subjects}
        return {
            "empty_labels": _filter_of(inquiry, without),
            "without_labels": ("note", "refused", "is refused")
            if without is None
            else ("ok", "accepted", "is accepted"),
        }


def _filter_of(inquiry: Inquiry, without: Page | None) -> Verdict:
    """Return what `Labels: []` finds."""
    if _labelled(page for page in inquiry.pages if page.labels == ()):
        inquiry.traits.labels = "sent"
        return "ok", "no filter", "finds all mail"
    if without is None or not _labelled([without]):
        return unknown("no message with a label was seen")
    with_empty = inquiry.fetch(FIRST_PAGE)
    again = inquiry.try_fetch(FIRST_PAGE, labels=None)
    stayed = again is not None and _labelled([without]) & _labelled([again])
    if stayed and not _labelled([with_empty]):
        inquiry.traits.labels = "left out"
        return "note", "unlabelled", "finds only mail without labels"
    return unknown("the folder changed during the check")


def _labelled(pages: Iterable[Page]) -> set[int | None]:
    return {row.key for page in pages for row in page.rows if row.labels}


QUESTIONS = (EmptyLabels,)
