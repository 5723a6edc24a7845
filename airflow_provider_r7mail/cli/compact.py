"""``r7mail compact``: make one window of many small ones, or merge files of Iceberg tables."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from airflow_provider_r7mail.cli.console import fail, make_table
from airflow_provider_r7mail.cli.iceberg import (
    Catalog,
    Format,
    Namespace,
    TableFormat,
    iceberg_target,
)
from airflow_provider_r7mail.cli.paths import object_path

if TYPE_CHECKING:
    from airflow_provider_r7mail.lake.compaction import Outcome
    from airflow_provider_r7mail.lake.upkeep import TableUpkeep


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
        float, typer.Option(min=0, help="Only windows that ended at least this many days ago.")
    ] = 35,
    into: Annotated[Span, typer.Option(help="What to make one window of, in UTC.")] = Span.MONTH,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, and change nothing.")
    ] = False,
    table_format: Format = TableFormat.PARQUET,
    catalog: Catalog = None,
    namespace: Namespace = None,
    keep_snapshots_days: Annotated[
        float, typer.Option(min=0, help="With Iceberg, how long to keep snapshots.")
    ] = 7,
    orphans_after_days: Annotated[
        float,
        typer.Option(
            min=1,
            help="With Iceberg, how old a file that no snapshot needs must be to be removed: "
            "longer than a run.",
        ),
    ] = 3,
) -> None:
    """Make one window of the many windows of a past month, so that readers open fewer files.

    Works on the tables alone, without the mail server, for all mailboxes below the path. Windows
    that are unfinished, damaged or unlike their neighbours are left alone. If it is killed, run it
    again: nothing is lost, and it goes on.

    With Iceberg, small files of each past day and manifests are merged instead, old snapshots are
    expired, and files that none needs are removed.

    The exit code is 1 if a window was left alone because its files are not what its manifest says,
    or if there are no tables.
    """
    from airflow_provider_r7mail.exceptions import R7MailError  # noqa: PLC0415

    try:
        from airflow_provider_r7mail.lake.compaction import (  # noqa: PLC0415
            compact_folders,
            compact_job,
        )
        from airflow_provider_r7mail.lake.inventory import find_folders  # noqa: PLC0415
        from airflow_provider_r7mail.lake.upkeep import keep_up, make_upkeep  # noqa: PLC0415

        root = object_path(output, "--output")
        target = iceberg_target(root, table_format, catalog, namespace)
        if target is not None:
            if folder is not None:
                fail("--folder: leave it out: a file of an Iceberg table has rows of all folders.")
            upkeep = make_upkeep(older_than_days, keep_snapshots_days, orphans_after_days)
            _show_tables(keep_up(target, root, replace(upkeep, dry_run=dry_run)))
            return
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


def _show_tables(tables: list[TableUpkeep]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415

    if not tables:
        fail("There are no tables in the namespace yet. Give the --namespace of the extracts.")
    console = Console(highlight=False)
    shown = make_table("table", "days", "files", "became", "manifests", "snapshots", "orphans")
    for done in tables:
        numbers = done.days, done.files, done.into, done.manifests, done.snapshots, done.orphans
        shown.add_row(done.table, *(f"{number:,}" for number in numbers))
    console.print(shown)
    for done in tables:
        for left in done.left:
            console.print(f"left alone: {done.table}: {escape(left)}", soft_wrap=True)


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
        console.print(f"Removed leftover windows of an earlier compaction: {outcome.removed:,}.")
