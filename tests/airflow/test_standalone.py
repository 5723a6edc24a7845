"""End to end: mail starts DAG runs, tasks can be stopped, and logs show no secret.

One `airflow standalone` serves both tests, since it takes half a minute to start.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import duckdb
import pytest

from airflow_provider_r7mail.emulator import Emulator, Mailbox, Readings
from airflow_provider_r7mail.emulator.folders import INBOX, PROCESSED
from tests.airflow.standalone import DAG, SOURCE, Standalone, listings, order, pauses, wait

pytest.importorskip("airflow.triggers.shared_stream", reason="watchers keep state from Airflow 3.3")

pytestmark = pytest.mark.slow
CROWDED = 31
DAY = datetime(2025, 6, 1, tzinfo=UTC)
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


# What users write who look for a mistake. The forms are those of URLs and headers.
TELLING = """
import base64, logging
from urllib.parse import quote
from airflow_provider_r7mail.client.answers import parse_page
from airflow_provider_r7mail.client.calls import list_messages
from airflow_provider_r7mail.hooks import R7MailHook
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.triggers import R7MailMessageTrigger

CALL = list_messages(
    24, MessageFilter(), start=None, end=None, offset=0, size=1, parse=parse_page
)

def tell(log, where, client):
    secret = client.config.password
    log.info("%s: plain %s", where, secret)
    log.info("%s: header %s", where, {"Authorization": secret})
    log.info("%s: url ?token=%s", where, quote(secret, safe=""))
    log.info("%s: base64 %s", where, base64.b64encode(secret.encode()).decode())
    try:
        raise RuntimeError(secret)
    except RuntimeError:
        log.exception("%s: traceback", where)

class Telling(R7MailMessageTrigger):
    async def run(self):
        async with await R7MailHook("r7mail_slow").aget_conn() as client:
            await client.send(CALL)
            tell(self.log, "trigger", client)
        async for event in super().run():
            yield event
"""
OPERATIONS = """
import telling
from airflow.sdk import DAG, BaseOperator
from airflow_provider_r7mail.hooks import R7MailHook
from airflow_provider_r7mail.transfers import R7MailToParquetOperator

class Tell(BaseOperator):
    def execute(self, context):
        with R7MailHook("r7mail_slow").get_conn() as client:
            client.send(telling.CALL)
            telling.tell(self.log, "task", client)
        trigger = telling.Telling(folder=24, subject="Told", r7mail_conn_id="r7mail_slow")
        self.defer(trigger=trigger, method_name="end")

    def end(self, context, event):
        pass

with DAG("tells", schedule=None):
    Tell(task_id="tell")
with DAG("extracts", schedule=None):
    R7MailToParquetOperator(
        task_id="extract", folder=24, start="2025-06-01", end="2025-06-02", page_size=5,
        output_path="OUTPUT/tables", attachments_path="OUTPUT/files",
        r7mail_conn_id="r7mail_slow",
    )
"""


@pytest.fixture(scope="module")
def mail() -> Iterator[Emulator]:
    """The mail server."""
    with Emulator(Mailbox()) as server:
        server.mailbox.add_folder(CROWDED, "tickets")
        server.mailbox.deliver(folder=CROWDED, date=DAY)  # an empty folder isn't searched
        yield server


@pytest.fixture(scope="module")
def slow() -> Iterator[Emulator]:
    """A slow server with a day of mail and a password of its own."""
    mailbox = Mailbox()
    mailbox.password = "Пароль/of+the test"
    for number in range(4_000):
        file = [("a.bin", b"x" * 300_000, "x/y")] if number % 50 == 0 else []
        mailbox.deliver(date=DAY.replace(second=number % 60), attachments=file)
    mailbox.deliver(subject="Told")
    with Emulator(mailbox, Readings(latency_seconds=0.3)) as server:
        yield server


@pytest.fixture(scope="module")
def airflow(
    mail: Emulator, slow: Emulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Standalone]:
    """Airflow with these DAGs and the example DAG, which polls every second."""
    home = tmp_path_factory.mktemp("standalone")
    code = SOURCE.read_text()
    assert "poll_interval=60" in code
    for path, text in {
        f"dags/{SOURCE.name}": code.replace("poll_interval=60", "poll_interval=1").replace(
            "seconds=10", "seconds=1"
        ),
        "dags/twenty.py": TWENTY,
        "dags/operations.py": OPERATIONS.replace("OUTPUT", f"{home}/output"),
        "plugins/telling.py": TELLING,
    }.items():
        (home / path).parent.mkdir(exist_ok=True)
        (home / path).write_text(text)
    standalone = Standalone(home, mail, {"R7MAIL_SLOW": slow.connection()})
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
        # After the first poll: mail that arrives during that one starts nothing.
        return pauses(mail, INBOX, seen) > 2

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

    assert 3 <= len(idle) <= 8
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


def test_operations(airflow: Standalone, slow: Emulator) -> None:
    """A task marked as failed stops in seconds and leaves no files; no log has a secret."""
    output = airflow.home / "output"

    def state(dag: str) -> str | None:
        runs = airflow.runs(dag)
        return runs[0]["state"] if runs else None

    def staged() -> list[Path]:
        return [path for path in output.rglob("*") if path.name.startswith("_staged")]

    def start(dag: str) -> None:
        # Not by a schedule: Airflow fails what it runs before its own API server is up.
        wait(airflow, "the DAG is read", lambda: airflow.get(f"/dags/{dag}"))
        airflow.api.post(f"/dags/{dag}/dagRuns", json={"logical_date": None}).raise_for_status()

    start("extracts")
    wait(airflow, "the extract writes", staged)
    [run] = airflow.runs("extracts")
    path = f"/dags/extracts/dagRuns/{run['dag_run_id']}/taskInstances/extract"
    airflow.api.patch(path, json={"new_state": "failed"}).raise_for_status()
    wait(airflow, "nothing is left half-written", lambda: not staged())
    listings = len(slow.requests)
    start("tells")
    # Or failed: Airflow 3.3.2's scheduler takes a trigger that fires at once for a lost task.
    wait(airflow, "the telling DAG is over", lambda: state("tells") in {"success", "failed"})
    late = [
        request
        for request in slow.requests[listings:]
        if (request["json"] or {}).get("size") == 5  # the extract's page_size
    ]

    assert late == []
    assert list(output.rglob("_manifest.json")) == []
    assert list(output.rglob("*.parquet")) == []
    logs = "\n".join(
        file.read_text(errors="replace") for file in (airflow.home / "logs").rglob("*.log*")
    )
    for where in ("task", "trigger"):
        for form in ("plain", "header", "url", "base64", "traceback"):
            assert f"{where}: {form}" in logs
    assert "Stopped. Partial output was removed" in logs
    # The password is masked, whoever logs it; a token is in no log of the package's.
    # Not in the console of LocalExecutor's workers, where Airflow 3.3.2 masks nothing at all.
    for secret in (slow.mailbox.password, *slow._service._tokens):
        for form in (secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode()):
            assert form not in logs
