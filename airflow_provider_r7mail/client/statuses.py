"""What a status of the server, or of something in front of it, means (R16). No I/O, no Airflow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from airflow_provider_r7mail.client.calls import Call
from airflow_provider_r7mail.exceptions import (
    R7MailAuthError,
    R7MailProxyError,
    R7MailRequestError,
    R7MailResponseError,
    R7MailServerError,
)

PROXY_LOGIN = "the proxy requires a login"
PROXY_LOGIN_HINT = "Set proxy in the connection to http://login:password@proxy.example.org:3128."
NO_MAIL = "the account has no access to the Mail module (R41)"
NO_MAIL_HINT = (
    "The login's ModulesAccess doesn't list it. Enable it for the account, or use another account."
)
REFUSED = frozenset({401, 403, 406})
"""Statuses that mean a dead token (R24), or that something is not allowed or not there (R25)."""

MAX_RETRY_AFTER_SECONDS = 300.0
"""If `Retry-After` is longer, the task fails, and Airflow's own retries apply."""


def is_html(headers: Mapping[str, str]) -> bool:
    """Whether a response is an HTML page by its Content-Type (R16).

    :param headers: headers of the response, with case-insensitive or lower-case names
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind in {"text/html", "application/xhtml+xml"}


def failure(
    call: Call[Any], status: int, headers: Mapping[str, str], attempt: int
) -> R7MailRequestError | None:
    """Return the error for a status other than 200, None for 200 (R16).

    The Disk's manual isn't known, so any status below 300 is taken as success there.

    :param headers: headers of the response, with case-insensitive or lower-case names
    :param attempt: the number of the attempt, from 1
    """
    if status == 200 or (call.on_disk and 200 < status < 300):
        return None
    retry_after = _retry_after(headers.get("retry-after"), datetime.now(UTC))
    html = is_html(headers)
    error: type[R7MailRequestError] = R7MailServerError
    if status == 401:
        error, reason = R7MailAuthError, "not authorised"
        hint = (
            "Check Login and Password of the connection."
            if not call.authorized
            else "The server refused a token it had just issued; check that the account may use "
            "the mail module, and that nobody else keeps logging in to it (R36)."
        )
    elif status in call.refusals:
        error, reason = R7MailAuthError, "the login was refused, or the server failed"
        hint = "Check Login and Password of the connection; the login was tried only once."
    elif status in {429, 502, 503, 504}:
        error = R7MailProxyError
        reason = "too many requests" if status == 429 else "a proxy could not get a response"
        hint = (
            "Lower max_concurrency in the connection, or ask for a higher limit."
            if status == 429
            else "The mail server behind the proxy is down, restarting or slow; check its log."
        )
    elif status == 407:
        error, reason, hint = R7MailProxyError, PROXY_LOGIN, PROXY_LOGIN_HINT
    elif 300 <= status < 400 or (html and status < 500):
        error, reason = R7MailProxyError, "something in front of the mail server responded"
        hint = (
            "A web server or firewall may refuse names like this file's, such as .config or .asp "
            "(in IIS: request filtering). Have them allowed for the mail server, or open the "
            "message in the web client."
            if html and status >= 400 and call.not_found
            else "Check Host, Schema, Port and proxy of the connection."
        )
    elif status < 300:
        error, reason = R7MailResponseError, "a status that the API does not define"
        hint = "Check that Host points to an R7 mail server."
    elif status >= 500:
        reason = "the server failed"
        hint = (
            "Check the mail server's log for this time. An unknown folder id may be the cause, too."
        )
    elif status in {404, 405}:
        gone = call.not_found if status == 404 else ""
        reason = gone or (
            "there is no such endpoint" if status == 404 else "the method is not allowed"
        )
        hint = (
            "The message was deleted or moved meanwhile, or has no file with this name."
            if gone
            else "Check that Host points to an R7 mail server. Each module has a host of its own; "
            "r7mail check finds that of the mail API."
        )
    elif status in REFUSED:
        reason = "refused, or not there"
        hint = (
            "The folder, message or file doesn't exist any more, or the account may not use it. "
            "The DEBUG log has what the server says."
        )
    else:
        reason, hint = "the server refused the request", "Check the folder, ids and file name."
    hint += call.explain(status)
    if retry_after is not None and retry_after > MAX_RETRY_AFTER_SECONDS:
        hint += f" Retry-After asks to wait {retry_after:.0f} s, so it was not retried."
    return error(
        reason,
        method=call.method,
        path=call.path,
        status=status,
        attempt=attempt,
        hint=hint,
        retry_after=retry_after,
    )


def _retry_after(value: str | None, now: datetime) -> float | None:
    """Return `Retry-After`, in seconds or an HTTP date (RFC 9110, 10.2.3), as seconds from now."""
    if not value:
        return None
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max((moment - now).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
