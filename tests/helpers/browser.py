"""A real browser for pages: headless Chromium, driven by Playwright."""

import shutil

import pytest


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
]
"""Options with which Chromium asks nothing of its makers."""

PATIENCE = 90_000
"""Milliseconds that a page may take: two cores may have other work."""

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def browser():
    """Chromium, with a new and empty profile."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra 'browser'")
    api.expect.set_options(timeout=PATIENCE)
    with api.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *QUIET])
        yield chromium
        chromium.close()
