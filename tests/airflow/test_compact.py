"""R7MailCompactOperator: compaction as a task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_r7mail.compat import AirflowFailException
from airflow_provider_r7mail.emulator import Emulator
from airflow_provider_r7mail.emulator.folders import INBOX
from airflow_provider_r7mail.lake import compaction
from airflow_provider_r7mail.operators import R7MailCompactOperator
from tests.airflow.support import DAY, JUNE, extract


def compact(root: Path, **options: Any) -> dict[str, Any]:
    """Run the task."""
    operator: Any = R7MailCompactOperator(
        task_id="compact", **{"output_path": str(root), **options}
    )
    found: dict[str, Any] = operator.execute({})
    assert json.loads(json.dumps(found)) == found
    return found


def test_the_past_becomes_one_window(
    server: Emulator,
    tmp_path: Path,
    logged: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The task returns and logs what became of which windows, without mail, or the mail server."""
    monkeypatch.setattr(compaction, "pause", lambda _: True)
    for day in range(4):
        server.mailbox.deliver(date=JUNE + DAY * day, subject="Secret")
        extract(tmp_path, JUNE + DAY * day)
    for path in tmp_path.glob("*/*/*/window=20250604*/_manifest.json"):
        path.unlink()
    server.requests.clear()
    assert compact(tmp_path, folder=INBOX + 1)["folders"] == []
    assert "There are no tables" in logged()

    found = compact(tmp_path, folder=str(INBOX))

    [folder] = found["folders"]
    assert (found["windows"], found["into"], folder["folder_id"]) == (3, 1, INBOX)
    [made] = folder["made"]
    label = "20250601T000000Z_20250604T000000Z"
    assert (made["window"], made["windows"], made["messages"]) == (label, 3, 3)
    assert [left["reason"] for left in folder["left"]] == ["unfinished"]
    assert not server.requests
    said = logged()
    assert label in said
    assert "unfinished" in said
    assert "Secret" not in said
    assert compact(tmp_path)["into"] == 0


def test_wrong_parameters(tmp_path: Path) -> None:
    """A wrong parameter fails the task at once."""
    for options in ({"into": "week"}, {"older_than_days": -1}):
        with pytest.raises(AirflowFailException, match=next(iter(options))):
            compact(tmp_path, **options)
