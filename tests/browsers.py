"""A real headless Chromium. Without one tests are skipped at a desk, and fail in CI."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

PLACE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser, closed at the end."""
    if PLACE is None:
        reason = "expected chromium on the path, got none: apt-get install chromium"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=PLACE, args=["--no-sandbox"])
        yield found
        found.close()
