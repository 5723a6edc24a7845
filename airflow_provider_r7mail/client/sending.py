"""Send a message exactly once, even if the outcome of an attempt is unclear. No Airflow.

The message is marked. After an unclear outcome, the Sent folder is searched for it, and it is sent
again only if it isn't there. `_steps` decides what to do and performs no I/O; `send_once` and
`asend_once` carry out its steps. Based on the contract's R8, R11 and R23.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias
from uuid import uuid4

from airflow_provider_r7mail.client.attaching import Uploads
from airflow_provider_r7mail.client.dates import parse_moment
from airflow_provider_r7mail.client.marker import Marker
from airflow_provider_r7mail.client.reader import aiter_messages, iter_messages
from airflow_provider_r7mail.client.search import Sample, Search, unclear, what_to_do
from airflow_provider_r7mail.client.steps import Ask, Progress, Step, Wait, atake, take
from airflow_provider_r7mail.exceptions import (
    R7MailAuthError,
    R7MailConfigError,
    R7MailError,
    R7MailRequestError,
    R7MailSendUnclearError,
    R7MailSendUnsettledError,
)

if TYPE_CHECKING:
    from airflow_provider_r7mail.client.calls import Call
    from airflow_provider_r7mail.client.models import Message
    from airflow_provider_r7mail.client.session import AsyncClient, Client


log = logging.getLogger(__name__)

SETTLE_SECONDS = 120.0
"""How long a message may take to appear in the Sent folder (R11)."""

MAX_SENDS = 2
"""Attempts in one try. Needing more means that a server loses messages, or hides sent ones."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0


# -- what is known of earlier attempts --------------------------------------------------------

State = Literal["sending", "sent", "not sent", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What is known about sending a message, and is recorded for later tries.

    :param state: `sending`: begun, with unknown outcome; `sent`; `not sent`: certainly not;
        `unknown`: it isn't known whether it was begun
    :param since: when the first attempt began
    :param last: when the last attempt began; None if there most likely was none
    :param id: the server's id of the message, if it was sent
    """

    state: State
    since: datetime
    last: datetime | None = None
    id: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the attempt as a JSON object."""
        values: dict[str, Any] = {"state": self.state, "since": self.since.isoformat()}
        if self.last is not None:
            values["last"] = self.last.isoformat()
        if self.id is not None:
            values["id"] = self.id
        return values

    @property
    def reached(self) -> bool:
        """Whether the server may have received the message."""
        return self.state != "not sent"

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Create an attempt from the result of `to_json`.

        :raises R7MailConfigError: it is something else
        """
        since = parse_moment(raw.get("since"), "since")
        state = raw.get("state")
        if since is None or state not in {"sending", "sent", "not sent", "unknown"}:
            raise R7MailConfigError("This is not a record of an attempt to send.")
        last = parse_moment(raw.get("last"), "last")
        return cls(state=state, since=since, last=last, id=raw.get("id"))


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that was sent.

    :param id: the server's id of the message, or of its copy if that was found in the Sent folder
    :param before: whether an earlier try had sent it
    """

    id: int | None
    before: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """A message to be sent once.

    :param call: the call that sends it, including the marker
    :param marker: its marker; None only if there is no folder to search
    :param sent_folder: id of the folder for sent mail, None if unknown
    :param settle_seconds: how long the message may take to appear there
    :param uploads: files to upload before, and to attach
    """

    call: Call[Message]
    marker: Marker | None = None
    sent_folder: int | None = None
    settle_seconds: float = SETTLE_SECONDS
    uploads: Uploads = field(default_factory=lambda: Uploads(sources=()))

    @classmethod
    def of(
        cls,
        call: Call[Message],
        marker: Marker | None,
        sent_folder: int | None,
        settle_seconds: float,
        uploads: Uploads | None = None,
    ) -> Self:
        """Put the marker into the call; a random one if there is none but a folder to search."""
        if marker is None and sent_folder is not None:
            marker = Marker.random()
        uploads = uploads or Uploads(sources=())
        if uploads.delete:
            owner = uuid4().hex if marker is None else str(marker)
            uploads = replace(uploads, owner=owner)
        return cls(
            call=call if marker is None else marker.put_into(call),
            marker=marker,
            sent_folder=sent_folder,
            settle_seconds=settle_seconds,
            uploads=uploads,
        )

    def attaching(self, files: Sequence[Mapping[str, Any]]) -> Call[Message]:
        """Return the call with more files attached."""
        body = dict(self.call.body or {})
        return replace(
            self.call, body={**body, "Attachments": [*body.get("Attachments", ()), *files]}
        )

    def search(self, folder: int, since: datetime, *, quick: bool = False) -> Search:
        """Return a search for this message; see `Search`."""
        named = self.attaching([{"FileName": name} for name in self.uploads.names])
        return Search(folder, named.body or {}, self.marker, since, quick=quick)


# -- the decisions ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Look:
    """Show the folder's messages to the search until it is over."""

    search: Search | Sample


@dataclass(frozen=True, slots=True)
class _Record:
    attempt: Attempt


_Step: TypeAlias = Step | _Look | _Record
_Steps: TypeAlias = Generator[_Step, Any, Sent]


def _steps(sending: Sending, earlier: Attempt | None) -> _Steps:
    """Yield what to do, step by step. The error of a step is thrown in."""
    sent = yield from _send_unless_sent(sending, earlier)
    yield from sending.uploads.remove()
    return sent


def _send_unless_sent(sending: Sending, earlier: Attempt | None) -> _Steps:
    if earlier is not None and earlier.state == "sent":
        return Sent(earlier.id, before=True)
    since: datetime | None = None
    if earlier is not None and earlier.reached:
        since = None if earlier.last is None else earlier.since
        number = yield from _look_back(sending, earlier)
        if number is not None:
            yield _Record(replace(earlier, state="sent", id=number))
            return Sent(number, before=True)
    files = yield from sending.uploads.steps()
    return (yield from _send(sending, sending.attaching([file.to_json() for file in files]), since))


def _send(sending: Sending, call: Call[Message], since: datetime | None) -> _Steps:
    """Send the message, which no earlier try has sent.

    :param call: the call that sends it, with all its files
    :param since: when earlier tries may have begun, None if there were none
    """
    for turn in range(1, MAX_SENDS + 1):
        now = datetime.now(UTC)
        begun = Attempt(state="sending", since=since or now, last=now)
        yield _Record(begun)
        try:
            message = yield Ask(call)
        except R7MailSendUnclearError as error:
            folder = sending.sent_folder
            if folder is None:
                hint = what_to_do(sending.marker) + sending.call.explain(error.status)
                raise error.but(hint=hint) from error
            log.warning("%s. Checking folder %d.", error.reason, folder)
            # From now, not from the beginning: a login, a timeout or a proxy that asked to wait
            # may have taken a while.
            number = yield from _settle(sending, folder, begun.since, datetime.now(UTC))
            if number is not None:
                yield _Record(replace(begun, state="sent", id=number))
                return Sent(number)
            if turn == MAX_SENDS:
                raise _not_sent(error, sending) from error
            log.warning("The message is not there: sending it again.")
        except R7MailRequestError:
            if since is None:  # otherwise an earlier attempt may still appear
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
    folder = sending.sent_folder
    if folder is not None:
        log.info("An earlier try may have sent the message: checking folder %d.", folder)
        try:
            return (yield from _settle(sending, folder, earlier.since, earlier.last))
        except R7MailSendUnsettledError as error:
            if isinstance(error.__cause__, R7MailAuthError):
                raise error.__cause__ from None  # trying again would not help
            raise
    if earlier.last is None:
        return None
    raise unclear(
        "an earlier try may have sent it, and no sent_folder is given to check", sending.marker
    )


def _settle(
    sending: Sending, folder: int, since: datetime, last: datetime | None
) -> Generator[_Step, Any, int | None]:
    """Search until the message is found, or would long have appeared.

    :param folder: id of the Sent folder
    :param since: when the first attempt began
    :param last: when the last attempt began, None for long ago
    :return: id of the message, None if it was not sent
    """
    left = 0.0
    if last is not None:
        passed = (datetime.now(UTC) - last).total_seconds()
        left = min(max(sending.settle_seconds - passed, 0.0), sending.settle_seconds)
    end = time.monotonic() + left
    pause = FIRST_PAUSE
    while True:
        is_last = time.monotonic() >= end
        quick = sending.search(folder, since, quick=True)
        try:
            yield _Look(quick)
            if quick.found is not None:
                return quick.found
            if is_last:
                return (yield from _conclude(sending.search(folder, since)))
        except R7MailSendUnclearError:
            raise
        except R7MailError as error:
            if is_last:
                raise _unsettled(error, sending) from error
            log.warning("The Sent folder could not be read: %s", error)
        yield Wait(max(0.0, min(pause, end - time.monotonic())))
        pause = min(2 * pause, LONGEST_PAUSE)


def _conclude(search: Search) -> Generator[_Step, Any, int | None]:
    yield _Look(search)
    number = search.conclude()
    if number is None:
        # In a folder of other mail, not finding the message means nothing.
        sample = Sample(search.folder)
        yield _Look(sample)
        if sample.seen and not sample.has_sent:
            raise search.doubt_folder()
        if not sample.seen:
            log.warning(
                "Folder %d is empty. If this account has sent mail before, it is not the Sent "
                "folder, and the message may be sent twice: correct sent_folder.",
                search.folder,
            )
    return number


def _not_sent(error: R7MailSendUnclearError, sending: Sending) -> R7MailRequestError:
    """Return the error for a message that got no response, and isn't in the Sent folder."""
    cause = error.__cause__ if isinstance(error.__cause__, R7MailRequestError) else error
    hint = "It is considered not sent; an operator's next try checks again before sending."
    return cause.but(
        reason=f"{cause.reason}; in each of {MAX_SENDS} attempts the message was not in folder "
        f"{sending.sent_folder} after {sending.settle_seconds:g} s",
        hint=hint + sending.call.explain(cause.status),
    )


def _unsettled(error: R7MailError, sending: Sending) -> R7MailSendUnsettledError:
    return R7MailSendUnsettledError(
        "it is unclear whether the message was sent, and folder "
        f"{sending.sent_folder} could not be read: {error.text}",
        method="POST",
        path=getattr(error, "path", "/api/v1/email/Messages"),
        status=getattr(error, "status", None),
        hint="An operator's next try checks the folder before sending anything. Without an "
        f"operator, search it for {sending.marker} in the HTML before sending the message again.",
    )


# -- carrying them out ------------------------------------------------------------------------


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
    :param earlier: what is known about attempts of earlier tries; None if there were none
    :param record: called before and after each attempt to record it for later tries
    :return: the message that was sent, now or before
    :raises R7MailSendUnsettledError: it is unclear whether it was sent, and the Sent folder could
        not be read; trying again is safe if `earlier` then contains this attempt
    :raises R7MailSendUnclearError: it is unclear whether it was sent; a person must check (R23)
    :raises R7MailRequestError: it was not sent
    """
    progress = Progress(_steps(sending, earlier))
    while progress.step is not None:
        with progress:
            match progress.step:
                case _Look(search):
                    for message in iter_messages(
                        client, search.folder, search.criteria(), keep_undated=True
                    ):
                        if search.see(message):
                            break
                case _Record(attempt):
                    if record is not None:
                        record(attempt)
                case step:
                    progress.answer = take(step, client.send)
    return progress.result


async def asend_once(client: AsyncClient, sending: Sending) -> Sent:
    """Send a message; like `send_once`, without earlier tries."""
    progress = Progress(_steps(sending, None))
    while progress.step is not None:
        with progress:
            match progress.step:
                case _Look(search):
                    messages = aiter_messages(
                        client, search.folder, search.criteria(), keep_undated=True
                    )
                    async with aclosing(messages):
                        async for message in messages:
                            if search.see(message):
                                break
                case _Record():
                    pass
                case step:
                    progress.answer = await atake(step, client)
    return progress.result
