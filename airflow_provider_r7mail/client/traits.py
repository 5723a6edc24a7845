"""What a session has found out about its server: how it reads bounds, labels, order (R29 to R31).

No I/O, no Airflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from airflow_provider_r7mail.client.seek import ABOVE_SECONDS, BELOW_SECONDS
from airflow_provider_r7mail.client.sweep import Reach

Bounds = Literal["unknown", "date", "local time", "inexact", "timestamp", "ignored", "unexplained"]

EXACT = Reach(BELOW_SECONDS, ABOVE_SECONDS)
HOUR = 3600
# A day, and the largest distance of a time zone from UTC.
WIDE_REACH = Reach(38 * HOUR, 38 * HOUR)
# In summer, a zone may be an hour off from what a message of winter has shown.
ZONE_SLACK = HOUR

_BOUNDS: dict[Bounds, str] = {
    "unknown": "it is not known how the server reads StartDate and EndDate",
    "unexplained": "the server doesn't list a message that is searched for at its own Date",
    "date": "the server compares StartDate and EndDate with Date",
    "local time": "the server takes StartDate and EndDate for its local time",
    "inexact": "the server compares StartDate and EndDate by calendar day, or in an unusual zone",
    "timestamp": "the server compares StartDate and EndDate with Timestamp, not with Date",
    "ignored": "the server ignores StartDate and EndDate",
}


@dataclass(slots=True)
class Traits:
    """The readings of a server, as far as they matter for reading a folder.

    :param bounds: how StartDate and EndDate are read (R29)
    :param reach: how far beyond a span to request, for these bounds; None if only the whole folder
        is sure to have it
    :param offset: the server's local time minus UTC in seconds, for bounds in local time
    :param dates_offset: what to add to dates that don't name a zone, in seconds; None if they are
        in UTC (R43)
    :param by_date: whether listings are sorted by Date (R30); None if nothing has shown it
    :param replies: whether a reply to another message has been listed (R33)
    :param labels: whether `Labels: []` is known not to filter (R31): `sent` as it is, or
        `left out`, which can't filter; `unproven` if the server refuses a request without it
    :param zoneless_timestamps: whether Timestamps don't name a zone, though dates do (R43)
    :param empty_folders: folders without any mail when the session last looked
    """

    bounds: Bounds = "unknown"
    reach: Reach | None = EXACT
    offset: int | None = None
    dates_offset: int | None = None
    by_date: bool | None = None
    replies: bool = False
    labels: Literal["unknown", "sent", "left out", "unproven"] = "unknown"
    zoneless_timestamps: bool = False
    empty_folders: set[int] = field(default_factory=set)

    @property
    def empty_labels(self) -> bool:
        """Whether to send `Labels: []` where there are no labels to search for."""
        return self.labels != "left out"

    @property
    def sweeps(self) -> bool:
        """Whether a span can only be read by sweeps."""
        return self.reach != EXACT or self.by_date is False

    def settle(self, bounds: Bounds, offset: int | None = None) -> None:
        """Note how the server reads bounds."""
        self.bounds, self.offset = bounds, offset
        if bounds == "date":
            self.reach = EXACT
        elif offset is not None:
            self.reach = Reach(
                BELOW_SECONDS + ZONE_SLACK - offset, ABOVE_SECONDS + ZONE_SLACK + offset
            )
        else:
            self.reach = WIDE_REACH if bounds == "inexact" else None

    def describe(self) -> str:
        """Say what makes the server unusual, for a log line or an error."""
        parts = []
        if self.reach != EXACT:
            text = _BOUNDS[self.bounds]
            if self.offset is not None:
                text += f" (UTC{self.offset / HOUR:+g} h)"
            parts.append(f"{text} (R29)")
        if self.by_date is False:
            parts.append("the server doesn't sort messages by Date (R30)")
        return "; ".join(parts)

    def record(self) -> dict[str, Any]:
        """Return the readings for a manifest."""
        return {
            "bounds": self.bounds,
            "utc_offset_seconds": self.offset,
            "dates_offset_seconds": self.dates_offset,
            "sorted_by_date": self.by_date,
            "replies_listed": self.replies or None,
            "empty_labels": self.labels,
        }
