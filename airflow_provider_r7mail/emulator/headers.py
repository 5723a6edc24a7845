"""Read the headers of real mail: raw UTF-8, encoded words, addresses, however malformed.

The email package's own readers of headers recurse and take time that grows with the square of the
length, so that one hostile header would stop a whole folder from loading. These take time in
proportion to the length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import Message
from email.policy import Compat32
from typing import Any

# What the email package raises on malformed headers.
BROKEN = (AttributeError, IndexError, LookupError, MessageError, TypeError, ValueError)

# The most characters that the email package gets to parse at once.
_LONGEST = 10_000
# Multiparts nested deeper than this are not opened; real mail stays below ten.
_DEEPEST = 20
_ENCODED_WORD = r"=\?[^?\s]+\?[bBqQ]\?[^?]*\?{1,2}="
_ENCODED = re.compile(rf"{_ENCODED_WORD}(?:\s*{_ENCODED_WORD})*")
_TOKEN = re.compile(
    rf'{_ENCODED_WORD}|"(?:[^"\\]|\\.)*"?|<[^<>]*>?|\[[^\]]*\]?|[(),:;>]|[^"<\[(),:;>\s]+|\s+',
    re.DOTALL,
)
_COMMENT_TOKEN = re.compile(r"[()]|\\.?|[^()\\]+", re.DOTALL)


class RawHeaders(Compat32):
    """Leave headers as they came, but for their folding. Bytes over 127 stay surrogates."""

    def header_fetch_parse(self, name: str, value: str) -> str:
        """Return a header's raw value; empty for MIME headers too long for the email package."""
        if name.lower().startswith("content-") and len(value) > _LONGEST:
            return ""
        return re.sub(r"[\r\n]+", "", value).strip()


class Mail(Message):
    """A message whose attached messages are not parsed, so that their bytes don't change."""

    depth = 0

    def attach(self, payload: Any) -> None:
        """Add a part. The parser does so before it reads the part's headers."""
        payload.depth = self.depth + 1
        super().attach(payload)

    def get_content_type(self) -> str:
        """Return the type the parser sees: no container except multiparts, nor too deep ones."""
        kind = super().get_content_type()
        opened = not kind.startswith("message/") and self.depth < _DEEPEST
        return kind if opened else "application/octet-stream"

    def named_content_type(self) -> str:
        """Return the type given in the message."""
        return super().get_content_type()


def header(mail: Message[Any, Any], name: str) -> str:
    """Return a header's text: raw where it can't be decoded, empty if there is none."""
    return decoded(_readable(mail, name))


def _readable(mail: Message[Any, Any], name: str) -> str:
    """Return a header's text, its encoded words as they are. Raw UTF-8 is read (RFC 6532)."""
    return " ".join(text_of_raw(str(mail.get(name, ""))).splitlines()).strip()


def text_of_raw(raw: str) -> str:
    """Return the text of a raw value: its bytes as UTF-8, or else as Latin-1."""
    content = raw.encode("utf-8", "surrogateescape")
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")


def decoded(text: str) -> str:
    """Decode encoded words (RFC 2047), even where they should not be."""
    return _ENCODED.sub(_decoded_words, text)


def _decoded_words(words: re.Match[str]) -> str:
    if len(words[0]) > _LONGEST:
        return ""
    try:
        return str(make_header(decode_header(words[0])))
    except BROKEN:
        return words[0]


def addresses(mail: Message[Any, Any], name: str) -> list[tuple[str, str]]:
    """Return the names and addresses in a header. An empty group has none.

    What is not a valid address ("nobody at example dot org") is returned all the same.
    """
    return list(_addresses(_readable(mail, name)))


def _addresses(text: str) -> Iterator[tuple[str, str]]:
    words: list[str] = []
    address = ""
    for part in (*_tokens(text), ","):
        if part in {",", ";"}:
            if address:
                yield decoded("".join(map(_unquoted, words)).strip()), address
            elif found := decoded("".join(words).strip()):
                yield "", found
            words, address = [], ""
        elif part == ":":
            words = []  # the name of a group
        elif part.startswith("<"):
            address = address or part.strip("<> \t")
        elif part != ">":
            words.append(part)


def _tokens(text: str) -> Iterator[str]:
    """Split a list of addresses into tokens, without comments."""
    place = depth = 0
    while match := (_COMMENT_TOKEN if depth else _TOKEN).match(text, place):
        place = match.end()
        if match[0] == "(":
            depth += 1
        elif match[0] == ")":
            depth = max(depth - 1, 0)
        elif not depth:
            yield match[0]


def _unquoted(word: str) -> str:
    if not word.startswith('"'):
        return word
    return re.sub(r"\\(.)", r"\1", word[1:].removesuffix('"'))
