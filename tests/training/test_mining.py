from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from composir.data.triplets import Query, Split
from composir.errors import ComposirError
from composir.evaluation import rank
from composir.training.mining import mine, read_mined, write_mined


@pytest.fixture
def ranking():
    """Two queries over ten images with scores 0.9, 0.8, ..., 0.0; the targets have ranks 4 and 10."""
    gallery = tuple(f"g{place}" for place in range(10))
    queries = tuple(
        Query(str(number), "g9", text, (text,), targets=(target,))
        for number, (target, text) in enumerate([("g3", "is\u2028red"), ("g8", "is blue")])
    )
    split = Split(
        "LaSCo",
        "train",
        "",
        queries,
        gallery,
        {name: Path(name) for name in gallery},
        "original",
        False,
        "as annotated",
    )
    return rank(torch.linspace(0.9, 0, 10).repeat(2, 1), split)


def test_likely_right_answers_are_left_out(ranking):
    mined = mine([ranking], depth=8, skip=1, margin=0.0)
    # Rank 4 is right; 3 and 5 stand beside it; 9 and 10 lie below the depth. The second target lies there, too.
    assert mined["", "0"] == ["g0", "g1", "g5", "g6", "g7"]
    assert mined["", "1"] == [f"g{place}" for place in range(8)]


def test_scores_near_the_target_are_left_out(ranking):
    mined = mine([ranking], depth=8, skip=0, margin=0.15)
    # The target scores 0.6; 0.7 and 0.5 are within 0.15 of it.
    assert mined["", "0"] == ["g0", "g1", "g5", "g6", "g7"]


def test_a_query_without_negatives_has_no_entry(ranking):
    assert ("", "0") not in mine([ranking], depth=4, skip=3, margin=0.0)


def test_what_was_mined_is_a_file_for_people(ranking, tmp_path):
    mined = mine([ranking], depth=8, skip=1, margin=0.0)
    file = tmp_path / "mined" / "epoch-1.jsonl"
    write_mined(mined, [ranking], file)
    assert read_mined(file) == mined
    assert json.loads(file.read_text(encoding="utf-8").split("\n")[1]) == {
        "category": "",
        "id": "1",
        "reference": "g9",
        "text": "is blue",
        "target": "g8",
        "target_rank": 9,
        "negatives": [f"g{place}" for place in range(8)],
    }


@pytest.mark.parametrize(
    "content", [None, "{", "[1]", '{"category": "", "id": "1"}', '{"category": "", "id": 1, "negatives": 3}']
)
def test_a_damaged_file_is_named(tmp_path, content):
    file = tmp_path / "epoch-1.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(
        ComposirError, match=r"epoch-1\.jsonl: cannot be read .*expected the negatives that the run mined"
    ):
        read_mined(file)
