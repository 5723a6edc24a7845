"""httpx's sync transport beneath its async client, in threads.

A server may refuse a request before it has read the body, and close the connection. Sockets that
block still have its answer then; asyncio's transports drop it with the connection.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import cast

import httpx


class ThreadedTransport(httpx.AsyncBaseTransport):
    """Carry requests in threads. Answers are read whole, so they must be short.

    :param transport: carries each of them
    :param max_threads: requests at once
    """

    def __init__(self, transport: httpx.BaseTransport, max_threads: int) -> None:
        self._transport = transport
        # Not the loop's own, which others need to resolve host names.
        self._threads = ThreadPoolExecutor(max_threads, thread_name_prefix="r7mail")

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and wait for the whole answer."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._exchange, request)

    def _exchange(self, request: httpx.Request) -> httpx.Response:
        with closing(self._transport.handle_request(request)) as response:
            body = b"".join(cast("httpx.SyncByteStream", response.stream))
        return httpx.Response(
            response.status_code, headers=response.headers, stream=httpx.ByteStream(body)
        )

    async def aclose(self) -> None:
        """Close all connections, which also ends an upload whose task was cancelled."""
        self._transport.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
