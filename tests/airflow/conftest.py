"""What the tests that involve Airflow share."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
from airflow.providers.common.compat.sdk import redact


@pytest.fixture(autouse=True)
def _own_secrets() -> Iterator[None]:
    """Secrets that a test masks are masked in that test only.

    Airflow compiles all of them into one pattern at each new one: in the end, that takes longer
    than the test.
    """
    masker = importlib.import_module(redact.__module__)._secrets_masker()
    patterns, replacer = set(masker.patterns), masker.replacer
    yield
    masker.patterns, masker.replacer = patterns, replacer
