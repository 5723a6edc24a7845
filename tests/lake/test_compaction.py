"""Windows of the past become one window, and nothing else changes: rows, reruns, audits."""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from upath import UPath

from airflow_provider_r7mail.compat import ObjectStoragePath
from airflow_provider_r7mail.emulator import Emulator
from airflow_provider_r7mail.emulator.folders import DRAFTS, SENT
from airflow_provider_r7mail.exceptions import R7MailConfigError, R7MailPublishError
from airflow_provider_r7mail.lake import neighbours
from airflow_provider_r7mail.lake.compaction import (
    CompactJob,
    compact_folders,
    compact_job,
)
from airflow_provider_r7mail.lake.inventory import find_folders
from airflow_provider_r7mail.lake.job import stored_windows
from airflow_provider_r7mail.lake.privacy import Privacy
from airflow_provider_r7mail.lake.recheck import Look, recheck
from airflow_provider_r7mail.lake.schema import TABLES
from airflow_provider_r7mail.lake.splitting import make_room
from tests.lake.compacting import (
    FAR,
    HOUR,
    check,
    compacted,
    connected,
    deliver,
    extract,
    job_of,
    names,
    rows,
    without,
)
from tests.lake.support import INBOX, START, Bucket, connect_s3, example

pytestmark = pytest.mark.slow

HOURS = 8
ALL = "20250601T000000Z_20250601T080000Z"
HOME = f"mailbox=user_test/folder={INBOX}"


@pytest.fixture
def filled(server: Emulator) -> Emulator:
    """A mailbox with some hours of mail."""
    deliver(server, HOURS)
    return server


@pytest.fixture(params=["file", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any) -> Iterator[Any]:
    """The root of the tables: on a disk, and on S3."""
    if request.param == "file":
        yield UPath(tmp_path / "lake")
        return
    url = request.getfixturevalue("s3_url")
    httpx.post(f"{url}/moto-api/reset")
    connect_s3(monkeypatch, "s3_compact", url)
    Bucket(url, "mail")
    yield ObjectStoragePath("s3://s3_compact@mail/lake")


def hour(number: int, length: int = 1) -> str:
    """Return the label of an hour."""
    start = START + HOUR * number
    return f"{start:%Y%m%dT%H%M%SZ}_{start + HOUR * length:%Y%m%dT%H%M%SZ}"


def part(root: Any, label: str, table: str = "messages", name: str = "part-00000.parquet") -> Path:
    """Return a file of a window on disk."""
    return Path(root.path) / table / HOME / f"window={label}" / name


# -- compacting -----------------------------------------------------------------------------


def test_many_windows_become_one(filled: Emulator, root: Any) -> None:
    """The rows stay as they are, in one sorted file a table, and an audit finds all in order."""
    extract(filled.url, root, *range(HOURS))
    before = rows(root)

    made = compacted(root)

    assert [(m.window, m.windows, m.messages) for m in made.made] == [(ALL, HOURS, 2 * HOURS)]
    assert made.left == []
    assert rows(root) == before
    for table, length in (("messages", 16), ("recipients", 48), ("attachments", 8)):
        assert names(root, table) == [ALL]
        assert len(before[table]) == length
        files = root.fs.find((root / table).path)
        assert {path.rpartition("/")[2] for path in files} == {
            "part-00000.parquet",
            "_manifest.json",
            "_windows.jsonl",
        }
        assert len(files) == 3
    home = root / "messages" / HOME / f"window={ALL}"
    manifest = json.loads((home / "_manifest.json").read_text())
    assert [item["messages"] for item in manifest["made_of"]] == [2] * HOURS
    assert manifest["attachments"] == {"listed": HOURS}
    with (home / "part-00000.parquet").open("rb") as file:
        dates = pq.read_table(file)["date"].to_pylist()
    assert dates == sorted(dates)
    report = check(filled.url, root)
    assert (report.findings, report.notes) == ([], [])
    assert len(report.windows) == HOURS
    assert compacted(root).record() == {
        "mailbox": "user_test",
        "folder_id": INBOX,
        "made": [],
        "left": [],
        "removed": 0,
    }


def test_compacted_windows_are_compacted_further(filled: Emulator, tmp_path: Path) -> None:
    """Windows that follow, and compacted ones of before, become one; days stay days."""
    root = UPath(tmp_path)
    extract(filled.url, root, *range(4), 24, 25, 26)
    before = rows(root)

    assert len(compacted(root, "day", START + 3 * HOUR).made) == 1
    assert [m.windows for m in compacted(root, "day").made] == [4, 3]
    extract(filled.url, root, *range(4, 24))
    found = compacted(root).made

    assert [(m.window, m.windows) for m in found] == [(hour(0, 27), 27)]
    assert without(rows(root), 4)["messages"][:8] == before["messages"]
    assert check(filled.url, root).in_order


def test_what_is_left_alone(filled: Emulator, tmp_path: Path) -> None:
    """What can't be in one window stays as it is, and it is said why."""
    root = UPath(tmp_path)
    url = filled.url
    last = 30 * 24 - 1  # June's last hour
    extract(url, root, 0, 1, 2, 3, 4, last, last + 1)
    extract(url, root, 5, 6, privacy=Privacy.build({"body": "drop"}, None))
    extract(url, root, 10, 11, columns=("message_id", "date"))
    extract(url, root, 12, tables=("messages",))
    extract(url, root, 20, 21, 22)
    extract(url, root, 21, length=timedelta(minutes=30))
    extract(url, root, 30, strays=True)
    with part(root, hour(1), "recipients").open("r+b") as file:
        file.write(b"x")  # as long as before
    part(root, hour(4)).write_bytes(b"short")
    extract(url, root, 40, 41)
    for table in ("messages", "recipients", "attachments"):
        part(root, hour(41), table, "_manifest.json").unlink()

    found = compacted(root)

    assert [made.window for made in found.made] == [hour(2, 2), hour(5, 2), hour(10, 2)]
    half = "20250601T210000Z_20250601T213000Z"
    assert [(left.window, left.reason.partition(":")[0], left.damaged) for left in found.left] == [
        (hour(1), "recipients", True),
        (hour(4), "messages", True),
        (half, "overlaps another window", False),
        (hour(21), "overlaps another window", False),
        (hour(30), "made by an audit, for mail outside of the regular windows", False),
        (hour(41), "unfinished", False),
    ]


def test_windows_across_the_end_of_a_month(server: Emulator, tmp_path: Path) -> None:
    """Weeks belong to the month that they begin in; runs in the next month find them there."""
    root, week = UPath(tmp_path), 7 * 24
    for day in range(0, 70, 5):
        server.mailbox.deliver(date=START + timedelta(days=day, hours=5), to=["a@b.ru"])
    extract(server.url, root, *range(0, 8 * week, week), length=week * HOUR)
    extract(server.url, root, 8 * week, length=90 * 24 * HOUR)
    before = rows(root)

    made = compacted(root).made

    june, july, rest = hour(0, 5 * week), hour(5 * week, 3 * week), hour(8 * week, 90 * 24)
    assert june == "20250601T000000Z_20250706T000000Z"
    assert [(m.window, m.windows) for m in made] == [(june, 5), (july, 3)]
    assert names(root) == [june, july, rest]
    assert rows(root) == before
    assert check(server.url, root).in_order
    extract(server.url, root, 4 * week, length=week * HOUR)
    assert names(root) == [hour(0, 4 * week), hour(4 * week, week), july, rest]
    [again] = compacted(root).made
    assert (again.window, again.windows) == (june, 5)
    extract(server.url, root, 31 * 24)  # an hour of July, in a window of June's
    assert hour(31 * 24) in names(root)


def test_the_size_of_a_window_is_limited(
    filled: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A month with much mail becomes several windows, which stay as they are."""
    root = UPath(tmp_path)
    extract(filled.url, root, *range(HOURS))
    sizes = [
        sum(entry.stat().st_size for entry in tmp_path.glob(f"*/{HOME}/window={hour(n)}/part-*"))
        for n in range(HOURS)
    ]
    monkeypatch.setattr(neighbours, "MAX_BYTES", sum(sizes[:3]) + 1000)
    before = rows(root)

    found = compacted(root).made

    assert [m.windows for m in found][:1] == [3]
    assert sum(m.windows for m in found) in {HOURS, HOURS - 1}
    assert rows(root) == before


def test_columns_of_other_versions(filled: Emulator, tmp_path: Path) -> None:
    """Files with other columns than their neighbours', though the manifests agree, aren't mixed."""
    root = UPath(tmp_path)
    extract(filled.url, root, *range(6))
    for number in (2, 3):
        path = part(root, hour(number))
        pq.write_table(pq.read_table(path).drop(["extra"]), path)
        _correct(root, hour(number), path)

    found = compacted(root)

    assert [made.window for made in found.made] == [hour(0, 2), hour(2, 2), hour(4, 2)]
    assert found.left == []


def _correct(root: Any, label: str, path: Path) -> None:
    """Let a window's manifests say what its messages file is now."""
    import hashlib  # noqa: PLC0415

    for table in ("messages", "recipients", "attachments"):
        note = part(root, label, table, "_manifest.json")
        manifest = json.loads(note.read_text())
        data = path.read_bytes()
        manifest["files"][0] |= {
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        note.write_text(json.dumps(manifest))


def test_many_folders(server: Emulator, tmp_path: Path) -> None:
    """The windows of all folders rest at the same time, and then they are removed."""
    root = UPath(tmp_path)
    folders = (INBOX, SENT, DRAFTS)
    for folder in folders:
        extract(server.url, root, 0, 1, folder=folder)
    job = CompactJob(root, FAR, rest=1.5)
    started = time.monotonic()
    count = 0

    for outcome in compact_folders(job, find_folders(root)):
        assert [made.windows for made in outcome.made] == [2]
        home = tmp_path / "messages" / f"mailbox=user_test/folder={outcome.folder}"
        assert len(list(home.iterdir())) == 3
        count += 1

    assert count == len(folders)
    assert 1.5 <= time.monotonic() - started < 3
    assert len(list(tmp_path.glob("messages/*/*/*"))) == len(folders)
    assert [o.removed for o in compact_folders(job, find_folders(root))] == [0] * 3


def test_a_renamed_mailbox(filled: Emulator, tmp_path: Path) -> None:
    """A mailbox whose folder was renamed, or copied, is compacted there, whatever manifests say."""
    extract(filled.url, UPath(tmp_path), *range(3))
    for table in TABLES:
        home = tmp_path / table
        home.joinpath("mailbox=user_test").rename(home / "mailbox=ann")

    for _ in range(2):
        list(compact_folders(CompactJob(UPath(tmp_path), FAR, rest=0), [("ann", INBOX)]))

    assert len(rows(UPath(tmp_path))["messages"]) == 6
    place = f"mailbox=ann/folder={INBOX}"
    assert [p.parent.name for p in tmp_path.glob(f"messages/{place}/*/part*")] == [
        f"window={hour(0, 3)}"
    ]
    make_room(UPath(tmp_path), TABLES, f"{place}/window={hour(1)}", replace=False)
    assert len(list(tmp_path.glob(f"messages/{place}/*/part*"))) == 3
    assert len(list(tmp_path.glob("messages/*"))) == 1


def test_only_the_past_and_what_is_asked_for(filled: Emulator, tmp_path: Path) -> None:
    """Windows that end later than asked stay; a dry run says what it would do, and does nothing."""
    root = UPath(tmp_path)
    extract(filled.url, root, *range(HOURS))

    job = compact_job(root, 1, "month", START + timedelta(days=1, hours=3), dry_run=True)
    [outcome] = compact_folders(job, [("user_test", INBOX)])
    [made] = outcome.made

    assert (made.window, made.windows) == (hour(0, 3), 3)
    assert len(names(root)) == HOURS
    assert find_folders(root) == [("user_test", INBOX)]
    assert find_folders(root, INBOX + 1) == []
    for days, into in ((-1, "month"), (True, "day"), (35, "week")):
        with pytest.raises(R7MailConfigError, match=r"older_than_days|into"):
            compact_job(root, days, into, FAR)


# -- afterwards -----------------------------------------------------------------------------


def test_a_rerun_within(filled: Emulator, root: Any) -> None:
    """A rerun of an hour replaces just that hour's rows, and keeps those of mail that has left."""
    extract(filled.url, root, *range(HOURS), on_gone="keep")
    compacted(root)
    before = rows(root)
    [left] = [m["Id"] for m in filled.mailbox.messages(INBOX)][7:8]
    filled.mailbox.delete(INBOX, [left])
    at = next(row["date"] for row in before["messages"] if row["message_id"] == left)
    number = (at - START) // HOUR
    new = filled.mailbox.deliver(date=START + HOUR * number + timedelta(minutes=5), to=["x@y.ru"])

    extract(filled.url, root, number, on_gone="keep")

    assert names(root) == [hour(0, number), hour(number), hour(number + 1, HOURS - number - 1)]
    after = rows(root)
    assert without(after, number) == without(before, number)
    own = [row for row in after["messages"] if (row["date"] - START) // HOUR == number]
    assert {row["message_id"]: row["gone_at"] is not None for row in own} == {
        **{row["message_id"]: row["message_id"] == left for row in own},
        new: False,
    }
    assert len(own) == 3
    assert check(filled.url, root).findings == []

    [made] = compacted(root).made
    assert (made.window, made.windows, made.messages) == (ALL, HOURS, 2 * HOURS)  # and one gone
    assert rows(root) == after
    report = check(filled.url, root)
    assert (report.findings, report.notes) == ([], [])
    assert [entry.keeps for entry in report.windows] == [n == number for n in range(HOURS)]


@pytest.mark.parametrize("number", [0, HOURS - 1])
def test_a_rerun_at_the_edge(filled: Emulator, tmp_path: Path, number: int) -> None:
    """The first and the last window of a compacted one are replaced like any other."""
    root = UPath(tmp_path)
    extract(filled.url, root, *range(HOURS))
    compacted(root)
    before = rows(root)

    extract(filled.url, root, number)

    assert without(rows(root), number) == without(before, number)
    assert len(names(root)) == 2
    assert check(filled.url, root).findings == []


def test_a_run_of_the_whole(filled: Emulator, tmp_path: Path) -> None:
    """A run of just the window that was compacted replaces it by a regular one."""
    root = UPath(tmp_path)
    extract(filled.url, root, *range(HOURS), on_gone="keep")
    gone = [m["Id"] for m in filled.mailbox.messages(INBOX)][3]
    copies = {n: shutil.copytree(part(root, hour(n)).parent, tmp_path / str(n)) for n in (2, 3)}
    compacted(root)
    before = rows(root)
    for number, copy in copies.items():  # as if a compaction was killed while it removed them
        shutil.copytree(copy, part(root, hour(number)).parent)
    assert rows(root) == before
    filled.mailbox.delete(INBOX, [gone])

    extract(filled.url, root, 0, length=HOURS * HOUR, on_gone="keep")

    assert names(root) == [ALL]
    assert not part(root, ALL, name="_windows.jsonl").exists()
    found = rows(root)["messages"]
    assert len(found) == len(before["messages"])
    assert [row["message_id"] for row in found if row["gone_at"]] == [gone]
    assert check(filled.url, root).findings == []


def test_a_window_across_others(filled: Emulator, tmp_path: Path) -> None:
    """A run of a window that was never one overlaps those that it did before compaction."""
    plain, root = UPath(tmp_path / "plain"), UPath(tmp_path / "compacted")
    for tables in (plain, root):
        extract(filled.url, tables, *range(HOURS))
    compacted(root)
    reports = []
    for tables in (plain, root):
        extract(filled.url, tables, 3, length=2 * HOUR)
        found = check(filled.url, tables)
        reports.append([(finding.kind, finding.detail) for finding in found.findings])

    assert reports[0] == reports[1]
    assert len(reports[0]) == 2
    ids = [[row["message_id"] for row in rows(tables)["messages"]] for tables in (plain, root)]
    assert ids[0] == ids[1]


def test_looking_again(filled: Emulator, tmp_path: Path) -> None:
    """Runs know the windows in a compacted one, look at them again, and extract what differs."""
    root = UPath(tmp_path)
    extract(filled.url, root, *range(HOURS))
    job = job_of(root, HOURS)
    stored = stored_windows(job, "user_test")
    compacted(root)

    assert stored_windows(job, "user_test") == stored
    looks = [Look(window, last=False) for window in stored]

    async def look(client: Any) -> list[Any]:
        return [await recheck(client, job, look) for look in looks]

    assert connected(filled.url, look) == [None] * HOURS
    assert names(root) == [ALL]
    filled.mailbox.deliver(date=START + 2 * HOUR + timedelta(minutes=1))
    found = connected(filled.url, look)
    assert [number for number, manifest in enumerate(found) if manifest is not None] == [2]
    assert names(root) == [hour(0, 2), hour(2), hour(3, HOURS - 3)]


def test_a_damaged_one(filled: Emulator, tmp_path: Path) -> None:
    """A damaged compacted window is found, refuses to be taken apart, and is mended as a whole."""
    from airflow_provider_r7mail.lake.audit import AuditJob, audit  # noqa: PLC0415
    from airflow_provider_r7mail.lake.repair import repair  # noqa: PLC0415

    root = UPath(tmp_path)
    extract(filled.url, root, *range(HOURS))
    compacted(root)
    with part(root, ALL, "recipients").open("r+b") as file:
        file.seek(100)
        file.write(b"xxxx")

    assert [f.kind for f in check(filled.url, root).findings] == ["damaged"]
    with pytest.raises(R7MailPublishError, match=r"damaged \(recipients: the file's SHA-256"):
        extract(filled.url, root, 3)
    assert names(root) == [ALL]
    what = AuditJob(
        folder=INBOX, output=root, mailbox="user_test", deep=True, open_path=lambda _: root
    )

    async def mend(client: Any) -> Any:
        return await repair(client, what, await audit(client, what))

    assert connected(filled.url, mend).in_order
    assert len(rows(root)["messages"]) == 2 * HOURS
    extract(filled.url, UPath(tmp_path / "b"), *range(2))
    compacted(UPath(tmp_path / "b"))
    marks = part(UPath(tmp_path / "b"), hour(0, 2), name="_windows.jsonl")
    for text in ("{", marks.read_text().splitlines()[0]):
        marks.write_text(text)
        finding = check(filled.url, UPath(tmp_path / "b")).findings[0]
        assert (finding.kind, finding.detail[:14]) == ("damaged", "_windows.jsonl")
        assert stored_windows(job_of(UPath(tmp_path / "b"), 9), "user_test"), "other runs go on"


@pytest.mark.parametrize(
    ("tables", "cut"), [(TABLES, 20), (TABLES, 0), (TABLES[:1], 0)], ids=["cut", "lost", "one"]
)
def test_one_without_a_manifest(
    filled: Emulator, tmp_path: Path, tables: Sequence[str], cut: int
) -> None:
    """A compacted window whose manifest is lost is all that there is: its rows stay, and count."""
    from airflow_provider_r7mail.lake.audit import AuditJob, audit  # noqa: PLC0415
    from airflow_provider_r7mail.lake.repair import repair  # noqa: PLC0415

    root = UPath(tmp_path)
    extract(filled.url, root, *range(HOURS))
    filled.mailbox.delete(INBOX, [rows(root)["messages"][0]["message_id"]])
    extract(filled.url, root, *range(HOURS), on_gone="keep")
    ids = {row["message_id"] for row in rows(root)["messages"]}
    compacted(root)
    extract(filled.url, root, HOURS, on_gone="keep")
    for table in tables:
        manifest = part(root, ALL, table, "_manifest.json")
        manifest.write_text(manifest.read_text()[:cut])
        if not cut:
            manifest.unlink()

    with pytest.raises(R7MailPublishError, match=r"window is damaged .* audit --repair"):
        extract(filled.url, root, 3)
    assert ALL in [left.window for left in compacted(root).left]
    assert part(root, ALL, "messages").exists()
    what = AuditJob(
        folder=INBOX, output=root, mailbox="user_test", deep=True, open_path=lambda _: root
    )

    async def mend(client: Any) -> Any:
        return await repair(client, what, await audit(client, what))

    assert len(check(filled.url, root).findings) == 1
    for table in TABLES:  # somebody tried to help
        copied = part(root, hour(HOURS), table).parent
        shutil.copytree(copied, part(root, hour(2), table).parent)
    assert connected(filled.url, mend).in_order
    found = rows(root)["messages"]
    assert len(found) == len(ids) == 2 * HOURS
    assert {row["message_id"] for row in found} == ids


def test_quarantined_messages(filled: Emulator, tmp_path: Path) -> None:
    """Messages that were set aside stay with their windows."""
    root = UPath(tmp_path)
    for n in (1, 5):
        filled.mailbox.deliver(date=START + HOUR * n, subject=f"bad {n}")
    bad = {m["Id"] for m in filled.mailbox.messages(INBOX) if m["Subject"].startswith("bad")}
    for message in filled.mailbox.messages(INBOX):
        if message["Id"] in bad:
            message["Id"] = str(message["Id"])
    extract(filled.url, root, *range(HOURS), on_bad_message="quarantine")
    lines = {
        number: part(root, hour(number), name="_quarantine.jsonl").read_bytes()
        for number in range(HOURS)
        if part(root, hour(number), name="_quarantine.jsonl").exists()
    }
    compacted(root)
    make_room(root, ["messages"], f"{HOME}/window={hour(1)}", replace=False)

    for number, text in lines.items():
        assert part(root, hour(number), name="_quarantine.jsonl").read_bytes() == text


def test_forgetting_a_person(filled: Emulator, tmp_path: Path) -> None:
    """The script of the documentation deletes a person's mail from compacted windows, too."""
    root = UPath(tmp_path)
    for number in (2, 5):
        filled.mailbox.deliver(
            date=START + HOUR * number + timedelta(minutes=1), to=["Ann <ann@example.org>"]
        )
    extract(filled.url, root, *range(HOURS))
    before = rows(root)
    compacted(root)
    script = example("forget_person")

    found = script.forget(str(tmp_path), script.person("ann@example.org"))

    gone = {n for ids in found.values() for n in ids}
    assert [window.rpartition("=")[2] for window in found] == [hour(2), hour(5)]
    assert len(gone) == 2
    assert rows(root) == {
        table: [row for row in given if row["message_id"] not in gone]
        for table, given in before.items()
    }
    assert len(names(root)) == 5
