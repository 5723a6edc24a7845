"""Texts and numbers as users, templates and connections give them, checked. No I/O."""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Iterable, Mapping
from numbers import Number
from typing import Any

from airflow_provider_r7mail.exceptions import R7MailConfigError


def read_text(value: object, name: str, kind: str = "text") -> str | None:
    """Read a text. A number, which native rendering makes of digits, is taken as its text.

    :param value: the text; None for none
    :param name: the parameter's name, for the error
    :param kind: what is expected, for the error
    :raises R7MailConfigError: another type, or the text "None", which a template makes of None
    """
    if isinstance(value, Number) and not isinstance(value, bool):
        value = str(value)
    if value is not None and not isinstance(value, str):
        raise R7MailConfigError(f"{name}: expected {kind}, got {type(value).__name__}.")
    if value is not None and value.strip() == "None":
        raise R7MailConfigError(
            f'{name}: got the text "None", which a template makes of a missing value. Give {kind}, '
            "or write {{ ... or '' }} in the template if there may be none."
        )
    return value


def need_text(value: object, name: str) -> str:
    """Read a text that must be given; otherwise like `read_text`.

    :raises R7MailConfigError: likewise, or None
    """
    text = read_text(value, name)
    if text is None:
        raise R7MailConfigError(f"{name}: expected text, got None.")
    return text


def read_texts(value: object, name: str) -> tuple[str, ...]:
    """Read texts: one, a list, or the text that a template makes of a list.

    :param value: the texts; None and empty text mean none
    :param name: the parameter's name, for the error
    :raises R7MailConfigError: one of them is not a text, as in `read_text`
    """
    if isinstance(value, str) and isinstance(listed := parse_literal(value), (list, tuple)):
        value = listed
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping)):
        value = [value]
    return tuple(text for item in value if (text := read_text(item, name)))


def parse_literal(value: Any) -> Any:
    """Return what a text stands for in JSON or Python; anything else, or plain text, unchanged.

    Templates and Airflow 2's form make Python of lists.
    """
    if isinstance(value, str):
        for parse in (json.loads, ast.literal_eval):
            try:
                return parse(value.strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
    return value


def read_id(value: object) -> int | None:
    """Read an id given as a number or its text; None if it is neither."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*-?[0-9]+\s*", value) else None
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type] # also NumPy's, from DataFrames
    except TypeError:
        return None


def read_seconds(value: object, name: str) -> float:
    """Read a number of seconds.

    :param name: the parameter's name, for the error
    :raises R7MailConfigError: not a number, or negative
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise R7MailConfigError(f"{name}: got {value!r}. Give seconds, 0 or more.")
    return float(value)
