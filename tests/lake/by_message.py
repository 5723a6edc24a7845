"""Read a page message by message and field by field: what `decode_page` must give for it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from airflow_provider_r7mail.client.answers import AnswerError, parse_items
from airflow_provider_r7mail.client.dates import parse_api_date
from airflow_provider_r7mail.client.fields import FIELDS, FILE_FIELDS, KINDS, SENDER_FIELDS, Fields
from airflow_provider_r7mail.client.models import mend_text
from airflow_provider_r7mail.lake.items import NO_DATE

# As Python would write it. Other spellings, such as 007, are text of unknown meaning.
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)


class _UnfitError(Exception):
    """A value that doesn't fit its column."""


class ItemRow(NamedTuple):
    """What was read of one message.

    :param columns: our columns with their values, null ones left out
    :param extra: what doesn't fit them, by the API's names
    :param repaired: whether text had to be mended (R21)
    :param no_date: why there is no date, if there is none
    """

    columns: dict[str, Any]
    extra: dict[str, Any]
    repaired: bool
    no_date: str | None


def read_items(body: bytes) -> tuple[list[Any], int | None]:
    """Return a page's items and Count by Python's parser.

    :raises AnswerError: not a listing
    """
    try:
        return parse_items(body)
    except AnswerError:
        return parse_items(_mended(body))


def _mended(body: bytes) -> bytes:
    """Return JSON that Python accepts; invalid UTF-8 becomes surrogates, a long number text."""

    def read(digits: str) -> int | str:
        return int(digits) if len(digits) <= 4300 else digits

    try:
        text = body.decode("utf-8-sig", "surrogateescape")
        return json.dumps(json.loads(text, parse_int=read)).encode()
    except (ValueError, RecursionError):
        return body


def read_item(item: Any) -> ItemRow:
    """Read one item of a listing: a message, or whatever came in its place."""
    reader = _Reader(item)
    columns = reader.read()
    extra = dict(sorted(reader.extra.items()))
    return ItemRow(columns, extra, reader.repaired, reader.no_date)


class _Reader:
    """Reads one item field by field."""

    def __init__(self, item: Any) -> None:
        self._item = item
        self.extra: dict[str, Any] = {}
        self.repaired = False
        self.no_date: str | None = None

    def read(self) -> dict[str, Any]:
        if not isinstance(self._item, dict):
            return {}
        row: dict[str, Any] = {}
        extra = self.extra = {k: value for k, value in self._item.items() if k not in KINDS}
        for name, column, kind in FIELDS:
            value = self._item.get(name)
            if value is None:
                continue
            try:
                if kind == "sender":
                    row.update(self._sender(value, extra))
                elif kind == "files":
                    row[column] = self._files(value, extra)
                elif (converted := self._convert(kind, value)) is not None:
                    row[column] = converted
            except _UnfitError:
                extra[name] = value
        if row.get("date") is None:
            text = self._item.get("Date")
            self.no_date = (
                "Date is missing"
                if text is None
                else "Date can't be read"
                if "Date" in extra
                else NO_DATE
            )
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
        before = self.repaired
        try:
            return [None if item is None else self.to_text(item) for item in items]
        except _UnfitError:
            self.repaired = before  # it stays as it is, in `extra`
            raise

    def to_ints(self, value: Any) -> list[int | None]:
        items = value if isinstance(value, list) else [value]
        return [None if item is None else self.to_int(item) for item in items]

    def to_json(self, value: Any) -> str:
        return json_text(value)

    def _sender(self, value: Any, extra: dict[str, Any]) -> dict[str, Any]:
        if isinstance(value, str):
            return {"from_address": self.to_text(value)}
        return self.known(value, SENDER_FIELDS, "From", extra)

    def _files(self, value: Any, extra: dict[str, Any]) -> list[dict[str, Any] | None]:
        files: list[dict[str, Any] | None] = []
        if not isinstance(value, list):
            extra["Attachments"] = value
        for item in value if isinstance(value, list) else [None]:
            if not isinstance(item, dict):  # a file, but an unknown one (R17)
                files.append(None)
                if item is not None:
                    extra["Attachments"] = value
                continue
            # The whole list goes to `extra` if any part of it doesn't fit.
            odd: dict[str, Any] = {}
            files.append(self.known(item, FILE_FIELDS, "Attachments", odd))
            if odd:
                extra["Attachments"] = value
        return files

    def known(self, value: Any, known: Fields, name: str, extra: dict[str, Any]) -> dict[str, Any]:
        """Return an inner object's columns; if a part doesn't fit, it all goes to `extra` too."""
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


_CONVERTERS: Mapping[str, Callable[[_Reader, Any], Any]] = {
    "int": _Reader.to_int,
    "text": _Reader.to_text,
    "bool": _Reader.to_bool,
    "date": _Reader.to_date,
    "texts": _Reader.to_texts,
    "ints": _Reader.to_ints,
    "json": _Reader.to_json,
}


def json_text(value: Any) -> str:
    """Return JSON text; numbers that only Python accepts, such as NaN, become text."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(json.loads(json.dumps(value), parse_constant=str))
