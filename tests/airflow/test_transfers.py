"""The two operators that copy mail, in a real Airflow against the emulator."""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pendulum
import pyarrow.parquet as pq
import pytest

from airflow_provider_r7mail.compat import AirflowFailException, ObjectStoragePath
from airflow_provider_r7mail.emulator import Emulator, Fault, Mailbox, Readings
from airflow_provider_r7mail.exceptions import R7MailAttachmentError, R7MailExtractError
from airflow_provider_r7mail.transfers import (
    R7MailAttachmentsToObjectStorageOperator,
    R7MailToParquetOperator,
)
from tests.s3 import S3Server

CONNECTION = "AIRFLOW_CONN_R7MAIL_DEFAULT"
START = datetime(2025, 6, 1, tzinfo=UTC)
WINDOW = "mailbox=user_test/folder=24/window=20250601T000000Z_20250602T000000Z"
DAY = {"start": "2025-06-01T00:00:00Z", "end": "2025-06-02T00:00:00Z"}


def to_parquet(root: Path | str, context: dict[str, Any] | None = None, **options: Any) -> Any:
    """Run the extract operator."""
    given = {"folder": 24, "output_path": str(root), **(DAY if context is None else {}), **options}
    operator: Any = R7MailToParquetOperator(task_id="extract", **given)
    return operator.execute(context or {})


def attachments(root: Path | str, **options: Any) -> Any:
    """Run the attachments operator."""
    given = {"folder": 24, "attachments_path": str(root), **options}
    operator: Any = R7MailAttachmentsToObjectStorageOperator(task_id="files", **given)
    return operator.execute({})


def files(root: Path) -> dict[str, bytes]:
    """Return all files under a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def calls(server: Emulator, name: str) -> int:
    """Return how many calls of an endpoint the server received."""
    return sum(request["path"].endswith(name) for request in server.requests)


FILTERS = "folder query body sender recipient subject labels was_read start end"


EXTRACT = f"""{FILTERS} output_path attachments_path tables columns page_size attachment_pattern
    max_attachment_bytes storage_conn_id on_bad_message on_attachment_error privacy refresh_windows
    table_format catalog_conn_id catalog_properties namespace r7mail_conn_id"""
COPY = f"""{FILTERS} message_ids attachments_path attachment_pattern max_attachment_bytes
    storage_conn_id on_attachment_error r7mail_conn_id"""
PLAIN = """tables columns page_size max_attachment_bytes on_bad_message on_attachment_error privacy
    refresh_windows table_format"""


@pytest.mark.parametrize(
    ("operator", "names"),
    [(R7MailToParquetOperator, EXTRACT), (R7MailAttachmentsToObjectStorageOperator, COPY)],
)
def test_parameters(operator: Any, names: str) -> None:
    """Both operators have the documented parameters, template them, and only store them."""
    values = {name: f"{{{{ {name} }}}}" for name in names.split()}
    made = operator(task_id="t", **values)

    assert {name: getattr(made, name) for name in values} == values
    assert set(made.template_fields) == set(names.split()) - set(PLAIN.split())
    documented = inspect.getdoc(operator) or ""
    assert all(f"{name}" in documented for name in values)


def test_in_a_dag(
    server: Emulator, run_dag: Callable[[str], Any], tmp_path: Path, logged: Callable[[], str]
) -> None:
    """In a DAG, fields are templated, XCom holds the manifest, and no mail shows up anywhere."""
    secret: dict[str, Any] = {
        "subject": "ТАЙНА-темы",
        "body": "ТАЙНА-тела",
        "sender": "taina@adresa.ru",
    }
    inside = server.mailbox.deliver(
        date=START, attachments=[("Прайс.csv", b"1;2", "text/csv")], **secret
    )
    server.mailbox.deliver(date=START + timedelta(days=1), **secret)
    result = run_dag(f"""
        from datetime import datetime, timezone
        from airflow.sdk import DAG
        from airflow.timetables.interval import CronDataIntervalTimetable
        from airflow_provider_r7mail.transfers import (
            R7MailAttachmentsToObjectStorageOperator,
            R7MailToParquetOperator,
        )

        with DAG(
            "extract",
            schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
            start_date=datetime(2025, 6, 1, tzinfo=timezone.utc),
            params={{"root": "{tmp_path}"}},
        ) as made:
            R7MailToParquetOperator(
                task_id="extract",
                folder="{{{{ 20 + 4 }}}}",
                output_path="file://{{{{ params.root }}}}/lake",
                attachments_path="{{{{ params.root }}}}/files",
                start="{{{{ '2025-06-01' }}}}T00:00:00Z",
                end="2025-06-02T00:00:00Z",
            ) >> R7MailAttachmentsToObjectStorageOperator(
                task_id="files", folder=24, message_ids="[{inside}]",
                attachments_path="{{{{ params.root }}}}/copies",
            )
        dag = made
    """)

    assert result.states == {"extract": "success", "files": "success"}
    manifest, copied = result.xcom("extract"), result.xcom("files")
    assert manifest["messages"] == 1
    assert manifest == json.loads(
        (tmp_path / "lake/messages" / WINDOW / "_manifest.json").read_text()
    )
    assert [item["status"] for item in copied] == ["downloaded"]
    assert set(copied[0]) == {"message_id", "file_name", "uri", "size", "sha256", "status"}
    assert copied[0]["sha256"] == hashlib.sha256(b"1;2").hexdigest()
    assert Path(ObjectStoragePath(copied[0]["uri"]).path).read_bytes() == b"1;2"
    for text in (logged(), json.dumps(manifest, ensure_ascii=False)):
        assert "ТАЙНА" not in text
        assert "taina@" not in text
        assert "1;2" not in text
        assert server.mailbox.password not in text


def test_logs_have_no_mail(server: Emulator, tmp_path: Path, logged: Callable[[], str]) -> None:
    """Whatever fails, no mail, address or token ends up in the log."""
    secret: dict[str, Any] = {
        "subject": "ТАЙНА",
        "body": "ТАЙНА",
        "sender": "taina@adresa.ru",
        "to": ["taina@b.ru"],
    }
    server.mailbox.deliver(date=START, **secret)
    server.mailbox.deliver(fields={"Date": "ТАЙНА"}, **secret)
    missing = {"FileName": "missing", "Id": 1}
    server.mailbox.deliver(date=START, fields={"Attachments": [missing]}, **secret)
    server.readings = Readings(undated="always")
    for kind in ("reset", "truncate", "bad_json"):
        server.faults.append(Fault("Messages", kind=kind, skip=1))
        with pytest.raises(AirflowFailException) as caught:
            to_parquet(tmp_path, attachments_path=str(tmp_path / "files"))
        assert "taina" not in str(caught.value)
    text = logged()

    assert "set aside" in text
    assert "not copied" in text
    assert "ТАЙНА" not in text
    assert "taina" not in text
    assert server.mailbox.password not in text


def test_the_data_interval(server: Emulator, tmp_path: Path) -> None:
    """Without start and end, the window is the run's data interval; one of them can be set."""
    server.mailbox.deliver(date=START)
    context = {
        "data_interval_start": pendulum.datetime(2025, 6, 1, tz="Europe/Moscow").add(hours=3),
        "data_interval_end": pendulum.datetime(2025, 6, 2),
    }
    manifest = to_parquet(tmp_path, context)
    later = to_parquet(tmp_path, context, start="2025-06-01T12:00:00+00:00")

    assert manifest["path"].endswith(WINDOW)
    assert (manifest["messages"], later["messages"]) == (1, 0)


@pytest.mark.parametrize(
    "context",
    [
        {"task": None},
        {"data_interval_start": None, "data_interval_end": None},
        {"data_interval_start": START, "data_interval_end": START},
    ],
)
def test_no_data_interval(server: Emulator, tmp_path: Path, context: dict[str, Any]) -> None:
    """An empty or missing interval is an error that names timetables with an interval."""
    with pytest.raises(AirflowFailException, match="CronDataIntervalTimetable") as caught:
        to_parquet(tmp_path, context)

    assert "CronTriggerTimetable" in str(caught.value)
    assert server.requests == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"start": "2025-06-02T00:00:00Z", "end": "2025-06-01T00:00:00Z"}, "not after its start"),
        ({"start": "soon"}, "start: 'soon' is not a date"),
        ({"folder": "Счета"}, "there is no folder 'Счета'"),
        ({"output_path": ""}, "output_path: empty"),
        ({"output_path": "gs://bucket/mail"}, r"no file system for gs://.*\[google\]"),
        ({"attachments_path": "foo://bucket"}, "attachments_path: no file system for foo://"),
        ({"storage_conn_id": "nowhere", "output_path": "s3://b/m"}, "nowhere"),
        ({"output_path": "s3://nowhere@b/m"}, "nowhere"),
        ({"output_path": "{tmp}/file/mail"}, "can't be written"),
        ({"tables": ["mail"]}, "tables: mail"),
        ({"columns": ["sender"]}, "columns: messages has no sender"),
        ({"attachment_pattern": "^("}, "attachment_pattern"),
        ({"labels": "red"}, "labels"),
        ({"was_read": "maybe"}, "was_read"),
        ({"r7mail_conn_id": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_work(
    server: Emulator, tmp_path: Path, options: dict[str, Any], error: str
) -> None:
    """A wrong parameter is a clear error without retries; nothing is read or written."""
    (tmp_path / "file").write_text("in the way")
    options = {
        name: value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value
        for name, value in options.items()
    }
    with pytest.raises(AirflowFailException, match=error):
        to_parquet(**{"root": tmp_path / "out", **rename(options)})

    assert calls(server, "Messages") == 0
    assert not (tmp_path / "out").exists()


def rename(options: dict[str, Any]) -> dict[str, Any]:
    """Rename the output path to `root`."""
    return {("root" if name == "output_path" else name): v for name, v in options.items()}


def test_a_wrong_password(
    server: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong password is tried once, not hammered, and nothing is written."""
    fields = {**json.loads(server.connection()), "password": "wrong"}
    monkeypatch.setenv(CONNECTION, json.dumps(fields))

    for run in (to_parquet, attachments):
        with pytest.raises(AirflowFailException, match="Check Login and Password"):
            run(tmp_path)
        assert server.logins == 1
        server.requests.clear()
        server._service.logins = 0
    assert files(tmp_path) == {}


def test_an_unreachable_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that can't be reached is a clear error, and nothing is written."""
    with Emulator(Mailbox()) as server:
        gone = server.connection(max_retries=1)
    monkeypatch.setenv(CONNECTION, gone)

    with pytest.raises(Exception, match="could not be reached"):
        to_parquet(tmp_path)
    assert files(tmp_path) == {}


def test_an_unknown_folder_id(server: Emulator, tmp_path: Path) -> None:
    """An unknown folder is an error with its id, and nothing is written."""
    with pytest.raises(R7MailExtractError, match="Folder 999"):
        to_parquet(tmp_path, folder=999)
    assert files(tmp_path) == {}


def test_filters_reach_the_server(server: Emulator, tmp_path: Path) -> None:
    """Every filter is sent in its field of the request."""
    to_parquet(
        tmp_path,
        query="q",
        body="b",
        sender="s@x.ru",
        recipient="r@x.ru",
        subject="t",
        labels="[1, 2]",
        was_read="False",
    )
    sent = server.requests[-1]["json"]["SearchContext"]

    assert {k: v for k, v in sent.items() if not k.endswith("Date")} == {
        "Query": "q",
        "Body": "b",
        "From": "s@x.ru",
        "To": "r@x.ru",
        "Subject": "t",
        "Labels": [1, 2],
        "WasRead": False,
    }


def test_bad_messages(server: Emulator, tmp_path: Path) -> None:
    """A message that the tables can't hold fails the task for good, or is only quarantined."""
    server.mailbox.deliver(fields={"Date": "soon"})
    server.readings = Readings(undated="always")

    with pytest.raises(AirflowFailException, match=r"_quarantine\.jsonl"):
        to_parquet(tmp_path)
    assert to_parquet(tmp_path, on_bad_message="quarantine")["quarantined"] == 1


def test_attachments_by_ids_and_filters(server: Emulator, tmp_path: Path) -> None:
    """Ids can be a list, an XCom of one, or JSON text; without ids, the filters apply."""
    ids = [
        server.mailbox.deliver(
            date=START + timedelta(days=n),
            attachments=[(f"{n}.csv", b"x", "x"), ("b.pdf", b"y", "x")],
        )
        for n in range(3)
    ]

    forms: list[Any] = [[ids[0]], f"[{ids[0]}]", [str(ids[0])]]
    for given in forms:
        found = attachments(tmp_path, message_ids=given, attachment_pattern="*.csv")
        assert {(item["message_id"], item["file_name"]): item["status"] for item in found} in (
            {(ids[0], "0.csv"): "downloaded", (ids[0], "b.pdf"): "skipped"},
            {(ids[0], "0.csv"): "unchanged", (ids[0], "b.pdf"): "skipped"},
        )
    assert calls(server, "Attachments") == 1
    assert {item["message_id"] for item in attachments(tmp_path, **DAY)} == {ids[0]}
    assert {item["message_id"] for item in attachments(tmp_path)} == set(ids)
    server.requests.clear()
    assert attachments(tmp_path, message_ids=[]) == []
    assert attachments(tmp_path, message_ids="[]") == []
    assert server.requests == []
    with pytest.raises(AirflowFailException, match="no message 999"):
        attachments(tmp_path / "new", message_ids=[ids[0], 999])
    with pytest.raises(AirflowFailException, match="message_ids"):
        attachments(tmp_path / "new", message_ids=["x"])
    assert not (tmp_path / "new").exists()


def test_attachments_that_fail(server: Emulator, tmp_path: Path) -> None:
    """All files are tried; then the task fails, or only records it. The XCom is JSON."""
    listed = [{"FileName": "missing"}, {"FileName": "a\0.txt", "Size": 1}]
    server.mailbox.deliver(attachments=[("a\0.txt", b"x", "x")], fields={"Attachments": listed})
    with pytest.raises(R7MailAttachmentError, match="1 of 2"):
        attachments(tmp_path)
    found = attachments(tmp_path, on_attachment_error="record")

    assert [item["status"] for item in found] == ["failed", "unchanged"]
    assert "\\u0000" not in json.dumps(found)


@pytest.mark.slow
def test_s3(server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both operators write to S3, with the connection as a parameter or in the URL."""
    moto = S3Server()
    url = moto.url
    extra = {"endpoint_url": url, "region_name": "us-east-1"}
    keys = {"login": "testing", "password": "testing"}
    connection = {"conn_type": "aws", **keys, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_S3_TRANSFERS", json.dumps(connection))
    s3 = boto3.client("s3", aws_access_key_id="testing", aws_secret_access_key="testing", **extra)
    s3.create_bucket(Bucket="mail")
    data = bytes(range(256)) * (18 << 12)
    number = server.mailbox.deliver(date=START, attachments=[("a.bin", data, "x/y")])
    try:
        by_id = to_parquet(
            "s3://mail/lake", storage_conn_id="s3_transfers", attachments_path="s3://mail/files"
        )
        in_url = to_parquet("s3://s3_transfers@mail/lake")
        copied = attachments("s3://s3_transfers@mail/copies", message_ids=[number])
        keys_found = [item["Key"] for item in s3.list_objects_v2(Bucket="mail")["Contents"]]
        manifest = s3.get_object(Bucket="mail", Key=f"lake/messages/{WINDOW}/_manifest.json")
        place = f"mailbox=user_test/folder=24/message_id={number}/a.bin"
        stored = [
            s3.get_object(Bucket="mail", Key=f"{root}/{place}")["Body"].read()
            for root in ("files", "copies")
        ]
        text = manifest["Body"].read()
    finally:
        moto.stop()

    assert by_id["attachments"] == {"downloaded": 1}
    assert json.loads(text) == in_url
    assert copied[0]["status"] == "downloaded"
    assert stored == [data, data]
    assert len([key for key in keys_found if key.startswith("lake/")]) == 6


def test_relative_and_odd_paths(
    server: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path can be relative, and can contain characters with a meaning in URLs."""
    monkeypatch.chdir(tmp_path)
    server.mailbox.deliver(date=START)

    for root in ("out/a #1?%41", f"file://{tmp_path}/b"):
        to_parquet(root)
    for place in ("out/a #1?%41", "b"):
        path = tmp_path / place / "messages" / WINDOW / "part-00000.parquet"
        assert pq.read_metadata(path).num_rows == 1
