from __future__ import annotations

import json

import pytest

from composir.data import edir
from composir.data.annotations import SplitNotFoundError
from composir.data.triplets import Query


@pytest.fixture
def root(make_root, tmp_path):
    return make_root("EDIR", tmp_path / "EDIR")


@pytest.fixture
def rewrite(root):
    """Change fields of one line of a JSON Lines file; `...` removes the field."""

    def change(name, number, **fields):
        rows = [json.loads(line) for line in (root / name).read_text().splitlines()]
        row = {**rows[number], **fields}
        rows[number] = {key: value for key, value in row.items() if value is not ...}
        (root / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    return change


def test_a_whole_root(root):
    (split,) = edir.load(root, "test")
    assert split.queries[0] == Query(
        "q1", "s1.png", "make it red", ("make it red",), ("1.png",), aspects=("color",), negatives=("2.png", "3.png")
    )
    assert [(query.id, query.targets, query.negatives) for query in split.queries[1:]] == [
        ("q2", ("2.png",), ("1.png",)),
        ("q3", ("5.png",), ()),
    ]
    assert split.gallery == tuple(f"{number}.png" for number in range(1, 7))
    assert split.images["s2.png"] == root / "imgs_mc/s2.png"
    assert (split.gallery_rule, split.exclude_reference, split.files[0].name) == ("original", False, "queries.jsonl")


def test_ids_may_be_numbers(root, rewrite):
    rewrite("queries.jsonl", 0, id=1)
    rewrite("instances.jsonl", 1, qid="1")
    assert edir.load(root, "test")[0].queries[0].id == "1"


@pytest.mark.parametrize(
    ("file", "number", "fields", "where", "message"),
    [
        ("queries.jsonl", 0, {"image": ...}, "id 'q1'", "key 'image' is missing"),
        ("queries.jsonl", 0, {"text": 7}, "id 'q1'", "'text' is a whole number (7), expected text"),
        ("queries.jsonl", 0, {"metadata": {}}, "id 'q1', metadata", "key 'subcategory' is missing"),
        ("queries.jsonl", 0, {"metadata": []}, "id 'q1'", "'metadata' is a list ([]), expected an object"),
        ("queries.jsonl", 1, {"id": "q1"}, "id 'q1'", "the id is repeated"),
        ("instances.jsonl", 1, {"pos": []}, "qid 'q1'", "'pos' is empty"),
        ("instances.jsonl", 1, {"pos": ["9.png"]}, "qid 'q1'", "pos[0] '9.png' is not in corpus.jsonl"),
        ("instances.jsonl", 1, {"neg": ["1.png"]}, "qid 'q1'", "'1.png' is in 'pos' and in 'neg'"),
        ("instances.jsonl", 1, {"qid": "q9"}, "id 'q1'", "the query is not in instances.jsonl"),
        ("corpus.jsonl", 5, {"image": ""}, "id '6.png'", "'image' is empty ('')"),
    ],
)
def test_a_broken_line(root, rewrite, problems_of, file, number, fields, where, message):  # noqa: PLR0917
    rewrite(file, number, **fields)
    found = problems_of(edir.load, root, "test")
    assert (where, message) in [(problem.where, problem.message) for problem in found]
    assert all(problem.fix for problem in found)


def test_a_line_that_is_no_json(root, problems_of):
    (root / "queries.jsonl").write_text((root / "queries.jsonl").read_text().replace('"q2"', "q2"))
    found = [(problem.where, problem.message) for problem in problems_of(edir.load, root, "test")]
    assert found == [
        ("line 2 column 8", "not valid JSON: Expecting value"),
        ("qid 'q2'", "the query 'q2' is not in queries.jsonl"),
    ]


def test_there_is_one_split(root):
    with pytest.raises(SplitNotFoundError, match="EDIR has no split 'val'"):
        edir.load(root, "val")
