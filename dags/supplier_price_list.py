"""A supplier mails a price list: wait for it, take the .xlsx, load it, then file the message.

What it needs: the connection `r7mail_default`, with `inbox` and `processed` in its `folders`, and
openpyxl (`pip install openpyxl`). Where it writes: the Airflow Variable `r7mail_lake`, a path or
any URL that ObjectStoragePath takes.

Messages are marked read and moved only when all their price lists are loaded. A file that is no
price list fails the run, which names the message and leaves all of them in the inbox, for a person
to look. Trying again does no harm: a message's rows replace what was loaded of it before, and a
message that was moved is not found any more. A message without an .xlsx stays where it is.

To adapt: the subject, the columns, and what `load` does with the rows. Everybody can write a
subject: add `sender="price@example.org"` to the sensor to take price lists from one supplier only.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any
from zipfile import BadZipFile

from airflow.sdk import DAG, ObjectStoragePath, task

from airflow_provider_r7mail.compat import AirflowFailException, AirflowSkipException
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
            data = ObjectStoragePath(file["uri"]).read_bytes()
            sheet = pd.read_excel(BytesIO(data), dtype={"Артикул": str})
            missing = [name for name in COLUMNS if name not in sheet]
            if missing:
                raise ValueError(f"it lacks the columns {', '.join(missing)}")
            rows = sheet[list(COLUMNS)].rename(columns=COLUMNS)
            rows["price"] = pd.to_numeric(rows["price"]).astype("float64")
            rows["stock"] = pd.to_numeric(rows["stock"]).astype("int64")
        except (ValueError, BadZipFile) as error:
            raise AirflowFailException(
                f"Message {message_id} has a file that is no price list: {error}"
            ) from error
        made = BytesIO()
        rows.to_parquet(made, index=False)
        folder = ObjectStoragePath(f"{lake}/price_lists/message_id={message_id}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"part-{number:05d}.parquet").write_bytes(made.getvalue())
        loaded.append(message_id)
    if not loaded:
        raise AirflowSkipException("None of the messages has an .xlsx.")
    return sorted(set(loaded))


with DAG(
    dag_id="supplier_price_list",
    schedule="*/15 * * * *",
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,  # what counts is what lies in the inbox now
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
        deferrable=True,  # waits without a worker slot
        poke_interval=60,
        timeout=timedelta(hours=12),
        soft_fail=True,  # no price list in half a day is no failure
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
