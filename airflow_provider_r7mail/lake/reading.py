"""Tell from a listing which windows of a table to read: those that are complete, each row once.

A window is complete if its folder has `_manifest.json`. A complete window with `_windows.jsonl` is
a compacted one, and replaces all windows that lie within it, whether they are still there or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from airflow_provider_r7mail.lake.layout import MANIFEST, WINDOWS_FILE

T = TypeVar("T")


def complete_windows(listing: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Return the windows to read, in the order of their paths.

    :param listing: the files of one table or of several, by path; the values, such as sizes, are
        passed on
    :return: for each window's folder, its files by name
    """
    folders: dict[str, dict[str, T]] = {}
    for path, value in listing.items():
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, {})[name] = value
    complete = {path: files for path, files in folders.items() if MANIFEST in files}
    compacted = [path for path, files in complete.items() if WINDOWS_FILE in files]
    gone = superseded(complete, compacted)
    return {path: complete[path] for path in sorted(complete) if path not in gone}


def superseded(windows: Iterable[str], compacted: Iterable[str]) -> set[str]:
    """Return the windows that lie within a compacted one of the same folder other than themselves.

    :param windows: paths that end in `window={start}_{end}`
    :param compacted: the paths of complete compacted windows
    """
    marked = set(compacted)
    found = set()
    home, reached = "", ""
    # Of windows with the same start, the longest comes first.
    for path in sorted(sorted({*windows, *marked}, key=_end, reverse=True), key=_start):
        if path.rpartition("/")[0] != home:
            home, reached = path.rpartition("/")[0], ""
        if _end(path) <= reached:
            found.add(path)
        elif path in marked:
            reached = _end(path)
    return found


def _start(path: str) -> tuple[str, str]:
    home, _, name = path.rpartition("/")
    # Without the Z, bounds with and without fractions of a second are in order as text.
    return home, name.partition("_")[0].removesuffix("Z")


def _end(path: str) -> str:
    return path.rpartition("_")[2].removesuffix("Z")
