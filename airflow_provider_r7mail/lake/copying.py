"""Copy the attachments of selected messages to object storage, without writing tables."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import asdict

from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.reader import aiter_messages
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.exceptions import R7MailMessageNotFoundError, R7MailPublishError
from airflow_provider_r7mail.lake.attachments import AttachmentCopier, StoredFile
from airflow_provider_r7mail.lake.derived import AttachmentRow, attachment_rows
from airflow_provider_r7mail.lake.filenames import name_filter
from airflow_provider_r7mail.lake.items import files_row
from airflow_provider_r7mail.lake.layout import folder_path
from airflow_provider_r7mail.lake.locks import locked
from airflow_provider_r7mail.lake.staging import staged
from airflow_provider_r7mail.lake.storage import ObjectPath, make_folder, read
from airflow_provider_r7mail.lake.threads import run_to_end

# The range of message ids per record of copied files: small enough to rewrite a record each time.
MESSAGES_PER_RECORD = 1_000
NAMED_IDS = 10  # the number of missing ids that an error names


async def copy_attachments(
    client: AsyncClient,
    folder: int,
    criteria: MessageFilter,
    root: ObjectPath,
    *,
    message_ids: Sequence[int] | None = None,
    pattern: str | Sequence[str] | None = None,
    max_bytes: int | None = None,
    strict: bool = False,
) -> list[AttachmentRow]:
    """Copy the attachments of some messages of a folder, without writing tables.

    Copied files are recorded next to them, so that another call doesn't download them again.

    :param criteria: which messages; with `message_ids`, where to look for them
    :param root: the root of the attachments
    :param message_ids: the messages; None for all that match
    :param pattern: which files, as one pattern or several; see `filenames.name_filter`
    :param max_bytes: larger files are not copied
    :param strict: whether files of another size than listed fail (R26)
    :return: a row for each file, with its status; one that fails doesn't stop the others
    :raises R7MailMessageNotFoundError: an id is not in the folder; nothing was copied
    """
    wanted = name_filter(pattern)
    sought = None if message_ids is None else set(message_ids)
    rows: list[AttachmentRow] = []
    seen: list[int] = []
    async with aclosing(aiter_messages(client, folder, criteria)) as messages:
        async for message in messages:
            if sought is not None and message.id not in sought:
                continue
            seen.append(message.id)
            files = [files_row(file.to_json()) for file in message.attachments or ()]
            if files or message.has_attachments:
                rows += attachment_rows(message.id, files)
            if sought is not None and len(seen) == len(sought):
                break
    missing = sorted((sought or set()) - set(seen))
    if missing:
        raise R7MailMessageNotFoundError(
            f"Folder {folder} has no message {', '.join(map(str, missing[:NAMED_IDS]))} "
            f"({len(missing)} of {len(sought or ())} ids not found). Nothing was copied."
        )
    home = folder_path(root, client.config.login, folder)
    try:
        async with AttachmentCopier(
            client=client,
            folder=folder,
            root=home,
            wanted=wanted,
            max_bytes=max_bytes,
            strict=strict,
            known=await asyncio.to_thread(_recorded_copies, root, home, rows),
        ) as copier:
            try:
                await copier.copy(rows)
            finally:
                await run_to_end(_record_copies, home, rows)
    except OSError as error:
        raise R7MailPublishError(
            f"{home}: can't record there what was copied ({error}). The copied files are complete; "
            "run it again."
        ) from error
    return rows


def _record_name(message_id: int) -> str:
    return f"_copied-{message_id // MESSAGES_PER_RECORD}.json"


def _read_record(record: ObjectPath) -> dict[tuple[int, str], StoredFile]:
    return {
        (item["message_id"], item["file_name"]): StoredFile(
            item["uri"], item["size"], item["sha256"], item.get("listed_size")
        )
        for item in json.loads(read(record) or b"[]")
    }


def _recorded_copies(
    root: ObjectPath, home: ObjectPath, rows: Iterable[AttachmentRow]
) -> dict[tuple[int, str], StoredFile]:
    """Make sure that files can be written, and return the recorded ones."""
    make_folder(root)
    names = {_record_name(row.message_id) for row in rows}
    return {key: file for name in names for key, file in _read_record(home / name).items()}


def _record_copies(home: ObjectPath, rows: Iterable[AttachmentRow]) -> None:
    """Record what was stored; another run may have added to the records meanwhile."""
    by_record: dict[str, dict[tuple[int, str], StoredFile]] = {}
    for row in rows:
        if row.uri is not None and row.sha256 is not None:
            file = StoredFile(row.uri, row.size or 0, row.sha256, row.listed_size)
            added = by_record.setdefault(_record_name(row.message_id), {})
            added[row.message_id, row.file_name or ""] = file
    if not by_record:
        return
    with locked(home, "notes"):
        for name, added in by_record.items():
            record = home / name
            known = _read_record(record) | added
            text = json.dumps(
                [
                    {"message_id": number, "file_name": name, **asdict(file)}
                    for (number, name), file in known.items()
                ]
            )
            with staged(record) as target:
                target.write(text.encode())
