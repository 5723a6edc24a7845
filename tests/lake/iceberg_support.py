"""What the tests of Iceberg tables share: windows in them, and a catalog with others in it."""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table
from sqlalchemy import event
from sqlalchemy.engine import Engine
from upath import UPath

from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.emulator import Emulator
from airflow_provider_r7mail.lake.catalog import IcebergTarget
from airflow_provider_r7mail.lake.job import ExtractJob, Progress
from airflow_provider_r7mail.lake.schema import TABLES
from airflow_provider_r7mail.lake.window import extract_window
from tests.lake.support import DAY, START, config


def extract(
    url: str,
    root: Path,
    start: datetime = START,
    length: timedelta = DAY,
    on_progress: Callable[[Progress], None] = lambda _: None,
    **options: Any,
) -> dict[str, Any]:
    """Extract a day of the inbox."""
    job = ExtractJob(
        **{
            "folder": 24,
            "criteria": MessageFilter.build(start=start, end=start + length),
            "output": UPath(root),  # Airflow's takes a child seconds to import
            "iceberg": IcebergTarget(),
            "page_size": 50,
            **options,
        }
    )

    async def run() -> dict[str, Any]:
        async with AsyncClient(config(url, max_retries=0)) as client:
            return await extract_window(client, job, on_progress)

    return asyncio.run(run())


def deliver(server: Emulator, count: int, start: datetime = START, **fields: Any) -> list[int]:
    """Deliver messages of a day to the inbox, each with two recipients and a file."""
    given = {"to": ["a@b.ru", "c@d.ru"], "attachments": [("a.bin", b"x", "x/y")], **fields}
    return [
        server.mailbox.deliver(date=start + DAY / count * n, subject=f"№ {n}", **given)
        for n in range(count)
    ]


def rows(catalog: Catalog, table: str = "messages") -> list[dict[str, Any]]:
    """A table's rows as pyiceberg reads them."""
    found: list[dict[str, Any]] = (
        catalog.load_table(f"r7mail.{table}").scan().to_arrow().to_pylist()
    )
    return found


def ids(catalog: Catalog) -> list[int]:
    """The ids in the messages table."""
    return sorted(row["message_id"] for row in rows(catalog))


def paths(table: Table) -> set[str]:
    """A table's data files."""
    return {task.file.file_path for task in table.scan().plan_files()}


def on_disk(root: Path) -> set[str]:
    """All data files on disk, whether a table has them or not."""
    return {str(path) for path in root.rglob("*.parquet")}


def joined(catalog: Catalog) -> list[tuple[Any, ...]]:
    """What DuckDB sees in all three tables joined: counts by window and run."""
    database = duckdb.connect()
    for name in TABLES:
        catalog.load_table(f"r7mail.{name}").scan().to_duckdb(name, database)
    return database.sql("""
        select m."window", m.run_id, count(distinct m.message_id),
               count(r.address), count(distinct a.message_id)
        from messages m
        left join recipients r using (run_id, message_id)
        left join attachments a using (run_id, message_id)
        group by all order by all
    """).fetchall()


def shared(root: Path) -> IcebergTarget:
    """A catalog shared by machines, each with its own output path."""
    return IcebergTarget(
        {"type": "sql", "uri": f"sqlite:///{root}/shared.db?timeout=60", "warehouse": f"{root}/all"}
    )


def die_at_commit(number: int) -> None:
    """Let this process be killed at the nth moment before or after a COMMIT of the catalog."""
    count = 0
    committing = False

    def step() -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    @event.listens_for(Engine, "commit")
    def before(_: Any) -> None:
        nonlocal committing
        committing = True
        step()

    @event.listens_for(Engine, "checkin")
    def after(*_: Any) -> None:
        nonlocal committing
        if committing:
            step()
        committing = False


def interrupted(statement: str, number: int, work: Callable[[], Any]) -> Callable[[], None]:
    """Do something just before the catalog's nth such statement; call the result to remove it."""
    count = 0

    def before(_: Any, __: Any, text: str, *___: Any) -> None:
        nonlocal count
        count += text.startswith(statement)
        if count == number:
            count += 1
            with ThreadPoolExecutor(1) as pool:
                pool.submit(work).result()

    event.listen(Engine, "before_cursor_execute", before)
    return lambda: event.remove(Engine, "before_cursor_execute", before)
