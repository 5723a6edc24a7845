"""Name a window's files and folders."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from airflow_provider_r7mail.lake.storage import ObjectPath

MANIFEST = "_manifest.json"
QUARANTINE = "_quarantine.jsonl"
PART = "part-00000.parquet"
PATH_LEVELS = 3  # mailbox=, folder=, window=
# The folder with the manifests of windows in Iceberg tables, whose rows are elsewhere.
WINDOWS = "windows"


def window_path(root: ObjectPath, mailbox: str, folder: int, window: str) -> Any:
    """Return `{root}/mailbox={login}/folder={id}/window={start}_{end}`."""
    return root / window_name(mailbox, folder, window)


def folder_path(root: ObjectPath, mailbox: str, folder: int) -> Any:
    """Return `{root}/mailbox={login}/folder={id}`."""
    return root / _folder_name(mailbox, folder)


def window_name(mailbox: str, folder: int, window: str) -> str:
    """Return a window's path below a table: `mailbox=.../folder=.../window=...`."""
    return f"{_folder_name(mailbox, folder)}/window={window}"


def _folder_name(mailbox: str, folder: int) -> str:
    return f"mailbox={quote(mailbox, safe='@')}/folder={folder}"
