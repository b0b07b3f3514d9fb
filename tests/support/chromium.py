"""A headless Chromium, driven by Playwright, and what a page does in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import LONG_S

ARGUMENTS = [
    "--no-sandbox",  # containers, and root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
RULES = Path(__file__).with_name("accessibility.js").read_text()


def start() -> Iterator[Any]:
    """A running browser with a profile of its own; without one the test is skipped, or fails in GitHub's workflow."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("Playwright is not installed: pip install --constraint constraints.txt playwright")
    with sync_playwright() as driver:
        found = os.environ.get("CVAEOPT_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
        found = found or driver.chromium.executable_path
        if not Path(found).exists():
            missing("no Chromium: apt install chromium, or python -m playwright install chromium")
        browser = driver.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


def missing(what: str) -> None:
    """Skip the test that needs it; in the GitHub workflow nothing may be missing."""
    if os.environ.get("GITHUB_ACTIONS"):
        pytest.fail(what)
    pytest.skip(what)


@dataclass
class Visit:
    """One tab and everything that should not have happened in it.

    complaints   what the console was told, exceptions, requests that failed
    requests     the URLs that were asked for, without what is in the page itself (data:)
    """

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def broken_pictures(self) -> list[str]:
        """The pictures that are not there, after each had its chance to load."""
        found: list[str] = self.page.evaluate(
            """async () => {
                const pictures = [...document.images];
                await Promise.all(pictures.map((one) => one.decode().catch(() => null)));
                return pictures.filter((one) => !one.naturalWidth).map((one) => one.src.slice(0, 99));
            }"""
        )
        return found

    def overflow_px(self) -> int:
        """By how much the page is wider than its window, pixels."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))

    def barriers(self) -> list[str]:
        """What keeps people from reading the page, by the rules of accessibility.js."""
        found: list[str] = self.page.evaluate(RULES)
        return found


@contextmanager
def visit(browser: Any, *, width: int = 1280, dark: bool = False) -> Iterator[Visit]:
    """A new tab, `width` pixels wide."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", service_workers="block"
    )
    context.set_default_timeout(LONG_S * 1000)
    seen = Visit(context.new_page())
    seen.page.on("console", lambda said: said.type in ("error", "warning") and seen.complaints.append(said.text))
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("requestfailed", lambda request: seen.complaints.append(f"failed: {request.url[:99]}"))
    seen.page.on("response", lambda got: got.status >= 400 and seen.complaints.append(f"{got.status}: {got.url}"))
    seen.page.on("request", lambda asked: asked.url.startswith("data:") or seen.requests.append(asked.url))
    try:
        yield seen
    finally:
        context.close()
