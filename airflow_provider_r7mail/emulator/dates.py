"""The server's dates as .NET ticks: units of 100 ns since 0001-01-01 UTC, so no digit is lost.

A date that can't be parsed is ``UNDATED``, which sorts before every real one.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

TICKS_PER_SECOND = 10_000_000
UNDATED = -1

_EPOCH = datetime(1, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1, 1, 1)  # noqa: DTZ001 - for text in UTC
_TEXT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[T ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?)?"
)


def ticks_of_text(text: str) -> int | None:
    """Return the ticks of an ISO date, UTC unless it has an offset; None if it can't be parsed."""
    match = _TEXT.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    try:
        days = date(int(year), int(month), int(day)).toordinal() - 1
    except ValueError:
        return None
    hours, minutes, seconds = int(hour or 0), int(minute or 0), int(second or 0)
    if hours > 23 or minutes > 59 or seconds > 59:
        return None
    total = days * 86_400 + hours * 3_600 + minutes * 60 + seconds - _zone_seconds(zone)
    return total * TICKS_PER_SECOND + int(f"{fraction or '':0<7}"[:7])


def _zone_seconds(zone: str | None) -> int:
    if zone is None or zone == "Z":
        return 0
    seconds = int(zone[1:3]) * 3_600 + int(zone[-2:]) * 60
    return -seconds if zone[0] == "-" else seconds


def ticks_of_date_field(value: object) -> int:
    """Return the sort key of a message's ``Date``: ``UNDATED`` for anything that is not a date.

    That includes null, garbage, a missing field (pass None) and .NET's ``0001-01-01T00:00:00``.
    """
    found = ticks_of_text(value) if isinstance(value, str) else None
    return found if found is not None and found > 0 else UNDATED


def ticks_of(moment: datetime) -> int:
    """Return the ticks of a datetime, UTC unless it is aware."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1) * 10


def text_of(moment: datetime) -> str:
    """Format a datetime as the manual does: ``2025-06-27T04:21:50Z``, with microseconds if any."""
    return text_of_ticks(ticks_of(moment))


def text_of_ticks(ticks: int, digits: int | None = None) -> str:
    """Format ticks as ISO text in UTC.

    :param digits: number of fractional digits, 0 to 7; None takes the fewest of 0, 6 or 7.
    """
    seconds, fraction = divmod(ticks, TICKS_PER_SECOND)
    whole = (_NAIVE_EPOCH + timedelta(seconds=seconds)).isoformat()
    if digits is None:
        digits = 0 if not fraction else 6 if fraction % 10 == 0 else 7
    if digits == 0:
        return whole + "Z"
    return f"{whole}.{fraction // 10 ** (7 - digits):0{digits}d}Z"


def local_text(value: object, zone_hours: float) -> object:
    """Return the text of a date as the time of a zone, without naming it (R43)."""
    ticks = ticks_of_date_field(value)
    if ticks == UNDATED:
        return value
    return text_of_ticks(ticks + int(zone_hours * 3_600) * TICKS_PER_SECOND).removesuffix("Z")
