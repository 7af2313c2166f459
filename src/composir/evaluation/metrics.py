"""One definition of every metric, from a ranking to a figure with its interval."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float64, Int64

from composir.data.datasets import DATASETS
from composir.data.triplets import Split
from composir.errors import ComposirError, nearest
from composir.evaluation.ranking import Ranking, check_gallery, describe, first_ranks, hits
from composir.tables import Table

METRIC_VERSION = "1"
"""Raised whenever a figure computed from the same ranking would change."""
NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
DRAWS_PER_BLOCK = 2**22
"""Resampled queries counted at once: 32 MB."""
ASPECT_K = 10
"""CIRCO reports the mean average precision of every semantic aspect at this K."""


@dataclass(frozen=True, slots=True)
class MetricProtocol:
    """What is measured on a data set."""

    primary: str
    """The figure that the field compares by."""
    recall_ks: tuple[int, ...]
    """The K of ``recall_at_K``: the share of queries whose annotated target is among the best K."""
    any_target: bool = False
    """Whether recall counts any right answer (Fashion200k) instead of the annotated one alone."""
    subset_ks: tuple[int, ...] = ()
    """The K of ``recall_subset_at_K``: the same among the members of the query's subset alone."""
    subsets_required: bool = True
    """Whether every query must have a subset; else the figures are there only where every query has one."""
    map_ks: tuple[int, ...] = ()
    """The K of ``map_at_K``: the mean over queries of the average precision over all right answers (CIRCO)."""
    others: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The K of ``NAME_at_K`` for further metrics, by their name in ``METRICS``."""
    means: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Figures that are the arithmetic mean of others, by name."""
    solved_k: int = 10
    """A query counts as solved by one modality alone where its target is among that modality's best K."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Every metric key, in the order of a table; aspects not counted."""
        maps = tuple(f"map_at_{k}" for k in self.map_ks)
        recalls = tuple(f"recall_at_{k}" for k in self.recall_ks)
        subset_recalls = tuple(f"recall_subset_at_{k}" for k in self.subset_ks)
        others = tuple(f"{name}_at_{k}" for name, ks in self.others.items() for k in ks)
        return (*maps, *recalls, *subset_recalls, *others, *self.means)


_CIRR_RECALLS = ("recall_at_1", "recall_at_5", "recall_at_10", "recall_at_50")
_CIRR_SUBSET_RECALLS = ("recall_subset_at_1", "recall_subset_at_2", "recall_subset_at_3")

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
        "CIRCO": MetricProtocol(primary="map_at_10", recall_ks=(5, 10, 25, 50), map_ks=(5, 10, 25, 50)),
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
        "own": MetricProtocol(
            primary="recall_at_10", recall_ks=(1, 5, 10, 50), subset_ks=(1, 2, 3), subsets_required=False
        ),
    },
)

Metric = Callable[[Ranking, int], Float64[np.ndarray, " num_queries"]]
METRICS: Table[Metric] = Table("metrics", {})
"""Further metrics by name: each query's own value of ``NAME_at_K``, of its ranking and K; a protocol's ``others`` says
where they are measured. Recall and average precision are computed by ``per_query`` itself."""

_LABELS = {
    "mean_r5_rs1": "mean(R@5+R_s@1)",
    "mean_of_seven": "mean of all seven",
    "mean_r10_r50": "mean(R@10+R@50)",
    "mean_r1_r10_r50": "mean(R@1+R@10+R@50)",
}
_PREFIXES = {"recall_subset_at_": "R_s@", "recall_at_": "R@", "map_at_": "mAP@"}


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
    """Return the field's name of a metric key: ``R@5``, ``R_s@1``, ``mean(R@5+R_s@1)``, ``dress R@10``."""
    category, _, name = key.rpartition(".")
    name = _LABELS.get(name, name)
    for prefix, short in _PREFIXES.items():
        name = re.sub(f"^{prefix}", short, name)
    for other in METRICS:
        name = re.sub(f"^{other}_at_", f"{other}@", name)
    return f"{category} {name}".strip()


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

    A value is NaN where the figure does not speak of the query (an aspect that it does not have). Recall counts
    the annotated target alone, as the official evaluators of CIRR, FashionIQ and CIRCO do (Fashion200k: any
    right answer); average precision counts all right answers (see ``average_precision``). A mean is the mean of
    the query's own values, so the mean over queries of any entry is the published figure. Figures that the
    ranking does not hold (subsets that are not known, K beyond its depth) are left out.
    """
    split = ranking.split
    check_scorable([split])
    protocol = protocol_of(split.dataset)
    depth = ranking.top.shape[1]
    right = hits(ranking)
    values = {f"map_at_{k}": average_precision(right, _num_targets(split), k) for k in protocol.map_ks if k <= depth}
    values |= recalls(ranking, [k for k in protocol.recall_ks if k <= depth])
    if protocol.subset_ks and all(ranking.subset):
        subset_ranks = np.array(
            [
                order.index(query.targets[0]) + 1 if query.targets[0] in order else 0
                for order, query in zip(ranking.subset, split.queries, strict=True)
            ]
        )
        values |= {f"recall_subset_at_{k}": _within(subset_ranks, k) for k in protocol.subset_ks}
    for name, ks in protocol.others.items():
        values |= {f"{name}_at_{k}": METRICS[name](ranking, k) for k in ks if k <= depth}
    for name, parts in protocol.means.items():
        if all(part in values for part in parts):
            values[name] = np.mean([values[part] for part in parts], axis=0)
    if protocol.map_ks and depth >= ASPECT_K:
        precision = average_precision(right, _num_targets(split), ASPECT_K)
        for aspect in sorted({aspect for query in split.queries for aspect in query.aspects}):
            has_aspect = np.array([aspect in query.aspects for query in split.queries])
            values[f"{aspect}.map_at_{ASPECT_K}"] = np.where(has_aspect, precision, np.nan)
    return values


def recalls(ranking: Ranking, ks: Iterable[int]) -> dict[str, Float64[np.ndarray, " num_queries"]]:
    """Return whether each query's target (Fashion200k: any) is among the best K, 1 or 0, as ``recall_at_K``."""
    any_target = protocol_of(ranking.split.dataset).any_target
    ranks = first_ranks(hits(ranking, annotated_only=not any_target))
    return {f"recall_at_{k}": _within(ranks, k) for k in ks}


def average_precision(
    hits: Bool[np.ndarray, "num_queries depth"], num_targets: Int64[np.ndarray, " num_queries"], k: int
) -> Float64[np.ndarray, " num_queries"]:
    """Return AP@K: the sum over i <= K of precision(i) * rel(i), divided by min(number of right answers, K).

    Source: the official evaluator of CIRCO (Baldrati et al., ICCV 2023, arXiv 2303.15247).
    """
    best = hits[:, :k]
    precision = best.cumsum(axis=1) / np.arange(1, best.shape[1] + 1)  # (num_queries, k)
    return (precision * best).sum(axis=1) / np.minimum(num_targets, k)


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
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the 95 % percentile bootstrap interval of every figure that ``averages`` returns.

    Queries are drawn with replacement within their category (stratified), the same draws for all metrics
    (Efron, 1979). Where all queries have the same value the interval is that value.
    """
    rng = np.random.default_rng(seed)
    draws = {}
    for category, values in values_by_category.items():
        resampled = bootstrap(np.stack(list(values.values()), axis=1), num_resamples, rng)
        draws[category] = dict(zip(values, resampled.T, strict=True))
    tail = (1 - CONFIDENCE) / 2
    return {
        key: (float(np.nanquantile(means, tail)), float(np.nanquantile(means, 1 - tail)))
        for key, means in _over_categories(draws).items()
    }


def bootstrap(
    values: Float64[np.ndarray, "num_queries num_metrics"], num_resamples: int, rng: np.random.Generator
) -> Float64[np.ndarray, "num_resamples num_metrics"]:
    """Return the means over ``num_resamples`` draws of queries with replacement, the same draws for all columns.

    NaN entries do not count in their column; a draw that holds nothing else gives NaN.
    """
    num_queries = len(values)
    counted = ~np.isnan(values)
    sums = np.where(counted, values, 0.0)
    rows_per_block = max(1, DRAWS_PER_BLOCK // num_queries)
    blocks = []
    for start in range(0, num_resamples, rows_per_block):
        num_rows = min(rows_per_block, num_resamples - start)
        drawn = rng.integers(0, num_queries, (num_rows, num_queries))
        cells = drawn + num_queries * np.arange(num_rows)[:, None]
        counts = np.bincount(cells.ravel(), minlength=num_rows * num_queries).reshape(num_rows, num_queries)
        weights = counts.astype(np.float64)
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, as said
            blocks.append(weights @ sums / (num_queries if counted.all() else weights @ counted))
    return np.concatenate(blocks)


def _num_targets(split: Split) -> Int64[np.ndarray, " num_queries"]:
    return np.array([len(query.targets) for query in split.queries], dtype=np.int64)


def _within(ranks: np.ndarray, k: int) -> Float64[np.ndarray, " num_queries"]:
    return ((ranks >= 1) & (ranks <= k)).astype(np.float64)


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
