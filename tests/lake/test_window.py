"""Extract one window: its tables are complete and match the manifest, or there are none."""

# ruff: noqa: TID253, ASYNC240 - no DAG file is read here; reading a few small files may block

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import resource
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_r7mail.client.http import ClientConfig
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.compat import ObjectStoragePath
from airflow_provider_r7mail.emulator import MISSING, Emulator, Fault, Mailbox, Readings
from airflow_provider_r7mail.exceptions import (
    R7MailAttachmentError,
    R7MailBadMessageError,
    R7MailConfigError,
    R7MailExtractError,
    R7MailMessageNotFoundError,
    R7MailPublishError,
)
from airflow_provider_r7mail.lake import locks
from airflow_provider_r7mail.lake.copying import copy_attachments
from airflow_provider_r7mail.lake.job import ExtractJob
from airflow_provider_r7mail.lake.window import extract_window
from tests.lake.support import (
    DAY,
    INBOX,
    START,
    WINDOW,
    Bucket,
    config,
    connect_s3,
    files,
    published,
    quick_config,
    run_children,
    table,
)

END = START + DAY


def job(
    root: Path | str, start: datetime = START, end: datetime = END, **options: Any
) -> ExtractJob:
    """A job that extracts a day of the inbox."""
    given = {
        "folder": INBOX,
        "criteria": MessageFilter.build(start=start, end=end),
        "output": ObjectStoragePath(f"file://{root}" if isinstance(root, Path) else root),
        **options,
    }
    return ExtractJob(**given)


async def extract(client: AsyncClient, root: Path | str, **options: Any) -> dict[str, Any]:
    """Extract the day."""
    return await extract_window(client, job(root, **options))


def deliver(server: Emulator, count: int, **fields: Any) -> list[int]:
    """Deliver messages of the day to the inbox."""
    step = DAY / max(count, 1)
    return [
        server.mailbox.deliver(**{"date": START + step * n, "subject": f"№ {n}", **fields})
        for n in range(count)
    ]


def check(root: Path) -> dict[str, Any]:
    """Check that a window's files match its manifest, and return it."""
    manifest = published(files(root), f"file://{root}")
    assert manifest is not None
    return manifest


def noise(count: int, length: int) -> Iterator[str]:
    """Texts that hardly compress."""
    source = random.Random(1)
    for _ in range(count):
        yield source.randbytes(length * 2).decode("utf-16-le", "replace")


def calls(server: Emulator, name: str = "Messages") -> int:
    """How many calls of an endpoint the emulator received."""
    return sum(request["path"].endswith(name) for request in server.requests)


# -- what is written ------------------------------------------------------------------------


async def test_the_manifest_is_complete_and_true(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """`_manifest.json` lists each file with rows, bytes and sha256, and the run's statistics."""
    deliver(server, 230, to=["a@b.ru", "c@d.ru"])
    deliver(server, 2, attachments=[("a.csv", b"x", "text/csv")])
    server.faults.append(Fault("Messages", status=502, skip=1))
    server.on_request = lambda record: server.expire_tokens() if len(server.requests) == 5 else None

    manifest = await extract(client, tmp_path, page_size=50)

    assert check(tmp_path) == manifest
    assert {file["table"]: file["rows"] for file in manifest["files"]} == {
        "messages": 232,
        "recipients": 462,
        "attachments": 2,
    }
    numbers = ("messages", "quarantined", "logins", "retries", "rows_repaired", "schema_version")
    assert [manifest[name] for name in numbers] == [232, 0, 2, 1, 0, 2]
    assert manifest["requests"] == len(server.requests)
    assert manifest["server_count"] == {"before": 232, "after": 232}
    assert manifest["attachments"] == {"listed": 2}
    assert (manifest["mailbox"], manifest["folder_id"]) == ("user_test", INBOX)
    assert manifest["window"] == {
        "start": "2025-06-01T00:00:00+00:00",
        "end": "2025-06-02T00:00:00+00:00",
    }
    assert manifest["duplicates_dropped"] >= 0
    assert json.loads(json.dumps(manifest)) == manifest
    assert {Path(name).name for name in files(tmp_path)} == {
        "_manifest.json",
        "part-00000.parquet",
    }


async def test_each_run_counts_its_own_numbers(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """A second extract with the same client doesn't count the first one's requests again."""
    deliver(server, 30)
    await extract(client, tmp_path)
    seen = len(server.requests)
    manifest = await extract(client, tmp_path)

    assert manifest["requests"] == len(server.requests) - seen
    assert manifest["logins"] == 0


async def test_a_rerun_replaces(server: Emulator, client: AsyncClient, tmp_path: Path) -> None:
    """Running a window again replaces the earlier result; nothing is added to it."""
    server.readings = Readings(undated="always")
    ids = deliver(server, 20, fields={"Date": None})  # set aside
    kept = deliver(server, 20)
    first = await extract(client, tmp_path, on_bad_message="quarantine")
    assert (tmp_path / "messages" / WINDOW / "_quarantine.jsonl").exists()

    server.mailbox.delete(INBOX, [*ids, kept[0]])
    new = deliver(server, 1)
    second = await extract(client, tmp_path)

    assert first["run_id"] != check(tmp_path)["run_id"] == second["run_id"]
    assert Counter(row["message_id"] for row in table(tmp_path)) == Counter(kept[1:] + new)
    assert len(files(tmp_path)) == 6


async def test_an_empty_window(server: Emulator, client: AsyncClient, tmp_path: Path) -> None:
    """A window without mail has a manifest and no rows, but the usual columns."""
    server.mailbox.deliver(date=END)
    manifest = await extract(client, tmp_path)

    assert [file["rows"] for file in check(tmp_path)["files"]] == [0, 0, 0]
    assert manifest["messages"] == 0
    assert len(pq.read_schema(tmp_path / "messages" / WINDOW / "part-00000.parquet")) == 45


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["second", "millisecond", "microsecond"])
@pytest.mark.parametrize("inclusive", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("sort_one", ["ascending", "descending"])
async def test_window_edges(
    server: Emulator,
    client: AsyncClient,
    tmp_path: Path,
    precision: Any,
    inclusive: tuple[bool, bool],
    sort_one: Any,
) -> None:
    """R1, R4: [start, end) is exact to the microsecond, however the server reads its bounds."""
    server.readings = Readings(
        precision=precision,
        start_inclusive=inclusive[0],
        end_inclusive=inclusive[1],
        sort_one=sort_one,
    )
    start, end = START + timedelta(microseconds=500_250), END + timedelta(microseconds=250)
    tick = timedelta(microseconds=1)
    moments = {
        "before": start - tick,
        "start": start,
        "middle": start + timedelta(hours=1),
        "last": end - tick,
        "end": end,
        "second after": end + timedelta(seconds=1),
    }
    for name, moment in moments.items():
        server.mailbox.deliver(date=moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), subject=name)

    manifest = await extract(client, tmp_path, start=start, end=end)

    assert "window=20250601T000000.500250Z_20250602T000000.000250Z" in manifest["path"]
    found = pq.read_table(Path(ObjectStoragePath(manifest["files"][0]["path"]).path))
    assert sorted(found["subject"].to_pylist()) == ["last", "middle", "start"]


@pytest.mark.parametrize(
    "readings",
    [
        Readings(unknown_fields=True),
        Readings(count="page", page_cap=7, ties="random", sort_one="descending"),
        Readings(missing_fields=("Subject", "To", "HasAttachments", "Attachments", "From")),
        Readings(null_fields=("Body", "Cc", "Size", "Labels", "Timestamp", "FolderId")),
        Readings(token_calls=3, expired_at="past"),
        Readings(undated="always"),
    ],
    ids=str,
)
async def test_readings(
    server: Emulator, client: AsyncClient, tmp_path: Path, readings: Readings
) -> None:
    """R1-R5, R12, R20: each message is in the tables once, however the server behaves."""
    ids = deliver(server, 60)
    ids += [server.mailbox.deliver(date=START + timedelta(hours=5)) for _ in range(20)]
    server.readings = readings

    manifest = await extract(client, tmp_path, page_size=25)

    assert sorted(row["message_id"] for row in table(tmp_path)) == sorted(ids)
    assert check(tmp_path)["messages"] == manifest["messages"] == 80
    if readings.unknown_fields:
        assert all(json.loads(row["extra"])["SpamScore"] == 0.5 for row in table(tmp_path))


async def test_repaired_text_is_counted(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """R21: text that no table can hold is mended, and the manifest counts these rows."""
    deliver(server, 3, fields={"Subject": "a\ud83d"})
    deliver(server, 2, subject="a\0b")
    server.mailbox.deliver(date=END, fields={"Subject": "\ud83d"})
    manifest = await extract(client, tmp_path)

    assert manifest["rows_repaired"] == 3
    assert Counter(row["subject"] for row in table(tmp_path)) == {"a\ufffd": 3, "a\0b": 2}


async def test_tables_and_columns(server: Emulator, client: AsyncClient, tmp_path: Path) -> None:
    """Only the given tables and columns are written; recipients don't need columns of messages."""
    deliver(server, 3, to=["a@b.ru"])
    await extract(client, tmp_path, tables=("messages", "recipients"), columns=("date", "subject"))

    assert not (tmp_path / "attachments").exists()
    assert list(table(tmp_path)[0]) == ["date", "subject"]
    assert [row["domain"] for row in table(tmp_path, "recipients")] == ["b.ru"] * 3


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tables": ()}, "tables"),
        ({"tables": ("mail",)}, "mail"),
        ({"columns": ()}, "columns"),
        ({"columns": ("date", "date")}, "columns"),
        ({"columns": ("sender",)}, "sender"),
        ({"page_size": 0}, "page_size"),
        ({"on_bad_message": "ignore"}, "on_bad_message"),
        ({"on_attachment_error": "ignore"}, "on_attachment_error"),
        ({"attachment_pattern": "^("}, "attachment_pattern"),
        ({"criteria": MessageFilter()}, "start and end"),
    ],
)
async def test_jobs_that_cannot_work(
    server: Emulator,
    client: AsyncClient,
    tmp_path: Path,
    options: dict[str, Any],
    error: str,
) -> None:
    """A wrong parameter is an error before any request is sent or anything is written."""
    with pytest.raises(R7MailConfigError, match=error):
        await extract(client, tmp_path, **options)

    assert server.requests == []
    assert files(tmp_path) == {}


# -- faults ---------------------------------------------------------------------------------

FAULTS = [
    Fault("Messages", kind="reset"),
    Fault("Messages", kind="truncate"),
    Fault("Messages", kind="truncate", chunked=True),
    Fault("Messages", kind="bad_json"),
    Fault("Messages", status=500),
    Fault("Messages", status=502, body="<html>Bad Gateway</html>"),
    Fault("Messages", status=503),
    Fault("Messages", status=429),
    Fault("Messages", status=429, headers={"Retry-After": "0"}),
    Fault("Messages", kind="slow", seconds=0.3, trickle=True),
    Fault("Messages", kind="hang", seconds=0.1),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.kind}-{f.status}")
async def test_a_fault_costs_that_page_only(
    server: Emulator, client: AsyncClient, tmp_path: Path, fault: Fault
) -> None:
    """R16: after a fault only that page is requested again; nothing is lost or duplicated."""
    ids = deliver(server, 100)
    await extract(client, tmp_path, page_size=20)  # finds out what server it is
    server.requests.clear()
    await extract(client, tmp_path, page_size=20)
    calm, server.requests[:] = calls(server), []
    server.faults.append(Fault(**{**vars(fault), "skip": 2}))

    manifest = await extract(client, tmp_path, page_size=20)

    assert sorted(row["message_id"] for row in table(tmp_path)) == ids
    assert calls(server) == calm + (fault.kind != "slow")
    assert manifest["retries"] == (fault.kind != "slow")
    assert len(server.faults) == 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS[:7], ids=lambda f: f"{f.kind}-{f.status}")
async def test_a_page_that_keeps_failing(
    server: Emulator, client: AsyncClient, tmp_path: Path, fault: Fault
) -> None:
    """The error names window and offset, and the earlier result is unchanged."""
    deliver(server, 100)
    await extract(client, tmp_path, page_size=20)
    before = files(tmp_path)
    server.faults.append(Fault(**{**vars(fault), "skip": 2, "times": None}))

    with pytest.raises(R7MailExtractError, match=r"20250601T000000Z_20250602T000000Z.* offset \d+"):
        await extract(client, tmp_path, page_size=20)

    assert files(tmp_path) == before


async def test_a_server_that_ignores_dates(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """R29: where dates are ignored, the folder is read whole, up to a limit; else it's an error."""
    ids = deliver(server, 3)
    server.mailbox.deliver(date=START - timedelta(days=30))
    server.readings = Readings(ignore_dates=True)

    with pytest.raises(R7MailExtractError, match=r"ignores StartDate.*more than 3 messages"):
        await extract(client, tmp_path, max_sweep_messages=3)
    assert files(tmp_path) == {}

    manifest = await extract(client, tmp_path)
    assert sorted(row["message_id"] for row in table(tmp_path)) == ids
    assert manifest["readings"]["bounds"] == "ignored"


class _Liar(BaseHTTPRequestHandler):
    """A mail server that counts more messages than it lists.

    `counts` has its counts during and after each reading of the window; the last pair stays.
    """

    counts: list[tuple[int | None, int]]

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("Login"):
            answer: Any = {"Response": {"Data": {"Tokens": {"AuthToken": "t"}, "State": "Login"}}}
        else:
            listed = [{"Id": n, "Date": f"2025-06-01T0{n}:00:00Z"} for n in range(1, 4)]
            low = asked["SearchContext"]["StartDate"]
            items = [item for item in listed if item["Date"] >= low][asked["offset"] :]
            items = items[: asked["size"]]
            answer = {"FolderId": 0, "Items": items, "UnreadCount": 0}
            after = asked["size"] == 2  # the question that follows each reading
            answer["Count"] = self.counts[0][after]
            if after and len(self.counts) > 1:
                self.counts.pop(0)
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Log nothing."""


@pytest.fixture
def liar() -> Iterator[tuple[type[_Liar], str]]:
    """The handler and the URL of a server with given counts."""
    handler = type("Handler", (_Liar,), {"counts": [(3, 3)]})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("counts", "whole"),
    [
        ([(3, 3)], True),
        ([(1, 1)], True),  # of the page, or of something unknown
        ([(0, 0)], True),
        ([(5, 5)], False),  # each time: messages are hidden
        ([(5, 6)], False),  # one arrived meanwhile, which doesn't explain two hidden ones
        ([(5, 6), (6, 7), (6, 6)], False),
        ([(None, 5)], True),  # the first answer has no Count: nothing to compare with
        ([(4, 3)], True),  # one left
        ([(3, 4)], True),  # one arrived at a place already passed
    ],
)
async def test_reconciliation(
    liar: tuple[type[_Liar], str], tmp_path: Path, counts: list[tuple[int | None, int]], whole: bool
) -> None:
    """R2, R6: mail that arrives or leaves explains a difference, but not a permanent one."""
    handler, url = liar
    handler.counts = list(counts)
    settings = ClientConfig(url=url, login="user_test", password="p", backoff=0.001)
    async with AsyncClient(settings) as client:
        if whole:
            assert (await extract(client, tmp_path))["messages"] == 3
        else:
            with pytest.raises(R7MailExtractError, match=r"counts \d messages, but lists only 3"):
                await extract(client, tmp_path)
            assert files(tmp_path) == {}


@pytest.mark.slow
async def test_steady_coming_and_going_is_no_error(server: Emulator, tmp_path: Path) -> None:
    """R6: it's no error if mail keeps leaving unread and arriving where all was read."""
    there = set(deliver(server, 300))
    box = server.mailbox
    server.readings = Readings(sort_one="ascending")

    def change(_: Any) -> None:
        if len(server.requests) % 6 == 0:
            newest = max(box.messages(INBOX), key=lambda message: message["Date"])
            box.delete(INBOX, [newest["Id"]])
            box.deliver(date=START)

    server.on_request = change
    async with AsyncClient(quick_config(server.url)) as client:
        await extract(client, tmp_path, page_size=20)
    stayed = there & {message["Id"] for message in box.messages(INBOX)}
    assert stayed
    assert stayed <= {row["message_id"] for row in table(tmp_path)}


@pytest.mark.parametrize("concurrency", [1, 4, 8])
@pytest.mark.parametrize("spread", ["even", "one of ten years", "office hours"])
@pytest.mark.slow
async def test_few_requests(
    server: Emulator, tmp_path: Path, concurrency: int, spread: str
) -> None:
    """A calm folder costs at most 1.1 requests per page plus a dozen."""
    start, days = START, 1
    if spread == "one of ten years":
        start, days = START - timedelta(days=3000), 3650
    if spread == "office hours":
        days = 8
        for day in range(days):
            for number in range(250):
                moment = START + timedelta(days=day, hours=9, minutes=number * 2)
                server.mailbox.deliver(date=moment)
    else:
        deliver(server, 2000)
    async with AsyncClient(quick_config(server.url, max_concurrency=concurrency)) as client:
        window = {"start": start, "end": start + timedelta(days=days)}
        manifest = await extract(client, tmp_path, page_size=100, **window)
    assert manifest["messages"] == 2000
    assert calls(server, "Messages") <= 1.1 * 2000 / 100 + 12


# -- messages that don't fit the tables -----------------------------------------------------


@pytest.mark.parametrize("on_bad_message", ["fail", "quarantine"])
async def test_bad_messages(
    server: Emulator, client: AsyncClient, tmp_path: Path, on_bad_message: Any
) -> None:
    """R20: bad messages go to `_quarantine.jsonl` with the reason, and fail the task."""
    good = deliver(server, 50)
    undated = server.mailbox.deliver(date="0001-01-01T00:00:00", subject="a\ud83d")
    garbled = server.mailbox.deliver(fields={"Date": "soon"})
    lost = server.mailbox.deliver(date=START, fields={"Id": "none"})
    nameless = server.mailbox.deliver(date=START, fields={"Id": MISSING, "Subject": "x"})
    server.readings = Readings(undated="always")
    assert lost != nameless

    if on_bad_message == "fail":
        with pytest.raises(R7MailBadMessageError, match=f"{undated}: Date is .NET's") as caught:
            await extract(client, tmp_path, page_size=20)
        assert "Messages that don't fit the tables: 4 (" in str(caught.value)
    else:
        await extract(client, tmp_path, page_size=20, on_bad_message="quarantine")

    manifest = check(tmp_path)
    text = (tmp_path / "messages" / WINDOW / "_quarantine.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert (manifest["messages"], manifest["quarantined"], len(lines)) == (50, 4, 4)
    assert Counter(line["message_id"] for line in lines) == {undated: 1, garbled: 1, None: 2}
    assert all(line["reason"] and line["message"] for line in lines)
    assert sorted(row["message_id"] for row in table(tmp_path)) == good


@pytest.mark.slow
@pytest.mark.parametrize(
    ("renamed", "reason"),
    [
        ({"Id": "Key", "Date": "SentAt"}, "unknown fields: Key, SentAt"),
        ({"Id": "MessageId"}, "Id is missing"),
        ({"Date": "Received"}, "Date is missing"),
    ],
)
@pytest.mark.parametrize("size", [1, 40])
async def test_a_server_that_renames_the_fields_of_messages(
    server: Emulator, client: AsyncClient, tmp_path: Path, renamed: Any, reason: str, size: int
) -> None:
    """If no message can be read, nothing is published, and the earlier window stays."""
    deliver(server, size)
    await extract(client, tmp_path)
    before = files(tmp_path)
    upgraded = Mailbox()
    for message in server.mailbox.messages(INBOX):
        fields = {new: message[old] for old, new in renamed.items()}
        upgraded.deliver(date=START, fields=fields | dict.fromkeys(renamed, MISSING))

    with Emulator(upgraded, Readings(undated="always")) as other:
        async with AsyncClient(quick_config(other.url)) as reader:
            with pytest.raises(R7MailExtractError, match=reason):
                await extract(reader, tmp_path, on_bad_message="quarantine")
    assert files(tmp_path) == before


async def test_a_server_that_gives_all_messages_one_id(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """Messages with one Id and different dates aren't taken for one that is listed twice."""
    deliver(server, 3)
    await extract(client, tmp_path)
    before = files(tmp_path)
    rows = [{**message, "Id": 0} for message in server.mailbox.messages(INBOX)]
    answer = {"FolderId": 0, "Items": rows, "Count": 3, "UnreadCount": 0}
    server.faults.append(Fault("Messages", None, kind="answer", answer=answer))

    with pytest.raises(R7MailExtractError, match="different dates under one Id"):
        await extract(client, tmp_path)
    assert files(tmp_path) == before


async def test_a_message_without_an_id_that_changes_meanwhile(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """R20: a message with a bad Id is set aside once, even if its state changes meanwhile."""
    box = server.mailbox
    box.deliver(date=START)
    numbers = [
        box.deliver(date=START + timedelta(seconds=n), subject=f"{n}", fields={"Id": 2**70 + n})
        for n in range(4)
    ]

    def change(_: Any) -> None:
        box.mark_read(INBOX, numbers, len(server.requests) % 2 == 0)

    server.on_request = change
    manifest = await extract(client, tmp_path, page_size=2, on_bad_message="quarantine")

    lines = (tmp_path / "messages" / WINDOW / "_quarantine.jsonl").read_text().splitlines()
    assert len(lines) == manifest["quarantined"] == 4


async def test_attachments_with_the_tables(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """Files are copied and recorded in the attachments table; a rerun keeps them."""
    same = [("same", b"1", "x/y"), ("same", b"2", "x/y")]
    number = server.mailbox.deliver(
        date=START, attachments=[("a.csv", b"abc", "text/csv"), ("b.exe", b"x", "x/y"), *same]
    )
    deliver(server, 5, attachments=[("Отчёт?.pdf", b"pdf", "x/y")])
    options = {
        "attachments": ObjectStoragePath(f"file://{tmp_path}/files"),
        "attachment_pattern": "^(?!b.exe)",
    }
    manifest = await extract(client, tmp_path, **options)
    rows = table(tmp_path, "attachments")

    wanted = {"downloaded": 6, "skipped": 1, "ambiguous": 2}
    assert manifest["attachments"] == Counter(row["status"] for row in rows) == wanted
    row = next(row for row in rows if row["file_name"] == "a.csv")
    assert row["uri"] == (
        f"file://{tmp_path}/files/mailbox=user_test/folder=24/message_id={number}/a.csv"
    )
    assert row["sha256"] == hashlib.sha256(b"abc").hexdigest()
    for row in rows:
        if row["uri"]:
            assert hashlib.sha256(Path(row["uri"][7:]).read_bytes()).hexdigest() == row["sha256"]

    server.requests.clear()
    again = await extract(client, tmp_path, **options)
    assert again["attachments"] == {"unchanged": 6, "skipped": 1, "ambiguous": 2}
    assert calls(server, "Attachments") == 0
    assert table(tmp_path, "attachments")[0]["sha256"]


async def test_a_rerun_with_a_meaningless_listed_size(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """A file listed with a size of 0 or less isn't downloaded again either."""
    for size in (0, -1):
        file = {"Id": 1, "FileId": 1, "FileName": "a.csv", "Size": size, "MimeType": "text/csv"}
        server.mailbox.deliver(
            date=START,
            attachments=[("a.csv", b"abc", "text/csv")],
            fields={"Attachments": [file]},
        )
    options = {"attachments": ObjectStoragePath(f"file://{tmp_path}/files")}
    first = await extract(client, tmp_path, **options)
    again = await extract(client, tmp_path, **options)

    assert first["attachments"] == {"downloaded": 2}
    assert again["attachments"] == {"unchanged": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reading", "fit"),
    [
        ("bytes", "equal"),
        ("base64", "encoded"),
        ("base64_lines", "encoded"),
        ("rounded", "rounded"),
    ],
)
async def test_listed_sizes(
    server: Emulator, client: AsyncClient, tmp_path: Path, reading: Any, fit: str
) -> None:
    """R26: attachments are copied whatever their listed size means, and both sizes are recorded."""
    server.readings = Readings(attachment_size=reading)
    server.mailbox.deliver(date=START, attachments=[("a.csv", bytes(1_500), "text/csv")])
    options = {"attachments": ObjectStoragePath(f"file://{tmp_path}/files")}
    manifest = await extract(client, tmp_path, **options)
    again = await extract(client, tmp_path, **options, on_size_mismatch="fail")

    assert (manifest["attachments"], again["attachments"]) == ({"downloaded": 1}, {"unchanged": 1})
    assert manifest["listed_sizes"] == again["listed_sizes"] == {fit: 1}
    [row] = table(tmp_path, "attachments")
    listed = {"bytes": 1_500, "base64": 2_000, "base64_lines": 2_054, "rounded": 2_048}
    assert (row["size"], row["listed_size"]) == (1_500, listed[reading])


async def test_a_listed_size_that_fits_nothing(
    server: Emulator, client: AsyncClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """R26: a file of another size than listed is kept, counted and logged, or fails if asked."""
    file = {"Id": 1, "FileId": 1, "FileName": "a.csv", "Size": 7, "MimeType": "text/csv"}
    attached = [("a.csv", b"abc", "text/csv")]
    server.mailbox.deliver(date=START, attachments=attached, fields={"Attachments": [file]})
    options = {"attachments": ObjectStoragePath(f"file://{tmp_path}/files")}
    manifest = await extract(client, tmp_path, **options)

    assert manifest["listed_sizes"] == {"different": 1}
    assert "another size than listed (R26), although they came whole: 1." in caplog.text
    assert (await extract(client, tmp_path, **options))["attachments"] == {"unchanged": 1}
    with pytest.raises(R7MailAttachmentError, match="3 bytes came, the listing says 7"):
        await extract(client, tmp_path, **options, on_size_mismatch="fail")
    with pytest.raises(R7MailConfigError, match="on_size_mismatch: 'ignore'"):
        await extract(client, tmp_path, **options, on_size_mismatch="ignore")


async def test_tables_of_an_earlier_version(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """A window written before `listed_size` existed keeps its files, without downloads."""
    deliver(server, 3, attachments=[("a.csv", b"abc", "text/csv")])
    options = {"attachments": ObjectStoragePath(f"file://{tmp_path}/files")}
    await extract(client, tmp_path, **options)
    path = tmp_path / "attachments" / WINDOW / "part-00000.parquet"
    pq.write_table(pq.ParquetFile(path).read().drop_columns(["listed_size"]), path)

    assert (await extract(client, tmp_path, **options))["attachments"] == {"unchanged": 3}


async def test_a_window_that_is_read_again_downloads_its_files_once(
    server: Emulator, client: AsyncClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If changing mail makes it read a window twice, its files are downloaded once."""
    deliver(server, 60, attachments=[("a.csv", b"abc", "text/csv")])
    box = server.mailbox
    server.readings = Readings(sort_one="ascending")
    changed: list[int] = []

    def change(_: Any) -> None:
        if not changed and calls(server, "Messages") == 6:
            changed.append(max(box.messages(INBOX), key=lambda message: message["Date"])["Id"])
            box.delete(INBOX, changed)
            box.deliver(date=START)

    server.on_request = change
    options = {"attachments": ObjectStoragePath(f"file://{tmp_path}/files")}
    manifest = await extract(client, tmp_path, page_size=10, **options)

    assert "reading 1 of 3" in caplog.text
    assert manifest["attachments"] == {"downloaded": 59}
    assert calls(server, "Attachments") == 59


async def test_a_rerun_with_other_tables(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """No manifest lists files that a later run replaced, and no old quarantine file stays."""
    server.readings = Readings(undated="always")
    ids = deliver(server, 1, fields={"Date": None})
    deliver(server, 5)
    await extract(client, tmp_path, on_bad_message="quarantine")
    server.mailbox.delete(INBOX, ids)
    deliver(server, 1)
    await extract(client, tmp_path, tables=("recipients", "messages"))

    assert not (tmp_path / "attachments" / WINDOW / "_manifest.json").exists()
    assert (tmp_path / "attachments" / WINDOW / "part-00000.parquet").exists()
    assert (tmp_path / "recipients" / WINDOW / "_manifest.json").exists()
    assert not list(tmp_path.rglob("_quarantine.jsonl"))

    await extract(client, tmp_path, tables=("attachments",))
    assert (tmp_path / "recipients" / WINDOW / "_manifest.json").exists()


async def test_unlisted_attachments(
    server: Emulator, client: AsyncClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """R17: a message whose files the listing doesn't name is reported, not ignored."""
    ids = deliver(server, 2, attachments=[("a", b"x", "x/y")])
    server.readings = Readings(list_attachments=False)
    root = ObjectStoragePath(f"file://{tmp_path}/files")
    manifest = await extract(client, tmp_path, attachments=root)

    assert manifest["attachments"] == {"unlisted": 2}
    assert sorted(row["message_id"] for row in table(tmp_path, "attachments")) == ids
    assert f"message {ids[0]}: HasAttachments is true" in caplog.text


@pytest.mark.parametrize("names", ["null", "empty"])
async def test_attachments_without_a_name(
    server: Emulator, client: AsyncClient, tmp_path: Path, names: Any
) -> None:
    """R38: an attached message without a name is `unlisted`, which fails a task only if asked."""
    nested = ("Re: hello.eml", b"Subject: hello", "message/rfc822")
    server.mailbox.deliver(date=START, attachments=[("a.csv", b"abc", "text/csv"), nested])
    server.readings = Readings(nested_names=names)
    options: dict[str, Any] = {"attachments": ObjectStoragePath(f"file://{tmp_path}/files")}
    manifest = await extract(client, tmp_path, **options)

    assert manifest["attachments"] == {"downloaded": 1, "unlisted": 1}
    [row] = [row for row in table(tmp_path, "attachments") if row["status"] == "unlisted"]
    assert "no FileName" in row["error"]
    assert row["mime_type"] == "message/rfc822"
    assert calls(server, "Attachments") == 1
    with pytest.raises(R7MailAttachmentError, match="Attachments not copied: 1 of 2 "):
        await extract(client, tmp_path, **options, on_attachment_error="fail_on_missing")


@pytest.mark.parametrize("on_attachment_error", ["fail", "record"])
async def test_a_failed_attachment(
    server: Emulator, client: AsyncClient, tmp_path: Path, on_attachment_error: Any
) -> None:
    """One failed file doesn't lose the others; the next run downloads only that one."""
    ids = deliver(server, 8, attachments=[("a", b"x", "x/y")])
    server.faults.append(Fault("Attachments", skip=1))
    options: dict[str, Any] = {
        "attachments": ObjectStoragePath(f"file://{tmp_path}/files"),
        "on_attachment_error": on_attachment_error,
    }
    async with AsyncClient(quick_config(server.url, max_retries=0)) as impatient:
        if on_attachment_error == "fail":
            with pytest.raises(R7MailAttachmentError, match="Attachments not copied: 1 of 8 "):
                await extract(impatient, tmp_path, **options)
        else:
            await extract(impatient, tmp_path, **options)

    assert check(tmp_path)["attachments"] == {"downloaded": 7, "failed": 1}
    failed = [row for row in table(tmp_path, "attachments") if row["status"] == "failed"]
    assert failed[0]["message_id"] in ids
    assert "500" in failed[0]["error"]
    server.requests.clear()
    manifest = await extract(client, tmp_path, **options)
    assert manifest["attachments"] == {"unchanged": 7, "downloaded": 1}
    assert manifest["attachment_bytes"] == 1
    assert calls(server, "Attachments") == 1


async def test_copying_without_tables(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """Files of given messages are copied without tables, odd ones too; a missing id is an error."""
    odd = [
        {"FileName": 5, "Size": "many"},
        {"FileName": "a", "Size": "1", "New": 1},
        {"FileName": None},
    ]
    one = server.mailbox.deliver(
        attachments=[("a", b"x", "x/y")], fields={"Attachments": odd, "HasAttachments": True}
    )
    two = server.mailbox.deliver(attachments=[("b", b"y", "x/y")])
    root = ObjectStoragePath(f"file://{tmp_path}")
    every = MessageFilter()

    rows = await copy_attachments(client, INBOX, every, root, message_ids=[one], max_bytes=10)

    assert [(row.file_name, row.status) for row in rows] == [
        ("5", "failed"),
        ("a", "downloaded"),
        (None, "unlisted"),
    ]
    with pytest.raises(R7MailMessageNotFoundError, match="999"):
        await copy_attachments(client, INBOX, every, root, message_ids=[two, 999])
    assert "b" not in {Path(name).name for name in files(tmp_path)}
    for status in ("downloaded", "unchanged"):
        rows = await copy_attachments(client, INBOX, every, root, message_ids=[two])
        assert [row.status for row in rows] == [status]
    assert calls(server, "Attachments") == 3


async def test_copying_fetches_only_what_is_new(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """With different ids, filters and patterns in turn, no file is downloaded twice."""
    ids = [server.mailbox.deliver(attachments=[("a", b"x", "x/y")]) for _ in range(5)]
    server.mailbox.deliver(attachments=[("b.csv", b"y", "x/y"), ("c.txt", b"z", "x/y")])
    root = ObjectStoragePath(f"file://{tmp_path}")
    copy = partial(copy_attachments, client, INBOX, MessageFilter(), root)

    await copy(message_ids=ids[:3])
    await copy(message_ids=ids[1:])
    assert calls(server, "Attachments") == 5
    for _ in range(2):
        await copy(pattern="*.csv")
        await copy(pattern="*.txt")
    assert calls(server, "Attachments") == 7
    assert Counter(row.status for row in await copy()) == {"unchanged": 7}


async def test_copying_to_an_unwritable_place(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """A file in place of the folder is an error that names it, before any download."""
    server.mailbox.deliver(attachments=[("a", b"x", "x/y")])
    (tmp_path / "root").touch()
    root = ObjectStoragePath(f"file://{tmp_path}/root")
    with pytest.raises(R7MailConfigError, match="root: can't be written"):
        await copy_attachments(client, INBOX, MessageFilter(), root)
    assert calls(server, "Attachments") == 0


@pytest.mark.slow
async def test_a_stopped_extract_leaves_nothing_unfinished(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """A task stopped at any moment leaves complete attachments and no staged file."""
    data = random.Random(4).randbytes(2_500_000)
    deliver(server, 4, attachments=[("a", data, "x/y")])
    root = ObjectStoragePath(f"file://{tmp_path}/files")
    for turn in range(12):
        extracting = asyncio.ensure_future(extract(client, tmp_path, attachments=root))
        await asyncio.sleep(turn * 0.008)
        extracting.cancel()
        with suppress(asyncio.CancelledError):
            await extracting
        left = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert not [path for path in left if "_staged" in str(path)]
        assert all(path.read_bytes() == data for path in left if path.name == "a")


# -- stores ---------------------------------------------------------------------------------


def extract_in_child(url: str, root: str, limit: int = 0, times: int = 1) -> None:
    """Extract the day in a separate process."""
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    async def run() -> None:
        async with AsyncClient(config(url)) as client:
            for _ in range(times):
                await extract(client, Path(root))

    if limit:
        with pytest.raises(R7MailPublishError, match="can't be written"):
            asyncio.run(run())
        raise SystemExit(3)
    asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize("limit", [3_000, 20_000, 100_000])
def test_a_full_disk(server: Emulator, tmp_path: Path, limit: int) -> None:
    """A disk that fills up is a clear error, and the earlier result is unchanged."""
    deliver(server, 20)
    arguments = (server.url, str(tmp_path))
    extract_in_child(*arguments)
    before = files(tmp_path)
    for body in noise(20, 9_000):
        deliver(server, 1, body=body)
    codes = run_children(extract_in_child, (*arguments, limit))

    assert codes == [3]
    assert files(tmp_path) == before
    check(tmp_path)


@pytest.mark.slow
def test_runs_at_once(server: Emulator, tmp_path: Path) -> None:
    """Several processes that run the same window at once leave one complete result."""
    deliver(server, 30)
    arguments = (server.url, str(tmp_path), 0, 15)

    assert run_children(extract_in_child, *[arguments] * 3) == [0, 0, 0]
    assert check(tmp_path)["messages"] == 30
    assert len(files(tmp_path)) == 6


async def test_a_lock_that_does_not_suffice(
    server: Emulator, client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk, too, a run finds out that another one published meanwhile: no mixture is left."""
    monkeypatch.setattr(locks, "LOCK_SECONDS", 1e-9)  # every lock is taken over at once
    monkeypatch.setattr(locks, "MAX_WAITS", 1e12)
    deliver(server, 10)
    replace = os.replace
    begun: list[str | Path] = []

    async def run_another() -> None:
        async with AsyncClient(quick_config(server.url)) as another:
            await extract(another, tmp_path)

    def interrupt(temporary: str | Path, target: str | Path) -> None:
        if not begun and str(target).endswith(f"messages/{WINDOW}/part-00000.parquet"):
            begun.append(target)
            asyncio.run(run_another())
        replace(temporary, target)

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(R7MailPublishError, match="another run of this window"):
        await extract(client, tmp_path)
    assert published(files(tmp_path), f"file://{tmp_path}") is None
    assert await extract(client, tmp_path) == check(tmp_path)


async def test_an_unwritable_output(server: Emulator, client: AsyncClient, tmp_path: Path) -> None:
    """An unwritable output is an error before any page is read."""
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(R7MailConfigError, match="can't be written"):
        await extract(client, tmp_path / "file" / "tables")
    assert calls(server) == 0


class Place:
    """A place in an empty bucket, which the connection `s3_pipeline` leads to."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.root = f"s3://s3_pipeline@{bucket.name}/lake"

    def objects(self) -> dict[str, bytes]:
        """Return all objects by their keys below the root; none is elsewhere."""
        return {
            key.removeprefix("lake/"): data
            for key, data in self.bucket.objects().items()
            if key.startswith("lake/") or pytest.fail(key)
        }

    def check(self) -> dict[str, Any] | None:
        """Check that the window's objects match its manifest; None if it has none."""
        return published(self.objects(), f"s3://{self.bucket.name}/lake")


@pytest.fixture
def place(s3_url: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """An empty bucket on S3."""
    connect_s3(monkeypatch, "s3_pipeline", s3_url)
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:20]
    found = Place(Bucket(s3_url, name))
    _ = ObjectStoragePath(found.root).fs  # Airflow can't make it while an event loop runs
    return found


async def test_s3(server: Emulator, client: AsyncClient, place: Place) -> None:
    """On S3, windows and attachments of any size are complete, and replaced completely."""
    data = random.Random(2).randbytes(18 << 20)
    deliver(server, 3, attachments=[("a.csv", b"abc", "text/csv")])
    options = {"attachments": ObjectStoragePath(f"{place.root}/files")}
    await extract(client, place.root, **options)
    first = place.check()
    for body in noise(16, 500_000):
        server.mailbox.deliver(date=START, body=body, html_body="-")
    number = server.mailbox.deliver(date=START, attachments=[("b.bin", data, "x/y")])

    manifest = await extract(client, place.root, **options)

    assert first is not None
    assert first["messages"] == 3
    assert place.check() == manifest
    assert manifest["files"][0]["bytes"] > 16 << 20
    assert manifest["attachments"] == {"unchanged": 3, "downloaded": 1}
    assert place.objects()[f"files/mailbox=user_test/folder=24/message_id={number}/b.bin"] == data
    assert len(place.objects()) == 6 + 4


async def test_addresses_on_s3(
    server: Emulator,
    client: AsyncClient,
    place: Place,
    s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tables and manifests have addresses that every tool can open, without Airflow's connection.

    If the connection is renamed, or the table is one of an earlier version, whose addresses have
    the connection in them, no file is fetched again.
    """
    deliver(server, 3, attachments=[("a.csv", b"abc", "text/csv")])
    bucket = place.bucket.name
    renamed = f"s3://s3_renamed@{bucket}/lake"
    connect_s3(monkeypatch, "s3_renamed", s3_url)
    await asyncio.to_thread(lambda: ObjectStoragePath(renamed).fs)

    async def run(root: str) -> tuple[dict[str, Any], list[str]]:
        manifest = await extract(client, root, attachments=ObjectStoragePath(f"{root}/files"))
        part = manifest["files"][2]["path"].removeprefix("s3://")
        rows = pq.read_table(pa.BufferReader(ObjectStoragePath(root).fs.cat_file(part)))
        return manifest, rows["uri"].to_pylist()

    first, uris = await run(place.root)
    again, same = await run(renamed)

    assert first["attachments"] == {"downloaded": 3}
    assert again["attachments"] == {"unchanged": 3}
    assert same == uris
    assert all(uri.startswith(f"s3://{bucket}/lake/files/mailbox=") for uri in uris)
    assert first["path"] == f"s3://{bucket}/lake/messages/{WINDOW}"

    part = ObjectStoragePath(renamed) / "attachments" / WINDOW / "part-00000.parquet"
    old = pq.read_table(pa.BufferReader(part.fs.cat_file(part.path)))
    column = old.schema.get_field_index("uri")
    with_id = pa.array([uri.replace("s3://", "s3://s3_old@") for uri in uris])
    sink = pa.BufferOutputStream()
    pq.write_table(old.set_column(column, old.field(column), with_id), sink)
    part.fs.pipe_file(part.path, sink.getvalue().to_pybytes())
    later, mended = await run(place.root)

    assert later["attachments"] == {"unchanged": 3}
    assert mended == uris


async def test_s3_after_an_error(server: Emulator, client: AsyncClient, place: Place) -> None:
    """On S3, too, a page that can't be read leaves the earlier result, and no part of a new one."""
    deliver(server, 100)
    await extract(client, place.root, page_size=20)
    before = place.objects()
    server.faults.append(Fault("Messages", times=None, skip=3))

    with pytest.raises(R7MailExtractError):
        await extract(client, place.root, page_size=20)
    assert place.objects() == before


async def test_s3_that_refuses_checksums(
    server: Emulator, client: AsyncClient, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that stops to take checksums is an error that leaves the earlier result."""
    deliver(server, 3)
    await extract(client, place.root)
    before = place.objects()
    fs = ObjectStoragePath(place.root).fs
    arguments = fs._get_s3_method_kwargs

    def refuse(method: Any, *more: Any, **values: Any) -> Any:
        if "ChecksumSHA256" in values:
            raise OSError("not implemented")
        return arguments(method, *more, **values)

    monkeypatch.setattr(fs, "_get_s3_method_kwargs", refuse)
    with pytest.raises(R7MailPublishError, match="An earlier result is unchanged"):
        await extract(client, place.root)
    assert place.objects() == before


async def test_s3_without_the_bucket(server: Emulator, client: AsyncClient, place: Place) -> None:
    """A missing bucket is a clear error."""
    deliver(server, 3)
    with pytest.raises(R7MailExtractError, match="bucket"):
        await extract(client, "s3://s3_pipeline@no-such-bucket/lake")
    assert place.objects() == {}


async def test_s3_runs_at_once(server: Emulator, place: Place) -> None:
    """Concurrent runs of a window on S3 wait for each other to publish: one complete result."""
    deliver(server, 10)
    for _ in range(4):
        async with (
            AsyncClient(quick_config(server.url)) as one,
            AsyncClient(quick_config(server.url)) as two,
            AsyncClient(quick_config(server.url)) as three,
        ):
            results = await asyncio.gather(
                *(extract(client, place.root) for client in (one, two, three))
            )
        assert place.check() in results
        assert len(place.objects()) == 6  # no lock is left
