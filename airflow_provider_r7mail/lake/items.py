"""Convert a message's values to what its columns hold; write as JSON text what fits none (R20)."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from airflow_provider_r7mail.client.dates import parse_api_date
from airflow_provider_r7mail.client.fields import FILE_FIELDS
from airflow_provider_r7mail.client.models import mend_text

NO_DATE = "Date is .NET's 'no date'"
"""Why a message doesn't fit the tables, although it can be read (R27)."""

# As Python would write it. Other spellings, such as 007, are text of unknown meaning.
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)


class UnfitError(Exception):
    """A value that doesn't fit its column."""


def convert(kind: str, value: Any) -> Any:
    """Convert a value, unless it is null, to what a column of a kind holds; see `client.fields`.

    :raises UnfitError: it doesn't fit
    """
    return _CONVERTERS[kind](value)


def files_row(file: Mapping[str, Any]) -> dict[str, Any]:
    """Return our columns for the API's object of a file, without values that don't fit (R20)."""
    row: dict[str, Any] = {}
    for name, column, kind in FILE_FIELDS:
        if file.get(name) is not None:
            try:
                value = convert(kind, file[name])
            except UnfitError:
                continue
            row[column] = mend_text(value) if kind == "text" else value
    return row


def _to_text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UnfitError
    return value if isinstance(value, str) else json.dumps(value)


def _to_int(value: Any) -> int:
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise UnfitError
    return value


def _to_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UnfitError
    return value


def _to_date(value: Any) -> datetime | None:
    try:
        return parse_api_date(value)
    except ValueError:
        raise UnfitError from None


def _to_texts(value: Any) -> list[str | None]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise UnfitError
    return [None if item is None else _to_text(item) for item in items]


def _to_ints(value: Any) -> list[int | None]:
    items = value if isinstance(value, list) else [value]
    return [None if item is None else _to_int(item) for item in items]


_CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    "int": _to_int,
    "text": _to_text,
    "bool": _to_bool,
    "date": _to_date,
    "texts": _to_texts,
    "ints": _to_ints,
}


def json_text(value: Any) -> str:
    """Return JSON text; numbers that only Python accepts, such as NaN, become text."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(json.loads(json.dumps(value), parse_constant=str))


def json_texts(values: Sequence[Any]) -> list[str]:
    """Return the JSON text of each value; all at once, which takes half the time."""
    if not values:
        return []
    mark = secrets.token_hex(16)
    marked = [mark] * (2 * len(values) - 1)
    marked[::2] = values
    try:
        return json.dumps(marked, allow_nan=False)[1:-1].split(f', "{mark}", ')
    except ValueError:
        return [json_text(value) for value in values]
