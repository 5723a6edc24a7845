"""The tables: how a page is decoded, and what readers find in the Parquet files."""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from airflow_provider_r7mail.client.answers import AnswerError, check_listing
from airflow_provider_r7mail.client.dates import to_microseconds
from airflow_provider_r7mail.client.fields import FIELDS, FILE_FIELDS
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.lake.arrow_reader import read_plain
from airflow_provider_r7mail.lake.decode import (
    ARROW_BYTES,
    DecodedPage,
    Habits,
    decode_apart,
    decode_page,
    decode_values,
)
from airflow_provider_r7mail.lake.derived import (
    attachment_rows,
    attachments_batch,
    attachments_of,
    recipients_of,
)
from airflow_provider_r7mail.lake.parquet import (
    ROW_GROUP_BYTES,
    SHORT_ROW_GROUP_BYTES,
    ParquetTable,
)
from airflow_provider_r7mail.lake.parsing import Parser
from airflow_provider_r7mail.lake.schema import LONG_COLUMNS, OF_A_RUN, TABLES, schema
from tests.lake.by_message import json_text, read_item, read_items

SAMPLES = Path(__file__).parents[1] / "samples"
DATE = "2025-06-01T00:00:00Z"
# No shrinking: failing examples are small enough.
quick = settings(
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def decode(body: bytes, habits: Habits | None = None) -> DecodedPage:
    """Decode a page by Arrow if it can, however small the page is."""
    return decode_page(body, habits or Habits(arrow_bytes=0))


def message(**fields: Any) -> dict[str, Any]:
    """A message with an Id and a Date, and the fields given."""
    return {"Id": 1, "Date": DATE, **fields}


def page(*items: Any, **top: Any) -> bytes:
    """A listing as a server sends it."""
    return json.dumps({"FolderId": 0, "Items": items, "Count": len(items), **top}).encode()


def row(item: Any) -> dict[str, Any]:
    """The row that a message becomes."""
    rows: list[dict[str, Any]] = decode(page(item)).batch.to_pylist()
    return rows[0]


def extra(item: Any) -> Any:
    """The parts of a message that have no column."""
    text = row(item)["extra"]
    return None if text is None else json.loads(text)


# -- the two ways of reading a page ---------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ids = st.integers(-(2**63), 2**63 - 1)
moments = st.builds(
    lambda moment, digits, zone: moment.strftime(f"%Y-%m-%dT%H:%M:%S{digits}{zone}"),
    st.datetimes(datetime(1900, 1, 1), datetime(2260, 1, 1)),  # noqa: DTZ001 - zones are added
    st.sampled_from(["", ".5", ".382021", ".1471832", ".999999999"]),
    st.sampled_from(["Z", "Z", "+03:00", "-0930", ""]),
)
dates = st.one_of(
    moments,
    st.sampled_from(["0001-01-01T00:00:00", "9999-12-31T23:59:59Z", "2025-02-30T00:00:00Z"]),
)
known: dict[str, st.SearchStrategy[Any]] = {
    "int": ids,
    "text": texts,
    "bool": st.booleans(),
    "texts": st.lists(st.none() | texts, max_size=3),
    "ints": st.lists(st.none() | ids, max_size=3),
    "date": dates,
    "json": st.none(),
    "sender": st.fixed_dictionaries({}, optional={"Name": st.none() | texts, "Address": texts}),
    "files": st.lists(
        st.none()
        | st.fixed_dictionaries(
            {},
            optional={
                name: st.none() | (texts if kind == "text" else ids)
                for name, _, kind in FILE_FIELDS
            },
        ),
        max_size=3,
    ),
}
good_messages = st.fixed_dictionaries(
    {"Id": ids, "Date": moments},
    optional={
        name: st.none() | known[kind] for name, _, kind in FIELDS if name not in {"Id", "Date"}
    },
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["Id", "Name", "Size", "Другое"]), inner, max_size=3)
    ),
    max_leaves=5,
)
odd_messages = st.fixed_dictionaries(
    {},
    optional={
        **{name: known[kind] | anything for name, _, kind in FIELDS},
        "SpamScore": anything,
        "Метка": anything,
    },
)


def assert_read_as_by_python(body: bytes, found: DecodedPage) -> None:
    """A page gives what Python makes of each of its messages, to the byte."""
    items, count = read_items(body)
    expected: list[dict[str, Any]] = []
    for item in items:
        read = read_item(item)
        text = json_text(read.extra) if read.extra else None
        expected.append(dict.fromkeys(found.batch.schema.names))
        expected[-1].update(read.columns, extra=text)
    rows = found.batch.to_pylist()
    for got, wanted in zip(rows, expected, strict=True):
        files = got["attachments"]
        got["attachments"] = files and [
            file and {name: part for name, part in file.items() if part is not None}
            for file in files
        ]
        wanted["attachments"] = wanted["attachments"] and [
            file and {name: part for name, part in file.items() if part is not None}
            for file in wanted["attachments"]
        ]
        assert got == wanted
    names = [name for name in schema("messages").names if name not in OF_A_RUN]
    assert found.batch.schema.types == [schema("messages").field(name).type for name in names]
    assert found.listing.count == count
    assert [type(key) is int for key in found.listing.keys] == [
        wanted["message_id"] is not None for wanted in expected
    ]
    assert found.listing.dates == [
        None if wanted["date"] is None else to_microseconds(wanted["date"]) for wanted in expected
    ]
    assert {row: bad.raw for row, bad in found.bad.items()} == {
        row: item
        for row, item in enumerate(items)
        if expected[row]["message_id"] is None or expected[row]["date"] is None
    }
    assert found.repaired == {row for row, item in enumerate(items) if read_item(item).repaired}


@quick
@given(st.lists(good_messages, max_size=4), st.booleans())
def test_both_ways_read_the_same(items: list[dict[str, Any]], indented: bool) -> None:
    """A page gives the same rows whether Arrow or Python decodes it (R20)."""
    body = json.dumps(
        {"FolderId": 0, "Items": items, "Count": len(items), "UnreadCount": 0},
        ensure_ascii=not indented,
        indent=1 if indented else None,
    ).encode()

    assert_read_as_by_python(body, decode(body))
    assert_read_as_by_python(body, decode_values(body, Parser())[0])


# JSON as other servers may write it: numbers, escapes and nested values, odd ones included.
odd_values = st.sampled_from(
    r"""
    0 -0 1 17 1.0 1e5 -0.0 0.1 1E+2 1e999 NaN 12345678901234567890123 true false null
    "" "a" "884" "about" "Ж" "\u0416" "\u0000" "\ud83d" "\ud83d\ude00" "\uD83Dx" "q\"x" "b\\"
    "a\/b\n" "},{\"Id\":1," "2025-06-01T00:00:00Z" "2025-02-30T00:00:00Z" "0001-01-01T00:00:00"
    "1960-01-01T00:00:00Z" "9999-12-31T23:59:59.1234567Z"
    [] {} [[]] [1] ["x"] [null] [[[[[1]]]]] [1,{"a":[null,"},{"]}] [{"Id":1},{"Id":2}] [{"id":1}]
    {"Name":"A","Address":"a@b"} {"Name":"A","X":[1.0]} {"name":"A"} {"k":{"k":1,"k":2}}
    {"Id":{"Id":[]}} [{"Id":1,"FileName":"f","Hash":"x"},{"Hash":1.0,"Size":2}] [{"Hash":1}]
    [{"FileName":"f","Size":"x"},null] [{"Id":1,"Name":"Ж","Hash":{"a":[1]},"Метка":1e5}]
    """.split()  # noqa: SIM905
)
ordinary = {
    "int": st.sampled_from(["0", "17", "null", "-9223372036854775808"]),
    "text": st.sampled_from(['"a"', '"Ж\\"\\n"', '"\\u0416"', "null", '"x,\\"OwnerId\\":"']),
    "bool": st.sampled_from(["true", "false", "null"]),
    "date": st.sampled_from(['"2025-06-01T00:00:00.1234567Z"', '"2025-06-01T03:00:00+03:00"']),
    "json": st.just("null"),
    "texts": st.sampled_from(["null", "[]", '["a@b.ru","Ж"]']),
    "ints": st.sampled_from(["null", "[]", "[2,3]"]),
    "sender": st.sampled_from(["null", '{"Name":null,"Address":"a@b.ru"}']),
    "files": st.sampled_from(["null", "[]", '[{"Id":1,"FileId":2,"FileName":"a","Size":3},null]']),
}
unknown_names = ["SpamScore", "Метка", "$type", "subject", "ID", "a b", "Hash"]


def camel_case(name: str) -> str:
    """A name as many servers write it."""
    return name[:1].lower() + name[1:]


SPELLINGS: list[Callable[[str], str]] = [str, str, camel_case, str.lower]  # R42


@st.composite
def servers(draw: st.DrawFn) -> list[bytes]:
    """Pages of one server: fields in an order of its own, some unknown, some odd, now and then."""
    known = draw(st.lists(st.sampled_from(FIELDS), unique=True, max_size=12))
    kinds = {name: kind for name, _, kind in known} | {"Id": "int", "Date": "date"}
    order = draw(st.permutations([*kinds, *draw(st.sets(st.sampled_from(unknown_names)))]))
    spell = draw(st.sampled_from(SPELLINGS))
    usual = draw(st.sets(st.sampled_from(order)))  # fields that are odd in all messages
    comma, colon = draw(st.sampled_from([(",", ":")] * 3 + [(", ", ": "), (",\n ", " : ")]))
    oddness = draw(st.sampled_from([0, 0, 1, 3]))
    pages = []
    for _ in range(4):
        messages = []
        for number in range(draw(st.integers(0, 8))):
            members = []
            is_odd = draw(st.integers(0, 3)) < oddness
            for name in order:
                if is_odd and draw(st.integers(0, 5)) == 0:
                    continue  # missing
                if name not in kinds or name in usual or (is_odd and draw(st.booleans())):
                    value = draw(odd_values)
                else:
                    value = str(number) if name == "Id" else draw(ordinary[kinds[name]])
                given = spell(name) if name in kinds else name
                members.append(json.dumps(given, ensure_ascii=draw(st.booleans())) + colon + value)
            if is_odd and draw(st.booleans()):
                members.append(draw(st.sampled_from(members or ['"Id":1'])))  # twice
            messages.append("{" + comma.join(members) + "}")
        if oddness and draw(st.integers(0, 9)) == 0:
            messages.append(draw(odd_values))
        count = draw(odd_values)
        items = f"[{comma.join(messages)}]"
        text = f'{{"{spell("Count")}"{colon}{count}{comma}"{spell("Items")}"{colon}{items}}}'
        pages.append(text.encode("utf-8", "surrogatepass"))
    return pages


upgraded_files = st.sampled_from(
    r"""
    null [{"Id":1,"FileName":"a","Hash":1.0,"Size":3}] [{"Hash":"x"},{"Id":2}]
    [{"Hash":"b\\","Id":1}] [{"Id":1,"SpamScore":1.0},{"Id":2}] [{"Id":{"Hash":1}}]
    """.split()  # noqa: SIM905
)


@st.composite
def upgraded_servers(draw: st.DrawFn) -> list[bytes]:
    """Pages of a server that has the same unknown fields in all messages, with rare surprises."""
    run = draw(st.permutations(["SpamScore", "Метка", "a b"]))
    after = draw(st.sampled_from([[], ["Uid"], ["Uid", "Size"]]))
    order = ["Id", "Subject", "Body", "Attachments", "Date", "ExternalId", *run, *after]
    kinds = {name: kind for name, _, kind in FIELDS}
    pages = []
    for number in range(4):
        messages = []
        for row in range(draw(st.integers(1, 5))):
            members = {}
            for name in order:
                value = odd_values if name in run else ordinary[kinds[name]]
                members[name] = draw(upgraded_files if name == "Attachments" else value)
            members["Id"] = str(row)
            listed = [f"{json.dumps(name, ensure_ascii=False)}:{members[name]}" for name in order]
            if number > 1 and draw(st.integers(0, 5)) == 0:
                place = draw(st.integers(0, len(listed) - 1))
                match draw(st.integers(0, 4)):
                    case 0:
                        del listed[place]
                    case 1:
                        listed.insert(place, draw(st.sampled_from(listed)))
                    case 2:
                        listed[place] = draw(st.sampled_from(order[:6])).join('""') + ":17"
                    case 3:
                        listed.insert(place, '"From":{"Name":"x","SpamScore":1,"Uid":2}')
                    case 4:
                        listed.insert(place, '"SpamScore":2}')
            messages.append("{" + ",".join(listed) + "}")
        pages.append(f'{{"Items":[{",".join(messages)}],"Count":{row}}}'.encode())
    return pages


@quick
@given(upgraded_servers(), st.sampled_from([0, ARROW_BYTES]))
def test_an_upgrade_changes_no_row(pages: list[bytes], arrow_bytes: int) -> None:
    """R20: the same for a server whose messages all have the same new fields, but for a few."""
    habits = Habits(arrow_bytes)
    for body in pages:
        try:
            found = decode(body, habits)
        except AnswerError:
            with pytest.raises(AnswerError):
                read_items(body)
        else:
            assert_read_as_by_python(body, found)


@quick
@given(servers(), st.sampled_from([0, ARROW_BYTES]))
def test_what_is_learned_changes_no_row(pages: list[bytes], arrow_bytes: int) -> None:
    """R20: whatever the pages before looked like, a page's rows and `extra` are the same bytes."""
    habits = Habits(arrow_bytes)
    for body in pages:
        assert_read_as_by_python(body, decode(body, habits))


@quick
@given(servers() | upgraded_servers())
def test_fields_apart_change_no_row(pages: list[bytes]) -> None:
    """R20: the same if Arrow reads all fields but those that it couldn't read before."""
    parser = Parser()
    for body in pages:
        with suppress(AnswerError):
            decode_values(body, parser)
    for body in pages:
        if found := decode_apart(body, parser):
            assert_read_as_by_python(body, found[0])


@quick
@given(servers(), st.integers(1, 200))
def test_pages_in_pieces_give_the_same_rows(pages: list[bytes], piece_bytes: int) -> None:
    """R21: it doesn't matter in which pieces a page with odd text is parsed."""
    for body in pages:
        parser = Parser(piece_bytes)
        parser.parse(b'{"Items":[{"Id":NaN}]}')  # the next pages are parsed in pieces
        assert_read_as_by_python(body, decode_values(body, parser)[0])


def usual(number: int, **fields: Any) -> dict[str, Any]:
    """A message with all fields of the manual, and those given."""
    sample = json.loads((SAMPLES / "messages.filter.response.json").read_bytes())["Items"][0]
    return {**sample, "Id": number, **fields}


def compact(*items: Any) -> bytes:
    """A listing without spaces, as servers send it."""
    return json.dumps({"Items": items}, separators=(",", ":"), ensure_ascii=False).encode()


def upgraded(number: int) -> dict[str, Any]:
    """A message with unknown fields, also in its file."""
    file = {"Id": 1, "FileId": 2, "FileName": "ф", "Size": 3, "MimeType": "x", "Hash": "0f"}
    return usual(number, Attachments=[file], Score=number / 7, Tags=["Ж", {"a": number}])


ODD = (
    {"Children": [usual(1)]},
    {"TaskId": 17},
    {"Labels": ["red"]},
    {"From": "a@b"},
    {"Size": "884"},
    {"WasRead": 0},
    {"Timestamp": "soon"},
    {"Body": "a\ud83d"},
)


@pytest.mark.slow
@pytest.mark.parametrize("oddity", ODD, ids=lambda oddity: next(iter(oddity)))
def test_what_is_odd_does_not_slow_down_the_page(oddity: dict[str, Any]) -> None:
    """An odd value takes little time, whether one message of a page has one or all have."""

    def seconds(*items: Any) -> float:
        body = json.dumps({"Items": items}).encode()
        habits = Habits()
        assert_read_as_by_python(body, decode(body, habits))
        taken = []
        for _ in range(7):
            start = time.process_time()
            decode(body, habits)
            taken.append(time.process_time() - start)
        return min(taken)

    plain = [usual(n, HtmlBody="Счёт " * 300) for n in range(200)]
    expected = seconds(*plain)
    assert seconds(*plain[:100], {**plain[100], **oddity}, *plain[101:]) < 4 * expected
    assert seconds(*({**item, **oddity} for item in plain)) < 5 * expected


def test_every_oddity_on_one_page() -> None:
    """R20: a page on which each kind of odd message is, next to ordinary ones."""
    items = [{**upgraded(n), **ODD[n % 50]} if n % 50 < len(ODD) else usual(n) for n in range(200)]
    body = json.dumps({"Items": items}).encode()
    habits = Habits()
    for _ in range(2):
        assert_read_as_by_python(body, decode(body, habits))


@pytest.mark.parametrize("spell", [str, camel_case])
def test_names_are_learned(spell: Callable[[str], str]) -> None:
    """Once a field has been seen, messages with it are read as fast as those without it (R42)."""
    parser = Parser()

    def listing(*items: dict[str, Any]) -> bytes:
        spelled = [{spell(name): value for name, value in item.items()} for item in items]
        return json.dumps({spell("Items"): spelled, "TotalPages": 3, spell("Count"): 7}).encode()

    def are_records(body: bytes) -> bool:
        items = check_listing(parser.parse(body)[0])["Items"]
        return all(not isinstance(item, dict) for item in items)

    assert are_records(compact(usual(1)))
    body = listing(*map(upgraded, range(3)), usual(3))
    for _ in range(2):
        assert_read_as_by_python(body, decode_values(body, parser)[0])
    assert are_records(body)
    assert are_records(listing(message(Labels=["red"], Score="high", Body=1), {}))


@pytest.mark.parametrize("name", ['"', "\\", "\n", "\ud83d", "x" * 10_000])
def test_names_that_are_not_learned(name: str) -> None:
    """R20: a field whose name no record can have slows down only the messages that have it."""
    habits = Habits()
    for item in upgraded(1), upgraded(1) | {name: 1}, upgraded(1):
        body = json.dumps({"Items": [item]}, separators=(",", ":")).encode()
        assert_read_as_by_python(body, decode(body, habits))
    assert not isinstance(habits.parser.parse(body)[0]["Items"][0], dict)


@pytest.mark.parametrize("name", ["count", "COUNT", "Count"])
def test_count_in_another_case(name: str) -> None:
    """R42: a listing's Count is found in any case, whether Arrow or Python reads the messages."""
    for item in usual(1), upgraded(1):
        body = json.dumps({"Items": [item], name: 7}).encode()
        assert decode(body).listing.count == 7


def test_arrow_reads_again_after_plain_pages() -> None:
    """A few odd messages don't keep a server's other pages from being read the fast way."""
    habits = Habits(arrow_bytes=0)
    plain, odd = compact(usual(1)), compact(upgraded(1))
    decode(plain, habits)
    assert habits.is_for_arrow(b"")
    decode(odd, habits)
    assert not habits.is_for_arrow(b"")
    decode(plain, habits)
    assert habits.is_for_arrow(b"")
    for pages_before in (2, 4, 8):  # after each refusal, it waits longer
        decode(odd, habits)
        for _ in range(pages_before):
            assert not habits.is_for_arrow(b"")
            decode(plain, habits)
        assert habits.is_for_arrow(b"")


def test_a_count_as_text_does_not_keep_arrow_from_the_messages() -> None:
    """R2: the messages of a server whose Count is no number are read the fast way, too."""
    found = decode_apart(page(usual(1), Count="17"), Parser())
    assert found is not None
    assert found[0].listing.count == 17
    assert_read_as_by_python(page(usual(1), Count="17"), found[0])


@pytest.mark.parametrize(
    "fields", [{"Score": 1, "Tags": [{}]}, *ODD[:-1]], ids=lambda fields: next(iter(fields))
)
def test_only_what_is_odd_is_read_apart(fields: dict[str, Any]) -> None:
    """Once a field has been odd in one message, Arrow still reads all others on all pages."""
    habits = Habits(arrow_bytes=0)
    plain = [usual(n) for n in range(10)]
    body = compact(*plain, usual(10, **fields))
    for _ in range(2):
        assert_read_as_by_python(body, decode(body, habits))
    found = decode_apart(body, habits.parser)
    assert found is not None
    assert_read_as_by_python(body, found[0])
    assert {name for name, _, _ in habits.parser.apart} == fields.keys() - {"Score", "Tags"}
    assert not found[1]
    found = decode_apart(compact(*plain), habits.parser)
    assert found is not None
    assert found[1]


@pytest.mark.parametrize(
    "fields",
    [
        {"From": {"Name": "A", "Address": "a@b.ru", "Verified": True}},
        {"Attachments": [{"Id": 1, "FileName": "a", "Hash": "0f"}]},
        {"Stars": 5},
        {"subject": "in another case"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_appears_later_is_kept_at_once(fields: dict[str, Any]) -> None:
    """R20: a new field, also of a sender or a file, is in `extra` from its first message on."""
    habits = Habits(arrow_bytes=0)
    before = compact(usual(1, Score=1))
    decode(before, habits)
    assert decode_apart(before, habits.parser) is not None
    for _ in range(2):
        body = compact(usual(1, Score=1), usual(2, Score=1, **fields))
        assert_read_as_by_python(body, decode(body, habits))


@pytest.mark.parametrize(
    "fields", [{"Date": "0001-01-01T00:00:00"}, {"Date": None}, {"Body": "\ud83d"}], ids=str
)
def test_arrow_waits_longer_for_pages_that_it_cannot_read(fields: dict[str, Any]) -> None:
    """R21, R27: where all pages have odd text or lack a date, Arrow isn't tried in vain on each."""
    habits = Habits(arrow_bytes=0)
    good = [usual(1, Score=1)]
    body = json.dumps({"Items": [*good, usual(2, Score=1, **fields)]}).encode()
    tried = []
    for _ in range(16):
        tried.append(habits.is_partly_for_arrow(body))
        assert_read_as_by_python(body, decode(body, habits))
    assert 1 < tried.count(True) < 6
    for _ in range(16):
        decode(compact(*good), habits)
    assert habits.is_partly_for_arrow(body)


@pytest.mark.parametrize("indent", [None, 2])
def test_names_in_another_case(indent: int | None) -> None:
    """R42: camelCase gives the same rows, also in senders and files, and takes unknown fields."""
    body = json.dumps(
        {
            "folderId": 1,
            "count": 2,
            "items": [
                {
                    "id": number,
                    "date": DATE,
                    "from": {"name": "A", "address": "a@b", "spf": True},
                    "attachments": [{"id": 1, "fileName": "f", "hash": "x"}, None],
                    "score": 1.0,
                }
                for number in range(2)
            ],
        },
        indent=indent,
    ).encode()
    habits = Habits()
    for _ in range(2):
        found = decode(body, habits)

        assert_read_as_by_python(body, found)
        assert found.batch["from_address"].to_pylist() == ["a@b", "a@b"]
        assert found.listing.count == 2


def test_ordinary_pages_go_the_fast_way() -> None:
    """The manual's responses, and other ordinary pages, are decoded without Python objects."""
    for sample in ("messages.filter.response.json", "messages.read-status.response.json"):
        assert read_plain((SAMPLES / sample).read_bytes()) is not None
    ordinary = message(
        To=["a@b.ru"], Cc=None, Labels=[1], From={"Name": None, "Address": "c@d.ru"}, Attachments=[]
    )
    assert read_plain(page(ordinary, message(Id=2, Timestamp=DATE))) is not None


def test_equal_messages_without_an_id_stay_apart() -> None:
    """R20: two empty messages count as two; neither is dropped as a duplicate."""
    assert len(set(decode(page({}, {}, {"Id": None})).listing.keys)) == 3


@quick
@given(st.lists(odd_messages | anything, max_size=3))
def test_no_message_breaks_a_page_and_nothing_is_lost(items: list[Any]) -> None:
    """R20: whatever its type, a value ends up in its column or, unchanged, in `extra`."""
    decoded = decode(json.dumps({"Items": items}).encode())

    rows = decoded.batch.to_pylist()
    assert len(rows) == len(items) == len(decoded.listing.keys)
    for index, (item, found) in enumerate(zip(items, rows, strict=True)):
        if found["message_id"] is None or found["date"] is None:
            assert json.loads(decoded.bad[index].to_json())["message_id"] == found["message_id"]
        if not isinstance(item, dict):
            continue
        kept = json.loads(found["extra"] or "{}", parse_constant=pytest.fail)
        columns = {name: column for name, column, _ in FIELDS}
        for name, value in item.items():
            if value is None or name in kept:
                continue
            assert name in columns, f"unknown {name} is lost"
            if name in {"Date", "Timestamp"} and value.startswith("0001"):
                continue  # .NET's "no date"
            if name == "From":
                assert isinstance(value, str) or not value.keys() - {"Name", "Address"}
                continue
            assert found[columns[name]] is not None, f"{name} is lost"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("Size", 2**70),
        ("Size", -(2**63) - 1),
        ("Size", "many"),
        ("Size", "007"),
        ("Size", "--5"),
        ("Size", "9" * 5000),
        ("Size", 1.5),
        ("Size", True),
        ("WasRead", "yes"),
        ("WasRead", 1),
        ("Subject", {"a": [None]}),
        ("Subject", False),
        ("To", {"a": "b"}),
        ("To", [["a"]]),
        ("Labels", ["red"]),
        ("Timestamp", "yesterday"),
        ("Timestamp", 17),
        ("Attachments", {"Id": 1}),
        ("Attachments", [1]),
        ("From", [1]),
        ("Workspace", {"Id": 1, "Имя": "Общее"}),
    ],
)
def test_what_does_not_fit_stays_in_extra(field: str, value: Any) -> None:
    """R20: a value of another type leaves its column null and stays in `extra` unchanged."""
    item = message(**{field: value})

    assert extra(item) == {field: value}
    columns = {name: column for name, column, _ in FIELDS}
    if field in columns:
        found = row(item)
        # The row still shows that there is a file (R17).
        expected = [None] if field == "Attachments" else None
        assert found["from_address" if field == "From" else columns[field]] == expected


@pytest.mark.slow
@pytest.mark.parametrize("body", [b"null", b" null", b"\xef\xbb\xbfnull", b'null{"Items":[]}'])
def test_an_answer_of_null_is_no_listing(body: bytes) -> None:
    """A response that is or starts with `null` is an error like other bad JSON, not a crash."""
    code = f"""
        from airflow_provider_r7mail.client.answers import AnswerError
        from airflow_provider_r7mail.lake.decode import Habits, decode_page
        try:
            decode_page({body!r}, Habits(arrow_bytes=0))
        except AnswerError:
            print("bad answer")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "bad answer\n"


def test_numbers_of_any_length_are_kept() -> None:
    """A number of 5,000 digits breaks nothing and is kept; NaN becomes text, valid JSON for all."""
    digits = "9" * 5000
    body = b'{"Items":[{"Id":1,"Date":"%b","Size":%b,"Uid":NaN,"Score":-Infinity}]}'
    found = decode(body % (DATE.encode(), digits.encode())).batch.to_pylist()[0]

    assert found["size"] is None
    kept = json.loads(found["extra"], parse_constant=pytest.fail)
    assert kept == {"Size": digits, "Uid": "NaN", "Score": "-Infinity"}


def test_numbers_written_otherwise() -> None:
    """Integers may be sent as text or with a zero fraction; texts may be sent as numbers."""
    found = row(message(Id="884", Size=5.0, ExternalId=-965, Labels=7))

    assert (found["message_id"], found["size"], found["external_id"]) == (884, 5, "-965")
    assert found["labels"] == [7]


def test_from_may_be_text() -> None:
    """If From is just text, it is the address."""
    assert row(message(From="a@b.ru"))["from_address"] == "a@b.ru"


def test_unknown_parts_of_sender_and_files() -> None:
    """R20: a new field in From or Attachments hides neither the sender nor the file."""
    file = {"Id": 1, "FileId": 2, "FileName": "a.csv", "Size": "12 KB", "MimeType": "x", "Hash": 3}
    item = message(
        From={"Name": "A", "Address": "a@b.ru", "Verified": True},
        HasAttachments=True,
        Attachments=[file, None],
    )
    found = row(item)

    assert (found["from_name"], found["from_address"]) == ("A", "a@b.ru")
    assert found["attachments"][0] == {
        "attachment_id": 1,
        "file_id": 2,
        "file_name": "a.csv",
        "size": None,
        "mime_type": "x",
    }
    assert extra(item) == {"From": item["From"], "Attachments": item["Attachments"]}
    named = attachments_of(decode(page(item)).batch)
    assert [(r.file_name, r.status) for r in named] == [("a.csv", "listed"), (None, "unlisted")]


def test_children_and_tasks_are_json() -> None:
    """Children and TaskId are JSON text, whatever they contain."""
    found = row(message(Children=[{"Id": 2, "Subject": "Ре"}], TaskId=17))

    assert json.loads(found["children"]) == [{"Id": 2, "Subject": "Ре"}]
    assert found["task_id"] == "17"


def test_text_that_arrow_cannot_hold() -> None:
    """R21: half a surrogate pair becomes U+FFFD, and the row is counted; pairs and NUL stay."""
    decoded = decode(
        page(
            message(Subject="a\ud83d", To=["\udc00@b.ru"]),
            message(Id=2, Subject="\ud83d\ude00 a\0b"),
            message(Id=3, From={"Name": "\udfff", "Address": "a@b"}),
        )
    )
    found = decoded.batch.to_pylist()

    assert [r["subject"] for r in found] == ["a\ufffd", "😀 a\0b", None]
    assert found[0]["to_addresses"] == ["\ufffd@b.ru"]
    assert found[2]["from_name"] == "\ufffd"
    assert decoded.repaired == {0, 2}


def test_bytes_that_are_not_utf8() -> None:
    """R21: invalid UTF-8 loses that character, not the page."""
    body = page(message(Subject="XX"), message(Id=2)).replace(b"XX", b"\xff\xd0")
    decoded = decode(body)

    assert decoded.batch["subject"].to_pylist() == ["\ufffd\ufffd", None]
    assert decoded.repaired == {0}


@pytest.mark.parametrize(
    ("text", "microsecond"),
    [
        ("2025-06-01T00:00:00Z", 0),
        ("2025-06-01T00:00:00.382021Z", 382021),
        ("2025-06-01T00:00:00.1471838Z", 147183),
        ("2025-06-01T00:00:00.999999999Z", 999999),
        ("2025-06-01T00:00:00.9999999999Z", 999999),
        ("2025-06-01T03:00:00+03:00", 0),
        ("2025-05-31T19:00:00.5-05:00", 500000),
        ("2025-06-01T00:00:00", 0),
        ("2025-06-01", 0),
        (" 2025-06-01T00:00:00Z ", 0),
    ],
)
def test_dates(text: str, microsecond: int) -> None:
    """Dates with 7 or 9 digits (truncated, not rounded), with or without an offset, are read."""
    wanted = datetime(2025, 6, 1, 0, 0, 0, microsecond, tzinfo=UTC)

    assert row(message(Date=text))["date"] == wanted
    assert row(message(Timestamp=text))["timestamp"] == wanted
    # The same next to a message that is decoded the careful way.
    assert decode(page(message(Date=text), message(X=1))).batch["date"][0].as_py() == wanted


@pytest.mark.parametrize(
    ("text", "year"),
    [("1969-12-31T23:59:59.1234567Z", 1969), ("9999-12-31T23:59:59.123456Z", 9999)],
)
def test_far_dates(text: str, year: int) -> None:
    """Dates before 1970 and up to 9999 are exact to the microsecond."""
    found = row(message(Date=text))["date"]

    assert (found.year, found.microsecond) == (year, 123456)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"Date": "0001-01-01T00:00:00"}, "no date"),
        ({"Date": None}, "missing"),
        ({"Date": "soon"}, "can't be read"),
        ({"Date": "2025-02-30T00:00:00Z"}, "can't be read"),
        ({"Id": None}, "Id"),
        ({"Id": 2**70}, "Id"),
        ({"Id": "x"}, "Id"),
    ],
)
def test_messages_that_no_table_holds(fields: dict[str, Any], reason: str) -> None:
    """A message without a readable Id or Date is set aside with the reason, never dropped."""
    item = message(**fields)
    decoded = decode(page(message(Id=7), item))

    assert set(decoded.bad) == {1}
    assert reason in decoded.bad[1].reason
    assert json.loads(decoded.bad[1].to_json())["message"] == item
    assert row(message(Timestamp="0001-01-01T00:00:00"))["timestamp"] is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"true",
        b"[]",
        b"{}",
        b'{"Count": 1}',
        b'{"Items": {}}',
        b'{"Items": null, "Messages": [{"Id": 1}]}',
        b'{"Items": [{"Id": 1',
        b'{"Items": []} {"Items": []}',
        b"<html>502</html>",
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_listing_is_an_error(body: bytes) -> None:
    """A truncated response, or one that isn't a listing, is never taken for an empty page."""
    with pytest.raises(AnswerError):
        decode(body)


def test_a_listing_without_items_is_told_by_its_fields() -> None:
    """The error for a listing of another API says what it has in place of Items."""
    with pytest.raises(AnswerError, match="no Items; the keys that came: Messages, Count"):
        decode(b'{"Messages": [{"Id": 1}], "Count": 1}')


@pytest.mark.parametrize(
    ("body", "ids", "count"),
    [
        (page(), [], 0),
        (b'{"Items": null, "Count": 0}', [], 0),
        (b'{"Items": []}', [], None),
        (b"\xef\xbb\xbf" + page(message()), [1], 1),
        (page(message(), TotalPages=3, Next={"a": 1}), [1], 1),
        (page(message()).replace(b"Items", rb"\u0069tems").replace(b"C", rb"\u0063"), [1], 1),
        (page(message(), Count=None), [1], None),
        (page(message(), Count="many"), [1], None),
        (b'{"Items": [{"Id": 1, "Id": 2, "Date": "%b"}]}' % DATE.encode(), [2], None),
    ],
)
def test_listings_of_odd_shapes(body: bytes, ids: list[int], count: int | None) -> None:
    """R20: empty pages, null Items, a BOM, unknown and duplicate fields are accepted."""
    decoded = decode(body)

    assert decoded.listing.keys == ids
    assert decoded.listing.count == count
    assert decoded.batch["message_id"].to_pylist() == ids


@pytest.mark.slow
def test_bodies_of_3_mb() -> None:
    """A message of 3 MB is read and written completely, next to others."""
    long = "Ж" * (3 << 19)
    items = [message(Id=n, Body=long, HtmlBody=long) for n in range(3)]
    decoded = decode(page(*items, message(Id=9)))

    assert read_plain(page(*items)) is not None
    assert decoded.batch["body"].to_pylist() == [long] * 3 + [None]
    assert written("messages", with_time(decoded.batch)).column("body")[2].as_py() == long


# -- schemas --------------------------------------------------------------------------------

SCHEMAS = {
    "messages": """
        message_id: int64 not null, subject: string, body: string, from_name: string,
        from_address: string, html_body: string, owner_id: int64, parent_id: int64,
        has_children: bool, folder_id: int64, to_addresses: list<item: string>,
        cc_addresses: list<item: string>, bcc_addresses: list<item: string>, to_name: string,
        has_attachments: bool, was_read: bool, was_sent: bool, is_auto_submitted: bool,
        is_autogenerated: bool, is_return_receipt_to: bool,
        is_disposition_notification_to: bool, important: bool, mime_reply_to_id: string,
        is_deleted: bool, was_replied: bool, mime_message_id: string, thread_id: string,
        has_thread_attachments: bool, thread_count: int64,
        attachments: list<item: struct<attachment_id: int64, file_id: int64, file_name: string,
        size: int64, mime_type: string>>, children: string, reply_to_id: int64,
        labels: list<item: int64>, date: timestamp[us, tz=UTC], timestamp: timestamp[us, tz=UTC],
        size: int64, cs_md5: string, cs_uid: string, uid: int64, task_id: string,
        event_invite_status: int64, external_id: string, extra: string,
        extracted_at: timestamp[us, tz=UTC] not null, gone_at: timestamp[us, tz=UTC]""",
    "recipients": """
        message_id: int64 not null, kind: string not null, position: int32 not null,
        address: string, domain: string, gone_at: timestamp[us, tz=UTC]""",
    "attachments": """
        message_id: int64 not null, attachment_id: int64, file_id: int64, file_name: string,
        size: int64, mime_type: string, uri: string, sha256: string, status: string not null,
        error: string, listed_size: int64, gone_at: timestamp[us, tz=UTC]""",
}


def described(columns: pa.Schema) -> str:
    """A schema as one line; Parquet calls a list's items `element`."""
    return ", ".join(
        f"{column.name}: {column.type}{'' if column.nullable else ' not null'}"
        for column in columns
    ).replace("element: ", "item: ")


def with_time(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A page's batch with the columns that are added when it is written."""
    moment = pa.scalar(datetime(2025, 6, 2, tzinfo=UTC), pa.timestamp("us", tz="UTC"))
    batch = batch.append_column("extracted_at", pa.repeat(moment, batch.num_rows))
    return batch.append_column("gone_at", pa.nulls(batch.num_rows, moment.type))


def parquet(table: str, *batches: pa.RecordBatch, **options: Any) -> pq.ParquetFile:
    """The Parquet file made of batches."""
    sink = io.BytesIO()
    writer = ParquetTable(table, sink, **options)
    for batch in batches:
        writer.write(batch)
    writer.finish()
    return pq.ParquetFile(io.BytesIO(sink.getvalue()))


def written(table: str, *batches: pa.RecordBatch, **options: Any) -> pa.Table:
    """What a reader finds in the file."""
    return parquet(table, *batches, **options).read()


def full_batches(item: dict[str, Any]) -> dict[str, pa.RecordBatch]:
    """The three tables' rows of one message."""
    batch = with_time(decode(page(item)).batch)
    return {
        "messages": batch,
        "recipients": recipients_of(batch),
        "attachments": attachments_batch(attachments_of(batch)),
    }


FULL = json.loads((SAMPLES / "messages.filter.response.json").read_text())["Items"][0]
EMPTY = message(HasAttachments=True)


@pytest.mark.parametrize("table", TABLES)
def test_types_never_depend_on_the_data(table: str) -> None:
    """The columns are as documented even if all values are null or there are no rows."""
    wanted = " ".join(SCHEMAS[table].split())
    batches = [[full_batches(item)[table]] for item in (FULL, EMPTY)]

    assert described(schema(table)) == wanted
    for rows in ([], *batches, batches[0] + batches[1]):
        found = written(table, *rows)
        assert described(found.schema) == wanted
        assert found.schema.metadata[b"r7mail.schema_version"] == b"2"


def test_file_format() -> None:
    """Files are zstd with statistics, except for long texts, and bounded row groups."""
    items = [
        message(Id=n, Body="Ж" * 40_000, Subject="s", From={"Name": "a", "Address": "b@c"})
        for n in range(400)
    ]
    pieces = [
        with_time(decode(page(*items[start : start + 20])).batch) for start in range(0, 400, 20)
    ]
    size = sum(piece.nbytes for piece in pieces)
    file = parquet("messages", *pieces)
    metadata = file.metadata

    assert metadata.num_rows == 400
    assert metadata.num_row_groups == math.ceil(size / ROW_GROUP_BYTES)
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        assert group.total_byte_size < ROW_GROUP_BYTES + 20 * 81_000
        for at in range(group.num_columns):
            column = group.column(at)
            assert column.compression == "ZSTD"
            name = column.path_in_schema.partition(".")[0]
            if name in LONG_COLUMNS:
                assert column.statistics is None
            elif name == "message_id":
                assert column.statistics.min == 0 or number > 0
    assert file.read()["message_id"].to_pylist() == list(range(400))


def test_row_groups_of_short_rows() -> None:
    """A row group of recipients takes little memory while it fills: 4 MB, not 24."""
    addresses = [f"somebody.{n}@partner.example" for n in range(20_000)]
    piece = recipients_of(with_time(decode(page(message(Id=1, To=addresses))).batch))
    metadata = parquet("recipients", *[piece] * 8).metadata

    assert piece.nbytes * 8 > 2 * SHORT_ROW_GROUP_BYTES
    assert metadata.num_rows == 160_000
    for number in range(metadata.num_row_groups):
        rows = metadata.row_group(number).num_rows
        assert rows * piece.nbytes / 20_000 < SHORT_ROW_GROUP_BYTES + piece.nbytes


def test_columns_parameter() -> None:
    """Only the given columns are written, in that order; an unknown one is an error naming it."""
    batch = full_batches(FULL)["messages"]

    assert written("messages", batch, columns=["date", "message_id"]).column_names == [
        "date",
        "message_id",
    ]
    with pytest.raises(R7MailConfigError, match="no sender"):
        ParquetTable("messages", io.BytesIO(), ["sender"])


# -- recipients and attachments -------------------------------------------------------------


def test_recipients() -> None:
    """Each address in To, Cc and Bcc gets a row with its position and lower-case domain."""
    batch = decode(
        page(
            message(Id=9),
            message(
                Id=1,
                To=["A@B.ru", None, "Имя <x@Почта.РФ>", "nobody", ""],
                Cc=[],
                Bcc=['"a@b"@c.org'],
            ),
            message(Id=2, To=None, Cc=["y@z.ru"]),
            message(Id=3, To=["last@z.ru", "a b@c"]),
        )
    ).batch
    wanted = [
        (1, "to", 0, "A@B.ru", "b.ru"),
        (1, "to", 1, None, None),
        (1, "to", 2, "Имя <x@Почта.РФ>", "почта.рф"),
        (1, "to", 3, "nobody", None),
        (1, "to", 4, "", None),
        (3, "to", 0, "last@z.ru", "z.ru"),
        (3, "to", 1, "a b@c", "c"),
        (2, "cc", 0, "y@z.ru", "z.ru"),
        (1, "bcc", 0, '"a@b"@c.org', "c.org"),
    ]

    def of(part: pa.RecordBatch) -> list[tuple[Any, ...]]:
        rows = recipients_of(part).drop_columns(["gone_at"]).to_pylist()
        return [tuple(found.values()) for found in rows]

    assert of(batch) == wanted
    # Part of a page, as when its other rows were read before.
    assert of(batch.slice(1, 1)) == [r for r in wanted if r[0] == 1]
    assert of(batch.slice(2)) == [wanted[5], wanted[6], wanted[7]]
    assert of(batch.slice(0, 1)) == []


def test_attachments_that_cannot_be_told() -> None:
    """R17, R18: files without a name, or with the name of another, are reported as such."""
    same = {"FileName": "a.csv", "Size": 1}
    batch = decode(
        page(
            message(Id=1, HasAttachments=True, Attachments=None),
            message(Id=2, HasAttachments=True, Attachments=[]),
            message(Id=3, HasAttachments=True, Attachments=[same, {"FileName": "A.csv"}, same]),
            message(Id=4, HasAttachments=False, Attachments=[{"FileName": "b", "Id": 5}]),
            message(Id=5, HasAttachments=True, Attachments=[{"Id": 3, "FileName": ""}]),
            message(Id=6, HasAttachments=None, Attachments=None),
            message(Id=7, HasAttachments=False, Attachments=[{"FileName": "c"}, "d"]),
            message(Id=8, HasAttachments=False, Attachments="e"),
        )
    ).batch
    rows = attachments_of(batch)

    assert [(r.message_id, r.file_name, r.status) for r in rows] == [
        (1, None, "unlisted"),
        (2, None, "unlisted"),
        (3, "a.csv", "ambiguous"),
        (3, "A.csv", "listed"),
        (3, "a.csv", "ambiguous"),
        (4, "b", "listed"),
        (5, "", "unlisted"),
        (7, "c", "listed"),
        (7, None, "unlisted"),
        (8, None, "unlisted"),
    ]
    assert all(r.error for r in rows if r.status != "listed")
    assert rows == [
        found for number in range(1, 9) for found in attachments_of(batch.slice(number - 1, 1))
    ]
    assert attachments_batch(rows).num_rows == len(rows)
    assert next(iter(attachment_rows(1, []))).status == "unlisted"


def test_a_message_may_have_very_many_attachments() -> None:
    """A malicious message that lists 30,000 files doesn't hold up the extract."""
    started = time.thread_time()
    rows = list(attachment_rows(1, [{"file_name": f"{number}.txt"} for number in range(30_000)]))

    assert time.thread_time() - started < 2
    assert {row.status for row in rows} == {"listed"}


# -- readers --------------------------------------------------------------------------------


def test_the_tree_reads_as_one_table(tmp_path: Path) -> None:
    """pyarrow and DuckDB read all mailboxes and windows as one table, with keys from the path."""  # noqa: D403
    for folder, window in ((24, "a_b"), (24, "b_c"), (15, "a_b")):
        home = tmp_path / f"messages/mailbox=u%2Fv@x.ru/folder={folder}/window={window}"
        home.mkdir(parents=True)
        (home / "_manifest.json").write_text("{}")
        (home / "_staged-1.tmp").write_bytes(b"PAR1")
        with (home / "part-00000.parquet").open("wb") as sink:
            writer = ParquetTable("messages", sink, metadata={"run": window})
            writer.write(full_batches(FULL if window == "a_b" else EMPTY)["messages"])
            writer.finish()

    found = ds.dataset(tmp_path / "messages", partitioning="hive").to_table()
    counted = (
        duckdb.connect()
        .execute(
            f"select mailbox, folder, count(*), count(subject) "
            f"from read_parquet('{tmp_path}/messages/**/*.parquet', hive_partitioning=true) "
            "group by all order by folder"
        )
        .fetchall()
    )

    assert found.num_rows == 3
    assert set(found["mailbox"].to_pylist()) == {"u/v@x.ru"}
    assert sorted(found["folder"].to_pylist()) == [15, 24, 24]
    assert counted == [("u/v@x.ru", 15, 1, 1), ("u/v@x.ru", 24, 2, 1)]
