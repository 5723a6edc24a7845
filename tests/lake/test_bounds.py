"""Counts between bounds with mail on them are exact, however the server reads bounds (R4)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_r7mail.client.reader import calibrate
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.emulator import Emulator, Mailbox, Readings
from airflow_provider_r7mail.lake.bounds import SpanCounter
from tests.lake.support import INBOX, START, config

HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)
END = START + HOUR


def counting(server: Emulator, work: Callable[[SpanCounter, AsyncClient], Awaitable[Any]]) -> Any:
    """Work with a counter of the inbox."""

    async def run() -> Any:
        async with AsyncClient(config(server.url)) as client:
            await calibrate(client, INBOX)
            return await work(SpanCounter(client, INBOX, ()), client)

    return asyncio.run(run())


def deliver(box: Mailbox, *seconds: float) -> None:
    """Deliver mail so many seconds after the start, and some far from both bounds."""
    for second in (*seconds, 1800, 1800, 1800, -600, 4200):
        box.deliver(date=START + timedelta(seconds=second))


def count(server: Emulator) -> tuple[int | None, int]:
    """Return the number of messages in the hour, None if it can't be told, and the requests."""

    async def work(counter: SpanCounter, client: AsyncClient) -> tuple[int | None, int]:
        before, found = client.stats.requests, None
        if await counter.is_clear(START) and await counter.is_clear(END):
            found = await counter.count(START, END, 3)
            if found is not None:
                assert await counter.is_unchanged(START)
                assert await counter.is_unchanged(END)
        return found, client.stats.requests - before

    found: tuple[int | None, int] = counting(server, work)
    return found


def test_without_mail_at_the_bounds(server: Emulator) -> None:
    """A look at each bound and a Count are enough."""
    deliver(server.mailbox)

    assert count(server) == (3, 3)


@pytest.mark.parametrize(
    "readings",
    [
        {},
        {"start_inclusive": False},
        {"end_inclusive": False},
        {"precision": "second", "start_inclusive": False, "end_inclusive": False},
        {"sort_one": "ascending"},
        {"dates_without_zone": True},
        {"foreign_rows": True},
    ],
    ids=str,
)
def test_with_mail_at_the_bounds(server: Emulator, readings: dict[str, Any]) -> None:
    """Mail just before each bound, on it and after it is counted where it belongs."""
    deliver(server.mailbox, -5, -0.001, 0, 0.001, 3590, 3599.999, 3600, 3601)
    server.readings = Readings(**readings)

    assert count(server) == (3 + 4, 5)


@pytest.mark.parametrize(
    "seconds",
    [
        list(range(-62, 1)),
        [0.01 * number for number in range(120)],
    ],
    ids=["no gap", "too many"],
)
def test_without_a_clear_moment(server: Emulator, seconds: list[float]) -> None:
    """If mail comes every second, or more than fits on a page, nothing is claimed."""
    deliver(server.mailbox, *seconds)

    assert count(server) == (None, 1)


@pytest.mark.parametrize(
    ("readings", "requests"),
    [
        ({"page_cap": 2}, 1),
        ({"count": "page", "page_cap": 2}, 3),
        ({"count": "folder"}, 1),
        ({"count_form": "null"}, 3),
        ({"size_limit": 20, "size_refusal": "400"}, 2),
    ],
    ids=str,
)
def test_pages_that_prove_nothing(
    server: Emulator, readings: dict[str, Any], requests: int
) -> None:
    """R2, R3, R37: if the page at a bound may be cut off, or is refused, nothing is claimed."""
    deliver(server.mailbox, -3, -2, -1, 0, 3599, 3600)
    server.readings = Readings(**readings)

    assert count(server) == (None, requests)


def test_undated_mail(server: Emulator) -> None:
    """R27: mail without a Date that is listed within any bounds could be anywhere."""
    deliver(server.mailbox, 0)
    server.mailbox.deliver(date="0001-01-01T00:00:00")
    server.readings = Readings(undated="always")

    assert count(server)[0] is None


def test_mail_that_comes_meanwhile(server: Emulator) -> None:
    """What comes between two requests can't make up for what is missing."""
    deliver(server.mailbox, -5, 0, 10, 3595, 3600)

    async def work(counter: SpanCounter, _: AsyncClient) -> list[Any]:
        found: list[Any] = [await counter.is_clear(START), await counter.is_clear(END)]
        server.mailbox.deliver(date=START - SECOND)  # of the hour before
        found.append(await counter.count(START, END, 7))
        found += [await counter.is_unchanged(START), await counter.is_unchanged(END)]
        found.append(await counter.count(START, END, 7))
        found += [await counter.is_unchanged(START), await counter.is_unchanged(END)]
        return found

    assert counting(server, work) == [True, True, 7, False, True, 6, True, True]


@given(
    seconds=st.lists(
        st.sampled_from([0, 3600]).flatmap(
            lambda edge: st.floats(-70, 10).map(lambda n: edge + round(n, 3))
        ),
        max_size=30,
    ),
    readings=st.fixed_dictionaries(
        {
            "sort_one": st.sampled_from(["ascending", "descending"]),
            "start_inclusive": st.booleans(),
            "end_inclusive": st.booleans(),
            "precision": st.sampled_from(["second", "millisecond", "microsecond"]),
            "count": st.sampled_from(["all", "all", "page", "folder"]),
            "page_cap": st.sampled_from([None, None, 3, 5]),
            "undated": st.sampled_from(["always", "never", "as_min"]),
        }
    ),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_what_is_counted_is_there(seconds: list[float], readings: dict[str, Any]) -> None:
    """Under any reading the number is that of the messages, or none is given."""
    with Emulator(Mailbox(), readings=Readings(**readings)) as server:
        deliver(server.mailbox, *seconds)
        found, _ = count(server)

    assert found in {None, 3 + sum(0 <= second < 3600 for second in seconds)}
