"""Whether searches of texts find new mail (R40)."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from airflow_provider_r7mail.client import answers, calls
from airflow_provider_r7mail.client.check.evidence import Listing, Row, dated
from airflow_provider_r7mail.client.check.inquiry import FIRST_PAGE, Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, unknown
from airflow_provider_r7mail.client.dates import to_microseconds
from airflow_provider_r7mail.client.models import MessageFilter

NEW = timedelta(minutes=2)
"""The index may not have learned yet of mail that is so young."""

LOOKS = 4
"""How often to look for what the check has sent, a second apart."""


class Known(NamedTuple):
    """A message with a subject."""

    row: Row
    subject: str


class Texts(Question):
    """Search for an old and a new message by their subjects."""

    about = "searches of texts"
    subjects = (
        Subject(
            "index",
            "R40",
            "Searches of texts",
            "The event trigger looks back further with `query`, `body` or `subject`.",
        ),
    )

    def __init__(self) -> None:
        self._ends: dict[int, tuple[Known, Known]] = {}

    def see(self, listing: Listing) -> None:
        """Keep the subjects of the oldest and the newest message of each folder."""
        soon = datetime.now(UTC) + timedelta(minutes=1)
        for row, item in zip(listing.page.rows, listing.items, strict=True):
            subject = item.get("Subject")
            if row.key is None or row.date is None or row.date > soon:  # of a wrong clock (R27)
                continue
            if not isinstance(subject, str) or not subject:
                continue
            known = Known(row, subject)
            oldest, newest = self._ends.get(listing.page.folder, (known, known))
            self._ends[listing.page.folder] = (
                min(oldest, known, key=lambda known: dated(known.row)[::-1]),
                max(newest, known, key=lambda known: dated(known.row)[::-1]),
            )

    def ask(self, inquiry: Inquiry) -> Findings:
        """List the mail of the last minutes, and search for the newest message of it."""
        return {"index": self._verdict(inquiry)}

    def _verdict(self, inquiry: Inquiry) -> Verdict:
        for look in range(LOOKS if inquiry.send_to else 1):
            time.sleep(min(look, 1))
            # To the second: servers may refuse finer bounds than the manual's.
            since = (inquiry.now - NEW).replace(microsecond=0)
            inquiry.fetch(FIRST_PAGE, start=to_microseconds(since))
            ends = self._ends.get(inquiry.folder)
            if ends is not None and dated(ends[1].row)[1] > to_microseconds(inquiry.now - NEW):
                break
        if ends is None:
            return unknown("no message with a date and a subject was seen")
        oldest, newest = ends
        age = (to_microseconds(inquiry.now) - dated(newest.row)[1]) / 1e6
        if age > NEW.total_seconds():
            return unknown("no mail has arrived in the last two minutes: check again when some has")
        if not _finds(inquiry, oldest) or oldest.row.key == newest.row.key:
            return unknown("a search doesn't find older mail by its subject, either")
        if _finds(inquiry, newest):
            return "ok", "found", f"find mail of {age:.0f} s ago"
        if not inquiry.near(newest.row).holds(newest.row.key):
            return unknown("the newest message was moved or deleted")
        return "note", "late", f"don't find mail of {age:.0f} s ago yet, which is listed"


def _finds(inquiry: Inquiry, known: Known) -> bool:
    """Whether a search for a message's subject finds it, among not too many others."""
    call = calls.list_messages(
        inquiry.folder,
        MessageFilter(subject=known.subject),
        empty_labels=inquiry.traits.empty_labels,
        start=None,
        end=None,
        offset=0,
        size=min(FIRST_PAGE, inquiry.served_size),
        parse=answers.parse_items,
    )
    (items, _), _ = inquiry.ask(call)
    found = [Row.of(item) for item in items]
    # By --write, it may have moved there and back, and have another id now (R35).
    return any(
        row.key == known.row.key or row.mime_id == known.row.mime_id is not None for row in found
    )


QUESTIONS = (Texts,)
