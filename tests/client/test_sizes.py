"""Sizes of attachments in listings: what they may mean (R26)."""

from __future__ import annotations

import base64
from email.message import EmailMessage

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_r7mail.client.sizes import least_size, size_fit


@given(st.integers(1, 5_000))
@example(57)
@example(58)
def test_the_size_in_base64_is_recognised(size: int) -> None:
    """R26: a listed size is `encoded` if it is that of the file in base64, as mail has it."""
    data = bytes(size)
    lines = base64.encodebytes(data)
    mail = EmailMessage()
    mail.set_content(data, "application", "octet-stream")
    forms = [
        base64.b64encode(data),
        lines,
        lines.rstrip(b"\n"),
        lines.replace(b"\n", b"\r\n"),
        lines.replace(b"\n", b"\r\n").rstrip(b"\r\n"),
        str(mail.get_payload()).encode(),
    ]

    assert size_fit(size, size) == "equal"
    for form in forms:
        assert size_fit(len(form), size) == "encoded"
        assert least_size(len(form)) <= size
        assert least_size(-(-len(form) // 1024) * 1024) <= size


@pytest.mark.parametrize(
    ("listed", "real", "fit"),
    [
        (2048, 1500, "rounded"),
        (2000, 1300, "rounded"),
        (1024, 1500, "rounded"),
        (3072, 1536, "rounded"),  # its base64 rounded up
        (2048, 3100, "different"),
        (1500, 1499, "different"),
        (5_242_880, 3_000_000, "different"),
        (3_000_000, 5_242_880, "different"),
    ],
)
def test_rounded_and_different_sizes(listed: int, real: int, fit: str) -> None:
    """R26: a size in whole kilobytes is `rounded`; what fits nothing is `different`."""
    assert size_fit(listed, real) == fit
