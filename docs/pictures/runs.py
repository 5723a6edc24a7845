"""Take screenshots of mail starting a DAG in Airflow's UI: `make pictures`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from airflow_provider_r7mail.emulator import Emulator, Mailbox
from tests.airflow.standalone import DAG, SOURCE, Standalone, order, pauses, wait
from tests.browser import chromium

IMAGES = Path(__file__).parents[1] / "images"
INBOX = 24
SETTLE_MS = 4_000  # until the graph's layout and animation are done


def main() -> None:
    """Let an order arrive, wait for the run that it starts, and take screenshots of both."""
    with (
        tempfile.TemporaryDirectory(prefix="r7mail-pictures-") as home,
        Emulator(Mailbox()) as server,
    ):
        (Path(home) / "dags").mkdir()
        code = SOURCE.read_text().replace("poll_interval=60", "poll_interval=1")
        (Path(home) / "dags" / SOURCE.name).write_text(code)
        airflow = Standalone(Path(home), server)
        try:
            wait(airflow, "the watcher polls", lambda: pauses(server, INBOX) > 0)
            order(server, 1)
            wait(airflow, "the order is filed", airflow.filed)
            wait(airflow, "the run ends", lambda: airflow.runs(DAG)[0]["state"] == "success")
            photograph(airflow)
        finally:
            airflow.stop()


def photograph(airflow: Standalone) -> None:
    """Take screenshots of the run's graph and of the asset with the event that started it."""
    url = str(airflow.api.base_url).removesuffix("/api/v2/")
    [run] = airflow.runs(DAG)
    [asset] = airflow.get("/assets")["assets"]
    with chromium() as browser:
        for name, path in (
            ("run-graph", f"/dags/{DAG}/runs/{run['dag_run_id']}"),
            ("asset-event", f"/assets/{asset['id']}"),
        ):
            page = browser.new_page(viewport={"width": 1500, "height": 760})
            page.goto(url + path)
            if name == "run-graph":
                page.get_by_role("button", name="Show Graph").click()
            page.wait_for_timeout(SETTLE_MS)
            page.screenshot(path=IMAGES / f"{name}.png")
            page.close()


if __name__ == "__main__":
    main()
