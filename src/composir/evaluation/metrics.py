"""One definition of every metric, from a ranking to a figure with its interval."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float64, Int64

from composir.data.datasets import DATASETS
from composir.data.triplets import Split
from composir.errors import ComposirError, nearest
from composir.evaluation.ranking import Ranking, check_gallery, describe, first_ranks, hits
from composir.evaluation.values import (
    Metric,
    any_found,
    average_precision,
    hit_by_round,
    last_round,
    negative_rate,
    num_targets,
    of_groups,
    of_several,
    precision,
    precision_without_negatives,
    target_found,
    whole_precision,
    within,
)
from composir.tables import Table

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
DRAWS_PER_BLOCK = 2**22
"""Resampled queries counted at once: 32 MB."""
NUM_ROUNDS = 6
"""Sessions of CIRCLED have no more; those of MT-FashionIQ have four."""


@dataclass(frozen=True, slots=True)
class MetricProtocol:
    """What is measured on a data set."""

    primary: str
    """The figure that the field compares by."""
    recall_ks: tuple[int, ...]
    """The K of ``recall_at_K``: the share of queries whose annotated target is among the best K."""
    any_target: bool = False
    """Whether recall counts any right answer (Fashion200k, PinPoint) instead of the annotated one alone."""
    subset_ks: tuple[int, ...] = ()
    """The K of ``recall_subset_at_K``: the same among the members of the query's subset alone."""
    subsets_required: bool = True
    """Whether every query must have a subset; else the figures are there only where every query has one."""
    map_ks: tuple[int, ...] = ()
    """The K of ``map_at_K``: the mean over queries of the average precision over all right answers (CIRCO)."""
    others: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The K of ``NAME_at_K`` for further metrics, by their name in ``METRICS``; without a K the figure is ``NAME``,
    over the whole gallery."""
    by_aspect: str = ""
    """The figure that is also given for every aspect of the queries, as ``ASPECT.FIGURE``; empty for none."""
    means: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Figures that are the arithmetic mean of others, by name."""
    solved_k: int = 10
    """A query counts as solved by one modality alone where its target is among that modality's best K."""
    version: str = "1"
    """Stands in the signature; raised whenever a figure of the data set from the same ranking would change."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Every metric key, in the order of a table; aspects not counted."""
        maps = tuple(f"map_at_{k}" for k in self.map_ks)
        recalls = tuple(f"recall_at_{k}" for k in self.recall_ks)
        subset_recalls = tuple(f"recall_subset_at_{k}" for k in self.subset_ks)
        others = tuple(key for name, ks in self.others.items() for key in _other_keys(name, ks))
        return (*maps, *recalls, *subset_recalls, *others, *self.means)


def _other_keys(name: str, ks: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"{name}_at_{k}" for k in ks) or (name,)


_CIRR_RECALLS = ("recall_at_1", "recall_at_5", "recall_at_10", "recall_at_50")
_PARAPHRASE_METRICS = ("paraphrase_best", "paraphrase_worst", "paraphrase_range", "paraphrase_deviation")
_CIRR_SUBSET_RECALLS = ("recall_subset_at_1", "recall_subset_at_2", "recall_subset_at_3")


def _hits_at_rounds(number: int) -> dict[str, tuple[int, ...]]:
    return {f"hits_round_{n}": (10,) for n in range(1, number + 1)}


PROTOCOLS: Table[MetricProtocol] = Table(
    "protocols",
    {
        "CIRR": MetricProtocol(
            primary="mean_r5_rs1",
            recall_ks=(1, 5, 10, 50),
            subset_ks=(1, 2, 3),
            means={
                "mean_r5_rs1": ("recall_at_5", "recall_subset_at_1"),
                "mean_of_seven": (*_CIRR_RECALLS, *_CIRR_SUBSET_RECALLS),  # SPRC selects its checkpoint by it
            },
        ),
        "FashionIQ": MetricProtocol(
            primary="mean_r10_r50",
            recall_ks=(10, 50),
            means={"mean_r10_r50": ("recall_at_10", "recall_at_50")},
        ),
        "CIRCO": MetricProtocol(
            primary="map_at_10", recall_ks=(5, 10, 25, 50), map_ks=(5, 10, 25, 50), by_aspect="map_at_10"
        ),
        "GeneCIS": MetricProtocol(primary="recall_at_1", recall_ks=(1, 2, 3), solved_k=1),
        "Fashion200k": MetricProtocol(
            primary="mean_r10_r50",
            recall_ks=(1, 10, 50),
            any_target=True,
            means={"mean_r10_r50": ("recall_at_10", "recall_at_50")},
        ),
        "Shoes": MetricProtocol(
            primary="mean_r1_r10_r50",
            recall_ks=(1, 10, 50),
            means={"mean_r1_r10_r50": ("recall_at_1", "recall_at_10", "recall_at_50")},
        ),
        "LaSCo": MetricProtocol(primary="recall_at_10", recall_ks=(1, 5, 10, 50)),
        "i-CIR": MetricProtocol(
            primary="instance_map",
            recall_ks=(1, 5, 10, 50),
            any_target=True,
            others={"map": (), "instance_map": (), "instance_worst_map": ()},
        ),
        "PinPoint": MetricProtocol(
            primary="map_at_10",
            recall_ks=(1, 10, 50),
            any_target=True,
            map_ks=(10,),
            others=dict.fromkeys(("map_without_negatives", "negative_rate", "precision", *_PARAPHRASE_METRICS), (10,)),
            by_aspect="map_at_10",
            version="2",  # 1: negatives divided by K, groups by average precision, lists without their repeats
        ),
        "EDIR": MetricProtocol(
            primary="recall_at_1",
            recall_ks=(1, 5, 10),
            others={"negative_rate": (10,)},
            by_aspect="recall_at_1",
            version="2",  # 1: negatives divided by K
        ),
        "MT-FashionIQ": MetricProtocol(
            primary="mean_last_r5_r8",
            recall_ks=(5, 8, 10),
            others={"last_round_recall": (5, 8), **_hits_at_rounds(4)},
            means={"mean_last_r5_r8": ("last_round_recall_at_5", "last_round_recall_at_8")},
        ),
        "CIRCLED": MetricProtocol(
            primary=f"hits_round_{NUM_ROUNDS}_at_10",
            recall_ks=(1, 5, 10, 50),
            any_target=True,
            others=_hits_at_rounds(NUM_ROUNDS),
        ),
        "OACIRR": MetricProtocol(
            primary="mean_rid1_r1_r5",
            recall_ks=(1, 5, 10, 50),
            others={"instance_recall": (1, 3, 5)},
            means={"mean_rid1_r1_r5": ("instance_recall_at_1", "recall_at_1", "recall_at_5")},
        ),
        "own": MetricProtocol(
            primary="recall_at_10", recall_ks=(1, 5, 10, 50), subset_ks=(1, 2, 3), subsets_required=False
        ),
    },
)

METRICS: Table[Metric] = Table(
    "metrics",
    {
        "map": whole_precision,
        "instance_map": of_groups(whole_precision, np.mean),
        "instance_recall": any_found,
        "instance_worst_map": of_groups(whole_precision, np.min),
        "map_without_negatives": precision_without_negatives,
        "negative_rate": negative_rate,
        "precision": precision,
        "paraphrase_best": of_groups(precision, of_several(np.max)),
        "paraphrase_worst": of_groups(precision, of_several(np.min)),
        "paraphrase_range": of_groups(precision, of_several(np.ptp)),
        "paraphrase_deviation": of_groups(precision, of_several(np.std)),
        "last_round_recall": of_groups(target_found, last_round),
        **{f"hits_round_{number}": of_groups(any_found, hit_by_round(number)) for number in range(1, NUM_ROUNDS + 1)},
    },
)
"""Further metrics by name: each query's own value of ``NAME_at_K``, of its ranking and K; a protocol's ``others`` says
where they are measured. Recall and average precision at K are computed by ``per_query`` itself."""
LOWER_IS_BETTER = ("negative_rate", "paraphrase_range", "paraphrase_deviation")
"""The metrics of which less is better."""

_LABELS = {
    "mean_r5_rs1": "mean(R@5+R_s@1)",
    "mean_of_seven": "mean of all seven",
    "mean_r10_r50": "mean(R@10+R@50)",
    "mean_r1_r10_r50": "mean(R@1+R@10+R@50)",
    "mean_last_r5_r8": "mean(R@5+R@8) of last rounds",
    "mean_rid1_r1_r5": "mean(R_ID@1+R@1+R@5)",
    "map": "mAP",
    "instance_map": "mAP per instance",
    "instance_worst_map": "worst mAP per instance",
}
_PREFIXES = {
    "instance_recall_at_": "R_ID@",
    "recall_subset_at_": "R_s@",
    "recall_at_": "R@",
    "map_at_": "mAP@",
    "map_without_negatives_at_": "mAP without negatives@",
    "precision_at_": "P@",
}


def protocol_of(dataset: str) -> MetricProtocol:
    """Return what is measured on ``dataset``: as on own triplets, for a data set that ``PROTOCOLS`` does not name.

    Raises ``ComposirError`` where there is no such data set.
    """
    if dataset not in PROTOCOLS and dataset in DATASETS:
        return PROTOCOLS["own"]
    if dataset not in PROTOCOLS:
        raise ComposirError(
            f"no metrics are defined for the data set {dataset!r}",
            expected="a data set in composir.evaluation.PROTOCOLS",
            fix=nearest(dataset, PROTOCOLS),
        )
    return PROTOCOLS[dataset]


def metric_label(key: str) -> str:
    """Return the field's name of a metric key: ``R@5``, ``R_s@1``, ``mean(R@5+R_s@1)``, ``dress R@10``.

    An arrow stands behind one of which less is better: ``negative rate@10 ↓``.
    """
    category, _, name = key.rpartition(".")
    name = _LABELS.get(name, name)
    for prefix, short in _PREFIXES.items():
        name = re.sub(f"^{prefix}", short, name)
    for other in METRICS:
        name = re.sub(f"^{other}_at_", f"{other.replace('_', ' ')}@", name)
    return f"{category} {name}{' ↓' if lower_is_better(key) else ''}".strip()


def lower_is_better(key: str) -> bool:
    """Return whether less of a figure is better."""
    return key.rpartition(".")[2].partition("_at_")[0] in LOWER_IS_BETTER


def check_scorable(splits: Sequence[Split]) -> None:
    """Raise ``ComposirError`` unless rankings of ``splits`` can be scored together.

    They must be categories of one split of one data set, under the same rules, each once, and every
    query must have its targets, and its subset where the data set measures one, in the gallery.
    Cheap: call it before anything is embedded.
    """
    if not splits:
        raise ComposirError("there is nothing to score", expected="at least one split")
    _check_same_rules(splits)
    protocol = protocol_of(splits[0].dataset)
    for split in splits:
        check_gallery(split)
        num_queries = len(split.queries)
        num_hidden = sum(not query.targets for query in split.queries)
        if num_hidden:
            raise ComposirError(
                f"{num_hidden} of {num_queries} queries have no target: their answers are hidden",
                file=describe(split),
                expected="a split whose right answers are known, such as val",
                fix="evaluate val: only the test server knows the answers of this split",
            )
        without_subset = [query.id for query in split.queries if not query.subset]
        if protocol.subset_ks and protocol.subsets_required and without_subset:
            raise ComposirError(
                f"{len(without_subset)} of {num_queries} queries have no subset (first {without_subset[0]})",
                file=describe(split),
                expected=f"the image set of every query, which {split.dataset} measures recall in",
                fix=f"run `composir data check --dataset {split.dataset}`",
            )


def per_query(ranking: Ranking) -> dict[str, Float64[np.ndarray, " num_queries"]]:
    """Return every query's own value of every figure of its data set, by metric key.

    A value is NaN where the figure does not speak of the query: an aspect that it does not have, or a figure of its
    whole group, which stands at the group's first query. Recall counts the annotated target alone, as the official
    evaluators of CIRR, FashionIQ and CIRCO do (``any_target``: any right answer); average precision counts all right
    answers (see ``average_precision``). A mean is the mean of
    the query's own values, so the mean over queries of any entry is the published figure. Figures that the
    ranking does not hold (subsets that are not known, K beyond its depth) or that speak of no query are left out.
    """
    split = ranking.split
    check_scorable([split])
    protocol = protocol_of(split.dataset)
    depth = ranking.top.shape[1]
    right = hits(ranking)
    values = {f"map_at_{k}": average_precision(right, num_targets(split), k) for k in protocol.map_ks if k <= depth}
    values |= recalls(ranking, [k for k in protocol.recall_ks if k <= depth])
    if protocol.subset_ks and all(ranking.subset):
        subset_ranks = np.array(
            [
                order.index(query.targets[0]) + 1 if query.targets[0] in order else 0
                for order, query in zip(ranking.subset, split.queries, strict=True)
            ]
        )
        values |= {f"recall_subset_at_{k}": within(subset_ranks, k) for k in protocol.subset_ks}
    for name, ks in protocol.others.items():
        others = {f"{name}_at_{k}": METRICS[name](ranking, k) for k in ks if k <= depth}
        if not ks:
            others[name] = METRICS[name](ranking, len(split.gallery))
        values |= {key: value for key, value in others.items() if not np.isnan(value).all()}
    for name, parts in protocol.means.items():
        if all(part in values for part in parts):
            values[name] = np.mean([values[part] for part in parts], axis=0)
    if protocol.by_aspect in values:
        for aspect in sorted({aspect for query in split.queries for aspect in query.aspects}):
            has_aspect = np.array([aspect in query.aspects for query in split.queries])
            values[f"{aspect}.{protocol.by_aspect}"] = np.where(has_aspect, values[protocol.by_aspect], np.nan)
    return values


def recalls(ranking: Ranking, ks: Iterable[int]) -> dict[str, Float64[np.ndarray, " num_queries"]]:
    """Return whether each query's target (Fashion200k: any) is among the best K, 1 or 0, as ``recall_at_K``."""
    any_target = protocol_of(ranking.split.dataset).any_target
    ranks = first_ranks(hits(ranking, annotated_only=not any_target))
    return {f"recall_at_{k}": within(ranks, k) for k in ks}


def solved(ranking: Ranking) -> Bool[np.ndarray, " num_queries"]:
    """Return whether each query's target (Fashion200k: any) is among the best ``MetricProtocol.solved_k``."""
    protocol = protocol_of(ranking.split.dataset)
    right = hits(ranking, annotated_only=not protocol.any_target)
    return first_ranks(right[:, : protocol.solved_k]) > 0


def averages(values_by_category: Mapping[str, Mapping[str, Float64[np.ndarray, " _"]]]) -> dict[str, float]:
    """Return the mean over queries of every metric, then over categories, as fractions in [0, 1].

    ``values_by_category`` holds what ``per_query`` returns, under ``""`` where there are no categories. With
    categories there is also ``dress.recall_at_10``, the plain key being their unweighted mean. Queries that a
    figure does not speak of do not count in it.
    """
    means = {
        category: {key: np.nanmean(value) for key, value in values.items()}
        for category, values in values_by_category.items()
    }
    return {key: float(value) for key, value in _over_categories(means).items()}


def intervals(
    values_by_category: Mapping[str, Mapping[str, Float64[np.ndarray, " _"]]],
    groups_by_category: Mapping[str, Int64[np.ndarray, " _"]] | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the 95 % percentile bootstrap interval of every figure that ``averages`` returns.

    Groups of queries (``group_numbers``; without, every query is one) are drawn whole and with replacement within
    their category (stratified), the same draws for all metrics (Efron, 1979; of groups: Davison and Hinkley, 1997,
    section 3.8). Where all queries have the same value the interval is that value.
    """
    rng = np.random.default_rng(seed)
    draws = {}
    for category, values in values_by_category.items():
        groups = None if groups_by_category is None else groups_by_category[category]
        resampled = bootstrap(np.stack(list(values.values()), axis=1), num_resamples, rng, groups)
        draws[category] = dict(zip(values, resampled.T, strict=True))
    tail = (1 - CONFIDENCE) / 2
    return {
        key: (float(np.nanquantile(means, tail)), float(np.nanquantile(means, 1 - tail)))
        for key, means in _over_categories(draws).items()
    }


def bootstrap(
    values: Float64[np.ndarray, "num_queries num_metrics"],
    num_resamples: int,
    rng: np.random.Generator,
    groups: Int64[np.ndarray, " num_queries"] | None = None,
) -> Float64[np.ndarray, "num_resamples num_metrics"]:
    """Return the means over ``num_resamples`` draws with replacement, the same draws for all columns.

    What is drawn are queries, or ``groups`` of them, whole. NaN entries do not count in their column; a draw that holds
    nothing else gives NaN.
    """
    counted = (~np.isnan(values)).astype(np.float64)
    sums = np.where(counted, values, 0.0)
    if groups is not None:
        sums, counted = _over_rows(sums, groups), _over_rows(counted, groups)
    num_drawn = len(sums)
    rows_per_block = max(1, DRAWS_PER_BLOCK // num_drawn)
    blocks = []
    for start in range(0, num_resamples, rows_per_block):
        num_rows = min(rows_per_block, num_resamples - start)
        drawn = rng.integers(0, num_drawn, (num_rows, num_drawn))
        cells = drawn + num_drawn * np.arange(num_rows)[:, None]
        counts = np.bincount(cells.ravel(), minlength=num_rows * num_drawn).reshape(num_rows, num_drawn)
        weights = counts.astype(np.float64)
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, as said
            blocks.append(weights @ sums / (num_drawn if (counted == 1).all() else weights @ counted))
    return np.concatenate(blocks)


def _over_rows(
    columns: Float64[np.ndarray, "num_queries num_metrics"], groups: Int64[np.ndarray, " num_queries"]
) -> Float64[np.ndarray, "num_groups num_metrics"]:
    """Return the sums of the rows of every group."""
    sums = np.zeros((groups.max() + 1, columns.shape[1]))
    np.add.at(sums, groups, columns)
    return sums


def _over_categories(
    entries: Mapping[str, Mapping[str, np.ndarray | np.floating]],
) -> dict[str, np.ndarray | np.floating]:
    """Return the mean over categories under each plain key, then every category's own entries."""
    keys = next(iter(entries.values()))
    plain = {key: np.mean([entry[key] for entry in entries.values()], axis=0) for key in keys}
    own = {
        f"{category}.{key}": value for category, entry in entries.items() if category for key, value in entry.items()
    }
    return plain | own


def _check_same_rules(splits: Sequence[Split]) -> None:
    rules = {
        "dataset": {split.dataset for split in splits},
        "split": {split.name for split in splits},
        "gallery rule": {split.gallery_rule for split in splits},
        "reference rule": {split.exclude_reference for split in splits},
        "text rule": {split.text_rule for split in splits},
        "query rule": {split.query_rule for split in splits},
    }
    for rule, found in rules.items():
        if len(found) > 1:
            raise ComposirError(
                f"the {rule} differs between the splits: {', '.join(sorted(map(str, found)))}",
                expected="categories of one split, read under the same rules",
                fix="score them one by one",
            )
    categories = [split.category for split in splits]
    if len(set(categories)) < len(categories):
        raise ComposirError(
            f"a category comes more than once: {', '.join(sorted(categories)) or 'none'}",
            expected="each category once",
        )
