"""Debian's Chromium for tests: quiet, without a sandbox of its own, and signed in with a cookie."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

    from tests.site import Site

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def signed_in(browser: Browser, site: Site, user: str, **options: Any) -> BrowserContext:
    """A profile of a user's own; pages open below the site's address."""
    context = browser.new_context(base_url=site.address, **options)
    context.add_cookies([{"name": "_token", "value": site.token(user), "url": site.address}])
    context.set_default_timeout(30_000)
    return context
