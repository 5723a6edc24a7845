"""The server of a benchmark, in a process of its own: `python server.py OPTIONS_AS_JSON`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_provider_r7mail.emulator import Emulator, Mailbox, Readings
from airflow_provider_r7mail.emulator.folders import INBOX, Stored
from airflow_provider_r7mail.emulator.synthetic import generate

START = datetime(2025, 1, 1, tzinfo=UTC)
# What one message in a hundred has in place of the manual's field.
ODD = (
    (b'"Children":null', b'"Children":[{"Id":1,"Subject":"Re: \\u0430"}]'),
    (b'"TaskId":null', b'"TaskId":17'),
    (b'"Labels":', b'"Labels":["red"],"Was":'),
    (b'"Size":', b'"Size":"12 KB","SizeInBytes":'),
    (b'"Timestamp":"', b'"Timestamp":"about '),
    (b'"From":', b'"From":"a@b.ru","Sender":'),
    (b'"WasSent":false', b'"WasSent":0'),
    (b'"Body":"', b'"Body":"\\ud83d'),
)


def shaped(text: bytes, number: int, shapes: str) -> bytes:
    r"""A message as another server would write it.

    :param shapes: some of `unknown` (five unknown fields, two in each file), `odd` (one message in
        a hundred) and `escaped` (all but ASCII as \uXXXX)
    """
    if "unknown" in shapes:
        added = (number / 7, number, b"true" if number % 2 else b"false", number, number)
        text = text.replace(
            b'}],"Children"', b',"Hash":"%032x","Inline":false}],"Children"' % number
        )
        text = text[:-1] + (
            b',"SpamScore":%.6f,"Workspace":"ws-%d","Pinned":%b,"Tags":["a",%d],'
            b'"Meta":{"K":%d,"\xd0\x98\xd0\xbc\xd1\x8f":null}}' % added
        )
    if "odd" in shapes and number % 100 == 50:
        text = text.replace(*ODD[number // 100 % len(ODD)], 1)
    if "escaped" in shapes:
        text = text.decode().encode("ascii", "backslashreplace")
    return text


class Shaped(Stored):
    """A message that is written in other shapes."""

    __slots__ = ("_record", "_shapes")

    def __init__(self, record: Stored, shapes: str) -> None:
        super().__init__(record.id, record.folder, record.ticks, record.files)
        self._record = record
        self._shapes = shapes

    def value(self, name: str) -> Any:
        """Return the value of a field."""
        return self._record.value(name)

    def json(self) -> bytes:
        """Return the message as it appears in a response."""
        return shaped(self._record.json(), self.id, self._shapes)


def main() -> None:
    """Serve until the parent closes our standard input."""
    options = json.loads(sys.argv[1])
    mailbox = Mailbox()
    records: Sequence[Stored] = generate(
        mailbox,
        options["count"],
        folder=INBOX,
        start=START,
        end=START + timedelta(days=options.get("days", 90)),
        ties=1,
        read_every=2,
        attachment_every=options.get("attachment_every", 1 if "attachment_bytes" in options else 0),
        attachment_bytes=options.get("attachment_bytes", 0),
        seed=7,
    )
    if options.get("shapes"):
        records = [Shaped(record, options["shapes"]) for record in records]
    mailbox.add_bulk(INBOX, records)
    with Emulator(mailbox, Readings(latency_seconds=options.get("latency", 0.0))) as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
