"""What a question is: a check asks each one and reports its findings."""

from __future__ import annotations

from typing import ClassVar

from airflow_provider_r7mail.client.check.evidence import Listing
from airflow_provider_r7mail.client.check.inquiry import Inquiry
from airflow_provider_r7mail.client.check.report import Findings, Subject


class Question:
    """One question to a server. Each check makes a new one, so it may keep what it has seen.

    Name a reading only if the responses leave no other. The mailbox may be in use: if a conclusion
    rests on two responses, verify it with a third one, and leave it open if the mailbox changed in
    between. Findings contain no mail: only numbers, readings, and names of API fields.
    """

    about: ClassVar[str] = ""
    """What is being checked, shown as progress; "" if it makes no requests."""

    subjects: ClassVar[tuple[Subject, ...]] = ()
    """What it finds out, in the report's order."""

    writes: ClassVar[bool] = False
    """Whether it changes the mailbox: it is asked only with a `write_folder`, and reported last."""

    sends: ClassVar[bool] = False
    """Whether it sends mail: it is asked only with an address to send to."""
    on_disk: ClassVar[bool] = False
    """Whether it is about the server's Disk: it is asked only if that is wanted."""

    def see(self, listing: Listing) -> None:
        """Look at any listing of the check, whichever question requested it."""

    def ask(self, inquiry: Inquiry) -> Findings:
        """Make requests, and return what they show.

        If one fails, or the budget is spent, all its subjects are left open, with the reason.
        Subjects that neither this nor `conclude` returns are not in the report.
        """
        return {}

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Return what everything seen shows, after the last request; overrides `ask`."""
        return {}
