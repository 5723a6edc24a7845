"""What a message is made of: addresses, links, HTML and plain text. No Airflow."""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import getaddresses
from typing import TYPE_CHECKING, Any

from html2text import HTML2Text
from markupsafe import Markup

from airflow_provider_r7mail.exceptions import R7MailConfigError

if TYPE_CHECKING:
    import pandas as pd


TABLE_ROWS = 500
_BODY_END = re.compile(r"</body\s*>", re.IGNORECASE)


def before_body_end(text: str, element: str) -> str:
    """Put an element before the end of an HTML body."""
    ends = list(_BODY_END.finditer(text))
    place = ends[-1].start() if ends else len(text)
    return f"{text[:place]}{element}{text[place:]}"


# -- what a message is made of ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Link:
    """A link at the end of a message.

    :param url: where it leads
    :param name: what the reader sees
    """

    url: str
    name: str


def add_links(html_content: str, text: str, links: Sequence[Link]) -> tuple[str, str]:
    """Add links at the end of both bodies of a message.

    :return: HTML and text
    """
    if not links:
        return html_content, text
    items = "".join(
        f'<li><a href="{html.escape(link.url)}">{html.escape(link.name)}</a></li>' for link in links
    )
    lines = "\n".join(f"{link.name}: {link.url}" for link in links)
    return before_body_end(html_content, f"<ul>{items}</ul>"), f"{text}\n\n{lines}"


def html_table(
    rows: pd.DataFrame | Iterable[Mapping[str, Any]], max_rows: int = TABLE_ROWS
) -> Markup:
    """Render a table for a message. Cells and column names are escaped: they are data, not HTML.

    :param rows: a pandas DataFrame, or a list of dicts, as XCom brings it
    :param max_rows: rows at most; if there are more, a note below the table says so
    :return: the table, marked as safe for templates
    """
    import pandas as pd

    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    # By default pandas cuts texts after 50 characters.
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


def _text_of(html: str) -> str:
    converter = HTML2Text()
    converter.body_width = 0  # lines are the reader's to wrap
    return converter.handle(html).strip()


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
