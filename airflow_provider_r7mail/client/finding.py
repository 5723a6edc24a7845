"""Find messages by their ids, and again after a move that may give them others (R35). No Airflow.

What stays is the MIME Message-ID, with Date, sender and subject beside it, since some programs give
all their mail the same.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.client.models import Message, MessageFilter
from airflow_provider_r7mail.client.reader import iter_messages
from airflow_provider_r7mail.exceptions import R7MailMessageNotFoundError

if TYPE_CHECKING:
    from airflow_provider_r7mail.client.session import Client

log = logging.getLogger(__name__)

FIRST_PAUSE = 0.25
LONGEST_PAUSE = 10.0
MAX_WINDOWS = 20
"""Most days to look at one by one."""


def find_by_ids(client: Client, folder: int, ids: Sequence[int]) -> dict[int, Message]:
    """Find messages in a folder's listing: the API has no other way to get one.

    :return: those that are there, by id
    """
    missing = set(ids)
    found: dict[int, Message] = {}
    for message in iter_messages(client, folder, MessageFilter()):
        if message.id in missing:
            found[message.id] = message
            missing.remove(message.id)
            if not missing:
                break
    return found


def not_in_folder(folder: int, gone: Sequence[int], done: str) -> R7MailMessageNotFoundError:
    """Return the error about messages that a folder doesn't have.

    :param gone: their ids
    :param done: what was done
    """
    return R7MailMessageNotFoundError(
        f"Not in folder {folder}: messages {list(gone)}. {done} Were they moved or deleted? An id "
        "is only valid in the folder it was read from."
    )


class Traced:
    """Messages that are about to be moved, to be found again in the target folder.

    Make it before the move: it notes which messages the target has that look the same.

    :param client: an open client
    :param messages: the messages, as listed before the move
    :param folder: id of the target folder
    """

    def __init__(self, client: Client, messages: Sequence[Message], folder: int) -> None:
        self._client = client
        self._folder = folder
        self._ids: defaultdict[Hashable, list[int]] = defaultdict(list)
        for message in messages:
            self._ids[_trace(message)].append(message.id)
        self._windows = _windows_of(messages)
        self._before = {message.id for message in self._look()}

    def find(self, seconds: float) -> dict[int, int]:
        """Return the ids that the messages have in the target, by the ids they had.

        :param seconds: how long to wait until all of them are there with new ids. Then those with
            their old ids count as well; others are left out
        """
        end = time.monotonic() + seconds
        pause = FIRST_PAUSE
        while True:
            found = self._match()
            renewed = sum(old != new for old, new in found.items())
            left = end - time.monotonic()
            if renewed == sum(map(len, self._ids.values())) or left <= 0:
                return found
            log.debug("%d messages have new ids in folder %d so far.", renewed, self._folder)
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _match(self) -> dict[int, int]:
        there: defaultdict[Hashable, list[int]] = defaultdict(list)
        for message in self._look():
            if message.id not in self._before:
                there[_trace(message)].append(message.id)
        found: dict[int, int] = {}
        for trace, ids in self._ids.items():
            same = set(ids).intersection(there[trace])
            renewed = sorted(set(there[trace]) - same)
            found |= {number: number for number in same}
            # Ids rise as mail arrives, so that the order stays.
            found |= zip(sorted(set(ids) - same), renewed, strict=False)
        return found

    def _look(self) -> Iterator[Message]:
        """Yield the messages of the target that look like these."""
        for window in self._windows:
            for message in iter_messages(self._client, self._folder, MessageFilter(window=window)):
                if _trace(message) in self._ids:
                    yield message


def _windows_of(messages: Sequence[Message]) -> list[Window]:
    """Return where to look for messages: each day that has some, or all of it if they are many."""
    days: defaultdict[date, list[datetime]] = defaultdict(list)
    for message in messages:
        if message.date is None:  # no window has it
            return [Window(None, None)]
        days[message.date.date()].append(message.date)
    spans = list(days.values())
    if len(spans) > MAX_WINDOWS:
        spans = [[moment for span in spans for moment in span]]
    return [Window(min(span), max(span) + timedelta(microseconds=1)) for span in spans]


def _trace(message: Message) -> Hashable:
    return message.mime_message_id, message.date, message.from_address, message.subject
