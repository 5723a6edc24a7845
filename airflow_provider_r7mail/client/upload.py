"""A file to upload, and the request body that carries it, in bounded memory. No Airflow."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote
from uuid import uuid4

import httpx

from airflow_provider_r7mail.exceptions import R7MailAttachmentError, R7MailError

PIECE_BYTES = 1 << 18


class Readable(Protocol):
    """The part of a binary file used here."""

    def read(self, size: int, /) -> bytes:
        """Read at most so many bytes; none at the end."""

    def close(self) -> None:
        """Close it."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file to attach, which has not been read yet.

    :param name: the name that recipients see
    :param where: its path or URL, for errors
    :param open: opens it for reading
    """

    name: str
    where: str
    open: Callable[[], Readable]

    def measure(self) -> File:
        """Read the file once, to know its size and hash.

        :raises R7MailAttachmentError: it is missing, unreadable or empty
        """
        size, digest = 0, hashlib.sha256()
        for piece in self.read():
            size += len(piece)
            digest.update(piece)
        if not size:
            raise _unfit(self.where, "it is empty")
        return File(self, size, digest.hexdigest())

    def read(self) -> Iterator[bytes]:
        """Read the file, in pieces.

        :raises R7MailAttachmentError: it is missing or unreadable
        """
        with _reading(self.where), closing(self.open()) as stream:
            while piece := stream.read(PIECE_BYTES):
                yield piece


@dataclass(frozen=True, slots=True)
class File:
    """A file to attach.

    :param source: where to read it from
    :param size: its size in bytes
    :param digest: its SHA-256, in hex
    """

    source: Source
    size: int
    digest: str

    def read(self) -> Iterator[bytes]:
        """Read the file, in pieces. The last one only comes if the file hasn't changed meanwhile.

        :raises R7MailAttachmentError: it has changed, or is unreadable
        """
        size, digest, last = 0, hashlib.sha256(), b""
        for piece in self.source.read():
            size += len(piece)
            digest.update(piece)
            if size > self.size:
                break
            if last:
                yield last
            last = piece
        if digest.hexdigest() != self.digest:
            raise _unfit(self.source.where, "it changed while it was read")
        yield last


class Upload(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A multipart body with one file and its length known, to be sent any number of times.

    The async client, which asks for an `AsyncByteStream`, reads it in a thread as well.

    :param file: the file
    :param name: its name on the server, without control characters
    :param mime_type: its MIME type
    :param fields: the form's other fields: ASCII
    :param headers: headers of the request, besides those of the body
    """

    def __init__(
        self,
        file: File,
        name: str,
        mime_type: str,
        fields: Mapping[str, str],
        headers: Mapping[str, str],
    ) -> None:
        boundary = uuid4().hex
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
            for field, value in fields.items()
        ]
        # The plain name is for servers that don't read the other (RFC 6266).
        plain = re.sub(r'[^ -~]|["\\%;]', "_", name)
        parts.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{plain}"; '
            f"filename*=UTF-8''{quote(name, safe='')}\r\nContent-Type: {mime_type}\r\n\r\n"
        )
        self._file = file
        self._head = "".join(parts).encode("ascii")
        self._tail = f"\r\n--{boundary}--\r\n".encode("ascii")
        self.headers = {
            **headers,
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(self._head) + file.size + len(self._tail)),
        }

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        yield from self._file.read()
        yield self._tail


def _unfit(where: str, why: str) -> R7MailAttachmentError:
    return R7MailAttachmentError(f"{where} can't be attached: {why}. No message was sent.")


@contextmanager
def _reading(where: str) -> Iterator[None]:
    try:
        yield
    except R7MailError:
        raise
    except FileNotFoundError as error:
        raise _unfit(where, "there is no such file") from error
    # fsspec's file systems let any error of their libraries through.
    except Exception as error:
        raise _unfit(where, f"it can't be read ({type(error).__name__}: {error})") from error
