"""The picture: rows of one size whatever the number of sentences, one scale for all of them, and what is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from composir.models.checkpoint import from_pretrained
from composir.style import colours
from composir.visualize import MAPS, Answer, Hit, answer, draw, drawing, gallery_of_folder
from composir.visualize.answers import in_words

TEXTS = ["make it green", "the large yellow star at the bottom right should be smaller and of another colour", "red"]


@pytest.fixture(scope="module")
def answers(checkpoint, shapes_root):
    image = shapes_root / "dev/val-red-ellipse.png"
    return answer(from_pretrained(checkpoint), image, TEXTS, gallery=gallery_of_folder(shapes_root / "dev"))


@pytest.fixture
def sheets(monkeypatch):
    """The sheets that were drawn, with what was written on them and where."""
    drawn = []
    real = drawing.Sheet.write

    def write(sheet, at, text, size, **options):
        vars(sheet).setdefault("written", []).append((at, text, size))
        real(sheet, at, text, size, **options)

    monkeypatch.setattr(drawing.Sheet, "write", write)
    monkeypatch.setattr(drawing.Sheet, "save", lambda sheet, out: drawn.append(sheet))
    return drawn


def test_rows_have_one_size_whatever_the_number_of_sentences(answers, image, sheets, tmp_path):
    for some in (answers[:1], answers[:2], answers):
        draw(image, some, tmp_path / "map.png")
    one, two, three = (sheet.image for sheet in sheets)
    assert one.width == two.width == three.width
    assert sheets[0].row_height <= sheets[1].row_height == sheets[2].row_height  # as the longest sentence needs
    assert three.height - two.height == sheets[2].row_height
    tops = [sheets[2].panel(row, cell)[1] for row in range(3) for cell in range(3)]
    assert np.diff(tops).tolist() == [0, 0, sheets[2].row_height, 0, 0, sheets[2].row_height, 0, 0]


def test_nothing_that_is_written_is_over_something_else(answers, image, sheets, tmp_path):
    for every_map in (False, True):
        draw(image, answers, tmp_path / "map.png", every_map=every_map)
        sheet = sheets[-1]
        panels = [
            (*sheet.panel(row, cell), drawing.PANEL)
            for row in range(3)
            for cell in range(1 + sum(one.main or every_map for one in MAPS if one.key != "text_attention"))
        ]
        boxes = [
            (*at, at[0] + drawing.font(size).getlength(text), at[1] + size) for at, text, size in sheet.written if text
        ]
        for left, top, right, bottom in boxes:
            assert right <= sheet.image.width
            assert bottom <= sheet.image.height
            for x, y, side in panels:
                assert right <= x or left >= x + side or bottom <= y or top >= y + side
        for place, (left, top, right, bottom) in enumerate(boxes):
            for x0, y0, x1, y1 in boxes[:place]:
                assert right <= x0 or left >= x1 or bottom <= y0 or top >= y1


def test_two_maps_are_drawn_unless_all_are_asked_for(answers, image, sheets, tmp_path):
    draw(image, answers[:1], tmp_path / "map.png")
    draw(image, answers[:1], tmp_path / "map.png", every_map=True)
    some, every = ({text for _, text, _ in sheet.written} for sheet in sheets)
    titles = {one.title: one.main for one in MAPS if one.key != "text_attention"}
    assert {title for title in titles if title in some} == {title for title, main in titles.items() if main}
    assert titles.keys() <= every
    assert len([title for title, main in titles.items() if main]) == 2


def test_a_map_has_one_scale_for_all_sentences(answers, image, sheets, tmp_path, monkeypatch):
    used = []
    real = drawing.heat
    monkeypatch.setattr(
        drawing,
        "heat",
        lambda square, values, limits, table: used.append(limits) or real(square, values, limits, table),
    )
    draw(image, answers, tmp_path / "map.png")
    assert len(used) == 6
    for place, one in enumerate([one for one in MAPS if one.main]):
        high = max(one.values(shown.trace).max() for shown in answers)
        assert used[place::2] == [(0, pytest.approx(high))] * 3
        ends = [text for _, text, _ in sheets[0].written].count(f"{high:.{one.digits}f}")
        assert ends == 3  # written at each of its bars


def test_no_number_is_on_a_patch(answers, image, sheets, tmp_path):
    """On a white picture each patch is of one colour; the transform crops at the sides."""
    width, height = Image.open(image).size
    Image.new("RGB", (width, height), "white").save(tmp_path / "white.png")
    draw(tmp_path / "white.png", answers[:1], tmp_path / "map.png")
    scale, (x, y) = drawing.PANEL / width, sheets[0].panel(0, 1)
    left, top, right, bottom = answers[0].trace.box
    assert left > 0 == top
    shift = (drawing.PANEL - scale * height) / 2
    edge = (x + scale * left, y + shift, x + scale * right, y + shift + scale * bottom)
    square = np.asarray(sheets[0].image.crop(tuple(map(round, edge))))
    step = len(square) // 3
    for row in range(3):
        for column in range(3):
            patch = square[row * step + 6 : (row + 1) * step - 6, column * step + 6 : (column + 1) * step - 6]
            assert (np.ptp(patch.reshape(-1, 3).astype(int), axis=0) <= 3).all()


def test_the_right_answer_is_framed(answers, image, sheets, tmp_path):
    (hits,) = [answers[0].rankings["with the fusion"]]
    marked = Answer(
        "red", answers[0].trace, answers[0].target,
        {"with the fusion": (Hit(hits[0].name, hits[0].source, 0.5, True), *hits[1:]), "without the fusion": hits},
    )  # fmt: skip
    draw(image, [marked], tmp_path / "map.png")
    frames = [
        (place, way)
        for way in range(2)
        for place in range(5)
        if sheets[0].image.getpixel(corner_of_hit(sheets[0], way, place)) == rgb(colours()["right"])
    ]
    assert frames == [(0, 0)]


def corner_of_hit(sheet, way, place):
    top = sheet.corner(0, 0)[1] + way * (29 + drawing.THUMBNAIL + 26 + 24) + 29 + 6
    return sheet.cells_right + place * (drawing.THUMBNAIL + drawing.THUMBNAIL_GAP) + 2, top + 2


def rgb(colour):
    return tuple(int(colour[place : place + 2], 16) for place in (1, 3, 5))


def hits_of(names, right=""):
    return tuple(Hit(name, Path(name), 0.5, name == right) for name in names)


@pytest.mark.parametrize(
    ("new", "old", "right", "words"),
    [
        ("abc", "bca", "", "Both ways find the same pictures."),
        ("abc", "bcd", "", "1 of the best 3 is there only with the fusion."),
        (
            "abcz", "zxab", "z",
            "2 of the best 3 are there only with the fusion. The right answer, framed in green, is number 4 with the "
            "fusion and number 1 without the fusion.",
        ),
    ],
)  # fmt: skip
def test_two_rankings_are_told_in_words(new, old, right, words):
    ways = {"with the fusion": hits_of(new, right), "without the fusion": hits_of(old, right)}
    assert in_words(ways, 3) == words
    assert in_words(dict(reversed(ways.items())), 3).startswith(words[:20])


def test_one_ranking_is_told_in_words():
    assert (
        in_words({"as trained": hits_of("ab", "b")}, 3) == "The right answer, framed in green, is number 2 as trained."
    )
    assert in_words({"as trained": hits_of("ab")}, 3) == "The best first, with their scores."
