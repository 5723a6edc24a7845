"""Define the columns of the three tables, as Arrow schemas."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from airflow_provider_r7mail.client.fields import FIELDS, FILE_FIELDS
from airflow_provider_r7mail.exceptions import R7MailConfigError

if TYPE_CHECKING:
    import pyarrow as pa


SCHEMA_VERSION = 2
# The key under which files and snapshots name the run that wrote them.
RUN_ID_KEY = "r7mail.run_id"
TABLES = ("messages", "recipients", "attachments")

# Columns of messages that are not of the mail, but of the run that writes it.
OF_A_RUN = frozenset({"extracted_at", "gone_at"})

# Columns without statistics: their values are long, and nobody filters by their range.
LONG_COLUMNS = frozenset({"body", "html_body", "subject", "extra", "children", "error"})
# Columns with many repeated values, which a dictionary makes smaller.
REPEATING_COLUMNS = frozenset(
    {
        "from_name",
        "from_address",
        "folder_id",
        "owner_id",
        "to_name",
        "kind",
        "domain",
        "address",
        "mime_type",
        "status",
        "extracted_at",
        "gone_at",
        # only in Iceberg tables
        "mailbox",
        "folder",
        "window",
        "run_id",
    }
)


@cache
def schema(table: str) -> pa.Schema:
    """Return the Arrow schema of a table, with the version in its metadata.

    :param table: `messages`, `recipients` or `attachments`
    """
    import pyarrow as pa

    text, number, moment = pa.string(), pa.int64(), pa.timestamp("us", tz="UTC")
    if table == "messages":
        columns = [pa.field("message_id", number, nullable=False)]
        for _, column, kind in FIELDS[1:]:
            if kind == "sender":
                columns += [pa.field("from_name", text), pa.field("from_address", text)]
            else:
                columns.append(pa.field(column, arrow_type(kind)))
        columns += [pa.field("extra", text), pa.field("extracted_at", moment, nullable=False)]
    elif table == "recipients":
        columns = [
            pa.field("message_id", number, nullable=False),
            pa.field("kind", text, nullable=False),
            pa.field("position", pa.int32(), nullable=False),
            pa.field("address", text),
            pa.field("domain", text),
        ]
    else:
        columns = [
            pa.field("message_id", number, nullable=False),
            pa.field("attachment_id", number),
            pa.field("file_id", number),
            pa.field("file_name", text),
            pa.field("size", number),
            pa.field("mime_type", text),
            pa.field("uri", text),
            pa.field("sha256", text),
            pa.field("status", text, nullable=False),
            pa.field("error", text),
            pa.field("listed_size", number),
        ]
    columns.append(pa.field("gone_at", moment))
    return pa.schema(columns, metadata={"r7mail.schema_version": str(SCHEMA_VERSION)})


def fitted(batch: pa.RecordBatch, table: str) -> pa.RecordBatch:
    """Return rows that any version wrote, with the table's columns; those they lack are null.

    :param batch: the rows; of other columns only `date` stays, which Iceberg tables have
    :raises R7MailConfigError: they lack one that can't be null
    """
    import pyarrow as pa

    names, columns = batch.schema.names, list(schema(table))
    if lacking := [c.name for c in columns if not c.nullable and c.name not in names]:
        raise R7MailConfigError(
            f"{table}: an earlier run wrote no {', '.join(lacking)}, so that rows of mail that has "
            'left can\'t be kept. Run the window with on_gone="drop" first.'
        )
    if "date" in names and "date" not in schema(table).names:
        columns.append(schema("messages").field("date"))
    return pa.RecordBatch.from_arrays(
        [
            batch[column.name].cast(column.type)
            if column.name in names
            else pa.nulls(batch.num_rows, column.type)
            for column in columns
        ],
        # As those made of a listing, next to which they are written.
        schema=pa.schema(c.with_nullable(True) for c in columns)
        if table == "messages"
        else pa.schema(columns),
    )


@cache
def arrow_type(kind: str) -> pa.DataType:
    """Return the Arrow type for a kind of field; see `client.fields`."""
    import pyarrow as pa

    return {
        "int": pa.int64(),
        "text": pa.string(),
        "json": pa.string(),
        "bool": pa.bool_(),
        "texts": pa.list_(pa.string()),
        "ints": pa.list_(pa.int64()),
        "date": pa.timestamp("us", tz="UTC"),
        "files": pa.list_(
            pa.struct([(column, arrow_type(kind)) for _, column, kind in FILE_FIELDS])
            if kind == "files"
            else pa.null()
        ),
    }[kind]
