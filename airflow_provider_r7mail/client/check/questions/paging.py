"""Order, Count, page size and offset (R1, R2, R3): what pages of several sizes show."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from itertools import combinations

from airflow_provider_r7mail.client.check.evidence import Listing, Page, directions
from airflow_provider_r7mail.client.check.inquiry import FIRST_PAGE, MAX_PAGE_BYTES, Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, unknown
from airflow_provider_r7mail.client.dates import to_microseconds
from airflow_provider_r7mail.client.samples import NOWHERE
from airflow_provider_r7mail.exceptions import R7MailConnectionError, R7MailServerError

LARGER_PAGES = (200, 1000)

_CHANGED = "the folder changed during the check"

FAR = 20_000
"""An offset up to which the package pages a folder that must be read as a whole (R29)."""

ENOUGH = 50
"""A page of this many messages, all of the folder, shows no limit (R3)."""


@dataclass(frozen=True, slots=True)
class End:
    """The largest page, the page after it, and the largest one again."""

    page: Page
    tail: Page
    again: Page

    @property
    def calm(self) -> bool:
        """Whether the page was the same both times."""
        return set(self.page.keys) == set(self.again.keys)

    @property
    def follows(self) -> bool:
        """Whether the page after it has messages that neither page had."""
        return not {*self.page.keys, *self.again.keys}.issuperset(self.tail.keys)

    @property
    def is_ignored(self) -> bool:
        """Whether offset has no effect: the page after it had only what was on the page."""
        return self.calm and bool(self.tail.rows) and not self.follows

    @property
    def total(self) -> int | None:
        """Number of messages in the folder, if the page held them all."""
        ended = len(self.page.rows) < self.page.asked and not self.tail.rows
        return len(self.page.rows) if self.calm and ended else None


class Paging(Question):
    """Order, Count, page size and offset."""

    about = "page sizes"
    subjects = (
        Subject("sort_one", "R1", "Order of sortOrder 1", "Detects it in each response."),
        Subject(
            "count",
            "R2",
            "What Count counts",
            "Compares it at the end if it counts all messages.",
        ),
        Subject("count_form", "R2", "Form of Count", "Reads numbers, also as text."),
        Subject(
            "page_cap",
            "R3",
            "Maximum messages per page",
            "Never takes a short page for the last one.",
        ),
        Subject(
            "size_limit",
            "R37",
            "Too large a page",
            "Requests smaller pages, down to 1.",
        ),
        Subject(
            "offset",
            "R3",
            "Paging by offset",
            "Pages by date, and by offset only within one second.",
        ),
    )

    def __init__(self) -> None:
        self._end: End | None = None
        self._nowhere: Page | None = None
        self._forms: set[str] = set()

    def see(self, listing: Listing) -> None:
        """Note whether Count is a number."""
        self._forms.add(_form_of(listing.envelope.get("Count")))

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
        first, last = map(to_microseconds, NOWHERE)
        self._nowhere = inquiry.fetch(FIRST_PAGE, start=first, end=last)
        return {"page_cap": cap_of(end), "offset": offset_of(end)}

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Read the order and Count of all pages, and see whether any was too long."""
        first_pages = [page for page in inquiry.unfiltered if page.offset == 0]
        found = {
            "sort_one": order_of(inquiry.pages, self._end),
            "count": count_of(first_pages, self._end, self._nowhere),
            "count_form": form_of(self._forms, inquiry.is_empty),
            "size_limit": limit_of(inquiry.refused_size, inquiry.served_size),
        }
        longer = [page for page in inquiry.pages if len(page.rows) > page.asked]
        if longer:
            says = f"{len(longer[0].rows)} returned where {longer[0].asked} were requested"
            found["page_cap"] = "outside", "exceeded", says
        return found


class Depth(Question):
    """How far a listing can be paged."""

    about = "large offsets"
    subjects = (
        Subject(
            "offset_limit",
            "R37",
            "Large offsets",
            "Pages by date; stops with an error if a listing must be paged further.",
        ),
    )

    def ask(self, inquiry: Inquiry) -> Findings:
        """Ask for a page far from the beginning, and again if it is refused."""
        if not inquiry.pages[0].rows:
            return {"offset_limit": unknown("the folder is empty")}
        call = inquiry.list_call(min(10, inquiry.served_size), FAR)
        for _ in range(2):
            answer = inquiry.look(call, counted=False)
            if answer.status == 200:
                return {"offset_limit": ("ok", "none seen", f"an offset of {FAR:,} is served")}
        says = f"an offset of {FAR:,} is refused ({answer.told})"
        return {"offset_limit": ("note", "refused", says)}


def _largest_page(inquiry: Inquiry) -> Page:
    """Request larger and larger pages while they are full; return the last one."""
    page = inquiry.pages[0]
    for size in LARGER_PAGES:
        if len(page.rows) < page.asked or _is_too_much(page, size, inquiry.config.timeout):
            break
        try:
            page = inquiry.fetch(size, tries=1)
        except R7MailConnectionError:
            break  # reported with the failures
        except R7MailServerError:
            if inquiry.refused_size is None:
                raise
            break
    return page


def _is_too_much(page: Page, size: int, timeout: float) -> bool:
    """Whether a page of this size would be a burden on the server, judging by a smaller one."""
    times = size / max(len(page.rows), 1)
    return page.bytes * times > MAX_PAGE_BYTES or page.seconds * times > min(10.0, timeout / 4)


def order_of(pages: Sequence[Page], end: End | None) -> Verdict:
    """Return what sortOrder 1 means (R1), by the dates on single pages.

    :param pages: all pages
    :param end: the largest page and the one after it
    """
    told = _order_on(pages)
    if told[0] != "unknown" or end is None or not end.page.rows or not end.tail.rows:
        return told
    if end.page.keys != end.again.keys:
        return told
    # Pages of one message each: compare the last message with the one after it.
    return _order_on([replace(end.page, rows=(end.page.rows[-1], end.tail.rows[0]))])


def _order_on(pages: Sequence[Page]) -> Verdict:
    found = directions(pages)
    if not found["Date"]:
        return unknown("no page had messages from two different seconds")
    field = next((field for field, signs in found.items() if len(signs) == 1), None)
    if field is None:
        return "outside", "none", "neither: dates go up and down, and so do Id and Timestamp"
    by = "" if field == "Date" else f", by {field}"
    if found[field] == {True}:
        return "ok", "ascending", f"earliest first{by}"
    return "ok", "descending", f"latest first{by}"


def cap_of(end: End) -> Verdict:
    """Return the maximum number of messages per page (R3)."""
    got, asked = len(end.page.rows), end.page.asked
    if got >= asked:
        return "ok", "none seen", f"no limit up to {got}"
    if end.total is not None:
        if got < ENOUGH:
            return unknown(f"the folder has too few messages ({got})")
        return "ok", "none seen", f"no limit up to {got}, all messages of the folder"
    if got > 0 and end.follows and len(end.again.rows) == got:
        return "note", got, f"{got}, whatever is requested"
    return unknown("offset has no effect" if end.is_ignored else _CHANGED)


def limit_of(refused: tuple[int, int] | None, served: int) -> Verdict:
    """Return whether a page was refused for its size (R37).

    :param refused: its size, and the status; None if there was none
    :param served: the largest size that was served
    """
    if refused is None:
        return "ok", "none seen", f"a request for {served} messages is served"
    says = f"{refused[0]} messages at once are refused (status {refused[1]}), {served} are not"
    return "note", "refused", says


def offset_of(end: End) -> Verdict:
    """Return whether `offset` has an effect (R3)."""
    if not end.page.rows or len({row.date for row in end.page.rows}) < 2:
        return unknown("the pages had no messages with different dates")
    if end.is_ignored:
        return "outside", "ignored", "offset has no effect: every page is the first one"
    first = end.page.rows[0].key
    if not end.tail.rows or first is None or end.tail.rows[0].key != first:
        return "ok", "works", "works"
    return unknown(_CHANGED)


def _form_of(count: object) -> str:
    if count is None:
        return "null"
    return "text" if isinstance(count, str) else "number"


def form_of(forms: Set[str], is_empty: bool) -> Verdict:
    """Return whether Count is a number (R2).

    :param forms: the forms seen
    :param is_empty: whether the folder is empty
    """
    if is_empty:
        return unknown("the folder is empty")
    if "null" in forms:
        return "warning", "null", "null or missing: extracts can't be compared with it"
    [form, *others] = sorted(forms)
    return "ok", form, "varies" if others else form


def count_of(pages: Sequence[Page], end: End | None, nowhere: Page | None) -> Verdict:
    """Return what Count counts (R2).

    :param pages: pages at offset 0 without any filter, in the order of requests
    :param end: the largest page and the one after it
    :param nowhere: a page of dates that no mail has
    """
    counted = [(page.count, len(page.rows)) for page in pages if page.count is not None]
    if not counted:
        return "note", "absent", "responses have no Count"
    if nowhere is not None and nowhere.count and not nowhere.rows:
        says = "something else, whatever dates are searched for: extracts can't be compared with it"
        return "warning", "other", says
    if any(count < rows for count, rows in counted):
        return "outside", "less", "less than the number of messages in the same response"
    exact = [page for page in pages if page.count == len(page.rows)]
    # Larger pages before and after prove that there were more messages all along. More by two:
    # in a folder of two messages, one may have been deleted and another one have arrived.
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
        return "outside", "neither", "neither all messages nor those on the page"
    if of_all != of_page:
        reading = "all" if of_all else "page"
        return "ok", reading, "all matching messages" if of_all else "only those on the page"
    ignored = end is not None and end.is_ignored
    why = "every page held the whole folder, or the folder changed"
    return unknown("offset has no effect" if ignored else why)


QUESTIONS = (Paging, Depth)
