from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from airflow_provider_r7mail.client import answers, calls, statuses
from airflow_provider_r7mail.client.answers import AnswerError
from airflow_provider_r7mail.client.calls import Call
from airflow_provider_r7mail.client.http import request_options
from airflow_provider_r7mail.client.models import Attachment, MessageFilter, NoMessage
from airflow_provider_r7mail.exceptions import (
    R7MailActionError,
    R7MailAuthError,
    R7MailConfigError,
    R7MailProxyError,
    R7MailRequestError,
    R7MailResponseError,
    R7MailServerError,
)

SAMPLES = Path(__file__).parents[1] / "samples"


def _sample(name: str) -> Any:
    return json.loads((SAMPLES / name).read_text(encoding="utf-8"))


def _list(
    criteria: MessageFilter,
    *,
    size: int,
    start: datetime | None = None,
    end: datetime | None = None,
) -> Call[Any]:
    return calls.list_messages(
        24, criteria, start=start, end=end, offset=0, size=size, parse=answers.parse_page
    )


DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
FILE = Attachment(id=338, file_id=254, file_name="Док.docx", size=21288, mime_type=DOCX)
SEND = calls.send_message(
    subject="Отправка файла",
    text="Письмо с файлом\n",
    html="<p>Письмо с файлом\n</p>",
    to=["filip_test@devr7.ru"],
    attachments=[FILE],
    draft_id=965,
)
CALLS: list[tuple[str, Call[Any], str]] = [
    ("login", calls.log_in("user_test", "TestPassword"), "/api/v2/auth/Login"),
    ("send", SEND, "/api/v1/email/Send"),
    (
        "messages.filter",
        _list(
            MessageFilter(query="пппп", sender="filip_test@s7-office.site"),
            size=50,
            start=datetime(2025, 6, 10, tzinfo=UTC),
            end=datetime(2025, 6, 19, 23, 59, 59, 999000, tzinfo=UTC),
        ),
        "/api/v1/email/Messages",
    ),
    (
        "messages.read-status",
        _list(MessageFilter(labels=(2, 3, 4), was_read=True), size=2),
        "/api/v1/email/Messages",
    ),
    ("mark-as-read", calls.mark_as_read(24, (711, 710), read=True), "/api/v1/email/MarkAsRead"),
    ("mark-as-unread", calls.mark_as_read(24, (711, 710), read=False), "/api/v1/email/MarkAsRead"),
    (
        "mark-as-favorite",
        calls.mark_as_important(24, (711, 710), important=True),
        "/api/v1/email/MarkAsFavorite",
    ),
    (
        "unmark-as-favorite",
        calls.mark_as_important(24, (711, 710), important=False),
        "/api/v1/email/MarkAsFavorite",
    ),
    ("delete", calls.delete_messages(24, (709, 708)), "/api/v1/email/Delete"),
    ("move", calls.move_messages(24, (709, 708), 15), "/api/v1/email/MoveMessage"),
]


@pytest.mark.parametrize(("name", "call", "path"), CALLS, ids=[name for name, *_ in CALLS])
def test_requests_are_those_of_the_manual(name: str, call: Call[Any], path: str) -> None:
    """Each request has exactly the names, values and types of the manual's example."""
    expected = _sample(f"{name}.request.json")
    sent = json.loads(request_options(call, "token")["content"])

    assert sent == expected
    assert json.dumps(sent, sort_keys=True) == json.dumps(expected, sort_keys=True)
    assert (call.method, call.path, call.query) == ("POST", path, "")


def test_an_attachment_is_asked_for_as_in_the_manual() -> None:
    """The request for a file is exactly the manual's example (R9: `Id`)."""
    call = calls.download_attachment(24, 884, "invite.ics")
    url = request_options(call, "token")["url"]

    assert f"{call.method} {url}" == (SAMPLES / "attachments.request.txt").read_text().strip()
    assert call.body is None


def test_every_request_of_the_manual_is_made() -> None:
    """Every request of the manual is covered."""
    made = {name for name, *_ in CALLS}

    assert {file.name.split(".request")[0] for file in SAMPLES.glob("*.request.json")} == made


def test_headers_are_those_of_the_manual() -> None:
    """Each call has the JSON content type and the token without `Bearer`; Login has no token."""
    login = request_options(calls.log_in("l", "p"), "token")["headers"]
    deleting = request_options(calls.delete_messages(1, [2]), "token")["headers"]

    assert deleting == {"Content-Type": "application/json", "Authorization": "token"}
    assert "Authorization" not in login


def test_only_send_must_not_be_repeated() -> None:
    """Every call except Send is safe to repeat (R23)."""
    each = [call for _, call, _ in CALLS] + [calls.download_attachment(1, 2, "x")]

    assert [call.path for call in each if not call.repeatable] == ["/api/v1/email/Send"]


def test_without_a_draft_id_send_has_zero() -> None:
    """I can send without a draft, although the API requires its id: 0 is sent instead (R10)."""
    call = calls.send_message(subject="s", text="t", html="h", to="a@example.org")
    body = call.body or {}

    assert body["Id"] == 0
    assert body["Attachments"] == body["Cc"] == body["Bcc"] == []


def test_one_address_is_one_recipient() -> None:
    """A single address given as text is one recipient, not one per letter (R8)."""
    call = calls.send_message(
        subject="", text="", html="", to="a@b.org", cc="c@d.org", bcc="e@f.org"
    )
    body = call.body or {}

    assert (body["To"], body["Cc"], body["Bcc"]) == (["a@b.org"], ["c@d.org"], ["e@f.org"])


def test_a_filter_may_hold_any_text() -> None:
    """A lone surrogate in a filter is sent as a JSON escape (R21)."""
    call = _list(MessageFilter(subject="\ud83d\0"), size=1)
    sent = json.loads(request_options(call, None)["content"])

    assert sent["SearchContext"]["Subject"] == "\ud83d\0"


NAMES = [
    "../../etc/passwd",
    "a/b",
    "a\\b",
    "a\0b",
    "a\r\nb",
    "n" * 300,
    "Счёт № 5.pdf",
    "😀.png",
    "?&#%+ =;'\"",
    "%2B%00",
    "[1]{2}|^`~!$()*,:@<>",
    " ",
    ".",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_file_name_is_asked_for_exactly(name: str) -> None:
    """A file is requested by exactly its name, whatever the name is (R19)."""
    call = calls.download_attachment(24, 884, name)
    url = httpx.Client(base_url="http://mail.example.org", verify=False).build_request(
        "GET", f"{call.path}?{call.query}"
    )

    assert dict(parse_qsl(urlsplit(str(url.url)).query, errors="strict")) == {
        "folderId": "24",
        "Id": "884",
        "FileName": name,
    }


def test_half_a_surrogate_pair_is_a_clear_error() -> None:
    """A file name that can't be in a URL is a clear error before anything is sent."""
    with pytest.raises(R7MailConfigError, match="half of a surrogate pair") as caught:
        calls.download_attachment(24, 884, "half \ud83d.pdf")

    assert "half .pdf" not in str(caught.value)


def test_a_call_does_not_show_what_it_carries() -> None:
    """A call in a log or traceback shows no password, mail or file name."""
    carrying = [calls.log_in("anna", "pa55"), SEND, calls.download_attachment(1, 2, "salary.xlsx")]
    shown = " ".join(repr(call) for call in carrying)

    for secret in ("anna", "pa55", "filip_test", "Письмо", "Отправка", "salary"):
        assert secret not in shown
    assert "/api/v1/email/Send" in shown


def test_the_answers_of_the_manual_are_read() -> None:
    """Each response in the manual is read completely."""
    read = (SAMPLES / "messages.read-status.response.json").read_bytes()
    page = answers.parse_page(read)
    found = answers.parse_page((SAMPLES / "messages.filter.response.json").read_bytes())
    sent = SEND.parse((SAMPLES / "send.response.json").read_bytes())
    login = answers.parse_token((SAMPLES / "login.response.json").read_bytes())
    done = calls.delete_messages(1, [2]).parse((SAMPLES / "boolean.response.json").read_bytes())
    file = (SAMPLES / "attachments.response.ics").read_bytes()

    assert page.count == json.loads(read)["Count"]
    assert len(page.items) == len(json.loads(read)["Items"])
    assert page.items[0].id == 930
    assert page.items[0].labels == (2, 3, 4)
    assert not any(message.extra for message in (*page.items, *found.items, sent))
    assert [message.subject for message in found.items] == ["пппп"]
    assert (sent.id, sent.uid, sent.was_sent, sent.has_attachments) == (965, -965, False, True)
    assert sent.date == datetime(2025, 6, 27, 12, 22, 34, 382021, tzinfo=UTC)
    assert login == "98bb0f1f-eba1-4c48-afde-b7807146db75"
    assert done is True
    assert calls.download_attachment(1, 2, "x").parse(file) == file


def _login_answer(**data: object) -> bytes:
    return json.dumps({"Response": {"Data": {"State": "Login", **data}}}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"null",
        b"[]",
        b"true",
        b'"ok"',
        b'{"Response": null}',
        b'{"Response": {"Data": null}}',
        b'{"Response": {"Data": []}}',
        _login_answer(),
        _login_answer(Tokens=None),
        _login_answer(Tokens=[]),
        _login_answer(Tokens={}),
        _login_answer(Tokens={"AuthToken": None}),
        _login_answer(Tokens={"AuthToken": ""}),
        _login_answer(Tokens={"AuthToken": 5}),
        _login_answer(Tokens={"AuthToken": "t"}, State="Locked"),
        _login_answer(Tokens={"AuthToken": "t"}, State=""),
        _login_answer(Tokens={"AuthToken": "t"}, State=False),
        _login_answer(Tokens={"AuthToken": "t"}, State={"Name": "Login"}),
    ],
)
def test_a_login_without_a_token_is_refused(body: bytes) -> None:
    """A 200 without a token, or with another State, is a refused login (R14)."""
    with pytest.raises(AnswerError) as caught:
        answers.parse_token(body)

    assert caught.value.error is R7MailAuthError


@pytest.mark.parametrize("answer", [{}, {"State": None}, {"ExpiredAt": "2001-01-01"}])
def test_a_token_is_a_token(answer: Mapping[str, object]) -> None:
    """The token is read whatever else the response contains or lacks (R12, R20)."""
    body = json.loads(_login_answer(Tokens={"AuthToken": "t"}))
    body["Response"]["Data"] |= answer

    assert answers.parse_token(json.dumps(body).encode()) == "t"


@pytest.mark.parametrize("token", ["a\nb", "a\0", "токен", "half \ud83d"])
def test_a_token_that_no_header_can_hold_is_not_shown(token: str) -> None:
    """An invalid token is an error that doesn't quote it."""
    with pytest.raises(AnswerError, match="characters that a header can't") as caught:
        answers.parse_token(_login_answer(Tokens={"AuthToken": token}))

    assert token not in str(caught.value)


@pytest.mark.parametrize(
    "body", [b"false", b"null", b'"true"', b"1", b"[true]", b"{}", b'{"Response": true}']
)
def test_anything_but_true_is_a_failure(body: bytes) -> None:
    """An action has succeeded only if the server says `true` (R15)."""
    with pytest.raises(AnswerError) as caught:
        answers.parse_true(body)

    assert caught.value.error is R7MailActionError


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", R7MailResponseError),
        (b"{", R7MailResponseError),
        (b"\xff\xfe\xff", R7MailResponseError),
        (b"[" * 100_000, R7MailResponseError),
        (b"9" * 5_000, R7MailResponseError),
        (b"<!DOCTYPE html><title>Sign in</title>", R7MailProxyError),
        (b"\n  <html>", R7MailProxyError),
    ],
    ids=lambda item: repr(item)[:20],
)
def test_what_is_no_json_is_an_error(body: bytes, error: type[R7MailRequestError]) -> None:
    """A truncated response is distinguished from a proxy's page with status 200 (R16)."""
    for parse in (
        answers.parse_token,
        answers.parse_page,
        answers.parse_message,
        answers.parse_true,
    ):
        with pytest.raises(AnswerError) as caught:
            parse(body)

        assert caught.value.error is error


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"null",
        b"{}",
        b'{"Items": {}}',
        b'{"Items": null, "Count": null, "Messages": [{"Id": 1}]}',
        b'{"Items": [null]}',
        b'{"Items": ["x"]}',
        b'{"Items": [{}]}',
        b'{"Items": [{"Id": "x"}]}',
        b'{"Items": [{"Id": Infinity}]}',
    ],
)
def test_what_is_no_listing_is_an_error(body: bytes) -> None:
    """A response that is not a listing is never taken for an empty one."""
    with pytest.raises(AnswerError) as caught:
        answers.parse_page(body)

    assert caught.value.error is R7MailResponseError


def test_one_row_without_an_id_does_not_spoil_the_page() -> None:
    """A message without a readable Id counts for paging, and the others are read."""
    dates = [f"2025-06-27T04:21:5{second}Z" for second in range(3)]
    named: list[dict[str, object]] = [{"Id": 1}, {"Subject": "x"}, {"Id": "7a"}]
    rows = [{**row, "Date": date} for row, date in zip(named, dates, strict=True)]

    page = answers.parse_page(json.dumps({"Items": rows}).encode())

    assert [message.id for message in page.items] == [1]
    assert [row.date.second for row in page.rows if row.date] == [50, 51, 52]
    assert len({row.key for row in page.rows if isinstance(row, NoMessage)}) == 2


@pytest.mark.parametrize(
    ("count", "expected"),
    [("5", 5), ("null", None), ('"5"', 5), ('"many"', None), ("true", None), ("1.5", None)],
)
def test_count_is_a_number_or_unknown(count: str, expected: int | None) -> None:
    """`Count` is a number, also as text, or unknown (R2, R20)."""
    assert answers.parse_page(b'{"Items": null, "Count": %b}' % count.encode()).count == expected
    assert answers.parse_page(b'\xef\xbb\xbf{"Items": []}').count is None


@pytest.mark.parametrize("body", [b"[]", b"null", b"true", b"{}", b'{"Id": null}'])
def test_what_is_no_sent_message_is_an_error(body: bytes) -> None:
    """Send's response must be a message: otherwise I can't know what happened."""
    with pytest.raises(AnswerError) as caught:
        answers.parse_message(body)

    assert caught.value.error is R7MailResponseError


HTML = {"Content-Type": "text/html; charset=utf-8"}


@pytest.mark.parametrize(
    ("status", "headers", "error", "reason"),
    [
        (204, {}, R7MailResponseError, "a status that the API does not define"),
        (302, {"Location": "/sign-in"}, R7MailProxyError, "something in front"),
        (400, {}, R7MailServerError, "refused the request"),
        (401, {}, R7MailAuthError, "not authorised"),
        (401, HTML, R7MailAuthError, "not authorised"),
        (403, {}, R7MailServerError, "refused, or not there"),
        (403, HTML, R7MailProxyError, "something in front"),
        (404, {}, R7MailServerError, "no such endpoint"),
        (404, HTML, R7MailProxyError, "something in front"),
        (405, {}, R7MailServerError, "the method is not allowed"),
        (406, {}, R7MailServerError, "refused, or not there"),
        (407, {}, R7MailProxyError, "the proxy requires a login"),
        (429, {}, R7MailProxyError, "too many requests"),
        (500, {}, R7MailServerError, "the server failed"),
        (500, HTML, R7MailServerError, "the server failed"),
        (501, {}, R7MailServerError, "the server failed"),
        (502, HTML, R7MailProxyError, "could not get a response"),
        (503, {}, R7MailProxyError, "could not get a response"),
        (504, {}, R7MailProxyError, "could not get a response"),
    ],
)
def test_statuses_have_meanings(
    status: int, headers: dict[str, str], error: type[R7MailRequestError], reason: str
) -> None:
    """Each status is attributed to its source, and each error says what to do (R16)."""
    failure = statuses.failure(calls.delete_messages(24, [1]), status, httpx.Headers(headers), 2)

    assert type(failure) is error
    assert reason in failure.reason
    assert (failure.status, failure.attempt, failure.path) == (status, 2, "/api/v1/email/Delete")
    assert failure.hint


def test_a_file_that_a_web_server_refuses_by_its_name() -> None:
    """If a web server in front refuses a file name, as IIS does, the error says what to do."""
    page = httpx.Headers(HTML)
    file = statuses.failure(calls.download_attachment(24, 884, "web.config"), 404, page, 1)
    other = statuses.failure(calls.delete_messages(24, [1]), 404, page, 1)

    assert file is not None
    assert "request filtering" in file.hint
    assert "web.config" not in str(file)
    assert other is not None
    assert "Check Host" in other.hint


def test_200_is_no_failure() -> None:
    """Only 200 means success."""
    assert statuses.failure(calls.delete_messages(24, [1]), 200, httpx.Headers(), 1) is None


def test_500_refuses_a_login_until_the_password_has_worked() -> None:
    """A 500 to the first login may mean a wrong password (R14), but not once it has worked."""
    first = statuses.failure(calls.log_in("l", "p"), 500, httpx.Headers(), 1)
    later = statuses.failure(calls.log_in("l", "p", proven=True), 500, httpx.Headers(), 1)

    assert type(first) is R7MailAuthError
    assert "Check Login and Password" in first.hint
    assert type(later) is R7MailServerError


def _wait(value: str | None) -> float | None:
    headers = httpx.Headers({} if value is None else {b"Retry-After": value.encode("latin-1")})
    failure = statuses.failure(calls.delete_messages(24, [1]), 503, headers, 1)
    assert failure is not None
    return failure.retry_after


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("86400", 86400.0),
        ("1.5", None),
        ("-5", None),
        ("soon", None),
        ("\xb2", None),
        ("9" * 5_000, None),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 0.0),
        ("Mon, 99 Jan 2001 00:00:00 GMT", None),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("Mon, 01 Jan 2001 00:00:00 +9999", None),
    ],
    ids=lambda item: ascii(item)[:20],
)
def test_retry_after_is_read(value: str | None, expected: float | None) -> None:
    """`Retry-After` may be seconds or a date; anything else is ignored (R16)."""
    assert _wait(value) == expected


def test_retry_after_may_be_a_date() -> None:
    """If a proxy gives a date, the call is retried at that time (R16)."""
    moment = datetime.now(UTC) + timedelta(seconds=100)
    wait = _wait(format_datetime(moment, usegmt=True))

    assert wait is not None
    assert 90 < wait <= 100


def test_a_long_rest_is_told() -> None:
    """If a proxy asks to wait for hours, the call fails, and the error says how long."""
    headers = httpx.Headers({"Retry-After": "7200"})
    failure = statuses.failure(calls.delete_messages(24, [1]), 503, headers, 1)

    assert failure is not None
    assert "Retry-After asks to wait 7200 s" in failure.hint
