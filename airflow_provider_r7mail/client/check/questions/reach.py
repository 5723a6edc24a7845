"""Which messages StartDate and EndDate find (R29): what an extract finds out, and reports."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from airflow_provider_r7mail.client.asking import Question as Asked
from airflow_provider_r7mail.client.calibration import Calibration
from airflow_provider_r7mail.client.check.evidence import Page, Row
from airflow_provider_r7mail.client.check.inquiry import FIRST_PAGE, Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Level, Subject, Verdict, unknown
from airflow_provider_r7mail.client.dates import to_microseconds
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.steps import Progress
from airflow_provider_r7mail.client.sweep import Listing, PageRequest
from airflow_provider_r7mail.client.traits import Bounds
from airflow_provider_r7mail.exceptions import R7MailExtractError

T = TypeVar("T")

_LATE = to_microseconds(datetime(2200, 1, 1, tzinfo=UTC))
"""No message is dated later."""

_LEVELS: dict[Bounds, Level] = {
    "local time": "note",
    "inexact": "note",
    "timestamp": "warning",
    "ignored": "warning",
    "unexplained": "warning",
}
"""A warning if only the whole folder is sure to have what is searched for."""


class Reach(Question):
    """Which messages StartDate and EndDate find, compared with their dates."""

    about = "how dates are searched for"
    subjects = (
        Subject(
            "dates",
            "R29",
            "StartDate and EndDate",
            "Finds it out, requests more if necessary, up to the whole folder, and drops what is "
            "outside the window.",
        ),
        Subject("one_bound", "R29", "StartDate without EndDate", "Sends both if necessary."),
    )

    def ask(self, inquiry: Inquiry) -> Findings:
        """Find out what an extract would, then search with one bound."""
        if not any(row.date is not None for row in inquiry.rows()):
            return self._open("no message with a date and an id was seen")
        try:
            _calibrate(inquiry)
        except R7MailExtractError:
            inquiry.zone_unknown = True
            return self._open("it is not known which moments the dates are (R43)")
        return {"dates": self._doubt(inquiry), "one_bound": _one_bound(inquiry)}

    def conclude(self, inquiry: Inquiry) -> Findings:
        """See what was settled, and whether any listing contradicts it."""
        traits = inquiry.traits
        if inquiry.strays:
            says = "messages outside StartDate and EndDate are listed"
            return {"dates": ("outside", "not honoured", says)}
        if traits.bounds == "date" and _has_effect(inquiry):
            return {"dates": ("ok", "honoured", "messages are found by their dates, in UTC")}
        if traits.bounds not in _LEVELS or traits.bounds == "unexplained":
            return {}
        reading = "not honoured" if traits.bounds == "ignored" else traits.bounds
        return {"dates": (_LEVELS[traits.bounds], reading, traits.describe())}

    def _doubt(self, inquiry: Inquiry) -> Verdict:
        """Return the verdict unless `conclude` has a better one."""
        traits = inquiry.traits
        if traits.bounds != "unexplained":
            return unknown("no search left out any message")
        if _is_hidden(inquiry):
            return _LEVELS[traits.bounds], traits.bounds, traits.describe()
        return unknown("a message it was tested with was moved or deleted")

    def _open(self, why: str) -> Findings:
        return {subject.key: unknown(why) for subject in self.subjects}


def _calibrate(inquiry: Inquiry) -> None:
    """Find out how the server reads bounds.

    :raises R7MailExtractError: it can't be found out which moments the dates are (R43)
    """
    first = _first_page(inquiry)
    calibration = Calibration(inquiry.traits, MessageFilter(), first.asked)
    request = PageRequest(None, None, 0, first.asked)
    _drive(inquiry, calibration.first_page(request, _listing_of(first.rows, first)))
    if inquiry.strays:
        page = next(page for page in inquiry.pages if page.bounds == 2 and page.strays())
        [row, *_] = calibration.samples.rows(_listing_of(page.strays(), page))
        _drive(inquiry, calibration.bounds.investigate(row, zoneless=page.zoneless))


def _first_page(inquiry: Inquiry) -> Page:
    """Return a page that a reader may begin with, if possible one with dates."""
    pages = [
        page
        for page in inquiry.unfiltered
        if page.labels == () or inquiry.traits.labels == "left out"
    ]
    return next((page for page in pages if any(row.date for row in page.rows)), pages[0])


def _drive(inquiry: Inquiry, questions: Generator[Asked, Listing | None, T]) -> T:
    """Answer questions, and return what they found out."""
    progress = Progress(questions)
    while progress.step is not None:
        with progress:
            progress.answer = _answer(inquiry, progress.step)
    return progress.result


def _answer(inquiry: Inquiry, asked: Asked) -> Listing | None:
    request = asked.request
    start, end = (
        None if bound is None else to_microseconds(bound) for bound in (request.start, request.end)
    )
    search = inquiry.try_fetch if asked.tentative else inquiry.fetch
    page = search(
        request.size,
        offset=request.offset,
        start=start,
        end=end,
        labels=() if asked.labels else None,
        zone=UTC if request.start is None else request.start.tzinfo or UTC,
    )
    return None if page is None else _listing_of(page.rows, page)


def _listing_of(rows: Sequence[Row], page: Page) -> Listing:
    """Return what a calibration must know about some rows of a page."""
    known = [(row, row.key) for row in rows if row.key is not None]
    return Listing(
        [key for _, key in known],
        [None if row.date is None else to_microseconds(row.date) for row, _ in known],
        page.count,
        [None if row.stored is None else to_microseconds(row.stored) for row, _ in known],
        [row.folder for row, _ in known],
        any(row.labels for row, _ in known),
        page.zoneless,
        page.zoneless_timestamps,
    )


def _is_hidden(inquiry: Inquiry) -> bool:
    """Whether a message that stays in the folder isn't found by its date."""
    first = _first_page(inquiry)
    there = {row.key for row in inquiry.fetch(first.asked).rows}
    row = next((row for row in inquiry.rows() if row.key in there and first.holds(row.key)), None)
    if row is None or row.date is None:
        return False
    at = to_microseconds(row.date)
    near = inquiry.fetch(FIRST_PAGE, start=at - 2_000_000, end=at + 2_000_000)
    found = near.holds(row.key) or not inquiry.is_whole(near)
    return not found and inquiry.fetch(first.asked).holds(row.key)


def _has_effect(inquiry: Inquiry) -> bool:
    """Whether a search left out messages."""
    known = {row.key for row in inquiry.rows()}
    return any(
        page.bounds == 2 and inquiry.is_whole(page) and not known <= set(page.keys)
        for page in inquiry.pages
    )


def _one_bound(inquiry: Inquiry) -> Verdict:
    """Search for what is later than all messages, without an end."""
    if inquiry.traits.bounds in {"unknown", "ignored", "unexplained"}:
        return unknown("it is not known which dates are searched for")
    if inquiry.fetch(FIRST_PAGE, start=_LATE).strays():
        return "note", "ignored", "one of them is ignored without the other"
    return "ok", "honoured", "is honoured"


QUESTIONS = (Reach,)
