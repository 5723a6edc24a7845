"""The server of a benchmark, in a process of its own: `python server.py OPTIONS_AS_JSON`."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

from airflow_provider_r7mail.emulator import Emulator, Mailbox, Readings

START, END = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 4, 1, tzinfo=UTC)


def main() -> None:
    """Serve until the parent closes our standard input."""
    options = json.loads(sys.argv[1])
    mailbox = Mailbox.synthetic(
        options["count"],
        start=START,
        end=END,
        attachment_every=1 if "attachment_bytes" in options else 0,
        attachment_bytes=options.get("attachment_bytes", 0),
    )
    with Emulator(mailbox, Readings(latency_seconds=options.get("latency", 0.0))) as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
