"""Log in and read a folder, once and quickly, for Airflow's Test button."""

from __future__ import annotations

from dataclasses import replace

from airflow_provider_r7mail.client import answers, calls
from airflow_provider_r7mail.client.http import ClientConfig
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.session import Client
from airflow_provider_r7mail.exceptions import R7MailError, R7MailRequestError, R7MailTimeoutError

TEST_STEP_SECONDS = 3.0
"""The timeout of one step, so that an error names the step before Airflow gives up."""


class Trial:
    """One attempt to log in and read, described in words.

    :param config: how to reach the server
    :param folder: name and id of the folder to read; None for none
    """

    def __init__(self, config: ClientConfig, folder: tuple[str, int] | None) -> None:
        self._config = replace(
            config,
            max_retries=0,
            timeout=min(config.timeout, TEST_STEP_SECONDS),
            connect_timeout=min(config.connect_timeout, TEST_STEP_SECONDS),
        )
        self._folder = folder
        self._client = Client(self._config, insist=True)

    def run(self) -> tuple[bool, str]:
        """Return whether it worked, and what did or did not."""
        try:
            with self._client as client:
                if self._folder is None:
                    client.log_in()
                    return True, "Logged in. No folder was read: `folders` is empty."
                page = client.send(
                    calls.list_messages(
                        self._folder[1],
                        MessageFilter(),
                        start=None,
                        end=None,
                        offset=0,
                        size=1,
                        parse=answers.parse_page,
                    )
                )
        except R7MailTimeoutError as error:
            return False, self.failed(
                f"{error.reason} ({TEST_STEP_SECONDS:g} s)",
                "Check Host, Port, Schema and proxy of the connection. DAGs wait longer, so a slow "
                "server may still work for them.",
            )
        except R7MailRequestError as error:
            status = "" if error.status is None else f" (status {error.status})"
            return False, self.failed(f"{error.reason}{status}", error.hint)
        except R7MailError as error:
            return False, str(error)
        empty = "" if page.rows else " It has no messages: check its id if it should have."
        return True, f"Logged in, and read {self._name()}.{empty}"

    def failed(self, reason: str, hint: str) -> str:
        """Return what failed, where, and what to do."""
        proxy = self._config.effective_proxy()
        where = f"{self._config.url} through the proxy {proxy.url}" if proxy else self._config.url
        logged_in = self._client.stats.logins > 0
        step = f"logged in, but {self._name()} was not read" if logged_in else "no log-in"
        return f"{where}: {step}: {reason}. {hint}".strip()

    def _name(self) -> str:
        return "folder {!r} ({})".format(*self._folder) if self._folder else "nothing"
