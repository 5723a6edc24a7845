"""Write tables as Parquet files in bounded memory, one file per table and window."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.exceptions import R7MailConfigError, R7MailPublishError
from airflow_provider_r7mail.lake.layout import MANIFEST, PART
from airflow_provider_r7mail.lake.schema import (
    LONG_COLUMNS,
    REPEATING_COLUMNS,
    RUN_ID_KEY,
    TABLES,
    schema,
)
from airflow_provider_r7mail.lake.staging import StagedObject
from airflow_provider_r7mail.lake.storage import (
    ObjectPath,
    absence,
    read,
    read_end,
    store_errors,
    url_of,
)

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


# The size of a row group in memory: readers can skip or share groups of this size. Larger ones take
# memory here while they fill, smaller ones until the end: the writer keeps some 40 KB for each.
ROW_GROUP_BYTES = 24 << 20
# The rows of the other tables are short: this is already some 50,000 of them.
SHORT_ROW_GROUP_BYTES = 4 << 20
# More than the schema and its metadata take, which are at the end of a file.
METADATA_BYTES = 64 << 10


class ParquetTable:
    """Writes a table's rows as they come, in row groups of bounded size.

    :param table: the table's name
    :param sink: a binary file to write to; it is not closed
    :param columns: the columns to write; None for all; a schema for an Iceberg table's own
    :param metadata: additional metadata for the file's schema
    :raises R7MailConfigError: an unknown column
    """

    def __init__(
        self,
        table: str,
        sink: Any,
        columns: Sequence[str] | pa.Schema | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        full = schema(table)
        if isinstance(columns, pa.Schema):
            full, columns = columns, None
        self._names = list(full.names if columns is None else columns)
        unknown = [name for name in self._names if name not in full.names]
        if unknown:
            raise R7MailConfigError(
                f"columns: {table} has no {', '.join(unknown)}. Known: {', '.join(full.names)}."
            )
        if columns is not None:
            full = pa.schema([full.field(name) for name in self._names], full.metadata)
        own = {key.encode(): value.encode() for key, value in (metadata or {}).items()}
        self._schema = full.with_metadata({**(full.metadata or {}), **own})
        self._writer = pq.ParquetWriter(
            sink,
            self._schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=[name for name in self._names if name in REPEATING_COLUMNS],
            write_statistics=[name for name in self._names if name not in LONG_COLUMNS],
        )
        self._pending: list[pa.RecordBatch] = []
        self._row_group_bytes = ROW_GROUP_BYTES if table == "messages" else SHORT_ROW_GROUP_BYTES
        self.pending_bytes = 0
        self.rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows; write a row group if there are enough."""
        if batch.num_rows == 0:
            return
        chosen = batch.select(self._names)
        self._pending.append(chosen)
        self.pending_bytes += chosen.get_total_buffer_size()
        self.rows += batch.num_rows
        if self.pending_bytes >= self._row_group_bytes:
            self.flush()

    def finish(self) -> None:
        """Write the remaining rows and the footer. Without these the file isn't valid Parquet."""
        self.flush()
        self._writer.close()

    def flush(self) -> None:
        """Write the pending rows as a row group."""
        import pyarrow as pa

        if not self._pending:
            return
        table = pa.Table.from_batches(self._pending, self._pending[0].schema)
        self._writer.write_table(table.cast(self._schema), row_group_size=table.num_rows)
        self._pending, self.pending_bytes = [], 0
        del table
        # Otherwise Arrow keeps 20 MB more than it needs, and the C library's heap grows with each
        # million messages.
        pa.default_memory_pool().release_unused()
        pa.system_memory_pool().release_unused()


class ParquetPart:
    """A table's file for one window, staged until it is committed."""

    def __init__(
        self, table: str, folder: ObjectPath, columns: Sequence[str] | None, run_id: str
    ) -> None:
        self._table = table
        self._run_id = run_id
        self._file = StagedObject(folder / PART)
        self._rows = ParquetTable(table, self._file, columns, {RUN_ID_KEY: run_id})

    def write(self, batch: pa.RecordBatch, _: pa.RecordBatch) -> None:
        """Add rows; the messages that they belong to are not needed here."""
        self._rows.write(batch)

    def finish(self) -> None:
        """Write the remaining rows and the footer."""
        self._rows.finish()

    def commit(self) -> None:
        """Put the file in place."""
        self._file.commit()

    def overtaken(self) -> str | None:
        """Return the file's path if another run has replaced it since."""
        path = self._file.path
        path.fs.invalidate_cache(str(path.parent.path))
        # To parse the footer takes twenty times as long as to read it.
        return None if self._run_id.encode() in read_end(path, METADATA_BYTES) else url_of(path)

    def record(self) -> dict[str, Any]:
        """Return the file's entry in the manifest."""
        return {
            "table": self._table,
            "path": url_of(self._file.path),
            "rows": self._rows.rows,
            "bytes": self._file.bytes,
            "sha256": self._file.sha256,
        }

    def discard(self) -> None:
        """Remove the file unless it was committed. Never raises."""
        self._file.discard()


class ParquetWindow:
    """A window's folders below an output path, one for each table.

    :param output: the output path
    :param tables: the tables to write
    :param name: the window's path below a table; see `layout.window_name`
    :param run_id: the run's id
    """

    listed_as = "files"

    def __init__(self, output: ObjectPath, tables: Sequence[str], name: str, run_id: str) -> None:
        self.output = output
        self.name = name
        self.run_id = run_id
        self.folders: dict[str, Any] = {table: output / table / name for table in tables}
        self.home = self.folders[tables[0]]

    def writer(self, table: str, columns: Sequence[str] | None = None) -> ParquetPart:
        """Return a writer for the window's rows of a table.

        :param columns: the columns to write; None for all
        """
        return ParquetPart(table, self.folders[table], columns, self.run_id)

    def stored(self, table: str, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return the window's rows that an earlier run wrote; none if its file can't be read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        data = read(self.folders[table] / PART)
        if data is None:
            return []
        try:
            # Without the columns that an earlier version of the package didn't write.
            return read_rows(pq.ParquetFile(pa.BufferReader(data)), columns)
        except pa.ArrowException:
            return []

    def rows(self, table: str) -> Iterator[pa.RecordBatch]:
        """Yield the window's rows that an earlier run wrote, in bounded memory.

        :raises R7MailPublishError: they can't be read
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.folders[table] / PART
        with absence(path), store_errors(path), path.fs.open(path.path, "rb") as file:
            try:
                found = pq.ParquetFile(file)
                for group in range(found.num_row_groups):
                    yield from found.read_row_group(group).to_batches()
            except pa.ArrowException as error:
                raise R7MailPublishError(
                    f"{url_of(path)}: can't be read ({error}), so that rows of mail that has left "
                    'would be lost. Run the window with on_gone="drop" to replace it nevertheless.'
                ) from error

    def stale_folders(self) -> Iterator[Any]:
        """Yield the folders of other tables whose manifests list files that this run replaces."""
        for table in TABLES:
            if table not in self.folders:
                folder = self.output / table / self.name
                with suppress(ValueError, LookupError, TypeError):  # none, or not one of ours
                    listed = json.loads(read(folder / MANIFEST) or b"")["files"]
                    if any(file["table"] in self.folders for file in listed):
                        yield folder

    def close(self) -> None:
        """Do nothing: no connection is open."""


def read_rows(file: pq.ParquetFile, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a file, which may have none: pyarrow 18 can't read such a file at once."""
    return [
        row
        for group in range(file.num_row_groups)
        for row in file.read_row_group(group, columns=list(columns)).to_pylist()
    ]


def read_slice(
    path: ObjectPath, columns: Sequence[str], first: int, count: int
) -> Iterator[dict[str, Any]]:
    """Yield some of a file's rows, without the columns that it doesn't have.

    Only the row groups and columns needed are read.

    :param first: the number of rows before
    :param count: how many rows
    """
    import pyarrow.parquet as pq

    with path.fs.open(path.path, "rb", cache_type="none") as opened:
        file = pq.ParquetFile(opened)
        names = [name for name in columns if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first < rows and count > 0:
                found = file.read_row_group(group, columns=names).slice(max(first, 0), count)
                yield from found.to_pylist()
                count -= found.num_rows
            first = max(first - rows, 0)
