"""Read a folder message by message, each once.

`client.seek` decides what to request; here the requests are made. No Airflow.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal, TypeVar

from airflow_provider_r7mail.client.calibration import (
    Calibration,
    Inquiry,
    Question,
)
from airflow_provider_r7mail.client.calls import Call, parse_page
from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.client.models import Message, MessageFilter, NoMessage, Page
from airflow_provider_r7mail.client.seek import ContradictionError
from airflow_provider_r7mail.client.session import AsyncClient, Client
from airflow_provider_r7mail.client.spans import (
    ALL_FOREIGN,
    BEYOND_REACH,
    FIRST_OF_ALL,
    MAX_SWEEP_MESSAGES,
    UNKNOWN_ORDER,
    ZONELESS_TIMESTAMPS,
    explain,
    is_foreign,
    listing_of,
    open_span,
    page_call,
    question_call,
    request_beyond,
    shift_dates,
    shows_order,
)
from airflow_provider_r7mail.client.sweep import Key, Listing, PageRequest
from airflow_provider_r7mail.client.traits import Traits
from airflow_provider_r7mail.exceptions import (
    R7MailExtractError,
    R7MailRequestError,
)

log = logging.getLogger(__name__)

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

# Given in place of a missing bound to a server that wants both (R29); a day from the ends of .NET's
# dates, since the server may convert them to another zone.
FAR_PAST, FAR_FUTURE = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)

P = TypeVar("P")


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

    @property
    def served(self) -> int:
        """The most messages that were requested at once and served."""
        return self._good

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


class _Messages:
    """Decides which page to request next, and picks its new messages; see `iter_messages`."""

    def __init__(
        self,
        traits: Traits,
        folder: int,
        criteria: MessageFilter,
        size: PageSize,
        *,
        keep_undated: bool,
    ) -> None:
        window = criteria.window
        self._traits = traits
        self._folder = folder
        self._criteria = criteria
        self._window = window
        self._size = size
        self._yielded: set[Key] = set()
        self._own = self._foreign = self._calibrated = False
        self._rows = self._pages = 0
        self._counted: int | None = None
        self._state: Literal["reading", "checking", "counting", "checked"] = "reading"
        self._span = open_span(traits, window, size.rows, MAX_SWEEP_MESSAGES)
        self._skip_undated = not keep_undated and (
            window.start is not None or window.end is not None
        )

    def next_request(self) -> PageRequest | None:
        """Return the request for the next page, None at the end."""
        request = self._span.request() or self._request_check()
        return None if request is None else self._size.within(request)

    def call(self, request: PageRequest, parse: Callable[[bytes], Page] = parse_page) -> Call[Page]:
        """Return the call for a request."""
        labels = self._traits.empty_labels
        return page_call(self._folder, self._criteria, request, parse, empty_labels=labels)

    def _request_check(self) -> PageRequest | None:
        """Return a request that shows whether anything was passed over; None if nothing can be.

        If the server doesn't sort by Date (R30), something follows after the messages read, or its
        Count is another one. One page alone has all there is.
        """
        traits = self._traits
        if self._state != "reading" or self._pages < 2 or traits.sweeps or traits.by_date:
            return None
        self._state = "checking"
        return request_beyond(traits, self._window, self._total)

    @property
    def _total(self) -> int:
        return self._rows + len(self._span.in_margins)

    def instead(self, request: PageRequest, error: R7MailRequestError) -> PageRequest:
        """Return the request to send in place of a failed one (R37).

        :raises R7MailRequestError: that error, if the size isn't the reason
        :raises R7MailExtractError: the server doesn't list that far
        """
        if self._state == "checking" and error.status in TOO_LARGE:
            self._state = "counting"  # what follows can't be seen
            return replace(request, offset=0)
        try:
            return self._size.smaller(request, error)
        except R7MailRequestError:
            if request.offset > 0 and error.status in TOO_LARGE:
                raise R7MailExtractError(
                    f"Folder {self._folder}: {BEYOND_REACH}{error.text}"
                ) from error
            raise

    def is_still_empty(self) -> Generator[Question, Listing | None, bool]:
        """Whether a folder that was empty when the session last looked still is.

        That takes one request, where a window without mail proves nothing (R29).
        """
        if self._folder not in self._traits.empty_folders:
            return False
        is_empty = yield from Calibration(self._traits, self._criteria, 1).is_empty()
        if not is_empty:
            self._traits.empty_folders.discard(self._folder)
        return is_empty

    def question(self, question: Question, parse: Callable[[bytes], Page]) -> Call[Page]:
        """Return the call for a question."""
        return question_call(question, self._folder, self._criteria, parse)

    def check_folder(self) -> Inquiry:
        """Check that FolderId means the folder asked for, if it always says otherwise (R32).

        :raises R7MailExtractError: it doesn't
        """
        if self._foreign and not self._own:
            sample = yield FIRST_OF_ALL
            if sample is not None and self._folder not in sample.folders:
                raise R7MailExtractError(f"Folder {self._folder}: {ALL_FOREIGN}")

    def prepare(
        self, request: PageRequest, page: Page
    ) -> Generator[Question, Listing | None, bool]:
        """Find out from the first page how the server reads bounds and labels (R29, R31).

        :return: whether to take the page; if not, `next_request` asks for a better one
        """
        if self._calibrated:
            return True
        self._calibrated = True
        calibration = Calibration(self._traits, self._criteria, request.size)
        again = yield from calibration.first_page(request, listing_of(self._in_utc(page)))
        if calibration.found_nothing:
            self._traits.empty_folders.add(self._folder)
        if self._traits.sweeps:
            self._restart()
        return not (again or self._traits.sweeps)

    def contradicted(self, error: ContradictionError, request: PageRequest, page: Page) -> Inquiry:
        """Find another way of reading after a response that contradicts its request.

        :raises R7MailExtractError: there is none
        """
        window = self._window
        if error.what == "bounds" and (window.start is None) != (window.end is None):
            # It may want both bounds.
            self._window = Window(window.start or FAR_PAST, window.end or FAR_FUTURE)
        else:
            listing = listing_of(self._in_utc(page))
            yield from explain(self._traits, self._criteria, error, request, listing)
        self._restart()

    def _restart(self, *, sweep: bool = False) -> None:
        traits, window, size = self._traits, self._window, self._size.rows
        self._span = open_span(traits, window, size, MAX_SWEEP_MESSAGES, sweep=sweep)
        self._state = "checked" if sweep else "reading"
        self._rows = self._pages = 0

    def take(self, page: Page) -> Iterator[Message]:
        """Return the new messages of a page.

        :raises ContradictionError: the response contradicts the request
        """
        self._span.resize(self._size.rows)
        page = self._in_utc(page)
        listing = listing_of(page)
        if self._state in {"checking", "counting"}:
            self._check(listing)
            return iter(())
        if self._pages == 0:
            self._counted = listing.count
        fresh = self._span.accept(listing)
        if listing.zoneless_timestamps and not self._traits.zoneless_timestamps:
            self._traits.zoneless_timestamps = True
            log.warning("Folder %s: %s.", self._folder, ZONELESS_TIMESTAMPS)
        self._pages += bool(listing.keys)
        self._rows += len(fresh)
        if self._traits.by_date is None and shows_order(listing):
            self._traits.by_date = True
        return self._pick(
            page, [index for index in fresh if listing.keys[index] not in self._yielded]
        )

    def _check(self, listing: Listing) -> None:
        """Read everything again by sweeps, if it can't be told whether all has been read (R30).

        Mail that left meanwhile may make up for mail that was passed over.
        """
        steady = self._counted == listing.count == self._total > len(listing.keys)
        if self._state == "checking" and listing.keys:
            self._traits.by_date = False
        self._state = "checked"
        if self._traits.by_date is None and steady:
            return
        log.info(
            "Folder %s: %s. Reading it by sweeps, which takes more requests.",
            self._folder,
            self._traits.describe() or UNKNOWN_ORDER,
        )
        self._restart(sweep=True)

    def _in_utc(self, page: Page) -> Page:
        offset = self._traits.dates_offset
        return page if offset is None or not page.zoneless else shift_dates(page, offset)

    def _pick(self, page: Page, fresh: Sequence[int]) -> Iterator[Message]:
        for index in fresh:
            message = page.rows[index]
            if isinstance(message, NoMessage):
                log.warning(
                    "Skipping a message (Date: %s): it has no readable Id, so nothing can be done "
                    "with it. An extract puts such messages into quarantine.",
                    message.date or "none",
                )
                continue
            self._yielded.add(message.id)
            foreign = is_foreign(message.folder_id, self._folder)
            self._foreign, self._own = self._foreign or foreign, self._own or not foreign
            if foreign:
                log.info(
                    "Skipping message %s: it is listed in folder %s, but filed under folder %s "
                    "(R32).",
                    message.id,
                    self._folder,
                    message.folder_id,
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

    A server that doesn't sort by Date, or reads bounds in its own way (R29, R30), yields them in
    its own order.

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
    messages = _Messages(client.traits, folder, criteria, size, keep_undated=keep_undated)

    def ask(inquiry: Generator[Question, Listing | None, P]) -> P:
        answer: Listing | None = None
        while True:
            try:
                question = inquiry.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            try:
                answer = listing_of(client.send(messages.question(question, parse_page)))
            except R7MailRequestError as error:
                if not question.tentative or error.status is None:
                    raise
                answer = None

    if ask(messages.is_still_empty()):
        return
    while (request := messages.next_request()) is not None:
        page = None
        while page is None:
            try:
                page = client.send(messages.call(request))
            except R7MailRequestError as error:
                request = messages.instead(request, error)
        size.learn(request, len(page.rows), 0, 0.0)
        if not ask(messages.prepare(request, page)):
            continue
        try:
            fresh = messages.take(page)
        except ContradictionError as error:
            ask(messages.contradicted(error, request, page))
        else:
            yield from fresh
    ask(messages.check_folder())


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
    messages = _Messages(client.traits, folder, criteria, size, keep_undated=keep_undated)
    length = 0

    def parse(body: bytes) -> Page:
        nonlocal length
        length = len(body)
        return parse_page(body)

    async def answer(question: Question) -> Listing:
        call = messages.question(question, parse_page)
        return listing_of(await client.send(call, executor=executor))

    executor = ThreadPoolExecutor(1, "r7mail-parse")
    try:
        if await answer_all(messages.is_still_empty(), answer):
            return
        while (request := messages.next_request()) is not None:
            page = None
            while page is None:
                started = time.monotonic()
                try:
                    page = await client.send(messages.call(request, parse), executor=executor)
                except R7MailRequestError as error:
                    request = messages.instead(request, error)
            size.learn(request, len(page.rows), length, time.monotonic() - started)
            if not await answer_all(messages.prepare(request, page), answer):
                continue
            try:
                fresh = messages.take(page)
            except ContradictionError as error:
                await answer_all(messages.contradicted(error, request, page), answer)
                continue
            for message in fresh:
                yield message
        await answer_all(messages.check_folder(), answer)
    finally:
        executor.shutdown(wait=False)


async def calibrate(client: AsyncClient, folder: int) -> None:
    """Find out how the server reads bounds and labels, unless that is known (R29, R31).

    :param client: an open client
    :param folder: id of the folder
    :raises R7MailRequestError: the server failed or could not be reached
    """
    criteria, request = MessageFilter(), PageRequest(None, None, 0, FIRST_SHARED_PAGE)

    async def answer(question: Question) -> Listing:
        return listing_of(await client.send(question_call(question, folder, criteria, parse_page)))

    if client.traits.bounds == "unknown" or client.traits.labels == "unknown":
        first = await answer(Question(request, labels=client.traits.empty_labels))
        calibration = Calibration(client.traits, criteria, request.size)
        await answer_all(calibration.first_page(request, first), answer)


async def answer_all(
    inquiry: Generator[Question, Listing | None, P],
    answer: Callable[[Question], Awaitable[Listing]],
) -> P:
    """Answer an inquiry's questions, and return what it found."""
    found: Listing | None = None
    while True:
        try:
            question = inquiry.send(found)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        try:
            found = await answer(question)
        except R7MailRequestError as error:
            if not question.tentative or error.status is None:
                raise
            found = None
