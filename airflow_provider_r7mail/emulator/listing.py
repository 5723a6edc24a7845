"""Which messages a Messages call returns, and in what order: the open points R1 to R5."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.emulator.dates import TICKS_PER_SECOND, ticks_of_date_field

if TYPE_CHECKING:
    import random

    from airflow_provider_r7mail.emulator.folders import Folder, Stored
    from airflow_provider_r7mail.emulator.readings import Readings

_UNITS = {
    "day": 86_400 * TICKS_PER_SECOND,
    "second": TICKS_PER_SECOND,
    "millisecond": 10_000,
    "microsecond": 10,
}


@dataclass(frozen=True, kw_only=True)
class Search:
    """The parameters of a Messages call. Empty texts and None don't filter; bounds are in ticks."""

    query: str = ""
    body: str = ""
    sender: str = ""
    recipient: str = ""
    subject: str = ""
    labels: tuple[int, ...] | None = None
    was_read: bool | None = None
    start: int | None = None
    end: int | None = None
    offset: int = 0
    size: int = 50
    sort_order: int = 1
    order_field: str = "Date"

    @property
    def by_text(self) -> bool:
        """Whether the index of texts is searched (R40)."""
        return bool(self.query or self.body or self.subject)

    def by_date_only(self, readings: Readings) -> bool:
        """Whether the dates alone decide which messages match."""
        texts = (self.query, self.body, self.sender, self.recipient, self.subject)
        unlabelled = self.labels == () and readings.empty_labels == "unlabelled"
        flat = readings.threads == "flat"
        return not (any(texts) or self.labels or unlabelled) and flat and self.was_read is None


@dataclass(frozen=True)
class Page:
    """One page of a listing, with the counts in its response."""

    records: list[Stored]
    count: int
    unread_count: int


def find(
    folder: Folder, search: Search, readings: Readings, *, shuffle: random.Random, turn: int
) -> Page:
    """Return the page that a call asks for.

    :param shuffle: orders ties if ``ties="random"``.
    :param turn: number of this listing; every other one reverses ties if ``ties="reversed"``.
    """
    places = _dated_places(folder, search, readings)
    if not search.by_date_only(readings):
        places = [place for place in places if _matches(folder.records[place], search, readings)]
    if search.by_text and readings.index_seconds > 0:
        known = time.monotonic() - readings.index_seconds
        places = [place for place in places if folder.records[place].arrived <= known]
    if readings.row_per_label:
        places = [
            place
            for place in places
            for _ in range(max(len(folder.records[place].value("Labels") or ()), 1))
        ]
    size = search.size if readings.page_cap is None else min(search.size, readings.page_cap)
    offset = 0 if readings.ignore_offset else search.offset
    ascending = (search.sort_order == 1) == (readings.sort_one == "ascending")
    order_field = search.order_field if readings.order_by == "asked" else readings.order_by
    if order_field != "Date":
        ordered = sorted(places, key=_key_of(folder, order_field), reverse=not ascending)
        page: Sequence[int] = ordered[offset : offset + size]
    else:
        ties = _Ties(readings.ties, shuffle, turn)
        page = _cut(folder, places, range(offset, offset + size), ascending, ties)
    records = [folder.records[place] for place in page]
    counts = {
        "all": len(places),
        "page": len(records),
        "folder": len(folder.records),
        "unread": folder.unread,
    }
    return Page(records, counts[readings.count], folder.unread)


def _dated_places(folder: Folder, search: Search, readings: Readings) -> Sequence[int]:
    """Return the places in the folder whose dates are within the bounds (R4)."""
    whole = range(len(folder.records))
    start, end = search.start, search.end
    alone = readings.both_bounds and (start is None or end is None)
    if readings.ignore_dates or alone or (start is None and end is None):
        return whole
    first, last = _limits(start, end, readings)
    undated = bisect_left(folder.ticks, 0)
    if readings.bounds_field == "Timestamp":
        stamps = [ticks_of_date_field(record.value("Timestamp")) for record in folder.records]
        return [
            place
            for place, ticks in enumerate(stamps)
            if place < undated or (first <= ticks and (last is None or ticks < last))
        ]
    low = max(undated, bisect_left(folder.ticks, first))
    high = len(whole) if last is None else max(low, bisect_left(folder.ticks, last))
    as_earliest = readings.undated == "as_min" and start is None
    if undated and (as_earliest or readings.undated == "always"):
        return [*range(undated), *range(low, high)]
    return range(low, high)


def _limits(start: int | None, end: int | None, readings: Readings) -> tuple[int, int | None]:
    """Return what dates must reach, and stay below, in ticks."""
    unit = _UNITS[readings.precision]
    zone = int(readings.zone_hours * 3_600) * TICKS_PER_SECOND
    shift = zone if readings.bounds_as == "local" else 0
    day = zone if readings.precision == "day" else 0

    def truncated(bound: int) -> int:
        return (bound - shift + day) // unit * unit - day

    first = 0 if start is None else truncated(start) + (0 if readings.start_inclusive else unit)
    last = None if end is None else truncated(end) + (unit if readings.end_inclusive else 0)
    return first, last


@dataclass(frozen=True)
class _Ties:
    """The order of messages with the same Date in one response (R5)."""

    kind: str
    shuffle: random.Random
    turn: int

    def arrange(self, folder: Folder, places: Iterable[int]) -> list[int]:
        arranged: list[int] = []
        for _, group in groupby(places, key=folder.ticks.__getitem__):
            tied = list(group)
            if self.kind == "random":
                self.shuffle.shuffle(tied)
            elif self.turn % 2:
                tied.reverse()
            arranged += tied
        return arranged


def _cut(
    folder: Folder, places: Sequence[int], wanted: range, ascending: bool, ties: _Ties
) -> Sequence[int]:
    """Return a page of the matches in the order of the response.

    Only ties that overlap the page are arranged, because the others can't appear on it.
    """
    total = len(places)
    low, high = min(wanted.start, total), min(wanted.stop, total)
    if low >= high:
        return ()
    if not ascending:
        low, high = total - high, total - low
    if ties.kind == "stable":
        page = places[low:high]
        return page if ascending else page[::-1]
    key = folder.ticks.__getitem__
    first = bisect_left(places, key(places[low]), key=key)
    last = bisect_right(places, key(places[high - 1]), key=key)
    stretch = places[first:last]
    arranged = ties.arrange(folder, stretch if ascending else stretch[::-1])
    skipped = low - first if ascending else last - high
    return arranged[skipped : skipped + high - low]


def _matches(record: Stored, search: Search, readings: Readings) -> bool:
    """Return whether a message passes the filters other than dates. Text is case-insensitive."""
    if search.was_read is not None and bool(record.value("WasRead")) != search.was_read:
        return False
    if not _has_labels(set(record.value("Labels") or ()), search.labels, readings):
        return False
    if readings.threads == "heads" and record.value("ReplyToId") is not None:
        return False
    return (
        _has(search.subject, record.value("Subject"))
        and _has(search.sender, *_sender(record)[1:])
        and _has(search.recipient, *_texts(record.value("To")))
        and (not search.body or _has(search.body, record.value("Body"), record.value("HtmlBody")))
        and (not search.query or _has(search.query, *_queried(record)))
    )


def _has_labels(labels: set[int], wanted: tuple[int, ...] | None, readings: Readings) -> bool:
    """Return whether a message with these labels is found by a search for some (R31)."""
    if wanted == () and readings.empty_labels == "unlabelled":
        return not labels
    if not wanted:
        return True
    return bool(labels & set(wanted)) if readings.several_labels == "any" else labels >= set(wanted)


def _queried(record: Stored) -> list[Any]:
    recipients = [text for name in ("To", "Cc", "Bcc") for text in _texts(record.value(name))]
    return [record.value("Subject"), record.value("Body"), *_sender(record), *recipients]


def _sender(record: Stored) -> tuple[Any, Any]:
    sender = record.value("From")
    return (sender.get("Name"), sender.get("Address")) if isinstance(sender, dict) else (None, None)


def _texts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _has(wanted: str, *texts: Any) -> bool:
    if not wanted:
        return True
    folded = wanted.casefold()
    return any(isinstance(text, str) and folded in text.casefold() for text in texts)


def _key_of(folder: Folder, name: str) -> Any:
    """Return a sort key for any field: no value first, then numbers, then texts."""

    def key(place: int) -> tuple[int, Any]:
        value = folder.records[place].value(name)
        if name == "From":
            value = _sender(folder.records[place])[1]
        if value is None:
            return 0, 0
        if isinstance(value, int | float):
            return 1, value
        return 2, str(value).casefold()

    return key
