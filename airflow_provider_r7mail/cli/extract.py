"""``r7mail extract``: extract a window into tables, without Airflow."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

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
from airflow_provider_r7mail.cli.server import LOGIN, SERVER, Ca, Verify, client_config

if TYPE_CHECKING:
    from airflow_provider_r7mail.client.http import ClientConfig
    from airflow_provider_r7mail.lake.job import ExtractJob, Progress


class SizeMismatch(StrEnum):
    """What to do about an attachment of another size than listed (R26)."""

    RECORD = "record"
    FAIL = "fail"


def extract(
    url: Annotated[str, SERVER],
    login: Annotated[str, LOGIN],
    folder: Annotated[int, typer.Option(help="The folder's id: the API has no folder names.")],
    start: Annotated[
        str, typer.Option(help="Messages from this date on: ISO 8601, UTC unless it has an offset.")
    ],
    end: Annotated[str, typer.Option(help="Messages before this date.")],
    output: Annotated[
        str,
        typer.Option(
            help="Where to write the tables: a directory, or a URL like s3://bucket/mail."
        ),
    ],
    attachments: Annotated[
        str | None,
        typer.Option(help="Where to write the attachments. By default they are only listed."),
    ] = None,
    attachment_pattern: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Which attachments to copy: a glob such as *.xlsx or *.{xls,xlsx}, or a regular "
            "expression if it starts with ^ or ends with $. May be repeated.",
        ),
    ] = None,
    on_size_mismatch: Annotated[
        SizeMismatch,
        typer.Option(
            metavar="ACTION",
            help="What to do about an attachment that came whole, but of another size than listed: "
            "record both sizes, or fail it.",
        ),
    ] = SizeMismatch.RECORD,
    page_size: Annotated[
        int | None,
        typer.Option(help="Messages per request. By default it adapts to the server."),
    ] = None,
    max_sweep_messages: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="How many messages the folder may have on a server whose date bounds are of no "
            "use, so that the whole folder must be listed.",
        ),
    ] = 20_000,
    settle_seconds: Annotated[
        float,
        typer.Option(
            help="How long after its end the window is read at the earliest: mail takes a while "
            "to arrive."
        ),
    ] = 60,
    max_concurrency: Annotated[
        int, typer.Option(min=1, metavar="N", help="Maximum concurrent requests.")
    ] = 4,
    table_format: Format = TableFormat.PARQUET,
    catalog: Catalog = None,
    namespace: Namespace = None,
    verify: Verify = True,
    ca: Ca = None,
) -> None:
    """Extract a window of a folder into Parquet or Iceberg tables, without Airflow.

    The same engine as R7MailToParquetOperator: every message is there exactly once, a second run of
    a window replaces the first, and files appear only when they are complete.

    The password is read from R7MAIL_PASSWORD, or prompted for. It is not an option, because other
    users of a machine can see the arguments of a process.
    """
    from airflow_provider_r7mail.client.models import MessageFilter  # noqa: PLC0415
    from airflow_provider_r7mail.exceptions import R7MailError  # noqa: PLC0415

    try:
        from airflow_provider_r7mail.lake.job import (  # noqa: PLC0415
            ExtractJob,
            seconds_to_settle,
        )

        root = object_path(output, "--output")
        job = ExtractJob(
            folder=folder,
            criteria=MessageFilter.build(start=start, end=end),
            output=root,
            attachments=None if attachments is None else object_path(attachments, "--attachments"),
            page_size=page_size,
            max_sweep_messages=max_sweep_messages,
            attachment_pattern=attachment_pattern,
            on_size_mismatch=on_size_mismatch.value,
            iceberg=iceberg_target(root, table_format, catalog, namespace),
        )
        job.check()
        _settle(seconds_to_settle(job.criteria.window, settle_seconds))
        config = client_config(url, login, verify=verify, ca=ca, max_concurrency=max_concurrency)
        manifest = _run_extract(config, job)
    except R7MailError as error:
        fail(str(error))
    _show_manifest(manifest)


def _settle(seconds: float) -> None:
    if seconds > 0:
        typer.echo(
            f"Waiting {seconds:.0f} s, until --settle-seconds after the window's end, for mail on "
            "its way. Give an earlier --end to extract at once.",
            err=True,
        )
        time.sleep(seconds)


def _run_extract(config: ClientConfig, job: ExtractJob) -> dict[str, Any]:
    from rich.console import Console  # noqa: PLC0415
    from rich.logging import RichHandler  # noqa: PLC0415
    from rich.progress import Progress as Bar  # noqa: PLC0415
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    from airflow_provider_r7mail.client.session import AsyncClient  # noqa: PLC0415
    from airflow_provider_r7mail.lake.window import extract_window  # noqa: PLC0415

    console = Console(stderr=True)
    handler = RichHandler(console=console, show_time=False, show_path=False, show_level=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    silent = not console.is_terminal
    with Bar(*columns, console=console, transient=True, disable=silent) as bar:
        shown = bar.add_task(f"Extracting {job.criteria.window.label()}", total=None)

        def show(progress: Progress) -> None:
            bar.update(
                shown,
                description=f"Pages: {progress.pages}, messages: {progress.rows}, attachments: "
                f"{progress.attachments}, {progress.bytes_read / 1e6:.1f} MB",
            )

        async def connected() -> dict[str, Any]:
            async with AsyncClient(config) as client:
                return await extract_window(client, job, show)

        return asyncio.run(connected())


def _show_manifest(manifest: Mapping[str, Any]) -> None:
    from rich.console import Console  # noqa: PLC0415

    console = Console()
    window = manifest["window"]
    table = make_table("table", "rows", "bytes", title=f"{window['start']} to {window['end']}")
    written = manifest.get("files") or manifest["tables"]
    for file in written:
        table.add_row(file["table"], f"{file['rows']:,}", f"{file['bytes']:,}")
    console.print(table)
    files = ", ".join(f"{count} {name}" for name, count in manifest["attachments"].items())
    console.print(
        f"Messages from folder {manifest['folder_id']}: {manifest['messages']:,}, in "
        f"{manifest['seconds']:.1f} s. Requests: {manifest['requests']}, retries: "
        f"{manifest['retries']}.",
        f"Attachments: {files or 'none'}.",
        sep="\n",
        highlight=False,
    )
    for file in written:
        place = file.get("path") or file["identifier"]
        console.print(place, soft_wrap=True, highlight=False, markup=False)
