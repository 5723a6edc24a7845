"""Objects that appear whole or not at all: on a disk, on a real S3 API, and elsewhere."""

# ruff: noqa: TID253, PT012 - no DAG file is read here; the errors come from the end of blocks

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import boto3
import fsspec
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError
from upath import UPath

from airflow_provider_r7mail import storage
from airflow_provider_r7mail.compat import ObjectStoragePath
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.storage import (
    PART_BYTES,
    STAGED_PREFIX,
    StagedObject,
    clean,
    locked,
    read,
    remove,
    remove_empty,
    size_of,
    staged,
    to_its_end,
)
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
SMALL, LARGE = b"PAR1 small", b"0123456789abcdef" * (1 << 20) + b"16 MB and more"


class Bucket:
    """A bucket on an S3 server of its own."""

    def __init__(self, url: str) -> None:
        self._s3 = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name="us-east-1",
        )
        self._s3.create_bucket(Bucket="mail")

    def names(self) -> list[str]:
        """The keys of all objects."""
        found = self._s3.list_objects_v2(Bucket="mail").get("Contents", [])
        return [item["Key"] for item in found]

    def sha256(self, name: str) -> str | None:
        """The checksum that S3 was given with an object."""
        found = self._s3.head_object(Bucket="mail", Key=name, ChecksumMode="ENABLED")
        checksum: str | None = found.get("ChecksumSHA256")
        return checksum

    def unfinished(self) -> int:
        """How many uploads are under way."""
        return len(self._s3.list_multipart_uploads(Bucket="mail").get("Uploads", []))

    def part_sizes(self) -> list[int]:
        """The sizes of the parts of all uploads that are under way."""
        uploads = self._s3.list_multipart_uploads(Bucket="mail")["Uploads"]
        listings = [
            self._s3.list_parts(Bucket="mail", Key=upload["Key"], UploadId=upload["UploadId"])
            for upload in uploads
        ]
        return [part["Size"] for listing in listings for part in listing["Parts"]]


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """An S3 server on a real socket."""
    server = S3Server()
    yield server.url
    server.stop()


@pytest.fixture
def bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket `mail`, which the connection `s3` leads to."""
    httpx.post(f"{s3_url}/moto-api/reset")
    monkeypatch.setenv(
        "AIRFLOW_CONN_S3",
        json.dumps(
            {
                "conn_type": "aws",
                "login": "testing",
                "password": "testing",
                "extra": {"endpoint_url": s3_url, "region_name": "us-east-1"},
            }
        ),
    )
    return Bucket(s3_url)


Place = Callable[[str], Any]


@pytest.fixture(params=["file", "s3", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Paths in a store: a disk, S3, and one whose file system can't hold a file back."""
    if request.param == "file":
        return lambda name: ObjectStoragePath(f"file://{tmp_path}/out/{name}")
    if request.param == "s3":
        request.getfixturevalue("bucket")
        return lambda name: ObjectStoragePath(f"s3://s3@mail/out/{name}")
    fsspec.filesystem("memory").store.clear()
    return lambda name: UPath(f"memory://out/{name}")


def present(path: Any) -> list[str]:
    """What is in the path's folder, in a reader's eyes."""
    path.fs.invalidate_cache()
    try:
        return sorted(Path(name).name for name in path.fs.ls(path.parent.path, detail=False))
    except FileNotFoundError:
        return []


def commit_async(item: StagedObject) -> None:
    """Commit as on an event loop."""
    asyncio.run(item.commit_async())


@pytest.mark.parametrize("commit", [StagedObject.commit, commit_async])
@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_an_object_appears_whole(
    place: Place, data: bytes, commit: Callable[[StagedObject], None]
) -> None:
    """What is written is not seen until it is whole; then it is in the place of the older one."""
    path = place("a.bin")
    for content in (data, data + b"2"):
        before = read(path)
        item = StagedObject(path)
        for start in range(0, len(content), 3 << 20):
            item.write(content[start : start + (3 << 20)])
        assert read(path) == before
        commit(item)

        assert read(path) == content
        assert (item.bytes, item.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert size_of(path) == len(content)
    item.discard()
    assert present(path) == ["a.bin"]
    remove(path)
    remove(path)
    assert read(path) is None
    assert size_of(path) is None


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("older", [None, b"older"])
def test_an_exception_leaves_nothing_new(place: Place, data: bytes, older: bytes | None) -> None:
    """Where writing fails, nothing partial is left, and the older object stays as it was."""
    path = place("a.bin")
    if older is not None:
        with staged(path) as item:
            item.write(older)
    with pytest.raises(KeyError), staged(path) as item:
        item.write(data)
        raise KeyError

    assert read(path) == older
    assert present(path) == ([] if older is None else ["a.bin"])


@pytest.mark.parametrize("size", [10, 1 << 20], ids=["small", "multipart"])
def test_no_valid_but_truncated_parquet(place: Place, size: int) -> None:
    """A Parquet writer's own clean-up must not make a readable file of half of the rows."""
    path = place("a.parquet")
    table = pa.table({"n": [os.urandom(size) for _ in range(18)]})
    with (
        pytest.raises(KeyError),
        staged(path) as item,
        pq.ParquetWriter(item, table.schema, compression="none") as writer,
    ):
        writer.write_table(table)
        raise KeyError

    assert present(path) == []


def test_no_upload_stays_open(bucket: Bucket) -> None:
    """On S3 an upload that failed is ended, so that nobody pays for its parts."""
    path = ObjectStoragePath("s3://s3@mail/a.bin")
    with pytest.raises(KeyError), staged(path) as item:
        item.write(LARGE)
        raise KeyError
    with staged(path) as item:
        item.write(LARGE)

    assert bucket.names() == ["a.bin"]
    assert bucket.unfinished() == 0


def test_parts_of_one_size(bucket: Bucket) -> None:
    """Stores like S3 that take only parts of one size, the last excepted, take mine."""
    path = ObjectStoragePath("s3://s3@mail/a.bin")
    pieces = [os.urandom(size) for size in (3_000_000, 13_000_001, 1, 19_000_000)]
    with staged(path) as item:
        for piece in pieces:
            item.write(piece)
        sizes = bucket.part_sizes()

    assert len(sizes) >= 3  # one is perhaps still on its way
    assert set(sizes) == {PART_BYTES}
    assert read(path) == b"".join(pieces)


@pytest.mark.parametrize("commit", [StagedObject.commit, commit_async])
def test_a_part_that_does_not_get_there(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, commit: Callable[[StagedObject], None]
) -> None:
    """A part that fails while others are gathered makes no object with a hole."""
    item = StagedObject(ObjectStoragePath("s3://s3@mail/a.bin"))
    call = item.path.fs._call_s3
    failed: list[str] = []

    async def fail_once(method: str, **values: Any) -> Any:
        if method == "upload_part" and values["PartNumber"] == 2 and not failed:
            failed.append(method)
            raise ConnectionResetError
        return await call(method, **values)

    monkeypatch.setattr(item.path.fs, "_call_s3", fail_once)
    with pytest.raises(ConnectionResetError):
        item.write(LARGE)
        commit(item)

    assert bucket.names() == []
    assert bucket.unfinished() == 0


def test_an_s3_server_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever S3's library raises comes as an OSError that names the object."""
    extra = {"endpoint_url": "http://127.0.0.1:1", "region_name": "us-east-1"}
    # Airflow keeps a file system for each connection: this one must have its own.
    monkeypatch.setenv(
        "AIRFLOW_CONN_S3_DOWN",
        json.dumps({"conn_type": "aws", "login": "a", "password": "b", "extra": extra}),
    )
    path = ObjectStoragePath("s3://s3_down@mail/a.bin")
    monkeypatch.setattr(path.fs, "retries", 1)

    with pytest.raises(OSError, match=r"mail/a\.bin"), staged(path) as item:
        item.write(SMALL)


@pytest.mark.parametrize("commit", [StagedObject.commit, commit_async])
def test_a_missing_bucket(bucket: Bucket, commit: Callable[[StagedObject], None]) -> None:
    """A bucket that is not there is a clear error."""
    for data in (SMALL, LARGE):
        item = StagedObject(ObjectStoragePath("s3://s3@other/a.bin"))
        with pytest.raises(OSError, match="bucket"):
            item.write(data)
            commit(item)
        item.discard()


@pytest.mark.parametrize("commit", [StagedObject.commit, commit_async])
@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
def test_s3_checks_what_was_hashed(
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    checksums: str,
    commit: Callable[[StagedObject], None],
) -> None:
    """S3 gets the SHA-256 we record and refuses other bytes; a store that knows none is spared."""
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", checksums)
    name = f"S3_{checksums}"  # Airflow keeps a file system for each connection
    monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", os.environ["AIRFLOW_CONN_S3"])
    item = StagedObject(ObjectStoragePath(f"s3://{name.lower()}@mail/a.bin"))
    item.write(SMALL)
    commit(item)

    digest = base64.b64encode(hashlib.sha256(SMALL).digest()).decode()
    assert bucket.sha256("a.bin") == (digest if checksums == "when_supported" else None)


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    """Others may read the files, as the umask says: they are not a temporary file's 0600."""
    old = os.umask(0o022)
    try:
        with staged(ObjectStoragePath(f"file://{tmp_path}/deep/er/a.bin")) as item:
            item.write(SMALL)
    finally:
        os.umask(old)

    assert stat.S_IMODE((tmp_path / "deep/er/a.bin").stat().st_mode) == 0o644


def test_an_unwritable_path(tmp_path: Path) -> None:
    """A place where nothing can be written is refused at once, with the path."""
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(R7MailConfigError, match=r"file/a\.bin: can't be written"):
        StagedObject(ObjectStoragePath(f"file://{tmp_path}/file/a.bin"))


def in_child(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


WRITE = """
    import signal, sys
    from upath import UPath
    from airflow_provider_r7mail.storage import StagedObject, staged
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with staged(UPath(sys.argv[1])) as item:
        for size in map(int, sys.argv[2:]):
            item.write(b"x" * size)
"""


@pytest.mark.parametrize("sizes", [(900_000, 900_000), (1_000_001,), (999_999, 2)])
def test_a_full_disk(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """A disk that takes only a part is an error, even for the last bytes; the older file stays."""
    path = tmp_path / "a.bin"
    path.write_bytes(SMALL)
    # The system cuts a write at the limit just as it does at the end of a full disk.
    done = in_child(
        WRITE,
        path,
        *sizes,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )

    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert path.read_bytes() == SMALL
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


def test_what_killed_processes_leave(tmp_path: Path) -> None:
    """Leftovers of a killed process are removed; what a living one is writing is not touched."""
    code = """
        import os, signal, sys
        from upath import UPath
        from airflow_provider_r7mail.storage import StagedObject
        item = StagedObject(UPath(sys.argv[1]))
        item.write(b"half of")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    folder = ObjectStoragePath(f"file://{tmp_path}")
    (tmp_path / "other.tmp").touch()
    assert in_child(code, tmp_path / "a.bin").returncode == -signal.SIGKILL
    item = StagedObject(folder / "a.bin")
    assert len(list(tmp_path.glob(f"{STAGED_PREFIX}*"))) == 2

    assert clean(folder) == 1
    assert clean(folder) == 0
    item.write(SMALL)
    item.commit()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.bin", "other.tmp"]
    assert clean(folder / "missing") == 0
    assert clean(UPath("memory://nothing")) == 0


def _write_many(folder: str, number: int) -> None:
    for turn in range(150):
        path = ObjectStoragePath(f"file://{folder}/a.bin")
        clean(path.parent)
        with staged(path) as item:
            for _ in range(3):
                item.write(f"{number} {turn}\n".encode() * 1000)


def test_processes_at_once(tmp_path: Path) -> None:
    """Processes that clean and write the same file at once never disturb each other."""
    children = [
        CHILDREN.Process(target=_write_many, args=(str(tmp_path), number)) for number in range(4)
    ]
    for child in children:
        child.start()
    while any(child.is_alive() for child in children):
        time.sleep(0.001)
        data = read(ObjectStoragePath(f"file://{tmp_path}/a.bin"))
        if data is not None:
            assert len(set(data.splitlines())) == 1
            assert data.count(b"\n") == 3000
    for child in children:
        child.join()

    assert [child.exitcode for child in children] == [0] * 4
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


async def test_what_is_being_written_ends_before_all_is_discarded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A task that is stopped waits for its thread, which would write on after the cleaning up."""
    begun, ended = threading.Event(), threading.Event()

    def write(path: str) -> None:
        begun.set()
        time.sleep(0.2)
        ended.set()
        raise OSError(path)

    working = asyncio.ensure_future(to_its_end(write, "/secret name"))
    await asyncio.to_thread(begun.wait)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert ended.is_set()
    assert "an error besides: OSError" in caplog.text
    assert "secret name" not in caplog.text


def test_a_folder_that_vanishes(tmp_path: Path) -> None:
    """Other runs remove folders that are empty, at any moment: a file still gets its place."""
    place = ObjectStoragePath(f"file://{tmp_path}/new/a.bin")
    item = StagedObject(place, ObjectStoragePath(f"file://{tmp_path}/staging"))
    assert not (tmp_path / "new").exists()
    item.write(SMALL)
    item.commit()
    assert (tmp_path / "new" / "a.bin").read_bytes() == SMALL

    stop = threading.Event()

    def remove() -> None:
        while not stop.is_set():
            remove_empty(ObjectStoragePath(f"file://{tmp_path}/x/y"), 2)
            time.sleep(0.0001)  # or else this thread would hardly let the other one work

    removing = threading.Thread(target=remove)
    removing.start()
    try:
        for _ in range(1000):
            with staged(ObjectStoragePath(f"file://{tmp_path}/x/y/a.bin")) as file:
                file.write(SMALL)
            (tmp_path / "x" / "y" / "a.bin").unlink()
    finally:
        stop.set()
        removing.join()


def _hold(folder: str, options: dict[str, Any], log: str) -> None:
    for _ in range(20):
        with locked(UPath(folder, **options), "it"), Path(log).open("a") as file:
            file.write("in\n")
            file.flush()
            file.write("out\n")


@pytest.mark.parametrize("store", ["disk", "s3"])
def test_one_publishes_at_a_time(tmp_path: Path, bucket: Bucket, s3_url: str, store: str) -> None:
    """Only one process at a time is inside `locked`, on a disk and on S3."""
    log = tmp_path / "log"
    folder, options = f"file://{tmp_path}/new", {}
    if store == "s3":  # children do not see the connection: they are forked from an older process
        client = {"endpoint_url": s3_url, "region_name": "us-east-1"}
        folder = "s3://mail/new"
        options = {"key": "testing", "secret": "testing", "client_kwargs": client}
    children = [CHILDREN.Process(target=_hold, args=(folder, options, str(log))) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()

    assert log.read_text() == "in\nout\n" * 80
    assert bucket.names() == []


def test_a_lock_on_s3_that_a_killed_process_has_left(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A lock that stays is taken over after some time, by one only; a new holder is waited for."""
    monkeypatch.setattr(storage, "LOCK_SECONDS", 0.5)
    caplog.set_level("INFO")
    folder = ObjectStoragePath("s3://s3@mail/lake")
    (folder / "_locks" / "it").write_text("of a killed process")
    inside: list[int] = []

    def hold(number: int) -> None:
        with locked(folder, "it"):
            inside.append(number)
            time.sleep(0.2)
            inside.append(number)

    threads = [threading.Thread(target=hold, args=(number,)) for number in range(3)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert time.monotonic() - started > 0.5
    assert inside[::2] == inside[1::2]
    assert sorted(inside[::2]) == [0, 1, 2]
    assert bucket.names() == []
    assert "waiting for it" in caplog.text


@pytest.mark.parametrize(("code", "runs"), [("NotImplemented", True), ("AccessDenied", False)])
def test_a_store_like_s3_that_refuses_to_lock(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, code: str, runs: bool
) -> None:
    """One that knows no conditional writes is used without locks; other refusals are errors."""
    folder = ObjectStoragePath("s3://s3@mail/lake")
    call, ran = folder.fs.call_s3, []

    def refuse(method: str, **values: Any) -> Any:
        if method != "put_object":
            return call(method, **values)
        raise OSError(code) from ClientError({"Error": {"Code": code}}, method)

    monkeypatch.setattr(folder.fs, "call_s3", refuse)
    with nullcontext() if runs else pytest.raises(OSError, match=code), locked(folder, "it"):
        ran.append(True)

    assert bool(ran) is runs


def test_blocks_fit_s3() -> None:
    """S3 takes parts of 5 MiB and more, the last excepted."""
    assert PART_BYTES >= 5 << 20
