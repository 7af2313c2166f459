from __future__ import annotations

import json

import pytest

from composir.data import load_splits
from composir.errors import ComposirError, ProblemsError
from composir.evaluation import signature_fields


def read(dataset, root, file, content):
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return load_splits(dataset, root, "val", only=file, annotations_only=True)


@pytest.mark.parametrize("content", [["4"], [4], "4\n", "\n 4 \n", '["4"]'])
def test_a_list_in_any_form_leaves_its_queries_and_the_whole_gallery(cirr_root, tmp_path, content):
    (split,) = read("CIRR", cirr_root, tmp_path / "list", content)
    assert [query.id for query in split.queries] == ["4"]
    assert len(split.gallery) == 7
    assert split.query_rule == "1 of 2, list 2f23fe61"
    assert signature_fields([split], weights_hash="")["queries"] == "1 of 2, list 2f23fe61"


def test_the_signature_knows_a_copy_of_the_list_and_tells_another(cirr_root, tmp_path):
    rules = {
        text: read("CIRR", cirr_root, tmp_path / f"{number}", text)[0].query_rule
        for number, text in enumerate(["4", " 4", "17", "[4, 17]"])
    }
    assert rules["4"] == rules[" 4"] != rules["17"]
    assert rules["[4, 17]"] == "all"


def test_with_categories(fashioniq_root, tmp_path):
    content = {"dress": [0], "shirt": ["1"], "toptee": ["0", "1"]}
    splits = read("FashionIQ", fashioniq_root, tmp_path / "list.json", content)
    assert [[query.id for query in split.queries] for split in splits] == [["0"], ["1"], ["0", "1"]]
    assert {split.query_rule.split(",")[0] for split in splits} == {"4 of 6"}
    assert len({split.query_rule for split in splits}) == 1


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        (["4", "5", 99], ["CIRR val has no such queries (2): '5', '99'"]),
        (["4", 4], ["named more than once: '4'"]),
        ([], ["names no query"]),
        ("", ["names no query"]),
        ([4, None], ["is null (None), expected a query's id as text or a whole number"]),
        ("[4", ["not valid JSON: Expecting ',' delimiter"]),
        ('{"val": [4]}', ["holds an object, expected a list"]),
    ],
)
def test_problems_of_a_list(cirr_root, tmp_path, content, messages):
    with pytest.raises(ProblemsError) as error:
        read("CIRR", cirr_root, tmp_path / "list", content)
    assert [problem.message for problem in error.value.problems] == messages
    assert all(problem.fix and problem.file == str(tmp_path / "list") for problem in error.value.problems)


def test_problems_of_a_list_with_categories(fashioniq_root, tmp_path):
    with pytest.raises(ProblemsError) as error:
        read("FashionIQ", fashioniq_root, tmp_path / "list", {"dress": [7], "shirt": 3})
    assert [(problem.where, problem.message) for problem in error.value.problems] == [
        ("shirt", "holds a whole number (3), expected a list of query ids"),
        ("dress", "FashionIQ val has no such queries (1): '7'"),
    ]
    with pytest.raises(ComposirError, match="names the category 'skirt', which is not measured"):
        read("FashionIQ", fashioniq_root, tmp_path / "list", {"skirt": [1]})


def test_a_list_that_is_not_there(cirr_root, tmp_path):
    with pytest.raises(ProblemsError, match="the file is missing"):
        load_splits("CIRR", cirr_root, "val", only=tmp_path / "list", annotations_only=True)
