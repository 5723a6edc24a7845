"""Fixtures for tests that run with either client."""

from __future__ import annotations

import pytest

from tests.client.clients import Kind


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Return which client to use."""
    found: Kind = request.param
    return found
