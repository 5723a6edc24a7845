"""The user's Disk: folders and files, some of which are attached to mail."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from airflow_provider_r7mail.emulator import shapes
from airflow_provider_r7mail.emulator.messages import Attachment, StoredFile
from airflow_provider_r7mail.emulator.store import Refused, Store

if TYPE_CHECKING:
    from airflow_provider_r7mail.emulator.readings import Readings

OWN_ROOT = "Мои документы"
SHARED_ROOT = "Общие документы"

_DISPOSITION = re.compile(
    rb'(?i)^content-disposition:[^\r\n]*?[;\s]name="([^"\r\n]*)"', re.MULTILINE
)
_FILE_NAME = re.compile(rb"(?i);\s*filename=\"([^\"\r\n]*)\"")
_ENCODED_NAME = re.compile(rb"(?i);\s*filename\*=UTF-8''([^;\s]*)")
_TYPE = re.compile(rb"(?i)^content-type:\s*([^\r\n]*)", re.MULTILINE)


class NoDisk(Refused):
    """The Disk refuses, with this status.

    :param status: the status.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass
class Document:
    """A file on the Disk.

    :param directory: the Id of its folder.
    :param stored: its content, name and ids.
    :param since: when listings begin to show it (`time.monotonic`).
    """

    directory: int
    stored: StoredFile
    since: float = 0.0

    def json(self) -> dict[str, Any]:
        """Return it as a listing shows it."""
        stored = self.stored
        return {
            "Id": stored.id,
            "Name": stored.file_name,
            "Size": len(stored.data),
            "MimeType": stored.mime_type,
            "FileId": stored.file_id,
            "DirectoryId": self.directory,
        }


@dataclass
class Directory:
    """A folder of the Disk.

    :param parent: the Id of the folder it is in; None for a root.
    :param since: when listings begin to show it (`time.monotonic`).
    """

    id: int
    name: str
    parent: int | None = None
    since: float = 0.0


class Disk:
    """Folders and files. Hold the lock of ``store`` while you use it.

    :param store: where the content is kept, so that Send can refer to it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._last = 1_000
        self.directories: dict[int, Directory] = {}
        self.documents: dict[int, Document] = {}
        self.root = self.add_directory(OWN_ROOT, None).id
        self.add_directory(SHARED_ROOT, None)

    def add_directory(self, name: str, parent: int | None, delay: float = 0.0) -> Directory:
        """Create a folder. Another one may have the same name."""
        if parent is not None:
            self.need(parent)
        self._last += 1
        made = Directory(self._last, name, parent, time.monotonic() + delay)
        self.directories[made.id] = made
        return made

    def add(
        self,
        name: str,
        data: bytes,
        directory: int | None = None,
        mime_type: str = "application/octet-stream",
        delay: float = 0.0,
    ) -> Document:
        """Store a file, in the user's own root unless told otherwise."""
        where = self.root if directory is None else self.need(directory).id
        stored = self._store.register_file(Attachment(name, data, mime_type))
        document = Document(where, stored, time.monotonic() + delay)
        self.documents[stored.id] = document
        return document

    def need(self, directory: int) -> Directory:
        """Return a folder; one that is not there is refused like one without access."""
        if directory not in self.directories:
            raise NoDisk(406, f"no folder {directory}")
        return self.directories[directory]

    def children(self, directory: int) -> list[Directory]:
        """Return the folders in a folder, whether listings show them yet or not."""
        return [found for found in self.directories.values() if found.parent == directory]

    def files(self, directory: int | None = None) -> list[StoredFile]:
        """Return the files of a folder, or all, whether listings show them yet or not."""
        return [
            document.stored
            for document in self.documents.values()
            if directory in (None, document.directory)
        ]

    def used(self) -> int:
        """Return the bytes that all files take."""
        return sum(len(stored.data) for stored in self.files())

    def json(self, directory: int, *, other_rows: bool = False) -> dict[str, Any]:
        """Return a folder as a listing shows it.

        :param other_rows: also list the files of other folders.
        """
        now = time.monotonic()
        found = self.need(directory)
        return {
            "Id": found.id,
            "Name": found.name,
            "ParentId": found.parent,
            "Children": [
                {"Id": child.id, "Name": child.name, "ParentId": directory, "Children": None}
                for child in self.children(directory)
                if child.since <= now
            ],
            "Documents": [
                document.json()
                for document in self.documents.values()
                if document.since <= now and (other_rows or document.directory == directory)
            ],
        }


@dataclass(frozen=True)
class Form:
    """A form with a file.

    :param headers: the headers of the request.
    :param fields: the values of its fields.
    :param file_name: the name of the file in field ``file``.
    :param data: its content; None if there is none.
    :param mime_type: its type.
    """

    headers: Mapping[str, str]
    fields: Mapping[str, str] = field(default_factory=dict)
    file_name: str = ""
    data: bytes | None = None
    mime_type: str = ""


def form_of(headers: Mapping[str, str], content: bytes) -> Form:
    """Parse a multipart form, or the beginning of one, as a server does that broke off."""
    boundary = re.search(r'boundary="?([^";]+)', headers.get("content-type", ""))
    if boundary is None:
        raise Refused("the form has no boundary")
    line = b"--" + boundary[1].encode()
    fields: dict[str, str] = {}
    file: dict[str, Any] = {}
    start = content.find(line)
    while start >= 0:
        after = content.find(b"\r\n" + line, start)
        head_end = content.find(b"\r\n\r\n", start)
        if head_end < 0:
            break
        head = content[start:head_end]
        data = content[head_end + 4 : after if after >= 0 else len(content)]
        name = _DISPOSITION.search(head)
        if name is not None and name[1] == b"file":
            kind = _TYPE.search(head)
            file = {
                "file_name": _file_name(head),
                "data": data,
                "mime_type": kind[1].decode("latin-1") if kind else "application/octet-stream",
            }
        elif name is not None:
            fields[name[1].decode()] = data.decode("utf-8", "replace")
        start = after + 2 if after >= 0 else -1
    return Form(headers=headers, fields=fields, **file)


def _file_name(head: bytes) -> str:
    encoded = _ENCODED_NAME.search(head)
    if encoded is not None:
        return unquote(encoded[1].decode("ascii"))
    plain = _FILE_NAME.search(head)
    return plain[1].decode("utf-8", "replace") if plain else ""


class DiskCalls:
    """The calls of the Disk API.

    :param disk: returns the Disk.
    :param readings: returns how it behaves.
    """

    def __init__(self, disk: Callable[[], Disk], readings: Callable[[], Readings]) -> None:
        self._find_disk = disk
        self._find_readings = readings
        self.calls: dict[str, tuple[str, Callable[[Any], Any]]] = {
            "/api/v1/DocumentDirectory/Get": ("GET", self._get),
            "/api/v1/DocumentDirectory/AddSubDirectory": ("POST", self._add_directory),
            "/api/v1/Documents/Upload": ("POST", self._upload),
            "/api/v1/Documents/Delete": ("POST", self._delete),
        }

    def check_host(self, host: str) -> None:
        """Refuse all calls if the Disk is not at this host, or not there at all."""
        readings = self._find_readings()
        if readings.disk != "works":
            raise NoDisk(int(readings.disk), "no Disk here")
        if readings.disk_host and host.partition(":")[0] != readings.disk_host:
            raise NoDisk(405, "no Disk here")  # as of any host with another module

    def answer(self, path: str, asked: Any) -> bytes:
        """Do what a call asks, and return the JSON of the response."""
        value = self.calls[path][1](asked)
        if value is None:
            return b""
        if self._find_readings().disk_envelope:
            value = {"Status": 200, "StatusCode": 200, "Response": {"TypeName": "", "Data": value}}
        return json.dumps(value, ensure_ascii=False).encode()

    def _get(self, query: str) -> list[dict[str, Any]]:
        disk, readings = self._find_disk(), self._find_readings()
        asked = {name.lower(): values[0] for name, values in parse_qs(query).items()}
        if "id" in asked:
            number = int(asked["id"]) if asked["id"].isdecimal() else -1
            return [disk.json(number, other_rows=readings.disk_other_rows)]
        roots = [found.id for found in disk.directories.values() if found.parent is None]
        return [disk.json(number) for number in roots]

    def _add_directory(self, asked: Any) -> dict[str, Any]:
        readings = self._find_readings()
        shapes.check(
            asked, shapes.Shape(optional={"ParentId": int, "DirectoryId": int, "Name": str})
        )
        parent = asked.get(readings.disk_parent)
        if parent is None or not asked.get("Name"):
            raise Refused(f"no {readings.disk_parent}, or no Name")
        made = self._find_disk().add_directory(asked["Name"], parent, readings.disk_delay_seconds)
        return {"Id": made.id, "Name": made.name, "ParentId": made.parent}

    def _upload(self, form: Any) -> Any:
        if not isinstance(form, Form) or form.data is None or not form.file_name:
            raise Refused("no file")
        disk, readings = self._find_disk(), self._find_readings()
        named = form.headers if readings.disk_directory == "header" else form.fields
        given = named.get("DirectoryId", "")
        directory = disk.need(int(given) if given.isdecimal() else disk.root).id
        if readings.disk_max_bytes is not None and len(form.data) > readings.disk_max_bytes:
            raise NoDisk(413, "too large")
        if readings.disk_quota is not None and disk.used() + len(form.data) > readings.disk_quota:
            if readings.disk_full == "accepted":
                return None
            raise NoDisk(int(readings.disk_full), "the quota is used up")
        document = self._store(disk, form, form.data, directory)
        number = document.stored.id
        match readings.disk_answer:
            case "number":
                return number
            case "object":
                return {"Id": number, "Name": form.file_name}
            case "array":
                return [{"Id": number, "Name": form.file_name}]
            case _:
                return None

    def _store(self, disk: Disk, form: Form, data: bytes, directory: int) -> Document:
        readings = self._find_readings()
        same = [
            number
            for number, document in disk.documents.items()
            if (document.directory, document.stored.file_name) == (directory, form.file_name)
        ]
        if same and readings.disk_same_name == "refuse":
            raise Refused("there is a file with this name")
        if readings.disk_same_name == "replace":
            for number in same:
                del disk.documents[number]
        delay = readings.disk_delay_seconds
        return disk.add(form.file_name, data, directory, form.mime_type, delay)

    def _delete(self, asked: Any) -> bool:
        shapes.check(asked, shapes.Shape({"Ids": list[int]}))
        documents = self._find_disk().documents
        missing = [number for number in asked["Ids"] if number not in documents]
        for number in set(asked["Ids"]) - set(missing):
            del documents[number]
        if missing:
            raise NoDisk(406, "no such file")
        return True
