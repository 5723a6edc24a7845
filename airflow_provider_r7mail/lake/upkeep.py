"""Keep Iceberg tables quick: merge small files and manifests, expire snapshots, remove orphans.

All of it changes how rows are stored, never which rows there are.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from math import inf
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.lake.catalog import KEYS, IcebergTarget, bound
from airflow_provider_r7mail.lake.commits import (
    find_snapshot,
    for_one_commit,
    has_no_effect,
    retried,
)
from airflow_provider_r7mail.lake.dayfiles import DayFiles
from airflow_provider_r7mail.lake.orphans import find_orphans, remove_orphans
from airflow_provider_r7mail.lake.schema import TABLES
from airflow_provider_r7mail.lake.storage import ObjectPath

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import FileScanTask

log = logging.getLogger(__name__)

# Files of this size are left alone. A larger one would take more memory when one of its windows is
# rewritten: it is read in full.
FULL_BYTES = 64 << 20
# Manifests are merged up to `commit.manifest.target-size-bytes`, if there are more small ones.
SMALL_MANIFEST_BYTES = 4 << 20
MAX_SMALL_MANIFESTS = 10
MICROSECONDS_PER_DAY = 86_400_000_000
EPOCH = date(1970, 1, 1)
# The property of a snapshot that names the commit.
MARK = "r7mail.compaction"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """What to do.

    :param older_than: how old a day must be for its files to be merged
    :param keep_snapshots: how long snapshots are kept; None keeps all
    :param orphans_after: how old a file must be to be taken for an orphan. It must be longer than
        any run takes. None removes none
    :param dry_run: only tell what would be done
    """

    older_than: timedelta = timedelta(days=35)
    keep_snapshots: timedelta | None = timedelta(days=7)
    orphans_after: timedelta | None = timedelta(days=3)
    dry_run: bool = False


def make_upkeep(
    older_than_days: object, keep_snapshots_days: object, orphans_after_days: object
) -> Upkeep:
    """Return what to do, from numbers of days.

    :raises R7MailConfigError: a parameter is wrong
    """
    older_than = _days("older_than_days", older_than_days, 0)
    keep = _days("keep_snapshots_days", keep_snapshots_days, 0, optional=True)
    # A run's files are younger than the run.
    orphans = _days("orphans_after_days", orphans_after_days, 1, optional=True)
    assert older_than is not None  # noqa: S101 - it isn't optional
    return Upkeep(older_than=older_than, keep_snapshots=keep, orphans_after=orphans)


def _days(name: str, days: object, least: int, *, optional: bool = False) -> timedelta | None:
    if days is None and optional:
        return None
    if isinstance(days, bool) or not isinstance(days, int | float) or not least <= days < inf:
        raise R7MailConfigError(f"{name}: {days!r}. Give a number, {least} or more.")
    return timedelta(days=days)


@dataclass(slots=True)
class TableUpkeep:
    """What was done to a table.

    :param table: its name in the catalog
    :param days: how many days had small files that were merged
    :param files: how many files these were
    :param into: how many they became
    :param manifests: how many manifests were merged
    :param snapshots: how many snapshots were expired
    :param orphans: how many files were removed
    :param orphan_bytes: their size
    :param left: what was left as it is, and why
    """

    table: str
    days: int = 0
    files: int = 0
    into: int = 0
    manifests: int = 0
    snapshots: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    left: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Return it for JSON: numbers, days and reasons, no mail."""
        return asdict(self)


def keep_up(
    target: IcebergTarget,
    output: ObjectPath,
    upkeep: Upkeep,
    on_progress: Callable[[str], None] = lambda _: None,
) -> list[TableUpkeep]:
    """Keep the three tables quick.

    Runs may go on meanwhile, and so may other processes that do the same.

    :param target: the catalog
    :param output: the output path, for the default catalog
    :param on_progress: called with what is being done
    :return: what was done to each table that exists
    :raises R7MailConfigError: the catalog can't be used, or has different tables of these names
    :raises OSError: the catalog or the storage fails; what was committed before stays
    """
    from pyiceberg.exceptions import NoSuchTableError

    found = []
    with target.errors():
        catalog = target.load(output)
        try:
            for name in TABLES:
                try:
                    keeper = _Keeper(catalog, target.namespace, name, upkeep, on_progress)
                except NoSuchTableError:
                    continue
                found.append(keeper.run())
        finally:
            catalog.close()
    return found


@dataclass(slots=True)
class _Group:
    """Small files of one day, and the one that replaces them."""

    day: date
    tasks: list[FileScanTask]
    new: DayFiles


class _Keeper:
    def __init__(
        self,
        catalog: Catalog,
        namespace: str,
        name: str,
        upkeep: Upkeep,
        on_progress: Callable[[str], None],
    ) -> None:
        self._name = name
        self._upkeep = upkeep
        self._on_progress = on_progress
        self._table = catalog.load_table(f"{namespace}.{name}")
        self._done = TableUpkeep(f"{namespace}.{name}")
        columns = self._table.schema().column_names
        if lacking := [n for n in (*KEYS, "run_id", "date") if n not in columns]:
            raise R7MailConfigError(
                f"{namespace}.{name}: its columns are not those of `{name}` "
                f"({', '.join(lacking)} missing). Use another namespace, or move that table."
            )

    def run(self) -> TableUpkeep:
        for _, days in groupby(self._small_files(), key=lambda tasks: f"{self._day(tasks):%Y-%m}"):
            self._merge_days(list(days))
        self._merge_manifests()
        if self._upkeep.keep_snapshots is not None:
            self._expire(self._upkeep.keep_snapshots)
        if self._upkeep.orphans_after is not None:
            self._remove_orphans(self._upkeep.orphans_after)
        return self._done

    # -- data files ---------------------------------------------------------------------

    def _small_files(self) -> list[list[FileScanTask]]:
        """Return what to merge, by day: files of one day and partition, in order of their rows."""
        end = (datetime.now(UTC) - self._upkeep.older_than).date()
        spec = self._table.metadata.default_spec_id
        small: dict[Any, list[FileScanTask]] = {}
        for task in self._table.scan(row_filter=f"date < '{end}T00:00:00+00:00'").plan_files():
            low, high = self._bound(task, "date"), self._bound(task, "date", upper=True)
            if low is None or high is None or task.file.spec_id != spec:
                continue
            day, last = low // MICROSECONDS_PER_DAY, high // MICROSECONDS_PER_DAY
            old = EPOCH + timedelta(days=day) < end
            if old and day == last and task.file.file_size_in_bytes < FULL_BYTES:
                small.setdefault((day, task.file.partition), []).append(task)
        found = [part for day in small.values() for part in _portions(sorted(day, key=self._order))]
        return sorted(found, key=self._day)

    def _order(self, task: FileScanTask) -> tuple[Any, ...]:
        return (
            str(self._bound(task, "mailbox")),
            self._bound(task, "folder") or 0,
            self._bound(task, "date"),
            task.file.file_path,
        )

    def _day(self, tasks: list[FileScanTask]) -> date:
        return EPOCH + timedelta(days=self._bound(tasks[0], "date") // MICROSECONDS_PER_DAY)

    def _bound(self, task: FileScanTask, column: str, *, upper: bool = False) -> Any:
        return bound(self._table, task.file, column, upper=upper)

    def _merge_days(self, portions: list[list[FileScanTask]]) -> None:
        """Merge the files of some days, in one commit."""
        groups: list[_Group] = []
        try:
            for tasks in portions:
                day = self._day(tasks)
                self._on_progress(f"{self._done.table}: {day}")
                if self._upkeep.dry_run:
                    self._count(1, tasks, 1)
                elif (new := self._rewritten(day, tasks)) is not None:
                    groups.append(_Group(day, tasks, new))
            if groups:
                self._replace(groups)
        except BaseException:
            for group in groups:
                group.new.discard()
            raise

    def _count(self, days: int, tasks: list[FileScanTask], into: int) -> None:
        self._done.days += days
        self._done.files += len(tasks)
        self._done.into += into

    def _rewritten(self, day: date, tasks: list[FileScanTask]) -> DayFiles | None:
        """Write the rows of files into one, which nobody sees yet; None if they can't be read."""
        import pyarrow as pa
        from pyiceberg.expressions import AlwaysTrue
        from pyiceberg.io.pyarrow import ArrowScan

        table = self._table.refresh()  # for credentials that may have expired, too
        scan = ArrowScan(table.metadata, table.io, table.schema(), AlwaysTrue())
        new = DayFiles(self._name, table, None, "compact")
        try:
            for task in tasks:
                rows = 0
                for batch in scan.to_record_batches([task]):
                    rows += batch.num_rows
                    new.write(batch)
                if not task.delete_files and rows != task.file.record_count:
                    raise pa.ArrowInvalid(f"it has {rows} rows, not {task.file.record_count}")
            new.finish()
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            new.discard()
            self._leave(f"{day}: {task.file.file_path} can't be read ({error})")
            return None
        except BaseException:
            new.discard()
            raise
        return new

    def _replace(self, groups: list[_Group]) -> None:
        """Replace files by those that have the same rows, in one commit.

        Other commits may come first. Files never change, so that one that is still there has still
        the same rows, and all that need be known is whether it is.
        """
        mark = uuid.uuid4().hex
        first, last = groups[0].day, groups[-1].day + timedelta(days=1)
        days = f"date >= '{first}T00:00:00+00:00' and date < '{last}T00:00:00+00:00'"
        uncertain = False

        def attempt() -> None:
            nonlocal uncertain
            table = self._table.refresh()
            if find_snapshot(table, MARK, mark) is not None:
                return
            there = _states(table.scan(row_filter=days).plan_files())
            for group in list(groups):
                if not _states(group.tasks).items() <= there.items():
                    groups.remove(group)
                    group.new.discard()
                    self._leave(f"{group.day}: changed meanwhile")
            if not groups:
                return
            transaction = for_one_commit(table).transaction()
            change = transaction.update_snapshot(snapshot_properties={MARK: mark}).overwrite()
            for group in groups:
                for task in group.tasks:
                    change.delete_data_file(task.file)
                for file in group.new.described(table):
                    change.append_data_file(file)
            change.commit()  # so far only to the transaction
            try:
                transaction.commit_transaction()
            except Exception as error:
                uncertain = not has_no_effect(table, error, MARK, mark)
                raise

        try:
            retried(attempt)
        except BaseException:
            if uncertain:
                groups.clear()  # their files may be part of the table
            raise
        for group in groups:
            self._count(1, group.tasks, len(group.new.paths))

    def _leave(self, what: str) -> None:
        log.warning("%s: left as it is: %s", self._done.table, what)
        self._done.left.append(what)

    # -- metadata -----------------------------------------------------------------------

    def _merge_manifests(self) -> None:
        """Merge the manifests if there are many small ones."""
        snapshot = self._table.refresh().current_snapshot()
        manifests = [] if snapshot is None else snapshot.manifests(self._table.io)
        small = [m for m in manifests if m.manifest_length < SMALL_MANIFEST_BYTES]
        if len(small) <= MAX_SMALL_MANIFESTS:
            return
        self._on_progress(f"{self._done.table}: manifests")
        mark = uuid.uuid4().hex

        def attempt() -> None:
            table = self._table.refresh()
            if find_snapshot(table, MARK, mark) is not None:
                return
            merging = {
                "commit.manifest-merge.enabled": "true",
                "commit.manifest.min-count-to-merge": "2",
            }
            transaction = for_one_commit(table, merging).transaction()
            transaction.update_snapshot(snapshot_properties={MARK: mark}).merge_append().commit()
            transaction.commit_transaction()

        if not self._upkeep.dry_run:
            retried(attempt)
        self._done.manifests = len(small)

    def _expire(self, keep: timedelta) -> None:
        """Expire snapshots that are older, but not those of branches and tags."""
        self._on_progress(f"{self._done.table}: snapshots")
        before = datetime.now(UTC) - keep

        def expired() -> int:
            table = self._table.refresh()
            kept = {ref.snapshot_id for ref in table.metadata.refs.values()}
            limit = before.timestamp() * 1000
            old = [s for s in table.snapshots() if s.timestamp_ms < limit]
            count = sum(snapshot.snapshot_id not in kept for snapshot in old)
            if count and not self._upkeep.dry_run:
                table.maintenance.expire_snapshots().older_than(before).commit()
            return count

        self._done.snapshots = retried(expired)

    def _remove_orphans(self, age: timedelta) -> None:
        self._on_progress(f"{self._done.table}: orphans")
        try:
            orphans = find_orphans(self._table, datetime.now(UTC) - age)
        except R7MailConfigError as error:
            self._leave(f"orphans: {error.text}")
            return
        if not self._upkeep.dry_run:
            remove_orphans(self._table, orphans)
        self._done.orphans = len(orphans)
        self._done.orphan_bytes = sum(orphan.bytes for orphan in orphans)


def _portions(tasks: list[FileScanTask]) -> Iterator[list[FileScanTask]]:
    """Divide files into those that become one: some of them, and no more than such a file holds."""
    portion: list[FileScanTask] = []
    size = 0
    for task in tasks:
        if portion and size + task.file.file_size_in_bytes > FULL_BYTES:
            if len(portion) > 1:
                yield portion
            portion, size = [], 0
        portion.append(task)
        size += task.file.file_size_in_bytes
    if len(portion) > 1:
        yield portion


def _states(tasks: Any) -> dict[str, frozenset[str]]:
    """Return files with the deletes that apply to them."""
    return {
        task.file.file_path: frozenset(file.file_path for file in task.delete_files)
        for task in tasks
    }
