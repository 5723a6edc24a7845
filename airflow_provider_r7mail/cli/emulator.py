"""``r7mail emulator``: run the emulator until Ctrl-C."""

from __future__ import annotations

import errno
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airflow_provider_r7mail.cli.console import EMULATOR_PORT, fail, import_emulator

if TYPE_CHECKING:
    from airflow_provider_r7mail.emulator import Emulator

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def emulator(
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 picks a free one.")
    ] = EMULATOR_PORT,
    mail: Annotated[
        Path | None,
        typer.Option(
            help="Mail to serve: an mbox, a Maildir, a directory of .eml files, or one .eml. "
            "By default a generated office: 5,000 messages from the last 90 days.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. With an address other than 127.0.0.1, anyone who can reach "
            "it can read the mail."
        ),
    ] = "127.0.0.1",
) -> None:
    """Run the emulator: a local R7-Office mail server for experiments and tests.

    It implements the whole mail API in memory: log in, list, send, mark, move, delete, download.
    It delivers nothing, and forgets everything when it stops (Ctrl-C).

    It prints an Airflow connection to put into Airflow's environment. Other programs can inspect
    the emulator and make it fail under /_emulator/ (start with /_emulator/state).
    """
    server = import_emulator()(mail, port=port, host=host)
    try:
        server.start()
    except (OSError, ValueError) as error:
        fail(_reason(error, host, port))
    if host not in _LOOPBACK:
        typer.secho(
            f"Warning: {host} may be reachable from other machines, and the password is public.",
            fg="yellow",
            err=True,
        )
    _serve_until_told(server)


def _serve_until_told(server: Emulator) -> None:
    """Print how to use the server, and serve until Ctrl-C or SIGTERM."""
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
        f"R7-Office mail emulator at {server.url}",
        "web page  open the same URL in a browser: mail, API calls, and buttons to make them fail",
        f"login     {mailbox.login}",
        f"password  {mailbox.password}",
        f"address   {mailbox.address}",
        "folders   id, name, number of messages",
    ]
    with mailbox.lock:
        for number, name in mailbox.folders.items():
            folder = mailbox.contents(number)
            count, unread = len(folder.records), folder.unread
            lines.append(f"  {number:>4}  {name:<14} {count:>7} ({unread} unread)")
    lines += [
        "Airflow connection",
        f"  export AIRFLOW_CONN_R7MAIL_DEFAULT='{server.connection()}'",
        "Press Ctrl-C to stop.",
    ]
    return "\n".join(lines)


def _reason(error: OSError | ValueError, host: str, port: int) -> str:
    if isinstance(error, OSError) and error.filename is None and error.errno is not None:
        about_port = error.errno in {errno.EADDRINUSE, errno.EACCES}
        hint = "--port 0 picks a free port" if about_port else "Give --host one of this machine's"
        return f"can't listen on {host}:{port}: {error.strerror}. {hint}"
    return str(error)
