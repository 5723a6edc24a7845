"""What `mail_analytics` reads: the tables' complete windows, and each message once."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd  # noqa: TID253 - only a task imports this file
from airflow.sdk import ObjectStoragePath

from airflow_provider_r7mail.compat import AirflowSkipException
from airflow_provider_r7mail.lake.reading import complete_files, read_table

FOLDER = ["mailbox", "folder"]
# Rows of different folders that agree in these are the same message; in a folder, those with the
# same `message_id` are. See docs/sql/latest_messages.sql.
IDENTITY = ["mime_message_id", "from_address", "date", "subject", "was_sent"]


def read(lake: str, table: str, columns: Iterable[str]) -> pd.DataFrame:
    """Read columns of a table's complete windows; the folders' ids are text, as in the marts."""
    root = ObjectStoragePath(f"{lake}/tables/{table}")
    rows = read_table(root, columns)
    if not len(rows) and not complete_files(root):
        raise AirflowSkipException(f"There is no table at {root} yet: run mail_extract first.")
    found: pd.DataFrame = rows.to_pandas()
    return found.astype({"folder": "str"})


def read_tables(lake: str, wanted: Iterable[tuple[str, list[str]]]) -> dict[str, pd.DataFrame]:
    """Read columns of `messages`, each message as last seen, and of its `attachments`."""
    columns = {
        "messages": {"message_id", "extracted_at", "gone_at", *IDENTITY},
        "attachments": {"message_id"},
    }
    for table, names in wanted:
        columns[table].update(names)
    messages, attachments = (read(lake, table, names) for table, names in columns.items())
    messages["was_sent"] = messages["was_sent"].eq(other=True)
    messages = messages.loc[last_seen(messages)]
    places = messages[[*FOLDER, "window", "message_id"]]
    return {"messages": messages, "attachments": attachments.merge(places)}


def last_seen(messages: pd.DataFrame) -> pd.Index[int]:
    """Return the index of each message's last row; see docs/sql/latest_messages.sql."""
    rows = messages[[*FOLDER, "message_id", "extracted_at", "gone_at", *IDENTITY]].copy()
    mime_id = rows["mime_message_id"].replace("", None)
    rows["mime_message_id"] = mime_id.fillna(rows["message_id"].astype("str"))
    rows["known_at"] = rows["gone_at"].fillna(rows["extracted_at"])
    rows = rows.sort_values("known_at").drop_duplicates([*FOLDER, "message_id"], keep="last")
    rows["there"] = rows["gone_at"].isna()
    rows = rows.sort_values(["there", "extracted_at"])
    by_id = rows.sort_values("message_id").groupby([*FOLDER, *IDENTITY], dropna=False)
    rows["copy"] = by_id.cumcount()
    return rows.drop_duplicates(["mailbox", *IDENTITY, "copy"], keep="last").index
