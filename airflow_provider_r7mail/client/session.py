"""Carry a `Call` to the server and bring its answer back: log in, retry, time out, stream.

`Client` and `AsyncClient` share every decision, made by the functions at the top; the two classes
only wait differently. No Airflow.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Executor
from contextlib import (
    AbstractContextManager,
    aclosing,
    asynccontextmanager,
    closing,
    contextmanager,
    suppress,
)
from copy import copy
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import tenacity

from airflow_provider_r7mail.client.calls import Call, failure, is_html, log_in
from airflow_provider_r7mail.client.http import (
    SYNC_ERRORS,
    ClientConfig,
    _retry_options,
    _unclear_error,
    interpret,
    network,
    request_options,
    unclear,
)
from airflow_provider_r7mail.client.models import Stats
from airflow_provider_r7mail.exceptions import (
    R7MailAuthError,
    R7MailRequestError,
    R7MailResponseError,
)

T = TypeVar("T")

log = logging.getLogger(__name__)
# A download's pieces: each is a step through four layers of iterators.
PIECE_BYTES = 1 << 18
# What our own time-outs allow beyond those of aiohttp.
SLACK_SECONDS = 1.0
MAX_REFUSALS = 5


@dataclass(slots=True)
class Download:
    """An attachment on its way.

    :param length: its length in bytes as the server announced it, None if it did not (R22)
    :param is_html: whether the answer's Content-Type is that of an HTML page: of a file that is
        none, a proxy's page came in its place (R16)
    :param chunks: the bytes, in pieces
    """

    length: int | None
    is_html: bool
    chunks: Iterator[bytes]


@dataclass(slots=True)
class AsyncDownload:
    """An attachment on its way; see `Download`."""

    length: int | None
    is_html: bool
    chunks: AsyncIterator[bytes]


class _Unpacking:
    """Takes compression off a download that was asked for as it is, where a proxy put it on.

    httpx can do that, but takes a gzip stream that breaks off for whole (R22), and the first of
    several members for all.
    """

    def __init__(self, encoding: str) -> None:
        self._gzip = _member() if encoding else None

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._gzip is None:
            yield data
            return
        try:
            while data:  # a thousand times as much may come out as goes in
                if self._gzip.eof:
                    data = data.lstrip(b"\0")  # padding, which gzip allows
                    if not data:
                        return
                    self._gzip = _member()
                yield self._gzip.decompress(data, PIECE_BYTES)
                data = self._gzip.unused_data or self._gzip.unconsumed_tail
        except zlib.error as error:
            raise httpx.DecodingError(str(error)) from error

    def end(self) -> None:
        if self._gzip is not None and not self._gzip.eof:
            raise httpx.DecodingError("the gzip stream breaks off")


def _member() -> zlib._Decompress:
    return zlib.decompressobj(16 + zlib.MAX_WBITS)


def begin_download(
    call: Call[bytes], status: int, headers: httpx.Headers, attempt: int
) -> tuple[int | None, _Unpacking]:
    """Read the head of a download's answer: its length, and how to unpack it.

    :raises R7MailRequestError: the status is not 200, or the end could not be told from a break
    """
    error = failure(call, status, headers, attempt)
    if error is not None:
        raise error
    encoding = headers.get("content-encoding", "").strip().lower().replace("identity", "")
    length = headers.get("content-length")
    if encoding not in {"", "gzip", "x-gzip"}:
        reason, hint = "the file came compressed, not as asked", "Turn that off in the proxy."
    elif length is None and "chunked" not in headers.get("transfer-encoding", "").lower():
        reason = "the file came without Content-Length or chunks: a break could not be noticed"
        hint = "Let the proxy in front of the server answer in HTTP/1.1."
    else:
        return None if length is None or encoding else int(length), _Unpacking(encoding)
    raise R7MailResponseError(
        reason, method=call.method, path=call.path, status=status, attempt=attempt, hint=hint
    )


class _WithoutQuery(logging.Filter):
    """httpx logs the URL of each request whole: for attachments, with the file's name."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                arg.copy_with(query=None)
                if isinstance(arg, httpx.URL) and "/api/v1/email/" in arg.path
                else arg
                for arg in record.args
            )
        return True


_without_query = _WithoutQuery()


class _Base:
    """What the two clients share: configuration, token and numbers."""

    def __init__(
        self, config: ClientConfig, *, on_token: Callable[[str], None] | None = None
    ) -> None:
        self.config = config
        self.stats = Stats()
        self._on_token = on_token
        self._token: str | None = None
        self._served: str | None = None
        self._refusal: R7MailAuthError | None = None
        self._base = ""
        logging.getLogger("httpx").addFilter(_without_query)  # added once, however many clients

    def _log_in(self) -> Call[str]:
        if self._refusal is not None:
            # Each concurrent call would try the same password again, and lock the account.
            raise copy(self._refusal)
        config = self.config
        return log_in(config.login, config.password, proven=self.stats.logins > 0)

    def _died(self, call: Call[Any], token: str | None, status: int, refusals: int) -> bool:
        """Whether a 401 means that the token has died, so that a new one is due (R12).

        A second refusal in a row is final, but for a token that has served since: calls that share
        it may outlive it together.
        """
        if not call.authorized:
            return False
        if status != 401:
            self._served = token
            return False
        return refusals == 0 or (refusals < MAX_REFUSALS and token == self._served)

    def _accept_token(self, token: str) -> str:
        self.stats.logins += 1
        if self._on_token is not None:
            self._on_token(token)
        self._token = token
        return token


class Client(_Base):
    """The sync client; a context manager.

    :param config: how to reach the server
    :param on_token: told each token before it is used, to mask it in logs
    """

    def __enter__(self) -> Self:
        options = self.config.http_options()
        self._base = str(options["base_url"]).rstrip("/")
        context = self.config.ssl_context()
        proxy = self.config.effective_proxy()
        self._http = httpx.Client(verify=context, proxy=proxy, **options)
        # A kept connection may have died unseen, and a request lost on it may have been acted on.
        # What must not be repeated goes over a new connection each time (R23).
        self._fresh = httpx.Client(
            verify=context,
            proxy=proxy,
            limits=httpx.Limits(max_keepalive_connections=0),
            **options,
        )
        self._lock = threading.Lock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()
        self._fresh.close()

    def send(self, call: Call[T]) -> T:
        """Carry one call; log in and retry where that is due.

        :raises R7MailRequestError: it failed for good
        """
        try:
            for attempt in self.attempts(call):
                with attempt:
                    number = attempt.retry_state.attempt_number
                    with self.exchange(call, number) as response:
                        with network(call, number):
                            body = b"".join(response.iter_bytes())  # see AsyncClient
                        self.stats.bytes_read += len(body)
                    return interpret(call, response.status_code, response.headers, body, number)
        except R7MailRequestError as error:
            if unclear(call, error):
                raise _unclear_error(error) from error
            raise
        raise AssertionError("tenacity ended without a result")

    def attempts(self, call: Call[Any]) -> tenacity.Retrying:
        """The attempts a call may take: `for attempt in client.attempts(call): with attempt:`."""
        return tenacity.Retrying(**_retry_options(call, self.config, self.stats))

    @contextmanager
    def stream(self, call: Call[bytes], attempt: int = 1) -> Iterator[Download]:
        """Open a download; one attempt. Breaking off raises, whatever the framing (R22)."""
        with self.exchange(call, attempt) as response:
            head = response.status_code, response.headers
            length, unpacking = begin_download(call, *head, attempt)
            with closing(self._pieces(call, attempt, response, unpacking)) as chunks:
                yield Download(length, is_html(response.headers), chunks)

    def _pieces(
        self, call: Call[bytes], attempt: int, response: httpx.Response, unpacking: _Unpacking
    ) -> Generator[bytes]:
        with network(call, attempt):
            for data in response.iter_raw(PIECE_BYTES):
                for piece in unpacking.feed(data):
                    self.stats.bytes_read += len(piece)
                    yield piece
            unpacking.end()

    @contextmanager
    def exchange(self, call: Call[Any], attempt: int) -> Iterator[httpx.Response]:
        """Make one attempt, and give the answer as it is, whatever its status; see `network`.

        A token that has died is replaced, and the call repeated (R12).
        """
        http = self._http if call.repeatable else self._fresh
        for refusals in range(MAX_REFUSALS + 1):
            token = self._get_token(call)
            self.stats.requests += 1
            with network(call, attempt):
                request = http.build_request(**request_options(call, token, self._base))
                response = http.send(request, stream=True)
            try:
                if self._died(call, token, response.status_code, refusals):
                    self._drop_token(token)
                    continue
                yield response
                return
            finally:
                with suppress(R7MailRequestError), network(call, attempt):
                    response.close()

    def _get_token(self, call: Call[Any]) -> str | None:
        if not call.authorized:
            return None
        with self._lock:
            if self._token is not None:
                return self._token
            try:
                return self._accept_token(self.send(self._log_in()))
            except R7MailAuthError as error:
                self._refusal = error
                raise

    def _drop_token(self, token: str | None) -> None:
        with self._lock:
            if self._token == token:
                self._token = None


def _async_network(call: Call[Any], attempt: int) -> AbstractContextManager[None]:
    import aiohttp

    # aiohttp's own errors come through where httpx-aiohttp knows no match.
    return network(call, attempt, (*SYNC_ERRORS, aiohttp.ClientError))


class _InTime(httpx.AsyncByteStream):
    """A body each piece of which comes in time, or is a TimeoutError."""

    def __init__(self, stream: httpx.AsyncByteStream, seconds: float) -> None:
        self._stream = stream
        self._seconds = seconds

    def __aiter__(self) -> Self:
        self._pieces = aiter(self._stream)
        return self

    async def __anext__(self) -> bytes:
        async with asyncio.timeout(self._seconds):
            return await anext(self._pieces)

    async def aclose(self) -> None:
        await self._stream.aclose()


def _transport(**options: Any) -> httpx.AsyncBaseTransport:
    import aiohttp
    from httpx_aiohttp import AiohttpTransport

    class Response(aiohttp.ClientResponse):
        async def start(self, connection: Any) -> Self:
            await super().start(connection)
            # httpx-aiohttp fails on a phrase that is not UTF-8. Nobody reads it.
            self.reason = ""
            return self

    class Transport(AiohttpTransport):
        def get_client(self) -> aiohttp.ClientSession:
            connector = aiohttp.TCPConnector(
                limit=self.limits.max_connections or 0,
                keepalive_timeout=self.limits.keepalive_expiry,
                ssl=self.ssl_context,
            )
            return aiohttp.ClientSession(
                connector=connector,
                response_class=Response,
                # It stops reading at twice as much, which costs two system calls each time.
                read_bufsize=2 * PIECE_BYTES,
            )

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            # aiohttp loses its read timer where a server sends more than its Content-Length says.
            # These are long enough not to come before its own.
            limits = request.extensions["timeout"]
            seconds = limits["read"] + SLACK_SECONDS
            async with asyncio.timeout(limits["pool"] + seconds):
                response = await super().handle_async_request(request)
            stream: Any = response.stream
            # Its own 16 KiB cost more than the reading itself. No option sets this.
            stream.CHUNK_SIZE = PIECE_BYTES
            response.stream = _InTime(stream, seconds)
            return response

    return Transport(**options)


class AsyncClient(_Base):
    """The async client; an async context manager. Same parameters and errors as `Client`."""

    async def __aenter__(self) -> Self:
        config = self.config
        # Loading the authorities takes tens of milliseconds: not on a triggerer's event loop.
        context = await asyncio.to_thread(config.ssl_context)
        proxy = config.effective_proxy()
        options = config.http_options(whole_connect=config.connect_timeout + config.timeout)
        self._base = str(options["base_url"]).rstrip("/")
        self._http = httpx.AsyncClient(
            transport=_transport(
                verify=context,
                proxy=proxy,
                # As many as there are slots: nothing waits for a connection but the slots.
                limits=httpx.Limits(max_connections=config.max_concurrency),
            ),
            **options,
        )
        # As in Client, but made when it is needed: an extract never does, and httpx's own
        # transport takes a quarter of a second to import.
        self._fresh: httpx.AsyncClient | None = None
        self._make_fresh = partial(
            httpx.AsyncClient,
            verify=context,
            proxy=proxy,
            limits=httpx.Limits(max_keepalive_connections=0),
            **config.http_options(),
        )
        self._lock = asyncio.Lock()
        self._slots = asyncio.Semaphore(config.max_concurrency)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()
        if self._fresh is not None:
            await self._fresh.aclose()

    async def send(self, call: Call[T], *, executor: Executor | None = None) -> T:
        """Carry one call; log in and retry where that is due.

        :param executor: where to read the answer, if that takes long; None is here and now
        :raises R7MailRequestError: it failed for good
        """
        try:
            async for attempt in self.attempts(call):
                with attempt:
                    number = attempt.retry_state.attempt_number
                    async with self.exchange(call, number) as response:
                        with _async_network(call, number):
                            # Not aread(): the response would keep it, in a cycle with its stream.
                            body = b"".join([part async for part in response.aiter_bytes()])
                        self.stats.bytes_read += len(body)
                    read = partial(
                        interpret, call, response.status_code, response.headers, body, number
                    )
                    if executor is None:
                        return read()
                    return await asyncio.get_running_loop().run_in_executor(executor, read)
        except R7MailRequestError as error:
            if unclear(call, error):
                raise _unclear_error(error) from error
            raise
        raise AssertionError("tenacity ended without a result")

    def attempts(self, call: Call[Any]) -> tenacity.AsyncRetrying:
        """The attempts a call may take: `async for attempt in ...: with attempt:`."""
        return tenacity.AsyncRetrying(**_retry_options(call, self.config, self.stats))

    @asynccontextmanager
    async def stream(self, call: Call[bytes], attempt: int = 1) -> AsyncIterator[AsyncDownload]:
        """Open a download; one attempt. Breaking off raises, whatever the framing (R22)."""
        async with self.exchange(call, attempt) as response:
            head = response.status_code, response.headers
            length, unpacking = begin_download(call, *head, attempt)
            async with aclosing(self._pieces(call, attempt, response, unpacking)) as chunks:
                yield AsyncDownload(length, is_html(response.headers), chunks)

    async def _pieces(
        self, call: Call[bytes], attempt: int, response: httpx.Response, unpacking: _Unpacking
    ) -> AsyncGenerator[bytes]:
        with _async_network(call, attempt):
            async for data in response.aiter_raw():  # in the pieces of _transport
                for piece in unpacking.feed(data):
                    self.stats.bytes_read += len(piece)
                    yield piece
            unpacking.end()

    def _carrier(self, call: Call[Any]) -> httpx.AsyncClient:
        if call.repeatable:
            return self._http
        if self._fresh is None:
            self._fresh = self._make_fresh()
        return self._fresh

    @asynccontextmanager
    async def exchange(self, call: Call[Any], attempt: int) -> AsyncIterator[httpx.Response]:
        """Make one attempt; see `Client.exchange`."""
        http = self._carrier(call)
        for refusals in range(MAX_REFUSALS + 1):
            token = await self._get_token(call)
            async with self._slots:
                self.stats.requests += 1
                with _async_network(call, attempt):
                    request = http.build_request(**request_options(call, token, self._base))
                    response = await http.send(request, stream=True)
                try:
                    if self._died(call, token, response.status_code, refusals):
                        self._drop_token(token)
                        continue
                    yield response
                    return
                finally:
                    with suppress(R7MailRequestError), _async_network(call, attempt):
                        await response.aclose()

    async def _get_token(self, call: Call[Any]) -> str | None:
        if not call.authorized:
            return None
        async with self._lock:
            if self._token is not None:
                return self._token
            try:
                return self._accept_token(await self.send(self._log_in()))
            except R7MailAuthError as error:
                self._refusal = error
                raise

    def _drop_token(self, token: str | None) -> None:
        if self._token == token:
            self._token = None
