"""Settings of the emulator: how it behaves where the manual is open, and how calls fail.

Every open point of the contract that is up to a server is a field of `Readings`. The defaults are
those of the likeliest server. A `Fault` makes individual calls fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Order = Literal["ascending", "descending"]
FaultKind = Literal[
    "status", "refuse", "reset", "cut", "truncate", "bad_json", "slow", "answer", "hang"
]


@dataclass(frozen=True, kw_only=True)
class Readings:
    """How the emulator behaves where the manual is open.

    :param sort_one: the order that ``sortOrder: 1`` means; any other value means the other (R1).
    :param count: whether ``Count`` counts all matches, the messages on the page, those of the
        folder, or its unread ones (R2).
    :param count_form: whether ``Count`` is a number, text such as ``"120"``, or null (R2).
    :param page_cap: most messages per page, whatever the ``size``; None: no limit (R3).
    :param start_inclusive: whether a message dated exactly ``StartDate`` matches (R4).
    :param end_inclusive: whether a message dated exactly ``EndDate`` matches (R4).
    :param precision: bounds and dates are truncated to this before they are compared (R4); ``day``
        is a calendar day of the server's zone (R29).
    :param zone_hours: the server's zone, in hours from UTC.
    :param bounds_as: ``local`` takes ``StartDate`` and ``EndDate`` for times of the server's zone,
        whatever zone they name (R29).
    :param bounds_field: the field that ``StartDate`` and ``EndDate`` are compared with (R29).
    :param both_bounds: ignore one of them without the other (R29).
    :param order_by: the field that listings are sorted by: the one asked for, or always the same
        (R30).
    :param empty_labels: whether ``Labels: []`` means all messages, or those without labels (R31).
    :param several_labels: whether messages must have all of several labels, or any (R31).
    :param labels_required: refuse a search without ``Labels``.
    :param foreign_rows: list messages of other folders, too (R32).
    :param threads: whether all messages of a thread are listed, or only the first one (R33).
    :param dates_without_zone: list dates in the server's zone, without naming it (R43).
    :param timestamps_with_zone: list Timestamp in UTC all the same (R43).
    :param timestamps_without_zone: list only Timestamp in the server's zone, without naming it
        (R43).
    :param ties: order of messages with the same Date: always the same, reversed in every other
        response, or random in each (R5).
    :param undated: whether messages without a valid Date match date bounds; ``as_min`` treats them
        as older than any date.
    :param expired_at: ``ExpiredAt`` of a token; the token works regardless (R12).
    :param token_calls: number of calls a token is valid for; None: no limit (R12).
    :param login_refusal: the response to a wrong login or password (R14).
    :param error_body: the body of an error: JSON with ``ErrorMessage``, a page, or none (R16).
    :param list_attachments: False lists ``Attachments: null`` for messages with attachments (R17).
    :param move_id: the Id of a moved message: the ``same``; a ``new`` one at once; a new one
        ``later``; or new and later, and ``hidden`` until then (R35).
    :param move_seconds: how much later.
    :param nested_names: the ``FileName`` of an attached message in listings: its own, or none, so
        that it can't be downloaded (R38).
    :param attachment_size: the ``Size`` of a listed attachment: the file's bytes, those of its
        base64 in one line or in lines of 76 with CRLF, or kilobytes rounded up (R26).
    :param chunked_attachments: send attachments without ``Content-Length`` (R22).
    :param unknown_fields: add fields to listings that are not in the manual (R20).
    :param missing_fields: fields missing from messages in listings (R20).
    :param null_fields: fields that are null in messages in listings (R20).
    :param ignore_dates: ignore ``StartDate`` and ``EndDate``.
    :param ignore_offset: return the first page for every ``offset``.
    :param index_seconds: for how long after it arrives a message is not found by ``Query``,
        ``Body`` and ``Subject`` (R40).
    :param row_per_label: list a message once for each of its labels (R34).
    :param names: the case of names in responses: the manual's, or camelCase (R42).
    :param order_fields: whether ``orderField`` sorts by any field, has no effect, or is refused
        unless it is Date (R28).
    :param mail_host: the only host name that has the mail API; others answer 405, as another
        module does. Empty: any.
    :param latency_seconds: minimum duration of every call, in seconds.
    :param sent_delay_seconds: seconds until a sent message appears in the Sent folder (R11).
    :param strip_hidden: remove hidden HTML elements from sent messages.
    :param token_header_strict: False accepts a ``Bearer`` before the token.
    :param repeat_answer: the response of Delete and MoveMessage to an id that is not in the folder
        (R23).
    :param unknown_mark_answer: the response of MarkAsRead and MarkAsFavorite to such an id (R15).
    :param dead_token: the status for a token that is missing, unknown or dead (R24).
    :param refusal: the status for what is not there or not allowed (R25).
    :param wrong_path: the status for a path that doesn't exist.
    :param one_session: a login ends all earlier sessions (R36).
    :param sticky: a token works only with the cookies of its login, as behind a balancer.
    :param lock_after: wrong passwords after which all logins are refused; None: any number.
    :param size_limit: the largest ``size``; above it, a listing is refused (R37).
    :param reach_limit: the largest ``offset`` plus ``size``, likewise (R37).
    :param size_refusal: the status of these refusals (R37).
    :param drafts_only: refuse to send with ``Id: 0`` (R39).
    :param mail_module: False leaves ``Mail`` out of ``ModulesAccess``, and refuses all mail calls
        (R41).
    :param disk: whether the Disk API works, or the status of all its responses: 404 or 405 where it
        is not, 406 for an account without it.
    :param disk_host: the only host name that the Disk API responds on, such as ``localhost``; on
        others it is 405. Empty: any.
    :param disk_answer: the response to an upload: the file's Id, an object or an array with it, or
        nothing.
    :param disk_envelope: put the Disk's responses into ``Response.Data``.
    :param disk_directory: where an upload has its ``DirectoryId``; without one there, the file is
        stored in the user's root.
    :param disk_parent: the field of AddSubDirectory with the folder to create one in.
    :param disk_other_rows: list the files of all folders with those of each.
    :param disk_delay_seconds: seconds until a listing of the Disk shows what is new.
    :param disk_same_name: what becomes of an upload if the folder has a file of that name.
    :param disk_quota: most bytes on the Disk; None: no limit.
    :param disk_full: the status if an upload is beyond that; ``accepted`` responds 200 and stores
        nothing.
    :param disk_max_bytes: most bytes of a file; above it 413. None: no limit.
    """

    sort_one: Order = "descending"
    count: Literal["all", "page", "folder", "unread"] = "all"
    count_form: Literal["number", "text", "null"] = "number"
    page_cap: int | None = None
    start_inclusive: bool = True
    end_inclusive: bool = True
    precision: Literal["day", "second", "millisecond", "microsecond"] = "millisecond"
    zone_hours: float = 3.0
    bounds_as: Literal["utc", "local"] = "utc"
    bounds_field: Literal["Date", "Timestamp"] = "Date"
    both_bounds: bool = False
    order_by: Literal["asked", "Id", "Timestamp"] = "asked"
    empty_labels: Literal["all", "unlabelled"] = "all"
    several_labels: Literal["all", "any"] = "all"
    labels_required: bool = False
    foreign_rows: bool = False
    threads: Literal["flat", "heads"] = "flat"
    dates_without_zone: bool = False
    timestamps_with_zone: bool = False
    timestamps_without_zone: bool = False
    ties: Literal["stable", "reversed", "random"] = "stable"
    undated: Literal["always", "never", "as_min"] = "as_min"
    expired_at: Literal["future", "past", "absent", "other_zone"] = "future"
    token_calls: int | None = None
    login_refusal: Literal["401", "500", "null_response", "no_token", "state"] = "401"
    error_body: Literal["empty", "json", "html"] = "json"
    list_attachments: bool = True
    move_id: Literal["same", "new", "later", "hidden"] = "same"
    move_seconds: float = 0.5
    nested_names: Literal["given", "null", "empty"] = "given"
    attachment_size: Literal["bytes", "base64", "base64_lines", "rounded"] = "bytes"
    chunked_attachments: bool = False
    unknown_fields: bool = False
    missing_fields: tuple[str, ...] = ()
    null_fields: tuple[str, ...] = ()
    ignore_dates: bool = False
    ignore_offset: bool = False
    index_seconds: float = 0.0
    row_per_label: bool = False
    names: Literal["documented", "camel"] = "documented"
    order_fields: Literal["any", "date", "refused"] = "any"
    mail_host: str = ""
    latency_seconds: float = 0.0
    sent_delay_seconds: float = 0.0
    strip_hidden: bool = False
    token_header_strict: bool = True
    repeat_answer: Literal["true", "false", "500", "406"] = "true"
    unknown_mark_answer: Literal["true", "false", "500"] = "false"
    dead_token: Literal["401", "403", "406"] = "401"  # noqa: S105 - a status
    refusal: Literal["406", "403", "500"] = "406"
    wrong_path: Literal["405", "404"] = "405"
    one_session: bool = False
    sticky: bool = False
    lock_after: int | None = None
    size_limit: int | None = None
    reach_limit: int | None = None
    size_refusal: Literal["400", "413", "500"] = "400"
    drafts_only: bool = False
    mail_module: bool = True
    disk: Literal["works", "404", "405", "406"] = "works"
    disk_host: str = ""
    disk_answer: Literal["number", "object", "array", "nothing"] = "number"
    disk_envelope: bool = False
    disk_directory: Literal["header", "form"] = "header"
    disk_parent: Literal["ParentId", "DirectoryId"] = "ParentId"
    disk_other_rows: bool = False
    disk_delay_seconds: float = 0.0
    disk_same_name: Literal["both", "replace", "refuse"] = "both"
    disk_quota: int | None = None
    disk_full: Literal["406", "413", "500", "507", "accepted"] = "406"
    disk_max_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("missing_fields", "null_fields"):  # JSON has lists only
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_types(self)


@dataclass(frozen=True)
class Fault:
    """One way for calls to fail. A call is hit by the first fault that matches it.

    :param path: a path (``/api/v1/email/Messages``) or its last segment (``Messages``); None: any.
    :param times: number of calls it hits; None: no limit.
    :param skip: number of matching calls to let through first.
    :param kind: ``status``: an error response, as from a proxy (R16). ``refuse``: the same before
        the request's body is read, after which the connection is closed. ``reset``: the connection
        is reset without a response. ``cut``: it is reset when ``keep`` of the request's body has
        come. ``truncate``: the body is cut off (R22). ``bad_json``: half of the
        JSON, properly framed. ``slow``: the correct response after ``seconds``. ``answer``: 200
        with the JSON in ``answer``. ``hang``: no response for ``seconds`` (0: forever), then a
        reset.
    :param status: the status of a ``status`` or ``refuse`` fault.
    :param body: its body; text that starts with ``{`` or ``[`` is sent as JSON, other as HTML.
    :param headers: its headers, or those of an ``answer``, such as ``{"Retry-After": "1"}``.
    :param after_acting: ``status``, ``reset``, ``answer`` and ``hang`` fail after the server has
        done what was asked (R23), ``cut`` after it has acted on the part that came. The other kinds
        always act.
    :param seconds: duration of ``slow`` and ``hang``.
    :param trickle: ``slow`` sends its body in small pieces over ``seconds``.
    :param delay: seconds before the fault happens.
    :param chunked: ``truncate`` cuts a chunked body, not one with a ``Content-Length``.
    :param keep: the fraction of the response that ``truncate`` sends, or of the request that
        ``cut`` receives.
    :param answer: the JSON value of an ``answer`` fault.
    """

    path: str | None = None
    times: int | None = 1
    skip: int = 0
    kind: FaultKind = "status"
    status: int = 500
    body: str | bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    after_acting: bool = False
    seconds: float = 0.0
    trickle: bool = False
    delay: float = 0.0
    chunked: bool = False
    keep: float = 0.5
    answer: Any = None

    def __post_init__(self) -> None:
        _check_types(self)

    def fits(self, path: str) -> bool:
        """Return whether the fault matches a call of this path."""
        return self.path is None or self.path in {path, path.rpartition("/")[2]}

    @property
    def acts(self) -> bool:
        """Whether the server does what was asked before it fails."""
        return self.after_acting or self.kind in {"truncate", "bad_json", "slow"}


class Faults:
    """The faults that are set: like a list, from which used-up faults are removed."""

    def __init__(self) -> None:
        self._pending: list[_Pending] = []

    def append(self, fault: Fault) -> None:
        """Add a fault after the others."""
        self._pending.append(_Pending(fault, fault.skip, fault.times))

    def clear(self) -> None:
        """Remove all faults."""
        self._pending.clear()

    def __len__(self) -> int:
        return len(self._pending)

    def __iter__(self) -> Iterator[Fault]:
        return iter([pending.fault for pending in self._pending])

    def __getitem__(self, index: int) -> Fault:
        return self._pending[index].fault

    def take(self, path: str, *, receiving: bool = False) -> Fault | None:
        """Return the fault that hits a call of this path, if any, and count the hit.

        :param receiving: whether the call's body is yet to come, as ``cut`` and ``refuse`` need it.
        """
        for pending in list(self._pending):
            if (
                not pending.fault.fits(path)
                or (pending.fault.kind in {"cut", "refuse"}) != receiving
            ):
                continue
            if pending.skip > 0:
                pending.skip -= 1
                continue
            if pending.times is not None:
                pending.times -= 1
                if pending.times <= 0:
                    self._pending.remove(pending)
            return pending.fault
        return None


@dataclass(eq=False)
class _Pending:
    fault: Fault
    skip: int
    times: int | None


def _check_types(settings: Readings | Fault) -> None:
    """Raise ValueError for values of a wrong type: settings also arrive as JSON."""
    hints = get_type_hints(type(settings))
    for item in fields(settings):
        value = getattr(settings, item.name)
        if not _is_a(value, hints[item.name]):
            raise ValueError(f"{item.name}={value!r}: expected {item.type}")


def _is_a(value: object, hint: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in get_args(hint)
    if origin in {Union, UnionType}:
        return any(_is_a(value, option) for option in get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, origin or hint)
