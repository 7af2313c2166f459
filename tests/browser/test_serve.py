"""The page of ``composir serve`` as a person uses it, in a browser, on a running server."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from composir.web import Limits, open_server

pytestmark = pytest.mark.browser

DESKTOP, PHONE, SMALL_PHONE = ({"width": width, "height": 740} for width in (1280, 390, 320))
KEY = "a-key-that-nobody-guesses"


def running(index, **options) -> Iterator[str]:
    server = open_server(index, port=0, **options)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server.address
    server.stop()
    thread.join()


@pytest.fixture(scope="module")
def address(shapes_index) -> Iterator[str]:
    yield from running(shapes_index, limits=Limits(max_upload_bytes=2**20))


@pytest.fixture(scope="module")
def guarded(shapes_index) -> Iterator[str]:
    yield from running(shapes_index, api_key=KEY)


@pytest.fixture(scope="module")
def prefixed(shapes_index) -> Iterator[str]:
    yield from running(shapes_index, api_key=KEY, root_path="/pictures")


@pytest.fixture
def picture() -> dict:
    """Return a file that the index does not hold, as a person would choose it."""
    file = io.BytesIO()
    Image.effect_noise((90, 60), 50).convert("RGB").save(file, "JPEG")
    return {"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": file.getvalue()}


def found(page: Page, text: str = "") -> list[str]:
    """Return the names of what was found by the step with this text, in order, once it is there."""
    expect(page.locator("#text")).to_have_value(text)
    expect(page.locator("#status")).to_have_text(re.compile("of 12 pictures in|12 张图片中的"))
    return page.locator(".found .hit").evaluate_all("all => all.map(one => one.title)")


def shown(page: Page) -> list[str]:
    """Return names and scores of what is there."""
    return page.locator(".hit").all_inner_texts()


def search(page: Page, text: str) -> list[str]:
    page.fill("#text", text)
    with page.expect_response("**/api/search"):  # till it begins, the last search's status is there
        page.press("#text", "Enter")
    return found(page, text)


def stayed(requests: list[str], address: str) -> bool:
    return not [url for url in requests if not url.startswith((address, "data:", "blob:"))]


def test_from_an_upload_to_a_result_to_the_next_and_back(address, visit, picture):
    page, requests, complaints = visit(address, viewport=DESKTOP)
    expect(page.locator(".hit")).to_have_count(12)
    expect(page.locator("#size")).to_have_text("12 pictures")
    page.set_input_files("#file", picture)
    first = found(page)
    assert len(first) == 12  # it is not in the index, so nothing is left out
    assert page.locator("#picture").evaluate("one => one.naturalWidth") == 90
    second = search(page, "make it blue")
    page.locator(".hit", has_text=second[3]).click()
    expect(page.locator("#trail li")).to_have_count(2)
    third = found(page)
    assert len(third) == 11
    assert second[3] not in third  # the reference itself
    fourth = search(page, "and larger")
    expect(page.locator("#trail li")).to_have_count(2)  # the same picture: the same step, put more exactly
    page.go_back()
    assert found(page) == third
    page.go_forward()
    page.locator("#trail a").first.click()
    assert found(page, "make it blue") == second
    expect(page.locator("#trail li")).to_have_count(2)  # what came after is still there
    page.locator("#trail a").last.click()
    assert found(page, "and larger") == fourth
    page.reload()
    assert found(page, "and larger") == fourth
    page.locator("#trail a").first.click()
    assert found(page, "make it blue") == second  # the upload outlives a reload
    assert page.locator("img:visible").evaluate_all("all => all.every(one => one.complete && one.naturalWidth)")
    assert stayed(requests, address)
    assert complaints == []


def test_the_slider_goes_from_the_sentence_to_the_picture(address, visit):
    page, _, complaints = visit(address, viewport=DESKTOP)
    expect(page.locator("#balance")).to_be_hidden()
    page.locator(".hit").first.click()
    found(page)
    alone = shown(page)
    search(page, "a blue circle")
    composed = shown(page)
    address_before = page.url
    slider = page.get_by_role("slider", name="What counts more?")
    assert slider.input_value() == "0.5"

    def press(key):
        with page.expect_response("**/api/search"):
            slider.press(key)
        found(page, "a blue circle")
        return shown(page)

    assert alone != composed
    assert press("End") == alone
    expect(slider).to_have_attribute("aria-valuetext", "100 % towards the picture alone")
    assert press("Home") not in (alone, composed)
    expect(slider).to_have_attribute("aria-valuetext", "100 % towards the sentence alone")
    expect(slider).to_be_focused()
    press("ArrowRight")
    assert page.url.endswith("~0.05")
    page.reload()
    found(page, "a blue circle")
    assert slider.input_value() == "0.05"
    with page.expect_response("**/api/search"):
        page.goto(address_before)
    found(page, "a blue circle")
    assert shown(page) == composed
    assert slider.input_value() == "0.5"
    assert complaints == []


def test_hits_are_marked_to_be_more_or_less_like(address, visit):
    page, _, complaints = visit(address, viewport=DESKTOP)
    before = search(page, "a blue circle")
    last = page.locator(".cell").last
    last.hover()
    more = page.get_by_role("button", name=f"More like {before[-1]}")
    with page.expect_response("**/api/search"):
        more.click()
    after = found(page, "a blue circle")
    assert after.index(before[-1]) < len(before) - 1
    expect(more).to_have_attribute("aria-pressed", "true")
    expect(more).to_be_focused()
    expect(page.locator("#trail li span")).to_have_text("a blue circle, +1")
    less = page.get_by_role("button", name=f"Less like {after[0]}")
    less.focus()
    with page.expect_response("**/api/search"):
        page.keyboard.press("Enter")
    both = found(page, "a blue circle")
    expect(page.locator("#trail li span")).to_have_text("a blue circle, +1 −1")
    page.reload()
    assert found(page, "a blue circle") == both
    page.go_back()
    page.go_back()
    expect(page.locator("#trail li span")).to_have_text("a blue circle")
    assert found(page, "a blue circle") == before
    assert complaints == []


def test_what_scores_too_little_is_not_shown(address, visit):
    page, _, complaints = visit(address, viewport=DESKTOP)
    before = search(page, "a blue circle")
    scores = page.locator(".hit b").all_inner_texts()
    page.locator("#more summary").click()
    page.fill("#least", str(float(scores[4]) - 0.0005))
    page.locator("#go").click()
    expect(page.locator(".hit")).to_have_count(sum(float(one) >= float(scores[4]) for one in scores))
    assert found(page, "a blue circle") == before[: page.locator(".hit").count()]
    page.fill("#least", "1.5")
    page.locator("#go").click()
    expect(page.locator("#results p")).to_have_text(
        "No picture scores 1.5 or more. Lower the least score, or leave it out."
    )
    assert complaints == []


def test_the_address_shows_another_person_the_same(address, visit):
    page, _, _ = visit(address, viewport=DESKTOP)
    page.locator(".hit").nth(2).click()
    search(page, "50 % more, *really*! ~ / 换成红色")
    page.locator(".hit").nth(1).click()
    expect(page.locator("#trail li")).to_have_count(2)
    names = found(page)
    other, requests, complaints = visit(page.url, viewport=PHONE)
    assert found(other) == names
    assert other.locator("#trail li span").all_inner_texts() == ["50 % more, *really*! ~ / 换成红色", "similar"]
    assert stayed(requests, address)
    assert complaints == []


def test_the_gallery_comes_in_pages_and_the_link_is_copied(address, visit):
    page, _, _ = visit(address, viewport=DESKTOP, permissions=["clipboard-read", "clipboard-write"])
    expect(page.locator("#next")).to_be_hidden()
    # where nothing tells that the end is in view, the button does the same
    page.add_init_script("window.IntersectionObserver = class { observe() {} disconnect() {} }")
    page.route("**/api/images?*", lambda route: route.continue_(url=route.request.url.replace("count=60", "count=5")))
    page.reload()
    for number in (5, 10, 12):
        expect(page.locator(".hit")).to_have_count(number)
        if number < 12:
            page.locator("#next").click()
    expect(page.locator("#next")).to_be_hidden()
    assert len(set(page.locator(".hit").evaluate_all("all => all.map(one => one.title)"))) == 12
    page.locator(".hit").last.click()
    found(page)
    page.locator("#share").click()
    expect(page.locator("#status")).to_have_text("The link is copied.")
    assert page.evaluate("navigator.clipboard.readText()") == page.url


def test_a_step_whose_picture_stayed_elsewhere_says_so(address, visit):
    page, _, complaints = visit(f"{address}/#upload.7~bigger", viewport=DESKTOP)
    expect(page.get_by_role("alert")).to_contain_text("stayed on the device it came from")
    page.locator("#gallery").click()
    expect(page.locator(".hit")).to_have_count(12)
    assert complaints == []


def test_an_address_of_nonsense_shows_no_markup(address, visit):
    page, _, complaints = visit(
        f"{address}/#<img src=x onerror=alert(1)>~<b>x</b>/%ff~%3Cscript%3E!99", viewport=DESKTOP
    )
    found(page, "<script>")
    assert page.locator("#trail b, #trail script").count() == 0
    assert complaints == []


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"no picture", "not a picture that can be read"), (b"\xff\xd8\xff\xe0" + bytes(2**21), "too large")],
)
def test_a_bad_file_is_said_and_the_page_goes_on(address, visit, picture, content, words):
    page, _, complaints = visit(address, viewport=DESKTOP)
    page.set_input_files("#file", {"name": "bad.jpg", "mimeType": "image/jpeg", "buffer": content})
    expect(page.get_by_role("alert")).to_contain_text(words)
    page.set_input_files("#file", picture)
    assert len(found(page)) == 12
    expect(page.get_by_role("alert")).to_be_hidden()
    assert all("Failed to load resource" in text or "ERR_" in text for text in complaints)


def test_drop_paste_and_camera(address, visit, picture):
    page, requests, complaints = visit(address, viewport=DESKTOP, permissions=["camera"])
    expect(page.locator(".hit")).to_have_count(12)
    give = """(bytes, kind) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes.data)], "a.jpg", { type: "image/jpeg" }));
      const event = bytes.kind === "paste" ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true })
        : new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
      document.body.dispatchEvent(event);
    }"""
    for number, kind in enumerate(("drop", "paste"), 1):
        page.evaluate(give, {"data": list(picture["buffer"]), "kind": kind})
        page.wait_for_url(f"**/#upload.{number}")
        assert len(found(page)) == 12
    page.locator("#camera").click()
    page.locator("video").evaluate(
        "one => one.readyState >= 2 || new Promise(done => { one.onloadeddata = () => done(); })"
    )
    page.locator("#take").click()
    page.wait_for_url("**/#upload.3")
    assert len(found(page)) == 12
    assert page.locator("#picture").evaluate("one => one.decode().then(() => one.naturalWidth)") > 90
    assert stayed(requests, address)
    assert complaints == []


def test_the_heat_map_shows_on_hover_on_focus_and_on_a_tap(address, visit):
    page, _, complaints = visit(address, viewport=DESKTOP)
    page.locator(".hit").first.click()
    search(page, "make it blue")
    page.hover("#frame")
    expect(page.locator("#frame")).to_have_class("looking")
    expect(page.locator("#legend")).to_contain_text("The gate, from 0.")
    assert page.locator("#heat").evaluate("one => one.naturalWidth / one.naturalHeight") == pytest.approx(
        60 / 52, rel=0.01
    )
    page.hover("#status")
    expect(page.locator("#frame")).not_to_have_class("looking")
    page.locator("#text").focus()
    page.keyboard.press("Shift+Tab")
    while page.evaluate("document.activeElement.id") != "look":
        page.keyboard.press("Shift+Tab")
    expect(page.locator("#frame")).to_have_class("looking")
    page.keyboard.press("Tab")
    expect(page.locator("#frame")).not_to_have_class("looking")
    phone, _, _ = visit(page.url, viewport=PHONE, has_touch=True)
    found(phone, "make it blue")
    phone.tap("#look")
    expect(phone.locator("#frame")).to_have_class("looking")
    phone.tap("#look")
    expect(phone.locator("#frame")).not_to_have_class("looking")
    assert complaints == []


def test_a_map_of_somebody_else_s_fusion_is_called_by_its_name(address, visit):
    page, _, complaints = visit(address, viewport=DESKTOP)
    page.locator(".hit").first.click()
    search(page, "make it blue")

    def another(route) -> None:
        told = route.fetch().json()
        route.fulfill(json=told | {"map": "length"})

    page.route("**/api/heat", another)
    expect(page.locator("#look")).to_be_visible()
    page.hover("#frame")
    expect(page.locator("#legend")).to_contain_text("length: dark is 0.")
    assert complaints == []


def test_a_heat_map_stays_when_the_server_s_facts_come_after_it(address, visit):
    page, _, _ = visit(address, viewport=DESKTOP)
    page.locator(".hit").first.click()
    search(page, "make it blue")
    held = []
    page.route("**/api/health", lambda route, _: held.append(route))
    with page.expect_request("**/api/health"):
        search(page, "make it red")
    page.hover("#frame")
    expect(page.locator("#frame")).to_have_class("looking")
    with page.expect_response("**/api/health"):
        held.pop().continue_()
    page.wait_for_timeout(300)  # what the page does with them
    expect(page.locator("#frame")).to_have_class("looking")


def test_all_of_it_works_from_the_keyboard(address, visit):
    page, _, _ = visit(address, viewport=DESKTOP)
    expect(page.locator(".hit")).to_have_count(12)
    page.keyboard.press("/")
    page.keyboard.type("a blue circle")
    page.keyboard.press("Enter")
    names = found(page, "a blue circle")
    assert len(names) == 12
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.title") == names[0]
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.title") == names[1]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.title") == names[0]
    page.keyboard.press("Enter")
    expect(page.locator("#trail li")).to_have_count(2)
    assert names[0] not in found(page)


@pytest.mark.parametrize("viewport", [SMALL_PHONE, PHONE, DESKTOP], ids=["320", "390", "1280"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window_and_all_can_be_read(address, visit, viewport, scheme, low_contrasts):
    page, _, _ = visit(address, viewport=viewport, color_scheme=scheme)
    page.locator(".hit").first.click()
    text = "a very long sentence that says what should be different " * 3 + "a" * 60
    search(page, text)
    page.locator("#more summary").click()
    for _ in range(2):  # in both languages
        assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
        assert low_contrasts(page, at_least=25) == []
        page.locator("#language").click()
        found(page, text)
    assert page.evaluate("document.documentElement.lang") == "en"
    page.locator("#theme").click()
    assert low_contrasts(page, at_least=25) == []


def test_chinese_is_spoken_to_who_asks_for_it(address, visit):
    page, _, _ = visit(address, viewport=DESKTOP, locale="zh-CN")
    expect(page.locator("#go")).to_have_text("搜索")
    page.locator(".hit").first.click()
    found(page)
    assert page.evaluate("document.documentElement.lang") == "zh-Hans"
    english = page.locator("[data-t], [data-label]").evaluate_all(
        "all => all.map(one => one.dataset.label ? one.title : one.textContent).filter(text => /^[A-Za-z]/.test(text))"
    )
    assert english == []


def test_a_sentence_that_the_model_does_not_read_is_said_under_the_answer(address, visit):
    page, _, _ = visit(address, viewport=DESKTOP)
    for locale, words in (("en", "The model does not read this script"), ("zh", "模型不认识这种文字")):
        if locale == "zh":
            page.click("#language")
        search(page, "红色的狗")
        expect(page.locator("#status")).to_contain_text(words)
        search(page, "make it red")
        expect(page.locator("#status")).not_to_contain_text(words)


def test_nothing_there_and_nobody_there_are_said(address, visit):
    page, _, _ = visit(address, viewport=DESKTOP)
    page.locator("#more summary").click()
    page.fill("#where", "no/such/*")
    page.fill("#text", "x")
    page.locator("#go").click()
    expect(page.locator("#results p")).to_contain_text("No picture fits")
    page.route("**/api/search", lambda route: route.abort())
    page.fill("#text", "y")
    page.locator("#go").click()
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached")
    page.unroute("**/api/search")
    page.fill("#where", "")
    busy = {"status": 503, "headers": {"Retry-After": "1"}, "body": "{}"}
    page.route("**/api/search", lambda route: route.fulfill(**busy), times=1)
    page.fill("#text", "z")
    page.locator("#go").click()
    expect(page.locator("#status")).to_contain_text("waits its turn")
    assert len(found(page, "z")) == 12
    page.route("**/api/images?*", lambda route: route.fulfill(json={"total": 0, "start": 0, "images": []}))
    page.locator("#gallery").click()
    expect(page.locator("#results p")).to_contain_text("no pictures in this index yet")


def test_a_key_is_asked_for_once(guarded, visit):
    page, requests, _ = visit(guarded, viewport=DESKTOP)
    page.fill("#key", "wrong")
    page.press("#key", "Enter")
    expect(page.locator("#wrong")).to_be_visible()
    page.fill("#key", KEY)
    page.press("#key", "Enter")
    expect(page.locator(".hit")).to_have_count(12)
    assert page.locator(".hit img").first.evaluate("one => one.decode().then(() => one.naturalWidth)") == 60
    assert not [url for url in requests if KEY in url]
    page.reload()
    expect(page.locator(".hit")).to_have_count(12)
    expect(page.locator("#login")).to_be_hidden()


def test_the_documentation_opens_and_loads_nothing_from_elsewhere(address, visit):
    page, requests, complaints = visit(f"{address}/docs", viewport=DESKTOP)
    expect(page.locator("#operations-search-search_api_search_post")).to_be_visible()
    page.wait_for_load_state("networkidle")
    assert stayed(requests, address)
    assert complaints == []


def test_page_and_documentation_stay_below_a_prefix(prefixed, visit):
    page, requests, complaints = visit(prefixed, viewport=DESKTOP)  # without the slash at the end
    page.fill("#key", KEY)
    page.press("#key", "Enter")
    expect(page.locator(".hit")).to_have_count(12)
    assert page.locator(".hit img").first.evaluate("one => one.decode().then(() => one.naturalWidth)") == 60
    page.locator(".hit").first.click()
    page.wait_for_url(f"{prefixed}/#*")
    assert len(search(page, "make it blue")) == 11
    page.locator("nav a[href=docs]").click()
    health = page.locator("#operations-server-health_api_health_get")
    health.click()
    health.locator(".try-out__btn").click()
    health.locator(".execute").click()
    expect(health.locator(".request-url").first).to_contain_text(f"{prefixed}/api/health")
    expect(health.locator(".live-responses-table")).to_contain_text('"num_images": 12')
    elsewhere = [url for url in requests if not url.startswith((f"{prefixed}/", "data:", "blob:"))]
    assert elsewhere == [prefixed]
    assert [one for one in complaints if "401" not in one] == []
