"""Writes a window's tables beside their place, and puts them there when all is whole."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.lake.arrays import int64_array, repeated_moment
from airflow_provider_r7mail.lake.decode import DecodedPage
from airflow_provider_r7mail.lake.derived import (
    AttachmentRow,
    attachments_batch,
    attachments_of,
    recipients_of,
)
from airflow_provider_r7mail.lake.iceberg import IcebergTable, IcebergWindow
from airflow_provider_r7mail.lake.job import ExtractJob
from airflow_provider_r7mail.lake.layout import PART, PATH_LEVELS, QUARANTINE
from airflow_provider_r7mail.lake.parquet import ParquetTable
from airflow_provider_r7mail.lake.schema import RUN_ID_KEY
from airflow_provider_r7mail.lake.storage import StagedObject, remove, remove_empty

if TYPE_CHECKING:
    import pyarrow as pa

NAMED_IDS = 10
# Messages whose recipients are split off at once: a page's are too few for the fixed cost of it.
RECIPIENT_ROWS = 2_000
RECIPIENT_SOURCES = ["message_id", "date", "to_addresses", "cc_addresses", "bcc_addresses"]

log = logging.getLogger(__name__)


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


class WindowWriter:
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
        import pyarrow as pa

        if self._addressed:
            batch = pa.concat_batches(self._addressed)
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
