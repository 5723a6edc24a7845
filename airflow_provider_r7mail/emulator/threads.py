"""Threads: which messages reply to which, and how many there are in a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_r7mail.emulator.folders import Delivered, Stored


class Threads:
    """The threads of a mailbox.

    :param new_id: returns an id for a new thread.
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._threads: dict[str, list[Delivered]] = {}
        self._by_mime_id: dict[str, Delivered] = {}

    def join(self, record: Delivered, owner: str) -> None:
        """Add a message to the thread of the message it replies to, or of its own ``ThreadId``.

        :param owner: the mailbox's address: a message from it marks its parent as replied to.
        """
        parent = self._by_mime_id.get(str(record.value("MimeReplyToId")))
        if parent is not None:
            self._reply(record, parent, owner)
        thread = record.value("ThreadId")
        if isinstance(thread, str):
            self._count(self._threads.setdefault(thread, []), record)
        mime_id = record.value("MessageId")
        if isinstance(mime_id, str):
            self._by_mime_id.setdefault(mime_id, record)

    def forget(self, record: Stored) -> None:
        """Let later messages no longer reply to this one."""
        mime_id = record.value("MessageId")
        if self._by_mime_id.get(mime_id) is record:
            del self._by_mime_id[mime_id]

    def _reply(self, record: Delivered, parent: Delivered, owner: str) -> None:
        record.derive("ReplyToId", parent.id)
        parent.derive("HasChildren", True)
        if (record.value("From") or {}).get("Address") == owner:
            parent.derive("WasReplied", True)
        if parent.value("ThreadId") is None:
            parent.derive("ThreadId", self._new_id())
            self._threads[str(parent.value("ThreadId"))] = [parent]
        if record.value("ThreadId") is None:
            record.derive("ThreadId", parent.value("ThreadId"))

    def _count(self, thread: list[Delivered], record: Delivered) -> None:
        thread.append(record)
        if len(thread) < 2:
            return
        has_files = any(item.files for item in thread)
        for item in thread:
            item.derive("ThreadCount", len(thread))
            item.derive("HasThreadAttachments", has_files)
