"""The mail server in a process of its own: `python mail.py OPTIONS_AS_JSON`."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path

from airflow_provider_r7mail.emulator import Emulator, Mailbox, Readings
from airflow_provider_r7mail.emulator.folders import INBOX, SENT
from airflow_provider_r7mail.emulator.synthetic import generate


def main() -> None:
    """Serve until the parent closes our standard input.

    Prints two lines: the server's URL, and the connection that leads to it. Writes what is in the
    mailbox to the file `ids`: folder, id and number of attachments of each message.
    """
    options = json.loads(sys.argv[1])
    mailbox = Mailbox()
    for folder, share in ((INBOX, 4), (SENT, 1)):
        made = generate(
            mailbox,
            options["messages"] * share // 5,
            folder=folder,
            start=datetime.fromisoformat(options["start"]),
            end=datetime.fromisoformat(options["end"]),
            ties=1,
            read_every=2,
            attachment_every=10,
            attachment_bytes=1000,
            seed=folder,
        )
        mailbox.add_bulk(folder, made)
    with Path(options["ids"]).open("w", encoding="utf-8") as file:
        file.write("folder,id,files\n")
        for folder in (INBOX, SENT):
            records = mailbox.contents(folder).records
            file.writelines(f"{folder},{item.id},{len(item.files)}\n" for item in records)
    with Emulator(mailbox, Readings(latency_seconds=options["latency"])) as server:
        print(server.url)
        print(server.connection(), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
