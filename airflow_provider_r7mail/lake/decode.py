"""Decode a page of messages, as the server sent it, into the columns of the messages table.

Arrow's JSON reader is the fastest, but takes only fields as in the manual: see `arrow_reader`. The
others Python reads column by column, and nothing is lost (R20, R21): see `columns`. Which fields
these are is learned from the pages; one with a new surprise Python reads as a whole.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.client.answers import AnswerError, check_listing, read_count
from airflow_provider_r7mail.client.dates import (
    MICROSECONDS,
    lacks_zone,
    only_timestamps_lack_zone,
)
from airflow_provider_r7mail.client.fields import FIELDS
from airflow_provider_r7mail.client.sweep import Listing
from airflow_provider_r7mail.lake.arrays import int64_list, text_array
from airflow_provider_r7mail.lake.arrow_reader import read_fields, read_plain
from airflow_provider_r7mail.lake.columns import Columns
from airflow_provider_r7mail.lake.items import NO_DATE, json_texts
from airflow_provider_r7mail.lake.parsing import Parser
from airflow_provider_r7mail.lake.schema import OF_A_RUN, schema

if TYPE_CHECKING:
    import pyarrow as pa

ARROW_BYTES = 128 << 10
"""Arrow takes half a millisecond for a page, however small it is: some 40 messages in Python."""

# The fields of a message that may change while a folder is read.
_CHANGING = frozenset(
    {
        "FolderId",
        "HasChildren",
        "Children",
        "Labels",
        "WasRead",
        "WasSent",
        "WasReplied",
        "Important",
        "IsDeleted",
        "ThreadId",
        "ThreadCount",
        "HasThreadAttachments",
        "TaskId",
        "EventInviteStatus",
    }
)


@dataclass(frozen=True, slots=True)
class BadMessage:
    """A message that doesn't fit the tables.

    :param message_id: its id, or None if the id is what can't be read
    :param reason: why it doesn't fit
    :param raw: the API's object, as received
    """

    message_id: int | None
    reason: str
    raw: Any

    def to_json(self) -> str:
        """Return a line for the quarantine file; lone surrogates stay escaped."""
        return json.dumps(
            {"message_id": self.message_id, "reason": self.reason, "message": self.raw}
        )


@dataclass(slots=True)
class DecodedPage:
    """A page of messages in the columns of the messages table, without those in `OF_A_RUN`.

    :param batch: one row per message, in the page's order
    :param listing: keys, dates and Count, for the reader of the window
    :param bad: the messages that don't fit the tables, by row
    :param repaired: the rows whose text had to be mended (R21)
    """

    batch: pa.RecordBatch
    listing: Listing
    bad: dict[int, BadMessage] = field(default_factory=dict)
    repaired: frozenset[int] = frozenset()

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return int(self.batch.get_total_buffer_size())


class Habits:
    """What was learned of a server's pages. Not for several threads at once.

    :param arrow_bytes: the size of the smallest pages that Arrow reads
    """

    def __init__(self, arrow_bytes: int = ARROW_BYTES) -> None:
        self.parser = Parser()
        self._arrow_bytes = arrow_bytes
        self._plain_pages = 0
        self._wanted = 0
        self._pages = self._next = 0
        self._failures = 0

    def is_for_arrow(self, body: bytes) -> bool:
        """Whether Arrow is the fastest for a page, and may be able to read it."""
        return len(body) >= self._arrow_bytes and self._plain_pages >= self._wanted

    def is_partly_for_arrow(self, body: bytes) -> bool:
        """Whether Arrow may be able to read a page but for the fields that it can't."""
        return len(body) >= self._arrow_bytes and self._pages >= self._next

    def note_partly(self, worked: bool) -> None:
        """Learn from such a page: after each further failure in a row, Arrow waits twice as long.

        :param worked: whether Arrow could read the rest of the page
        """
        self._failures = 0 if worked else self._failures + 1
        if self._failures > 1:
            self._next = self._pages + 2 ** min(self._failures - 1, 10)

    def note(self, is_plain: bool, refused: bool) -> None:
        """Learn from a page.

        :param is_plain: whether nothing on it was odd
        :param refused: whether Arrow tried it in vain: it waits twice as long from then on
        """
        if refused:
            self._wanted = 2 * self._wanted or 1
        self._plain_pages = self._plain_pages + 1 if is_plain else 0
        self._pages += 1


def decode_page(
    body: bytes, habits: Habits | None = None, dates_offset: int | None = None
) -> DecodedPage:
    """Decode a response of Messages.

    :param body: the response's bytes
    :param habits: what was learned from earlier pages of this server, and is learned from this one
    :param dates_offset: what to add to dates that don't name a zone, in seconds (R43)
    :raises AnswerError: it is not a listing
    """
    habits = habits or Habits()
    found = None
    tried = habits.is_for_arrow(body)
    if tried and (plain := read_plain(body)) is not None:
        found = _page(*plain), True
    refused = tried and found is None
    if found is None and habits.is_partly_for_arrow(body):
        found = decode_apart(body, habits.parser)
        habits.note_partly(worked=found is not None)
    page, is_plain = found or decode_values(body, habits.parser)
    habits.note(is_plain, refused)
    zoneless = lacks_zone(body)
    if dates_offset is not None and zoneless:
        both = lacks_zone(body, "Timestamp")
        page = _shifted(page, dates_offset, ["date", *["timestamp"] * both])
    page.listing = replace(
        page.listing,
        zoneless=zoneless,
        zoneless_timestamps=only_timestamps_lack_zone(body),
    )
    return page


def decode_apart(body: bytes, parser: Parser) -> tuple[DecodedPage, bool] | None:
    """Decode a page like `decode_values`, but leave to Arrow the fields that it can read.

    :return: None if it can't read these, or a message has no Id or Date
    """
    try:
        listing = check_listing(parser.parse_apart(body))
    except (ValueError, RecursionError, AnswerError):
        return None
    columns = Columns(listing["Items"], parser.names, parser.apart)
    arrays = columns.arrays
    others = tuple(field for field in FIELDS if field not in parser.apart)
    if _lack_keys(arrays) or (read := read_fields(body, others)) is None or _lack_keys(read):
        return None
    page = _page({**arrays, **read}, read_count(listing.get("Count")), columns.extras)
    return page, columns.is_plain


def _lack_keys(columns: Mapping[str, pa.Array]) -> bool:
    """Whether a message has no Id or Date."""
    return any(columns[name].null_count for name in ("message_id", "date") if name in columns)


def decode_values(body: bytes, parser: Parser) -> tuple[DecodedPage, bool]:
    """Decode a page whatever is on it; return whether nothing on it is odd, too."""
    answer, is_odd = parser.parse(body)
    listing = check_listing(answer)
    columns = Columns(listing["Items"], parser.names)
    parser.learn(columns.layouts, columns.odd)
    page = _page(columns.arrays, read_count(listing.get("Count")), columns.extras)
    page.repaired = frozenset(columns.repaired)
    _set_aside(page, columns)
    return page, columns.is_plain and not page.bad and not is_odd


def _page(
    columns: Mapping[str, pa.Array],
    count: int | None,
    extras: Mapping[int, Any] | None = None,
) -> DecodedPage:
    """Put a page together.

    :param columns: its columns, by our names
    :param extras: what doesn't fit them, by row
    """
    import pyarrow as pa

    length = len(columns["message_id"])
    extra = pa.nulls(length, pa.string())
    if extras:
        texts: list[str | None] = [None] * length
        for row, text in zip(extras, json_texts(list(extras.values())), strict=True):
            texts[row] = text
        extra = text_array(texts)
    names = [name for name in schema("messages").names if name not in OF_A_RUN]
    arrays = {**columns, "extra": extra}
    batch = pa.RecordBatch.from_arrays([arrays[name] for name in names], names=names)
    return DecodedPage(batch, _listing(batch, int64_list(batch["message_id"]), count))


def _set_aside(page: DecodedPage, columns: Columns) -> None:
    """Note the messages that don't fit the tables, for lack of an Id or a Date."""
    ids = int64_list(page.batch["message_id"])
    keys: list[Any] = list(ids)
    equal: Counter[str] = Counter()
    for row, (message_id, date) in enumerate(zip(ids, page.listing.dates, strict=True)):
        if message_id is not None and date is not None:
            continue
        item = columns.item(row)
        if message_id is None:
            digest = _digest(item)
            equal[digest] += 1  # messages without an Id may be identical
            keys[row] = f"{digest}-{equal[digest]}"
            page.bad[row] = BadMessage(None, "Id is missing or not a 64-bit integer", item)
        else:
            reason = NO_DATE
            if item.get("Date") is None:
                reason = "Date is missing"
            elif "Date" in columns.extras.get(row, ()):
                reason = "Date can't be read"
            page.bad[row] = BadMessage(message_id, reason, item)
    page.listing = replace(page.listing, keys=keys)


def _shifted(page: DecodedPage, seconds: int, zoneless: Sequence[str]) -> DecodedPage:
    """Add a number of seconds to the columns that don't name a zone."""
    import pyarrow as pa
    import pyarrow.compute as pc

    batch, shift = page.batch, pa.scalar(seconds * MICROSECONDS, pa.duration("us"))
    columns = {name: batch[name] for name in batch.schema.names}
    for name in zoneless:
        columns[name] = pc.add(columns[name], shift)
    batch = pa.RecordBatch.from_pydict(columns)
    return replace(
        page, batch=batch, listing=_listing(batch, page.listing.keys, page.listing.count)
    )


def _listing(batch: pa.RecordBatch, keys: Sequence[Any], count: int | None) -> Listing:
    import pyarrow.compute as pc

    threads = batch["thread_id"].drop_null()
    return Listing(
        keys,
        int64_list(batch["date"]),
        count,
        int64_list(batch["timestamp"]),
        int64_list(batch["folder_id"]),
        len(batch["labels"].flatten()) > 0,
        heads=pc.any(batch["has_children"]).as_py() is True,
        replies=batch["parent_id"].null_count < len(batch)
        or batch["reply_to_id"].null_count < len(batch)
        or len(threads.unique()) < len(threads),
    )


def _digest(item: Any) -> str:
    """Hash what doesn't change of a message, to tell messages without an Id apart."""
    if isinstance(item, dict):
        item = {name: value for name, value in item.items() if name not in _CHANGING}
    return hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()
