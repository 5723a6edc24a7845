"""What the commands share: tables, the one line of an error, a port. No Airflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from rich.table import Table


EMULATOR_PORT = 8025


def fail(reason: str, *, code: int = 1) -> NoReturn:
    """End the program with an error of one line.

    :param reason: what was wrong, and what to do
    :param code: the exit code
    """
    typer.secho(f"Error: {' '.join(reason.split())}", fg="red", err=True)
    raise typer.Exit(code)


def make_table(*columns: str, title: str | None = None) -> Table:
    """A table whose first column is text, and whose others are numbers."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    return table
