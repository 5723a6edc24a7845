"""A limit for all of what is said to a server, which no timeout of an HTTP library gives."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def run_within(seconds: float, work: Callable[[], T]) -> T:
    """Run a function in a thread, which is abandoned after some seconds.

    No timeout of the HTTP library ends a name lookup, or a response that trickles in.

    :raises TimeoutError: it took longer; it may still be running
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result(seconds)
