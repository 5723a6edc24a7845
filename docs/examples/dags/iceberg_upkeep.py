"""Keep Iceberg tables quick: merge small files, expire snapshots, remove orphans."""

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, task

# [START dag]
with DAG(
    "iceberg_upkeep",
    schedule="@weekly",
    start_date=datetime(2025, 6, 1, tzinfo=UTC),
    catchup=False,
) as dag:

    @task
    def upkeep(output_path: str) -> list[dict[str, Any]]:
        """Keep the tables of the default catalog quick."""
        from upath import UPath

        from airflow_provider_r7mail.lake.catalog import IcebergTarget
        from airflow_provider_r7mail.lake.upkeep import Upkeep, keep_up

        # For another catalog: IcebergTarget(properties of pyiceberg, namespace)
        done = keep_up(
            IcebergTarget(), UPath(output_path), Upkeep(keep_snapshots=timedelta(days=7))
        )
        return [table.record() for table in done]

    upkeep("{{ var.value.mail_lake }}")
# [END dag]
