"""Fail a task without further tries for errors that another try can't fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow_provider_r7mail.compat import AirflowFailException
from airflow_provider_r7mail.exceptions import (
    R7MailAuthError,
    R7MailConfigError,
    R7MailMessageNotFoundError,
    R7MailSendUnclearError,
    R7MailSendUnsettledError,
)

UNMENDABLE = (
    R7MailConfigError,
    R7MailAuthError,
    R7MailSendUnclearError,
    R7MailMessageNotFoundError,
)
"""Errors that another try of the task would meet again, or must not risk."""


@contextmanager
def fail_at_once() -> Iterator[None]:
    """Fail the task without further tries for the errors in `UNMENDABLE`.

    Also a decorator: `@fail_at_once()`.

    :raises AirflowFailException: instead of such an error, with its message
    """
    try:
        yield
    except R7MailSendUnsettledError:
        raise  # the next try looks before it sends
    except UNMENDABLE as error:
        raise AirflowFailException(str(error)) from error
