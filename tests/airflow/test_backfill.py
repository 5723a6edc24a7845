"""`dags/mail_backfill.py` in a real Airflow; `make scale` runs it with workers that die."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_provider_r7mail.emulator import Emulator, Fault
from airflow_provider_r7mail.emulator.folders import DRAFTS, INBOX, SENT
from tests.airflow.support import SOURCE, Runner, load, rows_of

DAY = timedelta(days=1)
MONDAY = datetime(2025, 6, 2, tzinfo=UTC)
CONF = {"start": "2025-06-02", "end": "2025-06-05"}


def test_each_day_and_folder_is_there_once(
    server: Emulator, lake: Path, run_example: Runner
) -> None:
    """One task per day and folder extracts the requested period, and nothing else."""
    expected = []
    for folder in (INBOX, SENT):
        for day in range(3):
            for into in (timedelta(0), DAY / 2, DAY - timedelta(seconds=1)):
                date = MONDAY + day * DAY + into
                expected.append((folder, server.mailbox.deliver(folder=folder, date=date)))
        server.mailbox.deliver(folder=folder, date=MONDAY - timedelta(seconds=1))
        server.mailbox.deliver(folder=folder, date=MONDAY + 3 * DAY)
    server.mailbox.deliver(folder=DRAFTS, date=MONDAY)

    run = run_example("mail_backfill", MONDAY, conf=CONF)

    assert run.state == "success"
    mapped = {key for key in run.states if key[1] >= 0}
    assert mapped == {(f"extract_{name}", n) for name in ("inbox", "sent") for n in range(3)}
    assert sorted(rows_of(lake, "messages", "SELECT folder, message_id")) == sorted(expected)


def test_server_that_is_down_costs_time_only(
    server: Emulator, lake: Path, run_example: Runner
) -> None:
    """A window that could not be read is retried, and is there once."""
    ids = [server.mailbox.deliver(date=MONDAY + n * DAY / 8) for n in range(24)]
    server.faults.append(Fault("Messages", times=6, status=503))

    run = run_example("mail_backfill", MONDAY, conf=CONF)

    assert run.state == "success"
    assert max(ti.try_number for ti in run.instances) > 1
    assert sorted(rows_of(lake, "messages", "SELECT message_id")) == [(i,) for i in sorted(ids)]


def test_run_again_replaces(server: Emulator, lake: Path, run_example: Runner) -> None:
    """A second backfill of the same day creates no duplicates."""
    for n in range(6):
        server.mailbox.deliver(date=MONDAY + n * DAY / 2)
    run_example("mail_backfill", MONDAY, conf=CONF)
    server.mailbox.deliver(date=MONDAY)

    run = run_example("mail_backfill", MONDAY, conf=CONF | {"end": "2025-06-03"})

    assert run.state == "success"
    assert rows_of(lake, "messages", "SELECT count(*), count(DISTINCT message_id)") == [(7, 7)]


@pytest.mark.parametrize("end", ["2025-06-02", "2025-06-01"])
def test_no_time_at_all_is_an_error(server: Emulator, run_example: Runner, end: str) -> None:
    """Swapped or equal bounds fail at once, before any request."""
    run = run_example("mail_backfill", MONDAY, conf=CONF | {"end": end})

    assert run.state == "failed"
    [split] = [ti for ti in run.instances if ti.task_id == "split"]
    assert (split.state, split.try_number) == ("failed", 1)
    assert list(server.requests) == []


def test_two_years_by_day_are_within_airflows_limit() -> None:
    """The default is two years by day, newest first, without gaps, within Airflow's limit."""
    module = load("mail_backfill", SOURCE / "mail_backfill.py")
    params = {name: str(value) for name, value in module.dag.params.dump().items()}

    windows = module.split.function(**params)

    assert 730 <= len(windows) <= 1024
    assert windows[0]["end"] == params["end"]
    assert windows[-1]["start"] == params["start"]
    assert all(newer["start"] == older["end"] for newer, older in itertools.pairwise(windows))


def test_length_that_does_not_fit_leaves_a_shorter_window() -> None:
    """Ten days in windows of a week: the oldest window has the rest."""
    module = load("mail_backfill", SOURCE / "mail_backfill.py")

    assert module.split.function("2025-06-01", "2025-06-11", "7") == [
        {"start": "2025-06-04", "end": "2025-06-11"},
        {"start": "2025-06-01", "end": "2025-06-04"},
    ]


def test_server_is_protected() -> None:
    """All tasks that call the mail server are in its pool, and leave workers to other DAGs."""
    dag = load("mail_backfill", SOURCE / "mail_backfill.py").dag

    asking = [task for task in dag.tasks if task.task_id.startswith("extract_")]

    assert len(asking) == 2
    assert {(task.pool, task.max_active_tis_per_dag) for task in asking} == {("r7mail", 8)}


def test_airflows_own_backfill_suits_the_hourly_extract(
    server: Emulator, lake: Path, run_example: Runner
) -> None:
    """`airflow backfill create` creates one run of `mail_extract` per hour, including `to`."""
    from airflow.models.backfill import ReprocessBehavior, _do_dry_run  # noqa: PLC0415
    from airflow.utils.session import create_session  # noqa: PLC0415

    run_example("mail_extract", MONDAY - DAY)  # so that Airflow knows the DAG
    with create_session() as session:
        runs = list(
            _do_dry_run(
                dag_id="mail_extract",
                from_date=MONDAY,
                to_date=MONDAY + timedelta(hours=3),
                reverse=False,
                reprocess_behavior=ReprocessBehavior.NONE,
                session=session,
            )
        )

    intervals = [(run.data_interval[0], run.data_interval[1]) for run in runs if run.data_interval]
    hours = [MONDAY + timedelta(hours=n) for n in range(5)]
    assert intervals == list(itertools.pairwise(hours))
