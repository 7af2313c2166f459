from __future__ import annotations

import json
from pathlib import Path

import pytest

from composir.data import fashioniq, load_splits
from composir.data.annotations import SplitNotFoundError
from composir.data.datasets import val_union
from composir.data.triplets import Query
from composir.errors import ComposirError, ProblemsError

CAPTIONS = "captions/cap.shirt.val.json"
NAMES = "image_splits/split.shirt.val.json"


def test_a_whole_root(fashioniq_root):
    splits = fashioniq.load(fashioniq_root, "val")
    assert [split.category for split in splits] == ["dress", "shirt", "toptee"]
    dress = splits[0]
    assert dress.queries[0] == Query(
        id="0",
        reference="dress0",
        text="Is red and has a Bow",
        texts=("Is red and has a Bow", "Has a bow and is Red", "Is red", "Has a bow"),
        targets=("dress1",),
        subset=(),
    )
    assert [query.id for query in dress.queries] == ["0", "1"]
    assert dress.gallery == ("dress0", "dress1", "dress2", "dress3")
    assert (dress.dataset, dress.name) == ("FashionIQ", "val")
    assert (dress.gallery_rule, dress.exclude_reference, dress.text_rule) == (
        "original",
        False,
        "both captions",
    )


def test_the_parent_folder_will_do(fashioniq_root):
    assert fashioniq.load(fashioniq_root.parent, "val") == fashioniq.load(fashioniq_root, "val")


def test_fewer_categories(fashioniq_root):
    assert fashioniq.load(fashioniq_root, "val", categories=["shirt"]) == fashioniq.load(fashioniq_root, "val")[1:2]


def test_real_annotations_in_full(real_annotations):
    (split,) = fashioniq.load(real_annotations, "val", categories=("dress",))
    assert (len(split.queries), len(split.gallery), len(val_union(split).gallery)) == (2017, 3817, 2628)
    by_reference = {query.reference: query for query in split.queries}
    # "is a plain white feminine t shirt", "is a tan shirt."
    assert by_reference["B000QSGNOI"].text == "Is a plain white feminine t shirt and is a tan shirt"
    # "is gold and strapless", " button front longer sleeves"
    assert by_reference["B009CMY4BS"].texts == (
        "Is gold and strapless and button front longer sleeves",
        "Button front longer sleeves and is gold and strapless",
        "Is gold and strapless",
        "Button front longer sleeves",
    )


USUAL = "both captions"
CORRECTED = "both captions, spelling corrected"


@pytest.mark.parametrize(
    ("text_rule", "text"),
    [
        (USUAL, "Is gold and strapless and button front longer sleeves"),
        ("both captions, not stripped", "is gold and strapless and  button front longer sleeves"),
        ("both captions, comma between", "is gold and strapless, and  button front longer sleeves"),
    ],
)
def test_a_text_rule_makes_the_sentence_and_training_varies_it_by_the_first_alone(real_annotations, text_rule, text):
    read = {"categories": ["dress"], "annotations_only": True}
    (split,) = load_splits("FashionIQ", real_annotations, "val", text_rule=text_rule, **read)
    assert split.text_rule == text_rule
    query = next(query for query in split.queries if query.reference == "B009CMY4BS")
    assert query.text == text
    four = fashioniq.training_texts("is gold and strapless", " button front longer sleeves")
    assert query.texts == (four if text_rule == USUAL else (text,))


def write_corrections(root: Path, category: str, content: object) -> None:
    (root / "captions" / f"correction_dict_{category}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("caption", "corrected"),
    [
        (
            " Is RED-ish, and has a bow.",
            "is crimson ish and has a bow",
        ),  # a hyphen is a space before words are looked up
        ("it's  sleevless", "it s sleeveless"),
        ("red", "crimson"),
        ("redder", "redder"),
        ("?!", ""),
    ],
)
def test_the_spelling_of_a_caption_is_corrected_word_by_word(caption, corrected):
    assert fashioniq.correct_spelling(caption, {"red": "crimson", "sleevless": "sleeveless"}) == corrected


def test_each_category_has_its_own_list_of_corrections(fashioniq_root):
    for category in fashioniq.CATEGORIES:
        write_corrections(fashioniq_root, category, {"red": f"{category} red"})
    splits = load_splits("FashionIQ", fashioniq_root, "val", text_rule=CORRECTED, annotations_only=True)
    texts = ["is dress red and has a bow", "is shirt red and has a bow", "is toptee red and has a bow"]
    assert [split.queries[0].text for split in splits] == texts
    assert [split.queries[0].texts for split in splits] == [(text,) for text in texts]
    assert splits[0].text_rule == CORRECTED
    assert splits[0].files[-1].name == "correction_dict_dress.json"


def test_lists_of_corrections_that_are_missing_or_broken_are_all_told_where_the_rule_needs_them(fashioniq_root):
    write_corrections(fashioniq_root, "dress", {"red": 1, "a": "b", "bow": None})
    write_corrections(fashioniq_root, "shirt", [])
    assert len(fashioniq.load(fashioniq_root, "val")) == 3
    with pytest.raises(ProblemsError) as caught:
        fashioniq.load(fashioniq_root, "val", text_rule=CORRECTED)
    told = [(Path(problem.file).name, problem.where, problem.message) for problem in caught.value.problems]
    assert told == [
        ("correction_dict_dress.json", "key 'red'", "the correction is 1, expected text"),
        ("correction_dict_dress.json", "key 'bow'", "the correction is None, expected text"),
        ("correction_dict_shirt.json", "", "holds a list, expected an object"),
        ("correction_dict_toptee.json", "", "the file is missing"),
    ]
    assert "haokunwen/TG-CIR, correction_dict/, there, or choose another text rule" in caught.value.problems[-1].fix


def test_images_of_either_suffix_are_found_by_one_listing(fashioniq_root):
    images = fashioniq_root / "images"
    images.mkdir()
    for name in (
        "dress0.png",
        "dress1.jpg",
        "dress2.JPEG",
        "dress3.jpg",
        "dress3.png",
        "dress3.txt",
        "shirt0.gif",
    ):
        (images / name).touch()
    dress, shirt, _ = load_splits("FashionIQ", fashioniq_root, "val")
    assert dress.images == {
        "dress0": images / "dress0.png",
        "dress1": images / "dress1.jpg",
        "dress2": images / "dress2.JPEG",
        "dress3": images / "dress3.png",
    }
    assert shirt.images["shirt0"] == images / "shirt0.png"  # not there: the published name


def test_the_test_split_has_no_targets(fashioniq_root):
    for category in fashioniq.CATEGORIES:
        captions = fashioniq_root / f"captions/cap.{category}.val.json"
        entries = json.loads(captions.read_text())
        for entry in entries:
            del entry["target"]
        (captions.parent / f"cap.{category}.test.json").write_text(json.dumps(entries))
        names = fashioniq_root / f"image_splits/split.{category}.val.json"
        names.rename(names.with_name(f"split.{category}.test.json"))
    splits = fashioniq.load(fashioniq_root, "test")
    assert [query.targets for split in splits for query in split.queries] == [()] * 6


def change(root: Path, **fields) -> None:
    entries = json.loads((root / CAPTIONS).read_text())
    entries[1] = {key: value for key, value in {**entries[1], **fields}.items() if value is not ...}
    (root / CAPTIONS).write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("fields", "message", "fix"),
    [
        ({"candidate": ...}, "key 'candidate' is missing", "add 'candidate' to the entry"),
        (
            {"candidate": "B1"},
            "candidate 'B1' is not in split.shirt.val.json",
            "add it to split.shirt.val.json",
        ),
        ({"target": ...}, "key 'target' is missing", "add 'target' to the entry"),
        ({"target": "shirt7"}, "target 'shirt7' is not in split.shirt.val.json", "did you mean 'shirt"),
        ({"target": 5}, "'target' is a whole number (5), expected text", "correct 'target'"),
        ({"captions": ...}, "key 'captions' is missing", "add 'captions' to the entry"),
        ({"captions": "red"}, "'captions' is text ('red'), expected a list", "correct 'captions'"),
        ({"captions": ["red"]}, "'captions' holds 1 captions, expected 2", "restore the published file"),
        ({"captions": ["red", None]}, "'captions[1]' is null (None), expected text", "correct 'captions[1]'"),
    ],
)
def test_a_broken_field(fashioniq_root, problems_of, fields, message, fix):
    change(fashioniq_root, **fields)
    (problem,) = problems_of(fashioniq.load, fashioniq_root, "val")
    assert (problem.file, problem.where) == (str(fashioniq_root / CAPTIONS), "entry 1")
    assert problem.message == message
    assert fix in problem.fix


@pytest.mark.parametrize(
    ("captions", "texts", "message"),
    [
        ([" ", "red. "], (" and red", "Red and ", "", "Red"), "'captions[0]' is blank (' ')"),
        (["is Red", "?."], ("Is red and ", " and is Red", "Is red", ""), "'captions[1]' is blank ('?.')"),
        (["", "has a Bow"], (" and has a Bow", "Has a bow and ", "", "Has a bow"), "'captions[0]' is blank ('')"),
    ],
)
def test_a_blank_caption_is_joined_like_any_other(fashioniq_root, captions, texts, message):
    # as SPRC makes them: f"{first.strip('.?, ').capitalize()} and {second.strip('.?, ')}", in training one of four
    change(fashioniq_root, captions=captions)
    splits = fashioniq.load(fashioniq_root, "val")
    assert splits[1].queries[1].texts == texts
    assert splits[1].queries[1].text == texts[0]
    assert [(note.file, note.where, note.message) for note in splits[0].notes] == [
        (str(fashioniq_root / CAPTIONS), "entry 1", message)
    ]


def test_a_target_that_is_the_reference_and_a_name_given_twice_are_noted(fashioniq_root):
    change(fashioniq_root, target="shirt3")
    (fashioniq_root / NAMES).write_text('["shirt0", "shirt1", "shirt2", "shirt3", "shirt1"]')
    (split,) = fashioniq.load(fashioniq_root, "val", categories=["shirt"])
    assert split.gallery == ("shirt0", "shirt1", "shirt2", "shirt3")
    assert [(note.where, note.message) for note in split.notes] == [
        ("entry 4", "the name 'shirt1' is repeated"),
        ("entry 1", "the target is also the reference"),
    ]


@pytest.mark.parametrize(
    ("names", "where", "message"),
    [
        (["shirt0", "shirt1", "shirt2", "shirt3", 8], "entry 4", "the name is 8, expected text"),
        ({"shirt0": "x.png"}, "", "holds an object, expected a list"),
    ],
)
def test_a_broken_split_file(fashioniq_root, problems_of, names, where, message):
    (fashioniq_root / NAMES).write_text(json.dumps(names))
    (problem,) = problems_of(fashioniq.load, fashioniq_root, "val")
    assert (problem.file, problem.where, problem.message) == (str(fashioniq_root / NAMES), where, message)


def test_a_caption_file_without_queries(fashioniq_root, problems_of):
    (fashioniq_root / CAPTIONS).write_text("[]")
    (problem,) = problems_of(fashioniq.load, fashioniq_root, "val")
    assert (problem.file, problem.message) == (str(fashioniq_root / CAPTIONS), "holds no query")


def test_problems_of_all_categories_come_together(fashioniq_root, problems_of):
    for category in fashioniq.CATEGORIES:
        (fashioniq_root / f"captions/cap.{category}.val.json").write_text("[")
    assert len(problems_of(fashioniq.load, fashioniq_root, "val")) == 3


@pytest.mark.parametrize("missing", [CAPTIONS, NAMES])
def test_one_file_of_the_two_of_a_category_is_missing(fashioniq_root, problems_of, missing):
    (fashioniq_root / missing).unlink()
    (problem,) = problems_of(fashioniq.load, fashioniq_root, "val")
    assert str(problem) == (
        f"{fashioniq_root / missing}: the file is missing; fix: put the published {Path(missing).name} there"
    )


def test_a_missing_category_is_an_error_that_says_how_to_do_without(fashioniq_root, problems_of):
    for category in ("shirt", "toptee"):
        (fashioniq_root / f"captions/cap.{category}.val.json").unlink()
        (fashioniq_root / f"image_splits/split.{category}.val.json").unlink()
    assert [str(problem) for problem in problems_of(fashioniq.load, fashioniq_root, "val")] == [
        f"{fashioniq_root / f'captions/cap.{category}.val.json'}: "
        f"the {category} category of the val split is not in this data root; "
        f"fix: put it and split.{category}.val.json there, or choose what is: --categories dress"
        for category in ("shirt", "toptee")
    ]
    assert [split.category for split in fashioniq.load(fashioniq_root, "val", categories=["dress"])] == ["dress"]


def test_an_absent_split(fashioniq_root):
    with pytest.raises(SplitNotFoundError) as caught:
        fashioniq.load(fashioniq_root, "train")
    assert "cap.dress.train.json: the train split of FashionIQ is not in this data root" in str(caught.value)
    assert "split.toptee.train.json beside it" in str(caught.value)


def test_an_unknown_split(fashioniq_root):
    with pytest.raises(SplitNotFoundError) as caught:
        fashioniq.load(fashioniq_root, "valid")
    assert str(caught.value) == ("FashionIQ has no split 'valid'; expected train, val, test; fix: did you mean 'val'?")


def test_an_unknown_category_suggests_the_nearest(fashioniq_root):
    with pytest.raises(ComposirError) as caught:
        fashioniq.load(fashioniq_root, "val", categories=["dresses"])
    assert str(caught.value) == (
        "FashionIQ has no category 'dresses'; expected dress, shirt, toptee; fix: did you mean 'dress'?"
    )


def test_a_root_of_something_else(tmp_path):
    with pytest.raises(
        ComposirError, match=r"no captions/ folder in it; expected .* its parent with fashionIQ_dataset/"
    ):
        fashioniq.load(tmp_path, "val")
