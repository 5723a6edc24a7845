"""Whether listings hide the replies in a thread (R33)."""

from __future__ import annotations

from collections import Counter

from airflow_provider_r7mail.client.check.evidence import Listing
from airflow_provider_r7mail.client.check.inquiry import Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, unknown


class Threads(Question):
    """Whether messages that reply to others are listed beside them."""

    subjects = (
        Subject(
            "threads",
            "R33",
            "Replies in a thread",
            "Reads what is listed, and no more.",
        ),
    )

    def __init__(self) -> None:
        self._threads: dict[int, object] = {}
        self._parents: set[object] = set()
        self._heads: set[int] = set()

    def see(self, listing: Listing) -> None:
        """Note which messages have children, and which are some."""
        for item, row in zip(listing.items, listing.page.rows, strict=True):
            if row.key is None:
                continue
            if item.get("HasChildren") is True:
                self._heads.add(row.key)
            if isinstance(item.get("ThreadId"), str):
                self._threads[row.key] = item["ThreadId"]
            self._parents |= {item.get("ParentId"), item.get("ReplyToId")}

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Look whether any of the children was listed."""
        sizes = Counter(self._threads.values())
        answered = {
            key for key in self._heads if key in self._parents or sizes[self._threads.get(key)] > 1
        }
        return {"threads": threads_of(len(self._heads), len(answered))}


def threads_of(heads: int, with_children: int) -> Verdict:
    """Return whether replies are listed.

    :param heads: number of messages with children
    :param with_children: of how many of them a child was listed
    """
    if not heads:
        return unknown("no message with HasChildren was seen")
    if with_children:
        return "ok", "listed", f"listed, for {with_children} of {heads} messages with HasChildren"
    says = (
        f"none is listed (messages with HasChildren: {heads}): they are in other folders, or the "
        "server lists only the first message of a thread"
    )
    return "note", "not seen", says


QUESTIONS = (Threads,)
