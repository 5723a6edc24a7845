"""``r7mail demo``: run the example DAGs in a separate Airflow against the emulator."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from airflow_provider_r7mail.cli.console import EMULATOR_PORT, fail, import_emulator, make_table

if TYPE_CHECKING:
    from rich.console import Console

    from airflow_provider_r7mail.emulator import Emulator


_DEMO_MARK = ".r7mail-demo"
_STEP_SECONDS = 300
_LOG_TAIL = 40
_STOPPING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
# Several Airflow commands in one process, because each process takes some 8 s to start.
_RUN_AIRFLOW = """
import json, signal, sys
signal.pthread_sigmask(signal.SIG_SETMASK, ())
from airflow.__main__ import main
for words in json.loads(sys.argv[1]):
    print("$ airflow", *words, flush=True)
    sys.argv = ["airflow", *words]
    main()
"""


def demo(
    folder: Annotated[
        Path, typer.Option("--dir", help="Directory for Airflow and everything that is written.")
    ] = Path(".demo"),
    keep: Annotated[
        bool, typer.Option("--keep", help="Continue with the files of an earlier demo.")
    ] = False,
) -> None:
    """Show the whole pipeline in about a minute: mail server, Airflow, Parquet tables.

    Starts the emulator with an office's mail, and runs four DAGs in a real Airflow with its own
    database: mail_extract for three weeks, supplier_price_list, mail_analytics and
    report_distribution. A message comes late for its week. Then it shows what was written and sent,
    that the late message was found, what to try next, and where the report with the charts is.

    It does not touch any other Airflow or mail, and leaves nothing running.
    """
    run_demo(folder, keep=keep)


def run_demo(folder: Path, *, keep: bool) -> None:
    """Run the DAGs, and show what they wrote.

    :param folder: directory for Airflow and everything that is written
    :param keep: whether to continue with the files of an earlier demo
    :raises typer.Exit: it failed, and the error was printed
    """
    from rich.console import Console  # noqa: PLC0415

    dags = _example_dags()
    emulator = import_emulator()
    console = Console(highlight=False)
    with _told_to_stop(), _demo_folder(folder, keep=keep) as home:
        with console.status("Generating an office's mail"):
            server = emulator()
            server.start()
        try:
            airflow = _DemoAirflow(home, dags, server, console)
            _say_start(console, server, airflow)
            late = airflow.run_all(server)
            _show_demo(console, server, airflow, late)
        finally:
            server.stop()


def _example_dags() -> Path:
    folder = Path(__file__).parents[2] / "dags"
    if not (folder / "mail_extract.py").is_file():
        fail(
            "the demo needs the example DAGs, which are not installed with the package. Run it "
            "from a checkout of the repository: make demo"
        )
    return folder


@contextmanager
def _told_to_stop() -> Iterator[None]:
    """Exit with an exception on a signal, so that everything is cleaned up."""

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
    """Lock the demo's directory, and remove the files of an earlier demo."""
    home = folder.absolute()
    mark = home / _DEMO_MARK
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not mark.exists() and any(home.iterdir()):
            fail(f"{home} has other files in it. Give --dir an empty directory")
        lock = mark.open("a")
    except OSError as error:
        fail(f"--dir: {error}")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            fail(f"another demo is running in {home}")
        for part in () if keep else ("airflow", "lake"):
            shutil.rmtree(home / part, ignore_errors=True)
        yield home


class _DemoAirflow:
    """The demo's own Airflow."""

    def __init__(self, home: Path, dags: Path, server: Emulator, console: Console) -> None:
        self.home = home
        self.lake = home / "lake"
        self.log = home / "airflow.log"
        # The three weeks before today, when the office's mail ends.
        today = self.today = datetime.now(UTC).date()
        self.weeks = [today - timedelta(weeks=age) for age in (3, 2, 1)]
        self._console = console
        self.settings = {
            "AIRFLOW_HOME": str(home / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW_CONN_R7MAIL_DEFAULT": server.connection(),
            "AIRFLOW_VAR_R7MAIL_LAKE": f"file://{self.lake}",
            "R7MAIL_SCHEDULE": f"0 0 * * {today.isoweekday() % 7}",
            "R7MAIL_START": self.weeks[0].isoformat(),
        }
        (home / "airflow").mkdir(exist_ok=True)
        self.log.write_text("")

    def run_all(self, server: Emulator) -> int:
        """Run the steps of the demo; return the id of a message that comes late for its week."""
        self._run("Airflow's database", ["db", "migrate"])
        # Just after the week: a manual run takes the last complete interval before its date. At
        # exactly midnight it would collide with the scheduled run of the next week.
        extracts = [
            ["dags", "test", "mail_extract", f"{week + timedelta(weeks=1)}T00:05:00"]
            for week in self.weeks
        ]
        first, second, third = self.weeks
        self._run(f"mail_extract for the weeks of {first} and {second}", *extracts[:2])
        dated = datetime.combine(third, time(), UTC) - timedelta(minutes=5)
        late = server.mailbox.deliver(subject="Sent from a train", date=dated)
        self._run(
            f"mail_extract for the week of {third}, supplier_price_list, mail_analytics and "
            "report_distribution",
            extracts[2],
            ["dags", "test", "supplier_price_list"],
            ["dags", "test", "mail_analytics"],
            ["dags", "test", "report_distribution", f"{self.today}T06:00:00"],
        )
        return late

    def _run(self, what: str, *commands: Sequence[str]) -> None:
        """Run Airflow commands; if one fails, exit with the last lines of the log."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")
        }
        # No proxy between Airflow and the emulator.
        environment |= {"NO_PROXY": "*", "no_proxy": "*", **self.settings}
        begun = datetime.now(UTC)
        with self._console.status(f"{what} ..."), self.log.open("ab") as log:
            # A signal between the start and `try` would leave it running.
            signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
            # In its own session, so that everything it starts can be killed with it.
            process = subprocess.Popen(  # noqa: S603 - fixed arguments
                [sys.executable, "-c", _RUN_AIRFLOW, json.dumps(commands)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self.home,
                start_new_session=True,
            )
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
                code: int | str = process.wait(_STEP_SECONDS)
            except subprocess.TimeoutExpired:
                code = f"timeout after {_STEP_SECONDS} s"
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code != 0:
            tail = self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL:]
            typer.echo("\n".join(tail), err=True)
            fail(f"{what} failed ({code}). Full log: {self.log}")
        seconds = (datetime.now(UTC) - begun).total_seconds()
        self._console.print(f"[green]ok[/]  {what} [dim]{seconds:.0f} s[/]")

    def write_settings(self) -> Path:
        """Write the environment for a shell, with the emulator on its default port."""
        connection = json.loads(self.settings["AIRFLOW_CONN_R7MAIL_DEFAULT"])
        settings = self.settings | {
            "AIRFLOW_CONN_R7MAIL_DEFAULT": json.dumps(connection | {"port": EMULATOR_PORT})
        }
        path = self.home / "airflow.env"
        lines = [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
        path.write_text("\n".join(lines) + "\n")
        return path


def _say_start(console: Console, server: Emulator, airflow: _DemoAirflow) -> None:
    count = sum(len(server.mailbox.messages(number)) for number in server.mailbox.folders)
    console.print(f"The emulator runs at {server.url}, with {count:,} messages of an office.")
    console.print("Running four example DAGs in a real Airflow. Its log:")
    console.print(str(airflow.log), soft_wrap=True, markup=False)


def _show_demo(console: Console, server: Emulator, airflow: _DemoAirflow, late: int) -> None:
    import pyarrow.compute as pc
    import pyarrow.dataset as ds
    from upath import UPath  # noqa: PLC0415 - slow

    from airflow_provider_r7mail.lake.reading import read_table  # noqa: PLC0415 - not on Windows

    names = ("tables/messages", "tables/recipients", "tables/attachments")
    rows = {name: read_table(UPath(airflow.lake / name)) for name in names}
    rows["price_lists"] = ds.dataset(airflow.lake / "price_lists", partitioning="hive").to_table()
    table = make_table("on disk", "files", "rows", "bytes")
    for path, found in rows.items():
        files = list((airflow.lake / path).rglob("*.parquet"))
        size = sum(file.stat().st_size for file in files)
        table.add_row(path, str(len(files)), f"{found.num_rows:,}", f"{size:,}")
    copied = [
        file
        for file in (airflow.lake / "attachments").rglob("*")
        if file.is_file() and not file.name.startswith("_")
    ]
    total = sum(file.stat().st_size for file in copied)
    table.add_row("attachments", str(len(copied)), "", f"{total:,}")
    console.print(table)
    statuses = pc.value_counts(rows["tables/attachments"]["status"]).to_pylist()
    told = ", ".join(f"{item['counts']} {item['values']}" for item in statuses)
    console.print(f"Attachments in the three weeks: {told or 'none'}.")
    prices = set(rows["price_lists"]["message_id"].to_pylist())
    filed = [m for m in server.mailbox.messages(_processed(server)) if m["Id"] in prices]
    if any(message["WasRead"] for message in filed):
        console.print("The price list's message was marked as read and moved to folder processed.")
    for sent in server.mailbox.sent:
        [file] = sent["Attachments"]
        console.print(f"The report was sent as message {sent['Id']}, with {file['FileName']}.")
    messages = rows["tables/messages"]
    if late in messages["message_id"].to_pylist():
        console.print(
            f"Message {late} arrived after its week had been extracted. The next run looked at "
            "that week again, and found it."
        )
    _show_rows(console, messages)
    _show_senders(console, messages, airflow.lake / "tables/messages")
    _show_next(console, airflow)


def _processed(server: Emulator) -> int:
    return next(number for number, name in server.mailbox.folders.items() if name == "processed")


def _show_rows(console: Console, messages: Any) -> None:
    from rich import box  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    found = messages.select(["date", "from_address", "subject"])
    shown = Table(title="Latest messages", title_justify="left", box=box.SIMPLE_HEAD)
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
        import duckdb  # noqa: PLC0415 - optional

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
    table = make_table("sender", "messages", title=f"Top senders ({how})")
    for address, count in senders:
        table.add_row(escape(address or ""), str(count))
    console.print(table)


def _senders_query(path: Path) -> str:
    files = f"{path}/**/*.parquet".replace("'", "''")
    return (
        f"SELECT from_address, count(*) AS messages FROM '{files}' "  # noqa: S608 - a local path
        "GROUP BY ALL ORDER BY messages DESC, from_address LIMIT 5"
    )


def _show_next(console: Console, airflow: _DemoAirflow) -> None:
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
        "What to try next:",
        f"  {short(tools / 'python')} -c " + (f'"{ask}"' if plain else shlex.quote(ask)),
        f"  {short(tools / 'r7mail')} emulator",
        f"  . {short(settings)} && PATH={shlex.quote(str(tools))}:$PATH airflow standalone",
        "Run the last two in separate terminals: the emulator, and Airflow with its UI. Trigger",
        "report_distribution there: its message, with the file, appears on the emulator's page.",
        "",
        "A report on the mail, with charts, to open in a browser:",
        f"  {short(lake / 'marts' / 'report.html')}",
    ]
    console.print("\n".join(lines), soft_wrap=True, markup=False)
