"""A drawing of the package's rooms, made from its imports: boxes and arrows as SVG."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import airflow_provider_r7mail

PACKAGE = Path(airflow_provider_r7mail.__file__).parent
# The names of the modules and folders at its top.
MODULES = {path.stem for path in PACKAGE.iterdir()}

WIDTH, MARGIN = 720, 60
LINE, PADDING, GAP = 20, 10, 36
# Characters that fit in a box.
WORDS_WIDTH, MODULES_WIDTH = 90, 84


@dataclass(slots=True)
class Room:
    """A folder of the package.

    :param modules: the names of its modules; a folder's ends with `/`
    :param imports: the other rooms that it imports from
    """

    modules: dict[str, None] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)


def rooms() -> dict[str, Room]:
    """Return the package's rooms by name."""
    found: dict[str, Room] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = _room_of(parts[0])
        room = found.setdefault(name, Room())
        module, *below = parts[1:] or parts
        if module != "__init__" and f"{module}.py" != name:
            room.modules[f"{module}/" if below else module] = None
        room.imports |= {_room_of(other) for other in _imports(path)} - {name}
    return found


def _room_of(first: str) -> str:
    """Return the room of a module, by the first part of its name in the package."""
    if (PACKAGE / first).is_dir():
        return f"{first}/"
    # Every room raises its errors, so it's below them all.
    return "exceptions.py" if first == "exceptions" else f"{PACKAGE.name}/"


def _imports(path: Path) -> Iterator[str]:
    """Yield the first part, in the package, of each module's name that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                package, first, *_ = f"{node.module}.{alias.name}".split(".")
                if package == PACKAGE.name and first in MODULES:
                    yield first


def drawing(found: Mapping[str, Room], words: Mapping[str, str]) -> str:
    """Draw the rooms from top to bottom in the order of `words`.

    An arrow is left out where the imported room is also reached over another.

    :param words: what each room is for
    """
    drawn: list[str] = []
    edges: dict[str, tuple[int, int]] = {}
    top = 1
    for name, text in words.items():
        lines = [("name", name)]
        lines += [("words", line) for line in textwrap.wrap(text, WORDS_WIDTH)]
        modules = ", ".join(found[name].modules)
        lines += [("modules", line) for line in textwrap.wrap(modules, MODULES_WIDTH)]
        bottom = top + len(lines) * LINE + 2 * PADDING
        drawn.append(f'<rect x="1" y="{top}" width="{WIDTH}" height="{bottom - top}" rx="6"/>')
        for number, (kind, line) in enumerate(lines, 1):
            y = top + PADDING + number * LINE - 5
            drawn.append(f'<text class="{kind}" x="{PADDING + 6}" y="{y}">{escape(line)}</text>')
        edges[name] = top, bottom
        top = bottom + GAP
    drawn += _arrows(found, edges)
    size = f"0 0 {WIDTH + MARGIN} {top - GAP + 1}"
    return (
        f'<div class="rooms"><svg viewBox="{size}">'
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>'
        f"{''.join(drawn)}</svg></div>"
    )


def _arrows(found: Mapping[str, Room], edges: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    order = list(edges)
    lane = WIDTH
    for name in order:
        imported = found[name].imports
        for other in sorted(imported):
            if any(other in found[between].imports for between in imported):
                continue
            (top, bottom), (start, end) = edges[name], edges[other]
            if order.index(other) == order.index(name) + 1:
                way = f"M{WIDTH // 2} {bottom}V{start}"
            else:  # past the rooms in between
                lane += 20
                way = f"M{WIDTH + 1} {(top + bottom) // 2}H{lane}V{(start + end) // 2}H{WIDTH + 1}"
            yield f'<path class="arrow" d="{way}" marker-end="url(#head)"/>'
