"""How to reach the server, what to send for a call, and what its response or failure means.

Shared by the sync and the async client. No Airflow.
"""

from __future__ import annotations

import json
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import httpx
import tenacity

from airflow_provider_r7mail.client.answers import AnswerError, error_message
from airflow_provider_r7mail.client.calls import Call
from airflow_provider_r7mail.client.models import Stats
from airflow_provider_r7mail.client.proxies import environment_proxy
from airflow_provider_r7mail.client.statuses import (
    MAX_RETRY_AFTER_SECONDS,
    PROXY_LOGIN,
    PROXY_LOGIN_HINT,
    failure,
)
from airflow_provider_r7mail.client.tls import certificate_problem, make_context
from airflow_provider_r7mail.exceptions import (
    R7MailConfigError,
    R7MailConnectionError,
    R7MailProxyError,
    R7MailRequestError,
    R7MailResponseError,
    R7MailSendUnclearError,
    R7MailServerError,
    R7MailTimeoutError,
)

T = TypeVar("T")

log = logging.getLogger(__name__)

BAD_URL = "The server's URL is invalid. Check Host, Schema and Port of the connection."
MAX_BACKOFF_SECONDS = 30.0

NOT_SENT = frozenset({400, 401, 403, 405, 406, 413, 415, 429})
"""Statuses that say that a request was refused before the server acted on it (R23). All others may
come from something in front of a server that acted: 404, 408, 409 and redirects, too."""

SYNC_ERRORS: tuple[type[Exception], ...] = (httpx.HTTPError, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """How to reach a server.

    :param url: base URL of the server, such as `https://mail.example.org`
    :param disk_url: the same of its Disk, if that is elsewhere
    :param login: login of the account
    :param password: its password
    :param verify: True verifies the server's certificate against the system's and certifi's CAs,
        a path against that CA bundle (a file in PEM or DER, or a folder); False doesn't verify
    :param cert: client certificate: a PEM file that includes the key, or (certificate, key) files
    :param proxy: URL of an HTTP proxy; False uses none, None uses HTTPS_PROXY, HTTP_PROXY and
        NO_PROXY
    :param timeout: seconds without receiving a byte after which a request fails
    :param connect_timeout: seconds for opening a connection
    :param max_concurrency: maximum number of concurrent requests of the async client
    :param max_retries: how often a failed request is retried
    :param backoff: seconds before the first retry; doubled for each further one, with jitter
    """

    url: str
    login: str
    password: str = field(repr=False)
    disk_url: str | None = None
    verify: bool | str = True
    cert: str | tuple[str, str] | None = None
    proxy: str | Literal[False] | None = field(default=None, repr=False)
    timeout: float = 60.0
    connect_timeout: float = 10.0
    max_concurrency: int = 4
    max_retries: int = 5
    backoff: float = 0.5

    def ssl_context(self) -> ssl.SSLContext:
        """Create the TLS context.

        :raises R7MailConfigError: the file in `verify` or `cert` is missing or has no certificate
        """
        # Without TLS there is no need to load the CAs, which takes 40 ms.
        urls = (self.url, self.disk_url or self.url)
        is_plain = all(
            url.startswith("http://") and self.effective_proxy(url) is None for url in urls
        )
        return make_context(None if self.verify is True and is_plain else self.verify, self.cert)

    def effective_proxy(self, server: str | None = None) -> httpx.Proxy | None:
        """Return the proxy to use: the connection's, else the environment's, else None.

        :param server: the URL to reach, `url` unless given
        :raises R7MailConfigError: it is not the URL of an HTTP proxy
        """
        if self.proxy is False:
            return None
        url = self.proxy or environment_proxy(server or self.url)
        if not url:
            return None
        # As in curl, the environment may have just host and port.
        with suppress(ValueError, httpx.InvalidURL):
            proxy = httpx.Proxy(url if "://" in url else f"http://{url}")
            if proxy.url.scheme in {"http", "https"} and proxy.url.host:
                return proxy
        # The value is not shown, since it may contain a password.
        raise R7MailConfigError(
            "The proxy from the connection, HTTPS_PROXY or HTTP_PROXY is not an HTTP URL. Use a "
            "URL such as http://proxy.example.org:3128."
        )

    def proxies(self) -> tuple[httpx.Proxy | None, httpx.Proxy | None]:
        """Return the proxies to use for the server and for its Disk."""
        server = self.effective_proxy()
        return server, server if self.disk_url is None else self.effective_proxy(self.disk_url)

    def bases(self) -> tuple[str, str]:
        """Return the URLs of the server and of its Disk, to put paths behind.

        :raises R7MailConfigError: one is invalid, or contains a login
        """
        url, disk_url = (
            str(_parse_url(text)).rstrip("/") for text in (self.url, self.disk_url or self.url)
        )
        return url, disk_url

    def routes(
        self,
        proxies: tuple[httpx.Proxy | None, httpx.Proxy | None],
        make: Callable[[httpx.Proxy | None], Any],
    ) -> dict[str, Any]:
        """Return the transports, as options of httpx's clients: the Disk may have its own proxy.

        :param proxies: for the server and for its Disk
        :param make: creates a transport that uses a proxy
        """
        server, disk = proxies
        options: dict[str, Any] = {"transport": make(server)}
        if self.disk_url is not None:
            options["mounts"] = {self.disk_url: make(disk)}
        return options

    def http_options(self) -> dict[str, Any]:
        """Return the options that all httpx clients take."""
        return {
            "timeout": httpx.Timeout(self.timeout, connect=self.connect_timeout, pool=None),
            "follow_redirects": False,
            # effective_proxy reads the environment; .netrc must not override the token.
            "trust_env": False,
        }


def _parse_url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(urlsplit(text).geturl())
    except (httpx.InvalidURL, ValueError) as error:
        raise R7MailConfigError(BAD_URL) from error
    if url.userinfo:
        raise R7MailConfigError(
            "The server's URL contains a login. Put it into Login and Password instead."
        )
    return url


def request_options(call: Call[Any], token: str | None, base: str = "") -> dict[str, Any]:
    """Return httpx's arguments for building a call's request.

    :param token: the token, sent unless the call is not `authorized`
    :param base: the server's URL. httpx could prepend it itself, but that doubles the time it
        takes to build a request
    """
    headers = {"Content-Type": "application/json"}
    if call.authorized and token is not None:
        headers["Authorization"] = token
    if call.upload is not None:
        headers |= call.upload.headers
    if call.body is None:
        # A file's length is checked against its Content-Length, so it must not be compressed (R22).
        headers["Accept-Encoding"] = "identity"
    return {
        "method": call.method,
        "url": f"{base}{call.path}?{call.query}" if call.query else f"{base}{call.path}",
        "headers": headers,
        # ASCII with escapes: a lone surrogate in a filter can't be encoded as UTF-8.
        "content": None if call.body is None else json.dumps(call.body).encode("ascii"),
    }


def interpret(call: Call[T], status: int, headers: httpx.Headers, body: bytes, attempt: int) -> T:
    """Return what the call's `parse` makes of the response.

    :param attempt: the number of the attempt, from 1, for the error
    :raises R7MailRequestError: the status is not 200, or the body is not what the API documents
    """
    error = failure(call, status, headers, attempt)
    if error is not None:
        if said := error_message(body):  # not in the error: it may contain names
            log.debug("%s %s: status %d, ErrorMessage: %s", call.method, call.path, status, said)
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
    call: Call[Any],
    attempt: int,
    errors: tuple[type[Exception], ...] = SYNC_ERRORS,
    *,
    proxy: httpx.Proxy | None = None,
) -> Iterator[None]:
    """Convert errors of the HTTP libraries into ours.

    Wrap only the libraries' own calls, so that errors of a download's consumer pass unchanged.

    :param attempt: the number of the attempt, from 1, for the error
    :param errors: the errors to convert
    :param proxy: the proxy that the request goes through, for the error
    :raises R7MailRequestError: in place of one of `errors`
    :raises R7MailConfigError: the server's URL is invalid
    """
    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:
        raise R7MailConfigError(BAD_URL) from error
    except errors as error:
        # Some quote what was received, or contain the whole request with its token.
        quoting = isinstance(error, httpx.ProtocolError) or hasattr(error, "request_info")
        failed = transport_failure(call, error, attempt)
        if proxy is not None:  # its URL is without login and password
            failed = failed.but(hint=f"{failed.hint} The proxy is {proxy.url}.")
        raise failed from (None if quoting else error)


def _before_sending(error: Exception) -> bool:
    """Whether the error means that no connection was opened, so that nothing was sent (R23)."""
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
    """Describe why no connection could be opened; empty if the library's own text has to do."""
    while error is not None:
        if isinstance(error, socket.gaierror):
            return "the host name could not be resolved"
        if isinstance(error, ConnectionRefusedError):
            return "nothing listens on that port (connection refused)"
        error = error.__cause__ or error.__context__
    return ""


def transport_failure(call: Call[Any], error: Exception, attempt: int) -> R7MailRequestError:
    """Return the error that describes a failed exchange.

    :param error: what the HTTP library raised
    :param attempt: the number of the attempt, from 1
    """
    never_sent = _before_sending(error)
    text = str(error)
    kind: type[R7MailRequestError] = R7MailConnectionError
    reachable = "Check Host, Port, Schema and proxy of the connection."
    if isinstance(error, httpx.DecodingError):
        kind, reason = R7MailResponseError, "the response could not be decompressed"
        hint = "A proxy in front of the server may have cut it off."
    elif isinstance(error, (httpx.TimeoutException, TimeoutError)):
        kind = R7MailTimeoutError
        if never_sent:
            reason, hint = "the server could not be reached in time", reachable
        else:
            reason = "the server did not respond in time"
            hint = "Raise timeout in the connection if the server is known to be slow."
    elif (problem := certificate_problem(error)) is not None:
        reason, hint = problem
    elif "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        reason, hint = "the server does not speak TLS", "Set Schema of the connection to http."
    elif "certificate required" in text.lower():
        reason = "the server requires a client certificate"
        hint = "Set cert in the connection."
    elif never_sent:
        # aiohttp's own text would also contain the proxy's URL.
        status = getattr(error, "status", None)
        what = _cause(error) or text if status is None else f"the proxy responded with {status}"
        reason, hint = f"the server could not be reached: {what}", reachable
        if status == 407 or (isinstance(error, httpx.ProxyError) and text.startswith("407")):
            reason, hint = f"{PROXY_LOGIN} (407)", PROXY_LOGIN_HINT
    else:
        reason = "the connection broke, or the response was not HTTP"
        hint = "If this persists, check Port and Schema of the connection."
    return kind(
        reason,
        method=call.method,
        path=call.path,
        attempt=attempt,
        hint=hint,
        never_sent=never_sent,
    )


def may_repeat(call: Call[Any], error: BaseException) -> bool:
    """Whether to retry a failed call (R23)."""
    if not isinstance(error, R7MailRequestError) or error.path != call.path:
        return False  # a login that failed on the way has had its own retries
    if error.retry_after is not None and error.retry_after > MAX_RETRY_AFTER_SECONDS:
        return False
    if not call.repeatable:
        # With 429 the proxy did not forward the request; after any other failure the server may
        # have acted.
        return error.never_sent or error.status == 429
    if isinstance(error, R7MailServerError):
        return error.status is not None and error.status >= 500 and not call.tentative
    if isinstance(error, R7MailProxyError):
        # 200: an HTML page in place of JSON, from a proxy that is restarting
        return error.status in {200, 429, 502, 503, 504}
    return isinstance(error, (R7MailConnectionError, R7MailResponseError))


def _unclear(call: Call[Any], error: R7MailRequestError) -> bool:
    """Whether the server may have sent a message that must not be sent again (R23)."""
    if call.repeatable or call.on_disk or error.path != call.path or error.never_sent:
        return False
    return error.status not in NOT_SENT


@contextmanager
def outcome_of_send(call: Call[Any]) -> Iterator[None]:
    """Report a failed Send as unclear if the server may have acted (R23).

    :raises R7MailSendUnclearError: in place of the error
    """
    try:
        yield
    except R7MailRequestError as error:
        if not _unclear(call, error):
            raise
        hint = "It was not sent again. Check the Sent folder before sending it again."
        raise R7MailSendUnclearError(
            f"it is unclear whether the message was sent: {error.reason}",
            method=error.method,
            path=error.path,
            status=error.status,
            attempt=error.attempt,
            hint=hint + call.explain(error.status),
        ) from error


def retry_options(call: Call[Any], config: ClientConfig, stats: Stats) -> dict[str, Any]:
    """Return tenacity's arguments for retrying a call: with backoff, or after `Retry-After` (R16).

    :param stats: counts the retries
    """
    # Not wait_exponential_jitter, whose parameters differ between tenacity's versions.
    backoff = tenacity.wait_exponential(
        multiplier=config.backoff, max=MAX_BACKOFF_SECONDS
    ) + tenacity.wait_random(0, config.backoff)

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(backoff(state), getattr(error, "retry_after", None) or 0.0)

    def note(state: tenacity.RetryCallState) -> None:
        stats.retries += 1
        error = state.outcome.exception() if state.outcome else None
        log.warning("%s Retrying in %.1f s.", error, state.upcoming_sleep)

    return {
        "retry": tenacity.retry_if_exception(lambda error: may_repeat(call, error)),
        "stop": tenacity.stop_after_attempt(config.max_retries + 1),
        "wait": wait,
        "before_sleep": note,
        "reraise": True,
    }
