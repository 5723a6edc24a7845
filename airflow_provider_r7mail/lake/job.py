"""Say what to extract and where to put it, and how far an extract has got."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any, Literal, Self

from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.spans import MAX_SWEEP_MESSAGES
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.lake.catalog import IcebergTarget
from airflow_provider_r7mail.lake.compacted import length, parse_sources, window_of
from airflow_provider_r7mail.lake.derived import check_size_mismatch, fatal_statuses
from airflow_provider_r7mail.lake.filenames import name_filter
from airflow_provider_r7mail.lake.layout import (
    WINDOWS,
    WINDOWS_FILE,
    folder_path,
    parse_window,
)
from airflow_provider_r7mail.lake.privacy import Privacy
from airflow_provider_r7mail.lake.schema import TABLES, schema
from airflow_provider_r7mail.lake.storage import ObjectPath, read_all, store_errors, url_of

GONE = ("drop", "keep")
# The columns by which mail that has left is told from the rest.
KEPT_BY = {"message_id", "extracted_at", "gone_at"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractJob:
    """What to extract, and where to put it.

    :param folder: the folder's id
    :param criteria: which messages; the window must have both bounds
    :param output: the root of the tables
    :param attachments: the root of the attachments; None lists them without copying
    :param tables: the tables to write
    :param columns: the columns of the messages table to write; None for all
    :param page_size: messages per request; None adapts it to the server
    :param max_sweep_messages: how many messages the folder may have if the server's bounds are of
        no use, so that it must be read as a whole (R29)
    :param attachment_pattern: which files to copy; see `filenames.name_filter`
    :param max_attachment_bytes: larger files are not copied
    :param on_bad_message: `fail` raises after everything is written; `quarantine` doesn't
    :param on_attachment_error: a key of `derived.FATAL`: which files that were not copied raise
        an error, after everything is written
    :param on_size_mismatch: `record` a file of another size than listed, or `fail` it (R26)
    :param on_gone: `drop` leaves out mail that has left the folder since an earlier run of the
        window; `keep` keeps its rows, with `gone_at`
    :param privacy: what must not be written
    :param iceberg: the catalog with the tables to write to; None for Parquet below `output`
    :param strays: whether the window is one of an audit's, for mail outside of the regular ones
    """

    folder: int
    criteria: MessageFilter
    output: ObjectPath
    attachments: ObjectPath | None = None
    tables: tuple[str, ...] = TABLES
    columns: tuple[str, ...] | None = None
    page_size: int | None = None
    max_sweep_messages: int = MAX_SWEEP_MESSAGES
    attachment_pattern: str | Sequence[str] | None = None
    max_attachment_bytes: int | None = None
    on_bad_message: Literal["fail", "quarantine"] = "fail"
    on_attachment_error: Literal["fail", "fail_on_missing", "record"] = "fail"
    on_size_mismatch: Literal["record", "fail"] = "record"
    on_gone: Literal["drop", "keep"] = "drop"
    privacy: Privacy = field(default_factory=Privacy)
    iceberg: IcebergTarget | None = None
    strays: bool = False

    def of(self, window: Window) -> Self:
        """Return the same job for another window."""
        return replace(self, criteria=replace(self.criteria, window=window))

    def filters(self) -> str | None:
        """Return what tells filters from others, without naming them; None if there are none."""
        given = asdict(replace(self.criteria, window=Window()))
        if given == asdict(MessageFilter()):
            return None
        return self.privacy.pseudonym(json.dumps(given, sort_keys=True))[:16]

    def made(self, manifest: Mapping[str, Any]) -> bool:
        """Return whether a window was read with these filters and this privacy policy.

        Manifests of schema version 1 don't tell.
        """
        known = manifest.get("filters", ...), manifest["privacy"]
        return known == (self.filters(), self.privacy.record())

    def settings(self) -> dict[str, Any]:
        """Return what the manifest notes, so that an audit can extract a window in the same way."""
        pattern = self.attachment_pattern
        return {
            "columns": self.columns and list(self.columns),
            "attachments": None if self.attachments is None else url_of(self.attachments),
            "attachment_pattern": pattern if isinstance(pattern, str | None) else list(pattern),
            "max_attachment_bytes": self.max_attachment_bytes,
            "on_gone": self.on_gone,
        }

    @property
    def notes(self) -> Any:
        """The root of the folders with the windows' manifests."""
        return self.output / (self.tables[0] if self.iceberg is None else WINDOWS)

    def check(self) -> None:
        """Check the job, without any request to the server.

        :raises R7MailConfigError: a parameter is wrong; it says how to fix it
        """
        window = self.criteria.window
        if window.start is None or window.end is None:
            raise R7MailConfigError("start and end: an extract needs both.")
        unknown = [name for name in self.tables if name not in TABLES]
        if unknown or not self.tables:
            raise R7MailConfigError(
                f"tables: {', '.join(map(str, unknown)) or 'none given'}. "
                f"Known: {', '.join(TABLES)}."
            )
        if self.page_size is not None and self.page_size < 1:
            raise R7MailConfigError(f"page_size: {self.page_size}. It must be at least 1.")
        if self.max_sweep_messages < 1:
            raise R7MailConfigError(
                f"max_sweep_messages: {self.max_sweep_messages}. It must be at least 1."
            )
        known = ("fail", "quarantine")
        if self.on_bad_message not in known:
            raise R7MailConfigError(
                f"on_bad_message: {self.on_bad_message!r}. Known: {', '.join(known)}."
            )
        fatal_statuses(self.on_attachment_error)
        check_size_mismatch(self.on_size_mismatch)
        if self.on_gone not in GONE:
            raise R7MailConfigError(f"on_gone: {self.on_gone!r}. Known: {', '.join(GONE)}.")
        columns = schema("messages").names
        if self.columns is not None and len(set(self.columns)) != (len(self.columns) or 1):
            raise R7MailConfigError("columns: empty, or with the same name twice.")
        wrong = [name for name in self.columns or () if name not in columns]
        if wrong:
            raise R7MailConfigError(
                f"columns: messages has no {', '.join(wrong)}. Known: {', '.join(columns)}."
            )
        if self.on_gone == "keep" and not set(self.columns or KEPT_BY) >= KEPT_BY:
            raise R7MailConfigError(
                f'columns: on_gone="keep" needs {", ".join(sorted(KEPT_BY))} among them.'
            )
        name_filter(self.attachment_pattern)
        if self.iceberg is not None:
            self.iceberg.check(self.output)


# Longer than a run that was started by hand waits for the end of its month.
LONGEST_WAIT = timedelta(days=32)


def seconds_to_settle(window: Window, settle_seconds: float) -> float:
    """Return how long to wait before a window is read, so that mail on its way is there.

    :param window: the window, with its end
    :param settle_seconds: how long after its end it may be read
    :return: seconds; none or less if it may be read at once
    :raises R7MailConfigError: not a number of seconds, or the window ends too far in the future
    """
    given: object = settle_seconds
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < inf:
        raise R7MailConfigError(f"settle_seconds: {given!r}. Give a number, 0 or more.")
    assert window.end is not None  # noqa: S101 - ExtractJob.check made sure
    ahead = window.end - datetime.now(UTC)
    if ahead > LONGEST_WAIT:
        raise R7MailConfigError(
            f"end: {window.end.isoformat()} is {ahead.days} days ahead, and a window is only read "
            "after its end. Give an earlier end."
        )
    return ahead.total_seconds() + given


@dataclass(slots=True)
class Progress:
    """How far an extract has got: pages, rows and bytes read, attachments processed."""

    pages: int = 0
    rows: int = 0
    bytes_read: int = 0
    attachments: int = 0


def stored_windows(job: ExtractJob, login: str) -> list[Window]:
    """Return the windows of a job's folder that the tables have, finished or not.

    Of a compacted window these are those that it was made of, as far as it is longer than the
    job's own: one that isn't is taken for what it looks like.

    :param login: the login of the mailbox
    :raises OSError: the storage fails
    """
    home = folder_path(job.notes, job.privacy.mailbox(login), job.folder)
    try:
        with store_errors(home):
            names = [path.rpartition("/")[2] for path in home.fs.ls(home.path, detail=False)]
    except FileNotFoundError:
        return []
    windows = {window for name in names if (window := parse_window(name)) is not None}
    own = length(job.criteria.window)
    longer = [window for window in windows if length(window) > own]
    marks = read_all([home / f"window={window.label()}" / WINDOWS_FILE for window in longer])
    for window, mark in zip(longer, marks, strict=True):
        with suppress(ValueError):  # none, or damaged: then it is taken for what it looks like
            windows |= {window_of(source) for source in parse_sources(mark)}
            windows.remove(window)
    return sorted(windows, key=Window.label)
