"""What a server's answers show of the contract's open points. Decides only: no I/O, no Airflow.

A reading is named only where the answers leave no other. The mailbox is in use meanwhile: what
rests on two answers is looked at a third time, and left open if the mailbox changed in between.
Nothing that is told holds mail: numbers, readings, and names of API fields.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations, pairwise, product
from typing import Any, Literal

from airflow_provider_r7mail.client.dates import parse_api_date, to_microseconds
from airflow_provider_r7mail.client.fields import KINDS

Level = Literal["ok", "unknown", "note", "warning", "outside"]
"""`unknown`: could not be determined. `note`: worth knowing, and handled. `warning`: something
will not work as hoped. `outside`: the server does what the contract rules out."""

Reading = str | int | bool | list[str] | None

Told = tuple[Level, Reading, str]
"""What was found out: how it is to be taken, for programs, and in words."""

MAX_FILE_BYTES = 1 << 20
"""The largest attachment that is downloaded."""

MAX_TIE_LOOKS = 11
CHANCE = 0.001
"""How likely, at most, an order of ties is a play of chance when it is named (R5)."""

ENOUGH = 50
"""Messages in a page that show that there is no cap of fewer (R3)."""

# Fields that the contract lets be null.
_NULLABLE = frozenset(
    {
        "ParentId",
        "To",
        "Cc",
        "Bcc",
        "ToName",
        "MimeReplyToId",
        "MessageId",
        "ThreadId",
        "HasThreadAttachments",
        "Attachments",
        "Children",
        "ReplyToId",
        "Labels",
        "Timestamp",
        "CsMd5",
        "CsUid",
        "TaskId",
    }
)
_ENVELOPE = frozenset({"FolderId", "Items", "Count", "UnreadCount"})


# -- what is seen ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """What is kept of a listed message.

    :param key: its Id, None if it has none that can be used
    :param date: its Date, None if it has none
    :param exact: whether `date` is all of it, no digit cut off
    :param labels: its labels
    :param read: its WasRead, None if unknown; `important` likewise
    :param receipts: whether a receipt is asked for
    :param mime_id: its MIME Message-ID: for a message whose Id changes when it is moved
    """

    key: int | None
    date: datetime | None
    exact: bool
    labels: tuple[int, ...]
    read: bool | None
    important: bool | None
    receipts: bool
    mime_id: str | None

    @property
    def touchable(self) -> int:
        """How well it suits a test of marking: a read one is better, 0 is not at all."""
        if self.receipts or self.read is None or self.important is None:
            return 0
        return 2 if self.read else 1


@dataclass(frozen=True, slots=True)
class Page:
    """A listing, without its mail."""

    asked: int
    offset: int
    filtered: bool
    rows: tuple[Row, ...]
    count: int | None
    bytes: int
    seconds: float

    @property
    def keys(self) -> tuple[int | None, ...]:
        """The messages' ids."""
        return tuple(row.key for row in self.rows)

    def holds(self, key: int | None) -> bool:
        """Whether a message is on it."""
        return key in self.keys


class Survey:
    """What the messages themselves show (R17, R20): counts of names, no values."""

    def __init__(self) -> None:
        self.messages: set[int] = set()
        self.unknown: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.null: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.rows = 0
        self.without_id = 0
        self.twice = 0
        self.named = 0
        self.unnamed = 0
        # Folder's message, its file's name, and its length: for a download.
        self.file: tuple[int, str, int] | None = None

    def add(self, items: Sequence[Any], envelope: Mapping[str, Any]) -> tuple[Row, ...]:
        """Take the items of a listing; return what is kept of them."""
        self.unknown.update(envelope.keys() - _ENVELOPE)
        rows = tuple(self._add(item) for item in items)
        keys = [row.key for row in rows if row.key is not None]
        self.twice += len(keys) - len(set(keys))
        self.messages.update(keys)
        return rows

    def _add(self, item: Any) -> Row:
        self.rows += 1
        raw = item if isinstance(item, Mapping) else {}
        key = _id(raw.get("Id"))
        self.without_id += key is None
        self.unknown.update(raw.keys() - KINDS.keys())
        self.missing.update(KINDS.keys() - raw.keys())
        for name in raw.keys() & KINDS.keys():
            if raw[name] is None:
                if name not in _NULLABLE:
                    self.null[name] += 1
            elif not _is_a(raw[name], KINDS[name]):
                self.wrong[name] += 1
        if key is not None:
            self._look_at_files(key, raw)
        date = _date(raw.get("Date"))
        labels, mime_id = raw.get("Labels"), raw.get("MessageId")
        return Row(
            key,
            date,
            # Python keeps six digits of a second's fraction.
            not re.search(r"\.\d{6}0*[1-9]", str(raw.get("Date"))),
            tuple(labels) if labels is not None and _is_a(labels, "ints") else (),
            _flag(raw.get("WasRead")),
            _flag(raw.get("Important")),
            bool(raw.get("IsReturnReceiptTo") or raw.get("IsDispositionNotificationTo")),
            mime_id if isinstance(mime_id, str) and mime_id else None,
        )

    def _look_at_files(self, key: int, raw: Mapping[str, Any]) -> None:
        files = raw.get("Attachments")
        if files and _is_a(files, "files"):
            self.named += 1
            names = Counter(str(file.get("FileName")) for file in files)
            for file in files:
                name, size = file.get("FileName"), file.get("Size")
                if not (_is_a(name, "text") and _is_a(size, "int") and names[name] == 1):
                    continue
                if 0 < size <= MAX_FILE_BYTES and (self.file is None or size < self.file[2]):
                    self.file = key, name, size
        elif raw.get("HasAttachments") is True:
            self.unnamed += 1


_PYTHON = {"int": int, "bool": bool, "text": str, "sender": Mapping}
_PARTS = {"texts": "text", "ints": "int", "files": "sender"}


def _is_a(value: Any, kind: str) -> bool:
    """Whether a value is of a kind that the tables know; anything goes for `json`."""
    if kind in _PARTS:
        return isinstance(value, list) and all(_is_a(item, _PARTS[kind]) for item in value)
    if kind == "date":
        try:
            parse_api_date(value)
        except ValueError:
            return False
        return True
    if kind not in _PYTHON:
        return True
    return isinstance(value, _PYTHON[kind]) and (kind != "int" or not isinstance(value, bool))


def _date(value: Any) -> datetime | None:
    try:
        return parse_api_date(value)
    except ValueError:
        return None


def _id(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


# -- what the answers mean ------------------------------------------------------------------


def order_of(pages: Sequence[Page]) -> Told:
    """What sortOrder 1 means (R1), by the dates on single pages."""
    signs: set[bool] = set()
    for page in pages:
        seconds = [int(row.date.timestamp()) for row in page.rows if row.date is not None]
        signs |= {b > a for a, b in pairwise(seconds) if a != b}
    if len(signs) == 2:
        return "outside", "none", "neither: dates rise and fall. No window can be read like this"
    if not signs:
        return "unknown", None, "no page had messages of two different seconds"
    if signs == {True}:
        return "ok", "ascending", "the earliest first"
    return "ok", "descending", "the latest first"


@dataclass(frozen=True, slots=True)
class End:
    """What was seen where the largest page ended: the page, what follows it, and it once more."""

    page: Page
    tail: Page
    again: Page

    @property
    def calm(self) -> bool:
        """Whether the page was the same both times."""
        return set(self.page.keys) == set(self.again.keys)

    @property
    def follows(self) -> bool:
        """Whether messages follow that were on neither page."""
        return not {*self.page.keys, *self.again.keys}.issuperset(self.tail.keys)

    @property
    def total(self) -> int | None:
        """How many messages the folder has, if the page held them all."""
        ended = len(self.page.rows) < self.page.asked and not self.tail.rows
        return len(self.page.rows) if self.calm and ended else None


def cap_of(end: End) -> Told:
    """The most messages that the server puts in a page (R3)."""
    got, asked = len(end.page.rows), end.page.asked
    if got >= asked:
        return "ok", "none seen", f"none up to {got}"
    if end.total is not None:
        if got < ENOUGH:
            return "unknown", None, f"the folder has only {got} messages"
        return "ok", "none seen", f"none up to {got}, which is all that the folder has"
    if got > 0 and end.follows and len(end.again.rows) == got:
        return "note", got, f"{got}, whatever is asked for"
    return "unknown", None, "the folder changed while it was looked at"


def offset_of(end: End) -> Told:
    """Whether `offset` has an effect."""
    if not end.page.rows or len({row.date for row in end.page.rows}) < 2:
        return "unknown", None, "the pages had no messages of two dates"
    first = end.page.rows[0].key
    if not end.tail.rows or first is None or end.tail.rows[0].key != first:
        return "ok", "works", "works"
    if end.again.rows and end.again.rows[0].key == first:
        return "outside", "ignored", "offset has no effect: each page is the first"
    return "unknown", None, "the folder changed while it was looked at"


def count_of(pages: Sequence[Page], end: End | None) -> Told:
    """What Count counts (R2).

    :param pages: pages at offset 0 without any filter, in the order they came
    :param end: what was seen where the largest of them ended
    """
    counted = [(page.count, len(page.rows)) for page in pages if page.count is not None]
    if not counted:
        return "note", "absent", "there is none"
    if any(count < rows for count, rows in counted):
        return "outside", "less", "it is less than the messages that came with it"
    exact = [page for page in pages if page.count == len(page.rows)]
    # Larger pages before and after show that there were more all the time. More by two: of a
    # folder of two messages, one may have gone, and another come.
    of_page = any(
        len(a.rows) - 1 > len(b.rows) < len(c.rows) - 1 and len(b.rows) == b.asked
        for a, b, c in combinations(exact, 3)
    )
    of_all = any(count > rows for count, rows in counted)
    wrong = False
    if end is not None and cap_of(end)[0] == "note":
        of_page = of_page or end.again.count == len(end.again.rows)
    elif end is not None and end.total is not None:
        wrong = end.page.count == end.again.count != end.total
    if wrong:
        return "outside", "neither", "neither all messages nor those of the page"
    if of_all != of_page:
        reading = "all" if of_all else "page"
        return "ok", reading, "all messages that match" if of_all else "those of the page only"
    return "unknown", None, "the whole folder was on each page, or it changed meanwhile"


_UNITS = {"second": 1_000_000, "millisecond": 1_000, "microsecond": 1}
_Mode = Literal["inclusive", "exclusive", "ignored"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """One way to read StartDate and EndDate (R4)."""

    unit: str
    start: _Mode
    end: _Mode

    def finds(self, probe: Probe) -> bool:
        """Whether a server that reads them so finds the message of a probe."""
        unit = _UNITS[self.unit]
        mode = self.start if probe.side == "start" else self.end
        date, bound = probe.date // unit, probe.bound // unit
        if mode == "ignored" or date == bound:
            return mode != "exclusive"
        return date > bound if probe.side == "start" else date < bound


@dataclass(frozen=True, slots=True)
class Probe:
    """A question to the server: whether a message is found with this bound.

    :param key: the message's id
    :param side: which of the bounds
    :param date: the message's date, in microseconds since 1970
    :param bound: the bound, likewise
    """

    key: int
    side: Literal["start", "end"]
    date: int
    bound: int

    @property
    def fine(self) -> bool:
        """Whether the bound needs more digits than the package ever sends."""
        return self.bound % 1_000 != 0


_MODES: tuple[_Mode, ...] = ("inclusive", "exclusive", "ignored")
ALL_BOUNDS = tuple(Bounds(unit, *modes) for unit in _UNITS for modes in product(_MODES, _MODES))


def probes_of(key: int, date: int) -> Iterator[Probe]:
    """The questions that a message of this date can answer: bounds at it, just off, and far off."""
    for step in (0, 1_000, -1_000, 1, -1):
        yield Probe(key, "start", date, date + step)
        yield Probe(key, "end", date, date + step)
    yield Probe(key, "start", date, date + 3_000_000)
    yield Probe(key, "end", date, date - 3_000_000)


def best_probe(probes: Sequence[Probe], alive: Sequence[Bounds]) -> Probe | None:
    """The question whose answer rules out most; None if none rules out any."""

    def worth(probe: Probe) -> tuple[bool, int]:
        found = sum(bounds.finds(probe) for bounds in alive)
        return not probe.fine, min(found, len(alive) - found)

    useful = [probe for probe in probes if worth(probe)[1] > 0]
    return max(useful, key=worth, default=None)


def ties_of(looks: Sequence[Sequence[int]]) -> Told | None:
    """The order of messages of one Date (R5), by several looks at them; None: look once more.

    :param looks: the ids in the order they came in
    """
    common = set(looks[0]).intersection(*looks[1:])
    orders = [tuple(key for key in look if key in common) for look in looks]
    more = len(orders) - 1
    if len(common) < 2 or more < 2:
        return None
    first, turned = orders[0], orders[0][::-1]
    seen = f"in {len(looks)} looks at {len(common)} messages"
    # How likely a random order looks like this, as a logarithm.
    chance, limit = -more * math.lgamma(len(common) + 1), math.log(CHANCE)
    turns = [a != b for a, b in pairwise(orders)]
    told: Told | None = None
    if any(order not in {first, turned} for order in orders):
        told = "note", "random", f"changes from one request to the next, {seen}"
    elif not any(turns):
        told = ("ok", "stable", f"the same each time, {seen}") if chance < limit else None
    elif all(turns):
        if chance < limit:
            told = "note", "reversed", f"turned round at every other request, {seen}"
    elif len(looks) >= MAX_TIE_LOOKS:
        # Turned round, with other people's requests in between, or by chance: who can tell.
        told = "note", "changes", f"changes irregularly, {seen}"
    return told


def expiry_of(tokens: object, now: datetime) -> Told:
    """The life that the login's answer states (R12)."""
    stated = tokens.get("ExpiredAt") if isinstance(tokens, Mapping) else None
    if stated is None:
        return "ok", "absent", "no ExpiredAt"
    expires = _date(stated)
    if not isinstance(stated, str) or (expires is None and not _is_a(stated, "date")):
        return "note", "unreadable", "ExpiredAt is no date"
    if expires is None:
        return "ok", "absent", "ExpiredAt is .NET's “no date”"
    hours = (expires - now).total_seconds() / 3_600
    life = f"{hours:.1f} h from now" if hours >= 0 else f"{-hours:.1f} h ago: in the past"
    offset = datetime.fromisoformat(stated.strip()).utcoffset()
    if offset is None:
        return "note", "no_zone", f"{life}, if it is UTC: ExpiredAt names no zone"
    if offset:
        return "ok", "other_zone", f"{life}; ExpiredAt is in another zone than UTC"
    return "ok", "future" if hours >= 0 else "past", life


def dated(row: Row) -> tuple[int, int]:
    """A row's id and date, in microseconds since 1970, of a row that has both."""
    assert row.key is not None  # noqa: S101
    assert row.date is not None  # noqa: S101
    return row.key, to_microseconds(row.date)


def targets_of(rows: Sequence[Row]) -> list[Row]:
    """Two messages whose dates tell most of R4: one within a second, and one at its beginning.

    Of those alike, one that stands alone, and an old one: it is looked for in what may be a
    crowded or a changing folder.
    """
    dates = [dated(row)[1] for row in rows]

    def crowd(row: Row) -> int:
        at = dated(row)[1]
        return bisect_right(dates, at + 4_000_000) - bisect_left(dates, at - 4_000_000)

    def fits(row: Row) -> str:
        fraction = dated(row)[1] % 1_000_000
        if not row.exact or 0 < fraction < 2_000 or fraction >= 998_000:
            return "no"
        if fraction == 0:
            return "whole second"
        return "millisecond" if fraction % 1_000 == 0 else "microsecond"

    found: dict[str, Row] = {}
    for row in sorted(rows, key=crowd):
        found.setdefault(fits(row), row)
    chosen = [found.get("microsecond") or found.get("millisecond")]
    chosen.append(found.get("whole second") or found.get("millisecond"))
    unique = list(dict.fromkeys(row for row in chosen if row is not None))
    return unique or list(found.values())[:1]


def names_of(counter: Counter[str], of: int) -> tuple[list[str], str]:
    """Names of fields and how often; those that are no names of fields are only counted."""
    plain = sorted(name for name in counter if re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,40}", name))
    told = [f"{name}" if counter[name] >= of else f"{name} (in some)" for name in plain[:20]]
    others = len(counter) - len(told)
    if others:
        told.append(f"{others} more")
    return plain[:20], ", ".join(told)
