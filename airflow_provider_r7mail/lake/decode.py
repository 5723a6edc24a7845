"""Decode a page of messages, as the server sent it, into the columns of the messages table.

Arrow's JSON reader does this without creating Python objects. It fails on what it can't read
correctly (unknown fields, values of another type, lone surrogates, missing dates); such a page is
decoded again slowly, message by message, and nothing is lost (R20, R21). See `items`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.client.calls import AnswerError, parse_items
from airflow_provider_r7mail.client.dates import to_microseconds
from airflow_provider_r7mail.client.fields import FIELDS, FILE_FIELDS
from airflow_provider_r7mail.client.seek import Listing
from airflow_provider_r7mail.lake.items import read_item
from airflow_provider_r7mail.lake.schema import OF_A_RUN, arrow_type, schema

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


@cache
def wire_schema() -> pa.Schema:
    """Return the schema of a listing that the fast way can read."""
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
    item = pa.struct([(name, types[kind]) for name, _, kind in FIELDS])
    number = pa.int64()
    return pa.schema(
        [
            ("FolderId", number),
            ("Items", pa.list_(item)),
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


def decode_page(body: bytes) -> DecodedPage:
    """Decode a response of Messages.

    :param body: the response's bytes
    :raises AnswerError: it is not a listing
    """
    return _decode_fast(body) or _decode_carefully(body)


def _read_fast(body: bytes) -> tuple[pa.StructArray, int | None] | None:
    """Return the items of a listing and its Count; None if Arrow's reader can't read it."""
    import pyarrow as pa
    import pyarrow.json as pj

    if body.lstrip()[:1] != b"{":
        return None  # pyarrow 26 crashes the process on `null`
    try:
        answer = pj.read_json(
            pa.BufferReader(body),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(body) + 1),
            parse_options=pj.ParseOptions(
                explicit_schema=wire_schema(),
                unexpected_field_behavior="error",
                # If set, it reads the text twice.
                newlines_in_values=b"\n" in body,
            ),
        )
        if not body.isascii():
            answer.validate(full=True)  # the reader accepts invalid UTF-8
    except pa.ArrowException:
        return None
    if answer.num_rows != 1 or answer["Items"].null_count:
        return None
    items = answer["Items"].chunk(0).flatten()
    return None if items.null_count else (items, answer["Count"][0].as_py())


def _decode_fast(body: bytes) -> DecodedPage | None:
    """Decode in Arrow; None if that isn't right for every row."""
    import pyarrow as pa

    read = _read_fast(body)
    if read is None:
        return None
    items, count = read
    wire = dict(zip((name for name, _, _ in FIELDS), items.flatten(), strict=True))
    dates = _microseconds(wire["Date"])
    if wire["Id"].null_count or dates is None or dates.null_count:
        return None
    columns: list[pa.Array] = []
    for name, _, kind in FIELDS:
        values = wire[name]
        if kind == "sender":
            columns += values.flatten()
        elif name == "Date":
            columns.append(dates)
        elif kind == "date":
            moments = _microseconds(values)
            if moments is None:
                return None
            columns.append(moments)
        elif kind == "json":
            columns.append(pa.nulls(len(items), pa.string()))
        elif kind == "files":
            columns.append(_renamed_files(values))
        else:
            columns.append(values)
    columns.append(pa.nulls(len(items), pa.string()))  # extra
    names = [name for name in schema("messages").names if name not in OF_A_RUN]
    listing = Listing(wire["Id"].to_pylist(), dates.view(pa.int64()).to_pylist(), count)
    return DecodedPage(pa.RecordBatch.from_arrays(columns, names=names), listing)


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


def _microseconds(exact: pa.Array) -> pa.Array | None:
    """Truncate dates to microseconds; None if any is before 1970: a cast would round it up."""
    import pyarrow as pa
    import pyarrow.compute as pc

    earliest = pc.min(exact).value
    if earliest is not None and earliest < 0:
        return None
    return exact.cast(pa.timestamp("us", tz="UTC"), safe=False)


# -- the careful way ------------------------------------------------------------------------

# Python refuses to convert longer text to an integer, since that takes quadratic time.
_MAX_DIGITS = 4300


def _parse(body: bytes) -> tuple[list[Any], int | None]:
    try:
        return parse_items(body)
    except AnswerError:
        return parse_items(_mended(body))


def _mended(body: bytes) -> bytes:
    """Rewrite JSON into a form that Python's parser accepts; return it unchanged if it isn't JSON.

    Invalid UTF-8 becomes lone surrogates, and these become U+FFFD later (R21). An integer that is
    too long for Python becomes text, which ends up in `extra`.
    """

    def read(digits: str) -> int | str:
        return int(digits) if len(digits) <= _MAX_DIGITS else digits

    try:
        text = body.decode("utf-8-sig", "surrogateescape")
        return json.dumps(json.loads(text, parse_int=read)).encode()
    except (ValueError, RecursionError):
        return body


def _decode_carefully(body: bytes) -> DecodedPage:
    import pyarrow as pa

    items, count = _parse(body)
    rows: list[dict[str, Any]] = []
    keys: list[int | str] = []
    dates: list[int | None] = []
    bad: dict[int, BadMessage] = {}
    repaired: set[int] = set()
    equal: Counter[str] = Counter()
    for index, item in enumerate(items):
        row, mended, no_date = read_item(item)
        rows.append(row)
        if mended:
            repaired.add(index)
        message_id, moment = row.get("message_id"), row.get("date")
        if message_id is None:
            digest = _digest(item)
            equal[digest] += 1  # messages without an Id may be identical
            keys.append(f"{digest}-{equal[digest]}")
        else:
            keys.append(message_id)
        dates.append(None if moment is None else to_microseconds(moment))
        if message_id is None:
            bad[index] = BadMessage(None, "Id is missing or not a 64-bit integer", item)
        elif moment is None:
            bad[index] = BadMessage(message_id, no_date or "Date is missing", item)
    names = [name for name in schema("messages").names if name not in OF_A_RUN]
    columns = [
        pa.array([row.get(name) for row in rows], schema("messages").field(name).type)
        for name in names
    ]
    batch = pa.RecordBatch.from_arrays(columns, names=names)
    return DecodedPage(batch, Listing(keys, dates, count), bad, frozenset(repaired))


def _digest(item: Any) -> str:
    """Hash what doesn't change of a message, to tell messages without an Id apart."""
    if isinstance(item, dict):
        item = {name: value for name, value in item.items() if name not in _CHANGING}
    return hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()
