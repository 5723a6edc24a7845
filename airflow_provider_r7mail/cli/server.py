"""The options that name a mail server, shared by the commands; and the password."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_provider_r7mail.cli.console import fail

if TYPE_CHECKING:
    from airflow_provider_r7mail.client.http import ClientConfig

Verify = Annotated[
    bool, typer.Option("--verify/--no-verify", help="Verify the server's TLS certificate.")
]
Ca = Annotated[Path | None, typer.Option(help="Verify it against this CA bundle.")]
SERVER = typer.Option(envvar="R7MAIL_URL", help="The server, like https://mail.example.org.")
LOGIN = typer.Option(envvar="R7MAIL_LOGIN", help="The account's login.")

_PASSWORD = "R7MAIL_PASSWORD"  # noqa: S105 - the name of a variable


def client_config(
    url: str, login: str, *, verify: bool, ca: Path | None, code: int = 1, **more: Any
) -> ClientConfig:
    """Return the client's configuration from a command's options. Prompts for the password.

    :param code: the exit code if that fails
    :param more: further fields of the configuration
    """
    from airflow_provider_r7mail.client.http import ClientConfig  # noqa: PLC0415

    if not url.startswith(("https://", "http://")):
        fail("--url: give the server's URL, like https://mail.example.org", code=code)
    return ClientConfig(
        url=url.rstrip("/"),
        login=login,
        password=_password(code),
        verify=verify if ca is None else str(ca),
        **more,
    )


def _password(code: int) -> str:
    if value := os.environ.get(_PASSWORD):
        return value
    if not sys.stdin.isatty():
        fail(f"no password: set {_PASSWORD}, or run this in a terminal", code=code)
    answer: str = typer.prompt("Password", hide_input=True, err=True)
    return answer
