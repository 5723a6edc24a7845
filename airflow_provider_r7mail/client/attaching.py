"""Put files on the server's Disk, so that Send can attach them. No Airflow.

The folder's listing decides: a file is there if it is listed with its size. The name on the Disk
contains a hash of the content, so that a file is recognised, whichever try or task has uploaded it,
and something random, so that names never clash: where a new file replaces another of its name, the
message of another task would lose its file. If the files are deleted after sending, their names
also contain a hash of the message, by which later tries find them.

`Uploads` decides what to do and performs no I/O; see `client.steps`.
"""

from __future__ import annotations

import hashlib
import logging
import mimetypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from airflow_provider_r7mail.client.calls import Call
from airflow_provider_r7mail.client.disk import (
    ADD,
    GET,
    UPLOAD,
    Directory,
    DiskFile,
    add_directory,
    delete_documents,
    get_directories,
    new_name,
    upload,
    walk,
)
from airflow_provider_r7mail.client.disk_errors import NO_ROOM, clear_errors
from airflow_provider_r7mail.client.http import may_repeat
from airflow_provider_r7mail.client.models import Attachment
from airflow_provider_r7mail.client.steps import Ask, Measure, Steps, Wait
from airflow_provider_r7mail.client.upload import File, Source
from airflow_provider_r7mail.exceptions import R7MailRequestError, R7MailResponseError

T = TypeVar("T")

log = logging.getLogger(__name__)

OWN_ROOT = "Мои документы"
"""The name of the user's own root folder on the Disk."""

FOLDER = "Airflow"
"""The folder in it that takes files to be sent, unless the connection names another."""

APPEAR_SECONDS = 10.0
"""How long a new file or folder may take to appear in a listing."""

REUSE_DAYS = 7
"""A file uploaded longer ago is not used again, but uploaded anew: old ones may be deleted."""

MAX_UPLOADS = 4
"""Attempts to upload a file, or to create the folder, in one try of a task."""

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 2.0

_NOT_SENT = "No message was sent."


def find_folder(
    disk_folder: int | None, *, make: bool = True, seconds: float = APPEAR_SECONDS
) -> Steps[int | None]:
    """Find the folder that takes files to be sent.

    :param disk_folder: its id; None for `FOLDER` in the user's own root
    :param make: whether to create it if it is missing
    :param seconds: how long it may take to appear in a listing then
    :return: its id; None if it is missing and not to be created
    """
    if disk_folder is not None:
        return disk_folder
    root = _own_root((yield Ask(get_directories())))

    def look() -> Steps[int | None]:
        found = yield Ask(get_directories(root))
        made = [
            directory.id
            for parent, directory in walk(found)
            if (parent, directory.name) == (root, FOLDER)
        ]
        return min(made, default=None)  # the first, if two tasks have each made one

    if not make:
        return (yield from look())
    number = yield from _put(look, lambda: add_directory(root, FOLDER), seconds)
    if number is None:
        raise R7MailResponseError(
            f"the Disk has accepted a folder {FOLDER!r}, but does not list it",
            method="POST",
            path=ADD,
            status=200,
            hint="Create a folder in the web client, and set disk_folder of the connection to its "
            "id.",
        )
    return number


def _own_root(roots: Sequence[Directory]) -> int:
    own = [root.id for root in roots if root.name.strip().casefold() == OWN_ROOT.casefold()]
    if not own and len(roots) == 1:
        own = [roots[0].id]
    if not own:
        raise R7MailResponseError(
            f"none of the Disk's {len(roots)} root folders is the user's own",
            method="GET",
            path=GET,
            status=200,
            hint="Set disk_folder of the connection to the id of the folder that takes the files.",
        )
    return min(own)


def list_files(folder: int) -> Steps[tuple[DiskFile, ...]]:
    """List the files of a folder, without those of other folders."""
    found = yield Ask(get_directories(folder))
    files = {
        file.id: file
        for _, directory in walk(found)
        for home, file in directory.files
        if home == folder
    }
    return tuple(files[number] for number in sorted(files))


def list_disk(disk_folder: int | None) -> Steps[tuple[DiskFile, ...]]:
    """List the files in the folder that takes files to be sent.

    :param disk_folder: its id; None for `FOLDER` in the user's own root
    """
    with clear_errors():
        folder = yield from find_folder(disk_folder, make=False)
        return () if folder is None else (yield from list_files(folder))


def delete_files(ids: Sequence[int]) -> Steps[None]:
    """Delete files from the Disk."""
    if ids:
        with clear_errors():
            yield Ask(delete_documents(ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploads:
    """Files to upload before a message is sent, and to attach to it.

    :param sources: the files
    :param disk_folder: id of the folder that takes them; None for `FOLDER` in the user's own root
    :param delete: whether to delete them after the message was sent
    :param owner: identifies the message in each try, if they are deleted: no other message may use
        them
    :param appear_seconds: how long a file or folder may take to appear in a listing
    """

    sources: tuple[Source, ...]
    disk_folder: int | None = None
    delete: bool = False
    owner: str = ""
    appear_seconds: float = APPEAR_SECONDS

    @property
    def names(self) -> list[str]:
        """The names that recipients see."""
        return [source.name for source in self.sources]

    def steps(self) -> Steps[tuple[Attachment, ...]]:
        """Upload the files that are not on the Disk yet, one after the other.

        :return: the files as Send attaches them
        :raises R7MailAttachmentError: a file is missing, unreadable or empty
        :raises R7MailRequestError: a file could not be uploaded
        """
        files: dict[str, File] = {}
        for source in self.sources:
            file = yield Measure(source)
            files[self.token(file)] = file
        if not files:
            return ()
        with clear_errors(then=_NOT_SENT):
            folder = yield from find_folder(self.disk_folder, seconds=self.appear_seconds)
        attachments = []
        for number, (token, file) in enumerate(files.items(), start=1):
            with clear_errors(file, then=_NOT_SENT):
                found = yield from self._place(file, token, folder or 0)
                attachments.append(_attachment(file, found))
            log.info("File %d of %d is on the Disk, with id %d.", number, len(files), found.id)
        return tuple(attachments)

    def remove(self) -> Steps[None]:
        """Delete what was uploaded for the message, by any try, if that is wanted.

        To be called once the message was sent. A failure is logged.
        """
        if not self.delete or not self.sources:
            return
        try:
            listed = yield from list_disk(self.disk_folder)
            ids = [found.id for found in listed if self._owner_token in found.name.casefold()]
            yield from delete_files(ids)
        except R7MailRequestError as error:
            log.warning("The message was sent, but its files may stay on the Disk: %s", error)

    def token(self, file: File) -> str:
        """Return the part of a file's name on the Disk by which it is recognised."""
        return _digest(file.digest, file.source.name, self.owner) + self._owner_token

    @property
    def _owner_token(self) -> str:
        return f"-{_digest(self.owner)}" if self.delete else ""

    def _place(self, file: File, token: str, folder: int) -> Steps[DiskFile]:
        """Return the file on the Disk, after uploading it if it isn't there."""

        def look() -> Steps[DiskFile | None]:
            listed = yield from list_files(folder)
            return next((found for found in listed if _is_it(found, file, token)), None)

        def call() -> Call[None]:
            return upload(file, new_name(file, token), _mime_type(file), folder)

        found = yield from _put(look, call, self.appear_seconds)
        if found is None:
            raise _not_listed(folder, self.appear_seconds)
        return found


def _put(
    look: Callable[[], Steps[T | None]], call: Callable[[], Call[None]], seconds: float
) -> Steps[T | None]:
    """Put something on the Disk unless it is there, and return how the listing has it.

    :param look: finds it
    :param call: makes the call that puts it there; if its outcome is unclear, it is looked for
        before the call is repeated
    :param seconds: how long it may take to be listed
    :return: what was found; None if the Disk has accepted it, but doesn't list it
    """
    found = yield from look()
    for turn in range(1, MAX_UPLOADS + 1):
        if found is not None:
            break
        put = call()
        try:
            yield Ask(put)
        except R7MailRequestError as error:
            if error.never_sent:
                raise
            # What a call that may be repeated would survive is not final.
            final = not may_repeat(replace(put, repeatable=True), error)
            if not final:
                log.warning("%s Checking whether the Disk lists it.", error)
            # Refused, or put there by another task meanwhile?
            found = yield from until_found(look, 0.0 if final else seconds)
            if found is None and (final or turn == MAX_UPLOADS):
                raise
        else:
            return (yield from until_found(look, seconds))
    return found


def until_found(look: Callable[[], Steps[T | None]], seconds: float) -> Steps[T | None]:
    """Look again and again, until it returns something or the time is over."""
    end = time.monotonic() + seconds
    pause = FIRST_PAUSE
    while True:
        is_last = time.monotonic() >= end
        found = yield from look()
        if found is not None or is_last:
            return found
        yield Wait(max(0.0, min(pause, end - time.monotonic())))
        pause = min(2 * pause, LONGEST_PAUSE)


def _digest(*parts: str) -> str:
    whole = "\n".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(whole).hexdigest()[:16]


def _is_it(found: DiskFile, file: File, token: str) -> bool:
    if token not in found.name.casefold() or found.size != file.size:
        return False
    today = datetime.now(UTC).date()
    return found.uploaded is None or today - found.uploaded <= timedelta(days=REUSE_DAYS)


def _mime_type(file: File) -> str:
    kind, packing = mimetypes.guess_type(file.source.name)
    return kind if kind and not packing else "application/octet-stream"


def _attachment(file: File, found: DiskFile) -> Attachment:
    if found.file_id is None:
        raise R7MailResponseError(
            f"the Disk lists file {found.id} without a FileId, which Send needs",
            method="GET",
            path=GET,
            status=200,
            hint="Send links in place of files.",
        )
    return Attachment(
        id=found.id,
        file_id=found.file_id,
        file_name=file.source.name,
        size=file.size,
        mime_type=found.mime_type or _mime_type(file),
    )


def _not_listed(folder: int, seconds: float) -> R7MailResponseError:
    return R7MailResponseError(
        f"the Disk accepted the file, but folder {folder} does not list it with its size after "
        f"{seconds:g} s",
        method="POST",
        path=UPLOAD,
        status=200,
        hint=NO_ROOM,
    )
