"""The two clients behind one face, and calls for them, so that one test holds for both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from airflow_provider_r7mail.client import calls
from airflow_provider_r7mail.client.calls import Call
from airflow_provider_r7mail.client.http import ClientConfig
from airflow_provider_r7mail.client.session import AsyncClient, Client

T = TypeVar("T")
INBOX = 24
MARK = calls.mark_as_read(INBOX, [1], read=True)
SEND = calls.send_message(
    subject="Quarterly secret",
    text="Dear Anna",
    html="<p>Dear Anna</p>",
    to=["anna@partner.example"],
)


@dataclass
class Session:
    """An open client. Calls of the sync one run in threads, so that they can overlap, too."""

    client: Client | AsyncClient

    async def send(self, call: Call[T]) -> T:
        """Send a call."""
        if isinstance(self.client, AsyncClient):
            return await self.client.send(call)
        return await asyncio.to_thread(self.client.send, call)

    @asynccontextmanager
    async def stream(self, call: Call[bytes]) -> AsyncIterator[tuple[int | None, Any]]:
        """Open a download: its length and its pieces."""
        if isinstance(self.client, AsyncClient):
            async with self.client.stream(call) as download:
                yield download.length, download.chunks
        else:
            with self.client.stream(call) as started:
                yield started.length, _each(started.chunks)

    async def download(self, call: Call[bytes]) -> bytes:
        """Download a whole file."""
        async with self.stream(call) as (_, chunks):
            return b"".join([chunk async for chunk in chunks])


async def _each(items: Iterator[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


Kind = Literal["sync", "async"]


@asynccontextmanager
async def opened(kind: Kind, server: str | Any, **options: Any) -> AsyncIterator[Session]:
    """Open a client of a server, or of its URL."""
    url = server if isinstance(server, str) else server.url
    defaults: dict[str, Any] = {"login": "user_test", "password": "TestPassword"}
    defaults |= {"backoff": 0.01, "max_retries": 2}
    config = ClientConfig(url=url, **(defaults | options))
    if kind == "sync":
        with Client(config) as client:
            yield Session(client)
    else:
        async with AsyncClient(config) as aclient:
            yield Session(aclient)
