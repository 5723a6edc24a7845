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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

from airflow_provider_r7mail import __version__
from airflow_provider_r7mail.client.reader import Reconciliation, WindowReader, first_error
from airflow_provider_r7mail.client.seek import Key
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.exceptions import (
    R7MailAttachmentError,
    R7MailBadMessageError,
    R7MailExtractError,
    R7MailPublishError,
)
from airflow_provider_r7mail.lake.attachments import AttachmentCopier, StoredFile, name_filter
from airflow_provider_r7mail.lake.decode import DecodedPage, decode_page
from airflow_provider_r7mail.lake.iceberg import IcebergTarget, IcebergWindow
from airflow_provider_r7mail.lake.job import ExtractJob, Progress
from airflow_provider_r7mail.lake.layout import (
    MANIFEST,
    PART,
    PATH_LEVELS,
    QUARANTINE,
    WINDOWS,
    folder_path,
    window_path,
)
from airflow_provider_r7mail.lake.schema import RUN_ID_KEY, SCHEMA_VERSION, TABLES
from airflow_provider_r7mail.lake.storage import (
    ObjectPath,
    StagedObject,
    clean,
    is_local,
    locked,
    make_folder,
    read,
    remove,
    to_its_end,
)
from airflow_provider_r7mail.lake.writer import WindowWriter

log = logging.getLogger(__name__)
# How often a window is read anew when the server counted more than came.
MAX_READINGS = 3
# What is read but not yet written: so many bytes and one page more, or so many pages. A row group
# takes as long to write as many pages to read.
BYTES_IN_HAND = 16 << 20
PAGES_IN_HAND = 32


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
            writer = WindowWriter(
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

    def _open(self, writer: WindowWriter) -> None:
        for folder in self._folders.values():
            clean(folder)
        writer.open()

    async def _read(
        self,
        writer: WindowWriter,
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

    def _manifest(self, writer: WindowWriter, counted: Reconciliation) -> dict[str, Any]:
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

    def _publish(self, writer: WindowWriter, manifest: dict[str, Any]) -> None:
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

    def _verify(self, writer: WindowWriter) -> None:
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

    def _judge(self, writer: WindowWriter, manifest: dict[str, Any]) -> None:
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
