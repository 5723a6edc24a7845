"""What the commands share: errors, tables, and the emulator. No Airflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from airflow_provider_r7mail.emulator import Emulator


EMULATOR_PORT = 8025


def fail(reason: str, *, code: int = 1) -> NoReturn:
    """Exit with a one-line error.

    :param reason: what is wrong, and what to do
    :param code: the exit code
    """
    typer.secho(f"Error: {' '.join(reason.split())}", fg="red", err=True)
    raise typer.Exit(code)


def make_table(*columns: str, title: str | None = None) -> Table:
    """Return a table with text in the first column and numbers in the others."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    return table


def import_emulator() -> type[Emulator]:
    """Import the emulator, which is an optional dependency."""
    try:
        from airflow_provider_r7mail.emulator import Emulator  # noqa: PLC0415
    except ModuleNotFoundError as error:
        fail(str(error))
    return Emulator
