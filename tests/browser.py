"""benchmarks/browser.py for tests, which are skipped where there is no Chromium."""

import pytest

from benchmarks import browser


def find_chromium() -> str:
    """Its path; skips the test where there is none."""
    try:
        return browser.find_chromium()
    except browser.NoBrowserError as error:
        pytest.skip(str(error))


class Browser(browser.Browser):
    def __enter__(self) -> "Browser":
        find_chromium()
        super().__enter__()
        return self
