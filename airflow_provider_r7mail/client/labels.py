"""Find out whether `Labels: []` hides mail that has labels (R31).

A listing without `Labels` must have nothing more than one with `Labels: []`. No I/O: the generator
yields questions and is sent the pages. No Airflow.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from dataclasses import replace

from airflow_provider_r7mail.client.asking import Question
from airflow_provider_r7mail.client.dates import MICROSECONDS, Window
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.samples import (
    MOMENT_SECONDS,
    Row,
    Samples,
    dates_of,
    is_surrounded,
    seconds_of,
)
from airflow_provider_r7mail.client.sweep import Listing, PageRequest, moment

log = logging.getLogger(__name__)


class LabelsInquiry:
    """Finds out what `Labels: []` does, and notes it in the traits.

    :param samples: how to ask
    :param criteria: what is searched for
    """

    def __init__(self, samples: Samples, criteria: MessageFilter) -> None:
        self._traits = samples.traits
        self._samples = samples
        self._filters = replace(criteria, window=Window()) != MessageFilter()
        self.beside: tuple[Row, Listing] | None = None
        """A message, and what is listed beside its moment, if that was asked for meanwhile."""

    def check(
        self, request: PageRequest, listing: Listing, telling: Sequence[Row], rows: Sequence[Row]
    ) -> Generator[Question, Listing | None, bool]:
        """Check that a listing without `Labels` has no more than one with `Labels: []`.

        Where a message is to be asked for beside its moment, that is part of the same request.

        :param telling: the message that tells most about bounds, if any
        :param rows: other messages
        """
        request = replace(request, size=min(request.size, self._samples.size))
        dates = dates_of(rows)
        lone = [row for row in telling if not (self._filters or is_surrounded(row, dates))]
        for row in lone:
            wider = _up_to(row, request)
            first, last = seconds_of(wider)
            there = len(listing.keys) + sum(first <= other.second <= last for other in rows)
            # Below the length of a page that has been seen, nothing is cut off (R3).
            if wider != request and there < len(rows):
                found = yield from self._samples.without_labels(wider, filtered=True)
                if found is not None and len(found.keys) < len(rows):
                    self._traits.labels = "left out"
                    self.beside = row, found
                    return _has_more(found, listing, request)
        without = yield from self._samples.without_labels(request, filtered=True)
        if without is None:
            self._traits.labels = "unproven"
            log.warning(
                "The server refuses a search without Labels, so it can't be told whether Labels: "
                "[] hides mail that has labels (R31)."
            )
            return False
        self._traits.labels = "left out"
        return _has_more(without, listing, request)


def _up_to(row: Row, request: PageRequest) -> PageRequest:
    """Return a request that goes on to just beside a message, if that is outside of it."""
    first, last = seconds_of(request)
    gap = 2 * MOMENT_SECONDS
    if row.second + gap < first:
        return replace(request, start=moment(row.second + gap))
    if row.second - gap > last:
        return replace(request, end=moment(row.second - gap))
    return request


def _has_more(found: Listing, listing: Listing, request: PageRequest) -> bool:
    """Whether a listing has something within a request that the response to that doesn't."""
    first, last = seconds_of(request)
    within = {
        key
        for key, date in zip(found.keys, found.dates, strict=True)
        if date is None or first <= date // MICROSECONDS <= last
    }
    return not within <= set(listing.keys)
