"""Windows in Iceberg tables are replaced completely, in one commit, despite crashes and races."""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_r7mail.compat import AirflowFailException
from tests.conftest import AIRFLOW_2

if AIRFLOW_2:
    pytest.skip("the SQL catalog needs SQLAlchemy 2", allow_module_level=True)

from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.transforms import DayTransform
from upath import UPath

from airflow_provider_r7mail.emulator import MISSING, Emulator, Fault
from airflow_provider_r7mail.exceptions import (
    R7MailBadMessageError,
    R7MailConfigError,
    R7MailExtractError,
    R7MailPublishError,
)
from airflow_provider_r7mail.lake.catalog import (
    IcebergTarget,
    connection_properties,
    iceberg_schema,
)
from airflow_provider_r7mail.lake.job import Progress
from airflow_provider_r7mail.lake.privacy import Privacy
from airflow_provider_r7mail.lake.schema import TABLES
from airflow_provider_r7mail.transfers import R7MailToParquetOperator
from tests.lake.iceberg_support import (
    deliver,
    die_at_commit,
    extract,
    ids,
    interrupted,
    joined,
    on_disk,
    paths,
    rows,
    shared,
)
from tests.lake.rest_catalog import RestCatalog, served
from tests.lake.support import (
    CHILDREN,
    DAY,
    DOCS,
    LABEL,
    START,
    WINDOW,
    Bucket,
    connect_s3,
    example,
    run_children,
    s3_server,
    s3_server_with_expiring_keys,
)

pytestmark = pytest.mark.slow
NOTE = f"windows/{WINDOW}/_manifest.json"
# The order of the commits.
ORDER = ("attachments", "recipients", "messages")


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    """The catalog below the output path."""
    with closing(IcebergTarget().load(UPath(tmp_path))) as opened:
        yield opened


def snapshot(written: dict[str, Any], table: str = "messages") -> Any:
    """The id of a table's snapshot in a manifest."""
    return {item["table"]: item["snapshot_id"] for item in written["tables"]}[table]


# -- what is written ------------------------------------------------------------------------


def test_the_same_rows_as_parquet(server: Emulator, catalog: Catalog, tmp_path: Path) -> None:
    """The Iceberg tables have the same rows as the Parquet tables, column by column."""
    deliver(server, 30, cc=["Анна <anna@б.рф>"], labels=[1, 2], html_body="<b>ё</b>")
    extract(server.url, tmp_path)
    extract(server.url, tmp_path / "parquet", iceberg=None)

    def plain(found: list[dict[str, Any]]) -> list[str]:
        return sorted(
            repr(
                {
                    name: value.astimezone(UTC) if isinstance(value, datetime) else value
                    for name, value in sorted(row.items())
                    if name != "extracted_at"
                }
            )
            for row in found
        )

    for name in TABLES:
        # Hive partitioning gives the keys the same names as Iceberg's columns.
        files: Any = duckdb.read_parquet(
            f"{tmp_path}/parquet/{name}/*/*/*/*.parquet", hive_partitioning=True
        )
        other = files.to_arrow_table().to_pylist()
        ours = rows(catalog, name)
        extra = {"run_id"} if name == "messages" else {"run_id", "date"}
        assert set(ours[0]) - set(other[0]) == extra
        for row in ours:
            for column in extra:
                del row[column]
        assert plain(ours) == plain(other)


def test_partitions_are_days(server: Emulator, catalog: Catalog, tmp_path: Path) -> None:
    """All three tables are partitioned by the day of the message's date, even in a long window."""
    ends = [-1, 0, 12, 23.99, 24, 24 * 30, 24 * 59]
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    for hours in ends:
        deliver(server, 1, epoch + timedelta(hours=hours))
    extract(server.url, tmp_path, epoch - DAY, 70 * DAY)

    days = sorted({(epoch + timedelta(hours=hours)).date() for hours in ends})
    for name in TABLES:
        table = catalog.load_table(f"r7mail.{name}")
        assert [(f.name, f.transform) for f in table.spec().fields] == [
            ("date_day", DayTransform())
        ]
        found = table.inspect.partitions().to_pylist()
        assert sorted(item["partition"]["date_day"] for item in found) == days
        assert {row["date"].date() for row in rows(catalog, name)} == set(days)
    assert days[0] == date(1969, 12, 31)


def test_a_rerun_replaces_its_window_and_nothing_else(
    server: Emulator, catalog: Catalog, tmp_path: Path
) -> None:
    """One commit per table replaces the window's rows; the files of other windows stay."""
    deliver(server, 10, START + DAY)
    extract(server.url, tmp_path, START + DAY)
    other = {name: paths(catalog.load_table(f"r7mail.{name}")) for name in TABLES}
    gone = deliver(server, 10)
    extract(server.url, tmp_path)
    server.mailbox.delete(24, gone[:4])
    deliver(server, 3)
    extract(server.url, tmp_path)

    assert ids(catalog) == sorted(message["Id"] for message in server.mailbox.messages(24))
    for name in TABLES:
        table = catalog.load_table(f"r7mail.{name}")
        assert other[name] < paths(table)
        assert len(table.snapshots()) == 3


def test_a_window_without_mail(server: Emulator, catalog: Catalog, tmp_path: Path) -> None:
    """A window whose mail is gone loses its rows; if it never had any, nothing is committed."""
    first = extract(server.url, tmp_path)
    assert [item["snapshot_id"] for item in first["tables"]] == [None, None, None]
    assert rows(catalog) == []
    gone = deliver(server, 3)
    extract(server.url, tmp_path)
    server.mailbox.delete(24, gone)
    last = extract(server.url, tmp_path)

    assert [rows(catalog, name) for name in TABLES] == [[], [], []]
    assert snapshot(last) == catalog.load_table("r7mail.messages").metadata.current_snapshot_id
    assert json.loads((tmp_path / NOTE).read_text())["messages"] == 0


def test_tables_and_columns(server: Emulator, catalog: Catalog, tmp_path: Path) -> None:
    """`tables` and `columns` select what is written; omitted columns are null, `date` stays."""
    deliver(server, 2)
    extract(server.url, tmp_path, tables=("messages",), columns=("subject",))
    extract(server.url, tmp_path, START, 2 * DAY, tables=("messages",))

    assert catalog.list_tables("r7mail") == [("r7mail", "messages")]
    part = {row["window"] == LABEL: row for row in rows(catalog)}
    assert set(part[True]) == set(part[False]) == set(iceberg_schema("messages").names)
    keys = {"mailbox", "folder", "window", "run_id", "date", "subject"}
    assert {name for name, value in part[True].items() if value is not None} == keys
    assert part[False]["message_id"]


def test_privacy(server: Emulator, tmp_path: Path) -> None:
    """Neither the tables' files nor the catalog contain what the privacy policy removes."""
    deliver(server, 3, sender="taina@adresa.ru", to=["sekret@adresa.ru"], body="ТАЙНА")
    policy = {
        "body": "drop",
        "html_body": "drop",
        "addresses": "hash",
        "mailbox": "hash",
        "subject": "drop",
    }
    written = extract(server.url, tmp_path, privacy=Privacy.build(policy, "key"))

    assert written["messages"] == 3
    for path in tmp_path.rglob("*"):
        assert "user_test" not in str(path)
    for name in on_disk(tmp_path):
        text = str(pq.read_table(name).to_pylist())
        assert not {word for word in ("taina", "sekret", "ТАЙНА", "user_test", "№") if word in text}
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert not {
                word for word in (b"taina", b"sekret", b"user_test") if word in path.read_bytes()
            }


def test_quarantine(server: Emulator, catalog: Catalog, tmp_path: Path) -> None:
    """A message that doesn't fit is set aside next to the manifest; the others are written."""
    deliver(server, 2)
    server.mailbox.deliver(date=START, fields={"Id": MISSING})

    with pytest.raises(R7MailBadMessageError):
        extract(server.url, tmp_path)
    assert len(rows(catalog)) == 2
    aside = (tmp_path / NOTE).with_name("_quarantine.jsonl")
    assert len(aside.read_text().splitlines()) == 1


def test_attachments_are_not_downloaded_again(server: Emulator, tmp_path: Path) -> None:
    """A rerun looks up in the table which files it has, and downloads only new ones."""
    deliver(server, 3)
    files = UPath(tmp_path / "files")
    extract(server.url, tmp_path, attachments=files)
    deliver(server, 1)
    written = extract(server.url, tmp_path, attachments=files)

    assert written["attachments"] == {"unchanged": 3, "downloaded": 1}


def test_a_window_that_cannot_be_read_leaves_nothing(
    server: Emulator, catalog: Catalog, tmp_path: Path
) -> None:
    """If a page fails, nothing is committed and no data file stays."""
    deliver(server, 5)
    extract(server.url, tmp_path)
    before = rows(catalog), on_disk(tmp_path)
    deliver(server, 5)
    server.faults.append(Fault("Messages", skip=1, times=None))

    with pytest.raises(R7MailExtractError):
        extract(server.url, tmp_path, page_size=4)
    assert sum(request["path"].endswith("Messages") for request in server.requests) > 2
    assert (rows(catalog), on_disk(tmp_path)) == before


def extract_on_a_full_disk(url: str, root: Path, limit: int) -> None:
    """Extract where no file can get longer than a limit, as if the disk were full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(R7MailPublishError, match=r"File too large|disk is full|disk I/O"):
        extract(url, root)
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("limit", "size"),
    [(5_000, 1), (15_000, 1), (100_000, 100_000), (5_000_000, 6_000_000)],  # > a row group
)
def test_a_full_disk(
    server: Emulator, catalog: Catalog, tmp_path: Path, limit: int, size: int
) -> None:
    """A disk that fills up is a clear error, and no data file stays to keep it full."""
    deliver(server, 3)
    extract(server.url, tmp_path)
    before = rows(catalog), on_disk(tmp_path)
    noise = random.Random(1)
    for _ in range(3):
        deliver(server, 1, body=noise.randbytes(size).hex())
    assert run_children(extract_on_a_full_disk, (server.url, tmp_path, limit)) == [3]

    assert (rows(catalog), on_disk(tmp_path)) == before
    extract(server.url, tmp_path)
    assert len(rows(catalog)) == 6


@pytest.mark.parametrize("name", TABLES)
def test_a_disk_that_is_full_at_a_commit(
    server: Emulator, catalog: Catalog, tmp_path: Path, name: str
) -> None:
    """If a commit fails for a full disk, the data files that it would have published don't stay."""
    deliver(server, 3)
    extract(server.url, tmp_path)
    before = on_disk(tmp_path)
    with catalog.load_table(f"r7mail.{name}").transaction() as change:
        change.set_properties({"comment": "long " * 20_000})
    assert run_children(extract_on_a_full_disk, (server.url, tmp_path, 60_000)) == [3]

    published = {path for table in TABLES for path in paths(catalog.load_table(f"r7mail.{table}"))}
    assert on_disk(tmp_path) == before | published
    assert len(published - before) == len(TABLES) - 1 - TABLES.index(name)


# -- crashes --------------------------------------------------------------------------------


def extract_until(url: str, root: Path, number: int) -> None:
    """Extract, and die before or after a COMMIT of the catalog."""
    die_at_commit(number)
    extract(url, root)


def runs(catalog: Catalog) -> dict[str, str]:
    """The run whose rows each table has; they are all of one run."""
    found = {}
    for name in TABLES:
        [found[name]] = {row["run_id"] for row in rows(catalog, name)}
    return found


@pytest.fixture
def full(server: Emulator, tmp_path: Path) -> Emulator:
    """An emulator with a day's mail, extracted once, and more mail since."""
    deliver(server, 20)
    extract(server.url, tmp_path)
    deliver(server, 20)
    return server


def check_rerun(server: Emulator, catalog: Catalog, root: Path) -> None:
    """Check that a rerun gives all mail once, in all tables."""
    written = extract(server.url, root)

    assert ids(catalog) == sorted(message["Id"] for message in server.mailbox.messages(24))
    assert joined(catalog) == [(LABEL, written["run_id"], 40, 80, 40)]
    assert json.loads((root / NOTE).read_text()) == written


def test_killed_around_commits(full: Emulator, catalog: Catalog, tmp_path: Path) -> None:
    """Killed before and after each commit, each table has one run's rows, and no manifest lies."""
    for number in range(1, 7):
        before = runs(catalog)

        assert run_children(extract_until, (full.url, tmp_path, number)) == [-9]
        after = runs(catalog)
        changed = [name for name in ORDER if after[name] != before[name]]
        assert changed == list(ORDER[: number // 2])
        assert not (tmp_path / NOTE).exists()
        # A reader who joins by run_id sees only recipients of the messages' run.
        [(_, run, messages, recipients, files)] = joined(catalog)
        whole = {20: (40, 20), 40: (80, 40)}[messages]
        assert run == after["messages"]
        assert recipients == (whole[0] if after["recipients"] == run else 0)
        assert files == (whole[1] if after["attachments"] == run else 0)

    check_rerun(full, catalog, tmp_path)


def test_killed_at_random_moments(full: Emulator, catalog: Catalog, tmp_path: Path) -> None:
    """Killed at any moment, each table has one run's rows, and a rerun completes."""
    moments = random.Random(5)
    for _ in range(4):
        full.requests.clear()
        child = CHILDREN.Process(target=extract, args=(full.url, tmp_path))
        child.start()
        length = moments.uniform(0.0, 0.6)
        while child.is_alive() and not (
            full.requests and time.time() > full.requests[0]["time"] + length
        ):
            time.sleep(0.001)
        child.kill()
        child.join()

        runs(catalog)
        assert len(rows(catalog)) in {20, 40}
    check_rerun(full, catalog, tmp_path)


# -- others at the same time ----------------------------------------------------------------


def test_another_window_commits_first(server: Emulator, tmp_path: Path) -> None:
    """If another window commits first, the commit is retried on top of it: both are there."""
    target = shared(tmp_path)
    deliver(server, 3)
    deliver(server, 4, START + DAY)

    def other() -> None:
        extract(server.url, tmp_path / "b", START + DAY, iceberg=target)

    extract(server.url, tmp_path / "a", START - DAY, iceberg=target)
    stop = interrupted("UPDATE", 3, other)
    try:
        extract(server.url, tmp_path / "a", iceberg=target)
    finally:
        stop()

    with closing(target.load(UPath(tmp_path))) as catalog:
        assert [row[2:] for row in joined(catalog)] == [(3, 6, 3), (4, 8, 4)]
        for name in TABLES:
            assert len(catalog.load_table(f"r7mail.{name}").snapshots()) == 2


def test_the_same_window_commits_in_between(server: Emulator, tmp_path: Path) -> None:
    """Two concurrent runs of a window on two machines never duplicate rows; one of them fails."""
    target = shared(tmp_path)
    deliver(server, 3)
    extract(server.url, tmp_path / "a", START - DAY, iceberg=target)
    stop = interrupted("UPDATE", 3, lambda: extract(server.url, tmp_path / "b", iceberg=target))
    try:
        with pytest.raises(R7MailPublishError, match=r"r7mail\.recipients: another run"):
            extract(server.url, tmp_path / "a", iceberg=target)
    finally:
        stop()

    assert not (tmp_path / "a" / NOTE).exists()
    with closing(target.load(UPath(tmp_path))) as catalog:
        assert [len(rows(catalog, name)) for name in TABLES] == [3, 6, 3]
        written = extract(server.url, tmp_path / "a", iceberg=target)
        assert joined(catalog) == [(LABEL, written["run_id"], 3, 6, 3)]


@pytest.mark.parametrize("level", ["serializable", "snapshot"])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_window_extracted_twice_at_once(
    server: Emulator, tmp_path: Path, level: str, earlier: bool
) -> None:
    """The last of two runs of a window replaces the other's rows at any isolation level."""
    target = shared(tmp_path)
    deliver(server, 3)
    extract(server.url, tmp_path / "a", START if earlier else START - DAY, iceberg=target)
    with closing(target.load(UPath(tmp_path))) as catalog:
        for name in TABLES:
            with catalog.load_table(f"r7mail.{name}").transaction() as change:
                change.set_properties({"write.delete.isolation-level": level})
        # Just before the first commit.
        stop = interrupted("UPDATE", 1, lambda: extract(server.url, tmp_path / "b", iceberg=target))
        try:
            written = extract(server.url, tmp_path / "a", iceberg=target)
        finally:
            stop()

        assert joined(catalog) == [(LABEL, written["run_id"], 3, 6, 3)]
        assert [len(rows(catalog, name)) for name in TABLES] == [3, 6, 3]
        # What the run needs itself is not written into the tables' properties.
        assert "commit.retry.num-retries" not in catalog.load_table("r7mail.messages").properties


# If another process creates the catalog's tables first, pyiceberg leaves the connection to the
# garbage collector, and Python 3.13 warns about that.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_many_windows_at_once(server: Emulator, tmp_path: Path) -> None:
    """Mapped tasks that create the tables and commit at the same time all succeed."""
    target = shared(tmp_path)
    for number in range(4):
        deliver(server, 5, START + number * DAY)

    def one(number: int) -> None:
        extract(server.url, tmp_path / str(number), START + number * DAY, iceberg=target)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(4)))

    with closing(target.load(UPath(tmp_path))) as catalog:
        assert [row[2:] for row in joined(catalog)] == [(5, 10, 5)] * 4


def test_compaction_in_between(server: Emulator, catalog: Catalog, tmp_path: Path) -> None:
    """If compaction put several windows into one file, a rerun replaces only its own rows."""
    for start in (START, START + DAY / 2):
        deliver(server, 6, start)
    for start in (START, START + DAY / 2):
        extract(server.url, tmp_path, start, DAY / 2)
    before = ids(catalog)
    table = catalog.load_table("r7mail.messages")
    assert len(paths(table)) == 2
    merged = str(tmp_path / "merged.parquet")
    pq.write_table(table.scan().to_arrow(), merged)
    with table.transaction() as change:
        change.delete("true")
        change.add_files([merged])
    assert paths(table) == {merged}
    kept = sorted(str(row) for row in rows(catalog) if row["window"].startswith("20250601T12"))
    written = extract(server.url, tmp_path, START, DAY / 2)

    assert ids(catalog) == before
    now = {
        part: [row for row in rows(catalog) if row["window"].startswith(part)]
        for part in ("20250601T00", "20250601T12")
    }
    assert sorted(map(str, now["20250601T12"])) == kept
    assert {row["run_id"] for row in now["20250601T00"]} == {written["run_id"]}


# -- versions -------------------------------------------------------------------------------


def test_an_older_table_gets_the_new_columns(
    server: Emulator, catalog: Catalog, tmp_path: Path
) -> None:
    """A table of an earlier version gets the columns it lacks; its rows are null there."""
    deliver(server, 2)
    extract(server.url, tmp_path, START, DAY)
    table = catalog.load_table("r7mail.messages")
    with table.update_schema(allow_incompatible_changes=True) as change:
        for name in ("cs_md5", "labels", "extra"):
            change.delete_column(name)
        change.add_column("of_a_later_version", table.schema().find_type("subject"))
        # As a person may do; files identify columns by their ids.
        change.rename_column("cs_uid", "renamed")
    assert "cs_md5" not in rows(catalog)[0]
    deliver(server, 2, START + DAY, labels=[7])
    extract(server.url, tmp_path, START + DAY)

    found = {row["window"] == LABEL: row for row in rows(catalog)}
    assert (found[True]["labels"], found[False]["labels"]) == (None, [7])
    assert set(found[True]) == {*iceberg_schema("messages").names, "of_a_later_version", "renamed"}
    assert len(rows(catalog)) == 4
    fields = catalog.load_table("r7mail.messages").schema().fields
    assert len({field.field_id for field in fields}) == len(fields)


def test_somebody_elses_table(server: Emulator, catalog: Catalog, tmp_path: Path) -> None:
    """A table of the same name with other columns is an error before any page is read."""
    catalog.create_namespace("r7mail")
    catalog.create_table("r7mail.recipients", pa.schema([("message_id", pa.string())]))

    with pytest.raises(R7MailConfigError, match=r"r7mail\.recipients: its columns"):
        extract(server.url, tmp_path)
    assert [request for request in server.requests if request["path"].endswith("Messages")] == []


# -- memory ---------------------------------------------------------------------------------


def extract_and_tell(url: str, root: Path, days: int) -> None:
    """Extract, and record the peak of memory in MB."""
    extract(url, root, START, days * DAY, page_size=10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    (root / "peak").write_text(str(peak))


def test_memory_does_not_grow_with_the_window(server: Emulator, tmp_path: Path) -> None:
    """A window of 70 MB over many days takes hardly more memory than one of 20 MB."""
    source = random.Random(1)
    for n in range(700):
        server.mailbox.deliver(date=START + n * DAY / 50, body=source.randbytes(50_000).hex())
    peaks = []
    for days in (4, 14):
        root = tmp_path / str(days)
        root.mkdir()
        assert run_children(extract_and_tell, (server.url, root, days)) == [0]
        peaks.append(int((root / "peak").read_text()))

    assert peaks[1] - peaks[0] < 50


# -- catalogs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "login", "password", "extra", "expected"),
    [
        (
            "https://catalog/ws/",
            "id",
            "secret",
            {"warehouse": "lake"},
            {"uri": "https://catalog/ws", "credential": "id:secret", "warehouse": "lake"},
        ),
        (
            "https://catalog",
            None,
            "token",
            {"s3.path-style-access": True},
            {"uri": "https://catalog", "token": "token", "s3.path-style-access": "True"},
        ),
        (
            "postgresql+psycopg2://db/ice",
            "ann",
            "p@ss/",
            {"type": "sql"},
            {"uri": "postgresql+psycopg2://ann:p%40ss%2F@db/ice", "type": "sql"},
        ),
        (None, None, None, {"type": "glue"}, {"type": "glue"}),
        (None, "id", "secret", {"uri": "http://c"}, {"uri": "http://c", "credential": "id:secret"}),
    ],
)
def test_properties_of_a_connection(
    host: str | None,
    login: str | None,
    password: str | None,
    extra: dict[str, Any],
    expected: dict[str, str],
) -> None:
    """Host, login, password and extra mean the same as in Airflow's own `iceberg` connection."""
    assert connection_properties(host, login, password, extra) == expected


def operator(root: Path | str, **options: Any) -> Any:
    """The operator, for a day."""
    given = {"start": "2025-06-01", "end": "2025-06-02", "table_format": "iceberg", **options}
    return R7MailToParquetOperator(task_id="extract", folder=24, output_path=str(root), **given)


def operate(root: Path | str, **options: Any) -> Any:
    """Run the operator."""
    return operator(root, **options).execute({})


def test_refreshed_windows(server: Emulator, catalog: Catalog, tmp_path: Path) -> None:
    """`refresh_windows` replaces windows that the tables have, each in its own commits."""
    [changed] = deliver(server, 1)
    operate(tmp_path)
    server.mailbox.mark_read(24, [changed])
    deliver(server, 2, START + DAY)
    written = operate(tmp_path, start="2025-06-02", end="2025-06-03", refresh_windows=3)

    assert written["refreshed"][0]["messages"] == 1
    assert {row["message_id"]: row["was_read"] for row in rows(catalog)}[changed]
    assert [row[2:] for row in joined(catalog)] == [(1, 2, 1), (2, 4, 2)]


def test_lineage(server: Emulator, tmp_path: Path) -> None:
    """OpenLineage gets the tables' locations in the catalog and the number of rows written."""
    deliver(server, 3)
    task = operator(tmp_path)
    task.execute({})

    told = task.get_openlineage_facets_on_complete(None).outputs
    assert {output.name: output.outputFacets["outputStatistics"].rowCount for output in told} == {
        f"{tmp_path}/warehouse/r7mail/messages": 3,
        f"{tmp_path}/warehouse/r7mail/recipients": 6,
        f"{tmp_path}/warehouse/r7mail/attachments": 3,
    }


def test_a_catalog_by_connection(
    server: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`catalog_conn_id` gives the catalog; `catalog_properties` and `namespace` add to it."""
    deliver(server, 2)
    uri = f"sqlite:///{tmp_path}/other.db"
    connection = {"conn_type": "iceberg", "host": uri, "extra": {"type": "sql", "warehouse": "x"}}
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", json.dumps(connection))
    written = operate(
        tmp_path / "out",
        catalog_conn_id="lake",
        catalog_properties={"warehouse": f"{tmp_path}/elsewhere"},
        namespace="raw",
    )

    assert [item["identifier"] for item in written["tables"]] == [f"raw.{name}" for name in TABLES]
    with closing(SqlCatalog("default", uri=uri, warehouse="x")) as catalog:
        assert len(catalog.load_table("raw.messages").scan().to_arrow()) == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["windows"]
    assert on_disk(tmp_path / "elsewhere") == on_disk(tmp_path)


@pytest.mark.parametrize("folder", ["a b", "Почта №1", "100%", "50%20x", "a?b", "a#b&c=+d"])
def test_any_output_path(server: Emulator, tmp_path: Path, folder: str) -> None:
    """The default catalog lies below the output path, whatever characters its name has."""
    deliver(server, 3)
    home = tmp_path / folder
    for _ in range(2):
        written = extract(server.url, home)

    assert [path.name for path in tmp_path.iterdir()] == [folder]
    assert {path.name for path in home.iterdir()} == {"catalog.db", "warehouse", "windows"}
    with closing(IcebergTarget().load(UPath(home))) as catalog:
        assert joined(catalog) == [(LABEL, written["run_id"], 3, 6, 3)]


def test_a_nested_namespace(server: Emulator, catalog: Catalog, tmp_path: Path) -> None:
    """A namespace within another one works as any other."""
    deliver(server, 3)
    for _ in range(2):
        extract(server.url, tmp_path, iceberg=IcebergTarget(namespace="mail.raw"))

    assert len(catalog.load_table("mail.raw.messages").scan().to_arrow()) == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"table_format": "delta"}, "Known: parquet, iceberg"),
        ({"table_format": "parquet", "catalog_conn_id": "lake"}, "catalog_conn_id: only for"),
        ({"catalog_conn_id": "absent"}, "absent"),
        ({"namespace": "a."}, "namespace: 'a.'"),
        (
            {"catalog_properties": {"type": "sql", "uri": "sqlite://"}},
            r"r7mail\.messages: can't be created \(ValueError: No default path is set",
        ),
        ({"catalog_properties": {"type": "none"}}, "can't be opened"),
        ({"catalog_properties": {"uri": "x://u:hush@h/"}}, "can't be opened"),
    ],
)
def test_wrong_parameters(
    server: Emulator, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    """A mistake in the catalog's settings is an error at once, without the password."""
    with pytest.raises(AirflowFailException, match=told) as raised:
        operate(tmp_path, **options)
    assert "hush" not in str(raised.value)
    assert server.requests == []


def test_an_unavailable_catalog(server: Emulator, tmp_path: Path) -> None:
    """A catalog that can't be reached fails the task, which may retry; no password is shown."""
    properties = {"type": "sql", "uri": "sqlite:////proc/none.db", "password": "hush"}

    with pytest.raises(R7MailPublishError, match="unable to open database file"):
        operate(tmp_path, catalog_properties=properties)


@pytest.fixture
def rest(tmp_path: Path) -> Iterator[RestCatalog]:
    """A REST catalog whose administrator has created the namespace."""
    with closing(shared(tmp_path).load(UPath(tmp_path))) as tables:
        tables.create_namespace("r7mail")
        with served(RestCatalog(tables)) as catalog:
            yield catalog


@pytest.mark.parametrize("stages", ["ignored", "refused"])
def test_a_catalog_that_stages_no_table(
    server: Emulator, tmp_path: Path, rest: RestCatalog, stages: str
) -> None:
    """New tables have their partitions in a catalog that refuses or ignores stage-create."""
    rest.stages = stages
    deliver(server, 3)
    extract(server.url, tmp_path, iceberg=IcebergTarget({"uri": rest.uri}))

    for name in TABLES:
        table = rest.tables.load_table(f"r7mail.{name}")
        assert [(f.name, f.transform) for f in table.spec().fields] == [
            ("date_day", DayTransform())
        ]
        assert table.schema().as_arrow().names == iceberg_schema(name).names
    assert [row[2:] for row in joined(rest.tables)] == [(3, 6, 3)]


@pytest.mark.parametrize(
    "forbidden", [{"POST namespaces"}, {"POST namespaces", "GET namespaces"}, set()]
)
def test_a_namespace_that_may_not_be_created(
    server: Emulator, tmp_path: Path, rest: RestCatalog, forbidden: set[str]
) -> None:
    """A namespace that exists is used, even if this login may neither create nor look at it."""
    rest.forbidden = forbidden
    deliver(server, 3)
    extract(server.url, tmp_path, iceberg=IcebergTarget({"uri": rest.uri}))

    assert [row[2:] for row in joined(rest.tables)] == [(3, 6, 3)]


def test_a_missing_namespace(server: Emulator, tmp_path: Path, rest: RestCatalog) -> None:
    """A missing namespace is created; if that is forbidden, the error says so at once."""
    rest.forbidden = {"POST namespaces"}
    target = IcebergTarget({"uri": rest.uri}, "raw")
    deliver(server, 3)
    with pytest.raises(R7MailConfigError, match=r"raw\.messages: can't be created"):
        extract(server.url, tmp_path, iceberg=target)
    assert rest.requests.count("POST namespaces") == 1

    rest.forbidden = {"POST namespaces/tables"}
    with pytest.raises(R7MailConfigError, match=r"raw\.messages: can't be created"):
        extract(server.url, tmp_path, iceberg=target)

    rest.forbidden = set()
    extract(server.url, tmp_path, iceberg=target)
    assert len(rest.tables.load_table("raw.messages").scan().to_arrow()) == 3


@pytest.mark.parametrize(("days", "page"), [(1, 1), (1, 4), (12, 2), (12, 4)])
def test_vended_credentials_that_expire(
    server: Emulator, tmp_path: Path, days: int, page: int
) -> None:
    """A run succeeds if the storage's credentials from the catalog expire before it ends."""
    with s3_server_with_expiring_keys() as keys:
        Bucket(keys.url, "lake")
        lake = {
            **keys.new(),
            "s3.access-key-id": "testing",
            "uri": f"sqlite:///{tmp_path}/rest.db?timeout=60",
            "warehouse": "s3://lake/warehouse",
        }
        with closing(SqlCatalog("default", **lake)) as tables:
            catalog = RestCatalog(tables, vend=keys.new)
            deliver(server, 12)
            for day in range(1, days):
                deliver(server, 1, START + day * DAY)
            total = 11 + days

            def expire(progress: Progress) -> None:
                nonlocal page
                page -= 1
                if page == 0:
                    keys.expire()

            with served(catalog):
                extract(
                    server.url,
                    tmp_path,
                    length=days * DAY,
                    iceberg=IcebergTarget({"uri": catalog.uri}),
                    page_size=total // 3,
                    on_progress=expire,
                )
            assert keys.refused
            assert [row[2:] for row in joined(tables)] == [(total, 2 * total, total)]


@pytest.mark.parametrize("old", [False, True], ids=["missing", "too old"])
def test_without_the_extra(
    server: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    """Without pyiceberg, or with one too old, the error says what to install, before any request.

    The constraints of Airflow 2.11.0 and 3.0.6 pin such an old one.
    """
    if old:
        monkeypatch.delattr("pyiceberg.io.pyarrow.parquet_file_to_data_file")
    else:
        monkeypatch.setitem(sys.modules, "pyiceberg.io.pyarrow", None)

    with pytest.raises(
        AirflowFailException, match=r"too old .* pip install 'airflow-provider-r7mail\[iceberg\]'"
    ):
        operate(tmp_path)
    assert server.requests == []


def test_on_s3(server: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warehouse and the manifests may be on S3; this needs a catalog to be set."""
    with s3_server() as endpoint:
        bucket = Bucket(endpoint, "lake")
        connect_s3(monkeypatch, "s3_iceberg", endpoint)
        with pytest.raises(AirflowFailException, match="needs a disk"):
            operate("s3://s3_iceberg@lake/mail")
        properties = {
            "type": "sql",
            "uri": f"sqlite:///{tmp_path}/catalog.db",
            "warehouse": "s3://lake/warehouse",
            "s3.endpoint": endpoint,
            "s3.access-key-id": "testing",
            "s3.secret-access-key": "testing",
            "s3.region": "us-east-1",
        }
        deliver(server, 5)
        for _ in range(2):
            written = operate("s3://s3_iceberg@lake/mail", catalog_properties=properties)

        with closing(IcebergTarget(properties).load(UPath("/"))) as catalog:
            assert joined(catalog) == [(LABEL, written["run_id"], 5, 10, 5)]
        keys = set(bucket.names())
        assert f"mail/{NOTE}" in keys
        assert {key.split("/")[0] for key in keys} == {"mail", "warehouse"}


# -- the documentation's page ---------------------------------------------------------------


def test_the_documented_dag(
    server: Emulator,
    run_dag: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    logged: Callable[[], str],
) -> None:
    """The documented DAG writes a day; XCom has tables, snapshots and row counts, and no mail."""
    monkeypatch.setenv("AIRFLOW_VAR_MAIL_LAKE", str(tmp_path))
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    deliver(server, 3, midnight - DAY, body="ТАЙНА-тела")
    result = run_dag((DOCS / "examples" / "dags" / "mail_lake.py").read_text())

    assert result.state == "success"
    written = result.xcom("extract")
    [note] = tmp_path.rglob("_manifest.json")
    assert json.loads(note.read_text()) == written
    assert "ТАЙНА" not in logged() + json.dumps(written, ensure_ascii=False)
    told = {item["identifier"]: item for item in written["tables"]}
    assert {name: item["rows"] for name, item in told.items()} == {
        "r7mail.messages": 3,
        "r7mail.recipients": 6,
        "r7mail.attachments": 3,
    }
    with closing(IcebergTarget().load(UPath(tmp_path))) as catalog:
        for name, item in told.items():
            current: Any = catalog.load_table(name).current_snapshot()
            assert item["snapshot_id"] == current.snapshot_id
            assert {
                "r7mail.run_id": written["run_id"],
                "r7mail.mailbox": "user_test",
                "r7mail.folder": "24",
                "r7mail.window": note.parent.name.removeprefix("window="),
                "r7mail.rows": str(item["rows"]),
            }.items() <= current.summary.additional_properties.items()


def test_the_documented_upkeep(
    server: Emulator,
    run_dag: Callable[[str], Any],
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The documented DAG merges a day's files, and XCom has numbers and no mail."""
    monkeypatch.setenv("AIRFLOW_VAR_MAIL_LAKE", str(tmp_path))
    for part in range(2):
        deliver(server, 1, START + DAY / 2 * part)
        extract(server.url, tmp_path, START + DAY / 2 * part, DAY / 2)
    result = run_dag((DOCS / "examples" / "dags" / "iceberg_upkeep.py").read_text())

    assert result.state == "success"
    told = result.xcom("upkeep")["tables"]
    assert [(item["table"], item["files"], item["into"]) for item in told] == [
        (f"r7mail.{name}", 2, 1) for name in TABLES
    ]
    assert len(rows(catalog)) == 2


def test_the_documented_functions(server: Emulator, tmp_path: Path) -> None:
    """The documented functions read the tables, and check a window."""
    read = example("read_iceberg")
    deliver(server, 3)
    home = tmp_path / "Почта 50%20"
    extract(server.url, home)
    extract(server.url, home)
    note = home / NOTE

    with closing(read.open_catalog(str(home))) as catalog:
        day = [(START.date(), "b.ru", 3), (START.date(), "d.ru", 3)]
        assert read.mail_by_domain(catalog, START) == day
        assert read.mail_by_domain(catalog, START + DAY) == []
        assert read.is_published(catalog, note)
        note.write_text(json.dumps(json.loads(note.read_text()) | {"run_id": "another"}))
        assert not read.is_published(catalog, note)
