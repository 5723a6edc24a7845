"""`r7mail check`: names what a server does, claims nothing else, and restores what it moves."""

from __future__ import annotations

import json
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_r7mail.client.check import Report, check_server, inquiry
from airflow_provider_r7mail.client.check.hosts import advice, find_hosts, hosts_of, summary_of
from airflow_provider_r7mail.client.check.inquiry import MAX_REQUESTS, MAX_WRITE_REQUESTS
from airflow_provider_r7mail.client.check.questions import actions
from airflow_provider_r7mail.client.check.questions.bounds import (
    ALL_BOUNDS,
    Bounds,
    best_probe,
    probes_of,
)
from airflow_provider_r7mail.client.check.questions.ties import ties_of
from airflow_provider_r7mail.client.check.questions.tokens import expiry_of
from airflow_provider_r7mail.client.http import ClientConfig
from airflow_provider_r7mail.client.session import Client
from airflow_provider_r7mail.compat import AirflowFailException
from airflow_provider_r7mail.emulator import MISSING, Attachment, Emulator, Fault, Mailbox, Readings
from airflow_provider_r7mail.exceptions import (
    R7MailAuthError,
    R7MailConfigError,
    R7MailConnectionError,
    R7MailProxyError,
    R7MailServerError,
)
from airflow_provider_r7mail.operators import R7MailCheckOperator
from tests.cases import in_turn
from tests.processes import run as run_command

INBOX, PROCESSED, OTHER = 24, 15, 31
JUNE = datetime(2025, 6, 1, 8, tzinfo=UTC)
SECRET = "Зарплата-43"
"""In every field of the mail here: must not show up in a report."""


ONE_BOUND = {False: "honoured", True: "ignored"}
SORTED_BY = {"asked": "Date", "Id": "Id", "Timestamp": "Timestamp"}


def fill(mailbox: Mailbox, count: int = 120) -> None:
    """Fill a folder: attachments, labels, ties, missing dates, fractions of seconds."""
    for number in range(count):
        date = JUNE + timedelta(minutes=7 * number)
        if number % 3 == 1:
            date += timedelta(microseconds=382_021 + number)
        mailbox.deliver(
            subject=f"{SECRET} {number}",
            body=SECRET,
            sender=f"{SECRET}@example.org",
            # Some are stored hours after they were written.
            fields={"Timestamp": f"{date + timedelta(hours=26):%FT%TZ}"}
            if number % 30 == 2
            else {},
            sender_name=SECRET,
            to=[f"{SECRET}@example.org"],
            date=date,
            was_read=number % 2 == 0,
            labels=[3, 5][: 1 + number % 4 // 2] if number % 10 == 0 else None,
            attachments=[Attachment(f"{SECRET}.txt", b"12345", "text/plain")]
            if number % 5 == 0
            else [Attachment(f"{SECRET}.eml", b"Subject: x", "message/rfc822")]
            if number == 11
            else (),
        )
    if count > 5:
        for _ in range(5):
            mailbox.deliver(date=JUNE + timedelta(hours=2, seconds=200.5), subject=SECRET)
        mailbox.deliver(subject="no date", fields={"Date": "0001-01-01T00:00:00"})
        mailbox.deliver(date=JUNE, folder=OTHER, subject=SECRET)
        mailbox.deliver(date=JUNE, subject=SECRET, mime_message_id="first@example.org")
        mailbox.deliver(date=JUNE, subject=SECRET, in_reply_to="first@example.org")


def config(server: Emulator, **options: Any) -> ClientConfig:
    """Return how to reach the server."""
    return ClientConfig(
        url=server.url,
        login=options.pop("login", "user_test"),
        password=options.pop("password", "TestPassword"),
        timeout=options.pop("timeout", 10.0),
        backoff=0.01,
    )


def run(server: Emulator, **options: Any) -> Report:
    """Check the server's inbox."""
    ours = {name: options.pop(name) for name in ("login", "password", "timeout") if name in options}
    before = len(server.requests)
    with Client(config(server, **ours)) as client:
        report = check_server(client, options.pop("folder", INBOX), **options)
    made = len(server.requests) - before
    assert report.requests == made
    assert made <= MAX_REQUESTS + (MAX_WRITE_REQUESTS + 6 if options.get("write_folder") else 0)
    return report


def claims(report: Report) -> dict[str, Any]:
    """Return all readings that a report names."""
    return {f.key: f.reading for f in report.findings if f.level != "unknown"}


@contextmanager
def calls_of(server: Emulator, act: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Act before each listing is answered."""

    def on_request(record: dict[str, Any]) -> None:
        if record["path"].endswith("Messages"):
            act(record)

    server.on_request = on_request
    yield
    server.on_request = None


@cache
def report_of(readings: Readings) -> Report:
    """Check a filled mailbox of a kind of server, which must change nothing in it."""
    mailbox = Mailbox()
    fill(mailbox)
    before = mailbox.messages(INBOX)
    with Emulator(mailbox, readings) as server:
        report = run(server)
    assert mailbox.messages(INBOX) == before
    return report


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Don't wait a whole second for a moved message to get another id."""
    monkeypatch.setattr(actions, "ID_SECONDS", 0.05)


class TestReadings:
    """The check names every reading that the emulator can be set to."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("setting", "key", "named"),
        [
            *[({"sort_one": value}, "sort_one", value) for value in ("ascending", "descending")],
            *[({"count": value}, "count", value) for value in ("all", "page")],
            *[({"count": value}, "count", "other") for value in ("folder", "unread")],
            *[({"count_form": v}, "count_form", v) for v in ("number", "text", "null")],
            ({"names": "documented"}, "names", "documented"),
            ({"names": "camel"}, "names", "other"),
            ({"row_per_label": False}, "ids", "unique"),
            ({"row_per_label": True}, "ids", "twice"),
            ({"page_cap": None}, "page_cap", "none seen"),
            *[({"page_cap": value}, "page_cap", value) for value in (1, 2, 3, 20, 50, 100)],
            *[({"start_inclusive": v}, "start_inclusive", v) for v in (True, False)],
            *[({"end_inclusive": v}, "end_inclusive", v) for v in (True, False)],
            *[({"precision": v}, "precision", v) for v in ("second", "millisecond", "microsecond")],
            ({"precision": "day"}, "dates", "inexact"),
            ({"precision": "day", "zone_hours": 0.0}, "dates", "inexact"),
            ({"bounds_as": "utc"}, "dates", "honoured"),
            ({"bounds_as": "local"}, "dates", "local time"),
            ({"bounds_as": "local", "zone_hours": 7.0}, "dates", "local time"),
            ({"bounds_as": "local", "zone_hours": -5.5}, "dates", "inexact"),
            ({"bounds_field": "Date"}, "dates", "honoured"),
            ({"bounds_field": "Timestamp"}, "dates", "timestamp"),
            ({"both_bounds": True}, "dates", "honoured"),
            *[({"both_bounds": v}, "one_bound", named) for v, named in ONE_BOUND.items()],
            *[({"order_by": v}, "sorted_by", named) for v, named in SORTED_BY.items()],
            ({"empty_labels": "all"}, "empty_labels", "no filter"),
            ({"empty_labels": "unlabelled"}, "empty_labels", "unlabelled"),
            *[({"several_labels": v}, "several_labels", v) for v in ("all", "any")],
            ({"labels_required": False}, "without_labels", "accepted"),
            ({"labels_required": True}, "without_labels", "refused"),
            ({"foreign_rows": False}, "foreign_rows", "none"),
            ({"foreign_rows": True}, "foreign_rows", "listed"),
            ({"threads": "flat"}, "threads", "listed"),
            ({"threads": "heads"}, "threads", "not seen"),
            ({"row_per_label": False}, "repeats", "none"),
            ({"row_per_label": True}, "repeats", "counted"),
            ({"dates_without_zone": False}, "zone", "named"),
            ({"dates_without_zone": True}, "zone", "UTC+3"),
            ({"dates_without_zone": True, "zone_hours": 0.0}, "zone", "UTC"),
            ({"dates_without_zone": True, "timestamps_with_zone": True}, "zone", "UTC+3"),
            ({"dates_without_zone": True, "bounds_as": "local"}, "zone", "not known"),
            ({"timestamps_without_zone": True}, "zone", "Timestamp in an unknown zone"),
            ({"timestamps_without_zone": True}, "lateness", None),
            *[({"ties": value}, "ties", value) for value in ("stable", "reversed", "random")],
            *[({"undated": value}, "undated", value) for value in ("always", "never", "as_min")],
            *[
                ({"expired_at": value}, "expired_at", value)
                for value in ("future", "past", "absent", "other_zone")
            ],
            ({"token_calls": None}, "token_calls", "none refused"),
            *[({"token_calls": value}, "token_calls", value) for value in (1, 2, 7)],
            *[
                ({"error_body": value}, "wrong_path", f"405, {value}")
                for value in ("empty", "json", "html")
            ],
            *[
                ({"error_body": value}, "missing_folder", f"406, {value}")
                for value in ("empty", "json", "html")
            ],
            *[({"list_attachments": v}, "list_attachments", v) for v in (True, False)],
            ({"chunked_attachments": False}, "attachment_length", "Content-Length"),
            ({"chunked_attachments": True}, "attachment_length", "chunked"),
            ({"nested_names": "given"}, "file_names", "all have one"),
            ({"nested_names": "null"}, "file_names", "some without"),
            ({"nested_names": "empty"}, "file_names", "some without"),
            ({"attachment_size": "bytes"}, "attachment_size", "bytes"),
            ({"attachment_size": "base64"}, "attachment_size", "encoded"),
            ({"attachment_size": "base64_lines"}, "attachment_size", "encoded"),
            ({"attachment_size": "rounded"}, "attachment_size", "rounded"),
            ({"unknown_fields": False}, "unknown_fields", []),
            ({"unknown_fields": True}, "unknown_fields", ["SpamScore", "TotalPages", "Workspace"]),
            ({"missing_fields": ()}, "missing_fields", []),
            ({"missing_fields": ("Uid", "Size")}, "missing_fields", ["Size", "Uid"]),
            ({"null_fields": ()}, "null_fields", []),
            ({"null_fields": ("Subject",)}, "null_fields", ["Subject"]),
            ({"ignore_dates": True}, "dates", "not honoured"),
            ({"ignore_dates": False}, "dates", "honoured"),
            ({"order_fields": "any"}, "order_id", "works"),
            ({"order_fields": "date"}, "order_id", "ignored"),
            ({"order_fields": "refused"}, "order_id", "refused"),
            ({"order_fields": "any"}, "order_timestamp", "works"),
            ({"order_fields": "date"}, "order_timestamp", "ignored"),
            ({"order_fields": "refused"}, "order_timestamp", "refused"),
            ({"ignore_offset": True}, "offset", "ignored"),
            ({"ignore_offset": False}, "offset", "works"),
            *[({"dead_token": v}, "dead_token", v) for v in ("401", "403", "406")],
            *[({"refusal": v}, "refusal", v) for v in ("406", "403", "500")],
            *[({"wrong_path": v}, "wrong_path", f"{v}, json") for v in ("405", "404")],
            *[({"one_session": value}, "one_session", value) for value in (True, False)],
            ({"one_session": True, "dead_token": "406"}, "one_session", True),
            ({"token_calls": 1}, "one_session", None),
            ({"sticky": True}, "one_session", False),
            ({"size_limit": None}, "size_limit", "none seen"),
            *[({"size_limit": value}, "size_limit", "refused") for value in (1, 7, 50, 60)],
            *[
                ({"size_limit": 60, "size_refusal": value}, "size_limit", "refused")
                for value in ("400", "413", "500")
            ],
            ({"mail_module": True}, "mail_module", True),
            ({"reach_limit": None}, "offset_limit", "none seen"),
            ({"reach_limit": 5000}, "offset_limit", "refused"),
        ],
        ids=str,
    )
    def test_it_is_named(self, setting: dict[str, Any], key: str, named: object) -> None:
        """What the server does at an open point is named, read-only (R1 to R5, R12, R16, R17)."""
        report = report_of(Readings(**setting))

        assert report[key].reading == named, report[key]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("setting", "key"),
        [
            *[({"repeat_answer": value}, "repeat_answer") for value in ("true", "false", "500")],
            *[
                ({"unknown_mark_answer": value}, "unknown_mark_answer")
                for value in ("true", "false", "500")
            ],
        ],
        ids=str,
    )
    @pytest.mark.usefixtures("hurry")
    def test_it_is_named_by_writing(
        self, server: Emulator, setting: dict[str, Any], key: str
    ) -> None:
        """With a folder to write to, it reports how refused actions are answered (R15, R23)."""
        fill(server.mailbox)
        server.readings = Readings(**setting)
        before = server.mailbox.messages(INBOX), server.mailbox.messages(PROCESSED)

        report = run(server, write_folder=PROCESSED)

        assert report[key].reading == setting[key]
        assert report["restored"].reading is True
        assert (server.mailbox.messages(INBOX), server.mailbox.messages(PROCESSED)) == before

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("setting", "named"),
        [
            ({"move_id": "same"}, "same"),
            ({"move_id": "new"}, "new at once"),
            ({"move_id": "later"}, "new later"),
            ({"move_id": "hidden"}, "new at once"),
            ({"move_id": "later", "move_seconds": 0.02}, None),  # whichever look comes first
            ({"move_id": "later", "move_seconds": 0.9, "repeat_answer": "false"}, "new later"),
        ],
        ids=str,
    )
    def test_a_move_that_changes_the_id(
        self, server: Emulator, setting: dict[str, Any], named: str | None
    ) -> None:
        """R35: the message is put back, as it was, even if its id changes whenever it is moved."""
        fill(server.mailbox)
        server.readings = Readings(**setting)

        def contents() -> list[dict[str, Any]]:
            messages = server.mailbox.messages(INBOX)
            assert server.mailbox.messages(PROCESSED) == []
            for message in messages:
                for name in ("Id", "Uid", "ExternalId"):
                    del message[name]
            return sorted(messages, key=lambda message: str(message["MessageId"]))

        before = contents()
        report = run(server, write_folder=PROCESSED)

        if named is not None:
            assert report["move_id"].reading == named
        assert report["move"].reading == "works"
        assert report["restored"].level == "ok", report["restored"]
        assert contents() == before

    @pytest.mark.slow
    @pytest.mark.parametrize("value", [True, False])
    def test_it_is_named_by_sending(self, server: Emulator, value: bool) -> None:
        """With an address to send to, it reports whether only drafts can be sent (R39)."""
        fill(server.mailbox)
        server.readings = Readings(drafts_only=value)

        report = run(server, send_to="ann@example.org")

        assert report["drafts_only"].reading is value
        assert len(server.mailbox.sent) == (not value)
        assert "ann@example.org" not in json.dumps(report.as_dict())

    @pytest.mark.parametrize("address", ["", "ann", "ann@example.org, bob@example.org"])
    def test_no_address_to_send_to(self, server: Emulator, address: str) -> None:
        """What is not one address is an error before anything is requested, and isn't shown."""
        with pytest.raises(R7MailConfigError, match="send_to: ") as error:
            run(server, send_to=address)

        assert server.requests == []
        assert "bob" not in str(error.value)

    @pytest.mark.parametrize("refusal", ["400", "500"])
    def test_other_orders_of_small_pages(self, server: Emulator, refusal: Any) -> None:
        """Pages in another order aren't called refused because larger ones are (R28, R37)."""
        fill(server.mailbox)
        server.readings = Readings(size_limit=60, size_refusal=refusal)

        assert run(server)["order_id"].reading != "refused"

    @pytest.mark.parametrize(
        ("age", "knows", "named"),
        [(1, True, "found"), (1, False, "late"), (600, True, None), (-600, True, None)],
    )
    @pytest.mark.slow
    def test_new_mail_in_searches(
        self, server: Emulator, age: int, knows: bool, named: str | None
    ) -> None:
        """It is told whether searches of texts find mail that has just arrived (R40)."""
        fill(server.mailbox, 5)
        filled = time.monotonic()
        time.sleep(0.3)
        date = datetime.now(UTC) - timedelta(seconds=age)
        server.mailbox.deliver(date=date, subject="News")

        def learn(_: object) -> None:
            seconds = 0 if knows else time.monotonic() - filled
            server.readings = Readings(index_seconds=seconds)

        with calls_of(server, learn):
            assert run(server)["index"].reading == named

    def test_an_account_without_mail(self, server: Emulator) -> None:
        """If the account has no access to mail, the error names the module (R41)."""
        server.readings = Readings(mail_module=False)

        with pytest.raises(R7MailAuthError, match=r"the Mail module \(R41\)"):
            run(server)

    def test_what_the_server_says(self, server: Emulator) -> None:
        """The `ErrorMessage` of errors that the check provokes is in the report (R25)."""
        fill(server.mailbox, 3)

        assert "no folder 2147483647" in run(server)["missing_folder"].says

    def test_page_size_within_what_is_served(self, server: Emulator) -> None:
        """No page size is suggested that the server refuses, nor is that a failure (R37)."""
        fill(server.mailbox)
        server.readings = Readings(size_limit=60)

        report = run(server)

        assert report.page_size <= 60
        assert report["failures"].reading == []

    @pytest.mark.slow
    def test_latency(self, server: Emulator) -> None:
        """Page times are reported by size, and concurrency is suggested if requests wait."""
        fill(server.mailbox)
        server.readings = Readings(latency_seconds=0.03)

        report = run(server)

        assert all(page.seconds >= 0.03 for page in report.page_times)
        assert [page.asked for page in report.page_times] == [1, 10, 50, 200]
        assert report.max_concurrency >= 4

    @pytest.mark.parametrize("reading", ["401", "500", "null_response", "no_token", "state"])
    def test_no_wrong_password_is_tried(self, server: Emulator, reading: Any) -> None:
        """A rejected login is never tried: a wrong password could lock the account (R14)."""
        fill(server.mailbox, 3)
        server.readings = Readings(login_refusal=reading)

        assert run(server)["login_refusal"].reading is None
        assert all(call["status"] == 200 for call in server.requests if "Login" in call["path"])

    def test_all_settings_are_covered(self) -> None:
        """A reading that is added to the emulator is tested here, too, or listed as not visible."""
        marks = [
            mark
            for name in ("test_it_is_named", "test_it_is_named_by_writing")
            for mark in getattr(TestReadings, name).pytestmark
            if mark.name == "parametrize"
        ]
        named = {name for mark in marks for case in mark.args[1] for name in case[0]}
        elsewhere = {"latency_seconds", "login_refusal", "drafts_only", "move_id", "move_seconds"}
        elsewhere |= {"index_seconds"}
        # Not visible by reading: what happens to sent mail, and to what is never sent.
        beyond = {
            "lock_after",
            "mail_host",  # see TestHosts
            "sent_delay_seconds",
            "strip_hidden",
            "token_header_strict",
        }
        settings = {field.name for field in fields(Readings)}
        # The check only says whether files can be sent; test_disk.py has all of these.
        disks = {name for name in settings if name.startswith("disk")}

        assert settings - disks == named | elsewhere | beyond

    def test_all_at_once(self, server: Emulator) -> None:
        """Unusual readings do not hide each other."""
        fill(server.mailbox, 40)
        server.readings = Readings(
            sort_one="descending",
            count="page",
            page_cap=30,
            start_inclusive=False,
            end_inclusive=False,
            precision="second",
            ties="random",
            undated="never",
            expired_at="other_zone",
            token_calls=9,
            list_attachments=False,
        )

        found = claims(run(server))

        assert found["sort_one"] == "descending"
        assert (found["count"], found["page_cap"]) == ("page", 30)
        assert (found["start_inclusive"], found["end_inclusive"]) == (False, False)
        assert (found["precision"], found["ties"]) == ("second", "random")
        assert (found["expired_at"], found["token_calls"]) == ("other_zone", 9)
        assert found["list_attachments"] is False

    @pytest.mark.parametrize("start", [True, False])
    @pytest.mark.parametrize("end", [True, False])
    @pytest.mark.parametrize("precision", ["second", "millisecond", "microsecond"])
    @pytest.mark.parametrize("fraction", [0, 500_000, 382_021])
    @pytest.mark.slow
    def test_bounds(
        self, server: Emulator, start: bool, end: bool, precision: Any, fraction: int
    ) -> None:
        """Whatever the dates are, nothing wrong is said about bounds, and most is found (R4)."""
        for number in range(5):
            date = JUNE + timedelta(minutes=number, microseconds=fraction)
            server.mailbox.deliver(date=date)
        server.readings = Readings(start_inclusive=start, end_inclusive=end, precision=precision)

        report = run(server)

        assert report["start_inclusive"].reading in {start, None}
        assert report["end_inclusive"].reading in {end, None}
        assert report["precision"].reading in {precision, "millisecond or finer", None}
        assert report["dates"].reading == "honoured"
        if fraction == 382_021:
            assert report["start_inclusive"].reading is start
            assert report["end_inclusive"].reading is end
            assert report["precision"].reading == precision


@pytest.mark.slow
class TestCareful:
    """Nothing is claimed that has not been seen."""

    def test_an_empty_folder(self, server: Emulator) -> None:
        """Nothing that needs mail is claimed about an empty folder."""
        report = run(server)

        assert set(claims(report)) == {
            "labels",
            "expired_at",
            "token_calls",
            "dead_token",
            "one_session",
            "mail_module",
            "refusal",
            "size_limit",
            "wrong_path",
            "missing_folder",
            "timeout",
            "failures",
        }
        assert report.result == "fine"
        assert report.page_size == 200

    def test_the_first_mail_arrives_meanwhile(self, server: Emulator) -> None:
        """A folder that is empty at first is checked without an error (R6)."""

        def deliver(record: dict[str, Any]) -> None:
            if record["json"]["offset"] == 0 and record["json"]["size"] == 10:
                server.mailbox.deliver(date=JUNE)

        with calls_of(server, deliver):
            assert run(server)["sort_one"].reading is None

    @pytest.mark.parametrize("readings", [Readings(), Readings(ignore_offset=True)])
    def test_one_message(self, server: Emulator, readings: Readings) -> None:
        """One message says nothing about order, counts, page limits, offsets or ties."""
        server.mailbox.deliver(date=JUNE)
        server.readings = readings

        found = claims(run(server))

        assert not {"sort_one", "count", "page_cap", "offset", "ties"} & set(found)
        assert found["start_inclusive"] is True

    def test_ties_only(self, server: Emulator) -> None:
        """If all messages have the same Date, only the order of ties is claimed (R1, R5)."""
        for _ in range(8):
            server.mailbox.deliver(date=JUNE)
        server.readings = Readings(ties="random")

        report = run(server)

        assert report["sort_one"].reading is None
        assert report["offset"].reading is None
        assert report["ties"].reading == "random"

    @pytest.mark.parametrize(
        ("ties", "named"), [("stable", "stable"), ("reversed", "reversed"), ("random", "changes")]
    )
    def test_two_tied_messages_need_many_looks(
        self, server: Emulator, ties: Any, named: str
    ) -> None:
        """Two messages are in the same order by chance half of the time: it looks often (R5)."""
        for day in (0, 0, 1):
            server.mailbox.deliver(date=JUNE + timedelta(days=day))
        server.readings = Readings(ties=ties)

        assert run(server)["ties"].reading == named

    def test_few_looks_at_ties_tell_nothing(self) -> None:
        """An order that may be chance is not named (R5)."""
        assert ties_of([[1, 2]] * 5) is None
        assert ties_of([[1, 2, 3]] * 3) is None
        assert ties_of([[1, 2, 3], [3, 2, 1]]) is None
        assert ties_of([[1, 2], [3, 4], [5, 6]]) is None

    @pytest.mark.parametrize("truth", ALL_BOUNDS, ids=str)
    def test_questions_about_bounds_never_mislead(self, truth: Bounds) -> None:
        """The probes never rule out the truth, whatever the message's date (R4)."""
        for date in (0, 500_000, 382_021, 999_999, -1, 1):
            alive, probes = list(ALL_BOUNDS), list(probes_of(1, date))
            while (probe := best_probe(probes, alive)) is not None:
                probes.remove(probe)
                alive = [other for other in alive if other.finds(probe) == truth.finds(probe)]

            assert truth in alive

    @pytest.mark.parametrize("order", ["ascending", "descending"])
    @pytest.mark.parametrize("count", ["all", "page"])
    @pytest.mark.parametrize("age", [0, 400])
    @pytest.mark.parametrize("filled", [1, 30, 120])
    def test_mail_arrives_meanwhile(
        self, server: Emulator, order: Any, count: Any, age: int, filled: int
    ) -> None:
        """If mail arrives at every request, nothing wrong is claimed (R6)."""
        fill(server.mailbox, filled)
        server.readings = Readings(sort_one=order, count=count)
        date = JUNE + timedelta(days=200 - age)

        with calls_of(server, lambda _: void(server.mailbox.deliver(date=date))):
            report = run(server)

        found = claims(report)
        assert found.get("sort_one", order) == order
        assert found.get("count", count) == count
        assert found.get("page_cap") in {None, "none seen"}
        assert found.get("offset", "works") == "works"
        assert found.get("ties", "stable") == "stable"
        assert report.result == "fine", report.of_level("warning", "outside")

    @pytest.mark.parametrize("order", ["ascending", "descending"])
    @pytest.mark.parametrize("count", ["all", "page"])
    @pytest.mark.parametrize("first", [True, False])
    def test_mail_goes_meanwhile(
        self, server: Emulator, order: Any, count: Any, first: bool
    ) -> None:
        """If mail is deleted at every request, nothing wrong is claimed either (R6)."""
        fill(server.mailbox, 40)
        server.readings = Readings(sort_one=order, count=count)

        def delete(_: object) -> None:
            if left := server.mailbox.messages(INBOX):
                server.mailbox.delete(INBOX, [left[0 if first else -1]["Id"]])

        with calls_of(server, delete):
            report = run(server)

        found = claims(report)
        assert found.get("sort_one", order) == order
        assert found.get("count", count) == count
        assert found.get("page_cap") is None
        assert found.get("start_inclusive", True) is True
        assert found.get("end_inclusive", True) is True
        assert found.get("precision", "millisecond") == "millisecond"
        assert report.result == "fine", report.of_level("warning", "outside")

    @pytest.mark.parametrize("seed", range(24))
    def test_any_server_and_mailbox(self, server: Emulator, seed: int) -> None:
        """Whatever the server, the mailbox and others do, nothing wrong is claimed (R1 to R6)."""
        dice = random.Random(seed)
        mailbox, seconds = server.mailbox, 0.0
        for _ in range(dice.choice([0, 1, 2, 3, 8, 30, 130])):
            seconds += dice.choice([0, 0.2, 1, 60, 5_000])
            date = JUNE + timedelta(seconds=round(seconds, dice.choice([0, 3, 6])))
            nothing = {"Date": None} if dice.random() < 0.05 else {}
            mailbox.deliver(date=date, was_read=dice.random() < 0.5, fields=nothing)
        setting: dict[str, Any] = {
            "sort_one": dice.choice(["ascending", "descending"]),
            "count": dice.choice(["all", "page"]),
            "page_cap": dice.choice([1, 2, 5, 20, 1_000]),
            "start_inclusive": dice.choice([True, False]),
            "end_inclusive": dice.choice([True, False]),
            "precision": dice.choice(["second", "millisecond", "microsecond"]),
            "ties": dice.choice(["stable", "reversed", "random"]),
            "undated": dice.choice(["always", "never", "as_min"]),
        }
        server.readings = Readings(**setting)
        comes, goes = dice.choice([0, 0.4]), dice.choice([0, 0, 0.3])

        def live(_: object) -> None:
            if dice.random() < comes:
                mailbox.deliver(date=JUNE + timedelta(seconds=dice.randrange(int(seconds) + 1)))
            if dice.random() < goes and (left := mailbox.messages(INBOX)):
                mailbox.delete(INBOX, [dice.choice(left)["Id"]])

        with calls_of(server, live):
            found = claims(run(server))

        # Also right: no limit was reached, and whole milliseconds show nothing finer.
        vague = {"page_cap": "none seen", "precision": "millisecond or finer"}
        if setting["ties"] != "stable":
            vague["ties"] = "changes"
        for key, value in setting.items():
            assert found.get(key, value) in {value, vague.get(key)}, key
        assert found.get("dates", "honoured") == "honoured"
        assert found.get("offset", "works") == "works"

    def test_a_huge_folder(self) -> None:
        """A folder of 60,000 messages takes no more requests, and no page is too large for it."""
        mailbox = Mailbox.synthetic(60_000, ties=3)
        with Emulator(mailbox) as server:
            server.readings = Readings(page_cap=500, ties="reversed")
            found = claims(run(server))

        assert found["page_cap"] == 500
        assert found["count"] == "all"
        assert found["ties"] == "reversed"
        assert found["start_inclusive"] is True

    def test_long_messages_are_not_asked_for_in_large_pages(self, server: Emulator) -> None:
        """If messages are long, pages stay small: the server has other work to do."""
        for number in range(60):
            server.mailbox.deliver(date=JUNE + timedelta(hours=number), body="x" * 100_000)

        report = run(server)

        assert max(page.asked for page in report.page_times) == 50
        assert report["page_cap"].reading == "none seen"

    def test_it_gives_up_when_it_has_asked_enough(
        self, server: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At the limit of requests, the rest is left open, and there is still a report."""
        monkeypatch.setattr(inquiry, "MAX_REQUESTS", 9)
        fill(server.mailbox)

        report = run(server)

        assert report.requests <= 9
        assert report["sort_one"].reading == "descending"
        assert any("left out" in finding.says for finding in report.findings)

    @pytest.mark.parametrize(
        ("text", "reading"),
        [
            ("2025-06-01T12:00:00Z", "future"),
            ("2025-06-01T07:00:00.1234567Z", "past"),
            ("2025-06-01T15:00:00+03:00", "other_zone"),
            ("2025-06-01T12:00:00", "no_zone"),
            ("0001-01-01T00:00:00", "absent"),
            (None, "absent"),
            ("soon", "unreadable"),
            (7, "unreadable"),
        ],
    )
    def test_token_life(self, text: object, reading: str) -> None:
        """The token's lifetime is read as the login response states it (R12)."""
        assert expiry_of({"ExpiredAt": text}, JUNE)[1] == reading


def void(_: object) -> None:
    """Drop a value."""


BEYOND: list[tuple[dict[str, Any], str, object]] = [
    ({}, "dates", "honoured"),
    ({"bounds_as": "local"}, "dates", "local time"),
    ({"ignore_dates": True}, "dates", "not honoured"),
    ({"bounds_field": "Timestamp"}, "dates", "timestamp"),
    ({"both_bounds": True}, "one_bound", "ignored"),
    ({"order_by": "Id"}, "sorted_by", "Id"),
    ({"empty_labels": "unlabelled"}, "empty_labels", "unlabelled"),
    ({"several_labels": "any"}, "several_labels", "any"),
    ({"row_per_label": True}, "repeats", "counted"),
    ({"dates_without_zone": True}, "zone", "UTC+3"),
]


class TestBeyondTheManual:
    """What the manual doesn't mention (R29 to R34, R43): told if seen, and else left open."""

    @pytest.mark.parametrize("going", [False, True])
    @pytest.mark.parametrize(("setting", "key", "named"), BEYOND, ids=str)
    @pytest.mark.slow
    def test_a_mailbox_in_use(
        self, server: Emulator, setting: dict[str, Any], key: str, named: object, going: bool
    ) -> None:
        """If mail arrives or is deleted at every request, nothing wrong is claimed (R6)."""
        fill(server.mailbox)
        server.readings = Readings(**setting)
        usual = {case[1]: case[2] for case in BEYOND if not case[0]}
        usual |= {"sorted_by": "Date", "empty_labels": "no filter", "several_labels": "all"}
        usual |= {"one_bound": "honoured", "repeats": "none", "zone": "named"}

        def live(_: object) -> None:
            left = server.mailbox.messages(INBOX)
            if going and left:
                server.mailbox.delete(INBOX, [left[len(left) // 3]["Id"]])
            elif not going:
                server.mailbox.deliver(date=JUNE + timedelta(hours=30), labels=[3])

        with calls_of(server, live):
            found = claims(run(server))

        vague = {"listed"} if key == "repeats" else set()  # Count may have changed meanwhile
        for name, reading in (usual | {key: named}).items():
            assert found.get(name, reading) in {reading, *vague}, name

    def test_nothing_to_tell_it_by(self, server: Emulator) -> None:
        """R30, R31, R33: without labels and replies, and in one order by all fields, it's open."""
        for hour in range(10):
            server.mailbox.deliver(date=JUNE + timedelta(hours=hour))
        server.readings = Readings(labels_required=True)

        report = run(server)

        for key in ("sorted_by", "empty_labels", "several_labels", "threads"):
            assert report[key].level == "unknown", report[key]
        assert report["sorted_by"].says.endswith(
            "the same order by Date and by Id and by Timestamp"
        )
        assert report["without_labels"].reading == "refused"

    def test_zones_that_searches_do_not_show(self, server: Emulator) -> None:
        """R29, R43: if bounds are ignored, they tell neither the dates' zone nor more of them."""
        fill(server.mailbox)
        server.readings = Readings(ignore_dates=True, dates_without_zone=True)

        report = run(server)

        assert report["dates"].level == "warning"
        assert (report["zone"].level, report["zone"].reading) == ("warning", "not known")
        for key in ("one_bound", "start_inclusive", "end_inclusive", "precision"):
            assert report[key].level == "unknown", report[key]

    def test_all_mail_has_labels(self, server: Emulator) -> None:
        """R31: a folder that looks empty with `Labels: []` is checked without Labels."""
        for hour in range(10):
            server.mailbox.deliver(date=JUNE + timedelta(hours=hour), labels=[7])
        server.readings = Readings(empty_labels="unlabelled")

        report = run(server)

        assert report["empty_labels"].reading == "unlabelled"
        assert report["dates"].reading == "honoured"
        assert report["start_inclusive"].reading is True

    def test_all_mail_is_of_other_folders(self, server: Emulator) -> None:
        """R32: if no message is filed under the folder, extracts fail, and this is a warning."""
        for hour in range(3):
            server.mailbox.deliver(date=JUNE + timedelta(hours=hour), fields={"FolderId": 999})

        assert run(server)["foreign_rows"].level == "warning"

    def test_a_file_of_another_folder(self, server: Emulator) -> None:
        """R32: a file that another folder's message has isn't missing from this folder."""
        for folder, size in ((INBOX, 50), (OTHER, 5)):
            files = [Attachment("a.txt", b"x" * size, "text/plain")]
            server.mailbox.deliver(date=JUNE, folder=folder, attachments=files)
        server.readings = Readings(foreign_rows=True)

        assert run(server)["attachment_length"].level == "ok"

    def test_one_message_a_day(self, server: Emulator) -> None:
        """R29: bounds are compared by day, even if no other message of the day shows it."""
        for day in range(10):
            server.mailbox.deliver(date=JUNE + timedelta(days=day, milliseconds=250))
        server.readings = Readings(precision="day")

        report = run(server)

        assert report["dates"].reading == "inexact"
        assert report["start_inclusive"].reading is None

    def test_bounds_that_nothing_explains(self, server: Emulator) -> None:
        """R29: if messages that stay in the folder are found by no date, this is a warning."""
        fill(server.mailbox)

        def hide(record: dict[str, Any]) -> None:
            if record["json"]["SearchContext"]["StartDate"]:
                answer = {"Items": [], "Count": 0}
                server.faults.append(Fault(path="Messages", kind="answer", answer=answer))

        with calls_of(server, hide):
            report = run(server)

        assert report["dates"].reading == "unexplained"
        assert report["dates"].level == "warning"

    def test_two_messages_with_one_id(self, server: Emulator) -> None:
        """R34: a message may be listed twice, but two messages with one id can't be told apart."""
        items = [{"Id": 1, "Date": f"2025-06-0{day}T00:00:00Z"} for day in (1, 2)]
        answer = {"Items": items, "Count": 2}
        server.faults.append(Fault(path="Messages", kind="answer", answer=answer, times=None))

        report = run(server)

        assert report["ids"].level == "outside"
        assert report["repeats"].reading == "none"


class TestOutside:
    """A server that violates the contract is reported."""

    @pytest.mark.parametrize(
        ("answer", "key"),
        [
            ({"Count": 5, "Items": [{"Id": 1}, {"Id": 1}]}, "ids"),
            ({"Count": 0, "Items": [{"Id": 1}]}, "count"),
            ({"Count": 3, "Items": [{"Id": n} for n in range(300)]}, "page_cap"),
            ({"Count": 300, "Items": [{"Id": n} for n in range(300)]}, "missing_folder"),
            (
                {"Items": [{"Id": n, "Date": f"2025-06-0{n}T00:00:00Z"} for n in (1, 3, 2)]},
                "sort_one",
            ),
            (
                {"Items": [{"Id": n, "Date": f"2025-06-0{n}T00:00:00Z"} for n in (1, 2, 3)]},
                "offset",
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_it_is_told(self, server: Emulator, answer: object, key: str) -> None:
        """A response that violates the contract is reported."""
        server.faults.append(Fault(path="Messages", kind="answer", answer=answer, times=None))

        report = run(server)

        assert report[key].level == "outside", report[key]
        assert report.result == "outside the contract"

    @pytest.mark.parametrize("cap", [None, 10])
    @pytest.mark.parametrize("count", [5, 120])
    def test_an_ignored_offset(self, server: Emulator, cap: int | None, count: int) -> None:
        """If offset has no effect, that is what is said; a calm folder isn't blamed."""
        fill(server.mailbox, count)
        server.readings = Readings(ignore_offset=True, page_cap=cap)

        report = run(server)

        assert report["offset"].reading == "ignored"
        assert "offset has no effect" in report["page_cap"].says
        assert [finding for finding in report.findings if "changed" in finding.says] == []

    def test_bounds_of_another_zone(self, server: Emulator) -> None:
        """R4, R29: nothing is claimed about bounds to the second if they are hours off."""
        fill(server.mailbox, 2)
        true_dates = {m["Id"]: m["Date"] for m in server.mailbox.messages(INBOX)}
        for number, shown in true_dates.items():
            with server.mailbox.lock:
                record = next(r for r in server.mailbox.contents(INBOX).records if r.id == number)
                # Shown three hours later than it is searched for.
                later = datetime.fromisoformat(shown) + timedelta(hours=3)
                record.set("Date", later.strftime("%Y-%m-%dT%H:%M:%SZ"))

        report = run(server)

        assert report["dates"].reading == "inexact"
        assert report["start_inclusive"].reading is None

    @pytest.mark.parametrize(
        "items",
        [
            [None, 1, "x", [], {}],
            [{"Id": None}, {"Id": True}, {"Id": "x"}, {"Id": 1.5}, {"Id": 10**40}],
            [{"Id": 1, "Date": 5, "Labels": "x", "Attachments": {"a": 1}, "From": 3}],
            [{"Id": 1, "Date": "9999-12-31T23:59:59Z", "Labels": [1]}],
            [{"Id": 1, "Date": "0001-01-02T00:00:00+14:00"}],
            [{"Id": 1, "Date": "2025-06-01T00:00:00Z", "Labels": [[]], "Attachments": [None]}],
            [{"Id": 1, "Attachments": [{"FileName": "\ud83d", "Size": 3}, {"FileName": {}}]}],
            [{"Id": 1, f"{SECRET}": 1, "ann@example.org": 2, "x" * 500: 3}],
        ],
    )
    def test_hostile_items(self, server: Emulator, items: object) -> None:
        """Items that are not messages are reported, and cause no error (R20)."""
        answer = {"Count": 10**30, "Items": items, "\x1b[31m": "[bold]"}
        server.faults.append(Fault(path="Messages", kind="answer", answer=answer, times=None))

        report = run(server)

        text = json.dumps(report.as_dict(), ensure_ascii=False)
        assert not any(word in text for word in (SECRET, "ann@", "xxxx", "\x1b", "\\u001b"))
        assert report.of_level("warning", "outside", "note")

    @pytest.mark.parametrize(
        ("field", "value", "key", "level"),
        [
            ("Id", MISSING, "ids", "warning"),
            ("Date", MISSING, "missing_fields", "warning"),
            ("Size", "5", "wrong_types", "warning"),
            ("Subject", MISSING, "missing_fields", "note"),
            ("Subject", None, "null_fields", "note"),
            ("ThreadId", None, "null_fields", "ok"),
        ],
    )
    def test_fields(
        self, server: Emulator, field: str, value: object, key: str, level: str
    ) -> None:
        """Fields that are missing, null or of another type are named (R20)."""
        fill(server.mailbox, 4)
        server.mailbox.deliver(date=JUNE, fields={field: value})

        report = run(server)

        assert report[key].level == level
        if level != "ok" and key != "ids":
            assert report[key].reading == [field]
            assert f"{field} (in some)" in report[key].says

    def test_files_named_in_some_listings_only(self, server: Emulator) -> None:
        """One message whose attachments are not named is enough for a warning (R17)."""
        fill(server.mailbox, 6)
        server.mailbox.deliver(date=JUNE, fields={"HasAttachments": True, "Attachments": None})

        finding = run(server)["list_attachments"]

        assert finding.level == "warning"
        assert "not all" in finding.says

    def test_a_label_filter_that_does_nothing(self, server: Emulator) -> None:
        """A filter by labels that finds nothing is a warning (R7)."""
        fill(server.mailbox)

        def forget(record: dict[str, Any]) -> None:
            if record["json"]["SearchContext"].get("Labels"):
                answer = {"Items": [], "Count": 0}
                server.faults.append(Fault(path="Messages", kind="answer", answer=answer))

        with calls_of(server, forget):
            assert run(server)["labels"].reading == "finds nothing"

    def test_a_missing_folder_that_looks_empty(self, server: Emulator) -> None:
        """It is worth knowing that a wrong folder id looks like an empty folder (R16)."""
        fill(server.mailbox)

        def answer(record: dict[str, Any]) -> None:
            if record["json"]["folderId"] != INBOX:
                empty = {"Items": [], "Count": 0}
                server.faults.append(Fault(path="Messages", kind="answer", answer=empty))

        with calls_of(server, answer):
            assert run(server)["missing_folder"].level == "note"

    def test_bounds_finer_than_the_manuals_are_refused(self, server: Emulator) -> None:
        """If the server rejects microseconds, they are not sent; that is no failure (R4)."""
        fill(server.mailbox)

        def refuse(record: dict[str, Any]) -> None:
            context = record["json"]["SearchContext"]
            if len(context["StartDate"]) > 24 or len(context["EndDate"]) > 24:
                server.faults.append(Fault(path="Messages", status=500))

        with calls_of(server, refuse):
            report = run(server)

        assert report["start_inclusive"].reading is True
        assert report["end_inclusive"].reading is True
        assert report["failures"].level == "ok"


class TestFailures:
    """Servers that fail during the check."""

    def test_a_wrong_password(self, server: Emulator) -> None:
        """A rejected login ends the check, and is tried only once."""
        with pytest.raises(R7MailAuthError):
            run(server, password="wrong")

        assert server.logins == 1

    def test_a_folder_that_cannot_be_read(self, server: Emulator) -> None:
        """Without a folder, there is nothing to check."""
        with pytest.raises(Exception, match="Messages: refused, or not there"):
            run(server, folder=77)

    def test_another_server(self, server: Emulator) -> None:
        """HTML instead of JSON ends the check."""
        server.faults.append(Fault(body="<html>", status=200, times=None))

        with pytest.raises(R7MailProxyError):
            run(server)

    def test_nobody_there(self) -> None:
        """A server that cannot be reached ends the check."""
        config = ClientConfig(url="http://127.0.0.1:1", login="a", password="b", backoff=0.01)
        with Client(config) as client, pytest.raises(R7MailConnectionError):
            check_server(client, INBOX)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "fault",
        [
            Fault(kind="reset"),
            Fault(status=503, headers={"Retry-After": "0"}),
            Fault(kind="bad_json"),
            Fault(kind="hang", seconds=5),
        ],
        ids=lambda fault: fault.kind,
    )
    @pytest.mark.parametrize("skip", [1, 4, 9, 14])
    def test_a_request_that_fails(self, server: Emulator, fault: Fault, skip: int) -> None:
        """A failed request is counted and reported as a warning, and retried (R16)."""
        fill(server.mailbox)
        fault = Fault(**{**vars(fault), "skip": skip, "path": "Messages"})
        server.faults.append(fault)

        report = run(server, timeout=0.5)

        assert report["failures"].level == "warning"
        assert report["sort_one"].reading == "descending"
        assert report["start_inclusive"].reading is True

    def test_one_part_fails_for_good(self, server: Emulator) -> None:
        """What can't be requested is left open, with the reason; the rest is found (R16)."""
        fill(server.mailbox)
        server.faults.append(Fault(path="Messages", status=503, skip=2, times=None))

        report = run(server)

        assert any("status 503" in finding.says for finding in report.findings)
        assert report["sort_one"].reading == "descending"
        assert report["wrong_path"].reading == "405, json"

    @pytest.mark.slow
    def test_a_server_that_can_take_one_request_at_a_time(self, server: Emulator) -> None:
        """If concurrent requests are refused, fewer are suggested (R16)."""
        fill(server.mailbox)
        server.readings = Readings(latency_seconds=0.02)
        running = 0

        def begin(_: object) -> None:
            nonlocal running
            running += 1
            # Concurrent requests come last.
            if len(server.requests) > 30:
                server.faults.append(Fault(path="Messages", status=429))

        with calls_of(server, begin):
            report = run(server)

        assert report.max_concurrency == 1
        assert "429" in report["failures"].says

    def test_an_answer_without_end(self, server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        """A response that does not end is cut off."""
        monkeypatch.setattr(inquiry, "MAX_ANSWER_BYTES", 5_000)
        fill(server.mailbox)

        with pytest.raises(Exception, match="the response does not end"):
            run(server)


@pytest.mark.usefixtures("hurry")
class TestWriting:
    """After `--write`, the mailbox is as it was."""

    def test_never_by_default(self, server: Emulator) -> None:
        """Nothing is written unless requested."""
        fill(server.mailbox)
        report = run(server)

        paths = {call["path"].rpartition("/")[2] for call in server.requests}
        assert paths == {"Login", "Messages", "Attachments", "R7MailCheckNoSuchCall"}
        assert "restored" not in {finding.key for finding in report.findings}

    def test_all_is_put_back(self, server: Emulator) -> None:
        """Marks and moves are tried, verified in the listings, and undone (R15)."""
        fill(server.mailbox)
        before = server.mailbox.messages(INBOX), server.mailbox.messages(PROCESSED)

        report = run(server, write_folder=PROCESSED)

        assert [report[key].reading for key in ("mark_read", "mark_important", "move")] == (
            ["works"] * 3
        )
        assert report["restored"].level == "ok"
        assert (server.mailbox.messages(INBOX), server.mailbox.messages(PROCESSED)) == before

    def test_all_is_put_back_from_a_folder_that_is_listed_with_others(
        self, server: Emulator
    ) -> None:
        """R32: a message of another folder that is listed, too, isn't taken for one of this one."""
        fill(server.mailbox)
        # Read, alone and the oldest: it would be chosen if it were in the folder.
        server.mailbox.deliver(date=JUNE - timedelta(days=1), folder=PROCESSED, was_read=True)
        server.readings = Readings(foreign_rows=True)
        before = server.mailbox.messages(INBOX), server.mailbox.messages(PROCESSED)

        report = run(server, write_folder=PROCESSED)

        assert report["move"].reading == "works"
        assert report["restored"].level == "ok"
        assert (server.mailbox.messages(INBOX), server.mailbox.messages(PROCESSED)) == before

    @pytest.mark.parametrize(
        ("path", "skip", "after_acting", "times"),
        in_turn(
            ["MarkAsRead", "MarkAsFavorite", "MoveMessage", "Messages"],
            [0, 1, 3],
            [True, False],
            [1, 3],
        ),
    )
    @pytest.mark.slow
    def test_put_back_whatever_fails(
        self, server: Emulator, path: str, skip: int, after_acting: bool, times: int
    ) -> None:
        """Whichever step fails, before or after it took effect, the message is restored (R23)."""
        fill(server.mailbox)
        before = server.mailbox.messages(INBOX), server.mailbox.messages(PROCESSED)
        armed = False

        def arm(record: dict[str, Any]) -> None:
            nonlocal armed
            if not armed and record["path"].endswith("MarkAsRead"):
                armed = True
                server.faults.append(
                    Fault(path=path, times=times, skip=skip, after_acting=after_acting)
                )

        server.on_request = arm
        report = run(server, write_folder=PROCESSED)

        assert armed
        assert report["restored"].level == "ok", report["restored"]
        assert (server.mailbox.messages(INBOX), server.mailbox.messages(PROCESSED)) == before

    def test_it_says_plainly_that_it_could_not_put_back(self, server: Emulator) -> None:
        """If the message can't be restored, the report says which one it is, and how it was."""
        fill(server.mailbox)
        server.faults.append(Fault(path="MoveMessage", skip=2, status=403, times=None))

        report = run(server, write_folder=PROCESSED)

        [moved] = server.mailbox.messages(PROCESSED)
        finding = report["restored"]
        assert finding.level == "warning"
        for word in ("NOT PUT BACK", f"message {moved['Id']}", "folder 24", "folder 15"):
            assert word in finding.says
        assert "was in folder 24, read and not important" in finding.says

    def test_put_back_when_stopped(self, server: Emulator) -> None:
        """Ctrl-C during the check leaves the mailbox as it was."""
        fill(server.mailbox)
        before = server.mailbox.messages(INBOX), server.mailbox.messages(PROCESSED)
        config = ClientConfig(url=server.url, login="user_test", password="TestPassword")
        with Client(config) as client:
            send = client.exchange

            def exchange(call: Any, attempt: int) -> Any:
                if server.mailbox.messages(PROCESSED) and "stopped" not in told:
                    told.append("stopped")
                    raise KeyboardInterrupt
                return send(call, attempt)

            told: list[str] = []
            client.exchange = exchange  # type: ignore[method-assign]
            with pytest.raises(KeyboardInterrupt):
                check_server(client, INBOX, write_folder=PROCESSED)

        assert told == ["stopped"]
        assert (server.mailbox.messages(INBOX), server.mailbox.messages(PROCESSED)) == before

    def test_no_receipt_is_set_off(self, server: Emulator) -> None:
        """A message that requests a read receipt is not marked."""
        receipt = {"IsReturnReceiptTo": True}
        server.mailbox.deliver(date=JUNE, was_read=True, fields=receipt)
        server.mailbox.deliver(
            date=JUNE, was_read=True, fields={"IsDispositionNotificationTo": True}
        )

        report = run(server, write_folder=PROCESSED)

        assert report["mark_read"].level == "unknown"
        assert not [call for call in server.requests if "Mark" in call["path"]]

    @pytest.mark.slow
    def test_actions_that_have_no_effect(self, server: Emulator) -> None:
        """An action that returns true but has no effect is a warning (R15)."""
        fill(server.mailbox)
        for path in ("MarkAsRead", "MoveMessage"):
            server.faults.append(Fault(path=path, kind="answer", answer=True, times=None))

        report = run(server, write_folder=PROCESSED)

        assert report["mark_read"].reading == "no effect"
        assert report["mark_important"].reading == "works"
        assert report["move"].reading == "no effect"
        assert report["restored"].level == "ok"

    @pytest.mark.slow
    def test_the_disk(self, server: Emulator) -> None:
        """The Disk is checked if wanted; with a folder to write to, a file is uploaded, deleted."""
        fill(server.mailbox)

        assert "disk" not in claims(run(server, write_folder=PROCESSED))
        with Client(config(server)) as client:
            read = check_server(client, INBOX, disk=True)
            assert not any(call["path"].endswith("/Upload") for call in server.requests)
            wrote = check_server(client, INBOX, disk=True, write_folder=PROCESSED)

        assert read["disk"].reading == wrote["disk"].reading == "answers"
        assert "disk_upload" not in claims(read)
        assert wrote["disk_upload"].reading == "works"
        assert wrote.result == "fine"
        assert server.mailbox.disk.files() == []

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("readings", "key", "says"),
        [
            (Readings(disk="405"), "disk", "does not answer at this address. Set disk_url"),
            (Readings(disk="406"), "disk", "the account has the Disk module"),
            (Readings(disk_quota=3), "disk_upload", "refused it"),
        ],
    )
    def test_a_disk_that_takes_nothing(
        self, server: Emulator, readings: Readings, key: str, says: str
    ) -> None:
        """A Disk that isn't there, or takes nothing, is a warning that says what to do."""
        fill(server.mailbox)
        server.readings = readings

        with Client(config(server)) as client:
            report = check_server(client, INBOX, disk=True, write_folder=PROCESSED)

        assert report[key].level == "warning"
        assert says in report[key].says
        assert "message was sent" not in report[key].says
        assert report.result == "warnings"

    def test_the_same_folder(self, server: Emulator) -> None:
        """A message can't be moved to the folder it is in."""
        with pytest.raises(R7MailConfigError, match="write_folder"):
            run(server, write_folder=INBOX)

        assert server.requests == []


class TestDates:
    """How late mail is, and whether its dates can be right."""

    def test_lateness(self, server: Emulator) -> None:
        """R27: Timestamp minus Date tells how late mail is, and how long to wait for it."""
        for number in range(300):
            delay = timedelta(seconds=30 if number % 20 else 90)
            if number in {17, 170}:
                delay = timedelta(hours=26)
            if number > 290:
                delay = timedelta(days=400)  # imported
            date = JUNE + timedelta(minutes=number)
            server.mailbox.deliver(date=date, fields={"Timestamp": f"{date + delay:%FT%TZ}"})

        report = run(server)

        assert report["lateness"].says.startswith("of 291 messages, half within 30 s, 9 of 10")
        assert "all within 26 h; 9 more than 30 days later" in report["lateness"].says
        assert report.waits is not None
        assert report.waits.settle_seconds == 30
        assert report.waits.lookback == 600
        assert report.waits.recheck_hours == 32
        assert report.as_dict()["suggested"]["waits"]["recheck_hours"] == 32

    @pytest.mark.parametrize("count", [0, 3])
    def test_too_little_mail(self, server: Emulator, count: int) -> None:
        """R27: a handful of messages says nothing about how long to wait."""
        fill(server.mailbox, count)

        assert run(server).waits is None

    def test_wrong_clocks(self, server: Emulator) -> None:
        """R27: dates in 1970, 2038 and the future, and none at all, are counted."""
        fill(server.mailbox, 5)
        assert run(server)["clocks"].reading == []
        stored = {"Timestamp": f"{JUNE:%FT%TZ}"}
        for date in ("1970-01-01T00:00:01Z", "2038-01-19T03:14:08Z", "0001-01-01T00:00:00"):
            server.mailbox.deliver(date=date, fields=stored)
        server.mailbox.deliver(date=JUNE + timedelta(hours=1), fields=stored)

        assert run(server)["clocks"].reading == [
            "1 without one, such as 0001-01-01",
            "1 before 1990, such as 1970",
            "1 in 2038 or later",
            "1 later than the message was stored",
        ]

    @pytest.mark.slow
    def test_replies(self, server: Emulator) -> None:
        """R33: it is told whether replies to listed messages are listed."""
        fill(server.mailbox, 5)
        assert run(server)["threads"].reading is None
        server.mailbox.deliver(date=JUNE, mime_message_id="one@x")
        server.mailbox.deliver(date=JUNE, folder=PROCESSED, in_reply_to="one@x")
        assert run(server)["threads"].reading == "not seen"
        server.mailbox.deliver(date=JUNE, in_reply_to="one@x")
        assert run(server)["threads"].reading == "listed"


class TestHosts:
    """Each module of the server has a host of its own, and only one has the mail API."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("url", "mail_host"),
        [
            ("http://example.org", "mail.example.org"),
            ("http://cddisk.example.org", "cmail.example.org"),
            ("http://portal.example.org", "cmail.example.org"),
            ("http://mail.example.org", "example.org"),
            ("http://admin.example.org:8080", "mail.example.org:8080"),
        ],
    )
    def test_the_host_is_found(self, server: Emulator, url: str, mail_host: str) -> None:
        """Given a domain or another module's host, the host of the mail API is named."""
        server.readings = Readings(mail_host=mail_host.partition(":")[0])
        config = ClientConfig(
            url=url, login="user_test", password="TestPassword", proxy=server.url, max_retries=0
        )
        with Client(config) as client, pytest.raises(R7MailServerError) as caught:
            check_server(client, INBOX)
        server.requests.clear()

        said = advice(caught.value, config)

        assert said == f"The mail API answers at http://{mail_host}: give that as the server."
        assert len(server.requests) <= 12
        assert "TestPassword" not in str(server.requests)

    def test_no_host_is_found(self, server: Emulator) -> None:
        """If no usual name has the mail API, what each answers is told."""
        server.readings = Readings(mail_host="post.example.org")
        config = ClientConfig(
            url="http://example.org", login="a", password="b", proxy=server.url, max_retries=0
        )

        found = find_hosts(config)

        assert {host.url for host in found} >= {"http://example.org", "http://mail.example.org"}
        assert {host.says for host in found} == {"another module (status 405)"}
        assert "none of the usual host names" in summary_of(found, config.url)

    def test_web_pages_are_no_api(self, server: Emulator) -> None:
        """A proxy's page that forbids a host is not taken for the mail API."""
        server.readings = Readings(mail_host="mail.example.org")
        server.faults.append(Fault(status=403, body="<html>Forbidden</html>", times=None))
        config = ClientConfig(
            url="http://example.org", login="a", password="b", proxy=server.url, max_retries=0
        )

        assert {host.says for host in find_hosts(config)} == {"a web page (status 403)"}

    def test_an_address_has_no_other_names(self) -> None:
        """An IP address belongs to no domain."""
        assert hosts_of("https://192.0.2.1:8443") == ["https://192.0.2.1:8443"]


class TestReport:
    """The report can be shown to others."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "readings", [Readings(), Readings(page_cap=3, null_fields=("Subject",), ties="random")]
    )
    def test_no_mail_in_it(
        self, server: Emulator, readings: Readings, logged: Callable[[], str]
    ) -> None:
        """Neither the report nor the log has mail, names, addresses, tokens or passwords in it."""
        fill(server.mailbox)
        server.readings = readings

        text = json.dumps(run(server, write_folder=PROCESSED).as_dict(), ensure_ascii=False)

        ids = {str(message["Id"]) for message in server.mailbox.messages(INBOX)}
        # The measured speed may happen to be one of the ids.
        words = {word.strip('",.:') for word in re.sub(r"[\d,]+ messages/s", "", text).split()}
        for said in (text, logged()):
            for word in (SECRET, "user_test", "TestPassword", "devr7.ru", "Сизый", "127.0.0.1:"):
                assert word not in said or (word == "127.0.0.1:" and said != text)
        assert not ids & words

    def test_json(self, server: Emulator) -> None:
        """The report's JSON has the result, the suggestions, the times and the findings."""
        fill(server.mailbox)

        found = json.loads(json.dumps(run(server).as_dict()))

        assert found["result"] == "fine"
        assert found["suggested"]["page_size"] >= 50
        assert found["page_times"][0].keys() == {"asked", "got", "bytes", "seconds"}
        [order] = [item for item in found["findings"] if item["key"] == "sort_one"]
        assert (order["point"], order["level"], order["reading"]) == ("R1", "ok", "descending")
        assert all(item["says"] and item["title"] for item in found["findings"])

    def test_from_python(self, server: Emulator) -> None:
        """The Python example runs exactly as in the documentation."""
        fill(server.mailbox)
        server.readings = Readings(list_attachments=False)
        url, password = server.url, "TestPassword"

        # [START python]
        config = ClientConfig(url=url, login="user_test", password=password)
        with Client(config) as client:
            report = check_server(client, folder=24)
        bad = [f"{f.title}: {f.says}" for f in report.of_level("warning", "outside")]
        # [END python]

        assert len(bad) == 1
        assert "such files cannot be copied" in bad[0]

    def test_a_cap_is_the_page_size(self, server: Emulator) -> None:
        """Requesting more than the server returns is pointless."""
        fill(server.mailbox)
        server.readings = Readings(page_cap=60)

        assert run(server).page_size == 60


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `r7mail check`, without a terminal."""
    return run_command("check", *words, env={"COLUMNS": "400", "R7MAIL_PASSWORD": "TestPassword"})


@pytest.mark.slow
class TestCommand:
    """The command, as used in a terminal."""

    def test_it_tells_and_writes(self, server: Emulator, tmp_path: Path) -> None:
        """A table says in words what the server does; the JSON says the same."""
        fill(server.mailbox)
        server.readings = Readings(sort_one="descending")
        path = tmp_path / "report.json"

        done = command(f"--url={server.url}", "--login=user_test", "--folder=24", f"--json={path}")

        assert done.returncode == 0, done.stderr
        said = " ".join(done.stdout.split())
        assert "latest first" in said
        assert "Suggested: page_size" in said
        assert "Fine:" in said
        assert "\x1b" not in done.stdout
        report = json.loads(path.read_text(encoding="utf-8"))
        assert report["result"] == "fine"
        assert SECRET not in done.stdout + path.read_text(encoding="utf-8")

    def test_a_connection(self, server: Emulator) -> None:
        """An Airflow connection is enough: its first folder is read, and its names work."""
        fill(server.mailbox)
        server.readings = Readings(list_attachments=False)

        done = command("--connection=r7mail_default", "--write=processed", "--disk")

        assert done.returncode == 1, done.stderr
        assert "a file was uploaded, listed and deleted" in done.stdout
        said = " ".join(done.stdout.split())
        assert "such files cannot be copied" in said
        assert "is in its folder, and marked as it was" in said
        assert "see the warnings" in said

    def test_a_disk_with_a_host_of_its_own(self, server: Emulator) -> None:
        """`--disk-url` says where the Disk is, if no connection does."""
        fill(server.mailbox)
        server.readings = Readings(disk_host="localhost")
        words = f"--url={server.url}", "--login=user_test", "--folder=24", "--disk"
        there = server.url.replace("127.0.0.1", "localhost")

        assert "does not answer at this address" in command(*words).stdout
        done = command(*words[:-1], f"--disk-url={there}/", "--write=25")

        assert "a file was uploaded, listed and deleted" in done.stdout, done.stderr

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ([], "give --connection, or --url and --login"),
            (["--url=http://127.0.0.1:1", "--login=a"], "--folder"),
            (["--url=http://127.0.0.1:1", "--login=a", "--folder=inbox"], "--folder"),
            (["--url=mail.invalid", "--login=a", "--folder=1"], "https://cmail.invalid"),
            (["--url=http://127.0.0.1:1", "--login=a", "--folder=1"], "could not be reached"),
            (["--connection=r7mail_default", "--disk-url=a"], "disk_url in the connection"),
            (["--url=a", "--login=a", "--folder=1", "--disk-url=https://u:p@b"], "a login"),
            (["--url=a", "--login=a", "--folder=1", "--disk-url=https://["], "URL is invalid"),
            (["--connection=nowhere"], "no Airflow connection 'nowhere'"),
        ],
    )
    def test_it_could_not_check(self, words: list[str], expected: str) -> None:
        """The reason is reported in one line, with exit code 2."""
        done = command(*words)

        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("Error: ")
        assert expected in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_server_outside_the_contract(self, server: Emulator) -> None:
        """If the server violates the contract, the exit code is 1."""
        fill(server.mailbox)
        server.readings = Readings(ignore_offset=True)

        done = command(f"--url={server.url}", "--login=user_test", "--folder=24")

        assert done.returncode == 1
        assert "outside" in done.stdout


@pytest.mark.slow
class TestOperator:
    """The scheduled self-test."""

    def test_it_returns_the_report(self, server: Emulator, run_dag: Callable[[str], Any]) -> None:
        """In a DAG the report is the task's XCom, without any mail."""
        fill(server.mailbox)

        result = run_dag(
            """
            # [START operator]
            from datetime import UTC, datetime

            from airflow.sdk import DAG
            from airflow_provider_r7mail.operators import R7MailCheckOperator

            start = datetime(2026, 11, 1, tzinfo=UTC)
            with DAG("mail_server_check", schedule="@daily", start_date=start) as dag:
                R7MailCheckOperator(task_id="check", folder="inbox")
            # [END operator]
            """
        )

        assert result.state == "success"
        report = result.xcom("check")
        assert report["result"] == "fine"
        assert SECRET not in json.dumps(report, ensure_ascii=False)

    def test_it_fails_outside_the_contract(self, server: Emulator) -> None:
        """The task fails if the server violates the contract; the report is in XCom anyway."""
        fill(server.mailbox)
        server.readings = Readings(ignore_offset=True)
        pushed: dict[str, Any] = {}

        class Instance:
            def xcom_push(self, key: str, value: Any) -> None:
                pushed[key] = value

        with pytest.raises(AirflowFailException, match="Paging by offset"):
            R7MailCheckOperator(task_id="c", folder=24).execute({"ti": Instance()})  # type: ignore[typeddict-item]
        assert pushed["return_value"]["result"] == "outside the contract"

    def test_warnings(self, server: Emulator) -> None:
        """Warnings fail the task only if requested."""
        fill(server.mailbox)
        server.readings = Readings(list_attachments=False)

        found = R7MailCheckOperator(task_id="c", folder=24).execute({})

        assert found["result"] == "warnings"
        with pytest.raises(AirflowFailException, match="cannot be copied"):
            R7MailCheckOperator(task_id="c", folder=24, fail_on_warning=True).execute({})

    def test_a_wrong_folder(self, server: Emulator) -> None:
        """A folder that the connection does not know fails at once, before any request."""
        with pytest.raises(AirflowFailException, match="Known folders: 'inbox'"):
            R7MailCheckOperator(task_id="c", folder="nowhere").execute({})

        assert server.requests == []
