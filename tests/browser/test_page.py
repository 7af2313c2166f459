"""The report page as a person has it: opened from disk in a browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from composir.data.triplets import Query, Split
from composir.evaluation import KINDS, measure, rank, write_page

pytestmark = pytest.mark.browser

DESKTOP, PHONE, SMALL_PHONE = ({"width": width, "height": 740} for width in (1280, 360, 320))
SENTENCES = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "换成红色的裙子，而且更长，并且在白色背景上显示两只狗而不是一只猫",
    "اجعلها حمراء وأطول",
    "plus élégante – façon « années 20 » 👗",
    "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen" * 4,
    "is red and has longer sleeves",
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page of a result with every part on it: one picture is missing, sentences are of many scripts."""
    folder = tmp_path_factory.mktemp("report")
    gallery = tuple(f"dev-{number}-0-img{number % 2}" for number in range(40))
    rng = np.random.default_rng(0)
    images = {}
    for number, name in enumerate(gallery):
        images[name] = folder / f"{name}.png"
        Image.fromarray(rng.integers(0, 256, (30, 30 + 4 * number, 3), np.uint8)).save(images[name])
    images[gallery[7]] = folder / "missing.png"
    queries = []
    for number in range(24):
        first = 6 * (number % 4)
        members = gallery[first : first + 6]
        queries.append(
            Query(
                id=str(number),
                reference=members[number % 6],
                text=SENTENCES[number % len(SENTENCES)],
                texts=(),
                targets=(members[(number + 1) % 6],),
                subset=tuple(name for name in members if name != members[number % 6]),
            )
        )
    split = Split("CIRR", "val", "", tuple(queries), gallery, images, "original", True, "as annotated")
    generator = torch.Generator().manual_seed(0)
    scores = {kind: torch.randn(24, 40, generator=generator) for kind in KINDS}
    for row in range(12):
        scores["composed"][row, gallery.index(queries[row].targets[0])] = 9.0
    rankings = {kind: [rank(similarity, split)] for kind, similarity in scores.items()}
    return write_page(measure(rankings, weights_hash="0123456789abcdef", num_resamples=50), folder / "page")


def test_it_opens_from_disk_and_asks_for_nothing(report, visit):
    page, requests, complaints = visit(report, viewport=DESKTOP)
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    page.mouse.wheel(0, 20_000)
    page.wait_for_load_state("networkidle")
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    assert complaints == []
    sizes = page.locator("img").evaluate_all("all => all.map(one => one.complete && one.naturalWidth)")
    assert len(sizes) > 100
    assert all(sizes)


def test_markup_in_a_sentence_is_only_text(report, visit):
    page, requests, complaints = visit(report, viewport=DESKTOP)
    assert page.locator("p.sentence", has_text="alert(1)").first.inner_text() == SENTENCES[0]
    assert page.locator("script").count() == 0
    assert not [url for url in requests if url.endswith("/x")]
    assert complaints == []


def test_the_policy_would_stop_a_script_and_a_request(report, visit, tmp_path):
    """Show that the policy works: the same page with what it forbids put in."""
    hostile = "<script>document.title = 'run'</script><img src='https://example.org/x.png'><p style='color: red'>x</p>"
    (tmp_path / "hostile.html").write_text(report.read_text(encoding="utf-8").replace("</main>", hostile + "</main>"))
    page, _, complaints = visit(tmp_path / "hostile.html", viewport=DESKTOP)
    assert page.title().startswith("CIRR val")
    stopped = [text for text in complaints if "Content Security Policy" in text]
    assert len(stopped) == 3
    assert len([text for text in stopped if "https://example.org/x.png" in text]) == 1


@pytest.mark.parametrize("viewport", [SMALL_PHONE, PHONE, DESKTOP], ids=["320", "360", "1280"])
def test_nothing_is_wider_than_the_window(report, visit, viewport):
    page, _, _ = visit(report, viewport=viewport)
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    edges = page.locator("p.sentence, figure, h1, h2, h3, h4, .tile").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect()).map(box => [box.left, box.right])"
    )
    assert all(0 <= left < right <= viewport["width"] for left, right in edges)


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_text_can_be_read_in_light_and_in_dark(report, visit, low_contrasts, scheme, is_dark):
    page, _, _ = visit(report, viewport=DESKTOP, color_scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(background.removeprefix("rgb(").split(",")[0])
    assert (red < 64) == is_dark
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert low_contrasts(page, at_least=500) == []


def test_it_is_walked_by_key(report, visit):
    page, _, _ = visit(report, viewport=PHONE)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the figures"
    box = page.locator("a.skip").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    page.keyboard.press("Enter")
    assert page.url.endswith("#figures")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.ariaLabel") == "Table of all figures"
    page.keyboard.press("ArrowRight")
    for _ in range(100):  # scrolling is smooth; the page's policy forbids playwright's own way of waiting
        if page.evaluate("document.activeElement.scrollLeft"):
            break
        page.wait_for_timeout(50)
    assert page.evaluate("document.activeElement.scrollLeft") > 0


def test_it_needs_no_javascript(report, visit):
    page, _, complaints = visit(report, viewport=DESKTOP, java_script_enabled=False)
    assert page.locator("article.query").count() == 20
    assert page.locator("svg.plot polyline").count() == 3
    page.get_by_text("The curves as a table").click()
    assert page.get_by_role("region", name="Table of the curves").is_visible()
    assert complaints == []
