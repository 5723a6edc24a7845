"""Upload objects to S3, large ones in parts."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

# The size of one part. S3 takes parts of at least 5 MiB, and up to 10,000 of them per object.
PART_BYTES = 8 << 20


def checksums(fs: Any, path: str, digest: bytes) -> dict[str, str]:
    """Return the options of a request with which S3 refuses any bytes but those hashed.

    None if its library is configured to send no checksums, since some stores like S3 don't support
    them. Older versions send none.

    :param path: the object's path
    :param digest: the SHA-256 of the bytes
    """
    return asyncio.run_coroutine_threadsafe(_checksums(fs, path, digest), fs.loop).result()


async def _checksums(fs: Any, path: str, digest: bytes) -> dict[str, str]:
    if fs._s3 is None:  # noqa: SLF001
        # Use the client that a request has made: s3fs 2026.2 to 2026.4 take a client that has sent
        # nothing yet for closed, and make another without Airflow's credentials.
        bucket, key, _ = fs.split_path(path)
        with contextlib.suppress(OSError):
            await fs._call_s3("head_object", Bucket=bucket, Key=key)  # noqa: SLF001
    config = (await fs.set_session()).meta.config
    if getattr(config, "request_checksum_calculation", None) != "when_supported":
        return {}
    return {
        "ChecksumAlgorithm": "SHA256",
        "ChecksumSHA256": base64.b64encode(digest).decode(),
    }


def s3_folders(fs: Any, path: str, prefix: str) -> Iterator[str]:
    """Yield the names of the folders in a folder that begin with a prefix, a thousand a request."""
    bucket, key, _ = fs.split_path(path)
    root = f"{key}/" if key else ""
    query = {"Bucket": bucket, "Prefix": f"{root}{prefix}", "Delimiter": "/"}
    while True:
        page = fs.call_s3("list_objects_v2", **query)
        for found in page.get("CommonPrefixes", ()):
            yield found["Prefix"].removeprefix(root).rstrip("/")
        if not page.get("IsTruncated"):
            return
        query["ContinuationToken"] = page["NextContinuationToken"]


def s3_remove(fs: Any, paths: Sequence[str]) -> None:
    """Remove objects of one bucket that may exist, a thousand in one request.

    :raises OSError: S3 has refused to remove one of them, which s3fs's own method doesn't report
    """
    for place in range(0, len(paths), 1000):
        keys = [fs.split_path(path)[:2] for path in paths[place : place + 1000]]
        found = fs.call_s3(
            "delete_objects",
            Bucket=keys[0][0],
            Delete={"Objects": [{"Key": key} for _, key in keys], "Quiet": True},
        )
        for error in found.get("Errors", ()):
            raise OSError(f"DeleteObjects: {error.get('Code')} for {error.get('Key')}")


def read_options(fs: Any) -> dict[str, Any]:
    """Return the options of a file system's `cat_file` with which it makes one request.

    Newer versions of s3fs ask for the size first, to read large objects in several requests.
    """
    read = getattr(fs, "_cat_file", None)
    known = () if read is None else inspect.signature(read).parameters
    return {"max_concurrency": 1} if "max_concurrency" in known else {}


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
        # What S3 wants to be told of each part at the end: with checksums, these too.
        self._told: list[str] = []
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
            begun = await self._call("create_multipart_upload")
            self._id = begun["UploadId"]
            algorithm = begun.get("ChecksumAlgorithm") or self._fs.s3_additional_kwargs.get(
                "ChecksumAlgorithm"
            )
            self._told = ["ETag", f"Checksum{algorithm}"]
        number = len(self._parts) + 1
        sent = await self._call("upload_part", UploadId=self._id, PartNumber=number, Body=data)
        told = {name: sent[name] for name in self._told if name in sent}
        self._parts.append({"PartNumber": number, **told})

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

    def put(self, digest: bytes) -> Future[Any]:
        """Send the whole object in one request, if no part was sent; the result is S3's answer.

        :param digest: its SHA-256
        """
        return self._run(self._put(digest))

    async def _put(self, digest: bytes) -> Any:
        extra = await _checksums(self._fs, self._path, digest)
        made = await self._call("put_object", Body=b"".join(self._gathered), **extra)
        self._fs.invalidate_cache(self._path)
        return made

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
