"""Triggers that wait for mail in the triggerer, without a worker slot. They only read.

`R7MailMessageTrigger` fires once: the deferred sensor waits for it. `R7MailMessageEventTrigger`
keeps firing, for an `AssetWatcher`: it reports each message once, continuing where it stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Unpack

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_r7mail import exceptions
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.reader import aiter_messages
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.compat import BaseEventTrigger
from airflow_provider_r7mail.exceptions import R7MailConfigError, R7MailError, R7MailRequestError
from airflow_provider_r7mail.failures import UNMENDABLE
from airflow_provider_r7mail.filters import Filters, known_filters, plain_filters
from airflow_provider_r7mail.hooks import R7MailHook
from airflow_provider_r7mail.positions import Watched, Watcher
from airflow_provider_r7mail.watching import FolderPoll, Round, Watchers

if TYPE_CHECKING:
    from airflow.triggers.shared_stream import SharedStreamProducer


DAY_SECONDS = 86_400

LONGEST_PAUSE = 30 * DAY_SECONDS
"""The longest wait between polls, in seconds; no timer takes what doubling leads to."""

MAX_IDS = 10_000
"""The most ids that are returned; a log line says if more were found."""


class _FolderTrigger(BaseTrigger):
    """What the two triggers share: the folder, the filters, and how often to poll."""

    own: tuple[str, ...]
    """The names of a trigger's other parameters, and of the attributes that hold them."""

    def __init__(
        self,
        *,
        folder: int | str,
        poll_interval: float = 60.0,
        r7mail_conn_id: str = R7MailHook.default_conn_name,
        **filters: Unpack[Filters],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.folder = folder
        self.poll_interval = poll_interval
        self.r7mail_conn_id = r7mail_conn_id
        self.filters = known_filters(filters)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, for the metadata database."""
        names = ("folder", *self.own, "poll_interval", "r7mail_conn_id")
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {**{name: getattr(self, name) for name in names}, **plain_filters(self.filters)},
        )


class R7MailMessageTrigger(_FolderTrigger):
    """Fire once, as soon as a folder holds enough messages that match the filters.

    Yields `{"status": "success", "message_ids": [...]}`, or
    `{"status": "error", "message": ..., "error": ..., "details": ...}`: at once for errors that a
    retry can't fix, otherwise after `max_consecutive_failures` failed polls in a row. All polls
    share one server session.

    :param folder: the folder's id, or its name in the connection's `folders`
    :param filters: `query`, `body`, `sender`, `recipient`, `subject`, `labels`, `was_read`,
        `start`, `end`, each a keyword parameter: :class:`~airflow_provider_r7mail.filters.Filters`
    :param min_messages: how many messages must match
    :param poll_interval: seconds between two polls
    :param exponential_backoff: double the interval after each poll
    :param max_wait: the longest interval in seconds; None for no limit
    :param max_consecutive_failures: how many polls in a row may fail before it gives up
    :param r7mail_conn_id: the Airflow connection
    """

    own = ("min_messages", "exponential_backoff", "max_wait", "max_consecutive_failures")

    def __init__(
        self,
        *,
        folder: int | str,
        min_messages: int = 1,
        poll_interval: float = 60.0,
        exponential_backoff: bool = False,
        max_wait: float | None = None,
        max_consecutive_failures: int = 3,
        r7mail_conn_id: str = R7MailHook.default_conn_name,
        **filters: Unpack[Filters],
    ) -> None:
        super().__init__(
            folder=folder, poll_interval=poll_interval, r7mail_conn_id=r7mail_conn_id, **filters
        )
        self.min_messages = min_messages
        self.exponential_backoff = exponential_backoff
        self.max_wait = max_wait
        self.max_consecutive_failures = max_consecutive_failures

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until there are enough messages, then yield the one event."""
        try:
            ids = await self._wait()
        except R7MailError as error:
            yield TriggerEvent(error_event(error))
        else:
            yield TriggerEvent({"status": "success", "message_ids": ids})

    async def _wait(self) -> list[int]:
        hook = R7MailHook(self.r7mail_conn_id)
        criteria = MessageFilter.build(**self.filters)
        failures, pause = 0, self.poll_interval
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
                        "Poll failed (%d in a row; the task fails after %d): %s",
                        failures,
                        self.max_consecutive_failures,
                        error,
                    )
                else:
                    failures = 0
                    if len(ids) >= self.min_messages:
                        return ids
                await asyncio.sleep(min(pause, LONGEST_PAUSE))
                if self.exponential_backoff:
                    pause = min(2 * pause, self.max_wait or LONGEST_PAUSE)

    async def _poll(self, client: AsyncClient, folder: int, criteria: MessageFilter) -> list[int]:
        limit = max(MAX_IDS, self.min_messages)
        ids: list[int] = []
        async for message in aiter_messages(client, folder, criteria):
            if len(ids) == limit:
                self.log.warning("More than %d messages match; only the first are returned.", limit)
                break
            ids.append(message.id)
        return ids


DETAILS = ("reason", "method", "path", "status", "attempt", "hint")


def error_event(error: R7MailError) -> dict[str, Any]:
    """Return an error as an event; `error_of` turns it back into the error."""
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
    """Return the error that an event reports: the same class with the same message."""
    kind = getattr(exceptions, str(event.get("error")), R7MailError)
    details = event.get("details")
    if details and issubclass(kind, R7MailRequestError):
        return kind(**details)
    error: R7MailError = kind(event.get("message", ""))
    return error


# -- the event trigger ------------------------------------------------------------------------


class R7MailMessageEventTrigger(_FolderTrigger, BaseEventTrigger):
    """Report each message that arrives in a folder and matches, once: for an `AssetWatcher`.

    The payload of an event is `{"message_ids": [...], "folder": 24, "cursor": "..."}`: the ids,
    oldest first, the folder's id, and the moment up to which all mail has been reported. A DAG run
    finds it in `triggering_asset_events`, as `event.extra["payload"]`.

    New messages are those that were not in the folder when the watcher first polled it; with
    `start`, all messages dated from then on. Each poll reads back to `lookback` ago, so that mail
    that arrives late or out of order is reported too. Messages dated in the future are reported
    once they are less than `lookback` ahead. Messages without a date are never reported.

    The position is stored in the asset's state (Airflow 3.3; before that, only in memory) after
    Airflow has stored the event: a restart loses nothing, and the last event may come again if the
    triggerer dies within a second of it. Watchers of the same folder with the same
    `poll_interval` share one server session and one poll (Airflow 3.3).

    :param folder: the folder's id, or its name in the connection's `folders`
    :param filters: `query`, `body`, `sender`, `recipient`, `subject`, `labels`, `was_read`, `end`,
        each a keyword parameter: :class:`~airflow_provider_r7mail.filters.Filters`. `start`
        reports all mail from then on, including mail that is there already
    :param poll_interval: seconds between two polls; doubled after each failure, up to 15 minutes
    :param lookback: how many seconds late a message may arrive, or how far off its date may be
    :param index_lag: how many seconds later the server's search may find a message by `query`,
        `body` or `subject` (R40). With one of these filters, it is added to `lookback`
    :param max_messages_per_event: the most ids in one event; the rest follow, one event a poll
    :param r7mail_conn_id: the Airflow connection
    """

    own = ("lookback", "index_lag", "max_messages_per_event")

    def __init__(
        self,
        *,
        folder: int | str,
        poll_interval: float = 60.0,
        lookback: float = 3600.0,
        index_lag: float = 120.0,
        max_messages_per_event: int = 1000,
        r7mail_conn_id: str = R7MailHook.default_conn_name,
        **filters: Unpack[Filters],
    ) -> None:
        super().__init__(
            folder=folder, poll_interval=poll_interval, r7mail_conn_id=r7mail_conn_id, **filters
        )
        self.lookback = lookback
        self.index_lag = index_lag
        self.max_messages_per_event = max_messages_per_event

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, for the metadata database.

        Airflow calls this when it parses the DAG file, so a wrong parameter is an import error
        there, not a watcher that keeps failing where nobody looks.

        :raises R7MailConfigError: a parameter is wrong
        """
        MessageFilter.build(**self.filters)
        _check_number("poll_interval", self.poll_interval, 0.01, DAY_SECONDS)
        _check_number("lookback", self.lookback, 1, 366 * DAY_SECONDS)
        _check_number("index_lag", self.index_lag, 0, DAY_SECONDS)
        _check_number("max_messages_per_event", self.max_messages_per_event, 1, MAX_IDS, whole=True)
        return super().serialize()

    def shared_stream_key(self) -> Watched:
        """Return what watchers must have in common to share a poll."""
        return Watched(self.r7mail_conn_id, str(self.folder), float(self.poll_interval))

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        """Make the poll that watchers share; the triggerer has one per key."""
        watched = cls(**kwargs).shared_stream_key()
        return FolderPoll(watched, Watchers.of(watched))

    async def filter_shared_stream(
        self, shared_stream: AsyncIterator[Round]
    ) -> AsyncIterator[TriggerEvent]:
        """Yield what the shared poll has found for this watcher."""
        watcher = self._watcher()
        with Watchers.of(watcher.watched).joined_by(watcher):
            async for news in shared_stream:
                payload = news.take(watcher)
                if payload is not None:
                    yield TriggerEvent(payload)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll for this watcher alone: Airflow before 3.3 has no shared streams."""
        watcher, watchers = self._watcher(), Watchers()
        with watchers.joined_by(watcher):
            poll = FolderPoll(watcher.watched, watchers)
            async with aclosing(poll.open_stream()) as rounds:
                async for news, _ in rounds:
                    payload = news.take(watcher)
                    if payload is not None:
                        yield TriggerEvent(payload)

    def _watcher(self) -> Watcher:
        return Watcher(
            self.shared_stream_key(),
            self.filters,
            lookback=self.lookback,
            index_lag=self.index_lag,
            limit=self.max_messages_per_event,
            store=getattr(self, "asset_state_store", None),
        )


def _check_number(
    name: str, value: object, low: float, high: float, *, whole: bool = False
) -> None:
    kind = int if whole else (int, float)
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
        what = "whole number" if whole else "number"
        raise R7MailConfigError(f"{name}: got {value!r}. Give a {what} from {low:g} to {high:g}.")
