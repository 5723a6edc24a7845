"""Uploads to S3 in parts, and a lock that several machines see."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
import uuid
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import tenacity

T = TypeVar("T")

log = logging.getLogger(__name__)

# What goes up to S3 in one request. It takes parts of 5 MiB and more, 10,000 of an object.
PART_BYTES = 8 << 20
# Publishing takes a second or two. What has held a lock for so long has been killed, or hangs: then
# the look after publishing tells.
LOCK_SECONDS = 30.0
# S3's answers to who comes second, or at the same time.
LOCK_IS_HELD = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})


class S3Upload:
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
        """Take bytes; send a part when enough have come."""
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
        config, extra = (await self._fs.set_session()).meta.config, {}
        # Let S3 refuse other bytes than were hashed here. Not where its library is told to send no
        # checksums: some stores that are like S3 know none. An older one sends none.
        if getattr(config, "request_checksum_calculation", None) == "when_supported":
            extra = {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": digest}
        await self._fs._pipe_file(self._path, b"".join(self._gathered), **extra)  # noqa: SLF001

    def discard(self) -> None:
        """Drop what has been sent."""
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


class S3Lock:
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
