"""Publish a window's tables over what an earlier run wrote.

The manifest is removed first and written last: a window without one is incomplete.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from datetime import datetime
from typing import Any

from airflow_provider_r7mail.exceptions import R7MailPublishError
from airflow_provider_r7mail.lake.layout import MANIFEST, REPLACED
from airflow_provider_r7mail.lake.locks import locked
from airflow_provider_r7mail.lake.manifest import read_manifest, stored_privacy
from airflow_provider_r7mail.lake.parquet import ParquetWindow
from airflow_provider_r7mail.lake.splitting import make_room
from airflow_provider_r7mail.lake.staging import StagedObject
from airflow_provider_r7mail.lake.storage import ObjectPath, remove, url_of
from airflow_provider_r7mail.lake.writer import Destination, WindowWriter

log = logging.getLogger(__name__)


def publish(
    destination: Destination,
    writer: WindowWriter,
    make_manifest: Callable[[], dict[str, Any]],
    outdated: Iterable[ObjectPath],
    *,
    began_over: Mapping[str, Any] | None,
    keep_gone: bool,
) -> dict[str, Any]:
    """Replace an earlier result of the window with what was written.

    :param destination: where the tables are
    :param writer: a writer that has everything that was read
    :param make_manifest: returns the manifest; ids that only a commit gives are filled in
    :param outdated: attachments of the earlier result to remove
    :param began_over: the manifest that was there when the run began
    :param keep_gone: whether to keep the earlier result's rows of mail that has left
    :return: the manifest; that of another run if it has published a later state of the folder
    :raises R7MailPublishError: it failed halfway, or another run published at the same time
    """
    if not keep_gone:
        writer.finish()
    with ExitStack() as stack:
        stack.enter_context(locked(destination.output, destination.name))
        if isinstance(destination, ParquetWindow):  # it may have been compacted meanwhile
            make_room(destination.output, destination.folders, destination.name, replace=True)
        there = read_manifest(destination.home)
        if there is not None and _is_later(there, began_over, writer.extracted_at):
            log.info(
                "%s: another run began to read later and has published already. Its result stays.",
                url_of(destination.home),
            )
            return there
        if keep_gone:  # only now: what is there can't change any more
            writer.keep_gone(stored_privacy(destination.home))
            writer.finish()
        manifest = make_manifest()
        # Staged before anything is removed: a disk that is full must not cost the earlier result.
        notes = _staged(destination, manifest, stack)
        try:
            if keep_gone and there is not None:
                _note_replaced(destination, there)
            for folder in (*destination.folders.values(), *destination.stale_folders()):
                remove(folder / MANIFEST)
            for file in outdated:  # a rerun knows of them only as long as the old table is there
                remove(file)
            writer.commit()
            if manifest != (complete := manifest | writer.written()):
                manifest.update(complete)
                notes = _staged(destination, manifest, stack)
            # If a lock doesn't suffice, another run may have come in between. Checked before, so
            # that a manifest hardly ever appears next to another run's tables, and after.
            _verify(destination, writer)
            for note in notes:
                note.commit()
            _verify(destination, writer)
            if keep_gone:
                remove(destination.home / REPLACED)
        except OSError as error:
            raise R7MailPublishError(
                f"{destination.home}: the window was read but could not be published ({error}). It "
                "may have no manifest now, which makes it incomplete: run it again."
            ) from error
    return manifest


def _is_later(
    there: Mapping[str, Any], began_over: Mapping[str, Any] | None, extracted_at: datetime
) -> bool:
    """Return whether a result was published meanwhile by a run that began to read later.

    Hosts' clocks may differ: what was there when this run began is replaced whatever it says.
    """
    known = began_over is not None and began_over["run_id"] == there["run_id"]
    return not known and datetime.fromisoformat(there["extracted_at"]) > extracted_at


def _note_replaced(destination: Destination, manifest: Mapping[str, Any]) -> None:
    """Note what the tables have, for the next run should this one be killed halfway."""
    note = StagedObject(destination.home / REPLACED)
    try:
        note.write(json.dumps(manifest).encode())
        note.commit()
    finally:
        note.discard()


def _staged(
    destination: Destination, manifest: dict[str, Any], stack: ExitStack
) -> list[StagedObject]:
    """Stage the manifest for each folder; that of the messages table comes last."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False).encode()
    notes = []
    for folder in reversed(destination.folders.values()):
        note = StagedObject(folder / MANIFEST)
        stack.callback(note.discard)
        note.write(text)
        notes.append(note)
    return notes


def _verify(destination: Destination, writer: WindowWriter) -> None:
    """Make sure that no other run published the same window meanwhile."""
    other = writer.overtaken()
    if other is not None:
        for folder in destination.folders.values():
            remove(folder / MANIFEST)
        raise R7MailPublishError(
            f"{other}: another run of this window published at the same time. The window "
            "has no manifest now: run it again, once."
        )
