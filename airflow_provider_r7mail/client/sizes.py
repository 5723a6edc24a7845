"""Compare the Size that a listing gives for an attachment with its real size (R26). No I/O.

A mail store knows an attachment as the message has it, in base64, so the listed size may be that of
the encoded file: a third larger, or more with line ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

SizeFit = Literal["equal", "encoded", "rounded", "different"]
"""How a listed size relates to the real one."""

LINE_CHARACTERS = 76
"""Length of a base64 line in a message (RFC 2045)."""

_UNITS = (1_000, 1_024)


def stated(size: int | None) -> int | None:
    """Return a listed size; None if it is missing, or 0 or less: .NET's "not set"."""
    return size if size is not None and size > 0 else None


def size_fit(listed: int, real: int) -> SizeFit:
    """Return how a listed size relates to the real one.

    `encoded`: it is the size of the file in base64, with or without line ends. `rounded`: it is
    one of these, in whole kilobytes.
    """
    if listed == real:
        return "equal"
    possible = [real, *_encoded(real)]
    if listed in possible:
        return "encoded"
    units = [unit for unit in _UNITS if listed > 0 and listed % unit == 0]
    if any(abs(listed - size) < unit for unit in units for size in possible):
        return "rounded"
    return "different"


def _encoded(real: int) -> Iterator[int]:
    """Yield the sizes in base64 of a file: with no line ends, with LF and CRLF, at the end too."""
    characters = (real + 2) // 3 * 4
    lines = -(-characters // LINE_CHARACTERS)
    yield characters
    for line_end in (1, 2):
        yield characters + line_end * (lines - 1)
        yield characters + line_end * lines
    yield characters + 1
    yield characters + 2


def least_size(listed: int) -> int:
    """Return the smallest real size that a listed one may mean."""
    # At most 78 octets are 57 bytes of the file, and the last line may hold 3 fewer. No unit that
    # sizes are rounded up to is larger than 1,024.
    return max(0, (listed - max(_UNITS)) * 57 // 78 - 4)
