"""Whether a listing has a message several times, and whether Count counts that (R34)."""

from __future__ import annotations

from airflow_provider_r7mail.client.check.evidence import Page
from airflow_provider_r7mail.client.check.inquiry import Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, unknown


class Repeats(Question):
    """Whether a message is listed several times."""

    about = "repeated messages"
    subjects = (
        Subject(
            "repeats",
            "R34",
            "Messages listed several times",
            "Keeps each once, and allows for it when comparing with Count.",
        ),
    )

    def ask(self, inquiry: Inquiry) -> Findings:
        """Search for a message that was listed several times: then a page has all matches."""
        row = next((row for page in inquiry.pages for row in page.again), None)
        if row is not None:
            inquiry.near(row)
        return {}

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Look at all single pages."""
        if inquiry.is_empty:
            return {"repeats": unknown("the folder is empty")}
        repeating = [page for page in inquiry.pages if page.again]
        if not repeating:
            return {"repeats": ("ok", "none", "each message is listed once")}
        # Only a page that has all there is can be compared with its Count.
        whole = {_counts(page) for page in repeating if inquiry.is_whole(page)} - {None}
        return {"repeats": repeats_of(whole)}


def _counts(page: Page) -> bool | None:
    """Whether Count counts the repeats of a page that has all there is; None if it's neither."""
    rows = len(page.rows)
    return {rows: True, rows - len(page.again): False}.get(-1 if page.count is None else page.count)


def repeats_of(counted: set[bool | None]) -> Verdict:
    """Return whether the repeats are counted.

    :param counted: what pages with repeats show
    """
    if counted == {True}:
        return "note", "counted", "some are, and Count counts them each time"
    if counted == {False}:
        return "note", "not counted", "some are, and Count counts them once"
    return "note", "listed", "some are; it could not be told whether Count counts them"


QUESTIONS = (Repeats,)
