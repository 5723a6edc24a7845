"""What the processes of this host know of an account: who logged in last, and a refused password.

A small file per account, in a folder that only this user can read: `r7mail` in XDG_STATE_HOME, or
`r7mail-<uid>` in the temporary folder. It contains no login, and of a refused password a salted
slow hash. Without such a folder, each process is on its own. No Airflow.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import random
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, where the CLI's checks run all the same
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

REMEMBERED_SECONDS = 600.0
"""How long a refused password is not tried again."""

DOUBTFUL_SECONDS = 60.0
"""The same, if the response may also mean that the server failed (R14)."""

TURN_SECONDS = 5.0
"""How long to wait at most for another process's login."""

_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Refused:
    """A login that was refused, and is not to be tried again for a while.

    :param since: when it was refused
    :param until: when it may be tried again
    """

    since: datetime
    until: datetime


class Account:
    """What is known of an account on this host. Logins of one account take turns.

    :param url: the server's URL
    :param login: the account's login
    :param password: the password to try
    """

    def __init__(self, url: str, login: str, password: str) -> None:
        name = hashlib.sha256(f"{url.rstrip('/')}\0{login}".encode(errors="replace")).hexdigest()
        self._name = f"{name[:32]}.json"
        self._password = password.encode(errors="replace")
        self._file: int | None = None

    def turns(self) -> Iterator[float]:
        """Yield seconds to sleep, until it is this process's turn to log in; then call `leave`."""
        self._file = _open(self._name, os.O_RDWR | os.O_CREAT)
        if self._file is None or fcntl is None:
            return
        end = time.monotonic() + TURN_SECONDS
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end:
                    return
                yield _POLL_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
            else:
                return

    def leave(self) -> None:
        """End this process's turn."""
        if self._file is not None:
            os.close(self._file)  # which unlocks it
            self._file = None

    def refused(self) -> Refused | None:
        """Return when this password was refused, None if it may be tried."""
        found = self._read().get("refused")
        if not isinstance(found, Mapping):
            return None
        try:
            since, until = float(found["since"]), float(found["until"])
            salt, digest = bytes.fromhex(found["salt"]), str(found["hash"])
            # A clock that was set back must not lock anybody out.
            if not time.time() < until < time.time() + 2 * REMEMBERED_SECONDS:
                return None
            if not hmac.compare_digest(digest, self._hash(salt)):
                return None
            return Refused(_utc(since), _utc(until))
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    def remember_refusal(self, seconds: float) -> None:
        """Record in this process's turn that the password was refused.

        :param seconds: how long it is not to be tried again
        """
        salt, now = os.urandom(16), time.time()
        refused = {
            "since": now,
            "until": now + seconds,
            "salt": salt.hex(),
            "hash": self._hash(salt),
        }
        self._write({**self._read(), "refused": refused})

    def begin_session(self) -> str:
        """Record in this process's turn that it logs in; return a name for the session."""
        session = uuid.uuid4().hex
        self._write({**self._read(), "session": session})
        return session

    def forget_refusal(self) -> None:
        """Record in this process's turn that the password works."""
        known = self._read()
        if known.pop("refused", None) is not None:
            self._write(known)

    def has_later(self, session: str) -> bool:
        """Whether another session was begun after this one (R36)."""
        latest = self._read().get("session")
        return latest is not None and latest != session

    def _hash(self, salt: bytes) -> str:
        return hashlib.scrypt(self._password, salt=salt, n=1 << 13, r=8, p=1).hex()

    def _read(self) -> dict[str, Any]:
        file = _open(self._name, os.O_RDONLY)
        if file is None:
            return {}
        try:
            with os.fdopen(file, "rb") as stream:
                known = json.loads(stream.read())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _write(self, known: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(known).encode(), 0)
        except OSError as error:
            log.debug("The state of the account can't be written: %s", error)


def _open(name: str, flags: int) -> int | None:
    """Open a file of the folder; None if there is none, or others might have put it there."""
    try:
        path = _folder() / name
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:
        log.debug("The state of the account can't be read or written: %s", error)
        return None


def _folder() -> Path:
    """Return the folder, made if needed.

    :raises OSError: it can't be made, or isn't this user's alone
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    base = os.environ.get("XDG_STATE_HOME")
    folder = Path(base, "r7mail") if base else Path(tempfile.gettempdir(), f"r7mail-{user}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or (
        hasattr(os, "getuid") and (found.st_uid != user or found.st_mode & 0o077)
    ):
        raise PermissionError(f"{folder} is not a folder that only this user can access")
    return folder


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
