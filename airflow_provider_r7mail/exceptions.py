"""The error tree. No I/O, no Airflow.

R7MailError
├── R7MailConfigError (ValueError)       the connection or a parameter is wrong; nothing was sent
├── R7MailRequestError                   a request failed; has method, path, status, attempt
│   ├── R7MailConnectionError            the server could not be reached, or hung up
│   │   └── R7MailTimeoutError           it did not answer in time
│   ├── R7MailAuthError                  the login or the token was refused
│   ├── R7MailServerError                the server failed (500), or refused (403, 404, 405, 406)
│   ├── R7MailProxyError                 something in front of the server answered
│   ├── R7MailResponseError              an answer that is not as agreed
│   ├── R7MailActionError                the server answered an action with anything but `true`
│   └── R7MailSendUnclearError           unclear whether a message was sent: look first
│       └── R7MailSendUnsettledError     nor could the Sent folder be read: try again later
├── R7MailMessageNotFoundError (LookupError)  a message id is not in the folder
├── R7MailAttachmentError                attachments could not be copied
└── R7MailExtractError                   the window could not be read, whole and once
    ├── R7MailBadMessageError            messages that no table can hold
    └── R7MailPublishError               the result could not be put in its place

Messages name the method, path, status, attempt and what to do, and end with the place in the
documentation that has the causes and the ways out. They never hold a body, a token, an address or
a subject: they end up in logs that more people read than the mailbox.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self

PAGE = "when-it-goes-wrong"
"""The page of the documentation, in every language, that has a section for each class here."""


class R7MailError(Exception):
    """Base of every error this package raises by itself."""

    @property
    def text(self) -> str:
        """The message without its place in the documentation: for use in another message."""
        return super().__str__()

    @property
    def anchor(self) -> str:
        """Its place in the documentation: page and section."""
        kind = next(kind for kind in type(self).__mro__ if kind.__module__ == __name__)
        return f"{PAGE}#{kind.__name__.lower()}"

    def __str__(self) -> str:
        return f"{self.text} [docs: {self.anchor}]"


class R7MailConfigError(R7MailError, ValueError):
    """The connection or a parameter is wrong. Nothing was sent."""


class R7MailRequestError(R7MailError):
    """A request failed.

    :param reason: what happened, in words
    :param method: the HTTP method
    :param path: the endpoint's path, without its query string
    :param status: the HTTP status, or None where there was no answer
    :param attempt: the number of the attempt that failed, from 1
    :param hint: what to do about it
    :param retry_after: seconds that the answer's `Retry-After` asked to wait (R16)
    :param never_sent: True where the request surely never reached the server (R23)
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
        answer = "no answer" if status is None else f"status {status}"
        text = f"{method} {path}: {reason} ({answer}, attempt {attempt})"
        super().__init__(f"{text}. {hint}" if hint else text)

    def but(self, **changes: Any) -> Self:
        """The same error with something changed: `reason`, or any other parameter."""
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
        # Exceptions are pickled by their positional arguments, of which there is one only.
        return partial(type(self), self.reason, **self._named()), ()


class R7MailConnectionError(R7MailRequestError):
    """The server could not be reached, or hung up before its answer was whole."""


class R7MailTimeoutError(R7MailConnectionError):
    """The server did not answer in time."""


class R7MailAuthError(R7MailRequestError):
    """The login was refused (R14), or a call was refused with a token just issued (R12)."""


class R7MailServerError(R7MailRequestError):
    """The server answered with an error of its own."""


class R7MailProxyError(R7MailRequestError):
    """A proxy in front of the server answered in its place (R16)."""


class R7MailResponseError(R7MailRequestError):
    """The server's answer is not what the API documents."""


class R7MailActionError(R7MailRequestError):
    """The server answered an action with something other than `true` (R15)."""


class R7MailSendUnclearError(R7MailRequestError):
    """Send failed in a way that leaves open whether the server acted (R23)."""


class R7MailSendUnsettledError(R7MailSendUnclearError):
    """Besides, the Sent folder could not be read: a later look there may settle it."""


class R7MailMessageNotFoundError(R7MailError, LookupError):
    """A message id is not in the folder."""


class R7MailAttachmentError(R7MailError):
    """Attachments could not be copied; the attachments table says which and why."""


class R7MailExtractError(R7MailError):
    """A window of a folder could not be read whole and once."""


class R7MailBadMessageError(R7MailExtractError):
    """Messages that the tables cannot hold; the quarantine file says which and why."""


class R7MailPublishError(R7MailExtractError):
    """A finished extract could not be put in its place."""
