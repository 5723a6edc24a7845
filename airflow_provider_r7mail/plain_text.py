"""The plain text of an HTML message, for readers and searches that take no HTML."""

from __future__ import annotations

from html.parser import HTMLParser

HIDDEN = frozenset({"script", "style", "template", "title"})
# What parts two words, the weakest first; of several tags between them the strongest counts.
SEPARATORS = ("", " ", " | ", "\n", "\n\n")
BLANK, CELL, LINE, PARAGRAPH = range(1, 5)
STRENGTHS = {
    **dict.fromkeys(("td", "th"), CELL),
    **dict.fromkeys(("br", "dd", "div", "dt", "li", "tr"), LINE),
    **dict.fromkeys(("article", "blockquote", "dl", "footer", "header", "section"), PARAGRAPH),
    **dict.fromkeys(("h1", "h2", "h3", "h4", "h5", "h6", "hr"), PARAGRAPH),
    **dict.fromkeys(("ol", "p", "pre", "table", "ul"), PARAGRAPH),
}


def plain_text(html: str) -> str:
    """Convert HTML to text.

    Paragraphs are separated by blank lines; list items and table rows have a line each; a link is
    followed by its URL.
    """
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return "".join(reader.parts)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._strength = 0
        self._bullet = ""
        self._hidden = 0
        self._preformatted = 0
        self._link = ("", 0)  # its URL, and where in `parts` it begins

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "br" and self._strength == LINE:
            tag = "p"
        self._separate(STRENGTHS.get(tag, 0))
        self._hidden += tag in HIDDEN
        self._preformatted += tag == "pre"
        if tag == "li":
            self._bullet = "- "
        elif tag == "a":
            self._link = (values.get("href") or "", len(self.parts))
        elif tag == "img":
            self.handle_data(values.get("alt") or "")

    def handle_endtag(self, tag: str) -> None:
        self._separate(STRENGTHS.get(tag, 0))
        self._hidden -= tag in HIDDEN and self._hidden > 0
        self._preformatted -= tag == "pre" and self._preformatted > 0
        if tag == "a":
            url, begin = self._link
            shown = "".join(self.parts[begin:])
            if url.startswith(("http://", "https://")) and not shown.endswith(url):
                self.parts.append(f" ({url})")
            self._link = ("", 0)

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        words = data.strip("\n") if self._preformatted else " ".join(data.split())
        if data[:1].isspace():
            self._separate(BLANK)
        if words:
            self._put(words)
        if data[-1:].isspace():
            self._separate(BLANK)

    def _separate(self, strength: int) -> None:
        self._strength = max(self._strength, strength)

    def _put(self, words: str) -> None:
        if self.parts:
            self.parts.append(SEPARATORS[self._strength])
        self.parts.append(f"{self._bullet}{words}")
        self._strength = 0
        self._bullet = ""
