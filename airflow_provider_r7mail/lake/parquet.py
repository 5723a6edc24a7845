"""Writes a table's rows as Parquet, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.lake.schema import LONG_COLUMNS, REPEATING_COLUMNS, schema

if TYPE_CHECKING:
    import pyarrow as pa


# Row groups of this many bytes in memory: readers skip and share them well. Larger ones cost memory
# here while they fill; smaller ones to the end, since the writer keeps some 40 KB of each.
ROW_GROUP_BYTES = 24 << 20
# The other tables' rows are short: this is some 50,000 of them already.
SHORT_ROW_GROUP_BYTES = 4 << 20


# -- Parquet --------------------------------------------------------------------------------


class ParquetTable:
    """Writes one table's rows as they come, in row groups of bounded size.

    :param table: the table's name
    :param sink: a binary file to write to; it is not closed
    :param columns: the columns to write; None for all; a schema for those of Iceberg
    :param metadata: further metadata for the file's schema
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
        chosen = [full.field(name) for name in self._names]
        self._schema = pa.schema(
            chosen,
            metadata={
                **(full.metadata or {}),
                **{k.encode(): v.encode() for k, v in (metadata or {}).items()},
            },
        )
        self._writer = pq.ParquetWriter(
            sink,
            self._schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=[f.name for f in chosen if f.name in REPEATING_COLUMNS],
            write_statistics=[f.name for f in chosen if f.name not in LONG_COLUMNS],
        )
        self._pending: list[pa.RecordBatch] = []
        self._row_group_bytes = ROW_GROUP_BYTES if table == "messages" else SHORT_ROW_GROUP_BYTES
        self.pending_bytes = 0
        self.rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Take rows; writes a row group when enough have come."""
        if batch.num_rows == 0:
            return
        chosen = batch.select(self._names)
        self._pending.append(chosen)
        self.pending_bytes += chosen.get_total_buffer_size()
        self.rows += batch.num_rows
        if self.pending_bytes >= self._row_group_bytes:
            self.flush()

    def finish(self) -> None:
        """Write what is left and the footer. Without this the file is not valid Parquet."""
        self.flush()
        self._writer.close()

    def flush(self) -> None:
        """Write a row group of what is pending."""
        import pyarrow as pa

        if not self._pending:
            return
        table = pa.Table.from_batches(self._pending, self._pending[0].schema)
        self._writer.write_table(table.cast(self._schema), row_group_size=table.num_rows)
        self._pending, self.pending_bytes = [], 0
        del table
        # Otherwise Arrow keeps 20 MB more than it ever needs at once, and the C library's
        # heap some more with each million messages.
        pa.default_memory_pool().release_unused()
        pa.system_memory_pool().release_unused()
