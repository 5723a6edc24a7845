"""The operators: what they do to a mailbox, and how they fail."""

from __future__ import annotations

import gc
import json
import os
import re
import runpy
import textwrap
import time
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_r7mail.compat import AIRFLOW, AirflowFailException
from airflow_provider_r7mail.emulator import Emulator, Fault, Mailbox, Readings
from airflow_provider_r7mail.emulator.folders import SENT
from airflow_provider_r7mail.exceptions import (
    R7MailAttachmentError,
    R7MailAuthError,
    R7MailConfigError,
    R7MailMessageNotFoundError,
    R7MailProxyError,
    R7MailRequestError,
    R7MailSendUnclearError,
)
from airflow_provider_r7mail.operators import (
    R7MailDeleteOperator,
    R7MailForwardOperator,
    R7MailMarkImportantOperator,
    R7MailMarkReadOperator,
    R7MailMoveOperator,
    R7MailSendOperator,
)
from tests.conftest import CONNECTION, DAGS, DagResult
from tests.lake.support import CHILDREN

if TYPE_CHECKING:
    from collections.abc import Callable

INBOX, PROCESSED = 24, 15
MAY = datetime(2025, 5, 1, tzinfo=UTC)

LETTER: dict[str, Any] = {"to": "a@b.ru", "subject": "Prices", "html_content": "<p>See below</p>"}
ON_MESSAGES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "read": (R7MailMarkReadOperator, {}),
    "important": (R7MailMarkImportantOperator, {}),
    "move": (R7MailMoveOperator, {"to_folder": "processed"}),
    "delete": (R7MailDeleteOperator, {}),
    "forward": (R7MailForwardOperator, {"to": "a@b.ru"}),
}


def on_messages(name: str, ids: Any, folder: int | str = "inbox") -> Any:
    """One of the operators that act on messages."""
    kind, values = ON_MESSAGES[name]
    return kind(task_id=name, folder=folder, message_ids=ids, **values)


def moving(ids: list[int], *, settle_seconds: float) -> Any:
    """A move that returns the messages' new ids."""
    return R7MailMoveOperator(
        task_id="move",
        folder="inbox",
        message_ids=ids,
        to_folder="processed",
        return_new_ids=True,
        settle_seconds=settle_seconds,
    )


def ids_in(server: Emulator, folder: int) -> list[int]:
    """The ids of a folder's messages."""
    return [message["Id"] for message in server.mailbox.messages(folder)]


class OfATry:
    """The part of a task instance that the operators use."""

    dag_id, run_id, task_id, map_index = "d", "r", "t", -1

    def __init__(self, try_number: int) -> None:
        self.try_number = try_number

    def xcom_push(self, **values: Any) -> None:
        """Accept the URL of the link to the mailbox."""


def on_try(number: int) -> Any:
    """The context of a try, without records of earlier ones."""
    return {"ti": OfATry(number)}


class TestOnMessages:
    """Mark, move and delete."""

    def test_mark_read(self, server: Emulator) -> None:
        """Messages are marked as read, or unread again."""
        one, two = server.mailbox.deliver(), server.mailbox.deliver()

        assert on_messages("read", [one, two]).execute({}) == 2
        unread = R7MailMarkReadOperator(task_id="u", folder=24, message_ids=[two], read=False)
        assert unread.execute({}) == 1
        assert server.mailbox.get(one)["WasRead"] is True
        assert server.mailbox.get(two)["WasRead"] is False

    def test_mark_important(self, server: Emulator) -> None:
        """Messages are marked as important, or the mark is removed."""
        one = server.mailbox.deliver()

        assert on_messages("important", f"[{one}]").execute({}) == 1
        assert server.mailbox.get(one)["Important"] is True
        operator = R7MailMarkImportantOperator(
            task_id="n", folder="24", message_ids=[one], important=False
        )
        assert operator.execute({}) == 1
        assert server.mailbox.get(one)["Important"] is False

    def test_move(self, server: Emulator) -> None:
        """Messages are moved to the other folder."""
        one, two = server.mailbox.deliver(), server.mailbox.deliver()

        assert on_messages("move", [one]).execute({}) == 1
        assert ids_in(server, INBOX) == [two]
        assert ids_in(server, PROCESSED) == [one]

    @pytest.mark.slow
    @pytest.mark.parametrize("move_id", ["same", "new", "later", "hidden"])
    def test_move_and_find(self, server: Emulator, move_id: Any) -> None:
        """R35: with `return_new_ids`, the next task gets the ids that the mail has after a move."""
        server.readings = Readings(move_id=move_id, move_seconds=0.3)
        box = server.mailbox
        scans = [box.deliver(date=MAY, mime_message_id="scan@host") for _ in range(3)]
        other = box.deliver(subject="other", date=MAY + timedelta(days=40))
        undated = box.deliver(fields={"Date": "0001-01-01T00:00:00"})
        box.deliver(date=MAY, mime_message_id="scan@host", folder=PROCESSED)
        mime_ids = {message["Id"]: message["MessageId"] for message in box.messages(INBOX)}
        ids = [other, *scans[1:], undated]

        found = moving(ids, settle_seconds=1.0).execute({})

        assert ids_in(server, INBOX) == scans[:1]
        assert isinstance(found, list)
        assert (found == ids) == (move_id == "same")
        assert len(set(found)) == 4
        for old, new in zip(ids, found, strict=True):
            assert box.get(new)["MessageId"] == mime_ids[old]
            assert box.get(new)["FolderId"] == PROCESSED
        mark = R7MailMarkReadOperator(task_id="mark", folder="processed", message_ids=found)
        assert mark.execute({}) == 4

    def test_move_and_find_nothing(self, server: Emulator) -> None:
        """R35: a moved message that the server doesn't list in time is an error, with its id."""
        one = server.mailbox.deliver(date=MAY)
        server.readings = Readings(move_id="hidden", move_seconds=60)
        move = moving([one], settle_seconds=0.1)

        with pytest.raises(AirflowFailException, match=rf"\[{one}\] were moved to folder 15"):
            move.execute({})
        with pytest.raises(AirflowFailException, match="Nothing was moved"):
            move.execute({})

    def test_move_and_find_in_a_later_try(self, server: Emulator) -> None:
        """R35, R23: if an earlier try moved the mail and its ids stay, they are returned."""
        one, two = server.mailbox.deliver(date=MAY), server.mailbox.deliver(date=MAY)
        server.mailbox.move(INBOX, [one], PROCESSED)
        move = moving([one, two], settle_seconds=0.1)

        assert move.execute(on_try(2)) == [one, two]
        assert ids_in(server, INBOX) == []

    def test_delete(self, server: Emulator) -> None:
        """Messages are deleted from the folder."""
        one, two = server.mailbox.deliver(), server.mailbox.deliver()

        assert on_messages("delete", [one]).execute({}) == 1
        assert ids_in(server, INBOX) == [two]

    @pytest.mark.parametrize("name", ON_MESSAGES)
    @pytest.mark.parametrize("ids", [[], "[]", "", None])
    def test_nothing_to_do(self, name: str, ids: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without messages the task succeeds and does nothing: no connection is needed."""
        monkeypatch.delenv(CONNECTION, raising=False)

        assert on_messages(name, ids).execute({}) in (0, [])

    @pytest.mark.parametrize("action", ["move", "delete"])
    def test_a_later_try_after_the_first_had_worked(self, server: Emulator, action: str) -> None:
        """If the first try did its work but failed afterwards, the second succeeds (R23)."""
        server.readings = Readings(repeat_answer="false")
        ids = [server.mailbox.deliver()]
        operator = on_messages(action, ids)
        operator.execute({})

        assert operator.execute(on_try(2)) == 1
        with pytest.raises(AirflowFailException, match="Not in folder"):
            operator.execute({})


class TestFailAtOnce:
    """What another try can't fix fails the task at once, whatever its `retries`."""

    @pytest.mark.parametrize("name", ON_MESSAGES)
    def test_unknown_folder(self, server: Emulator, name: str) -> None:
        """An unknown folder fails before any request; the error lists the known ones."""
        with pytest.raises(AirflowFailException, match="Known folders: 'inbox'") as caught:
            on_messages(name, [1], folder="nowhere").execute({})

        assert isinstance(caught.value.__cause__, R7MailConfigError)
        assert server.requests == []

    @pytest.mark.parametrize("name", ON_MESSAGES)
    def test_ids_that_are_no_numbers(self, server: Emulator, name: str) -> None:
        """MIME ids, or other text instead of ids, fail at once."""
        with pytest.raises(AirflowFailException, match="message_ids"):
            on_messages(name, ["first"]).execute({})
        assert server.requests == []

    @pytest.mark.parametrize("name", ON_MESSAGES)
    def test_missing_connection(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A missing connection fails at once; the error says which to add."""
        monkeypatch.delenv(CONNECTION, raising=False)

        with pytest.raises(AirflowFailException, match="no Airflow connection 'r7mail_default'"):
            on_messages(name, [1], folder=24).execute({})

    @pytest.mark.parametrize("name", [*ON_MESSAGES, "send"])
    def test_wrong_password(
        self, server: Emulator, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A wrong password fails at once, after a single login attempt."""
        values = {**json.loads(server.connection()), "password": "Wrong-Password"}
        monkeypatch.setenv(CONNECTION, json.dumps(values))
        if name == "send":
            operator: Any = R7MailSendOperator(task_id="send", **LETTER)
        else:
            operator = on_messages(name, [1])

        with pytest.raises(AirflowFailException, match="Check Login and Password") as caught:
            operator.execute({})

        assert isinstance(caught.value.__cause__, R7MailAuthError)
        assert server.logins == 1
        assert "Wrong-Password" not in str(caught.value)

    def test_other_failures_may_be_tried_again(self, server: Emulator) -> None:
        """After a proxy's failure the task's `retries` apply."""
        server.faults.append(Fault("Delete", None, status=503, body="<html>"))

        with pytest.raises(R7MailProxyError):
            on_messages("delete", [server.mailbox.deliver()]).execute({})


class TestSend:
    """R7MailSendOperator."""

    def test_it_is_sent(self, server: Emulator) -> None:
        """The message is sent; the result has the server's id and `accepted`."""
        file = server.mailbox.store_file("prices.csv", b"1", "text/csv")
        operator = R7MailSendOperator(
            task_id="send", **LETTER, cc="c@d.ru", bcc=["e@f.ru"], attachments=[file]
        )

        answer = operator.execute({})

        [sent] = server.mailbox.sent
        assert answer == {"id": sent["Id"], "accepted": True}
        assert sent == {
            "Subject": "Prices",
            "Body": "See below",
            "HtmlBody": "<p>See below</p>",
            "To": ["a@b.ru"],
            "Cc": ["c@d.ru"],
            "Bcc": ["e@f.ru"],
            "Attachments": [file],
            "Id": sent["Id"],
        }

    def test_dry_run(self, server: Emulator, logged: Callable[[], str]) -> None:
        """A dry run checks the parameters, logs the counts and sends nothing."""
        assert R7MailSendOperator(task_id="send", **LETTER, dry_run=True).execute({}) == {
            "id": None,
            "accepted": False,
        }
        assert server.requests == []
        assert "nothing is sent: 1 to, 0 cc, 0 bcc, attachments: 0" in logged()
        with pytest.raises(AirflowFailException, match="to: no address"):
            R7MailSendOperator(task_id="s", **{**LETTER, "to": ""}, dry_run=True).execute({})

    def test_unclear_is_not_tried_again(self, server: Emulator) -> None:
        """If it is unclear whether the message was sent, the task fails without another try."""
        server.faults.append(Fault("Send", None, status=502, after_acting=True))

        with pytest.raises(AirflowFailException, match="Sent folder") as caught:
            R7MailSendOperator(task_id="send", **LETTER).execute({})

        assert isinstance(caught.value.__cause__, R7MailSendUnclearError)
        assert len(server.mailbox.sent) == 1

    def test_a_path_is_no_attachment(self, server: Emulator) -> None:
        """A path in `attachments` fails; the error suggests `files`."""
        paths: list[Any] = ["/data/x.csv"]

        with pytest.raises(AirflowFailException, match=r"to upload in files"):
            R7MailSendOperator(task_id="send", **LETTER, attachments=paths).execute({})

    def test_logs_hold_numbers_only(self, server: Emulator, logged: Callable[[], str]) -> None:
        """The log contains ids and counts, but no address, subject or text."""
        R7MailSendOperator(task_id="send", **LETTER).execute({})
        ids = [server.mailbox.deliver(subject="Prices", body="See below")]
        on_messages("forward", ids).execute({})

        text = logged()
        assert "1 to, 0 cc" in text
        for secret in ("a@b.ru", "Prices", "See below", server.mailbox.password):
            assert secret not in text


class TestForward:
    """R7MailForwardOperator."""

    def test_messages_are_quoted_with_their_files(self, server: Emulator) -> None:
        """Each message is quoted below the comment, with its files by reference."""
        one = server.mailbox.deliver(
            subject="Prices\r\n <b>",
            html_body="<p>Body</p>",
            sender="s@x.ru",
            sender_name="<script>",
            attachments=[("a.csv", b"1", "text/csv")],
        )
        two = server.mailbox.deliver(subject="News", body="b", html_body="")
        operator = R7MailForwardOperator(
            task_id="f",
            folder="inbox",
            message_ids=[two, one],
            to=["a@b.ru", "c@d.ru"],
            comment_html="<p>FYI</p>",
        )

        answer = operator.execute({})

        news, prices = server.mailbox.sent
        assert answer == [
            {"message_id": two, "id": news["Id"], "accepted": True},
            {"message_id": one, "id": prices["Id"], "accepted": True},
        ]
        assert prices["To"] == ["a@b.ru", "c@d.ru"]
        assert prices["Subject"] == "Fwd: Prices <b>"
        assert prices["HtmlBody"].startswith("<p>FYI</p>")
        assert "<blockquote><p>Body</p></blockquote>" in prices["HtmlBody"]
        assert "&lt;script&gt; &lt;s@x.ru&gt;" in prices["HtmlBody"]
        assert "<script>" not in prices["HtmlBody"]
        assert [item["FileName"] for item in prices["Attachments"]] == ["a.csv"]
        assert news["Attachments"] == []
        assert "<blockquote><pre>b</pre></blockquote>" in news["HtmlBody"]
        assert server.logins == 1

    def test_all_are_found_before_one_is_sent(self, server: Emulator) -> None:
        """If an id is not in the folder, nothing is sent; the error lists the missing ids."""
        one = server.mailbox.deliver()

        with pytest.raises(AirflowFailException, match=r"\[4711, 4712\]") as caught:
            on_messages("forward", [4711, one, 4712]).execute({})

        assert isinstance(caught.value.__cause__, R7MailMessageNotFoundError)
        assert server.mailbox.sent == []

    def test_files_that_are_not_named(self, server: Emulator) -> None:
        """A message is not forwarded without its files if the listing doesn't name them (R17)."""
        plain = server.mailbox.deliver()
        filed = server.mailbox.deliver(attachments=[("a.csv", b"1", "text/csv")])
        server.readings = Readings(list_attachments=False)

        with pytest.raises(R7MailAttachmentError, match=str(filed)):
            on_messages("forward", [plain, filed]).execute({})
        assert server.mailbox.sent == []

    def test_a_failure_half_way(self, server: Emulator) -> None:
        """If one fails after others were sent, the error lists those, with no further try."""
        ids = [server.mailbox.deliver(subject=str(number)) for number in range(3)]
        server.faults.append(Fault("Send", skip=2, times=None, status=500))

        with pytest.raises(AirflowFailException, match="forwarded before") as caught:
            on_messages("forward", ids).execute({})

        assert f"message {ids[2]}; forwarded before: {ids[:2]}" in str(caught.value)
        assert len(server.mailbox.sent) == 2

    def test_the_first_fails(self, server: Emulator) -> None:
        """If the first is certainly not sent, nothing was, and the task may be retried."""
        ids = [server.mailbox.deliver(subject=str(number)) for number in range(2)]
        server.faults.append(Fault("Send", None, status=403))

        with pytest.raises(R7MailRequestError, match=f"message {ids[0]}; none was forwarded"):
            on_messages("forward", ids).execute({})
        assert server.mailbox.sent == []


def test_in_a_dag(server: Emulator, run_dag: Callable[[str], DagResult]) -> None:
    """In a DAG, ids come from a task's output or a template, and XComs are small."""
    file = server.mailbox.store_file("notes.txt", b"1", "text/plain")
    ids = [server.mailbox.deliver(subject=f"Prices {number}") for number in range(3)]

    result = run_dag(f"""
        from airflow.sdk import DAG
        from airflow_provider_r7mail.operators import (
            R7MailDeleteOperator,
            R7MailForwardOperator,
            R7MailMarkImportantOperator,
            R7MailMarkReadOperator,
            R7MailMoveOperator,
            R7MailSendOperator,
        )
        from airflow_provider_r7mail.sensors import R7MailMessageSensor

        with DAG("acts", params={{"folder": "inbox", "name": "Q3"}}) as dag:
            found = R7MailMessageSensor(task_id="found", folder="{{{{ params.folder }}}}")
            text = "{{{{ ti.xcom_pull(task_ids='found') }}}}"
            both = {{"folder": 24, "message_ids": text}}
            read = R7MailMarkReadOperator(task_id="read", **both)
            important = R7MailMarkImportantOperator(task_id="important", **both)
            forward = R7MailForwardOperator(task_id="forward", to="a@b.ru", **both)
            move = R7MailMoveOperator(
                task_id="move", folder="inbox", message_ids=found.output, to_folder="processed"
            )
            delete = R7MailDeleteOperator(
                task_id="delete", folder="processed", message_ids="{{{{ [{ids[0]}] }}}}"
            )
            send = R7MailSendOperator(
                task_id="send", subject="{{{{ params.name }}}}",
                to="{{{{ ['a@b.ru', 'c@d.ru'] }}}}",
                html_content="<p>{{{{ params.name }}}}</p>", draft_id="{{{{ 0 }}}}",
                attachments=[{{**{file!r}, "FileName": "{{{{ params.name }}}}.txt"}}],
            )
            found >> read >> important >> forward >> move >> delete >> send
    """)

    assert set(result.states.values()) == {"success"}
    assert sorted(result.xcom("found")) == ids
    assert [result.xcom(task) for task in ("read", "important", "move", "delete")] == [3, 3, 3, 1]
    assert sorted(entry["message_id"] for entry in result.xcom("forward")) == ids
    sent = server.mailbox.sent[-1]
    assert result.xcom("send") == {"id": sent["Id"], "accepted": True}
    assert sent["To"] == ["a@b.ru", "c@d.ru"]
    assert sent["Subject"] == "Q3"
    assert [item["FileName"] for item in sent["Attachments"]] == ["Q3.txt"]
    assert ids_in(server, PROCESSED) == ids[1:]
    assert all(message["WasRead"] for message in server.mailbox.messages(PROCESSED))


def test_templates_in_files(server: Emulator, run_dag: Callable[[str], DagResult]) -> None:
    """The body may be a template file next to the DAG; nothing else is taken for one."""
    result = run_dag("""
        from pathlib import Path
        from airflow.sdk import DAG
        from airflow_provider_r7mail.operators import R7MailSendOperator

        Path(__file__).with_name("report.html").write_text("<p>{{ dag.dag_id }}</p>")
        with DAG("report") as dag:
            R7MailSendOperator(
                task_id="send",
                to=["{{ dag.dag_id }}@b.txt", "c@d.html"],
                subject="{{ dag.dag_id }} is in prices.txt",
                html_content="report.html",
                links=["https://example.org/{{ dag.dag_id }}.html", {"url": "https://a.ru/b.txt"}],
            )
    """)

    assert result.states == {"send": "success"}
    [sent] = server.mailbox.sent
    assert sent["Subject"] == "report is in prices.txt"
    assert sent["To"] == ["report@b.txt", "c@d.html"]
    assert "https://example.org/report.html" in sent["HtmlBody"]
    assert "https://a.ru/b.txt" in sent["HtmlBody"]
    assert sent["HtmlBody"].startswith("<p>report</p><ul>")


# -- never twice, in a real Airflow ------------------------------------------------------------

KEEPS_RECORDS = pytest.mark.skipif(AIRFLOW < (3, 3), reason="Airflow 3.3 has the task state store")
HEAD = """
    from datetime import timedelta
    from airflow.sdk import DAG, task
    from airflow_provider_r7mail.operators import R7MailForwardOperator, R7MailSendOperator

    retry = {"retries": 2, "retry_delay": timedelta(0)}
    letter = {"to": "a@b.ru", "subject": "Prices", "html_content": "<p>See below</p>"}
"""


def count(server: Emulator, name: str) -> int:
    """Number of calls of an endpoint."""
    return sum(request["path"].endswith(name) for request in server.requests)


@KEEPS_RECORDS
@pytest.mark.parametrize("sent_folder", [None, "sent"])
@pytest.mark.parametrize(
    "fault",
    [Fault("Send", 1, status=403), Fault("Send", 2, status=429, headers={"Retry-After": "0"})],
    ids=["refused", "too many"],
)
def test_what_was_surely_not_sent_is_tried_again(
    server: Emulator, run_dag: Callable[[str], DagResult], fault: Fault, sent_folder: str | None
) -> None:
    """After a refusal the task is retried without looking first; one message arrives."""
    server.faults.append(fault)

    result = run_dag(f"""{HEAD}
    with DAG("refused") as dag:
        R7MailSendOperator(task_id="send", **letter, **retry, sent_folder={sent_folder!r})
    """)

    assert result.states == {"send": "success"}
    assert len(server.mailbox.sent) == 1
    assert count(server, "Messages") == 0


@pytest.fixture
def tidy() -> None:
    """Collect the garbage of earlier tests: a timeout's signal is lost in a `__del__`."""
    gc.collect()


@KEEPS_RECORDS
@pytest.mark.usefixtures("tidy")
def test_killed_by_its_time_out(server: Emulator, run_dag: Callable[[str], DagResult]) -> None:
    """A task that timed out waiting for the answer to Send looks first when retried."""
    server.faults.append(Fault("Send", kind="hang", after_acting=True))

    result = run_dag(f"""{HEAD}
    with DAG("timeout") as dag:
        R7MailSendOperator(
            task_id="send", **letter, **retry, sent_folder="sent", settle_seconds=5,
            execution_timeout=timedelta(seconds=3),
        )
    """)

    assert result.states == {"send": "success"}
    assert result.xcom("send") == {"id": server.mailbox.sent[0]["Id"], "accepted": True}
    assert len(server.mailbox.sent) == 1


@KEEPS_RECORDS
@pytest.mark.usefixtures("tidy")
def test_killed_with_nowhere_to_look(
    server: Emulator, run_dag: Callable[[str], DagResult], logged: Callable[[], str]
) -> None:
    """Without sent_folder such a task fails, and a person has to look; nothing is sent twice."""
    server.faults.append(Fault("Send", kind="hang", after_acting=True))

    result = run_dag(f"""{HEAD}
    with DAG("nowhere") as dag:
        R7MailSendOperator(
            task_id="send", **letter, **retry, execution_timeout=timedelta(seconds=3)
        )
    """)

    assert result.states == {"send": "failed"}
    assert len(server.mailbox.sent) == 1
    assert count(server, "Send") == 1
    text = logged()
    assert "an earlier try may have sent it, and no sent_folder is given" in text
    assert "AirflowFailException" in text


@KEEPS_RECORDS
def test_the_folder_is_read_by_a_later_try(
    server: Emulator, run_dag: Callable[[str], DagResult]
) -> None:
    """If the Sent folder can't be read, the next try reads it before it sends anything."""
    server.faults.append(Fault("Send", status=502, after_acting=True))
    server.faults.append(Fault("Messages", 2, status=500))

    result = run_dag(f"""{HEAD}
    with DAG("later") as dag:
        R7MailSendOperator(
            task_id="send", **letter, **retry, sent_folder="sent", settle_seconds=0
        )
    """)

    assert result.states == {"send": "success"}
    assert len(server.mailbox.sent) == 1


@KEEPS_RECORDS
@pytest.mark.parametrize("sent_folder", [None, "sent"])
def test_a_cleared_task_sends_nothing_twice(
    server: Emulator, run_dag: Callable[[str], DagResult], sent_folder: str | None
) -> None:
    """Clearing a task that has sent its message sends nothing; the task succeeds."""
    result = run_dag(f"""{HEAD}
    with DAG("cleared") as dag:
        R7MailSendOperator(task_id="send", **letter, sent_folder={sent_folder!r})
    """)
    before = result.xcom("send")

    again = result.clear("send")

    assert again.states == {"send": "success"}
    assert again.xcom("send") == before
    assert len(server.mailbox.sent) == 1


@KEEPS_RECORDS
def test_send_it_anyway(server: Emulator, run_dag: Callable[[str], DagResult]) -> None:
    """A person can make a task send again, by changing its record in Airflow."""
    result = run_dag(f"""{HEAD}
    with DAG("anyway") as dag:
        R7MailSendOperator(task_id="send", **letter, sent_folder="sent")
    """)
    result.set_state("send", "r7mail_sent", "resend")

    result.clear("send")
    assert len(server.mailbox.sent) == 2
    result.clear("send")

    assert len(server.mailbox.sent) == 2, "it is sent anyway once"


@KEEPS_RECORDS
def test_records_that_are_lost(
    server: Emulator, run_dag: Callable[[str], DagResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If Airflow deletes the records of successful tasks, the Sent folder is checked."""
    monkeypatch.setenv("AIRFLOW__STATE_STORE__CLEAR_ON_SUCCESS", "True")
    result = run_dag(f"""{HEAD}
    with DAG("forgets") as dag:
        R7MailSendOperator(task_id="looks", **letter, sent_folder="sent", settle_seconds=0)
        R7MailSendOperator(task_id="blind", **{{**letter, "to": "c@d.ru"}})
    """)

    assert result.clear("looks").states["looks"] == "success"
    assert result.clear("blind").states["blind"] == "failed"

    assert len(server.mailbox.sent) == 2


@KEEPS_RECORDS
@pytest.mark.parametrize(
    "value", ["again", {"x": "again"}, {"x": {}}, {"x": {"state": "sent", "since": "now"}}], ids=str
)
def test_a_record_that_is_none(
    server: Emulator, run_dag: Callable[[str], DagResult], logged: Callable[[], str], value: Any
) -> None:
    """For an invalid record, the error says how to fix it; nothing is sent."""
    result = run_dag(f"""{HEAD}
    with DAG("spoilt") as dag:
        R7MailSendOperator(task_id="send", **letter)
    """)
    result.set_state("send", "r7mail_sent", value)

    assert result.clear("send").states == {"send": "failed"}

    assert "The task's state 'r7mail_sent' is not a record" in logged()
    assert len(server.mailbox.sent) == 1


@KEEPS_RECORDS
def test_the_outcome_cannot_be_recorded(
    server: Emulator,
    run_dag: Callable[[str], DagResult],
    monkeypatch: pytest.MonkeyPatch,
    logged: Callable[[], str],
) -> None:
    """The task succeeds once the message is sent, even if Airflow can't record it."""
    from airflow.sdk.execution_time.context import TaskStateStoreAccessor  # noqa: PLC0415

    keep = TaskStateStoreAccessor.set

    def fail(self: Any, key: str, value: Any, **options: Any) -> None:
        if '"sent"' in json.dumps(value):
            raise RuntimeError("no API server")
        keep(self, key, value, **options)

    monkeypatch.setattr(TaskStateStoreAccessor, "set", fail)
    result = run_dag(f"""{HEAD}
    with DAG("unrecorded") as dag:
        R7MailSendOperator(task_id="send", **letter, **retry)
    """)

    assert result.states == {"send": "success"}
    assert len(server.mailbox.sent) == 1
    assert "store failed (RuntimeError)" in logged()
    # Cleared, it knows that it may have been sent, and has nowhere to look.
    assert result.clear("send").states == {"send": "failed"}
    assert len(server.mailbox.sent) == 1


MAPPED = """
    with DAG("mapped") as dag:
        @task
        def recipients() -> list[dict]:
            from pathlib import Path
            names = Path({path!r}).read_text().split()
            return [
                dict(to=f"{{name}}@b.ru", subject=f"For {{name}}", html_content=f"<p>{{name}}</p>")
                for name in names
            ]
        R7MailSendOperator.partial(
            task_id="send", sent_folder="sent", settle_seconds=0.5, **retry
        ).expand_kwargs(recipients())
"""


@KEEPS_RECORDS
def test_mapped_over_recipients(
    server: Emulator, run_dag: Callable[[str], DagResult], tmp_path: Path
) -> None:
    """Each recipient has a separate message and outcome; retries send only what failed."""
    names = tmp_path / "names"
    names.write_text("ann bob cid")
    server.faults.append(Fault("Send", 1, skip=1, kind="reset", after_acting=True))
    server.faults.append(Fault("Send", 1, status=502))

    result = run_dag(HEAD + MAPPED.format(path=str(names)))

    assert result.state == "success"
    assert sorted((sent["To"], sent["Subject"]) for sent in server.mailbox.sent) == [
        (["ann@b.ru"], "For ann"),
        (["bob@b.ru"], "For bob"),
        (["cid@b.ru"], "For cid"),
    ]
    # The list has shifted when all is cleared: who had it does not get it again.
    names.write_text("dan ann cid bob")
    result.clear("recipients")
    for map_index in range(3):
        result = result.clear("send", map_index)
    sent_to = sorted(address for sent in server.mailbox.sent for address in sent["To"])
    assert sent_to == ["ann@b.ru", "bob@b.ru", "cid@b.ru", "dan@b.ru"]


@KEEPS_RECORDS
@pytest.mark.parametrize("sent_folder", [None, "sent"])
def test_forwarding_goes_on_where_it_stopped(
    server: Emulator, run_dag: Callable[[str], DagResult], sent_folder: str | None
) -> None:
    """A later try forwards only what was not forwarded."""
    ids = [server.mailbox.deliver(subject=str(number)) for number in range(3)]
    server.faults.append(Fault("Send", 1, skip=2, status=403))

    result = run_dag(f"""{HEAD}
    with DAG("goes_on") as dag:
        R7MailForwardOperator(
            task_id="forward", folder="inbox", message_ids={ids}, to="a@b.ru", **retry,
            sent_folder={sent_folder!r},
        )
    """)
    again = result.clear("forward")

    assert again.states == {"forward": "success"}
    assert [entry["message_id"] for entry in again.xcom("forward")] == ids
    assert [sent["Subject"] for sent in server.mailbox.sent] == ["Fwd: 0", "Fwd: 1", "Fwd: 2"]
    assert count(server, "Send") == 4


def work(path: Path, environment: dict[str, str]) -> None:
    """Run a DAG's file, as a worker does."""
    os.environ.update(environment)
    warnings.simplefilter("ignore")
    runpy.run_path(str(path), run_name="__main__")


@KEEPS_RECORDS
@pytest.mark.parametrize("sent_folder", [None, "sent"])
def test_worker_killed_between_send_and_finish(
    airflow_database: None, monkeypatch: pytest.MonkeyPatch, sent_folder: str | None
) -> None:
    """The worker is killed (-9) after the server got the message: nothing is sent twice."""
    from airflow.models.dagrun import DagRun  # noqa: PLC0415
    from airflow.utils.session import create_session  # noqa: PLC0415
    from sqlalchemy import select  # noqa: PLC0415

    workers: list[Any] = []

    def kill(request: Any) -> None:
        if request["path"].endswith("/Send") and workers:
            workers.pop().kill()

    path = DAGS / f"killed_{sent_folder}.py"
    name = f"killed_{sent_folder}"
    path.write_text(
        textwrap.dedent(f"""{HEAD}
    with DAG({name!r}) as dag:
        R7MailSendOperator(
            task_id="send", **letter, sent_folder={sent_folder!r}, settle_seconds=2
        )
    if __name__ == "__main__":
        dag.test()
    """)
    )
    with Emulator(Mailbox(), on_request=kill) as server:
        monkeypatch.setenv(CONNECTION, server.connection())
        worker = CHILDREN.Process(target=work, args=(path, dict(os.environ)))
        workers.append(worker)
        worker.start()
        worker.join()
        assert worker.exitcode == -9
        assert len(server.mailbox.sent) == 1
        with create_session() as session:
            run = session.scalar(select(DagRun).where(DagRun.dag_id == name))
            assert run is not None
            [ti] = run.get_task_instances(session=session)
            ti.state = "failed"  # as the scheduler does, when no heartbeat comes
            session.commit()
        namespace: dict[str, Any] = {"__name__": name, "__file__": str(path)}
        exec(compile(path.read_text(), path, "exec"), namespace)

        again = DagResult(run, namespace["dag"]).clear("send")

        assert again.states == {"send": "success" if sent_folder else "failed"}
        assert len(server.mailbox.sent) == 1
    path.unlink()


class TestWithoutRecords:
    """Airflow before 3.3 keeps no records between tries."""

    def test_the_sent_folder_tells(self, server: Emulator) -> None:
        """A later try looks first; its time to settle begins when it starts."""
        operator = R7MailSendOperator(
            task_id="send", **LETTER, sent_folder=SENT, settle_seconds=0.5
        )
        first = operator.execute(on_try(1))
        begun = time.monotonic()

        assert operator.execute(on_try(2)) == first
        assert 1 <= count(server, "Messages") <= 6  # up to five find out what server it is
        server.mailbox.delete(SENT, [first["id"] or 0])
        operator.execute(on_try(2))

        assert len(server.mailbox.sent) == 2
        assert time.monotonic() - begun > 0.5

    def test_nothing_tells(self, server: Emulator) -> None:
        """Without sent_folder a later try sends nothing: the first may have."""
        operator = R7MailSendOperator(task_id="send", **LETTER)

        with pytest.raises(AirflowFailException, match="no sent_folder is given"):
            operator.execute(on_try(2))
        assert server.requests == []

    @pytest.mark.slow
    def test_forwarding(self, server: Emulator) -> None:
        """Forwarded messages are found, and the time to settle is spent once for all."""
        ids = [server.mailbox.deliver(subject=str(number)) for number in range(9)]
        values: dict[str, Any] = {"task_id": "f", "folder": INBOX, "to": "a@b.ru"}
        options: dict[str, Any] = {"sent_folder": "sent", "settle_seconds": 1.0}
        R7MailForwardOperator(message_ids=ids[:2], **values).execute(on_try(1))
        begun = time.monotonic()

        R7MailForwardOperator(message_ids=ids, **values, **options).execute(on_try(2))

        assert sorted(sent["Subject"] for sent in server.mailbox.sent) == [
            f"Fwd: {number}" for number in range(9)
        ]
        assert time.monotonic() - begun < 6  # one after the other: 7 and more


# -- what goes into a message ------------------------------------------------------------------


def test_templates_escape(server: Emulator, run_dag: Callable[[str], DagResult]) -> None:
    """Values in HTML templates are escaped, unless they are marked safe."""
    ids = [server.mailbox.deliver(subject="News")]
    result = run_dag(f"""{HEAD}
    from pathlib import Path
    Path(__file__).with_name("part.html").write_text("<i>{{{{ params.evil }}}}</i>")
    Path(__file__).with_name("whole.html").write_text(
        "<p>{{{{ params.evil }}}}</p>{{% include 'part.html' %}}{{{{ params.rows | html_table }}}}"
    )
    with DAG("escape", params={{"evil": "<b>&", "rows": [{{"<th>": "<td>&"}}]}}) as dag:
        text = "{{{{ params.evil }}}}"
        one = R7MailSendOperator(
            task_id="one", to="a@b.ru", subject=text, html_content="whole.html", text_content=text
        )
        two = R7MailSendOperator(
            task_id="two", to="a@b.ru", subject=text, html_content="{{{{ params.evil | safe }}}}"
        )
        three = R7MailForwardOperator(
            task_id="three", to="a@b.ru", folder=24, message_ids={ids}, comment_html=text
        )
        one >> two >> three
    """)

    assert set(result.states.values()) == {"success"}
    one, two, three = server.mailbox.sent
    assert one["Subject"] == one["Body"] == two["Subject"] == "<b>&"
    assert one["HtmlBody"].startswith("<p>&lt;b&gt;&amp;</p><i>&lt;b&gt;&amp;</i><table")
    assert "<th>&lt;th&gt;</th>" in one["HtmlBody"]
    assert "<td>&lt;td&gt;&amp;</td>" in one["HtmlBody"]
    assert two["HtmlBody"].startswith("<b>&<div")
    assert three["HtmlBody"].startswith("&lt;b&gt;&amp;<p>")


def test_links(server: Emulator, tmp_path: Path) -> None:
    """Files are linked to by their plain URL if the store can't sign links."""
    operator = R7MailSendOperator(
        task_id="send",
        **LETTER,
        links=[
            "https://example.org/a/report%20one.csv?x=1&y=2",
            {"url": f"file://{tmp_path}/b.csv", "name": "<all rows>"},
        ],
    )

    operator.execute({})

    [sent] = server.mailbox.sent
    assert (
        '<li><a href="https://example.org/a/report%20one.csv?x=1&amp;y=2">report one.csv</a></li>'
        in sent["HtmlBody"]
    )
    assert f'<a href="file://{tmp_path}/b.csv">&lt;all rows&gt;</a>' in sent["HtmlBody"]
    assert f"<all rows>: file://{tmp_path}/b.csv" in sent["Body"]


def test_links_to_s3_are_signed(server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signed link to object storage works without an account there, for a limited time."""
    monkeypatch.setenv(
        "AIRFLOW_CONN_LAKE",
        json.dumps({"conn_type": "aws", "login": "key", "password": "Secret-Key"}),
    )
    operator = R7MailSendOperator(
        task_id="send",
        **LETTER,
        links=["s3://bucket/отчёт.csv"],
        link_seconds=3600,
        storage_conn_id="lake",
    )

    operator.execute({})

    [sent] = server.mailbox.sent
    [url] = re.findall(r"отчёт.csv: (\S+)", sent["Body"])
    assert url.startswith("https://bucket.s3.")
    assert "Signature=" in url
    assert "Secret-Key" not in url


@pytest.mark.parametrize("name", ["links", "files"])
@pytest.mark.parametrize(
    ("url", "conn_id"), [("s3://bucket/a.csv", "lkae"), ("s3://lkae@bucket/a.csv", None)]
)
def test_a_store_without_a_connection(
    server: Emulator, name: str, url: str, conn_id: str | None
) -> None:
    """A misspelt connection of a store is an error: no link is sent that nobody can open."""
    given: dict[str, Any] = {name: [url], "storage_conn_id": conn_id}

    with pytest.raises(AirflowFailException, match=rf"{name}\[0\]: The conn_id `lkae` isn't"):
        R7MailSendOperator(task_id="send", **LETTER, **given).execute({})
    assert server.requests == []


@pytest.mark.parametrize("link", ["/data/report.csv", "javascript:alert(1)", "nosuch://a/b", None])
def test_links_that_are_none(server: Emulator, link: Any) -> None:
    """A path on the worker's disk, or a script, is not a link: nothing is sent."""
    with pytest.raises(AirflowFailException, match=r"links\[0\]: no"):
        R7MailSendOperator(task_id="send", **LETTER, links=[link]).execute({})
    assert server.requests == []


@pytest.mark.parametrize(
    "values",
    [
        {"to": "a@b.ru\r\nBcc: x@y.ru"},
        {"cc": "a@b.ru\nc@d.ru"},
        {"subject": "s\r\nBcc: x@y.ru"},
        {"to": "a@b.ru, nobody"},
        {"settle_seconds": -1},
        {"sent_folder": "nowhere"},
    ],
    ids=str,
)
def test_wrong_parameters(server: Emulator, values: dict[str, Any]) -> None:
    """A line break in an address or subject, or another wrong parameter: nothing is sent."""
    with pytest.raises(AirflowFailException):
        R7MailSendOperator(task_id="send", **{**LETTER, **values}).execute({})
    assert server.requests == []


def test_dry_run_of_forwarding(server: Emulator, logged: Callable[[], str]) -> None:
    """A dry run logs the messages' ids and forwards nothing."""
    ids = [server.mailbox.deliver(), server.mailbox.deliver()]
    operator = R7MailForwardOperator(
        task_id="f", folder=24, message_ids=ids, to="a@b.ru", dry_run=True
    )

    assert operator.execute({}) == [
        {"message_id": number, "id": None, "accepted": False} for number in ids
    ]
    assert f"nothing is sent: messages {ids}, 1 to" in logged()
    assert server.mailbox.sent == []


def test_constructors_only_store() -> None:
    """Constructors check and read nothing: Airflow parses DAG files all the time."""
    nonsense: Any = ["x"]
    R7MailSendOperator(task_id="a", to="", subject="\n", html_content="", attachments=nonsense)
    for name in ON_MESSAGES:
        on_messages(name, "nonsense", folder="nowhere")
