"""Groups of results beside each other: every figure by hand, or by a short slow version that it must equal."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from composir.errors import ComposirError
from composir.evaluation import Saved, compare, measure, rank, signature_fields
from composir.evaluation.significance import holm

NUM_IMAGES = 60


@pytest.fixture
def split_of(make_split, make_query):
    """Make a split whose queries ask for g10, g11, ..., each with its own aspects; LaSCo's primary is R@10."""

    def make(num_queries, *, aspects=None, dataset="LaSCo", **rules):
        queries = [
            make_query(number, "g59", [f"g{10 + number}"], aspects=(aspects or {}).get(number, ()))
            for number in range(num_queries)
        ]
        return make_split(queries, NUM_IMAGES, dataset=dataset, exclude_reference=False, **rules)

    return make


def ranking_at(split, ranks):
    """Return the ranking in which the target of each query has the rank given."""
    similarity = torch.empty(len(split.queries), NUM_IMAGES)
    for row, (query, rank_) in enumerate(zip(split.queries, ranks, strict=True)):
        order = [place for place, name in enumerate(split.gallery) if name != query.targets[0]]
        order.insert(rank_ - 1, split.gallery.index(query.targets[0]))
        similarity[row, order] = torch.linspace(1, 0, NUM_IMAGES)
    return rank(similarity, split)


def saved(splits, ranks, *, weights="unknown", seed=None, path="a"):
    """Return a saved result on one split, or on one per category."""
    if not isinstance(splits, list):
        splits, ranks = [splits], [ranks]
    rankings = tuple(ranking_at(*pair) for pair in zip(splits, ranks, strict=True))
    fields = signature_fields(splits, weights_hash=weights)
    return Saved({"composed": rankings}, fields, Path(path), seed)


def runs(split, ranks_by_seed, prefix):
    return [
        saved(split, ranks, weights=f"{prefix}{seed}", seed=seed, path=f"{prefix}{seed}")
        for seed, ranks in ranks_by_seed.items()
    ]


# -- over queries ------------------------------------------------------------------------------------------------------


def test_two_results_by_hand(split_of):
    split = split_of(4)
    groups = {"a": [saved(split, [1, 11, 11, 11])], "b": [saved(split, [1, 1, 1, 11], path="b")]}
    comparison = compare(groups)
    (one,) = comparison.differences
    # R@10: 1/4 and 3/4. Two queries differ, by 1/4 each: sums of sign changes 2/4, 0, 0, -2/4, so p is near 1/2.
    assert (one.a, one.b, one.metric) == ("a", "b", "recall_at_10")
    assert one.delta == pytest.approx(2 / 4)
    assert one.p_value == pytest.approx(1 / 2, abs=0.02)
    assert one.p_adjusted == one.p_value
    assert (one.num_queries, one.num_seeds, one.over_seeds) == (4, 1, None)
    assert [row.metrics["recall_at_10"] for row in comparison.rows] == [1 / 4, 3 / 4]
    assert [row.metrics["recall_at_1"] for row in comparison.rows] == [1 / 4, 3 / 4]


def test_rows_are_what_evaluate_says(split_of):
    split = split_of(30)
    ranks = [1 + 3 * (number % 17) for number in range(30)]
    result = saved(split, ranks)
    rows = compare({"a": [result], "b": [saved(split, [1] * 30, path="b")]}).rows
    expected = measure(result.rankings)
    assert rows[0].metrics == expected.metrics
    assert rows[0].intervals == expected.intervals


@pytest.mark.parametrize("metric", ["recall_at_10", "recall_at_1", "recall_at_50"])
def test_identical_results_do_not_differ(split_of, metric):
    split = split_of(5)
    result = saved(split, [1, 5, 12, 30, 55])
    (one,) = compare({"a": [result], "b": [result]}, [metric]).differences
    assert (one.delta, one.low, one.high, one.p_value, one.p_adjusted) == (0, 0, 0, 1, 1)


def test_one_query_alone_says_nothing(split_of):
    split = split_of(1)
    (one,) = compare({"a": [saved(split, [20])], "b": [saved(split, [1], path="b")]}).differences
    # Either sign is as far from zero: p = 1. Every draw is the one query.
    assert (one.delta, one.low, one.high, one.p_value, one.num_queries) == (1, 1, 1, 1, 1)


def test_the_interval_equals_the_short_version(split_of):
    split = split_of(20)
    rng = np.random.default_rng(3)
    first, second = (rng.integers(1, 25, 20).tolist() for _ in range(2))
    groups = {"a": [saved(split, first)], "b": [saved(split, second, path="b")]}
    (one,) = compare(groups, num_resamples=200, seed=5).differences
    drawn = np.random.default_rng(5).integers(0, 20, (200, 20))
    changes = []
    for row in drawn.tolist():
        share_b = sum(second[query] <= 10 for query in row) / 20
        share_a = sum(first[query] <= 10 for query in row) / 20
        changes.append(share_b - share_a)
    assert (one.low, one.high) == pytest.approx((np.quantile(changes, 0.025), np.quantile(changes, 0.975)))
    assert one.low < one.high


# -- categories and aspects --------------------------------------------------------------------------------------------


def test_categories_count_the_same_whatever_their_size(split_of):
    splits = [split_of(number, dataset="FashionIQ", category=name) for name, number in (("dress", 2), ("shirt", 4))]
    a = saved(splits, [[60, 60], [60, 60, 60, 60]])
    b = saved(splits, [[1, 60], [1, 1, 1, 60]], path="b")
    # The categories may come in any order.
    b = dataclasses.replace(b, rankings={"composed": b.rankings["composed"][::-1]})
    whole, dress, shirt = compare(
        {"a": [a], "b": [b]}, ["recall_at_10", "dress.recall_at_10", "shirt.recall_at_10"]
    ).differences
    # (1/2 + 3/4) / 2 = 5/8 over six queries: dresses weigh 1/4 each, shirts 1/8.
    assert (whole.delta, whole.num_queries) == (5 / 8, 6)
    assert (dress.delta, dress.num_queries) == (1 / 2, 2)
    assert (shirt.delta, shirt.num_queries) == (3 / 4, 4)
    # Of sixteen sums of +-1/4, +-1/8, +-1/8, +-1/8 two are +-5/8; of two sums of a single one both are as far; of eight
    # sums of three +-1/4 two are.
    assert whole.p_value == pytest.approx(2 / 16, abs=0.02)
    assert dress.p_value == 1
    assert shirt.p_value == pytest.approx(2 / 8, abs=0.02)


def test_the_interval_over_categories_is_drawn_within_them(split_of):
    splits = [split_of(number, dataset="FashionIQ", category=name) for name, number in (("dress", 3), ("shirt", 5))]
    ranks = [[1, 60, 11], [5, 60, 1, 30, 60]]
    groups = {"a": [saved(splits, [[60] * 3, [1] * 5])], "b": [saved(splits, ranks, path="b")]}
    (one,) = compare(groups, ["recall_at_10"], num_resamples=50, seed=9).differences
    rng = np.random.default_rng(9)
    dresses, shirts = rng.integers(0, 3, (50, 3)), rng.integers(0, 5, (50, 5))
    changes = [
        (
            np.mean([ranks[0][query] <= 10 for query in dress])
            + np.mean([(ranks[1][query] <= 10) - 1 for query in shirt])
        )
        / 2
        for dress, shirt in zip(dresses, shirts, strict=True)
    ]
    assert (one.low, one.high) == pytest.approx((np.quantile(changes, 0.025), np.quantile(changes, 0.975)))


def test_an_aspect_counts_the_queries_that_have_it(split_of):
    split = split_of(4, dataset="CIRCO", aspects={0: ["addition"], 2: ["addition"], 3: ["negation"]})
    groups = {"a": [saved(split, [60] * 4)], "b": [saved(split, [1, 1, 2, 60], path="b")]}
    comparison = compare(groups, ["addition.map_at_10", "negation.map_at_10", "map_at_10"])
    addition, negation, whole = comparison.differences
    # One right answer each: average precision 1 at rank 1, 1/2 at rank 2.
    assert (addition.delta, addition.num_queries) == ((1 + 1 / 2) / 2, 2)
    assert addition.p_value == pytest.approx(2 / 4, abs=0.02)
    assert (negation.delta, negation.low, negation.high, negation.p_value, negation.num_queries) == (0, 0, 0, 1, 1)
    assert (whole.delta, whole.num_queries) == ((1 + 1 + 1 / 2) / 4, 4)
    assert json.dumps(comparison.to_json(), allow_nan=False)


# -- over seeds --------------------------------------------------------------------------------------------------------


def test_values_are_averaged_over_seeds_before_queries_are_compared(split_of):
    split = split_of(2)
    a = runs(split, {0: [1, 60], 1: [60, 60]}, "a")  # 1/2, 0
    b = runs(split, {0: [1, 1], 1: [1, 60]}, "b")  # 1, 1/2
    comparison = compare({"a": a, "b": b})
    (one,) = comparison.differences
    # Means over seeds of the two queries: a 1/2 and 0, b 1 and 1/2; each differs by 1/2.
    assert one.delta == 1 / 2
    assert (one.low, one.high) == (1 / 2, 1 / 2)
    assert one.p_value == pytest.approx(1 / 2, abs=0.02)
    assert (one.num_queries, one.num_seeds) == (2, 2)
    assert [row.metrics["recall_at_10"] for row in comparison.rows] == [1 / 4, 3 / 4]
    assert [run.metrics["recall_at_10"] for run in comparison.rows[0].runs] == [1 / 2, 0]
    assert [(run.path, run.seed, run.weights) for run in comparison.rows[1].runs] == [("b0", 0, "b0"), ("b1", 1, "b1")]


def test_runs_with_the_same_seeds_are_paired(split_of):
    split = split_of(4)
    a = runs(split, {3: [1, 60, 60, 60], 8: [60, 60, 60, 60]}, "a")  # 1/4, 0
    b = runs(split, {8: [1, 60, 60, 60], 3: [1, 1, 1, 60]}, "b")  # seed 8: 1/4, seed 3: 3/4
    (one,) = compare({"a": a, "b": b}).differences
    # Differences by seed 1/2 and 1/4: mean 3/8, standard error (1/4 / sqrt 2) / sqrt 2 = 1/8, t = 3 with one degree of
    # freedom, where p = 1 - 2 / pi * atan(t) and t of 97.5 % is tan(0.475 pi) = 12.706.
    test = one.over_seeds
    assert one.delta == pytest.approx(3 / 8)
    assert test.test == "paired t"
    assert test.p_value == pytest.approx(1 - 2 / math.pi * math.atan(3))
    assert (test.low, test.high) == pytest.approx((3 / 8 - 12.7062 / 8, 3 / 8 + 12.7062 / 8), abs=1e-4)
    assert test.p_value == pytest.approx(stats.ttest_rel([3 / 4, 1 / 4], [1 / 4, 0]).pvalue)
    assert test.p_adjusted == test.p_value


@pytest.mark.parametrize("seeds", [[(0, 1), (2, 3)], [(None, None), (None, None)], [(0, 0), (0, 0)], [(0, 1), (0, 2)]])
def test_runs_with_other_seeds_are_not_paired(split_of, seeds):
    split = split_of(4)
    ranks = {"a": ([1, 60, 60, 60], [60] * 4), "b": ([1, 1, 1, 60], [1, 1, 60, 60])}
    groups = {
        name: [
            saved(split, one, weights=f"{name}{number}", seed=seed, path=f"{name}{number}")
            for number, (one, seed) in enumerate(zip(ranks[name], seeds[place], strict=True))
        ]
        for place, name in enumerate("ab")
    }
    test = compare(groups).differences[0].over_seeds
    # 1/4, 0 and 3/4, 1/2: difference 1/2, variances 1/32 each, standard error sqrt(1/32) = 0.1768, t = 2.828 with two
    # degrees of freedom, where p = 1 - t / sqrt(t * t + 2) = 1 - 2.828 / 3.162 and t of 97.5 % is 4.3027.
    assert test.test == "Welch t"
    assert test.p_value == pytest.approx(1 - math.sqrt(8) / math.sqrt(10))
    assert (test.low, test.high) == pytest.approx(
        (0.5 - 4.3027 / math.sqrt(32), 0.5 + 4.3027 / math.sqrt(32)), abs=1e-4
    )


def test_a_group_of_one_run_has_no_test_over_seeds(split_of):
    split = split_of(2)
    a = runs(split, {0: [1, 60], 1: [1, 1], 2: [1, 60]}, "a")
    b = runs(split, {0: [1, 1], 1: [60, 60]}, "b")
    (one,) = compare({"a": a, "b": b}).differences
    assert (one.over_seeds.test, one.num_seeds) == ("Welch t", 2)  # of unequal size: of the smaller
    (one,) = compare({"a": a, "b": b[:1]}).differences
    assert (one.over_seeds, one.num_seeds) == (None, 1)


@pytest.mark.parametrize("seeds_of_b", [(0, 1), (2, 3)])
def test_runs_that_do_not_vary(split_of, seeds_of_b):
    split = split_of(2)
    a = runs(split, {0: [1, 60], 1: [1, 60]}, "a")
    better = runs(split, {seed: [1, 1] for seed in seeds_of_b}, "b")
    same = runs(split, {seed: [60, 1] for seed in seeds_of_b}, "c")
    one, other = compare({"a": a, "b": better, "c": same}).differences
    # Without spread the t of a difference is infinite, which two runs do not prove.
    assert (one.over_seeds.low, one.over_seeds.high, one.over_seeds.p_value, one.over_seeds.p_adjusted) == (None,) * 4
    assert (other.over_seeds.low, other.over_seeds.high, other.over_seeds.p_value) == (0, 0, 1)
    assert other.over_seeds.p_adjusted == 1


# -- several differences -----------------------------------------------------------------------------------------------


def test_all_differences_shown_are_corrected_for(split_of):
    split = split_of(12)
    a = runs(split, {0: [60] * 12, 1: [1] + [60] * 11}, "a")
    b = runs(split, {0: [1] * 9 + [60] * 3, 1: [1] * 8 + [60] * 4}, "b")
    c = runs(split, {0: [1] * 4 + [60] * 8, 1: [60] * 6 + [1] * 2 + [60] * 4}, "c")
    comparison = compare({"a": a, "b": b, "c": c}, ["recall_at_1", "recall_at_10"], all_pairs=True)
    assert [(one.a, one.b) for one in comparison.differences[::2]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [one.metric for one in comparison.differences[:2]] == ["recall_at_1", "recall_at_10"]
    differences = comparison.differences
    assert [one.p_adjusted for one in differences] == holm([one.p_value for one in differences])
    tests = [one.over_seeds for one in differences]
    assert [test.p_adjusted for test in tests] == holm([test.p_value for test in tests])
    assert any(one.p_adjusted > one.p_value for one in differences)


def test_the_first_is_what_the_others_are_compared_with(split_of):
    split = split_of(3)
    groups = {name: [saved(split, [1, 2, 60], path=name)] for name in ("c", "b", "a")}
    assert [(one.a, one.b) for one in compare(groups).differences] == [("c", "b"), ("c", "a")]


# -- what does not compare ---------------------------------------------------------------------------------------------


def assert_says(call, message):
    with pytest.raises(ComposirError) as error:
        call()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("field", "value", "own"),
    [
        ("dataset", "CIRR", "LaSCo"),
        ("split", "train", "val"),
        ("categories", "dress,shirt", "none"),
        ("gallery", "val-union", "original"),
        ("reference", "excluded", "kept"),
        ("text", "first", "as annotated"),
        ("ties", "optimistic", "pessimistic"),
        ("metrics", "0", "1"),
        ("composir", "0.0.1", None),
    ],
)
def test_every_field_of_the_signature_but_the_weights_must_agree(split_of, field, value, own):
    split = split_of(2)
    one, other = saved(split, [1, 2], path="one", weights="x"), saved(split, [1, 2], path="other", weights="y")
    changed = dataclasses.replace(other, signature_fields={**other.signature_fields, field: value})
    own = own or one.signature_fields[field]
    assert_says(
        lambda: compare({"a": [one], "b": [changed]}),
        f"other: {field} is {value!r}, not {own!r} as in one; "
        "expected results whose signatures differ in the weights alone; "
        "fix: evaluate both models by the same rules and the same version, with --save-rankings",
    )
    assert compare({"a": [one], "b": [other]}).signature_fields.keys() == one.signature_fields.keys() - {"weights"}


def test_all_fields_that_differ_are_named_within_a_group_too(split_of):
    one = saved(split_of(2), [1, 2], path="one")
    other = saved(split_of(2, name="train", dataset="Shoes"), [1, 2], path="other")
    third = saved(split_of(2), [1, 2], path="third")
    assert_says(
        lambda: compare({"a": [one, other], "b": [third]}),
        "other: dataset is 'Shoes', not 'LaSCo'; split is 'train', not 'val' as in one; "
        "expected results whose signatures differ in the weights alone; "
        "fix: evaluate both models by the same rules and the same version, with --save-rankings",
    )


def test_other_queries_do_not_compare(split_of):
    split, ending = split_of(3), (
        " in one and here; expected results on the same queries and gallery; "
        "fix: evaluate both models on the same data root, with --save-rankings"
    )  # fmt: skip
    one = saved(split, [1, 2, 3], path="one")
    fewer = saved(split_of(2), [1, 2], path="other")
    assert_says(lambda: compare({"a": [one], "b": [fewer]}), f"other: LaSCo val has 3 and 2 queries{ending}")
    queries = [dataclasses.replace(query, text="is blue") for query in split.queries]
    asked = saved(dataclasses.replace(split, queries=tuple(queries)), [1, 2, 3], path="other")
    message = f"other: 3 of 3 queries of LaSCo val are not the same (first 0){ending}"
    assert_says(lambda: compare({"a": [one], "b": [asked]}), message)
    gallery = dataclasses.replace(split, gallery=(*split.gallery[:-1], "g60"))
    shown = saved(gallery, [1, 2, 3], path="other")
    message = f"other: the gallery of LaSCo val differs (60 and 60 images){ending}"
    assert_says(lambda: compare({"a": [one], "b": [shown]}), message)


def test_one_group_is_nothing_to_compare(split_of):
    result = saved(split_of(1), [1])
    ending = "expected two or more; fix: name the groups of runs apart: composir compare plain=RUN,RUN gate=RUN,RUN"
    assert_says(lambda: compare({"plain": [result]}), f"there is one group to compare: plain; {ending}")
    assert_says(lambda: compare({}), f"there is nothing to compare; {ending}")
    message = "the group gate is empty; expected one result or more in each"
    assert_says(lambda: compare({"plain": [result], "gate": []}), message)


def test_a_copy_of_a_run_is_no_other_seed(split_of):
    split = split_of(2)
    one, copy = (saved(split, [1, 2], weights="abc", path=path) for path in ("one", "copy"))
    other = saved(split, [1, 2], weights="def", path="other")
    ending = (
        "both in the group a; expected each run of a group once: a copy tells nothing of other seeds; "
        "fix: leave one of them out"
    )
    assert_says(lambda: compare({"a": [one, copy], "b": [other]}), f"copy: is the same run as one, {ending}")
    predictions = saved(split, [1, 2], path="same")
    message = f"same: is the same run as same, {ending}"
    assert_says(lambda: compare({"a": [predictions, predictions], "b": [other]}), message)
    unknown = [saved(split, [1, 2], path=path) for path in ("x", "y")]
    assert compare({"a": unknown, "b": [other]}).differences[0].delta == 0


def test_a_metric_that_is_not_there(split_of):
    split = split_of(2)
    whole, other = saved(split, [1, 2], path="whole"), saved(split, [1, 2], path="other")
    assert_says(
        lambda: compare({"a": [whole], "b": [other]}, ["recall_at_5", "recal_at_10"]),
        "no result holds a metric 'recal_at_10'; fix: did you mean 'recall_at_10'?",
    )
    shallow = {
        "composed": tuple(
            dataclasses.replace(ranking, top=ranking.top[:, :7], scores=ranking.scores[:, :7])
            for ranking in other.rankings["composed"]
        )
    }
    half = dataclasses.replace(other, rankings=shallow)
    assert_says(
        lambda: compare({"a": [whole], "b": [half]}),
        "other: its rankings do not tell recall_at_10; expected a metric that all results hold; "
        "fix: give --metric one of: recall_at_1, recall_at_5",
    )
    assert list(compare({"a": [whole], "b": [half]}, ["recall_at_5"]).rows[0].metrics) == ["recall_at_1", "recall_at_5"]


def test_results_of_different_text_rules_are_not_compared(split_of):
    caption = split_of(2, dataset="CIRCO")
    concept = dataclasses.replace(caption, text_rule="concept and caption")
    groups = {"A": [saved(caption, [1, 2], weights="a")], "B": [saved(concept, [1, 2], weights="b", path="b")]}
    with pytest.raises(ComposirError, match="text is 'concept and caption', not '"):
        compare(groups)
