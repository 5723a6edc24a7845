"""R7MailAuditOperator: the audit as a task."""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from airflow_provider_r7mail.compat import AirflowFailException
from airflow_provider_r7mail.emulator import Emulator
from airflow_provider_r7mail.emulator.folders import INBOX
from airflow_provider_r7mail.operators import R7MailAuditOperator
from tests.airflow.support import DAY, JUNE, extract
from tests.conftest import AIRFLOW_2


def audit(root: Path, **options: Any) -> dict[str, Any]:
    """Run the task."""
    operator: Any = R7MailAuditOperator(
        task_id="audit", **{"folder": INBOX, "output_path": str(root), **options}
    )
    found: dict[str, Any] = operator.execute({})
    assert json.loads(json.dumps(found)) == found
    return found


@pytest.mark.parametrize(
    "table_format", ["parquet", pytest.param("iceberg", marks=pytest.mark.slow)]
)
def test_what_differs_is_told(
    server: Emulator, tmp_path: Path, logged: Callable[[], str], table_format: Any
) -> None:
    """The task returns what differs, and logs a warning for each, without mail."""
    for day in range(4):
        for number in range(3):
            server.mailbox.deliver(
                date=JUNE + DAY * day + timedelta(hours=1 + number), subject="Secret"
            )
        extract(tmp_path, JUNE + DAY * day, table_format=table_format)
    assert audit(tmp_path)["in_order"]
    server.mailbox.deliver(date=JUNE + DAY, subject="Secret")
    report = audit(tmp_path)

    [finding] = report["findings"]
    assert (finding["kind"], finding["tables"], finding["server"]) == ("differs", 3, 4)
    assert finding["start"] == (JUNE + DAY).isoformat()
    said = logged()
    assert "the server has other mail than the tables" in said
    assert "Secret" not in said


@pytest.mark.slow
@pytest.mark.skipif(AIRFLOW_2, reason="the SQL catalog needs SQLAlchemy 2")
def test_iceberg_tables_are_mended(
    server: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the catalog of the extracts, Iceberg tables are repaired, under their policy."""
    monkeypatch.setenv(
        "AIRFLOW_CONN_R7MAIL_DEFAULT", server.connection(privacy_secret="a-key-of-this-test")
    )
    server.mailbox.deliver(date=JUNE)
    policy = {"addresses": "hash", "mailbox": "hash"}
    lake: dict[str, Any] = {
        "table_format": "iceberg",
        "catalog_properties": {
            "type": "sql",
            "uri": f"sqlite:///{tmp_path}/own.db",
            "warehouse": f"{tmp_path}/all",
        },
        "namespace": "mail",
    }
    extract(tmp_path, JUNE, privacy=policy, **lake)
    server.mailbox.deliver(date=JUNE)
    server.mailbox.deliver(date=JUNE - DAY)
    report = audit(tmp_path, repair=True, deep=True, **lake)

    assert report["in_order"]
    assert [finding["repaired"] for finding in report["findings"]] == [True, True]
    assert audit(tmp_path, deep=True, **lake)["messages"] == 3
    with pytest.raises(AirflowFailException, match="catalog_conn_id: only for"):
        audit(tmp_path, catalog_conn_id="lake")


def test_a_repair_under_a_policy(
    server: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repair keeps the privacy policy, and finds the mailbox under its hash."""
    monkeypatch.setenv(
        "AIRFLOW_CONN_R7MAIL_DEFAULT", server.connection(privacy_secret="a-key-of-this-test")
    )
    server.mailbox.deliver(date=JUNE)
    policy = {"addresses": "hash", "mailbox": "hash"}
    extract(tmp_path, JUNE, privacy=policy, attachments_path=str(tmp_path / "files"))
    server.mailbox.deliver(date=JUNE, attachments=[("a.txt", b"x", "text/plain")])
    report = audit(tmp_path, repair=True)

    assert report["in_order"]
    assert [finding["repaired"] for finding in report["findings"]] == [True]
    [path] = tmp_path.glob("messages/mailbox=*/*/*/*.parquet")
    assert "user_test" not in str(path)
    rows = pq.read_table(path).to_pylist()
    assert [len(row["from_address"]) for row in rows] == [64, 64]
    assert len([path for path in (tmp_path / "files").rglob("*") if path.is_file()]) == 1


def test_a_difference_fails_the_task(server: Emulator, tmp_path: Path) -> None:
    """With fail_on_difference the task fails if anything differs, and not if all was mended."""
    server.mailbox.deliver(date=JUNE)
    extract(tmp_path, JUNE)
    server.mailbox.deliver(date=JUNE)

    with pytest.raises(AirflowFailException, match=r"differ from the mailbox \(findings: 1\)"):
        audit(tmp_path, fail_on_difference=True)
    assert audit(tmp_path, fail_on_difference=True, repair=True)["in_order"]
    assert audit(tmp_path, fail_on_difference=True)["in_order"]


def test_parameters(server: Emulator, tmp_path: Path) -> None:
    """A span is templated text, and what can't work is an error at once."""
    extract(tmp_path, JUNE)
    server.mailbox.deliver(date=JUNE - DAY)

    assert audit(tmp_path, start="2025-06-01", end="2025-06-02")["in_order"]
    with pytest.raises(AirflowFailException, match="start"):
        audit(tmp_path, start="soon")
    with pytest.raises(AirflowFailException, match="output_path"):
        audit(tmp_path, output_path="relative")
