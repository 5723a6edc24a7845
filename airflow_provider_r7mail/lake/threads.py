"""Run blocking work in threads of an event loop, and an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, TypeVar

from airflow_provider_r7mail.exceptions import R7MailError

T = TypeVar("T")

log = logging.getLogger(__name__)

STOP_SECONDS = 10.0
"""How long to wait for a loop that was told to stop: its threads may hang in a call to a store."""


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


class LoopHangsError(Exception):
    """A loop was told to stop, but didn't end in time."""


class LoopThread:
    """An event loop in a thread of its own, for which the calling thread waits.

    Signals are handled in the main thread. What a handler raises, such as Airflow's time-out of a
    task, ends the wait there; inside a callback of a loop it would be lost.
    """

    def __init__(self) -> None:
        self._cancel: Callable[[], object] | None = None
        self._stopped = 0.0  # when

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine and return its result.

        :raises asyncio.CancelledError: it was stopped, and has ended
        :raises LoopHangsError: it was stopped, but didn't end in time; its thread is abandoned
        """
        result: Future[T] = Future()
        ended = threading.Event()

        async def cancellable() -> T:
            cancel = asyncio.current_task().cancel  # type: ignore[union-attr]
            self._cancel = partial(asyncio.get_running_loop().call_soon_threadsafe, cancel)
            if self._stopped:
                raise asyncio.CancelledError
            return await work()

        def target() -> None:
            try:
                result.set_result(asyncio.run(cancellable()))
            except BaseException as error:
                result.set_exception(error)
            finally:
                ended.set()

        threading.Thread(
            target=copy_context().run, args=(target,), name="r7mail-loop", daemon=True
        ).start()
        try:
            while not ended.wait(1.0):
                if self._stopped and time.monotonic() > self._stopped + STOP_SECONDS:
                    raise LoopHangsError
        except BaseException:  # also an alarm's or a signal's
            self.stop()
            ended.wait(max(0, self._stopped + STOP_SECONDS - time.monotonic()))
            raise
        return result.result()

    def stop(self) -> None:
        """Cancel the coroutine, from any thread or signal handler."""
        if self._stopped:
            return  # to be cancelled again would interrupt its cleaning up
        self._stopped = time.monotonic()
        if self._cancel is not None:
            try:
                self._cancel()
            except RuntimeError:
                log.debug("The loop has ended already.")
