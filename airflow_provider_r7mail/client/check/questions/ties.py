"""Order of messages with the same Date (R5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

from airflow_provider_r7mail.client.check.evidence import Row
from airflow_provider_r7mail.client.check.inquiry import FIRST_PAGE, Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, unknown

MAX_LOOKS = 11
CHANCE = 0.001
"""An order is named if it would occur by chance at most this often."""


class Ties(Question):
    """Order of messages with the same Date."""

    about = "messages with the same Date"
    subjects = (
        Subject(
            "ties",
            "R5",
            "Order of messages with the same Date",
            "Identifies messages by id, not by position.",
        ),
    )

    def ask(self, inquiry: Inquiry) -> Findings:
        """List messages with the same Date again and again."""
        group = self._choose(inquiry)
        if len(group) < 2:
            return {"ties": unknown("no two messages seen have the same Date")}
        looks: list[list[int]] = []
        while len(looks) < MAX_LOOKS:
            page = inquiry.near(group[0])
            tied = [row for row in page.rows if row.date == group[0].date]
            looks.append([row.key for row in tied if row.key is not None])
            verdict = ties_of(looks)
            if verdict is not None:
                return {"ties": verdict}
        return {"ties": unknown(f"{len(looks)} requests were not enough to tell")}

    def _choose(self, inquiry: Inquiry) -> list[Row]:
        """Return the largest group of messages with the same Date that fits on a page."""
        groups: dict[datetime | None, list[Row]] = {}
        for row in inquiry.rows():
            groups.setdefault(row.date, []).append(row)
        most = min(FIRST_PAGE, inquiry.longest) - 5
        return max(groups.values(), key=lambda rows: (len(rows) <= most, len(rows)), default=[])


def ties_of(looks: Sequence[Sequence[int]]) -> Verdict | None:
    """Return the order that several responses show; None: one more is needed.

    :param looks: the ids in each response, in its order
    """
    common = set(looks[0]).intersection(*looks[1:])
    orders = [tuple(key for key in look if key in common) for look in looks]
    more = len(orders) - 1
    if len(common) < 2 or more < 2:
        return None
    first, turned = orders[0], orders[0][::-1]
    seen = f"in {len(looks)} requests for {len(common)} messages"
    # The probability that a random order looks like this, as a logarithm.
    chance, limit = -more * math.lgamma(len(common) + 1), math.log(CHANCE)
    turns = [a != b for a, b in pairwise(orders)]
    verdict: Verdict | None = None
    if any(order not in {first, turned} for order in orders):
        verdict = "note", "random", f"changes from one request to the next, {seen}"
    elif not any(turns):
        verdict = ("ok", "stable", f"the same each time, {seen}") if chance < limit else None
    elif all(turns):
        if chance < limit:
            verdict = "note", "reversed", f"reversed at every other request, {seen}"
    elif len(looks) >= MAX_LOOKS:
        # Reversed, with other people's requests in between, or by chance: impossible to tell.
        verdict = "note", "changes", f"changes irregularly, {seen}"
    return verdict


QUESTIONS = (Ties,)
