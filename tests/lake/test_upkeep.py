"""Iceberg tables are kept quick: fewer files, manifests and snapshots, and the same rows."""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.conftest import AIRFLOW_2

if AIRFLOW_2:
    pytest.skip("the SQL catalog needs SQLAlchemy 2", allow_module_level=True)

from pyiceberg.catalog import Catalog
from pyiceberg.schema import Schema
from pyiceberg.types import NestedField, StringType
from sqlalchemy import event
from sqlalchemy.engine import Engine
from upath import UPath

from airflow_provider_r7mail.compat import AirflowFailException
from airflow_provider_r7mail.emulator import Emulator
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.lake.catalog import IcebergTarget
from airflow_provider_r7mail.lake.schema import TABLES
from airflow_provider_r7mail.lake.upkeep import TableUpkeep, Upkeep, keep_up
from airflow_provider_r7mail.operators import R7MailCompactOperator
from tests.lake.iceberg_support import (
    deliver,
    extract,
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
    START,
    Bucket,
    run_children,
    s3_server_with_expiring_keys,
)

pytestmark = pytest.mark.slow
PART = DAY / 3
OLD = timedelta(days=10)


def upkeep(root: Path, target: IcebergTarget | None = None, **options: Any) -> list[TableUpkeep]:
    """Keep the tables quick; by default, snapshots and orphans stay."""
    given = {"keep_snapshots": None, "orphans_after": None, **options}
    return keep_up(target or IcebergTarget(), UPath(root), Upkeep(**given))


def fill(server: Emulator, root: Path, days: int = 2, **options: Any) -> None:
    """Extract days in windows of a third of a day, with 4 messages each."""
    for part in range(days * 3):
        for n in range(4):
            deliver(server, 1, START + PART * part + timedelta(minutes=n))
        extract(server.url, root, START + PART * part, PART, **options)


def contents(catalog: Catalog) -> dict[str, list[str]]:
    """All rows of all tables, comparable."""
    return {name: sorted(map(repr, rows(catalog, name))) for name in TABLES}


def make_old(root: Path) -> None:
    """Let all data and metadata be some days older."""
    past = time.time() - OLD.total_seconds()
    for path in root.rglob("*"):
        if path.is_file():
            os.utime(path, (past, past))


def on_disk_or_metadata(root: Path) -> set[str]:
    """All files of the tables."""
    return {str(path) for path in root.rglob("*") if path.is_file() and "/r7mail/" in str(path)}


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    """The catalog below the output path."""
    with closing(IcebergTarget().load(UPath(tmp_path))) as opened:
        yield opened


# -- small files ----------------------------------------------------------------------------


def test_small_files_become_one_a_day(server: Emulator, catalog: Catalog, tmp_path: Path) -> None:
    """A day's files become one, with every row and column as it was; young days stay."""
    fill(server, tmp_path)
    table = catalog.load_table("r7mail.messages")
    with table.update_schema() as change:
        change.add_column("note", StringType())
    table.refresh()
    noted = table.scan().to_arrow()
    place = noted.schema.get_field_index("note")
    mine = pa.chunked_array([["mine"] * len(noted)], noted.field(place).type)
    noted = noted.set_column(place, noted.field(place), mine)
    files = [str(tmp_path / f"{number}.parquet") for number in range(4)]
    for number, file in enumerate(files):
        first = START + number // 2 * DAY + number % 2 * PART
        chosen = (pc.field("date") >= first) & (pc.field("date") < first + (1 + number % 2) * PART)
        pq.write_table(noted.filter(chosen), file)
    with table.transaction() as change:
        change.delete("true")
        change.add_files(files)
    extract(server.url, tmp_path, START, PART)
    before = contents(catalog)
    assert "'note': 'mine'" in before["messages"][-1]

    assert [done.files for done in upkeep(tmp_path, dry_run=True)] == [4, 6, 6]
    assert contents(catalog) == before
    [messages, *others] = upkeep(tmp_path)
    assert (messages.days, messages.files, messages.into) == (2, 4, 2)
    assert [(done.days, done.files, done.into) for done in others] == [(2, 6, 2)] * 2
    assert contents(catalog) == before
    assert [len(paths(catalog.load_table(f"r7mail.{name}"))) for name in TABLES] == [2, 2, 2]
    assert [done.files for done in upkeep(tmp_path)] == [0, 0, 0]
    written = extract(server.url, tmp_path, START, PART)
    assert [len(rows(catalog, name)) for name in TABLES] == [24, 48, 24]
    assert (written["run_id"], 4, 8, 4) in [row[1:] for row in joined(catalog)]


def test_young_days_are_left_alone(server: Emulator, catalog: Catalog, tmp_path: Path) -> None:
    """Days that are not old enough keep their files, since their windows are still rewritten."""
    fill(server, tmp_path, 1)

    assert upkeep(tmp_path, older_than=timedelta(days=100_000 // 4))[0].files == 0
    assert len(paths(catalog.load_table("r7mail.messages"))) == 3


def test_many_manifests_become_one(server: Emulator, catalog: Catalog, tmp_path: Path) -> None:
    """Manifests are merged, and readers find the same rows, in files and snapshots as before."""
    for number in range(12):
        deliver(server, 1, START + number * DAY)
        extract(server.url, tmp_path, START + number * DAY)
    before = contents(catalog)
    table = catalog.load_table("r7mail.messages")
    old = table.metadata.current_snapshot_id
    files = paths(table)

    assert [done.manifests for done in upkeep(tmp_path, dry_run=True)] == [12, 12, 12]
    assert [done.manifests for done in upkeep(tmp_path)] == [12, 12, 12]
    table.refresh()
    assert len(table.inspect.manifests()) == 1
    assert contents(catalog) == before
    assert paths(table) == files
    assert len(table.scan(snapshot_id=old).to_arrow()) == 12
    assert table.properties.get("commit.manifest-merge.enabled") is None
    assert [done.manifests for done in upkeep(tmp_path)] == [0, 0, 0]
    extract(server.url, tmp_path)
    assert len(rows(catalog)) == 12


def test_an_unreadable_file_is_left(server: Emulator, catalog: Catalog, tmp_path: Path) -> None:
    """A day with a file that is missing is left as it is, and told; the others are merged."""
    fill(server, tmp_path)
    table = catalog.load_table("r7mail.messages")
    scan = table.scan("date < '2025-06-02T00:00:00+00:00'")
    gone = min(task.file.file_path for task in scan.plan_files())
    Path(gone).unlink()
    messages = upkeep(tmp_path, orphans_after=timedelta(0))[0]

    assert (messages.files, messages.into) == (3, 1)
    assert messages.left[0].startswith(f"2025-06-01: {gone} can't be read")
    assert "orphans: files that its snapshots need are missing (1)" in messages.left[1]
    assert len(paths(catalog.load_table("r7mail.messages"))) == 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"folder": 24}, "folder: Iceberg tables have the rows of all folders"),
        ({"older_than_days": -1}, "older_than_days: -1. Give a number, 0 or more"),
        ({"keep_snapshots_days": "week"}, "keep_snapshots_days: 'week'"),
        ({"orphans_after_days": 0.5}, "orphans_after_days: 0.5. Give a number, 1 or more"),
        ({"catalog_conn_id": "absent"}, "absent"),
    ],
)
def test_wrong_parameters(
    server: Emulator, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    """A mistake in the operator's parameters is an error at once."""
    given = {"output_path": str(tmp_path), "table_format": "iceberg", **options}
    task: Any = R7MailCompactOperator(task_id="upkeep", **given)
    with pytest.raises(AirflowFailException, match=told):
        task.execute({})


def test_tables_of_someone_else(server: Emulator, catalog: Catalog, tmp_path: Path) -> None:
    """Where there are no tables, nothing is done; one with other columns is an error."""
    assert upkeep(tmp_path) == []
    catalog.create_namespace("r7mail")
    catalog.create_table("r7mail.messages", Schema(NestedField(1, "date", StringType())))
    with pytest.raises(R7MailConfigError, match=r"r7mail\.messages: its columns"):
        upkeep(tmp_path)


# -- others at the same time ----------------------------------------------------------------


@pytest.mark.parametrize("same", [True, False])
def test_a_run_in_between(server: Emulator, tmp_path: Path, same: bool) -> None:
    """If a run commits to a day that is being merged, its rows stay, and the day is left."""
    target = shared(tmp_path)
    fill(server, tmp_path, iceberg=target)
    start = START if same else START + 5 * DAY
    deliver(server, 1, start + timedelta(hours=1))
    stop = interrupted(
        "UPDATE", 1, lambda: extract(server.url, tmp_path / "b", start, PART, iceberg=target)
    )
    try:
        done = upkeep(tmp_path, target)[0]
    finally:
        stop()

    assert done.files == (3 if same else 6)
    assert done.left == (["2025-06-01: changed meanwhile"] if same else [])
    with closing(target.load(UPath(tmp_path))) as catalog:
        assert sorted(row["message_id"] for row in rows(catalog)) == sorted(
            message["Id"] for message in server.mailbox.messages(24)
        )
        assert [len(rows(catalog, name)) for name in TABLES] == [25, 50, 25]
        files = {path for name in TABLES for path in paths(catalog.load_table(f"r7mail.{name}"))}
        assert {path for path in on_disk(tmp_path) if "/compact-" in path} <= files


def test_a_run_whose_day_is_merged_first(server: Emulator, tmp_path: Path) -> None:
    """If a day is merged while a run replaces one of its windows, the run's rows are there once."""
    target = shared(tmp_path)
    fill(server, tmp_path, 1, iceberg=target)
    deliver(server, 1, START + timedelta(hours=1))
    stop = interrupted("UPDATE", 1, lambda: upkeep(tmp_path, target))
    try:
        extract(server.url, tmp_path / "b", START, PART, iceberg=target)
    finally:
        stop()

    with closing(target.load(UPath(tmp_path))) as catalog:
        assert [len(rows(catalog, name)) for name in TABLES] == [13, 26, 13]


def test_two_at_once(server: Emulator, catalog: Catalog, tmp_path: Path) -> None:
    """Two that merge at the same time, and a run beside them, lose and double nothing."""
    fill(server, tmp_path)
    before = contents(catalog)
    ends = run_children(upkeep, (tmp_path,), (tmp_path,), (tmp_path,))

    assert ends == [0, 0, 0]
    assert contents(catalog) == before
    assert [len(paths(catalog.load_table(f"r7mail.{name}"))) for name in TABLES] == [2, 2, 2]


def upkeep_until(root: Path, number: int) -> None:
    """Keep up, and die before or after a COMMIT of the catalog."""
    count = 0

    def step(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), 9)

    event.listen(Engine, "commit", step)
    event.listen(Engine, "checkin", step)
    upkeep(root, keep_snapshots=timedelta(0), orphans_after=OLD / 2)


def test_killed(server: Emulator, catalog: Catalog, tmp_path: Path) -> None:
    """Killed at any moment, every row is there once; the next one finishes and removes the rest."""
    fill(server, tmp_path)
    before = contents(catalog)
    moments = random.Random(3)
    ends = []
    for number in (2, 9, 16, 23, 30):
        ends += run_children(upkeep_until, (tmp_path, number))
        assert contents(catalog) == before
    for _ in range(2):
        child = CHILDREN.Process(target=upkeep, args=(tmp_path,))
        child.start()
        time.sleep(moments.uniform(0.1, 1))
        child.kill()
        child.join()
        assert contents(catalog) == before
    assert ends.count(-9) >= 2
    make_old(tmp_path)
    upkeep(tmp_path, keep_snapshots=timedelta(0), orphans_after=OLD / 2)
    make_old(tmp_path)
    upkeep(tmp_path, keep_snapshots=timedelta(0), orphans_after=OLD / 2)

    assert contents(catalog) == before
    tables = [catalog.load_table(f"r7mail.{name}") for name in TABLES]
    assert [len(paths(table)) for table in tables] == [2, 2, 2]
    assert on_disk(tmp_path) == {path for table in tables for path in paths(table)}
    # One commit of each window to each table, and no more than a few snapshots.
    assert all(len(table.snapshots()) == 1 for table in tables)


# -- snapshots and orphans ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("io", "folder"),
    [
        ("pyarrow.PyArrowFileIO", "50%20x"),
        ("pyarrow.PyArrowFileIO", "a#b&c=+d"),
        ("fsspec.FsspecFileIO", "Почта a?b"),
    ],
)
def test_orphans(server: Emulator, tmp_path: Path, io: str, folder: str) -> None:
    """What no snapshot needs is removed once it is old, and nothing else, wherever the tables are.

    Tagged snapshots stay.
    """
    root = tmp_path / folder
    target = IcebergTarget()
    fill(server, root, 1)
    with closing(target.load(UPath(root))) as catalog:
        table = catalog.load_table("r7mail.messages")
        tagged: int = table.metadata.current_snapshot_id  # type: ignore[assignment]
        table.manage_snapshots().create_tag(tagged, "mine").commit()
        for name in TABLES:
            with catalog.load_table(f"r7mail.{name}").transaction() as change:
                change.set_properties({"py-io-impl": f"pyiceberg.io.{io}"})
        before = contents(catalog)
        left = root / "warehouse/r7mail/messages/data/deadbeef-00000-deadbeef.parquet"
        others = [
            root / "warehouse/r7mail/messages/readme.txt",
            root / "warehouse/r7mail/messages2/data/x.parquet",
            root / "warehouse/x.parquet",
        ]
        for path in (left, *others):
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(b"x")
        make_old(root)
        young = left.with_name("young.parquet")
        young.write_bytes(b"x")
        extract(server.url, root, START, PART)
        there = on_disk_or_metadata(root)
        told = upkeep(root, keep_snapshots=OLD, orphans_after=OLD / 2, dry_run=True)[0]
        assert (told.orphans, told.orphan_bytes) == (1, 1)
        assert on_disk_or_metadata(root) == there
        done = upkeep(root, keep_snapshots=timedelta(0), orphans_after=OLD / 2)
        assert [item.left for item in done] == [[], [], []]
        assert done[1].orphans > 3

        assert all(path.exists() for path in (*others, young))
        assert not left.exists()
        now = {name: len(rows(catalog, name)) for name in TABLES}
        assert now == {name: len(found) for name, found in before.items()}
        table.refresh()
        assert {s.snapshot_id for s in table.snapshots()} >= {tagged}
        assert len(table.scan(snapshot_id=tagged).to_arrow()) == 12
        assert len(catalog.load_table("r7mail.recipients").snapshots()) == 1


def test_two_tables_in_one_place(server: Emulator, catalog: Catalog, tmp_path: Path) -> None:
    """If another table has files in the same place, nothing is removed there, and it is told."""
    fill(server, tmp_path, 1)
    table = catalog.load_table("r7mail.messages")
    catalog.create_table("r7mail.twin", table.schema(), location=table.location())
    make_old(tmp_path)
    home = tmp_path / "warehouse/r7mail/messages"
    there = on_disk(home)
    done = upkeep(tmp_path, keep_snapshots=timedelta(0), orphans_after=OLD / 2)[0]

    assert "orphans: another table has files there, too" in done.left[0]
    assert (done.orphans, on_disk(home) > there) == (0, True)


# -- catalogs -------------------------------------------------------------------------------


def test_a_rest_catalog_on_s3(server: Emulator, tmp_path: Path) -> None:
    """A REST catalog with a storage whose credentials expire all the while is kept quick, too."""
    with s3_server_with_expiring_keys() as keys:
        bucket = Bucket(keys.url, "upkeep")
        lake = {
            **keys.new(),
            "s3.access-key-id": "testing",
            "uri": f"sqlite:///{tmp_path}/rest.db?timeout=60",
            "warehouse": "s3://upkeep/warehouse",
        }
        from pyiceberg.catalog.sql import SqlCatalog

        with closing(SqlCatalog("default", **lake)) as tables:
            with served(RestCatalog(tables, vend=keys.new)) as rest:
                target = IcebergTarget({"uri": rest.uri})
                fill(server, tmp_path, iceberg=target)
                before = contents(tables)
                done = keep_up(
                    target,
                    UPath(tmp_path),
                    Upkeep(keep_snapshots=timedelta(0), orphans_after=timedelta(0)),
                    lambda _: keys.expire(),
                )
            assert [(item.files, item.into) for item in done] == [(6, 2)] * 3
            assert contents(tables) == before
            files = {path for name in TABLES for path in paths(tables.load_table(f"r7mail.{name}"))}
            assert {
                f"s3://upkeep/{name}" for name in bucket.names() if name[-8:] == ".parquet"
            } == files
