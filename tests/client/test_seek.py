"""Reading a window exactly once: `Seek` against every reading of the contract."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import product
from operator import itemgetter

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from airflow_provider_r7mail.client.dates import Window, to_microseconds
from airflow_provider_r7mail.client.seek import Seek
from airflow_provider_r7mail.client.sweep import Listing, PageRequest
from airflow_provider_r7mail.emulator import Mailbox, Readings
from airflow_provider_r7mail.emulator.dates import TICKS_PER_SECOND
from airflow_provider_r7mail.emulator.listing import Search, find
from airflow_provider_r7mail.exceptions import R7MailExtractError

START = datetime(2025, 6, 1, tzinfo=UTC)
BEGINNING = datetime(1, 1, 1, tzinfo=UTC)
END_OF_TIME = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
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
    """A change to the mailbox just before a request."""

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
    """A mailbox, its server's readings of the contract, and changes to it; a witness of both."""

    mailbox: Mailbox
    readings: Readings
    changes: list[Change | None]
    shuffle: random.Random
    requests: int = 0
    gone: set[int] = field(default_factory=set)
    deepest: int = 0
    uneven: bool = False

    def answer(self, request: PageRequest) -> Listing:
        """Return what the server lists after the change that is due."""
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


def read(
    world: World, window: Window, size: int, readers: int, sizes: Sequence[int] = ()
) -> list[int]:
    """Read the window by several readers that take turns, and share the work.

    :param sizes: what to ask for from some request on; the page size may change at any time
    """
    seeks = [Seek(window, size)]
    undated: set[int] = set()
    read: list[int] = []
    while any(not seek.finished for seek in seeks):
        for seek in [seek for seek in seeks if not seek.finished]:
            request = seek.request()
            if request is None:
                continue
            listing = world.answer(request)
            if sizes:
                seek.resize(world.shuffle.choice(sizes))
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
    max_examples=1000,
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
    undated=st.sampled_from([0, 0, 1, 3, 12]),
    changes=changes_strategy,
    length=st.sampled_from([1, 2, 20, 40]),
    size=st.sampled_from([1, 2, 3, 5, 10, 100]),
    readers=st.sampled_from([1, 3]),
    sizes=st.sampled_from([(), (), (1, 4, 20)]),
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
    sizes: Sequence[int],
    uneven: bool,
    seed: int,
) -> None:
    """R1 to R6: under every reading, each message is read once while mail comes and goes."""
    mailbox = Mailbox()
    for second, microsecond in dates:
        mailbox.deliver(date=START + timedelta(seconds=second, microseconds=microsecond))
    for _ in range(undated):
        mailbox.deliver(date="0001-01-01T00:00:00")
    window = Window(START, START + timedelta(seconds=length))
    low, high = to_microseconds(START), to_microseconds(START + timedelta(seconds=length))
    before = {m["Id"]: _microseconds(m["Date"]) for m in mailbox.messages(FOLDER)}
    world = World(mailbox, readings, changes, random.Random(seed), uneven=uneven)

    result = read(world, window, size, readers, sizes)

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


# -- one case each, in a folder that lists what it is told to --------------------------------


@dataclass
class Rows:
    """A folder: key -> the second, after START, that the server sorts it by; None: always first.

    :param unreadable: the keys whose dates it shows in a form that can't be read (R20)
    :param cap: the longest page (R3)
    :param caps: that of single requests, by their number
    :param newest_first: what sortOrder 1 means (R1)
    :param leaves: what leaves just before a request (R6), by its number
    :param counts_all: what Count counts (R2): all that match, or those of the page
    :param shuffled: gives ties in another order each time (R5)
    """

    seconds: Mapping[str, int | None]
    unreadable: Collection[str] = ()
    cap: int = 1000
    caps: Mapping[int, int] = field(default_factory=dict)
    newest_first: bool = False
    leaves: Mapping[int, Sequence[str]] = field(default_factory=dict)
    shuffled: random.Random | None = None
    ignores_offset: bool = False
    counts_all: bool = False
    requests: int = 0

    def answer(self, request: PageRequest) -> Listing:
        """Return what the server lists."""
        self.requests += 1
        left = self.leaves.get(self.requests, ())
        self.seconds = {key: at for key, at in self.seconds.items() if key not in left}
        start, end = request.start or BEGINNING, request.end or END_OF_TIME
        assert start <= end, "a server may refuse that"
        low, high = ((bound - START) // timedelta(seconds=1) for bound in (start, end))
        dated = [(at, key) for key, at in self.seconds.items() if at is not None]
        found = [(at, key) for at, key in dated if low <= at <= high]
        always = [key for key, at in self.seconds.items() if at is None]
        if self.shuffled is not None:
            self.shuffled.shuffle(found)
            self.shuffled.shuffle(always)
        found.sort(key=itemgetter(0), reverse=self.newest_first)
        rows = [key for _, key in found]
        rows = rows + always if self.newest_first else always + rows
        offset = 0 if self.ignores_offset else request.offset
        page = rows[offset : offset + min(request.size, self.caps.get(self.requests, self.cap))]
        count = len(rows) if self.counts_all else len(page)
        return Listing(page, [self._shown(key) for key in page], count)

    def _shown(self, key: str) -> int | None:
        at = self.seconds[key]
        if at is None or key in self.unreadable:
            return None
        return to_microseconds(START) + at * 1_000_000

    def read(
        self,
        size: int,
        start: datetime | None = START,
        end: datetime | None = START + timedelta(seconds=100),
    ) -> list[int | str]:
        """Read a hundred seconds of it, or the given window."""
        seek = Seek(Window(start, end), size)
        read: list[int | str] = []
        while (request := seek.request()) is not None:
            page = self.answer(request)
            read += [page.keys[index] for index in seek.accept(page)]
            assert self.requests < 10_000, "no end"
        return read


@pytest.mark.slow
def test_ten_thousand_small_folders() -> None:
    """R1, R3, R5, R6: pages of any length, ties in any order, mail that leaves: none is lost."""
    for seed in range(10_000):
        chance = random.Random(seed)
        keys = [f"{number}" for number in range(chance.randint(0, 14))]
        cap = chance.choice([1, 2, 3, 4, 100])
        uneven = chance.choice([True, False])
        gone = chance.sample(keys, min(len(keys), chance.randint(0, 3)))
        rows = Rows(
            {key: chance.choice([0, 1, 2, 5, 5, 5, 5, 6, 9]) for key in keys},
            cap=cap,
            caps={number: chance.randint(1, cap) for number in range(30)} if uneven else {},
            newest_first=chance.choice([True, False]),
            leaves={chance.randint(2, 12): [key] for key in gone},
            shuffled=chance.choice([None, chance]),
        )
        read = rows.read(chance.choice([2, 3, 100]))
        assert len(read) == len(set(read)), seed
        assert set(read) >= set(rows.seconds), seed


def test_an_empty_look_beyond_a_short_page_is_not_believed() -> None:
    """R3, R6: if mail leaves a capped page, the rows that move up onto it are still read."""
    ones = Rows({"gone": 1, "cut off": 5}, cap=1, leaves={2: ["gone"]})
    assert "cut off" in ones.read(100)

    dates = {f"{second}": second for second in range(0, 60, 10)}
    uneven = Rows(
        {**dates, "cut off": 60},
        cap=4,
        caps={2: 3},
        leaves={3: ["50"], 4: ["50"]},
    )
    assert set(uneven.read(4)) >= {"0", "10", "20", "30", "40", "cut off"}


@pytest.mark.slow
def test_what_has_left_does_not_stand_for_what_is_hidden() -> None:
    """R5, R6: in a crowded second with ties in any order, a message that leaves hides no other."""
    for seed in range(3000):
        shuffle = random.Random(seed)
        gone = shuffle.choice("abcde")
        rows = Rows(
            dict.fromkeys("abcde", 1),
            cap=2,
            leaves={shuffle.choice([3, 4, 5]): [gone]},
            shuffled=shuffle,
        )
        assert set(rows.read(2)) >= {*"abcde"} - {gone}, seed


def test_before_1970_newest_first() -> None:
    """R1: dates before 1970, with negative seconds, are read once in either order."""
    for newest_first in (False, True):
        old = datetime(1969, 12, 31, tzinfo=UTC)
        distance = (old - START) // timedelta(seconds=1)
        rows = Rows(
            {f"{second}": distance + second for second in (1, 2, 2, 3)} | {"tie": distance + 3},
            newest_first=newest_first,
        )
        assert sorted(map(str, rows.read(2, start=old))) == ["1", "2", "3", "tie"]


@pytest.mark.parametrize("newest_first", [False, True])
def test_a_crowded_beginning_does_not_keep_readers_from_sharing(newest_first: bool) -> None:
    """R1: a window whose first page is a single second is still read by several readers."""
    ends = {"first": 99, "second": 99} if newest_first else {"first": 0, "second": 0}
    rows = Rows(
        {**{f"{second}": second for second in range(1, 99)}, **ends},
        cap=5,
        caps={1: 2},
        newest_first=newest_first,
    )
    seek = Seek(Window(START, START + timedelta(seconds=100)), 5)
    while seek.share() is None:
        request = seek.request()
        assert request is not None
        seek.accept(rows.answer(request))


@pytest.mark.parametrize("newest_first", [False, True])
def test_readers_share_where_the_mail_is(newest_first: bool) -> None:
    """R2: if Count is the total, four readers are as fast for a busy day in an empty year."""
    first = 99_000 if newest_first else 0
    rows = Rows(
        {f"{number}": first + number for number in range(1000)},
        newest_first=newest_first,
        counts_all=True,
    )
    seeks = [Seek(Window(START, START + timedelta(seconds=100_000)), 20)]
    read: list[int | str] = []
    rounds = 0
    while busy := [seek for seek in seeks if not seek.finished]:
        rounds += 1
        asked = [(seek, seek.request()) for seek in busy]
        while len(busy) < 4 and (shared := max(busy, key=Seek.pages_left).share()) is not None:
            busy.append(shared)
            seeks.append(shared)
        for seek, request in asked:
            assert request is not None
            page = rows.answer(request)
            read += [page.keys[index] for index in seek.accept(page)]

    assert sorted(read) == sorted(rows.seconds)
    assert rounds < 1.3 * 1000 / 20 / 4 + 8
    assert rows.requests < 1.1 * 1000 / 20 + 12


def test_undated_messages_that_come_first() -> None:
    """R20, R5: more undated messages than fit on a page are all read, and so is the rest."""
    undated = dict.fromkeys(map(str, range(30)))
    dated = {f"at {second}": second for second in range(50)}
    for cap in (10, 1000):
        rows = Rows({**undated, **dated}, cap=cap, shuffled=random.Random(1))
        read = rows.read(10)
        assert len(read) == len(set(read)) == 80

    leaving = Rows(
        {**dict.fromkeys("abcd"), "dated": 5},
        cap=2,
        leaves={4: ["a", "b"], 6: ["c", "d"]},
    )
    assert "dated" in leaving.read(2)


def test_messages_sorted_by_a_date_that_can_not_be_read() -> None:
    """R20: if the server sorts by a Date that it doesn't show, all others are still read."""
    seconds = {"u": 1, "v": 2, "w": 3, "a": 8, "b": 10, "c": 10, "x": 12, "d": 20, "e": 30}
    for cap in (1, 2, 3, 4):
        rows = Rows(seconds, unreadable="uvwx", cap=cap)
        assert sorted(map(str, rows.read(cap))) == sorted(seconds)


def test_one_that_is_away_for_a_moment_does_not_hide_another() -> None:
    """R6: a message that is moved away and back between two requests hides no other."""

    class Restless(Rows):
        away = 0

        def answer(self, request: PageRequest) -> Listing:
            self.seconds = {key: at for key, at in self.seconds.items() if key != "r"}
            number = self.requests + 1
            if (number // 2 + number) % self.away:
                self.seconds = {"r": 1, **self.seconds}
            return super().answer(request)

    staying = {"a": 1, "b": 1, "c": 1, "d": 2, "e": 9}
    for cap, away, newest_first in product((2, 3, 4, 100), (2, 3, 4, 5), (False, True)):
        rows = Restless(staying, cap=cap, newest_first=newest_first)
        rows.away = away
        assert set(rows.read(100)) >= {*staying}, (cap, away, newest_first)


def test_ties_that_turn_with_each_request() -> None:
    """R5: ties whose order rotates by one with each request are all read."""

    class Turning(Rows):
        def answer(self, request: PageRequest) -> Listing:
            (first, at), *others = self.seconds.items()
            self.seconds = {**dict(others), first: at}
            return super().answer(request)

    for count, cap in product(range(1, 16), (1, 2, 3, 4, 5)):
        assert len(Turning(dict.fromkeys(map(str, range(count)), 1), cap=cap).read(100)) == count


@pytest.mark.parametrize("newest_first", [False, True])
def test_crowds_at_both_ends(newest_first: bool) -> None:
    """Crowds at the window's ends, just outside it or at the ends of time cause no errors."""
    crowds = {f"{at} {n}": at for at in (-1, 0, 99, 100, 101) for n in range(15)}
    inside = sorted(key for key, at in crowds.items() if 0 <= at < 100)
    for cap in (10, 1000):
        rows = Rows(crowds, cap=cap, newest_first=newest_first)
        assert sorted(map(str, rows.read(10))) == inside

    for moment in (BEGINNING, END_OF_TIME):
        at = (moment - START) // timedelta(seconds=1)
        rows = Rows({f"{n}": at for n in range(25)} | {"now": 0}, newest_first=newest_first)
        assert len(rows.read(10, start=None, end=None)) == 26


def test_a_crowded_second_is_swept_once() -> None:
    """A second that fills pages, among quiet ones, costs three passes, not six."""
    for newest_first in (False, True):
        seconds = {f"{n}": n for n in range(0, 90, 3)} | {f"crowd {n}": 45 for n in range(100)}
        rows = Rows(seconds, newest_first=newest_first)
        assert len(rows.read(10)) == 130
        assert rows.requests < 130 / 10 + 3 * 100 / 10 + 12


def test_an_ignored_offset_ends_in_an_error() -> None:
    """A server that ignores offset and shuffles undated mail ends in an error, not a loop."""
    rows = Rows(
        dict.fromkeys(map(str, range(30))),
        cap=10,
        shuffled=random.Random(1),
        ignores_offset=True,
    )
    with pytest.raises(R7MailExtractError, match="no progress"):
        rows.read(10)


def test_a_row_that_comes_twice_in_each_answer() -> None:
    """A message that a faulty server lists twice is read once."""

    class Doubling(Rows):
        def answer(self, request: PageRequest) -> Listing:
            page = super().answer(request)
            return Listing([*page.keys[:1], *page.keys], [*page.dates[:1], *page.dates], page.count)

    assert Doubling({"a": 1, "b": 1, "c": 7}).read(10) == ["a", "b", "c"]


def test_few_requests_where_little_has_come() -> None:
    """A poll costs one request if there is no mail, and a few if there is."""
    for count, requests in ((0, 1), (1, 5), (20, 4)):
        rows = Rows({f"{second}": second for second in range(count)})
        assert len(rows.read(100)) == count
        assert rows.requests == requests
