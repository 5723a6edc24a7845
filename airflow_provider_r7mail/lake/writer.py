"""Turn pages into the rows of a window's tables, and count what doesn't make it into them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.client.sizes import SizeFit
from airflow_provider_r7mail.lake.arrays import int64_array, one_batch, repeated_moment
from airflow_provider_r7mail.lake.decode import DecodedPage
from airflow_provider_r7mail.lake.derived import (
    UNAVAILABLE,
    AttachmentRow,
    attachments_batch,
    attachments_of,
    fatal_statuses,
    recipients_of,
)
from airflow_provider_r7mail.lake.iceberg import IcebergTable, IcebergWindow
from airflow_provider_r7mail.lake.items import NO_DATE
from airflow_provider_r7mail.lake.job import ExtractJob
from airflow_provider_r7mail.lake.layout import PATH_LEVELS, QUARANTINE
from airflow_provider_r7mail.lake.parquet import ParquetPart, ParquetWindow
from airflow_provider_r7mail.lake.schema import TABLES, fitted
from airflow_provider_r7mail.lake.staging import StagedObject
from airflow_provider_r7mail.lake.storage import remove, remove_empty

if TYPE_CHECKING:
    import pyarrow as pa

# Where a window's rows go; both have the same methods.
Destination = ParquetWindow | IcebergWindow
# The number of messages whose recipients are split off at once: a page has too few to be worth it.
RECIPIENT_ROWS = 2_000
RECIPIENT_SOURCES = ["message_id", "date", "to_addresses", "cc_addresses", "bcc_addresses"]
NAMED_ITEMS = 10  # the number of messages that an error names

log = logging.getLogger(__name__)


class Summary:
    """Texts for an error message: the first few, and how many more there are."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._count = 0

    def add(self, text: str) -> None:
        """Add a text."""
        self._count += 1
        if len(self._first) < NAMED_ITEMS:
            self._first.append(text)

    def __len__(self) -> int:
        return self._count

    def __str__(self) -> str:
        more = self._count - len(self._first)
        return "; ".join(self._first) + (f" and {more} more" if more else "")


class WindowWriter:
    """Writes a window's rows; nobody sees them before `commit`.

    :param job: the job
    :param destination: where the rows go
    :param extracted_at: the value of that column
    """

    def __init__(self, job: ExtractJob, destination: Destination, extracted_at: datetime) -> None:
        self.extracted_at = extracted_at
        self._moments = repeated_moment(extracted_at, 0)
        self._job = job
        self._destination = destination
        self._tables: dict[str, ParquetPart | IcebergTable] = {}
        self._quarantine: StagedObject | None = None
        self._addressed: list[pa.RecordBatch] = []
        self._seen: list[pa.Array] = []  # ids of what was read, if rows of other mail are kept
        self._set_aside_ids: list[int] = []
        self._with_files = "attachments" in job.tables or job.attachments is not None
        self.messages = self.quarantined = self.undated = self.repaired = self.gone = 0
        self.attachment_bytes = 0
        self._fatal = fatal_statuses(job.on_attachment_error) if job.attachments else frozenset()
        self.statuses: Counter[str] = Counter()
        self.size_fits: Counter[SizeFit] = Counter()
        self.bad_reasons = Summary()
        self.failures = Summary()
        self.unavailable = Summary()

    def open(self) -> None:
        """Open the tables; call `discard` in any case."""
        for table in self._job.tables:
            columns = self._job.columns if table == "messages" else None
            self._tables[table] = self._destination.writer(table, columns)

    def prepare(
        self, page: DecodedPage, indexes: Sequence[int]
    ) -> tuple[pa.RecordBatch, list[AttachmentRow]]:
        """Return the rows of a page to write, and their attachments."""
        import pyarrow as pa

        good = [index for index in indexes if index not in page.bad]
        if good and good[-1] - good[0] + 1 == len(good):
            batch = page.batch.slice(good[0], len(good))  # no copy
        else:
            batch = page.batch.take(int64_array(good))
        if len(self._moments) < batch.num_rows:
            self._moments = repeated_moment(self.extracted_at, batch.num_rows)
        batch = batch.append_column("extracted_at", self._moments.slice(0, batch.num_rows))
        batch = batch.append_column("gone_at", pa.nulls(batch.num_rows, self._moments.type))
        for index in indexes:
            if index in page.bad:
                self._set_aside(page, index)
        self.repaired += len(page.repaired.intersection(good))
        return batch, attachments_of(batch) if self._with_files else []

    def write_page(
        self, page: DecodedPage, indexes: Sequence[int]
    ) -> tuple[pa.RecordBatch, list[AttachmentRow]]:
        """Prepare and write a page at once."""
        batch, files = self.prepare(page, indexes)
        self.write(batch, files)
        return batch, files

    def _set_aside(self, page: DecodedPage, index: int) -> None:
        bad = page.bad[index]
        if self._quarantine is None:
            home = next(iter(self._destination.folders.values()))
            self._quarantine = StagedObject(home / QUARANTINE)
        if self._job.privacy.active:
            bad = replace(bad, raw=None)  # it may contain what the policy protects
        self._quarantine.write(f"{bad.to_json()}\n".encode())
        self.quarantined += 1
        self.undated += bad.reason == NO_DATE
        if bad.message_id is not None:
            self._set_aside_ids.append(bad.message_id)
        self.bad_reasons.add(f"{bad.message_id}: {bad.reason}")
        log.warning("Message %s is set aside: %s.", bad.message_id, bad.reason)

    def write(self, batch: pa.RecordBatch, files: Sequence[AttachmentRow]) -> None:
        """Write a page's rows."""
        self.messages += batch.num_rows
        if self._job.on_gone == "keep":
            self._seen.append(batch["message_id"])
        if "messages" in self._tables:
            self._put("messages", batch, batch)
        if "recipients" in self._tables:
            self._addressed.append(batch.select(RECIPIENT_SOURCES))
            if sum(part.num_rows for part in self._addressed) >= RECIPIENT_ROWS:
                self._write_recipients()
        if "attachments" in self._tables and files:
            self._put("attachments", attachments_batch(files), batch)
        for row in files:
            self.statuses[row.status] += 1
            if (fit := row.size_fit) is not None:
                self.size_fits[fit] += 1
            if row.status == "downloaded":
                self.attachment_bytes += row.size or 0
            if row.status in self._fatal:
                self.failures.add(f"message {row.message_id}: {row.error}")
            elif row.status in UNAVAILABLE:
                self.unavailable.add(f"message {row.message_id}: {row.error}")

    def _write_recipients(self) -> None:

        if self._addressed:
            batch = one_batch(self._addressed)
            self._put("recipients", recipients_of(batch), batch)
        self._addressed = []

    def _put(self, table: str, rows: pa.RecordBatch, messages: pa.RecordBatch) -> None:
        """Write rows to a table; there is no other way into it, past the privacy policy."""
        self._tables[table].write(self._job.privacy.protect(rows), messages)

    def keep_gone(self, privacy: Mapping[str, Any] | None) -> None:
        """Write what the tables have of mail that has left the folder.

        A message that is set aside now was there before: its rows stay as they are.

        :param privacy: the policy of the rows in the tables; see `Privacy.protect_stored`
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        read = pa.chunked_array(self._seen, pa.int64())
        there = int64_array(self._set_aside_ids)
        kept: pa.ChunkedArray | None = None
        # From messages on: the others' rows without one were left by a run that was killed.
        for table in sorted(self._tables, key=TABLES.index):
            chunks = []
            for stored in self._destination.rows(table):
                batch = fitted(stored, table)
                ids = batch["message_id"]
                gone = pc.invert(pc.is_in(ids, value_set=read))
                if kept is not None:
                    gone = pc.and_(gone, pc.is_in(ids, value_set=kept))
                batch = batch.filter(gone)
                ids = batch["message_id"]
                chunks.append(ids)
                moments = repeated_moment(self.extracted_at, batch.num_rows)
                missed = pc.if_else(
                    pc.is_in(ids, value_set=there), pa.nulls(len(moments), moments.type), moments
                )
                place = batch.schema.get_field_index("gone_at")
                batch = batch.set_column(place, "gone_at", pc.coalesce(batch["gone_at"], missed))
                self._tables[table].write(self._job.privacy.protect_stored(batch, privacy), batch)
            if table == "messages":
                kept = pa.chunked_array(chunks, pa.int64())
                self.gone = len(kept)

    def finish(self) -> None:
        """Write the remaining rows and the footers."""
        self._write_recipients()
        for table in self._tables.values():
            table.finish()

    def written(self) -> dict[str, Any]:
        """Return the manifest's list of files, or of Iceberg tables."""
        return {self._destination.listed_as: [table.record() for table in self._tables.values()]}

    def commit(self) -> None:
        """Publish the rows of all tables, messages last."""
        for table in reversed(self._tables.values()):
            table.commit()
        for folder in self._destination.folders.values():
            remove(folder / QUARANTINE)
        if self._quarantine is not None:
            self._quarantine.commit()

    def overtaken(self) -> str | None:
        """Return a file or table to which another run of the window has published since."""
        return next((name for table in self._tables.values() if (name := table.overtaken())), None)

    def discard(self) -> None:
        """Drop what was not committed."""
        for item in (*self._tables.values(), self._quarantine):
            if item is not None:
                item.discard()
        for folder in self._destination.folders.values():
            remove_empty(folder, PATH_LEVELS)
