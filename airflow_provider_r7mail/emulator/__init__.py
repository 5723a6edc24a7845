"""A local emulator of the R7-Office mail server, for tests, demos and benchmarks.

It is written from the API contract and shares no code with the client, so that a misreading in one
can't hide in the other.

    with Emulator(Mailbox()) as server:
        server.mailbox.deliver(subject="Прайс-лист", body="Добрый день!")
        httpx.post(f"{server.url}/api/v2/auth/Login", json={...})
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_r7mail.emulator.app import create_app
    from airflow_provider_r7mail.emulator.mailbox import Mailbox
    from airflow_provider_r7mail.emulator.messages import MISSING, Attachment, MailMessage
    from airflow_provider_r7mail.emulator.readings import Fault, Faults, Readings
    from airflow_provider_r7mail.emulator.server import Emulator
    from airflow_provider_r7mail.emulator.service import Service
    from airflow_provider_r7mail.emulator.store import Refused

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

# Imported on first use: Starlette and uvicorn are optional dependencies.
_HOMES = {
    "MISSING": "messages",
    "Attachment": "messages",
    "Emulator": "server",
    "Fault": "readings",
    "Faults": "readings",
    "MailMessage": "messages",
    "Mailbox": "mailbox",
    "Readings": "readings",
    "Refused": "store",
    "Service": "service",
    "create_app": "app",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
