"""The command line, as used in a terminal."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner

from airflow_provider_r7mail.cli import app
from airflow_provider_r7mail.emulator import Attachment, Emulator
from airflow_provider_r7mail.lake import compaction
from tests.conftest import AIRFLOW_2
from tests.processes import run

pytestmark = pytest.mark.slow
JUNE = datetime(2025, 6, 1, tzinfo=UTC)


def extract(server: Emulator, output: Path, *more: str, password: str = "TestPassword") -> str:
    """Extract June 2025 from the inbox; return the output, or the error."""
    done = run(
        "extract",
        f"--url={server.url}",
        "--login=user_test",
        "--folder=24",
        "--start=2025-06-01",
        "--end=2025-07-01",
        f"--output={output}",
        *more,
        env={"R7MAIL_PASSWORD": password},
    )
    assert "Traceback" not in done.stderr
    return done.stdout if done.returncode == 0 else f"{done.returncode}: {done.stderr}"


@pytest.mark.parametrize("command", ["emulator", "extract", "check", "audit", "compact", "demo"])
def test_help_teaches(command: str) -> None:
    """The help of each command names its options in full, and has an example to copy."""
    text = " ".join(run(command, "--help", env={"COLUMNS": "80"}).stdout.split())

    assert not re.search(r"--[\w-]*…", text)
    assert f"Usage: r7mail {command}" in text
    assert "Example:" in text
    assert f"r7mail {command} --" in text.partition("Example:")[2]


def test_starting_is_quick() -> None:
    """Help and extract import neither Airflow nor pandas."""
    code = (
        "import sys, airflow_provider_r7mail.cli, airflow_provider_r7mail.lake.window, upath\n"
        "print(sorted({'airflow', 'pandas', 'starlette'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_extract_writes_the_tables(server: Emulator, tmp_path: Path) -> None:
    """A window is written to the tables, with its attachments, and the numbers are printed."""
    for day in (-1, 0, 29, 30):
        server.mailbox.deliver(
            subject=f"{day}",
            date=JUNE + timedelta(days=day),
            attachments=[Attachment("a.txt", b"hello", "text/plain")],
        )
    output, files = tmp_path / "my tables", tmp_path / "files"

    said = extract(server, output, f"--attachments={files}")

    found = duckdb.sql(f"SELECT subject FROM '{output}/messages/**/*.parquet' ORDER BY date")
    assert found is not None
    assert found.fetchall() == [("0",), ("29",)]
    assert [p.read_bytes() for p in files.rglob("a.txt")] == [b"hello"] * 2
    assert "Messages from folder 24: 2, in" in said
    assert "2 downloaded" in said
    assert re.search(r"recipients +2 ", said)
    assert "\x1b" not in said


def test_extract_copies_the_attachments_that_match(server: Emulator, tmp_path: Path) -> None:
    """Attachments can be chosen by several patterns."""
    names = ("a.txt", "b.csv", "c.pdf", "d.exe")
    files = [Attachment(name, b"hello", "text/plain") for name in names]
    server.mailbox.deliver(date=JUNE, attachments=files)
    patterns = ("--attachment-pattern=*.{txt,csv}", "--attachment-pattern=^c")

    extract(server, tmp_path / "out", f"--attachments={tmp_path}/files", *patterns)

    copied = [path.name for path in (tmp_path / "files").rglob("*.*") if path.is_file()]
    assert sorted(copied) == ["a.txt", "b.csv", "c.pdf"]


def test_extract_with_a_wrong_listed_size(server: Emulator, tmp_path: Path) -> None:
    """R26: a file of another size than listed is an error only if I ask for that."""
    odd = {"Id": 1, "FileId": 1, "FileName": "a.txt", "Size": 7, "MimeType": "text/plain"}
    files = [Attachment("a.txt", b"hello", "text/plain")]
    server.mailbox.deliver(date=JUNE, attachments=files, fields={"Attachments": [odd]})
    copying = tmp_path / "out", f"--attachments={tmp_path}/files"

    assert "Attachments: 1 downloaded" in extract(server, *copying)
    said = extract(server, *copying, "--on-size-mismatch=fail")
    assert "5 bytes came, the listing says 7" in said


def test_compact_says_what_became_of_which_windows(
    server: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compacting shows what became one window and what was left alone; 1 if anything is damaged."""
    monkeypatch.setattr(compaction, "pause", lambda _: True)
    lake = tmp_path / "out"
    for day in range(1, 4):
        extract(server, lake, f"--start=2025-06-0{day}", f"--end=2025-06-0{day + 1}")

    def compact(*more: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["compact", f"--output={lake}", *more])
        return done.exit_code, done.output

    code, said = compact("--dry-run")
    assert (code, "20250601T000000Z_20250604T000000Z" in said) == (0, True)
    assert len(list(lake.glob("messages/*/*/*"))) == 3
    assert "nothing to compact" in compact("--older-than-days=100000")[1]
    code, said = compact("--folder=7")  # a slip must not look like work done
    assert (code, "no tables of folder 7" in said) == (1, True)
    [part] = lake.glob("recipients/*/*/window=20250603*/part-00000.parquet")
    part.write_bytes(b"")

    code, said = compact()

    assert code == 1
    assert "20250601T000000Z_20250603T000000Z" in said
    assert "left alone: 20250603T000000Z_20250604T000000Z: recipients" in said
    assert "--repair" in said
    assert len(list(lake.glob("messages/*/*/*"))) == 2


def test_audit_tells_by_its_exit_code(server: Emulator, tmp_path: Path) -> None:
    """An audit shows what differs in words, as a calendar, JSON and a page; 1 if anything."""
    server.mailbox.deliver(date=JUNE)
    extract(server, tmp_path / "out")
    options = ("--login=user_test", "--folder=24", f"--output={tmp_path / 'out'}")
    online = ("audit", *options, f"--url={server.url}")
    password = {"R7MAIL_PASSWORD": "TestPassword"}

    fine = run(*online, env=password)
    assert fine.returncode == 0, fine.stderr
    assert "In order." in fine.stdout
    assert "2025-06 ■■■" in fine.stdout
    assert "--deep" in fine.stdout

    server.mailbox.deliver(date=JUNE)
    server.mailbox.deliver(date="1970-01-01T00:00:00Z")
    written = f"--json={tmp_path}/a.json", f"--html={tmp_path}/a.html"
    differs = run(*online, *written, env=password)
    assert differs.returncode == 1
    assert "the server has other mail" in differs.stdout
    assert "--repair" in differs.stderr
    report = json.loads((tmp_path / "a.json").read_text())
    kinds = [finding["kind"] for finding in report["findings"]]
    assert (report["in_order"], kinds) == (False, ["strays before", "differs"])
    page = (tmp_path / "a.html").read_text()
    assert page.count('<td class="differs"') == 30
    assert "http" not in page

    mended = run(*online, "--repair", env=password)
    assert mended.returncode == 0, mended.stdout
    assert run(*online, "--deep", env=password).returncode == 0
    alone = run("audit", *options, "--offline")
    assert (alone.returncode, "Not compared with the server." in alone.stdout) == (0, True)
    for path in (tmp_path / "out").rglob("_manifest.json"):
        path.unlink()
    assert run("audit", *options, "--offline").returncode == 1


def test_an_offline_audit_needs_no_login(server: Emulator, tmp_path: Path) -> None:
    """The tables of the only mailbox are checked without a login; of several, it chooses one."""
    server.mailbox.deliver(date=JUNE)
    extract(server, tmp_path / "out")
    options = ("audit", "--offline", "--folder=24", f"--output={tmp_path / 'out'}")
    alone = CliRunner().invoke(app, options)
    assert (alone.exit_code, "In order." in alone.output) == (0, True)

    for home in (tmp_path / "out").glob("*/mailbox=user_test"):
        shutil.copytree(home, home.with_name("mailbox=ann"))
    for login, code, says in [
        ([], 2, "Mailboxes with a folder 24"),
        (["--login=user_test"], 0, "In order."),
        (["--login=bob"], 2, "no tables of folder 24"),
    ]:
        done = CliRunner().invoke(app, [*options, *login])
        assert (done.exit_code, says in done.output) == (code, True), done.output


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "--url"),
        (["--offline", "--repair"], "leave out --offline"),
        (["--offline", "--start=soon"], "--start"),
        (["--offline"], "no tables of folder 24"),
        (["--url=http://127.0.0.1:9"], "could not be reached"),
    ],
)
def test_audits_that_cannot_work(tmp_path: Path, more: list[str], says: str) -> None:
    """Without a comparison the exit code is 2."""
    options = ("--login=user_test", "--folder=24", f"--output={tmp_path}")
    done = run("audit", *options, *more, env={"R7MAIL_PASSWORD": "x"})

    assert done.returncode == 2
    assert says in done.stderr


def test_an_audit_of_a_path_without_tables(server: Emulator, tmp_path: Path) -> None:
    """Where no extract has written, the audit says so, and doesn't suggest to repair anything."""
    server.mailbox.deliver(date=JUNE)

    done = run(
        *("audit", "--login=user_test", "--folder=24", f"--output={tmp_path / 'slip'}"),
        f"--url={server.url}",
        env={"R7MAIL_PASSWORD": "TestPassword"},
    )

    assert done.returncode == 1
    assert "There are no tables of folder 24" in done.stdout
    assert "--repair" not in done.stderr


@pytest.mark.skipif(AIRFLOW_2, reason="the SQL catalog needs SQLAlchemy 2")
def test_iceberg_tables(server: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extract, audit and compact work on a catalog of pyiceberg's configuration."""
    root = tmp_path / "catalog"
    root.mkdir()
    for name, value in {
        "PYICEBERG_CATALOG__LAKE__URI": f"sqlite:///{root}/lake.db",
        "PYICEBERG_CATALOG__LAKE__TYPE": "sql",
        "PYICEBERG_CATALOG__LAKE__WAREHOUSE": str(root),
        "R7MAIL_PASSWORD": "TestPassword",
        "COLUMNS": "120",
    }.items():
        monkeypatch.setenv(name, value)
    tables = f"--output={tmp_path}/out", "--table-format=iceberg", "--catalog=lake"
    mailbox = f"--url={server.url}", "--login=user_test", "--folder=24"

    def command(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, words)
        return done.exit_code, done.output

    for day in range(2):
        server.mailbox.deliver(date=JUNE + timedelta(days=day))
        window = f"--start=2025-06-0{day + 1}", f"--end=2025-06-0{day + 2}"
        code, said = command("extract", *mailbox, *tables, *window)
        assert (code, "r7mail.messages" in said) == (0, True), said
    late = server.mailbox.deliver(date=JUNE)
    assert command("audit", *mailbox, *tables, "--deep")[0] == 1
    assert command("audit", *mailbox, *tables, "--repair")[0] == 0
    assert command("audit", *mailbox, *tables, "--offline")[0] == 0
    code, said = command("compact", *tables)
    assert (code, "r7mail.recipients" in said) == (0, True), said
    from pyiceberg.catalog import load_catalog

    found = load_catalog("default", uri=f"sqlite:///{root}/lake.db", type="sql")
    assert late in found.load_table("r7mail.messages").scan().to_arrow()["message_id"].to_pylist()
    found.close()

    assert "has no catalog other" in command("compact", *tables[:2], "--catalog=other")[1]
    assert "only with --table-format" in command("compact", tables[0], "--catalog=lake")[1]
    assert "leave it out" in command("compact", *tables, "--folder=24")[1]
    assert "no tables" in command("compact", *tables, "--namespace=other")[1]


def test_extract_waits_for_mail_on_its_way(server: Emulator, tmp_path: Path) -> None:
    """A window that has only just ended is read settle_seconds later."""
    end = datetime.now(UTC)
    said = extract(server, tmp_path, f"--end={end.isoformat()}", "--settle-seconds=4")

    assert "Messages from folder 24: 0, in" in said
    assert server.requests[0]["time"] - end.timestamp() >= 4
    assert "settle_seconds: -1" in extract(server, tmp_path, "--settle-seconds=-1")


def test_extract_again_replaces(server: Emulator, tmp_path: Path) -> None:
    """A second run of a window replaces the first."""
    server.mailbox.deliver(date=JUNE)
    extract(server, tmp_path)
    server.mailbox.deliver(date=JUNE)

    assert "Messages from folder 24: 2, in" in extract(server, tmp_path)
    found = duckdb.sql(f"SELECT count(*) FROM '{tmp_path}/messages/**/*.parquet'")
    assert found is not None
    assert found.fetchall() == [(2,)]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--end=2025-05-01"], "not after its start"),
        (["--start=tomorrow"], "'tomorrow' is not a date"),
        (["--url=mail.example.org"], "--url: give the server's URL"),
        (["--page-size=0"], "page_size"),
        (["--output=nowhere://x"], "--output: no file system for nowhere://"),
        (["--output=s3:/bucket/x"], "Write s3://bucket/x."),
        (["--output=/dev/null/x"], "can't be written"),
        (["--ca=/nowhere.pem"], "no certificate could be read"),
    ],
)
def test_extract_teaches(server: Emulator, tmp_path: Path, more: list[str], expected: str) -> None:
    """An error is one line with exit code 1, without a traceback."""
    said = extract(server, tmp_path / "out", *more)

    assert said.startswith("1: Error: ")
    assert expected in said
    assert len(said.splitlines()) == 1


def test_a_wrong_password_is_tried_once(server: Emulator, tmp_path: Path) -> None:
    """A refused login is an error, and is not retried."""
    said = extract(server, tmp_path, password="wrong")

    assert said.startswith("1: Error: ")
    assert server.logins == 1


def test_extract_on_windows() -> None:
    """On Windows the error says what is missing there, and what to use instead."""
    code = (
        "import sys; from airflow_provider_r7mail import cli; import typer, rich; "
        "sys.platform = 'win32'; "
        "from airflow_provider_r7mail.cli.extract import extract; "
        "extract('http://127.0.0.1:1', 'a', 1, '2025-06-01', '2025-06-02', 'x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stderr.startswith("Error: Extracts and attachments need Linux or macOS")
    assert "ModuleNotFoundError" not in done.stderr


def test_extract_needs_a_password() -> None:
    """Without a password or a terminal to ask for it, the error says where to set it."""
    done = run(
        *("extract", "--url=http://127.0.0.1:1", "--login=a", "--folder=1"),
        *("--start=2025-06-01", "--end=2025-06-02", "--output=/tmp/x"),
        env={"R7MAIL_PASSWORD": ""},
    )

    assert done.returncode == 1
    assert "R7MAIL_PASSWORD" in done.stderr


def test_demo(tmp_path: Path) -> None:
    """The demo runs four DAGs in Airflow, shows what they did, and what to try next."""
    done = run("demo", f"--dir={tmp_path / 'demo'}")

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok  ") == 3
    said = re.sub(r"\s+", " ", done.stdout)
    rows = int(re.findall(r"tables/messages 6 ([\d,]+)", said)[0].replace(",", ""))
    found = duckdb.sql(f"SELECT count(*) FROM '{tmp_path}/demo/lake/tables/messages/**/*.parquet'")
    assert found is not None
    assert found.fetchall() == [(rows,)]
    assert rows > 500
    assert "price_lists 1 12 " in said
    assert "marked as read and moved to folder processed" in said
    assert re.search(r"Message \d+ arrived after its week .* looked at that week again", said)
    assert re.search(r"The report was sent as message \d+, with mail_of_[\d-]+\.csv", said)
    assert "Top senders (DuckDB)" in said
    [command] = re.findall(r"^  (.*python -c .*)$", done.stdout, re.MULTILINE)
    shown = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    assert "from_address" in shown.stdout, shown.stderr
    report = Path(done.stdout.rstrip().splitlines()[-1].strip())
    assert "Busiest hours" in report.read_text()
    settings = (tmp_path / "demo" / "airflow.env").read_text()
    assert "export AIRFLOW_HOME=" in settings
    connection = re.findall(r"AIRFLOW_CONN_R7MAIL_DEFAULT='(.*)'", settings)[0]
    assert json.loads(connection)["port"] == 8025


def test_demo_keeps_off_other_files(tmp_path: Path) -> None:
    """A directory with other files is not touched."""
    (tmp_path / "mine.txt").write_text("x")

    done = run("demo", f"--dir={tmp_path}")

    assert done.returncode == 1
    assert "has other files in it" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_stopped_leaves_nothing_running(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C in the middle of the demo ends Airflow as well."""
    # Shells, and perhaps CI, start background processes with SIGINT ignored.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from airflow_provider_r7mail.cli import app; app(prog_name='r7mail')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "demo", f"--dir={tmp_path / 'demo'}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        until = time.monotonic() + 30
        while not (found := children.read_text().split()):
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(number)
        process.wait(20)

    assert process.returncode != 0
    until = time.monotonic() + 10  # an ended process stays visible until init reaps it
    while any(Path(f"/proc/{child}").exists() for child in found):
        assert time.monotonic() < until
        time.sleep(0.05)
