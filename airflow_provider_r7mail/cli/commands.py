"""The ``r7mail`` command: a list of its commands, each in a module of its own.

To add a command, write a module with one function, and list it below with an example. A command
imports what it needs when it runs, so that help is fast.
"""

from __future__ import annotations

import typer

from airflow_provider_r7mail.cli.audit import audit
from airflow_provider_r7mail.cli.check import check
from airflow_provider_r7mail.cli.compact import compact
from airflow_provider_r7mail.cli.demo import demo
from airflow_provider_r7mail.cli.emulator import emulator
from airflow_provider_r7mail.cli.extract import extract

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",  # paragraphs are filled to the terminal's width
)


@app.callback()
def main() -> None:
    """Work with R7-Office mail from the command line."""


app.command(epilog="Example: r7mail emulator --port 8025 --mail archive.mbox")(emulator)
app.command(
    epilog="Example: R7MAIL_PASSWORD=... r7mail extract --url https://mail.example.org --login ann "
    "--folder 24 --start 2025-06-01 --end 2025-07-01 --output lake/tables"
)(extract)
app.command(
    epilog="Example: R7MAIL_PASSWORD=... r7mail check --url https://mail.example.org --login ann "
    "--folder 24 --json report.json"
)(check)
app.command(
    epilog="Example: R7MAIL_PASSWORD=... r7mail audit --url https://mail.example.org --login ann "
    "--folder 24 --output lake/tables --html audit.html"
)(audit)
app.command(epilog="Example: r7mail compact --output s3://bucket/mail --older-than-days 35")(
    compact
)
app.command(epilog="Example: r7mail demo --dir /tmp/r7mail-demo")(demo)
