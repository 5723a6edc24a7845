"""Read a window once: decode its pages, copy their attachments, and write their rows.

What is read but not yet written is limited, so that memory stays bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial

from airflow_provider_r7mail.client.answers import AnswerError
from airflow_provider_r7mail.client.fields import KINDS
from airflow_provider_r7mail.client.session import AsyncClient
from airflow_provider_r7mail.client.sweep import Key
from airflow_provider_r7mail.client.window_reader import Reconciliation, WindowReader, first_error
from airflow_provider_r7mail.lake.attachments import AttachmentCopier
from airflow_provider_r7mail.lake.decode import DecodedPage, Habits, decode_page
from airflow_provider_r7mail.lake.job import ExtractJob, Progress
from airflow_provider_r7mail.lake.writer import WindowWriter

# The limit of what is read but not yet written: this many bytes and one page more, or this many
# pages. Writing a row group takes as long as reading that many pages.
BYTES_IN_HAND = 16 << 20
PAGES_IN_HAND = 32


@dataclass(slots=True, kw_only=True)
class Intake:
    """One reading of a window.

    :param client: an open client
    :param job: the job
    :param copier: copies attachments; None if they are only listed
    :param writer: takes the rows
    :param decoder: the thread that decodes pages
    :param scribe: the thread that writes rows
    :param on_progress: called after each page
    """

    client: AsyncClient
    job: ExtractJob
    copier: AttachmentCopier | None
    writer: WindowWriter
    decoder: Executor
    scribe: Executor
    on_progress: Callable[[Progress], None]
    _progress: Progress = field(default_factory=Progress, init=False)
    _in_hand: int = field(default=0, init=False)
    _written: asyncio.Condition = field(default_factory=asyncio.Condition, init=False)
    _settling: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup, init=False)

    async def run(self, keys: set[Key] | None, *, sweep: bool = False) -> Reconciliation:
        """Read all pages, and return what the server counted.

        :param keys: filled with the keys of all messages read, unless None
        :param sweep: see `WindowReader`
        """
        reader = WindowReader(
            self.client,
            self.job.folder,
            self.job.criteria,
            page_size=self.job.page_size,
            decode=partial(self._decode, habits=Habits()),
            executor=self.decoder,
            deliver=self._deliver,
            keys=keys,
            sweep=sweep,
            max_sweep_messages=self.job.max_sweep_messages,
        )
        try:
            async with self._settling:
                return await reader.run()
        except BaseExceptionGroup as errors:
            first = first_error(errors)
            raise first from first.__cause__

    def _decode(self, body: bytes, habits: Habits) -> DecodedPage:
        return _decode_messages(body, habits, self.client.traits.dates_offset)

    async def _deliver(self, page: DecodedPage, indexes: Sequence[int]) -> None:
        """Take a page from the reader; make it wait while there is too much to write."""
        async with self._written:
            await self._written.wait_for(lambda: self._in_hand < BYTES_IN_HAND)
            self._in_hand += _weight(page)
        self._settling.create_task(self._settle(page, indexes))

    async def _settle(self, page: DecodedPage, indexes: Sequence[int]) -> None:
        run = partial(asyncio.get_running_loop().run_in_executor, self.scribe)
        if self.copier is None:
            batch, files = await run(self.writer.write_page, page, indexes)
        else:
            batch, files = await run(self.writer.prepare, page, indexes)
            await self.copier.copy(files)
            await run(self.writer.write, batch, files)
        progress = self._progress
        progress.pages += 1
        progress.rows += batch.num_rows
        progress.attachments += len(files)
        progress.bytes_read = self.client.stats.bytes_read
        self.on_progress(progress)
        async with self._written:
            self._in_hand -= _weight(page)
            self._written.notify_all()


def _decode_messages(body: bytes, habits: Habits, dates_offset: int | None) -> DecodedPage:
    """Decode a page, unless nothing on it is a message: then it isn't mail that is broken.

    :param habits: what was learned from earlier pages
    :param dates_offset: what to add to dates that don't name a zone, in seconds (R43)
    :raises AnswerError: not a listing of messages
    """
    page = decode_page(body, habits, dates_offset)
    if not page.bad or len(page.bad) < page.batch.num_rows:
        return page
    names = {name for bad in page.bad.values() if isinstance(bad.raw, dict) for name in bad.raw}
    if not names & {"Id", "Date"}:
        # Names only: values may be mail.
        unknown = ", ".join(sorted(name[:40] for name in names - KINDS.keys())[:20])
        raise AnswerError(
            f"no item of the listing has an Id or a Date; unknown fields: {unknown or 'none'}"
        )
    return page


def _weight(page: DecodedPage) -> int:
    return max(page.bytes, BYTES_IN_HAND // PAGES_IN_HAND)
