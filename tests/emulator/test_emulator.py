"""The stand-in server itself: each reading and each fault, over a real socket, with plain httpx."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode

import httpx
import pytest

from airflow_provider_r7mail.emulator import (
    MISSING,
    Attachment,
    Emulator,
    Fault,
    Mailbox,
    MailMessage,
    Readings,
    Refused,
    create_app,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SAMPLES = Path(__file__).parents[1] / "samples"
LOGIN = "/api/v2/auth/Login"
MAIL = "/api/v1/email"


class Api:
    """A client that does nothing by itself: it logs in and sends what a test tells it to."""

    def __init__(self, server: Emulator) -> None:
        self.server = server
        self.http = httpx.Client(base_url=server.url, timeout=5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def log_in(self, login: str = "user_test", password: str = "TestPassword") -> httpx.Response:
        """Log in, and use the token from now on."""
        answer = self.http.post(LOGIN, json={"Login": login, "Password": password})
        if answer.status_code == 200 and answer.json()["Response"]:
            token = answer.json()["Response"]["Data"]["Tokens"]["AuthToken"]
            self.http.headers["Authorization"] = token or ""
        return answer

    def post(self, call: str, request: Any) -> httpx.Response:
        """One call of the mail API."""
        return self.http.post(f"{MAIL}/{call}", json=request)

    def page(
        self, offset: int = 0, size: int = 50, order: int = 1, folder: int = 24, **context: Any
    ) -> dict[str, Any]:
        """A listing's answer."""
        answer = self.post("Messages", listing(offset, size, order, folder, **context))
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def ids(self, **arguments: Any) -> list[int]:
        """The ids on a page."""
        return [item["Id"] for item in self.page(**arguments)["Items"]]

    def file(self, number: int, file_name: str, folder: int = 24) -> httpx.Response:
        """A file's download."""
        # Quoted here: httpx before 0.28 takes "%41" in a parameter for something quoted already.
        query = urlencode({"folderId": folder, "Id": number, "FileName": file_name})
        return self.http.get(f"{MAIL}/Attachments?{query}")


def listing(
    offset: int = 0, size: int = 50, order: int = 1, folder: int = 24, **context: Any
) -> dict[str, Any]:
    """A request for a listing."""
    return {
        "folderId": folder,
        "SearchContext": context,
        "offset": offset,
        "size": size,
        "sortOrder": order,
        "orderField": "Date",
    }


def letter(**changes: Any) -> dict[str, Any]:
    """A request to send."""
    text = {"Subject": "Тема", "Body": "b", "HtmlBody": "<p>b</p>"}
    return {**text, "To": ["a@b.ru"], "Id": 0, **changes}


def sample(name: str) -> Any:
    """The JSON of one of the manual's examples."""
    return json.loads((SAMPLES / name).read_text(encoding="utf-8"))


@pytest.fixture
def mailbox() -> Mailbox:
    """An empty mailbox."""
    return Mailbox()


@pytest.fixture
def server(mailbox: Mailbox, caplog: pytest.LogCaptureFixture) -> Iterator[Emulator]:
    """A server of that mailbox, which has nothing to complain of, whatever a test does to it."""
    with Emulator(mailbox) as running:
        yield running
    assert [record.getMessage() for record in caplog.get_records("call")] == []


@pytest.fixture
def api(server: Emulator) -> Iterator[Api]:
    """A client of that server, logged in."""
    with Api(server) as client:
        client.log_in()
        yield client


def minutes(mailbox: Mailbox, *values: int) -> list[int]:
    """Deliver messages dated at minutes of 10:00, and return their ids."""
    return [
        mailbox.deliver(subject=f"n{value}", date=f"2025-06-01T10:{value:02d}:00Z")
        for value in values
    ]


# The manual's examples


def same(expected: Any, actual: Any) -> None:
    """Equal as JSON text, so that the order of fields counts."""
    assert json.dumps(expected, ensure_ascii=False) == json.dumps(actual, ensure_ascii=False)


def deliver_sample(mailbox: Mailbox, item: dict[str, Any]) -> None:
    """Deliver a message of the manual's."""
    mailbox.deliver(
        subject=item["Subject"],
        body=item["Body"],
        html_body=item["HtmlBody"],
        sender=item["From"]["Address"],
        date=item["Date"],
        labels=item["Labels"],
        was_read=True,
        thread_id=item["ThreadId"],
        mime_message_id=item["MessageId"],
        fields={
            name: item[name]
            for name in ("Id", "Uid", "ExternalId", "Size", "Timestamp", "HasChildren")
        },
    )


@pytest.mark.parametrize("name", ["messages.filter", "messages.read-status"])
def test_a_listing_is_the_manuals_to_the_order_of_fields(
    name: str, mailbox: Mailbox, api: Api
) -> None:
    """What the manual's example asks for is answered exactly as the example shows."""
    expected = sample(f"{name}.response.json")
    deliver_sample(mailbox, expected["Items"][0])
    mailbox.deliver(subject="другое", date="2025-06-27T04:21:50Z", was_read=True)

    answer = api.post("Messages", sample(f"{name}.request.json"))

    same(expected, answer.json())
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


def test_a_send_is_answered_as_in_the_manual() -> None:
    """Send's answer has a draft's Uid, no text and `WasSent: false`, as in the manual's example."""
    mailbox = Mailbox(clock=lambda: datetime(2025, 6, 27, 12, 22, 34, 382021, tzinfo=UTC))
    request = sample("send.request.json")
    stored = mailbox.store_file("Док.docx", b"x" * 21288, request["Attachments"][0]["MimeType"])
    request["Attachments"] = [stored]
    request["Subject"] += "2"  # the manual's answer is of another message than its request

    with Emulator(mailbox) as server, Api(server) as api:
        api.log_in()
        answer = api.post("Send", request)

    same(sample("send.response.json"), answer.json())
    assert mailbox.get(965)["Attachments"][0]["FileName"] == "Док.docx"
    assert mailbox.attachment(25, 965, "Док.docx") == b"x" * 21288


def token_of(http: httpx.Client) -> str:
    """A fresh token."""
    answer = http.post(LOGIN, json=sample("login.request.json"))
    return str(answer.json()["Response"]["Data"]["Tokens"]["AuthToken"])


def test_a_login_is_answered_as_in_the_manual(api: Api) -> None:
    """Login's answer has the fields of the manual's example, in their order."""
    answer = api.http.post(LOGIN, json=sample("login.request.json")).json()

    expected = sample("login.response.json")
    fresh = ("ClientHash", "AuthToken", "RefreshToken", "ExpiredAt")
    tokens = answer["Response"]["Data"]["Tokens"]
    tokens.update({name: expected["Response"]["Data"]["Tokens"][name] for name in fresh})
    same(expected, answer)


@pytest.mark.parametrize(
    ("name", "call", "ids"),
    [
        ("mark-as-read", "MarkAsRead", (711, 710)),
        ("mark-as-unread", "MarkAsRead", (711, 710)),
        ("mark-as-favorite", "MarkAsFavorite", (711, 710)),
        ("unmark-as-favorite", "MarkAsFavorite", (711, 710)),
        ("delete", "Delete", (709, 708)),
        ("move", "MoveMessage", (709, 708)),
    ],
)
def test_the_manuals_changes_are_made(
    name: str, call: str, ids: tuple[int, ...], mailbox: Mailbox, api: Api
) -> None:
    """Each of the manual's requests that change messages is answered `true` and has its effect."""
    unmark = name.startswith("un") or "unread" in name
    for number in ids:
        mailbox.deliver(was_read=unmark, important=unmark, fields={"Id": number})

    answer = api.post(call, sample(f"{name}.request.json"))

    same(sample("boolean.response.json"), answer.json())
    state = [mailbox.get(number) for number in ids]
    match call:
        case "MarkAsRead":
            assert all(item["WasRead"] is not unmark for item in state)
        case "MarkAsFavorite":
            assert all(item["Important"] is not unmark for item in state)
        case "Delete":
            assert [(item["FolderId"], item["IsDeleted"]) for item in state] == [(27, True)] * 2
        case _:
            assert [item["FolderId"] for item in state] == [15, 15]


def test_an_attachment_is_the_manuals(mailbox: Mailbox, api: Api) -> None:
    """The manual's request for a file gets exactly its bytes."""
    data = (SAMPLES / "attachments.response.ics").read_bytes()
    mailbox.deliver(attachments=[("invite.ics", data, "text/calendar")], fields={"Id": 884})
    path = (SAMPLES / "attachments.request.txt").read_text().split()[1]

    answer = api.http.get(path)

    assert answer.content == data
    assert answer.headers["content-type"] == "text/calendar"
    assert int(answer.headers["content-length"]) == len(data)


# Logging in (R12 to R14)


def test_calls_need_a_token(server: Emulator) -> None:
    """Without a token, with an invented one, or with a `Bearer`, a call is answered 401."""
    with Api(server) as client:
        http = client.http
        assert client.post("Messages", listing()).status_code == 401
        token = token_of(http)
        for header in ("invented", f"Bearer {token}"):
            http.headers["Authorization"] = header
            assert client.post("Messages", listing()).status_code == 401
        http.headers["Authorization"] = token
        assert client.post("Messages", listing()).status_code == 200
        server.readings = Readings(token_header_strict=False)
        http.headers["Authorization"] = f"Bearer {token}"
        assert client.post("Messages", listing()).status_code == 200


def test_tokens_expire(server: Emulator, api: Api) -> None:
    """A token dies when told to, or after so many calls; a new login gives one that works."""
    server.expire_tokens()
    assert api.post("Messages", listing()).status_code == 401

    server.readings = Readings(token_calls=2)
    api.log_in()

    assert [api.post("Messages", listing()).status_code for _ in range(3)] == [200, 200, 401]
    assert server.logins == 2


@pytest.mark.parametrize("reading", ["future", "past", "absent", "other_zone"])
def test_expired_at_says_anything(reading: Any, server: Emulator, api: Api) -> None:
    """`ExpiredAt` may lie ahead, lie behind, be absent or be in another zone; the token works."""
    server.readings = Readings(expired_at=reading)
    tokens = api.log_in().json()["Response"]["Data"]["Tokens"]

    if reading == "absent":
        assert "ExpiredAt" not in tokens
    else:
        expires = datetime.fromisoformat(tokens["ExpiredAt"])
        assert (expires > datetime.now(UTC)) is (reading != "past")
        assert tokens["ExpiredAt"].endswith("+03:00") is (reading == "other_zone")
    assert api.post("Messages", listing()).status_code == 200


@pytest.mark.parametrize("reading", ["401", "500", "null_response", "no_token", "state"])
def test_a_login_is_refused_in_five_ways(reading: Any, server: Emulator, api: Api) -> None:
    """A wrong password is answered 401, 500, or 200 without a token that works."""
    server.readings = Readings(login_refusal=reading)
    answer = api.log_in(password="wrong")

    match reading:
        case "401" | "500":
            assert answer.status_code == int(reading)
        case "null_response":
            assert answer.json()["Response"] is None
        case "no_token":
            assert answer.json()["Response"]["Data"]["Tokens"]["AuthToken"] is None
        case _:
            assert answer.json()["Response"]["Data"]["State"] != "Login"
            assert api.post("Messages", listing()).status_code == 401


# Requests that are refused


@pytest.mark.parametrize(
    ("call", "request_"),
    [
        ("Messages", {**listing(), "FolderId": 24}),
        ("Messages", {key: value for key, value in listing().items() if key != "orderField"}),
        ("Messages", {**listing(), "size": "50"}),
        ("Messages", {**listing(), "offset": True}),
        ("Messages", {**listing(), "offset": -1}),
        ("Messages", {**listing(), "orderField": "date"}),
        ("Messages", listing(folder=4711)),
        ("Messages", listing(query="lower case")),
        ("Messages", listing(WasRead=None)),
        ("Messages", listing(Labels=2)),
        ("Messages", listing(StartDate="yesterday")),
        ("Messages", []),
        ("Send", letter(To="a@b.ru")),
        ("Send", letter(To=[])),
        ("Send", letter(Body=None)),
        ("Send", letter(Attachments=[{"Id": 1, "FileId": 1, "FileName": "a", "Size": 1}])),
        (
            "Send",
            letter(
                Attachments=[{"Id": 1, "FileId": 99, "FileName": "a", "Size": 1, "MimeType": "a/b"}]
            ),
        ),
        ("MarkAsRead", {"folderId": 24, "Ids": [1], "isFavorite": True}),
        ("MarkAsFavorite", {"folderId": 24, "Ids": ["1"], "isFavorite": True}),
        ("Delete", {"folderId": 24, "ids": []}),
        ("MoveMessage", {"fromId": 24, "Ids": [], "toId": 4711}),
    ],
)
def test_a_wrong_request_is_refused(call: str, request_: Any, api: Api) -> None:
    """A field that is missing, misspelt, of another case or of a wrong type is answered 500."""
    assert api.post(call, request_).status_code == 500


def test_method_path_and_content_type_matter(api: Api) -> None:
    """The wrong method is answered 405, an unknown path 404, another content type 500."""
    assert api.http.get(f"{MAIL}/Send").status_code == 405
    assert api.http.post(f"{MAIL}/Attachments", json={}).status_code == 405
    assert api.http.post(f"{MAIL}/Folders", json={}).status_code == 404
    answer = api.http.post(f"{MAIL}/Messages", content=json.dumps(listing()))
    assert answer.status_code == 500


@pytest.mark.parametrize(
    ("reading", "content_type"),
    [("empty", None), ("json", "application/json; charset=utf-8"), ("html", "text/html")],
)
def test_error_bodies_differ(
    reading: Any, content_type: str | None, server: Emulator, api: Api
) -> None:
    """An error has an empty body, JSON, or a proxy's HTML page (R16)."""
    server.readings = Readings(error_body=reading)
    answer = api.http.get(f"{MAIL}/Attachments?folderId=24&Id=1&FileName=no")

    assert answer.status_code == 500
    assert (not answer.content) is (reading == "empty")
    if content_type:
        assert answer.headers["content-type"].startswith(content_type)


# Listing (R1 to R6, R17, R20, R21)


@pytest.mark.parametrize("first", ["ascending", "descending"])
def test_sort_order_means_either(first: Any, mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """`sortOrder: 1` is the one order or the other, and any other value is the opposite (R1)."""
    server.readings = Readings(sort_one=first)
    ids = minutes(mailbox, 3, 1, 2)
    rising = [ids[1], ids[2], ids[0]]

    ordered = rising if first == "ascending" else rising[::-1]
    assert api.ids(order=1) == ordered
    assert api.ids(order=0) == ordered[::-1]
    assert api.ids(order=2) == ordered[::-1]


def test_other_fields_order_too(mailbox: Mailbox, api: Api) -> None:
    """A listing can be ordered by another field than the date."""
    for subject in ("б", "А", "в"):
        mailbox.deliver(subject=subject)
    answer = api.post("Messages", {**listing(), "orderField": "Subject"}).json()

    assert [item["Subject"] for item in answer["Items"]] == ["А", "б", "в"]


def test_count_is_of_all_or_of_the_page(mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """`Count` counts everything found, or only what the page holds (R2)."""
    minutes(mailbox, 1, 2, 3)

    assert api.page(size=2)["Count"] == 3
    server.readings = Readings(count="page")
    assert api.page(size=2)["Count"] == 2
    assert api.page(size=2)["UnreadCount"] == 3


def test_pages_can_be_capped(mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """The server may give fewer messages than asked for, though there are more (R3)."""
    ids = minutes(mailbox, 1, 2, 3, 4, 5)
    server.readings = Readings(page_cap=2)

    assert api.ids(size=50) == ids[:2]
    assert api.ids(offset=4, size=50) == ids[4:]
    assert api.ids(offset=9) == []
    assert api.ids(size=0) == []


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("end", [True, False])
def test_bounds_include_or_exclude(
    start: bool, end: bool, mailbox: Mailbox, server: Emulator, api: Api
) -> None:
    """A message dated exactly at a bound is found or not, each bound for itself (R4)."""
    ids = minutes(mailbox, 1, 2, 3)
    server.readings = Readings(start_inclusive=start, end_inclusive=end)
    bounds: dict[str, Any] = {
        "StartDate": "2025-06-01T10:01:00.000Z",
        "EndDate": "2025-06-01T13:03:00+03:00",
    }

    assert api.ids(**bounds) == ids[0 if start else 1 : 3 if end else 2]
    assert api.page(**bounds)["Count"] == 1 + start + end


@pytest.mark.parametrize(
    ("precision", "found"),
    [("second", [0, 1, 2, 3]), ("millisecond", [2, 3]), ("microsecond", [3])],
)
def test_dates_are_compared_at_a_precision(
    precision: Any, found: list[int], mailbox: Mailbox, server: Emulator, api: Api
) -> None:
    """Bounds and dates are cut to seconds, milliseconds or microseconds before comparing (R4)."""
    fractions = ("", ".9", ".9500001", ".9501007")
    ids = [mailbox.deliver(date=f"2025-06-01T10:00:00{part}Z") for part in fractions]
    server.readings = Readings(precision=precision)

    assert api.ids(StartDate="2025-06-01T10:00:00.9501") == [ids[place] for place in found]


def test_an_empty_bound_is_none(mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """An empty bound does not bound, and a server that ignores dates ignores all bounds."""
    ids = minutes(mailbox, 1, 2)

    assert api.ids(StartDate="", EndDate="") == ids
    assert api.ids(StartDate="", EndDate="2025-06-01T10:01:30Z") == ids[:1]
    assert api.ids(StartDate="2030-01-01") == []
    server.readings = Readings(ignore_dates=True)
    assert api.ids(StartDate="2030-01-01") == ids
    server.readings = Readings(ignore_offset=True)
    assert api.ids(offset=1) == ids


@pytest.mark.parametrize("order", [0, 1])
def test_ties_change_their_order(order: int, mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """Messages with one Date may change places between requests, even from page to page (R5)."""
    before, *tied, after = minutes(mailbox, 0, 1, 1, 1, 1, 1, 1, 2)

    assert api.ids(order=order) == api.ids(order=order)
    server.readings = Readings(ties="reversed")
    first, second = api.ids(order=order), api.ids(order=order)
    ends = [before, after] if order else [after, before]
    assert [first[0], first[-1]] == [second[0], second[-1]] == ends
    assert first[1:-1] == second[-2:0:-1]
    assert sorted(first[1:-1]) == tied

    # Two pages that cut the ties in two: what the second request moved is met twice, or missed.
    pages = api.ids(order=order, size=4) + api.ids(order=order, offset=4, size=4)
    assert len(pages) == 8
    assert len(set(pages)) < 8

    server.readings = Readings(ties="random")
    assert len({tuple(api.ids(order=order)) for _ in range(10)}) > 2
    found = {tuple(sorted(api.ids(order=order, offset=0, size=8))) for _ in range(10)}
    assert found == {tuple(sorted([before, *tied, after]))}


def test_the_folder_changes_between_requests(mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """Mail arrives, goes and moves just before a page is answered (R6)."""
    ids = minutes(mailbox, 1, 2, 3, 4)

    def change(call: dict[str, Any]) -> None:
        if call["path"].endswith("Messages") and call["json"]["offset"] == 2:
            mailbox.move(24, ids[:1], 15)

    server.on_request = change
    assert api.ids(offset=0, size=2) + api.ids(offset=2, size=2) == [*ids[:2], ids[3]]


@pytest.mark.parametrize(
    ("reading", "unbounded_start", "bounded"),
    [("as_min", 5, 1), ("always", 5, 5), ("never", 1, 1)],
)
def test_messages_without_a_date(
    reading: Any,
    unbounded_start: int,
    bounded: int,
    mailbox: Mailbox,
    server: Emulator,
    api: Api,
) -> None:
    """Messages without a readable date come first, and are within bounds as the reading has it."""
    [dated] = minutes(mailbox, 1)
    for value in ("0001-01-01T00:00:00", None, MISSING, "не дата"):
        mailbox.deliver(fields={"Date": value})
    server.readings = Readings(undated=reading)

    assert api.ids()[-1] == dated
    assert len(api.ids()) == 5
    assert len(api.ids(EndDate="2025-07-01T00:00:00Z")) == unbounded_start
    both: dict[str, Any] = {"StartDate": "2025-05-01T00:00:00Z", "EndDate": "2025-07-01T00:00:00Z"}
    assert len(api.ids(**both)) == bounded
    assert api.page(**both)["Count"] == bounded


@pytest.mark.parametrize(
    ("context", "found"),
    [
        ({"Subject": "ПРАЙС"}, {"price"}),
        ({"Body": "жирный"}, {"report"}),
        ({"From": "SUPPLIER"}, {"price"}),
        ({"From": "Поставщик"}, set()),
        ({"To": "boss@"}, {"report"}),
        ({"Query": "поставщик"}, {"price"}),
        ({"Query": "copy@devr7"}, {"report"}),
        ({"Query": "отчёт"}, {"report"}),
        ({"Labels": [2]}, {"price", "report"}),
        ({"Labels": [2, 3]}, {"report"}),
        ({"Labels": []}, {"price", "report"}),
        ({"WasRead": True}, {"report"}),
        ({"WasRead": False}, {"price"}),
        ({"WasRead": False, "Labels": [3]}, set()),
        ({"Subject": "прайс", "StartDate": "2025-06-02T00:00:00Z"}, set()),
    ],
)
def test_filters(context: dict[str, Any], found: set[str], mailbox: Mailbox, api: Api) -> None:
    """Each filter finds what holds its text in any case, and all filters must be met."""
    ids = {
        "price": mailbox.deliver(
            subject="Прайс-лист",
            body="цены",
            sender="price@supplier.example",
            sender_name="ООО Поставщик",
            labels=[2],
            date="2025-06-01T00:00:00Z",
        ),
        "report": mailbox.deliver(
            subject="Отчёт",
            html_body="<b>Жирный</b>",
            to=["boss@devr7.ru"],
            cc=["copy@devr7.ru"],
            labels=[3, 2],
            was_read=True,
            date="2025-06-02T00:00:00Z",
        ),
    }

    assert api.ids(**context) == [ids[name] for name in ("price", "report") if name in found]


def test_fields_come_and_go(mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """A listing may have unknown fields, lack known ones, and have nulls for others (R20)."""
    mailbox.deliver(fields={"Extra": [1, {"a": None}], "CsMd5": MISSING})
    server.readings = Readings(
        unknown_fields=True, missing_fields=("Labels", "Cc"), null_fields=("Subject", "From")
    )
    page = api.page()
    item = page["Items"][0]

    assert item["Extra"] == [1, {"a": None}]
    assert {"SpamScore", "Workspace"} <= set(item)
    assert not {"Labels", "Cc", "CsMd5"} & set(item)
    assert item["Subject"] is item["From"] is None
    assert "TotalPages" in page


def test_any_text_is_listed(mailbox: Mailbox, api: Api) -> None:
    """NUL characters and lone surrogates reach the client as the server has them (R21)."""
    mailbox.deliver(subject="a\0b \ud83d", body="Привет 🎉\u2028")
    answer = api.post("Messages", listing())

    assert answer.json()["Items"][0]["Subject"] == "a\0b \ud83d"
    assert answer.json()["Items"][0]["Body"] == "Привет 🎉\u2028"
    assert rb"\ud83d" in answer.content


def test_file_names_can_be_left_out(mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """A listing may say that there are files, and not which (R17)."""
    mailbox.deliver(attachments=[Attachment("a.txt", b"a")])
    assert api.page()["Items"][0]["Attachments"][0]["FileName"] == "a.txt"

    server.readings = Readings(list_attachments=False)
    item = api.page()["Items"][0]
    assert (item["HasAttachments"], item["Attachments"]) == (True, None)


# Attachments (R18, R19, R22)


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "a\\b\0c\nd", "ж" * 300, "🎉 100% a+b=c & d?#.xlsx", " ", "%41.txt"],
)
def test_file_names_hold_anything(name: str, mailbox: Mailbox, api: Api) -> None:
    """A file is served under exactly its name, whatever that is, and under no other (R19)."""
    number = mailbox.deliver(attachments=[(name, b"data", "bad type\r\nX: 1")])

    answer = api.file(number, name)
    assert (answer.status_code, answer.content) == (200, b"data")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert api.file(number, name + "x").status_code == 500
    assert api.file(number, name, folder=25).status_code == 500
    assert api.file(number + 1, name).status_code == 500


def test_of_two_files_of_a_name_the_first_is_served(mailbox: Mailbox, api: Api) -> None:
    """Two attachments with the same name cannot be told apart: the first is served (R18)."""
    number = mailbox.deliver(attachments=[("a", b"1", "a/b"), ("a", b"2", "a/b")])

    assert [item["FileName"] for item in mailbox.get(number)["Attachments"]] == ["a", "a"]
    assert api.file(number, "a").content == b"1"


def test_a_file_comes_with_or_without_its_length(
    mailbox: Mailbox, server: Emulator, api: Api
) -> None:
    """A file has a `Content-Length`, or is sent in chunks (R22)."""
    data = bytes(range(256)) * 1_000
    number = mailbox.deliver(attachments=[("big", data, "application/zip")])
    server.readings = Readings(chunked_attachments=True)
    answer = api.file(number, "big")

    assert "content-length" not in answer.headers
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.content == data


# Changes


def test_marking_counts_unread(mailbox: Mailbox, api: Api) -> None:
    """Marking, moving and deleting keep the count of unread messages right."""
    ids = minutes(mailbox, 1, 2, 3)
    api.post("MarkAsRead", {"folderId": 24, "Ids": [ids[0], ids[0]], "WasRead": True})
    assert api.page()["UnreadCount"] == 2
    api.post("MarkAsRead", {"folderId": 24, "Ids": ids, "WasRead": True})
    assert api.page()["UnreadCount"] == 0
    api.post("MarkAsRead", {"folderId": 24, "Ids": ids[:2], "WasRead": False})
    api.post("MoveMessage", {"fromId": 24, "Ids": ids[:1], "toId": 15})
    assert (api.page()["UnreadCount"], api.page(folder=15)["UnreadCount"]) == (1, 1)
    api.post("Delete", {"folderId": 24, "Ids": ids[1:]})
    assert (api.page()["UnreadCount"], api.page(folder=27)["UnreadCount"]) == (0, 1)


@pytest.mark.parametrize("answer", ["true", "false", "500"])
def test_repeating_a_change(answer: Any, mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """To delete or move what is not there any more is answered as the reading has it (R23)."""
    server.readings = Readings(repeat_answer=answer)
    ids = minutes(mailbox, 1, 2)
    delete = {"folderId": 24, "Ids": ids[:1]}
    move = {"fromId": 24, "Ids": ids, "toId": 15}

    assert api.post("Delete", delete).json() is True
    for call, request in (("Delete", delete), ("MoveMessage", move)):
        repeated = api.post(call, request)
        if answer == "500":
            assert repeated.status_code == 500
        else:
            assert repeated.json() is (answer == "true")
    # The message that was there has moved all the same.
    assert api.ids(folder=15) == ids[1:]


def test_marking_what_is_not_there_fails(mailbox: Mailbox, api: Api) -> None:
    """Marking an unknown id is answered `false`, and the known ones are marked (R15)."""
    [number] = minutes(mailbox, 1)
    request = {"folderId": 24, "Ids": [number, 4711], "WasRead": True}

    assert api.post("MarkAsRead", request).json() is False
    assert mailbox.get(number)["WasRead"] is True


def test_the_trash_is_emptied(mailbox: Mailbox, api: Api) -> None:
    """A deleted message is in the trash; deleted there, it is gone."""
    ids = minutes(mailbox, 1)
    api.post("Delete", {"folderId": 24, "Ids": ids})
    assert api.ids(folder=27) == ids

    api.post("Delete", {"folderId": 27, "Ids": ids})
    assert api.ids(folder=27) == []
    with pytest.raises(Refused):
        mailbox.get(ids[0])


# Sending (R8 to R11)


def test_what_is_sent_is_in_the_sent_folder(mailbox: Mailbox, api: Api) -> None:
    """A sent message is in Sent under the answer's Id, and the mailbox's own copy in the inbox."""
    answer = api.post("Send", letter(To=["a@b.ru", "SIZ_TEST@devr7.ru"], Bcc=["c@d.ru"])).json()
    sent = mailbox.get(answer["Id"])

    assert answer["WasSent"] is False
    assert (sent["FolderId"], sent["WasSent"], sent["Subject"]) == (25, True, "Тема")
    assert sent["Bcc"] == ["c@d.ru"]
    [copy] = mailbox.messages(24)
    assert (copy["Subject"], copy["WasRead"], copy["Bcc"]) == ("Тема", False, None)
    assert mailbox.sent == [
        {**letter(To=["a@b.ru", "SIZ_TEST@devr7.ru"], Bcc=["c@d.ru"]), "Id": answer["Id"]}
    ]


def test_a_sent_message_appears_later(mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """Accepted is not sent: the Sent folder has the message only after a while (R11)."""
    server.readings = Readings(sent_delay_seconds=0.2)
    number = api.post("Send", letter()).json()["Id"]

    assert api.ids(folder=25) == []
    time.sleep(0.25)
    assert api.ids(folder=25) == [number]


def test_a_draft_is_sent_once(mailbox: Mailbox, api: Api) -> None:
    """A draft's id can be sent; it is a draft no more, and is not sent a second time (R10)."""
    draft = mailbox.deliver(folder=26, subject="черновик")
    received = mailbox.deliver()

    assert api.post("Send", letter(Id=draft)).json()["Id"] == draft
    assert api.ids(folder=26) == []
    assert api.ids(folder=25) == [draft]
    assert api.post("Send", letter(Id=draft)).status_code == 500
    assert api.post("Send", letter(Id=received)).status_code == 500


def test_files_are_sent_by_reference(mailbox: Mailbox, api: Api) -> None:
    """A file of a received message, or of the Storage, is attached by its FileId (R9)."""
    number = mailbox.deliver(attachments=[("прайс.xlsx", b"xlsx", "application/x")])
    [received] = api.page()["Items"][0]["Attachments"]
    stored = mailbox.store_file("отчёт.csv", b"csv", "text/csv")
    answer = api.post("Send", letter(Attachments=[received, stored])).json()

    assert answer["HasAttachments"] is True
    assert api.file(answer["Id"], "прайс.xlsx", folder=25).content == b"xlsx"
    assert api.file(answer["Id"], "отчёт.csv", folder=25).content == b"csv"
    assert api.file(number, "прайс.xlsx").content == b"xlsx"


def test_threads_are_counted(mailbox: Mailbox) -> None:
    """An answer joins the thread it answers, and all in a thread say how many they are."""
    first = mailbox.deliver(mime_message_id="1@x", attachments=[("a", b"", "a/b")])
    second = mailbox.deliver(folder=25, sender=mailbox.address, in_reply_to="1@x")
    asked, answer = mailbox.get(first), mailbox.get(second)

    assert asked["ThreadId"] == answer["ThreadId"] is not None
    assert asked["ThreadCount"] == answer["ThreadCount"] == 2
    assert (answer["ReplyToId"], answer["MimeReplyToId"]) == (first, "1@x")
    assert (asked["HasChildren"], asked["WasReplied"]) == (True, True)
    assert answer["HasThreadAttachments"] is True


# Faults (R16, R22, R23)


def test_a_proxys_error(mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """A fault hits as many calls as told, of the path told, after those it lets through."""
    page = "<html>busy</html>"
    server.faults.append(
        Fault("Messages", times=2, skip=1, status=503, body=page, headers={"Retry-After": "1"})
    )
    api.post("MarkAsRead", {"folderId": 24, "Ids": [], "WasRead": True})

    answers = [api.post("Messages", listing()) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 503, 503, 200]
    assert answers[1].headers["retry-after"] == "1"
    assert answers[1].headers["content-type"].startswith("text/html")
    assert answers[1].text == page
    assert len(server.faults) == 0
    assert [call["status"] for call in server.requests[-4:]] == [200, 503, 503, 200]


def test_faults_for_ever(server: Emulator, api: Api) -> None:
    """A fault without a number of times stays until it is cleared, for any path."""
    server.faults.append(Fault(times=None, status=502))
    assert [api.post("Messages", listing()).status_code for _ in range(5)] == [502] * 5
    assert api.log_in().status_code == 502

    server.faults.clear()
    assert api.post("Messages", listing()).status_code == 200


@pytest.mark.parametrize("after_acting", [True, False])
@pytest.mark.parametrize("kind", ["status", "reset"])
def test_a_failure_leaves_open_whether_the_server_acted(
    kind: Any, after_acting: bool, mailbox: Mailbox, server: Emulator, api: Api
) -> None:
    """A call may fail before or after the server did what was asked (R23)."""
    server.faults.append(Fault("Send", kind=kind, status=502, after_acting=after_acting))

    if kind == "reset":
        with pytest.raises(httpx.ReadError):
            api.post("Send", letter())
    else:
        assert api.post("Send", letter()).status_code == 502
    assert len(mailbox.sent) == after_acting
    assert server.requests[-1]["status"] == (502 if kind == "status" else None)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("chunked_reading", [True, False])
def test_a_body_breaks_off(
    chunked: bool, chunked_reading: bool, mailbox: Mailbox, server: Emulator, api: Api
) -> None:
    """A body can end before its `Content-Length`, or before its last chunk (R22)."""
    server.readings = Readings(chunked_attachments=chunked_reading)
    data = b"x" * 300_000
    number = mailbox.deliver(attachments=[("a", data, "a/b")])
    server.faults.append(Fault("Attachments", kind="truncate", chunked=chunked, keep=0.4))
    query: dict[str, Any] = {"folderId": 24, "Id": number, "FileName": "a"}
    received: list[bytes] = []

    with api.http.stream("GET", f"{MAIL}/Attachments", params=query) as answer:
        assert answer.status_code == 200
        assert ("content-length" in answer.headers) is not chunked
        with pytest.raises(httpx.RemoteProtocolError):
            received.extend(answer.iter_bytes())
    assert b"".join(received) == data[:120_000]
    assert api.file(number, "a").content == data


def test_bad_json(server: Emulator, api: Api) -> None:
    """An answer can be broken JSON with status 200."""
    server.faults.append(Fault(kind="bad_json"))
    answer = api.post("Messages", listing())

    assert answer.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        answer.json()


def test_any_answer(server: Emulator, api: Api) -> None:
    """An answer can be any JSON at all with status 200 (R15)."""
    for value in (None, "true", {"Items": None}, False):
        server.faults.append(Fault(kind="answer", answer=value))
        assert api.post("Messages", listing()).json() == value


@pytest.mark.parametrize("trickle", [True, False])
def test_a_slow_answer(trickle: bool, mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """An answer can be slow to begin, or slow in every piece, and is right in the end."""
    ids = minutes(mailbox, 1, 2)
    server.faults.append(Fault(kind="slow", seconds=0.2, trickle=trickle))
    begun = time.monotonic()

    assert api.ids() == ids
    assert time.monotonic() - begun >= 0.2


def test_no_answer_at_all(server: Emulator, api: Api) -> None:
    """A call can hang until the client gives up, or until the server breaks off."""
    server.faults.append(Fault(kind="hang"))
    with pytest.raises(httpx.ReadTimeout):
        api.http.post(f"{MAIL}/Messages", json=listing(), timeout=0.2)

    server.faults.append(Fault(kind="hang", seconds=0.1))
    with pytest.raises(httpx.ReadError):
        api.post("Messages", listing())


def test_latency_and_delay(server: Emulator, api: Api) -> None:
    """Every call can take a while, and a fault can come after a delay."""
    server.readings = Readings(latency_seconds=0.1)
    server.faults.append(Fault(status=504, delay=0.1))
    begun = time.monotonic()

    assert api.post("Messages", listing()).status_code == 504
    assert time.monotonic() - begun >= 0.2


def test_settings_of_wrong_types_are_refused() -> None:
    """A misspelt reading or fault is an error at once, not a default in silence."""
    bad: list[Callable[[], object]] = [
        lambda: Readings(sort_one="up"),  # type: ignore[arg-type]
        lambda: Readings(page_cap="2"),  # type: ignore[arg-type]
        lambda: Fault(kind="explode"),  # type: ignore[arg-type]
    ]
    for make in bad:
        with pytest.raises(ValueError, match="expected"):
            make()


# The server


def test_calls_are_recorded(server: Emulator, api: Api) -> None:
    """Each call is on record with its path, query, JSON and status."""
    api.page(size=7)
    api.file(1, "a b")
    listed, file = server.requests[-2:]

    assert (listed["method"], listed["path"]) == ("POST", f"{MAIL}/Messages")
    assert listed["json"]["size"] == 7
    assert (listed["status"], file["status"], file["json"]) == (200, 500, None)
    assert file["query"] == "folderId=24&Id=1&FileName=a+b"
    assert abs(listed["time"] - time.time()) < 60


def test_it_starts_and_stops_many_times(caplog: pytest.LogCaptureFixture) -> None:
    """Servers come and go in one process, even in the middle of calls, and leave nothing behind."""
    threads = threading.active_count()
    for _ in range(5):
        server = Emulator(Mailbox())
        server.start()
        server.faults.append(Fault(kind="hang"))
        failed: list[Exception] = []

        def call(url: str = server.url, failed: list[Exception] = failed) -> None:
            try:
                httpx.post(url + LOGIN, json={}, timeout=5)
            except httpx.HTTPError as error:
                failed.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        while not server.requests:
            time.sleep(0.01)
        server.stop()
        caller.join(5)
        assert len(failed) == 1
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url)

    assert threading.active_count() == threads
    assert caplog.records == []


def test_a_taken_port_is_an_error() -> None:
    """A port that is in use is an OSError for whoever starts the server."""
    with Emulator(Mailbox()) as server, pytest.raises(OSError, match="in use"):
        Emulator(Mailbox(), port=server.port).start()


def test_the_connection_is_airflows(server: Emulator) -> None:
    """The server gives the Airflow connection that reaches it."""
    connection = json.loads(server.connection(timeout=5))

    assert connection == {
        "conn_type": "r7mail",
        "host": "127.0.0.1",
        "port": server.port,
        "schema": "http",
        "login": "user_test",
        "password": "TestPassword",
        "extra": {
            "folders": {"inbox": 24, "sent": 25, "drafts": 26, "trash": 27, "processed": 15},
            "web_url": f"{server.url}/folders/{{folder}}",
            "timeout": 5,
        },
    }


async def test_it_works_without_a_socket(mailbox: Mailbox) -> None:
    """The same server answers over httpx's ASGI transport; broken connections are exceptions."""
    app = create_app(mailbox)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://r7.test") as http:
        answer = await http.post(LOGIN, json=sample("login.request.json"))
        assert answer.json()["Response"]["Data"]["State"] == "Login"

        app.state.service.faults.append(Fault(kind="reset"))
        with pytest.raises(ConnectionResetError):
            await http.post(LOGIN, json=sample("login.request.json"))


async def test_calls_run_at_the_same_time(server: Emulator, api: Api) -> None:
    """Calls that take a while do not wait for one another."""
    server.readings = Readings(latency_seconds=0.5)
    begun = time.monotonic()
    headers = {"Authorization": api.http.headers["Authorization"]}
    async with httpx.AsyncClient(base_url=server.url, headers=headers) as http:
        calls = [http.post(f"{MAIL}/Messages", json=listing()) for _ in range(8)]
        answers = await asyncio.gather(*calls)

    assert {answer.status_code for answer in answers} == {200}
    assert time.monotonic() - begun < 8 * 0.5


def test_mail_changes_in_another_thread(mailbox: Mailbox, api: Api) -> None:
    """Listings stay whole while another thread delivers and moves mail."""
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            number = mailbox.deliver(date="2025-06-01T10:00:30Z")
            mailbox.move(24, [number], 15)
            mailbox.delete(15, [number])

    ids = minutes(mailbox, 0, 1)
    thread = threading.Thread(target=churn)
    thread.start()
    try:
        pages = [api.ids() for _ in range(50)]
    finally:
        stop.set()
        thread.join()

    assert all(set(ids) <= set(page) for page in pages)


# The control plane


def test_another_process_controls_it(mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """What tests do in Python, other programs do under /_emulator/."""
    http = api.http
    eml = "Subject: =?utf-8?b?0J/RgNC40LLQtdGC?=\nFrom: a@b.ru\n\nтекст".encode()
    number = http.post("/_emulator/messages?folder=24", content=eml).json()["Id"]
    assert mailbox.get(number)["Subject"] == "Привет"
    assert [item["Id"] for item in http.get("/_emulator/messages?folder=24").json()] == [number]

    assert http.put("/_emulator/readings", json={"page_cap": 3}).json()["page_cap"] == 3
    assert server.readings == Readings(page_cap=3)
    assert http.put("/_emulator/readings", json={"page_caps": 3}).status_code == 400
    assert http.put("/_emulator/readings", json={"missing_fields": ["Cc"]}).status_code == 200

    assert http.post("/_emulator/faults", json={"status": 503}).json() == {"faults": 1}
    assert http.post("/_emulator/faults", json={"kind": "?"}).status_code == 400
    assert api.post("Messages", listing()).status_code == 503
    http.post("/_emulator/faults", json={"times": None})
    assert http.delete("/_emulator/faults").json() == {"faults": 0}

    api.post("Send", letter())
    state = http.get("/_emulator/state").json()
    assert (state["logins"], state["requests"], state["sent"]) == (1, 3, 1)
    assert {"id": 24, "name": "inbox", "count": 1, "unread": 1} in state["folders"]
    assert http.get("/_emulator/requests").json()[-1]["path"] == f"{MAIL}/Send"

    assert http.post("/_emulator/reset").json()["requests"] == 0
    assert server.readings == Readings()
    assert api.post("Messages", listing()).status_code == 401
    assert "stand-in" in http.get("/").text


def test_a_reset_brings_back_the_mail(tmp_path: Path) -> None:
    """After a reset, a server that loaded its mail itself has it as it was."""
    (tmp_path / "a.eml").write_text("Subject: a\n\n")
    with Emulator(tmp_path) as server:
        server.mailbox.delete(24, [item["Id"] for item in server.mailbox.messages(24)])
        state = httpx.post(f"{server.url}/_emulator/reset").json()

        assert state["folders"][0]["count"] == 1
        assert len(server.mailbox.messages(24)) == 1


# The mailbox in Python


def test_a_message_of_ones_own(mailbox: Mailbox) -> None:
    """A test gives any field any value, and an unknown folder is made."""
    message = MailMessage(subject="s", date=datetime(2025, 6, 1, 13, tzinfo=UTC))
    number = mailbox.deliver_message(message, 99)

    assert 99 in mailbox.folders
    assert mailbox.get(number)["Date"] == "2025-06-01T13:00:00Z"
    with pytest.raises(Refused):
        mailbox.deliver(fields={"Id": number})
    with pytest.raises(Refused):
        mailbox.messages(4711)


def test_mail_in_any_number() -> None:
    """Generated mail for measuring looks like the other mail, and can be searched and changed."""
    mailbox = Mailbox.synthetic(1_000, ties=10, attachment_every=100, attachment_bytes=50)
    first = mailbox.messages(24)[0]
    other = mailbox.get(mailbox.deliver())

    assert list(first) == list(other)
    dates = [item["Date"] for item in mailbox.messages(24)[:1_000]]
    assert len(set(dates)) == 100
    assert dates == sorted(dates)
    name = first["Attachments"][0]["FileName"]
    assert len(mailbox.attachment(24, first["Id"], name)) == 50
    assert 1_000 <= sum(len(first[field].encode()) for field in ("Body", "HtmlBody")) <= 8_000
    with Emulator(mailbox) as running, Api(running) as client:
        client.log_in()
        second = client.ids(Subject=mailbox.messages(24)[1]["Subject"])
        assert len(second) == 1
        client.post("MarkAsRead", {"folderId": 24, "Ids": second, "WasRead": True})
        client.post("MoveMessage", {"fromId": 24, "Ids": second, "toId": 15})
    assert [(item["WasRead"], item["FolderId"]) for item in mailbox.messages(15)] == [(True, 15)]


def test_generated_mail_is_the_same_each_time() -> None:
    """The same arguments give the same generated mail."""
    one, other = (Mailbox.synthetic(200, seed=3) for _ in range(2))

    assert one.messages(24) == other.messages(24)
    assert one.messages(24) != Mailbox.synthetic(200, seed=4).messages(24)


# The command


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_told_to_stop(number: int, tmp_path: Path) -> None:
    """`r7mail emulator` prints how to reach it, answers, and stops cleanly when told."""
    (tmp_path / "a.eml").write_text("Subject: a\n\n")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [str(Path(sys.executable).with_name("r7mail")), "emulator", "--port", "0"]
    with subprocess.Popen(
        [*command, "--mail", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline() for _ in range(5)]
        url = lines[0].split()[-1]
        state = httpx.get(f"{url}/_emulator/state").json()
        process.send_signal(number)
        process.wait(10)
        rest = process.stdout.read()

        assert state["folders"][0]["count"] == 1
        assert process.returncode == 0
        assert "in a browser" in lines[1]
        assert "AIRFLOW_CONN_R7MAIL_DEFAULT='{" in rest
        assert process.stderr.read() == ""


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    """A taken port and a path without mail are one line and exit code 1."""
    from typer.testing import CliRunner  # noqa: PLC0415

    from airflow_provider_r7mail.cli.commands import app  # noqa: PLC0415

    (tmp_path / "a.eml").write_text("Subject: a\n\n")
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        in_use = CliRunner().invoke(app, ["emulator", "--port", port, "--mail", str(tmp_path)])
    nowhere = CliRunner().invoke(app, ["emulator", "--port", "0", "--mail", str(tmp_path / "no")])

    assert (in_use.exit_code, in_use.stderr.count("\n")) == (1, 1)
    assert "in use" in in_use.stderr
    assert (nowhere.exit_code, nowhere.stderr.count("\n")) == (1, 1)
    assert "no such file" in nowhere.stderr


def test_importing_it_is_light() -> None:
    """Importing the package does not import the web server."""
    code = (
        "import sys, airflow_provider_r7mail.emulator as e; e.Mailbox; e.Readings; "
        "print([m for m in ('starlette', 'uvicorn', 'openpyxl', 'fpdf', 'airflow') "
        "if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert found.strip() == "[]"


def test_it_imports_nothing_of_the_clients() -> None:
    """The server shares no code with the client, so that they share no mistake."""
    package = Path(__file__).parents[2] / "airflow_provider_r7mail" / "emulator"
    lines = [
        line
        for file in package.glob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if "airflow_provider_r7mail" in line and "import" in line.split()
    ]
    assert lines
    assert all("airflow_provider_r7mail.emulator" in line for line in lines)
