"""The two operators that copy mail, in a real Airflow against the emulator."""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import hashlib
import inspect
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pendulum
import pyarrow.parquet as pq
import pytest

from airflow_provider_r7mail import lakes
from airflow_provider_r7mail.compat import (
    AirflowException,
    AirflowFailException,
    ObjectStoragePath,
)
from airflow_provider_r7mail.emulator import Emulator, Fault, Mailbox, Readings
from airflow_provider_r7mail.exceptions import R7MailAttachmentError, R7MailExtractError
from airflow_provider_r7mail.lake import threads
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
    assert set(copied[0]) == {
        "message_id",
        "file_name",
        "uri",
        "size",
        "listed_size",
        "sha256",
        "status",
    }
    assert copied[0]["sha256"] == hashlib.sha256(b"1;2").hexdigest()
    assert Path(ObjectStoragePath(copied[0]["uri"]).path).read_bytes() == b"1;2"
    for text in (logged(), json.dumps(manifest, ensure_ascii=False)):
        assert "ТАЙНА" not in text
        assert "taina@" not in text
        assert "1;2" not in text
        assert server.mailbox.password not in text


@pytest.mark.parametrize("native", [False, True])
def test_rendered_filters(
    server: Emulator, run_dag: Callable[[str], Any], tmp_path: Path, native: bool
) -> None:
    """Digits are text and dates, also with native rendering; a filter's None can't go unseen."""
    server.mailbox.deliver(date=START, subject="Заказ 42")
    result = run_dag(f"""
        from airflow.sdk import DAG
        from airflow_provider_r7mail.transfers import R7MailToParquetOperator

        params = {{"order": 42, "sender": None, "start": "20250601", "end": "20250602"}}
        with DAG("rendered", params=params, render_template_as_native_obj={native}) as dag:
            given = dict(folder=24, output_path="{tmp_path}", start="{{{{ params.start }}}}",
                end="{{{{ params.end }}}}", subject="{{{{ params.order }}}}")
            R7MailToParquetOperator(task_id="order", **given)
            R7MailToParquetOperator(
                task_id="sender", sender="{{{{ params.sender }}}}", **given
            )
    """)

    assert result.states == {"order": "success", "sender": "success" if native else "failed"}
    assert result.xcom("order")["messages"] == 1


@pytest.mark.slow
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
        {"start": str(START), "end": "2025-06-01T03:00:00+03:00"},
    ],
)
def test_no_data_interval(server: Emulator, tmp_path: Path, context: dict[str, Any]) -> None:
    """An empty or missing interval is an error that names timetables with an interval."""
    with pytest.raises(AirflowFailException, match=r"interval.*CronDataIntervalTimetable"):
        to_parquet(tmp_path, context, start=context.get("start"), end=context.get("end"))

    assert server.requests == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"start": "2025-06-02T00:00:00Z", "end": "2025-06-01T00:00:00Z"}, "not after its start"),
        ({"start": "soon"}, "start: 'soon' is not a date"),
        ({"folder": "Счета"}, "there is no folder 'Счета'"),
        ({"output_path": ""}, "output_path: empty"),
        ({"output_path": "s3:/bucket/mail"}, "output_path: .*Write s3://bucket/mail"),
        ({"attachments_path": "data/x"}, "attachments_path: .*relative path"),
        ({"output_path": "gs://bucket/mail"}, r"no file system for gs://.*\[google\]"),
        ({"attachments_path": "foo://bucket"}, "attachments_path: no file system for foo://"),
        ({"output_path": None}, "output_path: empty"),
        ({"output_path": "None"}, 'output_path: got the text "None"'),
        ({"output_path": Path("a")}, "output_path: expected text, got PosixPath"),
        ({"attachments_path": "None"}, 'attachments_path: got the text "None"'),
        ({"sender": "None"}, 'sender: got the text "None"'),
        ({"table_format": "iceberg", "namespace": "None"}, 'namespace: got the text "None"'),
        (
            {"table_format": "iceberg", "catalog_properties": {"warehouse": "None"}},
            'catalog_properties warehouse: got the text "None"',
        ),
        ({"catalog_conn_id": "lake"}, "catalog_conn_id: only for table_format"),
        ({"namespace": "mail"}, "namespace: only for table_format"),
        ({"storage_conn_id": "nowhere", "output_path": "s3://b/m"}, "nowhere"),
        ({"output_path": "s3://nowhere@b/m"}, "nowhere"),
        ({"output_path": "s3://bucket@account/m"}, "bucket.*before @.*abfs://connection@"),
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
        to_parquet(tmp_path, **{"output_path": str(tmp_path / "out"), **options})

    assert calls(server, "Messages") == 0
    assert not (tmp_path / "out").exists()


def test_a_login_that_is_too_long(
    server: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login too long for a folder's name is an error before anything is read, with ways out."""
    server.mailbox.login = "я" * 50 + "@пример.рф"
    fields = json.loads(server.connection())
    fields["extra"]["privacy_secret"] = "a long random text"
    monkeypatch.setenv(CONNECTION, json.dumps(fields))

    with pytest.raises(AirflowFailException, match=r"folder name of 3.. bytes.*shorter login") as e:
        to_parquet(tmp_path / "out")
    assert server.requests == []
    assert not (tmp_path / "out").exists()

    assert 'privacy={"mailbox": "hash"}' in str(e.value)
    to_parquet(tmp_path / "out", privacy={"mailbox": "hash"})


def test_a_file_name_that_is_no_text(server: Emulator, tmp_path: Path) -> None:
    """A file whose name holds half a surrogate pair is listed as failed, with the way out."""
    file = {"FileName": "a\ud83d.txt", "Size": 1}
    server.mailbox.deliver(
        date=START, attachments=[("b.txt", b"x", "x/y")], fields={"Attachments": [file]}
    )
    for run in (attachments, to_parquet):
        with pytest.raises(R7MailAttachmentError, match="Open the message in the web client"):
            run(tmp_path / "lake", attachments_path=str(tmp_path / "files"))


def test_a_wrong_password(
    server: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong password is tried once, not hammered, by all tasks, and nothing is written."""
    fields = {**json.loads(server.connection()), "password": "wrong"}
    monkeypatch.setenv(CONNECTION, json.dumps(fields))

    for run in (to_parquet, attachments):
        with pytest.raises(AirflowFailException, match="Check Login and Password"):
            run(tmp_path)
        assert server.logins == 1
    assert files(tmp_path) == {}


def test_an_unreachable_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that can't be reached is a clear error, and nothing is written."""
    with Emulator(Mailbox()) as server:
        gone = server.connection(max_retries=1)
    monkeypatch.setenv(CONNECTION, gone)

    with pytest.raises(Exception, match="could not be reached"):
        to_parquet(tmp_path)
    assert files(tmp_path) == {}


@pytest.mark.slow
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
    sent = server.requests[1]["json"]["SearchContext"]

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
    server.mailbox.deliver(date=START)
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


@pytest.mark.parametrize("on_size_mismatch", ["record", "fail"])
def test_a_listed_size_that_fits_nothing(
    server: Emulator, tmp_path: Path, on_size_mismatch: Any, logged: Callable[[], str]
) -> None:
    """R26: a file of another size than listed is copied, with both sizes, or fails if I say so."""
    odd = {"Id": 1, "FileId": 1, "FileName": "a.csv", "Size": 7, "MimeType": "text/csv"}
    attached = [("a.csv", b"1;2", "text/csv")]
    server.mailbox.deliver(date=START, attachments=attached, fields={"Attachments": [odd]})

    if on_size_mismatch == "fail":
        with pytest.raises(R7MailAttachmentError, match="3 bytes came, the listing says 7"):
            attachments(tmp_path, on_size_mismatch="fail")
        with pytest.raises(AirflowFailException, match="on_size_mismatch"):
            attachments(tmp_path, on_size_mismatch="skip")
    else:
        [found] = attachments(tmp_path)
        assert (found["size"], found["listed_size"], found["status"]) == (3, 7, "downloaded")
        assert "Files of another size than listed (R26): 1." in logged()


def test_attachments_that_the_server_cannot_give(
    server: Emulator, tmp_path: Path, logged: Callable[[], str]
) -> None:
    """Files that the API can't tell apart or doesn't name fail the task if I ask for that.

    Otherwise the result and the log say so. Files that nobody wants don't count.
    """
    twins = [("a.csv", b"1", "x/y"), ("a.csv", b"2", "x/y"), ("b.csv", b"3", "x/y")]
    one = server.mailbox.deliver(date=START, attachments=twins)
    two = server.mailbox.deliver(
        date=START, fields={"HasAttachments": True, "Attachments": []}, attachments=[]
    )
    files_path: dict[str, Any] = {"attachments_path": f"{tmp_path}/files"}
    files_path["attachment_pattern"] = "*.csv"
    strict: dict[str, Any] = {"on_attachment_error": "fail_on_missing"}

    found = attachments(tmp_path)
    assert sorted((item["message_id"], item["status"]) for item in found) == sorted(
        [(one, "ambiguous"), (one, "ambiguous"), (one, "downloaded"), (two, "unlisted")]
    )
    assert "2 ambiguous" in logged()
    with pytest.raises(R7MailAttachmentError, match=rf"3 of 4 .*\[{one}, {two}\]"):
        attachments(tmp_path, **strict)
    with pytest.raises(R7MailAttachmentError, match="3 of 4"):
        to_parquet(tmp_path / "lake", **files_path, **strict)
    assert to_parquet(tmp_path / "lake", **files_path)["attachments"]["ambiguous"] == 2
    assert to_parquet(tmp_path / "lake", **strict)["messages"] == 2, "not asked to copy any"
    kept = attachments(tmp_path, message_ids=[one], attachment_pattern="b*", **strict)
    assert [item["status"] for item in kept] == ["skipped", "skipped", "unchanged"]
    with pytest.raises(AirflowFailException, match="on_attachment_error: 'recrod'"):
        attachments(tmp_path, on_attachment_error="recrod")


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


class AlarmError(BaseException):
    """What the alarm of `execution_timeout` raises, in place of Airflow's own."""


@pytest.mark.slow
def test_a_path_on_disk_loads_no_cloud_library(server: Emulator, tmp_path: Path) -> None:
    """A task with tables or files on a disk doesn't load the code of S3 and Google."""
    report = tmp_path / "report.csv"
    report.write_text("a,b\n")
    code = (
        "import sys\n"
        "from airflow_provider_r7mail.hooks import R7MailHook\n"
        "from airflow_provider_r7mail.transfers import R7MailToParquetOperator\n"
        f"options = {DAY | {'folder': 24, 'output_path': str(tmp_path), 'recheck_hours': 0}!r}\n"
        "R7MailToParquetOperator(task_id='extract', **options).execute({})\n"
        f"R7MailHook().send_message(['a@example.com'], 'Report', '', files=[{str(report)!r}])\n"
        "print('loaded', sorted({'boto3', 'botocore', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "loaded []"
    assert len(list(tmp_path.rglob("part-00000.parquet"))) == 3


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise an exception after a time, as Airflow does for `execution_timeout`."""

    def ring(*_: Any) -> None:
        raise AlarmError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
def test_a_time_out_is_never_lost(server: Emulator, tmp_path: Path) -> None:
    """Whatever a busy extract does when its time is up, it stops and leaves nothing behind."""
    for number in range(3_000):
        server.mailbox.deliver(
            date=START + timedelta(seconds=number), attachments=[("a", b"x", "")]
        )
    for place in range(10):
        output = tmp_path / str(place)
        with pytest.raises(AlarmError), alarm(0.2 + place * 0.1):
            to_parquet(output, attachments_path=f"{output}/files", page_size=20)
        assert not list(output.rglob("_manifest.json"))
        assert not [path for path in output.rglob("*") if path.name.startswith("_staged")]


class HangingS3(BaseHTTPRequestHandler):
    """An empty S3 that takes no objects: it never answers."""

    protocol_version = "HTTP/1.1"
    put = threading.Event()
    over = threading.Event()

    def do_GET(self) -> None:
        """List nothing."""
        empty = (
            b"<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated></ListBucketResult>"
        )
        self.send_response(200)
        self.send_header("Content-Length", str(len(empty)))
        self.end_headers()
        self.wfile.write(empty)

    def do_HEAD(self) -> None:
        """Have nothing."""
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_PUT(self) -> None:
        """Hang."""
        self.put.set()
        self.over.wait(60)

    do_POST = do_DELETE = do_PUT  # noqa: N815 - the names that the base class looks for

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True])
def test_a_storage_that_hangs(
    server: Emulator, monkeypatch: pytest.MonkeyPatch, kill: bool
) -> None:
    """A time-out or a kill ends a task in seconds, even if its storage never answers."""
    monkeypatch.setattr(threads, "STOP_SECONDS", 3.0)
    monkeypatch.setattr(lakes, "STOP_SECONDS", 3.0)
    server.mailbox.deliver(date=START)
    HangingS3.put, HangingS3.over = threading.Event(), threading.Event()
    s3 = ThreadingHTTPServer(("127.0.0.1", 0), HangingS3)
    threading.Thread(target=s3.serve_forever, daemon=True).start()
    extra = {
        "endpoint_url": f"http://127.0.0.1:{s3.server_port}",
        "region_name": "us-east-1",
        "config_kwargs": {"retries": {"max_attempts": 0}},  # once it has gone
    }
    keys = {"login": "testing", "password": "testing"}
    connection = json.dumps({"conn_type": "aws", **keys, "extra": extra})
    monkeypatch.setenv(f"AIRFLOW_CONN_S3_HANGS_{kill}".upper(), connection)
    given: dict[str, Any] = {"output_path": f"s3://s3_hangs_{kill}@b/lake".lower(), **DAY}
    operator = R7MailToParquetOperator(task_id="extract", folder=24, **given)

    def kill_it() -> None:
        HangingS3.put.wait()
        operator.on_kill()

    began = time.monotonic()
    try:
        if kill:
            threading.Thread(target=kill_it, daemon=True).start()
            with pytest.raises(AirflowException, match="did not respond within"):
                operator.execute({})
        else:
            with pytest.raises(AlarmError), alarm(3):
                operator.execute({})
        assert HangingS3.put.is_set()
        assert time.monotonic() - began < 3 + 3 + 5
    finally:
        HangingS3.over.set()
        s3.shutdown()
        s3.server_close()
        for thread in threading.enumerate():
            if thread.name == "r7mail-loop":
                thread.join(60)


def test_odd_paths(server: Emulator, tmp_path: Path) -> None:
    """A path can contain characters with a meaning in URLs."""
    server.mailbox.deliver(date=START)

    for root in (f"{tmp_path}/out/a #1?%41", f"file://{tmp_path}/b"):
        to_parquet(root)
    for place in ("out/a #1?%41", "b"):
        path = tmp_path / place / "messages" / WINDOW / "part-00000.parquet"
        assert pq.read_metadata(path).num_rows == 1
