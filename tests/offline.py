"""A browser that has no network, for tests of pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader"]


@contextmanager
def page_without_network() -> Iterator[Page]:
    """A page; its `asked` has the addresses of whatever it asked for."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH: install one, e.g. apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_context(offline=True).new_page()
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        yield page
        browser.close()


def from_the_network(page: Page) -> list[str]:
    """What it asked for that no file holds."""
    return [url for url in page.asked if not url.startswith(("file:", "data:", "blob:"))]
