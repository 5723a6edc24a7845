"""``r7mail audit``: compare tables with the mail server, and repair what differs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airflow_provider_r7mail.cli.calendar import draw_calendar, make_page
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
    from airflow_provider_r7mail.lake.audit import AuditJob, Report


def audit(
    folder: Annotated[int, typer.Option(help="The folder's id: the API has no folder names.")],
    output: Annotated[
        str, typer.Option(help="Where the tables are: a directory, or a URL like s3://bucket/mail.")
    ],
    url: Annotated[str | None, SERVER] = None,
    login: Annotated[str | None, LOGIN] = None,
    start: Annotated[
        str | None, typer.Option(help="Only from this date on: ISO 8601, UTC unless it says more.")
    ] = None,
    end: Annotated[str | None, typer.Option(help="Only before this date.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Extract again what differs.")] = False,
    offline: Annotated[
        bool,
        typer.Option(
            "--offline",
            help="Check the tables alone, without the server. Needs --login only if several "
            "mailboxes have the folder.",
        ),
    ] = False,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="Compare ids instead of counts, and the files' checksums: reads all mail.",
        ),
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the report to this file.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with a calendar to this file.")
    ] = None,
    table_format: Format = TableFormat.PARQUET,
    catalog: Catalog = None,
    namespace: Namespace = None,
    verify: Verify = True,
    ca: Ca = None,
) -> None:
    """Compare tables with the mail server, and repair what differs.

    Counts messages by span, and halves a span where the numbers differ, so that a mailbox in order
    takes a few requests. Equal numbers don't prove equal mail: --deep compares ids. It never
    changes anything on the server; with --repair, windows that differ are extracted again with the
    settings that the manifests name, and mail outside of the windows gets windows of its own.

    The exit code is 0 if everything is in order, 1 if anything differs, 2 if nothing could be
    compared. The password is read from R7MAIL_PASSWORD, or prompted for, and the secret of hashes
    from R7MAIL_PRIVACY_SECRET.
    """
    from airflow_provider_r7mail.client.dates import parse_moment  # noqa: PLC0415
    from airflow_provider_r7mail.exceptions import R7MailError  # noqa: PLC0415

    if not offline and (url is None or login is None):
        fail("give --url and --login, or --offline to check the tables alone", code=2)
    if offline and repair:
        fail("--repair needs the server: leave out --offline", code=2)
    try:
        from airflow_provider_r7mail.lake.audit import AuditJob, audit_tables  # noqa: PLC0415
        from airflow_provider_r7mail.lake.ledger import find_mailbox  # noqa: PLC0415

        root = object_path(output, "--output")
        secret = os.environ.get("R7MAIL_PRIVACY_SECRET")
        job = AuditJob(
            folder=folder,
            output=root,
            mailbox=find_mailbox(root, folder, login, secret),
            start=parse_moment(start, "--start"),
            end=parse_moment(end, "--end"),
            deep=deep,
            secret=secret,
            open_path=lambda url: object_path(url, "attachments"),
            iceberg=iceberg_target(root, table_format, catalog, namespace),
        )
        if offline:
            report = audit_tables(job)
        else:
            config = client_config(url or "", login or "", verify=verify, ca=ca, code=2)
            report = _compare(config, job, repair=repair)
    except (R7MailError, OSError) as error:
        fail(str(error), code=2)
    _show(report)
    try:
        if json_file is not None:
            text = json.dumps(report.record(), ensure_ascii=False, indent=2)
            json_file.write_text(text + "\n", encoding="utf-8")
        if html is not None:
            html.write_text(make_page(report), encoding="utf-8")
    except OSError as error:
        fail(str(error), code=2)
    if not report.in_order:
        if report.windows and not repair and not offline:
            typer.echo("Run it again with --repair to extract what differs.", err=True)
        raise typer.Exit(1)


def _compare(config: ClientConfig, job: AuditJob, *, repair: bool) -> Report:
    from rich.console import Console  # noqa: PLC0415
    from rich.logging import RichHandler  # noqa: PLC0415

    from airflow_provider_r7mail.client.session import AsyncClient  # noqa: PLC0415
    from airflow_provider_r7mail.lake.audit import audit as compare  # noqa: PLC0415
    from airflow_provider_r7mail.lake.repair import repair as mend  # noqa: PLC0415

    console = Console(stderr=True)
    handler = RichHandler(console=console, show_time=False, show_path=False, show_level=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    with console.status("Comparing") as status:

        def show(what: str) -> None:
            status.update(f"Comparing: {what}")

        async def connected() -> Report:
            async with AsyncClient(config) as client:
                report = await compare(client, job, show)
                return await mend(client, job, report, show) if repair else report

        return asyncio.run(connected())


def _show(report: Report) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415

    from airflow_provider_r7mail.lake.audit import KINDS, span  # noqa: PLC0415

    console = Console(highlight=False)
    if report.findings:
        table = make_table("what differs", "tables", "server", "repaired")
        for finding in report.findings:
            lines = [KINDS[finding.kind], finding.detail]
            if finding.start is not None and finding.end is not None:
                lines.insert(1, span(finding.start, finding.end))
            table.add_row(
                escape("\n".join(filter(None, lines))),
                *("" if n is None else f"{n:,}" for n in (finding.tables, finding.server)),
                "yes" if finding.repaired else "",
            )
        console.print(table)
    console.print(draw_calendar(report))
    numbers = report.record()
    rests = ""
    if "counts" in report.compared:
        rests = " Equal counts don't prove equal mail: --deep compares ids."
    compared = (
        "Not compared with the server."
        if report.compared == "nothing"
        else f"Compared by {report.compared} in {report.requests} requests.{rests}"
    )
    console.print(
        f"Windows: {numbers['windows']:,}. Messages: {numbers['messages']:,}.",
        compared,
        *map(escape, report.notes),
        "[green]In order.[/]" if report.in_order else "[red]The tables differ.[/]",
        sep="\n",
    )
