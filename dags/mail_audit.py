"""Every week: compare the tables of `mail_extract` with the mailbox, and extract what differs.

Requires: the connection `r7mail_default` with FOLDERS in its `folders`, and the tables that
`mail_extract` writes under the Airflow Variable `r7mail_lake`.

This finds what no single run can: mail that arrived days late or was moved in from elsewhere, hours
that nobody extracted, files that somebody removed. A folder in order takes some twenty requests.
What differs is extracted again, with the settings that the tables were written with. If anything
still differs afterwards, such as two overlapping windows, the task fails without further tries: the
log and the report in XCom say what a person has to look at. Nothing is changed on the server.

To adapt: FOLDERS, and START, which must be the START of `mail_extract`, or the first day of an
earlier backfill. Without `start`, all mail before that is extracted, too, in windows as long as
those of `mail_extract`; so is mail with a date like 1970. R7MAIL_START in Airflow's environment is
for `r7mail demo`; your copy doesn't need it.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Asset
from airflow.timetables.trigger import CronTriggerTimetable

from airflow_provider_r7mail.operators import R7MailAuditOperator

LAKE = "{{ var.value.get('r7mail_lake', 'file:///tmp/r7mail') }}"
FOLDERS = ["inbox", "sent"]
START = datetime.fromisoformat(os.environ.get("R7MAIL_START", "2026-11-01")).replace(tzinfo=UTC)

with DAG(
    dag_id="mail_audit",
    schedule=CronTriggerTimetable("0 3 * * 0", timezone="UTC"),
    start_date=START,
    catchup=False,  # an audit is of the present
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=2)},
    tags=["r7mail"],
    doc_md=__doc__,
) as dag:
    # [START audit]
    for folder in FOLDERS:
        R7MailAuditOperator(
            task_id=f"audit_{folder}",
            folder=folder,
            output_path=f"{LAKE}/tables",
            start=START,
            repair=True,
            fail_on_difference=True,
            outlets=[Asset("r7mail_messages")],  # starts mail_analytics
        )
    # [END audit]
