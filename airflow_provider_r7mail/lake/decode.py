"""The tables: Arrow schemas, a page's way into them, and the Parquet writer. No HTTP, no Airflow.

A page is decoded by Arrow's JSON reader, with no Python object for any field. What that reader
can't do right (unknown fields, values of another type, lone surrogates, missing dates) makes it
fail, and the page then goes down a careful slow way, where nothing is lost (R20, R21): a value
that does not fit its column stays in `extra` under the API's name for it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.client.calls import AnswerError, parse_items
from airflow_provider_r7mail.client.dates import parse_api_date, to_microseconds
from airflow_provider_r7mail.client.fields import FIELDS, FILE_FIELDS, KINDS, SENDER_FIELDS, Fields
from airflow_provider_r7mail.client.models import mend_text
from airflow_provider_r7mail.client.seek import Listing
from airflow_provider_r7mail.lake.schema import arrow_type, schema

if TYPE_CHECKING:
    import pyarrow as pa

# What may change of a message while a folder is read.
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
    """The listing as the fast way expects it."""
    import pyarrow as pa

    types = {
        "int": pa.int64(),
        "text": pa.string(),
        "bool": pa.bool_(),
        # As nanoseconds, for dates of 7 and of 9 fractional digits.
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
    """A message that the tables cannot hold.

    :param message_id: its id, None if that is what can't be read
    :param reason: why
    :param raw: the API's object, as it came
    """

    message_id: int | None
    reason: str
    raw: Any

    def to_json(self) -> str:
        """One line for the quarantine file; lone surrogates stay as escapes."""
        return json.dumps(
            {"message_id": self.message_id, "reason": self.reason, "message": self.raw}
        )


@dataclass(slots=True)
class DecodedPage:
    """A page of Messages in the messages table's columns, `extracted_at` excepted.

    :param batch: one row a message, in the page's order
    :param listing: keys, dates and Count, for the reading
    :param bad: what the tables cannot hold, by row
    :param repaired: rows whose text had to be mended (R21)
    """

    batch: pa.RecordBatch
    listing: Listing
    bad: dict[int, BadMessage] = field(default_factory=dict)
    repaired: frozenset[int] = frozenset()

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return int(self.batch.get_total_buffer_size())


def decode_page(body: bytes) -> DecodedPage:
    """Read an answer of Messages into columns.

    :param body: the answer's bytes
    :raises AnswerError: not a listing
    """
    return _decode_fast(body) or _decode_carefully(body)


def _read_fast(body: bytes) -> tuple[pa.StructArray, int | None] | None:
    """The items of a listing, and its Count; None where Arrow's reader is not the one for it."""
    import pyarrow as pa
    import pyarrow.json as pj

    if body.lstrip()[:1] != b"{":
        return None  # `null`, for one, ends the process in pyarrow 26
    try:
        answer = pj.read_json(
            pa.BufferReader(body),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(body) + 1),
            parse_options=pj.ParseOptions(
                explicit_schema=wire_schema(),
                unexpected_field_behavior="error",
                # With them it reads the text twice.
                newlines_in_values=b"\n" in body,
            ),
        )
        if not body.isascii():
            answer.validate(full=True)  # the reader takes bytes that are not UTF-8
    except pa.ArrowException:
        return None
    if answer.num_rows != 1 or answer["Items"].null_count:
        return None
    items = answer["Items"].chunk(0).flatten()
    return None if items.null_count else (items, answer["Count"][0].as_py())


def _decode_fast(body: bytes) -> DecodedPage | None:
    """Decode in Arrow; None where that would not be right for every row."""
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
    names = [name for name in schema("messages").names if name != "extracted_at"]
    listing = Listing(wire["Id"].to_pylist(), dates.view(pa.int64()).to_pylist(), count)
    return DecodedPage(pa.RecordBatch.from_arrays(columns, names=names), listing)


def _renamed_files(values: pa.ListArray) -> pa.ListArray:
    """The API's file objects under our names; a cast would match fields by name, and empty them."""
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
    """Cut dates to microseconds; None for dates before 1970, which a cast would round up."""
    import pyarrow as pa
    import pyarrow.compute as pc

    earliest = pc.min(exact).value
    if earliest is not None and earliest < 0:
        return None
    return exact.cast(pa.timestamp("us", tz="UTC"), safe=False)


# -- the careful way ------------------------------------------------------------------------

# Python converts no longer text to an integer, against quadratic time (sys.int_info).
_MAX_DIGITS = 4300


def _parse(body: bytes) -> tuple[list[Any], int | None]:
    try:
        return parse_items(body)
    except AnswerError:
        return parse_items(_mended(body))


def _mended(body: bytes) -> bytes:
    """The same JSON in a form that Python's parser takes; as it was if it is none at all.

    Bytes that are not UTF-8 become lone surrogates, and like these U+FFFD in the end (R21); an
    integer too long for Python becomes text, which stays in `extra`.
    """

    def read(digits: str) -> int | str:
        return int(digits) if len(digits) <= _MAX_DIGITS else digits

    try:
        text = body.decode("utf-8-sig", "surrogateescape")
        return json.dumps(json.loads(text, parse_int=read)).encode()
    except (ValueError, RecursionError):
        return body


def _json_text(value: Any) -> str:
    """JSON text; what only Python takes for a number (NaN) becomes text."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(json.loads(json.dumps(value), parse_constant=str))


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
        reader = _Careful(item)
        row = reader.read()
        rows.append(row)
        if reader.repaired:
            repaired.add(index)
        message_id, moment = row.get("message_id"), row.get("date")
        if message_id is None:
            digest = _digest(item)
            equal[digest] += 1  # without an Id, several may be equal in all
            keys.append(f"{digest}-{equal[digest]}")
        else:
            keys.append(message_id)
        dates.append(None if moment is None else to_microseconds(moment))
        if message_id is None:
            bad[index] = BadMessage(None, "Id is missing or no whole number of 64 bits", item)
        elif moment is None:
            bad[index] = BadMessage(message_id, reader.no_date or "Date is missing", item)
    names = [name for name in schema("messages").names if name != "extracted_at"]
    columns = [
        pa.array([row.get(name) for row in rows], schema("messages").field(name).type)
        for name in names
    ]
    batch = pa.RecordBatch.from_arrays(columns, names=names)
    return DecodedPage(batch, Listing(keys, dates, count), bad, frozenset(repaired))


def _digest(item: Any) -> str:
    """What tells messages without an Id apart, as far as they can be: all that does not change."""
    if isinstance(item, dict):
        item = {name: value for name, value in item.items() if name not in _CHANGING}
    return hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()


# JSON's pairs of escapes have become one character by now; what is left has no UTF-8 form.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# As Python would write it: other spellings, such as 007, are text whose meaning is not known.
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)


class _UnfitError(Exception):
    """A value that its column cannot hold."""


class _Careful:
    """Reads one item field by field. What does not fit stays in `extra` (R20)."""

    def __init__(self, item: Any) -> None:
        self._item = item
        self.repaired = False
        self.no_date: str | None = None

    def read(self) -> dict[str, Any]:
        if not isinstance(self._item, dict):
            return {}
        row: dict[str, Any] = {}
        extra = {name: value for name, value in self._item.items() if name not in KINDS}
        for name, column, kind in FIELDS:
            value = self._item.get(name)
            if value is None:
                continue
            try:
                if kind == "sender":
                    row.update(self._sender(value, extra))
                elif kind == "files":
                    row[column] = self._files(value, extra)
                else:
                    row[column] = self._convert(kind, value)
            except _UnfitError:
                extra[name] = value
        if row.get("date") is None:
            text = self._item.get("Date")
            self.no_date = (
                "Date is missing"
                if text is None
                else "Date can't be read"
                if "Date" in extra
                else "Date is .NET's 'no date'"
            )
        if extra:
            row["extra"] = _json_text(extra)
        return row

    def _convert(self, kind: str, value: Any) -> Any:
        return _CONVERTERS[kind](self, value)

    def to_text(self, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise _UnfitError
        text = value if isinstance(value, str) else json.dumps(value)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.repaired = True
            text = mend_text(text)
        return text

    def to_int(self, value: Any) -> int:
        if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value):
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
            raise _UnfitError
        return value

    def to_bool(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise _UnfitError
        return value

    def to_date(self, value: Any) -> datetime | None:
        try:
            return parse_api_date(value)
        except ValueError:
            raise _UnfitError from None

    def to_texts(self, value: Any) -> list[str | None]:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list):
            raise _UnfitError
        return [None if item is None else self.to_text(item) for item in items]

    def to_ints(self, value: Any) -> list[int | None]:
        items = value if isinstance(value, list) else [value]
        return [None if item is None else self.to_int(item) for item in items]

    def to_json(self, value: Any) -> str:
        return _json_text(value)

    def _sender(self, value: Any, extra: dict[str, Any]) -> dict[str, Any]:
        if isinstance(value, str):
            return {"from_address": self.to_text(value)}
        return self.known(value, SENDER_FIELDS, "From", extra)

    def _files(self, value: Any, extra: dict[str, Any]) -> list[dict[str, Any] | None]:
        files: list[dict[str, Any] | None] = []
        if not isinstance(value, list):
            extra["Attachments"] = value
        for item in value if isinstance(value, list) else [None]:
            if not isinstance(item, dict):  # a file, but which is not known (R17)
                files.append(None)
                if item is not None:
                    extra["Attachments"] = value
                continue
            # The whole list goes to `extra` if something of it has no place here.
            odd: dict[str, Any] = {}
            files.append(self.known(item, FILE_FIELDS, "Attachments", odd))
            if odd:
                extra["Attachments"] = value
        return files

    def known(self, value: Any, known: Fields, name: str, extra: dict[str, Any]) -> dict[str, Any]:
        """An inner object's fields; all of it goes to `extra` besides if some have no place."""
        if not isinstance(value, dict):
            raise _UnfitError
        row: dict[str, Any] = {}
        if value.keys() - {field for field, _, _ in known}:
            extra[name] = value
        for part, column, kind in known:
            if value.get(part) is None:
                continue
            try:
                row[column] = self._convert(kind, value[part])
            except _UnfitError:
                extra[name] = value
        return row


_CONVERTERS: Mapping[str, Callable[[_Careful, Any], Any]] = {
    "int": _Careful.to_int,
    "text": _Careful.to_text,
    "bool": _Careful.to_bool,
    "date": _Careful.to_date,
    "texts": _Careful.to_texts,
    "ints": _Careful.to_ints,
    "json": _Careful.to_json,
}


def files_row(file: Mapping[str, Any]) -> dict[str, Any]:
    """The API's object for a file in our columns; values of another type are left out (R20)."""
    return _Careful(None).known(file, FILE_FIELDS, "Attachments", {})
