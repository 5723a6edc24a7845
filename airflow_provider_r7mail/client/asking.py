"""Ask a server about a folder: a generator yields questions, and is sent what is listed for them.

The generators do no I/O, so that both clients and `r7mail check` share what is asked, and what the
answers show. No Airflow.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from airflow_provider_r7mail.client.steps import Progress
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

    @contextmanager
    def unless_refused(self) -> Iterator[None]:
        """Ask it; a refusal that it may meet is no error, unlike a server that doesn't respond."""
        try:
            yield
        except R7MailRequestError as error:
            if not self.tentative or error.status is None:
                raise


Inquiry = Generator[Question, Listing | None, None]


def conduct(
    inquiry: Generator[Question, Listing | None, P], answer: Callable[[Question], Listing]
) -> P:
    """Answer an inquiry's questions, and return what it found."""
    progress = Progress(inquiry)
    while (question := progress.step) is not None:
        with progress, question.unless_refused():
            progress.answer = answer(question)
    return progress.result


async def aconduct(
    inquiry: Generator[Question, Listing | None, P],
    answer: Callable[[Question], Awaitable[Listing]],
) -> P:
    """Answer an inquiry's questions on an event loop, and return what it found."""
    progress = Progress(inquiry)
    while (question := progress.step) is not None:
        with progress, question.unless_refused():
            progress.answer = await answer(question)
    return progress.result
