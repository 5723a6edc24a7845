"""kill -9 at any moment: the last complete result or the new one, and a rerun that cleans up."""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import asyncio
import hashlib
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_r7mail.client.http import ClientConfig
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.emulator import Emulator, Readings
from airflow_provider_r7mail.lake.job import ExtractJob
from airflow_provider_r7mail.lake.window import extract_window

pytestmark = pytest.mark.slow
START = datetime(2025, 6, 1, tzinfo=UTC)
WINDOW = "mailbox=user_test/folder=24/window=20250601T000000Z_20250602T000000Z"
TABLES = ("messages", "recipients", "attachments")
# Not `fork`: Python warns of it where there are threads, as the mail server's. The modules are
# those that children need: imported once, in the process that they are forked from.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(
    [
        "airflow.providers.common.compat.sdk",
        "airflow.sdk.io.path",
        "airflow_provider_r7mail.emulator.app",
        "airflow_provider_r7mail.lake.window",
        "boto3",
        "hypothesis",
        "httpx_aiohttp",
        "moto.server",
        "pyarrow.parquet",
        "pytest",
    ]
)


def extract(url: str, root: Path) -> dict[str, Any]:
    """Extract a day with its attachments."""
    job = ExtractJob(
        folder=24,
        criteria=MessageFilter.build(start=START, end=START + timedelta(days=1)),
        output=ObjectStoragePath(f"file://{root}"),
        attachments=ObjectStoragePath(f"file://{root}/files"),
        page_size=10,
    )

    async def run() -> dict[str, Any]:
        config = ClientConfig(url=url, login="user_test", password="TestPassword")
        async with AsyncClient(config) as client:
            return await extract_window(client, job)

    return asyncio.run(run())


def extract_until(url: str, root: Path, event: str, number: int) -> None:
    """Extract, and die at a call of Python's that begins with the event's name."""
    count = 0

    def watch(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if name == event and str(root) in str(arguments):
            count += 1
            if count == number:
                os.kill(os.getpid(), 9)

    import sys  # noqa: PLC0415 - the hook stays in this process

    sys.addaudithook(watch)
    extract(url, root)


def whole(root: Path) -> str | None:
    """The run whose result is there; None if the window is unfinished. It is never a mixture."""
    note = root / "messages" / WINDOW / "_manifest.json"
    if not note.exists():
        return None
    manifest = json.loads(note.read_text())
    for file in manifest["files"]:
        data = Path(ObjectStoragePath(file["path"]).path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file["sha256"]
        metadata = pq.read_metadata(ObjectStoragePath(file["path"]).path)
        assert metadata.num_rows == file["rows"]
        assert metadata.metadata[b"r7mail.run_id"].decode() == manifest["run_id"]
    return str(manifest["run_id"])


def check_rerun(server: Emulator, root: Path) -> None:
    """A rerun gives a whole result of all mail, and removes all leftovers."""
    manifest = extract(server.url, root)

    assert whole(root) == manifest["run_id"]
    rows = pq.read_table(root / "messages" / WINDOW / "part-00000.parquet", columns=["message_id"])
    wanted = [message["Id"] for message in server.mailbox.messages(24)]
    assert sorted(rows["message_id"].to_pylist()) == sorted(wanted)
    files = [path for path in root.rglob("*") if path.is_file()]
    assert not [path for path in files if path.name.startswith("_staged")]
    stored = [path for path in files if (root / "files") in path.parents]
    assert {path.read_bytes() for path in stored} == {b"x" * 300_000}
    assert len(stored) == 10
    assert len(files) == 6 + len(stored)


@pytest.fixture
def full(server: Emulator, tmp_path: Path) -> Emulator:
    """A server with a day's mail, extracted once, to which more has come."""

    def deliver(count: int) -> None:
        step = timedelta(days=1) / count
        for n in range(count):
            files = [("a.bin", b"x" * 300_000, "x/y")] if n % 10 == 0 else []
            server.mailbox.deliver(date=START + step * n, attachments=files)

    deliver(50)
    extract(server.url, tmp_path)
    deliver(50)
    return server


def kill(server: Emulator, root: Path, when: Callable[[], bool]) -> None:
    """Run the window in a process that is killed at the moment told; it must not have ended."""
    child = CHILDREN.Process(target=extract, args=(server.url, root))
    child.start()
    while not when() and child.is_alive():
        time.sleep(0.0002)  # the server is in this process, and needs its turns
    child.kill()
    child.join()


def test_killed_at_random_moments(full: Emulator, tmp_path: Path) -> None:
    """Thirty kills while pages and files come: the earlier result stays, then a rerun is whole."""
    full.readings = Readings(latency_seconds=0.003)
    earlier = whole(tmp_path)
    assert earlier is not None
    moments = random.Random(3)
    stayed = 0
    for _ in range(30):
        full.requests.clear()
        length = moments.uniform(0.0, 0.3)

        def passed(length: float = length) -> bool:
            # From the child's first request on: before, it only starts.
            return bool(full.requests) and time.time() > full.requests[0]["time"] + length

        kill(full, tmp_path, passed)
        found = whole(tmp_path)
        stayed += found == earlier
        earlier = found or earlier
    assert stayed > 3

    check_rerun(full, tmp_path)


# What publishing does, in its order: removes three manifests and, were they there, three quarantine
# files, and renames three tables and three manifests; renames of attachments come before.
REMOVES, RENAMES = range(1, 7), range(5, 12)


@pytest.mark.parametrize(
    ("event", "number"),
    [("os.remove", number) for number in REMOVES] + [("os.rename", number) for number in RENAMES],
)
def test_killed_while_publishing(full: Emulator, tmp_path: Path, event: str, number: int) -> None:
    """Killed before each single step of publishing: no manifest, or one that all files match."""
    earlier = whole(tmp_path)
    child = CHILDREN.Process(target=extract_until, args=(full.url, tmp_path, event, number))
    child.start()
    child.join()

    assert child.exitcode == -9
    # Before the first manifest goes all is as it was; then there is none up to the very end.
    untouched = (event, number) in {("os.remove", 1), ("os.rename", RENAMES[0])}
    assert whole(tmp_path) == (earlier if untouched else None)
    check_rerun(full, tmp_path)


def test_killed_as_soon_as_publishing_begins(full: Emulator, tmp_path: Path) -> None:
    """Kills timed to the moment when the old manifest goes, or a little later."""
    note = tmp_path / "messages" / WINDOW / "_manifest.json"
    for turn in range(10):
        old = extract(full.url, tmp_path)["run_id"]

        def begun(old: str = old, turn: int = turn) -> bool:
            try:
                there = old in note.read_text()
            except FileNotFoundError:
                there = False
            if not there:
                time.sleep(turn * 0.0001)
            return not there

        kill(full, tmp_path, begun)
        assert whole(tmp_path) != old

    check_rerun(full, tmp_path)
