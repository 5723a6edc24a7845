"""Triggers: wait for mail on the triggerer's event loop. They only read.

`R7MailMessageTrigger` fires once, for the sensor. `R7MailMessageEventTrigger` goes on firing, for
an `AssetWatcher`: it tells of each message once, from where the last one stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Unpack

from airflow.providers.common.compat.triggers import BaseEventTrigger
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_r7mail import exceptions
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.reader import aiter_messages
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.exceptions import R7MailConfigError, R7MailError, R7MailRequestError
from airflow_provider_r7mail.failures import UNMENDABLE
from airflow_provider_r7mail.filters import Filters, known_filters, plain_filters
from airflow_provider_r7mail.hooks import R7MailHook
from airflow_provider_r7mail.watching import DAY_SECONDS, FolderPoll, Round, Watchers

if TYPE_CHECKING:
    from airflow.triggers.shared_stream import SharedStreamProducer


MAX_IDS = 10_000
"""Found ids that are returned; a search that finds more is logged."""


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
        self.filters = known_filters(filters)
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
                **plain_filters(self.filters),
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
        self.filters = known_filters(filters)
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
                **plain_filters(self.filters),
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
