"""End to end: `airflow standalone` beside the emulator, and its triggerer killed.

One Airflow serves the whole test, since it takes half a minute to start.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from airflow_provider_r7mail.emulator import Emulator, Mailbox
from airflow_provider_r7mail.emulator.folders import INBOX, PROCESSED
from tests.airflow.standalone import DAG, SOURCE, Standalone, listings, order, wait

pytest.importorskip("airflow.triggers.shared_stream", reason="watchers keep state from Airflow 3.3")

pytestmark = pytest.mark.slow
CROWDED = 31
TWENTY = f"""
from airflow.sdk import DAG, Asset, AssetWatcher
from airflow_provider_r7mail.triggers import R7MailMessageEventTrigger

def watcher(number):
    subject = f"Ticket {{number:02}}"
    trigger = R7MailMessageEventTrigger(folder={CROWDED}, subject=subject, poll_interval=1)
    return AssetWatcher(name=subject, trigger=trigger)

tickets = Asset(
    name="tickets",
    uri="r7mail://ann@mail.example.org/{CROWDED}",
    watchers=[watcher(number) for number in range(20)],
)
with DAG("tickets", schedule=[tickets]):
    pass
"""


@pytest.fixture
def mail() -> Iterator[Emulator]:
    """The mail server."""
    with Emulator(Mailbox()) as server:
        server.mailbox.add_folder(CROWDED, "tickets")
        yield server


@pytest.fixture
def airflow(mail: Emulator, tmp_path: Path) -> Iterator[Standalone]:
    """Airflow with the example DAG, polling every second, and twenty other watchers."""
    code = SOURCE.read_text()
    assert "poll_interval=60" in code
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / SOURCE.name).write_text(
        code.replace("poll_interval=60", "poll_interval=1").replace("seconds=10", "seconds=1")
    )
    (tmp_path / "dags" / "twenty.py").write_text(TWENTY)
    standalone = Standalone(tmp_path, mail)
    try:
        yield standalone
    finally:
        standalone.stop()


def test_mail_starts_a_dag(airflow: Standalone, mail: Emulator) -> None:
    """Each message that arrives starts one DAG run, even if the triggerer is killed meanwhile.

    Earlier messages start nothing. Twenty watchers of another folder share one poll.
    """
    old = order(mail, 0)

    def is_filed(message_id: int) -> bool:
        return message_id in {message["Id"] for message in mail.mailbox.messages(PROCESSED)}

    def polled() -> bool:
        return len(listings(mail, INBOX)) > seen + 2

    seen = 0
    wait(airflow, "the watcher polls", polled)
    one = order(mail, 1)
    wait(airflow, "the first order is filed", lambda: is_filed(one))

    # Twenty watchers: while nothing arrives, one listing of all mail per second.
    wait(airflow, "twenty watchers", lambda: len(set(listings(mail, CROWDED))) == 21)
    time.sleep(3)
    before = len(listings(mail, CROWDED))
    time.sleep(6)
    idle = listings(mail, CROWDED)[before:]
    ticket = mail.mailbox.deliver(folder=CROWDED, subject="Ticket 07")
    wait(airflow, "the ticket's run", lambda: airflow.runs("tickets"))
    # An event that Airflow has not confirmed yet would be sent again by the next triggerer.
    time.sleep(5)

    # The triggerer is killed right after it saw an order; another order arrives meanwhile.
    two = order(mail, 2)
    seen = len(listings(mail, INBOX))
    wait(airflow, "it is seen", lambda: len(listings(mail, INBOX)) > seen)
    airflow.kill_triggerer()
    three = order(mail, 3)
    airflow.start_triggerer()
    wait(airflow, "both are filed", lambda: is_filed(two) and is_filed(three))
    seen = len(listings(mail, INBOX))
    wait(airflow, "the watcher polls again", polled)
    wait(
        airflow,
        "all runs are over",
        lambda: {run["state"] for run in airflow.runs(DAG)} == {"success"},
    )

    assert 3 <= len(idle) <= 16  # while the folder is empty, each poll looks whether it is
    assert set(idle) == {""}
    [run] = airflow.runs("tickets")
    path = f"/dags/tickets/dagRuns/{run['dag_run_id']}/upstreamAssetEvents"
    [event] = airflow.get(path)["asset_events"]
    assert event["extra"]["payload"]["message_ids"] == [ticket]
    assert sorted(airflow.filed()) == [one, two, three]
    assert [message["Id"] for message in mail.mailbox.messages(INBOX)] == [old]
    assert all(mail.mailbox.get(message)["WasRead"] for message in (one, two, three))
    for number, message in enumerate((one, two, three), start=1):
        [file] = (airflow.home / f"lake/orders/message_id={message}").iterdir()
        assert duckdb.read_parquet(str(file)).fetchall() == [(f"00{number}", number)]
