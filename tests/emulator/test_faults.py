"""Each fault, over a real socket."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from airflow_provider_r7mail.emulator import Emulator, Fault, Mailbox, Readings
from tests.emulator.calls import MAIL, Api, letter, listing, minutes

# Faults (R16, R22, R23)


def test_a_proxys_error(mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """A fault hits the given number of calls of a path, after those it skips."""
    page = "<html>busy</html>"
    server.faults.append(
        Fault("Messages", times=2, skip=1, status=503, body=page, headers={"Retry-After": "1"})
    )
    api.post("MarkAsRead", {"folderId": 24, "Ids": [], "WasRead": True})

    answers = [api.post("Messages", listing()) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 503, 503, 200]
    assert answers[1].headers["retry-after"] == "1"
    assert answers[1].headers["content-type"].startswith("text/html")
    assert answers[1].text == page
    assert len(server.faults) == 0
    assert [call["status"] for call in server.requests[-4:]] == [200, 503, 503, 200]


def test_faults_for_ever(server: Emulator, api: Api) -> None:
    """A fault without a number of times stays until it is cleared, for any path."""
    server.faults.append(Fault(times=None, status=502))
    assert [api.post("Messages", listing()).status_code for _ in range(5)] == [502] * 5
    assert api.log_in().status_code == 502

    server.faults.clear()
    assert api.post("Messages", listing()).status_code == 200


@pytest.mark.parametrize("after_acting", [True, False])
@pytest.mark.parametrize("kind", ["status", "reset"])
def test_a_failure_leaves_open_whether_the_server_acted(
    kind: Any, after_acting: bool, mailbox: Mailbox, server: Emulator, api: Api
) -> None:
    """A call can fail before or after the server did what was asked (R23)."""
    server.faults.append(Fault("Send", kind=kind, status=502, after_acting=after_acting))

    if kind == "reset":
        with pytest.raises(httpx.ReadError):
            api.post("Send", letter())
    else:
        assert api.post("Send", letter()).status_code == 502
    assert len(mailbox.sent) == after_acting
    assert server.requests[-1]["status"] == (502 if kind == "status" else None)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("chunked_reading", [True, False])
def test_a_body_breaks_off(
    chunked: bool, chunked_reading: bool, mailbox: Mailbox, server: Emulator, api: Api
) -> None:
    """A body can be cut off before its `Content-Length`, or before its last chunk (R22)."""
    server.readings = Readings(chunked_attachments=chunked_reading)
    data = b"x" * 300_000
    number = mailbox.deliver(attachments=[("a", data, "a/b")])
    server.faults.append(Fault("Attachments", kind="truncate", chunked=chunked, keep=0.4))
    query: dict[str, Any] = {"folderId": 24, "Id": number, "FileName": "a"}
    received: list[bytes] = []

    with api.http.stream("GET", f"{MAIL}/Attachments", params=query) as answer:
        assert answer.status_code == 200
        assert ("content-length" in answer.headers) is not chunked
        with pytest.raises(httpx.RemoteProtocolError):
            received.extend(answer.iter_bytes())
    assert b"".join(received) == data[:120_000]
    assert api.file(number, "a").content == data


def test_bad_json(server: Emulator, api: Api) -> None:
    """A response can be invalid JSON with status 200."""
    server.faults.append(Fault(kind="bad_json"))
    answer = api.post("Messages", listing())

    assert answer.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        answer.json()


def test_any_answer(server: Emulator, api: Api) -> None:
    """A response can be any JSON at all with status 200 (R15)."""
    for value in (None, "true", {"Items": None}, False):
        server.faults.append(Fault(kind="answer", answer=value))
        assert api.post("Messages", listing()).json() == value


@pytest.mark.parametrize("trickle", [True, False])
def test_a_slow_answer(trickle: bool, mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """A response can be late, or slow throughout, and is correct in the end."""
    ids = minutes(mailbox, 1, 2)
    server.faults.append(Fault(kind="slow", seconds=0.2, trickle=trickle))
    begun = time.monotonic()

    assert api.ids() == ids
    assert time.monotonic() - begun >= 0.2


def test_no_answer_at_all(server: Emulator, api: Api) -> None:
    """A call can hang until the client gives up, or until the server resets it."""
    server.faults.append(Fault(kind="hang"))
    with pytest.raises(httpx.ReadTimeout):
        api.http.post(f"{MAIL}/Messages", json=listing(), timeout=0.2)

    server.faults.append(Fault(kind="hang", seconds=0.1))
    with pytest.raises(httpx.ReadError):
        api.post("Messages", listing())


def test_latency_and_delay(server: Emulator, api: Api) -> None:
    """Every call can be slow, and a fault can happen after a delay."""
    server.readings = Readings(latency_seconds=0.1)
    server.faults.append(Fault(status=504, delay=0.1))
    begun = time.monotonic()

    assert api.post("Messages", listing()).status_code == 504
    assert time.monotonic() - begun >= 0.2


def test_settings_of_wrong_types_are_refused() -> None:
    """A misspelt reading or fault is an error at once, not silently ignored."""
    bad: list[Callable[[], object]] = [
        lambda: Readings(sort_one="up"),  # type: ignore[arg-type]
        lambda: Readings(page_cap="2"),  # type: ignore[arg-type]
        lambda: Fault(kind="explode"),  # type: ignore[arg-type]
    ]
    for make in bad:
        with pytest.raises(ValueError, match="expected"):
            make()
