"""Compactions that are killed, that meet each other, runs and readers: nothing lost, none twice."""

from __future__ import annotations

import os
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from airflow_provider_r7mail.emulator import Emulator, Mailbox
from airflow_provider_r7mail.exceptions import R7MailPublishError
from airflow_provider_r7mail.lake.ledger import read_ledger
from airflow_provider_r7mail.lake.neighbours import Into
from airflow_provider_r7mail.lake.schema import TABLES
from airflow_provider_r7mail.lake.splitting import make_room
from tests.lake.compacting import (
    HOUR,
    Rows,
    check,
    compacted,
    deliver,
    extract,
    names,
    rows,
    without,
)
from tests.lake.support import CHILDREN, INBOX, START, files, run_children

pytestmark = pytest.mark.slow

HOURS = 4
ALL = "20250601T000000Z_20250601T040000Z"
WINDOW = f"mailbox=user_test/folder={INBOX}/window=20250601T010000Z_20250601T020000Z"


def die_at(root: Path, event: str, number: int) -> None:
    """Let this process die at one of Python's audit events about files of a folder."""
    count = 0

    def watch(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if name == event and str(root) in str(arguments):
            count += 1
            if count == number:
                os.kill(os.getpid(), 9)

    sys.addaudithook(watch)


def compact_until(root: Path, event: str, number: int) -> None:
    """Compact, and die."""
    die_at(root, event, number)
    compacted(UPath(root))


def split_until(root: Path, event: str, number: int) -> None:
    """Make room for an hour, and die."""
    die_at(root, event, number)
    make_room(UPath(root), TABLES, WINDOW, replace=False)


def compact_often(root: Path, into: Into, times: int) -> None:
    """Compact again and again."""
    for _ in range(times):
        compacted(UPath(root), into)


def extract_often(url: str, root: Path, seed: int, times: int) -> None:
    """Extract hours, in any order."""
    for number in random.Random(seed).choices(range(HOURS), k=times):
        extract(url, UPath(root), number, on_gone="keep")


@pytest.fixture
def filled(server: Emulator, tmp_path: Path) -> Emulator:
    """A mailbox with some hours of mail, extracted."""
    deliver(server, HOURS)
    extract(server.url, UPath(tmp_path / "lake"), *range(HOURS))
    return server


def moments(
    work: Callable[[Path, str, int], None], template: Path, place: Path, event: str, step: int
) -> int:
    """Kill a work on copies of a lake before each so-manieth event; how often it was killed.

    After each kill, the rows are the same for readers, and for an audit of the tables, and a
    compaction cleans up.
    """
    before = rows(UPath(template))
    for killed, number in enumerate(range(1, 1000, step)):
        root = place / f"{event}-{number}"
        shutil.copytree(template, root)
        [code] = run_children(work, (root, event, number))
        assert rows(UPath(root)) == before
        ledger = read_ledger(UPath(root), "user_test", INBOX, deep=True)
        assert [entry.problems for entry in ledger.entries] == [[]] * HOURS
        assert [entry.messages for entry in ledger.entries] == [2] * HOURS
        assert ledger.foreign == []
        compacted(UPath(root))
        compacted(UPath(root))
        assert rows(UPath(root)) == before
        assert names(UPath(root)) == [ALL]
        assert _count(root) == 9
        shutil.rmtree(root)
        if code == 0:
            return killed
        assert code == -9
    raise AssertionError


@pytest.mark.parametrize(("event", "step", "least"), [("os.rename", 1, 10), ("os.remove", 5, 10)])
def test_killed_while_compacting(
    filled: Emulator, tmp_path: Path, event: str, step: int, least: int
) -> None:
    """Killed at any moment, no row is lost or there twice, and the next compaction goes on."""
    assert moments(compact_until, tmp_path / "lake", tmp_path, event, step) >= least


@pytest.mark.parametrize(("event", "step", "least"), [("os.rename", 2, 8), ("os.remove", 3, 4)])
def test_killed_while_making_room(
    filled: Emulator, tmp_path: Path, event: str, step: int, least: int
) -> None:
    """Killed while it makes room for a run, the same: each row is there once."""
    compacted(UPath(tmp_path / "lake"))

    assert moments(split_until, tmp_path / "lake", tmp_path, event, step) >= least


def test_killed_while_making_room_in_one_of_others(filled: Emulator, tmp_path: Path) -> None:
    """The same, if a compacted window that it was made of is still there."""
    root = tmp_path / "lake"
    compacted(UPath(root), before=START + 3 * HOUR)
    shutil.copytree(root, tmp_path / "earlier")
    compacted(UPath(root))
    for home in (tmp_path / "earlier").glob("*/*/*/*T000000Z_20250601T030000Z"):
        shutil.copytree(home, root / home.relative_to(tmp_path / "earlier"))

    assert moments(split_until, root, tmp_path, "os.rename", 3) >= 8


def compact_on_a_full_disk(root: Path, limit: int) -> None:
    """Compact where no file can be larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(R7MailPublishError, match="Nothing is lost") as failure:
        compacted(UPath(root))
    assert f"file://{root}/mailbox=user_test/folder={INBOX}: compaction" in str(failure.value)


def test_a_full_disk(filled: Emulator, tmp_path: Path) -> None:
    """On a full disk nothing is lost and nothing left; the error says what to do."""
    root = tmp_path / "lake"
    before = files(root)
    largest = max(len(data) for data in before.values())

    assert run_children(compact_on_a_full_disk, (root, largest // 2), (root, 9000)) == [0, 0]

    assert files(root) == before
    compacted(UPath(root))
    assert names(UPath(root)) == [ALL]


def _count(root: Path) -> int:
    """Return how many files there are, without the locks of killed processes."""
    return sum(not name.startswith("_locks/") for name in files(root))


def test_a_rerun_after_a_kill(filled: Emulator, tmp_path: Path) -> None:
    """A run finds room among what a killed compaction left, at whatever moment that was."""
    template = tmp_path / "lake"
    before = rows(UPath(template))
    for event, number in (("os.rename", 1), ("os.rename", 5), ("os.rename", 8), ("os.remove", 9)):
        root = tmp_path / f"{event}-{number}"
        shutil.copytree(template, root)
        assert run_children(compact_until, (root, event, number)) == [-9]

        extract(filled.url, UPath(root), 1)

        after = rows(UPath(root))
        assert without(after, 1) == without(before, 1)
        assert len(after["messages"]) == len(before["messages"])
        assert check(filled.url, UPath(root)).findings == []
        compacted(UPath(root))
        assert rows(UPath(root)) == after
        assert _count(root) == 9


def test_compactions_at_once(filled: Emulator, tmp_path: Path) -> None:
    """Compactions of the same folder at once, by month and by day, do what one would have done."""
    root = tmp_path / "lake"
    before = rows(UPath(root))

    assert run_children(
        compact_often,
        *[(root, into, 2) for into in ("month", "day", "month")],
    ) == [0, 0, 0]

    assert rows(UPath(root)) == before
    compacted(UPath(root))
    assert names(UPath(root)) == [ALL]
    assert _count(root) == 9


def test_runs_readers_and_compactions_at_once(filled: Emulator, tmp_path: Path) -> None:
    """Beside reruns of its hours, a month is compacted again and again; no row is lost or doubled.

    Readers find each message once, or a window missing that a run replaces just then.
    """
    root = tmp_path / "lake"
    wanted = sorted(message["Id"] for message in filled.mailbox.messages(INBOX))
    works: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
        (compact_often, (root, "month", 15)),
        (extract_often, (filled.url, root, 1, 12)),
        (extract_often, (filled.url, root, 2, 12)),
    ]
    children = [CHILDREN.Process(target=work, args=given) for work, given in works]
    for child in children:
        child.start()
    looks = 0
    while any(child.is_alive() for child in children):
        found = _look(UPath(root))
        if found is not None:
            ids = [row["message_id"] for row in found["messages"]]
            assert len(ids) == len(set(ids))
            looks += 1
    for child in children:
        child.join()

    assert [child.exitcode for child in children] == [0, 0, 0]
    assert looks > 10
    assert [row["message_id"] for row in rows(UPath(root))["messages"]] == wanted
    assert check(filled.url, UPath(root)).findings == []
    compacted(UPath(root))
    assert sorted(row["message_id"] for row in rows(UPath(root))["messages"]) == wanted
    assert _count(root) == 9


def _look(root: UPath) -> Rows | None:
    """Read the tables; None if a file was removed after it was listed."""
    try:
        first = names(root)
        found = rows(root)
    except FileNotFoundError:
        return None
    time.sleep(0.01)
    return found if names(root) == first else None


STEPS = st.one_of(
    st.tuples(st.just("extract"), st.integers(0, 2 * HOURS - 1)),
    st.tuples(st.just("compact"), st.sampled_from(["month", "day"])),
    st.tuples(st.just("arrive"), st.integers(0, 2 * HOURS - 1)),
    st.tuples(st.just("leave"), st.integers(0, 5)),
)


@settings(max_examples=15, deadline=None, database=None)
@given(steps=st.lists(STEPS, min_size=4, max_size=10))
def test_any_order(steps: list[tuple[str, Any]]) -> None:
    """Whatever is extracted, compacted, arrives and leaves: the rows are those never compacted."""
    with Emulator(Mailbox()) as server, TemporaryDirectory() as place:
        plain, lake = UPath(place) / "plain", UPath(place) / "lake"
        deliver(server, 2 * HOURS)
        for root in (plain, lake):
            extract(server.url, root, *range(HOURS), on_gone="keep")
        for step, value in steps:
            if step == "extract":
                for root in (plain, lake):
                    extract(server.url, root, value, on_gone="keep")
            elif step == "compact":
                compacted(lake, value)
            elif step == "arrive":
                server.mailbox.deliver(date=START + HOUR * value, to=["n@m.ru"])
            else:
                ids = [message["Id"] for message in server.mailbox.messages(INBOX)]
                server.mailbox.delete(INBOX, ids[value : value + 1])
        assert _timeless(rows(lake)) == _timeless(rows(plain))
        reports = [check(server.url, root) for root in (plain, lake)]
        found = [[str(finding) for finding in report.findings] for report in reports]
        assert found[0] == found[1]


def _timeless(found: Rows) -> list[str]:
    """Return the rows without the times of runs, but whether mail has left."""
    return sorted(
        repr(
            {name: value for name, value in row.items() if name not in {"extracted_at", "gone_at"}}
            | {"gone": row["gone_at"] is not None, "table": table}
        )
        for table, all_rows in found.items()
        for row in all_rows
    )
