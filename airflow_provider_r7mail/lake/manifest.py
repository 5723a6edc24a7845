"""Read the manifest of a window that was extracted earlier."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from airflow_provider_r7mail.lake.layout import MANIFEST, REPLACED
from airflow_provider_r7mail.lake.schema import TABLES
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
    """Return a manifest from its text; None if it isn't one: somebody may have changed it."""
    try:
        found = json.loads(text or b"null")
    except (ValueError, RecursionError):
        return None
    return found if is_manifest(found) else None


def is_manifest(found: Any) -> bool:
    """Return whether a value has what a manifest has, as far as something here depends on it.

    Manifests of schema version 1 lack what came later.
    """
    match found:
        case {
            "run_id": str(),
            "window": {"start": str(), "end": str()},
            "folder_id": int(),
            "extracted_at": str(moment),
            "schema_version": int(),
            "messages": int(),
            "quarantined": int(),
            "privacy": None | {"actions": dict(), "key_id": None | str()},
        }:
            tables = found.get("files") or found.get("tables")
            return (
                _is_moment(moment)
                and isinstance(tables, list)
                and bool(tables)
                and all(map(_is_table, tables))
                and len({table["table"] for table in tables}) == len(tables)
                and all(
                    is_right(found[name])
                    for name, is_right in LATER.items()
                    if found.get(name) is not None
                )
            )
    return False


def _is_moment(text: object) -> bool:
    try:
        return datetime.fromisoformat(str(text)).tzinfo is not None
    except ValueError:
        return False


def _is_table(item: object) -> bool:
    match item:
        case {"table": str(table), "rows": int(), "bytes": int(), "sha256": str()}:
            return table in TABLES
        case {"table": str(table), "rows": int(), "identifier": str()}:
            return table in TABLES
    return False


def _is_number(item: object) -> bool:
    return isinstance(item, int)


def _is_count(item: object) -> bool:
    match item:
        case {"start": None | str() as start, "end": None | str() as end, "messages": messages}:
            bounds = all(bound is None or _is_moment(bound) for bound in (start, end))
            return bounds and isinstance(messages, int | None)
    return False


def _has_settings(item: object) -> bool:
    return isinstance(item, dict) and isinstance(item.get("columns"), list | None)


def _is_made_of(item: object) -> bool:
    return isinstance(item, list) and all(
        isinstance(part, dict) and isinstance(part.get("run_id"), str) for part in item
    )


LATER: dict[str, Callable[[object], bool]] = {
    "gone": _is_number,
    "counted": _is_count,
    "settings": _has_settings,
    "made_of": _is_made_of,
}
"""What manifests may have besides, and what that must be."""
