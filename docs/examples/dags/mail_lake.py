"""Copy each day's mail to Iceberg tables."""

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
        # For the catalog, the tables and the manifests; with catalog_conn_id, the manifests only.
        output_path="{{ var.value.mail_lake }}",
    )
# [END dag]
