"""The sensor and its trigger: the same result and the same errors in every mode."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_r7mail.compat import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
)
from airflow_provider_r7mail.emulator import Emulator, Fault, Mailbox
from airflow_provider_r7mail.exceptions import (
    R7MailAuthError,
    R7MailConfigError,
    R7MailProxyError,
    R7MailResponseError,
)
from airflow_provider_r7mail.filters import FILTER_FIELDS
from airflow_provider_r7mail.sensors import R7MailMessageSensor
from airflow_provider_r7mail.triggers import R7MailMessageTrigger, error_event, error_of
from tests.conftest import AIRFLOW_2, AIRFLOW_3_0

try:
    from airflow.sdk.exceptions import AirflowRescheduleException, TaskDeferred
except ImportError:  # Airflow before 3.2
    from airflow.exceptions import AirflowRescheduleException, TaskDeferred  # type: ignore[no-redef]

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import DagResult

CONNECTION = "AIRFLOW_CONN_R7MAIL_DEFAULT"
MODES = ["poke", "deferrable"] if AIRFLOW_3_0 else ["poke", "reschedule", "deferrable"]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """Each of the sensor's modes."""
    return str(request.param)


def wait(mode: str, **values: Any) -> Any:
    """Run a sensor to its end, as Airflow's scheduler and triggerer would."""
    values = {"folder": "inbox", "poke_interval": 0.05, "timeout": 20, **values}
    sensor = R7MailMessageSensor(
        task_id="found",
        mode="reschedule" if mode == "reschedule" else "poke",
        deferrable=mode == "deferrable",
        **values,
    )
    first_try = FirstTry()
    context: Any = {"ti": first_try}
    while True:
        try:
            with first_try.in_airflow_2():
                return sensor.execute(context)
        except AirflowRescheduleException:
            continue
        except TaskDeferred as deferred:
            return resume(sensor, deferred, context)


class FirstTry:
    """The part of a task instance that a rescheduled sensor uses."""

    dag_id = task_id = run_id = ""
    map_index = -1
    max_tries = 0

    def __init__(self) -> None:
        self._start = datetime.now(UTC)

    def get_first_reschedule_date(self, context: object) -> datetime:
        """Return when the sensor first polled."""
        return self._start

    @contextmanager
    def in_airflow_2(self) -> Iterator[None]:
        """In Airflow 2, the sensor asks the metadata database for it."""
        with pytest.MonkeyPatch.context() as patch:
            if AIRFLOW_2:
                patch.setattr("airflow.sensors.base._orig_start_date", lambda **_: self._start)
            yield


def resume(sensor: R7MailMessageSensor, deferred: TaskDeferred, context: Any) -> Any:
    """Run the trigger, recreated from its serialized form, then resume the task."""
    path, arguments = deferred.trigger.serialize()
    trigger = import_class(path)(**json.loads(json.dumps(arguments)))
    assert deferred.timeout is not None
    try:
        event = asyncio.run(
            asyncio.wait_for(first_event(trigger), deferred.timeout.total_seconds())
        )
    except TimeoutError:
        reason = {"error": "Trigger/execution timeout" if AIRFLOW_2 else "Trigger timeout"}
        return sensor.resume_execution("__fail__", reason, context)
    event = json.loads(json.dumps(event))
    return sensor.resume_execution(deferred.method_name, {"event": event}, context)


async def first_event(trigger: R7MailMessageTrigger) -> Any:
    """Return the trigger's first event, which is its only one."""
    async with aclosing(trigger.run()) as events:  # type: ignore[type-var]
        return (await anext(events)).payload


def import_class(path: str) -> Any:
    """Import a class by its path, as the triggerer does."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def deliver_at(server: Emulator, listing: int, **message: Any) -> None:
    """Let a message arrive just before the server answers the n-th listing."""
    seen = 0

    def arrive(record: dict[str, Any]) -> None:
        nonlocal seen
        seen += record["path"].endswith("/Messages")
        if seen == listing:
            seen += 1
            server.mailbox.deliver(**message)

    server.on_request = arrive


def paths(server: Emulator) -> list[str]:
    """Return the calls that the server received."""
    return [request["path"].rpartition("/")[2] for request in server.requests]


def test_messages_that_are_there(server: Emulator, mode: str) -> None:
    """If the messages are there already, their ids are returned at once, and nothing is changed."""
    ids = [server.mailbox.deliver(subject=f"Prices {number}") for number in range(3)]
    server.mailbox.deliver(subject="News")

    assert sorted(wait(mode, subject="Prices", min_messages=2)) == ids
    assert server.logins == 1
    assert set(paths(server)) == {"Login", "Messages"}
    assert not any(message["WasRead"] for message in server.mailbox.messages(24))


def test_messages_that_come_later(server: Emulator, mode: str) -> None:
    """The sensor waits until there are enough messages, then returns all that match."""
    one = server.mailbox.deliver(subject="Prices", sender="shop@x.ru")
    deliver_at(server, 5, subject="Prices", sender="shop@x.ru")

    assert wait(mode, sender="shop@x.ru", was_read="False", min_messages=2) == [one, one + 1]
    assert set(paths(server)) == {"Login", "Messages"}
    # All polls share a session; a deferred sensor polled once before; rescheduling ends it.
    assert server.logins <= {"poke": 1, "deferrable": 2, "reschedule": 9}[mode]


def test_dates_as_templates_render_them(server: Emulator, mode: str) -> None:
    """Date filters are half-open and can be datetimes or text."""
    ids = [server.mailbox.deliver(date=f"2025-06-0{day}T00:00:00Z") for day in range(1, 5)]
    deliver_at(server, 3, date="2025-06-02T12:00:00Z")
    start, end = datetime(2025, 6, 2, tzinfo=UTC), "2025-06-04 00:00:00+00:00"

    found = wait(mode, start=start, end=end, labels="[]", min_messages=3)

    assert sorted(found) == [ids[1], ids[2], ids[3] + 1]


def test_wrong_password(server: Emulator, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong password fails the task at once, after a single attempt to log in."""
    values = {**json.loads(server.connection()), "password": "wrong"}
    monkeypatch.setenv(CONNECTION, json.dumps(values))

    with pytest.raises(AirflowFailException, match="Check Login and Password"):
        wait(mode)
    assert server.logins == 1


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"folder": "nowhere"}, "Known folders: 'inbox'"),
        ({"start": "soon"}, "start: 'soon' is not a date"),
        ({"labels": "x"}, "labels"),
        ({"was_read": "maybe"}, "was_read"),
        ({"min_messages": 0}, "min_messages"),
        ({"r7mail_conn_id": "no_such_mail"}, "no Airflow connection 'no_such_mail'"),
    ],
)
def test_wrong_parameters(server: Emulator, mode: str, values: dict[str, Any], text: str) -> None:
    """A wrong parameter fails the task before any request, and the error names it."""
    with pytest.raises(AirflowFailException, match=text) as caught:
        wait(mode, **values)
    assert isinstance(caught.value.__cause__, R7MailConfigError)
    assert server.requests == []


@pytest.mark.skipif(not AIRFLOW_3_0, reason="other versions can do it")
@pytest.mark.parametrize(
    ("mode", "values", "text"),
    [
        ("reschedule", {}, "Airflow 3.0 fails a sensor.*Set deferrable=True"),
        ("deferrable", {"soft_fail": True}, "Airflow 3.0 fails a deferred.*Set deferrable=False"),
    ],
)
def test_what_airflow_3_0_cannot_do(
    server: Emulator, mode: str, values: dict[str, Any], text: str
) -> None:
    """What Airflow 3.0 breaks for every sensor is refused, with what to do instead."""
    with pytest.raises(AirflowFailException, match=text):
        wait(mode, **values)
    assert server.requests == []


def test_soft_fail(server: Emulator, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `soft_fail`, the task is skipped where it would otherwise fail for good."""
    if AIRFLOW_3_0 and mode == "deferrable":
        pytest.skip("refused; see test_what_airflow_3_0_cannot_do")
    with pytest.raises(AirflowSkipException):
        wait(mode, soft_fail=True, folder="nowhere")
    with pytest.raises(AirflowSkipException):
        wait(mode, soft_fail=True, timeout=0.2)


def test_timeout(server: Emulator, mode: str) -> None:
    """If the messages don't arrive in time, the sensor times out."""
    with pytest.raises(AirflowSensorTimeout):
        wait(mode, timeout=0.2)


@pytest.mark.slow
def test_polls_further_and_further_apart(server: Emulator) -> None:
    """A deferred sensor takes `exponential_backoff` and `max_wait` as poke mode does."""

    def polls(**values: Any) -> int:
        server.requests.clear()
        with pytest.raises(AirflowSensorTimeout):
            wait("deferrable", timeout=2, poke_interval=0.05, **values)
        return paths(server).count("Messages")

    assert polls() > 15
    assert polls(exponential_backoff=True) <= 10  # two of them ask about labels (R31)
    assert 8 < polls(exponential_backoff=True, max_wait=timedelta(seconds=0.15)) <= 20


@pytest.mark.slow
def test_a_failing_server(server: Emulator, mode: str) -> None:
    """A server that keeps failing after the first poll raises the same error in every mode."""
    server.faults.append(Fault("Messages", times=None, skip=1, status=503))

    with pytest.raises(R7MailProxyError, match=r"proxy could not .*status 503") as caught:
        wait(mode)
    assert caught.value.status == 503


@pytest.mark.slow
def test_a_password_changed_while_waiting(server: Emulator, mode: str) -> None:
    """A login that is refused while waiting fails the task at once, in every mode."""

    def change(record: dict[str, Any]) -> None:
        if len(paths(server)) == 4:
            server.mailbox.password = "changed"
            server.expire_tokens()

    server.on_request = change

    with pytest.raises(AirflowFailException) as caught:
        wait(mode)
    assert isinstance(caught.value.__cause__, R7MailAuthError)


async def test_the_trigger_survives_some_failures(server: Emulator) -> None:
    """The trigger survives occasional failed polls and continues in the same session."""
    server.faults.append(Fault("Messages", times=2, status=404))
    server.faults.append(Fault("Messages", times=2, skip=1, status=404))
    deliver_at(server, 6)
    trigger = R7MailMessageTrigger(folder="inbox", poll_interval=0.01)

    event = await first_event(trigger)

    assert event == {"status": "success", "message_ids": [701]}
    assert server.logins == 1


@pytest.mark.slow
async def test_the_trigger_gives_up(server: Emulator) -> None:
    """After three failed polls in a row, the trigger fires one event with the reason."""
    server.faults.append(Fault("Messages", times=None, status=403))
    trigger = R7MailMessageTrigger(folder=24, poll_interval=0.01)

    event = await first_event(trigger)

    assert event["status"] == "error"
    assert "status 403" in event["message"]
    first = ["Login", "Messages"] * 3  # a session that another host ends looks alike (R36)
    assert paths(server) == [*first, "Messages", "Messages"]


async def test_a_dead_token_is_healed_in_the_trigger(server: Emulator) -> None:
    """If the server drops the session while a sensor is deferred, it is renewed; no poll fails."""

    def change(record: dict[str, Any]) -> None:
        if len(paths(server)) == 4:
            server.expire_tokens()
        if len(paths(server)) == 8:
            server.mailbox.deliver()

    server.on_request = change
    trigger = R7MailMessageTrigger(folder=24, poll_interval=0.02, max_consecutive_failures=1)

    event = await first_event(trigger)

    assert event == {"status": "success", "message_ids": [701]}
    assert server.logins == 2
    assert set(paths(server)) == {"Login", "Messages"}


def test_failures_until_the_sensor_fails(server: Emulator) -> None:
    """A deferred sensor fails with the cause after `max_consecutive_failures` failed polls."""
    server.faults.append(Fault("Messages", times=None, skip=1, status=404))

    with pytest.raises(R7MailProxyError, match="status 404"):
        wait("deferrable", max_consecutive_failures=2)
    # Three requests ask how the server reads labels (R31): refusals answer that.
    assert paths(server) == ["Login", *["Messages"] * 4, "Login", *["Messages"] * 2]


async def test_events_hold_ids_only(server: Emulator) -> None:
    """Of the mail, only ids end up in the metadata database."""
    server.mailbox.deliver(subject="Top-Subject", sender="spy@devr7.ru")

    event = await first_event(R7MailMessageTrigger(folder=24))

    assert event == {"status": "success", "message_ids": [701]}


def test_the_trigger_survives_a_restart() -> None:
    """A trigger recreated from its serialized form is the same."""
    values: dict[str, Any] = dict.fromkeys(FILTER_FIELDS, "1")
    start, end = datetime(2025, 6, 1, tzinfo=UTC), "2025-06-02"
    trigger = R7MailMessageTrigger(**{**values, "start": start, "end": end, "labels": (1, 2)})

    path, arguments = trigger.serialize()

    again = import_class(path)(**json.loads(json.dumps(arguments)))
    assert again.serialize() == (path, arguments)
    assert arguments["start"] == "2025-06-01T00:00:00+00:00"
    assert arguments["labels"] == [1, 2]


def test_errors_survive_an_event() -> None:
    """An error that was sent as an event is the same error again."""
    errors = [
        R7MailResponseError("r", method="POST", path="/p", status=200, attempt=2, hint="h"),
        R7MailConfigError("c"),
    ]
    for error in errors:
        again = error_of(json.loads(json.dumps(error_event(error))))

        assert type(again) is type(error)
        assert str(again) == str(error)
    assert error_of({"status": "error", "message": "m", "error": "NoSuchError"}).text == "m"


@pytest.mark.slow
def test_many_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than 10,000 ids are returned."""
    with Emulator(Mailbox.synthetic(10_010)) as server:
        monkeypatch.setenv(CONNECTION, server.connection())

        assert len(wait("poke")) == 10_000


def test_in_a_dag(server: Emulator, run_dag: Callable[[str], DagResult], mode: str) -> None:
    """In a DAG, the sensor waits in every mode until the mail arrives, and returns its ids."""
    deliver_at(server, 7, subject="Prices")  # each poll looks whether the folder is empty

    result = run_dag(f"""
        from airflow.sdk import DAG
        from airflow_provider_r7mail.sensors import R7MailMessageSensor

        with DAG("waits_{mode}") as dag:
            R7MailMessageSensor(
                task_id="found", folder="inbox", subject="{{{{ 'Prices' }}}}",
                start="{{{{ data_interval_start or '2025-06-01' }}}}",
                was_read="{{{{ False }}}}", poke_interval=0.1, timeout=30,
                mode="{"reschedule" if mode == "reschedule" else "poke"}",
                deferrable={mode == "deferrable"},
            )
    """)

    assert result.states == {"found": "success"}
    assert result.xcom("found") == [701]
    assert server.logins == {"poke": 1, "reschedule": 4, "deferrable": 2}[mode]


def test_our_errors_are_not_airflows() -> None:
    """Our errors are not AirflowExceptions: Airflow's retries apply as to any other error."""
    assert not issubclass(R7MailProxyError, AirflowException)
