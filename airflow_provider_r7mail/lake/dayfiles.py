"""Write an Iceberg table's data files, one or more per day, in bounded memory."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import IO, TYPE_CHECKING

from airflow_provider_r7mail.lake.parquet import ROW_GROUP_BYTES, ParquetTable

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

log = logging.getLogger(__name__)

# Mail comes in the order of its dates, from a few places in a long window at once.
MAX_OPEN_DAYS = 8
COPY_BYTES = 1 << 20


@dataclass(slots=True)
class _DayFile:
    scratch: IO[bytes]
    rows: ParquetTable


class DayFiles:
    """Data files with the rows of one day each, of which a few are open at once.

    An open file is a temporary one on this machine, and is stored when it is complete. So it
    doesn't matter how long the credentials are valid that the catalog gives for the storage.

    :param name: the table's name
    :param table: the table
    :param columns: the columns to write; None for all the table has
    :param stem: the prefix of the files' names
    """

    def __init__(self, name: str, table: Table, columns: Sequence[str] | None, stem: str) -> None:
        import pyarrow as pa
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        self._name = name
        self._table = table
        self._stem = stem
        full = schema_to_pyarrow(table.schema())  # with the ids by which Iceberg identifies columns
        names = full.names if columns is None else columns
        self._schema = pa.schema([full.field(column) for column in names])
        self._open: OrderedDict[date, _DayFile] = OrderedDict()
        self._described: dict[int, list[DataFile]] = {}
        self.paths: list[str] = []
        self.bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows."""
        import pyarrow as pa
        import pyarrow.compute as pc

        batch = batch.select(self._schema.names).cast(self._schema)
        days = batch["date"].cast(pa.date32())
        distinct = sorted(pc.unique(days), key=lambda day: day.as_py())
        for day in distinct:
            file = self._of(day.as_py())
            part = batch if len(distinct) == 1 else batch.filter(pc.equal(days, day))
            file.rows.write(part)
        while sum(file.rows.pending_bytes for file in self._open.values()) >= ROW_GROUP_BYTES:
            max(self._open.values(), key=lambda file: file.rows.pending_bytes).rows.flush()

    def finish(self) -> None:
        """Close all files."""
        while self._open:
            self._close_oldest()

    def discard(self) -> None:
        """Remove all files. Never raises, so that the reason for discarding isn't hidden."""
        for file in self._open.values():
            # On a full disk the first raises ArrowInvalid, and the second, too, has bytes to write.
            with contextlib.suppress(Exception):
                file.rows.finish()
            with contextlib.suppress(Exception):
                file.scratch.close()
        self._open.clear()
        if self.paths:
            with contextlib.suppress(Exception):
                self._renew_credentials()
        for path in self.paths:
            try:
                self._table.io.delete(path)
            except FileNotFoundError:
                pass  # its storing failed
            except Exception as error:  # some FileIOs let their libraries' errors through
                log.warning("%s: could not be removed: %s", path, error)
        self.paths.clear()

    def described(self, table: Table) -> list[DataFile]:
        """Return the files as a commit needs them, described by their footers."""
        from pyiceberg.io.pyarrow import parquet_file_to_data_file

        spec = table.metadata.default_spec_id
        if spec not in self._described:
            self._described[spec] = [
                parquet_file_to_data_file(table.io, table.metadata, path) for path in self.paths
            ]
        return self._described[spec]

    def _of(self, day: date) -> _DayFile:
        if day not in self._open:
            while len(self._open) >= MAX_OPEN_DAYS:
                self._close_oldest()
            scratch = tempfile.TemporaryFile(prefix="r7mail-")  # noqa: SIM115
            self._open[day] = _DayFile(scratch, ParquetTable(self._name, scratch, self._schema))
        self._open.move_to_end(day)
        return self._open[day]

    def _close_oldest(self) -> None:
        day, file = next(iter(self._open.items()))
        file.rows.finish()
        self.bytes += file.scratch.tell()
        name = f"{self._stem}-{len(self.paths):05d}-{uuid.uuid4().hex}.parquet"
        self.paths.append(self._table.location_provider().new_data_location(name))
        try:
            self._store(file.scratch, self.paths[-1])
        except Exception:  # the credentials may have expired: each FileIO has its own error for it
            self._renew_credentials()
            self._store(file.scratch, self.paths[-1])
        file.scratch.close()
        del self._open[day]

    def _store(self, scratch: IO[bytes], path: str) -> None:
        scratch.seek(0)
        with self._table.io.new_output(path).create(overwrite=True) as sink:
            shutil.copyfileobj(scratch, sink, COPY_BYTES)

    def _renew_credentials(self) -> None:
        # Not `refresh`: a commit that is being prepared must not move on to a newer snapshot.
        self._table = self._table.catalog.load_table(self._table.name())
