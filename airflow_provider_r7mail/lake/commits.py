"""Commit a change to an Iceberg table once, whatever else is committed to it meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import tenacity

if TYPE_CHECKING:
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

T = TypeVar("T")

MAX_COMMIT_SECONDS = 300.0


def retried(attempt: Callable[[], T]) -> T:
    """Return what an attempt to commit returns; repeat it if another commit came first.

    :param attempt: looks at the table's current state, and first of all whether an earlier attempt
        has succeeded, since its response may have been lost
    """
    from pyiceberg.exceptions import CommitStateUnknownException

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type((*conflicts(), CommitStateUnknownException)),
        stop=tenacity.stop_after_delay(MAX_COMMIT_SECONDS),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
        reraise=True,
    )
    return retrying(attempt)


def conflicts() -> tuple[type[Exception], ...]:
    """Return the errors that mean that a commit failed because another one came first."""
    from pyiceberg.exceptions import CommitFailedException, ValidationException

    return CommitFailedException, ValidationException


def has_no_effect(table: Table, error: Exception, name: str, value: str) -> bool:
    """Return whether a commit that failed, for example on a full disk, surely has no effect.

    :param error: the error of the commit
    :param name: the property of the commit's snapshot by which `find_snapshot` finds it
    :param value: its value
    """
    # A commit to SQLite can't take effect after it failed here: it has no server.
    of_sqlite = str(table.catalog.properties.get("uri", "")).startswith("sqlite")
    if not of_sqlite and not isinstance(error, conflicts()):
        return False
    return find_snapshot(table.refresh(), name, value) is None


def find_snapshot(table: Table, name: str, value: str) -> Snapshot | None:
    """Return the table's snapshot whose summary has this property; None if there is none."""
    for snapshot in table.snapshots():
        summary = snapshot.summary
        if summary is not None and summary.additional_properties.get(name) == value:
            return snapshot
    return None


def for_one_commit(table: Table, properties: Mapping[str, str] = MappingProxyType({})) -> Table:
    """Make the table's next commit fail if another one comes first.

    By itself pyiceberg moves a commit on top of the other one. Rows that another run of the window
    has added meanwhile would stay, unless the table's isolation level is "serializable".

    :param properties: other properties of the table that this commit alone works with
    """
    changed = {**table.metadata.properties, "commit.retry.num-retries": "0", **properties}
    table.metadata = table.metadata.model_copy(update={"properties": changed})
    return table
