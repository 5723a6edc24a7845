"""Load real mail: an mbox, a Maildir, a directory of ``.eml`` files, or one ``.eml``.

Every message is read, however malformed: unknown charsets as Latin-1, headers as far as they can
be read.
A message without a readable ``Date`` gets the time of its newest ``Received`` header, else of its
mbox ``From`` line, else of its file. A part is an attachment if it has a file name, is marked as
one, or is not text. An attached message becomes an ``.eml`` file.
"""

from __future__ import annotations

import mimetypes
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import Message
from email.utils import parsedate_to_datetime
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

from airflow_provider_r7mail.emulator.dates import ticks_of
from airflow_provider_r7mail.emulator.headers import (
    BROKEN,
    Mail,
    RawHeaders,
    addresses,
    decoded,
    header,
    text_of_raw,
)
from airflow_provider_r7mail.emulator.messages import Attachment, MailMessage

_BOM = b"\xef\xbb\xbf"
_MIME_ID = re.compile(r"<([^<>]+)>")
_TAG = re.compile(r"(<[^<>]*>)")
_TAG_NAME = re.compile(r"</?\w*")
_THREADS = uuid.UUID("7f0dd3a4-6c3f-4b0e-9a40-0f2f3c1d7a11")
_POLICY = RawHeaders(message_factory=Mail)

_DAY = rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_MONTH = rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_TIME = rb"\d?\d:\d\d(?::\d\d)?"
_ZONE = rb"(?: +(?:[A-Z]{1,5}|[+-]\d{4}))?"
# "Thu Jan  1 00:00:00 1970", with a zone before or after the year, or as in a Date header.
_ENVELOPE_DATE = (
    rb"(?:" + _DAY + rb" +" + _MONTH + rb" +\d?\d +" + _TIME + _ZONE + rb" +\d{4}" + _ZONE + rb"|"
    rb"(?:" + _DAY + rb", +)?\d?\d +" + _MONTH + rb" +\d{4} +" + _TIME + _ZONE + rb")"
)
# "From someone@somewhere Thu Jan  1 00:00:00 1970", or without a date (Thunderbird writes just
# "From ") after a blank line; then a header.
_ENVELOPE = re.compile(
    rb"^From (?:[^\n]{0,200}?" + _ENVELOPE_DATE + rb"|"
    rb"(?:(?<=\n\nFrom )|(?<=\n\r\nFrom ))(?:-|[^\s@]{0,100}@\S{0,100})?)"
    rb"[ \t]*\r?\n(?=[!-9;-~]+:|>From )",
    re.MULTILINE,
)
_QUOTED_FROM = re.compile(rb"^>(?=>*From )", re.MULTILINE)
_LAST_BLANK_LINE = re.compile(rb"(?<=\n)\r?\n\Z")


@dataclass(frozen=True)
class _Parsed:
    message: MailMessage
    references: tuple[str, ...]


def read(path: Path) -> list[MailMessage]:
    """Read the messages at a path, sorted by date; those of a thread have the same ``thread_id``.

    :param path: an mbox file, an ``.eml`` file, a Maildir, or a directory with ``.eml`` files at
        any depth.
    :raises FileNotFoundError: the path does not exist.
    :raises ValueError: there is no mail at the path.
    """
    if not path.exists():
        raise FileNotFoundError(f"no mail at {path}: no such file or directory")
    parsed = list(_parsed(path))
    if not parsed:
        raise ValueError(f"no mail at {path}: not an mbox or a Maildir, and no .eml files")
    return sorted(_threaded(parsed), key=lambda message: _moment(message.date))


def parse(content: bytes, *, fallback: datetime | None = None) -> MailMessage:
    """Parse a message (RFC 5322) into one that can be delivered.

    :param content: the bytes of an ``.eml``.
    :param fallback: its date if it has none that can be parsed; now when None.
    """
    return _parse(content, fallback or datetime.now(UTC)).message


def _parsed(path: Path) -> Iterator[_Parsed]:
    if path.is_dir():
        if (path / "cur").is_dir() or (path / "new").is_dir():
            yield from _maildir(path)
        else:
            for file in _files(path.rglob("*")):
                if file.suffix.lower() == ".eml":
                    yield _parse(file.read_bytes(), _changed(file))
    elif path.suffix.lower() == ".eml":
        yield _parse(path.read_bytes(), _changed(path))
    else:
        yield from _mbox(path)


def _files(paths: Iterable[Path]) -> list[Path]:
    """Return those paths that are files, sorted; no hidden ones, like ``._1.eml`` of macOS."""
    return sorted(path for path in paths if path.is_file() and not path.name.startswith("."))


def _mbox(path: Path) -> Iterator[_Parsed]:
    """Read an mbox.

    Python's `mailbox` splits messages at every line that begins with "From ", leaves ``>From``
    quoted, and ignores what precedes the first such line: with a byte order mark, a message.
    """
    content = path.read_bytes().removeprefix(_BOM).lstrip(b"\r\n")
    if not content.startswith(b"From "):
        return
    starts = [0, *(found.start() for found in _ENVELOPE.finditer(content, 1))]
    for start, stop in pairwise([*starts, len(content)]):
        envelope, _, quoted = content[start:stop].partition(b"\n")
        date = re.search(_ENVELOPE_DATE, envelope)
        arrived = _date_of_text(date[0].decode()) if date else None
        message = _QUOTED_FROM.sub(b"", _LAST_BLANK_LINE.sub(b"", quoted))
        yield _parse(message, arrived or _changed(path))


def _maildir(path: Path) -> Iterator[_Parsed]:
    files = [file for part in ("new", "cur") for file in _files((path / part).glob("*"))]
    for file in files:
        parsed = _parse(file.read_bytes(), _changed(file))
        flags = file.name.rpartition(":2,")[2] if ":2," in file.name else ""
        message = replace(
            parsed.message,
            was_read="S" in flags,
            important=parsed.message.important or "F" in flags,
        )
        yield replace(parsed, message=message)


def _changed(file: Path) -> datetime:
    return datetime.fromtimestamp(file.stat().st_mtime, UTC)


def _parse(content: bytes, fallback: datetime) -> _Parsed:
    mail = message_from_bytes(content.removeprefix(_BOM), policy=_POLICY)
    parts = _Parts()
    parts.collect(mail)
    senders = addresses(mail, "From") or addresses(mail, "Sender")
    name, address = senders[0] if senders else ("", "")
    answered = _MIME_ID.findall(header(mail, "In-Reply-To"))
    own = _MIME_ID.findall(header(mail, "Message-ID"))
    text = "\n".join(parts.texts)
    html = "\n".join(parts.pages)
    message = MailMessage(
        subject=header(mail, "Subject"),
        body=text or _text_of_html(html),
        html_body=html or None,
        sender=address,
        sender_name=name or None,
        to=[found for _, found in addresses(mail, "To")],
        cc=[found for _, found in addresses(mail, "Cc")] or None,
        bcc=[found for _, found in addresses(mail, "Bcc")] or None,
        date=_date(mail, fallback),
        attachments=parts.attachments,
        was_read="R" in header(mail, "Status"),  # as mail clients write it into an mbox
        important=_is_important(mail),
        mime_message_id=own[0] if own else None,
        in_reply_to=answered[0] if answered else None,
        fields=_flags(mail),
    )
    return _Parsed(message, (*_MIME_ID.findall(header(mail, "References")), *answered))


def _date(mail: Message[Any, Any], fallback: datetime) -> datetime:
    received = header(mail, "Received").rpartition(";")[2]
    for text in (header(mail, "Date"), received):
        found = _date_of_text(" ".join(text.split()))
        if found is not None:
            return found
    return fallback


def _date_of_text(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return aware.astimezone(UTC)
    except (*BROKEN, OverflowError):
        return None


def _moment(date: datetime | str | None) -> int:
    return ticks_of(date) if isinstance(date, datetime) else 0


def _is_important(mail: Message[Any, Any]) -> bool:
    priority = header(mail, "X-Priority")[:1]
    return priority in {"1", "2"} or header(mail, "Importance").lower() == "high"


def _flags(mail: Message[Any, Any]) -> dict[str, bool]:
    automatic = header(mail, "Auto-Submitted").lower() not in {"", "no"}
    given = {
        "IsAutoSubmitted": automatic,
        "IsReturnReceiptTo": bool(header(mail, "Return-Receipt-To")),
        "IsDispositionNotificationTo": bool(header(mail, "Disposition-Notification-To")),
    }
    return {name: value for name, value in given.items() if value}


@dataclass
class _Parts:
    """The parts of a message: texts, HTML pages, files."""

    texts: list[str] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)
    attachments: list[Attachment] = field(default_factory=list)

    def collect(self, part: Message[Any, Any]) -> None:
        """Add a part and its sub-parts to the lists."""
        kind = _content_type(part)
        if kind.startswith("multipart/") and part.is_multipart():
            for inner in part.get_payload():
                if isinstance(inner, Message):
                    self.collect(inner)
            return
        name = _file_name(part)
        attached = _disposition(part) == "attachment"
        # A "multipart" without parts is mislabelled text.
        is_text = kind in {"text/plain", "text/html"} or kind.startswith("multipart/")
        if name is None and not attached and is_text:
            target = self.pages if kind == "text/html" else self.texts
            target.append(_text(part))
            return
        number = len(self.attachments) + 1
        self.attachments.append(Attachment(name or _made_name(kind, number), _data(part), kind))


def _content_type(part: Message[Any, Any]) -> str:
    try:
        return part.named_content_type() if isinstance(part, Mail) else part.get_content_type()
    except BROKEN:
        return "text/plain"


def _disposition(part: Message[Any, Any]) -> str | None:
    try:
        return part.get_content_disposition()
    except BROKEN:
        return None


def _file_name(part: Message[Any, Any]) -> str | None:
    try:
        name = part.get_filename()
    except BROKEN:
        return None
    return decoded(text_of_raw(name)) if name else None


def _made_name(kind: str, number: int) -> str:
    if kind == "message/rfc822":
        return f"message-{number}.eml"
    return f"part-{number}{mimetypes.guess_extension(kind) or '.bin'}"


def _data(part: Message[Any, Any]) -> bytes:
    """Return the bytes of a file, undecoded if their encoding is broken."""
    try:
        data = part.get_payload(decode=True)
        if isinstance(data, bytes):
            return data
        return str(part.get_payload()).encode("utf-8", "surrogateescape")
    except BROKEN:
        return b""


def _text(part: Message[Any, Any]) -> str:
    data = _data(part)
    try:
        charset = part.get_content_charset() or "utf-8"
    except BROKEN:
        charset = "utf-8"
    for candidate in (charset, "utf-8"):
        try:
            return data.decode(candidate)
        except (LookupError, UnicodeError, ValueError):
            continue
    return data.decode("latin-1")


def _text_of_html(page: str) -> str:
    """Return roughly the text of an HTML body: the plain body if a message has none."""
    texts: list[str] = []
    hidden = ""
    for number, piece in enumerate(_TAG.split(page)):
        tag = _TAG_NAME.match(piece.lower()) if number % 2 else None
        if hidden:
            hidden = "" if tag and tag[0] == f"</{hidden}" else hidden
        elif tag is None:
            texts.append("" if number % 2 else piece)
        elif tag[0] in {"<script", "<style"}:
            hidden = tag[0][1:]
        elif tag[0] in {"<br", "</p", "</div", "</tr"}:
            texts.append("\n")
    return _unescaped("".join(texts)).strip()


def _unescaped(text: str) -> str:
    try:
        return unescape(text)
    except ValueError:  # a reference like "&#9" and thousands of digits
        return text


def _threaded(parsed: Sequence[_Parsed]) -> Iterator[MailMessage]:
    """Assign the same thread id to messages that refer to each other, directly or not."""
    roots: dict[str, str] = {}

    def root(mime_id: str) -> str:
        while roots.setdefault(mime_id, mime_id) != mime_id:
            roots[mime_id] = roots[roots[mime_id]]
            mime_id = roots[mime_id]
        return mime_id

    for item in parsed:
        family = [item.message.mime_message_id, *item.references]
        known = [mime_id for mime_id in family if mime_id]
        for mime_id in known[1:]:
            # The oldest reference, the first in the header, names the thread.
            roots[root(known[0])] = root(mime_id)
    linked = {mime_id for item in parsed for mime_id in item.references}
    for item in parsed:
        own = item.message.mime_message_id
        if item.references or own in linked:
            name = root(own or item.references[0])
            yield replace(item.message, thread_id=str(uuid.uuid5(_THREADS, name)))
        else:
            yield item.message
