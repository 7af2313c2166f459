"""A real browser for the tests of pages; it asks nothing of a network."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

expect.set_options(timeout=30_000)  # for machines with much else to do; nothing is slower by it

ARGUMENTS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
"""A camera that needs no asking and shows a test picture."""


MIN_CONTRAST = 4.5
"""WCAG 2.1, criterion 1.4.3 (AA), for text of ordinary size."""

# Every piece of text that can be seen, with its contrast to what is behind it.
CONTRASTS = """() => {
  const numbers = colour => colour.match(/[0-9.]+/g).map(Number);
  const luminance = colour => {
    const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = numbers(colour).map(v => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (numbers(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const front = luminance(element.closest("svg") ? style.fill : style.color), back = luminance(behind(element));
    const contrast = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    found.push([walker.currentNode.data.trim().slice(0, 40), contrast]);
  }
  return found;
}"""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Return the opener of a file or address in a window of its own, with what the page asked for and complained of."""
    contexts = []

    def open_page(place: Path | str, **window) -> tuple[Page, list[str], list[str]]:
        context = chromium.new_context(**window)
        contexts.append(context)
        requests: list[str] = []
        complaints: list[str] = []
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.goto(place.as_uri() if isinstance(place, Path) else place)
        return page, requests, complaints

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def low_contrasts() -> Callable[..., list[tuple[str, float]]]:
    """Return the reader of what on a page is hard to read, of ``at_least`` so many pieces of text."""

    def find(page: Page, *, at_least: int) -> list[tuple[str, float]]:
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) >= at_least
        return [(text, contrast) for text, contrast in contrasts if contrast < MIN_CONTRAST]

    return find
