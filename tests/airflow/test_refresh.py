"""Mail that changes after it was extracted: earlier windows are refreshed, without duplicates."""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pendulum
import pyarrow.parquet as pq
import pytest
from airflow.timetables.interval import CronDataIntervalTimetable, DeltaDataIntervalTimetable
from airflow.timetables.trigger import CronTriggerTimetable

from airflow_provider_r7mail.compat import AirflowFailException
from airflow_provider_r7mail.emulator import Emulator, Fault
from airflow_provider_r7mail.emulator.folders import INBOX, PROCESSED
from airflow_provider_r7mail.exceptions import R7MailAttachmentError, R7MailExtractError
from tests.airflow.support import DAY, JUNE, extract

pytestmark = pytest.mark.slow
VIEW = Path(__file__).parents[2] / "docs/sql/latest_messages.sql"
SNAPSHOTS = {
    "WasRead": "was_read",
    "Important": "important",
    "Labels": "labels",
    "FolderId": "folder_id",
    "WasReplied": "was_replied",
    "IsDeleted": "is_deleted",
}


def windows(root: Path, folder: int = INBOX) -> list[str]:
    """Return the existing windows, as days and hours."""
    paths = root.glob(f"messages/*/folder={folder}/window=*/_manifest.json")
    return sorted(path.parent.name.removeprefix("window=").replace("0000Z", "") for path in paths)


def rows(root: Path, folder: int = INBOX) -> dict[int, dict[str, Any]]:
    """Return the message rows of a folder by id; there must be no duplicates."""
    found = [
        row
        for path in root.glob(f"messages/*/folder={folder}/*/*.parquet")
        for row in pq.ParquetFile(path).read().to_pylist()
    ]
    assert len({row["message_id"] for row in found}) == len(found)
    return {row["message_id"]: row for row in found}


def deliver(server: Emulator, days: int, **fields: Any) -> list[int]:
    """Put a message for each day into the inbox."""
    return [
        server.mailbox.deliver(date=JUNE + DAY * day + timedelta(hours=9), **fields)
        for day in range(days)
    ]


def dag(timetable: Any, start: datetime | None = None) -> dict[str, Any]:
    """Return a DAG as in a task's context."""
    return {"dag": SimpleNamespace(timetable=timetable, start_date=start)}


BERLIN = pendulum.timezone("Europe/Berlin")
FIXED: dict[str, Any] = {"timezone": BERLIN, "interval": timedelta(days=1)}


@pytest.mark.parametrize(
    ("timetable", "runs", "says"),
    [
        (CronTriggerTimetable("0 0 * * *", **FIXED), ["2025-10-26", "2025-10-27"], "is left out"),
        (CronTriggerTimetable("0 0 * * *", **FIXED), ["2025-03-30", "2025-03-31"], "there twice"),
        (CronTriggerTimetable("0 6 * * 1-5", **FIXED), ["2025-06-06", "2025-06-09"], "is left out"),
        (CronDataIntervalTimetable("0 0 * * *", BERLIN), ["2025-10-26", "2025-10-27"], ""),
        (CronDataIntervalTimetable("0 0 * * *", BERLIN), ["2025-03-30", "2025-03-31"], ""),
        (CronDataIntervalTimetable("0 6 * * 1-5", BERLIN), ["2025-06-06", "2025-06-09"], ""),
        (CronTriggerTimetable("0 0 * * *", **FIXED), ["2025-06-06", "2025-06-09"], ""),
    ],
)
def test_windows_that_do_not_fit_together(
    server: Emulator,
    tmp_path: Path,
    logged: Callable[[], str],
    timetable: Any,
    runs: list[str],
    says: str,
) -> None:
    """A schedule that leaves out mail, or has it twice, is told in the log of the run that does."""
    for day in runs:
        hour = 6 if "6 " in str(timetable.summary) else 0
        moment = datetime.fromisoformat(day).replace(hour=hour, tzinfo=BERLIN)
        found = timetable.infer_manual_data_interval(run_after=pendulum.instance(moment))
        assert "[docs: extract#the-schedule]" not in logged()
        extract(tmp_path, found.start, found.end, context=dag(timetable))

    text = logged()
    assert says in text
    assert ("[docs: extract#the-schedule]" in text) == bool(says)


def test_changed_mail_is_right_within_the_windows(server: Emulator, tmp_path: Path) -> None:
    """The next run puts changed flags, labels, moves, deletions and late mail into the tables."""
    box = server.mailbox
    ids = deliver(server, 5)
    second = box.deliver(date=JUNE + DAY * 3)
    for day in range(4):
        extract(tmp_path, JUNE + DAY * day)
    box.mark_read(INBOX, [ids[0], ids[1]])
    box.mark_important(INBOX, [ids[2]])
    box.move(INBOX, [ids[3]], PROCESSED)
    box.delete(INBOX, [second])
    late = box.deliver(date=JUNE + DAY * 2)

    manifest = extract(tmp_path, JUNE + DAY * 4, refresh_windows=3)

    state = {item["Id"]: item for item in box.messages(INBOX)}
    found = rows(tmp_path)
    assert set(found) == set(state) == {*ids[:3], ids[4], late}
    wrong = {
        (number, column)
        for number, item in state.items()
        for field, column in SNAPSHOTS.items()
        if item[field] != found[number][column]
    }
    assert wrong == {(ids[0], "was_read")}, "the first day is out of reach"
    assert manifest["messages"] == 1
    assert [item["messages"] for item in manifest["refreshed"]] == [0, 2, 1]
    assert manifest["refreshed"][0]["window"]["start"] == "2025-06-04T00:00:00+00:00"
    for item in manifest["refreshed"]:
        stored = json.loads(
            Path(item["path"].removeprefix("file://"), "_manifest.json").read_text()
        )
        assert {name: stored[name] for name in item} == item
    assert "refreshed" not in extract(tmp_path, JUNE)
    assert server.logins == 6, "one login a run, whatever it refreshes"


def test_only_the_window_where_nothing_is_asked(server: Emulator, tmp_path: Path) -> None:
    """Without refresh_windows, a run only touches its own window."""
    extract(tmp_path, JUNE + DAY)

    assert windows(tmp_path) == ["20250602T00_20250603T00"]


def test_windows_that_were_never_extracted(server: Emulator, tmp_path: Path) -> None:
    """Missing windows as long as the run's own are extracted, but none before start_date."""
    deliver(server, 4)

    manifest = extract(
        tmp_path, JUNE + DAY * 3, refresh_windows=9, context=dag(None, JUNE + timedelta(hours=1))
    )

    assert windows(tmp_path) == [
        "20250602T00_20250603T00",
        "20250603T00_20250604T00",
        "20250604T00_20250605T00",
    ]
    assert [item["messages"] for item in manifest["refreshed"]] == [1, 1]


@pytest.mark.parametrize(
    ("timetable", "own", "expected"),
    [
        (
            CronDataIntervalTimetable("0 0 1 * *", "UTC"),
            ("2025-03-01T00:00Z", "2025-04-01T00:00Z"),
            ["20250101T00_20250201T00", "20250201T00_20250301T00", "20250301T00_20250401T00"],
        ),
        (  # the night of 30 March is an hour shorter in Berlin
            CronDataIntervalTimetable("0 0 * * *", "Europe/Berlin"),
            ("2025-03-30T22:00Z", "2025-03-31T22:00Z"),
            ["20250328T23_20250329T23", "20250329T23_20250330T22", "20250330T22_20250331T22"],
        ),
        (
            DeltaDataIntervalTimetable(timedelta(hours=6)),
            ("2025-03-01T00:00Z", "2025-03-01T06:00Z"),
            ["20250228T12_20250228T18", "20250228T18_20250301T00", "20250301T00_20250301T06"],
        ),
        (  # a window that is not one of the schedule
            CronDataIntervalTimetable("0 0 1 * *", "UTC"),
            ("2025-03-01T00:00Z", "2025-03-08T00:00Z"),
            ["20250215T00_20250222T00", "20250222T00_20250301T00", "20250301T00_20250308T00"],
        ),
    ],
    ids=["monthly", "summer time", "delta", "own window"],
)
def test_data_intervals_of_the_schedule(
    server: Emulator, tmp_path: Path, timetable: Any, own: tuple[str, str], expected: list[str]
) -> None:
    """The windows are the schedule's data intervals, whatever the length of a month or day."""
    start, end = map(datetime.fromisoformat, own)

    extract(tmp_path, start, end, refresh_windows=2, context=dag(timetable))

    assert windows(tmp_path) == expected


def test_a_schedule_that_was_changed(server: Emulator, tmp_path: Path) -> None:
    """Windows of an earlier schedule are refreshed as they are: no mail is in two windows."""
    deliver(server, 3)
    for hours in range(0, 24, 12):
        start = JUNE + DAY + timedelta(hours=hours)
        extract(tmp_path, start, start + timedelta(hours=12))
    extract(tmp_path, JUNE)

    extract(tmp_path, JUNE + DAY * 2, refresh_windows=3)

    assert len(rows(tmp_path)) == 3
    assert windows(tmp_path) == [
        "20250601T00_20250602T00",
        "20250602T00_20250602T12",
        "20250602T12_20250603T00",
        "20250603T00_20250604T00",
    ]


@pytest.mark.parametrize("hours", [6, 18])
def test_a_schedule_that_begins_elsewhere(
    server: Emulator, tmp_path: Path, hours: int, logged: Callable[[], str]
) -> None:
    """A missing window that overlaps an existing one isn't extracted: no mail is in two windows."""
    ids = deliver(server, 6)
    for day in range(3):
        extract(tmp_path, JUNE + DAY * day)

    extract(tmp_path, JUNE + DAY * 4 + timedelta(hours=hours), refresh_windows=3)

    assert set(rows(tmp_path)) <= set(ids)
    assert len(windows(tmp_path)) == 5
    assert "20250603T000000Z_20250604T000000Z" in logged()


def test_in_a_dag(server: Emulator, run_dag: Callable[[str], Any], tmp_path: Path) -> None:
    """In a DAG, the windows follow its schedule, from its start_date on."""
    server.mailbox.deliver(date=datetime(2025, 2, 10, tzinfo=UTC))
    result = run_dag(f"""
        from datetime import datetime, timezone
        from airflow.sdk import DAG
        from airflow_provider_r7mail.transfers import R7MailToParquetOperator
        try:
            from airflow.sdk import CronDataIntervalTimetable
        except ImportError:
            from airflow.timetables.interval import CronDataIntervalTimetable

        with DAG(
            "refresh",
            schedule=CronDataIntervalTimetable("0 0 1 * *", timezone="Europe/Moscow"),
            start_date=datetime(2025, 1, 31, 21, tzinfo=timezone.utc),
        ) as dag:
            R7MailToParquetOperator(
                task_id="extract", folder=24, output_path="{tmp_path}", refresh_windows=5,
                start="2025-02-28T21:00:00Z", end="2025-03-31T21:00:00Z",
            )
    """)

    assert result.state == "success"
    assert windows(tmp_path) == ["20250131T21_20250228T21", "20250228T21_20250331T21"]
    [refreshed] = result.xcom("extract")["refreshed"]
    assert refreshed["messages"] == 1


def test_a_window_that_fails(server: Emulator, tmp_path: Path, logged: Callable[[], str]) -> None:
    """The run's own window comes first; if a window fails, the others are still extracted."""
    ids = deliver(server, 3, attachments=[("a.csv", b"1", "text/csv")])
    for day in range(2):
        extract(tmp_path, JUNE + DAY * day)
    server.mailbox.mark_read(INBOX, ids)
    server.faults.append(Fault(path="Attachments", status=404))

    with pytest.raises(R7MailAttachmentError, match="20250603T000000Z"):
        extract(
            tmp_path, JUNE + DAY * 2, refresh_windows=2, attachments_path=str(tmp_path / "files")
        )

    assert [rows(tmp_path)[number]["was_read"] for number in ids] == [True] * 3
    assert "Window 20250603T000000Z_20250604T000000Z: " in logged()


@pytest.mark.parametrize(("status", "read"), [(500, True), (503, False)])
def test_the_server_fails(server: Emulator, tmp_path: Path, status: int, read: bool) -> None:
    """If the server fails on a window, the others go on; if it is down, the retry does the rest."""
    ids = deliver(server, 3)
    for day in range(2):
        extract(tmp_path, JUNE + DAY * day)
    server.mailbox.mark_read(INBOX, ids)
    requests = extract(tmp_path, JUNE + DAY * 2)["requests"] - 1  # a login
    # After a 500, a page of one message is tried, too: it may be the size that is refused (R37).
    times = 4 if status == 500 else 2
    server.faults.append(Fault(path="Messages", times=times, skip=requests, status=status))

    with pytest.raises(R7MailExtractError, match="20250602T000000Z_20250603T000000Z"):
        extract(tmp_path, JUNE + DAY * 2, refresh_windows=2)

    assert [rows(tmp_path)[number]["was_read"] for number in ids] == [read, False, True]


def test_bad_messages_of_an_earlier_window(server: Emulator, tmp_path: Path) -> None:
    """A message the tables can't hold fails the task for good, after all windows are written."""
    ids = deliver(server, 3)
    server.mailbox.deliver(date=JUNE + DAY, fields={"Id": None})

    with pytest.raises(AirflowFailException, match="20250602T000000Z_20250603T000000Z"):
        extract(tmp_path, JUNE + DAY * 2, refresh_windows=2)

    assert set(rows(tmp_path)) == set(ids)


@pytest.mark.parametrize("count", [-1, 1.5, True, "2"])
def test_a_wrong_number(server: Emulator, tmp_path: Path, count: Any) -> None:
    """An invalid number of windows fails at once, before any request."""
    with pytest.raises(AirflowFailException, match=r"refresh_windows: .* whole number, 0 or more"):
        extract(tmp_path, JUNE, refresh_windows=count)

    assert server.requests == []


@pytest.mark.parametrize("keeps_id", [True, False], ids=["id stays", "id changes"])
@pytest.mark.parametrize("privacy", [None, {"addresses": "hash"}], ids=["plain", "hashed"])
def test_a_moved_message_is_seen_once(
    server: Emulator, tmp_path: Path, keeps_id: bool, privacy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The view shows a message that was moved once, in its present folder."""
    monkeypatch.setenv(
        "AIRFLOW_CONN_R7MAIL_DEFAULT", server.connection(privacy_secret="a-key-of-this-test")
    )
    box = server.mailbox
    moved, stays = deliver(server, 2)
    twice = [box.deliver(date=JUNE, mime_message_id="list@example.org") for _ in range(2)]
    bare = box.deliver(date=JUNE, mime_message_id="", fields={"MessageId": None})
    to_self: dict[str, Any] = {"date": JUNE, "mime_message_id": "self@example.org"}
    arrived = box.deliver(**to_self)
    sent = box.deliver(**to_self, folder=PROCESSED, fields={"WasSent": True})
    for day in range(2):
        extract(tmp_path, JUNE + DAY * day, privacy=privacy)
    if keeps_id:
        box.move(INBOX, [moved], PROCESSED)
    else:
        item = box.get(moved)
        box.delete(INBOX, [moved])
        moved = box.deliver(folder=PROCESSED, date=item["Date"], mime_message_id=item["MessageId"])
    for day in range(2):
        extract(tmp_path, JUNE + DAY * day, folder=PROCESSED, privacy=privacy)

    connection = duckdb.connect()
    connection.execute(
        "CREATE VIEW messages AS SELECT * FROM "
        f"read_parquet('{tmp_path}/messages/**/*.parquet', hive_partitioning = true)"
    )
    connection.execute(VIEW.read_text())
    seen = connection.execute("SELECT message_id, folder::int FROM latest_messages").fetchall()

    assert connection.execute("SELECT count(*) FROM messages").fetchone() == (8,)
    assert sorted(seen) == sorted(
        [
            (moved, PROCESSED),
            (sent, PROCESSED),
            *((number, INBOX) for number in (stays, *twice, bare, arrived)),
        ]
    )
