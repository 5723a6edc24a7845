"""Run the DAG file_invoices in Airflow, each test against its own mail server."""

from __future__ import annotations

from pathlib import Path

import pytest
from file_invoices import dag

from airflow_provider_r7mail.emulator import Emulator, Fault, Readings

pytestmark = [
    pytest.mark.usefixtures("airflow_database"),
    pytest.mark.filterwarnings("ignore"),  # Airflow's own
]
PDF = ("invoice.pdf", b"%PDF-1.7 ...", "application/pdf")
INBOX, PROCESSED = 24, 15


@pytest.fixture(autouse=True)
def invoices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the DAG writes to, from the Airflow Variable `invoices`."""
    monkeypatch.setenv("AIRFLOW_VAR_INVOICES", tmp_path.as_uri())
    return tmp_path


# [START happy]
def test_invoices_are_taken_and_filed(r7mail_server: Emulator, invoices: Path) -> None:
    """The file of an unread invoice is stored and its message moved; other mail stays."""
    mailbox = r7mail_server.mailbox
    invoice = mailbox.deliver(subject="Счёт № 17", attachments=[PDF])
    other = mailbox.deliver(subject="Обед?")

    run = dag.test()

    assert run.state == "success"
    assert [path.read_bytes() for path in invoices.rglob("*.pdf")] == [PDF[1]]
    assert mailbox.get(invoice)["FolderId"] == PROCESSED
    assert mailbox.get(other)["FolderId"] == INBOX
    # [END happy]
    # [START sent]
    [sent] = mailbox.sent
    assert sent["To"] == ["accounts@example.org"]
    assert sent["Subject"] == "1 invoices"
    # [END sent]


# [START fault]
def test_a_busy_server_is_asked_again(r7mail_server: Emulator, invoices: Path) -> None:
    """A 503 and an interrupted download only cost time."""
    r7mail_server.mailbox.deliver(subject="Счёт № 18", attachments=[PDF])
    r7mail_server.faults.append(Fault(path="Messages", status=503))
    r7mail_server.faults.append(Fault(path="Attachments", kind="truncate"))

    run = dag.test()

    assert run.state == "success"
    assert [path.read_bytes() for path in invoices.rglob("*.pdf")] == [PDF[1]]
    assert not r7mail_server.faults, "both occurred"
    # [END fault]


# [START reading]
def test_a_server_with_short_pages(r7mail_server: Emulator, invoices: Path) -> None:
    """All invoices are found, however few messages the server returns at a time."""
    r7mail_server.readings = Readings(page_cap=2, sort_one="descending")
    for number in range(5):
        r7mail_server.mailbox.deliver(subject=f"Счёт № {number}", attachments=[PDF])

    assert dag.test().state == "success"
    assert len(list(invoices.rglob("*.pdf"))) == 5
    # [END reading]
