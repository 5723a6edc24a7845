"""Extract a window over a real socket under every reading of the server and every fault."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq  # noqa: TID253 - tests may
import pytest
from upath import UPath

from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.samples import SAMPLE
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.emulator import Emulator, Fault, Mailbox, Readings
from airflow_provider_r7mail.exceptions import (
    R7MailAttachmentError,
    R7MailConfigError,
    R7MailExtractError,
)
from airflow_provider_r7mail.lake.job import ExtractJob
from airflow_provider_r7mail.lake.window import extract_window
from tests.lake.support import INBOX, START, config, files

pytestmark = pytest.mark.slow
END = START + timedelta(hours=1)


def crowded_mailbox(seed: int = 1) -> Mailbox:
    """300 messages over a little more than an hour, 40 of them in one second, many tied."""
    pick = random.Random(seed)
    mailbox = Mailbox()
    for number in range(260):
        second = number * 15 - 60
        mailbox.deliver(
            subject=f"№ {number}",
            date=START + timedelta(seconds=second, microseconds=pick.choice([0, 0, 1, 999_999])),
        )
    for number in range(40):
        mailbox.deliver(subject=f"tied {number}", date=START + timedelta(seconds=1800))
    return mailbox


def wanted_ids(mailbox: Mailbox) -> set[int]:
    """The messages of the window."""
    return {
        message["Id"]
        for message in mailbox.messages(INBOX)
        if START <= datetime.fromisoformat(message["Date"]) < END
    }


def extract(server: Emulator, output: Path, *, page_size: int | None = 20, **options: Any) -> Any:
    """Extract the window, and return the manifest."""
    settings = config(
        server.url,
        backoff=0.01,
        timeout=options.pop("timeout", 20.0),
        max_concurrency=options.pop("max_concurrency", 3),
        max_retries=options.pop("max_retries", 5),
    )
    job = ExtractJob(
        folder=INBOX,
        criteria=MessageFilter.build(
            start=options.pop("start", START), end=options.pop("end", END)
        ),
        output=UPath(output),
        page_size=page_size,
        **options,
    )

    async def run() -> dict[str, Any]:
        async with AsyncClient(settings) as client:
            return await extract_window(client, job)

    return asyncio.run(run())


def ids(manifest: dict[str, Any]) -> list[int]:
    """The ids in the messages table."""
    path = next(file["path"] for file in manifest["files"] if file["table"] == "messages")
    found: list[int] = pq.read_table(path)["message_id"].to_pylist()
    return found


ORDERS: tuple[Literal["ascending", "descending"], ...] = ("ascending", "descending")
COUNTS: tuple[Literal["all", "page"], ...] = ("all", "page")
TIES: tuple[Literal["stable", "reversed", "random"], ...] = ("stable", "reversed", "random")
PRECISIONS: tuple[Literal["second", "millisecond"], ...] = ("second", "millisecond")
COMBINATIONS = [
    Readings(
        sort_one=sort_one,
        count=count,
        page_cap=cap,
        start_inclusive=start,
        end_inclusive=end,
        precision=precision,
        ties=ties,
    )
    for (sort_one, count, ties), (cap, (start, end), precision) in zip(
        product(ORDERS, COUNTS, TIES),
        product([None, 7], [(True, True), (False, False), (True, False)], PRECISIONS),
        strict=True,
    )
]


@pytest.mark.parametrize("readings", COMBINATIONS, ids=repr)
def test_each_message_once_under_every_reading(readings: Readings, tmp_path: Path) -> None:
    """R1 to R5: whatever the order, Count, cap, bounds and ties, each message is extracted once."""
    mailbox = crowded_mailbox()
    with Emulator(mailbox, readings) as server:
        manifest = extract(server, tmp_path)

    found = ids(manifest)
    assert len(found) == len(set(found))
    assert set(found) == wanted_ids(mailbox)


FAULTS: dict[str, Fault] = {
    "reset": Fault(path="Messages", skip=3, times=2, kind="reset"),
    "truncated": Fault(path="Messages", skip=3, times=2, kind="truncate"),
    "truncated chunks": Fault(path="Messages", skip=3, times=2, kind="truncate", chunked=True),
    "500": Fault(path="Messages", skip=3, times=2, status=500),
    "502 with HTML": Fault(path="Messages", skip=3, status=502, body="<html>Bad Gateway</html>"),
    "429": Fault(path="Messages", skip=3, times=2, status=429),
    "429 with Retry-After": Fault(
        path="Messages", skip=3, status=429, headers={"Retry-After": "1"}
    ),
    "bad JSON": Fault(path="Messages", skip=3, times=2, kind="bad_json"),
    "slow": Fault(path="Messages", skip=3, times=1, kind="hang", seconds=5),
    "an expired token": Fault(path="Messages", skip=3, times=1, status=401),
}


@pytest.mark.parametrize("seed", range(8))
def test_a_changing_folder_loses_and_duplicates_nothing(seed: int, tmp_path: Path) -> None:
    """R6, R16: mail that arrives or leaves between requests, and faults, do no harm."""
    pick = random.Random(seed)
    mailbox = crowded_mailbox(seed)
    there_all_along = wanted_ids(mailbox)
    passing = [fault for fault in FAULTS.values() if fault.kind != "hang" and not fault.headers]

    def change(_: dict[str, Any]) -> None:
        if pick.random() < 0.1:
            server.faults.append(replace(pick.choice(passing), skip=0, times=1))
        kind = pick.choice(["none", "arrive", "delete", "away", "back"])
        present = [message["Id"] for message in mailbox.messages(INBOX)]
        if kind == "arrive":
            mailbox.deliver(date=START + timedelta(seconds=pick.randrange(3600)))
        elif kind == "back":
            mailbox.move(15, [m["Id"] for m in mailbox.messages(15)][:1], 24)
        elif kind in {"delete", "away"}:
            unlucky = pick.choice(present)
            there_all_along.discard(unlucky)
            if kind == "delete":
                mailbox.delete(24, [unlucky])
            else:
                mailbox.move(24, [unlucky], 15)

    readings = Readings(
        sort_one=pick.choice(ORDERS),
        count=pick.choice(COUNTS),
        page_cap=pick.choice([None, 7, 13]),
        ties=pick.choice(TIES),
    )
    with Emulator(mailbox, readings, on_request=change) as server:
        manifest = extract(server, tmp_path, page_size=pick.choice([None, 5, 20]))

    found = ids(manifest)
    assert len(found) == len(set(found))
    assert there_all_along <= set(found)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_costs_a_retry_of_that_page_only(fault: Fault, tmp_path: Path) -> None:
    """R12, R16: a page that fails is requested again, and only that page."""
    mailbox = crowded_mailbox()
    with Emulator(mailbox) as server:
        calm = extract(server, tmp_path, max_concurrency=1)
        server.faults.append(fault)
        manifest = extract(server, tmp_path, max_concurrency=1, timeout=2.0)

    assert set(ids(manifest)) == wanted_ids(mailbox)
    assert manifest["messages"] == len(wanted_ids(mailbox))
    again = fault.times or 0
    # An expired token costs a login and a repeated call.
    assert manifest["requests"] == calm["requests"] + again + (fault.status == 401)


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_a_token_may_expire_between_pages(calls: int, tmp_path: Path) -> None:
    """R12, R13: if a token is valid for a few calls only, the extract logs in again and goes on."""
    mailbox = crowded_mailbox()
    with Emulator(mailbox, Readings(token_calls=calls, expired_at="past")) as server:
        # Concurrent readers share the token: with one call each, they would use it up.
        manifest = extract(server, tmp_path, max_concurrency=1 if calls == 1 else 3)
        paths = {call["path"] for call in server.requests}

    assert set(ids(manifest)) == wanted_ids(mailbox)
    assert manifest["logins"] > 1
    assert paths == {"/api/v2/auth/Login", "/api/v1/email/Messages"}  # no call to refresh a token


def test_a_page_that_can_never_be_read_fails_with_its_place(tmp_path: Path) -> None:
    """A page that keeps failing is an error with window and offset; old results stay."""
    with Emulator(crowded_mailbox()) as server:
        before = extract(server, tmp_path)
        there = files(tmp_path)
        server.faults.append(Fault(path="Messages", skip=4, times=None, status=500))
        with pytest.raises(R7MailExtractError, match="20250601T000000Z_20250601T010000Z") as caught:
            extract(server, tmp_path, max_retries=2)

    assert "offset" in str(caught.value)
    assert "status 500" in str(caught.value)
    assert files(tmp_path) == there
    assert before["messages"] == len(pq.read_table(before["files"][0]["path"]))


def test_a_server_that_ignores_the_offset_is_an_error(tmp_path: Path) -> None:
    """A server that ignores the offset causes a clear error, not a gap."""
    readings = Readings(ignore_offset=True, page_cap=10)
    with (
        Emulator(crowded_mailbox(), readings) as server,
        pytest.raises(R7MailExtractError, match="no progress"),
    ):
        extract(server, tmp_path)

    assert not list(tmp_path.rglob("_manifest.json"))


def test_the_manifest_has_the_servers_count(tmp_path: Path) -> None:
    """R2: the manifest has the server's Count if that is of all messages, not of the page."""
    mailbox = crowded_mailbox()
    with Emulator(mailbox) as server:
        total = extract(server, tmp_path)["server_count"]
        server.readings = Readings(count="page")
        page = extract(server, tmp_path)["server_count"]

    assert total["before"] == total["after"] >= len(wanted_ids(mailbox))
    assert page == {"before": None, "after": None}


def test_a_calm_mailbox_costs_few_requests(tmp_path: Path) -> None:
    """On a calm mailbox: at most 1.1 requests per page plus 15; no offset beyond a page."""
    count, size = 20_000, 100
    mailbox = Mailbox.synthetic(count, start=START, end=END)
    with Emulator(mailbox) as server:
        manifest = extract(server, tmp_path, page_size=size, max_concurrency=4)
        offsets = [call["json"]["offset"] for call in server.requests if "offset" in call["json"]]

    assert manifest["messages"] == len(wanted_ids(mailbox))
    assert manifest["requests"] <= 1.1 * count / size + 15
    assert max(offsets) <= size


def asked_sizes(server: Emulator) -> list[int]:
    """The size requested for each page, in order, without the questions about the server."""
    sizes = [call["json"]["size"] for call in server.requests if "size" in call["json"]]
    return [size for size in sizes if size != SAMPLE]


def test_the_page_size_follows_what_the_server_gives(tmp_path: Path) -> None:
    """R3: without page_size, pages grow while they are full and fast; a given size is kept."""
    mailbox = Mailbox.synthetic(5_000, start=START, end=END)
    with Emulator(mailbox) as server:
        manifest = extract(server, tmp_path, page_size=None, max_concurrency=1)
        grown = asked_sizes(server)
        server.requests.clear()
        extract(server, tmp_path, page_size=200, max_concurrency=1)
        told = asked_sizes(server)

    assert sorted(ids(manifest)) == sorted(wanted_ids(mailbox))
    assert grown[:2] == [200, 400]
    assert 400 < max(grown) <= 1_000
    assert manifest["requests"] < 5_000 / 200
    assert max(told[:20]) == 200


def test_a_cap_on_pages_that_may_grow(tmp_path: Path) -> None:
    """R3: a server that returns 150 at most costs no more requests than its pages."""
    mailbox = Mailbox.synthetic(3_000, start=START, end=END)
    with Emulator(mailbox, Readings(page_cap=150)) as server:
        manifest = extract(server, tmp_path, page_size=None)

    assert sorted(ids(manifest)) == sorted(wanted_ids(mailbox))
    assert manifest["requests"] <= 1.1 * 3_000 / 150 + 12


def test_a_server_that_refuses_large_pages(tmp_path: Path) -> None:
    """R3: if larger pages fail, the extract goes back to the earlier size and reads everything."""
    mailbox = Mailbox.synthetic(3_000, start=START, end=END)

    def refuse(call: dict[str, Any]) -> None:
        if call["json"].get("size", 0) > 300:
            server.faults.append(Fault(path="Messages", status=500))

    with Emulator(mailbox, on_request=refuse) as server:
        manifest = extract(server, tmp_path, page_size=None, max_retries=1)

    assert sorted(ids(manifest)) == sorted(wanted_ids(mailbox))
    assert manifest["retries"] <= 3


def test_pages_of_very_long_messages_shrink(tmp_path: Path) -> None:
    """Very large messages are not requested by the hundred, so that memory stays bounded."""
    mailbox = Mailbox()
    for number in range(300):
        mailbox.deliver(date=START + timedelta(seconds=number), body="x" * 500_000)
    with Emulator(mailbox) as server:
        manifest = extract(server, tmp_path, page_size=None, max_concurrency=2)
        asked = asked_sizes(server)

    assert sorted(ids(manifest)) == sorted(wanted_ids(mailbox))
    assert asked[0] == 200
    assert max(asked[5:]) < 20


def test_a_failed_first_run_leaves_nothing_behind(tmp_path: Path) -> None:
    """A window that could not be read leaves no folders and no files."""
    with Emulator(crowded_mailbox()) as server:
        server.faults.append(Fault(path="Messages", times=None, status=500))
        with pytest.raises(R7MailExtractError):
            extract(server, tmp_path, max_retries=0)

    assert [path for path in tmp_path.rglob("*") if "=" in path.name or path.is_file()] == []


def test_no_file_name_gets_into_messages_or_logs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that can't be stored is identified by its message's id; its name may be private."""
    mailbox = Mailbox()
    number = mailbox.deliver(date=START, attachments=[("salaries.xlsx", b"1", "x/y")])
    place = tmp_path / "files" / "mailbox=user_test" / "folder=24" / f"message_id={number}"
    place.parent.mkdir(parents=True)
    place.write_text("a file where a folder should be")
    with (
        Emulator(mailbox) as server,
        pytest.raises(R7MailAttachmentError, match=f"message {number}: storage failed") as caught,
    ):
        extract(server, tmp_path / "tables", attachments=UPath(tmp_path / "files"))

    assert "salaries" not in str(caught.value) + caplog.text


def test_an_attachments_path_that_cannot_be_written_fails_once(tmp_path: Path) -> None:
    """An unwritable attachments_path is a single error, before any mail is read."""
    with (
        Emulator(crowded_mailbox()) as server,
        pytest.raises(R7MailConfigError, match="/proc/nowhere: can't be written"),
    ):
        extract(server, tmp_path, attachments=UPath("/proc/nowhere"))

    assert server.requests == []


@pytest.mark.parametrize(
    ("readings", "reason"),
    [
        (Readings(count="folder"), "whatever dates"),
        (Readings(count="unread"), "Count"),
        (Readings(count_form="null"), "missing or not a number"),
    ],
    ids=["folder", "unread", "null"],
)
@pytest.mark.parametrize("cap", [None, 10])
@pytest.mark.parametrize("hour", [0, 5])
def test_a_count_of_something_else_stops_nothing(
    readings: Readings,
    reason: str,
    cap: int | None,
    hour: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """R2: a Count that isn't of the window's mail doesn't fail it, and the log says so."""
    mailbox = crowded_mailbox()
    for day in range(30):  # far away
        mailbox.deliver(date=f"2024-01-{day + 1:02d}T00:00:00Z", was_read=False)
    with Emulator(mailbox, replace(readings, page_cap=cap)) as server:
        start = START + timedelta(hours=hour)
        manifest = extract(server, tmp_path, start=start, end=start + timedelta(hours=1))

    assert set(ids(manifest)) == (wanted_ids(mailbox) if hour == 0 else set())
    assert manifest["server_count"] == {"before": None, "after": None}
    assert "can't be compared with the server's Count" in caplog.text
    assert reason in caplog.text


def test_answers_in_camel_case_are_extracted(tmp_path: Path) -> None:
    """R42: names in camelCase fill the same columns, files and senders included."""
    mailbox = Mailbox.office(messages=200, end=END)
    tables = []
    for names in ("documented", "camel"):
        with Emulator(mailbox, Readings(names=names)) as server:
            manifest = extract(server, tmp_path / names, start=END - timedelta(days=900))
        tables.append(pq.read_table(manifest["files"][0]["path"]).drop_columns("extracted_at"))

    assert tables[0].num_rows > 10
    assert tables[0].equals(tables[1])


def test_a_count_of_few_unread_messages_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """R2: a Count below the messages of its own page isn't taken for the page's without a word."""
    mailbox = Mailbox()
    for minute in range(30):
        date = START + timedelta(minutes=minute)
        mailbox.deliver(date=date, was_read=minute > 0)
    with Emulator(mailbox, Readings(count="unread")) as server:
        manifest = extract(server, tmp_path)

    assert (manifest["messages"], manifest["server_count"]["before"]) == (30, None)
    assert "less than the messages of its own page" in caplog.text


@pytest.mark.parametrize(
    ("cap", "count_form"), [(None, "number"), (None, "text"), (3, "number"), (10, "text")]
)
def test_a_count_of_repeated_rows_is_right(
    cap: int | None, count_form: Any, tmp_path: Path
) -> None:
    """R34: if messages are listed once for each label, and counted so, each is extracted once."""
    mailbox = crowded_mailbox()
    for minute in range(20):
        mailbox.deliver(date=START + timedelta(minutes=minute), labels=[1, 2, 3][: minute % 4])
    readings = Readings(row_per_label=True, count_form=count_form, page_cap=cap)
    with Emulator(mailbox, readings) as server:
        manifest = extract(server, tmp_path)

    assert set(ids(manifest)) == wanted_ids(mailbox)
    assert len(ids(manifest)) == len(wanted_ids(mailbox))
    assert manifest["server_count"]["before"] == manifest["server_count"]["after"]
    assert manifest["server_count"]["before"] is not None
    assert manifest["duplicates_dropped"] > 0
