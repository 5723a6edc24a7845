"""Messages and attachments on their way into a mailbox, and files the server stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

MISSING: Final = object()
"""As a value in the ``fields`` of a delivery: leave the field out of the message's JSON (R20)."""

NESTED = "message/rfc822"
"""The MIME type of a message that is attached to another one."""


@dataclass(frozen=True)
class Attachment:
    """A file attached to a message.

    :param file_name: its name: any text at all (R19).
    :param data: its content.
    :param mime_type: its MIME type.
    """

    file_name: str
    data: bytes
    mime_type: str = "application/octet-stream"


@dataclass(frozen=True, kw_only=True)
class MailMessage:
    """A message to deliver. `Mailbox.deliver` takes the same fields as parameters."""

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
    """A file in the server's Storage, or an attachment of a message, with the server's ids."""

    id: int
    file_id: int
    file_name: str
    data: bytes
    mime_type: str

    def json(self) -> dict[str, Any]:
        """Return the object that ``Attachments`` of a message, and of a Send request, holds."""
        return {
            "Id": self.id,
            "FileId": self.file_id,
            "FileName": self.file_name,
            "Size": len(self.data),
            "MimeType": self.mime_type,
        }


def listed_size(size: int, form: str) -> int:
    """Return the ``Size`` of a file of so many bytes as a listing gives it (R26).

    :param form: a value of `Readings.attachment_size`.
    """
    encoded = (size + 2) // 3 * 4
    forms = {
        "bytes": size,
        "base64": encoded,
        "base64_lines": encoded + 2 * ((encoded + 75) // 76),
        "rounded": (size + 1023) // 1024 * 1024,
    }
    return forms[form]


def html_of_text(text: str) -> str:
    """Convert plain text to minimal HTML, one ``<p>`` per paragraph."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    paragraphs = [part for part in escaped.split("\n\n") if part.strip()]
    return "".join(f"<p>{part}</p>" for part in paragraphs)
