"""Make columns of messages that Python has parsed, whatever their fields hold.

A value that doesn't fit its column stays in `extra` under the API's name for it, as do unknown
fields (R20).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.client.dates import to_microseconds
from airflow_provider_r7mail.client.fields import (
    FIELDS,
    FILE,
    FILE_FIELDS,
    ITEM,
    SENDER,
    SENDER_FIELDS,
    Fields,
    Names,
    restore_names,
)
from airflow_provider_r7mail.client.models import mend_text
from airflow_provider_r7mail.lake.arrays import (
    bool_array,
    int64_array,
    int64_list,
    list_array,
    struct_array,
    text_array,
)
from airflow_provider_r7mail.lake.items import UnfitError, convert, json_texts
from airflow_provider_r7mail.lake.records import as_received
from airflow_provider_r7mail.lake.schema import arrow_type

if TYPE_CHECKING:
    import pyarrow as pa

_NONE = type(None)
# The types whose values need no conversion.
_USUAL = {
    "int": {int, _NONE},
    "text": {str, _NONE},
    "bool": {bool, _NONE},
    "date": {str, _NONE},
    "texts": {list, _NONE},
    "ints": {list, _NONE},
}
_NAMES = tuple(name for name, _, _ in FIELDS)
# As nanoseconds, Arrow reads dates before 1970 and beyond 2262 as others, or not at all.
_FIRST_DATE, _LAST_DATE = "1970-01-02", "2262-01-01"
_USUAL_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z?", re.ASCII)


class _Objects:
    """The objects of one kind.

    :param known: their names as the manual writes them
    :param names: the same
    """

    def __init__(self, known: Names, fields: Fields) -> None:
        self._known = known
        self._fields = frozenset(name for name, _, _ in fields)
        self.layout = lru_cache(maxsize=256)(self._layout)

    def _layout(self, given: tuple[str, ...]) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
        """Return what an object's names are in the manual, if others, and which it doesn't have."""
        names = self._known.spell(given)
        unknown = tuple(sorted({name for name in names if name not in self._fields}))
        return names if names != given else None, unknown

    def are_plain(self, objects: Iterable[dict[str, Any]]) -> bool:
        """Whether none has an unknown field, or another spelling of a known one."""
        return all(self.layout(given) == (None, ()) for given in set(map(tuple, objects)))


_ITEM, _SENDER, _FILE = (
    _Objects(ITEM, FIELDS),
    _Objects(SENDER, SENDER_FIELDS),
    _Objects(FILE, FILE_FIELDS),
)


class _Field:
    """A field of the messages, or what is in it.

    :param name: its name
    :param values: its value in each message
    :param lists: the lists whose items are read, if not the values themselves
    """

    def __init__(
        self, name: str, values: Sequence[Any], lists: Sequence[Sequence[Any] | None] | None = None
    ) -> None:
        self.name = name
        self.values = values
        self._lists = lists

    @cached_property
    def rows(self) -> Sequence[int]:
        """The row of each of what is read."""
        if self._lists is None:
            return range(len(self.values))
        return [row for row, items in enumerate(self._lists) if items for _ in items]


class Columns:
    """The columns of a page's messages, by our names, without `extra`.

    :param items: the items of the listing: records, dictionaries, or whatever else was sent
    :param names: the names of the records' unknown fields
    :param fields: the fields that the records have before these, and that are read
    """

    def __init__(
        self, items: Sequence[Any], names: Sequence[str] = (), fields: Fields = FIELDS
    ) -> None:
        import msgspec

        self._fields = fields
        self.items = items
        self.extras: dict[int, dict[str, Any]] = {}
        """What doesn't fit the columns, by row."""
        self.layouts: set[tuple[str, ...]] = set()
        """The names in each of the dictionaries."""
        self.repaired: set[int] = set()
        """The rows whose text had to be mended (R21)."""
        self.is_plain = True
        """Whether Arrow's reader can read pages like this one."""
        self.odd: set[str] = set()
        """The fields of which it can't read a value, but for odd text."""
        self.arrays: dict[str, pa.Array] = {}
        for (name, column, kind), given in zip(fields, self._values(names), strict=True):
            values, types = given, set(map(type, given))
            if msgspec.UnsetType in types:
                values = [None if value is msgspec.UNSET else value for value in given]
                types = types - {msgspec.UnsetType} | {_NONE}
            field = _Field(name, values)
            if kind == "sender":
                self._read_senders(field)
            elif kind == "files":
                self.arrays[column] = self._files(field, types)
            elif kind == "json":
                self.arrays[column] = self._json(field)
            elif kind in {"texts", "ints"}:
                self.arrays[column] = self._lists(kind, field, types)
            else:
                self.arrays[column] = self._array(kind, values, field, types)

    def item(self, row: int) -> Any:
        """Return a message as it was received, but with the manual's names (R42)."""
        return restore_names(as_received(self.items[row]))

    def _values(self, names: Sequence[str]) -> Sequence[Sequence[Any]]:
        """Return the values of each field in all messages; keep what is unknown."""
        from msgspec import UNSET, Struct
        from msgspec.structs import astuple

        known = len(self._fields)
        end = known + len(names)
        if not self.items:
            return [()] * known
        values: Sequence[Sequence[Any]]
        if all(isinstance(item, Struct) for item in self.items):
            # By field: a tuple of each record takes longer.
            places = type(self.items[0]).__struct_fields__[:end]
            values = [list(map(attrgetter(place), self.items)) for place in places]
        else:
            absent = (UNSET,) * len(names)
            rows = [
                astuple(item)[:end]
                if isinstance(item, Struct)
                else (*self._values_of(row, item), *absent)
                for row, item in enumerate(self.items)
            ]
            values = list(zip(*rows, strict=True))
        self._keep_unknown(dict(zip(names, values[known:], strict=True)))
        self.is_plain = self.is_plain and not self.extras
        return values[:known]

    def _keep_unknown(self, values: dict[str, Sequence[Any]]) -> None:
        """Keep the values of unknown fields, by name."""
        from msgspec import UNSET

        absent = (UNSET,) * len(values)
        for row, given in enumerate(zip(*values.values(), strict=True)):
            if given == absent:
                continue
            extra = dict(zip(values, given, strict=True))
            if UNSET in given:
                extra = {name: value for name, value in extra.items() if value is not UNSET}
            self.extras[row] = extra

    def _values_of(self, row: int, item: Any) -> tuple[Any, ...]:
        """Return the values of a message that is no record."""
        if type(item) is not dict:
            self.is_plain = False
            item = {}
        given = tuple(item)
        self.layouts.add(given)
        names, unknown = _ITEM.layout(given)
        if names is not None:
            self.is_plain = False
            item = dict(zip(names, item.values(), strict=True))
        if unknown:
            self.extras[row] = {name: item[name] for name in unknown}
        return tuple(map(item.get, _NAMES))

    def _keep(self, field: _Field, place: int) -> None:
        """Keep a field's value of a row, since not all of it fits."""
        row = field.rows[place]
        extra = {**self.extras.get(row, {}), field.name: field.values[row]}
        self.extras[row] = dict(sorted(extra.items()))
        self._note(field)

    def _note(self, field: _Field) -> None:
        """Note that a message's field is none that Arrow can read."""
        self.is_plain = False
        self.odd.add(field.name)

    def _converted(self, kind: str, values: Sequence[Any], field: _Field) -> list[Any]:
        """Return values converted one by one; keep those that don't fit."""
        usual = {_NONE} if kind in {"texts", "ints"} else _USUAL[kind]
        return [
            value if type(value) in usual else self._convert(kind, value, field, place)
            for place, value in enumerate(values)
        ]

    def _convert(self, kind: str, value: Any, field: _Field, place: int) -> Any:
        self._note(field)
        try:
            return convert(kind, value)
        except UnfitError:
            self._keep(field, place)
            return None

    # -- plain values -----------------------------------------------------------------------

    def _array(
        self, kind: str, values: Sequence[Any], field: _Field, types: set[type] | None = None
    ) -> pa.Array:
        import pyarrow as pa

        types = set(map(type, values)) if types is None else types
        if types <= {_NONE}:
            return pa.nulls(len(values), arrow_type(kind))
        if kind == "date":
            return self._dates(values, types, field)
        has_nulls = _NONE in types
        if not types <= _USUAL[kind]:
            values, has_nulls = self._converted(kind, values, field), True
        if kind == "int":
            return self._ints(values, has_nulls, field)
        if kind == "text":
            return self._texts(values, has_nulls, field)
        return bool_array(values, has_nulls)

    def _ints(self, values: Sequence[int | None], has_nulls: bool, field: _Field) -> pa.Array:
        try:
            return int64_array(values, has_nulls)
        except OverflowError:
            fitting = [
                None if value is None else self._convert("int", value, field, place)
                for place, value in enumerate(values)
            ]
            return int64_array(fitting)

    def _texts(self, values: Sequence[str | None], has_nulls: bool, field: _Field) -> pa.Array:
        def mended(place: int) -> str:
            self.repaired.add(field.rows[place])
            self.is_plain = False
            return mend_text(values[place] or "")

        return text_array(values, has_nulls, mended)

    def _dates(self, values: Sequence[Any], types: set[type], field: _Field) -> pa.Array:
        near: Sequence[str | None] = values
        texts = [value for value in values if value is not None] if _NONE in types else values
        if not (types <= _USUAL["date"] and _is_near(min(texts)) and _is_near(max(texts))):
            near = [value if type(value) is str and _is_near(value) else None for value in values]
        moments = _moments(near)
        if moments is None:
            near = [text if text and _USUAL_DATE.fullmatch(text) else None for text in near]
            moments = _moments(near)
        if moments is not None and near is values:
            return moments
        numbers: list[int | None] = [None] * len(values)
        if moments is not None:
            numbers[:] = int64_list(moments)
        for place, value in enumerate(values):
            if value is not None and (moments is None or near[place] is None):
                moment = self._convert("date", value, field, place)
                numbers[place] = None if moment is None else to_microseconds(moment)
        return int64_array(numbers).view(arrow_type("date"))

    def _json(self, field: _Field) -> pa.Array:
        import pyarrow as pa

        values = field.values
        rows = [row for row, value in enumerate(values) if value is not None]
        if not rows:
            return pa.nulls(len(values), pa.string())
        self.is_plain = False
        self.odd.add(field.name)
        texts: list[str | None] = [None] * len(values)
        for row, text in zip(rows, json_texts([values[row] for row in rows]), strict=True):
            texts[row] = text
        return text_array(texts)

    # -- lists and objects --------------------------------------------------------------------

    def _lists(self, kind: str, field: _Field, types: set[type]) -> pa.Array:
        import pyarrow as pa

        lists, part = field.values, kind.removesuffix("s")
        if types <= {_NONE}:
            return pa.nulls(len(lists), arrow_type(kind))
        # If one item doesn't fit, the list doesn't.
        if not (types <= _USUAL[kind] and _all_fit(part, _flat(lists))):
            lists = self._converted(kind, lists, field)
        inner = self._array(part, _flat(lists), _Field(field.name, field.values, lists))
        return list_array(arrow_type(kind), lists, inner)

    def _files(self, field: _Field, types: set[type]) -> pa.Array:
        import pyarrow as pa

        lists: Sequence[list[Any] | None] = field.values
        if types <= {_NONE}:
            return pa.nulls(len(lists), arrow_type("files"))
        if not (types <= {list, _NONE} and _are_plain(_FILE, _flat(lists))):
            lists = [
                files if files is None else self._known_files(files, field, row)
                for row, files in enumerate(lists)
            ]
        flat = _flat(lists)
        inner = _Field(field.name, field.values, lists)
        parts = [
            self._array(kind, [None if file is None else file.get(name) for file in flat], inner)
            for name, _, kind in FILE_FIELDS
        ]
        of_files = arrow_type("files")
        return list_array(of_files, lists, struct_array(of_files.value_type, flat, parts))

    def _known_files(self, files: Any, field: _Field, row: int) -> list[Any]:
        """Return the files of a message that are objects; any others are null (R17)."""
        if type(files) is not list:
            self._keep(field, row)
            return [None]
        known = list(files)
        for place, file in enumerate(files):
            if type(file) is dict:
                names, unknown = _FILE.layout(tuple(file))
                if names is not None:
                    self._note(field)
                    files[place] = known[place] = dict(zip(names, file.values(), strict=True))
                if unknown:
                    self._keep(field, row)
            elif file is not None:
                known[place] = None
                self._keep(field, row)
        return known

    def _read_senders(self, field: _Field) -> None:
        senders = field.values
        if not _are_plain(_SENDER, senders):
            values = list(senders)
            field = _Field(field.name, values)
            senders = [self._known_sender(row, field, values) for row in range(len(values))]
        for name, column, kind in SENDER_FIELDS:
            parts = [None if sender is None else sender.get(name) for sender in senders]
            self.arrays[column] = self._array(kind, parts, field)

    def _known_sender(self, row: int, field: _Field, values: list[Any]) -> dict[str, Any] | None:
        """Return the sender of a message as an object; null if it is anything but its address."""
        sender = values[row]
        if type(sender) is dict:
            names, unknown = _SENDER.layout(tuple(sender))
            if names is not None:
                self._note(field)
                sender = dict(zip(names, sender.values(), strict=True))
                values[row] = sender
            if unknown:
                self._keep(field, row)
            return sender
        if sender is None:
            return None
        self._note(field)
        if type(sender) is str:
            return {"Address": sender}
        self._keep(field, row)
        return None


def _is_near(text: str) -> bool:
    """Whether a date is one that Arrow reads correctly as nanoseconds, whatever its zone."""
    return _FIRST_DATE <= text < _LAST_DATE


def _moments(texts: Sequence[str | None]) -> pa.Array | None:
    """Return dates truncated to microseconds; None if Arrow can't read all of them."""
    import pyarrow as pa

    for zone in ("UTC", None):
        try:
            # Nanoseconds, for dates with 7 or 9 fractional digits.
            exact = text_array(texts).cast(pa.timestamp("ns", tz=zone))
        except (pa.ArrowInvalid, UnicodeEncodeError):
            continue
        return exact.cast(pa.timestamp("us", tz=zone), safe=False).view(arrow_type("date"))
    return None


def _are_plain(kind: _Objects, objects: Sequence[Any]) -> bool:
    """Whether values are null or objects with no other than known fields."""
    if not set(map(type, objects)) <= {dict, _NONE}:
        return False
    return kind.are_plain(filter(None, objects))


def _flat(lists: Sequence[Sequence[Any] | None]) -> list[Any]:
    """Return the items of all lists."""
    return list(chain.from_iterable(filter(None, lists)))


def _all_fit(kind: str, values: Sequence[Any]) -> bool:
    """Whether values need no conversion."""
    if not set(map(type, values)) <= _USUAL[kind]:
        return False
    return kind != "int" or all(value is None or -(2**63) <= value < 2**63 for value in values)
