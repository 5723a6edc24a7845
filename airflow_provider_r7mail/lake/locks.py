"""Let only one process at a time publish to a folder, on a disk or on S3."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import tenacity

from airflow_provider_r7mail.lake.storage import ObjectPath, is_local, is_s3, store_errors

log = logging.getLogger(__name__)

# The folder of locks on S3. Its underscore hides it from readers of tables.
LOCKS = "_locks"
# Publishing takes a second or two. A process that has held a lock this long was killed, or hangs:
# then the check after publishing finds out.
LOCK_SECONDS = 30.0
# How S3 refuses a conditional write that lost to another one.
LOCK_IS_HELD = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})


def locked(folder: ObjectPath, name: str) -> AbstractContextManager[None]:
    """Keep other processes from publishing the same thing to a folder at the same time.

    On a disk the whole folder is locked, whatever the name; on S3 an object in it is the lock.
    Other stores have no locks, nor do stores like S3 without conditional writes: there, check the
    result after publishing.

    :param name: what is published, as a path below the folder
    """
    if is_local(folder):
        return _locked_folder(Path(folder.path))
    if is_s3(folder):
        return _locked_object(folder / f"{LOCKS}/{name}")
    return contextlib.nullcontext()


@contextlib.contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _locked_object(path: ObjectPath) -> Iterator[None]:
    lock = S3Lock(path.fs, path.path)
    with store_errors(path):
        lock.take()
    try:
        yield
    finally:
        try:
            with store_errors(path):
                lock.release()
        except OSError as error:
            log.warning(
                "The lock in %s could not be removed (%s): the next run waits %s seconds.",
                LOCKS,
                type(error.__cause__ or error).__name__,
                LOCK_SECONDS,
            )


class S3Lock:
    """A lock on S3: an object that only one process at a time can create.

    Nothing removes the lock of a killed process, so one that is LOCK_SECONDS old is taken over, by
    one process only.
    """

    def __init__(self, fs: Any, path: str) -> None:
        self._fs = fs
        bucket, key, _ = fs.split_path(path)
        self._where = {"Bucket": bucket, "Key": key}
        # The ETags of the object created here and of the one seen last, and since when.
        self._mine: str | None = None
        self._seen: str | None = None
        self._since = 0.0

    def take(self) -> None:
        """Wait for the lock."""
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
        # Checked even after creating it: a store that ignores the condition lets several processes
        # create the object, but keeps only the last one's.
        try:
            there = self._fs.call_s3("head_object", **self._where)["ETag"]
        except FileNotFoundError:
            there = None
        if there != self._seen:
            self._seen, self._since = there, time.monotonic()
            if there not in {None, self._mine}:
                log.info("Another run is publishing here: waiting for it.")
        return there is not None and there == self._mine

    def release(self) -> None:
        """Release the lock."""
        if self._is_mine():
            self._fs.call_s3("delete_object", **self._where)
