"""Copy the attachments of unread invoices, move the mail, and report it by mail."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, task

from airflow_provider_r7mail.hooks import R7MailHook
from airflow_provider_r7mail.operators import R7MailMoveOperator, R7MailSendOperator
from airflow_provider_r7mail.transfers import R7MailAttachmentsToObjectStorageOperator


@task
def find() -> list[int]:
    """Return the ids of unread messages whose subject marks them as invoices."""
    messages = R7MailHook().iter_messages("inbox", subject="Счёт", was_read=False)
    return [message.id for message in messages]


with DAG(
    "file_invoices",
    schedule="@hourly",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=1)},
) as dag:
    found = find()
    take = R7MailAttachmentsToObjectStorageOperator(
        task_id="take_files",
        folder="inbox",
        message_ids=found,
        attachments_path="{{ var.value.invoices }}",
        attachment_pattern="*.pdf",
    )
    move = R7MailMoveOperator(
        task_id="file_mail", folder="inbox", message_ids=found, to_folder="processed"
    )
    tell = R7MailSendOperator(
        task_id="tell",
        to="accounts@example.org",
        subject="{{ ti.xcom_pull('find') | length }} invoices",
        html_content="<p>They are in {{ var.value.invoices }}.</p>",
    )
    take >> move >> tell
