"""Parse messages into records, each field in a place of its own: faster than dictionaries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from airflow_provider_r7mail.client.fields import (
    ENVELOPE,
    FIELDS,
    FILE_FIELDS,
    LISTING,
    SENDER_FIELDS,
    Fields,
)


def record_type(names: Iterable[str], spelling: Mapping[str, str]) -> type:
    """Return a type for messages with the manual's fields, and unknown ones of some names.

    :param names: the names of the unknown fields
    :param spelling: how the server writes known names that it doesn't write as the manual (R42)
    """
    known = [(spelling.get(name, name), Any) for name, _, _ in FIELDS]
    return _type([*known, *((name, Any) for name in sorted(names))])


def partial_type(fields: Fields, names: Iterable[str]) -> type:
    """Return a type for messages that aren't read, but for some fields: their names are checked.

    :param fields: the fields to read, which come first
    :param names: the names of the unknown fields, which come next
    """
    import msgspec

    raw = msgspec.Raw
    sender = _type([(name, raw) for name, _, _ in SENDER_FIELDS])
    file = _type([(name, raw) for name, _, _ in FILE_FIELDS])
    types: dict[str, Any] = {
        "sender": sender | None,
        "files": list[file | None] | None,  # type: ignore[valid-type]
        # To read these takes less time than to keep where they are.
        "int": Any,
        "bool": Any,
    }
    read = [*(name for name, _, _ in fields), *sorted(names)]
    others = [(name, types.get(kind, raw)) for name, _, kind in FIELDS if name not in read]
    return _type([*((name, Any) for name in read), *others])


def _type(fields: Iterable[tuple[str, Any]]) -> type:
    """Return a type for objects with some fields, each of which may be missing."""
    import msgspec

    places = [
        (f"field_{number}", kind, msgspec.field(name=name, default=msgspec.UNSET))
        for number, (name, kind) in enumerate(fields)
    ]
    return msgspec.defstruct("Record", places, forbid_unknown_fields=True, gc=False)


class Records:
    """Parses listings, and their messages into records.

    :param record: the type of the records
    """

    def __init__(self, record: type) -> None:
        import msgspec

        items = list[record]  # type: ignore[valid-type]
        listing = msgspec.defstruct(
            "Listing",
            [(name, items if name == "Items" else Any, msgspec.UNSET) for name in ENVELOPE],
            forbid_unknown_fields=True,
        )
        self._is_as_manual = True
        self._read_as_manual = msgspec.json.Decoder(listing).decode
        self._read_listing = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
        self._read_items = msgspec.json.Decoder(items).decode

    def listing(self, body: bytes) -> dict[str, Any]:
        """Parse a listing.

        :raises MsgspecError: it isn't JSON, or a message has other fields
        """
        import msgspec

        if self._is_as_manual:
            try:
                read = msgspec.structs.asdict(self._read_as_manual(body))
            except msgspec.MsgspecError:
                pass  # the fields of the listing, or of a message
            else:
                return {name: value for name, value in read.items() if value is not msgspec.UNSET}
        raw = self._read_listing(body)
        listing = {
            name: self.items(text) if known == "Items" else msgspec.json.decode(text)
            for (name, text), known in zip(raw.items(), LISTING.spell(tuple(raw)), strict=True)
        }
        self._is_as_manual = False  # it reads the messages twice
        return listing

    def items(self, text: bytes) -> list[Any]:
        """Parse an array of messages.

        :raises MsgspecError: it isn't JSON, or a message has other fields
        """
        items: list[Any] = self._read_items(text)
        return items


def as_received(item: Any) -> Any:
    """Return what a record was made of; anything else is unchanged."""
    import msgspec

    if not isinstance(item, msgspec.Struct):
        return item
    values = zip(item.__struct_encode_fields__, msgspec.structs.astuple(item), strict=True)
    return {name: value for name, value in values if value is not msgspec.UNSET}
