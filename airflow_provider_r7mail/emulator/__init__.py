"""A local stand-in for an R7-Office mail server: for tests, demonstrations and measuring.

It is written from the contract alone and imports nothing of the client's, so that the two cannot
share a mistake.

    with Emulator(Mailbox()) as server:
        server.mailbox.deliver(subject="Прайс-лист", body="Добрый день!")
        httpx.post(f"{server.url}/api/v2/auth/Login", json={...})
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_r7mail.emulator.app import Service, create_app
    from airflow_provider_r7mail.emulator.mailbox import (
        MISSING,
        Attachment,
        Mailbox,
        MailMessage,
        Refused,
    )
    from airflow_provider_r7mail.emulator.readings import Fault, Faults, Readings
    from airflow_provider_r7mail.emulator.server import Emulator

__all__ = [
    "MISSING",
    "Attachment",
    "Emulator",
    "Fault",
    "Faults",
    "MailMessage",
    "Mailbox",
    "Readings",
    "Refused",
    "Service",
    "create_app",
]

# Starlette and uvicorn are optional dependencies: they are imported when they are needed.
_HOMES = {
    "MISSING": "mailbox",
    "Attachment": "mailbox",
    "Emulator": "server",
    "Fault": "readings",
    "Faults": "readings",
    "MailMessage": "mailbox",
    "Mailbox": "mailbox",
    "Readings": "readings",
    "Refused": "mailbox",
    "Service": "app",
    "create_app": "app",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
