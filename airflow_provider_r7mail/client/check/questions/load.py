"""How much load the server takes: concurrent, slow and failed requests (R16)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from airflow_provider_r7mail.client import calls
from airflow_provider_r7mail.client.check.inquiry import Inquiry, failure_kind
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict
from airflow_provider_r7mail.client.http import interpret
from airflow_provider_r7mail.exceptions import R7MailRequestError


class Concurrency(Question):
    """How much concurrent requests gain: only a suggestion, no finding."""

    about = "concurrent requests"

    def ask(self, inquiry: Inquiry) -> Findings:
        """Request the first page 4 times at once, and 8 times if that gains enough."""
        size = inquiry.pages[0].asked
        alone = min(
            page.seconds for page in inquiry.unfiltered if page.asked == size and page.offset == 0
        )
        inquiry.concurrency = 2, "more concurrent requests gain little"
        rates = {1: 1 / alone}
        for number in (4, 4, 8):  # four twice: the first time, connections are made
            if number == 8 and rates[4] < 2 * rates[1]:
                break
            inquiry.spend(number * (3 if inquiry.token_lives else 1))  # each may need a login
            begun = time.perf_counter()
            with ThreadPoolExecutor(number) as pool:
                listing = inquiry.list_call(size)
                tried = pool.map(lambda call: _try(inquiry, call), [listing] * number)
                failed = [kind for kind in tried if kind]
            if failed:
                inquiry.failures += failed
                why = f"{len(failed)} of {number} concurrent requests failed"
                inquiry.concurrency = max(1, number // 4), why
                return {}
            rate = number / (time.perf_counter() - begun)
            rates[number] = max(rate, rates.get(number, 0.0))
        best = max(rates, key=lambda number: rates[number])
        if best > 1 and rates[best] >= 1.3 * rates[1]:
            # A few percent are not worth more load on the server.
            number = min(number for number in rates if rates[number] >= 0.8 * rates[best])
            gain = min(rates[number] / rates[1], number)
            why = f"about {gain:.1f} times the throughput of one request at a time"
            inquiry.concurrency = max(number, 2), why
        return {}


def _try(inquiry: Inquiry, call: calls.Call[Any]) -> str:
    """Make a request; return what failed, "" for nothing."""
    try:
        answer = inquiry.exchange(call)
        interpret(call, answer.status, answer.headers, answer.body, 1)
    except R7MailRequestError as error:
        return failure_kind(error)
    return ""


class Requests(Question):
    """The slowest response, and the requests that failed."""

    subjects = (
        Subject(
            "timeout",
            "",
            "Slowest response",
            "Waits `timeout` seconds for the next byte, then retries.",
        ),
        Subject("failures", "R16", "Failed requests", "Retries up to `max_retries` times."),
    )

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Read the times and failures of all requests."""
        slowest = max(page.seconds for page in inquiry.pages)
        return {
            "timeout": slowness_of(slowest, inquiry.config.timeout),
            "failures": failures_of(inquiry.failures),
        }


def slowness_of(slowest: float, limit: float) -> Verdict:
    """Return whether the timeout leaves a margin."""
    says = f"{slowest:.2f} s; the timeout is {limit:g} s"
    if slowest > limit / 2:
        return "warning", says, f"{says}. Raise timeout, or lower page_size"
    return "ok", says, says


def failures_of(failures: Sequence[str]) -> Verdict:
    """Return how many requests failed, and how."""
    kinds = [f"{kind}: {count}" for kind, count in sorted(Counter(failures).items())]
    if kinds:
        return "warning", kinds, ", ".join(kinds)
    return "ok", [], "none"


QUESTIONS = (Concurrency, Requests)
