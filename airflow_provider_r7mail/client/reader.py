"""Read a folder message by message, each once.

`client.folder_reading` decides what to request; here the requests are made. No Airflow.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor

from airflow_provider_r7mail.client.answers import parse_page
from airflow_provider_r7mail.client.asking import Question, aconduct, conduct
from airflow_provider_r7mail.client.calibration import Calibration
from airflow_provider_r7mail.client.folder_reading import FolderReading
from airflow_provider_r7mail.client.models import Message, MessageFilter, Page
from airflow_provider_r7mail.client.page_size import (
    FIRST_SHARED_PAGE,
    MAX_SHARED_PAGE,
    PAGE_BYTES,
    PageSize,
)
from airflow_provider_r7mail.client.seek import ContradictionError
from airflow_provider_r7mail.client.session import AsyncClient, Client
from airflow_provider_r7mail.client.spans import listing_of, question_call
from airflow_provider_r7mail.client.sweep import Listing, PageRequest
from airflow_provider_r7mail.exceptions import R7MailRequestError


def iter_messages(
    client: Client,
    folder: int,
    criteria: MessageFilter,
    *,
    page_size: int = 100,
    keep_undated: bool = False,
) -> Iterator[Message]:
    """Yield the matching messages of a folder, each once, in the server's order of dates.

    A server that doesn't sort by Date, or reads bounds in its own way (R29, R30), yields them in
    its own order.

    :param client: an open client
    :param folder: id of the folder
    :param criteria: what to search for, including the window
    :param page_size: messages per request
    :param keep_undated: also yield messages without a readable Date, which may or may not be in
        the window
    :raises R7MailRequestError: a page could not be read
    :raises R7MailExtractError: the server's responses contradict the requests
    """
    size = PageSize(page_size)
    messages = FolderReading(client.traits, folder, criteria, size, keep_undated=keep_undated)

    def answer(question: Question) -> Listing:
        return listing_of(client.send(messages.question(question, parse_page)))

    if conduct(messages.is_still_empty(), answer):
        return
    while (request := messages.next_request()) is not None:
        page = None
        while page is None:
            try:
                page = client.send(messages.call(request))
            except R7MailRequestError as error:
                request = messages.instead(request, error)
        size.learn(request, len(page.rows), 0, 0.0)
        if not conduct(messages.prepare(request, page), answer):
            continue
        try:
            fresh = messages.take(page)
        except ContradictionError as error:
            conduct(messages.contradicted(error, request, page), answer)
        else:
            yield from fresh
    conduct(messages.check_folder(), answer)


async def aiter_messages(
    client: AsyncClient,
    folder: int,
    criteria: MessageFilter,
    *,
    keep_undated: bool = False,
) -> AsyncGenerator[Message, None]:
    """Yield the matching messages of a folder; see `iter_messages`.

    Doesn't hold up the event loop: pages are parsed in a thread, and stay short.
    """
    size = PageSize(None, first=FIRST_SHARED_PAGE, most=MAX_SHARED_PAGE, max_bytes=PAGE_BYTES)
    messages = FolderReading(client.traits, folder, criteria, size, keep_undated=keep_undated)
    length = 0

    def parse(body: bytes) -> Page:
        nonlocal length
        length = len(body)
        return parse_page(body)

    async def answer(question: Question) -> Listing:
        call = messages.question(question, parse_page)
        return listing_of(await client.send(call, executor=executor))

    executor = ThreadPoolExecutor(1, "r7mail-parse")
    try:
        if await aconduct(messages.is_still_empty(), answer):
            return
        while (request := messages.next_request()) is not None:
            page = None
            while page is None:
                started = time.monotonic()
                try:
                    page = await client.send(messages.call(request, parse), executor=executor)
                except R7MailRequestError as error:
                    request = messages.instead(request, error)
            size.learn(request, len(page.rows), length, time.monotonic() - started)
            if not await aconduct(messages.prepare(request, page), answer):
                continue
            try:
                fresh = messages.take(page)
            except ContradictionError as error:
                await aconduct(messages.contradicted(error, request, page), answer)
                continue
            for message in fresh:
                yield message
        await aconduct(messages.check_folder(), answer)
    finally:
        executor.shutdown(wait=False)


async def calibrate(client: AsyncClient, folder: int) -> None:
    """Find out how the server reads bounds and labels, unless that is known (R29, R31).

    :param client: an open client
    :param folder: id of the folder
    :raises R7MailRequestError: the server failed or could not be reached
    """
    criteria, request = MessageFilter(), PageRequest(None, None, 0, FIRST_SHARED_PAGE)

    async def answer(question: Question) -> Listing:
        return listing_of(await client.send(question_call(question, folder, criteria, parse_page)))

    if client.traits.bounds == "unknown" or client.traits.labels == "unknown":
        first = await answer(Question(request, labels=client.traits.empty_labels))
        calibration = Calibration(client.traits, criteria, request.size)
        await aconduct(calibration.first_page(request, first), answer)
