"""Which cases of several parameters to test."""

from __future__ import annotations

from collections.abc import Collection
from itertools import product
from typing import Any


def in_turn(*values: Collection[Any]) -> list[tuple[Any, ...]]:
    """Return all cases of all parameters but the last, whose values take turns.

    So each of its values meets each value of the others. They are as good as all cases if the last
    parameter can go wrong with one other, not with two at once.

    :param values: each parameter's values; the last has no more of them than any other
    """
    *most, last = (list(enumerate(each)) for each in values)
    return [
        (*(value for _, value in case), last[sum(place for place, _ in case) % len(last)][1])
        for case in product(*most)
    ]
