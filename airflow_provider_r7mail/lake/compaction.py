"""Compact a folder's Parquet tables: make one window of many small ones of the past.

The mail server isn't asked; what the tables have stays the same, row for row.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import inf
from typing import Any, get_args

from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.exceptions import R7MailConfigError, R7MailPublishError
from airflow_provider_r7mail.lake.compacted import (
    bounds_of,
    difference,
    marked,
    parse_sources,
    tables_of,
    within,
)
from airflow_provider_r7mail.lake.inventory import BATCH, Inventory, batches, take_inventory
from airflow_provider_r7mail.lake.layout import (
    MANIFEST,
    PART,
    PATH_LEVELS,
    QUARANTINE,
    WINDOWS_FILE,
    folder_name,
    parse_window,
    prefixes_around,
)
from airflow_provider_r7mail.lake.locks import locked, locked_names
from airflow_provider_r7mail.lake.manifest import parse_manifest, read_manifest
from airflow_provider_r7mail.lake.neighbours import Into, Left, Source, find_groups, overlap
from airflow_provider_r7mail.lake.rewriting import (
    DamagedError,
    Rewrite,
    in_order_of_date,
    open_part,
    quarantine_lines,
)
from airflow_provider_r7mail.lake.schema import TABLES
from airflow_provider_r7mail.lake.splitting import (
    compaction_lock,
    make_room,
    remove_windows,
)
from airflow_provider_r7mail.lake.staging import clean
from airflow_provider_r7mail.lake.storage import (
    ObjectPath,
    read_all,
    remove_empty,
    subfolders_of_all,
    url_of,
)
from airflow_provider_r7mail.lake.threads import pause

log = logging.getLogger(__name__)

READ_BYTES = 16 << 20  # how much is read at once
REST_SECONDS = 10.0  # longer than it takes to list a folder
REMOVE_WINDOWS = 100  # how many windows are removed at once, while others wait

BUSY = "changed meanwhile, or is being published"
TRIES = 3  # how often to try if a run publishes meanwhile


@dataclass(frozen=True, slots=True)
class CompactJob:
    """What to compact.

    :param output: the root of the tables
    :param before: only windows that end by then
    :param into: what to make one window of, of UTC: `month` or `day`
    :param dry_run: change nothing
    :param rest: how long to leave what was compacted in place, in seconds, for readers that have
        begun to list it
    """

    output: ObjectPath
    before: datetime
    into: Into = "month"
    dry_run: bool = False
    rest: float = REST_SECONDS


def compact_job(
    output: ObjectPath, older_than_days: object, into: str, now: datetime, *, dry_run: bool = False
) -> CompactJob:
    """Return a job.

    :param older_than_days: the age that a window must have, in days
    :raises R7MailConfigError: a parameter is wrong
    """
    days = older_than_days
    if isinstance(days, bool) or not isinstance(days, int | float) or not 0 <= days < inf:
        raise R7MailConfigError(f"older_than_days: {days!r}. Give a number, 0 or more.")
    if into not in get_args(Into):
        raise R7MailConfigError(f"into: {into!r}. Known: {', '.join(get_args(Into))}.")
    return CompactJob(output, now - timedelta(days=days), into, dry_run)  # type: ignore[arg-type]


@dataclass(slots=True)
class Made:
    """A compacted window: its label, how many windows it was made of, messages, bytes."""

    window: str
    windows: int
    messages: int
    bytes: int


@dataclass(slots=True)
class Outcome:
    """What became of a folder's windows.

    :param mailbox: the mailbox's name in paths
    :param folder: id of the folder
    :param made: the compacted windows
    :param left: the windows that were left alone
    :param removed: how many windows were removed that earlier compactions had left
    """

    mailbox: str
    folder: int
    made: list[Made] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    removed: int = 0

    def record(self) -> dict[str, Any]:
        """Return it for JSON: counts and labels, no mail."""
        return {
            "mailbox": self.mailbox,
            "folder_id": self.folder,
            "made": [
                {
                    "window": made.window,
                    "windows": made.windows,
                    "messages": made.messages,
                    "bytes": made.bytes,
                }
                for made in self.made
            ],
            "left": [{"window": left.window, "reason": left.reason} for left in self.left],
            "removed": self.removed,
        }


def compact_folders(
    job: CompactJob,
    folders: Iterable[tuple[str, int]],
    on_progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Outcome]:
    """Compact the windows of folders, one folder after the other.

    What is left of a folder's windows is removed while others are compacted, or after the last
    one: the iterator must be exhausted, or the next compaction does it.

    :param folders: for each, the mailbox's name in paths, and the folder's id
    :param on_progress: called with what is being compacted
    :raises R7MailPublishError: a lock could not be taken, or the storage fails or is full; nothing
        is lost, and the next compaction goes on
    """
    resting: deque[tuple[float, _Compaction]] = deque()
    for mailbox, folder in folders:
        compaction = _Compaction(job, mailbox, folder, on_progress)
        yield compaction.run()
        resting.append((time.monotonic() + job.rest, compaction))
        while resting and resting[0][0] <= time.monotonic():
            resting.popleft()[1].remove_sources()
    for due, compaction in resting:
        if compaction.has_sources() and not pause(max(0.0, due - time.monotonic())):
            return
        compaction.remove_sources()


@dataclass(frozen=True, slots=True)
class _Switched:
    """A compacted window, its home, and the windows that it was made of, which are still there."""

    sources: Sequence[str]
    name: str
    home: str
    run_id: str


class _UnfitError(Exception):
    """A source can't be in one window with those before it.

    :param place: its place in the group
    :param reason: what is wrong with its files; None if only its columns are others
    """

    def __init__(self, place: int, reason: str | None) -> None:
        super().__init__(reason)
        self.place = place
        self.reason = reason


class _Compaction:
    """The compaction of a folder."""

    def __init__(
        self, job: CompactJob, mailbox: str, folder: int, on_progress: Callable[[str], None]
    ) -> None:
        self._job = job
        self._output = job.output
        self._on_progress = on_progress
        self._parent = folder_name(mailbox, folder)
        self._outcome = Outcome(mailbox, folder)
        self._switched: list[_Switched] = []

    def run(self) -> Outcome:
        """Make the compacted windows, and remove what earlier compactions have left."""
        with self._errors():
            self._run()
        return self._outcome

    def _run(self) -> None:
        found = self._inventory()
        if not self._job.dry_run and (found.remains or found.superseded or found.staged):
            self._clear(found)
            found = self._inventory()
        for _ in range(TRIES):
            groups, self._outcome.left = find_groups(found, self._job.before, self._job.into)
            for group in groups:
                self._compact(group, found)
            busy = [left for left in self._outcome.left if left.reason == BUSY]
            if not busy:
                break
            found = self._inventory()
        self._outcome.left.sort(key=lambda left: left.window)

    def has_sources(self) -> bool:
        """Return whether there are windows that compacted ones were made of."""
        return bool(self._switched)

    def remove_sources(self) -> None:
        """Remove the windows that compacted ones were made of."""
        with self._errors():
            for made in self._switched:
                self._remove(made.sources, made.name, made.home, made.run_id)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise R7MailPublishError(
                f"{url_of(self._output / self._parent)}: compaction stopped ({error}). Nothing is "
                "lost. Once the storage answers and has space, compact again."
            ) from error

    def _inventory(self) -> Inventory:
        return take_inventory(self._output, self._parent)

    def _path(self, name: str) -> str:
        """Return a window's path below a table."""
        return f"{self._parent}/{name}"

    def _leave(self, window: Window, reason: str, *, damaged: bool = False) -> None:
        self._outcome.left.append(Left(window.label(), reason, damaged))

    # -- compacting -------------------------------------------------------------------------

    def _compact(self, group: Sequence[Source], found: Inventory) -> None:
        """Make one window of a group; of several, where one of them doesn't fit."""
        if len(group) < 2:
            return
        label = Window(group[0].window.start, group[-1].window.end).label()
        self._on_progress(label)
        if self._job.dry_run:
            self._note(label, group, sum(source.bytes for source in group))
            return
        try:
            rewrite = self._rewrite(group)
        except _UnfitError as error:
            rest = group[error.place :]
            if error.reason is not None:
                self._leave(rest[0].window, error.reason, damaged=True)
                rest = rest[1:]
            self._compact(group[: error.place], found)
            self._compact(rest, found)
            return
        try:
            switched = self._switch(rewrite, group, found)
        finally:
            rewrite.discard()
        if not switched:
            self._leave(rewrite.window, BUSY)
            return
        self._note(label, group, sum(file["bytes"] for file in rewrite.manifest["files"]))
        outer, home = rewrite.name.rpartition("/")[2], next(iter(rewrite.folders))
        names = [source.name for source in group]
        self._switched.append(_Switched(names, outer, home, rewrite.run_id))

    def _note(self, label: str, group: Sequence[Source], size: int) -> None:
        count = sum(len(source.manifest.get("made_of") or [0]) for source in group)
        messages = sum(source.manifest["messages"] for source in group)
        self._outcome.made.append(Made(label, count, messages, size))

    def _rewrite(self, group: Sequence[Source]) -> Rewrite:
        """Stage a group's rows.

        :raises _UnfitError: one of the windows can't be in it
        """
        made_of: list[dict[str, Any]] = []
        for place, source in enumerate(group):
            try:
                made_of += self._manifests(source)
            except DamagedError as error:
                raise _UnfitError(place, str(error)) from error
        rewrite: Rewrite | None = None
        schemas: dict[str, Any] = {}
        try:
            for place, (source, data) in enumerate(self._read(group)):
                try:
                    parts = {
                        file["table"]: open_part(data[file["table"]], file)
                        for file in source.manifest["files"]
                    }
                    lines = quarantine_lines(data[QUARANTINE], source.manifest)
                except DamagedError as error:
                    raise _UnfitError(place, str(error)) from error
                own = {table: part.schema_arrow for table, part in parts.items()}
                if rewrite is None:
                    schemas = own
                    rewrite = Rewrite(self._output, self._parent, made_of, schemas)
                elif any(not own[table].equals(schemas[table]) for table in own):
                    raise _UnfitError(place, None)
                for table, part in parts.items():
                    for batch in in_order_of_date(part):
                        rewrite.write(table, batch)
                rewrite.set_aside(lines)
            assert rewrite is not None  # noqa: S101 - a group has windows
            rewrite.finish()
        except BaseException:
            if rewrite is not None:
                rewrite.discard()
            raise
        return rewrite

    def _manifests(self, source: Source) -> list[dict[str, Any]]:
        """Return the manifests of the windows that a source stands for."""
        if "made_of" not in source.manifest:
            return [source.manifest]
        home = self._output / tables_of(source.manifest)[0] / self._path(source.name)
        [text] = read_all([home / WINDOWS_FILE])
        if text is None:  # published over as a whole, and regular since
            return [source.manifest]
        try:
            found = parse_sources(text)
        except ValueError as error:
            raise DamagedError(f"{WINDOWS_FILE}: can't be read") from error
        if (reason := difference(source.manifest, found)) is not None:
            raise DamagedError(reason)
        return found

    def _read(self, group: Sequence[Source]) -> Iterator[tuple[Source, dict[str, bytes | None]]]:
        """Yield each window with its files, by table; many small ones are read at once."""
        rest = list(group)
        while rest:
            count = 1
            size = rest[0].bytes
            while count < min(len(rest), BATCH) and (size := size + rest[count].bytes) < READ_BYTES:
                count += 1
            places: list[tuple[int, str]] = []
            paths = []
            for number, source in enumerate(rest[:count]):
                name = self._path(source.name)
                tables = [file["table"] for file in source.manifest["files"]]
                for table in tables:
                    places.append((number, table))
                    paths.append(self._output / table / name / PART)
                if source.manifest["quarantined"]:
                    places.append((number, QUARANTINE))
                    paths.append(self._output / tables[0] / name / QUARANTINE)
            found: list[dict[str, bytes | None]] = [{QUARANTINE: None} for _ in range(count)]
            for (number, key), data in zip(places, read_all(paths), strict=True):
                found[number][key] = data
            for number, source in enumerate(rest[:count]):
                yield source, found[number]
                found[number] = {}
            rest = rest[count:]

    def _switch(self, rewrite: Rewrite, group: Sequence[Source], found: Inventory) -> bool:
        """Let the compacted window take the place of its sources, unless they changed.

        Publishers hold the locks of their windows while they look for the marks of compacted ones.
        Marked first, looked for locks later: at least one of both sees the other.
        """
        with compaction_lock(self._output, rewrite.name) as lock:
            known = {source.name for source in group} | found.superseded
            if not self._is_free(rewrite, known):
                return False
            rewrite.commit_rows()
            held = [
                name
                for name in locked_names(self._output, self._parent)
                if (window := parse_window(name.rpartition("/")[2])) is not None
                and overlap(window, rewrite.window)
            ]
            fits = not held and self._is_unchanged(group)
            # If this took too long, another process has taken the lock over.
            marks = set(rewrite.marks())
            if fits and marks == {rewrite.mark} and (lock is None or lock.is_held()):
                rewrite.commit()
                return True
            if marks <= {rewrite.mark, None}:
                remove_windows(self._output, [rewrite.name])
        for name in sorted(held):  # wait for it, or take over what a killed process left
            with locked(self._output, name):
                pass
        return False

    def _is_free(self, rewrite: Rewrite, known: set[str]) -> bool:
        """Return whether no window has come up that overlaps a compacted one."""
        homes = [self._output / table / self._parent for table in rewrite.folders]
        near = prefixes_around(rewrite.window)
        for home, names in zip(homes, subfolders_of_all(homes, *near), strict=True):
            for name in names:
                window = parse_window(name)
                if window is not None and name not in known and overlap(window, rewrite.window):
                    files = read_all([home / name / MANIFEST])
                    if files != [None]:
                        return False
        return True

    def _is_unchanged(self, group: Sequence[Source]) -> bool:
        """Return whether the windows are still those that were read."""
        for part in batches(list(group), BATCH):
            homes = [
                self._output / tables_of(source.manifest)[0] / self._path(source.name)
                for source in part
            ]
            texts = read_all([home / MANIFEST for home in homes])
            for source, text in zip(part, texts, strict=True):
                there = parse_manifest(text)
                if there is None or there["run_id"] != source.manifest["run_id"]:
                    return False
        return True

    # -- removing what is superseded --------------------------------------------------------

    def _remove(self, names: Sequence[str], outer: str, home: str, run_id: str) -> None:
        """Remove windows within a compacted one; stop as soon as it isn't there any more.

        :param outer: the compacted window
        :param home: its home
        """
        place = self._path(outer)
        for part in batches(list(names), REMOVE_WINDOWS):
            with compaction_lock(self._output, place):
                there = read_manifest(self._output / home / place)
                if there is None or there["run_id"] != run_id:
                    return
                remove_windows(self._output, [self._path(name) for name in part])

    def _clear(self, found: Inventory) -> None:
        """Remove what killed processes left of compacted windows, and superseded windows."""
        for name in sorted(found.remains):
            with compaction_lock(self._output, self._path(name)):
                if name in self._inventory().remains:
                    remove_windows(self._output, [self._path(name)])
        for name in found.staged:
            for place in found.homes.values():
                clean(place / name)
                remove_empty(place / name, PATH_LEVELS)
        known = found.manifests([*found.superseded, *found.compacted])
        held = locked_names(self._output, self._parent)
        for outer in sorted(found.compacted - found.superseded):
            manifest = known.get(outer, {})
            if "made_of" not in manifest:
                continue  # a run has taken it apart meanwhile, or published over it
            bounds = bounds_of(outer)
            inside = [name for name in found.superseded if within(bounds_of(name), bounds)]
            made_of = {item["run_id"] for item in manifest["made_of"]}
            plain: list[str] = []
            others: list[str] = []
            for name in sorted(inside):
                is_plain = _runs(known.get(name)) <= made_of and self._path(name) not in held
                (plain if is_plain else others).append(name)
            self._remove(plain, outer, tables_of(manifest)[0], manifest["run_id"])
            for name in others:
                self._clear_one(name, made_of)
            self._outcome.removed += len(inside)

    def _clear_one(self, name: str, made_of: set[str]) -> None:
        """Remove a window that a run may be publishing; one of a later run takes its place."""
        window = bounds_of(name)
        with locked(self._output, self._path(name)):
            there = self._inventory()
            if not _runs(there.manifests([name] if name in there.windows else []).get(name)) <= (
                made_of
            ):
                make_room(self._output, TABLES, self._path(name), replace=False)
                return
            with compaction_lock(self._output, self._path(name)):
                covers = marked(self._output, TABLES, self._path(name))
                if any(cover != window for cover in covers):
                    remove_windows(self._output, [self._path(name)])


def _runs(manifest: dict[str, Any] | None) -> set[str]:
    """Return the ids of the runs that a window's rows are of."""
    if manifest is None:
        return set()
    return {item["run_id"] for item in manifest.get("made_of") or [manifest]}
