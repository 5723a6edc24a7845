"""The Messages call: order, pages, date bounds, filters and fields, under each reading."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_r7mail.emulator import MISSING, Attachment, Emulator, Mailbox, Readings
from tests.emulator.calls import Api, listing, minutes

# Listing (R1 to R6, R17, R20, R21)


@pytest.mark.parametrize("first", ["ascending", "descending"])
def test_sort_order_means_either(first: Any, mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """`sortOrder: 1` is ascending or descending, and any other value is the opposite (R1)."""
    server.readings = Readings(sort_one=first)
    ids = minutes(mailbox, 3, 1, 2)
    rising = [ids[1], ids[2], ids[0]]

    ordered = rising if first == "ascending" else rising[::-1]
    assert api.ids(order=1) == ordered
    assert api.ids(order=0) == ordered[::-1]
    assert api.ids(order=2) == ordered[::-1]


def test_other_fields_order_too(mailbox: Mailbox, api: Api) -> None:
    """A listing can be ordered by a field other than the date."""
    for subject in ("б", "А", "в"):
        mailbox.deliver(subject=subject)
    answer = api.post("Messages", {**listing(), "orderField": "Subject"}).json()

    assert [item["Subject"] for item in answer["Items"]] == ["А", "б", "в"]


def test_count_is_of_all_or_of_the_page(mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """`Count` counts all matches, or only those on the page (R2)."""
    minutes(mailbox, 1, 2, 3)

    assert api.page(size=2)["Count"] == 3
    server.readings = Readings(count="page")
    assert api.page(size=2)["Count"] == 2
    assert api.page(size=2)["UnreadCount"] == 3


def test_pages_can_be_capped(mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """The server can return fewer messages than requested, although there are more (R3)."""
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
    """A message dated exactly at a bound matches or not, separately for each bound (R4)."""
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
    """Bounds and dates are truncated to (milli-, micro-)seconds before they are compared (R4)."""
    fractions = ("", ".9", ".9500001", ".9501007")
    ids = [mailbox.deliver(date=f"2025-06-01T10:00:00{part}Z") for part in fractions]
    server.readings = Readings(precision=precision)

    assert api.ids(StartDate="2025-06-01T10:00:00.9501") == [ids[place] for place in found]


def test_an_empty_bound_is_none(mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """An empty bound means no bound, and a server that ignores dates ignores all bounds."""
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
    """Messages with the same Date can change order between requests, even between pages (R5)."""
    before, *tied, after = minutes(mailbox, 0, 1, 1, 1, 1, 1, 1, 2)

    assert api.ids(order=order) == api.ids(order=order)
    server.readings = Readings(ties="reversed")
    first, second = api.ids(order=order), api.ids(order=order)
    ends = [after, before] if order else [before, after]
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
    """Mail is moved just before a page is returned (R6)."""
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
    """Messages without a valid date come first, and match bounds as the reading says."""
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
    """Each filter is a case-insensitive substring, and all filters must match."""
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
    """A listing can have unknown fields, lack known ones, and have nulls in others (R20)."""
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
    """NUL characters and lone surrogates reach the client unchanged (R21)."""
    mailbox.deliver(subject="a\0b \ud83d", body="Привет 🎉\u2028")
    answer = api.post("Messages", listing())

    assert answer.json()["Items"][0]["Subject"] == "a\0b \ud83d"
    assert answer.json()["Items"][0]["Body"] == "Привет 🎉\u2028"
    assert rb"\ud83d" in answer.content


def test_file_names_can_be_left_out(mailbox: Mailbox, server: Emulator, api: Api) -> None:
    """A listing can say that there are attachments without naming them (R17)."""
    mailbox.deliver(attachments=[Attachment("a.txt", b"a")])
    assert api.page()["Items"][0]["Attachments"][0]["FileName"] == "a.txt"

    server.readings = Readings(list_attachments=False)
    item = api.page()["Items"][0]
    assert (item["HasAttachments"], item["Attachments"]) == (True, None)
