"""Take screenshots of the connection form in Airflow's UI: `make pictures`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.browser import chromium

IMAGES = Path(__file__).parents[1] / "images"
AIRFLOW = (sys.executable, "-m", "airflow")
START_SECONDS = 120


def main() -> None:
    """Open the form in a new Airflow, fill it in as a user would, and take screenshots."""
    with airflow() as url, chromium() as browser:
        page = browser.new_page(viewport={"width": 1000, "height": 2400})
        page.goto(f"{url}/connections")
        page.get_by_role("button", name="Add Connection").click()
        page.get_by_role("dialog").wait_for()
        page.locator("input[name=connection_id]").fill("r7mail_default")
        page.get_by_role("combobox").last.fill("R7-Office Mail")
        page.keyboard.press("Enter")
        page.locator("input[name=host]").fill("mail.example.org")
        page.locator("input[name=login]").fill("ann")
        page.locator("input[name=password]").fill("password")
        page.get_by_role("dialog").screenshot(path=IMAGES / "connection-form.png")
        page.get_by_role("button", name="Extra Fields", exact=True).click()
        page.locator("#element_folders").click()
        page.keyboard.press("Control+A")
        page.keyboard.insert_text('{"inbox": 24, "processed": 15}')
        page.keyboard.press("Control+Shift+End")
        page.keyboard.press("Delete")  # brackets that the editor closed automatically
        page.wait_for_timeout(1000)  # the section slides open
        page.get_by_role("dialog").screenshot(path=IMAGES / "connection-form-extra.png")


@contextmanager
def airflow() -> Iterator[str]:
    """Run Airflow's API server with its own database; yield its URL."""
    with tempfile.TemporaryDirectory(prefix="r7mail-pictures-") as home:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        environment = {
            **{name: value for name, value in os.environ.items() if "AIRFLOW" not in name},
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        }
        log = Path(home, "log")
        with log.open("w") as output:

            def start(*command: str) -> subprocess.Popen[bytes]:
                return subprocess.Popen(  # noqa: S603 - fixed commands
                    [*AIRFLOW, *command],
                    env=environment,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # stopped with all its children
                )

            if start("db", "migrate").wait(START_SECONDS):
                raise RuntimeError(f"Airflow's database was not created:\n{log.read_text()}")
            server = start("api-server", "--host", "127.0.0.1", "--port", str(port))
            try:
                wait_for(f"{url}/api/v2/version", server, log)
                yield url
            finally:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait(START_SECONDS)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a page responds."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            if httpx.get(url, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"Airflow did not start:\n{log.read_text()}")


if __name__ == "__main__":
    main()
