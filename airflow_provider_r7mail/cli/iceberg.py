"""The options that name an Iceberg catalog, for the commands that can use one."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from airflow_provider_r7mail.lake.catalog import IcebergTarget
    from airflow_provider_r7mail.lake.storage import ObjectPath


class TableFormat(StrEnum):
    """What the tables are."""

    PARQUET = "parquet"
    ICEBERG = "iceberg"


Format = Annotated[
    TableFormat,
    typer.Option(
        "--table-format",
        metavar="FORMAT",
        help="parquet: files below the output; or iceberg: tables of a catalog, without --catalog "
        "one in a SQLite file below the output.",
    ),
]
Catalog = Annotated[
    str | None,
    typer.Option(
        help="With Iceberg, the catalog's name in pyiceberg's configuration: the file "
        ".pyiceberg.yaml, or variables such as PYICEBERG_CATALOG__NAME__URI."
    ),
]
Namespace = Annotated[
    str | None, typer.Option(help="With Iceberg, the namespace of the tables: r7mail by default.")
]


def iceberg_target(
    output: ObjectPath, table_format: TableFormat, catalog: str | None, namespace: str | None
) -> IcebergTarget | None:
    """Return the catalog that a command's options name; None for Parquet.

    :raises R7MailConfigError: an option is wrong
    """
    from airflow_provider_r7mail.exceptions import R7MailConfigError  # noqa: PLC0415
    from airflow_provider_r7mail.lake.catalog import (  # noqa: PLC0415
        DEFAULT_NAMESPACE,
        IcebergTarget,
        configured_properties,
    )

    if table_format is TableFormat.PARQUET:
        for option, given in (("--catalog", catalog), ("--namespace", namespace)):
            if given:
                raise R7MailConfigError(f"{option}: only with --table-format iceberg.")
        return None
    properties = {} if catalog is None else configured_properties(catalog)
    target = IcebergTarget(properties, namespace or DEFAULT_NAMESPACE)
    target.check(output)
    return target
