"""The event trigger, run by Airflow's shared streams against the emulator on a real socket.

The little that Airflow's triggerer does around them is in `Triggerer`. The real one runs in
test_standalone.py.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_r7mail.compat import BaseEventTrigger
from airflow_provider_r7mail.emulator import Emulator, Fault, Readings
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.filters import Filters
from airflow_provider_r7mail.positions import MAX_TOLD, Position
from airflow_provider_r7mail.triggers import R7MailMessageEventTrigger, R7MailMessageTrigger

# Airflow 3.3 has them; before that, there is only `run`.
streams = pytest.importorskip("airflow.triggers.shared_stream")
comms = pytest.importorskip("airflow.sdk.execution_time.comms")
errors = pytest.importorskip("airflow.sdk.exceptions")

UNREACHABLE = errors.AirflowRuntimeError(
    comms.ErrorResponse(error=errors.ErrorType.API_SERVER_ERROR, detail=None)
)

CONNECTION = "AIRFLOW_CONN_R7MAIL_DEFAULT"
POLL = 0.05


class State:
    """The state of an asset, stored as JSON, as Airflow hands it to triggers."""

    def __init__(self, failures: int = 0, error: Exception = UNREACHABLE) -> None:
        self.values: dict[str, str] = {}
        self.failures = failures
        self.error = error
        self.writes = 0
        self._by_name = {"asset": self}
        self._by_uri: dict[str, State] = {}

    async def aget(self, key: str) -> Any:
        """Return a stored value."""
        return json.loads(self.values[key]) if key in self.values else None

    async def aset(self, key: str, value: Any) -> None:
        """Store a value."""
        if self.failures:
            self.failures -= 1
            raise self.error
        self.writes += 1
        self.values[key] = json.dumps(value)

    @property
    def position(self) -> dict[str, Any]:
        """The stored position of the only watcher."""
        [value] = self.values.values()
        kept: dict[str, Any] = json.loads(value)
        return kept


class Triggerer:
    """Run triggers as Airflow's triggerer does.

    :param stores_events: whether events reach the database
    """

    def __init__(self, *, stores_events: bool = True, ack_timeout: float = 60) -> None:
        self.streams = streams.SharedStreamManager(ack_timeout=ack_timeout)
        self.stores_events = stores_events
        self.events: list[tuple[int, dict[str, Any]]] = []
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.states: list[State] = []

    async def ready(self) -> None:
        """Wait until each watcher has polled once."""
        await until(lambda: all(state.values for state in self.states))

    def watch(self, state: State | None = None, **values: Any) -> int:
        """Start a watcher, recreated from its serialized form, and return its number."""
        trigger = event_trigger(**values)
        _, arguments = trigger.serialize()
        trigger = R7MailMessageEventTrigger(**json.loads(json.dumps(arguments)))
        trigger.asset_state_store = cast("Any", state)
        number = len(self.tasks)
        if state is not None:
            self.states.append(state)
        self.tasks[number] = asyncio.get_running_loop().create_task(self._run(number, trigger))
        return number

    async def _run(self, number: int, trigger: R7MailMessageEventTrigger) -> None:
        key = trigger.shared_stream_key()
        raw = self.streams.subscribe(trigger_id=number, trigger=trigger, key=key)
        try:
            async for event in trigger.filter_shared_stream(raw):
                seq = self.streams.bind_pending_event(trigger_id=number, key=key)
                self.events.append((number, json.loads(json.dumps(event.payload))))
                if self.stores_events and seq is not None:
                    self.streams.confirm_persisted([seq])
        finally:
            await self.streams.unsubscribe(number, key)

    def ids(self, number: int = 0) -> list[int]:
        """Return all ids that a watcher reported."""
        told = [event["message_ids"] for who, event in self.events if who == number]
        return list(chain.from_iterable(told))

    async def stop(self) -> None:
        """Stop it, as a restart does."""
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        await self.streams.stop_all()


def event_trigger(**values: Any) -> R7MailMessageEventTrigger:
    """Return a trigger of the inbox that polls often."""
    return R7MailMessageEventTrigger(**{"folder": "inbox", "poll_interval": POLL, **values})


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.01)


def listings(server: Emulator) -> list[dict[str, Any]]:
    """Return the search of each Messages call."""
    return [
        request["json"]["SearchContext"]
        for request in server.requests
        if request["path"].endswith("/Messages")
    ]


async def polls(server: Emulator, count: int = 3) -> None:
    """Wait for some more polls."""
    seen = len(listings(server))
    await until(lambda: len(listings(server)) >= seen + count)


@pytest.fixture
async def triggerer() -> AsyncIterator[Triggerer]:
    """A running triggerer."""
    one = Triggerer()
    yield one
    await one.stop()


def ago(**values: float) -> datetime:
    """Return a time in the past."""
    return datetime.now(UTC) - timedelta(**values)


# -- what is new ------------------------------------------------------------------------------


async def test_what_arrives_is_told(server: Emulator, triggerer: Triggerer) -> None:
    """A matching message that arrives is reported once, by its id; earlier ones are not."""
    server.mailbox.deliver(subject="Prices, old")
    triggerer.watch(State(), subject="Prices")
    await triggerer.ready()
    new = server.mailbox.deliver(subject="Prices", body="top secret", sender="spy@x.ru")
    server.mailbox.deliver(subject="News")
    await until(lambda: triggerer.events)
    await polls(server)

    [(_, event)] = triggerer.events
    assert event == {"message_ids": [new], "folder": 24, "cursor": event["cursor"]}
    # An hour, and two minutes for the search.
    assert ago(minutes=63) < datetime.fromisoformat(event["cursor"]) < ago(minutes=61)
    assert {request["path"].rpartition("/")[2] for request in server.requests} == {
        "Login",
        "Messages",
    }
    assert server.logins == 1


async def test_what_is_there_is_told_on_request(server: Emulator, triggerer: Triggerer) -> None:
    """With `start`, messages in the folder that are dated from then on are reported too."""
    dates = ["2025-06-01T00:00:00Z", "2025-06-02T00:00:00Z", "2025-06-03T00:00:00Z"]
    ids = [server.mailbox.deliver(date=date) for date in dates]
    triggerer.watch(State(), start="2025-06-02")
    await until(lambda: triggerer.events)
    await polls(server)

    assert [event["message_ids"] for _, event in triggerer.events] == [ids[1:]]


async def test_late_and_misdated_mail(server: Emulator, triggerer: Triggerer) -> None:
    """Mail that arrives late or out of order is reported within `lookback`, and no later."""
    triggerer.watch(State(), lookback=600)
    await triggerer.ready()
    server.mailbox.deliver(date=ago(minutes=11))
    server.mailbox.deliver(date="0001-01-01T00:00:00")
    server.mailbox.deliver(date=ago(minutes=-11))
    late = server.mailbox.deliver(date=ago(minutes=9))
    now = server.mailbox.deliver()
    early = server.mailbox.deliver(date=ago(minutes=-9))
    await until(lambda: len(triggerer.ids()) >= 3)
    await polls(server)
    later = server.mailbox.deliver(date=ago(minutes=8))
    await until(lambda: len(triggerer.ids()) >= 4)

    assert triggerer.ids() == [late, now, early, later]


@pytest.mark.parametrize("readings", [Readings(), Readings(sort_one="descending", page_cap=2)])
async def test_equal_dates(server: Emulator, triggerer: Triggerer, readings: Readings) -> None:
    """Messages with the same date that arrive between polls are each reported once."""
    server.readings = readings
    moment = ago(seconds=30)
    server.mailbox.deliver(date=moment)
    triggerer.watch(State())
    await triggerer.ready()
    ids = []
    for _ in range(4):
        ids += [server.mailbox.deliver(date=moment) for _ in range(3)]
        await polls(server, 2)
    await until(lambda: len(triggerer.ids()) >= 12)
    await polls(server)

    assert sorted(triggerer.ids()) == ids


async def test_labels_and_marks_that_come_later(server: Emulator, triggerer: Triggerer) -> None:
    """A message that starts to match later is reported then, also with several watchers."""
    one, two = server.mailbox.deliver(), server.mailbox.deliver(was_read=True)
    triggerer.watch(State(), labels=[5])
    triggerer.watch(State(), was_read=False)
    await triggerer.ready()
    server.mailbox.mark_read(24, [two], read=False)
    await until(lambda: triggerer.ids(1))
    with server.mailbox.lock:
        server.mailbox._records[one].set("Labels", [5])
    await until(lambda: triggerer.ids(0))

    assert (triggerer.ids(0), triggerer.ids(1)) == ([one], [two])


# -- storms -----------------------------------------------------------------------------------


async def test_events_are_bounded(server: Emulator, triggerer: Triggerer) -> None:
    """A flood is reported in events of bounded size, one per poll, oldest first, each once."""
    ids = [server.mailbox.deliver(date=ago(hours=30 - number)) for number in range(25)]
    triggerer.watch(State(), start=ago(days=2), max_messages_per_event=10)
    await until(lambda: len(triggerer.ids()) >= 25)
    await polls(server)

    assert [event["message_ids"] for _, event in triggerer.events] == [
        ids[:10],
        ids[10:20],
        ids[20:],
    ]


@pytest.mark.slow
async def test_a_restart_in_a_flood(server: Emulator) -> None:
    """After a restart in the middle of a flood, the watcher continues where it was."""
    ids = [server.mailbox.deliver(date=ago(hours=30 - number)) for number in range(25)]
    state = State()
    told: list[int] = []
    for _ in range(3):
        triggerer = Triggerer()
        # Polls are far apart: there is one event, then the restart.
        triggerer.watch(state, start="2025-01-01", max_messages_per_event=10, poll_interval=60)
        await until(lambda: triggerer.events)  # noqa: B023
        await asyncio.sleep(0.05)
        await triggerer.stop()
        told += triggerer.ids()

    assert told == ids


@pytest.mark.slow
async def test_the_position_is_small(server: Emulator, triggerer: Triggerer) -> None:
    """However much mail arrives, the stored position stays below Airflow's limit of 64 KB."""
    state = State()
    triggerer.watch(state, start=ago(hours=1), max_messages_per_event=5000)
    moment = ago(minutes=30)
    ids = [
        server.mailbox.deliver(date=moment + timedelta(milliseconds=number))
        for number in range(MAX_TOLD + 500)
    ]
    await until(lambda: len(triggerer.ids()) >= len(ids))
    await polls(server)
    server.mailbox.deliver(date=moment + timedelta(milliseconds=100))  # too late
    new = server.mailbox.deliver(date=moment + timedelta(seconds=4))
    await until(lambda: len(triggerer.ids()) > len(ids))
    await polls(server)

    assert triggerer.ids() == [*ids, new]
    assert len(json.dumps(state.position)) < 65_536


@pytest.mark.slow
async def test_a_flood_from_the_future(server: Emulator, triggerer: Triggerer) -> None:
    """Thousands of messages dated in the future don't hide today's mail."""
    triggerer.watch(State(), start=ago(hours=1), max_messages_per_event=5000)
    for _ in range(MAX_TOLD + 500):
        server.mailbox.deliver(date=ago(minutes=-30))
    await until(lambda: len(triggerer.ids()) >= MAX_TOLD + 500)
    await polls(server)
    now = server.mailbox.deliver()
    await until(lambda: len(triggerer.ids()) > MAX_TOLD + 500)
    await polls(server, 2)

    assert triggerer.ids()[MAX_TOLD + 500 :] == [now]


# -- restarts ---------------------------------------------------------------------------------


async def test_mail_that_came_while_airflow_was_down(server: Emulator) -> None:
    """A restart loses and repeats nothing: mail that arrived meanwhile is reported."""
    state = State()
    first, second = Triggerer(), Triggerer()
    first.watch(state)
    await first.ready()
    one = server.mailbox.deliver()
    await until(lambda: first.events and state.position["told"])
    await first.stop()
    two = server.mailbox.deliver()
    second.watch(state)
    await until(lambda: second.events)
    await polls(server)
    await second.stop()

    assert (first.ids(), second.ids()) == ([one], [two])


async def test_mail_before_the_first_event(server: Emulator) -> None:
    """A watcher that has not reported anything yet also continues after a restart."""
    state = State()
    first, second = Triggerer(), Triggerer()
    old = server.mailbox.deliver()
    first.watch(state)
    await until(lambda: state.values)
    await first.stop()
    new = server.mailbox.deliver()
    second.watch(state)
    await until(lambda: second.events)
    await second.stop()

    assert old not in second.ids()
    assert second.ids() == [new]


async def test_an_event_that_was_not_stored(server: Emulator) -> None:
    """If Airflow dies before it has stored an event, the event is sent again."""
    state = State()
    first, second = Triggerer(), Triggerer()
    first.watch(state)
    await until(lambda: state.values)
    first.stores_events = False
    one = server.mailbox.deliver()
    await until(lambda: first.events)
    two = server.mailbox.deliver()
    await until(lambda: len(first.events) == 2)
    await polls(server)
    await first.stop()
    second.watch(state)
    await until(lambda: second.events)
    await second.stop()

    assert first.ids() == [one, two]
    assert second.ids() == [one, two]


@pytest.mark.slow
async def test_one_watcher_whose_event_is_not_stored(server: Emulator) -> None:
    """A watcher whose event can't be stored fails alone, and sends it again after a restart."""
    states = [State(), State()]
    triggerer = Triggerer(ack_timeout=1.0)
    triggerer.watch(states[0], subject="a")
    triggerer.watch(states[1], subject="b")
    await triggerer.ready()
    triggerer.stores_events = False
    lost = server.mailbox.deliver(subject="a")
    await until(triggerer.tasks[0].done)
    triggerer.stores_events = True
    kept = server.mailbox.deliver(subject="b")
    await until(lambda: states[1].position["told"])
    again = triggerer.watch(states[0], subject="a")
    await until(lambda: triggerer.ids(again))
    await triggerer.stop()

    assert "AckTimeout" in repr(triggerer.tasks[0].exception())
    assert triggerer.ids(again) == [lost]
    assert triggerer.ids(1) == [kept]


@pytest.mark.parametrize("error", [UNREACHABLE, ValueError("API_SERVER_ERROR")])
async def test_a_state_that_can_not_be_kept(
    server: Emulator, triggerer: Triggerer, logged: Callable[[], str], error: Exception
) -> None:
    """If Airflow's API is down, watching continues and the position is stored later."""
    state = State(failures=2, error=error)
    triggerer.watch(state)
    await until(lambda: state.values)
    new = server.mailbox.deliver()
    await until(lambda: triggerer.events)

    assert triggerer.ids() == [new]
    assert "could not be stored: API_SERVER_ERROR" in logged()


async def test_without_a_state_of_assets(
    server: Emulator, triggerer: Triggerer, caplog: pytest.LogCaptureFixture
) -> None:
    """Without asset state in Airflow, it works, and logs once what is not guaranteed."""
    triggerer.watch(None)
    await polls(server)
    new = server.mailbox.deliver()
    await until(lambda: triggerer.events)
    await polls(server)

    assert triggerer.ids() == [new]
    assert caplog.text.count("storing it takes Airflow 3.3") == 1


@pytest.mark.slow
async def test_before_airflow_3_3(server: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """Without shared streams, a trigger polls on its own."""
    server.mailbox.deliver(subject="Old")
    found = []

    async def run() -> None:
        async with aclosing(event_trigger().run()) as events:  # type: ignore[type-var]
            async for event in events:
                found.append(event.payload["message_ids"])  # noqa: PERF401

    task = asyncio.get_running_loop().create_task(run())
    await polls(server, 10)  # a poll takes up to three listings: the first one is over
    new = server.mailbox.deliver()
    await until(lambda: found)
    await polls(server)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task

    assert found == [[new]]
    assert server.logins == 1
    assert caplog.text.count("in memory only") == 1


async def test_several_assets_of_one_trigger(server: Emulator, triggerer: Triggerer) -> None:
    """Airflow merges equal triggers: the position is stored for each of their assets."""
    one, two = State(), State()
    both = State()
    both._by_name = {"one": one, "two": two}
    triggerer.watch(both)
    await until(lambda: two.values)

    assert one.values == two.values
    assert both.values == {}


# -- one poll for many ------------------------------------------------------------------------


@pytest.mark.slow
async def test_twenty_watchers_share_one_poll(server: Emulator, triggerer: Triggerer) -> None:
    """Twenty watchers of a folder share one login and, if nothing arrives, one listing per poll."""
    server.mailbox.deliver(date="2025-01-01T00:00:00Z")  # shows how the server reads bounds (R29)
    states = [State() for _ in range(20)]
    for number, state in enumerate(states):
        triggerer.watch(state, subject=f"Order {number:02}", poll_interval=0.2)
    await triggerer.ready()
    await polls(server, 2)
    before = len(listings(server))
    await asyncio.sleep(2)
    idle = listings(server)[before:]
    ids = {n: server.mailbox.deliver(subject=f"Order {n:02}") for n in (3, 17)}
    await until(lambda: len(triggerer.events) == 2)
    await asyncio.sleep(1)
    server.requests.clear()
    await asyncio.sleep(1)

    assert 5 <= len(idle) <= 11
    assert {context["Subject"] for context in idle} == {""}
    assert {number: triggerer.ids(number) for number in ids} == {n: [i] for n, i in ids.items()}
    assert {context["Subject"] for context in listings(server)} == {""}
    assert server.logins == 1


async def test_a_search_that_learns_late(server: Emulator, triggerer: Triggerer) -> None:
    """Mail that shows up in the listing before it does in the search is still reported."""
    triggerer.watch(State(), body="invoice", lookback=2)
    triggerer.watch(State(), body="offer", lookback=2)
    await triggerer.ready()
    new = server.mailbox.deliver(body="", date=ago(seconds=-1))
    await polls(server, 10)  # the listing shows nothing new by then
    with server.mailbox.lock:
        server.mailbox._records[new].set("Body", "An invoice")
    await until(lambda: triggerer.events)

    assert triggerer.events[0][1]["message_ids"] == [new]


@pytest.mark.slow
@pytest.mark.parametrize(("watchers", "lookback"), [(1, 1), (2, 60)])
async def test_an_index_that_lags(
    server: Emulator, triggerer: Triggerer, watchers: int, lookback: int
) -> None:
    """R40: mail that a text search finds only later is reported then, past `lookback` as well."""
    server.readings = Readings(index_seconds=1.5)
    for subject in ("invoice", "offer")[:watchers]:
        triggerer.watch(State(), subject=subject, lookback=lookback, index_lag=2)
    await triggerer.ready()
    new = server.mailbox.deliver(subject="An invoice")
    await polls(server)
    assert triggerer.events == []
    await until(lambda: triggerer.events)

    assert triggerer.ids() == [new]
    searches = [search for search in listings(server) if search.get("Subject") == "invoice"]
    assert watchers == 1 or len(searches) < 10  # not at every poll


@pytest.mark.slow
async def test_an_index_that_lags_in_a_flood(server: Emulator, triggerer: Triggerer) -> None:
    """R40: however many ids are remembered, a text search may lag by `index_lag`."""
    triggerer.watch(
        State(), subject="x", index_lag=100, start=ago(hours=1), max_messages_per_event=5000
    )
    ids = [server.mailbox.deliver(subject="x") for _ in range(MAX_TOLD + 100)]
    await until(lambda: len(triggerer.ids()) >= len(ids), 30)
    late = server.mailbox.deliver(subject="x", date=ago(seconds=150))
    await until(lambda: len(triggerer.ids()) > len(ids))

    assert triggerer.ids()[-1] == late


async def test_other_mailboxes_have_polls_of_their_own(triggerer: Triggerer) -> None:
    """Watchers share a poll if folder, connection and interval are equal, in any form."""
    keys = [
        event_trigger(**values).shared_stream_key()
        for values in (
            {"folder": 24},
            {"folder": "24", "subject": "x", "lookback": 60},
            {"folder": 15},
            {"folder": 24, "poll_interval": 1},
            {"folder": 24, "r7mail_conn_id": "other"},
        )
    ]

    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


# -- failures ---------------------------------------------------------------------------------


@pytest.mark.slow
async def test_watching_survives_failures(
    server: Emulator, triggerer: Triggerer, logged: Callable[[], str]
) -> None:
    """Expired tokens, a failing proxy and dropped connections don't stop the watching."""
    triggerer.watch(State())
    await triggerer.ready()
    ids = []
    for fault in (None, Fault("Messages", times=4, status=502), Fault(times=3, kind="reset")):
        if fault is None:
            server.expire_tokens()
        else:
            server.faults.append(fault)
        ids.append(server.mailbox.deliver())
        await until(lambda: len(triggerer.ids()) == len(ids))

    assert triggerer.ids() == ids
    assert not triggerer.tasks[0].done()
    assert "a poll failed" in logged()


@pytest.mark.slow
async def test_a_wrong_password(
    server: Emulator, triggerer: Triggerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused password is not tried again at each poll, and the right one works at once."""
    right = server.connection()
    monkeypatch.setenv(CONNECTION, json.dumps({**json.loads(right), "password": "wrong"}))
    triggerer.watch(State())
    await asyncio.sleep(1.2)
    logins = server.logins
    monkeypatch.setenv(CONNECTION, right)
    await polls(server)
    new = server.mailbox.deliver()
    await until(lambda: triggerer.events)

    assert logins == 1
    assert triggerer.ids() == [new]


async def test_what_nobody_foresaw(
    server: Emulator,
    triggerer: Triggerer,
    monkeypatch: pytest.MonkeyPatch,
    logged: Callable[[], str],
) -> None:
    """An unforeseen error doesn't stop the watching, which Airflow would restart every second."""
    state = State()
    asked = 0

    async def fail_twice(key: str) -> Any:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise RuntimeError("unforeseen")

    monkeypatch.setattr(state, "aget", fail_twice)
    triggerer.watch(state)
    await until(lambda: state.writes or triggerer.tasks[0].done())
    new = server.mailbox.deliver()
    await until(lambda: triggerer.events or triggerer.tasks[0].done())

    assert triggerer.ids() == [new]
    assert "unforeseen" in logged()
    assert server.logins <= 3


@pytest.mark.parametrize("text", ["7", "{}", '{"start": "x", "told": {}}'])
async def test_a_position_that_was_spoilt(
    server: Emulator, triggerer: Triggerer, text: str, logged: Callable[[], str]
) -> None:
    """If someone broke the position in the asset's state, it starts over, and the log says so."""
    state = State()
    triggerer.watch(state)
    await triggerer.ready()
    await triggerer.stop()
    [key] = state.values
    state.values[key] = text
    number = triggerer.watch(state)
    await until(lambda: state.values[key] != text)
    new = server.mailbox.deliver()
    await until(lambda: triggerer.events)

    assert triggerer.ids(number) == [new]
    assert f"{key} in the asset's state" in logged()


async def test_a_clock_that_was_ahead(
    server: Emulator, triggerer: Triggerer, logged: Callable[[], str]
) -> None:
    """Once a clock that was years ahead is corrected, mail is reported again."""
    state = State()
    triggerer.watch(state)
    await triggerer.ready()
    await triggerer.stop()
    [key] = state.values
    ahead = (datetime.now(UTC) + timedelta(days=999)).timestamp()
    state.values[key] = json.dumps({"start": int(ahead * 1e6), "told": {}})
    new = server.mailbox.deliver()
    number = triggerer.watch(state)
    await until(lambda: triggerer.events)

    assert new in triggerer.ids(number)
    assert "the clock" in logged()


async def test_a_watcher_that_takes_the_place_of_another(
    server: Emulator, triggerer: Triggerer
) -> None:
    """A watcher that starts while the folder's only other one stops is served by the same poll."""
    first = event_trigger()
    key = first.shared_stream_key()
    raw = triggerer.streams.subscribe(trigger_id=99, trigger=first, key=key)
    async with aclosing(cast("Any", first.filter_shared_stream(raw))) as events:
        going = asyncio.ensure_future(anext(events))
        await polls(server)
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)
    state = State()
    triggerer.watch(state)
    await asyncio.sleep(0)
    await triggerer.streams.unsubscribe(99, key)
    await triggerer.ready()
    new = server.mailbox.deliver()
    await until(lambda: triggerer.events)

    assert triggerer.ids() == [new]


async def test_a_message_without_an_id(
    server: Emulator, triggerer: Triggerer, logged: Callable[[], str]
) -> None:
    """A message that is listed without an Id doesn't keep the others from being reported."""
    triggerer.watch(State())
    await triggerer.ready()
    server.mailbox.deliver(fields={"Id": None}, subject="nameless")
    new = server.mailbox.deliver()
    await until(lambda: triggerer.events)

    assert triggerer.ids() == [new]
    assert "has no readable Id" in logged()
    assert "nameless" not in logged()


@pytest.mark.slow
async def test_a_filter_that_the_server_fails_on(server: Emulator, triggerer: Triggerer) -> None:
    """If one watcher's search fails, the others still get their mail."""

    def fail(record: dict[str, Any]) -> None:
        context = (record["json"] or {}).get("SearchContext", {})
        if context.get("Query") == "((":
            server.faults.append(Fault("Messages", status=500))

    server.on_request = fail
    triggerer.watch(State(), query="((")
    triggerer.watch(State(), subject="Prices")
    await until(lambda: len(listings(server)) > 5)  # the first poll is over
    await asyncio.sleep(0.2)
    new = server.mailbox.deliver(subject="Prices")
    await until(lambda: triggerer.events)

    assert triggerer.ids(1) == [new]


# -- parameters -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"start": "soon"}, "start: 'soon' is not a date"),
        ({"labels": "x"}, "labels"),
        ({"was_read": "maybe"}, "was_read"),
        ({"poll_interval": 0}, r"poll_interval: got 0\. Give a number from 0\.01"),
        ({"lookback": "1h"}, "lookback: got '1h'"),
        ({"index_lag": -1}, "index_lag: got -1"),
        ({"max_messages_per_event": 0}, "whole number from 1"),
        ({"max_messages_per_event": True}, "max_messages_per_event"),
    ],
)
def test_wrong_parameters(values: dict[str, Any], text: str) -> None:
    """A wrong parameter is an error when Airflow parses the DAG file, not in the triggerer."""
    with pytest.raises(R7MailConfigError, match=text):
        event_trigger(**values).serialize()


@pytest.mark.parametrize("kind", [R7MailMessageTrigger, R7MailMessageEventTrigger])
def test_a_misspelt_filter(kind: type[Any]) -> None:
    """A filter that doesn't exist is refused at once, as Python does."""
    with pytest.raises(TypeError, match="'sendr'"):
        kind(folder=24, sendr="ann@x.ru")


@pytest.mark.parametrize("kind", [R7MailMessageTrigger, R7MailMessageEventTrigger])
@pytest.mark.parametrize("form", [set, iter])
def test_labels_in_any_form(kind: type[Any], form: Callable[[Any], Any]) -> None:
    """Labels in a set or an iterator give the same watcher each time the DAG is parsed."""
    trigger = kind(folder=1, labels=form(["11", "3", "9"]))

    for _ in range(2):
        assert trigger.serialize()[1]["labels"] == ["11", "3", "9"]


def test_it_is_the_same_after_a_restart() -> None:
    """A trigger recreated from its serialized form is the same, and has the same hash."""
    values: dict[str, Any] = dict.fromkeys(Filters.__annotations__, "1")
    values |= {"start": datetime(2025, 6, 1, tzinfo=UTC), "end": "2025-06-02", "was_read": True}
    trigger = event_trigger(**{**values, "labels": (1, 2)})

    path, arguments = trigger.serialize()

    assert path == "airflow_provider_r7mail.triggers.R7MailMessageEventTrigger"
    again = R7MailMessageEventTrigger(**json.loads(json.dumps(arguments)))
    assert again.serialize() == (path, arguments)
    assert isinstance(trigger, BaseEventTrigger)
    assert BaseEventTrigger.hash(path, arguments) == BaseEventTrigger.hash(*again.serialize())


# -- the position, by itself ------------------------------------------------------------------

LOOKBACK = 100
ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 60),  # time until it arrives
        st.integers(-LOOKBACK, LOOKBACK - 1),  # how wrong its date is
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(arrivals=ARRIVALS, limit=st.integers(1, 5), restarts=st.sets(st.integers(0, 60)))
def test_each_message_once(arrivals: list[tuple[int, int]], limit: int, restarts: set[int]) -> None:
    """Whatever their dates within `lookback`, messages are reported once, across restarts."""
    now = 1000
    due: dict[int, tuple[int, int]] = {}
    for number, (wait, wrong) in enumerate(arrivals):
        now += wait
        due[number] = now, now + wrong
    position = Position(1000 - LOOKBACK)
    told: list[int] = []
    clock = 1000
    for step in range(400):
        clock += 10
        if not position.is_waiting:
            found = {
                number: date
                for number, (came, date) in due.items()
                if came <= clock and position.start <= date < clock + LOOKBACK
            }
            position.find(found, clock, LOOKBACK)
        told += position.tell(limit)
        if step in restarts:
            position = Position.from_json(json.loads(json.dumps(position.to_json())))

    assert sorted(told) == sorted(due)
    assert position.told == {}
