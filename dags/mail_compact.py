"""Every month: make one window of the many hourly windows of each month past.

Requires: the tables that `mail_extract` writes under the Airflow Variable `r7mail_lake`. No mail
server is needed.

Hourly windows are small files: tens of thousands a year, and readers take as long as there are
files. A compacted month is one file a table. Everything else goes on as before: a run of an hour of
a compacted month replaces just that hour. OLDER_THAN_DAYS should be longer than `recheck_hours` of
`mail_extract` and any backfill, so that months are compacted when they are at rest.

To adapt: OLDER_THAN_DAYS, and `into="day"` for a mailbox with gigabytes of mail a month.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG
from airflow.timetables.trigger import CronTriggerTimetable

from airflow_provider_r7mail.operators import R7MailCompactOperator

LAKE = "{{ var.value.get('r7mail_lake', 'file:///tmp/r7mail') }}"
OLDER_THAN_DAYS = 35

with DAG(
    dag_id="mail_compact",
    schedule=CronTriggerTimetable("0 4 6 * *", timezone="UTC"),
    start_date=datetime(2026, 11, 1, tzinfo=UTC),
    catchup=False,  # it compacts what is there now
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=2)},
    tags=["r7mail"],
    doc_md=__doc__,
) as dag:
    # [START compact]
    R7MailCompactOperator(
        task_id="compact",
        output_path=f"{LAKE}/tables",
        older_than_days=OLDER_THAN_DAYS,
    )
    # [END compact]
