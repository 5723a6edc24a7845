"""What listings are sorted by, since the server may ignore `orderField` (R30)."""

from __future__ import annotations

from collections.abc import Mapping, Set

from airflow_provider_r7mail.client.check.evidence import directions
from airflow_provider_r7mail.client.check.inquiry import Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, unknown


class Sorting(Question):
    """What listings are sorted by."""

    subjects = (
        Subject(
            "sorted_by",
            "R30",
            "Field that listings are sorted by",
            "If it isn't Date, reads a window twice or more, with more requests.",
        ),
    )

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Look at the order of all single pages."""
        return {"sorted_by": sorted_by(directions(inquiry.pages))}


def sorted_by(found: Mapping[str, Set[bool]]) -> Verdict:
    """Return what listings are sorted by.

    :param found: where each field goes, from one message to the next
    """
    if not found["Date"]:
        return unknown("no page had messages from two different seconds")
    possible = [field for field, signs in found.items() if len(signs) == 1]
    if not possible:
        return "outside", "none", "neither Date nor Id nor Timestamp"
    if "Date" in possible and len(possible) > 1:
        return unknown(f"the messages seen have the same order by {' and by '.join(possible)}")
    if possible == ["Date"]:
        return "ok", "Date", "Date, as requested"
    reading = " or ".join(possible)
    return "note", reading, f"{reading}, though Date is requested"


QUESTIONS = (Sorting,)
