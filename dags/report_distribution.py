"""Every morning: who wrote to us yesterday, as a table in a message to each of some people.

What it needs: the connection `r7mail_default`, with `sent` in its `folders`; the tables that
`mail_extract` writes under the Airflow Variable `r7mail_lake`; and the recipients as a JSON list
in the Variable `r7mail_report_recipients`.

Everybody gets a message of their own, by a task of its own: if one fails, it is tried again, and
the others get nothing twice. Where it is unclear whether a message was sent, its task fails at
once and is not tried again: look into the Sent folder before you clear it.

To adapt: `make_report`. Keep `escape=True`: what stands in mail is other people's text.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, ObjectStoragePath, Variable, task
from airflow.sdk.exceptions import AirflowSkipException

from airflow_provider_r7mail.operators import R7MailSendOperator

LAKE = "{{ var.value.get('r7mail_lake', 'file:///tmp/r7mail') }}"
YESTERDAY = "{{ macros.ds_add(ds, -1) }}"
TOP = 20


@task
def make_report(lake: str, day: str) -> str:
    """Count the messages of a day by the sender's domain, and render them as HTML."""
    import pandas as pd

    root = ObjectStoragePath(f"{lake}/tables/messages")
    if not root.exists():
        raise AirflowSkipException(f"There are no tables at {root} yet: run mail_extract first.")
    begin = pd.Timestamp(day, tz="UTC")
    messages = pd.read_parquet(
        root.path,
        filesystem=root.fs,
        columns=["message_id", "from_address", "date", "was_read"],
        filters=[("date", ">=", begin), ("date", "<", begin + pd.Timedelta(days=1))],
    )
    domain = messages["from_address"].fillna("").str.rpartition("@")[2].str.lower()
    table = (
        messages.assign(unread=~messages["was_read"].fillna(value=False).astype(bool))
        .groupby(domain.rename("Domain"))
        .agg(Messages=("message_id", "nunique"), Unread=("unread", "sum"))
        .sort_values("Messages", ascending=False)
        .head(TOP)
        .reset_index()
    )
    total = messages["message_id"].nunique()
    return (
        f"<h2>Mail of {day}</h2><p>{total} messages; the {TOP} busiest domains:</p>"
        f"{table.to_html(index=False, escape=True, border=1)}"
    )


@task
def find_recipients() -> list[Any]:
    """Tell who gets the report."""
    found: list[Any] = Variable.get(
        "r7mail_report_recipients",
        default=["sales@example.org", "it@example.org"],
        deserialize_json=True,
    )
    return found


with DAG(
    dag_id="report_distribution",
    schedule=CronTriggerTimetable("0 6 * * *", timezone="UTC"),
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,  # nobody wants last month's reports today
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
    tags=["r7mail"],
    doc_md=__doc__,
) as dag:
    R7MailSendOperator.partial(
        task_id="send_report",
        subject=f"Mail of {YESTERDAY}",
        html_content=make_report(LAKE, YESTERDAY),
        sent_folder="sent",
        max_active_tis_per_dagrun=4,
    ).expand(to=find_recipients())
