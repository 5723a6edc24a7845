"""After each extract: load new windows into PostgreSQL.

Requires: the tables that `mail_extract` writes under the Airflow Variable `r7mail_lake`, the
connection `mail_postgres`, and `pip install 'airflow-provider-r7mail[postgres]'`. Writes to: the
tables defined in `mail_to_postgres.sql`, next to this file, in the schema `mail`.

It compares storage with what is already loaded, so nothing is missed or loaded twice, whichever
runs failed, were late or were extracted again. A window is replaced as a whole, in one transaction:
mail that was deleted or moved away disappears. If windows were compacted into one, it replaces them
the same way, and they replace it if it was taken apart again. If two windows have the same message,
the later extraction wins. A window removed from storage stays in the database.

PostgreSQL text can't contain NUL characters; they become U+FFFD.

To adapt: the columns, in the SQL file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.sdk import DAG, Asset, ObjectStoragePath, task

from airflow_provider_r7mail.compat import AirflowSkipException
from airflow_provider_r7mail.lake.layout import window_name
from airflow_provider_r7mail.lake.reading import complete_files

if TYPE_CHECKING:
    from psycopg import Cursor

LAKE = "{{ var.value.get('r7mail_lake', 'file:///tmp/r7mail') }}"
CONNECTION = "mail_postgres"
SCHEMA = Path(__file__).with_suffix(".sql")
BATCH = 500  # messages in memory at once


class Place(NamedTuple):
    """A window of a folder."""

    mailbox: str
    folder: int
    window: str

    @property
    def start(self) -> str:
        """When it begins, as text that compares like time."""
        return self.window.partition("_")[0].replace("open", "").rstrip("Z")

    @property
    def end(self) -> str:
        """When it ends."""
        return self.window.partition("_")[2].rstrip("Z")


@task
def load_new_windows(lake: str) -> int:
    """Load each complete window whose current version isn't loaded; return how many."""
    from airflow.providers.postgres.hooks.postgres import PostgresHook  # noqa: PLC0415 - slow

    root = ObjectStoragePath(f"{lake}/tables")
    files = complete_files(root / "messages")
    if not files:
        raise AirflowSkipException(f"There are no tables at {root} yet: run mail_extract first.")
    places = [Place(file.mailbox, file.folder, file.window) for file in files]
    notes = {f"{root.path}/messages/{window_name(*at)}/_manifest.json": at for at in places}
    # All at once, since there may be thousands; a missing one is just being extracted again.
    stored = {
        notes[path]: json.loads(text)["run_id"]
        for path, text in root.fs.cat(list(notes), on_error="omit").items()
    }
    count = 0
    connection: Any = PostgresHook(CONNECTION).get_conn()  # psycopg's, with SQLAlchemy 2
    with closing(connection):
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute(SCHEMA.read_text(encoding="utf-8"))
            cursor.execute('SELECT mailbox, folder, "window", run_id FROM mail.windows')
            loaded = {Place(*place): run_id for *place, run_id in cursor}
        for group in overlapping({*stored, *loaded}):
            there = [place for place in group if place in stored]
            gone = [place for place in group if place not in stored and covers(there, place)]
            new = [place for place in there if gone or loaded.get(place) != stored[place]]
            if new:
                with connection.transaction(), connection.cursor() as cursor:
                    for place in gone:
                        unload_window(cursor, place)
                    for place in new:
                        load_window(cursor, root, place, stored[place])
                count += len(new)
    return count


def overlapping(places: Iterable[Place]) -> Iterator[list[Place]]:
    """Yield groups of windows that overlap, each in the order of time; most have one."""
    group: list[Place] = []
    for place in sorted(places, key=lambda place: (place.mailbox, place.folder, place.start)):
        last = group[-1] if group else None
        same = last is not None and last[:2] == place[:2]
        if group and not (same and place.start < max(other.end for other in group)):
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def covers(windows: Iterable[Place], place: Place) -> bool:
    """Return whether windows, in the order of time, cover the whole of another."""
    reached = place.start
    for window in windows:
        if window.start <= reached:
            reached = max(reached, window.end)
    return reached >= place.end


def unload_window(cursor: Cursor[Any], place: Place) -> None:
    """Delete a window."""
    for table in ("messages", "windows"):
        cursor.execute(
            f"""
            DELETE FROM mail.{table}
            WHERE mailbox = %(mailbox)s AND folder = %(folder)s AND "window" = %(window)s
            """,  # noqa: S608 - the names are ours
            place._asdict(),
        )


def load_window(cursor: Cursor[Any], root: ObjectStoragePath, place: Place, run_id: str) -> None:
    """Replace a window."""
    key = place._asdict()
    home = window_name(**key)
    for table in ("messages", "recipients", "attachments"):
        stage(cursor, table, root / table / home / "part-00000.parquet", key, run_id)
    unload_window(cursor, place)
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
    cursor.execute("INSERT INTO mail.windows VALUES (%s, %s, %s, %s)", [*place, run_id])


def stage(
    cursor: Cursor[Any], table: str, path: ObjectStoragePath, key: dict[str, Any], run_id: str
) -> None:
    """Copy a file into a temporary table, with the columns of the real one."""
    import pyarrow.parquet as pq

    cursor.execute(f"DROP TABLE IF EXISTS pg_temp.staged_{table}")
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
