"""An emulator with an empty mailbox, and a client of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_provider_r7mail.emulator import Emulator, Mailbox
from tests.emulator.calls import Api

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def mailbox() -> Mailbox:
    """An empty mailbox."""
    return Mailbox()


@pytest.fixture
def server(mailbox: Mailbox, caplog: pytest.LogCaptureFixture) -> Iterator[Emulator]:
    """An emulator of that mailbox, which must log nothing, whatever a test does to it."""
    with Emulator(mailbox) as running:
        yield running
    assert [record.getMessage() for record in caplog.get_records("call")] == []


@pytest.fixture
def api(server: Emulator) -> Iterator[Api]:
    """A client of that emulator, logged in."""
    with Api(server) as client:
        client.log_in()
        yield client
