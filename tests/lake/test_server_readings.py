"""Extract from servers that read a request in a way the manual doesn't tell (R27 to R34, R43)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow.parquet as pq  # noqa: TID253 - tests may
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from upath import UPath

from airflow_provider_r7mail.client.asking import Question, conduct
from airflow_provider_r7mail.client.dates import to_microseconds
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.reader import aiter_messages, iter_messages
from airflow_provider_r7mail.client.session import AsyncClient, Client
from airflow_provider_r7mail.client.spans import check_offset
from airflow_provider_r7mail.client.sweep import Listing
from airflow_provider_r7mail.client.traits import Traits
from airflow_provider_r7mail.emulator import Emulator, Fault, Mailbox, Readings
from airflow_provider_r7mail.exceptions import R7MailExtractError
from airflow_provider_r7mail.lake.job import ExtractJob
from airflow_provider_r7mail.lake.window import extract_window
from tests.cases import in_turn
from tests.lake.support import INBOX, START, config

pytestmark = pytest.mark.slow

HOUR = timedelta(hours=1)
OTHER_FOLDER = 15


def mailbox(*, days: int = 5, empty: bool = False, labels: bool = True) -> Mailbox:
    """A message each twenty minutes around START, many stored late, some by hours.

    :param empty: leave out the hour from START
    """
    box = Mailbox()
    mail: list[tuple[datetime, datetime, list[int] | None]] = []
    for number in range(days * 72):
        date = START - days * 12 * HOUR + number * HOUR / 3 + timedelta(seconds=number % 50)
        late = timedelta(seconds=(3, 15, 40)[number % 3]) + (
            7 * HOUR if number % 9 == 0 else 0 * HOUR
        )
        if not (empty and START <= date < START + HOUR):
            mail.append((date + late, date, [2, 3] if labels and number % 3 else None))
    for stored, date, label in sorted(mail, key=lambda item: item[0]):
        fields = {"Timestamp": stored.isoformat().replace("+00:00", "Z")}
        box.deliver(date=date, labels=label, fields=fields)
    for number in range(20):
        box.deliver(folder=OTHER_FOLDER, date=START + number * HOUR / 10)
    return box


unchanged = cache(mailbox)
"""A mailbox for all tests that change nothing in it."""


def wanted(box: Mailbox, end: datetime) -> dict[int, datetime]:
    """The ids and dates of the messages from START on."""
    dates = {raw["Id"]: datetime.fromisoformat(raw["Date"]) for raw in box.messages(INBOX)}
    return {number: date for number, date in dates.items() if START <= date < end}


def extract(server: Emulator, output: Path, end: datetime, **options: Any) -> dict[str, Any]:
    """Extract the window from START on, and return the manifest."""
    job = ExtractJob(
        folder=INBOX,
        output=UPath(output),
        **{
            "criteria": MessageFilter.build(start=START, end=end),
            "page_size": 50,
            **options,
        },
    )
    return asyncio.run(extracted(server, job))


async def extracted(server: Emulator, job: ExtractJob) -> dict[str, Any]:
    """Extract a window in a session of its own, and return the manifest."""
    async with AsyncClient(config(server.url, backoff=0.01, max_concurrency=3)) as client:
        return await extract_window(client, job)


def rows(manifest: dict[str, Any]) -> dict[int, datetime]:
    """The ids and dates of the messages table."""
    path = next(file["path"] for file in manifest["files"] if file["table"] == "messages")
    table = pq.read_table(path, columns=["message_id", "date"])
    ids: list[int] = table["message_id"].to_pylist()
    assert len(ids) == len(set(ids))
    return dict(zip(ids, table["date"].to_pylist(), strict=True))


READINGS = {
    "R29: both bounds needed": Readings(both_bounds=True),
    "R29: server's day": Readings(precision="day"),
    "R29: day in UTC, exclusive": Readings(
        precision="day", zone_hours=0, start_inclusive=False, end_inclusive=False
    ),
    "R29: day, end exclusive": Readings(precision="day", end_inclusive=False),
    "R29: local time": Readings(bounds_as="local"),
    "R29: another zone": Readings(bounds_as="local", zone_hours=-5.5),
    "R29: local day": Readings(bounds_as="local", precision="day"),
    "R29: Timestamp": Readings(bounds_field="Timestamp"),
    "R29: ignored": Readings(ignore_dates=True),
    "R30: by Id": Readings(order_by="Id"),
    "R30: by Timestamp": Readings(order_by="Timestamp"),
    "R31: no labels": Readings(empty_labels="unlabelled"),
    "R31: Labels required": Readings(labels_required=True),
    "R32: other folders": Readings(foreign_rows=True),
    "R34: repeated": Readings(row_per_label=True),
    "R42: camelCase": Readings(names="camel"),
    "R43: no zone": Readings(dates_without_zone=True),
    "R43: no zone, UTC": Readings(dates_without_zone=True, zone_hours=0),
    "R43: no zone in Date": Readings(dates_without_zone=True, timestamps_with_zone=True),
}
FOUND = {
    "R29: server's day": ("bounds", "inexact"),
    "R29: local time": ("bounds", "local time"),
    "R29: another zone": ("bounds", "inexact"),
    "R29: Timestamp": ("bounds", "timestamp"),
    "R29: ignored": ("bounds", "ignored"),
    "R30: by Id": ("sorted_by_date", False),
    "R31: no labels": ("empty_labels", "left out"),
    "R31: Labels required": ("empty_labels", "sent"),
    "R43: no zone": ("dates_offset_seconds", -3 * 3600),
}


@pytest.mark.parametrize(
    ("name", "hours", "listed"),
    in_turn(READINGS, [1, 48], [("ascending", "page"), ("descending", "all")]),
)
def test_right_rows(name: str, hours: int, listed: tuple[Any, Any], tmp_path: Path) -> None:
    """R29 to R34, R42, R43: a window has its messages with their dates, however it is read."""
    box, end = unchanged(), START + hours * HOUR
    order, count = listed
    readings = Readings(**{**vars(READINGS[name]), "sort_one": order, "count": count})
    with Emulator(box, readings) as server:
        manifest = extract(server, tmp_path, end, page_size=20)

    assert rows(manifest) == wanted(box, end)
    if hours == 48 and name in FOUND:
        key, value = FOUND[name]
        assert manifest["readings"][key] == value


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("name", READINGS)
def test_an_empty_window_is_empty(name: str, labels: bool, tmp_path: Path) -> None:
    """R29, R31: an empty page means "no mail" only once another message has been found."""
    box = mailbox(empty=True, labels=labels)
    with Emulator(box, READINGS[name]) as server:
        assert rows(extract(server, tmp_path, START + HOUR)) == {}
        last = START + HOUR - timedelta(seconds=1)
        number = box.deliver(date=last, labels=[2] if labels else None)
        assert rows(extract(server, tmp_path, START + HOUR)) == {number: last}


def requests_of_two(server: Emulator, output: Path, end: datetime) -> tuple[int, int]:
    """Extract a window twice in one session, and return the requests of each time."""

    async def run() -> tuple[int, int]:
        criteria = MessageFilter.build(start=START, end=end)
        job = ExtractJob(folder=INBOX, criteria=criteria, output=UPath(output))
        async with AsyncClient(config(server.url)) as client:
            first = (await extract_window(client, job))["requests"] - 1  # without the login
            return first, (await extract_window(client, job))["requests"]

    return asyncio.run(run())


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("hours", [1, 30])
@pytest.mark.parametrize("empty", [True, False])
def test_it_costs_three_requests(hours: int, labels: bool, empty: bool, tmp_path: Path) -> None:
    """Finding out what server it is takes at most three requests a task, and none later."""
    with Emulator(mailbox(empty=empty, labels=labels)) as server:
        first, second = requests_of_two(server, tmp_path, START + hours * HOUR)

    assert second < first <= second + 3


@pytest.mark.parametrize("odd", [[], [-1.25, -30.75], [0.005]], ids=str)
def test_it_costs_three_requests_where_mail_is_rare(odd: list[float], tmp_path: Path) -> None:
    """Nor does it take more in a folder that has a message a day, and some at other hours."""
    noons = [(START + number * 24 * HOUR + 43_267 * SECOND, 33 * SECOND) for number in range(-9, 0)]
    others = [(START + hours * HOUR, 33 * SECOND) for hours in odd]
    with Emulator(box_of(*noons, *others)) as server:
        first, second = requests_of_two(server, tmp_path, START + HOUR)

    assert first == second + 3


@pytest.mark.parametrize("limit", [None, 1])
def test_an_empty_folder_costs_one_request_a_poll(limit: int | None) -> None:
    """R29: an empty folder is asked about once a poll, however many there are in a session."""
    box = Mailbox()
    criteria = MessageFilter.build(start=START, end=START + HOUR)
    readings = Readings(size_limit=limit)
    with Emulator(box, readings) as server, Client(config(server.url)) as client:
        costs = []
        for _ in range(4):
            before = len(server.requests)
            assert list(iter_messages(client, INBOX, criteria)) == []
            costs.append(len(server.requests) - before)
        number = box.deliver(date=START)
        assert [message.id for message in iter_messages(client, INBOX, criteria)] == [number]

    assert costs[1:] == [1, 1, 1]
    assert limit or costs[0] == 1 + 2  # it logs in


def test_the_page_at_hand_may_show_it_all(tmp_path: Path) -> None:
    """R29, R31: mail near both bounds, stored late, with labels: nothing is left to ask."""
    box = Mailbox()
    for minute in range(60):
        date = START + timedelta(minutes=minute)
        late = (date + HOUR).isoformat().replace("+00:00", "Z")
        box.deliver(date=date, labels=[2], fields={"Timestamp": late})
    with Emulator(box) as server:
        first, second = requests_of_two(server, tmp_path, START + HOUR)

    assert first == second


def test_all_rows_of_another_folder(tmp_path: Path) -> None:
    """R32: if no message is filed under the folder by its FolderId, that is an error."""
    box = Mailbox()
    box.deliver(date=START, fields={"FolderId": 999})
    with (
        Emulator(box) as server,
        pytest.raises(R7MailExtractError, match="filed under another folder"),
    ):
        extract(server, tmp_path, START + HOUR)


@pytest.mark.parametrize("bounds", [{"bounds_as": "local"}, {"ignore_dates": True}], ids=str)
def test_dates_of_an_unknown_zone(bounds: Any, tmp_path: Path) -> None:
    """R43: dates without a zone are an error if no bounds tell which moments they are."""
    readings = Readings(dates_without_zone=True, **bounds)
    with (
        Emulator(mailbox(), readings) as server,
        pytest.raises(R7MailExtractError, match="R43"),
    ):
        extract(server, tmp_path, START + HOUR)


@pytest.mark.parametrize("bounds", [{"precision": "day"}, {"ignore_dates": True}], ids=str)
def test_dates_of_an_unknown_zone_stay_unknown(bounds: Any, tmp_path: Path) -> None:
    """R43: what is an error for one window is an error for the next one of the session."""

    async def run(server: Emulator) -> None:
        async with AsyncClient(config(server.url)) as client:
            for hours in (1, 2):
                window = MessageFilter.build(start=START, end=START + hours * HOUR)
                job = ExtractJob(folder=INBOX, criteria=window, output=UPath(tmp_path))
                with pytest.raises(R7MailExtractError, match="R43"):
                    await extract_window(client, job)

    with Emulator(mailbox(), Readings(dates_without_zone=True, **bounds)) as server:
        asyncio.run(run(server))


@pytest.mark.parametrize("status", ["400", "413"])
def test_days_where_large_pages_are_refused(status: Any, tmp_path: Path) -> None:
    """R29, R37: what is asked about bounds isn't larger than what the server serves."""
    box, end = unchanged(), START + HOUR
    readings = Readings(precision="day", end_inclusive=False, size_limit=9, size_refusal=status)
    with Emulator(box, readings) as server:
        assert rows(extract(server, tmp_path, end, page_size=40)) == wanted(box, end)


@pytest.mark.parametrize("name", ["R29: Timestamp", "R29: ignored"])
def test_undated_mail_hides_no_reading(name: str, tmp_path: Path) -> None:
    """R29: mail without a date, listed whatever the bounds, doesn't hide how they are read."""
    box = mailbox()
    late = {"Timestamp": (START + 50 * HOUR).isoformat().replace("+00:00", "Z")}
    box.deliver(date=START + HOUR / 2, fields=late)
    expected = wanted(box, START + HOUR)
    box.deliver(date="0001-01-01T00:00:00", fields=late)
    readings = Readings(**{**vars(READINGS[name]), "sort_one": "ascending"})
    with Emulator(box, readings) as server:
        manifest = extract(server, tmp_path, START + HOUR, on_bad_message="quarantine")

    assert rows(manifest) == expected
    assert manifest["readings"]["bounds"] == FOUND[name][1]


@pytest.mark.parametrize("year", ["0001", "1500", "1970", "2038", "2555", "9999"])
def test_wrong_clocks(year: str, tmp_path: Path) -> None:
    """R27: mail of senders with wrong clocks harms no window, and is in that of its own date."""
    box = mailbox()
    strange = box.deliver(date=f"{year}-02-03T04:05:06Z")
    with Emulator(box) as server:
        assert rows(extract(server, tmp_path, START + HOUR)) == wanted(box, START + HOUR)
        with Client(config(server.url)) as client:
            window = MessageFilter.build(start=f"{year}-02-03", end=f"{year}-02-04")
            found = [message.id for message in iter_messages(client, INBOX, window)]
        assert found == ([] if year == "0001" else [strange])  # year 1 is .NET's "no date"
        if found:
            job = ExtractJob(folder=INBOX, criteria=window, output=UPath(tmp_path / "own"))
            date = datetime.fromisoformat(f"{year}-02-03T04:05:06Z")
            assert rows(asyncio.run(extracted(server, job))) == {strange: date}


@pytest.mark.parametrize(
    ("name", "bounds", "kind"),
    in_turn(READINGS, ["both", "start", "end", "none"], ["sync", "async"]),
)
async def test_message_by_message(name: str, bounds: str, kind: str) -> None:
    """R29 to R34, R43: sensors, triggers and hooks see each matching message once, too."""
    box = unchanged()
    window = {
        "both": {"start": START, "end": START + 30 * HOUR},
        "start": {"start": START},
        "end": {"end": START + 30 * HOUR},
        "none": {},
    }[bounds]
    criteria = MessageFilter.build(start=window.get("start"), end=window.get("end"))
    ids = [
        raw["Id"]
        for raw in box.messages(INBOX)
        if criteria.window.holds(datetime.fromisoformat(raw["Date"]))
    ]

    with Emulator(box, READINGS[name]) as server:
        if kind == "sync":
            with Client(config(server.url)) as client:
                found = [message.id for message in iter_messages(client, INBOX, criteria)]
        else:
            async with AsyncClient(config(server.url)) as aclient:
                found = [message.id async for message in aiter_messages(aclient, INBOX, criteria)]

    assert sorted(found) == sorted(ids)


@pytest.mark.parametrize("count", ["page", "all"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_mail_that_leaves_hides_no_late_mail(kind: str, count: Any) -> None:
    """R30, R6: sorted by Id, late mail is found even if other mail leaves meanwhile."""
    box = Mailbox()
    first, *others = [box.deliver(date=START + number * HOUR / 60) for number in range(60)]
    late = box.deliver(date=START + HOUR / 60)
    criteria = MessageFilter.build(start=START, end=START + HOUR)
    found: list[int] = []

    def take(number: int) -> None:
        if len(found) == 55:
            box.delete(INBOX, [first])
        found.append(number)

    async def read(server: Emulator) -> None:
        async with AsyncClient(config(server.url)) as client:
            async for message in aiter_messages(client, INBOX, criteria):
                take(message.id)

    readings = Readings(order_by="Id", sort_one="ascending", count=count)
    with Emulator(box, readings) as server:
        if kind == "async":
            asyncio.run(read(server))
        else:
            with Client(config(server.url)) as client:
                for message in iter_messages(client, INBOX, criteria, page_size=10):
                    take(message.id)

    assert sorted(found) == sorted([first, *others, late])


def readings() -> st.SearchStrategy[Readings]:
    """Readings in any combination that leaves it possible to tell which mail a window has."""
    return st.builds(
        Readings,
        sort_one=st.sampled_from(["ascending", "descending"]),
        count=st.sampled_from(["all", "page", "folder", "unread"]),
        page_cap=st.sampled_from([None, 7, 30]),
        ties=st.sampled_from(["stable", "reversed", "random"]),
        start_inclusive=st.booleans(),
        end_inclusive=st.booleans(),
        precision=st.sampled_from(["millisecond", "second", "day"]),
        zone_hours=st.sampled_from([-8.0, 0.0, 3.0, 5.5, 12.0]),
        bounds_as=st.sampled_from(["utc", "local"]),
        bounds_field=st.sampled_from(["Date", "Date", "Timestamp"]),
        both_bounds=st.booleans(),
        ignore_dates=st.sampled_from([False, False, True]),
        order_by=st.sampled_from(["asked", "asked", "Id", "Timestamp"]),
        empty_labels=st.sampled_from(["all", "unlabelled"]),
        foreign_rows=st.booleans(),
        row_per_label=st.booleans(),
        names=st.sampled_from(["documented", "camel"]),
        token_calls=st.sampled_from([None, None, 40]),
        dead_token=st.sampled_from(["401", "403", "406"]),
        size_limit=st.sampled_from([None, None, 9, 60]),
        size_refusal=st.sampled_from(["400", "413", "500"]),
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Emulator]:
    """One server for all combinations."""
    with Emulator(unchanged()) as running:
        yield running


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(combination=readings(), hours=st.sampled_from([1, 5, 36]), size=st.sampled_from([7, 50]))
def test_any_combination(
    server: Emulator, tmp_path_factory: Any, combination: Readings, hours: int, size: int
) -> None:
    """R1 to R5, R24, R29 to R34, R37, R42 combined: right rows, never silently wrong ones."""
    server.readings = combination
    end = START + hours * HOUR
    manifest = extract(server, tmp_path_factory.mktemp("out"), end, page_size=size)
    assert rows(manifest) == wanted(server.mailbox, end)


def test_undated_mail_hides_nothing(tmp_path: Path) -> None:
    """R29: mail without a date that fills the first page doesn't keep the check from dated mail."""
    box = mailbox(empty=True)
    for _ in range(60):
        box.deliver(date="0001-01-01T00:00:00")
    box.deliver(date=START + timedelta(minutes=1))
    readings = Readings(bounds_as="local", sort_one="ascending", undated="as_min")
    with Emulator(box, readings) as server:
        manifest = extract(server, tmp_path, START + HOUR)

    assert manifest["readings"]["bounds"] == "local time"
    assert manifest["messages"] == 1


def test_a_folder_without_dated_mail_at_its_beginning(tmp_path: Path) -> None:
    """R29: however much mail has no date, dated mail shows how bounds are read."""
    box = Mailbox()
    late = {"Timestamp": (START + 2 * HOUR).isoformat().replace("+00:00", "Z")}
    for _ in range(120):
        in_window = {"Timestamp": (START + HOUR / 2).isoformat().replace("+00:00", "Z")}
        box.deliver(date="0001-01-01T00:00:00", fields=in_window)
    numbers = [box.deliver(date=START + HOUR / 2, fields=late) for _ in range(2)]
    readings = Readings(bounds_field="Timestamp", sort_one="ascending")
    with Emulator(box, readings) as server:
        manifest = extract(server, tmp_path, START + HOUR, on_bad_message="quarantine")
        with Client(config(server.url)) as client:
            window = MessageFilter.build(start=START, end=START + HOUR)
            found = [message.id for message in iter_messages(client, INBOX, window)]

    assert sorted(rows(manifest)) == sorted(found) == numbers


def test_mail_without_a_timestamp(tmp_path: Path) -> None:
    """R29: a message that isn't listed at its Date says more than another one that is."""
    box = mailbox(days=1, empty=True)
    numbers = [
        box.deliver(date=START + HOUR * part, fields={"Timestamp": None}) for part in (0.4, 0.6)
    ]
    box.deliver(
        date=START - HOUR * 0.01,
        fields={"Timestamp": (START - HOUR * 0.01).isoformat().replace("+00:00", "Z")},
    )
    with Emulator(box, Readings(bounds_field="Timestamp")) as server:
        manifest = extract(server, tmp_path, START + HOUR)

    assert sorted(rows(manifest)) == numbers
    assert manifest["readings"]["bounds"] == "timestamp"


def box_of(*delays: tuple[datetime, timedelta], label: int | None = None) -> Mailbox:
    """A folder with messages of these Dates, stored so much later."""
    box = Mailbox()
    for date, delay in delays:
        stored = (date + delay).isoformat().replace("+00:00", "Z")
        labels = None if label is None else [label]
        box.deliver(date=date, labels=labels, fields={"Timestamp": stored})
    return box


SECOND = timedelta(seconds=1)


@pytest.mark.parametrize("zone", [-5, 0, 3])
def test_timestamps_without_a_zone(zone: float, tmp_path: Path) -> None:
    """R43, R29: a Timestamp in an unknown zone doesn't pass for one that is far from Date."""
    minutes = [(START + number * HOUR / 60, SECOND) for number in range(100)]
    box = box_of(*minutes, (START + HOUR / 2, 5 * HOUR))
    readings = Readings(
        bounds_field="Timestamp",
        sort_one="ascending",
        timestamps_without_zone=True,
        zone_hours=zone,
    )
    with Emulator(box, readings) as server:
        manifest = extract(server, tmp_path, START + HOUR)

    assert rows(manifest) == wanted(box, START + HOUR)
    assert manifest["readings"]["bounds"] == "timestamp"


@pytest.mark.parametrize("zone", [-5, 0, 3, 12])
@pytest.mark.parametrize("local", ["local", "utc"])
def test_days_in_a_sparse_folder(local: Any, zone: float, tmp_path: Path) -> None:
    """R29: that days are compared shows in a folder with a message a day, too."""
    noons = [(START + number * 24 * HOUR - 707 * SECOND, 33 * SECOND) for number in range(-3, 1)]
    start = START + 22 * HOUR
    box = box_of(*noons, (start + 1717 * SECOND, 20 * SECOND))
    readings = Readings(bounds_as=local, precision="day", zone_hours=zone)
    criteria = MessageFilter.build(start=start, end=start + HOUR)
    with Emulator(box, readings) as server:
        manifest = extract(server, tmp_path, start + HOUR, criteria=criteria)

    assert list(rows(manifest).values()) == [start + 1717 * SECOND]


def test_nightly_mail_tells_nothing_about_days(tmp_path: Path) -> None:
    """R29: a message at midnight is within the bounds of two days, so another one is asked for."""
    nights = [(START + number * 24 * HOUR, 33 * SECOND) for number in range(-3, 3)]
    date = START + 10 * HOUR + 1717 * SECOND
    readings = Readings(precision="day", zone_hours=0, start_inclusive=False)
    criteria = MessageFilter.build(start=START + 10 * HOUR, end=START + 11 * HOUR)
    with Emulator(box_of(*nights, (date, 20 * SECOND)), readings) as server:
        manifest = extract(server, tmp_path, START + 11 * HOUR, criteria=criteria)

    assert list(rows(manifest).values()) == [date]


@pytest.mark.parametrize("label", [None, 2])
def test_years_of_nightly_mail_tell_nothing_about_days(label: int | None, tmp_path: Path) -> None:
    """R29: nor does it if the nightly mail fills the first page of the folder."""
    nights = [(START + number * 24 * HOUR, 33 * SECOND) for number in range(-80, 3)]
    date = START + 10 * HOUR + 1717 * SECOND
    readings = Readings(precision="day", zone_hours=0, start_inclusive=False, sort_one="ascending")
    criteria = MessageFilter.build(start=START + 10 * HOUR, end=START + 11 * HOUR)
    with Emulator(box_of(*nights, (date, 20 * SECOND), label=label), readings) as server:
        manifest = extract(server, tmp_path, START + 11 * HOUR, criteria=criteria)
        with Client(config(server.url)) as client:
            found = [message.date for message in iter_messages(client, INBOX, criteria)]

    assert list(rows(manifest).values()) == found == [date]


def test_quarter_hours_tell_about_days(tmp_path: Path) -> None:
    """R29: in a folder whose mail is all of quarter hours, too, days don't pass for moments."""
    nights = [(START + number * 24 * HOUR, 33 * SECOND) for number in range(-3, 3)]
    date = START + 10.25 * HOUR
    readings = Readings(precision="day", zone_hours=0, start_inclusive=False)
    criteria = MessageFilter.build(start=START + 10 * HOUR, end=START + 11 * HOUR)
    with Emulator(box_of(*nights, (date, 20 * SECOND)), readings) as server:
        manifest = extract(server, tmp_path, START + 11 * HOUR, criteria=criteria)

    assert list(rows(manifest).values()) == [date]


def test_mail_around_a_short_window(tmp_path: Path) -> None:
    """R29: mail near a window's bounds proves nothing about them unless its page lists it."""
    box = box_of(*((START + 10 * HOUR + number * SECOND, 40 * SECOND) for number in range(60)))
    start, end = START + 10 * HOUR + 20 * SECOND, START + 10 * HOUR + 27 * SECOND
    readings = Readings(precision="day", zone_hours=0, start_inclusive=False, end_inclusive=False)
    criteria = MessageFilter.build(start=start, end=end)
    with Emulator(box, readings) as server:
        manifest = extract(server, tmp_path, end, criteria=criteria)

    assert len(rows(manifest)) == 7


def test_many_messages_of_one_second(tmp_path: Path) -> None:
    """R29: other mail of the same second doesn't show that Date is compared, not Timestamp."""
    at = START + HOUR / 2
    box = box_of(*((at, number * SECOND) for number in range(1, 40)), (at, 3 * HOUR))
    with Emulator(box, Readings(bounds_field="Timestamp")) as server:
        manifest = extract(server, tmp_path, START + HOUR)

    assert rows(manifest) == wanted(box, START + HOUR)


@pytest.mark.parametrize("precision", ["day", "second"])
def test_a_limit_of_offsets(precision: Any, tmp_path: Path) -> None:
    """R37: the server's limit of offsets doesn't keep its reading of bounds from being found."""
    box = mailbox()
    with Emulator(box, Readings(precision=precision, reach_limit=300)) as server:
        manifest = extract(server, tmp_path, START + HOUR)

    assert rows(manifest) == wanted(box, START + HOUR)


def test_a_folder_beyond_the_limit_of_offsets(tmp_path: Path) -> None:
    """R37: if the server doesn't list a whole folder that must be read, the error names it."""
    readings = Readings(ignore_dates=True, reach_limit=100)
    with (
        Emulator(mailbox(), readings) as server,
        pytest.raises(R7MailExtractError, match="R37"),
    ):
        extract(server, tmp_path, START + HOUR)


@pytest.mark.parametrize(
    "readings",
    [
        Readings(bounds_field="Timestamp"),
        Readings(bounds_field="Timestamp", precision="day"),
        Readings(bounds_field="Timestamp", bounds_as="local"),
        Readings(bounds_field="Timestamp", bounds_as="local", precision="day"),
    ],
    ids=["exact", "day", "local", "local day"],
)
@pytest.mark.parametrize("late", [26 * HOUR, 96 * HOUR])
def test_late_mail(readings: Readings, late: timedelta, tmp_path: Path) -> None:
    """R29: if Timestamp is compared, mail that was stored days late is in its window, too.

    Nothing else in that window shows it.
    """
    mail = [
        (START + number * HOUR / 6, 12 * HOUR if number % 20 == 15 else SECOND)
        for number in range(-100, 100)
    ]
    box = box_of(*mail, (START + 65 * SECOND, late))
    with Emulator(box, readings) as server:
        manifest = extract(server, tmp_path, START + HOUR)

    assert rows(manifest) == wanted(box, START + HOUR)


def test_labels_of_a_search(tmp_path: Path) -> None:
    """R31: a search for a label finds out about bounds although Labels: [] hides its mail."""
    box = mailbox()
    criteria = MessageFilter.build(start=START, end=START + HOUR, labels=[2])
    with Emulator(box, Readings(empty_labels="unlabelled")) as server:
        manifest = extract(server, tmp_path, START + HOUR, criteria=criteria)

    assert manifest["readings"]["bounds"] == "date"
    assert manifest["messages"] == 2


def test_labels_of_undated_mail(tmp_path: Path) -> None:
    """R31: labelled mail is not hidden if no message of the folder has a date."""
    box = Mailbox()
    box.deliver(date="0001-01-01T00:00:00", labels=[2])
    readings = Readings(empty_labels="unlabelled", undated="always")
    with Emulator(box, readings) as server, pytest.raises(R7MailExtractError, match="no date"):
        extract(server, tmp_path, START + HOUR)


@pytest.mark.parametrize("kind", ["status", "reset"])
@pytest.mark.parametrize("skip", [1, 2, 3, 4])
def test_a_fault_proves_nothing(kind: Any, skip: int, tmp_path: Path) -> None:
    """R31: an error at a question about labels isn't taken for the answer."""
    box = box_of(*((START + number * HOUR / 3, HOUR) for number in range(-9, 9)), label=2)
    with Emulator(box, Readings(empty_labels="unlabelled")) as server:
        server.faults.append(Fault("Messages", skip=skip, kind=kind, status=500))
        manifest = extract(server, tmp_path, START + HOUR)

    assert rows(manifest) == wanted(box, START + HOUR)


@pytest.mark.parametrize("readings", [{}, {"bounds_as": "local"}], ids=["utc", "local"])
def test_questions_are_no_larger_than_served(readings: Any, tmp_path: Path) -> None:
    """R37: what the server refuses as a page isn't asked of it as a question, either."""
    box = mailbox(days=2, empty=True)
    with Emulator(box, Readings(size_limit=20, **readings)) as server:
        assert rows(extract(server, tmp_path, START + HOUR, page_size=None)) == {}


def test_dates_of_a_changing_zone(tmp_path: Path) -> None:
    """R43: dates of another summer, an hour further from UTC, are an error, not an hour wrong."""
    criteria = MessageFilter.build(start=START, end=START + HOUR)
    job = ExtractJob(folder=INBOX, criteria=criteria, output=UPath(tmp_path))

    async def run(server: Emulator) -> None:
        async with AsyncClient(config(server.url)) as client:
            await extract_window(client, job)
            server.readings = Readings(dates_without_zone=True, zone_hours=4)
            with pytest.raises(R7MailExtractError, match="R43"):
                await extract_window(client, job)

    with Emulator(mailbox(), Readings(dates_without_zone=True)) as server:
        asyncio.run(run(server))


@pytest.mark.parametrize("by_message", [True, False])
def test_dates_of_a_changing_zone_in_the_first_window(by_message: bool, tmp_path: Path) -> None:
    """R43: so are those of the very window that shows how far from UTC the others are."""
    pages: list[dict[str, Any]] = []

    def change(record: dict[str, Any]) -> None:
        if record["path"].endswith("Messages") and record["json"]["size"] == 60:
            pages.append(record)
            if len(pages) == 2:  # the first one, once it is known how far they are
                emulator.readings = Readings(dates_without_zone=True, zone_hours=4)

    def read(server: Emulator) -> None:
        if by_message:
            window = MessageFilter.build(start=START, end=START + 4 * HOUR)
            with Client(config(server.url)) as client:
                list(iter_messages(client, INBOX, window, page_size=60))
        else:
            extract(server, tmp_path, START + 4 * HOUR, page_size=60)

    box = box_of(*((START + HOUR * hours, 33 * SECOND) for hours in (1, 1.4, 2.6)))
    readings = Readings(dates_without_zone=True)
    with (
        Emulator(box, readings, on_request=change) as emulator,
        pytest.raises(R7MailExtractError, match="R43"),
    ):
        read(emulator)

    assert len(pages) == 2


def test_dates_of_a_summer_between_two_winters() -> None:
    """R43: nor is a summer's mail an hour wrong, where the first and the last are of winter."""
    moments = [datetime(2025, month, 5, tzinfo=UTC) for month in (1, 7, 7, 12)]
    listed = [
        moment.astimezone(ZoneInfo("Europe/Berlin")).replace(tzinfo=UTC) for moment in moments
    ]
    traits = Traits("date", dates_offset=-3600, labels="sent")
    keys = range(len(moments))
    dates = [to_microseconds(date - HOUR) for date in listed]

    def answer(question: Question) -> Listing:
        start, end = question.request.start, question.request.end
        assert start is not None
        assert end is not None
        found = [key for key in keys if start <= moments[key] <= end]
        return Listing(found, [dates[key] for key in found], len(found), zoneless=True)

    with pytest.raises(R7MailExtractError, match="R43"):
        conduct(check_offset(traits, Listing(keys, dates, 4, zoneless=True), 50), answer)
    winter = [0, 3]
    listing = Listing(winter, [dates[key] for key in winter], 2, zoneless=True)
    conduct(check_offset(traits, listing, 50), answer)


def test_dates_of_an_unknown_zone_in_a_changing_folder(tmp_path: Path) -> None:
    """R43: if the messages that would show the zone leave meanwhile, no date is a guess."""
    dates = [(START + HOUR, 33 * SECOND), (START + 2 * HOUR, 33 * SECOND)]
    box = box_of(*dates, (START + HOUR / 2, SECOND))
    asked: list[dict[str, Any]] = []

    def change(record: dict[str, Any]) -> None:
        if record["path"].endswith("Messages"):
            asked.append(record)
        if len(asked) == 2:
            there = box.messages(INBOX)
            box.delete(INBOX, [raw["Id"] for raw in there if raw["Date"] > "2025-06-01T00:45"])

    readings = Readings(dates_without_zone=True)
    with (
        Emulator(box, readings, on_request=change) as server,
        pytest.raises(R7MailExtractError, match="R43"),
    ):
        extract(server, tmp_path, START + 4 * HOUR)


@pytest.mark.parametrize("count", ["all", "page"])
def test_mail_that_leaves_hides_no_mail_that_came_late(count: Any, tmp_path: Path) -> None:
    """R30: by Id, late mail is passed over; a deletion meanwhile doesn't make up for it."""
    box = Mailbox()
    first, *_ = [box.deliver(date=START + timedelta(minutes=number)) for number in range(300)]
    late = box.deliver(date=START + timedelta(minutes=45, seconds=7))

    def change(record: dict[str, Any]) -> None:
        if record["path"].endswith("Messages") and record["json"]["size"] == 50 and box.has(first):
            asked.append(record)
            if len(asked) == 5:
                box.delete(INBOX, [first])
                box.delete(27, [first])

    asked: list[dict[str, Any]] = []
    readings = Readings(order_by="Id", sort_one="ascending", count=count)
    with Emulator(box, readings, on_request=change) as emulator:
        manifest = extract(emulator, tmp_path, START + 10 * HOUR)

    assert not box.has(first)
    assert late in rows(manifest)


def test_a_window_with_undated_mail_only(tmp_path: Path) -> None:
    """R27: mail without a date that is listed for each window doesn't make empty ones fail."""
    box = mailbox(empty=True)
    box.deliver(date="0001-01-01T00:00:00")
    with Emulator(box, Readings(undated="always")) as server:
        manifest = extract(server, tmp_path, START + HOUR, on_bad_message="quarantine")

    assert (manifest["messages"], manifest["quarantined"]) == (0, 1)


def test_timestamps_of_an_unknown_zone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """R43: if only Timestamp names no zone, the log says that it may be in local time."""
    box = Mailbox()
    box.deliver(date=START, fields={"Timestamp": "2025-06-01T03:00:30"})
    with Emulator(box) as server:
        extract(server, tmp_path, START + HOUR)

    assert "Timestamp doesn't name a zone, though Date does (R43)" in caplog.text


@pytest.mark.parametrize("threads", ["heads", "flat"])
def test_hidden_replies(threads: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """R33: if messages have replies and none is listed, the log says that they may be hidden."""
    box = mailbox(days=1)
    box.deliver(date=START, mime_message_id="one@x")
    box.deliver(date=START + HOUR / 2, in_reply_to="one@x")
    with Emulator(box, Readings(threads=threads)) as server:
        manifest = extract(server, tmp_path, START + HOUR)

    assert ("(R33)" in caplog.text) is (threads == "heads")
    assert manifest["readings"]["replies_listed"] is (None if threads == "heads" else True)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_folder_whose_mail_is_all_of_others(kind: str) -> None:
    """R32: a sensor doesn't wait forever for mail that is always filed under another folder."""
    box = Mailbox()
    box.deliver(date=START, fields={"FolderId": 999})

    async def read_async(server: Emulator) -> None:
        async with AsyncClient(config(server.url)) as client:
            async for _ in aiter_messages(client, INBOX, MessageFilter()):
                pass

    def read(server: Emulator) -> None:
        with Client(config(server.url)) as client:
            list(iter_messages(client, INBOX, MessageFilter()))

    with (
        Emulator(box) as server,
        pytest.raises(R7MailExtractError, match="filed under another folder"),
    ):
        asyncio.run(read_async(server)) if kind == "async" else read(server)
