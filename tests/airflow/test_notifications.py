"""The notifier, called by Airflow in every way: what reaches the server, and what doesn't.

Where the throttle keeps its state is Airflow's own: those tests run real tasks.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from airflow.models import Variable
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_r7mail import get_provider_info
from airflow_provider_r7mail.client.compose import compose_message
from airflow_provider_r7mail.compat import DAG
from airflow_provider_r7mail.emulator import Emulator, Fault
from airflow_provider_r7mail.notifications import R7MailNotifier, send_r7mail_notification

if TYPE_CHECKING:
    from tests.conftest import DagResult

NOTIFIER = "airflow_provider_r7mail.notifications.R7MailNotifier"
# As Airflow 3.3's scheduler makes it: all JSON, and no task.
DEADLINE: dict[str, Any] = {
    "dag_run": {"dag_id": "nightly", "dag_run_id": "scheduled__1", "state": "running"},
    "deadline": {"id": "1", "deadline_time": "2026-11-20T06:00:00Z"},
}

THROTTLES = select(Variable).where(Variable.key.startswith("r7mail_throttle_"))

RunDag = Callable[[str], "DagResult"]


def alert(**values: Any) -> R7MailNotifier:
    """A notifier without throttle, which needs no running Airflow."""
    return R7MailNotifier(**{"to": "ops@example.org", "throttle": None, **values})


def notify(way: str, **values: Any) -> None:
    """Call the notifier of a missed deadline, or await it: versions of Airflow do either."""
    if way == "called":
        alert(**values)(dict(DEADLINE))
    else:

        async def wait() -> None:
            await alert(**values, context=dict(DEADLINE))

        asyncio.run(wait())


def subjects(server: Emulator) -> list[str]:
    """The subjects of what was sent."""
    return [sent["Subject"] for sent in server.mailbox.sent]


@pytest.fixture
def throttles(airflow_database: None) -> Iterator[Callable[[], list[Any]]]:
    """The Airflow Variables of this test's throttles."""

    def found() -> list[Any]:
        with create_session() as session:
            rows = session.scalars(THROTTLES)
            return [(row.key, json.loads(row.val), row.description) for row in rows]

    def clear() -> None:
        with create_session() as session:
            for row in session.scalars(THROTTLES):
                session.delete(row)

    clear()
    yield found
    clear()


def ten_minutes_pass() -> None:
    """Make all throttles ten minutes older."""
    with create_session() as session:
        for row in session.scalars(THROTTLES):
            value = json.loads(row.val)
            row.val = json.dumps({**value, "sent_at": value["sent_at"] - 600})


class TestTask:
    """Callbacks of tasks."""

    def test_a_failed_task_is_told_of(self, server: Emulator, run_dag: RunDag) -> None:
        """A failed task sends one mail that says where and why, and links to the log."""
        result = run_dag("""
            from airflow.sdk import DAG, task
            from airflow_provider_r7mail.notifications import send_r7mail_notification

            with DAG("told") as dag:
                @task(on_failure_callback=send_r7mail_notification(
                    to="Ops <ops@example.org>, b@example.org", cc="c@example.org", throttle=None))
                def load():
                    raise ValueError("<script>alert(1)</script>\\nsecond line")
                load()
        """)

        [sent] = server.mailbox.sent
        text = sent["HtmlBody"]
        assert result.states == {"load": "failed"}
        assert (sent["To"], sent["Cc"]) == (["ops@example.org", "b@example.org"], ["c@example.org"])
        assert sent["Subject"] == "Airflow: told.load: failed"
        for name, value in {"DAG": "told", "Task": "load", "Try": "1", "What": "failed"}.items():
            assert f"<th align='left'>{name}</th><td>{value}</td>" in text
        assert "manual__" in text
        assert "Map index" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;\nsecond line" in text
        assert "<script>" not in text
        assert "/tasks/load" in text

    @pytest.mark.parametrize(
        ("callback", "body", "state"),
        [
            ("on_success_callback", "pass", "success"),
            ("on_execute_callback", "pass", "running"),
            (
                "on_skipped_callback",
                "from airflow.sdk.exceptions import AirflowSkipException as E; raise E",
                "skipped",
            ),
        ],
    )
    def test_other_callbacks(
        self, server: Emulator, run_dag: RunDag, callback: str, body: str, state: str
    ) -> None:
        """It works in every callback of a task; the subject contains the state."""
        run_dag(f"""
            from airflow.sdk import DAG, task
            from airflow_provider_r7mail.notifications import R7MailNotifier

            with DAG("states") as dag:
                @task({callback}=R7MailNotifier("ops@example.org", throttle=None))
                def t():
                    {body}
                t()
        """)

        assert subjects(server) == [f"Airflow: states.t: {state}"]

    def test_one_notifier_for_all_tasks(self, server: Emulator, run_dag: RunDag) -> None:
        """A notifier in `default_args` reports each task by its own name."""
        run_dag("""
            from airflow.sdk import DAG, task
            from airflow_provider_r7mail.notifications import R7MailNotifier

            told = R7MailNotifier("ops@example.org", subject="{{ ti.task_id }} is done",
                                  html_content="<p>{{ ti.task_id }}</p>", throttle=None)
            with DAG("shared", default_args={"on_success_callback": told}) as dag:
                @task
                def one(): pass
                @task
                def two(): pass
                one() >> two()
        """)

        assert subjects(server) == ["one is done", "two is done"]
        assert [sent["HtmlBody"] for sent in server.mailbox.sent] == ["<p>one</p>", "<p>two</p>"]

    def test_a_template_in_a_file(self, server: Emulator, run_dag: RunDag) -> None:
        """The body may be a template file next to the DAG; the subject is never one."""
        run_dag("""
            from pathlib import Path
            from airflow.sdk import DAG, task
            from airflow_provider_r7mail.notifications import R7MailNotifier

            Path(__file__).with_name("alert.html").write_text("<p>{{ exception | e }}</p>")
            with DAG("in_a_file") as dag:
                @task(on_failure_callback=R7MailNotifier(
                    "ops@example.org", "see log.txt", html_content="alert.html", throttle=None))
                def t():
                    raise ValueError("<b>")
                t()
        """)

        assert subjects(server) == ["see log.txt"]
        assert [sent["HtmlBody"] for sent in server.mailbox.sent] == ["<p>&lt;b&gt;</p>"]


class TestDag:
    """Callbacks of DAGs."""

    def test_a_failed_run_is_told_of(self, server: Emulator, run_dag: RunDag) -> None:
        """A failed run sends one mail about the DAG that names a failed task."""
        run_dag("""
            from airflow.sdk import DAG, task
            from airflow_provider_r7mail.notifications import R7MailNotifier

            with DAG("run_fails", on_failure_callback=R7MailNotifier(
                    "ops@example.org", html_content=None, throttle=None)) as dag:
                @task
                def t():
                    raise ValueError
                t()
        """)

        [sent] = server.mailbox.sent
        assert sent["Subject"] == "Airflow: run_fails: task_failure"
        assert "<th align='left'>Task</th><td>t</td>" in sent["HtmlBody"]

    def test_a_succeeded_run_is_told_of(self, server: Emulator, run_dag: RunDag) -> None:
        """The mail about a successful run mentions no task."""
        run_dag("""
            from airflow.sdk import DAG, task
            from airflow_provider_r7mail.notifications import R7MailNotifier

            with DAG("run_is_fine", on_success_callback=R7MailNotifier(
                    "ops@example.org", throttle=None)) as dag:
                @task
                def t(): pass
                t()
        """)

        [sent] = server.mailbox.sent
        assert sent["Subject"] == "Airflow: run_is_fine: success"
        assert "Task" not in sent["HtmlBody"]

    def test_the_least_that_airflow_gives(self, server: Emulator) -> None:
        """A run whose tasks are gone is reported with what is known."""
        alert()({"dag": DAG("gone"), "run_id": "r<1>", "reason": "timed_out"})

        [sent] = server.mailbox.sent
        assert sent["Subject"] == "Airflow: gone: timed_out"
        assert "r&lt;1&gt;" in sent["HtmlBody"]


class TestDeadline:
    """Callbacks of deadlines, run as Airflow runs them."""

    async def test_in_the_triggerer(
        self, server: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A missed deadline's AsyncCallback sends one mail that names the DAG, run and time."""
        callback = pytest.importorskip("airflow.triggers.callback")
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.org/")
        kwargs = {"to": "ops@example.org", "throttle": 0, "context": dict(DEADLINE)}

        events = [e async for e in callback.CallbackTrigger(NOTIFIER, kwargs).run()]

        [sent] = server.mailbox.sent
        assert events[-1].payload["state"] == "success"
        assert sent["Subject"] == "Airflow: nightly: deadline missed"
        assert "2026-11-20T06:00:00Z" in sent["HtmlBody"]
        link = "https://airflow.example.org/dags/nightly/runs/scheduled__1"
        assert f"<a href='{link}'>" in sent["HtmlBody"]

    def test_in_an_executor(self, server: Emulator, logged: Callable[[], str]) -> None:
        """A SyncCallback sends too. It doesn't write a Variable, which would hang there."""
        supervisor = pytest.importorskip("airflow.sdk.execution_time.callback_supervisor")

        done = supervisor.execute_callback(
            NOTIFIER,
            {"to": "ops@example.org", "context": dict(DEADLINE)},
            dag_rel_path=None,
            bundle_path=None,
            log=structlog.get_logger(),
        )

        assert done == (True, None)
        assert subjects(server) == ["Airflow: nightly: deadline missed"]
        assert "without throttle" not in logged()

    async def test_it_can_be_given_to_a_dag(self, server: Emulator) -> None:
        """It can be a DAG's deadline callback, and sends the mail after Airflow stored it."""
        pytest.importorskip("airflow.sdk.definitions.deadline")
        # Airflow 3.1 and later; its stubs leave these out
        from airflow.sdk import (  # type: ignore[attr-defined] # noqa: PLC0415
            AsyncCallback,
            CronTriggerTimetable,
            DeadlineAlert,
            DeadlineReference,
        )

        # [START deadline]
        with DAG(
            "report_by_nine",
            schedule=CronTriggerTimetable("0 6 * * 1-5", timezone="Europe/Moscow"),
            deadline=DeadlineAlert(
                reference=DeadlineReference.DAGRUN_LOGICAL_DATE,
                interval=timedelta(hours=3),
                callback=AsyncCallback(
                    R7MailNotifier,
                    kwargs={
                        "to": "ops@example.org",
                        "subject": "{{ dag_run.dag_id }}: not done by nine",
                        "throttle": None,
                    },
                ),
            ),
        ) as dag:
            ...
        # [END deadline]

        deadlines: Any = dag.deadline
        stored = json.loads(json.dumps(deadlines[0].callback.serialize()))
        kwargs = {**stored["kwargs"], "context": dict(DEADLINE)}
        trigger = import_module("airflow.triggers.callback").CallbackTrigger
        events = [event async for event in trigger(stored["path"], kwargs).run()]

        assert events[-1].payload["state"] == "success"
        assert subjects(server) == ["nightly: not done by nine"]

    async def test_the_event_loop_is_free(self, server: Emulator) -> None:
        """While it waits for a slow server, the triggerer's other triggers continue."""
        server.faults.append(Fault("Send", kind="slow", seconds=0.5))
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        notifier = alert(context=dict(DEADLINE))
        await notifier
        ticking.cancel()

        assert len(server.mailbox.sent) == 1
        assert ticks > 20

    @pytest.mark.slow
    async def test_a_long_text_leaves_the_event_loop_free(self, server: Emulator) -> None:
        """While it makes the plain text of a long report, the other triggers continue."""
        report = "<p>x</p>" * 100_000
        longest = 0.0

        async def tick() -> None:
            nonlocal longest
            while True:
                before = time.monotonic()
                await asyncio.sleep(0)
                longest = max(longest, time.monotonic() - before)

        await alert().async_notify({})  # the libraries are loaded
        shares = []
        for _ in range(3):  # a busy machine may halt either for a while
            begun = time.monotonic()
            compose_message("a@b.ru", "s", report)
            whole = time.monotonic() - begun
            longest = 0.0
            ticking = asyncio.create_task(tick())
            await alert(html_content=report).async_notify({})
            ticking.cancel()
            shares.append(longest / whole)

        assert len(server.mailbox.sent) == 4
        assert min(shares) < 0.5


class TestTemplates:
    """A template that can't be rendered doesn't stop an alert."""

    @pytest.mark.parametrize("way", ["called", "awaited"])
    @pytest.mark.parametrize(
        ("values", "error"),
        [
            ({"html_content": "{{ exception | e }}"}, "&#x27;exception&#x27; is undefined"),
            ({"html_content": "{{ ds }}"}, "&#x27;ds&#x27; is undefined"),
            ({"html_content": "{{ ds"}, "unexpected end of template"),
            ({"html_content": "{{ 1 / 0 }}"}, "division by zero"),
            ({"html_content": "Look into report.txt"}, "Look into report.txt"),
            ({"html_content": "<b>missing.html"}, "&lt;b&gt;missing.html"),
            ({"subject": "{{ no.such.thing }}"}, "&#x27;no&#x27; is undefined"),
            ({"cc": "{{ no.such.thing }}"}, "&#x27;no&#x27; is undefined"),
            ({"throttle_key": "{{ no.such.thing }}"}, "&#x27;no&#x27; is undefined"),
        ],
    )
    def test_the_default_is_sent_with_the_error(
        self,
        server: Emulator,
        logged: Callable[[], str],
        values: dict[str, Any],
        error: str,
        way: str,
    ) -> None:
        """The alert is sent with the default text and the template's error, which the log names."""
        notify(way, **values)

        [sent] = server.mailbox.sent
        assert sent["Subject"] == "Airflow: nightly: deadline missed"
        assert "<td>scheduled__1</td>" in sent["HtmlBody"]
        assert f"<li>{next(iter(values))}: " in sent["HtmlBody"]
        assert error in sent["HtmlBody"]
        assert f"{next(iter(values))} can't be rendered" in logged()
        assert "report.txt" not in logged()

    def test_in_a_callback_of_a_dag(self, server: Emulator, run_dag: RunDag) -> None:
        """In a callback of a DAG, which may have no `exception`, the default text is sent."""
        run_dag("""
            from airflow.sdk import DAG, task
            from airflow_provider_r7mail.notifications import R7MailNotifier

            with DAG("no_exception", on_failure_callback=R7MailNotifier(
                    "ops@example.org", html_content="{{ exception | e }}", throttle=None)) as dag:
                @task
                def t():
                    raise ValueError
                t()
        """)

        [sent] = server.mailbox.sent
        assert "<th align='left'>Task</th><td>t</td>" in sent["HtmlBody"]
        assert "{{ exception | e }}" in sent["HtmlBody"]

    @pytest.mark.parametrize("subject", ["See report.txt", "{{ 'index' }}.html"])
    def test_a_subject_is_never_a_file(self, server: Emulator, subject: str) -> None:
        """A subject may end like a file."""
        alert(subject=subject, html_content="x")(dict(DEADLINE))

        assert subjects(server) == [subject.replace("{{ 'index' }}", "index")]
        assert "rendered" not in server.mailbox.sent[0]["HtmlBody"]

    @pytest.mark.parametrize(
        ("template", "text"),
        [("{{ 5 }}", "5"), ("{{ [1] }}", "[1]"), ("{{ none }}", "<td>native</td>")],
    )
    def test_native_rendering(self, server: Emulator, template: str, text: str) -> None:
        """In a DAG that renders native objects, a number or a list is text; None is the default."""
        dag = DAG("native", render_template_as_native_obj=True)

        alert(html_content=template, subject=template)({"dag": dag})

        assert text in server.mailbox.sent[0]["HtmlBody"]


def dead_worker(number: int, retries: int) -> dict[str, Any]:
    """What the DAG processor gives to a task's callbacks when the worker has died: no state."""
    ti = {"task_id": "t", "try_number": number, "max_tries": retries, "map_index": -1}
    return {"dag": DAG("d"), "ti": ti, "task": {"retries": 0}}


@pytest.mark.parametrize(("number", "state"), [(1, "up_for_retry"), (2, "failed")])
def test_a_dead_worker_has_a_state(server: Emulator, number: int, state: str) -> None:
    """The alert about a task whose worker died says whether there will be another try."""
    alert()(dead_worker(number, retries=1))

    assert subjects(server) == [f"Airflow: d.t: {state}"]


class TestHangingServer:
    """A server that hangs costs an alert, but doesn't hold up what comes after it."""

    @pytest.mark.slow
    @pytest.mark.parametrize("path", ["Login", "Send"])
    @pytest.mark.parametrize("way", ["called", "awaited"])
    def test_it_gives_up(
        self,
        server: Emulator,
        logged: Callable[[], str],
        monkeypatch: pytest.MonkeyPatch,
        path: str,
        way: str,
    ) -> None:
        """The notifier stops waiting after its own limit, and the next alert is sent."""
        monkeypatch.setattr("airflow_provider_r7mail.notifications.SEND_SECONDS", 1.0)
        monkeypatch.setattr("airflow_provider_r7mail.client.account.TURN_SECONDS", 0.2)
        server.faults.append(Fault(path, kind="slow", seconds=5))
        begun = time.monotonic()
        notify(way)
        took = time.monotonic() - begun
        alert(subject="next")(dict(DEADLINE))

        assert took < 4
        assert "no answer within 1 seconds" in logged()
        assert "next" in subjects(server)


class TestThrottle:
    """A failing DAG does not send a hundred mails."""

    STORM = """
        from airflow.sdk import DAG, task
        from airflow_provider_r7mail.notifications import R7MailNotifier

        with DAG("{dag}") as dag:
            @task(on_failure_callback=R7MailNotifier("ops@example.org", {values}))
            def load(n):
                raise ValueError(n)
            load.expand(n=list(range({tasks})))
    """

    def storm(self, run_dag: RunDag, values: str = "", dag: str = "storm", tasks: int = 4) -> None:
        """Fail some mapped tasks at once."""
        run_dag(self.STORM.format(dag=dag, values=values, tasks=tasks))

    def test_one_mail_then_how_many_were_not_sent(
        self, server: Emulator, run_dag: RunDag, throttles: Callable[[], list[Any]]
    ) -> None:
        """Four failures send one mail; the next, ten minutes later, mentions the other three."""
        self.storm(run_dag)

        assert len(server.mailbox.sent) == 1
        [(_, value, description)] = throttles()
        assert value["unsent"] == 3
        assert "storm load failed" in description
        assert "example.org" not in description

        ten_minutes_pass()
        self.storm(run_dag, tasks=1)

        first, second = [sent["HtmlBody"] for sent in server.mailbox.sent]
        assert "Not sent since" not in first
        assert (
            "Not sent since the last mail like this, because of the throttle or a failure: at "
            "least 3." in second
        )

    @pytest.mark.parametrize("values", ["throttle=None", "throttle=0"])
    def test_it_can_be_off(
        self,
        server: Emulator,
        run_dag: RunDag,
        throttles: Callable[[], list[Any]],
        values: str,
    ) -> None:
        """Without throttle every failure sends a mail, and no Variable is written."""
        self.storm(run_dag, values, tasks=2)

        assert len(server.mailbox.sent) == 2
        assert throttles() == []

    def test_what_is_not_alike_is_not_held_back(
        self, server: Emulator, run_dag: RunDag, throttles: Callable[[], list[Any]]
    ) -> None:
        """Each task, each set of recipients and each event has its own throttle."""
        run_dag("""
            from airflow.sdk import DAG, task
            from airflow_provider_r7mail.notifications import R7MailNotifier

            with DAG("alike") as dag:
                both = [R7MailNotifier("a@example.org"), R7MailNotifier("b@example.org")]
                @task(on_success_callback=both)
                def one(): pass
                @task(on_execute_callback=R7MailNotifier("a@example.org"), on_success_callback=both)
                def two(): pass
                one() >> two()
        """)

        assert [(sent["To"][0][0], sent["Subject"][15:]) for sent in server.mailbox.sent] == [
            ("a", "one: success"),
            ("b", "one: success"),
            ("a", "two: running"),
            ("a", "two: success"),
            ("b", "two: success"),
        ]
        assert len(throttles()) == 5

    def test_a_key_of_ones_own(
        self, server: Emulator, run_dag: RunDag, throttles: Callable[[], list[Any]]
    ) -> None:
        """Two DAGs with the same key share one throttle."""
        values = "throttle=3600, throttle_key='warehouse {{ params.get(1, 1) }}'"
        self.storm(run_dag, values, dag="first", tasks=1)
        self.storm(run_dag, values, dag="second", tasks=1)

        assert subjects(server) == ["Airflow: first.load: failed"]
        [(_, value, description)] = throttles()
        assert value["unsent"] == 1
        assert description.endswith("warehouse 1")

    def test_a_failed_mail_holds_no_other_back(
        self, server: Emulator, run_dag: RunDag, throttles: Callable[[], list[Any]]
    ) -> None:
        """If the server refuses the first mail, the second is sent and mentions the first."""
        server.faults.append(Fault("Send", status=403))

        self.storm(run_dag, tasks=2)

        [sent] = server.mailbox.sent
        assert "least 1." in sent["HtmlBody"]
        assert throttles()[0][1]["unsent"] == 0

    def test_an_unclear_one_counts_as_sent(
        self, server: Emulator, run_dag: RunDag, throttles: Callable[[], list[Any]]
    ) -> None:
        """If it is unclear whether a mail was sent, it counts as sent (R23)."""
        server.faults.append(Fault("Send", status=502, after_acting=True))

        self.storm(run_dag, tasks=2)

        assert len(server.mailbox.sent) == 1
        assert throttles()[0][1]["unsent"] == 1

    def test_an_edited_variable(
        self, server: Emulator, run_dag: RunDag, throttles: Callable[[], list[Any]]
    ) -> None:
        """An invalid Variable is treated as missing."""
        self.storm(run_dag, tasks=1)
        with create_session() as session:
            for row in session.scalars(THROTTLES):
                row.val = '"soon"'

        self.storm(run_dag, tasks=1)

        assert len(server.mailbox.sent) == 2

    def test_in_the_triggerers_way(
        self, server: Emulator, run_dag: RunDag, throttles: Callable[[], list[Any]]
    ) -> None:
        """The throttle also works when awaited; a refused mail is counted."""
        server.faults.append(Fault("Send", status=403))
        result = run_dag(f"""
            import asyncio
            from airflow.sdk import DAG, task
            from airflow_provider_r7mail.notifications import R7MailNotifier

            with DAG("awaited") as dag:
                @task
                def miss():
                    async def three():
                        for _ in range(3):
                            await R7MailNotifier("ops@example.org", context={DEADLINE!r})
                    asyncio.run(three())
                miss()
        """)

        [sent] = server.mailbox.sent
        assert result.states == {"miss": "success"}
        assert "least 1." in sent["HtmlBody"]
        assert throttles()[0][1]["unsent"] == 1

    def test_many_at_once_in_the_triggerer(
        self, server: Emulator, run_dag: RunDag, throttles: Callable[[], list[Any]]
    ) -> None:
        """If deadlines are missed at the same instant, one mail is sent; others are counted."""
        run_dag(f"""
            import asyncio
            from airflow.sdk import DAG, task
            from airflow_provider_r7mail.notifications import R7MailNotifier

            async def one():
                await R7MailNotifier("ops@example.org", context={DEADLINE!r})

            async def five():
                await asyncio.gather(*[one() for _ in range(5)])

            with DAG("at_once") as dag:
                @task
                def miss():
                    asyncio.run(five())
                miss()
        """)

        assert len(server.mailbox.sent) == 1
        assert throttles()[0][1]["unsent"] == 4

    def test_without_a_place_for_its_state(
        self, server: Emulator, logged: Callable[[], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If Airflow's Variables fail, the alert is sent anyway, and the log says so."""

        class Down:
            @staticmethod
            def get(*args: object) -> None:
                raise RuntimeError("the database is down")

        monkeypatch.setattr("airflow_provider_r7mail.notifications.Variable", Down)

        alert(throttle=timedelta(hours=1))({})

        assert len(server.mailbox.sent) == 1
        assert "Sending without throttle" in logged()


class TestFailure:
    """A failing notifier doesn't make anything else fail."""

    @pytest.mark.parametrize(
        ("values", "text"),
        [
            ({"to": "nobody"}, "to: item 1 contains something that is not a mail address"),
            ({"to": []}, "to: no address"),
            ({"throttle": "soon"}, "throttle: expected seconds"),
            ({"throttle": -1}, "throttle: expected seconds"),
            ({"to": "{{ no.such.thing }}"}, "the mail was not sent"),
            ({"r7mail_conn_id": "{{ no.such.thing }}"}, "the mail was not sent"),
            ({"r7mail_conn_id": "nowhere"}, "There is no Airflow connection 'nowhere'"),
        ],
    )
    @pytest.mark.parametrize("way", ["called", "awaited"])
    def test_wrong_parameters(
        self,
        server: Emulator,
        logged: Callable[[], str],
        values: dict[str, Any],
        text: str,
        way: str,
    ) -> None:
        """The mistake is logged; nothing is raised and nothing is sent."""
        notify(way, **values)

        assert text in logged()
        assert server.mailbox.sent == []

    def test_unclear_is_not_repeated(self, server: Emulator, logged: Callable[[], str]) -> None:
        """If it is unclear whether a mail was sent, only one is; the log says where to look."""
        server.faults.append(Fault("Send", None, kind="reset", after_acting=True))

        alert()({})

        assert len(server.mailbox.sent) == 1
        assert "Sent folder" in logged()

    def test_the_task_keeps_its_state(
        self, server: Emulator, run_dag: RunDag, logged: Callable[[], str]
    ) -> None:
        """A successful task stays successful if the mail about it is refused."""
        server.faults.append(Fault("Send", None, status=403))
        result = run_dag("""
            from airflow.sdk import DAG, task
            from airflow_provider_r7mail.notifications import R7MailNotifier

            with DAG("keeps") as dag:
                @task(on_success_callback=R7MailNotifier("ops@example.org", throttle=None))
                def t(): pass
                t()
        """)

        assert result.states == {"t": "success"}
        assert "POST /api/v1/email/Send" in logged()

    def test_logs_hold_ids_only(self, server: Emulator, logged: Callable[[], str]) -> None:
        """The log has no address, subject or text, whether sending succeeds or fails."""
        notifier = alert(to="hidden@example.org", subject="hidden", html_content="hidden")
        notifier({})
        server.faults.append(Fault("Send", None, status=500))
        notifier({})

        assert "hidden" not in logged()


def test_a_line_break_does_not_stop_an_alert(server: Emulator) -> None:
    """The subject may contain an exception with two lines."""
    alert(subject="{{ exception }}")({"exception": ValueError("one\r\ntwo\x00")})

    assert subjects(server) == ["one two"]


def test_a_subject_that_is_no_text(server: Emulator) -> None:
    """A number as the subject, as a native template may render it, doesn't stop an alert."""
    alert(subject=404).notify({})

    assert subjects(server) == ["404"]


def test_known_secrets_are_masked(server: Emulator) -> None:
    """What Airflow masks in logs, such as a connection's password, is masked in mails."""
    alert()({"exception": ValueError(f"login failed for {server.mailbox.password}")})
    alert()({"exception": ValueError(f"login failed for {server.mailbox.password}")})

    assert server.mailbox.password not in server.mailbox.sent[-1]["HtmlBody"]
    assert "login failed for ***" in server.mailbox.sent[-1]["HtmlBody"]


def test_a_link_is_a_web_address(server: Emulator) -> None:
    """Only http and https become links."""

    class Instance:
        log_url = "javascript:alert(1)"

    alert()({"ti": Instance()})

    assert "href" not in server.mailbox.sent[0]["HtmlBody"]


def test_a_long_exception_is_cut(server: Emulator) -> None:
    """A very long exception is truncated to a readable length."""
    alert()({"exception": ValueError("x" * 1_000_000)})

    assert len(server.mailbox.sent[0]["HtmlBody"]) < 5000


def test_the_constructor_only_stores() -> None:
    """The constructor checks and reads nothing: Airflow parses DAG files all the time."""
    nonsense: Any = object()
    R7MailNotifier(to="", subject="\n", throttle=nonsense, r7mail_conn_id="nowhere")


def test_its_names() -> None:
    """Airflow lists it; `send_r7mail_notification` is its alias, as in other providers."""
    assert send_r7mail_notification is R7MailNotifier
    assert get_provider_info()["notifications"] == [NOTIFIER]
