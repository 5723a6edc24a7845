"""Ask a server about a folder: a generator yields questions, and is sent what is listed for them.

The generators do no I/O, so that both clients and `r7mail check` share what is asked, and what the
answers show. No Airflow.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

from airflow_provider_r7mail.client.sweep import Listing, PageRequest
from airflow_provider_r7mail.exceptions import R7MailRequestError

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Question:
    """A listing to ask for.

    :param request: the page
    :param filtered: whether the filters apply; if not, all mail is asked for
    :param labels: whether to send `Labels: []`
    """

    request: PageRequest
    filtered: bool = False
    labels: bool = True

    @property
    def tentative(self) -> bool:
        """Whether the server may refuse it: without `Labels`, or at an offset (R37).

        Then the answer is None.
        """
        return not self.labels or self.request.offset > 0

    def is_refused(self, error: R7MailRequestError) -> bool:
        """Whether an error is such a refusal, and not that the server failed to respond."""
        return self.tentative and error.status is not None


Inquiry = Generator[Question, Listing | None, None]


def conduct(
    inquiry: Generator[Question, Listing | None, P], answer: Callable[[Question], Listing]
) -> P:
    """Answer an inquiry's questions, and return what it found."""
    found: Listing | None = None
    while True:
        try:
            question = inquiry.send(found)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        try:
            found = answer(question)
        except R7MailRequestError as error:
            if not question.is_refused(error):
                raise
            found = None


async def aconduct(
    inquiry: Generator[Question, Listing | None, P],
    answer: Callable[[Question], Awaitable[Listing]],
) -> P:
    """Answer an inquiry's questions on an event loop, and return what it found."""
    found: Listing | None = None
    while True:
        try:
            question = inquiry.send(found)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        try:
            found = await answer(question)
        except R7MailRequestError as error:
            if not question.is_refused(error):
                raise
            found = None
