"""The operators: what they do to a mailbox, and how they fail."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_r7mail.emulator import Emulator, Fault, Readings
from airflow_provider_r7mail.exceptions import (
    R7MailActionError,
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

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import DagResult

CONNECTION = "AIRFLOW_CONN_R7MAIL_DEFAULT"
INBOX, PROCESSED = 24, 15

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


def ids_in(server: Emulator, folder: int) -> list[int]:
    """The ids of a folder's messages."""
    return [message["Id"] for message in server.mailbox.messages(folder)]


class TestOnMessages:
    """Mark, move and delete."""

    def test_mark_read(self, server: Emulator) -> None:
        """Messages are marked read, or unread again."""
        one, two = server.mailbox.deliver(), server.mailbox.deliver()

        assert on_messages("read", [one, two]).execute({}) == 2
        unread = R7MailMarkReadOperator(task_id="u", folder=24, message_ids=[two], read=False)
        assert unread.execute({}) == 1
        assert server.mailbox.get(one)["WasRead"] is True
        assert server.mailbox.get(two)["WasRead"] is False

    def test_mark_important(self, server: Emulator) -> None:
        """Messages are marked important, or not any more."""
        one = server.mailbox.deliver()

        assert on_messages("important", f"[{one}]").execute({}) == 1
        assert server.mailbox.get(one)["Important"] is True
        operator = R7MailMarkImportantOperator(
            task_id="n", folder="24", message_ids=[one], important=False
        )
        assert operator.execute({}) == 1
        assert server.mailbox.get(one)["Important"] is False

    def test_move(self, server: Emulator) -> None:
        """Messages leave the folder and are in the other one."""
        one, two = server.mailbox.deliver(), server.mailbox.deliver()

        assert on_messages("move", [one]).execute({}) == 1
        assert ids_in(server, INBOX) == [two]
        assert ids_in(server, PROCESSED) == [one]

    def test_delete(self, server: Emulator) -> None:
        """Messages leave the folder."""
        one, two = server.mailbox.deliver(), server.mailbox.deliver()

        assert on_messages("delete", [one]).execute({}) == 1
        assert ids_in(server, INBOX) == [two]

    @pytest.mark.parametrize("name", ON_MESSAGES)
    @pytest.mark.parametrize("ids", [[], "[]", "", None])
    def test_nothing_to_do(self, name: str, ids: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """With no messages the task succeeds and does nothing: no connection is needed."""
        monkeypatch.delenv(CONNECTION, raising=False)

        assert on_messages(name, ids).execute({}) in (0, [])

    @pytest.mark.parametrize("action", ["move", "delete"])
    def test_a_later_try_after_the_first_had_worked(self, server: Emulator, action: str) -> None:
        """If the first try of the task had worked unseen, the second succeeds too (R23)."""
        server.readings = Readings(repeat_answer="false")
        ids = [server.mailbox.deliver()]
        operator = on_messages(action, ids)
        operator.execute({})

        class SecondTry:
            try_number = 2

        assert operator.execute({"ti": SecondTry()}) == 1
        with pytest.raises(R7MailActionError):
            operator.execute({})


class TestFailAtOnce:
    """What a later try of the task can't mend fails the task at once, whatever its retries."""

    @pytest.mark.parametrize("name", ON_MESSAGES)
    def test_unknown_folder(self, server: Emulator, name: str) -> None:
        """An unknown folder fails at once, with the list of known ones, before any request."""
        with pytest.raises(AirflowFailException, match="known are: 'inbox'") as caught:
            on_messages(name, [1], folder="nowhere").execute({})

        assert isinstance(caught.value.__cause__, R7MailConfigError)
        assert server.requests == []

    @pytest.mark.parametrize("name", ON_MESSAGES)
    def test_ids_that_are_no_numbers(self, server: Emulator, name: str) -> None:
        """MIME ids, or other texts, in place of ids fail at once."""
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
        """A wrong password fails at once, after a single attempt to log in."""
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
        """A proxy's failure leaves the task to its retries."""
        server.faults.append(Fault("Delete", None, status=503, body="<html>"))

        with pytest.raises(R7MailProxyError):
            on_messages("delete", [server.mailbox.deliver()]).execute({})


class TestSend:
    """R7MailSendOperator."""

    def test_it_is_sent(self, server: Emulator) -> None:
        """The message is sent; the result is the server's id and that it was accepted."""
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
        """A dry run checks the parameters, logs the numbers and sends nothing."""
        assert R7MailSendOperator(task_id="send", **LETTER, dry_run=True).execute({}) == {
            "id": None,
            "accepted": False,
        }
        assert server.requests == []
        assert "nothing is sent: 1 to, 0 cc, 0 bcc, 0 attachments" in logged()
        with pytest.raises(AirflowFailException, match="to: no address"):
            R7MailSendOperator(task_id="s", **{**LETTER, "to": ""}, dry_run=True).execute({})

    def test_unclear_is_not_tried_again(self, server: Emulator) -> None:
        """If it is unclear whether it was sent, the task fails at once, and was sent once."""
        server.faults.append(Fault("Send", None, status=502, after_acting=True))

        with pytest.raises(AirflowFailException, match="Sent folder") as caught:
            R7MailSendOperator(task_id="send", **LETTER).execute({})

        assert isinstance(caught.value.__cause__, R7MailSendUnclearError)
        assert len(server.mailbox.sent) == 1

    def test_a_file_cannot_be_uploaded(self, server: Emulator) -> None:
        """A path as attachment fails with the way out: a link to the file."""
        paths: list[Any] = ["/data/x.csv"]

        with pytest.raises(AirflowFailException, match=r"no upload.*send a link"):
            R7MailSendOperator(task_id="send", **LETTER, attachments=paths).execute({})

    def test_logs_hold_numbers_only(self, server: Emulator, logged: Callable[[], str]) -> None:
        """The log tells ids and numbers; no address, subject or text."""
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
        """Each message goes out under the comment, with its files by reference."""
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
        """If an id is not in the folder nothing is sent; the error names the missing ids."""
        one = server.mailbox.deliver()

        with pytest.raises(AirflowFailException, match=r"\[4711, 4712\]") as caught:
            on_messages("forward", [4711, one, 4712]).execute({})

        assert isinstance(caught.value.__cause__, R7MailMessageNotFoundError)
        assert server.mailbox.sent == []

    def test_files_that_are_not_named(self, server: Emulator) -> None:
        """A message whose files the listing does not name is not forwarded without them (R17)."""
        plain = server.mailbox.deliver()
        filed = server.mailbox.deliver(attachments=[("a.csv", b"1", "text/csv")])
        server.readings = Readings(list_attachments=False)

        with pytest.raises(R7MailAttachmentError, match=str(filed)):
            on_messages("forward", [plain, filed]).execute({})
        assert server.mailbox.sent == []

    def test_a_failure_half_way(self, server: Emulator) -> None:
        """If one fails after others were sent, these are named, and the task is not tried again."""
        ids = [server.mailbox.deliver(subject=str(number)) for number in range(3)]
        server.faults.append(Fault("Send", skip=2, times=None, status=500))

        with pytest.raises(AirflowFailException, match="forwarded before") as caught:
            on_messages("forward", ids).execute({})

        assert f"message {ids[2]}; forwarded before: {ids[:2]}" in str(caught.value)
        assert len(server.mailbox.sent) == 2

    def test_the_first_fails(self, server: Emulator) -> None:
        """If the first is surely not sent, nothing is, and the task may be tried again."""
        ids = [server.mailbox.deliver(subject=str(number)) for number in range(2)]
        server.faults.append(Fault("Send", None, status=403))

        with pytest.raises(R7MailRequestError, match=f"message {ids[0]}; none was forwarded"):
            on_messages("forward", ids).execute({})
        assert server.mailbox.sent == []


def test_in_a_dag(server: Emulator, run_dag: Callable[[str], DagResult]) -> None:
    """In a DAG, ids come from XCom as a list or through a template, and results are small."""
    file = server.mailbox.store_file("notes.txt", b"1", "text/plain")
    ids = [server.mailbox.deliver(subject=f"Prices {number}") for number in range(3)]

    result = run_dag(f"""
        from airflow.sdk import DAG
        from airflow_provider_r7mail.operators import (
            R7MailDeleteOperator, R7MailForwardOperator, R7MailMarkImportantOperator,
            R7MailMarkReadOperator, R7MailMoveOperator, R7MailSendOperator,
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
    assert result.xcom("found") == ids
    assert [result.xcom(task) for task in ("read", "important", "move", "delete")] == [3, 3, 3, 1]
    assert [entry["message_id"] for entry in result.xcom("forward")] == ids
    sent = server.mailbox.sent[-1]
    assert result.xcom("send") == {"id": sent["Id"], "accepted": True}
    assert sent["To"] == ["a@b.ru", "c@d.ru"]
    assert sent["Subject"] == "Q3"
    assert [item["FileName"] for item in sent["Attachments"]] == ["Q3.txt"]
    assert ids_in(server, PROCESSED) == ids[1:]
    assert all(message["WasRead"] for message in server.mailbox.messages(PROCESSED))


def test_templates_in_files(server: Emulator, run_dag: Callable[[str], DagResult]) -> None:
    """The body may be a template in a file beside the DAG."""
    result = run_dag("""
        from pathlib import Path
        from airflow.sdk import DAG
        from airflow_provider_r7mail.operators import R7MailSendOperator

        Path(__file__).with_name("report.html").write_text("<p>{{ dag.dag_id }}</p>")
        with DAG("report") as dag:
            R7MailSendOperator(task_id="send", to="a@b.ru", subject="s", html_content="report.html")
    """)

    assert result.states == {"send": "success"}
    assert server.mailbox.sent[0]["HtmlBody"] == "<p>report</p>"


def test_constructors_only_store() -> None:
    """Making an operator checks nothing and reads nothing: DAG files are parsed all the time."""
    nonsense: Any = ["x"]
    R7MailSendOperator(task_id="a", to="", subject="\n", html_content="", attachments=nonsense)
    for name in ON_MESSAGES:
        on_messages(name, "nonsense", folder="nowhere")
