"""The state of a running emulator: its mail, settings, faults, tokens and the calls so far."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_r7mail.emulator.mailbox import Mailbox
from airflow_provider_r7mail.emulator.readings import Faults, Readings

if TYPE_CHECKING:
    from starlette.requests import Request

OnRequest = Callable[[dict[str, Any]], None]

_SHOWN_CALLS = 200


@dataclass(slots=True)
class SeenCall:
    """A call as the web page shows it: abridged, and without passwords and tokens.

    :param number: the number of the call, from 1.
    :param method: its HTTP method.
    :param path: its path.
    :param query: its query string.
    :param asked: the beginning of the request body.
    :param time: when it arrived, in Unix seconds.
    :param seconds: how long it took; None while it is in progress.
    :param status: the status of the response; None if there was none.
    :param answer: the beginning of the response body.
    :param size: the size of the whole response body, in bytes.
    :param fault: the kind of fault that hit it; empty if none.
    """

    number: int
    method: str
    path: str
    query: str
    asked: bytes
    time: float
    seconds: float | None = None
    status: int | None = None
    answer: bytes = b""
    size: int = 0
    fault: str = ""

    @property
    def name(self) -> str:
        """The last segment of its path."""
        return self.path.rpartition("/")[2]


class Service:
    """What the API, the control plane and the web page share.

    :param mailbox: the mail to serve.
    :param readings: how to behave where the manual is open; may be assigned at any time.
    :param on_request: called in the server's thread with the record of each call, before the call
        is handled.
    :param source: recreates the mailbox for a reset; None keeps it as it is.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        readings: Readings | None = None,
        *,
        on_request: OnRequest | None = None,
        source: Callable[[], Mailbox] | None = None,
    ) -> None:
        self.mailbox = mailbox
        self.readings = readings or Readings()
        self.faults = Faults()
        self.requests: list[dict[str, Any]] = []
        self.calls: deque[SeenCall] = deque(maxlen=_SHOWN_CALLS)
        self.logins = 0
        self.on_request = on_request
        self._source = source
        self.wrong_passwords = 0
        self._tokens: dict[str, int | None] = {}
        self._nodes: dict[str, str] = {}

    def issue_token(self) -> tuple[str, str]:
        """Return a new token, and the node that knows it.

        It is valid for as many calls as the readings say (R12), or until the next login (R36).
        """
        if self.readings.one_session:
            self._tokens.clear()
        token = str(uuid.uuid4())
        self._tokens[token] = self.readings.token_calls
        self._nodes[token] = uuid.uuid4().hex
        return token, self._nodes[token]

    def is_locked(self) -> bool:
        """Return whether there were too many wrong passwords."""
        limit = self.readings.lock_after
        return limit is not None and self.wrong_passwords >= limit

    def accepts_token(self, token: str, node: str | None) -> bool:
        """Return whether a token is valid, and count the call.

        :param node: the node that the call's cookie names, if any
        """
        if token not in self._tokens:
            return False
        if self.readings.sticky and node != self._nodes[token]:
            return False
        left = self._tokens[token]
        if left is None:
            return True
        if left <= 0:
            return False
        self._tokens[token] = left - 1
        return True

    def expire_tokens(self) -> None:
        """Refuse every token issued so far (R12, R24)."""
        self._tokens.clear()

    def reset(self) -> None:
        """Clear calls, faults, tokens and readings, and recreate the mailbox if possible."""
        self.requests.clear()
        self.calls.clear()
        self.faults.clear()
        self.expire_tokens()
        self.logins = self.wrong_passwords = 0
        self.readings = Readings()
        if self._source is not None:
            self.mailbox = self._source()


def service_of(request: Request) -> Service:
    """Return the service behind an app made by `create_app`."""
    service: Service = request.app.state.service
    return service
