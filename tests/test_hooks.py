"""The connection and the hook, against a real server on a real socket."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import ssl
import time
from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_r7mail import get_provider_info, hooks
from airflow_provider_r7mail.api import list_messages, mark_as_read, parse_page
from airflow_provider_r7mail.compat import Connection, redact
from airflow_provider_r7mail.emulator import Emulator, Fault, Mailbox, Readings
from airflow_provider_r7mail.emulator.mailbox import SENT
from airflow_provider_r7mail.exceptions import (
    R7MailActionError,
    R7MailAuthError,
    R7MailConfigError,
    R7MailConnectionError,
    R7MailProxyError,
    R7MailRequestError,
    R7MailSendUnclearError,
    R7MailServerError,
)
from airflow_provider_r7mail.hooks import R7MailHook, config_from_connection, parse_addresses
from airflow_provider_r7mail.models import MessageFilter
from airflow_provider_r7mail.tables import schema
from tests.test_client import Certificates, Proxy, Wire, certificates

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["certificates"]  # a fixture
CONNECTION = "AIRFLOW_CONN_R7MAIL_DEFAULT"
INBOX, PROCESSED = 24, 15


def reply(status: int, body: str) -> bytes:
    """An HTTP answer."""
    return f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


class Saying(Wire):
    """A server that says the same to whoever connects.

    :param pause: seconds between two bytes
    """

    def __init__(
        self, answer: bytes, *, pause: float = 0.0, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(tls=tls)
        self._said = answer
        self._pause = pause

    def talk(self, connection: socket.socket, stream: Any, number: int) -> None:
        """Wait for a first line, and answer."""
        stream.readline()
        for place in range(len(self._said)) if self._pause else ():
            connection.sendall(self._said[place : place + 1])
            time.sleep(self._pause)
        if not self._pause:
            connection.sendall(self._said)


def connection(extra: Any = None, **values: Any) -> Connection:
    """A connection that is right but for what is given."""
    fields = {"host": "mail.example.org", "login": "ann", "password": "no-password", **values}
    text = extra if isinstance(extra, str) or extra is None else json.dumps(extra)
    return Connection(conn_id="mail", conn_type="r7mail", extra=text, **fields)


def paths(server: Emulator) -> list[str]:
    """The calls that the server got."""
    return [request["path"].rpartition("/")[2] for request in server.requests]


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({"host": "mail.example.org"}, "https://mail.example.org"),
        ({"host": "mail.example.org", "schema": "http"}, "http://mail.example.org"),
        ({"host": "mail.example.org", "port": 8443}, "https://mail.example.org:8443"),
        ({"host": "mail.example.org", "port": 0}, "https://mail.example.org"),
        ({"host": "mail.example.org:8443"}, "https://mail.example.org:8443"),
        ({"host": " mail.example.org/mail/ "}, "https://mail.example.org/mail"),
        ({"host": "http://10.0.0.1:8080/r7/"}, "http://10.0.0.1:8080/r7"),
        ({"host": "http://10.0.0.1", "port": 81, "schema": "https"}, "http://10.0.0.1:81"),
        ({"host": "::1", "port": 8080}, "https://[::1]:8080"),
        ({"host": "https://[::1]:8080"}, "https://[::1]:8080"),
        ({"host": "почта.рф"}, "https://почта.рф"),
    ],
)
def test_host_forms(values: dict[str, Any], url: str) -> None:
    """Host takes a bare name or a full URL; Port and Schema fill in what it does not say."""
    assert config_from_connection(connection(**values)).client.url == url


def test_extra_is_read() -> None:
    """Every field of Extra reaches the client, also as the text that a form saves."""
    extra = {
        "verify": "False",
        "cert": "a.pem, b.pem",
        "proxy": "http://u:secret@proxy:3128",
        "timeout": "2.5",
        "max_concurrency": "7",
        "max_retries": 0,
        "folders": '{"inbox": 24, "done": "15"}',
        "web_url": " https://mail.example.org/#folder/{folder} ",
        "privacy_secret": "hash-key",
    }

    settings = config_from_connection(connection(extra))

    config = settings.client
    assert config.verify is False
    assert config.cert == ("a.pem", "b.pem")
    assert config.proxy == "http://u:secret@proxy:3128"
    assert (config.timeout, config.max_concurrency, config.max_retries) == (2.5, 7, 0)
    assert settings.folders == {"inbox": 24, "done": 15}
    assert settings.folder_url(24) == "https://mail.example.org/#folder/24"
    assert settings.privacy_secret == "hash-key"
    assert "hash-key" not in repr(settings)


def test_nulls_and_empty_text_are_unset() -> None:
    """What Airflow's form saves for fields left alone is the same as no Extra at all."""
    [form] = get_provider_info()["connection-types"]
    names = form["conn-fields"]

    for empty in (None, ""):
        settings = config_from_connection(connection(dict.fromkeys(names, empty)))

        assert settings == config_from_connection(connection())
    assert settings.client.verify is True
    assert settings.client.max_concurrency == 4
    assert settings.folder_url(24) is None


@pytest.mark.parametrize(
    ("extra", "verify", "cert"),
    [
        ({"verify": "TRUE"}, True, None),
        ({"verify": "/etc/ca.pem", "cert": "c.pem"}, "/etc/ca.pem", "c.pem"),
        ({"verify": False, "cert": ["c.pem", "k.pem"]}, False, ("c.pem", "k.pem")),
        ({"verify": "False", "cert": "['c.pem', 'k.pem']"}, False, ("c.pem", "k.pem")),
    ],
)
def test_tls_forms(extra: dict[str, Any], verify: object, cert: object) -> None:
    """`verify` and `cert` take all their forms."""
    config = config_from_connection(connection(extra)).client

    assert (config.verify, config.cert) == (verify, cert)


@pytest.mark.parametrize(
    ("field", "values", "extra"),
    [
        ("host", {"host": None}, None),
        ("host", {"host": "ftp://mail.example.org"}, None),
        ("host", {"host": "mail.example.org:port"}, None),
        ("host", {"host": "mail example"}, None),
        ("host", {"host": "https://user:hidden-pw@mail.example.org"}, None),
        ("host", {"host": "https://"}, None),
        ("schema", {"schema": "imap"}, None),
        ("login", {"login": None}, None),
        ("password", {"password": ""}, None),
        ("extra", {}, "not JSON hidden-pw"),
        ("extra", {}, "[1]"),
        ("verify", {}, {"verify": 1}),
        ("cert", {}, {"cert": "a,b,c"}),
        ("cert", {}, {"cert": {"a": 1}}),
        ("proxy", {}, {"proxy": "hidden-pw@proxy"}),
        ("proxy", {}, {"proxy": "socks5://u:hidden-pw@proxy"}),
        ("timeout", {}, {"timeout": 0}),
        ("timeout", {}, {"timeout": "soon"}),
        ("timeout", {}, {"timeout": "inf"}),
        ("max_concurrency", {}, {"max_concurrency": 0}),
        ("max_concurrency", {}, {"max_concurrency": 1.5}),
        ("max_retries", {}, {"max_retries": -1}),
        ("max_retries", {}, {"max_retries": True}),
        ("folders", {}, {"folders": [24]}),
        ("folders", {}, {"folders": "{"}),
        ("folders", {}, {"folders": {"inbox": "first"}}),
        ("folders", {}, {"folders": {"24": 15}}),
        ("web_url", {}, {"web_url": "mail.example.org"}),
        ("web_url", {}, {"web_url": "javascript:alert(1)"}),
        ("web_url", {}, {"web_url": "https://u:hidden-pw@mail.example.org/"}),
        ("web_url", {}, {"web_url": "https://mail.example.org/\nx"}),
        ("privacy_secret", {}, {"privacy_secret": 1}),
    ],
)
def test_wrong_fields_are_named(field: str, values: dict[str, Any], extra: Any) -> None:
    """A wrong field of the connection is named, with the connection; no secret is shown."""
    with pytest.raises(R7MailConfigError, match=f"'mail': {field}: ") as caught:
        config_from_connection(connection(extra, **values))

    assert "hidden-pw" not in str(caught.value)


def test_missing_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the connection the error says which one to add, and of which type."""
    monkeypatch.delenv(CONNECTION, raising=False)
    hook = R7MailHook("no_such_mail")

    with pytest.raises(R7MailConfigError, match=r"'no_such_mail'.*'r7mail'"):
        hook.get_conn()
    assert hook.test_connection()[0] is False


async def test_missing_connection_async(monkeypatch: pytest.MonkeyPatch) -> None:
    """The async way gives the same error."""
    monkeypatch.delenv(CONNECTION, raising=False)

    with pytest.raises(R7MailConfigError, match=r"'no_such_mail'.*'r7mail'"):
        await R7MailHook("no_such_mail").aget_conn()


@pytest.mark.parametrize("folder", [24, "24", " 24 ", "inbox"])
def test_folders_by_id_and_name(server: Emulator, folder: int | str) -> None:
    """A folder is given by its id or by its name in the connection."""
    assert R7MailHook().resolve_folder(folder) == INBOX


@pytest.mark.parametrize("folder", ["Outbox", "", True, None, 2.4])
def test_unknown_folder_lists_the_known(server: Emulator, folder: Any) -> None:
    """An unknown folder fails before any request; the error lists the names that are known."""
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

    assert [message.date.day for message in found if message.date] == [1, 2]


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
    """A folder comes as a DataFrame with the table's columns; an empty one has them too."""
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
    assert set(frame.columns) == set(schema("messages").names) - {"extracted_at"}
    assert "attachment_id" in frame["attachments"][0][0]


class TestSend:
    """Sending a message."""

    def test_it_arrives(self, server: Emulator) -> None:
        """The server gets the addresses bare, and a plain text made from the HTML."""
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
        """A wrong parameter is named, nothing is sent, and no address stands in the error."""
        given = {"to": "a@b.ru", "subject": "s", "html_content": "h", **values}

        with pytest.raises(R7MailConfigError, match=f"^{name}") as caught:
            R7MailHook().send_message(**given)

        assert "hidden" not in str(caught.value)
        assert server.requests == []

    def test_unclear_is_not_repeated(self, server: Emulator) -> None:
        """If the answer is lost after the server has sent it, it is not sent a second time."""
        server.faults.append(Fault("Send", kind="reset", after_acting=True))

        with pytest.raises(R7MailSendUnclearError):
            R7MailHook().send_message("a@b.ru", "s", "h")

        assert len(server.mailbox.sent) == 1

    @pytest.mark.parametrize("way", ["sync", "async"])
    def test_unclear_and_the_sent_folder_fails(self, server: Emulator, way: str) -> None:
        """No try of a task looks after the hook: its error says what a person looks for."""
        server.faults.append(Fault("Send", kind="reset", after_acting=True))
        server.faults.append(Fault("Messages", None, status=500))

        with pytest.raises(R7MailSendUnclearError, match="look there for r7mail-") as caught:
            self.send(way, sent_folder=SENT, settle_seconds=0)

        [marker] = re.findall("r7mail-[0-9a-f-]+", str(caught.value))
        assert marker in server.mailbox.sent[0]["HtmlBody"]

    @pytest.mark.parametrize("way", ["sync", "async"])
    def test_no_such_sent_folder(self, server: Emulator, way: str) -> None:
        """A Sent folder that the connection does not know is named as such."""
        with pytest.raises(R7MailConfigError, match=r"^sent_folder: .*'outbox'"):
            self.send(way, sent_folder="outbox")

    def send(self, way: str, **values: Any) -> Any:
        """Send something by either method of the hook."""
        if way == "sync":
            return R7MailHook().send_message("a@b.ru", "s", "h", **values)
        return asyncio.run(R7MailHook().asend_message("a@b.ru", "s", "h", **values))


def test_addresses_as_templates_render_them() -> None:
    """A list that a template has rendered to text is still a list of addresses."""
    assert parse_addresses("['a@b.ru', 'c@d.ru']", "to") == ("a@b.ru", "c@d.ru")
    assert parse_addresses('["a@b.ru"]', "to") == ("a@b.ru",)
    assert parse_addresses(" a@b.ru, ", "to") == ("a@b.ru",)
    assert parse_addresses(None, "to") == ()


class TestActions:
    """Marking, moving and deleting."""

    def test_effects(self, server: Emulator) -> None:
        """Each action changes what it says and returns how many messages."""
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
        """With no ids nothing is done, not even a log-in: no connection is needed."""
        monkeypatch.delenv(CONNECTION, raising=False)
        hook = R7MailHook()

        assert hook.mark_as_read("inbox", []) == 0
        assert hook.move_messages("inbox", "[]", "nowhere") == 0
        assert hook.delete_messages("inbox", "") == 0

    def test_many_ids_go_in_batches(self, server: Emulator) -> None:
        """A long list goes in several calls of one session, each message once."""
        ids = [server.mailbox.deliver(subject="s") for _ in range(1_001)]

        assert R7MailHook().mark_as_read("inbox", ids) == 1_001

        sizes = [len(request["json"]["Ids"]) for request in server.requests[1:]]
        assert sizes == [500, 500, 1]
        assert server.logins == 1
        assert all(message["WasRead"] for message in server.mailbox.messages(INBOX))

    def test_a_failed_batch_says_how_far_it_got(self, server: Emulator) -> None:
        """If a batch fails, the error says which, and how many messages were done before."""
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
        """Ids that are no whole numbers fail before any request."""
        with pytest.raises(R7MailConfigError, match="message_ids"):
            R7MailHook().delete_messages("inbox", ids)
        assert server.requests == []

    def test_an_unknown_target_fails_before_the_log_in(self, server: Emulator) -> None:
        """A wrong `to_folder` is named, before any request."""
        with pytest.raises(R7MailConfigError, match="to_folder: there is no folder 'nowhere'"):
            R7MailHook().move_messages("inbox", [1], "nowhere")
        assert server.requests == []

    @pytest.mark.parametrize("answer", ["false", "500"])
    @pytest.mark.parametrize("action", ["Delete", "MoveMessage"])
    def test_repeated_after_it_had_worked(self, server: Emulator, answer: Any, action: str) -> None:
        """A delete or move whose answer was lost counts as done, though its repetition fails."""
        server.readings = Readings(repeat_answer=answer)
        ids = [server.mailbox.deliver(subject="s") for _ in range(3)]
        server.faults.append(Fault(action, kind="reset", after_acting=True))

        if action == "Delete":
            assert R7MailHook().delete_messages("inbox", ids) == 3
        else:
            assert R7MailHook().move_messages("inbox", ids, "processed") == 3

        assert server.mailbox.messages(INBOX) == []
        assert paths(server)[:3] == ["Login", action, action]

    def test_refused_at_once_is_a_failure(self, server: Emulator) -> None:
        """A first `false` to a delete is an error: nothing tells that it had been done before."""
        server.readings = Readings(repeat_answer="false")

        with pytest.raises(R7MailActionError):
            R7MailHook().delete_messages("inbox", [4711])
        assert paths(server) == ["Login", "Delete"]
        assert R7MailHook().delete_messages("inbox", [4711], tried_before=True) == 1

    def test_repeated_and_still_there_is_a_failure(self, server: Emulator) -> None:
        """A delete that the server refuses again and again fails while the messages are there."""
        ids = [server.mailbox.deliver(subject="s")]
        server.faults.append(Fault("Delete", times=None, status=500))

        with pytest.raises(R7MailServerError):
            R7MailHook().delete_messages("inbox", ids)


class TestFailures:
    """What goes wrong on the way."""

    @pytest.mark.parametrize("refusal", ["401", "500", "null_response", "no_token", "state"])
    def test_a_wrong_password_is_tried_once(self, refusal: Any) -> None:
        """A refused log-in is not repeated, which could lock the account (R14)."""
        with Emulator(Mailbox(), Readings(login_refusal=refusal)) as server:
            values = {**json.loads(server.connection()), "password": "Wrong-Password"}
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(CONNECTION, json.dumps(values))
                with pytest.raises(R7MailAuthError) as caught:
                    list(R7MailHook().iter_messages("inbox"))

            assert server.logins == 1
            assert "Wrong-Password" not in str(caught.value)

    def test_unreachable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A host that nothing listens at: the error says what to check."""
        values = {"conn_type": "r7mail", "host": f"http://127.0.0.1:{free_port()}"}
        text = json.dumps(
            {**values, "login": "ann", "password": "no-password", "extra": {"max_retries": 0}}
        )
        monkeypatch.setenv(CONNECTION, text)

        with pytest.raises(R7MailConnectionError, match="Check Host, Port"):
            R7MailHook().mark_as_read(24, [1])

    def test_html_from_a_proxy(self, server: Emulator) -> None:
        """A proxy's HTML page in place of an answer is told as such, without the page."""
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
        """It says in words that the log-in was refused."""
        values = {**json.loads(server.connection()), "password": "wrong"}
        monkeypatch.setenv(CONNECTION, json.dumps(values))

        worked, text = R7MailHook().test_connection()

        assert worked is False
        assert "Check Login and Password" in text
        assert server.logins == 1

    def test_wrong_folder(self, server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        """A folder that can't be read is told as such: Login and Password were right."""
        monkeypatch.setenv(CONNECTION, server.connection(folders={"inbox": 4711}))

        worked, text = R7MailHook().test_connection()

        assert worked is False
        assert f"{server.url}: logged in, but folder 'inbox' (4711) was not read: " in text
        assert "A folder id that it does not know" in text

    def test_an_empty_folder(self, server: Emulator) -> None:
        """A server may answer an unknown folder with an empty page: it says that it is empty."""
        worked, text = R7MailHook().test_connection()

        assert worked is True
        assert text.endswith("It has no messages: check its id if it should have.")

    @pytest.mark.parametrize(
        ("answer", "what", "todo"),
        [
            (reply(404, "<html>nginx"), "there is no such call", "Host points at an R7"),
            (reply(200, "<html>Shop"), "an HTML page in place of JSON", "Host points at an R7"),
            (reply(404, "{}"), "there is no such call (status 404)", "Host points at an R7"),
            (reply(302, ""), "something in front of the", "Check Host, Schema, Port"),
            (reply(200, "{}"), "no token in the answer", "that Host is an R7 mail server"),
            (reply(401, ""), "not authorised", "Check Login and Password"),
            (reply(503, ""), "a proxy could not get an answer", "down, restarting or slow"),
            (b"220 mail ESMTP\r\n", "the answer was not HTTP", "check Port and Schema"),
        ],
    )
    def test_not_an_r7_server(
        self, answer: bytes, what: str, todo: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Something else than an R7 mail server is told from a wrong password, and what to do."""
        with Saying(answer) as there:
            worked, text = try_out(monkeypatch, host=there.url)

        assert worked is False
        assert text.startswith(f"{there.url}: no log-in: ")
        assert what in text
        assert todo in text

    def test_wrong_host(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name that does not exist, and a port that nothing listens at, are two things."""
        port = free_port()
        wrong = [({"host": "mail.invalid"}, "no such name is known to the name servers")]
        wrong += [({"host": f"http://127.0.0.1:{port}"}, "nothing listens at that port")]
        for values, what in wrong:
            worked, text = try_out(monkeypatch, **values)

            assert worked is False
            assert what in text
            assert "Check Host, Port, Schema and proxy" in text

    def test_wrong_tls(
        self, server: Emulator, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is wrong with TLS is told, with the field to change."""
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
                "certificate could not be verified. Set verify",
                "verify or cert of the connection: no certificate could be read",
                "does not speak TLS. Set Schema of the connection to http",
                "check Port and Schema",
            ],
            strict=True,
        ):
            assert what in text

    def test_wrong_proxy(self, server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is wrong with the proxy is told, with its address, and without its password."""
        port = free_port()
        refused = f"http://u:proxy-password@127.0.0.1:{port}"
        with Proxy(server.port, password="none") as asking, Saying(reply(502, "")) as broken:
            told = [
                try_out(monkeypatch, host="https://mail.example.org", proxy=refused)[1],
                try_out(monkeypatch, host="https://mail.example.org", proxy=asking.url)[1],
                try_out(monkeypatch, host="http://mail.example.org", proxy=asking.url)[1],
                try_out(monkeypatch, host="https://mail.example.org", proxy=broken.url)[1],
            ]

        assert f"mail.example.org through the proxy http://127.0.0.1:{port}: no log-in" in told[0]
        assert "nothing listens at that port" in told[0]
        assert "proxy-password" not in told[0]
        assert "the proxy asks for a login (407). Set proxy of the connection" in told[1]
        assert "the proxy asks for a login (status 407). Set proxy" in told[2]
        assert "could not be reached: 502" in told[3]

    def test_an_answer_in_drops(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that sends a byte now and then is reported within 5 seconds too."""
        with Saying(reply(200, "x" * 99), pause=0.5) as there:
            start = time.monotonic()
            worked, text = try_out(monkeypatch, host=there.url)

        assert worked is False
        assert "no log-in: no whole answer in 4.5 seconds" in text
        assert time.monotonic() - start < 15  # the machine may be busy

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
        """A host name that cannot be is told as a wrong connection."""
        values = {"conn_type": "r7mail", "host": host, "login": "ann", "password": "no-password"}
        monkeypatch.setenv(CONNECTION, json.dumps(values))

        worked, text = R7MailHook().test_connection()

        assert worked is False
        assert "Check Host" in text

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
    """Password, token and the proxy's password are masked in logs, in headers and URLs too."""
    server.mailbox.password = "пароль/1+2"
    monkeypatch.setenv(CONNECTION, server.connection(proxy="http://u:p%40ss-word@proxy:3128"))
    assert R7MailHook().settings.client.proxy is not None
    monkeypatch.setenv(CONNECTION, server.connection())
    with R7MailHook().get_conn() as client:
        client.send(mark_as_read(INBOX, [server.mailbox.deliver()], read=True))
        token = client._token

    assert token
    quoted = "%D0%BF%D0%B0%D1%80%D0%BE%D0%BB%D1%8C%2F1%2B2"
    basic = base64.b64encode(b"u:p@ss-word").decode().rstrip("=")
    in_base64 = base64.b64encode(token.encode()).decode().rstrip("=")
    secrets = ("p%40ss-word", "p@ss-word", basic, "пароль/1+2", quoted, token, in_base64)
    for secret in secrets:
        assert redact(f"a {secret} b") == "a *** b"
    assert redact(f"{{'Authorization': '{token}'}}") == "{'Authorization': '***'}"
    assert redact(repr("пароль/1+2".encode())) == "b'***'"


async def test_secrets_are_masked_on_the_event_loop(
    server: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The async client's password and token are masked as well."""
    server.mailbox.password = "another/password"
    monkeypatch.setenv(CONNECTION, server.connection())
    async with await R7MailHook().aget_conn() as client:
        await client.send(mark_as_read(INBOX, [server.mailbox.deliver()], read=True))
        token = client._token

    for secret in ("another%2Fpassword", token):
        assert redact(f"a {secret} b") == "a *** b"


def test_logs_hold_nothing_of_the_mail(server: Emulator, logged: Callable[[], str]) -> None:
    """Whatever happens, logs and errors hold no address, subject, text, password or token."""
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
    """A file of a message is downloaded whole, under the name asked for."""
    pytest.importorskip("airflow_provider_r7mail.attachments")
    data = bytes(range(256)) * 1000
    message = server.mailbox.deliver(attachments=[("прайс.xlsx", data, "application/x")])

    R7MailHook().download_attachment("inbox", message, "прайс.xlsx", tmp_path / "prices.xlsx")

    assert (tmp_path / "prices.xlsx").read_bytes() == data


def test_filters_are_those_of_the_filter() -> None:
    """The hook's filters are all that `MessageFilter.build` takes, in one place."""
    assert ("folder", *signature(MessageFilter.build).parameters) == hooks.FILTER_FIELDS


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class full_port:  # noqa: N801 - used like a function
    """A port whose queue is full: connecting to it waits, as to a host that is not there."""

    def __enter__(self) -> int:
        self._sockets = [socket.socket()]
        self._sockets[0].bind(("127.0.0.1", 0))
        self._sockets[0].listen(0)
        port: int = self._sockets[0].getsockname()[1]
        for _ in range(4):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
            self._sockets.append(waiting)
        return port

    def __exit__(self, *exc: object) -> None:
        for opened in self._sockets:
            opened.close()
