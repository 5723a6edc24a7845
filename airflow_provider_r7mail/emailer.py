"""The email backend: send the mail that Airflow itself sends through the R7-Office mail server.

Set `[email] email_backend = airflow_provider_r7mail.emailer.send_email`. Airflow 3.2.0 to 3.3.0
ignore it in `email_on_failure` and `email_on_retry`, and use SMTP: use `R7MailNotifier` there.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from html import escape
from typing import Any
from weakref import WeakKeyDictionary

from airflow_provider_r7mail.client.compose import compose_message
from airflow_provider_r7mail.exceptions import R7MailSendUnclearError
from airflow_provider_r7mail.failures import fail_at_once
from airflow_provider_r7mail.hooks import R7MailHook

log = logging.getLogger(__name__)

AIRFLOWS_DEFAULT = "smtp_default"
"""The `conn_id` that Airflow passes if `[email] email_conn_id` is not set."""


@fail_at_once()
def send_email(
    to: str | Iterable[str],
    subject: str,
    html_content: str,
    files: list[str] | None = None,
    dryrun: bool = False,
    cc: str | Iterable[str] | None = None,
    bcc: str | Iterable[str] | None = None,
    mime_subtype: str = "mixed",
    mime_charset: str = "utf-8",
    conn_id: str | None = None,
    custom_headers: dict[str, Any] | None = None,
    **kwargs: Any,
) -> None:
    """Send a message once, with the signature of `airflow.utils.email.send_email`.

    The sender is the connection's account: `from_email`, which Airflow also passes, is ignored.

    :param to: addresses: a list, or text with commas or semicolons
    :param subject: the subject, one line
    :param html_content: the body in HTML, or plain text if `mime_subtype` is `plain`
    :param files: paths of files to upload to the server's Disk and to attach
    :param dryrun: check the parameters, log the counts, and send nothing
    :param cc: addresses, like `to`
    :param bcc: addresses, like `to`
    :param mime_subtype: `plain` for plain text; other values only concern the packing of MIME parts
    :param mime_charset: ignored: the API takes Unicode
    :param conn_id: id of the Airflow connection; `r7mail_default` if None or Airflow's own default,
        `smtp_default`
    :param custom_headers: ignored, with a warning: the API has no headers
    :param kwargs: ignored
    :raises AirflowFailException: a parameter is wrong, the login was refused, or it is unclear
        whether the message was sent (R23)
    :raises R7MailRequestError: the message was not sent; another try may succeed
    """
    if custom_headers:
        log.warning("Ignored %d custom_headers: the API has no headers.", len(custom_headers))
    text_content = None
    if mime_subtype == "plain":
        text_content, html_content = html_content, f"<pre>{escape(html_content)}</pre>"
    letter: dict[str, Any] = {
        "to": _with_commas(to),
        "subject": subject,
        "html_content": html_content,
        "text_content": text_content,
        "cc": _with_commas(cc),
        "bcc": _with_commas(bcc),
    }
    if dryrun:
        body = compose_message(**letter).body or {}
        numbers = [len(body[name]) for name in ("To", "Cc", "Bcc")]
        log.info("Dry run, nothing is sent: %d to, %d cc, %d bcc.", *numbers)
        return
    # As Airflow's own backend, which opens them: from the working directory.
    letter["files"] = [os.path.abspath(file) for file in files or ()]  # noqa: PTH100 - no I/O
    if conn_id in (None, "", AIRFLOWS_DEFAULT):
        conn_id = R7MailHook.default_conn_name
    _refuse_second_text(letter)
    try:
        accepted = R7MailHook(conn_id).send_message(**letter)
    except R7MailSendUnclearError as error:
        _unclear[error] = _addressed(letter)
        raise
    log.info("The server accepted message %s. It may not be delivered yet.", accepted["id"])


# Recipients and subject of messages with an unclear outcome.
_unclear: WeakKeyDictionary[R7MailSendUnclearError, list[Any]] = WeakKeyDictionary()


def _addressed(letter: dict[str, Any]) -> list[Any]:
    return [letter[name] for name in ("to", "subject", "cc", "bcc")]


def _refuse_second_text(letter: dict[str, Any]) -> None:
    """Refuse the second mail of Airflow 2, which sends a failed alert again with another text.

    :raises R7MailSendUnclearError: the alert may have been sent with the first text (R23)
    """
    unclear = getattr(sys.exc_info()[1], "__cause__", None)
    if isinstance(unclear, R7MailSendUnclearError) and _unclear.get(unclear) == _addressed(letter):
        raise unclear


def _with_commas(addresses: str | Iterable[str] | None) -> str | Iterable[str] | None:
    """Replace semicolons between addresses, which Airflow also accepts."""
    return addresses.replace(";", ",") if isinstance(addresses, str) else addresses
