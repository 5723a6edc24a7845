"""A year of hourly windows, on a disk and in an S3 server: what `bench.py windows` reads.

The files and manifests are written as an extract does, without one. `python windows.py ROOT` is
the S3 server: it has the tables below a folder, prints its URL, and answers each line on its
standard input with the number of requests since the last one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import string
import sys
import threading
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pyarrow as pa  # noqa: TID253 - no DAG file

from airflow_provider_r7mail import __version__
from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.lake.layout import MANIFEST, PART, window_name
from airflow_provider_r7mail.lake.parquet import ParquetTable
from airflow_provider_r7mail.lake.schema import RUN_ID_KEY, SCHEMA_VERSION, TABLES, schema

BUCKET = "bench-mail"
MAILBOX, FOLDER = "ann", 24
START = datetime(2025, 1, 1, tzinfo=UTC)
HOURS = 365 * 24
HOUR = timedelta(hours=1)
MESSAGES = 5  # in an hour
BODY, VOCABULARY = 200, 5000  # words


def make_year(root: Path, hours: int = HOURS) -> int:
    """Write a mailbox's tables, and return how many messages they have."""
    number = 0
    words = Words()
    for hour in range(hours):
        window = Window(START + hour * HOUR, START + (hour + 1) * HOUR)
        rows: dict[str, list[dict[str, Any]]] = {table: [] for table in TABLES}
        for minute in range(MESSAGES):
            number += 1
            for table, found in words.message(number, START + hour * HOUR, 10 * minute).items():
                rows[table] += found
        write_window(root, window, rows)
    return number


def write_window(root: Path, window: Window, rows: Mapping[str, list[dict[str, Any]]]) -> None:
    """Write a window's files and manifests."""
    name, run_id = window_name(MAILBOX, FOLDER, window.label()), uuid.uuid4().hex
    assert window.start is not None
    assert window.end is not None
    files = []
    for table, found in rows.items():
        sink = BytesIO()
        part = ParquetTable(table, sink, metadata={RUN_ID_KEY: run_id})
        part.write(pa.RecordBatch.from_pylist(found, schema(table)))
        part.finish()
        data = sink.getvalue()
        path = root / table / name / PART
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        files.append(
            {
                "table": table,
                "path": path.as_uri(),
                "rows": len(found),
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "provider_version": __version__,
        "run_id": run_id,
        "mailbox": MAILBOX,
        "folder_id": FOLDER,
        "window": {"start": window.start.isoformat(), "end": window.end.isoformat()},
        "extracted_at": (window.end + HOUR).isoformat(),
        "filters": None,
        "settings": {},
        "strays": False,
        "path": (root / TABLES[0] / name).as_uri(),
        "privacy": {"actions": {}, "key_id": None},
        "files": files,
        "messages": len(rows["messages"]),
        "gone": 0,
        "quarantined": 0,
        "readings": {},
        "counted": {
            "start": window.start.isoformat(),
            "end": window.end.isoformat(),
            "messages": len(rows["messages"]),
        },
        "server_count": {"before": len(rows["messages"]), "after": len(rows["messages"])},
        "requests": 3,
        "retries": 0,
        "logins": 0,
        "duplicates_dropped": 0,
        "rows_repaired": 0,
        "attachments": {"copied": len(rows["attachments"])},
        "attachment_bytes": 0,
        "listed_sizes": {},
        "seconds": 0.5,
    }
    text = json.dumps(manifest, indent=2).encode()
    for table in reversed(TABLES):
        (root / table / name / MANIFEST).write_bytes(text)


class Words:
    """Makes up messages, always the same ones."""

    def __init__(self) -> None:
        self._random = random.Random(7)
        letters = self._random.choices(string.ascii_lowercase, k=8 * VOCABULARY)
        self._words = ["".join(letters[place : place + 8]) for place in range(0, len(letters), 8)]

    def message(self, number: int, hour: datetime, minute: int) -> dict[str, list[dict[str, Any]]]:
        """Return a message's rows of each table."""
        text = " ".join(self._random.choices(self._words, k=BODY))
        sender = f"user{self._random.randrange(200)}@example.org"
        recipients = ["ann@example.org", f"user{self._random.randrange(200)}@test.example"]
        message = {
            "message_id": number,
            "subject": text[:40],
            "body": text,
            "from_name": sender.partition("@")[0],
            "from_address": sender,
            "to_addresses": recipients,
            "folder_id": FOLDER,
            "date": hour + timedelta(minutes=minute),
            "was_read": number % 2 == 0,
            "was_sent": False,
            "mime_message_id": f"<{number}@example.org>",
            "thread_id": f"thread-{number // 3}",
            "has_attachments": number % 3 == 0,
            "size": len(text),
            "extracted_at": hour + 2 * HOUR,
        }
        addressed = [
            {
                "message_id": number,
                "kind": "to",
                "position": position,
                "address": address,
                "domain": address.partition("@")[2],
            }
            for position, address in enumerate(recipients)
        ]
        file = {
            "message_id": number,
            "attachment_id": number,
            "file_name": f"file{number}.pdf",
            "size": 10_000,
            "status": "copied",
        }
        return {
            "messages": [message],
            "recipients": addressed,
            "attachments": [file] if number % 3 == 0 else [],
        }


def serve(root: Path) -> None:
    """Serve the tables from memory until the parent closes our standard input."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from moto.s3.models import s3_backends
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = DomainDispatcherApplication(create_backend_app)
    requests = count()

    def counted(environ: dict[str, Any], start_response: Any) -> Any:
        next(requests)
        return application(environ, start_response)

    server = make_server("127.0.0.1", 0, counted, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    urlopen(Request(f"{url}/{BUCKET}", method="PUT")).close()
    [backend] = [found["aws"] for found in s3_backends.values() if BUCKET in found["aws"].buckets]
    for path in root.rglob("*"):
        if path.is_file():
            backend.put_object(BUCKET, f"tables/{path.relative_to(root)}", path.read_bytes())
    print(url, flush=True)
    known = next(requests) + 1
    for _ in sys.stdin:
        now = next(requests)
        print(now - known, flush=True)
        known = now + 1


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
