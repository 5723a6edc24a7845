"""The API's endpoints, each described once: what to send and how to read the response.

Performs no I/O: `client.session` sends a `Call`, sync or async. Each endpoint names its section of
the R7 manual; R1 to R23 are the contract's open points. No Airflow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

from airflow_provider_r7mail.client.dates import lacks_zone
from airflow_provider_r7mail.client.fields import ENVELOPE, Names, restore_names
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

if TYPE_CHECKING:
    from airflow_provider_r7mail.client.upload import Upload

T = TypeVar("T")

LOGIN_PATH = "/api/v2/auth/Login"
MESSAGES_PATH = "/api/v1/email/Messages"
PROXY_LOGIN = "the proxy requires a login"
PROXY_LOGIN_HINT = "Set proxy in the connection to http://login:password@proxy.example.org:3128."
LOGIN_HINT = "Check Login and Password of the connection, and that Host is an R7 mail server."
NO_MAIL = "the account has no access to the Mail module (R41)"
NO_MAIL_HINT = (
    "The login's ModulesAccess doesn't list it. Enable it for the account, or use another account."
)
DRAFTS_ONLY = (
    "If the server sends drafts only (R39), make one in the web client, and pass its id as "
    "draft_id."
)
REFUSED = frozenset({401, 403, 406})
"""Statuses that mean a dead token (R24), or that something is not allowed or not there (R25)."""

MAX_RETRY_AFTER_SECONDS = 300.0
"""If `Retry-After` is longer, the task fails, and Airflow's own retries apply."""

MAX_NAME_LENGTH = 65_000
"""Maximum length of a percent-encoded file name: httpx limits URLs to 65,536 characters."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """A request to the server, and how to read its response.

    The `repr` omits body and query string, which contain passwords, mail and file names.

    :param method: HTTP method
    :param path: path of the endpoint
    :param parse: a pure function that reads the body of a response with status 200; may raise
        AnswerError
    :param body: JSON body, or None
    :param query: encoded query string
    :param repeatable: whether repeating the call is safe (R23)
    :param authorized: whether the call needs the token
    :param refusals: statuses other than 401 that mean the login was refused (R14)
    :param not_found: what a 404 means, if not that the endpoint doesn't exist
    :param tentative: whether an error of the server is an answer, and not retried
    :param refused: what a refusal may mean besides, and what to do
    :param upload: body with a file, in place of `body`
    :param on_disk: whether the server's Disk answers it, which may be at another address
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
    tentative: bool = False
    refused: str = ""
    upload: Upload | None = field(default=None, repr=False)
    on_disk: bool = False

    def explain(self, status: int | None) -> str:
        """Return what to add to a hint about a response of this status."""
        return f" {self.refused}" if self.refused and status in {400, 403, 406, 500} else ""


def log_in(login: str, password: str, *, proven: bool = False) -> Call[str]:
    """Log in (manual, section 1) and return the token.

    :param login: login of the account
    :param password: its password
    :param proven: whether the password has worked before. If not, a 500 counts as a refusal (R14)
        and is not retried, since retries could lock the account.
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
    empty_labels: bool = True,
    tentative: bool = False,
) -> Call[T]:
    """List messages of a folder (manual, section 3), sorted by Date, in unknown direction (R1).

    :param folder: id of the folder
    :param criteria: what to search for; `start` and `end` are used in place of its window
    :param start: lower bound of Date, None for no bound; may be inclusive or exclusive (R4)
    :param end: upper bound of Date, likewise
    :param offset: number of messages to skip
    :param size: number of messages to return; the server may return fewer (R3)
    :param parse: reads the body, for example `parse_page`
    :param empty_labels: whether to send `Labels: []` if there are no labels to search for, as in
        the manual's examples; some servers may take it for "without labels" (R31)
    :param tentative: whether an error of the server is an answer, and not retried
    """
    context = criteria.search_context(start, end)
    if not (empty_labels or criteria.labels):
        del context["Labels"]
    return Call(
        method="POST",
        path=MESSAGES_PATH,
        tentative=tentative,
        body={
            "folderId": folder,
            "SearchContext": context,
            "offset": offset,
            "size": size,
            "sortOrder": 1,
            "orderField": "Date",
        },
        parse=parse,
    )


def glance(call: Call[Any]) -> Call[bytes]:
    """Return the cheapest request that the server must answer if it has answered this listing."""
    body = None if call.body is None else {**call.body, "offset": 0, "size": 1}
    return replace(call, body=body, parse=bytes)


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
    """Send a message (manual, section 2). Not retried if the outcome is unclear (R23).

    :param subject: subject
    :param text: plain text body
    :param html: HTML body
    :param to: an address or a list of addresses (R8), as are `cc` and `bcc`
    :param attachments: files that are already in the server's Storage
    :param draft_id: id of a draft, 0 for none (R10)
    :return: the message as the server accepted it; that doesn't mean it is delivered (R11)
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
        refused="" if draft_id else DRAFTS_ONLY,
    )


def mark_as_read(folder: int, ids: Sequence[int], *, read: bool) -> Call[bool]:
    """Mark messages as read or unread (manual, section 4)."""
    return _action("MarkAsRead", {"folderId": folder, "Ids": list(ids), "WasRead": read})


def mark_as_important(folder: int, ids: Sequence[int], *, important: bool) -> Call[bool]:
    """Mark messages as important or not (manual, section 5: MarkAsFavorite)."""
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
    """Download an attachment of a message (manual, section 7.1; `Id`, not `Ids`: R9).

    :param folder: id of the folder
    :param message_id: the server's id of the message
    :param file_name: name exactly as the server lists it; sent percent-encoded as UTF-8 (R19)
    :raises R7MailConfigError: the name contains a lone surrogate, which can't be in a URL
    :raises R7MailRequestError: the name is too long for a URL
    """
    path = "/api/v1/email/Attachments"
    try:
        name = quote(file_name, safe="")
    except UnicodeEncodeError as error:
        raise R7MailConfigError(
            "The file name contains half of a surrogate pair, which can't be in a URL: this file "
            "can't be downloaded through the API. Open the message in the web client."
        ) from error
    if not name:
        raise R7MailConfigError(
            "file_name: empty. The API knows files by their names only: one without a name can't "
            "be downloaded (R38). Open the message in the web client."
        )
    if len(name) > MAX_NAME_LENGTH:
        raise R7MailRequestError(
            f"the name of a file of message {message_id} is too long for a URL",
            method="GET",
            path=path,
            hint="This file can't be downloaded through the API.",
            never_sent=True,
        )
    return Call(
        method="GET",
        path=path,
        query=f"folderId={folder}&Id={message_id}&FileName={name}",
        parse=bytes,
        not_found=f"message {message_id} has no such file",
    )


def _addresses(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _action(name: str, body: Mapping[str, Any]) -> Call[bool]:
    return Call(method="POST", path=f"/api/v1/email/{name}", body=body, parse=parse_true)


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
    """Return what the body of an error says, empty for nothing (F4). It may contain names."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    message = _ERROR.restore(answer).get("ErrorMessage") if isinstance(answer, dict) else None
    return " ".join(message.split())[:500] if isinstance(message, str) else ""


_LISTING = Names(*ENVELOPE)
_LOGIN = Names("Response", "Data", "Tokens", "AuthToken", "ExpiredAt", "State", "ModulesAccess")
_ERROR = Names("ErrorMessage")


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
    answer = dict(_LISTING.restore(answer))
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
