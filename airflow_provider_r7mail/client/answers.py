"""How the server's responses are read: tokens, listings, messages, results of actions.

Pure functions, mostly the `parse` of a `Call`. No Airflow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_provider_r7mail.client.dates import lacks_zone
from airflow_provider_r7mail.client.fields import LISTING, Names, restore_names
from airflow_provider_r7mail.client.models import Message, NoMessage, Page
from airflow_provider_r7mail.exceptions import (
    R7MailActionError,
    R7MailAuthError,
    R7MailProxyError,
    R7MailRequestError,
    R7MailResponseError,
)

LOGIN_HINT = "Check Login and Password of the connection, and that Host is an R7 mail server."

_LOGIN = Names("Response", "Data", "Tokens", "AuthToken", "ExpiredAt", "State", "ModulesAccess")
_ERROR = Names("ErrorMessage")


class AnswerError(Exception):
    """Raised by a call's `parse`: the response is not what the API documents.

    The client converts it into `error`, adding method, path, status and attempt.

    :param reason: what is wrong
    :param error: the class of the error to raise
    :param hint: what to do about it
    """

    def __init__(
        self,
        reason: str,
        error: type[R7MailRequestError] = R7MailResponseError,
        hint: str = "",
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error
        self.hint = hint


def read_json(body: bytes) -> Any:
    """Parse a JSON response.

    :raises AnswerError: not JSON, or a proxy's HTML page with status 200 (R16)
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        if body.lstrip()[:1] == b"<":
            raise AnswerError(
                "an HTML page in place of JSON",
                R7MailProxyError,
                "Check that Host points to an R7 mail server, and check the proxy in front of it.",
            ) from error
        raise AnswerError("the response is not JSON, or is truncated") from error


def login_data(body: bytes) -> Mapping[str, Any]:
    """Return `Data` of the login's response.

    :raises AnswerError: the login was refused, or the response has none
    """
    data = dict(_LOGIN.restore(_object(_member(_member(read_json(body), "Response"), "Data"))))
    if isinstance(data.get("Tokens"), Mapping):
        data["Tokens"] = _LOGIN.restore(data["Tokens"])
    return data


def parse_token(body: bytes) -> str:
    """Read the token from the login's response.

    :raises AnswerError: the login was refused, in any of the ways of R14
    """
    data = login_data(body)
    state = data.get("State")
    if state not in (None, "Login"):
        raise AnswerError(
            "the login was not completed: State is not Login", R7MailAuthError, LOGIN_HINT
        )
    token = _member(_member(data, "Tokens"), "AuthToken")
    if not isinstance(token, str) or not token:
        raise AnswerError("the login was refused: the token is empty", R7MailAuthError, LOGIN_HINT)
    if not (token.isascii() and token.isprintable()):
        # HTTP libraries quote a header that they can't send in their errors.
        raise AnswerError("the login's token contains characters that a header can't")
    return token


def lists_mail(body: bytes) -> bool:
    """Whether the account has the Mail module, by the login's `ModulesAccess` (R41).

    True also if it has no such list.
    """
    modules = login_data(body).get("ModulesAccess")
    return not isinstance(modules, list) or has_mail(modules)


def has_mail(modules: Sequence[object]) -> bool:
    """Whether the Mail module is among modules."""
    return any("mail" in str(name).lower() for name in modules)


def error_message(body: bytes) -> str:
    """Return what the body of an error says, empty for nothing. It may contain names."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    message = _ERROR.restore(answer).get("ErrorMessage") if isinstance(answer, dict) else None
    return " ".join(message.split())[:500] if isinstance(message, str) else ""


def _object(raw: Any) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping) or not raw:
        raise AnswerError(
            "the login was refused: no token in the response", R7MailAuthError, LOGIN_HINT
        )
    return raw


def _member(raw: Any, name: str) -> Any:
    """Return what the login's response has by a name.

    :raises AnswerError: there is nothing to have it (R14), or no such key
    """
    restored = _LOGIN.restore(_object(raw))
    if name not in restored:
        # The server may have refused the login in its own way, so it must not be tried again.
        raise _missing("the login's response", name, raw, R7MailAuthError)
    return restored[name]


def _missing(
    what: str,
    name: str,
    raw: Mapping[str, Any],
    error: type[R7MailRequestError] = R7MailResponseError,
) -> AnswerError:
    """Return the error for an object that lacks a key; it names those that look like a name."""
    keys = [key for key in raw if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,40}", key)]
    came = ", ".join(keys[:20]) or "none"
    return AnswerError(
        f"{what} has no {name}; the keys that came: {came}",
        error,
        hint="This is not the API that the package knows: check that Host is an R7 mail server.",
    )


def read_listing(body: bytes) -> Mapping[str, Any]:
    """Return a listing as JSON, with the manual's names whatever case they came in (R42).

    :raises AnswerError: not a listing
    """
    answer = check_listing(read_json(body))
    return {**answer, "Items": [restore_names(item) for item in answer["Items"]]}


def check_listing(answer: Any) -> Mapping[str, Any]:
    """Return a listing with the manual's names, and Items as an array; they keep their names.

    :param answer: the parsed response
    :raises AnswerError: not a listing
    """
    if not isinstance(answer, dict):
        raise AnswerError("the listing is not an object")
    answer = dict(LISTING.restore(answer))
    if "Items" not in answer:
        raise _missing("the listing", "Items", answer)
    if answer["Items"] is None and any(value for value in answer.values() if type(value) is list):
        raise AnswerError("the listing's Items is null, and another of its fields is an array")
    items = [] if answer["Items"] is None else answer["Items"]
    if not isinstance(items, list):
        raise AnswerError("the listing's Items is not an array")
    return {**answer, "Items": items}


def parse_items(body: bytes) -> tuple[list[Any], int | None]:
    """Read a listing's raw items and `Count`.

    :return: the items as JSON objects, and the Count (R2) or None
    :raises AnswerError: not a listing
    """
    answer = read_listing(body)
    return answer["Items"], read_count(answer.get("Count"))


def read_count(value: Any) -> int | None:
    """Return a Count, which may come as text; None for what is no count (R2)."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def parse_page(body: bytes) -> Page:
    """Read a listing's messages and `Count`.

    :raises AnswerError: not a listing, or an item has neither an Id nor a Date (R20)
    """
    items, count = parse_items(body)
    try:
        rows = tuple(_read_row(item) for item in items)
        return Page(
            rows=rows,
            count=count,
            zoneless=lacks_zone(body),
            zoneless_timestamps=lacks_zone(body, "Timestamp"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AnswerError("the listing contains an item that is not a message") from error


def _read_row(item: Any) -> Message | NoMessage:
    try:
        return Message.from_json(item)
    except (KeyError, TypeError, ValueError):
        return NoMessage.from_json(item)


def parse_message(body: bytes) -> Message:
    """Read Send's response, which is a message.

    :raises AnswerError: not a message
    """
    try:
        return Message.from_json(restore_names(read_json(body)))
    except (KeyError, TypeError, ValueError) as error:
        raise AnswerError("the response to Send is not a message") from error


def parse_true(body: bytes) -> bool:
    """Read the response of an action.

    :raises AnswerError: anything but `true` (R15)
    """
    if read_json(body) is not True:
        raise AnswerError(
            "the server did not do it: its response is not true",
            R7MailActionError,
            "Check that all ids are in the folder. With several ids, the server does not say which "
            "ones it changed; repeating the call is safe.",
        )
    return True
