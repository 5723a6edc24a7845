"""Operators that keep tables in order: one audits them, one compacts them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.client.dates import parse_moment
from airflow_provider_r7mail.compat import AirflowFailException
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.failures import fail_at_once
from airflow_provider_r7mail.hooks import R7MailHook
from airflow_provider_r7mail.lake.audit import AuditJob, Report, audit
from airflow_provider_r7mail.lake.catalog import IcebergTarget
from airflow_provider_r7mail.lake.compaction import compact_folders, compact_job
from airflow_provider_r7mail.lake.inventory import find_folders
from airflow_provider_r7mail.lake.ledger import find_mailbox
from airflow_provider_r7mail.lake.neighbours import Into
from airflow_provider_r7mail.lake.repair import repair
from airflow_provider_r7mail.lake.storage import ObjectPath, url_of
from airflow_provider_r7mail.lake.upkeep import keep_up, make_upkeep
from airflow_provider_r7mail.lakes import TableOperator

if TYPE_CHECKING:
    from airflow_provider_r7mail.client.session import AsyncClient
    from airflow_provider_r7mail.compat import Context


class R7MailAuditOperator(TableOperator):
    """Compare a folder's Parquet or Iceberg tables with the server, and repair what differs.

    Counts messages by span, and halves a span where the numbers differ; a mailbox in order takes a
    few requests. Never changes anything on the server. Returns the report: what differs, with
    numbers, dates and paths, but no mail. The report is in XCom even if the task fails because of
    it. Each finding is also a warning in the log.

    :param folder: the folder's id, or its name in the connection's `folders` (templated)
    :param output_path: the `output_path` of the extracts (templated)
    :param start: where to begin: a datetime or ISO 8601 text; None for the earliest mail
        (templated)
    :param end: where to end, likewise (templated)
    :param repair: extract again what differs, with the settings that the manifests name, and mail
        outside of the windows into windows of its own
    :param deep: compare ids instead of counts, and the files' checksums, or all rows of Iceberg
        tables: reads all mail and all files
    :param fail_on_difference: fail if anything differs; with `repair`, if anything still differs
        afterwards
    :param table_format: `iceberg` to look into the tables of an Iceberg catalog, and to repair
        them. With `parquet`, windows in Iceberg tables are compared by their manifests
    :param catalog_conn_id: for Iceberg, the connection of the catalog, as for the extracts
        (templated)
    :param catalog_properties: for Iceberg, pyiceberg properties of the catalog (templated)
    :param namespace: for Iceberg, the namespace of the tables (templated)
    :param storage_conn_id: the connection of the object storage (templated)
    :param r7mail_conn_id: the Airflow connection (templated)
    :raises AirflowFailException: something differs and `fail_on_difference` is set; a parameter is
        wrong, or the login was refused
    :raises R7MailRequestError: the server failed or could not be reached
    """

    template_fields: Sequence[str] = (
        "folder",
        "output_path",
        "start",
        "end",
        "catalog_conn_id",
        "catalog_properties",
        "namespace",
        "storage_conn_id",
        "r7mail_conn_id",
    )
    ui_color = "#eee6f8"

    def __init__(
        self,
        *,
        folder: int | str,
        output_path: str,
        start: datetime | str | None = None,
        end: datetime | str | None = None,
        repair: bool = False,
        deep: bool = False,
        fail_on_difference: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.folder = folder
        self.output_path = output_path
        self.start = start
        self.end = end
        self.repair = repair
        self.deep = deep
        self.fail_on_difference = fail_on_difference

    @fail_at_once()
    def execute(self, context: Context) -> dict[str, Any]:
        """Audit, and repair if asked to."""
        hook = R7MailHook(self.r7mail_conn_id)
        output, secret = self._root("output_path"), hook.settings.privacy_secret
        folder = hook.resolve_folder(self.folder)
        iceberg = self._iceberg()
        if iceberg is not None:
            iceberg.check(output)
        job = AuditJob(
            folder=folder,
            output=output,
            mailbox=find_mailbox(output, folder, hook.settings.client.login, secret),
            start=parse_moment(self.start, "start"),
            end=parse_moment(self.end, "end"),
            deep=self.deep,
            secret=secret,
            open_path=lambda url: self._path(url, "attachments_path"),
            iceberg=iceberg,
        )

        async def work(client: AsyncClient) -> Report:
            report = await audit(client, job)
            return await repair(client, job, report) if self.repair else report

        report = self._run(hook, work)
        for finding in report.findings:
            self.log.warning("%s", finding)
        for note in report.notes:
            self.log.info("%s", note)
        found = report.record()
        if self.fail_on_difference and not report.in_order:
            if "ti" in context:
                context["ti"].xcom_push(key="return_value", value=found)
            count = sum(not finding.repaired for finding in report.findings)
            raise AirflowFailException(
                f"Folder {folder}: the tables differ from the mailbox (findings: {count}). The log "
                "and the report in XCom say where."
            )
        return found


class R7MailCompactOperator(TableOperator):
    """Make one window of the many windows of a past month, so that readers open fewer files.

    Works on the tables alone, without a request to the mail server. Nothing else changes: runs of a
    window within a compacted one, audits and rechecks go on as before. Windows that are unfinished
    or damaged, overlap others, or were written with other settings than their neighbours are left
    alone; each is a warning in the log. If the task is killed, the next one goes on.

    Returns `{"windows", "into", "folders": [{"mailbox", "folder_id", "made", "left", "removed"}]}`:
    how many windows became how many, and for each folder what was made of which windows, and which
    were left alone and why; for Iceberg `{"tables": [...]}`, what was done to each. No mail.

    :param output_path: the `output_path` of the extracts (templated)
    :param folder: with Parquet, the folder's id, or its name in the connection's `folders`; None
        for all folders of all mailboxes below `output_path` (templated)
    :param older_than_days: only windows that ended at least this many days ago
    :param into: `month` or `day`: what to make one window of, in UTC (templated)
    :param table_format: `iceberg` to keep the tables of an Iceberg catalog quick: for days that are
        old enough, merge small files of one day; merge manifests, expire snapshots, remove orphans
    :param catalog_conn_id: for Iceberg, the connection of the catalog, as for the extracts
        (templated)
    :param catalog_properties: for Iceberg, pyiceberg properties of the catalog (templated)
    :param namespace: for Iceberg, the namespace of the tables (templated)
    :param keep_snapshots_days: for Iceberg, how long to keep snapshots; None keeps all
    :param orphans_after_days: for Iceberg, how old a file must be that no snapshot needs to be
        removed: longer than any run takes. None removes none
    :param storage_conn_id: the connection of the object storage (templated)
    :param r7mail_conn_id: the Airflow connection whose `folders` has the folder's name (templated)
    :raises AirflowFailException: a parameter is wrong
    """

    template_fields: Sequence[str] = (
        "output_path",
        "folder",
        "into",
        "catalog_conn_id",
        "catalog_properties",
        "namespace",
        "storage_conn_id",
        "r7mail_conn_id",
    )
    ui_color = "#eee6f8"

    def __init__(
        self,
        *,
        output_path: str,
        folder: int | str | None = None,
        older_than_days: float = 35,
        into: Into = "month",
        keep_snapshots_days: float | None = 7,
        orphans_after_days: float | None = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.output_path = output_path
        self.folder = folder
        self.older_than_days = older_than_days
        self.into = into
        self.keep_snapshots_days = keep_snapshots_days
        self.orphans_after_days = orphans_after_days

    @fail_at_once()
    def execute(self, context: Context) -> dict[str, Any]:
        """Compact the folder, or all folders."""
        output = self._root("output_path")
        iceberg = self._iceberg()
        if iceberg is not None:
            return self._keep_up(output, iceberg)
        folder = None
        if self.folder is not None:
            folder = R7MailHook(self.r7mail_conn_id).resolve_folder(self.folder)
        job = compact_job(output, self.older_than_days, self.into, datetime.now(UTC))
        outcomes = []
        for outcome in compact_folders(job, find_folders(output, folder)):
            for made in outcome.made:
                self.log.info(
                    "Folder %s: made window %s (messages: %s, windows replaced: %s).",
                    outcome.folder,
                    made.window,
                    made.messages,
                    made.windows,
                )
            for left in outcome.left:
                self.log.warning(
                    "Folder %s: left window %s: %s.", outcome.folder, left.window, left.reason
                )
            outcomes.append(outcome)
        if not outcomes:
            self.log.warning("There are no tables below %s yet: check output_path.", url_of(output))
        return {
            "windows": sum(made.windows for outcome in outcomes for made in outcome.made),
            "into": sum(len(outcome.made) for outcome in outcomes),
            "folders": [outcome.record() for outcome in outcomes],
        }

    def _keep_up(self, output: ObjectPath, iceberg: IcebergTarget) -> dict[str, Any]:
        if self.folder is not None:
            raise R7MailConfigError(
                "folder: Iceberg tables have the rows of all folders in one file: leave it out."
            )
        iceberg.check(output)
        upkeep = make_upkeep(
            self.older_than_days, self.keep_snapshots_days, self.orphans_after_days
        )
        tables = [table.record() for table in keep_up(iceberg, output, upkeep)]
        for table in tables:
            self.log.info("%s", table)
        return {"tables": tables}
