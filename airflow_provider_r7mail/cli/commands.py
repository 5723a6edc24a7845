"""The ``r7mail`` command. What a command needs is imported when it runs, so that help is quick."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_provider_r7mail.cli.console import EMULATOR_PORT, fail, make_table

if TYPE_CHECKING:
    from airflow_provider_r7mail.client.check import Report
    from airflow_provider_r7mail.client.http import ClientConfig
    from airflow_provider_r7mail.emulator import Emulator
    from airflow_provider_r7mail.lake.job import ExtractJob, Progress
    from airflow_provider_r7mail.lake.storage import ObjectPath


app = typer.Typer(
    help="Work with R7-Office mail from the command line.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",  # paragraphs are filled to the terminal's width
)

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


@app.callback()
def main() -> None:
    """Work with R7-Office mail from the command line."""


# -- emulator -------------------------------------------------------------------------------


@app.command(epilog="Example: r7mail emulator --port 8025 --mail archive.mbox")
def emulator(
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 picks a free one.")
    ] = EMULATOR_PORT,
    mail: Annotated[
        Path | None,
        typer.Option(
            help="Mail to serve: an mbox, a Maildir, a folder of .eml files, or one .eml. "
            "Without it, a generated office: 5,000 messages of the last 90 days.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on. Only 127.0.0.1 is safe: all can read the mail."),
    ] = "127.0.0.1",
) -> None:
    """Run a local R7-Office mail server, to try things on without a real one.

    It answers the whole mail API from memory: log in, list, send, mark, move, delete, download.
    Nothing leaves this machine, and nothing is kept when it stops (Ctrl-C).

    It prints a connection for Airflow: put that in Airflow's environment. Other programs can look
    into the server and make it fail, under /_emulator/ (begin with /_emulator/state).
    """
    try:
        from airflow_provider_r7mail.emulator import Emulator  # noqa: PLC0415
    except ModuleNotFoundError as error:
        fail(f"{error}. Install the server: pip install 'airflow-provider-r7mail[emulator]'")
    server = Emulator(mail, port=port, host=host)
    try:
        server.start()
    except (OSError, ValueError) as error:
        fail(_reason(error, host, port))
    if host not in _LOOPBACK:
        typer.secho(
            f"Warning: {host} can be reached from other machines, and the password is no secret.",
            fg="yellow",
            err=True,
        )
    _serve_until_told(server)


def _serve_until_told(server: Emulator) -> None:
    """Say how to use the server, then serve until Ctrl-C or SIGTERM."""
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    try:
        typer.echo(_welcome(server))
        told.wait()
    finally:
        server.stop()
    typer.echo("Stopped.")


def _welcome(server: Emulator) -> str:
    mailbox = server.mailbox
    lines = [
        f"R7-Office mail (stand-in) at {server.url}",
        "page      the same in a browser: the mail, the last calls, buttons that make calls fail",
        f"login     {mailbox.login}",
        f"password  {mailbox.password}",
        f"address   {mailbox.address}",
        "folders",
    ]
    with mailbox.lock:
        for number, name in mailbox.folders.items():
            folder = mailbox.contents(number)
            count, unread = len(folder.records), folder.unread
            lines.append(f"  {number:>4}  {name:<14} {count:>7} messages, {unread} unread")
    lines += [
        "connection for Airflow",
        f"  export AIRFLOW_CONN_R7MAIL_DEFAULT='{server.connection()}'",
        "Ctrl-C stops it.",
    ]
    return "\n".join(lines)


def _reason(error: OSError | ValueError, host: str, port: int) -> str:
    if isinstance(error, OSError) and error.filename is None and error.errno is not None:
        return f"cannot listen on {host}:{port}: {error.strerror}. --port 0 picks a free port"
    return str(error)


# -- extract --------------------------------------------------------------------------------

_PASSWORD = "R7MAIL_PASSWORD"  # noqa: S105 - the variable's name


@app.command(
    epilog="Example: R7MAIL_PASSWORD=... r7mail extract --url https://mail.example.org --login ann "
    "--folder 24 --start 2025-06-01 --end 2025-07-01 --output lake/tables"
)
def extract(
    url: Annotated[
        str,
        typer.Option(envvar="R7MAIL_URL", help="The server, like https://mail.example.org."),
    ],
    login: Annotated[str, typer.Option(envvar="R7MAIL_LOGIN", help="The account's login.")],
    folder: Annotated[int, typer.Option(help="The folder's id: the API has no names of folders.")],
    start: Annotated[
        str, typer.Option(help="Messages dated from then on: ISO 8601, UTC without a zone.")
    ],
    end: Annotated[str, typer.Option(help="And before then.")],
    output: Annotated[
        str, typer.Option(help="Where the tables go: a folder, or a URL like s3://bucket/mail.")
    ],
    attachments: Annotated[
        str | None,
        typer.Option(help="Where the attachments go. Without it they are listed, not copied."),
    ] = None,
    page_size: Annotated[
        int | None,
        typer.Option(help="Messages to ask for at once; without it, pages grow by themselves."),
    ] = None,
    max_concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight at once.")] = 4,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Check the server's TLS certificate.")
    ] = True,
    ca: Annotated[
        Path | None, typer.Option(help="Check it against this bundle of authorities.")
    ] = None,
) -> None:
    """Extract a window of a folder into Parquet tables, without Airflow.

    The same engine as R7MailToParquetOperator: each message is there once and only once, a second
    run of the same window replaces the first, and nothing appears before it is whole.

    The password is taken from R7MAIL_PASSWORD, or asked for. It is no option: other users of a
    machine can see what a program was called with.
    """
    from airflow_provider_r7mail.client.models import MessageFilter  # noqa: PLC0415
    from airflow_provider_r7mail.exceptions import R7MailError  # noqa: PLC0415
    from airflow_provider_r7mail.lake.job import ExtractJob  # noqa: PLC0415

    try:
        job = ExtractJob(
            folder=folder,
            criteria=MessageFilter.build(start=start, end=end),
            output=_object_path(output, "--output"),
            attachments=None if attachments is None else _object_path(attachments, "--attachments"),
            page_size=page_size,
        )
        job.check()
        config = _client_config(
            url,
            login,
            verify if ca is None else str(ca),
            max_concurrency=max_concurrency,
        )
        manifest = _run_extract(config, job)
    except R7MailError as error:
        fail(str(error))
    _show_manifest(manifest)


def _client_config(
    url: str, login: str, verify: bool | str, *, code: int = 1, **more: Any
) -> ClientConfig:
    """How to reach a server, by a command's options; asks for the password if need be.

    :param code: the exit code if that fails
    """
    from airflow_provider_r7mail.client.http import ClientConfig  # noqa: PLC0415

    if not url.startswith(("https://", "http://")):
        fail("--url: give the server's URL, like https://mail.example.org", code=code)
    password = _password(code)
    return ClientConfig(url=url.rstrip("/"), login=login, password=password, verify=verify, **more)


def _password(code: int) -> str:
    if value := os.environ.get(_PASSWORD):
        return value
    if not sys.stdin.isatty():
        fail(f"no password: set {_PASSWORD} in the environment, or run it in a terminal", code=code)
    answer: str = typer.prompt("Password", hide_input=True, err=True)
    return answer


def _object_path(value: str, option: str) -> ObjectPath:
    from upath import UPath  # noqa: PLC0415

    try:
        path = UPath(value if "://" in value else f"file://{Path(value).absolute()}")
        _ = path.fs
    except (ImportError, ValueError) as error:
        fail(
            f"{option}: no file system for {value!r} is installed ({error}). S3 comes with "
            "airflow-provider-r7mail[amazon], Google with [google], Azure with [microsoft]"
        )
    return path


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
                description=f"{progress.pages} pages, {progress.rows} messages, "
                f"{progress.attachments} attachments, {progress.bytes_read / 1e6:.1f} MB",
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
    for file in manifest["files"]:
        table.add_row(file["table"], f"{file['rows']:,}", f"{file['bytes']:,}")
    console.print(table)
    files = ", ".join(f"{count} {name}" for name, count in manifest["attachments"].items())
    console.print(
        f"{manifest['messages']:,} messages of folder {manifest['folder_id']} in "
        f"{manifest['requests']} requests ({manifest['retries']} repeated) and "
        f"{manifest['seconds']:.1f} s.",
        f"Attachments: {files or 'none'}.",
        sep="\n",
        highlight=False,
    )
    for file in manifest["files"]:
        console.print(file["path"], soft_wrap=True, highlight=False, markup=False)


# -- check ----------------------------------------------------------------------------------

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


@app.command(
    epilog="Example: R7MAIL_PASSWORD=... r7mail check --url https://mail.example.org --login ann "
    "--folder 24 --json report.json"
)
def check(
    connection: Annotated[
        str | None,
        typer.Option(help="The id of an Airflow connection, in place of --url and --login."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(envvar="R7MAIL_URL", help="The server, like https://mail.example.org."),
    ] = None,
    login: Annotated[
        str | None, typer.Option(envvar="R7MAIL_LOGIN", help="The account's login.")
    ] = None,
    folder: Annotated[
        str | None,
        typer.Option(
            help="The folder to read: its id, or its name in the connection's `folders`, of which "
            "the first is taken otherwise. Best is one with mail of different days, and files."
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the report there as well: fit for a bug report."),
    ] = None,
    write: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Also mark, unmark and move one message of --folder to this folder and back.",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Check the server's TLS certificate.")
    ] = True,
    ca: Annotated[
        Path | None, typer.Option(help="Check it against this bundle of authorities.")
    ] = None,
) -> None:
    """Find out what a mail server does where the API's manual leaves it open.

    Logs in, reads a folder, and says for each open point what this server does and what the
    package does about it. It only reads, unless --write is given, and makes some dozens of
    requests. The report has no mail in it, and no names, addresses or tokens.

    Ends with 0 if all is fine, 1 after a warning or outside the contract, 2 if nothing could be
    checked. The password is taken from R7MAIL_PASSWORD, or asked for.
    """
    from rich.console import Console  # noqa: PLC0415

    from airflow_provider_r7mail.client.check import check_server  # noqa: PLC0415
    from airflow_provider_r7mail.client.session import Client  # noqa: PLC0415
    from airflow_provider_r7mail.exceptions import R7MailError  # noqa: PLC0415

    if connection is None and (url is None or login is None):
        fail("give --connection, or --url and --login", code=2)
    try:
        if connection is not None:
            config, number, away = _connected(connection, folder, write)
        else:
            number, away = _folder_id(folder, "--folder"), _folder_id(write, "--write")
            config = _client_config(
                url or "", login or "", verify if ca is None else str(ca), code=2
            )
        if number is None:
            fail("--folder: give the id of the folder to read: the API does not list them", code=2)
        with Client(config) as client, Console(stderr=True).status("Checking") as status:
            report = check_server(
                client,
                number,
                write_folder=away,
                say=lambda what: status.update(f"Checking {what}"),
            )
    except R7MailError as error:
        fail(str(error), code=2)
    _show_report(report)
    if json_file is not None:
        text = json.dumps(report.as_dict(), ensure_ascii=False, indent=2)
        try:
            json_file.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            fail(f"--json: {error}", code=2)
    if report.result != "fine":
        raise typer.Exit(1)


def _connected(
    connection: str, folder: str | None, write: str | None
) -> tuple[ClientConfig, int | None, int | None]:
    """What an Airflow connection says: the server, and ids of the folders to read and to write."""
    from airflow_provider_r7mail.hooks import R7MailHook  # noqa: PLC0415 - imports Airflow

    settings = R7MailHook(connection).settings
    name = next(iter(settings.folders), None) if folder is None else folder
    return (
        settings.client,
        None if name is None else settings.resolve_folder(name, "--folder"),
        None if write is None else settings.resolve_folder(write, "--write"),
    )


def _folder_id(value: str | None, option: str) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError:
        fail(f"{option}: names of folders are a connection's; give the folder's id", code=2)


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
        f"{report.requests} requests in {report.seconds:.1f} s.",
        _RESULTS[report.result],
        sep="\n",
    )


# -- demo -----------------------------------------------------------------------------------


@app.command(epilog="Example: r7mail demo --dir /tmp/r7mail-demo")
def demo(
    folder: Annotated[
        Path, typer.Option("--dir", help="Where Airflow and everything that is written go.")
    ] = Path(".demo"),
    keep: Annotated[
        bool, typer.Option("--keep", help="Go on with what an earlier demo has left there.")
    ] = False,
) -> None:
    """Show the whole way in about a minute: a mail server, Airflow, Parquet tables.

    Starts a local mail server with an office's mail, and runs three DAGs in a real Airflow with a
    database of its own: mail_extract for three weeks, supplier_price_list and mail_analytics. Then
    it shows what is on disk, how to look further, and where the page with the charts is.

    Nothing of yours is touched: no other Airflow, no other mail. Nothing is left running.
    """
    from airflow_provider_r7mail.cli.demo import run_demo  # noqa: PLC0415

    run_demo(folder, keep=keep)
