"""What runs all day: polls, hourly windows, messages with a file, looks at earlier windows, audits.

Each returns what to measure, and that returns a number: polls, messages, or requests.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

LOGIN = {"Login": "user_test", "Password": "TestPassword"}
CREDENTIALS = {"login": LOGIN["Login"], "password": LOGIN["Password"]}
FIRST = datetime(2025, 1, 1, tzinfo=UTC)
POLLS = 100
MESSAGES = 50
FILE_BYTES = 50_000


def _connect(url: str, conn_type: str, name: str, **login: str) -> None:
    """Tell Airflow of the server, as a deployment does."""
    at = urlsplit(url)
    os.environ[f"AIRFLOW_CONN_{name}"] = json.dumps(
        {
            "conn_type": conn_type,
            "schema": "http",
            "host": at.hostname,
            "port": at.port,
            **login,
        }
    )


def poll(url: str, output: Path, _: dict[str, Any]) -> Callable[[], int]:
    """Wait in poke mode, in one session, for more messages than there are."""
    sensor = _sensor(url)
    return lambda: len(sensor.execute({}))


def poll_anew(url: str, output: Path, _: dict[str, Any]) -> Callable[[], int]:
    """Poke in a new session each time, as a sensor in reschedule mode does."""
    sensor = _sensor(url)
    return lambda: len([sensor.poke({}) for _ in range(POLLS)])


def _sensor(url: str) -> Any:
    _connect(url, "r7mail", "R7MAIL_DEFAULT", **CREDENTIALS)
    from airflow_provider_r7mail.sensors import R7MailMessageSensor

    class Counting(R7MailMessageSensor):
        """Finds enough at the last poll only."""

        polls = 0

        def poke(self, context: Any) -> Any:
            self.polls += 1
            found = super().poke(context)
            found.is_done, found.xcom_value = self.polls == POLLS, list(range(self.polls))
            return found

    return Counting(
        task_id="mail",
        folder=24,
        start=FIRST,
        end=FIRST + timedelta(days=1),
        min_messages=10_000,
        poke_interval=0,
    )


def poll_http(url: str, output: Path, _: dict[str, Any]) -> Callable[[], int]:
    """Poke Airflow's HttpSensor, with a token that somebody else keeps fresh."""
    _connect(url, "http", "HTTP_DEFAULT")
    from airflow.providers.http.sensors.http import HttpSensor

    sensor = HttpSensor(
        task_id="mail",
        request_params=_question(FIRST + timedelta(days=1)),  # type: ignore[arg-type]
        response_check=lambda response: len(response.json()["Items"]) >= 10_000,
        **_messages_call(url),
    )
    return lambda: sum(not sensor.poke({}) for _ in range(POLLS))


def _question(end: datetime) -> str:
    """The body of a hand-written request for the first messages."""
    return json.dumps(
        {
            "folderId": 24,
            "SearchContext": {"StartDate": FIRST.isoformat(), "EndDate": end.isoformat()},
            "offset": 0,
            "size": 200,
            "sortOrder": 1,
            "orderField": "Date",
        }
    )


def _messages_call(url: str) -> dict[str, Any]:
    """What Airflow's HTTP operators need to call Messages, with a token."""
    import httpx

    login = httpx.post(f"{url}/api/v2/auth/Login", json=LOGIN).json()
    return {
        "endpoint": "/api/v1/email/Messages",
        "method": "POST",
        "headers": {
            "Authorization": login["Response"]["Data"]["Tokens"]["AuthToken"],
            "Content-Type": "application/json",
        },
    }


def hour(url: str, output: Path, _: dict[str, Any]) -> Callable[[], int]:
    """Execute this package's operator for an hourly window, as the first task of a process."""
    _connect(url, "r7mail", "R7MAIL_DEFAULT", **CREDENTIALS)
    from airflow_provider_r7mail.transfers import R7MailToParquetOperator

    operator = R7MailToParquetOperator(
        task_id="mail",
        folder=24,
        start=FIRST,
        end=FIRST + timedelta(hours=1),
        output_path=str(output),
        recheck_hours=0,
    )
    return lambda: int(operator.execute({})["messages"])


def hour_http(url: str, output: Path, _: dict[str, Any]) -> Callable[[], int]:
    """Execute Airflow's HttpOperator for the same, and write what it returns with pandas."""
    _connect(url, "http", "HTTP_DEFAULT")
    from airflow.providers.http.operators.http import HttpOperator

    operator = HttpOperator(
        task_id="mail",
        data=_question(FIRST + timedelta(hours=1)),
        response_filter=lambda response: response.json()["Items"],
        **_messages_call(url),
    )

    def run() -> int:
        import pandas as pd

        rows = operator.execute({})
        pd.DataFrame(rows).to_parquet(output / "messages.parquet")
        return len(rows)

    return run


def hour_command(url: str, output: Path, _: dict[str, Any]) -> Callable[[], int]:
    """Run `r7mail extract` for an hourly window, from the start of its process to the end."""
    command = [
        str(Path(sys.executable).parent / "r7mail"),
        "extract",
        f"--url={url}",
        f"--login={CREDENTIALS['login']}",
        "--folder=24",
        f"--start={FIRST.isoformat()}",
        f"--end={(FIRST + timedelta(hours=1)).isoformat()}",
        f"--output={output}",
    ]
    env = {**os.environ, "R7MAIL_PASSWORD": CREDENTIALS["password"]}

    def run() -> int:
        subprocess.run(command, check=True, env=env, capture_output=True)
        return 1

    return run


def send(url: str, output: Path, _: dict[str, Any]) -> Callable[[], int]:
    """Send messages with this package's hook, each with a file of its own."""
    _connect(url, "r7mail", "R7MAIL_DEFAULT", **CREDENTIALS)
    from airflow_provider_r7mail.hooks import R7MailHook

    hook = R7MailHook()
    files = _reports(output)

    def run() -> int:
        for file in files:
            hook.send_message(
                to="user_test@example.com",
                subject="Report",
                html_content="<p>Report</p>",
                files=[str(file)],
            )
        return len(files)

    return run


def send_httpx(url: str, output: Path, _: dict[str, Any]) -> Callable[[], int]:
    """Send the same with a hand-written loop: upload, look up the file's ids, send."""
    import httpx

    files = _reports(output)

    def run() -> int:
        with httpx.Client(base_url=url, timeout=60) as client:
            answer = client.post("/api/v2/auth/Login", json=LOGIN).json()
            client.headers["Authorization"] = answer["Response"]["Data"]["Tokens"]["AuthToken"]
            root = client.get("/api/v1/DocumentDirectory/Get").json()[0]["Id"]
            for file in files:
                with file.open("rb") as opened:
                    number = client.post(
                        "/api/v1/Documents/Upload",
                        files={"file": (file.name, opened, "text/csv")},
                        headers={"DirectoryId": str(root)},
                    ).json()
                listed = client.get("/api/v1/DocumentDirectory/Get", params={"id": root}).json()
                stored = next(item for item in listed[0]["Documents"] if item["Id"] == number)
                attached = {
                    "Id": number,
                    "FileId": stored["FileId"],
                    "FileName": file.name,
                    "Size": stored["Size"],
                    "MimeType": stored["MimeType"],
                }
                message = {
                    "Id": 0,
                    "To": ["user_test@example.com"],
                    "Cc": [],
                    "Bcc": [],
                    "Subject": "Report",
                    "Body": "Report",
                    "HtmlBody": "<p>Report</p>",
                    "Attachments": [attached],
                }
                client.post("/api/v1/email/Send", json=message).raise_for_status()
        return len(files)

    return run


def _reports(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"report-{number}.csv" for number in range(MESSAGES)]
    for number, file in enumerate(files):
        file.write_bytes(f"{number:>9}\n".encode() * (FILE_BYTES // 10))
    return files


def recheck(url: str, output: Path, options: dict[str, Any]) -> Callable[[], int]:
    """Run an hourly window as R7MailToParquetOperator does, and count the requests.

    :param options: `hours`: the horizon. All windows before are there, and nothing has changed
    """
    from airflow_provider_r7mail.client.session import AsyncClient
    from airflow_provider_r7mail.lake.job import stored_windows
    from airflow_provider_r7mail.lake.recheck import looks, recheck
    from airflow_provider_r7mail.lake.window import extract_window

    hours = options["hours"]
    config, job = _extracted(url, output, hours + 1)
    own = job.of(_hour(hours + 1))
    assert own.criteria.window.start is not None

    async def run() -> int:
        async with AsyncClient(config) as client:
            await extract_window(client, own)
            stored = stored_windows(own, config.login)
            for look in looks(own.criteria.window, stored, timedelta(hours=hours)):
                if await recheck(client, own, look) is not None and not look.last:
                    raise RuntimeError(f"{look.window.label()} was extracted again")
            return client.stats.requests

    return lambda: asyncio.run(run())


def audit(url: str, output: Path, options: dict[str, Any]) -> Callable[[], int]:
    """Compare hourly windows with the server, and count the requests.

    :param options: `windows`: how many; `deep`: whether to compare ids
    """
    from upath import UPath

    from airflow_provider_r7mail.client.session import AsyncClient
    from airflow_provider_r7mail.lake import audit as auditing

    config, _ = _extracted(url, output, options["windows"])
    job = auditing.AuditJob(
        folder=24,
        output=UPath(output),
        mailbox=config.login,
        open_path=UPath,
        end=_hour(options["windows"]).start,
        deep=options.get("deep", False),
    )

    async def run() -> int:
        async with AsyncClient(config) as client:
            report = await auditing.audit(client, job)
        if not report.in_order:
            raise RuntimeError("; ".join(map(str, report.findings)))
        return report.requests

    return lambda: asyncio.run(run())


def _hour(number: int) -> Any:
    from airflow_provider_r7mail.client.dates import Window

    start = FIRST + timedelta(hours=number)
    return Window(start, start + timedelta(hours=1))


def _extracted(url: str, output: Path, windows: int) -> Any:
    """Extract the first hourly windows; return the client's settings and a job."""
    from upath import UPath

    from airflow_provider_r7mail.client.http import ClientConfig
    from airflow_provider_r7mail.client.models import MessageFilter
    from airflow_provider_r7mail.client.session import AsyncClient
    from airflow_provider_r7mail.lake.job import ExtractJob
    from airflow_provider_r7mail.lake.window import extract_window

    config = ClientConfig(url=url, login=LOGIN["Login"], password=LOGIN["Password"])
    job = ExtractJob(folder=24, criteria=MessageFilter(window=_hour(0)), output=UPath(output))

    async def extract() -> None:
        async with AsyncClient(config) as client:
            for number in range(windows):
                window = _hour(number)
                await extract_window(client, replace(job, criteria=MessageFilter(window=window)))

    asyncio.run(extract())
    return config, job


ROUTINES = {
    function.__name__: function
    for function in (
        poll,
        poll_anew,
        poll_http,
        hour,
        hour_http,
        hour_command,
        send,
        send_httpx,
        recheck,
        audit,
    )
}
