"""Every morning: mail a table of who wrote to us yesterday to each person on a list.

Requires: the connection `r7mail_default` with `sent` in its `folders`; the tables that
`mail_extract` writes under the Airflow Variable `r7mail_lake`; and the recipients as a JSON list of
`{"to": ..., "name": ...}` in the Variable `r7mail_report_recipients`.

Each person gets their own message, sent by its own task: if one fails, it is retried, and the
others get nothing twice. If it is unclear whether a message was sent, its task checks the Sent
folder. The full table is attached as a CSV file, which is uploaded to the server's Disk for that.
Where `r7mail check --disk` finds none, write `links` in place of `files`.

To adapt: `make_report`, and the message in `report_distribution.html`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, ObjectStoragePath, Variable, task
from airflow.timetables.trigger import CronTriggerTimetable

from airflow_provider_r7mail.compat import AirflowSkipException
from airflow_provider_r7mail.lake.reading import read_table
from airflow_provider_r7mail.operators import R7MailSendOperator

LAKE = "{{ var.value.get('r7mail_lake', 'file:///tmp/r7mail') }}"
YESTERDAY = "{{ macros.ds_add(ds, -1) }}"
TOP = 20


@task
def make_report(lake: str, day: str) -> dict[str, Any]:
    """Count the messages of a day by the sender's domain."""
    import pandas as pd

    root = ObjectStoragePath(f"{lake}/tables/messages")
    if not root.exists():
        raise AirflowSkipException(f"There are no tables at {root} yet: run mail_extract first.")
    begin = pd.Timestamp(day, tz="UTC")
    end = begin + pd.Timedelta(days=1)
    messages = read_table(
        root, ["message_id", "from_address", "date", "was_read"], start=begin, end=end
    ).to_pandas()
    messages = messages[messages["date"].between(begin, end, inclusive="left")]
    messages = messages.drop_duplicates(["mailbox", "message_id"])
    domain = messages["from_address"].fillna("").str.rpartition("@")[2].str.lower()
    table = (
        messages.assign(unread=~messages["was_read"].fillna(value=False).astype(bool))
        .groupby(domain.rename("Domain"))
        .agg(Messages=("message_id", "size"), Unread=("unread", "sum"))
        .sort_values("Messages", ascending=False)
        .reset_index()
    )
    file = ObjectStoragePath(f"{lake}/reports/mail_of_{day}.csv")
    file.parent.mkdir(parents=True, exist_ok=True)
    # Spreadsheets take text that starts with these for a formula, and anyone can write a sender.
    harmless = table.assign(Domain=table["Domain"].str.replace(r"^(?=[=+@\-])", "'", regex=True))
    file.write_bytes(harmless.to_csv(index=False).encode())
    return {
        "day": day,
        "total": len(messages),
        "rows": table.head(TOP).to_dict("records"),  # keep the XCom small: the rest is in the file
        "file": str(file),
    }


@task
def address(day: str) -> list[dict[str, Any]]:
    """Return the recipients and the parameters of each message."""
    people = Variable.get(
        "r7mail_report_recipients",
        default=[{"to": "sales@example.org", "name": "sales"}],
        deserialize_json=True,
    )
    return [
        {
            "to": person["to"],
            "subject": f"Mail of {day}, for {person['name']}",
            "params": {"name": person["name"]},
        }
        for person in people
    ]


with DAG(
    dag_id="report_distribution",
    schedule=CronTriggerTimetable("0 6 * * *", timezone="UTC"),
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,  # nobody wants last month's reports today
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
    tags=["r7mail"],
    doc_md=__doc__,
) as dag:
    # [START send]
    send = R7MailSendOperator.partial(
        task_id="send_report",
        html_content="report_distribution.html",  # a template next to this file
        files=["{{ ti.xcom_pull('make_report')['file'] }}"],
        sent_folder="sent",
        max_active_tis_per_dagrun=4,
    ).expand_kwargs(address(YESTERDAY))
    # [END send]
    make_report(LAKE, YESTERDAY) >> send
