"""Re-ranking by hand: who moves, who stays, what is scored, what it cannot pass."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from composir.errors import ComposirError
from composir.evaluation import load_rankings, measure, rank, save_rankings
from composir.evaluation.rerank import before_reranking, rerank
from composir.evaluation.result import Rerank


class Table:
    """Scores pairs by the candidate's name, and remembers what it was asked."""

    def __init__(self, scores):
        self.scores, self.asked = scores, []

    def match(self, references, texts, candidates, gallery):
        self.asked += [
            (reference.stem if reference else None, text, candidate.stem)
            for reference, text, candidate in zip(references, texts, candidates, strict=True)
        ]
        return torch.tensor([self.scores[candidate.stem] for candidate in candidates], dtype=torch.float32)


@pytest.fixture
def split(make_query, make_split):
    queries = [
        make_query(1, "g0", ["g4"], ["g4", "g3"], "is red"),
        make_query(2, "g0", ["g5"], ["g5", "g1"], "is blue"),
    ]
    return make_split(queries, 6)


@pytest.fixture
def ranking(split):
    # The reference g0 is taken out; the first stage ranks g1 g2 g3 g4 g5 for both.
    return rank(torch.tensor([[0.0, 0.9, 0.8, 0.7, 0.6, 0.5]] * 2), split)


SCORES = {"g1": 0.1, "g2": 0.4, "g3": 0.2, "g4": 0.3, "g5": 9.0}


def names(ranking, row):
    return [ranking.split.gallery[place] for place in ranking.top[row] if place >= 0]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_best_are_ordered_anew_and_the_others_stay(ranking, batch_size):
    matcher = Table(SCORES)
    (done,) = rerank({"composed": [ranking]}, matcher, 4, batch_size=batch_size)["composed"]
    # g1 g2 g3 g4 by score: g2 .4, g4 .3, g3 .2, g1 .1; g5 has the highest score and stays fifth: it is no candidate
    assert names(done, 0) == ["g2", "g4", "g3", "g1", "g5"]
    assert done.target_ranks.tolist() == [2, 5]
    assert done.scores[0, :4].tolist() == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert np.isnan(done.scores[0, 4])
    assert np.isneginf(done.scores[0, 5:]).all()
    # subset members are scored, candidates or not: g4 .3 before g3 .2; g5 9 before g1 .1
    assert done.subset == (("g4", "g3"), ("g5", "g1"))
    # query 1: four candidates, its subset among them; query 2: the four and its member g5
    assert len(matcher.asked) == len(set(matcher.asked)) == 4 + 5


def test_ties_are_pessimistic_and_in_the_gallery_s_order(ranking):
    (done,) = rerank({"composed": [ranking]}, Table(dict.fromkeys(SCORES, 1.0)), 4)["composed"]
    assert names(done, 0) == ["g1", "g2", "g3", "g4", "g5"]
    assert done.target_ranks.tolist() == [4, 5]
    assert done.subset == (("g3", "g4"), ("g1", "g5"))


def test_the_picture_alone_is_asked_once_for_all_its_sentences(ranking):
    matcher = Table(SCORES)
    rerank({"image_only": [ranking]}, matcher, 2)
    # both queries ask with g0 alone: candidates g1 g2, subset members g4 g3 and g5 g1
    assert sorted(matcher.asked) == [("g0", "", name) for name in ("g1", "g2", "g3", "g4", "g5")]
    matcher = Table(SCORES)
    rerank({"text_only": [ranking]}, matcher, 1)
    assert {reference for reference, _, _ in matcher.asked} == {None}


def test_the_ceiling_is_the_recall_of_the_candidates(ranking):
    # ranks of the targets: 4 and 5
    assert [before_reranking([ranking], count).ceiling for count in (3, 4, 5)] == [0.0, 0.5, 1.0]
    assert before_reranking([ranking], 4).first_stage["recall_at_5"] == 1.0


def test_a_score_that_is_no_number_is_refused(ranking):
    with pytest.raises(ComposirError, match=r"gave 1 scores for 1 pairs, 1 not a number"):
        rerank({"composed": [ranking]}, Table({**SCORES, "g1": float("nan")}), 2, batch_size=1)


def test_reranked_figures_carry_it_in_their_signature_and_their_file(ranking, tmp_path):
    plain = measure({"composed": [ranking]})
    before = before_reranking([ranking], 4)
    done = rerank({"composed": [ranking]}, Table(SCORES), 4)
    result = measure(done, rerank=before)
    assert "rerank:matching-head,-best-4" in result.signature
    assert result.signature != plain.signature
    assert result.to_json()["rerank"] == {"num_candidates": 4, "ceiling": 0.5, "first_stage": plain.metrics}
    assert "rerank" not in plain.to_json()
    save_rankings(result, tmp_path / "r.safetensors")
    saved = load_rankings(tmp_path / "r.safetensors")
    assert isinstance(saved.rerank, Rerank)
    again = measure(saved.rankings, signature=saved.signature_fields, rerank=saved.rerank)
    assert json.dumps(again.to_json()) == json.dumps(result.to_json())


def test_more_candidates_than_a_ranking_keeps(make_query, make_split):
    split = make_split([make_query(1, "g0", ["g69"])], 70, dataset="own")
    ranking = rank(torch.arange(70, 0, -1).float()[None], split, depth=69)
    scores = {f"g{place}": float(place) for place in range(70)}
    (done,) = rerank({"composed": [ranking]}, Table(scores), 69)["composed"]
    assert done.top.shape == (1, 50)
    assert names(done, 0)[0] == "g69"
    assert done.target_ranks.tolist() == [1]
    assert Path("g69.png") == split.images["g69"]


def test_ranks_of_all_right_answers_move_with_them(make_split, make_query):
    query = make_query(1, "g0", ["g4", "g2"], gallery=["g1", "g2", "g3", "g4", "g5"])
    first_stage = rank(torch.tensor([[0.0, 0.9, 0.8, 0.7, 0.6, 0.5]]), make_split([query], 6, dataset="i-CIR"))
    assert first_stage.right_ranks.tolist() == [[4, 2]]
    (done,) = rerank({"composed": [first_stage]}, Table(SCORES), 3)["composed"]
    # Of the best three g1 g2 g3 the scores are .1 .4 .2: g2 comes first; g4 stays fourth.
    assert done.right_ranks.tolist() == [[4, 1]]
    assert first_stage.right_ranks.tolist() == [[4, 2]]
