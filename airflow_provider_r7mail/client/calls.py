"""The API's endpoints, each described once: what to send and how to read the response.

Performs no I/O: `client.session` sends a `Call`, sync or async. Each endpoint names its section of
the R7 manual; R1 to R23 are the contract's open points. No Airflow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

from airflow_provider_r7mail.client.answers import parse_message, parse_token, parse_true
from airflow_provider_r7mail.client.models import Attachment, Message, MessageFilter
from airflow_provider_r7mail.exceptions import R7MailConfigError, R7MailRequestError

if TYPE_CHECKING:
    from airflow_provider_r7mail.client.upload import Upload

T = TypeVar("T")

LOGIN_PATH = "/api/v2/auth/Login"
MESSAGES_PATH = "/api/v1/email/Messages"
DRAFTS_ONLY = (
    "If the server sends drafts only (R39), make one in the web client, and pass its id as "
    "draft_id."
)
MAX_NAME_LENGTH = 65_000
"""Maximum length of a percent-encoded file name: httpx limits URLs to 65,536 characters."""


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
