"""Copy attachments to storage: only complete files, with checksums.

The server identifies a file only by the message's id and the file's name. A file is stored only if
it is complete: as long as its response announced (R22). The size in the listing is only a hint, as
it may be that of the encoded file (R26).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from airflow_provider_r7mail.client.calls import Call, download_attachment
from airflow_provider_r7mail.client.download import AsyncDownload, Download
from airflow_provider_r7mail.client.session import AsyncClient, Client
from airflow_provider_r7mail.client.sizes import least_size, size_fit, stated
from airflow_provider_r7mail.exceptions import (
    R7MailAttachmentError,
    R7MailConnectionError,
    R7MailError,
    R7MailProxyError,
)
from airflow_provider_r7mail.lake.derived import AttachmentRow
from airflow_provider_r7mail.lake.filenames import object_names
from airflow_provider_r7mail.lake.staging import StagedObject, clean, staged
from airflow_provider_r7mail.lake.storage import (
    ObjectPath,
    StorePath,
    is_local,
    is_url_of,
    remove_empty,
    size_of,
    url_of,
)
from airflow_provider_r7mail.lake.threads import run_to_end

log = logging.getLogger(__name__)

# The subfolder where files are staged. Its underscore hides it from readers of tables.
STAGING = "_staged"
# The number of bytes to collect before a worker thread hashes and writes them.
WRITE_BYTES = 1 << 20
DISK_THREADS = 2
# Files up to this size are put on a disk so many at once, since to hand one to a thread takes as
# long as to write it. Each page in hand may have as many waiting in memory.
SMALL_BYTES = 64 << 10
SMALL_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in storage.

    :param uri: its URL, without an Airflow connection; tables of earlier versions have one
    :param size: its size in bytes
    :param sha256: its SHA-256 in hexadecimal
    :param listed_size: its size in the listing it was copied by, None if unknown
    """

    uri: str
    size: int
    sha256: str
    listed_size: int | None = None


def _check(
    call: Call[bytes],
    received: int,
    source: Download | AsyncDownload,
    listed: AttachmentRow,
    attempt: int,
    *,
    strict: bool = False,
) -> None:
    """Refuse an incomplete file (R22), or a different one.

    :param listed: what the listing says about the file
    :param strict: whether to refuse a file whose size is not what the listing says (R26)
    :raises R7MailConnectionError: not the announced number of bytes; a retry may help
    :raises R7MailProxyError: an HTML page came instead of the file (R16); a retry may help
    :raises R7MailAttachmentError: the response is complete, but not what the listing says
    """
    announced = source.length
    size = stated(listed.listed_size)
    fit = None if size is None else size_fit(size, received)
    if announced is not None and received != announced:
        raise R7MailConnectionError(
            f"{received} bytes came, Content-Length says {announced}",
            method=call.method,
            path=call.path,
            status=200,
            attempt=attempt,
        )
    if source.is_html and fit not in {"equal", "encoded"} and not _may_be_html(listed):
        raise R7MailProxyError(
            "an HTML page came in place of the file",
            method=call.method,
            path=call.path,
            status=200,
            attempt=attempt,
            hint="A proxy in front of the server may have sent it.",
        )
    if strict and fit == "different":
        raise R7MailAttachmentError(f"{received} bytes came, the listing says {size}")


def _may_be_html(listed: AttachmentRow) -> bool:
    named = (listed.file_name or "").lower().endswith((".htm", ".html", ".xhtml"))
    return named or "html" in (listed.mime_type or "").lower()


def download(
    client: Client,
    folder: int,
    message_id: int,
    file_name: str,
    destination: ObjectPath,
) -> StoredFile:
    """Copy one attachment to its destination, where it appears whole or not at all.

    :param folder: the folder's id
    :param file_name: the name exactly as listed (R19)
    :param destination: the file's path
    :raises R7MailRequestError: it could not be read completely
    """
    call = download_attachment(folder, message_id, file_name)
    listed = AttachmentRow(message_id, file_name=file_name)

    def once(attempt: int) -> StoredFile:
        with client.stream(call, attempt) as source, staged(destination) as target:
            for chunk in source.chunks:
                target.write(chunk)
            _check(call, target.bytes, source, listed, attempt)
        return StoredFile(url_of(destination), target.bytes, target.sha256)

    return client.retry(call, once)


@dataclass(slots=True, kw_only=True)
class AttachmentCopier:
    """Copies attachments concurrently; one that fails doesn't stop the others.

    An async context manager: it removes what killed runs left unfinished, before and after.

    :param client: its `max_concurrency` limits concurrent downloads
    :param folder: the folder's id
    :param root: where files go, as `message_id={Id}/{name}`
    :param wanted: tells which names to copy; others are `skipped`
    :param max_bytes: larger files are `skipped`; not requested if the listing leaves no doubt
    :param strict: whether files of another size than listed fail (R26)
    :param known: what an earlier run stored: (message id, stored name) -> file
    :param stored_name: maps a file's name to the one used in tables and storage
    """

    client: AsyncClient
    folder: int
    root: ObjectPath
    wanted: Callable[[str], bool]
    max_bytes: int | None = None
    strict: bool = False
    known: Mapping[tuple[int, str], StoredFile] = field(default_factory=dict)
    stored_name: Callable[[str], str] = str
    outdated: list[ObjectPath] = field(default_factory=list, init=False)
    """Files that an earlier run stored under names that must no longer be visible."""
    _copied: dict[str, StoredFile] = field(default_factory=dict, init=False)
    _slots: asyncio.Semaphore = field(init=False)
    _staging: ObjectPath = field(init=False)
    _executor: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self.root = StorePath.of(self.root)

    async def __aenter__(self) -> Self:
        self._staging = self.root / STAGING
        at_once = self.client.config.max_concurrency
        # Writing to a disk, threads work rather than wait, and more of them only slow down the
        # event loop. Writing there is also quick. A file on its way to a slow store is held in
        # memory as long as one being downloaded, so it counts as one.
        local = is_local(self.root)
        self._slots = asyncio.Semaphore(at_once + DISK_THREADS if local else at_once)
        self._executor = ThreadPoolExecutor(
            min(at_once, DISK_THREADS) if local else at_once, "r7mail-store"
        )
        await run_to_end(self._clean_up)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._executor.shutdown()
        await run_to_end(self._clean_up)

    def _clean_up(self) -> None:
        clean(self._staging)
        remove_empty(self._staging, 1)

    async def copy(self, rows: Sequence[AttachmentRow]) -> None:
        """Copy the files of these rows, and fill in their status, uri, sha256 and error."""
        for row in rows:
            if row.status == "ambiguous":  # which nobody misses if it isn't wanted
                self._skip_unwanted(row)
        by_message: dict[int, list[AttachmentRow]] = {}
        for row in rows:
            by_message.setdefault(row.message_id, []).append(row)
        waiting = self._places(by_message)
        whole: list[_Target] = []

        async def work() -> None:
            for row, name, place in waiting:
                async with self._slots:
                    target = await self._copy_one(row, name, place)
                    if target is not None:
                        whole.append(target)
                    if len(whole) == SMALL_AT_ONCE:
                        full = whole.copy()
                        whole.clear()
                        await self._put(full)

        async with asyncio.TaskGroup() as group:
            for _ in range(self.client.config.max_concurrency):
                group.create_task(work())
        await self._put(whole)

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
                    yield row, row.file_name, self.root / f"message_id={message_id}/{name}"

    def _note_outdated(self, row: AttachmentRow) -> None:
        name = row.file_name or ""
        plain = self.known.get((row.message_id, name))
        if plain is not None and self.stored_name(name) != name:
            old = self.root / f"message_id={row.message_id}" / plain.uri.rpartition("/")[2]
            if is_url_of(plain.uri, old):
                self.outdated.append(old)

    def _skip_unwanted(self, row: AttachmentRow) -> bool:
        if not self.wanted(row.file_name or ""):
            row.status, row.error = "skipped", "the name does not match attachment_pattern"
        elif self.max_bytes is not None and least_size(row.listed_size or 0) > self.max_bytes:
            row.status, row.error = "skipped", "larger than max_attachment_bytes"
        return row.status == "skipped"

    async def _copy_one(self, row: AttachmentRow, name: str, place: ObjectPath) -> _Target | None:
        """Copy a file, and note in its row what came of it.

        :return: a small file that is whole, to be put in place by `_put`
        """
        if self._skip_unwanted(row):
            return None
        with _failures(row, name):
            known = self.known.get((row.message_id, self.stored_name(name)))
            if (
                known is not None
                and is_url_of(known.uri, place)
                and await asyncio.to_thread(size_of, place) == known.size
                and self._is_same(row, known)
            ):
                _note(row, replace(known, uri=url_of(place)), "unchanged")
            # If a window is read again, files copied the first time aren't downloaded again.
            elif (stored := self._copied.get(str(place))) is not None:
                _note(row, stored, "downloaded")
            else:
                target = await self._fetch(row, name, place)
                if target.stored is None:
                    return target
                self._keep(target)
        return None

    async def _put(self, targets: Sequence[_Target]) -> None:
        """Put files in place, and note in their rows what came of it."""
        if targets:
            await run_to_end(_put_all, targets, executor=self._executor)
        for target in targets:
            with _failures(target.row, target.name):
                if target.error is not None:
                    raise target.error
                self._keep(target)

    def _keep(self, target: _Target) -> None:
        assert target.stored is not None  # noqa: S101 - it is in place
        self._copied[str(target.place)] = target.stored
        _note(target.row, target.stored, "downloaded")

    def _is_same(self, row: AttachmentRow, known: StoredFile) -> bool:
        """Whether the listing still means the file that was stored."""
        if self.max_bytes is not None and known.size > self.max_bytes:
            return False  # it is skipped now
        listed = stated(row.listed_size)
        if listed is None or size_fit(listed, known.size) != "different":
            return True
        return not self.strict and listed == known.listed_size

    async def _fetch(self, row: AttachmentRow, name: str, place: ObjectPath) -> _Target:
        """Download a file, and put it in place unless `_put` is to do so."""
        call = download_attachment(self.folder, row.message_id, name)

        async def once(attempt: int) -> _Target:
            target = _Target(row, name, place, self._staging)
            try:
                async with self.client.stream(call, attempt) as source:
                    if self.max_bytes is not None and (source.length or 0) > self.max_bytes:
                        raise _TooLargeError
                    await self._pour(source.chunks, target)
                    _check(call, target.bytes, source, row, attempt, strict=self.strict)
                if not is_local(place) or target.bytes > SMALL_BYTES:
                    await target.commit(self._executor)
            except BaseException:
                await run_to_end(target.discard, executor=self._executor)
                raise
            return target

        return await self.client.retry(call, once)

    async def _pour(self, chunks: AsyncIterator[bytes], target: _Target) -> None:
        async for chunk in chunks:
            target.take(chunk)
            if self.max_bytes is not None and target.bytes > self.max_bytes:
                raise _TooLargeError
            if target.gathered >= WRITE_BYTES:
                await run_to_end(target.write, executor=self._executor)


class _Target:
    """A file on its way to storage, written in large pieces; a small file is one piece.

    `take` is cheap; `write` and `discard` may block: call them in a worker thread.
    """

    def __init__(
        self, row: AttachmentRow, name: str, place: ObjectPath, staging: ObjectPath
    ) -> None:
        self.row, self.name, self.place = row, name, place
        self._staging = staging
        self._object: StagedObject | None = None
        self._chunks: list[bytes] = []
        self.gathered = self.bytes = 0
        self.stored: StoredFile | None = None
        """What it is once it is in place."""
        self.error: R7MailError | OSError | None = None

    def take(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self.gathered += len(chunk)
        self.bytes += len(chunk)

    def write(self) -> StagedObject:
        if self._object is None:
            self._object = StagedObject(self.place, self._staging)
        data, self._chunks, self.gathered = b"".join(self._chunks), [], 0
        self._object.write(data)
        return self._object

    async def commit(self, executor: Executor) -> None:
        if is_local(self.place):
            await run_to_end(self.put, executor=executor)
            return
        if self._object is None:
            item = self.write()  # a single piece, hashed faster than handed to a thread
        else:
            item = await run_to_end(self.write, executor=executor)
        await item.commit_async(executor)
        self._note(item)

    def put(self) -> None:
        item = self.write()
        item.commit()
        self._note(item)

    def _note(self, item: StagedObject) -> None:
        self.stored = StoredFile(url_of(self.place), item.bytes, item.sha256)

    def discard(self) -> None:
        if self._object is not None:
            self._object.discard()


def _put_all(targets: Sequence[_Target]) -> None:
    """Put files in place, each of which may fail."""
    for target in targets:
        try:
            target.put()
        except (R7MailError, OSError) as error:
            target.error = error
            target.discard()


def _note(row: AttachmentRow, stored: StoredFile, status: str) -> None:
    row.status, row.error = status, None
    row.uri, row.sha256, row.size = stored.uri, stored.sha256, stored.size


@contextmanager
def _failures(row: AttachmentRow, name: str) -> Iterator[None]:
    """Note in a row why its file was not copied."""
    try:
        yield
    except _TooLargeError:
        row.status, row.error = "skipped", "larger than max_attachment_bytes"
    except (R7MailError, OSError) as error:
        row.status, row.error = "failed", _reason(error, name)
        log.warning("Attachment of message %s not copied: %s", row.message_id, row.error)


def _reason(error: R7MailError | OSError, name: str) -> str:
    """Return why a file was not copied, without its name: names reveal as much as subjects do."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError):
        refusal = cause.__cause__
        if action := getattr(refusal, "operation_name", None):  # S3 said no
            code = getattr(refusal, "response", {}).get("Error", {}).get("Code")
            return f"storage failed: {action}: {code}"
        return f"storage failed: {cause.strerror or type(refusal or cause).__name__}"
    text = error.text if isinstance(error, R7MailError) else str(error)
    if "\ufffd" in name:  # what tables hold in place of half a surrogate pair
        text += (
            " The file's name contains a character that is no text, so the server may not know it "
            "by the name in its listing. Open the message in the web client."
        )
    return text


class _TooLargeError(Exception):
    """The file has more bytes than `max_bytes`."""
