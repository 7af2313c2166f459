from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from composir.data import load_splits, pinpoint
from composir.data.annotations import SplitNotFoundError
from composir.data.check import check_dataset, without_missing_images
from composir.data.triplets import Query
from composir.errors import ComposirError
from composir.evaluation import measure, read_predictions

from .conftest import PINPOINT_FILES, serialise

QUERIES, INDEX = "pinpoint_licensed.parquet", "index_signatures.txt"
GOLDEN = Path(__file__).parents[1] / "golden/pinpoint.json"


@pytest.fixture
def root(make_root, tmp_path):
    return make_root("PinPoint", tmp_path / "PinPoint")


@pytest.fixture
def change(root):
    """Change fields of the first row."""

    def change(**fields):
        first, *others = PINPOINT_FILES[QUERIES]
        (root / QUERIES).write_bytes(serialise(QUERIES, [{**first, **fields}, *others]))

    return change


def test_a_whole_root(root):
    (split,) = pinpoint.load(root, "test")
    assert [(query.id, query.text, query.group) for query in split.queries] == [
        ("query_00012", "in red", "rrrrrrrr aaaaaaaa"),
        ("query_00013", "make it red", "rrrrrrrr aaaaaaaa"),
        ("query_00014", "the same, but red", "rrrrrrrr aaaaaaaa"),
        ("query_00003", "larger", "hhhhhhhh"),
        ("query_00004", "bigger", "hhhhhhhh"),
        ("query_00005", "smaller", "rrrrrrrr"),
    ]
    assert split.queries[1] == Query(
        "query_00013",
        "rrrrrrrr",
        "make it red",
        ("make it red",),
        ("bbbbbbbb", "cccccccc"),
        aspects=("Context Fit",),
        group="rrrrrrrr aaaaaaaa",
        negatives=("dddddddd", "eeeeeeee"),
        num_listed_targets=3,
        num_listed_negatives=3,
        further_references=("aaaaaaaa",),
    )
    assert (split.queries[0].num_listed_targets, split.queries[0].num_listed_negatives) == (2, 3)  # with the null
    assert split.queries[0].references == ("rrrrrrrr", "aaaaaaaa")
    assert split.queries[3].references == ("hhhhhhhh",)
    assert split.gallery == tuple(8 * letter for letter in "abcdefghr")
    assert split.images["bbbbbbbb"] == root / "736x/bb/bb/bb/bbbbbbbb.jpg"
    assert (split.gallery_rule, split.exclude_reference) == ("original", False)


def test_what_is_odd_is_noted_and_counted(root):
    places = {note.message: note.where for note in check_dataset("PinPoint", root).notes}
    assert {message: where for message, where in places.items() if "published" not in message} == {
        "'negative_candidates' holds a null": "query_00012",
        "'positive_candidates' repeats an image": "query_00013",
        "'negative_candidates' repeats an image": "query_00013",
        "a reference is in 'positive_candidates'": "query_00003",
        "a reference is in 'negative_candidates' (2 times)": "query_00014, query_00003",
        "an image is in 'positive_candidates' and in 'negative_candidates' (2 times)": "query_00014, query_00003",
    }


@pytest.mark.parametrize(
    ("fields", "where", "message"),
    [
        ({"query_id": None}, "row 0", "'query_id' is null (None), expected text"),
        ({"query_id": " "}, " ", "'query_id' is empty (' ')"),
        ({"query_id": "query_00003"}, "query_00003", "the query_id is repeated"),
        ({"query_image_signature": None}, "query_00012", "'query_image_signature' is null (None), expected text"),
        (
            {"query_image_signature": "None"},
            "query_00012",
            "query_image_signature 'None' is not in index_signatures.txt",
        ),
        ({"query_image_signature2": "z"}, "query_00012", "query_image_signature2 'z' is not in index_signatures.txt"),
        ({"instruction": None}, "query_00012", "'instruction' is null (None), expected text"),
        ({"query_category": ""}, "query_00012", "'query_category' is empty ('')"),
        ({"positive_candidates": None}, "query_00012", "'positive_candidates' is null (None), expected a list"),
        ({"positive_candidates": []}, "query_00012", "'positive_candidates' names no image"),
        ({"positive_candidates": [None]}, "query_00012", "'positive_candidates' names no image"),
        ({"positive_candidates": ["z", "z"]}, "query_00012", "positive_candidates 'z' is not in index_signatures.txt"),
        ({"negative_candidates": ["z"]}, "query_00012", "negative_candidates 'z' is not in index_signatures.txt"),
    ],
)
def test_a_broken_row(root, change, problems_of, fields, where, message):  # noqa: PLR0917
    change(**fields)
    (problem,) = problems_of(pinpoint.load, root, "test")
    assert (problem.file, problem.where, problem.message) == (str(root / QUERIES), where, message)
    assert problem.fix


def test_columns_that_are_not_as_published(root, problems_of):
    table = pq.read_table(root / QUERIES).drop_columns(["negative_candidates"])
    table = table.set_column(0, "query_id", pa.array(range(6)))
    table = table.set_column(4, "positive_candidates", pa.array([[1]] * 6))
    pq.write_table(table, root / QUERIES)
    problems = problems_of(pinpoint.load, root, "test")
    assert [(problem.where, problem.message) for problem in problems] == [
        ("column query_id", "holds int64, expected text"),
        ("column positive_candidates", "holds list<element: int64>, expected lists of text"),
        ("column negative_candidates", "is there 0 times, expected once"),
    ]


def test_all_problems_come_at_once(root, change, problems_of):
    change(instruction=None, positive_candidates=["z"])
    (root / INDEX).write_text((root / INDEX).read_text() + "\na b")
    messages = [problem.message for problem in problems_of(pinpoint.load, root, "test")]
    assert messages == [
        "holds 2 fields, expected 1: signature",
        "'instruction' is null (None), expected text",
        "positive_candidates 'z' is not in index_signatures.txt",
    ]


def test_what_is_no_parquet_file(root, problems_of):
    (root / QUERIES).write_bytes(b"[]")
    (problem,) = problems_of(pinpoint.load, root, "test")
    assert problem.message.startswith("cannot be read as Parquet (")
    assert problem.fix == "restore the published file"


def test_without_pyarrow_the_message_names_the_extra(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        ComposirError,
        match=r"needs the package pyarrow, which is not installed; fix: pip install ('pyarrow|-e \.\[parquet\])",
    ):
        pinpoint.load(root, "test")


def test_what_is_not_there(root, tmp_path, problems_of):
    with pytest.raises(SplitNotFoundError, match="PinPoint has no split 'val'"):
        pinpoint.load(root, "val")
    with pytest.raises(ComposirError, match=r"no pinpoint_licensed.parquet file in it|no such folder"):
        pinpoint.load(tmp_path / "other", "test")
    (root / INDEX).unlink()
    (problem,) = problems_of(pinpoint.load, root, "test")
    assert (problem.file, problem.message) == (str(root / INDEX), "the file is missing")


def test_images_in_one_folder_are_found(root):
    (root / "images").mkdir()
    for letter in "abcdefghr":
        (root / f"images/{8 * letter}.jpg").write_bytes(b"x")
    (split,) = load_splits("PinPoint", root, "test")
    assert split.images["bbbbbbbb"] == root / "images/bbbbbbbb.jpg"


def test_a_query_goes_with_any_of_its_references_and_negatives(root):
    for letter in "abcdgh":  # the negative e of two queries, the negative f of two and the reference r are not there
        file = root / f"736x/{2 * letter}/{2 * letter}/{2 * letter}/{8 * letter}.jpg"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x")
    splits, _ = without_missing_images(pinpoint.load(root, "test"))
    assert [query.id for query in splits[0].queries] == ["query_00004"]


def test_val_union_keeps_what_queries_name(root):
    (split,) = load_splits("PinPoint", root, "test", gallery="val-union", annotations_only=True)
    assert split.gallery == tuple(8 * letter for letter in "abcdefghr")


def test_figures_equal_those_of_the_published_evaluator(tmp_path):
    golden = json.loads(GOLDEN.read_text())
    (tmp_path / QUERIES).write_bytes(serialise(QUERIES, golden["rows"]))
    (tmp_path / INDEX).write_text("\n".join(golden["index"]))
    (tmp_path / "results.json").write_text(json.dumps(golden["results"]))
    splits = load_splits("PinPoint", tmp_path, "test", annotations_only=True)
    metrics = measure({"composed": read_predictions([tmp_path / "results.json"], splits)}).metrics
    expected = {
        "map_at_10": "mAP@10",
        "map_without_negatives_at_10": "mAP@10_noNeg",
        "negative_rate_at_10": "NegRecall@10",
        "precision_at_10": "precision@10",
        "recall_at_1": "precision@1",
        "paraphrase_range_at_10": "ling_sens_range",
        "paraphrase_deviation_at_10": "ling_sens_std",
    }
    assert {key: metrics[key] for key in expected} == pytest.approx(
        {key: golden["figures"][theirs] for key, theirs in expected.items()}, rel=1e-12
    )
