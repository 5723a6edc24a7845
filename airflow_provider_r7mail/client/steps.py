"""Carry out a protocol: a generator that decides what to do, step by step, without I/O.

The result of a step is sent into the generator, its error is thrown in. So both clients share every
decision. No Airflow.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeAlias, TypeVar

from airflow_provider_r7mail.exceptions import R7MailError

if TYPE_CHECKING:
    from airflow_provider_r7mail.client.calls import Call
    from airflow_provider_r7mail.client.session import AsyncClient
    from airflow_provider_r7mail.client.upload import File, Source

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a call; what it returns is the step's result."""

    call: Call[Any]


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for some seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Measure:
    """Read a file; its size and hash are the step's result."""

    source: Source


Step: TypeAlias = Ask | Wait | Measure
Steps: TypeAlias = Generator[Step, Any, T]


class Progress(Generic[S, T]):
    """How far the steps have come; a context manager around each of them.

    :param steps: what to do
    """

    step: S | None
    """The step that is due, None at the end."""

    result: T
    """What came of it, at the end."""

    def __init__(self, steps: Generator[S, Any, T]) -> None:
        self._steps = steps
        self.answer: Any = None
        self._advance(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is not None and not isinstance(error, R7MailError):
            return False
        self._advance(error)
        return True

    def _advance(self, error: R7MailError | None) -> None:
        try:
            if error is None:
                self.step = self._steps.send(self.answer)
            else:
                self.step = self._steps.throw(error)
        except StopIteration as end:
            self.step, self.result = None, end.value
        self.answer = None


def take(step: Step, send: Callable[[Call[Any]], Any]) -> File | Any:
    """Carry out one step, and return its result.

    :param send: sends a call, and returns what it returns
    """
    match step:
        case Ask(call):
            return send(call)
        case Measure(source):
            return source.measure()
        case Wait(seconds):
            time.sleep(seconds)
    return None


async def atake(step: Step, client: AsyncClient) -> File | Any:
    """Carry out one step on an event loop, and return its result."""
    match step:
        case Ask(call):
            return await client.send(call)
        case Measure(source):
            return await asyncio.to_thread(source.measure)
        case Wait(seconds):
            await asyncio.sleep(seconds)
    return None


def carry_out(steps: Steps[T], send: Callable[[Call[Any]], Any]) -> T:
    """Carry out all steps, and return what came of them.

    :param send: sends a call, and returns what it returns
    """
    progress = Progress(steps)
    while progress.step is not None:
        with progress:
            progress.answer = take(progress.step, send)
    return progress.result
