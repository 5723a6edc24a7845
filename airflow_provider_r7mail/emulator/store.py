"""What a mailbox stores, and the changes the API makes to it. No HTTP, and no `Readings`.

All public methods are thread-safe: they share one lock.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from airflow_provider_r7mail.emulator.fields import fields_of
from airflow_provider_r7mail.emulator.folders import (
    FOLDERS,
    INBOX,
    TRASH,
    Delivered,
    Folder,
    Stored,
)
from airflow_provider_r7mail.emulator.messages import MISSING, Attachment, MailMessage, StoredFile
from airflow_provider_r7mail.emulator.threads import Threads


class Refused(ValueError):  # noqa: N818 - the server's response, not an error in the emulator
    """The server can't do what was asked, and responds with 500 or another status."""

    status = 500


class NotThere(Refused):
    """What was asked for is not there, or not allowed (R25)."""


class Store:
    """Folders, messages and files.

    :param address: the address of the mailbox's owner.
    :param clock: returns the current time (UTC).
    """

    def __init__(self, address: str, clock: Callable[[], datetime]) -> None:
        self.address = address
        self.lock = threading.RLock()
        self.folders: dict[int, str] = {}
        self._clock = clock
        self._contents: dict[int, Folder] = {}
        self._records: dict[int, Stored] = {}
        self._files: dict[int, StoredFile] = {}
        self._delayed: list[tuple[float, Callable[[], None]]] = []
        self._last = {"id": 700, "uid": 260, "attachment": 300, "file": 200}
        self._uuids = random.Random(address)
        self._threads = Threads(self._new_uuid)
        for folder_id, folder_name in FOLDERS.items():
            self.add_folder(folder_id, folder_name)

    # Folders

    def add_folder(self, id: int, name: str) -> None:  # noqa: A002
        """Create a folder, or rename one."""
        with self.lock:
            self.folders[id] = name
            self._contents.setdefault(id, Folder())

    def contents(self, folder: int) -> Folder:
        """Return a folder's messages as they are stored. Hold ``lock`` while you use them."""
        self._settle()
        if folder not in self._contents:
            raise NotThere(f"no folder {folder}")
        return self._contents[folder]

    def everything(self) -> Folder:
        """Return the messages of all folders, sorted by date (R32). Hold ``lock``, as above."""
        self._settle()
        records = [record for folder in self._contents.values() for record in folder.records]
        found = Folder()
        found.add_sorted(sorted(records, key=lambda record: record.ticks))
        return found

    def now(self) -> datetime:
        """Return the mailbox's current time."""
        return self._clock()

    # What comes in

    def deliver_message(self, message: MailMessage, folder: int = INBOX) -> int:
        """Add a message to a folder, and return its Id. Creates the folder if needed."""
        with self.lock:
            self._ensure_folder(folder)
            record = self._create(message, folder)
            self._put(record)
            return record.id

    def add_bulk(self, folder: int, records: Sequence[Stored]) -> None:
        """Add generated messages, sorted by date, to an empty folder."""
        with self.lock:
            self._ensure_folder(folder)
            self._contents[folder].add_sorted(records)
            self._records.update((record.id, record) for record in records)

    def store_file(self, file_name: str, data: bytes, mime_type: str) -> dict[str, Any]:
        """Add a file to the server's Storage; return the object by which Send attaches it."""
        return self.register_file(Attachment(file_name, data, mime_type)).json()

    def register_file(self, attachment: Attachment) -> StoredFile:
        """Assign a file its ids, so that Send can refer to it."""
        with self.lock:
            stored = StoredFile(
                self.next_number("attachment"),
                self.next_number("file"),
                attachment.file_name,
                attachment.data,
                attachment.mime_type,
            )
            self._files[stored.file_id] = stored
            return stored

    def next_number(self, kind: str) -> int:
        """Return the next free ``id``, ``uid``, ``attachment`` or ``file`` number."""
        self._last[kind] += 1
        return self._last[kind]

    # What is there

    def messages(self, folder: int) -> list[dict[str, Any]]:
        """Return the messages of a folder as raw JSON objects, oldest first."""
        with self.lock:
            return [record.raw() for record in self.contents(folder).records]

    def get(self, id: int) -> dict[str, Any]:  # noqa: A002
        """Return a message from any folder as a raw JSON object."""
        with self.lock:
            return self._find(id).raw()

    def has(self, id: int) -> bool:  # noqa: A002
        """Return whether a message is in any folder."""
        with self.lock:
            self._settle()
            return id in self._records

    def files(self, id: int) -> tuple[StoredFile, ...]:  # noqa: A002
        """Return the files of a message from any folder."""
        with self.lock:
            return self._find(id).files

    def attachment(self, folder: int, id: int, file_name: str) -> bytes:  # noqa: A002
        """Return a file of a message; the first, if several have that name (R18)."""
        return self.attached_file(folder, id, file_name).data

    def attached_file(self, folder: int, id: int, file_name: str) -> StoredFile:  # noqa: A002
        """Return a file of a message, with its ids, by its exact name."""
        with self.lock:
            self.contents(folder)
            record = self._records.get(id)
            if record is None or record.folder != folder:
                raise NotThere(f"no message {id} in folder {folder}")
            for stored in record.files:
                if stored.file_name == file_name != "":
                    return stored
            raise NotThere(f"message {id} has no file {file_name!r}")

    # What changes

    def mark_read(self, folder: int, ids: Iterable[int], read: bool = True) -> bool:
        """Mark messages as read or unread. Return False if some are not in the folder."""
        with self.lock:
            contents = self.contents(folder)
            known, complete = self._known(folder, ids)
            for record in known:
                contents.unread += bool(record.value("WasRead")) - read
                record.set("WasRead", read)
            return complete

    def mark_important(self, folder: int, ids: Iterable[int], important: bool = True) -> bool:
        """Mark messages as important or not. Return False if some are not in the folder."""
        with self.lock:
            self.contents(folder)
            known, complete = self._known(folder, ids)
            for record in known:
                record.set("Important", important)
            return complete

    def move(
        self,
        from_: int,
        ids: Iterable[int],
        to: int,
        *,
        renumber: bool = False,
        hide: bool = False,
        delay: float = 0.0,
    ) -> bool:
        """Move messages to another folder. Return False if some are not in ``from_``.

        :param renumber: give them new Ids, as IMAP gives them new UIDs.
        :param hide: don't list them before they have these.
        :param delay: seconds until they have these.
        """
        with self.lock:
            source, target = self.contents(from_), self.contents(to)
            known, complete = self._known(from_, ids)
            for record in known:
                source.remove(record)
                record.folder = to
                record.set("FolderId", to)
                if hide:
                    del self._records[record.id]
                else:
                    target.add(record)
                if renumber:
                    self._do_later(delay, partial(self._renumber, record, hidden=hide))
            self._settle()
            return complete

    def _renumber(self, record: Stored, *, hidden: bool) -> None:
        """Give a message a new Id and Uid, unless it has left its folder (R35)."""
        if not hidden:
            if self._records.get(record.id) is not record:
                return
            self._contents[record.folder].remove(record)
            del self._records[record.id]
        if not isinstance(record, Delivered):
            record = Delivered(record.id, record.folder, record.raw(), record.files, {})
        record.id, uid = self.next_number("id"), self.next_number("uid")
        for name, value in (("Id", record.id), ("Uid", uid), ("ExternalId", str(uid))):
            record.set(name, value)
        self._records[record.id] = record
        self._contents[record.folder].add(record)

    def delete(self, folder: int, ids: Iterable[int]) -> bool:
        """Move messages to the trash; from the trash, delete them. Return as `move` does."""
        with self.lock:
            self.contents(folder)
            known, complete = self._known(folder, ids)
            if folder != TRASH:
                for record in known:
                    record.set("IsDeleted", True)
                self.move(folder, [record.id for record in known], TRASH)
                return complete
            for record in known:
                self._remove(record)
            return complete

    # How it is stored

    def _ensure_folder(self, folder: int) -> None:
        if folder not in self._contents:
            self.add_folder(folder, f"folder-{folder}")

    def _find(self, id: int) -> Stored:  # noqa: A002
        self._settle()
        if id not in self._records:
            raise NotThere(f"no message {id}")
        return self._records[id]

    def _known(self, folder: int, ids: Iterable[int]) -> tuple[list[Stored], bool]:
        """Return those of the messages that are in a folder, and whether all are."""
        wanted = list(dict.fromkeys(ids))
        found = [self._records[id_] for id_ in wanted if id_ in self._records]
        known = [record for record in found if record.folder == folder]
        return known, len(known) == len(wanted)

    def _create(
        self, message: MailMessage, folder: int, files: tuple[StoredFile, ...] | None = None
    ) -> Delivered:
        """Create a record of a message, which is not yet in its folder.

        :param files: its files; those of the message when None.
        """
        if files is None:
            files = tuple(
                self.register_file(item if isinstance(item, Attachment) else Attachment(*item))
                for item in message.attachments
            )
        given = message.fields.get("Id")
        if isinstance(given, int) and not isinstance(given, bool):
            number = given
            self._reserve(number)
        else:
            number = self.next_number("id")
        fields = fields_of(
            message,
            files,
            number=number,
            uid=self.next_number("uid"),
            folder=folder,
            mime_id=message.mime_message_id or f"{self._new_uuid()}@{_domain(message.sender)}",
            owner=self.address,
            date=self.now() if message.date is None else message.date,
        )
        for name, value in message.fields.items():
            if value is MISSING:
                fields.pop(name, None)
            else:
                fields[name] = value
        return Delivered(number, folder, fields, files, message.fields)

    def _reserve(self, number: int) -> None:
        """Assign no Id up to this one from now on."""
        self._last["id"] = max(self._last["id"], number)

    def _put(self, record: Delivered) -> None:
        if record.id in self._records:
            raise Refused(f"message {record.id} already exists")
        record.arrived = time.monotonic()
        self._records[record.id] = record
        self._contents[record.folder].add(record)
        self._threads.join(record, self.address)

    def _do_later(self, seconds: float, act: Callable[[], None]) -> None:
        self._delayed.append((time.monotonic() + seconds, act))

    def _settle(self) -> None:
        """Do what was delayed and is due."""
        if not self._delayed:
            return
        now = time.monotonic()
        due = [act for when, act in self._delayed if when <= now]
        self._delayed = [item for item in self._delayed if item[0] > now]
        for act in due:
            act()

    def _remove(self, record: Stored) -> None:
        self._contents[record.folder].remove(record)
        del self._records[record.id]
        self._threads.forget(record)

    def _new_uuid(self) -> str:
        return str(uuid.UUID(int=self._uuids.getrandbits(128), version=4))


def _domain(address: str) -> str:
    return address.rpartition("@")[2] or "devr7.ru"
