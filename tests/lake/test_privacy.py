"""Privacy: what the policy removes is in no byte on disk, no line of the log and no XCom."""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import hashlib
import hmac
import inspect
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_r7mail.compat import AirflowFailException
from airflow_provider_r7mail.emulator import Emulator, Fault
from airflow_provider_r7mail.exceptions import R7MailAttachmentError, R7MailConfigError
from airflow_provider_r7mail.lake import privacy
from airflow_provider_r7mail.lake.privacy import ACTIONS, COLUMNS, Privacy
from airflow_provider_r7mail.lake.schema import TABLES, schema
from airflow_provider_r7mail.transfers import R7MailToParquetOperator
from tests.conftest import CONNECTION
from tests.lake.support import DAY, DOCS, START, example

KEY = "a-long-random-text-of-this-test"
EVERYTHING = {
    "subject": "hash",
    "body": "drop",
    "html_body": "drop",
    "addresses": "hash",
    "file_names": "hash",
    "mailbox": "hash",
}
# Words that only occur in the mail, each in a different place.
WORDS = """podsubj podbody podhtml podfrom podname podto podtoname podcc podbcc podhost podfile
    podmime podext podextra podchild podtask podmd5 podcsuid podexternal podthread podmisfit podbad
    podreply""".split()  # noqa: SIM905


@pytest.fixture(autouse=True)
def key(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection with a key, if the test uses a server."""
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        monkeypatch.setenv(CONNECTION, server.connection(max_retries=0, privacy_secret=KEY))


def extract(root: Path, policy: Any = None, days: int = 1, **options: Any) -> Any:
    """Extract from the first of June."""
    given = {
        "folder": 24,
        "output_path": str(root / "lake"),
        "attachments_path": str(root / "files"),
        "privacy": policy,
        **options,
    }
    operator: Any = R7MailToParquetOperator(task_id="extract", **given)
    return operator.execute(
        {"data_interval_start": START, "data_interval_end": START + timedelta(days)}
    )


def deliver(server: Emulator, *, odd: bool) -> int:
    """Deliver a message that contains all the words; if odd, in unusual types and fields."""
    name = "Отчёт podfile.xlsx"
    fields: dict[str, Any] = {
        "ToName": "Podtoname Скрытов",
        "CsMd5": "podmd5",
        "CsUid": "podcsuid",
        "ExternalId": "podexternal",
        "MimeReplyToId": "podreply@podhost.example",
    }
    if odd:
        fields |= {
            "TaskId": {"Title": "podtask"},
            "Children": [{"Body": "podchild"}],
            "X-Unknown": "podextra",
            "Labels": {"podmisfit": 1},
            "Subject": "Счёт podsubj \ud83d",
        }
    return server.mailbox.deliver(
        date=START,
        subject="Счёт podsubj",
        body="Здравствуйте, podbody",
        html_body="<p>podhtml</p>",
        sender="Podfrom@PodHost.example",
        sender_name="Podname Иванова",
        to=["Пётр <podto@podhost.example>", "ann@example.org"],
        cc=["podcc@podhost.example"],
        bcc=["podbcc"],
        thread_id="podthread",
        mime_message_id="podthread@podhost.example",
        attachments=[
            (name, b"1;2", f'text/csv; name="{name} podmime"'),
            ("Договор.podext", b"3", "application/x-podmime@" if odd else "application/pdf"),
        ],
        fields=fields,
    )


def contents(root: Path) -> dict[str, str]:
    """Everything readable below a folder: paths, bytes, and the decompressed Parquet."""
    found = {}
    for path in root.rglob("*"):
        text = str(path.relative_to(root))
        if path.is_file():
            text += path.read_bytes().decode("utf-8", "replace")
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            text += str(file.read().to_pylist()) + str(file.metadata) + str(file.schema_arrow)
        found[str(path)] = text.casefold()
    return found


def rows(root: Path, table: str) -> list[dict[str, Any]]:
    """A table's rows."""
    parts = sorted(root.glob(f"lake/{table}/*/*/*/*.parquet"))
    return [row for path in parts for row in pq.ParquetFile(path).read().to_pylist()]


def digest(text: str) -> str:
    """The hash as other tools compute it: `openssl dgst -sha256 -hmac KEY`."""
    return hmac.new(KEY.encode(), text.encode(), hashlib.sha256).hexdigest()


@pytest.mark.parametrize("odd", [False, True], ids=["usual", "hostile"])
def test_nothing_of_it_is_left(
    server: Emulator,
    tmp_path: Path,
    logged: Callable[[], str],
    caplog: pytest.LogCaptureFixture,
    odd: bool,
) -> None:
    """No byte on disk, no line of the log and no XCom has a word that the policy removes."""
    deliver(server, odd=odd)
    server.mailbox.deliver(
        date=START, subject="podbad", fields={"Id": None, "From": "podbad@example.org"}
    )
    server.faults.append(Fault(path="Attachments", status=404))
    plain = tmp_path / "plain"
    extract(plain, on_bad_message="quarantine", on_attachment_error="record")
    there = "".join(contents(plain).values())
    usual = set(WORDS) - {"podextra", "podchild", "podtask", "podmisfit"}
    assert {word for word in WORDS if word in there} == (set(WORDS) if odd else usual)
    logged()
    caplog.clear()

    hidden = tmp_path / "hidden"
    server.faults.append(Fault(path="Attachments", status=404))
    manifest = extract(
        hidden, EVERYTHING, on_bad_message="quarantine", on_attachment_error="record"
    )

    spoken = {"log": logged().casefold(), "xcom": str(manifest).casefold()}
    words = {*WORDS, "user_test", "ivanov", "иванова", "скрытов", "счёт", "отчёт", "ann@", KEY}
    assert {
        (place, word)
        for place, text in (contents(hidden) | spoken).items()
        for word in words
        if word in text
    } == set()
    [quarantine] = hidden.rglob("_quarantine.jsonl")
    assert json.loads(quarantine.read_text()) == {
        "message_id": None,
        "reason": "Id is missing or not a 64-bit integer",
        "message": None,
    }
    assert len(rows(hidden, "messages")) == 1
    assert sum(path.is_file() for path in (hidden / "files").rglob("*")) == 1
    [_, failed] = sorted(rows(hidden, "attachments"), key=lambda row: row["status"])
    assert failed["status"] == "failed"


def test_joins_still_work(server: Emulator, tmp_path: Path) -> None:
    """A person has the same hash in all columns, tables, windows and runs, however written."""
    server.mailbox.deliver(
        date=START,
        sender="ANN@example.org",
        sender_name=" Анна ",
        to=["Bob <bob@Example.org>"],
        cc=["ann@EXAMPLE.org "],
        mime_message_id="1@example.org",
        subject="Отчёт",
    )
    server.mailbox.deliver(
        date=START + DAY,
        sender="bob@example.org",
        to=["ann@example.org", ""],
        in_reply_to="1@example.org",
        subject="отчёт",
        fields={"ToName": "АННА", "Bcc": None},
    )
    policy = {"addresses": "hash", "subject": "hash"}
    extract(tmp_path, policy)
    extract(tmp_path, policy, days=2)
    ann, bob = digest("ann@example.org"), digest("bob@example.org")

    first, again, second = sorted(rows(tmp_path, "messages"), key=lambda row: row["date"])
    assert first | {"extracted_at": 0} == again | {"extracted_at": 0}
    assert (first["from_address"], first["to_addresses"], first["cc_addresses"]) == (
        ann,
        [bob],
        [ann],
    )
    assert (second["from_address"], second["to_addresses"]) == (bob, [ann, ""])
    assert second["bcc_addresses"] is None
    assert first["from_name"] == second["to_name"] == digest("анна")
    assert first["mime_message_id"] == second["mime_reply_to_id"] == digest("1@example.org")
    assert first["subject"] == digest("Отчёт") != second["subject"] == digest("отчёт")
    recipients = rows(tmp_path, "recipients")
    assert {row["address"] for row in recipients} == {ann, bob, ""}
    assert {row["domain"] for row in recipients if row["address"]} == {digest("example.org")}


def test_only_domains(server: Emulator, tmp_path: Path) -> None:
    """`domain` keeps the domains of addresses, but neither names nor mailboxes."""
    deliver(server, odd=False)

    extract(tmp_path, {"addresses": "domain"})

    [message] = rows(tmp_path, "messages")
    assert message["from_address"] == "podhost.example"
    assert message["to_addresses"] == ["podhost.example", "example.org"]
    assert message["bcc_addresses"] == [None]
    assert (message["from_name"], message["to_name"]) == (None, None)
    assert message["mime_message_id"] == digest("podthread@podhost.example")
    assert message["subject"] == "Счёт podsubj"
    found = [(row["address"], row["domain"]) for row in rows(tmp_path, "recipients")]
    assert found == [
        ("podhost.example",) * 2,
        ("example.org",) * 2,
        ("podhost.example",) * 2,
        (None,) * 2,
    ]


def test_only_what_is_asked_for(server: Emulator, tmp_path: Path) -> None:
    """Columns that the policy doesn't name are unchanged, except those with unknown content."""
    deliver(server, odd=True)
    extract(tmp_path)
    [plain] = rows(tmp_path, "messages")
    before = {table: rows(tmp_path, table) for table in TABLES[1:]}

    extract(tmp_path, {"body": "drop", "html_body": "drop", "task_id": "keep"})

    [kept] = rows(tmp_path, "messages")
    changed = {name for name, value in kept.items() if value != plain[name]}
    assert changed == {"body", "html_body", "extra", "children", "extracted_at"}
    assert (kept["body"], kept["extra"], kept["children"]) == (None, None, None)
    assert rows(tmp_path, "recipients") == before["recipients"]
    assert [row["file_name"] for row in rows(tmp_path, "attachments")] == [
        row["file_name"] for row in before["attachments"]
    ]


def test_attachments_under_hashed_names(server: Emulator, tmp_path: Path) -> None:
    """Files get hashed names with a common extension; a rerun doesn't download them again."""
    number = deliver(server, odd=False)
    policy = {"file_names": "hash"}

    extract(tmp_path, policy)
    manifest = extract(tmp_path, policy)

    assert manifest["attachments"] == {"unchanged": 2}
    hashed = [f"{digest('Отчёт podfile.xlsx')}.xlsx", digest("Договор.podext")]
    found = rows(tmp_path, "attachments")
    assert [row["file_name"] for row in found] == hashed
    assert [row["mime_type"] for row in found] == ["text/csv", "application/pdf"]
    folder = tmp_path / f"files/mailbox=user_test/folder=24/message_id={number}"
    assert sorted(path.name for path in folder.iterdir()) == sorted(hashed)
    assert (folder / hashed[0]).read_bytes() == b"1;2"
    [message] = rows(tmp_path, "messages")
    assert [file["file_name"] for file in message["attachments"]] == hashed
    assert [file["mime_type"] for file in message["attachments"]] == ["text/csv", "application/pdf"]


def test_a_rerun_with_another_policy(server: Emulator, tmp_path: Path) -> None:
    """A rerun with a policy replaces what an earlier run wrote, including the files' names."""
    deliver(server, odd=False)
    extract(tmp_path)
    assert "podfile" in "".join(contents(tmp_path).values())

    # The first try fails; the second one still knows about the old files.
    server.faults.append(Fault(path="Attachments", status=404))
    with pytest.raises(R7MailAttachmentError):
        extract(tmp_path, EVERYTHING | {"mailbox": "keep"})
    extract(tmp_path, EVERYTHING | {"mailbox": "keep"})

    everything = "".join(contents(tmp_path).values())
    assert [word for word in WORDS if word in everything] == []
    assert len([path for path in (tmp_path / "files").rglob("*") if path.is_file()]) == 2


def test_the_mailbox_in_paths(server: Emulator, tmp_path: Path) -> None:
    """If the policy hashes the mailbox, its hash replaces the login in every path."""
    manifest = extract(tmp_path, {"mailbox": "hash"})

    assert manifest["mailbox"] == digest("user_test")
    assert f"/mailbox={digest('user_test')}/" in manifest["path"]
    assert {path.name for path in tmp_path.glob("*/*/mailbox=*")} == {
        f"mailbox={digest('user_test')}"
    }


def test_the_manifest_tells_the_policy(
    server: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest shows how a window is protected and an id of the key, but not the key."""
    assert extract(tmp_path)["privacy"] is None
    assert extract(tmp_path, {"body": "keep"})["privacy"] is None
    dropped = {"body": "drop", "extra": "drop", "children": "drop", "task_id": "drop"}
    assert extract(tmp_path, {"body": "drop"})["privacy"] == {"actions": dropped, "key_id": None}
    first = extract(tmp_path, {"subject": "hash"})["privacy"]
    assert extract(tmp_path, {"addresses": "hash"})["privacy"]["key_id"] == first["key_id"]
    monkeypatch.setenv(CONNECTION, server.connection(privacy_secret="another key"))
    other = extract(tmp_path, {"subject": "hash"})["privacy"]

    assert other["actions"] == first["actions"]
    assert other["key_id"] != first["key_id"]
    [home] = tmp_path.glob("lake/messages/*/*/*")
    assert json.loads((home / "_manifest.json").read_text())["privacy"] == other


@pytest.mark.parametrize("secret", [None, "", "  "])
@pytest.mark.parametrize("policy", [{"subject": "hash"}, {"addresses": "domain"}])
def test_a_missing_key(
    server: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Any, secret: Any
) -> None:
    """Without a key the task fails before it reads or writes anything."""
    monkeypatch.setenv(CONNECTION, server.connection(privacy_secret=secret))

    with pytest.raises(AirflowFailException, match="no privacy_secret"):
        extract(tmp_path, policy)

    assert server.requests == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"sbject": "hash"}, r"privacy: 'sbject'\. Known: subject, body, .*, mailbox\."),
        ({"subject": "domain"}, r"privacy: subject: 'domain'\. Known: drop, hash, keep\."),
        ({"addresses": None}, r"privacy: addresses: None\. Known: drop, hash, domain, keep\."),
        ({"file_names": "drop"}, r"Known: hash, keep\."),
        ({"body": ["drop"]}, r"Known: drop, hash, keep\."),
        (["body"], r"privacy: list is not a mapping"),
        ("body", r"privacy: str is not a mapping"),
    ],
)
def test_wrong_policies(policy: Any, message: str) -> None:
    """A mistake in a policy is an error that lists what is valid; nothing is written in plain."""
    with pytest.raises(R7MailConfigError, match=message):
        Privacy.build(policy, KEY)


def test_dropping_needs_no_key() -> None:
    """A policy that only drops needs no key."""
    policy = {"subject": "drop", "addresses": "drop", "ids": "drop"}
    assert Privacy.build(policy, None).actions["names"] == "drop"


def test_every_column_was_thought_of() -> None:
    """Every text column of a table is covered by the policy, or known to be harmless."""
    harmless = {"kind", "status", "error", "uri", "sha256"}
    covered = {column for columns in COLUMNS.values() for column in columns}
    text = {
        field.name
        for table in TABLES
        for field in schema(table)
        if pa.types.is_string(field.type) or pa.types.is_list(field.type)
    }

    assert text - covered - {"labels"} == harmless
    assert set(COLUMNS) | {"mailbox"} == set(ACTIONS)
    page = (DOCS / "en" / "privacy.md").read_text()
    assert [name for name in ACTIONS if f"`{name}`" not in page] == []


def test_slices_and_nulls() -> None:
    """Slices of a page, with nulls and empty lists, are protected like the whole page."""
    names = ["from_address", "to_addresses", "attachments", "file_name"]
    file = {"attachment_id": 1, "file_id": 2, "file_name": "ё.pdf", "size": 3, "mime_type": "a/b;c"}
    batch = pa.RecordBatch.from_arrays(
        [
            pa.array(["A@x", None, "", "a@x"]),
            pa.array([["b@x", None], None, [], ["a@x"]]),
            pa.array([[file], None, [None, file], []], schema("messages").field(names[2]).type),
            pa.array(["ё.pdf", None, "a", "b"]),
        ],
        names=names,
    )
    policy = Privacy.build({"addresses": "hash", "file_names": "hash"}, KEY)
    whole = policy.protect(batch)

    assert whole.schema == batch.schema
    for start in range(5):
        for length in range(5 - start):
            part = policy.protect(batch.slice(start, length))
            part.validate(full=True)
            assert part.to_pylist() == whole.to_pylist()[start : start + length]
    assert whole["to_addresses"].to_pylist() == [[digest("b@x"), None], None, [], [digest("a@x")]]
    hidden = file | {"file_name": f"{digest('ё.pdf')}.pdf", "mime_type": "a/b"}
    assert whole["attachments"].to_pylist() == [[hidden], None, [None, hidden], []]
    assert whole["from_address"].to_pylist() == [digest("a@x"), None, "", digest("a@x")]


def test_the_key_does_not_show() -> None:
    """The key isn't printed by accident."""
    assert KEY not in repr(Privacy.build({"subject": "hash"}, KEY))
    assert "http" not in inspect.getsource(privacy)


@pytest.mark.parametrize("policy", [None, {"addresses": "hash"}], ids=["plain", "hashed"])
def test_forgetting_a_person(server: Emulator, tmp_path: Path, policy: Any) -> None:
    """The documented script deletes one person's rows and files, and nothing else."""
    script = example("forget_person")
    file = ("a.csv", b"1", "text/csv")
    for date in (START, START + DAY):
        server.mailbox.deliver(date=date, sender="ANN@example.org", attachments=[file])
        server.mailbox.deliver(date=date, to=["bob@example.org", "Ann <ann@example.org>"])
        server.mailbox.deliver(date=date, to=["bob@example.org"], attachments=[file])
    extract(tmp_path, policy)
    extract(tmp_path, policy, start=START + DAY, end=START + 2 * DAY)

    found = script.forget(str(tmp_path / "lake"), script.person("Ann@Example.org", KEY))

    assert [len(ids) for ids in found.values()] == [2, 2]
    gone = {number for ids in found.values() for number in ids}
    left = {table: rows(tmp_path, table) for table in TABLES}
    assert {row["message_id"] for table in TABLES for row in left[table]} & gone == set()
    assert [len(left[table]) for table in TABLES] == [2, 2, 2]
    stored = [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
    assert sorted(f"file://{path}" for path in stored) == [
        row["uri"] for row in left["attachments"]
    ]
    for part in tmp_path.glob("lake/*/*/*/*/*.parquet"):
        assert pq.read_schema(part).equals(schema(part.parts[-5]))
        manifest = json.loads((part.parent / "_manifest.json").read_text())
        [told] = [item for item in manifest["files"] if item["path"].endswith(str(part))]
        assert told["sha256"] == hashlib.sha256(part.read_bytes()).hexdigest()
        assert (told["rows"], manifest["messages"]) == (1, 1)

    for number in gone:
        server.mailbox.delete(24, [number])
    manifest = extract(tmp_path, policy)
    assert (manifest["messages"], manifest["attachments"]) == (1, {"unchanged": 1})


def test_finding_a_person(
    server: Emulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The documented code prints the hash of an address, and its SQL finds the person's mail."""
    server.mailbox.deliver(date=START, sender="ann@example.org")
    server.mailbox.deliver(date=START, to=["Ann <ann@example.org>"])
    server.mailbox.deliver(date=START, to=["bob@example.org"])
    extract(tmp_path, {"addresses": "hash"})
    page = (DOCS / "en" / "privacy.md").read_text()
    blocks = page.split("```")[1::2]
    [code] = [block for block in blocks if block.startswith("python\nfrom")]
    exec(code.removeprefix("python"))
    assert capsys.readouterr().out.splitlines()[-1] == digest("ann@example.org")
    [query] = [block for block in blocks if block.startswith("sql")]
    query = query.removeprefix("sql").replace("/data/mail", str(tmp_path / "lake"))
    query = query.replace("<hash or address>", digest("ann@example.org"))

    found = duckdb.connect().execute(query).fetchall()

    assert [len(row) for row in found] == [4, 4]
