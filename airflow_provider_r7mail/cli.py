"""The ``r7mail`` command. What a command needs is imported when it runs, so that help is quick."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from airflow_provider_r7mail.client import ClientConfig
    from airflow_provider_r7mail.emulator import Emulator
    from airflow_provider_r7mail.pipeline import ExtractJob, Progress
    from airflow_provider_r7mail.storage import ObjectPath

app = typer.Typer(
    help="Work with R7-Office mail from the command line.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",  # paragraphs are filled to the terminal's width
)

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_EMULATOR_PORT = 8025


@app.callback()
def main() -> None:
    """Work with R7-Office mail from the command line."""


# -- emulator -------------------------------------------------------------------------------


@app.command(epilog="Example: r7mail emulator --port 8025 --mail archive.mbox")
def emulator(
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 picks a free one.")
    ] = _EMULATOR_PORT,
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
        _fail(f"{error}. Install the server: pip install 'airflow-provider-r7mail[emulator]'")
    server = Emulator(mail, port=port, host=host)
    try:
        server.start()
    except (OSError, ValueError) as error:
        _fail(_reason(error, host, port))
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


def _fail(reason: str) -> NoReturn:
    typer.secho(f"Error: {' '.join(reason.split())}", fg="red", err=True)
    raise typer.Exit(1)


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
    page_size: Annotated[int, typer.Option(help="Messages to ask for at once.")] = 200,
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
    from airflow_provider_r7mail.client import ClientConfig  # noqa: PLC0415
    from airflow_provider_r7mail.exceptions import R7MailError  # noqa: PLC0415
    from airflow_provider_r7mail.models import MessageFilter  # noqa: PLC0415
    from airflow_provider_r7mail.pipeline import ExtractJob  # noqa: PLC0415

    if not url.startswith(("https://", "http://")):
        _fail("--url: give the server's URL, like https://mail.example.org")
    try:
        job = ExtractJob(
            folder=folder,
            criteria=MessageFilter.build(start=start, end=end),
            output=_object_path(output, "--output"),
            attachments=None if attachments is None else _object_path(attachments, "--attachments"),
            page_size=page_size,
        )
        job.check()
        config = ClientConfig(
            url=url.rstrip("/"),
            login=login,
            password=_password(),
            verify=verify if ca is None else str(ca),
            max_concurrency=max_concurrency,
        )
        manifest = _run_extract(config, job)
    except R7MailError as error:
        _fail(str(error))
    _show_manifest(manifest)


def _password() -> str:
    if value := os.environ.get(_PASSWORD):
        return value
    if not sys.stdin.isatty():
        _fail(f"no password: set {_PASSWORD} in the environment, or run it in a terminal")
    answer: str = typer.prompt("Password", hide_input=True, err=True)
    return answer


def _object_path(value: str, option: str) -> ObjectPath:
    from upath import UPath  # noqa: PLC0415

    try:
        path = UPath(value if "://" in value else f"file://{Path(value).absolute()}")
        _ = path.fs
    except (ImportError, ValueError) as error:
        _fail(
            f"{option}: no file system for {value!r} is installed ({error}). S3 comes with "
            "airflow-provider-r7mail[amazon], Google with [google], Azure with [microsoft]"
        )
    return path


def _run_extract(config: ClientConfig, job: ExtractJob) -> dict[str, Any]:
    from rich.console import Console  # noqa: PLC0415
    from rich.logging import RichHandler  # noqa: PLC0415
    from rich.progress import Progress as Bar  # noqa: PLC0415
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    from airflow_provider_r7mail.client import AsyncClient  # noqa: PLC0415
    from airflow_provider_r7mail.pipeline import extract_window  # noqa: PLC0415

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
    table = _table("table", "rows", "bytes", title=f"{window['start']} to {window['end']}")
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


def _table(*columns: str, title: str | None = None) -> Table:
    """A table whose first column is text, and whose others are numbers."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    return table


# -- demo -----------------------------------------------------------------------------------

_DEMO_MARK = ".r7mail-demo"
_STEP_SECONDS = 300
_LOG_TAIL = 40
# Several commands of Airflow in one process: each process needs some 8 s to begin.
_RUN_AIRFLOW = """
import json, sys
from airflow.__main__ import main
for words in json.loads(sys.argv[1]):
    print("$ airflow", *words, flush=True)
    sys.argv = ["airflow", *words]
    main()
"""


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

    Starts a local mail server with an office's mail, and runs two DAGs in a real Airflow with a
    database of its own: mail_extract for three working days, and supplier_price_list. Then it
    shows what is on disk, and how to look further.

    Nothing of yours is touched: no other Airflow, no other mail. Nothing is left running.
    """
    from rich.console import Console  # noqa: PLC0415

    dags = _example_dags()
    try:
        from airflow_provider_r7mail.emulator import Emulator  # noqa: PLC0415
    except ModuleNotFoundError as error:
        _fail(f"{error}. Install the server: pip install 'airflow-provider-r7mail[emulator]'")
    console = Console(highlight=False)
    with _told_to_stop(), _demo_folder(folder, keep=keep) as home:
        with console.status("Writing an office's mail"):
            server = Emulator()
            server.start()
        try:
            airflow = _DemoAirflow(home, dags, server, console)
            _say_start(console, server, airflow)
            airflow.run_all()
            _show_demo(console, server, airflow)
        finally:
            server.stop()


def _example_dags() -> Path:
    folder = Path(__file__).parents[1] / "dags"
    if not (folder / "mail_extract.py").is_file():
        _fail(
            "the demo runs the example DAGs, which are not installed with the package. Run it from "
            "a checkout of the repository: make demo"
        )
    return folder


@contextmanager
def _told_to_stop() -> Iterator[None]:
    """Leave by an exception when told to stop, so that everything is cleaned up."""

    def leave(number: int, _: object) -> NoReturn:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _demo_folder(folder: Path, *, keep: bool) -> Iterator[Path]:
    """The demo's folder, emptied of an earlier demo's files; one demo at a time."""
    home = folder.absolute()
    mark = home / _DEMO_MARK
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not mark.exists() and any(home.iterdir()):
            _fail(f"{home} has other files in it, and no demo. Give --dir a folder of its own")
        lock = mark.open("a")
    except OSError as error:
        _fail(f"--dir: {error}")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _fail(f"another demo is running in {home}")
        for part in () if keep else ("airflow", "lake"):
            shutil.rmtree(home / part, ignore_errors=True)
        yield home


def _working_days(today: date) -> list[date]:
    """The last three consecutive days before today that are no weekend."""
    last = today - timedelta(days=1)
    while last.weekday() not in {2, 3, 4}:
        last -= timedelta(days=1)
    return [last - timedelta(days=age) for age in (2, 1, 0)]


class _DemoAirflow:
    """An Airflow of the demo's own."""

    def __init__(self, home: Path, dags: Path, server: Emulator, console: Console) -> None:
        self.home = home
        self.lake = home / "lake"
        self.log = home / "airflow.log"
        self.days = _working_days(datetime.now(UTC).date())
        self._console = console
        self.settings = {
            "AIRFLOW_HOME": str(home / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW_CONN_R7MAIL_DEFAULT": server.connection(),
            "AIRFLOW_VAR_R7MAIL_LAKE": f"file://{self.lake}",
            "R7MAIL_SCHEDULE": "0 0 * * *",
            "R7MAIL_START": self.days[0].isoformat(),
        }
        (home / "airflow").mkdir(exist_ok=True)
        self.log.write_text("")

    def run_all(self) -> None:
        """Run the demo's steps."""
        self._run("Airflow's database", ["db", "migrate"])
        # Just after the day: a run by hand takes the last whole interval before it, and at midnight
        # sharp it would stand in the way of the scheduler's own run of the next day.
        ends = [f"{day + timedelta(days=1)}T00:05:00" for day in self.days]
        self._run(
            f"mail_extract for {self.days[0]}, {self.days[1]} and {self.days[2]}",
            *(["dags", "test", "mail_extract", end] for end in ends),
        )
        self._run("supplier_price_list", ["dags", "test", "supplier_price_list"])

    def _run(self, what: str, *commands: Sequence[str]) -> None:
        """Run commands of Airflow; end the demo with the log's last lines if one fails."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")
        }
        # No proxy between Airflow and the server on this machine.
        environment |= {"NO_PROXY": "*", "no_proxy": "*", **self.settings}
        begun = datetime.now(UTC)
        with self._console.status(f"{what} ..."), self.log.open("ab") as log:
            # A session of its own: whatever it starts can be ended with it.
            process = subprocess.Popen(  # noqa: S603 - our own words
                [sys.executable, "-c", _RUN_AIRFLOW, json.dumps(commands)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self.home,
                start_new_session=True,
            )
            try:
                code: int | str = process.wait(_STEP_SECONDS)
            except subprocess.TimeoutExpired:
                code = f"no end after {_STEP_SECONDS} s"
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code != 0:
            tail = self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL:]
            typer.echo("\n".join(tail), err=True)
            _fail(f"{what} failed ({code}). The whole log: {self.log}")
        seconds = (datetime.now(UTC) - begun).total_seconds()
        self._console.print(f"[green]ok[/]  {what} [dim]{seconds:.0f} s[/]")

    def write_settings(self) -> Path:
        """Write what a shell needs to go on, with the server at its usual port."""
        connection = json.loads(self.settings["AIRFLOW_CONN_R7MAIL_DEFAULT"])
        settings = self.settings | {
            "AIRFLOW_CONN_R7MAIL_DEFAULT": json.dumps(connection | {"port": _EMULATOR_PORT})
        }
        path = self.home / "airflow.env"
        lines = [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
        path.write_text("\n".join(lines) + "\n")
        return path


def _say_start(console: Console, server: Emulator, airflow: _DemoAirflow) -> None:
    count = sum(len(server.mailbox.messages(number)) for number in server.mailbox.folders)
    console.print(f"A mail server with {count:,} messages of an office runs at {server.url}.")
    console.print("Two example DAGs run in a real Airflow. Its log:")
    console.print(str(airflow.log), soft_wrap=True, markup=False)


def _show_demo(console: Console, server: Emulator, airflow: _DemoAirflow) -> None:
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    def rows(path: str) -> Any:
        return ds.dataset(airflow.lake / path, format="parquet", partitioning="hive").to_table()

    table = _table("on disk", "files", "rows", "bytes")
    for path in ("tables/messages", "tables/recipients", "tables/attachments", "price_lists"):
        files = list((airflow.lake / path).rglob("*.parquet"))
        size = sum(file.stat().st_size for file in files)
        table.add_row(path, str(len(files)), f"{rows(path).num_rows:,}", f"{size:,}")
    copied = [
        file
        for file in (airflow.lake / "attachments").rglob("*")
        if file.is_file() and not file.name.startswith("_")
    ]
    total = sum(file.stat().st_size for file in copied)
    table.add_row("attachments", str(len(copied)), "", f"{total:,}")
    console.print(table)
    statuses = pc.value_counts(rows("tables/attachments")["status"]).to_pylist()
    told = ", ".join(f"{item['counts']} {item['values']}" for item in statuses)
    console.print(f"Attachments of the three days: {told or 'none'}.")
    prices = set(rows("price_lists")["message_id"].to_pylist())
    filed = [m for m in server.mailbox.messages(_processed(server)) if m["Id"] in prices]
    if any(message["WasRead"] for message in filed):
        console.print("The price list's message was marked read and moved to folder processed.")
    messages = rows("tables/messages")
    _show_rows(console, messages)
    _show_senders(console, messages, airflow.lake / "tables/messages")
    _show_further(console, airflow)


def _processed(server: Emulator) -> int:
    return next(number for number, name in server.mailbox.folders.items() if name == "processed")


def _show_rows(console: Console, messages: Any) -> None:
    from rich import box  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    found = messages.select(["date", "from_address", "subject"])
    shown = Table(title="The newest rows", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("date", "from_address", "subject"):
        narrowest = 16 if column == "date" else None
        shown.add_column(column, overflow="ellipsis", no_wrap=True, min_width=narrowest)
    for row in found.sort_by([("date", "descending")]).slice(0, 5).to_pylist():
        values = f"{row['date']:%Y-%m-%d %H:%M}", row["from_address"], row["subject"]
        shown.add_row(*(escape(value or "") for value in values))
    console.print(shown)


def _show_senders(console: Console, messages: Any, path: Path) -> None:
    from rich.markup import escape  # noqa: PLC0415

    try:
        import duckdb  # noqa: PLC0415 - need not be installed

        found = duckdb.sql(_senders_query(path))
        senders = found.fetchall() if found is not None else []
        how = "DuckDB"
    except ModuleNotFoundError:
        counted = messages.group_by("from_address").aggregate([("message_id", "count")])
        ranked = counted.sort_by(
            [("message_id_count", "descending"), ("from_address", "ascending")]
        )
        senders = [tuple(row.values()) for row in ranked.slice(0, 5).to_pylist()]
        how = "pyarrow"
    table = _table("sender", "messages", title=f"Top senders, by {how}")
    for address, count in senders:
        table.add_row(escape(address or ""), str(count))
    console.print(table)


def _senders_query(path: Path) -> str:
    files = f"{path}/**/*.parquet".replace("'", "''")
    return (
        f"SELECT from_address, count(*) AS messages FROM '{files}' "  # noqa: S608 - as text
        "GROUP BY ALL ORDER BY messages DESC, from_address LIMIT 5"
    )


def _show_further(console: Console, airflow: _DemoAirflow) -> None:
    settings = airflow.write_settings()
    tools = Path(sys.executable).parent
    here = Path.cwd()

    def short(path: Path) -> str:
        return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))

    lake = airflow.lake
    query = _senders_query(Path(short(lake)) / "tables/messages")
    ask = f"import duckdb; duckdb.sql('''{query}''').show()"
    plain = not set('"$`\\!') & set(ask)
    lines = [
        f"Everything is in {short(airflow.home)}",
        "",
        "To look further:",
        f"  {short(tools / 'python')} -c " + (f'"{ask}"' if plain else shlex.quote(ask)),
        f"  {short(tools / 'r7mail')} emulator",
        f"  . {short(settings)} && PATH={shlex.quote(str(tools))}:$PATH airflow standalone",
        "The last two go together, in two terminals: the mail server, and Airflow with its page.",
    ]
    console.print("\n".join(lines), soft_wrap=True, markup=False)
