"""Upload objects to S3, large ones in parts."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

# The size of one part. S3 takes parts of at least 5 MiB, and up to 10,000 of them per object.
PART_BYTES = 8 << 20


class S3Upload:
    """An upload to S3: in one request, or in parts, one at a time.

    Made of s3fs's own calls: its `S3File` copies each part twice more, and accepts no data while a
    part is being sent.
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
        """Whether parts are being sent."""
        return self._sending is not None

    def write(self, data: bytes) -> None:
        """Append bytes; send a part as soon as there are enough."""
        rest: bytes | memoryview = data  # bytes.join doesn't copy a single one
        # All parts but the last have the same size: some stores like S3 require it.
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
        """Finish the upload, so that the object appears.

        :param digest: the SHA-256 of the whole object
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
        """Send the whole object in one request, if no part was sent.

        :param digest: its SHA-256
        """
        return self._run(self._put(base64.b64encode(digest).decode()))

    async def _put(self, digest: str) -> None:
        if self._fs._s3 is None:  # noqa: SLF001
            # Use the client that a request has made: s3fs 2026.2 to 2026.4 take a client that has
            # sent nothing yet for closed, and make another without Airflow's credentials.
            with contextlib.suppress(OSError):
                await self._call("head_object")
        config, extra = (await self._fs.set_session()).meta.config, {}
        # S3 then refuses any bytes but those hashed here. Not if its library is configured to send
        # no checksums, since some stores like S3 don't support them. Older versions send none.
        if getattr(config, "request_checksum_calculation", None) == "when_supported":
            extra = {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": digest}
        await self._fs._pipe_file(self._path, b"".join(self._gathered), **extra)  # noqa: SLF001

    def discard(self) -> None:
        """Abort the upload and drop the parts sent."""
        if self._sending is not None:
            with contextlib.suppress(Exception):  # the reason it is discarded
                self._wait()
            if self._id is not None:
                self._run(self._call("abort_multipart_upload", UploadId=self._id)).result()

    async def _call(self, method: str, **values: Any) -> Any:
        # s3fs's async methods are public despite their underscore.
        return await self._fs._call_s3(  # noqa: SLF001
            method, Bucket=self._bucket, Key=self._key, **values
        )

    def _run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start it on the file system's event loop, which has its own thread."""
        return asyncio.run_coroutine_threadsafe(work, self._fs.loop)
