"""Messages as a pandas DataFrame. No I/O, no Airflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.client.models import Message, mend_text
from airflow_provider_r7mail.exceptions import R7MailConfigError

if TYPE_CHECKING:
    import pandas as pd


def import_pandas(user: str) -> Any:
    """Import pandas, which is an extra of this package.

    :param user: what needs it, for the error
    :raises R7MailConfigError: it is not installed
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise R7MailConfigError(
            f"{user} needs pandas ({error}): pip install 'airflow-provider-r7mail[pandas]'"
        ) from error
    return pd


def messages_frame(messages: Iterable[Message]) -> pd.DataFrame:
    """Put messages into a DataFrame, with the columns of the `messages` table.

    :return: one row per message; with no messages, the columns only
    :raises R7MailConfigError: pandas is not installed
    """
    pandas = import_pandas("get_messages_df")
    names = [item.name for item in fields(Message)]
    rows = [_row(message, names) for message in messages]
    frame: pd.DataFrame = pandas.DataFrame(rows, columns=names)
    return frame.rename(columns={"id": "message_id"})


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
