"""What those who operate Airflow rely on: tasks can be stopped, and logs show no secret."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest

from airflow_provider_r7mail.emulator import Emulator, Mailbox, Readings
from tests.airflow.standalone import Standalone, wait

pytest.importorskip("airflow.sdk", reason="`airflow standalone` as the tests know it is 3's")

pytestmark = pytest.mark.slow
DAY = datetime(2025, 6, 1, tzinfo=UTC)
# What users write who look for a mistake. The forms are those of URLs and headers.
TELLING = """
import base64, logging
from urllib.parse import quote
from airflow_provider_r7mail.client.calls import parse_page, list_messages
from airflow_provider_r7mail.hooks import R7MailHook
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.triggers import R7MailMessageTrigger

CALL = list_messages(
    24, MessageFilter(), start=None, end=None, offset=0, size=1, parse=parse_page
)

def tell(log, where, client):
    secret = client.config.password
    log.info("%s: plain %s", where, secret)
    log.info("%s: header %s", where, {"Authorization": secret})
    log.info("%s: url ?token=%s", where, quote(secret, safe=""))
    log.info("%s: base64 %s", where, base64.b64encode(secret.encode()).decode())
    try:
        raise RuntimeError(secret)
    except RuntimeError:
        log.exception("%s: traceback", where)

class Telling(R7MailMessageTrigger):
    async def run(self):
        async with await R7MailHook().aget_conn() as client:
            await client.send(CALL)
            tell(self.log, "trigger", client)
        async for event in super().run():
            yield event
"""
DAGS = """
import telling
from airflow.sdk import DAG, BaseOperator
from airflow_provider_r7mail.hooks import R7MailHook
from airflow_provider_r7mail.transfers import R7MailToParquetOperator

class Tell(BaseOperator):
    def execute(self, context):
        with R7MailHook().get_conn() as client:
            client.send(telling.CALL)
            telling.tell(self.log, "task", client)
        self.defer(trigger=telling.Telling(folder=24, subject="Told"), method_name="end")

    def end(self, context, event):
        pass

with DAG("tells", schedule=None):
    Tell(task_id="tell")
with DAG("extracts", schedule=None):
    R7MailToParquetOperator(
        task_id="extract", folder=24, start="2025-06-01", end="2025-06-02", page_size=5,
        output_path="OUTPUT/tables", attachments_path="OUTPUT/files",
    )
"""


@pytest.fixture
def mail() -> Iterator[Emulator]:
    """A slow server with a day of mail and a password of its own."""
    mailbox = Mailbox()
    mailbox.password = "Пароль/of+the test"
    for number in range(4_000):
        file = [("a.bin", b"x" * 300_000, "x/y")] if number % 50 == 0 else []
        mailbox.deliver(date=DAY.replace(second=number % 60), attachments=file)
    mailbox.deliver(subject="Told")
    with Emulator(mailbox, Readings(latency_seconds=0.3)) as server:
        yield server


@pytest.fixture
def airflow(mail: Emulator, tmp_path: Path) -> Iterator[Standalone]:
    """Airflow with a DAG that logs its secrets, and one that extracts."""
    for folder, name, code in (
        ("plugins", "telling.py", TELLING),
        ("dags", "operations.py", DAGS.replace("OUTPUT", f"{tmp_path}/output")),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(code)
    standalone = Standalone(tmp_path, mail)
    try:
        yield standalone
    finally:
        standalone.stop()


def test_operations(airflow: Standalone, mail: Emulator, tmp_path: Path) -> None:
    """A task marked as failed stops in seconds and leaves no files; no log has a secret."""
    output = tmp_path / "output"

    def state(dag: str) -> str | None:
        runs = airflow.runs(dag)
        return runs[0]["state"] if runs else None

    def staged() -> list[Path]:
        return [path for path in output.rglob("*") if path.name.startswith("_staged")]

    def start(dag: str) -> None:
        # Not by a schedule: Airflow fails what it runs before its own API server is up.
        wait(airflow, "the DAG is read", lambda: airflow.get(f"/dags/{dag}"))
        airflow.api.post(f"/dags/{dag}/dagRuns", json={"logical_date": None}).raise_for_status()

    start("extracts")
    wait(airflow, "the extract writes", staged)
    [run] = airflow.runs("extracts")
    path = f"/dags/extracts/dagRuns/{run['dag_run_id']}/taskInstances/extract"
    airflow.api.patch(path, json={"new_state": "failed"}).raise_for_status()
    wait(airflow, "nothing is left half-written", lambda: not staged())
    listings = len(mail.requests)
    start("tells")
    # Or failed: Airflow 3.3.2's scheduler takes a trigger that fires at once for a lost task.
    wait(airflow, "the telling DAG is over", lambda: state("tells") in {"success", "failed"})
    late = [
        request
        for request in mail.requests[listings:]
        if "2025-06-01" in str((request["json"] or {}).get("SearchContext"))
    ]

    assert late == []
    assert list(output.rglob("_manifest.json")) == []
    assert list(output.rglob("*.parquet")) == []
    logs = "\n".join(
        file.read_text(errors="replace") for file in (tmp_path / "logs").rglob("*.log*")
    )
    for where in ("task", "trigger"):
        for form in ("plain", "header", "url", "base64", "traceback"):
            assert f"{where}: {form}" in logs
    assert "Stopped. Partial output was removed" in logs
    # The password is masked, whoever logs it; a token is in no log of the package's.
    # Not in the console of LocalExecutor's workers, where Airflow 3.3.2 masks nothing at all.
    for secret in (mail.mailbox.password, *mail._service._tokens):
        for form in (secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode()):
            assert form not in logs
