"""One window, from the server into its tables: true to its manifest, whole, or not there."""

# ruff: noqa: TID253, ASYNC240 - no DAG file is read here; looking at a few small files may block

from __future__ import annotations

import asyncio
import hashlib
import json
import multiprocessing
import random
import resource
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_r7mail.client import AsyncClient, ClientConfig
from airflow_provider_r7mail.compat import ObjectStoragePath
from airflow_provider_r7mail.emulator import MISSING, Emulator, Fault, Readings
from airflow_provider_r7mail.exceptions import (
    R7MailAttachmentError,
    R7MailBadMessageError,
    R7MailConfigError,
    R7MailExtractError,
    R7MailMessageNotFoundError,
    R7MailPublishError,
)
from airflow_provider_r7mail.models import MessageFilter
from airflow_provider_r7mail.pipeline import ExtractJob, copy_attachments, extract_window
from tests.s3 import S3Server

# Not `fork`: Python warns of it where there are threads, as the mail server's. The modules are
# those that children need: imported once, in the process that they are forked from.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(
    [
        "airflow_provider_r7mail.compat",
        "airflow.sdk.io.path",
        "airflow_provider_r7mail.emulator.app",
        "airflow_provider_r7mail.pipeline",
        "boto3",
        "hypothesis",
        "airflow_provider_r7mail.transport",
        "moto.server",
        "pyarrow.parquet",
        "pytest",
    ]
)
INBOX = 24
START = datetime(2025, 6, 1, tzinfo=UTC)
END = START + timedelta(days=1)
WINDOW = "mailbox=user_test/folder=24/window=20250601T000000Z_20250602T000000Z"
TABLES = ("messages", "recipients", "attachments")


def config(server: Emulator, **options: Any) -> ClientConfig:
    """A client's configuration for the server."""
    box = server.mailbox
    given = {"max_retries": 2, "backoff": 0.001, "timeout": 5.0, **options}
    return ClientConfig(url=server.url, login=box.login, password=box.password, **given)


@pytest.fixture
async def client(server: Emulator) -> AsyncIterator[AsyncClient]:
    """An async client of the server."""
    async with AsyncClient(config(server)) as opened:
        yield opened


def job(
    root: Path | str, start: datetime = START, end: datetime = END, **options: Any
) -> ExtractJob:
    """What to extract: a day of the inbox."""
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
    """Put messages of the day into the inbox."""
    step = timedelta(days=1) / max(count, 1)
    return [
        server.mailbox.deliver(**{"date": START + step * n, "subject": f"№ {n}", **fields})
        for n in range(count)
    ]


def check(root: Path) -> dict[str, Any]:
    """See that a window's files are those of its manifest, and no others; return it."""
    home = root / "messages" / WINDOW
    manifest: dict[str, Any] = json.loads((home / "_manifest.json").read_text())
    runs = set()
    for file in manifest["files"]:
        path = Path(ObjectStoragePath(file["path"]).path)
        assert path == root / file["table"] / WINDOW / "part-00000.parquet"
        data = path.read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
        metadata = pq.read_metadata(path)
        assert metadata.num_rows == file["rows"]
        runs.add(metadata.metadata[b"r7mail.run_id"].decode())
        assert (path.parent / "_manifest.json").read_bytes() == (
            home / "_manifest.json"
        ).read_bytes()
    assert runs == {manifest["run_id"]}
    return manifest


def files(root: Path) -> dict[str, bytes]:
    """Everything under a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def table(root: Path, name: str = "messages") -> list[dict[str, Any]]:
    """A table's rows."""
    rows: list[dict[str, Any]] = pq.read_table(
        root / name / WINDOW / "part-00000.parquet"
    ).to_pylist()
    return rows


def noise(count: int, length: int) -> Iterator[str]:
    """Texts that can't be compressed much."""
    source = random.Random(1)
    for _ in range(count):
        yield source.randbytes(length * 2).decode("utf-16-le", "replace")


def calls(server: Emulator, name: str = "Messages") -> int:
    """How many calls of an endpoint the server saw."""
    return sum(request["path"].endswith(name) for request in server.requests)


# -- what is written ------------------------------------------------------------------------


async def test_the_manifest_is_complete_and_true(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """`_manifest.json` lists each file with rows, bytes and sha256, and the run's numbers."""
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
    assert [manifest[name] for name in numbers] == [232, 0, 2, 1, 0, 1]
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
    """A client that extracts several windows does not add the first one's numbers to the second."""
    deliver(server, 30)
    await extract(client, tmp_path)
    seen = len(server.requests)
    manifest = await extract(client, tmp_path)

    assert manifest["requests"] == len(server.requests) - seen
    assert manifest["logins"] == 0


async def test_a_rerun_replaces(server: Emulator, client: AsyncClient, tmp_path: Path) -> None:
    """Running a window again gives what is there now: nothing is added to the earlier result."""
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
    """A window without mail leaves a manifest and no rows, with the same columns as ever."""
    server.mailbox.deliver(date=END)
    manifest = await extract(client, tmp_path)

    assert [file["rows"] for file in check(tmp_path)["files"]] == [0, 0, 0]
    assert manifest["messages"] == 0
    assert len(pq.read_schema(tmp_path / "messages" / WINDOW / "part-00000.parquet")) == 44


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
    """R1, R4: [start, end) is exact to the microsecond, whatever the server makes of its bounds."""
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
    """R1-R5, R12, R20: the tables have each message once, whatever the server's manners."""
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
    """R21: rows with text that no table holds are mended, and the manifest says how many."""
    deliver(server, 3, fields={"Subject": "a\ud83d"})
    deliver(server, 2, subject="a\0b")
    server.mailbox.deliver(date=END, fields={"Subject": "\ud83d"})
    manifest = await extract(client, tmp_path)

    assert manifest["rows_repaired"] == 3
    assert Counter(row["subject"] for row in table(tmp_path)) == {"a\ufffd": 3, "a\0b": 2}


async def test_tables_and_columns(server: Emulator, client: AsyncClient, tmp_path: Path) -> None:
    """Only the tables and columns asked for are written; recipients need no column of theirs."""
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
    """A wrong parameter is told before anything is asked of the server, or written."""
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


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.kind}-{f.status}")
async def test_a_fault_costs_that_page_only(
    server: Emulator, client: AsyncClient, tmp_path: Path, fault: Fault
) -> None:
    """R16: after a fault that page alone is asked for again, and nothing is lost or doubled."""
    ids = deliver(server, 100)
    await extract(client, tmp_path, page_size=20)
    calm, server.requests[:] = calls(server), []
    server.faults.append(Fault(**{**vars(fault), "skip": 2}))

    manifest = await extract(client, tmp_path, page_size=20)

    assert sorted(row["message_id"] for row in table(tmp_path)) == ids
    assert calls(server) == calm + (fault.kind != "slow")
    assert manifest["retries"] == (fault.kind != "slow")
    assert len(server.faults) == 0


@pytest.mark.parametrize("fault", FAULTS[:7], ids=lambda f: f"{f.kind}-{f.status}")
async def test_a_page_that_can_never_be_read(
    server: Emulator, client: AsyncClient, tmp_path: Path, fault: Fault
) -> None:
    """The error names window and offset, and the earlier result stays byte for byte."""
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
    """A server that lists what was not asked for is an error, not a window of everything."""
    deliver(server, 3)
    server.mailbox.deliver(date=START - timedelta(days=30))
    server.readings = Readings(ignore_dates=True)

    with pytest.raises(R7MailExtractError, match=r"Folder 24, window .*: The server ignores"):
        await extract(client, tmp_path)
    assert files(tmp_path) == {}


class _Liar(BaseHTTPRequestHandler):
    """A mail server that counts more messages than it lists.

    `counts` is what it counts during and after each reading of the window; the last stays.
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
        """Say nothing."""


@pytest.fixture
def liar() -> Iterator[tuple[type[_Liar], str]]:
    """The handler and the URL of a server that counts as told."""
    handler = type("Handler", (_Liar,), {"counts": [(3, 3)]})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("counts", "whole"),
    [
        ([(3, 3)], True),
        ([(1, 1)], True),  # of the page, or of nothing that is known
        ([(0, 0)], True),
        ([(5, 5)], False),  # each time: something hides
        ([(5, 6)], False),  # one came meanwhile: it does not explain two that hide
        ([(5, 6), (6, 7), (6, 6)], False),
        ([(None, 5)], True),  # the first answer has no Count: nothing to compare with
        ([(4, 3)], True),  # one went
        ([(3, 4)], True),  # one came after its place was passed
    ],
)
async def test_reconciliation(
    liar: tuple[type[_Liar], str], tmp_path: Path, counts: list[tuple[int | None, int]], whole: bool
) -> None:
    """R2, R6: mail that comes or goes explains a difference, but not one that is always there."""
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


async def test_steady_coming_and_going_is_no_error(server: Emulator, tmp_path: Path) -> None:
    """R6: as much mail leaves unread as comes where all was read, each time: that is no fault."""
    deliver(server, 600)
    box = server.mailbox

    def change(_: Any) -> None:
        if len(server.requests) % 6 == 0:
            newest = max(box.messages(INBOX), key=lambda message: message["Date"])
            box.delete(INBOX, [newest["Id"]])
            box.deliver(date=START)

    server.on_request = change
    async with AsyncClient(config(server)) as client:
        manifest = await extract(client, tmp_path, page_size=20)
    assert manifest["messages"] < manifest["server_count"]["before"] == 600


@pytest.mark.parametrize("concurrency", [1, 4, 8])
@pytest.mark.parametrize("spread", ["even", "one of ten years", "office hours"])
async def test_few_requests(
    server: Emulator, tmp_path: Path, concurrency: int, spread: str
) -> None:
    """A calm folder costs at most a tenth more requests than it has pages, and a dozen."""
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
    async with AsyncClient(config(server, max_concurrency=concurrency)) as client:
        window = {"start": start, "end": start + timedelta(days=days)}
        manifest = await extract(client, tmp_path, page_size=100, **window)
    assert manifest["messages"] == 2000
    assert calls(server, "Messages") <= 1.1 * 2000 / 100 + 12


# -- messages that no table holds -----------------------------------------------------------


@pytest.mark.parametrize("on_bad_message", ["fail", "quarantine"])
async def test_bad_messages(
    server: Emulator, client: AsyncClient, tmp_path: Path, on_bad_message: Any
) -> None:
    """R20: they go to `_quarantine.jsonl` with id and reason, are counted, and fail the task."""
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
        assert "4 messages" in str(caught.value)
    else:
        await extract(client, tmp_path, page_size=20, on_bad_message="quarantine")

    manifest = check(tmp_path)
    text = (tmp_path / "messages" / WINDOW / "_quarantine.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert (manifest["messages"], manifest["quarantined"], len(lines)) == (50, 4, 4)
    assert Counter(line["message_id"] for line in lines) == {undated: 1, garbled: 1, None: 2}
    assert all(line["reason"] and line["message"] for line in lines)
    assert [row["message_id"] for row in table(tmp_path)] == good


# -- attachments ----------------------------------------------------------------------------


async def test_a_message_without_an_id_that_is_read_meanwhile(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """R20: one whose Id can't be read is set aside once, though its state changes meanwhile."""
    box = server.mailbox
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
    """Files are copied and told of in the attachments table; a rerun does not fetch them again."""
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


async def test_a_rerun_where_the_listed_size_says_nothing(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """A file that is listed with a size of 0 or less is not fetched again either."""
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


async def test_a_window_that_is_read_anew_fetches_its_files_once(
    server: Emulator, client: AsyncClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where mail that came and went makes me read a window twice, its files come once."""
    deliver(server, 60, attachments=[("a.csv", b"abc", "text/csv")])
    box = server.mailbox
    changed: list[int] = []

    def change(_: Any) -> None:
        if not changed and calls(server, "Messages") == 4:
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
    """No manifest lists files that a later run, of fewer tables, has replaced; nor old bad mail."""
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
    """R17: a message whose files the listing does not name is reported, not passed over."""
    ids = deliver(server, 2, attachments=[("a", b"x", "x/y")])
    server.readings = Readings(list_attachments=False)
    root = ObjectStoragePath(f"file://{tmp_path}/files")
    manifest = await extract(client, tmp_path, attachments=root)

    assert manifest["attachments"] == {"unlisted": 2}
    assert [row["message_id"] for row in table(tmp_path, "attachments")] == ids
    assert f"message {ids[0]}: HasAttachments is true" in caplog.text


@pytest.mark.parametrize("on_attachment_error", ["fail", "record"])
async def test_a_failed_attachment(
    server: Emulator, client: AsyncClient, tmp_path: Path, on_attachment_error: Any
) -> None:
    """One file that can't be had does not lose the others; the next run fetches only that one."""
    ids = deliver(server, 8, attachments=[("a", b"x", "x/y")])
    server.faults.append(Fault("Attachments", skip=1))
    options: dict[str, Any] = {
        "attachments": ObjectStoragePath(f"file://{tmp_path}/files"),
        "on_attachment_error": on_attachment_error,
    }
    async with AsyncClient(config(server, max_retries=0)) as impatient:
        if on_attachment_error == "fail":
            with pytest.raises(R7MailAttachmentError, match="1 of 8 attachments"):
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
    """Files of given messages are copied alone; odd files break nothing, a missing id is named."""
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
    assert calls(server, "Attachments") == 5  # the one that failed was tried thrice


async def test_copying_fetches_only_what_is_new(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """Whatever ids, filters and patterns are copied in turn, no file is fetched twice."""
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


async def test_copying_to_where_nothing_can_be_written(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """A file in the place of the folder is an error that names it, before anything is fetched."""
    server.mailbox.deliver(attachments=[("a", b"x", "x/y")])
    (tmp_path / "root").touch()
    root = ObjectStoragePath(f"file://{tmp_path}/root")
    with pytest.raises(R7MailConfigError, match="root: can't be written"):
        await copy_attachments(client, INBOX, MessageFilter(), root)
    assert calls(server, "Attachments") == 0


async def test_a_stopped_extract_leaves_nothing_unfinished(
    server: Emulator, client: AsyncClient, tmp_path: Path
) -> None:
    """A task that is stopped, at whatever moment, leaves whole attachments and no staged file."""
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
    """Extract the day in a process of its own."""
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    async def run() -> None:
        settings = ClientConfig(url=url, login="user_test", password="TestPassword")
        async with AsyncClient(settings) as client:
            for _ in range(times):
                await extract(client, Path(root))

    if limit:
        with pytest.raises(R7MailPublishError, match="can't be written"):
            asyncio.run(run())
        raise SystemExit(3)
    asyncio.run(run())


@pytest.mark.parametrize("limit", [3_000, 20_000, 100_000])
def test_a_full_disk(server: Emulator, tmp_path: Path, limit: int) -> None:
    """A disk that fills up is a clear error, and the earlier result stays byte for byte."""
    deliver(server, 20)
    arguments = (server.url, str(tmp_path))
    extract_in_child(*arguments)
    before = files(tmp_path)
    for body in noise(20, 9_000):
        deliver(server, 1, body=body)
    child = CHILDREN.Process(target=extract_in_child, args=(*arguments, limit))
    child.start()
    child.join()

    assert child.exitcode == 3
    assert files(tmp_path) == before
    check(tmp_path)


def test_runs_at_once(server: Emulator, tmp_path: Path) -> None:
    """Several processes that run the same window at once leave one result, whole."""
    deliver(server, 30)
    arguments = (server.url, str(tmp_path), 0, 15)
    children = [CHILDREN.Process(target=extract_in_child, args=arguments) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()

    assert [child.exitcode for child in children] == [0, 0, 0]
    assert check(tmp_path)["messages"] == 30
    assert len(files(tmp_path)) == 6


async def test_an_unwritable_output(server: Emulator, client: AsyncClient, tmp_path: Path) -> None:
    """An output that can't be written is told before any page is read."""
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(R7MailConfigError, match="can't be written"):
        await extract(client, tmp_path / "file" / "tables")
    assert calls(server) == 0


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """An S3 server on a real socket."""
    server = S3Server()
    yield server.url
    server.stop()


class Bucket:
    """A bucket on an S3 server of its own."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self.root = f"s3://s3_pipeline@{name}/lake"
        self._s3 = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name="us-east-1",
        )
        self._s3.create_bucket(Bucket=name)

    def objects(self) -> dict[str, bytes]:
        """All objects by their keys; none is being uploaded."""
        assert not self._s3.list_multipart_uploads(Bucket=self.name).get("Uploads")
        found = self._s3.list_objects_v2(Bucket=self.name).get("Contents", [])
        return {
            item["Key"]: self._s3.get_object(Bucket=self.name, Key=item["Key"])["Body"].read()
            for item in found
        }

    def check(self) -> dict[str, Any] | None:
        """See that the window's objects are those of its manifest; None if it has none."""
        objects = self.objects()
        text = objects.get(f"lake/messages/{WINDOW}/_manifest.json")
        if text is None:
            return None
        manifest: dict[str, Any] = json.loads(text)
        for file in manifest["files"]:
            data = objects[file["path"].partition(f"@{self.name}/")[2]]
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
            assert pq.read_metadata(pa.BufferReader(data)).num_rows == file["rows"]
        return manifest


@pytest.fixture
def bucket(s3_url: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket, which the connection `s3_pipeline` leads to."""
    extra = {"endpoint_url": s3_url, "region_name": "us-east-1"}
    connection = {"conn_type": "aws", "login": "testing", "password": "testing", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_S3_PIPELINE", json.dumps(connection))
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:20]
    found = Bucket(s3_url, name)
    _ = ObjectStoragePath(found.root).fs  # Airflow can't make it while an event loop runs
    return found


async def test_s3(server: Emulator, client: AsyncClient, bucket: Bucket) -> None:
    """On S3, in one piece or many, a window and its attachments are whole, and replaced whole."""
    data = random.Random(2).randbytes(18 << 20)
    deliver(server, 3, attachments=[("a.csv", b"abc", "text/csv")])
    options = {"attachments": ObjectStoragePath(f"{bucket.root}/files")}
    await extract(client, bucket.root, **options)
    first = bucket.check()
    for body in noise(16, 500_000):
        server.mailbox.deliver(date=START, body=body, html_body="-")
    number = server.mailbox.deliver(date=START, attachments=[("b.bin", data, "x/y")])

    manifest = await extract(client, bucket.root, **options)

    assert first is not None
    assert first["messages"] == 3
    assert bucket.check() == manifest
    assert manifest["files"][0]["bytes"] > 16 << 20
    assert manifest["attachments"] == {"unchanged": 3, "downloaded": 1}
    assert (
        bucket.objects()[f"lake/files/mailbox=user_test/folder=24/message_id={number}/b.bin"]
        == data
    )
    assert len(bucket.objects()) == 6 + 4


async def test_s3_after_an_error(server: Emulator, client: AsyncClient, bucket: Bucket) -> None:
    """On S3, too, a page that can't be read leaves the earlier result, and no part of a new one."""
    deliver(server, 100)
    await extract(client, bucket.root, page_size=20)
    before = bucket.objects()
    server.faults.append(Fault("Messages", times=None, skip=3))

    with pytest.raises(R7MailExtractError):
        await extract(client, bucket.root, page_size=20)
    assert bucket.objects() == before


async def test_s3_without_the_bucket(server: Emulator, client: AsyncClient, bucket: Bucket) -> None:
    """A bucket that is not there is a clear error."""
    deliver(server, 3)
    with pytest.raises(R7MailExtractError, match="bucket"):
        await extract(client, "s3://s3_pipeline@no-such-bucket/lake")
    assert bucket.objects() == {}


async def test_s3_runs_at_once(server: Emulator, bucket: Bucket) -> None:
    """Runs at once of a window on S3 wait for each other to publish: one result, whole."""
    deliver(server, 10)
    for _ in range(4):
        async with (
            AsyncClient(config(server)) as one,
            AsyncClient(config(server)) as two,
            AsyncClient(config(server)) as three,
        ):
            results = await asyncio.gather(
                *(extract(client, bucket.root) for client in (one, two, three))
            )
        assert bucket.check() in results
        assert len(bucket.objects()) == 6  # no lock is left
