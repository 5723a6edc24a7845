"""Extracting a window while tokens die, sessions end, and large pages are refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_r7mail.emulator import Emulator, Fault, Readings
from tests.lake.test_window_readings import crowded_mailbox, extract, ids, wanted_ids

RESETS = [
    Fault("Messages", skip=3, times=2, kind="reset"),
    Fault("Login", skip=1, kind="reset"),
    Fault("Messages", skip=9, status=502, body="<html>"),
]


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [None, 20])
@pytest.mark.parametrize(
    "settings",
    [
        {"dead_token": "406", "token_calls": 5, "names": "camel"},
        {"dead_token": "403", "token_calls": 4, "sticky": True, "page_cap": 7},
        {"size_limit": 9, "size_refusal": "400", "ties": "random", "sort_one": "descending"},
        {"size_limit": 1, "size_refusal": "413", "dead_token": "406", "token_calls": 50},
        {"size_limit": 15, "size_refusal": "500", "names": "camel"},
        {"reach_limit": 60, "start_inclusive": False},
    ],
    ids=str,
)
def test_each_message_once_whatever_is_refused(
    settings: dict[str, Any], page_size: int | None, tmp_path: Path
) -> None:
    """Each message is extracted once, while connections break as well (R24, R37, R42)."""
    mailbox = crowded_mailbox()
    with Emulator(mailbox, Readings(**settings)) as server:
        for fault in RESETS:
            server.faults.append(fault)
        found = ids(extract(server, tmp_path, page_size=page_size))

    assert len(found) == len(set(found))
    assert set(found) == wanted_ids(mailbox)


@pytest.mark.slow
@pytest.mark.parametrize("dead", ["401", "403", "406"])
def test_two_extracts_that_end_each_others_sessions(dead: Any, tmp_path: Path) -> None:
    """Two tasks of one account finish, complete, although their logins collide (R36)."""
    mailbox = crowded_mailbox()
    readings = Readings(one_session=True, dead_token=dead, page_cap=10, latency_seconds=0.005)
    with Emulator(mailbox, readings) as server, ThreadPoolExecutor(2) as pool:
        for fault in RESETS:
            server.faults.append(fault)
        tasks = [pool.submit(extract, server, tmp_path / str(number)) for number in range(2)]
        found = [ids(task.result()) for task in tasks]

    assert [sorted(each) for each in found] == [sorted(wanted_ids(mailbox))] * 2
