"""Put files on the server's Disk, so that Send can attach them (contract, part 3). No Airflow.

The manual of the mail API has no upload; these are calls of the vendor's Disk API. What its upload
answers is not known for sure, so the folder's listing decides: a file is there if it is listed with
its size. The name on the Disk contains a hash of the content, so that a file is recognised,
whichever try or task has uploaded it, and something random, so that names never clash: where a new
file replaces another of its name, the message of another task would lose its file. If the files are
deleted after sending, their names also contain a hash of the message, by which later tries find
them.

`Uploads` decides what to do and performs no I/O; see `client.steps`.
"""

from __future__ import annotations

import hashlib
import logging
import mimetypes
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any, TypeVar
from uuid import uuid4

from airflow_provider_r7mail.client.calls import AnswerError, Call, read_json
from airflow_provider_r7mail.client.fields import Names
from airflow_provider_r7mail.client.http import may_repeat
from airflow_provider_r7mail.client.models import Attachment
from airflow_provider_r7mail.client.parameters import read_id
from airflow_provider_r7mail.client.steps import Ask, Measure, Steps, Wait
from airflow_provider_r7mail.client.upload import File, Source, Upload
from airflow_provider_r7mail.exceptions import (
    R7MailProxyError,
    R7MailRequestError,
    R7MailResponseError,
)

T = TypeVar("T")

log = logging.getLogger(__name__)

OWN_ROOT = "Мои документы"
"""The name of the user's own root folder on the Disk."""

FOLDER = "Airflow"
"""The folder in it that takes files to be sent, unless the connection names another."""

APPEAR_SECONDS = 10.0
"""How long a new file or folder may take to appear in a listing (F12)."""

REUSE_DAYS = 7
"""A file uploaded longer ago is not used again, but uploaded anew: old ones may be deleted."""

MAX_UPLOADS = 4
"""Attempts to upload a file, or to create the folder, in one try of a task."""

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 2.0

_GET = "/api/v1/DocumentDirectory/Get"
_ADD = "/api/v1/DocumentDirectory/AddSubDirectory"
_UPLOAD = "/api/v1/Documents/Upload"
_DELETE = "/api/v1/Documents/Delete"
_PATHS = frozenset({_GET, _ADD, _UPLOAD, _DELETE})

_NOBODY = "the Disk API does not answer at this address"
_NOT_HERE = (
    "Set disk_url of the connection to the address of the server's Disk, which often has a host "
    "name of its own. If there is none, send links in place of files."
)
_NO_ACCESS = (
    "Check that the account has the Disk module, and that disk_folder of the connection, if set, "
    "is the id of a folder that it may write to."
)
_OTHER_SERVER = (
    "Check that disk_url of the connection is of the same installation as Host, and that the "
    "account has the Disk module."
)
_NO_CONNECTION = "Check disk_url of the connection or, if it is not set, Host, and the proxy."
_BROKEN = (
    "The server, or a proxy in front of it, may limit the size of files or the time of requests: "
    "check their logs."
)
_NO_ROOM = (
    "The account's quota may be used up, the file too large, or the folder not writable: check the "
    "Disk in the web client."
)
_NOT_SENT = "No message was sent."
_TOO_LARGE = "Have the limit raised on the server and the proxy, or send links in place of files."

# The last such part: the file's own name may have one, too.
_UPLOADED = re.compile(r".*-([0-9]{8})-[0-9a-f]{16}", re.DOTALL | re.IGNORECASE)
# Control characters, and what Windows or a URL would take for something else.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff/\\:*?"<>|%#&;]')
_STEM_CHARS, _SUFFIX_CHARS = 30, 12


# -- what is on the Disk ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFile:
    """A file on the server's Disk.

    :param id: its id
    :param file_id: id of its content in the server's Storage
    :param name: its name on the Disk
    :param size: its size in bytes
    :param mime_type: its MIME type
    """

    id: int
    file_id: int | None
    name: str
    size: int | None
    mime_type: str | None

    @property
    def uploaded(self) -> date | None:
        """The day that this package uploaded it (UTC), None for other files."""
        found = _UPLOADED.match(self.name)
        try:
            return None if found is None else datetime.strptime(found[1], "%Y%m%d").date()  # noqa: DTZ007
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Directory:
    """A folder on the Disk.

    :param id: its id
    :param name: its name
    :param parent: id of the folder that it is in, None if the listing doesn't say
    :param children: the folders in it
    :param files: the files in it and, in some listings, in other folders (F11), with the id of the
        folder of each
    """

    id: int
    name: str
    parent: int | None
    children: tuple[Directory, ...]
    files: tuple[tuple[int, DiskFile], ...]


_NAMES = Names(
    "Id", "Name", "ParentId", "Children", "Documents", "Size", "MimeType", "FileId", "DirectoryId"
)
_ENVELOPE = Names("Response", "Data")


def parse_directories(body: bytes) -> tuple[Directory, ...]:
    """Read a listing of folders: an array or a single one, bare or in `Response.Data`.

    :raises AnswerError: not a listing of folders
    """
    found = read_json(body)
    for name in ("Response", "Data"):
        if isinstance(found, Mapping):
            found = _ENVELOPE.restore(found).get(name, found)
    return tuple(_directory(item) for item in (found if isinstance(found, list) else [found]))


def _directory(raw: Any) -> Directory:
    raw = _NAMES.restore(raw) if isinstance(raw, Mapping) else {}
    number = read_id(raw.get("Id"))
    if number is None:
        raise AnswerError(
            "the Disk's listing is not an array of folders with an Id", hint=_NOT_HERE
        )
    files = []
    for item in raw.get("Documents") or ():
        item = _NAMES.restore(item) if isinstance(item, Mapping) else {}  # noqa: PLW2901
        file_id = read_id(item.get("Id"))
        if file_id is None:
            raise AnswerError("the Disk's listing has a file without an Id")
        home = read_id(item.get("DirectoryId"))
        file = DiskFile(
            id=file_id,
            file_id=read_id(item.get("FileId")),
            name=str(item.get("Name") or ""),
            size=read_id(item.get("Size")),
            mime_type=item.get("MimeType") or None,
        )
        files.append((number if home is None else home, file))
    return Directory(
        number,
        str(raw.get("Name") or ""),
        read_id(raw.get("ParentId")),
        tuple(_directory(child) for child in raw.get("Children") or ()),
        tuple(files),
    )


def _walk(
    directories: Iterable[Directory], parent: int | None = None
) -> Iterator[tuple[int | None, Directory]]:
    """Yield all folders of a listing, with the id of the folder that each is in."""
    for directory in directories:
        yield (parent if directory.parent is None else directory.parent), directory
        yield from _walk(directory.children, directory.id)


# -- the calls --------------------------------------------------------------------------------


def get_directories(directory: int | None = None) -> Call[tuple[Directory, ...]]:
    """List a folder of the Disk, or the root folders."""
    query = "" if directory is None else f"id={directory}"
    return Call(method="GET", path=_GET, query=query, parse=parse_directories, on_disk=True)


def add_directory(parent: int, name: str) -> Call[None]:
    """Create a folder. Its id is under either of two names, since servers differ."""
    return Call(
        method="POST",
        path=_ADD,
        body={"ParentId": parent, "DirectoryId": parent, "Name": name},
        parse=_nothing,
        repeatable=False,
        on_disk=True,
    )


def upload(file: File, name: str, mime_type: str, directory: int) -> Call[None]:
    """Upload a file. The folder's id is in a header and in a field, since servers differ."""
    where = {"DirectoryId": str(directory)}
    return Call(
        method="POST",
        path=_UPLOAD,
        parse=_nothing,
        upload=Upload(file, name, mime_type, fields=where, headers=where),
        repeatable=False,
        on_disk=True,
    )


def delete_documents(ids: Sequence[int]) -> Call[None]:
    """Delete files from the Disk."""
    return Call(method="POST", path=_DELETE, body={"Ids": list(ids)}, parse=_nothing, on_disk=True)


def _nothing(body: bytes) -> None:
    """Ignore the response of a call whose effect the listing shows."""


# -- the decisions ----------------------------------------------------------------------------


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
            for parent, directory in _walk(found)
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
            path=_ADD,
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
            path=_GET,
            status=200,
            hint="Set disk_folder of the connection to the id of the folder that takes the files.",
        )
    return min(own)


def list_files(folder: int) -> Steps[tuple[DiskFile, ...]]:
    """List the files of a folder, without those of other folders (F11)."""
    found = yield Ask(get_directories(folder))
    files = {
        file.id: file
        for _, directory in _walk(found)
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
    :param appear_seconds: how long a file or folder may take to appear in a listing (F12)
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
            return upload(file, _new_name(file, token), _mime_type(file), folder)

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


def _new_name(file: File, token: str) -> str:
    """Return a name for the Disk that no other file has."""
    given = PurePosixPath(_UNSAFE.sub("_", file.source.name))
    suffix = given.suffix if len(given.suffix) <= _SUFFIX_CHARS else ""
    stem = given.name.removesuffix(suffix)[:_STEM_CHARS].strip(" .") or "file"
    return f"{stem}-{datetime.now(UTC):%Y%m%d}-{token}-{uuid4().hex[:8]}{suffix}"


def _mime_type(file: File) -> str:
    kind, packing = mimetypes.guess_type(file.source.name)
    return kind if kind and not packing else "application/octet-stream"


def _attachment(file: File, found: DiskFile) -> Attachment:
    if found.file_id is None:
        raise R7MailResponseError(
            f"the Disk lists file {found.id} without a FileId, which Send needs",
            method="GET",
            path=_GET,
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


# -- errors -----------------------------------------------------------------------------------


def _not_listed(folder: int, seconds: float) -> R7MailResponseError:
    return R7MailResponseError(
        f"the Disk accepted the file, but folder {folder} does not list it with its size after "
        f"{seconds:g} s",
        method="POST",
        path=_UPLOAD,
        status=200,
        hint=_NO_ROOM,
    )


@contextmanager
def clear_errors(file: File | None = None, *, then: str = "") -> Iterator[None]:
    """Say of a failed call of the Disk what it means and what to do.

    :param file: the file that is being uploaded
    :param then: what the failure leads to
    """
    try:
        yield
    except R7MailRequestError as error:
        if error.path not in _PATHS:  # the login
            raise
        reason, hint = _meaning(error)
        if file is not None:
            reason = f"{file.source.where} could not be attached: {reason}"
        raise error.but(reason=reason, hint=f"{hint} {then}".strip()) from error


def _meaning(error: R7MailRequestError) -> tuple[str, str]:
    """Return what a failed call of the Disk means, and what to do."""
    status = error.status
    uploading = error.path == _UPLOAD
    gateway = {407, 429, 502, 503, 504}
    by_web_server = isinstance(error, R7MailProxyError) and status not in gateway
    refused = f"the Disk refused it: {error.reason}"
    meanings = (
        (error.never_sent, error.reason, _NO_CONNECTION),
        (uploading and status is None, error.reason, _BROKEN),
        (status == 401, "the Disk does not accept the token of the mail server", _OTHER_SERVER),
        (status == 413, "the file is too large for the server, or for a proxy", _TOO_LARGE),
        (status in {404, 405} or (by_web_server and status == 200), _NOBODY, _NOT_HERE),
        (uploading and (by_web_server or status in {400, 403, 406, 500, 507}), refused, _NO_ROOM),
        (status in {403, 406}, "the Disk, or its folder, is not accessible", _NO_ACCESS),
        (by_web_server, _NOBODY, _NOT_HERE),
        (True, error.reason, error.hint),
    )
    return next((reason, hint) for applies, reason, hint in meanings if applies)
