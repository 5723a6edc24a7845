"""Open an Iceberg catalog, and create or upgrade the three tables in it."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlsplit

from airflow_provider_r7mail.exceptions import R7MailConfigError, R7MailError
from airflow_provider_r7mail.lake.schema import LONG_COLUMNS, SCHEMA_VERSION, schema
from airflow_provider_r7mail.lake.storage import ObjectPath, is_local

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table
    from pyiceberg.types import PrimitiveType

# pyiceberg's own default; the SQL catalog stores its tables under this name.
CATALOG_NAME = "default"
DEFAULT_NAMESPACE = "r7mail"
# The default catalog and its tables, below the output path.
CATALOG_FILE = "catalog.db"
WAREHOUSE = "warehouse"
WAIT_FOR_LOCK = 60  # seconds that SQLite waits for another process
# The columns that identify a window; a join of two tables of one window needs no others.
KEYS = ("mailbox", "folder", "window")
# The values of properties with such a word in their name must not appear in messages.
SECRET_WORDS = ("password", "secret", "token", "credential", "key")


@dataclass(frozen=True, slots=True)
class IcebergTarget:
    """The catalog to use, and the namespace in it.

    :param properties: pyiceberg's catalog properties; none for a SQLite file below the output
        path, with the tables next to it
    :param namespace: the namespace of the three tables, created if it doesn't exist
    """

    properties: Mapping[str, str] = field(default_factory=dict, repr=False)
    namespace: str = DEFAULT_NAMESPACE

    def check(self, output: ObjectPath) -> None:
        """Check the settings, without any request to the server or the catalog.

        :param output: the output path
        :raises R7MailConfigError: a setting is wrong; it says how to fix it
        """
        _need_packages()
        if not self.namespace or not all(self.namespace.split(".")):
            raise R7MailConfigError(f"namespace: {self.namespace!r}. Use a name such as r7mail.")
        if not self.properties and not is_local(output):
            raise R7MailConfigError(
                f"{output}: the default catalog, a SQLite file, needs a disk. Set catalog_conn_id "
                "or catalog_properties (--catalog of r7mail), or use an output_path on a disk."
            )

    def load(self, output: ObjectPath) -> Catalog:
        """Open the catalog.

        :param output: the output path
        :raises R7MailConfigError: the catalog can't be opened with these properties
        """
        from pyiceberg.catalog import load_catalog
        from pyiceberg.exceptions import (
            ForbiddenError,
            NoSuchPropertyException,
            NotInstalledError,
            OAuthError,
            UnauthorizedError,
        )

        # It logs the library that reads it for each file.
        logging.getLogger("pyiceberg.io").setLevel(logging.WARNING)
        properties = dict(self.properties)
        if not properties:
            home = Path(output.path).absolute()
            home.mkdir(parents=True, exist_ok=True)
            properties = {
                "type": "sql",
                "uri": _sqlite_uri(home / CATALOG_FILE),
                "warehouse": str(home / WAREHOUSE),
            }
        try:
            return load_catalog(CATALOG_NAME, **properties)
        except NotInstalledError as error:
            more = (
                "; it needs SQLAlchemy 2, but Airflow 2 comes with version 1: use another catalog, "
                "set with catalog_conn_id, catalog_properties or --catalog"
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
            # Not "from error", which may quote a URI with a password.
            raise R7MailConfigError(
                f"The Iceberg catalog can't be opened ({self.tell(error)}). Check the host, login, "
                "password and extra of catalog_conn_id, catalog_properties, or --catalog."
            ) from None

    def tell(self, error: Exception) -> str:
        """Return an error's text, without the secrets in the properties."""
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
        """Turn any error of the catalog into an OSError, as for any store.

        pyiceberg's errors have no common base class, and it lets its libraries' errors through.
        """
        try:
            yield
        except (OSError, R7MailError):
            raise
        except Exception as error:
            raise OSError(self.tell(error)) from error


def _need_packages() -> None:
    try:
        # What commits need, and pyiceberg 0.9 doesn't have.
        from pyiceberg.io.pyarrow import parquet_file_to_data_file  # noqa: F401
    except ImportError as error:
        raise R7MailConfigError(
            'table_format: "iceberg" needs packages that are missing or too old '
            f"({error}): pip install 'airflow-provider-r7mail[iceberg]'"
        ) from error


def _sqlite_uri(file: Path) -> str:
    """Return SQLAlchemy's URI of a SQLite file, whatever characters its path has.

    SQLAlchemy 2.0 takes the path as it is, up to a question mark, and 2.1 decodes it. Both render
    what they read themselves; SQLite decodes the `file:` URI in it.
    """
    from sqlalchemy import URL  # noqa: PLC0415 - only this catalog needs it

    options = {"uri": "true", "timeout": str(WAIT_FOR_LOCK)}
    uri = URL.create("sqlite", database=f"file:{quote(str(file))}", query=options)
    return uri.render_as_string()


def connection_properties(
    host: str | None, login: str | None, password: str | None, extra: Mapping[str, Any]
) -> dict[str, str]:
    """Return the catalog properties for the fields of an Airflow connection of type `iceberg`.

    :param host: the catalog's URI; if None, `uri` in the extra
    :param login: the client id of a REST catalog, or the database user of an SQL catalog
    :param password: its secret; without a login, the token of a REST catalog
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


def configured_properties(name: str) -> dict[str, str]:
    """Return the properties of a catalog in pyiceberg's own configuration: a file, or variables.

    :param name: the catalog's name there
    :raises R7MailConfigError: there is none, or the configuration can't be read
    """
    _need_packages()
    from pyiceberg.utils.config import Config

    try:
        found = Config().get_catalog_config(name)
    except ValueError as error:  # whose text may quote a secret
        raise R7MailConfigError(
            f"pyiceberg's configuration can't be read ({type(error).__name__}). Check "
            ".pyiceberg.yaml and the variables that begin with PYICEBERG_."
        ) from None
    if not found:
        raise R7MailConfigError(
            f"pyiceberg's configuration has no catalog {name}. Add it to .pyiceberg.yaml in your "
            f"home directory, or set PYICEBERG_CATALOG__{name.upper()}__URI and what else it needs."
        )
    return {key: str(value) for key, value in found.items()}


@cache
def iceberg_schema(table: str) -> pa.Schema:
    """Return a table's columns in Iceberg: those that identify its window, `date`, and its own.

    All columns of `messages` are nullable, since `columns` can leave them out.

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
            # The date of the message. All tables are partitioned by it.
            pa.field("date", schema("messages").field("date").type, nullable=False),
            *own,
        ]
    )


def table_properties(table: str) -> dict[str, str]:
    """Return the properties of a new table."""
    import pyarrow as pa

    metrics = "write.metadata.metrics.column"
    return {
        "r7mail.schema_version": str(SCHEMA_VERSION),
        # Without these two, each commit leaves a metadata file behind.
        "write.metadata.delete-after-commit.enabled": "true",
        "write.metadata.previous-versions-max": "20",
        # Untruncated: a file whose rows are all of the window is dropped without reading it.
        **{f"{metrics}.{name}": "full" for name in (*KEYS, "run_id")},
        # The files have no statistics for these.
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
    """Yield the dotted names of a list's elements."""
    import pyarrow as pa

    inner = column.type.value_type
    if pa.types.is_struct(inner):
        for part in inner:
            yield f"{column.name}.element.{part.name}"
    else:
        yield f"{column.name}.element"


def _create_table(catalog: Catalog, namespace: str, name: str) -> Table:
    """Create one of the three tables in a single request, which any catalog supports."""
    from pyiceberg.exceptions import ForbiddenError, NoSuchNamespaceError
    from pyiceberg.io.pyarrow import pyarrow_to_schema
    from pyiceberg.partitioning import PARTITION_FIELD_ID_START, PartitionField, PartitionSpec
    from pyiceberg.transforms import DayTransform

    columns = pyarrow_to_schema(_with_ids(iceberg_schema(name)))
    date = columns.find_field("date").field_id
    days = PartitionField(date, PARTITION_FIELD_ID_START, DayTransform(), "date_day")
    try:
        # Whoever may create tables in a namespace may not always look at it or create it. If it
        # doesn't exist, the table can't be created.
        with contextlib.suppress(ForbiddenError):
            try:
                catalog.load_namespace_properties(namespace)
            except NoSuchNamespaceError:
                catalog.create_namespace_if_not_exists(namespace)
        return catalog.create_table(
            f"{namespace}.{name}",
            columns,
            partition_spec=PartitionSpec(days),
            properties=table_properties(name),
        )
    except (ForbiddenError, NoSuchNamespaceError, ValueError) as error:
        raise R7MailConfigError(
            f"{namespace}.{name}: can't be created ({type(error).__name__}: {error}). Check that "
            "the namespace exists, that this login may create tables in it, and that the catalog "
            "has a `warehouse`."
        ) from error


def _with_ids(columns: pa.Schema) -> pa.Schema:
    """Give columns, and what is in them, the ids by which a partition's column is named.

    The catalog replaces them with its own.
    """
    import pyarrow as pa

    ids = itertools.count(1)

    def numbered(column: pa.Field) -> pa.Field:
        kind = column.type
        if pa.types.is_list(kind):
            kind = pa.list_(numbered(kind.value_field))
        elif pa.types.is_struct(kind):
            kind = pa.struct([numbered(part) for part in kind])
        return column.with_type(kind).with_metadata({"PARQUET:field_id": str(next(ids))})

    return pa.schema([numbered(column) for column in columns])


def open_table(catalog: Catalog, namespace: str, name: str) -> Table:
    """Load one of the three tables; create it, or add the columns that it lacks.

    :raises R7MailConfigError: it can't be created, or is a different table
    """
    from pyiceberg.exceptions import NoSuchTableError, ValidationError

    identifier = f"{namespace}.{name}"
    wanted = iceberg_schema(name)
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        return _create_table(catalog, namespace, name)
    try:
        with table.update_schema() as change:  # commits nothing if nothing is missing
            change.union_by_name(wanted)
    except (ValidationError, ValueError) as error:
        raise R7MailConfigError(
            f"{identifier}: its columns are not those of `{name}` ({error}). Use another "
            "namespace, or move that table."
        ) from error
    if missing := [key for key in KEYS if not table.schema().find_field(key).required]:
        raise R7MailConfigError(
            f"{identifier}: {', '.join(missing)} can be null there, but these identify windows. "
            "Use another namespace, or move that table."
        )
    return table


def bound(table: Table, file: DataFile, column: str, *, upper: bool = False) -> Any:
    """Return the least value of a column in a data file, or the greatest; None if unknown.

    It may be cut off, but never so that both are the same.
    """
    from pyiceberg.conversions import from_bytes

    found = table.schema().find_field(column)
    value = ((file.upper_bounds if upper else file.lower_bounds) or {}).get(found.field_id)
    return None if value is None else from_bytes(cast("PrimitiveType", found.field_type), value)


def only_value(table: Table, file: DataFile, column: str) -> Any:
    """Return a column's value in a data file; None if there may be more than one."""
    lower, upper = bound(table, file, column), bound(table, file, column, upper=True)
    return lower if lower == upper else None
