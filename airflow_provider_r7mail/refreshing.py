"""The windows around an extract's own: which ones to refresh, and whether they fit together."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import pendulum

from airflow_provider_r7mail.client.dates import Window

log = logging.getLogger(__name__)


def earlier_windows(
    own: Window, count: int, stored: Iterable[Window], *, timetable: Any, first: datetime | None
) -> list[Window]:
    """Return the windows before a run's own, newest first, without gaps or overlaps.

    :param own: the run's own window, with both its bounds
    :param count: how many windows to return at most
    :param stored: the windows that the tables have
    :param timetable: the DAG's timetable, if there is one
    :param first: the DAG's `start_date`: no window that the tables don't have starts before it
    """
    assert own.start is not None  # noqa: S101 - the caller has checked it, and the next one
    assert own.end is not None  # noqa: S101
    schedule = _Schedule(timetable, own.start, own.end)
    bounds = [
        (window.start, window.end)
        for window in stored
        if window.start is not None and window.end is not None
    ]
    windows: list[Window] = []
    end = own.start
    while len(windows) < count:
        start = schedule.start(end)
        there = [begin for begin, finish in bounds if finish == end]
        if there and start not in there:
            start = min(there)
        elif not there and first is not None and start < first:
            break
        across = [Window(*pair) for pair in bounds if pair[0] < end and start < pair[1]]
        if not there and across:
            log.warning(
                "Not refreshing window %s or any before it: it overlaps %s in the tables, and mail "
                "would be in both. To refresh that one, extract it alone, with its start and end.",
                Window(start, end).label(),
                across[0].label(),
            )
            break
        windows.append(Window(start, end))
        end = start
    return windows


def misfit(own: Window, stored: Iterable[Window], timetable: Any) -> str | None:
    """Say how a window fails to fit the stored ones; None if it fits.

    It must not overlap one, and it must begin where the one before it ended. A gap that other
    windows may still fill is not a misfit, since windows may be extracted in any order.

    :param own: the window, with both its bounds
    :param stored: the windows that the tables have
    :param timetable: the DAG's timetable, if there is one
    """
    assert own.start is not None  # noqa: S101 - the caller has checked it, and the next one
    assert own.end is not None  # noqa: S101
    before: list[tuple[datetime, datetime]] = []
    for window in stored:
        if window == own or window.start is None or window.end is None:
            continue
        if window.start < own.end and own.start < window.end:
            return f"overlaps window {window.label()} in the tables: mail of both is there twice"
        if window.end <= own.start:
            before.append((window.end, window.start))
    if not before:
        return None
    end, start = max(before)
    schedule = _Schedule(timetable, own.start, own.end)
    if end < own.start and (
        own.start - end < own.end - own.start or schedule.goes_on_from(start, end)
    ):
        gap = Window(end, own.start).label()
        return f"does not begin where the one before it ended: mail of {gap} is left out"
    return None


class _Schedule:
    """The windows before a run's own, as the schedule has them.

    :param timetable: the DAG's timetable, if there is one
    :param start: start of the run's own window
    :param end: its end
    """

    def __init__(self, timetable: Any, start: datetime, end: datetime) -> None:
        self._own = start, end
        self._length = end - start
        try:
            # Airflow 3 gives tasks timetables that only describe themselves.
            from airflow.serialization.encoders import coerce_to_core_timetable  # noqa: PLC0415
        except ImportError:
            self._timetable = timetable
        else:
            self._timetable = coerce_to_core_timetable(timetable)
        self._fits = self._interval(end) == (start, end)

    def start(self, end: datetime) -> datetime:
        """Return the start of the window before, whose end is given.

        It is a data interval of the schedule if the run's own window is one, else as long as that.
        """
        interval = self._interval(end) if self._fits else None
        if interval is not None and interval[1] == end:
            return interval[0]
        return end - self._length

    def goes_on_from(self, start: datetime, end: datetime) -> bool:
        """Whether the run's own window is the schedule's next one after the given one."""
        from airflow.timetables.base import DataInterval, TimeRestriction  # noqa: PLC0415

        try:
            found = self._timetable.next_dagrun_info(
                last_automated_data_interval=DataInterval(
                    pendulum.instance(start), pendulum.instance(end)
                ),
                restriction=TimeRestriction(None, None, catchup=True),
            )
        except (AttributeError, NotImplementedError):
            return False  # no timetable, or one that can't tell
        return (
            found is not None and (found.data_interval.start, found.data_interval.end) == self._own
        )

    def _interval(self, end: datetime) -> tuple[datetime, datetime] | None:
        try:
            found = self._timetable.infer_manual_data_interval(run_after=pendulum.instance(end))
        except (AttributeError, NotImplementedError):
            return None  # no timetable, or one that can't tell
        return (found.start, found.end) if found.start < found.end else None
