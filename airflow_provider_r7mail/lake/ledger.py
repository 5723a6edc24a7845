"""What the tables have of a folder: its windows, and whether their files are what they should be.

Only the tables are read here; `lake.audit` compares them with the server.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.lake.compacted import (
    Slice,
    difference,
    parse_sources,
    rows_of,
    slices,
    tables_of,
    window_of,
)
from airflow_provider_r7mail.lake.inventory import find_folders, take_inventory
from airflow_provider_r7mail.lake.layout import (
    MANIFEST,
    PART,
    REPLACED,
    WINDOWS,
    WINDOWS_FILE,
    folder_name,
    folder_path,
    parse_window,
    window_name,
)
from airflow_provider_r7mail.lake.locks import locked
from airflow_provider_r7mail.lake.parquet import read_slice
from airflow_provider_r7mail.lake.privacy import Privacy
from airflow_provider_r7mail.lake.schema import SCHEMA_VERSION, TABLES
from airflow_provider_r7mail.lake.splitting import compaction_lock, make_regular, remove_windows
from airflow_provider_r7mail.lake.storage import ObjectPath, absence, read, store_errors, url_of

OF_ANOTHER = "the manifest is of another window"


@dataclass(slots=True)
class Entry:
    """A window in the tables.

    :param window: its bounds
    :param manifest: its manifest; None if it is unfinished
    :param strays: whether an audit made it, for mail outside of the regular windows
    :param keeps: whether it may have rows of mail that has left
    :param problems: what is wrong with its files, in words
    :param place: where its rows are, if it is a part of a compacted window
    :param ids: the ids of its messages, if they are known already
    """

    window: Window
    manifest: dict[str, Any] | None
    strays: bool = False
    keeps: bool = False
    problems: list[str] = field(default_factory=list)
    place: Slice | None = None
    ids: array[int] | None = None

    @property
    def bounds(self) -> tuple[datetime, datetime]:
        """Its start and end."""
        assert self.window.start is not None  # noqa: S101 - parse_window gives both
        assert self.window.end is not None  # noqa: S101
        return self.window.start, self.window.end

    @property
    def messages(self) -> int | None:
        """How many messages the server should list there; None if its manifest can't tell."""
        if self.manifest is None or self.filtered or self.manifest["quarantined"]:
            return None
        return int(self.manifest["messages"])

    @property
    def filtered(self) -> bool:
        """Whether it has only some of the mail, as filters selected it."""
        return self.manifest is not None and self.manifest.get("filters") is not None

    @property
    def moved(self) -> bool:
        """Whether somebody copied or moved it here from another window."""
        return OF_ANOTHER in self.problems

    @property
    def has_ids(self) -> bool:
        """Whether its rows have the ids of its messages; it has a manifest."""
        manifest = self.manifest or {"tables": []}
        tables = {item["table"] for item in manifest.get("files") or manifest["tables"]}
        columns = manifest.get("settings", {}).get("columns")
        return "messages" in tables and (columns is None or "message_id" in columns)

    @property
    def comparable(self) -> bool:
        """Whether it can be compared with the server: finished, in order, and unfiltered."""
        return self.manifest is not None and not self.problems and not self.filtered


@dataclass(slots=True)
class Ledger:
    """The windows of a folder in the tables, by start; those that were compacted one by one.

    :param entries: the windows
    :param foreign: files that belong to none of them
    :param left: how many windows are left that were compacted, or not compacted to the end
    """

    entries: list[Entry]
    foreign: list[str]
    left: int = 0

    def overlaps(self) -> list[tuple[Entry, Entry]]:
        """Return pairs of windows that overlap: mail of both is in the tables twice."""
        found = []
        widest: Entry | None = None
        for entry in self.entries:
            if widest is not None and entry.bounds[0] < widest.bounds[1]:
                found.append((widest, entry))
            if widest is None or entry.bounds[1] > widest.bounds[1]:
                widest = entry
        return found

    def of_another_policy(self) -> list[Entry]:
        """Return the windows whose privacy policy is not that of the one extracted last."""
        known = [entry for entry in self.entries if entry.manifest is not None]
        if not known:
            return []
        newest = max(known, key=lambda entry: str((entry.manifest or {})["extracted_at"]))
        policy = (newest.manifest or {})["privacy"]
        return [entry for entry in known if (entry.manifest or {})["privacy"] != policy]

    def of_an_older_schema(self) -> int:
        """Return how many windows have an older schema version: a note, since they can be read."""
        return sum(
            entry.manifest is not None and entry.manifest["schema_version"] != SCHEMA_VERSION
            for entry in self.entries
        )


def read_ledger(output: ObjectPath, mailbox: str, folder: int, *, deep: bool) -> Ledger:
    """Read what the tables have of a folder.

    :param output: the root of the tables
    :param mailbox: the mailbox's name in paths
    :param folder: id of the folder
    :param deep: also compare each file's SHA-256 with its manifest
    :raises OSError: the storage fails
    """
    found = take_inventory(output, folder_name(mailbox, folder))
    names = found.counted()
    manifests = found.manifests(names)
    entries = []
    for name in names:
        tables = found.windows[name]
        window = parse_window(name)
        assert window is not None  # noqa: S101 - the inventory made sure
        manifest = manifests.get(name)
        entry = Entry(window, manifest)
        if entry.manifest is None:
            entry.keeps = any(REPLACED in files for files in tables.values())
        else:
            entry.strays = bool(entry.manifest.get("strays"))
            entry.keeps = bool(entry.manifest.get("gone"))
            if not _is_of(entry.manifest, window, folder):
                entry.problems.append(OF_ANOTHER)
            elif "files" in entry.manifest:
                entry.problems += _problems(entry.manifest, tables, found.homes, name, deep=deep)
        if name in found.compacted:
            entries += _sources(entry, found.homes, name)
        else:
            entries.append(entry)
    entries.sort(key=lambda entry: entry.bounds)
    find_strays(entries)
    foreign = sorted([*found.foreign, *_beside(output, mailbox, folder)])
    return Ledger(entries, foreign, len(found.superseded) + len(found.remains))


def _beside(output: ObjectPath, mailbox: str, folder: int) -> Iterable[str]:
    """Yield the files above a folder that readers of the tables take for mail."""
    for table in TABLES:
        home = folder_path(output / table, mailbox, folder)
        for above in (home.parent, home.parent.parent):
            with absence(above), store_errors(above):
                above.fs.invalidate_cache()
                paths = above.fs.ls(above.path, detail=False)
                yield from (path for path in paths if path.endswith(".parquet"))


def _sources(entry: Entry, homes: Mapping[str, ObjectPath], name: str) -> list[Entry]:
    """Return the windows that a compacted one was made of; itself if it is damaged."""
    manifest = entry.manifest
    if manifest is None or entry.problems:
        return [entry]
    try:
        sources = parse_sources(read(homes[tables_of(manifest)[0]] / name / WINDOWS_FILE))
    except ValueError:
        entry.problems.append(f"{WINDOWS_FILE}: can't be read")
        return [entry]
    if (problem := difference(manifest, sources)) is not None:
        entry.problems.append(problem)
        return [entry]
    return [
        Entry(window_of(source), source, keeps=bool(source.get("gone")), place=place)
        for source, place in zip(sources, slices(entry.window, sources), strict=True)
    ]


def find_strays(entries: Sequence[Entry]) -> None:
    """Tell which unfinished windows are of strays: those that don't continue the regular ones.

    A killed repair leaves them anywhere in time. As regular windows they would make all that is
    between them and the others a gap.
    """
    regular = [entry for entry in entries if entry.manifest is not None and not entry.strays]
    if not regular:
        return
    first, last = regular[0].bounds[0], max(entry.bounds[1] for entry in regular)
    unfinished = [entry for entry in entries if entry.manifest is None]
    for entry in unfinished:
        if first <= entry.bounds[0] <= last:
            last = max(last, entry.bounds[1])
    for entry in reversed(unfinished):
        if first <= entry.bounds[1] <= last:
            first = min(first, entry.bounds[0])
    starts = [entry.bounds[0] for entry in regular]
    for entry in unfinished:
        start, end = entry.bounds
        place = bisect_left(starts, end)
        overlaps = place > 0 and regular[place - 1].bounds[1] > start
        entry.strays = overlaps or start < first or end > last


def find_mailbox(output: ObjectPath, folder: int, login: str | None, secret: str | None) -> str:
    """Return the mailbox's name in paths: the login, or its hash under a privacy policy.

    :param login: the login; None for the only mailbox that has the folder
    :param secret: the connection's `privacy_secret`
    :raises R7MailConfigError: a login is needed, since several mailboxes have the folder, or none
    :raises OSError: the storage fails
    """
    if login is None:
        stored = {name for name, _ in find_folders(output, folder, (*TABLES, WINDOWS))}
        if len(stored) != 1:
            raise R7MailConfigError(
                f"Mailboxes with a folder {folder} below {url_of(output)}: {len(stored)}. "
                + ("Give the login of one of them." if stored else "Give what extracts write to.")
            )
        return stored.pop()
    names = [login]
    if secret:
        names.append(Privacy.build({"mailbox": "hash"}, secret).mailbox(login))
    for name in names:
        for table in (*TABLES, WINDOWS):
            home = folder_path(output / table, name, folder)
            with store_errors(home):
                if home.fs.exists(home.path):
                    return name
    return login


def stored_ids(output: ObjectPath, mailbox: str, folder: int, entry: Entry) -> list[int]:
    """Return the ids in the rows of the messages table, without mail that has left.

    :param entry: the window, complete
    :raises OSError: they can't be read
    """
    window = entry.window if entry.place is None else entry.place.window
    path = folder_path(output / "messages", mailbox, folder) / f"window={window.label()}" / PART
    first = 0 if entry.place is None else entry.place.first.get("messages", 0)
    count = rows_of(entry.manifest or {"files": []}).get("messages", 0)
    with absence(path), store_errors(path):
        return [
            row["message_id"]
            for row in read_slice(path, ["message_id", "gone_at"], first, count)
            if row.get("gone_at") is None
        ]
    return []


def remove_window(output: ObjectPath, mailbox: str, folder: int, window: Window) -> None:
    """Remove a window from all tables, the manifests first: without one it is unfinished.

    :param window: a window of its own, not one within a compacted window
    :raises OSError: the storage fails
    """
    name = window_name(mailbox, folder, window.label())
    with locked(output, name), compaction_lock(output, name):
        make_regular(output, name)
        remove_windows(output, [name])


def _is_of(manifest: Mapping[str, Any], window: Window, folder: int) -> bool:
    try:
        return (window_of(manifest), manifest["folder_id"]) == (window, folder)
    except R7MailConfigError:  # its bounds are no dates
        return False


def _problems(
    manifest: Mapping[str, Any],
    tables: Mapping[str, Mapping[str, int]],
    homes: Mapping[str, ObjectPath],
    name: str,
    *,
    deep: bool,
) -> Iterable[str]:
    listed = {file["table"]: file for file in manifest["files"]}
    rows, messages = rows_of(manifest), manifest["messages"] + manifest.get("gone", 0)
    if rows.get("messages", messages) != messages:
        yield f"messages: {rows['messages']} rows, not {messages}"
    notes = {tables[table][MANIFEST] for table in listed if MANIFEST in tables.get(table, {})}
    if len(notes) > 1:
        yield "the tables have different manifests"
    for table, file in listed.items():
        there = tables.get(table, {})
        if MANIFEST not in there:
            yield f"{table}: no manifest"
        if PART not in there:
            yield f"{table}: the file is missing"
        elif there[PART] != file["bytes"]:
            yield f"{table}: the file has {there[PART]} bytes, not {file['bytes']}"
        elif deep:
            data = read(homes[table] / name / PART)
            if data is None or hashlib.sha256(data).hexdigest() != file["sha256"]:
                yield f"{table}: the file's SHA-256 is another"
