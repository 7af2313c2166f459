"""A real browser for the tests of pages; it asks nothing of a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Return the opener of a file in a window of its own, with what the page asked for and complained of."""
    contexts = []

    def open_file(file: Path, **window) -> tuple[Page, list[str], list[str]]:
        context = chromium.new_context(**window)
        contexts.append(context)
        requests: list[str] = []
        complaints: list[str] = []
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.goto(file.as_uri())
        return page, requests, complaints

    yield open_file
    for context in contexts:
        context.close()
