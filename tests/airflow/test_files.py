"""Files in mail that Airflow sends: from a disk, from S3, from other tasks; once, or not at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_r7mail.compat import AirflowFailException, ObjectStoragePath
from airflow_provider_r7mail.emulator import Emulator, Fault, Readings
from airflow_provider_r7mail.emulator.folders import SENT
from airflow_provider_r7mail.exceptions import R7MailAttachmentError, R7MailConfigError
from airflow_provider_r7mail.hooks import R7MailHook
from airflow_provider_r7mail.notifications import R7MailNotifier
from airflow_provider_r7mail.operators import R7MailSendOperator
from tests.conftest import CONNECTION
from tests.s3 import S3Server

if TYPE_CHECKING:
    from tests.conftest import DagResult

LETTER: dict[str, Any] = {"to": "a@b.ru", "subject": "Report", "html_content": "<p>See below</p>"}
CLEAR_UPLOADS = Path(__file__).parents[2] / "docs" / "examples" / "clear_uploads.py"
REPORT = "Отдел;Писем\nПродажи;3\n".encode()


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A file to send."""
    path = tmp_path / "отчёт за июнь.csv"
    path.write_bytes(REPORT)
    return path


def attached(server: Emulator) -> list[list[tuple[str, bytes]]]:
    """Return the names and contents of the files of each message that was sent."""
    return [
        [(file.file_name, file.data) for file in server.mailbox.files(message["Id"])]
        for message in server.mailbox.messages(SENT)
    ]


def uploads(server: Emulator) -> int:
    """Return how many uploads were tried."""
    return sum(call["path"].endswith("/Upload") for call in server.requests)


@pytest.mark.parametrize("form", ["path", "text", "url", "storage", "list", "rendered"])
def test_a_file_may_be_given_in_many_ways(server: Emulator, report: Path, form: str) -> None:
    """A path, a URL, a path object, a list of them, or the text a template makes of a list."""
    forms: dict[str, Any] = {
        "path": report,
        "text": str(report),
        "url": f"file://{report}",
        "storage": ObjectStoragePath(f"file://{report}"),
        "list": [report],
        "rendered": str([str(report)]),
    }

    done = R7MailSendOperator(task_id="send", **LETTER, files=forms[form]).execute({})

    assert done["accepted"]
    assert attached(server) == [[("отчёт за июнь.csv", REPORT)]]


@pytest.mark.parametrize("given", [None, "", [], "[]"])
def test_no_files(server: Emulator, given: Any) -> None:
    """Without files, the Disk is not asked."""
    R7MailSendOperator(task_id="send", **LETTER, files=given).execute({})

    assert attached(server) == [[]]
    assert not any("Document" in call["path"] for call in server.requests)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ("report.csv", "relative path"),
        ("s3:/bucket/report.csv", "path on disk"),
        ("nosuch://bucket/report.csv", "no file system for nosuch"),
        (["file:///"], "this is a folder"),
        ([5], "expected a path or URL, got int"),
        ({"a": 1}, "expected paths or URLs"),
        ("None", 'got the text "None"'),
    ],
)
def test_what_is_no_file(server: Emulator, files: Any, why: str) -> None:
    """A slip in `files` fails the task at once, before the log-in."""
    with pytest.raises(AirflowFailException, match=why):
        R7MailSendOperator(task_id="send", **LETTER, files=files).execute({})

    assert server.requests == []


def test_after_sending(server: Emulator, report: Path) -> None:
    """`after_sending` deletes the uploaded files, or keeps them; nothing else is accepted."""
    R7MailSendOperator(task_id="s", **LETTER, files=report, after_sending="delete").execute({})
    assert server.mailbox.disk.files() == []
    R7MailSendOperator(task_id="s", **LETTER, files=report).execute({})
    assert len(server.mailbox.disk.files()) == 1
    assert attached(server) == [[("отчёт за июнь.csv", REPORT)]] * 2

    wrong: Any = "burn"
    with pytest.raises(AirflowFailException, match="after_sending: got 'burn'"):
        R7MailSendOperator(task_id="s", **LETTER, files=report, after_sending=wrong).execute({})


def test_dry_run(server: Emulator, report: Path, logged: Callable[[], str]) -> None:
    """A dry run reads the files, and uploads nothing."""
    R7MailSendOperator(task_id="send", **LETTER, files=report, dry_run=True).execute({})

    assert server.requests == []
    assert "attachments: 1" in logged()
    with pytest.raises(R7MailAttachmentError, match="no such file"):
        R7MailSendOperator(task_id="s", **LETTER, files="/data/x.csv", dry_run=True).execute({})


def test_logs_hold_no_names(
    server: Emulator,
    report: Path,
    logged: Callable[[], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log has ids and counts, but neither the file's name nor its content."""
    caplog.set_level("INFO", "fsspec.local")  # which logs each path that it opens
    R7MailSendOperator(task_id="send", **LETTER, files=report).execute({})

    text = logged()
    assert "File 1 of 1 is on the Disk" in text
    assert "отчёт" not in text
    assert "Продажи" not in text


def test_a_disk_elsewhere(server: Emulator, report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection says where the Disk is, and which of its folders takes the files."""
    folder = server.mailbox.disk.add_directory("reports", server.mailbox.disk.root).id
    server.readings = Readings(disk_host="localhost")
    there = server.url.replace("127.0.0.1", "localhost")
    monkeypatch.setenv(CONNECTION, server.connection(disk_url=there, disk_folder=folder))

    R7MailSendOperator(task_id="send", **LETTER, files=report).execute({})

    assert [file.data for file in server.mailbox.disk.files(folder)] == [REPORT]


# -- the hook ---------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_the_hook(server: Emulator, report: Path, is_async: bool) -> None:
    """The hook attaches files, too, on an event loop as well."""
    hook = R7MailHook()
    if is_async:
        asyncio.run(hook.asend_message(**LETTER, files=report, after_sending="delete"))
    else:
        hook.send_message(**LETTER, files=report, after_sending="delete")

    assert attached(server) == [[("отчёт за июнь.csv", REPORT)]]
    assert server.mailbox.disk.files() == []


def test_upload_list_delete(server: Emulator, report: Path) -> None:
    """A file can be uploaded by itself, is listed, and can be attached by its ids."""
    hook = R7MailHook()
    uploaded = hook.upload_file(report)

    [listed] = hook.list_disk()
    assert listed.id == uploaded["Id"]
    assert listed.uploaded is not None
    json.dumps(uploaded)
    hook.send_message(**LETTER, attachments=[uploaded])
    assert attached(server) == [[("отчёт за июнь.csv", REPORT)]]

    assert hook.delete_from_disk([listed.id]) == 1
    assert hook.list_disk() == []
    with pytest.raises(R7MailConfigError, match="file_ids"):
        hook.delete_from_disk(["first"])


# -- the notifier -----------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_an_alert_with_a_file(server: Emulator, report: Path, is_async: bool) -> None:
    """An alert may have files."""
    alert = R7MailNotifier(to="a@b.ru", throttle=None, files=[str(report)])
    if is_async:
        asyncio.run(alert.async_notify({}))
    else:
        alert.notify({})

    assert attached(server) == [[("отчёт за июнь.csv", REPORT)]]


def test_an_alert_without_its_file(server: Emulator, logged: Callable[[], str]) -> None:
    """An alert whose file is missing is not sent, and the log says why."""
    R7MailNotifier(to="a@b.ru", throttle=None, files="/data/gone.csv").notify({})

    assert server.mailbox.sent == []
    assert "/data/gone.csv can't be attached: there is no such file" in logged()


def test_an_alert_whose_files_cannot_be_rendered(
    server: Emulator, logged: Callable[[], str]
) -> None:
    """If the template in `files` fails, the alert is not sent without them."""
    R7MailNotifier(to="a@b.ru", throttle=None, files="{{ nothing }}")({})

    assert server.mailbox.sent == []
    assert "the mail was not sent" in logged()


# -- in a DAG ---------------------------------------------------------------------------------


def test_files_of_other_tasks(
    server: Emulator, tmp_path: Path, run_dag: Callable[[str], DagResult]
) -> None:
    """Files may come from other tasks: as a return value, in a template, or for a mapped task."""
    result = run_dag(f"""
        from pathlib import Path
        from airflow.sdk import DAG, task
        from airflow_provider_r7mail.operators import R7MailSendOperator

        FOLDER = Path({str(tmp_path)!r})
        LETTER = dict(to="a@b.ru", html_content="h", sent_folder="sent")

        with DAG("files_of_tasks", schedule=None) as dag:
            @task
            def make(name):
                (FOLDER / name).write_text(name)
                return str(FOLDER / name)

            @task
            def make_two():
                return [make.function("a.txt"), make.function("b.html")]

            two = make_two()
            R7MailSendOperator(task_id="returned", subject="1", files=two, **LETTER)
            two >> R7MailSendOperator(
                task_id="template",
                subject="2",
                files="{{{{ ti.xcom_pull('make_two') }}}}",
                **LETTER,
            )
            R7MailSendOperator.partial(task_id="mapped", subject="3", **LETTER).expand(
                files=make.expand(name=["c.csv", "d.csv"])
            )
    """)

    assert set(result.states.values()) == {"success"}
    names = [[name for name, _ in files] for files in attached(server)]
    assert sorted(names) == [["a.txt", "b.html"], ["a.txt", "b.html"], ["c.csv"], ["d.csv"]]
    assert uploads(server) == 4


def test_a_retry_uploads_nothing_twice(
    server: Emulator, report: Path, run_dag: Callable[[str], DagResult]
) -> None:
    """If sending fails after the upload, the next try finds the file, and sends it once."""
    server.faults.append(Fault("Send", status=429, times=2))

    result = run_dag(f"""
        from datetime import timedelta
        from airflow.sdk import DAG
        from airflow_provider_r7mail.operators import R7MailSendOperator

        with DAG("retry_uploads", schedule=None) as dag:
            R7MailSendOperator(
                task_id="send",
                to="a@b.ru",
                subject="s",
                html_content="h",
                files={str(report)!r},
                sent_folder="sent",
                settle_seconds=0,
                retries=1,
                retry_delay=timedelta(0),
            )
    """)

    assert result.states == {"send": "success"}
    assert attached(server) == [[("отчёт за июнь.csv", REPORT)]]
    assert uploads(server) == 1


def test_old_uploads_are_cleared(
    server: Emulator, report: Path, run_dag: Callable[[str], DagResult]
) -> None:
    """The DAG of the documentation deletes old uploads, and nothing else."""
    uploaded = R7MailHook().upload_file(report)
    disk = server.mailbox.disk
    folder = disk.documents[uploaded["Id"]].directory
    disk.add("old-20250101-0123456789abcdef.csv", b"1", folder)
    disk.add("a person's own.csv", b"2", folder)
    disk.add("old-20250101-0123456789abcdef.csv", b"3")

    result = run_dag(CLEAR_UPLOADS.read_text(encoding="utf-8"))

    assert result.xcom("clear_uploads") == 1
    assert [file.data for file in disk.files()] == [REPORT, b"2", b"3"]


def test_a_file_in_s3(
    server: Emulator, monkeypatch: pytest.MonkeyPatch, run_dag: Callable[[str], DagResult]
) -> None:
    """A file in S3 is read with its own connection, given in the URL or as `storage_conn_id`."""
    moto = S3Server()
    try:
        extra = {"endpoint_url": moto.url, "region_name": "us-east-1"}
        store = {"conn_type": "aws", "login": "testing", "password": "testing", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_FILES_S3", json.dumps(store))
        result = run_dag("""
            import asyncio
            from airflow.sdk import DAG, ObjectStoragePath, task
            from airflow_provider_r7mail.hooks import R7MailHook
            from airflow_provider_r7mail.operators import R7MailSendOperator

            FILE = "s3://files_s3@reports/june/отчёт.csv"
            LETTER = dict(to="a@b.ru", html_content="h")

            with DAG("file_in_s3", schedule=None) as dag:
                @task
                def make():
                    path = ObjectStoragePath(FILE)
                    path.fs.mkdir("reports")
                    path.write_bytes(b"in s3")
                    return [path]

                @task
                def by_loop():
                    hook = R7MailHook()
                    asyncio.run(hook.asend_message("a@b.ru", "4", "h", files=[FILE]))

                made = make()
                made >> R7MailSendOperator(task_id="url", subject="1", files=[FILE], **LETTER)
                made >> R7MailSendOperator(
                    task_id="conn_id",
                    subject="2",
                    files="s3://reports/june/отчёт.csv",
                    storage_conn_id="files_s3",
                    **LETTER,
                )
                R7MailSendOperator(task_id="returned", subject="3", files=made, **LETTER)
                made >> by_loop()
        """)
    finally:
        moto.stop()

    assert set(result.states.values()) == {"success"}
    assert attached(server) == [[("отчёт.csv", b"in s3")]] * 4
    assert uploads(server) == 1
