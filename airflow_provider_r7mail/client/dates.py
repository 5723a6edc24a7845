"""Dates as the API writes them, and the half-open windows of time in which mail is read.

No I/O, no Airflow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from airflow_provider_r7mail.client.parameters import read_text
from airflow_provider_r7mail.exceptions import R7MailConfigError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
MICROSECONDS = 1_000_000  # in a second


def parse_api_date(text: object) -> datetime | None:
    """Parse a date of the API.

    :param text: `2025-06-27T04:21:50Z`, with up to 9 fractional digits, an offset, or no zone
        (taken as UTC); `0001-01-01T00:00:00`, .NET's "no date"; None
    :return: the date in UTC, truncated to microseconds; None for "no date"
    :raises ValueError: anything else
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError(f"a date must be text, not {type(text).__name__}")  # noqa: TRY004
    value = datetime.fromisoformat(text.strip())
    if value.year == 1:
        return None
    return _to_utc(value)


def _to_utc(value: datetime) -> datetime:
    try:
        utc = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("the date is out of range") from error
    # A plain datetime: pendulum's, which Airflow uses, can't be divided by a timedelta.
    return datetime(
        utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second, utc.microsecond, UTC
    )


def parse_moment(value: object, name: str) -> datetime | None:
    """Parse a point in time given by the caller: a datetime or ISO 8601 text.

    :param value: the value, in UTC if it has no zone; None and empty text mean "no bound"; a
        number, which native rendering makes of `{{ ds_nodash }}`, is taken as its text
    :param name: name of the parameter, for the error
    :return: the moment in UTC, or None
    :raises R7MailConfigError: not a point in time
    """
    if not isinstance(value, datetime):
        text = (read_text(value, name, "a datetime or ISO 8601 text") or "").strip()
        if not text:
            return None
        try:
            value = datetime.fromisoformat(text)
        except ValueError as error:
            raise R7MailConfigError(
                f"{name}: {text!r} is not a date. Use ISO 8601, such as 2025-06-01T00:00:00Z."
            ) from error
    try:
        return _to_utc(value)
    except ValueError as error:
        raise R7MailConfigError(f"{name}: {value.isoformat()} is out of range in UTC.") from error


def format_api_date(value: datetime) -> str:
    """Format a date like the manual's examples: truncated to milliseconds, with `Z` for UTC."""
    # strftime would write years before 1000 with fewer than four digits.
    if value.utcoffset():
        return value.isoformat(timespec="milliseconds")
    return value.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


_FIRST = {
    name: re.compile(rb'"%s"\s*:\s*"(?!0001-)([^"]*)"' % name.encode(), re.IGNORECASE)
    for name in ("Date", "Timestamp")
}
_ZONE = re.compile(rb"(?:Z|[+-]\d\d:?\d\d)\s*$")


def lacks_zone(body: bytes, field: Literal["Date", "Timestamp"] = "Date") -> bool:
    """Whether a field's first date in a listing doesn't name a zone (R43).

    :param body: the response's bytes
    :param field: the field's name
    """
    found = _FIRST[field].search(body)
    return found is not None and not _ZONE.search(found[1])


def only_timestamps_lack_zone(body: bytes) -> bool:
    """Whether the Timestamps of a listing don't name a zone, though its dates do (R43)."""
    return (
        _FIRST["Date"].search(body) is not None
        and not lacks_zone(body)
        and lacks_zone(body, "Timestamp")
    )


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open time interval, `[start, end)`.

    :param start: first moment, converted to UTC; None for no bound
    :param end: the moment after the last one, likewise
    :raises R7MailConfigError: a bound is not a date, or the interval is empty
    """

    start: datetime | None = None
    end: datetime | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", parse_moment(self.start, "start"))
        object.__setattr__(self, "end", parse_moment(self.end, "end"))
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise R7MailConfigError(
                f"The window ends at {self.end.isoformat()}, which is not after its start "
                f"{self.start.isoformat()}. Windows are half-open: [start, end)."
            )

    def holds(self, moment: datetime) -> bool:
        """Whether a moment is in the window."""
        return (self.start is None or moment >= self.start) and (
            self.end is None or moment < self.end
        )

    def label(self) -> str:
        """Return the window as it is written in paths: `20250601T000000Z_20250602T000000Z`."""

        def stamp(moment: datetime | None) -> str:
            if moment is None:
                return "open"
            fraction = f".{moment.microsecond:06d}" if moment.microsecond else ""
            return f"{moment.year:04}{moment:%m%dT%H%M%S}{fraction}Z"  # %Y has no leading zeros

        return f"{stamp(self.start)}_{stamp(self.end)}"


def to_microseconds(moment: datetime) -> int:
    """Return the microseconds since 1970."""
    return (moment - EPOCH) // MICROSECOND
