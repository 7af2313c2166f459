from __future__ import annotations

import logging

import pytest
from PIL import Image

from composir.data import circled, load_splits
from composir.data.annotations import SplitNotFoundError
from composir.data.check import check_dataset
from composir.data.datasets import load_present
from composir.errors import ComposirError, ProblemsError


@pytest.fixture
def root(make_root, tmp_path):
    return make_root("CIRCLED", tmp_path / "CIRCLED")


def test_a_whole_root(root):
    splits = circled.load(root.parent, "val")
    assert [split.category for split in splits] == [*circled.CATEGORIES]
    dress, _, _, cirr, circo = splits
    assert [(one.id, one.group, one.reference, one.targets, one.text) for one in dress.queries] == [
        ("fashioniq_dress_val_0000.1", "fashioniq_dress_val_0000", "dress0", ("dress3",), "is red"),
        ("fashioniq_dress_val_0000.2", "fashioniq_dress_val_0000", "dress1", ("dress3",), "Add lace."),
    ]
    assert dress.gallery == ("dress0", "dress1", "dress2", "dress3")
    assert [(one.id, one.reference, one.targets, one.text) for one in cirr.queries] == [
        ("cirr_val_0000.1", "a", ("c",), "Two dogs. "),
        ("cirr_val_0000.2", "b", ("c",), "Add a hat."),
        ("cirr_val_0001.1", "e", ("d",), "In water."),
        ("cirr_val_0001.2", "a", ("d",), "Make it red."),
        ("cirr_val_0001.3", "f", ("d",), "Remove the hat."),
    ]
    assert cirr.gallery == tuple("abcdefg")
    assert [(one.reference, one.targets) for one in circo.queries] == [("4", ("20", "4000")), ("7", ("20", "4000"))]
    assert circo.gallery == ("7", "4", "4000", "20", "5")
    assert circo.images["20"] == root / "CIRCO/COCO2017_unlabeled/unlabeled2017/000000000020.jpg"
    assert cirr.files == (root / "data/cirr_val.json", root / "cirr/image_splits/split.rc2.val.json")
    rules = {(one.dataset, one.exclude_reference, one.gallery_rule, one.text_rule, one.notes) for one in splits}
    assert rules == {("CIRCLED", False, "original", "caption of the round", ())}


@pytest.mark.parametrize(("first", "second"), [("fashion-iq", "fashionIQ_dataset"), ("cirr", "cirr_dataset")])
def test_a_source_may_lie_in_the_folder_of_either_name(root, first, second):
    before = circled.load(root, "val")
    (root / first).rename(root / second)
    after = circled.load(root, "val")
    assert [one.queries for one in after] == [one.queries for one in before]
    assert [one.gallery for one in after] == [one.gallery for one in before]


def test_only_what_is_there_is_read_and_the_rest_named(root, caplog):
    (root / "fashion-iq").rename(root / "elsewhere")
    (root / "data/circo_val.json").unlink()
    with caplog.at_level(logging.WARNING):
        (split,) = circled.load(root, "val")
    assert split.category == "cirr"
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{root}: CIRCLED val has only cirr here; "
        "fashioniq_dress: no fashion-iq/ or fashionIQ_dataset/ is beside data/; "
        "fashioniq_shirt: no fashion-iq/ or fashionIQ_dataset/ is beside data/; "
        "fashioniq_toptee: no fashion-iq/ or fashionIQ_dataset/ is beside data/; "
        "circo: circo_val.json is not in data/"
    )
    present = load_present("CIRCLED", root, annotations_only=True)
    assert [one.category for one in present.splits] == ["cirr"]
    assert present.problems == []
    assert [key for key in present.absent if key.endswith("val")] == [
        "fashioniq_dress.val",
        "fashioniq_shirt.val",
        "fashioniq_toptee.val",
        "circo.val",
    ]


def test_sessions_without_their_source_say_what_is_missing(root):
    for folder in ("fashion-iq", "cirr", "CIRCO"):
        (root / folder).rename(root.parent / folder)
    for categories in (None, ["circo"]):
        with pytest.raises(
            SplitNotFoundError, match=r"no CIRCO/ is beside data/|no fashion-iq/ or fashionIQ_dataset/ is"
        ):
            load_present("CIRCLED", root, categories=categories)
        with pytest.raises(SplitNotFoundError, match="no CIRCO/ is beside data/"):
            circled.load(root, "val", categories=categories)


def test_what_is_asked_for_must_be_there(root, problems_of, caplog):
    (root / "data/circo_val.json").unlink()
    assert len(circled.load(root, "val", categories=["cirr"])) == 1
    with pytest.raises(SplitNotFoundError, match=r"circo_val\.json is not in data/"):
        circled.load(root, "val", categories=["circo"])
    (problem,) = problems_of(circled.load, root, "val", categories=["cirr", "circo"])
    assert problem.message == (
        "the circo category of the val split is not in this data root: circo_val.json is not in data/"
    )
    assert problem.fix == "put the published file there, or choose what is: --categories cirr"
    with pytest.raises(SplitNotFoundError, match="no category of the train split of CIRCLED is in this data root"):
        circled.load(root, "train")
    with pytest.raises(ComposirError, match="has no category 'dress'"):
        circled.load(root, "val", categories=["dress"])
    assert not caplog.records


def test_the_problems_of_all_files_come_at_once_those_of_a_source_too(root, change, problems_of):
    change(root / "data/cirr_val.json", ground_truth_ids=["x"])
    change(root / "data/circo_val.json", session_id=" ")
    change(root / "fashion-iq/captions/cap.shirt.val.json", candidate="shirt9")
    problems = problems_of(circled.load, root, "val")
    assert [(problem.file.removeprefix(f"{root}/"), problem.message) for problem in problems] == [
        ("fashion-iq/captions/cap.shirt.val.json", "candidate 'shirt9' is not in split.shirt.val.json"),
        ("data/cirr_val.json", "ground_truth_ids[0] 'x' is not in split.rc2.val.json"),
        ("data/circo_val.json", "'session_id' is empty (' ')"),
    ]


TURN = {"turn": 1, "reference_image_id": "a", "relative_caption": "red"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"session_id": ...}, "entry 0: key 'session_id' is missing"),
        ({"session_id": 7}, "entry 0: 'session_id' is a whole number (7), expected text"),
        ({"session_id": "cirr_val_0001"}, "entry 1: the session_id 'cirr_val_0001' is repeated"),
        ({"ground_truth_ids": []}, "entry 0: 'ground_truth_ids' is empty"),
        ({"ground_truth_ids": "c"}, "entry 0: 'ground_truth_ids' is text ('c'), expected a list"),
        ({"ground_truth_ids": ["c", 3]}, "entry 0: 'ground_truth_ids[1]' is a whole number (3), expected text"),
        ({"turns": []}, "entry 0: 'turns' is empty"),
        ({"turns": ["a"]}, "entry 0 turns 0: holds text ('a'), expected an object"),
        (
            {"turns": [TURN, {**TURN, "reference_image_id": "x"}]},
            "entry 0 turns 1: reference_image_id 'x' is not in split.rc2.val.json",
        ),
        (
            {"turns": [{"turn": 1, "reference_image_id": "a"}]},
            "entry 0 turns 0: key 'relative_caption' is missing",
        ),
    ],
)
def test_a_broken_session(root, change, problems_of, fields, message):
    change(root / "data/cirr_val.json", **fields)
    (problem,) = problems_of(circled.load, root, "val")
    assert f"{problem.where}: {problem.message}" == message
    assert problem.fix


def test_what_is_odd_in_a_session_is_noted(root, change):
    turns = [TURN, {**TURN, "turn": 3, "reference_image_id": "c", "relative_caption": " "}]
    change(root / "data/cirr_val.json", ground_truth_ids=["c", "b", "c"], subset="cirr_train", num_turns=3, turns=turns)
    (split,) = circled.load(root, "val", categories=["cirr"])
    assert split.queries[0].targets == ("c", "b")
    assert [(note.where, note.message) for note in split.notes] == [
        ("entry 0", "ground_truth_ids[2] repeats 'c'"),
        ("entry 0", "'subset' is 'cirr_train', not 'cirr_val'"),
        ("entry 0", "'num_turns' is 3, not 2"),
        ("entry 0 turns 1", "'turn' is 3, not 2"),
        ("entry 0 turns 1", "'relative_caption' is blank (' ')"),
        ("entry 0 turns 1", "a right answer is also the reference"),
    ]


@pytest.mark.parametrize("written", ["000000004000", "000000004000.jpg", "4000"])
def test_coco_s_ids_are_known_however_they_are_written(root, change, written):
    change(root / "data/circo_val.json", ground_truth_ids=[written])
    (split,) = circled.load(root, "val", categories=["circo"])
    assert split.queries[0].targets == ("4000",)


def test_without_coco_s_list_the_gallery_is_what_the_sessions_name(root):
    names_file = root / "CIRCO/COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
    names_file.unlink()
    with pytest.raises(ProblemsError, match="the file is missing"):
        load_splits("CIRCLED", root, "val", categories=["circo"])
    (split,) = load_splits("CIRCLED", root, "val", categories=["circo"], annotations_only=True)
    assert split.gallery == ("4", "20", "4000", "7")
    assert split.missing_list == names_file


def test_images_are_found_in_the_folders_of_circled_s_own_code(root):
    """A picture that two categories of FashionIQ share has a file in the folder of each."""
    for category, shade in (("dress", 0), ("shirt", 90)):
        names = ["dress0", "dress1", "dress2", "dress3"] if category == "dress" else ["dress0"]
        for number, name in enumerate(names):
            file = root / f"fashion-iq/images/{category}/{name}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (60 * number, shade, 40)).save(file)
    for number, name in enumerate("abcdefg"):
        file = root / f"cirr/img_raw/dev/{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (30 * number, 200, 0)).save(file)
    dress, cirr = load_splits("CIRCLED", root, "val", categories=["fashioniq_dress", "cirr"])
    assert dress.images["dress0"] == root / "fashion-iq/images/dress/dress0.jpg"
    assert cirr.images["a"] == root / "cirr/img_raw/dev/a.png"
    checked = check_dataset("CIRCLED", root, categories=["fashioniq_dress", "cirr"])
    assert checked.problems == []
