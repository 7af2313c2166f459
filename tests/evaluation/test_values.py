"""What a ranking is worth to groups of queries: every figure by hand, or by a short slow version that it must equal."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from composir.evaluation import Saved, compare, intervals, measure, rank, signature_fields
from composir.evaluation.metrics import bootstrap
from composir.evaluation.ranking import select
from composir.evaluation.values import group_numbers, whole_precision

NUM_IMAGES = 60


def descending(split):
    """Return the ranking of scores that fall from g0 to the last image."""
    return rank(torch.linspace(1, 0, len(split.gallery)).repeat(len(split.queries), 1), split)


def figures_of(split):
    return measure({"composed": [descending(split)]}).metrics


def test_map_per_instance_by_hand(make_split, make_query):
    bell = [f"g{place}" for place in range(6)]
    cup = [f"g{place}" for place in range(10, 14)]
    queries = [
        make_query(0, "g59", ["g0", "g2"], gallery=bell, group="bell"),  # ranks 1, 3
        make_query(1, "g58", ["g1"], gallery=bell, group="bell"),  # rank 2
        make_query(2, "g57", ["g13"], gallery=cup, group="cup"),  # rank 4
    ]
    split = make_split(queries, NUM_IMAGES, dataset="i-CIR", exclude_reference=False)
    # Before and at each right answer: (1 + 1) / 2 and (1/2 + 2/3) / 2; (0 + 1/2) / 2; (0 + 1/4) / 2.
    precisions = [(1 + 7 / 12) / 2, 1 / 4, 1 / 8]
    ranking = descending(split)
    assert ranking.right_ranks.tolist() == [[1, 3], [2, 0], [4, 0]]
    assert whole_precision(ranking, 0) == pytest.approx(precisions)
    metrics = figures_of(split)
    assert metrics["map"] == pytest.approx(np.mean(precisions))
    assert metrics["instance_map"] == pytest.approx(((precisions[0] + precisions[1]) / 2 + precisions[2]) / 2)
    assert metrics["instance_worst_map"] == pytest.approx((1 / 4 + 1 / 8) / 2)


def test_paraphrases_and_negatives_by_hand(make_split, make_query):
    queries = [
        make_query(0, "g59", ["g0", "g3", "g20"], group="a", negatives=["g1", "g2", "g30"]),
        make_query(1, "g59", ["g4"], group="a", negatives=["g9", "g10"]),
        make_query(2, "g59", ["g1"], group="b", negatives=[]),
        make_query(3, "g59", ["g5", "g6", "g7"], group="c", negatives=[f"g{place}" for place in range(8, 59)]),
        make_query(4, "g59", ["g30"], group="c", negatives=["g30", "g0"]),
    ]
    metrics = figures_of(make_split(queries, NUM_IMAGES, dataset="PinPoint", exclude_reference=False))
    assert metrics["map_at_10"] == pytest.approx(
        ((1 + 2 / 4) / 3 + 1 / 5 + 1 / 2 + (1 / 6 + 2 / 7 + 3 / 8) / 3 + 0) / 5
    )
    # Without g1 and g2 the right answers of the first stand at 1 and 2; the others have no negative before theirs, and
    # the last query's only right answer goes.
    assert metrics["map_without_negatives_at_10"] == pytest.approx(
        ((1 + 2 / 2) / 3 + 1 / 5 + 1 / 2 + (1 / 6 + 2 / 7 + 3 / 8) / 3 + 0) / 5
    )
    assert metrics["negative_rate_at_10"] == pytest.approx((2 / 3 + 1 / 2 + 0 + 2 / 10 + 1 / 2) / 5)
    # Precision is 2/10 and 1/10 in a, 3/10 and 0 in c; b has one wording and does not count.
    assert metrics["precision_at_10"] == pytest.approx((2 + 1 + 1 + 3 + 0) / 50)
    assert metrics["paraphrase_best_at_10"] == pytest.approx((2 / 10 + 3 / 10) / 2)
    assert metrics["paraphrase_worst_at_10"] == pytest.approx((1 / 10 + 0) / 2)
    assert metrics["paraphrase_range_at_10"] == pytest.approx((1 / 10 + 3 / 10) / 2)
    assert metrics["paraphrase_deviation_at_10"] == pytest.approx((1 / 20 + 3 / 20) / 2)


def test_repeats_of_a_published_list_count_in_what_is_divided_by(make_split, make_query):
    query = make_query(0, "g59", ["g1"], negatives=["g0", "g20"], num_listed=(3, 4))
    metrics = figures_of(make_split([query], NUM_IMAGES, dataset="PinPoint", exclude_reference=False))
    assert metrics["map_at_10"] == pytest.approx(1 / 2 / 3)
    assert metrics["map_without_negatives_at_10"] == pytest.approx(1 / 3)
    assert metrics["negative_rate_at_10"] == pytest.approx(1 / 4)
    assert "paraphrase_range_at_10" not in metrics  # a group of one wording has no spread


def test_rounds_by_hand(make_split, make_query):
    # The target's rank in the rounds of three sessions: 12, 3; 9, 30, 40; 50, 6, 7, 8.
    sessions = {"a": [12, 3], "b": [9, 30, 40], "c": [50, 6, 7, 8]}
    places = [(session, place) for session, ranks in sessions.items() for place in ranks]
    queries = [
        make_query(number, "g59", [f"g{place - 1}"], group=session) for number, (session, place) in enumerate(places)
    ]
    metrics = figures_of(make_split(queries, NUM_IMAGES, dataset="MT-FashionIQ", exclude_reference=False))
    # Found among the best ten by round 1: b; by round 2 all: a in its second, b before, c in its second.
    assert [metrics[f"hits_round_{number}_at_10"] for number in (1, 2, 3, 4)] == pytest.approx([1 / 3, 1, 1, 1])
    assert metrics["last_round_recall_at_5"] == pytest.approx(1 / 3)  # 3, 40, 8
    assert metrics["last_round_recall_at_8"] == pytest.approx(2 / 3)
    assert metrics["mean_last_r5_r8"] == pytest.approx(1 / 2)
    assert metrics["recall_at_10"] == pytest.approx(5 / 9)


def test_a_round_is_a_hit_by_any_right_answer(make_split, make_query):
    # The ranks of two right answers in a session's five rounds; six rounds are asked for.
    ranks = [(30, 50), (12, 11), (40, 9), (1, 2), (60, 20)]
    queries = [
        make_query(number, "g59", [f"g{place - 1}" for place in places], group="a")
        for number, places in enumerate(ranks)
    ]
    metrics = figures_of(make_split(queries, NUM_IMAGES, dataset="CIRCLED", exclude_reference=False))
    assert [metrics[f"hits_round_{number}_at_10"] for number in range(1, 7)] == [0, 0, 1, 1, 1, 1]
    assert metrics["recall_at_1"] == pytest.approx(1 / 5)
    assert metrics["recall_at_10"] == pytest.approx(2 / 5)
    assert metrics["recall_at_50"] == 1


def test_negatives_stand_before_others_of_equal_score(make_split, make_query):
    query = make_query(0, "g59", ["g0"], negatives=["g7"])
    split = make_split([query], 10, dataset="EDIR", exclude_reference=False)
    order = rank(torch.zeros(1, 10), split).top[0, :10].tolist()
    assert order == [7, 1, 2, 3, 4, 5, 6, 8, 9, 0]


@pytest.mark.parametrize("further", [(), ("g0",)])
def test_all_references_are_taken_out(make_split, make_query, further):
    query = make_query(0, "g1", ["g5"], further_references=further)
    top = descending(make_split([query], 10, dataset="PinPoint")).top[0].tolist()
    assert (0 in top, 1 in top) == (not further, False)


# -- groups are drawn whole --------------------------------------------------------------------------------------------


def test_groups_are_numbered_in_their_order(make_split, make_query):
    groups = ["b", "", "a", "b", "", "a"]
    queries = [make_query(number, "g9", ["g1"], group=group) for number, group in enumerate(groups)]
    assert group_numbers(make_split(queries, 10)).tolist() == [0, 1, 2, 0, 3, 2]


def test_the_bootstrap_of_groups_equals_the_short_version():
    rng = np.random.default_rng(0)
    values = np.column_stack([rng.random(12), rng.random(12)])
    values[[0, 4, 5], 1] = np.nan
    groups = np.array([0, 0, 1, 2, 2, 2, 2, 3, 3, 3, 0, 1])
    drawn = np.random.default_rng(7).integers(0, 4, (50, 4))
    expected = [
        [np.nanmean(np.concatenate([values[groups == group, column] for group in row])) for column in (0, 1)]
        for row in drawn
    ]
    np.testing.assert_allclose(bootstrap(values, 50, np.random.default_rng(7), groups), expected)


def test_queries_that_stand_alone_are_drawn_as_without_groups():
    values = {"": {"a": np.random.default_rng(1).random(30)}}
    assert intervals(values, {"": np.arange(30)}) == intervals(values)


def test_the_interval_of_grouped_queries_is_wider(make_split, make_query):
    """Ten sentences that say the same and are found alike tell no more than one."""
    queries = [
        make_query(number, "g59", ["g0" if number % 20 < 10 else "g50"], group=f"{number // 10}")
        for number in range(40)
    ]
    split = make_split(queries, NUM_IMAGES, dataset="PinPoint", exclude_reference=False)
    alone = dataclasses.replace(split, queries=tuple(dataclasses.replace(query, group="") for query in queries))
    low, high = measure({"composed": [descending(split)]}).intervals["map_at_10"]
    low_alone, high_alone = measure({"composed": [descending(alone)]}).intervals["map_at_10"]
    assert high - low > 2 * (high_alone - low_alone)


def test_compare_flips_groups_whole(make_split, make_query):
    """Two groups of five that all gain: of four sign changes two reach as far, so p is near 1/2 and not 2 / 2^10."""
    queries = [make_query(number, "g59", ["g30"], group=f"{number // 5}") for number in range(10)]
    split = make_split(queries, NUM_IMAGES, dataset="PinPoint", exclude_reference=False)
    scores = torch.linspace(1, 0, NUM_IMAGES).repeat(10, 1)
    better = scores.clone()
    better[:, 30] = 2
    results = {
        name: [Saved({"composed": (rank(one, split),)}, signature_fields([split], weights_hash=name), name)]
        for name, one in {"a": scores, "b": better}.items()
    }
    (one,) = compare(results).differences
    assert (one.delta, one.num_queries) == (1, 10)
    assert one.p_value == pytest.approx(1 / 2, abs=0.02)


def test_what_is_left_of_a_group_is_measured_anew(make_split, make_query):
    """Without the query that one modality solves, which stands first, its instance still counts."""
    gallery = [f"g{place}" for place in range(30)]
    queries = [
        make_query(0, "g59", ["g0"], gallery=gallery, group="bell"),
        make_query(1, "g59", ["g19"], gallery=gallery, group="bell"),
    ]
    split = make_split(queries, NUM_IMAGES, dataset="i-CIR", exclude_reference=False)
    ranking = descending(split)
    audit = measure(dict.fromkeys(("composed", "image_only", "text_only"), (ranking,))).audit
    assert audit.num_shortcut_solvable == 1
    assert audit.shortcut_free["instance_map"] == pytest.approx(1 / 20 / 2)
    assert select(ranking, np.array([False, True])).split.queries == (queries[1],)


def test_the_better_baseline_of_a_rate_of_errors_is_the_lower(make_split, make_query):
    query = make_query(0, "g59", ["g0"], negatives=["g10"])
    split = make_split([query], NUM_IMAGES, dataset="EDIR", exclude_reference=False)
    falling = torch.linspace(1, 0, NUM_IMAGES)[None]
    with_negative = falling.clone()
    with_negative[0, 10] = 2
    kinds = {"composed": falling, "image_only": with_negative, "text_only": falling}
    result = measure({kind: [rank(scores, split)] for kind, scores in kinds.items()})
    gain = result.audit.gain["negative_rate_at_10"]
    assert (gain.over, gain.delta) == ("text_only", 0)
