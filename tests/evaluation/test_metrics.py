from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from composir.data.triplets import Query, Split
from composir.errors import ComposirError
from composir.evaluation import PROTOCOLS, Ranking, average_precision, averages, intervals, measure, per_query, rank
from composir.evaluation.metrics import lower_is_better, metric_label, protocol_of, solved

NUM_IMAGES = 60


@pytest.fixture
def rank_at(make_split, make_query):
    """Make a ranking of descending scores g0, g1, ..., in which target g(k) has rank k + 1."""

    def make(targets, subsets=None, references=None, **rules) -> Ranking:
        subsets = subsets or [()] * len(targets)
        references = references or [NUM_IMAGES - 1] * len(targets)
        queries = [
            make_query(number, f"g{reference}", [f"g{target}"], [f"g{member}" for member in subset])
            for number, (target, subset, reference) in enumerate(zip(targets, subsets, references, strict=True))
        ]
        scores = torch.linspace(1, 0, NUM_IMAGES).repeat(len(queries), 1)
        return rank(scores, make_split(queries, NUM_IMAGES, **rules))

    return make


def test_cirr_by_hand(rank_at):
    subsets = [(0, 1, 2, 3, 4), (3, 4, 5, 6, 7), (7, 8, 9, 10, 11), (1, 2, 3, 4, 50)]
    ranking = rank_at(targets=[0, 4, 9, 50], subsets=subsets)
    # Ranks in the gallery 1, 5, 10, 51; in the subset 1, 2, 3, 5.
    assert measure({"composed": [ranking]}).metrics == pytest.approx(
        {
            "recall_at_1": 1 / 4,
            "recall_at_5": 2 / 4,
            "recall_at_10": 3 / 4,
            "recall_at_50": 3 / 4,
            "recall_subset_at_1": 1 / 4,
            "recall_subset_at_2": 2 / 4,
            "recall_subset_at_3": 3 / 4,
            "mean_r5_rs1": (2 / 4 + 1 / 4) / 2,
            "mean_of_seven": (1 + 2 + 3 + 3 + 1 + 2 + 3) / 4 / 7,
        },
        abs=1e-12,
    )
    values = per_query(ranking)
    assert values["recall_at_5"].tolist() == [1, 1, 0, 0]
    assert values["recall_subset_at_2"].tolist() == [1, 1, 0, 0]
    assert values["mean_r5_rs1"].tolist() == [1, 0.5, 0, 0]  # (1 + 1) / 2, (1 + 0) / 2, 0, 0
    assert tuple(values) == PROTOCOLS["CIRR"].keys


def test_leaving_the_reference_out_moves_the_target_up(rank_at):
    subset = [(1, 2, 3, 4, 50)]
    # g50 is 51st; without the better reference g10 it is 50th, without the worse g59 it stays.
    assert per_query(rank_at([50], subset, references=[10]))["recall_at_50"].tolist() == [1]
    assert per_query(rank_at([50], subset, references=[59]))["recall_at_50"].tolist() == [0]


def test_only_the_annotated_target_counts(make_split, make_query):
    query = make_query(0, "g59", ["g5", "g0"], ["g0", "g5"])
    values = per_query(rank(torch.linspace(1, 0, NUM_IMAGES)[None], make_split([query], NUM_IMAGES)))
    # The annotated g5 is sixth; that g0, right as well, is first does not help.
    assert values["recall_at_5"].tolist() == [0]
    assert values["recall_at_10"].tolist() == [1]
    assert values["recall_subset_at_1"].tolist() == [0]


def test_fashioniq_by_hand(rank_at):
    rules = {"dataset": "FashionIQ", "exclude_reference": False}
    rankings = (
        rank_at(targets=[9, 10], category="dress", **rules),  # ranks 10, 11
        rank_at(targets=[50], category="shirt", **rules),  # rank 51
        rank_at(targets=[0, 1, 49, 59], category="toptee", **rules),  # ranks 1, 2, 50, 60
    )
    # R@10: 1/2, 0/1, 2/4, mean 1/3. R@50: 2/2, 0/1, 3/4, mean 7/12. Mean of both: (4/12 + 7/12) / 2 = 11/24.
    assert measure({"composed": rankings}).metrics == pytest.approx(
        {
            "recall_at_10": 1 / 3,
            "recall_at_50": 7 / 12,
            "mean_r10_r50": 11 / 24,
            "dress.recall_at_10": 1 / 2,
            "dress.recall_at_50": 1,
            "dress.mean_r10_r50": 3 / 4,
            "shirt.recall_at_10": 0,
            "shirt.recall_at_50": 0,
            "shirt.mean_r10_r50": 0,
            "toptee.recall_at_10": 2 / 4,
            "toptee.recall_at_50": 3 / 4,
            "toptee.mean_r10_r50": 5 / 8,
        },
        abs=1e-12,
    )


def test_circo_by_hand(make_split, make_query):
    queries = [
        # Right answers at ranks 1, 3 and 60; the annotated one is third.
        make_query(0, "g30", ["g2", "g0", "g59"], aspects=["cardinality", "addition"]),
        # Seven right answers, all after rank 5, the annotated one sixth.
        make_query(1, "g30", [f"g{place}" for place in range(5, 12)], aspects=["addition"]),
    ]
    split = make_split(queries, NUM_IMAGES, dataset="CIRCO", exclude_reference=False)
    metrics = measure({"composed": [rank(torch.linspace(1, 0, NUM_IMAGES).repeat(2, 1), split)]}).metrics
    first = (1 / 1 + 2 / 3) / 3  # precision 1 at rank 1 and 2/3 at rank 3, three right answers
    second_at_10 = (1 / 6 + 2 / 7 + 3 / 8 + 4 / 9 + 5 / 10) / 7
    second_at_25 = (1 / 6 + 2 / 7 + 3 / 8 + 4 / 9 + 5 / 10 + 6 / 11 + 7 / 12) / 7
    assert metrics == pytest.approx(
        {
            "map_at_5": (first + 0) / 2,
            "map_at_10": (first + second_at_10) / 2,
            "map_at_25": (first + second_at_25) / 2,
            "map_at_50": (first + second_at_25) / 2,
            "recall_at_5": 1 / 2,
            "recall_at_10": 1,
            "recall_at_25": 1,
            "recall_at_50": 1,
            "addition.map_at_10": (first + second_at_10) / 2,
            "cardinality.map_at_10": first,
        },
        abs=1e-12,
    )


def test_average_precision_is_divided_by_what_fits_in_k():
    # Six right answers, of which five fill the best five: as good as it gets.
    assert average_precision(np.ones((1, 50), bool), np.array([6]), 5).tolist() == [1.0]


@given(
    hits=st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=4),
    more=st.integers(0, 3),
    k=st.integers(1, 12),
)
def test_average_precision_equals_the_short_version(hits, more, k):
    num_targets = np.array([max(1, sum(row)) + more for row in hits])
    for row, targets, fast in zip(hits, num_targets, average_precision(np.array(hits), num_targets, k), strict=True):
        total = sum(sum(row[: rank + 1]) / (rank + 1) for rank in range(k) if row[rank])
        assert fast == pytest.approx(total / min(targets, k), abs=1e-12)


def test_genecis_by_hand(make_split, make_query):
    # Of each query's own four candidates the target is first, second and fourth.
    galleries = [["g5", "g9", "g20", "g40"], ["g3", "g7", "g8", "g50"], ["g0", "g1", "g2", "g55"]]
    targets = ["g5", "g7", "g55"]
    queries = [
        make_query(number, "g59", [target], gallery=gallery)
        for number, (target, gallery) in enumerate(zip(targets, galleries, strict=True))
    ]
    split = make_split(queries, NUM_IMAGES, dataset="GeneCIS", category="focus_object", exclude_reference=False)
    ranking = rank(torch.linspace(1, 0, NUM_IMAGES).repeat(3, 1), split)
    assert ranking.top[:, :5].tolist() == [[5, 9, 20, 40, -1], [3, 7, 8, 50, -1], [0, 1, 2, 55, -1]]
    assert ranking.target_ranks.tolist() == [1, 2, 4]
    metrics = measure({"composed": [ranking]}).metrics
    assert [metrics[f"recall_at_{k}"] for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_fashion200k_counts_any_image_with_the_target_caption(make_split, make_query):
    queries = [make_query(0, "g59", ["g30", "g9"]), make_query(1, "g59", ["g0"]), make_query(2, "g59", ["g55"])]
    split = make_split(queries, NUM_IMAGES, dataset="Fashion200k", exclude_reference=False)
    metrics = measure({"composed": [rank(torch.linspace(1, 0, NUM_IMAGES).repeat(3, 1), split)]}).metrics
    # First right answers at 10, 1 and 56.
    assert [metrics[f"recall_at_{k}"] for k in (1, 10, 50)] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert metrics["mean_r10_r50"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        # Ranks 1, 5, 10 and 51.
        ("Shoes", {"recall_at_1": 1 / 4, "recall_at_10": 3 / 4, "recall_at_50": 3 / 4, "mean_r1_r10_r50": 7 / 12}),
        ("LaSCo", {"recall_at_1": 1 / 4, "recall_at_5": 2 / 4, "recall_at_10": 3 / 4, "recall_at_50": 3 / 4}),
        ("own", {"recall_at_1": 1 / 4, "recall_at_5": 2 / 4, "recall_at_10": 3 / 4, "recall_at_50": 3 / 4}),
    ],
)
def test_recall_of_further_data_sets_by_hand(rank_at, dataset, expected):
    ranking = rank_at(targets=[0, 4, 9, 50], dataset=dataset)
    assert measure({"composed": [ranking]}).metrics == pytest.approx(expected)


def test_own_data_has_subset_recall_where_every_query_has_a_subset(rank_at):
    metrics = measure({"composed": [rank_at([1, 2], [(0, 1), (2, 3)], dataset="own")]}).metrics
    assert [metrics[f"recall_subset_at_{k}"] for k in (1, 2, 3)] == [1 / 2, 1, 1]
    assert "recall_subset_at_1" not in measure({"composed": [rank_at([1, 2], [(0, 1), ()], dataset="own")]}).metrics


def test_a_figure_that_speaks_of_some_queries_counts_those(make_split, make_query):
    values = {"": {"all": np.array([1.0, 0.0, 1.0, 0.0]), "some": np.array([1.0, np.nan, 0.0, np.nan])}}
    assert averages(values) == {"all": 0.5, "some": 0.5}
    drawn = np.random.default_rng(3).integers(0, 4, (200, 4))
    means = [np.nanmean(values[""]["some"][row]) for row in drawn if not set(row) <= {1, 3}]
    assert intervals(values, num_resamples=200, seed=3)["some"] == pytest.approx(
        (np.quantile(means, 0.025), np.quantile(means, 0.975))
    )


def golden_split(entry: dict, dataset: str, *, exclude_reference: bool) -> Split:
    queries = tuple(
        Query(str(number), reference, "", ("",), (target,), tuple(name for name in members if name != reference))
        for number, (reference, target, members) in enumerate(
            zip(entry["reference"], entry["target"], entry["members"], strict=True)
        )
    )
    gallery = tuple(entry["gallery"])
    images = {name: Path(name) for name in gallery}
    return Split(dataset, "val", "", queries, gallery, images, "original", exclude_reference, "as annotated")


def test_golden_figures_of_the_reference_evaluator(golden):
    entry = json.loads((golden / "metrics.json").read_text())
    similarity = load_file(golden / "metrics_similarity.safetensors")["similarity"]
    cirr = measure({"composed": [rank(similarity, golden_split(entry, "CIRR", exclude_reference=True))]}).metrics
    expected = {
        key.replace("R_s@", "recall_subset_at_").replace("R@", "recall_at_"): value / 100
        for key, value in entry["cirr"].items()
    }
    expected["mean_r5_rs1"] = entry["mean(R@5+R_s@1)"] / 100
    expected["mean_of_seven"] = sum(entry["cirr"].values()) / 7 / 100
    assert len(expected) == 9
    assert cirr == pytest.approx(expected, abs=1e-6)

    split = golden_split(entry, "FashionIQ", exclude_reference=False)
    fashioniq = measure({"composed": [rank(similarity, split)]}).metrics
    assert fashioniq["recall_at_10"] == pytest.approx(entry["fashioniq_reference_kept"]["R@10"] / 100, abs=1e-6)
    assert fashioniq["recall_at_50"] == pytest.approx(entry["fashioniq_reference_kept"]["R@50"] / 100, abs=1e-6)


SEVERAL_RIGHT = ("CIRCO", "Fashion200k", "i-CIR", "PinPoint", "CIRCLED", "OACIRR")
NUM_OF_OWN = {"GeneCIS": 9, "i-CIR": 55}
"""How many wrong answers a query's own gallery holds."""
GROUPED = ("i-CIR", "PinPoint", "MT-FashionIQ", "CIRCLED", "OACIRR")


@pytest.fixture
def random_split(make_split, make_query):
    """Make a split of a data set as its protocol has it: several answers, subsets, candidates and aspects."""

    def make(dataset: str, seed: int, *, num_queries: int = 6, places: slice = slice(None)) -> Split:
        rng = np.random.default_rng(seed)
        queries = []
        for number in range(num_queries):
            reference, *others = (f"g{place}" for place in rng.permutation(NUM_IMAGES))
            by_place = sorted(others, key=lambda name: int(name[1:]))[places]
            right = rng.permutation(by_place)[:3].tolist() if dataset in SEVERAL_RIGHT else [by_place[0]]
            rest = [name for name in others if name not in right]
            queries.append(
                make_query(
                    number,
                    reference,
                    right,
                    [right[0], *rest[:4]] if PROTOCOLS[dataset].subset_ks else (),
                    gallery=[*right, *rest[: NUM_OF_OWN[dataset]]] if dataset in NUM_OF_OWN else (),
                    aspects=["negation"] * (number % 2) + ["cardinality"] * bool(number % 3)
                    if PROTOCOLS[dataset].by_aspect
                    else (),
                    group=f"group {number // 4}" if dataset in GROUPED else "",
                    negatives=rest[9:20] if "negative_rate" in PROTOCOLS[dataset].others else (),
                    further_references=rest[20:21] if dataset == "PinPoint" else (),
                    num_listed=(3 + number, 13) if dataset == "PinPoint" else (0, 0),
                )
            )
        return make_split(queries, NUM_IMAGES, dataset=dataset)

    return make


@pytest.mark.parametrize("dataset", PROTOCOLS)
@pytest.mark.parametrize("seed", range(3))
def test_every_figure_equals_its_short_version(random_split, dataset, seed):
    split = random_split(dataset, seed)
    scores = torch.from_numpy(np.random.default_rng(seed).integers(0, 9, (6, NUM_IMAGES)) / 8)  # full of ties
    protocol = PROTOCOLS[dataset]
    found = [slow_figures(row.tolist(), query, split) for row, query in zip(scores, split.queries, strict=True)]
    keys = dict.fromkeys(key for figures in found for key in figures)
    expected = {key: np.mean([figures[key] for figures in found if key in figures]) for key in keys}
    expected |= slow_group_figures(split, found)
    for key in [key for key in expected if key.startswith("own ")]:
        del expected[key]
    expected |= {name: np.mean([expected[part] for part in parts]) for name, parts in protocol.means.items()}
    metrics = measure({"composed": [rank(scores, split)]}).metrics
    assert metrics == pytest.approx(expected)
    assert set(protocol.keys) <= set(metrics)


def slow_figures(scores: list[float], query: Query, split: Split) -> dict[str, float]:
    """Return the figures of one query, means of them left out: candidates sorted, right answers last among equals."""
    protocol = PROTOCOLS[split.dataset]
    roles = dict.fromkeys(query.negatives, -1) | dict.fromkeys(query.targets, 1) | {query.targets[0]: 2}
    by_score = {name: (-score, roles.get(name, 0)) for name, score in zip(split.gallery, scores, strict=True)}
    candidates = [name for name in query.gallery or split.gallery if name not in query.references]
    order = sorted(candidates, key=by_score.__getitem__)
    right = query.targets if protocol.any_target else query.targets[:1]
    figures = {f"recall_at_{k}": float(any(name in right for name in order[:k])) for k in protocol.recall_ks}
    subset_order = sorted(query.subset, key=by_score.__getitem__)
    figures |= {f"recall_subset_at_{k}": float(query.targets[0] in subset_order[:k]) for k in protocol.subset_ks}
    for k in protocol.map_ks:
        num_found, total = 0, 0.0
        for place, name in enumerate(order[:k], 1):
            if name in query.targets:
                num_found += 1
                total += num_found / place
        figures[f"map_at_{k}"] = total / min(query.num_listed_targets or len(query.targets), k)
    if "negative_rate" in protocol.others:
        num_negatives = query.num_listed_negatives or len(query.negatives)
        figures["negative_rate_at_10"] = sum(name in query.negatives for name in order[:10]) / min(num_negatives, 10)
    if "precision" in protocol.others:
        figures["precision_at_10"] = sum(name in query.targets for name in order[:10]) / 10
        others = [name for name in order[:50] if name not in query.negatives]
        found = [place for place, name in enumerate(others[:10], 1) if name in query.targets]
        precisions = [number / place for number, place in enumerate(found, 1)]
        figures["map_without_negatives_at_10"] = sum(precisions) / min(query.num_listed_targets, 10)
    if "map" in protocol.others:
        figures["map"] = slow_whole_precision([name in query.targets for name in order])
    if "instance_recall" in protocol.others:
        figures |= {
            f"instance_recall_at_{k}": float(any(name in query.targets for name in order[:k])) for k in (1, 3, 5)
        }
    if "last_round_recall" in protocol.others:
        figures |= {f"own recall {k}": float(query.targets[0] in order[:k]) for k in (5, 8, 10)}
    return figures | {f"{aspect}.{protocol.by_aspect}": figures[protocol.by_aspect] for aspect in query.aspects}


def slow_whole_precision(right: list[bool]) -> float:
    """Return the area under the precision over recall, trapezoid by trapezoid, of a whole ranking."""
    area, num_found = 0.0, 0
    for place, is_right in enumerate(right):
        if is_right:
            before = num_found / place if place else 1.0
            num_found += 1
            area += (before + num_found / (place + 1)) / 2
    return area / num_found


def slow_group_figures(split: Split, found: list[dict[str, float]]) -> dict[str, float]:
    """Return the figures of whole groups from each query's own, which come in the split's order."""
    groups: dict[str, list[dict[str, float]]] = {}
    for query, figures in zip(split.queries, found, strict=True):
        groups.setdefault(query.group, []).append(figures)
    own = {key: [[one[key] for one in group] for group in groups.values()] for key in found[0] if "aspect" not in key}
    if split.dataset == "i-CIR":
        return {
            "instance_map": np.mean([np.mean(values) for values in own["map"]]),
            "instance_worst_map": np.mean([min(values) for values in own["map"]]),
        }
    if split.dataset == "PinPoint":
        return {
            "paraphrase_best_at_10": np.mean([max(values) for values in own["precision_at_10"]]),
            "paraphrase_worst_at_10": np.mean([min(values) for values in own["precision_at_10"]]),
            "paraphrase_range_at_10": np.mean([max(values) - min(values) for values in own["precision_at_10"]]),
            "paraphrase_deviation_at_10": np.mean([np.std(values) for values in own["precision_at_10"]]),
        }
    if split.dataset == "MT-FashionIQ":
        return {
            f"last_round_recall_at_{k}": np.mean([values[-1] for values in own[f"own recall {k}"]]) for k in (5, 8)
        } | {
            f"hits_round_{number}_at_10": np.mean([max(values[:number]) for values in own["own recall 10"]])
            for number in (1, 2, 3, 4)
        }
    if split.dataset == "CIRCLED":
        return {
            f"hits_round_{number}_at_10": np.mean([max(values[:number]) for values in own["recall_at_10"]])
            for number in range(1, 7)
        }
    return {}


@pytest.mark.parametrize("dataset", PROTOCOLS)
@pytest.mark.parametrize("places", [slice(3), slice(25, 28), slice(-3, None)])
@pytest.mark.parametrize("constant", [0.0, 1.0, -3.5])
def test_a_constant_scorer_gets_the_worst_figures(random_split, dataset, places, constant):
    """Zero at every K, whether the right answers come first in the gallery, amid it or last."""
    split = random_split(dataset, 0, places=places)
    metrics = measure({"composed": [rank(torch.full((6, NUM_IMAGES), constant), split)]}).metrics
    lower_is_worse = {key: value for key, value in metrics.items() if not lower_is_better(key)}
    of_whole_galleries = [lower_is_worse.pop(key) for key in list(lower_is_worse) if key.endswith("map")]
    assert of_whole_galleries == pytest.approx(
        [slow_whole_precision([False] * 55 + [True] * 3)] * len(of_whole_galleries)
    )
    assert set(lower_is_worse.values()) == {0.0}
    assert metrics.get("negative_rate_at_10", 1) == 1
    assert metrics.get("paraphrase_deviation_at_10", 0) == 0
    assert set(PROTOCOLS[dataset].keys) <= set(metrics)


@pytest.mark.parametrize(("dataset", "expected"), [("GeneCIS", [True, False]), ("own", [True, True])])
def test_a_query_is_solved_by_the_first_image_of_genecis_s_small_galleries_and_by_the_first_ten_elsewhere(
    rank_at, dataset, expected
):
    assert solved(rank_at([0, 1], dataset=dataset)).tolist() == expected


def test_intervals_equal_the_short_version():
    rng = np.random.default_rng(5)
    values = {"a": rng.random(40), "b": (rng.random(40) < 0.3).astype(float)}
    drawn = np.random.default_rng(3).integers(0, 40, (200, 40))
    for key, (low, high) in intervals({"": values}, num_resamples=200, seed=3).items():
        means = sorted(np.mean([values[key][query] for query in row]) for row in drawn)
        # Linear interpolation between order statistics: 0.025 * 199 = 4.975 and 0.975 * 199 = 194.025.
        assert low == pytest.approx(means[4] + 0.975 * (means[5] - means[4]))
        assert high == pytest.approx(means[194] + 0.025 * (means[195] - means[194]))


def test_intervals_are_of_a_thousand_draws_from_seed_0_unless_told_otherwise():
    values = {"": {"a": np.random.default_rng(5).random(40)}}
    assert intervals(values) == intervals(values, num_resamples=1000, seed=0)
    assert intervals(values) != intervals(values, num_resamples=999, seed=0)


def test_intervals_do_not_depend_on_the_block_size(monkeypatch):
    values = {"": {"a": np.random.default_rng(0).random(30)}}
    whole = intervals(values, num_resamples=50, seed=1)
    monkeypatch.setattr("composir.evaluation.metrics.DRAWS_PER_BLOCK", 7 * 30)
    assert intervals(values, num_resamples=50, seed=1)["a"] == pytest.approx(whole["a"])
    assert intervals(values, num_resamples=50, seed=2)["a"] != pytest.approx(whole["a"])


def test_the_interval_of_a_share_is_as_wide_as_theory_says():
    values = np.repeat([1.0, 0.0], [160, 240])
    low, high = intervals({"": {"recall_at_1": values}})["recall_at_1"]
    # 0.4 +- 1.96 * sqrt(0.4 * 0.6 / 400) = 0.4 +- 0.048
    assert low == pytest.approx(0.352, abs=0.008)
    assert high == pytest.approx(0.448, abs=0.008)


def test_categories_are_resampled_apart():
    values = {"dress": {"recall_at_10": np.ones(5)}, "shirt": {"recall_at_10": np.zeros(500)}}
    assert averages(values)["recall_at_10"] == 0.5
    # Drawn together, the share of dresses would vary; drawn apart, nothing does.
    assert intervals(values, num_resamples=50) == {
        "recall_at_10": (0.5, 0.5),
        "dress.recall_at_10": (1.0, 1.0),
        "shirt.recall_at_10": (0.0, 0.0),
    }


def test_hidden_answers_are_an_error_with_the_way_out(make_split, make_query):
    split = make_split([make_query(0, "g0", []), make_query(1, "g0", [])], NUM_IMAGES, name="test1")
    with pytest.raises(ComposirError) as error:
        measure({"composed": [rank(torch.zeros(2, NUM_IMAGES), split)]})
    assert str(error.value) == (
        "CIRR test1: 2 of 2 queries have no target: their answers are hidden; "
        "expected a split whose right answers are known, such as val; "
        "fix: evaluate val: only the test server knows the answers of this split"
    )


def test_a_missing_subset_is_an_error(rank_at):
    with pytest.raises(ComposirError) as error:
        per_query(rank_at(targets=[0, 1], subsets=[(0, 1), ()]))
    assert str(error.value) == (
        "CIRR val: 1 of 2 queries have no subset (first 1); "
        "expected the image set of every query, which CIRR measures recall in; "
        "fix: run `composir data check --dataset CIRR`"
    )


def test_figures_that_a_ranking_does_not_hold_are_left_out(rank_at):
    ranking = rank_at(targets=[3], subsets=[(0, 1, 2, 3)])
    shallow = dataclasses.replace(ranking, top=ranking.top[:, :9], subset=((),))
    assert per_query(shallow).keys() == {"recall_at_1", "recall_at_5"}


def test_an_unknown_data_set_is_an_error():
    with pytest.raises(ComposirError) as error:
        protocol_of("CIRRR")
    assert str(error.value) == (
        "no metrics are defined for the data set 'CIRRR'; "
        "expected a data set in composir.evaluation.PROTOCOLS; fix: did you mean 'CIRR'?"
    )


def test_nothing_to_score_is_an_error():
    with pytest.raises(ComposirError, match=r"^there is nothing to score; expected at least one split$"):
        measure({"composed": []})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "CIRR"}, "the dataset differs between the splits: CIRR, FashionIQ"),
        ({"name": "test"}, "the split differs between the splits: test, val"),
        ({"gallery_rule": "val-union"}, "the gallery rule differs between the splits: original, val-union"),
        ({"exclude_reference": True}, "the reference rule differs between the splits: False, True"),
        ({"text_rule": "first"}, "the text rule differs between the splits: as annotated, first"),
    ],
)
def test_splits_under_different_rules_are_not_mixed(rank_at, change, message):
    rules = {"dataset": "FashionIQ", "exclude_reference": False}
    dress, shirt = (rank_at([0], category=category, **rules) for category in ("dress", "shirt"))
    other = dataclasses.replace(shirt, split=dataclasses.replace(shirt.split, **change))
    with pytest.raises(ComposirError) as error:
        measure({"composed": [dress, other]})
    assert str(error.value) == (
        f"{message}; expected categories of one split, read under the same rules; fix: score them one by one"
    )


def test_a_category_given_twice_is_an_error(rank_at):
    dress = rank_at([0], dataset="FashionIQ", category="dress")
    with pytest.raises(ComposirError) as error:
        measure({"composed": [dress, dress]})
    assert str(error.value) == "a category comes more than once: dress, dress; expected each category once"


def test_protocols_name_metrics_that_exist():
    for protocol in PROTOCOLS.values():
        assert protocol.primary in protocol.keys
        assert {part for parts in protocol.means.values() for part in parts} <= set(protocol.keys)


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("recall_at_5", "R@5"),
        ("recall_subset_at_1", "R_s@1"),
        ("mean_r5_rs1", "mean(R@5+R_s@1)"),
        ("mean_of_seven", "mean of all seven"),
        ("toptee.mean_r10_r50", "toptee mean(R@10+R@50)"),
        ("mean_r1_r10_r50", "mean(R@1+R@10+R@50)"),
        ("map_at_10", "mAP@10"),
        ("map_without_negatives_at_10", "mAP without negatives@10"),
        ("precision_at_10", "P@10"),
        ("map", "mAP"),
        ("instance_map", "mAP per instance"),
        ("car.instance_recall_at_1", "car R_ID@1"),
        ("mean_rid1_r1_r5", "mean(R_ID@1+R@1+R@5)"),
        ("dress.hits_round_2_at_10", "dress hits round 2@10"),
        ("fashioniq_dress.hits_round_6_at_10", "fashioniq_dress hits round 6@10"),
        ("negative_rate_at_10", "negative rate@10 ↓"),
        ("paraphrase_deviation_at_10", "paraphrase deviation@10 ↓"),
        ("paraphrase_range_at_10", "paraphrase range@10 ↓"),
        ("paraphrase_worst_at_10", "paraphrase worst@10"),
        ("spatial relations.map_at_10", "spatial relations mAP@10"),
    ],
)
def test_metrics_have_the_names_of_the_field(key, label):
    assert metric_label(key) == label
