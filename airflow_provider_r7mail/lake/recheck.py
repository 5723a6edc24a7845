"""Look again at windows that were extracted earlier, for mail that came late or has left.

A run looks at a handful of them, at ages that grow, so that each window is looked at a few times
until it is as old as the horizon.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count, takewhile
from typing import Any

from airflow_provider_r7mail.client.counting import count_between
from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.exceptions import (
    R7MailConnectionError,
    R7MailExtractError,
    R7MailProxyError,
    R7MailPublishError,
    R7MailResponseError,
    R7MailServerError,
)
from airflow_provider_r7mail.lake.compacted import find_manifest
from airflow_provider_r7mail.lake.job import ExtractJob, Progress
from airflow_provider_r7mail.lake.layout import window_name
from airflow_provider_r7mail.lake.threads import run_to_end
from airflow_provider_r7mail.lake.window import extract_window

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Look:
    """A window to look at again.

    :param window: the window, with both bounds
    :param last: whether it is the last look: then the window is read whatever the server counts,
        since a Count doesn't tell one message that came from another that left
    """

    window: Window
    last: bool


def looks(own: Window, stored: Iterable[Window], horizon: timedelta) -> list[Look]:
    """Return what a run looks at besides its own window, newest first.

    A window is looked at when it is 0, 1, 3, 7, 15, ... times its own length old, and for the last
    time before it is older than the horizon. Its age is that at the start of the run's own window,
    never the present one, so that runs of the past do as live ones. Runs whose windows follow each
    other look once at each of these ages, whatever their lengths.

    :param own: the run's own window, with both bounds
    :param stored: the windows that the tables have
    :param horizon: how old a window may be; nothing is looked at if it is zero
    """
    found = []
    for window in set(stored) if horizon else ():
        start, end, now, then = *_bounds(window), *_bounds(own)
        if end > now or now - end > horizon:
            continue
        age, next_age = now - end, then - end
        last = next_age > horizon
        if last or any(age <= moment < next_age for moment in _ages(end - start, next_age)):
            found.append(Look(window, last))
    return sorted(found, key=lambda look: _bounds(look.window), reverse=True)


def _bounds(window: Window) -> tuple[datetime, datetime]:
    assert window.start is not None  # noqa: S101 - those of extracts have both
    assert window.end is not None  # noqa: S101
    return window.start, window.end


def _ages(length: timedelta, limit: timedelta) -> Iterator[timedelta]:
    ages = ((2**number - 1) * length for number in count())
    return takewhile(lambda age: age < limit, ages)


async def recheck(
    client: AsyncClient,
    job: ExtractJob,
    look: Look,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any] | None:
    """Look at a window again, and extract it if the server has other mail there than the tables.

    What was read with other filters or another privacy policy is left alone.

    :param client: an open client
    :param job: the run's own job
    :return: the new manifest; None if the window stays as it is
    :raises R7MailRequestError, R7MailExtractError: as `extract_window` does
    """
    job = job.of(look.window)
    mailbox = job.privacy.mailbox(client.config.login)
    label = look.window.label()
    name = window_name(mailbox, job.folder, label)
    try:
        known = await run_to_end(find_manifest, job.notes, name)
    except OSError as error:
        raise R7MailPublishError(
            f"{job.notes / name}: the manifest can't be read ({error})."
        ) from error
    if known is None:
        log.info("Window %s is unfinished, and left to its own run.", label)
        return None
    if not job.made(known):
        log.info("Window %s was read with other filters, and is left alone.", label)
        return None
    if not look.last and await is_as_counted(client, job, known):
        return None
    return await extract_window(client, job, on_progress)


async def is_as_counted(client: AsyncClient, job: ExtractJob, known: dict[str, Any]) -> bool:
    """Return whether the server still counts as many messages as when a window was read.

    :param known: the window's manifest
    """
    counted = known.get("counted") or {"messages": None}
    expected = counted["messages"]
    if expected is None:
        return False
    start, end = (
        None if counted[name] is None else datetime.fromisoformat(counted[name])
        for name in ("start", "end")  # None if the server ignores bounds (R29)
    )
    try:
        found = await count_between(
            client, job.folder, job.criteria, (start, end), size=3 if expected == 2 else 2
        )
    except (
        R7MailConnectionError,
        R7MailProxyError,
        R7MailResponseError,
        R7MailServerError,
    ) as error:
        raise R7MailExtractError(
            f"Folder {job.folder}, window {job.criteria.window.label()}: could not be counted. "
            f"{error.text}"
        ) from error
    return bool(found == expected)
