"""Make Arrow arrays of Python values without importing pandas.

They are made from buffers: `pa.array`, `pa.scalar` and compute functions given a Python value
import pandas to inspect it, which takes half a second and 40 MB.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.client.dates import to_microseconds

if TYPE_CHECKING:
    import pyarrow as pa

_DIGITS = b"01".ljust(256, b"1")


def int64_array(values: Sequence[int | None], has_nulls: bool = True) -> pa.Array:
    """Return the numbers as an array.

    :param has_nulls: whether any may be null
    :raises OverflowError: one has more than 64 bits
    """
    import pyarrow as pa

    validity = _validity(values) if has_nulls else None
    filled: Any = values if validity is None else [value or 0 for value in values]
    numbers = array("q", filled)
    return pa.Array.from_buffers(pa.int64(), len(numbers), [validity, pa.py_buffer(numbers)])


def int64_list(numbers: pa.Array) -> Sequence[int | None]:
    """Return the values of an array of an 8-byte type as numbers."""
    import pyarrow as pa

    if numbers.null_count or not len(numbers):
        found: Sequence[int | None] = numbers.view(pa.int64()).to_pylist()
        return found
    start = numbers.offset
    return memoryview(numbers.buffers()[1]).cast("q")[start : start + len(numbers)].tolist()


def bool_array(values: Sequence[bool | None], has_nulls: bool = True) -> pa.Array:
    """Return the values as an array.

    :param has_nulls: whether any may be null
    """
    import pyarrow as pa

    validity = _validity(values) if has_nulls else None
    flags: Any = values if validity is None else map(bool, values)
    return pa.Array.from_buffers(pa.bool_(), len(values), [validity, _bits(bytes(flags))])


def repeated_moment(moment: datetime, count: int) -> pa.Array:
    """Return an array that repeats a date."""
    import pyarrow as pa

    return int64_array([to_microseconds(moment)] * count).cast(pa.timestamp("us", tz="UTC"))


def text_array(
    texts: Sequence[str | None],
    has_nulls: bool = True,
    mended: Callable[[int], str] | None = None,
) -> pa.Array:
    """Return the texts as an array.

    :param has_nulls: whether any may be null
    :param mended: returns what to take in place of a text with a lone surrogate, by its index
    :raises UnicodeEncodeError: one has a lone surrogate, and `mended` is None
    """
    import pyarrow as pa

    validity = _validity(texts) if has_nulls else None
    filled: Any = texts if validity is None else [text or "" for text in texts]
    if all(map(str.isascii, filled)):
        data, lengths = "".join(filled).encode(), map(len, filled)
    else:
        encoded = []
        for index, text in enumerate(filled):
            try:
                encoded.append(text.encode())
            except UnicodeEncodeError:
                if mended is None:
                    raise
                encoded.append(mended(index).encode())
        data, lengths = b"".join(encoded), map(len, encoded)
    return pa.Array.from_buffers(
        pa.string(), len(texts), [validity, _offsets(lengths), pa.py_buffer(data)]
    )


def list_array(
    kind: pa.ListType, lists: Sequence[Sequence[object] | None], flat: pa.Array
) -> pa.Array:
    """Return an array of lists.

    :param lists: the lists, of which only the lengths count
    :param flat: what is in them
    """
    import pyarrow as pa

    offsets = _offsets([len(items) if items else 0 for items in lists])
    return pa.Array.from_buffers(kind, len(lists), [_validity(lists), offsets], children=[flat])


def struct_array(
    kind: pa.StructType, objects: Sequence[object | None], parts: Sequence[pa.Array]
) -> pa.Array:
    """Return an array of objects.

    :param objects: the objects, of which only counts whether they are null
    :param parts: the parts of each
    """
    import pyarrow as pa

    return pa.Array.from_buffers(kind, len(objects), [_validity(objects)], children=list(parts))


def _offsets(lengths: Iterable[int]) -> pa.Buffer:
    import pyarrow as pa

    return pa.py_buffer(array("i", accumulate(lengths, initial=0)))


def _validity(values: Sequence[object]) -> pa.Buffer | None:
    """Return the bits that say which values are not null; None if all are."""
    if type(None) not in set(map(type, values)):
        return None
    return _bits(bytes([value is not None for value in values]))


def _bits(flags: bytes) -> pa.Buffer:
    """Return flags, each a byte, as bits."""
    import pyarrow as pa

    size = (len(flags) + 7) // 8
    return pa.py_buffer(int(flags.translate(_DIGITS)[::-1] or b"0", 2).to_bytes(size, "little"))


def zeros(kind: pa.DataType, count: int) -> pa.Array:
    """Return an array of zeros of an 8-byte type."""
    import pyarrow as pa

    return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(bytes(8 * count))])


def one_batch(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Concatenate batches with one schema, at least one of them, as pyarrow 19's concat_batches."""
    import pyarrow as pa

    rows = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return rows[0] if rows else batches[0]
