"""The sensor: wait until a folder holds messages that match."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.compat import (
    AIRFLOW,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.extract import iter_messages
from airflow_provider_r7mail.hooks import FILTER_FIELDS, Filters, R7MailHook, fail_at_once
from airflow_provider_r7mail.models import MessageFilter
from airflow_provider_r7mail.triggers import MAX_IDS, R7MailMessageTrigger, error_of

if TYPE_CHECKING:
    from airflow_provider_r7mail.client import Client
    from airflow_provider_r7mail.compat import Context

AIRFLOW_2_TIMEOUT = "Trigger/execution timeout"


class R7MailMessageSensor(BaseSensorOperator):
    """Wait until a folder holds messages that match.

    Modes `poke`, `reschedule` and deferrable give the same result and the same errors; in poke
    mode and deferred, one session of the server serves all the polls.

    Returns the ids of all the messages that match (the first 10,000 at most), oldest or newest
    first as the server has them.

    :param folder: the folder's id, or its name in the connection's `folders` (templated)
    :param query: text anywhere in the message (templated)
    :param body: text in the body (templated)
    :param sender: the sender's address (templated)
    :param recipient: a recipient's address (templated)
    :param subject: text in the subject (templated)
    :param labels: ids of labels: a list, or its JSON text (templated)
    :param was_read: only read (True) or unread (False) messages; None for both (templated)
    :param start: messages dated from then on: a datetime or ISO text, UTC without a zone
        (templated)
    :param end: messages dated before then, likewise (templated)
    :param min_messages: how many messages must match
    :param deferrable: wait in the triggerer, without a worker slot; its default is
        `[operators] default_deferrable`
    :param max_consecutive_failures: when deferred, failed polls in a row after which it fails;
        else the first one fails it, and Airflow's retries apply
    :param r7mail_conn_id: the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, or the log-in was refused
    :raises AirflowSensorTimeout: they did not come before `timeout`
    :raises R7MailRequestError: the server failed, or could not be reached; when deferred, only
        after `max_consecutive_failures` polls
    """

    template_fields: Sequence[str] = (*FILTER_FIELDS, "r7mail_conn_id")
    ui_color = "#e6eef8"

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
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        max_consecutive_failures: int = 3,
        r7mail_conn_id: str = R7MailHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.folder = folder
        self.query = query
        self.body = body
        self.sender = sender
        self.recipient = recipient
        self.subject = subject
        self.labels = labels
        self.was_read = was_read
        self.start = start
        self.end = end
        self.min_messages = min_messages
        self.deferrable = deferrable
        self.max_consecutive_failures = max_consecutive_failures
        self.r7mail_conn_id = r7mail_conn_id
        self._session: ExitStack | None = None
        self._client: Client | None = None

    def execute(self, context: Context) -> list[int]:
        """Wait, as the mode has it; return the ids."""
        with fail_at_once():
            self._check_mode()
        if self.deferrable:
            return self._check_then_defer(context)
        try:
            with ExitStack() as self._session:
                found: list[int] = super().execute(context)
        finally:
            self._session = self._client = None
        return found

    def poke(self, context: Context) -> PokeReturnValue:
        """Look once. The ids are the value only when there are enough."""
        with fail_at_once():
            _check_min_messages(self.min_messages)
            hook = R7MailHook(self.r7mail_conn_id)
            folder = hook.resolve_folder(self.folder)
            criteria = MessageFilter.build(**self._filters())
            limit = max(MAX_IDS, self.min_messages)
            with self._conn(hook) as client:
                messages = iter_messages(client, folder, criteria)
                ids = [message.id for message in islice(messages, limit + 1)]
        if len(ids) > limit:
            self.log.warning("More than %d messages match; the first are returned.", limit)
            ids = ids[:limit]
        self.log.info("Found %d of at least %d messages.", len(ids), self.min_messages)
        done = len(ids) >= self.min_messages
        return PokeReturnValue(is_done=done, xcom_value=ids if done else None)

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> list[int]:
        """Take the trigger's event; return the ids, or raise the error it tells of."""
        with self._skip_as_poke_mode_does(), fail_at_once():
            if event.get("status") != "success":
                raise error_of(event)
        ids: list[int] = event["message_ids"]
        self.log.info("Found %d of at least %d messages.", len(ids), self.min_messages)
        return ids

    def resume_execution(
        self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context
    ) -> Any:
        """Wake up; having waited too long is the same error in Airflow 2, which has it in words."""
        if next_method == "__fail__" and (next_kwargs or {}).get("error") == AIRFLOW_2_TIMEOUT:
            with self._skip_as_poke_mode_does():
                raise AirflowSensorTimeout(
                    f"The messages did not come in {self.timeout:g} seconds."
                )
        return super().resume_execution(next_method, next_kwargs, context)

    def _check_mode(self) -> None:
        """Refuse what Airflow 3.0 itself can't do, with any sensor."""
        if AIRFLOW != (3, 0):
            return
        if self.deferrable and self.soft_fail:
            raise R7MailConfigError(
                "soft_fail: Airflow 3.0 fails a deferred sensor that has timed out, instead of "
                "skipping it. Set deferrable=False, or upgrade to Airflow 3.1."
            )
        if self.mode == "reschedule" and not self.deferrable:
            raise R7MailConfigError(
                'mode: Airflow 3.0 fails a sensor with mode="reschedule" at its second poke. Set '
                "deferrable=True, or upgrade to Airflow 3.1."
            )

    def _check_then_defer(self, context: Context) -> list[int]:
        with self._skip_as_poke_mode_does():
            found = self.poke(context)
        if found.is_done:
            return list(found.xcom_value or ())
        self.defer(
            trigger=R7MailMessageTrigger(
                folder=self.folder,
                **self._filters(),
                min_messages=self.min_messages,
                poll_interval=self.poke_interval,
                max_consecutive_failures=self.max_consecutive_failures,
                r7mail_conn_id=self.r7mail_conn_id,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout),
        )
        raise AssertionError("defer came back")

    @contextmanager
    def _conn(self, hook: R7MailHook) -> Iterator[Client]:
        if self._session is None:
            with hook.get_conn() as client:
                yield client
            return
        if self._client is None:
            self._client = self._session.enter_context(hook.get_conn())
        yield self._client

    @contextmanager
    def _skip_as_poke_mode_does(self) -> Iterator[None]:
        """Apply `soft_fail` and `never_fail` as `BaseSensorOperator.execute` does to a poke."""
        try:
            yield
        except Exception as error:
            final = isinstance(error, (AirflowFailException, AirflowSensorTimeout))
            if self.never_fail or (self.soft_fail and final):
                raise AirflowSkipException(
                    "Skipping: soft_fail or never_fail is set, and the check failed."
                ) from error
            raise

    def _filters(self) -> Filters:
        return {
            "query": self.query,
            "body": self.body,
            "sender": self.sender,
            "recipient": self.recipient,
            "subject": self.subject,
            "labels": self.labels,
            "was_read": self.was_read,
            "start": self.start,
            "end": self.end,
        }


def _check_min_messages(value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise R7MailConfigError(f"min_messages: got {value!r}. Give a whole number, 1 or more.")
