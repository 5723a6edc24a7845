"""Decide what to request so that each message of a window is read once, on any server.

The API pages by offset over a folder that changes (R6), in an unspecified order (R1), with ties in
any order (R5), a Count that may only count the page (R2), pages shorter than requested (R3), and
bounds that may or may not be inclusive (R4). Paging by offset alone loses and duplicates mail.
`Seek` relies on this instead:

1. A response is consistent. A page at offset 0 has the first messages of its span of time, without
   a gap up to its last Date. So everything *before the second* of that last Date has been read, and
   the next request starts there: seek by Date, at offset 0. No arrival, deletion or move can open a
   gap, since no position carries over from one response to the next.
2. The requested bounds are wider than needed: one second below and two above cover every reading of
   R4. Rows outside the window, or before the place already reached, are dropped here; rows that
   come again at the very second of that place are recognised by their id.
3. If a page at offset 0 has no later Date, offsets are unavoidable: within a single second that
   fills a page, and to find out whether a short page (R3) was the last one. Then the span is swept
   repeatedly, until as many ids as it had rows have been met both before and after the empty
   response that revealed the number of rows (`Sweeps`).

Assumptions: bounds mean UTC, and offset and size count rows; a response is a list sorted by Date to
the second, as it was at one moment; only an empty response says that nothing follows; a message
without a readable Date is listed whatever the bounds, or where the server's own date puts it; ids
are unique, and a message's Date doesn't change.

A message that is missing just from the empty response of a sweep, and is back on the next page,
counts as one that stayed, and may hide another one that a page cut off. So two such responses are
required, at uneven distances, unless longer pages have shown that none was cut off. That makes it
very unlikely, but not impossible.

Anything else (dates outside the bounds, no order, an offset without effect) is an error: under the
assumptions there are no silent gaps, and there are never endless loops. No I/O, no Airflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from math import inf
from operator import ge, le
from typing import Literal

from airflow_provider_r7mail.client.dates import MICROSECONDS, Window, to_microseconds
from airflow_provider_r7mail.client.sweep import Key, Listing, PageRequest, Sweeps, moment
from airflow_provider_r7mail.exceptions import R7MailExtractError

# R4: an exclusive bound that is compared to the second needs one second more, and an upper bound
# that is compared after rounding needs two.
BELOW_SECONDS = 1
ABOVE_SECONDS = 2

# The size up to which pages may grow beyond the caller's page size to finish sweeping.
MAX_SWEEP_PAGE = 2_000
# A span is shared with an idle reader if it has about this many pages left.
MIN_PAGES_TO_SHARE = 5
# A reader requests so far beyond the end of its span that it gets about this many rows of the next
# one: any of them shows that the end was reached.
ROWS_BEYOND_END = 10
ALL = 10**12  # seconds: as far as there are any

_Step = Literal["sweep second", "sweep all"]

FIRST_SECOND, LAST_SECOND = (
    to_microseconds(moment) // MICROSECONDS
    for moment in (
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    )
)


def _open(low: int | None, high: int | None) -> tuple[float, float]:
    return -inf if low is None else low, inf if high is None else high


class ContradictionError(R7MailExtractError):
    """A response contradicts its request: the server has a reading that `Seek` can't work with.

    :param what: `bounds` if it lists mail outside the bounds (R29), `order` if it doesn't sort by
        Date (R30)
    """

    def __init__(self, what: Literal["bounds", "order"], message: str) -> None:
        super().__init__(message)
        self.what: Literal["bounds", "order"] = what


class Seek:
    """Reads one span of time: decides what to request next, and which rows of a page are new.

    Performs no I/O. Positions are seconds since 1970, negated if the server sorts the newest
    first, so that they always increase.

    Invariant: each message that was there all along, at a position before `_cursor` and within this
    span, has been delivered, and none twice. `_delivered` has all those delivered at the cursor or
    after it, and those without a date. The cursor is moved in three places, each marked with its
    reason: (a) a page at offset 0, (b) seconds that were swept, (c) the first row of all. In a
    `Seek` created by `share` it starts at the cut (d).

    :param window: the span; bounds may be None
    :param size: messages per request
    :param like: another `Seek` of the same folder, whose findings (order, cap) are taken over
    """

    def __init__(self, window: Window, size: int, like: Seek | None = None) -> None:
        self.low = None if window.start is None else to_microseconds(window.start)
        self.high = None if window.end is None else to_microseconds(window.end)
        # The window that this span is part of; beyond it are the margins of the bounds (R4).
        self.edges: tuple[int | None, int | None] = (
            (self.low, self.high) if like is None else like.edges
        )
        # A single row doesn't reveal the order.
        self.size: int = max(size, 2) if like is None else like.size
        self.least_size: int = 2 if like is None else like.least_size
        self.sign: int | None = None if like is None else like.sign
        self.finished = False
        # For the Reconciliation only: rows seen beyond the window's edges.
        self.in_margins: set[Key] = set()
        # Everything before this position has been delivered; None if nothing has.
        self._cursor: int | None = None
        # The delivered keys that can come again, with their seconds.
        self._delivered: dict[Key, int | None] = {}
        # The second of the first dated row of the first page at offset 0. Nothing dated was before
        # it then, and what arrives there later was not there all along.
        self._first_second: int | None = None
        self.longest_page: int = 0 if like is None else like.longest_page
        # Only to estimate what is left: how much was read, from where on, and what is left by the
        # Count; None unless the Count has turned out to be of all matches (R2).
        self._rows = 0
        self._origin: int | None = None
        self._left: int | None = None
        # Whether a later part was given away since the request: the response still counts it.
        self._shared_since = False
        # The request: a page at offset 0 of what is left, or the next page of the sweeps.
        self._span = self._remaining()
        self._offset = 0
        self._asked = self.size
        self._sweeps: Sweeps | None = None
        # After a short page, what to do if more rows follow; None in a sweep.
        self._if_more: _Step | None = None
        self._part_only = False
        self._skip = 0
        # How far beyond its end to request, in seconds; 0 if that is the window's own end.
        self._beyond = 0

    # -- requests ---------------------------------------------------------------------------

    def request(self) -> PageRequest | None:
        """Return the next request, None when the span has been read."""
        if self.finished:
            return None
        low, high = self._span
        return PageRequest(
            None if low is None else moment(low - BELOW_SECONDS),
            None if high is None else moment(high + ABOVE_SECONDS),
            self._offset,
            self._asked,
        )

    def _remaining(self) -> tuple[int | None, int | None]:
        """Return the first and last second still to be read."""
        low = None if self.low is None else self.low // MICROSECONDS
        high = None if self.high is None else (self.high - 1) // MICROSECONDS
        if self._cursor is not None:
            if self.sign == 1:
                low = self._cursor
            else:
                high = -self._cursor
        return low, high

    def _to_ask(self) -> tuple[int | None, int | None]:
        """Return what is left, and a little of the next span, within the window."""
        low, high = self._remaining()
        first, last = self.edges
        if self.sign == 1 and high is not None and last is not None:
            high = min(high + self._beyond, (last - 1) // MICROSECONDS)
        elif self.sign == -1 and low is not None and first is not None:
            low = max(low - self._beyond, first // MICROSECONDS)
        return low, high

    def _seek(self) -> None:
        """Request the first rows of what is left."""
        self._sweeps = None
        self._span = self._to_ask()
        self._offset, self._asked = 0, self.size
        low, high = _open(*self._remaining())
        first, last = max(low - BELOW_SECONDS, FIRST_SECOND), min(high + ABOVE_SECONDS, LAST_SECOND)
        if self._passed_end(self._cursor) or first > last:
            self._finish()

    def _finish(self) -> None:
        self.finished = True
        self._sweeps = None
        self._delivered.clear()

    # -- responses --------------------------------------------------------------------------

    def accept(self, page: Listing) -> list[int]:
        """Take the response to `request()`.

        :return: indexes of the rows that are new and dated within the span, or have no date
        :raises R7MailExtractError: the response contradicts the request
        """
        seconds = [None if date is None else date // MICROSECONDS for date in page.dates]
        dated = [second for second in seconds if second is not None]
        self._check_bounds(dated)
        if self._first_second is None and self._offset == 0 and dated:
            self._first_second = dated[0]
        self._check_order(dated)
        fresh = self._deliver(page, seconds)
        self._note_count(page)
        longest = self.longest_page
        self.longest_page = max(self.longest_page, len(page.keys))
        beginning = self._beginning() if self._sweeps and self._cursor is None else None
        if self._sweeps is None:
            self._accept_page(page, dated, longest)
        elif beginning is not None:
            # The order is known now, so there is a place to seek from.
            self._advance(beginning)  # (c) nothing was before the first row of all
            self._seek()
        else:
            self._accept_sweep(self._sweeps, page)
        return fresh

    def _check_bounds(self, dated: Sequence[int]) -> None:
        low, high = self._span
        for second in (min(dated), max(dated)) if dated else ():
            # One second more than requested, for a server that rounds.
            if (low is not None and second < low - BELOW_SECONDS - 1) or (
                high is not None and second > high + ABOVE_SECONDS + 1
            ):
                raise ContradictionError(
                    "bounds",
                    "The server ignores StartDate or EndDate: it listed a message dated "
                    f"{moment(second)}, outside the requested range. Its windows can't be read; "
                    "check whether a proxy changes requests.",
                )

    def _check_order(self, dated: Sequence[int]) -> None:
        """Find out, or confirm, what sortOrder 1 means (R1)."""
        rising = all(map(le, dated, dated[1:]))
        falling = all(map(ge, dated, dated[1:]))
        if rising and falling:
            return
        sign = 1 if rising else -1
        if not (rising or falling) or self.sign not in {None, sign}:
            raise ContradictionError(
                "order",
                "The server does not sort messages by Date as requested: dates both rise and fall. "
                "Its windows can't be read completely.",
            )
        self.sign = sign

    def _deliver(self, page: Listing, seconds: Sequence[int | None]) -> list[int]:
        """Return the indexes of the rows that have not been delivered, by their keys."""
        fresh: list[int] = []
        delivered, cursor, sign = self._delivered, self._cursor, self.sign or 1
        low, high = _open(self.low, self.high)
        lowest, highest = _open(*self.edges)
        for index, (key, date, second) in enumerate(
            zip(page.keys, page.dates, seconds, strict=True)
        ):
            if date is not None and second is not None:
                if not low <= date < high:
                    if not lowest <= date < highest:
                        self.in_margins.add(key)
                    continue
                if cursor is not None and second * sign < cursor:
                    continue
            if key not in delivered:
                delivered[key] = second
                fresh.append(index)
        self._rows += len(fresh)
        return fresh

    def _note_count(self, page: Listing) -> None:
        """Estimate how many messages are left by the Count, once one has exceeded its page (R2)."""
        if self._shared_since and self._left is not None:
            self._left = max(self._left - len(page.keys), 0)
        elif page.count is not None and (page.count > len(page.keys) or self._left is not None):
            self._left = max(page.count - self._offset - len(page.keys), 0)
        self._shared_since = False

    def _beginning(self) -> int | None:
        """Return the position before which there is nothing to read; None if unknown."""
        if self.sign is None:
            return None
        low, high = self._remaining()
        bound = low if self.sign == 1 else high
        second = bound if self._first_second is None else self._first_second
        return None if second is None else second * self.sign

    def _advance(self, position: int | None) -> bool:
        """Move the cursor to a position before which everything has been delivered.

        :return: whether that is further than it was
        """
        if position is None or (self._cursor is not None and position <= self._cursor):
            return False
        if self._origin is None:
            self._origin = self._beginning()
        self._cursor = position
        sign = self.sign or 1
        self._delivered = {
            key: second
            for key, second in self._delivered.items()
            if second is None or second * sign >= position
        }
        return True

    def _passed_end(self, position: int | None) -> bool:
        """Whether a row of the next span has been seen, which means that this one has been read.

        At the window's own end the margin is read, too, so that the rows can be counted.
        """
        if position is None:
            return False
        if self.sign == 1:
            edge = self.edges[1]
            return self.high not in {None, edge} and position * MICROSECONDS >= (self.high or 0)
        edge = self.edges[0]
        return self.low not in {None, edge} and (1 - position) * MICROSECONDS <= (self.low or 0)

    def _accept_page(self, page: Listing, dated: Sequence[int], longest: int) -> None:
        """Take the first rows of what is left.

        No rows: nothing is left, the span has been read. If they move the cursor, seek from there.
        If not, they are all of one second, or undated. A full page of them is swept. A short page
        may be all there is, or may have been capped (R3): request what follows. If another span
        follows, any row of it shows that this one has been read: after a short page, request the
        first rows of that span, too.

        :param longest: rows of the longest page before this one: the known cap (R3), if it is
            shorter than what was requested
        """
        last = dated[-1] * self.sign if dated and self.sign is not None else None
        moved = self._advance(last)  # (a) a page at offset 0 has no gap before its last row
        rows = len(page.keys)
        step: _Step = "sweep second" if dated else "sweep all"
        short = rows < min(self._asked, longest or self._asked)
        if rows == 0 or self._passed_end(last):
            self._finish()
        elif short and self._beyond not in {0, ALL}:
            self._beyond = ALL
            self._seek()
            again = rows
            if last is not None and self.sign is not None:  # earlier ones don't come again
                again -= sum(second * self.sign < last - self._reach() for second in dated)
            self._asked = again + ROWS_BEYOND_END
        elif moved:
            self._seek()
        elif not short:
            self._go_on(step)
        else:
            # The page is the first of a sweep, which is abandoned if a second one follows.
            self._sweeps = Sweeps(proofs=1 if longest else 2)
            self._if_more = step
            self._part_only = False
            self._sweeps.meet(page.keys)
            self._offset += rows

    def _go_on(self, step: _Step) -> None:
        if (
            step == "sweep all"
            and self._asked <= self.longest_page
            and self._asked < MAX_SWEEP_PAGE
        ):
            # A full page of rows without dates. These may come first each time, so pages must
            # stay longer.
            self.least_size = self.size = min(2 * self.size, MAX_SWEEP_PAGE)
            self._seek()
        else:
            self._span = self._remaining()
            self._part_only = False
            if step == "sweep second" and self._cursor is not None:
                # As far back as the next request will reach, so that the same page doesn't come
                # again.
                self._part_only = True
                first, last = self._cursor, self._cursor + self._reach()
                self._span = (first, last) if self.sign == 1 else (-last, -first)
            self._sweeps = Sweeps(proofs=2)
            self._if_more = None
            self._start_pass(self._sweeps)

    def _reach(self) -> int:
        return BELOW_SECONDS if self.sign == 1 else ABOVE_SECONDS

    def _start_pass(self, sweeps: Sweeps) -> None:
        self._offset = 0
        if self._if_more is None:
            self._asked = max(self.size, min(self.size << (sweeps.number // 2), MAX_SWEEP_PAGE))
            self._skip = sweeps.wasted()

    def _accept_sweep(self, sweeps: Sweeps, page: Listing) -> None:
        if self._skip:
            self._skip -= 1
        elif page.keys and self._offset and self._if_more is not None:
            self._go_on(self._if_more)
        else:
            if page.keys:
                sweeps.meet(page.keys)
                self._offset += len(page.keys)
            else:
                sweeps.end_pass()
                self._start_pass(sweeps)
            if sweeps.complete():
                if self._part_only and self._cursor is not None:
                    self._advance(self._cursor + 1 + self._reach())  # (b) all of them were met
                    self._seek()
                else:
                    self._finish()

    def resize(self, size: int) -> None:
        """Set the number of messages per request, from the next response on.

        No assumption or proof depends on it, since a page may have any length (R3).
        """
        self.size = max(size, self.least_size)

    # -- sharing the work -------------------------------------------------------------------

    def pages_left(self) -> float:
        """Estimate how many pages are left, from what has been read; 0 if unknown."""
        low, high = self._remaining()
        if self._cursor is None or self._origin is None or self._sweeps is not None:
            return 0.0
        if low is None or high is None or self.longest_page == 0 or self.finished:
            return 0.0
        if self._left is not None:
            return self._left / self.longest_page
        done = max(self._cursor - self._origin, 1)
        return self._rows / done * (high - low) / self.longest_page

    def share(self) -> Seek | None:
        """Split off the later half of what is left for another reader; None if it is too little.

        A request may be pending meanwhile: `_span` stays what was requested, and `accept` drops the
        rows beyond the cut. None of them has been delivered, since the cut is beyond all that were.
        """
        sign = self.sign
        if self.pages_left() < MIN_PAGES_TO_SHARE or sign is None:
            return None
        low, high = self._remaining()
        furthest = max(
            (at * sign for at in self._delivered.values() if at is not None), default=None
        )
        if low is None or high is None or furthest is None:
            return None
        middle = (low + high) // 2
        if self._left is not None and self._cursor is not None and self._origin is not None:
            # Mail may end long before the span does: estimate where, from its density so far.
            reach = self._left * max(self._cursor - self._origin, 1) // max(self._rows, 1)
            halfway = (self._cursor + reach // 2) * sign
            middle = min(middle, halfway) if sign == 1 else max(middle, halfway)
        if not low < middle < high or middle * sign <= furthest + 1:
            return None
        cut = middle * MICROSECONDS
        other = Seek(Window(), self.size, like=self)  # (d) its cursor is at the cut
        if sign == 1:
            other.low, other.high, self.high = cut, self.high, cut
            other._cursor = middle
        else:
            other.low, other.high, self.low = self.low, cut, cut
            other._cursor = 1 - middle
        if self._left is not None:
            self._left = other._left = self._left // 2
        self._shared_since = True
        other._beyond = self._beyond
        other._span = other._to_ask()
        # Its density is unknown; assume the same as here.
        if self._cursor is not None and self._origin is not None:
            done = self._cursor - self._origin
            other._origin, other._rows = other._cursor - done, self._rows
            self._beyond = 1 + ROWS_BEYOND_END * done // max(self._rows, 1)
        return other
