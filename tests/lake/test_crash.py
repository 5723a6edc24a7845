"""After kill -9 at any moment there is a complete result or none, and a rerun cleans up."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.compat import ObjectStoragePath
from airflow_provider_r7mail.emulator import Emulator, Readings
from airflow_provider_r7mail.lake.job import ExtractJob
from airflow_provider_r7mail.lake.window import extract_window
from tests.lake.support import (
    CHILDREN,
    DAY,
    INBOX,
    START,
    WINDOW,
    config,
    die_at,
    files,
    published,
    run_children,
    table,
)

pytestmark = pytest.mark.slow


def extract(url: str, root: Path) -> dict[str, Any]:
    """Extract a day with its attachments."""
    job = ExtractJob(
        folder=INBOX,
        criteria=MessageFilter.build(start=START, end=START + DAY),
        output=ObjectStoragePath(f"file://{root}"),
        attachments=ObjectStoragePath(f"file://{root}/files"),
        page_size=10,
    )

    async def run() -> dict[str, Any]:
        async with AsyncClient(config(url)) as client:
            return await extract_window(client, job)

    return asyncio.run(run())


def extract_until(url: str, root: Path, event: str, number: int) -> None:
    """Extract, and die at an audit event of Python."""
    die_at(root, event, number)
    extract(url, root)


def whole(root: Path) -> str | None:
    """Return the run whose result is there, never a mixture; None if the window is incomplete."""
    manifest = published(files(root), f"file://{root}")
    return None if manifest is None else str(manifest["run_id"])


def check_rerun(server: Emulator, root: Path) -> None:
    """Check that a rerun gives a complete result and removes all leftovers."""
    manifest = extract(server.url, root)

    assert whole(root) == manifest["run_id"]
    wanted = [message["Id"] for message in server.mailbox.messages(INBOX)]
    assert sorted(row["message_id"] for row in table(root)) == sorted(wanted)
    found = files(root)
    assert not [name for name in found if Path(name).name.startswith("_staged")]
    stored = [data for name, data in found.items() if name.startswith("files/")]
    assert set(stored) == {b"x" * 300_000}
    assert len(stored) == 10
    assert len(found) == 6 + len(stored)


@pytest.fixture
def full(server: Emulator, tmp_path: Path) -> Emulator:
    """An emulator with a day's mail, extracted once, and more mail since."""

    def deliver(count: int) -> None:
        step = DAY / count
        for n in range(count):
            attached = [("a.bin", b"x" * 300_000, "x/y")] if n % 10 == 0 else []
            server.mailbox.deliver(date=START + step * n, attachments=attached)

    deliver(50)
    extract(server.url, tmp_path)
    deliver(50)
    return server


def kill(server: Emulator, root: Path, when: Callable[[], bool]) -> None:
    """Extract in a process that is killed at a moment, unless it has ended."""
    child = CHILDREN.Process(target=extract, args=(server.url, root))
    child.start()
    while not when() and child.is_alive():
        time.sleep(0.0002)  # the emulator runs in this process and needs CPU time
    child.kill()
    child.join()


def test_killed_at_random_moments(full: Emulator, tmp_path: Path) -> None:
    """After thirty kills while reading, the earlier result is there, and a rerun completes."""
    full.readings = Readings(latency_seconds=0.003)
    full.requests.clear()
    kill(full, tmp_path, lambda: False)
    taken = time.time() - full.requests[0]["time"]
    earlier = whole(tmp_path)
    assert earlier is not None
    moments = random.Random(3)
    stayed = 0
    for _ in range(30):
        full.requests.clear()
        length = moments.uniform(0.0, taken)

        def passed(length: float = length) -> bool:
            # Counted from the child's first request: before that it only starts.
            return bool(full.requests) and time.time() > full.requests[0]["time"] + length

        kill(full, tmp_path, passed)
        found = whole(tmp_path)
        stayed += found == earlier
        earlier = found or earlier
    assert stayed > 3

    check_rerun(full, tmp_path)


# The steps of publishing: it removes three manifests, renames three tables, removes three
# quarantine files if there are any, and renames three manifests. Attachments were renamed before.
REMOVES, RENAMES = range(1, 7), range(5, 12)


@pytest.mark.parametrize(
    ("event", "number"),
    [("os.remove", number) for number in REMOVES] + [("os.rename", number) for number in RENAMES],
)
def test_killed_while_publishing(full: Emulator, tmp_path: Path, event: str, number: int) -> None:
    """Killed before any step of publishing, there is no manifest, or one that all files match."""
    earlier = whole(tmp_path)

    assert run_children(extract_until, (full.url, tmp_path, event, number)) == [-9]
    # Until the first manifest is removed nothing changes; then there is none until the very end.
    untouched = (event, number) in {("os.remove", 1), ("os.rename", RENAMES[0])}
    assert whole(tmp_path) == (earlier if untouched else None)
    check_rerun(full, tmp_path)


def test_killed_as_soon_as_publishing_begins(full: Emulator, tmp_path: Path) -> None:
    """Killed when the old manifest is removed, or shortly after, it leaves no mixture."""
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
