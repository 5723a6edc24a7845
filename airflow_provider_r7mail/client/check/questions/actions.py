"""Whether marking and moving work (R15), and how the server responds to repeated actions (R23).

The only question that changes the mailbox. It restores the message in any case.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from airflow_provider_r7mail.client import calls
from airflow_provider_r7mail.client.check.evidence import SECOND, Row, dated
from airflow_provider_r7mail.client.check.inquiry import (
    MAX_WRITE_REQUESTS,
    Inquiry,
    Spent,
    failure_kind,
    why_stopped,
)
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, unknown
from airflow_provider_r7mail.client.spans import is_foreign
from airflow_provider_r7mail.exceptions import R7MailActionError, R7MailRequestError

# Pages to search for a message if many have a similar date.
_CROWDED = 3
_RESTORE_TRIES = 3
# A moved message may be listed only some time later, and get its new id even later (R35).
_MOVE_PAUSES = (0.0, 0.25, 0.75, 2.0)
ID_SECONDS = 1.0
_LOST_PAUSES = (0.0, 0.5, 1.5, 5.0, 15.0, 30.0)

_LOOKS = "Fails unless the response is `true`; after a retry, checks the listing."


class Actions(Question):
    """Mark and move one message, and restore it whatever happens."""

    about = "marking and moving"
    writes = True
    subjects = (
        Subject("mark_read", "R15", "Mark read and unread", _LOOKS),
        Subject("mark_important", "R15", "Mark important and not important", _LOOKS),
        Subject("move", "R15", "Move there and back", _LOOKS),
        Subject(
            "move_id",
            "R35",
            "Id of a moved message",
            "Returns the new ids of moved messages with `return_new_ids`.",
        ),
        Subject("repeat_answer", "R23", "Repeat a move", _LOOKS),
        Subject("unknown_mark_answer", "R15", "Mark a message not in the folder", _LOOKS),
        Subject("restored", "", "Message put back", ""),
    )

    def ask(self, inquiry: Inquiry) -> Findings:
        """Borrow a message, try everything with it, and restore it."""
        assert inquiry.write_folder is not None  # noqa: S101 - else it is not asked
        inquiry.allow_more(MAX_WRITE_REQUESTS)
        own = [row for row in inquiry.rows() if not is_foreign(row.folder, inquiry.folder)]
        row = choose(own)
        loan = None if row is None else Loan(inquiry, row, inquiry.write_folder)
        if loan is None or loan.look(inquiry.folder) is None:
            return self._open("no message was seen that could be marked and moved safely")
        try:
            loan.try_marks()
            loan.try_moves()
        except Spent as spent:
            loan.found = self._open(why_stopped(spent)) | loan.found
        finally:
            with inquiry.unlimited():
                loan.found["restored"] = loan.restore()
        return loan.found

    def _open(self, why: str) -> dict[str, Verdict]:
        return {subject.key: unknown(why) for subject in self.subjects}


def choose(rows: Sequence[Row]) -> Row | None:
    """Choose a message that is read, stands alone, and is old: nobody is likely to look at it."""
    rows = [row for row in rows if _touchable(row)]
    crowds = Counter(dated(row)[1] // SECOND for row in rows)

    def suits(row: Row) -> tuple[int, int, int]:
        at = dated(row)[1]
        return _touchable(row), -crowds[at // SECOND], -at

    return max(rows, key=suits, default=None)


def _touchable(row: Row) -> int:
    """Return how suitable a message is: 2 if it is read, 1 if unread, 0 if not at all."""
    # By its MIME id it is found again, should it have another Id after the move.
    if row.receipts or row.read is None or row.important is None or row.mime_id is None:
        return 0
    return 2 if row.read else 1


class Loan:
    """A message that is marked and moved, and restored.

    :param inquiry: what to make requests with
    :param row: the message as it was
    :param away: id of the folder it is moved to and back from
    """

    def __init__(self, inquiry: Inquiry, row: Row, away: int) -> None:
        self.found: dict[str, Verdict] = {}
        self._inquiry = inquiry
        self._before = row
        self._home = inquiry.folder
        self._away = away
        self._key = row.key or 0

    def look(self, folder: int) -> Row | None:
        """Return the message as a folder lists it now, and note its id; None if it is not there."""
        before, offset = self._before, 0
        for _ in range(_CROWDED):
            page = self._inquiry.near(before, folder, offset)
            for row in page.rows:
                same = before.mime_id and (row.mime_id, row.date) == (before.mime_id, before.date)
                if row.key is None or is_foreign(row.folder, folder):  # R32
                    continue
                if row.key == self._key or same:
                    self._key = row.key
                    return row
            if self._inquiry.is_whole(page):
                break
            offset += len(page.rows)
        return None

    def _await(self, folder: int) -> Row | None:
        """Return the message as soon as a folder lists it; None if it does not within seconds."""
        for pause in _MOVE_PAUSES:
            time.sleep(pause)
            if (row := self.look(folder)) is not None:
                return row
        return None

    def try_marks(self) -> None:
        """Mark it read and unread, important and not important."""
        before = self._before
        for key, name, mark in (
            ("mark_read", "read", self._mark_read),
            ("mark_important", "important", self._mark_important),
        ):
            value = bool(getattr(before, name))
            with self._noted(key):
                for wanted in (not value, value):
                    self._inquiry.ask(mark(wanted))
                    now = self.look(self._home)
                    if now is None:
                        self.found[key] = unknown("the message disappeared")
                        break
                    if getattr(now, name) is not wanted:
                        says = "the response is true, but the listing does not show the change"
                        self.found[key] = "warning", "no effect", says
                        break
                else:
                    self.found[key] = "ok", "works", "works, and the listing shows the change"

    def try_moves(self) -> None:
        """Move it to the other folder, repeat that, and move it back."""
        with self._noted("move"):
            self._inquiry.ask(calls.move_messages(self._home, [self._key], self._away))
            there = self._await(self._away)
            if there is None or self.look(self._home) is not None:
                says = "the response is true, but the listings do not show the change"
                self.found["move"] = "warning", "no effect", says
                return
            when = "at once"
            if there.key == self._before.key:
                self._try_refusals()
                time.sleep(ID_SECONDS)
                there, when = self.look(self._away) or there, "later"
            changed = there.key != self._before.key
            self._bring_home()
            if self._find(_MOVE_PAUSES) is None:
                says = "works; moving back returned true, but the listing does not show the change"
                self.found["move"] = "warning", "no way back", says
            else:
                self.found["move"] = "ok", "works", "works, and the listings show the change"
            self.found["move_id"] = move_id_of(changed, when)

    def _try_refusals(self) -> None:
        """Request what is already done, and what can't be done: both are harmless."""
        for key, call in (
            ("repeat_answer", calls.move_messages(self._home, [self._key], self._away)),
            ("unknown_mark_answer", self._mark_read(bool(self._before.read))),
        ):
            with self._noted(key):
                word = self._word(call)
                self.found[key] = "ok", word, f"the response is {word}"

    def _word(self, call: calls.Call[bool]) -> str:
        """Make a request; return the response in a word: true, false, or the status."""
        answer = self._inquiry.look(call)
        if answer.status == 200 and answer.body.strip() in {b"true", b"false"}:
            return answer.body.strip().decode()
        return str(answer.status) if answer.status != 200 else "something else"

    def restore(self) -> Verdict:
        """Restore its folder and marks, and verify them."""
        before = self._before
        why = "the listing shows something else"
        for _ in range(_RESTORE_TRIES):
            try:
                now = self._find(_LOST_PAUSES)
                if now is None:
                    why = "it is in neither folder, or does not come back"
                    break
                if now.read is not before.read:
                    self._inquiry.ask(self._mark_read(bool(before.read)))
                if now.important is not before.important:
                    self._inquiry.ask(self._mark_important(bool(before.important)))
                now = self.look(self._home)
            except R7MailRequestError as error:
                why = failure_kind(error)
                continue
            if now is not None and (now.read, now.important) == (before.read, before.important):
                return "ok", True, "is in its folder, and marked as it was"
        state = "read" if before.read else "unread"
        important = "important" if before.important else "not important"
        return (
            "warning",
            False,
            (
                f"NOT PUT BACK ({why}): message {self._key} was in folder {self._home}, {state} "
                f"and {important}. Look for it there and in folder {self._away}, and restore it"
            ),
        )

    def _find(self, pauses: Sequence[float]) -> Row | None:
        """Return the message in its folder; bring it back from the other one if it is there.

        An attempt with an id that has changed meanwhile has no effect.

        :param pauses: seconds before each look
        """
        for pause in pauses:
            time.sleep(pause)
            if (now := self.look(self._home)) is not None:
                return now
            if self.look(self._away) is not None:
                self._bring_home()
        return self.look(self._home)

    def _bring_home(self) -> None:
        self._inquiry.ask(calls.move_messages(self._away, [self._key], self._home))

    def _mark_read(self, read: bool) -> calls.Call[bool]:
        return calls.mark_as_read(self._home, [self._key], read=read)

    def _mark_important(self, important: bool) -> calls.Call[bool]:
        return calls.mark_as_important(self._home, [self._key], important=important)

    @contextmanager
    def _noted(self, key: str) -> Iterator[None]:
        """Note a failure and go on."""
        try:
            yield
        except R7MailActionError:
            self.found[key] = "warning", "refused", "the response is not true"
        except R7MailRequestError as error:
            self.found[key] = "warning", "failed", f"failed: {failure_kind(error)}"


def move_id_of(changed: bool, when: str) -> Verdict:
    """Return whether a move changes a message's id.

    :param changed: whether the id was another one when it was last looked at
    :param when: whether that was `at once`, or only `later`
    """
    if changed:
        return "note", f"new {when}", f"changes {when}: ids read before become invalid"
    return "ok", "same", f"the same {ID_SECONDS:g} s later"


QUESTIONS = (Actions,)
