"""The marts and the page of `dags/mail_analytics.py`, made from real extracts in Airflow."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from airflow_provider_r7mail.emulator import Emulator
from airflow_provider_r7mail.emulator.folders import INBOX, PROCESSED, SENT
from tests.airflow.support import SOURCE, Run, Runner, extract, load, query, rename_logins
from tests.browser import chromium

MONDAY = datetime(2025, 6, 2, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
# What a stranger can write: markup, Altair and Jinja expressions, text that reverses text.
HOSTILE = [
    "<script>document.title='taken'</script>",
    "</svg></style><img src=x onerror=document.title='taken'>",
    '"onload="document.title=1',
    "{{ 1 / 0 }}",
    "datum.messages",
    "a\u202eelgnis\x07",
    "x" * 300,
    "$\\frac{1}{0}$",
    "почта.рф",
    "&lt;b&gt;",
]


@pytest.fixture
def by_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run extract a day."""
    monkeypatch.setenv("R7MAIL_SCHEDULE", "0 0 * * *")


Analyse = Callable[..., Run]


@pytest.fixture
def analyse(lake: Path, run_example: Runner, by_days: None) -> Analyse:
    """Extract days of mail, then create the marts and the page."""

    def run(*days: datetime, **params: Any) -> Run:
        for day in days:
            assert run_example("mail_extract", day + DAY).state == "success"
        return run_example("mail_analytics", MONDAY, conf=params)

    return run


def mart(lake: Path, name: str, columns: str) -> list[tuple[Any, ...]]:
    """Return the rows of a mart."""
    return query(f"SELECT {columns} FROM '{lake}/marts/{name}.parquet' ORDER BY ALL")


def test_answers_are_timed_from_the_first_question(
    server: Emulator, lake: Path, analyse: Analyse
) -> None:
    """Responses are timed from the first question, on both sides; auto-replies don't count."""
    post = server.mailbox.deliver

    def say(hour: float, folder: int = INBOX, **fields: Any) -> None:
        sent = {"WasSent": True} if folder == SENT else {}
        post(
            folder=folder,
            thread_id="t",
            date=MONDAY + hour * HOUR,
            fields={**sent, **fields},
        )

    say(1)
    say(1.1, SENT, IsAutoSubmitted=True)
    say(3)
    say(5, SENT)
    say(6, SENT)
    say(8)
    post(thread_id="other", date=MONDAY)
    post(date=MONDAY)

    assert analyse(MONDAY).state == "success"

    assert mart(lake, "response_times", "thread_id, was_sent, hours") == [
        ("t", False, 3.0),
        ("t", True, 4.0),
    ]


def test_a_message_counts_once_wherever_it_was_moved(
    server: Emulator, lake: Path, analyse: Analyse, run_dag: Callable[[str], Any]
) -> None:
    """A message that was extracted from two folders counts in the second, with its files."""
    box = server.mailbox
    number = box.deliver(date=MONDAY + HOUR, attachments=[("a.pdf", b"12", "application/pdf")])
    analyse(MONDAY)
    box.move(INBOX, [number], PROCESSED)
    moved = run_dag(f"""
        from airflow.sdk import DAG
        from airflow_provider_r7mail.transfers import R7MailToParquetOperator

        with DAG("processed") as dag:
            R7MailToParquetOperator(
                task_id="extract", folder={PROCESSED}, output_path="{lake.as_uri()}/tables",
                start="{MONDAY.isoformat()}", end="{(MONDAY + DAY).isoformat()}",
            )
    """)
    assert moved.state == "success"

    assert analyse().state == "success"

    assert mart(lake, "daily_volume", "folder, messages") == [(str(PROCESSED), 1)]
    assert mart(lake, "attachment_types", "folder, type, files, bytes") == [
        (str(PROCESSED), "pdf", 1, 2)
    ]


def test_different_mail_with_one_mime_id_all_counts(
    server: Emulator, lake: Path, analyse: Analyse
) -> None:
    """A scanner that gives all its mail one Message-ID loses none, and files stay with theirs."""
    for subject, hour in (("Scan", 1), ("Scan", 1), ("Scan", 2), ("Scan 2", 2), ("Scan", 25)):
        server.mailbox.deliver(
            date=MONDAY + hour * HOUR,
            subject=subject,
            mime_message_id="scan@example.org",
            attachments=[("a.pdf", b"12", "application/pdf")],
        )

    assert analyse(MONDAY, MONDAY + DAY).state == "success"

    assert mart(lake, "daily_volume", "sum(messages)") == [(5,)]
    assert mart(lake, "attachment_types", "files") == [(5,)]


def test_logins_of_digits_are_text(server: Emulator, lake: Path, analyse: Analyse) -> None:
    """007, 7 and 1e5 are mailboxes of their own, as is one that isn't a number."""
    server.mailbox.deliver(date=MONDAY, attachments=[("a.pdf", b"12", "application/pdf")])
    analyse(MONDAY)
    logins = rename_logins(lake / "tables")

    assert analyse().state == "success"

    for name in ("daily_volume", "busiest_hours", "unread_backlog", "attachment_types"):
        assert mart(lake, name, "mailbox") == [(login,) for login in sorted(logins)]


@pytest.mark.slow
def test_tables_on_s3_are_read_once(
    server: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On S3 each table is listed twice, to be sure, and each file is read once for all marts."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=True)
    moto.start()
    url = "http://{}:{}".format(*moto.get_host_and_port())
    extra = {"endpoint_url": url, "region_name": "us-east-1"}
    connection = {"conn_type": "aws", "login": "testing", "password": "testing", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_S3_ANALYTICS", json.dumps(connection))
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    boto3.client("s3", **keys, **extra).create_bucket(Bucket="mail")
    monkeypatch.syspath_prepend(str(SOURCE))
    write_marts: Any = load("mail_analytics", SOURCE / "mail_analytics.py").dag.task_dict[
        "write_marts"
    ]
    try:
        for day in range(4):
            server.mailbox.deliver(date=MONDAY + day * DAY, attachments=[("a.txt", b"1", "x/y")])
            extract("s3://s3_analytics@mail/tables", MONDAY + day * DAY)
        with caplog.at_level("INFO", logger="werkzeug"):
            caplog.clear()
            marts = write_marts.python_callable("s3://s3_analytics@mail", "UTC")
        requests = [record.getMessage() for record in caplog.records if record.name == "werkzeug"]
        asked = [line for line in requests if "tables" in line]
    finally:
        moto.stop()

    assert len(marts) == 5
    assert len([line for line in asked if "list-type=2" in line]) == 2 * 2
    assert len(asked) == 2 * 2 + 2 * 4, asked


def test_unfinished_windows_are_left_out(server: Emulator, lake: Path, analyse: Analyse) -> None:
    """A window without a manifest is ignored."""
    for day in range(2):
        server.mailbox.deliver(date=MONDAY + day * DAY)
    analyse(MONDAY, MONDAY + DAY)
    for path in lake.glob("tables/*/*/*/window=20250602*/_manifest.json"):
        path.unlink()

    assert analyse().state == "success"

    assert mart(lake, "daily_volume", "day::text, messages") == [("2025-06-03", 1)]


def test_hours_are_the_readers(server: Emulator, lake: Path, analyse: Analyse) -> None:
    """The param `timezone` sets the time zone of hours and days."""
    server.mailbox.deliver(date=MONDAY + 20 * HOUR)

    assert analyse(MONDAY, timezone="Asia/Vladivostok").state == "success"

    assert mart(lake, "busiest_hours", "weekday, hour") == [("Tuesday", 6)]
    assert mart(lake, "daily_volume", "day::text") == [("2025-06-03",)]
    assert "times in Asia/Vladivostok" in (lake / "marts/report.html").read_text()


def test_a_wrong_zone_is_told(
    server: Emulator, analyse: Analyse, logged: Callable[[], str]
) -> None:
    """An unknown time zone fails the run, and the error says what to write."""
    server.mailbox.deliver(date=MONDAY)

    assert analyse(MONDAY, timezone="Moscow").state == "failed"

    assert "Give a name like Europe/Moscow" in logged()


def test_backlog_tells_how_old_it_is(server: Emulator, lake: Path, analyse: Analyse) -> None:
    """Unread mail is counted by age, as of the last extract."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for age, read in ((9, False), (3, False), (3, True), (2, False)):
        server.mailbox.deliver(date=today - age * DAY, was_read=read)

    assert analyse(*(today - age * DAY for age in (9, 3, 2))).state == "success"

    assert mart(lake, "unread_backlog", "unread, day, week, older") == [(3, 0, 2, 1)]


@pytest.fixture
def page(server: Emulator, lake: Path, analyse: Analyse) -> Path:
    """The page for mail from strangers."""
    for number, text in enumerate(HOSTILE):
        server.mailbox.deliver(
            sender=f"a@{text}",
            sender_name=text,
            subject=text,
            date=MONDAY + number * HOUR,
            attachments=[(f"{text}.{text[:6]}", b"1", text)],
            thread_id=text,
        )
    assert analyse(MONDAY).state == "success"
    return lake / "marts/report.html"


def test_mail_is_text_on_the_page(page: Path) -> None:
    """Whatever strangers write in their mail, no script runs on the page and nothing is fetched."""
    asked: list[str] = []
    with chromium() as browser:
        tab = browser.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        title = tab.title()
        elements = tab.evaluate(
            "[...document.querySelectorAll('script,img,iframe,object,foreignObject,a,b,*[onload]')]"
            ".map(found => found.outerHTML)"
        )
        labels = tab.locator("svg text").all_text_contents()
        policy = page.read_text().replace("Content-Security-Policy", "none")
        tab.set_content(policy)  # and without the browser's protection
        title_without = tab.title()

    assert (title, title_without) == ("Mail of user_test", "Mail of user_test")
    assert elements == []
    assert asked == [page.as_uri()]
    assert any("<script>" in label for label in labels), "the labels are looked at"
    assert "{{ 1 / 0 }}" in labels
    assert "почта.рф" in labels
    assert not any("\u202e" in label or len(label) > 40 for label in labels)


def test_the_page_stands_alone_and_can_be_read_by_everybody(page: Path) -> None:
    """The page needs no other file, describes each chart in words and numbers, and fits a phone."""
    text = page.read_text()
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": 360, "height": 700})
        tab.goto(page.as_uri())
        charts = tab.locator("section").all()
        told = [chart.locator("[role=img]").get_attribute("aria-label") for chart in charts]
        tables = [chart.locator("details tr").count() for chart in charts]
        width = tab.evaluate("document.documentElement.scrollWidth")

    assert re.findall(r'(?:src|href)="(?!#)[^"]*"|url\((?!#)', text) == []
    assert "default-src 'none'" in text
    assert len(text) < 400_000
    assert len(charts) == 5, "nobody has answered"
    assert all(told)
    assert min(tables) > 1
    assert width <= 360
    assert "inbox" in text, "a folder has its name in the connection"
    assert "folder 24" not in text


def test_no_mail_is_no_failure(server: Emulator, lake: Path, analyse: Analyse) -> None:
    """If there is no mail, the page says so."""
    assert analyse(MONDAY).state == "success"

    text = (lake / "marts/report.html").read_text()
    assert "No mail" in text
    assert "<section" not in text


def test_a_long_time_is_shown_by_weeks(server: Emulator, lake: Path, analyse: Analyse) -> None:
    """After some months there is one bar per week, not per day."""
    days = [MONDAY + age * DAY for age in (0, 1, 150)]
    for day in days:
        server.mailbox.deliver(date=day + 12 * HOUR)

    assert analyse(*days).state == "success"

    text = (lake / "marts/report.html").read_text()
    assert "Messages by week" in text
    assert "the most, 2, in the week of 2025-06-02" in text
