"""An audit of Iceberg tables finds what differs, in the tables as on the server, and mends it."""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import AIRFLOW_2

if AIRFLOW_2:
    pytest.skip("the SQL catalog needs SQLAlchemy 2", allow_module_level=True)

from pyiceberg.catalog import Catalog
from upath import UPath

from airflow_provider_r7mail.emulator import Emulator
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.lake.audit import audit_tables
from airflow_provider_r7mail.lake.catalog import IcebergTarget
from airflow_provider_r7mail.lake.schema import TABLES
from airflow_provider_r7mail.lake.upkeep import Upkeep, keep_up
from tests.lake.iceberg_support import deliver, extract, ids, on_disk, rows
from tests.lake.support import DAY, INBOX, LABEL, START
from tests.lake.test_audit import check, found, job, mend

pytestmark = pytest.mark.slow
ICEBERG = {"iceberg": IcebergTarget()}
PART = DAY / 3
DAYS = 3


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    """The catalog below the output path."""
    with closing(IcebergTarget().load(UPath(tmp_path))) as opened:
        yield opened


@pytest.fixture
def filled(server: Emulator, tmp_path: Path) -> list[int]:
    """Windows of 8 hours with two messages each, of which the first days are compacted; the ids."""
    given: list[int] = []
    for part in range(DAYS * 3):
        given += deliver(server, 1, START + PART * part + timedelta(minutes=10))
        given += deliver(server, 1, START + PART * part + timedelta(hours=1))
        if part == 6:
            keep_up(IcebergTarget(), UPath(tmp_path), Upkeep())
        extract(server.url, tmp_path, START + PART * part, PART)
    return given


def inbox(server: Emulator) -> list[int]:
    """The ids in the inbox."""
    return sorted(int(message["Id"]) for message in server.mailbox.messages(INBOX))


@pytest.mark.parametrize("deep", [False, True])
def test_in_order(server: Emulator, tmp_path: Path, filled: list[int], deep: bool) -> None:
    """If the tables are the mailbox, nothing is found; deep, ids are compared."""
    report = check(server.url, tmp_path, deep=deep, **ICEBERG)

    assert report.findings == []
    assert report.compared == ("ids" if deep else "counts")
    assert report.record()["messages"] == len(filled)
    assert audit_tables(job(tmp_path, deep=deep, **ICEBERG)).in_order


def test_one_that_came_and_one_that_left(
    server: Emulator, tmp_path: Path, catalog: Catalog, filled: list[int]
) -> None:
    """Counts don't tell one that came from one that left; with --deep, ids do, and it is mended."""
    server.mailbox.delete(INBOX, [filled[0]])
    deliver(server, 1, START + timedelta(minutes=1))

    assert check(server.url, tmp_path, **ICEBERG).in_order
    assert found(check(server.url, tmp_path, deep=True, **ICEBERG)) == [("differs", 0)]
    assert mend(server.url, tmp_path, deep=True, **ICEBERG).in_order
    assert ids(catalog) == inbox(server)


@pytest.mark.parametrize("deep", [False, True])
def test_damage_is_found_and_mended(
    server: Emulator, tmp_path: Path, catalog: Catalog, filled: list[int], deep: bool
) -> None:
    """Rows that somebody deleted or added, manifests that are gone, and strays are mended."""
    recipients = catalog.load_table("r7mail.recipients")
    [lost] = {row["run_id"] for row in rows(catalog) if row["message_id"] == filled[14]}
    recipients.delete(f"run_id == '{lost}'")
    messages = catalog.load_table("r7mail.messages")
    again = str(tmp_path / "again.parquet")  # of a compacted day
    pq.write_table(messages.scan(f"message_id == {filled[2]}").to_arrow(), again)
    messages.add_files([again])
    [note] = tmp_path.glob("windows/*/*/window=20250602T0800*/_manifest.json")
    note.unlink()
    server.mailbox.deliver(date="1970-01-01T00:00:00Z")
    server.mailbox.deliver(date=START + timedelta(minutes=5))
    report = check(server.url, tmp_path, deep=deep, **ICEBERG)

    assert found(report)[1:] == [
        ("differs", 0),
        ("damaged", 8),
        ("unfinished", 32),
        ("damaged", 56),
    ]
    assert report.findings[0].kind == "strays before"
    assert report.findings[2].detail == "messages: 3 rows, not 2"
    assert report.findings[4].detail == "recipients: 0 rows, not 4"
    assert mend(server.url, tmp_path, deep=deep, **ICEBERG).in_order
    assert ids(catalog) == inbox(server)
    assert len(rows(catalog, "recipients")) == 2 * len(filled) + 2
    assert check(server.url, tmp_path, deep=True, **ICEBERG).in_order


def test_a_missing_file(server: Emulator, tmp_path: Path, catalog: Catalog) -> None:
    """A data file that is gone is found with --deep, and what was in it is extracted again."""
    deliver(server, 3)
    extract(server.url, tmp_path)
    for path in on_disk(tmp_path):
        Path(path).unlink()

    assert check(server.url, tmp_path, **ICEBERG).in_order
    report = check(server.url, tmp_path, deep=True, **ICEBERG)
    assert found(report) == [("damaged", 0)]
    assert report.findings[0].detail.startswith("messages: 0 rows, not 3")
    assert mend(server.url, tmp_path, deep=True, **ICEBERG).in_order
    assert ids(catalog) == inbox(server)


def test_a_damaged_file(server: Emulator, tmp_path: Path, catalog: Catalog) -> None:
    """A data file with other bytes, in whatever column, is found with --deep, and mended."""
    deliver(server, 3)
    extract(server.url, tmp_path)
    for path in on_disk(tmp_path):
        data = Path(path).read_bytes()
        Path(path).write_bytes(data[:4] + b"\xff" * 40 + data[44:])

    report = check(server.url, tmp_path, deep=True, **ICEBERG)
    assert found(report) == [("damaged", 0)]
    assert mend(server.url, tmp_path, deep=True, **ICEBERG).in_order
    assert ids(catalog) == inbox(server)


def test_metadata_that_is_lost(server: Emulator, tmp_path: Path, catalog: Catalog) -> None:
    """Without its metadata a table can't be read: the error says what to do, and that works."""
    deliver(server, 3)
    extract(server.url, tmp_path)
    for path in (tmp_path / "warehouse").glob("**/recipients/metadata/*.avro"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"r7mail\.recipients: .* drop the table"):
        check(server.url, tmp_path, **ICEBERG)

    catalog.drop_table("r7mail.recipients")
    assert mend(server.url, tmp_path, **ICEBERG).in_order
    assert len(rows(catalog, "recipients")) == 6


def test_a_note_that_somebody_copied(
    server: Emulator, tmp_path: Path, catalog: Catalog, filled: list[int]
) -> None:
    """The manifest of another window is removed by a repair: it stands for no rows."""
    [note] = tmp_path.glob("windows/*/*/window=20250602T0800*")
    shutil.copytree(note, note.with_name("window=20250602T040000Z_20250602T120000Z"))

    kinds = {f.kind for f in check(server.url, tmp_path, **ICEBERG).findings}
    assert kinds == {"damaged", "overlapping"}
    assert mend(server.url, tmp_path, **ICEBERG).in_order
    assert ids(catalog) == inbox(server)


def test_a_table_that_was_dropped(server: Emulator, tmp_path: Path, catalog: Catalog) -> None:
    """If one of the tables was dropped, its rows are missing, and are extracted again."""
    deliver(server, 3)
    extract(server.url, tmp_path)
    catalog.drop_table("r7mail.recipients")

    assert found(check(server.url, tmp_path, **ICEBERG)) == [("damaged", 0)]
    assert mend(server.url, tmp_path, **ICEBERG).in_order
    assert len(rows(catalog, "recipients")) == 6


def test_strays_that_overlap(server: Emulator, tmp_path: Path, catalog: Catalog) -> None:
    """A window of strays is removed once a regular window overlaps it, rows and manifest."""
    deliver(server, 2, START + DAY)
    extract(server.url, tmp_path, START + DAY)
    deliver(server, 1)
    assert mend(server.url, tmp_path, **ICEBERG).in_order
    assert {row["window"] for row in rows(catalog)} >= {LABEL}
    extract(server.url, tmp_path, START + DAY / 2, DAY / 2)
    extract(server.url, tmp_path, START, DAY / 2)
    assert len(ids(catalog)) == 4
    assert mend(server.url, tmp_path, deep=True, **ICEBERG).in_order

    assert ids(catalog) == inbox(server)
    assert not (tmp_path / f"windows/mailbox=user_test/folder={INBOX}/window={LABEL}").exists()
    assert {name: len(rows(catalog, name)) for name in TABLES} == {
        "messages": 3,
        "recipients": 6,
        "attachments": 3,
    }


def test_rows_of_a_window_without_any_note(
    server: Emulator, tmp_path: Path, catalog: Catalog
) -> None:
    """Rows of a window that has no folder any more are an unfinished window, and are mended."""
    deliver(server, 3)
    extract(server.url, tmp_path)
    extract(server.url, tmp_path, START + DAY)
    [note] = tmp_path.glob(f"windows/*/*/window={LABEL}/_manifest.json")
    note.unlink()
    note.parent.rmdir()

    assert found(check(server.url, tmp_path, **ICEBERG)) == [("unfinished", 0)]
    assert mend(server.url, tmp_path, **ICEBERG).in_order
    assert ids(catalog) == inbox(server)


def test_another_catalog(server: Emulator, tmp_path: Path) -> None:
    """With another namespace or catalog than that of the extracts nothing is mended."""
    deliver(server, 1)
    extract(server.url, tmp_path)
    other: Any = IcebergTarget(namespace="other")
    with pytest.raises(R7MailConfigError, match=r"r7mail\.messages: the manifests name it"):
        mend(server.url, tmp_path, iceberg=other)
    deliver(server, 1)
    with pytest.raises(R7MailConfigError, match="name their catalog"):
        mend(server.url, tmp_path)
