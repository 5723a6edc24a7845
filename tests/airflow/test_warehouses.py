"""Loading warehouses: each SQL file and DAG, run with the engine it is for."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
from upath import UPath

from airflow_provider_r7mail.emulator import Emulator
from airflow_provider_r7mail.emulator.folders import INBOX, PROCESSED
from tests.airflow.support import DAY, JUNE, Runner, extract, rename_logins
from tests.lake.compacting import compacted

pytestmark = pytest.mark.slow
SQL = Path(__file__).parents[2] / "docs/sql"
HOUR = timedelta(hours=1)
TABLES = ("messages", "recipients", "attachments")
Ask = Callable[[str], list[tuple[Any, ...]]]


def statements(name: str, root: Path, **words: str) -> list[str]:
    """Return the statements of an SQL file, for tables in another folder."""
    text = re.sub(r"^--.*\n", "", (SQL / name).read_text(), flags=re.MULTILINE)
    for old, new in {"/data/mail": str(root), **words}.items():
        text = text.replace(old, new)
    return [found for found in map(str.strip, text.split(";")) if found]


@pytest.fixture
def mail(server: Emulator, lake: Path) -> Path:
    """The root of the tables, with two days of extracted mail."""
    for day in (0, 1):
        server.mailbox.deliver(
            date=JUNE + day * DAY + HOUR,
            subject=f"Счёт {day}",
            sender="Ann@example.org",
            to=["a@example.org", "b@test.example"],
            labels=[1, 2],
            attachments=[("счёт.pdf", b"%PDF", "application/pdf")],
        )
        server.mailbox.deliver(date=JUNE + day * DAY + 2 * HOUR, subject=None, to=[])
    for day in (0, 1):
        extract(lake / "tables", JUNE + day * DAY)
    return lake / "tables"


def ids(server: Emulator, folder: int = INBOX) -> list[tuple[int]]:
    """Return the ids of a folder on the server."""
    return [(message["Id"],) for message in server.mailbox.messages(folder)]


def compact(mail: Path) -> None:
    """Make one window of the month, and don't remove the days yet, as if this was killed."""
    days = {path: path.read_bytes() for path in mail.rglob("*") if path.is_file()}
    assert len(compacted(UPath(mail)).made) == 1
    for path, data in days.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


# -- DuckDB -----------------------------------------------------------------------------------


@pytest.fixture
def duck(mail: Path) -> Iterator[Ask]:
    """DuckDB with the views, made anew for each query."""
    with duckdb.connect() as connection:

        def ask(sql: str) -> list[tuple[Any, ...]]:
            for statement in statements("duckdb.sql", mail):
                connection.execute(statement)
            return connection.execute(sql).fetchall()

        yield ask


def test_duckdb_sees_all_tables_as_they_lie(server: Emulator, mail: Path, duck: Ask) -> None:
    """The views show every message once, with mailbox, folder and window, and new windows too."""
    assert duck("SELECT message_id FROM messages ORDER BY ALL") == ids(server)
    assert duck("SELECT DISTINCT mailbox, folder FROM messages") == [("user_test", INBOX)]
    assert duck(
        'SELECT domain, count(*), count(DISTINCT "window") FROM recipients GROUP BY 1 ORDER BY 1'
    ) == [("example.org", 2, 2), ("test.example", 2, 2)]
    assert duck(
        "SELECT subject, file_name FROM messages "
        "JOIN attachments USING (mailbox, folder, message_id) ORDER BY ALL"
    ) == [("Счёт 0", "счёт.pdf"), ("Счёт 1", "счёт.pdf")]

    server.mailbox.deliver(date=JUNE + 2 * DAY)
    extract(mail, JUNE + 2 * DAY)

    assert duck("SELECT message_id FROM messages ORDER BY ALL") == ids(server)


@pytest.mark.parametrize("table", TABLES)
def test_duckdb_leaves_out_unfinished_windows(mail: Path, duck: Ask, table: str) -> None:
    """The views don't show a window without a manifest."""
    before = duck(f'SELECT DISTINCT "window" FROM {table}')
    next(mail.glob(f"{table}/*/*/window=20250601*/_manifest.json")).unlink()

    assert len(before) == 2
    assert duck(f'SELECT DISTINCT "window" FROM {table}') == [
        ("20250602T000000Z_20250603T000000Z",)
    ]


def test_duckdb_sees_compacted_windows_once(server: Emulator, mail: Path, duck: Ask) -> None:
    """The views show the same rows before windows are compacted, after, and taken apart again."""
    queries = [f'SELECT * EXCLUDE ("window", extracted_at) FROM {name}' for name in TABLES[:1]]
    queries += [f'SELECT * EXCLUDE ("window") FROM {name}' for name in TABLES[1:]]

    def everything() -> list[list[tuple[Any, ...]]]:
        return [sorted(duck(query), key=repr) for query in queries]

    before = everything()
    compact(mail)
    windows = duck('SELECT DISTINCT "window" FROM messages')
    after = everything()
    extract(mail, JUNE)

    assert windows == [("20250601T000000Z_20250603T000000Z",)]
    assert before == after == everything()
    assert duck('SELECT count(DISTINCT "window") FROM messages') == [(2,)]


# -- ClickHouse -------------------------------------------------------------------------------


@pytest.fixture
def clickhouse(mail: Path, tmp_path: Path) -> Iterator[Ask]:
    """ClickHouse's engine in this process, with the views and empty tables."""
    chdb = pytest.importorskip("chdb.session", reason="`make test` installs the extra `clickhouse`")
    session = chdb.Session(str(tmp_path / "clickhouse"))
    try:
        for statement in statements("clickhouse.sql", mail):
            session.query(statement)

        def ask(sql: str, **params: str) -> list[tuple[Any, ...]]:
            answer = session.query(sql, "ArrowTable", params=params)
            columns = answer.to_pydict().values() if answer is not None and answer.num_rows else []
            return list(zip(*columns, strict=True))

        yield ask
    finally:
        session.close()


def load_month(ask: Any, root: Path, month: str) -> None:
    """Do as `clickhouse-client --param_month` does."""
    for statement in statements("clickhouse_month.sql", root):
        ask(statement, month=month)


def test_clickhouse_sees_all_tables_as_they_lie(
    server: Emulator, mail: Path, clickhouse: Ask
) -> None:
    """The views show every message of a finished window once."""
    found = clickhouse("SELECT message_id FROM mail.lake_messages ORDER BY ALL")
    labels = clickhouse(
        "SELECT DISTINCT mailbox, folder, labels FROM mail.lake_messages ORDER BY 3"
    )
    next(mail.glob("messages/*/*/window=20250601*/_manifest.json")).unlink()

    assert found == ids(server)
    assert ("user_test", INBOX, [1, 2]) in labels
    assert clickhouse("SELECT DISTINCT window FROM mail.lake_messages") == [
        ("20250602T000000Z_20250603T000000Z",)
    ]


def test_clickhouse_replaces_a_month_whole(server: Emulator, mail: Path, clickhouse: Ask) -> None:
    """Loading a month again replaces it in all three tables; other months stay."""
    server.mailbox.deliver(date=JUNE + 30 * DAY, to=["july@example.org"])
    extract(mail, JUNE + 30 * DAY)
    load_month(clickhouse, mail, "202506")
    load_month(clickhouse, mail, "202507")
    gone, *kept = ids(server)
    server.mailbox.delete(INBOX, list(gone))
    extract(mail, JUNE)
    before = clickhouse("SELECT message_id FROM mail.messages ORDER BY ALL")

    load_month(clickhouse, mail, "202506")
    load_month(clickhouse, mail, "202506")

    assert before == [gone, *kept]
    assert clickhouse("SELECT message_id FROM mail.messages ORDER BY ALL") == kept
    assert clickhouse("SELECT count() FROM mail.attachments") == [(1,)]
    assert clickhouse("SELECT address FROM mail.recipients ORDER BY 1") == [
        ("a@example.org",),
        ("b@test.example",),
        ("july@example.org",),
    ]
    assert clickhouse("SHOW TABLES FROM mail LIKE 'staged%'") == []


def test_clickhouse_sees_compacted_windows_once(
    server: Emulator, mail: Path, clickhouse: Ask
) -> None:
    """The views and a month that is loaded again have the same rows after windows are compacted."""

    def found() -> list[Any]:
        load_month(clickhouse, mail, "202506")
        names = (f"{schema}{table}" for schema in ("lake_", "") for table in TABLES)
        return [clickhouse(f"SELECT message_id FROM mail.{name} ORDER BY ALL") for name in names]

    before = found()
    compact(mail)
    after = found()
    extract(mail, JUNE)

    assert before == after == found()
    assert before[0] == ids(server)


# -- PostgreSQL -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server for these tests."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = str(found[-1]) if found else shutil.which("initdb")
    if initdb is None:
        pytest.skip("No PostgreSQL is installed: `make postgres` does that, as root.")
    home = Path(tempfile.mkdtemp(prefix="r7mail-postgres-"))
    password = secrets.token_hex(16)
    (home / "password").write_text(password)
    rest: dict[str, Any] = {"cwd": home, "stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        rest["user"] = rest["group"] = "postgres"
        for path in (home, home / "password"):
            shutil.chown(path, "postgres", "postgres")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    subprocess.run(
        [initdb, "-D", "data", "-U", "ann", "-A", "scram-sha-256", "--pwfile=password", "-EUTF8"],
        check=True,
        **rest,
    )
    settings = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off")
    options = [word for setting in settings for word in ("-c", setting)]
    command = [str(Path(initdb).with_name("postgres")), "-D", "data", "-p", str(port), *options]
    url = f"postgresql://ann:{password}@127.0.0.1:{port}/postgres"
    with subprocess.Popen(command, **rest) as process:
        try:
            for _ in range(300):
                try:
                    psycopg.connect(url).close()
                    break
                except psycopg.OperationalError:
                    assert process.poll() is None, "the server did not start"
                    time.sleep(0.1)
            yield url
        finally:
            process.send_signal(signal.SIGINT)  # does not wait for clients
            process.wait(30)
            shutil.rmtree(home)


@pytest.fixture
def warehouse(postgres: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    """The server without tables, with the connection `mail_postgres`."""
    monkeypatch.setenv("AIRFLOW_CONN_MAIL_POSTGRES", postgres)
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS mail CASCADE")

        def ask(sql: str) -> list[tuple[Any, ...]]:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

        yield ask


@pytest.fixture
def load(run_example: Runner, warehouse: Ask) -> Callable[[], Any]:
    """Run the DAG and return how many windows it loaded, or None if it failed."""

    def run() -> Any:
        result = run_example("mail_to_postgres", JUNE)
        return result.xcom("load_new_windows") if result.state == "success" else None

    return run


def stored(warehouse: Ask, columns: str = "message_id") -> list[tuple[Any, ...]]:
    """Return the messages in PostgreSQL."""
    return warehouse(f"SELECT {columns} FROM mail.messages ORDER BY message_id")


def test_postgres_has_what_the_files_have(
    server: Emulator, mail: Path, warehouse: Ask, load: Callable[[], Any], duck: Ask
) -> None:
    """All rows and values are loaded, and a second run finds nothing to do."""
    assert (load(), load()) == (2, 0)

    for table, order in (("messages", 1), ("recipients", "1, 2, 3"), ("attachments", 1)):
        found = warehouse(
            "SELECT column_name::text FROM information_schema.columns WHERE table_schema = 'mail' "
            f"AND table_name = '{table}' ORDER BY column_name = 'message_id' DESC, ordinal_position"
        )
        names = ", ".join(f'"{name}"' for (name,) in found)
        query = f"SELECT {names} FROM {{}} ORDER BY {order}"
        rows = warehouse(query.format(f"mail.{table}"))
        assert len(rows) > 1
        assert rows == duck(query.format(table))


def test_postgres_follows_what_changes(
    server: Emulator, mail: Path, warehouse: Ask, load: Callable[[], Any]
) -> None:
    """Windows that were extracted again are replaced; deleted messages go, with all their rows."""
    load()
    gone, read, *_ = ids(server)
    server.mailbox.delete(INBOX, list(gone))
    server.mailbox.mark_read(INBOX, list(read))
    late = server.mailbox.deliver(date=JUNE + 3 * HOUR)
    extract(mail, JUNE)

    assert load() == 1

    assert stored(warehouse) == sorted(ids(server))
    assert (*read, True) in stored(warehouse, "message_id, was_read")
    assert (late, False) in stored(warehouse, "message_id, was_read")
    for table in ("recipients", "attachments"):
        assert warehouse(f"SELECT 1 FROM mail.{table} WHERE message_id = {gone[0]}") == []
    assert warehouse("SELECT count(*) FROM mail.attachments") == [(1,)]


def test_postgres_has_a_message_once(
    server: Emulator, mail: Path, warehouse: Ask, load: Callable[[], Any]
) -> None:
    """If two windows have a message, the later extract counts, whatever the order of loading."""
    server.mailbox.mark_read(INBOX, [number for (number,) in ids(server)])
    extract(mail, JUNE, JUNE + 2 * DAY)

    assert load() == 3

    assert stored(warehouse, "message_id, was_read") == [(*row, True) for row in ids(server)]
    assert warehouse("SELECT count(*) FROM mail.recipients") == [(4,)]
    assert warehouse("SELECT count(*) FROM mail.attachments") == [(2,)]


def test_postgres_takes_a_window_whole_or_not(
    server: Emulator, mail: Path, warehouse: Ask, load: Callable[[], Any]
) -> None:
    """A load that fails leaves the window as it was, and the next one repairs it."""
    load()
    server.mailbox.deliver(date=JUNE + 3 * HOUR)
    before = stored(warehouse)
    extract(mail, JUNE)
    [part] = mail.glob("attachments/*/*/window=20250601*/part-00000.parquet")
    whole = part.read_bytes()

    part.write_bytes(whole[: len(whole) // 2])
    assert load() is None
    broken = stored(warehouse)
    part.write_bytes(whole)

    assert load() == 1
    assert broken == before
    assert stored(warehouse) == sorted(ids(server))


def test_postgres_takes_no_unfinished_window(
    server: Emulator, mail: Path, warehouse: Ask, load: Callable[[], Any]
) -> None:
    """A window without a manifest is not loaded until it has one."""
    [note] = mail.glob("messages/*/*/window=20250601*/_manifest.json")
    text = note.read_bytes()
    note.unlink()
    first = load()
    note.write_bytes(text)

    assert (first, load()) == (1, 1)
    assert stored(warehouse) == ids(server)


def test_postgres_takes_no_mix_of_two_extractions(
    server: Emulator, mail: Path, warehouse: Ask, load: Callable[[], Any]
) -> None:
    """A window that is extracted again while it is loaded is never half old, half new."""
    [note] = mail.glob("messages/*/*/window=20250601*/_manifest.json")
    old = note.read_bytes()
    extract(mail, JUNE)
    new = note.read_bytes()
    note.write_bytes(old)

    assert load() is None
    note.write_bytes(new)
    assert load() is not None
    assert stored(warehouse) == ids(server)


def test_postgres_follows_windows_that_are_compacted(
    server: Emulator, mail: Path, warehouse: Ask, load: Callable[[], Any]
) -> None:
    """A compacted window replaces those it was made of, with all that was loaded for them."""
    load()
    gone, read, *_ = ids(server)
    server.mailbox.delete(INBOX, list(gone))
    server.mailbox.mark_read(INBOX, list(read))
    extract(mail, JUNE)  # not loaded before it is compacted
    compact(mail)

    assert (load(), load()) == (1, 0)

    label = "20250601T000000Z_20250603T000000Z"
    assert stored(warehouse) == ids(server)
    assert (*read, True) in stored(warehouse, "message_id, was_read")
    assert warehouse('SELECT "window" FROM mail.windows') == [(label,)]
    assert warehouse('SELECT DISTINCT "window" FROM mail.messages') == [(label,)]
    assert warehouse("SELECT count(*) FROM mail.attachments") == [(1,)]


def test_postgres_follows_windows_that_are_taken_apart(
    server: Emulator, mail: Path, warehouse: Ask, load: Callable[[], Any]
) -> None:
    """The windows of a compacted one replace it once a run of one of them takes it apart."""
    compacted(UPath(mail))
    load()
    gone, *_ = ids(server)
    server.mailbox.delete(INBOX, list(gone))
    extract(mail, JUNE)

    assert (load(), load()) == (2, 0)

    assert stored(warehouse) == ids(server)
    assert warehouse('SELECT DISTINCT "window" FROM mail.messages ORDER BY 1') == (
        warehouse('SELECT "window" FROM mail.windows ORDER BY 1')
    )
    assert warehouse("SELECT count(*) FROM mail.recipients") == [(2,)]


def test_postgres_takes_any_text(
    server: Emulator, mail: Path, warehouse: Ask, load: Callable[[], Any]
) -> None:
    """Text that PostgreSQL can't hold, or that means something to COPY, loses nothing else."""
    texts = ["a\0b", "\\N", "tab\tline\nend\r", "\\.", "{1,2}", "'; DROP SCHEMA mail; --", "🎉", ""]
    for number, text in enumerate(texts):
        server.mailbox.deliver(
            date=JUNE + 5 * DAY + number * HOUR, subject=text, to=[f"{text}@example.org", text]
        )
    extract(mail, JUNE + 5 * DAY)
    load()

    found = stored(warehouse, "subject, to_addresses")[-len(texts) :]
    expected = [text.replace("\0", "\ufffd") for text in texts]
    assert found == [(text, [f"{text}@example.org", text]) for text in expected]


def test_postgres_without_tables(lake: Path, warehouse: Ask, run_example: Runner) -> None:
    """Before the first extract there is nothing to load, and the DAG doesn't fail."""
    run = run_example("mail_to_postgres", JUNE)

    assert run.states == {("load_new_windows", -1): "skipped"}


# -- all of them ------------------------------------------------------------------------------


@pytest.fixture
def digits(mail: Path) -> list[str]:
    """Logins of the tables, most of which look like numbers."""
    return sorted(rename_logins(mail))


def logins(ask: Ask, schema: str) -> list[str]:
    """Return the logins that an engine sees; each must be in all tables."""
    messages, recipients, attachments = (
        [login for (login,) in ask(f"SELECT DISTINCT mailbox FROM {schema}{table} ORDER BY 1")]
        for table in TABLES
    )
    assert messages == recipients == attachments
    return messages


def keep_whole_numbers(mail: Path, digits: list[str]) -> None:
    """Remove the mailboxes that may keep an engine from reading all logins as numbers."""
    for login in {*digits} - {"1001", "7"}:
        for table in TABLES:
            shutil.rmtree(mail / table / f"mailbox={login}")


def test_logins_of_digits_are_text_in_duckdb(mail: Path, digits: list[str], duck: Ask) -> None:
    """007, 7 and 1e5 are mailboxes of their own, as is one that isn't a number."""
    assert logins(duck, "") == digits
    keep_whole_numbers(mail, digits)
    assert logins(duck, "") == ["1001", "7"]


def test_logins_of_digits_are_text_in_clickhouse(
    mail: Path, digits: list[str], clickhouse: Ask
) -> None:
    """007, 7 and 1e5 are mailboxes of their own; a filter on one opens no files of others."""
    load_month(clickhouse, mail, "202506")

    assert logins(clickhouse, "mail.lake_") == logins(clickhouse, "mail.") == digits
    for part in mail.glob("*/mailbox=ann/*/*/part-*.parquet"):
        part.write_text("not Parquet")
    assert clickhouse("SELECT count() FROM mail.lake_messages WHERE mailbox = '007'") == [(4,)]


def test_logins_of_digits_are_text_in_postgres(
    digits: list[str], load: Callable[[], Any], warehouse: Ask
) -> None:
    """007, 7 and 1e5 are mailboxes of their own."""
    load()

    assert logins(warehouse, "mail.") == digits


def test_logins_of_digits_are_text_in_pandas(mail: Path, digits: list[str]) -> None:
    """What the page says about pandas is right."""
    page = (SQL.parent / "en/warehouses.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(import pandas.*?)```", page, re.DOTALL)

    def seen() -> list[str]:
        names: dict[str, Any] = {}
        exec(code.replace("/data/mail", str(mail)), names)
        return sorted(set(names["messages"]["mailbox"]))

    assert seen() == digits
    keep_whole_numbers(mail, digits)
    assert seen() == ["1001", "7"]


def latest(request: pytest.FixtureRequest, root: Path, engine: str) -> Ask:
    """Load the tables into an engine, and return a function to query the view there."""
    if engine == "postgres":
        request.getfixturevalue("load")()
    fixture, messages = {
        "duckdb": ("duck", "main.messages"),
        "clickhouse": ("clickhouse", "mail.lake_messages"),
        "postgres": ("warehouse", "mail.messages"),
    }[engine]
    ask = request.getfixturevalue(fixture)
    schema = messages.rpartition(".")[0]
    words = {"VIEW latest": f"VIEW {schema}.latest", "FROM messages": f"FROM {messages}"}
    [statement] = statements("latest_messages.sql", root, **words)
    ask(statement)
    return lambda sql: ask(sql.format(f"{schema}.latest_messages"))


engines = pytest.mark.parametrize("engine", ["duckdb", "clickhouse", "postgres"])


@engines
def test_the_view_keeps_different_mail_with_one_mime_id(
    server: Emulator, mail: Path, request: pytest.FixtureRequest, engine: str
) -> None:
    """Scanners that give all their mail one Message-ID lose none: not in a folder, nor across."""
    scan: dict[str, Any] = {
        "mime_message_id": "scan@example.org",
        "date": JUNE + 3 * HOUR,
        "subject": "Scan",
        "sender": "scanner@example.org",
    }
    box = server.mailbox
    alike = [box.deliver(**scan) for _ in range(2)]
    changes: list[dict[str, Any]] = [
        {"date": scan["date"] + DAY},
        {"date": scan["date"] + HOUR},
        {"subject": "Scan 2"},
        {"sender": "b@example.org"},
    ]
    here = [box.deliver(**{**scan, **change}) for change in changes[:2]]
    there = [box.deliver(folder=PROCESSED, **{**scan, **change}) for change in changes[2:]]
    for folder in (INBOX, PROCESSED):
        for day in (0, 1):
            extract(mail, JUNE + day * DAY, folder=folder)
    box.move(INBOX, alike[:1], PROCESSED)
    extract(mail, JUNE, folder=PROCESSED)

    view = latest(request, mail, engine)

    assert sorted(
        view("SELECT message_id, folder FROM {} WHERE mime_message_id = 'scan@example.org'")
    ) == sorted(
        [
            *((number, PROCESSED) for number in (alike[0], *there)),
            *((number, INBOX) for number in (alike[1], *here)),
        ]
    )


@engines
def test_the_view_of_latest_messages(
    server: Emulator, mail: Path, request: pytest.FixtureRequest, engine: str
) -> None:
    """A message that was moved between two extracted folders shows up once, in its present one."""
    moved, *rest = [number for (number,) in ids(server)]
    server.mailbox.move(INBOX, [moved], PROCESSED)
    extract(mail, JUNE, folder=PROCESSED)
    view = latest(request, mail, engine)

    folders: dict[str, int] = dict(view("SELECT subject, folder FROM {} WHERE subject IS NOT NULL"))

    assert folders == {"Счёт 0": PROCESSED, "Счёт 1": INBOX}
    assert view("SELECT count(*) FROM {}") == [(1 + len(rest),)]
