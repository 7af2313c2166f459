"""The pictures of the page in README and docs: page_pictures.py [OUT_DIR] [--axe AXE_MIN_JS].

Needs chromium. It indexes the sample photographs, serves them and walks through the page as a person would, so that
the pictures are what the page is now: ``hero.webp``, two steps as a loop, and one still for each thing that the docs
tell of. With ``--axe``, the file of axe-core (``npm pack axe-core``), every state is checked by it as well, in light
and dark, wide and on a phone, in English and Chinese, and what it finds is printed and is an error.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from composir.samples import SAMPLES
from composir.search import content_id, index_folder
from composir.web import open_server

WIDE, PHONE = {"width": 1100, "height": 790}, {"width": 390, "height": 844}
HERO_WIDTH = 880
QUALITY = 80
READ_MS, GLANCE_MS, KEY_MS = 2400, 1200, 260
"""How long a state of the loop stands: to be read, to be noticed, and while something is typed."""
STEPS = (("brown-bear.jpg", "but a red panda", "red-panda.jpg"), ("red-panda.jpg", "but a raccoon", "raccoon.jpg"))
"""Reference, sentence, and what has to come first, or the loop would show something else than it says."""
WINDOWS = (
    {"viewport": WIDE, "color_scheme": "light", "locale": "en"},
    {"viewport": WIDE, "color_scheme": "dark", "locale": "zh-CN"},
    {"viewport": PHONE, "color_scheme": "dark", "locale": "en", "has_touch": True},
    {"viewport": PHONE, "color_scheme": "light", "locale": "zh-CN", "has_touch": True},
)


@contextmanager
def served() -> Iterator[str]:
    """Serve an index of the samples, and give the address once scores are told in words."""
    with tempfile.TemporaryDirectory() as folder:
        index_folder(SAMPLES, Path(folder) / "index")
        server = open_server(Path(folder) / "index", port=0)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield server.address
        finally:
            server.stop()
            thread.join()


def settled(page: Page) -> None:
    """Wait till all that is seen has been loaded and nothing moves."""
    page.wait_for_load_state("networkidle")
    page.wait_for_function("[...document.images].every(one => one.loading === 'lazy' || !one.src || one.complete)")
    page.wait_for_timeout(500)


def search(page: Page, text: str) -> None:
    """Ask with a sentence, and wait for the answer."""
    page.fill("#text", text)
    with page.expect_response("**/api/search"):
        page.press("#text", "Enter")
    settled(page)


def until_measured(page: Page, address: str) -> None:
    """Ask till the server has learned what scores mean."""
    while page.request.post(f"{address}/api/search", data={"text": "a cat", "top_k": 1}).json()["scale"] is None:
        page.wait_for_timeout(500)


def id_of(name: str) -> str:
    """Return the id of a sample."""
    return content_id((SAMPLES / name).read_bytes())


def shot(page: Page, width: int | None = None) -> Image.Image:
    """Return what is seen, at most so wide."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    if width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    return picture


def draw_loop(page: Page, address: str, file: Path) -> None:
    """Write the loop: each reference, its sentence as it is typed, what is found, and the choice of it."""
    frames: list[tuple[Image.Image, int]] = []

    def keep(milliseconds: int) -> None:
        frames.append((shot(page, HERO_WIDTH), milliseconds))

    page.goto(f"{address}/#{id_of(STEPS[0][0])}")
    settled(page)
    for place, (_, text, first) in enumerate(STEPS):
        keep(GLANCE_MS)
        words = text.split()
        for count in range(1, len(words) + 1):
            page.fill("#text", " ".join(words[:count]))
            keep(GLANCE_MS if count == len(words) else KEY_MS)
        search(page, text)
        page.mouse.move(5, 5)
        expect(page.locator(".found .hit").first).to_have_attribute("title", re.compile(first))
        keep(READ_MS)
        if place + 1 < len(STEPS):
            page.locator(".hit").first.hover()
            settled(page)
            keep(GLANCE_MS)
            page.locator(".hit").first.click()
            page.mouse.move(5, 5)
            settled(page)
    pictures, durations = zip(*frames, strict=True)
    pictures[0].save(
        file, save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=QUALITY, method=6
    )


def states(page: Page, address: str) -> Iterator[str]:
    """Bring the page from one state to the next, and name each."""
    page.goto(address)
    expect(page.locator("#examples a").first).to_be_visible()
    settled(page)
    yield "first"
    page.goto(f"{address}/#{id_of('brown-bear.jpg')}")
    settled(page)
    search(page, "but a red panda")
    yield "found"
    page.locator(".view").first.click()
    settled(page)
    yield "large"
    page.keyboard.press("Escape")
    page.locator("#clear").click()
    settled(page)
    search(page, "a fire engine")
    yield "nothing"
    page.locator("#earlier summary").click()
    settled(page)
    yield "earlier"
    page.locator("#results").focus()
    page.keyboard.press("?")
    settled(page)
    yield "help"
    page.keyboard.press("Escape")
    page.locator("#gallery").click()
    settled(page)
    page.locator("#go").click()
    settled(page)
    yield "wanted"


def check(browser: Browser, address: str, axe: str) -> list[str]:
    """Return what axe-core finds in every state in every window, a line each."""
    found = []
    for window in WINDOWS:
        page = browser.new_page(bypass_csp=True, **window)
        for state in states(page, address):
            page.evaluate(axe)
            violations = page.evaluate("axe.run(document).then(told => told.violations)")
            found += [
                f"{window['locale']}, {window['color_scheme']}, {window['viewport']['width']}, {state}: "
                f"{one['id']}: {one['nodes'][0]['html'][:120]}"
                for one in violations
            ]
        page.close()
    return found


def main() -> int:
    """Draw the pictures and check the states; return 1 where axe-core finds something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=Path("docs/images"))
    parser.add_argument("--axe", type=Path)
    arguments = parser.parse_args()
    with served() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(bypass_csp=True, **WINDOWS[0])
        until_measured(page, address)
        draw_loop(page, address, arguments.out / "hero.webp")
        for state in states(page, address):
            if state in ("first", "found", "large", "nothing"):
                shot(page).save(arguments.out / f"serve-{state}.webp", quality=QUALITY, method=6)
        phone = browser.new_page(bypass_csp=True, **WINDOWS[2])
        for state in states(phone, address):
            if state == "found":
                shot(phone).save(arguments.out / "serve-phone.webp", quality=QUALITY, method=6)
        found = check(browser, address, arguments.axe.read_text(encoding="utf-8")) if arguments.axe else []
        browser.close()
    for one in found:
        sys.stdout.write(f"{one}\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
