"""Every working day: wait for the bank's statement, and alert people if it hasn't arrived by nine.

Requires: the connection `r7mail_default` with `inbox` in its `folders`, and the recipients of the
alert, separated by commas, in the Airflow Variable `r7mail_alert_recipients`.

The run starts at six and waits for a message that arrived since midnight; between checks it takes
no worker slot. Once the message is there, its ids are passed to the following tasks. If it isn't
there by nine, the sensor times out and fails, and its `on_failure_callback` sends one mail. A
timeout is final: the task isn't retried. The three hours start with the first check and continue
across retries, which are for a mail server that is down; this is the advantage of
`mode="reschedule"` over a deferrable sensor here.

To adapt: what the message looks like, and the times. If Airflow itself may be late, use a
DeadlineAlert (Airflow 3.1 and later), which goes by the clock; see docs/en/alerts.md.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, task
from airflow.timetables.trigger import CronTriggerTimetable

from airflow_provider_r7mail.compat import AIRFLOW
from airflow_provider_r7mail.notifications import R7MailNotifier
from airflow_provider_r7mail.sensors import R7MailMessageSensor

# [START notifier]
NOT_BY_NINE = R7MailNotifier(
    to="{{ var.value.get('r7mail_alert_recipients', 'ops@example.org') }}",
    subject="The bank's statement of {{ ds }} has not arrived by nine",
    html_content=(
        "<p>There is no message from the bank in the inbox yet. "
        "{% if ti.log_url is defined %}<a href='{{ ti.log_url | e }}'>Task log</a>: {% endif %}"
        "{{ exception | e }}</p>"
    ),
)
# [END notifier]

with DAG(
    dag_id="report_by_nine",
    schedule=CronTriggerTimetable("0 6 * * 1-5", timezone="Europe/Moscow"),
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,  # nobody wants alerts for last month
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
    tags=["r7mail"],
    doc_md=__doc__,
) as dag:
    # [START sensor]
    statement = R7MailMessageSensor(
        task_id="wait_for_statement",
        folder="inbox",
        sender="statements@bank.example.org",
        subject="Statement",
        start="{{ logical_date.in_timezone('Europe/Moscow').start_of('day').isoformat() }}",
        mode="reschedule" if AIRFLOW > (3, 0) else "poke",  # 3.0 fails at the second check
        poke_interval=timedelta(minutes=5),
        timeout=timedelta(hours=3),
        on_failure_callback=NOT_BY_NINE,
    )
    # [END sensor]

    @task
    def use(message_ids: Any) -> int:
        """Replace this with what you do with the statement."""
        return len(message_ids)

    use(statement.output)
