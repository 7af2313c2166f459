from __future__ import annotations

import pytest

from composir.data import load_splits, pinpoint
from composir.data.annotations import SplitNotFoundError
from composir.data.check import without_missing_images
from composir.data.triplets import Query
from composir.errors import ComposirError


@pytest.fixture
def root(make_root, tmp_path):
    return make_root("PinPoint", tmp_path / "PinPoint")


def test_a_whole_root(root):
    (split,) = pinpoint.load(root, "test")
    assert [(query.id, query.text, query.group) for query in split.queries] == [
        ("12.0", "in red", "12"),
        ("12.1", "make it red", "12"),
        ("12.2", "the same, but red", "12"),
        ("s-2.0", "larger", "s-2"),
        ("s-2.1", "bigger", "s-2"),
    ]
    assert split.queries[0] == Query(
        "12.0",
        "r.jpg",
        "in red",
        ("in red",),
        ("b.jpg", "c.jpg"),
        aspects=("dresses",),
        group="12",
        negatives=("d.jpg", "e.jpg"),
        further_references=("a.jpg",),
    )
    assert split.queries[0].references == ("r.jpg", "a.jpg")
    assert split.queries[4].negatives == split.queries[4].aspects == ()
    assert "r.jpg" not in split.gallery
    assert split.images["r.jpg"] == root / "images/r.jpg"
    assert (split.gallery_rule, split.exclude_reference) == ("original", True)


@pytest.mark.parametrize(
    ("fields", "where", "message"),
    [
        ({"id": ...}, "entry 0", "key 'id' is missing"),
        ({"id": "s-2"}, "entry 1", "the id is repeated"),
        ({"reference_images": []}, "id 12", "'reference_images' is empty"),
        ({"reference_images": ["r.jpg", "r.jpg"]}, "id 12", "reference_images[1] repeats 'r.jpg'"),
        ({"instructions": []}, "id 12", "'instructions' is empty"),
        ({"instructions": ["a", 3]}, "id 12", "'instructions[1]' is a whole number (3), expected text"),
        ({"positives": []}, "id 12", "'positives' is empty"),
        ({"positives": ["z.jpg"]}, "id 12", "positives[0] 'z.jpg' is not in gallery.json"),
        ({"negatives": ...}, "id 12", "key 'negatives' is missing"),
        ({"negatives": ["r.jpg"]}, "id 12", "negatives[0] 'r.jpg' is not in gallery.json"),
        ({"negatives": ["b.jpg"]}, "id 12", "'b.jpg' is among the positives and the negatives"),
        ({"category": " "}, "id 12", "'category' is empty (' ')"),
    ],
)
def test_a_broken_query(root, change, problems_of, fields, where, message):  # noqa: PLR0917
    change(root / "queries.json", **fields)
    (problem,) = problems_of(pinpoint.load, root, "test")
    assert (problem.where, problem.message) == (where, message)
    assert problem.fix


def test_a_right_answer_that_is_a_reference_is_noted(root, change):
    change(root / "queries.json", positives=["a.jpg"])
    assert [note.message for note in pinpoint.load(root, "test")[0].notes] == [
        "the right answer 'a.jpg' is also a reference"
    ]


def test_what_is_not_there(root, tmp_path):
    with pytest.raises(SplitNotFoundError, match="PinPoint has no split 'val'"):
        pinpoint.load(root, "val")
    with pytest.raises(ComposirError, match=r"no queries.json file in it|no such folder"):
        pinpoint.load(tmp_path / "other", "test")


def test_a_query_goes_with_any_of_its_references_and_negatives(root):
    (root / "images").mkdir()
    for name in "abcdfgh":
        (root / f"images/{name}.jpg").write_bytes(b"x")
    splits, _ = without_missing_images(pinpoint.load(root, "test"))  # r.jpg and the negative e.jpg are not there
    assert [query.group for query in splits[0].queries] == ["s-2", "s-2"]


def test_val_union_keeps_what_queries_name(root):
    (split,) = load_splits("PinPoint", root, "test", gallery="val-union", annotations_only=True)
    assert split.gallery == tuple(f"{name}.jpg" for name in "abcdegh")
