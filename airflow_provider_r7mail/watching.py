"""How the event trigger polls a folder: once for all its watchers, on one event loop."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.reader import aiter_messages
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.compat import AirflowException
from airflow_provider_r7mail.exceptions import (
    R7MailError,
    R7MailExtractError,
    R7MailResponseError,
    R7MailServerError,
)
from airflow_provider_r7mail.hooks import R7MailHook
from airflow_provider_r7mail.positions import News, Watched, Watcher

if TYPE_CHECKING:
    from airflow.triggers.shared_stream import AdvanceItem

try:
    from airflow.sdk.exceptions import AirflowRuntimeError
    from airflow.triggers.shared_stream import SharedStreamProducer
except ImportError:  # Airflow before 3.3 has neither shared streams nor asset state
    AirflowRuntimeError = AirflowException  # type: ignore[assignment, misc]
    SharedStreamProducer = object  # type: ignore[assignment, misc]

log = logging.getLogger(__name__)

OF_THE_SEARCH = (R7MailServerError, R7MailResponseError, R7MailExtractError)
"""Errors that may concern one search only, not the whole poll."""

MAX_BACKOFF_SECONDS = 900.0
MAX_DOUBLINGS = 30


class Watchers:
    """The running watchers that share a poll."""

    def __init__(self) -> None:
        self.members: list[Watcher] = []
        self.joined_lately = asyncio.Event()

    @staticmethod
    def of(watched: Watched) -> Watchers:
        """Return the watchers that share a poll on this event loop, perhaps none so far."""
        return _WATCHERS.setdefault((asyncio.get_running_loop(), watched), Watchers())

    @contextmanager
    def joined_by(self, watcher: Watcher) -> Iterator[None]:
        """Add a watcher for the duration of a `with` block."""
        self.members.append(watcher)
        self.joined_lately.set()
        try:
            yield
        finally:
            self.members.remove(watcher)


# The server applies the filters, so the poll must know its watchers. Airflow creates the poll from
# the arguments of one of them; the others on the event loop are found here. An entry lives as long
# as its poll, which may outlive all its watchers and serve the next one that comes.
_WATCHERS: WeakValueDictionary[Hashable, Watchers] = WeakValueDictionary()


class Round:
    """The result of one poll, from which each watcher takes its part."""

    def __init__(self, news: Mapping[Watcher, News]) -> None:
        self._news = news
        self.taken: dict[Watcher, dict[str, Any]] = {}

    def take(self, watcher: Watcher) -> dict[str, Any] | None:
        """Return a watcher's payload, if any, and note that its position is to be stored."""
        news = self._news.get(watcher)
        if news is None:
            return None
        if news.position is not None:
            self.taken[watcher] = news.position
        return news.payload


@dataclass(frozen=True, slots=True)
class Listed:
    """What a poll needs to know of a message in a listing of the folder."""

    date: datetime
    labels: str
    was_read: bool | None


@dataclass(frozen=True, slots=True)
class Asked:
    """When a filter was last searched for, what the folder held then, and when that was new."""

    at: float
    marks: frozenset[Hashable]
    new_at: float


class FolderPoll(SharedStreamProducer):
    """One poll of a folder for all its watchers.

    Only the server knows what a search matches, so each filter needs a search of its own. But if
    there are several filters, the folder is first listed without any. A filter is then searched for
    only if the listing shows something new, once more at the next poll, once more after `index_lag`
    for texts, and in any case twice per `lookback`: the search may learn of mail later than the
    listing (R40).

    :param watched: what is polled
    :param watchers: all its watchers, as they come and go
    """

    def __init__(self, watched: Watched, watchers: Watchers) -> None:
        self._watched = watched
        self._watchers = watchers
        self._asked: dict[MessageFilter, Asked] = {}

    async def open_stream(self) -> AsyncGenerator[tuple[Round, Round], None]:
        """Poll forever; after failures, at growing intervals."""
        interval = self._watched.poll_interval
        failures = 0
        while True:
            try:
                # Read again after a failure: the connection may have been corrected.
                hook = R7MailHook(self._watched.r7mail_conn_id)
                async with await hook.aget_conn() as client:
                    folder = hook.resolve_folder(self._watched.folder)
                    while True:
                        self._watchers.joined_lately.clear()
                        news = await self._poll(client, folder)
                        failures = 0
                        yield news, news
                        with suppress(TimeoutError):
                            await asyncio.wait_for(self._watchers.joined_lately.wait(), interval)
            except Exception as error:
                # Unforeseen errors too: Airflow restarts a watcher that ended every second, and
                # each start logs in again.
                delay = max(interval, min(interval * 2**failures, MAX_BACKOFF_SECONDS))
                failures = min(failures + 1, MAX_DOUBLINGS)
                log.warning(
                    "Watching folder %s: a poll failed, the next one is in %.0f s. %s",
                    self._watched.folder,
                    delay,
                    error,
                    exc_info=not isinstance(error, (R7MailError, AirflowRuntimeError)),
                )
                await asyncio.sleep(delay)

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Store the watchers' positions; Airflow calls this when a round's events are stored.

        If one watcher failed, no position of that round is stored, since Airflow doesn't say which
        one it was. The next position of the others includes this one; the failed one continues from
        its last.
        """
        positions: dict[Watcher, dict[str, Any]] = {}
        for taken, outcome in batch:
            if outcome.is_clean:
                positions.update(taken.taken)
        for watcher, position in positions.items():
            await watcher.keep(position)

    async def _poll(self, client: AsyncClient, folder: int) -> Round:
        now = datetime.now(UTC)
        groups: defaultdict[MessageFilter, list[Watcher]] = defaultdict(list)
        for watcher in list(self._watchers.members):
            await watcher.load(now)
            groups[watcher.criteria].append(watcher)
        self._asked = {key: asked for key, asked in self._asked.items() if key in groups}
        listed = await self._list_all(client, folder, groups, now)
        failed: list[R7MailError] = []
        answered = 0
        for criteria, members in groups.items():
            marks = _marks(listed, criteria)
            if not self._is_due(criteria, members, marks):
                continue
            try:
                found = await _ask(client, folder, criteria, members, now)
            except OF_THE_SEARCH as error:
                # Perhaps the server fails on this filter only.
                failed.append(error)
                continue
            answered += 1
            for watcher in members:
                watcher.find(found, now)
            before = self._asked.get(criteria)
            marks = marks or frozenset()
            at = time.monotonic()
            was_new = before is not None and not marks <= before.marks
            new_at = at if was_new else before.new_at if before else -math.inf
            self._asked[criteria] = Asked(at, marks, new_at)
        if failed and not answered:
            raise failed[0]
        for failure in failed:
            log.warning("Watching folder %s: one filter's search failed. %s", folder, failure)
        return Round(
            {watcher: watcher.news(folder) for members in groups.values() for watcher in members}
        )

    async def _list_all(
        self,
        client: AsyncClient,
        folder: int,
        groups: Mapping[MessageFilter, Sequence[Watcher]],
        now: datetime,
    ) -> Mapping[int, Listed] | None:
        """Return the messages within `lookback`; None if searching right away costs no more."""
        if len(groups) < 2:
            return None
        lookback = max(watcher.lookback for members in groups.values() for watcher in members)
        window = Window(now - lookback, now + lookback)
        try:
            return await _list(client, folder, MessageFilter(window=window))
        except OF_THE_SEARCH as error:
            log.warning("Watching folder %s: it could not be listed. %s", folder, error)
            return None  # then each filter is searched for

    def _is_due(
        self,
        criteria: MessageFilter,
        members: Sequence[Watcher],
        marks: frozenset[Hashable] | None,
    ) -> bool:
        """Return whether to search for a filter in this poll."""
        if all(watcher.is_waiting for watcher in members):
            return False
        before = self._asked.get(criteria)
        if marks is None or before is None or not all(watcher.has_read for watcher in members):
            return True
        now = time.monotonic()
        late = min(watcher.lookback - watcher.lag for watcher in members).total_seconds()
        indexed_at = before.new_at + max(watcher.lag for watcher in members).total_seconds()
        return (
            not marks <= before.marks
            or before.at <= before.new_at
            or before.at < indexed_at <= now
            or now - before.at >= late / 2
        )


def _marks(
    listed: Mapping[int, Listed] | None, criteria: MessageFilter
) -> frozenset[Hashable] | None:
    """Return the part of a listing without whose change a filter can match nothing new."""
    if listed is None:
        return None
    return frozenset(
        (
            number,
            message.labels if criteria.labels else None,
            message.was_read if criteria.was_read is not None else None,
        )
        for number, message in listed.items()
    )


async def _ask(
    client: AsyncClient,
    folder: int,
    criteria: MessageFilter,
    watchers: Sequence[Watcher],
    now: datetime,
) -> dict[int, datetime]:
    """Return the dates of matching messages that some watcher may not have reported yet."""
    starts = [watcher.start(now) for watcher in watchers]
    ends = [now + watcher.lookback for watcher in watchers]
    start, end = min(starts), max(ends)
    if criteria.window.start is not None:
        start = max(start, criteria.window.start)
    if criteria.window.end is not None:
        end = min(end, criteria.window.end)
    if start >= end:
        return {}
    found = await _list(client, folder, replace(criteria, window=Window(start, end)))
    return {number: message.date for number, message in found.items()}


async def _list(client: AsyncClient, folder: int, criteria: MessageFilter) -> dict[int, Listed]:
    return {
        message.id: Listed(message.date, str(message.labels), message.was_read)
        async for message in aiter_messages(client, folder, criteria)
        if message.date is not None  # always true within a window
    }
