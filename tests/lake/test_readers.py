"""Readers at work while windows are compacted and taken apart: each message once, at any moment."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pytest
from upath import UPath

from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.lake.compaction import CompactJob, compact_folders
from airflow_provider_r7mail.lake.layout import window_name
from airflow_provider_r7mail.lake.reading import read_table
from airflow_provider_r7mail.lake.schema import TABLES
from airflow_provider_r7mail.lake.splitting import make_room
from tests.benchmarks.windows import FOLDER, HOUR, MAILBOX, START, make_year
from tests.lake.compacting import FAR
from tests.lake.support import CHILDREN, DOCS, Bucket

pytestmark = pytest.mark.slow
HOURS = 48
VIEW = (DOCS / "sql/duckdb.sql").read_text().partition("SET VARIABLE recipients")[0]
# What DuckDB says of windows that changed, and of a file that is gone.
AGAIN = re.compile(r"Windows changed|[Nn]o such file|No files found|Could not (read|open)")


def change(root: str, options: dict[str, Any], times: int) -> None:
    """Compact the windows into days, and take one of each apart again, some times."""
    output = UPath(root, **options)
    for _ in range(times):
        list(compact_folders(CompactJob(output, FAR, "day", rest=0), [(MAILBOX, FOLDER)]))
        for number in (5, HOURS - 5):
            window = Window(START + number * HOUR, START + (number + 1) * HOUR)
            make_room(output, TABLES, window_name(MAILBOX, FOLDER, window.label()), replace=False)
    list(compact_folders(CompactJob(output, FAR, rest=0), [(MAILBOX, FOLDER)]))


def ids(found: Any) -> list[int]:
    """Return the ids of rows, in order."""
    return sorted(found["message_id"].to_pylist())


def with_duckdb(root: Path) -> Callable[[], list[int] | None]:
    """Return a reader that runs docs/sql/duckdb.sql: None if that says to run it again."""

    def read() -> list[int] | None:
        try:
            with duckdb.connect() as connection:
                connection.execute(VIEW.replace("/data/mail", str(root)))
                found = connection.execute("SELECT message_id FROM messages ORDER BY 1").fetchall()
        except duckdb.Error as error:
            if not AGAIN.search(str(error)):
                raise
            return None
        return [number for (number,) in found]

    return read


def watch(
    readers: dict[str, Callable[[], list[int] | None]], target: Callable[..., None], *args: Any
) -> dict[str, list[list[int] | None]]:
    """Let each reader read in a thread of its own until a process has ended; what they saw."""
    seen: dict[str, list[list[int] | None]] = {name: [] for name in readers}
    failures: list[BaseException] = []
    done = threading.Event()

    def keep_reading(name: str) -> None:
        try:
            while not done.is_set():
                seen[name].append(readers[name]())
            seen[name].append(readers[name]())
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=keep_reading, args=(name,)) for name in readers]
    child = CHILDREN.Process(target=target, args=args)
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.2)
        child.start()
        child.join()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert child.exitcode == 0
    return seen


def test_readers_of_a_disk(tmp_path: Path) -> None:
    """On a disk, `read_table` and DuckDB's view never see a message twice, nor miss one."""
    make_year(tmp_path, HOURS)
    root = UPath(tmp_path)
    readers: dict[str, Callable[[], list[int] | None]] = {
        table: lambda table=table: ids(read_table(root / table, ["message_id"]))  # type: ignore[misc]
        for table in TABLES
    }
    readers["duckdb"] = with_duckdb(tmp_path)
    before = {name: read() for name, read in readers.items()}

    seen = watch(readers, change, str(tmp_path), {}, 3)

    for name, found in seen.items():
        assert [rows for rows in found if rows is not None and rows != before[name]] == []
        assert len(found) > 2
        assert found[-1] == before[name]
    assert len(list(tmp_path.glob("messages/*/*/*"))) == 1


def test_readers_of_s3(tmp_path: Path, s3_url: str) -> None:
    """The same on S3."""
    httpx.post(f"{s3_url}/moto-api/reset")
    Bucket(s3_url, "mail")
    options: dict[str, Any] = {
        "key": "testing",
        "secret": "testing",
        "client_kwargs": {"endpoint_url": s3_url, "region_name": "us-east-1"},
    }
    root = UPath("s3://mail/lake", **options)
    make_year(tmp_path, HOURS)
    root.fs.put(f"{tmp_path}/", "mail/lake/", recursive=True)

    def read() -> list[int]:
        return ids(read_table(root / "messages", ["message_id"]))

    before = read()

    seen = watch({"messages": read}, change, "s3://mail/lake", options, 1)["messages"]

    assert [rows for rows in seen if rows != before] == []
    assert len(seen) > 2
