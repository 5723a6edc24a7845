"""Read the Iceberg tables of a catalog with DuckDB."""

# ruff: noqa: TID253 - not a DAG file

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

# [START open]
from pyiceberg.catalog import Catalog, load_catalog
from sqlalchemy import URL


def open_catalog(output_path: str) -> Catalog:
    """Open the catalog that is created by default."""
    uri = URL.create("sqlite", database=f"{output_path}/catalog.db")
    return load_catalog(
        "default",
        type="sql",
        uri=uri.render_as_string(),
        warehouse=f"{output_path}/warehouse",
    )
    # [END open]


# [START read]
def mail_by_domain(catalog: Catalog, since: datetime) -> list[tuple[Any, ...]]:
    """Count messages by day and recipient's domain; only the requested days are read."""
    days = f"date >= '{since.isoformat()}'"
    messages = catalog.load_table("r7mail.messages").scan(
        days, selected_fields=("run_id", "message_id", "date")
    )
    recipients = catalog.load_table("r7mail.recipients").scan(
        days, selected_fields=("run_id", "message_id", "domain")
    )
    database = messages.to_duckdb("messages")
    recipients.to_duckdb("recipients", database)
    return database.sql("""
        select cast(date at time zone 'UTC' as date) as day, domain,
               count(distinct message_id) as messages
        from messages join recipients using (run_id, message_id)
        group by all order by all
    """).fetchall()
    # [END read]


# [START check]
def is_published(catalog: Catalog, manifest: Path) -> bool:
    """Check that all three tables have the rows listed in a window's manifest."""
    listed = json.loads(manifest.read_text())
    counted = {
        table["identifier"]: catalog.load_table(table["identifier"])
        .scan(f"run_id == '{listed['run_id']}'", selected_fields=("run_id",))
        .count()
        for table in listed["tables"]
    }
    return counted == {table["identifier"]: table["rows"] for table in listed["tables"]}
    # [END check]
