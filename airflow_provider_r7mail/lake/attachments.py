"""Copy attachments to storage: safe names, whole files, checksums. No Airflow.

The server tells files apart by the message's id and the file's name alone, and names are hostile
input (R19). A file is stored only when it is whole: as long as announced and as listed (R22).
"""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from airflow_provider_r7mail.client.calls import Call, download_attachment
from airflow_provider_r7mail.client.download import AsyncDownload, Download
from airflow_provider_r7mail.client.session import AsyncClient, Client
from airflow_provider_r7mail.exceptions import (
    R7MailAttachmentError,
    R7MailConfigError,
    R7MailConnectionError,
    R7MailError,
    R7MailProxyError,
)
from airflow_provider_r7mail.lake.derived import AttachmentRow
from airflow_provider_r7mail.lake.storage import (
    ObjectPath,
    StagedObject,
    clean,
    is_local,
    remove_empty,
    size_of,
    staged,
    to_its_end,
)

log = logging.getLogger(__name__)

MAX_NAME_BYTES = 180  # with the longest mark less than the 255 of file systems
# The folder of a mailbox's folder where files take shape; readers of tables pass it over.
STAGING = "_staged"
# Bytes gathered before they are hashed and written in a worker thread.
WRITE_BYTES = 1 << 20
DISK_THREADS = 2

# Not allowed in names on Windows, special in shells, URLs or fsspec's globs, or invisible.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*%#&\[\]{}$`\'!;=~\u2028\u2029\ud800-\udfff]')
_RESERVED = re.compile(r"^(con|prn|aux|nul|com[\d¹²³]|lpt[\d¹²³]) *(\.|$)", re.IGNORECASE)
# What has no width and no name of its own: ext4 and others leave it out of a comparison (Unicode's
# Default_Ignorable_Code_Point, without the format characters, which no safe name has).
_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
MARK_DIGITS = 10


def object_names(names: Sequence[str]) -> dict[str, str]:
    """Names for the files of one message in storage.

    A name that is safe as it is stays; any other one is made safe and gets a part of its own
    checksum, as do names that differ only in case, so that no two files meet, not even where
    case is not told apart. The result depends on the names alone: a rerun finds the same.

    :param names: the names in the listing
    :return: name -> object name, without any folder
    """
    safe = {name: _safe(name) for name in names}
    folded = Counter(_folded(item) for item in safe.values())
    marked = {
        name: item if item == name and folded[_folded(item)] == 1 else _marked(name, item)
        for name, item in safe.items()
    }
    # A short mark is easily read, but a stranger can find two names that have the same.
    folded = Counter(_folded(item) for item in marked.values())
    return {
        name: item if folded[_folded(item)] == 1 else _marked(name, safe[name], digits=64)
        for name, item in marked.items()
    }


def _folded(name: str) -> str:
    """The same for all names that some file system may take for one (Unicode's NFKC_Casefold)."""
    text = unicodedata.normalize("NFKC", _IGNORABLE.sub("", name)).casefold()
    return unicodedata.normalize("NFKC", text).casefold().upper()


def _safe(name: str) -> str:
    text = unicodedata.normalize("NFC", name)
    text = "".join(
        "_" if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} else c for c in text
    )
    text = re.sub(r"\.{2,}", "_", _UNSAFE.sub("_", text))
    # A leading underscore or dot hides a file from Spark, Hive and pyarrow; Windows drops dots and
    # blanks at the end.
    text = text.lstrip("_ .").rstrip(" .") or "file"
    if _RESERVED.match(text):
        text = f"file_{text}"
    return _shorten(text, MAX_NAME_BYTES)


def _shorten(text: str, limit: int) -> str:
    """Cut to so many bytes, keeping the extension."""
    if len(text.encode()) <= limit:
        return text
    stem, dot, extension = text.rpartition(".")
    tail = f"{dot}{extension}" if dot and stem and len(extension.encode()) <= 20 else ""
    head = text[: len(text) - len(tail)].encode()[: limit - len(tail.encode())]
    return head.decode(errors="ignore").rstrip(" .") + tail


def _marked(name: str, safe: str, digits: int = MARK_DIGITS) -> str:
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
    stem, dot, extension = safe.rpartition(".")
    return f"{stem}~{mark}{dot}{extension}" if dot and stem else f"{safe}~{mark}"


def name_filter(pattern: str | None) -> Callable[[str], bool]:
    """Tell which file names are wanted.

    :param pattern: a glob such as `*.xlsx`, without regard to case; or, when it begins with `^`
        or ends with `$`, a regular expression to search for; None for all
    :raises R7MailConfigError: no valid regular expression
    """
    if not pattern:
        return lambda _: True
    if pattern.startswith("^") or pattern.endswith("$"):
        try:
            expression = re.compile(pattern, re.IGNORECASE)
        except re.error as error:
            raise R7MailConfigError(
                f"attachment_pattern: not a regular expression ({error}). Without ^ and $ it "
                "would be a glob such as *.xlsx."
            ) from error
        return lambda name: expression.search(name) is not None
    folded = pattern.casefold()
    return lambda name: fnmatch.fnmatchcase(name.casefold(), folded)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in storage.

    :param uri: where
    :param size: its size in bytes
    :param sha256: its SHA-256 in hexadecimal
    """

    uri: str
    size: int
    sha256: str


def _check(
    call: Call[bytes],
    received: int,
    source: Download | AsyncDownload,
    listed: AttachmentRow,
    attempt: int,
) -> None:
    """Refuse a file that is not whole (R22), or another one.

    :param listed: what the listing says of the file
    :raises R7MailConnectionError: fewer or more bytes came than announced; a repetition may heal it
    :raises R7MailProxyError: a page came in its place (R16); a repetition may heal it
    :raises R7MailAttachmentError: the answer was whole, but is not what was listed
    """
    announced = source.length
    size = _stated_size(listed)
    if announced is not None and received != announced:
        raise R7MailConnectionError(
            f"{received} bytes came, Content-Length says {announced}",
            method=call.method,
            path=call.path,
            status=200,
            attempt=attempt,
        )
    if source.is_html and received != size and not _may_be_html(listed):
        raise R7MailProxyError(
            "an HTML page came in place of the file",
            method=call.method,
            path=call.path,
            status=200,
            attempt=attempt,
            hint="A proxy in front of the server may have sent it.",
        )
    if size is not None and received != size:
        raise R7MailAttachmentError(f"{received} bytes came, the listing says {size}")


def _stated_size(listed: AttachmentRow) -> int | None:
    """The size in the listing; None where it says nothing, as does 0, .NET's "not set"."""
    return listed.size if listed.size is not None and listed.size > 0 else None


def _may_be_html(listed: AttachmentRow) -> bool:
    named = (listed.file_name or "").lower().endswith((".htm", ".html", ".xhtml"))
    return named or "html" in (listed.mime_type or "").lower()


def download(
    client: Client,
    folder: int,
    message_id: int,
    file_name: str,
    destination: ObjectPath,
    *,
    listed_size: int | None = None,
) -> StoredFile:
    """Copy one attachment to its destination, where it appears whole or not at all.

    :param folder: the folder's id
    :param file_name: the name exactly as listed (R19)
    :param destination: the file's path
    :param listed_size: the size in bytes that the listing gave, to check against
    :raises R7MailRequestError: it could not be read whole
    """
    call = download_attachment(folder, message_id, file_name)
    listed = AttachmentRow(message_id, file_name=file_name, size=listed_size)
    for attempt in client.attempts(call):
        with attempt:
            number = attempt.retry_state.attempt_number
            with client.stream(call, number) as source, staged(destination) as target:
                for chunk in source.chunks:
                    target.write(chunk)
                _check(call, target.bytes, source, listed, number)
            return StoredFile(str(destination), target.bytes, target.sha256)
    raise AssertionError("tenacity ended without a result")


@dataclass(slots=True, kw_only=True)
class AttachmentCopier:
    """Copies the attachments of messages, several at once, each tried whatever happens to others.

    An async context manager: what killed runs have left unfinished is removed before and after.

    :param client: its `max_concurrency` limits the downloads at once
    :param folder: the folder's id
    :param root: the folder of the mailbox's folder: files go to `message_id={Id}/{name}` in it
    :param wanted: which names to copy; others are `skipped`
    :param max_bytes: files listed or found larger than this are `skipped`
    :param known: what an earlier run has stored: (message id, stored name) -> file
    :param stored_name: what tables and storage call a file of this name, if not the same
    """

    client: AsyncClient
    folder: int
    root: ObjectPath
    wanted: Callable[[str], bool]
    max_bytes: int | None = None
    known: Mapping[tuple[int, str], StoredFile] = field(default_factory=dict)
    stored_name: Callable[[str], str] = str
    outdated: list[ObjectPath] = field(default_factory=list, init=False)
    """Files that an earlier run has stored under names which are not to be seen any more."""
    _copied: dict[str, StoredFile] = field(default_factory=dict, init=False)
    _slots: asyncio.Semaphore = field(init=False)
    _staging: ObjectPath = field(init=False)
    _executor: ThreadPoolExecutor = field(init=False)

    async def __aenter__(self) -> Self:
        self._staging = self.root / STAGING
        at_once = self.client.config.max_concurrency
        # To a disk, threads work rather than wait: more only get in the event loop's way. And there
        # a file goes at once; one that goes up to a slow store is held in memory, as is one that
        # comes down.
        local = is_local(self.root)
        self._slots = asyncio.Semaphore(at_once + DISK_THREADS if local else at_once)
        self._executor = ThreadPoolExecutor(
            min(at_once, DISK_THREADS) if local else at_once, "r7mail-store"
        )
        await to_its_end(self._clean_up)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._executor.shutdown()
        await to_its_end(self._clean_up)

    def _clean_up(self) -> None:
        clean(self._staging)
        remove_empty(self._staging, 1)

    async def copy(self, rows: Sequence[AttachmentRow]) -> None:
        """Copy the files of these rows; their status, uri, sha256 and error are filled in."""
        by_message: dict[int, list[AttachmentRow]] = {}
        for row in rows:
            by_message.setdefault(row.message_id, []).append(row)
        waiting = self._places(by_message)

        async def work() -> None:
            for row, name, place in waiting:
                async with self._slots:
                    await self._copy_one(row, name, place)

        async with asyncio.TaskGroup() as group:
            for _ in range(self.client.config.max_concurrency):
                group.create_task(work())

    def _places(
        self, by_message: Mapping[int, Sequence[AttachmentRow]]
    ) -> Iterator[tuple[AttachmentRow, str, ObjectPath]]:
        for message_id, files in by_message.items():
            names = object_names(
                [self.stored_name(row.file_name) for row in files if row.file_name]
            )
            for row in files:
                if row.status == "listed" and row.file_name is not None:
                    self._note_outdated(row)
                    name = names[self.stored_name(row.file_name)]
                    # In one step: each takes UPath as long as a request.
                    yield row, row.file_name, self.root / f"message_id={message_id}/{name}"

    def _note_outdated(self, row: AttachmentRow) -> None:
        name = row.file_name or ""
        plain = self.known.get((row.message_id, name))
        if plain is not None and self.stored_name(name) != name:
            old = self.root / f"message_id={row.message_id}" / plain.uri.rpartition("/")[2]
            if str(old) == plain.uri:
                self.outdated.append(old)

    async def _copy_one(self, row: AttachmentRow, name: str, place: ObjectPath) -> None:
        if not self.wanted(name):
            row.status, row.error = "skipped", "the name does not match attachment_pattern"
            return
        if self.max_bytes is not None and (row.size or 0) > self.max_bytes:
            row.status, row.error = "skipped", "larger than max_attachment_bytes"
            return
        try:
            known = self.known.get((row.message_id, self.stored_name(name)))
            if (
                known is not None
                and known.uri == str(place)
                and await asyncio.to_thread(size_of, place) == known.size
                and _stated_size(row) in {None, known.size}
            ):
                stored, row.status = known, "unchanged"
            else:
                # Where a window is read anew, what came the first time need not come again.
                stored = self._copied.get(str(place)) or await self._fetch(row, name, place)
                self._copied[str(place)] = stored
                row.status = "downloaded"
        except _TooLargeError:
            row.status, row.error = "skipped", "larger than max_attachment_bytes"
        except (R7MailError, OSError) as error:
            row.status, row.error = "failed", _reason(error)
            log.warning("Attachment of message %s not copied: %s", row.message_id, row.error)
        else:
            row.uri, row.sha256, row.error = stored.uri, stored.sha256, None
            row.size = stored.size

    async def _fetch(self, row: AttachmentRow, name: str, place: ObjectPath) -> StoredFile:
        call = download_attachment(self.folder, row.message_id, name)
        async for attempt in self.client.attempts(call):
            with attempt:
                number = attempt.retry_state.attempt_number
                target = _Target(place, self._staging)
                try:
                    async with self.client.stream(call, number) as source:
                        await self._pour(source.chunks, target)
                        _check(call, target.bytes, source, row, number)
                    return await target.commit(self._executor)
                except BaseException:
                    await to_its_end(target.discard, executor=self._executor)
                    raise
        raise AssertionError("tenacity ended without a result")

    async def _pour(self, chunks: AsyncIterator[bytes], target: _Target) -> None:
        async for chunk in chunks:
            target.take(chunk)
            if self.max_bytes is not None and target.bytes > self.max_bytes:
                raise _TooLargeError
            if target.gathered >= WRITE_BYTES:
                await to_its_end(target.write, executor=self._executor)


class _Target:
    """A file on its way into storage, gathered into large pieces: a small one is one piece.

    `take` costs nothing; `write` and `discard` may block, and belong into a worker thread.
    """

    def __init__(self, place: ObjectPath, staging: ObjectPath) -> None:
        self._place = place
        self._staging = staging
        self._object: StagedObject | None = None
        self._chunks: list[bytes] = []
        self.gathered = self.bytes = 0

    def take(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self.gathered += len(chunk)
        self.bytes += len(chunk)

    def write(self) -> StagedObject:
        if self._object is None:
            self._object = StagedObject(self._place, self._staging)
        data, self._chunks, self.gathered = b"".join(self._chunks), [], 0
        self._object.write(data)
        return self._object

    async def commit(self, executor: Executor) -> StoredFile:
        if is_local(self._place):
            item = await to_its_end(self._put, executor=executor)
        elif self._object is None:
            item = self.write()  # of one piece, hashed sooner than a thread has it
            await item.commit_async(executor)
        else:
            item = await to_its_end(self.write, executor=executor)
            await item.commit_async(executor)
        return StoredFile(str(self._place), item.bytes, item.sha256)

    def _put(self) -> StagedObject:
        item = self.write()
        item.commit()
        return item

    def discard(self) -> None:
        if self._object is not None:
            self._object.discard()


def _reason(error: R7MailError | OSError) -> str:
    """Why a file was not copied, without its name: names say as much as subjects do."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError):
        return f"storage failed: {cause.strerror or type(cause.__cause__ or cause).__name__}"
    return error.text if isinstance(error, R7MailError) else str(error)


class _TooLargeError(Exception):
    """More bytes came than are wanted."""
