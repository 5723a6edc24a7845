"""Read, measure and remove objects in any store: a disk, S3, or another that fsspec knows."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from airflow_provider_r7mail.exceptions import R7MailConfigError, R7MailError
from airflow_provider_r7mail.lake.s3 import read_options, s3_folders, s3_remove

log = logging.getLogger(__name__)


class ObjectPath(Protocol):
    """The part of `ObjectStoragePath` and `UPath` used here."""

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


@dataclass(frozen=True, slots=True)
class StorePath:
    """An `ObjectPath` that costs no more than its text: a `UPath` takes as long as a request.

    :param fs: the fsspec file system
    :param path: the path within it
    :param text: the path as errors show it, with the Airflow connection
    """

    fs: Any
    path: str
    text: str

    @classmethod
    def of(cls, path: ObjectPath) -> Self:
        """Return a path in this form."""
        return cls(path.fs, path.path.rstrip("/"), str(path).rstrip("/"))

    @property
    def name(self) -> str:
        """The last part."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> StorePath:
        """The folder."""
        return StorePath(self.fs, self.path.rpartition("/")[0], self.text.rpartition("/")[0])

    def __truediv__(self, part: str) -> StorePath:
        return StorePath(self.fs, f"{self.path}/{part}", f"{self.text}/{part}")

    def __str__(self) -> str:
        return self.text


def is_local(path: ObjectPath) -> bool:
    """Return whether the path is on this machine's disk."""
    known = path.fs.protocol
    return bool({"file", "local"} & {*([known] if isinstance(known, str) else known)})


def is_s3(path: ObjectPath) -> bool:
    """Return whether the path is on S3, or a store with the same API."""
    return hasattr(path.fs, "_call_s3")  # s3fs


def url_of(path: ObjectPath) -> str:
    """Return a path as a URL, without the Airflow connection that `str(path)` may contain."""
    url: str = path.fs.unstrip_protocol(path.path)
    return url


def is_url_of(url: str, path: ObjectPath) -> bool:
    """Return whether a URL is that of a path, with any Airflow connection or none."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url == path.path and is_local(path)
    host, slash, key = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{key}" == url_of(path)


@contextlib.contextmanager
def store_errors(path: ObjectPath) -> Iterator[None]:
    """Turn any error of a store into an OSError that names the object, and what was tried with it.

    fsspec's file systems let other errors of their libraries through: for example, botocore's for
    a host that can't be reached. Of S3's own errors they leave a bare "Forbidden".
    """
    try:
        yield
    except R7MailError:
        raise
    except OSError as error:
        action = getattr(error.__cause__, "operation_name", None)  # botocore's
        if action is None:
            raise
        named = type(error)(f"{action} {url_of(path)}: {error}")
        named.errno = error.errno
        raise named from error.__cause__
    except Exception as error:
        raise OSError(f"{path}: {type(error).__name__}: {error}") from error


def read(path: ObjectPath) -> bytes | None:
    """Return an object's bytes, or None if it doesn't exist."""
    with absence(path), store_errors(path):
        data: bytes = path.fs.cat_file(path.path, **read_options(path.fs))
        return data
    return None


def read_end(path: ObjectPath, size: int) -> bytes:
    """Return the last bytes of an object, in one request; all of them if it has no more."""
    with store_errors(path):
        data: bytes = path.fs.cat_file(path.path, start=-size, **read_options(path.fs))
    return data


@contextlib.contextmanager
def absence(path: ObjectPath) -> Iterator[None]:
    """Ignore the error of an object that doesn't exist.

    Without the right to list the bucket, S3 says "Forbidden" instead of "not found".
    """
    try:
        yield
    except FileNotFoundError:
        pass
    except PermissionError as error:
        if not is_s3(path):
            raise
        # Not the name: strangers name the files.
        log.info(
            "%s: %s of an object there is forbidden. Taken as missing: S3 says so of missing "
            "objects if s3:ListBucket isn't granted.",
            url_of(path.parent),
            getattr(error.__cause__, "operation_name", "reading"),
        )


def remove(path: ObjectPath) -> None:
    """Remove an object if it exists."""
    with contextlib.suppress(FileNotFoundError), store_errors(path):
        path.fs.rm_file(path.path)


def remove_all(paths: Sequence[ObjectPath]) -> None:
    """Remove objects that may exist, on S3 a thousand in one request."""
    if not paths:
        return
    fs = paths[0].fs
    if is_s3(paths[0]):
        with store_errors(paths[0]):
            s3_remove(fs, [path.path for path in paths])
        return
    for path in paths:
        with contextlib.suppress(FileNotFoundError), store_errors(path):
            fs.rm_file(path.path)


def read_all(paths: Sequence[ObjectPath]) -> list[bytes | None]:
    """Return the bytes of objects, read at once where the store can; None for those missing."""
    if not paths:
        return []
    with store_errors(paths[0]):
        # Not cat(), which takes a path with a ? or [ for a pattern.
        found = paths[0].fs.cat_ranges(
            [path.path for path in paths],
            None,
            None,
            on_error="return",
            **read_options(paths[0].fs),
        )
    result = []
    for path, data in zip(paths, found, strict=True):
        if isinstance(data, Exception):
            with absence(path), store_errors(path):
                raise data
        result.append(data if isinstance(data, bytes) else None)
    return result


def subfolders(folder: ObjectPath, *prefixes: str) -> list[str]:
    """Return the names of what is in a folder, on S3 of folders only; none if it doesn't exist.

    :param prefixes: what they begin with
    """
    with contextlib.suppress(NotADirectoryError), absence(folder), store_errors(folder):
        if is_s3(folder):
            return sorted(
                name for prefix in prefixes for name in s3_folders(folder.fs, folder.path, prefix)
            )
        if is_local(folder):  # fsspec asks for each entry's state, which takes as long as a run
            found = os.listdir(folder.path)  # noqa: PTH208 - names are enough
        else:
            folder.fs.invalidate_cache()
            paths = folder.fs.ls(folder.path, detail=False)
            found = [path.rstrip("/").rpartition("/")[2] for path in paths]
        return sorted(name for name in found if name.startswith(prefixes))
    return []


def subfolders_of_all(folders: Sequence[ObjectPath], *prefixes: str) -> list[list[str]]:
    """Return the names of what is in each of some folders, on S3 listed at once."""
    if not is_s3(folders[0]):
        return [subfolders(folder, *prefixes) for folder in folders]
    with ThreadPoolExecutor(len(folders) * len(prefixes)) as pool:
        pages = [
            [pool.submit(subfolders, folder, prefix) for prefix in prefixes] for folder in folders
        ]
        return [[name for page in found for name in page.result()] for found in pages]


def size_of(path: ObjectPath) -> int | None:
    """Return an object's size in bytes, or None if it doesn't exist."""
    with absence(path), store_errors(path):
        return int(path.fs.info(path.path)["size"])
    return None


def make_folder(folder: ObjectPath) -> None:
    """Create a folder on disk; object stores have none.

    :raises R7MailConfigError: it can't be created, or isn't writable
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
    """Remove a folder on disk and its parents, as far as they are empty.

    :param levels: the maximum number of folders to remove
    """
    if not is_local(folder):
        return
    path = Path(folder.path)
    with contextlib.suppress(OSError):  # not empty, or gone
        for _ in range(levels):
            path.rmdir()
            path = path.parent
