"""How attachments are listed (R17, R26, R38) and downloaded (R22)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_provider_r7mail.client import calls, statuses
from airflow_provider_r7mail.client.check.evidence import Listing, is_a
from airflow_provider_r7mail.client.check.inquiry import Answer, Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, unknown
from airflow_provider_r7mail.client.sizes import SizeFit, size_fit
from airflow_provider_r7mail.client.spans import is_foreign
from airflow_provider_r7mail.exceptions import R7MailConfigError

MAX_FILE_BYTES = 1 << 20
"""The largest attachment that is downloaded."""


def _files_of(item: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    files = item.get("Attachments")
    return files if files and is_a(files, "files") else ()


class ListedFiles(Question):
    """Whether listings name the messages' attachments."""

    subjects = (
        Subject(
            "list_attachments",
            "R17",
            "Attachments named in listings",
            "Reports the others as `unlisted`.",
        ),
    )

    def __init__(self) -> None:
        self._named = 0
        self._unnamed = 0

    def see(self, listing: Listing) -> None:
        """Count messages whose attachments are named, and those whose are not."""
        for item, row in zip(listing.items, listing.page.rows, strict=True):
            if row.key is None:
                continue
            if _files_of(item):
                self._named += 1
            elif item.get("HasAttachments") is True:
                self._unnamed += 1

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Compare the counts."""
        if inquiry.is_empty:
            return {"list_attachments": unknown("the folder is empty")}
        return {"list_attachments": naming_of(self._named, self._unnamed)}


def naming_of(named: int, unnamed: int) -> Verdict:
    """Return whether listings name attachments.

    :param named: number of messages whose attachments are named
    :param unnamed: number of messages with attachments that are not
    """
    if not named and not unnamed:
        return unknown("no message with attachments was seen")
    if not unnamed:
        return "ok", True, "all are named"
    what = "not all" if named else "none"
    says = f"{what} are named: such files cannot be copied"
    return "warning", False, says


class FileNames(Question):
    """Whether all listed attachments have a name: the API takes nothing else."""

    subjects = (
        Subject("file_names", "R38", "Attachments without a name", "Reports them as `unlisted`."),
    )

    def __init__(self) -> None:
        self._nameless: dict[int, int] = {}

    def see(self, listing: Listing) -> None:
        """Count files without a name in each message that has files."""
        for item, row in zip(listing.items, listing.page.rows, strict=True):
            if row.key is not None and (files := _files_of(item)):
                self._nameless[row.key] = sum(not file.get("FileName") for file in files)

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Add the numbers up."""
        count = sum(self._nameless.values())
        return {"file_names": nameless_of(count, bool(self._nameless))}


def nameless_of(nameless: int, any_listed: bool) -> Verdict:
    """Return whether listed files lack a name, as messages attached to messages may.

    :param nameless: number of files without a name
    :param any_listed: whether any file was listed
    """
    if nameless:
        says = f"{nameless}, such as attached messages: they cannot be copied"
        return "note", "some without", says
    return ("ok", "all have one", "none") if any_listed else unknown("no file was listed")


class Download(Question):
    """How an attachment is transferred, and what its listed size means."""

    about = "an attachment"
    subjects = (
        Subject(
            "attachment_length",
            "R22",
            "Length of an attachment",
            "Never keeps a truncated file.",
        ),
        Subject(
            "attachment_size",
            "R26",
            "Listed size of an attachment",
            "Takes it for a hint, and records both sizes.",
        ),
    )

    def __init__(self) -> None:
        # The message's id, the file's name and its listed length.
        self._smallest: tuple[int, str, int] | None = None

    def see(self, listing: Listing) -> None:
        """Look for the smallest file that can be requested by its name."""
        for item, row in zip(listing.items, listing.page.rows, strict=True):
            if row.key is not None and not is_foreign(row.folder, listing.page.folder):  # R32
                self._look_at(row.key, _files_of(item))

    def _look_at(self, key: int, files: Sequence[Mapping[str, Any]]) -> None:
        names = Counter(str(file.get("FileName")) for file in files)
        for file in files:
            name, size = file.get("FileName"), file.get("Size")
            if not (name and isinstance(name, str) and isinstance(size, int) and names[name] == 1):
                continue
            known = MAX_FILE_BYTES + 1 if self._smallest is None else self._smallest[2]
            if 0 < size < known and not isinstance(size, bool):
                self._smallest = key, name, size

    def ask(self, inquiry: Inquiry) -> Findings:
        """Download a small attachment and discard it."""
        found = self._download(inquiry)
        if not isinstance(found, Answer):
            return {subject.key: found for subject in self.subjects}
        assert self._smallest is not None  # noqa: S101 - it was downloaded
        size = size_of(len(found.body), self._smallest[2])
        return {"attachment_length": framing_of(found), "attachment_size": size}

    def _download(self, inquiry: Inquiry) -> Answer | Verdict:
        """Return the response with the file, or why there is none."""
        if self._smallest is None:
            return unknown("no message with a small, named attachment was seen")
        key, name, _ = self._smallest
        try:
            call = calls.download_attachment(inquiry.folder, key, name)
        except R7MailConfigError:
            return unknown("the file's name cannot be requested")
        answer = inquiry.look(call)
        if statuses.failure(call, answer.status, answer.headers, 1) is None:
            return answer
        row = next((row for row in inquiry.rows() if row.key == key), None)
        if row is None or not inquiry.near(row).holds(key):
            return unknown("the message it was tested with is gone")
        says = f"a listed file could not be downloaded: status {answer.status}"
        return "warning", f"status {answer.status}", says


def framing_of(answer: Answer) -> Verdict:
    """Return how the length is transferred."""
    form = "Content-Length" if "content-length" in answer.headers else "chunked"
    return "ok", form, f"with {form}"


_SIZES: Mapping[SizeFit, Verdict] = {
    "equal": ("ok", "bytes", "the file's bytes"),
    "encoded": ("note", "encoded", "that of the file in base64, about a third larger"),
    "rounded": ("note", "rounded", "in whole kilobytes"),
    "different": ("note", "different", "neither the file's, nor that of its base64"),
}


def size_of(real: int, listed: int) -> Verdict:
    """Return what the listed size means."""
    return _SIZES[size_fit(listed, real)]


QUESTIONS = (ListedFiles, Download, FileNames)
