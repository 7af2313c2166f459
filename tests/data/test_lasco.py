from __future__ import annotations

import json

import pytest

from composir.data import lasco
from composir.data.annotations import SplitNotFoundError
from composir.data.triplets import Query
from composir.errors import ComposirError


def test_a_whole_root(lasco_root):
    (split,) = lasco.load(lasco_root, "val")
    assert split.queries == (
        Query(id="42001", reference="42", text="picture 73", texts=("picture 73",), targets=("73",)),
        Query(id="42000", reference="42", text="picture 74", texts=("picture 74",), targets=("74",)),
    )
    assert split.gallery == ("42", "73", "74", "133")  # the corpus in its order
    # the corpus file says val/val2014/..., the query file val2014/...: the last two parts count
    assert split.images["73"] == lasco_root / "val2014/COCO_val2014_000000000073.jpg"
    assert (split.dataset, split.name, split.category) == ("LaSCo", "val", "")
    assert (split.gallery_rule, split.exclude_reference, split.text_rule) == ("original", False, "as annotated")
    assert split.file == lasco_root / "lasco_val.json"


def test_the_training_corpus_is_an_object(lasco_root):
    (split,) = lasco.load(lasco_root, "train")
    assert [(query.id, query.reference, query.targets) for query in split.queries] == [
        ("9001", "9", ("25",)),
        ("25001", "25", ("30",)),
    ]
    assert split.gallery == ("9", "25", "30")
    assert split.images["30"] == lasco_root / "train2014/COCO_train2014_000000000030.jpg"


def test_the_parent_folder_will_do(lasco_root):
    assert lasco.load(lasco_root.parent, "val") == lasco.load(lasco_root, "val")


@pytest.mark.parametrize(
    ("fields", "where", "message", "fix"),
    [
        ({"qid": ...}, "entry 0", "key 'qid' is missing", "add 'qid'"),
        ({"qid": "42001"}, "entry 0", "'qid' is text ('42001'), expected a whole number", "correct 'qid'"),
        ({"query__image": ...}, "qid 42001", "key 'query-image' is missing", "add 'query-image'"),
        ({"query__image": 42}, "qid 42001", "'query-image' is a whole number (42), expected a list", "correct"),
        (
            {"query__image": [42]},
            "qid 42001",
            "'query-image' is [42], expected an id and a path",
            "restore the published file",
        ),
        (
            {"query__image": ["42", "val2014/COCO_val2014_000000000042.jpg"]},
            "qid 42001",
            "'query-image[0]' is text ('42'), expected a whole number",
            "correct 'query-image[0]'",
        ),
        ({"query__image": [42, None]}, "qid 42001", "'query-image[1]' is null (None), expected text", "correct"),
        (
            {"query__image": [43, "val2014/COCO_val2014_000000000043.jpg"]},
            "qid 42001",
            "query-image '43' is not in lasco_val_corpus.json",
            "add it to lasco_val_corpus.json",
        ),
        (
            {"query__image": [42, "val2014/COCO_val2014_000000000074.jpg"]},
            "qid 42001",
            "query-image '42' is 'val2014/COCO_val2014_000000000074.jpg', "
            "but 'COCO_val2014_000000000042.jpg' in lasco_val_corpus.json",
            "name one image by both",
        ),
        ({"query__text": ...}, "qid 42001", "key 'query-text' is missing", "add 'query-text'"),
        ({"target__image": ...}, "qid 42001", "key 'target-image' is missing", "add 'target-image'"),
    ],
)
def test_a_broken_field(lasco_root, problems_of, change, *, fields, where, message, fix):
    change(lasco_root / "lasco_val.json", **fields)
    (problem,) = problems_of(lasco.load, lasco_root, "val")
    assert (problem.file, problem.where, problem.message) == (str(lasco_root / "lasco_val.json"), where, message)
    assert fix in problem.fix


def test_blank_texts_and_targets_that_are_the_reference_are_data(lasco_root, change):
    change(
        lasco_root / "lasco_val.json",
        query__text=" ",
        target__image=[42, "val2014/COCO_val2014_000000000042.jpg"],
    )
    (split,) = lasco.load(lasco_root, "val")
    assert (len(split.queries), split.queries[0].text) == (2, " ")
    assert [(note.where, note.message) for note in split.notes] == [
        ("qid 42001", "'query-text' is blank (' ')"),
        ("qid 42001", "the target is also the reference"),
    ]


def test_a_repeated_qid(lasco_root, problems_of, change):
    change(lasco_root / "lasco_val.json", qid=42000)
    (problem,) = problems_of(lasco.load, lasco_root, "val")
    assert (problem.where, problem.message) == ("qid 42000", "the qid is repeated")
    assert problem.fix == "give every query its own qid"


@pytest.mark.parametrize(
    ("split", "corpus", "where", "message"),
    [
        ("val", {"42": "x.jpg"}, "", "holds an object, expected a list"),
        ("val", [7], "entry 0", "holds a whole number (7), expected an object"),
        ("val", [{"path": "x.jpg"}], "entry 0", "key 'id' is missing"),
        ("val", [{"id": 1, "path": ""}], "entry 0", "'path' is empty ('')"),
        ("val", [{"id": 1, "path": "x"}, {"id": 1, "path": "y"}], "entry 1", "the name '1' is repeated"),
        ("train", [], "", "holds a list, expected an object"),
        ("train", {"9": 9}, "key '9'", "'path' is a whole number (9), expected text"),
    ],
)
def test_a_broken_corpus(lasco_root, problems_of, *, split, corpus, where, message):
    file = lasco_root / f"lasco_{split}_corpus.json"
    file.write_text(json.dumps(corpus))
    problem = problems_of(lasco.load, lasco_root, split)[0]
    assert (problem.file, problem.where, problem.message) == (str(file), where, message)


@pytest.mark.parametrize("missing", ["lasco_val.json", "lasco_val_corpus.json"])
def test_one_file_of_the_two_is_missing(lasco_root, problems_of, missing):
    (lasco_root / missing).unlink()
    (problem,) = problems_of(lasco.load, lasco_root, "val")
    assert (problem.file, problem.message) == (str(lasco_root / missing), "the file is missing")


def test_an_absent_split(lasco_root):
    for file in lasco_root.glob("lasco_train*"):
        file.unlink()
    with pytest.raises(SplitNotFoundError) as caught:
        lasco.load(lasco_root, "train")
    assert "lasco_train.json: the train split of LaSCo is not in this data root; expected" in str(caught.value)
    assert "lasco_train_corpus.json beside it" in str(caught.value)


def test_a_root_of_something_else(tmp_path):
    with pytest.raises(ComposirError, match=r"no lasco_\*\.json file in it; expected .* its parent with LaSCo/"):
        lasco.load(tmp_path, "val")


def test_an_unknown_split_and_categories(lasco_root):
    with pytest.raises(SplitNotFoundError, match="LaSCo has no split 'test'; expected train, val"):
        lasco.load(lasco_root, "test")
    with pytest.raises(ComposirError, match="LaSCo has no categories, got x"):
        lasco.load(lasco_root, "val", categories=["x"])
