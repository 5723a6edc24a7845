"""The API: each endpoint once, as a value that says what to send and how to read the answer.

Performs no I/O of its own: `client` carries a `Call`, sync or async. Rests on the contract (open
points R1..R23) and on the sections of the R7 manual named at each endpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from airflow_provider_r7mail.client.models import (
    Attachment,
    Message,
    MessageFilter,
    NoMessage,
    Page,
)
from airflow_provider_r7mail.exceptions import (
    R7MailActionError,
    R7MailAuthError,
    R7MailConfigError,
    R7MailProxyError,
    R7MailRequestError,
    R7MailResponseError,
    R7MailServerError,
)

T = TypeVar("T")

LOGIN_PATH = "/api/v2/auth/Login"
PROXY_LOGIN = "the proxy asks for a login"
PROXY_LOGIN_HINT = "Set proxy of the connection to http://login:password@proxy.example.org:3128."
LOGIN_HINT = "Check Login and Password of the connection, and that Host is an R7 mail server."
# A proxy that asks for hours is not waited for: the task fails, and Airflow's retry comes.
MAX_RETRY_AFTER_SECONDS = 300.0
# A file's name, encoded: httpx makes no URL of more than 65,536 characters.
MAX_NAME_LENGTH = 65_000


class AnswerError(Exception):
    """Raised by a call's `parse`: the answer is not as agreed. The client adds where and when."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One request to the server, and how to read its answer.

    Its `repr` has neither body nor query string: they hold the password, mail, file names.

    :param method: the HTTP method
    :param path: the endpoint's path
    :param parse: reads the body of a 200; pure; raises AnswerError
    :param body: the JSON body, or None
    :param query: the query string, encoded
    :param repeatable: whether repeating the call does no harm (R23)
    :param authorized: whether the call carries the token
    :param refusals: statuses, besides 401, that mean the login was refused (R14)
    :param not_found: what a 404 means, if not that there is no such call
    """

    method: str
    path: str
    parse: Callable[[bytes], T]
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    query: str = field(default="", repr=False)
    repeatable: bool = True
    authorized: bool = True
    refusals: frozenset[int] = frozenset()
    not_found: str = ""


def log_in(login: str, password: str, *, proven: bool = False) -> Call[str]:
    """Log in (manual, section 1); the answer is the token.

    :param proven: whether the password has worked before. If not, 500 is taken for a refusal
        (R14) and not repeated, which could lock the account.
    """
    return Call(
        method="POST",
        path=LOGIN_PATH,
        body={"Login": login, "Password": password},
        parse=parse_token,
        authorized=False,
        refusals=frozenset() if proven else frozenset({500}),
    )


def list_messages(
    folder: int,
    criteria: MessageFilter,
    *,
    start: datetime | None,
    end: datetime | None,
    offset: int,
    size: int,
    parse: Callable[[bytes], T],
) -> Call[T]:
    """List messages of a folder (manual, section 3), sorted by Date in an order not known (R1).

    :param folder: the folder's id
    :param criteria: what to look for; its window is not used, the bounds are
    :param start: lower bound of Date, None for none (R4: inclusive or exclusive)
    :param end: upper bound of Date, likewise
    :param offset: messages to skip
    :param size: messages wanted; the server may return fewer (R3)
    :param parse: reads the body; `parse_page` gives messages
    """
    return Call(
        method="POST",
        path="/api/v1/email/Messages",
        body={
            "folderId": folder,
            "SearchContext": criteria.search_context(start, end),
            "offset": offset,
            "size": size,
            "sortOrder": 1,
            "orderField": "Date",
        },
        parse=parse,
    )


def send_message(
    *,
    subject: str,
    text: str,
    html: str,
    to: str | Sequence[str],
    cc: str | Sequence[str] = (),
    bcc: str | Sequence[str] = (),
    attachments: Sequence[Attachment] = (),
    draft_id: int = 0,
) -> Call[Message]:
    """Send a message (manual, section 2). Never repeated by itself when unclear (R23).

    :param to: addresses; one may be given as it is (R8), and so in cc and bcc
    :param attachments: files that already are in the server's Storage
    :param draft_id: the id of a draft, 0 for none (R10)
    :return: the message as the server accepted it; that is not delivery (R11)
    """
    return Call(
        method="POST",
        path="/api/v1/email/Send",
        body={
            "Subject": subject,
            "Body": text,
            "HtmlBody": html,
            "To": _addresses(to),
            "Cc": _addresses(cc),
            "Bcc": _addresses(bcc),
            "Attachments": [attachment.to_json() for attachment in attachments],
            "Id": draft_id,
        },
        parse=parse_message,
        repeatable=False,
    )


def mark_as_read(folder: int, ids: Sequence[int], *, read: bool) -> Call[bool]:
    """Mark messages read or unread (manual, section 4)."""
    return _action("MarkAsRead", {"folderId": folder, "Ids": list(ids), "WasRead": read})


def mark_as_important(folder: int, ids: Sequence[int], *, important: bool) -> Call[bool]:
    """Mark messages important or not (manual, section 5: MarkAsFavorite)."""
    return _action(
        "MarkAsFavorite", {"folderId": folder, "Ids": list(ids), "isFavorite": important}
    )


def delete_messages(folder: int, ids: Sequence[int]) -> Call[bool]:
    """Delete messages (manual, section 6.1)."""
    return _action("Delete", {"folderId": folder, "Ids": list(ids)})


def move_messages(folder: int, ids: Sequence[int], to_folder: int) -> Call[bool]:
    """Move messages to another folder (manual, section 6.2)."""
    return _action("MoveMessage", {"fromId": folder, "Ids": list(ids), "toId": to_folder})


def download_attachment(folder: int, message_id: int, file_name: str) -> Call[bytes]:
    """Download a file of a message (manual, section 7.1; `Id`, not `Ids`: R9).

    The name is sent exactly as the server listed it, percent-encoded as UTF-8 (R19).

    :raises R7MailConfigError: the name holds a lone surrogate, which no URL can carry
    :raises R7MailRequestError: the name is too long for a URL
    """
    path = "/api/v1/email/Attachments"
    try:
        name = quote(file_name, safe="")
    except UnicodeEncodeError as error:
        raise R7MailConfigError(
            "The file name holds half of a surrogate pair, which no URL can carry: the API cannot "
            "be asked for this file."
        ) from error
    if len(name) > MAX_NAME_LENGTH:
        raise R7MailRequestError(
            f"the name of a file of message {message_id} is too long to ask for",
            method="GET",
            path=path,
            hint="No URL can carry it: this file can't be had through the API.",
            never_sent=True,
        )
    return Call(
        method="GET",
        path=path,
        query=f"folderId={folder}&Id={message_id}&FileName={name}",
        parse=bytes,
        not_found=f"the server has no such file of message {message_id}",
    )


def _addresses(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _action(name: str, body: Mapping[str, Any]) -> Call[bool]:
    return Call(method="POST", path=f"/api/v1/email/{name}", body=body, parse=parse_true)


def read_json(body: bytes) -> Any:
    """Read a JSON answer.

    :raises AnswerError: not JSON, or a proxy's HTML page with status 200 (R16)
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        if body.lstrip()[:1] == b"<":
            raise AnswerError(
                "an HTML page in place of JSON",
                R7MailProxyError,
                "Check that Host points at an R7 mail server, and see the proxy in front of it.",
            ) from error
        raise AnswerError("the answer is not JSON, or broken off") from error


def parse_token(body: bytes) -> str:
    """Read the login's answer.

    :raises AnswerError: refused, in any of the ways of R14
    """
    answer = read_json(body)
    try:
        data = answer["Response"]["Data"]
        state, token = data.get("State"), data["Tokens"]["AuthToken"]
    except (KeyError, TypeError, AttributeError):
        raise AnswerError(
            "the login was refused: no token in the answer", R7MailAuthError, LOGIN_HINT
        ) from None
    if state not in (None, "Login"):
        raise AnswerError(
            "the login was not completed: State is not Login", R7MailAuthError, LOGIN_HINT
        )
    if not isinstance(token, str) or not token:
        raise AnswerError("the login was refused: an empty token", R7MailAuthError, LOGIN_HINT)
    if not (token.isascii() and token.isprintable()):
        # HTTP libraries quote a header they can't send in their errors.
        raise AnswerError("the login's token is no text that a header can hold")
    return token


def parse_items(body: bytes) -> tuple[list[Any], int | None]:
    """Read an answer of Messages down to its raw items and `Count`.

    :raises AnswerError: not a listing
    """
    answer = read_json(body)
    if not isinstance(answer, dict) or "Items" not in answer:
        raise AnswerError("a listing without Items")
    items = answer["Items"]
    if items is None:
        items = []
    if not isinstance(items, list):
        raise AnswerError("a listing whose Items is no array")
    count = answer.get("Count")
    return items, count if isinstance(count, int) and not isinstance(count, bool) else None


def parse_page(body: bytes) -> Page:
    """Read an answer of Messages.

    :raises AnswerError: not a listing; one message without an Id does not make it none
    """
    items, count = parse_items(body)
    try:
        return Page(rows=tuple(_read_row(item) for item in items), count=count)
    except (KeyError, TypeError, ValueError) as error:
        raise AnswerError("a listing with an item that is no message") from error


def _read_row(item: Any) -> Message | NoMessage:
    try:
        return Message.from_json(item)
    except (KeyError, TypeError, ValueError):
        return NoMessage.from_json(item)


def parse_message(body: bytes) -> Message:
    """Read Send's answer: one message."""
    try:
        return Message.from_json(read_json(body))
    except (KeyError, TypeError, ValueError) as error:
        raise AnswerError("the answer to Send is no message") from error


def parse_true(body: bytes) -> bool:
    """Read an action's answer: anything but `true` is a failure (R15)."""
    if read_json(body) is not True:
        raise AnswerError(
            "the server did not do it: its answer is not true",
            R7MailActionError,
            "Check that all the ids are in the folder. Of several, the server does not say which "
            "ones it has acted on; doing it again does no harm.",
        )
    return True


def is_html(headers: Mapping[str, str]) -> bool:
    """Whether an answer says that it is an HTML page (R16).

    :param headers: the answer's headers, names in any case
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind in {"text/html", "application/xhtml+xml"}


def failure(
    call: Call[Any], status: int, headers: Mapping[str, str], attempt: int
) -> R7MailRequestError | None:
    """Tell what a status other than 200 means; None for 200 (R16).

    :param headers: the answer's headers, names in any case
    """
    if status == 200:
        return None
    retry_after = _retry_after(headers.get("retry-after"), datetime.now(UTC))
    html = is_html(headers)
    error: type[R7MailRequestError] = R7MailServerError
    if status == 401:
        error, reason = R7MailAuthError, "not authorised"
        hint = (
            "Check Login and Password of the connection."
            if not call.authorized
            else "The server refused a token it had just issued; see whether the account may use "
            "the mail module."
        )
    elif status in call.refusals:
        error, reason = R7MailAuthError, "the login was refused, or the server failed"
        hint = "Check Login and Password of the connection; it was tried once only."
    elif status in {429, 502, 503, 504}:
        error = R7MailProxyError
        reason = "too many requests" if status == 429 else "a proxy could not get an answer"
        hint = (
            "Lower max_concurrency in the connection, or ask for a higher limit."
            if status == 429
            else "The mail server behind the proxy is down, restarting or slow; see its log."
        )
    elif status == 407:
        error, reason, hint = R7MailProxyError, PROXY_LOGIN, PROXY_LOGIN_HINT
    elif 300 <= status < 400 or (html and status < 500):
        error, reason = R7MailProxyError, "something in front of the mail server answered"
        hint = "Check Host, Schema, Port and proxy of the connection."
    elif status < 300:
        error, reason = R7MailResponseError, "a status that the API does not have"
        hint = "Check that Host points at an R7 mail server."
    elif status >= 500:
        reason = "the server failed"
        hint = (
            "See the mail server's log at this time. A folder id that it does not know may be "
            "answered like this too."
        )
    elif status in {404, 405}:
        gone = call.not_found if status == 404 else ""
        reason = gone or ("there is no such call" if status == 404 else "the method is not allowed")
        hint = (
            "The message was deleted or moved meanwhile, or has no file of this name."
            if gone
            else "Check that Host points at an R7 mail server."
        )
    elif status == 406:
        reason, hint = "not acceptable", "The server can't give this file in any form."
    else:
        reason, hint = "the server refused the request", "Check the folder, ids and file name."
    if retry_after is not None and retry_after > MAX_RETRY_AFTER_SECONDS:
        hint += f" It asks for {retry_after:.0f} s of rest: it was not tried again."
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
    """Read `Retry-After`, seconds or an HTTP date (RFC 9110, 10.2.3), as seconds from now."""
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
