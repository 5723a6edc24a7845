"""A mailbox over time: whatever happens to it, the tables become the mailbox, each message once."""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import asyncio
import tempfile
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from upath import UPath

from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.emulator import Emulator, Mailbox, Readings
from airflow_provider_r7mail.emulator.folders import INBOX, PROCESSED
from airflow_provider_r7mail.lake.audit import AuditJob, audit
from airflow_provider_r7mail.lake.catalog import IcebergTarget
from airflow_provider_r7mail.lake.job import ExtractJob, stored_windows
from airflow_provider_r7mail.lake.recheck import looks, recheck
from airflow_provider_r7mail.lake.repair import repair
from airflow_provider_r7mail.lake.upkeep import Upkeep, keep_up
from airflow_provider_r7mail.lake.window import extract_window
from tests.conftest import AIRFLOW_2
from tests.lake.support import START, config, die_at, run_children

HOUR = timedelta(hours=1)
HORIZON = timedelta(hours=4)
WINDOWS = 8


def hour(number: int) -> Window:
    """Return the window of an hour."""
    return Window(START + HOUR * number, START + HOUR * (number + 1))


async def run(
    client: AsyncClient, root: Path, number: int, on_gone: Any, iceberg: IcebergTarget | None = None
) -> None:
    """Do what a run of an hourly schedule does."""
    window = hour(number)
    job = ExtractJob(
        folder=INBOX,
        criteria=MessageFilter(window=window),
        output=UPath(root),
        on_gone=on_gone,
        iceberg=iceberg,
    )
    await extract_window(client, job)
    for look in looks(window, stored_windows(job, client.config.login), HORIZON):
        await recheck(client, job, look)


def audit_job(root: Path, **options: Any) -> AuditJob:
    """Return an audit of the inbox."""
    return AuditJob(
        folder=INBOX, output=UPath(root), mailbox="user_test", open_path=UPath, **options
    )


async def mend(client: AsyncClient, root: Path, **options: Any) -> None:
    """Audit the inbox, repair it, and make sure that nothing is left to do."""
    for _ in range(2):  # repairs can be repeated
        job = audit_job(root, deep=True, **options)
        report = await repair(client, job, await audit(client, job))
        assert report.in_order, [str(finding) for finding in report.findings]


def rows(root: Path, iceberg: IcebergTarget | None = None) -> dict[int, bool]:
    """Return whether each message in the tables is still in the folder; each is there once."""
    columns = ("message_id", "gone_at")
    if iceberg is None:
        files = root.glob("messages/*/*/*/part-*.parquet")
        tables = [pq.read_table(path, columns=[*columns]) for path in files]
    else:
        with closing(iceberg.load(UPath(root))) as catalog:
            table = catalog.load_table("r7mail.messages")
            tables = [table.scan(selected_fields=columns).to_arrow()]
    found = [row for table in tables for row in table.to_pylist()]
    assert len({row["message_id"] for row in found}) == len(found)
    return {row["message_id"]: row["gone_at"] is None for row in found}


def moments() -> st.SearchStrategy[timedelta]:
    """Dates of mail: within the windows, at their edges, and far away."""
    return st.one_of(
        st.integers(0, WINDOWS * 3600 - 1).map(lambda n: timedelta(seconds=n)),
        st.integers(0, WINDOWS - 1).map(lambda n: HOUR * n),
        st.integers(0, WINDOWS - 1).map(lambda n: HOUR * n - timedelta(milliseconds=1)),
        st.sampled_from([timedelta(days=-20_000), timedelta(days=-1), timedelta(days=4_600)]),
    )


EVENTS = st.one_of(
    st.tuples(st.just("comes"), moments()),
    st.tuples(st.sampled_from(["leaves", "returns", "is deleted", "is read"]), st.integers(0, 99)),
    st.tuples(st.just("run"), st.integers(0, WINDOWS - 1)),
    st.tuples(st.just("at once"), st.lists(st.integers(0, WINDOWS - 1), min_size=2, max_size=3)),
)


class World:
    """A mailbox and its tables."""

    def __init__(
        self, server: Emulator, root: Path, on_gone: Any, iceberg: IcebergTarget | None
    ) -> None:
        self._box = server.mailbox
        self._iceberg = iceberg
        self._root = root
        self._on_gone = on_gone
        self.ever: set[int] = set()

    def inbox(self) -> list[int]:
        """Return the ids in the inbox."""
        return [int(item["Id"]) for item in self._box.messages(INBOX)]

    def elsewhere(self) -> list[int]:
        """Return the ids in the other folder."""
        return [int(item["Id"]) for item in self._box.messages(PROCESSED)]

    async def happen(self, client: AsyncClient, kind: str, what: Any) -> None:
        """Let something happen."""
        if kind == "comes":
            self._box.deliver(date=START + what)
        elif kind == "run":
            await run(client, self._root, what, self._on_gone, self._iceberg)
        elif kind == "at once":
            await asyncio.gather(
                *(run(client, self._root, n, self._on_gone, self._iceberg) for n in what)
            )
        elif there := (self.elsewhere() if kind == "returns" else self.inbox()):
            chosen = [there[what % len(there)]]
            if kind == "leaves":
                self._box.move(INBOX, chosen, PROCESSED)
            elif kind == "returns":
                self._box.move(PROCESSED, chosen, INBOX)
            elif kind == "is deleted":
                self._box.delete(INBOX, chosen)
            else:
                self._box.mark_read(INBOX, chosen)
        found = rows(self._root, self._iceberg)
        if self._on_gone == "keep":
            assert found.keys() >= self.ever, "what was once in the tables stays"
            self.ever |= found.keys()


HISTORIES = {
    "events": st.lists(EVENTS, min_size=4, max_size=20),
    "on_gone": st.sampled_from(["drop", "keep"]),
    "readings": st.builds(
        Readings,
        count=st.sampled_from(["all", "page"]),
        sort_one=st.sampled_from(["descending", "ascending"]),
        ties=st.sampled_from(["stable", "reversed", "random"]),
        start_inclusive=st.booleans(),
        end_inclusive=st.booleans(),
    ),
}
HISTORY = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@given(**HISTORIES)
@HISTORY
def test_the_tables_become_the_mailbox(events: list[Any], on_gone: Any, readings: Readings) -> None:
    """After any events and runs in any order, an audit with repair makes the tables the mailbox."""
    live(events, on_gone, readings)


@pytest.mark.slow
@pytest.mark.skipif(AIRFLOW_2, reason="the SQL catalog needs SQLAlchemy 2")
@given(**HISTORIES)
@settings(HISTORY, max_examples=4)
def test_iceberg_tables_become_the_mailbox(
    events: list[Any], on_gone: Any, readings: Readings
) -> None:
    """So it is with Iceberg tables, and it stays so while these are kept quick."""
    live(events, on_gone, readings, IcebergTarget())


def live(
    events: list[Any], on_gone: Any, readings: Readings, iceberg: IcebergTarget | None = None
) -> None:
    """Let events happen, mend the tables, and compare them with the mailbox."""
    with (
        Emulator(Mailbox(), readings=readings) as server,
        tempfile.TemporaryDirectory() as name,
    ):
        root = Path(name)
        world = World(server, root, on_gone, iceberg)

        async def happen() -> None:
            async with AsyncClient(config(server.url)) as client:
                await run(client, root, 3, on_gone, iceberg)
                for kind, what in events:
                    await world.happen(client, kind, what)
                if iceberg is not None:
                    keep_up(iceberg, UPath(root), Upkeep(keep_snapshots=timedelta(0)))
                await mend(client, root, iceberg=iceberg)

        asyncio.run(happen())
        found = rows(root, iceberg)
        assert {number for number, there in found.items() if there} == set(world.inbox())
        if on_gone == "keep":
            assert found.keys() >= world.ever
        else:
            assert all(found.values())


@pytest.mark.slow
def test_days_of_late_mail(server: Emulator, tmp_path: Path) -> None:
    """Hours with 15% of the mail up to a few hours late are whole without an audit."""
    import random  # noqa: PLC0415

    chance = random.Random(7)
    pending: list[tuple[timedelta, timedelta]] = []

    async def live() -> None:
        async with AsyncClient(config(server.url)) as client:
            for number in range(14):
                for _ in range(3):
                    dated = HOUR * number + timedelta(seconds=chance.randrange(3600))
                    late = chance.random() < 0.15
                    pending.append((dated + timedelta(minutes=chance.randrange(230)) * late, dated))
                now = HOUR * (number + 1) + timedelta(minutes=1)
                for item in [item for item in pending if item[0] <= now]:
                    pending.remove(item)
                    server.mailbox.deliver(date=START + item[1])
                await run(client, tmp_path, number, "drop")
            for number in range(14, 20):
                for item in list(pending):
                    pending.remove(item)
                    server.mailbox.deliver(date=START + item[1])
                await run(client, tmp_path, number, "drop")

    asyncio.run(live())
    assert sorted(rows(tmp_path)) == sorted(int(m["Id"]) for m in server.mailbox.messages(INBOX))
    assert len(rows(tmp_path)) == 42


# -- kill -9 --------------------------------------------------------------------------------


COMMIT = "COMMIT"


async def audit_and_repair(client: AsyncClient, root: Path, **options: Any) -> None:
    """Repair the tables of the inbox."""
    job = audit_job(root, deep=True, **options)
    await repair(client, job, await audit(client, job))


def die_in(url: str, root: Path, kind: str, event: str, number: int) -> None:
    """Run the fifth hour and its rechecks, or repair; die at an audit event of Python.

    With COMMIT it is Iceberg tables, and the death comes before or after a commit.
    """
    iceberg = IcebergTarget() if event == COMMIT else None

    async def connected() -> None:
        async with AsyncClient(config(url)) as client:
            if kind == "repair":
                await audit_and_repair(client, root, iceberg=iceberg)
            else:
                await run(client, root, 4, "keep", iceberg)

    if iceberg is None:
        die_at(root, event, number)
    else:
        from tests.lake.iceberg_support import die_at_commit  # noqa: PLC0415

        die_at_commit(number)
    asyncio.run(connected())


@pytest.mark.slow
@pytest.mark.parametrize(
    "event",
    [
        "os.rename",
        "os.remove",
        pytest.param(
            COMMIT, marks=pytest.mark.skipif(AIRFLOW_2, reason="the SQL catalog needs SQLAlchemy 2")
        ),
    ],
)
@pytest.mark.parametrize("kind", ["recheck", "repair"])
def test_killed(server: Emulator, tmp_path: Path, kind: str, event: str) -> None:
    """After kill -9 in a recheck or a repair, a repair finishes the work, and nothing is lost."""
    box, iceberg = server.mailbox, IcebergTarget() if event == COMMIT else None
    ids = [box.deliver(date=START + timedelta(minutes=20 * n + 1)) for n in range(12)]

    async def connected(*numbers: int) -> None:
        async with AsyncClient(config(server.url)) as client:
            for number in numbers:
                await run(client, tmp_path, number, "keep", iceberg)
            if not numbers:
                await mend(client, tmp_path, iceberg=iceberg)

    asyncio.run(connected(0, 1, 2, 3))
    box.delete(INBOX, ids[:1])
    late = [box.deliver(date=START + HOUR * n + timedelta(minutes=2)) for n in (3, 2)]
    late.append(box.deliver(date="1970-01-01T00:00:00Z"))
    ends = [
        run_children(die_in, (server.url, tmp_path, kind, event, number))
        for number in ((2, 1, 4, 9, 14) if iceberg is None else (2, 1, 4))
    ]
    assert ends.count([-9]) >= len(ends) - 1
    asyncio.run(connected())

    found = rows(tmp_path, iceberg)
    assert {number for number, there in found.items() if there} == {*ids[1:], *late}
    assert found[ids[0]] is False
    assert not list(tmp_path.rglob("_staged*"))
    assert len(list(tmp_path.glob("messages/*/*/window=*"))) <= 6
