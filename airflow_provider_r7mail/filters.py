"""The filters that everything which reads a folder takes, by the names users give them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TypedDict


class Filters(TypedDict, total=False):
    """The filters that everything which reads a folder takes; see `MessageFilter.build`."""

    query: str | None
    body: str | None
    sender: str | None
    recipient: str | None
    subject: str | None
    labels: Iterable[int | str] | str | None
    was_read: bool | str | None
    start: datetime | str | None
    end: datetime | str | None


FILTER_FIELDS: tuple[str, ...] = ("folder", *Filters.__annotations__)
"""The names of a folder and its filters, for `template_fields`."""


def known_filters(filters: Filters) -> Filters:
    """The filters, if all are known: what Python itself does for named parameters."""
    for name in filters:
        if name not in Filters.__annotations__:
            raise TypeError(f"unexpected keyword argument {name!r}: there is no such filter")
    labels = filters.get("labels")
    # A set is in another order in each process, an iterator is used up by the first look at it;
    # Airflow takes a watcher with other arguments for another one.
    if isinstance(labels, (set, frozenset)):
        return {**filters, "labels": sorted(labels, key=str)}
    if isinstance(labels, Iterator):
        return {**filters, "labels": list(labels)}
    return filters


def plain_filters(filters: Filters) -> dict[str, object]:
    """The filters that are set, as JSON has them."""
    return {name: _plain(value) for name, value in filters.items() if value is not None}


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Iterable) and not isinstance(value, str):
        return list(value)
    return value
