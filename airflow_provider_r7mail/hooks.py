"""The hook: read, send, mark, move, delete and download mail from Python."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector
from asgiref.sync import sync_to_async

from airflow_provider_r7mail.client import calls
from airflow_provider_r7mail.client.acting import MOVE_SECONDS, Action, move_and_find
from airflow_provider_r7mail.client.attaching import Uploads, delete_files, list_disk
from airflow_provider_r7mail.client.check.trial import Trial
from airflow_provider_r7mail.client.compose import LINK_SECONDS, compose_message, resolve_links
from airflow_provider_r7mail.client.disk import DiskFile
from airflow_provider_r7mail.client.frames import messages_frame
from airflow_provider_r7mail.client.limit import run_within
from airflow_provider_r7mail.client.models import Attachment, Message, MessageFilter, parse_ids
from airflow_provider_r7mail.client.parameters import need_text, read_id
from airflow_provider_r7mail.client.progress import Progress
from airflow_provider_r7mail.client.reader import iter_messages
from airflow_provider_r7mail.client.sending import SETTLE_SECONDS, Sending, asend_once, send_once
from airflow_provider_r7mail.client.session import AsyncClient, Client
from airflow_provider_r7mail.client.steps import carry_out
from airflow_provider_r7mail.compat import (
    AIRFLOW,
    AirflowNotFoundException,
    BaseHook,
    get_async_connection,
)
from airflow_provider_r7mail.connection import (
    Settings,
    amask,
    config_from_connection,
    mask,
    secrets_of,
)
from airflow_provider_r7mail.connection_form import form_behaviour, form_widgets
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.files import AfterSending, find_files, find_uploads, open_storage
from airflow_provider_r7mail.filters import Filters

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from upath import UPath

    from airflow_provider_r7mail.lake.attachments import StoredFile

TEST_SECONDS = 4.5
"""Time limit of `test_connection`."""


class Accepted(TypedDict):
    """What the server says about a sent message (R11).

    :param id: the server's id of the message, if it tells it
    :param accepted: the server accepted the message, which doesn't mean that it was delivered
    """

    id: int | None
    accepted: bool


class R7MailHook(BaseHook):
    """Work with an R7-Office mailbox through the server's REST API.

    Each method opens a session on the server (one login) and closes it. To make several calls in
    one session, use `get_conn`.

    :param r7mail_conn_id: id of the Airflow connection, of type `r7mail`
    """

    conn_name_attr = "r7mail_conn_id"
    default_conn_name = "r7mail_default"
    conn_type = "r7mail"
    hook_name = "R7-Office Mail"

    def __init__(self, r7mail_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.r7mail_conn_id = r7mail_conn_id

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the fields of the connection form, for Airflow before 3.2."""
        return form_widgets()

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the labels of the connection form, for Airflow before 3.2."""
        return form_behaviour()

    @cached_property
    def settings(self) -> Settings:
        """The connection's settings. Reading them masks the connection's secrets in logs.

        :raises R7MailConfigError: there is no such connection, or a field is missing or wrong
        """
        try:
            connection = self.get_connection(need_text(self.r7mail_conn_id, "r7mail_conn_id"))
        except AirflowNotFoundException as error:
            raise self._no_connection() from error
        settings = config_from_connection(connection)
        mask(secrets_of(settings))
        return settings

    async def _asettings(self) -> Settings:
        if "settings" not in self.__dict__:
            try:
                conn_id = need_text(self.r7mail_conn_id, "r7mail_conn_id")
                connection = await get_async_connection(self, conn_id)
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
        return Client(self.settings.client)

    async def aget_conn(self) -> AsyncClient:
        """Make an async client: `async with await hook.aget_conn() as client:`.

        :raises R7MailConfigError: there is no such connection, or a field is missing or wrong
        """
        settings = await self._asettings()
        return AsyncClient(settings.client)

    def resolve_folder(self, folder: int | str, name: str = "folder") -> int:
        """Return a folder's id.

        :param folder: an id (24 or "24"), or a name from the connection's `folders`
        :param name: the parameter's name, for the error
        :raises R7MailConfigError: the folder is neither an id nor a known name; the error lists
            the known names
        """
        number = read_id(folder)
        return self.settings.resolve_folder(folder, name) if number is None else number

    def test_connection(self) -> tuple[bool, str]:
        """Log in and read one message of the first of `folders`: Airflow's Test button.

        Tries once, and returns within 5 seconds whatever the server does.

        :return: whether it worked, and a message for the user
        """
        try:
            settings = self.settings
        except R7MailConfigError as error:
            return False, str(error)
        trial = Trial(settings.client, next(iter(settings.folders.items()), None))
        try:
            return run_within(TEST_SECONDS, trial.run)
        except TimeoutError:
            return False, trial.failed(
                f"no complete answer within {TEST_SECONDS:g} seconds",
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
        files: Any = None,
        after_sending: AfterSending = "keep",
        draft_id: int | str = 0,
        links: Iterable[Any] | None = None,
        link_seconds: int = LINK_SECONDS,
        sent_folder: int | str | None = None,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> Accepted:
        """Send a message once: it is never sent again if that might deliver it twice (R23).

        With `sent_folder`, an unclear outcome is resolved by looking there. This method doesn't
        know what earlier tries of a task did: where a task may be retried, use
        `R7MailSendOperator`.

        :param to: addresses: a list, or text with commas; `Name <name@example.org>` is accepted
        :param subject: the subject, one line
        :param html_content: the body in HTML
        :param text_content: the plain-text body; made from the HTML if None
        :param cc: addresses, like `to`
        :param bcc: addresses, like `to`
        :param attachments: files in the server's Storage, each as
            `{"Id", "FileId", "FileName", "Size", "MimeType"}`
        :param files: files to upload to the server's Disk and to attach: absolute paths, URLs that
            `ObjectStoragePath` supports, or path objects
        :param after_sending: `keep` keeps the uploaded files on the Disk, `delete` deletes them
        :param draft_id: id of the draft to send; 0 for none (R10)
        :param links: links to add at the end: URLs, files in object storage as `s3://bucket/key` or
            `ObjectStoragePath`, or `{"url": ..., "name": ...}`
        :param link_seconds: how long links to object storage work, in seconds, if the store can
            sign them
        :param sent_folder: id or name of the Sent folder; None if unknown
        :param settle_seconds: how long, in seconds, a message may take to appear there (R11)
        :return: the server's id, and `accepted`: accepted by the server, not yet delivered (R11)
        :raises R7MailConfigError: a parameter is wrong; nothing was sent
        :raises R7MailAttachmentError: a file is missing, unreadable or empty; nothing was sent
        :raises R7MailSendUnclearError: it is unclear whether the message was sent
        :raises R7MailRequestError: the message was not sent
        """
        call = compose_message(
            to,
            subject,
            html_content,
            text_content=text_content,
            cc=cc,
            bcc=bcc,
            attachments=attachments,
            draft_id=draft_id,
            links=resolve_links(links, link_seconds, open_storage),
        )
        where = self.settings.resolve_sent_folder(sent_folder, settle_seconds)
        uploads = find_uploads(files, after_sending, self.settings)
        with self.get_conn() as client:
            sent = send_once(client, Sending.of(call, None, *where, uploads))
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
        files: Any = None,
        after_sending: AfterSending = "keep",
        sent_folder: int | str | None = None,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> Accepted:
        """Send a message once, on an event loop; see `send_message`."""
        # Making the plain text of a long report takes time: keep it off the triggerer's event loop.
        call = await asyncio.to_thread(
            compose_message, to, subject, html_content, text_content=text_content, cc=cc, bcc=bcc
        )
        settings = await self._asettings()
        where = settings.resolve_sent_folder(sent_folder, settle_seconds)
        # In a thread from which Airflow's connections can be read.
        find = sync_to_async(find_uploads, thread_sensitive=False)
        uploads = await find(files, after_sending, settings)
        async with await self.aget_conn() as client:
            sent = await asend_once(client, Sending.of(call, None, *where, uploads))
        return {"id": sent.id, "accepted": True}

    def upload_file(self, file: Any, *, storage_conn_id: str | None = None) -> dict[str, Any]:
        """Upload a file to the server's Disk, unless it is there already.

        :param file: an absolute path, a URL that `ObjectStoragePath` supports, or a path object
        :param storage_conn_id: Airflow connection of the object storage; by default the one in the
            URL
        :return: the file as `attachments` takes it: `{"Id", "FileId", "FileName", "Size",
            "MimeType"}`
        :raises R7MailConfigError: it is neither a path nor a URL
        :raises R7MailAttachmentError: it is missing, unreadable or empty
        :raises R7MailRequestError: the Disk failed, refused the file, or could not be reached
        """
        sources = find_files([file], storage_conn_id)
        uploads = Uploads(sources=sources, disk_folder=self.settings.disk_folder)
        with self.get_conn() as client:
            [attachment] = carry_out(uploads.steps(), client.send)
        return attachment.to_json()

    def list_disk(self) -> list[DiskFile]:
        """List the files in the Disk folder that takes files to be sent.

        :return: the files, in the order of their ids; none if there is no such folder yet
        :raises R7MailRequestError: the Disk failed or could not be reached
        """
        with self.get_conn() as client:
            return list(carry_out(list_disk(self.settings.disk_folder), client.send))

    def delete_from_disk(self, file_ids: Iterable[int | str] | str) -> int:
        """Delete files from the Disk, such as old uploads.

        :param file_ids: the files' ids (`DiskFile.id`): a list, or a list in JSON text
        :return: number of files
        :raises R7MailConfigError: an id is wrong
        :raises R7MailRequestError: the Disk failed or could not be reached
        """
        ids = parse_ids(file_ids, "file_ids")
        if ids:
            with self.get_conn() as client:
                carry_out(delete_files(ids), client.send)
        return len(ids)

    def iter_messages(
        self, folder: int | str, *, page_size: int = 100, **filters: Unpack[Filters]
    ) -> Iterator[Message]:
        """Read the messages of a folder, each exactly once.

        :param folder: the folder's id, or its name in the connection's `folders`
        :param page_size: number of messages per request
        :param filters: `query`, `body`, `sender`, `recipient`, `subject`, `labels`, `was_read`,
            `start`, `end`
        :return: the messages, read page by page; the session ends with the iterator
        :raises R7MailConfigError: the folder or a filter is wrong
        :raises R7MailRequestError: the server failed or could not be reached
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
        """Read the messages of a folder into a pandas DataFrame.

        :param folder: the folder's id, or its name in the connection's `folders`
        :param filters: as in `iter_messages`
        :return: one row per message, with the columns of the `messages` table
        :raises R7MailConfigError: the folder or a filter is wrong, or pandas is not installed
        :raises R7MailRequestError: the server failed or could not be reached
        """
        return messages_frame(self.iter_messages(folder, **filters))

    def mark_as_read(
        self,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        read: bool = True,
    ) -> int:
        """Mark messages as read or unread.

        :param folder: the folder's id, or its name in the connection's `folders`
        :param message_ids: the messages' ids: a list, or a list in JSON text
        :param read: False to mark them as unread
        :return: number of messages
        :raises R7MailConfigError: the folder or an id is wrong
        :raises R7MailActionError: the server did not do it (R15)
        :raises R7MailRequestError: the server failed or could not be reached
        """
        return self._act(
            folder, message_ids, lambda number, ids: calls.mark_as_read(number, ids, read=read)
        )

    def mark_as_important(
        self,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        important: bool = True,
    ) -> int:
        """Mark messages as important or not important.

        Other parameters, result and errors are those of `mark_as_read`.

        :param important: False to remove the mark
        """
        return self._act(
            folder,
            message_ids,
            lambda number, ids: calls.mark_as_important(number, ids, important=important),
        )

    @overload
    def move_messages(
        self,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        to_folder: int | str,
        *,
        tried_before: bool = ...,
        return_new_ids: Literal[False] = ...,
        settle_seconds: float = ...,
    ) -> int: ...

    @overload
    def move_messages(
        self,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        to_folder: int | str,
        *,
        tried_before: bool = ...,
        return_new_ids: Literal[True],
        settle_seconds: float = ...,
    ) -> list[int]: ...

    def move_messages(
        self,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        to_folder: int | str,
        *,
        tried_before: bool = False,
        return_new_ids: bool = False,
        settle_seconds: float = MOVE_SECONDS,
    ) -> int | list[int]:
        """Move messages to another folder.

        If the server refuses a call that was made before, an earlier attempt may have succeeded:
        the folder is listed, and if none of the messages is in it, the move counts as done (R23).

        A move may give messages new ids, at once or later (R35). With `return_new_ids` they are
        looked for in the target, by what a move doesn't change.

        Other parameters and errors are those of `mark_as_read`.

        :param to_folder: id or name of the target folder
        :param tried_before: an earlier try may have moved the messages already
        :param return_new_ids: return the ids that the messages have in the target
        :param settle_seconds: how long the server may take to give them new ids; after that, those
            that still have their old ones keep them
        :return: number of messages, or their new ids in the order given
        :raises R7MailMessageNotFoundError: a message is not in the folder: with `return_new_ids`
            none was moved, otherwise the server has refused the call; or, with `return_new_ids`,
            the target doesn't list one after the move
        """
        ids = parse_ids(message_ids, "message_ids")

        def move(number: int, ids: Sequence[int]) -> calls.Call[bool]:
            return calls.move_messages(number, ids, self.resolve_folder(to_folder, "to_folder"))

        if not return_new_ids:
            return self._act(folder, ids, move, removes=True, tried_before=tried_before)
        if not ids:
            return []
        action = Action(self.resolve_folder(folder), ids, move, removes=True)
        progress = Progress(self.log.info, len(ids))
        with self.get_conn() as client:
            return move_and_find(
                client,
                action,
                ids,
                self.resolve_folder(to_folder, "to_folder"),
                progress,
                settle_seconds=settle_seconds,
                tried_before=tried_before,
            )

    def delete_messages(
        self,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        *,
        tried_before: bool = False,
    ) -> int:
        """Delete messages. A refused call is checked as in `move_messages`.

        Other parameters, result and errors are those of `mark_as_read`.

        :param tried_before: an earlier try may have deleted the messages already
        :raises R7MailMessageNotFoundError: a message is not in the folder, and the server has
            refused the call
        """
        return self._act(
            folder, message_ids, calls.delete_messages, removes=True, tried_before=tried_before
        )

    def _act(
        self,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        make_call: Callable[[int, Sequence[int]], calls.Call[bool]],
        *,
        removes: bool = False,
        tried_before: bool = False,
    ) -> int:
        ids = parse_ids(message_ids, "message_ids")
        if ids:
            action = Action(self.resolve_folder(folder), ids, make_call, removes=removes)
            progress = Progress(self.log.info, len(ids))
            with self.get_conn() as client:
                action.run(client, progress, tried_before=tried_before)
        return len(ids)

    def download_attachment(
        self,
        folder: int | str,
        message_id: int,
        file_name: str,
        destination: UPath | Path | str,
    ) -> StoredFile:
        """Download an attachment, streamed in bounded memory.

        :param folder: the folder's id, or its name in the connection's `folders`
        :param message_id: the message's id
        :param file_name: the file's name, exactly as it is listed
        :param destination: path of the file to write: an absolute path, a URL that fsspec knows,
            or an `ObjectStoragePath`. The file only appears there once it is complete (R22)
        :return: the stored file
        :raises R7MailConfigError: the folder or the destination is wrong
        :raises R7MailRequestError: the server failed, has no such file, or broke off
        """
        # Few hooks download: don't load the storage layers for every DAG file.
        from airflow_provider_r7mail.lake.attachments import download  # noqa: PLC0415
        from airflow_provider_r7mail.lake.location import parse_location  # noqa: PLC0415
        from airflow_provider_r7mail.lineage import storage_uri  # noqa: PLC0415

        number = self.resolve_folder(folder)
        target: Any = destination
        if not hasattr(destination, "fs"):  # a string or a plain Path
            target = open_storage(parse_location(destination, "destination"), "destination")
        with self.get_conn() as client:
            stored = download(client, number, message_id, file_name, target)
        self._report_input(number)
        get_hook_lineage_collector().add_output_asset(context=self, uri=storage_uri(target))
        return stored

    def _report_input(self, folder: int) -> None:
        """Report to Airflow's hook lineage that a folder was read."""
        if AIRFLOW >= (3, 0):  # Airflow 2 removes the login from the URI, and warns
            uri = self.settings.folder_uri(folder)
            get_hook_lineage_collector().add_input_asset(context=self, uri=uri)
