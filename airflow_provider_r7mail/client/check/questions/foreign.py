"""Whether listings have messages of other folders (R32), by their FolderId."""

from __future__ import annotations

from airflow_provider_r7mail.client.check.evidence import Listing
from airflow_provider_r7mail.client.check.inquiry import Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, unknown
from airflow_provider_r7mail.client.spans import is_foreign


class ForeignRows(Question):
    """Whether messages of other folders are listed."""

    subjects = (Subject("foreign_rows", "R32", "Messages of other folders", "Leaves them out."),)

    def __init__(self) -> None:
        self._folders: dict[int, tuple[int, int]] = {}

    def see(self, listing: Listing) -> None:
        """Note which folder was asked for, and which one a message is filed under."""
        for row in listing.page.rows:
            if row.key is not None and row.folder:
                self._folders[row.key] = row.folder, listing.page.folder

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Count the messages that are filed under another folder."""
        foreign = sum(is_foreign(*folders) for folders in self._folders.values())
        return {"foreign_rows": foreign_of(len(self._folders), foreign)}


def foreign_of(rows: int, foreign: int) -> Verdict:
    """Return whether messages of other folders are listed.

    :param rows: number of messages with a FolderId
    :param foreign: how many of them are filed under another folder than the one listed
    """
    if not rows:
        return unknown("no message with a FolderId was seen")
    if not foreign:
        return "ok", "none", "none is listed"
    if foreign < rows:
        return "note", "listed", f"{foreign} of {rows} are filed under another folder"
    says = f"all messages ({rows}) are filed under another folder: nothing can be extracted"
    return "warning", "all", says


QUESTIONS = (ForeignRows,)
