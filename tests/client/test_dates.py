from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pendulum
import pytest

from airflow_provider_r7mail.client.dates import (
    Window,
    format_api_date,
    parse_api_date,
    parse_moment,
)
from airflow_provider_r7mail.exceptions import R7MailConfigError

MOSCOW = timezone(timedelta(hours=3))
JUNE_1 = datetime(2025, 6, 1, tzinfo=UTC)
JUNE_2 = datetime(2025, 6, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("2025-06-27T04:21:50Z", datetime(2025, 6, 27, 4, 21, 50, tzinfo=UTC)),
        (" 2025-06-27T04:21:50Z\n", datetime(2025, 6, 27, 4, 21, 50, tzinfo=UTC)),
        ("2025-06-27T12:22:34.382021Z", datetime(2025, 6, 27, 12, 22, 34, 382021, tzinfo=UTC)),
        ("2025-06-20T13:30:39.1471832Z", datetime(2025, 6, 20, 13, 30, 39, 147183, tzinfo=UTC)),
        ("2025-06-20T13:30:39.147183299Z", datetime(2025, 6, 20, 13, 30, 39, 147183, tzinfo=UTC)),
        ("2025-06-20T13:30:39.1Z", datetime(2025, 6, 20, 13, 30, 39, 100000, tzinfo=UTC)),
        ("2025-06-20T13:30:39+03:00", datetime(2025, 6, 20, 10, 30, 39, tzinfo=UTC)),
        ("2025-06-20T13:30:39", datetime(2025, 6, 20, 13, 30, 39, tzinfo=UTC)),
        ("0001-01-01T00:00:00", None),
        ("0001-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00+03:00", None),
        ("0001-01-01T03:00:00", None),
    ],
)
def test_dates_of_the_api_are_read(text: str | None, expected: datetime | None) -> None:
    """Every date format in the manual's examples is read, including .NET's "no date"."""
    assert parse_api_date(text) == expected


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2025-13-01T00:00:00Z", 0, True, {}, "9999-12-31T23:59:59-05:00"]
)
def test_what_is_no_date_is_an_error(text: object) -> None:
    """An invalid date is an error, and never becomes another date."""
    with pytest.raises(ValueError):
        parse_api_date(text)


def test_dates_are_written_as_in_the_manual() -> None:
    """A bound is truncated to milliseconds, not rounded: `2025-06-19T23:59:59.999Z`."""
    assert format_api_date(datetime(2025, 6, 19, 23, 59, 59, 999999, tzinfo=UTC)) == (
        "2025-06-19T23:59:59.999Z"
    )
    assert format_api_date(JUNE_1) == "2025-06-01T00:00:00.000Z"
    assert format_api_date(datetime(33, 4, 3, tzinfo=UTC)) == "0033-04-03T00:00:00.000Z"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ("2025-06-01T00:00:00Z", JUNE_1),
        ("2025-06-01", JUNE_1),
        ("2025-06-01 03:00+03:00", JUNE_1),
        (datetime(2025, 6, 1), JUNE_1),  # noqa: DTZ001 - it is what is tested
        (datetime(2025, 6, 1, 3, tzinfo=MOSCOW), JUNE_1),
    ],
)
def test_moments_may_be_dates_or_text(
    value: datetime | str | None, expected: datetime | None
) -> None:
    """I can give `start` as a datetime or as ISO text; without a zone it is UTC."""
    assert parse_moment(value, "start") == expected


def test_moments_of_airflow_become_plain_dates() -> None:
    """A run's data interval, which has pendulum dates, is a window like any other."""
    moment = parse_moment(pendulum.datetime(2025, 6, 1, 3, tz="Europe/Moscow"), "start")

    assert moment == JUNE_1
    assert type(moment) is datetime


@pytest.mark.parametrize(
    "value", ["tomorrow", "None", 5, date(2025, 6, 1), "9999-12-31T23:59-05:00"]
)
def test_a_moment_that_cannot_be_read_is_named(value: Any) -> None:
    """An invalid `start` is an error that names the parameter."""
    with pytest.raises(R7MailConfigError, match=r"^start: "):
        parse_moment(value, "start")


def test_windows_are_half_open() -> None:
    """A message dated exactly at the end of a window belongs to the next one (R4)."""
    window = Window(JUNE_1, JUNE_2)

    assert window.holds(JUNE_1)
    assert window.holds(JUNE_2 - timedelta(microseconds=1))
    assert not window.holds(JUNE_2)
    assert not window.holds(JUNE_1 - timedelta(microseconds=1))
    assert Window().holds(JUNE_1)
    assert Window(start=JUNE_1).holds(JUNE_2)
    assert Window(end=JUNE_1) != Window(start=JUNE_1)
    assert not Window(end=JUNE_1).holds(JUNE_1)


def test_windows_are_in_utc() -> None:
    """A window given in Moscow time is the same window as in UTC, in the table's path, too."""
    moscow = Window(datetime(2025, 6, 1, 3, tzinfo=MOSCOW), datetime(2025, 6, 2, 3, tzinfo=MOSCOW))
    naive = Window(datetime(2025, 6, 1), datetime(2025, 6, 2))  # noqa: DTZ001

    assert moscow.label() == "20250601T000000Z_20250602T000000Z"
    assert naive == moscow == Window(JUNE_1, JUNE_2)


def test_labels_of_windows_differ_where_windows_do() -> None:
    """Different windows never share a path, even if a microsecond apart or unbounded."""
    short = Window(JUNE_1, JUNE_1 + timedelta(microseconds=1))

    assert short.label() == "20250601T000000Z_20250601T000000.000001Z"
    assert Window(start=JUNE_1).label() == "20250601T000000Z_open"
    assert Window().label() == "open_open"


@pytest.mark.parametrize("end", [JUNE_1, JUNE_1 - timedelta(days=1)])
def test_an_empty_window_is_an_error(end: datetime) -> None:
    """A window that doesn't end after its start is an error, not an empty table."""
    with pytest.raises(R7MailConfigError, match="half-open"):
        Window(JUNE_1, end)
