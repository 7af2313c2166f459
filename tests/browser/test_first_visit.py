"""The page of ``composir serve`` to who sees it for the first time: what to try, what is found, what a score means."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from composir.data.images.folder import PICTURE_SUFFIXES
from composir.web import Limits, open_server

pytestmark = pytest.mark.browser

DESKTOP, PHONE = ({"width": width, "height": 740} for width in (1280, 390))
HIT = {"path": "a/large.png", "score": 0.4, "seen": "teapot; red"}


@pytest.fixture(scope="module")
def address(shapes_index) -> Iterator[str]:
    server = open_server(shapes_index, port=0, limits=Limits(max_upload_bytes=2**20))
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server.address
    server.stop()
    thread.join()


def searched(page: Page) -> None:
    expect(page.locator("#status")).to_have_text(re.compile("pictures in"))


def scaled(page: Page, *scores: float) -> None:
    """Let the server answer the next search with these scores, and with a scale for them."""
    results = [HIT | {"rank": rank, "id": f"{rank:032x}", "score": score} for rank, score in enumerate(scores, 1)]
    scale = {"may_fit": 0.3, "fits_well": 0.5}
    answer = {"results": results, "reference": None, "reading": None, "warnings": [], "scale": scale, "milliseconds": 1}
    page.route("**/api/search", lambda route: route.fulfill(json=answer), times=1)


def test_an_example_is_a_search_of_one_click(address, visit):
    page, _, complaints = visit(address, viewport=DESKTOP)
    expect(page.locator("#examples a")).to_have_count(10)
    expect(page.locator("#about")).to_contain_text("The model that answers: ")
    page.locator("#examples a").nth(3).click()
    searched(page)
    expect(page.locator("#welcome")).to_be_hidden()
    expect(page.locator("#empty")).to_be_hidden()  # or it shows through behind a picture that is no square
    page.locator(".brand").click()
    expect(page.locator("#welcome")).to_be_visible()
    assert complaints == []


def test_a_search_for_nothing_says_what_is_wanted(address, visit):
    page, _, _ = visit(address, viewport=DESKTOP)
    page.locator("#go").click()
    expect(page.get_by_role("alert")).to_contain_text("Say what you are looking for, or choose a picture")
    expect(page.locator("#text")).to_be_focused()


def test_a_file_that_is_no_picture_leaves_no_step_and_is_told_what_can_be_one(address, visit):
    page, _, _ = visit(address, viewport=DESKTOP)
    expect(page.locator("#file")).to_have_attribute("accept", ",".join(("image/*", *PICTURE_SUFFIXES)))
    page.locator(".hit").first.click()
    searched(page)
    page.fill("#text", "the same in red")
    page.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    expect(page.get_by_role("alert")).to_contain_text(" ".join(PICTURE_SUFFIXES))
    expect(page.locator("#trail")).to_be_hidden()
    expect(page.locator("#text")).to_have_value("the same in red")
    assert "upload" not in page.url


def test_scores_are_told_in_words_and_noise_is_said_to_be_noise(address, visit):
    page, _, _ = visit(address, viewport=DESKTOP)
    scaled(page, 0.6, 0.4, 0.2)
    page.fill("#text", "a teapot")
    page.press("#text", "Enter")
    searched(page)
    assert page.locator(".fit").evaluate_all("all => all.map(one => one.title)") == [
        "fits well", "may fit", "hardly fits",
    ]  # fmt: skip
    expect(page.locator("#verdict")).to_be_hidden()
    scaled(page, 0.29, 0.2)
    page.fill("#text", "a kettle")
    page.press("#text", "Enter")
    expect(page.locator("#verdict")).to_contain_text("Nothing here fits well")


def test_a_hit_is_seen_large_paged_gone_on_from_and_marked(address, visit):
    page, _, complaints = visit(address, viewport=DESKTOP)
    page.locator(".hit").first.click()
    searched(page)
    names = page.locator(".found .hit").evaluate_all("all => all.map(one => one.title)")
    page.locator(".hit").nth(1).focus()
    page.keyboard.press("v")
    viewer = page.locator("#viewer")
    expect(viewer).to_be_visible()
    expect(page.locator("#large-name")).to_have_text(names[1])
    page.keyboard.press("ArrowRight")
    expect(page.locator("#large-name")).to_have_text(names[2])
    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.suggested_filename == names[2].replace(".png", ".jpg")
    with page.expect_response("**/api/search"):
        page.locator("#more-like").click()
    expect(viewer).to_be_hidden()
    expect(page.locator("#trail li span").last).to_have_text("+1")
    page.locator(".cell").nth(1).hover()
    page.get_by_role("button", name=re.compile("See .* large")).nth(1).click()
    name = page.locator("#large-name").inner_text()
    page.locator("#go-on").click()
    expect(viewer).to_be_hidden()
    expect(page.locator("#trail li")).to_have_count(2)
    searched(page)
    assert name not in page.locator(".found .hit").evaluate_all("all => all.map(one => one.title)")
    page.locator("#status").click()
    page.keyboard.press("?")
    expect(page.locator("#help")).to_contain_text("walk over the pictures")
    assert complaints == []


def test_a_picture_is_dragged_onto_the_query_and_searches_outlive_a_reload(address, visit):
    page, _, _ = visit(address, viewport=DESKTOP)
    expect(page.locator("#earlier")).to_be_hidden()
    page.locator(".hit").nth(2).drag_to(page.locator("#frame"))
    expect(page.locator("#trail li")).to_have_count(1)
    searched(page)
    page.fill("#text", "make it blue")
    page.press("#text", "Enter")
    expect(page.locator("#earlier li")).to_have_count(2)
    page.goto("about:blank")
    page.goto(address)
    page.locator("#earlier summary").click()
    expect(page.locator("#earlier li")).to_have_count(2)
    page.locator("#earlier a").first.click()
    expect(page.locator("#text")).to_have_value("make it blue")
    searched(page)
    page.locator("#forget").click()
    expect(page.locator("#earlier")).to_be_hidden()
    assert page.evaluate("localStorage.getItem('earlier')") == "[]"


def test_nothing_moves_under_a_hand_when_the_examples_are_late(address, visit):
    page, _, _ = visit("about:blank", viewport=DESKTOP)
    held = []
    page.route("**/api/examples", lambda route, _: held.append(route))
    with page.expect_request("**/api/examples"):
        page.goto(address)
    page.wait_for_timeout(500)  # what is above the gallery is not there yet
    expect(page.locator(".hit")).to_have_count(0)
    held.pop().continue_()
    expect(page.locator(".hit").first).to_be_visible()
    expect(page.locator("#examples a")).to_have_count(10)


def test_an_example_can_be_dragged_onto_the_query(address, visit):
    page, _, _ = visit(address, viewport=DESKTOP)
    example = page.locator("#examples a").first
    picture = example.locator("img").get_attribute("src").split("/")[-1].split("?")[0]
    example.drag_to(page.locator("#frame"))
    expect(page.locator("#trail li")).to_have_count(1)
    searched(page)
    assert picture in page.url


def test_the_gallery_goes_on_when_its_end_is_near(address, visit):
    page, _, _ = visit("about:blank", viewport=DESKTOP)
    ids = [f"{number:032x}" for number in range(80)]

    def listing(route) -> None:
        start = int(route.request.url.partition("start=")[2].partition("&")[0])
        images = [{"id": one, "path": f"{one}.png"} for one in ids[start : start + 60]]
        route.fulfill(json={"total": len(ids), "start": start, "images": images})

    page.route("**/api/images?*", listing)
    page.goto(address)
    expect(page.locator(".hit")).to_have_count(60)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(page.locator(".hit")).to_have_count(80)
    expect(page.locator("#next")).to_be_hidden()


def test_on_a_phone_names_and_what_icons_mean_are_there(address, visit):
    page, _, _ = visit(address, viewport=PHONE, has_touch=True)
    page.locator(".hit").first.tap()
    searched(page)
    shown = "all => all.map(one => one.getClientRects().length && one.getBoundingClientRect().width > 20)"
    for selector in (".hit .line > :first-child", ".sources span"):
        assert all(page.locator(selector).evaluate_all(shown))
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_the_eye_is_offered_where_there_is_a_sentence(address, visit):
    page, _, _ = visit(address, viewport=DESKTOP)
    page.locator(".hit").first.click()
    searched(page)
    expect(page.locator("#look")).to_be_hidden()
    page.fill("#text", "make it blue")
    page.press("#text", "Enter")
    expect(page.locator("#look")).to_be_visible()


def answers(page: Page, *, at_most: int) -> list[int]:
    """Let searches find so many pictures, and return how many each asked for."""
    asked: list[int] = []

    def answer(route) -> None:
        asked.append(int(re.findall(r'name="top_k"\r\n\r\n(\d+)', route.request.post_data)[0]))
        results = [HIT | {"rank": rank, "id": f"{rank:032x}"} for rank in range(1, min(asked[-1], at_most) + 1)]
        found = {"results": results, "reference": None, "reading": None, "warnings": [], "scale": None}
        route.fulfill(json=found | {"milliseconds": 1})

    page.route("**/api/search", answer)
    return asked


def test_more_results_come_with_the_end_of_those_that_are_there(address, visit):
    page, _, _ = visit(address, viewport=DESKTOP)
    asked = answers(page, at_most=30)
    page.fill("#text", "a teapot")
    page.press("#text", "Enter")
    expect(page.locator(".hit")).to_have_count(24)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(page.locator(".hit")).to_have_count(30)
    expect(page.locator("#next")).to_be_hidden()
    expect(page.locator("#status")).to_contain_text("30 of 12 pictures")
    ids = page.locator(".hit img").evaluate_all("all => all.map(one => one.src)")
    assert len({one.split("?")[0] for one in ids}) == 30
    assert asked == [24, 72]


def test_a_tall_window_is_filled_though_its_end_never_left_the_view(address, visit):
    page, _, _ = visit(address, viewport={"width": 1280, "height": 9000})
    asked = answers(page, at_most=100)
    page.fill("#text", "a teapot")
    page.press("#text", "Enter")
    expect(page.locator(".hit")).to_have_count(100)
    assert asked == [24, 72, 120]
