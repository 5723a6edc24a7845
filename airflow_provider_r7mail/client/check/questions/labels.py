"""Whether messages are found by their labels (R7)."""

from __future__ import annotations

from airflow_provider_r7mail.client.check.inquiry import Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, unknown


class Labels(Question):
    """Whether messages are found by their labels."""

    about = "labels"
    subjects = (Subject("labels", "R7", "Filter by Labels", "Sends an array."),)

    def ask(self, inquiry: Inquiry) -> Findings:
        """Search by a label that a message has."""
        return {"labels": self._search(inquiry)}

    def _search(self, inquiry: Inquiry) -> Verdict:
        row = next((row for row in inquiry.rows() if row.labels), None)
        if row is None:
            says = "an empty array is accepted; no message with a label was seen"
            return "ok", "array accepted", says
        label = row.labels[0]
        page = inquiry.near(row, labels=(label,))
        if any(label not in other.labels for other in page.rows):
            return "warning", "ignored", "messages without the label are found, too"
        if page.holds(row.key):
            return "ok", "array works", "an array finds the messages that have the label"
        if not (inquiry.is_whole(page) and inquiry.near(row).holds(row.key)):
            return unknown("the message it was tested with is gone, or hidden by others")
        return "warning", "finds nothing", "a message that has the label is not found"


QUESTIONS = (Labels,)
