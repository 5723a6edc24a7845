"""Which zone the server's dates are in, if they don't say (R43)."""

from __future__ import annotations

from airflow_provider_r7mail.client.check.inquiry import Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, unknown
from airflow_provider_r7mail.client.traits import HOUR


class Zones(Question):
    """Which zone dates are in."""

    subjects = (
        Subject(
            "zone",
            "R43",
            "Zone of dates",
            "Finds it out by searching; stops with an error if that doesn't show it.",
        ),
    )

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Read it from what was found out about StartDate and EndDate."""
        return {"zone": _zone_of(inquiry)}


def _zone_of(inquiry: Inquiry) -> Verdict:
    traits = inquiry.traits
    if not inquiry.rows():
        return unknown("no message with a date and an id was seen")
    if not any(page.zoneless for page in inquiry.pages):
        return _zone_of_timestamps(inquiry)
    if inquiry.zone_unknown:
        says = "neither dates nor StartDate and EndDate name one: no window can be extracted"
        return "warning", "not known", says
    if traits.bounds != "date":
        return unknown("dates don't name it, and searches don't show it")
    if traits.dates_offset is None:
        return "ok", "UTC", "dates don't name it; they are in UTC"
    zone = f"UTC{-traits.dates_offset / HOUR:+g}"
    return "note", zone, f"dates don't name it; they are in the server's local time, {zone} h"


def _zone_of_timestamps(inquiry: Inquiry) -> Verdict:
    if any(page.zoneless_timestamps for page in inquiry.pages):
        says = "Timestamp doesn't name one, though Date does: it is taken as UTC"
        return "note", "Timestamp in an unknown zone", says
    return "ok", "named", "dates name their zone"


QUESTIONS = (Zones,)
