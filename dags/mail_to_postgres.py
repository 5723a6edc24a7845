"""After each extract: load new windows into PostgreSQL.

Requires: the tables that `mail_extract` writes under the Airflow Variable `r7mail_lake`, the
connection `mail_postgres`, and `pip install 'airflow-provider-r7mail[postgres]'`. Writes to: the
tables defined in `mail_to_postgres.sql`, next to this file, in the schema `mail`.

It compares storage with what is already loaded, so nothing is missed or loaded twice, whichever
runs failed, were late or were extracted again. A window is replaced as a whole, in one transaction:
mail that was deleted or moved away disappears. If two windows have the same message, the later
extraction wins. A window removed from storage stays in the database.

PostgreSQL text can't contain NUL characters; they become U+FFFD.

To adapt: the columns, in the SQL file.
"""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, Asset, ObjectStoragePath, task

from airflow_provider_r7mail.compat import AirflowSkipException

if TYPE_CHECKING:
    from psycopg import Cursor

LAKE = "{{ var.value.get('r7mail_lake', 'file:///tmp/r7mail') }}"
CONNECTION = "mail_postgres"
SCHEMA = Path(__file__).with_suffix(".sql")
BATCH = 500  # messages in memory at once


@task
def load_new_windows(lake: str) -> int:
    """Load each complete window whose current version isn't loaded; return how many."""
    from airflow.providers.postgres.hooks.postgres import PostgresHook  # noqa: PLC0415 - slow

    root = ObjectStoragePath(f"{lake}/tables")
    paths = root.fs.glob(f"{root.path}/messages/*/*/*/_manifest.json")
    if not paths:
        raise AirflowSkipException(f"There are no tables at {root} yet: run mail_extract first.")
    # All at once, since there may be thousands; a missing one is just being extracted again.
    manifests = root.fs.cat(paths, on_error="omit")
    count = 0
    connection: Any = PostgresHook(CONNECTION).get_conn()  # psycopg's, with SQLAlchemy 2
    with closing(connection):
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute(SCHEMA.read_text(encoding="utf-8"))
            cursor.execute("SELECT run_id FROM mail.windows")
            loaded = {run_id for (run_id,) in cursor}
        for path, text in sorted(manifests.items()):
            manifest = json.loads(text)
            if manifest["run_id"] not in loaded:
                place = path.removeprefix(f"{root.path}/messages/").removesuffix("/_manifest.json")
                with connection.transaction(), connection.cursor() as cursor:
                    load_window(cursor, root, place, manifest)
                count += 1
    return count


def load_window(
    cursor: Cursor[Any], root: ObjectStoragePath, place: str, manifest: dict[str, Any]
) -> None:
    """Replace a window."""
    key = {
        "mailbox": manifest["mailbox"],
        "folder": manifest["folder_id"],
        "window": place.rpartition("window=")[2],
    }
    for table in ("messages", "recipients", "attachments"):
        stage(cursor, table, root / table / place / "part-00000.parquet", key, manifest["run_id"])
    cursor.execute(
        """
        DELETE FROM mail.messages
        WHERE mailbox = %(mailbox)s AND folder = %(folder)s AND "window" = %(window)s
        """,
        key,
    )
    cursor.execute(
        """
        DELETE FROM mail.messages AS old USING staged_messages AS new
        WHERE (old.mailbox, old.folder, old.message_id) = (new.mailbox, new.folder, new.message_id)
            AND old.extracted_at <= new.extracted_at;
        INSERT INTO mail.messages SELECT * FROM staged_messages
        ON CONFLICT (mailbox, folder, message_id) DO NOTHING;
        """
    )
    for table in ("recipients", "attachments"):
        cursor.execute(
            f"""
            INSERT INTO mail.{table} SELECT new.* FROM staged_{table} AS new
            JOIN mail.messages USING (mailbox, folder, message_id)
            WHERE "window" = %(window)s
            """,  # noqa: S608 - the names are ours
            key,
        )
    cursor.execute(
        """
        INSERT INTO mail.windows VALUES (%(mailbox)s, %(folder)s, %(window)s, %(run_id)s)
        ON CONFLICT (mailbox, folder, "window") DO UPDATE SET run_id = excluded.run_id
        """,
        {**key, "run_id": manifest["run_id"]},
    )


def stage(
    cursor: Cursor[Any], table: str, path: ObjectStoragePath, key: dict[str, Any], run_id: str
) -> None:
    """Copy a file into a temporary table, with the columns of the real one."""
    import pyarrow.parquet as pq

    cursor.execute(f"CREATE TEMP TABLE staged_{table} (LIKE mail.{table}) ON COMMIT DROP")
    cursor.execute(f"SELECT * FROM staged_{table}")  # noqa: S608 - the names are ours
    names = [column.name for column in cursor.description or ()]
    with path.fs.open(path.path, "rb") as file, pq.ParquetFile(file) as stored:
        if stored.schema_arrow.metadata[b"r7mail.run_id"].decode() != run_id:
            raise RuntimeError(f"{path} was extracted again in the meantime. Try again.")
        columns = [name for name in names if name not in key]
        with cursor.copy(f"COPY staged_{table} FROM STDIN") as copy:
            for batch in stored.iter_batches(BATCH, columns=columns):
                for row in batch.to_pylist():
                    copy.write_row(
                        [key[name] if name in key else plain(row.get(name)) for name in names]
                    )


def plain(value: Any) -> Any:
    """Return the value as PostgreSQL can store it."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


with DAG(
    dag_id="mail_to_postgres",
    schedule=[Asset("r7mail_messages")],  # when mail_extract has written
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,  # one at a time: each loads what the previous one left
    default_args={"retries": 3, "retry_delay": timedelta(minutes=2)},
    tags=["r7mail"],
    doc_md=__doc__,
) as dag:
    load_new_windows(LAKE)
