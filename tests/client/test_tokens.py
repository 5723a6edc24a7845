"""Dead tokens, refusals and sessions: what the clients make of 401, 403 and 406."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_r7mail.client import account, answers, calls, tokens
from airflow_provider_r7mail.client.calls import Call
from airflow_provider_r7mail.client.check.trial import Trial
from airflow_provider_r7mail.client.http import ClientConfig
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.session import AsyncClient, Client
from airflow_provider_r7mail.emulator import Emulator, Fault, Mailbox, Readings
from airflow_provider_r7mail.exceptions import (
    R7MailAuthError,
    R7MailRequestError,
    R7MailSendUnclearError,
    R7MailServerError,
)
from tests.client.clients import INBOX, MARK, SEND, Kind, Session, opened

LIST: Call[Any] = calls.list_messages(
    INBOX, MessageFilter(), start=None, end=None, offset=0, size=9, parse=answers.parse_page
)
FILE = calls.download_attachment(INBOX, 1, "a.txt")
NO_FILE = calls.download_attachment(INBOX, 1, "b.txt")
DEAD = ["401", "403", "406"]


@pytest.fixture
def server() -> Iterator[Emulator]:
    """A mail server with message 1, which has a file, in its inbox."""
    mailbox = Mailbox()
    mailbox.deliver(fields={"Id": 1}, attachments=[("a.txt", b"data", "text/plain")])
    with Emulator(mailbox) as emulator:
        yield emulator


def count(server: Emulator, name: str) -> int:
    """Return how many calls of a name there were."""
    return sum(record["path"].endswith(f"/{name}") for record in server.requests)


# Dead tokens (R24)


@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("listed", [True, False])
async def test_a_dead_token_is_replaced(
    kind: Kind, server: Emulator, dead: Any, listed: bool
) -> None:
    """A token that dies costs one login, whether its death is told as 401, 403 or 406 (R24)."""
    server.readings = Readings(dead_token=dead)
    async with opened(kind, server) as session:
        await session.send(LIST if listed else MARK)
        server.expire_tokens()
        assert await session.send(MARK) is True
        server.expire_tokens()
        assert await session.download(FILE) == b"data"
        retries = session.client.stats.retries

    assert server.logins == 3
    assert retries == 0


@pytest.mark.slow
@pytest.mark.parametrize("dead", DEAD)
async def test_calls_that_meet_a_dead_token_share_a_login(
    kind: Kind, server: Emulator, dead: Any
) -> None:
    """Concurrent calls with a dead token log in once, and all go well (R24)."""
    server.readings = Readings(dead_token=dead, latency_seconds=0.05)
    async with opened(kind, server, max_concurrency=8) as session:
        await session.send(LIST)
        server.expire_tokens()
        await asyncio.gather(*(session.send(MARK) for _ in range(8)))

    assert server.logins == 2


@pytest.mark.parametrize("dead", DEAD)
async def test_a_dead_token_and_resets(kind: Kind, server: Emulator, dead: Any) -> None:
    """Connections that break while a token is replaced are retried as ever (R16, R24)."""
    server.readings = Readings(dead_token=dead)
    async with opened(kind, server) as session:
        await session.send(LIST)
        server.expire_tokens()
        for path in ("Login", "Messages", "MarkAsRead"):
            server.faults.append(Fault(path, kind="reset", skip=int(path == "MarkAsRead")))
        assert await session.send(MARK) is True

    assert count(server, "Login") == 3


# Refusals (R25)


@pytest.mark.parametrize("status", ["403", "406"])
@pytest.mark.parametrize("listed", [True, False])
async def test_refusals_are_no_reason_to_log_in(
    kind: Kind, server: Emulator, status: Any, listed: bool
) -> None:
    """What is not there is an error each time, and costs no more than one login in all (R25)."""
    server.readings = Readings(refusal=status)
    async with opened(kind, server) as session:
        await session.send(LIST if listed else MARK)
        failures = await asyncio.gather(
            *(session.send(NO_FILE) for _ in range(20)), return_exceptions=True
        )
        for _ in range(3):
            with pytest.raises(R7MailServerError, match="refused, or not there"):
                await session.download(NO_FILE)
        assert await session.download(FILE) == b"data"

    assert [type(failure) for failure in failures] == [R7MailServerError] * 20
    assert server.logins == (1 if listed else 2)
    assert count(server, "Attachments") <= 20 + 3 + 1 + (0 if listed else 20)


@pytest.mark.parametrize("status", ["403", "406"])
async def test_a_first_call_that_is_refused_is_no_reason_to_log_in(
    kind: Kind, server: Emulator, status: Any
) -> None:
    """If the first call with a new token is refused, for instance a folder, that's it (R25)."""
    server.readings = Readings(refusal=status, dead_token=status)
    async with opened(kind, server) as session:
        with pytest.raises(R7MailServerError, match="refused, or not there"):
            await session.send(calls.mark_as_read(4711, [1], read=True))

    assert server.logins == 1


@pytest.mark.slow
@pytest.mark.parametrize("status", ["403", "406"])
async def test_refusals_and_dead_tokens_are_told_apart(
    kind: Kind, server: Emulator, status: Any
) -> None:
    """Among refusals with the same status, a token dies again and again: nothing is lost (R25)."""
    server.readings = Readings(refusal=status, dead_token=status, token_calls=7)
    async with opened(kind, server) as session:
        await session.send(LIST)
        for _ in range(15):
            assert await session.download(FILE) == b"data"
            with pytest.raises(R7MailServerError, match="refused, or not there"):
                await session.download(NO_FILE)


async def test_a_send_that_is_refused_is_not_repeated(kind: Kind, server: Emulator) -> None:
    """Whatever a 406 to Send means, the message isn't sent again by itself (R23, R24)."""
    server.readings = Readings(dead_token="406")
    async with opened(kind, server) as session:
        await session.send(LIST)
        server.expire_tokens()
        with pytest.raises(R7MailServerError, match="refused, or not there") as caught:
            await session.send(SEND)
        assert not isinstance(caught.value, R7MailSendUnclearError)
        await session.send(LIST)  # which logs in
        await session.send(SEND)

    assert len(server.mailbox.sent) == 1
    assert server.logins == 2


@pytest.mark.parametrize("names", ["documented", "camel"])
async def test_what_the_server_says_is_in_the_debug_log(
    kind: Kind, server: Emulator, names: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal's `ErrorMessage` may hold names: it is in the DEBUG log only (R25, R42)."""
    caplog.set_level(logging.DEBUG)
    server.readings = Readings(names=names)
    async with opened(kind, server) as session:
        await session.send(LIST)
        for ask in (session.send, session.download):
            caplog.clear()
            with pytest.raises(R7MailServerError) as caught:
                await ask(NO_FILE)

            said = [record for record in caplog.records if "has no file 'b.txt'" in record.message]
            assert [record.levelname for record in said] == ["DEBUG"]
            assert "b.txt" not in str(caught.value)


# Sessions that end each other (R36)


async def work(session: Session, rounds: int) -> None:
    """Read, mark and download again and again."""
    for _ in range(rounds):
        if isinstance(session.client, AsyncClient):
            await asyncio.gather(session.send(LIST), session.send(MARK), session.download(FILE))
        else:  # which is for one thread
            await session.send(LIST)
            await session.send(MARK)
            await session.download(FILE)


@pytest.mark.slow
@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("tasks", [2, 4])
async def test_tasks_that_end_each_others_sessions_finish(
    kind: Kind, server: Emulator, dead: Any, tasks: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Tasks of one account finish although each login ends the others' sessions (R36)."""
    server.readings = Readings(one_session=True, dead_token=dead, latency_seconds=0.01)

    async def task() -> None:
        async with opened(kind, server, backoff=0.05) as session:
            await work(session, 8)

    await asyncio.gather(*(task() for _ in range(tasks)))

    assert server.logins < 15 * tasks
    assert "may end a session when the account logs in again (R36)" in caplog.text


@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.slow
async def test_tasks_on_two_hosts_finish(
    kind: Kind, server: Emulator, dead: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Tasks that can't know of each other finish, too, if they end each other's sessions (R36)."""
    server.readings = Readings(one_session=True, dead_token=dead, latency_seconds=0.01)

    async def task(url: str) -> None:
        async with opened(kind, url, backoff=0.05) as session:
            await work(session, 8)

    # What is known of an account is filed under the server's URL.
    await asyncio.gather(task(server.url), task(server.url.replace("127.0.0.1", "localhost")))

    assert server.logins < 40
    assert "Perhaps the account has logged in on another host" in caplog.text


@pytest.mark.parametrize("dead", DEAD)
async def test_a_session_that_is_ended_before_its_first_listing(
    kind: Kind, server: Emulator, dead: str
) -> None:
    """A first listing that is refused may meet a session that was ended: it is repeated (R36)."""
    server.faults.append(Fault("Messages", status=int(dead), times=2))
    async with opened(kind, server) as session:
        await session.send(LIST)

    assert server.logins == 3


@pytest.mark.slow
async def test_messages_of_sessions_that_end_each_other_are_sent_once(
    kind: Kind, server: Emulator
) -> None:
    """Each message is sent once although the account's sessions end each other (R23, R36)."""
    server.readings = Readings(one_session=True, latency_seconds=0.01)

    async def task(number: int) -> None:
        async with opened(kind, server, backoff=0.05) as session:
            for turn in range(5):
                await session.send(LIST)
                letter = calls.send_message(
                    subject=f"{number}.{turn}", text="t", html="h", to="a@example.org"
                )
                await session.send(letter)

    await asyncio.gather(task(1), task(2))

    subjects = sorted(sent["Subject"] for sent in server.mailbox.sent)
    assert subjects == [f"{number}.{turn}" for number in (1, 2) for turn in range(5)]


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403, 406])
async def test_a_session_that_is_always_ended_is_given_up(
    kind: Kind, server: Emulator, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If nothing is served any more, however often it logs in, the task fails in the end (R36)."""
    monkeypatch.setattr(tokens, "LOST_SECONDS", 1.0)
    async with opened(kind, server, backoff=0.05) as session:
        await session.send(LIST)
        server.faults.append(Fault("Messages", status=status, times=None))
        began = time.monotonic()
        with pytest.raises(R7MailRequestError) as caught:
            await session.send(LIST)

    assert caught.value.status == status
    assert time.monotonic() - began < 10
    assert server.logins < 12


async def test_waiting_for_a_session_can_be_stopped(server: Emulator) -> None:
    """A task that waits to log in again stops at once when it is cancelled (R36)."""
    async with opened("async", server, backoff=20.0) as session:
        await session.send(LIST)
        server.faults.append(Fault("Messages", status=401, times=None))
        waiting = asyncio.create_task(session.send(LIST))
        await asyncio.sleep(0.5)
        began = time.monotonic()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    assert time.monotonic() - began < 1


# Wrong passwords (R14)


def config_of(server: Emulator, **options: Any) -> ClientConfig:
    """Return how to reach a server."""
    given = {"login": "user_test", "password": "wrong", "max_retries": 1, "backoff": 0.01}
    return ClientConfig(url=server.url, **{**given, **options})


def ask(config: ClientConfig) -> str:
    """Make a call in a session of its own; return the error, empty for none."""
    try:
        with Client(config) as client:
            client.send(MARK)
    except R7MailAuthError as error:
        return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("refusal", ["401", "500", "null_response", "no_token", "state"])
def test_a_wrong_password_in_many_tasks_is_tried_once(server: Emulator, refusal: Any) -> None:
    """A wrong password in many mapped tasks doesn't lock the account: it is tried once (R14)."""
    server.readings = Readings(login_refusal=refusal, lock_after=3, latency_seconds=0.02)
    config = config_of(server)
    with ThreadPoolExecutor(20) as pool:
        errors = list(pool.map(ask, [config] * 40))

    told = [error for error in errors if "is not tried again until" in error]
    assert (server.logins, len(told), all(errors)) == (1, 39, True)
    assert ask(config_of(server, password="TestPassword")) == ""


async def test_a_wrong_password_in_many_triggers_is_tried_once(server: Emulator) -> None:
    """The same holds on an event loop, which isn't held up meanwhile (R14)."""
    server.readings = Readings(latency_seconds=0.1)

    async def one() -> None:
        async with AsyncClient(config_of(server)) as client:
            await client.send(MARK)

    failures = await asyncio.gather(*(one() for _ in range(10)), return_exceptions=True)

    assert [type(failure) for failure in failures] == [R7MailAuthError] * 10
    assert server.logins == 1


@pytest.mark.slow
def test_a_wrong_password_is_known_to_other_processes(server: Emulator) -> None:
    """Other processes of this host don't try a refused password either, nor do retries (R14)."""
    code = (
        "import sys; from tests.client.test_tokens import ask, config_of, ClientConfig\n"
        "print(ask(ClientConfig(url=sys.argv[1], login='user_test', password='wrong')))"
    )
    ran = [
        subprocess.run(
            [sys.executable, "-c", code, server.url], capture_output=True, text=True, check=True
        )
        for _ in range(2)
    ]

    assert "not authorised (status 401" in ran[0].stdout, ran[0].stderr
    assert "this password was refused at" in ran[1].stdout, ran[1].stderr
    assert server.logins == 1


def test_a_refused_password_is_tried_again_after_a_while(
    server: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some minutes later, the password is tried again: the server's may have changed (R14)."""
    monkeypatch.setattr(tokens, "REMEMBERED_SECONDS", 0.3)
    assert "not authorised" in ask(config_of(server))
    assert "is not tried again until" in ask(config_of(server))
    time.sleep(0.4)
    server.mailbox.password = "wrong"

    assert ask(config_of(server)) == ""
    assert server.logins == 2


def test_a_person_may_try_a_refused_password(server: Emulator) -> None:
    """The connection's Test button tries at once; if it works, tasks do so, too (R14)."""
    assert ask(config_of(server))
    server.mailbox.password = "wrong"
    assert "is not tried again until" in ask(config_of(server))

    assert Trial(config_of(server), None).run()[0]
    assert ask(config_of(server)) == ""


def test_no_secret_is_on_disk(server: Emulator, state: Path) -> None:
    """What is kept of a refused login tells neither login nor password, and nobody else (R14)."""
    ask(config_of(server, login="ann.secret", password="pa55word"))
    ask(config_of(server, password="TestPassword"))
    files = [path for path in state.rglob("*") if path.is_file()]

    assert len(files) == 2
    for path in files:
        text = f"{path.name} {path.read_text()}"
        assert [word for word in ("secret", "pa55", "Test", "127.0.0.1") if word in text] == []
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"refused": 1}', '{"refused": {}}', "\0"])
def test_a_damaged_file_is_no_refusal(server: Emulator, state: Path, content: str) -> None:
    """A file that was damaged, or has other contents, doesn't keep anybody out (R14)."""
    ask(config_of(server))
    [path] = [path for path in state.rglob("*") if path.is_file()]
    path.write_text(content)
    server.mailbox.password = "wrong"

    assert ask(config_of(server)) == ""


@pytest.mark.parametrize("why", ["others", "link", "file"])
def test_a_folder_that_others_can_write_is_not_used(
    server: Emulator, state: Path, why: str, tmp_path: Path
) -> None:
    """If the folder isn't this user's alone, each task is on its own (R14)."""
    if why == "others":
        (state / "r7mail").mkdir()
        (state / "r7mail").chmod(0o777)
    elif why == "link":
        (state / "r7mail").symlink_to(tmp_path)
    else:
        (state / "r7mail").write_text("")

    assert "not authorised" in ask(config_of(server))
    assert "not authorised" in ask(config_of(server))
    assert ask(config_of(server, password="TestPassword")) == ""


def test_without_a_state_folder_the_temporary_one_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Emulator
) -> None:
    """By default, it is a folder of this user in the temporary folder (R14)."""
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ask(config_of(server))

    assert len(list((tmp_path / f"r7mail-{os.getuid()}").iterdir())) == 1


@pytest.mark.slow
def test_a_login_that_hangs_holds_up_no_other(
    server: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logins take turns, but a task doesn't wait for another's login for long (R14)."""
    monkeypatch.setattr(account, "TURN_SECONDS", 0.3)
    server.faults.append(Fault("Login", kind="hang", seconds=3.0))
    good = config_of(server, password="TestPassword")
    first = threading.Thread(target=ask, args=(good,))
    first.start()
    while server.logins + len(server.requests) < 1:
        time.sleep(0.01)
    began = time.monotonic()

    assert ask(good) == ""
    assert time.monotonic() - began < 2.5
    first.join()


# Other refusals


@pytest.mark.parametrize("status", ["403", "406"])
@pytest.mark.parametrize("call", [LIST, MARK, FILE, SEND], ids=lambda call: call.path)
async def test_an_account_without_mail_is_told(
    kind: Kind, server: Emulator, status: Any, call: Call[Any]
) -> None:
    """If the account lacks the Mail module, the error names it, after one login (R41)."""
    server.readings = Readings(mail_module=False, refusal=status)
    async with opened(kind, server) as session:
        with pytest.raises(R7MailAuthError, match="no access to the Mail module") as caught:
            await session.send(call)

    assert caught.value.status == int(status)
    assert server.logins == 1
    assert server.mailbox.sent == []


async def test_a_list_of_modules_is_no_proof(kind: Kind, server: Emulator) -> None:
    """If mail works although the login doesn't list its module, refusals are refusals (R41)."""
    server.faults.append(
        Fault(
            "Login",
            kind="answer",
            answer={"Response": {"Data": {"ModulesAccess": [], "Tokens": {"AuthToken": "x"}}}},
        )
    )
    server.faults.append(Fault("Messages", kind="answer", answer={"Items": [], "Count": 0}))
    async with opened(kind, server) as session:
        await session.send(LIST)
        assert await session.send(MARK) is True  # the token was made up: it logs in

    assert server.logins == 1


async def test_a_send_that_needs_a_draft_says_so(kind: Kind, server: Emulator) -> None:
    """If the server sends drafts only, the error says what to do; a draft's id works (R39)."""
    draft = server.mailbox.deliver(folder=26)
    server.readings = Readings(drafts_only=True)
    given: dict[str, Any] = {"subject": "s", "text": "t", "html": "h", "to": "a@example.org"}
    async with opened(kind, server) as session:
        with pytest.raises(R7MailServerError, match=r"drafts only \(R39\).* draft_id") as caught:
            await session.send(calls.send_message(**given))
        assert not isinstance(caught.value, R7MailSendUnclearError)
        await session.send(calls.send_message(**given, draft_id=draft))
        with pytest.raises(R7MailServerError) as caught:
            await session.send(calls.send_message(**given, draft_id=draft))

    assert "R39" not in str(caught.value)
    assert len(server.mailbox.sent) == 1


async def test_a_send_that_fails_for_want_of_a_draft_is_unclear(
    kind: Kind, server: Emulator
) -> None:
    """If the refusal is a 500, it is unclear what happened; the hint names R39 as well (R39)."""
    server.readings = Readings(drafts_only=True, refusal="500")
    async with opened(kind, server) as session:
        with pytest.raises(R7MailSendUnclearError, match=r"drafts only \(R39\)"):
            await session.send(SEND)

    assert count(server, "Send") == 1


@pytest.mark.parametrize("dead", DEAD)
async def test_a_balancer_finds_the_node_of_the_login(
    kind: Kind, server: Emulator, dead: Any
) -> None:
    """Behind a balancer, all calls, Send and downloads too, carry the login's cookies (R24)."""
    server.readings = Readings(sticky=True, dead_token=dead)
    number = server.mailbox.deliver()
    each: list[Call[Any]] = [
        LIST,
        MARK,
        calls.mark_as_important(INBOX, [1], important=True),
        SEND,
        FILE,
        calls.move_messages(INBOX, [number], 15),
        calls.delete_messages(15, [number]),
    ]
    async with opened(kind, server) as session:
        for call in each:
            await session.send(call)
        assert await session.download(FILE) == b"data"
        server.expire_tokens()
        await session.send(LIST)
        await session.send(SEND)
        assert await session.download(FILE) == b"data"

    assert server.logins == 2
    assert len(server.mailbox.sent) == 2
    assert json.dumps([record["status"] for record in server.requests]).count(dead) == 1 + (
        dead != "401"
    )
