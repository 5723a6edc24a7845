"""Receive an attachment: its announced length, and its bytes without the proxy's compression.

Performs no I/O of its own: the clients feed it. No Airflow.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import httpx

from airflow_provider_r7mail.client.calls import Call
from airflow_provider_r7mail.client.statuses import failure
from airflow_provider_r7mail.exceptions import R7MailResponseError

PIECE_BYTES = 1 << 18
"""Size of a download's pieces. Each one passes through four layers of iterators."""


@dataclass(slots=True)
class Download:
    """An attachment that is being downloaded.

    :param length: length in bytes as announced by the server, None if it announced none (R22)
    :param is_html: whether Content-Type says HTML. For a file that isn't HTML, this is a proxy's
        page instead of the file (R16)
    :param chunks: the bytes, in pieces
    """

    length: int | None
    is_html: bool
    chunks: Iterator[bytes]


@dataclass(slots=True)
class AsyncDownload:
    """An attachment that is being downloaded; see `Download`."""

    length: int | None
    is_html: bool
    chunks: AsyncIterator[bytes]


class Unpacking:
    """Decompress a download that a proxy compressed although that was not requested.

    httpx can decompress, but takes a truncated gzip stream for a complete one (R22), and ignores
    all but the first of several gzip members.

    :param encoding: the response's Content-Encoding: `gzip`, `x-gzip`, or empty for none
    """

    def __init__(self, encoding: str) -> None:
        self._gzip = _member() if encoding else None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decompress the next bytes, in pieces of at most PIECE_BYTES.

        :raises httpx.DecodingError: not gzip
        """
        if self._gzip is None:
            yield data
            return
        try:
            while data:  # the output may be a thousand times larger than the input
                if self._gzip.eof:
                    data = data.lstrip(b"\0")  # gzip allows padding
                    if not data:
                        return
                    self._gzip = _member()
                yield self._gzip.decompress(data, PIECE_BYTES)
                data = self._gzip.unused_data or self._gzip.unconsumed_tail
        except zlib.error as error:
            raise httpx.DecodingError(str(error)) from error

    def end(self) -> None:
        """Note that all bytes have been fed.

        :raises httpx.DecodingError: the gzip stream is incomplete
        """
        if self._gzip is not None and not self._gzip.eof:
            raise httpx.DecodingError("the gzip stream is truncated")


def _member() -> zlib._Decompress:
    return zlib.decompressobj(16 + zlib.MAX_WBITS)


def begin_download(
    call: Call[bytes], status: int, headers: httpx.Headers, attempt: int
) -> tuple[int | None, Unpacking]:
    """Read the head of a download's response: its length, and how to decompress it.

    :raises R7MailRequestError: the status is not 200, or the end of the file could not be told
        from an interruption (R22)
    """
    error = failure(call, status, headers, attempt)
    if error is not None:
        raise error
    encoding = headers.get("content-encoding", "").strip().lower().replace("identity", "")
    length = headers.get("content-length")
    if encoding not in {"", "gzip", "x-gzip"}:
        reason = "the file came compressed, which was not requested"
        hint = "Disable compression in the proxy."
    elif length is None and "chunked" not in headers.get("transfer-encoding", "").lower():
        reason = "the file came without Content-Length or chunks: an interruption would go unseen"
        hint = "Make the proxy in front of the server respond with HTTP/1.1."
    else:
        return None if length is None or encoding else int(length), Unpacking(encoding)
    raise R7MailResponseError(
        reason, method=call.method, path=call.path, status=status, attempt=attempt, hint=hint
    )
