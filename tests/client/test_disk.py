"""Files for mail on the server's Disk: whatever it answers, and whatever fails."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_r7mail.client import calls
from airflow_provider_r7mail.client.attaching import (
    FOLDER,
    MAX_UPLOADS,
    REUSE_DAYS,
    Uploads,
    delete_files,
    list_disk,
)
from airflow_provider_r7mail.client.http import ClientConfig
from airflow_provider_r7mail.client.marker import Marker
from airflow_provider_r7mail.client.models import Attachment
from airflow_provider_r7mail.client.sending import Attempt, Sending, Sent, asend_once, send_once
from airflow_provider_r7mail.client.session import AsyncClient, Client
from airflow_provider_r7mail.client.steps import carry_out
from airflow_provider_r7mail.client.upload import PIECE_BYTES, Source
from airflow_provider_r7mail.emulator import Emulator, Fault, Readings
from airflow_provider_r7mail.emulator.folders import SENT
from airflow_provider_r7mail.emulator.messages import StoredFile
from airflow_provider_r7mail.exceptions import (
    R7MailAttachmentError,
    R7MailConnectionError,
    R7MailProxyError,
    R7MailRequestError,
    R7MailResponseError,
    R7MailSendUnsettledError,
    R7MailServerError,
)

UPLOAD = "/api/v1/Documents/Upload"
REPORT = b"Domain,Messages\nexample.com,3\n"
NOW = datetime.now(UTC)


def config(server: Emulator, **values: Any) -> ClientConfig:
    """Return how to reach the server, with short timeouts."""
    defaults: dict[str, Any] = {"max_retries": 1, "backoff": 0.01, "timeout": 5.0}
    return ClientConfig(
        url=server.url, login="user_test", password="TestPassword", **{**defaults, **values}
    )


def source(data: bytes = REPORT, name: str = "отчёт за июнь.csv") -> Source:
    """Return a file in memory."""
    return Source(name, f"/data/{name}", lambda: io.BytesIO(data))


def uploads(*sources: Source, **values: Any) -> Uploads:
    """Return uploads that don't wait long for the listing."""
    return Uploads(sources=sources, **{"appear_seconds": 1.0, **values})


def upload(server: Emulator, *sources: Source, **values: Any) -> tuple[Attachment, ...]:
    """Upload files, with a client of their own."""
    with Client(config(server)) as client:
        return carry_out(uploads(*sources, **values).steps(), client.send)


def sending(*sources: Source, **values: Any) -> Sending:
    """Return a message with files, as a task sends it."""
    call = calls.send_message(subject="Report", text="t", html="<p>t</p>", to="a@b.ru")
    marker = Marker.of(("reports", "run", "send"), -1, ["a@b.ru"])
    return Sending.of(call, marker, SENT, 0.5, uploads(*sources, **values))


def send(server: Emulator, *sources: Source, **values: Any) -> Sent:
    """Send a message with files, with a client of its own."""
    earlier = values.pop("earlier", None)
    with Client(config(server)) as client:
        return send_once(client, sending(*sources, **values), earlier=earlier)


def made_folder(server: Emulator) -> int:
    """Return the id of the folder that the package has made."""
    disk = server.mailbox.disk
    return next(found.id for found in disk.children(disk.root) if found.name == FOLDER)


def files(server: Emulator) -> list[StoredFile]:
    """Return the files in that folder."""
    return server.mailbox.disk.files(made_folder(server))


def paths(server: Emulator) -> list[str]:
    """Return the last segments of the paths of all calls so far."""
    return [call["path"].rpartition("/")[2] for call in server.requests]


def attached(server: Emulator) -> list[tuple[str, bytes]]:
    """Return the name and content of each file of the only message that was sent."""
    [raw] = server.mailbox.messages(SENT)
    return [(file.file_name, file.data) for file in server.mailbox.files(raw["Id"])]


# -- what is sent -----------------------------------------------------------------------------


def test_a_file_is_sent(server: Emulator) -> None:
    """A file is uploaded, found in the listing, and attached under its own name."""
    send(server, source())

    [stored] = files(server)
    [request] = server.mailbox.sent
    assert attached(server) == [("отчёт за июнь.csv", REPORT)]
    assert request["Attachments"] == [
        {
            "Id": stored.id,
            "FileId": stored.file_id,
            "FileName": "отчёт за июнь.csv",
            "Size": len(REPORT),
            "MimeType": "text/csv",
        }
    ]
    assert stored.file_name.startswith("отчёт за июнь-")
    assert stored.file_name.endswith(".csv")


async def test_a_file_is_sent_from_an_event_loop(server: Emulator) -> None:
    """The async client does the same."""
    large = bytes(3 * PIECE_BYTES + 1)
    async with AsyncClient(config(server)) as client:
        await asend_once(client, sending(source(), source(large, "large.bin")))

    assert attached(server) == [("отчёт за июнь.csv", REPORT), ("large.bin", large)]


ANSWERS = [
    pytest.param(Readings(disk_answer=form, disk_envelope=envelope, names=names), id=name)
    for form in ("number", "object", "array", "nothing")
    for envelope in (False, True)
    for names in ("documented", "camel")
    for name in [f"{form}-{'envelope' if envelope else 'bare'}-{names}"]
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "readings",
    [
        *ANSWERS,
        pytest.param(Readings(disk_directory="form"), id="folder in the form"),
        pytest.param(Readings(disk_parent="DirectoryId"), id="older name of the parent"),
        pytest.param(Readings(disk_other_rows=True), id="rows of other folders"),
        pytest.param(Readings(disk_delay_seconds=0.4), id="visible later"),
        pytest.param(Readings(disk_same_name="refuse"), id="no name twice"),
    ],
)
def test_every_servers_disk(server: Emulator, readings: Readings) -> None:
    """Whatever an upload answers, and however the Disk lists it, the file is sent."""
    server.mailbox.disk.add("other.csv", b"of another folder")
    server.readings = readings

    send(server, source())

    assert attached(server) == [("отчёт за июнь.csv", REPORT)]
    assert len(files(server)) == 1


def test_a_folder_of_ones_own(server: Emulator) -> None:
    """With `disk_folder`, files go there, and no folder is created."""
    disk = server.mailbox.disk
    folder = disk.add_directory("reports", disk.root).id

    upload(server, source(), disk_folder=folder)

    assert [file.data for file in disk.files(folder)] == [REPORT]
    assert "AddSubDirectory" not in paths(server)


def test_the_disk_at_another_host(server: Emulator) -> None:
    """With `disk_url`, the Disk is asked there, with the token of the mail server."""
    server.readings = Readings(disk_host="localhost")

    with pytest.raises(R7MailServerError, match=r"does not answer at this address.*Set disk_url"):
        send(server, source())
    assert server.mailbox.sent == []

    there = config(server, disk_url=server.url.replace("127.0.0.1", "localhost"))
    with Client(there) as client:
        send_once(client, sending(source()))
    assert attached(server) == [("отчёт за июнь.csv", REPORT)]


HOSTILE = [
    "../../etc/passwd",
    "..\\..\\boot.ini",
    'a"; filename="b.exe',
    "a\r\nContent-Type: text/html\r\n\r\n<script>.csv",
    "nul\0byte.csv",
    "a%2Fb;c.csv",
    "отчёт 🎉.xlsx",
    "x" * 300 + ".csv",
    "я" * 300 + ".csv",
    ".csv",
    "..",
    "half of a pair \ud83d.csv",
    "attached again-20250101-0123456789abcdef.csv",
]


@pytest.mark.parametrize("name", HOSTILE, ids=map(ascii, HOSTILE))
@pytest.mark.parametrize("turn", [1, 2])
def test_hostile_names(server: Emulator, name: str, turn: int) -> None:
    """A name can't break out of a header, a form or a folder, and the file is found again."""
    for _ in range(turn):
        [attachment] = upload(server, source(name=name))

    [stored] = files(server)
    assert attachment.id == stored.id
    assert stored.data == REPORT
    assert stored.mime_type.isprintable()
    assert not set('/\\"\r\n\0;%') & set(stored.file_name)
    assert len(stored.file_name.encode()) <= 255


def test_a_name_only_in_ascii(server: Emulator) -> None:
    """A server that doesn't read `filename*` stores the file under a name that is recognised."""
    with Client(config(server)) as client:
        once = uploads(source())
        with_ascii = partial(_without_encoded_name, client)
        first = carry_out(once.steps(), with_ascii)
        again = carry_out(once.steps(), client.send)

    assert first == again
    [stored] = files(server)
    assert stored.file_name.isascii()


def _without_encoded_name(client: Client, call: calls.Call[Any]) -> Any:
    """Send a call, with only the plain file name."""
    if call.upload is not None:
        head = call.upload._head
        kept = head[: head.index(b"; filename*")] + head[head.index(b"\r\nContent-Type") :]
        call.upload.headers["Content-Length"] = str(
            int(call.upload.headers["Content-Length"]) - len(head) + len(kept)
        )
        call.upload._head = kept
    return client.send(call)


# -- once -------------------------------------------------------------------------------------


def test_nothing_is_uploaded_twice(server: Emulator) -> None:
    """The same file is found by a later try, and by other tasks."""
    first, again = upload(server, source()), upload(server, source())

    assert first == again
    assert paths(server).count("Upload") == 1


def test_same_name_other_content(server: Emulator) -> None:
    """A file with other content gets a name of its own on the Disk, and keeps it in the mail."""
    send(server, source(b"one", "a.csv"), source(b"two", "a.csv"))

    assert attached(server) == [("a.csv", b"one"), ("a.csv", b"two")]
    assert len({file.file_name for file in files(server)}) == 2


def test_a_name_that_is_taken(server: Emulator) -> None:
    """A file on the Disk with the name but another size is left alone, and another name taken."""
    [attachment] = upload(server, source())
    [whole] = files(server)
    disk, folder = server.mailbox.disk, made_folder(server)
    disk.documents.clear()
    disk.add(whole.file_name, REPORT[:5], folder)
    server.readings = Readings(disk_same_name="refuse")

    [attachment] = upload(server, source())

    assert {file.data for file in files(server)} == {REPORT[:5], REPORT}
    assert attachment.size == len(REPORT)
    assert len({file.file_name for file in files(server)}) == 2


REFUSALS = [
    (413, "too large for the server"),
    (406, "refused it"),
    (401, "does not accept the token"),
]


@pytest.mark.parametrize(("status", "why"), REFUSALS)
@pytest.mark.parametrize("is_async", [False, True])
def test_a_refusal_before_the_file_is_read(
    server: Emulator, status: int, why: str, is_async: bool
) -> None:
    """If the server refuses a file before it has read it, and hangs up, the error says why."""
    server.faults.append(Fault(UPLOAD, None, kind="refuse", status=status))
    large = source(bytes(8 << 20), "a.bin")

    async def run() -> None:
        async with AsyncClient(config(server)) as client:
            await asend_once(client, sending(large))

    with pytest.raises(R7MailRequestError, match=rf"{why}.*No message was sent"):
        asyncio.run(run()) if is_async else send(server, large)

    assert server.mailbox.sent == []
    assert files(server) == []


@pytest.mark.parametrize("is_async", [False, True])
def test_a_message_refused_before_it_is_read(server: Emulator, is_async: bool) -> None:
    """If a message is too large, the error says so, and there is no doubt that it wasn't sent."""
    server.faults.append(Fault("Send", None, kind="refuse", status=413))
    call = calls.send_message(subject="s", text="t", html="h" * (8 << 20), to="a@b.ru")

    async def run() -> None:
        async with AsyncClient(config(server)) as client:
            await client.send(call)

    with pytest.raises(R7MailProxyError, match="status 413"), Client(config(server)) as client:
        asyncio.run(run()) if is_async else client.send(call)

    assert paths(server).count("Send") == 1


async def test_a_cancelled_upload_ends(server: Emulator) -> None:
    """If the task is cancelled in the middle of an upload, the upload ends, and nothing is sent."""
    reads, begun = 0, threading.Event()

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            nonlocal reads
            reads += 1
            begun.set()
            time.sleep(0.01)
            return bytes(1000)

    opened = iter([io.BytesIO(bytes(10**6)), Endless()])
    endless = Source("a.bin", "/data/a.bin", lambda: next(opened))

    async def run() -> None:
        async with AsyncClient(config(server)) as client:
            await asend_once(client, sending(endless))

    task = asyncio.create_task(run())
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.1)
    before = reads
    await asyncio.sleep(0.2)

    assert reads == before
    assert files(server) == []
    assert server.mailbox.sent == []


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0.3, 0.9])
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("times", [1, 2])
def test_a_reset_in_mid_upload(server: Emulator, keep: float, stored: bool, times: int) -> None:
    """A broken upload is repeated; what a server has kept of it is never attached."""
    data = bytes(range(256)) * 4_000
    server.faults.append(Fault(UPLOAD, times, kind="cut", keep=keep, after_acting=stored))

    send(server, source(data, "a.bin"), appear_seconds=0.2)

    assert attached(server) == [("a.bin", data)]
    assert len(files(server)) == 1 + stored * times


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        Fault(UPLOAD, kind="reset", after_acting=True),
        Fault(UPLOAD, status=502, after_acting=True),
        Fault(UPLOAD, status=201, after_acting=True),
        Fault(UPLOAD, status=204, after_acting=True),
        Fault(UPLOAD, kind="truncate"),
        Fault(UPLOAD, kind="bad_json"),
    ],
    ids=str,
)
def test_an_upload_with_a_lost_answer(server: Emulator, fault: Fault) -> None:
    """An upload with an unclear outcome is looked for, and not repeated if it is there."""
    server.faults.append(fault)
    server.readings = Readings(disk_delay_seconds=0.5)

    send(server, source())

    assert attached(server) == [("отчёт за июнь.csv", REPORT)]
    assert paths(server).count("Upload") == 1


@pytest.mark.parametrize("after", range(1, 8))
def test_tokens_that_die(server: Emulator, after: int) -> None:
    """A token may die at any call: the file is sent once, and whole (R12)."""
    server.readings = Readings(token_calls=after)

    send(server, source())

    assert attached(server) == [("отчёт за июнь.csv", REPORT)]
    assert len(files(server)) == 1


@pytest.mark.parametrize("dead", ["403", "406"])
@pytest.mark.parametrize("after", [1, 2])
def test_tokens_that_die_by_refusal(server: Emulator, dead: Any, after: int) -> None:
    """The Disk may refuse a dead token with 403 or 406: the file is uploaded all the same (R24)."""
    server.readings = Readings(token_calls=after, dead_token=dead)

    upload(server, source())

    assert [file.data for file in files(server)] == [REPORT]


def test_a_refusal_with_a_live_token(server: Emulator) -> None:
    """A Disk that is full isn't taken for a dead token: the file isn't uploaded again (R25)."""
    server.readings = Readings(disk_quota=10)

    with pytest.raises(R7MailRequestError, match="the Disk refused it"):
        upload(server, source())

    assert paths(server).count("Upload") == 1
    assert paths(server).count("Login") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        Fault("AddSubDirectory", kind="reset"),
        Fault("AddSubDirectory", kind="reset", after_acting=True),
        Fault("AddSubDirectory", status=406, after_acting=True),  # another task was faster
    ],
    ids=str,
)
def test_a_folder_that_is_made_with_difficulty(server: Emulator, fault: Fault) -> None:
    """If creating the folder fails, it is looked for, and created if it isn't there."""
    server.faults.append(fault)

    upload(server, source())

    assert [file.data for file in files(server)] == [REPORT]
    disk = server.mailbox.disk
    assert [found.name for found in disk.children(disk.root)] == [FOLDER]


@pytest.mark.slow
@pytest.mark.parametrize("same_name", ["both", "replace", "refuse"])
def test_two_tasks_at_once(server: Emulator, same_name: Any) -> None:
    """Two tasks may create the folder and upload the same file at once: both get a whole file."""
    server.readings = Readings(
        disk_delay_seconds=0.2, latency_seconds=0.02, disk_same_name=same_name
    )
    found: list[Attachment] = []

    def one() -> None:
        found.extend(upload(server, source()))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [file.size for file in found] == [len(REPORT)] * 2
    assert {file.id for file in found} <= server.mailbox.disk.documents.keys()
    later = upload(server, source())
    assert later == upload(server, source())


def rename(server: Emulator, number: int, change: Callable[[str], str]) -> None:
    """Change a file's name on the Disk."""
    document = server.mailbox.disk.documents[number]
    name = change(document.stored.file_name)
    document.stored = replace(document.stored, file_name=name)


@pytest.mark.parametrize(
    "change",
    [
        str.upper,
        lambda name: name[:64],
        lambda name: f"{name} (1)",
        partial(unicodedata.normalize, "NFD"),
    ],
    ids=["upper case", "64 characters", "numbered", "NFD"],
)
def test_a_server_that_changes_names(server: Emulator, change: Callable[[str], str]) -> None:
    """A file is recognised even if the server stores it under a changed name."""
    long = source(name="отчёт по всем филиалам за июнь и за всё первое полугодие.csv")
    [first] = upload(server, long)
    rename(server, first.id or 0, change)

    assert upload(server, long) == (first,)


def test_an_upload_never_replaces_anothers(server: Emulator) -> None:
    """Where a new file replaces one of its name, a task keeps the file that it has uploaded."""
    server.readings = Readings(disk_same_name="replace")
    upload(server, source(b"so that there is a folder"))
    other: list[Attachment] = []

    with Client(config(server)) as client:

        def send_late(call: calls.Call[Any]) -> Any:
            if call.path == UPLOAD:
                other.extend(upload(server, source()))
            return client.send(call)

        carry_out(uploads(source()).steps(), send_late)

    assert other[0].id in server.mailbox.disk.documents


def test_old_uploads_are_not_used(server: Emulator) -> None:
    """A file uploaded long ago is uploaded anew, since old ones may be deleted any time."""
    [first] = upload(server, source())
    today = f"{NOW:%Y%m%d}"
    old = f"{NOW - timedelta(days=REUSE_DAYS + 1):%Y%m%d}"
    rename(server, first.id or 0, lambda name: name.replace(today, old))

    [again] = upload(server, source())

    assert again.id != first.id
    with Client(config(server)) as client:
        listed = carry_out(list_disk(None), client.send)
    days = [NOW.date() - timedelta(days=REUSE_DAYS + 1), NOW.date()]
    assert [file.uploaded for file in listed] == days


# -- nothing is sent --------------------------------------------------------------------------


def broken() -> Any:
    """Open a file that fails after its first bytes."""

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise ConnectionError("gone")
            return super().read(5)

    return Broken(REPORT)


def missing() -> Any:
    """Open a file that isn't there."""
    raise FileNotFoundError("no such file")


def locked() -> Any:
    """Open a file that may not be read."""
    raise PermissionError("denied")


@pytest.mark.parametrize(
    ("opened", "why"),
    [
        (missing, "there is no such file"),
        (locked, "can't be read .*PermissionError"),
        (broken, "can't be read .*gone"),
        (io.BytesIO, "is empty"),
    ],
)
def test_files_that_cannot_be_read(server: Emulator, opened: Callable[[], Any], why: str) -> None:
    """A missing, unreadable or empty file is an error; nothing is uploaded or sent."""
    bad = Source("b.csv", "/data/b.csv", opened)

    with pytest.raises(R7MailAttachmentError, match=rf"/data/b.csv.*{why}.*No message was sent"):
        send(server, source(), bad)

    assert server.mailbox.sent == []
    assert "Upload" not in paths(server)


@pytest.mark.parametrize("then", [REPORT[:-1] + b"x", REPORT[:-3], REPORT * 2, b""])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_file_that_changes(server: Emulator, then: bytes, is_async: bool) -> None:
    """A file that changes between its two readings is neither stored nor sent."""
    contents = iter([REPORT, then])
    changing = Source("a.csv", "/data/a.csv", lambda: io.BytesIO(next(contents)))

    async def run() -> None:
        async with AsyncClient(config(server)) as client:
            await asend_once(client, sending(changing))

    with pytest.raises(R7MailAttachmentError, match="it changed while it was read"):
        asyncio.run(run()) if is_async else send(server, changing)

    assert server.mailbox.sent == []
    assert files(server) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("readings", "why"),
    [
        (Readings(disk="404"), "Disk API does not answer.*disk_url.*links"),
        (Readings(disk="405"), "Disk API does not answer.*disk_url.*links"),
        (Readings(disk="406"), "not accessible.*the account has the Disk module"),
        (
            Readings(disk="406", error_body="html"),
            "not accessible.*the account has the Disk module",
        ),
        (Readings(disk="405", error_body="html"), "Disk API does not answer.*disk_url.*links"),
        (Readings(disk_quota=10), "the Disk refused it.*quota"),
        (Readings(disk_quota=10, disk_full="413"), "too large"),
        (Readings(disk_quota=10, disk_full="500"), "the Disk refused it.*quota"),
        (Readings(disk_quota=10, disk_full="507"), "the Disk refused it.*quota"),
        (Readings(disk_quota=10, disk_full="accepted"), "does not list it.*quota"),
        (Readings(disk_max_bytes=10), "too large.*links"),
    ],
)
def test_a_disk_that_takes_nothing(server: Emulator, readings: Readings, why: str) -> None:
    """A Disk that isn't there, refuses or is full is a clear error, and nothing is sent."""
    server.readings = readings

    with pytest.raises(R7MailRequestError, match=rf"(?s){why}.*No message was sent"):
        send(server, source(), appear_seconds=0.1)

    assert server.mailbox.sent == []


def test_a_folder_that_is_not_there(server: Emulator) -> None:
    """A wrong `disk_folder` is an error that names the setting."""
    with pytest.raises(R7MailServerError, match="disk_folder"):
        send(server, source(), disk_folder=5)

    assert server.mailbox.sent == []


def test_a_disk_that_is_down(server: Emulator) -> None:
    """If the Disk keeps failing, so does the task, after a few attempts, and nothing is sent."""
    server.faults.append(Fault(UPLOAD, times=None, kind="cut"))

    with pytest.raises(R7MailConnectionError, match=r"/data/отчёт за июнь.csv could not be"):
        send(server, source(), appear_seconds=0.1)

    assert paths(server).count("Upload") == MAX_UPLOADS
    assert server.mailbox.sent == []


def test_one_of_two_files_fails(server: Emulator) -> None:
    """Nothing is sent unless all files are there; a later try uploads only what is missing."""
    server.faults.append(Fault(UPLOAD, skip=1, status=406))
    both = source(b"one", "1.csv"), source(b"two", "2.csv")

    with pytest.raises(R7MailRequestError, match=r"/data/2.csv could not be .*the Disk refused it"):
        send(server, *both)
    assert server.mailbox.sent == []

    send(server, *both)
    assert attached(server) == [("1.csv", b"one"), ("2.csv", b"two")]
    assert paths(server).count("Upload") == 3


NO_LISTINGS: list[Any] = [
    {},
    [1],
    "x",
    [{"Name": "no id"}],
    [{"Id": 1, "Documents": [{"Name": "x"}]}],
]


def test_something_else_answers(server: Emulator) -> None:
    """A page of HTML, or other JSON, in place of the Disk's listing is an error."""
    server.faults.append(Fault("Get", status=200, body="<html>Sign in</html>", times=2))
    with pytest.raises(R7MailProxyError, match="Disk API does not answer"):
        send(server, source())

    for answer in NO_LISTINGS:
        server.faults.clear()
        server.faults.append(Fault("Get", times=2, kind="answer", answer=answer))
        with pytest.raises(R7MailResponseError, match="the Disk's listing"):
            send(server, source())
    assert server.mailbox.sent == []


def test_no_root_of_ones_own(server: Emulator) -> None:
    """If the user's own root can't be told, the error asks for `disk_folder`."""
    roots = [{"Id": 1, "Name": "A"}, {"Id": 2, "Name": "B"}]
    server.faults.append(Fault("Get", kind="answer", answer=roots))

    with pytest.raises(R7MailResponseError, match="Set disk_folder"):
        send(server, source())


def test_a_listing_without_file_ids(server: Emulator) -> None:
    """A file without the FileId that Send needs is an error, and nothing is sent."""
    [attachment] = upload(server, source())
    folder = made_folder(server)
    [stored] = files(server)
    document = {"Id": attachment.id, "Name": stored.file_name, "Size": stored_size(stored)}
    answer = [{"Id": folder, "Name": FOLDER, "Documents": [document]}]
    server.faults.append(Fault("Get", kind="answer", answer=answer, skip=0))

    with pytest.raises(R7MailResponseError, match="without a FileId"):
        send(server, source(), disk_folder=folder)
    assert server.mailbox.sent == []


def stored_size(stored: StoredFile) -> str:
    """Return a file's size, as text."""
    return str(len(stored.data))


# -- sending once -----------------------------------------------------------------------------


def test_an_unclear_message_is_known_by_its_files(server: Emulator) -> None:
    """Without markers, the search for an unclear message compares the names of its files."""
    server.readings = Readings(strip_hidden=True)
    server.faults.append(Fault("Send", kind="reset", after_acting=True))

    sent = send(server, source())

    assert attached(server) == [("отчёт за июнь.csv", REPORT)]
    assert sent.id == server.mailbox.messages(SENT)[0]["Id"]


def test_an_unclear_message_with_a_file_named_twice(server: Emulator) -> None:
    """A file that is given twice is attached once, and the message is recognised all the same."""
    server.readings = Readings(strip_hidden=True)
    server.faults.append(Fault("Send", kind="reset", after_acting=True))

    send(server, source(), source())

    assert attached(server) == [("отчёт за июнь.csv", REPORT)]


def test_an_unclear_message_is_sent_with_its_files(server: Emulator) -> None:
    """If it isn't in the Sent folder, it is sent again with the same uploads."""
    server.mailbox.deliver(folder=SENT, subject="other", fields={"WasSent": True})
    server.faults.append(Fault("Send", kind="reset"))

    send(server, source())

    [request] = server.mailbox.sent
    assert [file["FileName"] for file in request["Attachments"]] == ["отчёт за июнь.csv"]
    assert paths(server).count("Upload") == 1


def test_a_sent_message_needs_no_files(server: Emulator) -> None:
    """A task that has sent its message succeeds again, even if its files are gone meanwhile."""
    gone = Source("отчёт за июнь.csv", "/data/a.csv", missing)
    recorded = Attempt(state="sent", since=NOW, last=NOW, id=5)
    assert send(server, gone, earlier=recorded).id == 5

    send(server, source())
    begun = Attempt(state="sending", since=NOW, last=NOW)
    assert send(server, gone, earlier=begun).before

    assert len(server.mailbox.sent) == 1
    assert paths(server).count("Upload") == 1


def test_files_are_deleted_after_sending(server: Emulator) -> None:
    """With `delete`, files leave the Disk once the message is sent, and others keep theirs."""
    send(server, source())
    server.mailbox.sent.clear()
    second = sending(source(), delete=True)
    with Client(config(server)) as client:
        send_once(client, second)

    assert len(server.mailbox.sent) == 1
    assert len(files(server)) == 1
    assert paths(server).count("Upload") == 2
    assert paths(server).count("Delete") == 1


def test_mapped_tasks_delete_only_their_own_files(server: Emulator) -> None:
    """Two mapped tasks send the same file to the same person: one doesn't delete the other's."""
    first, second = (
        Sending.of(
            calls.send_message(subject=f"{index}", text="t", html="<p>t</p>", to="a@b.ru"),
            Marker.of(("reports", "run", "send"), index, ["a@b.ru"]),
            SENT,
            0.5,
            uploads(source(), delete=True),
        )
        for index in (0, 1)
    )
    with Client(config(server)) as client:
        [ready] = carry_out(first.uploads.steps(), client.send)
        send_once(client, second)

    assert server.mailbox.disk.documents.keys() == {ready.id}


def test_files_of_an_unclear_message_stay_until_it_is_sent(server: Emulator) -> None:
    """With `delete`, a try that ends in doubt keeps the files; the next one uses them."""
    server.mailbox.deliver(folder=SENT, subject="other", fields={"WasSent": True})
    server.faults.append(Fault("Send", kind="reset"))
    server.faults.append(Fault("Messages", None, status=500))
    recorded: list[Attempt] = []
    with Client(config(server)) as client, pytest.raises(R7MailSendUnsettledError):
        send_once(client, sending(source(), delete=True), record=recorded.append)
    assert len(files(server)) == 1

    server.faults.clear()
    send(server, source(), delete=True, earlier=recorded[-1])

    assert len(server.mailbox.sent) == 1
    assert paths(server).count("Upload") == 1
    assert files(server) == []


@pytest.mark.parametrize("state", ["sent", "sending"])
def test_files_of_a_try_that_was_killed_are_deleted(server: Emulator, state: Any) -> None:
    """With `delete`, a try that finds the message sent deletes what the other tries uploaded."""
    server.faults.append(Fault(UPLOAD, kind="cut", keep=0.9, after_acting=True))
    server.faults.append(Fault("/api/v1/Documents/Delete", status=406))
    data = REPORT * 100
    mine, gone = source(data), Source("отчёт за июнь.csv", "/data/a.csv", missing)
    send(server, mine, delete=True, appear_seconds=0.2)
    upload(server, mine)
    assert len(files(server)) == 3

    send(server, gone, delete=True, earlier=Attempt(state=state, since=NOW, last=NOW, id=5))

    assert [file.data for file in files(server)] == [data]  # what other messages may use
    assert len(server.mailbox.sent) == 1


def test_a_failure_to_delete_is_only_logged(
    server: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that was sent stays sent, even if its files can't be deleted."""
    server.faults.append(Fault("/api/v1/Documents/Delete", times=None, status=406))

    sent = send(server, source(), delete=True)

    assert sent.id is not None
    assert "may stay on the Disk" in caplog.text
    assert "No message was sent" not in caplog.text
    assert len(files(server)) == 1


def test_files_can_be_deleted_by_id(server: Emulator) -> None:
    """Old uploads can be listed and deleted, without creating a folder for them."""
    with Client(config(server)) as client:
        assert carry_out(list_disk(None), client.send) == ()
        assert "AddSubDirectory" not in paths(server)
        [attachment] = carry_out(uploads(source()).steps(), client.send)
        [listed] = carry_out(list_disk(None), client.send)
        carry_out(delete_files([listed.id]), client.send)

    assert listed.id == attachment.id
    assert files(server) == []


def test_logs_hold_no_names(server: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """Logs contain ids and counts, but no file name and no content."""
    caplog.set_level("DEBUG")
    server.faults.append(Fault(UPLOAD, kind="reset"))

    send(server, source(b"secret content", "secret-name.csv"), appear_seconds=0.1)

    assert "File 1 of 1 is on the Disk" in caplog.text
    assert "secret" not in caplog.text


# -- size -------------------------------------------------------------------------------------


SEND_LARGE = """
import asyncio, resource, sys
from airflow_provider_r7mail.client import calls
from airflow_provider_r7mail.client.attaching import Uploads
from airflow_provider_r7mail.client.http import ClientConfig
from airflow_provider_r7mail.client.sending import Sending, asend_once, send_once
from airflow_provider_r7mail.client.session import AsyncClient, Client
from airflow_provider_r7mail.client.upload import Source

url, path, way = sys.argv[1:]
config = ClientConfig(url=url, login="user_test", password="TestPassword", timeout=60)
def sending(*paths):
    files = tuple(Source("large.bin", path, lambda path=path: open(path, "rb")) for path in paths)
    call = calls.send_message(subject="s", text="t", html="h", to="a@b.ru")
    return Sending.of(call, None, None, 0, Uploads(sources=files))
async def run(*paths):
    async with AsyncClient(config) as client:
        await asend_once(client, sending(*paths))
def run_sync(*paths):
    with Client(config) as client:
        send_once(client, sending(*paths))
send = run_sync if way == "sync" else lambda *paths: asyncio.run(run(*paths))
peaks = []
for paths in ((__import__("os").__file__,), (path,)):  # the first loads what is loaded on demand
    send(*paths)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print((peaks[1] - peaks[0]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_large_file_in_bounded_memory(server: Emulator, tmp_path: Path, way: str) -> None:
    """A file is streamed: it is never in memory as a whole."""
    size = 96 << 20
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(size)

    done = subprocess.run(
        [sys.executable, "-c", SEND_LARGE, server.url, str(path), way],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    assert int(done.stdout) < 16 << 20
    assert [len(file.data) for file in files(server)][-1] == size
