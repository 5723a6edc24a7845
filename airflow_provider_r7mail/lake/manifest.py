"""Read the manifest of a window that was extracted earlier."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from airflow_provider_r7mail.lake.layout import MANIFEST, REPLACED
from airflow_provider_r7mail.lake.storage import ObjectPath, read


def read_manifest(home: ObjectPath) -> dict[str, Any] | None:
    """Return a window's manifest; None if it is unfinished or not there.

    :param home: the window's folder
    :raises OSError: the storage fails
    """
    return parse_manifest(read(home / MANIFEST))


def stored_privacy(home: ObjectPath) -> Mapping[str, Any] | None:
    """Return the privacy policy that a window's rows were written with; None if unknown.

    It is unknown if a run was killed while it replaced them, unless that run kept rows.
    """
    found = parse_manifest(read(home / MANIFEST)) or parse_manifest(read(home / REPLACED))
    return None if found is None else found.get("privacy") or {"actions": {}, "key_id": None}


def parse_manifest(text: bytes | None) -> dict[str, Any] | None:
    """Return a manifest from its text; None if it isn't one."""
    try:
        found = json.loads(text or b"null")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
