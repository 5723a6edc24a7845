"""Parse messages into records, each field in a place of its own: faster than dictionaries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from airflow_provider_r7mail.client.fields import ENVELOPE, FIELDS


class Records:
    """Records for messages with the manual's fields, and unknown ones of some names.

    :param names: the names of the unknown fields
    :param spelling: how the server writes known names that it doesn't write as the manual (R42)
    """

    def __init__(self, names: Iterable[str], spelling: Mapping[str, str]) -> None:
        import msgspec

        def place(number: int, name: str) -> Any:
            given = spelling.get(name, name)
            return f"field_{number}", Any, msgspec.field(name=given, default=msgspec.UNSET)

        self.names: Sequence[str] = sorted(names)
        known = (name for name, _, _ in FIELDS)
        record = msgspec.defstruct(
            "Record",
            [place(number, name) for number, name in enumerate((*known, *self.names))],
            forbid_unknown_fields=True,
            gc=False,
        )
        items = list[record]  # type: ignore[valid-type]
        listing = msgspec.defstruct(
            "Listing",
            [(name, items if name == "Items" else Any, place(0, name)[2]) for name in ENVELOPE],
            # Otherwise there may be two of a name, in different cases.
            forbid_unknown_fields=bool(spelling),
        )
        self._read_listing = msgspec.json.Decoder(listing).decode
        self._read_items = msgspec.json.Decoder(items).decode

    def listing(self, body: bytes) -> dict[str, Any]:
        """Parse a listing.

        :raises MsgspecError: it isn't JSON, or a message has other fields
        :raises ValueError: a field of the listing may have a name in another case (R42)
        """
        import msgspec

        listing = msgspec.structs.asdict(self._read_listing(body))
        found = {name: value for name, value in listing.items() if value is not msgspec.UNSET}
        for name in "Items", "Count":
            if name not in found and f'"{name}"'.lower().encode() in body.lower():
                raise ValueError(f"no {name}")
        return found

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
