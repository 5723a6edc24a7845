"""Chromium without a screen: for the tests of pages, and for the pictures in the docs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
_SWITCHES = (
    "--no-sandbox",  # needs no rights that a container lacks; it sees our own servers only
    "--disable-gpu",
    "--disable-quic",
    # It would look for its maker's servers.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium(*switches: str) -> Iterator[Browser]:
    """The installed Chromium, running.

    :param switches: more of its command line.
    :raises pytest.skip.Exception: there is none; a test is skipped then.
    """
    # Imported here: the processes that fork from a test's must not pay for it. Not installed beside
    # Airflow's own constraints.
    pytest.importorskip("playwright", reason="playwright is not installed: `pip install .[dev]`.")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("No Chromium is installed: `make browser` does that, as root.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=[*_SWITCHES, *switches], chromium_sandbox=False
        )
        try:
            yield browser
        finally:
            browser.close()
