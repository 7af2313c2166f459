"""Small pictures are made while an index is, and the index is the same with and without them."""

from __future__ import annotations

import io
import sqlite3

import numpy as np
import pytest
from PIL import Image

from composir.data.images.files import content_id
from composir.search import Retriever, index_folder
from composir.search.thumbnails import MAX_THUMBNAIL_BYTES, THUMBNAILS, Thumbnails, make_thumbnail


def size_of(jpeg: bytes | None) -> tuple[int, int]:
    assert jpeg is not None
    with Image.open(io.BytesIO(jpeg)) as picture:
        assert picture.format == "JPEG"
        return picture.size


@pytest.mark.parametrize(("size", "expected"), [((1600, 800), (320, 160)), ((100, 300), (100, 300))])
def test_a_thumbnail_is_small_and_never_enlarged(size, expected):
    assert size_of(make_thumbnail(Image.new("RGB", size, "red"))) == expected


def test_noise_which_no_jpeg_makes_small_stays_within_the_bytes():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (700, 700, 3), np.uint8))
    assert len(make_thumbnail(noise)) <= MAX_THUMBNAIL_BYTES


@pytest.fixture
def pictures(tmp_path):
    """Return a folder of a large picture and of a small JPEG."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (900, 600), "red").save(folder / "large.png")
    Image.new("RGB", (90, 60), "blue").save(folder / "small.jpg")
    return folder


def test_a_run_makes_them_once_and_forgets_those_of_pictures_that_are_gone(shapes_index, pictures, tmp_path):
    index, model = tmp_path / "index", shapes_index.parent / "model"
    index_folder(pictures, index, model=model)
    kept = Thumbnails(index)
    large = content_id((pictures / "large.png").read_bytes())
    small = content_id((pictures / "small.jpg").read_bytes())
    assert size_of(kept.get(large)) == (320, 213)
    assert kept.get(small) is None  # the model needs less of a JPEG than a thumbnail does: it may be decoded smaller
    kept.put({large: b"mine"})
    index_folder(pictures, index)
    assert kept.get(large) == b"mine"
    (pictures / "large.png").unlink()
    index_folder(pictures, index)
    assert kept.get(large) is None


def test_the_vectors_are_the_same_byte_for_byte_without_them(shapes_index, pictures, tmp_path, monkeypatch):
    model = shapes_index.parent / "model"
    index_folder(pictures, tmp_path / "with", model=model)
    monkeypatch.setattr("composir.search.embedding.make_thumbnail", lambda picture: None)
    index_folder(pictures, tmp_path / "without", model=model)
    files = [next((tmp_path / name).glob("vectors-*.f16")).read_bytes() for name in ("with", "without")]
    assert files[0] == files[1]
    assert not (tmp_path / "without" / THUMBNAILS).exists()


def test_a_full_file_takes_no_more_and_keeps_what_it_has(tmp_path, monkeypatch):
    kept = Thumbnails(tmp_path)
    kept.put({"a": b"first"})
    monkeypatch.setattr("composir.search.thumbnails.MAX_FILE_BYTES", (tmp_path / THUMBNAILS).stat().st_size)
    kept.put({"b": b"second"})
    assert (kept.get("a"), kept.get("b")) == (b"first", None)


def test_a_file_that_is_no_database_is_as_if_not_there(tmp_path):
    index = tmp_path / "index"
    index.mkdir()
    (index / THUMBNAILS).write_bytes(b"no database " * 100)
    kept = Thumbnails(index)
    kept.put({"a": b"b"})
    kept.drop(["a"])
    assert kept.get("a") is None
    with pytest.raises(sqlite3.DatabaseError), sqlite3.connect(index / THUMBNAILS) as database:
        database.execute("SELECT * FROM thumbnails")


def test_files_are_told_to_be_as_they_were_by_size_and_times(shapes_index, pictures, tmp_path):
    index_folder(pictures, tmp_path / "index", model=shapes_index.parent / "model")
    file = pictures / "large.png"
    image_id = content_id(file.read_bytes())
    with Retriever(tmp_path / "index") as retriever:
        assert [one.name for one in retriever.images.unchanged(image_id)] == ["large.png"]
        file.write_bytes(b"x" + file.read_bytes()[1:])
        assert list(retriever.images.unchanged(image_id)) == []
        file.unlink()
        assert list(retriever.images.unchanged(image_id)) == []
