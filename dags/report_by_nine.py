"""Every working day: wait for the bank's statement, and tell people if it has not come by nine.

What it needs: the connection `r7mail_default`, with `inbox` in its `folders`; and in the Airflow
Variable `r7mail_alert_recipients` who is to be told, as text with commas.

The run starts at six and waits for a message that came since midnight, without a worker between
two looks. When it is there, its ids go to the tasks that follow. When it is not there by nine, the
sensor times out and fails, and its `on_failure_callback` sends one mail. A time-out is final: it is
not tried again. The three hours begin with the first look and go on over retries, which are for
a mail server that is down; that is what `mode="reschedule"` has over a deferrable sensor here.

To adapt: what the message looks like, and the times. If Airflow itself may be late, count from
the clock instead: a DeadlineAlert (Airflow 3.1 and later) as in docs/en/alerts.md.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, task
from airflow.timetables.trigger import CronTriggerTimetable

from airflow_provider_r7mail.notifications import R7MailNotifier
from airflow_provider_r7mail.sensors import R7MailMessageSensor

# [START notifier]
NOT_BY_NINE = R7MailNotifier(
    to="{{ var.value.get('r7mail_alert_recipients', 'ops@example.org') }}",
    subject="The bank's statement of {{ ds }} has not come by nine",
    html_content=(
        "<p>No message from the bank is in the inbox yet. "
        "<a href='{{ ti.log_url | e }}'>What the task says</a>: {{ exception | e }}</p>"
    ),
)
# [END notifier]

with DAG(
    dag_id="report_by_nine",
    schedule=CronTriggerTimetable("0 6 * * 1-5", timezone="Europe/Moscow"),
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,  # nobody wants to be told of last month's mornings
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
        mode="reschedule",
        poke_interval=timedelta(minutes=5),
        timeout=timedelta(hours=3),
        on_failure_callback=NOT_BY_NINE,
    )
    # [END sensor]

    @task
    def use(message_ids: Any) -> int:
        """Stand in for what you do with the statement."""
        return len(message_ids)

    use(statement.output)
