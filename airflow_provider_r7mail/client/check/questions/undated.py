"""Which date bounds find messages without a date (R4)."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow_provider_r7mail.client.check.evidence import Page
from airflow_provider_r7mail.client.check.inquiry import FIRST_PAGE, Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, unknown
from airflow_provider_r7mail.client.dates import to_microseconds

# Times that no message is dated at.
_EARLY = to_microseconds(datetime(2, 1, 1, tzinfo=UTC))
_LATE = to_microseconds(datetime(2200, 1, 1, tzinfo=UTC))
_LATER = to_microseconds(datetime(2201, 1, 1, tzinfo=UTC))


class Undated(Question):
    """Which date bounds find messages without a date."""

    about = "messages without a date"
    subjects = (
        Subject("undated", "R4", "Messages without a date", "Sets them aside and reports them."),
    )

    def ask(self, inquiry: Inquiry) -> Findings:
        """Search at times that no message is dated at, then look for the undated ones again."""
        return {"undated": self._search(inquiry)}

    def _search(self, inquiry: Inquiry) -> Verdict:
        seen = next((page for page in inquiry.unfiltered if _has_undated(page)), None)
        if seen is None:
            return unknown("none was seen")
        if _has_undated(inquiry.fetch(FIRST_PAGE, start=_LATE, end=_LATER)):
            return "note", "always", "are found whatever the bounds"
        early = inquiry.fetch(FIRST_PAGE, end=_EARLY)
        if early.strays():
            return unknown("the server doesn't honour EndDate without StartDate")
        if _has_undated(early):
            return "note", "as_min", "are found as if dated at the beginning of time"
        if not _has_undated(inquiry.fetch(seen.asked, offset=seen.offset)):
            return unknown("the folder changed during the check")
        return "warning", "never", "are not found with date bounds"


def _has_undated(page: Page) -> bool:
    return any(row.date is None for row in page.rows)


QUESTIONS = (Undated,)
