"""Say what is sent for a call, and what its answer or its failure means. No Airflow."""

from __future__ import annotations

import json
import logging
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
import tenacity

from airflow_provider_r7mail.client.calls import (
    MAX_RETRY_AFTER_SECONDS,
    PROXY_LOGIN,
    PROXY_LOGIN_HINT,
    AnswerError,
    Call,
    failure,
)
from airflow_provider_r7mail.client.models import Stats
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

MAX_BACKOFF_SECONDS = 30.0
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
        quoting = isinstance(_original(error), httpx.ProtocolError) or hasattr(
            error, "request_info"
        )
        raise transport_failure(call, error, attempt) from (None if quoting else error)


def _original(error: Exception) -> Exception:
    """What went wrong in aiohttp; httpx-aiohttp reports a hang-up as ConnectTimeout."""
    cause = error.__cause__
    if isinstance(cause, Exception) and type(cause).__module__.startswith("aiohttp"):
        return cause
    return error


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
    error = _original(error)
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
