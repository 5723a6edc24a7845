"""Make small Arrow arrays without importing pandas.

They are made from buffers: `pa.array`, `pa.scalar` and compute functions given a Python value
import pandas to inspect it, which takes half a second and 40 MB.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from datetime import datetime
from itertools import accumulate
from typing import TYPE_CHECKING

from airflow_provider_r7mail.client.dates import to_microseconds

if TYPE_CHECKING:
    import pyarrow as pa


def int64_array(values: Sequence[int | None]) -> pa.Array:
    """Return the numbers as an array."""
    import pyarrow as pa

    numbers = array("q", [value or 0 for value in values])
    return pa.Array.from_buffers(
        pa.int64(), len(numbers), [_validity(values), pa.py_buffer(numbers)]
    )


def repeated_moment(moment: datetime, count: int) -> pa.Array:
    """Return an array that repeats a date."""
    import pyarrow as pa

    return int64_array([to_microseconds(moment)] * count).cast(pa.timestamp("us", tz="UTC"))


def text_array(texts: Sequence[str | None]) -> pa.Array:
    """Return the texts as an array."""
    import pyarrow as pa

    encoded = [b"" if text is None else text.encode() for text in texts]
    offsets = pa.py_buffer(array("i", accumulate(map(len, encoded), initial=0)))
    data = pa.py_buffer(b"".join(encoded))
    return pa.Array.from_buffers(pa.string(), len(encoded), [_validity(texts), offsets, data])


def _validity(values: Sequence[object]) -> pa.Buffer | None:
    """Return the bits that say which values are not null; None if all are."""
    import pyarrow as pa

    if None not in values:
        return None
    bits = sum(1 << place for place, value in enumerate(values) if value is not None)
    return pa.py_buffer(bits.to_bytes((len(values) + 7) // 8, "little"))


def zeros(kind: pa.DataType, count: int) -> pa.Array:
    """Return an array of zeros of an 8-byte type."""
    import pyarrow as pa

    return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(bytes(8 * count))])


def one_batch(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Concatenate batches with one schema, at least one of them, as pyarrow 19's concat_batches."""
    import pyarrow as pa

    rows = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return rows[0] if rows else batches[0]
