"""A supplier mails a price list: wait for it, load the .xlsx file, then move the message.

Requires: the connection `r7mail_default` with `inbox` and `processed` in its `folders`, and
openpyxl (`pip install openpyxl`). Writes to: the Airflow Variable `r7mail_lake`, a path or any URL
that ObjectStoragePath accepts.

Messages are marked read and moved only after all their price lists are loaded. A file that isn't a
price list fails the run; the error has the message's id, and all messages stay in the inbox for a
person to check. Retrying is safe: a message's rows replace those loaded before, and a message that
was moved isn't found again. A message without an .xlsx file stays where it is.

To adapt: the subject, the columns, and what `load` does with the rows. Anyone can write a subject:
add `sender="price@example.org"` to the sensor to accept price lists from one supplier only.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any
from zipfile import BadZipFile

from airflow.sdk import DAG, ObjectStoragePath, task

from airflow_provider_r7mail.compat import AIRFLOW, AirflowFailException, AirflowSkipException
from airflow_provider_r7mail.operators import R7MailMarkReadOperator, R7MailMoveOperator
from airflow_provider_r7mail.sensors import R7MailMessageSensor
from airflow_provider_r7mail.transfers import R7MailAttachmentsToObjectStorageOperator

LAKE = "{{ var.value.get('r7mail_lake', 'file:///tmp/r7mail') }}"
SUBJECT = "Прайс-лист"
COLUMNS = {"Артикул": "sku", "Наименование": "name", "Цена": "price", "Остаток": "stock"}
IDS = "{{ ti.xcom_pull('load') }}"


@task
def load(files: Any, lake: str) -> list[int]:
    """Write each price list's rows as Parquet; return the ids of the messages they came with."""
    import pandas as pd

    loaded = []
    for number, file in enumerate(file for file in files if file["uri"]):
        message_id = file["message_id"]
        try:
            data = ObjectStoragePath(lake).fs.cat_file(file["uri"])
            sheet = pd.read_excel(BytesIO(data), dtype={"Артикул": str})
            missing = [name for name in COLUMNS if name not in sheet]
            if missing:
                raise ValueError(f"missing columns: {', '.join(missing)}")
            rows = sheet[list(COLUMNS)].rename(columns=COLUMNS)
            rows["price"] = pd.to_numeric(rows["price"]).astype("float64")
            rows["stock"] = pd.to_numeric(rows["stock"]).astype("int64")
        except (ValueError, BadZipFile) as error:
            raise AirflowFailException(
                f"Message {message_id} has a file that isn't a price list: {error}"
            ) from error
        made = BytesIO()
        rows.to_parquet(made, index=False)
        folder = ObjectStoragePath(f"{lake}/price_lists/message_id={message_id}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"part-{number:05d}.parquet").write_bytes(made.getvalue())
        loaded.append(message_id)
    if not loaded:
        raise AirflowSkipException("None of the messages has an .xlsx file.")
    return sorted(set(loaded))


with DAG(
    dag_id="supplier_price_list",
    schedule="*/15 * * * *",
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,  # only the current inbox matters
    max_active_runs=1,  # two runs would find the same message
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    tags=["r7mail"],
    doc_md=__doc__,
) as dag:
    wait = R7MailMessageSensor(
        task_id="wait_for_price_list",
        folder="inbox",
        subject=SUBJECT,
        was_read=False,
        deferrable=AIRFLOW > (3, 0),  # waits without a worker slot; 3.0 can't with soft_fail
        poke_interval=60,
        timeout=timedelta(hours=12),
        soft_fail=True,  # half a day without a price list isn't a failure
    )
    take = R7MailAttachmentsToObjectStorageOperator(
        task_id="take_attachments",
        folder="inbox",
        message_ids="{{ ti.xcom_pull('wait_for_price_list') }}",
        attachments_path=f"{LAKE}/attachments",
        attachment_pattern="*.xlsx",
    )
    mark = R7MailMarkReadOperator(task_id="mark_read", folder="inbox", message_ids=IDS)
    move = R7MailMoveOperator(
        task_id="move_to_processed", folder="inbox", message_ids=IDS, to_folder="processed"
    )
    wait >> take >> load(take.output, LAKE) >> mark >> move
