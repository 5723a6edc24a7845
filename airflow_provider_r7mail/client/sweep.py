"""Read a span of time by offsets alone, pass after pass, until nothing can be missing.

`Seek` needs this within a second that fills a page. A server whose bounds or order can't be relied
on (R29, R30) is read only like this. No I/O, no Airflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from airflow_provider_r7mail.client.dates import EPOCH, MICROSECONDS, Window, to_microseconds
from airflow_provider_r7mail.exceptions import R7MailExtractError

# In random order (R5), a pass misses a message with probability 1/e; this many passes in a row miss
# it with probability 10^-17.
MAX_SWEEPS = 40
# Pages of a sweep without a new id after which the server is considered to ignore the offset. In
# random order with one message per page, the probability of this is below 10^-9.
MAX_STALE_PAGES = 50

Key = int | str
"""What identifies a message: the server's Id, or text if its Id can't be read."""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """What to request from Messages.

    :param start: lower bound of Date, None for no bound
    :param end: upper bound of Date, None for no bound
    :param offset: number of messages to skip
    :param size: number of messages to return
    """

    start: datetime | None
    end: datetime | None
    offset: int
    size: int


def moment(second: int) -> datetime | None:
    """Return a second since 1970 as a bound; None, for no bound, if no date is so far away."""
    try:
        return EPOCH + timedelta(seconds=second)
    except OverflowError:
        return None


@dataclass(frozen=True, slots=True)
class Listing:
    """What must be known about a page to decide what to request next.

    :param keys: keys of the messages, in the page's order
    :param dates: their dates in microseconds since 1970, None for no readable date
    :param count: the response's Count (R2), None if missing
    :param timestamps: their Timestamps, like `dates`
    :param folders: their FolderIds, None for none (R32)
    :param labelled: whether any of them has a label (R31)
    :param zoneless: whether the dates don't name a zone (R43)
    :param zoneless_timestamps: whether the Timestamps don't, though the dates do
    :param heads: whether any of them has replies, by its HasChildren (R33)
    :param replies: whether any of them is a reply to another one
    """

    keys: Sequence[Key]
    dates: Sequence[int | None]
    count: int | None
    timestamps: Sequence[int | None] = ()
    folders: Sequence[int | None] = ()
    labelled: bool = False
    zoneless: bool = False
    zoneless_timestamps: bool = False
    heads: bool = False
    replies: bool = False


@dataclass(slots=True)
class Sweeps:
    """Passes over a span by offsets, until they prove that every message in it has been met.

    A pass ends with an empty response, at an offset of so many rows: at that moment the span had at
    most so many messages. A message that was met before that response, and again after it, was
    there. Once as many messages as there were rows have been met on both sides of it, they are all
    that the span had then. So nothing that was there all along is missing.

    The order of ties (R5) and mail that arrives or leaves (R6) only delay this.

    :param proofs: how many empty responses must be proven like this; an empty span proves itself
    """

    proofs: int
    # For each pass, including the current one: its rows, and how many keys have been met both
    # before its end and after it.
    _rows: list[int] = field(default_factory=lambda: [0])
    _on_both_sides: list[int] = field(default_factory=lambda: [0])
    _last_met: dict[Key, int] = field(default_factory=dict)
    _stale_pages: int = 0
    _repeating: bool = False

    @property
    def number(self) -> int:
        """The number of passes that have ended."""
        return len(self._rows) - 1

    def meet(self, keys: Sequence[Key]) -> None:
        """Take a page of the current pass.

        :raises R7MailExtractError: too many pages had nothing that this pass has not met
        """
        current, distinct = self.number, set(keys)
        new = 0
        for key in distinct:
            last = self._last_met.get(key)
            if last == current:
                continue
            new += 1
            if last is not None:
                for number in range(last, current):
                    self._on_both_sides[number] += 1
            self._last_met[key] = current
        # A server that repeats messages (R34) may do so across pages, too.
        self._repeating = self._repeating or len(distinct) < len(keys)
        self._rows[current] += new if self._repeating else len(keys)
        self._stale_pages = 0 if new else self._stale_pages + 1
        if self._stale_pages > MAX_STALE_PAGES:
            raise R7MailExtractError(
                f"The server makes no progress: {MAX_STALE_PAGES} pages at increasing offsets had "
                "nothing new. It seems to ignore offset, and more messages share one second than "
                "fit on a page."
            )

    def end_pass(self) -> None:
        """Take an empty response."""
        self._rows.append(0)
        self._on_both_sides.append(0)
        self._stale_pages = 0

    def wasted(self) -> int:
        """Return how many requests to waste before the next pass.

        If the order of ties rotates with each request (R5), passes at even distances could miss the
        same message each time.
        """
        return self.number**2 % 7 % 4  # 0 1 0 2 2 0 1, repeating

    def complete(self) -> bool:
        """Whether every message that was in the span all along has been met.

        :raises R7MailExtractError: after MAX_SWEEPS passes some are still hidden
        """
        ended = list(zip(self._on_both_sides, self._rows, strict=True))[:-1]
        proven = [rows for both, rows in ended if both >= rows]
        if len(proven) >= self.proofs or 0 in proven:
            return True
        if self.number < MAX_SWEEPS:
            return False
        # Mail left in the middle of each pass. A message that stayed is missed by one pass with a
        # probability of at most about 1/e (R5), and practically never by all of them. But if there
        # are fewer ids than rows, some messages can't be seen.
        fewest = min(rows for _, rows in ended)
        if len(self._last_met) < fewest:
            raise R7MailExtractError(
                f"After {MAX_SWEEPS} sweeps the server has still listed fewer "
                f"messages ({len(self._last_met)}) than rows ({fewest}): it may list some of them "
                "several times (R34). Try again, if necessary with a larger page_size."
            )
        return True


@dataclass(frozen=True, slots=True)
class Reach:
    """How far beyond a span its bounds must be requested, in seconds.

    :param below: how much earlier than the start
    :param above: how much later than the end
    """

    below: int
    above: int


class Sweep:
    """Reads one span of time by offsets; an alternative to `Seek`, with the same methods.

    Neither the order nor the bounds matter: what is outside the span is dropped here.

    :param window: the span; bounds may be None
    :param size: messages per request
    :param reach: how far beyond the span to request; None requests the whole folder
    :param limit: the error to raise if there are more than so many rows, and that number
    """

    def __init__(
        self, window: Window, size: int, reach: Reach | None, limit: tuple[int, str] | None = None
    ) -> None:
        self._low = None if window.start is None else to_microseconds(window.start)
        self._high = None if window.end is None else to_microseconds(window.end)
        self._bounds: tuple[datetime | None, datetime | None] = (None, None)
        if reach is not None:
            self._bounds = (
                None if self._low is None else moment(self._low // MICROSECONDS - reach.below),
                None
                if self._high is None
                else moment((self._high - 1) // MICROSECONDS + reach.above),
            )
        self._limit = limit
        self._sweeps = Sweeps(proofs=2)
        self._offset = self._skip = 0
        self._met: set[Key] = set()
        self.size = size
        self.rows = 0  # in the longest pass, with those that a page repeats (R34)
        self.finished = False
        self.in_margins: set[Key] = set()

    def request(self) -> PageRequest | None:
        """Return the next request, None when the span has been read."""
        return None if self.finished else PageRequest(*self._bounds, self._offset, self.size)

    def accept(self, page: Listing) -> list[int]:
        """Take the response to `request()`.

        :return: indexes of the rows that are new and dated within the span, or have no date
        :raises R7MailExtractError: the folder has too many messages for this, or the server ignores
            the offset
        """
        fresh = self._deliver(page)
        if self._skip:
            self._skip -= 1
            return fresh
        if page.keys:
            self._sweeps.meet(page.keys)
            self._offset += len(page.keys)
            if self._limit is not None and self._offset > self._limit[0]:
                raise R7MailExtractError(self._limit[1])
        else:
            self._sweeps.end_pass()
            self.rows = max(self.rows, self._offset)
            self._offset, self._skip = 0, self._sweeps.wasted()
        self.finished = self._sweeps.complete()
        return fresh

    def _deliver(self, page: Listing) -> list[int]:
        fresh: list[int] = []
        for index, (key, date) in enumerate(zip(page.keys, page.dates, strict=True)):
            if key in self._met:
                continue
            self._met.add(key)
            if date is None or (
                (self._low is None or date >= self._low)
                and (self._high is None or date < self._high)
            ):
                fresh.append(index)
            else:
                self.in_margins.add(key)
        return fresh

    def resize(self, size: int) -> None:
        """Set the number of messages per request, from the next response on."""
        self.size = size

    def pages_left(self) -> float:
        """Return 0: a sweep can't be shared between readers."""
        return 0.0

    def share(self) -> None:
        """Return None: a sweep can't be shared between readers."""
        return
