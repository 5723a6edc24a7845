"""How late mail is, and whether its dates can be right (R27): Date beside Timestamp."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from airflow_provider_r7mail.client.check.evidence import Listing, Row
from airflow_provider_r7mail.client.check.inquiry import Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, Waits, unknown

ENOUGH = 20
"""Fewer messages say nothing about the others."""

HOUR, DAY = 3_600, 86_400
IMPORTED = 30 * DAY
"""Mail that is stored so much later was imported or moved: nobody waits for that."""

_FIRST_MAIL = datetime(1990, 1, 1, tzinfo=UTC)
_LAST_SECOND = datetime(2038, 1, 1, tzinfo=UTC)
_AHEAD = timedelta(minutes=5)


class Lateness(Question):
    """How long after its Date a message is stored."""

    subjects = (
        Subject(
            "lateness",
            "R27",
            "Time from Date to Timestamp",
            "Waits and looks again, as `settle_seconds` and the like say.",
        ),
    )

    def __init__(self) -> None:
        self._delays: dict[int, float] = {}

    def see(self, listing: Listing) -> None:
        """Measure each message once."""
        if listing.page.zoneless_timestamps:  # they may be hours off (R43)
            return
        for row in listing.page.rows:
            if row.key is not None and row.date is not None and row.stored is not None:
                self._delays[row.key] = (row.stored - row.date).total_seconds()

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Order the delays, and suggest how long to wait."""
        late = sorted(delay for delay in self._delays.values() if delay <= IMPORTED)
        imported = len(self._delays) - len(late)
        if len(late) >= ENOUGH:
            inquiry.waits = waits_of(late)
        return {"lateness": lateness_of(late, imported)}


def _within(delays: Sequence[float], share: float) -> float:
    """Return the delay that this share of messages does not exceed."""
    return delays[math.ceil(share * len(delays)) - 1]


def lateness_of(late: Sequence[float], imported: int) -> Verdict:
    """Return how late messages are.

    :param late: the delays in seconds, shortest first
    :param imported: number of messages that are later still
    """
    if not late:
        return unknown("no message with a Date and a Timestamp in a known zone was seen")
    half, most, nearly_all = (_within(late, share) for share in (0.5, 0.9, 0.99))
    says = (
        f"of {len(late)} messages, half within {_duration(half)}, 9 of 10 within "
        f"{_duration(most)}, 99 of 100 within {_duration(nearly_all)}, all within "
        f"{_duration(late[-1])}"
    )
    if imported:
        says += f"; {imported} more than 30 days later: imported, or dated wrongly"
    return "note" if nearly_all > HOUR else "ok", math.ceil(nearly_all), says


def waits_of(late: Sequence[float]) -> Waits:
    """Return how long to wait for mail.

    :param late: the delays in seconds, shortest first
    """
    settle = _rounded(_within(late, 0.9), 10, 10, HOUR)
    lookback = _rounded(2 * _within(late, 0.99), 600, 600, 7 * DAY)
    recheck = _rounded(1.2 * late[-1], HOUR, DAY, IMPORTED)
    return Waits(
        settle_seconds=settle,
        lookback=lookback,
        recheck_hours=recheck // HOUR,
        why=f"from Timestamp minus Date of {len(late)} messages",
    )


def _rounded(seconds: float, unit: int, least: int, most: int) -> int:
    """Round up to a multiple of a unit, within limits."""
    return min(max(math.ceil(seconds / unit) * unit, least), most)


def _duration(seconds: float) -> str:
    for limit, unit, name in ((120, 1, "s"), (2 * HOUR, 60, "min"), (2 * DAY, HOUR, "h")):
        if seconds < limit:
            return f"{math.ceil(max(seconds, 0) / unit)} {name}"
    return f"{math.ceil(seconds / DAY)} days"


class Clocks(Question):
    """Whether there are dates that can't be right: Date may be what the sender's clock said."""

    subjects = (
        Subject("clocks", "R27", "Dates that can't be right", "Goes by Date all the same."),
    )

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}

    def see(self, listing: Listing) -> None:
        """Keep each message once."""
        self._rows |= {row.key: row for row in listing.page.rows if row.key is not None}

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Count them."""
        if not self._rows:
            return {"clocks": unknown("the folder is empty")}
        return {"clocks": clocks_of(list(self._rows.values()), inquiry.login_time)}


def clocks_of(rows: Sequence[Row], now: datetime) -> Verdict:
    """Return which dates can't be right.

    :param rows: the messages
    :param now: the server's time
    """
    dates = [(row.date, row.stored or now) for row in rows if row.date is not None]
    counts = {
        "without one, such as 0001-01-01": len(rows) - len(dates),
        "before 1990, such as 1970": sum(date < _FIRST_MAIL for date, _ in dates),
        "in 2038 or later": sum(date >= _LAST_SECOND for date, _ in dates),
        "later than the message was stored": sum(
            stored + _AHEAD < date < _LAST_SECOND for date, stored in dates
        ),
    }
    found = [f"{count} {what}" for what, count in counts.items() if count]
    if not found:
        return "ok", [], f"none, in {len(rows)} messages"
    return "note", found, f"{', '.join(found)}; of {len(rows)} messages"


QUESTIONS = (Lateness, Clocks)
