"""What a question is: add one, and the check asks it and reports its findings."""

from __future__ import annotations

from typing import ClassVar

from airflow_provider_r7mail.client.check.evidence import Listing
from airflow_provider_r7mail.client.check.inquiry import Inquiry
from airflow_provider_r7mail.client.check.report import Findings, Subject


class Question:
    """One question to a server. Each check has a new one, which may keep what it has seen.

    A reading is named only if the answers leave no other. The mailbox is in use meanwhile: a
    conclusion from two answers is verified by a third one, and left open if the mailbox changed
    in between. Findings hold no mail: only numbers, readings, and names of API fields.
    """

    about: ClassVar[str] = ""
    """What is being checked, for those who wait; "" if it needs no requests."""

    subjects: ClassVar[tuple[Subject, ...]] = ()
    """What it finds out, in the report's order."""

    writes: ClassVar[bool] = False
    """Whether it changes the mailbox: it is asked only with a `write_folder`, and reported last."""

    def see(self, listing: Listing) -> None:
        """Look at any listing of the check, whichever question requested it."""

    def ask(self, inquiry: Inquiry) -> Findings:
        """Make the requests it needs, and return what they show.

        If a request fails or the budget is spent, all its subjects are left open with the reason.
        """
        return {}

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Return what all that was seen shows, after the last request; overrides `ask`."""
        return {}
