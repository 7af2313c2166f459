from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from composir.errors import ComposirError
from composir.evaluation import Cell, Row, contact_sheet, grid, rank
from composir.evaluation.sheet import (
    CAPTION_HEIGHT,
    GAP,
    HEADING_HEIGHT,
    HIT_COLOUR,
    MARGIN,
    MISS_COLOUR,
    ROW_GAP,
    SENTENCE_WIDTH,
    THUMBNAIL,
)

WHITE = (255, 255, 255)
SENTENCE_LEFT = MARGIN + THUMBNAIL + GAP
CELLS_LEFT = SENTENCE_LEFT + SENTENCE_WIDTH + GAP
NUM_IMAGES = 60


def left_of(cell: int) -> int:
    return CELLS_LEFT + cell * (THUMBNAIL + GAP)


def top_of(row: int) -> int:
    return MARGIN + HEADING_HEIGHT + row * (THUMBNAIL + CAPTION_HEIGHT + ROW_GAP)


def width_of(num_cells: int) -> int:
    return left_of(num_cells) - GAP + MARGIN


def height_of(num_rows: int) -> int:
    return top_of(num_rows) - ROW_GAP + MARGIN


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "blue.png"
    Image.new("RGB", (20, 20), "blue").save(path)
    return path


@pytest.fixture
def make_ranking(make_split, make_query, picture):
    """Make a ranking of descending scores g0, g1, ..., one query for each target."""

    def make(targets, **rules):
        queries = [
            make_query(100 + number, "g59", [f"g{target}"], ["g0", f"g{target}"])
            for number, target in enumerate(targets)
        ]
        split = make_split(queries, NUM_IMAGES, **rules)
        split = dataclasses.replace(split, images=dict.fromkeys(split.gallery, picture))
        return rank(torch.linspace(1, 0, NUM_IMAGES).repeat(len(queries), 1), split)

    return make


def has_frame(sheet, cell, row, colour, extra=0):
    corner = (left_of(cell) + extra + 1, top_of(row) + 1)
    return sheet.getpixel(corner) == ImageColor.getrgb(colour)


def test_the_target_is_framed_in_green(make_ranking, tmp_path):
    contact_sheet([make_ranking([2, 9])], tmp_path / "new" / "sheet.png")
    sheet = Image.open(tmp_path / "new" / "sheet.png")
    assert sheet.size == (width_of(10), height_of(2))
    framed = [(row, cell) for row in range(2) for cell in range(10) if has_frame(sheet, cell, row, HIT_COLOUR)]
    assert framed == [(0, 2), (1, 9)]
    assert sheet.getpixel((left_of(0) + THUMBNAIL // 2, top_of(0) + THUMBNAIL // 2)) == (0, 0, 255)
    assert sheet.getpixel((MARGIN + THUMBNAIL // 2, top_of(1) + THUMBNAIL // 2)) == (0, 0, 255)


@pytest.mark.parametrize("target", [10, 49, 55])
def test_a_missed_target_stands_at_the_end_in_a_dashed_red_frame(make_ranking, tmp_path, target):
    contact_sheet([make_ranking([target])], tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size == (width_of(11) + 2 * GAP, height_of(1))
    assert has_frame(sheet, 10, 0, MISS_COLOUR, extra=2 * GAP)
    assert not any(has_frame(sheet, cell, 0, colour) for cell in range(10) for colour in (HIT_COLOUR, MISS_COLOUR))
    upper_edge = [sheet.getpixel((left_of(10) + 2 * GAP + x, top_of(0) + 1)) == WHITE for x in range(THUMBNAIL)]
    assert 0.3 < np.mean(upper_edge) < 0.5  # dashed: red at both ends, white between the dashes


def captions_drawn(monkeypatch):
    captions = []
    monkeypatch.setattr(
        "composir.evaluation.sheet.grid",
        lambda rows, path: captions.extend([cell.caption for cell in row.cells] for row in rows),
    )
    return captions


def test_captions_give_rank_and_score(monkeypatch, make_ranking, tmp_path):
    captions = captions_drawn(monkeypatch)
    contact_sheet([make_ranking([0, 13, 55])], tmp_path / "sheet.png")
    # Scores fall from 1 by 1/59: the first three are 1, 0.983 and 0.966, the fourteenth is 1 - 13/59 = 0.780.
    assert captions[0][:3] == ["1  ·  1.000", "2  ·  0.983", "3  ·  0.966"]
    assert [len(row) for row in captions] == [10, 11, 11]
    assert captions[1][-1] == "target at 14  ·  0.780"
    assert captions[2][-1] == "target at 56"


def test_a_hidden_test_query_has_no_frame_and_no_extra_image(make_split, make_query, picture, tmp_path):
    split = make_split([make_query(0, "g0", [])], 4)
    split = dataclasses.replace(split, images=dict.fromkeys(split.gallery, picture))
    contact_sheet([rank(torch.zeros(1, 4), split)], tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size == (width_of(3), height_of(1))  # the reference is left out, the gallery has no more
    assert not any(has_frame(sheet, cell, 0, HIT_COLOUR) for cell in range(3))


def rows_drawn(monkeypatch):
    notes = []
    monkeypatch.setattr("composir.evaluation.sheet.grid", lambda rows, path: notes.append([row.note for row in rows]))
    return notes


def test_queries_are_drawn_with_the_seed(monkeypatch, make_ranking, tmp_path):
    notes = rows_drawn(monkeypatch)
    ranking = make_ranking(range(30))
    for seed in (0, 0, 1):
        contact_sheet([ranking], tmp_path / "sheet.png", num_queries=8, seed=seed)
    assert notes[0] == notes[1] != notes[2]
    assert len(set(notes[0])) == 8
    assert notes[0] == sorted(notes[0])
    contact_sheet([ranking], tmp_path / "sheet.png", num_queries=1000)
    assert len(notes[-1]) == 30


def test_queries_are_chosen_by_id_in_every_category(monkeypatch, make_ranking, tmp_path):
    notes = rows_drawn(monkeypatch)
    rankings = [make_ranking([0, 1], dataset="FashionIQ", category=category) for category in ("dress", "shirt")]
    contact_sheet(rankings, tmp_path / "sheet.png", query_ids=["101", "100"])
    assert notes == [["dress 101", "shirt 101", "dress 100", "shirt 100"]]


def test_an_unknown_query_is_an_error(make_ranking, tmp_path):
    with pytest.raises(ComposirError) as error:
        contact_sheet([make_ranking([0, 1])], tmp_path / "sheet.png", query_ids=["100", "7"])
    assert str(error.value) == "CIRR val: no query '7'; expected one of 2 ids such as '100'"


def test_a_grid_without_rows_is_an_error(tmp_path):
    with pytest.raises(ComposirError, match=r"sheet\.png: there is no row to draw; expected at least one query"):
        grid([], tmp_path / "sheet.png")


def test_pictures_keep_their_aspect(tmp_path):
    wide = tmp_path / "wide.png"
    Image.new("RGB", (400, 200), "red").save(wide)
    grid([Row(wide, "is wide", ())], tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    column = [sheet.getpixel((MARGIN + THUMBNAIL // 2, top_of(0) + y)) for y in range(THUMBNAIL)]
    line = [sheet.getpixel((MARGIN + x, top_of(0) + THUMBNAIL // 2)) for x in range(THUMBNAIL)]
    assert line.count((255, 0, 0)) == 2 * column.count((255, 0, 0)) > THUMBNAIL * 0.9
    assert column.index((255, 0, 0)) == column[::-1].index((255, 0, 0))  # in the middle


@pytest.mark.parametrize("sentence", ["makes the dress longer and " * 40, "x" * 900, "", "is red"])
def test_the_sentence_stays_in_its_column(picture, tmp_path, sentence):
    grid([Row(picture, sentence, (Cell(picture, "1", "orange"),))], tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))[top_of(0) :]
    column = pixels[:, SENTENCE_LEFT : SENTENCE_LEFT + SENTENCE_WIDTH]
    assert (column[THUMBNAIL:] == 255).all()
    assert (pixels[:, SENTENCE_LEFT + SENTENCE_WIDTH : CELLS_LEFT] == 255).all()
    assert (column[:THUMBNAIL] < 255).any() == bool(sentence)
    assert tuple(pixels[1, CELLS_LEFT + 1]) == ImageColor.getrgb("orange")


def test_a_long_caption_stays_under_its_picture(picture, tmp_path):
    grid(
        [Row(picture, "", (Cell(picture, "W" * 40), Cell(picture, "")), note="W" * 40)],
        tmp_path / "sheet.png",
    )
    captions = np.asarray(Image.open(tmp_path / "sheet.png"))[top_of(0) + THUMBNAIL :]
    for left in (MARGIN, left_of(0)):
        assert (captions[:, left : left + THUMBNAIL] < 255).any()
        assert (captions[:, left + THUMBNAIL : left + THUMBNAIL + GAP] == 255).all()


@pytest.mark.parametrize("letter", "éüßçøñłЖя–—…·’“")
def test_letters_beyond_ascii_are_drawn(picture, tmp_path, letter):
    sheets = []
    for sentence in (letter, "\uffff"):  # the second is no letter: a font draws its box for the unknown
        grid([Row(picture, sentence, ())], tmp_path / "sheet.png")
        sheets.append(np.asarray(Image.open(tmp_path / "sheet.png")))
    assert (sheets[0] != sheets[1]).any()
