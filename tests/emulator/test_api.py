"""The calls of the API but Messages: the manual's examples, and each reading."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from airflow_provider_r7mail.emulator import Emulator, Mailbox, Readings, Refused
from tests.emulator.calls import LOGIN, MAIL, SAMPLES, Api, letter, listing, minutes, sample

# The manual's examples


def same(expected: Any, actual: Any) -> None:
    """Assert that two values are equal as JSON, including the order of fields."""
    assert json.dumps(expected, ensure_ascii=False) == json.dumps(actual, ensure_ascii=False)


def deliver_sample(mailbox: Mailbox, item: dict[str, Any]) -> None:
    """Deliver a message from the manual."""
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
    """The response to the manual's example is exactly the one in the manual."""
    expected = sample(f"{name}.response.json")
    deliver_sample(mailbox, expected["Items"][0])
    mailbox.deliver(subject="другое", date="2025-06-27T04:21:50Z", was_read=True)

    answer = api.post("Messages", sample(f"{name}.request.json"))

    same(expected, answer.json())
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


def test_a_send_is_answered_as_in_the_manual() -> None:
    """Send's response has a draft's Uid, no text and `WasSent: false`, as in the manual."""
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
    """Return a new token."""
    answer = http.post(LOGIN, json=sample("login.request.json"))
    return str(answer.json()["Response"]["Data"]["Tokens"]["AuthToken"])


def test_a_login_is_answered_as_in_the_manual(api: Api) -> None:
    """Login's response has the fields of the manual's example, in the same order."""
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
    """Each of the manual's requests that change messages returns `true` and takes effect."""
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
    """The manual's request for an attachment returns exactly its bytes."""
    data = (SAMPLES / "attachments.response.ics").read_bytes()
    mailbox.deliver(attachments=[("invite.ics", data, "text/calendar")], fields={"Id": 884})
    path = (SAMPLES / "attachments.request.txt").read_text().split()[1]

    answer = api.http.get(path)

    assert answer.content == data
    assert answer.headers["content-type"] == "text/calendar"
    assert int(answer.headers["content-length"]) == len(data)


# Logging in (R12 to R14)


def test_calls_need_a_token(server: Emulator) -> None:
    """Without a token, with an invalid one, or with a `Bearer`, the response is 401."""
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
    """A token expires on demand or after a number of calls; a new login returns a valid one."""
    server.expire_tokens()
    assert api.post("Messages", listing()).status_code == 401

    server.readings = Readings(token_calls=2)
    api.log_in()

    assert [api.post("Messages", listing()).status_code for _ in range(3)] == [200, 200, 401]
    assert server.logins == 2


@pytest.mark.parametrize("reading", ["future", "past", "absent", "other_zone"])
def test_expired_at_says_anything(reading: Any, server: Emulator, api: Api) -> None:
    """`ExpiredAt` can be in the future, past, missing or in another time zone; the token works."""
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
    """The response to a wrong password is 401, 500, or 200 without a valid token."""
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
        ("Messages", listing(query="lower case")),
        ("Messages", listing(WasRead=None)),
        ("Messages", listing(Labels=2)),
        ("Messages", listing(StartDate="yesterday")),
        ("Messages", []),
        ("Send", letter(To="a@b.ru")),
        ("Send", letter(To=[])),
        ("Send", letter(Body=None)),
        ("Send", letter(Attachments=[{"Id": 1, "FileId": 1, "FileName": "a", "Size": 1}])),
        ("MarkAsRead", {"folderId": 24, "Ids": [1], "isFavorite": True}),
        ("MarkAsFavorite", {"folderId": 24, "Ids": ["1"], "isFavorite": True}),
        ("Delete", {"folderId": 24, "ids": []}),
    ],
)
def test_a_wrong_request_is_refused(call: str, request_: Any, api: Api) -> None:
    """A field that is missing, misspelt, in the wrong case or of the wrong type gets a 500."""
    assert api.post(call, request_).status_code == 500


@pytest.mark.parametrize("status", ["406", "403", "500"])
@pytest.mark.parametrize(
    ("call", "request_"),
    [
        ("Messages", listing(folder=4711)),
        (
            "Send",
            letter(
                Attachments=[{"Id": 1, "FileId": 99, "FileName": "a", "Size": 1, "MimeType": "a/b"}]
            ),
        ),
        ("MoveMessage", {"fromId": 24, "Ids": [], "toId": 4711}),
    ],
)
def test_what_is_not_there_is_refused(
    call: str, request_: Any, status: Any, server: Emulator, api: Api
) -> None:
    """What is not there gets a 406, or another status if so set, with an `ErrorMessage` (R25)."""
    server.readings = Readings(refusal=status)
    answer = api.post(call, request_)

    assert Readings().refusal == "406"
    assert answer.status_code == int(status)
    assert answer.json()["ErrorMessage"]


@pytest.mark.parametrize("status", ["401", "403", "406"])
def test_a_dead_token_is_refused_in_three_ways(status: Any, server: Emulator, api: Api) -> None:
    """A token that has expired gets a 401, a 403 or a 406 (R24)."""
    server.readings = Readings(dead_token=status)
    server.expire_tokens()

    assert api.post("Messages", listing()).status_code == int(status)


def test_a_login_may_end_earlier_sessions(server: Emulator, api: Api) -> None:
    """With one session for an account, a second login ends the first one (R36)."""
    with Api(server) as other:
        other.log_in()
        assert api.post("Messages", listing()).status_code == 200
        server.readings = Readings(one_session=True)
        other.log_in()
        assert api.post("Messages", listing()).status_code == 401
        assert other.post("Messages", listing()).status_code == 200


def test_a_token_may_need_its_cookies(server: Emulator, api: Api) -> None:
    """Behind a balancer, only the node that a cookie names knows the token."""
    server.readings = Readings(sticky=True)
    assert api.post("Messages", listing()).status_code == 200
    api.http.cookies.clear()
    assert api.post("Messages", listing()).status_code == 401


def test_wrong_passwords_lock_the_account(server: Emulator, api: Api) -> None:
    """After some wrong passwords, the right one is refused as well."""
    server.readings = Readings(lock_after=2)
    assert [api.log_in(password=word).status_code for word in ("x", "TestPassword", "y")] == [
        401,
        200,
        401,
    ]
    assert api.log_in().status_code == 401


@pytest.mark.parametrize("status", ["400", "413", "500"])
def test_too_many_messages_may_be_refused(status: Any, server: Emulator, api: Api) -> None:
    """A large `size`, or `offset` plus `size`, can be an error rather than a shorter page (R37)."""
    server.readings = Readings(size_limit=20, reach_limit=50, size_refusal=status)

    assert api.post("Messages", listing(size=21)).status_code == int(status)
    assert api.post("Messages", listing(offset=31, size=20)).status_code == int(status)
    assert api.post("Messages", listing(offset=30, size=20)).status_code == 200


def test_only_drafts_may_be_sent(mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """A server that sends drafts only refuses `Id: 0` (R39)."""
    draft = mailbox.deliver(folder=26, subject="черновик")
    server.readings = Readings(drafts_only=True)

    assert api.post("Send", letter()).status_code == 406
    assert api.post("Send", letter(Id=draft)).status_code == 200
    assert len(mailbox.sent) == 1


def test_an_account_may_lack_the_mail_module(server: Emulator, api: Api) -> None:
    """Without the Mail module, an account can log in, and that is all (R41)."""
    server.readings = Readings(mail_module=False)
    answer = api.log_in()

    assert "Mail" not in answer.json()["Response"]["Data"]["ModulesAccess"]
    assert api.post("Messages", listing()).status_code == 406


def test_method_path_and_content_type_matter(server: Emulator, api: Api) -> None:
    """The wrong method gets a 405, as does an unknown path, another content type 500."""
    assert api.http.get(f"{MAIL}/Send").status_code == 405
    assert api.http.post(f"{MAIL}/Attachments", json={}).status_code == 405
    assert api.http.post(f"{MAIL}/Folders", json={}).status_code == 405
    server.readings = Readings(wrong_path="404")
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

    assert answer.status_code == 406
    assert (not answer.content) is (reading == "empty")
    if content_type:
        assert answer.headers["content-type"].startswith(content_type)


# Attachments (R18, R19, R22)


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "a\\b\0c\nd", "ж" * 300, "🎉 100% a+b=c & d?#.xlsx", " ", "%41.txt"],
)
def test_file_names_hold_anything(name: str, mailbox: Mailbox, api: Api) -> None:
    """An attachment is served under exactly its name, whatever it is, and no other (R19)."""
    number = mailbox.deliver(attachments=[(name, b"data", "bad type\r\nX: 1")])

    answer = api.file(number, name)
    assert (answer.status_code, answer.content) == (200, b"data")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert api.file(number, name + "x").status_code == 406
    assert api.file(number, name, folder=25).status_code == 406
    assert api.file(number + 1, name).status_code == 406


def test_of_two_files_of_a_name_the_first_is_served(mailbox: Mailbox, api: Api) -> None:
    """Of two attachments with the same name, the first is served (R18)."""
    number = mailbox.deliver(attachments=[("a", b"1", "a/b"), ("a", b"2", "a/b")])

    assert [item["FileName"] for item in mailbox.get(number)["Attachments"]] == ["a", "a"]
    assert api.file(number, "a").content == b"1"


def test_a_file_comes_with_or_without_its_length(
    mailbox: Mailbox, server: Emulator, api: Api
) -> None:
    """An attachment has a `Content-Length`, or is sent in chunks (R22)."""
    data = bytes(range(256)) * 1_000
    number = mailbox.deliver(attachments=[("big", data, "application/zip")])
    server.readings = Readings(chunked_attachments=True)
    answer = api.file(number, "big")

    assert "content-length" not in answer.headers
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.content == data


# Changes


def test_marking_counts_unread(mailbox: Mailbox, api: Api) -> None:
    """Marking, moving and deleting keep the number of unread messages correct."""
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


@pytest.mark.parametrize("answer", ["true", "false", "500", "406"])
def test_repeating_a_change(answer: Any, mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """Deleting or moving a message that is gone gets the response the reading says (R23)."""
    server.readings = Readings(repeat_answer=answer)
    ids = minutes(mailbox, 1, 2)
    delete = {"folderId": 24, "Ids": ids[:1]}
    move = {"fromId": 24, "Ids": ids, "toId": 15}

    assert api.post("Delete", delete).json() is True
    for call, request in (("Delete", delete), ("MoveMessage", move)):
        repeated = api.post(call, request)
        if answer in {"500", "406"}:
            assert repeated.status_code == int(answer)
        else:
            assert repeated.json() is (answer == "true")
    # The message that was there has moved all the same.
    assert api.ids(folder=15) == ids[1:]


def test_marking_what_is_not_there_fails(mailbox: Mailbox, api: Api) -> None:
    """Marking an unknown id returns `false`, and the known ones are marked (R15)."""
    [number] = minutes(mailbox, 1)
    request = {"folderId": 24, "Ids": [number, 4711], "WasRead": True}

    assert api.post("MarkAsRead", request).json() is False
    assert mailbox.get(number)["WasRead"] is True


def test_the_trash_is_emptied(mailbox: Mailbox, api: Api) -> None:
    """A deleted message goes to the trash; deleted from there, it is gone."""
    ids = minutes(mailbox, 1)
    api.post("Delete", {"folderId": 24, "Ids": ids})
    assert api.ids(folder=27) == ids

    api.post("Delete", {"folderId": 27, "Ids": ids})
    assert api.ids(folder=27) == []
    with pytest.raises(Refused):
        mailbox.get(ids[0])


# Sending (R8 to R11)


def test_what_is_sent_is_in_the_sent_folder(mailbox: Mailbox, api: Api) -> None:
    """A sent message is in Sent under the returned Id, and a copy to oneself in the inbox."""
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
    """An accepted message can take a while to appear in the Sent folder (R11)."""
    server.readings = Readings(sent_delay_seconds=0.2)
    number = api.post("Send", letter()).json()["Id"]

    assert api.ids(folder=25) == []
    time.sleep(0.25)
    assert api.ids(folder=25) == [number]


@pytest.mark.slow
@pytest.mark.parametrize("reading", ["same", "new", "later", "hidden"])
def test_ids_of_moved_messages(mailbox: Mailbox, server: Emulator, api: Api, reading: Any) -> None:
    """A moved message keeps its Id, or gets a new one at once or later (R35)."""
    server.readings = Readings(move_id=reading, move_seconds=0.2)
    number = mailbox.deliver(attachments=[("a", b"file", "x/y")])
    kept = {name: mailbox.get(number)[name] for name in ("MessageId", "Date", "Subject")}
    api.post("MoveMessage", {"fromId": 24, "Ids": [number], "toId": 15})

    at_once = {"same": [number], "new": [number + 1], "later": [number], "hidden": []}
    assert api.ids(folder=15) == at_once[reading]
    time.sleep(0.25)
    later = number if reading == "same" else number + 1
    assert api.ids(folder=15) == [later]
    assert {name: mailbox.get(later)[name] for name in kept} == kept
    assert api.file(later, "a", folder=15).content == b"file"
    assert api.ids() == []


def test_a_draft_is_sent_once(mailbox: Mailbox, api: Api) -> None:
    """A draft can be sent by its id, once; then it is no longer a draft (R10)."""
    draft = mailbox.deliver(folder=26, subject="черновик")
    received = mailbox.deliver()

    assert api.post("Send", letter(Id=draft)).json()["Id"] == draft
    assert api.ids(folder=26) == []
    assert api.ids(folder=25) == [draft]
    assert api.post("Send", letter(Id=draft)).status_code == 406
    assert api.post("Send", letter(Id=received)).status_code == 406


def test_files_are_sent_by_reference(mailbox: Mailbox, api: Api) -> None:
    """A file of a received message, or from the Storage, is attached by its FileId (R9)."""
    number = mailbox.deliver(attachments=[("прайс.xlsx", b"xlsx", "application/x")])
    [received] = api.page()["Items"][0]["Attachments"]
    stored = mailbox.store_file("отчёт.csv", b"csv", "text/csv")
    answer = api.post("Send", letter(Attachments=[received, stored])).json()

    assert answer["HasAttachments"] is True
    assert api.file(answer["Id"], "прайс.xlsx", folder=25).content == b"xlsx"
    assert api.file(answer["Id"], "отчёт.csv", folder=25).content == b"csv"
    assert api.file(number, "прайс.xlsx").content == b"xlsx"


@pytest.mark.parametrize(
    ("reading", "sizes"),
    [
        ("bytes", [100, 9]),
        ("base64", [136, 12]),
        ("base64_lines", [140, 14]),
        ("rounded", [1024, 1024]),
    ],
)
def test_listed_sizes(
    mailbox: Mailbox, server: Emulator, api: Api, reading: Any, sizes: list[int]
) -> None:
    """A listing may give the size of a file's base64, or round it (R26)."""
    server.readings = Readings(attachment_size=reading)
    number = mailbox.deliver(attachments=[("a", bytes(100), "x/y"), ("b", bytes(9), "x/y")])

    assert [file["Size"] for file in api.page()["Items"][0]["Attachments"]] == sizes
    assert api.file(number, "a").content == bytes(100)


@pytest.mark.parametrize(("reading", "name"), [("given", "m.eml"), ("null", None), ("empty", "")])
def test_attached_messages(
    mailbox: Mailbox, server: Emulator, api: Api, reading: Any, name: str | None
) -> None:
    """An attached message may have no name, and can't be asked for by an empty one (R38)."""
    server.readings = Readings(nested_names=reading)
    nested = ("m.eml", b"Subject: x", "message/rfc822")
    number = mailbox.deliver(attachments=[("a", b"a", "x/y"), nested])

    [listed] = [item["Attachments"] for item in api.page()["Items"]]
    assert [file["FileName"] for file in listed] == ["a", name]
    assert api.file(number, "").status_code == 406


def test_an_index_that_lags(mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """New mail is listed at once, but found by its texts only later (R40)."""
    server.readings = Readings(index_seconds=0.2)
    number = mailbox.deliver(subject="prices", body="prices", sender="prices@x.ru")

    for name in ("Subject", "Body", "Query"):
        assert api.ids(**{name: "prices"}) == []
    assert api.ids(From="prices") == api.ids() == [number]
    time.sleep(0.25)
    assert api.ids(Subject="prices") == [number]


@pytest.mark.parametrize("reading", ["any", "date", "refused"])
def test_other_orders(mailbox: Mailbox, server: Emulator, api: Api, reading: Any) -> None:
    """A listing can be sorted by any field, by Date whatever is asked, or by Date only (R28)."""
    server.readings = Readings(order_fields=reading)
    late, early = (mailbox.deliver(date=f"2025-06-0{day}T00:00:00Z") for day in (2, 1))

    answer = api.post("Messages", {**listing(), "orderField": "Id"})
    if reading == "refused":
        assert answer.status_code == 500
    else:
        ids = [item["Id"] for item in answer.json()["Items"]]
        assert ids == ([late, early] if reading == "any" else [early, late])


def test_another_modules_host(server: Emulator, api: Api) -> None:
    """Hosts of other modules answer 405 to mail calls, and let one log in."""
    server.readings = Readings(mail_host="mail.example.org")
    here, there = ({"Host": name} for name in ("mail.example.org", "cddisk.example.org"))

    assert httpx.post(f"{server.url}{MAIL}/Messages", headers=here, json={}).status_code == 401
    assert httpx.post(f"{server.url}{MAIL}/Messages", headers=there, json={}).status_code == 405
    assert httpx.post(f"{server.url}{LOGIN}", headers=there, json={}).status_code == 500


def test_threads_are_counted(mailbox: Mailbox) -> None:
    """A reply joins the thread of its message, and all messages of a thread have its size."""
    first = mailbox.deliver(mime_message_id="1@x", attachments=[("a", b"", "a/b")])
    second = mailbox.deliver(folder=25, sender=mailbox.address, in_reply_to="1@x")
    asked, answer = mailbox.get(first), mailbox.get(second)

    assert asked["ThreadId"] == answer["ThreadId"] is not None
    assert asked["ThreadCount"] == answer["ThreadCount"] == 2
    assert (answer["ReplyToId"], answer["MimeReplyToId"]) == (first, "1@x")
    assert (asked["HasChildren"], asked["WasReplied"]) == (True, True)
    assert answer["HasThreadAttachments"] is True
