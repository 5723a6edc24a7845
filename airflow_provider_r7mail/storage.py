"""Objects that appear under their name whole, or not at all. No HTTP, no Airflow, no Arrow.

An exception inside `with path.open("wb")` leaves what was written so far, on a disk and on S3
alike. So nothing is ever opened under its final name here: a `StagedObject` takes the bytes
elsewhere, and `commit` puts them in place in one step of the store.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, Protocol, TypeVar

import tenacity

from airflow_provider_r7mail.exceptions import R7MailConfigError, R7MailError, R7MailPublishError

T = TypeVar("T")

log = logging.getLogger(__name__)

# A later try may find the disk with room again.
PASSING_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE})
STAGED_PREFIX = "_staged-"
# What goes up to S3 in one request. It takes parts of 5 MiB and more, 10,000 of an object.
PART_BYTES = 8 << 20
# The folder of locks on S3; readers of tables pass it over.
LOCKS = "_locks"
# Publishing takes a second or two. What has held a lock for so long has been killed, or hangs: then
# the look after publishing tells.
LOCK_SECONDS = 30.0
# S3's answers to who comes second, or at the same time.
LOCK_IS_HELD = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})


class ObjectPath(Protocol):
    """What is used of `ObjectStoragePath` and `UPath`, for any store that fsspec knows."""

    @property
    def fs(self) -> Any:
        """The fsspec file system."""

    @property
    def path(self) -> str:
        """The path within it."""

    @property
    def name(self) -> str:
        """The last part."""

    @property
    def parent(self) -> Any:
        """The folder."""

    def __truediv__(self, part: str) -> Any: ...


def is_local(path: ObjectPath) -> bool:
    """Whether the path is on this machine's disk."""
    return bool({"file", "local"} & set(_protocols(path.fs)))


def _is_s3(path: ObjectPath) -> bool:
    return hasattr(path.fs, "_call_s3")  # s3fs


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


@contextlib.contextmanager
def _store_errors(path: ObjectPath) -> Iterator[None]:
    """Let all that goes wrong with a store be an OSError, with the object's name.

    fsspec's file systems pass on errors of their libraries that are none: botocore's for a host
    that can't be reached, for example.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{path}: {type(error).__name__}: {error}") from error


class StagedObject:
    """An object being written, not yet seen by anyone.

    `write` and `commit` raise OSError where the store fails, whatever it raises itself.

    :param path: where it is to appear
    :param staging: the folder where it takes shape if `path` is on a disk, on the same file system;
        None is the one it is to appear in. See `clean`
    :raises R7MailConfigError: nothing can be written there
    :raises R7MailPublishError: nothing can be written there now: the disk is full, say
    """

    def __init__(self, path: ObjectPath, staging: ObjectPath | None = None) -> None:
        self.path = path
        self._staging = path.parent if staging is None else staging
        self._is_local = is_local(path)
        self.bytes = 0
        self._hash = hashlib.sha256()
        self._upload: _S3Upload | None = None
        self._settled = self._discarded = False
        self._file: Any = None
        try:
            with _store_errors(path):
                self._open()
        except OSError as error:
            kind = R7MailPublishError if error.errno in PASSING_ERRORS else R7MailConfigError
            raise kind(f"{path}: can't be written ({error}).") from error

    def _open(self) -> None:
        if self._is_local:
            self._open_in(Path(self._staging.path))
        elif _is_s3(self.path):
            self._upload = _S3Upload(self.path.fs, self.path.path)
        else:  # other stores' file systems can't all hold an object back, and some only say so
            self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115
                prefix="r7mail-", delete=False
            )

    def _open_in(self, folder: Path) -> None:
        """Open a file near its place: only a rename within one file system is one step."""
        while self._file is None:
            temporary = f"{folder}/{STAGED_PREFIX}{uuid.uuid4().hex}.tmp"
            try:
                file = open(temporary, "xb", buffering=0)  # noqa: SIM115, PTH123
            except FileNotFoundError:  # not made yet, or another process has removed it: empty
                folder.mkdir(parents=True, exist_ok=True)
                continue
            # Held while this process lives: `clean` knows by it what a killed one has left.
            fcntl.flock(file, fcntl.LOCK_EX)
            # Before that another process's `clean` may have taken it for such, and removed it.
            if os.fstat(file.fileno()).st_nlink:
                self._file = file
            else:
                file.close()

    @property
    def closed(self) -> bool:
        """Whether it takes no more bytes: pyarrow asks."""
        return self._settled

    @property
    def sha256(self) -> str:
        """The SHA-256 of the bytes so far, in hexadecimal."""
        return self._hash.hexdigest()

    def write(self, data: bytes | memoryview) -> int:
        """Take bytes."""
        view = memoryview(data).cast("B")
        if self._discarded:
            return view.nbytes  # pyarrow writes a footer when an unfinished writer is destroyed
        self._hash.update(view)
        with _store_errors(self.path):
            if self._upload is not None:
                self._upload.write(data if isinstance(data, bytes) else bytes(view))
            else:
                # A full disk takes a part of what is written, and tells only the next time.
                rest = view
                while rest:
                    rest = rest[self._file.write(rest) :]
        self.bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """The number of bytes so far: pyarrow asks."""
        return self.bytes

    def flush(self) -> None:
        """Nothing: the bytes are not to be seen before `commit`."""

    def commit(self) -> None:
        """Put the object in its place, over what was there; discard it if that fails."""
        try:
            with _store_errors(self.path):
                self._commit()
        except BaseException:
            self.discard()
            raise
        self._settled = True

    async def commit_async(self, executor: Executor | None = None) -> None:
        """The same on an event loop: one request needs no thread to wait for it.

        :param executor: where it is done if it is more than a request
        """
        if self._upload is None or self._upload.begun:
            await to_its_end(self.commit, executor=executor)
            return
        try:
            with _store_errors(self.path):
                await _ended(asyncio.wrap_future(self._upload.put(self._hash.digest())))
        except BaseException:
            self.discard()
            raise
        self._settled = True

    def _commit(self) -> None:
        if self._upload is not None:
            self._upload.commit(self._hash.digest())
        elif self._is_local:
            self._put_in_place(Path(self._file.name))
            self._file.close()
        else:
            self._file.close()
            self.path.fs.put_file(self._file.name, self.path.path)
            os.unlink(self._file.name)  # noqa: PTH108

    def _put_in_place(self, temporary: Path) -> None:
        place = Path(self.path.path)
        while True:
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.replace(place)
            except FileNotFoundError:
                if not temporary.exists():
                    raise
                # Another process has removed the folder, which was empty.
            else:
                return

    def discard(self) -> None:
        """Forget it, unless it was committed; what was under its name before stays.

        Raises nothing: the reason for discarding must come out.
        """
        if self._settled:
            return
        self._settled = self._discarded = True
        try:
            with _store_errors(self.path):
                self._discard()
        except OSError as error:
            # Neither its name nor the error's text, which has it: files are named by strangers.
            log.warning(
                "%s: what was begun there could not be discarded (%s).",
                self.path.parent,
                type(error.__cause__ or error).__name__,
            )

    def _discard(self) -> None:
        if self._upload is not None:
            self._upload.discard()
        elif self._file is not None:
            self._file.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._file.name)  # noqa: PTH108


class _S3Upload:
    """An object on its way to S3: in one request, or in parts, of which one goes up at a time.

    By s3fs's own calls: its `S3File` copies each part twice more, and takes nothing while one goes
    up.
    """

    def __init__(self, fs: Any, path: str) -> None:
        self._fs, self._path = fs, path
        self._bucket, self._key, _ = fs.split_path(path)
        self._gathered: list[bytes | memoryview] = []
        self._size = 0
        self._id: str | None = None
        self._parts: list[dict[str, Any]] = []
        self._sending: Future[None] | None = None

    @property
    def begun(self) -> bool:
        """Whether it goes up in parts."""
        return self._sending is not None

    def write(self, data: bytes) -> None:
        rest: bytes | memoryview = data  # a single piece is not copied: see bytes.join
        # All parts but the last of one size: some stores that are like S3 demand it.
        while (room := PART_BYTES - self._size) < len(rest):
            rest = memoryview(rest)
            self._gathered.append(rest[:room])
            self._send()
            rest = rest[room:]
        self._gathered.append(rest)
        self._size += len(rest)

    def _send(self) -> None:
        self._wait()
        part = b"".join(self._gathered)
        self._gathered, self._size = [], 0
        self._sending = self._run(self._send_part(part))

    def _wait(self) -> None:
        if self._sending is not None:
            self._sending.result()

    async def _send_part(self, data: bytes) -> None:
        if self._id is None:
            self._id = (await self._call("create_multipart_upload"))["UploadId"]
        number = len(self._parts) + 1
        sent = await self._call("upload_part", UploadId=self._id, PartNumber=number, Body=data)
        self._parts.append({"PartNumber": number, "ETag": sent["ETag"]})

    def commit(self, digest: bytes) -> None:
        """Let it appear.

        :param digest: the SHA-256 of all of it
        """
        if self.begun:
            self._send()
            self._wait()
            self._run(self._complete()).result()
        else:
            self.put(digest).result()

    async def _complete(self) -> None:
        parts = {"Parts": self._parts}
        await self._call("complete_multipart_upload", UploadId=self._id, MultipartUpload=parts)
        self._fs.invalidate_cache(self._path)

    def put(self, digest: bytes) -> Future[None]:
        """Put one that has not begun to go up into its place in one request.

        :param digest: its SHA-256
        """
        return self._run(self._put(base64.b64encode(digest).decode()))

    async def _put(self, digest: str) -> None:
        if self._fs._s3 is None:  # noqa: SLF001
            # Its client is needed here, made by a request: s3fs 2026.2 to 2026.4 take one that has
            # sent nothing yet for closed, and make another, without Airflow's credentials.
            with contextlib.suppress(OSError):
                await self._call("head_object")
        config, extra = (await self._fs.set_session()).meta.config, {}
        # Let S3 refuse other bytes than were hashed here. Not where its library is told to send no
        # checksums: some stores that are like S3 know none. An older one sends none.
        if getattr(config, "request_checksum_calculation", None) == "when_supported":
            extra = {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": digest}
        await self._fs._pipe_file(self._path, b"".join(self._gathered), **extra)  # noqa: SLF001

    def discard(self) -> None:
        if self._sending is not None:
            with contextlib.suppress(Exception):  # why it is discarded
                self._wait()
            if self._id is not None:
                self._run(self._call("abort_multipart_upload", UploadId=self._id)).result()

    async def _call(self, method: str, **values: Any) -> Any:
        # s3fs's async methods are public, for all their underscore.
        return await self._fs._call_s3(  # noqa: SLF001
            method, Bucket=self._bucket, Key=self._key, **values
        )

    def _run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start it on the file system's event loop, a thread of its own."""
        return asyncio.run_coroutine_threadsafe(work, self._fs.loop)


@contextlib.contextmanager
def staged(path: ObjectPath) -> Iterator[StagedObject]:
    """Write an object: committed when the block ends, discarded when it raises."""
    item = StagedObject(path)
    try:
        yield item
    except BaseException:
        item.discard()
        raise
    item.commit()


async def to_its_end(work: Callable[..., T], *args: Any, executor: Executor | None = None) -> T:
    """Do blocking work in a thread; also if cancelled meanwhile, it has ended when this ends.

    A thread can't be stopped: one left alone would go on writing after all was discarded.

    :param executor: whose threads; None are the event loop's own
    """
    return await _ended(asyncio.get_running_loop().run_in_executor(executor, work, *args))


async def _ended(working: asyncio.Future[T]) -> T:
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        if (error := working.exception()) is not None:
            text = str(error) if isinstance(error, R7MailError) else type(error).__name__
            log.warning("When all was cancelled, there was an error besides: %s", text)
        raise


def read(path: ObjectPath) -> bytes | None:
    """An object's bytes, None if there is no such object."""
    try:
        with _store_errors(path):
            data: bytes = path.fs.cat_file(path.path)
    except FileNotFoundError:
        return None
    return data


def remove(path: ObjectPath) -> None:
    """Remove an object, if it is there."""
    with contextlib.suppress(FileNotFoundError), _store_errors(path):
        path.fs.rm_file(path.path)


def size_of(path: ObjectPath) -> int | None:
    """An object's size in bytes, None if there is no such object."""
    try:
        with _store_errors(path):
            size = path.fs.info(path.path)["size"]
    except FileNotFoundError:
        return None
    return int(size)


def clean(folder: ObjectPath) -> int:
    """Remove what killed processes have left staged in a folder on disk.

    On an object store nothing of it can be seen; its own life-cycle rules end uploads that were
    never finished.

    :return: how many there were
    """
    if not is_local(folder):
        return 0
    removed = 0
    for file in Path(folder.path).glob(f"{STAGED_PREFIX}*.tmp"):
        with contextlib.suppress(OSError), file.open("r+b") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if its process lives
            file.unlink()
            removed += 1
    return removed


def make_folder(folder: ObjectPath) -> None:
    """Make a folder on disk; object stores have none.

    :raises R7MailConfigError: it can't be made, or nothing can be written in it
    """
    if not is_local(folder):
        return
    try:
        Path(folder.path).mkdir(parents=True, exist_ok=True)
        if not os.access(folder.path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise R7MailConfigError(f"{folder}: can't be written ({error}).") from error


def remove_empty(folder: ObjectPath, levels: int) -> None:
    """Remove a folder on disk and those above it, as far as they are empty.

    :param levels: how many at most
    """
    if not is_local(folder):
        return
    path = Path(folder.path)
    with contextlib.suppress(OSError):  # not empty, or gone
        for _ in range(levels):
            path.rmdir()
            path = path.parent


@contextlib.contextmanager
def locked(folder: ObjectPath, name: str) -> Iterator[None]:
    """Keep other processes from publishing the same thing in a folder at the same time.

    On a disk the folder itself is locked, whatever the name; on S3 an object in it is the lock.
    Other stores have none, nor have those like S3 that know no conditional writes: there, look at
    the result after publishing.

    :param name: what is published: a path of its own below the folder
    """
    if is_local(folder):
        Path(folder.path).mkdir(parents=True, exist_ok=True)
        handle = os.open(folder.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
    elif _is_s3(folder):
        path = folder / f"{LOCKS}/{name}"
        lock = _S3Lock(path.fs, path.path)
        with _store_errors(path):
            lock.take()
        try:
            yield
        finally:
            try:
                with _store_errors(path):
                    lock.release()
            except OSError as error:
                log.warning(
                    "The lock in %s could not be removed (%s): the next run waits %s seconds.",
                    LOCKS,
                    type(error.__cause__ or error).__name__,
                    LOCK_SECONDS,
                )
    else:
        yield


class _S3Lock:
    """An object that only one process can make, so that it may do what it does alone.

    Nothing removes that of a killed process. So one that has stayed for LOCK_SECONDS is taken over,
    by one process alone.
    """

    def __init__(self, fs: Any, path: str) -> None:
        self._fs = fs
        bucket, key, _ = fs.split_path(path)
        self._where = {"Bucket": bucket, "Key": key}
        # The ETags of the one that was made here, and of the one that is there, and since when.
        self._mine: str | None = None
        self._seen: str | None = None
        self._since = 0.0

    def take(self) -> None:
        """Wait until it is held here."""
        tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda taken: not taken),
            wait=tenacity.wait_random(0.05, 0.25),
        )(self._try)

    def _try(self) -> bool:
        condition = {"IfNoneMatch": "*"}
        if self._seen is not None and time.monotonic() - self._since > LOCK_SECONDS:
            condition = {"IfMatch": self._seen}
        try:
            made = self._fs.call_s3(
                "put_object", **self._where, **condition, Body=uuid.uuid4().hex.encode()
            )
            self._mine = made["ETag"]
        except OSError as error:
            code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
            if code == "NotImplemented":
                return True
            if code not in LOCK_IS_HELD and not (code == "NoSuchKey" and "IfMatch" in condition):
                raise
        return self._is_mine()

    def _is_mine(self) -> bool:
        # Looked at even after it was made: a store that takes no notice of the condition lets
        # several processes make it, but keeps the last one's.
        try:
            there = self._fs.call_s3("head_object", **self._where)["ETag"]
        except FileNotFoundError:
            there = None
        if there != self._seen:
            self._seen, self._since = there, time.monotonic()
            if there not in {None, self._mine}:
                log.info("Another run is publishing the same: waiting for it.")
        return there is not None and there == self._mine

    def release(self) -> None:
        """Let others have it."""
        if self._is_mine():
            self._fs.call_s3("delete_object", **self._where)
