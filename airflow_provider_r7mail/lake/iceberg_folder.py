"""What Iceberg tables have of a folder: whether its windows' rows are those of their manifests."""

from __future__ import annotations

import logging
import uuid
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.lake.catalog import KEYS, IcebergTarget, only_value
from airflow_provider_r7mail.lake.iceberg import IcebergWindow
from airflow_provider_r7mail.lake.layout import (
    MANIFEST,
    PATH_LEVELS,
    QUARANTINE,
    REPLACED,
    WINDOWS,
    parse_window,
    window_name,
)
from airflow_provider_r7mail.lake.ledger import Entry, Ledger, find_strays
from airflow_provider_r7mail.lake.locks import locked
from airflow_provider_r7mail.lake.manifest import read_manifest
from airflow_provider_r7mail.lake.schema import TABLES
from airflow_provider_r7mail.lake.storage import ObjectPath, remove, remove_empty

if TYPE_CHECKING:
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.table import FileScanTask, Table

log = logging.getLogger(__name__)

READ_BYTES = 1 << 20  # how much of a file is read at once


@dataclass(slots=True)
class _Stored:
    """The rows of a table: how many each run wrote of each window, and the messages' ids."""

    rows: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    ids: dict[str, array[int]] = field(default_factory=dict)

    def add(self, other: _Stored) -> None:
        """Add the rows of another file."""
        for window, runs in other.rows.items():
            self.rows[window] += runs
        for window, ids in other.ids.items():
            self.ids.setdefault(window, array("q")).extend(ids)


@dataclass(frozen=True, slots=True)
class IcebergFolder:
    """A mailbox's folder in the tables of a catalog.

    :param target: the catalog
    :param output: the root of the windows' manifests
    :param mailbox: the mailbox's name in the tables
    :param folder: id of the folder
    """

    target: IcebergTarget
    output: ObjectPath
    mailbox: str
    folder: int

    def check(self, ledger: Ledger, *, deep: bool) -> None:
        """Compare the windows' manifests with the tables, and add what only the tables know.

        :param ledger: what the manifests say
        :param deep: read all rows, even those that files' statistics can count, and note the ids of
            messages
        :raises R7MailConfigError: the manifests name other tables
        :raises OSError: the catalog or the storage fails
        """
        known = [e for e in ledger.entries if "files" not in (e.manifest or {})]
        with self._tables() as tables:
            self._refuse_others(known, tables)
            stored = {name: self._stored(name, table, deep) for name, table in tables.items()}
        for entry in known:
            self._compare(entry, stored)
            if deep and "messages" in stored:
                entry.ids = stored["messages"].ids.get(entry.window.label(), array("q"))
        labels = {label for item in stored.values() for label in item.rows}
        for label in sorted(labels - {entry.window.label() for entry in known}):
            window = parse_window(f"window={label}")
            if window is None:
                ledger.foreign.append(f"rows of {label!r}, which is no window")
            else:
                known.append(Entry(window, None))
        ledger.entries = sorted(known, key=lambda entry: entry.bounds)
        find_strays(ledger.entries)

    def _compare(self, entry: Entry, stored: dict[str, _Stored]) -> None:
        """Compare a window's rows with its manifest; with a newer one, if a run came in between."""
        if entry.manifest is None or entry.moved:
            return
        label = entry.window.label()
        entry.problems = list(_problems(entry.manifest, label, stored))
        if entry.problems:
            home = self.output / WINDOWS / window_name(self.mailbox, self.folder, label)
            entry.manifest = read_manifest(home)
            entry.problems = list(_problems(entry.manifest or {"tables": []}, label, stored))

    def ids(self, entry: Entry) -> list[int]:
        """Return the ids in a window's rows, without mail that has left.

        :raises OSError: they can't be read
        """
        if entry.ids is not None:
            return [*entry.ids]
        with self._tables() as tables:
            if "messages" not in tables:
                return []
            where = self._where(entry.window.label())
            tasks = tables["messages"].scan(where).plan_files()
            rows = self._rows(tables["messages"], [*tasks], where, ("message_id", "gone_at"))
            return [row["message_id"] for row in rows if row["gone_at"] is None]

    def remove(self, window: Window) -> None:
        """Remove a window, its manifest first: without one it is unfinished.

        :raises OSError: the catalog or the storage fails
        """
        with self._tables() as tables:
            names = [name for name in TABLES if name in tables]
        name = window_name(self.mailbox, self.folder, window.label())
        emptied = IcebergWindow(
            self.target,
            self.output,
            names,
            name,
            mailbox=self.mailbox,
            folder=self.folder,
            window=window,
            run_id=uuid.uuid4().hex,
        )
        try:
            with locked(self.output, name):
                remove(emptied.home / MANIFEST)
                for table in reversed(names):
                    writer = emptied.writer(table)
                    writer.finish()
                    writer.commit()
                for file in (QUARANTINE, REPLACED):
                    remove(emptied.home / file)
        finally:
            emptied.close()
        remove_empty(emptied.home, PATH_LEVELS)

    @contextmanager
    def _tables(self) -> Iterator[dict[str, Table]]:
        """Open those of the three tables that exist."""
        from pyiceberg.exceptions import NoSuchTableError

        with self.target.errors():
            catalog = self.target.load(self.output)
            try:
                found = {}
                for name in TABLES:
                    with suppress(NoSuchTableError), self._metadata(name):
                        found[name] = catalog.load_table(f"{self.target.namespace}.{name}")
                yield found
            finally:
                catalog.close()

    @contextmanager
    def _metadata(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.target.namespace}.{name}: a file of its Iceberg metadata is missing "
                f"({error}). Restore it; or drop the table in the catalog, and audit with repair "
                "to extract its rows again."
            ) from error

    def _refuse_others(self, entries: list[Entry], tables: dict[str, Table]) -> None:
        """Refuse another catalog than that of the manifests: a repair would fill it anew."""
        own = {f"{self.target.namespace}.{name}" for name in tables}
        for entry in entries:
            named = [item["identifier"] for item in (entry.manifest or {}).get("tables", ())]
            if named and not own & {*named}:  # of those that somebody dropped, others are left
                raise R7MailConfigError(
                    f"{named[0]}: the manifests name it, and it isn't in the catalog "
                    f"and namespace {self.target.namespace}. Set those of the extracts."
                )

    def _where(self, window: str | None = None) -> BooleanExpression:
        from pyiceberg import expressions

        make: Any = expressions  # mypy takes their constructors to be pydantic's
        values = zip(KEYS, (self.mailbox, self.folder, window), strict=True)
        return make.And(  # type: ignore[no-any-return]
            *(make.EqualTo(name, value) for name, value in values if value is not None)
        )

    def _stored(self, name: str, table: Table, deep: bool) -> _Stored:
        import pyarrow as pa

        found = _Stored()
        with self._metadata(name):
            tasks = list(table.scan(row_filter=self._where()).plan_files())
        for task in tasks:
            values = [only_value(table, task.file, column) for column in (*KEYS, "run_id")]
            if not deep and not task.delete_files and None not in values:
                found.rows[values[2]][values[3]] += task.file.record_count
                continue
            try:
                found.add(self._read(table, task, with_ids=deep and name == "messages", whole=deep))
            except (OSError, pa.ArrowException) as error:
                _read_through(table, task.file.file_path)
                log.warning("%s: can't be read (%s).", task.file.file_path, error)
        return found

    def _read(self, table: Table, task: FileScanTask, *, with_ids: bool, whole: bool) -> _Stored:
        """Read a file.

        :param whole: read all columns, so that damage in any of them is found
        """
        found = _Stored()
        columns = ("window", "run_id", *(("message_id", "gone_at") if with_ids else ()))
        for row in self._rows(table, [task], self._where(), columns, whole=whole):
            found.rows[row["window"]][row["run_id"]] += 1
            if with_ids and row["gone_at"] is None and row["message_id"] is not None:
                found.ids.setdefault(row["window"], array("q")).append(row["message_id"])
        return found

    @staticmethod
    def _rows(
        table: Table,
        tasks: list[FileScanTask],
        where: BooleanExpression,
        columns: tuple[str, ...],
        *,
        whole: bool = False,
    ) -> Iterator[dict[str, Any]]:
        from pyiceberg.io.pyarrow import ArrowScan

        schema = table.schema() if whole else table.schema().select(*columns)
        scan = ArrowScan(table.metadata, table.io, schema, where)
        for batch in scan.to_record_batches(tasks):
            yield from batch.select(columns).to_pylist()


def _read_through(table: Table, location: str) -> None:
    """Read a file's bytes, which tells a storage that fails from a file that is damaged or gone.

    :raises OSError: the storage fails
    """
    with suppress(FileNotFoundError), table.io.new_input(location).open() as file:
        while file.read(READ_BYTES):
            pass


def _problems(manifest: dict[str, Any], label: str, stored: dict[str, _Stored]) -> Iterator[str]:
    """Yield how a window's rows differ from its manifest."""
    for item in manifest["tables"]:
        name = item["table"]
        rows = stored.get(name, _Stored()).rows.get(label, Counter())
        count = rows[manifest["run_id"]]
        if count != item["rows"]:
            yield f"{name}: {count} rows, not {item['rows']}"
        if others := rows.total() - count:
            yield f"{name}: {others} rows of another run"
