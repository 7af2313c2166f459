from __future__ import annotations

import json

import pytest

from composir.data import circo, load_splits, stats
from composir.data.annotations import SplitNotFoundError
from composir.data.datasets import load_present
from composir.data.triplets import Query
from composir.errors import ComposirError, ProblemsError

VAL = "annotations/val.json"
COCO = "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"


def test_a_whole_root(circo_root):
    (split,) = circo.load(circo_root, "val")
    assert split.queries[0] == Query(
        id="0",
        reference="4",
        text="shows 20 instead",
        texts=("shows 20 instead",),
        targets=("20", "4000", "7"),  # the annotated one first
        aspects=("cardinality", "negation"),
    )
    assert split.queries[2].targets == ("7", "20")
    assert [query.id for query in split.queries] == ["0", "1", "2"]
    assert split.gallery == ("7", "4", "4000", "20", "5")  # every image that COCO lists, in its order
    assert split.images["4000"] == circo_root / "COCO2017_unlabeled/unlabeled2017/000000004000.jpg"
    assert (split.dataset, split.name, split.category) == ("CIRCO", "val", "")
    assert (split.gallery_rule, split.exclude_reference, split.text_rule) == ("original", False, "relative caption")
    assert split.file == circo_root / VAL


def test_the_annotated_target_comes_first_wherever_the_file_names_it(circo_root, change):
    change(circo_root / VAL, gt_img_ids=[4000, 7, 20])
    assert circo.load(circo_root, "val")[0].queries[0].targets == ("20", "4000", "7")


def test_the_answers_of_test_are_hidden(circo_root):
    (split,) = circo.load(circo_root, "test")
    assert [(query.id, query.targets, query.aspects) for query in split.queries] == [("0", (), ()), ("1", (), ())]
    assert len(split.gallery) == 5


def test_the_concept_stands_before_the_caption_where_that_is_the_text_rule(circo_root):
    (split,) = load_splits("CIRCO", circo_root, "val", text_rule="concept and caption", annotations_only=True)
    assert split.text_rule == "concept and caption"
    assert split.queries[0].text == "Find a picture that also a number, but shows 20 instead."
    (prompt,) = load_splits("CIRCO", circo_root, "val", text_rule="in a prompt", annotations_only=True)
    assert prompt.queries[0].text == "a photo of $ that shows 20 instead"
    (plain,) = load_splits("CIRCO", circo_root, "val", text_rule="relative caption", annotations_only=True)
    assert plain == circo.load(circo_root, "val")[0]
    assert [query.targets for query in split.queries] == [query.targets for query in plain.queries]


def test_a_concept_is_missed_only_where_the_text_rule_needs_it(circo_root, change):
    change(circo_root / VAL, shared_concept=...)
    assert circo.load(circo_root, "val")[0].queries[0].text == "shows 20 instead"
    with pytest.raises(ProblemsError, match="key 'shared_concept' is missing"):
        circo.load(circo_root, "val", text_rule=circo.CONCEPT_AND_CAPTION)


@pytest.mark.parametrize(
    ("dataset", "text_rule", "expected"),
    [
        (
            "CIRCO",
            "concept",
            "expected relative caption or concept and caption or in a prompt; fix: one of: concept and caption",
        ),
        ("LaSCo", "concept and caption", "expected none: there is one way to make its sentences; fix: leave it out"),
    ],
)
def test_a_text_rule_that_is_not_known_is_an_error(circo_root, dataset, text_rule, expected):
    with pytest.raises(ComposirError) as caught:
        load_splits(dataset, circo_root, "val", text_rule=text_rule)
    assert f"unknown text rule {text_rule!r} of {dataset}" in str(caught.value)
    assert expected in str(caught.value)


def test_the_order_of_the_file_does_not_matter(circo_root):
    entries = json.loads((circo_root / VAL).read_text())
    (circo_root / VAL).write_text(json.dumps(entries[::-1]))
    assert [query.id for query in circo.load(circo_root, "val")[0].queries] == ["2", "1", "0"]


def test_the_parent_folder_will_do(circo_root):
    assert circo.load(circo_root.parent, "val") == circo.load(circo_root, "val")


@pytest.mark.parametrize(
    ("fields", "where", "message", "fix"),
    [
        ({"id": ...}, "entry 0", "key 'id' is missing", "add 'id' to the entry"),
        ({"id": "0"}, "entry 0", "'id' is text ('0'), expected a whole number", "correct 'id'"),
        ({"id": 3}, "id 3", "the id is not in 0 to 2", "count the queries from 0, or restore the published file"),
        ({"id": -1}, "id -1", "the id is not in 0 to 2", "count the queries from 0"),
        ({"reference_img_id": ...}, "id 0", "key 'reference_img_id' is missing", "add 'reference_img_id'"),
        (
            {"reference_img_id": "4"},
            "id 0",
            "'reference_img_id' is text ('4'), expected a whole number",
            "correct 'reference_img_id'",
        ),
        (
            {"reference_img_id": 6},
            "id 0",
            "reference_img_id '6' is not in image_info_unlabeled2017.json",
            "add it to image_info_unlabeled2017.json",
        ),
        ({"relative_caption": ...}, "id 0", "key 'relative_caption' is missing", "add 'relative_caption'"),
        (
            {"relative_caption": ["red"]},
            "id 0",
            "'relative_caption' is a list (['red']), expected text",
            "correct 'relative_caption'",
        ),
        ({"target_img_id": ...}, "id 0", "key 'target_img_id' is missing", "add 'target_img_id'"),
        (
            {"target_img_id": 5},
            "id 0",
            "target_img_id '5' is not among gt_img_ids",
            "add it to them, or restore the published file",
        ),
        ({"gt_img_ids": []}, "id 0", "target_img_id '20' is not among gt_img_ids", "add it to them"),
        ({"gt_img_ids": ...}, "id 0", "key 'gt_img_ids' is missing", "add 'gt_img_ids'"),
        ({"gt_img_ids": [20, 7, 20]}, "id 0", "gt_img_ids[2] repeats '20'", "name every image once"),
        (
            {"gt_img_ids": [20, 8]},
            "id 0",
            "gt_img_ids[1] '8' is not in image_info_unlabeled2017.json",
            "add it to image_info_unlabeled2017.json",
        ),
        (
            {"gt_img_ids": [20, 7.0]},
            "id 0",
            "'gt_img_ids[1]' is a number (7.0), expected a whole number",
            "correct 'gt_img_ids[1]'",
        ),
        ({"semantic_aspects": ...}, "id 0", "key 'semantic_aspects' is missing", "add 'semantic_aspects'"),
        (
            {"semantic_aspects": ["cardinalty"]},
            "id 0",
            "semantic_aspects[0] 'cardinalty' is not known",
            "did you mean 'cardinality'?",
        ),
        (
            {"semantic_aspects": ["negation", "negation"]},
            "id 0",
            "semantic_aspects[1] repeats 'negation'",
            "name every aspect once",
        ),
        (
            {"semantic_aspects": [3]},
            "id 0",
            "'semantic_aspects[0]' is a whole number (3), expected text",
            "correct 'semantic_aspects[0]'",
        ),
    ],
)
def test_a_broken_field(circo_root, problems_of, change, *, fields, where, message, fix):
    change(circo_root / VAL, **fields)
    (problem,) = problems_of(circo.load, circo_root, "val")
    assert (problem.file, problem.where, problem.message) == (str(circo_root / VAL), where, message)
    assert fix in problem.fix


def test_a_repeated_id(circo_root, problems_of, change):
    change(circo_root / VAL, 2, id=1)
    (problem,) = problems_of(circo.load, circo_root, "val")
    assert (problem.where, problem.message) == ("id 1", "the id is repeated")
    assert problem.fix == "give every query its own id"


def test_what_is_no_object_counts_in_the_range_of_ids(circo_root, problems_of):
    entries = json.loads((circo_root / VAL).read_text())
    (circo_root / VAL).write_text(json.dumps([entries[0], "x", entries[2]]))
    (problem,) = problems_of(circo.load, circo_root, "val")
    assert (problem.where, problem.message) == ("entry 1", "holds text ('x'), expected an object")


@pytest.mark.parametrize(
    ("images", "where", "message"),
    [
        ("x", "", "'images' is text ('x'), expected a list"),
        (..., "", "key 'images' is missing"),
        ([7], "image 0", "holds a whole number (7), expected an object"),
        ([{"id": 7}], "image 0", "key 'file_name' is missing"),
        ([{"file_name": "7.jpg"}], "image 0", "key 'id' is missing"),
        ([{"id": 7, "file_name": ""}], "image 0", "'file_name' is empty ('')"),
        ([{"id": 7, "file_name": "7.jpg"}, {"id": 7, "file_name": "8.jpg"}], "image 1", "the name '7' is repeated"),
    ],
)
def test_a_broken_list_of_images(circo_root, problems_of, images, where, message):
    content = {} if images is ... else {"images": images}
    (circo_root / COCO).write_text(json.dumps(content))
    problem = problems_of(circo.load, circo_root, "val")[0]
    assert (problem.file, problem.where, problem.message) == (str(circo_root / COCO), where, message)


def test_only_ranking_a_gallery_needs_its_list(circo_root):
    (circo_root / COCO).unlink()
    with pytest.raises(ProblemsError) as caught:
        load_splits("CIRCO", circo_root, "val")
    assert [str(problem) for problem in caught.value.problems] == [
        f"{circo_root / COCO}: the file is missing; "
        "fix: put the published image_info_unlabeled2017.json there (docs/data.md)"
    ]
    assert caught.value.problems == tuple(load_present("CIRCO", circo_root).problems)
    (split,) = load_splits("CIRCO", circo_root, "val", annotations_only=True)
    assert split.missing_list == circo_root / COCO
    assert split.gallery == ("4", "20", "4000", "7")  # what the queries name, in their order
    assert "gallery_original" not in stats([split])["val"]
    assert stats([split])["val"]["gallery_val_union"] == 4


def test_blank_captions_and_targets_that_are_the_reference_are_data(circo_root, change):
    change(circo_root / VAL, relative_caption=" ", reference_img_id=20)
    (split,) = circo.load(circo_root, "val")
    assert (len(split.queries), split.queries[0].text) == (3, " ")
    assert [(note.where, note.message) for note in split.notes] == [
        ("id 0", "'relative_caption' is blank (' ')"),
        ("id 0", "the target is also the reference"),
    ]


def test_an_image_listed_twice_is_noted_and_one_with_two_files_a_problem(circo_root, problems_of):
    content = json.loads((circo_root / COCO).read_text())
    content["images"].append(content["images"][1])
    (circo_root / COCO).write_text(json.dumps(content))
    (split,) = circo.load(circo_root, "val")
    assert split.gallery == ("7", "4", "4000", "20", "5")
    assert [(note.where, note.message) for note in split.notes] == [("image 5", "the name '4' is repeated")]
    content["images"][-1] = {**content["images"][-1], "file_name": "other.jpg"}
    (circo_root / COCO).write_text(json.dumps(content))
    (problem,) = problems_of(circo.load, circo_root, "val")
    assert (problem.where, problem.message) == ("image 5", "the name '4' is repeated")


def test_problems_of_all_files_come_together(circo_root, problems_of):
    (circo_root / COCO).write_text("{")
    entries = json.loads((circo_root / VAL).read_text())
    for entry in entries:
        entry["relative_caption"] = None
    (circo_root / VAL).write_text(json.dumps(entries))
    assert [problem.where for problem in problems_of(circo.load, circo_root, "val")] == [
        "line 1 column 2",
        "id 0",
        "id 1",
        "id 2",
    ]


def test_an_absent_split(circo_root):
    (circo_root / "annotations/test.json").unlink()
    with pytest.raises(SplitNotFoundError) as caught:
        circo.load(circo_root, "test")
    assert str(caught.value) == (
        f"{circo_root}/annotations/test.json: the test split of CIRCO is not in this data root; "
        "fix: put the published annotation files there, or choose another split"
    )


def test_it_has_no_training_split(circo_root):
    with pytest.raises(
        SplitNotFoundError, match="CIRCO has no split 'train'; expected val, test; fix: one of: test, val"
    ):
        circo.load(circo_root, "train")


def test_a_root_of_something_else(tmp_path):
    with pytest.raises(ComposirError, match=r"no annotations/ folder in it; expected .* its parent with CIRCO/"):
        circo.load(tmp_path, "val")


def test_categories_are_refused(circo_root):
    with pytest.raises(ComposirError, match="CIRCO has no categories, got dress; fix: leave the categories out"):
        circo.load(circo_root, "val", categories=["dress"])
