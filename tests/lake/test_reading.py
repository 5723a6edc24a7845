"""Which windows a reader takes from a listing, and what it reads of them."""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import random
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from upath import UPath

from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.lake.layout import WINDOWS_FILE
from airflow_provider_r7mail.lake.reading import (
    TableFile,
    complete_files,
    complete_windows,
    read_files,
    read_table,
    superseded,
)
from tests.benchmarks.windows import write_window
from tests.lake.support import START

HOME = "mail/messages/mailbox=ann/folder=24"
HOUR = timedelta(hours=1)


def listing(windows: dict[str, str]) -> dict[str, int]:
    """The files of windows: `p`art, `m`anifest and `w`indows."""
    names = {"p": "part-00000.parquet", "m": "_manifest.json", "w": "_windows.jsonl"}
    return {
        f"{path if '/' in path else f'{HOME}/window={path}'}/{names[letter]}": 1
        for path, letters in windows.items()
        for letter in letters
    }


def test_what_to_read() -> None:
    """Complete windows are read; not those within a complete compacted window of their folder."""
    other = "mail/messages/mailbox=ann/folder=25/window=20250601T000000Z_20250601T010000Z"
    found = complete_windows(
        listing(
            {
                "20250601T000000Z_20250601T010000Z": "pm",  # within
                "20250601T010000Z_20250601T020000Z": "p",  # within, half removed
                "20250601T000000Z_20250601T020000Z": "pmw",  # within
                "20250601T000000Z_20250603T000000Z": "pmw",
                "20250603T000000Z_20250603T010000Z": "pm",
                "20250603T000000Z_20250605T000000Z": "pw",  # a compaction in progress
                "20250604T000000Z_20250605T000000Z": "p",  # unfinished
                "20250602T000000Z_20250604T000000Z": "pm",  # overlaps, but doesn't lie within
                other: "pm",
            }
        )
    )

    assert found == {
        f"{HOME}/window={label}": dict.fromkeys(files, 1)
        for label, files in {
            "20250601T000000Z_20250603T000000Z": [
                "part-00000.parquet",
                "_manifest.json",
                "_windows.jsonl",
            ],
            "20250602T000000Z_20250604T000000Z": ["part-00000.parquet", "_manifest.json"],
            "20250603T000000Z_20250603T010000Z": ["part-00000.parquet", "_manifest.json"],
        }.items()
    } | {other: {"part-00000.parquet": 1, "_manifest.json": 1}}


def test_superseded_is_what_the_rule_says() -> None:
    """The sweep over sorted windows finds what comparing every pair finds, also below a second."""
    moments = ["20250601T000000Z", "20250601T000000.500000Z", "20250601T000001Z"] + [
        f"202506{day:02}T000000Z" for day in range(2, 9)
    ]
    chance = random.Random(7)
    for _ in range(300):
        pairs = [chance.sample(range(10), 2) for _ in range(8)]
        spans = {(min(pair), max(pair)) for pair in pairs}
        marked = {span for span in spans if chance.random() < 0.3}
        path = {(a, b): f"{HOME}/window={moments[a]}_{moments[b]}" for a, b in spans}
        wanted = {
            path[span]
            for span in spans
            if any(m != span and m[0] <= span[0] and span[1] <= m[1] for m in marked)
        }

        assert superseded(path.values(), [path[span] for span in marked]) == wanted


def test_windows_without_bounds_are_read() -> None:
    """A window without a start or an end lies within no other, so it is never left out."""
    labels = ["open_20250602T000000Z", "20250602T000000Z_open", "open_open"]
    month = "20250601T000000Z_20250701T000000Z"

    found = complete_windows(listing(dict.fromkeys(labels, "pm") | {month: "pmw"}))

    assert set(found) == {f"{HOME}/window={label}" for label in [*labels, month]}


# -- reading --------------------------------------------------------------------------------


def write(root: Path, begin: int, end: int, numbers: list[int]) -> None:
    """Write a window of hours with messages that have these ids."""
    rows: dict[str, list[dict[str, Any]]] = {
        "messages": [
            {"message_id": number, "subject": f"No. {number}", "extracted_at": START}
            for number in numbers
        ],
        "recipients": [],
        "attachments": [],
    }
    write_window(root, Window(START + begin * HOUR, START + end * HOUR), rows)


def compact(root: Path) -> None:
    """Put the hours into one window, then remove them, as a compaction does."""
    hours = sorted((root / "messages").glob("*/*/window=*"))
    write(root, 0, len(hours), [1, 2, 3])
    for table in root.iterdir():
        for home in set(table.glob("*/*/window=*")) - {
            table / hour.relative_to(root / "messages") for hour in hours
        }:
            (home / WINDOWS_FILE).touch()
    for home in hours:
        shutil.rmtree(home)


@pytest.fixture
def table(tmp_path: Path) -> UPath:
    """A table of three hours with a message each."""
    for hour in range(3):
        write(tmp_path, hour, hour + 1, [hour + 1])
    return UPath(tmp_path / "messages")


def ids(table: Any, **options: Any) -> list[int]:
    """Return the ids that a reader gets."""
    found: list[int] = read_table(table, ["message_id"], **options)["message_id"].to_pylist()
    return found


def test_a_table_is_read_with_its_places(table: UPath, tmp_path: Path) -> None:
    """The mailbox is text even if it is digits; columns that a window lacks are null."""
    (table / "mailbox=ann").rename(table / "mailbox=007")
    [path] = tmp_path.glob("messages/*/*/window=20250601T02*/*.parquet")
    pq.write_table(pq.read_table(path).drop_columns("subject"), path)
    shutil.copytree(tmp_path / "messages/mailbox=007", tmp_path / "messages/copies/mailbox=007")

    rows = read_table(table, ["subject", "message_id"])

    label = "20250601T020000Z_20250601T030000Z"
    assert rows.column_names == ["subject", "message_id", "mailbox", "folder", "window"]
    assert rows.to_pylist()[2] == {
        "subject": None,
        "message_id": 3,
        "mailbox": "007",
        "folder": 24,
        "window": label,
    }
    assert rows["message_id"].to_pylist() == [1, 2, 3]
    assert read_table(UPath(tmp_path / "recipients")).num_rows == 0
    assert read_table(UPath(tmp_path / "none" / "attachments")).num_rows == 0


def test_windows_of_another_time_are_not_opened(table: UPath, tmp_path: Path) -> None:
    """With `start` and `end`, only the files of windows with mail of that time are read."""
    for path in tmp_path.glob("messages/*/*/window=20250601T0[02]*/*.parquet"):
        path.write_bytes(b"-" * path.stat().st_size)

    assert ids(table, start=START + HOUR, end=START + 2 * HOUR) == [2]


def test_a_damaged_file_is_told(table: UPath, tmp_path: Path) -> None:
    """A file that is no Parquet raises an error: rows don't go missing silently."""
    next(tmp_path.glob("messages/*/*/*/*.parquet")).write_bytes(b"damaged")

    with pytest.raises(OSError, match=r"window=.*part-00000.parquet: can't be read"):
        ids(table)


class Changing(LocalFileSystem):  # type: ignore[misc]
    """A disk where windows are compacted while they are listed, after some of them are seen."""

    cachable = False
    listings = 0

    def find(self, path: str, **options: Any) -> dict[str, Any]:
        """List all files; the first listing ends after the compaction that happens meanwhile."""
        self.listings += 1
        before: dict[str, Any] = super().find(path, **options)
        if self.listings > 1:
            return before
        compact(Path(path).parent)
        return {name: info for name, info in before.items() if "_20250601T010000Z/" in name}


def test_windows_that_are_compacted_while_they_are_listed(table: UPath) -> None:
    """A listing that has neither all the hours nor what they became is not believed."""

    class Table:
        fs, path, name = Changing(), table.path, "messages"

    found = complete_files(Table())  # type: ignore[arg-type]

    assert [file.window for file in found] == ["20250601T000000Z_20250601T030000Z"]
    assert Table.fs.listings == 3


def test_windows_that_are_compacted_while_they_are_read(table: UPath, tmp_path: Path) -> None:
    """If a file is gone once it should be read, all are read again as they are then."""
    asked: list[TableFile] = []

    def read(file: TableFile) -> int:
        asked.append(file)
        if len(asked) == 1:
            compact(tmp_path)
        return int(pq.read_metadata(file.path).num_rows)

    assert read_files(table, read) == [3]
    assert len(asked) <= 4
