"""Decode a page of messages, as the server sent it, into the columns of the messages table.

Arrow's JSON reader does this without creating Python objects. What it can't read correctly (unknown
fields, values of another type, lone surrogates, missing dates) Python reads, message by message or
just these fields, and nothing is lost (R20, R21). See `shape` and `items`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.client.calls import AnswerError, parse_items
from airflow_provider_r7mail.client.dates import (
    MICROSECONDS,
    lacks_zone,
    only_timestamps_lack_zone,
    to_microseconds,
)
from airflow_provider_r7mail.client.fields import (
    FIELDS,
    FILE_FIELDS,
    SENDER_FIELDS,
    restore_names,
)
from airflow_provider_r7mail.client.sweep import Key, Listing
from airflow_provider_r7mail.lake.arrays import int64_array, text_array
from airflow_provider_r7mail.lake.items import ItemRow, json_texts, read_item
from airflow_provider_r7mail.lake.schema import OF_A_RUN, arrow_type, schema
from airflow_provider_r7mail.lake.shape import Parts, Shape, mended, parse

if TYPE_CHECKING:
    import pyarrow as pa

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
# The columns of JSON text, which only Python writes.
_TEXTS_OF_PYTHON = frozenset({"children", "task_id", "extra"})
_DATES = tuple(name for name, _, kind in FIELDS if kind == "date")
_ITEMS = re.compile(rb'"[Ii]tems":\s*\[')
# A row that Arrow's reader can't read, if it says which.
_ROW = re.compile(r" in row (\d+)")
# How often Arrow may refuse a page before Python reads all of it, and the number of rows that are
# not worth another attempt.
_ATTEMPTS = 16
_FEW = 8


@cache
def item_schema() -> pa.Schema:
    """Return the schema of a message as Arrow can read it."""
    import pyarrow as pa

    types = {
        "int": pa.int64(),
        "text": pa.string(),
        "bool": pa.bool_(),
        # Nanoseconds, for dates with 7 or 9 fractional digits.
        "date": pa.timestamp("ns", tz="UTC"),
        "json": pa.null(),
        "texts": pa.list_(pa.string()),
        "ints": pa.list_(pa.int64()),
        "sender": pa.struct([("Name", pa.string()), ("Address", pa.string())]),
    }
    types["files"] = pa.list_(pa.struct([(name, types[kind]) for name, _, kind in FILE_FIELDS]))
    return pa.schema([(name, types[kind]) for name, _, kind in FIELDS])


@cache
def wire_schema() -> pa.Schema:
    """Return the schema of a listing as Arrow can read it."""
    import pyarrow as pa

    number = pa.int64()
    return pa.schema(
        [
            ("FolderId", number),
            ("Items", pa.list_(pa.struct(list(item_schema())))),
            ("Count", number),
            ("UnreadCount", number),
        ]
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


def decode_page(
    body: bytes, shape: Shape | None = None, dates_offset: int | None = None
) -> DecodedPage:
    """Decode a response of Messages.

    :param body: the response's bytes
    :param shape: what was learned from earlier pages of this server, and is learned from this one
    :param dates_offset: what to add to dates that don't name a zone, in seconds (R43)
    :raises AnswerError: it is not a listing
    """
    shape = shape or Shape()
    easy = None
    if shape.is_plain:
        easy = _decode_whole(body)
    elif shape.is_regular:
        easy = _decode_stripped(body, shape)
    page = easy or _decode_in_parts(body, shape) or _decode_carefully(body)
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


def _listing(batch: pa.RecordBatch, keys: Sequence[Key], count: int | None) -> Listing:
    import pyarrow as pa
    import pyarrow.compute as pc

    threads = batch["thread_id"].drop_null()
    return Listing(
        keys,
        batch["date"].view(pa.int64()).to_pylist(),
        count,
        batch["timestamp"].view(pa.int64()).to_pylist(),
        batch["folder_id"].to_pylist(),
        len(batch["labels"].flatten()) > 0,
        heads=pc.any(batch["has_children"]).as_py() is True,
        replies=batch["parent_id"].null_count < len(batch)
        or batch["reply_to_id"].null_count < len(batch)
        or len(threads.unique()) < len(threads),
    )


# -- by Arrow ---------------------------------------------------------------------------------

_FAR_DATE = re.compile(rb':\s*"(?:226[2-9]|22[7-9]\d|2[3-9]\d\d|[3-9]\d{3})-\d\d-\d\dT')


@cache
def _wraps_dates() -> bool:
    """Whether Arrow reads a date that nanoseconds can't hold as another one, as 18.1 does."""
    import pyarrow as pa
    import pyarrow.json as pj

    options = pj.ParseOptions(explicit_schema=pa.schema([("date", pa.timestamp("ns"))]))
    try:
        pj.read_json(pa.BufferReader(b'{"date":"2555-01-01T00:00:00"}'), parse_options=options)
    except pa.ArrowException:
        return False
    return True


def _read(text: bytes, wanted: pa.Schema) -> pa.Table:
    """Read JSON objects.

    :raises ArrowException: Arrow can't read them, or not with this schema
    """
    import pyarrow as pa
    import pyarrow.json as pj

    if _wraps_dates() and _FAR_DATE.search(text):
        raise pa.ArrowInvalid("a date is too far away for nanoseconds")
    table = pj.read_json(
        pa.BufferReader(text),
        read_options=pj.ReadOptions(use_threads=False, block_size=len(text) + 1),
        parse_options=pj.ParseOptions(
            explicit_schema=wanted,
            unexpected_field_behavior="error",
            # If set, it reads the text twice.
            newlines_in_values=b"\n" in text,
        ),
    )
    if not text.isascii():
        table.validate(full=True)  # the reader accepts invalid UTF-8
    return table


def _decode_whole(body: bytes) -> DecodedPage | None:
    """Decode a page in Arrow; None if that isn't right for every row."""
    read = _read_whole(body)
    return read and _page(read[0], {}, read[1], {}, {})


def _read_whole(body: bytes) -> tuple[Mapping[str, pa.Array], int | None] | None:
    """Read a page in Arrow; return its columns and Count, None if Arrow can't read every row."""
    import pyarrow as pa

    if body.lstrip()[:1] != b"{":
        return None  # pyarrow 26 crashes the process on `null`
    try:
        answer = _read(body, wire_schema())
    except pa.ArrowException:
        return None
    if answer.num_rows != 1 or answer["Items"].null_count:
        return None
    items = answer["Items"].chunk(0).flatten()
    if items.null_count:
        return None
    wire = dict(zip((name for name, _, _ in FIELDS), items.flatten(), strict=True))
    if wire["Id"].null_count or wire["Date"].null_count or _early(wire):
        return None
    return wire, answer["Count"][0].as_py()


def _decode_stripped(body: bytes, shape: Shape) -> DecodedPage | None:
    """Decode a page whose messages all have the same unknown fields; None if they don't."""
    found = _ITEMS.search(body)
    stripped = shape.strip(body, found.end()) if found else None
    read = stripped and _read_whole(stripped[0])
    if not stripped or not read or len(read[0]["Id"]) != len(stripped[1]):
        return None
    try:
        odd = json.loads(b"[%b]" % b",".join(stripped[1]))
    except ValueError:
        return None
    if len(odd) != len(stripped[1]) or not shape.unknown.issuperset(chain.from_iterable(odd)):
        return None
    rows = {row: read_item(fields, shape.kept) for row, fields in enumerate(odd)}
    return _page(read[0], rows, read[1], {}, {})


def _early(wire: Mapping[str, pa.Array]) -> set[int]:
    """Return the rows with dates before 1970, which a cast to microseconds would round up."""
    import pyarrow.compute as pc

    return {
        row
        for name in _DATES
        if (earliest := pc.min(wire[name]).value) is not None and earliest < 0
        for row, moment in enumerate(wire[name].view("int64").to_pylist())
        if moment is not None and moment < 0
    }


def _page(
    wire: Mapping[str, pa.Array],
    rows: Mapping[int, ItemRow],
    count: int | None,
    bad: dict[int, BadMessage],
    keys: Mapping[int, str],
) -> DecodedPage:
    """Put a page together.

    :param wire: what Arrow read, by the API's names
    :param rows: what Python read, by row
    :param bad: the messages that don't fit the tables, by row
    :param keys: the keys of messages without an Id
    """
    import pyarrow as pa

    length = len(wire["Id"])
    # Most rows in `rows` have unknown fields only.
    known = {row: read for row, read in rows.items() if read.columns}
    columns: dict[str, pa.Array] = {}
    for name, column, kind in FIELDS:
        values = wire[name]
        if kind == "sender":
            columns |= zip((part for _, part, _ in SENDER_FIELDS), values.flatten(), strict=True)
        elif kind == "date":
            columns[column] = _moments(values, column, known)
        elif kind == "files":
            columns[column] = _renamed_files(values)
        elif kind != "json":
            columns[column] = values
    odd = {row: read.extra for row, read in rows.items() if read.extra}
    extras = dict(zip(odd, json_texts(list(odd.values())), strict=True))
    for column in _TEXTS_OF_PYTHON:
        texts = extras
        if column != "extra":
            texts = {
                row: read.columns[column] for row, read in known.items() if column in read.columns
            }
        columns[column] = (
            text_array([texts.get(row) for row in range(length)])
            if texts
            else pa.nulls(length, pa.string())
        )
    names = [name for name in schema("messages").names if name not in OF_A_RUN]
    batch = pa.RecordBatch.from_arrays([columns[name] for name in names], names=names)
    ids = columns["message_id"].to_pylist()
    for row, key in keys.items():
        ids[row] = key
    repaired = frozenset(row for row, read in rows.items() if read.repaired)
    return DecodedPage(batch, _listing(batch, ids, count), bad, repaired)


def _moments(exact: pa.Array, column: str, rows: Mapping[int, ItemRow]) -> pa.Array:
    """Truncate dates to microseconds; put in those that nanoseconds can't hold."""
    import pyarrow as pa

    moments = exact.cast(pa.timestamp("us", tz="UTC"), safe=False)
    far = {
        row: read.columns[column]
        for row, read in rows.items()
        if column in read.columns and not _is_near(read.columns[column])
    }
    if not far:
        return moments
    numbers = moments.view(pa.int64()).to_pylist()
    for row, moment in far.items():
        numbers[row] = to_microseconds(moment)
    return int64_array(numbers).cast(moments.type)


def _is_near(moment: datetime) -> bool:
    """Whether Arrow reads a date correctly as nanoseconds, which are truncated later."""
    return _FIRST <= moment < _LAST


_FIRST, _LAST = datetime(1970, 1, 2, tzinfo=UTC), datetime(2262, 1, 1, tzinfo=UTC)


def _renamed_files(values: pa.ListArray) -> pa.ListArray:
    """Rename the fields of file objects; a cast matches fields by name, and would empty them."""
    import pyarrow as pa

    if values.null_count == len(values):
        return pa.nulls(len(values), arrow_type("files"))
    files = values.values
    renamed = pa.StructArray.from_arrays(
        files.flatten(), fields=list(arrow_type("files").value_type), mask=files.is_null()
    )
    return pa.ListArray.from_arrays(
        values.offsets, renamed, type=arrow_type("files"), mask=values.is_null()
    )


# -- in parts: Arrow and Python ---------------------------------------------------------------


def _decode_in_parts(body: bytes, shape: Shape) -> DecodedPage | None:
    """Decode a page message by message; None if it isn't cut into messages that easily."""
    found = _ITEMS.search(body)
    parts = shape.split(body, found.end()) if found else None
    if found is None or parts is None:
        return None
    envelope = body[: found.end()] + body[parts.spans[-1][1] :]
    try:
        members = json.loads(envelope, object_pairs_hook=list)
        _, count = parse_items(envelope)
    except (ValueError, AnswerError):
        return None
    if [value for name, value in members if name.lower() == "items"] != [[]]:
        return None
    try:
        mixed = _Mixed(parts)
        page = mixed.decode(count)
    except ValueError:  # what was skipped was more than a text
        shape.skip_nothing()
        return None
    shape.has_lone_surrogates |= mixed.has_lone_surrogates
    shape.note(list(parts.unread.values()), len(parts.spans))
    return page


def _decode_carefully(body: bytes) -> DecodedPage:
    """Decode a page in Python."""
    items, count = _parse(body)
    parts = Parts(b"{}," * len(items))
    for row, item in enumerate(items):
        parts.unread[row] = item
        parts.add(3 * row, 3 * row + 2)
    return _Mixed(parts).decode(count)


def _parse(body: bytes) -> tuple[list[Any], int | None]:
    try:
        return parse_items(body)
    except AnswerError:
        return parse_items(mended(body))


class _Mixed:
    """Decodes a page of which Python reads some messages, or some fields.

    :param parts: its messages
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._items: dict[int, Any] = {}
        self._rows: dict[int, ItemRow] = {}
        self.has_lone_surrogates = False

    def decode(self, count: int | None) -> DecodedPage:
        """Return the page's rows, with its Count."""
        for row, fields in self._odd_fields():
            restored = restore_names(fields) if self._parts.with_inner else fields
            read = read_item(restored, self._parts.kept)
            self._rows[row] = read
            if read.columns.keys() - _TEXTS_OF_PYTHON:
                self._parts.append(row, _wire_line(read.columns)[1:-1])
        for row in [*self._parts.unread, *self._parts.suspects]:
            self._read_whole(row)
        wire = self._read_lines()
        bad: dict[int, BadMessage] = {}
        keys: dict[int, str] = {}
        equal: Counter[str] = Counter()
        for row, item in sorted(self._items.items()):
            read = self._rows[row]
            message_id = read.columns.get("message_id")
            if message_id is None:
                digest = _digest(item)
                equal[digest] += 1  # messages without an Id may be identical
                keys[row] = f"{digest}-{equal[digest]}"
                bad[row] = BadMessage(None, "Id is missing or not a 64-bit integer", item)
            elif "date" not in read.columns:
                bad[row] = BadMessage(message_id, read.no_date or "Date is missing", item)
        return _page(wire, self._rows, count, bad, keys)

    def _odd_fields(self) -> Iterator[tuple[int, Any]]:
        texts = self._parts.odd
        try:
            return zip(texts, json.loads(b"[%b]" % b",".join(texts.values())), strict=True)
        except ValueError:
            return ((row, parse(text)) for row, text in texts.items())

    def _read_whole(self, row: int) -> None:
        """Read a message in Python, so that Arrow reads its columns and nothing else of it."""
        if row in self._items:
            return
        if row not in self._parts.unread:
            start, end = self._parts.spans[row]
            self._parts.unread[row] = parse(self._parts.body[start:end])
        self._items[row] = restore_names(self._parts.unread[row])
        self._rows[row] = read_item(self._items[row])
        self._parts.replace(row, _wire_line(self._rows[row].columns))

    def _read_lines(self) -> Mapping[str, pa.Array]:
        """Read all lines in Arrow; Python reads the messages that it refuses."""
        for _ in range(_ATTEMPTS):
            wire, refused = self._attempt()
            if wire is not None and not refused:
                return wire
            for row in refused:
                self._read_whole(row)
        for row in range(len(self._parts.spans)):
            self._read_whole(row)
        return self._columns(0, len(self._parts.spans))

    def _attempt(self) -> tuple[Mapping[str, pa.Array] | None, Collection[int]]:
        """Read all lines; return the columns, or else the rows that Arrow refuses or misreads."""
        import pyarrow as pa

        try:
            wire = self._columns(0, len(self._parts.spans))
        except pa.ArrowException as error:
            named = _ROW.search(str(error))
            self.has_lone_surrogates |= "surrogate" in str(error)
            return None, [int(named[1])] if named else self._search()
        return wire, (
            _missing(wire["Id"]) | _missing(wire["Date"]) | _early(wire)
        ) - self._items.keys()

    def _search(self) -> range:
        """Return a few rows one of which Arrow refuses, without saying which."""
        import pyarrow as pa

        low, high = 0, len(self._parts.spans)
        while high - low > _FEW:
            middle = (low + high) // 2
            try:
                self._columns(low, middle)
                low = middle
            except pa.ArrowException:
                high = middle
        return range(low, high)

    def _columns(self, low: int, high: int) -> Mapping[str, pa.Array]:
        """Read lines in Arrow."""
        import pyarrow as pa

        text = self._parts.lines(low, high) if high > low else b"{}"
        batch = _read(text, item_schema()).to_batches()[0]
        if batch.num_rows != max(high - low, 1):
            raise pa.ArrowInvalid("a line holds more than one message")
        return {name: batch[name].slice(0, high - low) for name, _, _ in FIELDS}


def _missing(values: pa.Array) -> set[int]:
    """Return the rows with nulls."""
    if not values.null_count:
        return set()
    return {row for row, is_null in enumerate(values.is_null().to_pylist()) if is_null}


def _wire_line(columns: Mapping[str, Any]) -> bytes:
    """Return our columns of a message as JSON that Arrow reads, except `_TEXTS_OF_PYTHON`."""
    wire: dict[str, Any] = {}
    for name, column, kind in FIELDS:
        if kind == "sender":
            sender = {part: columns[its] for part, its, _ in SENDER_FIELDS if its in columns}
            if sender:
                wire[name] = sender
        elif column in columns and kind != "json":
            value = columns[column]
            if kind == "files":
                wire[name] = [
                    None
                    if file is None
                    else {part: file[its] for part, its, _ in FILE_FIELDS if its in file}
                    for file in value
                ]
            elif kind != "date":
                wire[name] = value
            elif _is_near(value):
                wire[name] = value.isoformat()
    return json.dumps(wire, separators=(",", ":")).encode()


def _digest(item: Any) -> str:
    """Hash what doesn't change of a message, to tell messages without an Id apart."""
    if isinstance(item, dict):
        item = {name: value for name, value in item.items() if name not in _CHANGING}
    return hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()
