"""Recognise a message in the Sent folder, to find out whether it was sent. No I/O, no Airflow.

Evidence that a message was sent, strongest first:

* A message in the Sent folder has this message's marker.
* The server strips markers (no message in the window has one), and exactly one message has the
  same subject, recipients, text and files, and is dated after the first attempt.

A message that can neither be ruled out nor be identified is an error, never a guess.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from email.utils import getaddresses
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.client.marker import MARKER, Marker
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.exceptions import R7MailSendUnclearError

if TYPE_CHECKING:
    from airflow_provider_r7mail.client.models import Message

log = logging.getLogger(__name__)

CLOCK_ALLOWANCE = timedelta(days=1)
"""How far the server's clock, which dates sent messages, may be behind ours."""

SAME_TEXT_ALLOWANCE = timedelta(minutes=5)
"""The same, if only the date distinguishes the message from an earlier one with the same text."""

SAMPLE_SIZE = 50


class Search:
    """Compares messages of the Sent folder with the one that may have been sent.

    :param folder: id of the Sent folder
    :param body: JSON body of the call that sends the message
    :param marker: its marker, None if it has none
    :param since: when the first attempt to send it began, by our clock
    :param quick: also filter by subject. It isn't known how servers compare subjects, so finding
        the message proves something, but not finding it doesn't.
    """

    def __init__(
        self,
        folder: int,
        body: Mapping[str, Any],
        marker: Marker | None,
        since: datetime,
        *,
        quick: bool = False,
    ) -> None:
        self.folder = folder
        self.found: int | None = None
        self._quick = quick
        self._since = since
        self._window = Window(since - CLOCK_ALLOWANCE)
        self._marker = marker
        self._subject = _flat(body.get("Subject"))
        self._recipients = {
            kind: {address.casefold() for address in body.get(kind, ())}
            for kind in ("To", "Cc", "Bcc")
        }
        self._texts = {_words(body.get("Body")), _words_of_html(body.get("HtmlBody"))}
        # Not how often: a file that is given twice is attached once.
        self._files = {file["FileName"] for file in body.get("Attachments", ())}
        self._alike: list[Message] = []
        self._conflicting: list[int] = []
        self._markers = False

    def criteria(self) -> MessageFilter:
        """Return what to search for in the folder."""
        return MessageFilter(window=self._window, subject=self._subject if self._quick else "")

    def see(self, message: Message) -> bool:
        """Compare a message; return whether the search is over."""
        markers = Marker.find(f"{message.html_body or ''} {message.body or ''}")
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
        """Compare a message of the same task, run and recipients with another map index."""
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
        """Whether the listing leaves open that a message without a marker is this one."""
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
        """Whether text and files are the same. Prefers the HTML: plain text is often a stopgap."""
        text = _words_of_html(message.html_body) or _words(message.body)
        files = {str(file.file_name) for file in message.attachments or ()}
        return bool(text) and text in self._texts and files == self._files

    def conclude(self) -> int | None:
        """Return the result after all messages of the window have been compared.

        :return: id of the message, None if it was not sent
        :raises R7MailSendUnclearError: neither is certain
        """
        if self.found is not None:
            return self.found
        if self._conflicting:
            raise self._unclear(
                f"messages {self._conflicting} in the Sent folder {self.folder} were sent by the "
                "same task to some of its recipients, but differ"
            )
        # On a server that keeps markers, a message with a text but no marker is a different one.
        alike = [
            message
            for message in self._alike
            if not self._markers or not (message.html_body or message.body)
        ]
        if alike:
            return self._only_one(alike)
        return None

    def doubt_folder(self) -> R7MailSendUnclearError:
        """Return the error for a folder that has mail, but none that was sent."""
        return self._unclear(
            f"folder {self.folder} does not seem to be the Sent folder: none of its messages was "
            "sent"
        )

    def _only_one(self, alike: Sequence[Message]) -> int:
        first = alike[0]
        begun = self._since - SAME_TEXT_ALLOWANCE
        late_enough = first.date is not None and first.date >= begun
        if len(alike) == 1 and late_enough and self._same_content(first):
            log.warning(
                "Message %d must be this one: it has no marker, but the same subject, recipients, "
                "text and files, and no other message has.",
                first.id,
            )
            return first.id
        raise self._unclear(
            f"messages {[message.id for message in alike]} in the Sent folder {self.folder} may "
            "be this one: subject and recipients don't rule it out, and no marker tells them apart"
        )

    def _unclear(self, why: str) -> R7MailSendUnclearError:
        return unclear(why, self._marker)


class Sample:
    """Looks at some messages of a folder to see whether it contains sent mail.

    :param folder: id of the folder
    """

    def __init__(self, folder: int) -> None:
        self.folder = folder
        self.seen = 0
        self.has_sent = False

    def criteria(self) -> MessageFilter:
        """Return what to search for in the folder."""
        return MessageFilter()

    def see(self, message: Message) -> bool:
        """Look at a message; return whether the sample is complete."""
        self.seen += 1
        self.has_sent = self.has_sent or message.was_sent is True
        return self.has_sent or self.seen >= SAMPLE_SIZE


def unclear(why: str, marker: Marker | None) -> R7MailSendUnclearError:
    """Return the error for a message that may or may not have been sent.

    :param why: why that is unclear
    :param marker: the message's marker, None if it has none
    """
    return R7MailSendUnclearError(
        f"it is unclear whether the message was sent: {why}",
        method="POST",
        path="/api/v1/email/Send",
        hint=what_to_do(marker),
    )


def what_to_do(marker: Marker | None) -> str:
    """Return what a person can do about a message that may or may not have been sent."""
    what = "its subject and recipients"
    if marker is not None:
        what += f", or for {marker} in the HTML"
    return (
        f"It was not sent again. Search the Sent folder for {what}. If it is there, mark the task "
        "as successful; if not, see 'Send it anyway' in the provider's documentation."
    )


def _flat(text: str | None) -> str:
    return " ".join((text or "").split())


def _words(text: str | None) -> str:
    return " ".join(re.findall(r"\w+", (text or "").casefold()))


def _words_of_html(text: str | None) -> str:
    return _words(html.unescape(re.sub(r"<[^>]*>", " ", MARKER.sub(" ", text or ""))))


def _addresses(listed: Iterable[object]) -> set[str]:
    """Return the addresses of a listing, which may include names."""
    pairs = getaddresses([str(item) for item in listed])
    return {address.casefold() for _, address in pairs if "@" in address}
