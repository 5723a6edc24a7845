"""Windows in Apache Iceberg tables: each replaced by one atomic commit. No HTTP, no Airflow.

A table has no path to tell windows apart, so each row names its own: `mailbox`, `folder` and
`window` as in the paths of Parquet, and `run_id`. A table's commit is atomic, three tables' commits
are not; rows of different runs of a window have different `run_id`s, so that a join on it never
mixes them.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlsplit

import tenacity

from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.exceptions import R7MailConfigError, R7MailError
from airflow_provider_r7mail.lake.arrays import int64_array, text_array
from airflow_provider_r7mail.lake.parquet import ROW_GROUP_BYTES, ParquetTable
from airflow_provider_r7mail.lake.schema import LONG_COLUMNS, RUN_ID_KEY, SCHEMA_VERSION, schema
from airflow_provider_r7mail.lake.storage import ObjectPath, is_local, locked

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.catalog import Catalog
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import FileScanTask, Table
    from pyiceberg.types import PrimitiveType


log = logging.getLogger(__name__)

# pyiceberg's own default; the SQL catalog keeps its tables under it.
CATALOG_NAME = "default"
DEFAULT_NAMESPACE = "r7mail"
# Where a laptop's catalog and tables are, under the output path.
CATALOG_FILE = "catalog.db"
WAREHOUSE = "warehouse"
WAIT_FOR_LOCK = 60  # seconds that SQLite waits for another process
# What tells windows apart; a join of two tables of one window needs no more.
KEYS = ("mailbox", "folder", "window")
# Mail comes in the order of its dates, from a few places of a long window at once.
MAX_OPEN_DAYS = 8
MAX_COMMIT_SECONDS = 300.0
# What other settings would have a secret in them: never in a message.
SECRET_WORDS = ("password", "secret", "token", "credential", "key")


@dataclass(frozen=True, slots=True)
class IcebergTarget:
    """Which catalog, and where in it.

    :param properties: pyiceberg's catalog properties; none for a SQLite file under the output
        path, with the tables beside it
    :param namespace: the namespace of the three tables, made if it is not there
    """

    properties: Mapping[str, str] = field(default_factory=dict, repr=False)
    namespace: str = DEFAULT_NAMESPACE

    def check(self, output: ObjectPath) -> None:
        """Refuse what can't work, before anything is asked of the server or the catalog.

        :param output: the output path
        :raises R7MailConfigError: with what is wrong and what to give
        """
        try:
            import pyiceberg.io.pyarrow  # noqa: F401
        except ImportError as error:
            raise R7MailConfigError(
                'table_format: "iceberg" needs packages that are not installed '
                f"({error}): pip install airflow-provider-r7mail[iceberg]"
            ) from error
        if not self.namespace or not all(self.namespace.split(".")):
            raise R7MailConfigError(f"namespace: {self.namespace!r}. Give a name, like r7mail.")
        if not self.properties and not is_local(output):
            raise R7MailConfigError(
                f"{output}: SQLite, the catalog where none is given, needs a disk. Give "
                "catalog_conn_id or catalog_properties, or an output_path on a disk."
            )

    def load(self, output: ObjectPath) -> Catalog:
        """Open the catalog.

        :param output: the output path
        :raises R7MailConfigError: there can be no such catalog
        """
        from pyiceberg.catalog import load_catalog
        from pyiceberg.exceptions import (
            ForbiddenError,
            NoSuchPropertyException,
            NotInstalledError,
            OAuthError,
            UnauthorizedError,
        )

        # It says for each file by which library it is read.
        logging.getLogger("pyiceberg.io").setLevel(logging.WARNING)
        properties = dict(self.properties)
        if not properties:
            home = Path(output.path).absolute()
            home.mkdir(parents=True, exist_ok=True)
            properties = {
                "type": "sql",
                "uri": f"sqlite:///{quote(str(home / CATALOG_FILE))}?timeout={WAIT_FOR_LOCK}",
                "warehouse": str(home / WAREHOUSE),
            }
        try:
            return load_catalog(CATALOG_NAME, **properties)
        except NotInstalledError as error:
            more = (
                "; Airflow 2 brings SQLAlchemy 1, which it can't use: give another catalog, by "
                "catalog_conn_id or catalog_properties"
                if properties.get("type") == "sql"
                else ""
            )
            raise R7MailConfigError(f"The Iceberg catalog can't be used: {error}{more}.") from error
        except (
            ForbiddenError,
            NoSuchPropertyException,
            OAuthError,
            UnauthorizedError,
            ValueError,
        ) as error:
            # Not "from error": it may quote a URI with a password.
            raise R7MailConfigError(
                f"The Iceberg catalog can't be opened ({self.tell(error)}). See the host, login, "
                "password and extra of catalog_conn_id, or catalog_properties."
            ) from None

    def tell(self, error: Exception) -> str:
        """What an error says, without what is secret in the properties."""
        text = str(error)
        for name, value in self.properties.items():
            if any(word in name.lower() for word in SECRET_WORDS):
                text = text.replace(value, "***")
        password = urlsplit(self.properties.get("uri", "")).password
        if password:
            text = text.replace(password, "***")
        return f"{type(error).__name__}: {text}"

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Let all that goes wrong with the catalog be an OSError, as with any store.

        pyiceberg's errors have no common base, and those of its libraries come out as they are.
        """
        try:
            yield
        except (OSError, R7MailError):
            raise
        except Exception as error:
            raise OSError(self.tell(error)) from error


def connection_properties(
    host: str | None, login: str | None, password: str | None, extra: Mapping[str, Any]
) -> dict[str, str]:
    """The catalog's properties by a connection's fields, as Airflow's `iceberg` type has them.

    :param host: the catalog's URI; `uri` in the extra if None
    :param login: for a REST catalog the client's id; for an SQL catalog the database's user
    :param password: its secret, or with no login a REST catalog's token
    :param extra: any of pyiceberg's properties
    """
    found = {name: str(value) for name, value in extra.items() if value is not None}
    uri = (host or found.get("uri") or "").rstrip("/")
    if uri:
        found["uri"] = uri
    kind = found.get("type") or ("rest" if uri.startswith("http") else "")
    if kind == "rest" and password:
        found |= {"credential": f"{login}:{password}"} if login else {"token": password}
    elif login and "@" not in uri and uri.startswith(("postgresql", "mysql")):
        user = quote(login, safe="") + (f":{quote(password, safe='')}" if password else "")
        found["uri"] = uri.replace("://", f"://{user}@", 1)
    return found


@cache
def iceberg_schema(table: str) -> pa.Schema:
    """A table's columns in Iceberg: those that name its window, `date`, and its own.

    Columns of `messages` may all be null, since `columns` can leave them out.

    :param table: `messages`, `recipients` or `attachments`
    """
    import pyarrow as pa

    text = pa.string()
    own = [
        column.with_nullable(True) if table == "messages" else column
        for column in schema(table)
        if column.name != "date"
    ]
    return pa.schema(
        [
            pa.field("mailbox", text, nullable=False),
            pa.field("folder", pa.int64(), nullable=False),
            pa.field("window", text, nullable=False),
            pa.field("run_id", text, nullable=False),
            # The message's, in all tables: they are partitioned by it.
            pa.field("date", schema("messages").field("date").type, nullable=False),
            *own,
        ]
    )


def table_properties(table: str) -> dict[str, str]:
    """What a new table is told."""
    import pyarrow as pa

    metrics = "write.metadata.metrics.column"
    return {
        "r7mail.schema_version": str(SCHEMA_VERSION),
        # Without these, each commit leaves a metadata file behind.
        "write.metadata.delete-after-commit.enabled": "true",
        "write.metadata.previous-versions-max": "20",
        # Texts as whole as in the rows: a file is dropped unread if all of it is of the window.
        **{f"{metrics}.{name}": "full" for name in (*KEYS, "run_id")},
        # There are no statistics of these in the files.
        **{
            f"{metrics}.{column.name}": "none"
            for column in iceberg_schema(table)
            if column.name in LONG_COLUMNS
        },
        **{
            f"{metrics}.{path}": "none"
            for column in iceberg_schema(table)
            if pa.types.is_list(column.type)
            for path in _leaves(column)
        },
    }


def _leaves(column: pa.Field) -> Iterator[str]:
    """The dotted names of what is in a list."""
    import pyarrow as pa

    inner = column.type.value_type
    if pa.types.is_struct(inner):
        for part in inner:
            yield f"{column.name}.element.{part.name}"
    else:
        yield f"{column.name}.element"


class IcebergWindow:
    """One window's place in the tables of a catalog. Close it.

    :param target: which catalog
    :param output: the output path
    :param tables: the tables to write
    :param mailbox: the mailbox, as the tables show it
    :param folder: the folder's id
    :param window: the window, with both bounds
    :param run_id: the run's id
    :raises R7MailConfigError: the catalog can't be used, or has other tables of these names
    :raises OSError: it can't be had now
    """

    def __init__(
        self,
        target: IcebergTarget,
        output: ObjectPath,
        tables: Sequence[str],
        *,
        mailbox: str,
        folder: int,
        window: Window,
        run_id: str,
    ) -> None:
        self.target = target
        self.run_id = run_id
        self.bounds = window
        self.key: dict[str, str | int] = dict(
            zip(KEYS, (mailbox, folder, window.label()), strict=True)
        )
        # Of two processes that make the same tables of the catalog, or of mail, or add the same
        # column, one fails, as the catalog has it: then these are there.
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
            return catalog, {name: self._prepared(catalog, name) for name in names}
        except BaseException:
            catalog.close()
            raise

    def close(self) -> None:
        """Close the catalog."""
        self._catalog.close()

    def writer(self, table: str, columns: Sequence[str] | None = None) -> IcebergTable:
        """What takes the window's rows of a table.

        :param columns: the columns to write; None for all
        """
        return IcebergTable(self, table, self._tables[table], columns)

    def stored(self, table: str, columns: Sequence[str]) -> list[dict[str, Any]]:
        """The window's rows as an earlier run has left them.

        :raises OSError: the table can't be read
        """
        with self.target.errors():
            found = self._tables[table].refresh()
            scan = found.scan(row_filter=self.where(), selected_fields=tuple(columns))
            rows: list[dict[str, Any]] = scan.to_arrow().to_pylist()
            return rows

    def where(self) -> BooleanExpression:
        """The window's rows; with its dates, so that other days' manifests need not be read."""
        from pyiceberg import expressions

        start, end = self.bounds.start, self.bounds.end
        assert start is not None  # noqa: S101 - seen by ExtractJob.check
        assert end is not None  # noqa: S101
        make: Any = expressions  # mypy takes their constructors for pydantic's
        dated = make.And(
            make.GreaterThanOrEqual("date", start.isoformat()),
            make.LessThan("date", end.isoformat()),
        )
        return make.And(self.is_this(), dated)  # type: ignore[no-any-return]

    def is_this(self) -> BooleanExpression:
        """The rows that name the window."""
        from pyiceberg import expressions

        make: Any = expressions
        return make.And(  # type: ignore[no-any-return]
            *(make.EqualTo(name, value) for name, value in self.key.items())
        )

    def _prepared(self, catalog: Catalog, name: str) -> Table:
        """The table, made or given the columns that it lacks."""
        from pyiceberg.exceptions import NoSuchTableError, ValidationError
        from pyiceberg.transforms import DayTransform

        identifier = f"{self.target.namespace}.{name}"
        wanted = iceberg_schema(name)
        try:
            table = catalog.load_table(identifier)
        except NoSuchTableError:
            catalog.create_namespace_if_not_exists(self.target.namespace)
            try:
                new = catalog.create_table_transaction(
                    identifier, wanted, properties=table_properties(name)
                )
            except ValueError as error:
                raise R7MailConfigError(f"{identifier}: can't be made ({error}).") from error
            with new.update_spec() as spec:
                spec.add_field("date", DayTransform(), "date_day")
            new.commit_transaction()
            return catalog.load_table(identifier)
        try:
            with table.update_schema() as change:  # commits nothing where nothing is missing
                change.union_by_name(wanted)
        except (ValidationError, ValueError) as error:
            raise R7MailConfigError(
                f"{identifier}: its columns are not those of `{name}` ({error}). Give another "
                "namespace, or move that table away."
            ) from error
        if missing := [key for key in KEYS if not table.schema().find_field(key).required]:
            raise R7MailConfigError(
                f"{identifier}: {', '.join(missing)} can be null there, so that its windows can't "
                "be told apart. Give another namespace, or move that table away."
            )
        return table


class IcebergTable:
    """The window's rows in one table: written to data files as they come, then committed.

    Nobody sees a data file before `commit`. What a killed process has left of them is no part of
    the table; the table's maintenance removes such orphans.
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
        """Take rows.

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
        """Write what is still pending, and the footers."""
        with self._window.target.errors():
            self._new.finish()

    def commit(self) -> None:
        """Replace the window in the table by the rows written, and nothing else, in one commit.

        If another commit came first, what to replace is looked up anew.

        :raises OSError: the catalog did not take it; if that is not sure, the error says so
        """
        from pyiceberg.exceptions import CommitStateUnknownException

        with self._window.target.errors():
            for attempt in tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(
                    (*_conflicts(), CommitStateUnknownException)
                ),
                stop=tenacity.stop_after_delay(MAX_COMMIT_SECONDS),
                wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
                reraise=True,
            ):
                with attempt:
                    self._commit()

    def overtaken(self) -> str | None:
        """The table's name, if another run of the same window has committed since this one did.

        Then the tables may hold some of each run.

        :raises OSError: the catalog can't be asked
        """
        with self._window.target.errors():
            for snapshot in self._table.refresh().snapshots():
                newer = (snapshot.sequence_number or 0) > self._sequence_number
                if newer and self._told(snapshot, self._properties(), "mailbox folder window"):
                    return self.identifier
        return None

    def discard(self) -> None:
        """Remove the data files, unless `commit` was tried. Raises nothing."""
        if not self._settled:
            self._settled = True
            self._new.discard()

    @property
    def identifier(self) -> str:
        """The table's name in the catalog, with its namespace."""
        return f"{self._window.target.namespace}.{self._name}"

    def record(self) -> dict[str, Any]:
        """What the manifest tells of it.

        `snapshot_id` is null where nothing was there before and nothing came: nothing was
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

    def _files(self, columns: Sequence[str] | None) -> _DayFiles:
        return _DayFiles(self._name, self._table, columns, self._window.run_id)

    def _properties(self) -> dict[str, str]:
        named = {f"r7mail.{name}": str(value) for name, value in self._window.key.items()}
        return {**named, RUN_ID_KEY: self._window.run_id, "r7mail.rows": str(self.rows)}

    @staticmethod
    def _told(snapshot: Any, properties: Mapping[str, str], names: str) -> bool:
        """Whether a snapshot's properties are these."""
        summary = snapshot.summary
        told = {} if summary is None else summary.additional_properties
        return all(
            told.get(f"r7mail.{name}") == properties[f"r7mail.{name}"] for name in names.split()
        )

    def _commit(self) -> None:
        table = self._table.refresh()
        for snapshot in table.snapshots():
            # An earlier attempt, of which only the answer was lost.
            if self._told(snapshot, self._properties(), "run_id"):
                self._committed(snapshot.snapshot_id)
                return
        old = list(table.scan(row_filter=self._window.where()).plan_files())
        if not old and not self._new.paths:
            self._committed(None)
            return
        kept = self._files(None)
        transaction = table.transaction()
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
        self._settled = True  # from here on files may be a part of the table
        try:
            transaction.commit_transaction()
        except _conflicts():
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
        """Whether the file, by its statistics, has rows of this window only."""
        from pyiceberg.conversions import to_bytes

        for name, value in self._window.key.items():
            column = self._table.schema().find_field(name)
            wanted = to_bytes(cast("PrimitiveType", column.field_type), value)
            for bounds in (file.lower_bounds, file.upper_bounds):
                if (bounds or {}).get(column.field_id) != wanted:
                    return False
        return True

    def _copy_rest(self, task: FileScanTask, kept: _DayFiles) -> None:
        """Keep what a file has of other windows: compaction has put them together, not we."""
        from pyiceberg.expressions import Not
        from pyiceberg.io.pyarrow import ArrowScan

        table = self._table
        others = Not(self._window.is_this())
        scan = ArrowScan(table.metadata, table.io, table.schema(), row_filter=others)
        for batch in scan.to_record_batches([task]):
            kept.write(batch)


def _conflicts() -> tuple[type[Exception], ...]:
    """What says that a commit did not land, since another came first."""
    from pyiceberg.exceptions import CommitFailedException, ValidationException

    return CommitFailedException, ValidationException


def _repeated(value: str | int, count: int) -> pa.Array:
    if isinstance(value, int):
        return int64_array([value] * count)
    return text_array([value]).take(int64_array([0] * count))


@dataclass(slots=True)
class _DayFile:
    path: str
    sink: Any
    rows: ParquetTable


class _DayFiles:
    """Data files, each of one day, in bounded memory: a few are open at once.

    :param name: the table's name
    :param table: the table
    :param columns: the columns to write; None for all that it has
    :param stem: how the files' names begin
    """

    def __init__(self, name: str, table: Table, columns: Sequence[str] | None, stem: str) -> None:
        import pyarrow as pa
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        self._name = name
        self._table = table
        self._stem = stem
        full = schema_to_pyarrow(table.schema())  # with the ids by which Iceberg knows columns
        names = full.names if columns is None else columns
        self._schema = pa.schema([full.field(column) for column in names])
        self._open: OrderedDict[date, _DayFile] = OrderedDict()
        self._described: dict[int, list[DataFile]] = {}
        self.paths: list[str] = []
        self.bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Take rows."""
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
        """Remove all files. Raises nothing: the reason for discarding must come out."""
        for file in self._open.values():
            with contextlib.suppress(OSError):
                file.rows.finish()
            with contextlib.suppress(OSError):
                file.sink.close()
        self._open.clear()
        for path in self.paths:
            try:
                self._table.io.delete(path)
            except OSError as error:
                log.warning("%s: could not be removed: %s", path, error)
        self.paths.clear()

    def described(self, table: Table) -> list[DataFile]:
        """The files as a commit names them, by what their footers say."""
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
            name = f"{self._stem}-{len(self.paths):05d}-{uuid.uuid4().hex}.parquet"
            path = self._table.location_provider().new_data_location(name)
            sink = self._table.io.new_output(path).create()
            self.paths.append(path)
            self._open[day] = _DayFile(path, sink, ParquetTable(self._name, sink, self._schema))
        self._open.move_to_end(day)
        return self._open[day]

    def _close_oldest(self) -> None:
        _, file = self._open.popitem(last=False)
        file.rows.finish()
        self.bytes += file.sink.tell()
        file.sink.close()
