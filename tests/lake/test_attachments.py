"""Attachments: names that never collide, and files that are complete or absent."""

# ruff: noqa: ASYNC240 - looking at a few small files may block

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import example, given, settings
from hypothesis import strategies as st
from upath import UPath

from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.session import AsyncClient, Client
from airflow_provider_r7mail.compat import ObjectStoragePath
from airflow_provider_r7mail.emulator import Emulator, Fault, Mailbox, Readings
from airflow_provider_r7mail.emulator.messages import listed_size
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.lake.attachments import STAGING, AttachmentCopier, StoredFile, download
from airflow_provider_r7mail.lake.copying import copy_attachments
from airflow_provider_r7mail.lake.derived import AttachmentRow
from airflow_provider_r7mail.lake.filenames import name_filter, object_names
from airflow_provider_r7mail.lake.staging import STAGED_PREFIX
from tests.lake.support import INBOX, files, quick_config
from tests.wire import Wire, reply

# R19: names that a sender may give a file.
HOSTILE = [
    "Отчёт 📈 за июнь.xlsx",
    "../../etc/passwd",
    "..\\..\\boot.ini",
    "/etc/passwd",
    "C:\\a.txt",
    "a\0b.txt",
    "line\nbreak\r.txt",
    "x" * 300 + ".pdf",
    "Ж" * 200 + ".docx",
    "a?b&c#d%e+f=g.txt",
    "%2e%2e%2f.txt",
    "100% ready & done.txt",
    "CON",
    "con.txt",
    ".hidden",
    "_hidden",
    "_..hidden",
    "..",
    ".",
    " ",
    "a.txt ",
    "a.txt",
    "A.TXT",
    "й.txt",
    "\u0438\u0306.txt",  # the same letter in two characters
    "ﬁ.txt",
    "fi.txt",
    "straße",
    "STRASSE",
    "\u202etxt.exe",
    "~a",
    "a~0123456789.txt",
    "s3://bucket/key",
    "mailbox=x",
    "\ufffd",
    "😀" * 100,
]

# -- names in storage -----------------------------------------------------------------------


def colliding_forms(name: str) -> set[str]:
    """What file systems may turn a name into: folded or not, composed or not."""
    return {
        unicodedata.normalize(form, change(unicodedata.normalize(form, name)))
        for form in ("NFC", "NFD", "NFKC")
        for change in (str.casefold, str.upper, str.lower)
    }


file_names = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.sampled_from("aAbBßsSİiıIйЙи\u0306eé\u0301ﬁ._~ /\\\0\n\u202e😀"), max_size=6),
    st.text(max_size=90),
)


@settings(deadline=None)
@given(st.lists(file_names, max_size=6, unique=True))
@example(HOSTILE)
def test_names_are_safe_and_never_collide(names: list[str]) -> None:
    """R19: no two files of a message collide or leave their folder, on any file system."""
    found = object_names(names)

    assert set(found) == set(names)
    for one, other in itertools.combinations(found.values(), 2):
        assert not colliding_forms(one) & colliding_forms(other)
    for item in found.values():
        assert item
        assert len(item.encode()) <= 255
        assert not re.search(r'[/\\:\x00-\x1f\x7f"*?<>|%#&]', item)
        assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs"} for c in item)
        assert ".." not in item
        assert item[0] not in "._ "
        assert item[-1] not in ". "
    # A rerun, or a listing in another order, gives the same names.
    assert found == object_names(sorted(names)) == object_names(list(reversed(names)))


def test_names_chosen_to_collide() -> None:
    """R19: names with the same short checksum, or with invisible characters, stay distinct."""
    # Found by trying a million names.
    pair = ["a\x01\x05\x0b\r$b.pdf", "a\x01\x08}\x07\x15b.pdf"]
    assert len({hashlib.sha256(name.encode()).digest()[:5] for name in pair}) == 1
    assert len(set(object_names(pair).values())) == 2
    assert all(len(item) < 100 for item in object_names(pair).values())

    invisible = object_names(["ab", "a\ufe0fb", "a\u034fb", "a\u3164b"])
    assert len({re.sub("[\ufe0f\u034f\u3164]", "", item) for item in invisible.values()}) == 4
    assert object_names(["❤️.png"]) == {"❤️.png": "❤️.png"}
    for reserved in ("com¹.txt", "con .txt", "LPT²"):
        assert object_names([reserved])[reserved].startswith("file_")


def test_ordinary_names_stay() -> None:
    """A safe name in any script is kept; others keep their extension."""
    names = [
        "Прайс-лист (июнь), v1.2.xlsx",
        "a b.csv",
        "invite.ics",
        "x?.tar.gz",
        "Ж" * 200 + ".pdf",
    ]
    found = object_names(names)

    assert [found[name] for name in names[:3]] == names[:3]
    assert re.fullmatch(r"x_\.tar~[0-9a-f]{10}\.gz", found["x?.tar.gz"])
    assert found[names[4]].endswith(".pdf")


@pytest.mark.parametrize(
    ("pattern", "wanted", "unwanted"),
    [
        (None, ["a.pdf", ""], []),
        ("", ["a.pdf"], []),
        ("*.xlsx", ["a.xlsx", "A.XLSX"], ["a.xls", "a.xlsx.exe"]),
        ("Прайс*", ["ПРАЙС.csv"], ["мой прайс.csv"]),
        (r"^price_\d+", ["Price_17.csv"], ["price_x"]),
        (r"\.(csv|xml)$", ["a.CSV"], ["a.csv.gz"]),
        (unicodedata.normalize("NFC", "йё*"), [unicodedata.normalize("NFD", "ЙЁ.csv")], ["ие.csv"]),
        (unicodedata.normalize("NFD", "*й?"), [unicodedata.normalize("NFC", "край1")], ["краи1"]),
        (unicodedata.normalize("NFD", "^Счёт"), [unicodedata.normalize("NFD", "счёт1")], ["счет1"]),
        (["*.xls", "^a.*b", "", "Ж*;З*"], ["1.xls", "acb", "ж", "з.c"], ["b.csv", "x"]),
        (("*.xls", 2025), ["1.xls", "2025"], ["20251"]),
        ("['*.xls', '*.csv']", ["a.xls", "b.csv"], ["*", "x", "c.pdf"]),
        ('["*.{xls,csv}"]', ["a.xls", "b.csv"], ["x", "c.pdf"]),
        ("['*.xls', None, 2025]", ["a.xls", "2025"], ["b.csv"]),
        (' ["*.xls", null]', ["a.xls"], ["b.csv"]),
        ("('*.xls', '*.csv')", ["a.xls", "b.csv"], ["c.pdf"]),
        ("[0-9]*.csv", ["1.csv"], ["a.csv"]),
        ("*.xlsx;*.xls; *.csv;", ["a.xlsx", "b.XLS", "c.csv"], ["a.xlsx;b.pdf", ""]),
        ("a[;]b*", ["a;b.c"], ["a", "b1"]),
        ("*.{xls, xlsx}", ["a.xls", "b.xlsx"], ["c.{xls,xlsx}", "a.xl"]),
        ("{a,b{1,2}}.{csv,}", ["a.csv", "b1.csv", "B2."], ["b.csv", "a.cs"]),
        ("{*}.eml", ["{3f2}.eml"], ["3f2.eml"]),
    ],
)
def test_patterns(pattern: Any, wanted: list[str], unwanted: list[str]) -> None:
    """A pattern is a glob, or with ^ or $ a regular expression; there may be several of them.

    Case is ignored, and how the system that sent the file writes `й`.
    """
    wants = name_filter(pattern)

    assert [name for name in wanted + unwanted if wants(name)] == wanted


def test_a_wrong_pattern() -> None:
    """An invalid regular expression is an error that names the parameter."""
    wrong: list[Any] = ["^(", ["*.csv", "^("], 5 * "{0,1,2,3,4,5}", "None", [None, ["*"]], {"a": 1}]
    wrong += ["['*', ['*.csv']]", "[true]"]
    for pattern in wrong:
        with pytest.raises(R7MailConfigError, match="attachment_pattern"):
            name_filter(pattern)


# -- copying --------------------------------------------------------------------------------


class Copies:
    """Copies a mailbox's files to a folder, and shows what arrived."""

    def __init__(self, server: Emulator, client: AsyncClient, root: Path) -> None:
        self.server = server
        self.root = root
        self.client = client

    async def copy(
        self, rows: list[AttachmentRow] | None = None, **options: Any
    ) -> list[AttachmentRow]:
        """Copy, and return the rows."""
        rows = self.listed() if rows is None else rows
        options.setdefault("wanted", lambda _: True)
        async with AttachmentCopier(
            client=self.client,
            folder=INBOX,
            root=ObjectStoragePath(f"file://{self.root}"),
            **options,
        ) as copier:
            await copier.copy(rows)
        return rows

    def listed(self) -> list[AttachmentRow]:
        """All files of the mailbox, as its listing shows them."""
        return [
            AttachmentRow(
                message["Id"],
                file_name=file["FileName"],
                size=listed_size(file["Size"], self.server.readings.attachment_size),
            )
            for message in self.server.mailbox.messages(INBOX)
            for file in message["Attachments"]
        ]

    def stored(self) -> dict[str, bytes]:
        """What is on disk."""
        return files(self.root)

    @property
    def downloads(self) -> int:
        """How many downloads were requested."""
        return sum(request["path"].endswith("Attachments") for request in self.server.requests)


@pytest.fixture
def copies(server: Emulator, client: AsyncClient, tmp_path: Path) -> Copies:
    """The emulator's files, and a folder for them."""
    return Copies(server, client, tmp_path / "files")


def known(rows: list[AttachmentRow]) -> dict[tuple[int, str], StoredFile]:
    """What a run stored, for the next one."""
    return {
        (row.message_id, row.file_name or ""): StoredFile(
            row.uri, row.size or 0, row.sha256, row.listed_size
        )
        for row in rows
        if row.uri and row.sha256
    }


@pytest.mark.parametrize("chunked", [False, True])
async def test_hostile_names_end_to_end(copies: Copies, chunked: bool) -> None:
    """R19, R22: each file is requested by its exact name, and is complete and in its folder."""
    copies.server.readings = Readings(chunked_attachments=chunked)
    attached = [(name, f"{name}".encode() * 3, "text/plain") for name in HOSTILE]
    number = copies.server.mailbox.deliver(attachments=attached)

    rows = await copies.copy()

    assert Counter(row.status for row in rows) == {"downloaded": len(HOSTILE)}
    folder = copies.root.resolve() / f"message_id={number}"
    assert {path.parent for path in copies.root.rglob("*") if path.is_file()} == {folder}
    assert len(copies.stored()) == len(HOSTILE)
    for row, (_, data, _) in zip(rows, attached, strict=True):
        path = Path(ObjectStoragePath(row.uri or "").path)
        assert path.resolve().parent == folder
        assert path.read_bytes() == data
        assert (row.size, row.sha256) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
async def test_a_broken_off_file_is_fetched_again(
    copies: Copies, chunked: bool, keep: float
) -> None:
    """R22: a truncated response is never taken for a file, with Content-Length or chunked."""
    data = random.Random(1).randbytes(300_000)
    copies.server.mailbox.deliver(attachments=[("a.bin", data, "x/y")])
    copies.server.readings = Readings(chunked_attachments=chunked)
    fault = Fault("Attachments", kind="truncate", keep=keep, chunked=chunked)
    copies.server.faults.append(fault)

    rows = await copies.copy()

    assert (rows[0].status, rows[0].sha256) == ("downloaded", hashlib.sha256(data).hexdigest())
    assert list(copies.stored().values()) == [data]
    assert copies.downloads == 2

    copies.server.faults.append(Fault("Attachments", kind="truncate", times=None, chunked=chunked))
    rows = await copies.copy()

    assert rows[0].status == "failed"
    assert list(copies.stored().values()) == [data], "what was there before stays"


@pytest.mark.parametrize(
    ("size", "fit"),
    [
        (10, "equal"),
        (0, None),
        (None, None),
        (-1, None),
        (16, "encoded"),
        (18, "encoded"),
        (1024, "rounded"),
        (9, "different"),
        (11, "different"),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
async def test_another_size_than_listed(
    copies: Copies, size: int | None, fit: str | None, strict: bool
) -> None:
    """R26: a file that came whole is whole, whatever size is listed, unless that shall fail it."""
    number = copies.server.mailbox.deliver(attachments=[("a.bin", b"0123456789", "x/y")])
    row = AttachmentRow(number, file_name="a.bin", size=size)

    await copies.copy([row], strict=strict)

    fails = strict and fit == "different"
    assert row.status == ("failed" if fails else "downloaded")
    assert len(copies.stored()) == (not fails)
    assert row.listed_size == size
    if fails:
        assert row.error == f"10 bytes came, the listing says {size}"
    else:
        assert (row.size, row.size_fit) == (10, fit)


@pytest.mark.parametrize("size", ["bytes", "base64", "base64_lines", "rounded"])
async def test_the_size_that_counts_is_the_real_one(copies: Copies, size: Any) -> None:
    """R26: whatever sizes are listed, `max_bytes` is about the files' own, and none comes twice."""
    files = [("a.bin", bytes(1000), "x/y"), ("b.bin", bytes(1001), "x/y")]
    copies.server.mailbox.deliver(attachments=[*files, ("c.bin", bytes(9_000), "x/y")])
    copies.server.readings = Readings(attachment_size=size)
    listed = copies.listed()

    rows = await copies.copy(max_bytes=1000)

    assert [row.status for row in rows] == ["downloaded", "skipped", "skipped"]
    assert [row.listed_size for row in rows] == [row.size for row in listed]
    assert copies.downloads == 2  # for the third, the listing leaves no doubt
    [again] = await copies.copy(listed[:1], max_bytes=1000, known=known(rows))
    assert (again.status, copies.downloads) == ("unchanged", 2)
    [smaller] = await copies.copy(copies.listed()[:1], max_bytes=999, known=known(rows))
    assert smaller.status == "skipped"


@settings(max_examples=30, deadline=None)
@given(
    readings=st.builds(
        Readings,
        attachment_size=st.sampled_from(["bytes", "base64", "base64_lines", "rounded"]),
        nested_names=st.sampled_from(["given", "null", "empty"]),
        chunked_attachments=st.booleans(),
        sort_one=st.sampled_from(["ascending", "descending"]),
        page_cap=st.sampled_from([None, 1, 3]),
    ),
    messages=st.lists(
        st.lists(st.tuples(st.integers(0, 3_000), st.booleans()), max_size=3), max_size=4
    ),
    limit=st.none() | st.integers(0, 3_000),
)
def test_files_under_all_readings(
    readings: Readings, messages: list[list[tuple[int, bool]]], limit: int | None
) -> None:
    """R22, R26, R38: whatever is listed, each file is copied whole, skipped or reported, once."""
    mailbox = Mailbox()
    shuffle = random.Random(1)
    wanted: dict[tuple[int, str], bytes | None] = {}
    for files_of_one in messages:
        attached = [
            (f"{place}.bin", shuffle.randbytes(size), "message/rfc822" if nested else "x/y")
            for place, (size, nested) in enumerate(files_of_one)
        ]
        number = mailbox.deliver(attachments=attached)
        for name, data, kind in attached:
            if kind == "x/y" or readings.nested_names == "given":
                wanted[number, name] = data if limit is None or len(data) <= limit else None
    unnamed = sum(map(len, messages)) - len(wanted)
    with Emulator(mailbox, readings) as server, tempfile.TemporaryDirectory() as folder:

        async def copy() -> list[AttachmentRow]:
            async with AsyncClient(quick_config(server.url)) as client:
                return await copy_attachments(
                    client, INBOX, MessageFilter(), UPath(folder), max_bytes=limit, strict=True
                )

        rows = asyncio.run(copy())
        named = {(row.message_id, row.file_name): row for row in rows if row.file_name}
        assert named.keys() == wanted.keys()
        assert [row.status for row in rows if not row.file_name] == ["unlisted"] * unnamed
        for key, content in wanted.items():
            row = named[key]
            assert row.status == ("skipped" if content is None else "downloaded")
            assert content is None or Path((row.uri or "")[7:]).read_bytes() == content
        stored = sum(data is not None for data in wanted.values())
        asked = len(server.requests)
        assert Counter(row.status for row in asyncio.run(copy()))["unchanged"] == stored
        again = [call for call in server.requests[asked:] if "Attachments" in call["path"]]
        assert len(again) <= len(wanted) - stored


async def test_a_size_that_fits_nothing_is_still_recognised(copies: Copies) -> None:
    """R26: a file stored before isn't downloaded again while the listing says what it said then."""
    number = copies.server.mailbox.deliver(attachments=[("a.bin", b"0123456789", "x/y")])
    rows = await copies.copy([AttachmentRow(number, file_name="a.bin", size=7)])
    assert rows[0].size_fit == "different"

    for size, status in ((7, "unchanged"), (8, "downloaded")):
        row = AttachmentRow(number, file_name="a.bin", size=size)
        await copies.copy([row], known=known(rows))
        assert row.status == status


async def test_a_file_without_an_end_of_its_own(copies: Copies) -> None:
    """R22, R26: without Content-Length or chunks, nobody can tell whether a file is whole."""
    with Wire(lambda _: reply(b"0123456789", framed=False), close=True) as server:
        async with AsyncClient(quick_config(server.url)) as client:
            unframed = Copies(copies.server, client, copies.root)
            [row] = await unframed.copy([AttachmentRow(1, file_name="a.bin", size=16)])

    assert row.status == "failed"
    assert "without Content-Length or chunks" in (row.error or "")
    assert copies.stored() == {}


@pytest.mark.parametrize(
    ("name", "size", "mime_type", "status"),
    [
        ("a.pdf", None, "application/pdf", "failed"),
        ("a.pdf", 0, None, "failed"),
        ("a.pdf", 99, "application/pdf", "failed"),
        ("a.pdf", 15, "application/pdf", "downloaded"),  # the file itself, wrongly labelled
        ("Report.HTM", None, None, "downloaded"),
        ("page", None, "text/html", "downloaded"),
    ],
)
async def test_a_proxys_page_in_place_of_a_file(
    copies: Copies, name: str, size: int | None, mime_type: str | None, status: str
) -> None:
    """R16: an HTML page with status 200 isn't stored as the file; the download is retried."""
    number = copies.server.mailbox.deliver(attachments=[(name, b"<html>Wait</htm", "text/html")])
    row = AttachmentRow(number, file_name=name, size=size, mime_type=mime_type)

    await copies.copy([row])

    assert row.status == status
    assert (copies.downloads, len(copies.stored())) == ((3, 0) if status == "failed" else (1, 1))
    assert row.error is None or "an HTML page came in place of the file" in row.error


async def test_a_rerun_fetches_only_what_is_missing(copies: Copies) -> None:
    """Files with the recorded size are `unchanged`; all others are downloaded again."""
    names = ["same", "gone", "short", "new", "moved", "resized"]
    number = copies.server.mailbox.deliver(attachments=[(n, n.encode() * 9, "x/y") for n in names])
    first = await copies.copy()
    folder = copies.root / f"message_id={number}"
    again = await copies.copy(known=known(first))

    assert Counter(row.status for row in again) == {"unchanged": 6}
    assert [(row.uri, row.sha256) for row in again] == [(row.uri, row.sha256) for row in first]
    assert copies.downloads == 6

    (folder / "gone").unlink()
    (folder / "short").write_bytes(b"sho")
    earlier = known(first)
    del earlier[number, "new"]
    uri, size, sha256 = (getattr(earlier[number, "moved"], n) for n in ("uri", "size", "sha256"))
    earlier[number, "moved"] = StoredFile(f"{uri}.old", size, sha256)
    earlier[number, "resized"] = StoredFile(first[5].uri or "", 1, "0")
    rows = await copies.copy(known=earlier)

    assert [row.status for row in rows] == ["unchanged"] + ["downloaded"] * 5
    assert copies.downloads == 11
    assert set(copies.stored().values()) == {n.encode() * 9 for n in names}


async def test_what_is_not_wanted_is_skipped(copies: Copies) -> None:
    """Files that don't match the pattern, or are too large as listed or in fact, are `skipped`."""
    number = copies.server.mailbox.deliver(
        attachments=[
            ("a.csv", b"x" * 100, "x/y"),
            ("b.csv", b"x" * 101, "x/y"),
            ("c.csv", b"x" * 500_000, "x/y"),
            ("d.pdf", b"x", "x/y"),
        ]
    )
    rows = copies.listed()
    rows[2].size = rows[2].listed_size = None

    await copies.copy(rows, wanted=name_filter("*.csv"), max_bytes=100)

    assert [row.status for row in rows] == ["downloaded", "skipped", "skipped", "skipped"]
    assert all(row.error and row.uri is None for row in rows[1:])
    assert list(copies.stored()) == [f"message_id={number}/a.csv"]
    assert copies.downloads == 3  # the second's listed size may be that of its base64 (R26)


async def test_one_bad_file_does_not_lose_the_others(copies: Copies) -> None:
    """Every file is tried; each row has its result."""
    box = copies.server.mailbox
    number = box.deliver(attachments=[(f"{n}.txt", b"x", "x/y") for n in range(20)])
    rows = copies.listed()
    rows.insert(3, AttachmentRow(number, file_name="missing"))
    rows.insert(5, AttachmentRow(number, status="unlisted"))
    rows.insert(7, AttachmentRow(number, file_name="same", status="ambiguous"))
    rows.insert(9, AttachmentRow(number, file_name="half\ud83d"))
    (copies.root / f"message_id={number}" / "1.txt").mkdir(parents=True)

    await copies.copy(rows)

    assert Counter(row.status for row in rows) == {
        "downloaded": 19,
        "failed": 3,
        "unlisted": 1,
        "ambiguous": 1,
    }
    failed = [row for row in rows if row.status == "failed"]
    assert [row.file_name for row in failed] == ["1.txt", "missing", "half\ud83d"]
    assert all(row.error and row.uri is None for row in failed)
    assert not [name for name in copies.stored() if STAGED_PREFIX in name]


async def test_a_token_that_expires_between_downloads(copies: Copies) -> None:
    """R12: a 401 between downloads causes one new login, and no file is lost."""
    copies.server.mailbox.deliver(attachments=[(f"{n}", b"x", "x/y") for n in range(30)])
    seen = itertools.count(1)

    def expire(record: dict[str, Any]) -> None:
        if record["path"].endswith("Attachments") and next(seen) == 10:
            copies.server.expire_tokens()

    copies.server.on_request = expire
    rows = await copies.copy()

    assert Counter(row.status for row in rows) == {"downloaded": 30}
    assert copies.server.logins == 2


async def test_downloads_at_once_are_bounded(copies: Copies) -> None:
    """No more than `max_concurrency` files are downloaded at once."""
    copies.server.mailbox.deliver(attachments=[(f"{n}", b"x", "x/y") for n in range(40)])
    copies.server.readings = Readings(latency_seconds=0.02)

    rows = await copies.copy()

    assert Counter(row.status for row in rows) == {"downloaded": 40}
    times = [r["time"] for r in copies.server.requests if r["path"].endswith("Attachments")]
    # A request takes at least the latency, so those that began within less than that overlap.
    at_once = max(sum(0 <= t - one < 0.019 for t in times) for one in times)
    assert 1 < at_once <= 4


class _SlowStore(LocalFileSystem):  # type: ignore[misc]
    """A store with a slow connection."""

    protocol = ("slow",)
    local_file = False
    fetched: ClassVar[Callable[[], int]]
    stored = most_waiting = 0
    lock = threading.Lock()

    def put_file(self, *args: Any, **options: Any) -> None:
        time.sleep(0.02)
        with self.lock:
            waiting = _SlowStore.fetched() - self.stored
            _SlowStore.most_waiting = max(self.most_waiting, waiting)
        super().put_file(*args, **options)
        with self.lock:
            _SlowStore.stored += 1


@pytest.mark.filterwarnings("ignore:UPath 'slow':UserWarning")
async def test_few_files_wait_for_a_slow_store(copies: Copies) -> None:
    """At most `max_concurrency` files, from all pages together, are on their way to a store."""
    copies.server.mailbox.deliver(attachments=[(f"{n}", b"x", "x/y") for n in range(60)])
    rows = copies.listed()
    fsspec.register_implementation("slow", _SlowStore, clobber=True)
    _SlowStore.fetched = lambda: copies.downloads
    async with AttachmentCopier(
        client=copies.client,
        folder=INBOX,
        root=UPath(f"slow://{copies.root}", auto_mkdir=True),
        wanted=lambda _: True,
    ) as copier:
        await asyncio.gather(*(copier.copy(rows[n : n + 10]) for n in range(0, 60, 10)))

    assert Counter(row.status for row in rows) == {"downloaded": 60}
    assert len(copies.stored()) == 60
    assert 1 < _SlowStore.most_waiting <= 4


async def test_leftovers_of_killed_downloads_are_removed(copies: Copies) -> None:
    """The next run removes what a killed process left, whatever it downloads itself."""
    copies.server.mailbox.deliver(attachments=[("a", b"x", "x/y")])
    (copies.root / STAGING).mkdir(parents=True)
    (copies.root / STAGING / f"{STAGED_PREFIX}0.tmp").write_bytes(b"half of")

    await copies.copy(wanted=lambda _: False)

    assert list(copies.root.rglob("*")) == []


@pytest.mark.slow
@pytest.mark.parametrize(("count", "size"), [(12, 3_000_000), (200, 20_000)])
async def test_cancelling_leaves_nothing_unfinished(copies: Copies, count: int, size: int) -> None:
    """A task stopped at any moment leaves complete files and nothing else."""
    data = random.Random(3).randbytes(size)
    copies.server.mailbox.deliver(attachments=[(f"{n}", data, "x/y") for n in range(count)])
    for turn in range(10):
        copying = asyncio.ensure_future(copies.copy())
        await asyncio.sleep(0.01 + turn * 0.01)
        copying.cancel()
        with suppress(asyncio.CancelledError):
            await copying

        stored = copies.stored()
        assert not [name for name in stored if STAGED_PREFIX in name]
        assert all(found == data for found in stored.values())
        shutil.rmtree(copies.root, ignore_errors=True)


def test_the_sync_download(server: Emulator, tmp_path: Path) -> None:
    """The synchronous download follows the same rules."""
    data = random.Random(2).randbytes(200_000)
    number = server.mailbox.deliver(attachments=[("Отчёт.bin", data, "x/y")])
    server.faults.append(Fault("Attachments", kind="truncate"))
    path = ObjectStoragePath(f"file://{tmp_path}/a.bin")
    with Client(quick_config(server.url)) as client:
        stored = download(client, INBOX, number, "Отчёт.bin", path)

        assert (tmp_path / "a.bin").read_bytes() == data
        assert stored == StoredFile(str(path), 200_000, hashlib.sha256(data).hexdigest())
    assert (tmp_path / "a.bin").read_bytes() == data
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.slow
def test_memory_does_not_grow_with_a_file(tmp_path: Path) -> None:
    """Copying a file of 200 MB takes no more memory than a small one."""
    code = """
        import asyncio, resource, sys
        from upath import UPath
        from airflow_provider_r7mail.lake.attachments import AttachmentCopier
        from airflow_provider_r7mail.client.session import AsyncClient
        from airflow_provider_r7mail.client.http import ClientConfig
        from airflow_provider_r7mail.lake.derived import AttachmentRow

        url, root, small, large = sys.argv[1:]
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

        async def main():
            config = ClientConfig(url=url, login="user_test", password="TestPassword")
            async with AsyncClient(config) as client:
                async with AttachmentCopier(
                    client=client, folder=24, root=UPath(root), wanted=lambda _: True
                ) as copier:
                    for number in (small, large):
                        row = AttachmentRow(int(number), file_name="a.bin")
                        await copier.copy([row])
                        print(row.status, row.size, peak())

        asyncio.run(main())
    """
    with Emulator(Mailbox()) as server:
        numbers = [
            server.mailbox.deliver(attachments=[("a.bin", bytes(size), "x/y")])
            for size in (2 << 20, 200 << 20)
        ]
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), server.url, str(tmp_path)]
            + [str(number) for number in numbers],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    assert done.returncode == 0, done.stderr
    (_, _, before), (status, size, after) = (line.split() for line in done.stdout.splitlines())
    assert (status, int(size)) == ("downloaded", 200 << 20)
    assert int(after) - int(before) < 100
