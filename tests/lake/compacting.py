"""What the tests of compaction share: hours of mail, extracted, compacted, and read by the rule."""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.emulator import Emulator
from airflow_provider_r7mail.lake.audit import AuditJob, Report, audit
from airflow_provider_r7mail.lake.compaction import CompactJob, Outcome, compact_folders
from airflow_provider_r7mail.lake.job import ExtractJob
from airflow_provider_r7mail.lake.neighbours import Into
from airflow_provider_r7mail.lake.reading import complete_windows
from airflow_provider_r7mail.lake.schema import TABLES
from airflow_provider_r7mail.lake.window import extract_window
from tests.lake.support import INBOX, START, config

HOUR = timedelta(hours=1)
FAR = datetime(2030, 1, 1, tzinfo=UTC)
Rows = dict[str, list[dict[str, Any]]]


def connected(url: str, work: Callable[[AsyncClient], Any]) -> Any:
    """Work with a client."""

    async def run() -> Any:
        async with AsyncClient(config(url)) as client:
            return await work(client)

    return asyncio.run(run())


def job_of(root: Any, number: int, length: timedelta = HOUR, **options: Any) -> ExtractJob:
    """Return the job of an hour."""
    start = START + HOUR * number
    criteria = MessageFilter.build(start=start, end=start + length)
    return ExtractJob(**{"folder": INBOX, "criteria": criteria, "output": root, **options})


def extract(url: str, root: Any, *numbers: int, **options: Any) -> None:
    """Extract hours."""

    async def work(client: AsyncClient) -> None:
        for number in numbers:
            await extract_window(client, job_of(root, number, **options))

    connected(url, work)


def compacted(root: Any, into: Into = "month", before: datetime = FAR) -> Outcome:
    """Compact the inbox."""
    job = CompactJob(root, before, into, rest=0)
    [outcome] = compact_folders(job, [("user_test", INBOX)])
    return outcome


def deliver(server: Emulator, hours: int) -> None:
    """Deliver two messages an hour, the later one first, with recipients and files."""
    for n in range(hours):
        for minute in (40, 10):
            server.mailbox.deliver(
                date=START + HOUR * n + timedelta(minutes=minute),
                to=["a@b.ru", "c@d.ru"],
                cc=["e@f.ru"],
                attachments=[("a.txt", b"text", "text/plain")] if minute == 10 else [],
            )


def names(root: Any, table: str = "messages") -> list[str]:
    """Return the labels of the windows that a reader of a table takes."""
    return [path.rpartition("=")[2] for path in complete_windows(listing(root, table))]


def listing(root: Any, table: str) -> dict[str, int]:
    """Return the files of a table, with their sizes."""
    home = root / table
    home.fs.invalidate_cache()
    found = home.fs.find(home.path, detail=True)
    return {path: entry["size"] for path, entry in found.items()}


def rows(root: Any) -> Rows:
    """Return all rows of each table, as the rule says to read them."""
    found: Rows = {}
    for table in TABLES:
        parts = []
        for path in complete_windows(listing(root, table)):
            data = root.fs.cat_file(f"{path}/part-00000.parquet")
            parts.append(pq.read_table(pa.BufferReader(data)))
        all_rows = pa.concat_tables(parts).to_pylist() if parts else []
        found[table] = sorted(all_rows, key=repr)
    return found


def without(found: Rows, hour: int) -> Rows:
    """Return the rows that are of no message of an hour."""
    start = START + HOUR * hour
    ids = {
        row["message_id"]
        for row in found["messages"]
        if row["date"] is not None and start <= row["date"] < start + HOUR
    }
    return {
        table: [row for row in given if row["message_id"] not in ids]
        for table, given in found.items()
    }


def check(url: str, root: Any, *, deep: bool = True) -> Report:
    """Audit the inbox."""
    job = AuditJob(
        folder=INBOX, output=root, mailbox="user_test", deep=deep, open_path=lambda _: root
    )
    report: Report = connected(url, lambda client: audit(client, job))
    return report
