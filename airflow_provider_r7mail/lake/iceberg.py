"""Replace a window's rows in Iceberg tables, with one atomic commit per table.

A table has no path to identify a window, so each row does: its `mailbox`, `folder` and `window` are
those in the paths of Parquet files, and `run_id` is the run that wrote it. A commit to one table is
atomic, commits to three tables are not; but each run of a window has its own `run_id`, so that a
join on it never mixes runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tenacity

from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.lake.arrays import int64_array, text_array
from airflow_provider_r7mail.lake.catalog import (
    KEYS,
    IcebergTarget,
    iceberg_schema,
    only_value,
    open_table,
)
from airflow_provider_r7mail.lake.commits import (
    find_snapshot,
    for_one_commit,
    has_no_effect,
    retried,
)
from airflow_provider_r7mail.lake.dayfiles import DayFiles
from airflow_provider_r7mail.lake.layout import WINDOWS
from airflow_provider_r7mail.lake.locks import locked
from airflow_provider_r7mail.lake.schema import RUN_ID_KEY
from airflow_provider_r7mail.lake.storage import ObjectPath

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.catalog import Catalog
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import FileScanTask, Table


class IcebergWindow:
    """A window in the tables of a catalog. Close it.

    :param target: the catalog
    :param output: the output path
    :param tables: the tables to write
    :param name: the window's path; see `layout.window_name`
    :param mailbox: the mailbox's name in the tables
    :param folder: the folder's id
    :param window: the window, with both bounds
    :param run_id: the run's id
    :raises R7MailConfigError: the catalog can't be used, or has different tables of these names
    :raises OSError: it is unavailable now
    """

    listed_as = "tables"

    def __init__(
        self,
        target: IcebergTarget,
        output: ObjectPath,
        tables: Sequence[str],
        name: str,
        *,
        mailbox: str,
        folder: int,
        window: Window,
        run_id: str,
    ) -> None:
        self.target = target
        self.run_id = run_id
        self.output = output
        self.name = name
        self.home = output / WINDOWS / name
        self.folders: dict[str, Any] = {WINDOWS: self.home}
        self.bounds = window
        self.key: dict[str, str | int] = dict(
            zip(KEYS, (mailbox, folder, window.label()), strict=True)
        )
        # Of two processes that create the catalog's own tables, the mail tables or a column at the
        # same time, one fails. When it tries again, they exist.
        making = contextlib.nullcontext() if target.properties else locked(output, "catalog")
        with target.errors(), making:
            for attempt in tenacity.Retrying(
                retry=tenacity.retry_if_not_exception_type((R7MailConfigError, OSError)),
                stop=tenacity.stop_after_attempt(4),
                wait=tenacity.wait_random(0, 1),
                reraise=True,
            ):
                with attempt:
                    self._catalog, self._tables = self._open(output, tables)

    def _open(self, output: ObjectPath, names: Sequence[str]) -> tuple[Catalog, dict[str, Table]]:
        catalog = self.target.load(output)
        try:
            return catalog, {
                name: open_table(catalog, self.target.namespace, name) for name in names
            }
        except BaseException:
            catalog.close()
            raise

    def close(self) -> None:
        """Close the catalog."""
        self._catalog.close()

    def writer(self, table: str, columns: Sequence[str] | None = None) -> IcebergTable:
        """Return a writer for the window's rows of a table.

        :param columns: the columns to write; None for all
        """
        return IcebergTable(self, table, self._tables[table], columns)

    def stored(self, table: str, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return the window's rows that an earlier run wrote.

        :raises OSError: the table can't be read
        """
        with self.target.errors():
            found = self._tables[table].refresh()
            scan = found.scan(row_filter=self.where(), selected_fields=tuple(columns))
            rows: list[dict[str, Any]] = scan.to_arrow().to_pylist()
            return rows

    def rows(self, table: str) -> Iterator[pa.RecordBatch]:
        """Yield the window's rows that an earlier run wrote, in bounded memory.

        :raises OSError: they can't be read
        """
        with self.target.errors():
            found = self._tables[table].refresh()
            yield from found.scan(row_filter=self.where()).to_arrow_batch_reader()

    def stale_folders(self) -> Sequence[Any]:
        """Return nothing: tables that this run doesn't write have no manifests of their own."""
        return ()

    def where(self) -> BooleanExpression:
        """Match the window's rows; dates are included so that other days' manifests aren't read."""
        from pyiceberg import expressions

        start, end = self.bounds.start, self.bounds.end
        assert start is not None  # noqa: S101 - ExtractJob.check made sure
        assert end is not None  # noqa: S101
        make: Any = expressions  # mypy takes their constructors to be pydantic's
        dated = make.And(
            make.GreaterThanOrEqual("date", start.isoformat()),
            make.LessThan("date", end.isoformat()),
        )
        return make.And(self.is_this(), dated)  # type: ignore[no-any-return]

    def is_this(self) -> BooleanExpression:
        """Match the rows that name the window."""
        from pyiceberg import expressions

        make: Any = expressions
        return make.And(  # type: ignore[no-any-return]
            *(make.EqualTo(name, value) for name, value in self.key.items())
        )


class IcebergTable:
    """A window's rows in one table: written to data files as they come, then committed.

    Data files are invisible before `commit`. Those that a killed process left are not part of the
    table; table maintenance removes such orphans.
    """

    def __init__(
        self, window: IcebergWindow, name: str, table: Table, columns: Sequence[str] | None
    ) -> None:
        self._window = window
        self._name = name
        self._table = table
        own = iceberg_schema(name).names
        if columns is not None:
            own = [column for column in own if column in {*KEYS, "run_id", "date", *columns}]
        self._new = self._files(own)
        self._settled = False
        self._sequence_number = 0
        self.rows = 0
        self.snapshot_id: int | None = None

    def write(self, batch: pa.RecordBatch, messages: pa.RecordBatch) -> None:
        """Add rows.

        :param messages: the messages that they belong to, for their dates
        :raises OSError: they can't be written
        """
        import pyarrow.compute as pc

        if batch.num_rows == 0:
            return
        if "date" not in batch.schema.names:
            rows = pc.index_in(batch["message_id"], value_set=messages["message_id"])
            batch = batch.append_column("date", messages["date"].take(rows))
        for name, value in (*self._window.key.items(), ("run_id", self._window.run_id)):
            batch = batch.append_column(name, _repeated(value, batch.num_rows))
        self.rows += batch.num_rows
        with self._window.target.errors():
            self._new.write(batch)

    def finish(self) -> None:
        """Write the remaining rows and the footers."""
        with self._window.target.errors():
            self._new.finish()

    def commit(self) -> None:
        """Replace the window's rows in the table with those written, in one commit.

        If another commit came first, it looks up again what to replace.

        :raises OSError: the catalog refused it; the error says if that is uncertain
        """
        with self._window.target.errors():
            retried(self._commit)

    def overtaken(self) -> str | None:
        """Return the table's name if another run of the window has committed since this one.

        If so, some tables may have one run's rows, and some the other's.

        :raises OSError: the catalog is unavailable
        """
        with self._window.target.errors():
            for snapshot in self._table.refresh().snapshots():
                newer = (snapshot.sequence_number or 0) > self._sequence_number
                if newer and self._told(snapshot, self._properties(), "mailbox folder window"):
                    return self.identifier
        return None

    def discard(self) -> None:
        """Remove the data files unless a commit was tried. Never raises."""
        if not self._settled:
            self._settled = True
            self._new.discard()

    @property
    def identifier(self) -> str:
        """The table's name in the catalog, with its namespace."""
        return f"{self._window.target.namespace}.{self._name}"

    def record(self) -> dict[str, Any]:
        """Return the table's entry in the manifest.

        `snapshot_id` is null if the window had no rows before and has none now: then nothing was
        committed.
        """
        return {
            "table": self._name,
            "identifier": self.identifier,
            "snapshot_id": self.snapshot_id,
            "rows": self.rows,
            "files": len(self._new.paths),
            "bytes": self._new.bytes,
            "location": self._table.location(),
        }

    def _files(self, columns: Sequence[str] | None) -> DayFiles:
        return DayFiles(self._name, self._table, columns, self._window.run_id)

    def _properties(self) -> dict[str, str]:
        named = {f"r7mail.{name}": str(value) for name, value in self._window.key.items()}
        return {**named, RUN_ID_KEY: self._window.run_id, "r7mail.rows": str(self.rows)}

    @staticmethod
    def _told(snapshot: Any, properties: Mapping[str, str], names: str) -> bool:
        """Return whether a snapshot has the named properties with these values."""
        summary = snapshot.summary
        told = {} if summary is None else summary.additional_properties
        return all(
            told.get(f"r7mail.{name}") == properties[f"r7mail.{name}"] for name in names.split()
        )

    def _commit(self) -> None:
        table = self._table.refresh()
        own = find_snapshot(table, RUN_ID_KEY, self._window.run_id)
        if own is not None:
            self._committed(own.snapshot_id)
            return
        old = list(table.scan(row_filter=self._window.where()).plan_files())
        if not old and not self._new.paths:
            self._committed(None)
            return
        kept = self._files(None)
        transaction = for_one_commit(table).transaction()
        change = transaction.update_snapshot(snapshot_properties=self._properties()).overwrite()
        try:
            for task in old:
                change.delete_data_file(task.file)
                if not self._is_all_of_window(task.file):
                    self._copy_rest(task, kept)
            kept.finish()
            for file in (*self._new.described(table), *kept.described(table)):
                change.append_data_file(file)
            change.commit()  # so far only to the transaction
        except BaseException:
            kept.discard()
            raise
        self._settled = True  # from here on files may be part of the table
        try:
            transaction.commit_transaction()
        except Exception as error:
            if has_no_effect(table, error, RUN_ID_KEY, self._window.run_id):
                self._settled = False
                kept.discard()
            raise
        self._committed(change.snapshot_id)

    def _committed(self, snapshot_id: int | None) -> None:
        self.snapshot_id = snapshot_id
        snapshot = (
            self._table.current_snapshot()
            if snapshot_id is None
            else self._table.snapshot_by_id(snapshot_id)
        )
        self._sequence_number = (snapshot and snapshot.sequence_number) or 0

    def _is_all_of_window(self, file: DataFile) -> bool:
        """Return whether, by its statistics, the file has rows of this window only."""
        return all(
            only_value(self._table, file, name) == value for name, value in self._window.key.items()
        )

    def _copy_rest(self, task: FileScanTask, kept: DayFiles) -> None:
        """Copy a file's rows of other windows, which compaction has put there."""
        from pyiceberg.expressions import Not
        from pyiceberg.io.pyarrow import ArrowScan

        table = self._table
        others = Not(self._window.is_this())
        scan = ArrowScan(table.metadata, table.io, table.schema(), row_filter=others)
        for batch in scan.to_record_batches([task]):
            kept.write(batch)


def _repeated(value: str | int, count: int) -> pa.Array:
    if isinstance(value, int):
        return int64_array([value] * count)
    return text_array([value]).take(int64_array([0] * count))
