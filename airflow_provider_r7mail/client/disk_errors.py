"""What a failed call of the server's Disk means, and what to do about it. No I/O, no Airflow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow_provider_r7mail.client.disk import NOT_HERE, PATHS, UPLOAD
from airflow_provider_r7mail.client.upload import File
from airflow_provider_r7mail.exceptions import R7MailProxyError, R7MailRequestError

_NOBODY = "the Disk API does not answer at this address"
_NO_ACCESS = (
    "Check that the account has the Disk module, and that disk_folder of the connection, if set, "
    "is the id of a folder that it may write to."
)
_OTHER_SERVER = (
    "Check that disk_url of the connection is of the same installation as Host, and that the "
    "account has the Disk module."
)
_NO_CONNECTION = "Check disk_url of the connection or, if it is not set, Host, and the proxy."
_BROKEN = (
    "The server, or a proxy in front of it, may limit the size of files or the time of requests: "
    "check their logs."
)
NO_ROOM = (
    "The account's quota may be used up, the file too large, or the folder not writable: check the "
    "Disk in the web client."
)
_TOO_LARGE = "Have the limit raised on the server and the proxy, or send links in place of files."


@contextmanager
def clear_errors(file: File | None = None, *, then: str = "") -> Iterator[None]:
    """Say of a failed call of the Disk what it means and what to do.

    :param file: the file that is being uploaded
    :param then: what the failure leads to
    """
    try:
        yield
    except R7MailRequestError as error:
        if error.path not in PATHS:  # the login
            raise
        reason, hint = _meaning(error)
        if file is not None:
            reason = f"{file.source.where} could not be attached: {reason}"
        raise error.but(reason=reason, hint=f"{hint} {then}".strip()) from error


def _meaning(error: R7MailRequestError) -> tuple[str, str]:
    """Return what a failed call of the Disk means, and what to do."""
    status = error.status
    uploading = error.path == UPLOAD
    gateway = {407, 429, 502, 503, 504}
    by_web_server = isinstance(error, R7MailProxyError) and status not in gateway
    refused = f"the Disk refused it: {error.reason}"
    meanings = (
        (error.never_sent, error.reason, _NO_CONNECTION),
        (uploading and status is None, error.reason, _BROKEN),
        (status == 401, "the Disk does not accept the token of the mail server", _OTHER_SERVER),
        (status == 413, "the file is too large for the server, or for a proxy", _TOO_LARGE),
        (status in {404, 405} or (by_web_server and status == 200), _NOBODY, NOT_HERE),
        (uploading and (by_web_server or status in {400, 403, 406, 500, 507}), refused, NO_ROOM),
        (status in {403, 406}, "the Disk, or its folder, is not accessible", _NO_ACCESS),
        (by_web_server, _NOBODY, NOT_HERE),
        (True, error.reason, error.hint),
    )
    return next((reason, hint) for applies, reason, hint in meanings if applies)
