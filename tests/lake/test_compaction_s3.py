"""Compactions on S3 that are killed, or meet a store that fails: nothing lost, nothing twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from upath import UPath

from airflow_provider_r7mail.emulator import Emulator
from airflow_provider_r7mail.exceptions import R7MailPublishError
from airflow_provider_r7mail.lake import locks
from tests.lake.compacting import Rows, check, compacted, deliver, extract, names, rows, without
from tests.lake.support import CHILDREN, Bucket, Gate, files, s3_server_behind

pytestmark = pytest.mark.slow

HOURS = 4
ALL = "20250601T000000Z_20250601T040000Z"
LAKE = "s3://mail/lake"
BUSY = "503 Slow Down", b"<Error><Code>SlowDown</Code><Message>Later.</Message></Error>"
REFUSED = (
    "200 OK",
    b"<DeleteResult><Error><Key>k</Key><Code>AccessDenied</Code></Error></DeleteResult>",
)
LOCK_SECONDS = 0.3  # or the wait for those that were killed would be long


def compact_there(options: dict[str, Any]) -> None:
    """Compact, in a process of its own."""
    locks.LOCK_SECONDS = LOCK_SECONDS
    compacted(UPath(LAKE, **options))


def extract_there(options: dict[str, Any], url: str) -> None:
    """Extract an hour again, in a process of its own."""
    extract(url, UPath(LAKE, **options), 1)


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    """An S3 server."""
    gate = Gate()
    with s3_server_behind(gate):
        yield gate


@dataclass
class Lake:
    """Some hours of mail on S3.

    :param root: where the tables are
    :param rows: what a reader must find, at any time
    """

    server: Emulator
    gate: Gate
    root: UPath
    bucket: Bucket
    rows: Rows

    def check(self) -> None:
        """Check that the rows are there for readers and for an audit, and compact."""
        assert rows(self.root) == self.rows
        assert check(self.server.url, self.root).in_order
        compacted(self.root)
        compacted(self.root)
        assert rows(self.root) == self.rows
        assert names(self.root) == [ALL]
        assert len([name for name in self.bucket.names() if "/_locks/" not in name]) == 9


@pytest.fixture
def lake(
    server: Emulator, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lake]:
    """Hours of mail, extracted."""
    monkeypatch.setattr(locks, "LOCK_SECONDS", LOCK_SECONDS)
    deliver(server, HOURS)
    extract(server.url, UPath(tmp_path / "lake"), *range(HOURS))
    httpx.post(f"{gate.url}/moto-api/reset")
    bucket = Bucket(gate.url, "mail")
    bucket.put({f"lake/{name}": data for name, data in files(tmp_path / "lake").items()})
    root = UPath(LAKE, **gate.options)
    yield Lake(server, gate, root, bucket, rows(root))
    gate.at_write(0, lambda: None)


def killed_at(
    gate: Gate, number: int, work: Callable[..., None], *arguments: Any, others: int = 0
) -> list[int | None]:
    """Run a work in a process that is killed before the nth write; the exit codes.

    :param others: how many processes do the same at the same time
    """
    children = [
        CHILDREN.Process(target=work, args=(gate.options, *arguments)) for _ in range(1 + others)
    ]

    def kill() -> tuple[str, bytes]:
        assert children[0].pid is not None
        os.kill(children[0].pid, signal.SIGKILL)
        return BUSY

    gate.at_write(number, kill)
    for child in children:
        child.start()
    for child in children:
        child.join()
    return [child.exitcode for child in children]


# The writes: 1 a lock, 2 to 4 the marks, 5 to 7 the rows, 8 to 10 the manifests, 11 and 12 locks,
# 13 to 15 the sources' manifests are removed, 16 their files, 17 to 19 their marks.
@pytest.mark.parametrize("number", [3, 10, 12, 14])
def test_killed_while_compacting(lake: Lake, number: int) -> None:
    """Killed at any moment, no row is lost or there twice, and the next compaction goes on."""
    assert killed_at(lake.gate, number, compact_there) == [-9]

    lake.check()


# The writes: 1 and 2 locks, 3 to 23 the pieces, 24 to 26 the manifests of the compacted window are
# removed, 27 its files, 28 to 30 its marks; then the hour is published.
@pytest.mark.parametrize("number", [14, 24, 28, 36])
def test_a_run_is_killed_in_a_compacted_month(lake: Lake, number: int) -> None:
    """Killed at any moment, a run costs at most its own hour, and its next try completes it."""
    compacted(lake.root)
    before = without(lake.rows, 1)

    assert killed_at(lake.gate, number, extract_there, lake.server.url) == [-9]

    after = rows(lake.root)
    ids = [row["message_id"] for row in after["messages"]]
    assert len(ids) == len(set(ids))
    assert without(after, 1) == before
    extract(lake.server.url, lake.root, 1)
    lake.rows = rows(lake.root)
    assert without(lake.rows, 1) == before
    assert len(lake.rows["messages"]) == 2 * HOURS
    lake.check()


def test_one_of_two_compactions_is_killed(lake: Lake) -> None:
    """Two at once do what one does, even if one of them is killed."""
    assert killed_at(lake.gate, 9, compact_there, others=1)[0] == -9

    lake.check()


@pytest.mark.parametrize("number", [3, 10, 13])
def test_a_store_that_fails(lake: Lake, number: int) -> None:
    """A store that stops writing costs nothing; the error says where, and that it goes on."""
    lake.gate.at_write(number, lambda: BUSY, once=False)

    with pytest.raises(R7MailPublishError) as failure:
        compacted(lake.root)

    lake.gate.at_write(0, lambda: None)
    text = str(failure.value)
    assert text.startswith("s3://mail/lake/mailbox=user_test/folder=24: compaction stopped (")
    assert "Later." in text
    assert "Nothing is lost. Once the storage answers and has space, compact again." in text
    lake.check()


def test_a_store_that_refuses_to_remove(lake: Lake) -> None:
    """Windows that S3 keeps in spite of a successful response aren't taken for removed."""
    lake.gate.at_write(13, lambda: REFUSED)

    with pytest.raises(R7MailPublishError, match=r"DeleteObjects: AccessDenied for k\)"):
        compacted(lake.root)

    lake.check()


def test_a_lock_that_was_lost(lake: Lake) -> None:
    """A compaction that stood still so long that its lock was taken over makes no window."""
    seen: list[str] = []

    def look() -> None:
        seen.extend(name for name in lake.bucket.names() if f"{ALL}/_manifest.json" in name)

    def take_over() -> None:
        lake.bucket.put({"lake/_locks/mailbox=user_test/folder=24/compaction": b"another"})
        lake.gate.at_write(3, look)

    lake.gate.at_write(7, take_over)
    compacted(lake.root)

    assert seen == []
    lake.check()
