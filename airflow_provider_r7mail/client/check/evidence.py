"""What a check keeps of the server's responses: ids, dates and flags, no mail. No I/O."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from airflow_provider_r7mail.client.dates import parse_api_date, to_microseconds

SECOND = 1_000_000
"""In microseconds, the unit of all bounds here."""


@dataclass(frozen=True, slots=True)
class Row:
    """What is kept of a listed message.

    :param key: its Id, None without a usable one
    :param folder: its FolderId, None without a usable one
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
    folder: int | None
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
            folder=_id(item.get("FolderId")),
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
    :param labels: labels filtered by; None if the request had no `Labels`
    :param rows: the messages
    :param zoneless: whether their dates don't name a zone (R43)
    :param zoneless_timestamps: whether only their Timestamps don't
    :param count: the response's Count
    :param bytes: length of the response
    :param seconds: from the request to the last byte of the response
    """

    folder: int
    asked: int
    offset: int
    start: int | None
    end: int | None
    labels: tuple[int, ...] | None
    rows: tuple[Row, ...]
    zoneless: bool
    zoneless_timestamps: bool
    count: int | None
    bytes: int
    seconds: float

    @property
    def filtered(self) -> bool:
        """Whether there was any filter."""
        return bool(self.labels or self.bounds)

    @property
    def keys(self) -> tuple[int | None, ...]:
        """The messages' ids."""
        return tuple(row.key for row in self.rows)

    @property
    def bounds(self) -> int:
        """The number of bounds: 0 to 2."""
        return (self.start is not None) + (self.end is not None)

    def strays(self, slack: int = 2) -> tuple[Row, ...]:
        """Return the messages that are out of bounds.

        :param slack: by more than so many seconds; 2 is what rounding explains (R4)
        """

        def is_outside(date: int) -> bool:
            return (self.start is not None and date < self.start - slack * SECOND) or (
                self.end is not None and date > self.end + slack * SECOND
            )

        return tuple(
            row
            for row in self.rows
            if row.date is not None and is_outside(to_microseconds(row.date))
        )

    @property
    def again(self) -> tuple[Row, ...]:
        """The rows that list a message again (R34): with the same id, and the same date."""
        known: Counter[tuple[int, datetime]] = Counter()
        again = []
        for row in self.rows:
            if row.key is not None and row.date is not None:
                known[row.key, row.date] += 1
                if known[row.key, row.date] > 1:
                    again.append(row)
        return tuple(again)

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


_VALUES: Mapping[str, Callable[[Row], int | None]] = {
    "Date": lambda row: None if row.date is None else int(row.date.timestamp()),
    "Id": lambda row: row.key,
    "Timestamp": lambda row: None if row.stored is None else int(row.stored.timestamp()),
}


def directions(pages: Iterable[Page]) -> dict[str, set[bool]]:
    """Return by which fields single pages may be sorted (R1, R30): where each one goes.

    :return: for Date, Id and Timestamp: True if it rises from one message to the next, False if it
        falls. A page that has both is not sorted by it. Dates are compared to the second.
    """
    found: dict[str, set[bool]] = {field: set() for field in _VALUES}
    for page in pages:
        for field, value_of in _VALUES.items():
            values = [value for value in map(value_of, page.rows) if value is not None]
            found[field] |= {b > a for a, b in pairwise(values) if a != b}
    return found


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
