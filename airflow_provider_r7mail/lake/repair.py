"""Repair what an audit found: extract windows again as the tables were made, and look again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from airflow_provider_r7mail.client.dates import Window
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.reader import aiter_messages
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.exceptions import R7MailConfigError
from airflow_provider_r7mail.lake.audit import LATEST, AuditJob, Finding, Report, audit
from airflow_provider_r7mail.lake.job import ExtractJob
from airflow_provider_r7mail.lake.ledger import Entry
from airflow_provider_r7mail.lake.privacy import Privacy
from airflow_provider_r7mail.lake.threads import run_to_end
from airflow_provider_r7mail.lake.window import extract_window


async def repair(
    client: AsyncClient,
    job: AuditJob,
    report: Report,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Extract what differs, as the tables were made, and look again.

    Mail outside of the regular windows gets windows of its own, as long as the nearest one, so that
    a regular run of the same time replaces them. Where a regular window has come to overlap such a
    window otherwise, that one is removed. What else overlaps, and foreign files, are left to a
    person. Nothing is changed on the server.

    :param report: what an audit found
    :return: the report of what was found, with what was repaired and what still differs
    :raises R7MailError: a window could not be extracted; those before it were
    """
    removed = [entry for finding in report.findings for entry in _superfluous(finding, report)]
    for entry in removed:
        await run_to_end(job.remove, entry.window)
    findings = report.findings
    if removed:
        findings = (await audit(client, job, on_progress)).findings
    for finding in findings:
        for window, strays in await _windows_to_repair(client, job, report, finding):
            like = _model(report, window, finding.kind)
            if like is None:
                raise R7MailConfigError(
                    "There is no finished window to take the settings from. Extract one first."
                )
            on_progress(f"extracting {window.label()}")
            await extract_window(client, replace(_job_for(job, window, like), strays=strays))
    after = await audit(client, job, on_progress)
    still = {(finding.kind, finding.start, finding.end) for finding in after.findings}
    for finding in report.findings:
        finding.repaired = (finding.kind, finding.start, finding.end) not in still
    known = {(finding.kind, finding.start, finding.end) for finding in report.findings}
    new = [f for f in after.findings if (f.kind, f.start, f.end) not in known]
    after.findings = sorted([*report.findings, *new], key=lambda f: f.start or LATEST)
    return after


def _superfluous(finding: Finding, report: Report) -> list[Entry]:
    """Return the windows of stray mail, or moved here, that overlap a regular one.

    Not those that keep what it lacks.
    """
    if finding.kind != "overlapping":
        return []
    first, _, second = finding.detail.partition(" and ")
    both = [entry for entry in report.windows if entry.window.label() in {first, second}]
    spare = [entry for entry in both if (entry.strays or entry.moved) and not entry.keeps]
    return spare if len(spare) < len(both) else spare[1:]


async def _windows_to_repair(
    client: AsyncClient, job: AuditJob, report: Report, finding: Finding
) -> list[tuple[Window, bool]]:
    """Return the windows to extract for a finding, and whether they are of stray mail."""
    start, end = finding.start, finding.end
    if start is None or end is None or finding.kind in {"overlapping", "foreign"}:
        return []
    regular = [entry for entry in report.windows if not entry.strays]
    if not finding.kind.startswith("strays") or not regular:
        of = next((entry for entry in report.windows if entry.bounds == (start, end)), None)
        if of is not None:
            return [(of.window, of.strays and finding.kind != "missing")]
        before = [entry for entry in regular if entry.bounds[1] <= start]
        length = before[-1].bounds[1] - before[-1].bounds[0] if before else end - start
        if (end - start) % length:
            length = end - start
        count = (end - start) // length
        return [(Window(start + length * n, start + length * (n + 1)), False) for n in range(count)]
    near = regular[0] if finding.kind == "strays before" else regular[-1]
    origin, length = near.bounds[0], near.bounds[1] - near.bounds[0]
    found = set()
    criteria = MessageFilter(window=Window(start, end))
    async for message in aiter_messages(client, job.folder, criteria):
        if message.date is not None:
            begin = origin + (message.date - origin) // length * length
            found.add(Window(begin, begin + length))
    return [(window, True) for window in sorted(found, key=lambda w: w.label())]


def _model(report: Report, window: Window, kind: str) -> dict[str, Any] | None:
    """Return the manifest of the window to take the settings from: its own, or the nearest."""
    known = [entry for entry in report.windows if entry.manifest is not None]
    if kind == "privacy":
        known.sort(key=lambda entry: str((entry.manifest or {})["extracted_at"]))
        return known[-1].manifest
    own = next((entry for entry in known if entry.window == window), None)
    if own is not None:
        return own.manifest
    if not known:
        return None
    assert window.start is not None  # noqa: S101 - those to repair have both bounds
    start = window.start
    return min(known, key=lambda entry: abs(entry.bounds[0] - start)).manifest


def _job_for(job: AuditJob, window: Window, like: dict[str, Any]) -> ExtractJob:
    """Return a job that extracts a window as another one was, without filters.

    :param like: that one's manifest
    :raises R7MailConfigError: its privacy policy can't be repeated
    """
    if "files" not in like and job.iceberg is None:
        raise R7MailConfigError(
            "The tables are Iceberg's: name their catalog to repair them, with table_format="
            '"iceberg" or --table-format iceberg.'
        )
    policy = like["privacy"]
    privacy = Privacy.build(policy and policy["actions"], job.secret)
    if privacy.record() != policy:
        raise R7MailConfigError(
            f"Window {window.label()}: the tables were written with another privacy_secret than "
            "the connection's, so that hashes would not match."
        )
    settings = like.get("settings", {})
    attachments = settings.get("attachments")
    return ExtractJob(
        folder=job.folder,
        criteria=MessageFilter(window=window),
        output=job.output,
        tables=tuple(item["table"] for item in like.get("files") or like["tables"]),
        columns=None if settings.get("columns") is None else tuple(settings["columns"]),
        attachments=None if attachments is None else job.open_path(attachments),
        attachment_pattern=settings.get("attachment_pattern"),
        max_attachment_bytes=settings.get("max_attachment_bytes"),
        on_gone=settings.get("on_gone", "drop"),
        privacy=privacy,
        iceberg=job.iceberg,
    )
