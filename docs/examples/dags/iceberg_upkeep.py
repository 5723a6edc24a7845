"""Keep Iceberg tables quick: merge small files, expire snapshots, remove orphans."""

from datetime import UTC, datetime

from airflow.sdk import DAG

from airflow_provider_r7mail.operators import R7MailCompactOperator

# [START dag]
with DAG(
    "iceberg_upkeep",
    schedule="@weekly",
    start_date=datetime(2025, 6, 1, tzinfo=UTC),
    catchup=False,
) as dag:
    R7MailCompactOperator(
        task_id="upkeep",
        table_format="iceberg",
        output_path="{{ var.value.mail_lake }}",
        keep_snapshots_days=7,
    )
# [END dag]
