"""Name a window's files and folders."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from airflow_provider_r7mail.client.dates import MICROSECOND, Window, parse_moment
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.lake.storage import ObjectPath, is_local

MANIFEST = "_manifest.json"
# What the manifest was, while a run that keeps rows of the earlier result replaces it.
REPLACED = "_replaced.json"
QUARANTINE = "_quarantine.jsonl"
# The manifests of the windows that a compacted window was made of, one a line, in order of time.
WINDOWS_FILE = "_windows.jsonl"
PART = "part-00000.parquet"
MAX_PART_BYTES = 255  # of one name on the usual file systems
PATH_LEVELS = 3  # mailbox=, folder=, window=
# The folder with the manifests of windows in Iceberg tables, whose rows are elsewhere.
WINDOWS = "windows"


def window_path(root: ObjectPath, mailbox: str, folder: int, window: str) -> Any:
    """Return `{root}/mailbox={login}/folder={id}/window={start}_{end}`."""
    return root / window_name(mailbox, folder, window)


def folder_path(root: ObjectPath, mailbox: str, folder: int) -> Any:
    """Return `{root}/mailbox={login}/folder={id}`.

    :raises R7MailConfigError: the login is too long for a folder's name
    """
    name = folder_name(mailbox, folder)
    size = len(name.partition("/")[0])
    if is_local(root) and size > MAX_PART_BYTES:
        raise R7MailConfigError(
            f"The login makes a folder name of {size} bytes, mailbox=..., and a disk takes "
            f"{MAX_PART_BYTES} at most (a Cyrillic letter is 6). Log in with a shorter login of "
            'the account, write to object storage, or extract with privacy={"mailbox": "hash"}.'
        )
    return root / name


def window_name(mailbox: str, folder: int, window: str) -> str:
    """Return a window's path below a table: `mailbox=.../folder=.../window=...`."""
    return f"{folder_name(mailbox, folder)}/window={window}"


def parse_window(name: str) -> Window | None:
    """Return the window that a folder is named after; None if it isn't one of ours."""
    start, _, end = name.removeprefix("window=").partition("_")
    try:
        window = Window(parse_moment(start, name), parse_moment(end, name))
    except R7MailConfigError:
        return None
    return window if f"window={window.label()}" == name else None


def prefixes_around(window: Window) -> list[str]:
    """Return what the names of windows begin with that may hold a window, or overlap it.

    These are the months from the one before to the window's last one: no compacted window reaches
    beyond the month after the one that it begins in.

    :param window: a window with both bounds
    """
    first, last = window.start, window.end - MICROSECOND  # type: ignore[operator]
    months = range(first.year * 12 + first.month - 2, last.year * 12 + last.month)  # type: ignore[union-attr]
    return [f"window={month // 12:04}{month % 12 + 1:02}" for month in months]


def folder_name(mailbox: str, folder: int) -> str:
    """Return a folder's path below a table: `mailbox=.../folder=...`."""
    return f"mailbox={quote(mailbox, safe='@')}/folder={folder}"
