"""Make plain text of a message's HTML, for mail programs that don't show HTML.

Takes any HTML, broken or not, in linear time. `html.parser` doesn't in all versions of Python.
"""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterator

# Nothing here is searched beyond the next "<" in vain, or else to the end, and then only once.
_TOKEN = re.compile(
    r"""
      <!--.*?(?:-->|\Z)
    | <(script|style|template|title)\b[^<>]*+>.*?(?:</\1\b[^<>]*+>|\Z)
    | <(?P<end>/?)(?P<name>[a-z][^\s/<>]*+)
       (?P<attributes>(?:[^<>"']++|"[^"<]*+"|'[^'<]*+'|["'])*+)>
    | <(?:[!?]|/(?![a-z]))[^>]*+>?
    """,
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)
_ATTRIBUTE = re.compile(
    r"""(?<![\w-])(alt|href)\s*+=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s"']++))""", re.IGNORECASE
)
# How many line breaks are around a block: two make a paragraph.
_BREAKS = {
    **dict.fromkeys(("address", "article", "aside", "caption", "center", "dd", "div", "dt"), 1),
    **dict.fromkeys(("figcaption", "figure", "footer", "header", "legend", "li", "main"), 1),
    **dict.fromkeys(("nav", "option", "section", "tr"), 1),
    **dict.fromkeys(("blockquote", "dl", "fieldset", "form", "hr", "p", "pre", "table"), 2),
    **dict.fromkeys(("h1", "h2", "h3", "h4", "h5", "h6"), 2),
}
_DEEPEST = 8
"""From here on, nested lists are not indented further."""


def plain_text(page: str) -> str:
    """Return the text of HTML: paragraphs, a line per item and table row, URLs after links.

    :param page: a document, or a part of one
    """
    text = _Text()
    place = 0
    for token in _TOKEN.finditer(page):
        if token.start() > place:
            text.read(page[place : token.start()])
        place = token.end()
        if token["name"]:
            text.tag(token["name"].lower(), token["attributes"], is_end=bool(token["end"]))
    text.read(page[place:])
    text.end_link()
    return "".join(text.parts).strip()


class _Text:
    """What has been written, and what is due before the next word."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._newlines = 0
        self._has_space = False
        self._bullet = ""
        self._has_cell = False
        self._lists: list[Iterator[str]] = []
        self._preformatted = 0
        self._link: tuple[str, int] | None = None

    def read(self, text: str) -> None:
        """Write what stands between two tags."""
        text = _unescaped(text)
        if self._preformatted:
            for number, line in enumerate(text.split("\n")):
                self._newlines += number > 0
                self._write(line)
        else:
            self._has_space |= text[:1].isspace()
            self._write(" ".join(text.split()))
            self._has_space |= text[-1:].isspace()

    def tag(self, name: str, attributes: str, *, is_end: bool) -> None:
        """Prepare for what follows a tag, and write what the tag shows."""
        self._break(_BREAKS.get(name, 0))
        if name in {"ol", "ul"}:
            self._list(name, is_end=is_end)
        elif name == "pre":
            self._preformatted = max(0, self._preformatted + (-1 if is_end else 1))
        elif name == "a":
            self.end_link()
            url = _attribute(attributes, "href")
            if not is_end and url.startswith(("http://", "https://")):
                self._link = url, len(self.parts)
        elif name == "br":
            self._newlines += 1
        elif name == "img":
            self.read(_attribute(attributes, "alt"))
        elif name == "tr":
            self._has_cell = False
        elif name == "li" and not is_end:
            indent = "  " * min(len(self._lists) - 1, _DEEPEST)
            self._bullet = f"{indent}{next(self._lists[-1]) if self._lists else '*'} "
        elif name in {"td", "th"} and not is_end:
            if self._has_cell:
                self._write_apart("|")
            self._has_cell = self._has_space = True

    def _list(self, name: str, *, is_end: bool) -> None:
        if is_end and self._lists:
            self._lists.pop()
        self._break(1 if self._lists else 2)
        if not is_end:
            numbers = (f"{number}." for number in itertools.count(1))
            self._lists.append(numbers if name == "ol" else itertools.repeat("*"))

    def end_link(self) -> None:
        """Write the URL of the link that ends here, unless its text is that."""
        if self._link:
            url, start = self._link
            self._link = None
            if url not in "".join(self.parts[start:]):
                has_space = self._has_space
                self._write_apart(f"({url})")
                self._has_space = has_space

    def _break(self, newlines: int) -> None:
        if not self._bullet:  # a paragraph in an item begins in the item's line
            self._newlines = max(self._newlines, newlines)

    def _write_apart(self, text: str) -> None:
        self._has_space = True
        self._write(text)

    def _write(self, text: str) -> None:
        if not text:
            return
        if self._newlines:
            self.parts.append("\n" * min(self._newlines, 2))
        elif self._has_space:
            self.parts.append(" ")
        self.parts += (self._bullet, text)
        self._newlines, self._has_space, self._bullet = 0, False, ""


def _attribute(attributes: str, name: str) -> str:
    for found in _ATTRIBUTE.finditer(attributes):
        if found[1].lower() == name:
            return _unescaped(found[2] or found[3] or found[4] or "").strip()
    return ""


def _unescaped(text: str) -> str:
    try:
        return html.unescape(text)
    except ValueError:  # a number of thousands of digits
        return text
