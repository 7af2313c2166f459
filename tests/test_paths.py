"""Paths that lead nowhere: what is near, and what to do."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from composir.errors import ComposirError
from composir.paths import near_path, require_index, require_picture, require_pictures


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Holiday").mkdir()
    for name in ("beach.jpg", unicodedata.normalize("NFD", "café.png")):
        Image.new("RGB", (4, 4)).save(tmp_path / "Holiday" / name)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("Holiday/beach.jpg", "Holiday/beach.jpg"),
        ("holiday/BEACH.jpg", "Holiday/beach.jpg"),
        ("Holiday/beach.jpeg", "Holiday/beach.jpg"),
        ("Holiday/café.png", unicodedata.normalize("NFD", "Holiday/café.png")),
        ("Holidai", "Holiday"),
        ("Holidai/beach.jpg", None),  # which of several slips it is, nobody can tell
        ("Holiday/x.gif", None),
        ("no/where", None),
    ],
)
def test_the_path_that_was_most_likely_meant(here, given, near):
    assert near_path(Path(given)) == (None if near is None else Path(near))
    assert near_path(here / given) == (None if near is None else here / near)


def test_a_picture_that_is_not_there(here):
    require_picture(Path("Holiday/beach.jpg"))
    for given, words in (
        ("no.png", "no.png: no such image file; fix: check the path"),
        ("holiday/beach.jpg", "holiday/beach.jpg: no such image file; fix: did you mean 'Holiday/beach.jpg'?"),
        (
            "https://a.org/b.png",
            "https://a.org/b.png: is an address, and a file is wanted; fix: download it, then give",
        ),
    ):
        with pytest.raises(ComposirError) as caught:
            require_picture(Path(given))
        assert str(caught.value).startswith(words)


def test_a_folder_that_is_no_index(here):
    for given, words in (
        (
            "Holiday",
            "Holiday: is a folder of pictures, not its index; fix: composir index Holiday --out Holiday.index ma",
        ),
        (
            "nothing",
            "nothing: is not an index: it has no index.json; fix: composir index PICTURES --out nothing makes it",
        ),
    ):
        with pytest.raises(ComposirError) as caught:
            require_index(Path(given))
        assert str(caught.value).startswith(words)
    (here / "Holiday.index").mkdir()
    (here / "Holiday.index/index.json").write_text("{}")
    for given, words in (
        ("Holiday", "fix: give its index, Holiday.index"),
        ("holiday.index", "fix: did you mean 'Holiday.index'?"),
    ):
        with pytest.raises(ComposirError) as caught:
            require_index(Path(given))
        assert str(caught.value).endswith(words)
    require_index(Path("Holiday.index"))


@pytest.mark.parametrize(
    ("suffix", "fix"),
    [
        (".dng", "export the .dng files as JPEG"),
        (".jxl", "export the .jxl files as JPEG"),
        (".txt", "give the folder that the pictures are in"),
    ],
)
def test_a_folder_without_pictures_says_what_is_there_by_suffix(here, suffix, fix):
    (here / "other").mkdir()
    (here / "other" / f"one{suffix}").touch()
    with pytest.raises(ComposirError) as caught:
        require_pictures(here / "other", is_new=True)
    assert f"holds no picture that is read (files: 1 {suffix}); expected files that end in .jpg" in str(caught.value)
    assert str(caught.value).endswith(f"fix: {fix}")
    require_pictures(here / "other", is_new=False)  # an index that is there says what it misses
    require_pictures(here / "Holiday", is_new=True)
