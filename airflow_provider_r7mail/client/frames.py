"""Messages as a pandas DataFrame. No I/O, no Airflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.client.models import Message, mend_text

if TYPE_CHECKING:
    import pandas as pd


def messages_frame(messages: Iterable[Message]) -> pd.DataFrame:
    """Put messages into a DataFrame, with the columns of the `messages` table.

    :return: one row per message; with no messages, the columns only
    """
    import pandas as pd

    names = [item.name for item in fields(Message)]
    rows = [_row(message, names) for message in messages]
    return pd.DataFrame(rows, columns=names).rename(columns={"id": "message_id"})


def _row(message: Message, names: Sequence[str]) -> dict[str, Any]:
    row = {name: _mended(getattr(message, name)) for name in names}
    if message.attachments is not None:
        row["attachments"] = [
            {
                "attachment_id" if name == "id" else name: value
                for name, value in _mended(asdict(file)).items()
            }
            for file in message.attachments
        ]
    return row


def _mended(value: Any) -> Any:
    """The value with text that pandas can store (R21)."""
    if isinstance(value, str):
        return mend_text(value)
    if isinstance(value, Mapping):
        return {_mended(name): _mended(item) for name, item in value.items()}
    return [_mended(item) for item in value] if isinstance(value, list | tuple) else value
