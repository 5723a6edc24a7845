"""Objects appear complete or not at all: on a disk, on a real S3 API, and elsewhere."""

# ruff: noqa: TID253, PT012 - no DAG file is read here; the errors are raised at the end of blocks

from __future__ import annotations

import asyncio
import base64
import fcntl
import hashlib
import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error
from upath import UPath

from airflow_provider_r7mail.compat import ObjectStoragePath
from airflow_provider_r7mail.exceptions import R7MailConfigError, R7MailPublishError
from airflow_provider_r7mail.lake import locks
from airflow_provider_r7mail.lake.locks import locked
from airflow_provider_r7mail.lake.s3 import PART_BYTES
from airflow_provider_r7mail.lake.staging import STAGED_PREFIX, StagedObject, clean, staged
from airflow_provider_r7mail.lake.storage import read, remove, remove_empty, size_of
from airflow_provider_r7mail.lake.threads import run_to_end
from tests.lake.support import CHILDREN, Bucket, connect_s3, run_children

SMALL, LARGE = b"PAR1 small", b"0123456789abcdef" * (1 << 20) + b"16 MB and more"


@pytest.fixture
def bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket `mail`, which the connection `s3` leads to."""
    httpx.post(f"{s3_url}/moto-api/reset")
    connect_s3(monkeypatch, "s3", s3_url)
    return Bucket(s3_url, "mail")


Place = Callable[[str], Any]


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.slow), "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Paths in a store: a disk, S3, and one whose file system can't hold an object back."""
    if request.param == "file":
        return lambda name: ObjectStoragePath(f"file://{tmp_path}/out/{name}")
    if request.param == "s3":
        request.getfixturevalue("bucket")
        return lambda name: ObjectStoragePath(f"s3://s3@mail/out/{name}")
    fsspec.filesystem("memory").store.clear()
    return lambda name: UPath(f"memory://out/{name}")


def present(path: Any) -> list[str]:
    """What a reader sees in the path's folder."""
    path.fs.invalidate_cache()
    try:
        return sorted(Path(name).name for name in path.fs.ls(path.parent.path, detail=False))
    except FileNotFoundError:
        return []


def commit_async(item: StagedObject) -> None:
    """Commit on an event loop."""
    asyncio.run(item.commit_async())


@pytest.mark.parametrize("commit", [StagedObject.commit, commit_async])
@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_an_object_appears_whole(
    place: Place, data: bytes, commit: Callable[[StagedObject], None]
) -> None:
    """An object is invisible until it is complete; then it replaces the older one."""
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


def test_what_is_discarded_is_never_written(place: Place) -> None:
    """A library that flushes an object after it was discarded starts no upload and doesn't fail."""
    item = StagedObject(place("a.bin"))
    item.write(SMALL)
    item.discard()
    item.flush()

    assert item.sha256 == hashlib.sha256().hexdigest()
    assert present(place("a.bin")) == []


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("older", [None, b"older"])
def test_an_exception_leaves_nothing_new(place: Place, data: bytes, older: bytes | None) -> None:
    """If writing fails, no part is left, and the older object is unchanged."""
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
    """A Parquet writer's own clean-up must not leave a readable file with half of the rows."""
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
    """On S3 a failed upload is aborted, so that nobody pays for its parts."""
    path = ObjectStoragePath("s3://s3@mail/a.bin")
    with pytest.raises(KeyError), staged(path) as item:
        item.write(LARGE)
        raise KeyError
    with staged(path) as item:
        item.write(LARGE)

    assert bucket.names() == ["a.bin"]
    assert bucket.unfinished() == 0


def test_parts_of_one_size(bucket: Bucket) -> None:
    """All parts but the last have the same size, as some stores like S3 require."""
    path = ObjectStoragePath("s3://s3@mail/a.bin")
    pieces = [os.urandom(size) for size in (3_000_000, 13_000_001, 1, 19_000_000)]
    with staged(path) as item:
        for piece in pieces:
            item.write(piece)
        sizes = bucket.part_sizes()

    assert len(sizes) >= 3  # one may still be on its way
    assert set(sizes) == {PART_BYTES}
    assert read(path) == b"".join(pieces)


@pytest.mark.parametrize("commit", [StagedObject.commit, commit_async])
def test_a_part_that_fails(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, commit: Callable[[StagedObject], None]
) -> None:
    """A part that fails while others are collected doesn't leave an object with a hole."""
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


@pytest.mark.slow
def test_an_s3_server_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any error of S3's library becomes an OSError that names the object."""
    connect_s3(monkeypatch, "s3_down", "http://127.0.0.1:1")
    path = ObjectStoragePath("s3://s3_down@mail/a.bin")
    monkeypatch.setattr(path.fs, "retries", 1)

    with pytest.raises(OSError, match=r"mail/a\.bin"), staged(path) as item:
        item.write(SMALL)


@pytest.mark.parametrize("commit", [StagedObject.commit, commit_async])
def test_a_missing_bucket(bucket: Bucket, commit: Callable[[StagedObject], None]) -> None:
    """A missing bucket is a clear error."""
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
    s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
    checksums: str,
    commit: Callable[[StagedObject], None],
) -> None:
    """S3 gets the recorded SHA-256 and refuses other bytes; stores without checksums get none."""
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", checksums)
    connect_s3(monkeypatch, f"s3_{checksums}", s3_url)
    item = StagedObject(ObjectStoragePath(f"s3://s3_{checksums}@mail/a.bin"))
    item.write(SMALL)
    commit(item)

    digest = base64.b64encode(hashlib.sha256(SMALL).digest()).decode()
    assert bucket.sha256("a.bin") == (digest if checksums == "when_supported" else None)


@pytest.mark.parametrize("commit", [StagedObject.commit, commit_async])
def test_the_first_request_has_airflows_credentials(
    bucket: Bucket,
    s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
    commit: Callable[[StagedObject], None],
) -> None:
    """A process whose first request to S3 is a write signs it as Airflow's connection says.

    s3fs 2026.2 to 2026.4, which the constraints of Airflow 2.11.2 and 3.2.1 pin, would lose the
    credentials.
    """
    name = f"s3_first_{commit.__name__}"
    connect_s3(monkeypatch, name, s3_url)
    item = StagedObject(ObjectStoragePath(f"s3://{name}@mail/a.bin"))
    item.write(SMALL)
    commit(item)

    assert bucket.names() == ["a.bin"]


@pytest.mark.parametrize("algorithm", ["SHA256", "SHA1", "CRC32"])
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_a_checksum_algorithm_that_is_set(
    bucket: Bucket, s3_url: str, monkeypatch: pytest.MonkeyPatch, data: bytes, algorithm: str
) -> None:
    """With a ChecksumAlgorithm, S3 wants the checksums of all parts at the end of an upload."""
    # The moto of Airflow 3.0's constraints gives a wrong checksum for an object made of parts.
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    connect_s3(monkeypatch, f"s3_{algorithm}", s3_url)
    path = ObjectStoragePath(f"s3://s3_{algorithm}@mail/a.bin")
    monkeypatch.setattr(path.fs, "s3_additional_kwargs", {"ChecksumAlgorithm": algorithm})
    call, ended = path.fs._call_s3, []

    async def watch(method: str, *more: Any, **values: Any) -> Any:
        if method == "complete_multipart_upload":
            ended.extend(values["MultipartUpload"]["Parts"])
        return await call(method, *more, **values)

    monkeypatch.setattr(path.fs, "_call_s3", watch)
    with staged(path) as item:
        item.write(data)

    assert read(path) == data
    assert len(ended) == (0 if data == SMALL else 3)
    for number, part in enumerate(ended, 1):
        assert set(part) == {"PartNumber", "ETag", f"Checksum{algorithm}"}
        assert part["PartNumber"] == number


def forbid(
    monkeypatch: pytest.MonkeyPatch, fs: Any, code: str, when: Callable[[str, dict[str, Any]], bool]
) -> None:
    """Make S3 refuse some requests, by the method's name and its arguments."""
    arguments = fs._get_s3_method_kwargs

    def refuse(method: Any, *more: Any, **values: Any) -> Any:
        if when(method.__name__, values):
            name = "".join(word.title() for word in method.__name__.split("_"))
            error = ClientError({"Error": {"Code": code, "Message": "Forbidden"}}, name)
            raise translate_boto_error(error)
        return arguments(method, *more, **values)

    monkeypatch.setattr(fs, "_get_s3_method_kwargs", refuse)


@pytest.mark.parametrize("code", ["InvalidRequest", "NotImplemented"])
def test_a_store_that_refuses_checksums(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """A store like S3 that refuses checksums refuses the lock, before anything is removed."""
    folder = ObjectStoragePath("s3://s3@mail/lake")
    forbid(monkeypatch, folder.fs, code, lambda _, values: "ChecksumSHA256" in values)

    with pytest.raises(OSError, match=r"PutObject s3://mail/lake/_locks/it"), locked(folder, "it"):
        pytest.fail("not locked")
    assert bucket.names() == []


@pytest.mark.parametrize(
    ("method", "action"),
    [
        ("put_object", "PutObject"),
        ("create_multipart_upload", "CreateMultipartUpload"),
        ("upload_part", "UploadPart"),
    ],
)
def test_a_right_that_is_missing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, method: str, action: str
) -> None:
    """If S3 forbids something, the error names the object and the action."""
    path = ObjectStoragePath("s3://s3@mail/lake/a.bin")
    forbid(monkeypatch, path.fs, "AccessDenied", lambda name, _: name == method)

    with (
        pytest.raises(PermissionError, match=rf"{action} s3://mail/lake/a\.bin: Forbidden"),
        staged(path) as item,
    ):
        item.write(SMALL if method == "put_object" else LARGE)


def test_without_the_right_to_list_the_bucket(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without s3:ListBucket, where S3 says "Forbidden" of what doesn't exist, all works."""
    folder = ObjectStoragePath("s3://s3@mail/lake")

    def missing(name: str, values: dict[str, Any]) -> bool:
        return name.startswith("list_") or (
            name in {"head_object", "get_object"} and values["Key"] not in bucket.names()
        )

    forbid(monkeypatch, folder.fs, "403", missing)
    path = folder / "a.bin"
    with locked(folder, "it"):
        assert read(path) is None
        assert size_of(path) is None
        with staged(path) as item:
            item.write(SMALL)
        assert read(path) == SMALL
        assert size_of(path) == len(SMALL)
        assert "lake/_locks/it" in bucket.names()
    remove(path)
    assert bucket.names() == []

    refused: list[str] = []

    def once(name: str, _: dict[str, Any]) -> bool:
        refused.extend([name] * (name == "put_object"))
        return name == "put_object" and len(refused) == 1

    # Another run's lock, which it releases before anybody can look at it.
    forbid(monkeypatch, folder.fs, "PreconditionFailed", once)
    with locked(folder, "it"):
        assert bucket.names() == ["lake/_locks/it"]
    assert len(refused) == 2


def test_without_the_right_to_look_at_a_lock(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the right to read the lock just made, the error names the right and the lock."""
    folder = ObjectStoragePath("s3://s3@mail/lake")
    forbid(monkeypatch, folder.fs, "403", lambda name, _: name == "head_object")
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.1)  # or the wait for it would be long

    with (
        pytest.raises(PermissionError, match=r"HeadObject s3://mail/lake/_locks/it: Forbidden"),
        locked(folder, "it"),
    ):
        pytest.fail("not locked")


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    """Files have the permissions of the umask, not a temporary file's 0600."""
    old = os.umask(0o022)
    try:
        with staged(ObjectStoragePath(f"file://{tmp_path}/deep/er/a.bin")) as item:
            item.write(SMALL)
    finally:
        os.umask(old)

    assert stat.S_IMODE((tmp_path / "deep/er/a.bin").stat().st_mode) == 0o644


def test_an_unwritable_path(tmp_path: Path) -> None:
    """An unwritable place is refused at once, with the path."""
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(R7MailConfigError, match=r"file/a\.bin: can't be written"):
        StagedObject(ObjectStoragePath(f"file://{tmp_path}/file/a.bin"))


def in_child(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python code in a separate process."""
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
    from airflow_provider_r7mail.lake.staging import StagedObject, staged
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with staged(UPath(sys.argv[1])) as item:
        for size in map(int, sys.argv[2:]):
            item.write(b"x" * size)
"""


@pytest.mark.parametrize("sizes", [(900_000, 900_000), (1_000_001,), (999_999, 2)])
def test_a_full_disk(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """A disk that fills up is an error, even at the last bytes; the older file stays."""
    path = tmp_path / "a.bin"
    path.write_bytes(SMALL)
    # At this limit the system shortens a write as it does when a disk gets full.
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
    """Leftovers of a killed process are removed; files of a running one are left alone."""
    code = """
        import os, signal, sys
        from upath import UPath
        from airflow_provider_r7mail.lake.staging import StagedObject
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


@pytest.mark.slow
def test_processes_at_once(tmp_path: Path) -> None:
    """Processes that clean and write the same file at once don't interfere."""
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


async def test_a_write_in_progress_ends_before_it_is_discarded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A stopped task waits for its thread, which would otherwise write after the clean-up."""
    begun, ended = threading.Event(), threading.Event()

    def write(path: str) -> None:
        begun.set()
        time.sleep(0.2)
        ended.set()
        raise OSError(path)

    working = asyncio.ensure_future(run_to_end(write, "/secret name"))
    await asyncio.to_thread(begun.wait)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert ended.is_set()
    assert "the work in progress failed: OSError" in caplog.text
    assert "secret name" not in caplog.text


@pytest.mark.slow
def test_a_folder_that_vanishes(tmp_path: Path) -> None:
    """A file gets in place even if other runs remove the empty folder at any moment."""
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
            time.sleep(0.0001)  # otherwise the other thread would hardly run

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


def be_another_host(number: int) -> None:
    """Make this process one of another host, which has no file locks in common with others."""
    readlink = os.readlink

    def elsewhere(path: Any, **options: Any) -> Any:
        return f"pid:[{number}]" if path == "/proc/self/ns/pid" else readlink(path, **options)

    os.readlink = elsewhere
    fcntl.flock = lambda *_: None


def _hold(folder: str, options: dict[str, Any], log: str, host: int = 0) -> None:
    if host:
        be_another_host(host)
    for _ in range(20):
        with locked(UPath(folder, **options), "it"), Path(log).open("a") as file:
            file.write("in\n")
            file.flush()
            time.sleep(0.005)  # for another process to come in, if it can
            file.write("out\n")


@pytest.mark.parametrize("store", ["disk", "s3"])
def test_one_publishes_at_a_time(tmp_path: Path, bucket: Bucket, s3_url: str, store: str) -> None:
    """Only one process at a time is inside `locked`, on a disk and on S3."""
    log = tmp_path / "log"
    folder, options = f"file://{tmp_path}/new", {}
    if store == "s3":  # children don't have the connection: they are forked from an older process
        client = {"endpoint_url": s3_url, "region_name": "us-east-1"}
        folder = "s3://mail/new"
        options = {"key": "testing", "secret": "testing", "client_kwargs": client}
    assert run_children(_hold, *[(folder, options, str(log))] * 4) == [0] * 4

    assert log.read_text() == "in\nout\n" * 80
    assert bucket.names() == []


@pytest.mark.slow
def test_one_publishes_at_a_time_on_a_disk_that_hosts_share(tmp_path: Path) -> None:
    """On a network disk, where `flock` is known to one host only, hosts wait for each other too."""
    log = tmp_path / "log"
    hosts: list[tuple[Any, ...]] = [
        (str(tmp_path / "new"), {}, str(log), host) for host in (1, 2, 3, 4)
    ]
    assert run_children(_hold, *hosts) == [0] * 4

    assert log.read_text() == "in\nout\n" * 80
    assert not (tmp_path / "new").exists()


def _be_killed(folder: str, host: int = 0) -> None:
    if host:
        be_another_host(host)
    with locked(UPath(folder), "it"):
        StagedObject(UPath(folder) / "a.bin").write(b"half of")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_what_killed_processes_of_other_hosts_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process's lock is taken over at once on its host, and after a time on others.

    Nobody can know whether another host still writes a file: it is removed after a day.
    """
    folder = UPath(tmp_path)
    assert run_children(_be_killed, (str(tmp_path),)) == [-signal.SIGKILL]
    started = time.monotonic()
    with locked(folder, "it"):
        assert time.monotonic() - started < locks.LOCK_SECONDS / 2
    assert clean(folder) == 1

    assert run_children(_be_killed, (str(tmp_path), 1)) == [-signal.SIGKILL]
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.5)
    started = time.monotonic()
    with locked(folder, "it"):
        assert time.monotonic() - started > 0.5
    assert clean(folder) == 0
    [left] = tmp_path.glob(f"{STAGED_PREFIX}*")
    day_ago = time.time() - 90_000
    os.utime(left, (day_ago, day_ago))
    assert clean(folder) == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("answers", "there"),
    [
        ({"put_object": "PreconditionFailed"}, False),
        ({"put_object": "409"}, True),
        ({"put_object": "304"}, True),
    ],
)
def test_a_lock_that_cannot_be_had(
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    answers: dict[str, str],
    there: bool,
) -> None:
    """If S3 keeps refusing the lock, the wait ends, and the error names the lock object."""
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.1)
    folder = ObjectStoragePath("s3://s3@mail/lake")
    if there:
        (folder / "_locks" / "it").write_text("of another run")
    call = folder.fs.call_s3

    def refuse(method: str, **values: Any) -> Any:
        if method not in answers:
            return call(method, **values)
        code = answers[method]
        raise OSError(code) from ClientError({"Error": {"Code": code}}, method)

    monkeypatch.setattr(folder.fs, "call_s3", refuse)
    with (
        pytest.raises(R7MailPublishError, match=r"mail/lake/_locks/it: this lock could not be .*"),
        locked(folder, "it"),
    ):
        pytest.fail("not locked")


@pytest.mark.parametrize("store", ["disk", "s3"])
async def test_a_stopped_task_does_not_wait_for_a_lock(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    """A task that is killed, or out of time, stops waiting for a lock at once, and says so."""
    _ = ObjectStoragePath("s3://s3@mail").fs if store == "s3" else None
    folder = UPath(tmp_path) if store == "disk" else ObjectStoragePath("s3://s3@mail/lake")
    with locked(folder, "it"):
        waiting = asyncio.ensure_future(run_to_end(lambda: locked(folder, "it").__enter__()))
        await asyncio.sleep(0.5)
        started = time.monotonic()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert time.monotonic() - started < 5


def test_a_lock_on_s3_that_a_killed_process_left(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An old lock is taken over after some time, by one only; the others wait for it."""
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.5)
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
    """A store without conditional writes is used without locks; other refusals are errors."""
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
    """S3 takes parts of at least 5 MiB, except for the last."""
    assert PART_BYTES >= 5 << 20
