"""The emulator as a server, its control plane, its mailbox in Python, and its command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from airflow_provider_r7mail.emulator import (
    Emulator,
    Fault,
    Mailbox,
    MailMessage,
    Readings,
    Refused,
    create_app,
)
from tests.emulator.calls import LOGIN, MAIL, Api, letter, listing, minutes, sample

# The server


def test_calls_are_recorded(server: Emulator, api: Api) -> None:
    """Each call is recorded with its path, query, JSON and status."""
    api.page(size=7)
    api.file(1, "a b")
    listed, file = server.requests[-2:]

    assert (listed["method"], listed["path"]) == ("POST", f"{MAIL}/Messages")
    assert listed["json"]["size"] == 7
    assert (listed["status"], file["status"], file["json"]) == (200, 406, None)
    assert file["query"] == "folderId=24&Id=1&FileName=a+b"
    assert abs(listed["time"] - time.time()) < 60


def test_it_starts_and_stops_many_times(caplog: pytest.LogCaptureFixture) -> None:
    """Emulators start and stop in one process, even during calls, and leave nothing behind."""
    before = set(threading.enumerate())
    for _ in range(5):
        server = Emulator(Mailbox())
        server.start()
        server.faults.append(Fault(kind="hang"))
        failed: list[Exception] = []

        def call(url: str = server.url, failed: list[Exception] = failed) -> None:
            try:
                httpx.post(url + LOGIN, json={}, timeout=5, verify=False)
            except httpx.HTTPError as error:
                failed.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        while not server.requests:
            time.sleep(0.01)
        server.stop()
        caller.join(5)
        assert len(failed) == 1
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url, verify=False)

    assert set(threading.enumerate()) <= before
    assert caplog.records == []


def test_a_taken_port_is_an_error() -> None:
    """Starting an emulator on a port in use raises OSError."""
    with Emulator(Mailbox()) as server, pytest.raises(OSError, match="in use"):
        Emulator(Mailbox(), port=server.port).start()


def test_the_connection_is_airflows(server: Emulator) -> None:
    """The emulator returns the Airflow connection to itself."""
    connection = json.loads(server.connection(timeout=5))

    assert connection == {
        "conn_type": "r7mail",
        "host": "127.0.0.1",
        "port": server.port,
        "schema": "http",
        "login": "user_test",
        "password": "TestPassword",
        "extra": {
            "folders": {"inbox": 24, "sent": 25, "drafts": 26, "trash": 27, "processed": 15},
            "web_url": f"{server.url}/folders/{{folder}}",
            "timeout": 5,
        },
    }


async def test_it_works_without_a_socket(mailbox: Mailbox) -> None:
    """The emulator works over httpx's ASGI transport; broken connections are exceptions."""
    app = create_app(mailbox)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://r7.test") as http:
        answer = await http.post(LOGIN, json=sample("login.request.json"))
        assert answer.json()["Response"]["Data"]["State"] == "Login"

        app.state.service.faults.append(Fault(kind="reset"))
        with pytest.raises(ConnectionResetError):
            await http.post(LOGIN, json=sample("login.request.json"))


async def test_calls_run_at_the_same_time(server: Emulator, api: Api) -> None:
    """Slow calls don't wait for each other."""
    server.readings = Readings(latency_seconds=0.5)
    begun = time.monotonic()
    headers = {"Authorization": api.http.headers["Authorization"]}
    async with httpx.AsyncClient(base_url=server.url, headers=headers) as http:
        calls = [http.post(f"{MAIL}/Messages", json=listing()) for _ in range(8)]
        answers = await asyncio.gather(*calls)

    assert {answer.status_code for answer in answers} == {200}
    assert time.monotonic() - begun < 8 * 0.5


@pytest.mark.slow
def test_mail_changes_in_another_thread(mailbox: Mailbox, api: Api) -> None:
    """Listings are complete while another thread delivers and moves mail."""
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            number = mailbox.deliver(date="2025-06-01T10:00:30Z")
            mailbox.move(24, [number], 15)
            mailbox.delete(15, [number])

    ids = minutes(mailbox, 0, 1)
    thread = threading.Thread(target=churn)
    thread.start()
    try:
        pages = [api.ids() for _ in range(50)]
    finally:
        stop.set()
        thread.join()

    assert all(set(ids) <= set(page) for page in pages)


# The control plane


def test_another_process_controls_it(mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """Other programs can do under /_emulator/ what tests do in Python."""
    http = api.http
    eml = "Subject: =?utf-8?b?0J/RgNC40LLQtdGC?=\nFrom: a@b.ru\n\nтекст".encode()
    number = http.post("/_emulator/messages?folder=24", content=eml).json()["Id"]
    assert mailbox.get(number)["Subject"] == "Привет"
    assert [item["Id"] for item in http.get("/_emulator/messages?folder=24").json()] == [number]

    assert http.put("/_emulator/readings", json={"page_cap": 3}).json()["page_cap"] == 3
    assert server.readings == Readings(page_cap=3)
    assert http.put("/_emulator/readings", json={"page_caps": 3}).status_code == 400
    assert http.put("/_emulator/readings", json={"missing_fields": ["Cc"]}).status_code == 200

    assert http.post("/_emulator/faults", json={"status": 503}).json() == {"faults": 1}
    assert http.post("/_emulator/faults", json={"kind": "?"}).status_code == 400
    assert api.post("Messages", listing()).status_code == 503
    http.post("/_emulator/faults", json={"times": None})
    assert http.delete("/_emulator/faults").json() == {"faults": 0}

    api.post("Send", letter())
    state = http.get("/_emulator/state").json()
    assert (state["logins"], state["requests"], state["sent"]) == (1, 3, 1)
    assert {"id": 24, "name": "inbox", "count": 1, "unread": 1} in state["folders"]
    assert http.get("/_emulator/requests").json()[-1]["path"] == f"{MAIL}/Send"

    assert http.post("/_emulator/reset").json()["requests"] == 0
    assert server.readings == Readings()
    assert api.post("Messages", listing()).status_code == 401
    assert "An emulator" in http.get("/").text


def test_a_reset_brings_back_the_mail(tmp_path: Path) -> None:
    """A reset restores mail that the emulator loaded itself."""
    (tmp_path / "a.eml").write_text("Subject: a\n\n")
    with Emulator(tmp_path) as server:
        server.mailbox.delete(24, [item["Id"] for item in server.mailbox.messages(24)])
        state = httpx.post(f"{server.url}/_emulator/reset").json()

        assert state["folders"][0]["count"] == 1
        assert len(server.mailbox.messages(24)) == 1


# The mailbox in Python


def test_a_message_of_ones_own(mailbox: Mailbox) -> None:
    """A test can set any field to any value, and unknown folders are created."""
    message = MailMessage(subject="s", date=datetime(2025, 6, 1, 13, tzinfo=UTC))
    number = mailbox.deliver_message(message, 99)

    assert 99 in mailbox.folders
    assert mailbox.get(number)["Date"] == "2025-06-01T13:00:00Z"
    with pytest.raises(Refused):
        mailbox.deliver(fields={"Id": number})
    with pytest.raises(Refused):
        mailbox.messages(4711)


def test_mail_in_any_number() -> None:
    """Generated benchmark mail looks like other mail, and can be searched and changed."""
    mailbox = Mailbox.synthetic(1_000, ties=10, attachment_every=100, attachment_bytes=50)
    first = mailbox.messages(24)[0]
    other = mailbox.get(mailbox.deliver())

    assert list(first) == list(other)
    dates = [item["Date"] for item in mailbox.messages(24)[:1_000]]
    assert len(set(dates)) == 100
    assert dates == sorted(dates)
    name = first["Attachments"][0]["FileName"]
    assert len(mailbox.attachment(24, first["Id"], name)) == 50
    assert 1_000 <= sum(len(first[field].encode()) for field in ("Body", "HtmlBody")) <= 8_000
    with Emulator(mailbox) as running, Api(running) as client:
        client.log_in()
        second = client.ids(Subject=mailbox.messages(24)[1]["Subject"])
        assert len(second) == 1
        client.post("MarkAsRead", {"folderId": 24, "Ids": second, "WasRead": True})
        client.post("MoveMessage", {"fromId": 24, "Ids": second, "toId": 15})
    assert [(item["WasRead"], item["FolderId"]) for item in mailbox.messages(15)] == [(True, 15)]


def test_generated_mail_is_the_same_each_time() -> None:
    """The same arguments give the same generated mail."""
    one, other = (Mailbox.synthetic(200, seed=3) for _ in range(2))

    assert one.messages(24) == other.messages(24)
    assert one.messages(24) != Mailbox.synthetic(200, seed=4).messages(24)


# The command


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_told_to_stop(number: int, tmp_path: Path) -> None:
    """`r7mail emulator` prints how to reach it, serves, and stops cleanly on a signal."""
    (tmp_path / "a.eml").write_text("Subject: a\n\n")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [str(Path(sys.executable).with_name("r7mail")), "emulator", "--port", "0"]
    with subprocess.Popen(
        [*command, "--mail", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline() for _ in range(5)]
        url = lines[0].split()[-1]
        state = httpx.get(f"{url}/_emulator/state").json()
        process.send_signal(number)
        process.wait(10)
        rest = process.stdout.read()

        assert state["folders"][0]["count"] == 1
        assert process.returncode == 0
        assert "in a browser" in lines[1]
        assert "AIRFLOW_CONN_R7MAIL_DEFAULT='{" in rest
        assert process.stderr.read() == ""


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    """A port in use and a path without mail are reported in one line, with exit code 1."""
    from typer.testing import CliRunner  # noqa: PLC0415

    from airflow_provider_r7mail.cli import app  # noqa: PLC0415

    (tmp_path / "a.eml").write_text("Subject: a\n\n")
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        in_use = CliRunner().invoke(app, ["emulator", "--port", port, "--mail", str(tmp_path)])
    nowhere = CliRunner().invoke(app, ["emulator", "--port", "0", "--mail", str(tmp_path / "no")])

    assert (in_use.exit_code, in_use.stderr.count("\n")) == (1, 1)
    assert "in use" in in_use.stderr
    assert (nowhere.exit_code, nowhere.stderr.count("\n")) == (1, 1)
    assert "no such file" in nowhere.stderr


def test_importing_it_is_light() -> None:
    """Importing the package does not import the web server."""
    code = (
        "import sys, airflow_provider_r7mail.emulator as e; e.Mailbox; e.Readings; "
        "print([m for m in ('starlette', 'uvicorn', 'openpyxl', 'fpdf', 'airflow') "
        "if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert found.strip() == "[]"


def test_it_imports_nothing_of_the_clients() -> None:
    """The emulator shares no code with the client, so that they can't share a mistake."""
    package = Path(__file__).parents[2] / "airflow_provider_r7mail" / "emulator"
    lines = [
        line
        for file in package.glob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if "airflow_provider_r7mail" in line and "import" in line.split()
    ]
    assert lines
    assert all("airflow_provider_r7mail.emulator" in line for line in lines)
