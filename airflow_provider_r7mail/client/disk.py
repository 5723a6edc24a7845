"""What is on the server's Disk: the calls of its API, and how its listings are read.

The manual of the mail API has no Disk; these are calls of the vendor's Disk API.
What its upload answers is not known for sure. No I/O, no Airflow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import PurePosixPath
from typing import Any
from uuid import uuid4

from airflow_provider_r7mail.client.answers import AnswerError, read_json
from airflow_provider_r7mail.client.calls import Call
from airflow_provider_r7mail.client.fields import Names
from airflow_provider_r7mail.client.parameters import read_id
from airflow_provider_r7mail.client.upload import File, Upload

GET = "/api/v1/DocumentDirectory/Get"
ADD = "/api/v1/DocumentDirectory/AddSubDirectory"
UPLOAD = "/api/v1/Documents/Upload"
_DELETE = "/api/v1/Documents/Delete"
PATHS = frozenset({GET, ADD, UPLOAD, _DELETE})

NOT_HERE = (
    "Set disk_url of the connection to the address of the server's Disk, which often has a host "
    "name of its own. If there is none, send links in place of files."
)

# The last such part: the file's own name may have one, too.
_UPLOADED = re.compile(r".*-([0-9]{8})-[0-9a-f]{16}", re.DOTALL | re.IGNORECASE)
# Control characters, and what Windows or a URL would take for something else.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff/\\:*?"<>|%#&;]')
_STEM_CHARS, _SUFFIX_CHARS = 30, 12


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


def new_name(file: File, token: str) -> str:
    """Return a name for the Disk that no other file has."""
    given = PurePosixPath(_UNSAFE.sub("_", file.source.name))
    suffix = given.suffix if len(given.suffix) <= _SUFFIX_CHARS else ""
    stem = given.name.removesuffix(suffix)[:_STEM_CHARS].strip(" .") or "file"
    return f"{stem}-{datetime.now(UTC):%Y%m%d}-{token}-{uuid4().hex[:8]}{suffix}"


@dataclass(frozen=True, slots=True)
class Directory:
    """A folder on the Disk.

    :param id: its id
    :param name: its name
    :param parent: id of the folder that it is in, None if the listing doesn't say
    :param children: the folders in it
    :param files: the files in it and, in some listings, in other folders, with the id of the
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
        raise AnswerError("the Disk's listing is not an array of folders with an Id", hint=NOT_HERE)
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


def walk(
    directories: Iterable[Directory], parent: int | None = None
) -> Iterator[tuple[int | None, Directory]]:
    """Yield all folders of a listing, with the id of the folder that each is in."""
    for directory in directories:
        yield (parent if directory.parent is None else directory.parent), directory
        yield from walk(directory.children, directory.id)


def get_directories(directory: int | None = None) -> Call[tuple[Directory, ...]]:
    """List a folder of the Disk, or the root folders."""
    query = "" if directory is None else f"id={directory}"
    return Call(method="GET", path=GET, query=query, parse=parse_directories, on_disk=True)


def add_directory(parent: int, name: str) -> Call[None]:
    """Create a folder. Its id is under either of two names, since servers differ."""
    return Call(
        method="POST",
        path=ADD,
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
        path=UPLOAD,
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
