"""Compare the tables of a folder with the server, for any span of time, and repair what differs.

Messages are counted by span: as long as the server counts as many as the windows in a span have, it
is left at that, and where the numbers differ, the span is halved, down to single windows.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_provider_r7mail.client.counting import count_between
from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.reader import aiter_messages, calibrate
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.lake.bounds import ALL, SpanCounter
from airflow_provider_r7mail.lake.catalog import IcebergTarget
from airflow_provider_r7mail.lake.iceberg_folder import IcebergFolder
from airflow_provider_r7mail.lake.job import ExtractJob
from airflow_provider_r7mail.lake.ledger import (
    Entry,
    Ledger,
    read_ledger,
    remove_window,
    stored_ids,
)
from airflow_provider_r7mail.lake.recheck import is_as_counted
from airflow_provider_r7mail.lake.storage import ObjectPath, url_of
from airflow_provider_r7mail.lake.threads import run_to_end

log = logging.getLogger(__name__)

# All dates that mail may have. Mail without a Date is in no window.
EARLIEST = datetime(1900, 1, 2, tzinfo=UTC)
LATEST = datetime(9999, 12, 31, tzinfo=UTC)
# The whole is compared in this many parts at least, since what is too much in one part may make up
# for what is missing in another.
PARTS = 8
# How far ahead mail may be dated because of a wrong time zone, rounded up to a whole day.
AHEAD = timedelta(days=2)

KINDS = {
    "differs": "the server has other mail than the tables",
    "missing": "no window, between others",
    "unfinished": "a window without a readable manifest",
    "damaged": "files that are not what the manifest says",
    "overlapping": "windows that overlap",
    "privacy": "another privacy policy than the window extracted last",
    "foreign": "files that belong to no window",
    "strays before": "mail dated before the first window",
    "strays after": "mail dated after the last window",
}
"""What an audit finds, in words."""


def span(start: datetime, end: datetime) -> str:
    """Return a span of time in words; its end is left out where it has none."""
    first = "the beginning" if start <= EARLIEST else f"{start:%Y-%m-%d %H:%M:%S}"
    last = "the end" if end >= LATEST else f"{end:%Y-%m-%d %H:%M:%S}"
    return f"{first} to {last}"


@dataclass(slots=True)
class Finding:
    """Something that differs.

    :param kind: a key of `KINDS`
    :param start: where it begins; None for files
    :param end: where it ends
    :param tables: how many messages the tables have there; None if unknown
    :param server: how many the server has
    :param detail: what else is known
    :param repaired: whether it was repaired, and is in order now
    """

    kind: str
    start: datetime | None = None
    end: datetime | None = None
    tables: int | None = None
    server: int | None = None
    detail: str = ""
    repaired: bool = False

    def __str__(self) -> str:
        where = "" if self.start is None or self.end is None else f", {span(self.start, self.end)}"
        numbers = f": {self.tables} in the tables, {self.server} on the server"
        return (
            f"{KINDS[self.kind]}{where}"
            + (numbers if self.server is not None else "")
            + (f" ({self.detail})" if self.detail else "")
            + ("; repaired" if self.repaired else "")
        )

    def record(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "kind": self.kind,
            "start": self.start.isoformat() if self.start else None,
            "end": self.end.isoformat() if self.end else None,
            "tables": self.tables,
            "server": self.server,
            "detail": self.detail,
            "repaired": self.repaired,
        }


@dataclass(slots=True)
class Report:
    """The result of an audit.

    :param folder: id of the folder
    :param windows: the windows that were looked at
    :param findings: what differs
    :param notes: what is worth knowing, but no difference
    :param compared: `counts`, `ids`, both joined by `and`, or `nothing`: what it rests on
    :param requests: how many requests it took, without repairs
    """

    folder: int
    windows: list[Entry] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    compared: str = "nothing"
    requests: int = 0

    @property
    def in_order(self) -> bool:
        """Whether nothing differs, or everything was repaired."""
        return all(finding.repaired for finding in self.findings)

    def record(self) -> dict[str, Any]:
        """Return it for JSON: numbers, dates and paths, no mail."""
        regular = [entry for entry in self.windows if not entry.strays]
        return {
            "folder_id": self.folder,
            "in_order": self.in_order,
            "start": regular[0].bounds[0].isoformat() if regular else None,
            "end": regular[-1].bounds[1].isoformat() if regular else None,
            "windows": len(self.windows),
            "messages": sum((entry.manifest or {}).get("messages", 0) for entry in self.windows),
            "compared": self.compared,
            "requests": self.requests,
            "findings": [finding.record() for finding in self.findings],
            "notes": self.notes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditJob:
    """What to audit.

    :param folder: id of the folder
    :param output: the root of the tables
    :param mailbox: the mailbox's name in paths
    :param start: where to begin; None for the earliest mail
    :param end: where to end; None for the latest
    :param deep: compare ids, not only counts, and the files' checksums
    :param secret: the connection's `privacy_secret`, for repairs
    :param open_path: opens the attachments' root, as a manifest names it, for repairs
    :param iceberg: the catalog with the tables, if they are Iceberg's. Without it, the manifests of
        windows in Iceberg tables are taken at their word, and can't be repaired
    """

    folder: int
    output: ObjectPath
    mailbox: str
    start: datetime | None = None
    end: datetime | None = None
    deep: bool = False
    secret: str | None = None
    open_path: Callable[[str], ObjectPath]
    iceberg: IcebergTarget | None = None

    def ledger(self) -> Ledger:
        """Read what the tables have."""
        found = read_ledger(self.output, self.mailbox, self.folder, deep=self.deep)
        if self.iceberg is not None:
            self._in_catalog(self.iceberg).check(found, deep=self.deep)
        low, high = self.start or EARLIEST, self.end or LATEST
        found.entries = [
            entry for entry in found.entries if entry.bounds[0] < high and low < entry.bounds[1]
        ]
        return found

    def stored_ids(self, entry: Entry) -> list[int]:
        """Return the ids in a window's rows, without mail that has left.

        :raises OSError: they can't be read
        """
        if self.iceberg is not None:
            return self._in_catalog(self.iceberg).ids(entry)
        return stored_ids(self.output, self.mailbox, self.folder, entry)

    def remove(self, window: Window) -> None:
        """Remove a window from all tables.

        :raises OSError: the storage or the catalog fails
        """
        if self.iceberg is not None:
            self._in_catalog(self.iceberg).remove(window)
        else:
            remove_window(self.output, self.mailbox, self.folder, window)

    def _in_catalog(self, iceberg: IcebergTarget) -> IcebergFolder:
        return IcebergFolder(iceberg, self.output, self.mailbox, self.folder)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of the timeline: a window, or a span without one.

    :param kind: `window`, `pending` where the next runs will extract, or what mail in it is a sign
        of: a key of `KINDS`
    """

    start: datetime
    end: datetime
    kind: str
    entry: Entry | None = None

    @property
    def messages(self) -> int | None:
        return 0 if self.entry is None else self.entry.messages


def audit_tables(job: AuditJob) -> Report:
    """Check the tables alone, without the server.

    :raises OSError: the storage fails
    :raises R7MailConfigError: there are no tables of the folder
    """
    ledger = job.ledger()
    if not (ledger.entries or ledger.foreign):
        raise R7MailConfigError(_no_tables(job))
    return _look_at_tables(job, ledger)


def _no_tables(job: AuditJob) -> str:
    return (
        f"There are no tables of folder {job.folder} of this mailbox below {url_of(job.output)}, "
        "or not of that time. Give what extracts write to."
    )


async def audit(
    client: AsyncClient, job: AuditJob, on_progress: Callable[[str], None] = lambda _: None
) -> Report:
    """Compare the tables with the server. Reads only.

    :param client: an open client
    :param on_progress: called with what is being looked at
    :raises R7MailError: the server or the storage fails
    """
    ledger = await run_to_end(job.ledger)
    report = _look_at_tables(job, ledger)
    if not ledger.entries:
        report.notes.append(_no_tables(job))
    before = client.stats.requests
    await _Comparison(client, job, report, on_progress).run(ledger)
    report.requests = client.stats.requests - before
    report.findings.sort(key=lambda finding: finding.start or LATEST)
    return report


def _look_at_tables(job: AuditJob, ledger: Ledger) -> Report:
    report = Report(job.folder, ledger.entries)
    for entry in ledger.entries:
        start, end = entry.bounds
        if entry.manifest is None:
            report.findings.append(Finding("unfinished", start, end))
        elif entry.problems:
            detail = "; ".join(entry.problems)
            report.findings.append(Finding("damaged", start, end, detail=detail))
    for first, second in ledger.overlaps():
        start, end = second.bounds[0], min(first.bounds[1], second.bounds[1])
        detail = f"{first.window.label()} and {second.window.label()}"
        report.findings.append(Finding("overlapping", start, end, detail=detail))
    for entry in ledger.of_another_policy():
        report.findings.append(Finding("privacy", *entry.bounds))
    regular = [entry for entry in ledger.entries if not entry.strays]
    for part in _gaps(regular, "missing"):
        report.findings.append(Finding("missing", part.start, part.end, tables=0))
    report.findings += [Finding("foreign", detail=path) for path in ledger.foreign]
    if ledger.left:
        report.notes.append(
            f"Leftover windows of compactions: {ledger.left}. Readers ignore them, and r7mail "
            "compact removes them."
        )
    if older := ledger.of_an_older_schema():
        report.notes.append(f"Windows of an older schema version: {older}.")
    if filtered := sum(entry.filtered for entry in ledger.entries):
        report.notes.append(
            f"Windows extracted with filters, and not compared with the server: {filtered}."
        )
    report.findings.sort(key=lambda finding: finding.start or LATEST)
    return report


def _gaps(entries: Sequence[Entry], kind: str) -> list[_Part]:
    """Return the spans between windows that don't follow each other."""
    found = []
    reached: datetime | None = None
    for entry in entries:
        start, end = entry.bounds
        if reached is not None and start > reached:
            found.append(_Part(reached, start, kind))
        reached = end if reached is None else max(reached, end)
    return found


def _timeline(job: AuditJob, ledger: Ledger) -> list[_Part]:
    """Divide the time to audit into windows and what is between them, without overlaps."""
    regular = [entry for entry in ledger.entries if not entry.strays]
    first = regular[0].bounds[0] if regular else LATEST
    last = max((entry.bounds[1] for entry in regular), default=EARLIEST)
    edges = (
        (first, "strays before"),
        (last, "missing"),
        (_pending_until(regular, datetime.now(UTC)), "pending"),
        (LATEST, "strays after"),
    )
    low, high = job.start or EARLIEST, job.end or LATEST
    parts: list[_Part] = []
    reached = low

    def fill(until: datetime) -> None:
        nonlocal reached
        for edge, kind in edges:
            end = min(edge, until)
            if end > reached:
                parts.append(_Part(reached, end, kind))
                reached = end

    for entry in ledger.entries:
        start, end = entry.bounds
        fill(start)
        if start >= reached or not parts:
            parts.append(_Part(start, end, "window", entry))
            reached = max(end, reached)
    fill(high)
    return parts


def _pending_until(regular: Sequence[Entry], now: datetime) -> datetime:
    """Return until when mail after the last window is left to the next runs, which aren't late.

    What is dated further ahead has a wrong clock, and won't be extracted for a long time.
    """
    if not regular:
        return EARLIEST
    start, end = max((entry.bounds for entry in regular), key=lambda bounds: bounds[1])
    due = end + 2 * (end - start) if end < now else end
    ahead = (now + AHEAD).replace(hour=0, minute=0, second=0, microsecond=0)
    return end if due < now else max(due, ahead)


class _Comparison:
    """One comparison of the tables with the server."""

    def __init__(
        self,
        client: AsyncClient,
        job: AuditJob,
        report: Report,
        on_progress: Callable[[str], None],
    ) -> None:
        self._client = client
        self._job = job
        self._report = report
        self._on_progress = on_progress
        self._counter = SpanCounter(client, job.folder, (EARLIEST, LATEST))
        self._used: set[str] = set()

    async def run(self, ledger: Ledger) -> None:
        parts = _timeline(self._job, ledger)
        await calibrate(self._client, self._job.folder)
        # Where bounds aren't exact, counts between them aren't either (R29).
        if self._job.deep or self._client.traits.sweeps:
            await self._read(parts)
        else:
            size = max(len(parts) // PARTS, 1)
            for place in range(0, len(parts), size):
                await self._compare(parts[place : place + size])
        self._report.compared = " and ".join(sorted(self._used)) or "nothing"
        await self._note_undated()

    async def _compare(self, parts: Sequence[_Part]) -> None:
        """Compare counts, and halve the span if they differ."""
        start, end = parts[0].start, parts[-1].end
        self._on_progress(f"{start:%Y-%m-%d} to {end:%Y-%m-%d}")
        entry = parts[0].entry if len(parts) == 1 else None
        if entry is not None and not entry.comparable:
            return
        expected = _total(part.messages for part in parts)
        counter = self._counter
        if expected is not None and await counter.is_clear(start) and await counter.is_clear(end):
            found = await counter.count(start, end, expected)
            if found is None:  # Count can't be trusted
                await self._read(parts)
                return
            self._used.add("counts")
            if await counter.is_unchanged(start) and await counter.is_unchanged(end):
                if found == expected:
                    return
                if len(parts) == 1 and entry is None:
                    self._judge(parts[0], found)
                    return
        elif entry is not None:
            await self._compare_window(parts[0], entry)
            return
        if len(parts) == 1:
            await self._read(parts)
            return
        middle = len(parts) // 2
        await self._compare(parts[:middle])
        await self._compare(parts[middle:])

    async def _compare_window(self, part: _Part, entry: Entry) -> None:
        """Compare a window under the bounds that it was read with: these need not be clear."""
        assert entry.manifest is not None  # noqa: S101 - it would not be comparable
        if (entry.manifest.get("counted") or {}).get("messages") is None:
            await self._read([part])
            return
        job = ExtractJob(
            folder=self._job.folder,
            criteria=MessageFilter(window=entry.window),
            output=self._job.output,
        )
        self._used.add("counts")
        if not await is_as_counted(self._client, job, entry.manifest):
            await self._read([part])

    async def _read(self, parts: Sequence[_Part]) -> None:
        """Read a span, and compare ids."""
        self._used.add("ids")
        starts = [part.start for part in parts]
        found: list[set[int]] = [set() for _ in parts]
        window = Window(parts[0].start, parts[-1].end)
        async for message in aiter_messages(
            self._client, self._job.folder, MessageFilter(window=window)
        ):
            if message.date is not None:
                found[bisect_right(starts, message.date) - 1].add(message.id)
        for part, ids in zip(parts, found, strict=True):
            if part.entry is None:
                self._judge(part, len(ids))
            elif part.entry.comparable:
                await self._judge_ids(part, part.entry, ids)

    async def _judge_ids(self, part: _Part, entry: Entry, ids: set[int]) -> None:
        job = self._job
        manifest = entry.manifest or {}
        if not entry.has_ids or ("files" not in manifest and job.iceberg is None):
            if manifest["messages"] != len(ids):
                self._report.findings.append(
                    Finding("differs", part.start, part.end, manifest["messages"], len(ids))
                )
            return
        try:
            rows = await run_to_end(job.stored_ids, entry)
        except OSError as error:
            self._report.findings.append(
                Finding("damaged", part.start, part.end, server=len(ids), detail=str(error))
            )
            return
        stored = set(rows)
        missing, left, twice = len(ids - stored), len(stored - ids), len(rows) - len(stored)
        if missing or left or twice:
            self._report.findings.append(
                Finding(
                    "differs",
                    part.start,
                    part.end,
                    tables=len(rows),
                    server=len(ids),
                    detail=f"{missing} not in the tables, {left} not on the server"
                    + (f", {twice} more than once" if twice else ""),
                )
            )

    def _judge(self, part: _Part, found: int) -> None:
        """Judge a span without a window by the number of its messages."""
        if part.kind == "missing":
            for finding in self._report.findings:
                if finding.kind == "missing" and finding.start == part.start:
                    finding.server = found
        elif found and part.kind == "pending":
            self._report.notes.append(
                f"Messages not extracted yet, since {part.start.isoformat()}: {found}."
            )
        elif found:
            self._report.findings.append(
                Finding(part.kind, part.start, part.end, tables=0, server=found)
            )

    async def _note_undated(self) -> None:
        if self._job.start is not None or self._job.end is not None:
            return
        client, folder = self._client, self._job.folder
        everything = await count_between(client, folder, ALL, (None, None))
        dated = await count_between(client, folder, ALL, (EARLIEST, LATEST))
        if everything is not None and dated is not None and everything > dated:
            self._report.notes.append(
                f"Messages without a usable Date, which can be in no window: {everything - dated}."
            )


def _total(numbers: Iterable[int | None]) -> int | None:
    found = list(numbers)
    known = [number for number in found if number is not None]
    return sum(known) if len(known) == len(found) else None
