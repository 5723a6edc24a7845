"""Send calls to the server: log in, retry, time out, stream.

`Client` and `AsyncClient` share every decision, made by `_Base`, `client.http` and
`client.download`; the two classes only wait differently. No Airflow.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
)
from concurrent.futures import Executor
from contextlib import (
    AbstractContextManager,
    aclosing,
    asynccontextmanager,
    closing,
    contextmanager,
    suppress,
)
from functools import partial
from ssl import SSLContext
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import httpx
import tenacity

from airflow_provider_r7mail.client.calls import Call
from airflow_provider_r7mail.client.cookies import Cookies
from airflow_provider_r7mail.client.download import (
    PIECE_BYTES,
    AsyncDownload,
    Download,
    Unpacking,
    begin_download,
)
from airflow_provider_r7mail.client.http import (
    SYNC_ERRORS,
    ClientConfig,
    interpret,
    network,
    outcome_of_send,
    request_options,
    retry_options,
)
from airflow_provider_r7mail.client.models import Stats
from airflow_provider_r7mail.client.statuses import NO_MAIL, NO_MAIL_HINT, REFUSED, is_html
from airflow_provider_r7mail.client.threaded import ThreadedTransport
from airflow_provider_r7mail.client.tokens import Refusals, Token, Tokens, Verdict
from airflow_provider_r7mail.client.traits import Traits
from airflow_provider_r7mail.exceptions import R7MailAuthError, R7MailRequestError

T = TypeVar("T")

httpx_log = logging.getLogger("httpx")


class _WithoutQuery(logging.Filter):
    """Remove query strings from httpx's log lines: for attachments they contain the file name."""

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


def _is_quiet(record: logging.LogRecord) -> bool:
    """Drop httpcore's DEBUG line about response headers: the login's cookie is as good as a token.

    Nothing else logs a token, so that Airflow need not mask it: its masker never forgets a secret.
    """
    return "receive_response_headers.complete" not in record.getMessage()


class _Base:
    """State that the two clients share: configuration, token, statistics, traits."""

    def __init__(self, config: ClientConfig, *, insist: bool = False) -> None:
        self.config = config
        self.stats = Stats()
        self.traits = Traits()
        self._tokens = Tokens(config, insist=insist)
        self._bases = ("", "")
        self._cookies = Cookies()
        # Added once, however many clients.
        httpx_log.addFilter(_without_query)
        logging.getLogger("httpcore.http11").addFilter(_is_quiet)

    def _options(self, call: Call[Any], token: Token | None) -> dict[str, Any]:
        """Return the parts of a call's request."""
        self.stats.requests += 1
        value = None if token is None else token.value
        return request_options(call, value, self._bases[call.on_disk])

    def _build(
        self, http: httpx.Client | httpx.AsyncClient, call: Call[Any], token: Token | None
    ) -> httpx.Request:
        """Build a call's request for httpx."""
        request = http.build_request(**self._options(call, token))
        if call.upload is not None:
            request.stream = call.upload
        return request

    def _accept(self, value: str) -> Token:
        self.stats.logins += 1
        return self._tokens.accept(value)

    def _judge(
        self, call: Call[Any], token: Token, status: int, sent: float, past: Refusals
    ) -> Verdict:
        """Decide what a response says of the token that the call was sent with.

        :param sent: when the call was sent
        :param past: the refusals that it has met before; this one is added
        """
        if status == 200:
            self._tokens.served(call, token, sent, past)
            return "stands"
        past.add(status)
        return self._tokens.judge(call, token, status, past)

    def _check_module(self, call: Call[Any], status: int, attempt: int) -> None:
        """Name the reason if the account can't use mail at all (R41)."""
        if (
            not call.on_disk
            and call.authorized
            and not self._tokens.has_mail
            and status in {*REFUSED, 405}
        ):
            raise R7MailAuthError(
                NO_MAIL,
                method=call.method,
                path=call.path,
                status=status,
                attempt=attempt,
                hint=NO_MAIL_HINT,
            )


def _transport(
    context: SSLContext, proxy: httpx.Proxy | None, *, once: bool = False
) -> httpx.HTTPTransport:
    """Create a transport of httpx.

    :param once: whether each request takes a new connection
    """
    limits = httpx.Limits(max_keepalive_connections=0 if once else None)
    return httpx.HTTPTransport(verify=context, proxy=proxy, limits=limits)


class Client(_Base):
    """The sync client; a context manager.

    :param config: how to reach the server
    :param insist: try a password even if it was refused recently, since a person asks for it
    """

    def __enter__(self) -> Self:
        self._bases = self.config.bases()
        context = self.config.ssl_context()
        self._proxies = self.config.proxies()
        options = self.config.http_options() | {"cookies": self._cookies}
        routes = self.config.routes(self._proxies, partial(_transport, context))
        self._http = httpx.Client(**routes, **options)
        # A request on a kept-alive connection that was closed meanwhile may or may not have been
        # processed. Calls that must not be repeated use a new connection each time (R23).
        routes = self.config.routes(self._proxies, partial(_transport, context, once=True))
        self._fresh = httpx.Client(**routes, **options)
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
        """Send a call; log in and retry where necessary.

        :return: what the call's `parse` makes of the response
        :raises R7MailRequestError: the last attempt failed
        :raises R7MailSendUnclearError: it failed, but the server may have sent the message (R23)
        """

        def once(attempt: int) -> T:
            with self.exchange(call, attempt) as response:
                with network(call, attempt):
                    body = b"".join(response.iter_bytes())  # see AsyncClient
                self.stats.bytes_read += len(body)
            return interpret(call, response.status_code, response.headers, body, attempt)

        with outcome_of_send(call):
            return self.retry(call, once)

    def retry(self, call: Call[Any], once: Callable[[int], T]) -> T:
        """Make an attempt for a call, and further ones if it fails in a way that may pass.

        :param once: makes one attempt, given its number, from 1
        :return: what that returns
        """
        try:
            return once(1)
        except R7MailRequestError as error:
            failed = error
        # Only now: tenacity takes half as long as a request, and most attempts succeed.
        for attempt in tenacity.Retrying(**retry_options(call, self.config, self.stats)):
            with attempt:
                number = attempt.retry_state.attempt_number
                if number == 1:
                    raise failed
                return once(number)
        raise AssertionError("tenacity ended without a result")

    @contextmanager
    def stream(self, call: Call[bytes], attempt: int = 1) -> Iterator[Download]:
        """Open a download, in one attempt. An interruption raises, whatever the framing (R22)."""
        with self.exchange(call, attempt) as response:
            head = response.status_code, response.headers
            if response.status_code != 200:
                body = b""
                with suppress(R7MailRequestError), network(call, attempt):
                    body = response.read()
                interpret(call, *head, body, attempt)
            length, unpacking = begin_download(call, *head, attempt)
            with closing(self._pieces(call, attempt, response, unpacking)) as chunks:
                yield Download(length, is_html(response.headers), chunks)

    def _pieces(
        self, call: Call[bytes], attempt: int, response: httpx.Response, unpacking: Unpacking
    ) -> Generator[bytes]:
        with network(call, attempt):
            for data in response.iter_raw(PIECE_BYTES):
                for piece in unpacking.feed(data):
                    self.stats.bytes_read += len(piece)
                    yield piece
            unpacking.end()

    @contextmanager
    def exchange(self, call: Call[Any], attempt: int) -> Iterator[httpx.Response]:
        """Make one attempt, and yield the response as it is, whatever its status.

        An expired token is replaced, and the call repeated (R12). Wrap reading the response in
        `network`.
        """
        http = self._http if call.repeatable else self._fresh
        past = Refusals()
        while True:
            token = self._get_token() if call.authorized else None
            sent = time.monotonic()
            with network(call, attempt, proxy=self._proxies[call.on_disk]):
                request = self._build(http, call, token)
                response = http.send(request, stream=True)
            try:
                status = response.status_code
                if token is None or not self._is_dead(
                    call, attempt, token, response, self._judge(call, token, status, sent, past)
                ):
                    self._check_module(call, status, attempt)
                    yield response
                    return
            finally:
                with suppress(R7MailRequestError), network(call, attempt):
                    response.close()

    def _is_dead(
        self,
        call: Call[Any],
        attempt: int,
        token: Token,
        response: httpx.Response,
        verdict: Verdict,
    ) -> bool:
        """Whether the token is dead, so that the call is to be repeated with another one."""
        if verdict == "ask":
            refused = time.monotonic()
            with network(call, attempt):
                response.read()  # so that its connection is free
            with self._lock:
                verdict = "stands" if self._is_alive(token, refused) else "dead"
        if verdict == "dead":
            with self._lock:
                self._tokens.drop(token, response.status_code)
        return verdict == "dead"

    def _is_alive(self, token: Token, since: float) -> bool:
        """Whether a request that was sent since then was served with this token."""
        probe = self._tokens.probe
        if token is self._tokens.current and token.alive < since and probe is not None:
            with suppress(R7MailRequestError), network(probe, 1):
                sent = time.monotonic()
                request = self._build(self._http, probe, token)
                if self._http.send(request).status_code == 200:
                    self._tokens.served(probe, token, sent, Refusals())
        return token.alive >= since

    def log_in(self) -> None:
        """Log in, unless that has been done."""
        self._get_token()

    def _get_token(self) -> Token:
        with self._lock:
            if self._tokens.current is not None:
                return self._tokens.current
            try:
                for pause in self._tokens.before_login():
                    time.sleep(pause)
                return self._accept(self.send(self._tokens.login_call()))
            except R7MailAuthError as error:
                self._tokens.refuse(error)
                raise
            finally:
                self._tokens.account.leave()


def _async_network(
    call: Call[Any], attempt: int, proxy: httpx.Proxy | None = None
) -> AbstractContextManager[None]:
    import aiohttp

    return network(call, attempt, (*SYNC_ERRORS, aiohttp.ClientError), proxy=proxy)


class AsyncClient(_Base):
    """The async client; an async context manager. Same parameters and errors as `Client`."""

    async def __aenter__(self) -> Self:
        from airflow_provider_r7mail.client.transport import AiohttpTransport  # noqa: PLC0415 - slow

        config = self.config
        self._bases = config.bases()
        # Loading CA certificates takes tens of milliseconds: too long for the event loop.
        context = await asyncio.to_thread(config.ssl_context)
        self._proxies = config.proxies()
        self._carriers = [
            AiohttpTransport(
                verify=context,
                proxy=proxy,
                timeout=config.timeout,
                connect_timeout=config.connect_timeout,
                # A connection for each slot, so that requests wait for a slot and not for one.
                max_connections=config.max_concurrency,
                piece_bytes=PIECE_BYTES,
            )
            for proxy in self._proxies
        ]

        def make_fresh(proxy: httpx.Proxy | None) -> ThreadedTransport:
            transport = _transport(context, proxy, once=True)
            return ThreadedTransport(transport, config.max_concurrency)

        # As in Client, but created on demand: an extract doesn't need it, and httpx's own
        # transport takes a quarter of a second to import.
        self._fresh: httpx.AsyncClient | None = None
        self._make_fresh: Callable[[], httpx.AsyncClient] = lambda: httpx.AsyncClient(
            **config.routes(self._proxies, make_fresh),
            cookies=self._cookies,
            **config.http_options(),
        )
        self._lock = asyncio.Lock()
        self._asking = asyncio.Lock()
        self._slots = asyncio.Semaphore(config.max_concurrency)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for carrier in self._carriers:
            await carrier.aclose()
        if self._fresh is not None:
            await self._fresh.aclose()

    async def send(self, call: Call[T], *, executor: Executor | None = None) -> T:
        """Send a call; log in and retry where necessary. See `Client.send`.

        :param executor: where to parse the response if that takes long; None parses it right away
        """

        async def once(attempt: int) -> T:
            async with self.exchange(call, attempt) as response:
                with _async_network(call, attempt):
                    # Not aread(): the response would keep the body, in a reference cycle with its
                    # stream.
                    body = b"".join([part async for part in response.aiter_bytes()])
                self.stats.bytes_read += len(body)
            read = partial(interpret, call, response.status_code, response.headers, body, attempt)
            if executor is None:
                return read()
            return await asyncio.get_running_loop().run_in_executor(executor, read)

        with outcome_of_send(call):
            return await self.retry(call, once)

    async def retry(self, call: Call[Any], once: Callable[[int], Awaitable[T]]) -> T:
        """Make an attempt for a call, and further ones; see `Client.retry`."""
        try:
            return await once(1)
        except R7MailRequestError as error:
            failed = error
        async for attempt in tenacity.AsyncRetrying(**retry_options(call, self.config, self.stats)):
            with attempt:
                number = attempt.retry_state.attempt_number
                if number == 1:
                    raise failed
                return await once(number)
        raise AssertionError("tenacity ended without a result")

    @asynccontextmanager
    async def stream(self, call: Call[bytes], attempt: int = 1) -> AsyncIterator[AsyncDownload]:
        """Open a download, in one attempt. An interruption raises, whatever the framing (R22)."""
        async with self.exchange(call, attempt) as response:
            head = response.status_code, response.headers
            if response.status_code != 200:
                body = b""
                with suppress(R7MailRequestError), _async_network(call, attempt):
                    body = await response.aread()
                interpret(call, *head, body, attempt)
            length, unpacking = begin_download(call, *head, attempt)
            async with aclosing(self._pieces(call, attempt, response, unpacking)) as chunks:
                yield AsyncDownload(length, is_html(response.headers), chunks)

    async def _pieces(
        self, call: Call[bytes], attempt: int, response: httpx.Response, unpacking: Unpacking
    ) -> AsyncGenerator[bytes]:
        with _async_network(call, attempt):
            async for data in cast("httpx.AsyncByteStream", response.stream):
                for piece in unpacking.feed(data):
                    self.stats.bytes_read += len(piece)
                    yield piece
            unpacking.end()

    async def _send(self, call: Call[Any], token: Token | None) -> httpx.Response:
        """Send a call's request, and return the response, whose body has not been read."""
        if not call.repeatable:
            if self._fresh is None:
                self._fresh = self._make_fresh()
            return await self._fresh.send(self._build(self._fresh, call, token), stream=True)
        # Not through httpx's client, which takes three times as long as aiohttp to make a request.
        options = self._options(call, token)
        url = options["url"]
        options["headers"] |= self._cookies.header(url)
        response = await self._carriers[call.on_disk].send(**options)
        self._cookies.keep(url, response)
        httpx_log.info(  # as httpx does for the others
            'HTTP Request: %s %s "%d"', call.method, url.partition("?")[0], response.status_code
        )
        return response

    @asynccontextmanager
    async def exchange(self, call: Call[Any], attempt: int) -> AsyncIterator[httpx.Response]:
        """Make one attempt; see `Client.exchange`."""
        past = Refusals()
        while True:
            token = await self._get_token() if call.authorized else None
            async with self._slots:
                sent = time.monotonic()
                with _async_network(call, attempt, self._proxies[call.on_disk]):
                    response = await self._send(call, token)
                try:
                    status = response.status_code
                    if token is None or not await self._is_dead(
                        call, attempt, token, response, self._judge(call, token, status, sent, past)
                    ):
                        self._check_module(call, status, attempt)
                        yield response
                        return
                finally:
                    with suppress(R7MailRequestError), _async_network(call, attempt):
                        await response.aclose()

    async def _is_dead(
        self,
        call: Call[Any],
        attempt: int,
        token: Token,
        response: httpx.Response,
        verdict: Verdict,
    ) -> bool:
        """Whether the token is dead; see `Client`."""
        if verdict == "ask":
            refused = time.monotonic()
            with _async_network(call, attempt):
                await response.aread()
            async with self._asking:
                verdict = "stands" if await self._is_alive(token, refused) else "dead"
        if verdict == "dead":
            self._tokens.drop(token, response.status_code)
        return verdict == "dead"

    async def _is_alive(self, token: Token, since: float) -> bool:
        """Whether a request that was sent since then was served with this token."""
        probe = self._tokens.probe
        if token is self._tokens.current and token.alive < since and probe is not None:
            with suppress(R7MailRequestError), _async_network(probe, 1):
                sent = time.monotonic()
                async with aclosing(await self._send(probe, token)) as response:
                    await response.aread()
                if response.status_code == 200:
                    self._tokens.served(probe, token, sent, Refusals())
        return token.alive >= since

    async def _get_token(self) -> Token:
        if self._tokens.current is not None:
            return self._tokens.current
        async with self._lock:
            if self._tokens.current is not None:
                return self._tokens.current
            try:
                for pause in self._tokens.before_login():
                    await asyncio.sleep(pause)
                return self._accept(await self.send(self._tokens.login_call()))
            except R7MailAuthError as error:
                self._tokens.refuse(error)
                raise
            finally:
                self._tokens.account.leave()
