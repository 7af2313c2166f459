from __future__ import annotations

import pytest

from composir.data import mtfashioniq
from composir.data.annotations import SplitNotFoundError


@pytest.fixture
def root(make_root, tmp_path):
    return make_root("MT-FashionIQ", tmp_path / "MultiturnFashionRetrieval")


def test_a_whole_root(root):
    splits = mtfashioniq.load(root, "val")
    assert [split.category for split in splits] == ["dress", "shirt", "toptee"]
    assert [(one.id, one.group, one.reference, one.targets, one.text) for one in splits[0].queries] == [
        ("0.1", "0", "dress0", ("dress4",), "Is red and has a bow"),
        ("0.2", "0", "dress1", ("dress4",), "Longer and blue"),
        ("1.1", "1", "dress3", ("dress2",), "Is darker and short"),
        ("1.2", "1", "dress0", ("dress2",), "Is darker and short"),
        ("1.3", "1", "dress1", ("dress2",), "Is darker and short"),
    ]
    assert splits[0].gallery == tuple(f"dress{number}" for number in range(5))
    assert splits[0].images["dress2"] == root / "images/dress2.jpg"
    assert (splits[0].exclude_reference, splits[0].text_rule) == (False, "captions of the round")


def test_rounds_of_one_or_three_captions_are_noted(root, change):
    rounds = [["u", ["is red"], "dress0"], ["u", ["a", "b", " "], "dress4"]]
    change(root / "data/dress.val.json", reference=rounds)
    splits = mtfashioniq.load(root, "val", categories=["dress"])
    assert [query.text for query in splits[0].queries[:2]] == ["Is red", "A and b and "]
    assert [note.message for note in splits[0].notes] == [
        "a round has 1 captions, where others have 2",
        "a round has 3 captions, where others have 2",
        "'reference[1][1][2]' is blank (' ')",
        "the target is also the reference",
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": ...}, "key 'target' is missing"),
        ({"target": ["u"]}, "'target' is ['u'], expected an address and a name"),
        ({"target": ["u", "shirt1"]}, "target 'shirt1' is not in split.dress.val.json"),
        ({"reference": []}, "'reference' is empty"),
        ({"reference": [["u", "dress0"]]}, "reference[0] is ['u', 'dress0'], expected an address, captions and a name"),
        ({"reference": [["u", [], "dress0"]]}, "reference[0] has no caption"),
        ({"reference": [["u", "red", "dress0"]]}, "'reference[0][1]' is text ('red'), expected a list"),
        ({"reference": [["u", ["a", None], "dress0"]]}, "'reference[0][1][1]' is null (None), expected text"),
        ({"reference": [["u", ["a", "b"], "x"]]}, "reference[0] 'x' is not in split.dress.val.json"),
    ],
)
def test_a_broken_session(root, change, problems_of, fields, message):
    change(root / "data/dress.val.json", **fields)
    (problem,) = problems_of(mtfashioniq.load, root, "val")
    assert (problem.where, problem.message) == ("entry 0", message)
    assert problem.fix


def test_a_split_or_category_that_is_not_there(root, problems_of):
    with pytest.raises(SplitNotFoundError, match="the train split of MT-FashionIQ is not in this data root"):
        mtfashioniq.load(root, "train")
    (root / "data/shirt.val.json").unlink()
    (root / "image_splits/split.shirt.val.json").unlink()
    (problem,) = problems_of(mtfashioniq.load, root, "val")
    assert problem.message == "the shirt category of the val split is not in this data root"
