"""Sphinx directives that generate content from the package, so that it can't go out of date.

Names, types, defaults and imports come from the package. A page adds descriptions in its language,
one line each: `name: description`. A name without a description, or the reverse, fails the build.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from rooms import drawing, rooms
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typer.main import get_command
from typer.testing import CliRunner

from airflow_provider_r7mail import get_provider_info
from airflow_provider_r7mail.cli.commands import app as r7mail
from airflow_provider_r7mail.client.fields import FIELDS, FILE_FIELDS
from airflow_provider_r7mail.lake.schema import schema

Rows = dict[str, list[str]]


def columns(table: str) -> Rows:
    """Return the columns of a table: their type and field in the API."""
    fields = FIELDS if table == "messages" else FILE_FIELDS if table == "attachments" else ()
    theirs = {column: f"`{name}`" for name, column, _ in fields}
    if table == "messages":
        theirs |= {"from_name": "`From.Name`", "from_address": "`From.Address`"}
    return {
        field.name: [
            f"`{field.type}`" + ("" if field.nullable else ", not null"),
            theirs.get(field.name, ""),
        ]
        for field in schema(table)
    }


def connection_fields(_: str = "") -> Rows:
    """Return the connection fields added to Airflow's own: their type and default."""
    [connection] = get_provider_info()["connection-types"]
    return {
        name: [
            next(kind for kind in field["schema"]["type"] if kind != "null"),
            f"`{field['schema']['default']}`" if "default" in field["schema"] else "",
        ]
        for name, field in connection["conn-fields"].items()
    }


class Described(SphinxDirective):
    """Something generated, with the page's description of each of its parts."""

    has_content = True

    def words(self, names: Collection[str]) -> dict[str, str]:
        """Return the descriptions by name, in the page's order."""
        words = dict(self._lines())
        if words.keys() != set(names):
            raise self.error(
                f"{self.name}: not described: {sorted(set(names) - words.keys())}; "
                f"unknown: {sorted(words.keys() - set(names))}"
            )
        return words

    def _lines(self) -> Iterable[tuple[str, str]]:
        for line in self.content:
            if line.strip():
                name, _, text = line.partition(":")
                yield name.strip(), text.strip()


class Generated(Described):
    """A table of `rows` with the page's descriptions; `:head:` sets the headings."""

    required_arguments = 0
    optional_arguments = 1
    option_spec: ClassVar[dict[str, Callable[[str], Any]] | None] = {
        "head": directives.unchanged_required
    }
    rows: Callable[[str], Rows]

    def run(self) -> list[nodes.Node]:
        """Build the table."""
        rows = type(self).rows(*self.arguments)
        words = self.words(rows)
        head = [title.strip() for title in self.options["head"].split("|")]
        lines = [head, ["---"] * len(head)]
        lines += [[f"`{name}`", *facts, words[name]] for name, facts in rows.items()]
        return self.parse_text_to_nodes("\n".join(f"| {' | '.join(line)} |" for line in lines))


class Columns(Generated):
    """`{r7mail-columns} messages`."""

    rows = staticmethod(columns)


class ConnectionFields(Generated):
    """`{r7mail-connection-fields}`."""

    rows = staticmethod(connection_fields)


class Rooms(Described):
    """`{r7mail-rooms}`: a drawing of the package's folders and who imports whom.

    From top to bottom in the page's order; an import that goes up fails the build.
    """

    def run(self) -> list[nodes.Node]:
        """Draw the rooms."""
        found = rooms()
        words = self.words(found)
        above: set[str] = set()
        for name in words:
            above.add(name)
            if wrong := found[name].imports & above:
                raise self.error(f"{self.name}: {name} imports from {sorted(wrong)} above it")
        return [nodes.raw("", drawing(found, words), format="html")]


class Commands(SphinxDirective):
    """The help text of each `r7mail` command."""

    def run(self) -> list[nodes.Node]:
        """Render the help as in a terminal."""
        terminal = CliRunner(env={"COLUMNS": "88", "TERM": "dumb", "NO_COLOR": "1"})
        made: list[nodes.Node] = []
        for name in get_command(r7mail).commands:  # type: ignore[attr-defined]
            said = terminal.invoke(r7mail, [name, "--help"], prog_name="r7mail").output
            text = "\n".join(line.rstrip() for line in said.strip().splitlines())
            made.append(nodes.literal_block(text, text, language="text"))
        return made


class Measured(SphinxDirective):
    """`{r7mail-measured} performance.md`: the figures that a benchmark wrote to that file.

    The content is shown if there is no such file yet.
    """

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Include the file, with its headings as bold text rather than sections."""
        page = Path(__file__).with_name(self.arguments[0])
        self.env.note_dependency(page)
        text = page.read_text(encoding="utf-8") if page.exists() else "\n".join(self.content)
        text = re.sub(r"^# .*\n", "", text)
        return self.parse_text_to_nodes(re.sub(r"^#+ (.*)$", r"**\1**", text, flags=re.MULTILINE))


def _no_module_docstring(app: Sphinx, what: str, name: str, thing: Any, *rest: Any) -> None:
    """Leave out module docstrings: they are for developers."""
    if what == "module":
        lines: list[str] = rest[-1]
        lines.clear()


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives with Sphinx."""
    app.add_directive("r7mail-columns", Columns)
    app.add_directive("r7mail-connection-fields", ConnectionFields)
    app.add_directive("r7mail-rooms", Rooms)
    app.add_directive("r7mail-commands", Commands)
    app.add_directive("r7mail-measured", Measured)
    app.connect("autodoc-process-docstring", _no_module_docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
