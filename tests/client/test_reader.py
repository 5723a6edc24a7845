"""Reading a folder message by message on an event loop that others share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_r7mail.client import reader
from airflow_provider_r7mail.client.answers import parse_page
from airflow_provider_r7mail.client.http import ClientConfig
from airflow_provider_r7mail.client.models import MessageFilter, Page
from airflow_provider_r7mail.client.page_size import PAGE_BYTES
from airflow_provider_r7mail.client.reader import aiter_messages, iter_messages
from airflow_provider_r7mail.client.session import AsyncClient, Client
from airflow_provider_r7mail.emulator import Emulator, Fault, Mailbox, Readings
from airflow_provider_r7mail.exceptions import R7MailServerError
from tests.cases import in_turn

INBOX = 24


@pytest.mark.parametrize(("length", "largest"), [(300_000, 3), (10, 40)])
async def test_pages_of_large_mail_hold_up_no_loop(
    length: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages are parsed off the triggerer's loop; those of large mail are short, others long."""
    parsed: list[tuple[threading.Thread, int]] = []

    def seen(body: bytes) -> Page:
        parsed.append((threading.current_thread(), len(body)))
        return parse_page(body)

    monkeypatch.setattr(reader, "parse_page", seen)
    mailbox = Mailbox()
    ids = [
        mailbox.deliver(body="x" * length, date=f"2025-06-01T00:{minute:02d}:00Z")
        for minute in range(60 if length == 10 else 16)
    ]
    with Emulator(mailbox) as server:
        config = ClientConfig(url=server.url, login="user_test", password="TestPassword")
        async with AsyncClient(config) as client:
            found = [m.id async for m in aiter_messages(client, INBOX, MessageFilter())]
        sizes = [call["json"]["size"] for call in server.requests if "size" in call["json"]]

    assert sorted(found) == ids
    assert threading.main_thread() not in {thread for thread, _ in parsed}
    assert sizes[:3] == [10, 10, 10]  # two ask how the server reads labels and bounds (R29, R31)
    assert largest <= max(sizes[3:]) <= 2 * largest
    lengths = [length for _, length in parsed]
    assert max(lengths[2:]) <= PAGE_BYTES, (sizes, lengths)


@pytest.fixture
def crowded() -> Iterator[Emulator]:
    """A server with 150 messages, thirty of them of the same second."""
    mailbox = Mailbox()
    for number in range(150):
        second = min(120, number)
        mailbox.deliver(date=f"2025-06-01T10:{second // 60:02d}:{second % 60:02d}Z")
    with Emulator(mailbox) as server:
        yield server


def config_of(server: Emulator) -> ClientConfig:
    """Return how to reach a server."""
    return ClientConfig(
        url=server.url, login="user_test", password="TestPassword", backoff=0.01, max_retries=1
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "status", "kind"), in_turn([1, 7, 60], ["400", "413", "500"], ["sync", "async"])
)
async def test_a_page_that_is_refused_for_its_size_is_read_in_parts(
    crowded: Emulator, limit: int, status: Any, kind: str
) -> None:
    """If a server refuses large pages, smaller ones are requested, and no message is lost (R37)."""
    crowded.readings = Readings(size_limit=limit, size_refusal=status)
    if kind == "sync":
        with Client(config_of(crowded)) as client:
            found = [m.id for m in iter_messages(client, INBOX, MessageFilter(), page_size=100)]
    else:
        async with AsyncClient(config_of(crowded)) as aclient:
            found = [m.id async for m in aiter_messages(aclient, INBOX, MessageFilter())]
    refused = [call for call in crowded.requests if call["status"] == int(status)]

    assert sorted(found) == sorted(item["Id"] for item in crowded.mailbox.messages(INBOX))
    assert len(refused) <= 2 * 4


def test_an_offset_that_is_refused_is_read_with_less(crowded: Emulator) -> None:
    """If `offset` plus `size` may not be large, smaller pages are requested (R37)."""
    crowded.readings = Readings(reach_limit=45)
    with Client(config_of(crowded)) as client:
        found = [m.id for m in iter_messages(client, INBOX, MessageFilter(), page_size=20)]

    assert len(found) == len(set(found)) == 150


def test_a_page_size_that_is_refused_is_told(
    crowded: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """If it is the user's `page_size` that the server refuses, the log says so (R37)."""
    crowded.readings = Readings(size_limit=60)
    with Client(config_of(crowded)) as client:
        assert len(list(iter_messages(client, INBOX, MessageFilter(), page_size=100))) == 150

    assert "although page_size is larger" in caplog.text


def test_a_page_that_fails_at_any_size_fails(crowded: Emulator) -> None:
    """If a page of one message is refused as well, its size isn't the reason (R37)."""
    crowded.faults.append(Fault("Messages", status=500, times=None))
    with Client(config_of(crowded)) as client, pytest.raises(R7MailServerError):
        list(iter_messages(client, INBOX, MessageFilter()))

    asked = [call["json"]["size"] for call in crowded.requests if "size" in call["json"]]
    assert asked == [100, 100, 1, 1]
