"""Which messages are new to a watcher of a folder: its position, and where Airflow stores it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from airflow_provider_r7mail.client.dates import EPOCH, MICROSECOND, to_microseconds
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.filters import Filters, plain_filters

log = logging.getLogger(__name__)

MAX_TOLD = 2_000
"""The most ids a watcher remembers: as JSON they stay below 64 KB, above which Airflow warns."""

LEAST_LOOKBACK = 60_000_000
"""For this many microseconds back, all ids are remembered, however many there are."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What is polled: watchers of the same folder, at the same pace, share one poll.

    :param r7mail_conn_id: the Airflow connection
    :param folder: the folder's id or name, as text
    :param poll_interval: seconds between two polls
    """

    r7mail_conn_id: str
    folder: str
    poll_interval: float


@dataclass(slots=True)
class Position:
    """How far a watcher has reported a folder's mail. No I/O; times are microseconds since 1970.

    Everything dated before `start` is finished. Of the messages dated from then on, those in `told`
    have been reported. `start` only moves forward, and never past a message that is waiting.

    :param start: see above
    :param told: dates of reported messages by id
    """

    start: int
    told: dict[int, int] = field(default_factory=dict)
    _waiting: list[tuple[int, int]] = field(default_factory=list)
    _horizon: int = 0
    _latest: int = 0

    @property
    def is_waiting(self) -> bool:
        """Whether messages were found that are not reported yet."""
        return bool(self._waiting)

    def find(self, found: Mapping[int, int], now: int, lookback: int, lag: int = 0) -> None:
        """Take note of all matching messages dated from `start` on.

        :param found: their dates by id
        :param now: when the server was asked
        :param lookback: how late a message may be found
        :param lag: how much of that is due to the server's search (R40)
        """
        self._waiting = sorted(
            (date, number)
            for number, date in found.items()
            if date >= self.start and number not in self.told
        )
        self._horizon = now - lookback
        self._latest = now - min(lookback, LEAST_LOOKBACK + lag)

    def tell(self, limit: int | None) -> list[int]:
        """Return the ids of the oldest waiting messages, `limit` at most, and move on."""
        now = self._waiting[:limit]
        self._waiting = self._waiting[len(now) :]
        self.told.update((number, date) for date, number in now)
        self._move(self._horizon)
        if len(self.told) > MAX_TOLD:
            # More than should be remembered: wait a shorter time for late mail. But no shorter than
            # `_latest`: a flood dated in the future must not hide today's mail.
            self._move(min(sorted(self.told.values())[-MAX_TOLD - 1] + 1, self._latest))
        return [number for _, number in now]

    def _move(self, start: int) -> None:
        if self._waiting:
            start = min(start, self._waiting[0][0])
        self.start = max(self.start, start)
        self.told = {number: date for number, date in self.told.items() if date >= self.start}

    def to_json(self) -> dict[str, Any]:
        """Return the position as it is stored in the asset's state."""
        return {"start": self.start, "told": {str(key): date for key, date in self.told.items()}}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Position:
        """Return a stored position."""
        told = {int(key): int(date) for key, date in state["told"].items()}
        return cls(int(state["start"]), told)


class Watcher:
    """A running trigger: what it looks for, its position, and where that is stored.

    :param watched: what is polled
    :param filters: which messages it reports
    :param lookback: how many seconds late a message may arrive
    :param index_lag: how many seconds later a search of texts may find it (R40)
    :param limit: the most messages in one event
    :param store: the state of the trigger's assets; None if Airflow has none
    """

    def __init__(
        self,
        watched: Watched,
        filters: Filters,
        *,
        lookback: float,
        index_lag: float,
        limit: int,
        store: Any,
    ) -> None:
        self.watched = watched
        self.criteria = MessageFilter.build(**filters)
        searches = self.criteria.query or self.criteria.body or self.criteria.subject
        self.lag = timedelta(seconds=index_lag if searches else 0)
        self.lookback = timedelta(seconds=lookback) + self.lag
        self.has_read = False
        self._limit = limit
        self._position: Position | None = None
        self._store = store
        # The filters are part of the position's name: other filters have a position of their own.
        sought = [watched.r7mail_conn_id, watched.folder, plain_filters(filters)]
        digest = hashlib.sha256(json.dumps(sought, sort_keys=True).encode()).hexdigest()
        self._key = f"r7mail_position_{digest[:16]}"
        self._kept: int | None = None
        self._is_loaded = False

    @property
    def is_waiting(self) -> bool:
        """Whether messages were found that are not reported yet."""
        return self._position is not None and self._position.is_waiting

    async def load(self, now: datetime) -> None:
        """Load the position where this watcher stopped, if it ran before."""
        if not self._is_loaded:
            await self._load()
            self._is_loaded = True
        latest = to_microseconds(max(now, self.criteria.window.start or now))
        if self._position is not None and self._position.start > latest:
            log.warning(
                "The stored position is ahead of the clock, which must have been wrong: going back "
                "%.0f s. Some messages may be reported again.",
                self.lookback.total_seconds(),
            )
            self._position = Position(to_microseconds(now - self.lookback), self._position.told)
            self._kept = None

    async def _load(self) -> None:
        state = None
        for store in self._stores():
            state = state or await store.aget(self._key)
        if state is not None:
            try:
                self._position = Position.from_json(state)
                self._kept = self._position.start
            except (AttributeError, KeyError, TypeError, ValueError):
                log.warning(
                    "The value of %s in the asset's state is not a position: starting over, like a "
                    "new watcher.",
                    self._key,
                )
        if self._position is None and self.criteria.window.start is not None:
            self._position = Position(to_microseconds(self.criteria.window.start))
        if self._store is None:
            log.warning(
                "The position is kept in memory only; storing it takes Airflow 3.3. Mail that "
                "arrives while the triggerer is down is not reported."
            )

    def start(self, now: datetime) -> datetime:
        """Return the date from which to look for messages."""
        if self._position is None:
            return now - self.lookback
        return EPOCH + self._position.start * MICROSECOND

    def find(self, found: Mapping[int, datetime], now: datetime) -> None:
        """Take note of the matching messages from `start` on; those of the first poll aren't new.

        :param found: their dates by id
        """
        dates = {
            number: to_microseconds(date)
            for number, date in found.items()
            if date < now + self.lookback
        }
        position = self._position or Position(to_microseconds(now - self.lookback))
        position.find(
            dates, to_microseconds(now), self.lookback // MICROSECOND, self.lag // MICROSECOND
        )
        if self._position is None:
            position.tell(None)
        self._position = position
        self.has_read = True

    def news(self, folder: int) -> News:
        """Return what to report now, and the position to store after that."""
        position = self._position
        if position is None or not self.has_read:
            return News(None, None)
        ids = position.tell(self._limit)
        payload = {
            "message_ids": ids,
            "folder": folder,
            "cursor": (EPOCH + position.start * MICROSECOND).isoformat(),
        }
        is_behind = (
            self._kept is None or (position.start - self._kept) * MICROSECOND > self.lookback
        )
        return News(payload if ids else None, position.to_json() if ids or is_behind else None)

    async def keep(self, position: Mapping[str, Any]) -> None:
        """Store a position, now that Airflow has stored all events up to it."""
        try:
            for store in self._stores():
                await store.aset(self._key, dict(position))
            self._kept = position["start"]
        except Exception as error:  # raising it would end the poll of all watchers
            self._kept = None  # the next poll tries again
            log.warning("The position could not be stored: %s", error)

    def _stores(self) -> list[Any]:
        if self._store is None:
            return []
        # Several assets may share a trigger; there is no public access to the state of each.
        return [*self._store._by_name.values(), *self._store._by_uri.values()]  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class News:
    """The result of one poll for one watcher.

    :param payload: the event's payload; None for no event
    :param position: the position to store after Airflow has stored the event; None for none
    """

    payload: dict[str, Any] | None
    position: dict[str, Any] | None
