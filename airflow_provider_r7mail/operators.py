"""Operators that act on mail: send, forward, mark, move, delete. Extracts are in `transfers`."""

from __future__ import annotations

import html
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator

from airflow_provider_r7mail.exceptions import (
    R7MailAttachmentError,
    R7MailConfigError,
    R7MailMessageNotFoundError,
    R7MailRequestError,
)
from airflow_provider_r7mail.extract import iter_messages
from airflow_provider_r7mail.hooks import (
    Accepted,
    Progress,
    R7MailHook,
    fail_at_once,
    parse_addresses,
    with_reason,
)
from airflow_provider_r7mail.models import Attachment, Message, MessageFilter, parse_ids

if TYPE_CHECKING:
    import jinja2
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_r7mail.api import Call
    from airflow_provider_r7mail.client import Client


class Forwarded(TypedDict):
    """What became of one message.

    :param message_id: the message that was forwarded
    :param id: the server's id of the new one
    :param accepted: taken by the server, which is not delivery (R11)
    """

    message_id: int
    id: int | None
    accepted: bool


class R7MailSendOperator(BaseOperator):
    """Send a message, once.

    A failure that leaves open whether the server has sent it fails the task at once, without
    further tries: look into the Sent folder first (R23).

    Returns `{"id": ..., "accepted": True}`. Accepted is not delivered (R11). No address, subject
    or text goes into logs or XCom.

    :param to: addresses, as text with commas or a list; `Name <name@example.org>` is taken
        (templated)
    :param subject: the subject, one line (templated)
    :param html_content: the body in HTML, or the path of an `.html` or `.txt` template
        (templated)
    :param text_content: the plain body, or the path of a template; made from the HTML if None
        (templated)
    :param cc: addresses, likewise (templated)
    :param bcc: addresses, likewise (templated)
    :param attachments: files in the server's Storage, as
        `{"Id", "FileId", "FileName", "Size", "MimeType"}`; the API has no upload (templated)
    :param draft_id: id of a draft that the message is made of; 0 for none (R10) (templated)
    :param sent_folder: the Sent folder's id or name, where an unclear sending can be looked up
        (templated)
    :param dry_run: check everything, log the numbers, send nothing; returns
        `{"id": None, "accepted": False}`
    :param r7mail_conn_id: the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, the log-in was refused, or it is unclear
        whether the message was sent
    :raises R7MailRequestError: it was not sent, and a later try may succeed
    """

    template_fields: Sequence[str] = (
        "to",
        "subject",
        "html_content",
        "text_content",
        "cc",
        "bcc",
        "attachments",
        "draft_id",
        "sent_folder",
        "r7mail_conn_id",
    )
    template_ext: Sequence[str] = (".html", ".txt")
    template_fields_renderers: ClassVar[dict[str, str]] = {"html_content": "html"}
    ui_color = "#e6eef8"

    def __init__(
        self,
        *,
        to: str | Iterable[str],
        subject: str,
        html_content: str,
        text_content: str | None = None,
        cc: str | Iterable[str] | None = None,
        bcc: str | Iterable[str] | None = None,
        attachments: Iterable[Mapping[str, Any]] | None = None,
        draft_id: int | str = 0,
        sent_folder: int | str | None = None,
        dry_run: bool = False,
        r7mail_conn_id: str = R7MailHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.to = to
        self.subject = subject
        self.html_content = html_content
        self.text_content = text_content
        self.cc = cc
        self.bcc = bcc
        self.attachments = attachments
        self.draft_id = draft_id
        self.sent_folder = sent_folder
        self._dry_run = dry_run  # `dry_run` is a method of every operator
        self.r7mail_conn_id = r7mail_conn_id

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render a value; an attachment's `FileName` ending in `.txt` is a name, not a template."""
        if isinstance(content, Mapping) and isinstance(content.get("FileName"), str):
            env = jinja_env or self.get_template_env()
            rest = {name: value for name, value in content.items() if name != "FileName"}
            return {
                **super().render_template(rest, context, env, seen_oids),
                "FileName": env.from_string(content["FileName"]).render(**context),
            }
        return super().render_template(content, context, jinja_env, seen_oids)

    @fail_at_once()
    def execute(self, context: Context) -> Accepted:
        """Send it."""
        hook = R7MailHook(self.r7mail_conn_id)
        call = hook.message_call(
            self.to,
            self.subject,
            self.html_content,
            text_content=self.text_content,
            cc=self.cc,
            bcc=self.bcc,
            attachments=self.attachments,
            draft_id=self.draft_id,
        )
        body = call.body or {}
        numbers = [len(body[name]) for name in ("To", "Cc", "Bcc", "Attachments")]
        if self._dry_run:
            self.log.info(
                "Dry run, nothing is sent: %d to, %d cc, %d bcc, %d attachments.", *numbers
            )
            return {"id": None, "accepted": False}
        with hook.get_conn() as client:
            message = client.send(call)
        self.log.info(
            "The server accepted message %d: %d to, %d cc, %d bcc, %d attachments. "
            "That is not yet delivery.",
            message.id,
            *numbers,
        )
        return {"id": message.id, "accepted": True}


class R7MailForwardOperator(BaseOperator):
    """Forward messages of a folder, each as a message of its own: mass forwarding.

    The attachments are forwarded by reference: nothing is downloaded. Everything is checked
    before the first message is sent. If one fails after others were sent, the task fails at once,
    without further tries, which would send the others twice; the error names the ids that were
    forwarded.

    Returns a list of `{"message_id", "id", "accepted"}`, one a message.

    :param folder: the folder's id, or its name in the connection's `folders` (templated)
    :param message_ids: the messages' ids: a list, an XCom of one, or JSON text; none is fine
        (templated)
    :param to: addresses, as text with commas or a list (templated)
    :param comment_html: HTML to stand above each forwarded message (templated)
    :param r7mail_conn_id: the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, an id is not in the folder, the log-in was
        refused, or some messages were forwarded and one was not
    :raises R7MailAttachmentError: the listing does not name a message's files (R17); nothing was
        sent
    :raises R7MailRequestError: nothing was sent, and a later try may succeed
    """

    template_fields: Sequence[str] = (
        "folder",
        "message_ids",
        "to",
        "comment_html",
        "r7mail_conn_id",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"comment_html": "html"}
    ui_color = "#e6eef8"

    def __init__(
        self,
        *,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        to: str | Iterable[str],
        comment_html: str = "",
        r7mail_conn_id: str = R7MailHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.folder = folder
        self.message_ids = message_ids
        self.to = to
        self.comment_html = comment_html
        self.r7mail_conn_id = r7mail_conn_id

    @fail_at_once()
    def execute(self, context: Context) -> list[Forwarded]:
        """Find all the messages, then forward them in the order of `message_ids`."""
        ids = parse_ids(self.message_ids, "message_ids")
        if not ids:
            self.log.info("There are no messages to forward.")
            return []
        hook = R7MailHook(self.r7mail_conn_id)
        folder = hook.resolve_folder(self.folder)
        recipients = parse_addresses(self.to, "to")
        with hook.get_conn() as client:
            messages = _find(client, folder, ids)
            calls = [
                hook.message_call(
                    recipients,
                    forward_subject(message),
                    forward_html(message, self.comment_html or ""),
                    attachments=_files_of(message),
                )
                for message in messages
            ]
            return self._send(client, ids, calls)

    def _send(
        self, client: Client, ids: Sequence[int], calls: Sequence[Call[Message]]
    ) -> list[Forwarded]:
        progress = Progress(self.log.info, len(ids))
        forwarded: list[Forwarded] = []
        for message_id, call in zip(ids, calls, strict=True):
            try:
                sent = client.send(call)
            except R7MailRequestError as error:
                done = ids[: len(forwarded)]
                text = f"{error.reason}, for message {message_id}; "
                if not done:
                    raise with_reason(error, f"{text}none was forwarded before") from error
                complete = with_reason(error, f"{text}forwarded before: {list(done)}")
                raise AirflowFailException(
                    f"{complete} A new try would send those again: clear the task with the "
                    "other ids only."
                ) from error
            forwarded.append({"message_id": message_id, "id": sent.id, "accepted": True})
            progress.add()
        self.log.info("The server accepted %d messages. That is not yet delivery.", len(ids))
        return forwarded


def _find(client: Client, folder: int, ids: Sequence[int]) -> list[Message]:
    """Look for messages in a folder's listing: the API has no other way to get one."""
    missing = dict.fromkeys(ids)
    found: dict[int, Message] = {}
    for message in iter_messages(client, folder, MessageFilter()):
        if message.id in missing:
            found[message.id] = message
            del missing[message.id]
            if not missing:
                break
    if missing:
        raise R7MailMessageNotFoundError(
            f"Not in folder {folder}: messages {list(missing)}. Nothing was sent. Were they moved "
            "or deleted? Ids are the server's own, and belong to the folder they were read from."
        )
    return [found[message_id] for message_id in ids]


def _files_of(message: Message) -> list[Attachment]:
    """A message's files, to be sent by reference.

    :raises R7MailAttachmentError: they are not named, or not as Send needs them (R17)
    """
    if message.attachments is None:
        if message.has_attachments:
            raise R7MailAttachmentError(
                f"Message {message.id} has attachments, but the listing does not name them: it "
                "can't be forwarded whole. Nothing was sent."
            )
        return []
    try:
        return [
            Attachment.for_send(attachment, position)
            for position, attachment in enumerate(message.attachments)
        ]
    except R7MailConfigError as error:
        raise R7MailAttachmentError(
            f"Message {message.id} can't be forwarded whole: {error} Nothing was sent."
        ) from error


def forward_subject(message: Message) -> str:
    """The subject of a message that is forwarded; line breaks in the original's become blanks."""
    return f"Fwd: {' '.join((message.subject or '').replace(chr(0), ' ').split())}"


def forward_html(message: Message, comment: str) -> str:
    """The comment, and under it the message as a quotation.

    The header's text is the sender's, and escaped; the message's own HTML stays as it is.
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
        f"{comment}<p>---------- Forwarded message ----------<br>{'<br>'.join(lines)}</p>"
        f"<blockquote>{body}</blockquote>"
    )


class _MessagesOperator(BaseOperator):
    """What the operators share that do one thing to messages of a folder, and count them."""

    template_fields: Sequence[str] = ("folder", "message_ids", "r7mail_conn_id")
    ui_color = "#e6eef8"

    def __init__(
        self,
        *,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        r7mail_conn_id: str = R7MailHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.folder = folder
        self.message_ids = message_ids
        self.r7mail_conn_id = r7mail_conn_id

    @fail_at_once()
    def execute(self, context: Context) -> int:
        """Do it; return how many messages."""
        ids = parse_ids(self.message_ids, "message_ids")
        if not ids:
            self.log.info("There are no messages: nothing to do.")
            return 0
        ti = context.get("ti")
        tried_before = getattr(ti, "try_number", 1) > 1
        count = self._act(R7MailHook(self.r7mail_conn_id), ids, tried_before)
        self.log.info("Done, for %d messages.", count)
        return count

    @abstractmethod
    def _act(self, hook: R7MailHook, ids: Sequence[int], tried_before: bool) -> int: ...


class R7MailMarkReadOperator(_MessagesOperator):
    """Mark messages read or unread.

    Returns how many messages.

    :param folder: the folder's id, or its name in the connection's `folders` (templated)
    :param message_ids: the messages' ids: a list, an XCom of one, or JSON text; with none,
        nothing is done (templated)
    :param read: False marks them unread
    :param r7mail_conn_id: the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, or the log-in was refused
    :raises R7MailActionError: the server did not do it (R15)
    :raises R7MailRequestError: the server failed, or could not be reached
    """

    def __init__(self, *, read: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.read = read

    def _act(self, hook: R7MailHook, ids: Sequence[int], tried_before: bool) -> int:
        return hook.mark_as_read(self.folder, ids, self.read)


class R7MailMarkImportantOperator(_MessagesOperator):
    """Mark messages important or not.

    Returns how many messages.

    :param folder: the folder's id, or its name in the connection's `folders` (templated)
    :param message_ids: the messages' ids: a list, an XCom of one, or JSON text; with none,
        nothing is done (templated)
    :param important: False takes the mark away
    :param r7mail_conn_id: the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, or the log-in was refused
    :raises R7MailActionError: the server did not do it (R15)
    :raises R7MailRequestError: the server failed, or could not be reached
    """

    def __init__(self, *, important: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.important = important

    def _act(self, hook: R7MailHook, ids: Sequence[int], tried_before: bool) -> int:
        return hook.mark_as_important(self.folder, ids, self.important)


class R7MailMoveOperator(_MessagesOperator):
    """Move messages to another folder.

    If the server refuses although the messages are no longer in `folder` and an earlier attempt
    was made, that one had worked, and the task succeeds (R23).

    Returns how many messages.

    :param folder: the folder's id, or its name in the connection's `folders` (templated)
    :param message_ids: the messages' ids: a list, an XCom of one, or JSON text; with none,
        nothing is done (templated)
    :param to_folder: where to: an id or a name, likewise (templated)
    :param r7mail_conn_id: the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, or the log-in was refused
    :raises R7MailActionError: the server did not do it (R15)
    :raises R7MailRequestError: the server failed, or could not be reached
    """

    template_fields: Sequence[str] = (*_MessagesOperator.template_fields, "to_folder")

    def __init__(self, *, to_folder: int | str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.to_folder = to_folder

    def _act(self, hook: R7MailHook, ids: Sequence[int], tried_before: bool) -> int:
        return hook.move_messages(self.folder, ids, self.to_folder, tried_before=tried_before)


class R7MailDeleteOperator(_MessagesOperator):
    """Delete messages.

    If the server refuses although the messages are no longer in `folder` and an earlier attempt
    was made, that one had worked, and the task succeeds (R23).

    Returns how many messages.

    :param folder: the folder's id, or its name in the connection's `folders` (templated)
    :param message_ids: the messages' ids: a list, an XCom of one, or JSON text; with none,
        nothing is done (templated)
    :param r7mail_conn_id: the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, or the log-in was refused
    :raises R7MailActionError: the server did not do it (R15)
    :raises R7MailRequestError: the server failed, or could not be reached
    """

    def _act(self, hook: R7MailHook, ids: Sequence[int], tried_before: bool) -> int:
        return hook.delete_messages(self.folder, ids, tried_before=tried_before)
