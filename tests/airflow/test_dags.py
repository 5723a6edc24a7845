"""The example DAGs, each run in a real Airflow against the emulator, and their effects."""

from __future__ import annotations

import html
import importlib
import json
import subprocess
import sys
import warnings
from collections import Counter
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import openpyxl
import pytest

from airflow_provider_r7mail.compat import AIRFLOW
from airflow_provider_r7mail.emulator import Attachment, Emulator, Fault, Mailbox
from airflow_provider_r7mail.emulator.folders import INBOX, PROCESSED
from tests.airflow.support import SOURCE, Runner, load, query, rename_logins, rows_of

pytestmark = pytest.mark.slow
NAMES = sorted(path.stem for path in SOURCE.glob("*.py") if "with DAG(" in path.read_text())
DAY = datetime(2025, 6, 3, tzinfo=UTC)
HOUR = timedelta(hours=1)
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"


def price_list(rows: list[list[object]]) -> bytes:
    """Return an .xlsx file."""
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    made = BytesIO()
    book.save(made)
    return made.getvalue()


GOOD = price_list(
    [
        ["Артикул", "Наименование", "Цена", "Остаток", "Примечание"],
        ["0017", "Сервер", 100.5, 3, None],
        ["А-2", "Монитор", 20, 0, "под заказ"],
    ]
)


# -- as files ---------------------------------------------------------------------------------


def test_there_are_the_examples() -> None:
    """There is an example for each job the provider is made for."""
    assert NAMES == [
        "mail_analytics",
        "mail_audit",
        "mail_backfill",
        "mail_compact",
        "mail_extract",
        "mail_starts_dag",
        "mail_to_postgres",
        "report_by_nine",
        "report_distribution",
        "supplier_price_list",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_examples_say_what_they_do_and_try_again(name: str) -> None:
    """Each example is documented in Airflow's UI, and each task has at least one retry."""
    module = load(name, SOURCE / f"{name}.py")
    dag = module.dag

    assert dag.dag_id == name
    assert dag.doc_md == module.__doc__
    assert "Requires: " in dag.doc_md
    assert "To adapt" in dag.doc_md
    assert [task.task_id for task in dag.tasks if task.retries < 1] == []
    assert len((SOURCE / f"{name}.py").read_text().splitlines()) < 200


def test_airflow_imports_them_all(airflow_database: None) -> None:
    """Airflow imports all DAGs in the folder without errors."""
    # It reads the configuration. From 3.2 on it is elsewhere.
    place = "airflow.models.dagbag" if AIRFLOW < (3, 2) else "airflow.dag_processing.dagbag"
    DagBag = importlib.import_module(place).DagBag  # noqa: N806 - a class

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Airflow's own
        bag = DagBag(dag_folder=str(SOURCE))

    assert bag.import_errors == {}
    assert sorted(bag.dags) == NAMES


def test_importing_them_is_light() -> None:
    """Airflow parses the files all the time, so they use no network, pandas or pyarrow."""
    code = (
        "import runpy, socket, sys, airflow.sdk\n"
        # Airflow 3.0 itself loads it, and that aiohttp
        f"{'import svcs' if AIRFLOW == (3, 0) else ''}\n"
        "before = set(sys.modules)\n"
        "def refuse(*args): raise AssertionError('a connection is made')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        f"for name in {NAMES!r}: runpy.run_path(f'{SOURCE}/{{name}}.py')\n"
        "heavy = {'pandas', 'pyarrow', 'numpy', 'aiohttp', 'openpyxl'}\n"
        "print(sorted(heavy & (set(sys.modules) - before)))"
    )

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"


# -- mail_extract -----------------------------------------------------------------------------


def test_extract_takes_the_hour_before_the_run(
    server: Emulator, lake: Path, run_example: Runner
) -> None:
    """A run extracts the messages of its own hour, with their attachments, and no others."""
    inside = [
        server.mailbox.deliver(
            subject=f"{minute}",
            date=DAY + timedelta(minutes=minute),
            attachments=[Attachment("счёт.pdf", b"%PDF", "application/pdf")],
        )
        for minute in (0, 30, 59)
    ]
    for date in (DAY - timedelta(seconds=1), DAY + HOUR):
        server.mailbox.deliver(subject="outside", date=date)

    run = run_example("mail_extract", DAY + HOUR)

    assert run.state == "success"
    assert run.xcom("extract_inbox")["messages"] == 3
    assert sorted(rows_of(lake, "messages", "SELECT message_id")) == [(i,) for i in sorted(inside)]
    [(name, status), *_] = rows_of(lake, "attachments", "SELECT file_name, status")
    assert (name, status) == ("счёт.pdf", "downloaded")
    files = [path for path in (lake / "attachments").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in files] == [b"%PDF"] * 3


def test_extract_is_safe_to_catch_up(server: Emulator, lake: Path, run_example: Runner) -> None:
    """Hours can be extracted late, out of order and twice: each message is there once."""
    for minute in range(0, 180, 10):
        server.mailbox.deliver(subject="m", date=DAY + timedelta(minutes=minute))

    for hour in (3, 1, 2, 1):
        assert run_example("mail_extract", DAY + hour * HOUR).state == "success"

    ids = [message["Id"] for message in server.mailbox.messages(INBOX)]
    assert sorted(rows_of(lake, "messages", "SELECT message_id")) == [(i,) for i in sorted(ids)]


def test_extract_by_days(
    server: Emulator, lake: Path, run_example: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With R7MAIL_SCHEDULE, a run extracts the day before it, as `make demo` does."""
    monkeypatch.setenv("R7MAIL_SCHEDULE", "0 0 * * *")
    for hours in (-1, 0, 23, 24):
        server.mailbox.deliver(subject=f"{hours}", date=DAY + hours * HOUR)

    run = run_example("mail_extract", DAY + timedelta(days=1))

    assert run.state == "success"
    assert sorted(rows_of(lake, "messages", "SELECT subject")) == [("0",), ("23",)]


# -- mail_audit -------------------------------------------------------------------------------


def test_audit_finds_late_mail(server: Emulator, lake: Path, run_example: Runner) -> None:
    """What arrived after its hour was extracted is in the tables after the audit."""
    first = server.mailbox.deliver(date=DAY)
    assert run_example("mail_extract", DAY + HOUR).state == "success"
    late = server.mailbox.deliver(date=DAY + timedelta(minutes=59))

    run = run_example("mail_audit", DAY + timedelta(days=7))

    assert run.state == "success"
    [finding] = run.xcom("audit_inbox")["findings"]
    assert (finding["server"], finding["repaired"]) == (2, True)
    assert sorted(rows_of(lake, "messages", "SELECT message_id")) == [(first,), (late,)]


def test_audit_leaves_what_is_unclear_to_a_person(
    server: Emulator, lake: Path, run_example: Runner
) -> None:
    """A file that belongs to no window fails the task; the report says which, and it stays."""
    server.mailbox.deliver(date=DAY)
    assert run_example("mail_extract", DAY + HOUR).state == "success"
    [part] = lake.glob("tables/messages/*/folder=24/*/part-00000.parquet")
    copy = part.with_name("copy.parquet")
    copy.write_bytes(part.read_bytes())

    run = run_example("mail_audit", DAY + timedelta(days=7))

    assert run.state_of("audit_inbox") == {"failed"}
    assert [finding["kind"] for finding in run.xcom("audit_inbox")["findings"]] == ["foreign"]
    assert run.state_of("audit_sent") == {"success"}
    assert copy.exists()


# -- supplier_price_list ----------------------------------------------------------------------


def test_price_list_is_loaded_then_marked_then_moved(
    server: Emulator, lake: Path, run_example: Runner
) -> None:
    """A new price list is loaded, its message is marked read and moved, and other mail stays."""
    wanted = server.mailbox.deliver(
        subject="Прайс-лист на июнь",
        attachments=[Attachment("цены.xlsx", GOOD, XLSX), ("readme.txt", b"hi", "text/plain")],
    )
    other = server.mailbox.deliver(subject="Обед", attachments=[("меню.xlsx", GOOD, XLSX)])
    dealt = server.mailbox.deliver(subject="Прайс-лист, старый", was_read=True)

    run = run_example("supplier_price_list", DAY)

    assert run.state == "success"
    assert run.xcom("load") == [wanted]
    loaded = query(
        f"SELECT message_id, sku, name, price, stock "
        f"FROM read_parquet('{lake}/price_lists/**/*.parquet', hive_partitioning=true) ORDER BY sku"
    )
    assert loaded == [(wanted, "0017", "Сервер", 100.5, 3), (wanted, "А-2", "Монитор", 20.0, 0)]
    [filed] = server.mailbox.messages(PROCESSED)
    assert (filed["Id"], filed["WasRead"]) == (wanted, True)
    left = {message["Id"]: message["WasRead"] for message in server.mailbox.messages(INBOX)}
    assert left == {other: False, dealt: True}


def test_price_list_that_is_none_is_left_for_a_person(
    server: Emulator, lake: Path, run_example: Runner
) -> None:
    """If a file lacks a column, the run fails and the message stays unread in the inbox."""
    message = server.mailbox.deliver(
        subject="Прайс-лист",
        attachments=[("цены.xlsx", price_list([["Артикул", "Цена"], ["1", 2]]), XLSX)],
    )

    run = run_example("supplier_price_list", DAY)

    assert run.state == "failed"
    assert run.state_of("load") == {"failed"}
    assert run.state_of("mark_read") | run.state_of("move_to_processed") == {"upstream_failed"}
    assert server.mailbox.get(message)["WasRead"] is False
    assert [found["Id"] for found in server.mailbox.messages(INBOX)] == [message]
    assert not (lake / "price_lists").exists()


def test_price_list_file_that_is_broken_fails(
    server: Emulator, lake: Path, run_example: Runner
) -> None:
    """A file that isn't a spreadsheet fails the run at once, and its message stays."""
    message = server.mailbox.deliver(
        subject="Прайс-лист", attachments=[("цены.xlsx", b"PK\x03\x04 no zip", XLSX)]
    )

    run = run_example("supplier_price_list", DAY)

    assert run.state_of("load") == {"failed"}
    assert [found["Id"] for found in server.mailbox.messages(INBOX)] == [message]


def test_price_list_without_a_spreadsheet_is_left(
    server: Emulator, lake: Path, run_example: Runner
) -> None:
    """A colleague's question about the price list is left alone, and the run succeeds."""
    message = server.mailbox.deliver(subject="Re: Прайс-лист?", body="Где он?")

    run = run_example("supplier_price_list", DAY)

    assert run.state == "success"
    assert run.state_of("move_to_processed") == {"skipped"}
    assert server.mailbox.get(message)["WasRead"] is False


def test_price_list_loaded_again_is_there_once(
    server: Emulator, lake: Path, run_example: Runner
) -> None:
    """If the move had failed, the next run loads the message again, without duplicates."""
    message = server.mailbox.deliver(
        subject="Прайс-лист", attachments=[Attachment("цены.xlsx", GOOD, XLSX)]
    )
    run_example("supplier_price_list", DAY)
    server.mailbox.move(PROCESSED, [message], INBOX)
    server.mailbox.mark_read(INBOX, [message], read=False)

    assert run_example("supplier_price_list", DAY + HOUR).state == "success"

    found = query(f"SELECT count(*) FROM '{lake}/price_lists/**/*.parquet'")
    assert found == [(2,)]
    assert [filed["Id"] for filed in server.mailbox.messages(PROCESSED)] == [message]


# -- report_by_nine ---------------------------------------------------------------------------


def statement(server: Emulator, at: datetime) -> int:
    """Deliver the bank's message."""
    return server.mailbox.deliver(
        subject="Statement of yesterday", sender="statements@bank.example.org", date=at
    )


def test_report_in_time_alerts_nobody(server: Emulator, run_example: Runner) -> None:
    """When the message arrives, the next tasks get its id, and no mail is sent."""
    statement(server, DAY - timedelta(hours=4))  # yesterday, in Moscow
    statement(server, DAY - timedelta(hours=2))

    run = run_example("report_by_nine", DAY)

    assert run.state == "success"
    assert run.xcom("use") == 1
    assert server.mailbox.sent == []


def test_report_that_does_not_come_alerts_once(
    server: Emulator, run_example: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it doesn't arrive, the timeout is final, and exactly one mail says so."""
    monkeypatch.setenv("AIRFLOW_VAR_R7MAIL_ALERT_RECIPIENTS", "ann@example.org, bob@example.org")
    statement(server, DAY - timedelta(hours=4))

    run = run_example("report_by_nine", DAY, timeout=1.0, poke_interval=0.3)

    assert run.states == {("wait_for_statement", -1): "failed", ("use", -1): "upstream_failed"}
    [sent] = server.mailbox.sent
    assert sent["To"] == ["ann@example.org", "bob@example.org"]
    assert sent["Subject"] == "The bank's statement of 2025-06-03 has not arrived by nine"
    if AIRFLOW > (3, 0):  # whose tasks don't know the URL of their log
        assert "tasks/wait_for_statement" in sent["HtmlBody"]


def test_report_is_waited_for_through_a_failure(server: Emulator, run_example: Runner) -> None:
    """If the mail server is briefly down, nobody is alerted: the sensor is retried."""
    server.faults.append(Fault("Messages", times=2, status=503))
    statement(server, DAY - timedelta(hours=2))

    run = run_example("report_by_nine", DAY)

    assert run.state == "success"
    assert server.mailbox.sent == []


# -- the DAGs over the tables -----------------------------------------------------------------


@pytest.fixture
def tables(server: Emulator, lake: Path, run_example: Runner) -> Path:
    """The tables of one hour of mail: 23:00 to 24:00 UTC on Monday, 2 June 2025."""
    for minute, (sender, read) in enumerate(
        [
            ("ann@example.org", True),
            ("bob@Example.org", False),
            ("eve@<script>alert(1)</script>", False),
        ]
    ):
        server.mailbox.deliver(
            subject="{{ 1 / 0 }}",
            sender=sender,
            was_read=read,
            date=DAY - HOUR + timedelta(minutes=minute),
            attachments=[(f"{minute}.PDF", b"12345", "application/pdf"), ("без типа", b"1", "x/y")],
        )
    assert run_example("mail_extract", DAY).state == "success"
    return lake


def test_report_goes_to_everyone_on_the_list_once(
    server: Emulator, tables: Path, run_example: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everyone gets one message with yesterday's table, escaped, and the whole of it as a file."""
    names = ["ann", "bob", "<cid>"]
    people = [{"to": f"p{place}@example.org", "name": name} for place, name in enumerate(names)]
    monkeypatch.setenv("AIRFLOW_VAR_R7MAIL_REPORT_RECIPIENTS", json.dumps(people))
    # The first one is sent without an answer, and looked up in the Sent folder.
    server.faults.append(Fault("Send", status=502, after_acting=True))

    run = run_example("report_distribution", DAY + 6 * HOUR)

    assert run.state == "success"
    sent = sorted(server.mailbox.sent, key=lambda message: str(message["To"]))
    assert [message["To"] for message in sent] == [[person["to"]] for person in people]
    file = tables / "reports" / "mail_of_2025-06-02.csv"
    assert "example.org,2,1" in file.read_text()
    for name, message in zip(names, sent, strict=True):
        assert message["Subject"] == f"Mail of 2025-06-02, for {name}"
        assert f"Hello {html.escape(name)}," in message["HtmlBody"]
        assert f"Hello {name}," in message["Body"]
        assert "Messages: 3" in message["HtmlBody"]
        [attached] = server.mailbox.files(message["Id"])
        assert attached.file_name == "mail_of_2025-06-02.csv"
        assert attached.data == file.read_bytes()
    for message in sent:
        assert "<td>example.org</td>\n      <td>2</td>\n      <td>1</td>" in message["HtmlBody"]
        assert "<script" not in message["HtmlBody"]
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in message["HtmlBody"]


def test_report_counts_every_mailbox(server: Emulator, tables: Path, run_example: Runner) -> None:
    """Logins 007 and 7 are mailboxes of their own, even if all logins are whole numbers."""
    logins = rename_logins(tables / "tables", ["007", "7", "1001"])

    assert run_example("report_distribution", DAY + 6 * HOUR).state == "success"

    file = tables / "reports" / "mail_of_2025-06-02.csv"
    assert f"example.org,{2 * len(logins)},{len(logins)}" in file.read_text()


@pytest.mark.parametrize("name", ["report_distribution", "mail_analytics"])
def test_without_tables_nothing_is_done(
    server: Emulator, lake: Path, run_example: Runner, name: str
) -> None:
    """Before the first extract, the DAGs that read the tables skip: no empty report is sent."""
    run = run_example(name, DAY)

    assert run.state == "success"
    assert "skipped" in set(run.states.values())
    assert server.mailbox.sent == []
    assert list(lake.iterdir()) == []


def test_analytics_count_what_was_extracted(
    server: Emulator, tables: Path, run_example: Runner
) -> None:
    """The marts have the right numbers, in the office's time zone."""
    run = run_example("mail_analytics", DAY)

    def mart(name: str, columns: str) -> list[tuple[Any, ...]]:
        path = f"{tables}/marts/{name}.parquet"
        found = query(f"SELECT mailbox, folder, {columns} FROM '{path}' ORDER BY ALL")
        return [row[2:] for row in found if row[:2] == ("user_test", "24")]

    assert run.state == "success"
    day = DAY.date()  # in Moscow it is 2 o'clock on the 3rd
    assert mart("daily_volume", "day, domain, messages") == [
        (day, "<script>alert(1)</script>", 1),
        (day, "example.org", 2),
    ]
    assert mart("busiest_hours", "weekday, hour, messages") == [("Tuesday", 2, 3)]
    assert mart("attachment_types", "type, files, bytes") == [("", 3, 3), ("pdf", 3, 15)]
    [(unread, oldest)] = mart("unread_backlog", "unread, oldest AT TIME ZONE 'UTC'")
    assert (unread, oldest) == (2, datetime(2025, 6, 2, 23, 1))  # noqa: DTZ001 - DuckDB's UTC


def test_analytics_of_a_real_day(
    monkeypatch: pytest.MonkeyPatch, lake: Path, run_example: Runner
) -> None:
    """The numbers of a day of the built-in office add up: messages, hours and files."""
    monkeypatch.setenv("R7MAIL_SCHEDULE", "0 0 * * *")
    office = Mailbox.office(end=DAY)
    with Emulator(office) as server:
        monkeypatch.setenv("AIRFLOW_CONN_R7MAIL_DEFAULT", server.connection())
        assert run_example("mail_extract", DAY).state == "success"
        assert run_example("mail_analytics", DAY).state == "success"

    begin = (DAY - timedelta(days=1)).strftime("%Y-%m-%d")
    expected = [m for m in office.messages(INBOX) if m["Date"].startswith(begin)]
    moscow = Counter(
        datetime.fromisoformat(m["Date"]).astimezone(ZoneInfo("Europe/Moscow")).hour
        for m in expected
    )
    marts = f"{lake}/marts"
    assert len(expected) > 20
    assert query(
        f"SELECT sum(messages) FROM '{marts}/daily_volume.parquet' WHERE NOT was_sent"
    ) == [(len(expected),)]
    hours = query(f"SELECT hour, messages FROM '{marts}/busiest_hours.parquet'")
    assert dict(hours) == moscow
    files = query(f"SELECT sum(files) FROM '{marts}/attachment_types.parquet' WHERE folder = '24'")
    assert files == [(sum(len(m["Attachments"] or []) for m in expected),)]
