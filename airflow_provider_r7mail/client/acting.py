"""Mark, move and delete messages, many at a time. No Airflow.

The server answers once for all the ids of a call. If a move or delete is repeated because its
answer was lost, the server may refuse it, since the messages have already left the folder (R23).
It also refuses ids that were never in the folder. The folder's listing tells, and who tried before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from airflow_provider_r7mail.client.finding import Traced, find_by_ids, not_in_folder
from airflow_provider_r7mail.exceptions import (
    R7MailActionError,
    R7MailError,
    R7MailMessageNotFoundError,
    R7MailRequestError,
    R7MailServerError,
)

if TYPE_CHECKING:
    from airflow_provider_r7mail.client.calls import Call
    from airflow_provider_r7mail.client.progress import Progress
    from airflow_provider_r7mail.client.session import Client

log = logging.getLogger(__name__)

MOVE_SECONDS = 60.0
"""How long a moved message may take to get its new id: the server synchronises now and then."""

BATCH_SIZE = 500
"""Most ids in one MarkAsRead, MarkAsFavorite, Delete or MoveMessage call."""


class Action:
    """One action on messages of a folder, in batches of `BATCH_SIZE`.

    The calls are made here, so that a wrong parameter fails before the login.

    :param folder: the folder's id
    :param ids: the messages' ids
    :param make_call: makes the call for a folder and some ids
    :param removes: whether the messages leave the folder
    """

    def __init__(
        self,
        folder: int,
        ids: Sequence[int],
        make_call: Callable[[int, Sequence[int]], Call[bool]],
        *,
        removes: bool = False,
    ) -> None:
        self.folder = folder
        self._removes = removes
        batches = [ids[start : start + BATCH_SIZE] for start in range(0, len(ids), BATCH_SIZE)]
        self._batches = [(batch, make_call(folder, batch)) for batch in batches]

    def run(self, client: Client, progress: Progress, *, tried_before: bool = False) -> None:
        """Send the calls, one batch after the other.

        :param client: an open client
        :param progress: counts the messages that are done
        :param tried_before: an earlier try of the task may have done it already
        :raises R7MailRequestError: a batch failed; the error says which one, and how many messages
            were done before
        :raises R7MailMessageNotFoundError: the server refused a batch at once, since some of its
            messages are not in the folder. Another try would take these for done
        """
        for place, (ids, call) in enumerate(self._batches, start=1):
            try:
                client.send(call)
            except R7MailRequestError as error:
                gone = self._gone(client, ids) if _is_refusal(error) else []
                if gone and not tried_before and error.attempt == 1:
                    raise not_in_folder(
                        self.folder, gone, f"The server refused the call. Done: {progress.done}."
                    ) from error
                if len(gone) < len(ids):
                    if len(self._batches) == 1:
                        raise
                    raise error.but(
                        reason=f"{error.reason}; in batch {place} of {len(self._batches)}, after "
                        f"{progress.done} messages were done"
                    ) from error
                log.warning(
                    "The server refused a repeated call, but folder %d has none of its messages "
                    "any more: an earlier attempt succeeded.",
                    self.folder,
                )
            progress.add(len(ids))

    def _gone(self, client: Client, ids: Sequence[int]) -> list[int]:
        """Return the messages that the folder doesn't list, as far as that can be told."""
        if not self._removes:
            return []
        try:
            there = find_by_ids(client, self.folder, ids)
        except R7MailError:
            return []  # the call's own error says more
        return [number for number in ids if number not in there]


def move_and_find(
    client: Client,
    action: Action,
    ids: Sequence[int],
    to_folder: int,
    progress: Progress,
    *,
    settle_seconds: float,
    tried_before: bool = False,
) -> list[int]:
    """Move messages, and return the ids that they have in the target folder (R35).

    :param action: the move
    :param ids: the messages' ids
    :param to_folder: id of the target folder
    :param settle_seconds: how long the server may take to list them there with new ids
    :param tried_before: an earlier try of the task may have moved them already
    :return: their ids now, in the order of `ids`
    :raises R7MailMessageNotFoundError: some are not in the folder, and none was moved; or the
        target doesn't list them after the move
    :raises R7MailRequestError: the move failed
    """
    here = find_by_ids(client, action.folder, ids)
    gone = [number for number in ids if number not in here]
    if gone and not tried_before:
        raise not_in_folder(action.folder, gone, "Nothing was moved.")
    traced = Traced(client, list(here.values()), to_folder)
    now = {number: number for number in (find_by_ids(client, to_folder, gone) if gone else ())}
    if here:
        action.run(client, progress, tried_before=tried_before)
        now |= traced.find(settle_seconds)
    if lost := [number for number in ids if number not in now]:
        raise R7MailMessageNotFoundError(
            f"Messages {lost} were moved to folder {to_folder}, perhaps by an earlier try, but "
            "which ids they have there could not be found out (R35). If the server lists moved "
            f"mail late, raise settle_seconds, which is {settle_seconds:g}."
        )
    return [now[number] for number in ids]


def _is_refusal(error: R7MailRequestError) -> bool:
    failed = isinstance(error, R7MailServerError) and error.status in {403, 406, 500}
    return failed or isinstance(error, R7MailActionError)
