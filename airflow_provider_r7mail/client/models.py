"""Typed values for what the API sends and takes: messages, attachments, filters. No Airflow."""

from __future__ import annotations

import ast
import hashlib
import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Self

from airflow_provider_r7mail.client.dates import (
    Window,
    format_api_date,
    parse_api_date,
    parse_moment,
)
from airflow_provider_r7mail.client.fields import FIELDS, FILE_FIELDS, KINDS, SENDER_FIELDS
from airflow_provider_r7mail.client.parameters import read_text
from airflow_provider_r7mail.exceptions import R7MailConfigError

JsonObject = Mapping[str, Any]

# The JSON parser joins pairs of surrogates; the ones left have no UTF-8 encoding.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def mend_text(text: str) -> str:
    """Replace lone surrogates, which neither Arrow nor UTF-8 can hold, with U+FFFD (R21)."""
    return _LONE_SURROGATE.sub("\ufffd", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageFilter:
    """What to search for in a folder: the API's `SearchContext`, with the dates in `window`.

    :param query: text anywhere in the message
    :param body: text in the body
    :param sender: address of the sender
    :param recipient: address of a recipient
    :param subject: text in the subject
    :param labels: ids of labels, sent as an array (R7)
    :param was_read: True for read messages only, False for unread ones only, None for both
    :param window: dates of the messages
    """

    query: str = ""
    body: str = ""
    sender: str = ""
    recipient: str = ""
    subject: str = ""
    labels: tuple[int, ...] = ()
    was_read: bool | None = None
    window: Window = field(default_factory=Window)

    @classmethod
    def build(
        cls,
        *,
        query: str | None = None,
        body: str | None = None,
        sender: str | None = None,
        recipient: str | None = None,
        subject: str | None = None,
        labels: Iterable[int | str] | str | None = None,
        was_read: bool | str | None = None,
        start: datetime | str | None = None,
        end: datetime | str | None = None,
    ) -> Self:
        """Create a filter from the keyword parameters of the hook, operators and sensor.

        Values may be rendered templates: labels as JSON, was_read as "True", dates as ISO 8601,
        numbers for texts. None means "no filter"; so does the text "None" for was_read only.

        :raises R7MailConfigError: a value is invalid, or the window doesn't end after its start
        """
        return cls(
            query=read_text(query, "query") or "",
            body=read_text(body, "body") or "",
            sender=read_text(sender, "sender") or "",
            recipient=read_text(recipient, "recipient") or "",
            subject=read_text(subject, "subject") or "",
            labels=parse_ids(labels, "labels"),
            was_read=_parse_flag(was_read, "was_read"),
            window=Window(parse_moment(start, "start"), parse_moment(end, "end")),
        )

    def search_context(self, start: datetime | None, end: datetime | None) -> dict[str, Any]:
        """Return the request's `SearchContext`.

        :param start: lower bound of Date, None for no bound (sent as empty text)
        :param end: upper bound of Date, likewise
        """
        context: dict[str, Any] = {
            "Query": self.query,
            "Body": self.body,
            "From": self.sender,
            "To": self.recipient,
            "StartDate": format_api_date(start) if start else "",
            "EndDate": format_api_date(end) if end else "",
            "Labels": list(self.labels),
            "Subject": self.subject,
        }
        if self.was_read is not None:
            context["WasRead"] = self.was_read
        return context


def _parse_flag(value: bool | str | None, name: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    known = {"true": True, "false": False, "none": None, "": None}
    try:
        return known[value.strip().lower()]
    except (AttributeError, KeyError):
        raise R7MailConfigError(f"{name}: expected true, false or None, got {value!r}.") from None


def parse_ids(value: Iterable[int | str] | str | int | None, name: str) -> tuple[int, ...]:
    """Parse ids as templates and XCom give them: a list, one id, or JSON text of either.

    :param value: the ids; None and empty text mean no ids
    :param name: name of the parameter, for the error
    :return: the ids in their order, without duplicates
    :raises R7MailConfigError: one of them is not a whole number
    """
    if isinstance(value, str):
        value = _ids_of_text(value, name) if value else None
    if value is None:
        return ()
    if isinstance(value, (int, str)):
        value = [value]
    if not isinstance(value, Iterable) or isinstance(value, (Mapping, bytes, bytearray)):
        raise R7MailConfigError(f"{name}: expected a list of ids, got {type(value).__name__}.")
    ids: dict[int, None] = {}
    for position, item in enumerate(value):
        try:
            ids[_whole_number(item)] = None
        except (TypeError, ValueError):
            raise R7MailConfigError(
                f"{name}: item {position} is {type(item).__name__} {item!r}, not a whole number. "
                "Ids are the server's own numbers (Id in the API), not MIME Message-IDs."
            ) from None
    return tuple(ids)


def _whole_number(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError("not a number")
    # operator.index also takes NumPy's integers, which come from DataFrames.
    return int(value) if isinstance(value, str) else operator.index(value)


def _ids_of_text(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        # A template renders a list or tuple from XCom as a Python literal.
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, (list, tuple)):
        raise R7MailConfigError(
            f"{name}: expected a list of ids, or its JSON text such as [711, 710]."
        )
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A file of a message, or in the server's Storage.

    :param id: id of the attachment
    :param file_id: id of the file in the Storage
    :param file_name: name of the file
    :param size: size in bytes
    :param mime_type: MIME type
    """

    id: int | None = None
    file_id: int | None = None
    file_name: str | None = None
    size: int | None = None
    mime_type: str | None = None

    @classmethod
    def from_json(cls, raw: JsonObject) -> Self:
        """Create an attachment from the API's object; missing fields are None (R20)."""
        return cls(
            id=raw.get("Id"),
            file_id=raw.get("FileId"),
            file_name=raw.get("FileName"),
            size=raw.get("Size"),
            mime_type=raw.get("MimeType"),
        )

    @classmethod
    def for_send(cls, raw: object, position: int) -> Self:
        """Create an attachment for Send from the caller's value.

        :param raw: an object with `Id`, `FileId`, `FileName`, `Size` and `MimeType`, all required
        :param position: its index in the list, for the error
        :raises R7MailConfigError: a path or URL, which belongs in `files`, or a field is missing
        """
        if isinstance(raw, cls):
            attachment = raw
        elif isinstance(raw, Mapping):
            texts = {
                name: read_text(raw.get(name), f"attachments[{position}] {name}")
                for name in ("FileName", "MimeType")
            }
            attachment = cls.from_json({**raw, **texts})
        else:
            raise R7MailConfigError(
                f"attachments[{position}]: the R7 API can only attach files that are in the "
                "server's own Storage, by their ids. Give "
                '{"Id", "FileId", "FileName", "Size", "MimeType"}, or the path or URL of a file to '
                "upload in files."
            )
        missing = [
            name
            for name, value in attachment.to_json().items()
            if value is None or (name == "FileName" and not value)
        ]
        if missing:
            raise R7MailConfigError(
                f"attachments[{position}] lacks {', '.join(missing)}: Send requires them all."
            )
        numbers = (attachment.id, attachment.file_id, attachment.size)
        try:
            # Templates render numbers as text, but the API takes numbers.
            number, file_id, size = map(_whole_number, numbers)
        except (TypeError, ValueError):
            raise R7MailConfigError(
                f"attachments[{position}]: Id, FileId and Size must be whole numbers."
            ) from None
        return replace(attachment, id=number, file_id=file_id, size=size)

    def to_json(self) -> dict[str, Any]:
        """Return the API's object."""
        return {
            "Id": self.id,
            "FileId": self.file_id,
            "FileName": self.file_name,
            "Size": self.size,
            "MimeType": self.mime_type,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message as the API lists it, with its fields in snake_case.

    Every field except `id` may be None, since the server may omit any of them (R20). Dates are
    datetimes in UTC. `extra` has, unchanged, unknown fields and fields that can't be read, such as
    an invalid date, or that contain more than is known, such as a sender with unknown fields.
    """

    id: int
    subject: str | None = None
    body: str | None = None
    from_name: str | None = None
    from_address: str | None = None
    html_body: str | None = None
    owner_id: int | None = None
    parent_id: int | None = None
    has_children: bool | None = None
    folder_id: int | None = None
    to_addresses: tuple[str, ...] = ()
    cc_addresses: tuple[str, ...] = ()
    bcc_addresses: tuple[str, ...] = ()
    to_name: str | None = None
    has_attachments: bool | None = None
    was_read: bool | None = None
    was_sent: bool | None = None
    is_auto_submitted: bool | None = None
    is_autogenerated: bool | None = None
    is_return_receipt_to: bool | None = None
    is_disposition_notification_to: bool | None = None
    important: bool | None = None
    mime_reply_to_id: str | None = None
    is_deleted: bool | None = None
    was_replied: bool | None = None
    mime_message_id: str | None = None
    thread_id: str | None = None
    has_thread_attachments: bool | None = None
    thread_count: int | None = None
    attachments: tuple[Attachment, ...] | None = None
    children: tuple[JsonObject, ...] | None = None
    reply_to_id: int | None = None
    labels: tuple[int, ...] = ()
    date: datetime | None = None
    timestamp: datetime | None = None
    size: int | None = None
    cs_md5: str | None = None
    cs_uid: str | None = None
    uid: int | None = None
    task_id: Any = None
    event_invite_status: int | None = None
    external_id: str | None = None
    extra: JsonObject = field(default_factory=dict)

    @classmethod
    def from_json(cls, raw: JsonObject) -> Self:
        """Create a message from the API's object.

        :raises KeyError, TypeError, ValueError: not an object, or `Id` is not a whole number
        """
        number = _whole_number(raw["Id"])
        values: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for name, value in raw.items():
            kind = KINDS.get(name)
            if kind is None:
                extra[name] = value
                continue
            try:
                if kind == "sender":
                    values["from_name"], values["from_address"] = _read_sender(value)
                elif name == "Children":
                    values["children"] = None if value is None else _read_list(value)
                else:
                    read = _READERS.get(kind)
                    values[ATTRIBUTES[name]] = value if read is None else read(value)
            except ValueError:
                extra[name] = value
            if kind in _PARTS and _holds_unknown(kind, value):
                extra[name] = value
        values["id"] = number
        return cls(**values, extra=extra)


def _read_list(value: Any) -> tuple[Any, ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, list):
        return tuple(item for item in value if item is not None)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError("not a list")  # noqa: TRY004
    return (value,)


def _read_sender(value: Any) -> tuple[str | None, str | None]:
    if value is None or isinstance(value, str):
        return None, value
    if not isinstance(value, Mapping):
        raise ValueError("not a sender")  # noqa: TRY004
    return value.get("Name"), value.get("Address")


def _read_attachments(value: Any) -> tuple[Attachment, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or (any(value) and not any(map(_is_file, value))):
        raise ValueError("not a list of files")
    # An item that is not a file is kept as an empty one, for the sake of the others.
    return tuple(Attachment.from_json(item if _is_file(item) else {}) for item in value)


def _is_file(item: Any) -> bool:
    return isinstance(item, Mapping)


def _holds_unknown(kind: str, value: Any) -> bool:
    """Whether a sender or a file has unknown fields (R20)."""
    items = value if isinstance(value, list) else [value]
    if kind == "files" and not all(item is None or _is_file(item) for item in items):
        return True
    return any(_is_file(item) and not item.keys() <= _PARTS[kind] for item in items)


ATTRIBUTES = {name: column for name, column, _ in FIELDS} | {"Id": "id"}
"""The attribute of `Message` for each field of the API; `From` has two."""

_READERS: Mapping[str, Callable[[Any], Any]] = {
    "date": parse_api_date,
    "texts": _read_list,
    "ints": _read_list,
    "files": _read_attachments,
}
_PARTS = {
    "sender": {name for name, _, _ in SENDER_FIELDS},
    "files": {name for name, _, _ in FILE_FIELDS},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NoMessage:
    """A row of a listing without a readable Id (R20), so that no call can refer to it.

    :param key: a hash of its content, which identifies it
    :param date: its date, None for "no date"
    """

    key: str
    date: datetime | None

    @classmethod
    def from_json(cls, raw: JsonObject) -> Self:
        """Create it from the API's object.

        :raises KeyError, TypeError, ValueError: it has no readable Date either, so it isn't a row
        """
        date = parse_api_date(raw["Date"])
        text = json.dumps(raw, sort_keys=True)
        return cls(key=hashlib.sha256(text.encode()).hexdigest(), date=date)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One response of Messages.

    :param rows: the messages, and rows that aren't messages, which count for paging
    :param count: the server's `Count`, of all matches or of this page (R2); None if missing
    :param zoneless: whether its dates don't name a zone (R43)
    :param zoneless_timestamps: the same of its Timestamps
    """

    rows: tuple[Message | NoMessage, ...]
    count: int | None
    zoneless: bool = False
    zoneless_timestamps: bool = False

    @property
    def items(self) -> tuple[Message, ...]:
        """The rows that are messages."""
        return tuple(row for row in self.rows if isinstance(row, Message))


@dataclass(slots=True)
class Stats:
    """Statistics of a client, for manifests and logs.

    :param requests: requests sent, including logins and retries
    :param logins: tokens received
    :param retries: retries of failed requests
    :param bytes_read: bytes of response bodies
    """

    requests: int = 0
    logins: int = 0
    retries: int = 0
    bytes_read: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the numbers by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}
