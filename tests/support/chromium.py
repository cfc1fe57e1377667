"""Chromium: a headless browser for tests of what is drawn. They skip without one."""

from __future__ import annotations

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


# Scope: playwright runs an event loop, which must end with the module.
@pytest.fixture(scope="module")
def browser():
    """Playwright's browser, driving the Chromium of this machine."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        found = [path for name in NAMES if (path := shutil.which(name))]
        if not found and os.path.exists(playwright.chromium.executable_path):
            found = [playwright.chromium.executable_path]
        if not found:
            pytest.skip(f"no Chromium on this machine: looked for {', '.join(NAMES)}")
        # Chromium's sandbox refuses to start for root, which tests in containers often are.
        is_root = hasattr(os, "geteuid") and os.geteuid() == 0
        arguments = ["--no-sandbox"] if is_root else []
        running = playwright.chromium.launch(executable_path=found[0], args=arguments)
        yield running
        running.close()
