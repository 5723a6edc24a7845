"""Read the tables as they are at one moment: complete windows only, each row once.

A window is complete if its folder has `_manifest.json`. A complete window with `_windows.jsonl` is
a compacted one, and replaces all windows that lie within it, whether they are still there or not.

All that is needed is one flat listing, and the files. It is listed twice, since windows that are
compacted while it takes place could be missing from a listing in both forms.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from airflow_provider_r7mail.lake.layout import (
    MANIFEST,
    PART,
    WINDOWS_FILE,
    parse_window,
)
from airflow_provider_r7mail.lake.s3 import read_options
from airflow_provider_r7mail.lake.schema import schema
from airflow_provider_r7mail.lake.storage import ObjectPath, store_errors, url_of

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

PLACE = re.compile("mailbox=([^/]+)/folder=(-?[0-9]+)/window=([^/]+)")
LISTINGS = 10  # until two in a row agree
READINGS = 5  # of all files, if some are replaced meanwhile
READERS = 8  # files that are read at once
READ_WHOLE = 2**20  # files below this are read in one request


@dataclass(frozen=True, slots=True)
class TableFile:
    """A file with a table's rows of one window.

    :param path: its path in the file system
    :param size: its size in bytes
    :param mailbox: the login, as it is in the path
    :param folder: id of the folder
    :param window: the window, such as `20250601T000000Z_20250602T000000Z`
    """

    path: str
    size: int
    mailbox: str
    folder: int
    window: str


def complete_files(table: ObjectPath) -> list[TableFile]:
    """Return the files of a table that together have each row once, in the order of their paths.

    :param table: the table's folder, such as `ObjectStoragePath("s3://aws@bucket/mail/messages")`;
        a `UPath` will do
    :raises OSError: the storage fails, or windows keep disappearing
    """
    known: dict[str, dict[str, int]] | None = None
    for _ in range(LISTINGS):
        listing = _list(table)
        found = complete_windows(listing)
        if known is not None and all(f"{home}/{MANIFEST}" in listing for home in known):
            return list(_table_files(table, found))
        known = found
    raise OSError(f"{url_of(table)}: windows disappeared during each of {LISTINGS} listings.")


def read_files(table: ObjectPath, read: Callable[[TableFile], T]) -> list[T]:
    """Return what a function makes of each file of a table that is to be read.

    If a file is replaced or removed meanwhile, all are read again, as they are then.

    :param table: the table's folder
    :param read: reads one file; called in several threads
    :raises OSError: the storage fails
    """
    files = complete_files(table)
    tries = READINGS
    while True:
        try:
            with ThreadPoolExecutor(READERS) as pool:
                return list(pool.map(read, files))
        except (OSError, ValueError):  # the latter is pyarrow's, for a file of another size
            before, files = files, complete_files(table)
            tries -= 1
            if not tries or files == before:
                raise


def read_table(
    table: ObjectPath,
    columns: Iterable[str] | None = None,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
) -> pa.Table:
    """Return a table's rows, each once, with `mailbox`, `folder` and `window` from the path.

    Small files take one request each. Columns that a window lacks, since an earlier version or an
    extract with `columns` wrote it, are null.

    :param table: the table's folder, named after the table
    :param columns: the columns to read; None for all
    :param start: read only windows with mail of this time or later
    :param end: read only windows with mail of before this time
    :raises OSError: the storage fails
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    full = schema(table.name)
    names = full.names if columns is None else list(columns)
    wanted = pa.schema(full.field(name).with_nullable(True) for name in names)
    places = pa.schema({"mailbox": pa.string(), "folder": pa.int64(), "window": pa.string()})
    nothing = pa.schema([*wanted, *places]).empty_table()

    def read(file: TableFile) -> pa.Table:
        if not _overlaps(file, start, end):
            return nothing
        with store_errors(table):
            try:
                if file.size < READ_WHOLE:
                    data = table.fs.cat_file(file.path, **read_options(table.fs))
                    rows = stored_rows(pa.BufferReader(data))
                else:
                    with table.fs.open(file.path, "rb", size=file.size) as opened:
                        rows = stored_rows(opened)
            except pa.ArrowException as error:
                raise OSError(f"{file.path}: can't be read ({error}).") from error
        for field in wanted:
            if field.name not in rows.column_names:
                rows = rows.append_column(field, pa.nulls(len(rows), field.type))
        rows = rows.select(names).cast(wanted)
        for field in places:
            value = pa.scalar(getattr(file, field.name), field.type)
            rows = rows.append_column(field, pa.repeat(value, len(rows)))
        return rows

    def stored_rows(source: Any) -> pa.Table:
        stored = pq.ParquetFile(source, pre_buffer=True)
        columns = stored.schema_arrow
        there = [name for name in names if name in columns.names]
        if not stored.num_row_groups:  # pyarrow 18 can't read such a file
            return columns.empty_table().select(there)
        return stored.read(there, use_threads=False)

    return pa.concat_tables([nothing, *read_files(table, read)])


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
    # Without the Z, bounds with and without fractions of a second are in order as text. A window
    # without a start comes first.
    return home, name.partition("_")[0].removesuffix("Z").removesuffix("open")


def _end(path: str) -> str:
    return path.rpartition("_")[2].removesuffix("Z")


def _list(table: ObjectPath) -> dict[str, int]:
    """Return the sizes of all files below a table's folder, by their paths."""
    try:
        with store_errors(table):
            table.fs.invalidate_cache()
            found = table.fs.find(table.path, detail=True)
    except FileNotFoundError:
        return {}
    return {path: int(info["size"]) for path, info in found.items()}


def _table_files(
    table: ObjectPath, windows: Mapping[str, Mapping[str, int]]
) -> Iterator[TableFile]:
    root = table.path.rstrip("/") + "/"
    for home, files in windows.items():
        if place := PLACE.fullmatch(home.removeprefix(root)):
            mailbox, folder, window = place.groups()
            # Always as text: a login may be 007.
            yield TableFile(
                f"{home}/{PART}", files.get(PART, 0), unquote(mailbox), int(folder), window
            )


def _overlaps(file: TableFile, start: datetime | None, end: datetime | None) -> bool:
    window = parse_window(f"window={file.window}")
    if window is None or window.start is None or window.end is None:  # without bounds
        return True
    return (end is None or window.start < end) and (start is None or window.end > start)
