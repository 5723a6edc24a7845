"""After each extract: small tables about the mail, made with pandas.

What it needs: the tables that `mail_extract` writes under the Airflow Variable `r7mail_lake`. What
it writes there, each time anew, under `marts/`:

* `daily_volume.parquet`: messages by day, folder and domain of the sender
* `unread_backlog.parquet`: unread messages by folder, and the date of the oldest
* `busiest_hours.parquet`: messages by day of the week and hour, in TIMEZONE
* `attachment_types.parquet`: files and bytes by the end of the file's name

A message is counted as it was when it was extracted: one that was read or moved since then still
counts as unread, and in its old folder. Extract its window again to see it as it is now.

To adapt: TIMEZONE, and a function like the four below for a table of your own.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import TYPE_CHECKING

from airflow.sdk import DAG, Asset, ObjectStoragePath, task
from airflow.sdk.exceptions import AirflowSkipException

if TYPE_CHECKING:
    import pandas as pd

LAKE = "{{ var.value.get('r7mail_lake', 'file:///tmp/r7mail') }}"
TIMEZONE = "Europe/Moscow"
FOLDER = ["mailbox", "folder"]


def daily_volume(messages: pd.DataFrame) -> pd.DataFrame:
    """Messages by day, folder and domain of the sender."""
    found = messages.assign(
        day=messages["date"].dt.tz_convert(TIMEZONE).dt.date,
        domain=messages["from_address"].fillna("").str.rpartition("@")[2].str.lower(),
    )
    return found.groupby([*FOLDER, "day", "domain"]).size().reset_index(name="messages")


def unread_backlog(messages: pd.DataFrame) -> pd.DataFrame:
    """Unread messages by folder, and the date of the oldest."""
    unread = messages[messages["was_read"].eq(other=False)]
    return unread.groupby(FOLDER).agg(unread=("date", "size"), oldest=("date", "min")).reset_index()


def busiest_hours(messages: pd.DataFrame) -> pd.DataFrame:
    """Messages by day of the week and hour."""
    local = messages["date"].dt.tz_convert(TIMEZONE)
    found = messages.assign(weekday=local.dt.day_name(), hour=local.dt.hour)
    return found.groupby([*FOLDER, "weekday", "hour"]).size().reset_index(name="messages")


def attachment_types(attachments: pd.DataFrame) -> pd.DataFrame:
    """Files and bytes by the end of the file's name."""
    named = attachments["file_name"].fillna("")
    found = attachments.assign(type=named.str.extract(r"\.(\w{1,8})$")[0].str.lower().fillna(""))
    grouped = found.groupby([*FOLDER, "type"])
    return grouped.agg(files=("type", "size"), bytes=("size", "sum")).reset_index()


# A mart's function, the table it is made of, and the columns it needs of it.
MARTS: dict[Callable[[pd.DataFrame], pd.DataFrame], tuple[str, list[str]]] = {
    daily_volume: ("messages", ["from_address", "date"]),
    unread_backlog: ("messages", ["was_read", "date"]),
    busiest_hours: ("messages", ["date"]),
    attachment_types: ("attachments", ["file_name", "size"]),
}


@task
def write_mart(name: str, lake: str) -> int:
    """Make a mart of its table; return how many rows it has."""
    import pandas as pd

    make, (table, columns) = next(item for item in MARTS.items() if item[0].__name__ == name)
    root = ObjectStoragePath(f"{lake}/tables/{table}")
    if not root.exists():
        raise AirflowSkipException(f"There is no table at {root} yet: run mail_extract first.")
    # `mailbox` and `folder` are in the paths of the files, and come as categories.
    rows = pd.read_parquet(root.path, filesystem=root.fs, columns=[*FOLDER, *columns])
    mart = make(rows.astype(dict.fromkeys(FOLDER, "str")))
    made = BytesIO()
    mart.to_parquet(made, index=False)
    folder = ObjectStoragePath(f"{lake}/marts")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.parquet").write_bytes(made.getvalue())
    return len(mart)


with DAG(
    dag_id="mail_analytics",
    schedule=[Asset("r7mail_messages")],  # when mail_extract has written
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,  # each run writes the same files
    default_args={"retries": 1, "retry_delay": timedelta(minutes=1)},
    tags=["r7mail"],
    doc_md=__doc__,
) as dag:
    for function in MARTS:
        write_mart.override(task_id=function.__name__)(function.__name__, LAKE)
