"""Run once, by hand: extract two years of several folders, one task per day and folder.

Requires: the connection `r7mail_default` with FOLDERS in its `folders`, and the pool `r7mail`;
without the pool the tasks are never scheduled. Its slots limit how many tasks call the mail server
at once, from this DAG and any other; each makes up to `max_concurrency` requests at a time:

    airflow pools set r7mail 2 "Tasks that call the mail server"

Writes to: the tables of `mail_extract` under the Airflow Variable `r7mail_lake`. END must be the
START of `mail_extract`: overlapping windows contain the same messages twice. Attachments are listed
but not copied, since each would cost a request. Set `attachments_path` to copy them.

Each task replaces only its own window. If a worker dies, or the server is down for longer than the
retries last, clear the failed tasks: the others don't run again.

To adapt: FOLDERS and END, or the run's params. Airflow maps a task to at most 1,024 instances
(`[core] max_map_length`), or two years and nine months of days: use longer windows for more. How
to choose the values is explained in docs/en/scale.md.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from airflow.sdk import DAG, Param, task

from airflow_provider_r7mail.compat import AirflowFailException
from airflow_provider_r7mail.transfers import R7MailToParquetOperator

LAKE = "{{ var.value.get('r7mail_lake', 'file:///tmp/r7mail') }}"
FOLDERS = ("inbox", "sent")
END = date(2026, 11, 1)


@task
def split(start: str, end: str, days: str) -> list[dict[str, str]]:
    """Split the time from `start` to `end` into windows, newest first."""
    first, last = date.fromisoformat(start), date.fromisoformat(end)
    if first >= last:
        raise AirflowFailException(f"start: {start} is not before end, {end}.")
    length = timedelta(days=int(days))
    windows = []
    while last > first:
        begin = max(first, last - length)
        windows.append({"start": begin.isoformat(), "end": last.isoformat()})
        last = begin
    return windows


with DAG(
    dag_id="mail_backfill",
    schedule=None,
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    params={
        "start": Param(END.replace(year=END.year - 2).isoformat(), type="string", format="date"),
        "end": Param(END.isoformat(), type="string", format="date", description="exclusive"),
        "days": Param(1, type="integer", minimum=1, description="window length in days"),
    },
    max_active_runs=1,
    default_args={
        "retries": 5,
        "retry_delay": timedelta(seconds=30),
        "retry_exponential_backoff": True,
    },
    tags=["r7mail"],
    doc_md=__doc__,
) as dag:
    # [START backfill]
    windows = split("{{ params.start }}", "{{ params.end }}", "{{ params.days }}")
    for folder in FOLDERS:
        R7MailToParquetOperator.partial(
            task_id=f"extract_{folder}",
            folder=folder,
            output_path=f"{LAKE}/tables",
            recheck_hours=0,  # what is late by years is there at the first reading
            pool="r7mail",  # the mail server has other users
            max_active_tis_per_dag=8,  # leaves workers for other DAGs, whatever the pool size
            map_index_template="{{ task.start }}",
        ).expand_kwargs(windows)
    # [END backfill]
