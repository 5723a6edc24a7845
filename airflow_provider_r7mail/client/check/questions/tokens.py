"""How long a token lives (R12), and what a rejected login looks like (R14)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from airflow_provider_r7mail.client.check.evidence import is_a, read_date
from airflow_provider_r7mail.client.check.inquiry import Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, unknown

_GOES_ON = "Ignores it: logs in again when a token is rejected."


class StatedLife(Question):
    """The token's lifetime according to the login response."""

    subjects = (Subject("expired_at", "R12", "Token lifetime as stated", _GOES_ON),)

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Read the login response."""
        return {"expired_at": expiry_of(inquiry.login_data["Tokens"], inquiry.login_time)}


def expiry_of(tokens: object, now: datetime) -> Verdict:
    """Return the token's lifetime according to the login response."""
    stated = tokens.get("ExpiredAt") if isinstance(tokens, Mapping) else None
    if stated is None:
        return "ok", "absent", "no ExpiredAt"
    expires = read_date(stated)
    if not isinstance(stated, str) or (expires is None and not is_a(stated, "date")):
        return "note", "unreadable", "ExpiredAt is not a date"
    if expires is None:
        return "ok", "absent", "ExpiredAt is .NET's “no date”"
    hours = (expires - now).total_seconds() / 3_600
    life = f"{hours:.1f} h from now" if hours >= 0 else f"{-hours:.1f} h ago"
    offset = datetime.fromisoformat(stated.strip()).utcoffset()
    if offset is None:
        return "note", "no_zone", f"{life} if it is UTC: ExpiredAt has no time zone"
    if offset:
        return "ok", "other_zone", f"{life}; ExpiredAt is not in UTC"
    return "ok", "future" if hours >= 0 else "past", life


class RejectedTokens(Question):
    """Whether a token was rejected during the check."""

    subjects = (Subject("token_calls", "R12", "Tokens rejected meanwhile", _GOES_ON),)

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Count the rejections."""
        return {"token_calls": rejections_of(inquiry.token_lives, inquiry.served)}


def rejections_of(lives: Sequence[int], served: int) -> Verdict:
    """Return how many calls tokens were good for.

    :param lives: number of calls with each token before it was rejected
    :param served: number of calls with the current token
    """
    if lives:
        shortest = min(lives)
        says = f"{len(lives)} rejected; one after only {shortest} calls"
        return "note", shortest, says
    return "ok", "none refused", f"none in {served} calls; the actual lifetime was not tested"


class RejectedLogin(Question):
    """What a rejected login looks like: never tried."""

    subjects = (
        Subject(
            "login_refusal", "R14", "A rejected login", "Recognizes all forms, and tries only once."
        ),
    )

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Return the reason."""
        return {"login_refusal": unknown("not tried: a wrong password could lock the account")}


QUESTIONS = (StatedLife, RejectedTokens, RejectedLogin)
