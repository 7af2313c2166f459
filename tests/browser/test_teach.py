"""From a page's searches to a head and back to the page: what was meant is marked, learned and found."""

from __future__ import annotations

import json
import re
import threading

import pytest
from playwright.sync_api import Page, expect

from composir.web import open_server

pytestmark = pytest.mark.browser

DESKTOP = {"width": 1280, "height": 740}
MEANT = [
    (f"val-{colour}-{shape}.png", f"val-blue-{shape}.png")
    for shape in ("ellipse", "rectangle")
    for colour in ("red", "green", "yellow", "purple")
]
"""Names of references and of what "make it blue" means for them."""


@pytest.fixture
def address(shapes_index, tmp_path):
    """Return the address of a server that keeps choices, and takes a head as soon as there is one."""
    server = open_server(shapes_index, port=0, model=tmp_path / "taught", record=tmp_path / "choices.jsonl")
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server.address
    server.stop()
    thread.join()


def ask(page: Page, reference: str) -> list[str]:
    """Search from a picture of the gallery, and return the names of what is found, best first."""
    page.locator("#gallery").click()
    expect(page.locator(".hit")).to_have_count(12)
    page.get_by_role("link", name=f"Start from {reference}").click()
    expect(page.locator("#status")).to_have_text(re.compile("11 of 12 pictures in"))
    page.fill("#text", "make it blue")
    with page.expect_response("**/api/search"):
        page.press("#text", "Enter")
    expect(page.locator("#trail li span")).to_have_text("make it blue")
    expect(page.locator("#status")).to_have_text(re.compile("11 of 12 pictures in"))
    return page.locator(".found .hit").evaluate_all("all => all.map(one => one.title)")


def test_what_is_marked_is_learned_and_found(address, shapes_index, visit, run, tmp_path):
    head, choices = tmp_path / "taught", tmp_path / "choices.jsonl"
    page, _, complaints = visit(address, viewport=DESKTOP)
    expect(page.locator("#records")).to_contain_text("kept in a file of this server")
    before = {}
    for number, (reference, target) in enumerate(MEANT, 1):
        before[reference] = ask(page, reference)
        page.locator(".cell", has_text=target).hover()
        meant = page.get_by_role("button", name=f"This is what I meant: {target}")
        meant.click()
        expect(meant).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#status")).to_have_text("Kept. What was meant teaches the model at its next training.")
        assert len(choices.read_text().splitlines()) == number
    row = json.loads(choices.read_text().splitlines()[0])
    assert set(row) == {"reference", "text", "target", "subset"}
    assert len(row["subset"]) == 11

    flags = ("--num-epochs", 60, "--learning-rate", 0.01, "--output-dir", tmp_path / "models", "--cache", "memory")
    code, out, err = run("train", "--from-feedback", choices, shapes_index, "--out", head, *flags)
    assert code == 0, err
    assert f"best: {head}" in out

    for reference, target in MEANT[::3]:
        after = ask(page, reference)
        assert after.index(target) < min(2, before[reference].index(target))
    expect(page.locator("#about")).to_contain_text("a head (joint) on ")
    page.locator("#language").click()
    expect(page.locator("#records")).to_contain_text("写入此服务器上的一个文件")
    assert complaints == []


def test_only_what_a_line_can_say_is_offered(address, visit):
    page, _, _ = visit(address, viewport=DESKTOP)
    names = ask(page, "val-red-ellipse.png")
    button = page.get_by_role("button", name=f"This is what I meant: {names[0]}")
    expect(button).to_have_count(1)
    page.locator("#more summary").click()
    page.fill("#without", "a circle")
    with page.expect_response("**/api/search"):
        page.locator("#go").click()
    expect(page.locator("#trail li span")).to_have_text("make it blue, without a circle")
    expect(page.locator("#status")).to_have_text(re.compile("11 of 12 pictures in"))
    expect(page.get_by_role("button", name="This is what I meant")).to_have_count(0)
