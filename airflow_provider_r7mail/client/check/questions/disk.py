"""Whether the server's Disk takes files, so that mail can have them attached."""

from __future__ import annotations

import io
from functools import partial
from typing import Any
from uuid import uuid4

from airflow_provider_r7mail.client.attaching import (
    APPEAR_SECONDS,
    Uploads,
    delete_files,
    list_disk,
    until_found,
)
from airflow_provider_r7mail.client.calls import Call
from airflow_provider_r7mail.client.check.inquiry import Inquiry, failure_kind
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict
from airflow_provider_r7mail.client.http import interpret
from airflow_provider_r7mail.client.steps import Steps, carry_out
from airflow_provider_r7mail.client.upload import Source
from airflow_provider_r7mail.exceptions import R7MailRequestError

_REQUESTS = 30
_HANDLED = "Files to be sent are uploaded there. Without it, send links."


class DiskListing(Question):
    """Whether the Disk answers."""

    about = "the Disk"
    on_disk = True
    subjects = (Subject("disk", "", "Disk", _HANDLED),)

    def ask(self, inquiry: Inquiry) -> Findings:
        """List the folder for files to be sent."""
        inquiry.allow_more(_REQUESTS)
        try:
            files = carry_out(list_disk(inquiry.disk_folder), partial(_ask, inquiry))
        except R7MailRequestError as error:
            return {"disk": _failed(error)}
        return {"disk": ("ok", "answers", f"answers; files in the folder: {len(files)}")}


class DiskUpload(Question):
    """Whether a file can be uploaded, found and deleted."""

    about = "uploading to the Disk"
    on_disk = True
    writes = True
    subjects = (Subject("disk_upload", "", "Upload to the Disk", _HANDLED),)

    def ask(self, inquiry: Inquiry) -> Findings:
        """Upload one small file, and delete it."""
        inquiry.allow_more(_REQUESTS)
        content = f"Uploaded by r7mail check: {uuid4()}\n".encode()
        source = Source("r7mail-check.txt", "the check's file", partial(io.BytesIO, content))
        uploads = Uploads(sources=(source,), disk_folder=inquiry.disk_folder)
        ask = partial(_ask, inquiry)
        try:
            [file] = carry_out(uploads.steps(), ask)
        except R7MailRequestError as error:
            return {"disk_upload": _failed(error)}
        with inquiry.unlimited():
            try:
                carry_out(delete_files([file.id or 0]), ask)
                look = partial(_is_gone, inquiry.disk_folder, file.id)
                gone = carry_out(until_found(look, APPEAR_SECONDS), ask)
            except R7MailRequestError as error:
                level, reading, says = _failed(error)
                return {"disk_upload": (level, reading, f"file {file.id} was not deleted: {says}")}
        if not gone:
            says = f"uploaded, but file {file.id} was not deleted: delete it in the web client"
            return {"disk_upload": ("warning", "not deleted", says)}
        return {"disk_upload": ("ok", "works", "a file was uploaded, listed and deleted")}


def _is_gone(disk_folder: int | None, file_id: int | None) -> Steps[bool | None]:
    files = yield from list_disk(disk_folder)
    return None if any(file.id == file_id for file in files) else True


def _ask(inquiry: Inquiry, call: Call[Any]) -> Any:
    answer = inquiry.look(call)
    return interpret(call, answer.status, answer.headers, answer.body, 1)


def _failed(error: R7MailRequestError) -> Verdict:
    """Return the verdict on a failure, without what may name hosts."""
    kind = failure_kind(error)
    says = kind if error.status is None else f"{kind}: {error.reason}. {error.hint}"
    return "warning", kind, says.removesuffix(" No message was sent.")


QUESTIONS = (DiskListing, DiskUpload)
