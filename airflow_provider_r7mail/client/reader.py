"""Read a folder with `Seek`: as messages, or a window of it as pages. No Airflow."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
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
    R7MailResponseError,
    R7MailServerError,
)

log = logging.getLogger(__name__)

# A span of its own costs a request or two, so there are no more than this at first, and one more
# for so many pages, read or counted. Where most of a window is empty and Count does not tell (R2),
# sharing by time finds that out slowly.
SPANS_AT_FIRST = 6
PAGES_FOR_A_SPAN = 40

# Where the caller does not say how many messages to ask for at once: so many first, then what comes
# to a page of this many bytes, which costs little more for each message than larger ones do, and
# little memory. A page that took so many seconds is large enough for that server.
FIRST_PAGE = 200
MAX_PAGE = 1_000
PAGE_BYTES = 2 << 20
PAGE_SECONDS = 2.0
# Pages of longer messages are left as they come up to this.
MAX_PAGE_BYTES = 8 << 20


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
    def missing(self) -> int:
        """By how many the server's counts, before and after alike, exceed what was read.

        Mail that only comes, or only goes, leaves none missing: what came is not in the count
        before, what went not in the one after. Where mail does both there may be some.
        """
        if self.counted_before is None or self.counted_after is None:
            return 0
        return max(min(self.counted_before, self.counted_after) - self.read, 0)


class PageSize:
    """How many messages to ask for at once: as told, or as the server's answers suggest.

    :param told: by the caller; None begins with FIRST_PAGE and follows the answers
    """

    def __init__(self, told: int | None) -> None:
        self.rows = self.first = FIRST_PAGE if told is None else told
        self._most = MAX_PAGE if told is None else told
        self._told = told is not None

    def learn(self, request: PageRequest, rows: int, length: int, seconds: float) -> None:
        """Take note of a page.

        :param rows: messages in it
        :param length: its bytes
        :param seconds: what it took, waiting included
        """
        if self._told or rows == 0:
            return
        if length > MAX_PAGE_BYTES:
            self.rows = max(min(self.rows, rows * MAX_PAGE_BYTES // length), 1)
        elif rows >= request.size and seconds < PAGE_SECONDS:  # not cut off (R3), not too slow
            fitting = min(rows * PAGE_BYTES // length, 2 * rows, self._most)
            self.rows = max(self.rows, fitting)

    def retreat(self, request: PageRequest) -> bool:
        """After a page could not be read: whether to ask again, for fewer messages.

        A server, or a proxy, may refuse what it holds to be too much, rather than give less (R3).
        """
        if self._told or request.size <= FIRST_PAGE:
            return False
        self.rows = self._most = FIRST_PAGE
        return True


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first in a group of tasks."""
    first = errors.exceptions[0]
    return first_error(first) if isinstance(first, BaseExceptionGroup) else first


class WindowReader(Generic[L]):
    """Reads a window with several requests in flight: spans of time, shared between readers.

    :param client: `max_concurrency` of its configuration is the number of readers
    :param folder: the folder's id
    :param criteria: what to look for; its window must have both bounds
    :param page_size: messages to ask for at once; None follows what the server gives
    :param decode: reads a page's bytes; raises AnswerError
    :param executor: where pages are decoded
    :param deliver: takes a page and the indexes of its rows that are new
    :param keys: filled with the keys of all that is read, if given
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
        self._longest_page = 1
        self._count_is_total = False
        self._pages = 0
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
                shared = None
                if len(self._spans) < SPANS_AT_FIRST + self._expected() // PAGES_FOR_A_SPAN:
                    shared = max(self._spans, key=Seek.pages_left).share()
                if shared is not None:
                    self._spans.append(shared)
                    return shared
                await self._changed.wait()

    def _expected(self) -> int:
        """How many pages the window takes, as far as is known, if they stay as at first."""
        counted = (self._counted_before or 0) if self._count_is_total else 0
        return max(self._pages, counted // min(self._longest_page, self._page_size.first))

    async def _take(self, seek: Seek, page: L) -> L | None:
        """Deliver a page's new rows, and bring the next page meanwhile."""
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
        undated = [index for index in fresh if listing.dates[index] is None]
        if undated:  # these belong to no span, so that each reader may meet them
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

    def _where(self) -> str:
        return f"Folder {self._folder}, window {self._criteria.window.label()}"

    async def _fetch(self, request: PageRequest) -> L:
        length, started = 0, time.monotonic()

        def decode(body: bytes) -> L:
            nonlocal length
            length = len(body)
            return self._decode(body)

        try:
            page = await self._client.send(
                _call(self._folder, self._criteria, request, decode), executor=self._executor
            )
        except (
            R7MailConnectionError,
            R7MailProxyError,
            R7MailResponseError,
            R7MailServerError,
        ) as error:
            if not error.never_sent and self._page_size.retreat(request):
                log.warning("Fewer messages are asked for at once: %s", error)
                return await self._fetch(replace(request, size=self._page_size.rows))
            raise R7MailExtractError(
                f"{self._where()}: the page of {request.size} at offset {request.offset} from "
                f"{request.start} to {request.end} could not be read. {error.text}"
            ) from error
        elapsed = time.monotonic() - started
        self._page_size.learn(request, len(page.listing.keys), length, elapsed)
        return page

    async def _reconcile(self) -> Reconciliation:
        in_margins = set().union(*(span.in_margins for span in self._spans))
        read = self._read + len(in_margins)
        before, after = self._counted_before, None
        if before is not None and not self._count_is_total and before < read:
            before = None  # it counts the page
        if self._count_is_total:
            request = Seek(self._criteria.window, 1).request()
            assert request is not None  # noqa: S101 - a new Seek always asks
            page = await self._fetch(request)
            after = page.listing.count
        return Reconciliation(before, after, read, self._received - read)
