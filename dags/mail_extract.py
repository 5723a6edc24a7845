"""Every hour: copy new messages to Parquet tables, and their attachments to storage.

Requires: the connection `r7mail_default` with `inbox` and `sent` in its `folders`. Writes to: the
Airflow Variable `r7mail_lake`, a path or any URL that ObjectStoragePath accepts, such as
`s3://bucket/mail`.

A run extracts exactly its data interval. So runs can be late, out of order or concurrent; a second
run of an interval replaces the files of the first, and nothing is counted twice. That makes catchup
safe, and it is on: hours in which Airflow was down are extracted later.

To adapt: FOLDERS, and START, the day your history begins; set it before you unpause the DAG. For
daily runs, change SCHEDULE and also the output path: overlapping windows contain the same messages
twice. Keep CronDataIntervalTimetable: plain cron schedules have an empty interval in Airflow 3.
R7MAIL_START and R7MAIL_SCHEDULE in Airflow's environment are for `r7mail demo`, which runs this
file weekly; your copy needs neither.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Asset
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_r7mail.transfers import R7MailToParquetOperator

LAKE = "{{ var.value.get('r7mail_lake', 'file:///tmp/r7mail') }}"
SCHEDULE = os.environ.get("R7MAIL_SCHEDULE", "0 * * * *")
FOLDERS = ["inbox", "sent"]
START = datetime.fromisoformat(os.environ.get("R7MAIL_START", "2026-11-01")).replace(tzinfo=UTC)

with DAG(
    dag_id="mail_extract",
    schedule=CronDataIntervalTimetable(SCHEDULE, timezone="UTC"),
    start_date=START,
    catchup=True,
    max_active_runs=2,  # the mail server has other users
    default_args={"retries": 3, "retry_delay": timedelta(minutes=2)},
    tags=["r7mail"],
    doc_md=__doc__,
) as dag:
    for folder in FOLDERS:
        R7MailToParquetOperator(
            task_id=f"extract_{folder}",
            folder=folder,
            output_path=f"{LAKE}/tables",
            attachments_path=f"{LAKE}/attachments",
            outlets=[Asset("r7mail_messages")],  # starts mail_analytics
        )
