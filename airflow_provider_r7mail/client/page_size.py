"""How many messages to request at once, adapted to what the server serves, and how fast (R3, R37).

No I/O, no Airflow.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from airflow_provider_r7mail.client.sweep import PageRequest
from airflow_provider_r7mail.exceptions import R7MailRequestError

log = logging.getLogger(__name__)

# If the caller gives no page size, the first page has this many messages. Then pages grow to about
# PAGE_BYTES: larger ones hardly cost less per message, but more memory. They stop growing when one
# takes PAGE_SECONDS.
FIRST_PAGE = 200
MAX_PAGE = 1_000
PAGE_BYTES = 2 << 20
PAGE_SECONDS = 2.0
# Pages with long messages shrink above this size.
MAX_PAGE_BYTES = 8 << 20
# On an event loop that others share, pages are smaller: even in a thread, parsing JSON holds the
# interpreter.
FIRST_SHARED_PAGE = 10
MAX_SHARED_PAGE = 100

TOO_LARGE = frozenset({400, 413, 500})
"""Statuses that may mean that too many messages were requested at once (R37)."""


class PageSize:
    """How many messages to request at once.

    :param told: the caller's choice; None starts with `first` and adapts to the responses
    :param first: messages on the first page
    :param most: most messages on a page
    :param max_bytes: size above which pages shrink
    """

    def __init__(
        self,
        told: int | None,
        *,
        first: int = FIRST_PAGE,
        most: int = MAX_PAGE,
        max_bytes: int = MAX_PAGE_BYTES,
    ) -> None:
        self.rows = self.first = first if told is None else told
        self._most = most if told is None else told
        self._max_bytes = max_bytes
        self._told = told is not None
        self._good = 0
        self._limit: int | None = None

    @property
    def served(self) -> int:
        """The most messages that were requested at once and served."""
        return self._good

    def within(self, request: PageRequest) -> PageRequest:
        """Return a request that isn't larger than what the server is known to refuse (R37)."""
        if self._limit is None or request.size <= self._limit:
            return request
        return replace(request, size=self._limit)

    def learn(self, request: PageRequest, rows: int, length: int, seconds: float) -> None:
        """Adapt to a page.

        :param request: the request for it
        :param rows: number of messages on it
        :param length: its size in bytes
        :param seconds: how long it took, including waiting
        """
        self._good = max(self._good, request.size)
        if self._told or rows == 0:
            return
        if length > self._max_bytes:
            self.rows = max(min(self.rows, rows * self._max_bytes // length), 1)
        elif rows >= request.size and seconds < PAGE_SECONDS:  # neither capped (R3) nor too slow
            fitting = min(rows * PAGE_BYTES // max(length, 1), 2 * rows, self._most)
            self.rows = max(self.rows, fitting)

    def smaller(self, request: PageRequest, error: R7MailRequestError) -> PageRequest:
        """Return a smaller request in place of a failed one.

        A server may refuse a large request rather than return fewer messages (R37), and so may a
        proxy (R3).

        :param request: the request that failed
        :param error: what it failed with
        :raises R7MailRequestError: that error, if the size isn't the reason
        """
        refused = error.status in TOO_LARGE
        size = FIRST_PAGE
        if refused:  # 1 if none has been served: if that is refused as well, it isn't the size
            size = self._good if 0 < self._good < request.size else 1
        if error.never_sent or size >= request.size or (self._told and not refused):
            raise error
        self.rows, self._most = min(self.rows, size), size
        if refused:
            self._most = self._limit = max(request.size // 2, size)
        log.warning(
            "Lowering the page size to %d%s: %s",
            size,
            " although page_size is larger" if self._told else "",
            error,
        )
        self._told = False
        return replace(request, size=size)
