"""Read a window of a folder with several requests at once, each message once.

`client.seek` decides what to request; here the requests are made. No Airflow.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from airflow_provider_r7mail.client.asking import Question, aconduct
from airflow_provider_r7mail.client.calibration import Calibration
from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.page_size import TOO_LARGE, PageSize
from airflow_provider_r7mail.client.samples import NOWHERE
from airflow_provider_r7mail.client.seek import ContradictionError
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.client.spans import (
    ALL_FOREIGN,
    BEYOND_REACH,
    FIRST_OF_ALL,
    MAX_SWEEP_MESSAGES,
    UNKNOWN_ORDER,
    ZONELESS_TIMESTAMPS,
    Span,
    check_offset,
    explain,
    is_foreign,
    open_span,
    page_call,
    question_call,
    request_beyond,
    shows_order,
)
from airflow_provider_r7mail.client.sweep import Key, Listing, PageRequest, Sweep
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


NO_REPLIES = (
    "messages with replies are listed (HasChildren), but none of the replies: they are in other "
    "folders, or the server lists only the first message of a thread (R33)"
)


class HasListing(Protocol):
    """A page, in any form that the caller decodes it into."""

    @property
    def listing(self) -> Listing:
        """Keys and dates of its rows."""


PAGE_ERRORS = (
    R7MailConnectionError,
    R7MailProxyError,
    R7MailResponseError,
    R7MailServerError,
)
L = TypeVar("L", bound=HasListing)


@dataclass(slots=True)
class Reconciliation:
    """What the server counted and what was read (R2).

    :param counted_before: the window's Count at the start, None if it can't be trusted
    :param counted_after: the same at the end
    :param read: number of messages read, including those in the margins of the bounds (R4), and
        each as often as a page listed it (R34)
    :param repeated: number of rows that had been read before
    :param doubtful: whether mail that left may make up for mail that was passed over, since nothing
        has shown that the server sorts by Date (R30)
    """

    counted_before: int | None
    counted_after: int | None
    read: int
    repeated: int
    doubtful: bool = False

    @property
    def missing(self) -> int:
        """By how much both counts exceed the number of messages read.

        This is 0 if mail has only arrived, since the count before doesn't include it, or has only
        left, since the count after doesn't. If both happened, it may be more.
        """
        if self.counted_before is None or self.counted_after is None:
            return 0
        return max(min(self.counted_before, self.counted_after) - self.read, 0)


class RereadError(R7MailExtractError):
    """The server has turned out to have a reading for which a window must be read differently.

    :param sweep: whether by sweeps, since nothing shows that the server sorts by Date (R30)
    """

    def __init__(self, message: str, *, sweep: bool = False) -> None:
        super().__init__(message)
        self.sweep = sweep


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
    :param sweep: whether to read it by sweeps in any case, which is slow, but leaves no doubt
    :param max_sweep_messages: how many messages the folder may have if it can only be read as a
        whole (R29)
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
        sweep: bool = False,
        max_sweep_messages: int = MAX_SWEEP_MESSAGES,
    ) -> None:
        self._client = client
        self._traits = client.traits
        self._folder = folder
        self._criteria = criteria
        self._decode = decode
        self._executor = executor
        self._deliver = deliver
        self._keys = keys
        self._page_size = PageSize(page_size)
        self._sweep = sweep
        self._max_sweep_messages = max_sweep_messages
        self._calibrated = False
        self._spans: list[Span] = []
        self._waiting: list[Span] = []
        self._first: L | None = None
        self._contradiction: tuple[ContradictionError, PageRequest, Listing] | None = None
        self._heads = self._zoneless_timestamps = False
        self._foreign = 0
        self._own = False
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
        :raises RereadError: it must be read differently; what was delivered doesn't count
        :raises R7MailExtractError: a page could not be read, or the responses contradict the
            requests
        """
        await self._begin()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._client.config.max_concurrency):
                    group.create_task(self._work())
        except BaseExceptionGroup as errors:
            if self._contradiction is None:
                first = first_error(errors)
                raise first from first.__cause__
        if self._contradiction is not None:
            await self._explain(*self._contradiction)
        await self._check_folder()
        if self._heads and not self._traits.replies:
            log.warning("%s: %s.", self._where(), NO_REPLIES)
        if self._zoneless_timestamps:
            log.warning("%s: %s.", self._where(), ZONELESS_TIMESTAMPS)
        return await self._reconcile()

    async def _begin(self) -> None:
        """Request the first page, and find out from it how the server reads bounds and labels."""
        while True:
            span = self._span_of(self._criteria.window)
            request = span.request()
            self._first = None
            if request is None:
                break
            self._first = await self._fetch(request)
            if self._calibrated:
                break
            self._calibrated = True
            again = await aconduct(
                Calibration(self._traits, self._criteria, self._sample(request)).first_page(
                    request, self._first.listing
                ),
                self._answer,
            )
            if self._traits.sweeps:
                log.warning(
                    "%s: %s. Reading it by sweeps, which takes more requests.",
                    self._where(),
                    self._traits.describe(),
                )
            elif not again:
                break
        self._spans, self._waiting = [span], [span]

    def _sample(self, request: PageRequest) -> int:
        """Return how many messages the server is known to list at once."""
        return min(request.size, self._page_size.served)

    def _span_of(self, window: Window) -> Span:
        return open_span(
            self._traits,
            window,
            self._page_size.rows,
            self._max_sweep_messages,
            sweep=self._sweep,
        )

    async def _answer(self, question: Question) -> Listing:
        call = question_call(question, self._folder, self._criteria, self._decode)
        try:
            listing = (await self._client.send(call, executor=self._executor)).listing
        except PAGE_ERRORS as error:
            if call.tentative:
                raise
            raise R7MailExtractError(
                f"{self._where()}: it could not be found out how the server reads the request. "
                f"{error.text}"
            ) from error
        self._traits.replies = self._traits.replies or listing.replies
        return listing

    async def _explain(
        self, error: ContradictionError, request: PageRequest, listing: Listing
    ) -> None:
        request = replace(request, size=self._sample(request))
        try:
            await aconduct(explain(self._traits, error, request, listing), self._answer)
        except ContradictionError:
            raise R7MailExtractError(f"{self._where()}: {error}") from error
        raise RereadError(f"{self._where()}: {self._traits.describe()}.")

    async def _check_folder(self) -> None:
        """Check that FolderId means the folder asked for, if it says otherwise (R32)."""
        if not self._foreign or self._own:
            return
        if self._folder not in (await self._answer(FIRST_OF_ALL)).folders:
            raise R7MailExtractError(f"{self._where()}: {ALL_FOREIGN}")
        log.warning(
            "%s: the server also lists messages that are filed under other folders by their "
            "FolderId (R32). Left out: %s.",
            self._where(),
            self._foreign,
        )

    async def _work(self) -> None:
        while (seek := await self._next_span()) is not None:
            page, self._first = self._first, None
            if page is None and (request := seek.request()) is not None:
                page = await self._fetch(request)
            while page is not None:
                page = await self._take(seek, page)
            async with self._changed:
                self._changed.notify_all()

    async def _next_span(self) -> Span | None:
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
                    shared = max(self._spans, key=lambda span: span.pages_left()).share()
                if shared is not None:
                    self._spans.append(shared)
                    return shared
                await self._changed.wait()

    def _expected(self) -> int:
        """Estimate the pages of the window, at the initial page size."""
        counted = (self._counted_before or 0) if self._count_is_total else 0
        return max(self._pages, counted // min(self._longest_page, self._page_size.first))

    async def _take(self, seek: Span, page: L) -> L | None:
        """Deliver a page's new rows; fetch the span's next page meanwhile and return it."""
        listing = page.listing
        if self._pages == 0:
            self._counted_before = listing.count
        self._pages += 1
        self._received += len(listing.keys)
        self._longest_page = max(self._longest_page, len(listing.keys))
        request = seek.request()
        seek.resize(self._page_size.rows)
        await aconduct(check_offset(self._traits, listing, self._page_size.rows), self._answer)
        try:
            fresh = seek.accept(listing)
        except ContradictionError as error:
            assert request is not None  # noqa: S101 - this is the response to it
            self._contradiction = self._contradiction or (error, request, listing)
            raise
        except R7MailExtractError as error:
            raise R7MailExtractError(f"{self._where()}: {error}") from error
        if listing.count is not None and listing.count > len(listing.keys):
            self._count_is_total = True
        self._heads = self._heads or listing.heads
        self._zoneless_timestamps = self._zoneless_timestamps or listing.zoneless_timestamps
        self._traits.replies = self._traits.replies or listing.replies
        self._note_repeats(listing)
        if self._traits.by_date is None and shows_order(listing):
            self._traits.by_date = True
        fresh = self._drop_foreign(listing, fresh)
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

    def _drop_foreign(self, listing: Listing, fresh: list[int]) -> list[int]:
        """Drop the rows that are filed under another folder (R32)."""
        self._own = self._own or self._folder in listing.folders
        foreign = {
            folder_id for folder_id in set(listing.folders) if is_foreign(folder_id, self._folder)
        }
        if not foreign:
            return fresh
        own = [index for index in fresh if listing.folders[index] not in foreign]
        self._foreign += len(fresh) - len(own)
        return own

    def _note_repeats(self, listing: Listing) -> None:
        distinct = len(set(listing.keys))
        if listing.count is not None and listing.count < distinct:
            self._count_is_short = True
        if distinct < len(listing.keys):
            if len(set(zip(listing.keys, listing.dates, strict=True))) > distinct:
                raise R7MailExtractError(
                    f"{self._where()}: the server lists messages of different dates under one Id, "
                    "so that they can't be told from one that is listed twice (R34). Nothing was "
                    "written. Has the server been upgraded? Run r7mail check."
                )
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
            call = page_call(
                self._folder,
                self._criteria,
                request,
                decode,
                empty_labels=self._traits.empty_labels,
            )
            try:
                page = await self._client.send(call, executor=self._executor)
            except PAGE_ERRORS as error:
                try:
                    request = self._page_size.smaller(request, error)
                except R7MailRequestError:
                    far = request.offset > 0 and error.status in TOO_LARGE
                    raise R7MailExtractError(
                        f"{self._where()}: the page of {request.size} at offset {request.offset} "
                        f"from {request.start} to {request.end} could not be read. "
                        f"{BEYOND_REACH if far else ''}{error.text}"
                    ) from error
        elapsed = time.monotonic() - started
        self._page_size.learn(request, len(page.listing.keys), length, elapsed)
        return page

    async def _reconcile(self) -> Reconciliation:
        in_margins = set().union(*(span.in_margins for span in self._spans))
        distinct = self._read + self._foreign + len(in_margins)
        read = distinct + sum(self._repeats.values())
        read = max(read, *(span.rows for span in self._spans if isinstance(span, Sweep)), 0)
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
        if before is None or after is None:
            await self._check_order(read)
        changed = before is not None and not before == after == read
        return Reconciliation(
            before, after, read, self._received - distinct, changed and not self._is_sorted
        )

    @property
    def _is_sorted(self) -> bool:
        """Whether no message can have been passed over for want of an order by Date (R30).

        One page that has everything passes over nothing.
        """
        in_one_page = self._read + self._foreign <= self._longest_page
        return bool(self._traits.by_date) or self._traits.sweeps or self._sweep or in_one_page

    async def _check_order(self, rows: int) -> None:
        """Check that nothing was passed over, if no Count tells, and no page shows the order (R30).

        If something follows after the messages read, the server doesn't sort by Date. If not, mail
        that left meanwhile may make up for it.

        :raises RereadError: it must be read by sweeps
        """
        if self._is_sorted:
            return
        request = request_beyond(self._traits, self._criteria.window, rows)
        if request is None:
            return
        try:
            page = await self._fetch(request)
        except R7MailExtractError as error:
            if getattr(error.__cause__, "status", None) not in TOO_LARGE:  # R37
                raise
            log.warning("%s: %s.", self._where(), UNKNOWN_ORDER)
            return
        if page.listing.keys:
            self._traits.by_date = False
        why = self._traits.describe() or UNKNOWN_ORDER
        log.warning("%s: %s. Reading it by sweeps, which takes more requests.", self._where(), why)
        raise RereadError(f"{self._where()}: {why}.", sweep=True)

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
        request = self._span_of(window).request()
        assert request is not None  # noqa: S101 - a new Seek always has a request
        return (await self._fetch(replace(request, size=2))).listing
