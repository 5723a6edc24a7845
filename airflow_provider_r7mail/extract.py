"""Read a window of a folder: each message once and only once, whatever the server's manners.

The API pages by offset over a folder that changes (R6), in an order it does not name (R1), with
ties in any order (R5), a Count that may count only the page (R2), pages shorter than asked (R3)
and bounds that may or may not include themselves (R4). Counting offsets over such a thing loses
and doubles mail. What holds instead, and all that `Seek` rests on:

1. One answer is one moment's truth. A page at offset 0 holds the first messages of its span of
   time, with no gap up to its last Date. So everything *before the second* of that last Date has
   been read, and the next request starts there: seek by Date, at offset 0. No arrival, deletion
   or move can open a gap, since no position is carried from one answer to the next.
2. Bounds are asked for wider than meant: a second below and two above serve every reading of R4.
   What is outside the window, or before the place already reached, is dropped here; what comes
   again at the very second of that place is known by its id.
3. A short page is not the end (R3). It is looked beyond: by a page that begins with a row before
   its last second, so that this second is seen whole once more, or by one that begins right after
   it. Only when nothing follows there is the end reached. Should the folder have changed in between
   (R6), so that the look does not fit, nothing is concluded: the reading seeks again.
4. A single second that fills a page, or keeps changing, is swept by offsets again and again. A calm
   sweep brings as many rows as there are messages, however ties fall (R5), so the ids are complete
   when they are as many as the rows; further sweeps that bring nothing new confirm it.

Whatever does not fit (dates outside the bounds, no order, an offset without effect) is an error:
there is no silent gap and no endless loop. No Airflow here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import inf
from operator import ge, le
from typing import Generic, Literal, Protocol, TypeVar

from airflow_provider_r7mail.api import Call, list_messages, parse_page
from airflow_provider_r7mail.client import AsyncClient, Client
from airflow_provider_r7mail.exceptions import (
    R7MailConnectionError,
    R7MailExtractError,
    R7MailProxyError,
    R7MailResponseError,
    R7MailServerError,
)
from airflow_provider_r7mail.models import EPOCH, Message, MessageFilter, NoMessage, Page, Window

log = logging.getLogger(__name__)

MICROSECOND = timedelta(microseconds=1)
MICROSECONDS = 1_000_000  # in a second

# R4: a bound that excludes itself, compared to the second, needs one second more; an upper bound
# compared after rounding needs two.
BELOW_SECONDS = 1
ABOVE_SECONDS = 2

# Pages at one second that may not fit to the one before, until the second is swept instead.
MAX_RETRIES = 4
# A sweep of n pages in random order (R5) misses a message with a chance of 1/e: forty in a row
# miss it once in 10^17.
MAX_SWEEPS = 40
QUIET_SWEEPS = 3
MAX_SWEEP_PAGE = 10_000
# Pages of a sweep without a new id after which the server is held to ignore the offset. In random
# order with one message a page, the chance of this many is below 10^-9.
MAX_STALE_PAGES = 50
# A span is worth sharing with an idle reader when about this many pages are left in it: a span of
# its own costs two requests more.
MIN_PAGES_TO_SHARE = 3

Key = int | str
"""What tells messages apart: the server's Id; text for one whose Id can't be read."""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """What to ask Messages for."""

    start: datetime | None
    end: datetime | None
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Listing:
    """What the reading of a window must know of a page.

    :param keys: the messages' keys, in the page's order
    :param dates: their dates in microseconds since 1970, None where there is none
    :param count: the answer's Count (R2), None if missing
    """

    keys: Sequence[Key]
    dates: Sequence[int | None]
    count: int | None


def to_microseconds(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - EPOCH) // MICROSECOND


def _open(low: int | None, high: int | None) -> tuple[float, float]:
    return -inf if low is None else low, inf if high is None else high


def _moment(second: int) -> datetime | None:
    try:
        return EPOCH + timedelta(seconds=second)
    except OverflowError:  # a bound before year 1 or after 9999 bounds nothing
        return None


@dataclass(slots=True)
class _Sweep:
    """One pass over a second by offsets."""

    rows: int = 0
    keys: set[Key] = field(default_factory=set)
    stale_pages: int = 0
    skip: bool = False


class Seek:
    """The reading of one span of time: says what to ask next, and what of a page is new.

    Performs no I/O. Positions are seconds since 1970, negated if the server sorts the newest
    first, so that they always rise.

    :param window: the span; bounds may be None
    :param size: messages to ask for at once
    :param like: another reading of the same folder, whose findings (order, cap) are taken over
    """

    def __init__(self, window: Window, size: int, like: Seek | None = None) -> None:
        self.low = None if window.start is None else to_microseconds(window.start)
        self.high = None if window.end is None else to_microseconds(window.end)
        # The window that this span is a part of; beyond it are the margins of the bounds (R4).
        self.edges: tuple[int | None, int | None] = (
            (self.low, self.high) if like is None else like.edges
        )
        self.size: int = max(size, 2) if like is None else like.size
        self.sign: int | None = None if like is None else like.sign
        self.largest_page: int = 0 if like is None else like.largest_page
        self.finished = False
        self.first_count: int | None = None
        self.in_margins: set[Key] = set()
        self.rows = 0
        # Everything before this position has been read; None is nowhere yet.
        self._cursor: int | None = None
        self._origin: int | None = None
        self._furthest: int | None = None
        self._first_second: int | None = None
        # Delivered at the cursor or after it, with their positions: these can come again.
        self._delivered: dict[Key, int | None] = {}
        self._span = self._remaining()
        self._purpose: Literal["seek", "probe", "tail"] = "seek"
        self._offset = 0
        self._asked = self.size
        # Messages without a date that stand before all others, and can be passed over.
        self._lead = 0
        self._previous: frozenset[Key] = frozenset()
        self._passes = self._stale_pages = 0
        self._retries = 0
        self._sweeps: list[_Sweep] = []
        self._sweeping: _Sweep | None = None

    # -- what to ask ------------------------------------------------------------------------

    def request(self) -> PageRequest | None:
        """The next request; None when the span has been read."""
        if self.finished:
            return None
        low, high = self._span
        return PageRequest(
            None if low is None else _moment(low - BELOW_SECONDS),
            None if high is None else _moment(high + ABOVE_SECONDS),
            self._offset,
            self._asked,
        )

    def _remaining(self) -> tuple[int | None, int | None]:
        """First and last second still to be read."""
        low = None if self.low is None else self.low // MICROSECONDS
        high = None if self.high is None else (self.high - 1) // MICROSECONDS
        if self._cursor is not None:
            if self.sign == 1:
                low = self._cursor
            else:
                high = -self._cursor
        return low, high

    def _seek(self) -> None:
        self._span = self._remaining()
        self._ask("seek", self._lead)
        self.finished = self._passed_end(self._cursor)

    def _ask(self, purpose: Literal["seek", "probe", "tail"], offset: int) -> None:
        self._purpose = purpose
        self._offset = offset
        self._asked = self.size

    # -- what came --------------------------------------------------------------------------

    def accept(self, page: Listing) -> list[int]:
        """Take the answer to `request()`.

        :return: the indexes of rows that are new and dated within the span, or have no date
        :raises R7MailExtractError: the answer contradicts what was asked
        """
        if self.first_count is None:
            self.first_count = page.count
        seconds = [None if date is None else date // MICROSECONDS for date in page.dates]
        dated = [second for second in seconds if second is not None]
        self._check_bounds(dated)
        if self._first_second is None and self._offset == 0 and dated:
            self._first_second = dated[0]
        self._check_order(dated)
        fresh = self._deliver(page, seconds)
        longest = self.largest_page
        self.largest_page = max(longest, len(page.keys))
        beginning = self._beginning() if self._sweeping and self._cursor is None else None
        if beginning is not None:
            # Now that the order is known, there is a place to seek from.
            self._sweeping = None
            self._advance(beginning)
            self._seek()
        elif self._sweeping is not None:
            self._accept_sweep(self._sweeping, page)
        elif self._purpose == "tail":
            self._accept_tail(page)
        else:
            self._accept_page(page, seconds, longest)
        self._previous = frozenset(page.keys)
        return fresh

    def _check_bounds(self, dated: Sequence[int]) -> None:
        low, high = self._span
        for second in (min(dated), max(dated)) if dated else ():
            # One second more than asked for, for a server that rounds.
            if (low is not None and second < low - BELOW_SECONDS - 1) or (
                high is not None and second > high + ABOVE_SECONDS + 1
            ):
                raise R7MailExtractError(
                    "The server ignores StartDate or EndDate: it listed a message dated "
                    f"{_moment(second)}, outside of what was asked for. A window can't be read "
                    "from it; see whether a proxy changes requests."
                )

    def _check_order(self, dated: Sequence[int]) -> None:
        """Find out, or confirm, what sortOrder 1 means (R1)."""
        rising = all(map(le, dated, dated[1:]))
        falling = all(map(ge, dated, dated[1:]))
        if rising and falling:
            return
        sign = 1 if rising else -1
        if not (rising or falling) or self.sign not in {None, sign}:
            raise R7MailExtractError(
                "The server does not sort messages by Date as asked: a page held dates that rise "
                "and fall. A window can't be read from it whole."
            )
        self.sign = sign

    def _deliver(self, page: Listing, seconds: Sequence[int | None]) -> list[int]:
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
                position = second * sign
                if cursor is not None and position < cursor:
                    continue
                if self._furthest is None or position > self._furthest:
                    self._furthest = position
            else:
                position = None
            if key not in delivered:
                delivered[key] = position
                fresh.append(index)
        self.rows += len(fresh)
        return fresh

    def _beginning(self) -> int | None:
        """The position before which there is nothing to read; None if it is not known."""
        if self.sign is None:
            return None
        low, high = self._remaining()
        bound = low if self.sign == 1 else high
        second = bound if self._first_second is None else self._first_second
        return None if second is None else second * self.sign

    def _advance(self, position: int | None) -> bool:
        """Move the cursor: everything before the position has been read."""
        if position is None or (self._cursor is not None and position <= self._cursor):
            return False
        if self._origin is None:
            self._origin = self._beginning()
        self._cursor = position
        self._retries = 0
        self._delivered = {
            key: at for key, at in self._delivered.items() if at is None or at >= position
        }
        return True

    def _passed_end(self, position: int | None) -> bool:
        """Whether a row of the next span has been seen, so that this one is read.

        At the window's own end the margin is read as well, so that the rows can be counted.
        """
        if position is None:
            return False
        if self.sign == 1:
            edge = self.edges[1]
            return self.high not in {None, edge} and position * MICROSECONDS >= (self.high or 0)
        edge = self.edges[0]
        return self.low not in {None, edge} and (1 - position) * MICROSECONDS <= (self.low or 0)

    def _accept_page(self, page: Listing, seconds: Sequence[int | None], longest: int) -> None:
        rows = len(page.keys)
        dated = [(at, s) for at, s in enumerate(seconds) if s is not None]
        if not dated:
            self._pass_undated(page)
            return
        if not self._is_anchored(seconds):
            self._retry()
            return
        # Nothing is missing up to the page's last row, so nothing before its last second.
        probed = self._purpose == "probe"
        news = not self._previous.issuperset(page.keys)
        position = None if self.sign is None else dated[-1][1] * self.sign
        moved = self._advance(position)
        if self._passed_end(position):
            self.finished = True
            return
        if probed and not news:
            if rows < longest:
                self._ask("tail", self._offset + rows)
            else:
                self._retry()
            return
        if probed:
            # The page before was short, yet not the end: that was the server's cap (R3).
            self.size = min(self.size, max(self.largest_page, 2))
        if rows >= min(self._asked, self.size):
            if moved:
                self._seek()
            else:
                self._sweep()  # one second fills a page
        elif rows < longest or rows == 1:
            # Longer pages have come, so this one was not cut. One look beyond it is cheap.
            self._ask("tail", self._offset + rows)
        else:
            self._probe(dated)

    def _probe(self, dated: Sequence[tuple[int, int]]) -> None:
        """Ask for the page's last second again, and a row before it, and for what follows.

        If nothing follows, and the page is shorter than others, it ends where the mail ends.
        """
        cursor = None if self._cursor is None or self.sign is None else self._cursor * self.sign
        first = next((at for at, second in dated if second == cursor), 0)
        if first == 0 or self._offset + first - 1 == self._lead:
            self._sweep()
        else:
            self._ask("probe", self._offset + first - 1)

    def _is_anchored(self, seconds: Sequence[int | None]) -> bool:
        """Whether the page begins before, or at the very beginning of, what is left to read."""
        if self._offset == 0 or seconds[0] is None:
            return True
        if self._cursor is None or self.sign is None:
            return False
        return seconds[0] * self.sign < self._cursor

    def _accept_tail(self, page: Listing) -> None:
        if not page.keys:
            self.finished = True
        else:
            self.size = min(self.size, max(self.largest_page, 2))
            self._retry()

    def _pass_undated(self, page: Listing) -> None:
        """A page without any dated row: the end, or what stands before the dated ones."""
        if self._purpose != "seek":
            self._retry()
        elif page.keys:
            stale = self._previous.issuperset(page.keys)
            self._stale_pages = self._stale_pages + 1 if stale else 0
            self._check_progress(self._stale_pages)
            self._lead = self._offset + max(len(page.keys) - 1, 1)
            self._ask("seek", self._lead)
        elif self._offset == 0 or self._passes > 0:
            self.finished = True
        else:
            # Had one of them left meanwhile, a dated row would have been stepped over.
            self._passes += 1
            self._lead = 0
            self._ask("seek", 0)

    def _check_progress(self, stale_pages: int) -> None:
        if stale_pages > MAX_STALE_PAGES:
            raise R7MailExtractError(
                f"The server makes no progress: {MAX_STALE_PAGES} pages at rising offsets "
                f"brought nothing new (now at offset {self._offset}). It seems to ignore offset, "
                "and more messages share one second than it lists at once."
            )

    def _retry(self) -> None:
        """The folder changed between two requests (R6): seek again from where all is read."""
        self._retries += 1
        if self._retries <= MAX_RETRIES:
            self._lead = 0
            self._seek()
        else:
            self._sweep()

    def _sweep(self) -> None:
        low, high = self._remaining()
        if self._cursor is not None and self.sign is not None:
            low = high = self._cursor * self.sign
        self._span = (low, high)
        self._sweeps = []
        self._start_sweep()

    def _start_sweep(self) -> None:
        self._sweeping = _Sweep()
        self._offset = 0
        number = len(self._sweeps)
        self._asked = min(self.size << (number // 2), MAX_SWEEP_PAGE)
        # Ties that alternate from request to request (R5) must not hide the same message in each
        # sweep: every other one spends a request beforehand.
        self._sweeping.skip = number % 2 == 1

    def _accept_sweep(self, sweep: _Sweep, page: Listing) -> None:
        if sweep.skip:
            sweep.skip = False
        elif page.keys:
            known = len(sweep.keys)
            sweep.keys.update(page.keys)
            sweep.rows += len(page.keys)
            sweep.stale_pages = 0 if len(sweep.keys) > known else sweep.stale_pages + 1
            self._check_progress(sweep.stale_pages)
            self._offset += len(page.keys)
        else:
            self._sweeps.append(sweep)
            self._end_sweep()

    def _end_sweep(self) -> None:
        if not self._settled():
            self._start_sweep()
            return
        self._sweeping = None
        self._sweeps = []
        if self._cursor is None:
            self.finished = True
            return
        self._advance(self._cursor + 1)
        self._seek()

    def _settled(self) -> bool:
        """Whether the sweeps have brought every message of the second."""
        newest = self._sweeps[-1]
        calm: list[_Sweep] = []
        for sweep in reversed(self._sweeps):
            if sweep.rows != newest.rows:
                break
            calm.append(sweep)
        everything: set[Key] = set()
        quiet = 0
        for sweep in reversed(calm):
            quiet = quiet + 1 if everything >= sweep.keys else 0
            everything |= sweep.keys
        if len(everything) == newest.rows:
            whole = [sweep.keys for sweep in calm[:2] if len(sweep.keys) == sweep.rows]
            if (len(whole) == 2 and whole[0] == whole[1]) or quiet >= QUIET_SWEEPS:
                return True
        if len(self._sweeps) < MAX_SWEEPS:
            return False
        # The second changes all the time. What was there all along has been met, unless there
        # are fewer ids than rows: then something hides.
        union = set().union(*(sweep.keys for sweep in self._sweeps))
        if len(union) < min(sweep.rows for sweep in self._sweeps):
            raise R7MailExtractError(
                f"After {MAX_SWEEPS} sweeps over one second the server still shows fewer "
                f"messages ({len(union)}) than rows ({newest.rows}). Try again, or with a larger "
                "page_size."
            )
        return True

    # -- sharing the work -------------------------------------------------------------------

    def pages_left(self) -> float:
        """About how many pages are left, judging by what has been read; 0 if not known."""
        low, high = self._remaining()
        if self._cursor is None or self._origin is None or self._sweeping or self.finished:
            return 0.0
        if low is None or high is None or self.largest_page == 0:
            return 0.0
        done = max(self._cursor - self._origin, 1)
        return self.rows / done * (high - low) / self.largest_page

    def share(self) -> Seek | None:
        """Give the later half of what is left to another reader; None if it is too little."""
        if self.pages_left() < MIN_PAGES_TO_SHARE or self.sign is None or self._furthest is None:
            return None
        low, high = self._remaining()
        if low is None or high is None:
            return None
        middle = (low + high) // 2
        if not low < middle < high or middle * self.sign <= self._furthest + 1:
            return None
        cut = middle * MICROSECONDS
        other = Seek(Window(), self.size, like=self)
        if self.sign == 1:
            other.low, other.high, self.high = cut, self.high, cut
        else:
            other.low, other.high, self.low = self.low, cut, cut
        # Its density is not known yet; it is taken to be like here.
        other._start_like(self)
        return other

    def _start_like(self, other: Seek) -> None:
        self._span = self._remaining()
        if self.sign == 1 and self.low is not None:
            self._cursor = self.low // MICROSECONDS
        elif self.high is not None:
            self._cursor = -((self.high - 1) // MICROSECONDS)
        if self._cursor is not None and other._cursor is not None and other._origin is not None:
            self._origin = self._cursor - (other._cursor - other._origin)
            self.rows = other.rows


# -- one after another, for the hook --------------------------------------------------------


def _page_listing(page: Page) -> Listing:
    return Listing(
        [row.id if isinstance(row, Message) else row.key for row in page.rows],
        [None if row.date is None else to_microseconds(row.date) for row in page.rows],
        page.count,
    )


def _call(
    folder: int, criteria: MessageFilter, request: PageRequest, parse: Callable[[bytes], P]
) -> Call[P]:
    return list_messages(
        folder,
        criteria,
        start=request.start,
        end=request.end,
        offset=request.offset,
        size=request.size,
        parse=parse,
    )


def _messages(
    page: Page, indexes: Sequence[int], window: Window, *, keep_undated: bool
) -> Iterator[Message]:
    bounded = not keep_undated and (window.start is not None or window.end is not None)
    for index in indexes:
        message = page.rows[index]
        if isinstance(message, NoMessage):
            log.warning(
                "A message of %s has no readable Id: left out, since nothing can be done with it. "
                "An extract puts such messages into quarantine.",
                message.date or "no date",
            )
        elif message.date is None and bounded:
            log.warning(
                "Message %s has no readable Date: whether it is in the window is not known; "
                "left out.",
                message.id,
            )
        else:
            yield message


def iter_messages(
    client: Client,
    folder: int,
    criteria: MessageFilter,
    *,
    page_size: int = 100,
    keep_undated: bool = False,
) -> Iterator[Message]:
    """Read the messages of a folder that match, each once, in the server's order of dates.

    :param folder: the folder's id
    :param criteria: what to look for, window included
    :param page_size: messages to ask for at once
    :param keep_undated: also give messages without a readable Date, in or out of the window
    :raises R7MailRequestError: a page could not be read
    :raises R7MailExtractError: the server's answers contradict what was asked
    """
    seek = Seek(criteria.window, page_size)
    while (request := seek.request()) is not None:
        page = client.send(_call(folder, criteria, request, parse_page))
        indexes = seek.accept(_page_listing(page))
        yield from _messages(page, indexes, criteria.window, keep_undated=keep_undated)


async def aiter_messages(
    client: AsyncClient,
    folder: int,
    criteria: MessageFilter,
    *,
    page_size: int = 100,
    keep_undated: bool = False,
) -> AsyncGenerator[Message, None]:
    """Read the messages of a folder that match; see `iter_messages`."""
    seek = Seek(criteria.window, page_size)
    while (request := seek.request()) is not None:
        page = await client.send(_call(folder, criteria, request, parse_page))
        indexes = seek.accept(_page_listing(page))
        for message in _messages(page, indexes, criteria.window, keep_undated=keep_undated):
            yield message


# -- several at once, for the tables --------------------------------------------------------


class HasListing(Protocol):
    """A page in whatever form the caller wants it."""

    @property
    def listing(self) -> Listing:
        """Its keys and dates."""


P = TypeVar("P")
L = TypeVar("L", bound=HasListing)


@dataclass(slots=True)
class Reconciliation:
    """What the server counted, and what was read (R2).

    :param counted_before: the window's Count at the start, None where it can't be trusted
    :param counted_after: the same at the end
    :param read: messages read, those in the margins of the bounds included
    :param repeated: rows that came more than once
    """

    counted_before: int | None
    counted_after: int | None
    read: int
    repeated: int

    @property
    def explained(self) -> bool:
        """Whether mail that came or went can explain the difference.

        It can if the count changed. If it did not, all that was counted should have been read;
        that as many messages came after they were passed as left unread, the reading of the window
        once more will tell.
        """
        if self.counted_before is None or self.counted_before != self.counted_after:
            return True
        return self.read >= self.counted_before


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first in a group of tasks."""
    first = errors.exceptions[0]
    return first_error(first) if isinstance(first, BaseExceptionGroup) else first


class WindowReader(Generic[L]):
    """Reads a window with several requests in flight: spans of time, shared between readers.

    :param client: `max_concurrency` of its configuration is the number of readers
    :param folder: the folder's id
    :param criteria: what to look for; its window must have both bounds
    :param page_size: messages to ask for at once
    :param decode: reads a page's bytes; raises AnswerError
    :param executor: where pages are decoded
    :param deliver: takes a page and the indexes of its rows that are new
    """

    def __init__(
        self,
        client: AsyncClient,
        folder: int,
        criteria: MessageFilter,
        *,
        page_size: int,
        decode: Callable[[bytes], L],
        executor: Executor,
        deliver: Callable[[L, Sequence[int]], Awaitable[None]],
    ) -> None:
        self._client = client
        self._folder = folder
        self._criteria = criteria
        self._decode = decode
        self._executor = executor
        self._deliver = deliver
        self._whole = Seek(criteria.window, page_size)
        self._spans: list[Seek] = [self._whole]
        self._waiting: list[Seek] = [self._whole]
        self._undated: set[Key] = set()
        self._count_is_total = False
        self._read = 0
        self._received = 0
        self._changed = asyncio.Condition()

    async def run(self) -> Reconciliation:
        """Read it all.

        :return: the counts to reconcile
        :raises R7MailExtractError: a page could not be read, or the answers contradict what was
            asked
        """
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._client.config.max_concurrency):
                    group.create_task(self._work())
        except BaseExceptionGroup as errors:
            first = first_error(errors)
            raise first from first.__cause__
        return await self._reconcile()

    async def _work(self) -> None:
        while (seek := await self._next_span()) is not None:
            request = seek.request()
            page = None if request is None else await self._fetch(request)
            while page is not None:
                page = await self._take(seek, page)
            async with self._changed:
                self._changed.notify_all()

    async def _next_span(self) -> Seek | None:
        """A span to read: one that waits, or the later half of the one with most left."""
        async with self._changed:
            while True:
                if self._waiting:
                    return self._waiting.pop()
                if all(span.finished for span in self._spans):
                    self._changed.notify_all()
                    return None
                shared = max(self._spans, key=Seek.pages_left).share()
                if shared is not None:
                    self._spans.append(shared)
                    return shared
                await self._changed.wait()

    async def _take(self, seek: Seek, page: L) -> L | None:
        """Deliver a page's new rows, and bring the next page meanwhile."""
        listing = page.listing
        self._received += len(listing.keys)
        fresh = seek.accept(listing)
        if listing.count is not None and listing.count > len(listing.keys):
            self._count_is_total = True
        undated = [index for index in fresh if listing.dates[index] is None]
        if undated:  # these belong to no span, so that each reader may meet them
            known = {index for index in undated if listing.keys[index] in self._undated}
            self._undated.update(listing.keys[index] for index in undated)
            fresh = [index for index in fresh if index not in known]
        self._read += len(fresh)
        async with self._changed:
            self._changed.notify_all()
        request = seek.request()
        async with asyncio.TaskGroup() as group:
            following = None if request is None else group.create_task(self._fetch(request))
            if fresh:
                await self._deliver(page, fresh)
        return None if following is None else following.result()

    async def _fetch(self, request: PageRequest) -> L:
        try:
            return await self._client.send(
                _call(self._folder, self._criteria, request, self._decode),
                executor=self._executor,
            )
        except (
            R7MailConnectionError,
            R7MailProxyError,
            R7MailResponseError,
            R7MailServerError,
        ) as error:
            raise R7MailExtractError(
                f"Folder {self._folder}, window {self._criteria.window.label()}: the page of "
                f"{request.size} at offset {request.offset} from {request.start} to "
                f"{request.end} could not be read. {error.text}"
            ) from error

    async def _reconcile(self) -> Reconciliation:
        in_margins = set().union(*(span.in_margins for span in self._spans))
        read = self._read + len(in_margins)
        before, after = self._whole.first_count, None
        if before is not None and not self._count_is_total and before < read:
            before = None  # it counts the page
        if self._count_is_total:
            request = Seek(self._criteria.window, 1).request()
            assert request is not None  # noqa: S101 - a new Seek always asks
            page = await self._fetch(request)
            after = page.listing.count
        return Reconciliation(before, after, read, self._received - read)
