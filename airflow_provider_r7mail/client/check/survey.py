"""Find out what a server does where the API's manual leaves it open: `r7mail check`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from airflow_provider_r7mail.client.check.evidence import Listing, Page
from airflow_provider_r7mail.client.check.inquiry import (
    FIRST_PAGE,
    MAX_PAGE_BYTES,
    Inquiry,
    Spent,
    why_stopped,
)
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.questions import QUESTIONS
from airflow_provider_r7mail.client.check.report import (
    Finding,
    Findings,
    PageTime,
    Reading,
    Report,
    Verdict,
    unknown,
)
from airflow_provider_r7mail.client.compose import parse_addresses
from airflow_provider_r7mail.client.session import Client
from airflow_provider_r7mail.exceptions import R7MailConfigError, R7MailRequestError

DEFAULT_PAGE_SIZE = 200


def check_server(
    client: Client,
    folder: int,
    *,
    write_folder: int | None = None,
    send_to: str | None = None,
    disk: bool = False,
    disk_folder: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Report:
    """Find out what a server does where the API's manual leaves it open.

    :param client: an open client that is not used for anything else meanwhile
    :param folder: id of the folder to read: one with mail from different days, and attachments
    :param write_folder: id of another folder: also mark and unmark one message of `folder`, and
        move it there and back. None: nothing is changed on the server
    :param send_to: address to send one message to. None: nothing is sent
    :param disk: also check the server's Disk; with `write_folder`, upload and delete a small file
    :param disk_folder: id of the Disk folder that takes files to be sent, None for the default
    :param say: called with what is being checked, in a few words
    :return: the report
    :raises R7MailConfigError: both folders are the same, or `send_to` is not an address
    :raises R7MailRequestError: the server could not be reached, the login was refused, or the
        folder could not be read: nothing can be checked
    """
    if write_folder == folder:
        raise R7MailConfigError(
            "write_folder: this is the folder that is checked. Give another one, to move a message "
            "to it and back."
        )
    if send_to is not None:
        addresses = parse_addresses(send_to, "send_to")
        if len(addresses) != 1:
            raise R7MailConfigError("send_to: give one mail address, like ann@example.org.")
        [send_to] = addresses
    say = say or (lambda _: None)
    writes = write_folder is not None
    questions = [
        question()
        for question in QUESTIONS
        if (writes or not question.writes)
        and (send_to is not None or not question.sends)
        and (disk or not question.on_disk)
    ]

    def show(listing: Listing) -> None:
        for question in questions:
            question.see(listing)

    inquiry = Inquiry(client, folder, write_folder, send_to, disk_folder, show)
    say("logging in")
    inquiry.log_in()
    say("reading the folder")
    inquiry.fetch(FIRST_PAGE)
    found: dict[str, Verdict] = {}
    for question in questions:
        if question.about:
            say(question.about)
        found |= _ask(question, inquiry)
    for question in questions:
        found |= question.conclude(inquiry)
    return _report(questions, found, inquiry)


def _ask(question: Question, inquiry: Inquiry) -> Findings:
    """Ask a question; a failure leaves its subjects open, and doesn't end the check."""
    try:
        return question.ask(inquiry)
    except (Spent, R7MailRequestError) as stopped:
        return {subject.key: unknown(why_stopped(stopped)) for subject in question.subjects}


def _report(questions: Sequence[Question], found: Findings, inquiry: Inquiry) -> Report:
    page_times = page_times_of(inquiry.unfiltered)
    size, why = page_size_of(page_times, found["page_cap"][1], inquiry.config.timeout)
    if inquiry.refused_size is not None and size > inquiry.served_size:
        size, why = inquiry.served_size, "the server refuses larger pages"
    return Report(
        findings=tuple(
            Finding.of(subject, found[subject.key])
            for question in sorted(questions, key=_place)
            for subject in question.subjects
            if subject.key in found
        ),
        page_times=page_times,
        page_size=size,
        page_size_why=why,
        max_concurrency=inquiry.concurrency[0],
        max_concurrency_why=inquiry.concurrency[1],
        waits=inquiry.waits,
        requests=inquiry.requests,
        seconds=inquiry.seconds,
    )


def _place(question: Question) -> tuple[bool, float]:
    """Order the report by the contract's open points; what was written comes last."""
    point = question.subjects[0].point if question.subjects else ""
    return question.writes or question.sends, float(point[1:]) if point else math.inf


def page_times_of(pages: Iterable[Page]) -> tuple[PageTime, ...]:
    """Return the best time of each page size, at offset 0."""
    times: dict[int, PageTime] = {}
    for page in pages:
        known = times.get(page.asked)
        if page.offset == 0 and (known is None or page.seconds < known.seconds):
            times[page.asked] = PageTime(page.asked, len(page.rows), page.bytes, page.seconds)
    return tuple(times[size] for size in sorted(times))


def page_size_of(times: Sequence[PageTime], cap: Reading, timeout: float) -> tuple[int, str]:
    """Return the smallest page size whose time per message is close to the best, and why.

    :param times: how long pages took
    :param cap: maximum messages per page (R3), if there is a limit
    :param timeout: the connection's, in seconds
    """
    if isinstance(cap, int) and cap < DEFAULT_PAGE_SIZE:
        return cap, "the server returns no more per page"
    full = [page for page in times if page.got == page.asked >= FIRST_PAGE]
    good = [p for p in full if p.bytes <= MAX_PAGE_BYTES and p.seconds <= timeout / 4]
    if not full:
        return DEFAULT_PAGE_SIZE, "default; the folder has too few messages to measure"
    if not good:
        return min(page.asked for page in full), "larger pages are slow or very long"
    best = max(page.got / page.seconds for page in good)
    for page in sorted(good, key=lambda page: page.asked):
        if page.got / page.seconds >= 0.7 * best:
            break
    return (
        page.asked,
        f"{page.got / page.seconds:,.0f} messages/s, {page.bytes / 1e6:.1f} MB per page",
    )
