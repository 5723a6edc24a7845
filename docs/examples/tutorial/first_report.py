"""Count the messages in the tables, and mail the number."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from airflow.sdk import DAG, task

from airflow_provider_r7mail.operators import R7MailSendOperator


@task
def count() -> int:
    """Return the number of messages in the tables."""
    import pyarrow.dataset as ds

    return ds.dataset(f"{os.environ['AIRFLOW_HOME']}/tables/messages").count_rows()


with DAG(
    "first_report", schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC), catchup=False
) as dag:
    counted = count()
    R7MailSendOperator(
        task_id="send",
        to=["ann@example.org", "bob@example.org"],
        subject="Last week's mail",
        html_content="<p>Messages that arrived: {{ ti.xcom_pull('count') }}.</p>",
        sent_folder="sent",
    ).set_upstream(counted)
