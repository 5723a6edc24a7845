"""Delete the mail that one person sent or received, with its attachments, from the tables.

Delete it on the mail server first: mail that is still there comes back with the next run of its
window.

    python forget_person.py /data/mail ann@example.org [r7mail_conn_id]

The connection is needed if addresses are hashed. Don't run extracts at the same time.
"""

# ruff: noqa: TID253, T201 - not a DAG file, and run by hand

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from airflow_provider_r7mail.compat import ObjectStoragePath
from airflow_provider_r7mail.hooks import R7MailHook
from airflow_provider_r7mail.lake.compacted import parse_sources, window_of
from airflow_provider_r7mail.lake.layout import PART, WINDOWS_FILE
from airflow_provider_r7mail.lake.privacy import Privacy, normal_address
from airflow_provider_r7mail.lake.splitting import make_room
from airflow_provider_r7mail.lake.staging import staged
from airflow_provider_r7mail.lake.storage import remove

TABLES = ("messages", "recipients", "attachments")
COLUMNS = ("from_address", "to_addresses", "cc_addresses", "bcc_addresses")


def person(address: str, secret: str | None = None) -> Callable[[dict[str, Any]], bool]:
    """Return a function that checks whether a message was sent by or to a person.

    :param address: the person's address
    :param secret: the connection's `privacy_secret`, to find the address if it is hashed
    """
    wanted = {normal_address(address)}
    if secret:
        wanted.add(Privacy.build({"addresses": "hash"}, secret).address(address))

    def is_theirs(message: dict[str, Any]) -> bool:
        for name in COLUMNS:
            value = message[name]
            texts = value if isinstance(value, list) else [value]
            if any(text and normal_address(text) in wanted for text in texts):
                return True
        return False

    return is_theirs


def forget(tables: str, is_theirs: Callable[[dict[str, Any]], bool]) -> dict[str, list[int]]:
    """Delete the rows and files of messages; all three tables must exist.

    :param tables: the root of the tables
    :param is_theirs: whether to delete a row of `messages`
    :return: the deleted ids by window
    """
    root = ObjectStoragePath(tables if "://" in tables else f"file://{tables}")
    found: dict[str, list[int]] = {}
    for part in sorted((root / "messages").glob("mailbox=*/folder=*/window=*/*.parquet"), key=str):
        window = part.parent.path.removeprefix((root / "messages").path).strip("/")
        with part.open("rb") as file:
            rows = pq.read_table(file, columns=["message_id", "date", *COLUMNS]).to_pylist()
        theirs = [row for row in rows if is_theirs(row)]
        compacted = part.parent / WINDOWS_FILE
        if theirs and compacted.exists():  # take it apart where their mail is
            home = window.rpartition("/")[0]
            for own in map(window_of, parse_sources(compacted.read_bytes())):
                if any(own.holds(row["date"]) for row in theirs):
                    make_room(root, TABLES, f"{home}/window={own.label()}", replace=False)
            return found | forget(tables, is_theirs)
        if theirs:
            found[window] = [row["message_id"] for row in theirs]
            _rewrite(root, window, found[window])
    return found


def _rewrite(root: ObjectStoragePath, window: str, ids: list[int]) -> None:
    homes = {table: root / table / window for table in TABLES}
    manifest = json.loads((homes["messages"] / "_manifest.json").read_text())
    manifest["messages"] -= len(ids)
    files = {file["table"]: file for file in manifest["files"]}
    with ExitStack() as stack:
        # `messages` is replaced last: if this is interrupted, the next try finds the same ids.
        for table, home in homes.items():
            with (home / PART).open("rb") as file:
                rows = pq.read_table(file)
            gone = pc.is_in(rows["message_id"], pc.cast(ids, rows["message_id"].type))
            if table == "attachments":
                for uri in rows.filter(gone)["uri"].drop_null().to_pylist():
                    remove(ObjectStoragePath(uri, conn_id=root.conn_id))
            kept = rows.filter(pc.invert(gone))
            target = stack.enter_context(staged(home / PART))
            pq.write_table(kept, target, compression="zstd")
            files[table] |= {
                "rows": kept.num_rows,
                "bytes": target.bytes,
                "sha256": target.sha256,
            }
        for home in homes.values():
            with staged(home / "_manifest.json") as note:
                note.write(json.dumps(manifest, indent=2, ensure_ascii=False).encode())


if __name__ == "__main__":
    where, address, *conn_id = sys.argv[1:]
    secret = R7MailHook(*conn_id).settings.privacy_secret if conn_id else None
    for window, ids in forget(where, person(address, secret)).items():
        print(f"{window}: {ids}")
