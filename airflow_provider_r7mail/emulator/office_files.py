"""The attachments of the generated office: real spreadsheets, CSV files, PDFs and invitations.

The same arguments give the same bytes: timestamps that a library takes from the clock are replaced.
"""

from __future__ import annotations

import binascii
import re
import struct
import zipfile
import zlib
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import TYPE_CHECKING

from airflow_provider_r7mail.emulator.extra import from_extra
from airflow_provider_r7mail.emulator.messages import Attachment

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
_MADE = datetime(2025, 1, 9, 9, 0, tzinfo=UTC)


def spreadsheet(name: str, title: str, rows: Sequence[Sequence[object]]) -> Attachment:
    """Return an ``.xlsx`` with one sheet, whose first row is the header."""
    with from_extra():
        from openpyxl import Workbook  # noqa: PLC0415 - heavy, and needed only here

    book = Workbook()
    sheet = book.active
    sheet.title = title
    for row in rows:
        sheet.append(row)
    sheet.freeze_panes = "A2"
    sheet.column_dimensions["B"].width = 44
    made = BytesIO()
    book.save(made)
    return Attachment(name, _undated(made), XLSX)


def _undated(made: BytesIO) -> bytes:
    """Replace the time of creation, which openpyxl takes from the clock."""
    moment = f"{_MADE:%Y-%m-%dT%H:%M:%SZ}".encode()
    stamp = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
    result = BytesIO()
    with zipfile.ZipFile(made) as source, zipfile.ZipFile(result, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename == "docProps/core.xml":
                data = stamp.sub(moment, data)
            entry = zipfile.ZipInfo(item.filename, _MADE.timetuple()[:6])
            entry.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(entry, data)
    return result.getvalue()


def price_list(date: datetime, products: Sequence[str], shuffle: random.Random) -> Attachment:
    """Return a supplier's price list: Артикул, Наименование, Цена, Остаток."""
    rows: list[list[object]] = [["Артикул", "Наименование", "Цена", "Остаток"]]
    for number, product in enumerate(products, start=1):
        price = round(shuffle.uniform(90, 95_000), 2)
        rows.append([f"А-{number:04d}", product, price, shuffle.randrange(0, 250)])
    return spreadsheet(f"Прайс-лист_{date:%Y-%m-%d}.xlsx", "Прайс-лист", rows)


def sales_report(name: str, products: Sequence[str], shuffle: random.Random) -> Attachment:
    """Return sales by product as a spreadsheet."""
    rows: list[list[object]] = [["Дата", "Товар", "Количество", "Сумма"]]
    for day in range(1, 15):
        count = shuffle.randrange(1, 40)
        amount = round(count * shuffle.uniform(200, 9_000), 2)
        rows.append([f"{day:02d}", shuffle.choice(products), count, amount])
    return spreadsheet(name, "Продажи", rows)


def table(name: str, encoding: str, products: Sequence[str], shuffle: random.Random) -> Attachment:
    """Return stock as a ``.csv``, as an accounting system exports it: with semicolons."""
    lines = ["Код;Товар;Склад;Остаток;Цена"]
    for number, product in enumerate(products, start=1):
        price = f"{shuffle.uniform(50, 9_000):.2f}".replace(".", ",")
        text = product.replace("″", '"')  # cp1251 has no double prime
        lines.append(f"{number:06d};{text};Тверь;{shuffle.randrange(500)};{price}")
    data = ("\r\n".join(lines) + "\r\n").encode(encoding)
    return Attachment(name, data, "text/csv")


def document(name: str, number: int, shuffle: random.Random) -> Attachment:
    """Return a one-page PDF. Its text is Latin: Cyrillic fonts may not be installed."""
    with from_extra():
        from fpdf import FPDF  # noqa: PLC0415 - heavy, and needed only here

    pdf = FPDF()
    pdf.set_creation_date(_MADE)
    pdf.add_page()
    pdf.set_font("Helvetica", size=14)
    pdf.cell(text=f"Schet / Invoice No. {number}", new_x="LMARGIN", new_y="NEXT")
    pdf.set_font("Helvetica", size=10)
    for line in range(1, 6):
        amount = f"{shuffle.uniform(100, 50_000):,.2f} RUB"
        pdf.cell(text=f"{line}. Item {shuffle.randrange(1_000, 9_999)}: {amount}", new_x="LMARGIN")
        pdf.ln(8)
    return Attachment(name, bytes(pdf.output()), "application/pdf")


def invitation(uid: str, start: datetime, summary: str, organizer: str, guest: str) -> Attachment:
    """Return a calendar invitation (RFC 5545) for an hour."""
    lines = (
        "BEGIN:VCALENDAR",
        "VERSION:2.0",
        "PRODID:-//devr7.ru//calendar//RU",
        "METHOD:REQUEST",
        "BEGIN:VEVENT",
        f"UID:{uid}",
        f"ORGANIZER:mailto:{organizer}",
        f"ATTENDEE;PARTSTAT=NEEDS-ACTION;RSVP=TRUE:mailto:{guest}",
        f"DTSTART:{start:%Y%m%dT%H%M%SZ}",
        f"DTEND:{start + timedelta(hours=1):%Y%m%dT%H%M%SZ}",
        f"DTSTAMP:{start - timedelta(days=1):%Y%m%dT%H%M%SZ}",
        "SEQUENCE:0",
        f"SUMMARY:{summary}",
        "END:VEVENT",
        "END:VCALENDAR",
    )
    return Attachment("invite.ics", ("\r\n".join(lines) + "\r\n").encode(), "text/calendar")


def picture(shade: int) -> Attachment:
    """Return the logo below a signature: always ``image001.png``, whatever it shows (R18)."""
    side = 8
    rows = b"".join(b"\0" + bytes([shade]) * side for _ in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", binascii.crc32(kind + body))
        for kind, body in chunks
    )
    return Attachment("image001.png", data, "image/png")
