"""The account and its sessions: tokens (R12, R24), logins (R14, R36), and modules (R41)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from airflow_provider_r7mail.client.answers import has_mail
from airflow_provider_r7mail.client.check.evidence import is_a, read_date
from airflow_provider_r7mail.client.check.inquiry import Inquiry
from airflow_provider_r7mail.client.check.question import Question
from airflow_provider_r7mail.client.check.report import Findings, Level, Subject, Verdict, unknown
from airflow_provider_r7mail.client.statuses import REFUSED

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
        says = f"{len(lives)} rejected; fewest calls before: {shortest}"
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


class NoToken(Question):
    """How the server responds to a request without a token: most likely, as to a dead one."""

    about = "tokens"
    subjects = (
        Subject(
            "dead_token",
            "R24",
            "Request without a token",
            "Takes 401, 403 and 406 for a dead token, if that's what they are.",
        ),
    )

    def ask(self, inquiry: Inquiry) -> Findings:
        """List the folder without token and cookies."""
        inquiry.spend()
        call = replace(inquiry.list_call(1), authorized=False)
        with inquiry.another_client() as stranger, stranger.exchange(call, 1) as response:
            status = response.status_code
        if status == 200:
            return {"dead_token": ("warning", "served", "served: anyone can read this folder")}
        level: Level = "ok" if status in REFUSED else "warning"
        return {"dead_token": (level, str(status), f"status {status}")}


class Sessions(Question):
    """Whether a login ends the account's earlier session."""

    about = "sessions"
    subjects = (
        Subject(
            "one_session",
            "R36",
            "A second login",
            "Logs in again after a while; sessions that end each other take turns.",
        ),
    )

    def ask(self, inquiry: Inquiry) -> Findings:
        """Log in elsewhere, and see whether the token still works; then the same again."""
        inquiry.keeps_token()
        for _ in range(2):
            if not inquiry.keeps_token():
                return {"one_session": unknown("tokens expire all the time")}
            inquiry.spend()
            with inquiry.another_client() as other:
                other.log_in()
            if inquiry.keeps_token():
                return {"one_session": ("ok", False, "leaves earlier sessions alone")}
        says = "ends the earlier session: tasks that run at the same time slow each other down"
        return {"one_session": ("note", True, says)}


class Modules(Question):
    """Whether the account has the Mail module."""

    subjects = (
        Subject("mail_module", "R41", "The Mail module", "Names it if mail calls are refused."),
    )

    def conclude(self, inquiry: Inquiry) -> Findings:
        """Read the login response."""
        modules = inquiry.login_data.get("ModulesAccess")
        if not isinstance(modules, list):
            return {"mail_module": unknown("the login response has no ModulesAccess")}
        if has_mail(modules):
            return {"mail_module": ("ok", True, "listed in ModulesAccess")}
        return {"mail_module": ("note", False, "not in ModulesAccess, but the folder can be read")}


QUESTIONS = (StatedLife, RejectedTokens, RejectedLogin, Modules)
SESSIONS = (NoToken, Sessions)
"""Asked after the others, since they may cost the token."""
