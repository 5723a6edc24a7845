"""Airflow's connection turned into a client, and the mail server's actions as methods.

Everything else that faces Airflow goes through `R7MailHook`.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict, Unpack
from urllib.parse import unquote, urlsplit

from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowNotFoundException,
    BaseHook,
)
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

from airflow_provider_r7mail import get_provider_info
from airflow_provider_r7mail.client import calls
from airflow_provider_r7mail.client.check.trial import Trial
from airflow_provider_r7mail.client.compose import (
    _LINE_BREAK,
    Link,
    _text_of,
    add_links,
    parse_addresses,
)
from airflow_provider_r7mail.client.models import (
    Attachment,
    Message,
    MessageFilter,
    mend_text,
    parse_ids,
)
from airflow_provider_r7mail.client.reader import iter_messages
from airflow_provider_r7mail.client.sending import SETTLE_SECONDS, Sending, asend_once, send_once
from airflow_provider_r7mail.client.session import AsyncClient, Client
from airflow_provider_r7mail.connection import (
    Settings,
    amask,
    config_from_connection,
    folder_id,
    mask,
    secret_forms,
    secrets_of,
)
from airflow_provider_r7mail.exceptions import (
    R7MailActionError,
    R7MailAuthError,
    R7MailConfigError,
    R7MailMessageNotFoundError,
    R7MailRequestError,
    R7MailSendUnclearError,
    R7MailSendUnsettledError,
    R7MailServerError,
)
from airflow_provider_r7mail.filters import Filters

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from upath import UPath

    from airflow_provider_r7mail.lake.attachments import StoredFile


BATCH_SIZE = 500
"""Ids in one MarkAsRead, MarkAsFavorite, Delete or MoveMessage."""

PROGRESS_SECONDS = 5.0
LINK_SECONDS = 7 * 24 * 3600
"""How long the links in a message work, where the store can sign them: S3's longest."""

TEST_SECONDS = 4.5
"""The most that `test_connection` takes."""

UNMENDABLE = (
    R7MailConfigError,
    R7MailAuthError,
    R7MailSendUnclearError,
    R7MailMessageNotFoundError,
)
"""Errors that a later try of the task meets again, or must not try: it fails at once."""


class Accepted(TypedDict):
    """What is known of a sent message: the server's id, and that it was accepted (R11)."""

    id: int | None
    accepted: bool


@contextmanager
def fail_at_once() -> Iterator[None]:
    """Fail the task without further tries for errors that trying again can't mend.

    Also a decorator: `@fail_at_once()`.

    :raises AirflowFailException: in place of an error in `UNMENDABLE`, with its message
    """
    try:
        yield
    except R7MailSendUnsettledError:
        raise  # a later try looks first
    except UNMENDABLE as error:
        raise AirflowFailException(str(error)) from error


class R7MailHook(BaseHook):
    """Reads and acts on an R7-Office mailbox, through its REST API.

    Each method opens one session of the server (one log-in), and closes it. For several calls
    in one session use `get_conn`.

    :param r7mail_conn_id: the Airflow connection, of type `r7mail`
    """

    conn_name_attr = "r7mail_conn_id"
    default_conn_name = "r7mail_default"
    conn_type = "r7mail"
    hook_name = "R7-Office Mail"

    def __init__(self, r7mail_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.r7mail_conn_id = r7mail_conn_id
        self._masking: set[asyncio.Task[None]] = set()

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Fields of the connection's form, for Airflow before 3.2 (later: `conn-fields`)."""
        # Only the web server of Airflow 2 has these.
        from flask_appbuilder import fieldwidgets  # noqa: PLC0415
        from wtforms import StringField  # noqa: PLC0415

        widgets = {
            # Hidden on the screen only: what the form does not hold is lost when it is saved.
            "password": fieldwidgets.BS3PasswordFieldWidget(hide_value=False),
            None: fieldwidgets.BS3TextFieldWidget(),
        }
        return {
            name: StringField(
                described["label"],
                description=described["description"],
                widget=widgets[described["schema"].get("format")],
            )
            for name, described in _form()["conn-fields"].items()
        }

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Labels of the connection's form, for Airflow before 3.2."""
        return {
            name.replace("-", "_"): value for name, value in _form()["ui-field-behaviour"].items()
        }

    @cached_property
    def settings(self) -> Settings:
        """What the connection says; its secrets are masked in logs from now on.

        :raises R7MailConfigError: there is no such connection, or a field is missing or wrong
        """
        try:
            connection = self.get_connection(self.r7mail_conn_id)
        except AirflowNotFoundException as error:
            raise self._no_connection() from error
        settings = config_from_connection(connection)
        mask(secrets_of(settings))
        return settings

    async def _asettings(self) -> Settings:
        if "settings" not in self.__dict__:
            try:
                connection = await get_async_connection(self.r7mail_conn_id, hook=self)
            except AirflowNotFoundException as error:
                raise self._no_connection() from error
            settings = config_from_connection(connection)
            await amask(secrets_of(settings))
            self.__dict__["settings"] = settings  # where cached_property keeps it
        return self.settings

    def _no_connection(self) -> R7MailConfigError:
        return R7MailConfigError(
            f"There is no Airflow connection {self.r7mail_conn_id!r}. Add one of type "
            f"{self.conn_type!r} with Host, Login and Password, or give another r7mail_conn_id."
        )

    def get_conn(self) -> Client:
        """Make a client, to be used as a context manager: `with hook.get_conn() as client:`.

        :raises R7MailConfigError: there is no such connection, or a field is missing or wrong
        """
        return Client(self.settings.client, on_token=lambda token: mask(secret_forms(token)))

    async def aget_conn(self) -> AsyncClient:
        """Make an async client: `async with await hook.aget_conn() as client:`.

        :raises R7MailConfigError: there is no such connection, or a field is missing or wrong
        """
        settings = await self._asettings()
        return AsyncClient(settings.client, on_token=self._mask_later)

    def _mask_later(self, token: str) -> None:
        # On the event loop masking must be awaited, which the client's callback cannot do.
        task = asyncio.get_running_loop().create_task(amask(secret_forms(token)))
        self._masking.add(task)
        task.add_done_callback(self._masking.discard)

    def resolve_folder(self, folder: int | str, name: str = "folder") -> int:
        """Tell a folder's id.

        :param folder: an id (24 or "24"), or a name from the connection's `folders`
        :param name: the parameter's name, for the error
        :raises R7MailConfigError: neither an id nor a known name; the error lists the known ones
        """
        number = folder_id(folder)
        return self.settings.resolve_folder(folder, name) if number is None else number

    def test_connection(self) -> tuple[bool, str]:
        """Log in and read one message of the first of `folders`: Airflow's Test button.

        Tries once, and answers within 5 seconds whatever the server does.

        :return: whether it worked, and in words what did or did not
        """
        try:
            settings = self.settings
        except R7MailConfigError as error:
            return False, str(error)
        trial = Trial(
            settings.client,
            next(iter(settings.folders.items()), None),
            on_token=lambda token: mask(secret_forms(token)),
        )
        result: Future[tuple[bool, str]] = Future()

        def work() -> None:
            try:
                result.set_result(trial.run())
            except BaseException as error:
                result.set_exception(error)

        # A name server that is silent, and an answer that comes in drops, end by no time-out of
        # the HTTP library: they are left behind.
        threading.Thread(target=work, daemon=True).start()
        try:
            return result.result(TEST_SECONDS)
        except TimeoutError:
            return False, trial.failed(
                f"no whole answer in {TEST_SECONDS:g} seconds",
                "Check Host, Port, Schema and proxy of the connection, and the name servers.",
            )

    def send_message(
        self,
        to: str | Iterable[str],
        subject: str,
        html_content: str,
        *,
        text_content: str | None = None,
        cc: str | Iterable[str] | None = None,
        bcc: str | Iterable[str] | None = None,
        attachments: Iterable[Attachment | Mapping[str, Any]] | None = None,
        draft_id: int | str = 0,
        links: Iterable[Any] | None = None,
        link_seconds: int = LINK_SECONDS,
        sent_folder: int | str | None = None,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> Accepted:
        """Send a message, once: it is never repeated where that might send it twice (R23).

        With `sent_folder`, an unclear outcome is settled by looking there. What this method can't
        know is what earlier tries of a task did: there, use `R7MailSendOperator`.

        :param to: addresses, as text with commas or a list; `Name <name@example.org>` is taken
        :param subject: the subject, one line
        :param html_content: the body in HTML
        :param text_content: the plain body; made from the HTML if None
        :param cc: addresses, likewise
        :param bcc: addresses, likewise
        :param attachments: files in the server's Storage, as
            `{"Id", "FileId", "FileName", "Size", "MimeType"}`
        :param draft_id: id of a draft that this message is made of; 0 for none (R10)
        :param links: links to put at the end; see `resolve_links`
        :param link_seconds: how long they work, where the store can sign them
        :param sent_folder: the Sent folder's id or name, None if it is not known
        :param settle_seconds: how long a message may take to appear there
        :return: the server's id, and `accepted`: taken by the server, not yet delivered (R11)
        :raises R7MailConfigError: a parameter is wrong; nothing was sent
        :raises R7MailSendUnclearError: it is unclear whether it was sent
        :raises R7MailRequestError: it was not sent
        """
        call = self.message_call(
            to,
            subject,
            html_content,
            text_content=text_content,
            cc=cc,
            bcc=bcc,
            attachments=attachments,
            draft_id=draft_id,
            links=resolve_links(links, link_seconds),
        )
        where = read_sent_folder(self.settings, sent_folder, settle_seconds)
        with self.get_conn() as client:
            sent = send_once(client, Sending.of(call, None, *where))
        return {"id": sent.id, "accepted": True}

    async def asend_message(
        self,
        to: str | Iterable[str],
        subject: str,
        html_content: str,
        *,
        text_content: str | None = None,
        cc: str | Iterable[str] | None = None,
        bcc: str | Iterable[str] | None = None,
        sent_folder: int | str | None = None,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> Accepted:
        """Send a message, once, on an event loop; see `send_message`."""
        # To make the text of a long report takes its time: not on a triggerer's event loop.
        call = await asyncio.to_thread(
            self.message_call, to, subject, html_content, text_content=text_content, cc=cc, bcc=bcc
        )
        where = read_sent_folder(await self._asettings(), sent_folder, settle_seconds)
        async with await self.aget_conn() as client:
            sent = await asend_once(client, Sending.of(call, None, *where))
        return {"id": sent.id, "accepted": True}

    @staticmethod
    def message_call(
        to: str | Iterable[str],
        subject: str,
        html_content: str,
        *,
        text_content: str | None = None,
        cc: str | Iterable[str] | None = None,
        bcc: str | Iterable[str] | None = None,
        attachments: Iterable[Attachment | Mapping[str, Any]] | None = None,
        draft_id: int | str = 0,
        links: Sequence[Link] = (),
    ) -> calls.Call[Message]:
        """Check a message, and make the call that sends it. No I/O; see `send_message`.

        :param links: links to put at the end, resolved
        :raises R7MailConfigError: a parameter is wrong
        """
        recipients = parse_addresses(to, "to")
        if not recipients:
            raise R7MailConfigError("to: no address. Give one, several with commas, or a list.")
        if not isinstance(subject, str) or _LINE_BREAK.search(subject):
            raise R7MailConfigError("subject: expected one line of text, without line breaks.")
        if not isinstance(html_content, str):
            raise R7MailConfigError(
                f"html_content: expected text, got {type(html_content).__name__}."
            )
        number = folder_id(draft_id)
        if number is None or number < 0:
            raise R7MailConfigError("draft_id: expected a draft's id, or 0 for none.")
        if attachments is not None and isinstance(attachments, (str, bytes, Mapping)):
            attachments = [attachments]
        text = _text_of(html_content) if text_content is None else text_content
        html, text = add_links(html_content, text, links)
        return calls.send_message(
            subject=subject,
            text=text,
            html=html,
            to=recipients,
            cc=parse_addresses(cc, "cc"),
            bcc=parse_addresses(bcc, "bcc"),
            attachments=[
                Attachment.for_send(item, position)
                for position, item in enumerate(attachments or ())
            ],
            draft_id=number,
        )

    def iter_messages(
        self, folder: int | str, *, page_size: int = 100, **filters: Unpack[Filters]
    ) -> Iterator[Message]:
        """Read a folder's messages, each once, however many there are.

        :param folder: the folder's id, or its name in the connection's `folders`
        :param page_size: messages asked for in one request
        :param filters: `query`, `body`, `sender`, `recipient`, `subject`, `labels`, `was_read`,
            `start`, `end`
        :return: the messages, while they are read; the session ends with the iterator
        :raises R7MailConfigError: the folder or a filter is wrong
        :raises R7MailRequestError: the server failed, or could not be reached
        """
        number = self.resolve_folder(folder)
        criteria = MessageFilter.build(**filters)
        client = self.get_conn()

        def read() -> Iterator[Message]:
            with client:
                self._report_input(number)
                yield from iter_messages(client, number, criteria, page_size=page_size)

        return read()

    def get_messages_df(self, folder: int | str, **filters: Unpack[Filters]) -> pd.DataFrame:
        """Read a folder's messages into a pandas DataFrame.

        :param folder: the folder's id, or its name in the connection's `folders`
        :param filters: as in `iter_messages`
        :return: a row a message; the columns are named as in the `messages` table
        :raises R7MailConfigError: the folder or a filter is wrong
        :raises R7MailRequestError: the server failed, or could not be reached
        """
        import pandas as pd

        names = [item.name for item in fields(Message)]
        messages = self.iter_messages(folder, **filters)
        rows = [_row(message, names) for message in messages]
        return pd.DataFrame(rows, columns=names).rename(columns={"id": "message_id"})

    def mark_as_read(
        self,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        read: bool = True,
    ) -> int:
        """Mark messages read or unread.

        :param folder: the folder's id, or its name in the connection's `folders`
        :param message_ids: the messages' ids: a list, or its JSON text
        :param read: False marks them unread
        :return: how many messages
        :raises R7MailConfigError: the folder or an id is wrong
        :raises R7MailActionError: the server did not do it (R15)
        :raises R7MailRequestError: the server failed, or could not be reached
        """
        return self._act(
            folder,
            message_ids,
            lambda number, ids: calls.mark_as_read(number, ids, read=read),
        )

    def mark_as_important(
        self,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        important: bool = True,
    ) -> int:
        """Mark messages important or not.

        :param important: False takes the mark away; the rest, the result and the errors are as
            in `mark_as_read`
        """
        return self._act(
            folder,
            message_ids,
            lambda number, ids: calls.mark_as_important(number, ids, important=important),
        )

    def move_messages(
        self,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        to_folder: int | str,
        *,
        tried_before: bool = False,
    ) -> int:
        """Move messages to another folder.

        Where the server refuses a call that had been made before, which may be because it had
        worked, the folder is listed: it is done if none of the messages is left in it (R23).

        :param to_folder: the target's id or name; the rest and the errors are as in
            `mark_as_read`
        :param tried_before: the messages may have been moved before, by an earlier try
        :return: how many messages
        """
        target: list[int] = []  # looked up only if there is something to move

        def call(number: int, ids: Sequence[int]) -> calls.Call[bool]:
            if not target:
                target.append(self.resolve_folder(to_folder, "to_folder"))
            return calls.move_messages(number, ids, target[0])

        return self._act(folder, message_ids, call, takes_away=True, tried_before=tried_before)

    def delete_messages(
        self,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        *,
        tried_before: bool = False,
    ) -> int:
        """Delete messages. A call made before is checked as in `move_messages`.

        :param tried_before: the messages may have been deleted before, by an earlier try; the
            rest, the result and the errors are as in `mark_as_read`
        """
        return self._act(
            folder,
            message_ids,
            calls.delete_messages,
            takes_away=True,
            tried_before=tried_before,
        )

    def download_attachment(
        self,
        folder: int | str,
        message_id: int,
        file_name: str,
        destination: UPath | Path | str,
    ) -> StoredFile:
        """Download a file of a message, streamed in bounded memory.

        :param folder: the folder's id, or its name in the connection's `folders`
        :param message_id: the message's id
        :param file_name: the file's name, exactly as it is listed
        :param destination: the file's path: a local one, a URL that fsspec knows, or an
            `ObjectStoragePath`; the file is there only when it is whole (R22)
        :return: what was stored
        :raises R7MailConfigError: the folder is wrong
        :raises R7MailRequestError: the server failed, has no such file, or broke off
        """
        # Few hooks download: the storage layers are not for every DAG file to load.
        from airflow.providers.common.compat.sdk import ObjectStoragePath  # noqa: PLC0415

        from airflow_provider_r7mail.lake.attachments import download  # noqa: PLC0415
        from airflow_provider_r7mail.lineage import storage_uri  # noqa: PLC0415

        number = self.resolve_folder(folder)
        # A string or a plain Path may be anything that fsspec knows, or a local file.
        target: Any = (
            destination if hasattr(destination, "fs") else ObjectStoragePath(str(destination))
        )
        with self.get_conn() as client:
            stored = download(client, number, message_id, file_name, target)
        self._report_input(number)
        get_hook_lineage_collector().add_output_asset(context=self, uri=storage_uri(target))
        return stored

    def _report_input(self, folder: int) -> None:
        """Tell Airflow's hook lineage that a folder was read."""
        if AIRFLOW_V_3_0_PLUS:  # Airflow 2 takes the login out of the URI, and warns
            uri = self.settings.folder_uri(folder)
            get_hook_lineage_collector().add_input_asset(context=self, uri=uri)

    def _act(
        self,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        call: Callable[[int, Sequence[int]], calls.Call[bool]],
        *,
        takes_away: bool = False,
        tried_before: bool = False,
    ) -> int:
        ids = parse_ids(message_ids, "message_ids")
        if not ids:
            return 0
        number = self.resolve_folder(folder)
        batches = [ids[start : start + BATCH_SIZE] for start in range(0, len(ids), BATCH_SIZE)]
        prepared = [
            call(number, batch) for batch in batches
        ]  # wrong parameters fail before a login
        progress = Progress(self.log.info, len(ids))
        with self.get_conn() as client:
            for place, batch in enumerate(batches):
                try:
                    client.send(prepared[place])
                except (R7MailActionError, R7MailServerError) as error:
                    if not (
                        takes_away
                        and (tried_before or error.attempt > 1)
                        and _refused(error)
                        and _all_gone(client, number, batch)
                    ):
                        raise _in_batch(error, place, len(batches), progress.done) from error
                    self.log.warning(
                        "The server refused a repeated call; none of its %d messages is left in "
                        "folder %d, so an earlier attempt had worked.",
                        len(batch),
                        number,
                    )
                except R7MailRequestError as error:
                    raise _in_batch(error, place, len(batches), progress.done) from error
                progress.add(len(batch))
        return len(ids)


class Progress:
    """Logs how far long work has got, every few seconds at most, as numbers only."""

    def __init__(self, say: Callable[..., None], total: int) -> None:
        self._say = say
        self._total = total
        self._last = time.monotonic()
        self.done = 0

    def add(self, count: int = 1) -> None:
        """Count messages that are done."""
        self.done += count
        now = time.monotonic()
        if now - self._last >= PROGRESS_SECONDS and self.done < self._total:
            self._last = now
            self._say("%d of %d messages done.", self.done, self._total)


def _form() -> dict[str, Any]:
    form: dict[str, Any] = get_provider_info()["connection-types"][0]
    return form


def _refused(error: R7MailRequestError) -> bool:
    return isinstance(error, R7MailActionError) or error.status == 500


def _all_gone(client: Client, folder: int, ids: Sequence[int]) -> bool:
    wanted = set(ids)
    return not any(
        message.id in wanted for message in iter_messages(client, folder, MessageFilter())
    )


def _in_batch(error: R7MailRequestError, place: int, total: int, done: int) -> R7MailRequestError:
    if total == 1:
        return error
    return error.but(
        reason=f"{error.reason}; in batch {place + 1} of {total}, after {done} messages were done"
    )


def _mended(value: Any) -> Any:
    """A value with text that pandas can hold (R21)."""
    if isinstance(value, str):
        return mend_text(value)
    if isinstance(value, Mapping):
        return {_mended(name): _mended(item) for name, item in value.items()}
    return [_mended(item) for item in value] if isinstance(value, list | tuple) else value


def _row(message: Message, names: Sequence[str]) -> dict[str, Any]:
    row = {name: _mended(getattr(message, name)) for name in names}
    if message.attachments is not None:
        row["attachments"] = [
            {
                "attachment_id" if name == "id" else name: value
                for name, value in _mended(asdict(file)).items()
            }
            for file in message.attachments
        ]
    return row


def parse_seconds(value: object, name: str) -> float:
    """Read a number of seconds.

    :raises R7MailConfigError: not a number of 0 or more
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise R7MailConfigError(f"{name}: got {value!r}. Give seconds, 0 or more.")
    return float(value)


def read_sent_folder(
    settings: Settings, folder: int | str | None, settle_seconds: float
) -> tuple[int | None, float]:
    """Tell the Sent folder's id, None if none is given, and the seconds to settle.

    :raises R7MailConfigError: one of them is wrong
    """
    number = None if folder in (None, "") else settings.resolve_folder(folder, "sent_folder")
    return number, parse_seconds(settle_seconds, "settle_seconds")


def resolve_links(
    links: Iterable[Any] | None, seconds: int = LINK_SECONDS, conn_id: str | None = None
) -> list[Link]:
    """Turn what a message links to into URLs.

    :param links: URLs, or files in object storage as `s3://bucket/key` or `ObjectStoragePath`; or
        `{"url": ..., "name": ...}` of these, with what the reader sees (the file's name, if not
        told)
    :param seconds: how long links to object storage work. If the store can't sign them, the link
        is the file's plain URL, or its URI
    :param conn_id: the Airflow connection of the object storage; else the path's own
    :raises R7MailConfigError: not a URL
    """
    given = [links] if isinstance(links, (str, Mapping)) or hasattr(links, "fs") else links or ()
    return [_resolve_link(item, place, seconds, conn_id) for place, item in enumerate(given)]


def _resolve_link(item: Any, place: int, seconds: int, conn_id: str | None) -> Link:
    name = ""
    if isinstance(item, Mapping):
        item, name = item.get("url"), str(item.get("name") or "")
    text = str(item)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^\x00-\x20\x7f]+[^\x00-\x1f\x7f]*", text):
        raise R7MailConfigError(
            f"links[{place}]: not a URL. Give https://..., or a file in object storage as "
            "s3://bucket/key. A path on the worker's disk is of no use to who reads the mail."
        )
    parts = urlsplit(text)
    name = name or unquote(parts.path.rstrip("/").rpartition("/")[2]) or parts.hostname or text
    if parts.scheme in {"http", "https"}:
        return Link(text, name)
    from airflow.providers.common.compat.sdk import ObjectStoragePath  # noqa: PLC0415

    try:
        path = item if hasattr(item, "fs") else ObjectStoragePath(text, conn_id=conn_id)
        return Link(_url_of(path, seconds), name)
    except ValueError as error:
        raise R7MailConfigError(f"links[{place}]: no storage of Airflow's has this URL.") from error


def _url_of(path: Any, seconds: int) -> str:
    for make in ("sign", "url"):
        try:
            options = {"expiration": seconds} if make == "sign" else {}
            return str(getattr(path.fs, make)(path.path, **options))
        except (NotImplementedError, AttributeError):  # gcsfs: the latter without a private key
            continue
    return f"{path.protocol}://{path.path}"  # without the connection's id
