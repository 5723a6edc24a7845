"""Operators that copy mail out: messages into Parquet tables, attachments into object storage."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pendulum

from airflow_provider_r7mail.compat import (
    AirflowException,
    AirflowFailException,
    AirflowNotFoundException,
    BaseHook,
    BaseOperator,
    ObjectStoragePath,
)
from airflow_provider_r7mail.exceptions import (
    R7MailAttachmentError,
    R7MailBadMessageError,
    R7MailConfigError,
    R7MailConnectionError,
    R7MailExtractError,
    R7MailProxyError,
)
from airflow_provider_r7mail.hooks import (
    FILTER_FIELDS,
    PROGRESS_SECONDS,
    R7MailHook,
    fail_at_once,
)
from airflow_provider_r7mail.iceberg import DEFAULT_NAMESPACE, IcebergTarget, connection_properties
from airflow_provider_r7mail.lineage import (
    Copy,
    Output,
    count_extract,
    extract_copy,
    extract_extra,
    storage_url,
)
from airflow_provider_r7mail.links import R7MailFolderLink
from airflow_provider_r7mail.models import MessageFilter, Window, parse_ids
from airflow_provider_r7mail.pipeline import (
    ExtractJob,
    copy_attachments,
    extract_window,
    stored_windows,
)
from airflow_provider_r7mail.privacy import Privacy

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_r7mail.client import AsyncClient
    from airflow_provider_r7mail.compat import Context
    from airflow_provider_r7mail.pipeline import Progress

T = TypeVar("T")


class _CopyOperator(BaseOperator):
    """What the two operators share: filters, a hook, an object storage path, lineage."""

    operator_extra_links = (R7MailFolderLink(),)
    _copy: Copy | None = None  # what `execute` copies, once it knows

    def __init__(
        self,
        *,
        folder: int | str,
        query: str | None = None,
        body: str | None = None,
        sender: str | None = None,
        recipient: str | None = None,
        subject: str | None = None,
        labels: Iterable[int | str] | str | None = None,
        was_read: bool | str | None = None,
        start: datetime | str | None = None,
        end: datetime | str | None = None,
        attachments_path: str | None = None,
        attachment_pattern: str | None = None,
        max_attachment_bytes: int | None = None,
        storage_conn_id: str | None = None,
        r7mail_conn_id: str = R7MailHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.folder = folder
        self.query = query
        self.body = body
        self.sender = sender
        self.recipient = recipient
        self.subject = subject
        self.labels = labels
        self.was_read = was_read
        self.start = start
        self.end = end
        self.attachments_path = attachments_path
        self.attachment_pattern = attachment_pattern
        self.max_attachment_bytes = max_attachment_bytes
        self.storage_conn_id = storage_conn_id
        self.r7mail_conn_id = r7mail_conn_id
        self._stop: Callable[[], object] | None = None

    def _criteria(self, start: datetime | str | None, end: datetime | str | None) -> MessageFilter:
        return MessageFilter.build(
            query=self.query,
            body=self.body,
            sender=self.sender,
            recipient=self.recipient,
            subject=self.subject,
            labels=self.labels,
            was_read=self.was_read,
            start=start,
            end=end,
        )

    def _path(self, value: str, name: str) -> ObjectStoragePath:
        if not value:
            raise R7MailConfigError(f"{name}: empty. Give a path or URL, like s3://bucket/mail.")
        url = value if "://" in value else f"file://{value}"
        try:
            # Not None: in Airflow 2 that would hide a connection in the URL.
            given = {"conn_id": self.storage_conn_id} if self.storage_conn_id else {}
            path = ObjectStoragePath(url, **given)
            # Airflow 2 has it in the options only.
            conn_id = getattr(path, "conn_id", None) or path.storage_options.get("conn_id")
            if conn_id:
                BaseHook.get_connection(conn_id)  # S3's file system would do without
            _ = path.fs
        except AirflowNotFoundException as error:
            raise R7MailConfigError(f"{name}: {error}") from error
        except (ImportError, ValueError) as error:
            raise R7MailConfigError(
                f"{name}: no file system for {url.split(':')[0]}:// is installed ({error}). S3 "
                "comes with airflow-provider-r7mail[amazon], Google with [google], Azure with "
                "[microsoft]."
            ) from error
        return path

    def get_openlineage_facets_on_complete(
        self, task_instance: Any
    ) -> OperatorLineage[Any, Any] | None:
        """Tell OpenLineage what was copied: also after a failure, as far as it is known."""
        return self._copy.openlineage() if self._copy is not None else None

    def _run(self, hook: R7MailHook, work: Callable[[AsyncClient], Coroutine[Any, Any, T]]) -> T:
        async def connected() -> T:
            cancel = asyncio.current_task().cancel  # type: ignore[union-attr]
            self._stop = partial(asyncio.get_running_loop().call_soon_threadsafe, cancel)
            async with await hook.aget_conn() as client:
                return await work(client)

        try:
            return asyncio.run(connected())
        except asyncio.CancelledError:
            raise AirflowException(
                "Stopped, with all that was half-written removed; a later try does it again."
            ) from None
        finally:
            self._stop = None

    def on_kill(self) -> None:
        """Stop: what is half-written is removed, and an earlier result stays."""
        if self._stop is not None:
            self._stop()


class R7MailToParquetOperator(_CopyOperator):
    """Extract a window of a folder into Parquet tables, each message once and only once.

    Writes `{output_path}/{table}/mailbox={login}/folder={id}/window={start}_{end}/` for the tables
    `messages`, `recipients` and `attachments`, and `_manifest.json` last. A rerun replaces the
    window. Returns the manifest: paths, numbers and checksums, no mail.

    With `table_format="iceberg"` the rows go to the tables of an Iceberg catalog, and the manifest
    to `{output_path}/windows/mailbox={login}/folder={id}/window={start}_{end}/`.

    :param folder: the folder's id, or its name in the connection's `folders` (templated)
    :param output_path: where the tables go: a path or any URL that ObjectStoragePath takes
        (templated)
    :param attachments_path: where attachments go; None lists them without copying (templated)
    :param start: begin of the window, a datetime or ISO 8601; the run's data interval if None
        (templated)
    :param end: end of the window, not in it; likewise (templated)
    :param query: text anywhere in the message (templated)
    :param body: text in the body (templated)
    :param sender: the sender's address (templated)
    :param recipient: a recipient's address (templated)
    :param subject: text in the subject (templated)
    :param labels: ids of labels (R7) (templated)
    :param was_read: only read (True) or unread (False) messages (templated)
    :param tables: the tables to write, of `messages`, `recipients`, `attachments`
    :param columns: columns of the messages table to write; None for all
    :param page_size: messages to ask for at once; the server may give fewer (R3). None begins with
        200 and asks for more, up to 1,000, as long as they come whole and fast
    :param attachment_pattern: files to copy: a glob such as `*.xlsx`, or a regular expression if
        it begins with `^` or ends with `$` (templated)
    :param max_attachment_bytes: larger files are not copied
    :param storage_conn_id: the connection of the object storage (templated)
    :param on_bad_message: `fail` the task after writing all else if a message can't be in the
        tables (R20), or just `quarantine` it
    :param on_attachment_error: `fail` the task after writing all else if an attachment could not
        be copied, or just `record` it
    :param privacy: what must not be written, such as `{"body": "drop", "addresses": "hash"}`: what
        there is in `privacy.ACTIONS`. Hashes need the connection's `privacy_secret`
    :param refresh_windows: how many windows before this one to extract again, each replaced, so
        that mail which came late or changed is right in them. They are those that the tables have;
        where there are none, the schedule's data intervals, or else windows of the same length,
        but none from before the DAG's `start_date`. The returned manifest then has `refreshed`:
        `window`, `path` and `messages` of each
    :param table_format: `parquet` files under `output_path`, or `iceberg` tables
    :param catalog_conn_id: for Iceberg, the connection of the catalog: host is its URI, login and
        password its credential, and the extra has any of pyiceberg's properties. None, and no
        `catalog_properties`: a SQLite file and a warehouse under `output_path` (templated)
    :param catalog_properties: for Iceberg, pyiceberg's properties of the catalog; they come before
        those of the connection (templated)
    :param namespace: for Iceberg, the namespace of the tables (templated)
    :param r7mail_conn_id: the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, the log-in was refused, or a message can't
        be in the tables
    :raises R7MailExtractError: a window could not be read or published; the others were
    :raises R7MailAttachmentError: all was written but some attachments
    """

    template_fields: Sequence[str] = (
        *FILTER_FIELDS,
        "output_path",
        "attachments_path",
        "attachment_pattern",
        "storage_conn_id",
        "catalog_conn_id",
        "catalog_properties",
        "namespace",
        "r7mail_conn_id",
    )
    ui_color = "#dff0e6"

    def __init__(
        self,
        *,
        folder: int | str,
        output_path: str,
        tables: Sequence[str] = ("messages", "recipients", "attachments"),
        columns: Sequence[str] | None = None,
        page_size: int | None = None,
        on_bad_message: Literal["fail", "quarantine"] = "fail",
        on_attachment_error: Literal["fail", "record"] = "fail",
        privacy: Mapping[str, str] | None = None,
        refresh_windows: int = 0,
        table_format: Literal["parquet", "iceberg"] = "parquet",
        catalog_conn_id: str | None = None,
        catalog_properties: Mapping[str, str] | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        **kwargs: Any,
    ) -> None:
        super().__init__(folder=folder, **kwargs)
        self.output_path = output_path
        self.tables = tables
        self.columns = columns
        self.page_size = page_size
        self.on_bad_message = on_bad_message
        self.on_attachment_error = on_attachment_error
        self.privacy = privacy
        self.refresh_windows = refresh_windows
        self.table_format = table_format
        self.catalog_conn_id = catalog_conn_id
        self.catalog_properties = catalog_properties
        self.namespace = namespace

    @fail_at_once()
    def execute(self, context: Context) -> dict[str, Any]:
        """Extract the window, and refresh those before it."""
        hook = R7MailHook(self.r7mail_conn_id)
        start, end = self._window(context)
        job = ExtractJob(
            folder=hook.resolve_folder(self.folder),
            criteria=self._criteria(start, end),
            output=self._path(self.output_path, "output_path"),
            attachments=self._path(self.attachments_path, "attachments_path")
            if self.attachments_path
            else None,
            tables=tuple(self.tables),
            columns=None if self.columns is None else tuple(self.columns),
            page_size=self.page_size,
            attachment_pattern=self.attachment_pattern,
            max_attachment_bytes=self.max_attachment_bytes,
            on_bad_message=self.on_bad_message,
            on_attachment_error=self.on_attachment_error,
            privacy=Privacy.build(self.privacy, hook.settings.privacy_secret),
            iceberg=self._iceberg(),
        )
        job.check()
        earlier = self._earlier_windows(job, hook.settings.client.login, context)
        self._copy = extract_copy(job, hook.settings.folder_uri(job.folder))
        R7MailFolderLink.push(context, hook.settings.folder_url(job.folder))
        manifest, *refreshed = self._run(hook, lambda client: self._extract(client, job, earlier))
        if self.refresh_windows:
            names = ("window", "path", "messages")
            manifest["refreshed"] = [{name: item[name] for name in names} for item in refreshed]
        self._copy.tell_outlets(self.outlets, context, extract_extra(job, manifest))
        return manifest

    def _iceberg(self) -> IcebergTarget | None:
        """The catalog to write to, by its connection and properties."""
        table_format: object = self.table_format
        if table_format not in {"parquet", "iceberg"}:
            raise R7MailConfigError(f"table_format: {table_format!r}. Known: parquet, iceberg.")
        if table_format == "parquet":
            for name in ("catalog_conn_id", "catalog_properties"):
                if getattr(self, name):
                    raise R7MailConfigError(f'{name}: only for table_format="iceberg".')
            return None
        properties: dict[str, str] = {}
        if self.catalog_conn_id:
            try:
                conn = BaseHook.get_connection(self.catalog_conn_id)
            except AirflowNotFoundException as error:
                raise R7MailConfigError(f"catalog_conn_id: {error}") from error
            extra = conn.extra_dejson
            properties = connection_properties(conn.host, conn.login, conn.password, extra)
            if not properties:
                raise R7MailConfigError(
                    f"catalog_conn_id: {self.catalog_conn_id} has neither a host nor an extra."
                )
        given = {name: str(value) for name, value in (self.catalog_properties or {}).items()}
        return IcebergTarget({**properties, **given}, self.namespace)

    async def _extract(
        self, client: AsyncClient, job: ExtractJob, earlier: Sequence[Window]
    ) -> list[dict[str, Any]]:
        """Extract the job's own window, on which others wait, and then the earlier ones.

        A window that fails does not keep the next ones from being tried, unless the server can't
        be reached.
        """
        assert self._copy is not None  # noqa: S101 - set by the caller
        say = _Throttle(self.log.info)
        manifests: list[dict[str, Any]] = []
        failures: list[R7MailExtractError | R7MailAttachmentError] = []
        for window in (job.criteria.window, *earlier):
            self.log.info("Extracting folder %s, window %s.", job.folder, window.label())
            part = replace(job, criteria=replace(job.criteria, window=window))
            try:
                manifest = await extract_window(client, part, say)
            except (R7MailExtractError, R7MailAttachmentError) as error:
                if earlier:
                    self.log.error("Window %s: %s", window.label(), error)  # noqa: TRY400 - raised below
                failures.append(error)
                if isinstance(error.__cause__, (R7MailConnectionError, R7MailProxyError)):
                    break
                continue
            if part.criteria == job.criteria:
                count_extract(self._copy, manifest)
            manifests.append(manifest)
            self.log.info(
                "Wrote %s messages and %s attachments of window %s in %s s and %s requests: %s",
                manifest["messages"],
                manifest["attachments"],
                window.label(),
                manifest["seconds"],
                manifest["requests"],
                manifest["path"],
            )
        for failure in failures:
            if not isinstance(failure, R7MailBadMessageError):
                raise failure
        if failures:  # these messages will be there at the next try as well
            raise AirflowFailException(str(failures[0])) from failures[0]
        return manifests

    def _earlier_windows(self, job: ExtractJob, login: str, context: Context) -> list[Window]:
        """The windows to refresh, the newest first."""
        count: object = self.refresh_windows
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise R7MailConfigError(f"refresh_windows: {count!r}. Give a whole number, 0 or more.")
        if not count:
            return []
        dag: Any = context.get("dag")
        first = self.start_date or (dag and dag.start_date)
        own = job.criteria.window
        assert own.start is not None  # noqa: S101 - the job was checked, as the next
        assert own.end is not None  # noqa: S101
        schedule = _Schedule(dag and dag.timetable, own.start, own.end)
        stored = [
            (window.start, window.end)
            for window in stored_windows(job, login)
            if window.start is not None and window.end is not None
        ]
        windows: list[Window] = []
        end = own.start
        while len(windows) < count:
            start = schedule.begin(end)
            there = [begin for begin, finish in stored if finish == end]
            if there and start not in there:
                start = min(there)
            elif not there and first is not None and start < first:
                break
            across = [Window(*pair) for pair in stored if pair[0] < end and start < pair[1]]
            if not there and across:
                self.log.warning(
                    "Window %s is not made, nor any before it is refreshed: the tables have %s, "
                    "and mail would be in both. To refresh that one, run it by itself, with its "
                    "start and end.",
                    Window(start, end).label(),
                    across[0].label(),
                )
                break
            windows.append(Window(start, end))
            end = start
        return windows

    def _window(self, context: Context) -> tuple[datetime | str | None, datetime | str | None]:
        """The window asked for, or the run's data interval."""
        if self.start and self.end:
            return self.start, self.end
        start = self.start or context.get("data_interval_start")
        end = self.end or context.get("data_interval_end")
        if start is None or end is None or start == end:
            raise R7MailConfigError(
                "start and end are not given, and this run has no data interval to take them "
                "from (Airflow 3 gives plain cron schedules an empty one, and manual or "
                "asset-triggered runs may have none). Schedule the DAG with "
                'CronDataIntervalTimetable("0 * * * *", timezone="UTC") or '
                'CronTriggerTimetable("0 * * * *", timezone="UTC", '
                "interval=timedelta(hours=1)), or give start and end."
            )
        return start, end


class R7MailAttachmentsToObjectStorageOperator(_CopyOperator):
    """Copy attachments of messages into object storage, whole or not at all.

    Files go to `{attachments_path}/mailbox={login}/folder={id}/message_id={Id}/{safe name}`. The
    same files are not fetched again by a rerun. Returns a list of
    `{message_id, file_name, uri, size, sha256, status}`.

    :param folder: the folder's id, or its name in the connection's `folders` (templated)
    :param message_ids: ids, as a list or JSON text; None for all messages that match the filters;
        an empty list does nothing (templated)
    :param attachments_path: where to: a path or any URL that ObjectStoragePath takes (templated)
    :param attachment_pattern: which files: a glob such as `*.xlsx`, or a regular expression if it
        begins with `^` or ends with `$` (templated)
    :param max_attachment_bytes: larger files are not copied
    :param storage_conn_id: the connection of the object storage (templated)
    :param start: begin of the messages' dates, with `end`, `query`, `body`, `sender`,
        `recipient`, `subject`, `labels`, `was_read` as in R7MailToParquetOperator (templated)
    :param on_attachment_error: `fail` the task when all others are copied, or just `record` it
    :param r7mail_conn_id: the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, the log-in was refused, or an id is not in
        the folder
    :raises R7MailAttachmentError: some could not be copied; the others were
    """

    template_fields: Sequence[str] = (
        *FILTER_FIELDS,
        "message_ids",
        "attachments_path",
        "attachment_pattern",
        "storage_conn_id",
        "r7mail_conn_id",
    )
    ui_color = "#dff0e6"

    def __init__(
        self,
        *,
        folder: int | str,
        attachments_path: str,
        message_ids: Iterable[int | str] | str | None = None,
        on_attachment_error: Literal["fail", "record"] = "fail",
        **kwargs: Any,
    ) -> None:
        super().__init__(folder=folder, attachments_path=attachments_path, **kwargs)
        self.message_ids = message_ids
        self.on_attachment_error = on_attachment_error

    @fail_at_once()
    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Copy the attachments."""
        ids = None if self.message_ids is None else parse_ids(self.message_ids, "message_ids")
        if ids == ():
            self.log.info("No message ids: nothing to do.")
            return []
        hook = R7MailHook(self.r7mail_conn_id)
        folder = hook.resolve_folder(self.folder)
        criteria = self._criteria(self.start, self.end)
        root = self._path(self.attachments_path or "", "attachments_path")
        output = Output(root)
        self._copy = Copy(hook.settings.folder_uri(folder), attachments=output)
        R7MailFolderLink.push(context, hook.settings.folder_url(folder))
        rows = self._run(
            hook,
            lambda client: copy_attachments(
                client,
                folder,
                criteria,
                root,
                message_ids=ids,
                pattern=self.attachment_pattern,
                max_bytes=self.max_attachment_bytes,
            ),
        )
        names = ("message_id", "file_name", "uri", "size", "sha256", "status")
        for row in rows:
            if row.status not in {"downloaded", "unchanged"}:
                self.log.warning("Message %s: %s (%s).", row.message_id, row.status, row.error)
        self.log.info("%s files of folder %s settled.", len(rows), folder)
        copied = [row.size or 0 for row in rows if row.status == "downloaded"]
        output.files, output.size = len(copied), sum(copied)
        failed = [row for row in rows if row.status == "failed"]
        if failed and self.on_attachment_error == "fail":
            raise R7MailAttachmentError(
                f"{len(failed)} of {len(rows)} attachments were not copied, of messages "
                f"{sorted({row.message_id for row in failed})[:20]}; the first: "
                f"{failed[0].error} The others are in place; run it again for what is missing."
            )
        extra = {
            "folder_id": folder,
            "files_downloaded": len(copied),
            "files_unchanged": sum(row.status == "unchanged" for row in rows),
            "path": storage_url(root),
        }
        self._copy.tell_outlets(self.outlets, context, extra)
        found = [{name: asdict(row)[name] for name in names} for row in rows]
        for item in found:
            # PostgreSQL's JSON, where XComs may be, takes neither NUL nor half of a character.
            item["file_name"] = item["file_name"] and _UNSTORABLE.sub("\ufffd", item["file_name"])
        return found


class _Schedule:
    """Tells the windows before a run's own.

    :param timetable: the DAG's, if there is one
    :param start: begin of the run's own window
    :param end: its end
    """

    def __init__(self, timetable: Any, start: datetime, end: datetime) -> None:
        self._length = end - start
        try:
            # Airflow 3 gives tasks timetables that only describe themselves.
            from airflow.serialization.encoders import coerce_to_core_timetable  # noqa: PLC0415
        except ImportError:
            self._timetable = timetable
        else:
            self._timetable = coerce_to_core_timetable(timetable)
        self._fits = self._interval(end) == (start, end)

    def begin(self, end: datetime) -> datetime:
        """Where the data interval that ends there begins, or a window as long as the own one."""
        interval = self._interval(end) if self._fits else None
        if interval is not None and interval[1] == end:
            return interval[0]
        return end - self._length

    def _interval(self, end: datetime) -> tuple[datetime, datetime] | None:
        try:
            found = self._timetable.infer_manual_data_interval(run_after=pendulum.instance(end))
        except (AttributeError, NotImplementedError):
            return None  # no timetable, or one that can't tell
        return (found.start, found.end) if found.start < found.end else None


_UNSTORABLE = re.compile("[\\0\ud800-\udfff]")


class _Throttle:
    """Says how far an extract has come, every few seconds at most."""

    def __init__(self, say: Callable[..., None]) -> None:
        self._say = say
        self._next = time.monotonic() + PROGRESS_SECONDS

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PROGRESS_SECONDS
        self._say(
            "%s pages, %s messages, %s attachments, %.1f MB so far.",
            progress.pages,
            progress.rows,
            progress.attachments,
            progress.bytes_read / 1e6,
        )
