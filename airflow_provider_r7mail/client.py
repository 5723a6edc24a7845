"""Carry a `Call` to the server and bring its answer back: log in, retry, time out, stream.

`Client` and `AsyncClient` share every decision, made by the functions at the top; the two classes
only wait differently. No Airflow.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import threading
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
import tenacity

from airflow_provider_r7mail.api import (
    MAX_RETRY_AFTER_SECONDS,
    PROXY_LOGIN,
    PROXY_LOGIN_HINT,
    AnswerError,
    Call,
    failure,
    is_html,
    log_in,
)
from airflow_provider_r7mail.exceptions import (
    R7MailAuthError,
    R7MailConfigError,
    R7MailConnectionError,
    R7MailProxyError,
    R7MailRequestError,
    R7MailResponseError,
    R7MailSendUnclearError,
    R7MailServerError,
    R7MailTimeoutError,
)
from airflow_provider_r7mail.models import Stats

T = TypeVar("T")

log = logging.getLogger(__name__)

MAX_BACKOFF_SECONDS = 30.0
# A download's pieces: each is a step through four layers of iterators.
PIECE_BYTES = 1 << 18
MAX_REFUSALS = 5
SYNC_ERRORS: tuple[type[Exception], ...] = (httpx.HTTPError, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """How to reach a server.

    :param url: the server's base URL, like `https://mail.example.org`
    :param login: the account's login
    :param password: its password
    :param verify: True checks the server's certificate against the system's authorities and
        certifi's, a path against that CA bundle (a file or folder); False checks nothing
    :param cert: a client certificate: a PEM file with its key, or (certificate, key) files
    :param proxy: URL of an HTTP proxy; None takes what HTTPS_PROXY, HTTP_PROXY and NO_PROXY say
    :param timeout: seconds without a byte after which a request has failed
    :param connect_timeout: seconds for making a connection
    :param max_concurrency: requests in flight at once, of the async client
    :param max_retries: how often a failed request is repeated
    :param backoff: seconds before the first repetition; doubled each time, with jitter
    """

    url: str
    login: str
    password: str = field(repr=False)
    verify: bool | str = True
    cert: str | tuple[str, str] | None = None
    proxy: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    connect_timeout: float = 10.0
    max_concurrency: int = 4
    max_retries: int = 5
    backoff: float = 0.5

    def ssl_context(self) -> ssl.SSLContext:
        """Make the TLS context.

        :raises R7MailConfigError: a file that is not there or holds no certificate
        """
        try:
            if isinstance(self.verify, str):
                path = Path(self.verify)
                context = ssl.create_default_context(
                    cafile=None if path.is_dir() else self.verify,
                    capath=self.verify if path.is_dir() else None,
                )
            elif self.verify and self.url.startswith("http://") and not self.effective_proxy():
                # No TLS: authorities, which take 40 ms to load, are of no use.
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            else:
                # httpx knows certifi's authorities only, not those a company adds to its systems.
                context = httpx.create_ssl_context(verify=self.verify, trust_env=False)
                context.load_default_certs()
            if self.cert is not None:
                cert, key = (self.cert, None) if isinstance(self.cert, str) else self.cert
                # Without a password OpenSSL would ask for that of a key on the terminal.
                context.load_cert_chain(cert, key, password="")
        except OSError as error:
            raise R7MailConfigError(
                f"verify or cert of the connection: no certificate could be read ({error})."
            ) from error
        return context

    def effective_proxy(self) -> httpx.Proxy | None:
        """The proxy for the server: the connection's, else the environment's.

        :raises R7MailConfigError: it is no URL of an HTTP proxy
        """
        url = self.proxy or self._environment_proxy()
        if not url:
            return None
        # Like curl: the environment may have the host and port alone.
        with suppress(ValueError, httpx.InvalidURL):
            proxy = httpx.Proxy(url if "://" in url else f"http://{url}")
            if proxy.url.scheme in {"http", "https"} and proxy.url.host:
                return proxy
        # The value is not shown: it may hold a password.
        raise R7MailConfigError(
            "The proxy, of the connection or of HTTPS_PROXY and HTTP_PROXY, is not an HTTP URL. "
            "Give http://proxy.example.org:3128."
        )

    def _environment_proxy(self) -> str | None:
        parts = urlsplit(self.url)
        # With its port, which NO_PROXY may name.
        host = parts.netloc.rpartition("@")[2]
        return None if proxy_bypass(host) else getproxies().get(parts.scheme)

    def http_options(self, *, whole_connect: float | None = None) -> dict[str, Any]:
        """The options that all httpx clients take.

        :param whole_connect: seconds for all that comes before the request, under aiohttp: its
            time-outs for single steps leave out the DNS and a proxy's answer
        :raises R7MailConfigError: no host can have this URL
        """
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise R7MailConfigError(
                "The URL of the server cannot be used. Check Host, Schema and Port of the "
                "connection."
            ) from error
        if url.userinfo:
            raise R7MailConfigError(
                "The URL of the server holds a login. Give it in Login and Password instead."
            )
        return {
            "base_url": url,
            "timeout": httpx.Timeout(
                self.timeout, connect=self.connect_timeout, pool=whole_connect
            ),
            "follow_redirects": False,
            # The environment's proxy is in effective_proxy; .netrc must not override the token.
            "trust_env": False,
        }


def request_options(call: Call[Any], token: str | None, base: str = "") -> dict[str, Any]:
    """What httpx sends for a call.

    :param base: the server's URL. httpx could put it before the path itself, but reads both anew
        then, which takes as long as all else it does to build a request
    """
    headers = {"Content-Type": "application/json"}
    if call.authorized and token is not None:
        headers["Authorization"] = token
    if call.body is None:
        # A file is checked against its Content-Length, so it must come as it is (R22).
        headers["Accept-Encoding"] = "identity"
    return {
        "method": call.method,
        "url": f"{base}{call.path}?{call.query}" if call.query else f"{base}{call.path}",
        "headers": headers,
        # Escaped to ASCII: a lone surrogate in a filter's text has no UTF-8 form.
        "content": None if call.body is None else json.dumps(call.body).encode("ascii"),
    }


def interpret(call: Call[T], status: int, headers: httpx.Headers, body: bytes, attempt: int) -> T:
    """Read an answer.

    :raises R7MailRequestError: the status is not 200, or the body is not as agreed
    """
    error = failure(call, status, headers, attempt)
    if error is not None:
        raise error
    try:
        return call.parse(body)
    except AnswerError as answer:
        raise answer.error(
            answer.reason,
            method=call.method,
            path=call.path,
            status=status,
            attempt=attempt,
            hint=answer.hint,
        ) from answer


@contextmanager
def network(
    call: Call[Any], attempt: int, errors: tuple[type[Exception], ...] = SYNC_ERRORS
) -> Iterator[None]:
    """Turn the errors of the HTTP libraries into ours.

    Goes around their calls only, so that what a consumer of a download raises passes unchanged.

    :param errors: what the libraries raise
    """
    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:
        raise R7MailConfigError(
            "The URL of the server cannot be used. Check Host, Schema and Port of the connection."
        ) from error
    except errors as error:
        # These quote what was received, or hold the whole request with its token.
        quoting = isinstance(error, httpx.ProtocolError) or hasattr(error, "request_info")
        raise transport_failure(call, error, attempt) from (None if quoting else error)


def _before_sending(error: Exception) -> bool:
    """Whether the error means that no connection was made (R23)."""
    if type(error).__module__.startswith("aiohttp"):
        import aiohttp

        return isinstance(
            error,
            (
                aiohttp.ClientConnectorError,
                aiohttp.ConnectionTimeoutError,
                aiohttp.ClientHttpProxyError,
            ),
        )
    return isinstance(
        error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
    )


def _cause(error: BaseException | None) -> str:
    """What kept a connection from being made, in words; empty where only the library has some."""
    while error is not None:
        if isinstance(error, socket.gaierror):
            return "no such name is known to the name servers"
        if isinstance(error, ConnectionRefusedError):
            return "nothing listens at that port (connection refused)"
        error = error.__cause__ or error.__context__
    return ""


def transport_failure(call: Call[Any], error: Exception, attempt: int) -> R7MailRequestError:
    """Say what a failed exchange means."""
    never_sent = _before_sending(error)
    text = str(error)
    kind: type[R7MailRequestError] = R7MailConnectionError
    reachable = "Check Host, Port, Schema and proxy of the connection."
    if isinstance(error, httpx.DecodingError):
        kind, reason = R7MailResponseError, "the answer could not be decompressed"
        hint = "A proxy in front of the server may have cut it off."
    elif isinstance(error, (httpx.TimeoutException, TimeoutError)):
        kind = R7MailTimeoutError
        if never_sent:
            reason, hint = "the server could not be reached in time", reachable
        else:
            reason = "the server did not answer in time"
            hint = "Raise timeout in the connection if the server is known to be slow."
    elif "CERTIFICATE_VERIFY_FAILED" in text:
        reason = "the server's TLS certificate could not be verified"
        hint = (
            "Set verify in the connection to the path of your authority's CA bundle; Host must be "
            "a name that the certificate has."
        )
    elif "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        reason, hint = "the server does not speak TLS", "Set Schema of the connection to http."
    elif "certificate required" in text.lower():
        reason = "the server asks for a client certificate"
        hint = "Set cert in the connection."
    elif never_sent:
        # aiohttp's text would have the proxy's URL besides.
        status = getattr(error, "status", None)
        what = _cause(error) or text if status is None else f"the proxy answered {status}"
        reason, hint = f"the server could not be reached: {what}", reachable
        if status == 407 or (isinstance(error, httpx.ProxyError) and text.startswith("407")):
            reason, hint = f"{PROXY_LOGIN} (407)", PROXY_LOGIN_HINT
    else:
        reason = "the connection broke off, or the answer was not HTTP"
        hint = "If this stays so, check Port and Schema of the connection."
    return kind(
        reason,
        method=call.method,
        path=call.path,
        attempt=attempt,
        hint=hint,
        never_sent=never_sent,
    )


def may_repeat(call: Call[Any], error: BaseException) -> bool:
    """Whether a failed call is repeated (R23)."""
    if not isinstance(error, R7MailRequestError) or error.path != call.path:
        return False  # a login that failed on the way has had its own repetitions
    if error.retry_after is not None and error.retry_after > MAX_RETRY_AFTER_SECONDS:
        return False
    if not call.repeatable:
        # 429 is the proxy's refusal to pass the request on; after all else the server may have
        # acted.
        return error.never_sent or error.status == 429
    if isinstance(error, R7MailServerError):
        return error.status is not None and error.status >= 500
    if isinstance(error, R7MailProxyError):
        # 200: an HTML page in place of JSON, of a proxy that is being restarted
        return error.status in {200, 429, 502, 503, 504}
    return isinstance(error, (R7MailConnectionError, R7MailResponseError))


def unclear(call: Call[Any], error: R7MailRequestError) -> bool:
    """Whether the server may have acted on a call that must not be repeated (R23)."""
    if call.repeatable or error.path != call.path or error.never_sent:
        return False
    return error.status is None or error.status < 300 or error.status >= 500


def _retry_options(call: Call[Any], config: ClientConfig, stats: Stats) -> dict[str, Any]:
    # wait_exponential_jitter renamed its `initial`; this is the same in all versions.
    backoff = tenacity.wait_exponential(
        multiplier=config.backoff, max=MAX_BACKOFF_SECONDS
    ) + tenacity.wait_random(0, config.backoff)

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(backoff(state), getattr(error, "retry_after", None) or 0.0)

    def note(state: tenacity.RetryCallState) -> None:
        stats.retries += 1
        error = state.outcome.exception() if state.outcome else None
        log.warning("%s Trying again in %.1f s.", error, state.upcoming_sleep)

    return {
        "retry": tenacity.retry_if_exception(lambda error: may_repeat(call, error)),
        "stop": tenacity.stop_after_attempt(config.max_retries + 1),
        "wait": wait,
        "before_sleep": note,
        "reraise": True,
    }


def _unclear_error(error: R7MailRequestError) -> R7MailSendUnclearError:
    return R7MailSendUnclearError(
        f"it is unclear whether the message was sent: {error.reason}",
        method=error.method,
        path=error.path,
        status=error.status,
        attempt=error.attempt,
        hint="It was not repeated. Look into the Sent folder before sending it again.",
    )


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

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self.stats = Stats()
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
        self._token = token
        return token


class Client(_Base):
    """The sync client; a context manager.

    :param config: how to reach the server
    :param on_token: told each token before it is used, to mask it in logs
    """

    def __init__(
        self, config: ClientConfig, *, on_token: Callable[[str], object] | None = None
    ) -> None:
        super().__init__(config)
        self._on_token = on_token

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
                token = self.send(self._log_in())
                if self._on_token is not None:
                    self._on_token(token)
                return self._accept_token(token)
            except R7MailAuthError as error:
                self._refusal = error
                raise

    def _drop_token(self, token: str | None) -> None:
        with self._lock:
            if self._token == token:
                self._token = None


def _async_network(call: Call[Any], attempt: int) -> AbstractContextManager[None]:
    import aiohttp

    return network(call, attempt, (*SYNC_ERRORS, aiohttp.ClientError))


class AsyncClient(_Base):
    """The async client; an async context manager. Same errors as `Client`.

    :param config: how to reach the server
    :param on_token: told each token before it is used, and awaited, to mask it in logs
    """

    def __init__(
        self, config: ClientConfig, *, on_token: Callable[[str], Awaitable[object]] | None = None
    ) -> None:
        super().__init__(config)
        self._on_token = on_token

    async def __aenter__(self) -> Self:
        from airflow_provider_r7mail.transport import AiohttpTransport  # noqa: PLC0415 - slow

        config = self.config
        # Loading the authorities takes tens of milliseconds: not on a triggerer's event loop.
        context = await asyncio.to_thread(config.ssl_context)
        proxy = config.effective_proxy()
        options = config.http_options(whole_connect=config.connect_timeout + config.timeout)
        self._base = str(options["base_url"]).rstrip("/")
        self._http = httpx.AsyncClient(
            transport=AiohttpTransport(
                verify=context,
                proxy=proxy,
                # As many as there are slots: nothing waits for a connection but the slots.
                max_connections=config.max_concurrency,
                piece_bytes=PIECE_BYTES,
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
            async for data in response.aiter_raw():  # in the pieces of the transport
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
                token = await self.send(self._log_in())
                if self._on_token is not None:
                    await self._on_token(token)
                return self._accept_token(token)
            except R7MailAuthError as error:
                self._refusal = error
                raise

    def _drop_token(self, token: str | None) -> None:
        if self._token == token:
            self._token = None
