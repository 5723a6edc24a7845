"""The session of a check: make requests within a budget, and keep what the responses show."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_r7mail.client import answers, calls
from airflow_provider_r7mail.client.check.evidence import SECOND, Listing, Page, Row
from airflow_provider_r7mail.client.dates import (
    EPOCH,
    MICROSECOND,
    format_api_date,
    lacks_zone,
    only_timestamps_lack_zone,
    to_microseconds,
)
from airflow_provider_r7mail.client.http import interpret, may_repeat, network
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.page_size import TOO_LARGE
from airflow_provider_r7mail.client.session import Client
from airflow_provider_r7mail.client.traits import WIDE_REACH, Traits
from airflow_provider_r7mail.exceptions import (
    R7MailRequestError,
    R7MailResponseError,
    R7MailServerError,
    R7MailTimeoutError,
)

if TYPE_CHECKING:
    import httpx

    from airflow_provider_r7mail.client.check.report import Waits


T = TypeVar("T")
ListCall = calls.Call[tuple[Mapping[str, Any], bool]]

MAX_REQUESTS = 80
MAX_WRITE_REQUESTS = 20
"""Additional requests with `write_folder`. Restoring the message is not limited by any number."""

MAX_SECONDS = 300.0
"""After this time no further question is asked."""

FIRST_PAGE = 50
MAX_PAGE_BYTES = 16 << 20
"""No page is requested, or suggested, that would be longer."""

MAX_ANSWER_BYTES = 128 << 20

_TRIES = 2
_MAX_PAUSE = 10.0


class Spent(Exception):  # noqa: N818 - not an error: the check ends
    """The check has used up its requests or its time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, whatever its status."""

    status: int
    headers: httpx.Headers
    body: bytes
    seconds: float

    @property
    def form(self) -> str:
        """An error's status, and what its body is."""
        if not self.body.strip():
            return f"{self.status}, empty"
        try:
            answers.read_json(self.body)
        except answers.AnswerError:
            head = self.body.lstrip()[:1]
            html = head == b"<" or "html" in self.headers.get("content-type", "").lower()
            return f"{self.status}, {'html' if html else 'text'}"
        return f"{self.status}, json"

    @property
    def told(self) -> str:
        """What an error looks like, and what the server says in it."""
        message = answers.error_message(self.body)
        return f"status {self.form}" + (f": “{message}”" if message else "")


class Inquiry:
    """One check of a server: how the questions make requests, and what all of them have seen.

    :param client: an open client
    :param folder: id of the folder to read
    :param write_folder: id of the folder that a message may be moved to and back from, None for
        none
    :param send_to: address that a message may be sent to, None for none
    :param disk_folder: id of the Disk folder that takes files to be sent, None for the default
    :param show: called with each listing
    """

    def __init__(
        self,
        client: Client,
        folder: int,
        write_folder: int | None,
        send_to: str | None,
        disk_folder: int | None,
        show: Callable[[Listing], None],
    ) -> None:
        self.config = client.config
        self.folder = folder
        self.write_folder = write_folder
        self.send_to = send_to
        self.disk_folder = disk_folder
        self.login_data: Mapping[str, Any] = {}
        self.login_time = EPOCH
        self.pages: list[Page] = []
        self.traits = Traits()
        self.zone_unknown = False
        self.failures: list[str] = []
        self.token_lives: list[int] = []
        self.served = 0
        self._exact = True
        self.served_size = 0
        self.refused_size: tuple[int, int] | None = None
        self.concurrency = client.config.max_concurrency, "not measured"
        self.waits: Waits | None = None
        self._client = client
        self._show = show
        self._begun = time.monotonic()
        self._requests_before = client.stats.requests
        self._requests_elsewhere = 0
        # The last one may need a login and a repetition besides.
        self._allowed = MAX_REQUESTS - 2
        self._limited = True

    # -- the budget -------------------------------------------------------------------------

    @property
    def requests(self) -> int:
        """Number of requests made so far, logins included."""
        own = self._client.stats.requests - self._requests_before
        return own + self._requests_elsewhere

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begun

    @property
    def now(self) -> datetime:
        """The server's time."""
        return self.login_time + timedelta(seconds=self.seconds)

    def spend(self, count: int = 1) -> None:
        """Account for the next requests.

        :raises Spent: they, or the time, exceed the budget
        """
        if self._limited and (self.requests + count > self._allowed or self._is_late()):
            raise Spent

    def allow_more(self, count: int) -> None:
        """Add requests to the budget."""
        self._allowed += count

    @contextmanager
    def unlimited(self) -> Iterator[None]:
        """Suspend the limits for what must be done in any case."""
        self._limited = False
        try:
            yield
        finally:
            self._limited = True

    def _is_late(self) -> bool:
        return self._limited and self.seconds > MAX_SECONDS

    # -- requests ---------------------------------------------------------------------------

    def log_in(self) -> None:
        """Log in, once only: a second attempt with a wrong password may lock the account."""
        data: list[Mapping[str, Any]] = []

        def parse(body: bytes) -> str:
            token = answers.parse_token(body)
            data.append(answers.login_data(body))
            return token

        call = replace(calls.log_in(self.config.login, self.config.password), parse=parse)
        _, answer = self.ask(call)
        self.login_data, self.login_time = data[0], _time_of(answer.headers)

    @contextmanager
    def another_client(self) -> Iterator[Client]:
        """Open another client of the same account: without token and cookies."""
        with Client(self.config, insist=True) as client:
            try:
                yield client
            finally:
                self._requests_elsewhere += client.stats.requests

    def keeps_token(self) -> bool:
        """Whether a request is served without another login."""
        logins, call = self._client.stats.logins, self.list_call(1)
        self.interpret(call, self.look(call, counted=False))
        return self._client.stats.logins == logins

    def exchange(self, call: calls.Call[Any], attempt: int = 1) -> Answer:
        """Make one attempt outside the budget; from any thread."""
        begun = time.perf_counter()
        body = bytearray()
        with self._client.exchange(call, attempt) as response, network(call, attempt):
            for piece in response.iter_bytes():
                body += piece
                if len(body) > MAX_ANSWER_BYTES or self._is_late():
                    raise R7MailResponseError(
                        "the response does not end", method=call.method, path=call.path
                    )
        return Answer(
            response.status_code, response.headers, bytes(body), time.perf_counter() - begun
        )

    def look(self, call: calls.Call[Any], attempt: int = 1, *, counted: bool = True) -> Answer:
        """Make one request, and return the response whatever its status.

        :param counted: whether it counts as one call in the life of the token: not if a refusal is
            likely, since the client may then make more to find out whether the token has died
        """
        self.spend()
        logins = self._client.stats.logins
        try:
            answer = self.exchange(call, attempt)
        except R7MailRequestError as error:
            self.failures.append(failure_kind(error))
            raise
        if self._client.stats.logins > logins > 0:
            if counted and self._exact:
                self.token_lives.append(self.served)
            self.served, self._exact = 0, True
        self.served += counted and call.authorized
        self._exact = self._exact and counted
        return answer

    def interpret(self, call: calls.Call[T], answer: Answer, attempt: int = 1) -> T:
        """Parse a response, and note a failure.

        :raises R7MailRequestError: the status is not 200, or the body is not as agreed
        """
        try:
            return interpret(call, answer.status, answer.headers, answer.body, attempt)
        except R7MailRequestError as error:
            self.failures.append(failure_kind(error))
            raise

    def ask(self, call: calls.Call[T], tries: int = _TRIES) -> tuple[T, Answer]:
        """Make a request until it succeeds, or has failed for good."""
        for attempt in range(1, tries + 1):
            try:
                answer = self.look(call, attempt)
                return self.interpret(call, answer, attempt), answer
            except R7MailRequestError as error:
                if attempt == tries or not may_repeat(call, error):
                    raise
                time.sleep(min(error.retry_after or self.config.backoff, _MAX_PAUSE))
        raise AssertionError("no try")

    # -- listings ---------------------------------------------------------------------------

    def fetch(
        self,
        size: int,
        *,
        offset: int = 0,
        start: int | None = None,
        end: int | None = None,
        labels: tuple[int, ...] | None = (),
        folder: int | None = None,
        tries: int = _TRIES,
        zone: tzinfo = UTC,
    ) -> Page:
        """List messages; bounds are in microseconds since 1970.

        :param labels: labels to filter by; None leaves `Labels` out, and so does an empty tuple
            once `Labels: []` may filter (R31)
        :param folder: another folder than the one that is checked
        :param zone: the zone in which to write the bounds
        """
        folder = self.folder if folder is None else folder
        if self.refused_size is not None:
            size = min(size, self.served_size)
        if not labels and self.traits.labels == "left out":
            labels = None
        call = self.list_call(size, offset, start, end, labels, folder, zone=zone)
        again = partial(
            self.fetch,
            offset=offset,
            start=start,
            end=end,
            labels=labels,
            folder=folder,
            zone=zone,
        )
        try:
            (envelope, as_named), answer = self.ask(call, tries)
        except R7MailRequestError as error:
            if error.status not in TOO_LARGE or size <= max(self.served_size, 1):
                raise
            if error.status == 500 and tries == 1:  # or has it failed just once?
                tries = _TRIES
            elif self.served_size:
                self._note_refusal(size, error)
                raise
            else:
                page = again(max(size // 5, 1))
                self._note_refusal(size, error)
                return page
            return again(size, tries=tries)
        self.served_size = max(self.served_size, size)
        items = [item if isinstance(item, Mapping) else {} for item in envelope["Items"]]
        page = Page(
            folder=folder,
            asked=size,
            offset=offset,
            start=start,
            end=end,
            labels=labels,
            rows=tuple(map(Row.of, items)),
            zoneless=lacks_zone(answer.body),
            zoneless_timestamps=only_timestamps_lack_zone(answer.body),
            count=answers.read_count(envelope.get("Count")),
            bytes=len(answer.body),
            seconds=answer.seconds,
        )
        self._show(Listing(page, items, envelope, as_named))
        if folder == self.folder:
            self.pages.append(page)
        return page

    def _note_refusal(self, size: int, error: R7MailRequestError) -> None:
        """Note that a page was refused for its size: smaller ones are served (R37)."""
        self.failures = [kind for kind in self.failures if kind != failure_kind(error)]
        self.refused_size = size, error.status or 0

    def try_fetch(
        self,
        size: int,
        *,
        offset: int = 0,
        start: int | None = None,
        end: int | None = None,
        labels: tuple[int, ...] | None = (),
        zone: tzinfo = UTC,
    ) -> Page | None:
        """List messages as in `fetch`; None if the server refuses to, which is no failure."""
        failures = len(self.failures)
        try:
            return self.fetch(size, offset=offset, start=start, end=end, labels=labels, zone=zone)
        except R7MailServerError:
            del self.failures[failures:]
            return None

    def list_call(
        self,
        size: int,
        offset: int = 0,
        start: int | None = None,
        end: int | None = None,
        labels: tuple[int, ...] | None = (),
        folder: int | None = None,
        order_field: str = "Date",
        *,
        zone: tzinfo = UTC,
    ) -> ListCall:
        """Return the call that lists messages; see `fetch`.

        :param order_field: the field to sort by
        """
        call = calls.list_messages(
            self.folder if folder is None else folder,
            MessageFilter(labels=labels or ()),
            empty_labels=labels is not None,
            start=None,
            end=None,
            offset=offset,
            size=size,
            parse=_parse_listing,
        )
        body = {**(call.body or {}), "orderField": order_field}
        body["SearchContext"] = {
            **body["SearchContext"],
            "StartDate": _bound_text(start, zone),
            "EndDate": _bound_text(end, zone),
        }
        return replace(call, body=body)

    def near(
        self,
        row: Row,
        folder: int | None = None,
        offset: int = 0,
        labels: tuple[int, ...] = (),
    ) -> Page:
        """List a message and those with similar dates, with the bounds the package would use."""
        assert row.date is not None  # noqa: S101 - such rows are not asked for
        reach = self.traits.reach
        second = to_microseconds(row.date) // SECOND + (self.traits.dates_offset or 0)
        return self.fetch(
            FIRST_PAGE,
            offset=offset,
            start=None if reach is None else (second - reach.below) * SECOND,
            end=None if reach is None else (second + reach.above) * SECOND,
            labels=labels,
            folder=folder,
        )

    # -- what was seen ----------------------------------------------------------------------

    @property
    def unfiltered(self) -> tuple[Page, ...]:
        """The pages requested without any filter."""
        return tuple(page for page in self.pages if not page.filtered)

    @property
    def strays(self) -> tuple[Row, ...]:
        """The messages that were listed out of both bounds, by more than the traits explain."""
        slack = WIDE_REACH.above if self.traits.bounds == "inexact" else 2
        if self.traits.bounds not in {"date", "inexact"} or self.traits.dates_offset is not None:
            return ()
        return tuple(row for page in self.pages if page.bounds == 2 for row in page.strays(slack))

    @property
    def longest(self) -> int:
        """Number of messages in the longest page."""
        return max(len(page.rows) for page in self.pages)

    @property
    def is_empty(self) -> bool:
        """Whether no message was seen."""
        return self.longest == 0

    def is_whole(self, page: Page) -> bool:
        """Whether nothing follows a page, since the server has returned longer ones."""
        return len(page.rows) < max(min(page.asked, self.longest), 1)

    def rows(self) -> tuple[Row, ...]:
        """Return the messages seen that have a date and an id, each once, earliest first."""
        known = {
            row.key: row
            for page in self.pages
            for row in page.rows
            if row.key is not None and row.date is not None
        }
        return tuple(sorted(known.values(), key=lambda row: (row.date, row.key)))


def failure_kind(error: R7MailRequestError) -> str:
    """Return what failed, without the error's text, which may name hosts."""
    if error.status is not None:
        return f"status {error.status}" + (
            ", unexpected response" if isinstance(error, R7MailResponseError) else ""
        )
    return "no response in time" if isinstance(error, R7MailTimeoutError) else "connection broken"


def why_stopped(error: Spent | R7MailRequestError) -> str:
    """Return why a question was left open."""
    if isinstance(error, Spent):
        return "left out: the check reached its limit of requests or time"
    return f"a request failed: {failure_kind(error)}"


def _parse_listing(body: bytes) -> tuple[Mapping[str, Any], bool]:
    """Parse a listing, and return whether all its names came in the manual's case (R42)."""
    raw, listing = answers.read_json(body), answers.read_listing(body)
    return listing, raw.keys() == listing.keys() and (raw["Items"] or []) == listing["Items"]


def _bound_text(microseconds: int | None, zone: tzinfo) -> str:
    """Format a bound as the package does, to the millisecond, unless it has more digits."""
    if microseconds is None:
        return ""
    try:
        moment = (EPOCH + microseconds * MICROSECOND).astimezone(zone)
    except OverflowError:  # a bound before year 1 or after 9999 bounds nothing
        return ""
    if moment.microsecond % 1_000 == 0:
        return format_api_date(moment)
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _time_of(headers: httpx.Headers) -> datetime:
    """Return the server's time, or the local one if it doesn't say."""
    try:
        moment = parsedate_to_datetime(headers.get("date", ""))
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    except (ValueError, TypeError, OverflowError):
        return datetime.now(UTC)
