"""The options that name places for tables and files: a path from here, or a URL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_r7mail.lake.storage import ObjectPath


def object_path(value: str, option: str) -> ObjectPath:
    """Return the path that an option holds; relative ones are taken from here."""
    from upath import UPath  # noqa: PLC0415

    from airflow_provider_r7mail.lake.location import no_store, parse_location  # noqa: PLC0415

    url = parse_location(value, option, Path.cwd())
    try:
        path = UPath(url)
        _ = path.fs
    except (ImportError, ValueError) as error:
        raise no_store(option, url, error) from error
    return path
