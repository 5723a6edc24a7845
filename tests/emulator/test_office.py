"""The generated office: realistic, useful for the examples, and reproducible."""

from __future__ import annotations

import csv
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from io import BytesIO, StringIO
from typing import Any

import openpyxl
import pytest

from airflow_provider_r7mail.emulator import Mailbox

END = datetime(2025, 7, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def office() -> Mailbox:
    """The office's mail up to the first of July."""
    return Mailbox.office(end=END)


def everything(mailbox: Mailbox) -> list[dict[str, Any]]:
    """Return all messages of all folders."""
    return [message for folder in mailbox.folders for message in mailbox.messages(folder)]


def files(mailbox: Mailbox, ending: str) -> dict[str, bytes]:
    """Return the files with a name ending."""
    return {
        item["FileName"]: mailbox.attachment(message["FolderId"], message["Id"], item["FileName"])
        for message in everything(mailbox)
        for item in message["Attachments"] or ()
        if item["FileName"].endswith(ending)
    }


@pytest.mark.slow
def test_the_office_is_the_same_each_time() -> None:
    """The same seed and end give the same mail and files, byte for byte."""
    one, other = (Mailbox.office(seed=1, messages=300, days=20, end=END) for _ in range(2))

    assert everything(one) == everything(other)
    for ending in (".xlsx", ".pdf", ".csv", ".ics"):
        assert files(one, ending) == files(other, ending) != {}
    assert everything(one) != everything(Mailbox.office(seed=2, messages=300, days=20, end=END))


@pytest.mark.slow
def test_the_office_has_the_mail_that_was_asked_for(office: Mailbox) -> None:
    """5,000 messages over 90 days, in office hours, in several folders, none after the end."""
    messages = everything(office)
    dates = [datetime.fromisoformat(message["Date"]) for message in messages]
    hours = Counter((date + timedelta(hours=3)).hour for date in dates)

    assert len(messages) == 5_000
    assert max(dates) < END
    assert min(dates) >= END - timedelta(days=90)
    assert sum(hours[hour] for hour in range(9, 20)) > 0.95 * len(messages)
    assert all(len(office.messages(folder)) > 100 for folder in (24, 25, 15, 31, 32))
    assert 0 < sum(not message["WasRead"] for message in messages) < 500


@pytest.mark.slow
def test_the_office_has_all_kinds_of_mail(office: Mailbox) -> None:
    """There are threads, labels, important and automatic mail, equal dates, odd file names."""
    messages = everything(office)
    inbox = Counter(message["Date"] for message in office.messages(24))
    names = [item["FileName"] for message in messages for item in message["Attachments"] or ()]

    assert any(message["ThreadCount"] >= 4 for message in messages)
    assert {label for message in messages for label in message["Labels"] or ()} == {1, 2, 3, 4}
    assert any(message["Important"] for message in messages)
    assert any(message["IsAutoSubmitted"] for message in messages)
    assert any(message["WasReplied"] for message in messages)
    assert any("> " in message["Body"] for message in messages)
    assert any(count > 1 for count in inbox.values())
    assert any("/" in name for name in names)
    assert any(
        Counter(item["FileName"] for item in message["Attachments"] or ())["image001.png"] == 2
        for message in messages
    )


@pytest.mark.slow
def test_a_price_list_has_just_arrived() -> None:
    """The inbox always has an unread price list from the last day, with a spreadsheet."""
    office = Mailbox.office(messages=200)
    [newest] = [
        message
        for message in office.messages(24)
        if message["From"]["Address"] == "price@supplier.example"
    ]
    age = datetime.now(UTC) - datetime.fromisoformat(newest["Date"])
    [item] = newest["Attachments"]
    data = office.attachment(24, newest["Id"], item["FileName"])
    sheet = openpyxl.load_workbook(BytesIO(data)).active

    assert newest["Subject"].startswith("Прайс-лист")
    assert newest["WasRead"] is False
    assert timedelta(0) < age < timedelta(days=1, minutes=1)
    assert re.fullmatch(r"Прайс-лист_\d{4}-\d\d-\d\d\.xlsx", item["FileName"])
    assert sheet is not None
    rows = list(sheet.iter_rows(values_only=True))
    assert rows[0] == ("Артикул", "Наименование", "Цена", "Остаток")
    assert len(rows) > 10
    older = [
        message
        for message in office.messages(15)
        if message["From"]["Address"] == "price@supplier.example"
    ]
    assert len(older) == 29


@pytest.mark.slow
def test_the_offices_files_are_real(office: Mailbox) -> None:
    """Spreadsheets open, CSV files parse in their charset, PDFs and invitations are valid."""
    for data in list(files(office, ".xlsx").values())[:5]:
        assert openpyxl.load_workbook(BytesIO(data)).active is not None
    charsets = set()
    for data in files(office, ".csv").values():
        try:
            text, charset = data.decode("utf-8"), "utf-8"
        except UnicodeDecodeError:
            text, charset = data.decode("cp1251"), "cp1251"
        charsets.add(charset)
        rows = list(csv.reader(StringIO(text), delimiter=";"))
        assert rows[0] == ["Код", "Товар", "Склад", "Остаток", "Цена"]
    assert charsets <= {"utf-8", "cp1251"}
    assert all(data.startswith(b"%PDF-") for data in files(office, ".pdf").values())
    assert all(data.startswith(b"BEGIN:VCALENDAR\r\n") for data in files(office, ".ics").values())
