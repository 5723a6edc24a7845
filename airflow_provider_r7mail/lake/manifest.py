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
    return _parse(read(home / MANIFEST))


def stored_privacy(home: ObjectPath) -> Mapping[str, Any] | None:
    """Return the privacy policy that a window's rows were written with; None if unknown.

    It is unknown if a run was killed while it replaced them, unless that run kept rows.
    """
    found = _parse(read(home / MANIFEST)) or _parse(read(home / REPLACED))
    return None if found is None else found.get("privacy") or {"actions": {}, "key_id": None}


def _parse(text: bytes | None) -> dict[str, Any] | None:
    try:
        found = json.loads(text or b"null")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
