"""``r7mail compact``: make one window of many small ones of the past."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from airflow_provider_r7mail.cli.console import fail, make_table
from airflow_provider_r7mail.cli.extract import object_path

if TYPE_CHECKING:
    from airflow_provider_r7mail.lake.compaction import Outcome


class Span(StrEnum):
    """What to make one window of."""

    MONTH = "month"
    DAY = "day"


def compact(
    output: Annotated[
        str, typer.Option(help="Where the tables are: a directory, or a URL like s3://bucket/mail.")
    ],
    folder: Annotated[
        int | None, typer.Option(help="Only the folder with this id. By default, all.")
    ] = None,
    older_than_days: Annotated[
        float, typer.Option(min=0, help="Only windows that ended this many days ago.")
    ] = 35,
    into: Annotated[Span, typer.Option(help="What to make one window of, in UTC.")] = Span.MONTH,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, and change nothing.")
    ] = False,
) -> None:
    """Make one window of the many windows of a past month, so that readers open fewer files.

    Works on the tables alone, without the mail server, for all mailboxes below the path. Windows
    that are unfinished, damaged or unlike their neighbours are left alone. If it is killed, run it
    again: nothing is lost, and it goes on.

    The exit code is 1 if a window was left alone because its files are not what its manifest says,
    or if there are no tables.
    """
    from airflow_provider_r7mail.exceptions import R7MailError  # noqa: PLC0415

    try:
        from airflow_provider_r7mail.lake.compaction import (  # noqa: PLC0415
            compact_folders,
            compact_job,
            find_folders,
        )

        root = object_path(output, "--output")
        job = compact_job(root, older_than_days, into, datetime.now(UTC), dry_run=dry_run)
        outcomes = list(compact_folders(job, find_folders(root, folder)))
    except (R7MailError, OSError) as error:
        fail(str(error))
    if not outcomes:
        which = "" if folder is None else f" of folder {folder}"
        fail(f"--output: there are no tables{which} below {output}. Give what extracts write to.")
    for outcome in outcomes:
        _show(outcome)
    if any(left.damaged for outcome in outcomes for left in outcome.left):
        typer.echo("Run r7mail audit --repair to extract damaged windows again.", err=True)
        raise typer.Exit(1)


def _show(outcome: Outcome) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415

    console = Console(highlight=False)
    title = f"mailbox {outcome.mailbox}, folder {outcome.folder}"
    if outcome.made:
        table = make_table("window", "of windows", "messages", "bytes", title=escape(title))
        for made in outcome.made:
            numbers = made.windows, made.messages, made.bytes
            table.add_row(made.window, *(f"{number:,}" for number in numbers))
        console.print(table)
    else:
        console.print(f"{escape(title)}: nothing to compact.")
    for left in outcome.left:
        console.print(f"left alone: {left.window}: {escape(left.reason)}", soft_wrap=True)
    if outcome.removed:
        console.print(f"Removed {outcome.removed:,} windows that an earlier compaction had left.")
