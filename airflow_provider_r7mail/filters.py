"""The filters that choose messages of a folder: the same parameters wherever a folder is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, TypedDict, cast

from airflow_provider_r7mail.compat import BaseOperator


class Filters(TypedDict, total=False):
    """Keyword parameters that choose messages of a folder. None of them is required.

    :param query: text anywhere in the message
    :param body: text in the body
    :param sender: the sender's address
    :param recipient: a recipient's address
    :param subject: text in the subject
    :param labels: label ids: a list, or a JSON list as text
    :param was_read: True for read messages only, False for unread ones only, None for both; the
        texts `True`, `False` and `None` are accepted
    :param start: only messages dated at or after this moment: a datetime or ISO 8601 text, UTC if
        it has no time zone
    :param end: only messages dated before this moment, likewise
    """

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
"""The names of the folder and the filters, for `template_fields`."""


class FolderReader(BaseOperator):
    """Base of operators and sensors that read a folder: store the folder and the filters.

    The parameters are spelled out because Airflow reads them from the signature, for
    `default_args` and mapped tasks, and renders the attributes of the same names.

    :param folder: the folder's id, or its name in the connection's `folders` (templated)
    :param query: this and the following: see `Filters` (templated)
    """

    def __init__(
        self,
        *,
        folder: int | str,
        query: str | None = None,
        body: str | None = None,
        sender: str | None = None,
        recipient: str | None = None,
        subject: str | None = None,
        labels: Iterable[int | str] | str | None = None,
        was_read: bool | str | None = None,
        start: datetime | str | None = None,
        end: datetime | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.folder = folder
        self.query = query
        self.body = body
        self.sender = sender
        self.recipient = recipient
        self.subject = subject
        self.labels = labels
        self.was_read = was_read
        self.start = start
        self.end = end

    @property
    def filters(self) -> Filters:
        """The filters as they are now: rendered, once the task runs."""
        return cast("Filters", {name: getattr(self, name) for name in Filters.__annotations__})


def known_filters(filters: Filters) -> Filters:
    """Return a trigger's filters in a form that is the same each time the DAG is parsed.

    :raises TypeError: there is no such filter, as Python raises for named parameters
    """
    for name in filters:
        if name not in Filters.__annotations__:
            raise TypeError(f"unexpected keyword argument {name!r}: there is no such filter")
    labels = filters.get("labels")
    # The order of a set differs between processes, and an iterator can be read only once: to
    # Airflow, a watcher whose arguments differ is another watcher.
    if isinstance(labels, (set, frozenset)):
        return {**filters, "labels": sorted(labels, key=str)}
    if isinstance(labels, Iterator):
        return {**filters, "labels": list(labels)}
    return filters


def plain_filters(filters: Filters) -> dict[str, object]:
    """Return the filters that are set, as JSON values, for a trigger's serialized arguments."""
    return {name: _plain(value) for name, value in filters.items() if value is not None}


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Iterable) and not isinstance(value, str):
        return list(value)
    return value
