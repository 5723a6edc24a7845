"""Which windows a reader takes from a listing."""

from __future__ import annotations

import random

from airflow_provider_r7mail.lake.reading import complete_windows, superseded

HOME = "mail/messages/mailbox=ann/folder=24"


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
