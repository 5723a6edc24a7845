"""Sending exactly once: for every failure, count what reached the server."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd  # noqa: TID253 - no DAG file is read here
import pytest

from airflow_provider_r7mail.client import calls
from airflow_provider_r7mail.client.compose import Link, add_links, html_table
from airflow_provider_r7mail.client.http import ClientConfig
from airflow_provider_r7mail.client.marker import Marker, recipients_of
from airflow_provider_r7mail.client.models import Attachment
from airflow_provider_r7mail.client.sending import (
    MAX_SENDS,
    Attempt,
    Sending,
    Sent,
    asend_once,
    send_once,
)
from airflow_provider_r7mail.client.session import AsyncClient, Client
from airflow_provider_r7mail.emulator import Emulator, Fault, Readings
from airflow_provider_r7mail.emulator.folders import INBOX, SENT
from airflow_provider_r7mail.exceptions import (
    R7MailAuthError,
    R7MailConfigError,
    R7MailConnectionError,
    R7MailProxyError,
    R7MailRequestError,
    R7MailSendUnclearError,
    R7MailSendUnsettledError,
)

TASK = ("reports", "scheduled__2025-06-03", "send")
NOW = datetime.now(UTC)


def config(server: Emulator, **values: Any) -> ClientConfig:
    """Return how to reach the server, with short timeouts."""
    defaults: dict[str, Any] = {"max_retries": 1, "backoff": 0.01, "timeout": 0.3}
    return ClientConfig(
        url=server.url, login="user_test", password="TestPassword", **{**defaults, **values}
    )


def letter(
    number: int = 0,
    to: str = "a@b.ru",
    subject: str = "Prices",
    text: str = "See below",
    folder: int | None = SENT,
    settle_seconds: float = 0.0,
) -> Sending:
    """Return a message of a mapped task instance."""
    call = calls.send_message(subject=subject, text=text, html=f"<p>{text}</p>", to=[to])
    marker = Marker.of(TASK, number, recipients_of(call))
    return Sending(
        call=marker.put_into(call),
        marker=marker,
        sent_folder=folder,
        settle_seconds=settle_seconds,
    )


def send(server: Emulator, sending: Sending, **known: Any) -> Sent:
    """Send it."""
    with Client(config(server)) as client:
        return send_once(client, sending, **known)


def asend(server: Emulator, sending: Sending) -> Sent:
    """Send it with the async client."""

    async def run() -> Sent:
        async with AsyncClient(config(server)) as client:
            return await asend_once(client, sending)

    return asyncio.run(run())


WEST = Attachment(id=1, file_id=7, file_name="west.csv", size=1, mime_type="text/csv")


def earlier(ago: float = 600.0, **values: Any) -> Attempt:
    """Return an attempt of an earlier try with unknown outcome."""
    then = datetime.now(UTC) - timedelta(seconds=ago)
    return Attempt(**{"state": "sending", "since": then, "last": then, **values})


def count_calls(server: Emulator, name: str) -> int:
    """Return how often a call was received."""
    return sum(request["path"].endswith(name) for request in server.requests)


BOTH = pytest.mark.parametrize("way", [send, asend], ids=["sync", "async"])
ACTED = [
    Fault("Send", kind="reset", after_acting=True),
    Fault("Send", status=502, after_acting=True),
    Fault("Send", status=500, after_acting=True),
    Fault("Send", kind="hang", after_acting=True),
    Fault("Send", kind="truncate"),
    Fault("Send", kind="bad_json"),
    Fault("Send", status=200, body="<html>", after_acting=True),
]
LOST = [
    Fault("Send", kind="reset"),
    Fault("Send", status=502),
    Fault("Send", status=504),
    Fault("Send", kind="hang"),
]


def fault_id(fault: Fault) -> str:
    """Return the name of a fault for a test's id."""
    return f"{fault.kind}-{fault.status}"


# -- the outcome of an attempt is not known ---------------------------------------------------


@BOTH
@pytest.mark.parametrize("fault", ACTED, ids=fault_id)
def test_sent_without_an_answer(
    server: Emulator, way: Callable[[Emulator, Sending], Sent], fault: Fault
) -> None:
    """If the server acted before it failed, its Sent folder shows that: nothing is sent twice."""
    server.faults.append(fault)

    sent = way(server, letter(settle_seconds=5))

    assert len(server.mailbox.sent) == 1
    assert sent == Sent(server.mailbox.sent[0]["Id"])


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("fault", LOST, ids=fault_id)
def test_lost_on_the_way(
    server: Emulator, way: Callable[[Emulator, Sending], Sent], fault: Fault
) -> None:
    """A message that is not in the Sent folder after `settle_seconds` is sent again."""
    server.faults.append(fault)
    begun = time.monotonic()

    sent = way(server, letter(settle_seconds=1))

    assert len(server.mailbox.sent) == 1
    assert sent == Sent(server.mailbox.sent[0]["Id"])
    assert time.monotonic() - begun > 1


@BOTH
@pytest.mark.slow
def test_the_copy_appears_late(server: Emulator, way: Callable[[Emulator, Sending], Sent]) -> None:
    """A message that takes a while to appear in the Sent folder is waited for (R11)."""
    server.readings = Readings(sent_delay_seconds=1.2)
    server.faults.append(Fault("Send", kind="reset", after_acting=True))

    way(server, letter(settle_seconds=10))

    assert len(server.mailbox.sent) == 1


@BOTH
@pytest.mark.slow
def test_the_time_to_settle_begins_when_it_failed(
    server: Emulator, way: Callable[[Emulator, Sending], Sent]
) -> None:
    """A proxy that makes the sender wait first doesn't shorten the time to settle (R11, R16)."""
    server.readings = Readings(sent_delay_seconds=1.2)
    server.faults.append(Fault("Send", status=429, headers={"Retry-After": "2"}))
    server.faults.append(Fault("Send", kind="reset", after_acting=True))

    way(server, letter(settle_seconds=2))

    assert len(server.mailbox.sent) == 1


@BOTH
def test_without_a_sent_folder(server: Emulator, way: Callable[[Emulator, Sending], Sent]) -> None:
    """Without a Sent folder to check, the error says what a person can do."""
    server.faults.append(Fault("Send", kind="reset", after_acting=True))
    sending = letter(folder=None)

    with pytest.raises(R7MailSendUnclearError, match="Sent folder") as caught:
        way(server, sending)

    assert str(sending.marker) in str(caught.value)
    assert "mark the task as successful" in str(caught.value)
    assert len(server.mailbox.sent) == 1
    assert count_calls(server, "Messages") == 0


def test_a_server_that_loses_all(server: Emulator) -> None:
    """If sending fails repeatedly, it stops: a later try of the task may succeed."""
    server.faults.append(Fault("Send", None, status=502))

    with pytest.raises(R7MailProxyError, match="not in folder 25"):
        send(server, letter())

    assert count_calls(server, "Send") == MAX_SENDS
    assert server.mailbox.sent == []


@pytest.mark.parametrize("status", [403, 405])
def test_surely_not_sent(server: Emulator, status: int) -> None:
    """A refusal is certain: nothing is searched for, and the record says so."""
    server.faults.append(Fault("Send", None, status=status))
    record: list[Attempt] = []

    with pytest.raises(R7MailRequestError) as caught:
        send(server, letter(), record=record.append)

    assert not isinstance(caught.value, R7MailSendUnclearError)
    assert [attempt.state for attempt in record] == ["sending", "not sent"]
    assert count_calls(server, "Messages") == 0


def test_too_many_requests(server: Emulator) -> None:
    """A 429 is retried: the proxy didn't forward the message."""
    server.faults.append(Fault("Send", status=429, headers={"Retry-After": "0"}))

    send(server, letter())

    assert len(server.mailbox.sent) == 1
    assert count_calls(server, "Messages") == 0


def test_no_connection(server: Emulator) -> None:
    """If no connection can be opened, nothing was sent, and nothing is searched for."""
    record: list[Attempt] = []
    nowhere = replace(config(server), url="http://127.0.0.1:9")

    with Client(nowhere) as client, pytest.raises(R7MailConnectionError):
        send_once(client, letter(settle_seconds=60), record=record.append)

    assert [attempt.state for attempt in record] == ["sending", "not sent"]


def test_the_sent_folder_cannot_be_read(server: Emulator) -> None:
    """If the folder can't be read either, nothing is sent again; a later try may resolve it."""
    server.faults.append(Fault("Send", kind="reset", after_acting=True))
    server.faults.append(Fault("Messages", None, status=500))
    record: list[Attempt] = []

    with pytest.raises(R7MailSendUnsettledError, match="could not be read"):
        send(server, letter(settle_seconds=0.5), record=record.append)

    assert [attempt.state for attempt in record] == ["sending"]
    server.faults.clear()
    assert send(server, letter(), earlier=record[-1]).before
    assert len(server.mailbox.sent) == 1


def test_the_sent_folder_fails_for_a_moment(server: Emulator) -> None:
    """A failed search is repeated during the time to settle."""
    server.faults.append(Fault("Send", kind="reset", after_acting=True))
    server.faults.append(Fault("Messages", 2, status=500))

    send(server, letter(settle_seconds=10))

    assert len(server.mailbox.sent) == 1


def test_not_the_sent_folder(server: Emulator) -> None:
    """In a folder without any sent mail, not finding the message proves nothing."""
    server.mailbox.deliver(date=NOW - timedelta(days=90))
    server.faults.append(Fault("Send", kind="reset", after_acting=True))

    with pytest.raises(R7MailSendUnclearError, match="does not seem to be the Sent folder"):
        send(server, letter(folder=INBOX))

    assert len(server.mailbox.sent) == 1


def test_an_empty_sent_folder(server: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """An empty folder is a new account's, or the wrong one: the log says so."""
    server.faults.append(Fault("Send", kind="reset"))

    send(server, letter())

    assert len(server.mailbox.sent) == 1
    assert "Folder 25 is empty" in caplog.text


# -- earlier tries ----------------------------------------------------------------------------


def test_recorded_as_sent(server: Emulator) -> None:
    """A message recorded as sent is not sent again, and costs no request."""
    sent = send(server, letter(), earlier=earlier(state="sent", id=7))

    assert sent == Sent(7, before=True)
    assert server.requests == []


def test_recorded_as_not_sent(server: Emulator) -> None:
    """A message recorded as certainly not sent is sent without a search."""
    send(server, letter(settle_seconds=60), earlier=earlier(state="not sent"))

    assert len(server.mailbox.sent) == 1
    assert count_calls(server, "Messages") == 0


def test_begun_and_sent(server: Emulator) -> None:
    """A message of an unfinished attempt that is in the Sent folder is not sent again."""
    first = send(server, letter())
    record: list[Attempt] = []

    again = send(server, letter(), earlier=earlier(5), record=record.append)

    assert again == Sent(first.id, before=True)
    assert [(attempt.state, attempt.id) for attempt in record] == [("sent", first.id)]
    assert len(server.mailbox.sent) == 1


def test_begun_and_not_sent(server: Emulator) -> None:
    """If it isn't in the folder long after the attempt began, it is sent without waiting again."""
    send(server, letter(1, "other@b.ru"))
    begun = time.monotonic()

    assert not send(server, letter(settle_seconds=60), earlier=earlier(61)).before

    assert time.monotonic() - begun < 30
    assert len(server.mailbox.sent) == 2


@pytest.mark.slow
def test_begun_just_now(server: Emulator) -> None:
    """A try right after one that was killed waits for the rest of the time to settle."""
    server.readings = Readings(sent_delay_seconds=1.5)
    send(server, letter())

    assert send(server, letter(settle_seconds=4), earlier=earlier(1)).before

    assert len(server.mailbox.sent) == 1


def test_begun_and_nowhere_to_look(server: Emulator) -> None:
    """A task that may have sent it, and has no folder to check, sends nothing."""
    with pytest.raises(R7MailSendUnclearError, match="no sent_folder is given"):
        send(server, letter(folder=None), earlier=earlier())

    assert server.requests == []


def test_refused_after_a_try_that_sent_nothing(server: Emulator) -> None:
    """A refusal is recorded even if an earlier try stopped before it began to send."""
    server.faults.append(Fault("Send", status=403))
    record: list[Attempt] = []
    with pytest.raises(R7MailRequestError):
        send(
            server,
            letter(folder=None),
            earlier=earlier(state="unknown", last=None),
            record=record.append,
        )

    send(server, letter(folder=None), earlier=record[-1])

    assert len(server.mailbox.sent) == 1


def test_the_login_is_refused_on_looking_back(server: Emulator) -> None:
    """A wrong password is reported as such, even if it prevented reading the Sent folder."""
    with (
        Client(replace(config(server), password="wrong")) as client,
        pytest.raises(R7MailAuthError),
    ):
        send_once(client, letter(), earlier=earlier())


def test_the_servers_clock_is_not_ours(server: Emulator) -> None:
    """A server whose clock is hours behind doesn't cause a second message."""
    send(server, letter())
    for record in server.mailbox.contents(SENT).records:
        then = datetime.now(UTC) - timedelta(hours=20)
        record.set("Date", then.strftime("%Y-%m-%dT%H:%M:%SZ"))

    assert send(server, letter(), earlier=earlier(0)).before


@pytest.mark.parametrize(
    "readings",
    [
        Readings(sort_one="descending", count="page", page_cap=3),
        Readings(start_inclusive=False, end_inclusive=False, precision="second", ties="random"),
        Readings(null_fields=("Subject", "To", "Body", "WasSent")),
        Readings(null_fields=("Date",)),
        Readings(ignore_dates=True),
        Readings(unknown_fields=True),
    ],
    ids=str,
)
def test_any_reading(server: Emulator, readings: Readings) -> None:
    """The message is found under every reading, among others with the same subject."""
    for number in range(5):
        send(server, letter(number, f"a{number}@b.ru"))
    server.readings = readings

    assert send(server, letter(2, "a2@b.ru"), earlier=earlier(5)).before

    assert len(server.mailbox.sent) == 5


def test_a_huge_sent_folder(server: Emulator) -> None:
    """A search covers the time since the first attempt, not years of sent mail."""
    old = NOW - timedelta(days=400)
    for number in range(3000):
        server.mailbox.deliver(
            date=old + timedelta(minutes=number),
            subject="Prices",
            folder=SENT,
            fields={"WasSent": True},
        )

    send(server, letter(), earlier=earlier())

    assert len(server.mailbox.sent) == 1
    assert count_calls(server, "Messages") < 8


# -- which message it is ----------------------------------------------------------------------


def sent_by_hand(server: Emulator, ago: float = 1.0, **values: Any) -> int:
    """Put a message without a marker into the Sent folder."""
    values = {
        "subject": "Prices",
        "body": "See below",
        "html_body": "<p>See below</p>",
        "to": ["a@b.ru"],
        "fields": {"WasSent": True},
        **values,
    }
    date = datetime.now(UTC) - timedelta(seconds=ago)
    return server.mailbox.deliver(folder=SENT, date=date, **values)


def test_another_runs_message_is_another(server: Emulator) -> None:
    """A message of another run is different, even with the same subject, recipients and text."""
    other = letter()
    marker = Marker.of(("reports", "scheduled__2025-06-02", "send"), 0, ["a@b.ru"])
    send(server, replace(other, call=marker.put_into(other.call), marker=marker))

    assert not send(server, letter(), earlier=earlier()).before

    assert len(server.mailbox.sent) == 2


def test_a_persons_message_is_another(server: Emulator) -> None:
    """If the server keeps markers, a message without one is a different one."""
    send(server, letter(1, "other@b.ru"))
    sent_by_hand(server)

    assert not send(server, letter(), earlier=earlier(0)).before


def test_a_server_that_takes_markers_out(server: Emulator) -> None:
    """Then subject, recipients and text identify it, if exactly one message since then matches."""
    server.readings = Readings(strip_hidden=True)
    server.faults.append(Fault("Send", kind="reset", after_acting=True))

    send(server, letter(settle_seconds=0.5))

    assert len(server.mailbox.sent) == 1
    assert "r7mail-" not in server.mailbox.messages(SENT)[0]["HtmlBody"]


@pytest.mark.parametrize(
    "others",
    [
        [{"ago": 3600}],
        [{}, {}],
        [{"body": "Another", "html_body": "<p>Another</p>"}],
        [{"body": None, "html_body": None, "fields": {"HtmlBody": None, "Body": None}}],
        [{"ago": 60}, {"to": ["A@B.ru"], "subject": " Prices"}],
    ],
    ids=["earlier", "two", "another text", "no text", "written otherwise"],
)
def test_not_to_be_told_apart(server: Emulator, others: list[dict[str, Any]]) -> None:
    """If a message may or may not be this one, the error names it: there is no guessing."""
    ids = [sent_by_hand(server, **values) for values in others]

    with pytest.raises(R7MailSendUnclearError, match=re.escape(str(ids[::-1]))):
        send(server, letter(), earlier=earlier(0))

    assert server.mailbox.sent == []


@pytest.mark.parametrize(
    "values",
    [{"subject": "Other"}, {"to": ["x@b.ru"]}, {"cc": ["c@b.ru"]}, {"bcc": ["c@b.ru"]}],
    ids=str,
)
def test_messages_that_differ(server: Emulator, values: dict[str, Any]) -> None:
    """With another subject or other recipients, it is a different message."""
    sent_by_hand(server, **values)

    assert not send(server, letter(), earlier=earlier(0)).before


def test_the_list_has_shifted(server: Emulator) -> None:
    """If the mapped list changed, a recipient served by another instance gets nothing twice."""
    send(server, letter(3, "bob@b.ru"))

    assert send(server, letter(2, "bob@b.ru"), earlier=earlier()).before
    # And the one who has taken the place of another gets it.
    assert not send(server, letter(3, "cid@b.ru"), earlier=earlier()).before

    assert [sent["To"] for sent in server.mailbox.sent] == [["bob@b.ru"], ["cid@b.ru"]]


def test_several_reports_for_one(server: Emulator) -> None:
    """Two reports of a run to the same person are two messages, distinguished by their subject."""
    send(server, letter(0, subject="Sales"))

    assert not send(server, letter(1, subject="Stock"), earlier=earlier()).before
    # The same subject with another text: it can't be told whether that is another report.
    with pytest.raises(R7MailSendUnclearError, match="differ"):
        send(server, letter(2, subject="Stock", text="Other numbers"), earlier=earlier())


@pytest.mark.parametrize("strip_hidden", [False, True])
@pytest.mark.parametrize(
    "values",
    [{"html": "<p>West</p>"}, {"attachments": [WEST]}],
    ids=["html", "file"],
)
def test_reports_that_differ_in_one_part(
    server: Emulator, values: dict[str, Any], strip_hidden: bool
) -> None:
    """A report doesn't count as sent because another one of the run has the same plain text."""
    server.readings = Readings(strip_hidden=strip_hidden)

    def report(number: int, values: dict[str, Any]) -> Sending:
        call = calls.send_message(
            **{"subject": "Sales", "text": "See HTML", "html": "<p>East</p>", **values},
            to=["a@b.ru"],
        )
        marker = Marker.of(TASK, number, recipients_of(call))
        return Sending(
            call=marker.put_into(call), marker=marker, sent_folder=SENT, settle_seconds=0
        )

    send(server, report(0, {}))

    with pytest.raises(R7MailSendUnclearError):
        send(server, report(1, values), earlier=earlier(5))


def test_recipients_that_cannot_be_read(server: Emulator) -> None:
    """Recipients listed without addresses don't make it a different message."""
    sent_by_hand(server, to=["Ann"])

    assert send(server, letter(), earlier=earlier(5)).before


def test_the_subject_has_the_time(server: Emulator) -> None:
    """A subject that each try renders anew doesn't hide what an earlier try sent."""
    send(server, letter(subject="Prices at 10:00"))

    assert send(server, letter(subject="Prices at 10:05"), earlier=earlier()).before


def test_recipients_were_added(server: Emulator) -> None:
    """If some recipients got it and some didn't, there is no guessing."""
    call = calls.send_message(subject="s", text="t", html="t", to=["a@b.ru", "c@d.ru"])
    marker = Marker.of(TASK, 0, recipients_of(call))
    send(server, letter())

    with pytest.raises(R7MailSendUnclearError, match="some of its recipients"):
        send(
            server,
            Sending(call=marker.put_into(call), marker=marker, sent_folder=SENT),
            earlier=earlier(),
        )


# -- a worker killed --------------------------------------------------------------------------

CHILDREN = multiprocessing.get_context("spawn")


def send_and_die(url: str, begun: Any) -> None:
    """Be a worker that dies after the server got the message, before reading the response."""
    call = letter().call

    def die(body: bytes) -> Any:
        os.kill(os.getpid(), 9)

    def note(attempt: Attempt) -> None:
        begun.send(attempt.to_json())

    settings = ClientConfig(url=url, login="user_test", password="TestPassword")
    with Client(settings) as client:
        send_once(client, replace(letter(), call=replace(call, parse=die)), record=note)


@pytest.mark.slow
def test_killed_between_send_and_finish(server: Emulator) -> None:
    """If a worker is killed (-9) after the server took the message, the next try finds it."""
    ours, theirs = CHILDREN.Pipe()
    child = CHILDREN.Process(target=send_and_die, args=(server.url, theirs))
    child.start()
    child.join()

    assert child.exitcode == -9
    assert len(server.mailbox.sent) == 1
    known = Attempt.from_json(ours.recv())
    assert known.state == "sending"
    assert send(server, letter(settle_seconds=60), earlier=known).before
    assert len(server.mailbox.sent) == 1


# -- what goes into a message -----------------------------------------------------------------


def test_the_marker_is_not_seen() -> None:
    """The marker is at the end of the HTML, hidden, and reveals nothing of what it is made from."""
    call = calls.send_message(
        subject="s", text="t", html="<html><body><p>a</p></BODY ></html>", to=["a@b.ru"]
    )
    marked = Marker.of(TASK, 0, ["a@b.ru"]).put_into(call)

    html = (marked.body or {})["HtmlBody"]
    found = re.fullmatch(
        r'<html><body><p>a</p><div aria-hidden="true" style="display:none;[^"]*">'
        r"(r7mail-[0-9a-f]{16}-[0-9a-f]{16})</div></BODY ></html>",
        html,
    )
    assert found
    assert (marked.body or {})["Body"] == "t"
    assert not any(name in html for name in (*TASK, "a@b.ru"))


def test_markers_differ() -> None:
    """Each instance, run and part has its own marker; a retry has the same, whatever the case."""
    one = Marker.of(TASK, 0, ["a@b.ru"])
    others = [
        Marker.of(TASK, 1, ["a@b.ru"]),
        Marker.of((*TASK[:2], "other"), 0, ["a@b.ru"]),
        Marker.of(TASK, 0, ["a@b.ru"], 711),
        Marker.of(TASK, 0, ["c@d.ru"]),
        Marker.random(),
    ]

    assert one == Marker.of(TASK, 0, ["A@b.RU"])
    assert len({one, *others}) == 6


def test_quoted_markers_go(server: Emulator) -> None:
    """A marker in quoted mail doesn't make this a different message."""
    other = str(Marker.of(TASK, 9, ["x@y.ru"]))
    call = calls.send_message(subject="s", text="t", html=f"<p>{other}</p>", to=["a@b.ru"])
    marker = Marker.of(TASK, 0, ["a@b.ru"])

    assert (marker.put_into(call).body or {})["HtmlBody"].count("r7mail-") == 1


def test_records_are_read_back() -> None:
    """A record can be stored as JSON; an invalid one is refused."""
    attempt = earlier(state="sent", id=3)

    assert Attempt.from_json(attempt.to_json()) == attempt
    with pytest.raises(R7MailConfigError, match="not a record of an attempt"):
        Attempt.from_json({"state": "sending"})


def test_links_are_escaped() -> None:
    """Links are at the end of both bodies; their names are escaped."""
    html, text = add_links(
        "<body>x</body>", "x", [Link('https://a/?b="c"&d', "<script>.csv"), Link("s3://b/k", "k")]
    )

    assert html == (
        '<body>x<ul><li><a href="https://a/?b=&quot;c&quot;&amp;d">&lt;script&gt;.csv</a></li>'
        '<li><a href="s3://b/k">k</a></li></ul></body>'
    )
    assert text == 'x\n\n<script>.csv: https://a/?b="c"&d\nk: s3://b/k'
    assert add_links("x", "y", []) == ("x", "y")


HOSTILE = "<script>alert(1)</script>"


def test_tables_are_escaped() -> None:
    """Cells, column names and indexes are data: they never become HTML or links."""
    frame = pd.DataFrame(
        {HOSTILE: [HOSTILE, "https://evil.example", "x" * 200, None], "n": [1, 2, 3, 4]},
        index=pd.Index([HOSTILE] * 4, name=HOSTILE),
    ).rename_axis(columns=HOSTILE)

    html = html_table(frame)

    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 2
    assert "<a " not in html
    assert "x" * 200 in html, "long texts are not cut"
    assert "rows" not in html


def test_long_tables_are_cut() -> None:
    """A long table is cut off, and says so."""
    html = html_table(pd.DataFrame({"n": range(3000)}), max_rows=20)

    assert html.count("<tr>") == 20
    assert "The first 20 of 3,000 rows." in html


def test_tables_from_xcom() -> None:
    """Rows from XCom, a list of dicts, become a table."""
    html = html_table([{"a": 1, "b": "<b>"}, {"a": 2}])

    assert "&lt;b&gt;" in html
    assert html.count("<td>") == 4
