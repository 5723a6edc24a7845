"""Operators that act on mail: send, forward, mark, move, delete. Extracts are in `transfers`."""

from __future__ import annotations

import html
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from airflow_provider_r7mail.compat import AirflowFailException, BaseOperator, conf
from airflow_provider_r7mail.exceptions import (
    R7MailAttachmentError,
    R7MailConfigError,
    R7MailMessageNotFoundError,
    R7MailRequestError,
    R7MailSendUnclearError,
)
from airflow_provider_r7mail.extract import iter_messages
from airflow_provider_r7mail.hooks import (
    LINK_SECONDS,
    Accepted,
    Progress,
    R7MailHook,
    fail_at_once,
    parse_addresses,
    read_sent_folder,
    resolve_links,
)
from airflow_provider_r7mail.links import R7MailFolderLink
from airflow_provider_r7mail.models import (
    Attachment,
    Message,
    MessageFilter,
    parse_ids,
    parse_moment,
)
from airflow_provider_r7mail.sending import (
    SETTLE_SECONDS,
    Attempt,
    Marker,
    Sending,
    html_table,
    recipients_of,
    send_once,
)

if TYPE_CHECKING:
    import jinja2

    from airflow_provider_r7mail.client import Client
    from airflow_provider_r7mail.compat import Context

log = logging.getLogger(__name__)

RECORD_KEY = "r7mail_sent"
"""Where the task state store has what a task instance sent: by hash of the recipients."""

RESEND = "resend"
"""What a person sets that to, to have it sent without looking."""


class Forwarded(TypedDict):
    """What became of one message.

    :param message_id: the message that was forwarded
    :param id: the server's id of the new one
    :param accepted: taken by the server, which is not delivery (R11)
    """

    message_id: int
    id: int | None
    accepted: bool


class _Tries:
    """What is known of sendings by earlier tries of a task instance.

    Airflow 3.3 and later keep a record of them, in the task state store: it is there when the
    task is tried again and when it is cleared, and goes with the DAG run.

    :param context: the task's context; without a task instance nothing is known
    """

    def __init__(self, context: Context) -> None:
        self._ti = context.get("ti")
        self._run = context.get("dag_run")
        self._store: Any = context.get("task_state_store")
        self._began = datetime.now(UTC)
        self.keeps_record = self._store is not None

    def marker(self, recipients: Iterable[str], part: int | str = "") -> Marker | None:
        """The marker of a message of this task; None where there is no task.

        :param recipients: all of its addresses
        :param part: which of the task's messages it is, where it sends several
        """
        ti = self._ti
        if ti is None:
            return None
        map_index = getattr(ti, "map_index", None)
        return Marker.of(
            (ti.dag_id, ti.run_id, ti.task_id),
            -1 if map_index is None else map_index,
            recipients,
            part,
        )

    def earlier(self, marker: Marker | None, part: int | str = "") -> Attempt | None:
        """What earlier tries did about a message; None if they surely did nothing.

        :raises R7MailConfigError: the record is not one of ours
        """
        if self._ti is None or marker is None:
            return None
        retried = self._ti.try_number > 1
        # A new instance may have an old one's recipient: the list that is mapped over may shift.
        rerun = bool(getattr(self._run, "clear_number", 0))
        key = _record_key(part)
        known = self._store.get(key) if self.keeps_record else None
        if known == RESEND:
            return None
        if known is not None:
            return self._of_record(key, known, marker)
        if not (retried or rerun):
            return None
        # Without a record nothing was begun, unless records are not kept.
        forgets = not self.keeps_record or conf.getboolean(
            "state_store", "clear_on_success", fallback=False
        )
        last = self._began if retried and forgets else None
        return Attempt(state="unknown", since=self._run_start(rerun), last=last)

    def _of_record(self, key: str, known: Any, marker: Marker) -> Attempt:
        try:
            attempts = {name: Attempt.from_json(entry) for name, entry in known.items()}
        except (AttributeError, R7MailConfigError) as error:
            raise R7MailConfigError(
                f"The task's state {key!r} is no record of sendings. Set it to {RESEND!r} to send "
                "without looking, or delete it."
            ) from error
        if marker.recipients in attempts:
            return attempts[marker.recipients]
        # It was sent to others: the list that is mapped over has shifted, or was mended.
        others = attempts.values()
        return Attempt(
            state="unknown",
            since=min((other.since for other in others), default=self._began),
            last=max(
                (other.last for other in others if other.reached and other.last), default=None
            ),
        )

    def _run_start(self, rerun: bool) -> datetime:
        """A moment before which no try of this run can have sent anything."""
        # Clearing moves a run's start.
        names = ("run_after", "logical_date", "start_date") if rerun else ("start_date",)
        found = (parse_moment(getattr(self._run, name, None), name) for name in names)
        return min((moment for moment in found if moment is not None), default=self._began)

    def record(self, marker: Marker | None, part: int | str = "") -> Callable[[Attempt], None]:
        """What keeps the attempts at a message for later tries."""

        def keep(attempt: Attempt) -> None:
            if not self.keeps_record or marker is None:
                return
            try:
                self._put(_record_key(part), marker, attempt)
            except Exception as error:
                if attempt.state == "sending":
                    raise  # nothing is begun that a later try would not know of
                # The outcome is known. To fail now would make it unclear.
                log.warning(
                    "Airflow's task state store failed (%s), so what became of the message is not "
                    "recorded: if the task runs again, it looks whether it was sent.",
                    type(error).__name__,
                )

        return keep

    def _put(self, key: str, marker: Marker, attempt: Attempt) -> None:
        # Airflow 3.3 has it, as it has the store.
        from airflow.sdk.execution_time.context import NEVER_EXPIRE  # noqa: PLC0415

        known = self._store.get(key)
        known = known if isinstance(known, Mapping) else {}
        value = {**known, marker.recipients: attempt.to_json()}
        self._store.set(key, value, retention=NEVER_EXPIRE)


def _record_key(part: int | str) -> str:
    return f"{RECORD_KEY}_{part}" if part != "" else RECORD_KEY


class _SendingOperator(BaseOperator):
    """What sending and forwarding share: HTML that templates fill safely, and one sending each."""

    html_fields: ClassVar[frozenset[str]] = frozenset()

    def _do_render_template_fields(
        self,
        parent: Any,
        template_fields: Iterable[str],
        context: Context,
        jinja_env: jinja2.Environment,
        seen_oids: set[int],
        **kwargs: Any,
    ) -> None:
        """Render the fields; in those that hold HTML, what templates put in is escaped."""
        fields = list(template_fields)
        html_env = jinja_env.overlay(autoescape=True)
        html_env.filters = {**jinja_env.filters, "html_table": html_table}
        for env, names in (
            (jinja_env, [name for name in fields if name not in self.html_fields]),
            (html_env, [name for name in fields if name in self.html_fields]),
        ):
            super()._do_render_template_fields(parent, names, context, env, seen_oids, **kwargs)


class R7MailSendOperator(_SendingOperator):
    """Send a message, once.

    Before it sends, it records that it is about to (Airflow 3.3 and later); a later try looks at
    the record first. Where it is unclear whether the message was sent, it looks into `sent_folder`
    for the marker that it put into the HTML: if it is there, it was sent; if it still is not after
    `settle_seconds`, it is sent again. Where nothing can tell, the task fails at once, without
    further tries, for a person to look (R23).

    Clearing the task does not send again what it has sent; `docs/en/sending.md` says how to.

    Returns `{"id": ..., "accepted": True}`. Accepted is not delivered (R11). No address, subject
    or text goes into logs or XCom.

    :param to: addresses, as text with commas or a list; `Name <name@example.org>` is taken
        (templated)
    :param subject: the subject, one line (templated)
    :param html_content: the body in HTML, or the path of an `.html` or `.txt` template; what a
        template puts in is escaped, but for `| safe` and `| html_table` (templated)
    :param text_content: the plain body, or the path of a template; made from the HTML if None
        (templated)
    :param cc: addresses, likewise (templated)
    :param bcc: addresses, likewise (templated)
    :param attachments: files in the server's Storage, as
        `{"Id", "FileId", "FileName", "Size", "MimeType"}`; the API has no upload (templated)
    :param draft_id: id of a draft that the message is made of; 0 for none (R10) (templated)
    :param links: links to put at the end: URLs, files in object storage as `s3://bucket/key` or
        `ObjectStoragePath`, or `{"url": ..., "name": ...}` (templated)
    :param link_seconds: how long links to object storage work, where the store can sign them; else
        the link is the file's plain URL, or its URI
    :param storage_conn_id: the object storage's Airflow connection; else the path's own (templated)
    :param sent_folder: the id or name of the folder where the server keeps what this account
        sends (templated)
    :param settle_seconds: how long a message may take to appear there (R11)
    :param dry_run: check everything, log the numbers, send nothing; returns
        `{"id": None, "accepted": False}`
    :param r7mail_conn_id: the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, the log-in was refused, or it is unclear
        whether the message was sent
    :raises R7MailSendUnsettledError: the same, as the Sent folder could not be read; a later try
        looks there first
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
        "links",
        "storage_conn_id",
        "sent_folder",
        "r7mail_conn_id",
    )
    template_ext: Sequence[str] = (".html", ".txt")
    template_fields_renderers: ClassVar[dict[str, str]] = {"html_content": "html"}
    html_fields: ClassVar[frozenset[str]] = frozenset({"html_content"})
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
        links: Iterable[Any] | str | None = None,
        link_seconds: int = LINK_SECONDS,
        storage_conn_id: str | None = None,
        sent_folder: int | str | None = None,
        settle_seconds: float = SETTLE_SECONDS,
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
        self.links = links
        self.link_seconds = link_seconds
        self.storage_conn_id = storage_conn_id
        self.sent_folder = sent_folder
        self.settle_seconds = settle_seconds
        self._dry_run = dry_run  # `dry_run` is a method of every operator
        self.r7mail_conn_id = r7mail_conn_id

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render a value; a name or URL ending in `.txt` or `.html` is no template's path."""
        if isinstance(content, Mapping):
            env = jinja_env or self.get_template_env()
            names = [
                name for name in ("FileName", "url", "name") if isinstance(content.get(name), str)
            ]
            rest = {name: value for name, value in content.items() if name not in names}
            rendered = super().render_template(rest, context, env, seen_oids)
            for name in names:
                rendered[name] = env.from_string(content[name]).render(**context)
            return rendered
        return super().render_template(content, context, jinja_env, seen_oids)

    @fail_at_once()
    def execute(self, context: Context) -> Accepted:
        """Send it, unless an earlier try has."""
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
            links=resolve_links(self.links, self.link_seconds, self.storage_conn_id),
        )
        body = call.body or {}
        numbers = [len(body[name]) for name in ("To", "Cc", "Bcc", "Attachments")]
        where = read_sent_folder(hook.settings, self.sent_folder, self.settle_seconds)
        tries = _Tries(context)
        marker = tries.marker(recipients_of(call))
        sending = Sending.of(call, marker, *where)
        if self._dry_run:
            self.log.info(
                "Dry run, nothing is sent: %d to, %d cc, %d bcc, %d attachments.", *numbers
            )
            return {"id": None, "accepted": False}
        with hook.get_conn() as client:
            sent = send_once(
                client, sending, earlier=tries.earlier(marker), record=tries.record(marker)
            )
        if sent.before:
            self.log.info("An earlier try had sent it, as message %s: not sent again.", sent.id)
        else:
            self.log.info(
                "The server accepted message %s: %d to, %d cc, %d bcc, %d attachments. "
                "That is not yet delivery.",
                sent.id,
                *numbers,
            )
        return {"id": sent.id, "accepted": True}


class R7MailForwardOperator(_SendingOperator):
    """Forward messages of a folder, each as a message of its own: mass forwarding.

    The attachments are forwarded by reference: nothing is downloaded. Everything is checked
    before the first message is sent. Each is sent once, as `R7MailSendOperator` sends: a later
    try forwards only those that were not. Without a record of the tries (Airflow before 3.3) and
    without `sent_folder`, the task fails at once if one fails after others were sent; the error
    names the ids that were forwarded.

    Returns a list of `{"message_id", "id", "accepted"}`, one a message.

    :param folder: the folder's id, or its name in the connection's `folders` (templated)
    :param message_ids: the messages' ids: a list, an XCom of one, or JSON text; none is fine
        (templated)
    :param to: addresses, as text with commas or a list (templated)
    :param comment_html: HTML to stand above each forwarded message; what a template puts in is
        escaped, but for `| safe` (templated)
    :param sent_folder: the id or name of the folder where the server keeps what this account
        sends (templated)
    :param settle_seconds: how long a message may take to appear there (R11)
    :param dry_run: check everything, log the ids, send nothing; returns `accepted` as False
    :param r7mail_conn_id: the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, an id is not in the folder, the log-in was
        refused, or it is unclear whether a message was sent
    :raises R7MailAttachmentError: the listing does not name a message's files (R17); nothing was
        sent
    :raises R7MailRequestError: some may have been sent; a later try sends the others
    """

    template_fields: Sequence[str] = (
        "folder",
        "message_ids",
        "to",
        "comment_html",
        "sent_folder",
        "r7mail_conn_id",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"comment_html": "html"}
    html_fields: ClassVar[frozenset[str]] = frozenset({"comment_html"})
    ui_color = "#e6eef8"
    operator_extra_links = (R7MailFolderLink(),)

    def __init__(
        self,
        *,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        to: str | Iterable[str],
        comment_html: str = "",
        sent_folder: int | str | None = None,
        settle_seconds: float = SETTLE_SECONDS,
        dry_run: bool = False,
        r7mail_conn_id: str = R7MailHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.folder = folder
        self.message_ids = message_ids
        self.to = to
        self.comment_html = comment_html
        self.sent_folder = sent_folder
        self.settle_seconds = settle_seconds
        self._dry_run = dry_run
        self.r7mail_conn_id = r7mail_conn_id

    @fail_at_once()
    def execute(self, context: Context) -> list[Forwarded]:
        """Find all the messages, then forward those that are not, in the order of `message_ids`."""
        ids = parse_ids(self.message_ids, "message_ids")
        if not ids:
            self.log.info("There are no messages to forward.")
            return []
        hook = R7MailHook(self.r7mail_conn_id)
        folder = hook.resolve_folder(self.folder)
        R7MailFolderLink.push(context, hook.settings.folder_url(folder))
        recipients = parse_addresses(self.to, "to")
        where = read_sent_folder(hook.settings, self.sent_folder, self.settle_seconds)
        tries = _Tries(context)
        markers = {number: tries.marker(recipients, number) for number in ids}
        earlier = {number: tries.earlier(markers[number], number) for number in ids}
        forwarded: dict[int, Forwarded] = {
            number: {"message_id": number, "id": attempt.id, "accepted": True}
            for number, attempt in earlier.items()
            if attempt is not None and attempt.state == "sent"
        }
        rest = [number for number in ids if number not in forwarded]
        if forwarded:
            self.log.info("Earlier tries have forwarded %d messages.", len(forwarded))
        progress = Progress(self.log.info, len(rest))
        with hook.get_conn() as client:
            # All of them are made before the first is sent: what is wrong shows early.
            sendings = {
                message.id: Sending.of(
                    hook.message_call(
                        recipients,
                        forward_subject(message),
                        forward_html(message, self.comment_html or ""),
                        attachments=_files_of(message),
                    ),
                    markers[message.id],
                    *where,
                )
                for message in _find(client, folder, rest)
            }
            if self._dry_run:
                numbers = rest, len(recipients)
                self.log.info("Dry run, nothing is sent: messages %s, %d to.", *numbers)
                return [{"message_id": number, "id": None, "accepted": False} for number in ids]
            for number in rest:
                try:
                    sent = send_once(
                        client,
                        sendings[number],
                        earlier=earlier[number],
                        record=tries.record(markers[number], number),
                    )
                except R7MailRequestError as error:
                    safe = tries.keeps_record or where[0] is not None
                    raise _half_way(error, number, list(forwarded), safe) from error
                forwarded[number] = {"message_id": number, "id": sent.id, "accepted": True}
                progress.add()
        self.log.info("The server accepted %d messages. That is not yet delivery.", len(ids))
        return [forwarded[number] for number in ids]


def _half_way(error: R7MailRequestError, number: int, done: Sequence[int], safe: bool) -> Exception:
    """The error for forwarding that failed at a message.

    :param safe: whether a later try knows what was sent
    """
    before = f"forwarded before: {done}" if done else "none was forwarded before"
    complete = error.but(reason=f"{error.reason}, for message {number}; {before}")
    if safe or not done or isinstance(error, R7MailSendUnclearError):
        return complete
    return AirflowFailException(
        f"{complete} A new try would send those again. Forward the others in a new run; give "
        "sent_folder to have this done for you."
    )


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
            f"Not in folder {folder}: messages {list(missing)}. This try sent nothing. Were they "
            "moved or deleted? An id belongs to the folder that it was read from."
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
                "can't be forwarded whole. This try sent nothing."
            )
        return []
    try:
        return [
            Attachment.for_send(attachment, position)
            for position, attachment in enumerate(message.attachments)
        ]
    except R7MailConfigError as error:
        raise R7MailAttachmentError(
            f"Message {message.id} can't be forwarded whole: {error.text} This try sent nothing."
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
    operator_extra_links = (R7MailFolderLink(),)

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
        hook = R7MailHook(self.r7mail_conn_id)
        R7MailFolderLink.push(context, hook.settings.folder_url(hook.resolve_folder(self.folder)))
        count = self._act(hook, ids, tried_before)
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


class R7MailCheckOperator(BaseOperator):
    """Find out what the server does where the API's manual leaves it open: a scheduled self-test.

    Reads only, with some dozens of requests; see `check.check_server`. Returns the report as JSON:
    it has no mail in it, and no names, addresses or tokens. It is in XCom also when the task fails
    for what it says.

    :param folder: the folder to read, best one with mail of different days, and with files: its
        id, or its name in the connection's `folders` (templated)
    :param fail_on_warning: fail for warnings as well: for what will not work as hoped although
        the server keeps to the API's contract
    :param r7mail_conn_id: the Airflow connection (templated)
    :raises AirflowFailException: the server does what the contract rules out, or there are
        warnings and `fail_on_warning` is set; a parameter is wrong, or the log-in was refused
    :raises R7MailRequestError: the server could not be reached, or the folder not be read
    """

    template_fields: Sequence[str] = ("folder", "r7mail_conn_id")
    ui_color = "#e6eef8"

    def __init__(
        self,
        *,
        folder: int | str,
        fail_on_warning: bool = False,
        r7mail_conn_id: str = R7MailHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.folder = folder
        self.fail_on_warning = fail_on_warning
        self.r7mail_conn_id = r7mail_conn_id

    @fail_at_once()
    def execute(self, context: Context) -> dict[str, Any]:
        """Check the server."""
        # Few DAGs check: this is not for every DAG file to load.
        from airflow_provider_r7mail.check import check_server  # noqa: PLC0415

        hook = R7MailHook(self.r7mail_conn_id)
        folder = hook.resolve_folder(self.folder)
        with hook.get_conn() as client:
            report = check_server(client, folder)
        for finding in report.findings:
            self.log.info("%s %s: %s", finding.level, finding.title, finding.says)
        found = report.as_dict()
        bad = report.of_level("outside")
        if self.fail_on_warning:
            bad += report.of_level("warning")
        if bad:
            if "ti" in context:
                context["ti"].xcom_push(key="return_value", value=found)
            raise AirflowFailException(
                f"The server is not as it should be ({report.result}). "
                + " ".join(f"{finding.title}: {finding.says}." for finding in bad)
                + " The report is in XCom; `r7mail check` shows more."
            )
        self.log.info("The server was checked: %s.", report.result)
        return found
