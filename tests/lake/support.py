"""What the tests of the lake share: a day of mail, a mailbox's client, S3, and child processes."""

# ruff: noqa: TID253 - no DAG file is read here

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from airflow_provider_r7mail.client.http import ClientConfig
from tests.s3 import S3Server

INBOX = 24
DAY = timedelta(days=1)
START = datetime(2025, 6, 1, tzinfo=UTC)
LABEL = "20250601T000000Z_20250602T000000Z"
WINDOW = f"mailbox=user_test/folder={INBOX}/window={LABEL}"
DOCS = Path(__file__).parents[2] / "docs"

# Not `fork`: Python warns about it in a process with threads, such as the emulator's. The modules
# are those that children need: imported once, in the process that they are forked from.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(
    [
        "airflow_provider_r7mail.compat",
        "airflow.sdk.io.path",
        "airflow_provider_r7mail.emulator.app",
        "airflow_provider_r7mail.lake.window",
        "airflow_provider_r7mail.transfers",
        "boto3",
        "duckdb",
        "hypothesis",
        "airflow_provider_r7mail.client.transport",
        "moto.server",
        "pyarrow.parquet",
        "pyiceberg.catalog.sql",
        "pyiceberg.io.pyarrow",
        "pytest",
        "sqlalchemy.dialects.sqlite",
        "upath",
    ]
)


def run_children(target: Callable[..., Any], *arguments: tuple[Any, ...]) -> list[int | None]:
    """Run a function in processes of their own at once, one for each arguments; the exit codes."""
    children = [CHILDREN.Process(target=target, args=given) for given in arguments]
    for child in children:
        child.start()
    for child in children:
        child.join()
    return [child.exitcode for child in children]


def die_at(root: Path, event: str, number: int) -> None:
    """Let this process be killed at the nth audit event of Python that is about a folder."""
    seen = itertools.count(1)

    def watch(name: str, arguments: tuple[Any, ...]) -> None:
        if name == event and str(root) in str(arguments) and next(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


# -- the mailbox ----------------------------------------------------------------------------


def config(url: str, **options: Any) -> ClientConfig:
    """Return a client's configuration for the emulator's mailbox."""
    return ClientConfig(url=url, login="user_test", password="TestPassword", **options)


def quick_config(url: str, **options: Any) -> ClientConfig:
    """Return a configuration for tests of failures, which hardly wait."""
    return config(url, **{"max_retries": 2, "backoff": 0.001, "timeout": 5.0, **options})


# -- what was written -----------------------------------------------------------------------


def files(root: Path) -> dict[str, bytes]:
    """Return everything below a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def published(objects: Mapping[str, bytes], root: str) -> dict[str, Any] | None:
    """Check that the day's files match its manifest, and return it; None if it is incomplete.

    :param objects: the objects below the root
    :param root: the URI of the root
    """
    text = objects.get(f"messages/{WINDOW}/_manifest.json")
    if text is None:
        return None
    manifest: dict[str, Any] = json.loads(text)
    runs = set()
    for file in manifest["files"]:
        home = f"{file['table']}/{WINDOW}"
        assert file["path"] == f"{root}/{home}/part-00000.parquet"
        data = objects[f"{home}/part-00000.parquet"]
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
        metadata = pq.read_metadata(pa.BufferReader(data))
        assert metadata.num_rows == file["rows"]
        runs.add(metadata.metadata[b"r7mail.run_id"].decode())
        assert objects[f"{home}/_manifest.json"] == text
    assert runs == {manifest["run_id"]}
    return manifest


def table(root: Path, name: str = "messages") -> list[dict[str, Any]]:
    """Return the day's rows of a table."""
    rows: list[dict[str, Any]] = pq.read_table(
        root / name / WINDOW / "part-00000.parquet"
    ).to_pylist()
    return rows


# -- S3 -------------------------------------------------------------------------------------


@contextmanager
def s3_server() -> Iterator[str]:
    """Run an S3 server on a real socket; its URL."""
    server = S3Server()
    try:
        yield server.url
    finally:
        server.stop()


class ExpiringKeys:
    """The keys of an S3 server: the administrator's, `testing`, and others until they expire."""

    def __init__(self) -> None:
        self._valid = {"testing"}
        self._given = 0
        self.refused = 0
        self.url = ""

    def new(self) -> dict[str, str]:
        """Return pyiceberg's properties with a new key."""
        self._given += 1
        self._valid.add(f"key-{self._given}")
        return {
            "s3.endpoint": self.url,
            "s3.region": "us-east-1",
            "s3.access-key-id": f"key-{self._given}",
            "s3.secret-access-key": "testing",
        }

    def expire(self) -> None:
        """Let all keys given so far expire."""
        self._valid = {"testing"}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """Answer a request as WSGI wants it."""
        authorization = environ.get("HTTP_AUTHORIZATION", "")
        if any(f"Credential={key}/" in authorization for key in self._valid):
            return self._store(environ, start_response)
        self.refused += 1
        start_response("403 Forbidden", [("Content-Type", "application/xml")])
        return [b"<Error><Code>ExpiredToken</Code><Message>It has expired.</Message></Error>"]

    _store = DomainDispatcherApplication(create_backend_app)


Act = Callable[[], tuple[str, bytes] | None]


class Gate:
    """An S3 server that does something when it is about to write for the nth time."""

    def __init__(self) -> None:
        self.url = ""
        self.writes = 0
        self._number, self._once = 0, True
        self._act: Act = lambda: None
        self._turns = threading.Lock()

    @property
    def options(self) -> dict[str, Any]:
        """What `UPath` takes to reach it; failures are reported at once."""
        return {
            "key": "testing",
            "secret": "testing",
            "client_kwargs": {"endpoint_url": self.url, "region_name": "us-east-1"},
            "config_kwargs": {"retries": {"total_max_attempts": 1}, "connect_timeout": 2},
        }

    def at_write(self, number: int, act: Act, *, once: bool = True) -> None:
        """Do something instead of the nth write from now on, and answer with what it returns.

        :param act: returns a status and a body, or None to write as usual
        :param once: not instead of those that follow
        """
        self.writes, self._number, self._act, self._once = 0, number, act, once

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """Answer a request as WSGI wants it."""
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            with self._turns:
                self.writes += 1
                past = self.writes - self._number
            if (past == 0 or (past > 0 and not self._once)) and (answer := self._act()):
                start_response(answer[0], [("Content-Type", "application/xml")])
                return [answer[1]]
        return self._store(environ, start_response)

    _store = DomainDispatcherApplication(create_backend_app)


@contextmanager
def s3_server_behind(gate: Gate | ExpiringKeys) -> Iterator[None]:
    """Run an S3 server that a gate stands before; set its URL."""
    # Newer than what Airflow's constraints pin.
    from moto.moto_server.werkzeug_app import MotoRequestHandler  # noqa: PLC0415

    server = make_server("127.0.0.1", 0, gate, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        gate.url = f"http://127.0.0.1:{server.server_port}"
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def s3_server_with_expiring_keys() -> Iterator[ExpiringKeys]:
    """Run an S3 server whose keys expire."""
    keys = ExpiringKeys()
    with s3_server_behind(keys):
        yield keys


def connect_s3(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    """Set the Airflow connection of an S3 server.

    Airflow keeps a file system for each connection: tests with different servers need other names.
    """
    extra = {"endpoint_url": url, "region_name": "us-east-1"}
    connection = {"conn_type": "aws", "login": "testing", "password": "testing", "extra": extra}
    monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(connection))


class Bucket:
    """A new bucket on an S3 server."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self._s3 = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name="us-east-1",
        )
        self._s3.create_bucket(Bucket=name)

    def names(self) -> list[str]:
        """Return the keys of all objects."""
        found = self._s3.list_objects_v2(Bucket=self.name).get("Contents", [])
        return [item["Key"] for item in found]

    def objects(self) -> dict[str, bytes]:
        """Return all objects by their keys; there must be no unfinished upload."""
        assert self.unfinished() == 0
        return {
            key: self._s3.get_object(Bucket=self.name, Key=key)["Body"].read()
            for key in self.names()
        }

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Write objects by their keys."""
        for key, data in objects.items():
            self._s3.put_object(Bucket=self.name, Key=key, Body=data)

    def clear(self) -> None:
        """Remove all objects."""
        for key in self.names():
            self._s3.delete_object(Bucket=self.name, Key=key)

    def sha256(self, name: str) -> str | None:
        """Return the checksum that S3 was given with an object."""
        found = self._s3.head_object(Bucket=self.name, Key=name, ChecksumMode="ENABLED")
        checksum: str | None = found.get("ChecksumSHA256")
        return checksum

    def unfinished(self) -> int:
        """Return the number of unfinished uploads."""
        return len(self._s3.list_multipart_uploads(Bucket=self.name).get("Uploads", []))

    def part_sizes(self) -> list[int]:
        """Return the sizes of the parts of all unfinished uploads."""
        uploads = self._s3.list_multipart_uploads(Bucket=self.name)["Uploads"]
        listings = [
            self._s3.list_parts(Bucket=self.name, Key=upload["Key"], UploadId=upload["UploadId"])
            for upload in uploads
        ]
        return [part["Size"] for listing in listings for part in listing["Parts"]]


# -- the documentation ----------------------------------------------------------------------


def example(name: str) -> Any:
    """Import a file of the documentation's examples."""
    spec: Any = importlib.util.spec_from_file_location(name, DOCS / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
