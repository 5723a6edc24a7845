"""Fixtures that several tests of the lake use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.emulator import Emulator
from tests.lake.support import quick_config, s3_server


@pytest.fixture
async def client(server: Emulator) -> AsyncIterator[AsyncClient]:
    """An async client of the emulator."""
    async with AsyncClient(quick_config(server.url)) as opened:
        yield opened


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """The URL of an S3 server on a real socket."""
    with s3_server() as url:
        yield url
