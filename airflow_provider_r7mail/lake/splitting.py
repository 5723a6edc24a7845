"""Make room for a run within a compacted window: take the window apart again where it must be.

Afterwards everything is as it was before it was compacted: the run finds what it replaces.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import datetime
from itertools import groupby, islice

from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.exceptions import R7MailPublishError
from airflow_provider_r7mail.lake.compacted import (
    Manifest,
    bounds_of,
    difference,
    marked,
    parse_sources,
    rows_of,
    window_of,
    within,
)
from airflow_provider_r7mail.lake.inventory import take_inventory
from airflow_provider_r7mail.lake.layout import (
    MANIFEST,
    PART,
    PATH_LEVELS,
    QUARANTINE,
    REPLACED,
    WINDOWS_FILE,
)
from airflow_provider_r7mail.lake.locks import Lock, locked
from airflow_provider_r7mail.lake.manifest import read_manifest
from airflow_provider_r7mail.lake.rewriting import (
    DamagedError,
    Rewrite,
    SplitBatches,
    open_part,
    quarantine_lines,
)
from airflow_provider_r7mail.lake.schema import TABLES
from airflow_provider_r7mail.lake.staging import clean
from airflow_provider_r7mail.lake.storage import (
    ObjectPath,
    read,
    read_all,
    remove_all,
    remove_empty,
    url_of,
)

log = logging.getLogger(__name__)


def compaction_lock(output: ObjectPath, name: str) -> AbstractContextManager[Lock | None]:
    """Keep others from compacting windows of a folder, or taking them apart, at the same time.

    Whoever holds a window's own lock may take this one, too, but not the other way round.

    :param name: the path of any window of the folder, below a table
    """
    return locked(output, f"{name.rpartition('/')[0]}/compaction")


def make_room(output: ObjectPath, tables: Iterable[str], own: str, *, replace: bool) -> None:
    """Take apart the compacted windows that a window lies within, so that it is one of its own.

    :param output: the root of the tables
    :param tables: the tables that are to be written
    :param own: the window's path below a table
    :param replace: make a regular window of one that is compacted itself, because it is to be
        replaced as a whole
    :raises R7MailPublishError: a compacted window is damaged
    :raises OSError: the storage fails
    """
    tables = tuple(tables)
    parent, _, last = own.rpartition("/")
    window = bounds_of(last)

    def in_the_way() -> list[Window]:
        found = marked(output, tables, own)
        return [outer for outer in found if replace or outer != window]

    while outers := in_the_way():
        outer = outers[0]
        name = f"{parent}/window={outer.label()}"
        with ExitStack() as stack:
            split = None if outer == window else _stage(output, name, window, stack)
            stack.enter_context(compaction_lock(output, name))
            if outer not in in_the_way():
                continue
            there = read_manifest(_home(output, name))
            if outer == window:
                make_regular(output, name)
            elif there is None:
                _remove_remains(output, name)
            elif split is not None and split.run_id == there["run_id"]:
                split.commit()
                log.info(
                    "%s: a run replaces a part of this compacted window, which was taken apart "
                    "there. The next compaction puts the rest together again.",
                    url_of(split.home),
                )


class _Split:
    """The pieces of a compacted window, staged."""

    def __init__(
        self,
        output: ObjectPath,
        name: str,
        home: ObjectPath,
        run_id: str,
        pieces: Sequence[Rewrite],
    ) -> None:
        self.home = home
        self.run_id = run_id
        self._output = output
        self._name = name
        self._pieces = pieces

    def commit(self) -> None:
        """Put the pieces in place, where none is newer, and remove the compacted window."""
        # Compacted windows that it was made of may be there still, and would overlap the pieces.
        left = _superseded_within(self._output, self._name, compacted=True)
        remove_windows(self._output, left)
        for piece in self._pieces:
            there = read_manifest(piece.home) if len(piece.sources) == 1 else None
            if there is None or not _is_newer(there, piece.manifest):
                piece.commit_rows()
                piece.commit()
        remove_windows(self._output, [self._name])


def _is_newer(manifest: Manifest, other: Manifest) -> bool:
    moments = [datetime.fromisoformat(item["extracted_at"]) for item in (manifest, other)]
    return moments[0] > moments[1]


def _stage(output: ObjectPath, name: str, window: Window, stack: ExitStack) -> _Split | None:
    """Stage the pieces of a compacted window; None if it is none any more."""
    home = _home(output, name)
    manifest = read_manifest(home)
    if manifest is None:
        return None
    try:
        try:
            sources = parse_sources(read(home / WINDOWS_FILE))
        except ValueError as error:
            raise DamagedError(f"{WINDOWS_FILE}: can't be read") from error
        if (reason := difference(manifest, sources)) is not None:
            raise DamagedError(reason)
        pieces = _write_pieces(output, name, manifest, _divide(sources, window), stack)
    except DamagedError as error:
        there = read_manifest(home)
        if there is None or there["run_id"] != manifest["run_id"]:
            return None  # another process has taken it apart or replaced it meanwhile
        raise _damaged(home, error) from error
    return _Split(output, name, home, manifest["run_id"], pieces)


def _divide(sources: Sequence[Manifest], window: Window) -> list[list[Manifest]]:
    """Return which sources each piece has: those that overlap the window are left single."""

    def place(source: Manifest) -> tuple[int, str]:
        own = window_of(source)
        if own.end <= window.start:  # type: ignore[operator]
            return 0, ""
        if own.start >= window.end:  # type: ignore[operator]
            return 2, ""
        return 1, own.label()

    return [list(group) for _, group in groupby(sources, place)]


def _write_pieces(
    output: ObjectPath,
    name: str,
    manifest: Manifest,
    groups: Sequence[Sequence[Manifest]],
    stack: ExitStack,
) -> list[Rewrite]:
    parts = {
        file["table"]: open_part(read(output / file["table"] / name / PART), file)
        for file in manifest["files"]
    }
    quarantine = read(output / manifest["files"][0]["table"] / name / QUARANTINE)
    lines = iter(quarantine_lines(quarantine, manifest))
    schemas = {table: part.schema_arrow for table, part in parts.items()}
    pieces = []
    for group in groups:
        piece = Rewrite(output, name.rpartition("/")[0], group, schemas)
        stack.callback(piece.discard)
        pieces.append(piece)
    for table, part in parts.items():
        rows = SplitBatches(part)
        for piece in pieces:
            for batch in rows.take(sum(rows_of(source)[table] for source in piece.sources)):
                piece.write(table, batch)
    for piece in pieces:
        count = sum(source["quarantined"] for source in piece.sources)
        piece.set_aside(list(islice(lines, count)))
        piece.finish()
    return pieces


def _remove_remains(output: ObjectPath, name: str) -> None:
    """Remove what a killed process left of a compacted window.

    :raises R7MailPublishError: it isn't that, but has lost its manifest
    """
    parent, _, last = name.rpartition("/")
    if last not in take_inventory(output, parent).remains:
        raise _damaged(_home(output, name), "its manifest is missing or can't be read")
    remove_windows(output, [name])


def _damaged(home: ObjectPath, how: object) -> R7MailPublishError:
    return R7MailPublishError(
        f"{home}: this compacted window is damaged ({how}), so that no part of it can be "
        "replaced. Nothing was changed. Extract it as a whole: r7mail audit --repair."
    )


def make_regular(output: ObjectPath, name: str) -> None:
    """Make a regular window of a compacted one, without the windows that it stands for.

    The caller holds the compaction lock.
    """
    remove_windows(output, _superseded_within(output, name))
    remove_marks(output, [name])


def _superseded_within(output: ObjectPath, name: str, *, compacted: bool = False) -> list[str]:
    """Return the paths of the windows that are still there within a compacted one.

    :param compacted: only those that are compacted themselves
    """
    parent, _, last = name.rpartition("/")
    found = take_inventory(output, parent)
    return [
        f"{parent}/{other}"
        for other in (found.superseded & found.compacted if compacted else found.superseded)
        if within(bounds_of(other), bounds_of(last))
    ]


def remove_windows(output: ObjectPath, names: Sequence[str]) -> None:
    """Remove windows from all tables: first what makes them complete, last what marks them.

    :param names: their paths below a table
    """
    folders = [[output / table / name for name in names] for table in TABLES]
    for homes in folders:
        remove_all([home / MANIFEST for home in homes])
    remove_all(
        [
            home / file
            for homes in folders
            for home in homes
            for file in (PART, QUARANTINE, REPLACED)
        ]
    )
    remove_marks(output, names)
    for homes in folders:
        for home in homes:
            clean(home)
            remove_empty(home, PATH_LEVELS)


def remove_marks(output: ObjectPath, names: Sequence[str]) -> None:
    """Remove the marks of compacted windows, that of the home last."""
    for table in reversed(TABLES):
        remove_all([output / table / name / WINDOWS_FILE for name in names])


def _home(output: ObjectPath, name: str) -> ObjectPath:
    """Return a compacted window's folder in its home: the first table that has the mark."""
    marks = read_all([output / table / name / WINDOWS_FILE for table in TABLES])
    table = next((t for t, mark in zip(TABLES, marks, strict=True) if mark is not None), TABLES[0])
    home: ObjectPath = output / table / name
    return home
