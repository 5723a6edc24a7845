"""Send requests by aiohttp, which takes a fraction of the CPU of httpx and its own transports.

Responses are httpx's, so that both clients read them in the same way. Only the async client imports
this, when it is opened. aiohttp's errors come through as they are.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from ssl import SSLContext

import aiohttp  # noqa: TID253 - as said above
import httpx

# What our own time-outs allow beyond those of aiohttp.
SLACK_SECONDS = 1.0


class AiohttpTransport:
    """Sends requests by a session of aiohttp, made here: on a running event loop.

    :param verify: the TLS context
    :param proxy: the HTTP proxy for all requests
    :param timeout: seconds without receiving a byte after which a request fails
    :param connect_timeout: seconds for opening a connection
    :param max_connections: connections open at once
    :param piece_bytes: how much of a body to hand over at once, at most
    """

    def __init__(
        self,
        *,
        verify: SSLContext,
        proxy: httpx.Proxy | None,
        timeout: float,
        connect_timeout: float,
        max_connections: int,
        piece_bytes: int,
    ) -> None:
        self._piece_bytes = piece_bytes
        self._proxy = None if proxy is None else str(proxy.url)
        self._proxy_login: dict[str, str] = {}
        if proxy is not None and proxy.raw_auth is not None:
            login = base64.b64encode(b":".join(proxy.raw_auth)).decode()
            self._proxy_login["Proxy-Authorization"] = f"Basic {login}"
        # The time-out for connecting covers neither DNS nor the proxy's response.
        before_sending = connect_timeout + timeout
        # aiohttp loses its read timer where a server sends more than its Content-Length says. These
        # are long enough not to come before its own.
        self._seconds = timeout + SLACK_SECONDS
        self._head_seconds = before_sending + self._seconds
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=max_connections,
                keepalive_timeout=5,  # as httpx's own
                ssl=verify,
            ),
            # Compressed only in ways that httpx can always undo; as for the rest, a server sees the
            # same client whichever sends.
            headers={
                "Accept-Encoding": "gzip, deflate",
                "User-Agent": f"python-httpx/{httpx.__version__}",
            },
            timeout=aiohttp.ClientTimeout(
                connect=before_sending, sock_connect=connect_timeout, sock_read=timeout
            ),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),  # the client has its own
            # It stops reading at twice as much, which costs two system calls each time.
            read_bufsize=2 * piece_bytes,
        )

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> httpx.Response:
        """Send a request, and return the response as soon as its head is there.

        :raises httpx.UnsupportedProtocol: the URL is invalid
        """
        is_plain = url.startswith("http:")
        if self._proxy_login and is_plain:
            # The proxy reads the request itself; aiohttp's own way of telling it the password has
            # failed up to 3.12, and is deprecated since 3.14.
            headers = {**headers, **self._proxy_login}
        try:
            async with asyncio.timeout(self._head_seconds):
                response = await self._session.request(
                    method,
                    url,
                    headers=headers,
                    data=content,
                    allow_redirects=False,
                    proxy=self._proxy,
                    # What is said to it alone, before TLS with the server.
                    proxy_headers=None if is_plain else self._proxy_login,
                )
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise httpx.UnsupportedProtocol("no URL to aiohttp") from error
        return httpx.Response(
            response.status,
            headers=response.raw_headers,
            stream=_Body(response, self._seconds, self._piece_bytes),
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()


class _Body(httpx.AsyncByteStream):
    """A response's body, each piece of which comes in time, or is a TimeoutError."""

    def __init__(self, response: aiohttp.ClientResponse, seconds: float, piece_bytes: int) -> None:
        self._response = response
        self._seconds = seconds
        self._piece_bytes = piece_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        content = self._response.content
        while content.exception() is not None or not content.at_eof():
            async with asyncio.timeout(self._seconds):
                piece = await content.read(self._piece_bytes)
            if piece:
                yield piece

    async def aclose(self) -> None:
        self._response.release()
        await self._response.wait_for_close()
