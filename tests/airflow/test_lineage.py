"""Lineage as people see it: OpenLineage events, asset events, and hook lineage."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest

from airflow_provider_r7mail.compat import Asset, ObjectStoragePath
from airflow_provider_r7mail.emulator import Emulator, Mailbox
from airflow_provider_r7mail.hooks import R7MailHook
from airflow_provider_r7mail.lake.schema import schema
from airflow_provider_r7mail.lake.storage import url_of
from airflow_provider_r7mail.lineage import storage_uri
from airflow_provider_r7mail.transfers import R7MailToParquetOperator
from tests.conftest import AIRFLOW_2, DAGS
from tests.processes import run_file
from tests.s3 import S3Server

START = datetime(2025, 6, 1, tzinfo=UTC)
DAY: dict[str, Any] = {"start": "2025-06-01T00:00:00Z", "end": "2025-06-02T00:00:00Z"}
WINDOW = "mailbox=user_test/folder=24/window=20250601T000000Z_20250602T000000Z"
SECRET = "ТАЙНА"

# One process for all: Airflow sets up OpenLineage once, when it loads its plugins.
DAG = """
    from airflow.sdk import DAG, task
    from airflow_provider_r7mail.hooks import R7MailHook
    from airflow_provider_r7mail.operators import R7MailSendOperator
    from airflow_provider_r7mail.transfers import (
        R7MailAttachmentsToObjectStorageOperator,
        R7MailToParquetOperator,
    )

    with DAG("openlineage") as dag:
        day = dict(folder=24, start="2025-06-01T00:00:00Z", end="2025-06-02T00:00:00Z")
        extract = R7MailToParquetOperator(
            task_id="extract", output_path="{root}/lake", attachments_path="{root}/files",
            columns=["message_id", "date", "to_addresses"], **day,
        )
        s3 = R7MailToParquetOperator(
            task_id="s3", output_path="s3://s3_lineage@mail/lake", tables=["messages"], **day,
        )
        files = R7MailAttachmentsToObjectStorageOperator(
            task_id="files", attachments_path="{root}/copies", **day,
        )
        broken = R7MailToParquetOperator(
            task_id="broken", output_path="{root}/broken", attachments_path="{root}/files",
            folder=25, start="2025-06-01", end="2025-06-02",
        )

        @task
        def hook():
            hook = R7MailHook()
            [message] = [m.id for m in hook.iter_messages(24, subject="Прайс")]
            hook.download_attachment(24, message, "a.csv", "{root}/by_hook/a b.csv")
            return len(hook.get_messages_df(25))

        send = R7MailSendOperator(
            task_id="send", to="a@b.ru", subject="s", html_content="h",
            files=["{root}/a b.csv", "s3://s3_lineage@mail/report.csv"],
        )
        [extract, s3, files, hook(), broken, send]

    if __name__ == "__main__":
        dag.test()
"""


class Lineage(NamedTuple):
    """The OpenLineage events of the run."""

    events: list[dict[str, Any]]
    root: Path
    host: str

    def of(self, task: str, kind: str = "COMPLETE") -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a task's inputs and outputs, by namespace and name."""
        [event] = [
            event
            for event in self.events
            if event["eventType"] == kind and event["job"]["name"] == f"openlineage.{task}"
        ]
        inputs, outputs = (
            {f"{item['namespace']} {item['name']}": item for item in event[side]}
            for side in ("inputs", "outputs")
        )
        return inputs, outputs


@pytest.fixture(scope="module")
def lineage(airflow_database: None, tmp_path_factory: pytest.TempPathFactory) -> Lineage:
    """The events of the tasks above, written by OpenLineage's file transport."""
    root = tmp_path_factory.mktemp("lineage")
    path = DAGS / "openlineage_dag.py"
    code = textwrap.dedent(DAG).replace("{root}", str(root))
    sdk = "tests.airflow_2" if AIRFLOW_2 else "airflow.sdk"
    path.write_text(code.replace("airflow.sdk", sdk))
    mailbox = Mailbox()
    mailbox.deliver(
        date=START, subject=f"Прайс {SECRET}", body=SECRET, attachments=[("a.csv", b"1;2", "x/y")]
    )
    mailbox.deliver(date=START, to=["a@x.ru", "b@x.ru"])
    mailbox.deliver(folder=25, date=START, fields={"Attachments": [{"FileName": "missing"}]})
    moto = S3Server()
    extra = {"endpoint_url": moto.url, "region_name": "us-east-1"}
    keys = {"login": "testing", "password": "testing"}
    s3 = boto3.client("s3", aws_access_key_id="testing", aws_secret_access_key="testing", **extra)
    s3.create_bucket(Bucket="mail")
    s3.put_object(Bucket="mail", Key="report.csv", Body=b"1")
    (root / "a b.csv").write_bytes(b"2")
    events = root / "events.json"
    try:
        with Emulator(mailbox) as server:
            done = run_file(
                path,
                {
                    "AIRFLOW_CONN_R7MAIL_DEFAULT": server.connection(max_retries=0),
                    "AIRFLOW_CONN_S3_LINEAGE": json.dumps(
                        {"conn_type": "aws", **keys, "extra": extra}
                    ),
                    "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(
                        {"type": "file", "log_file_path": str(events), "append": True}
                    ),
                },
            )
            host = server.url.removeprefix("http://")
    finally:
        moto.stop()
        path.unlink()
    assert events.exists(), done.stdout + done.stderr
    return Lineage([json.loads(line) for line in events.read_text().splitlines()], root, host)


def numbers(output: dict[str, Any]) -> dict[str, Any]:
    """Return the statistics of a dataset."""
    facet = output["outputFacets"]["outputStatistics"]
    return {name: facet.get(name) for name in ("rowCount", "size", "fileCount")}


def test_an_extract(lineage: Lineage) -> None:
    """The graph of an extract leads from the mail folder to each table and the attachments."""
    inputs, outputs = lineage.of("extract")
    root = lineage.root
    lake = {name: f"file {root}/lake/{name}" for name in ("messages", "recipients", "attachments")}

    [folder] = inputs.values()
    assert (folder["namespace"], folder["name"]) == (f"r7mail://{lineage.host}", "user_test/24")
    assert folder["facets"]["dataSource"]["uri"] == folder["namespace"]
    assert set(outputs) == {*lake.values(), f"file {root}/files"}
    part = root / "lake" / "messages" / WINDOW / "part-00000.parquet"
    assert numbers(outputs[lake["messages"]]) == {
        "rowCount": 2,
        "size": part.stat().st_size,
        "fileCount": 1,
    }
    assert numbers(outputs[lake["recipients"]])["rowCount"] == 3
    assert numbers(outputs[f"file {root}/files"]) == {"rowCount": None, "size": 3, "fileCount": 1}
    assert "schema" not in outputs[f"file {root}/files"]["facets"]
    for output in outputs.values():
        assert output["facets"]["dataSource"]["name"] == "file"


def test_the_columns(lineage: Lineage) -> None:
    """The graph has the requested columns of each table, with their types."""
    _, outputs = lineage.of("extract")

    def columns(table: str) -> list[tuple[str, str]]:
        facet = outputs[f"file {lineage.root}/lake/{table}"]["facets"]["schema"]
        return [(column["name"], column["type"]) for column in facet["fields"]]

    assert columns("messages") == [
        ("message_id", "int64"),
        ("date", "timestamp[us, tz=UTC]"),
        ("to_addresses", "list<item: string>"),
    ]
    assert [name for name, _ in columns("attachments")] == schema("attachments").names


def test_s3(lineage: Lineage) -> None:
    """In S3, a table is a dataset of its bucket, whatever the connection."""
    _, outputs = lineage.of("s3")

    assert set(outputs) == {"s3://mail lake/messages"}


def test_attachments(lineage: Lineage) -> None:
    """The graph leads from the mail folder to the downloaded attachments, with count and bytes."""
    inputs, outputs = lineage.of("files")

    assert set(inputs) == {f"r7mail://{lineage.host} user_test/24"}
    [output] = outputs.values()
    assert (output["namespace"], output["name"]) == ("file", f"{lineage.root}/copies")
    assert numbers(output) == {"rowCount": None, "size": 3, "fileCount": 1}


def test_attached_files(lineage: Lineage) -> None:
    """The graph has the files that a message was sent with, under the names that others give."""
    inputs, outputs = lineage.of("send")

    assert set(inputs) == {f"file {lineage.root}/a b.csv", "s3://mail report.csv"}
    assert outputs == {}


def test_a_failed_extract(lineage: Lineage) -> None:
    """A failed task is in the graph too, with its intended inputs and outputs."""
    inputs, outputs = lineage.of("broken", "FAIL")

    assert set(inputs) == {f"r7mail://{lineage.host} user_test/25"}
    assert f"file {lineage.root}/broken/messages" in outputs


@pytest.mark.skipif(AIRFLOW_2, reason="it takes the login out of a folder's URI")
def test_a_hook(lineage: Lineage) -> None:
    """Reads and downloads through the hook in a task's own code are in the graph once each."""
    inputs, outputs = lineage.of("hook")

    assert set(inputs) == {
        f"r7mail://{lineage.host} user_test/24",
        f"r7mail://{lineage.host} user_test/25",
    }
    assert set(outputs) == {f"file {lineage.root}/by_hook/a%20b.csv"}


def test_no_secrets(lineage: Lineage) -> None:
    """No mail, password or connection id ends up in the graph."""
    for event in lineage.events:
        datasets = json.dumps([event["inputs"], event["outputs"]], ensure_ascii=False)
        assert "s3_lineage" not in datasets
        assert "r7mail_default" not in datasets
        text = json.dumps(event, ensure_ascii=False)
        assert SECRET not in text
        assert Mailbox().password not in text


def test_without_openlineage(
    server: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without OpenLineage installed, extracts and reads work just the same."""
    for name in [name for name in sys.modules if "openlineage" in name]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("openlineage", "openlineage.client", "airflow.providers.openlineage"):
        monkeypatch.setitem(sys.modules, name, None)
    number = server.mailbox.deliver(date=START, attachments=[("a", b"x", "x/y")])
    operator: Any = R7MailToParquetOperator(
        task_id="extract", folder=24, output_path=str(tmp_path / "lake"), **DAY
    )

    assert operator.execute({})["messages"] == 1
    assert [message.id for message in R7MailHook().iter_messages(24)] == [number]
    assert R7MailHook().download_attachment(24, number, "a", tmp_path / "a").size == 1


@pytest.mark.skipif(AIRFLOW_2, reason="its dag.test() knows no assets")
def test_asset_events(server: Emulator, run_dag: Callable[[str], Any], tmp_path: Path) -> None:
    """The asset events of an extract have the window, the row counts and the manifest's URL."""
    server.mailbox.deliver(
        date=START, subject=SECRET, attachments=[("a.csv", b"1;2", "x/y")], to=["a@x.ru"]
    )
    result = run_dag(f"""
        from airflow.sdk import DAG, Asset, AssetAlias, task
        from airflow_provider_r7mail.transfers import (
            R7MailAttachmentsToObjectStorageOperator,
            R7MailToParquetOperator,
        )

        mail, files = Asset("mail"), Asset("files")
        places = AssetAlias("places")

        with DAG("asset_events") as dag:
            extract = R7MailToParquetOperator(
                task_id="extract", folder=24, output_path="{tmp_path}/lake",
                tables=["messages", "recipients"], outlets=[mail, places], **{DAY!r},
            )
            copies = R7MailAttachmentsToObjectStorageOperator(
                task_id="copies", folder=24, attachments_path="{tmp_path}/files", outlets=[files],
            )

            # [START consumer]
            @task(inlets=[mail])
            def consume(inlet_events):
                return inlet_events[mail][-1].extra
            # [END consumer]

            @task(inlets=[files, places])
            def others(inlet_events):
                aliased = inlet_events[places]
                return [inlet_events[files][-1].extra, [event.asset.uri for event in aliased],
                    [event.extra for event in aliased]]

            [extract, copies] >> consume() >> others()
    """)
    extra = result.xcom("consume")
    copied, uris, aliased = result.xcom("others")

    assert extra == {
        "folder_id": 24,
        "window_start": "2025-06-01T00:00:00+00:00",
        "window_end": "2025-06-02T00:00:00+00:00",
        "messages_rows": 1,
        "recipients_rows": 1,
        "manifest": f"file://{tmp_path}/lake/messages/{WINDOW}/_manifest.json",
    }
    manifest = json.loads(ObjectStoragePath(extra["manifest"]).read_bytes())
    assert manifest == result.xcom("extract")
    assert copied == {
        "folder_id": 24,
        "files_downloaded": 1,
        "files_unchanged": 0,
        "files_failed": 0,
        "files_unavailable": 0,
        "path": f"file://{tmp_path}/files",
    }
    assert sorted(uris) == [f"file://{tmp_path}/lake/{name}" for name in ("messages", "recipients")]
    assert aliased == [extra, extra]


def test_names_of_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names have no connection in them, and can contain characters with a meaning in URIs."""
    path = ObjectStoragePath(f"file://{tmp_path}/a #1?%41/почта")

    assert url_of(path) == f"file://{tmp_path}/a #1?%41/почта"
    uri = storage_uri(path)
    assert uri == f"file://{tmp_path}/a%20%231%3F%2541/%D0%BF%D0%BE%D1%87%D1%82%D0%B0"
    assert Asset(uri=uri).uri == uri
    monkeypatch.setenv("AIRFLOW_CONN_S3_NAMES", '{"conn_type": "aws", "extra": {}}')
    inside = ObjectStoragePath("s3://s3_names@mail/lake") / "messages"
    assert storage_uri(inside) == url_of(inside) == "s3://mail/lake/messages"
