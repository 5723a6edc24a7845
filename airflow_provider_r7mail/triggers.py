"""Triggers: wait for mail on the triggerer's event loop. They only read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_r7mail import exceptions
from airflow_provider_r7mail.client import AsyncClient
from airflow_provider_r7mail.exceptions import R7MailError, R7MailRequestError
from airflow_provider_r7mail.extract import aiter_messages
from airflow_provider_r7mail.hooks import UNMENDABLE, Filters, R7MailHook
from airflow_provider_r7mail.models import MessageFilter

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
        query: str | None = None,
        body: str | None = None,
        sender: str | None = None,
        recipient: str | None = None,
        subject: str | None = None,
        labels: Iterable[int | str] | str | None = None,
        was_read: bool | str | None = None,
        start: datetime | str | None = None,
        end: datetime | str | None = None,
        min_messages: int = 1,
        poll_interval: float = 60.0,
        max_consecutive_failures: int = 3,
        r7mail_conn_id: str = R7MailHook.default_conn_name,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.folder = folder
        self.filters: Filters = {
            "query": query,
            "body": body,
            "sender": sender,
            "recipient": recipient,
            "subject": subject,
            "labels": labels,
            "was_read": was_read,
            "start": start,
            "end": end,
        }
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
                **{name: _plain(value) for name, value in self.filters.items()},
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


def _plain(value: object) -> object:
    """A filter's value as JSON has it."""
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
        "message": str(error),
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
