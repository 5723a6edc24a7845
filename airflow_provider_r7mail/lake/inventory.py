"""List the windows of a folder: their files in each table, and which of them count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from airflow_provider_r7mail.lake.compacted import parse_sources, window_of
from airflow_provider_r7mail.lake.layout import (
    MANIFEST,
    PART,
    QUARANTINE,
    REPLACED,
    WINDOWS,
    WINDOWS_FILE,
    parse_window,
)
from airflow_provider_r7mail.lake.manifest import parse_manifest
from airflow_provider_r7mail.lake.reading import superseded
from airflow_provider_r7mail.lake.schema import TABLES
from airflow_provider_r7mail.lake.staging import STAGED_PREFIX
from airflow_provider_r7mail.lake.storage import ObjectPath, read_all, store_errors, subfolders

BATCH = 500  # manifests that are read at once
OWN_FILES = frozenset({MANIFEST, PART, QUARANTINE, REPLACED, WINDOWS_FILE})


@dataclass(slots=True)
class Inventory:
    """The windows of a folder, by the names of their folders.

    :param homes: the folder in each table
    :param windows: for each window, its files in each table, with their sizes
    :param compacted: the complete compacted windows
    :param remains: what killed processes left of compacted windows: their windows are there, too
    :param superseded: the windows within a compacted one
    :param staged: the windows with files that are being written, or that killed processes left
    :param foreign: the paths of files that belong to no window
    """

    homes: dict[str, ObjectPath]
    windows: dict[str, dict[str, dict[str, int]]]
    compacted: set[str]
    remains: set[str]
    superseded: set[str]
    staged: set[str]
    foreign: list[str]

    def counted(self) -> list[str]:
        """Return the windows that count, complete or not."""
        return [
            name
            for name in self.windows
            if name not in self.superseded and name not in self.remains
        ]

    def home(self, name: str) -> str | None:
        """Return the first table that has a window's manifest."""
        tables = self.windows[name]
        return next((table for table, files in tables.items() if MANIFEST in files), None)

    def manifests(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return the manifests of windows, read many at once; none for the unfinished.

        :raises OSError: the storage fails
        """
        found = {}
        homes = [(name, home) for name in names if (home := self.home(name)) is not None]
        for part in batches(homes, BATCH):
            texts = read_all([self.homes[home] / name / MANIFEST for name, home in part])
            for (name, _), text in zip(part, texts, strict=True):
                if (manifest := parse_manifest(text)) is not None:
                    found[name] = manifest
        return found


def find_folders(
    output: ObjectPath, folder: int | None = None, tables: Iterable[str] = TABLES
) -> list[tuple[str, int]]:
    """Return the mailboxes and folders that the tables have.

    :param folder: only those with this id
    :param tables: the tables to look at
    :raises OSError: the storage fails
    """
    found = set()
    for table in tables:
        for mailbox in subfolders(output / table, "mailbox="):
            for name in subfolders(output / table / mailbox, "folder="):
                number = name.removeprefix("folder=")
                if number.isdecimal() and folder in {None, int(number)}:
                    found.add((unquote(mailbox.removeprefix("mailbox=")), int(number)))
    return sorted(found)


def take_inventory(output: ObjectPath, parent: str) -> Inventory:
    """List the windows of a folder, with one listing for each table.

    :param output: the root of the tables
    :param parent: the folder's path below a table: `mailbox=.../folder=...`
    :raises OSError: the storage fails
    """
    homes: dict[str, ObjectPath] = {table: output / table / parent for table in (*TABLES, WINDOWS)}
    windows: dict[str, dict[str, dict[str, int]]] = {}
    being_written = set()
    foreign = []
    for table, home in homes.items():
        for path, size in _listing(home).items():
            name, _, file = path.partition("/")
            staged = file.startswith(STAGED_PREFIX)
            if parse_window(name) is None or not (staged or file in OWN_FILES):
                foreign.append(f"{home.path}/{path}")
            elif staged:
                being_written.add(name)
            else:
                windows.setdefault(name, {}).setdefault(table, {})[file] = size
    compacted: set[str] = set()
    marked: dict[str, str] = {}
    for name, tables in windows.items():
        marks = [table for table, files in tables.items() if WINDOWS_FILE in files]
        if marks and MANIFEST in tables[marks[0]]:
            compacted.add(name)
        elif marks:
            marked[name] = marks[0]
    return Inventory(
        homes,
        windows,
        compacted,
        _remains(homes, marked, windows.keys() - marked.keys(), compacted),
        superseded(windows, compacted),
        being_written,
        sorted(foreign),
    )


def _remains(
    homes: Mapping[str, ObjectPath],
    marked: Mapping[str, str],
    others: Set[str],
    compacted: Set[str],
) -> set[str]:
    """Return the compacted windows without a manifest whose windows are all there besides.

    Those of which one is not there have lost their manifest, and may be all that there is.

    :param marked: the compacted windows without a manifest, and the table that has the mark
    :param others: the other windows
    """
    found = set()
    texts = read_all([homes[table] / name / WINDOWS_FILE for name, table in marked.items()])
    for name, text in zip(marked, texts, strict=True):
        with suppress(ValueError):
            sources = {f"window={window_of(source).label()}" for source in parse_sources(text)}
            if sources <= others | superseded(sources, compacted):
                found.add(name)
    return found


def _listing(home: ObjectPath) -> dict[str, int]:
    """Return the files below a folder with their sizes, by their paths in it."""
    try:
        with store_errors(home):
            home.fs.invalidate_cache()
            found = home.fs.find(home.path, detail=True)
    except FileNotFoundError:
        return {}
    root = home.path.rstrip("/") + "/"
    return {path.removeprefix(root): int(info["size"]) for path, info in found.items()}


def batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    """Yield the items, so many at once."""
    for place in range(0, len(items), size):
        yield items[place : place + size]
