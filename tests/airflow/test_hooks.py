"""The hook, against the emulator on a real socket."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import ssl
import sys
import time
from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_r7mail.client.answers import parse_page
from airflow_provider_r7mail.client.calls import list_messages, mark_as_read
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.compat import redact
from airflow_provider_r7mail.emulator import Emulator, Fault, Mailbox, Readings
from airflow_provider_r7mail.emulator.folders import SENT
from airflow_provider_r7mail.exceptions import (
    R7MailActionError,
    R7MailAuthError,
    R7MailConfigError,
    R7MailConnectionError,
    R7MailMessageNotFoundError,
    R7MailProxyError,
    R7MailRequestError,
    R7MailSendUnclearError,
    R7MailServerError,
)
from airflow_provider_r7mail.filters import FILTER_FIELDS
from airflow_provider_r7mail.hooks import R7MailHook
from airflow_provider_r7mail.lake.schema import schema
from tests.conftest import CONNECTION
from tests.wire import Certificates, Proxy, Wire, free_port, full_port, reply

if TYPE_CHECKING:
    from pathlib import Path

INBOX, PROCESSED = 24, 15


class Saying(Wire):
    """A server that sends the same answer to every connection.

    :param pause: seconds between two bytes
    """

    def __init__(
        self, answer: bytes, *, pause: float = 0.0, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(tls=tls)
        self._said = answer
        self._pause = pause

    def talk(self, connection: socket.socket, stream: Any, number: int) -> None:
        """Wait for the first line, then answer."""
        stream.readline()
        for place in range(len(self._said)) if self._pause else ():
            connection.sendall(self._said[place : place + 1])
            time.sleep(self._pause)
        if not self._pause:
            connection.sendall(self._said)


def paths(server: Emulator) -> list[str]:
    """The calls that the server received."""
    return [request["path"].rpartition("/")[2] for request in server.requests]


def test_missing_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the connection is missing, the error says which one to add, and of which type."""
    monkeypatch.delenv(CONNECTION, raising=False)
    hook = R7MailHook("no_such_mail")

    with pytest.raises(R7MailConfigError, match=r"'no_such_mail'.*'r7mail'"):
        hook.get_conn()
    assert hook.test_connection()[0] is False


async def test_missing_connection_async(monkeypatch: pytest.MonkeyPatch) -> None:
    """The async client gives the same error."""
    monkeypatch.delenv(CONNECTION, raising=False)

    with pytest.raises(R7MailConfigError, match=r"'no_such_mail'.*'r7mail'"):
        await R7MailHook("no_such_mail").aget_conn()


@pytest.mark.parametrize("folder", [24, "24", " 24 ", "inbox"])
def test_folders_by_id_and_name(server: Emulator, folder: int | str) -> None:
    """A folder is given by its id or by its name in the connection."""
    assert R7MailHook().resolve_folder(folder) == INBOX


@pytest.mark.parametrize("folder", ["Outbox", "", True, None, 2.4])
def test_unknown_folder_lists_the_known(server: Emulator, folder: Any) -> None:
    """An unknown folder fails before any request; the error lists the known names."""
    with pytest.raises(R7MailConfigError, match="'inbox', 'sent'"):
        R7MailHook().iter_messages(folder)
    assert server.requests == []


def test_one_session_per_use(server: Emulator) -> None:
    """A hook method logs in once, however many pages it reads."""
    ids = [server.mailbox.deliver(subject=str(number)) for number in range(25)]

    found = [message.id for message in R7MailHook().iter_messages("inbox", page_size=10)]

    assert sorted(found) == ids
    assert server.logins == 1


def test_filters_are_applied(server: Emulator) -> None:
    """Filters reach the server; dates are half-open."""
    for day, subject in enumerate(["prices", "prices", "news", "prices"], start=1):
        server.mailbox.deliver(subject=subject, date=f"2025-06-0{day}T00:00:00Z")

    found = list(
        R7MailHook().iter_messages("inbox", subject="prices", start="2025-06-01", end="2025-06-04")
    )

    assert sorted(message.date.day for message in found if message.date) == [1, 2]


async def test_async_client_works(server: Emulator) -> None:
    """`aget_conn` gives an async client that reads the same mailbox."""
    server.mailbox.deliver(subject="hello")
    call = list_messages(
        INBOX, MessageFilter(), start=None, end=None, offset=0, size=5, parse=parse_page
    )

    async with await R7MailHook().aget_conn() as client:
        page = await client.send(call)

    assert [message.subject for message in page.items] == ["hello"]
    assert server.logins == 1


def test_messages_as_a_dataframe(server: Emulator) -> None:
    """A folder is read into a DataFrame with the table's columns, even if it is empty."""
    hook = R7MailHook()
    empty = hook.get_messages_df("inbox")
    server.mailbox.deliver(
        subject="prices",
        sender="a@b.ru",
        attachments=[("x.csv", b"1", "text/csv")],
        fields={"ToName": "half \ud83d"},
    )

    frame = hook.get_messages_df("inbox")

    assert list(frame["subject"]) == ["prices"]
    assert list(frame["to_name"]) == ["half \ufffd"]  # R21
    assert frame["attachments"][0][0]["file_name"] == "x.csv"
    assert list(frame.columns) == list(empty.columns)
    assert set(frame.columns) == set(schema("messages").names) - {"extracted_at", "gone_at"}
    assert "attachment_id" in frame["attachments"][0][0]


class TestSend:
    """Sending a message."""

    def test_it_arrives(self, server: Emulator) -> None:
        """The server gets bare addresses, and plain text made from the HTML."""
        file = server.mailbox.store_file("prices.txt", b"1", "text/plain")

        answer = R7MailHook().send_message(
            'a@b.ru, "Сизый, Федор" <c@d.ru>',
            "Prices",
            "<h1>Prices</h1><p>See <b>below</b></p>",
            cc=["e@f.ru", "e@f.ru"],
            attachments=[file],
        )

        [sent] = server.mailbox.sent
        assert answer == {"id": sent["Id"], "accepted": True}
        assert sent["To"] == ["a@b.ru", "c@d.ru"]
        assert sent["Cc"] == ["e@f.ru"]
        assert sent["Bcc"] == []
        assert sent["Body"] == "Prices\n\nSee below"
        assert sent["Attachments"] == [file]

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("to", {"to": ""}),
            ("to", {"to": []}),
            ("to", {"to": "hidden.example.org"}),
            ("to", {"to": "hidden@a@b.ru"}),
            ("to", {"to": "hidden one@b.ru"}),
            ("to", {"to": "hidden@b.ru\r\nBcc: x@y.ru"}),
            ("to", {"to": "hidden@b.ru;x@y.ru"}),
            ("to", {"to": [1]}),
            ("to", {"to": 7}),
            ("cc", {"cc": ["hidden@b.ru", "hidden"]}),
            ("bcc", {"bcc": "hidden@"}),
            ("to", {"to": "hidden@b.ru <a@b.ru>"}),
            ("to", {"to": "{'hidden@b.ru'}"}),
            ("subject", {"subject": "hidden\nBcc: x@y.ru"}),
            ("subject", {"subject": "hidden\u2028Bcc: x@y.ru"}),
            ("html_content", {"html_content": None}),
            ("draft_id", {"draft_id": "hidden"}),
            ("attachments", {"attachments": ["/tmp/prices.csv"]}),
            ("attachments", {"attachments": [{"FileName": "hidden"}]}),
        ],
    )
    def test_wrong_parameters(self, server: Emulator, name: str, values: dict[str, Any]) -> None:
        """The error names the wrong parameter but shows no address, and nothing is sent."""
        given = {"to": "a@b.ru", "subject": "s", "html_content": "h", **values}

        with pytest.raises(R7MailConfigError, match=f"^{name}") as caught:
            R7MailHook().send_message(**given)

        assert "hidden" not in str(caught.value)
        assert server.requests == []

    def test_unclear_is_not_repeated(self, server: Emulator) -> None:
        """If the answer is lost after the server sent the message, it is not sent again."""
        server.faults.append(Fault("Send", kind="reset", after_acting=True))

        with pytest.raises(R7MailSendUnclearError):
            R7MailHook().send_message("a@b.ru", "s", "h")

        assert len(server.mailbox.sent) == 1

    @pytest.mark.slow
    @pytest.mark.parametrize("way", ["sync", "async"])
    def test_unclear_and_the_sent_folder_fails(self, server: Emulator, way: str) -> None:
        """After the hook nobody looks again: its error tells a person what to look for."""
        server.faults.append(Fault("Send", kind="reset", after_acting=True))
        server.faults.append(Fault("Messages", None, status=500))

        with pytest.raises(R7MailSendUnclearError, match="search it for r7mail-") as caught:
            self.send(way, sent_folder=SENT, settle_seconds=0)

        [marker] = re.findall("r7mail-[0-9a-f-]+", str(caught.value))
        assert marker in server.mailbox.sent[0]["HtmlBody"]

    @pytest.mark.parametrize("way", ["sync", "async"])
    def test_no_such_sent_folder(self, server: Emulator, way: str) -> None:
        """The error for a Sent folder that the connection doesn't know names `sent_folder`."""
        with pytest.raises(R7MailConfigError, match=r"^sent_folder: .*'outbox'"):
            self.send(way, sent_folder="outbox")

    def send(self, way: str, **values: Any) -> Any:
        """Send a message with either method of the hook."""
        if way == "sync":
            return R7MailHook().send_message("a@b.ru", "s", "h", **values)
        return asyncio.run(R7MailHook().asend_message("a@b.ru", "s", "h", **values))


class TestActions:
    """Marking, moving and deleting."""

    def test_effects(self, server: Emulator) -> None:
        """Each action does what it says and returns the number of messages."""
        box = server.mailbox
        one, two, three = (box.deliver(subject=str(number)) for number in range(3))
        hook = R7MailHook()

        assert hook.mark_as_read("inbox", [one, two]) == 2
        assert hook.mark_as_read("inbox", [two], read=False) == 1
        assert hook.mark_as_important(INBOX, f"[{three}]") == 1
        assert [box.get(number)["WasRead"] for number in (one, two, three)] == [True, False, False]
        assert box.get(three)["Important"] is True
        assert hook.mark_as_important(INBOX, [three], important=False) == 1
        assert box.get(three)["Important"] is False
        assert hook.move_messages("inbox", [one], "processed") == 1
        assert hook.delete_messages("inbox", [two, str(two)]) == 1
        assert [message["Id"] for message in box.messages(INBOX)] == [three]
        assert [message["Id"] for message in box.messages(PROCESSED)] == [one]

    def test_nothing_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without ids nothing is done, not even a login: no connection is needed."""
        monkeypatch.delenv(CONNECTION, raising=False)
        hook = R7MailHook()

        assert hook.mark_as_read("inbox", []) == 0
        assert hook.move_messages("inbox", "[]", "nowhere") == 0
        assert hook.delete_messages("inbox", "") == 0

    def test_many_ids_go_in_batches(self, server: Emulator) -> None:
        """A long list is split into several calls in one session, with each message once."""
        ids = [server.mailbox.deliver(subject="s") for _ in range(1_001)]

        assert R7MailHook().mark_as_read("inbox", ids) == 1_001

        sizes = [len(request["json"]["Ids"]) for request in server.requests[1:]]
        assert sizes == [500, 500, 1]
        assert server.logins == 1
        assert all(message["WasRead"] for message in server.mailbox.messages(INBOX))

    def test_a_failed_batch_says_how_far_it_got(self, server: Emulator) -> None:
        """If a batch fails, the error says which one, and how many messages were done before."""
        ids = [server.mailbox.deliver(subject="s") for _ in range(501)]
        server.faults.append(Fault("MarkAsRead", skip=1, kind="answer", answer=False))

        with pytest.raises(R7MailActionError, match="batch 2 of 2, after 500 messages"):
            R7MailHook().mark_as_read("inbox", ids)

    def test_false_is_a_failure(self, server: Emulator) -> None:
        """The server's `false` is an error, not a success."""
        with pytest.raises(R7MailActionError, match="not true"):
            R7MailHook().mark_as_read("inbox", [4711])

    @pytest.mark.parametrize("ids", [["<a@b>"], "seven", [1.5], [True], {"id": 1}])
    def test_ids_that_are_no_numbers(self, server: Emulator, ids: Any) -> None:
        """Ids that are not whole numbers fail before any request."""
        with pytest.raises(R7MailConfigError, match="message_ids"):
            R7MailHook().delete_messages("inbox", ids)
        assert server.requests == []

    def test_an_unknown_target_fails_before_the_log_in(self, server: Emulator) -> None:
        """A wrong `to_folder` is named before any request is made."""
        with pytest.raises(R7MailConfigError, match="to_folder: there is no folder 'nowhere'"):
            R7MailHook().move_messages("inbox", [1], "nowhere")
        assert server.requests == []

    @pytest.mark.slow
    @pytest.mark.parametrize("answer", ["false", "500"])
    @pytest.mark.parametrize("action", ["Delete", "MoveMessage"])
    def test_repeated_after_it_had_worked(self, server: Emulator, answer: Any, action: str) -> None:
        """If the answer is lost, a delete or move counts as done although its retry is refused."""
        server.readings = Readings(repeat_answer=answer)
        ids = [server.mailbox.deliver(subject="s") for _ in range(3)]
        server.faults.append(Fault(action, kind="reset", after_acting=True))

        if action == "Delete":
            assert R7MailHook().delete_messages("inbox", ids) == 3
        else:
            assert R7MailHook().move_messages("inbox", ids, "processed") == 3

        assert server.mailbox.messages(INBOX) == []
        assert paths(server)[:3] == ["Login", action, action]

    @pytest.mark.parametrize("answer", ["false", "406"])
    def test_refused_at_once_for_want_of_messages(self, server: Emulator, answer: Any) -> None:
        """Ids that the folder doesn't have are an error that another try must not take for done."""
        server.readings = Readings(repeat_answer=answer)
        there = server.mailbox.deliver(subject="s")
        server.faults.append(Fault("Delete", kind="answer", answer=False))

        with pytest.raises(R7MailMessageNotFoundError, match=r"messages \[4711\]"):
            R7MailHook().delete_messages("inbox", [there, 4711])
        with pytest.raises(R7MailMessageNotFoundError, match=r"Done: 0"):
            R7MailHook().move_messages("inbox", [4711], "processed")
        assert R7MailHook().delete_messages("inbox", [4711], tried_before=True) == 1

    def test_refused_in_a_folder_that_cannot_be_listed(self, server: Emulator) -> None:
        """If the folder itself is refused, the error is that of the delete, not of a listing."""
        with pytest.raises(R7MailServerError, match="/Delete:"):
            R7MailHook().delete_messages(987654, [1])
        assert "Messages" in paths(server)

    def test_refused_at_once_for_another_reason(self, server: Emulator) -> None:
        """A `false` to the first delete is an error, although the folder has the messages."""
        ids = [server.mailbox.deliver(subject="s")]
        server.faults.append(Fault("Delete", kind="answer", answer=False))

        with pytest.raises(R7MailActionError):
            R7MailHook().delete_messages("inbox", ids)
        assert R7MailHook().delete_messages("inbox", ids) == 1

    def test_repeated_and_still_there_is_a_failure(self, server: Emulator) -> None:
        """A delete that the server keeps refusing fails if the messages are still there."""
        ids = [server.mailbox.deliver(subject="s")]
        server.faults.append(Fault("Delete", times=None, status=500))

        with pytest.raises(R7MailServerError):
            R7MailHook().delete_messages("inbox", ids)


class TestFailures:
    """Failures of login, network and proxy."""

    @pytest.mark.parametrize("refusal", ["401", "500", "null_response", "no_token", "state"])
    def test_a_wrong_password_is_tried_once(self, refusal: Any) -> None:
        """A refused login is not retried, which could lock the account (R14)."""
        with Emulator(Mailbox(), Readings(login_refusal=refusal)) as server:
            values = {**json.loads(server.connection()), "password": "Wrong-Password"}
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(CONNECTION, json.dumps(values))
                with pytest.raises(R7MailAuthError) as caught:
                    list(R7MailHook().iter_messages("inbox"))

            assert server.logins == 1
            assert "Wrong-Password" not in str(caught.value)

    def test_unreachable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If nothing listens at the host, the error says what to check."""
        values = {"conn_type": "r7mail", "host": f"http://127.0.0.1:{free_port()}"}
        text = json.dumps(
            {**values, "login": "ann", "password": "no-password", "extra": {"max_retries": 0}}
        )
        monkeypatch.setenv(CONNECTION, text)

        with pytest.raises(R7MailConnectionError, match="Check Host, Port"):
            R7MailHook().mark_as_read(24, [1])

    def test_html_from_a_proxy(self, server: Emulator) -> None:
        """If a proxy answers with an HTML page, the error says so, without showing the page."""
        server.faults.append(Fault("Messages", None, status=200, body="<html>secret</html>"))

        with pytest.raises(R7MailProxyError, match="HTML page") as caught:
            list(R7MailHook().iter_messages("inbox"))
        assert "secret" not in str(caught.value)


class TestTestConnection:
    """Airflow's Test button."""

    def test_works(self, server: Emulator) -> None:
        """It logs in and reads one message of the first folder, and says so."""
        server.mailbox.deliver()

        assert R7MailHook().test_connection() == (
            True,
            "Logged in, and read folder 'inbox' (24).",
        )
        assert paths(server) == ["Login", "Messages"]
        assert server.requests[1]["json"]["size"] == 1

    def test_without_folders(self, server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without `folders` it only logs in."""
        monkeypatch.setenv(CONNECTION, server.connection(folders=None))

        assert R7MailHook().test_connection()[0] is True
        assert paths(server) == ["Login"]

    def test_wrong_password(self, server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        """A refused login is reported with what to check."""
        values = {**json.loads(server.connection()), "password": "wrong"}
        monkeypatch.setenv(CONNECTION, json.dumps(values))

        worked, text = R7MailHook().test_connection()

        assert worked is False
        assert "Check Login and Password" in text
        assert server.logins == 1

    @pytest.mark.slow
    def test_wrong_folder(self, server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        """If the folder can't be read, the message says so: Login and Password were right."""
        monkeypatch.setenv(CONNECTION, server.connection(folders={"inbox": 4711}))

        worked, text = R7MailHook().test_connection()

        assert worked is False
        assert f"{server.url}: logged in, but folder 'inbox' (4711) was not read: " in text
        assert "refused, or not there (status 406)" in text

    def test_an_empty_folder(self, server: Emulator) -> None:
        """An empty folder is pointed out: the server may know no such folder."""
        worked, text = R7MailHook().test_connection()

        assert worked is True
        assert text.endswith("It has no messages: check its id if it should have.")

    @pytest.mark.parametrize(
        ("answer", "what", "todo"),
        [
            (
                reply("<html>nginx", status="404 x"),
                "there is no such endpoint",
                "Host points to an R7",
            ),
            (reply("<html>Shop"), "an HTML page in place of JSON", "Host points to an R7"),
            (
                reply("{}", status="404 x"),
                "there is no such endpoint (status 404)",
                "Host points to an R7",
            ),
            (reply("", status="302 x"), "something in front of the", "Check Host, Schema, Port"),
            (reply("{}"), "no token in the response", "that Host is an R7 mail server"),
            (reply("", status="401 x"), "not authorised", "Check Login and Password"),
            (
                reply("", status="503 x"),
                "a proxy could not get a response",
                "down, restarting or slow",
            ),
            (b"220 mail ESMTP\r\n", "the response was not HTTP", "check Port and Schema"),
        ],
    )
    def test_not_an_r7_server(
        self, answer: bytes, what: str, todo: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another kind of server is distinguished from a wrong password, with what to do."""
        with Saying(answer) as there:
            worked, text = try_out(monkeypatch, host=there.url)

        assert worked is False
        assert text.startswith(f"{there.url}: no log-in: ")
        assert what in text
        assert todo in text

    def test_wrong_host(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A host name that doesn't exist is distinguished from a port nobody listens at."""
        port = free_port()
        wrong = [({"host": "mail.invalid"}, "the host name could not be resolved")]
        wrong += [({"host": f"http://127.0.0.1:{port}"}, "nothing listens on that port")]
        for values, what in wrong:
            worked, text = try_out(monkeypatch, **values)

            assert worked is False
            assert what in text
            assert "Check Host, Port, Schema and proxy" in text

    def test_wrong_tls(
        self, server: Emulator, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """TLS problems are explained, with the field to change."""
        with Saying(b"", tls=certificates.server()) as secure:
            told = [
                try_out(monkeypatch, host=secure.url)[1],
                try_out(monkeypatch, host=secure.url, verify="/nowhere/ca.pem")[1],
                try_out(monkeypatch, host=server.url.replace("http:", "https:"))[1],
                try_out(monkeypatch, host=secure.url.replace("https:", "http:"))[1],
            ]

        for text, what in zip(
            told,
            [
                "certificate could not be verified: unable to get",
                "verify of the connection: no certificate could be read from '/nowhere/ca.pem'",
                "does not speak TLS. Set Schema of the connection to http",
                "check Port and Schema",
            ],
            strict=True,
        ):
            assert what in text

    def test_wrong_proxy(self, server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        """Proxy problems are explained, with the proxy's address but without its password."""
        port = free_port()
        refused = f"http://u:proxy-password@127.0.0.1:{port}"
        with (
            Proxy(server.port, password="none") as asking,
            Saying(reply("", status="502 x")) as broken,
        ):
            told = [
                try_out(monkeypatch, host="https://mail.example.org", proxy=refused)[1],
                try_out(monkeypatch, host="https://mail.example.org", proxy=asking.url)[1],
                try_out(monkeypatch, host="http://mail.example.org", proxy=asking.url)[1],
                try_out(monkeypatch, host="https://mail.example.org", proxy=broken.url)[1],
            ]

        assert f"mail.example.org through the proxy http://127.0.0.1:{port}: no log-in" in told[0]
        assert "nothing listens on that port" in told[0]
        assert "proxy-password" not in told[0]
        assert "the proxy requires a login (407). Set proxy in the connection" in told[1]
        assert "the proxy requires a login (status 407). Set proxy" in told[2]
        assert "could not be reached: 502" in told[3]

    @pytest.mark.slow
    def test_an_answer_in_drops(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that sends a byte now and then is also reported within 5 seconds."""
        with Saying(reply("x" * 99), pause=0.5) as there:
            start = time.monotonic()
            worked, text = try_out(monkeypatch, host=there.url)

        assert worked is False
        assert "no log-in: no complete answer within 4.5 seconds" in text
        assert time.monotonic() - start < 15  # the machine may be busy

    @pytest.mark.slow
    @pytest.mark.parametrize("fault", ["hang", "status"])
    def test_a_bad_server_does_not_keep_the_user_waiting(
        self, server: Emulator, fault: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A server that hangs or fails is reported within 5 seconds, whatever the settings."""
        monkeypatch.setenv(CONNECTION, server.connection(max_retries=9, timeout=300))
        server.faults.append(Fault(None, None, kind=fault, status=503))
        start = time.monotonic()

        assert R7MailHook().test_connection()[0] is False
        assert time.monotonic() - start < 15  # the machine may be busy

    @pytest.mark.parametrize("host", ["ma\u200bil.ru", "☃.ru", "a..b", f"{'x' * 70}.ru"])
    def test_an_impossible_host(self, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """An impossible host name is reported as a mistake in the connection."""
        values = {"conn_type": "r7mail", "host": host, "login": "ann", "password": "no-password"}
        monkeypatch.setenv(CONNECTION, json.dumps(values))

        worked, text = R7MailHook().test_connection()

        assert worked is False
        assert "Check Host" in text

    @pytest.mark.slow
    def test_a_dead_host_does_not_either(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A host that swallows packets is reported within 5 seconds."""
        with full_port() as port:
            values = {"conn_type": "r7mail", "host": f"http://127.0.0.1:{port}"}
            monkeypatch.setenv(
                CONNECTION, json.dumps({**values, "login": "ann", "password": "no-password"})
            )
            start = time.monotonic()

            assert R7MailHook().test_connection()[0] is False
            assert time.monotonic() - start < 15  # the machine may be busy


def try_out(monkeypatch: pytest.MonkeyPatch, host: str, **extra: Any) -> tuple[bool, str]:
    """Press the Test button of a connection."""
    values = {"conn_type": "r7mail", "host": host, "login": "ann", "password": "no-password"}
    monkeypatch.setenv(CONNECTION, json.dumps({**values, "extra": extra}))
    worked, text = R7MailHook().test_connection()
    assert "no-password" not in text
    return worked, text


def test_secrets_are_masked(server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Password and proxy password are masked in logs, also within headers and URLs."""
    server.mailbox.password = "пароль/1+2"
    monkeypatch.setenv(CONNECTION, server.connection(proxy="http://u:p%40ss-word@proxy:3128"))
    assert R7MailHook().settings.client.proxy is not None
    monkeypatch.setenv(CONNECTION, server.connection())
    assert R7MailHook().settings.client.password == server.mailbox.password

    quoted = "%D0%BF%D0%B0%D1%80%D0%BE%D0%BB%D1%8C%2F1%2B2"
    basic = base64.b64encode(b"u:p@ss-word").decode().rstrip("=")
    for secret in ("p%40ss-word", "p@ss-word", basic, "пароль/1+2", quoted):
        assert redact(f"a {secret} b") == "a *** b"
    assert redact(repr("пароль/1+2".encode())) == "b'***'"


async def test_secrets_are_masked_on_the_event_loop(
    server: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The async client's password is masked as well."""
    server.mailbox.password = "another/password"
    monkeypatch.setenv(CONNECTION, server.connection())
    await R7MailHook().aget_conn()

    assert redact("a another%2Fpassword b") == "a *** b"


async def test_logins_leave_nothing_with_airflow(server: Emulator) -> None:
    """However often a process logs in, Airflow's masker, which never forgets, doesn't grow."""
    call = mark_as_read(INBOX, [server.mailbox.deliver()], read=True)
    masker = sys.modules[redact.__module__]._secrets_masker()
    sizes = []
    for _ in range(3):
        with R7MailHook().get_conn() as client:
            client.send(call)
        async with await R7MailHook().aget_conn() as aclient:
            await aclient.send(call)
        assert R7MailHook().test_connection()[0]
        sizes.append(len(masker.patterns))

    assert server.logins == 9
    assert len(set(sizes)) == 1


def test_logs_hold_nothing_of_the_mail(server: Emulator, logged: Callable[[], str]) -> None:
    """Logs and errors never contain an address, subject, text, password or token."""
    server.mailbox.deliver(subject="Top-Subject", body="Top-Body", sender="spy@devr7.ru")
    hook = R7MailHook()
    said: list[str] = []

    def attempt(action: Callable[[], Any]) -> None:
        try:
            action()
        except R7MailRequestError as error:
            said.append(str(error))

    for fault in (Fault("Send", status=500), Fault("Messages", None, kind="bad_json")):
        server.faults.append(fault)
    attempt(lambda: hook.send_message("spy@devr7.ru", "Top-Subject", "Top-Body"))
    attempt(lambda: hook.send_message("spy@devr7.ru", "Top-Subject", "Top-Body"))
    attempt(lambda: list(hook.iter_messages("inbox", sender="spy@devr7.ru")))
    server.faults.clear()
    attempt(lambda: list(hook.iter_messages("inbox", subject="Top-Subject")))

    text = "\n".join([logged(), *said])
    assert len(said) == 2
    for secret in ("Top-", "spy@", server.mailbox.password, server.mailbox.login):
        assert secret not in text


def test_download(server: Emulator, tmp_path: Path) -> None:
    """An attachment is downloaded completely to the given path."""
    pytest.importorskip("airflow_provider_r7mail.lake.attachments")
    data = bytes(range(256)) * 1000
    message = server.mailbox.deliver(attachments=[("прайс.xlsx", data, "application/x")])

    R7MailHook().download_attachment("inbox", message, "прайс.xlsx", tmp_path / "prices.xlsx")

    assert (tmp_path / "prices.xlsx").read_bytes() == data
    with pytest.raises(R7MailConfigError, match="one without a name can't be downloaded"):
        R7MailHook().download_attachment("inbox", message, "", tmp_path / "none")


def test_filters_are_those_of_the_filter() -> None:
    """The filters are the same everywhere: all that `MessageFilter.build` takes."""
    assert ("folder", *signature(MessageFilter.build).parameters) == FILTER_FIELDS
