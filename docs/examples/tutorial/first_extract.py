"""Extract the inbox into tables, a week at a time."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from airflow.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_r7mail.transfers import R7MailToParquetOperator

with DAG(
    "first_extract",
    schedule=CronDataIntervalTimetable("0 0 * * 1", timezone="UTC"),
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
) as dag:
    R7MailToParquetOperator(
        task_id="extract",
        folder="inbox",
        output_path=f"{os.environ['AIRFLOW_HOME']}/tables",
        attachments_path=f"{os.environ['AIRFLOW_HOME']}/attachments",
    )
