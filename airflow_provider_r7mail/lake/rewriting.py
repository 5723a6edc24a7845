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
    window_name,
)
from airflow_provider_r7mail.lake.parquet import ParquetTable
from airflow_provider_r7mail.lake.schema import RUN_ID_KEY
from airflow_provider_r7mail.lake.staging import StagedObject, clean
from airflow_provider_r7mail.lake.storage import ObjectPath, remove_empty, url_of

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
    :param sources: the manifests of the windows that it is made of, in order of time; one makes it
        a regular window
    :param schemas: the schema of each table
    """

    def __init__(
        self,
        output: ObjectPath,
        sources: Sequence[Manifest],
        schemas: Mapping[str, pa.Schema],
    ) -> None:
        first = sources[0]
        self.sources = sources
        self.window = Window(window_of(first).start, window_of(sources[-1]).end)
        self.name = window_name(first["mailbox"], first["folder_id"], self.window.label())
        self.run_id = uuid.uuid4().hex if len(sources) > 1 else first["run_id"]
        self.folders = {table: output / table / self.name for table in tables_of(first)}
        self.home = next(iter(self.folders.values()))
        self.manifest: dict[str, Any] = {}
        self._parts: dict[str, StagedObject] = {}
        self._rows: dict[str, ParquetTable] = {}
        self._others: list[StagedObject] = []  # in the order in which to commit them
        self._marks: list[StagedObject] = []
        self._quarantine = b""
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
            lines = "".join(f"{_compact(source)}\n" for source in self.sources)
            for folder in self.folders.values():
                self._marks.append(self._stage(folder / WINDOWS_FILE, lines.encode()))
        if self._quarantine:
            self._stage(self._quarantine_home / QUARANTINE, self._quarantine)
        text = json.dumps(self.manifest, indent=2, ensure_ascii=False).encode()
        for folder in reversed(self.folders.values()):  # the home's is the last
            self._stage(folder / MANIFEST, text)

    def _stage(self, path: ObjectPath, data: bytes) -> StagedObject:
        item = StagedObject(path)
        self._others.append(item)
        item.write(data)
        return item

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

    def commit_marks(self) -> None:
        """Put the marks of a compacted window in place: publishers heed them from now on."""
        for item in self._marks:
            item.commit()

    def commit(self) -> None:
        """Put all in place; with the home's manifest the window exists."""
        for item in (*self._parts.values(), *self._others):
            if item not in self._marks:
                item.commit()

    def discard(self) -> None:
        """Drop what was not committed. Never raises."""
        for item in (*self._parts.values(), *self._others):
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
    import pyarrow as pa
    import pyarrow.compute as pc

    if "date" in part.schema_arrow.names:
        dates = _groups(part, ["date"])["date"]
        order = pc.sort_indices(dates)  # stable, nulls last
        if not order.equals(pa.array(range(len(order)), order.type)):
            yield from _groups(part, None).take(order).to_batches()
            return
    for group in range(part.num_row_groups):
        yield from part.read_row_group(group, use_threads=False).to_batches()


def _groups(part: Any, columns: list[str] | None) -> pa.Table:
    """Return a file's rows, which may be none: pyarrow 18 can't read such a file at once."""
    import pyarrow as pa

    groups = [
        part.read_row_group(group, columns=columns, use_threads=False)
        for group in range(part.num_row_groups)
    ]
    if groups:
        return pa.concat_tables(groups)
    schema: pa.Schema = part.schema_arrow
    chosen = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    return chosen.empty_table()


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
