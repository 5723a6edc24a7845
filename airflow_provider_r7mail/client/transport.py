"""aiohttp beneath httpx's async client: on large pages it takes a third of the CPU of httpx's own.

Only the async client imports this, when it is opened. aiohttp's errors come through as they are.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from ssl import SSLContext

import aiohttp  # noqa: TID253 - as said above
import httpx

# What our own time-outs allow beyond those of aiohttp.
SLACK_SECONDS = 1.0


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Carry requests by a session of aiohttp, made here: on a running event loop.

    :param verify: the TLS context
    :param proxy: the HTTP proxy for all requests
    :param max_connections: connections open at once
    :param piece_bytes: how much of a body to hand over at once, at most
    """

    def __init__(
        self,
        *,
        verify: SSLContext,
        proxy: httpx.Proxy | None,
        max_connections: int,
        piece_bytes: int,
    ) -> None:
        self._piece_bytes = piece_bytes
        self._proxy = None if proxy is None else str(proxy.url)
        self._proxy_login: dict[str, str] = {}
        if proxy is not None and proxy.raw_auth is not None:
            login = base64.b64encode(b":".join(proxy.raw_auth)).decode()
            self._proxy_login["Proxy-Authorization"] = f"Basic {login}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=max_connections,
                keepalive_timeout=5,  # as httpx's own
                ssl=verify,
            ),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),  # httpx has its own
            # It stops reading at twice as much, which costs two system calls each time.
            read_bufsize=2 * piece_bytes,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and wait for the head of its answer."""
        limits = request.extensions["timeout"]
        headers = request.headers
        if self._proxy_login and request.url.scheme == "http":
            # The proxy reads the request itself; aiohttp's own way of telling it the password has
            # failed up to 3.12, and is deprecated since 3.14.
            headers = httpx.Headers({**headers, **self._proxy_login})
        # aiohttp loses its read timer where a server sends more than its Content-Length says. These
        # are long enough not to come before its own.
        seconds = limits["read"] + SLACK_SECONDS
        try:
            async with asyncio.timeout(limits["pool"] + seconds):
                response = await self._session.request(
                    request.method,
                    str(request.url),
                    headers=headers,
                    data=request.content or None,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(
                        connect=limits["pool"],
                        sock_connect=limits["connect"],
                        sock_read=limits["read"],
                    ),
                    proxy=self._proxy,
                    # What is said to it alone, before TLS with the server.
                    proxy_headers=self._proxy_login if request.url.scheme == "https" else None,
                )
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise httpx.UnsupportedProtocol("no URL to aiohttp") from error
        return httpx.Response(
            response.status,
            headers=response.raw_headers,
            stream=_Body(response, seconds, self._piece_bytes),
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()


class _Body(httpx.AsyncByteStream):
    """An answer's body, each piece of which comes in time, or is a TimeoutError."""

    def __init__(self, response: aiohttp.ClientResponse, seconds: float, piece_bytes: int) -> None:
        self._response = response
        self._seconds = seconds
        self._piece_bytes = piece_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            async with asyncio.timeout(self._seconds):
                piece = await self._response.content.read(self._piece_bytes)
            if not piece:
                return
            yield piece

    async def aclose(self) -> None:
        self._response.release()
        await self._response.wait_for_close()
