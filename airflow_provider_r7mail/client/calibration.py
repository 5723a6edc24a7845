"""Find out how a server reads bounds and labels, before an answer of it is trusted.

An empty page must mean "no mail" and nothing else. So bounds are checked (`client.bounds`), and
labels (`client.labels`), as far as the page at hand doesn't show what they do. That takes three
requests, one or two more where all mail is of full quarter hours, or the only one that tells is in
the window, and none where the page shows it (R29, R31). No I/O: the generators yield questions and
are sent the pages. No Airflow.
"""

from __future__ import annotations

from collections.abc import Generator

from airflow_provider_r7mail.client.asking import Question
from airflow_provider_r7mail.client.bounds import (
    UNKNOWN_ZONE,
    BoundsInquiry,
    most_telling,
    shows_bounds,
)
from airflow_provider_r7mail.client.labels import LabelsInquiry
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.samples import Samples
from airflow_provider_r7mail.client.sweep import Listing, PageRequest
from airflow_provider_r7mail.client.traits import Traits
from airflow_provider_r7mail.exceptions import R7MailExtractError


class Calibration:
    """Finds out what `Traits` say, from a page at hand and a few questions.

    :param traits: what is known; completed here
    :param criteria: what is searched for
    :param size: messages per request
    """

    def __init__(self, traits: Traits, criteria: MessageFilter, size: int) -> None:
        self._traits = traits
        self._criteria = criteria
        self.samples = Samples(traits, size)
        self.bounds = BoundsInquiry(self.samples)
        self._labels = LabelsInquiry(self.samples, criteria)
        self.found_nothing = False
        """Whether the folder has no mail at all."""

    def first_page(
        self, request: PageRequest, listing: Listing
    ) -> Generator[Question, Listing | None, bool]:
        """Find out what the first page of a window doesn't show.

        :param request: the request for it
        :param listing: the page
        :return: whether to request the page again: `Labels: []` hid some of it, or its dates were
            read in the wrong zone
        :raises R7MailExtractError: it can't be found out which moments the dates are (R43)
        """
        traits = self._traits
        if traits.labels == "unknown" and listing.labelled and not self._criteria.labels:
            traits.labels = "sent"  # it doesn't filter
        sample, rows = listing, self.samples.rows(listing)
        if (
            listing.zoneless
            and traits.dates_offset is None
            and traits.bounds not in {"unknown", "date"}
        ):
            raise R7MailExtractError(UNKNOWN_ZONE)  # as for an earlier window
        bounded = request.start is not None or request.end is not None
        if traits.bounds == "unknown":
            known = not (listing.zoneless or listing.zoneless_timestamps)
            if known and shows_bounds(rows, request):
                traits.settle("date")
            # Timestamp may be what is compared, unless a row tells.
            elif not rows[0].is_telling if rows else bounded:
                sample = yield from self.samples.anywhere()
                self.found_nothing = not (sample.keys or listing.keys)
                rows = self.samples.rows(sample) or rows
        telling = most_telling(rows, request) if traits.bounds == "unknown" else []
        again = False
        # With labels to search for, `Labels` is never empty.
        if (
            traits.labels == "unknown"
            and not self._criteria.labels
            and (sample.keys or not bounded)
        ):
            again = yield from self._labels.check(request, listing, telling[:1], rows)
        if telling:  # later pages have bounds in any case
            zoneless = sample.zoneless or listing.zoneless
            yield from self.bounds.check(
                telling, rows, request, zoneless=zoneless, beside=self._labels.beside
            )
            again = again or traits.dates_offset is not None
        return again
