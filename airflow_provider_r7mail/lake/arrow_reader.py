"""Read what is as in the manual with Arrow's JSON reader, without creating Python objects.

It refuses unknown fields and values of other types, or would misread them: see `columns`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from airflow_provider_r7mail.client.fields import (
    ENVELOPE,
    FIELDS,
    FILE_FIELDS,
    SENDER_FIELDS,
    Fields,
)
from airflow_provider_r7mail.lake.schema import arrow_type

if TYPE_CHECKING:
    import pyarrow as pa


@cache
def wire_schema(fields: Fields = FIELDS, envelope: Sequence[str] = ENVELOPE) -> pa.Schema:
    """Return the schema of a listing as Arrow can read it.

    :param fields: the fields of a message to read
    :param envelope: the fields of the listing to read
    """
    import pyarrow as pa

    number = pa.int64()
    types = {
        "int": number,
        "text": pa.string(),
        "bool": pa.bool_(),
        # Nanoseconds, for dates with 7 or 9 fractional digits.
        "date": pa.timestamp("ns", tz="UTC"),
        "json": pa.null(),
        "texts": pa.list_(pa.string()),
        "ints": pa.list_(number),
        "sender": pa.struct([("Name", pa.string()), ("Address", pa.string())]),
    }
    types["files"] = pa.list_(pa.struct([(name, types[kind]) for name, _, kind in FILE_FIELDS]))
    item = pa.struct([(name, types[kind]) for name, _, kind in fields])
    return pa.schema([(name, pa.list_(item) if name == "Items" else number) for name in envelope])


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


def read_plain(body: bytes) -> tuple[dict[str, pa.Array], int | None] | None:
    """Read a page; return its columns and Count, or None if Arrow can't read every row.

    :param body: the response's bytes
    """
    answer = _read(body, wire_schema(), others="error")
    columns = _columns(answer, FIELDS)
    if answer is None or columns is None:
        return None
    if columns["message_id"].null_count or columns["date"].null_count:
        return None
    return columns, answer["Count"][0].as_py()


def read_fields(body: bytes, fields: Fields) -> dict[str, pa.Array] | None:
    """Read some fields of a page's messages, and ignore any others.

    :param body: the response's bytes
    :return: the fields' columns, or None if Arrow can't read them
    """
    return _columns(_read(body, wire_schema(fields, ("Items",)), others="ignore"), fields)


def _read(body: bytes, schema: pa.Schema, others: str) -> pa.Table | None:
    """Read a listing; return None if Arrow can't read it, or not with this schema.

    :param others: what to do with fields that the schema doesn't have: `error` or `ignore`
    """
    import pyarrow as pa
    import pyarrow.json as pj

    # pyarrow 26 crashes the process on `null`.
    if body.lstrip()[:1] != b"{" or (_wraps_dates() and _FAR_DATE.search(body)):
        return None
    try:
        table = pj.read_json(
            pa.BufferReader(body),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(body) + 1),
            parse_options=pj.ParseOptions(
                explicit_schema=schema,
                unexpected_field_behavior=others,
                # If set, it reads the text twice.
                newlines_in_values=b"\n" in body,
            ),
        )
        if not body.isascii():
            table.validate(full=True)  # the reader accepts invalid UTF-8
    except pa.ArrowException:
        return None
    return table


def _columns(answer: pa.Table | None, fields: Fields) -> dict[str, pa.Array] | None:
    """Return the columns of a listing's messages, or None if it has none, or one was misread."""
    if answer is None or answer.num_rows != 1 or answer["Items"].null_count:
        return None
    items = answer["Items"].chunk(0).flatten()
    if items.null_count:
        return None
    wire = dict(zip((name for name, _, _ in fields), items.flatten(), strict=True))
    return _renamed(wire, fields) if _are_late(wire, fields) else None


def _are_late(wire: dict[str, pa.Array], fields: Fields) -> bool:
    """Whether no date is before 1970: a cast to microseconds would round it up."""
    import pyarrow.compute as pc

    dates = [pc.min(wire[name]).value for name, _, kind in fields if kind == "date"]
    return all(earliest is None or earliest >= 0 for earliest in dates)


def _renamed(wire: dict[str, pa.Array], fields: Fields) -> dict[str, pa.Array]:
    """Return our columns for the API's fields."""
    import pyarrow as pa

    columns: dict[str, pa.Array] = {}
    for name, column, kind in fields:
        values = wire[name]
        if kind == "sender":
            columns |= zip((part for _, part, _ in SENDER_FIELDS), values.flatten(), strict=True)
        elif kind == "date":
            columns[column] = values.cast(arrow_type("date"), safe=False)
        elif kind == "files":
            columns[column] = _renamed_files(values)
        else:
            columns[column] = values if kind != "json" else pa.nulls(len(values), pa.string())
    return columns


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
