"""The diagrams of the docs: as the script draws them, and to be read on a phone, light and dark."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from composir.style import colours, font

ROOT = Path(__file__).parents[1]
SVG = "{http://www.w3.org/2000/svg}"


def load_script():
    spec = importlib.util.spec_from_file_location("diagrams", ROOT / "scripts/diagrams.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script()


@pytest.mark.parametrize("name", SCRIPT.DIAGRAMS)
def test_a_diagram_in_the_docs_is_the_one_that_the_script_draws(name):
    drawn = SCRIPT.DIAGRAMS[name]().svg()
    assert (ROOT / "docs/images" / name).read_text(encoding="utf-8") == drawn, "run python scripts/diagrams.py"
    pages = [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]
    assert any(f"images/{name}" in page.read_text(encoding="utf-8") for page in pages)


@pytest.mark.parametrize("name", SCRIPT.DIAGRAMS)
def test_words_are_within_their_boxes_and_large_enough_for_a_phone(name):
    tree = ElementTree.fromstring(SCRIPT.DIAGRAMS[name]().svg())
    width, height = float(tree.get("width")), float(tree.get("height"))
    sizes = [int(size) for size in re.findall(r"(\d+)px", tree.find(f"{SVG}style").text)]
    assert min(sizes) * 360 / width > 11  # pixels on a phone that is 360 wide
    boxes = [
        tuple(float(box.get(key)) for key in ("x", "y", "width", "height"))
        for box in tree.iter(f"{SVG}rect")
        if box.get("class") != "page"
    ]
    texts = list(tree.iter(f"{SVG}text"))
    assert texts
    for text in texts:
        x, y, kind = float(text.get("x")), float(text.get("y")), text.get("class")
        long = font(SCRIPT.SMALL if kind == "small" else SCRIPT.LETTERS, bold=kind == "strong").getlength(text.text)
        assert 0 < y < height
        if text.get("text-anchor") == "start":
            assert x + long <= width, text.text
            continue
        around = [box for box in boxes if box[0] <= x <= box[0] + box[2] and box[1] <= y <= box[1] + box[3]]
        assert len(around) == 1, text.text
        assert long <= around[0][2] - 6, text.text


def test_boxes_do_not_overlap():
    for make in SCRIPT.DIAGRAMS.values():
        boxes = [
            [float(box.get(key)) for key in ("x", "y", "width", "height")]
            for box in ElementTree.fromstring(make().svg()).iter(f"{SVG}rect")
            if box.get("class") != "page"
        ]
        for place, (x, y, wide, high) in enumerate(boxes):
            for other_x, other_y, other_wide, other_high in boxes[:place]:
                beside = x + wide <= other_x or other_x + other_wide <= x
                assert beside or y + high <= other_y or other_y + other_high <= y


def test_a_diagram_follows_light_and_dark():
    drawn = SCRIPT.gate().svg()
    assert (
        drawn.index(colours()["text"])
        < drawn.index("prefers-color-scheme: dark")
        < drawn.rindex(colours(dark=True)["text"])
    )
