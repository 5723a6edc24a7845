"""One user's mail: deliver it, load it from files, generate it, send it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Self

from airflow_provider_r7mail.emulator.disk import Disk
from airflow_provider_r7mail.emulator.fields import fields_of
from airflow_provider_r7mail.emulator.folders import DRAFTS, INBOX, SENT
from airflow_provider_r7mail.emulator.loading import read
from airflow_provider_r7mail.emulator.messages import Attachment, MailMessage, StoredFile
from airflow_provider_r7mail.emulator.office import fill
from airflow_provider_r7mail.emulator.store import NotThere, Store
from airflow_provider_r7mail.emulator.synthetic import generate


class Mailbox(Store):
    """One user's mail on the server.

    :param login: the user's login.
    :param password: the password.
    :param address: the user's address: From of sent messages, default To of delivered ones.
    :param name: the user's name, surname first.
    :param clock: returns the current time (UTC), for tests that compare dates.
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
        super().__init__(address, clock or (lambda: datetime.now(UTC)))
        self.login = login
        self.password = password
        self.name = name
        self.sent: list[dict[str, Any]] = []
        self.disk = Disk(self)

    @classmethod
    def office(
        cls, *, seed: int = 7, messages: int = 5_000, days: int = 90, end: datetime | None = None
    ) -> Self:
        """Generate the mailbox of a Russian office: the emulator's default.

        :param seed: the same seed and end give the same mailbox, byte for byte.
        :param messages: number of messages.
        :param days: number of days they span before ``end``.
        :param end: all messages are older; midnight today (UTC) when None.
        """
        mailbox = cls()
        fill(mailbox, mailbox.name, seed=seed, messages=messages, days=days, end=end)
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
    ) -> Self:
        """Generate up to a million messages of about 3.5 KB for benchmarks, in little memory.

        :param count: number of messages.
        :param folder: the folder they are in.
        :param start: date of the first message.
        :param end: all are older, spread evenly.
        :param ties: number of messages that share each Date.
        :param read_every: every n-th message is read; 0 for none.
        :param attachment_every: every n-th message has an attachment; 0 for none.
        :param attachment_bytes: size of an attachment.
        :param seed: the same arguments give the same mailbox.
        """
        mailbox = cls()
        records = generate(
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
        )
        mailbox.add_bulk(folder, records)
        return mailbox

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
        """Deliver a message, and return its Id.

        :param folder: the folder's id; the folder is created if there is none.
        :param html_body: made from ``body`` when None.
        :param to: addresses; the mailbox's own when None.
        :param date: a datetime, or the exact text in the JSON; now when None.
        :param attachments: files, as `Attachment` or (name, bytes, MIME type).
        :param in_reply_to: MIME id of the message it replies to, whose thread it joins.
        :param fields: raw JSON fields that override or extend the others; `MISSING` leaves one
            out. An int for ``Id`` becomes the message's Id.
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

    def load(self, path: str | Path, folder: int = INBOX) -> int:
        """Deliver the messages of an mbox, a Maildir, an ``.eml`` file or a directory of them.

        :returns: the number of messages.
        """
        loaded = [self.deliver_message(message, folder) for message in read(Path(path))]
        return len(loaded)

    def send(self, request: Mapping[str, Any], *, delay: float = 0.0) -> dict[str, Any]:
        """Accept a message as the Send call does, and return the JSON of its response (R11).

        :param request: the JSON of a valid request.
        :param delay: seconds until the message appears in the Sent folder.
        """
        with self.lock:
            self._settle()
            files = tuple(self._referred(wanted) for wanted in request.get("Attachments") or ())
            number = self._take_draft(request["Id"])
            now = self.now()
            letter = self._letter(request, now)
            sent = replace(letter, was_read=True, fields={"Id": number, "WasSent": True})
            record = self._create(sent, SENT, files)
            if delay > 0:
                self._do_later(delay, partial(self._put, record))
            else:
                self._put(record)
            recipients = [*request["To"], *(request.get("Cc") or ()), *(request.get("Bcc") or ())]
            if self.address.casefold() in {address.casefold() for address in recipients}:
                self._put(self._create(replace(letter, bcc=None), INBOX, files))
            self.sent.append({**request, "Id": number})
            return self._accepted(letter, number, now, has_files=bool(files))

    def _referred(self, wanted: Mapping[str, Any]) -> StoredFile:
        """Return the file that a Send request attaches, under the name given in the request."""
        stored = self._files.get(wanted["FileId"])
        if stored is None:
            raise NotThere(f"no file {wanted['FileId']} in Storage")
        return StoredFile(
            self.next_number("attachment"),
            stored.file_id,
            wanted["FileName"],
            stored.data,
            wanted["MimeType"],
        )

    def _take_draft(self, number: int) -> int:
        """Return the Id of a message to send: a removed draft's, or a new one (R10)."""
        if number == 0:
            return self.next_number("id")
        if any(item["Id"] == number for item in self.sent):
            raise NotThere(f"message {number} was already sent")
        draft = self._records.get(number)
        if draft is not None:
            if draft.folder != DRAFTS:
                raise NotThere(f"message {number} is not a draft")
            self._remove(draft)
        self._reserve(number)
        return number

    def _letter(self, request: Mapping[str, Any], now: datetime) -> MailMessage:
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
        )

    def _accepted(
        self, letter: MailMessage, number: int, now: datetime, *, has_files: bool
    ) -> dict[str, Any]:
        """Return Send's response: accepted, not sent yet, hence no text and a draft's Uid."""
        fields = fields_of(
            replace(letter, body="", html_body=""),
            (),
            number=number,
            uid=-number,
            folder=SENT,
            mime_id=None,
            owner=self.address,
            date=now,
        )
        return {
            **fields,
            "HasAttachments": has_files,
            "HasThreadAttachments": None,
            "Timestamp": None,
            "Size": 0,
        }
