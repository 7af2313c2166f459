"""The one look: colours that any eye tells apart, letters that fit, names that are not written over each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from composir.style import LINES, colours, fitted, font, spread, wrapped

SIGHT = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
"""Linear RGB as seen: Machado, Oliveira and Fernandes (2009), severity 1."""
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour):
    parts = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    xyz = TO_XYZ @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
def test_lines_are_told_apart_with_any_colour_vision(sight):
    seen = {name: lab(np.array(SIGHT[sight]) @ linear(colours()[name])) for name in LINES}
    for one, other in itertools.combinations(LINES, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 10, (one, other)  # 2.3 is just noticeable


@pytest.mark.parametrize("dark", [False, True])
def test_letters_have_the_contrast_that_is_asked_for_small_text(dark):
    own = colours(dark=dark)
    page, *letters = (TO_XYZ[1] @ linear(own[name]) for name in ("page", "text", "faint", "right"))
    for one in letters:
        low, high = sorted((one, page))
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_light_and_dark_have_the_same_names():
    assert colours().keys() == colours(dark=True).keys()
    assert not any(colours()[name] == colours(dark=True)[name] for name in ("page", "text", "composed"))


FAR = (-100.0, 100.0)


def test_names_move_apart_about_their_mean_and_no_further():
    assert spread([1.0, 5.0], 1.0, FAR) == [1.0, 5.0]
    assert spread([1.0, 1.2], 1.0, FAR) == pytest.approx([0.6, 1.6])
    assert spread([1.0, 1.2, 2.0], 1.0, FAR) == pytest.approx([0.4, 1.4, 2.4])  # the third is pushed, too: mean 1.4
    values = sorted(np.random.default_rng(0).uniform(0, 3, 12))
    assert np.diff(spread(values, 0.5, FAR)).min() == pytest.approx(0.5)
    assert np.mean(spread(values, 0.5, FAR)) == pytest.approx(np.mean(values))


def test_names_stay_within_the_panel():
    assert spread([9.8, 9.9, 10.0], 1.0, (0, 10)) == pytest.approx([8, 9, 10])
    assert spread([0.0, 0.1, 7.0], 1.0, (0, 10)) == pytest.approx([0, 1, 7])


def test_text_is_no_wider_than_asked_and_says_where_it_was_cut():
    letters = font(20)
    text = "the large yellow star at the bottom right should be smaller"
    lines = wrapped(text, letters, 200, 9)
    assert " ".join(lines) == text
    assert max(map(letters.getlength, lines)) <= 200
    assert wrapped(text, letters, 200, 2)[1].endswith("…")
    assert letters.getlength(fitted(text, letters, 120)) <= 120
    assert fitted("short", letters, 120) == "short"
