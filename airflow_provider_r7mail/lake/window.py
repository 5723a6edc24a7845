"""Extract one window of a folder into its tables and attachments.

The window is the unit of work: it is staged as a whole, then published over an earlier result.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from airflow_provider_r7mail import __version__
from airflow_provider_r7mail.client.counting import count_bounds
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.client.sweep import Key
from airflow_provider_r7mail.client.window_reader import Reconciliation, RereadError
from airflow_provider_r7mail.exceptions import (
    R7MailAttachmentError,
    R7MailBadMessageError,
    R7MailExtractError,
    R7MailPublishError,
)
from airflow_provider_r7mail.lake.attachments import AttachmentCopier, StoredFile
from airflow_provider_r7mail.lake.filenames import name_filter
from airflow_provider_r7mail.lake.iceberg import IcebergWindow
from airflow_provider_r7mail.lake.intake import Intake
from airflow_provider_r7mail.lake.job import ExtractJob, Progress
from airflow_provider_r7mail.lake.layout import QUARANTINE, folder_path, window_name
from airflow_provider_r7mail.lake.manifest import read_manifest
from airflow_provider_r7mail.lake.parquet import ParquetWindow
from airflow_provider_r7mail.lake.publication import publish
from airflow_provider_r7mail.lake.schema import SCHEMA_VERSION
from airflow_provider_r7mail.lake.splitting import make_room
from airflow_provider_r7mail.lake.staging import clean
from airflow_provider_r7mail.lake.storage import ObjectPath, StorePath, make_folder, url_of
from airflow_provider_r7mail.lake.threads import run_to_end
from airflow_provider_r7mail.lake.writer import Destination, WindowWriter

log = logging.getLogger(__name__)
# How often to read a window while the server counts more messages than it lists.
MAX_READINGS = 3


async def extract_window(
    client: AsyncClient,
    job: ExtractJob,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Extract one window, and replace the result of an earlier run.

    :param client: an open client
    :param on_progress: called after each page
    :return: the manifest
    :raises R7MailConfigError: the job can't work; nothing was read
    :raises R7MailRequestError, R7MailExtractError: the window could not be read or published; the
        earlier result is unchanged unless the error says otherwise
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
        self._job = replace(job, output=StorePath.of(job.output))
        self._on_progress = on_progress
        self._run_id = uuid.uuid4().hex
        self._started = time.monotonic()
        self._earlier = client.stats.as_dict()
        self._extracted_at = datetime.now(UTC)
        self._replaces: dict[str, Any] | None = None
        self._mailbox = job.privacy.mailbox(client.config.login)
        self._name = window_name(self._mailbox, job.folder, job.criteria.window.label())

    async def run(self) -> dict[str, Any]:
        with (
            # A thread for each kind of work, with its own queue: it takes up the next page without
            # a detour over the event loop, which takes as long as the work itself. More threads
            # would only hold more memory.
            ThreadPoolExecutor(1, "r7mail-decode") as decoder,
            ThreadPoolExecutor(1, "r7mail-write") as scribe,
        ):
            destination: Destination | None = None
            try:
                destination = await run_to_end(self._open_destination)
                return await self._extract(destination, decoder, scribe)
            except OSError as error:
                raise R7MailPublishError(
                    f"{self._job.notes / self._name}: the window can't be written ({error}). An "
                    "earlier result is unchanged."
                ) from error
            finally:
                if destination is not None:
                    await asyncio.to_thread(destination.close)

    def _open_destination(self) -> Destination:
        job = self._job
        if job.iceberg is None:
            make_room(job.output, job.tables, self._name, replace=False)
            return ParquetWindow(job.output, job.tables, self._name, self._run_id)
        return IcebergWindow(
            job.iceberg,
            job.output,
            job.tables,
            self._name,
            mailbox=self._mailbox,
            folder=job.folder,
            window=job.criteria.window,
            run_id=self._run_id,
        )

    async def _extract(
        self, destination: Destination, decoder: Executor, scribe: Executor
    ) -> dict[str, Any]:
        if self._job.attachments is None:
            return await self._read_and_publish(destination, None, decoder, scribe)
        copier = await asyncio.to_thread(self._copier, self._job.attachments, destination)
        async with copier:
            return await self._read_and_publish(destination, copier, decoder, scribe)

    async def _read_and_publish(
        self,
        destination: Destination,
        copier: AttachmentCopier | None,
        decoder: Executor,
        scribe: Executor,
    ) -> dict[str, Any]:
        earlier: set[Key] | None = None
        number, sweep = 1, False
        while number <= MAX_READINGS:
            # Mail that arrives and leaves meanwhile explains missing messages (R6), but no more
            # than the previous reading met and this one didn't.
            keys: set[Key] | None = set() if number > 1 else None
            writer = WindowWriter(self._job, destination, self._extracted_at)
            intake = Intake(
                client=self._client,
                job=self._job,
                copier=copier,
                writer=writer,
                decoder=decoder,
                scribe=scribe,
                on_progress=self._on_progress,
            )
            try:
                self._replaces = await run_to_end(_open, destination, writer)
                counted = await intake.run(keys, sweep=sweep or number == MAX_READINGS)
                gone = 0 if earlier is None or keys is None else len(earlier - keys)
                if counted.missing <= gone and not counted.doubtful:
                    self._refuse_unreadable(writer)
                    manifest = await run_to_end(
                        partial(
                            publish,
                            destination,
                            writer,
                            partial(self._manifest, destination, writer, counted),
                            [] if copier is None else copier.outdated,
                            began_over=self._replaces,
                            keep_gone=self._job.on_gone == "keep",
                        )
                    )
                    if manifest["run_id"] == self._run_id:
                        self._judge(destination, writer)
                    return manifest
            except RereadError as error:
                sweep = sweep or error.sweep
                continue
            finally:
                # In that thread, so that it comes after any write in progress when cancelled.
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
            number += 1
        raise R7MailExtractError(
            f"Folder {self._job.folder}, window {self._job.criteria.window.label()}: the server "
            f"counts {counted.counted_after} messages, but lists only {counted.read}, in "
            f"{MAX_READINGS} readings. Nothing was written. Mail that arrives or leaves doesn't "
            "explain this: check the server's index of this folder."
        )

    def _refuse_unreadable(self, writer: WindowWriter) -> None:
        """Refuse a window in which no message can be read: the server then sends something else.

        Mail without a date may be listed for any window (R27), also for one that has no other.
        """
        had_mail = bool(self._replaces and self._replaces.get("messages"))
        if not writer.messages and writer.quarantined > (0 if had_mail else writer.undated):
            raise R7MailExtractError(
                f"Folder {self._job.folder}, window {self._job.criteria.window.label()}: no "
                f"message that the server lists can be read ({writer.quarantined} in all): "
                f"{writer.bad_reasons}. Nothing was written; an earlier result is unchanged. Has "
                "the server been upgraded? Run r7mail check."
            )

    def _copier(self, root: ObjectPath, destination: Destination) -> AttachmentCopier:
        job = self._job
        # An unwritable attachments_path fails once, not for each file.
        make_folder(root)
        return AttachmentCopier(
            client=self._client,
            folder=job.folder,
            root=folder_path(root, self._mailbox, job.folder),
            wanted=name_filter(job.attachment_pattern),
            max_bytes=job.max_attachment_bytes,
            strict=job.on_size_mismatch == "fail",
            known=_known_files(destination) if "attachments" in job.tables else {},
            stored_name=job.privacy.file_name,
        )

    def _manifest(
        self,
        destination: Destination,
        writer: WindowWriter,
        counted: Reconciliation,
    ) -> dict[str, Any]:
        bounds, stats = self._job.criteria.window, self._client.stats
        return {
            "schema_version": SCHEMA_VERSION,
            "provider_version": __version__,
            "run_id": self._run_id,
            "mailbox": self._mailbox,
            "folder_id": self._job.folder,
            "window": {
                "start": bounds.start.isoformat() if bounds.start else None,
                "end": bounds.end.isoformat() if bounds.end else None,
            },
            "extracted_at": self._extracted_at.isoformat(),
            "filters": self._job.filters(),
            "settings": self._job.settings(),
            "strays": self._job.strays,
            "path": url_of(destination.home),
            "privacy": self._job.privacy.record(),
            **writer.written(),
            "messages": writer.messages,
            "gone": writer.gone,
            "quarantined": writer.quarantined,
            "readings": self._client.traits.record(),
            "counted": self._counted(counted),
            "server_count": {"before": counted.counted_before, "after": counted.counted_after},
            **{name: number - self._earlier[name] for name, number in stats.as_dict().items()},
            "duplicates_dropped": counted.repeated,
            "rows_repaired": writer.repaired,
            "attachments": dict(writer.statuses),
            "attachment_bytes": writer.attachment_bytes,
            "listed_sizes": dict(writer.size_fits),
            "seconds": round(time.monotonic() - self._started, 3),
        }

    def _counted(self, counted: Reconciliation) -> dict[str, Any]:
        """Return what a Count under the same bounds gives as long as nothing changes (R2, R4).

        It is only known if the folder didn't change while it was read.
        """
        start, end = count_bounds(self._client.traits, self._job.criteria.window)
        before, after = counted.counted_before, counted.counted_after
        still = before == counted.read and after in {None, before}
        return {
            "start": start.isoformat() if start else None,
            "end": end.isoformat() if end else None,
            "messages": before if still else None,
        }

    def _judge(self, destination: Destination, writer: WindowWriter) -> None:
        """Fail after publishing if something is missing from the tables."""
        if writer.unavailable:
            log.warning("Attachments that can't be downloaded: %s.", writer.unavailable)
        if different := writer.size_fits["different"]:
            log.warning(
                "Attachments of another size than listed (R26), although they came whole: %s.",
                different,
            )
        if writer.quarantined and self._job.on_bad_message == "fail":
            raise R7MailBadMessageError(
                f"Messages that don't fit the tables: {writer.quarantined} "
                f"({writer.bad_reasons}). They are in {destination.home / QUARANTINE}; all others "
                'were written. With on_bad_message="quarantine" the task continues without them.'
            )
        if failed := len(writer.failures):
            raise R7MailAttachmentError(
                f"Attachments not copied: {failed} of {sum(writer.statuses.values())} "
                f"({writer.failures}). Everything else was written to {destination.home}; run it "
                'again to copy only what is missing. With on_attachment_error="record" the task '
                "continues without them."
            )


def _open(destination: Destination, writer: WindowWriter) -> dict[str, Any] | None:
    """Prepare to write; return the manifest that is to be replaced."""
    for folder in destination.folders.values():
        clean(folder)
    writer.open()
    return read_manifest(destination.home)


def _known_files(destination: Destination) -> dict[tuple[int, str], StoredFile]:
    """Return what an earlier run of this window stored, as its attachments table says."""
    columns = ("message_id", "file_name", "uri", "size", "sha256", "listed_size")
    return {
        (row["message_id"], row["file_name"]): StoredFile(
            row["uri"], row["size"], row["sha256"], row.get("listed_size")
        )
        for row in destination.stored("attachments", columns)
        if row["sha256"] is not None
    }
