"""The ``r7mail`` command. What a command needs is imported when it runs, so that help is quick."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from airflow_provider_r7mail.emulator import Emulator

app = typer.Typer(
    help="Work with R7-Office mail from the command line.",
    no_args_is_help=True,
    add_completion=False,
)

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


@app.callback()
def main() -> None:
    """Work with R7-Office mail from the command line."""


@app.command()
def emulator(
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 picks a free one.")
    ] = 8025,
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


def _fail(reason: str) -> None:
    typer.secho(f"Error: {reason}", fg="red", err=True)
    raise typer.Exit(1)
