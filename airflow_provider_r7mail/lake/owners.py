"""Tell whether the process that left a file behind has ended, even on a disk that hosts share."""

from __future__ import annotations

import hashlib
import os
import socket
from functools import cache
from pathlib import Path


def own_mark() -> str:
    """Return a mark of this process, to be written into what only it may remove."""
    return f"{_id_space()}-{os.getpid()}"


def has_ended(mark: str) -> bool:
    """Return whether a process has certainly ended; False if this host can't know.

    `flock` isn't used, since on many network disks other hosts don't see its locks.
    """
    space, _, number = mark.partition("-")
    if space != _id_space() or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it is another user's, or no process id
        return False
    return False


@cache
def _id_space() -> str:
    """Return what is the same only for processes that see each other's ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        space = f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115
    except OSError:  # not Linux, so there are no containers
        space = socket.gethostname()
    return hashlib.sha256(space.encode()).hexdigest()[:16]
