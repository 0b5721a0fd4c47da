"""A page in a headless browser: its content, its requests and its drawings."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: make browser")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PHONE, DESKTOP = 390, 1400

UNDRAWN = """() => [...document.querySelectorAll("[data-figure]")].filter((box) => {
  const marks = box.querySelectorAll(
    ".plot .points path, .plot .point path, .plot .lines path, .plot .fills path, .heatmaplayer image");
  return ![...marks].some((mark) => {
    const { width, height } = mark.getBoundingClientRect();
    return width + height > 4 && (mark.tagName === "image" || mark.getAttribute("d"));
  });
}).map((box) => box.dataset.figure)"""
"""The figures without a visible mark."""

HIDDEN_LABELS = """() => [...document.querySelectorAll("[data-figure]")].flatMap((box) =>
  [...box.querySelectorAll(".xtick text, .ytick text")].filter((text) => {
    const [a, b] = [text.getBoundingClientRect(), box.getBoundingClientRect()];
    return a.left < b.left - 1 || a.right > b.right + 1;
  }).map((text) => `${box.dataset.figure}: ${text.textContent}`))"""
"""Tick labels that stick out of their figure."""


@dataclass
class Seen:
    """An open page."""

    page: Any
    troubles: list[str] = field(default_factory=list)
    """Errors, dialogs, and requests for anything but the page itself."""

    @property
    def undrawn(self) -> list[str]:
        return list(self.page.evaluate(UNDRAWN))

    @property
    def overflow(self) -> int:
        """Pixels that the page is wider than the window."""
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(self.page.evaluate(wide))


@contextmanager
def opened(path: Path, width: int) -> Iterator[Seen]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET, timeout=0)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(0)  # the timeout of the test is the only one
        seen = Seen(page)
        note = seen.troubles.append
        page.on("console", lambda said: note(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: note(str(error)))
        page.on("requestfailed", lambda request: note(f"failed: {request.url[:200]}"))
        page.on("dialog", lambda dialog: (note(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                None
                if request.url == path.as_uri() or request.url.startswith(("data:", "blob:"))
                else note(f"asked for {request.url[:200]}")
            ),
        )
        try:
            page.goto(path.as_uri())
            page.wait_for_function("document.body.dataset.drawn === 'all'")
            yield seen
        finally:
            browser.close()
