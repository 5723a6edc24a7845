"""Find files below an Iceberg table's location that the table no longer needs, and remove them.

They are what killed runs have written and not committed, and what expired snapshots had.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from airflow_provider_r7mail.exceptions import R7MailConfigError

if TYPE_CHECKING:
    from pyiceberg.io import FileIO
    from pyiceberg.manifest import ManifestFile
    from pyiceberg.table import Table

FOLDERS = ("data", "metadata")
METADATA_SUFFIX = ".metadata.json"
# Other files, such as statistics, are few, and left to the engine that wrote them.
SUFFIXES = (".parquet", ".avro", METADATA_SUFFIX)
THREADS = 8


@dataclass(frozen=True, slots=True)
class Orphan:
    """A file that no snapshot needs.

    :param location: where it is
    :param bytes: its size
    """

    location: str
    bytes: int


@dataclass(frozen=True, slots=True)
class _File:
    location: str
    bytes: int
    modified: datetime


def find_orphans(table: Table, before: datetime) -> list[Orphan]:
    """Return the table's orphans.

    :param table: the table; it is refreshed
    :param before: only files last modified before this, since those of running tasks aren't
        committed yet
    :raises R7MailConfigError: there is doubt whether the files are the table's
    """
    table.refresh()
    store = _store(table.io)
    earlier = {snapshot.snapshot_id for snapshot in table.snapshots()}
    listed = {
        store.name(file.location): file
        for folder in FOLDERS
        for file in store.below(f"{table.location().rstrip('/')}/{folder}")
    }
    # Again: what was committed meanwhile is not an orphan.
    table.refresh()
    needs = _Needs(table)
    needed = {
        store.name(location) for location in needs.of({s.snapshot_id for s in table.snapshots()})
    }
    needed |= {store.name(location) for location in _of_metadata(table)}
    _refuse_doubtful(table, store, listed, needed, needs.of(earlier))
    return [
        Orphan(file.location, file.bytes)
        for name, file in sorted(listed.items())
        if name not in needed and name.endswith(SUFFIXES) and file.modified < before
    ]


def remove_orphans(table: Table, orphans: Iterable[Orphan]) -> None:
    """Remove orphans."""

    def remove(orphan: Orphan) -> None:
        with contextlib.suppress(FileNotFoundError):
            table.io.delete(orphan.location)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(remove, orphans))


class _Needs:
    """The files that snapshots of a table need."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._listed: dict[int, list[ManifestFile]] = {}
        self._entries: dict[str, list[str]] = {}

    def of(self, snapshots: set[int]) -> set[str]:
        """Return the locations of manifest lists, manifests and data files."""
        chosen = [s for s in self._table.snapshots() if s.snapshot_id in snapshots]
        found = {snapshot.manifest_list for snapshot in chosen}
        with ThreadPoolExecutor(THREADS) as pool:
            lists = pool.map(self._manifests, chosen)
            manifests = {manifest.manifest_path: manifest for part in lists for manifest in part}
            for part in pool.map(self._files, manifests.values()):
                found.update(part)
        return found | manifests.keys()

    def _manifests(self, snapshot: Any) -> list[ManifestFile]:
        if snapshot.snapshot_id not in self._listed:
            self._listed[snapshot.snapshot_id] = snapshot.manifests(self._table.io)
        return self._listed[snapshot.snapshot_id]

    def _files(self, manifest: ManifestFile) -> list[str]:
        if manifest.manifest_path not in self._entries:
            self._entries[manifest.manifest_path] = [
                entry.data_file.file_path
                for entry in manifest.fetch_manifest_entry(self._table.io, discard_deleted=True)
            ]
        return self._entries[manifest.manifest_path]


def _of_metadata(table: Table) -> Iterator[str]:
    """Yield the locations that the table's metadata itself names."""
    yield table.metadata_location
    for entry in table.metadata.metadata_log:
        yield entry.metadata_file
    for statistics in (*table.metadata.statistics, *table.metadata.partition_statistics):
        yield statistics.statistics_path


def _refuse_doubtful(
    table: Table, store: _Store, listed: dict[str, _File], needed: set[str], earlier: set[str]
) -> None:
    """Refuse to tell what is an orphan if names may mean something else than they seem to.

    :param listed: the files that are there, by name
    :param needed: the names of those that the table needs
    :param earlier: the locations of those that it needed before they were listed
    """
    roots = {folder: store.name(f"{table.location().rstrip('/')}/{folder}") for folder in FOLDERS}
    below = tuple(f"{root}/" for root in roots.values())
    names = {store.name(location) for location in earlier}
    missing = sorted(name for name in names if name.startswith(below) and name not in listed)
    if missing:
        raise R7MailConfigError(
            f"files that its snapshots need are missing ({len(missing)}), such as {missing[0]}"
        )
    for name, file in sorted(listed.items()):
        if not name.endswith(METADATA_SUFFIX) or name in needed:
            continue
        in_place = name.rpartition("/")[0] == roots["metadata"]
        if not in_place or _uuid(table.io, file.location) != table.metadata.table_uuid:
            raise R7MailConfigError(f"another table has files there, too: {name}")


def _uuid(io: FileIO, location: str) -> Any:
    """Return the id of the table that a metadata file describes; None if it can't be read."""
    from pyiceberg.serializers import FromInputFile

    try:
        return FromInputFile.table_metadata(io.new_input(location)).table_uuid
    except Exception:  # whatever it is, it isn't this table's
        return None


class _Store(Protocol):
    """What pyiceberg's own interface of a storage lacks: listing files."""

    def name(self, location: str) -> str:
        """Return the same name for all locations of a file, such as s3://b/x and s3a://b/x."""

    def below(self, folder: str) -> Iterator[_File]:
        """Yield the files below a folder."""


class _ArrowStore:
    def __init__(self, io: Any) -> None:
        self._io = io

    def name(self, location: str) -> str:
        path: str = self._io.parse_location(location, self._io.properties)[2]
        return path

    def below(self, folder: str) -> Iterator[_File]:
        from pyarrow.fs import FileSelector

        scheme, host, path = self._io.parse_location(folder, self._io.properties)
        chosen = FileSelector(path, recursive=True, allow_not_found=True)
        for info in self._io.fs_by_scheme(scheme, host).get_file_info(chosen):
            if info.is_file:
                yield _File(folder + info.path.removeprefix(path), info.size, info.mtime)


class _FsspecStore:
    def __init__(self, io: Any) -> None:
        self._io = io

    def name(self, location: str) -> str:
        path: str = self._fs(location)._strip_protocol(location)  # noqa: SLF001 - fsspec's API
        return path

    def below(self, folder: str) -> Iterator[_File]:
        fs, path = self._fs(folder), self.name(folder)
        fs.invalidate_cache()
        for name, info in fs.find(path, detail=True).items():
            modified = fs.modified(name)
            aware = modified if modified.tzinfo else modified.replace(tzinfo=UTC)
            yield _File(folder + name.removeprefix(path), int(info["size"]), aware)

    def _fs(self, location: str) -> Any:
        parts = urlsplit(location)
        scheme = parts.scheme or "file"
        if scheme in {"abfs", "abfss", "wasb", "wasbs"}:
            return self._io.get_fs(scheme, parts.hostname)
        return self._io.get_fs(scheme)


def _store(io: FileIO) -> _Store:
    from pyiceberg.io.pyarrow import PyArrowFileIO

    if isinstance(io, PyArrowFileIO):
        return _ArrowStore(io)
    if hasattr(io, "get_fs"):  # FsspecFileIO; its module needs more packages to be imported
        return _FsspecStore(io)
    raise R7MailConfigError(f"{type(io).__name__} can't list files")
