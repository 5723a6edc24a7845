"""Read settings from an Airflow connection of type `r7mail`, and mask its secrets."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, quote_plus, unquote, urlsplit

from airflow_provider_r7mail import get_provider_info
from airflow_provider_r7mail.assets import mailbox_uri
from airflow_provider_r7mail.client.http import ClientConfig
from airflow_provider_r7mail.client.parameters import parse_literal, read_id, read_seconds
from airflow_provider_r7mail.compat import amask_secret, mask_secret
from airflow_provider_r7mail.exceptions import R7MailConfigError

if TYPE_CHECKING:
    from airflow_provider_r7mail.compat import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a connection.

    :param client: how to reach the server
    :param folders: folder ids by name
    :param disk_folder: id of the Disk folder that takes files to be sent; None for the default
    :param web_url: URL of a folder in the web client, with `{folder}` for the folder's id, or None
    :param privacy_secret: key for hashing personal data in tables, or None
    :param conn_id: the connection's id, for errors
    """

    client: ClientConfig
    folders: Mapping[str, int] = field(default_factory=dict)
    disk_folder: int | None = None
    web_url: str | None = None
    privacy_secret: str | None = field(default=None, repr=False)
    conn_id: str

    def folder_url(self, folder: int) -> str | None:
        """Return the URL of a folder in the web client, or None if unknown.

        :param folder: the folder's id
        """
        return self.web_url and self.web_url.replace("{folder}", str(folder))

    def folder_uri(self, folder: int) -> str:
        """Return the URI of a folder as an asset: `r7mail://login@host/folder`.

        :param folder: the folder's id
        """
        return mailbox_uri(self.client.url, self.client.login, folder)

    def resolve_folder(self, folder: int | str, name: str = "folder") -> int:
        """Return a folder's id.

        :param folder: an id (24 or "24"), or a name from the connection's `folders`
        :param name: the parameter's name, for the error
        :raises R7MailConfigError: the folder is neither an id nor a known name
        """
        number = read_id(folder)
        if number is not None:
            return number
        if isinstance(folder, str) and folder in self.folders:
            return self.folders[folder]
        known = ", ".join(map(repr, self.folders)) or "none"
        raise R7MailConfigError(
            f"{name}: there is no folder {folder!r} in `folders` of connection {self.conn_id!r}. "
            f"Known folders: {known}. Give one of these, or the folder's id, a whole number."
        )

    def resolve_sent_folder(
        self, folder: int | str | None, settle_seconds: float
    ) -> tuple[int | None, float]:
        """Return the Sent folder's id, None if none is given, and the seconds to settle.

        :param folder: an id or a name, or None
        :param settle_seconds: how long a message may take to appear in that folder
        :raises R7MailConfigError: one of them is wrong
        """
        number = None if folder in (None, "") else self.resolve_folder(folder, "sent_folder")
        return number, read_seconds(settle_seconds, "settle_seconds")


class _Fields:
    """The fields of a connection. Errors name the connection and the field."""

    def __init__(self, conn_id: str, extra: Mapping[str, Any]) -> None:
        self.conn_id = conn_id
        # Airflow 3.3's form saves null, and text fields may be left empty: both mean "not set".
        self.extra = {name: value for name, value in extra.items() if value not in (None, "")}

    def wrong(self, name: str, what: str) -> R7MailConfigError:
        return R7MailConfigError(f"Connection {self.conn_id!r}: {name}: {what}")

    def check_names(self) -> None:
        [form] = get_provider_info()["connection-types"]
        known = list(form["conn-fields"])
        for name in self.extra:
            if name not in known:
                nearest = get_close_matches(name.lower(), known, 1, cutoff=0.5)
                hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
                raise self.wrong(
                    "extra", f"there is no field {name!r}. {hint}Known: {', '.join(known)}."
                )

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
        value = parse_literal(value)
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

    def proxy(self) -> str | Literal[False] | None:
        if str(self.extra.get("proxy")).strip().lower() == "false":
            return False
        value = self.text("proxy", "http://proxy.example.org:3128")
        if value is None:
            return None
        try:
            parts = urlsplit(value.strip())
            right = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            right = False
        if not right:
            # The value is not shown: it may contain a password.
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
        # It becomes a link in Airflow's UI: only web pages, and no password in it.
        if not right or re.search(r"[\s\x00-\x1f\x7f]", value.strip()):
            raise self.wrong(
                "web_url", "not a web page's URL. Give https://mail.example.org/mail/{folder}."
            )
        return value.strip()

    def disk_url(self) -> str | None:
        value = self.text("disk_url", "https://cddisk.example.org")
        return None if value is None else _base_url(self, "disk_url", value)

    def disk_folder(self) -> int | None:
        value = self.extra.get("disk_folder")
        number = read_id(value)
        if value is not None and (number is None or number < 1):
            raise self.wrong("disk_folder", f"got {value!r}. Give the folder's id, a whole number.")
        return number

    def folders(self) -> dict[str, int]:
        value = parse_literal(self.extra.get("folders", {}))
        example = 'Give an object of names and ids, like {"inbox": 24, "processed": 15}.'
        if not isinstance(value, Mapping):
            raise self.wrong("folders", f"not an object. {example}")
        folders: dict[str, int] = {}
        for name, raw in value.items():
            number = read_id(raw)
            if number is None:
                raise self.wrong("folders", f"{name!r} is {raw!r}, not a whole number. {example}")
            if read_id(name) is not None:
                raise self.wrong("folders", f"the name {name!r} looks like an id. Use another.")
            folders[name] = number
        return folders


def config_from_connection(connection: Connection) -> Settings:
    """Read the settings from an Airflow connection of type `r7mail`. No I/O.

    :param connection: the connection
    :raises R7MailConfigError: a field is missing or wrong; the error names it and says what to give
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
    source.check_names()
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
        disk_folder=source.disk_folder(),
        web_url=source.web_url(),
        privacy_secret=source.text("privacy_secret", "a long random text"),
        client=ClientConfig(
            url=_base_url(source, "host", connection.host, connection.schema, connection.port),
            disk_url=source.disk_url(),
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


def _base_url(
    source: _Fields,
    field_name: str,
    host: str | None,
    schema: str | None = None,
    port: int | None = None,
) -> str:
    """A server's URL. A full URL in the field takes precedence over Schema and Port."""
    text = (host or "").strip()
    if not text:
        raise source.wrong(
            field_name, "missing. Give the mail server's name, like mail.example.org."
        )
    if "://" not in text:
        scheme = (schema or "").strip().lower() or "https"
        if scheme not in {"http", "https"}:
            raise source.wrong("schema", f"got {schema!r}. Give https or http.")
        if text.count(":") > 1 and not text.startswith("["):
            text = f"[{text}]"  # IPv6
        text = f"{scheme}://{text}"
    wrong = source.wrong(
        field_name,
        "not a host or URL. Give mail.example.org or https://mail.example.org:8443/path.",
    )
    try:
        parts = urlsplit(text)
        name, its_port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if parts.username is not None or parts.password is not None:
        raise source.wrong(field_name, "holds a login. Give it in Login and Password instead.")
    if parts.scheme not in {"http", "https"} or parts.query or parts.fragment:
        raise wrong
    if not name or re.search(r"[\s\x00-\x1f\x7f%<>\"'\\^`{|}]", name):
        raise wrong
    if ":" in name:
        name = f"[{name}]"
    # Airflow 3.3's form saves port 0 for "not set".
    number = its_port or port
    authority = f"{name}:{number}" if number else name
    return f"{parts.scheme}://{authority}{parts.path.rstrip('/')}"


def secret_forms(secret: str | None, user: str | None = None) -> set[str]:
    """Return a secret in every form that it takes in URLs, JSON and headers.

    :param user: the user name, for HTTP Basic headers
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


def secrets_of(settings: Settings) -> set[str]:
    """Return every secret of a connection, in all its forms."""
    config = settings.client
    proxy = urlsplit(config.proxy or "")
    user = unquote(proxy.username or "")
    return (
        secret_forms(config.password, config.login)
        | secret_forms(settings.privacy_secret)
        | secret_forms(proxy.password)
        | secret_forms(unquote(proxy.password or ""), user)
    )


def mask(secrets: Iterable[str]) -> None:
    """Mask secrets in Airflow's logs."""
    for secret in secrets:
        mask_secret(secret)


async def amask(secrets: Iterable[str]) -> None:
    """Mask secrets in Airflow's logs, from the event loop."""
    for secret in secrets:
        await amask_secret(secret)
