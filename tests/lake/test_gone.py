"""Mail that has left the folder: its rows go with it, or stay and say since when it is gone."""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from upath import UPath

from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.emulator import Emulator, Mailbox, Readings
from airflow_provider_r7mail.exceptions import R7MailConfigError, R7MailPublishError
from airflow_provider_r7mail.lake.catalog import IcebergTarget
from airflow_provider_r7mail.lake.job import ExtractJob
from airflow_provider_r7mail.lake.privacy import Privacy
from airflow_provider_r7mail.lake.schema import TABLES, schema
from airflow_provider_r7mail.lake.window import extract_window
from tests.lake.support import (
    DAY,
    DOCS,
    INBOX,
    START,
    WINDOW,
    config,
    die_at,
    files,
    published,
    run_children,
)

Reader = Callable[[str], list[dict[str, Any]]]


def extract(url: str, root: Path, **options: Any) -> dict[str, Any]:
    """Extract the day, keeping mail that has left unless told otherwise."""
    job = ExtractJob(
        **{
            "folder": INBOX,
            "criteria": MessageFilter.build(start=START, end=START + DAY),
            "output": UPath(root),
            "on_gone": "keep",
            **options,
        }
    )

    async def run() -> dict[str, Any]:
        async with AsyncClient(config(url)) as client:
            return await extract_window(client, job)

    return asyncio.run(run())


@pytest.fixture(params=["parquet", pytest.param("iceberg", marks=pytest.mark.slow)])
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of tables."""
    return str(request.param)


@pytest.fixture
def options(kind: str) -> dict[str, Any]:
    """The options of an extract into tables of this kind."""
    return {"iceberg": IcebergTarget()} if kind == "iceberg" else {}


@pytest.fixture
def rows(kind: str, tmp_path: Path) -> Reader:
    """Read a table's rows, by message and position or file."""

    def read(name: str) -> list[dict[str, Any]]:
        if kind == "iceberg":
            with closing(IcebergTarget().load(UPath(tmp_path))) as catalog:
                found = catalog.load_table(f"r7mail.{name}").scan().to_arrow()
        else:
            found = pq.read_table(tmp_path / name / WINDOW / "part-00000.parquet")
        sorting = [("message_id", "ascending")]
        listed: list[dict[str, Any]] = found.sort_by(sorting).to_pylist()
        return listed

    return read


def deliver(server: Emulator, count: int, **fields: Any) -> list[int]:
    """Deliver messages of the day, each with two recipients and a file."""
    given = {"to": ["a@b.ru", "c@d.ru"], "attachments": [("a.bin", b"x", "x/y")], **fields}
    return [server.mailbox.deliver(date=START + DAY / 10 * n, **given) for n in range(count)]


def gone(rows: Reader, name: str = "messages") -> dict[int, datetime | None]:
    """Return since when each message in a table is gone."""
    return {row["message_id"]: row["gone_at"] for row in rows(name)}


def test_mail_that_has_left_stays(
    server: Emulator, tmp_path: Path, options: dict[str, Any], rows: Reader
) -> None:
    """With "keep", mail that was deleted keeps its rows and files, marked since it was missed."""
    ids = deliver(server, 4)
    attachments = UPath(tmp_path / "files")
    extract(server.url, tmp_path, attachments=attachments, **options)
    before = {name: rows(name) for name in TABLES}
    server.mailbox.delete(INBOX, [ids[1]])
    second = extract(server.url, tmp_path, attachments=attachments, **options)
    server.mailbox.delete(INBOX, [ids[2]])
    extract(server.url, tmp_path, attachments=attachments, **options)
    third = extract(server.url, tmp_path, attachments=attachments, **options)

    missed = datetime.fromisoformat(second["extracted_at"])
    for name in TABLES:
        found = gone(rows, name)
        assert (found[ids[0]], found[ids[1]], found[ids[3]]) == (None, missed, None)
        later = found[ids[2]]
        assert later is not None
        assert missed < later < datetime.fromisoformat(third["extracted_at"])
        same = {"gone_at": None, "run_id": None, "extracted_at": None, "status": None}
        assert [row | same for row in rows(name)] == [row | same for row in before[name]]
    assert (third["messages"], third["gone"]) == (2, 2)
    stored = [row["uri"].removeprefix("file://") for row in rows("attachments")]
    assert [Path(path).read_bytes() for path in stored] == [b"x"] * 4


def test_mail_that_comes_back(
    server: Emulator, tmp_path: Path, options: dict[str, Any], rows: Reader
) -> None:
    """Mail that was away for a while has one row again, which isn't gone."""
    ids = deliver(server, 3)
    extract(server.url, tmp_path, **options)
    server.mailbox.move(INBOX, [ids[0]], 26)
    extract(server.url, tmp_path, **options)
    assert gone(rows)[ids[0]] is not None
    server.mailbox.move(26, [ids[0]], INBOX)
    extract(server.url, tmp_path, **options)

    for name in TABLES:
        assert gone(rows, name) == dict.fromkeys(ids)
    assert len(rows("recipients")) == 6


def test_a_picture_of_the_folder(
    server: Emulator, tmp_path: Path, options: dict[str, Any], rows: Reader
) -> None:
    """With "drop", which is the default, mail that has left loses its rows, kept ones too."""
    ids = deliver(server, 3)
    extract(server.url, tmp_path, **options)
    server.mailbox.delete(INBOX, ids[:1])
    extract(server.url, tmp_path, **options)
    manifest = extract(server.url, tmp_path, on_gone="drop", **options)

    assert gone(rows) == dict.fromkeys(ids[1:])
    assert manifest["gone"] == 0


def test_a_message_that_can_no_longer_be_read(
    server: Emulator, tmp_path: Path, options: dict[str, Any], rows: Reader
) -> None:
    """A message that is set aside now isn't gone: its rows stay as they were."""
    ids = deliver(server, 3)
    extract(server.url, tmp_path, **options)
    with Emulator(Mailbox(), readings=Readings(undated="always")) as other:
        assert deliver(other, 1, fields={"Date": "soon"}) + deliver(other, 1) == ids[:2]
        manifest = extract(other.url, tmp_path, **options, on_bad_message="quarantine")

    found = gone(rows)
    assert found.keys() == set(ids)
    assert [moment is None for moment in found.values()] == [True, True, False]
    assert manifest["quarantined"] == 1


def test_tables_of_version_1(server: Emulator, tmp_path: Path) -> None:
    """Windows that version 1 wrote go on, and their mail is kept."""
    ids = deliver(server, 3)
    extract(server.url, tmp_path)
    for name in TABLES:
        path = tmp_path / name / WINDOW / "part-00000.parquet"
        old = pq.read_table(path).drop_columns("gone_at")
        pq.write_table(old, path)
    server.mailbox.delete(INBOX, ids[:1])
    extract(server.url, tmp_path)

    for name in TABLES:
        found = pq.read_table(tmp_path / name / WINDOW / "part-00000.parquet")
        assert found.schema.equals(schema(name))
        assert [row["gone_at"] is None for row in found.to_pylist()].count(False) == len(found) // 3


def test_an_unreadable_file_is_never_replaced(server: Emulator, tmp_path: Path) -> None:
    """If the earlier rows can't be read, nothing is written; with "drop" they are replaced."""
    deliver(server, 3)
    extract(server.url, tmp_path)
    (tmp_path / "messages" / WINDOW / "part-00000.parquet").write_bytes(b"broken")
    before = files(tmp_path)

    with pytest.raises(R7MailPublishError, match='on_gone="drop"'):
        extract(server.url, tmp_path)
    assert files(tmp_path) == before
    assert extract(server.url, tmp_path, on_gone="drop")["messages"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_gone": "hide"}, "on_gone: 'hide'. Known: drop, keep"),
        ({"columns": ("message_id", "date")}, "needs extracted_at, gone_at, message_id"),
    ],
)
def test_what_cannot_work(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """Wrong values, and columns without those that tell what is gone, are errors at once."""
    with pytest.raises(R7MailConfigError, match=message):
        extract("http://127.0.0.1:9", tmp_path, **options)


# -- private data ---------------------------------------------------------------------------

HASHED = {"addresses": "hash", "file_names": "hash", "subject": "drop"}


def test_kept_rows_are_hashed_once(
    server: Emulator, tmp_path: Path, options: dict[str, Any], rows: Reader
) -> None:
    """Under the same policy, kept rows stay as they were written."""
    ids = deliver(server, 2)
    policy = Privacy.build(HASHED, "secret")
    extract(server.url, tmp_path, privacy=policy, **options)
    before = {name: rows(name) for name in TABLES}
    server.mailbox.delete(INBOX, ids[:1])
    extract(server.url, tmp_path, privacy=policy, **options)

    same = {"gone_at": None, "run_id": None, "extracted_at": None}
    for name in TABLES:
        assert None not in {row["gone_at"] for row in rows(name) if row["message_id"] == ids[0]}
        assert [row | same for row in rows(name)] == [row | same for row in before[name]]


@pytest.mark.parametrize(
    ("first", "second", "address"),
    [
        ({}, HASHED, "hashed"),
        ({"addresses": "hash"}, {"addresses": "drop"}, None),
        ({"addresses": "drop"}, {}, None),
    ],
)
def test_another_policy(
    server: Emulator,
    tmp_path: Path,
    options: dict[str, Any],
    rows: Reader,
    first: dict[str, str],
    second: dict[str, str],
    address: str | None,
) -> None:
    """A new policy also covers kept rows, as far as what is there allows."""
    ids = deliver(server, 2, sender="ann@example.org", attachments=[("ann.txt", b"x", "x/y")])
    extract(
        server.url,
        tmp_path,
        privacy=Privacy.build(first, "secret"),
        attachments=UPath(tmp_path / "files"),
        **options,
    )
    server.mailbox.delete(INBOX, ids[:1])
    policy = Privacy.build(second, "secret")
    extract(server.url, tmp_path, privacy=policy, **options)

    [row] = [row for row in rows("messages") if row["message_id"] == ids[0]]
    assert row["from_address"] == (policy.address("ann@example.org") if address else None)
    for name in TABLES if second else ():
        assert "ann@" not in str([row for row in rows(name) if row["message_id"] == ids[0]])


def test_another_key(server: Emulator, tmp_path: Path, rows: Reader, kind: str) -> None:
    """Hashes of another key are left out: they would match nothing."""
    if kind == "iceberg":
        pytest.skip("the policy is the same for both")
    ids = deliver(server, 2)
    for secret in ("one", "two"):
        extract(server.url, tmp_path, privacy=Privacy.build({"addresses": "hash"}, secret))
        server.mailbox.delete(INBOX, ids[:1])

    assert [row["from_address"] is None for row in rows("messages")] == [True, False]


# -- runs that are killed, and runs at once -------------------------------------------------


def extract_until(url: str, root: Path, event: str, number: int) -> None:
    """Extract, and die at an audit event of Python."""
    die_at(root, event, number)
    extract(url, root, privacy=Privacy.build({"addresses": "hash"}, "secret"))


@pytest.mark.slow
@pytest.mark.parametrize(("event", "count"), [("os.remove", 8), ("os.rename", 9)])
def test_killed_while_publishing(
    server: Emulator, tmp_path: Path, event: str, count: int, rows: Reader, kind: str
) -> None:
    """Killed at any step of publishing, mail that has left is still there after the next run."""
    if kind == "iceberg":
        pytest.skip("a commit is atomic; the manifest is the same")
    policy = Privacy.build({"addresses": "hash"}, "secret")
    ids = deliver(server, 3)
    extract(server.url, tmp_path, privacy=policy)
    before = {name: rows(name) for name in TABLES}
    server.mailbox.delete(INBOX, ids[:1])
    ended = 0
    for number in range(1, count + 1):
        ended += run_children(extract_until, (server.url, tmp_path, event, number)) == [-9]
    assert ended >= count - 2
    extract(server.url, tmp_path, privacy=policy)

    same = {"gone_at": None, "extracted_at": None}
    for name in TABLES:
        assert {row["message_id"] for row in rows(name) if row["gone_at"]} == {ids[0]}
        assert [row | same for row in rows(name)] == [row | same for row in before[name]]
    manifest = published(files(tmp_path), f"file://{tmp_path}")
    assert manifest is not None
    assert not [name for name in files(tmp_path) if "_replaced" in name or "_staged" in name]


# -- queries --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_view_prefers_the_folder_that_has_it(server: Emulator, tmp_path: Path) -> None:
    """Mail that was moved is shown where it is; mail that is gone everywhere, as it was last."""
    moved, deleted, stays = deliver(server, 3)
    extract(server.url, tmp_path)
    server.mailbox.move(INBOX, [moved], 26)
    server.mailbox.delete(INBOX, [deleted])
    extract(server.url, tmp_path, folder=26)
    extract(server.url, tmp_path)

    connection = duckdb.connect()
    connection.execute(
        "CREATE VIEW messages AS SELECT * FROM "
        f"read_parquet('{tmp_path}/messages/**/*.parquet', hive_partitioning = true)"
    )
    connection.execute((DOCS / "sql/latest_messages.sql").read_text())
    found = connection.execute(
        "SELECT message_id, folder::int, gone_at IS NULL FROM latest_messages ORDER BY 1"
    ).fetchall()
    assert found == [(moved, 26, True), (deleted, INBOX, False), (stays, INBOX, True)]
