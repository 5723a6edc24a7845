"""What a check keeps of the server's responses: ids, dates and flags, no mail. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airflow_provider_r7mail.client.dates import parse_api_date, to_microseconds

SECOND = 1_000_000
"""In microseconds, the unit of all bounds here."""


@dataclass(frozen=True, slots=True)
class Row:
    """What is kept of a listed message.

    :param key: its Id, None without a usable one
    :param date: its Date, None without one
    :param exact: whether `date` has all the digits of Date
    :param labels: its labels
    :param read: its WasRead, None if unknown
    :param important: its Important, None if unknown
    :param receipts: whether it requests a receipt
    :param mime_id: its MIME Message-ID, to recognize a message whose Id changes when it is moved
    :param stored: its Timestamp, None without one
    """

    key: int | None
    date: datetime | None
    exact: bool
    labels: tuple[int, ...]
    read: bool | None
    important: bool | None
    receipts: bool
    mime_id: str | None
    stored: datetime | None

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> Row:
        """Keep what is needed of a message."""
        labels, mime_id = item.get("Labels"), item.get("MessageId")
        return cls(
            key=_id(item.get("Id")),
            date=read_date(item.get("Date")),
            # Python keeps six digits of a second's fraction.
            exact=not re.search(r"\.\d{6}0*[1-9]", str(item.get("Date"))),
            labels=tuple(labels) if labels is not None and is_a(labels, "ints") else (),
            read=_flag(item.get("WasRead")),
            important=_flag(item.get("Important")),
            receipts=bool(item.get("IsReturnReceiptTo") or item.get("IsDispositionNotificationTo")),
            mime_id=mime_id if isinstance(mime_id, str) and mime_id else None,
            stored=read_date(item.get("Timestamp")),
        )


@dataclass(frozen=True, slots=True)
class Page:
    """A listing without its mail.

    :param folder: id of the folder listed
    :param asked: number of messages requested
    :param offset: number of messages skipped
    :param start: lower bound in microseconds since 1970, None for none; `end` likewise
    :param labels: labels filtered by
    :param rows: the messages
    :param count: the response's Count
    :param bytes: length of the response
    :param seconds: from the request to the last byte of the response
    """

    folder: int
    asked: int
    offset: int
    start: int | None
    end: int | None
    labels: tuple[int, ...]
    rows: tuple[Row, ...]
    count: int | None
    bytes: int
    seconds: float

    @property
    def filtered(self) -> bool:
        """Whether there was any filter."""
        return bool(self.labels) or self.start is not None or self.end is not None

    @property
    def keys(self) -> tuple[int | None, ...]:
        """The messages' ids."""
        return tuple(row.key for row in self.rows)

    @property
    def strays(self) -> bool:
        """Whether a message is out of bounds by more than any reading allows."""
        dates = [to_microseconds(row.date) for row in self.rows if row.date is not None]
        return any(
            (self.start is not None and date < self.start - 2 * SECOND)
            or (self.end is not None and date > self.end + 2 * SECOND)
            for date in dates
        )

    def holds(self, key: int | None) -> bool:
        """Whether a message is on the page."""
        return key in self.keys


@dataclass(frozen=True, slots=True)
class Listing:
    """A listing as the server returned it. Has the mail: count and compare, but keep none of it.

    :param page: what is kept of it
    :param items: the message of each row, `{}` for one that is not an object
    :param envelope: the whole response
    :param as_named: whether all names came in the manual's case (R42)
    """

    page: Page
    items: Sequence[Mapping[str, Any]]
    envelope: Mapping[str, Any]
    as_named: bool


def dated(row: Row) -> tuple[int, int]:
    """Return the id and the date, in microseconds since 1970, of a row that has both."""
    assert row.key is not None  # noqa: S101
    assert row.date is not None  # noqa: S101
    return row.key, to_microseconds(row.date)


_PYTHON = {"int": int, "bool": bool, "text": str, "sender": Mapping}
_PARTS = {"texts": "text", "ints": "int", "files": "sender"}


def is_a(value: Any, kind: str) -> bool:
    """Whether a value is of one of the kinds in `fields`; everything is `json`."""
    if kind in _PARTS:
        return isinstance(value, list) and all(is_a(item, _PARTS[kind]) for item in value)
    if kind == "date":
        try:
            parse_api_date(value)
        except ValueError:
            return False
        return True
    if kind not in _PYTHON:
        return True
    return isinstance(value, _PYTHON[kind]) and (kind != "int" or not isinstance(value, bool))


def read_date(value: Any) -> datetime | None:
    """Parse a date; None for none, and for what is not a date."""
    try:
        return parse_api_date(value)
    except ValueError:
        return None


def _id(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None
