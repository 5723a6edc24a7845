"""The token of a session: whether a refusal means that it is dead, and when to log in again.

The server may answer a dead token with 401, 403 or 406 (R24), answers 403 and 406 also to what is
not there or not allowed (R25), and may end a session when the account logs in elsewhere (R36).
Decisions only: `client.session` sends what is needed to take them. No Airflow.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from airflow_provider_r7mail.client.account import (
    DOUBTFUL_SECONDS,
    REMEMBERED_SECONDS,
    Account,
)
from airflow_provider_r7mail.client.answers import lists_mail
from airflow_provider_r7mail.client.calls import LOGIN_PATH, MESSAGES_PATH, Call, glance, log_in
from airflow_provider_r7mail.client.http import ClientConfig
from airflow_provider_r7mail.client.statuses import REFUSED
from airflow_provider_r7mail.exceptions import R7MailAuthError

log = logging.getLogger(__name__)

FRESH_SECONDS = 300.0
"""A token of this age that has served nothing may have died all the same."""

LOST_SECONDS = 120.0
"""How long to log in again and again while nothing is served, once the account has been served."""

MAX_NEW_TOKENS = 2
"""New tokens on which a request is refused before that is its answer."""

LONGEST_PAUSE = 8.0

FEW_CALLS = 10
"""If a session is ended before it has served that many, the next pause is longer."""

Verdict = Literal["stands", "dead", "ask"]


@dataclass(eq=False, slots=True)
class Token:
    """A token, and what is known of its life.

    :param value: what is sent
    :param session: its session's name on this host; see `Account`
    :param issued: when it was issued; monotonic, as is `alive`
    :param alive: when a request was sent that it was good for; 0 for never
    :param calls: number of calls it was good for
    """

    value: str
    session: str
    issued: float = field(default_factory=time.monotonic)
    alive: float = 0.0
    calls: int = 0


@dataclass(slots=True)
class Refusals:
    """The refusals that one request has met so far."""

    count: int = 0
    since: float = 0.0

    def add(self, status: int) -> None:
        """Count a response, if it is one."""
        if status in REFUSED:
            self.count += 1
            self.since = self.since or time.monotonic()


class Tokens:
    """The current token of a client, and when to replace it.

    :param config: how to reach the server
    :param insist: try a password even if it was refused recently
    """

    def __init__(self, config: ClientConfig, *, insist: bool = False) -> None:
        self.account = Account(config.url, config.login, config.password)
        self.current: Token | None = None
        self.probe: Call[bytes] | None = None
        """A call that has been served: if it is refused, the token is dead."""

        self.has_mail = True
        """Whether the account has the Mail module, as far as the responses tell (R41)."""

        self._config = config
        self._insist = insist
        self._session = ""
        self._refusal: R7MailAuthError | None = None
        self._last_served = 0.0
        self._blameless_until = 0.0
        self._losses = 0
        self._pause = 0.0
        self._proven = False

    # -- logging in -------------------------------------------------------------------------

    def before_login(self) -> Iterator[float]:
        """Yield seconds to sleep before the login. Afterwards, `account.leave` in any case.

        :raises R7MailAuthError: the password was refused recently
        """
        if self._refusal is not None:
            # Concurrent calls would each try the wrong password, and lock the account.
            raise copy(self._refusal)
        if self._pause:
            pause, self._pause = self._pause, 0.0
            yield pause
        yield from self.account.turns()
        if not self._insist and (refused := self.account.refused()) is not None:
            self._refusal = R7MailAuthError(
                f"this password was refused at {refused.since:%H:%M:%S} UTC, and is not tried "
                f"again until {refused.until:%H:%M:%S} UTC",
                method="POST",
                path=LOGIN_PATH,
                hint="Each try could lock the account. Check Login and Password of the connection: "
                "another password is tried at once. So is this one, by the connection's Test "
                "button and `r7mail check`.",
                never_sent=True,
            )
            raise copy(self._refusal)
        self._session = self.account.begin_session()

    def login_call(self) -> Call[str]:
        """Return the call that logs in, and returns the token."""
        call = log_in(self._config.login, self._config.password, proven=self._proven)

        def parse(body: bytes) -> str:
            token = call.parse(body)
            self.has_mail = self._last_served > 0 or lists_mail(body)
            return token

        return replace(call, parse=parse)

    def accept(self, value: str) -> Token:
        """Use a token that was just issued."""
        self._proven = True
        self.account.forget_refusal()
        self.current = Token(value, self._session)
        return self.current

    def refuse(self, error: R7MailAuthError) -> None:
        """Remember a refused login, for this client and for the others on this host."""
        if self._refusal is None:
            self._refusal = error
            seconds = DOUBTFUL_SECONDS if error.status == 500 else REMEMBERED_SECONDS
            self.account.remember_refusal(seconds)

    # -- what a response says of the token --------------------------------------------------

    def served(self, call: Call[Any], token: Token, sent: float, past: Refusals) -> None:
        """Note that a call was served.

        :param sent: when it was sent
        :param past: the refusals that it had met before
        """
        if past.count:  # so an earlier token was dead indeed
            self._blameless_until = 0.0
        token.calls += 1
        token.alive = max(token.alive, sent)
        self.has_mail = True
        self._last_served = time.monotonic()
        is_listing = call.path == MESSAGES_PATH or (call.on_disk and call.method == "GET")
        if self.probe is None and is_listing:
            self.probe = glance(call)

    def judge(self, call: Call[Any], token: Token, status: int, past: Refusals) -> Verdict:
        """Decide on a refused call: its answer stands, its token is dead, or the probe can tell.

        :param past: the refusals of this call, this one included
        """
        now = time.monotonic()
        lost = now > max(past.since, self._last_served) + LOST_SECONDS
        # A Send with another status than 401: the server may mean the message (R23).
        may_ask = call.repeatable or call.on_disk
        final = status != 401 and not may_ask
        if status not in REFUSED or not self.has_mail or final or lost:
            return "stands"
        if token is not self.current or (status == 401 and past.count == 1):
            return "dead"
        ended = self.account.has_later(token.session)
        if self.probe is not None and may_ask:
            # Several new tokens in a row don't die by chance, unless other sessions end them.
            often = past.count > MAX_NEW_TOKENS and status != 401
            return "stands" if often and not ended and not token.calls else "ask"
        unproven = self._last_served == 0.0 and now < token.issued + FRESH_SECONDS
        # A task on another host may have ended the session before it was of any use (R36).
        first_listing = unproven and call.path == MESSAGES_PATH
        tries = MAX_NEW_TOKENS if first_listing and now >= self._blameless_until else 0
        if ended or past.count <= tries:
            return "dead"
        if first_listing:
            self._blameless_until = now + FRESH_SECONDS
        if unproven or past.count > 1 or now < self._blameless_until:
            return "stands"
        # If a new token is refused as well, then for some minutes it isn't the token's fault.
        self._blameless_until = now + FRESH_SECONDS
        return "dead"

    def drop(self, token: Token, status: int) -> None:
        """Give up a dead token, and decide how long to wait before the next login."""
        if token is not self.current:
            return
        self.current = None
        life = time.monotonic() - token.issued
        ended = self.account.has_later(token.session)
        short = life < LONGEST_PAUSE
        if not short:
            self._losses = 0
        lost = ended or not token.calls
        if lost or short:
            # Sessions that end each other must give way to each other, or none gets anything done.
            self._losses += lost and token.calls < FEW_CALLS
            longest = min(self._config.backoff * 2 ** max(self._losses, 1), LONGEST_PAUSE)
            self._pause = longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        log.log(
            logging.WARNING if self._pause else logging.INFO,
            "The token was refused (status %d) after %d calls in %.0f s. %sLogging in again%s.",
            status,
            token.calls,
            life,
            "Another session of this account has begun on this host meanwhile: the server may end "
            "a session when the account logs in again (R36). "
            if ended
            else "Perhaps the account has logged in on another host, and the server ends its "
            "earlier sessions (R36). "
            if short
            else "",
            f" in {self._pause:.1f} s" if self._pause else "",
        )
