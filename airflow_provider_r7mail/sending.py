"""Send a message once: mark it, and after an unclear outcome look whether it was sent. No Airflow.

What is done when is decided by `_steps`, which performs no I/O; `send_once` and `asend_once` carry
its steps out. Rests on the contract's R8, R11 and R23.

What "it was sent" rests on, strongest first:

* A message in the Sent folder has this message's marker.
* The server takes markers out (no message in the window has one), and just one message has the
  same subject, recipients, text and files, dated after the first attempt.

What can be neither told apart from this message nor taken for it is an error, never a guess.
"""

from __future__ import annotations

import asyncio
import hashlib
import html
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import getaddresses
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from markupsafe import Markup

from airflow_provider_r7mail.exceptions import (
    R7MailAuthError,
    R7MailConfigError,
    R7MailError,
    R7MailRequestError,
    R7MailSendUnclearError,
    R7MailSendUnsettledError,
)
from airflow_provider_r7mail.extract import aiter_messages, iter_messages
from airflow_provider_r7mail.models import MessageFilter, Window, parse_moment

if TYPE_CHECKING:
    import pandas as pd

    from airflow_provider_r7mail.api import Call
    from airflow_provider_r7mail.client import AsyncClient, Client
    from airflow_provider_r7mail.models import Message

log = logging.getLogger(__name__)

SETTLE_SECONDS = 120.0
"""How long a message may take to appear in the Sent folder (R11)."""

CLOCK_ALLOWANCE = timedelta(days=1)
"""How far the server's clock may be behind ours: it is the server that dates what it sends."""

SAME_TEXT_ALLOWANCE = timedelta(minutes=5)
"""The same where only the date tells this message from an earlier one with the same text."""

MAX_SENDS = 2
"""Sendings in one try. More would mean that a server loses them, or hides what it has sent."""

SAMPLE_SIZE = 50
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
TABLE_ROWS = 500

_MARKER = re.compile(r"r7mail-([0-9a-f]{16})-([0-9a-f]{16})")
_BODY_END = re.compile(r"</body\s*>", re.IGNORECASE)
_HIDDEN = "display:none;mso-hide:all;max-height:0;overflow:hidden;font-size:0;line-height:0"


# -- the marker -------------------------------------------------------------------------------


def _digest(*names: object) -> str:
    return hashlib.sha256(json.dumps(names, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Marker:
    """What tells a message from all others, in its HTML; reveals nothing of what it is made of.

    :param place: a hash of where it comes from: DAG, run, task, map index
    :param recipients: a hash of DAG, run, task and recipients: a list that is mapped over may
        have shifted when a task is run again
    """

    place: str
    recipients: str

    @classmethod
    def of(
        cls,
        task: Sequence[str],
        map_index: int,
        recipients: Iterable[str],
        part: int | str = "",
    ) -> Self:
        """Derive a marker.

        :param task: what names the task's run: DAG, run and task ids
        :param map_index: its map index, -1 for none
        :param recipients: all of the message's addresses
        :param part: which of the task's messages it is, where it sends several
        """
        return cls(
            place=_digest(*task, map_index, part),
            recipients=_digest(*task, part, sorted({text.casefold() for text in recipients})),
        )

    @classmethod
    def random(cls) -> Self:
        """A marker for a message that comes from no task."""
        number = uuid.uuid4().hex
        return cls(number[:16], number[16:])

    def __str__(self) -> str:
        return f"r7mail-{self.place}-{self.recipients}"

    def put_into(self, call: Call[Message]) -> Call[Message]:
        """The same call, with the marker in its HTML, where no reader sees it.

        It is the text of an element at the end: previews show what comes first, and text is what
        survives where comments, attributes or styles are taken out. Markers that came with quoted
        mail go.
        """
        body = dict(call.body or {})
        body["HtmlBody"] = _before_body_end(
            _MARKER.sub("r7mail", body["HtmlBody"]),
            f'<div aria-hidden="true" style="{_HIDDEN}">{self}</div>',
        )
        return replace(call, body=body)


def _before_body_end(text: str, element: str) -> str:
    ends = list(_BODY_END.finditer(text))
    place = ends[-1].start() if ends else len(text)
    return f"{text[:place]}{element}{text[place:]}"


def recipients_of(call: Call[Any]) -> list[str]:
    """All addresses that a message goes to."""
    body = call.body or {}
    return [address for kind in ("To", "Cc", "Bcc") for address in body.get(kind, ())]


# -- what is known of earlier attempts --------------------------------------------------------

State = Literal["sending", "sent", "not sent", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What is known of sending a message so far; what is recorded of it.

    :param state: `sending` was begun, and its end is not known; `sent`; `not sent`, for sure;
        `unknown` whether it was begun
    :param since: when it was begun first
    :param last: when it was begun last; None: most likely never
    :param id: the server's id, of a message that was sent
    """

    state: State
    since: datetime
    last: datetime | None = None
    id: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        values: dict[str, Any] = {"state": self.state, "since": self.since.isoformat()}
        if self.last is not None:
            values["last"] = self.last.isoformat()
        if self.id is not None:
            values["id"] = self.id
        return values

    @property
    def reached(self) -> bool:
        """Whether the server may have it."""
        return self.state != "not sent"

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote.

        :raises R7MailConfigError: it did not
        """
        since = parse_moment(raw.get("since"), "since")
        state = raw.get("state")
        if since is None or state not in {"sending", "sent", "not sent", "unknown"}:
            raise R7MailConfigError("This is no record of a sending.")
        last = parse_moment(raw.get("last"), "last")
        return cls(state=state, since=since, last=last, id=raw.get("id"))


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that was sent.

    :param id: the server's id; of the copy in the Sent folder, if it was found there
    :param before: an earlier try had sent it
    """

    id: int | None
    before: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """A message to be sent once.

    :param call: the call that sends it, with the marker in it
    :param marker: its marker; None only where it can't be looked for
    :param sent_folder: the id of the folder where the server keeps what it sent, None if unknown
    :param settle_seconds: how long the message may take to appear there
    """

    call: Call[Message]
    marker: Marker | None = None
    sent_folder: int | None = None
    settle_seconds: float = SETTLE_SECONDS

    @classmethod
    def of(
        cls,
        call: Call[Message],
        marker: Marker | None,
        sent_folder: int | None,
        settle_seconds: float,
    ) -> Self:
        """Put the marker into the call; a random one if it can be looked for and has none."""
        if marker is None and sent_folder is not None:
            marker = Marker.random()
        return cls(
            call=call if marker is None else marker.put_into(call),
            marker=marker,
            sent_folder=sent_folder,
            settle_seconds=settle_seconds,
        )


# -- looking ----------------------------------------------------------------------------------


class Search:
    """Reads the Sent folder for a message, and tells what that means.

    :param sending: the message
    :param since: when it was begun to be sent, by our clock
    :param quick: ask by subject too. How a server compares it is not known: that a message is
        found proves something, that none is found does not.
    """

    def __init__(self, sending: Sending, since: datetime, *, quick: bool = False) -> None:
        body = sending.call.body or {}
        self.folder = sending.sent_folder or 0
        self._quick = quick
        self._since = since
        self._window = Window(since - CLOCK_ALLOWANCE)
        self.found: int | None = None
        self._marker = sending.marker
        self._subject = _flat(body.get("Subject"))
        self._recipients = {
            kind: {address.casefold() for address in body.get(kind, ())}
            for kind in ("To", "Cc", "Bcc")
        }
        self._texts = {_words(body.get("Body"))} | {_words_of_html(body.get("HtmlBody"))}
        self._files = sorted(file["FileName"] for file in body.get("Attachments", ()))
        self._alike: list[Message] = []
        self._conflicting: list[int] = []
        self._markers = False

    def criteria(self) -> MessageFilter:
        """What to ask the server for."""
        return MessageFilter(window=self._window, subject=self._subject if self._quick else "")

    def see(self, message: Message) -> bool:
        """Look at a message; whether the search is over."""
        text = f"{message.html_body or ''} {message.body or ''}"
        markers = {Marker(*found) for found in _MARKER.findall(text)}
        self._markers = self._markers or bool(markers)
        own = self._marker
        if own in markers:
            self.found = message.id
        elif own is not None and any(own.recipients == other.recipients for other in markers):
            self._see_shifted(message)
        elif own is not None and any(own.place == other.place for other in markers):
            if self._share_recipients(message):
                self._conflicting.append(message.id)
        elif not markers and self._is_alike(message):
            self._alike.append(message)
        return self.found is not None

    def _see_shifted(self, message: Message) -> None:
        """To the same recipients, by the same task of the same run, from another map index."""
        if message.subject is not None and _flat(message.subject) != self._subject:
            return  # another one of several reports
        if self._same_content(message):
            self.found = message.id
        else:
            self._conflicting.append(message.id)

    def _share_recipients(self, message: Message) -> bool:
        theirs = _addresses(message.to_addresses) | _addresses(message.cc_addresses)
        ours = set().union(*self._recipients.values())
        return not theirs or bool(theirs & ours)

    def _is_alike(self, message: Message) -> bool:
        """Whether a message without a marker may be this one, by all that the listing says."""
        if message.subject is not None and _flat(message.subject) != self._subject:
            return False
        listed = {
            "To": message.to_addresses,
            "Cc": message.cc_addresses,
            "Bcc": message.bcc_addresses,
        }
        return all(
            _addresses(addresses) in (set(), self._recipients[kind])
            for kind, addresses in listed.items()
        )

    def _same_content(self, message: Message) -> bool:
        """Whether text and files are the same; the plain text, often a stopgap, does not count."""
        text = _words_of_html(message.html_body) or _words(message.body)
        files = sorted(str(file.file_name) for file in message.attachments or ())
        return bool(text) and text in self._texts and files == self._files

    def conclude(self) -> int | None:
        """Tell what the whole window means: the id of the message, None if it was not sent.

        :raises R7MailSendUnclearError: it can't be told
        """
        if self.found is not None:
            return self.found
        if self._conflicting:
            raise self.unclear(
                f"messages {self._conflicting} of the Sent folder {self.folder} went to some of "
                "its recipients from the same task, but differ"
            )
        # Where the server leaves markers in, a message with a text but no marker is another one.
        alike = [
            message
            for message in self._alike
            if not self._markers or not (message.html_body or message.body)
        ]
        if alike:
            return self._only_one(alike)
        return None

    def doubt_folder(self) -> R7MailSendUnclearError:
        """The error for a folder that has mail, but none that was sent."""
        return self.unclear(
            f"folder {self.folder} seems not to be the Sent folder, as none of its messages was "
            "sent"
        )

    def _only_one(self, alike: Sequence[Message]) -> int:
        first = alike[0]
        begun = self._since - SAME_TEXT_ALLOWANCE
        late_enough = first.date is not None and first.date >= begun
        if len(alike) == 1 and late_enough and self._same_content(first):
            log.warning(
                "Message %d is taken for this one: its marker is missing, but subject, recipients "
                "and text are the same, and no other is like it.",
                first.id,
            )
            return first.id
        raise self.unclear(
            f"messages {[message.id for message in alike]} of the Sent folder {self.folder} may "
            "be this one: their subject and recipients are not known to differ, and no marker "
            "tells them apart"
        )

    def unclear(self, why: str) -> R7MailSendUnclearError:
        """The error for a sending whose outcome can't be told."""
        return R7MailSendUnclearError(
            f"it is unclear whether the message was sent: {why}",
            method="POST",
            path="/api/v1/email/Send",
            hint=what_to_do(self._marker),
        )


class Sample:
    """Looks at some messages of a folder, to see whether it is one for sent mail at all.

    :param folder: the folder's id
    """

    def __init__(self, folder: int) -> None:
        self.folder = folder
        self.seen = 0
        self.has_sent = False

    def criteria(self) -> MessageFilter:
        """What to ask the server for."""
        return MessageFilter()

    def see(self, message: Message) -> bool:
        """Look at a message; whether these are enough."""
        self.seen += 1
        self.has_sent = self.has_sent or message.was_sent is True
        return self.has_sent or self.seen >= SAMPLE_SIZE


def what_to_do(marker: Marker | None) -> str:
    """What a person does about a sending whose outcome is unclear."""
    what = "its subject and recipients"
    if marker is not None:
        what += f", or for {marker} in the HTML"
    return (
        f"It was not repeated. Look into the Sent folder for {what}. If it is there, mark the task "
        "as successful; if not, see 'Send it anyway' in the provider's documentation."
    )


def _flat(text: str | None) -> str:
    return " ".join((text or "").split())


def _words(text: str | None) -> str:
    return " ".join(re.findall(r"\w+", (text or "").casefold()))


def _words_of_html(text: str | None) -> str:
    return _words(html.unescape(re.sub(r"<[^>]*>", " ", _MARKER.sub(" ", text or ""))))


def _addresses(listed: Iterable[object]) -> set[str]:
    """Addresses as a listing shows them, with or without names."""
    pairs = getaddresses([str(item) for item in listed])
    return {address.casefold() for _, address in pairs if "@" in address}


# -- the decision -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Send:
    """Carry the call."""


@dataclass(frozen=True, slots=True)
class _Look:
    """Show what the folder has."""

    search: Search | Sample


@dataclass(frozen=True, slots=True)
class _Wait:
    seconds: float


@dataclass(frozen=True, slots=True)
class _Record:
    attempt: Attempt


_Step: TypeAlias = _Send | _Look | _Wait | _Record
_Steps: TypeAlias = Generator[_Step, "Message | None", Sent]


def _steps(sending: Sending, earlier: Attempt | None) -> _Steps:
    """What to do, one step after the other; errors of a step are thrown in."""
    if earlier is not None and earlier.state == "sent":
        return Sent(earlier.id, before=True)
    since: datetime | None = None
    if earlier is not None and earlier.reached:
        since = None if earlier.last is None else earlier.since
        number = yield from _look_back(sending, earlier)
        if number is not None:
            yield _Record(replace(earlier, state="sent", id=number))
            return Sent(number, before=True)
    for turn in range(1, MAX_SENDS + 1):
        now = datetime.now(UTC)
        begun = Attempt(state="sending", since=since or now, last=now)
        yield _Record(begun)
        try:
            message = yield _Send()
        except R7MailSendUnclearError as error:
            if sending.sent_folder is None:
                raise error.but(hint=what_to_do(sending.marker)) from error
            log.warning("%s. Looking into folder %d.", error.reason, sending.sent_folder)
            # From now on, not from when it was begun: a log-in, a proxy that asked to wait, or a
            # time-out may have come between.
            number = yield from _settle(sending, begun.since, datetime.now(UTC))
            if number is not None:
                yield _Record(replace(begun, state="sent", id=number))
                return Sent(number)
            if turn == MAX_SENDS:
                raise _not_sent(error, sending) from error
            log.warning("It is not there: sending again.")
        except R7MailRequestError:
            if since is None:  # else an earlier attempt may still show up
                yield _Record(replace(begun, state="not sent"))
            raise
        else:
            number = None if message is None else message.id
            yield _Record(replace(begun, state="sent", id=number))
            return Sent(number)
        since = begun.since
    raise AssertionError("the last attempt returns or raises")


def _look_back(sending: Sending, earlier: Attempt) -> Generator[_Step, Any, int | None]:
    """Find out what earlier tries did."""
    if sending.sent_folder is not None:
        log.info("An earlier try may have sent it: looking into folder %d.", sending.sent_folder)
        try:
            return (yield from _settle(sending, earlier.since, earlier.last))
        except R7MailSendUnsettledError as error:
            if isinstance(error.__cause__, R7MailAuthError):
                raise error.__cause__ from None  # no try will mend that
            raise
    if earlier.last is None:
        return None
    raise Search(sending, earlier.since).unclear(
        "an earlier try may have sent it, and no sent_folder is given to look for it"
    )


def _settle(
    sending: Sending, since: datetime, last: datetime | None
) -> Generator[_Step, Any, int | None]:
    """Look until the message is found, or should long be there.

    :param since: when it was begun to be sent first
    :param last: when it was begun last, None for long ago
    :return: the message's id, None if it was not sent
    """
    left = 0.0
    if last is not None:
        passed = (datetime.now(UTC) - last).total_seconds()
        left = min(max(sending.settle_seconds - passed, 0.0), sending.settle_seconds)
    end = time.monotonic() + left
    pause = FIRST_PAUSE
    while True:
        is_last = time.monotonic() >= end
        quick = Search(sending, since, quick=True)
        try:
            yield _Look(quick)
            if quick.found is not None:
                return quick.found
            if is_last:
                return (yield from _conclude(Search(sending, since)))
        except R7MailSendUnclearError:
            raise
        except R7MailError as error:
            if is_last:
                raise _unsettled(error, sending) from error
            log.warning("The Sent folder could not be read: %s", error)
        yield _Wait(max(0.0, min(pause, end - time.monotonic())))
        pause = min(2 * pause, LONGEST_PAUSE)


def _conclude(search: Search) -> Generator[_Step, Any, int | None]:
    yield _Look(search)
    number = search.conclude()
    if number is None:
        # Not to be found is no news in a folder that has other mail.
        sample = Sample(search.folder)
        yield _Look(sample)
        if sample.seen and not sample.has_sent:
            raise search.doubt_folder()
        if not sample.seen:
            log.warning(
                "Folder %d is empty. If this account has sent mail before, it is not the Sent "
                "folder, and the message may go out twice: correct sent_folder.",
                search.folder,
            )
    return number


def _not_sent(error: R7MailSendUnclearError, sending: Sending) -> R7MailRequestError:
    """The error for a message that was sent without an answer, and did not get there."""
    cause = error.__cause__ if isinstance(error.__cause__, R7MailRequestError) else error
    return cause.but(
        reason=f"{cause.reason}; the message was not in folder {sending.sent_folder} after "
        f"{sending.settle_seconds:g} s, {MAX_SENDS} times",
        hint="It counts as not sent; an operator's next try looks again before it sends.",
    )


def _unsettled(error: R7MailError, sending: Sending) -> R7MailSendUnsettledError:
    return R7MailSendUnsettledError(
        "it is unclear whether the message was sent, and folder "
        f"{sending.sent_folder} could not be read: {error.text}",
        method="POST",
        path=getattr(error, "path", "/api/v1/email/Messages"),
        status=getattr(error, "status", None),
        hint=f"An operator's next try looks there before it sends anything. Where there is none, "
        f"look there for {sending.marker} in the HTML before you send it again.",
    )


def send_once(
    client: Client,
    sending: Sending,
    *,
    earlier: Attempt | None = None,
    record: Callable[[Attempt], None] | None = None,
) -> Sent:
    """Send a message, unless it was sent before.

    :param client: an open client
    :param sending: the message
    :param earlier: what is known of earlier attempts, by other tries; None: there were none
    :param record: keeps an attempt, before and after it, for later tries
    :return: the message that was sent, now or before
    :raises R7MailSendUnsettledError: it is unclear whether it was sent, and the Sent folder could
        not be read; trying again does no harm where `earlier` then tells of this attempt
    :raises R7MailSendUnclearError: it is unclear whether it was sent; a person must look (R23)
    :raises R7MailRequestError: it was not sent
    """
    steps = _steps(sending, earlier)
    answer: Message | None = None
    error: R7MailError | None = None
    while True:
        try:
            step = steps.send(answer) if error is None else steps.throw(error)
        except StopIteration as end:
            sent: Sent = end.value
            return sent
        answer = error = None
        try:
            match step:
                case _Send():
                    answer = client.send(sending.call)
                case _Look(search):
                    for message in iter_messages(
                        client, search.folder, search.criteria(), keep_undated=True
                    ):
                        if search.see(message):
                            break
                case _Wait(seconds):
                    time.sleep(seconds)
                case _Record(attempt) if record is not None:
                    record(attempt)
        except R7MailError as caught:
            error = caught


async def asend_once(client: AsyncClient, sending: Sending) -> Sent:
    """Send a message; as `send_once`, without earlier tries."""
    steps = _steps(sending, None)
    answer: Message | None = None
    error: R7MailError | None = None
    while True:
        try:
            step = steps.send(answer) if error is None else steps.throw(error)
        except StopIteration as end:
            sent: Sent = end.value
            return sent
        answer = error = None
        try:
            match step:
                case _Send():
                    answer = await client.send(sending.call)
                case _Look(search):
                    messages = aiter_messages(
                        client, search.folder, search.criteria(), keep_undated=True
                    )
                    async with aclosing(messages):
                        async for message in messages:
                            if search.see(message):
                                break
                case _Wait(seconds):
                    await asyncio.sleep(seconds)
        except R7MailError as caught:
            error = caught


# -- what a message is made of ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Link:
    """A link at the end of a message.

    :param url: where it leads
    :param name: what the reader sees
    """

    url: str
    name: str


def add_links(html_content: str, text: str, links: Sequence[Link]) -> tuple[str, str]:
    """Add links at the end of both bodies of a message.

    :return: HTML and text
    """
    if not links:
        return html_content, text
    items = "".join(
        f'<li><a href="{html.escape(link.url)}">{html.escape(link.name)}</a></li>' for link in links
    )
    lines = "\n".join(f"{link.name}: {link.url}" for link in links)
    return _before_body_end(html_content, f"<ul>{items}</ul>"), f"{text}\n\n{lines}"


def import_pandas(user: str) -> Any:
    """Import pandas, which is an extra of this package.

    :param user: what needs it, for the error
    :raises R7MailConfigError: it is not installed
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise R7MailConfigError(
            f"{user} needs pandas ({error}): pip install airflow-provider-r7mail[pandas]"
        ) from error
    return pd


def html_table(
    rows: pd.DataFrame | Iterable[Mapping[str, Any]], max_rows: int = TABLE_ROWS
) -> Markup:
    """Render a table for a message. Cells and column names are escaped: they are data, not HTML.

    :param rows: a pandas DataFrame, or a list of dicts, as XCom brings it
    :param max_rows: rows at most; if there are more, a note below the table says so
    :return: the table, marked as safe for templates
    :raises R7MailConfigError: pandas is not installed
    """
    pd = import_pandas("html_table")
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    # By default pandas cuts texts after 50 characters.
    with pd.option_context("display.max_colwidth", None):
        table = (
            frame.head(max_rows)
            .rename_axis(columns=None)
            .to_html(
                index=False,
                border=1,
                escape=True,
                na_rep="",
                render_links=False,
                show_dimensions=False,
                max_cols=None,
            )
        )
    note = ""
    if len(frame) > max_rows:
        note = f"<p>The first {max_rows:,} of {len(frame):,} rows.</p>"
    return Markup(f"{table}{note}")  # noqa: S704 - escaped by pandas
