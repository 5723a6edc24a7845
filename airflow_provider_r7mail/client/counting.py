"""Count the messages of a span of time with a single small request, where Count can be trusted."""

from __future__ import annotations

from datetime import datetime

from airflow_provider_r7mail.client.answers import parse_page
from airflow_provider_r7mail.client.calls import list_messages
from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.client.spans import MAX_SWEEP_MESSAGES, open_span
from airflow_provider_r7mail.client.traits import Traits

Bounds = tuple[datetime | None, datetime | None]


def count_bounds(traits: Traits, window: Window) -> Bounds:
    """Return the bounds under which a reader counts a window: wider than the window (R4, R29)."""
    request = open_span(traits, window, 1, MAX_SWEEP_MESSAGES).request()
    assert request is not None  # noqa: S101 - a new Seek always has a request
    return request.start, request.end


async def count_between(
    client: AsyncClient, folder: int, criteria: MessageFilter, bounds: Bounds, size: int = 2
) -> int | None:
    """Return how many messages the server counts; None if Count may be that of the page (R2).

    :param client: an open client
    :param folder: id of the folder
    :param criteria: what to search for; its window is ignored
    :param bounds: the bounds to send as they are
    :param size: how many messages to ask for: exactly as many as there are would leave it open
        what Count means
    :raises R7MailRequestError: the server failed or could not be reached
    """
    start, end = bounds
    page = await client.send(
        list_messages(
            folder,
            criteria,
            start=start,
            end=end,
            offset=0,
            size=size,
            parse=parse_page,
            empty_labels=client.traits.empty_labels,
        )
    )
    rows = len(page.rows)
    if page.count is None or page.count < rows:
        return None
    # More than the page has, or all there is.
    trusted = page.count > rows > 0 or page.count == rows < size
    return page.count if trusted else None
