"""After each extract: build small tables about the mail with pandas, and a page of charts.

Requires: the tables that `mail_extract` writes under the Airflow Variable `r7mail_lake`, and
`pip install 'airflow-provider-r7mail[analytics]'` for the charts. Each run rewrites
`marts/report.html` there, a single file that can be mailed or put on a web server, and in `marts/`

* `daily_volume.parquet`: messages by day, folder and sender's domain
* `response_times.parquet`: a row per answer, with the hours it took
* `unread_backlog.parquet`: unread messages by folder and age, with the date of the oldest
* `busiest_hours.parquet`: messages received, by day of the week and hour
* `attachment_types.parquet`: files and bytes by file extension

Days and hours are in the time zone of the param `timezone`. Each message counts once, in its state
when it was last extracted: one read since then still counts as unread. See
docs/en/changing-mail.md.

To adapt: TIMEZONE, a function like the five below for a table of your own, and the charts in
`mail_analytics_report.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from airflow.sdk import DAG, Asset, ObjectStoragePath, Param, task

from airflow_provider_r7mail.compat import AirflowFailException
from airflow_provider_r7mail.hooks import R7MailHook

if TYPE_CHECKING:
    import pandas as pd

LAKE = "{{ var.value.get('r7mail_lake', 'file:///tmp/r7mail') }}"
TIMEZONE = "Europe/Moscow"
FOLDER = ["mailbox", "folder"]


def daily_volume(messages: pd.DataFrame, zone: str) -> pd.DataFrame:
    """Count messages by day, folder and sender's domain."""
    found = messages.assign(
        day=messages["date"].dt.tz_convert(zone).dt.date,
        domain=messages["from_address"]
        .fillna("")
        .str.replace("(?s).*@", "", regex=True)
        .str.lower(),
    )
    keys = [*FOLDER, "day", "domain", "was_sent"]
    return found.groupby(keys).size().reset_index(name="messages")


def response_times(messages: pd.DataFrame, zone: str) -> pd.DataFrame:
    """Measure how long each side of a thread waited, from the first unanswered message."""
    people = messages[messages["thread_id"].notna() & ~messages["is_auto_submitted"].eq(other=True)]
    thread = ["mailbox", "thread_id"]
    ordered = people.sort_values([*thread, "date", "message_id"])
    # A turn: consecutive messages from one side.
    before = ordered.groupby(thread)["was_sent"].shift()
    turn = before.ne(ordered["was_sent"]).cumsum().rename("turn")
    turns = ordered.groupby([*thread, turn, "was_sent"]).agg(date=("date", "min")).reset_index()
    asked = turns.groupby(thread)["date"].shift()
    answered = turns.assign(
        hours=(turns["date"] - asked).dt.total_seconds() / 3600,
        answered_at=turns["date"].dt.tz_convert(zone),
    )
    return answered[asked.notna()][["mailbox", "thread_id", "answered_at", "was_sent", "hours"]]


def unread_backlog(messages: pd.DataFrame, zone: str) -> pd.DataFrame:
    """Count unread messages by folder and age at the last extract, and find the oldest."""
    there = messages[messages["gone_at"].isna()]
    unread = there[there["was_read"].eq(other=False) & ~there["was_sent"]]
    age = messages["extracted_at"].max() - unread["date"]
    aged = unread.assign(day=age.dt.days < 1, week=age.dt.days.between(1, 6), older=age.dt.days > 6)
    sums = {name: (name, "sum") for name in ("day", "week", "older")}
    return (
        aged.groupby(FOLDER)
        .agg(unread=("date", "size"), oldest=("date", "min"), **sums)
        .reset_index()
    )


def busiest_hours(messages: pd.DataFrame, zone: str) -> pd.DataFrame:
    """Count received messages by day of the week and hour."""
    local = messages["date"].dt.tz_convert(zone)
    found = messages.assign(weekday=local.dt.day_name(), hour=local.dt.hour)
    came = found[~messages["was_sent"]]
    return came.groupby([*FOLDER, "weekday", "hour"]).size().reset_index(name="messages")


def attachment_types(attachments: pd.DataFrame, zone: str) -> pd.DataFrame:
    """Count files and bytes by file extension."""
    named = attachments["file_name"].fillna("")
    found = attachments.assign(type=named.str.extract(r"\.(\w{1,8})$")[0].str.lower().fillna(""))
    grouped = found.groupby([*FOLDER, "type"])
    return grouped.agg(files=("type", "size"), bytes=("size", "sum")).reset_index()


# The function of each mart, the table it reads, and the columns it needs.
MARTS: dict[Callable[[pd.DataFrame, str], pd.DataFrame], tuple[str, list[str]]] = {
    daily_volume: ("messages", ["from_address", "date"]),
    response_times: ("messages", ["date", "thread_id", "is_auto_submitted"]),
    unread_backlog: ("messages", ["was_read", "date", "gone_at"]),
    busiest_hours: ("messages", ["date"]),
    attachment_types: ("attachments", ["file_name", "size"]),
}


def write(lake: str, name: str, data: bytes) -> str:
    """Write a file next to the marts; return its path."""
    path = ObjectStoragePath(f"{lake}/marts/{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


@task
def write_marts(lake: str, zone: str) -> list[str]:
    """Build the marts, all from one reading of the tables; return their paths."""
    from mail_analytics_tables import read_tables  # noqa: PLC0415 - heavy

    try:
        ZoneInfo(zone)
    except (ValueError, ZoneInfoNotFoundError) as error:
        raise AirflowFailException(
            f"params.timezone: {error}. Give a name like {TIMEZONE}."
        ) from error
    tables = read_tables(lake, MARTS.values())
    paths = []
    for make, (table, _) in MARTS.items():
        mart = make(tables[table], zone)
        made = BytesIO()
        mart.to_parquet(made, index=False)
        paths.append(write(lake, f"{make.__name__}.parquet", made.getvalue()))
    return paths


@task
def write_report(paths: Any, lake: str, zone: str) -> str:
    """Build the page from the marts; return its path."""
    import pandas as pd
    from mail_analytics_report import make_report  # noqa: PLC0415 - heavy

    marts = {
        path.stem: pd.read_parquet(BytesIO(path.read_bytes()))
        for path in map(ObjectStoragePath, paths)
    }
    names = {str(number): name for name, number in R7MailHook().settings.folders.items()}
    page = make_report(marts, zone, names, datetime.now(ZoneInfo(zone)))
    return write(lake, "report.html", page.encode())


with DAG(
    dag_id="mail_analytics",
    schedule=[Asset("r7mail_messages")],  # when mail_extract has written
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,  # each run writes the same files
    default_args={"retries": 1, "retry_delay": timedelta(minutes=1)},
    params={"timezone": Param(TIMEZONE, type="string", description="For days and hours.")},
    tags=["r7mail"],
    doc_md=__doc__,
) as dag:
    ZONE = "{{ params.timezone }}"
    write_report(write_marts(LAKE, ZONE), LAKE, ZONE)
