"""`airflow standalone` beside the emulator, for tests and pictures of what people see of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_provider_r7mail.emulator import Emulator
from tests.wire import free_port

SOURCE = Path(__file__).parents[2] / "dags" / "mail_starts_dag.py"
DAG = "mail_starts_dag"


class Standalone:
    """`airflow standalone` in a folder of its own, with its output in a file there.

    :param server: the mail server that the connection `r7mail_default` leads to
    :param connections: more Airflow connections, by their ids in capitals
    """

    def __init__(
        self, home: Path, server: Emulator, connections: Mapping[str, str] | None = None
    ) -> None:
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
            # A dead triggerer is noticed, and its triggers reassigned, within seconds.
            "TRIGGERER__JOB_HEARTBEAT_SEC": 1,
            "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": 6,
        }
        self.env = {
            **{name: value for name, value in os.environ.items() if "AIRFLOW" not in name},
            **{f"AIRFLOW__{name}": str(value) for name, value in values.items()},
            "AIRFLOW_HOME": str(home),
            "AIRFLOW_CONN_R7MAIL_DEFAULT": server.connection(),
            **{f"AIRFLOW_CONN_{name}": value for name, value in (connections or {}).items()},
            "AIRFLOW_VAR_R7MAIL_LAKE": (home / "lake").as_uri(),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONWARNINGS": "ignore",
            "XDG_STATE_HOME": str(home / "state"),
        }
        self.processes = [self._start("standalone")]

    def _start(self, command: str) -> subprocess.Popen[bytes]:
        # Standalone's parts outlive it: in a session of their own, all can be ended at once.
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
        """Stop all processes."""
        self.api.close()
        for kind in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, kind)
            time.sleep(2)
        for process in self.processes:
            process.wait()

    def get(self, path: str) -> Any:
        """Call Airflow's API; None if it doesn't answer."""
        try:
            answer = self.api.get(path)
        except httpx.TransportError:
            return None
        return answer.json() if answer.is_success else None

    def runs(self, dag: str) -> list[dict[str, Any]]:
        """Return the runs of a DAG."""
        found = self.get(f"/dags/{dag}/dagRuns") or {"dag_runs": []}
        return list(found["dag_runs"])

    def filed(self) -> list[int]:
        """Return the messages that the runs have filed."""
        found = []
        for run in self.runs(DAG):
            path = f"/dags/{DAG}/dagRuns/{run['dag_run_id']}/taskInstances"
            states = {ti["task_id"]: ti["state"] for ti in self.get(path)["task_instances"]}
            if states["move_to_processed"] == "success":
                xcom = self.get(f"{path}/arrived/xcomEntries/return_value?deserialize=true")
                found += xcom["value"]
        return found


def triggerers(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    """Return the process ids of the triggerers in our sessions."""
    sessions = {process.pid for process in processes}
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            pid = int(path.name)
            command = (path / "cmdline").read_bytes()
            if os.getsid(pid) in sessions and b"triggerer" in command:
                found.append(pid)
    return found


def wait(standalone: Standalone, what: str, condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    end = time.monotonic() + 180  # on an idle machine it is ready in 30 s
    while not condition():
        if time.monotonic() > end:
            lines = standalone.log.read_text(errors="replace").splitlines()
            pytest.fail(f"not in time: {what}\n" + "\n".join(lines[-60:]))
        time.sleep(0.2)


def listings(server: Emulator, folder: int) -> list[str]:
    """Return the subjects that were searched for in a folder."""
    return [request["json"]["SearchContext"]["Subject"] for request in _requests(server, folder)]


def pauses(server: Emulator, folder: int, seen: int = 0) -> int:
    """Return how often a watcher has paused for a second after a poll of a folder.

    :param seen: how many listings to leave out
    """
    times = [request["time"] for request in _requests(server, folder)[seen:]]
    return sum(later - earlier > 0.9 for earlier, later in pairwise(times))


def _requests(server: Emulator, folder: int) -> list[dict[str, Any]]:
    return [
        request
        for request in list(server.requests)
        if request["path"].endswith("/Messages") and request["json"]["folderId"] == folder
    ]


def order(server: Emulator, number: int) -> int:
    """Let an order arrive."""
    data = f"sku,quantity\n00{number},{number}\n".encode()
    return server.mailbox.deliver(
        subject=f"Заказ {number}", attachments=[("order.csv", data, "text/csv")]
    )
