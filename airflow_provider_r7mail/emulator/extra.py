"""The libraries of the extra ``emulator``: an error names the extra if one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def from_extra() -> Iterator[None]:
    """Import libraries of the extra in this block.

    :raises ModuleNotFoundError: if one is missing, with the command that installs it
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}. Install the emulator: pip install 'airflow-provider-r7mail[emulator]'",
            name=error.name,
        ) from error
