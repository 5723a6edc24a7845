"""Numbers as users, templates and connections give them, checked. No I/O."""

from __future__ import annotations

import re

from airflow_provider_r7mail.exceptions import R7MailConfigError


def read_id(value: object) -> int | None:
    """Read an id given as a number or its text; None if it is neither."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]+\s*", value):
        return int(value)
    return None


def read_seconds(value: object, name: str) -> float:
    """Read a number of seconds.

    :param name: the parameter's name, for the error
    :raises R7MailConfigError: not a number, or negative
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise R7MailConfigError(f"{name}: got {value!r}. Give seconds, 0 or more.")
    return float(value)
