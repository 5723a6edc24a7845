"""What the manual leaves open, as settings: how this server reads the API, and how it fails.

Every open point of the contract (R1 to R23) that a server decides is a field of `Readings`; the
defaults are the friendliest reading. A `Fault` makes single calls fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Order = Literal["ascending", "descending"]
FaultKind = Literal["status", "reset", "truncate", "bad_json", "slow", "answer", "hang"]


@dataclass(frozen=True, kw_only=True)
class Readings:
    """How the server reads what the manual leaves open.

    :param sort_one: the order that ``sortOrder: 1`` means; any other value means the other (R1).
    :param count: ``Count`` is of all messages that match, or of those on the page (R2).
    :param page_cap: most messages in one page, whatever ``size`` asks; None for no cap (R3).
    :param start_inclusive: a message dated exactly ``StartDate`` is found (R4).
    :param end_inclusive: a message dated exactly ``EndDate`` is found (R4).
    :param precision: bounds and messages' dates are cut to this before they are compared (R4).
    :param ties: order of messages with the same Date: the same each time, turned round at every
        other request, or shuffled anew for each (R5).
    :param undated: whether a listing with date bounds has messages without a readable Date;
        ``as_min`` takes them as dated at the beginning of time.
    :param expired_at: ``ExpiredAt`` of a token; the token works regardless (R12).
    :param token_calls: calls a token serves before it is answered 401; None for no limit (R12).
    :param login_refusal: the answer to a wrong login or password (R14).
    :param error_body: what the body of a 401, 404, 405 or 500 holds (R16).
    :param list_attachments: False lists ``Attachments: null`` for messages with files (R17).
    :param chunked_attachments: attachments come without ``Content-Length`` (R22).
    :param unknown_fields: listings have fields the manual does not name (R20).
    :param missing_fields: fields left out of the messages in listings (R20).
    :param null_fields: fields that are null in the messages in listings (R20).
    :param ignore_dates: ``StartDate`` and ``EndDate`` have no effect.
    :param ignore_offset: every page is the first.
    :param latency_seconds: seconds that every call takes at least.
    :param sent_delay_seconds: seconds until a sent message appears in the Sent folder (R11).
    :param strip_hidden: elements that are not displayed are taken out of what is sent.
    :param token_header_strict: a ``Bearer`` before the token is refused; False forgives it.
    :param repeat_answer: what Delete and MoveMessage answer when an id is not in the folder (R23).
    :param unknown_mark_answer: what MarkAsRead and MarkAsFavorite answer then (R15).
    """

    sort_one: Order = "ascending"
    count: Literal["all", "page"] = "all"
    page_cap: int | None = None
    start_inclusive: bool = True
    end_inclusive: bool = True
    precision: Literal["second", "millisecond", "microsecond"] = "millisecond"
    ties: Literal["stable", "reversed", "random"] = "stable"
    undated: Literal["always", "never", "as_min"] = "as_min"
    expired_at: Literal["future", "past", "absent", "other_zone"] = "future"
    token_calls: int | None = None
    login_refusal: Literal["401", "500", "null_response", "no_token", "state"] = "401"
    error_body: Literal["empty", "json", "html"] = "json"
    list_attachments: bool = True
    chunked_attachments: bool = False
    unknown_fields: bool = False
    missing_fields: tuple[str, ...] = ()
    null_fields: tuple[str, ...] = ()
    ignore_dates: bool = False
    ignore_offset: bool = False
    latency_seconds: float = 0.0
    sent_delay_seconds: float = 0.0
    strip_hidden: bool = False
    token_header_strict: bool = True
    repeat_answer: Literal["true", "false", "500"] = "true"
    unknown_mark_answer: Literal["true", "false", "500"] = "false"

    def __post_init__(self) -> None:
        for name in ("missing_fields", "null_fields"):  # JSON has lists only
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_types(self)


@dataclass(frozen=True)
class Fault:
    """One way for calls to fail. The first fault that fits a call is the one it meets.

    :param path: the path (``/api/v1/email/Messages``) or its last word (``Messages``); None: any.
    :param times: calls it hits before it is used up; None for ever.
    :param skip: calls that fit and are let through first.
    :param kind: ``status``: an error answer, as of a proxy (R16). ``reset``: the connection is
        reset with no answer. ``truncate``: the body breaks off (R22). ``bad_json``: half of the
        JSON, properly framed. ``slow``: the right answer after ``seconds``. ``answer``: 200 with
        the JSON in ``answer``. ``hang``: no answer until ``seconds`` have passed (0: for ever),
        then a reset.
    :param status: the status of a ``status`` fault.
    :param body: its body; text that begins with ``<`` is sent as HTML, with ``{`` or ``[`` as JSON.
    :param headers: headers of the ``status`` or ``answer``, such as ``{"Retry-After": "1"}``.
    :param after_acting: ``status``, ``reset``, ``answer`` and ``hang`` fail after the server has
        done what was asked (R23). The other kinds always act.
    :param seconds: how long ``slow`` and ``hang`` last.
    :param trickle: ``slow`` sends its body in small pieces over ``seconds``.
    :param delay: seconds before the fault happens.
    :param chunked: ``truncate`` breaks a chunked body, not one with a ``Content-Length``.
    :param keep: the part of the body, 0 to 1, that ``truncate`` sends.
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
        """Whether a call of this path can meet the fault."""
        return self.path is None or self.path in {path, path.rpartition("/")[2]}

    @property
    def acts(self) -> bool:
        """Whether the server does what was asked before it fails."""
        return self.after_acting or self.kind in {"truncate", "bad_json", "slow"}


class Faults:
    """The faults in force: like a list, from which used-up faults vanish."""

    def __init__(self) -> None:
        self._pending: list[_Pending] = []

    def append(self, fault: Fault) -> None:
        """Put a fault in force, after those there are."""
        self._pending.append(_Pending(fault, fault.skip, fault.times))

    def clear(self) -> None:
        """No call fails any more."""
        self._pending.clear()

    def __len__(self) -> int:
        return len(self._pending)

    def __iter__(self) -> Iterator[Fault]:
        return iter([pending.fault for pending in self._pending])

    def __getitem__(self, index: int) -> Fault:
        return self._pending[index].fault

    def take(self, path: str) -> Fault | None:
        """The fault that a call of this path meets, counting it as met; None if there is none."""
        for pending in list(self._pending):
            if not pending.fault.fits(path):
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
    """Refuse a value of the wrong type: settings also arrive as JSON, and typos must not pass."""
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
