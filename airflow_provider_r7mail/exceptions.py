"""The errors that this package raises. No I/O, no Airflow.

R7MailError
├── R7MailConfigError (ValueError)       the connection or a parameter is invalid; nothing was sent
├── R7MailRequestError                   a request failed; has method, path, status, attempt
│   ├── R7MailConnectionError            the server could not be reached, or closed the connection
│   │   └── R7MailTimeoutError           it did not respond in time
│   ├── R7MailAuthError                  the login or the token was refused
│   ├── R7MailServerError                the server failed (500), or refused (403, 404, 405, 406)
│   ├── R7MailProxyError                 something in front of the server responded
│   ├── R7MailResponseError              the response is not what the API documents
│   ├── R7MailActionError                the response to an action is not `true`
│   └── R7MailSendUnclearError           unclear whether a message was sent: check first
│       └── R7MailSendUnsettledError     and the Sent folder could not be read: try again later
├── R7MailMessageNotFoundError (LookupError)  a message id is not in the folder
├── R7MailAttachmentError                files could not be copied or attached
└── R7MailExtractError                   the window could not be read completely and exactly once
    ├── R7MailBadMessageError            messages don't fit any table
    └── R7MailPublishError               the result could not be published

Messages name the method, path, status, attempt and what to do, and end with a reference to the
documentation, which lists causes and fixes. They never contain a body, token, address or subject:
more people read logs than the mailbox.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, Self

PAGE = "when-it-goes-wrong"
"""The page of the documentation that has a section for each class, in every language."""


_REFERENCE = re.compile(r" \[docs: [^\]]*\]")


class R7MailError(Exception):
    """Base class of all errors of this package."""

    @property
    def text(self) -> str:
        """The message without references to the documentation, for use in another message."""
        return _REFERENCE.sub("", super().__str__())

    @property
    def anchor(self) -> str:
        """The page and section of the documentation for this error."""
        kind = next(kind for kind in type(self).__mro__ if kind.__module__ == __name__)
        return f"{PAGE}#{kind.__name__.lower()}"

    def __str__(self) -> str:
        return f"{self.text} [docs: {self.anchor}]"


class R7MailConfigError(R7MailError, ValueError):
    """The connection or a parameter is invalid. Nothing was sent."""


class R7MailRequestError(R7MailError):
    """A request failed.

    :param reason: what happened, in words
    :param method: HTTP method
    :param path: path of the endpoint, without the query string
    :param status: HTTP status, or None if there was no response
    :param attempt: number of the attempt that failed, from 1
    :param hint: what to do about it
    :param retry_after: seconds to wait according to `Retry-After` (R16), or None
    :param never_sent: True if the request certainly didn't reach the server (R23)
    """

    def __init__(
        self,
        reason: str,
        *,
        method: str,
        path: str,
        status: int | None = None,
        attempt: int = 1,
        hint: str = "",
        retry_after: float | None = None,
        never_sent: bool = False,
    ) -> None:
        self.reason = reason
        self.method = method
        self.path = path
        self.status = status
        self.attempt = attempt
        self.hint = hint
        self.retry_after = retry_after
        self.never_sent = never_sent
        response = "no response" if status is None else f"status {status}"
        text = f"{method} {path}: {reason} ({response}, attempt {attempt})"
        super().__init__(f"{text}. {hint}" if hint else text)

    def but(self, **changes: Any) -> Self:
        """Return a copy of the error with some parameters changed."""
        return type(self)(**{"reason": self.reason, **self._named(), **changes})

    def _named(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "attempt": self.attempt,
            "hint": self.hint,
            "retry_after": self.retry_after,
            "never_sent": self.never_sent,
        }

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[()]]:
        # By default, exceptions are pickled with their positional arguments only.
        return partial(type(self), self.reason, **self._named()), ()


class R7MailConnectionError(R7MailRequestError):
    """The server could not be reached, or closed the connection too early."""


class R7MailTimeoutError(R7MailConnectionError):
    """The server did not respond in time."""


class R7MailAuthError(R7MailRequestError):
    """The login was refused (R14), or a call with a token that had just been issued (R12)."""


class R7MailServerError(R7MailRequestError):
    """The server itself returned an error."""


class R7MailProxyError(R7MailRequestError):
    """Something in front of the server, such as a proxy, responded in its place (R16)."""


class R7MailResponseError(R7MailRequestError):
    """The server's response is not what the API documents."""


class R7MailActionError(R7MailRequestError):
    """The server's response to an action is not `true` (R15)."""


class R7MailSendUnclearError(R7MailRequestError):
    """Send failed, and it is unclear whether the server sent the message (R23)."""


class R7MailSendUnsettledError(R7MailSendUnclearError):
    """In addition, the Sent folder could not be read: checking it later may resolve this."""


class R7MailMessageNotFoundError(R7MailError, LookupError):
    """A message id is not in the folder."""


class R7MailAttachmentError(R7MailError):
    """Attachments could not be copied, as the attachments table says, or a file not be attached."""


class R7MailExtractError(R7MailError):
    """A window of a folder could not be read completely and exactly once."""


class R7MailBadMessageError(R7MailExtractError):
    """Messages don't fit any table. The quarantine file says which and why."""


class R7MailPublishError(R7MailExtractError):
    """A window was read, but could not be published."""
