"""Count the messages of a span exactly, although servers read its bounds in different ways (R4).

They compare bounds to the second, including them or not. A moment without mail that near means the
same to all of them. So a bound with mail beside it is replaced by such a moment before it, and the
messages between the two, which a page shows, are added or taken off.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from airflow_provider_r7mail.client.answers import parse_page
from airflow_provider_r7mail.client.counting import count_between
from airflow_provider_r7mail.client.models import MessageFilter, NoMessage
from airflow_provider_r7mail.client.page_size import MAX_SHARED_PAGE, PageSize
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.client.spans import in_utc, page_call
from airflow_provider_r7mail.client.sweep import Key, PageRequest
from airflow_provider_r7mail.exceptions import R7MailRequestError

# How near to a bound mail must be for the bound's meaning to matter.
NEAR = timedelta(seconds=2)
# How far before a bound to look for a moment without mail.
REACH = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
ALL = MessageFilter()


@dataclass(frozen=True, slots=True)
class ClearMoment:
    """A moment at a bound or before it that has no mail near it.

    :param moment: the moment
    :param between: how many rows are dated from it up to the bound
    :param keys: the rows that were listed around the bound
    """

    moment: datetime
    between: int = 0
    keys: frozenset[Key] = frozenset()


class SpanCounter:
    """Counts the messages of spans, and remembers what is at their bounds.

    :param client: an open client, calibrated, whose server doesn't need sweeps (R29)
    :param folder: id of the folder
    :param clear: bounds that are known to have no mail near them
    """

    def __init__(self, client: AsyncClient, folder: int, clear: Iterable[datetime]) -> None:
        self._client = client
        self._folder = folder
        self._size = PageSize(None, first=MAX_SHARED_PAGE, most=MAX_SHARED_PAGE)
        self._known: dict[datetime, ClearMoment | None] = {
            bound: ClearMoment(bound) for bound in clear
        }

    async def is_clear(self, bound: datetime) -> bool:
        """Return whether spans that begin or end at a bound can be counted."""
        if bound not in self._known:
            self._known[bound] = await self._look(bound)
        return self._known[bound] is not None

    async def count(self, start: datetime, end: datetime, expected: int) -> int | None:
        """Return how many messages are dated from one bound up to another.

        :param start: a bound that `is_clear`, as is `end`
        :param expected: how many are expected
        :return: None if the Count can't be trusted (R2)
        """
        first, last = self._known[start], self._known[end]
        assert first is not None  # noqa: S101 - it is clear
        assert last is not None  # noqa: S101
        extra = first.between - last.between
        # As many as are asked for would leave it open what Count means.
        size = 3 if expected + extra == 2 else 2
        moments = first.moment, last.moment
        found = await count_between(self._client, self._folder, ALL, moments, size=size)
        # The page at a bound was only whole if Count is of all matches: more than a page proves it.
        if found is None or (found <= size and moments != (start, end)):
            return None
        return found - extra

    async def is_unchanged(self, bound: datetime) -> bool:
        """Return whether the mail before a bound is still what it was when it was first listed.

        If so, what was counted in the meantime was exact. If not, the new state is remembered.
        """
        before = self._known[bound]
        if before is None or before.moment == bound:
            return True
        now = self._known[bound] = await self._look(bound)
        return now == before

    async def _look(self, bound: datetime) -> ClearMoment | None:
        """List the mail around a bound, and find a clear moment; None if there is none."""
        first = bound - REACH
        request = PageRequest(first, bound + NEAR, 0, self._size.rows)
        request = self._size.within(request)
        labels, page = self._client.traits.empty_labels, None
        while page is None:
            call = page_call(self._folder, ALL, request, parse_page, empty_labels=labels)
            try:
                page = await self._client.send(call)
            except R7MailRequestError as error:
                request = self._size.smaller(request, error)
        self._size.learn(request, len(page.rows), 0, 0.0)
        page = in_utc(self._client.traits, page)
        rows = page.rows
        dates = [row.date for row in rows if row.date is not None]
        if len(dates) < len(rows) or len(rows) >= request.size or len(rows) < (page.count or 0):
            return None
        moment = bound
        for date in sorted(dates, reverse=True):
            if abs(date - moment) <= NEAR:
                moment = date.replace(microsecond=0) - NEAR - SECOND
        if moment < first + 2 * NEAR:
            return None
        return ClearMoment(
            moment,
            sum(moment <= date < bound for date in dates),
            frozenset(row.key if isinstance(row, NoMessage) else row.id for row in rows),
        )
