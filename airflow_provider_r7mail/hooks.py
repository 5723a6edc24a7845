"""Airflow's connection turned into a client, and the mail server's actions as methods.

Everything else that faces Airflow goes through `R7MailHook`.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from email.utils import getaddresses
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict, Unpack
from urllib.parse import quote, quote_plus, unquote, urlsplit

from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

from airflow_provider_r7mail import api, get_provider_info
from airflow_provider_r7mail.assets import mailbox_uri
from airflow_provider_r7mail.client import AsyncClient, Client, ClientConfig
from airflow_provider_r7mail.compat import (
    AIRFLOW,
    AirflowFailException,
    AirflowNotFoundException,
    BaseHook,
    amask_secret,
    get_async_connection,
    mask_secret,
)
from airflow_provider_r7mail.exceptions import (
    R7MailActionError,
    R7MailAuthError,
    R7MailConfigError,
    R7MailError,
    R7MailMessageNotFoundError,
    R7MailRequestError,
    R7MailSendUnclearError,
    R7MailSendUnsettledError,
    R7MailServerError,
    R7MailTimeoutError,
)
from airflow_provider_r7mail.extract import iter_messages
from airflow_provider_r7mail.models import Attachment, Message, MessageFilter, mend_text, parse_ids
from airflow_provider_r7mail.plain_text import plain_text
from airflow_provider_r7mail.sending import (
    SETTLE_SECONDS,
    Link,
    Sending,
    add_links,
    asend_once,
    import_pandas,
    send_once,
)

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from upath import UPath

    from airflow_provider_r7mail.attachments import StoredFile
    from airflow_provider_r7mail.compat import Connection

BATCH_SIZE = 500
"""Ids in one MarkAsRead, MarkAsFavorite, Delete or MoveMessage."""

PROGRESS_SECONDS = 5.0
LINK_SECONDS = 7 * 24 * 3600
"""How long the links in a message work, where the store can sign them: S3's longest."""

TEST_SECONDS = 4.5
"""The most that `test_connection` takes."""
TEST_STEP_SECONDS = 3.0
"""The most that one step of it waits: an error that names the step comes first."""

UNMENDABLE = (
    R7MailConfigError,
    R7MailAuthError,
    R7MailSendUnclearError,
    R7MailMessageNotFoundError,
)
"""Errors that a later try of the task meets again, or must not try: it fails at once."""


class Filters(TypedDict, total=False):
    """The filters that everything which reads a folder takes; see `MessageFilter.build`."""

    query: str | None
    body: str | None
    sender: str | None
    recipient: str | None
    subject: str | None
    labels: Iterable[int | str] | str | None
    was_read: bool | str | None
    start: datetime | str | None
    end: datetime | str | None


FILTER_FIELDS: tuple[str, ...] = ("folder", *Filters.__annotations__)
"""The names of a folder and its filters, for `template_fields`."""


class Accepted(TypedDict):
    """What is known of a sent message: the server's id, and that it was accepted (R11)."""

    id: int | None
    accepted: bool


@contextmanager
def fail_at_once() -> Iterator[None]:
    """Fail the task without further tries for errors that trying again can't mend.

    Also a decorator: `@fail_at_once()`.

    :raises AirflowFailException: in place of an error in `UNMENDABLE`, with its message
    """
    try:
        yield
    except R7MailSendUnsettledError:
        raise  # a later try looks first
    except UNMENDABLE as error:
        raise AirflowFailException(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a connection says.

    :param client: how to reach the server
    :param folders: ids of folders by name
    :param web_url: a folder's page in the web client, with `{folder}` for the folder's id; None
        if the connection has none
    :param privacy_secret: the key for hashing what a table must not show; None likewise
    :param conn_id: the connection's id, for errors
    """

    client: ClientConfig
    folders: Mapping[str, int] = field(default_factory=dict)
    web_url: str | None = None
    privacy_secret: str | None = field(default=None, repr=False)
    conn_id: str

    def folder_url(self, folder: int) -> str | None:
        """Where the web client shows a folder, for links from Airflow's pages; None if unknown.

        :param folder: the folder's id
        """
        return self.web_url and self.web_url.replace("{folder}", str(folder))

    def folder_uri(self, folder: int) -> str:
        """Name a folder as an asset: `r7mail://login@host/folder`, as in lineage.

        :param folder: the folder's id
        """
        return mailbox_uri(self.client.url, self.client.login, folder)

    def resolve_folder(self, folder: int | str, name: str = "folder") -> int:
        """Tell a folder's id.

        :param folder: an id (24 or "24"), or a name from the connection's `folders`
        :param name: the parameter's name, for the error
        :raises R7MailConfigError: neither an id nor a known name
        """
        number = _folder_id(folder)
        if number is not None:
            return number
        if isinstance(folder, str) and folder in self.folders:
            return self.folders[folder]
        known = ", ".join(map(repr, self.folders)) or "none"
        raise R7MailConfigError(
            f"{name}: there is no folder {folder!r} in `folders` of connection {self.conn_id!r}; "
            f"known are: {known}. Give one of these, or the folder's id, a whole number."
        )


def _folder_id(folder: object) -> int | None:
    if isinstance(folder, int) and not isinstance(folder, bool):
        return folder
    if isinstance(folder, str) and re.fullmatch(r"\s*-?[0-9]+\s*", folder):
        return int(folder)
    return None


class _Fields:
    """The fields of one connection, read with errors that name connection and field."""

    def __init__(self, conn_id: str, extra: Mapping[str, Any]) -> None:
        self.conn_id = conn_id
        # Airflow 3.3's form saves null, and text fields may be left empty: both mean "not set".
        self.extra = {name: value for name, value in extra.items() if value not in (None, "")}

    def wrong(self, name: str, what: str) -> R7MailConfigError:
        return R7MailConfigError(f"Connection {self.conn_id!r}: {name}: {what}")

    def number(self, name: str, minimum: float, default: float, *, whole: bool = False) -> float:
        value = self.extra.get(name, default)
        kind = "a whole number" if whole else "a number"
        try:
            if isinstance(value, bool) or not isinstance(value, (int, float, str)):
                raise ValueError  # noqa: TRY004
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or (whole and not number.is_integer()) or number < minimum:
            raise self.wrong(name, f"got {value!r}. Give {kind}, {minimum:g} or more.")
        return number

    def text(self, name: str, example: str) -> str | None:
        value = self.extra.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, f"got {type(value).__name__}. Give text: {example}.")
        return value

    def verify(self) -> bool | str:
        value = self.extra.get("verify", True)
        if isinstance(value, bool):
            return value
        if not isinstance(value, str):
            raise self.wrong("verify", f"got {value!r}. Give true, false or a CA bundle's path.")
        return {"true": True, "false": False}.get(value.strip().lower(), value)

    def cert(self) -> str | tuple[str, str] | None:
        value = self.extra.get("cert")
        if value is None:
            return None
        value = _parsed(value)
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)) or not all(
            isinstance(part, str) and part.strip() for part in parts
        ):
            parts = ()
        match [part.strip() for part in parts]:
            case [one]:
                return str(one)
            case [cert, key]:
                return cert, key
        raise self.wrong(
            "cert",
            "expected the path of a PEM file with certificate and key, or the two paths as "
            '"cert,key" or ["cert", "key"].',
        )

    def proxy(self) -> str | None:
        value = self.text("proxy", "http://proxy.example.org:3128")
        if value is None:
            return None
        try:
            parts = urlsplit(value.strip())
            right = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            right = False
        if not right:
            # The value is not shown: it may hold a password.
            raise self.wrong("proxy", "not an HTTP URL. Give http://proxy.example.org:3128.")
        return value.strip()

    def web_url(self) -> str | None:
        value = self.text("web_url", "https://mail.example.org/mail/{folder}")
        if value is None:
            return None
        try:
            parts = urlsplit(value.strip())
            right = parts.scheme in {"http", "https"} and parts.hostname and "@" not in parts.netloc
        except ValueError:
            right = False
        # It becomes a link in Airflow's pages: nothing but a web page, and no password in it.
        if not right or re.search(r"[\s\x00-\x1f\x7f]", value.strip()):
            raise self.wrong(
                "web_url", "not a web page's URL. Give https://mail.example.org/mail/{folder}."
            )
        return value.strip()

    def folders(self) -> dict[str, int]:
        value = _parsed(self.extra.get("folders", {}))
        example = 'Give an object of names and ids, like {"inbox": 24, "processed": 15}.'
        if not isinstance(value, Mapping):
            raise self.wrong("folders", f"not an object. {example}")
        folders: dict[str, int] = {}
        for name, raw in value.items():
            number = _folder_id(raw)
            if number is None:
                raise self.wrong("folders", f"{name!r} is {raw!r}, not a whole number. {example}")
            if _folder_id(name) is not None:
                raise self.wrong("folders", f"the name {name!r} would be taken for an id.")
            folders[name] = number
        return folders


def _parsed(value: Any) -> Any:
    """A field's value that is no text, from its text: as JSON, or as Airflow 2's form shows it."""
    if not isinstance(value, str):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return value


def config_from_connection(connection: Connection) -> Settings:
    """Read an Airflow connection of type `r7mail`. Pure: no I/O.

    :param connection: the connection; its Extra is read from the JSON text
    :raises R7MailConfigError: a field is missing or wrong; names it, what is wrong, what to give
    """
    conn_id = connection.conn_id or ""
    try:
        extra = json.loads(connection.extra) if connection.extra else {}
    except ValueError:
        extra = None
    if extra is None or not isinstance(extra, Mapping):
        raise R7MailConfigError(
            f'Connection {conn_id!r}: extra: not a JSON object. Give one, like {{"timeout": 30}}.'
        )
    source = _Fields(conn_id, extra)
    if not connection.login:
        raise source.wrong("login", "missing. Give the mail account's login.")
    if not connection.password:
        raise source.wrong("password", "missing. Give the mail account's password.")
    defaults = {item.name: item.default for item in fields(ClientConfig)}

    def number(name: str, minimum: float, *, whole: bool = False) -> float:
        return source.number(name, minimum, defaults[name], whole=whole)  # type: ignore[arg-type]

    return Settings(
        conn_id=conn_id,
        folders=source.folders(),
        web_url=source.web_url(),
        privacy_secret=source.text("privacy_secret", "a long random text"),
        client=ClientConfig(
            url=_base_url(source, connection.host, connection.schema, connection.port),
            login=connection.login,
            password=connection.password,
            verify=source.verify(),
            cert=source.cert(),
            proxy=source.proxy(),
            timeout=number("timeout", 0.1),
            max_concurrency=int(number("max_concurrency", 1, whole=True)),
            max_retries=int(number("max_retries", 0, whole=True)),
        ),
    )


def _base_url(source: _Fields, host: str | None, schema: str | None, port: int | None) -> str:
    """The server's URL. What a full URL in Host says goes before Schema and Port."""
    text = (host or "").strip()
    if not text:
        raise source.wrong("host", "missing. Give the mail server's name, like mail.example.org.")
    if "://" not in text:
        scheme = (schema or "").strip().lower() or "https"
        if scheme not in {"http", "https"}:
            raise source.wrong("schema", f"got {schema!r}. Give https or http.")
        if text.count(":") > 1 and not text.startswith("["):
            text = f"[{text}]"  # IPv6
        text = f"{scheme}://{text}"
    wrong = source.wrong(
        "host", "not a host or URL. Give mail.example.org or https://mail.example.org:8443/path."
    )
    try:
        parts = urlsplit(text)
        name, its_port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if parts.username is not None or parts.password is not None:
        raise source.wrong("host", "holds a login. Give it in Login and Password instead.")
    if parts.scheme not in {"http", "https"} or parts.query or parts.fragment:
        raise wrong
    if not name or re.search(r"[\s\x00-\x1f\x7f%<>\"'\\^`{|}]", name):
        raise wrong
    if ":" in name:
        name = f"[{name}]"
    # Airflow 3.3's form posts port 0 for none.
    number = its_port or port
    authority = f"{name}:{number}" if number else name
    return f"{parts.scheme}://{authority}{parts.path.rstrip('/')}"


def _secrets(secret: str | None, user: str | None = None) -> set[str]:
    """A secret in the forms it takes in URLs, JSON and headers.

    :param user: whose it is, in an HTTP header of type Basic
    """
    if not secret:
        return set()
    plain = secret.encode(errors="replace")
    encoded = {plain} if user is None else {plain, f"{user}:{secret}".encode(errors="replace")}
    return {
        secret,
        quote(plain, safe=""),
        quote(plain),
        quote_plus(plain),
        json.dumps(secret)[1:-1],
        repr(plain)[2:-1],
        *(base64.b64encode(item).decode().rstrip("=") for item in encoded),
        *(base64.urlsafe_b64encode(item).decode().rstrip("=") for item in encoded),
    }


def _secrets_of(settings: Settings) -> set[str]:
    config = settings.client
    proxy = urlsplit(config.proxy or "")
    user = unquote(proxy.username or "")
    return (
        _secrets(config.password, config.login)
        | _secrets(settings.privacy_secret)
        | _secrets(proxy.password)
        | _secrets(unquote(proxy.password or ""), user)
    )


def _mask(secrets: Iterable[str]) -> None:
    for secret in secrets:
        mask_secret(secret)


async def _amask(secrets: Iterable[str]) -> None:
    for secret in secrets:
        await amask_secret(secret)


class R7MailHook(BaseHook):
    """Reads and acts on an R7-Office mailbox, through its REST API.

    Each method opens one session of the server (one log-in), and closes it. For several calls
    in one session use `get_conn`.

    :param r7mail_conn_id: the Airflow connection, of type `r7mail`
    """

    conn_name_attr = "r7mail_conn_id"
    default_conn_name = "r7mail_default"
    conn_type = "r7mail"
    hook_name = "R7-Office Mail"

    def __init__(self, r7mail_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.r7mail_conn_id = r7mail_conn_id

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Fields of the connection's form, for Airflow before 3.2 (later: `conn-fields`)."""
        # Only the web server has these; those of Airflow 3.0 and 3.1 put their own in their place.
        from flask_appbuilder import fieldwidgets  # noqa: PLC0415
        from wtforms import PasswordField, StringField  # noqa: PLC0415

        hidden = fieldwidgets.BS3PasswordFieldWidget()
        # Hidden on the screen only: what the form does not hold is lost when it is saved. Not by
        # the constructor, which takes nothing there.
        hidden.hide_value = False
        kinds = {
            "password": (PasswordField, hidden),
            None: (StringField, fieldwidgets.BS3TextFieldWidget()),
        }
        widgets = {}
        for name, described in _form()["conn-fields"].items():
            kind, widget = kinds[described["schema"].get("format")]
            widgets[name] = kind(
                described["label"], description=described["description"], widget=widget
            )
        return widgets

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Labels of the connection's form, for Airflow before 3.2."""
        return {
            name.replace("-", "_"): value for name, value in _form()["ui-field-behaviour"].items()
        }

    @cached_property
    def settings(self) -> Settings:
        """What the connection says; its secrets are masked in logs from now on.

        :raises R7MailConfigError: there is no such connection, or a field is missing or wrong
        """
        try:
            connection = self.get_connection(self.r7mail_conn_id)
        except AirflowNotFoundException as error:
            raise self._no_connection() from error
        settings = config_from_connection(connection)
        _mask(_secrets_of(settings))
        return settings

    async def _asettings(self) -> Settings:
        if "settings" not in self.__dict__:
            try:
                connection = await get_async_connection(self, self.r7mail_conn_id)
            except AirflowNotFoundException as error:
                raise self._no_connection() from error
            settings = config_from_connection(connection)
            await _amask(_secrets_of(settings))
            self.__dict__["settings"] = settings  # where cached_property keeps it
        return self.settings

    def _no_connection(self) -> R7MailConfigError:
        return R7MailConfigError(
            f"There is no Airflow connection {self.r7mail_conn_id!r}. Add one of type "
            f"{self.conn_type!r} with Host, Login and Password, or give another r7mail_conn_id."
        )

    def get_conn(self) -> Client:
        """Make a client, to be used as a context manager: `with hook.get_conn() as client:`.

        :raises R7MailConfigError: there is no such connection, or a field is missing or wrong
        """
        return Client(self.settings.client, on_token=lambda token: _mask(_secrets(token)))

    async def aget_conn(self) -> AsyncClient:
        """Make an async client: `async with await hook.aget_conn() as client:`.

        :raises R7MailConfigError: there is no such connection, or a field is missing or wrong
        """
        settings = await self._asettings()
        return AsyncClient(settings.client, on_token=lambda token: _amask(_secrets(token)))

    def resolve_folder(self, folder: int | str, name: str = "folder") -> int:
        """Tell a folder's id.

        :param folder: an id (24 or "24"), or a name from the connection's `folders`
        :param name: the parameter's name, for the error
        :raises R7MailConfigError: neither an id nor a known name; the error lists the known ones
        """
        number = _folder_id(folder)
        return self.settings.resolve_folder(folder, name) if number is None else number

    def test_connection(self) -> tuple[bool, str]:
        """Log in and read one message of the first of `folders`: Airflow's Test button.

        Tries once, and answers within 5 seconds whatever the server does.

        :return: whether it worked, and in words what did or did not
        """
        try:
            settings = self.settings
        except R7MailConfigError as error:
            return False, str(error)
        trial = _Trial(settings)
        result: Future[tuple[bool, str]] = Future()

        def work() -> None:
            try:
                result.set_result(trial.run())
            except BaseException as error:
                result.set_exception(error)

        # A name server that is silent, and an answer that comes in drops, end by no time-out of
        # the HTTP library: they are left behind.
        threading.Thread(target=work, daemon=True).start()
        try:
            return result.result(TEST_SECONDS)
        except TimeoutError:
            return False, trial.failed(
                f"no whole answer in {TEST_SECONDS:g} seconds",
                "Check Host, Port, Schema and proxy of the connection, and the name servers.",
            )

    def send_message(
        self,
        to: str | Iterable[str],
        subject: str,
        html_content: str,
        *,
        text_content: str | None = None,
        cc: str | Iterable[str] | None = None,
        bcc: str | Iterable[str] | None = None,
        attachments: Iterable[Attachment | Mapping[str, Any]] | None = None,
        draft_id: int | str = 0,
        links: Iterable[Any] | None = None,
        link_seconds: int = LINK_SECONDS,
        sent_folder: int | str | None = None,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> Accepted:
        """Send a message, once: it is never repeated where that might send it twice (R23).

        With `sent_folder`, an unclear outcome is settled by looking there. What this method can't
        know is what earlier tries of a task did: there, use `R7MailSendOperator`.

        :param to: addresses, as text with commas or a list; `Name <name@example.org>` is taken
        :param subject: the subject, one line
        :param html_content: the body in HTML
        :param text_content: the plain body; made from the HTML if None
        :param cc: addresses, likewise
        :param bcc: addresses, likewise
        :param attachments: files in the server's Storage, as
            `{"Id", "FileId", "FileName", "Size", "MimeType"}`
        :param draft_id: id of a draft that this message is made of; 0 for none (R10)
        :param links: links to put at the end; see `resolve_links`
        :param link_seconds: how long they work, where the store can sign them
        :param sent_folder: the Sent folder's id or name, None if it is not known
        :param settle_seconds: how long a message may take to appear there
        :return: the server's id, and `accepted`: taken by the server, not yet delivered (R11)
        :raises R7MailConfigError: a parameter is wrong; nothing was sent
        :raises R7MailSendUnclearError: it is unclear whether it was sent
        :raises R7MailRequestError: it was not sent
        """
        call = self.message_call(
            to,
            subject,
            html_content,
            text_content=text_content,
            cc=cc,
            bcc=bcc,
            attachments=attachments,
            draft_id=draft_id,
            links=resolve_links(links, link_seconds),
        )
        where = read_sent_folder(self.settings, sent_folder, settle_seconds)
        with self.get_conn() as client:
            sent = send_once(client, Sending.of(call, None, *where))
        return {"id": sent.id, "accepted": True}

    async def asend_message(
        self,
        to: str | Iterable[str],
        subject: str,
        html_content: str,
        *,
        text_content: str | None = None,
        cc: str | Iterable[str] | None = None,
        bcc: str | Iterable[str] | None = None,
        sent_folder: int | str | None = None,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> Accepted:
        """Send a message, once, on an event loop; see `send_message`."""
        # To make the text of a long report takes its time: not on a triggerer's event loop.
        call = await asyncio.to_thread(
            self.message_call, to, subject, html_content, text_content=text_content, cc=cc, bcc=bcc
        )
        where = read_sent_folder(await self._asettings(), sent_folder, settle_seconds)
        async with await self.aget_conn() as client:
            sent = await asend_once(client, Sending.of(call, None, *where))
        return {"id": sent.id, "accepted": True}

    @staticmethod
    def message_call(
        to: str | Iterable[str],
        subject: str,
        html_content: str,
        *,
        text_content: str | None = None,
        cc: str | Iterable[str] | None = None,
        bcc: str | Iterable[str] | None = None,
        attachments: Iterable[Attachment | Mapping[str, Any]] | None = None,
        draft_id: int | str = 0,
        links: Sequence[Link] = (),
    ) -> api.Call[Message]:
        """Check a message, and make the call that sends it. No I/O; see `send_message`.

        :param links: links to put at the end, resolved
        :raises R7MailConfigError: a parameter is wrong
        """
        recipients = parse_addresses(to, "to")
        if not recipients:
            raise R7MailConfigError("to: no address. Give one, several with commas, or a list.")
        if not isinstance(subject, str) or _LINE_BREAK.search(subject):
            raise R7MailConfigError("subject: expected one line of text, without line breaks.")
        if not isinstance(html_content, str):
            raise R7MailConfigError(
                f"html_content: expected text, got {type(html_content).__name__}."
            )
        number = _folder_id(draft_id)
        if number is None or number < 0:
            raise R7MailConfigError("draft_id: expected a draft's id, or 0 for none.")
        if attachments is not None and isinstance(attachments, (str, bytes, Mapping)):
            attachments = [attachments]
        text = plain_text(html_content) if text_content is None else text_content
        html, text = add_links(html_content, text, links)
        return api.send_message(
            subject=subject,
            text=text,
            html=html,
            to=recipients,
            cc=parse_addresses(cc, "cc"),
            bcc=parse_addresses(bcc, "bcc"),
            attachments=[
                Attachment.for_send(item, position)
                for position, item in enumerate(attachments or ())
            ],
            draft_id=number,
        )

    def iter_messages(
        self, folder: int | str, *, page_size: int = 100, **filters: Unpack[Filters]
    ) -> Iterator[Message]:
        """Read a folder's messages, each once, however many there are.

        :param folder: the folder's id, or its name in the connection's `folders`
        :param page_size: messages asked for in one request
        :param filters: `query`, `body`, `sender`, `recipient`, `subject`, `labels`, `was_read`,
            `start`, `end`
        :return: the messages, while they are read; the session ends with the iterator
        :raises R7MailConfigError: the folder or a filter is wrong
        :raises R7MailRequestError: the server failed, or could not be reached
        """
        number = self.resolve_folder(folder)
        criteria = MessageFilter.build(**filters)
        client = self.get_conn()

        def read() -> Iterator[Message]:
            with client:
                self._report_input(number)
                yield from iter_messages(client, number, criteria, page_size=page_size)

        return read()

    def get_messages_df(self, folder: int | str, **filters: Unpack[Filters]) -> pd.DataFrame:
        """Read a folder's messages into a pandas DataFrame.

        :param folder: the folder's id, or its name in the connection's `folders`
        :param filters: as in `iter_messages`
        :return: a row a message; the columns are named as in the `messages` table
        :raises R7MailConfigError: the folder or a filter is wrong, or pandas is not installed
        :raises R7MailRequestError: the server failed, or could not be reached
        """
        pandas = import_pandas("get_messages_df")
        names = [item.name for item in fields(Message)]
        messages = self.iter_messages(folder, **filters)
        rows = [_row(message, names) for message in messages]
        frame: pd.DataFrame = pandas.DataFrame(rows, columns=names)
        return frame.rename(columns={"id": "message_id"})

    def mark_as_read(
        self,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        read: bool = True,
    ) -> int:
        """Mark messages read or unread.

        :param folder: the folder's id, or its name in the connection's `folders`
        :param message_ids: the messages' ids: a list, or its JSON text
        :param read: False marks them unread
        :return: how many messages
        :raises R7MailConfigError: the folder or an id is wrong
        :raises R7MailActionError: the server did not do it (R15)
        :raises R7MailRequestError: the server failed, or could not be reached
        """
        return self._act(
            folder,
            message_ids,
            lambda number, ids: api.mark_as_read(number, ids, read=read),
        )

    def mark_as_important(
        self,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        important: bool = True,
    ) -> int:
        """Mark messages important or not.

        :param important: False takes the mark away; the rest, the result and the errors are as
            in `mark_as_read`
        """
        return self._act(
            folder,
            message_ids,
            lambda number, ids: api.mark_as_important(number, ids, important=important),
        )

    def move_messages(
        self,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        to_folder: int | str,
        *,
        tried_before: bool = False,
    ) -> int:
        """Move messages to another folder.

        Where the server refuses a call that had been made before, which may be because it had
        worked, the folder is listed: it is done if none of the messages is left in it (R23).

        :param to_folder: the target's id or name; the rest and the errors are as in
            `mark_as_read`
        :param tried_before: the messages may have been moved before, by an earlier try
        :return: how many messages
        """
        target: list[int] = []  # looked up only if there is something to move

        def call(number: int, ids: Sequence[int]) -> api.Call[bool]:
            if not target:
                target.append(self.resolve_folder(to_folder, "to_folder"))
            return api.move_messages(number, ids, target[0])

        return self._act(folder, message_ids, call, takes_away=True, tried_before=tried_before)

    def delete_messages(
        self,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        *,
        tried_before: bool = False,
    ) -> int:
        """Delete messages. A call made before is checked as in `move_messages`.

        :param tried_before: the messages may have been deleted before, by an earlier try; the
            rest, the result and the errors are as in `mark_as_read`
        """
        return self._act(
            folder,
            message_ids,
            api.delete_messages,
            takes_away=True,
            tried_before=tried_before,
        )

    def download_attachment(
        self,
        folder: int | str,
        message_id: int,
        file_name: str,
        destination: UPath | Path | str,
    ) -> StoredFile:
        """Download a file of a message, streamed in bounded memory.

        :param folder: the folder's id, or its name in the connection's `folders`
        :param message_id: the message's id
        :param file_name: the file's name, exactly as it is listed
        :param destination: the file's path: a local one, a URL that fsspec knows, or an
            `ObjectStoragePath`; the file is there only when it is whole (R22)
        :return: what was stored
        :raises R7MailConfigError: the folder is wrong
        :raises R7MailRequestError: the server failed, has no such file, or broke off
        """
        # Few hooks download: the storage layers are not for every DAG file to load.
        from airflow_provider_r7mail.attachments import download  # noqa: PLC0415
        from airflow_provider_r7mail.compat import ObjectStoragePath  # noqa: PLC0415
        from airflow_provider_r7mail.lineage import storage_uri  # noqa: PLC0415

        number = self.resolve_folder(folder)
        # A string or a plain Path may be anything that fsspec knows, or a local file.
        target: Any = (
            destination if hasattr(destination, "fs") else ObjectStoragePath(str(destination))
        )
        with self.get_conn() as client:
            stored = download(client, number, message_id, file_name, target)
        self._report_input(number)
        get_hook_lineage_collector().add_output_asset(context=self, uri=storage_uri(target))
        return stored

    def _report_input(self, folder: int) -> None:
        """Tell Airflow's hook lineage that a folder was read."""
        if AIRFLOW >= (3, 0):  # Airflow 2 takes the login out of the URI, and warns
            uri = self.settings.folder_uri(folder)
            get_hook_lineage_collector().add_input_asset(context=self, uri=uri)

    def _act(
        self,
        folder: int | str,
        message_ids: Iterable[int | str] | str,
        call: Callable[[int, Sequence[int]], api.Call[bool]],
        *,
        takes_away: bool = False,
        tried_before: bool = False,
    ) -> int:
        ids = parse_ids(message_ids, "message_ids")
        if not ids:
            return 0
        number = self.resolve_folder(folder)
        batches = [ids[start : start + BATCH_SIZE] for start in range(0, len(ids), BATCH_SIZE)]
        calls = [call(number, batch) for batch in batches]  # wrong parameters fail before a login
        progress = Progress(self.log.info, len(ids))
        with self.get_conn() as client:
            for place, batch in enumerate(batches):
                try:
                    client.send(calls[place])
                except (R7MailActionError, R7MailServerError) as error:
                    if not (
                        takes_away
                        and (tried_before or error.attempt > 1)
                        and _refused(error)
                        and _all_gone(client, number, batch)
                    ):
                        raise _in_batch(error, place, len(batches), progress.done) from error
                    self.log.warning(
                        "The server refused a repeated call; none of its %d messages is left in "
                        "folder %d, so an earlier attempt had worked.",
                        len(batch),
                        number,
                    )
                except R7MailRequestError as error:
                    raise _in_batch(error, place, len(batches), progress.done) from error
                progress.add(len(batch))
        return len(ids)


class Progress:
    """Logs how far long work has got, every few seconds at most, as numbers only."""

    def __init__(self, say: Callable[..., None], total: int) -> None:
        self._say = say
        self._total = total
        self._last = time.monotonic()
        self.done = 0

    def add(self, count: int = 1) -> None:
        """Count messages that are done."""
        self.done += count
        now = time.monotonic()
        if now - self._last >= PROGRESS_SECONDS and self.done < self._total:
            self._last = now
            self._say("%d of %d messages done.", self.done, self._total)


class _Trial:
    """One attempt to log in and to read, told in words."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        config = settings.client
        self._config = replace(
            config,
            max_retries=0,
            timeout=min(config.timeout, TEST_STEP_SECONDS),
            connect_timeout=min(config.connect_timeout, TEST_STEP_SECONDS),
        )
        self._folder = next(iter(settings.folders.items()), None)
        self._logged_in = False

    def run(self) -> tuple[bool, str]:
        """Do it: whether it worked, and what did or did not."""
        try:
            with Client(self._config, on_token=self._take) as client:
                if self._folder is None:
                    client.send(api.log_in(self._config.login, self._config.password))
                    return True, "Logged in. No folder was read: `folders` has none."
                page = client.send(
                    api.list_messages(
                        self._folder[1],
                        MessageFilter(),
                        start=None,
                        end=None,
                        offset=0,
                        size=1,
                        parse=api.parse_page,
                    )
                )
        except R7MailTimeoutError as error:
            return False, self.failed(
                f"{error.reason} ({TEST_STEP_SECONDS:g} s)",
                "Check Host, Port, Schema and proxy of the connection. DAGs wait longer: a server "
                "that is only slow may do for them.",
            )
        except R7MailRequestError as error:
            status = "" if error.status is None else f" (status {error.status})"
            return False, self.failed(f"{error.reason}{status}", error.hint)
        except R7MailError as error:
            return False, str(error)
        empty = "" if page.rows else " It has no messages: check its id if it should have."
        return True, f"Logged in, and read {self._name()}.{empty}"

    def failed(self, reason: str, hint: str) -> str:
        """Say what failed, where, and what to do."""
        proxy = self._config.effective_proxy()
        where = f"{self._config.url} through the proxy {proxy.url}" if proxy else self._config.url
        step = f"logged in, but {self._name()} was not read" if self._logged_in else "no log-in"
        return f"{where}: {step}: {reason}. {hint}".strip()

    def _take(self, token: str) -> None:
        self._logged_in = True
        _mask(_secrets(token))

    def _name(self) -> str:
        return "folder {!r} ({})".format(*self._folder) if self._folder else "nothing"


def _form() -> dict[str, Any]:
    form: dict[str, Any] = get_provider_info()["connection-types"][0]
    return form


def _refused(error: R7MailRequestError) -> bool:
    return isinstance(error, R7MailActionError) or error.status == 500


def _all_gone(client: Client, folder: int, ids: Sequence[int]) -> bool:
    wanted = set(ids)
    return not any(
        message.id in wanted for message in iter_messages(client, folder, MessageFilter())
    )


def _in_batch(error: R7MailRequestError, place: int, total: int, done: int) -> R7MailRequestError:
    if total == 1:
        return error
    return error.but(
        reason=f"{error.reason}; in batch {place + 1} of {total}, after {done} messages were done"
    )


def _mended(value: Any) -> Any:
    """A value with text that pandas can hold (R21)."""
    if isinstance(value, str):
        return mend_text(value)
    if isinstance(value, Mapping):
        return {_mended(name): _mended(item) for name, item in value.items()}
    return [_mended(item) for item in value] if isinstance(value, list | tuple) else value


def _row(message: Message, names: Sequence[str]) -> dict[str, Any]:
    row = {name: _mended(getattr(message, name)) for name in names}
    if message.attachments is not None:
        row["attachments"] = [
            {
                "attachment_id" if name == "id" else name: value
                for name, value in _mended(asdict(file)).items()
            }
            for file in message.attachments
        ]
    return row


def parse_seconds(value: object, name: str) -> float:
    """Read a number of seconds.

    :raises R7MailConfigError: not a number of 0 or more
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise R7MailConfigError(f"{name}: got {value!r}. Give seconds, 0 or more.")
    return float(value)


def read_sent_folder(
    settings: Settings, folder: int | str | None, settle_seconds: float
) -> tuple[int | None, float]:
    """Tell the Sent folder's id, None if none is given, and the seconds to settle.

    :raises R7MailConfigError: one of them is wrong
    """
    number = None if folder in (None, "") else settings.resolve_folder(folder, "sent_folder")
    return number, parse_seconds(settle_seconds, "settle_seconds")


def resolve_links(
    links: Iterable[Any] | None, seconds: int = LINK_SECONDS, conn_id: str | None = None
) -> list[Link]:
    """Turn what a message links to into URLs.

    :param links: URLs, or files in object storage as `s3://bucket/key` or `ObjectStoragePath`; or
        `{"url": ..., "name": ...}` of these, with what the reader sees (the file's name, if not
        told)
    :param seconds: how long links to object storage work. If the store can't sign them, the link
        is the file's plain URL, or its URI
    :param conn_id: the Airflow connection of the object storage; else the path's own
    :raises R7MailConfigError: not a URL
    """
    given = [links] if isinstance(links, (str, Mapping)) or hasattr(links, "fs") else links or ()
    return [_resolve_link(item, place, seconds, conn_id) for place, item in enumerate(given)]


def _resolve_link(item: Any, place: int, seconds: int, conn_id: str | None) -> Link:
    name = ""
    if isinstance(item, Mapping):
        item, name = item.get("url"), str(item.get("name") or "")
    text = str(item)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^\x00-\x20\x7f]+[^\x00-\x1f\x7f]*", text):
        raise R7MailConfigError(
            f"links[{place}]: not a URL. Give https://..., or a file in object storage as "
            "s3://bucket/key. A path on the worker's disk is of no use to who reads the mail."
        )
    parts = urlsplit(text)
    name = name or unquote(parts.path.rstrip("/").rpartition("/")[2]) or parts.hostname or text
    if parts.scheme in {"http", "https"}:
        return Link(text, name)
    from airflow_provider_r7mail.compat import ObjectStoragePath  # noqa: PLC0415

    try:
        path = item if hasattr(item, "fs") else ObjectStoragePath(text, conn_id=conn_id)
        return Link(_url_of(path, seconds), name)
    except ValueError as error:
        raise R7MailConfigError(f"links[{place}]: no storage of Airflow's has this URL.") from error


def _url_of(path: Any, seconds: int) -> str:
    for make in ("sign", "url"):
        try:
            options = {"expiration": seconds} if make == "sign" else {}
            return str(getattr(path.fs, make)(path.path, **options))
        except (NotImplementedError, AttributeError):  # gcsfs: the latter without a private key
            continue
    return f"{path.protocol}://{path.path}"  # without the connection's id


_LINE_BREAK = re.compile(r"[\x00\n\x0b\f\r\x1c-\x1e\x85\u2028\u2029]")

# One @, and around it nothing that would need quoting: a quoted local part is not worth the risk.
_ADDRESS = re.compile(r"[^\s@,;:<>()\[\]{}\"\\\x00-\x1f\x7f]+@[^\s@,;:<>()\"\\\x00-\x1f\x7f]+")


def parse_addresses(value: str | Iterable[str] | None, name: str) -> tuple[str, ...]:
    """Read addresses: text with commas, a list, or a list's text as a template renders it.

    :param value: the addresses, bare or as `Name <name@example.org>`; None and "" are none
    :param name: the parameter's name, for the error
    :return: the bare addresses, each once, in their order
    :raises R7MailConfigError: something that is no address; it is not shown, but its place is
    """
    if isinstance(value, str):
        text = value.strip().strip(",").strip()
        value = [text] if text else []
        if text.startswith("["):
            try:
                value = ast.literal_eval(text)
            except (SyntaxError, ValueError):
                value = None
    elif value is None:
        value = []
    if not isinstance(value, Iterable) or isinstance(value, (bytes, Mapping)):
        raise R7MailConfigError(f"{name}: expected addresses: text with commas, or a list.")
    found: dict[str, None] = {}
    for position, item in enumerate(value):
        # Control characters are refused before parsing, which would take them for blanks.
        if isinstance(item, str) and not re.search(r"[\x00-\x1f\x7f]", item):
            pairs = getaddresses([item])
        else:
            pairs = []
        # More than there are parts: in `a@b.ru <c@d.ru>` the name is taken for an address, too.
        if not 0 < len(pairs) <= str(item).count(",") + 1 or not all(
            _ADDRESS.fullmatch(address) for _, address in pairs
        ):
            raise R7MailConfigError(
                f"{name}: item {position + 1} holds something that is no mail address. Give "
                "name@example.org, several with commas, or a list."
            )
        found.update(dict.fromkeys(address for _, address in pairs))
    return tuple(found)
