"""Reading a folder message by message on an event loop that others share."""

from __future__ import annotations

import threading

import pytest

from airflow_provider_r7mail.client import reader
from airflow_provider_r7mail.client.calls import parse_page
from airflow_provider_r7mail.client.http import ClientConfig
from airflow_provider_r7mail.client.models import MessageFilter, Page
from airflow_provider_r7mail.client.reader import PAGE_BYTES, aiter_messages
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.emulator import Emulator, Mailbox

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
    assert sizes[:2] == [10, 10]  # the second is asked without labels (R31)
    assert largest <= max(sizes[2:]) <= 2 * largest
    lengths = [length for _, length in parsed]
    assert max(lengths[2:]) <= PAGE_BYTES, (sizes, lengths)
