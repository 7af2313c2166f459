from __future__ import annotations

import dataclasses

import pytest
import torch

from composir.errors import ComposirError
from composir.evaluation import audit_lines, measure, rank

NUM_IMAGES = 60
IMAGE_RANKS = [1, 3, 40, 60, 60, 60, 60, 60]
TEXT_RANKS = [2, 30, 5, 11, 60, 60, 60, 60]
COMPOSED_RANKS = [1, 1, 12, 1, 6, 11, 60, 1]


@pytest.fixture
def rank_at(make_split, make_query):
    """Make a ranking in which the target of query k has the k-th of the given ranks."""

    def make(ranks, dataset="LaSCo"):
        queries = [make_query(number, "g0", [f"g{number + 1}"]) for number in range(len(ranks))]
        split = make_split(queries, NUM_IMAGES, dataset=dataset, exclude_reference=False)
        scores = torch.linspace(1, 0, NUM_IMAGES - 1).repeat(len(ranks), 1)  # of all others, in the gallery's order
        rows = []
        for number, target_rank in enumerate(ranks):
            row = torch.full((NUM_IMAGES,), -1.0)
            others = [place for place in range(NUM_IMAGES) if place != number + 1]
            row[others] = scores[number]
            if target_rank < NUM_IMAGES:  # a tie with the image of that rank, which comes first, gives rank + 1
                row[number + 1] = scores[number, target_rank - 1] + 1e-4
            rows.append(row)
        return rank(torch.stack(rows), split)

    return make


@pytest.fixture
def result(rank_at):
    return measure(
        {
            "composed": [rank_at(COMPOSED_RANKS)],
            "image_only": [rank_at(IMAGE_RANKS)],
            "text_only": [rank_at(TEXT_RANKS)],
        }
    )


def test_a_baseline_of_other_figures_is_refused_and_half_of_cirrs_files_make_no_audit(make_split, make_query):
    queries = [make_query(number, "g0", [f"g{number + 1}"], subset=["g1", "g2", "g3"]) for number in range(3)]
    split = make_split(queries, NUM_IMAGES)
    whole = rank(torch.linspace(1, 0, NUM_IMAGES).repeat(3, 1), split)
    half = dataclasses.replace(whole, subset=((),) * 3)
    with pytest.raises(ComposirError, match="the text only ranking gives other figures than the composed one"):
        measure({"composed": [whole], "image_only": [whole], "text_only": [half]})
    assert measure({"composed": [whole], "image_only": [whole], "text_only": [whole]}).audit is not None
    result = measure({"composed": [half], "image_only": [half], "text_only": [half]})
    assert (result.audit, set(result.baselines)) == (None, {"image_only", "text_only"})


def test_ranks_are_as_asked(rank_at):
    assert rank_at(COMPOSED_RANKS).target_ranks.tolist() == COMPOSED_RANKS


def test_the_audit_by_hand(result):
    audit = result.audit
    assert (audit.k, audit.num_queries) == (10, 8)
    assert audit.num_image_solves == 2  # ranks 1 and 3
    assert audit.num_text_solves == 2  # ranks 2 and 5
    assert audit.num_shortcut_solvable == 3  # queries 0, 1 and 2
    assert audit.num_composition_required == 3  # of the other five, composed ranks 1, 6 and 1
    assert audit.num_unresolved == 2  # ranks 11 and 60
    assert audit.shortcut_free == pytest.approx(
        {
            "recall_at_1": 2 / 5,
            "recall_at_5": 2 / 5,
            "recall_at_10": 3 / 5,
            "recall_at_50": 4 / 5,
        }
    )


def test_the_gain_is_over_the_better_modality(result):
    gain = result.audit.gain
    # R@1: composed 4 / 8, image 1 / 8, text 0. R@50: composed 7 / 8, image 3 / 8, text 4 / 8.
    assert (gain["recall_at_1"].over, gain["recall_at_1"].delta) == ("image_only", 3 / 8)
    assert (gain["recall_at_50"].over, gain["recall_at_50"].delta) == ("text_only", 3 / 8)
    for one in gain.values():
        assert one.low <= one.delta <= one.high
    assert gain["recall_at_1"].low >= 0  # the only query that the image solves at once is solved by both


def test_an_audit_where_one_modality_solves_everything(rank_at):
    audit = measure({kind: [rank_at([1, 1])] for kind in ("composed", "image_only", "text_only")}).audit
    assert (audit.num_shortcut_solvable, audit.num_composition_required, audit.num_unresolved) == (2, 0, 0)
    assert audit.shortcut_free == {}
    assert {(one.delta, one.low, one.high) for one in audit.gain.values()} == {(0, 0, 0)}


def test_the_audit_in_sentences(result):
    assert audit_lines(result) == [
        "of 8 queries, one modality alone solves (target among the best 10) 3 (38%): the picture 2 (25%), "
        "the sentence 2 (25%); only both together 3 (38%); neither 2 (25%)",
        "R@10 on the queries that no single modality solves: 60.00",
        # Composed 5 / 8; image alone and text alone 2 / 8 each.
        "R@10 gained over image only: +37.50 "
        f"({100 * result.audit.gain['recall_at_10'].low:+.2f} to {100 * result.audit.gain['recall_at_10'].high:+.2f})",
    ]


def test_without_both_baselines_there_is_no_audit(rank_at):
    result = measure({"composed": [rank_at([1])], "text_only": [rank_at([1])]})
    assert result.audit is None
    assert audit_lines(result) == []
