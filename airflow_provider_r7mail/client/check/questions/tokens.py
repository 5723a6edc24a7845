"""How long a token lives (R12), and what a refused login looks like (R14)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from airflow_provider_r7mail.client.check.evidence import is_a, read_date
from airflow_provider_r7mail.client.check.inquiry import Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Subject, Verdict, unknown

_GOES_ON = "Takes no notice: logs in again when a token is refused."


class StatedLife(Question):
    """What the login's answer says of the token's life."""

    subjects = (Subject("expired_at", "R12", "Token life as stated", _GOES_ON),)

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Read the login's answer."""
        return {"expired_at": expiry_of(inquiry.login_data["Tokens"], inquiry.login_time)}


def expiry_of(tokens: object, now: datetime) -> Verdict:
    """Return the token's life as the login's answer states it (R12)."""
    stated = tokens.get("ExpiredAt") if isinstance(tokens, Mapping) else None
    if stated is None:
        return "ok", "absent", "no ExpiredAt"
    expires = read_date(stated)
    if not isinstance(stated, str) or (expires is None and not is_a(stated, "date")):
        return "note", "unreadable", "ExpiredAt is no date"
    if expires is None:
        return "ok", "absent", "ExpiredAt is .NET's “no date”"
    hours = (expires - now).total_seconds() / 3_600
    life = f"{hours:.1f} h from now" if hours >= 0 else f"{-hours:.1f} h ago: in the past"
    offset = datetime.fromisoformat(stated.strip()).utcoffset()
    if offset is None:
        return "note", "no_zone", f"{life}, if it is UTC: ExpiredAt names no zone"
    if offset:
        return "ok", "other_zone", f"{life}; ExpiredAt is in another zone than UTC"
    return "ok", "future" if hours >= 0 else "past", life


class RefusedTokens(Question):
    """Whether a token was refused during the check."""

    subjects = (Subject("token_calls", "R12", "Tokens refused meanwhile", _GOES_ON),)

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Count the refusals."""
        return {"token_calls": refusals_of(inquiry.token_lives, inquiry.served)}


def refusals_of(lives: Sequence[int], served: int) -> Verdict:
    """Return how many calls tokens served.

    :param lives: calls that each refused token had served
    :param served: calls that the last one has served
    """
    if lives:
        shortest = min(lives)
        says = f"refused {len(lives)} times; one had served {shortest} calls only"
        return "note", shortest, says
    return "ok", "none refused", f"none, in {served} calls; how long one lives was not waited for"


class RefusedLogin(Question):
    """What a refused login looks like: never tried."""

    subjects = (
        Subject("login_refusal", "R14", "A refused login", "Knows all its forms, and tries once."),
    )

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Say why not."""
        return {"login_refusal": unknown("not tried, since a wrong password may lock the account")}


QUESTIONS = (StatedLife, RefusedTokens, RefusedLogin)
