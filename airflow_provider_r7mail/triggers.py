"""Triggers: wait for mail on the triggerer's event loop. They only read.

`R7MailMessageTrigger` fires once, for the sensor. `R7MailMessageEventTrigger` goes on firing, for
an `AssetWatcher`: it tells of each message once, from where the last one stopped.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Unpack
from weakref import WeakValueDictionary

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_r7mail import exceptions
from airflow_provider_r7mail.client import AsyncClient
from airflow_provider_r7mail.compat import AirflowException, BaseEventTrigger
from airflow_provider_r7mail.exceptions import (
    R7MailConfigError,
    R7MailError,
    R7MailExtractError,
    R7MailRequestError,
    R7MailResponseError,
    R7MailServerError,
)
from airflow_provider_r7mail.extract import MICROSECOND, aiter_messages, to_microseconds
from airflow_provider_r7mail.hooks import UNMENDABLE, Filters, R7MailHook
from airflow_provider_r7mail.models import EPOCH, MessageFilter, Window

if TYPE_CHECKING:
    from airflow.triggers.shared_stream import AdvanceItem

try:
    from airflow.sdk.exceptions import AirflowRuntimeError
    from airflow.triggers.shared_stream import SharedStreamProducer
except ImportError:  # Airflow before 3.3 has neither shared streams nor a state of assets
    AirflowRuntimeError = AirflowException  # type: ignore[assignment, misc]
    SharedStreamProducer = object  # type: ignore[assignment, misc]

log = logging.getLogger(__name__)

MAX_IDS = 10_000
"""Found ids that are returned; a search that finds more is logged."""

MAX_TOLD = 2_000
"""Ids that a watcher remembers: as JSON they stay below 64 KB, beyond which Airflow warns."""

LEAST_LOOKBACK = 60_000_000
"""Microseconds of which all ids are remembered, however many."""

OF_THE_SEARCH = (R7MailServerError, R7MailResponseError, R7MailExtractError)
"""Errors that one search may meet, and another not."""

MAX_BACKOFF_SECONDS = 900.0
MAX_DOUBLINGS = 30
DAY_SECONDS = 86_400


class R7MailMessageTrigger(BaseTrigger):
    """Fire once when a folder holds messages that match.

    Yields `{"status": "success", "message_ids": [...]}`, or
    `{"status": "error", "message": ..., "error": ..., "details": ...}`: at once for what trying
    again can't mend, else after `max_consecutive_failures` polls in a row have failed. One
    session of the server serves all the polls.

    :param folder: the folder's id, or its name in the connection's `folders`
    :param query: text anywhere in the message
    :param body: text in the body
    :param sender: the sender's address
    :param recipient: a recipient's address
    :param subject: text in the subject
    :param labels: ids of labels
    :param was_read: only read (True) or unread (False) messages; None for both
    :param start: messages dated from then on
    :param end: messages dated before then
    :param min_messages: how many messages must match
    :param poll_interval: seconds between two polls
    :param max_consecutive_failures: failed polls in a row after which it gives up
    :param r7mail_conn_id: the Airflow connection
    """

    def __init__(
        self,
        *,
        folder: int | str,
        min_messages: int = 1,
        poll_interval: float = 60.0,
        max_consecutive_failures: int = 3,
        r7mail_conn_id: str = R7MailHook.default_conn_name,
        **filters: Unpack[Filters],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.folder = folder
        self.filters = _known(filters)
        self.min_messages = min_messages
        self.poll_interval = poll_interval
        self.max_consecutive_failures = max_consecutive_failures
        self.r7mail_conn_id = r7mail_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and its arguments, for the metadata database."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "folder": self.folder,
                **_plain_filters(self.filters),
                "min_messages": self.min_messages,
                "poll_interval": self.poll_interval,
                "max_consecutive_failures": self.max_consecutive_failures,
                "r7mail_conn_id": self.r7mail_conn_id,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until the messages are there; yield one event."""
        try:
            ids = await self._wait()
        except R7MailError as error:
            yield TriggerEvent(error_event(error))
        else:
            yield TriggerEvent({"status": "success", "message_ids": ids})

    async def _wait(self) -> list[int]:
        hook = R7MailHook(self.r7mail_conn_id)
        criteria = MessageFilter.build(**self.filters)
        failures = 0
        async with await hook.aget_conn() as client:
            folder = hook.resolve_folder(self.folder)
            while True:
                try:
                    ids = await self._poll(client, folder, criteria)
                except UNMENDABLE:
                    raise
                except R7MailError as error:
                    failures += 1
                    if failures >= self.max_consecutive_failures:
                        raise
                    self.log.warning(
                        "Poll failed, %d of %d in a row that are borne: %s",
                        failures,
                        self.max_consecutive_failures,
                        error,
                    )
                else:
                    failures = 0
                    if len(ids) >= self.min_messages:
                        return ids
                await asyncio.sleep(self.poll_interval)

    async def _poll(self, client: AsyncClient, folder: int, criteria: MessageFilter) -> list[int]:
        limit = max(MAX_IDS, self.min_messages)
        ids: list[int] = []
        async for message in aiter_messages(client, folder, criteria):
            if len(ids) == limit:
                self.log.warning("More than %d messages match; the first are returned.", limit)
                break
            ids.append(message.id)
        return ids


def _known(filters: Filters) -> Filters:
    """The filters, if all are known: what Python itself does for named parameters."""
    for name in filters:
        if name not in Filters.__annotations__:
            raise TypeError(f"unexpected keyword argument {name!r}: there is no such filter")
    labels = filters.get("labels")
    # A set is in another order in each process, an iterator is used up by the first look at it;
    # Airflow takes a watcher with other arguments for another one.
    if isinstance(labels, (set, frozenset)):
        return {**filters, "labels": sorted(labels, key=str)}
    if isinstance(labels, Iterator):
        return {**filters, "labels": list(labels)}
    return filters


def _plain_filters(filters: Filters) -> dict[str, object]:
    """The filters that are set, as JSON has them."""
    return {name: _plain(value) for name, value in filters.items() if value is not None}


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Iterable) and not isinstance(value, str):
        return list(value)
    return value


DETAILS = ("reason", "method", "path", "status", "attempt", "hint")


def error_event(error: R7MailError) -> dict[str, Any]:
    """An error as an event, from which `error_of` makes it again."""
    details = None
    if isinstance(error, R7MailRequestError):
        details = {name: getattr(error, name) for name in DETAILS}
    return {
        "status": "error",
        "message": error.text,
        "error": type(error).__name__,
        "details": details,
    }


def error_of(event: Mapping[str, Any]) -> R7MailError:
    """The error that an event tells of: the same class with the same message."""
    kind = getattr(exceptions, str(event.get("error")), R7MailError)
    details = event.get("details")
    if details and issubclass(kind, R7MailRequestError):
        return kind(**details)
    error: R7MailError = kind(event.get("message", ""))
    return error


# -- the event trigger ------------------------------------------------------------------------


class R7MailMessageEventTrigger(BaseEventTrigger):
    """Tell of each message that arrives in a folder and matches, once: for an `AssetWatcher`.

    An event's payload is `{"message_ids": [...], "folder": 24, "cursor": "..."}`: the ids,
    earliest first, the folder's id, and the moment before which all mail has been told of. A DAG
    run finds it in `triggering_asset_events`, as `event.extra["payload"]`.

    New is what was not in the folder when the watcher first looked; with `start`, all that is
    dated from then on. Each poll reads what is dated up to `lookback` ago, so that mail which
    comes late, or out of order, is told of as well. Messages dated in the future are told of when
    they are less than `lookback` ahead. Messages without a date can't be told of.

    The position is kept in the asset's state (Airflow 3.3; before, in memory), after Airflow has
    stored the event: nothing is lost by a restart, and the last event can come again if the
    triggerer dies in the very second after it. Watchers of one folder with one `poll_interval`
    share one session and one poll (Airflow 3.3).

    :param folder: the folder's id, or its name in the connection's `folders`
    :param filters: `query`, `body`, `sender`, `recipient`, `subject`, `labels`, `was_read`, `end`
        as in the sensor; `start` asks for mail from then on, also for what is already there
    :param poll_interval: seconds between two polls; after failures it doubles, up to 15 minutes
    :param lookback: how many seconds late a message may come, or how wrong its date be
    :param max_messages_per_event: ids in one event; if there are more, each poll tells of so many
    :param r7mail_conn_id: the Airflow connection
    """

    def __init__(
        self,
        *,
        folder: int | str,
        poll_interval: float = 60.0,
        lookback: float = 3600.0,
        max_messages_per_event: int = 1000,
        r7mail_conn_id: str = R7MailHook.default_conn_name,
        **filters: Unpack[Filters],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.folder = folder
        self.filters = _known(filters)
        self.poll_interval = poll_interval
        self.lookback = lookback
        self.max_messages_per_event = max_messages_per_event
        self.r7mail_conn_id = r7mail_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and its arguments, for the metadata database.

        Airflow calls this when it reads the DAG file: a wrong parameter is an import error there,
        not a watcher that fails again and again where nobody looks.

        :raises R7MailConfigError: a parameter is wrong
        """
        MessageFilter.build(**self.filters)
        _check_number("poll_interval", self.poll_interval, 0.01, DAY_SECONDS)
        _check_number("lookback", self.lookback, 1, 366 * DAY_SECONDS)
        _check_number("max_messages_per_event", self.max_messages_per_event, 1, MAX_IDS, whole=True)
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "folder": self.folder,
                **_plain_filters(self.filters),
                "poll_interval": self.poll_interval,
                "lookback": self.lookback,
                "max_messages_per_event": self.max_messages_per_event,
                "r7mail_conn_id": self.r7mail_conn_id,
            },
        )

    def shared_stream_key(self) -> Hashable:
        """What watchers must have in common to share a poll."""
        return ("r7mail", self.r7mail_conn_id, str(self.folder), float(self.poll_interval))

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        """The poll of the watchers that share it; the triggerer has one for each key."""
        trigger = cls(**kwargs)
        return FolderPoll(trigger, Watchers.of(trigger))

    async def filter_shared_stream(
        self, shared_stream: AsyncIterator[Round]
    ) -> AsyncIterator[TriggerEvent]:
        """Tell what the shared poll has found for this watcher."""
        with Watchers.of(self).joined(self) as watcher:
            async for news in shared_stream:
                payload = news.take(watcher)
                if payload is not None:
                    yield TriggerEvent(payload)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll for this watcher alone: Airflow before 3.3 has no shared streams."""
        watchers = Watchers()
        with watchers.joined(self) as watcher:
            async with aclosing(FolderPoll(self, watchers).open_stream()) as rounds:
                async for news, _ in rounds:
                    payload = news.take(watcher)
                    if payload is not None:
                        yield TriggerEvent(payload)


def _check_number(
    name: str, value: object, low: float, high: float, *, whole: bool = False
) -> None:
    kind = int if whole else (int, float)
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
        what = "whole number" if whole else "number"
        raise R7MailConfigError(f"{name}: got {value!r}. Give a {what} from {low:g} to {high:g}.")


@dataclass(slots=True)
class Position:
    """How far a watcher has told of a folder's mail. No I/O; times are microseconds since 1970.

    Everything dated before `start` is done with. Of what is dated from then on, the messages in
    `told` have been told of. `start` only ever rises, never beyond what waits to be told.

    :param start: see above
    :param told: dates by id
    """

    start: int
    told: dict[int, int] = field(default_factory=dict)
    _waiting: list[tuple[int, int]] = field(default_factory=list)
    _horizon: int = 0
    _latest: int = 0

    @property
    def is_waiting(self) -> bool:
        """Whether there are messages that were found, but not told yet."""
        return bool(self._waiting)

    def find(self, found: Mapping[int, int], now: int, lookback: int) -> None:
        """Take all messages that match and are dated from `start` on.

        :param found: their dates by id
        :param now: when they were looked for
        :param lookback: how late a message may come
        """
        self._waiting = sorted(
            (date, number)
            for number, date in found.items()
            if date >= self.start and number not in self.told
        )
        self._horizon = now - lookback
        self._latest = now - min(lookback, LEAST_LOOKBACK)

    def tell(self, limit: int | None) -> list[int]:
        """Tell the earliest ids, so many at most, and move on."""
        now = self._waiting[:limit]
        self._waiting = self._waiting[len(now) :]
        self.told.update((number, date) for date, number in now)
        self._move(self._horizon)
        if len(self.told) > MAX_TOLD:
            # More than is to be remembered: late mail is waited for a shorter time. Not shorter
            # than that: a flood dated in the future must not hide the mail of today.
            self._move(min(sorted(self.told.values())[-MAX_TOLD - 1] + 1, self._latest))
        return [number for _, number in now]

    def _move(self, start: int) -> None:
        if self._waiting:
            start = min(start, self._waiting[0][0])
        self.start = max(self.start, start)
        self.told = {number: date for number, date in self.told.items() if date >= self.start}

    def to_json(self) -> dict[str, Any]:
        """The position as it is kept in the asset's state."""
        return {"start": self.start, "told": {str(key): date for key, date in self.told.items()}}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Position:
        """A position that was kept."""
        told = {int(key): int(date) for key, date in state["told"].items()}
        return cls(int(state["start"]), told)


class Watcher:
    """A trigger while it runs: what it looks for, how far it is, and where that is kept."""

    def __init__(self, trigger: R7MailMessageEventTrigger) -> None:
        self.criteria = MessageFilter.build(**trigger.filters)
        self.lookback = timedelta(seconds=trigger.lookback)
        self.has_read = False
        self._limit = trigger.max_messages_per_event
        self._position: Position | None = None
        self._store = getattr(trigger, "asset_state_store", None)
        # What is looked for names the position: with other filters it is another one.
        sought = [trigger.r7mail_conn_id, str(trigger.folder), _plain_filters(trigger.filters)]
        digest = hashlib.sha256(json.dumps(sought, sort_keys=True).encode()).hexdigest()
        self._key = f"r7mail_position_{digest[:16]}"
        self._kept: int | None = None
        self._is_loaded = False

    @property
    def is_waiting(self) -> bool:
        """Whether messages were found that are not told yet."""
        return self._position is not None and self._position.is_waiting

    async def load(self, now: datetime) -> None:
        """Find where this watcher stopped, if it ran before."""
        if not self._is_loaded:
            await self._load()
            self._is_loaded = True
        latest = to_microseconds(max(now, self.criteria.window.start or now))
        if self._position is not None and self._position.start > latest:
            log.warning(
                "The position in the mail is ahead of the clock, which must have been wrong: mail "
                "of the last %.0f s is looked for, and what was told of may be told of again.",
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
                    "What is under %s in the asset's state is no position in the mail: it is begun "
                    "anew, as by a new watcher.",
                    self._key,
                )
        if self._position is None and self.criteria.window.start is not None:
            self._position = Position(to_microseconds(self.criteria.window.start))
        if self._store is None:
            log.warning(
                "The position in the mail is in memory only: it takes Airflow 3.3 to keep it. "
                "Mail that comes while the triggerer is down is not told of."
            )

    def start(self, now: datetime) -> datetime:
        """From where on to look for messages."""
        if self._position is None:
            return now - self.lookback
        return EPOCH + self._position.start * MICROSECOND

    def find(self, found: Mapping[int, datetime], now: datetime) -> None:
        """Take the messages that match, from `start` on; what the first look finds is not new.

        :param found: their dates by id
        """
        dates = {
            number: to_microseconds(date)
            for number, date in found.items()
            if date < now + self.lookback
        }
        position = self._position or Position(to_microseconds(now - self.lookback))
        position.find(dates, to_microseconds(now), self.lookback // MICROSECOND)
        if self._position is None:
            position.tell(None)
        self._position = position
        self.has_read = True

    def news(self, folder: int) -> News:
        """What to tell now, and what to keep once that is stored."""
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
        """Keep a position, now that all events up to it are stored."""
        try:
            for store in self._stores():
                await store.aset(self._key, dict(position))
            self._kept = position["start"]
        except Exception as error:  # any that went further would end the poll of all watchers
            self._kept = None  # the next poll tries again
            log.warning("The position in the mail could not be kept: %s", error)

    def _stores(self) -> list[Any]:
        if self._store is None:
            return []
        # Several assets may have the same trigger; there is no public way to the state of each.
        return [*self._store._by_name.values(), *self._store._by_uri.values()]  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class News:
    """What one poll has for one watcher.

    :param payload: the event's
    :param position: to be kept when the event is stored
    """

    payload: dict[str, Any] | None
    position: dict[str, Any] | None


class Watchers:
    """The running watchers that share a poll."""

    def __init__(self) -> None:
        self.members: dict[R7MailMessageEventTrigger, Watcher] = {}
        self.joined_lately = asyncio.Event()

    @staticmethod
    def of(trigger: R7MailMessageEventTrigger) -> Watchers:
        """Those that share a poll with a trigger, which may not have joined yet."""
        key = (asyncio.get_running_loop(), trigger.shared_stream_key())
        return _WATCHERS.setdefault(key, Watchers())

    @contextmanager
    def joined(self, trigger: R7MailMessageEventTrigger) -> Iterator[Watcher]:
        """Be one of them meanwhile."""
        watcher = self.members[trigger] = Watcher(trigger)
        self.joined_lately.set()
        try:
            yield watcher
        finally:
            del self.members[trigger]


# Filters are the server's to apply, so the poll must know its watchers. Airflow makes it from the
# arguments of one of them; the others of the event loop are found here. They are kept as
# long as the poll is, which may outlive all of them and serve the next that comes.
_WATCHERS: WeakValueDictionary[Hashable, Watchers] = WeakValueDictionary()


class Round:
    """What one poll found: each watcher takes its own."""

    def __init__(self, news: Mapping[Watcher, News]) -> None:
        self._news = news
        self.taken: dict[Watcher, dict[str, Any]] = {}

    def take(self, watcher: Watcher) -> dict[str, Any] | None:
        """A watcher's payload, if there is one. It will be kept how far the watcher is."""
        news = self._news.get(watcher)
        if news is None:
            return None
        if news.position is not None:
            self.taken[watcher] = news.position
        return news.payload


@dataclass(frozen=True, slots=True)
class Listed:
    """What is to be known of a message in a listing of the folder."""

    date: datetime
    labels: str
    was_read: bool | None


@dataclass(frozen=True, slots=True)
class Asked:
    """When a filter was last asked for, what the folder held then, and whether that was new."""

    at: float
    marks: frozenset[Hashable]
    was_new: bool


class FolderPoll(SharedStreamProducer):
    """One poll of a folder for all its watchers.

    What a search matches only the server knows, so it is asked for every filter. But where there
    are several, the folder is first listed without any; a filter is asked for only if that shows
    something new, then once more at the next poll, and in any case twice in `lookback`, for a
    search that learns of mail later than the listing.

    :param trigger: one of the watchers' triggers: of it counts what all have in common
    :param watchers: all of them, as they come and go
    """

    def __init__(self, trigger: R7MailMessageEventTrigger, watchers: Watchers) -> None:
        self._trigger = trigger
        self._watchers = watchers
        self._asked: dict[MessageFilter, Asked] = {}

    async def open_stream(self) -> AsyncGenerator[tuple[Round, Round], None]:
        """Poll for ever. What fails is tried again, ever more slowly."""
        interval = self._trigger.poll_interval
        failures = 0
        while True:
            try:
                # Anew after a failure: the connection may have been corrected.
                hook = R7MailHook(self._trigger.r7mail_conn_id)
                async with await hook.aget_conn() as client:
                    folder = hook.resolve_folder(self._trigger.folder)
                    while True:
                        self._watchers.joined_lately.clear()
                        news = await self._poll(client, folder)
                        failures = 0
                        yield news, news
                        with suppress(TimeoutError):
                            await asyncio.wait_for(self._watchers.joined_lately.wait(), interval)
            except Exception as error:
                # Also what nobody foresaw: Airflow begins a watcher that ended anew each second,
                # and each has to log in.
                delay = max(interval, min(interval * 2**failures, MAX_BACKOFF_SECONDS))
                failures = min(failures + 1, MAX_DOUBLINGS)
                log.warning(
                    "Watching folder %s: a poll failed, the next is in %.0f s. %s",
                    self._trigger.folder,
                    delay,
                    error,
                    exc_info=not isinstance(error, (R7MailError, AirflowRuntimeError)),
                )
                await asyncio.sleep(delay)

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Keep the watchers' positions: Airflow calls this when a round's events are stored.

        If one of them failed, nothing of that round is kept, since Airflow does not tell which.
        The others' next position holds this one; the failed one starts from its last.
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
        for watcher in list(self._watchers.members.values()):
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
                # It may be this filter alone that the server can't bear.
                failed.append(error)
                continue
            answered += 1
            for watcher in members:
                watcher.find(found, now)
            before = self._asked.get(criteria)
            marks = marks or frozenset()
            was_new = before is not None and not marks <= before.marks
            self._asked[criteria] = Asked(time.monotonic(), marks, was_new)
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
        """The folder's messages within `lookback`; None where it takes as much to ask at once."""
        if len(groups) < 2:
            return None
        lookback = max(watcher.lookback for members in groups.values() for watcher in members)
        window = Window(now - lookback, now + lookback)
        try:
            return await _list(client, folder, MessageFilter(window=window))
        except OF_THE_SEARCH as error:
            log.warning("Watching folder %s: it could not be listed. %s", folder, error)
            return None  # then the filters are asked for

    def _is_due(
        self,
        criteria: MessageFilter,
        members: Sequence[Watcher],
        marks: frozenset[Hashable] | None,
    ) -> bool:
        """Whether the server is to be asked for a filter."""
        if all(watcher.is_waiting for watcher in members):
            return False
        before = self._asked.get(criteria)
        if marks is None or before is None or not all(watcher.has_read for watcher in members):
            return True
        lookback = min(watcher.lookback for watcher in members)
        return (
            before.was_new
            or not marks <= before.marks
            or time.monotonic() - before.at >= lookback.total_seconds() / 2
        )


def _marks(
    listed: Mapping[int, Listed] | None, criteria: MessageFilter
) -> frozenset[Hashable] | None:
    """What of a listing must change for a filter to match more: mail is marked and labelled."""
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
    """The dates of messages that match and that some of the watchers may not have told of."""
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
        if message.date is not None  # in a window all have one
    }
