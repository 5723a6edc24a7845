"""Find out how a server reads bounds and labels, before an answer of it is trusted.

An empty page must mean "no mail" and nothing else. So a message that is there must be listed when
it is asked for at its own moment, and not when a moment beside it is asked for; and a listing
without `Labels` must have nothing more than one with `Labels: []`. That takes three requests, one
or two more where all mail is of full quarter hours, or the only one that tells is in the window,
and none where the page at hand shows it (R29, R31). No I/O: the generators yield questions and are
sent the pages. No Airflow.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from math import inf

from airflow_provider_r7mail.client.dates import MICROSECONDS, Window
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.seek import ABOVE_SECONDS, BELOW_SECONDS
from airflow_provider_r7mail.client.sweep import Key, Listing, PageRequest, moment
from airflow_provider_r7mail.client.traits import HOUR, WIDE_REACH, Traits
from airflow_provider_r7mail.exceptions import R7MailExtractError

log = logging.getLogger(__name__)

# How many messages to ask for at most when any will do.
SAMPLE = 50
# A message whose Timestamp is so far from its Date tells which of them bounds are compared with.
TELLING_SECONDS = 10
# All zones differ from UTC by a multiple of this.
QUARTER = 900
# The distances of Russia's zones from UTC, the commonest first.
OFFSETS = [hours * HOUR for hours in (3, 5, 7, 10, 2, 4, 6, 8, 9, 11, 12)]
ELSEWHERE = timezone(timedelta(hours=5))
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

UNKNOWN_ZONE = (
    "The server's dates don't name a zone (R43), and its StartDate and EndDate take no notice of "
    "one, so it is not known which moments they are. Have the server send dates in UTC, with a Z."
)
CHANGING_ZONE = (
    "The server's dates don't name a zone (R43), and they are in a zone whose distance from UTC "
    "changes, so it is not known which moments they are. Have the server send dates in UTC, with "
    "a Z."
)


@dataclass(frozen=True, slots=True)
class Question:
    """A listing to ask for.

    :param request: the page
    :param filtered: whether the filters apply; if not, all mail is asked for
    :param labels: whether to send `Labels: []`
    """

    request: PageRequest
    filtered: bool = False
    labels: bool = True

    @property
    def tentative(self) -> bool:
        """Whether the server may refuse it: without `Labels`, or at an offset (R37).

        Then the answer is None.
        """
        return not self.labels or self.request.offset > 0


Inquiry = Generator[Question, Listing | None, None]


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


class Calibration:
    """Finds out what `Traits` say, from a page at hand and a few questions.

    :param traits: what is known; completed here
    :param criteria: what is searched for
    :param size: messages per request
    """

    def __init__(self, traits: Traits, criteria: MessageFilter, size: int) -> None:
        self._traits = traits
        self._criteria = criteria
        self._filters = replace(criteria, window=Window()) != MessageFilter()
        self._size = min(size, SAMPLE)
        self._tries_without_labels = TRIES
        # A message, and what is listed beside its moment.
        self._beside: tuple[Row, Listing] | None = None
        # The zone of Timestamps that don't name one, and how many rows have shown it.
        self._shift = self._shift_rows = 0
        self.found_nothing = False
        """Whether the folder has no mail at all."""

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

    def first_page(
        self, request: PageRequest, listing: Listing
    ) -> Generator[Question, Listing | None, bool]:
        """Find out what the first page of a window doesn't show.

        :param request: the request for it
        :param listing: the page
        :return: whether to request the page again: `Labels: []` hid some of it, or its dates were
            read in the wrong zone
        :raises R7MailExtractError: it can't be found out which moments the dates are (R43)
        """
        traits = self._traits
        if traits.labels == "unknown" and listing.labelled and not self._criteria.labels:
            traits.labels = "sent"  # it doesn't filter
        sample, rows = listing, self.rows(listing)
        if (
            listing.zoneless
            and traits.dates_offset is None
            and traits.bounds not in {"unknown", "date"}
        ):
            raise R7MailExtractError(UNKNOWN_ZONE)  # as for an earlier window
        bounded = request.start is not None or request.end is not None
        if traits.bounds == "unknown":
            known = not (listing.zoneless or listing.zoneless_timestamps)
            if known and _shows_bounds(rows, request):
                traits.settle("date")
            # Timestamp may be what is compared, unless a row tells.
            elif not rows[0].is_telling if rows else bounded:
                sample = yield from self._anywhere()
                self.found_nothing = not (sample.keys or listing.keys)
                rows = self.rows(sample) or rows
        telling = _most_telling(rows, request) if traits.bounds == "unknown" else []
        again = False
        # With labels to search for, `Labels` is never empty.
        if (
            traits.labels == "unknown"
            and not self._criteria.labels
            and (sample.keys or not bounded)
        ):
            again = yield from self._labels(request, listing, telling[:1], rows)
        if telling:  # later pages have bounds in any case
            zoneless = sample.zoneless or listing.zoneless
            yield from self._bounds(telling, rows, request, zoneless=zoneless)
            again = again or traits.dates_offset is not None
        elif traits.dates_offset is not None and listing.zoneless and rows:
            yield from self._check_offset(rows)
        return again

    def _check_offset(self, rows: Sequence[Row]) -> Inquiry:
        """Check that the dates of a window are as far from UTC as those of an earlier one (R43).

        :raises R7MailExtractError: they aren't
        """
        by_date = sorted(rows, key=lambda row: row.date)
        for row in by_date[0], by_date[-1]:
            for hours in (0, -1, 1):
                found = yield from self._page_at(row.date + hours * HOUR * MICROSECONDS)
                if row.key in found.keys and hours:
                    raise R7MailExtractError(CHANGING_ZONE)
                if row.key in found.keys:
                    break

    def _labels(
        self, request: PageRequest, listing: Listing, telling: Sequence[Row], rows: Sequence[Row]
    ) -> Generator[Question, Listing | None, bool]:
        """Check that a listing without `Labels` has no more than one with `Labels: []`.

        Where a message is to be asked for beside its moment, that is part of the same request.

        :param telling: the message that tells most about bounds, if any
        :param rows: other messages
        """
        request = replace(request, size=min(request.size, self._size))
        lone = [row for row in telling if not (self._filters or _is_surrounded(row, rows))]
        for row in lone:
            wider = _up_to(row, request)
            first, last = _seconds(wider)
            there = len(listing.keys) + sum(first <= other.second <= last for other in rows)
            # Below the length of a page that has been seen, nothing is cut off (R3).
            if wider != request and there < len(rows):
                found = yield from self._without_labels(wider, filtered=True)
                if found is not None and len(found.keys) < len(rows):
                    self._traits.labels = "left out"
                    self._beside = row, found
                    return _has_more(found, listing, request)
        without = yield from self._without_labels(request, filtered=True)
        if without is None:
            self._traits.labels = "unproven"
            log.warning(
                "The server refuses a search without Labels, so it can't be told whether Labels: "
                "[] hides mail that has labels (R31)."
            )
            return False
        self._traits.labels = "left out"
        return _has_more(without, listing, request)

    def is_empty(self) -> Generator[Question, Listing | None, bool]:
        """Whether the folder has no mail at all."""
        page = yield from self._ask(PageRequest(None, None, 0, 1))
        return not page.keys

    def _anywhere(self) -> Generator[Question, Listing | None, Listing]:
        """Return some messages of the folder, or an empty page if it has none."""
        page = yield from self._ask(PageRequest(None, None, 0, self._size))
        if not page.keys or rows_of(page):
            return page
        # Messages without a date may come first, and fill a page.
        request = replace(DATED, size=self._size)
        for _ in range(SAMPLE_PAGES):
            dated = yield from self._ask(request)
            if not dated.keys:
                return page
            if rows_of(dated):
                return dated
            request = replace(request, offset=request.offset + len(dated.keys))
        self._traits.reach = None  # nothing shows what bounds do
        return page

    def _bounds(
        self, telling: Sequence[Row], rows: Sequence[Row], request: PageRequest, *, zoneless: bool
    ) -> Inquiry:
        """Check that messages are listed at their own moments.

        :param telling: messages that tell most
        :param rows: other messages
        :param request: the request for the window
        """
        traits = self._traits
        probes = telling[:2]  # the first may have left meanwhile
        needed, lasting = 1, True
        if telling[0].is_at_midnight:
            # Comparing days, a server lists mail of midnight as if it compared moments. It is
            # midnight at one time of the day only. If all mail that was seen is of that time, it
            # shows nothing about other mail, in later windows.
            others = [row for row in telling if row.time_of_day != telling[0].time_of_day]
            others = others or (yield from self._around(request, telling[0]))
            lasting = bool(others) or len(rows) < self._size
            if others:
                probes, needed = [telling[0], others[0]], 2
        for row in probes:
            at_own = yield from self._page_at(row.date)
            if not self._shows_date(at_own, row):
                if (yield from self._is_there(row, request)):
                    break
                continue
            needed -= 1
            if needed == 0:
                if (yield from self._is_beside(row, at_own, rows)):
                    break
                if zoneless and not (yield from self._is_utc(row)):
                    raise R7MailExtractError(UNKNOWN_ZONE)
                if lasting:
                    traits.settle("date")
                return
        for row in probes:
            yield from self.investigate(row, zoneless=zoneless)
            if traits.bounds != "unknown":
                return
        traits.settle("unexplained")
        if zoneless:
            raise R7MailExtractError(UNKNOWN_ZONE)

    def _shows_date(self, listing: Listing, row: Row) -> bool:
        """Whether what is listed for a message's moment shows that Date is compared.

        The message itself may not be on the page, or have left. Others of that moment tell as much
        if their Timestamp is another one.
        """
        return row.key in listing.keys or any(
            _any_within([other.date], row.date)
            for other in self.rows(listing)
            if other.is_telling or not row.is_telling
        )

    def _is_there(
        self, row: Row, request: PageRequest
    ) -> Generator[Question, Listing | None, bool]:
        """Whether a message that isn't listed at its own moment is still in the folder."""
        for start, end in (None, None), (request.start, request.end):
            page = yield from self._ask(PageRequest(start, end, 0, self._size))
            if row.key in page.keys:
                return True
        return False

    def _around(
        self, request: PageRequest, row: Row
    ) -> Generator[Question, Listing | None, list[Row]]:
        """Return messages around a window that are of another time of the day than a message.

        The bounds are so wide that days and zones don't matter.
        """
        first, last = _seconds(request)
        request = replace(
            request,
            start=None if request.start is None else moment(int(first) - WIDE_REACH.below),
            end=None if request.end is None else moment(int(last) + WIDE_REACH.above),
            size=self._size,
        )
        for _ in range(SAMPLE_PAGES):
            page = yield from self._ask(request)
            others = [other for other in self.rows(page) if other.time_of_day != row.time_of_day]
            if others or not page.keys:
                return others
            request = replace(request, offset=request.offset + len(page.keys))
        return []

    def _is_beside(
        self, row: Row, at_own: Listing, rows: Sequence[Row]
    ) -> Generator[Question, Listing | None, bool]:
        """Whether messages are listed that are dated beside what is asked for, as days would.

        :param row: a message
        :param at_own: what is listed for its own moment
        :param rows: other messages
        """
        if not all(_any_within([date], row.date) for date in at_own.dates if date is not None):
            return True
        if _is_surrounded(row, rows):
            return False
        if self._beside is not None and self._beside[0] is row:
            return row.key in self._beside[1].keys
        beside = yield from self._page_at(row.date + 2 * MOMENT_SECONDS * MICROSECONDS)
        return row.key in beside.keys

    def _is_utc(self, row: Row) -> Generator[Question, Listing | None, bool]:
        """Whether a message is listed at its own moment in UTC when another zone is named."""
        at_own = yield from self._page_at(row.date, zone=ELSEWHERE)
        return _any_within(at_own.dates, row.date)

    def investigate(self, row: Row, *, zoneless: bool = False) -> Inquiry:
        """Find out why a message isn't listed at its own moment, or is listed beside it (R29).

        The traits are unchanged if nothing explains it.

        :param zoneless: whether its date doesn't name a zone (R43)
        :raises R7MailExtractError: it can't be found out which moment its date is (R43)
        """
        yield from self._explain(row, zoneless)
        traits = self._traits
        if zoneless and traits.dates_offset is None and traits.bounds != "unknown":
            raise R7MailExtractError(UNKNOWN_ZONE)

    def _explain(self, row: Row, zoneless: bool) -> Inquiry:
        traits = self._traits
        if zoneless and traits.dates_offset is not None:
            raise R7MailExtractError(CHANGING_ZONE)
        nowhere = yield from self._ask(PageRequest(*NOWHERE, 0, self._size))
        if any(date is not None for date in nowhere.dates):
            traits.settle("ignored")
            return
        latest = yield from self._stored_latest(row)
        if latest.distance > max(WIDE_REACH.below, WIDE_REACH.above) * 2 and not (
            yield from self._is_near(latest)
        ):
            traits.settle("timestamp")
            return
        at_own = yield from self._page_at(row.date)
        if row.key in at_own.keys:
            traits.settle("inexact")
            return
        if row.timestamp is not None and row.distance > TELLING_SECONDS:
            at_timestamp = yield from self._page_at(row.timestamp)
            if row.key in at_timestamp.keys and all(  # of undated ones see R4
                _any_within([other.timestamp], row.timestamp) for other in self.rows(at_timestamp)
            ):
                traits.settle("timestamp")
                return
        for hours in OFFSETS if not _is_long(at_own.dates) else ():
            # Either bounds are taken for local time, or dates are in local time (R43).
            offset = -hours if zoneless else hours
            shifted = yield from self._page_at(row.date + offset * MICROSECONDS)
            if row.key in shifted.keys and not _is_long(shifted.dates):
                if zoneless:
                    traits.dates_offset = offset
                    traits.settle("date")
                else:
                    traits.settle("local time", offset)
                return
        if (yield from self._is_near(row)):
            traits.settle("inexact")

    def _without_labels(
        self, request: PageRequest, *, filtered: bool = False
    ) -> Generator[Question, Listing | None, Listing | None]:
        """Return a page that is asked for without `Labels`; None if the server refuses that."""
        while self._tries_without_labels:
            page = yield Question(request, filtered=filtered, labels=False)
            if page is not None or request.offset:  # which may be what is refused (R37)
                return page
            self._tries_without_labels -= 1
        return None

    def _stored_latest(self, row: Row) -> Generator[Question, Listing | None, Row]:
        """Return the message whose Timestamp is furthest from its Date, of many."""
        request = PageRequest(None, None, 0, self._size)
        for _ in range(SAMPLE_PAGES):
            page = yield from self._ask(request)
            if not page.keys:
                break
            row = max([row, *self.rows(page)], key=lambda row: row.distance)
            request = replace(request, offset=request.offset + len(page.keys))
        return row

    def _page_at(
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
        return (yield from self._ask(PageRequest(start, end, 0, self._size)))

    def _ask(self, request: PageRequest) -> Generator[Question, Listing | None, Listing]:
        """Return a page of all mail, whatever labels it has, if the server allows that."""
        page = None
        if self._traits.labels in {"unknown", "left out"}:
            page = yield from self._without_labels(request)
        if page is None:
            page = yield Question(request)
        return page or Listing((), (), None)

    def _is_near(self, row: Row) -> Generator[Question, Listing | None, bool]:
        """Whether a message is listed when some days around it are asked for."""
        second = row.second
        start, end = moment(second - WIDE_REACH.below), moment(second + WIDE_REACH.above)
        request = PageRequest(start, end, 0, self._size)
        for _ in range(MAX_PAGES):
            page = yield from self._ask(request)
            if not page.keys:
                return False
            if row.key in page.keys:
                return True
            request = replace(request, offset=request.offset + len(page.keys))
        return False


def _most_telling(rows: Sequence[Row], request: PageRequest) -> list[Row]:
    """Return those messages that tell most about how bounds are read, nearest to a window first."""
    telling = [row for row in rows if row.is_telling] or rows
    telling = [row for row in telling if not row.is_at_midnight] or telling
    first, last = _seconds(request)

    def order(row: Row) -> tuple[bool, bool, float]:
        lone = not _is_surrounded(row, rows)
        gap = max(row.second - last, first - row.second, 0)
        # What is beside one in the window can't be asked for together with the window.
        return lone, lone and gap == 0, gap

    return sorted(telling, key=order)


def _seconds(request: PageRequest) -> tuple[float, float]:
    """Return the bounds of a request in seconds since 1970; without one, infinity."""
    return (
        -inf if request.start is None else int(request.start.timestamp()),
        inf if request.end is None else int(request.end.timestamp()),
    )


def _up_to(row: Row, request: PageRequest) -> PageRequest:
    """Return a request that goes on to just beside a message, if that is outside of it."""
    first, last = _seconds(request)
    gap = 2 * MOMENT_SECONDS
    if row.second + gap < first:
        return replace(request, start=moment(row.second + gap))
    if row.second - gap > last:
        return replace(request, end=moment(row.second - gap))
    return request


def _has_more(found: Listing, listing: Listing, request: PageRequest) -> bool:
    """Whether a listing has something within a request that the response to that doesn't."""
    first, last = _seconds(request)
    within = {
        key
        for key, date in zip(found.keys, found.dates, strict=True)
        if date is None or first <= date // MICROSECONDS <= last
    }
    return not within <= set(listing.keys)


def _is_surrounded(row: Row, rows: Sequence[Row]) -> bool:
    """Whether any day that has a message has another one of these, too."""
    gaps = [(other.date - row.date) // MICROSECONDS for other in rows]
    before = max((gap for gap in gaps if gap < -MOMENT_SECONDS), default=-inf)
    after = min((gap for gap in gaps if gap > MOMENT_SECONDS), default=inf)
    return after - before < 24 * HOUR


def _any_within(dates: Sequence[int | None], date: int) -> bool:
    """Whether any of the dates is at a moment, give or take what bounds may be rounded to."""
    first = date - (BELOW_SECONDS + 1) * MICROSECONDS
    last = date + (ABOVE_SECONDS + 1) * MICROSECONDS
    return any(found is not None and first <= found <= last for found in dates)


def _is_long(dates: Sequence[int | None]) -> bool:
    """Whether dates are further apart than a moment."""
    known = [date for date in dates if date is not None]
    return bool(known) and max(known) - min(known) > MOMENT_SECONDS * MICROSECONDS


def _shows_bounds(rows: list[Row], request: PageRequest) -> bool:
    """Whether a page shows by itself that its bounds were compared with Date, in UTC.

    If the server's zone were another one, or it compared days, then rows near one of the bounds
    would be missing; and one with a Timestamp outside them shows that this isn't compared.
    """
    if request.start is None or request.end is None:
        return False
    low, high = (int(bound.timestamp()) * MICROSECONDS for bound in (request.start, request.end))
    margin = QUARTER * MICROSECONDS // 2
    return (
        any(low <= row.date < low + margin for row in rows)
        and any(high - margin < row.date <= high for row in rows)
        and any(
            row.timestamp is not None
            and not low <= row.timestamp <= high + TELLING_SECONDS * MICROSECONDS
            for row in rows
        )
    )
