"""What a task reads and writes: its OpenLineage datasets, and the extra of its asset events.

`assets` decides what folders are called. OpenLineage is imported only when its provider asks for
datasets, so it need not be installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_provider_r7mail.assets import openlineage_dataset
from airflow_provider_r7mail.lake.job import ExtractJob
from airflow_provider_r7mail.lake.layout import MANIFEST, window_path
from airflow_provider_r7mail.lake.schema import schema
from airflow_provider_r7mail.lake.storage import ObjectPath, url_of

if TYPE_CHECKING:
    import pyarrow as pa
    from airflow.providers.common.compat.openlineage.facet import (
        DatasetFacet,
        InputDataset,
        OutputDataset,
    )
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.facet_v2 import OutputDatasetFacet

    from airflow_provider_r7mail.compat import Context


def storage_uri(path: ObjectPath) -> str:
    """Return a path as an asset URI: the same URL, quoted where a URI needs it."""
    return _quoted(url_of(path))


def _quoted(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{quote(rest, safe='/:@=+,;!$&()*~')}"


@dataclass(slots=True)
class Output:
    """A place that is written to: a table, or the root of the attachments.

    :param path: its path without mailbox, folder and window, so the same for every run; None for a
        table of an Iceberg catalog
    :param columns: the table's columns
    :param rows: how many rows were written; here and below, None if unknown
    :param size: how many bytes
    :param files: how many files
    :param location: where the Iceberg catalog stores the table
    """

    path: ObjectPath | None
    columns: pa.Schema | None = None
    rows: int | None = None
    size: int | None = None
    files: int | None = None
    location: str | None = None

    @property
    def url(self) -> str | None:
        """Its URL; None if unknown."""
        if self.path is not None:
            return url_of(self.path)
        if self.location is not None and "://" not in self.location:
            return f"file://{self.location}"
        return self.location

    def openlineage(self, url: str) -> OutputDataset:
        """Return the dataset, named by OpenLineage's conventions for files and object stores."""
        from airflow.providers.common.compat.openlineage.facet import (  # noqa: PLC0415
            OutputDataset,
            OutputStatisticsOutputDatasetFacet,
            SchemaDatasetFacet,
            SchemaDatasetFacetFields,
        )

        namespace, name = _dataset_name(url)
        facets: dict[str, DatasetFacet] = {"dataSource": _data_source(namespace)}
        if self.columns is not None:
            facets["schema"] = SchemaDatasetFacet(
                fields=[
                    SchemaDatasetFacetFields(name=column.name, type=str(column.type))
                    for column in self.columns
                ]
            )
        numbers: dict[str, OutputDatasetFacet] = {}
        if self.files is not None:
            numbers["outputStatistics"] = OutputStatisticsOutputDatasetFacet(
                rowCount=self.rows, size=self.size, fileCount=self.files
            )
        return OutputDataset(namespace=namespace, name=name, facets=facets, outputFacets=numbers)


@dataclass(slots=True)
class Copy:
    """What a task copies: known before it starts, with its numbers once it has finished.

    :param source: the asset URI of the mail folder
    :param tables: the tables, by name
    :param attachments: the root of the attachments; None if they are not copied
    """

    source: str
    tables: Mapping[str, Output] = field(default_factory=dict)
    attachments: Output | None = None

    @property
    def outputs(self) -> list[tuple[str, Output]]:
        """All places that are written to and whose URL is known, with the URL."""
        places = [*self.tables.values(), *([self.attachments] if self.attachments else [])]
        return [(url, place) for place in places if (url := place.url) is not None]

    def openlineage(self) -> OperatorLineage[Any, Any]:
        """Return the datasets, for an operator's `get_openlineage_facets_on_complete`."""
        from airflow.providers.openlineage.extractors import OperatorLineage  # noqa: PLC0415

        return OperatorLineage(
            inputs=[_folder_input(self.source)],
            outputs=[output.openlineage(url) for url, output in self.outputs],
        )

    def tell_outlets(
        self, outlets: Iterable[Any], context: Context, extra: Mapping[str, Any]
    ) -> None:
        """Add an extra to the asset events of a task.

        :param outlets: the task's outlets. The event of an asset gets the extra; an alias gets an
            event for the asset of each output; other outlets are ignored
        :param context: the context of the running task
        :param extra: numbers, ids and paths. No mail, since everyone can read it, and nothing
            nested, which aliases in Airflow 2 can't hold
        """
        from airflow_provider_r7mail.compat import Asset, AssetAlias  # noqa: PLC0415

        for outlet in outlets:
            if isinstance(outlet, Asset):
                context["outlet_events"][outlet].extra.update(extra)
            elif isinstance(outlet, AssetAlias):
                for url, _ in self.outputs:
                    asset = Asset(uri=_quoted(url))
                    context["outlet_events"][outlet].add(asset, extra=dict(extra))


def extract_copy(job: ExtractJob, source: str) -> Copy:
    """Return what an extract copies.

    :param source: the asset URI of the mail folder
    """
    import pyarrow as pa

    tables = {}
    for name in job.tables:
        columns = schema(name)
        if name == "messages" and job.columns is not None:
            columns = pa.schema([columns.field(column) for column in job.columns])
        tables[name] = Output(job.output / name if job.iceberg is None else None, columns)
    attachments = Output(job.attachments) if job.attachments is not None else None
    return Copy(source, tables, attachments)


def count_extract(copy: Copy, manifest: Mapping[str, Any]) -> None:
    """Fill in the numbers of an extract from its manifest."""
    for table in _written(manifest):
        output = copy.tables[table["table"]]
        output.rows, output.size = table["rows"], table["bytes"]
        output.files = table.get("files", 1)
        output.location = table.get("location")
    if copy.attachments is not None:
        copy.attachments.files = manifest["attachments"].get("downloaded", 0)
        copy.attachments.size = manifest["attachment_bytes"]


def extract_extra(job: ExtractJob, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the extra of an extract's asset events: folder, window, rows, manifest URL."""
    window = job.criteria.window.label()
    home = window_path(job.notes, manifest["mailbox"], job.folder, window)
    return {
        "folder_id": job.folder,
        "window_start": manifest["window"]["start"],
        "window_end": manifest["window"]["end"],
        **{f"{table['table']}_rows": table["rows"] for table in _written(manifest)},
        "manifest": url_of(home / MANIFEST),
    }


def _written(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the manifest's entry for each table: its file, or the Iceberg table."""
    written: list[Mapping[str, Any]] = manifest.get("files") or manifest["tables"]
    return written


def files_read(urls: Iterable[str]) -> OperatorLineage[Any, Any]:
    """Return the files that a task reads, for an operator's `get_openlineage_facets_on_complete`.

    :param urls: their URLs, without Airflow connections
    """
    from airflow.providers.openlineage.extractors import OperatorLineage  # noqa: PLC0415

    return OperatorLineage(inputs=[_input(*_dataset_name(url)) for url in urls])


def _dataset_name(url: str) -> tuple[str, str]:
    """Return namespace and name by OpenLineage's conventions for files and object stores."""
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        return scheme, rest
    bucket, _, name = rest.partition("/")
    return f"{scheme}://{bucket}", name or "/"


def _folder_input(uri: str) -> InputDataset:
    named = openlineage_dataset(uri)
    return _input(named.namespace, named.name)


def _input(namespace: str, name: str) -> InputDataset:
    from airflow.providers.common.compat.openlineage.facet import InputDataset  # noqa: PLC0415

    return InputDataset(
        namespace=namespace, name=name, facets={"dataSource": _data_source(namespace)}
    )


def _data_source(namespace: str) -> Any:
    from openlineage.client.facet_v2 import datasource_dataset  # noqa: PLC0415

    return datasource_dataset.DatasourceDatasetFacet(name=namespace, uri=namespace)
