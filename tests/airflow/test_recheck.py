"""The mailbox over time: windows wait until mail has arrived, and are looked at again later."""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.compat import AirflowFailException, ObjectStoragePath
from airflow_provider_r7mail.emulator import Emulator, Fault, Readings
from airflow_provider_r7mail.emulator.folders import INBOX, PROCESSED
from airflow_provider_r7mail.exceptions import R7MailExtractError
from airflow_provider_r7mail.lake.job import ExtractJob
from airflow_provider_r7mail.lake.recheck import Look, looks
from airflow_provider_r7mail.lake.window import extract_window
from tests.airflow.support import JUNE, extract
from tests.lake.support import config

pytestmark = pytest.mark.slow

try:
    from airflow.sdk.exceptions import TaskDeferred
except ImportError:  # Airflow before 3.2
    from airflow.exceptions import TaskDeferred  # type: ignore[no-redef]

HOUR = timedelta(hours=1)


def rows(root: Path) -> list[int]:
    """Return the ids in all windows, each as often as it is there."""
    paths = root.glob("messages/*/*/*/part-*.parquet")
    return sorted(n for path in paths for n in pq.read_table(path)["message_id"].to_pylist())


def run(root: Path, number: int, **options: Any) -> Any:
    """Extract an hour, as a run of an hourly schedule does."""
    start = JUNE + HOUR * number
    return extract(root, start, start + HOUR, **{"recheck_hours": 72, **options})


# -- settling -------------------------------------------------------------------------------


def test_a_window_settles(server: Emulator, tmp_path: Path, logged: Callable[[], str]) -> None:
    """A window that has only just ended is read settle_seconds later, and the log says so."""
    end = datetime.now(UTC)
    extract(tmp_path, end - HOUR, end, settle_seconds=1.5)

    assert time.time() - end.timestamp() >= 1.5
    assert server.requests[0]["time"] - end.timestamp() >= 1.5
    assert "waiting until" in logged()


def test_a_window_long_past_waits_for_nothing(
    server: Emulator, tmp_path: Path, logged: Callable[[], str]
) -> None:
    """A backfill doesn't wait."""
    started = time.monotonic()
    run(tmp_path, 0, settle_seconds=3600, deferrable=True)

    assert time.monotonic() - started < 30
    assert "waiting until" not in logged()


def test_it_waits_without_a_worker_slot(server: Emulator, tmp_path: Path) -> None:
    """Deferred, it waits in the triggerer, and does nothing before."""
    end = datetime.now(UTC)
    with pytest.raises(TaskDeferred) as caught:
        extract(tmp_path, end - HOUR, end, settle_seconds=600, deferrable=True)

    deferred = caught.value
    assert deferred.method_name == "execute_complete"
    moment: Any = deferred.trigger.serialize()[1]["moment"]
    assert abs(moment - end - timedelta(seconds=600)) < timedelta(seconds=1)
    assert server.requests == []


def test_deferred_in_a_dag(server: Emulator, run_dag: Callable[[str], Any], tmp_path: Path) -> None:
    """In Airflow, a deferred extract goes on when the time has come."""
    now = datetime.now(UTC)
    server.mailbox.deliver(date=now - timedelta(minutes=1))
    result = run_dag(f"""
        from datetime import datetime, timedelta
        from airflow.sdk import DAG
        from airflow_provider_r7mail.transfers import R7MailToParquetOperator

        with DAG("settles", schedule=None) as dag:
            R7MailToParquetOperator(
                task_id="extract",
                folder={INBOX},
                output_path="{tmp_path}",
                start="{(now - HOUR).isoformat()}",
                end="{now.isoformat()}",
                settle_seconds=5,
                deferrable=True,
            )
    """)

    assert result.state == "success"
    assert result.xcom("extract")["messages"] == 1
    assert server.requests[0]["time"] - now.timestamp() >= 5


@pytest.mark.parametrize(
    "options",
    [
        {"settle_seconds": -1},
        {"settle_seconds": "60"},
        {"recheck_hours": True},
        {"recheck_hours": -1},
        {"recheck_hours": float("inf")},
    ],
)
def test_wrong_numbers(server: Emulator, tmp_path: Path, options: dict[str, Any]) -> None:
    """A wrong number is an error before any request."""
    with pytest.raises(AirflowFailException, match=f"{next(iter(options))}: "):
        run(tmp_path, 0, **options)

    assert server.requests == []


def test_a_window_of_the_far_future(server: Emulator, tmp_path: Path) -> None:
    """A slip in `end` is an error at once, not a task that waits for years."""
    now = datetime.now(UTC)
    with pytest.raises(AirflowFailException, match=r"end: .* is 399 days ahead"):
        extract(tmp_path, now, now + timedelta(days=400))

    assert server.requests == []


# -- which windows --------------------------------------------------------------------------


def hours(first: int, last: int, length: int = 1) -> list[Window]:
    """Return windows of some hours each."""
    return [Window(JUNE + HOUR * n, JUNE + HOUR * (n + length)) for n in range(first, last, length)]


def test_ages_grow() -> None:
    """A run looks at the last window, the one before, then 2, 4, 8 ... back, and at the oldest."""
    [own] = hours(100, 101)
    found = looks(own, [own, *hours(0, 100)], timedelta(hours=72))

    assert [(own.start - look.window.start) // HOUR for look in found] == [  # type: ignore[operator]
        *(1, 2, 4, 8, 16, 32, 64),
        73,
    ]
    assert [look.last for look in found] == [False] * 7 + [True]


@pytest.mark.parametrize("lengths", [[1], [24], [1, 24], [5, 1, 1, 30], [200]])
def test_each_window_is_looked_at_at_each_age(lengths: list[int]) -> None:
    """Whatever the lengths of the windows, each has one look at each age, and one last look."""
    windows: list[Window] = []
    moment = JUNE
    while moment < JUNE + timedelta(hours=1500):
        end = moment + HOUR * lengths[len(windows) % len(lengths)]
        windows.append(Window(moment, end))
        moment = end
    seen: dict[Window, list[Look]] = {window: [] for window in windows}
    for place, own in enumerate(windows):
        for look in looks(own, windows[: place + 1], timedelta(hours=72)):
            seen[look.window].append(look)

    for window in windows[: len(windows) // 2]:
        assert [look.last for look in seen[window]].count(True) == 1
        assert seen[window][-1].last
        assert len(seen[window]) <= 9


def test_nothing_to_look_at() -> None:
    """Without a horizon, or with later windows only, a run looks at nothing."""
    [own] = hours(10, 11)
    assert looks(own, hours(0, 10), timedelta(0)) == []
    assert looks(own, hours(10, 20), timedelta(hours=72)) == []


# -- what is found --------------------------------------------------------------------------


@pytest.mark.parametrize("count", ["all", "page"])
def test_late_mail_is_found(server: Emulator, tmp_path: Path, count: Any) -> None:
    """R2: mail that comes hours after its Date is in the tables by the next looks, once."""
    server.readings = Readings(count=count)
    box = server.mailbox
    ids = [box.deliver(date=JUNE + timedelta(minutes=30 * n)) for n in range(20)]
    for number in range(10):
        run(tmp_path, number)
    late = [box.deliver(date=JUNE + HOUR * n + timedelta(minutes=1)) for n in (8, 7)]
    manifest = run(tmp_path, 10)
    assert set(rows(tmp_path)) == {*ids, late[0]}, "that of 7 is not looked at every time"
    for number in range(11, 14):
        run(tmp_path, number)

    assert rows(tmp_path) == sorted([*ids, *late])
    if count == "all":
        [found] = manifest["rechecked"]
        assert found["window"]["start"] == (JUNE + HOUR * 8).isoformat()
        assert found["messages"] == 3


def test_late_mail_where_bounds_are_ignored(server: Emulator, tmp_path: Path) -> None:
    """R29: a server that ignores bounds is looked at again, too, though it counts the folder."""
    server.readings = Readings(ignore_dates=True)
    box = server.mailbox
    ids = [box.deliver(date=JUNE + timedelta(minutes=30 * n)) for n in range(4)]
    run(tmp_path, 0)
    run(tmp_path, 1)
    ids.append(box.deliver(date=JUNE + HOUR + timedelta(minutes=1)))
    run(tmp_path, 2)

    assert rows(tmp_path) == sorted(ids)


def test_a_look_costs_one_request(server: Emulator, tmp_path: Path) -> None:
    """Where nothing has changed, a run asks once for each window that it looks at."""
    for number in range(12):
        for _ in range(5):
            server.mailbox.deliver(date=JUNE + HOUR * number + timedelta(minutes=9))
    for number in range(12):
        run(tmp_path, number, recheck_hours=0)
    before = len(server.requests)
    run(tmp_path, 12, recheck_hours=0)
    plain = len(server.requests) - before
    before = len(server.requests)
    manifest = run(tmp_path, 12)

    assert manifest["rechecked"] == []
    assert len(server.requests) - before - plain == 4


def test_the_last_look_reads(server: Emulator, tmp_path: Path) -> None:
    """If one message came and one left, counts agree; the last look finds it nevertheless."""
    box = server.mailbox
    gone = box.deliver(date=JUNE)
    stays = [box.deliver(date=JUNE + timedelta(minutes=n)) for n in range(1, 4)]
    run(tmp_path, 0)
    box.delete(INBOX, [gone])
    came = box.deliver(date=JUNE + timedelta(minutes=9))
    for number in range(1, 6):
        run(tmp_path, number, recheck_hours=5)
    assert rows(tmp_path) == [gone, *stays]
    run(tmp_path, 6, recheck_hours=5)

    assert rows(tmp_path) == [*stays, came]


def test_a_backfill_does_as_live_runs_did(server: Emulator, tmp_path: Path) -> None:
    """Looks go by the run's own window, not by the clock: runs in any order find what is late."""
    ids = [server.mailbox.deliver(date=JUNE + HOUR * n) for n in range(4)]
    for number in (3, 0, 2, 1):
        run(tmp_path, number)
    ids.append(server.mailbox.deliver(date=JUNE + timedelta(minutes=9)))
    run(tmp_path, 1)

    assert rows(tmp_path) == sorted(ids)


@pytest.mark.parametrize(
    "options",
    [{"sender": "bob@example.org"}, {"privacy": {"subject": "drop"}}],
    ids=["filters", "privacy"],
)
def test_windows_of_others_are_left_alone(
    server: Emulator, tmp_path: Path, options: dict[str, Any]
) -> None:
    """What was read with other filters, or under another privacy policy, is not touched."""
    server.mailbox.deliver(date=JUNE, sender="bob@example.org")
    run(tmp_path, 0, **options)
    server.mailbox.deliver(date=JUNE, sender="bob@example.org")
    before = rows(tmp_path)
    run(tmp_path, 1)
    assert rows(tmp_path) == before
    run(tmp_path, 1, **options)

    assert len(rows(tmp_path)) == len(before) + 1


def test_manifests_do_not_name_what_was_searched_for(server: Emulator, tmp_path: Path) -> None:
    """A manifest tells filters from others, but doesn't contain an address or a subject."""
    found = [
        json.dumps(run(tmp_path, number, sender=sender, subject="Secret"))
        for number, sender in enumerate(["ann@example.org", "bob@example.org"])
    ]

    assert "example.org" not in found[0]
    assert "Secret" not in found[0]
    assert json.loads(found[0])["filters"] != json.loads(found[1])["filters"]
    assert run(tmp_path, 2)["filters"] is None


def test_version_1_is_left_alone(server: Emulator, tmp_path: Path) -> None:
    """Windows of schema version 1 don't tell how they were read, so they stay as they are."""
    run(tmp_path, 0)
    for path in tmp_path.glob("*/*/*/*/_manifest.json"):
        old = json.loads(path.read_text())
        del old["filters"], old["counted"], old["gone"]
        path.write_text(json.dumps(old | {"schema_version": 1}))
    server.mailbox.deliver(date=JUNE)
    run(tmp_path, 1)

    assert rows(tmp_path) == []


def test_an_unfinished_window_is_left_to_its_own_run(server: Emulator, tmp_path: Path) -> None:
    """A window without a manifest may be one that another run is writing."""
    run(tmp_path, 0)
    for path in tmp_path.glob("*/*/*/*/_manifest.json"):
        path.unlink()
    server.mailbox.deliver(date=JUNE)
    run(tmp_path, 1)

    assert rows(tmp_path) == []


def test_a_recheck_that_fails(server: Emulator, tmp_path: Path) -> None:
    """If an earlier window can't be looked at, the own window is there, and the task fails."""
    for number in range(3):
        server.mailbox.deliver(date=JUNE + HOUR * number)
        run(tmp_path, number)
    server.mailbox.deliver(date=JUNE + HOUR * 3)
    before = len(server.requests)
    run(tmp_path, 3, recheck_hours=0)
    own = len(server.requests) - before
    server.faults.append(Fault("Messages", status=500, skip=own - 1, times=9))
    with pytest.raises(R7MailExtractError, match="could not be counted"):
        run(tmp_path, 3)

    assert len(rows(tmp_path)) == 4


def test_moved_mail(server: Emulator, tmp_path: Path) -> None:
    """Mail that was moved away goes, mail that was moved in comes."""
    box = server.mailbox
    ids = [box.deliver(date=JUNE + timedelta(minutes=n)) for n in range(3)]
    other = box.deliver(date=JUNE + timedelta(minutes=9), folder=PROCESSED)
    run(tmp_path, 0)
    box.move(INBOX, ids[:2], PROCESSED)
    box.move(PROCESSED, [other], INBOX)
    run(tmp_path, 1)

    assert rows(tmp_path) == [ids[2], other]


# -- at once --------------------------------------------------------------------------------


@pytest.mark.parametrize("on_gone", ["drop", "keep"])
def test_a_later_reading_stays(server: Emulator, tmp_path: Path, on_gone: Any) -> None:
    """A run that began to read a window earlier never replaces what a later one published."""
    job = ExtractJob(
        folder=INBOX,
        criteria=MessageFilter.build(start=JUNE, end=JUNE + HOUR),
        output=ObjectStoragePath(f"file://{tmp_path}"),
        on_gone=on_gone,
    )

    async def connected(on_progress: Callable[[Any], None]) -> dict[str, Any]:
        async with AsyncClient(config(server.url)) as client:
            return await extract_window(client, job, on_progress)

    def overtake(_: Any) -> None:
        # The first run has read its page. Mail arrives, and another run extracts the window.
        if second:
            return
        server.mailbox.deliver(date=JUNE + timedelta(minutes=1))
        with ThreadPoolExecutor(1) as pool:
            second.append(pool.submit(asyncio.run, connected(lambda _: None)).result())

    second: list[dict[str, Any]] = []
    server.mailbox.deliver(date=JUNE)
    asyncio.run(connected(lambda _: None))
    first = asyncio.run(connected(overtake))

    assert len(rows(tmp_path)) == 2
    assert [first] == second, "it returns what is there"
    assert not list(tmp_path.rglob("_staged*"))


def test_neighbours_at_once(server: Emulator, tmp_path: Path) -> None:
    """Runs of neighbouring windows at once, each with its looks, leave all mail in place, once."""
    box = server.mailbox
    ids = [box.deliver(date=JUNE + timedelta(minutes=20 * n)) for n in range(24)]
    for number in range(8):
        run(tmp_path, number)
    for turn in range(3):
        ids += [box.deliver(date=JUNE + timedelta(minutes=20 * n + turn)) for n in range(24)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: run(tmp_path, n, refresh_windows=2), range(8)))

    assert rows(tmp_path) == sorted(ids)
    assert not list(tmp_path.rglob("_staged*"))
