"""What pytest loads: the fixture ``r7mail_server``, for tests of one's own DAGs.

pytest loads this wherever the package is installed. So it imports nothing but pytest, and does
nothing until a test asks for the fixture.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_r7mail.emulator import Emulator


@pytest.fixture
def r7mail_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """A mail server with an empty mailbox, to which the connection ``r7mail_default`` leads.

    It listens on a free port of 127.0.0.1, and stops after the test. For a DAG that uses another
    connection::

        monkeypatch.setenv("AIRFLOW_CONN_OUR_MAIL", r7mail_server.connection())

    :yields: the running `Emulator`: deliver mail by its ``mailbox``, make calls fail by its
        ``faults``, and look at ``requests`` and ``mailbox.sent`` afterwards.
    """
    try:
        from airflow_provider_r7mail.emulator import Emulator, Mailbox  # noqa: PLC0415 - see above
    except ModuleNotFoundError as error:
        pytest.fail(
            f"{error}. Install the server: pip install 'airflow-provider-r7mail[emulator]'",
            pytrace=False,
        )
    for name in ("NO_PROXY", "no_proxy"):
        # A proxy of the machine's must not come between a test and its own server.
        direct = os.environ.get(name, "")
        if direct != "*":
            monkeypatch.setenv(name, f"{direct},127.0.0.1" if direct else "127.0.0.1")
    with Emulator(Mailbox()) as server:
        # One repetition, so that a test of a failure need not wait long.
        connection = server.connection(max_retries=1)
        monkeypatch.setenv("AIRFLOW_CONN_R7MAIL_DEFAULT", connection)
        yield server
