"""Parse messages into records, each field in a place of its own: faster than dictionaries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from airflow_provider_r7mail.client.fields import FIELDS


class Records:
    """Records for messages with the manual's fields, and unknown ones of some names.

    :param names: the names of the unknown fields
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        import msgspec

        self.names: Sequence[str] = sorted(names)
        known = (name for name, _, _ in FIELDS)
        record = msgspec.defstruct(
            "Record",
            [
                (f"field_{number}", Any, msgspec.field(name=name, default=msgspec.UNSET))
                for number, name in enumerate((*known, *self.names))
            ],
            forbid_unknown_fields=True,
            gc=False,
        )
        items = list[record]  # type: ignore[valid-type]
        listing = msgspec.defstruct("Listing", [("Items", items), ("Count", Any, msgspec.UNSET)])
        self._read_listing = msgspec.json.Decoder(listing).decode
        self._read_items = msgspec.json.Decoder(items).decode

    def listing(self, body: bytes) -> dict[str, Any]:
        """Parse a listing.

        :raises MsgspecError: it isn't JSON, or a message has other fields
        :raises ValueError: a field of the listing may have a name in another case (R42)
        """
        import msgspec

        listing: Any = self._read_listing(body)
        if listing.Count is not msgspec.UNSET:
            return {"Items": listing.Items, "Count": listing.Count}
        if b'"count"' in body.lower():
            raise ValueError("no Count")
        return {"Items": listing.Items}

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
