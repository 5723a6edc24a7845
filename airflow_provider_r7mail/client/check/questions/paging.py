"""Order, Count, page size and offset (R1, R2, R3): what pages of several sizes show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from airflow_provider_r7mail.client.check.evidence import Page
from airflow_provider_r7mail.client.check.inquiry import MAX_PAGE_BYTES, Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, unknown
from airflow_provider_r7mail.exceptions import R7MailConnectionError

LARGER_PAGES = (200, 1000)

ENOUGH = 50
"""Messages in a page that show that there is no cap of fewer (R3)."""


@dataclass(frozen=True, slots=True)
class End:
    """What was seen where the largest page ended: the page, what follows it, and it once more."""

    page: Page
    tail: Page
    again: Page

    @property
    def calm(self) -> bool:
        """Whether the page was the same both times."""
        return set(self.page.keys) == set(self.again.keys)

    @property
    def follows(self) -> bool:
        """Whether messages follow that were on neither page."""
        return not {*self.page.keys, *self.again.keys}.issuperset(self.tail.keys)

    @property
    def total(self) -> int | None:
        """How many messages the folder has, if the page held them all."""
        ended = len(self.page.rows) < self.page.asked and not self.tail.rows
        return len(self.page.rows) if self.calm and ended else None


class Paging(Question):
    """Order, Count, page size and offset."""

    about = "page sizes"
    subjects = (
        Subject("sort_one", "R1", "Order that sortOrder 1 means", "Finds it out from each answer."),
        Subject(
            "count",
            "R2",
            "What Count counts",
            "Compares it in the end, where it counts all messages.",
        ),
        Subject("page_cap", "R3", "Most messages in a page", "Takes no short page for the end."),
        Subject(
            "offset", "R3", "Paging by offset", "Pages by date; by offset only within one second."
        ),
    )

    def __init__(self) -> None:
        self._end: End | None = None

    def ask(self, inquiry: Inquiry) -> Findings:
        """Request pages of several sizes, what follows the largest one, and that one again."""
        for size in (1, 10):
            inquiry.fetch(size)
        longest = _largest_page(inquiry)
        for _ in range(2):
            tail = inquiry.fetch(10, offset=len(longest.rows))
            end = self._end = End(longest, tail, inquiry.fetch(longest.asked))
            if end.calm:
                break
            longest = end.again
        return {"page_cap": cap_of(end), "offset": offset_of(end)}

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Read the order and the counts of all pages, and whether any was too long."""
        first_pages = [page for page in inquiry.unfiltered if page.offset == 0]
        found = {
            "sort_one": order_of(inquiry.pages, self._end),
            "count": count_of(first_pages, self._end),
        }
        longer = [page for page in inquiry.pages if len(page.rows) > page.asked]
        if longer:
            says = f"{len(longer[0].rows)} came where {longer[0].asked} were asked for"
            found["page_cap"] = "outside", "exceeded", says
        return found


def _largest_page(inquiry: Inquiry) -> Page:
    """Request ever larger pages while they are full; return the last one that came."""
    page = inquiry.pages[0]
    for size in LARGER_PAGES:
        if len(page.rows) < page.asked or _is_too_much(page, size, inquiry.config.timeout):
            break
        try:
            page = inquiry.fetch(size, tries=1)
        except R7MailConnectionError:
            break  # reported with the failures
    return page


def _is_too_much(page: Page, size: int, timeout: float) -> bool:
    """Whether a page of this size would be a burden on the server, judging by another one."""
    times = size / max(len(page.rows), 1)
    return page.bytes * times > MAX_PAGE_BYTES or page.seconds * times > min(10.0, timeout / 4)


def order_of(pages: Sequence[Page], end: End | None) -> Verdict:
    """Return what sortOrder 1 means (R1), by the dates on single pages.

    :param pages: all pages
    :param end: what was seen where the largest of them ended
    """
    told = _order_on(pages)
    if told[0] != "unknown" or end is None or not end.page.rows or not end.tail.rows:
        return told
    if end.page.keys != end.again.keys:
        return told
    # Pages of one message each: the later place has the later date, or the earlier.
    return _order_on([replace(end.page, rows=(end.page.rows[-1], end.tail.rows[0]))])


def _order_on(pages: Sequence[Page]) -> Verdict:
    signs: set[bool] = set()
    for page in pages:
        seconds = [int(row.date.timestamp()) for row in page.rows if row.date is not None]
        signs |= {b > a for a, b in pairwise(seconds) if a != b}
    if len(signs) == 2:
        return "outside", "none", "neither: dates rise and fall. No window can be read like this"
    if not signs:
        return unknown("no page had messages of two different seconds")
    if signs == {True}:
        return "ok", "ascending", "the earliest first"
    return "ok", "descending", "the latest first"


def cap_of(end: End) -> Verdict:
    """Return the most messages that the server puts in a page (R3)."""
    got, asked = len(end.page.rows), end.page.asked
    if got >= asked:
        return "ok", "none seen", f"none up to {got}"
    if end.total is not None:
        if got < ENOUGH:
            return unknown(f"the folder has only {got} messages")
        return "ok", "none seen", f"none up to {got}, which is all that the folder has"
    if got > 0 and end.follows and len(end.again.rows) == got:
        return "note", got, f"{got}, whatever is asked for"
    return unknown("the folder changed while it was looked at")


def offset_of(end: End) -> Verdict:
    """Return whether `offset` has an effect (R3)."""
    if not end.page.rows or len({row.date for row in end.page.rows}) < 2:
        return unknown("the pages had no messages of two dates")
    first = end.page.rows[0].key
    if not end.tail.rows or first is None or end.tail.rows[0].key != first:
        return "ok", "works", "works"
    if end.again.rows and end.again.rows[0].key == first:
        return "outside", "ignored", "offset has no effect: each page is the first"
    return unknown("the folder changed while it was looked at")


def count_of(pages: Sequence[Page], end: End | None) -> Verdict:
    """Return what Count counts (R2).

    :param pages: pages at offset 0 without any filter, in the order they came
    :param end: what was seen where the largest of them ended
    """
    counted = [(page.count, len(page.rows)) for page in pages if page.count is not None]
    if not counted:
        return "note", "absent", "there is none"
    if any(count < rows for count, rows in counted):
        return "outside", "less", "it is less than the messages that came with it"
    exact = [page for page in pages if page.count == len(page.rows)]
    # Larger pages before and after show that there were more all the time. More by two: of a
    # folder of two messages, one may have gone, and another come.
    of_page = any(
        len(a.rows) - 1 > len(b.rows) < len(c.rows) - 1 and len(b.rows) == b.asked
        for a, b, c in combinations(exact, 3)
    )
    of_all = any(count > rows for count, rows in counted)
    if end is not None and cap_of(end)[0] == "note":
        of_page = of_page or end.again.count == len(end.again.rows)
    elif (
        end is not None and end.total is not None and end.page.count == end.again.count != end.total
    ):
        return "outside", "neither", "neither all messages nor those of the page"
    if of_all != of_page:
        reading = "all" if of_all else "page"
        return "ok", reading, "all messages that match" if of_all else "those of the page only"
    return unknown("the whole folder was on each page, or it changed meanwhile")


QUESTIONS = (Paging,)
