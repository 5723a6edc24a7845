"""Tell which windows of a folder can become one: neighbours of a month or a day that are alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from airflow_provider_r7mail.client.dates import MICROSECOND, Window
from airflow_provider_r7mail.lake.compacted import tables_of
from airflow_provider_r7mail.lake.inventory import Inventory
from airflow_provider_r7mail.lake.layout import MANIFEST, PART, parse_window

Into = Literal["month", "day"]
# The size that a compacted window has at most, in bytes of the files that it is made of.
MAX_BYTES = 128 << 20

UNFINISHED = "unfinished"
STRAYS = "made by an audit, for mail outside of the regular windows"
OVERLAPPING = "overlaps another window"


@dataclass(slots=True)
class Source:
    """A window to compact, regular or compacted itself."""

    name: str
    window: Window
    manifest: dict[str, Any]

    @property
    def bytes(self) -> int:
        """The size of its files."""
        return sum(file["bytes"] for file in self.manifest["files"])

    @property
    def kind(self) -> tuple[Any, ...]:
        """What windows must have in common to become one."""
        known = self.manifest
        return (
            tables_of(known),
            *(known.get(name) for name in ("schema_version", "privacy", "filters", "settings")),
        )


@dataclass(slots=True)
class Left:
    """A window that was left alone, and why; `damaged` if its files differ from its manifest."""

    window: str
    reason: str
    damaged: bool = False


def find_groups(
    found: Inventory, before: datetime, into: Into
) -> tuple[list[list[Source]], list[Left]]:
    """Return the windows to make one of, and those that can't be in one.

    :param before: only windows that end by then
    :raises OSError: the storage fails
    """
    names = [name for name in found.counted() if name.startswith("window=")]
    windows = {name: window for name in names if (window := parse_window(name)) is not None}
    old = {name: window for name, window in windows.items() if _end(window) <= before}
    overlapping = _overlapping(windows)
    manifests = found.manifests(old)
    sources = []
    left = []
    for name, window in old.items():
        manifest = manifests.get(name)
        if manifest is not None and "files" not in manifest:
            continue  # its rows are in Iceberg tables
        if manifest is None:
            left.append(Left(window.label(), UNFINISHED))
        elif manifest.get("strays"):
            left.append(Left(window.label(), STRAYS))
        elif name in overlapping:
            left.append(Left(window.label(), OVERLAPPING))
        elif (damage := _damage(manifest, found.windows[name])) is not None:
            left.append(Left(window.label(), damage, damaged=True))
        else:
            sources.append(Source(name, window, manifest))
    sources.sort(key=lambda source: _start(source.window))
    return [group for group in _neighbours(sources, into) if len(group) > 1], left


def overlap(one: Window, other: Window) -> bool:
    """Return whether two windows overlap; both have both bounds."""
    return _start(one) < _end(other) and _start(other) < _end(one)


def _damage(manifest: Mapping[str, Any], tables: Mapping[str, Mapping[str, int]]) -> str | None:
    """Return how a window's files differ from its manifest in a listing, in words."""
    for file in manifest["files"]:
        there = tables.get(file["table"], {})
        if MANIFEST not in there:
            return f"{file['table']}: no manifest"
        if there.get(PART) != file["bytes"]:
            return f"{file['table']}: the file has {there.get(PART, 0)} bytes, not {file['bytes']}"
    return None


def _overlapping(windows: Mapping[str, Window]) -> set[str]:
    """Return the windows that overlap another one."""
    found = set()
    widest: tuple[str, Window] | None = None
    for name, window in sorted(windows.items(), key=lambda item: _start(item[1])):
        if widest is not None and overlap(widest[1], window):
            found |= {widest[0], name}
        if widest is None or _end(window) > _end(widest[1]):
            widest = name, window
    return found


def _neighbours(sources: Sequence[Source], into: Into) -> Iterator[list[Source]]:
    """Yield runs of windows that follow each other, belong to one period, and are alike."""
    group: list[Source] = []
    size = 0
    for source in sources:
        first, last = _period(source.window, into)
        if group and not (
            group[-1].window.end == source.window.start
            and _period(group[-1].window, into)[0] == first
            and group[-1].kind == source.kind
            and size + source.bytes <= MAX_BYTES
        ):
            yield group
            group, size = [], 0
        # Whoever looks for the compacted window that holds another one looks in two months.
        if last - first < 2:
            group.append(source)
            size += source.bytes
    yield group


def _period(window: Window, into: Into) -> tuple[int, int]:
    """Return the numbers of the months or days in which a window begins and ends.

    It belongs to the first one: weeks, and days of another time zone, cross the end of a month.
    """

    def number(moment: datetime) -> int:
        return moment.toordinal() if into == "day" else moment.year * 12 + moment.month

    return number(_start(window)), number(_end(window) - MICROSECOND)


def _start(window: Window) -> datetime:
    assert window.start is not None  # noqa: S101 - parse_window gives both
    return window.start


def _end(window: Window) -> datetime:
    assert window.end is not None  # noqa: S101
    return window.end
