"""An audit of the tables against the server: what differs is found, in few requests, and mended."""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.emulator import Emulator, Mailbox, Readings
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.lake.audit import AuditJob, Finding, Report, audit, audit_tables
from airflow_provider_r7mail.lake.job import ExtractJob
from airflow_provider_r7mail.lake.privacy import Privacy
from airflow_provider_r7mail.lake.repair import repair
from airflow_provider_r7mail.lake.schema import TABLES
from airflow_provider_r7mail.lake.window import extract_window
from tests.lake.support import INBOX, START, config

pytestmark = pytest.mark.slow

HOUR = timedelta(hours=1)


def connected(url: str, work: Callable[[AsyncClient], Any]) -> Any:
    """Work with a client."""

    async def run() -> Any:
        async with AsyncClient(config(url)) as client:
            return await work(client)

    return asyncio.run(run())


def extract(url: str, root: Path, *numbers: int, **options: Any) -> None:
    """Extract hours."""
    length = options.pop("length", HOUR)

    async def work(client: AsyncClient) -> None:
        for number in numbers:
            start = START + HOUR * number
            criteria = MessageFilter.build(
                start=start, end=start + length, sender=options.get("sender")
            )
            given = {name: value for name, value in options.items() if name != "sender"}
            await extract_window(
                client,
                ExtractJob(folder=INBOX, criteria=criteria, output=UPath(root), **given),
            )

    connected(url, work)


def job(root: Path, **options: Any) -> AuditJob:
    """Return an audit of the inbox."""
    given = {"folder": INBOX, "output": UPath(root), "mailbox": "user_test", **options}
    return AuditJob(open_path=UPath, **given)


def check(url: str, root: Path, **options: Any) -> Report:
    """Audit the inbox."""
    report: Report = connected(url, lambda client: audit(client, job(root, **options)))
    return report


def mend(url: str, root: Path, **options: Any) -> Report:
    """Audit the inbox, and repair it."""

    async def work(client: AsyncClient) -> Report:
        what = job(root, **options)
        return await repair(client, what, await audit(client, what))

    report: Report = connected(url, work)
    return report


def found(report: Report) -> list[tuple[str, int | None]]:
    """Return the kinds of findings, and the hour at which each begins."""
    return [
        (finding.kind, None if finding.start is None else (finding.start - START) // HOUR)
        for finding in report.findings
    ]


def rows(root: Path) -> list[int]:
    """Return the ids in all windows, each as often as it is there."""
    paths = root.glob("messages/*/*/*/part-*.parquet")
    return sorted(n for path in paths for n in pq.read_table(path)["message_id"].to_pylist())


def home(root: Path, number: int, table: str = "messages") -> Path:
    """Return an hour's folder."""
    [path] = root.glob(f"{table}/*/*/window={START + HOUR * number:%Y%m%dT%H}*")
    return path


def deliver_two_days(box: Mailbox) -> list[int]:
    """Deliver some mail; the ids, which are the same in each mailbox."""
    dates = [START + timedelta(minutes=25 * number + 7) for number in range(110)]
    return [box.deliver(date=date, to=["a@b.ru"]) for date in dates]


@pytest.fixture(scope="module")
def two_days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables of that mail in hourly windows, for tests to copy."""
    root = tmp_path_factory.mktemp("two-days")
    box = Mailbox()
    deliver_two_days(box)
    with Emulator(box) as emulator:
        extract(emulator.url, root, *range(48))
    return root


@pytest.fixture
def filled(server: Emulator, tmp_path: Path, two_days: Path) -> list[int]:
    """Two days of hourly windows with some mail; the ids."""
    shutil.copytree(two_days, tmp_path, dirs_exist_ok=True)
    return deliver_two_days(server.mailbox)


# -- what is found --------------------------------------------------------------------------


def test_a_mailbox_in_order(server: Emulator, tmp_path: Path, filled: list[int]) -> None:
    """If the tables are the mailbox, nothing is found, in far fewer requests than windows."""
    report = check(server.url, tmp_path)

    assert report.findings == []
    assert report.in_order
    assert report.compared == "counts"
    assert report.requests < 30
    assert report.record()["messages"] == len(filled)
    assert json.loads(json.dumps(report.record())) == report.record()


def test_all_that_can_differ(server: Emulator, tmp_path: Path, filled: list[int]) -> None:
    """Each kind of damage is found where it is, and nothing else."""
    box = server.mailbox
    box.deliver(date=START + HOUR * 5 + timedelta(minutes=1))
    box.delete(INBOX, [filled[30]])  # of the hour 12
    for table in ("messages", "recipients", "attachments"):
        shutil.rmtree(home(tmp_path, 20, table))
        (home(tmp_path, 22, table) / "_manifest.json").unlink()
    (home(tmp_path, 25, "recipients") / "part-00000.parquet").unlink()
    (home(tmp_path, 30) / "copy.parquet").write_bytes(b"x")
    box.deliver(date="1970-01-01T00:00:00Z")
    box.deliver(date="2038-01-19T03:14:07Z")
    report = check(server.url, tmp_path)

    assert found(report)[1:-1] == [
        ("differs", 5),
        ("differs", 12),
        ("missing", 20),
        ("unfinished", 22),
        ("damaged", 25),
        ("strays after", 48),
    ]
    assert report.findings[0].kind == "strays before"
    assert report.findings[-1].kind == "foreign"
    assert report.findings[-1].detail.endswith("copy.parquet")
    numbers = {(f.kind, f.tables, f.server) for f in report.findings}
    assert {("strays before", 0, 1), ("strays after", 0, 1)} <= numbers
    late = next(finding for finding in report.findings if finding.kind == "differs")
    assert (late.detail, (late.server or 0) - (late.tables or 0)) == (
        "1 not in the tables, 0 not on the server",
        1,
    )
    assert not report.in_order


def test_one_that_came_and_one_that_left(
    server: Emulator, tmp_path: Path, filled: list[int]
) -> None:
    """Counts don't tell one that came from one that left; with --deep, ids do."""
    server.mailbox.delete(INBOX, [filled[0]])
    server.mailbox.deliver(date=START + timedelta(minutes=1))

    assert check(server.url, tmp_path).in_order
    report = check(server.url, tmp_path, deep=True)
    assert found(report) == [("differs", 0)]
    assert report.compared == "ids"


@pytest.mark.parametrize(
    "options", [{"tables": ("recipients",)}, {"columns": ("subject", "date")}], ids=str
)
def test_tables_without_ids(server: Emulator, tmp_path: Path, options: dict[str, Any]) -> None:
    """Where there are no ids to compare, --deep compares numbers."""
    server.mailbox.deliver(date=START)
    extract(server.url, tmp_path, 0, **options)
    assert check(server.url, tmp_path, deep=True).in_order
    server.mailbox.deliver(date=START)

    assert found(check(server.url, tmp_path, deep=True)) == [("differs", 0)]


def test_a_row_that_is_there_twice(server: Emulator, tmp_path: Path, filled: list[int]) -> None:
    """A row that somebody doubled, with manifests that fit it, is found with --deep."""
    file = home(tmp_path, 3) / "part-00000.parquet"
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), file)
    data = file.read_bytes()

    def fit(manifest: dict[str, Any]) -> None:
        manifest["messages"] += 1
        manifest["files"][0] |= {
            "rows": manifest["messages"],
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }

    change_manifests(tmp_path, 3, fit)
    report = check(server.url, tmp_path, deep=True)
    assert found(report) == [("differs", 3)]
    assert report.findings[0].detail.endswith(", 1 more than once")
    assert mend(server.url, tmp_path, deep=True).in_order
    assert rows(tmp_path) == filled


def test_a_row_that_is_lost(server: Emulator, tmp_path: Path, filled: list[int]) -> None:
    """A row that somebody removed, with manifests that fit the file, is found by counts alone."""
    file = home(tmp_path, 3) / "part-00000.parquet"
    pq.write_table(pq.read_table(file).slice(1), file)
    data = file.read_bytes()

    def fit(manifest: dict[str, Any]) -> None:
        manifest["messages"] -= 1
        manifest["files"][0] |= {
            "rows": manifest["messages"],
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }

    change_manifests(tmp_path, 3, fit)
    assert found(check(server.url, tmp_path)) == [("differs", 3)]
    few = {"start": START + HOUR * 2, "end": START + HOUR * 5}
    assert found(check(server.url, tmp_path, **few)) == [("differs", 3)]


def change_manifests(
    root: Path, number: int, change: Callable[[dict[str, Any]], Any], tables: Sequence[str] = TABLES
) -> None:
    """Change an hour's manifests by hand."""
    for table in tables:
        path = home(root, number, table) / "_manifest.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "tables", "kind"),
    [
        (lambda manifest: manifest.update(messages=9), TABLES, "damaged"),
        (lambda manifest: manifest.update(folder_id=25), TABLES, "damaged"),
        (lambda manifest: manifest.update(window={"start": "a", "end": "b"}), TABLES, "damaged"),
        (lambda manifest: manifest.update(run_id="another, longer"), TABLES[1:2], "damaged"),
        (lambda manifest: manifest.pop("extracted_at"), TABLES, "unfinished"),
        (lambda manifest: manifest.pop("files"), TABLES, "unfinished"),
        (lambda manifest: manifest.update(messages="two"), TABLES, "unfinished"),
    ],
    ids=range(7),
)
def test_manifests_that_somebody_changed(
    server: Emulator,
    tmp_path: Path,
    filled: list[int],
    change: Callable[[dict[str, Any]], Any],
    tables: Sequence[str],
    kind: str,
) -> None:
    """Manifests that contradict themselves or their place, or lack something, are found."""
    change_manifests(tmp_path, 30, change, tables)

    assert found(audit_tables(job(tmp_path))) == [(kind, 30)]


def test_windows_that_somebody_moved(server: Emulator, tmp_path: Path, filled: list[int]) -> None:
    """Folders of windows that somebody swapped or copied, manifests and all, are found, mended."""
    for table in TABLES:
        one, other = home(tmp_path, 2, table), home(tmp_path, 5, table)
        one.rename(one.parent / "aside")
        other.rename(one)
        (one.parent / "aside").rename(other)
        copied = home(tmp_path, 47, table)
        shutil.copytree(copied, copied.parent / "window=20250603T000000Z_20250603T010000Z")
        shutil.copytree(copied, copied.parent / "window=20250601T100000Z_20250601T120000Z")

    assert found(audit_tables(job(tmp_path))) == [
        ("damaged", 2),
        ("damaged", 5),
        *[("damaged", 10), ("overlapping", 10), ("overlapping", 11)],
        ("damaged", 48),
    ]
    assert mend(server.url, tmp_path).in_order
    assert rows(tmp_path) == filled


def test_files_beside_the_folders(server: Emulator, tmp_path: Path, filled: list[int]) -> None:
    """Files above the folder that readers of a table take for mail are found, too."""
    beside = tmp_path / "messages" / "copy.parquet", home(tmp_path, 3).parents[1] / "copy.parquet"
    for path in beside:
        path.write_bytes(b"x")
    report = audit_tables(job(tmp_path))

    assert {finding.kind for finding in report.findings} == {"foreign"}
    assert {finding.detail for finding in report.findings} == set(map(str, beside))


def test_deep_reads_the_files(server: Emulator, tmp_path: Path, filled: list[int]) -> None:
    """A file with other bytes of the same number is found with --deep."""
    path = home(tmp_path, 3) / "part-00000.parquet"
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)

    assert check(server.url, tmp_path).in_order
    assert ("damaged", 3) in found(check(server.url, tmp_path, deep=True))


@pytest.mark.parametrize(
    "readings",
    [
        {"count": "page"},
        {"count": "folder"},
        {"count_form": "null"},
        {"page_cap": 3},
    ],
    ids=str,
)
def test_other_counts(server: Emulator, tmp_path: Path, readings: dict[str, Any]) -> None:
    """R2: where Count can't be trusted, mail is read, and the result is the same."""
    for number in range(28):
        server.mailbox.deliver(date=START + timedelta(minutes=25 * number + 7))
    server.readings = Readings(**readings)
    extract(server.url, tmp_path, *range(12))
    assert check(server.url, tmp_path).in_order
    server.mailbox.deliver(date=START + HOUR * 5 + timedelta(minutes=1))

    assert found(check(server.url, tmp_path)) == [("differs", 5)]


def test_mail_at_the_edges_of_windows(server: Emulator, tmp_path: Path) -> None:
    """R4: mail dated exactly where windows meet belongs to one of them."""
    for number in range(12):
        for moment in (timedelta(0), timedelta(milliseconds=-1), timedelta(seconds=1)):
            server.mailbox.deliver(date=START + HOUR * number + moment)
    extract(server.url, tmp_path, *range(-1, 12))
    assert check(server.url, tmp_path).in_order
    server.mailbox.deliver(date=START + HOUR * 5)

    assert found(check(server.url, tmp_path)) == [("differs", 5)]


@pytest.mark.parametrize(
    ("count", "compared", "requests"), [("all", "counts", 45), ("page", "ids", 80)]
)
def test_mail_on_each_bound(
    server: Emulator, tmp_path: Path, count: Any, compared: str, requests: int
) -> None:
    """R4: if mail lies on each bound, an audit takes three requests more for each of its parts."""
    box, moments = server.mailbox, (timedelta(0), timedelta(milliseconds=-1), HOUR / 2)
    mail = [box.deliver(date=START + HOUR * n + moment) for n in range(48) for moment in moments]
    server.readings = Readings(count=count)
    extract(server.url, tmp_path, *range(-1, 48))
    report = check(server.url, tmp_path)

    assert (report.findings, report.compared) == ([], compared)
    assert report.requests < requests
    box.delete(INBOX, [mail[-2]])  # of the hour 46
    late = box.deliver(date=START + HOUR * 20)
    assert found(check(server.url, tmp_path)) == [("differs", 20), ("differs", 46)]
    assert mend(server.url, tmp_path).in_order
    assert rows(tmp_path) == sorted({*mail, late} - {mail[-2]})


def test_a_span(server: Emulator, tmp_path: Path, filled: list[int]) -> None:
    """An audit of a span looks at nothing else."""
    for number in (5, 40):
        server.mailbox.deliver(date=START + HOUR * number + timedelta(minutes=1))
    report = check(server.url, tmp_path, start=START + HOUR * 30, end=START + HOUR * 48)

    assert found(report) == [("differs", 40)]
    assert len(report.windows) == 18


def test_overlaps_policies_and_filters(server: Emulator, tmp_path: Path, filled: list[int]) -> None:
    """Windows that overlap, or were written under another policy, are found; filtered are told."""
    extract(server.url, tmp_path, 47, length=2 * HOUR)
    extract(server.url, tmp_path, 10, privacy=Privacy.build({"subject": "drop"}, None))
    extract(server.url, tmp_path, 11, sender="nobody@example.org")
    report = check(server.url, tmp_path)

    assert ("overlapping", 47) in found(report)
    assert ("privacy", 10) in found(report)
    assert [kind for kind, _ in found(report)].count("privacy") == 1
    assert "extracted with filters, and not compared with the server: 1." in " ".join(report.notes)


def test_the_tables_alone(server: Emulator, tmp_path: Path, filled: list[int]) -> None:
    """Offline, files and windows are checked without any request."""
    (home(tmp_path, 25, "recipients") / "part-00000.parquet").unlink()
    for table in ("messages", "recipients", "attachments"):
        shutil.rmtree(home(tmp_path, 20, table))
    before = len(server.requests)
    report = audit_tables(job(tmp_path))

    assert found(report) == [("missing", 20), ("damaged", 25)]
    assert report.compared == "nothing"
    assert len(server.requests) == before


def test_mail_that_is_not_due(server: Emulator, tmp_path: Path) -> None:
    """Mail since the last window is no finding while the next run isn't late."""
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    number = (now - START) // HOUR - 1
    server.mailbox.deliver(date=datetime.now(UTC) + timedelta(seconds=3))
    extract(server.url, tmp_path, number)
    report = check(server.url, tmp_path)

    assert report.in_order
    assert "Messages not extracted yet, since" in report.notes[0]


def test_mail_of_the_future(server: Emulator, tmp_path: Path) -> None:
    """Mail with a wrong clock is found and mended although the next run isn't late, ever."""
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    extract(server.url, tmp_path, (now - START) // HOUR - 1)
    server.mailbox.deliver(date=datetime.now(UTC) + timedelta(hours=14))
    wrong = server.mailbox.deliver(date="2038-01-19T03:14:07Z")
    report = check(server.url, tmp_path)
    assert [(f.kind, f.server) for f in report.findings] == [("strays after", 1)]

    report = mend(server.url, tmp_path)
    assert report.in_order
    assert "Messages not extracted yet, since" in report.notes[0]
    assert rows(tmp_path) == [wrong]


def test_mail_without_a_date(server: Emulator, tmp_path: Path, filled: list[int]) -> None:
    """R27: mail without a usable Date can be in no window, and the report says so."""
    server.mailbox.deliver(date="0001-01-01T00:00:00")
    report = check(server.url, tmp_path)

    assert report.in_order
    assert report.notes == ["Messages without a usable Date, which can be in no window: 1."]


def test_nothing_was_extracted(server: Emulator, tmp_path: Path) -> None:
    """Without tables, all mail is a finding, and a repair says what is missing."""
    server.mailbox.deliver(date=START)
    assert [kind for kind, _ in found(check(server.url, tmp_path))] == ["strays before"]
    with pytest.raises(R7MailConfigError, match="Extract one first"):
        mend(server.url, tmp_path)


# -- repairs --------------------------------------------------------------------------------


def test_a_repair_mends_what_differs(server: Emulator, tmp_path: Path, filled: list[int]) -> None:
    """After a repair the tables are the mailbox, and a second audit finds nothing more."""
    box = server.mailbox
    added = [box.deliver(date=START + HOUR * 5 + timedelta(minutes=1))]
    box.delete(INBOX, [filled[30]])
    for table in ("messages", "recipients", "attachments"):
        for number in (20, 21):
            shutil.rmtree(home(tmp_path, number, table))
        (home(tmp_path, 22, table) / "_manifest.json").unlink()
    (home(tmp_path, 25, "recipients") / "part-00000.parquet").unlink()
    added.append(box.deliver(date="1970-01-01T00:00:00Z"))
    added.append(box.deliver(date="2038-01-19T03:14:07Z"))
    report = mend(server.url, tmp_path)

    assert report.in_order
    assert Counter(finding.repaired for finding in report.findings) == {True: 7}
    wanted = sorted({*filled, *added} - {filled[30]})
    assert rows(tmp_path) == wanted
    assert check(server.url, tmp_path, deep=True).findings == []
    assert len(list(tmp_path.glob("messages/*/*/*"))) == 50


def test_stray_windows_that_became_regular(server: Emulator, tmp_path: Path) -> None:
    """Mail in a window of strays is not there twice once a regular window has it."""
    stray = server.mailbox.deliver(date=START + HOUR * 30 + timedelta(minutes=30))
    far = server.mailbox.deliver(date=START + HOUR * 31 + timedelta(minutes=10))
    extract(server.url, tmp_path, 0, 1)
    mend(server.url, tmp_path)
    assert rows(tmp_path) == [stray, far]
    extract(server.url, tmp_path, *range(2, 31))
    assert rows(tmp_path) == [stray, far], "a regular run replaces a window of the same time"
    extract(server.url, tmp_path, 31, length=2 * HOUR)
    assert rows(tmp_path) == [stray, far, far]
    assert [kind for kind, _ in found(check(server.url, tmp_path))] == ["overlapping"]
    report = mend(server.url, tmp_path)

    assert report.in_order
    assert rows(tmp_path) == [stray, far]
    assert check(server.url, tmp_path, deep=True).findings == []


def test_what_killed_runs_leave(server: Emulator, tmp_path: Path) -> None:
    """A window that a killed repair left far from the others doesn't make a gap of decades.

    One that a killed run left next to the others is a regular one.
    """
    stray = server.mailbox.deliver(date="1970-01-01T00:00:00Z")
    mail = [server.mailbox.deliver(date=START + HOUR * n) for n in range(4)]
    extract(server.url, tmp_path, *range(4))
    mend(server.url, tmp_path)
    far = START.replace(year=1970, month=1, day=1)
    for number in ((far - START) // HOUR, 3, 2):
        for table in ("messages", "recipients", "attachments"):
            (home(tmp_path, number, table) / "_manifest.json").unlink()
    kinds = ["unfinished"] * 3
    assert [kind for kind, _ in found(check(server.url, tmp_path))] == kinds

    report = mend(server.url, tmp_path)

    assert report.in_order
    assert [finding.kind for finding in report.findings] == kinds
    assert [entry.strays for entry in report.windows] == [True, False, False, False, False]
    assert rows(tmp_path) == [stray, *mail]


def test_strays_that_fill_a_gap(server: Emulator, tmp_path: Path) -> None:
    """A window of strays between regular ones becomes a regular one."""
    mail = server.mailbox.deliver(date=START + HOUR * 3)
    extract(server.url, tmp_path, 0, 1)
    mend(server.url, tmp_path)
    extract(server.url, tmp_path, 2, 4)
    assert found(check(server.url, tmp_path)) == [("missing", 3)]

    assert mend(server.url, tmp_path).in_order
    assert rows(tmp_path) == [mail]
    assert check(server.url, tmp_path).findings == []


def test_killed_while_a_window_of_strays_is_removed(server: Emulator, tmp_path: Path) -> None:
    """The next repair goes on to remove it, so that no mail stays twice."""
    mail = server.mailbox.deliver(date=START + HOUR * 31 + timedelta(minutes=10))
    extract(server.url, tmp_path, 0, 1)
    mend(server.url, tmp_path)
    extract(server.url, tmp_path, *range(2, 30))
    extract(server.url, tmp_path, 30, length=2 * HOUR)
    assert rows(tmp_path) == [mail, mail]
    for table in ("messages", "recipients", "attachments"):
        (home(tmp_path, 31, table) / "_manifest.json").unlink()

    assert mend(server.url, tmp_path).in_order
    assert rows(tmp_path) == [mail]


def test_a_repair_extracts_as_before(server: Emulator, tmp_path: Path) -> None:
    """A repair keeps the privacy policy, the columns, the attachments and what has left."""
    ids = [
        server.mailbox.deliver(
            date=START + timedelta(minutes=10 * n), attachments=[("a.txt", b"x", "text/plain")]
        )
        for n in range(3)
    ]
    options: dict[str, Any] = {
        "privacy": Privacy.build({"addresses": "hash"}, "secret"),
        "columns": ("message_id", "from_address", "extracted_at", "gone_at"),
        "attachments": UPath(tmp_path / "files"),
        "on_gone": "keep",
        "tables": ("messages", "attachments"),
    }
    extract(server.url, tmp_path, 0, **options)
    server.mailbox.delete(INBOX, ids[:1])
    with pytest.raises(R7MailConfigError, match="another privacy_secret"):
        mend(server.url, tmp_path, secret="other")
    assert mend(server.url, tmp_path, secret="secret").in_order

    table = pq.read_table(home(tmp_path, 0) / "part-00000.parquet")
    assert tuple(table.column_names) == options["columns"]
    found = table.to_pylist()
    assert [row["gone_at"] is None for row in found].count(False) == 1
    assert {len(row["from_address"]) for row in found} == {64}
    files = pq.read_table(home(tmp_path, 0, "attachments") / "part-00000.parquet").to_pylist()
    assert {row["status"] for row in files} == {"unchanged", "downloaded"}
    assert not (tmp_path / "recipients").exists()


def test_what_a_repair_leaves_to_a_person(
    server: Emulator, tmp_path: Path, filled: list[int]
) -> None:
    """Files of others and regular windows that overlap are not touched."""
    extract(server.url, tmp_path, 46, length=2 * HOUR)
    (home(tmp_path, 30) / "copy.parquet").write_bytes(b"x")
    report = mend(server.url, tmp_path)

    assert not report.in_order
    assert {f.kind: f.repaired for f in report.findings} == {"overlapping": False, "foreign": False}
    assert (home(tmp_path, 30) / "copy.parquet").exists()


def test_findings_are_described() -> None:
    """Every kind of finding has a description in words."""
    from airflow_provider_r7mail.lake.audit import KINDS  # noqa: PLC0415

    assert all(KINDS.values())
    assert Finding("differs").record()["kind"] in KINDS
