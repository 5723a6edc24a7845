"""The built-in mailbox: the mail of a Russian office."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_provider_r7mail.emulator.mailbox import Mailbox


def fill(mailbox: Mailbox, *, seed: int, messages: int, days: int, end: datetime | None) -> None:
    """Deliver the office's mail into a mailbox."""
