"""Grow from one worker to two, and lose one: `make scale`.

Runs `dags/mail_backfill.py` with the CeleryExecutor against a mail server in a process of its own,
in three parts: with one worker, with two, and with two of which one is killed. Then compares all
tables with what the mail server has. Writes the figures into docs/scale.md.

Everything runs in a folder for the time being, on 127.0.0.1, on free ports, and ends with it.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import httpx
import psutil

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "scale.md"
DAG = "mail_backfill"
START = date(2025, 1, 1)
READY_SECONDS = 300  # where nothing else runs, it takes 30


@dataclass
class Part:
    """What a part of the extract took."""

    what: str
    messages: int
    tasks: int
    tries: int
    seconds: float
    requests: int
    logins: int

    def row(self) -> str:
        """The part as a row of the page's table."""
        return (
            f"| {self.what} | {self.messages:,} | {self.tasks} | {self.tries} | "
            f"{self.seconds:,.0f} | {self.messages / self.seconds:,.0f} | {self.requests:,} | "
            f"{self.logins} |"
        )


class Cluster:
    """PostgreSQL, Redis, and Airflow's processes; what each prints is in `logs`.

    Use it as a context: what it has started ends with it.
    """

    def __init__(self, home: Path, connection: str, *, at_once: int) -> None:
        self.home = home
        self.at_once = at_once
        self.logs = home / "logs"
        self.lake = home / "lake"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._secret = secrets.token_urlsafe(24)
        self._ports = {name: free_port() for name in ("api", "postgres", "redis")}
        self.api = httpx.Client(
            base_url=f"http://127.0.0.1:{self._ports['api']}/api/v2", timeout=60, trust_env=False
        )
        database = (
            f"postgresql+psycopg2://airflow:{self._secret}@127.0.0.1:{self._ports['postgres']}"
            "/postgres"
        )
        api = f"http://127.0.0.1:{self._ports['api']}"
        values = {
            "API__BASE_URL": api,
            "API__HOST": "127.0.0.1",
            "API__MAXIMUM_PAGE_LIMIT": 1000,  # all tasks of a run in one answer
            "API__PORT": self._ports["api"],
            "API__WORKERS": 1,
            "API_AUTH__JWT_SECRET": self._secret,
            "CELERY__BROKER_URL": f"redis://:{self._secret}@127.0.0.1:{self._ports['redis']}/0",
            "CELERY__OPERATION_TIMEOUT": 20,  # seconds to hand a task over, on a crowded machine
            "CELERY__RESULT_BACKEND": f"db+{database}",
            "CORE__DAGS_FOLDER": home / "dags",
            "CORE__DAGS_ARE_PAUSED_AT_CREATION": False,
            "CORE__EXECUTION_API_SERVER_URL": f"{api}/execution/",
            "CORE__EXECUTOR": "CeleryExecutor",
            "CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "CORE__LOAD_EXAMPLES": False,
            "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": True,
            "DATABASE__SQL_ALCHEMY_CONN": database,
            "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": 3600,
            # [START timeouts]
            # Seconds until the task of a dead worker is noticed (default 300).
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": 45,
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": 5,
            # The same for a task that it took from the queue but did not start (default 600).
            "SCHEDULER__TASK_QUEUED_TIMEOUT": 120,
            "SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": 10,
            # [END timeouts]
        }
        self.env = {
            **{name: value for name, value in os.environ.items() if "AIRFLOW" not in name},
            **{f"AIRFLOW__{name}": str(value) for name, value in values.items()},
            "AIRFLOW_HOME": str(home),
            "AIRFLOW_CONN_R7MAIL_DEFAULT": connection,
            "AIRFLOW_VAR_R7MAIL_LAKE": self.lake.as_uri(),
            "NO_PROXY": "*",
            "no_proxy": "*",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONWARNINGS": "ignore",
        }

    def __enter__(self) -> Cluster:
        try:
            self._start_all()
        except BaseException:
            self._stop_all()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_all()

    def _start_all(self) -> None:
        self.logs.mkdir()
        (self.home / "dags").mkdir()
        shutil.copy(ROOT / "dags" / f"{DAG}.py", self.home / "dags")
        self._start_postgres()
        # Read from its standard input: a password among the arguments is seen by everybody.
        self._start(
            "redis",
            "redis-server",
            "-",
            given=f"port {self._ports['redis']}\nbind 127.0.0.1\nsave ''\n"
            f"dir {self.home}\nrequirepass {self._secret}\n",
        )
        self._wait("redis", lambda: answers(self._ports["redis"]))
        self._airflow("db", "migrate")
        self._airflow("pools", "set", "r7mail", str(2 * self.at_once), "asks the mail server")
        for name in ("api-server", "scheduler", "dag-processor"):
            self._start(name, sys.executable, "-m", "airflow", name)
        self.start_worker("worker 1")
        self._wait("scheduler", self._is_healthy)

    def _start_postgres(self) -> None:
        # It refuses to run as root.
        user = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        binaries = max(Path("/usr/lib/postgresql").glob("*/bin"))
        data = self.home / "postgres"
        data.mkdir(mode=0o700)
        password = self.home / "password"
        password.write_text(self._secret, encoding="utf-8")
        self.home.chmod(0o711)
        if user:
            shutil.chown(data, **user)
            shutil.chown(password, **user)
        password.chmod(0o400)
        subprocess.run(
            [
                *(binaries / "initdb", "--pgdata", data, "--username", "airflow"),
                *("--pwfile", password, "--auth", "scram-sha-256", "--no-sync"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
            **user,  # type: ignore[call-overload]
        )
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self._ports["postgres"],
            "unix_socket_directories": "",
            "fsync": "off",  # it need not outlive the machine
        }
        self._start(
            "postgres",
            *(binaries / "postgres", "-D", data),
            *(part for item in settings.items() for part in ("-c", f"{item[0]}={item[1]}")),
            **user,
        )
        self._wait("postgres", lambda: answers(self._ports["postgres"]))

    def _start(self, name: str, *command: object, given: str = "", **user: str) -> None:
        # A session of its own: to end all that it starts, and so that Ctrl-C ends only us.
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                env=self.env,
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **user,  # type: ignore[call-overload]
            )
        self._running[name] = process
        assert process.stdin is not None
        process.stdin.write(given.encode())
        process.stdin.close()

    def _airflow(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"airflow {' '.join(arguments)}: {done.stderr[-2000:]}")

    def start_worker(self, name: str) -> None:
        """Start a Celery worker, and wait until it takes tasks."""
        host = name.replace(" ", "")
        self._start(
            name,
            *(sys.executable, "-m", "airflow", "celery", "worker", "--skip-serve-logs"),
            *("--celery-hostname", f"{host}@%h", "--concurrency", self.at_once),
            *("--pid", self.home / f"{host}.pid"),
        )
        log = self.logs / f"{name}.log"
        self._wait(name, lambda: " ready." in log.read_text(errors="replace"))

    def is_writing(self, name: str) -> bool:
        """Whether a worker is in the middle of a window: it has files open in the lake."""
        with suppress(psutil.Error):
            for process in psutil.Process(self._running[name].pid).children(recursive=True):
                with suppress(psutil.Error):
                    files = [Path(file.path) for file in process.open_files()]
                    if any(file.is_relative_to(self.lake) for file in files):
                        return True
        return False

    def kill(self, name: str, kind: int = signal.SIGKILL) -> None:
        """Kill a process and all that it has started."""
        process = self._running[name]
        family = []
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        for child in family:
            with suppress(psutil.NoSuchProcess):
                child.send_signal(kind)
        if kind == signal.SIGKILL:
            process.wait()

    def _stop_all(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave a half
        # The database last, and gently: the others complain when it goes.
        for name in reversed([name for name in self._running if name not in {"postgres", "redis"}]):
            self.kill(name)
        for name in ("redis", "postgres"):
            if name in self._running:
                self.kill(name, signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    self._running[name].wait(10)
                self.kill(name)
        self.api.close()

    def _wait(self, name: str, condition: Callable[[], object]) -> None:
        end = time.monotonic() + READY_SECONDS
        while not condition():
            if time.monotonic() > end or self._running[name].poll() is not None:
                lines = (self.logs / f"{name}.log").read_text(errors="replace").splitlines()
                raise RuntimeError(f"{name} does not start:\n" + "\n".join(lines[-30:]))
            time.sleep(0.3)

    def _is_healthy(self) -> bool:
        with suppress(httpx.TransportError):
            answer = self.api.get("/monitor/health")
            known = self.api.get(f"/dags/{DAG}")
            return (
                answer.is_success
                and answer.json()["scheduler"]["status"] == "healthy"
                and known.is_success
            )
        return False

    def backfill(
        self, start: date, end: date, watch: Callable[[list[dict[str, Any]]], None]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Run the DAG over some days, a window each.

        :param watch: told the task instances, every second
        :return: the DAG run and its task instances
        """
        body = {"logical_date": None, "conf": {"start": f"{start}", "end": f"{end}", "days": 1}}
        run = self._ask("POST", f"/dags/{DAG}/dagRuns", json=body)
        path = f"/dags/{DAG}/dagRuns/{run['dag_run_id']}"
        while True:
            run = self._ask("GET", path)
            tasks = self._ask("GET", f"{path}/taskInstances?limit=1000")["task_instances"]
            watch(tasks)
            if run["state"] in {"success", "failed"}:
                break
            time.sleep(1)
        states = {task["state"] for task in tasks}
        if states != {"success"}:
            raise RuntimeError(f"the run ended with tasks that are {', '.join(map(str, states))}")
        return run, tasks

    def _ask(self, method: str, path: str, **arguments: Any) -> Any:
        answer = self.api.request(method, path, **arguments)
        if answer.is_error:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:1000]}")
        return answer.json()


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def mail_server(**options: Any) -> Iterator[tuple[str, str]]:
    """The mail server in a process of its own; its URL, and the connection that leads to it."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "mail.py"), json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait()


class Progress:
    """A line that says how many tasks are done; and what is to happen after a third of them."""

    def __init__(self, what: str, after_a_third: Callable[[], bool] | None = None) -> None:
        self._what = what
        self._after_a_third = after_a_third
        self._said = time.monotonic()

    def __call__(self, tasks: list[dict[str, Any]]) -> None:
        """Take note of the task instances."""
        done = sum(task["state"] == "success" for task in tasks)
        # Before it is mapped, a task is a single one.
        if self._after_a_third and 3 * done > len(tasks) > 3 and self._after_a_third():
            self._after_a_third = None
        if time.monotonic() > self._said + 10:
            self._said = time.monotonic()
            print(f"  {self._what}: {done} of {len(tasks)} tasks", flush=True)


def query(sql: str) -> list[tuple[Any, ...]]:
    """Ask DuckDB."""
    found = duckdb.sql(sql)
    assert found is not None
    return found.fetchall()


def check(lake: Path, ids: Path) -> None:
    """Compare each table with what the server has; raise if one is not exactly that."""
    wrong = []
    for table, expected in (("messages", "1"), ("recipients", "1"), ("attachments", "files")):
        [found] = query(
            f"""
            WITH theirs AS (
                SELECT folder, id, {expected} AS times FROM '{ids}' WHERE {expected} > 0
            ), ours AS (
                SELECT folder, message_id AS id, count(*) AS times
                FROM read_parquet('{lake}/tables/{table}/**/*.parquet', hive_partitioning = true)
                GROUP BY ALL
            )
            SELECT
                count(*) FILTER (ours.times IS NULL),
                count(*) FILTER (theirs.times IS NULL),
                count(*) FILTER (ours.times > theirs.times),
                count(*) FILTER (ours.times < theirs.times),
                sum(ours.times)
            FROM theirs FULL JOIN ours USING (folder, id)
            """
        )
        *numbers, rows = found
        print(f"{table}: {rows:,} rows; missing, unknown, too often, too few: {numbers}")
        if any(numbers):
            wrong.append(table)
    if wrong:
        raise RuntimeError(f"not exactly what the server has: {', '.join(wrong)}")


def measure(options: argparse.Namespace, home: Path, stack: ExitStack) -> list[Part]:
    """Run the three parts, check the tables."""
    ids = home / "ids.csv"
    days = [START + timedelta(days=number) for number in range(options.days + 1)]
    print(f"Making a mailbox of {options.messages:,} messages over {options.days} days", flush=True)
    url, connection = stack.enter_context(
        mail_server(
            messages=options.messages,
            start=f"{days[0]}T00:00:00Z",
            end=f"{days[-1]}T00:00:00Z",
            latency=options.latency,
            ids=str(ids),
        )
    )
    print("Starting PostgreSQL, Redis and Airflow with one worker", flush=True)
    cluster = stack.enter_context(Cluster(home, connection, at_once=options.at_once))
    stack.push(
        lambda kind, *_: keep_logs(cluster.logs) if kind and issubclass(kind, Exception) else None
    )

    def asked() -> tuple[int, int]:
        state = httpx.get(f"{url}/_emulator/state", timeout=60, trust_env=False).json()
        return state["requests"], state["logins"]

    def run(what: str, start: date, end: date, after_a_third: Any = None) -> Part:
        print(f"{what}: {start} to {end}", flush=True)
        before = asked()
        done, tasks = cluster.backfill(start, end, Progress(what, after_a_third))
        requests, logins = (after - earlier for after, earlier in zip(asked(), before, strict=True))
        [(rows,)] = query(
            f"SELECT count(*) FROM '{cluster.lake}/tables/messages/**/*.parquet' "
            f"WHERE date >= TIMESTAMPTZ '{start} 00:00Z' AND date < TIMESTAMPTZ '{end} 00:00Z'"
        )
        seconds = (moment(done["end_date"]) - moment(done["start_date"])).total_seconds()
        extracts = [task for task in tasks if task["map_index"] >= 0]
        tries = sum(task["try_number"] for task in extracts)
        part = Part(what, rows, len(extracts), tries, seconds, requests, logins)
        print(part.row(), flush=True)
        return part

    def kill_while_writing() -> bool:
        for _ in range(20):  # a window takes a second or two: look often
            if cluster.is_writing("worker 2"):
                print("  killing worker 2 while it writes", flush=True)
                cluster.kill("worker 2")
                return True
            time.sleep(0.05)
        return False

    run("not counted, to warm up", days[0], days[1])
    quarter = options.days // 4
    parts = [run("one worker", days[1], days[quarter])]
    cluster.start_worker("worker 2")
    parts.append(run("two workers", days[quarter], days[2 * quarter]))
    parts.append(run("two, one killed", days[2 * quarter], days[-1], kill_while_writing))
    check(cluster.lake, ids)
    if parts[-1].tries == parts[-1].tasks:
        raise RuntimeError("no task was tried again: the worker was killed at the wrong moment")
    return parts


def moment(text: str) -> datetime:
    """A time as Airflow's API gives it."""
    return datetime.fromisoformat(text)


def keep_logs(logs: Path) -> None:
    """Keep what the processes printed, and say where."""
    kept = tempfile.mkdtemp(prefix="r7mail-scale-logs-")
    shutil.copytree(logs, kept, dirs_exist_ok=True)
    print(f"What the processes printed is in {kept}", flush=True)


def page(options: argparse.Namespace, parts: list[Part]) -> str:
    """The figures, as Markdown."""
    names = ("apache-airflow", "apache-airflow-providers-celery", "celery")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    rows = "\n".join(part.row() for part in parts)
    load = os.getloadavg()[2]
    return f"""Measured with `make scale` on {datetime.now(UTC):%Y-%m-%d}:
{options.messages:,} messages, {options.days} days of two folders, the first day as a warm-up.
Each worker runs {options.at_once} tasks at once; the server takes {options.latency * 1000:.0f} ms
per request. Everything runs on one machine with {os.cpu_count()} cores ({platform.machine()}, load
{load:.0f} over the last 15 minutes), Python {platform.python_version()}; {versions}.

| what | messages | tasks | tries | seconds | messages/s | requests | logins |
|---|---|---|---|---|---|---|---|
{rows}
"""


def main() -> None:
    """Measure, check, write the page, leave nothing behind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=500_000)
    parser.add_argument("--days", type=int, default=60, help="of mail, a window each; at least 8")
    parser.add_argument("--latency", type=float, default=0.1, help="seconds of an answer")
    parser.add_argument("--at-once", type=int, default=2, help="tasks of a worker")
    options = parser.parse_args()
    for kind in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, lambda *_: sys.exit("Stopped."))
    home = Path(tempfile.mkdtemp(prefix="r7mail-scale-"))
    try:
        with ExitStack() as stack:
            parts = measure(options, home, stack)
    except KeyboardInterrupt:
        sys.exit("Stopped.")
    finally:
        shutil.rmtree(home, ignore_errors=True)
    text = page(options, parts)
    PAGE.write_text(text, encoding="utf-8")
    print(f"{text}\nWritten to {PAGE}")


if __name__ == "__main__":
    main()
