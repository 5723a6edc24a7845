"""Whether a search for several labels finds mail that has all of them, or any (R31)."""

from __future__ import annotations

from airflow_provider_r7mail.client.check.inquiry import Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, unknown


class SeveralLabels(Question):
    """Whether messages must have all of several labels."""

    about = "several labels"
    subjects = (
        Subject(
            "several_labels",
            "R31",
            "Filter by several labels",
            "Takes what the server finds: filter the table if it must be otherwise.",
        ),
    )

    def ask(self, inquiry: Inquiry) -> Findings:
        """Search for a message by a label that it has and one that it lacks."""
        return {"several_labels": self._search(inquiry)}

    def _search(self, inquiry: Inquiry) -> Verdict:
        rows = inquiry.rows()
        known = {label for row in rows for label in row.labels}
        row = next((row for row in rows if row.labels and known > set(row.labels)), None)
        if row is None:
            return unknown("no message was seen that has one label and lacks another")
        has, lacks = row.labels[0], min(known - set(row.labels))
        both = inquiry.near(row, labels=(has, lacks))
        if any(not {has, lacks} & set(other.labels) for other in both.rows):
            return unknown("messages without the labels are found, too")
        if both.holds(row.key):
            return "note", "any", "finds messages that have any of them"
        if inquiry.is_whole(both) and inquiry.near(row, labels=(has,)).holds(row.key):
            return "ok", "all", "finds messages that have all of them"
        return unknown("the message it was tested with is gone, or hidden by others")


QUESTIONS = (SeveralLabels,)
