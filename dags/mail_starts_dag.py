"""An order that arrives by mail starts this DAG, which loads it and moves the message.

Requires: Airflow 3.3 and the connection `r7mail_default` with `inbox` and `processed` in its
`folders`. Writes to: the Airflow Variable `r7mail_lake`, a path or any URL that ObjectStoragePath
accepts.

No task waits: the triggerer checks the inbox once a minute, and a run starts only when there is
mail, with the ids of the messages. Events are delivered at least once, so the first task drops
messages that an earlier run has already moved. A run may get several messages.

An order that can't be read fails the run and stays in the inbox. There is no second event for it:
once the cause is fixed, clear the run's failed tasks.

To adapt: the subject, and what `load` does. Anyone can write a subject: add
`sender="orders@example.org"` to the filters to accept orders from one customer only. The asset's
URI is just a name: use your login and server, since other DAGs may wait for the same asset.
"""

from __future__ import annotations

from datetime import timedelta
from io import BytesIO
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, ObjectStoragePath, task

from airflow_provider_r7mail.compat import AirflowFailException, AirflowSkipException
from airflow_provider_r7mail.hooks import R7MailHook
from airflow_provider_r7mail.operators import R7MailMarkReadOperator, R7MailMoveOperator
from airflow_provider_r7mail.transfers import R7MailAttachmentsToObjectStorageOperator
from airflow_provider_r7mail.triggers import R7MailMessageEventTrigger

LAKE = "{{ var.value.get('r7mail_lake', 'file:///tmp/r7mail') }}"
SUBJECT = "Заказ"
IDS = "{{ ti.xcom_pull('arrived') }}"

# [start of watcher]
ORDERS = Asset(
    name="orders_by_mail",
    watchers=[
        AssetWatcher(
            name="new_order",
            trigger=R7MailMessageEventTrigger(folder="inbox", subject=SUBJECT, poll_interval=60),
        )
    ],
)
# [end of watcher]


# [start of ids]
@task
def arrived(triggering_asset_events: Any = None) -> list[int]:
    """Return the ids from the events of those messages that are still in the inbox."""
    announced = {
        message_id
        for events in triggering_asset_events.values()
        for event in events
        for message_id in event.extra["payload"]["message_ids"]
    }
    here = {message.id for message in R7MailHook().iter_messages("inbox", subject=SUBJECT)}
    if not announced & here:
        raise AirflowSkipException("An earlier run has already moved all these messages.")
    return sorted(announced & here)


# [end of ids]


@task
def load(files: Any, lake: str) -> int:
    """Write each order's rows as Parquet; return the number of orders."""
    import pandas as pd

    orders = [file for file in files if file["uri"]]
    for number, file in enumerate(orders):
        try:
            data = ObjectStoragePath(lake).fs.cat_file(file["uri"])
            rows = pd.read_csv(BytesIO(data), dtype={"sku": str})
            rows = rows[["sku", "quantity"]].astype({"quantity": "int64"})
        except (KeyError, ValueError) as error:
            raise AirflowFailException(
                f"Message {file['message_id']} has a file that isn't an order: {error}"
            ) from error
        folder = ObjectStoragePath(f"{lake}/orders/message_id={file['message_id']}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"part-{number:05d}.parquet").write_bytes(rows.to_parquet(index=False))
    return len(orders)


with DAG(
    dag_id="mail_starts_dag",
    schedule=[ORDERS],
    max_active_runs=1,  # one at a time: a run must see what the previous one moved
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["r7mail"],
    doc_md=__doc__,
) as dag:
    ids = arrived()
    take = R7MailAttachmentsToObjectStorageOperator(
        task_id="take_attachments",
        folder="inbox",
        message_ids=IDS,
        attachments_path=f"{LAKE}/attachments",
        attachment_pattern="*.csv",
    )
    mark = R7MailMarkReadOperator(task_id="mark_read", folder="inbox", message_ids=IDS)
    move = R7MailMoveOperator(
        task_id="move_to_processed", folder="inbox", message_ids=IDS, to_folder="processed"
    )
    ids >> take >> load(take.output, LAKE) >> mark >> move
