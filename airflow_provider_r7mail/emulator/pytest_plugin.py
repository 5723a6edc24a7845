"""A pytest plugin: the fixture ``r7mail_server``, for tests of your own DAGs.

pytest loads it wherever the package is installed, so it imports nothing but pytest until a test
uses the fixture.
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
    """Start the emulator with an empty mailbox, as the Airflow connection ``r7mail_default``.

    It listens on a free port of 127.0.0.1, and stops after the test. For a DAG that uses another
    connection::

        monkeypatch.setenv("AIRFLOW_CONN_OUR_MAIL", r7mail_server.connection())

    :yields: the running `Emulator`: deliver mail with its ``mailbox``, make calls fail with its
        ``faults``, and check ``requests`` and ``mailbox.sent`` afterwards.
    """
    try:
        from airflow_provider_r7mail.emulator import Emulator, Mailbox  # noqa: PLC0415 - see above
    except ModuleNotFoundError as error:
        pytest.fail(str(error), pytrace=False)
    for name in ("NO_PROXY", "no_proxy"):
        # Don't send requests to the emulator through the machine's proxy.
        direct = os.environ.get(name, "")
        if direct != "*":
            monkeypatch.setenv(name, f"{direct},127.0.0.1" if direct else "127.0.0.1")
    with Emulator(Mailbox()) as server:
        # One retry, so that tests of failures are fast.
        connection = server.connection(max_retries=1)
        monkeypatch.setenv("AIRFLOW_CONN_R7MAIL_DEFAULT", connection)
        yield server
