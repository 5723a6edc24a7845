"""What earlier tries of a task have sent, so that a later try doesn't send it again.

Airflow 3.3 and later keep records in the task state store. A record survives retries and clearing,
and is deleted with the DAG run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.client.dates import parse_moment
from airflow_provider_r7mail.client.marker import Marker
from airflow_provider_r7mail.client.sending import Attempt
from airflow_provider_r7mail.compat import conf
from airflow_provider_r7mail.exceptions import R7MailConfigError

if TYPE_CHECKING:
    from airflow_provider_r7mail.compat import Context

log = logging.getLogger(__name__)

RECORD_KEY = "r7mail_sent"
"""The task state with what a task instance has sent, by hash of the recipients."""

RESEND = "resend"
"""The value that a person sets it to, to have the message sent without looking for it."""


def is_retry(context: Context) -> bool:
    """Whether this is not the first try of the task instance."""
    return getattr(context.get("ti"), "try_number", 1) > 1


class Tries:
    """What is known about messages that earlier tries of a task instance may have sent.

    :param context: the task's context; without a task instance nothing is known
    """

    def __init__(self, context: Context) -> None:
        self._ti = context.get("ti")
        self._run = context.get("dag_run")
        self._store: Any = context.get("task_state_store")
        self._is_retry = is_retry(context)
        self._began = datetime.now(UTC)
        self.keeps_record = self._store is not None

    def marker(self, recipients: Iterable[str], part: int | str = "") -> Marker | None:
        """Derive the marker of a message of this task; None if there is no task.

        :param recipients: all addresses of the message
        :param part: which of the task's messages it is, if the task sends several
        """
        ti = self._ti
        if ti is None:
            return None
        map_index = getattr(ti, "map_index", None)
        return Marker.of(
            (ti.dag_id, ti.run_id, ti.task_id),
            -1 if map_index is None else map_index,
            recipients,
            part,
        )

    def earlier(self, marker: Marker | None, part: int | str = "") -> Attempt | None:
        """Tell what earlier tries did about a message; None if they certainly did nothing.

        :raises R7MailConfigError: the record can't be read
        """
        if self._ti is None or marker is None:
            return None
        # A new instance may have an old one's recipient: the list that is mapped over may change.
        rerun = bool(getattr(self._run, "clear_number", 0))
        key = _record_key(part)
        known = self._store.get(key) if self.keeps_record else None
        if known == RESEND:
            return None
        if known is not None:
            return self._of_record(key, known, marker)
        if not (self._is_retry or rerun):
            return None
        # No record means that nothing was begun, unless records aren't kept.
        forgets = not self.keeps_record or conf.getboolean(
            "state_store", "clear_on_success", fallback=False
        )
        last = self._began if self._is_retry and forgets else None
        return Attempt(state="unknown", since=self._run_start(rerun), last=last)

    def _of_record(self, key: str, known: Any, marker: Marker) -> Attempt:
        try:
            attempts = {name: Attempt.from_json(entry) for name, entry in known.items()}
        except (AttributeError, R7MailConfigError) as error:
            raise R7MailConfigError(
                f"The task's state {key!r} is not a record of sent messages. Set it to {RESEND!r} "
                "to send without looking, or delete it."
            ) from error
        if marker.recipients in attempts:
            return attempts[marker.recipients]
        # It was sent to others: the list that is mapped over has changed, or the addresses have.
        others = attempts.values()
        return Attempt(
            state="unknown",
            since=min((other.since for other in others), default=self._began),
            last=max(
                (other.last for other in others if other.reached and other.last), default=None
            ),
        )

    def _run_start(self, rerun: bool) -> datetime:
        """A time before which no try of this run can have sent anything."""
        # Clearing a run changes its start date.
        names = ("run_after", "logical_date", "start_date") if rerun else ("start_date",)
        found = (parse_moment(getattr(self._run, name, None), name) for name in names)
        return min((moment for moment in found if moment is not None), default=self._began)

    def record(self, marker: Marker | None, part: int | str = "") -> Callable[[Attempt], None]:
        """Return the function that records attempts at a message for later tries."""

        def keep(attempt: Attempt) -> None:
            if not self.keeps_record or marker is None:
                return
            try:
                self._put(_record_key(part), marker, attempt)
            except Exception as error:
                if attempt.state == "sending":
                    raise  # never begin what a later try would not know of
                # The outcome is known. Failing now would make it unclear.
                log.warning(
                    "Airflow's task state store failed (%s): the outcome of this message is not "
                    "recorded. If the task runs again, it will check whether it was sent.",
                    type(error).__name__,
                )

        return keep

    def _put(self, key: str, marker: Marker, attempt: Attempt) -> None:
        # Airflow 3.3 and later, like the store itself.
        from airflow.sdk.execution_time.context import NEVER_EXPIRE  # noqa: PLC0415

        known = self._store.get(key)
        known = known if isinstance(known, Mapping) else {}
        value = {**known, marker.recipients: attempt.to_json()}
        self._store.set(key, value, retention=NEVER_EXPIRE)


def _record_key(part: int | str) -> str:
    return f"{RECORD_KEY}_{part}" if part != "" else RECORD_KEY
