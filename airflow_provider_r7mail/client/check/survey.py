"""Find out what a server does where the API's manual leaves it open: `r7mail check`. No Airflow.

It reads only, unless it is told to write, and makes some dozens of requests at most. What the
answers mean is decided in `evidence`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from airflow_provider_r7mail import __version__
from airflow_provider_r7mail.client import calls
from airflow_provider_r7mail.client.check.evidence import (
    ALL_BOUNDS,
    MAX_TIE_LOOKS,
    Bounds,
    End,
    Level,
    Page,
    Probe,
    Reading,
    Row,
    Survey,
    Told,
    best_probe,
    cap_of,
    count_of,
    dated,
    expiry_of,
    names_of,
    offset_of,
    order_of,
    probes_of,
    targets_of,
    ties_of,
)
from airflow_provider_r7mail.client.dates import (
    EPOCH,
    MICROSECOND,
    format_api_date,
    to_microseconds,
)
from airflow_provider_r7mail.client.http import interpret, may_repeat, network
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.seek import ABOVE_SECONDS, BELOW_SECONDS
from airflow_provider_r7mail.client.session import Client
from airflow_provider_r7mail.exceptions import (
    R7MailActionError,
    R7MailConfigError,
    R7MailConnectionError,
    R7MailRequestError,
    R7MailResponseError,
    R7MailServerError,
    R7MailTimeoutError,
)

if TYPE_CHECKING:
    import httpx


T = TypeVar("T")

MAX_REQUESTS = 50
MAX_WRITE_REQUESTS = 20
"""More of them with `write_folder`; putting the message back is never given up for their number."""

MAX_SECONDS = 300.0
"""After these no further question is begun."""

FIRST_PAGE = 50
LARGER_PAGES = (200, 1000)
DEFAULT_PAGE_SIZE = 200
MAX_PAGE_BYTES = 16 << 20
MAX_ANSWER_BYTES = 128 << 20

# A folder that no server has, in the range of .NET's Int32.
_NO_FOLDER = 2_147_483_647
_TRIES = 2
_MAX_PAUSE = 10.0
# Pages that a message is looked for on, where many are dated like it.
_CROWDED = 3

_MARGINS = (
    f"Asks for {BELOW_SECONDS} s before and {ABOVE_SECONDS} s after the window, and drops what is "
    "outside it."
)
_GOES_ON = "Takes no notice: logs in again when a token is refused."
_BY_STATUS = "Goes by the status and the form of the answer, not by what the body says."
_LOOKS = "Fails, unless the answer is `true`; after a repetition it looks whether it was done."

# What is found out, in the report's order: the contract's open point, what it is about, and what
# the package does about it.
_SUBJECTS: dict[str, tuple[str, str, str]] = {
    "sort_one": ("R1", "Order that sortOrder 1 means", "Finds it out from each answer."),
    "count": ("R2", "What Count counts", "Compares it in the end, where it counts all messages."),
    "page_cap": ("R3", "Most messages in a page", "Takes no short page for the end."),
    "offset": ("R3", "Paging by offset", "Pages by date; by offset only within one second."),
    "dates": ("R4", "StartDate and EndDate", _MARGINS),
    "start_inclusive": ("R4", "A message dated exactly StartDate", "Likewise."),
    "end_inclusive": ("R4", "A message dated exactly EndDate", "Likewise."),
    "precision": ("R4", "Precision of the bounds", "Likewise."),
    "undated": ("R4", "Messages without a date", "Sets them aside, and says so."),
    "ties": ("R5", "Order of messages of one Date", "Knows messages by id, not by place."),
    "labels": ("R7", "Filter by Labels", "Sends an array."),
    "expired_at": ("R12", "Token life as stated", _GOES_ON),
    "token_calls": ("R12", "Tokens refused meanwhile", _GOES_ON),
    "login_refusal": ("R14", "A refused login", "Knows all its forms, and tries once."),
    "wrong_path": ("R16", "Error for a wrong path", _BY_STATUS),
    "missing_folder": ("R16", "Error for a missing folder", _BY_STATUS),
    "list_attachments": ("R17", "Files named in listings", "Reports what is not as `unlisted`."),
    "ids": ("R20", "Ids of messages", "Sets a message without one aside, and says so."),
    "unknown_fields": ("R20", "Unknown fields", "Keeps them in the column `extra`."),
    "missing_fields": ("R20", "Missing fields", "Leaves their columns null."),
    "null_fields": ("R20", "Null where a value is due", "Leaves their columns null."),
    "wrong_types": ("R20", "Values of another type", "Keeps them in the column `extra`."),
    "attachment_length": ("R22", "An attachment's length", "Takes a broken-off file for none."),
    "timeout": ("", "Slowest answer", "Waits `timeout` seconds for a byte, then tries again."),
    "failures": ("R16", "Requests that failed", "Tries again up to `max_retries` times."),
    "mark_read": ("R15", "Mark read and unread", _LOOKS),
    "mark_important": ("R15", "Mark important and not", _LOOKS),
    "move": ("R15", "Move there and back", _LOOKS),
    "repeat_answer": ("R23", "A move that is repeated", _LOOKS),
    "unknown_mark_answer": ("R15", "Mark what is not in the folder", _LOOKS),
    "restored": ("", "The message put back", ""),
}
_BOUNDS = ("start_inclusive", "end_inclusive", "precision")
_WRITING = (
    "mark_read",
    "mark_important",
    "move",
    "repeat_answer",
    "unknown_mark_answer",
    "restored",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing found out, or not.

    :param key: what it is about, for programs
    :param point: the contract's open point, "" for none
    :param title: what it is about, in words
    :param level: how it is to be taken
    :param reading: what the server does, for programs; None if it could not be determined
    :param says: what the server does, or why that could not be determined
    :param handled: what the package does about it
    """

    key: str
    point: str
    title: str
    level: Level
    reading: Reading
    says: str
    handled: str


@dataclass(frozen=True, slots=True)
class PageTime:
    """How long a page took.

    :param asked: messages asked for
    :param got: messages that came
    :param bytes: the answer's length
    :param seconds: from the request to the answer's last byte; the best of several
    """

    asked: int
    got: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a check has found out. Holds no mail: fit to be shown to others.

    :param findings: in the order of the contract's open points
    :param page_times: by page size
    :param page_size: what to set `page_size` to
    :param page_size_why: why
    :param max_concurrency: what to set `max_concurrency` to
    :param max_concurrency_why: why
    :param requests: how many were made, log-ins included
    :param seconds: how long it took
    """

    findings: tuple[Finding, ...]
    page_times: tuple[PageTime, ...]
    page_size: int
    page_size_why: str
    max_concurrency: int
    max_concurrency_why: str
    requests: int
    seconds: float

    def __getitem__(self, key: str) -> Finding:
        """The finding of this key."""
        return next(finding for finding in self.findings if finding.key == key)

    def of_level(self, *levels: Level) -> tuple[Finding, ...]:
        """The findings of these levels."""
        return tuple(finding for finding in self.findings if finding.level in levels)

    @property
    def result(self) -> Literal["fine", "warnings", "outside the contract"]:
        """The whole in a word or two."""
        if self.of_level("outside"):
            return "outside the contract"
        return "warnings" if self.of_level("warning") else "fine"

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "format": 1,
            "package": __version__,
            "result": self.result,
            "requests": self.requests,
            "seconds": round(self.seconds, 3),
            "suggested": {
                "page_size": self.page_size,
                "page_size_why": self.page_size_why,
                "max_concurrency": self.max_concurrency,
                "max_concurrency_why": self.max_concurrency_why,
            },
            "page_times": [
                {**asdict(page), "seconds": round(page.seconds, 4)} for page in self.page_times
            ],
            "findings": [asdict(finding) for finding in self.findings],
        }


def check_server(
    client: Client,
    folder: int,
    *,
    write_folder: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Report:
    """Find out how a server reads what the API's manual leaves open.

    :param client: an open client; it is used for nothing else meanwhile
    :param folder: id of a folder to read: one with mail of different days, and with attachments
    :param write_folder: id of another folder: also mark, unmark, and move one message of `folder`
        there and back. None: nothing is changed on the server
    :param say: told what is being done, in some words
    :return: the report
    :raises R7MailConfigError: both folders are the same
    :raises R7MailRequestError: the server could not be reached, the login was refused, or the
        folder could not be read: nothing can be checked
    """
    if write_folder == folder:
        raise R7MailConfigError(
            "write_folder: this is the folder that is read. Give another one, to move a message "
            "there and back."
        )
    return _Check(client, folder, write_folder, say or (lambda _: None)).run()


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: httpx.Headers
    body: bytes
    seconds: float


def page_size_of(times: Sequence[PageTime], cap: Reading, timeout: float) -> tuple[int, str]:
    """The page size to set, and why: the smallest one that is nearly as quick, a message, as any.

    :param times: how long pages took
    :param cap: the most messages in a page (R3), if there is a limit
    :param timeout: the connection's, in seconds
    """
    if isinstance(cap, int) and cap < DEFAULT_PAGE_SIZE:
        return cap, "the server puts no more in a page"
    full = [page for page in times if page.got == page.asked >= FIRST_PAGE]
    good = [p for p in full if p.bytes <= MAX_PAGE_BYTES and p.seconds <= timeout / 4]
    if not full:
        return DEFAULT_PAGE_SIZE, "the default: the folder has too few messages to measure"
    if not good:
        return min(page.asked for page in full), "larger pages are slow or very long"
    best = max(page.got / page.seconds for page in good)
    for page in sorted(good, key=lambda page: page.asked):
        if page.got / page.seconds >= 0.7 * best:
            break
    return (
        page.asked,
        f"{page.got / page.seconds:,.0f} messages/s, {page.bytes / 1e6:.1f} MB a page",
    )


def error_form(answer: _Answer) -> str:
    """An error answer in a word or two: its status, and what its body is (R16)."""
    if not answer.body.strip():
        return f"{answer.status}, empty"
    try:
        calls.read_json(answer.body)
    except calls.AnswerError:
        head = answer.body.lstrip()[:1]
        html = head == b"<" or "html" in answer.headers.get("content-type", "").lower()
        return f"{answer.status}, {'html' if html else 'text'}"
    return f"{answer.status}, json"


def _failure_kind(error: R7MailRequestError) -> str:
    """What failed, without the error's text, which may name hosts."""
    if error.status is not None:
        return f"status {error.status}" + (
            ", no answer as agreed" if isinstance(error, R7MailResponseError) else ""
        )
    return "no answer in time" if isinstance(error, R7MailTimeoutError) else "connection broken"


# -- asking ---------------------------------------------------------------------------------


class _Spent(Exception):  # noqa: N818 - not an error: the check ends
    """No further request is due."""


class _Check:
    """One check of a server."""

    def __init__(
        self,
        client: Client,
        folder: int,
        write_folder: int | None,
        say: Callable[[str], None],
    ) -> None:
        self._client = client
        self._folder = folder
        self._write_folder = write_folder
        self._say = say
        self._found: dict[str, Told] = {}
        self._survey = Survey()
        self._pages: list[Page] = []
        self._ended: End | None = None
        self._failures: list[str] = []
        self._strays = False
        # The last one may need a log-in and a repetition besides.
        self._allowed = MAX_REQUESTS - 2
        self._putting_back = False
        self._lives: list[int] = []
        self._served = 0
        self._concurrency = client.config.max_concurrency, "not measured"

    def run(self) -> Report:
        """Ask everything."""
        self._begun = time.monotonic()
        self._requests_before = self._client.stats.requests
        self._say("logging in")
        self._log_in()
        self._say("reading the folder")
        self._list(FIRST_PAGE)
        writing = () if self._write_folder is None else _WRITING
        for what, ask, keys in (
            ("page sizes", self._ask_pages, ("page_cap", "offset")),
            ("date bounds", self._ask_bounds, ("dates", *_BOUNDS)),
            ("messages of one Date", self._ask_ties, ("ties",)),
            ("errors", self._ask_errors, ("wrong_path", "missing_folder")),
            ("labels", self._ask_labels, ("labels",)),
            ("messages without a date", self._ask_undated, ("undated",)),
            ("an attachment", self._ask_file, ("attachment_length",)),
            ("marking and moving", self._ask_write, writing),
            ("requests at once", self._ask_together, ()),
        ):
            self._say(what)
            with self._excused(keys):
                ask()
        self._conclude()
        return self._report()

    @contextmanager
    def _excused(self, keys: Sequence[str]) -> Iterator[None]:
        """What fails on the way leaves these findings open, not the whole check."""
        why = ""
        try:
            yield
        except _Spent:
            why = "left out: the check had made as many requests, or taken as long, as it may"
        except R7MailRequestError as error:
            why = f"a request failed: {_failure_kind(error)}"
        for key in keys:
            if why and key not in self._found:
                self._open(key, why)

    def tell(self, key: str, told: Told) -> None:
        """Note what was found out."""
        level, reading, says = told
        if level == "unknown":
            says = f"could not be determined: {says}"
        self._found[key] = level, reading, says

    def _open(self, key: str, why: str) -> None:
        self.tell(key, ("unknown", None, why))

    # -- requests ---------------------------------------------------------------------------

    def _elapsed(self) -> float:
        """Seconds since the beginning; 0 while a message is being put back."""
        return 0.0 if self._putting_back else time.monotonic() - self._begun

    def _spend(self, count: int = 1) -> None:
        """Account for requests to come."""
        if self._putting_back:
            return
        if (
            self._client.stats.requests - self._requests_before + count > self._allowed
            or self._elapsed() > MAX_SECONDS
        ):
            raise _Spent

    def _look(self, call: calls.Call[Any], attempt: int = 1, *, counted: bool = True) -> _Answer:
        """Make one request, and bring its answer whatever that is.

        :param counted: whether a 401 tells that the token has died, and not something else
        """
        self._spend()
        logins = self._client.stats.logins
        try:
            answer = self._exchange(call, attempt)
        except R7MailRequestError as error:
            self._failures.append(_failure_kind(error))
            raise
        if self._client.stats.logins > logins > 0:
            if counted:
                self._lives.append(self._served)
            self._served = 0
        self._served += counted and call.authorized
        return answer

    def _exchange(self, call: calls.Call[Any], attempt: int = 1) -> _Answer:
        """One attempt, from any thread."""
        begun = time.perf_counter()
        body = bytearray()
        with self._client.exchange(call, attempt) as response, network(call, attempt):
            for piece in response.iter_bytes():
                body += piece
                if len(body) > MAX_ANSWER_BYTES or self._elapsed() > MAX_SECONDS:
                    raise R7MailResponseError(
                        "an answer without end", method=call.method, path=call.path
                    )
        return _Answer(
            response.status_code, response.headers, bytes(body), time.perf_counter() - begun
        )

    def ask(self, call: calls.Call[T], tries: int = _TRIES) -> tuple[T, _Answer]:
        """Make a request until it is answered as agreed, or has failed for good."""
        for attempt in range(1, tries + 1):
            try:
                answer = self._look(call, attempt)
                return self._interpret(call, answer, attempt), answer
            except R7MailRequestError as error:
                if attempt == tries or not may_repeat(call, error):
                    raise
                time.sleep(min(error.retry_after or self._client.config.backoff, _MAX_PAUSE))
        raise AssertionError("no try")

    def word(self, call: calls.Call[bool]) -> str:
        """Make a request, and tell its answer in a word: true, false, or the status."""
        answer = self._look(call)
        if answer.status == 200 and answer.body.strip() in {b"true", b"false"}:
            return answer.body.strip().decode()
        return str(answer.status) if answer.status != 200 else "something else"

    def _interpret(self, call: calls.Call[T], answer: _Answer, attempt: int = 1) -> T:
        try:
            return interpret(call, answer.status, answer.headers, answer.body, attempt)
        except R7MailRequestError as error:
            self._failures.append(_failure_kind(error))
            raise

    def _list(
        self,
        size: int,
        *,
        offset: int = 0,
        start: int | None = None,
        end: int | None = None,
        labels: tuple[int, ...] = (),
        folder: int | None = None,
        tries: int = _TRIES,
    ) -> Page:
        """List messages; bounds are in microseconds since 1970."""
        call = self._listing(size, offset, start, end, labels, folder)
        (items, count, envelope), answer = self.ask(call, tries)
        rows = self._survey.add(items, envelope)
        filtered = bool(labels) or start is not None or end is not None
        page = Page(size, offset, filtered, rows, count, len(answer.body), answer.seconds)
        self._note_strays(rows, start, end)
        if folder is None:
            self._pages.append(page)
        return page

    def _listing(
        self,
        size: int,
        offset: int = 0,
        start: int | None = None,
        end: int | None = None,
        labels: tuple[int, ...] = (),
        folder: int | None = None,
    ) -> calls.Call[tuple[list[Any], int | None, Mapping[str, Any]]]:
        call = calls.list_messages(
            self._folder if folder is None else folder,
            MessageFilter(labels=labels),
            start=None,
            end=None,
            offset=offset,
            size=size,
            parse=_parse_listing,
        )
        body = dict(call.body or {})
        body["SearchContext"] = {
            **body["SearchContext"],
            "StartDate": _bound_text(start),
            "EndDate": _bound_text(end),
        }
        return replace(call, body=body)

    def _note_strays(self, rows: Sequence[Row], start: int | None, end: int | None) -> None:
        """Note messages that are out of what was asked for by more than any reading allows."""
        for row in rows:
            if row.date is not None:
                at = to_microseconds(row.date)
                early = start is not None and at < start - 2_000_000
                if early or (end is not None and at > end + 2_000_000):
                    self._strays = True

    def near(self, row: Row, folder: int | None = None, offset: int = 0) -> Page:
        """List a message and what is dated like it, as the package asks for a window."""
        assert row.date is not None  # noqa: S101 - such rows are not asked for
        at = to_microseconds(row.date) // 1_000_000 * 1_000_000
        return self._list(
            FIRST_PAGE,
            offset=offset,
            start=at - BELOW_SECONDS * 1_000_000,
            end=at + ABOVE_SECONDS * 1_000_000,
            folder=folder,
        )

    def _whole(self) -> list[Page]:
        """The pages that were asked for without any filter."""
        return [page for page in self._pages if not page.filtered]

    def _rows(self) -> list[Row]:
        """The messages seen that have a date and an id, each once, the earliest first."""
        known = {
            row.key: row
            for page in self._pages
            for row in page.rows
            if row.key is not None and row.date is not None
        }
        return sorted(known.values(), key=lambda row: (row.date, row.key))

    # -- questions --------------------------------------------------------------------------

    def _log_in(self) -> None:
        config = self._client.config
        stated: list[Any] = []

        def parse(body: bytes) -> str:
            token = calls.parse_token(body)
            stated.append(calls.read_json(body)["Response"]["Data"]["Tokens"])
            return token

        # Once only: a second try of a wrong password may lock the account.
        call = replace(calls.log_in(config.login, config.password), parse=parse)
        _, answer = self.ask(call)
        self.tell("expired_at", expiry_of(stated[0], _now(answer.headers)))
        self._open("login_refusal", "not tried, since a wrong password may lock the account")

    def _ask_pages(self) -> None:
        """R1, R2, R3, and how long pages take."""
        longest = self._pages[0]
        for size in (1, 10):
            self._list(size)
        for size in LARGER_PAGES:
            if len(longest.rows) < longest.asked or self._is_too_much(longest, size):
                break
            try:
                longest = self._list(size, tries=1)
            except R7MailConnectionError:
                break  # told by the failures
        for _ in range(2):
            tail = self._list(10, offset=len(longest.rows))
            end = self._ended = End(longest, tail, self._list(longest.asked))
            if end.calm:
                break
            longest = end.again
        self.tell("page_cap", cap_of(end))
        self.tell("offset", offset_of(end))

    def _is_too_much(self, page: Page, size: int) -> bool:
        """Whether a larger page would be a burden on the server."""
        times = size / max(len(page.rows), 1)
        quick = min(10.0, self._client.config.timeout / 4)
        return page.bytes * times > MAX_PAGE_BYTES or page.seconds * times > quick

    def _ask_bounds(self) -> None:
        """R4: rule out, question by question, how the bounds may be read."""
        targets = targets_of(self._rows())
        if not targets:
            for key in ("dates", *_BOUNDS):
                self._open(key, "no message with a date and an id was seen")
            return
        visible = [row for row in targets if self.near(row).holds(row.key)]
        if not visible:
            self._ask_zone(targets[0])
            return
        alive = list(ALL_BOUNDS)
        probes = [p for row in visible for p in probes_of(*dated(row))]
        while (probe := best_probe(probes, alive)) is not None:
            probes.remove(probe)
            failures = len(self._failures)
            try:
                found = self._is_found(probe)
            except R7MailServerError:
                if not probe.fine:
                    raise
                # It takes no bounds with more digits than the manual shows.
                del self._failures[failures:]
                probes = [other for other in probes if not other.fine]
                continue
            if found is not None:
                alive = [bounds for bounds in alive if bounds.finds(probe) == found]
        if not all(self.near(row).holds(row.key) for row in visible):
            for key in ("dates", *_BOUNDS):
                self._open(key, "a message that was looked at was moved or deleted meanwhile")
            return
        self._tell_bounds(alive)

    def _ask_zone(self, row: Row) -> None:
        """A message is not found by its own date: see whether it is by a day more."""
        _, at = dated(row)
        day = 86_400_000_000
        page = self._list(FIRST_PAGE, start=at - day, end=at + day)
        for key in ("dates", *_BOUNDS):
            self._open(key, "messages were not found by their dates")
        near = self.near(row)
        if page.holds(row.key) and not near.holds(row.key) and self.is_whole(near):
            self.tell(
                "dates",
                ("outside", "shifted", "messages are not found by their dates: another zone?"),
            )

    def _is_found(self, probe: Probe) -> bool | None:
        """Ask a question; None if the answer leaves it open."""
        low, high = sorted((probe.date, probe.bound))
        start, end = low - 2_000_000, high + 3_000_000
        if probe.side == "start":
            start = probe.bound
        else:
            end = probe.bound
        page = self._list(FIRST_PAGE, start=start, end=end)
        if page.holds(probe.key):
            return True
        return False if self.is_whole(page) else None

    def is_whole(self, page: Page) -> bool:
        """Whether nothing follows a page: the server gives longer ones."""
        largest = max(len(seen.rows) for seen in self._pages)
        return len(page.rows) < max(min(page.asked, largest), 1)

    def _tell_bounds(self, alive: Sequence[Bounds]) -> None:
        if not alive:
            self.tell("dates", ("note", "honoured", "they have effect, and are rounded somehow"))
            for key in _BOUNDS:
                self._open(key, "the answers fit no single way to read the bounds")
            return
        starts, ends = {bounds.start for bounds in alive}, {bounds.end for bounds in alive}
        if starts == {"ignored"} or ends == {"ignored"}:
            self._strays = True
        elif "ignored" not in starts | ends:
            self.tell("dates", ("ok", "honoured", "messages are found by their dates"))
        else:
            self._open("dates", "the folder has no messages that would show it")
        for key, modes in (("start_inclusive", starts), ("end_inclusive", ends)):
            if modes == {"inclusive"}:
                self.tell(key, ("ok", True, "is found: the bound is inclusive"))
            elif modes == {"exclusive"}:
                self.tell(key, ("ok", False, "is not found: the bound is exclusive"))
            else:
                self._open(key, "the folder has no messages that would show it")
        units = {bounds.unit for bounds in alive}
        if "second" not in units and len(units) == 2:
            self.tell("precision", ("ok", "millisecond or finer", "to the millisecond or finer"))
        elif len(units) == 1:
            [unit] = units
            self.tell("precision", ("ok", unit, f"dates are compared to the {unit}"))
        else:
            self._open("precision", "no message seen is dated to a fraction of a second")

    def _ask_ties(self) -> None:
        """R5: look at messages of one Date again and again."""
        groups: dict[datetime | None, list[Row]] = {}
        for row in self._rows():
            groups.setdefault(row.date, []).append(row)
        # One that a page shows whole.
        most = min(FIRST_PAGE, max(len(page.rows) for page in self._pages)) - 5
        group = max(groups.values(), key=lambda rows: (len(rows) <= most, len(rows)), default=[])
        if len(group) < 2:
            self._open("ties", "no two messages seen have the same Date")
            return
        looks: list[list[int]] = []
        told = None
        while told is None and len(looks) < MAX_TIE_LOOKS:
            page = self.near(group[0])
            tied = [row for row in page.rows if row.date == group[0].date]
            looks.append([row.key for row in tied if row.key is not None])
            told = ties_of(looks)
        if told is None:
            self._open("ties", f"{len(looks)} looks at messages of one Date did not tell")
        else:
            self.tell("ties", told)

    def _ask_errors(self) -> None:
        """R16: what errors look like."""
        path = "/api/v1/email/R7MailCheckNoSuchCall"
        call = calls.Call(method="POST", path=path, parse=bytes, body={})
        answer = self._look(call, counted=False)
        level: Level = "note" if answer.status == 200 else "ok"
        self.tell("wrong_path", (level, error_form(answer), f"status {error_form(answer)}"))
        listing = self._listing(10, folder=_NO_FOLDER)
        answer = self._look(listing)
        form = error_form(answer)
        if answer.status != 200:
            self.tell("missing_folder", ("ok", form, f"status {form}"))
            return
        items, _, _ = self._interpret(listing, answer)
        if items:
            told: Told = "outside", "messages", "messages: folderId seems to have no effect"
        else:
            told = "note", "an empty folder", "none: a wrong folder id looks like an empty folder"
        self.tell("missing_folder", told)

    def _ask_labels(self) -> None:
        """R7: filter by a label that a message has."""
        row = next((row for row in self._rows() if row.labels), None)
        if row is None:
            says = "an empty array is accepted; no message with a label was seen"
            self.tell("labels", ("ok", "array accepted", says))
            return
        _, at = dated(row)
        label = row.labels[0]
        start, end = at - 2_000_000, at + 3_000_000
        page = self._list(FIRST_PAGE, start=start, end=end, labels=(label,))
        if any(label not in other.labels for other in page.rows):
            told: Told = "warning", "ignored", "messages without the label are found as well"
        elif page.holds(row.key):
            told = "ok", "array works", "an array with a label finds the messages that have it"
        elif not (self.is_whole(page) and self.near(row).holds(row.key)):
            told = "unknown", None, "the message that was looked at is gone, or hidden by others"
        else:
            told = "warning", "finds nothing", "a message that has the label is not found by it"
        self.tell("labels", told)

    def _ask_undated(self) -> None:
        """Which date bounds let messages without a date through."""

        def undated_on(page: Page) -> set[int | None]:
            return {row.key for row in page.rows if row.date is None}

        seen = next((page for page in self._whole() if undated_on(page)), None)
        if seen is None:
            self._open("undated", "none was seen")
            return
        # Where no dated message is.
        far, year = to_microseconds(datetime(2200, 1, 1, tzinfo=UTC)), 31_536_000_000_000
        early = to_microseconds(datetime(2, 1, 1, tzinfo=UTC))
        if undated_on(self._list(FIRST_PAGE, start=far, end=far + year)):
            self.tell("undated", ("note", "always", "are found whatever the bounds"))
        elif undated_on(self._list(FIRST_PAGE, end=early)):
            self.tell("undated", ("note", "as_min", "are found as of the beginning of time"))
        elif not undated_on(self._list(seen.asked, offset=seen.offset)):
            self._open("undated", "the folder changed while it was looked at")
        else:
            self.tell("undated", ("warning", "never", "are not found with date bounds"))

    def _ask_file(self) -> None:
        """R22: download a small attachment, and keep none of it."""
        if self._survey.file is None:
            self._open("attachment_length", "no message with a small, named file was seen")
            return
        key, name, size = self._survey.file
        try:
            call = calls.download_attachment(self._folder, key, name)
        except R7MailConfigError:
            self._open("attachment_length", "the file's name cannot be asked for")
            return
        answer = self._look(call)
        error = calls.failure(call, answer.status, answer.headers, 1)
        if error is not None:
            row = next((row for row in self._rows() if row.key == key), None)
            if row is None or not self.near(row).holds(key):
                self._open("attachment_length", "the message that was looked at is gone")
                return
            says = f"a listed file could not be downloaded: status {answer.status}"
            self.tell("attachment_length", ("warning", f"status {answer.status}", says))
            return
        known = "content-length" in answer.headers
        form = "Content-Length" if known else "chunked"
        if len(answer.body) != size:
            says = f"with {form}; the file's length is not the listed Size"
            self.tell("attachment_length", ("note", form, says))
        else:
            self.tell("attachment_length", ("ok", form, f"with {form}, and as listed"))

    def _ask_together(self) -> None:
        """How much more comes with several requests at once."""
        page = self._pages[0]
        alone = min(p.seconds for p in self._whole() if p.asked == page.asked and p.offset == 0)
        self._concurrency = 2, "more at once bring little"
        rates = {1: 1 / alone}
        for number in (4, 4, 8):  # twice four: the first time connections are made
            if number == 8 and rates[4] < 2 * rates[1]:
                break
            self._spend(number)
            begun = time.perf_counter()
            with ThreadPoolExecutor(number) as pool:
                calls = [self._listing(page.asked)] * number
                failed = [why for why in pool.map(self._try, calls) if why]
            if failed:
                self._failures += failed
                fewer = max(1, number // 4)
                self._concurrency = fewer, f"of {number} at once {len(failed)} failed"
                return
            rate = number / (time.perf_counter() - begun)
            rates[number] = max(rate, rates.get(number, 0.0))
        best = max(rates, key=lambda number: rates[number])
        if best > 1 and rates[best] >= 1.3 * rates[1]:
            # A few per cent are no reason to burden the server more.
            number = min(n for n in rates if rates[n] >= 0.8 * rates[best])
            gain = min(rates[number] / rates[1], number)
            self._concurrency = max(number, 2), f"some {gain:.1f} times the pages of one at a time"

    def _try(self, call: calls.Call[Any]) -> str:
        """Make a request; return what failed, "" for nothing."""
        try:
            answer = self._exchange(call)
            interpret(call, answer.status, answer.headers, answer.body, 1)
        except R7MailRequestError as error:
            return _failure_kind(error)
        return ""

    # -- writing ----------------------------------------------------------------------------

    def _ask_write(self) -> None:
        """Mark and move one message, and put it back whatever happens."""
        if self._write_folder is None:
            return
        self._allowed += MAX_WRITE_REQUESTS
        rows = [row for row in self._rows() if row.touchable]
        crowds = Counter(dated(row)[1] // 1_000_000 for row in rows)

        def suits(row: Row) -> tuple[int, int, int]:
            at = dated(row)[1]
            return row.touchable, -crowds[at // 1_000_000], -at

        # A read one, one that stands alone, and an old one: nobody looks at it just now.
        row = max(rows, key=suits, default=None)
        loan = None if row is None else _Loan(self, row, self._folder, self._write_folder)
        if loan is None or loan.look(self._folder) is None:
            for key in _WRITING:
                self._open(key, "no message was seen that could be marked and moved safely")
            return
        try:
            loan.try_marks()
            loan.try_moves()
        finally:
            self._putting_back = True
            self.tell("restored", loan.put_back())
            self._putting_back = False

    # -- the end ----------------------------------------------------------------------------

    def _conclude(self) -> None:
        """Tell what rests on all that was seen."""
        survey, end = self._survey, self._ended
        self.tell("sort_one", self._order())
        self.tell("count", count_of([p for p in self._whole() if p.offset == 0], end))
        longer = [page for page in self._pages if len(page.rows) > page.asked]
        if longer:
            says = f"{len(longer[0].rows)} came where {longer[0].asked} were asked for"
            self.tell("page_cap", ("outside", "exceeded", says))
        if self._strays:
            self.tell(
                "dates",
                ("outside", "not honoured", "messages outside of StartDate and EndDate are listed"),
            )
        self._tell_tokens()
        self._tell_fields(survey)
        slowest = max(page.seconds for page in self._pages)
        limit = self._client.config.timeout
        says = f"{slowest:.2f} s; the time-out is {limit:g} s"
        if slowest > limit / 2:
            self.tell("timeout", ("warning", says, f"{says}. Raise timeout, or lower page_size"))
        else:
            self.tell("timeout", ("ok", says, says))
        kinds = [f"{count} times {kind}" for kind, count in sorted(Counter(self._failures).items())]
        if kinds:
            self.tell("failures", ("warning", kinds, ", ".join(kinds)))
        else:
            self.tell("failures", ("ok", [], "none"))

    def _order(self) -> Told:
        told = order_of(self._pages)
        end = self._ended
        if told[0] != "unknown" or end is None or not end.page.rows or not end.tail.rows:
            return told
        # Pages of one message each: the later place has the later date, or the earlier.
        last, follows = end.page.rows[-1], end.tail.rows[0]
        if end.page.keys != end.again.keys:
            return told
        return order_of([replace(end.page, rows=(last, follows))])

    def _tell_tokens(self) -> None:
        if self._lives:
            calls = min(self._lives)
            says = f"refused {len(self._lives)} times; one had served {calls} calls only"
            self.tell("token_calls", ("note", calls, says))
        else:
            says = f"none, in {self._served} calls; how long one lives was not waited for"
            self.tell("token_calls", ("ok", "none refused", says))

    def _tell_fields(self, survey: Survey) -> None:
        files = survey.named + survey.unnamed
        if not survey.messages and not survey.rows:
            empty = "the folder is empty"
            for key in (
                *("list_attachments", "ids", "unknown_fields"),
                *("missing_fields", "null_fields", "wrong_types"),
            ):
                self._open(key, empty)
        elif not files:
            self._open("list_attachments", "no message with files was seen")
        elif not survey.unnamed:
            self.tell("list_attachments", ("ok", True, "files are named"))
        else:
            what = "no" if not survey.named else "not all"
            says = f"{what} messages with files name them: such files cannot be copied"
            self.tell("list_attachments", ("warning", False, says))
        if survey.rows == 0:
            return
        if survey.twice:
            self.tell("ids", ("outside", "twice", "an answer had the same id twice"))
        elif survey.without_id:
            says = f"{survey.without_id} of {survey.rows} messages had no id that is a number"
            self.tell("ids", ("warning", "missing", says))
        else:
            self.tell("ids", ("ok", "unique", "whole numbers, each once"))
        for key, counter, found in (
            ("unknown_fields", survey.unknown, "note"),
            ("missing_fields", survey.missing, "note"),
            ("null_fields", survey.null, "note"),
            ("wrong_types", survey.wrong, "warning"),
        ):
            names, says = names_of(counter, survey.rows if key != "unknown_fields" else 0)
            needed = key != "unknown_fields" and {"Id", "Date"} & counter.keys()
            level: Level = "warning" if needed or (counter and found == "warning") else "ok"
            if counter and level == "ok":
                level = "note"
            self.tell(key, (level, names, says or "none"))

    def _report(self) -> Report:
        findings = tuple(
            Finding(
                key=key,
                point=point,
                title=title,
                level=self._found[key][0],
                reading=self._found[key][1],
                says=self._found[key][2],
                handled=handled,
            )
            for key, (point, title, handled) in _SUBJECTS.items()
            if key in self._found
        )
        times: dict[int, PageTime] = {}
        for page in self._whole():
            timed = PageTime(page.asked, len(page.rows), page.bytes, page.seconds)
            known = times.get(page.asked)
            if page.offset == 0 and (known is None or page.seconds < known.seconds):
                times[page.asked] = timed
        page_times = tuple(times[size] for size in sorted(times))
        size, why = page_size_of(
            page_times, self._found["page_cap"][1], self._client.config.timeout
        )
        return Report(
            findings=findings,
            page_times=page_times,
            page_size=size,
            page_size_why=why,
            max_concurrency=self._concurrency[0],
            max_concurrency_why=self._concurrency[1],
            requests=self._client.stats.requests - self._requests_before,
            seconds=time.monotonic() - self._begun,
        )


class _Loan:
    """A message that is marked and moved, and put back.

    :param check: asks the server
    :param row: the message as it was
    :param home: id of its folder
    :param away: id of the folder it is moved to and back from
    """

    def __init__(self, check: _Check, row: Row, home: int, away: int) -> None:
        self._check = check
        self._before = row
        self._home = home
        self._away = away
        self._key = row.key or 0

    def look(self, folder: int) -> Row | None:
        """The message as it is in a folder now; None if it is not there."""
        before, offset = self._before, 0
        for _ in range(_CROWDED):
            page = self._check.near(before, folder, offset)
            for row in page.rows:
                if row.key == self._key:
                    return row
                if before.mime_id and (row.mime_id, row.date) == (before.mime_id, before.date):
                    return row
            if self._check.is_whole(page):
                break
            offset += len(page.rows)
        return None

    def try_marks(self) -> None:
        """Mark it read or unread, important or not, and as it was."""
        before = self._before
        for key, name, mark in (
            ("mark_read", "read", self._mark_read),
            ("mark_important", "important", self._mark_important),
        ):
            value = bool(getattr(before, name))
            with self._told(key):
                for wanted in (not value, value):
                    self._check.ask(mark(wanted))
                    now = self.look(self._home)
                    if now is None:
                        self._check.tell(key, ("unknown", None, "the message was seen no more"))
                        break
                    if getattr(now, name) is not wanted:
                        says = "the answer is true, but the listing does not show it"
                        self._check.tell(key, ("warning", "no effect", says))
                        break
                else:
                    self._check.tell(key, ("ok", "works", "works, and the listing shows it"))

    def try_moves(self) -> None:
        """Move it to the other folder, try what is refused there, and move it back."""
        with self._told("move"):
            self._check.ask(calls.move_messages(self._home, [self._key], self._away))
            there, here = self.look(self._away), self.look(self._home)
            if there is None or here is not None:
                says = "the answer is true, but the listings do not show it"
                self._check.tell("move", ("warning", "no effect", says))
                return
            changed = there.key != self._key
            if not changed:
                self._try_refusals()
            self._bring_home(there)
            if self.look(self._home) is None:
                says = "works; moving back was answered true, but the listing does not show it"
                self._check.tell("move", ("warning", "no way back", says))
            elif changed:
                says = "works, but the message gets another id: ids read before are of no use"
                self._check.tell("move", ("warning", "id changes", says))
            else:
                self._check.tell("move", ("ok", "works", "works, and the id stays the same"))

    def _try_refusals(self) -> None:
        """Ask for what has been done before, or can't be done: both do no harm."""
        for key, call in (
            ("repeat_answer", calls.move_messages(self._home, [self._key], self._away)),
            ("unknown_mark_answer", self._mark_read(bool(self._before.read))),
        ):
            with self._told(key):
                word = self._check.word(call)
                self._check.tell(key, ("ok", word, f"is answered {word}"))

    def put_back(self) -> Told:
        """Make it as it was, and look whether it is."""
        before = self._before
        why = "the listing shows something else"
        for _ in range(3):
            try:
                now = self.look(self._home)
                if now is None:
                    there = self.look(self._away)
                    if there is None:
                        why = "it was seen in neither folder"
                        continue
                    self._bring_home(there)
                    now = self.look(self._home)
                if now is not None and now.read is not before.read:
                    self._check.ask(self._mark_read(bool(before.read)))
                if now is not None and now.important is not before.important:
                    self._check.ask(self._mark_important(bool(before.important)))
                now = self.look(self._home)
            except R7MailRequestError as error:
                why = _failure_kind(error)
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
                f"and {important}. Look for it there and in folder {self._away}, and make it so"
            ),
        )

    def _bring_home(self, there: Row) -> None:
        self._key = self._key if there.key is None else there.key
        self._check.ask(calls.move_messages(self._away, [self._key], self._home))
        here = self.look(self._home)
        if here is not None and here.key is not None:
            self._key = here.key

    def _mark_read(self, read: bool) -> calls.Call[bool]:
        return calls.mark_as_read(self._home, [self._key], read=read)

    def _mark_important(self, important: bool) -> calls.Call[bool]:
        return calls.mark_as_important(self._home, [self._key], important=important)

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """What fails is told."""
        try:
            yield
        except R7MailActionError:
            self._check.tell(key, ("warning", "refused", "the answer is not true"))
        except R7MailRequestError as error:
            self._check.tell(key, ("warning", "failed", f"failed: {_failure_kind(error)}"))


# -- small helpers --------------------------------------------------------------------------


def _parse_listing(body: bytes) -> tuple[list[Any], int | None, Mapping[str, Any]]:
    """Read a listing down to its raw items, its Count, and all that is beside them."""
    items, count = calls.parse_items(body)
    return items, count, calls.read_json(body)


def _bound_text(microseconds: int | None) -> str:
    """A bound as the package sends it, to the millisecond, unless it has more digits."""
    if microseconds is None:
        return ""
    try:
        moment = EPOCH + microseconds * MICROSECOND
    except OverflowError:  # a bound before year 1 or after 9999 bounds nothing
        return ""
    if moment.microsecond % 1_000 == 0:
        return format_api_date(moment)
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _now(headers: httpx.Headers) -> datetime:
    """The server's time; ours where it does not tell its own."""
    try:
        moment = parsedate_to_datetime(headers.get("date", ""))
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    except (ValueError, TypeError, OverflowError):
        return datetime.now(UTC)
