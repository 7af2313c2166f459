from __future__ import annotations

import json

import pytest

from composir.data import oacirr
from composir.data.annotations import SplitNotFoundError
from composir.data.triplets import Query

ANNOTATIONS = "OACIRR-Subset/OACIRR-Car/oacirr-car"


@pytest.fixture
def root(make_root, tmp_path):
    return make_root("OACIRR", tmp_path / "OACIRR")


def test_a_whole_root(root):
    splits = oacirr.load(root.parent, "val")
    assert [split.category for split in splits] == ["fashion", "car", "product", "landmark"]
    assert splits[1].queries == (
        Query("0", "car-a1", "at a3", ("at a3",), ("car-a3", "car-a2"), group="a"),
        Query("1", "car-b1", "at b2", ("at b2",), ("car-b2",), group="b"),
    )
    assert splits[1].gallery == tuple(f"car-{name}" for name in ("a1", "a2", "a3", "b1", "b2"))
    assert splits[1].images["car-a1"] == root / "OACIRR-Subset/OACIRR-Car/val/a/car-a1.jpg"
    assert splits[1].exclude_reference


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reference": ...}, "key 'reference' is missing"),
        ({"target": "car-a9"}, "target 'car-a9' is not in split.val.json"),
        ({"modification_text_mllm": None}, "'modification_text_mllm' is null (None), expected text"),
    ],
)
def test_a_broken_entry(root, change, problems_of, fields, message):
    change(root / ANNOTATIONS / "quadruple_captions/caption_full.val.json", **fields)
    (problem,) = problems_of(oacirr.load, root, "val")
    assert (problem.where, problem.message) == ("entry 0", message)
    assert problem.fix


def test_a_path_without_a_folder_names_no_instance(root, problems_of):
    file = root / ANNOTATIONS / "image_splits/split.val.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"car-b2": "car-b2.jpg", "x": 3}))
    messages = [problem.message for problem in problems_of(oacirr.load, root, "val")]
    assert messages[:2] == [
        "the path 'car-b2.jpg' has no folder, which names the instance",
        "'path' is a whole number (3), expected text",
    ]


def test_another_instance_is_noted(root, change):
    change(root / ANNOTATIONS / "quadruple_captions/caption_full.val.json", reference="car-b1")
    splits = oacirr.load(root, "val", categories=["car"])
    assert [note.message for note in splits[0].notes] == ["the reference shows 'b', the target 'a'"]
    assert splits[0].queries[0].targets == ("car-a3", "car-a1", "car-a2")


def test_a_split_that_is_not_there(root):
    with pytest.raises(SplitNotFoundError, match="the train split of OACIRR is not in this data root"):
        oacirr.load(root, "train")
