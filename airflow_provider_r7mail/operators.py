"""Operators that act on mail: send, forward, mark, move, delete; and one that checks the server."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from airflow_provider_r7mail.client.acting import MOVE_SECONDS
from airflow_provider_r7mail.client.compose import (
    LINK_SECONDS,
    compose_message,
    html_table,
    parse_addresses,
    resolve_links,
)
from airflow_provider_r7mail.client.forwarding import find_messages, forward
from airflow_provider_r7mail.client.marker import recipients_of
from airflow_provider_r7mail.client.models import parse_ids
from airflow_provider_r7mail.client.parameters import read_text
from airflow_provider_r7mail.client.progress import Progress
from airflow_provider_r7mail.client.sending import SETTLE_SECONDS, Sending, send_once
from airflow_provider_r7mail.compat import AirflowFailException, BaseOperator
from airflow_provider_r7mail.exceptions import R7MailRequestError, R7MailSendUnclearError
from airflow_provider_r7mail.failures import fail_at_once
from airflow_provider_r7mail.files import AfterSending, find_uploads, open_storage
from airflow_provider_r7mail.hooks import Accepted, R7MailHook
from airflow_provider_r7mail.links import R7MailFolderLink
from airflow_provider_r7mail.maintenance import (  # users import them from here
    R7MailAuditOperator as R7MailAuditOperator,  # noqa: PLC0414
)
from airflow_provider_r7mail.maintenance import (
    R7MailCompactOperator as R7MailCompactOperator,  # noqa: PLC0414
)
from airflow_provider_r7mail.template_files import TemplateFiles
from airflow_provider_r7mail.tries import Tries, is_retry

if TYPE_CHECKING:
    import jinja2
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_r7mail.compat import Context


class Forwarded(TypedDict):
    """The outcome for one message.

    :param message_id: id of the message that was forwarded
    :param id: the server's id of the new message
    :param accepted: the server accepted the new message, which doesn't mean that it was delivered
        (R11)
    """

    message_id: int
    id: int | None
    accepted: bool


class _SendingOperator(TemplateFiles, BaseOperator):
    """Base of the operators that send: escapes what templates put into HTML fields."""

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
        """Render the fields; values that templates put into HTML fields are escaped."""
        fields = list(template_fields)
        html_env = jinja_env.overlay(autoescape=True)
        html_env.filters = {**jinja_env.filters, "html_table": html_table}
        for env, names in (
            (jinja_env, [name for name in fields if name not in self.html_fields]),
            (html_env, [name for name in fields if name in self.html_fields]),
        ):
            super()._do_render_template_fields(parent, names, context, env, seen_oids, **kwargs)


class R7MailSendOperator(_SendingOperator):
    """Send a message once.

    With Airflow 3.3 and later, the task records that it is about to send, and a later try checks
    that record first. If it is unclear whether the message was sent, the task looks in
    `sent_folder` for the marker that it put into the HTML. If the marker is there, the message was
    sent; if it is still missing after `settle_seconds`, the message is sent again. If nothing can
    tell, the task fails without further tries, and a person has to look (R23).

    Clearing the task does not send the message again; `docs/en/sending.md` explains how to do that.

    Returns `{"id": ..., "accepted": True}`: accepted by the server, not yet delivered (R11). No
    address, subject or text appears in logs or XCom.

    :param to: addresses: a list, or text with commas; `Name <name@example.org>` is accepted
        (templated)
    :param subject: the subject, one line (templated)
    :param html_content: the body in HTML, or the path of an `.html` or `.txt` template. Values are
        escaped, except with `| safe` and `| html_table` (templated)
    :param text_content: the plain-text body, or the path of a template; made from the HTML if None
        (templated)
    :param cc: addresses, like `to` (templated)
    :param bcc: addresses, like `to` (templated)
    :param attachments: files in the server's Storage, each as
        `{"Id", "FileId", "FileName", "Size", "MimeType"}` (templated)
    :param files: files to upload to the server's Disk and to attach: absolute paths, URLs that
        `ObjectStoragePath` supports, or path objects; one, a list, or a task's output (templated)
    :param after_sending: `keep` keeps the uploaded files on the Disk, `delete` deletes them
    :param draft_id: id of the draft to send; 0 for none (R10) (templated)
    :param links: links to add at the end: URLs, files in object storage as `s3://bucket/key` or
        `ObjectStoragePath`, or `{"url": ..., "name": ...}` (templated)
    :param link_seconds: how long links to object storage work, in seconds, if the store can sign
        them; otherwise the link is the file's plain URL, or its URI
    :param storage_conn_id: Airflow connection of the object storage; by default the one in the URL
        (templated)
    :param sent_folder: id or name of the folder where the server keeps this account's sent mail
        (templated)
    :param settle_seconds: how long, in seconds, a message may take to appear there (R11)
    :param dry_run: check everything, log the counts, and send nothing; returns
        `{"id": None, "accepted": False}`
    :param r7mail_conn_id: id of the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, the login was refused, or it is unclear
        whether the message was sent
    :raises R7MailSendUnsettledError: it is unclear whether the message was sent, and the Sent
        folder couldn't be read; the next try looks there first
    :raises R7MailAttachmentError: a file is missing, unreadable or empty; nothing was sent
    :raises R7MailRequestError: the message was not sent; another try may succeed
    """

    template_fields: Sequence[str] = (
        "to",
        "subject",
        "html_content",
        "text_content",
        "cc",
        "bcc",
        "attachments",
        "files",
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
    _urls: Sequence[str] = ()  # of the files, once `execute` knows them

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
        files: Any = None,
        after_sending: AfterSending = "keep",
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
        self.files = files
        self.after_sending = after_sending
        self.draft_id = draft_id
        self.links = links
        self.link_seconds = link_seconds
        self.storage_conn_id = storage_conn_id
        self.sent_folder = sent_folder
        self.settle_seconds = settle_seconds
        self._dry_run = dry_run  # `dry_run` is a method of every operator
        self.r7mail_conn_id = r7mail_conn_id

    @fail_at_once()
    def execute(self, context: Context) -> Accepted:
        """Send the message, unless an earlier try has sent it."""
        hook = R7MailHook(self.r7mail_conn_id)
        storage_conn_id = read_text(self.storage_conn_id, "storage_conn_id")
        call = compose_message(
            self.to,
            self.subject,
            self.html_content,
            text_content=self.text_content,
            cc=self.cc,
            bcc=self.bcc,
            attachments=self.attachments,
            draft_id=self.draft_id,
            links=resolve_links(
                self.links,
                self.link_seconds,
                partial(open_storage, conn_id=storage_conn_id),
            ),
        )
        uploads = find_uploads(self.files, self.after_sending, hook.settings, storage_conn_id)
        self._urls = [source.where for source in uploads.sources]
        body = call.body or {}
        numbers = [len(body[name]) for name in ("To", "Cc", "Bcc", "Attachments")]
        numbers[-1] += len(uploads.sources)
        where = hook.settings.resolve_sent_folder(self.sent_folder, self.settle_seconds)
        tries = Tries(context)
        marker = tries.marker(recipients_of(call))
        sending = Sending.of(call, marker, *where, uploads)
        if self._dry_run:
            for source in uploads.sources:
                source.measure()
            self.log.info(
                "Dry run, nothing is sent: %d to, %d cc, %d bcc, attachments: %d.", *numbers
            )
            return {"id": None, "accepted": False}
        with hook.get_conn() as client:
            sent = send_once(
                client, sending, earlier=tries.earlier(marker), record=tries.record(marker)
            )
        if sent.before:
            self.log.info("An earlier try sent it as message %s: not sent again.", sent.id)
        else:
            self.log.info(
                "The server accepted message %s: %d to, %d cc, %d bcc, attachments: %d. It may not "
                "be delivered yet.",
                sent.id,
                *numbers,
            )
        return {"id": sent.id, "accepted": True}

    def get_openlineage_facets_on_complete(
        self, task_instance: Any
    ) -> OperatorLineage[Any, Any] | None:
        """Return the files, for OpenLineage; after a failure, as far as they are known."""
        from airflow_provider_r7mail.lineage import files_read  # noqa: PLC0415 - storage layers

        return files_read(self._urls) if self._urls else None


class R7MailForwardOperator(_SendingOperator):
    """Forward messages of a folder, each as a separate message.

    Attachments are forwarded by reference: nothing is downloaded. Everything is checked before
    the first message is sent. Each message is sent once, as with `R7MailSendOperator`: a later try
    only forwards those that were not forwarded. Without records of the tries (Airflow before 3.3)
    and without `sent_folder`, the task fails without further tries if a message fails after others
    were sent; the error lists the ids of those.

    Returns a list with one `{"message_id", "id", "accepted"}` per message.

    :param folder: the folder's id, or its name in the connection's `folders` (templated)
    :param message_ids: the messages' ids: a list, a task's output, or a list in JSON text; an
        empty list does nothing (templated)
    :param to: addresses: a list, or text with commas (templated)
    :param comment_html: HTML to put above each forwarded message. Values are escaped, except with
        `| safe` (templated)
    :param sent_folder: id or name of the folder where the server keeps this account's sent mail
        (templated)
    :param settle_seconds: how long, in seconds, a message may take to appear there (R11)
    :param dry_run: check everything, log the ids, and send nothing; `accepted` is False in the
        result
    :param r7mail_conn_id: id of the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, an id is not in the folder, the login was
        refused, or it is unclear whether a message was sent
    :raises R7MailAttachmentError: the listing does not name a message's files (R17); nothing was
        sent
    :raises R7MailRequestError: some messages may have been forwarded; a later try forwards the
        others
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
        """Find all messages, then forward those not yet forwarded, in the order given."""
        ids = parse_ids(self.message_ids, "message_ids")
        if not ids:
            self.log.info("No messages given: nothing to forward.")
            return []
        hook = R7MailHook(self.r7mail_conn_id)
        folder = hook.resolve_folder(self.folder)
        R7MailFolderLink.push(context, hook.settings.folder_url(folder))
        recipients = parse_addresses(self.to, "to")
        where = hook.settings.resolve_sent_folder(self.sent_folder, self.settle_seconds)
        tries = Tries(context)
        markers = {number: tries.marker(recipients, number) for number in ids}
        earlier = {number: tries.earlier(markers[number], number) for number in ids}
        forwarded: dict[int, Forwarded] = {
            number: {"message_id": number, "id": attempt.id, "accepted": True}
            for number, attempt in earlier.items()
            if attempt is not None and attempt.state == "sent"
        }
        rest = [number for number in ids if number not in forwarded]
        if forwarded:
            self.log.info("Earlier tries forwarded %d of the messages.", len(forwarded))
        progress = Progress(self.log.info, len(rest))
        with hook.get_conn() as client:
            # All calls are made before the first is sent, so that mistakes show up early.
            sendings = {
                message.id: Sending.of(
                    forward(message, recipients, self.comment_html),
                    markers[message.id],
                    *where,
                )
                for message in find_messages(client, folder, rest)
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
        self.log.info("Accepted messages: %d. They may not be delivered yet.", len(ids))
        return [forwarded[number] for number in ids]


def _half_way(error: R7MailRequestError, number: int, done: Sequence[int], safe: bool) -> Exception:
    """Make the error for a message that failed after others were forwarded.

    :param safe: whether a later try can tell what was forwarded
    """
    before = f"forwarded before: {done}" if done else "none was forwarded before"
    complete = error.but(reason=f"{error.reason}, for message {number}; {before}")
    if safe or not done or isinstance(error, R7MailSendUnclearError):
        return complete
    return AirflowFailException(
        f"{complete} Another try would send those again. Forward the others in a new run. With "
        "sent_folder, a later try finds out what was sent and continues."
    )


class _MessagesOperator(BaseOperator):
    """Base of the operators that do one thing to messages of a folder and return their number."""

    template_fields: Sequence[str] = ("folder", "message_ids", "r7mail_conn_id")
    ui_color = "#e6eef8"
    operator_extra_links = (R7MailFolderLink(),)
    return_new_ids = False

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
    def execute(self, context: Context) -> int | list[int]:
        """Act on the messages, and return their number, or their new ids if that is asked for."""
        ids = parse_ids(self.message_ids, "message_ids")
        if not ids:
            self.log.info("No messages given: nothing to do.")
            return [] if self.return_new_ids else 0
        hook = R7MailHook(self.r7mail_conn_id)
        R7MailFolderLink.push(context, hook.settings.folder_url(hook.resolve_folder(self.folder)))
        done = self._act(hook, ids, is_retry(context))
        self.log.info("Messages done: %d.", len(ids))
        return done

    @abstractmethod
    def _act(self, hook: R7MailHook, ids: Sequence[int], tried_before: bool) -> int | list[int]: ...


class R7MailMarkReadOperator(_MessagesOperator):
    """Mark messages as read or unread.

    Returns the number of messages.

    :param folder: the folder's id, or its name in the connection's `folders` (templated)
    :param message_ids: the messages' ids: a list, a task's output, or a list in JSON text; an
        empty list does nothing (templated)
    :param read: False to mark them as unread
    :param r7mail_conn_id: id of the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, or the login was refused
    :raises R7MailActionError: the server did not do it (R15)
    :raises R7MailRequestError: the server failed or could not be reached
    """

    def __init__(self, *, read: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.read = read

    def _act(self, hook: R7MailHook, ids: Sequence[int], tried_before: bool) -> int:
        return hook.mark_as_read(self.folder, ids, self.read)


class R7MailMarkImportantOperator(_MessagesOperator):
    """Mark messages as important or not important.

    Returns the number of messages.

    :param folder: the folder's id, or its name in the connection's `folders` (templated)
    :param message_ids: the messages' ids: a list, a task's output, or a list in JSON text; an
        empty list does nothing (templated)
    :param important: False to remove the mark
    :param r7mail_conn_id: id of the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, or the login was refused
    :raises R7MailActionError: the server did not do it (R15)
    :raises R7MailRequestError: the server failed or could not be reached
    """

    def __init__(self, *, important: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.important = important

    def _act(self, hook: R7MailHook, ids: Sequence[int], tried_before: bool) -> int:
        return hook.mark_as_important(self.folder, ids, self.important)


class R7MailMoveOperator(_MessagesOperator):
    """Move messages to another folder.

    If the server refuses a repeated call but none of the messages is in `folder` any more, an
    earlier attempt succeeded, and so does the task (R23). If it refuses the first call, and the
    folder doesn't have all of the messages, the task fails without another try.

    Returns the number of messages; with `return_new_ids`, the list of the ids that they have in the
    target, in the order given. A move may give them new ids, at once or later (R35), so that tasks
    after this one don't find them by the old ones.

    :param folder: the folder's id, or its name in the connection's `folders` (templated)
    :param message_ids: the messages' ids: a list, a task's output, or a list in JSON text; an
        empty list does nothing (templated)
    :param to_folder: the target folder's id or name (templated)
    :param return_new_ids: look for the messages in the target, and return their ids
    :param settle_seconds: how long, in seconds, the server may take to give them new ids. If the
        ids stay the same, the task takes that long
    :param r7mail_conn_id: id of the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, or the login was refused
    :raises R7MailActionError: the server did not do it (R15)
    :raises R7MailRequestError: the server failed or could not be reached
    """

    template_fields: Sequence[str] = (*_MessagesOperator.template_fields, "to_folder")

    def __init__(
        self,
        *,
        to_folder: int | str,
        return_new_ids: bool = False,
        settle_seconds: float = MOVE_SECONDS,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.to_folder = to_folder
        self.return_new_ids = return_new_ids
        self.settle_seconds = settle_seconds

    def _act(self, hook: R7MailHook, ids: Sequence[int], tried_before: bool) -> int | list[int]:
        if not self.return_new_ids:
            return hook.move_messages(self.folder, ids, self.to_folder, tried_before=tried_before)
        return hook.move_messages(
            self.folder,
            ids,
            self.to_folder,
            tried_before=tried_before,
            return_new_ids=True,
            settle_seconds=self.settle_seconds,
        )


class R7MailDeleteOperator(_MessagesOperator):
    """Delete messages.

    If the server refuses a repeated call but none of the messages is in `folder` any more, an
    earlier attempt succeeded, and so does the task (R23). If it refuses the first call, and the
    folder doesn't have all of the messages, the task fails without another try.

    Returns the number of messages.

    :param folder: the folder's id, or its name in the connection's `folders` (templated)
    :param message_ids: the messages' ids: a list, a task's output, or a list in JSON text; an
        empty list does nothing (templated)
    :param r7mail_conn_id: id of the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, or the login was refused
    :raises R7MailActionError: the server did not do it (R15)
    :raises R7MailRequestError: the server failed or could not be reached
    """

    def _act(self, hook: R7MailHook, ids: Sequence[int], tried_before: bool) -> int:
        return hook.delete_messages(self.folder, ids, tried_before=tried_before)


class R7MailCheckOperator(BaseOperator):
    """Find out how the server behaves where the API's manual leaves it open.

    Only reads, with a few dozen requests. Returns the report as JSON, without mail, names,
    addresses or tokens. The report is in XCom even if the task fails because of it.

    :param folder: id of the folder to read, or its name in the connection's `folders`. A folder
        with attachments and mail from several days tells most (templated)
    :param fail_on_warning: also fail on warnings: the server keeps to the API's contract, but
        something won't work as expected
    :param r7mail_conn_id: id of the Airflow connection (templated)
    :raises AirflowFailException: the server violates the contract, or there are warnings and
        `fail_on_warning` is set; a parameter is wrong, or the login was refused
    :raises R7MailRequestError: the server could not be reached, or the folder could not be read
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
        # Few DAGs check the server: don't load this for every DAG file.
        from airflow_provider_r7mail.client.check import check_server  # noqa: PLC0415

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
                f"The server does not behave as it should ({report.result}). "
                + " ".join(f"{finding.title}: {finding.says}." for finding in bad)
                + " The full report is in XCom; `r7mail check` shows more."
            )
        self.log.info("The server was checked: %s.", report.result)
        return found
