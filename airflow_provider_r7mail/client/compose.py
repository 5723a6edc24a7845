"""Compose a message: check the addresses, add links, make plain text and tables. No Airflow."""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import getaddresses
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from markupsafe import Markup

from airflow_provider_r7mail.client import calls
from airflow_provider_r7mail.client.frames import import_pandas
from airflow_provider_r7mail.client.models import Attachment, Message
from airflow_provider_r7mail.client.parameters import need_text, read_id, read_text
from airflow_provider_r7mail.client.plain_text import plain_text
from airflow_provider_r7mail.exceptions import R7MailConfigError

if TYPE_CHECKING:
    import pandas as pd


LINK_SECONDS = 7 * 24 * 3600
"""How long links to object storage work if the store can sign them: the longest S3 allows."""

TABLE_ROWS = 500
"""Rows that a table in a message shows at most, unless told otherwise."""

_BODY_END = re.compile(r"</body\s*>", re.IGNORECASE)
_LINE_BREAK = re.compile(r"[\x00\n\x0b\f\r\x1c-\x1e\x85\u2028\u2029]")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\x00-\x20\x7f]+[^\x00-\x1f\x7f]*")
# One @, and nothing around it that would need quoting: quoted local parts aren't worth the risk.
_ADDRESS = re.compile(r"[^\s@,;:<>()\[\]{}\"\\\x00-\x1f\x7f]+@[^\s@,;:<>()\"\\\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Link:
    """A link at the end of a message.

    :param url: the target
    :param name: the text that the reader sees
    """

    url: str
    name: str


def compose_message(
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
) -> calls.Call[Message]:
    """Check a message and make the call that sends it. No I/O.

    :param to: addresses: a list, or text with commas; `Name <name@example.org>` is accepted
    :param subject: the subject, one line
    :param html_content: the body in HTML
    :param text_content: the plain-text body; made from the HTML if None or empty
    :param cc: addresses, like `to`
    :param bcc: addresses, like `to`
    :param attachments: files in the server's Storage
    :param draft_id: id of the draft to send; 0 for none (R10)
    :param links: links to add at the end of both bodies
    :raises R7MailConfigError: a parameter is wrong
    """
    recipients = parse_addresses(to, "to")
    if not recipients:
        raise R7MailConfigError("to: no address. Give one, several with commas, or a list.")
    subject = need_text(subject, "subject")
    if _LINE_BREAK.search(subject):
        raise R7MailConfigError("subject: expected one line of text, without line breaks.")
    html_content = need_text(html_content, "html_content")
    draft = read_id(draft_id)
    if draft is None or draft < 0:
        raise R7MailConfigError("draft_id: expected a draft's id, or 0 for none.")
    if attachments is not None and isinstance(attachments, (str, bytes, Mapping)):
        attachments = [attachments]
    text = read_text(text_content, "text_content") or plain_text(html_content)
    html_content, text = add_links(html_content, text, links)
    return calls.send_message(
        subject=subject,
        text=text,
        html=html_content,
        to=recipients,
        cc=parse_addresses(cc, "cc"),
        bcc=parse_addresses(bcc, "bcc"),
        attachments=[
            Attachment.for_send(item, position) for position, item in enumerate(attachments or ())
        ],
        draft_id=draft,
    )


def parse_addresses(value: str | Iterable[str] | None, name: str) -> tuple[str, ...]:
    """Parse addresses: text with commas, a list, or the text that a template makes of a list.

    :param value: addresses, bare or as `Name <name@example.org>`; None and "" mean no addresses
    :param name: the parameter's name, for the error
    :return: the bare addresses without duplicates, in the given order
    :raises R7MailConfigError: something isn't an address; the error tells its position, but does
        not show it
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
        # Parsing would treat control characters as blanks.
        if isinstance(item, str) and not re.search(r"[\x00-\x1f\x7f]", item):
            pairs = getaddresses([item])
        else:
            pairs = []
        # More addresses than parts: in `a@b.ru <c@d.ru>` the name was parsed as an address, too.
        if not 0 < len(pairs) <= str(item).count(",") + 1 or not all(
            _ADDRESS.fullmatch(address) for _, address in pairs
        ):
            raise R7MailConfigError(
                f"{name}: item {position + 1} contains something that is not a mail address. Give "
                "name@example.org, several with commas, or a list."
            )
        found.update(dict.fromkeys(address for _, address in pairs))
    return tuple(found)


def resolve_links(
    links: Iterable[Any] | None, seconds: int, open_path: Callable[[str, str], Any]
) -> list[Link]:
    """Turn links as the user gives them into URLs with names.

    :param links: web addresses; files in object storage, as `s3://bucket/key` or as path objects;
        or `{"url": ..., "name": ...}` with either of them. The name defaults to the file's name
    :param seconds: how long links to object storage work, if the store can sign them. If it can't,
        the link is the file's plain URL or, failing that, its URI
    :param open_path: makes a path object, with `fs`, `path` and `protocol`, from a storage URL and
        the parameter's name
    :raises R7MailConfigError: not a URL, or `open_path` can't open it
    """
    given = [links] if isinstance(links, (str, Mapping)) or hasattr(links, "fs") else links or ()
    return [_resolve_link(item, place, seconds, open_path) for place, item in enumerate(given)]


def _resolve_link(
    item: Any, position: int, seconds: int, open_path: Callable[[str, str], Any]
) -> Link:
    name, parameter = "", f"links[{position}]"
    if isinstance(item, Mapping):
        item, name = item.get("url"), read_text(item.get("name"), f"{parameter} name") or ""
    text = str(item)
    if not _URL.fullmatch(text):
        raise R7MailConfigError(
            f"{parameter}: not a URL. Give https://..., or a file in object storage as "
            "s3://bucket/key. Recipients can't open a path on the worker's disk."
        )
    parts = urlsplit(text)
    name = name or unquote(parts.path.rstrip("/").rpartition("/")[2]) or parts.hostname or text
    if parts.scheme in {"http", "https"}:
        return Link(text, name)
    path = item if hasattr(item, "fs") else open_path(text, parameter)
    return Link(_url_of(path, seconds), name)


def _url_of(path: Any, seconds: int) -> str:
    for make in ("sign", "url"):
        try:
            options = {"expiration": seconds} if make == "sign" else {}
            return str(getattr(path.fs, make)(path.path, **options))
        except (NotImplementedError, AttributeError):  # gcsfs: the latter without a private key
            continue
    return f"{path.protocol}://{path.path}"  # without the connection's id


def add_links(html_content: str, text: str, links: Sequence[Link]) -> tuple[str, str]:
    """Add links at the end of both bodies of a message.

    :return: the HTML and the plain text
    """
    if not links:
        return html_content, text
    items = "".join(
        f'<li><a href="{html.escape(link.url)}">{html.escape(link.name)}</a></li>' for link in links
    )
    lines = "\n".join(f"{link.name}: {link.url}" for link in links)
    return before_body_end(html_content, f"<ul>{items}</ul>"), f"{text}\n\n{lines}"


def before_body_end(text: str, element: str) -> str:
    """Insert an element before the end of an HTML body."""
    ends = list(_BODY_END.finditer(text))
    place = ends[-1].start() if ends else len(text)
    return f"{text[:place]}{element}{text[place:]}"


def html_table(
    rows: pd.DataFrame | Iterable[Mapping[str, Any]], max_rows: int = TABLE_ROWS
) -> Markup:
    """Render a table for a message. Cells and column names are escaped.

    :param rows: a pandas DataFrame, or a list of dicts, such as a task's return value
    :param max_rows: most rows to show; if there are more, a note below the table says so
    :return: the table, marked as safe for templates
    :raises R7MailConfigError: pandas is not installed
    """
    pd = import_pandas("html_table")
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    # By default pandas truncates text after 50 characters.
    with pd.option_context("display.max_colwidth", None):
        table = (
            frame.head(max_rows)
            .rename_axis(columns=None)
            .to_html(
                index=False,
                border=1,
                escape=True,
                na_rep="",
                render_links=False,
                show_dimensions=False,
                max_cols=None,
            )
        )
    note = ""
    if len(frame) > max_rows:
        note = f"<p>The first {max_rows:,} of {len(frame):,} rows.</p>"
    return Markup(f"{table}{note}")  # noqa: S704 - escaped by pandas
