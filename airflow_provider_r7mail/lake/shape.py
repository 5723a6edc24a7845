"""Learn how a server writes its messages, and take out of a page what Arrow can't read of them.

Arrow's JSON reader knows the manual's fields in the manual's types; anything else makes it refuse
the whole page. So a page that it refuses is cut into messages, and each message into the text that
Arrow can read and the fields that it can't, which Python reads. Where to cut is learned from the
messages that didn't fit before. It is only a matter of speed: a message that doesn't match what was
learned is read by Python as a whole, and gives the same row.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from airflow_provider_r7mail.client.fields import (
    FILE_FIELDS,
    KINDS,
    SENDER_FIELDS,
    Fields,
)

# A page is learned from if one message in so many doesn't match what was learned before.
_MANY = 16
# A field that Arrow can't read is cut out of all messages if it is in one of so many.
_COMMON = 32
# Python refuses to convert longer text to an integer, since that takes quadratic time.
_MAX_DIGITS = 4300
# How often is learned at most, and from how many messages: it takes as long as reading some pages.
_LESSONS = 16
_EXAMPLES = 64
# How often pages that looked regular may turn out not to be.
_FAILURES = 4
# The number of places that are tried as the end of a message that doesn't match.
_MAX_ENDS = 100

# JSON text, without spaces. The patterns only have to match what servers usually write: what they
# let through is checked by the parser that reads it.
_STRING = rb'"[^"]*+(?:(?<=\\)"[^"]*+)*+"'
_INT = rb"-?\d{1,18}"
_DATE = (
    rb'"(?:19(?:7[1-9]|[89]\d)|2[01]\d\d)-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?'
    rb'(?:Z|[+-]\d\d:?\d\d)?"'
)


def _any(depth: int) -> bytes:
    """Return the pattern of any value, nested at most that deep."""
    if depth == 0:
        return rb'(?:%b|[^",:\[\]{}\s]++)' % _STRING
    inner = _any(depth - 1)
    return rb"(?:%b|\{(?:%b:%b,?)*+\}|\[(?:%b,?)*+\])" % (_any(0), _STRING, inner, inner)


_ANY = _any(3)
_SIMPLE = {
    "int": b"(?:%b|null)" % _INT,
    "text": b"(?:%b|null)" % _STRING,
    "bool": b"(?:true|false|null)",
    "date": b"(?:%b|null)" % _DATE,
    "json": b"null",
    "texts": rb"(?:\[(?:(?:%b|null),?)*+\]|null)" % _STRING,
    "ints": rb"(?:\[(?:(?:%b|null),?)*+\]|null)" % _INT,
}
_REQUIRED = {"Id": _INT, "Date": _DATE}
_INNER = {"sender": SENDER_FIELDS, "files": FILE_FIELDS}
# The fields of a message without inner objects, whose names no inner object has.
_OUTER = frozenset(
    {name for name, kind in KINDS.items() if kind not in _INNER}
    - {name for fields in _INNER.values() for name, _, _ in fields}
)


_NOTHING = re.compile(rb"(?!)")
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F]")
_FIRST_NAME = re.compile(rb'\{"[^"\\]*":')


def _named(name: str) -> bytes:
    """Return the pattern of a name, written with or without escapes."""
    escaped = json.dumps(name)
    upper = re.sub(r"\\u[0-9a-f]{4}", lambda found: "\\u" + found[0][2:].upper(), escaped)
    plain = json.dumps(name, ensure_ascii=False)
    texts = dict.fromkeys(text.encode(errors="replace") for text in (plain, escaped, upper))
    return b"(?:%b)" % b"|".join(map(re.escape, texts))


def _members(fields: Mapping[str, bytes]) -> bytes:
    """Return the pattern of an inner object's members, in any order."""
    return b"|".join(b"%b:%b" % (_named(name), value) for name, value in fields.items())


def _pattern(kind: str | None, unknown: Iterable[str] = ()) -> bytes:
    """Return the pattern of the values of a kind that Arrow can read.

    :param unknown: the unknown fields that inner objects may have, too
    """
    if kind is None:
        return _ANY
    if kind not in _INNER:
        return _SIMPLE[kind]
    known = {name: _SIMPLE[simple] for name, _, simple in _INNER[kind]}
    inner = rb"(?:\{(?:(?:%b),?)*+\}|null)" % _members(known | dict.fromkeys(unknown, _ANY))
    return inner if kind == "sender" else rb"(?:\[(?:%b,?)*+\]|null)" % inner


def _compiled(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.DOTALL)


_READABLE = {kind: _compiled(_pattern(kind)) for kind in (*_SIMPLE, *_INNER)}


def parse(text: bytes) -> Any:
    """Parse JSON, and mend what Python's parser doesn't accept.

    :raises ValueError: not JSON
    """
    try:
        return json.loads(text)
    except ValueError:
        return json.loads(mended(text))


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


class Parts:
    """The messages of a page, cut into what Arrow reads and what Python reads.

    :param body: the page
    """

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.spans: list[tuple[int, int]] = []
        """Where each message is in the page."""
        self.odd: dict[int, bytes] = {}
        """The fields that Python reads, as JSON, by row."""
        self.unread: dict[int, Any] = {}
        """The messages that Python reads as a whole, by row."""
        self.suspects: set[int] = set()
        """The messages that Arrow would refuse, for all that is known."""
        self.kept: frozenset[str] = frozenset()
        """The fields in `odd` of which Arrow reads the known parts."""
        self.with_inner = False
        """Whether senders or files, with names of their own, are in `odd`."""
        self._lines = bytearray(body)
        self._edits: dict[int, list[tuple[int, int, bytes]]] = {}

    def add(self, start: int, end: int) -> int:
        """Add the next message, and return its row."""
        row = len(self.spans)
        self.spans.append((start, end))
        self._lines[end] = 10  # a newline in place of the comma
        return row

    def cut(self, row: int, start: int, end: int, instead: bytes = b"") -> None:
        """Take text out of what Arrow reads of a message; put in other text."""
        self._edits.setdefault(row, []).append((start, end, instead))

    def append(self, row: int, members: bytes) -> None:
        """Add fields to what Arrow reads of a message."""
        end = self.spans[row][1] - 1
        self.cut(row, end, end, b"," + members)

    def replace(self, row: int, line: bytes) -> None:
        """Let Arrow read other text in place of a message."""
        self._edits[row] = [(*self.spans[row], line)]

    def lines(self, low: int, high: int) -> bytes:
        """Return what Arrow reads of messages, a line for each."""
        pieces: list[bytes | bytearray] = []
        place = self.spans[low][0]
        for row, edits in sorted(self._edits.items()):
            if low <= row < high:
                for start, end, instead in edits:
                    pieces.append(self._lines[place:start])
                    if instead:
                        pieces.append(instead)
                    place = end
        pieces.append(self._lines[place : self.spans[high - 1][1]])
        return b"".join(pieces)


class _Run(NamedTuple):
    """Unknown fields next to each other, in all messages.

    :param start: the first one's name and colon
    :param before_name: the name of the field before them
    :param before: the pattern of that field
    :param after: the name of the field after them; empty if there is none
    """

    start: bytes
    before_name: bytes
    before: re.Pattern[bytes]
    after: bytes


class Shape:
    """What was learned of a server's messages. Not for several threads at once."""

    def __init__(self) -> None:
        self._order: list[str] = []
        self._lengths: Counter[str] = Counter()
        self._cut: set[str] = set()
        self._inner: dict[str, set[str]] = {}
        self._start = self._rest = _NOTHING
        self._anchor = b""
        self._cleaners: list[re.Pattern[bytes] | None] = []
        self._lessons = 0
        self._lesson: tuple[list[dict[str, Any]], float] | None = None
        self._may_skip = True
        self.has_lone_surrogates = False
        """Whether some were found: only then are they looked for, since it takes time."""
        self._run: _Run | None = None
        self._kept: list[tuple[bytes, re.Pattern[bytes], re.Pattern[bytes]]] = []
        self._failures = 0
        self.is_regular = False
        """Whether all messages of the last page had the same unknown fields, and nothing odd."""
        self.is_plain = True
        """Whether Arrow could read all of the last page, so that it may read the next one, too."""

    @property
    def kept(self) -> frozenset[str]:
        """The fields of which Arrow reads the known parts."""
        return frozenset(self._inner.keys() - self._cut)

    @property
    def unknown(self) -> frozenset[str]:
        """The names of what is taken out of messages."""
        return self.kept | self._cut

    # -- learning ---------------------------------------------------------------------------

    def note(self, unread: Sequence[Any], count: int) -> None:
        """Learn from the messages of a page that Python had to read as a whole.

        :param unread: these messages, as received
        :param count: the number of all messages of the page
        """
        self.is_plain = not (unread or self._cut or self._inner)
        self._failures += self.is_regular
        self.is_regular = bool(self._run and not unread and self._failures < _FAILURES)
        if len(unread) * _MANY >= count and self._lessons < _LESSONS:
            examples = [item for item in unread[:_EXAMPLES] if isinstance(item, dict)]
            # As many of `count` as there are of it among all messages of the page.
            self._lesson = examples, count * len(examples) / len(unread) / _COMMON

    def _learn(self) -> None:
        """Learn from the last page, now that there is another: this takes some 20 ms."""
        if self._lesson is None:
            return
        examples, common = self._lesson
        self._lesson = None
        self._lessons += 1
        odd: Counter[str] = Counter()
        inner: Counter[tuple[str, str]] = Counter()
        for item in examples:
            self._note_order(item)
            for name, value in item.items():
                known, unknown = _parted(name, value)
                inner.update((name, part) for part in unknown)
                text = json.dumps(known, separators=(",", ":")).encode()
                self._lengths[name] += len(text)
                odd[name] += name not in KINDS or not _READABLE[KINDS[name]].fullmatch(text)
        self._cut |= {n for n, times in odd.items() if times >= common and not _is_other(n, KINDS)}
        for (name, part), times in inner.items():
            if times >= common:
                self._inner.setdefault(name, set()).add(part)
        self._compile()

    def _note_order(self, item: dict[str, Any]) -> None:
        place = 0
        for name in item:
            if name in self._order:
                place = self._order.index(name) + 1
            else:
                self._order.insert(place, name)
                place += 1

    def _compile(self) -> None:
        """Build the pattern of a message: two with the longest text skipped, if that can be."""
        self._cleaners = []
        # What is neither known nor common makes a message one that Python reads.
        names = [name for name in self._order if name in KINDS or name in self._cut]
        if not names:
            return
        longest = max(names, key=self._lengths.__getitem__)
        after = names.index(longest) + 1
        self._anchor = b""
        if 1 < after < len(names) and self._can_skip(longest, names[after]):
            self._anchor = b',"%b":' % names[after].encode()
            start = self._members(names[: after - 1], first=names[0])
            skipped = b'(?:,"%b":(?:"|null)|(?=%b))' % (longest.encode(), self._anchor)
            self._start = _compiled(rb"\{%b%b" % (start, skipped))
            self._rest = _compiled(rb"%b\}" % self._members(names[after:], first=names[after]))
        else:
            self._start = _compiled(rb"\{%b\}" % self._members(names, first=names[0]))

        self._kept = [
            (
                b',"%b":%b' % (name.encode(), b"{" if KINDS[name] == "sender" else b"[{"),
                _compiled(b',"%b":%b' % (name.encode(), _pattern(KINDS[name], unknown))),
                _cleaner(unknown),
            )
            for name, unknown in self._inner.items()
            if name not in self._cut
        ]
        self._run = self._only_run(names)

    def _only_run(self, names: Sequence[str]) -> _Run | None:
        """Return the unknown fields of messages, if they are next to each other."""
        cut = [place for place, name in enumerate(names) if name in self._cut]
        if not cut or cut[0] < 2 or cut[-1] - cut[0] >= len(cut):
            return None
        before, after = names[cut[0] - 1], names[cut[-1] + 1 : cut[-1] + 2]
        if not {before, *after} <= _OUTER or self._cut & KINDS.keys():
            return None
        before_name = b',"%b":' % before.encode()
        return _Run(
            json.dumps(names[cut[0]], ensure_ascii=False).encode() + b":",
            before_name,
            _compiled(before_name + _pattern(KINDS[before])),
            b',"%b":' % after[0].encode() if after else b"",
        )

    def _can_skip(self, longest: str, following: str) -> bool:
        """Whether a text can be skipped up to a field."""
        return (
            self._may_skip
            and KINDS.get(longest) == "text"
            and following in _OUTER
            and not {longest, following} & self._cut
        )

    def _members(self, names: Sequence[str], first: str) -> bytes:
        """Return the pattern of fields of a message; what Python reads of them are its groups.

        :param first: the field that must be there, as must Id and Date
        """
        pattern = b""
        for is_cut, together in groupby(names, self._cut.__contains__):
            members = [self._member(name, name == first) for name in together]
            if is_cut:
                self._cleaners.append(None)
                members = [b"(%b)" % b"".join(members)]
            pattern += b"".join(members)
        return pattern

    def _member(self, name: str, is_first: bool) -> bytes:
        is_cut = name in self._cut
        value = _ANY
        if not is_cut:
            value = _REQUIRED.get(name) or _pattern(KINDS[name], self._inner.get(name, ()))
        comma = b"" if name == self._order[0] else b","
        member = b"%b%b:%b" % (comma, _named(name), value)
        if name in self._inner and not is_cut:
            self._cleaners.append(_cleaner(self._inner[name]))
            member = b"(?:%b|(%b))" % (member.removesuffix(value) + b"null", member)
        is_required = is_first or (name in _REQUIRED and not is_cut)
        return member if is_required else b"(?:%b)?+" % member

    def skip_nothing(self) -> None:
        """Learn that messages lack the field at which a skipped text ends."""
        self._may_skip = False
        self._compile()

    # -- cutting ----------------------------------------------------------------------------

    def strip(self, body: bytes, start: int) -> tuple[bytes, list[bytes]] | None:
        """Take the same unknown fields out of all messages of a page; None if that can't be.

        This is right if the rest is a page as the manual has it, with as many messages.

        :param start: the position of the first message
        :return: the rest, and what was taken out of each message, as JSON
        """
        first = _FIRST_NAME.match(body, start)
        run = self._run
        if first is None or run is None:
            return None
        boundary = b"}," + first[0]
        message, *pieces = body.split(b"," + run.start)
        rest = []
        odd = []
        for number, piece in enumerate(pieces, 1):
            # It is a field of the message, not of an inner object, if such a field is before it.
            if run.before.fullmatch(message, message.rfind(run.before_name)) is None:
                return None
            kept = b""
            for name, member, cleaner in self._kept:
                place = message.find(name)
                found = member.match(message, place) if place >= 0 else None
                if found is not None:
                    cleaned, times = cleaner.subn(b"", found[0])
                    if times:
                        kept += found[0][1:] + b","
                        message = message[:place] + cleaned + message[found.end() :]
            rest.append(message)
            is_last = number == len(pieces)
            if is_last and not run.after:
                end = piece.rfind(b"}]")
            else:
                end = piece.find(run.after or boundary)
            if end < 0 or (run.after and not is_last and piece.find(boundary, end) < 0):
                return None
            odd.append(b"{%b%b%b}" % (kept, run.start, piece[:end]))
            message = piece[end:]
        rest.append(message)
        return b"".join(rest), odd

    def split(self, body: bytes, start: int) -> Parts | None:
        """Cut the messages of a page; None if there are none, or their ends can't be found.

        :param start: the position of the first message
        """
        self._learn()
        first = _FIRST_NAME.match(body, start)
        if first is None:
            return None
        parts = Parts(body)
        parts.kept = self.kept
        parts.with_inner = any(KINDS.get(name) in _INNER for name in self._cut)
        # Looked up once: this takes a third of the time of the loop.
        match, match_rest, anchor = self._start.match, self._rest.match, self._anchor
        find, add, has_groups = body.find, parts.add, bool(self._cleaners)
        while True:
            begun = found = match(body, start)
            if anchor and begun is not None:
                # Where there is no anchor, find's -1 is taken for 0, where no field is.
                found = match_rest(body, find(anchor, begun.end()))
            end = len(body) if found is None else found.end()
            following = body[end : end + 1]
            if found is not None and following in {b",", b"]"}:
                row = add(start, end)
                if has_groups:
                    spans = found.regs[1:]
                    if begun is not None and begun is not found:
                        spans = begun.regs[1:] + spans
                    self._cut_fields(parts, row, spans)
            else:
                item, end = _item_at(body, start, b"}," + first[0])
                if not end:
                    return None
                parts.unread[add(start, end)] = item
                following = body[end : end + 1]
            if following == b"]":
                break
            start = end + 1
        if self.has_lone_surrogates:
            parts.suspects = _rows_of(_lone_surrogates(body), parts.spans)
        return parts

    def _cut_fields(self, parts: Parts, row: int, spans: Sequence[tuple[int, int]]) -> None:
        odd = b""
        for (start, end), cleaner in zip(spans, self._cleaners, strict=True):
            if start == end:
                continue
            text = parts.body[start:end]
            if cleaner is None:
                # With the comma after it, if no other field is before it.
                parts.cut(row, start, end if text[:1] == b"," else end + 1)
            else:
                cleaned, times = cleaner.subn(b"", text)
                if not times:
                    continue
                parts.cut(row, start, end, cleaned)
            odd += text
        if odd:
            parts.odd[row] = b"{%b}" % odd.removeprefix(b",")


def _lone_surrogates(body: bytes) -> Iterator[int]:
    """Yield where escaped halves of pairs are; also escaped backslashes that look like them."""
    for escape in (b"\\ud", b"\\uD"):
        place = body.find(escape)
        while place >= 0:
            pair = _PAIR.match(body, place)
            if pair is None and _HALF.match(body, place):
                yield place
            place = body.find(escape, pair.end() if pair else place + len(escape))


def _rows_of(places: Iterable[int], spans: Sequence[tuple[int, int]]) -> set[int]:
    """Return the messages in which these places are."""
    return {bisect_right(spans, place, key=itemgetter(0)) - 1 for place in places} - {-1}


def _cleaner(unknown: Iterable[str]) -> re.Pattern[bytes]:
    """Return the pattern of the unknown parts of inner objects, to take them out."""
    members = _members(dict.fromkeys(unknown, _ANY))
    return _compiled(rb"(?:,(?:%b))++|(?<=\{)(?:(?:%b),?)++" % (members, members))


def _is_other(name: str, known: Iterable[str]) -> bool:
    """Whether it is another spelling of a known name, which is no unknown field (R42)."""
    return name not in known and name.lower() in {other.lower() for other in known}


def _parted(name: str, value: Any) -> tuple[Any, set[str]]:
    """Return a sender or files without unknown parts, and these parts' names."""
    kind = KINDS.get(name)
    if kind == "files" and isinstance(value, list):
        parted = [_without(file, FILE_FIELDS) for file in value]
        return [known for known, _ in parted], set().union(*(unknown for _, unknown in parted))
    if kind == "sender":
        return _without(value, SENDER_FIELDS)
    return value, set()


def _without(value: Any, fields: Fields) -> tuple[Any, set[str]]:
    if not isinstance(value, dict):
        return value, set()
    known = {name for name, _, _ in fields}
    unknown = {part for part in value if part not in known and not _is_other(part, known)}
    return {part: value[part] for part in value if part not in unknown}, unknown


def _item_at(body: bytes, at: int, boundary: bytes) -> tuple[Any, int]:
    """Parse the message at a position; return it and the position after it, or 0."""
    end = at
    for _ in range(_MAX_ENDS):
        following = body.find(boundary, end)
        end = (following if following >= 0 else body.rfind(b"}]", at)) + 1
        if end <= at:
            break
        try:
            return parse(body[at:end]), end
        except (ValueError, RecursionError):
            if following < 0:
                break
    return None, 0
