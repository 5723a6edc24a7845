"""Every week: delete from the Disk what was uploaded for mail more than a month ago."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, task

from airflow_provider_r7mail.hooks import R7MailHook

with DAG(
    "clear_uploads",
    schedule="@weekly",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    default_args={"retries": 2},
) as dag:
    # [START clear]
    @task
    def clear_uploads(days: int = 30) -> int:
        """Delete old uploads, and return their number."""
        hook = R7MailHook()
        since = datetime.now(UTC).date() - timedelta(days=days)
        old = [file.id for file in hook.list_disk() if file.uploaded and file.uploaded < since]
        return hook.delete_from_disk(old)

    # [END clear]
    clear_uploads()
