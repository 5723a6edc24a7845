"""Read a folder exactly once: message by message, or a window with several requests at once.

`client.seek` decides what to request; here the requests are made. No Airflow.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Generic, Protocol, TypeVar

from airflow_provider_r7mail.client.calls import Call, list_messages, parse_page
from airflow_provider_r7mail.client.dates import Window, to_microseconds
from airflow_provider_r7mail.client.models import Message, MessageFilter, NoMessage, Page
from airflow_provider_r7mail.client.seek import Key, Listing, PageRequest, Seek
from airflow_provider_r7mail.client.session import AsyncClient, Client
from airflow_provider_r7mail.exceptions import (
    R7MailConnectionError,
    R7MailExtractError,
    R7MailProxyError,
    R7MailRequestError,
    R7MailResponseError,
    R7MailServerError,
)

log = logging.getLogger(__name__)

# Each span costs a request or two. So there are at most this many at first, and one more for each
# so many pages, read or counted. If most of a window is empty and Count doesn't tell (R2), it takes
# a while to find that out by splitting spans.
SPANS_AT_FIRST = 6
PAGES_FOR_A_SPAN = 40

# If the caller gives no page size, the first page has this many messages. Then pages grow to about
# PAGE_BYTES: larger ones hardly cost less per message, but more memory. They stop growing when one
# takes PAGE_SECONDS.
FIRST_PAGE = 200
MAX_PAGE = 1_000
PAGE_BYTES = 2 << 20
PAGE_SECONDS = 2.0
# Pages with long messages shrink above this size.
MAX_PAGE_BYTES = 8 << 20
# On an event loop that others share, pages are smaller: even in a thread, parsing JSON holds the
# interpreter.
FIRST_SHARED_PAGE = 10
MAX_SHARED_PAGE = 100

TOO_LARGE = frozenset({400, 413, 500})
"""Statuses that may mean that too many messages were requested at once (R37)."""

NOWHERE = datetime(1900, 1, 1, tzinfo=UTC), datetime(1900, 1, 1, 0, 1, tzinfo=UTC)
"""A time that no mail is dated in: a Count above zero is not of what is searched for (R2)."""


PAGE_ERRORS = (
    R7MailConnectionError,
    R7MailProxyError,
    R7MailResponseError,
    R7MailServerError,
)

P = TypeVar("P")


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


# -- message by message -----------------------------------------------------------------------


class _Messages:
    """Decides which page to request next, and picks its new messages; see `iter_messages`."""

    def __init__(
        self, folder: int, criteria: MessageFilter, size: PageSize, *, keep_undated: bool
    ) -> None:
        window = criteria.window
        self._folder = folder
        self._criteria = criteria
        self._size = size
        self._seek = Seek(window, size.rows)
        self._skip_undated = not keep_undated and (
            window.start is not None or window.end is not None
        )

    def next_request(self) -> PageRequest | None:
        """Return the request for the next page, None at the end."""
        request = self._seek.request()
        return None if request is None else self._size.within(request)

    def call(self, request: PageRequest, parse: Callable[[bytes], Page] = parse_page) -> Call[Page]:
        """Return the call for a request."""
        return _call(self._folder, self._criteria, request, parse)

    def take(self, page: Page) -> Iterator[Message]:
        """Return the new messages of a page."""
        self._seek.resize(self._size.rows)
        listing = Listing(
            [row.id if isinstance(row, Message) else row.key for row in page.rows],
            [None if row.date is None else to_microseconds(row.date) for row in page.rows],
            page.count,
        )
        for index in self._seek.accept(listing):
            message = page.rows[index]
            if isinstance(message, NoMessage):
                log.warning(
                    "Skipping a message (Date: %s): it has no readable Id, so nothing can be done "
                    "with it. An extract puts such messages into quarantine.",
                    message.date or "none",
                )
            elif message.date is None and self._skip_undated:
                log.warning(
                    "Skipping message %s: it has no readable Date, so it is not known whether it "
                    "is in the window.",
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
    """Yield the matching messages of a folder, each once, in the server's order of dates.

    :param client: an open client
    :param folder: id of the folder
    :param criteria: what to search for, including the window
    :param page_size: messages per request
    :param keep_undated: also yield messages without a readable Date, which may or may not be in
        the window
    :raises R7MailRequestError: a page could not be read
    :raises R7MailExtractError: the server's responses contradict the requests
    """
    size = PageSize(page_size)
    messages = _Messages(folder, criteria, size, keep_undated=keep_undated)
    while (request := messages.next_request()) is not None:
        page = None
        while page is None:
            try:
                page = client.send(messages.call(request))
            except R7MailRequestError as error:
                request = size.smaller(request, error)
        size.learn(request, len(page.rows), 0, 0.0)
        yield from messages.take(page)


async def aiter_messages(
    client: AsyncClient,
    folder: int,
    criteria: MessageFilter,
    *,
    keep_undated: bool = False,
) -> AsyncGenerator[Message, None]:
    """Yield the matching messages of a folder; see `iter_messages`.

    Doesn't hold up the event loop: pages are parsed in a thread, and stay short.
    """
    size = PageSize(None, first=FIRST_SHARED_PAGE, most=MAX_SHARED_PAGE, max_bytes=PAGE_BYTES)
    messages = _Messages(folder, criteria, size, keep_undated=keep_undated)
    length = 0

    def parse(body: bytes) -> Page:
        nonlocal length
        length = len(body)
        return parse_page(body)

    executor = ThreadPoolExecutor(1, "r7mail-parse")
    try:
        while (request := messages.next_request()) is not None:
            page = None
            while page is None:
                started = time.monotonic()
                try:
                    page = await client.send(messages.call(request, parse), executor=executor)
                except R7MailRequestError as error:
                    request = size.smaller(request, error)
            size.learn(request, len(page.rows), length, time.monotonic() - started)
            for message in messages.take(page):
                yield message
    finally:
        executor.shutdown(wait=False)


# -- a window, with several requests at once ----------------------------------------------------


class HasListing(Protocol):
    """A page, in any form that the caller decodes it into."""

    @property
    def listing(self) -> Listing:
        """Keys and dates of its rows."""


L = TypeVar("L", bound=HasListing)


@dataclass(slots=True)
class Reconciliation:
    """What the server counted and what was read (R2).

    :param counted_before: the window's Count at the start, None if it can't be trusted
    :param counted_after: the same at the end
    :param read: number of messages read, including those in the margins of the bounds (R4), and
        each as often as a page listed it (R34)
    :param repeated: number of rows that had been read before
    """

    counted_before: int | None
    counted_after: int | None
    read: int
    repeated: int

    @property
    def missing(self) -> int:
        """By how much both counts exceed the number of messages read.

        This is 0 if mail has only arrived, since the count before doesn't include it, or has only
        left, since the count after doesn't. If both happened, it may be more.
        """
        if self.counted_before is None or self.counted_after is None:
            return 0
        return max(min(self.counted_before, self.counted_after) - self.read, 0)


class PageSize:
    """How many messages to request at once.

    :param told: the caller's choice; None starts with `first` and adapts to the responses
    :param first: messages on the first page
    :param most: most messages on a page
    :param max_bytes: size above which pages shrink
    """

    def __init__(
        self,
        told: int | None,
        *,
        first: int = FIRST_PAGE,
        most: int = MAX_PAGE,
        max_bytes: int = MAX_PAGE_BYTES,
    ) -> None:
        self.rows = self.first = first if told is None else told
        self._most = most if told is None else told
        self._max_bytes = max_bytes
        self._told = told is not None
        self._good = 0
        self._limit: int | None = None

    def within(self, request: PageRequest) -> PageRequest:
        """Return a request that isn't larger than what the server is known to refuse (R37)."""
        if self._limit is None or request.size <= self._limit:
            return request
        return replace(request, size=self._limit)

    def learn(self, request: PageRequest, rows: int, length: int, seconds: float) -> None:
        """Adapt to a page.

        :param request: the request for it
        :param rows: number of messages on it
        :param length: its size in bytes
        :param seconds: how long it took, including waiting
        """
        self._good = max(self._good, request.size)
        if self._told or rows == 0:
            return
        if length > self._max_bytes:
            self.rows = max(min(self.rows, rows * self._max_bytes // length), 1)
        elif rows >= request.size and seconds < PAGE_SECONDS:  # neither capped (R3) nor too slow
            fitting = min(rows * PAGE_BYTES // max(length, 1), 2 * rows, self._most)
            self.rows = max(self.rows, fitting)

    def smaller(self, request: PageRequest, error: R7MailRequestError) -> PageRequest:
        """Return a smaller request in place of a failed one.

        A server may refuse a large request rather than return fewer messages (R37), and so may a
        proxy (R3).

        :param request: the request that failed
        :param error: what it failed with
        :raises R7MailRequestError: that error, if the size isn't the reason
        """
        refused = error.status in TOO_LARGE
        size = FIRST_PAGE
        if refused:  # 1 if none has been served: if that is refused as well, it isn't the size
            size = self._good if 0 < self._good < request.size else 1
        if error.never_sent or size >= request.size or (self._told and not refused):
            raise error
        self.rows, self._most = min(self.rows, size), size
        if refused:
            self._most = self._limit = max(request.size // 2, size)
        log.warning(
            "Requesting %d messages at once%s: %s",
            size,
            " although page_size is larger" if self._told else "",
            error,
        )
        self._told = False
        return replace(request, size=size)


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error of a group of tasks."""
    first = errors.exceptions[0]
    return first_error(first) if isinstance(first, BaseExceptionGroup) else first


class WindowReader(Generic[L]):
    """Reads a window with several concurrent readers, which share it as spans of time.

    :param client: an open client; its `max_concurrency` is the number of readers
    :param folder: id of the folder
    :param criteria: what to search for; its window must have both bounds
    :param page_size: messages per request; None adapts to the server
    :param decode: decodes the bytes of a page; may raise AnswerError
    :param executor: where pages are decoded
    :param deliver: receives a page and the indexes of its new rows
    :param keys: if given, the keys of all delivered rows are added to it
    """

    def __init__(
        self,
        client: AsyncClient,
        folder: int,
        criteria: MessageFilter,
        *,
        page_size: int | None,
        decode: Callable[[bytes], L],
        executor: Executor,
        deliver: Callable[[L, Sequence[int]], Awaitable[None]],
        keys: set[Key] | None = None,
    ) -> None:
        self._client = client
        self._folder = folder
        self._criteria = criteria
        self._decode = decode
        self._executor = executor
        self._deliver = deliver
        self._keys = keys
        self._page_size = PageSize(page_size)
        whole = Seek(criteria.window, self._page_size.rows)
        self._spans: list[Seek] = [whole]
        self._waiting: list[Seek] = [whole]
        self._undated: set[Key] = set()
        self._counted_before: int | None = None
        # How often a page listed a message again (R34).
        self._repeats: dict[Key, int] = {}
        self._longest_page = 1
        self._count_is_total = False
        self._count_is_short = False
        self._pages = 0
        self._read = 0
        self._received = 0
        self._changed = asyncio.Condition()

    async def run(self) -> Reconciliation:
        """Read the whole window.

        :return: what the server counted and what was read
        :raises R7MailExtractError: a page could not be read, or the responses contradict the
            requests
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
        """Return a span to read: a waiting one, or half of the one with most pages left."""
        async with self._changed:
            while True:
                if self._waiting:
                    return self._waiting.pop()
                if all(span.finished for span in self._spans):
                    self._changed.notify_all()
                    return None
                shared = None
                if len(self._spans) < SPANS_AT_FIRST + self._expected() // PAGES_FOR_A_SPAN:
                    shared = max(self._spans, key=Seek.pages_left).share()
                if shared is not None:
                    self._spans.append(shared)
                    return shared
                await self._changed.wait()

    def _expected(self) -> int:
        """Estimate the pages of the window, at the initial page size."""
        counted = (self._counted_before or 0) if self._count_is_total else 0
        return max(self._pages, counted // min(self._longest_page, self._page_size.first))

    async def _take(self, seek: Seek, page: L) -> L | None:
        """Deliver a page's new rows; fetch the span's next page meanwhile and return it."""
        listing = page.listing
        if self._pages == 0:
            self._counted_before = listing.count
        self._pages += 1
        self._received += len(listing.keys)
        self._longest_page = max(self._longest_page, len(listing.keys))
        seek.resize(self._page_size.rows)
        try:
            fresh = seek.accept(listing)
        except R7MailExtractError as error:
            raise R7MailExtractError(f"{self._where()}: {error}") from error
        if listing.count is not None and listing.count > len(listing.keys):
            self._count_is_total = True
        self._note_repeats(listing)
        undated = [index for index in fresh if listing.dates[index] is None]
        if undated:  # they don't belong to a span, so each reader may meet them
            known = {index for index in undated if listing.keys[index] in self._undated}
            self._undated.update(listing.keys[index] for index in undated)
            fresh = [index for index in fresh if index not in known]
        self._read += len(fresh)
        if self._keys is not None:
            self._keys.update(listing.keys[index] for index in fresh)
        async with self._changed:
            self._changed.notify_all()
        request = seek.request()
        async with asyncio.TaskGroup() as group:
            following = None if request is None else group.create_task(self._fetch(request))
            if fresh:
                await self._deliver(page, fresh)
        return None if following is None else following.result()

    def _note_repeats(self, listing: Listing) -> None:
        distinct = len(set(listing.keys))
        if listing.count is not None and listing.count < distinct:
            self._count_is_short = True
        if distinct < len(listing.keys):
            for key, rows in Counter(listing.keys).items():
                if rows > 1:
                    self._repeats[key] = max(self._repeats.get(key, 0), rows - 1)

    def _where(self) -> str:
        return f"Folder {self._folder}, window {self._criteria.window.label()}"

    async def _fetch(self, request: PageRequest) -> L:
        request = self._page_size.within(request)
        length, started = 0, time.monotonic()

        def decode(body: bytes) -> L:
            nonlocal length
            length = len(body)
            return self._decode(body)

        page = None
        while page is None:
            call = _call(self._folder, self._criteria, request, decode)
            try:
                page = await self._client.send(call, executor=self._executor)
            except PAGE_ERRORS as error:
                try:
                    request = self._page_size.smaller(request, error)
                except R7MailRequestError:
                    raise R7MailExtractError(
                        f"{self._where()}: the page of {request.size} at offset {request.offset} "
                        f"from {request.start} to {request.end} could not be read. {error.text}"
                    ) from error
        elapsed = time.monotonic() - started
        self._page_size.learn(request, len(page.listing.keys), length, elapsed)
        return page

    async def _reconcile(self) -> Reconciliation:
        in_margins = set().union(*(span.in_margins for span in self._spans))
        distinct = self._read + len(in_margins)
        read = distinct + sum(self._repeats.values())
        before, after = self._counted_before, None
        if self._count_is_total:
            after = (await self._ask(self._criteria.window)).count
        doubt = await self._doubt(before, after, read)
        if doubt:
            log.warning(
                "%s: the messages read can't be compared with the server's Count: %s. `r7mail "
                "check` shows what it counts.",
                self._where(),
                doubt,
            )
            before = after = None
        elif before is not None and not self._count_is_total and before < read:
            before = None  # it is the page's
        return Reconciliation(before, after, read, self._received - distinct)

    async def _doubt(self, before: int | None, after: int | None, read: int) -> str:
        """Return why Count is of no use; empty if it is of the matches, or of the page (R2)."""
        if before is None:
            return "it is missing or not a number"
        if self._count_is_short:
            return "it is less than the messages of its own page"
        if after is None or min(before, after) <= read <= max(before, after):
            return ""
        nowhere = await self._ask(Window(*NOWHERE))
        # Undated messages may be listed, and counted, whatever the bounds.
        none_dated = all(date is None for date in nowhere.dates)
        if none_dated and (nowhere.count or 0) > len(self._undated):
            return "it is the same whatever dates are searched for"
        return ""

    async def _ask(self, window: Window) -> Listing:
        request = Seek(window, 1).request()
        assert request is not None  # noqa: S101 - a new Seek always has a request
        return (await self._fetch(request)).listing
