"""Choose how a span of a folder is read on a server, and find another way if it contradicts that.

What is decided here holds for reading message by message and for reading windows. No I/O, no
Airflow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from operator import ge, le
from typing import TypeVar

from airflow_provider_r7mail.client.asking import Inquiry, Question
from airflow_provider_r7mail.client.bounds import BoundsInquiry
from airflow_provider_r7mail.client.calls import Call, list_messages
from airflow_provider_r7mail.client.dates import Window, to_microseconds
from airflow_provider_r7mail.client.models import Message, MessageFilter, NoMessage, Page
from airflow_provider_r7mail.client.samples import SAMPLE, Samples
from airflow_provider_r7mail.client.seek import ContradictionError, Seek
from airflow_provider_r7mail.client.sweep import Listing, PageRequest, Sweep
from airflow_provider_r7mail.client.traits import Traits

log = logging.getLogger(__name__)

MAX_SWEEP_MESSAGES = 20_000
"""How many messages a folder may have that can only be read as a whole (R29)."""

BEYOND_REACH = (
    "The server seems to limit how far a listing can be paged (R37); have that limit raised. "
)
ZONELESS_TIMESTAMPS = (
    "Timestamp doesn't name a zone, though Date does (R43): it is taken as UTC, but may be in the "
    "server's local time"
)
UNKNOWN_ORDER = "it can't be told whether the server sorts by Date (R30)"

P = TypeVar("P")
Span = Seek | Sweep


def page_call(
    folder: int,
    criteria: MessageFilter,
    request: PageRequest,
    parse: Callable[[bytes], P],
    *,
    empty_labels: bool,
    tentative: bool = False,
) -> Call[P]:
    """Return the call for a page; see `calls.list_messages`."""
    return list_messages(
        folder,
        criteria,
        start=request.start,
        end=request.end,
        offset=request.offset,
        size=request.size,
        parse=parse,
        empty_labels=empty_labels,
        tentative=tentative,
    )


def question_call(
    question: Question, folder: int, criteria: MessageFilter, parse: Callable[[bytes], P]
) -> Call[P]:
    """Return the call for a question about a folder.

    :param criteria: the filters of what is searched for
    """
    return page_call(
        folder,
        criteria if question.filtered else MessageFilter(),
        question.request,
        parse,
        empty_labels=question.labels,
        tentative=question.tentative,
    )


def open_span(
    traits: Traits, window: Window, size: int, limit: int, *, sweep: bool = False
) -> Span:
    """Return what reads a window on a server with these traits."""
    if not (traits.sweeps or sweep):
        return Seek(window, size)
    too_many = (
        f"{traits.describe()}. So the folder can only be read as a whole, but it has more than "
        f"{limit} messages. Raise max_sweep_messages if that is acceptable; every window takes two "
        "listings of the whole folder."
    )
    return Sweep(window, size, traits.reach, (limit, too_many) if traits.reach is None else None)


def request_beyond(traits: Traits, window: Window, rows: int) -> PageRequest | None:
    """Return a request for what follows after so many rows of a window (R30)."""
    request = open_span(traits, window, 2, 0).request()
    return None if request is None else replace(request, offset=rows, size=2)


FIRST_OF_ALL = Question(PageRequest(None, None, 0, SAMPLE))
"""Asked for to see whether FolderId ever is that of the folder (R32)."""

ALL_FOREIGN = (
    "every message that the server lists is filed under another folder by its FolderId (R32), so "
    "it can't be told which of them are in this one. Check the folder's id."
)


def is_foreign(folder_id: int | None, folder: int) -> bool:
    """Whether a listed message is filed under another folder than the one asked for (R32)."""
    return folder_id is not None and folder_id not in {0, folder}


def listing_of(page: Page) -> Listing:
    """Return what must be known about a page to decide what to request next."""
    rows = page.rows
    messages = [row if isinstance(row, Message) else None for row in rows]
    return Listing(
        [row.id if isinstance(row, Message) else row.key for row in rows],
        [None if row.date is None else to_microseconds(row.date) for row in rows],
        page.count,
        [
            None
            if message is None or message.timestamp is None
            else to_microseconds(message.timestamp)
            for message in messages
        ],
        [None if message is None else message.folder_id for message in messages],
        any(message is not None and message.labels for message in messages),
        page.zoneless,
        page.zoneless_timestamps
        and not page.zoneless
        and any(row.date is not None for row in rows),
        any(message is not None and message.has_children for message in messages),
        _has_replies([message for message in messages if message is not None]),
    )


def _has_replies(messages: Sequence[Message]) -> bool:
    threads = [message.thread_id for message in messages if message.thread_id is not None]
    return len(set(threads)) < len(threads) or any(
        message.parent_id is not None or message.reply_to_id is not None for message in messages
    )


def in_utc(traits: Traits, page: Page) -> Page:
    """Return a page with its dates in UTC, if they are known to be in another zone (R43)."""
    if traits.dates_offset is None or not page.zoneless:
        return page
    shift = timedelta(seconds=traits.dates_offset)

    def shifted(row: Message | NoMessage) -> Message | NoMessage:
        date = None if row.date is None else row.date + shift
        if isinstance(row, NoMessage):
            return replace(row, date=date)
        timestamp = row.timestamp
        if timestamp is not None and page.zoneless_timestamps:
            timestamp += shift
        return replace(row, date=date, timestamp=timestamp)

    return replace(page, rows=tuple(map(shifted, page.rows)))


def shows_order(listing: Listing) -> bool:
    """Whether a page shows that it is sorted by Date, and not by Id or Timestamp (R30)."""
    dates = [date for date in listing.dates if date is not None]
    return (
        _is_sorted(dates)
        and not _is_sorted([key for key in listing.keys if isinstance(key, int)])
        and not _is_sorted([moment for moment in listing.timestamps if moment is not None])
    )


def _is_sorted(values: Sequence[int]) -> bool:
    return all(map(le, values, values[1:])) or all(map(ge, values, values[1:]))


def check_offset(traits: Traits, listing: Listing, size: int) -> Inquiry:
    """Check that a page's dates are in UTC now that they were shifted (R43).

    :param size: messages per request
    :raises R7MailExtractError: they are in a zone whose distance from UTC changes
    """
    yield from BoundsInquiry(Samples(traits, size)).check_offset(listing)


def explain(
    traits: Traits,
    error: ContradictionError,
    request: PageRequest,
    listing: Listing,
) -> Inquiry:
    """Find out which reading explains a response that contradicts its request (R29, R30).

    :raises R7MailExtractError: none does
    """
    if error.what == "order":
        if traits.by_date is False:
            raise error
        traits.by_date = False
    else:
        before = traits.reach
        low, high = (
            None if bound is None else to_microseconds(bound)
            for bound in (request.start, request.end)
        )
        samples = Samples(traits, request.size)
        outside = [
            row
            for row in samples.rows(listing)
            if (low is not None and row.date < low) or (high is not None and row.date > high)
        ]
        yield from BoundsInquiry(samples).investigate(outside[0], zoneless=listing.zoneless)
        if traits.reach == before:
            traits.settle("unexplained")
    log.warning("%s. Reading it by sweeps, which takes more requests.", traits.describe())
