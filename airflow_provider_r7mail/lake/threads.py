"""Run blocking work in a thread and wait for it to end, even when cancelled."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

from airflow_provider_r7mail.exceptions import R7MailError

T = TypeVar("T")

log = logging.getLogger(__name__)


# Set in the threads of `run_to_end` once the task that waits for them is cancelled.
_stopped: ContextVar[threading.Event | None] = ContextVar("stopped", default=None)


def pause(seconds: float) -> bool:
    """Sleep while waiting for something; return False at once if the work is to stop."""
    stopped = _stopped.get()
    if stopped is None:
        time.sleep(seconds)
        return True
    return not stopped.wait(seconds)


async def run_to_end(work: Callable[..., T], *args: Any, executor: Executor | None = None) -> T:
    """Run blocking work in a thread. If cancelled, wait for it to end first.

    A thread can't be stopped: one left running would keep writing after everything was discarded.
    Work that only waits calls `pause`, which ends when this is cancelled.

    :param executor: whose threads to use; None for the event loop's own
    """
    stopped = threading.Event()
    context = copy_context()
    context.run(_stopped.set, stopped)
    working = asyncio.get_running_loop().run_in_executor(executor, context.run, work, *args)
    return await wait_to_end(working, stopped)


async def wait_to_end(working: asyncio.Future[T], stopped: threading.Event | None = None) -> T:
    """Wait for a future. If cancelled, wait for it to end first.

    :param stopped: set when cancelled
    """
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        if stopped is not None:
            stopped.set()
        await asyncio.wait([working])
        if (error := working.exception()) is not None:
            text = str(error) if isinstance(error, R7MailError) else type(error).__name__
            log.warning("Cancelled; the work in progress failed: %s", text)
        raise
