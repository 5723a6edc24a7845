"""The open points of the API's contract, and the tests that show them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

OPEN_POINTS = range(1, 24)


def points_of(docstring: str) -> set[int]:
    """The open points that a requirement names: R7, or R1 to R6."""
    points = {int(number) for number in re.findall(r"\bR(\d+)\b", docstring)}
    for first, last in re.findall(r"\bR(\d+) to R(\d+)\b", docstring):
        points.update(range(int(first), int(last) + 1))
    return points


def points_shown() -> dict[int, list[str]]:
    """For each open point, the tests whose requirement names it."""
    found: dict[int, list[str]] = {point: [] for point in OPEN_POINTS}
    for path in sorted(Path(__file__).parent.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for point in points_of(ast.get_docstring(node) or "") & found.keys():
                    if node.name.startswith("test_") and path.name != Path(__file__).name:
                        found[point].append(f"{path.stem}::{node.name}")
    return found


def test_every_open_point_is_shown_by_a_test() -> None:
    """Whatever the manual leaves open is shown by a test that names it (`-s` lists them)."""
    found = points_shown()

    for point, names in found.items():
        print(f"R{point}: {', '.join(names)}")  # noqa: T201 - the list is what is asked for
    assert [point for point, names in found.items() if not names] == []
