"""``r7mail check``: find out how a mail server behaves where the API's manual is open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airflow_provider_r7mail.cli.console import fail, make_table
from airflow_provider_r7mail.cli.server import LOGIN, Ca, Verify, client_config

if TYPE_CHECKING:
    from airflow_provider_r7mail.client.check import Report
    from airflow_provider_r7mail.client.http import ClientConfig

_MARKS = {
    "ok": "[green]ok[/]",
    "unknown": "[dim]?[/]",
    "note": "[cyan]note[/]",
    "warning": "[yellow]warning[/]",
    "outside": "[red]outside[/]",
}
_RESULTS = {
    "fine": "[green]Fine: no problems found.[/]",
    "warnings": "[yellow]Some things will not work as expected: see the warnings.[/]",
    "outside the contract": "[red]The server violates the API's contract: data read from it may be "
    "wrong.[/]",
}


def check(
    connection: Annotated[
        str | None,
        typer.Option(help="The id of an Airflow connection, instead of --url and --login."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            envvar="R7MAIL_URL",
            help="The server, like https://mail.example.org. If the mail API doesn't answer there, "
            "the usual host names of its domain are tried, and the error says which one does.",
        ),
    ] = None,
    login: Annotated[str | None, LOGIN] = None,
    folder: Annotated[
        str | None,
        typer.Option(
            help="The folder to read: its id, or its name in the connection's `folders`, by "
            "default the first. Choose one with mail from several days and with attachments."
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Also write the report to this file, for a bug report."),
    ] = None,
    write: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Also mark and unmark a message of --folder, and move it to this folder and back.",
        ),
    ] = None,
    send: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Also send one message to this address."),
    ] = None,
    disk: Annotated[
        bool,
        typer.Option(
            "--disk",
            help="Also check the server's Disk, which takes files to be sent; with --write, upload "
            "a small file and delete it.",
        ),
    ] = False,
    disk_url: Annotated[
        str | None,
        typer.Option(
            help="With --url: where the Disk answers, if it has a host of its own, like "
            "https://cddisk.example.org. Implies --disk."
        ),
    ] = None,
    verify: Verify = True,
    ca: Ca = None,
) -> None:
    """Find out how a mail server behaves where the API's manual is open.

    Logs in, reads a folder, and shows for each open point what this server does and how the package
    handles it. It only reads, unless you pass --write or --send, and makes a few dozen requests.
    The report contains no mail, names, addresses or tokens.

    The exit code is 0 if all is fine, 1 after a warning or if the server violates the contract, 2
    if nothing could be checked. The password is read from R7MAIL_PASSWORD, or prompted for.
    """
    from rich.console import Console  # noqa: PLC0415

    from airflow_provider_r7mail.client.check import check_server  # noqa: PLC0415
    from airflow_provider_r7mail.client.check.hosts import advice  # noqa: PLC0415
    from airflow_provider_r7mail.client.session import Client  # noqa: PLC0415
    from airflow_provider_r7mail.exceptions import R7MailError  # noqa: PLC0415

    if connection is None and (url is None or login is None):
        fail("give --connection, or --url and --login", code=2)
    if connection is not None and disk_url is not None:
        fail("--disk-url: set disk_url in the connection", code=2)
    config: ClientConfig | None = None
    try:
        if connection is not None:
            config, number, away, disk_folder = _connected(connection, folder, write)
        else:
            disk_folder = None
            number, away = _folder_id(folder, "--folder"), _folder_id(write, "--write")
            config = client_config(
                _with_scheme(url or ""),
                login or "",
                verify=verify,
                ca=ca,
                code=2,
                disk_url=None if disk_url is None else _with_scheme(disk_url).rstrip("/"),
            )
        if number is None:
            fail("--folder: give the id of the folder to read: the API can't list folders", code=2)
        with (
            Client(config, insist=True) as client,
            Console(stderr=True).status("Checking") as status,
        ):
            report = check_server(
                client,
                number,
                write_folder=away,
                send_to=send,
                disk=disk or disk_url is not None,
                disk_folder=disk_folder,
                say=lambda what: status.update(f"Checking {what}"),
            )
    except R7MailError as error:
        fail(f"{error} {(config and advice(error, config)) or ''}".strip(), code=2)
    _show_report(report)
    if json_file is not None:
        text = json.dumps(report.as_dict(), ensure_ascii=False, indent=2)
        try:
            json_file.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            fail(f"--json: {error}", code=2)
    if report.result != "fine":
        raise typer.Exit(1)


def _with_scheme(url: str) -> str:
    return url if "://" in url else f"https://{url}"


def _connected(
    connection: str, folder: str | None, write: str | None
) -> tuple[ClientConfig, int | None, int | None, int | None]:
    """Return the server of an Airflow connection, and the ids of its folders.

    :return: the server, the folders to read and to write to, and the Disk's
    """
    from airflow_provider_r7mail.hooks import R7MailHook  # noqa: PLC0415 - imports Airflow

    settings = R7MailHook(connection).settings
    name = next(iter(settings.folders), None) if folder is None else folder
    return (
        settings.client,
        None if name is None else settings.resolve_folder(name, "--folder"),
        None if write is None else settings.resolve_folder(write, "--write"),
        settings.disk_folder,
    )


def _folder_id(value: str | None, option: str) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError:
        fail(f"{option}: give the folder's id: only a connection has folder names", code=2)


def _suggested_waits(report: Report) -> list[str]:
    """Say how long to wait for late mail, if that could be measured."""
    if report.waits is None:
        return []
    waits = report.waits
    says = (
        f"For late mail: settle_seconds {waits.settle_seconds}, lookback {waits.lookback}, "
        f"recheck_hours {waits.recheck_hours} ({waits.why})."
    )
    return [says]


def _show_report(report: Report) -> None:
    from rich import box  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "", "about", "this server", "what the package does"):
        table.add_column(column, no_wrap=not column)
    for finding in report.findings:
        words = finding.title, finding.says, finding.handled
        table.add_row(_MARKS[finding.level], finding.point, *map(escape, words))
    console.print(table)
    times = make_table("messages requested", "returned", "KB", "seconds")
    for page in report.page_times:
        row = f"{page.asked}", f"{page.got}", f"{page.bytes / 1e3:,.1f}", f"{page.seconds:.3f}"
        times.add_row(*row)
    console.print(times)
    console.print(
        f"Suggested: page_size {report.page_size} ({report.page_size_why}),",
        f"max_concurrency {report.max_concurrency} ({report.max_concurrency_why}).",
        *_suggested_waits(report),
        f"{report.requests} requests in {report.seconds:.1f} s.",
        _RESULTS[report.result],
        sep="\n",
    )
