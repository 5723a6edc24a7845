"""Copy each day's mail into Iceberg tables."""

from datetime import UTC, datetime

from airflow.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_r7mail.transfers import R7MailToParquetOperator

# [START dag]
with DAG(
    "mail_lake",
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2025, 6, 1, tzinfo=UTC),
    catchup=False,
) as dag:
    R7MailToParquetOperator(
        task_id="extract",
        folder=24,
        table_format="iceberg",
        # The catalog, the tables and the manifests; with a catalog_conn_id only the manifests.
        output_path="{{ var.value.mail_lake }}",
    )
# [END dag]
