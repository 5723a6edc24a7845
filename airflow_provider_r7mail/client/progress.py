"""Log how far a long piece of work has got."""

from __future__ import annotations

import time
from collections.abc import Callable

PROGRESS_SECONDS = 5.0
"""At least this long passes between two log lines about progress."""


class Progress:
    """Counts messages, and logs the count every few seconds.

    :param say: the logging method
    :param total: number of messages
    """

    def __init__(self, say: Callable[..., None], total: int) -> None:
        self._say = say
        self._total = total
        self._last = time.monotonic()
        self.done = 0

    def add(self, count: int = 1) -> None:
        """Count messages that are done."""
        self.done += count
        now = time.monotonic()
        if now - self._last >= PROGRESS_SECONDS and self.done < self._total:
            self._last = now
            self._say("%d of %d messages done.", self.done, self._total)
