"""Operators that copy mail: messages into Parquet tables, attachments into object storage."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from math import inf
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from airflow_provider_r7mail.client.dates import Window, parse_moment
from airflow_provider_r7mail.client.models import MessageFilter, parse_ids
from airflow_provider_r7mail.client.progress import PROGRESS_SECONDS
from airflow_provider_r7mail.compat import (
    AirflowFailException,
    conf,
    date_time_trigger,
)
from airflow_provider_r7mail.exceptions import (
    R7MailAttachmentError,
    R7MailBadMessageError,
    R7MailConfigError,
    R7MailConnectionError,
    R7MailExtractError,
    R7MailProxyError,
)
from airflow_provider_r7mail.failures import fail_at_once
from airflow_provider_r7mail.filters import FILTER_FIELDS, Filters, FolderReader
from airflow_provider_r7mail.hooks import R7MailHook
from airflow_provider_r7mail.lake.copying import copy_attachments
from airflow_provider_r7mail.lake.derived import UNAVAILABLE, check_size_mismatch, fatal_statuses
from airflow_provider_r7mail.lake.job import ExtractJob, seconds_to_settle, stored_windows
from airflow_provider_r7mail.lake.privacy import Privacy
from airflow_provider_r7mail.lake.recheck import Look, looks, recheck
from airflow_provider_r7mail.lake.storage import url_of
from airflow_provider_r7mail.lake.window import extract_window
from airflow_provider_r7mail.lakes import LakeOperator, TableOperator
from airflow_provider_r7mail.lineage import (
    Copy,
    Output,
    count_extract,
    extract_copy,
    extract_extra,
)
from airflow_provider_r7mail.links import R7MailFolderLink
from airflow_provider_r7mail.refreshing import earlier_windows, misfit

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_r7mail.client.session import AsyncClient
    from airflow_provider_r7mail.compat import Context
    from airflow_provider_r7mail.lake.job import Progress

T = TypeVar("T")


class _CopyOperator(LakeOperator, FolderReader):
    """What the two operators share: attachments, and lineage."""

    operator_extra_links = (R7MailFolderLink(),)
    _copy: Copy | None = None  # what `execute` copies, once it knows

    def __init__(
        self,
        *,
        attachments_path: str | None = None,
        attachment_pattern: str | Sequence[str] | None = None,
        max_attachment_bytes: int | None = None,
        on_attachment_error: Literal["fail", "fail_on_missing", "record"] = "fail",
        on_size_mismatch: Literal["record", "fail"] = "record",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.attachments_path = attachments_path
        self.attachment_pattern = attachment_pattern
        self.max_attachment_bytes = max_attachment_bytes
        self.on_attachment_error = on_attachment_error
        self.on_size_mismatch = on_size_mismatch

    def get_openlineage_facets_on_complete(
        self, task_instance: Any
    ) -> OperatorLineage[Any, Any] | None:
        """Return what was copied, for OpenLineage; after a failure, as far as it is known."""
        return self._copy.openlineage() if self._copy is not None else None


class R7MailToParquetOperator(_CopyOperator, TableOperator):
    """Extract a window of a folder into Parquet tables, each message exactly once.

    Every message that stays in the folder while it is extracted and is dated within `[start, end)`
    ends up in the tables exactly once, even if other mail arrives, is moved or deleted meanwhile.

    Writes `{output_path}/{table}/mailbox={login}/folder={id}/window={start}_{end}/` for the tables
    `messages`, `recipients` and `attachments`, and `_manifest.json` last. Running it again replaces
    the window. Returns the manifest: paths, counts and checksums, but no mail.

    With `table_format="iceberg"` the rows go to the tables of an Iceberg catalog, and the manifest
    to `{output_path}/windows/mailbox={login}/folder={id}/window={start}_{end}/`.

    :param folder: the folder's id, or its name in the connection's `folders` (templated)
    :param output_path: where to write the tables: an absolute path, or any URL that
        ObjectStoragePath accepts (templated)
    :param attachments_path: where to write the attachments, likewise; if None, they are listed but
        not downloaded (templated)
    :param start: start of the window: a datetime or ISO 8601 text, UTC if it has no time zone;
        defaults to the start of the run's data interval (templated)
    :param end: end of the window, exclusive; defaults to the end of the data interval (templated)
    :param filters: `query`, `body`, `sender`, `recipient`, `subject`, `labels`, `was_read`, each a
        keyword parameter: :class:`~airflow_provider_r7mail.filters.Filters` (templated)
    :param tables: the tables to write, out of `messages`, `recipients`, `attachments`
    :param columns: the columns of the messages table to write; None for all
    :param page_size: how many messages to request at once; the server may return fewer (R3). If
        None, it starts with 200 and goes up to 1,000 as long as pages arrive complete and fast
    :param max_sweep_messages: how many messages the folder may have on a server whose date bounds
        are of no use, so that each window takes two listings of the whole folder (R29, R30)
    :param attachment_pattern: which files to download: a glob such as `*.xlsx` or `*.{xls,xlsx}`,
        several with `;` between them or in a list, or a regular expression if it starts with `^`
        or ends with `$` (templated)
    :param max_attachment_bytes: files larger than this are not downloaded
    :param storage_conn_id: the connection of the object storage (templated)
    :param on_bad_message: what to do about messages that the tables can't hold (R20): `fail` the
        task after everything else is written, or only `quarantine` them
    :param on_attachment_error: what to do about attachments that were not downloaded: `fail` the
        task after everything else is written, if a download failed; `fail_on_missing` also if the
        server doesn't name a file or several have the same name (R17, R18); or only `record` them
        in the table
    :param on_size_mismatch: what to do about a file that came whole, but whose size is neither the
        listed one nor that of the file in base64 (R26): `record` both sizes, or `fail` the file
    :param on_gone: what to do, when a window is extracted again, about rows of mail that is no
        longer in the folder, or doesn't match the filters any more: `drop` them, so that a window
        is a picture of the folder, or `keep` them, with the time in `gone_at`
    :param privacy: what must not be written, such as `{"body": "drop", "addresses": "hash"}`; the
        possible values are in `privacy.ACTIONS`. Hashing needs the connection's `privacy_secret`
    :param settle_seconds: how long after its end a window is read at the earliest, since mail takes
        a while to arrive
    :param recheck_hours: how far back to look for mail that came late or has left: earlier windows
        in the tables that ended at most so long before this one are looked at again, a handful per
        run, and extracted again if they differ; 0 for none. The returned manifest then has
        `rechecked`: the `window`, `path` and `messages` of each that was extracted again
    :param deferrable: wait in the triggerer, without taking a worker slot; defaults to
        `[operators] default_deferrable`
    :param refresh_windows: how many windows before this one to extract again, replacing each, so
        that they include mail that arrived late or changed. These are the windows in the tables;
        where there are none, the schedule's data intervals, or else windows of the same length,
        but none before the DAG's `start_date`. The returned manifest then has `refreshed`: the
        `window`, `path` and `messages` of each
    :param table_format: `parquet` for files under `output_path`, or `iceberg` for tables
    :param catalog_conn_id: for Iceberg, the connection of the catalog: its host is the URI, login
        and password are the credential, and the extra may hold any pyiceberg property. Without it
        and `catalog_properties`, a SQLite catalog and a warehouse under `output_path` (templated)
    :param catalog_properties: for Iceberg, pyiceberg properties of the catalog, which override
        those of the connection (templated)
    :param namespace: for Iceberg, the namespace of the tables (templated)
    :param r7mail_conn_id: the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, the login was refused, or the tables can't
        hold a message
    :raises R7MailExtractError: a window could not be read or published; the others were
    :raises R7MailAttachmentError: everything was written except some attachments
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
        output_path: str,
        tables: Sequence[str] = ("messages", "recipients", "attachments"),
        columns: Sequence[str] | None = None,
        page_size: int | None = None,
        max_sweep_messages: int = 20_000,
        on_bad_message: Literal["fail", "quarantine"] = "fail",
        on_gone: Literal["drop", "keep"] = "drop",
        privacy: Mapping[str, str] | None = None,
        settle_seconds: float = 60,
        recheck_hours: float = 72,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        refresh_windows: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.output_path = output_path
        self.tables = tables
        self.columns = columns
        self.page_size = page_size
        self.max_sweep_messages = max_sweep_messages
        self.on_bad_message = on_bad_message
        self.on_gone = on_gone
        self.privacy = privacy
        self.settle_seconds = settle_seconds
        self.recheck_hours = recheck_hours
        self.deferrable = deferrable
        self.refresh_windows = refresh_windows

    @fail_at_once()
    def execute(self, context: Context) -> dict[str, Any]:
        """Wait until the window has settled, extract it, then look again at those before it."""
        return self._extract_settled(context)

    @fail_at_once()
    def execute_complete(self, context: Context, event: Any) -> dict[str, Any]:
        """Go on once the window has settled."""
        return self._extract_settled(context)

    def _extract_settled(self, context: Context) -> dict[str, Any]:
        hook = R7MailHook(self.r7mail_conn_id)
        filters: Filters = {**self.filters, **self._window(context)}
        job = ExtractJob(
            folder=hook.resolve_folder(self.folder),
            criteria=MessageFilter.build(**filters),
            output=self._root("output_path"),
            attachments=self._root("attachments_path") if self.attachments_path else None,
            tables=tuple(self.tables),
            columns=None if self.columns is None else tuple(self.columns),
            page_size=self.page_size,
            max_sweep_messages=self.max_sweep_messages,
            attachment_pattern=self.attachment_pattern,
            max_attachment_bytes=self.max_attachment_bytes,
            on_bad_message=self.on_bad_message,
            on_attachment_error=self.on_attachment_error,
            on_size_mismatch=self.on_size_mismatch,
            on_gone=self.on_gone,
            privacy=Privacy.build(self.privacy, hook.settings.privacy_secret),
            iceberg=self._iceberg(),
        )
        job.check()
        horizon = self._horizon()
        self._settle(job.criteria.window)
        stored = self._stored(job, hook, context)
        refreshed = self._earlier_windows(job, stored, context)
        again = looks(job.criteria.window, stored, horizon)
        again = [look for look in again if look.window not in refreshed]
        self._copy = extract_copy(job, hook.settings.folder_uri(job.folder))
        R7MailFolderLink.push(context, hook.settings.folder_url(job.folder))
        manifest = self._run(hook, lambda client: self._extract(client, job, refreshed, again))
        self._copy.tell_outlets(self.outlets, context, extract_extra(job, manifest))
        return manifest

    async def _extract(
        self,
        client: AsyncClient,
        job: ExtractJob,
        refreshed: Sequence[Window],
        again: Sequence[Look],
    ) -> dict[str, Any]:
        """Extract the job's own window, which other tasks wait for, then the earlier ones.

        If a window fails, the next ones are still tried, unless the server can't be reached.

        :param refreshed: the windows to extract in any case
        :param again: the windows to extract if they differ
        """
        assert self._copy is not None  # noqa: S101 - set by the caller
        say = _Throttle(self.log.info)
        own = job.criteria.window
        steps: list[tuple[str, Look]] = [
            ("own", Look(own, last=True)),
            *(("refreshed", Look(window, last=True)) for window in refreshed),
            *(("rechecked", look) for look in again),
        ]
        manifests: dict[str, list[dict[str, Any]]] = {kind: [] for kind, _ in steps}
        failures: list[R7MailExtractError | R7MailAttachmentError] = []
        for kind, look in steps:
            label = look.window.label()
            try:
                if kind == "rechecked":
                    manifest = await recheck(client, job, look, say)
                    if manifest is None:
                        continue
                else:
                    self.log.info("Extracting folder %s, window %s.", job.folder, label)
                    manifest = await extract_window(client, job.of(look.window), say)
            except (R7MailExtractError, R7MailAttachmentError) as error:
                if len(steps) > 1:
                    self.log.error("Window %s: %s", label, error)  # noqa: TRY400 - raised below
                failures.append(error)
                if isinstance(error.__cause__, (R7MailConnectionError, R7MailProxyError)):
                    break
                continue
            if kind == "own":
                count_extract(self._copy, manifest)
            manifests[kind].append(manifest)
            self.log.info(
                "Wrote window %s in %s s. Messages: %s, attachments: %s, requests: %s. Path: %s",
                label,
                manifest["seconds"],
                manifest["messages"],
                manifest["attachments"],
                manifest["requests"],
                manifest["path"],
            )
        for failure in failures:
            if not isinstance(failure, R7MailBadMessageError):
                raise failure
        if failures:  # a retry would meet the same messages
            raise AirflowFailException(str(failures[0])) from failures[0]
        [manifest] = manifests.pop("own")
        names = ("window", "path", "messages")
        return manifest | {
            kind: [{name: item[name] for name in names} for item in found]
            for kind, found in manifests.items()
        }

    def _settle(self, window: Window) -> None:
        """Wait until mail on its way into the window has arrived."""
        seconds = seconds_to_settle(window, self.settle_seconds)
        if seconds <= 0:
            return
        until = datetime.now(UTC) + timedelta(seconds=seconds)
        self.log.info(
            "Window %s ends, or ended only just: waiting until %s, settle_seconds after its end.",
            window.label(),
            until.isoformat(timespec="seconds"),
        )
        if self.deferrable:
            self.defer(trigger=date_time_trigger(until), method_name="execute_complete")
        time.sleep(seconds)

    def _horizon(self) -> timedelta:
        hours: object = self.recheck_hours
        if isinstance(hours, bool) or not isinstance(hours, int | float) or not 0 <= hours < inf:
            raise R7MailConfigError(f"recheck_hours: {hours!r}. Give a number, 0 or more.")
        return timedelta(hours=hours)

    def _stored(self, job: ExtractJob, hook: R7MailHook, context: Context) -> list[Window]:
        """Return the windows in the tables, and warn if the job's own doesn't fit them."""
        try:
            stored = stored_windows(job, hook.settings.client.login)
        except OSError as error:  # such as no right to list
            if self.refresh_windows:
                raise
            if self.recheck_hours:
                self.log.warning(
                    "%s: can't be listed, so that no earlier window is looked at again (%s). Allow "
                    "it, or set recheck_hours=0.",
                    url_of(job.output),
                    error,
                )
            return []
        timetable = getattr(context.get("dag"), "timetable", None)
        if says := misfit(job.criteria.window, stored, timetable):
            self.log.warning(
                "Window %s %s. If that is not intended, the schedule may give its intervals a "
                "fixed length: CronDataIntervalTimetable leaves no gaps. [docs: %s]",
                job.criteria.window.label(),
                says,
                "extract#the-schedule",
            )
        return stored

    def _earlier_windows(
        self, job: ExtractJob, stored: Sequence[Window], context: Context
    ) -> list[Window]:
        """Return the windows to refresh, newest first."""
        count: object = self.refresh_windows
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise R7MailConfigError(f"refresh_windows: {count!r}. Give a whole number, 0 or more.")
        if not count:
            return []
        dag: Any = context.get("dag")
        return earlier_windows(
            job.criteria.window,
            count,
            stored,
            timetable=dag and dag.timetable,
            first=self.start_date or (dag and dag.start_date),
        )

    def _window(self, context: Context) -> Filters:
        """Return `start` and `end`, taken from the run's data interval where they aren't given."""
        start = parse_moment(self.start or context.get("data_interval_start"), "start")
        end = parse_moment(self.end or context.get("data_interval_end"), "end")
        if start is None or end is None or start == end:
            what = (
                f"start and end are the same moment, {start.isoformat()}, as if from an empty data "
                "interval"
                if self.start and self.end and start
                else "start and end are not given, and this run has no data interval to take them "
                "from"
            )
            raise R7MailConfigError(
                f"{what} (Airflow 3 gives plain cron schedules an empty interval, and manual or "
                "asset-triggered runs may have none). Schedule the DAG with "
                'CronDataIntervalTimetable("0 * * * *", timezone="UTC"), or give start and end, '
                "half-open: [start, end)."
            )
        return {"start": start, "end": end}


class R7MailAttachmentsToObjectStorageOperator(_CopyOperator):
    """Download attachments into object storage; a file is there completely or not at all.

    Files go to `{attachments_path}/mailbox={login}/folder={id}/message_id={Id}/{safe name}`. If it
    runs again, files that are there already are not downloaded again. Returns a list of
    `{message_id, file_name, uri, size, listed_size, sha256, status}`.

    :param folder: the folder's id, or its name in the connection's `folders` (templated)
    :param message_ids: message ids: a list, an XCom of one, or a JSON list as text. None for all
        messages that match the filters; an empty list does nothing (templated)
    :param filters: `query`, `body`, `sender`, `recipient`, `subject`, `labels`, `was_read`,
        `start`, `end`, each a keyword parameter:
        :class:`~airflow_provider_r7mail.filters.Filters` (templated)
    :param attachments_path: where to write the files: an absolute path, or any URL that
        ObjectStoragePath accepts (templated)
    :param attachment_pattern: which files to download: a glob such as `*.xlsx` or `*.{xls,xlsx}`,
        several with `;` between them or in a list, or a regular expression if it starts with `^`
        or ends with `$` (templated)
    :param max_attachment_bytes: files larger than this are not downloaded
    :param storage_conn_id: the connection of the object storage (templated)
    :param on_attachment_error: what to do about attachments that were not downloaded: `fail` the
        task after all others are, if a download failed; `fail_on_missing` also if the server
        doesn't name a file or several have the same name (R17, R18); or only `record` them in the
        result
    :param on_size_mismatch: what to do about a file that came whole, but whose size is neither the
        listed one nor that of the file in base64 (R26): `record` both sizes, or `fail` the file
    :param r7mail_conn_id: the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, the login was refused, or an id is not in
        the folder
    :raises R7MailAttachmentError: some files could not be downloaded; the others were
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
        attachments_path: str,
        message_ids: Iterable[int | str] | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(attachments_path=attachments_path, **kwargs)
        self.message_ids = message_ids

    @fail_at_once()
    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Download the attachments."""
        ids = None if self.message_ids is None else parse_ids(self.message_ids, "message_ids")
        if ids == ():
            self.log.info("No message ids: nothing to do.")
            return []
        fatal = fatal_statuses(self.on_attachment_error)
        check_size_mismatch(self.on_size_mismatch)
        hook = R7MailHook(self.r7mail_conn_id)
        folder = hook.resolve_folder(self.folder)
        criteria = MessageFilter.build(**self.filters)
        root = self._root("attachments_path")
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
                strict=self.on_size_mismatch == "fail",
            ),
        )
        names = ("message_id", "file_name", "uri", "size", "listed_size", "sha256", "status")
        for row in rows:
            if row.status not in {"downloaded", "unchanged"}:
                self.log.warning("Message %s: %s (%s).", row.message_id, row.status, row.error)
        statuses = Counter(row.status for row in rows)
        said = ", ".join(f"{count} {status}" for status, count in statuses.items()) or "none"
        self.log.info("Files of folder %s: %s.", folder, said)
        if different := sum(row.size_fit == "different" for row in rows):
            self.log.warning("Files of another size than listed (R26): %s.", different)
        copied = [row.size or 0 for row in rows if row.status == "downloaded"]
        output.files, output.size = len(copied), sum(copied)
        failed = [row for row in rows if row.status in fatal]
        if failed:
            raise R7MailAttachmentError(
                f"Attachments not copied: {len(failed)} of {len(rows)} (messages "
                f"{sorted({row.message_id for row in failed})[:20]}; the first: {failed[0].error})"
                ". The others are in place. Run it again to get the missing ones. Open messages "
                "whose files are unlisted or ambiguous in the web client."
            )
        extra = {
            "folder_id": folder,
            "files_downloaded": len(copied),
            "files_unchanged": statuses["unchanged"],
            "files_failed": statuses["failed"],
            "files_unavailable": sum(statuses[status] for status in UNAVAILABLE),
            "path": url_of(root),
        }
        self._copy.tell_outlets(self.outlets, context, extra)
        found = [{name: asdict(row)[name] for name in names} for row in rows]
        for item in found:
            # PostgreSQL's JSON, where XComs may be stored, holds neither NUL nor lone surrogates.
            item["file_name"] = item["file_name"] and _UNSTORABLE.sub("\ufffd", item["file_name"])
        return found


_UNSTORABLE = re.compile("[\\0\ud800-\udfff]")


class _Throttle:
    """Log the progress of an extract, every few seconds at most."""

    def __init__(self, say: Callable[..., None]) -> None:
        self._say = say
        self._next = time.monotonic() + PROGRESS_SECONDS

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PROGRESS_SECONDS
        self._say(
            "Pages: %s, messages: %s, attachments: %s, %.1f MB so far.",
            progress.pages,
            progress.rows,
            progress.attachments,
            progress.bytes_read / 1e6,
        )
