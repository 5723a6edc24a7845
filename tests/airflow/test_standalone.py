"""End to end: `airflow standalone` beside the mail server's stand-in, its triggerer killed.

One Airflow serves all of it, since it takes half a minute to start.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pytest

from airflow_provider_r7mail.emulator import Emulator, Mailbox
from airflow_provider_r7mail.emulator.mailbox import INBOX, PROCESSED

pytest.importorskip("airflow.triggers.shared_stream", reason="watchers keep state from Airflow 3.3")

pytestmark = pytest.mark.slow
SOURCE = Path(__file__).parents[2] / "dags" / "mail_starts_dag.py"
DAG = "mail_starts_dag"
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


class Standalone:
    """`airflow standalone` in a folder of its own; what it prints goes to a file there."""

    def __init__(self, home: Path, server: Emulator) -> None:
        self.home = home
        self.log = home / "standalone.log"
        port = free_port()
        self.api = httpx.Client(
            base_url=f"http://127.0.0.1:{port}/api/v2", timeout=60, trust_env=False
        )
        values = {
            "API__HOST": "127.0.0.1",
            "API__PORT": port,
            "API__BASE_URL": f"http://127.0.0.1:{port}",
            "CORE__DAGS_FOLDER": home / "dags",
            "CORE__DAGS_ARE_PAUSED_AT_CREATION": False,
            "CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
            "CORE__LOAD_EXAMPLES": False,
            "CORE__PARALLELISM": 2,
            "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": True,
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": 3600,
            "LOGGING__WORKER_LOG_SERVER_PORT": free_port(),
            "LOGGING__TRIGGER_LOG_SERVER_PORT": free_port(),
            # A dead triggerer is noticed, and its triggers given to the new one, within seconds.
            "TRIGGERER__JOB_HEARTBEAT_SEC": 1,
            "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": 6,
        }
        self.env = {
            **{name: value for name, value in os.environ.items() if "AIRFLOW" not in name},
            **{f"AIRFLOW__{name}": str(value) for name, value in values.items()},
            "AIRFLOW_HOME": str(home),
            "AIRFLOW_CONN_R7MAIL_DEFAULT": server.connection(),
            "AIRFLOW_VAR_R7MAIL_LAKE": (home / "lake").as_uri(),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONWARNINGS": "ignore",
        }
        self.processes = [self._start("standalone")]

    def _start(self, command: str) -> subprocess.Popen[bytes]:
        # Standalone's parts outlive it: a session of its own, to end them all at once.
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "airflow", command],
                env=self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill_triggerer(self) -> None:
        """Kill -9 the triggerer and the processes it has started."""
        for pid in triggerers(self.processes):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start_triggerer(self) -> None:
        """Start another triggerer."""
        self.processes.append(self._start("triggerer"))

    def stop(self) -> None:
        """End everything."""
        self.api.close()
        for kind in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, kind)
            time.sleep(2)
        for process in self.processes:
            process.wait()

    def get(self, path: str) -> Any:
        """Ask Airflow's API; None if it does not answer."""
        try:
            answer = self.api.get(path)
        except httpx.TransportError:
            return None
        return answer.json() if answer.is_success else None

    def runs(self, dag: str) -> list[dict[str, Any]]:
        """A DAG's runs."""
        found = self.get(f"/dags/{dag}/dagRuns") or {"dag_runs": []}
        return list(found["dag_runs"])

    def filed(self) -> list[int]:
        """The messages that the runs have filed."""
        found = []
        for run in self.runs(DAG):
            path = f"/dags/{DAG}/dagRuns/{run['dag_run_id']}/taskInstances"
            states = {ti["task_id"]: ti["state"] for ti in self.get(path)["task_instances"]}
            if states["move_to_processed"] == "success":
                xcom = self.get(f"{path}/arrived/xcomEntries/return_value?deserialize=true")
                found += xcom["value"]
        return found


def triggerers(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    """The processes of the triggerers in the sessions of ours."""
    sessions = {process.pid for process in processes}
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            pid = int(path.name)
            command = (path / "cmdline").read_bytes()
            if os.getsid(pid) in sessions and b"triggerer" in command:
                found.append(pid)
    return found


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def mail() -> Iterator[Emulator]:
    """The mail server."""
    with Emulator(Mailbox()) as server:
        server.mailbox.add_folder(CROWDED, "tickets")
        yield server


@pytest.fixture
def airflow(mail: Emulator, tmp_path: Path) -> Iterator[Standalone]:
    """Airflow, with the example DAG, which looks every second, and twenty other watchers."""
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


def wait(standalone: Standalone, what: str, condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 180  # where nothing else runs, it is ready in 30 s
    while not condition():
        if time.monotonic() > end:
            lines = standalone.log.read_text(errors="replace").splitlines()
            pytest.fail(f"not in time: {what}\n" + "\n".join(lines[-60:]))
        time.sleep(0.2)


def listings(server: Emulator, folder: int) -> list[str]:
    """The subjects that were searched for in a folder."""
    return [
        request["json"]["SearchContext"]["Subject"]
        for request in list(server.requests)
        if request["path"].endswith("/Messages") and request["json"]["folderId"] == folder
    ]


def order(server: Emulator, number: int) -> int:
    """Let an order arrive."""
    data = f"sku,quantity\n00{number},{number}\n".encode()
    return server.mailbox.deliver(
        subject=f"Заказ {number}", attachments=[("order.csv", data, "text/csv")]
    )


def test_mail_starts_a_dag(airflow: Standalone, mail: Emulator) -> None:
    """Mail arrives, a DAG runs, once for each message, even if the triggerer is killed meanwhile.

    What was there before starts nothing. Twenty watchers of another folder share one poll.
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

    # Twenty watchers: while nothing comes, one listing a second, of all mail.
    wait(airflow, "twenty watchers", lambda: len(set(listings(mail, CROWDED))) == 21)
    time.sleep(3)
    before = len(listings(mail, CROWDED))
    time.sleep(6)
    idle = listings(mail, CROWDED)[before:]
    ticket = mail.mailbox.deliver(folder=CROWDED, subject="Ticket 07")
    wait(airflow, "the ticket's run", lambda: airflow.runs("tickets"))
    # An event whose storing the watcher has not heard of yet is told again by the next triggerer.
    time.sleep(5)

    # The triggerer is killed just when it has seen an order; another comes while there is none.
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
