"""One window of a folder, from the server into its tables and attachments. No Airflow.

The window is the unit of work: it is staged whole, then published over what was there before.
`_manifest.json` is removed first and written last, so that a window without one is unfinished.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, aclosing, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from airflow_provider_r7mail import __version__
from airflow_provider_r7mail.attachments import (
    AttachmentCopier,
    StoredFile,
    name_filter,
)
from airflow_provider_r7mail.client import AsyncClient
from airflow_provider_r7mail.exceptions import (
    R7MailAttachmentError,
    R7MailBadMessageError,
    R7MailConfigError,
    R7MailExtractError,
    R7MailMessageNotFoundError,
    R7MailPublishError,
)
from airflow_provider_r7mail.extract import (
    Key,
    Reconciliation,
    WindowReader,
    aiter_messages,
    first_error,
)
from airflow_provider_r7mail.iceberg import IcebergTable, IcebergTarget, IcebergWindow
from airflow_provider_r7mail.models import MessageFilter, Window, parse_moment
from airflow_provider_r7mail.privacy import Privacy
from airflow_provider_r7mail.storage import (
    ObjectPath,
    StagedObject,
    clean,
    is_local,
    locked,
    make_folder,
    read,
    remove,
    remove_empty,
    staged,
    to_its_end,
)
from airflow_provider_r7mail.tables import (
    RUN_ID_KEY,
    SCHEMA_VERSION,
    TABLES,
    AttachmentRow,
    DecodedPage,
    ParquetTable,
    attachment_rows,
    attachments_batch,
    attachments_of,
    decode_page,
    files_row,
    int64_array,
    one_batch,
    recipients_of,
    repeated_moment,
    schema,
)

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

MANIFEST = "_manifest.json"
QUARANTINE = "_quarantine.jsonl"
PART = "part-00000.parquet"
PATH_LEVELS = 3  # mailbox=, folder=, window=
# Where the manifests of Iceberg's windows are, whose rows are elsewhere.
WINDOWS = "windows"
# How often a window is read anew when the server counted more than came.
MAX_READINGS = 3
NAMED_IDS = 10
# Notes of copied files are kept for so many message ids each: small enough to read and write anew.
MESSAGES_PER_NOTE = 1_000
# What is read but not yet written: so many bytes and one page more, or so many pages. A row group
# takes as long to write as many pages to read.
BYTES_IN_HAND = 16 << 20
PAGES_IN_HAND = 32
# Messages whose recipients are split off at once: a page's are too few for the fixed cost of it.
RECIPIENT_ROWS = 2_000
RECIPIENT_SOURCES = ["message_id", "date", "to_addresses", "cc_addresses", "bcc_addresses"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractJob:
    """What to extract, and where to.

    :param folder: the folder's id
    :param criteria: what to look for; its window must have both bounds
    :param output: the root of the tables
    :param attachments: the root of the attachments; None lists them without copying
    :param tables: the tables to write
    :param columns: the columns of the messages table to write; None for all
    :param page_size: messages to ask for at once; None follows what the server gives
    :param attachment_pattern: which files to copy; see `attachments.name_filter`
    :param max_attachment_bytes: larger files are not copied
    :param on_bad_message: `fail` raises when all is written; `quarantine` does not
    :param on_attachment_error: `fail` raises when all is written; `record` does not
    :param privacy: what must not be written
    :param iceberg: the catalog whose tables take the rows; None for Parquet under `output`
    """

    folder: int
    criteria: MessageFilter
    output: ObjectPath
    attachments: ObjectPath | None = None
    tables: tuple[str, ...] = TABLES
    columns: tuple[str, ...] | None = None
    page_size: int | None = None
    attachment_pattern: str | None = None
    max_attachment_bytes: int | None = None
    on_bad_message: Literal["fail", "quarantine"] = "fail"
    on_attachment_error: Literal["fail", "record"] = "fail"
    privacy: Privacy = field(default_factory=Privacy)
    iceberg: IcebergTarget | None = None

    @property
    def notes(self) -> Any:
        """The root of the folder for each window that has its manifest."""
        return self.output / (self.tables[0] if self.iceberg is None else WINDOWS)

    def check(self) -> None:
        """Refuse what can't work, before anything is asked of the server.

        :raises R7MailConfigError: with what is wrong and what to give
        """
        window = self.criteria.window
        if window.start is None or window.end is None:
            raise R7MailConfigError("start and end: an extract needs both ends of its window.")
        unknown = [name for name in self.tables if name not in TABLES]
        if unknown or not self.tables:
            raise R7MailConfigError(
                f"tables: {', '.join(map(str, unknown)) or 'none given'}. "
                f"Known: {', '.join(TABLES)}."
            )
        if self.page_size is not None and self.page_size < 1:
            raise R7MailConfigError(f"page_size: {self.page_size} is not at least 1.")
        for name, value, known in (
            ("on_bad_message", self.on_bad_message, ("fail", "quarantine")),
            ("on_attachment_error", self.on_attachment_error, ("fail", "record")),
        ):
            if value not in known:
                raise R7MailConfigError(f"{name}: {value!r}. Known: {', '.join(known)}.")
        columns = schema("messages").names
        if self.columns is not None and len(set(self.columns)) != (len(self.columns) or 1):
            raise R7MailConfigError("columns: none given, or one of them twice.")
        wrong = [name for name in self.columns or () if name not in columns]
        if wrong:
            raise R7MailConfigError(
                f"columns: messages has no {', '.join(wrong)}. Known: {', '.join(columns)}."
            )
        name_filter(self.attachment_pattern)
        if self.iceberg is not None:
            self.iceberg.check(self.output)


@dataclass(slots=True)
class Progress:
    """How far an extract has come: pages, rows and bytes read, attachments settled."""

    pages: int = 0
    rows: int = 0
    bytes_read: int = 0
    attachments: int = 0


def window_path(root: ObjectPath, mailbox: str, folder: int, window: str) -> Any:
    """`{root}/mailbox={login}/folder={id}/window={start}_{end}`."""
    return folder_path(root, mailbox, folder) / f"window={window}"


def folder_path(root: ObjectPath, mailbox: str, folder: int) -> Any:
    """`{root}/mailbox={login}/folder={id}`."""
    return root / f"mailbox={quote(mailbox, safe='@')}" / f"folder={folder}"


def stored_windows(job: ExtractJob, login: str) -> list[Window]:
    """The windows that the tables have of a job's folder, finished or not.

    :param login: the mailbox
    """
    home = folder_path(job.notes, job.privacy.mailbox(login), job.folder)
    try:
        names = [path.rpartition("/")[2] for path in home.fs.ls(home.path, detail=False)]
    except FileNotFoundError:
        return []
    windows = []
    for name in names:
        start, _, end = name.removeprefix("window=").partition("_")
        with suppress(R7MailConfigError):  # not one of ours
            windows.append(Window(parse_moment(start, name), parse_moment(end, name)))
    return windows


async def extract_window(
    client: AsyncClient,
    job: ExtractJob,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Extract one window; replace what an earlier run of it has left.

    :param client: an open client
    :param on_progress: told after each page
    :return: the manifest
    :raises R7MailConfigError: the job can't work; nothing was read
    :raises R7MailRequestError, R7MailExtractError: the window could not be read or published; the
        earlier result is as it was, unless the error says otherwise
    :raises R7MailBadMessageError: published, without the messages in the quarantine file
    :raises R7MailAttachmentError: published, without the attachments marked `failed`
    """
    job.check()
    return await _Extraction(client, job, on_progress).run()


class _Extraction:
    def __init__(
        self, client: AsyncClient, job: ExtractJob, on_progress: Callable[[Progress], None]
    ) -> None:
        self._client = client
        self._job = job
        self._on_progress = on_progress
        self._run_id = uuid.uuid4().hex
        self._started = time.monotonic()
        self._earlier = client.stats.as_dict()
        self._extracted_at = datetime.now(UTC)
        self._outdated: list[ObjectPath] = []
        self._mailbox = job.privacy.mailbox(client.config.login)
        window = job.criteria.window.label()
        self._home = window_path(job.notes, self._mailbox, job.folder, window)
        self._name = "/".join(self._home.path.rsplit("/", PATH_LEVELS)[1:])
        self._folders = (
            {table: job.output / table / self._name for table in job.tables}
            if job.iceberg is None
            else {WINDOWS: self._home}
        )
        self._iceberg: IcebergWindow | None = None

    async def run(self) -> dict[str, Any]:
        with (
            # A thread for each, with a queue of its own: the next page is taken up without a detour
            # over the event loop, which takes as long as the work. More threads only hold more
            # memory at once.
            ThreadPoolExecutor(1, "r7mail-decode") as decoder,
            ThreadPoolExecutor(1, "r7mail-write") as scribe,
        ):
            try:
                if self._job.iceberg is not None:
                    self._iceberg = await asyncio.to_thread(self._open_iceberg, self._job.iceberg)
                return await self._run(decoder, scribe)
            except OSError as error:
                raise R7MailPublishError(
                    f"{self._home}: the window can't be written ({error}). An earlier result of it "
                    "is as it was."
                ) from error
            finally:
                if self._iceberg is not None:
                    await asyncio.to_thread(self._iceberg.close)

    def _open_iceberg(self, target: IcebergTarget) -> IcebergWindow:
        return IcebergWindow(
            target,
            self._job.output,
            self._job.tables,
            mailbox=self._mailbox,
            folder=self._job.folder,
            window=self._job.criteria.window,
            run_id=self._run_id,
        )

    async def _run(self, decoder: Executor, scribe: Executor) -> dict[str, Any]:
        if self._job.attachments is None:
            return await self._read_and_publish(None, decoder, scribe)
        async with await asyncio.to_thread(self._copier, self._job.attachments) as copier:
            return await self._read_and_publish(copier, decoder, scribe)

    async def _read_and_publish(
        self, copier: AttachmentCopier | None, decoder: Executor, scribe: Executor
    ) -> dict[str, Any]:
        earlier: set[Key] | None = None
        for number in range(1, MAX_READINGS + 1):
            # Mail that comes and goes at once may leave some missing (R6): no more than were met by
            # the reading before and not by this one.
            keys: set[Key] | None = set() if number > 1 else None
            writer = _WindowWriter(
                self._job, self._folders, self._run_id, self._extracted_at, self._iceberg
            )
            try:
                await to_its_end(self._open, writer)
                counted = await self._read(writer, copier, decoder, scribe, keys)
                gone = 0 if earlier is None or keys is None else len(earlier - keys)
                if counted.missing <= gone:
                    await to_its_end(writer.finish)
                    manifest = self._manifest(writer, counted)
                    await to_its_end(self._publish, writer, manifest)
                    self._judge(writer, manifest)
                    return manifest
            finally:
                # There, so that it comes after what is being written when all is cancelled.
                scribe.submit(writer.discard).result()
            earlier = keys
            log.warning(
                "The server counted %s messages before and %s after, but %s were read (reading "
                "%s of %s).",
                counted.counted_before,
                counted.counted_after,
                counted.read,
                number,
                MAX_READINGS,
            )
        raise R7MailExtractError(
            f"Folder {self._job.folder}, window {self._job.criteria.window.label()}: the server "
            f"counts {counted.counted_after} messages, but lists only {counted.read}, "
            f"{MAX_READINGS} times over. Nothing was written. Mail that comes or goes does not "
            "explain it: see the server's index of this folder."
        )

    def _open(self, writer: _WindowWriter) -> None:
        for folder in self._folders.values():
            clean(folder)
        writer.open()

    async def _read(
        self,
        writer: _WindowWriter,
        copier: AttachmentCopier | None,
        decoder: Executor,
        scribe: Executor,
        keys: set[Key] | None,
    ) -> Reconciliation:
        job, progress = self._job, Progress()
        in_hand, written = 0, asyncio.Condition()
        run = partial(asyncio.get_running_loop().run_in_executor, scribe)

        def weight(page: DecodedPage) -> int:
            return max(page.bytes, BYTES_IN_HAND // PAGES_IN_HAND)

        async def settle(page: DecodedPage, indexes: Sequence[int]) -> None:
            nonlocal in_hand
            if copier is None:
                batch, files = await run(writer.write_page, page, indexes)
            else:
                batch, files = await run(writer.prepare, page, indexes)
                await copier.copy(files)
                await run(writer.write, batch, files)
            progress.pages += 1
            progress.rows += batch.num_rows
            progress.attachments += len(files)
            progress.bytes_read = self._client.stats.bytes_read
            self._on_progress(progress)
            async with written:
                in_hand -= weight(page)
                written.notify_all()

        async def deliver(page: DecodedPage, indexes: Sequence[int]) -> None:
            nonlocal in_hand
            async with written:
                await written.wait_for(lambda: in_hand < BYTES_IN_HAND)
                in_hand += weight(page)
            group.create_task(settle(page, indexes))

        reader = WindowReader(
            self._client,
            job.folder,
            job.criteria,
            page_size=job.page_size,
            decode=decode_page,
            executor=decoder,
            deliver=deliver,
            keys=keys,
        )
        try:
            async with asyncio.TaskGroup() as group:
                return await reader.run()
        except BaseExceptionGroup as errors:
            first = first_error(errors)
            raise first from first.__cause__

    def _copier(self, root: ObjectPath) -> AttachmentCopier:
        job = self._job
        # An attachments_path that can't be written fails once, not for each file.
        make_folder(root)
        copier = AttachmentCopier(
            client=self._client,
            folder=job.folder,
            root=folder_path(root, self._mailbox, job.folder),
            wanted=name_filter(job.attachment_pattern),
            max_bytes=job.max_attachment_bytes,
            known=self._known_files(),
            stored_name=job.privacy.file_name,
        )
        self._outdated = copier.outdated
        return copier

    def _known_files(self) -> dict[tuple[int, str], StoredFile]:
        """What an earlier run of this window has stored, by its attachments table."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if "attachments" not in self._job.tables:
            return {}
        if self._iceberg is not None:
            columns = ("message_id", "file_name", "uri", "size", "sha256")
            rows = self._iceberg.stored("attachments", columns)
        else:
            data = read(self._folders["attachments"] / PART)
            if data is None:
                return {}
            try:
                rows = pq.read_table(pa.BufferReader(data)).to_pylist()
            except pa.ArrowException:
                return {}
        return {
            (row["message_id"], row["file_name"]): StoredFile(
                row["uri"], row["size"], row["sha256"]
            )
            for row in rows
            if row["sha256"] is not None
        }

    def _manifest(self, writer: _WindowWriter, counted: Reconciliation) -> dict[str, Any]:
        window, stats = self._job.criteria.window, self._client.stats
        return {
            "schema_version": SCHEMA_VERSION,
            "provider_version": __version__,
            "run_id": self._run_id,
            "mailbox": self._mailbox,
            "folder_id": self._job.folder,
            "window": {
                "start": window.start.isoformat() if window.start else None,
                "end": window.end.isoformat() if window.end else None,
            },
            "extracted_at": self._extracted_at.isoformat(),
            "path": str(self._home),
            "privacy": self._job.privacy.record(),
            **writer.written(),
            "messages": writer.messages,
            "quarantined": writer.quarantined,
            "server_count": {"before": counted.counted_before, "after": counted.counted_after},
            **{name: number - self._earlier[name] for name, number in stats.as_dict().items()},
            "duplicates_dropped": counted.repeated,
            "rows_repaired": writer.repaired,
            "attachments": dict(writer.statuses),
            "attachment_bytes": writer.attachment_bytes,
            "seconds": round(time.monotonic() - self._started, 3),
        }

    def _stage(self, manifest: dict[str, Any], stack: ExitStack) -> list[StagedObject]:
        text = json.dumps(manifest, indent=2, ensure_ascii=False).encode()
        notes = []
        for folder in reversed(self._folders.values()):
            note = StagedObject(folder / MANIFEST)
            stack.callback(note.discard)
            note.write(text)
            notes.append(note)
        return notes

    def _publish(self, writer: _WindowWriter, manifest: dict[str, Any]) -> None:
        with ExitStack() as stack:
            stack.enter_context(locked(self._job.output, self._name))
            # A disk that is full now must not cost the earlier result.
            notes = self._stage(manifest, stack)
            try:
                for folder in (*self._folders.values(), *self._disproved()):
                    remove(folder / MANIFEST)
                for file in self._outdated:  # a rerun finds them as long as the old table is there
                    remove(file)
                writer.commit()
                if self._iceberg is not None:
                    manifest |= writer.written()  # the snapshots have ids now
                    notes = self._stage(manifest, stack)
                # Not every store has locks, and on S3 one may be taken over. Before, so that hardly
                # ever a manifest is seen beside another run's tables; and after, since another run
                # may have begun in between.
                doubtful = self._iceberg is not None or not is_local(self._home)
                if doubtful:
                    self._verify(writer)
                for note in notes:
                    note.commit()
                if doubtful:
                    self._verify(writer)
            except OSError as error:
                raise R7MailPublishError(
                    f"{self._home}: the window was read but could not be published ({error}). It "
                    "may have no manifest now; then it is unfinished: run it again."
                ) from error

    def _disproved(self) -> Iterator[Any]:
        """The window's folders of other tables with manifests that list what is replaced here."""
        if self._iceberg is not None:
            return
        for table in TABLES:
            if table not in self._folders:
                folder = self._job.output / table / self._name
                with suppress(ValueError, LookupError, TypeError):  # none, or not one of ours
                    listed = json.loads(read(folder / MANIFEST) or b"")["files"]
                    if any(file["table"] in self._folders for file in listed):
                        yield folder

    def _verify(self, writer: _WindowWriter) -> None:
        """See that no other run published the same window meanwhile."""
        other = writer.overtaken() if self._iceberg is not None else self._overtaken()
        if other is not None:
            for folder in self._folders.values():
                remove(folder / MANIFEST)
            raise R7MailPublishError(
                f"{other}: another run of this window published at the same time. The window "
                "has no manifest now: run it again, once."
            )

    def _overtaken(self) -> Any:
        """A file that another run has replaced; None if there is none."""
        import pyarrow.parquet as pq

        for folder in self._folders.values():
            path = folder / PART
            path.fs.invalidate_cache(str(folder.path))
            with path.fs.open(path.path, "rb") as file:
                found = (pq.read_metadata(file).metadata or {}).get(RUN_ID_KEY.encode(), b"")
            if found.decode() != self._run_id:
                return path
        return None

    def _judge(self, writer: _WindowWriter, manifest: dict[str, Any]) -> None:
        """Fail after publishing, where something did not make it into the tables."""
        if writer.untold:
            log.warning("Attachments that can't be had: %s.", writer.untold)
        if writer.quarantined and self._job.on_bad_message == "fail":
            raise R7MailBadMessageError(
                f"{writer.quarantined} messages can't be in the tables: "
                f"{writer.bad_reasons}. They are in {self._home / QUARANTINE}; all others "
                'were written. With on_bad_message="quarantine" this does not fail the task.'
            )
        failed = writer.statuses["failed"]
        if failed and self._job.on_attachment_error == "fail":
            raise R7MailAttachmentError(
                f"{failed} of {sum(writer.statuses.values())} attachments were not copied: "
                f"{writer.failures}. All else was written to {manifest['path']}; run it "
                'again to copy only what is missing. With on_attachment_error="record" this '
                "does not fail the task."
            )


class _Named:
    """Things to be named in a message: the first ones, and how many more there are."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._count = 0

    def add(self, text: str) -> None:
        self._count += 1
        if len(self._first) < NAMED_IDS:
            self._first.append(text)

    def __len__(self) -> int:
        return self._count

    def __str__(self) -> str:
        more = self._count - len(self._first)
        return "; ".join(self._first) + (f" and {more} more" if more else "")


class _WindowWriter:
    """The staged files of one window."""

    def __init__(
        self,
        job: ExtractJob,
        folders: dict[str, Any],
        run_id: str,
        extracted_at: datetime,
        iceberg: IcebergWindow | None,
    ) -> None:
        self._extracted_at = extracted_at
        self._moments = repeated_moment(extracted_at, 0)
        self._privacy = job.privacy
        self._chosen = job.tables
        self._columns = job.columns
        self._folders = folders
        self._run_id = run_id
        self._catalog = iceberg
        self._quarantine: StagedObject | None = None
        self._staged: dict[str, StagedObject] = {}
        self._tables: dict[str, ParquetTable] = {}
        self._iceberg: dict[str, IcebergTable] = {}
        self.messages = self.quarantined = self.repaired = 0
        self.attachment_bytes = 0
        self.bad_reasons = _Named()
        self.failures = _Named()
        self.untold = _Named()
        self._addressed: list[pa.RecordBatch] = []
        self.statuses: Counter[str] = Counter()
        self._with_files = "attachments" in job.tables or job.attachments is not None

    def open(self) -> None:
        """Begin the files, or the rows of Iceberg's tables; `discard` ends them in any case."""
        for table in self._chosen:
            columns = self._columns if table == "messages" else None
            if self._catalog is not None:
                self._iceberg[table] = self._catalog.writer(table, columns)
                continue
            self._staged[table] = StagedObject(self._folders[table] / PART)
            self._tables[table] = ParquetTable(
                table, self._staged[table], columns, {RUN_ID_KEY: self._run_id}
            )

    def prepare(
        self, page: DecodedPage, indexes: Sequence[int]
    ) -> tuple[pa.RecordBatch, list[AttachmentRow]]:
        """The rows to write of a page, and their attachments."""
        good = [index for index in indexes if index not in page.bad]
        if good and good[-1] - good[0] + 1 == len(good):
            batch = page.batch.slice(good[0], len(good))  # no copy
        else:
            batch = page.batch.take(int64_array(good))
        if len(self._moments) < batch.num_rows:
            self._moments = repeated_moment(self._extracted_at, batch.num_rows)
        batch = batch.append_column("extracted_at", self._moments.slice(0, batch.num_rows))
        for index in indexes:
            if index in page.bad:
                self._set_aside(page, index)
        self.repaired += len(page.repaired.intersection(good))
        return batch, attachments_of(batch) if self._with_files else []

    def write_page(
        self, page: DecodedPage, indexes: Sequence[int]
    ) -> tuple[pa.RecordBatch, list[AttachmentRow]]:
        """Prepare and write at once."""
        batch, files = self.prepare(page, indexes)
        self.write(batch, files)
        return batch, files

    def _set_aside(self, page: DecodedPage, index: int) -> None:
        bad = page.bad[index]
        if self._quarantine is None:
            home = next(iter(self._folders.values()))
            self._quarantine = StagedObject(home / QUARANTINE)
        if self._privacy.active:
            bad = replace(bad, raw=None)  # nobody knows what of it the policy would take away
        self._quarantine.write(f"{bad.to_json()}\n".encode())
        self.quarantined += 1
        self.bad_reasons.add(f"{bad.message_id}: {bad.reason}")
        log.warning("Message %s is set aside: %s.", bad.message_id, bad.reason)

    def write(self, batch: pa.RecordBatch, files: Sequence[AttachmentRow]) -> None:
        """Write a page's rows."""
        self.messages += batch.num_rows
        if "messages" in self._chosen:
            self._put("messages", batch, batch)
        if "recipients" in self._chosen:
            self._addressed.append(batch.select(RECIPIENT_SOURCES))
            if sum(part.num_rows for part in self._addressed) >= RECIPIENT_ROWS:
                self._write_recipients()
        if "attachments" in self._chosen and files:
            self._put("attachments", attachments_batch(files), batch)
        for row in files:
            self.statuses[row.status] += 1
            if row.status == "downloaded":
                self.attachment_bytes += row.size or 0
            if row.status == "failed":
                self.failures.add(f"message {row.message_id}: {row.error}")
            elif row.status in {"unlisted", "ambiguous"}:
                self.untold.add(f"message {row.message_id}: {row.error}")

    def _write_recipients(self) -> None:

        if self._addressed:
            batch = one_batch(self._addressed)
            self._put("recipients", recipients_of(batch), batch)
        self._addressed = []

    def _put(self, table: str, rows: pa.RecordBatch, messages: pa.RecordBatch) -> None:
        """The one way into the tables: rows, and the messages that they belong to."""
        rows = self._privacy.protect(rows)
        if table in self._iceberg:
            self._iceberg[table].write(rows, messages)
        else:
            self._tables[table].write(rows)

    def finish(self) -> None:
        """Write what is still pending, and the footers."""
        self._write_recipients()
        writers: list[ParquetTable | IcebergTable] = [
            *self._tables.values(),
            *self._iceberg.values(),
        ]
        for writer in writers:
            writer.finish()

    def written(self) -> dict[str, Any]:
        """The manifest's list of files, or of Iceberg's tables."""
        if self._iceberg:
            return {"tables": [table.record() for table in self._iceberg.values()]}
        return {
            "files": [
                {
                    "table": name,
                    "path": str(self._staged[name].path),
                    "rows": table.rows,
                    "bytes": self._staged[name].bytes,
                    "sha256": self._staged[name].sha256,
                }
                for name, table in self._tables.items()
            ]
        }

    def commit(self) -> None:
        """Put all files in their places, or all rows into Iceberg's tables: messages last."""
        items: list[StagedObject | IcebergTable] = [
            *self._staged.values(),
            *reversed(self._iceberg.values()),
        ]
        for item in items:
            item.commit()
        for folder in self._folders.values():
            remove(folder / QUARANTINE)
        if self._quarantine is not None:
            self._quarantine.commit()

    def overtaken(self) -> str | None:
        """An Iceberg table into which another run of this window has committed since."""
        return next((name for table in self._iceberg.values() if (name := table.overtaken())), None)

    def discard(self) -> None:
        """Forget what was not committed."""
        for item in (*self._staged.values(), *self._iceberg.values(), self._quarantine):
            if item is not None:
                item.discard()
        for folder in self._folders.values():
            remove_empty(folder, PATH_LEVELS)


async def copy_attachments(
    client: AsyncClient,
    folder: int,
    criteria: MessageFilter,
    root: ObjectPath,
    *,
    message_ids: Sequence[int] | None = None,
    pattern: str | None = None,
    max_bytes: int | None = None,
) -> list[AttachmentRow]:
    """Copy the attachments of some messages of a folder, without any table.

    What was copied is noted beside the files, so that the same call does not fetch it again.

    :param criteria: which messages; with `message_ids` it narrows the listing they are sought in
    :param root: the root of the attachments
    :param message_ids: the messages; None for all that match
    :param pattern: which files; see `attachments.name_filter`
    :param max_bytes: larger files are not copied
    :return: a row for each file, with its status; all are tried, whatever fails
    :raises R7MailMessageNotFoundError: an id is not in the folder; nothing was copied
    """
    wanted = name_filter(pattern)
    sought = None if message_ids is None else set(message_ids)
    rows: list[AttachmentRow] = []
    seen: list[int] = []
    async with aclosing(aiter_messages(client, folder, criteria)) as messages:
        async for message in messages:
            if sought is not None and message.id not in sought:
                continue
            seen.append(message.id)
            files = [files_row(file.to_json()) for file in message.attachments or ()]
            if files or message.has_attachments:
                rows += attachment_rows(message.id, files)
            if sought is not None and len(seen) == len(sought):
                break
    missing = sorted((sought or set()) - set(seen))
    if missing:
        raise R7MailMessageNotFoundError(
            f"Folder {folder} has no message {', '.join(map(str, missing[:NAMED_IDS]))} "
            f"({len(missing)} of {len(sought or ())} ids not found). Nothing was copied."
        )
    home = folder_path(root, client.config.login, folder)
    try:
        async with AttachmentCopier(
            client=client,
            folder=folder,
            root=home,
            wanted=wanted,
            max_bytes=max_bytes,
            known=await asyncio.to_thread(_prepare_copies, root, home, rows),
        ) as copier:
            try:
                await copier.copy(rows)
            finally:
                await asyncio.to_thread(_note_copies, home, rows)
    except OSError as error:
        raise R7MailPublishError(
            f"{home}: what was copied can't be noted there ({error}). Files that were copied are "
            "whole; run it again."
        ) from error
    return rows


def _note_name(message_id: int) -> str:
    return f"_copied-{message_id // MESSAGES_PER_NOTE}.json"


def _read_note(note: ObjectPath) -> dict[tuple[int, str], StoredFile]:
    return {
        (item["message_id"], item["file_name"]): StoredFile(
            item["uri"], item["size"], item["sha256"]
        )
        for item in json.loads(read(note) or b"[]")
    }


def _prepare_copies(
    root: ObjectPath, home: ObjectPath, rows: Iterable[AttachmentRow]
) -> dict[tuple[int, str], StoredFile]:
    """See that files can be written, and which have been: (message id, file name) -> file."""
    make_folder(root)
    names = {_note_name(row.message_id) for row in rows}
    return {key: file for name in names for key, file in _read_note(home / name).items()}


def _note_copies(home: ObjectPath, rows: Iterable[AttachmentRow]) -> None:
    """Add to the notes what has been stored; another run may have added to them meanwhile."""
    by_note: dict[str, dict[tuple[int, str], StoredFile]] = {}
    for row in rows:
        if row.uri is not None and row.sha256 is not None:
            file = StoredFile(row.uri, row.size or 0, row.sha256)
            added = by_note.setdefault(_note_name(row.message_id), {})
            added[row.message_id, row.file_name or ""] = file
    if not by_note:
        return
    with locked(home, "notes"):
        for name, added in by_note.items():
            note = home / name
            known = _read_note(note) | added
            text = json.dumps(
                [
                    {"message_id": number, "file_name": name, **asdict(file)}
                    for (number, name), file in known.items()
                ]
            )
            with staged(note) as target:
                target.write(text.encode())
