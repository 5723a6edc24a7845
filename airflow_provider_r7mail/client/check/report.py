"""The report of a check: what a server does at each open point of the API's contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from airflow_provider_r7mail import __version__

Level = Literal["ok", "unknown", "note", "warning", "outside"]
"""`unknown`: could not be determined. `note`: worth knowing, and handled. `warning`: something
won't work as expected. `outside`: the server violates the contract."""

Reading = str | int | bool | list[str] | None

Verdict = tuple[Level, Reading, str]
"""What was found out: its level, the reading for programs, and the same in words."""

Findings = Mapping[str, Verdict]
"""Verdicts by their subject's key."""


def unknown(why: str) -> Verdict:
    """Return the verdict on what could not be determined."""
    return "unknown", None, why


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to find out.

    :param key: its name, for programs
    :param point: the contract's open point, "" for none
    :param title: its name, in words
    :param handled: what the package does about it
    """

    key: str
    point: str
    title: str
    handled: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was found out, or could not be determined.

    :param key: its subject, for programs
    :param point: the contract's open point, "" for none
    :param title: its subject, in words
    :param level: how serious it is
    :param reading: what the server does, for programs; None if it could not be determined
    :param says: what the server does, or why that could not be determined
    :param handled: what the package does about it
    """

    key: str
    point: str
    title: str
    level: Level
    reading: Reading
    says: str
    handled: str

    @classmethod
    def of(cls, subject: Subject, verdict: Verdict) -> Finding:
        """Return the finding on a subject."""
        level, reading, says = verdict
        return cls(
            key=subject.key,
            point=subject.point,
            title=subject.title,
            level=level,
            reading=reading,
            says=f"could not be determined: {says}" if level == "unknown" else says,
            handled=subject.handled,
        )


@dataclass(frozen=True, slots=True)
class PageTime:
    """How long a page took.

    :param asked: number of messages requested
    :param got: number of messages returned
    :param bytes: length of the response
    :param seconds: from the request to the last byte of the response; the best of several
    """

    asked: int
    got: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """How long to wait for mail that comes late, as far as the messages seen tell.

    :param settle_seconds: how long after its end to extract a window
    :param lookback: how many seconds back the event trigger should look
    :param recheck_hours: for how many hours to look again at windows that were extracted
    :param why: the reason
    """

    settle_seconds: int
    lookback: int
    recheck_hours: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a check has found out. Contains no mail, so it can be shown to others.

    :param findings: in the order of the contract's open points
    :param page_times: by page size
    :param page_size: the suggested `page_size`
    :param page_size_why: the reason
    :param max_concurrency: the suggested `max_concurrency`
    :param max_concurrency_why: the reason
    :param waits: suggestions for mail that comes late; None if too few messages were seen
    :param requests: number of requests made, logins included
    :param seconds: duration of the check
    """

    findings: tuple[Finding, ...]
    page_times: tuple[PageTime, ...]
    page_size: int
    page_size_why: str
    max_concurrency: int
    max_concurrency_why: str
    waits: Waits | None
    requests: int
    seconds: float

    def __getitem__(self, key: str) -> Finding:
        """Return the finding with this key."""
        return next(finding for finding in self.findings if finding.key == key)

    def of_level(self, *levels: Level) -> tuple[Finding, ...]:
        """Return the findings of these levels."""
        return tuple(finding for finding in self.findings if finding.level in levels)

    @property
    def result(self) -> Literal["fine", "warnings", "outside the contract"]:
        """The overall result."""
        if self.of_level("outside"):
            return "outside the contract"
        return "warnings" if self.of_level("warning") else "fine"

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            "format": 1,
            "package": __version__,
            "result": self.result,
            "requests": self.requests,
            "seconds": round(self.seconds, 3),
            "suggested": {
                "page_size": self.page_size,
                "page_size_why": self.page_size_why,
                "max_concurrency": self.max_concurrency,
                "max_concurrency_why": self.max_concurrency_why,
                "waits": None if self.waits is None else asdict(self.waits),
            },
            "page_times": [
                {**asdict(page), "seconds": round(page.seconds, 4)} for page in self.page_times
            ],
            "findings": [asdict(finding) for finding in self.findings],
        }
