"""Find out which dates a server lists for StartDate and EndDate, and in which zone (R29, R43).

A message that is there must be listed when it is asked for at its own moment, and not when a moment
beside it is asked for. No I/O: the methods yield questions and are sent the pages. No Airflow.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from datetime import timedelta, timezone
from itertools import zip_longest

from airflow_provider_r7mail.client.asking import Inquiry, Question
from airflow_provider_r7mail.client.dates import MICROSECONDS
from airflow_provider_r7mail.client.samples import (
    MOMENT_SECONDS,
    NOWHERE,
    QUARTER,
    TELLING_SECONDS,
    Row,
    Samples,
    any_within,
    dates_of,
    is_long,
    is_surrounded,
    seconds_of,
)
from airflow_provider_r7mail.client.sweep import Listing, PageRequest
from airflow_provider_r7mail.client.traits import HOUR, WIDE_REACH
from airflow_provider_r7mail.exceptions import R7MailExtractError

# The distances of Russia's zones from UTC, the commonest first.
OFFSETS = [hours * HOUR for hours in (3, 5, 7, 10, 2, 4, 6, 8, 9, 11, 12)]
ELSEWHERE = timezone(timedelta(hours=5))
# Summer time, and winter time, lasts longer. So if two messages of a shorter time are as far from
# UTC, what is between them is, too.
SEASON = 21 * 24 * HOUR

UNKNOWN_ZONE = (
    "The server's dates don't name a zone (R43), and its StartDate and EndDate take no notice of "
    "one, so it is not known which moments they are. Have the server send dates in UTC, with a Z."
)
CHANGING_ZONE = (
    "The server's dates don't name a zone (R43), and they are in a zone whose distance from UTC "
    "changes, so it is not known which moments they are. Have the server send dates in UTC, with "
    "a Z."
)


class BoundsInquiry:
    """Finds out how the server reads bounds, and notes it in the traits.

    :param samples: where to look for messages
    """

    def __init__(self, samples: Samples) -> None:
        self._traits = samples.traits
        self._samples = samples

    def check_offset(self, listing: Listing) -> Inquiry:
        """Check that a page's dates are as far from UTC as others that don't name a zone (R43).

        :raises R7MailExtractError: they aren't
        """
        if self._traits.dates_offset is None or not listing.zoneless:
            return
        by_date = sorted(self._samples.rows(listing), key=lambda row: row.date)
        checked = None
        for row, following in zip_longest(by_date, by_date[1:]):
            if checked and following and following.date - checked.date < SEASON * MICROSECONDS:
                continue
            checked = row
            for hours in (0, -1, 1):
                found = yield from self._samples.page_at(row.date + hours * HOUR * MICROSECONDS)
                if row.key in found.keys and hours:
                    raise R7MailExtractError(CHANGING_ZONE)
                if row.key in found.keys:
                    break

    def check(
        self,
        telling: Sequence[Row],
        rows: Sequence[Row],
        request: PageRequest,
        *,
        zoneless: bool,
        beside: tuple[Row, Listing] | None,
    ) -> Inquiry:
        """Check that messages are listed at their own moments.

        :param telling: messages that tell most
        :param rows: other messages
        :param request: the request for the window
        :param zoneless: whether their dates don't name a zone (R43)
        :param beside: a message, and what is listed beside its moment, if that is known
        """
        traits = self._traits
        probes = telling[:2]  # the first may have left meanwhile
        needed, lasting = 1, True
        if telling[0].is_at_midnight:
            # Comparing days, a server lists mail of midnight as if it compared moments. It is
            # midnight at one time of the day only. If all mail that was seen is of that time, it
            # shows nothing about other mail, in later windows.
            others = [row for row in telling if row.time_of_day != telling[0].time_of_day]
            others = others or (yield from self._samples.around(request, telling[0]))
            lasting = bool(others) or len(rows) < self._samples.size
            if others:
                probes, needed = [telling[0], others[0]], 2
        for row in probes:
            at_own = yield from self._samples.page_at(row.date)
            if not self._shows_date(at_own, row):
                if (yield from self._samples.is_there(row, request)):
                    break
                continue
            needed -= 1
            if needed == 0:
                if (yield from self._is_beside(row, at_own, rows, beside)):
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
            any_within([other.date], row.date)
            for other in self._samples.rows(listing)
            if other.is_telling or not row.is_telling
        )

    def _is_beside(
        self,
        row: Row,
        at_own: Listing,
        rows: Sequence[Row],
        known: tuple[Row, Listing] | None,
    ) -> Generator[Question, Listing | None, bool]:
        """Whether messages are listed that are dated beside what is asked for, as days would.

        :param row: a message
        :param at_own: what is listed for its own moment
        :param rows: other messages
        :param known: a message, and what is listed beside its moment, if that is known
        """
        if not all(any_within([date], row.date) for date in at_own.dates if date is not None):
            return True
        if is_surrounded(row, dates_of(rows)):
            return False
        if known is not None and known[0] is row:
            return row.key in known[1].keys
        beside = yield from self._samples.page_at(row.date + 2 * MOMENT_SECONDS * MICROSECONDS)
        return row.key in beside.keys

    def _is_utc(self, row: Row) -> Generator[Question, Listing | None, bool]:
        """Whether a message is listed at its own moment in UTC when another zone is named."""
        at_own = yield from self._samples.page_at(row.date, zone=ELSEWHERE)
        return any_within(at_own.dates, row.date)

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
        nowhere = yield from self._samples.ask(PageRequest(*NOWHERE, 0, self._samples.size))
        if any(date is not None for date in nowhere.dates):
            traits.settle("ignored")
            return
        latest = yield from self._samples.stored_latest(row)
        if latest.distance > max(WIDE_REACH.below, WIDE_REACH.above) * 2 and not (
            yield from self._samples.is_near(latest)
        ):
            traits.settle("timestamp")
            return
        at_own = yield from self._samples.page_at(row.date)
        if row.key in at_own.keys:
            traits.settle("inexact")
            return
        if row.timestamp is not None and row.distance > TELLING_SECONDS:
            at_timestamp = yield from self._samples.page_at(row.timestamp)
            if row.key in at_timestamp.keys and all(  # of undated ones see R4
                any_within([other.timestamp], row.timestamp)
                for other in self._samples.rows(at_timestamp)
            ):
                traits.settle("timestamp")
                return
        for hours in OFFSETS if not is_long(at_own.dates) else ():
            # Either bounds are taken for local time, or dates are in local time (R43).
            offset = -hours if zoneless else hours
            shifted = yield from self._samples.page_at(row.date + offset * MICROSECONDS)
            if row.key in shifted.keys and not is_long(shifted.dates):
                if zoneless:
                    traits.dates_offset = offset
                    traits.settle("date")
                else:
                    traits.settle("local time", offset)
                return
        if (yield from self._samples.is_near(row)):
            traits.settle("inexact")


def most_telling(rows: Sequence[Row], request: PageRequest) -> list[Row]:
    """Return those messages that tell most about how bounds are read, nearest to a window first."""
    telling = [row for row in rows if row.is_telling] or rows
    telling = [row for row in telling if not row.is_at_midnight] or telling
    first, last = seconds_of(request)
    dates = dates_of(rows)

    def order(row: Row) -> tuple[bool, bool, float]:
        lone = not is_surrounded(row, dates)
        gap = max(row.second - last, first - row.second, 0)
        # What is beside one in the window can't be asked for together with the window.
        return lone, lone and gap == 0, gap

    return sorted(telling, key=order)


def shows_bounds(rows: list[Row], request: PageRequest) -> bool:
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
