"""The state of the server: folders, messages, files. No HTTP, and no reading of the open points.

Everything public may be called from any thread: one lock guards the whole.
"""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from airflow_provider_r7mail.emulator.dates import text_of, text_of_ticks, ticks_of_date_field

INBOX, SENT, DRAFTS, TRASH, PROCESSED = 24, 25, 26, 27, 15
FOLDERS: Final = {
    INBOX: "inbox",
    SENT: "sent",
    DRAFTS: "drafts",
    TRASH: "trash",
    PROCESSED: "processed",
}

MISSING: Final = object()
"""As a value in ``fields`` of a delivery: the message's JSON has no such field (R20)."""


class Refused(ValueError):  # noqa: N818 - it is the server's answer, not an error in it
    """The server cannot do what was asked, and answers 500."""


@dataclass(frozen=True)
class Attachment:
    """A file that comes with a message.

    :param file_name: its name, any text at all (R19).
    :param data: its bytes.
    :param mime_type: its MIME type.
    """

    file_name: str
    data: bytes
    mime_type: str = "application/octet-stream"


@dataclass(frozen=True, kw_only=True)
class MailMessage:
    """A message on its way into a mailbox; `Mailbox.deliver` has the same fields as parameters."""

    subject: str | None = ""
    body: str | None = ""
    html_body: str | None = None
    sender: str = "filip_test@devr7.ru"
    sender_name: str | None = None
    to: Sequence[str] | None = None
    cc: Sequence[str] | None = None
    bcc: Sequence[str] | None = None
    date: datetime | str | None = None
    attachments: Sequence[Attachment | tuple[str, bytes, str]] = ()
    labels: Sequence[int] | None = None
    was_read: bool = False
    important: bool = False
    thread_id: str | None = None
    mime_message_id: str | None = None
    in_reply_to: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredFile:
    """A file in the server's Storage, or with a message: the JSON object of the manual."""

    id: int
    file_id: int
    file_name: str
    data: bytes
    mime_type: str

    def json(self) -> dict[str, Any]:
        """The object in a message's ``Attachments``, and in those of Send."""
        return {
            "Id": self.id,
            "FileId": self.file_id,
            "FileName": self.file_name,
            "Size": len(self.data),
            "MimeType": self.mime_type,
        }


class Stored:
    """A message in a folder. ``ticks`` is its Date as a sorting key."""

    __slots__ = ("files", "folder", "id", "ticks")

    def __init__(self, id: int, folder: int, ticks: int, files: tuple[StoredFile, ...]) -> None:  # noqa: A002
        self.id = id
        self.folder = folder
        self.ticks = ticks
        self.files = files

    def value(self, name: str) -> Any:
        """A field's value; None if it has none."""
        raise NotImplementedError

    def set(self, name: str, value: Any) -> None:
        """Change a field."""
        raise NotImplementedError

    def json(self) -> bytes:
        """The message as it stands in an answer."""
        raise NotImplementedError

    def raw(self) -> dict[str, Any]:
        """The message as a new dict, its fields in the server's order."""
        found: dict[str, Any] = json.loads(self.json())
        return found


class Delivered(Stored):
    """A message kept as its fields. Its JSON is made once and kept until a field changes."""

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
        """A field's value; None if it has none."""
        return self._fields.get(name)

    def set(self, name: str, value: Any) -> None:
        """Change a field."""
        self._fields[name] = value
        self._json = None

    def derive(self, name: str, value: Any) -> None:
        """Change a field that follows from other messages, unless the test gave its value."""
        if name not in self._pinned:
            self.set(name, value)

    def json(self) -> bytes:
        """The message as it stands in an answer."""
        if self._json is None:
            self._json = to_json(self._fields)
        return self._json


def to_json(value: Any) -> bytes:
    r"""Compact JSON in UTF-8; with ``\ud83d`` escapes where it has lone surrogates (R21)."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


class Folder:
    """The messages of one folder in the order of their dates, then of their arrival."""

    def __init__(self) -> None:
        self.ticks: array[int] = array("q")
        self.records: list[Stored] = []
        self.unread = 0

    def add(self, record: Stored) -> None:
        """Put a message in its place by date."""
        place = bisect_right(self.ticks, record.ticks)
        self.ticks.insert(place, record.ticks)
        self.records.insert(place, record)
        self.unread += not record.value("WasRead")

    def add_sorted(self, records: Sequence[Stored]) -> None:
        """Put many messages, already in order and none before those there are, at the end."""
        self.ticks.extend(record.ticks for record in records)
        self.records.extend(records)
        self.unread += sum(not record.value("WasRead") for record in records)

    def remove(self, record: Stored) -> None:
        """Take a message out."""
        place = bisect_left(self.ticks, record.ticks)
        while self.records[place] is not record:
            place += 1
        del self.ticks[place]
        del self.records[place]
        self.unread -= not record.value("WasRead")


class Mailbox:
    """One user's mail on the server.

    :param login: what the user logs in with.
    :param password: the password.
    :param address: the user's address: From of what is sent, and To of what is delivered.
    :param name: the user's name, surname first.
    :param clock: tells the time now (UTC); for tests that compare dates.
    """

    def __init__(
        self,
        login: str = "user_test",
        password: str = "TestPassword",  # noqa: S107 - the manual's example
        address: str = "siz_test@devr7.ru",
        name: str = "Сизый Федор Петрович",
        *,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self.login = login
        self.password = password
        self.address = address
        self.name = name
        self.lock = threading.RLock()
        self.folders: dict[int, str] = {}
        self.sent: list[dict[str, Any]] = []
        self._clock = clock or (lambda: datetime.now(UTC))
        self._contents: dict[int, Folder] = {}
        self._records: dict[int, Stored] = {}
        self._files: dict[int, StoredFile] = {}
        self._threads: dict[str, list[Delivered]] = {}
        self._by_mime_id: dict[str, Delivered] = {}
        self._delayed: list[tuple[float, Delivered]] = []
        self._last = {"id": 700, "uid": 260, "attachment": 300, "file": 200}
        self._uuids = random.Random(address)
        for folder_id, folder_name in FOLDERS.items():
            self.add_folder(folder_id, folder_name)

    @classmethod
    def office(
        cls, *, seed: int = 7, messages: int = 5_000, days: int = 90, end: datetime | None = None
    ) -> Mailbox:
        """The built-in mailbox: a Russian office's mail.

        :param seed: the same seed and end give the same mailbox, byte for byte.
        :param messages: how many messages.
        :param days: over how many days before ``end``.
        :param end: no message is later; the start of today (UTC) when None.
        """
        from airflow_provider_r7mail.emulator.office import fill  # noqa: PLC0415 - it needs this module

        mailbox = cls()
        fill(mailbox, seed=seed, messages=messages, days=days, end=end)
        return mailbox

    @classmethod
    def synthetic(
        cls,
        count: int,
        *,
        folder: int = INBOX,
        start: datetime = datetime(2025, 1, 1, tzinfo=UTC),
        end: datetime = datetime(2025, 7, 1, tzinfo=UTC),
        ties: int = 1,
        read_every: int = 2,
        attachment_every: int = 0,
        attachment_bytes: int = 10_000,
        seed: int = 7,
    ) -> Mailbox:
        """Up to a million messages of some 3.5 KB, for measuring, in little memory.

        :param count: how many messages.
        :param folder: where they are.
        :param start: date of the first.
        :param end: all are before it, evenly spread.
        :param ties: how many messages share each Date.
        :param read_every: every so many-th message is read; 0 for none.
        :param attachment_every: every so many-th message has an attachment; 0 for none.
        :param attachment_bytes: size of an attachment.
        :param seed: the same arguments give the same mailbox.
        """
        from airflow_provider_r7mail.emulator.synthetic import (  # noqa: PLC0415 - it needs this module
            generate,
        )

        mailbox = cls()
        mailbox.add_bulk(
            folder,
            generate(
                mailbox,
                count,
                folder=folder,
                start=start,
                end=end,
                ties=ties,
                read_every=read_every,
                attachment_every=attachment_every,
                attachment_bytes=attachment_bytes,
                seed=seed,
            ),
        )
        return mailbox

    def add_folder(self, id: int, name: str) -> None:  # noqa: A002
        """Make a folder, or give one another name."""
        with self.lock:
            self.folders[id] = name
            self._contents.setdefault(id, Folder())

    def contents(self, folder: int) -> Folder:
        """The folder's messages as they are kept. Hold ``lock`` while using it."""
        self._settle()
        if folder not in self._contents:
            raise Refused(f"no folder {folder}")
        return self._contents[folder]

    def now(self) -> datetime:
        """The mailbox's time."""
        return self._clock()

    def deliver(
        self,
        *,
        folder: int = INBOX,
        subject: str | None = "",
        body: str | None = "",
        html_body: str | None = None,
        sender: str = "filip_test@devr7.ru",
        sender_name: str | None = None,
        to: Sequence[str] | None = None,
        cc: Sequence[str] | None = None,
        bcc: Sequence[str] | None = None,
        date: datetime | str | None = None,
        attachments: Sequence[Attachment | tuple[str, bytes, str]] = (),
        labels: Sequence[int] | None = None,
        was_read: bool = False,
        important: bool = False,
        thread_id: str | None = None,
        mime_message_id: str | None = None,
        in_reply_to: str | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> int:
        """Put a message into a folder, and return its Id.

        :param folder: the folder's id; made if there is none.
        :param html_body: made from ``body`` when None.
        :param to: addresses; the mailbox's own when None.
        :param date: a datetime, or the exact text of the JSON; now when None.
        :param attachments: files, as `Attachment` or (name, bytes, MIME type).
        :param in_reply_to: MIME id of the message it answers, whose thread it joins.
        :param fields: raw fields of the JSON that override the others or add to them;
            `MISSING` leaves one out. An int for ``Id`` is the Id by which the message is known.
        """
        message = MailMessage(
            subject=subject,
            body=body,
            html_body=html_body,
            sender=sender,
            sender_name=sender_name,
            to=to,
            cc=cc,
            bcc=bcc,
            date=date,
            attachments=attachments,
            labels=labels,
            was_read=was_read,
            important=important,
            thread_id=thread_id,
            mime_message_id=mime_message_id,
            in_reply_to=in_reply_to,
            fields=fields or {},
        )
        return self.deliver_message(message, folder)

    def deliver_message(self, message: MailMessage, folder: int = INBOX) -> int:
        """Put a message into a folder, and return its Id."""
        with self.lock:
            if folder not in self._contents:
                self.add_folder(folder, f"folder-{folder}")
            record = self._record(message, folder)
            self._put(record)
            return record.id

    def load(self, path: str | Path, folder: int = INBOX) -> int:
        """Put the messages of an mbox, a Maildir or a folder of ``.eml`` into a folder.

        Return how many there were. `loading` says what is read from them.
        """
        from airflow_provider_r7mail.emulator.loading import read  # noqa: PLC0415 - it needs this module

        loaded = [self.deliver_message(message, folder) for message in read(Path(path))]
        return len(loaded)

    def store_file(self, file_name: str, data: bytes, mime_type: str) -> dict[str, Any]:
        """Put a file into the server's Storage; return the object by which Send attaches it."""
        with self.lock:
            return self._store(Attachment(file_name, data, mime_type)).json()

    def messages(self, folder: int) -> list[dict[str, Any]]:
        """The messages of a folder as raw JSON objects, earliest first."""
        with self.lock:
            return [record.raw() for record in self.contents(folder).records]

    def get(self, id: int) -> dict[str, Any]:  # noqa: A002
        """A message as a raw JSON object, whatever folder it is in."""
        with self.lock:
            self._settle()
            if id not in self._records:
                raise Refused(f"no message {id}")
            return self._records[id].raw()

    def has(self, id: int) -> bool:  # noqa: A002
        """Whether a message is in any folder."""
        with self.lock:
            self._settle()
            return id in self._records

    def files(self, id: int) -> tuple[StoredFile, ...]:  # noqa: A002
        """The files of a message, whatever folder it is in."""
        with self.lock:
            self._settle()
            if id not in self._records:
                raise Refused(f"no message {id}")
            return self._records[id].files

    def attachment(self, folder: int, id: int, file_name: str) -> bytes:  # noqa: A002
        """The bytes of a message's file; of the first, if two have the name (R18)."""
        return self.attached_file(folder, id, file_name).data

    def attached_file(self, folder: int, id: int, file_name: str) -> StoredFile:  # noqa: A002
        """A message's file by its exact name."""
        with self.lock:
            self.contents(folder)
            record = self._records.get(id)
            if record is None or record.folder != folder:
                raise Refused(f"no message {id} in folder {folder}")
            for stored in record.files:
                if stored.file_name == file_name:
                    return stored
            raise Refused(f"message {id} has no file {file_name!r}")

    def mark_read(self, folder: int, ids: Iterable[int], read: bool = True) -> bool:
        """Mark messages read or unread; False if some are not in the folder."""
        with self.lock:
            contents = self.contents(folder)
            known, complete = self._known(folder, ids)
            for record in known:
                contents.unread += bool(record.value("WasRead")) - read
                record.set("WasRead", read)
            return complete

    def mark_important(self, folder: int, ids: Iterable[int], important: bool = True) -> bool:
        """Mark messages important or not; False if some are not in the folder."""
        with self.lock:
            self.contents(folder)
            known, complete = self._known(folder, ids)
            for record in known:
                record.set("Important", important)
            return complete

    def move(self, from_: int, ids: Iterable[int], to: int) -> bool:
        """Move messages to another folder; False if some are not in ``from_`` (the rest move)."""
        with self.lock:
            source, target = self.contents(from_), self.contents(to)
            known, complete = self._known(from_, ids)
            for record in known:
                source.remove(record)
                record.folder = to
                record.set("FolderId", to)
                target.add(record)
            return complete

    def delete(self, folder: int, ids: Iterable[int]) -> bool:
        """Delete messages: into the trash, and from the trash for good. False as in `move`."""
        with self.lock:
            contents = self.contents(folder)
            known, complete = self._known(folder, ids)
            if folder != TRASH:
                for record in known:
                    record.set("IsDeleted", True)
                self.move(folder, [record.id for record in known], TRASH)
                return complete
            for record in known:
                contents.remove(record)
                self._forget(record)
            return complete

    def send(self, request: Mapping[str, Any], *, delay: float = 0.0) -> dict[str, Any]:
        """Accept a message as Send does, and return the answer's object (R11).

        :param request: the JSON object of the request, of the right types.
        :param delay: seconds until the message appears in the Sent folder.
        """
        with self.lock:
            self._settle()
            files = tuple(self._referred(wanted) for wanted in request.get("Attachments") or ())
            number = self._take_draft(request["Id"])
            now = self.now()
            sent = self._record(self._outgoing(request, now, number), SENT, files)
            if delay > 0:
                self._delayed.append((time.monotonic() + delay, sent))
            else:
                self._put(sent)
            self._copy_to_self(request, now, files)
            self.sent.append({**request, "Id": number})
            return self._accepted(request, number, now)

    def add_bulk(self, folder: int, records: Sequence[Stored]) -> None:
        """Take over generated messages, in the order of their dates, into an empty folder."""
        with self.lock:
            if folder not in self._contents:
                self.add_folder(folder, f"folder-{folder}")
            self._contents[folder].add_sorted(records)
            self._records.update((record.id, record) for record in records)

    def next_number(self, kind: str) -> int:
        """The next free ``id``, ``uid``, ``attachment`` or ``file`` number."""
        self._last[kind] += 1
        return self._last[kind]

    def register_file(self, attachment: Attachment) -> StoredFile:
        """Give a file its numbers, so that Send can refer to it."""
        with self.lock:
            return self._store(attachment)

    def _known(self, folder: int, ids: Iterable[int]) -> tuple[list[Stored], bool]:
        wanted = list(dict.fromkeys(ids))
        found = [self._records[id_] for id_ in wanted if id_ in self._records]
        known = [record for record in found if record.folder == folder]
        return known, len(known) == len(wanted)

    def _store(self, attachment: Attachment) -> StoredFile:
        stored = StoredFile(
            self.next_number("attachment"),
            self.next_number("file"),
            attachment.file_name,
            attachment.data,
            attachment.mime_type,
        )
        self._files[stored.file_id] = stored
        return stored

    def _record(
        self, message: MailMessage, folder: int, files: tuple[StoredFile, ...] | None = None
    ) -> Delivered:
        if files is None:
            files = tuple(
                self._store(item if isinstance(item, Attachment) else Attachment(*item))
                for item in message.attachments
            )
        given = message.fields.get("Id")
        if isinstance(given, int) and not isinstance(given, bool):
            number = given
            self._last["id"] = max(self._last["id"], number)
        else:
            number = self.next_number("id")
        fields = self._fields(message, number, folder, files)
        for name, value in message.fields.items():
            if value is MISSING:
                fields.pop(name, None)
            else:
                fields[name] = value
        return Delivered(number, folder, fields, files, message.fields)

    def _fields(
        self, message: MailMessage, number: int, folder: int, files: tuple[StoredFile, ...]
    ) -> dict[str, Any]:
        """The fields of the samples, in their order."""
        date = message.date if message.date is not None else self.now()
        date_text = date if isinstance(date, str) else text_of(date)
        uid = self.next_number("uid")
        html = message.html_body
        if html is None:
            html = html_of_text(message.body or "")
        return {
            "Id": number,
            "Subject": message.subject,
            "Body": message.body,
            "From": {"Name": message.sender_name, "Address": message.sender},
            "HtmlBody": html,
            "OwnerId": 3,
            "ParentId": None,
            "HasChildren": False,
            "FolderId": folder,
            "To": [self.address] if message.to is None else list(message.to),
            "Cc": None if message.cc is None else list(message.cc),
            "Bcc": None if message.bcc is None else list(message.bcc),
            "ToName": None,
            "HasAttachments": bool(files),
            "WasRead": message.was_read,
            "WasSent": False,
            "IsAutoSubmitted": False,
            "IsAutogenerated": False,
            "IsReturnReceiptTo": False,
            "IsDispositionNotificationTo": False,
            "Important": message.important,
            "MimeReplyToId": message.in_reply_to,
            "IsDeleted": False,
            "WasReplied": False,
            "MessageId": message.mime_message_id or f"{self._uuid()}@{_domain(message.sender)}",
            "ThreadId": message.thread_id,
            "HasThreadAttachments": bool(files),
            "ThreadCount": 0,
            "Attachments": [stored.json() for stored in files] or None,
            "Children": None,
            "ReplyToId": None,
            "Labels": None if message.labels is None else list(message.labels),
            "Date": date_text,
            "Timestamp": _stored_at(date_text, number),
            "Size": _size(message, html, files),
            "CsMd5": None,
            "CsUid": None,
            "Uid": uid,
            "TaskId": None,
            "EventInviteStatus": 0,
            "ExternalId": str(uid),
        }

    def _uuid(self) -> uuid.UUID:
        return uuid.UUID(int=self._uuids.getrandbits(128), version=4)

    def _put(self, record: Delivered) -> None:
        if record.id in self._records:
            raise Refused(f"there is a message {record.id} already")
        self._records[record.id] = record
        self._contents[record.folder].add(record)
        self._join_thread(record)
        mime_id = record.value("MessageId")
        if isinstance(mime_id, str):
            self._by_mime_id.setdefault(mime_id, record)

    def _join_thread(self, record: Delivered) -> None:
        parent = self._by_mime_id.get(str(record.value("MimeReplyToId")))
        if parent is not None:
            record.derive("ReplyToId", parent.id)
            parent.derive("HasChildren", True)
            if (record.value("From") or {}).get("Address") == self.address:
                parent.derive("WasReplied", True)
            if parent.value("ThreadId") is None:
                parent.derive("ThreadId", str(self._uuid()))
                self._threads[str(parent.value("ThreadId"))] = [parent]
            if record.value("ThreadId") is None:
                record.derive("ThreadId", parent.value("ThreadId"))
        thread = record.value("ThreadId")
        if isinstance(thread, str):
            self._count_thread(self._threads.setdefault(thread, []), record)

    def _count_thread(self, thread: list[Delivered], record: Delivered) -> None:
        thread.append(record)
        if len(thread) < 2:
            return
        has_files = any(item.files for item in thread)
        for item in thread:
            item.derive("ThreadCount", len(thread))
            item.derive("HasThreadAttachments", has_files)

    def _forget(self, record: Stored) -> None:
        del self._records[record.id]
        mime_id = record.value("MessageId")
        if self._by_mime_id.get(mime_id) is record:
            del self._by_mime_id[mime_id]

    def _settle(self) -> None:
        """Let the sent messages appear whose delay is over."""
        if not self._delayed:
            return
        now = time.monotonic()
        due = [record for when, record in self._delayed if when <= now]
        self._delayed = [item for item in self._delayed if item[0] > now]
        for record in due:
            self._put(record)

    def _take_draft(self, number: int) -> int:
        """The Id of a message to send: a draft's, which is a draft no more, or a new one (R10)."""
        if number == 0:
            return self.next_number("id")
        if any(item["Id"] == number for item in self.sent):
            raise Refused(f"message {number} has been sent already")
        draft = self._records.get(number)
        if draft is not None:
            if draft.folder != DRAFTS:
                raise Refused(f"message {number} is no draft")
            self._contents[DRAFTS].remove(draft)
            self._forget(draft)
        self._last["id"] = max(self._last["id"], number)
        return number

    def _referred(self, wanted: Mapping[str, Any]) -> StoredFile:
        """The file that an attachment of Send refers to, under the name the request gives it."""
        stored = self._files.get(wanted["FileId"])
        if stored is None:
            raise Refused(f"no file {wanted['FileId']} in Storage")
        return StoredFile(
            self.next_number("attachment"),
            stored.file_id,
            wanted["FileName"],
            stored.data,
            wanted["MimeType"],
        )

    def _outgoing(self, request: Mapping[str, Any], now: datetime, number: int) -> MailMessage:
        return MailMessage(
            subject=request.get("Subject") or "",
            body=request["Body"],
            html_body=request["HtmlBody"],
            sender=self.address,
            sender_name=self.name,
            to=request["To"],
            cc=request.get("Cc"),
            bcc=request.get("Bcc"),
            date=now,
            was_read=True,
            fields={"Id": number, "WasSent": True},
        )

    def _copy_to_self(
        self, request: Mapping[str, Any], now: datetime, files: tuple[StoredFile, ...]
    ) -> None:
        recipients = [*request["To"], *(request.get("Cc") or ()), *(request.get("Bcc") or ())]
        if self.address.casefold() not in {address.casefold() for address in recipients}:
            return
        message = MailMessage(
            subject=request.get("Subject") or "",
            body=request["Body"],
            html_body=request["HtmlBody"],
            sender=self.address,
            sender_name=self.name,
            to=request["To"],
            cc=request.get("Cc"),
            date=now,
        )
        self._put(self._record(message, INBOX, files))

    def _accepted(self, request: Mapping[str, Any], number: int, now: datetime) -> dict[str, Any]:
        """Send's answer: accepted, not yet sent, hence without text and with a draft's Uid."""
        message = MailMessage(
            subject=request.get("Subject") or "",
            body="",
            html_body="",
            sender=self.address,
            sender_name=self.name,
            to=request["To"],
            cc=request.get("Cc"),
            bcc=request.get("Bcc"),
            date=now,
        )
        return {
            **self._fields(message, number, SENT, ()),
            "HasAttachments": bool(request.get("Attachments")),
            "MessageId": None,
            "HasThreadAttachments": None,
            "Timestamp": None,
            "Size": 0,
            "Uid": -number,
            "ExternalId": str(-number),
        }


def html_of_text(text: str) -> str:
    """Plain text as the simplest HTML."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    paragraphs = [part for part in escaped.split("\n\n") if part.strip()]
    return "".join(f"<p>{part}</p>" for part in paragraphs)


def _domain(address: str) -> str:
    return address.rpartition("@")[2] or "devr7.ru"


def _stored_at(date: str, number: int) -> str | None:
    """When the server stored a message: up to a minute after its Date, as in the samples."""
    ticks = ticks_of_date_field(date)
    if ticks < 0:
        return None
    # A multiplier prime to a minute's microseconds, so that neighbours differ.
    microseconds = number * 7_919_017 % 60_000_000
    return text_of_ticks(ticks // 10 * 10 + microseconds * 10, digits=6)


def _size(message: MailMessage, html: str, files: tuple[StoredFile, ...]) -> int:
    texts = (message.subject or "", message.body or "", html)
    characters = sum(len(text.encode(errors="surrogatepass")) for text in texts)
    return characters + sum(len(stored.data) for stored in files)
