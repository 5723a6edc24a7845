"""Variants of the extract for the how-to guides."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_r7mail.operators import R7MailSendOperator
from airflow_provider_r7mail.transfers import R7MailToParquetOperator

with DAG(
    "variants",
    schedule=CronDataIntervalTimetable("0 * * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
) as dag:
    # [START columns]
    narrow = R7MailToParquetOperator(
        task_id="extract_headers",
        folder="inbox",
        output_path="{{ var.value.r7mail_lake }}/headers",
        tables=["messages"],
        columns=["message_id", "date", "from_address", "subject", "size"],
    )
    # [END columns]
    # [START s3]
    with_files = R7MailToParquetOperator(
        task_id="extract_inbox",
        folder="inbox",
        output_path="s3://bucket/mail/tables",
        attachments_path="s3://bucket/mail/attachments",
        storage_conn_id="aws_default",
    )
    # [END s3]
    # [START manifest]
    report = R7MailSendOperator(
        task_id="report",
        to="ann@example.org",
        subject="Mail",
        html_content="<p>Messages: {{ ti.xcom_pull('extract_inbox')['messages'] }}</p>",
    )
    # [END manifest]
    narrow >> with_files >> report
