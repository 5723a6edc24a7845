"""Ask for messages whose dates show how a server reads a search, and compare their moments.

No I/O: the methods yield questions and are sent the pages. No Airflow.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from math import inf

from airflow_provider_r7mail.client.asking import Question
from airflow_provider_r7mail.client.dates import MICROSECONDS
from airflow_provider_r7mail.client.seek import ABOVE_SECONDS, BELOW_SECONDS
from airflow_provider_r7mail.client.sweep import Key, Listing, PageRequest, moment
from airflow_provider_r7mail.client.traits import HOUR, WIDE_REACH, Traits

# How many messages to ask for at most when any will do.
SAMPLE = 50
# A message whose Timestamp is so far from its Date tells which of them bounds are compared with.
TELLING_SECONDS = 10
# All zones differ from UTC by a multiple of this.
QUARTER = 900
# How long what is listed for a moment may be: the bounds, and what they may be rounded to.
MOMENT_SECONDS = BELOW_SECONDS + ABOVE_SECONDS + 2
# How many pages around a message to look through for it.
MAX_PAGES = 200
# How many pages of a folder to look through for a message that was stored late.
SAMPLE_PAGES = 20
# How often to ask for something that the server may refuse, since any answer may be an accident.
TRIES = 3
NOWHERE = datetime(1900, 1, 1, tzinfo=UTC), datetime(1900, 1, 1, 0, 1, tzinfo=UTC)
"""A time that no mail is dated in: mail that is listed or counted there isn't searched for."""
DATED = PageRequest(moment(86_400), moment(253_402_214_400), 0, 1)
"""All dates from 1970 to 9999."""


@dataclass(frozen=True, slots=True)
class Row:
    """A message whose moments are known, in microseconds since 1970."""

    key: Key
    date: int
    timestamp: int | None

    @property
    def distance(self) -> float:
        """Seconds between Date and Timestamp; infinity without one, which no bounds can match."""
        if self.timestamp is None:
            return inf
        return abs(self.timestamp - self.date) // MICROSECONDS

    @property
    def second(self) -> int:
        """Its Date, in whole seconds since 1970."""
        return self.date // MICROSECONDS

    @property
    def is_telling(self) -> bool:
        """Whether it can tell which of them bounds are compared with."""
        return self.distance > TELLING_SECONDS

    @property
    def time_of_day(self) -> int:
        """Seconds since midnight in UTC."""
        return self.second % (24 * HOUR)

    @property
    def is_at_midnight(self) -> bool:
        """Whether a day may begin or end near it, in some zone."""
        return not MOMENT_SECONDS < self.second % QUARTER < QUARTER - 4 * MOMENT_SECONDS


def rows_of(listing: Listing, shift: int = 0) -> list[Row]:
    """Return the dated rows of a page, those first that tell most.

    :param shift: microseconds to take from each Timestamp
    """
    timestamps = listing.timestamps or [None] * len(listing.keys)
    rows = [
        Row(key, date, None if timestamp is None else timestamp - shift)
        for key, date, timestamp in zip(listing.keys, listing.dates, timestamps, strict=True)
        if date is not None
    ]
    return sorted(rows, key=lambda row: -row.distance)


class Samples:
    """Looks for messages of a folder, whatever they are: the filters don't apply.

    :param traits: what is known of the server
    :param size: messages per request
    """

    def __init__(self, traits: Traits, size: int) -> None:
        self.traits = traits
        self.size = min(size, SAMPLE)
        self._tries_without_labels = TRIES
        # The zone of Timestamps that don't name one, and how many rows have shown it.
        self._shift = self._shift_rows = 0

    def rows(self, listing: Listing) -> list[Row]:
        """Return the dated rows of a page, those first that tell most.

        If Timestamps don't name a zone (R43), they are taken to be in that in which most mail of
        the longest page so far was stored at its Date: most mail is stored at once.
        """
        rows = rows_of(listing)
        if listing.zoneless_timestamps and len(rows) > self._shift_rows:
            quarter = QUARTER * MICROSECONDS
            offsets = Counter(
                round((row.timestamp - row.date) / quarter)
                for row in rows
                if row.timestamp is not None
            )
            if offsets:
                [(offset, _)] = offsets.most_common(1)
                self._shift, self._shift_rows = offset * quarter, len(rows)
        return rows_of(listing, self._shift if listing.zoneless_timestamps else 0)

    def ask(self, request: PageRequest) -> Generator[Question, Listing | None, Listing]:
        """Return a page of all mail, whatever labels it has, if the server allows that."""
        page = None
        if self.traits.labels in {"unknown", "left out"}:
            page = yield from self.without_labels(request)
        if page is None:
            page = yield Question(request)
        return page or Listing((), (), None)

    def without_labels(
        self, request: PageRequest, *, filtered: bool = False
    ) -> Generator[Question, Listing | None, Listing | None]:
        """Return a page that is asked for without `Labels`; None if the server refuses that."""
        while self._tries_without_labels:
            page = yield Question(request, filtered=filtered, labels=False)
            if page is not None or request.offset:  # which may be what is refused (R37)
                return page
            self._tries_without_labels -= 1
        return None

    def is_empty(self) -> Generator[Question, Listing | None, bool]:
        """Whether the folder has no mail at all."""
        page = yield from self.ask(PageRequest(None, None, 0, 1))
        return not page.keys

    def anywhere(self) -> Generator[Question, Listing | None, Listing]:
        """Return some messages of the folder, or an empty page if it has none."""
        page = yield from self.ask(PageRequest(None, None, 0, self.size))
        if not page.keys or rows_of(page):
            return page
        # Messages without a date may come first, and fill a page.
        request = replace(DATED, size=self.size)
        for _ in range(SAMPLE_PAGES):
            dated = yield from self.ask(request)
            if not dated.keys:
                return page
            if rows_of(dated):
                return dated
            request = replace(request, offset=request.offset + len(dated.keys))
        self.traits.reach = None  # nothing shows what bounds do
        return page

    def page_at(
        self, date: int, zone: tzinfo = UTC
    ) -> Generator[Question, Listing | None, Listing]:
        """Return what is listed for a moment.

        :param zone: the zone in which to write it
        """
        second = date // MICROSECONDS
        start, end = (
            None if bound is None else bound.astimezone(zone)
            for bound in (moment(second - BELOW_SECONDS), moment(second + ABOVE_SECONDS))
        )
        return (yield from self.ask(PageRequest(start, end, 0, self.size)))

    def is_near(self, row: Row) -> Generator[Question, Listing | None, bool]:
        """Whether a message is listed when some days around it are asked for."""
        second = row.second
        start, end = moment(second - WIDE_REACH.below), moment(second + WIDE_REACH.above)
        request = PageRequest(start, end, 0, self.size)
        for _ in range(MAX_PAGES):
            page = yield from self.ask(request)
            if not page.keys:
                return False
            if row.key in page.keys:
                return True
            request = replace(request, offset=request.offset + len(page.keys))
        return False

    def is_there(self, row: Row, request: PageRequest) -> Generator[Question, Listing | None, bool]:
        """Whether a message that isn't listed at its own moment is still in the folder."""
        for start, end in (None, None), (request.start, request.end):
            page = yield from self.ask(PageRequest(start, end, 0, self.size))
            if row.key in page.keys:
                return True
        return False

    def around(
        self, request: PageRequest, row: Row
    ) -> Generator[Question, Listing | None, list[Row]]:
        """Return messages around a window that are of another time of the day than a message.

        The bounds are so wide that days and zones don't matter.
        """
        first, last = seconds_of(request)
        request = replace(
            request,
            start=None if request.start is None else moment(int(first) - WIDE_REACH.below),
            end=None if request.end is None else moment(int(last) + WIDE_REACH.above),
            size=self.size,
        )
        for _ in range(SAMPLE_PAGES):
            page = yield from self.ask(request)
            others = [other for other in self.rows(page) if other.time_of_day != row.time_of_day]
            if others or not page.keys:
                return others
            request = replace(request, offset=request.offset + len(page.keys))
        return []

    def stored_latest(self, row: Row) -> Generator[Question, Listing | None, Row]:
        """Return the message whose Timestamp is furthest from its Date, of many."""
        request = PageRequest(None, None, 0, self.size)
        for _ in range(SAMPLE_PAGES):
            page = yield from self.ask(request)
            if not page.keys:
                break
            row = max([row, *self.rows(page)], key=lambda row: row.distance)
            request = replace(request, offset=request.offset + len(page.keys))
        return row


def seconds_of(request: PageRequest) -> tuple[float, float]:
    """Return the bounds of a request in seconds since 1970; without one, infinity."""
    return (
        -inf if request.start is None else int(request.start.timestamp()),
        inf if request.end is None else int(request.end.timestamp()),
    )


def dates_of(rows: Iterable[Row]) -> list[int]:
    """Return the dates of messages, in order."""
    return sorted(row.date for row in rows)


def is_surrounded(row: Row, dates: Sequence[int]) -> bool:
    """Whether any day that has a message has another one of these, too.

    :param dates: the dates of messages, in order
    """
    before = bisect_left(dates, row.date - MOMENT_SECONDS * MICROSECONDS)
    after = bisect_left(dates, row.date + (MOMENT_SECONDS + 1) * MICROSECONDS)
    if before == 0 or after == len(dates):
        return False
    return dates[after] - dates[before - 1] < 24 * HOUR * MICROSECONDS


def any_within(dates: Sequence[int | None], date: int) -> bool:
    """Whether any of the dates is at a moment, give or take what bounds may be rounded to."""
    first = date - (BELOW_SECONDS + 1) * MICROSECONDS
    last = date + (ABOVE_SECONDS + 1) * MICROSECONDS
    return any(found is not None and first <= found <= last for found in dates)


def is_long(dates: Sequence[int | None]) -> bool:
    """Whether dates are further apart than a moment."""
    known = [date for date in dates if date is not None]
    return bool(known) and max(known) - min(known) > MOMENT_SECONDS * MICROSECONDS
