"""Parse a page's JSON as fast as can be, and whatever is wrong with the text in it (R21)."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any

from airflow_provider_r7mail.client.answers import AnswerError, read_json
from airflow_provider_r7mail.client.fields import FIELDS, ITEM, KINDS, Fields
from airflow_provider_r7mail.lake.records import Records, partial_type, record_type

# Python refuses to convert longer text to an integer, since that takes quadratic time.
_MAX_DIGITS = 4300
# Beyond so many unknown fields, or texts in vain, records are not worth it.
_MAX_NAMES = 200
_MAX_REFUSED = 250
# What records can have as a field's name; no longer ones, since it is kept.
_NAME = re.compile(r'[^"\\\x00-\x1f\ud800-\udfff]{0,100}')
# After a page with odd text, another one is likely.
_PAGES_IN_PIECES = 20

_ITEMS = re.compile(rb'"[Ii]tems":\s*\[')
# The first two fields of a message; of two only, since files may start with an Id, too.
_FIRST_FIELDS = re.compile(rb'\{("[^"\\]*":)[^,{}\[\]]*,("[^"\\]*":)')


class Parser:
    """Parses the pages of a server, and remembers what is odd about them.

    :param piece_bytes: the size of the pieces in which a page with odd text is parsed
    """

    def __init__(self, piece_bytes: int = 64 << 10) -> None:
        self._piece_bytes = piece_bytes
        self._in_pieces = 0  # how many pages to parse like that
        self._records: Records | None = None
        self._names: Set[str] = frozenset()
        self._spelling: dict[str, str] = {}
        self._refused = 0
        self._apart: frozenset[str] = frozenset()
        self._partial: Records | None = None

    def parse(self, body: bytes) -> tuple[Any, bool]:
        """Parse JSON; return whether it holds what only Python's own parser accepts, too.

        That is lone surrogates, NaN and infinite numbers, invalid UTF-8, numbers of many digits.

        :param body: the response's bytes
        :return: a listing's messages are records or, if they have fields that are neither in the
            manual nor known by `learn`, dictionaries
        :raises AnswerError: not JSON
        """
        if not self._in_pieces:
            try:
                return self._parse(Records.listing, body), False
            except (ValueError, RecursionError):
                self._in_pieces = _PAGES_IN_PIECES
        self._in_pieces -= 1
        try:
            return self._parse_in_pieces(body)
        except (ValueError, RecursionError):
            return _parse_carefully(body), True

    @property
    def names(self) -> Sequence[str]:
        """The names of the records' unknown fields, in their order."""
        return sorted(self._names)

    @property
    def apart(self) -> Fields:
        """The fields that Arrow couldn't read in some message."""
        return tuple(field for field in FIELDS if field[0] in self._apart)

    def parse_apart(self, body: bytes) -> Any:
        """Parse a listing, but of its messages only what Arrow couldn't read, and unknown fields.

        :raises ValueError: it isn't JSON, or a message has a field that isn't known yet, or another
            spelling of one (R42)
        :raises RecursionError: it is nested too deeply
        """
        import msgspec

        self._partial = self._partial or Records(partial_type(self.apart, self._names))
        try:
            return self._partial.listing(body)
        except msgspec.MsgspecError as error:  # no ValueError in 0.19
            raise ValueError(str(error)) from None

    def learn(self, layouts: Iterable[tuple[str, ...]], odd: Set[str]) -> None:
        """Learn the names of fields, so that messages with these become records, too.

        :param layouts: the names in each of some dictionaries
        :param odd: the fields that Arrow can't read in some message
        """
        if not odd <= self._apart:
            self._apart, self._partial = self._apart | odd, None
        names, spelling = set(self._names), dict(self._spelling)
        for given in layouts:
            for name, known in zip(given, ITEM.spell(given), strict=True):
                if known in KINDS:
                    spelling[known] = name
                elif _NAME.fullmatch(name) and not ITEM.resembles(name):
                    names.add(name)
        spelling = {known: name for known, name in spelling.items() if known != name}
        if len(names) <= _MAX_NAMES and (names, spelling) != (self._names, self._spelling):
            self._names, self._spelling = names, spelling
            self._records = self._partial = None

    def _parse(self, parse: Callable[[Records, bytes], Any], text: bytes) -> Any:
        """Parse messages into records, or else into dictionaries.

        :raises ValueError: it isn't JSON, or holds what only Python's own parser accepts
        :raises RecursionError: it is nested too deeply
        """
        import msgspec

        if self._refused == _MAX_REFUSED:
            return _decode(text)
        self._records = self._records or Records(record_type(self._names, self._spelling))
        try:
            return parse(self._records, text)
        except (ValueError, msgspec.MsgspecError):
            pass  # not while the error holds records
        answer = _decode(text)
        self._refused += 1  # it is JSON
        return answer

    def _parse_in_pieces(self, body: bytes) -> tuple[Any, bool]:
        """Parse a listing some messages at a time: only where it must, Python's own parser does it.

        It is cut between messages, for all that can be seen. If what is left is JSON, with a text
        in the messages' place, and each piece is JSON, too, the cuts were right: none is inside of
        a text.

        :return: the listing, and whether Python's own parser was needed
        :raises ValueError: the page can't be cut like that
        :raises RecursionError: it is nested too deeply
        """
        found = _ITEMS.search(body)
        first = found and _FIRST_FIELDS.match(body, found.end())
        if found is None or first is None:
            raise ValueError("no messages")
        start, end = found.end(), body.rindex(b"}]") + 1
        mark = secrets.token_hex(16)
        answer = _decode(body[:start] + json.dumps(mark).encode() + body[end:])
        members = answer.items() if type(answer) is dict else ()
        names = [name for name, value in members if value == [mark]]
        if len(names) != 1:
            raise ValueError("the messages are not where they seem to be")
        boundary = re.compile(rb"\},\{%b[^,]*,%b" % (re.escape(first[1]), re.escape(first[2])))
        items: list[Any] = []
        is_odd = False
        while start < end:
            cut = boundary.search(body, start + self._piece_bytes, end)
            after = cut.start() + 1 if cut else end
            piece = b"[%b]" % body[start:after]
            try:
                items += self._parse(Records.items, piece)
            except (ValueError, RecursionError):
                is_odd = True
                items += _parse_piece(piece)
            start = after + 1
        return {**answer, names[0]: items}, is_odd


def _decode(text: bytes) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(text)
    except msgspec.MsgspecError as error:  # no ValueError in 0.19
        raise ValueError(str(error)) from error


def _parse_carefully(body: bytes) -> Any:
    try:
        return read_json(body)
    except AnswerError:
        return read_json(mended(body))


def _parse_piece(piece: bytes) -> Any:
    try:
        return json.loads(piece)
    except ValueError:
        return json.loads(mended(piece))


def mended(body: bytes) -> bytes:
    """Rewrite JSON into a form that Python's parser accepts; return it unchanged if it isn't JSON.

    Invalid UTF-8 becomes lone surrogates, and these become U+FFFD later (R21). An integer that is
    too long for Python becomes text, which ends up in `extra`.
    """

    def read(digits: str) -> int | str:
        return int(digits) if len(digits) <= _MAX_DIGITS else digits

    try:
        text = body.decode("utf-8-sig", "surrogateescape")
        return json.dumps(json.loads(text, parse_int=read)).encode()
    except (ValueError, RecursionError):
        return body
