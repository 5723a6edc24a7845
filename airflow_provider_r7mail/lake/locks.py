"""Let only one process at a time publish to a folder, on a disk or on S3."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from airflow_provider_r7mail.exceptions import R7MailPublishError
from airflow_provider_r7mail.lake.owners import has_ended, own_mark
from airflow_provider_r7mail.lake.s3 import S3Upload, checksums
from airflow_provider_r7mail.lake.storage import (
    ObjectPath,
    is_local,
    is_s3,
    remove_empty,
    store_errors,
)
from airflow_provider_r7mail.lake.threads import pause

log = logging.getLogger(__name__)

# The folder of locks. Its underscore hides it from readers of tables.
LOCKS = "_locks"
# Publishing takes a second or two. A process that has held a lock this long was killed, or hangs:
# then the check after publishing finds out.
LOCK_SECONDS = 30.0
# How long to wait for a lock, in terms of that.
MAX_WAITS = 6
# How S3 refuses a conditional write that lost to another one. MinIO before 2024 says 304.
LOCK_IS_HELD = frozenset(
    {"PreconditionFailed", "ConditionalRequestConflict", "NotModified", "304", "409", "412"}
)


def locked(folder: ObjectPath, name: str) -> AbstractContextManager[Lock | None]:
    """Keep other processes from publishing the same thing to a folder at the same time.

    On a disk a file is the lock, so that other hosts see it, and on S3 an object. Other stores have
    no locks, nor do stores like S3 without conditional writes. Check the result after publishing.

    :param name: what is published, as a path below the folder
    :raises R7MailPublishError: on entering: it could not be locked in time, or the task was stopped
    """
    if is_local(folder):
        return _held(DiskLock(folder / f"{LOCKS}/{name}"))
    if is_s3(folder):
        return _held(S3Lock(folder / f"{LOCKS}/{name}"))
    return contextlib.nullcontext()


def locked_names(folder: ObjectPath, parent: str) -> set[str]:
    """Return the names right below a path that are locked, also by processes that were killed.

    None on stores without locks.
    """
    place = folder / f"{LOCKS}/{parent}"
    try:
        with store_errors(place):
            place.fs.invalidate_cache()
            found = place.fs.ls(place.path, detail=False)
    except FileNotFoundError:
        return set()
    return {f"{parent}/{path.rpartition('/')[2]}" for path in found}


@contextlib.contextmanager
def _held(lock: Lock) -> Iterator[Lock]:
    lock.take()
    try:
        yield lock
    finally:
        try:
            lock.release()
        except OSError as error:
            log.warning(
                "The lock in %s could not be removed (%s): the next run waits %s seconds.",
                LOCKS,
                type(error.__cause__ or error).__name__,
                LOCK_SECONDS,
            )


class Lock(ABC):
    """An object that only one process at a time can create.

    Nothing removes the lock of a killed process, so one that is LOCK_SECONDS old is taken over, by
    one process only.
    """

    def __init__(self, path: ObjectPath) -> None:
        self.path = path
        self._text = f"{own_mark()} {uuid.uuid4().hex}"
        # What tells the object created here, and the one seen last, from others, and since when.
        self._mine: str | None = None
        self._seen: str | None = None
        self._since = 0.0
        self._refusal = ""

    def take(self) -> None:
        """Wait for the lock.

        :raises R7MailPublishError: it took too long, or the task was stopped
        """
        limit = MAX_WAITS * LOCK_SECONDS
        started = time.monotonic()
        waiting = False
        while not self._try():
            if not waiting:
                log.info("%s: another run is publishing here: waiting for it.", self.path)
            waiting = True
            if not pause(random.uniform(0.05, 0.25)):  # noqa: S311 - nothing secret
                raise R7MailPublishError(
                    f"{self.path}: the task was stopped while it waited for this lock. An earlier "
                    "result is unchanged."
                )
            if time.monotonic() - started > limit:
                raise R7MailPublishError(
                    f"{self.path}: this lock could not be taken in {limit:g} seconds"
                    f"{self._refusal}. An earlier result is unchanged. If no other run is "
                    "publishing, delete the lock and run it again."
                )

    def _try(self) -> bool:
        with store_errors(self.path):
            self._create(self._seen if self._is_left() else None)
            # Checked even after creating it: a store that ignores conditions lets several processes
            # create the object, but keeps only the last one's.
            there = self._look()
        if there != self._seen:
            self._seen, self._since = there, time.monotonic()
        return there is not None and there == self._mine

    def _is_left(self) -> bool:
        return self._seen is not None and time.monotonic() - self._since > LOCK_SECONDS

    def is_held(self) -> bool:
        """Return whether no other process has taken it over meanwhile."""
        with store_errors(self.path):
            return self._look() == self._mine

    def release(self) -> None:
        """Release the lock."""
        with store_errors(self.path):
            self._release()

    @abstractmethod
    def _create(self, left: str | None) -> None:
        """Create the object, or take over one that was left; do nothing if another did so."""

    @abstractmethod
    def _look(self) -> str | None:
        """Return what tells the object that is there from others; None if there is none."""

    @abstractmethod
    def _release(self) -> None:
        """Remove the object if it is still the one created here."""


class DiskLock(Lock):
    """A file, since other hosts don't see `flock` on many network disks."""

    def __init__(self, path: ObjectPath) -> None:
        super().__init__(path)
        self._place = Path(path.path)

    def _is_left(self) -> bool:
        return super()._is_left() or has_ended((self._seen or "").partition(" ")[0])

    def _create(self, left: str | None) -> None:
        if left is not None:
            self._remove(left)
        try:
            self._place.parent.mkdir(parents=True, exist_ok=True)
            with self._place.open("x") as file:
                file.write(self._text)
        except (FileExistsError, FileNotFoundError):
            pass  # another process holds it, or removed the empty folder
        else:
            self._mine = self._text

    def _look(self) -> str | None:
        try:
            return self._place.read_text()
        except FileNotFoundError:
            return None

    def _release(self) -> None:
        self._remove(self._text)
        remove_empty(self.path.parent, len(self._place.parts))

    def _remove(self, text: str) -> None:
        """Remove the file if it has this text; it is renamed first, so that one process does it."""
        aside = self._place.with_name(f"{self._place.name}.{uuid.uuid4().hex}")
        try:
            self._place.rename(aside)
        except FileNotFoundError:
            return
        if aside.read_text() != text:
            with contextlib.suppress(FileExistsError):
                os.link(aside, self._place)
        aside.unlink()


class S3Lock(Lock):
    """An object on S3, told from others by its ETag."""

    def __init__(self, path: ObjectPath) -> None:
        super().__init__(path)
        self._fs = path.fs
        bucket, key, _ = self._fs.split_path(path.path)
        self._where = {"Bucket": bucket, "Key": key}

    def _create(self, left: str | None) -> None:
        condition = {"IfNoneMatch": "*"} if left is None else {"IfMatch": left}
        body = self._text.encode()
        digest = hashlib.sha256(body).digest()
        try:
            # With checksums like all that follows: a store that refuses them has to do so here,
            # before anything is removed.
            made = self._fs.call_s3(
                "put_object",
                **self._where,
                **condition,
                **checksums(self._fs, self.path.path, digest),
                Body=body,
            )
        except OSError as error:
            code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
            if code == "NotImplemented":  # no conditional writes, and so no locks
                upload = S3Upload(self._fs, self.path.path)
                upload.write(body)
                made = upload.put(digest).result()
            elif code in LOCK_IS_HELD or (code == "NoSuchKey" and left is not None):
                self._refusal = f" (the store says {code})"
                return
            else:
                raise
        self._mine = made["ETag"]

    def _look(self) -> str | None:
        try:
            tag: str = self._fs.call_s3("head_object", **self._where)["ETag"]
        except FileNotFoundError:
            return None
        except PermissionError:  # S3's "not found" for those who can't list the bucket
            if self._mine is not None:
                raise
            return None
        return tag

    def _release(self) -> None:
        if self._look() == self._mine:
            self._fs.call_s3("delete_object", **self._where)
