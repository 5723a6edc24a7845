"""Write rows of windows that are there already into other windows: many into one, or one into many.

Nothing is seen before it is committed, and nothing is replaced: the caller removes the originals.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail import __version__
from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.lake.compacted import Manifest, tables_of, window_of
from airflow_provider_r7mail.lake.layout import (
    MANIFEST,
    PART,
    PATH_LEVELS,
    QUARANTINE,
    WINDOWS_FILE,
)
from airflow_provider_r7mail.lake.parquet import ParquetTable
from airflow_provider_r7mail.lake.schema import RUN_ID_KEY
from airflow_provider_r7mail.lake.staging import StagedObject, clean
from airflow_provider_r7mail.lake.storage import ObjectPath, read_all, remove_empty, url_of

if TYPE_CHECKING:
    import pyarrow as pa

# What the manifest of a compacted window has the sums of: numbers, or numbers by name.
SUMS = (
    "messages",
    "gone",
    "quarantined",
    "duplicates_dropped",
    "rows_repaired",
    "attachment_bytes",
    "attachments",
    "listed_sizes",
)


class DamagedError(Exception):
    """A window's files are not what its manifest says; the text says how."""


class Rewrite:
    """A window made of the rows of others, staged until it is committed.

    :param output: the root of the tables
    :param parent: the folder's path below a table. Manifests may have another one: of the login
        that a mailbox had before its folder was renamed
    :param sources: the manifests of the windows that it is made of, in order of time; one makes it
        a regular window
    :param schemas: the schema of each table
    """

    def __init__(
        self,
        output: ObjectPath,
        parent: str,
        sources: Sequence[Manifest],
        schemas: Mapping[str, pa.Schema],
    ) -> None:
        first = sources[0]
        self.sources = sources
        self.window = Window(window_of(first).start, window_of(sources[-1]).end)
        self.name = f"{parent}/window={self.window.label()}"
        self.run_id = uuid.uuid4().hex if len(sources) > 1 else first["run_id"]
        self.folders = {table: output / table / self.name for table in tables_of(first)}
        self.home = next(iter(self.folders.values()))
        self.manifest: dict[str, Any] = {}
        self._parts: dict[str, StagedObject] = {}
        self._rows: dict[str, ParquetTable] = {}
        self._marks: list[StagedObject] = []
        self._notes: list[StagedObject] = []
        self.mark = b""
        self._quarantine = b""
        self._quarantined: list[StagedObject] = []
        self._quarantine_home = output / first["files"][0]["table"] / self.name
        try:
            for table, folder in self.folders.items():
                clean(folder)
                self._parts[table] = StagedObject(folder / PART)
                self._rows[table] = ParquetTable(
                    table, self._parts[table], schemas[table], {RUN_ID_KEY: self.run_id}
                )
        except BaseException:
            self.discard()
            raise

    def write(self, table: str, batch: pa.RecordBatch) -> None:
        """Add rows."""
        self._rows[table].write(batch)

    def set_aside(self, lines: Sequence[bytes]) -> None:
        """Add lines of the quarantine file."""
        self._quarantine += b"".join(line + b"\n" for line in lines)

    def finish(self) -> None:
        """Write the footers, and stage the other files."""
        files = {}
        for table, rows in self._rows.items():
            rows.finish()
            part = self._parts[table]
            files[table] = {
                "table": table,
                "path": url_of(part.path),
                "rows": rows.rows,
                "bytes": part.bytes,
                "sha256": part.sha256,
            }
        first = self.sources[0]
        made = dict(first) if len(self.sources) == 1 else self._combined()
        order = [file["table"] for file in first["files"]]  # the first one has the quarantine
        self.manifest = made | {
            "path": url_of(self._quarantine_home),
            "files": [files[table] for table in order],
        }
        if len(self.sources) > 1:
            self.mark = "".join(f"{_compact(source)}\n" for source in self.sources).encode()
            for folder in self.folders.values():
                self._stage(self._marks, folder / WINDOWS_FILE, self.mark)
        if self._quarantine:
            self._stage(self._quarantined, self._quarantine_home / QUARANTINE, self._quarantine)
        text = json.dumps(self.manifest, indent=2, ensure_ascii=False).encode()
        for folder in reversed(self.folders.values()):  # the home's is the last
            self._stage(self._notes, folder / MANIFEST, text)

    def _stage(self, items: list[StagedObject], path: ObjectPath, data: bytes) -> None:
        items.append(item := StagedObject(path))
        item.write(data)

    def _combined(self) -> dict[str, Any]:
        """Return the manifest of a compacted window, without its files."""
        newest = max(self.sources, key=lambda source: str(source["extracted_at"]))
        start, end = self.window.start, self.window.end
        bounds = {"start": start and start.isoformat(), "end": end and end.isoformat()}
        return {
            **{
                name: newest.get(name)
                for name in (
                    "schema_version",
                    "mailbox",
                    "folder_id",
                    "extracted_at",
                    "filters",
                    "settings",
                    "privacy",
                    "readings",
                )
            },
            "provider_version": __version__,
            "run_id": self.run_id,
            "window": bounds,
            "strays": False,
            "counted": {**bounds, "messages": None},
            **{name: _total([source.get(name, 0) for source in self.sources]) for name in SUMS},
            "made_of": [
                {
                    "window": source["window"],
                    "run_id": source["run_id"],
                    "extracted_at": source["extracted_at"],
                    "messages": source["messages"],
                    "files": [
                        {name: file[name] for name in ("table", "rows", "sha256")}
                        for file in source["files"]
                    ],
                }
                for source in self.sources
            ],
        }

    def commit_rows(self) -> None:
        """Put all in place but the manifests: the marks of a compacted window first.

        Publishers heed the marks from now on. Readers don't see the window yet.
        """
        for item in (*self._marks, *self._parts.values(), *self._quarantined):
            item.commit()

    def marks(self) -> list[bytes | None]:
        """Return the marks that are in its place, which another process may have removed."""
        return read_all([folder / WINDOWS_FILE for folder in self.folders.values()])

    def commit(self) -> None:
        """Put the manifests in place; with the home's the window exists."""
        for item in self._notes:
            item.commit()

    def discard(self) -> None:
        """Drop what was not committed. Never raises."""
        for item in (*self._marks, *self._parts.values(), *self._quarantined, *self._notes):
            item.discard()
        for folder in self.folders.values():
            remove_empty(folder, PATH_LEVELS)


def _compact(manifest: Manifest) -> str:
    return json.dumps(manifest, separators=(",", ":"), ensure_ascii=False)


def _total(values: list[Any]) -> Any:
    if any(isinstance(value, Mapping) for value in values):
        total: Counter[str] = Counter()
        for value in values:
            total.update(value or {})
        return dict(total)
    return sum(values)


def open_part(data: bytes | None, file: Mapping[str, Any]) -> Any:
    """Return a part as a `pyarrow.parquet.ParquetFile`.

    :param data: its bytes
    :param file: its entry in the manifest
    :raises DamagedError: it is not what the manifest says
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if data is None:
        raise DamagedError(f"{file['table']}: the file is missing")
    if hashlib.sha256(data).hexdigest() != file["sha256"]:
        raise DamagedError(f"{file['table']}: the file's SHA-256 is another")
    try:
        found = pq.ParquetFile(pa.BufferReader(data))
    except pa.ArrowException as error:
        raise DamagedError(f"{file['table']}: not a Parquet file") from error
    if found.metadata.num_rows != file["rows"]:
        raise DamagedError(
            f"{file['table']}: the file has {found.metadata.num_rows} rows, not {file['rows']}"
        )
    return found


def quarantine_lines(data: bytes | None, manifest: Manifest) -> list[bytes]:
    """Return the lines of a quarantine file.

    :raises DamagedError: they aren't as many as the manifest says
    """
    lines = (data or b"").split(b"\n")[:-1]
    if len(lines) != manifest["quarantined"]:
        raise DamagedError(
            f"{QUARANTINE}: it has {len(lines)} lines, not {manifest['quarantined']}"
        )
    return lines


def in_order_of_date(part: Any) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a part; those of a table with dates sorted by them, undated mail last."""
    import pyarrow.compute as pc

    groups = range(part.num_row_groups)
    if "date" in part.schema_arrow.names:
        # A file of one group is read once; of others the dates first, since most are in order.
        whole = _rows(part, groups) if len(groups) == 1 else None
        dates = (whole if whole is not None else _rows(part, groups, ["date"]))["date"]
        if not _is_in_order(dates):
            rows = whole if whole is not None else _rows(part, groups)
            yield from rows.take(pc.sort_indices(dates)).to_batches()  # stable, nulls last
            return
        if whole is not None:
            yield from whole.to_batches()
            return
    for group in groups:
        yield from _rows(part, [group]).to_batches()


def _rows(part: Any, groups: Sequence[int], columns: list[str] | None = None) -> pa.Table:
    if not groups:  # pyarrow 18 can't read such a file
        found = part.schema_arrow.empty_table()
        return found if columns is None else found.select(columns)
    return part.read_row_groups(groups, columns=columns, use_threads=False)


def _is_in_order(dates: pa.ChunkedArray) -> bool:
    import pyarrow.compute as pc

    dated = dates.slice(0, len(dates) - dates.null_count)
    if dated.null_count or len(dated) < 2:
        return not dated.null_count
    return bool(pc.all(pc.less_equal(dated.slice(0, len(dated) - 1), dated.slice(1))).as_py())


class SplitBatches:
    """Divides the rows of a part into runs of given lengths.

    :param part: a `pyarrow.parquet.ParquetFile`
    """

    def __init__(self, part: Any) -> None:
        self._batches = (
            batch
            for group in range(part.num_row_groups)
            for batch in part.read_row_group(group, use_threads=False).to_batches()
        )
        self._rest: pa.RecordBatch | None = None

    def take(self, count: int) -> Iterator[pa.RecordBatch]:
        """Yield the next rows, so many."""
        while count:
            batch = self._rest if self._rest is not None else next(self._batches)
            own = batch.slice(0, count)
            self._rest = batch.slice(count) if batch.num_rows > count else None
            count -= own.num_rows
            yield own
