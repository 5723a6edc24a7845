"""The clients on real sockets: every test runs with the sync and the async one."""

from __future__ import annotations

import asyncio
import gc
import gzip
import logging
import re
import socket
import ssl
import threading
import time
import traceback
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import aiohttp  # noqa: TID253 - no DAG file reads a test
import httpx
import pytest

from airflow_provider_r7mail.client import answers, calls
from airflow_provider_r7mail.client.calls import Call
from airflow_provider_r7mail.client.disk import add_directory, delete_documents
from airflow_provider_r7mail.client.download import PIECE_BYTES
from airflow_provider_r7mail.client.http import ClientConfig
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.emulator import Attachment, Emulator, Fault, Mailbox, Readings
from airflow_provider_r7mail.exceptions import (
    R7MailActionError,
    R7MailAuthError,
    R7MailConfigError,
    R7MailConnectionError,
    R7MailError,
    R7MailProxyError,
    R7MailRequestError,
    R7MailResponseError,
    R7MailSendUnclearError,
    R7MailServerError,
    R7MailTimeoutError,
)
from tests.client.clients import INBOX, MARK, SEND, Kind, opened
from tests.wire import TOKEN, Certificates, Proxy, Request, Wire, free_port
from tests.wire import reply as _reply

# Servers.


@pytest.fixture
def server() -> Iterator[Emulator]:
    """A mail server with message 1 in its inbox."""
    mailbox = Mailbox()
    mailbox.deliver(subject="Hello", fields={"Id": 1})
    with Emulator(mailbox) as emulator:
        yield emulator


def _count(server: Emulator, name: str) -> int:
    return sum(record["path"].endswith(f"/{name}") for record in server.requests)


def _patience(fault: Fault) -> float:
    """Return a `timeout` that faults soon exceed, and a busy machine's good responses don't."""
    return 1.0 if fault.kind == "hang" else 20.0


# What goes well.


async def test_answers_may_be_in_camel_case(kind: Kind, server: Emulator) -> None:
    """After an upgrade to camelCase answers, everything is read as before (R42)."""
    server.mailbox.deliver(sender="a@example.org", attachments=[Attachment("a.txt", b"data")])
    call = calls.list_messages(
        INBOX, MessageFilter(), start=None, end=None, offset=0, size=9, parse=answers.parse_page
    )
    async with opened(kind, server) as session:
        before = await session.send(call)
    server.readings = Readings(names="camel")
    async with opened(kind, server) as session:
        assert await session.send(call) == before
        assert (await session.send(SEND)).subject == "Quarterly secret"
        assert await session.send(MARK) is True

    assert len(before.rows) == before.count == 2


async def test_each_call_does_what_it_says(kind: Kind, server: Emulator) -> None:
    """A session lists, marks, moves, deletes, sends and downloads with a single login."""
    mailbox = server.mailbox
    two = mailbox.deliver(subject="Two", attachments=[("a.txt", b"data", "text/plain")])
    listing = calls.list_messages(
        INBOX,
        MessageFilter(subject="Two"),
        start=None,
        end=None,
        offset=0,
        size=10,
        parse=answers.parse_page,
    )
    async with opened(kind, server) as session:
        page = await session.send(listing)
        await session.send(calls.mark_as_read(INBOX, [two], read=True))
        await session.send(calls.mark_as_important(INBOX, [two], important=True))
        downloaded = await session.download(calls.download_attachment(INBOX, two, "a.txt"))
        whole = await session.send(calls.download_attachment(INBOX, two, "a.txt"))
        await session.send(calls.move_messages(INBOX, [two], 15))
        await session.send(calls.delete_messages(15, [two]))
        sent = await session.send(SEND)
        stats = session.client.stats

    assert [message.id for message in page.items] == [two]
    assert downloaded == whole == b"data"
    assert sent.subject == "Quarterly secret"
    assert len(mailbox.sent) == 1
    assert server.logins == stats.logins == 1
    assert stats.requests == len(server.requests) == 9
    assert stats.retries == 0
    assert stats.bytes_read > len(downloaded)


async def test_an_answer_may_be_read_in_a_thread(server: Emulator) -> None:
    """A large response doesn't block a triggerer's event loop: a thread reads it."""
    threads = []

    def parse(body: bytes) -> bool:
        threads.append(threading.current_thread())
        return bool(body)

    with ThreadPoolExecutor(1) as executor:
        async with opened("async", server) as session:
            assert isinstance(session.client, AsyncClient)
            await session.client.send(replace(MARK, parse=parse), executor=executor)
            await session.client.send(replace(MARK, parse=parse))

    assert [thread is threading.main_thread() for thread in threads] == [False, True]


@pytest.mark.slow
async def test_answers_do_not_wait_for_the_garbage_collector(kind: Kind, server: Emulator) -> None:
    """A page's memory is freed once the page has been read, not some pages later."""
    server.mailbox.deliver(folder=INBOX, body="x" * 3_000_000)
    listing = calls.list_messages(
        INBOX, MessageFilter(), start=None, end=None, offset=0, size=100, parse=len
    )
    async with opened(kind, server) as session:
        await session.send(listing)
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(4):
                assert await session.send(listing) > 3_000_000
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()

    assert kept < 3_000_000


@pytest.mark.parametrize("call", [MARK, SEND])
@pytest.mark.slow
async def test_requests_in_flight_are_limited(server: Emulator, call: Call[Any]) -> None:
    """`max_concurrency` is the maximum number of concurrent requests of the async client."""
    server.readings = Readings(latency_seconds=0.5)
    async with opened("async", server, max_concurrency=3) as session:
        await session.send(MARK)
        started = time.monotonic()
        await asyncio.gather(*(session.send(call) for _ in range(6)))
        took = time.monotonic() - started

    assert 1 <= took < 3  # one at a time: 3 and more


async def test_a_log_has_no_tokens(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """At any level, of any library, neither the token nor the login's cookie is in the log."""
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "aiohttp", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    answers = iter([_reply(status="500 x"), None])
    with Wire(lambda _: next(answers, _reply())) as wire:
        async with opened(kind, wire) as session:
            assert await session.send(MARK) is True
            with suppress(R7MailSendUnclearError):
                await session.send(SEND)

    assert "Login" in caplog.text
    assert [secret for secret in (TOKEN, "node=login") if secret in caplog.text] == []


async def test_all_calls_carry_the_same_cookies(kind: Kind) -> None:
    """Behind a balancer, Send reaches the node that has my login, and its cookies hold, too."""

    def answer(request: Request) -> bytes:
        return _reply("true", f"Set-Cookie: node=n{len(wire.calls)}; Path=/")

    with Wire(answer) as wire:
        async with opened(kind, wire, max_retries=0) as session:
            each: list[Call[Any]] = [MARK, SEND, MARK, SEND]
            for call in each:
                with suppress(R7MailSendUnclearError):
                    await session.send(call)

    cookies = [request.headers.get("cookie") for request in wire.calls]
    assert cookies == ["node=login", "node=n1", "node=n2", "node=n3"]


# Retries (R16, R23).


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        Fault("MarkAsRead", status=429),
        Fault("MarkAsRead", status=500),
        Fault("MarkAsRead", status=502, body="<html>Bad Gateway</html>"),
        Fault("MarkAsRead", status=503),
        Fault("MarkAsRead", status=504, after_acting=True),
        Fault("MarkAsRead", kind="reset"),
        Fault("MarkAsRead", kind="reset", after_acting=True),
        Fault("MarkAsRead", kind="truncate"),
        Fault("MarkAsRead", kind="truncate", chunked=True),
        Fault("MarkAsRead", kind="bad_json"),
        Fault("MarkAsRead", kind="hang"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
async def test_a_call_that_does_no_harm_is_repeated(
    kind: Kind, server: Emulator, fault: Fault
) -> None:
    """After a temporary failure, a call that is safe to repeat is retried, unnoticed."""
    server.faults.append(replace(fault, times=2))
    async with opened(kind, server, timeout=_patience(fault)) as session:
        assert await session.send(MARK) is True
        retries = session.client.stats.retries

    assert _count(server, "MarkAsRead") == 3
    assert retries == 2
    assert server.logins == 1


async def test_retries_come_to_an_end(kind: Kind, server: Emulator) -> None:
    """If a server stays down, the error says how often it was tried."""
    server.faults.append(Fault("MarkAsRead", status=502, times=None))
    async with opened(kind, server) as session:
        with pytest.raises(R7MailProxyError, match="attempt 3") as caught:
            await session.send(MARK)

    assert (caught.value.attempt, caught.value.status) == (3, 502)
    assert _count(server, "MarkAsRead") == 3


@pytest.mark.parametrize("status", [204, 302, 400, 403, 404, 405, 406, 407])
async def test_a_refusal_is_final(kind: Kind, server: Emulator, status: int) -> None:
    """A request that the server refused is not retried, nor is one that got an undefined status."""
    server.faults.append(Fault("MarkAsRead", status=status, times=None))
    async with opened(kind, server, max_retries=1) as session:
        with pytest.raises(R7MailRequestError) as caught:
            await session.send(MARK)

    assert caught.value.status == status
    assert _count(server, "MarkAsRead") == 1


def _sleeps(caplog: pytest.LogCaptureFixture) -> list[float]:
    return [
        record.args[1]
        for record in caplog.records
        if isinstance(record.args, tuple) and "Retrying" in record.msg
        if isinstance(record.args[1], float)
    ]


async def test_waits_grow_and_differ(
    kind: Kind, server: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Each wait is twice the last plus a random part, so that tasks don't retry in step."""
    server.faults.append(Fault("MarkAsRead", status=503, times=5))
    async with opened(kind, server, max_retries=5) as session:
        await session.send(MARK)
    waits = _sleeps(caplog)
    jitters = [wait - 0.01 * 2**number for number, wait in enumerate(waits)]

    assert len(waits) == 5
    assert all(-1e-9 <= jitter <= 0.01 + 1e-9 for jitter in jitters)
    assert len({round(jitter, 6) for jitter in jitters}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_the_server_says_how_long_to_wait(
    kind: Kind, server: Emulator, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A 429 with `Retry-After`, in seconds or as a date, is retried then and not earlier (R16)."""
    moment = datetime.now(UTC) + timedelta(seconds=2)
    value = "1" if form == "seconds" else format_datetime(moment, usegmt=True)
    server.faults.append(Fault("MarkAsRead", status=429, headers={"Retry-After": value}))
    async with opened(kind, server) as session:
        await session.send(MARK)
    first, second = [record for record in server.requests if record["path"].endswith("AsRead")]

    assert 0.5 < second["time"] - first["time"] < 2.5
    assert _sleeps(caplog)[0] > 0.5


async def test_hours_are_not_waited_for(kind: Kind, server: Emulator) -> None:
    """If a proxy asks to wait an hour, the task fails at once; Airflow's retries apply (R16)."""
    server.faults.append(Fault("MarkAsRead", status=503, headers={"Retry-After": "3600"}))
    async with opened(kind, server) as session:
        with pytest.raises(R7MailProxyError, match="Retry-After asks to wait 3600 s") as caught:
            await session.send(MARK)

    assert caught.value.retry_after == 3600
    assert _count(server, "MarkAsRead") == 1


# Send (R23).

PAGE = "<html>Sign in</html>"


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        Fault("Send", kind="reset", after_acting=True),
        Fault("Send", kind="reset"),
        Fault("Send", kind="hang", after_acting=True),
        Fault("Send", kind="hang"),
        Fault("Send", kind="truncate"),
        Fault("Send", kind="truncate", chunked=True),
        Fault("Send", kind="bad_json"),
        Fault("Send", status=200, body=PAGE, after_acting=True),
        Fault("Send", status=202, after_acting=True),
        Fault("Send", status=204, after_acting=True),
        Fault("Send", status=500, after_acting=True),
        Fault("Send", status=502, body=PAGE, after_acting=True),
        Fault("Send", status=503, headers={"Retry-After": "1"}, after_acting=True),
        Fault("Send", status=504, after_acting=True),
        *(
            Fault("Send", status=status, after_acting=True)
            for status in (302, 304, 402, 404, 407, 408, 409, 410, 412, 421, 422, 425, 451, 499)
        ),
        Fault("Send", status=520, after_acting=True),
        Fault("Send", kind="answer", answer=None, after_acting=True),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.after_acting}",
)
async def test_a_send_that_may_have_worked_is_not_repeated(
    kind: Kind, server: Emulator, fault: Fault
) -> None:
    """If it is unclear whether a message was sent, it is not sent again (R23)."""
    server.faults.append(fault)
    async with opened(kind, server, timeout=_patience(fault)) as session:
        with pytest.raises(R7MailSendUnclearError, match="Check the Sent folder") as caught:
            await session.send(SEND)

    assert _count(server, "Send") == 1
    assert len(server.mailbox.sent) == fault.acts
    assert isinstance(caught.value.__cause__, R7MailRequestError)
    assert caught.value.path == "/api/v1/email/Send"


@pytest.mark.parametrize("status", [400, 403, 405, 406, 413, 415])
async def test_a_refused_send_is_told_as_refused(kind: Kind, server: Emulator, status: int) -> None:
    """A message that the server certainly didn't accept is not called unclear."""
    server.faults.append(Fault("Send", status=status))
    async with opened(kind, server) as session:
        with pytest.raises(R7MailRequestError) as caught:
            await session.send(SEND)

    assert not isinstance(caught.value, R7MailSendUnclearError)
    assert caught.value.status == status
    assert server.mailbox.sent == []


async def test_a_send_that_a_proxy_held_back_is_repeated(kind: Kind, server: Emulator) -> None:
    """A 429 means that the message was not accepted: it is sent again, and arrives once (R23)."""
    server.faults.append(Fault("Send", status=429, times=2))
    async with opened(kind, server) as session:
        await session.send(SEND)

    assert _count(server, "Send") == 3
    assert len(server.mailbox.sent) == 1


async def test_a_send_with_a_dead_token_is_repeated(kind: Kind, server: Emulator) -> None:
    """A 401 means that the message was refused: it is sent once, after a new login (R12, R23)."""
    async with opened(kind, server) as session:
        await session.send(MARK)
        server.expire_tokens()
        await session.send(SEND)

    assert _count(server, "Send") == 2
    assert server.logins == 2
    assert len(server.mailbox.sent) == 1


async def test_a_send_without_a_connection_is_repeated(
    kind: Kind, server: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """While the server restarts, no connection can be opened: Send waits, and sends once (R23)."""
    async with opened(kind, server, max_retries=8, backoff=0.05) as session:
        await session.send(MARK)
        server.stop()
        restart = threading.Timer(0.3, server.start)
        restart.start()
        await session.send(SEND)
        restart.join()

    assert len(server.mailbox.sent) == 1
    assert "Send: the server could not be reached" in caplog.text


async def test_a_send_without_a_login_was_not_made(kind: Kind, server: Emulator) -> None:
    """If the login finally fails, the message was not sent, and the error says so."""
    server.faults.append(Fault("Login", status=502, times=None))
    async with opened(kind, server) as session:
        with pytest.raises(R7MailProxyError) as caught:
            await session.send(SEND)

    assert caught.value.path == calls.LOGIN_PATH
    assert (_count(server, "Login"), _count(server, "Send")) == (3, 0)


async def test_a_closed_connection_neither_loses_nor_doubles_a_send(kind: Kind) -> None:
    """A kept connection that the server has closed does not matter to Send (R23).

    The server hangs up on every second request of a connection, after it has read it.
    """
    sample = Path(__file__).parents[1] / "samples" / "send.response.json"
    sent = sample.read_bytes()

    def answer(request: Request) -> bytes | None:
        if request.number > 1 and not request.target.endswith("/Login"):
            return None
        return _reply(sent if request.target.endswith("/Send") else b"true")

    with Wire(answer) as wire:
        async with opened(kind, wire) as session:
            await session.send(MARK)
            for _ in range(3):
                await session.send(SEND)
                await session.send(MARK)
        sends = [request for request in wire.requests if request.target.endswith("/Send")]

    assert [request.number for request in sends] == [1, 1, 1]
    assert len({request.connection for request in sends}) == 3


# Logging in (R12, R13, R14).


@pytest.mark.parametrize("expired_at", ["past", "absent", "other_zone"])
async def test_when_a_token_expires_is_not_asked(
    kind: Kind, server: Emulator, expired_at: Any
) -> None:
    """A token is used until the server refuses it, whatever `ExpiredAt` says (R12)."""
    server.readings = Readings(expired_at=expired_at)
    async with opened(kind, server) as session:
        for _ in range(3):
            await session.send(MARK)

    assert server.logins == 1


async def test_a_token_may_die_at_any_time(kind: Kind, server: Emulator) -> None:
    """After a 401, the client logs in again and repeats the call, including downloads (R12)."""
    number = server.mailbox.deliver(attachments=[("a.txt", b"data", "text/plain")])
    server.readings = Readings(token_calls=1)
    async with opened(kind, server) as session:
        for _ in range(3):
            await session.send(MARK)
        downloaded = await session.download(calls.download_attachment(INBOX, number, "a.txt"))
        retries = session.client.stats.retries

    assert downloaded == b"data"
    assert server.logins == 4
    assert _count(server, "MarkAsRead") == 5
    assert retries == 0


async def test_a_dead_token_costs_one_login(kind: Kind, server: Emulator) -> None:
    """Concurrent calls that meet an expired token log in once, not once each (R12)."""
    server.readings = Readings(latency_seconds=0.05)
    async with opened(kind, server, max_concurrency=8) as session:
        await asyncio.gather(*(session.send(MARK) for _ in range(8)))
        first = server.logins
        server.expire_tokens()
        await asyncio.gather(*(session.send(MARK) for _ in range(8)))

    assert (first, server.logins) == (1, 2)


async def test_a_late_refusal_of_an_old_token_costs_nothing(kind: Kind, server: Emulator) -> None:
    """A call that learns late of its token's expiry uses the new one (R12)."""
    async with opened(kind, server) as session:
        await session.send(MARK)
        server.expire_tokens()
        server.faults.append(Fault("Delete", status=401, delay=0.2))
        await asyncio.gather(session.send(calls.delete_messages(INBOX, [1])), session.send(MARK))

    assert server.logins == 2


async def test_a_token_refused_anew_is_an_error(kind: Kind, server: Emulator) -> None:
    """A call that is refused even with a new token is an error, not an endless loop (R12)."""
    server.faults.append(Fault("MarkAsRead", status=401, times=None))
    async with opened(kind, server) as session:
        with pytest.raises(R7MailAuthError, match="a token it had just issued"):
            await session.send(MARK)

    assert (server.logins, _count(server, "MarkAsRead")) == (2, 2)


REFUSALS = ["401", "500", "null_response", "no_token", "state"]


@pytest.mark.slow
@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("error_body", ["empty", "json", "html"])
async def test_a_refused_login_is_tried_once(
    kind: Kind, server: Emulator, refusal: Any, error_body: Any
) -> None:
    """A wrong password is reported, however the server refuses it, and tried once (R14)."""
    server.readings = Readings(login_refusal=refusal, error_body=error_body)
    async with opened(kind, server, password="wrong") as session:
        with pytest.raises(R7MailAuthError) as caught:
            await session.send(MARK)

    assert caught.value.path == calls.LOGIN_PATH
    assert server.logins == len(server.requests) == 1


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_concurrent_calls_do_not_hammer_a_refused_login(
    kind: Kind, server: Emulator, refusal: Any
) -> None:
    """Concurrent calls with a wrong password try it once, so as not to lock the account (R14)."""
    server.readings = Readings(login_refusal=refusal)
    async with opened(kind, server, password="wrong", max_concurrency=8) as session:
        failures = await asyncio.gather(
            *(session.send(MARK) for _ in range(8)), return_exceptions=True
        )

    assert [type(failure) for failure in failures] == [R7MailAuthError] * 8
    assert server.logins == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        Fault("Login", status=429),
        Fault("Login", status=502),
        Fault("Login", kind="reset"),
        Fault("Login", kind="truncate"),
        Fault("Login", kind="bad_json"),
        Fault("Login", kind="hang"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
async def test_a_login_that_only_failed_is_repeated(
    kind: Kind, server: Emulator, fault: Fault
) -> None:
    """A temporary failure of the login doesn't mean a wrong password: it is retried (R16)."""
    server.faults.append(fault)
    async with opened(kind, server, timeout=_patience(fault)) as session:
        assert await session.send(MARK) is True

    assert _count(server, "Login") == 2


async def test_a_proven_password_outlives_a_500(kind: Kind, server: Emulator) -> None:
    """Once a password has worked, a 500 to a later login is a failure to retry (R14)."""
    async with opened(kind, server) as session:
        await session.send(MARK)
        server.expire_tokens()
        server.faults.append(Fault("Login", status=500))
        assert await session.send(MARK) is True

    assert _count(server, "Login") == 3


@pytest.mark.parametrize(
    ("data", "came"),
    [
        ({"Response": {"Data": {"State": "Login", "Keys": {"Token": "s3cret"}}}}, "State, Keys"),
        ({"error": "s3cret", "anna@example.org": 1}, "error"),
        ({"Response": {"Data": {"Tokens": {"Bearer": "s3cret"}}}}, "Bearer"),
    ],
)
async def test_a_login_of_another_shape_names_its_keys(
    kind: Kind, server: Emulator, data: Any, came: str
) -> None:
    """If a login's response lacks a key, the error names those that came, and nothing else."""
    server.faults.append(Fault("Login", kind="answer", answer=data, times=None))
    async with opened(kind, server) as session:
        with pytest.raises(R7MailAuthError, match=f"the keys that came: {came} ") as caught:
            await session.send(MARK)

    assert "Check Login and Password" not in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert _count(server, "Login") == 1


# Answers (R15, R16).


@pytest.mark.parametrize("answer", [False, None, "true", 1, {}, [True]])
async def test_anything_but_true_is_a_failed_action(
    kind: Kind, server: Emulator, answer: object
) -> None:
    """An action whose response is anything but `true` has failed, and isn't retried (R15)."""
    server.faults.append(Fault("MarkAsRead", kind="answer", answer=answer, times=None))
    async with opened(kind, server) as session:
        with pytest.raises(R7MailActionError):
            await session.send(MARK)

    assert _count(server, "MarkAsRead") == 1


@pytest.mark.parametrize("body", ["", '{"Message": "secret"}', "<html>secret</html>", "secret"])
async def test_an_error_body_may_hold_anything(kind: Kind, server: Emulator, body: str) -> None:
    """The body of an error is neither needed nor shown, whatever it is (R16)."""
    server.faults.append(Fault("MarkAsRead", status=500, body=body, times=None))
    async with opened(kind, server, max_retries=0) as session:
        with pytest.raises(R7MailServerError) as caught:
            await session.send(MARK)

    assert "secret" not in repr(caught.value)


@pytest.mark.parametrize("call", [MARK, SEND, calls.download_attachment(INBOX, 1, "a.txt")])
async def test_a_redirect_is_not_followed(kind: Kind, server: Emulator, call: Call[Any]) -> None:
    """A redirect to a proxy's login page is an error; the token isn't sent there (R16)."""
    # Whatever redirects may have acted before: see test_a_refused_send.
    error = R7MailSendUnclearError if call is SEND else R7MailProxyError
    with Wire() as elsewhere:
        headers = {"Location": f"{elsewhere.url}/sign-in"}
        for status in (301, 302, 303, 307, 308):
            server.faults.append(Fault(call.path, status=status, headers=headers))
        async with opened(kind, server) as session:
            for _ in range(5):
                with pytest.raises(error, match="something in front"):
                    await session.send(call)

        assert elsewhere.requests == []


async def test_a_sign_in_page_is_told(kind: Kind, server: Emulator) -> None:
    """A proxy's page with status 200 is told apart from a truncated response, and retried (R16)."""
    async with opened(kind, server) as session:
        server.faults.append(Fault("MarkAsRead", status=200, body=PAGE))
        assert await session.send(MARK) is True
        server.faults.append(Fault("MarkAsRead", times=None, status=200, body=PAGE))
        with pytest.raises(R7MailProxyError, match="an HTML page in place of JSON"):
            await session.send(MARK)


# Attachments (R19, R22).

NAMES = [
    "../../etc/passwd",
    "a/b",
    "a\\b",
    "a\0b",
    "a\r\nb",
    "n" * 300,
    "Ж" * 300,
    "Счёт № 5.pdf",
    "😀.png",
    "?&#%+ =;'\"",
    "%2B%00%2F",
    "a+b c%20d",
    "[1]{2}|^`~!$()*,:@<>",
    " ",
    ".",
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:20])
async def test_a_file_of_any_name_arrives(kind: Kind, server: Emulator, name: str) -> None:
    """A file is requested by exactly the name that the server listed, and returned (R19)."""
    number = server.mailbox.deliver(attachments=[Attachment(name, b"data")])
    async with opened(kind, server) as session:
        downloaded = await session.download(calls.download_attachment(INBOX, number, name))

    assert downloaded == b"data"
    assert dict(parse_qsl(server.requests[-1]["query"]))["FileName"] == name


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_file_comes_in_pieces(kind: Kind, server: Emulator, chunked: bool) -> None:
    """A large file arrives in pieces of bounded size, with its length if the server gives it."""
    data = bytes(range(256)) * 4_000
    number = server.mailbox.deliver(attachments=[Attachment("big.bin", data)])
    server.readings = Readings(chunked_attachments=chunked)
    async with opened(kind, server) as session:
        call = calls.download_attachment(INBOX, number, "big.bin")
        async with session.stream(call) as (length, chunks):
            pieces = [piece async for piece in chunks]

    assert length == (None if chunked else len(data))
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= PIECE_BYTES


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
async def test_a_file_that_breaks_off_is_an_error(
    kind: Kind, server: Emulator, chunked: bool, keep: float
) -> None:
    """An interrupted download never passes for a short file, with a length or chunked (R22)."""
    number = server.mailbox.deliver(attachments=[Attachment("big.bin", b"x" * 300_000)])
    server.faults.append(Fault("Attachments", kind="truncate", chunked=chunked, keep=keep))
    async with opened(kind, server) as session:
        with pytest.raises(R7MailConnectionError, match="connection broke"):
            await session.download(calls.download_attachment(INBOX, number, "big.bin"))


DATA = b"name,price\n" * 20_000
GZIPPED = gzip.compress(DATA, mtime=0)  # it is in test ids, which must be the same each time
GZIP = "Content-Encoding: gzip"
FILE = calls.download_attachment(INBOX, 1, "prices.csv")


async def test_a_gzipped_file_is_unpacked(kind: Kind) -> None:
    """A file that a proxy compressed without being asked arrives uncompressed."""
    with Wire(lambda _: _reply(GZIPPED, GZIP)) as wire:
        async with opened(kind, wire) as session, session.stream(FILE) as (length, chunks):
            data = b"".join([chunk async for chunk in chunks])

        assert wire.calls[0].headers["accept-encoding"] == "identity"
    assert length is None
    assert data == DATA


@pytest.mark.parametrize(
    ("header", "html"),
    [
        ("text/html; charset=utf-8", True),
        ("Text/HTML", True),
        ("application/xhtml+xml;charset=windows-1251", True),
        ("application/octet-stream", False),
        ("text/plain; name=text/html", False),
        ("", False),
    ],
)
async def test_a_page_in_place_of_a_file_can_be_told(kind: Kind, header: str, html: bool) -> None:
    """The caller can see that an HTML page arrived, perhaps a proxy's (R16)."""
    lines = ["HTTP/1.1 200 OK", f"Content-Type: {header}", "Content-Length: 0", "", ""]
    with Wire(lambda _: "\r\n".join(lines).encode()) as wire:
        async with opened(kind, wire) as session:
            client = session.client
            if isinstance(client, AsyncClient):
                async with client.stream(FILE) as download:
                    assert download.is_html is html
            else:
                with client.stream(FILE) as download:
                    assert download.is_html is html


@pytest.mark.parametrize("pad", [b"", bytes(5)], ids=["bare", "padded"])
@pytest.mark.parametrize("cut", [0, 1, 10])
async def test_a_file_gzipped_in_parts_is_unpacked_whole(kind: Kind, pad: bytes, cut: int) -> None:
    """All gzip members of a file that a proxy compressed in several are read (R22)."""
    half = len(DATA) // 2
    one, two = gzip.compress(DATA[:half]) + pad, gzip.compress(DATA[half:]) + pad
    parts = [one + two[:cut], two[cut:]]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])
    answer = _reply(chunks, GZIP, "Transfer-Encoding: chunked", framed=False)
    with Wire(lambda _: answer) as wire:
        async with opened(kind, wire) as session:
            assert await session.download(FILE) == DATA


async def test_what_a_small_answer_unpacks_to_is_not_held_whole(kind: Kind) -> None:
    """A compressed file arrives in pieces of bounded size, even if it grows a thousandfold."""
    large = bytes(40 * PIECE_BYTES)
    with Wire(lambda _: _reply(gzip.compress(large), GZIP)) as wire:
        async with opened(kind, wire) as session, session.stream(FILE) as (_, chunks):
            pieces = [len(chunk) async for chunk in chunks]

    assert sum(pieces) == len(large)
    assert max(pieces) <= PIECE_BYTES


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        # The break is in the framing: by length, by chunks.
        (_reply(GZIPPED, GZIP)[:-20], R7MailConnectionError),
        (
            _reply(
                b"%x\r\n%b\r\n" % (len(GZIPPED), GZIPPED),
                GZIP,
                "Transfer-Encoding: chunked",
                framed=False,
            ),
            R7MailConnectionError,
        ),
        # The framing is whole, what is packed in it breaks off or is none.
        (_reply(GZIPPED[:-20], GZIP), R7MailResponseError),
        (_reply(b"", GZIP), R7MailResponseError),
        (_reply(DATA, GZIP), R7MailResponseError),
        (_reply(GZIPPED + GZIPPED[:-20], GZIP), R7MailResponseError),
        (_reply(GZIPPED + b"rest", GZIP), R7MailResponseError),
        # Packings that nobody asked for.
        (_reply(zlib.compress(DATA), "Content-Encoding: deflate"), R7MailResponseError),
        (_reply(DATA, "Content-Encoding: br"), R7MailResponseError),
        # No framing: a break would look like the end.
        (_reply(DATA, framed=False), R7MailResponseError),
        (_reply(b"", framed=False), R7MailResponseError),
    ],
)
async def test_no_answer_passes_for_a_whole_file(
    kind: Kind, answer: bytes, error: type[R7MailError]
) -> None:
    """A file that may be incomplete is an error, whatever its framing and compression (R22)."""
    with Wire(lambda _: answer, close=True) as wire:
        async with opened(kind, wire) as session:
            with pytest.raises(error):
                await session.download(FILE)


async def test_a_download_can_be_left(kind: Kind, server: Emulator) -> None:
    """I can stop reading a file half-way, and continue to use the client."""
    number = server.mailbox.deliver(attachments=[Attachment("big.bin", b"x" * 3_000_000)])
    async with opened(kind, server, max_concurrency=1) as session:
        for _ in range(3):
            call = calls.download_attachment(INBOX, number, "big.bin")
            async with session.stream(call) as (_, chunks):
                assert await anext(chunks)
        assert await session.send(MARK) is True


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        TimeoutError("the disk hangs"),
        UnicodeError("a path"),
        httpx.ReadError("another server"),
        httpx.UnsupportedProtocol("another URL"),
        aiohttp.ClientError("a bucket"),
        RuntimeError("anything"),
    ],
    ids=repr,
)
async def test_a_consumer_s_own_error_is_its_own(
    kind: Kind, server: Emulator, error: Exception
) -> None:
    """If my disk or bucket fails in the middle of a download, I see that error unchanged."""
    number = server.mailbox.deliver(attachments=[Attachment("big.bin", b"x" * 300_000)])
    async with opened(kind, server, max_concurrency=1) as session:

        async def consume() -> None:
            call = calls.download_attachment(INBOX, number, "big.bin")
            async with session.stream(call) as (_, chunks):
                await anext(chunks)
                raise error

        with pytest.raises(type(error)) as caught:
            await consume()
        assert await session.send(MARK) is True

    assert caught.value is error
    assert error.__cause__ is None


async def test_a_file_that_is_not_there_is_an_error(kind: Kind, server: Emulator) -> None:
    """A file that the server fails to deliver is an error, not an empty file."""
    async with opened(kind, server) as session:
        with pytest.raises(R7MailServerError):
            await session.download(FILE)


async def test_a_file_that_is_gone_is_told_as_gone(kind: Kind, server: Emulator) -> None:
    """If a message was deleted before its file is fetched, the error doesn't blame Host."""
    server.faults.append(Fault("Attachments", status=404, body="{}"))
    async with opened(kind, server) as session:
        with pytest.raises(R7MailServerError, match="message 1 has no such file") as told:
            await session.download(FILE)

    assert "deleted or moved" in str(told.value)
    assert "Host" not in str(told.value)
    assert "prices" not in str(told.value)


async def test_a_file_name_may_be_as_long_as_a_url(kind: Kind, server: Emulator) -> None:
    """The longest possible name is requested; a longer one is an error of that file."""
    longest = "n" * calls.MAX_NAME_LENGTH
    with Wire(lambda _: _reply(DATA)) as wire:
        async with opened(kind, wire) as session:
            assert await session.download(calls.download_attachment(INBOX, 1, longest)) == DATA
    with pytest.raises(R7MailRequestError, match="of message 1 is too long for a URL") as told:
        calls.download_attachment(INBOX, 1, longest + "n")

    assert not isinstance(told.value, R7MailConfigError)
    assert "nnn" not in str(told.value)


# Time-outs, cancelling, no server.


async def test_a_silent_server_is_a_timeout(kind: Kind, server: Emulator) -> None:
    """A server that doesn't respond within `timeout` seconds is an error."""
    server.faults.append(Fault("MarkAsRead", kind="hang", times=None))
    async with opened(kind, server, timeout=0.2, max_retries=1) as session:
        with pytest.raises(R7MailTimeoutError, match=r"in time .*Raise timeout") as caught:
            await session.send(MARK)

    assert caught.value.attempt == 2
    assert not caught.value.never_sent


@pytest.mark.slow
async def test_a_slow_server_is_waited_for(kind: Kind, server: Emulator) -> None:
    """A response that takes long but keeps arriving is not a timeout."""
    number = server.mailbox.deliver(attachments=[Attachment("a.bin", b"x" * 100)])
    server.faults.append(Fault("Attachments", kind="slow", seconds=3.0, trickle=True))
    async with opened(kind, server, timeout=1.5) as session:
        data = await session.download(calls.download_attachment(INBOX, number, "a.bin"))

    assert data == b"x" * 100


@pytest.mark.slow
async def test_bytes_too_many_hold_up_no_run(kind: Kind) -> None:
    """A file longer than announced, whose rest looks like a response, doesn't block forever."""
    rest = _reply(b"x", "Content-Length: 1000", framed=False)

    with Wire(lambda _: _reply(DATA) + rest) as wire:
        async with opened(kind, wire, timeout=0.2, connect_timeout=0.2, max_retries=0) as session:
            async with asyncio.timeout(10):
                for _ in range(2):
                    with suppress(R7MailConnectionError):
                        await session.download(FILE)


@contextmanager
def _full_server() -> Iterator[str]:
    """A server with a full queue: it doesn't respond to a connection's first packet."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        with (
            socket.create_connection(address),
            socket.socket() as second,
            socket.socket() as third,
        ):
            for one in (second, third):
                one.setblocking(False)
                one.connect_ex(address)
            yield f"http://127.0.0.1:{address[1]}"


async def test_making_a_connection_has_its_own_time_limit(kind: Kind) -> None:
    """An unreachable server is an error after `connect_timeout`, long before `timeout`."""
    started = time.monotonic()
    with _full_server() as url:
        async with opened(kind, url, timeout=99, connect_timeout=0.2, max_retries=1) as session:
            with pytest.raises(R7MailTimeoutError, match="Check Host") as caught:
                await session.send(MARK)

    assert caught.value.never_sent
    assert time.monotonic() - started < 15


async def test_no_server_is_told(kind: Kind) -> None:
    """If there is no server, the error says what to check."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with opened(kind, f"http://127.0.0.1:{port}") as session:
        with pytest.raises(R7MailConnectionError, match=r"could not be reached.*Check Host"):
            await session.send(MARK)
        assert session.client.stats.retries == 2


async def test_an_unknown_host_is_told(kind: Kind) -> None:
    """If the host name can't be resolved, the error says so."""
    async with opened(kind, "http://mail.invalid", max_retries=0) as session:
        with pytest.raises(R7MailConnectionError, match=r"could not be reached: .*Check Host"):
            await session.send(MARK)


@pytest.mark.parametrize("url", ["mail.example.org", "ftp://x", "http://mail..example.org"])
async def test_a_url_that_cannot_be_is_told(kind: Kind, url: str) -> None:
    """An invalid URL is an error of the connection, and isn't retried."""
    async with opened(kind, url) as session:
        with pytest.raises(R7MailConfigError, match="Check Host, Schema and Port"):
            await session.send(MARK)
        assert session.client.stats.retries == 0


@pytest.mark.parametrize("code", ["utf-8", "cp1251"])
async def test_a_status_may_be_told_in_russian(kind: Kind, code: str) -> None:
    """The reason phrase may be in any language and encoding: only the status counts."""
    answers = [
        _reply(b"", status="503 Сервис недоступен"),
        _reply(b"true", status="200 Хорошо"),
    ]
    replies = iter([answer.decode().encode(code) for answer in answers])
    with Wire(lambda _: next(replies)) as wire:
        async with opened(kind, wire, max_retries=1) as session:
            assert await session.send(MARK) is True
            assert session.client.stats.retries == 1


async def test_what_is_no_http_is_told(kind: Kind) -> None:
    """If another service uses that port, the error quotes nothing from it."""
    with Wire(lambda _: b"SSH-2.0-secret\r\n\r\n") as wire:
        async with opened(kind, wire, max_retries=0) as session:
            with pytest.raises(R7MailConnectionError, match="not HTTP") as caught:
                await session.send(MARK)

    assert "secret" not in "".join(traceback.format_exception(caught.value))


async def test_a_cancelled_call_leaves_nothing(server: Emulator) -> None:
    """A cancelled trigger leaves no connection open, and its client can continue."""

    def answer(request: Request) -> bytes:
        if request.target.endswith("/Delete"):
            time.sleep(0.3)
        return _reply()

    with Wire(answer) as wire:
        async with opened("async", wire, max_concurrency=1) as session:
            for call in (calls.delete_messages(1, [2]), replace(MARK, path="/x/Delete"), SEND):
                task = asyncio.create_task(session.send(replace(call, path="/x/Delete")))
                await asyncio.sleep(0.1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await session.send(MARK) is True
        deadline = time.monotonic() + 5
        while wire.open and time.monotonic() < deadline:  # noqa: ASYNC110 - another thread closes
            await asyncio.sleep(0.02)

        assert wire.open == 0


async def test_a_cancelled_download_leaves_nothing(server: Emulator) -> None:
    """A cancelled download frees its slot at once."""
    number = server.mailbox.deliver(attachments=[Attachment("a.bin", b"x" * 100_000)])
    server.faults.append(Fault("Attachments", kind="slow", seconds=30, trickle=True))
    async with opened("async", server, max_concurrency=1) as session:
        call = calls.download_attachment(INBOX, number, "a.bin")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await session.download(call)
        assert await session.send(MARK) is True
        assert await session.download(call) == b"x" * 100_000


# TLS.


async def test_an_unknown_authority_is_told(kind: Kind, certificates: Certificates) -> None:
    """A certificate of my company's CA fails, and the error says what to set."""
    with Wire(tls=certificates.server()) as wire:
        async with opened(kind, wire, max_retries=1) as session:
            with pytest.raises(R7MailConnectionError, match=r"could not be verified.*Set verify"):
                await session.send(MARK)

        assert wire.requests == []


@pytest.mark.parametrize("verify", ["ca-cert", False])
async def test_verify_takes_a_bundle_or_nothing(
    kind: Kind, certificates: Certificates, verify: str | bool
) -> None:
    """With my CA bundle, or with `verify` false, the connection works, for Send, too."""
    given = certificates.path(verify) if isinstance(verify, str) else verify
    with Wire(tls=certificates.server()) as wire:
        async with opened(kind, wire, verify=given) as session:
            assert await session.send(MARK) is True
            with suppress(R7MailSendUnclearError):
                await session.send(SEND)

        assert [request.target for request in wire.calls] == [MARK.path, SEND.path]


async def test_the_system_s_authorities_are_known(
    kind: Kind, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CA that my company added to its systems works without a setting."""
    monkeypatch.setenv("SSL_CERT_FILE", certificates.path("ca-cert"))
    with Wire(tls=certificates.server()) as wire:
        async with opened(kind, wire) as session:
            assert await session.send(MARK) is True


@pytest.mark.parametrize("form", ["one file", "two files"])
async def test_a_client_certificate_is_shown(
    kind: Kind, certificates: Certificates, form: str
) -> None:
    """A server that requires a client certificate gets the connection's `cert`."""
    path = certificates.path
    cert: Any = path("client") if form == "one file" else (path("client-cert"), path("client-key"))
    with Wire(tls=certificates.server(ask=True)) as wire:
        async with opened(kind, wire, verify=path("ca-cert"), cert=cert) as session:
            assert await session.send(MARK) is True


@pytest.mark.parametrize("oldest", [False, True])
async def test_a_missing_client_certificate_is_told(
    kind: Kind, certificates: Certificates, oldest: bool
) -> None:
    """A missing client certificate is one of this package's errors."""
    with Wire(tls=certificates.server(ask=True, oldest=oldest)) as wire:
        async with opened(
            kind, wire, verify=certificates.path("ca-cert"), max_retries=0
        ) as session:
            with pytest.raises(R7MailConnectionError):
                await session.send(MARK)

        assert wire.requests == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"verify": "/nowhere/ca.pem"},
        {"verify": __file__},
        {"cert": "/nowhere/client.pem"},
        {"cert": __file__},
        {"cert": ("client-cert", "ca-key")},
        {"cert": "locked"},
    ],
    ids=repr,
)
def test_a_certificate_that_cannot_be_read_is_told(
    certificates: Certificates, wrong: dict[str, Any]
) -> None:
    """A file that is missing, has no certificate or needs a password is reported by its field."""

    def place(name: str) -> str:
        return name if name.startswith("/") else certificates.path(name)

    options: dict[str, Any] = {
        name: place(value) if isinstance(value, str) else tuple(map(place, value))
        for name, value in wrong.items()
    }
    config = ClientConfig(url="https://x", login="l", password="p", **options)

    with pytest.raises(R7MailConfigError) as caught:
        config.ssl_context()

    [(field, value)] = options.items()
    assert str(caught.value).startswith(f"{field} of the connection: no certificate could be read")
    assert (value if isinstance(value, str) else ",".join(value)) in str(caught.value)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_file_of_two_is_named(certificates: Certificates, missing: int) -> None:
    """If the certificate or the key is missing, the error names that file and its field."""
    cert = [certificates.path("client-cert"), certificates.path("client-key")]
    cert[missing] = "/nowhere/file.pem"
    config = ClientConfig(url="https://x", login="l", password="p", cert=(cert[0], cert[1]))

    with pytest.raises(R7MailConfigError, match=r"^cert of .* from '/nowhere/file\.pem'.*No such"):
        config.ssl_context()


def test_a_client_certificate_in_der_says_how_to_convert_it(certificates: Certificates) -> None:
    """A client certificate that isn't PEM is an error that says how to make it PEM."""
    path = str(certificates.folder / "client.der")
    config = ClientConfig(url="https://x", login="l", password="p", cert=path)

    with pytest.raises(R7MailConfigError, match=r"client\.der.*openssl x509 -inform der"):
        config.ssl_context()


async def test_an_authority_may_be_given_in_der(kind: Kind, certificates: Certificates) -> None:
    """`verify` takes the DER file that an administrator exports as .cer."""
    with Wire(tls=certificates.server()) as wire:
        async with opened(kind, wire, verify=str(certificates.folder / "ca.der")) as session:
            assert await session.send(MARK) is True


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"expired": True}, r"verified: certificate has expired .*Renew it on the server"),
        ({"host": "10.1.2.3"}, r"verified: IP address mismatch.*127\.0\.0\.1.*Set Host"),
    ],
    ids=["expired", "another host"],
)
async def test_a_refused_certificate_comes_with_its_reason(
    kind: Kind, certificates: Certificates, made: dict[str, Any], reason: str
) -> None:
    """With `verify` right, the error says what else is wrong with the server's certificate."""
    certificates.make("odd", **made)
    with Wire(tls=certificates.server("odd")) as wire:
        verify = certificates.path("ca-cert")
        async with opened(kind, wire, verify=verify, max_retries=0) as session:
            with pytest.raises(R7MailConnectionError, match=reason) as caught:
                await session.send(MARK)

    assert "Set verify" not in str(caught.value)


@pytest.mark.parametrize("known", ["in verify", "to the system"])
async def test_an_authority_without_key_usage_works(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str
) -> None:
    """My company's CA without key usage works, on Python 3.13, too."""
    company = Certificates(tmp_path)
    for name in ("ca", "server"):
        company.make(name, key_usage=False)
    create = ssl.create_default_context

    def create_as_3_13_does(*args: Any, **options: Any) -> ssl.SSLContext:
        context = create(*args, **options)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", create_as_3_13_does)
    monkeypatch.setenv("SSL_CERT_FILE", company.path("ca-cert"))
    verify = company.path("ca-cert") if known == "in verify" else True
    with Wire(tls=company.server()) as wire:
        async with opened(kind, wire, verify=verify) as session:
            assert await session.send(MARK) is True


def test_a_folder_of_authorities_is_a_bundle_too(certificates: Certificates) -> None:
    """`verify` may be a folder of certificates, as OpenSSL uses them."""
    config = ClientConfig(url="https://x", login="l", password="p", verify=str(certificates.folder))

    assert config.ssl_context().verify_mode is ssl.CERT_REQUIRED


# Proxies.


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Clear the environment of proxies."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("source", ["connection", "environment", "without scheme"])
async def test_a_proxy_is_used(
    kind: Kind,
    certificates: Certificates,
    environment: pytest.MonkeyPatch,
    tls: bool,
    source: str,
) -> None:
    """The connection's proxy, or else the environment's, is used for all calls."""
    context = certificates.server() if tls else None
    with Wire(tls=context) as wire, Proxy(wire.port) as proxy:
        url = proxy.url.removeprefix("http://") if source == "without scheme" else proxy.url
        if source != "connection":
            environment.setenv("HTTPS_PROXY" if tls else "http_proxy", url)
        async with opened(
            kind,
            f"{'https' if tls else 'http'}://server",
            proxy=proxy.url if source == "connection" else None,
            verify=certificates.path("ca-cert"),
        ) as session:
            assert await session.send(MARK) is True
            with suppress(R7MailSendUnclearError):
                await session.send(SEND)

        assert [request.target for request in wire.calls] == [MARK.path, SEND.path]
        target = "server:443" if tls else "http://server/"
        assert len(proxy.requests) >= 2
        assert all(request.target.startswith(target) for request in proxy.requests)


@pytest.mark.parametrize(
    "hosts",
    [
        "127.0.0.1",
        "*",
        "example.org,127.0.0.1",
        "127.0.0.1:{port}",
        "127.*",
        "10.0.0.0/8, 127.0.0.0/8",
        "127.0.0.0/8:{port}",
    ],
)
async def test_no_proxy_goes_past_the_proxy(
    kind: Kind, environment: pytest.MonkeyPatch, hosts: str
) -> None:
    """A server in NO_PROXY, with or without its port, is reached directly."""
    with Wire() as wire, Proxy(wire.port) as proxy:
        environment.setenv("HTTP_PROXY", proxy.url)
        environment.setenv("http_proxy", proxy.url)
        environment.setenv("NO_PROXY", hosts.format(port=wire.port))
        async with opened(kind, wire) as session:
            assert await session.send(MARK) is True

        assert proxy.requests == []


@pytest.mark.parametrize("at", ["server", "disk"])
async def test_the_disk_has_its_own_exemption(
    kind: Kind, environment: pytest.MonkeyPatch, at: str
) -> None:
    """NO_PROXY may have the host of the server, or of its Disk: the other is behind the proxy."""
    with Wire() as wire, Proxy(wire.port) as proxy:
        hosts = {"server": "127.0.0.1", "disk": "localhost"}
        environment.setenv("http_proxy", proxy.url)
        environment.setenv("no_proxy", hosts[at])
        disk_url = f"http://localhost:{wire.port}"
        async with opened(kind, wire, disk_url=disk_url) as session:
            assert await session.send(MARK) is True
            await session.send(delete_documents([1]))
            await session.send(add_directory(1, "a"))

        through = {request.target.partition("/api")[0] for request in proxy.requests}
        assert through == {wire.url if at == "disk" else disk_url}
        assert len(wire.calls) == 3


@pytest.mark.parametrize(
    ("url", "no_proxy", "exempt"),
    [
        ("https://mail.corp", "*.corp", True),
        ("https://mail.corp.", ".CORP", True),
        ("https://mailcorp", "*.corp,.corp,corp", False),
        ("https://mail.corp", "corp:443", True),
        ("https://mail.corp", "corp:8443", False),
        ("https://mail.corp:8443", "*.corp:8443", True),
        ("https://10.1.2.3", "10.0.0.0/8", True),
        ("https://11.1.2.3", "10.0.0.0/8 ,, 127.*", False),
        ("https://[::1]:8443", "::1", True),
        ("https://[::1]:8443", "[::1]:8443", True),
        ("https://[::1]:8443", "[::1]:443", False),
        ("https://[fd00::7]", "fd00::/8", True),
        ("https://[fd00::7]", "10.0.0.0/8,::1", False),
        ("https://mail.corp", "10.0.0.0/8", False),
    ],
)
def test_no_proxy_takes_what_people_write(
    environment: pytest.MonkeyPatch, url: str, no_proxy: str, exempt: bool
) -> None:
    """NO_PROXY has networks, patterns, IPv6 addresses, and ports."""
    environment.setenv("https_proxy", "http://proxy:3128")
    environment.setenv("no_proxy", no_proxy)
    config = ClientConfig(url=url, login="l", password="p")

    assert (config.effective_proxy() is None) == exempt


async def test_the_connection_may_say_no_proxy(kind: Kind, environment: pytest.MonkeyPatch) -> None:
    """With `proxy` false in the connection, the environment's proxy is not used."""
    with Wire() as wire, Proxy(wire.port) as proxy:
        environment.setenv("http_proxy", proxy.url)
        async with opened(kind, wire, proxy=False) as session:
            assert await session.send(MARK) is True

        assert proxy.requests == []


@pytest.mark.filterwarnings("ignore:BasicAuth is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The 'proxy_auth' parameter:DeprecationWarning")
@pytest.mark.parametrize("tls", [False, True])
async def test_an_error_names_the_proxy(kind: Kind, tls: bool) -> None:
    """If the proxy can't be reached, the error names it, without its password."""
    proxy = f"127.0.0.1:{free_port()}"
    url = f"{'https' if tls else 'http'}://mail.example.org"
    async with opened(kind, url, proxy=f"http://u:s3cret@{proxy}", max_retries=0) as session:
        with pytest.raises(R7MailConnectionError, match=f"The proxy is http://{proxy}") as caught:
            await session.send(MARK)

    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


async def test_the_connection_s_proxy_goes_first(
    kind: Kind, environment: pytest.MonkeyPatch
) -> None:
    """A proxy in the connection is used whatever the environment says."""
    environment.setenv("no_proxy", "*")
    with Wire() as wire, Proxy(wire.port) as proxy:
        async with opened(kind, wire, proxy=proxy.url) as session:
            assert await session.send(MARK) is True

        assert len(proxy.requests) >= 1


@pytest.mark.filterwarnings("ignore:BasicAuth is deprecated:DeprecationWarning")
@pytest.mark.parametrize("tls", [False, True])
async def test_a_proxy_may_ask_for_a_password(
    kind: Kind, certificates: Certificates, tls: bool
) -> None:
    """A proxy gets the password in its URL; without it, the error says that the proxy refused."""
    context = certificates.server() if tls else None
    with Wire(tls=context) as wire, Proxy(wire.port, password="dTpwQDU1") as proxy:
        options: dict[str, Any] = {"verify": certificates.path("ca-cert"), "max_retries": 0}
        url = proxy.url.replace("http://", "http://u:p%4055@")
        async with opened(kind, wire, proxy=url, **options) as session:
            assert await session.send(MARK) is True
        async with opened(kind, wire, proxy=proxy.url, **options) as session:
            with pytest.raises(R7MailRequestError, match=r"407.*proxy in the connection"):
                await session.send(MARK)
        wrong = proxy.url.replace("http://", "http://u:s3cret@")
        async with opened(kind, wire, proxy=wrong, **options) as session:
            with pytest.raises(R7MailRequestError) as caught:
                await session.send(MARK)

    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


async def test_a_silent_proxy_is_a_timeout(kind: Kind) -> None:
    """A proxy that accepts the connection but doesn't respond is a timeout."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        options: dict[str, Any] = {"timeout": 0.2, "connect_timeout": 0.2, "max_retries": 0}
        async with opened(kind, "https://mail.invalid", proxy=proxy, **options) as session:
            with pytest.raises(R7MailTimeoutError):
                await asyncio.wait_for(session.send(MARK), 5)


@pytest.mark.parametrize(
    "proxy",
    ["gopher://x", "socks5://u:s3cret@x", "http://u:s3cret@x:y", "http://"],
)
def test_a_wrong_proxy_is_told(proxy: str) -> None:
    """An invalid proxy is an error of the connection that doesn't show its password."""
    config = ClientConfig(url="https://x", login="l", password="p", proxy=proxy)

    with pytest.raises(R7MailConfigError, match="not an HTTP URL") as caught:
        config.effective_proxy()

    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


# What errors and logs say, and what they do not.

SECRETS = [
    "TestPassword",
    "user_test",
    TOKEN,
    "Quarterly",
    "Dear Anna",
    "anna@partner.example",
    "salary",
    "FileName",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nDear Anna",
        b"Dear Anna\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nDear Anna\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: Dear Anna\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nDear Anna\r\n",
        _reply("Dear Anna"),
        _reply('{"Subject": "Dear Anna"}'),
        _reply("<html>Dear Anna"),
        _reply("Dear Anna", GZIP),
        *(
            _reply('{"Message": "Dear Anna"}', status=f"{status} x")
            for status in (302, 400, 401, 403, 404, 405, 406, 429, 500, 502)
        ),
    ],
    ids=lambda answer: repr(answer)[2:35],
)
async def test_no_error_tells_what_the_mail_says(
    kind: Kind, answer: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors and logs say where, when and what to do, without mail, names or secrets."""
    caplog.set_level(logging.DEBUG)
    # At DEBUG httpcore quotes bytes that are not HTTP.
    caplog.set_level(logging.INFO, logger="httpcore")
    sent: list[Call[Any]] = [
        replace(SEND, repeatable=True),
        SEND,
        calls.download_attachment(INBOX, 1, "salary.xlsx"),
    ]
    failures = []
    with Wire(lambda _: answer, close=True) as wire:
        async with opened(kind, wire, max_retries=1) as session:
            for call in sent:
                try:
                    await session.send(call)
                except R7MailRequestError as failure:
                    failures.append((call, failure))
    shown = [
        text
        for _, error in failures
        for text in (repr(error), *traceback.format_exception(error, limit=0))
    ]
    text = "\n".join([*shown, caplog.text])

    for call, error in failures:
        assert str(error).startswith(f"{call.method} {call.path}: ")
        assert re.search(r"\((status \d+|no response), attempt [12]\)", str(error))
    assert len(failures) >= 2  # a file may hold any bytes: the third call may go well
    assert [secret for secret in SECRETS if secret in text] == []


async def test_a_log_has_no_file_names(
    kind: Kind, server: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Httpx logs each URL at INFO: without file names, and unchanged for other clients."""
    caplog.set_level(logging.INFO)
    # Airflow 3 quiets httpx once it is imported.
    caplog.set_level(logging.INFO, logger="httpx")
    number = server.mailbox.deliver(attachments=[Attachment("salary.xlsx", b"data")])
    async with opened(kind, server) as session:
        await session.download(calls.download_attachment(INBOX, number, "salary.xlsx"))
    async with httpx.AsyncClient(trust_env=False) as other:
        await other.get(f"{server.url}/?mine=1")

    assert "/api/v1/email/Attachments" in caplog.text
    assert "salary" not in caplog.text
    assert "?mine=1" in caplog.text


def test_a_configuration_hides_its_secrets() -> None:
    """A configuration in a log shows neither the password nor the proxy's."""
    config = ClientConfig(
        url="https://mail.example.org", login="l", password="pa55", proxy="http://u:s3cret@p:1"
    )

    assert "https://mail.example.org" in repr(config)
    assert "pa55" not in repr(config)
    assert "s3cret" not in repr(config)


async def test_a_login_in_the_url_is_refused(kind: Kind, server: Emulator) -> None:
    """A URL that contains a login is a clear error that doesn't show the password."""
    url = server.url.replace("http://", "http://ann:hidden@")
    with pytest.raises(R7MailConfigError, match="Login and Password instead") as caught:
        async with opened(kind, url):
            pass
    assert "hidden" not in str(caught.value)


async def test_tls_towards_a_server_without_it_is_told(kind: Kind, server: Emulator) -> None:
    """For https to a server that speaks plain http, the error says which field to change."""
    url = server.url.replace("http://", "https://")
    with pytest.raises(R7MailConnectionError, match="Set Schema of the connection to http"):
        async with opened(kind, url, max_retries=0) as session:
            await session.send(MARK)
