"""Write objects that appear under their name whole or not at all.

An exception inside `with path.open("wb")` leaves what was written so far, on a disk and on S3
alike. So nothing is opened under its final name here: a `StagedObject` takes the bytes elsewhere,
and `commit` puts them in place in one atomic step.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from airflow_provider_r7mail.exceptions import R7MailConfigError, R7MailPublishError
from airflow_provider_r7mail.lake.owners import has_ended, own_mark
from airflow_provider_r7mail.lake.s3 import S3Upload
from airflow_provider_r7mail.lake.storage import ObjectPath, is_local, is_s3, store_errors
from airflow_provider_r7mail.lake.threads import run_to_end, wait_to_end

log = logging.getLogger(__name__)

# Errors that may be gone at the next try, for example when the disk has space again.
PASSING_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE})
STAGED_PREFIX = "_staged-"
# Bytes to gather before they are hashed and written: Arrow writes a hundred pieces for a window.
GATHERED_BYTES = 64 << 10
# After this time without a write, a file that another host staged was left by a killed process.
LEFT_SECONDS = 86_400


class StagedObject:
    """An object being written, invisible until it is committed.

    `write` and `commit` raise OSError if the store fails, whatever the store itself raises.

    :param path: where the object will appear
    :param staging: on a disk, the folder to write the temporary file to, on the same file system;
        None for the folder of `path`. See `clean`
    :raises R7MailConfigError: nothing can be written there
    :raises R7MailPublishError: nothing can be written there now, for example because the disk is
        full
    """

    def __init__(self, path: ObjectPath, staging: ObjectPath | None = None) -> None:
        self.path = path
        self._staging = path.parent if staging is None else staging
        self._is_local = is_local(path)
        self.bytes = 0
        self._hash = hashlib.sha256()
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._upload: S3Upload | None = None
        self._settled = self._discarded = False
        self._file: Any = None
        try:
            with store_errors(path):
                self._open()
        except OSError as error:
            kind = R7MailPublishError if error.errno in PASSING_ERRORS else R7MailConfigError
            raise kind(f"{path}: can't be written ({error}).") from error

    def _open(self) -> None:
        if self._is_local:
            self._open_in(self._staging.path)
        elif is_s3(self.path):
            self._upload = S3Upload(self.path.fs, self.path.path)
        else:  # not every fsspec file system can hold an object back, even if it claims to
            self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115
                prefix="r7mail-", delete=False
            )

    def _open_in(self, folder: str) -> None:
        """Open a file near its final place: a rename is atomic only within one file system."""
        while self._file is None:
            temporary = f"{folder}/{STAGED_PREFIX}{own_mark()}.{uuid.uuid4().hex}.tmp"
            try:
                self._file = open(temporary, "xb", buffering=0)  # noqa: SIM115, PTH123
            except FileNotFoundError:  # not created yet, or empty and removed by another process
                Path(folder).mkdir(parents=True, exist_ok=True)

    @property
    def closed(self) -> bool:
        """Whether it takes no more bytes. pyarrow asks."""
        return self._settled

    @property
    def sha256(self) -> str:
        """The SHA-256 of the bytes so far, in hexadecimal."""
        self.flush()
        return self._hash.hexdigest()

    def write(self, data: bytes | memoryview) -> int:
        """Append bytes."""
        piece = bytes(data)
        if not self._discarded:  # pyarrow writes a footer when an unfinished writer is destroyed
            self._gathered.append(piece)
            self._gathered_bytes += len(piece)
            self.bytes += len(piece)
            if self._gathered_bytes >= GATHERED_BYTES:
                self.flush()
        return len(piece)

    def tell(self) -> int:
        """Return the number of bytes so far. pyarrow asks."""
        return self.bytes

    def flush(self) -> None:
        """Hash and write what was gathered; no byte is visible before `commit`."""
        data, self._gathered, self._gathered_bytes = b"".join(self._gathered), [], 0
        if not data:
            return
        self._hash.update(data)
        with store_errors(self.path):
            if self._upload is not None:
                self._upload.write(data)
            else:
                # A full disk takes only some of the bytes, and fails only at the next write.
                rest = memoryview(data)
                while rest:
                    rest = rest[self._file.write(rest) :]

    def commit(self) -> None:
        """Put the object in place, replacing an earlier one; discard it if that fails."""
        try:
            with store_errors(self.path):
                self.flush()
                self._commit()
        except BaseException:
            self.discard()
            raise
        self._settled = True

    async def commit_async(self, executor: Executor | None = None) -> None:
        """Commit on an event loop, where a single request needs no thread to wait for it.

        :param executor: where to do it if it takes more than one request
        """
        if self._upload is not None and not self._upload.begun:
            self.flush()
        if self._upload is None or self._upload.begun:
            await run_to_end(self.commit, executor=executor)
            return
        try:
            with store_errors(self.path):
                await wait_to_end(asyncio.wrap_future(self._upload.put(self._hash.digest())))
        except BaseException:
            self.discard()
            raise
        self._settled = True

    def _commit(self) -> None:
        if self._upload is not None:
            self._upload.commit(self._hash.digest())
        elif self._is_local:
            self._put_in_place(self._file.name)
            self._file.close()
        else:
            self._file.close()
            self.path.fs.put_file(self._file.name, self.path.path)
            os.unlink(self._file.name)  # noqa: PTH108

    def _put_in_place(self, temporary: str) -> None:
        # Not with pathlib, which takes as long as the disk.
        folder = self.path.parent.path
        while True:
            os.makedirs(folder, exist_ok=True)  # noqa: PTH103
            try:
                os.replace(temporary, self.path.path)  # noqa: PTH105
            except FileNotFoundError:
                if not os.path.exists(temporary):  # noqa: PTH110
                    raise
                # Another process removed the folder while it was empty: try again.
            else:
                return

    def discard(self) -> None:
        """Drop the object unless it was committed; an earlier one under its name stays.

        Never raises, so that the reason for discarding isn't hidden.
        """
        if self._settled:
            return
        self._settled = self._discarded = True
        self._gathered = []
        try:
            with store_errors(self.path):
                self._discard()
        except OSError as error:
            # No file name, and no error text, which contains it: strangers name the files.
            log.warning(
                "%s: a staged object could not be removed (%s).",
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


@contextlib.contextmanager
def staged(path: ObjectPath) -> Iterator[StagedObject]:
    """Write an object: committed when the block ends, discarded if it raises."""
    item = StagedObject(path)
    try:
        yield item
    except BaseException:
        item.discard()
        raise
    item.commit()


def _listed(folder: Path, pattern: str) -> list[Path]:
    """Return the files that match; none if another process removes the folder meanwhile."""
    try:
        return [*folder.glob(pattern)]
    except FileNotFoundError:  # before Python 3.13
        return []


def clean(folder: ObjectPath) -> int:
    """Remove the staged files that killed processes left in a folder on disk.

    On an object store they are invisible, and its life-cycle rules remove unfinished uploads. A
    file of another host is left alone for LEFT_SECONDS: its process may still be running.

    :return: the number of files removed
    """
    if not is_local(folder):
        return 0
    removed = 0
    for file in _listed(Path(folder.path), f"{STAGED_PREFIX}*.tmp"):
        mark = file.name.removeprefix(STAGED_PREFIX).rpartition(".tmp")[0].rpartition(".")[0]
        with contextlib.suppress(OSError):
            # Without a mark it is not of this version, and nobody knows its process.
            ended = not mark or has_ended(mark)
            if ended or time.time() - file.stat().st_mtime > LEFT_SECONDS:
                file.unlink()
                removed += 1
    return removed
