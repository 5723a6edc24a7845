"""Decide, when a folder is read message by message, what comes next and which messages are new.

`client.reader` makes the requests. No I/O, no Airflow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from airflow_provider_r7mail.client.answers import parse_page
from airflow_provider_r7mail.client.asking import Inquiry, Question
from airflow_provider_r7mail.client.calibration import Calibration
from airflow_provider_r7mail.client.calls import Call
from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.client.models import Message, MessageFilter, NoMessage, Page
from airflow_provider_r7mail.client.page_size import TOO_LARGE, PageSize
from airflow_provider_r7mail.client.samples import Samples
from airflow_provider_r7mail.client.seek import ContradictionError
from airflow_provider_r7mail.client.spans import (
    ALL_FOREIGN,
    BEYOND_REACH,
    FIRST_OF_ALL,
    MAX_SWEEP_MESSAGES,
    UNKNOWN_ORDER,
    ZONELESS_TIMESTAMPS,
    check_offset,
    explain,
    in_utc,
    is_foreign,
    listing_of,
    open_span,
    page_call,
    question_call,
    request_beyond,
    shows_order,
)
from airflow_provider_r7mail.client.sweep import Key, Listing, PageRequest
from airflow_provider_r7mail.client.traits import Traits
from airflow_provider_r7mail.exceptions import R7MailExtractError, R7MailRequestError

log = logging.getLogger(__name__)

# Given in place of a missing bound to a server that wants both (R29); a day from the ends of .NET's
# dates, since the server may convert them to another zone.
FAR_PAST, FAR_FUTURE = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)


class FolderReading:
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
        is_empty = yield from Samples(self._traits, 1).is_empty()
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
        traits, listing = self._traits, listing_of(in_utc(self._traits, page))
        if not self._calibrated:
            self._calibrated = True
            calibration = Calibration(traits, self._criteria, request.size)
            again = yield from calibration.first_page(request, listing)
            if calibration.found_nothing:
                traits.empty_folders.add(self._folder)
            if traits.sweeps:
                self._restart()
            if again or traits.sweeps:
                return False
        yield from check_offset(traits, listing, request.size)
        return True

    def contradicted(self, error: ContradictionError, request: PageRequest, page: Page) -> Inquiry:
        """Find another way of reading after a response that contradicts its request.

        :raises R7MailExtractError: there is none
        """
        window = self._window
        if error.what == "bounds" and (window.start is None) != (window.end is None):
            # It may want both bounds.
            self._window = Window(window.start or FAR_PAST, window.end or FAR_FUTURE)
        else:
            listing = listing_of(in_utc(self._traits, page))
            yield from explain(self._traits, error, request, listing)
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
        page = in_utc(self._traits, page)
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
