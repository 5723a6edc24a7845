"""Read compacted windows: many windows in one, each a slice of its rows.

A compacted window has `_windows.jsonl` besides its manifest: the manifests of the windows that it
was made of, in order of time. It exists as long as its home, the first of its tables, has the
manifest. Without that it is what a killed process has left, and all that it has is elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.lake.layout import WINDOWS_FILE, parse_window, prefixes_around
from airflow_provider_r7mail.lake.manifest import parse_manifest, read_manifest
from airflow_provider_r7mail.lake.schema import TABLES
from airflow_provider_r7mail.lake.storage import (
    ObjectPath,
    read,
    read_all,
    subfolders_of_all,
)

Manifest = Mapping[str, Any]

# What folders' names have of a window's bounds up to the second.
_START_SIZE = len("window=20250601T000000")
_END_SIZE = len("20250602T000000")


@dataclass(frozen=True, slots=True)
class Slice:
    """Where a window's rows are within a compacted window.

    :param window: the compacted window
    :param first: for each table, the number of rows before
    """

    window: Window
    first: Mapping[str, int]


def window_of(manifest: Manifest) -> Window:
    """Return the window that a manifest is of."""
    bounds = manifest["window"]
    return Window(bounds["start"], bounds["end"])


def bounds_of(name: str) -> Window:
    """Return the window that a folder is named after, which is one of ours."""
    window = parse_window(name)
    if window is None:
        raise ValueError(f"{name} is no window")
    return window


def rows_of(manifest: Manifest) -> dict[str, int]:
    """Return the number of rows that a window has in each of its tables."""
    return {file["table"]: file["rows"] for file in manifest["files"]}


def tables_of(manifest: Manifest) -> list[str]:
    """Return a window's tables; the first one is the home of a compacted window."""
    return sorted(rows_of(manifest), key=TABLES.index)


def parse_sources(text: bytes | None) -> list[dict[str, Any]]:
    """Return the manifests in a `_windows.jsonl`.

    :raises ValueError: it is none
    """
    lines = (text or b"").splitlines()
    found = [manifest for line in lines if (manifest := parse_manifest(line)) is not None]
    if not found or len(found) < len(lines) or not all(map(_is_source, found)):
        raise ValueError("no manifests")
    return found


def _is_source(manifest: Manifest) -> bool:
    try:
        window = window_of(manifest)
    except R7MailConfigError:  # its bounds are no dates
        return False
    return None not in {window.start, window.end} and "files" in manifest


def slices(window: Window, sources: Iterable[Manifest]) -> list[Slice]:
    """Return where the rows of each of a compacted window's sources are."""
    found = []
    first: dict[str, int] = {}
    for source in sources:
        rows = rows_of(source)
        found.append(Slice(window, {table: first.get(table, 0) for table in rows}))
        first = {table: first.get(table, 0) + count for table, count in rows.items()}
    return found


def difference(manifest: Manifest, sources: Sequence[Manifest]) -> str | None:
    """Return how a compacted window's `_windows.jsonl` differs from its manifest, in words."""
    made_of = [item["run_id"] for item in manifest.get("made_of", ())]
    if [source["run_id"] for source in sources] != made_of:
        return f"{WINDOWS_FILE}: its windows are others"
    for table, rows in rows_of(manifest).items():
        count = sum(rows_of(source).get(table, 0) for source in sources)
        if count != rows:
            return f"{table}: the file has {rows} rows, its windows {count}"
    return None


def length(window: Window) -> timedelta:
    """Return how long a window is; it has both bounds."""
    return window.end - window.start  # type: ignore[operator]


def within(inner: Window, outer: Window) -> bool:
    """Return whether a window lies within another one; both have both bounds."""
    return outer.start <= inner.start and inner.end <= outer.end  # type: ignore[operator]


def _around(names: Iterable[str], inner: str) -> list[str]:
    """Return the folders' names of windows that one may lie within, by the seconds in them.

    To parse a name takes a hundred times as long, and a month may have hundreds of windows.
    """
    start, _, end = inner.partition("_")
    start, end = start[:_START_SIZE], end[:_END_SIZE]
    return [
        name
        for name in names
        if name[:_START_SIZE] <= start and end <= name.partition("_")[2][:_END_SIZE]
    ]


def marked(output: ObjectPath, tables: Iterable[str], name: str) -> list[Window]:
    """Return the compacted windows that a window lies within, the longest first.

    A window that is one itself is among them. What killed processes left of others is, too. Two
    requests for each table, made at once, tell that there are none.

    :param name: the window's path below a table
    """
    found = set()
    parent, _, own = name.rpartition("/")
    window = bounds_of(own)
    homes = [output / table / parent for table in tables]
    for home, names in zip(homes, subfolders_of_all(homes, *prefixes_around(window)), strict=True):
        inside = [
            outer
            for other in _around(names, own)
            if (outer := parse_window(other)) is not None and within(window, outer)
        ]
        marks = read_all([home / f"window={outer.label()}" / WINDOWS_FILE for outer in inside])
        found |= {outer for outer, mark in zip(inside, marks, strict=True) if mark is not None}
    return sorted(found, key=length, reverse=True)


def find_manifest(root: ObjectPath, name: str) -> dict[str, Any] | None:
    """Return a window's manifest, also if it is in a compacted one; None if it is unfinished.

    :param root: the root of its home table, or of the notes of Iceberg windows
    :param name: its path below that
    :raises OSError: the storage fails
    """
    own = read_manifest(root / name)
    if own is not None:
        return own
    parent, _, last = name.rpartition("/")
    for outer in marked(root.parent, [root.name], name):
        text = read(root / parent / f"window={outer.label()}" / WINDOWS_FILE)
        with suppress(ValueError):  # it is none, or damaged, which an audit tells
            for source in parse_sources(text):
                if window_of(source) == bounds_of(last):
                    return source
    return None
