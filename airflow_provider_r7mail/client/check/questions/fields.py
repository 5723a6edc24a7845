"""Which ids and fields messages have (R20): names of fields and their frequency, no values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from airflow_provider_r7mail.client.check.evidence import Listing, is_a
from airflow_provider_r7mail.client.check.inquiry import Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Level, Subject, Verdict, unknown
from airflow_provider_r7mail.client.fields import ENVELOPE, KINDS

# Fields that the contract lets be null.
_NULLABLE = frozenset(
    {
        "ParentId",
        "To",
        "Cc",
        "Bcc",
        "ToName",
        "MimeReplyToId",
        "MessageId",
        "ThreadId",
        "HasThreadAttachments",
        "Attachments",
        "Children",
        "ReplyToId",
        "Labels",
        "Timestamp",
        "CsMd5",
        "CsUid",
        "TaskId",
    }
)
# Without these the package can do little with a message.
_NEEDED = {"Id", "Date"}


class Ids(Question):
    """Whether every message has an id of its own."""

    subjects = (
        Subject("ids", "R20", "Message ids", "Sets messages without one aside and reports them."),
    )

    def __init__(self) -> None:
        self._rows = 0
        self._missing = 0
        self._repeated = 0
        self._twice = 0

    def see(self, listing: Listing) -> None:
        """Count messages, those without an id, and ids that repeat, with the same date or not."""
        keys = [row.key for row in listing.page.rows if row.key is not None]
        repeated = len(listing.page.again)
        self._rows += len(listing.page.rows)
        self._missing += len(listing.page.rows) - len(keys)
        self._repeated += repeated
        self._twice += len(keys) - len(set(keys)) - repeated

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Compare the counts."""
        return {"ids": ids_of(self._rows, self._missing, self._twice, self._repeated)}


def ids_of(rows: int, missing: int, twice: int, repeated: int) -> Verdict:
    """Return whether messages have ids of their own.

    :param rows: number of messages listed
    :param missing: of how many of them the id is missing
    :param twice: how often an id was on a page again, with another date or none
    :param repeated: how often a message was on a page again (R34)
    """
    if not rows:
        return unknown("the folder is empty")
    if twice:
        return "outside", "twice", "a response had the same id twice"
    if missing:
        return "warning", "missing", f"{missing} of {rows} messages had no numeric id"
    if repeated:
        return "note", "twice", "a response had the same message twice"
    return "ok", "unique", "whole numbers, each once"


class Fields(Question):
    """Which fields are unknown, missing, null, or of another type."""

    subjects = (
        Subject("unknown_fields", "R20", "Unknown fields", "Keeps them in the column `extra`."),
        Subject("missing_fields", "R20", "Missing fields", "Leaves their columns null."),
        Subject("null_fields", "R20", "Null instead of a value", "Leaves their columns null."),
        Subject(
            "wrong_types", "R20", "Values of another type", "Keeps them in the column `extra`."
        ),
        Subject("names", "R42", "Case of field names", "Reads names in any case; slower."),
    )

    def __init__(self) -> None:
        self._rows = 0
        self._as_named = True
        self._unknown: Counter[str] = Counter()
        self._missing: Counter[str] = Counter()
        self._null: Counter[str] = Counter()
        self._wrong: Counter[str] = Counter()

    def see(self, listing: Listing) -> None:
        """Compare the fields of each message with the contract's."""
        self._as_named = self._as_named and listing.as_named
        self._unknown.update(listing.envelope.keys() - set(ENVELOPE))
        self._rows += len(listing.items)
        for item in listing.items:
            self._unknown.update(item.keys() - KINDS.keys())
            self._missing.update(KINDS.keys() - item.keys())
            self._compare(item)

    def _compare(self, item: Mapping[str, Any]) -> None:
        for name in item.keys() & KINDS.keys():
            if item[name] is None:
                if name not in _NULLABLE:
                    self._null[name] += 1
            elif not is_a(item[name], KINDS[name]):
                self._wrong[name] += 1

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Name the fields."""
        if not self._rows:
            return {subject.key: unknown("the folder is empty") for subject in self.subjects}
        return {
            "unknown_fields": fields_of(self._unknown, "note"),
            "missing_fields": fields_of(self._missing, _level_of(self._missing), self._rows),
            "null_fields": fields_of(self._null, _level_of(self._null), self._rows),
            "wrong_types": fields_of(self._wrong, "warning", self._rows),
            "names": ("ok", "documented", "as documented")
            if self._as_named
            else ("note", "other", "another case, such as camelCase"),
        }


def _level_of(counter: Counter[str]) -> Level:
    return "warning" if _NEEDED & counter.keys() else "note"


def fields_of(counter: Counter[str], level: Level, of: int = 0) -> Verdict:
    """Return the names of fields; count only those that don't look like one.

    :param counter: names, and how often they were seen
    :param level: the level if there are any
    :param of: number of messages; a field seen less often is "in some"
    """
    if not counter:
        return "ok", [], "none"
    plain = sorted(name for name in counter if re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,40}", name))
    named = plain[:20]
    told = [name if counter[name] >= of else f"{name} (in some)" for name in named]
    others = len(counter) - len(told)
    if others:
        told.append(f"{others} more")
    return level, named, ", ".join(told)


QUESTIONS = (Ids, Fields)
