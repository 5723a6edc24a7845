"""Reading a window whole and once: `Seek` against every reading of the contract."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from airflow_provider_r7mail.emulator import Mailbox, Readings
from airflow_provider_r7mail.emulator.dates import TICKS_PER_SECOND
from airflow_provider_r7mail.emulator.listing import Search, find
from airflow_provider_r7mail.extract import Listing, PageRequest, Seek, to_microseconds
from airflow_provider_r7mail.models import Window

START = datetime(2025, 6, 1, tzinfo=UTC)
FOLDER = 24

readings_strategy = st.builds(
    Readings,
    sort_one=st.sampled_from(["ascending", "descending"]),
    count=st.sampled_from(["all", "page"]),
    page_cap=st.sampled_from([None, None, 1, 2, 3, 7]),
    start_inclusive=st.booleans(),
    end_inclusive=st.booleans(),
    precision=st.sampled_from(["second", "millisecond", "microsecond"]),
    ties=st.sampled_from(["stable", "reversed", "random"]),
    undated=st.sampled_from(["always", "never", "as_min"]),
)


@dataclass
class Change:
    """Something that happens to the mailbox just before a request."""

    kind: str
    second: int
    pick: int


changes_strategy = st.lists(
    st.none()
    | st.builds(
        Change,
        st.sampled_from(["arrive", "delete", "move away", "move back"]),
        st.integers(0, 40),
        st.integers(0, 10**6),
    ),
    max_size=12,
)


@dataclass
class World:
    """A mailbox, how its server reads the contract, and what happens to it; and a witness."""

    mailbox: Mailbox
    readings: Readings
    changes: list[Change | None]
    shuffle: random.Random
    requests: int = 0
    gone: set[int] = field(default_factory=set)
    deepest: int = 0
    uneven: bool = False

    def answer(self, request: PageRequest) -> Listing:
        """What the server lists, after the change that is due."""
        if self.requests < len(self.changes):
            self._change(self.changes[self.requests])
        self.requests += 1
        assert self.requests < 20_000, "no end"
        self.deepest = max(self.deepest, request.offset)
        search = Search(
            start=_ticks(request.start),
            end=_ticks(request.end),
            offset=request.offset,
            # R3: nothing says that a server cuts each page at the same length.
            size=self.shuffle.randint(1, request.size) if self.uneven else request.size,
        )
        page = find(
            self.mailbox.contents(FOLDER),
            search,
            self.readings,
            shuffle=self.shuffle,
            turn=self.requests,
        )
        return Listing(
            [record.id for record in page.records],
            [_microseconds(record.value("Date")) for record in page.records],
            page.count,
        )

    def _change(self, change: Change | None) -> None:
        if change is None:
            return
        box = self.mailbox
        if change.kind == "arrive":
            box.deliver(date=START + timedelta(seconds=change.second))
        elif change.kind == "move back":
            box.move(15, [message["Id"] for message in box.messages(15)][:1], FOLDER)
        else:
            ids = [message["Id"] for message in box.messages(FOLDER)]
            if not ids:
                return
            unlucky = ids[change.pick % len(ids)]
            self.gone.add(unlucky)
            if change.kind == "delete":
                box.delete(FOLDER, [unlucky])
            else:
                box.move(FOLDER, [unlucky], 15)


def _ticks(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    return (
        (moment - datetime(1, 1, 1, tzinfo=UTC))
        // timedelta(microseconds=1)
        * (TICKS_PER_SECOND // 1_000_000)
    )


def _microseconds(text: str) -> int | None:
    moment = datetime.fromisoformat(text)
    return None if moment.year == 1 else to_microseconds(moment)


def read(world: World, window: Window, size: int, readers: int) -> list[int]:
    """Read the window by several readers that take turns, and share the work."""
    seeks = [Seek(window, size)]
    undated: set[int] = set()
    read: list[int] = []
    while any(not seek.finished for seek in seeks):
        for seek in [seek for seek in seeks if not seek.finished]:
            request = seek.request()
            if request is None:
                continue
            listing = world.answer(request)
            busy = sum(not other.finished for other in seeks)
            if busy < readers and (shared := seek.share()) is not None:
                seeks.append(shared)  # while this reader's own answer is on its way
            for index in seek.accept(listing):
                key = listing.keys[index]
                assert isinstance(key, int)
                if listing.dates[index] is None:
                    if key in undated:
                        continue
                    undated.add(key)
                read.append(key)
    return read


@settings(
    phases=[Phase.explicit, Phase.generate],
    max_examples=3000,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    readings=readings_strategy,
    dates=st.lists(
        st.tuples(
            st.one_of(st.integers(-3, 40), st.sampled_from([0, 5, 5, 5, 6, 39])),
            st.sampled_from([0, 0, 0, 1, 1000, 400_000, 999_999]),
        ),
        max_size=40,
    ),
    undated=st.integers(0, 3),
    changes=changes_strategy,
    length=st.sampled_from([1, 2, 20, 40]),
    size=st.sampled_from([1, 2, 3, 5, 10, 100]),
    readers=st.sampled_from([1, 3]),
    uneven=st.booleans(),
    seed=st.integers(0, 3),
)
def test_whatever_was_there_all_along_is_read_once(
    readings: Readings,
    dates: list[tuple[int, int]],
    undated: int,
    changes: list[Change | None],
    length: int,
    size: int,
    readers: int,
    uneven: bool,
    seed: int,
) -> None:
    """R1 to R6: under every reading, while mail comes and goes, each message is read just once."""
    mailbox = Mailbox()
    for second, microsecond in dates:
        mailbox.deliver(date=START + timedelta(seconds=second, microseconds=microsecond))
    for _ in range(undated):
        mailbox.deliver(date="0001-01-01T00:00:00")
    window = Window(START, START + timedelta(seconds=length))
    low, high = to_microseconds(START), to_microseconds(START + timedelta(seconds=length))
    before = {m["Id"]: _microseconds(m["Date"]) for m in mailbox.messages(FOLDER)}
    world = World(mailbox, readings, changes, random.Random(seed), uneven=uneven)

    result = read(world, window, size, readers)

    assert len(result) == len(set(result))
    wanted = {
        key
        for key, date in before.items()
        if date is not None and low <= date < high and key not in world.gone
    }
    assert wanted <= set(result)
    after = {m["Id"]: _microseconds(m["Date"]) for m in mailbox.messages(FOLDER)}
    for key in set(result) & set(after):
        date = after[key]
        assert date is None or low <= date < high
    event(f"requests per message: {world.requests / max(len(wanted), 1):.0f}")
