"""How the server reads StartDate and EndDate (R4): searches for messages of known date.

All possible ways to read the bounds are listed; each probe rules out some of them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from airflow_provider_r7mail.client.check.evidence import SECOND, Row, dated
from airflow_provider_r7mail.client.check.inquiry import FIRST_PAGE, Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, unknown
from airflow_provider_r7mail.client.seek import ABOVE_SECONDS, BELOW_SECONDS

_UNITS = {"second": SECOND, "millisecond": 1_000, "microsecond": 1}
_Mode = Literal["inclusive", "exclusive", "ignored"]
_MODES: tuple[_Mode, ...] = ("inclusive", "exclusive", "ignored")

_MARGINS = (
    f"Also requests {BELOW_SECONDS} s before and {ABOVE_SECONDS} s after the window, and drops "
    "what is outside it."
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """One way to read StartDate and EndDate."""

    unit: str
    start: _Mode
    end: _Mode

    def finds(self, probe: Probe) -> bool:
        """Whether a server that reads the bounds this way finds the message of a probe."""
        unit = _UNITS[self.unit]
        mode = self.start if probe.side == "start" else self.end
        date, bound = probe.date // unit, probe.bound // unit
        if mode == "ignored" or date == bound:
            return mode != "exclusive"
        return date > bound if probe.side == "start" else date < bound


@dataclass(frozen=True, slots=True)
class Probe:
    """A search for a message with one bound at or near its date.

    :param key: the message's id
    :param side: which bound
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

    @property
    def window(self) -> tuple[int, int]:
        """Both bounds to search with: this one, and one far off on the other side."""
        low, high = sorted((self.date, self.bound))
        if self.side == "start":
            return self.bound, high + 3 * SECOND
        return low - 2 * SECOND, self.bound


ALL_BOUNDS = tuple(Bounds(unit, *modes) for unit in _UNITS for modes in product(_MODES, _MODES))


class DateBounds(Question):
    """How StartDate and EndDate are read."""

    about = "date bounds"
    subjects = (
        Subject("start_inclusive", "R4", "A message dated exactly StartDate", _MARGINS),
        Subject("end_inclusive", "R4", "A message dated exactly EndDate", "As above."),
        Subject("precision", "R4", "Precision of the bounds", "As above."),
    )

    def ask(self, inquiry: Inquiry) -> Findings:
        """Search for messages of known date until no probe tells more."""
        targets = targets_of(inquiry.rows())
        if not targets:
            return self._open("no message with a date and an id was seen")
        if inquiry.traits.bounds != "date" or inquiry.traits.dates_offset is not None:
            return self._open("it isn't known to the second which dates are found (R29, R43)")
        visible = [row for row in targets if inquiry.near(row).holds(row.key)]
        alive = _narrow(inquiry, visible)
        if not visible or not all(inquiry.near(row).holds(row.key) for row in visible):
            return self._open("a message it was tested with was moved or deleted")
        if all("ignored" in (bounds.start, bounds.end) for bounds in alive):
            # A message was found with a bound on its wrong side: it is rounded to more than that.
            inquiry.traits.settle("inexact")
        return {
            "start_inclusive": mode_of({bounds.start for bounds in alive}),
            "end_inclusive": mode_of({bounds.end for bounds in alive}),
            "precision": precision_of({bounds.unit for bounds in alive}),
        }

    def _open(self, why: str) -> Findings:
        return {subject.key: unknown(why) for subject in self.subjects}


def _narrow(inquiry: Inquiry, visible: Sequence[Row]) -> list[Bounds]:
    """Probe; return the ways to read the bounds that match all responses."""
    alive = list(ALL_BOUNDS)
    probes = [probe for row in visible for probe in probes_of(*dated(row))]
    while (probe := best_probe(probes, alive)) is not None:
        probes.remove(probe)
        start, end = probe.window
        search = inquiry.try_fetch if probe.fine else inquiry.fetch
        page = search(FIRST_PAGE, start=start, end=end)
        if page is None:  # the server rejects bounds with more digits than the manual shows
            probes = [other for other in probes if not other.fine]
            continue
        found = page.holds(probe.key)
        if found or inquiry.is_whole(page):
            alive = [bounds for bounds in alive if bounds.finds(probe) == found]
    return alive


def targets_of(rows: Sequence[Row]) -> list[Row]:
    """Choose two messages whose dates tell most: one within a second, one at its beginning.

    Among similar ones, prefer one that stands alone and is old: it is searched for in a folder
    that may be crowded or changing.
    """
    dates = [dated(row)[1] for row in rows]

    def crowd(row: Row) -> int:
        at = dated(row)[1]
        return bisect_right(dates, at + 4 * SECOND) - bisect_left(dates, at - 4 * SECOND)

    def fits(row: Row) -> str:
        fraction = dated(row)[1] % SECOND
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


def probes_of(key: int, date: int) -> Iterator[Probe]:
    """Return the probes for a message of this date: bounds at it, just off, and far off."""
    for step in (0, 1_000, -1_000, 1, -1):
        yield Probe(key, "start", date, date + step)
        yield Probe(key, "end", date, date + step)
    yield Probe(key, "start", date, date + 3 * SECOND)
    yield Probe(key, "end", date, date - 3 * SECOND)


def best_probe(probes: Sequence[Probe], alive: Sequence[Bounds]) -> Probe | None:
    """Return the probe that rules out most, whatever the response; None if none does."""

    def worth(probe: Probe) -> tuple[bool, int]:
        found = sum(bounds.finds(probe) for bounds in alive)
        return not probe.fine, min(found, len(alive) - found)

    useful = [probe for probe in probes if worth(probe)[1] > 0]
    return max(useful, key=worth, default=None)


def mode_of(modes: set[_Mode]) -> Verdict:
    """Return whether a bound is inclusive."""
    if modes == {"inclusive"}:
        return "ok", True, "is found: the bound is inclusive"
    if modes == {"exclusive"}:
        return "ok", False, "is not found: the bound is exclusive"
    return _undecided(modes, "the folder has no messages that would show it")


def precision_of(units: set[str]) -> Verdict:
    """Return how precisely dates are compared."""
    if units == {"millisecond", "microsecond"}:
        return "ok", "millisecond or finer", "to the millisecond or finer"
    if len(units) == 1:
        [unit] = units
        return "ok", unit, f"to the {unit}"
    return _undecided(units, "no message seen has a date with a fraction of a second")


def _undecided(left: set[_Mode] | set[str], why: str) -> Verdict:
    return unknown(why if left else "the responses match no single way to read the bounds")


QUESTIONS = (DateBounds,)
