"""Forward messages: find them in their folder, and quote them with their files. No Airflow."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from airflow_provider_r7mail.client.compose import compose_message
from airflow_provider_r7mail.client.finding import find_by_ids, not_in_folder
from airflow_provider_r7mail.client.models import Attachment, Message
from airflow_provider_r7mail.client.parameters import read_text
from airflow_provider_r7mail.exceptions import (
    R7MailAttachmentError,
    R7MailConfigError,
)

if TYPE_CHECKING:
    from airflow_provider_r7mail.client.calls import Call
    from airflow_provider_r7mail.client.session import Client


def find_messages(client: Client, folder: int, ids: Sequence[int]) -> list[Message]:
    """Find messages in a folder's listing: the API has no other way to get one.

    :param client: an open client
    :param folder: the folder's id
    :param ids: the messages' ids
    :return: the messages, in the order of `ids`
    :raises R7MailMessageNotFoundError: some are not there; names all of them
    """
    found = find_by_ids(client, folder, ids)
    if missing := [number for number in ids if number not in found]:
        raise not_in_folder(folder, missing, "This try sent nothing.")
    return [found[message_id] for message_id in ids]


def forward(message: Message, to: Iterable[str], comment_html: str = "") -> Call[Message]:
    """Make the call that forwards a message, with its files by reference.

    :param message: the message, as listed
    :param to: addresses
    :param comment_html: HTML to put above the quoted message
    :raises R7MailAttachmentError: the listing doesn't describe its files as Send needs them (R17)
    :raises R7MailConfigError: an address is wrong
    """
    return compose_message(
        to,
        # Line breaks in the original's subject become spaces.
        f"Fwd: {' '.join((message.subject or '').replace(chr(0), ' ').split())}",
        _quoted(message, read_text(comment_html, "comment_html") or ""),
        attachments=_files_of(message),
    )


def _quoted(message: Message, comment_html: str) -> str:
    """The comment, followed by the message as a quotation.

    Its header fields come from the sender and are escaped; its own HTML stays as it is.
    """
    sender = message.from_address or ""
    if message.from_name:
        sender = f"{message.from_name} <{sender}>"
    header = {
        "From": sender,
        "Date": message.date.isoformat(sep=" ", timespec="seconds") if message.date else "",
        "Subject": message.subject or "",
        "To": ", ".join(map(str, message.to_addresses)),
        "Cc": ", ".join(map(str, message.cc_addresses)),
    }
    lines = [f"<b>{name}:</b> {html.escape(text)}" for name, text in header.items() if text]
    body = message.html_body or f"<pre>{html.escape(message.body or '')}</pre>"
    return (
        f"{comment_html}<p>---------- Forwarded message ----------<br>{'<br>'.join(lines)}</p>"
        f"<blockquote>{body}</blockquote>"
    )


def _files_of(message: Message) -> list[Attachment]:
    if message.attachments is None:
        if message.has_attachments:
            raise R7MailAttachmentError(
                f"Message {message.id} has attachments, but the listing does not name them, so it "
                "can't be forwarded completely. This try sent nothing."
            )
        return []
    try:
        return [
            Attachment.for_send(attachment, position)
            for position, attachment in enumerate(message.attachments)
        ]
    except R7MailConfigError as error:
        raise R7MailAttachmentError(
            f"Message {message.id} can't be forwarded completely: {error.text} This try sent "
            "nothing."
        ) from error
