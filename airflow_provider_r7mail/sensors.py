"""The sensor: wait until a folder holds messages that match."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.reader import iter_messages
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
from airflow_provider_r7mail.failures import fail_at_once
from airflow_provider_r7mail.filters import FILTER_FIELDS, FolderReader
from airflow_provider_r7mail.hooks import R7MailHook
from airflow_provider_r7mail.triggers import MAX_IDS, R7MailMessageTrigger, error_of

if TYPE_CHECKING:
    from airflow_provider_r7mail.client.session import Client
    from airflow_provider_r7mail.compat import Context

AIRFLOW_2_TIMEOUT = "Trigger/execution timeout"


class R7MailMessageSensor(FolderReader, BaseSensorOperator):
    """Wait until a folder holds enough messages that match the filters.

    The modes `poke` and `reschedule` and a deferred sensor give the same result and raise the
    same errors. In poke mode, and while it is deferred, all polls share one server session.

    Returns the ids of all matching messages, 10,000 at most unless `min_messages` is larger,
    oldest or newest first depending on the server.

    :param folder: the folder's id, or its name in the connection's `folders` (templated)
    :param filters: `query`, `body`, `sender`, `recipient`, `subject`, `labels`, `was_read`,
        `start`, `end`, each a keyword parameter:
        :class:`~airflow_provider_r7mail.filters.Filters` (templated)
    :param min_messages: how many messages must match, at least 1
    :param deferrable: wait in the triggerer, without taking a worker slot; defaults to
        `[operators] default_deferrable`
    :param max_consecutive_failures: how many polls in a row may fail before the deferred sensor
        fails. If it is not deferred, the first failed poll fails the task, and Airflow's retries
        apply
    :param r7mail_conn_id: the Airflow connection (templated)
    :raises AirflowFailException: a parameter is wrong, or the login was refused
    :raises AirflowSensorTimeout: not enough messages arrived within `timeout`
    :raises R7MailRequestError: the server failed or could not be reached; if deferred, only after
        `max_consecutive_failures` polls
    """

    template_fields: Sequence[str] = (*FILTER_FIELDS, "r7mail_conn_id")
    ui_color = "#e6eef8"

    def __init__(
        self,
        *,
        min_messages: int = 1,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        max_consecutive_failures: int = 3,
        r7mail_conn_id: str = R7MailHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.min_messages = min_messages
        self.deferrable = deferrable
        self.max_consecutive_failures = max_consecutive_failures
        self.r7mail_conn_id = r7mail_conn_id
        self._session: ExitStack | None = None
        self._client: Client | None = None

    def execute(self, context: Context) -> list[int]:
        """Wait in the chosen mode and return the ids."""
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
        """Poll once; the result holds the ids only if there are enough."""
        with fail_at_once():
            _check_min_messages(self.min_messages)
            hook = R7MailHook(self.r7mail_conn_id)
            folder = hook.resolve_folder(self.folder)
            criteria = MessageFilter.build(**self.filters)
            limit = max(MAX_IDS, self.min_messages)
            with self._conn(hook) as client:
                messages = iter_messages(client, folder, criteria)
                ids = [message.id for message in islice(messages, limit + 1)]
        if len(ids) > limit:
            self.log.warning("More than %d messages match; only the first are returned.", limit)
            ids = ids[:limit]
        self.log.info("Messages found: %d, needed at least: %d.", len(ids), self.min_messages)
        done = len(ids) >= self.min_messages
        return PokeReturnValue(is_done=done, xcom_value=ids if done else None)

    def _check_mode(self) -> None:
        """Refuse what Airflow 3.0 can't do with any sensor."""
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

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> list[int]:
        """Return the ids from the trigger's event, or raise the error it reports."""
        with self._skip_as_poke_mode_does(), fail_at_once():
            if event.get("status") != "success":
                raise error_of(event)
        ids: list[int] = event["message_ids"]
        self.log.info("Messages found: %d, needed at least: %d.", len(ids), self.min_messages)
        return ids

    def resume_execution(
        self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context
    ) -> Any:
        """Resume; in Airflow 2, whose timeout is only a text, raise the same error as Airflow 3."""
        if next_method == "__fail__" and (next_kwargs or {}).get("error") == AIRFLOW_2_TIMEOUT:
            with self._skip_as_poke_mode_does():
                raise AirflowSensorTimeout(
                    f"Not enough messages arrived within {self.timeout:g} seconds."
                )
        return super().resume_execution(next_method, next_kwargs, context)

    def _check_then_defer(self, context: Context) -> list[int]:
        with self._skip_as_poke_mode_does():
            found = self.poke(context)
        if found.is_done:
            return list(found.xcom_value or ())
        self.defer(
            trigger=R7MailMessageTrigger(
                folder=self.folder,
                **self.filters,
                min_messages=self.min_messages,
                poll_interval=self.poke_interval,
                exponential_backoff=bool(self.exponential_backoff),
                max_wait=self.max_wait.total_seconds() if self.max_wait else None,
                max_consecutive_failures=self.max_consecutive_failures,
                r7mail_conn_id=self.r7mail_conn_id,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout),
        )
        raise AssertionError("defer returned")

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
        """Apply `soft_fail` and `never_fail` as `BaseSensorOperator.execute` does in poke mode."""
        try:
            yield
        except Exception as error:
            final = isinstance(error, (AirflowFailException, AirflowSensorTimeout))
            if self.never_fail or (self.soft_fail and final):
                raise AirflowSkipException(
                    "Skipped: the check failed, and soft_fail or never_fail is set."
                ) from error
            raise


def _check_min_messages(value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise R7MailConfigError(f"min_messages: got {value!r}. Give a whole number, 1 or more.")
