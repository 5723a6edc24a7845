from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upath import UPath

from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.client.fields import KINDS
from airflow_provider_r7mail.client.http import ClientConfig
from airflow_provider_r7mail.client.models import (
    ATTRIBUTES,
    Attachment,
    Message,
    MessageFilter,
    Stats,
    parse_ids,
)
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.emulator import Emulator
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.lake.copying import copy_attachments

SAMPLES = Path(__file__).parents[1] / "samples"
JUNE_1 = datetime(2025, 6, 1, tzinfo=UTC)
JUNE_2 = datetime(2025, 6, 2, tzinfo=UTC)


def _sample(name: str) -> Any:
    return json.loads((SAMPLES / name).read_text(encoding="utf-8"))


def _listed() -> dict[str, Any]:
    raw: dict[str, Any] = _sample("messages.read-status.response.json")["Items"][0]
    return raw


def test_filters_take_templated_text() -> None:
    """Filters from templates arrive as text, and work the same."""
    criteria = MessageFilter.build(
        query="invoice",
        body="total",
        sender="a@example.org",
        recipient="b@example.org",
        subject="June",
        labels="[2, 3]",
        was_read="False",
        start="2025-06-01T00:00:00Z",
        end="2025-06-02T03:00:00+03:00",
    )

    assert criteria == MessageFilter(
        query="invoice",
        body="total",
        sender="a@example.org",
        recipient="b@example.org",
        subject="June",
        labels=(2, 3),
        was_read=False,
        window=Window(JUNE_1, JUNE_2),
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ("None", None),
        (True, True),
        ("True", True),
        (" false ", False),
    ],
)
def test_was_read_is_true_false_or_both(value: bool | str | None, expected: bool | None) -> None:
    """`was_read` selects read mail, unread mail, or both."""
    criteria = MessageFilter.build(was_read=value)

    assert criteria.was_read == expected
    assert criteria.search_context(None, None).get("WasRead") == expected
    assert ("WasRead" in criteria.search_context(None, None)) == (expected is not None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"was_read": "yes"}, "was_read: expected true, false or None"),
        ({"was_read": 1}, "was_read: expected true, false or None"),
        ({"labels": "important"}, "labels: expected a list of ids"),
        ({"labels": [1.5]}, "labels: item 0 is float 1.5"),
        ({"start": "soon"}, "start: 'soon' is not a date"),
        ({"start": "None"}, 'start: got the text "None"'),
        ({"sender": "None"}, 'sender: got the text "None", which a template makes'),
        ({"subject": ["a"]}, "subject: expected text, got list"),
        ({"query": True}, "query: expected text, got bool"),
        ({"body": b"a"}, "body: expected text, got bytes"),
        ({"end": [20250601]}, "end: expected a datetime"),
        ({"start": "2025-06-02", "end": "2025-06-01"}, "The window ends at 2025-06-01"),
    ],
)
def test_a_wrong_filter_is_named(wrong: dict[str, Any], message: str) -> None:
    """An invalid filter is an error before anything is sent."""
    with pytest.raises(R7MailConfigError, match=f"^{message}"):
        MessageFilter.build(**wrong)


def test_numbers_that_native_rendering_makes() -> None:
    """A template that renders to digits gives a number, which is taken as its text."""
    rendered: dict[str, Any] = {"query": np.int64(7), "sender": 12, "subject": 1.5}
    rendered |= {"start": 20250601, "end": np.int64(20250602)}
    criteria = MessageFilter.build(**rendered)

    assert (criteria.query, criteria.sender, criteria.subject) == ("7", "12", "1.5")
    assert criteria.window == Window(JUNE_1, JUNE_2)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ()),
        ("", ()),
        ([], ()),
        ("[]", ()),
        ("null", ()),
        (711, (711,)),
        ("711", (711,)),
        ('"711"', (711,)),
        ([711, "710", 711], (711, 710)),
        ((711, 710), (711, 710)),
        ("[711, 710]", (711, 710)),
        ('["711", "710"]', (711, 710)),
        ("['711', '710']", (711, 710)),
        ("(711, 710)", (711, 710)),
        (" (711,) ", (711,)),
        ((number for number in (711, 710)), (711, 710)),
        (np.array([711, 710]), (711, 710)),
        ([np.int64(711)], (711,)),
    ],
)
def test_ids_are_read(value: Any, expected: tuple[int, ...]) -> None:
    """`message_ids` is a list, an XCom of one, a single id, or any of these as rendered text."""
    assert parse_ids(value, "message_ids") == expected


@pytest.mark.parametrize(
    "value",
    [
        True,
        "true",
        "True",
        1.5,
        "1.5",
        [1.0],
        [None],
        [True],
        [[711]],
        ["7.0"],
        ["<a@example.org>"],
        "None",
        "all of them",
        "{'id': 711}",
        '{"id": 711}',
        {711: "x"},
        b"711",
        "[" * 100_000,
        "9" * 5_000,
        "[711",
        "print(1)",
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_are_no_ids_is_an_error(value: Any) -> None:
    """An invalid id is an error that names the parameter, and never becomes another id."""
    with pytest.raises(R7MailConfigError, match=r"^message_ids: "):
        parse_ids(value, "message_ids")


FILE = {"Id": 338, "FileId": 254, "FileName": "Док.docx", "Size": 0, "MimeType": "text/plain"}


def test_files_to_send_are_read() -> None:
    """I can attach a file of the server's Storage with numbers that a template rendered as text."""
    attachment = Attachment(
        id=338, file_id=254, file_name="Док.docx", size=0, mime_type="text/plain"
    )

    assert Attachment.for_send(FILE, 0) == attachment
    assert Attachment.for_send(FILE | {"Id": "338", "FileId": "254", "Size": "0"}, 0) == attachment
    assert Attachment.for_send(attachment, 0) == attachment
    assert attachment.to_json() == FILE


@pytest.mark.parametrize("name", FILE)
@pytest.mark.parametrize("how", ["missing", "null"])
def test_files_to_send_lack_nothing(name: str, how: str) -> None:
    """Send requires all five fields of a file: a missing one is named before the request."""
    raw = {key: value for key, value in FILE.items() if key != name}
    if how == "null":
        raw[name] = None

    with pytest.raises(R7MailConfigError, match=rf"attachments\[1\] lacks {name}:"):
        Attachment.for_send(raw, 1)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("/tmp/report.pdf", "to upload in files"),
        (Path("report.pdf"), "to upload in files"),
        (FILE | {"FileName": ""}, "lacks FileName"),
        (FILE | {"Id": "first"}, "must be whole numbers"),
        (FILE | {"Size": 1.5}, "must be whole numbers"),
        (FILE | {"Id": True}, "must be whole numbers"),
    ],
)
def test_what_is_no_file_of_the_storage_is_an_error(raw: object, message: str) -> None:
    """A local path can't be attached by id, and the error says that it belongs in `files`."""
    with pytest.raises(R7MailConfigError, match=message):
        Attachment.for_send(raw, 0)


def test_every_field_of_a_message_is_read() -> None:
    """Every field in the contract is available under its own name."""
    raw = _listed() | {
        "Cc": ["c@example.org"],
        "Bcc": ["d@example.org"],
        "Attachments": [FILE],
        "Children": [{"Id": 931}],
        "TaskId": {"Id": 7},
    }
    message = Message.from_json(raw)
    simple = [name for name, kind in KINDS.items() if kind in {"int", "text", "bool"}]

    assert set(raw) == set(KINDS)
    assert {name: getattr(message, ATTRIBUTES[name]) for name in simple} == {
        name: raw[name] for name in simple
    }
    assert message.from_name is None
    assert message.from_address == "filip_test@devr7.ru"
    assert message.to_addresses == ("siz_test@devr7.ru",)
    assert message.cc_addresses == ("c@example.org",)
    assert message.bcc_addresses == ("d@example.org",)
    assert message.labels == (2, 3, 4)
    assert message.attachments == (Attachment.from_json(FILE),)
    assert message.children == ({"Id": 931},)
    assert message.task_id == {"Id": 7}
    assert message.date == datetime(2025, 6, 27, 4, 21, 50, tzinfo=UTC)
    assert message.timestamp == datetime(2025, 6, 27, 4, 22, 23, 302825, tzinfo=UTC)
    assert message.extra == {}


def test_every_attribute_comes_from_a_field() -> None:
    """Every attribute of a message is filled from a field."""
    filled = {*ATTRIBUTES.values(), "from_address", "extra"}

    assert {item.name for item in dataclasses.fields(Message)} == filled


@pytest.mark.parametrize("how", ["missing", "null"])
@pytest.mark.parametrize("name", [name for name in _listed() if name != "Id"])
def test_any_field_may_be_missing_or_null(name: str, how: str) -> None:
    """A field that the server omits, or sends as null, affects only itself (R20)."""
    raw = _listed()
    whole = Message.from_json(raw)
    del raw[name]
    if how == "null":
        raw[name] = None

    message = Message.from_json(raw)

    lost = {
        item.name
        for item in dataclasses.fields(Message)
        if getattr(message, item.name) != getattr(whole, item.name)
    }
    assert lost <= ({"from_name", "from_address"} if name == "From" else {ATTRIBUTES[name]})
    assert message.extra == {}


def test_unknown_fields_are_kept() -> None:
    """Fields added by a newer server, anywhere in a message, are kept unchanged (R20)."""
    sender = {"Name": "Anna", "Address": "a@example.org", "Avatar": "x.png"}
    files = [FILE | {"Preview": True}]
    raw = _listed() | {"SpamScore": 0.5, "Nothing": None, "From": sender, "Attachments": files}

    message = Message.from_json(raw)

    assert message.extra == {
        "SpamScore": 0.5,
        "Nothing": None,
        "From": sender,
        "Attachments": files,
    }
    assert message.from_address == "a@example.org"
    assert message.attachments == (Attachment.from_json(FILE),)


@pytest.mark.parametrize(
    ("name", "value", "column", "expected"),
    [
        ("To", "a@example.org", "to_addresses", ("a@example.org",)),
        ("To", "", "to_addresses", ()),
        ("Cc", ["a@example.org", None], "cc_addresses", ("a@example.org",)),
        ("Labels", 3, "labels", (3,)),
        ("Labels", 0, "labels", (0,)),
        ("From", "a@example.org", "from_address", "a@example.org"),
        ("From", {}, "from_address", None),
        ("Attachments", [], "attachments", ()),
        ("Attachments", [{}], "attachments", (Attachment(),)),
        ("Attachments", [None, FILE], "attachments", (Attachment(), Attachment.from_json(FILE))),
        ("Children", [], "children", ()),
        ("Date", "0001-01-01T00:00:00", "date", None),
        ("Id", "930", "id", 930),
    ],
)
def test_fields_may_have_other_shapes(
    name: str, value: object, column: str, expected: object
) -> None:
    """Variants such as `To` as text (R8) or a single label, not a list (R7), are understood."""
    message = Message.from_json(_listed() | {name: value})

    assert getattr(message, column) == expected
    assert message.extra == {}


async def test_a_null_in_place_of_a_file_costs_no_other_file(
    server: Emulator, tmp_path: Path
) -> None:
    """A null among a message's files is reported, and the other files are copied (R20)."""
    server.mailbox.deliver(
        attachments=[("good.txt", b"good", "text/plain")],
        fields={"Attachments": [None, FILE | {"FileName": "good.txt", "Size": 4}]},
    )
    box = server.mailbox
    config = ClientConfig(url=server.url, login=box.login, password=box.password)
    async with AsyncClient(config) as client:
        rows = await copy_attachments(client, 24, MessageFilter(), UPath(f"file://{tmp_path}"))

    assert [(row.file_name, row.status) for row in rows] == [
        (None, "unlisted"),
        ("good.txt", "downloaded"),
    ]


@pytest.mark.parametrize(
    ("name", "value", "column", "expected"),
    [
        ("Date", "yesterday", "date", None),
        ("Date", 1751000000, "date", None),
        ("Timestamp", "", "timestamp", None),
        ("To", {"Address": "a@example.org"}, "to_addresses", ()),
        ("Labels", True, "labels", ()),
        ("From", [], "from_address", None),
        ("Attachments", "a.pdf", "attachments", None),
        ("Attachments", ["a.pdf"], "attachments", None),
        ("Attachments", {}, "attachments", None),
        ("Children", 1.5, "children", None),
    ],
)
def test_what_cannot_be_read_is_kept(
    name: str, value: object, column: str, expected: object
) -> None:
    """A field with an unexpected type is kept unchanged, and the message isn't lost (R20)."""
    message = Message.from_json(_listed() | {name: value})

    assert getattr(message, column) == expected
    assert message.extra == {name: value}


@pytest.mark.parametrize(
    "raw",
    [[], "x", None, 5, {}, {"Id": None}, {"Id": True}, {"Id": 1.5}, {"Id": "x"}, {"Id": []}],
)
def test_without_an_id_there_is_no_message(raw: Any) -> None:
    """An object without a whole number as Id can't be acted on, so it isn't a message."""
    with pytest.raises((KeyError, TypeError, ValueError)):
        Message.from_json(raw)


@pytest.mark.parametrize("text", ["nul\0", "half \ud83d", "😀"])
def test_text_is_not_changed(text: str) -> None:
    """NUL and lone surrogates pass unchanged: the tables decide how to store them (R21)."""
    raw = json.loads(json.dumps({"Id": 1, "Subject": text, "To": [text]}))
    message = Message.from_json(raw)

    assert message.subject == text
    assert message.to_addresses == (text,)


def test_numbers_have_names() -> None:
    """A run's statistics have names, for manifests."""
    assert Stats(requests=3, retries=1).as_dict() == {
        "requests": 3,
        "logins": 0,
        "retries": 1,
        "bytes_read": 0,
    }
