"""Where a window's files are, and what they are called."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from airflow_provider_r7mail.lake.storage import ObjectPath

MANIFEST = "_manifest.json"
QUARANTINE = "_quarantine.jsonl"
PART = "part-00000.parquet"
PATH_LEVELS = 3  # mailbox=, folder=, window=
# Where the manifests of Iceberg's windows are, whose rows are elsewhere.
WINDOWS = "windows"


def window_path(root: ObjectPath, mailbox: str, folder: int, window: str) -> Any:
    """`{root}/mailbox={login}/folder={id}/window={start}_{end}`."""
    return folder_path(root, mailbox, folder) / f"window={window}"


def folder_path(root: ObjectPath, mailbox: str, folder: int) -> Any:
    """`{root}/mailbox={login}/folder={id}`."""
    return root / f"mailbox={quote(mailbox, safe='@')}" / f"folder={folder}"
