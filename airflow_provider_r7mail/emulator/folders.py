"""A mailbox's folders, and the messages in them, sorted by date."""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, Final

from airflow_provider_r7mail.emulator.dates import ticks_of_date_field
from airflow_provider_r7mail.emulator.messages import StoredFile

INBOX, SENT, DRAFTS, TRASH, PROCESSED = 24, 25, 26, 27, 15
FOLDERS: Final = {
    INBOX: "inbox",
    SENT: "sent",
    DRAFTS: "drafts",
    TRASH: "trash",
    PROCESSED: "processed",
}


class Stored:
    """A message in a folder.

    ``ticks`` is its Date as a sort key; ``arrived`` is when it arrived, in seconds of
    `time.monotonic`, if the mailbox didn't have it from the beginning.
    """

    __slots__ = ("arrived", "files", "folder", "id", "ticks")

    def __init__(self, id: int, folder: int, ticks: int, files: tuple[StoredFile, ...]) -> None:  # noqa: A002
        self.id = id
        self.folder = folder
        self.ticks = ticks
        self.files = files
        self.arrived = 0.0

    def value(self, name: str) -> Any:
        """Return the value of a field, or None if there is none."""
        raise NotImplementedError

    def set(self, name: str, value: Any) -> None:
        """Change a field."""
        raise NotImplementedError

    def json(self) -> bytes:
        """Return the message as it appears in a response."""
        raise NotImplementedError

    def raw(self) -> dict[str, Any]:
        """Return the message as a new dict, with the fields in the server's order."""
        found: dict[str, Any] = json.loads(self.json())
        return found


class Delivered(Stored):
    """A message stored as a dict. Its JSON is cached until a field changes."""

    __slots__ = ("_fields", "_json", "_pinned")

    def __init__(
        self,
        id: int,  # noqa: A002
        folder: int,
        fields: dict[str, Any],
        files: tuple[StoredFile, ...],
        pinned: Mapping[str, Any],
    ) -> None:
        super().__init__(id, folder, ticks_of_date_field(fields.get("Date")), files)
        self._fields = fields
        self._pinned = frozenset(pinned)
        self._json: bytes | None = None

    def value(self, name: str) -> Any:
        """Return the value of a field, or None if there is none."""
        return self._fields.get(name)

    def set(self, name: str, value: Any) -> None:
        """Change a field."""
        self._fields[name] = value
        self._json = None

    def derive(self, name: str, value: Any) -> None:
        """Change a field that depends on other messages, unless the test set it."""
        if name not in self._pinned:
            self.set(name, value)

    def json(self) -> bytes:
        """Return the message as it appears in a response."""
        if self._json is None:
            self._json = to_json(self._fields)
        return self._json


class Folder:
    """The messages of a folder, sorted by date, then by arrival."""

    def __init__(self) -> None:
        self.ticks: array[int] = array("q")
        self.records: list[Stored] = []
        self.unread = 0

    def add(self, record: Stored) -> None:
        """Insert a message by its date."""
        place = bisect_right(self.ticks, record.ticks)
        self.ticks.insert(place, record.ticks)
        self.records.insert(place, record)
        self.unread += not record.value("WasRead")

    def add_sorted(self, records: Sequence[Stored]) -> None:
        """Append messages that are sorted by date, and not older than the last one here."""
        self.ticks.extend(record.ticks for record in records)
        self.records.extend(records)
        self.unread += sum(not record.value("WasRead") for record in records)

    def remove(self, record: Stored) -> None:
        """Remove a message."""
        place = bisect_left(self.ticks, record.ticks)
        while self.records[place] is not record:
            place += 1
        del self.ticks[place]
        del self.records[place]
        self.unread -= not record.value("WasRead")


def to_json(value: Any) -> bytes:
    r"""Encode as compact JSON in UTF-8; lone surrogates become escapes like ``\ud83d`` (R21)."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
