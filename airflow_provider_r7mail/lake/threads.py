"""Run blocking work in a thread and wait for it to end, even when cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from airflow_provider_r7mail.exceptions import R7MailError

T = TypeVar("T")

log = logging.getLogger(__name__)


async def run_to_end(work: Callable[..., T], *args: Any, executor: Executor | None = None) -> T:
    """Run blocking work in a thread. If cancelled, wait for it to end first.

    A thread can't be stopped: one left running would keep writing after everything was discarded.

    :param executor: whose threads to use; None for the event loop's own
    """
    return await wait_to_end(asyncio.get_running_loop().run_in_executor(executor, work, *args))


async def wait_to_end(working: asyncio.Future[T]) -> T:
    """Wait for a future. If cancelled, wait for it to end first."""
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        if (error := working.exception()) is not None:
            text = str(error) if isinstance(error, R7MailError) else type(error).__name__
            log.warning("Cancelled; the work in progress failed: %s", text)
        raise
