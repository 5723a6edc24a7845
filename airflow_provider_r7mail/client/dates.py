"""Dates as the API writes them, and the half-open windows of time in which mail is read.

No I/O, no Airflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from airflow_provider_r7mail.exceptions import R7MailConfigError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
MICROSECONDS = 1_000_000  # in a second


def parse_api_date(text: object) -> datetime | None:
    """Read a date as the API writes it.

    :param text: `2025-06-27T04:21:50Z`, with up to 9 fractional digits or an offset, or with no
        zone (taken as UTC); `0001-01-01T00:00:00`, .NET's "no date"; None
    :return: the date in UTC to the microsecond (further digits are cut), None for "no date"
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
    # Airflow's own dates are pendulum's, which can't be divided by a timedelta.
    return datetime(
        utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second, utc.microsecond, UTC
    )


def parse_moment(value: datetime | str | None, name: str) -> datetime | None:
    """Read a caller's point in time: a datetime or ISO 8601 text, UTC where it has no zone.

    :param value: the value; None and empty text mean "no bound"
    :param name: the parameter's name, for the error
    :raises R7MailConfigError: not a point in time
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError as error:
            raise R7MailConfigError(
                f"{name}: {value!r} is not a date. Give ISO 8601, like 2025-06-01T00:00:00Z."
            ) from error
    if not isinstance(value, datetime):
        raise R7MailConfigError(f"{name}: expected a datetime or ISO 8601 text, got {value!r}.")
    try:
        return _to_utc(value)
    except ValueError as error:
        raise R7MailConfigError(f"{name}: {value.isoformat()} is out of range in UTC.") from error


def format_api_date(value: datetime) -> str:
    """Write a UTC date as the manual's examples do: to the millisecond, with `Z`."""
    # Not strftime, which writes years before 1000 with fewer digits.
    return value.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open span of time, `[start, end)`; None is "no bound".

    The bounds are kept in UTC, whatever zone they come in; UTC where they have none.
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
        """Whether the moment lies in the window."""
        return (self.start is None or moment >= self.start) and (
            self.end is None or moment < self.end
        )

    def label(self) -> str:
        """The window as it stands in paths: `20250601T000000Z_20250602T000000Z`."""

        def stamp(moment: datetime | None) -> str:
            if moment is None:
                return "open"
            fraction = f".{moment.microsecond:06d}" if moment.microsecond else ""
            return f"{moment:%Y%m%dT%H%M%S}{fraction}Z"

        return f"{stamp(self.start)}_{stamp(self.end)}"


def to_microseconds(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - EPOCH) // MICROSECOND
