"""One definition of every metric, from a ranking to a figure with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from composir.data.triplets import Split
from composir.errors import ComposirError, nearest
from composir.evaluation.ranking import Ranking, check_gallery, describe, target_ranks

METRIC_VERSION = "1"
"""Raised whenever a figure computed from the same ranking would change."""
NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
DRAWS_PER_BLOCK = 2**22
"""Resampled queries counted at once: 32 MB."""


@dataclass(frozen=True, slots=True)
class MetricProtocol:
    """What is measured on a data set."""

    recall_ks: tuple[int, ...]
    """The K of ``recall_at_K``: the share of queries whose annotated target is among the best K."""
    subset_ks: tuple[int, ...]
    """The K of ``recall_subset_at_K``: the same among the members of the query's subset alone."""
    means: Mapping[str, tuple[str, ...]]
    """Figures that are the arithmetic mean of others, by name."""
    primary: str
    """The figure that the field compares by."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Every metric key, in the order of a table."""
        recalls = tuple(f"recall_at_{k}" for k in self.recall_ks)
        subset_recalls = tuple(f"recall_subset_at_{k}" for k in self.subset_ks)
        return (*recalls, *subset_recalls, *self.means)


_CIRR_RECALLS = ("recall_at_1", "recall_at_5", "recall_at_10", "recall_at_50")
_CIRR_SUBSET_RECALLS = ("recall_subset_at_1", "recall_subset_at_2", "recall_subset_at_3")

PROTOCOLS: dict[str, MetricProtocol] = {
    "CIRR": MetricProtocol(
        recall_ks=(1, 5, 10, 50),
        subset_ks=(1, 2, 3),
        means={
            "mean_r5_rs1": ("recall_at_5", "recall_subset_at_1"),
            "mean_of_seven": (*_CIRR_RECALLS, *_CIRR_SUBSET_RECALLS),  # SPRC selects its checkpoint by it
        },
        primary="mean_r5_rs1",
    ),
    "FashionIQ": MetricProtocol(
        recall_ks=(10, 50),
        subset_ks=(),
        means={"mean_r10_r50": ("recall_at_10", "recall_at_50")},
        primary="mean_r10_r50",
    ),
}


@dataclass(frozen=True, slots=True)
class MetricValues:
    """The figures of one or several rankings, as fractions in [0, 1]."""

    metrics: dict[str, float]
    """By key; with categories also ``dress.recall_at_10``, the plain key being their unweighted mean."""
    intervals: dict[str, tuple[float, float]]
    """The 95 % bootstrap interval over queries of every metric, low and high."""


def protocol_of(dataset: str) -> MetricProtocol:
    """Return what is measured on ``dataset``; raise ``ComposirError`` where it is not in ``PROTOCOLS``."""
    if dataset not in PROTOCOLS:
        raise ComposirError(
            f"no metrics are defined for the data set {dataset!r}",
            expected="a data set in composir.evaluation.PROTOCOLS",
            fix=nearest(dataset, PROTOCOLS),
        )
    return PROTOCOLS[dataset]


def check_scorable(splits: Sequence[Split], *, depth: int) -> None:
    """Return nothing; raise ``ComposirError`` unless rankings of ``splits`` can be scored together.

    They must be categories of one split of one data set, under the same rules, each once, and every
    query must have its targets, and its subset where the data set measures one, in the gallery. ``depth``,
    how many images a ranking keeps, must reach the data set's largest K.
    Cheap: call it before anything is embedded.
    """
    if not splits:
        raise ComposirError("there is nothing to score", expected="at least one split")
    _check_same_rules(splits)
    protocol = protocol_of(splits[0].dataset)
    if depth < max(protocol.recall_ks):
        raise ComposirError(
            f"the ranking keeps the best {depth} images of a query",
            file=describe(splits[0]),
            expected=f"at least {max(protocol.recall_ks)}, the largest K of {splits[0].dataset}",
            fix=f"rank with depth={max(protocol.recall_ks)}",
        )
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
        if protocol.subset_ks and without_subset:
            raise ComposirError(
                f"{len(without_subset)} of {num_queries} queries have no subset (first {without_subset[0]})",
                file=describe(split),
                expected=f"the image set of every query, which {split.dataset} measures recall in",
                fix=f"run `composir data check --dataset {split.dataset}`",
            )


def per_query(ranking: Ranking) -> dict[str, Float64[np.ndarray, " num_queries"]]:
    """Return every metric of the ranking's data set by key, with one value in [0, 1] per query.

    Recall counts the annotated target alone, as the official evaluators of CIRR and FashionIQ do; a mean
    is the mean of the query's own values, so the mean over queries of any entry is the published figure.
    """
    split = ranking.split
    check_scorable([split], depth=ranking.top.shape[1])
    protocol = protocol_of(split.dataset)
    ranks = target_ranks(ranking)
    values = {f"recall_at_{k}": _within(ranks, k) for k in protocol.recall_ks}
    if protocol.subset_ks:
        subset_ranks = np.array(
            [
                order.index(query.targets[0]) + 1 if query.targets[0] in order else 0
                for order, query in zip(ranking.subset, split.queries, strict=True)
            ]
        )
        values |= {f"recall_subset_at_{k}": _within(subset_ranks, k) for k in protocol.subset_ks}
    return values | {name: np.mean([values[part] for part in parts], axis=0) for name, parts in protocol.means.items()}


def evaluate_rankings(
    rankings: Sequence[Ranking], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> MetricValues:
    """Return the figures of ``rankings`` with their intervals: one ranking, or one per category."""
    depth = min((ranking.top.shape[1] for ranking in rankings), default=0)
    check_scorable([ranking.split for ranking in rankings], depth=depth)
    values_by_category = {ranking.split.category: per_query(ranking) for ranking in rankings}
    return MetricValues(
        metrics=averages(values_by_category),
        intervals=intervals(values_by_category, num_resamples=num_resamples, seed=seed),
    )


def averages(values_by_category: Mapping[str, Mapping[str, Float64[np.ndarray, " _"]]]) -> dict[str, float]:
    """Return the mean over queries of every metric, then over categories, keyed as ``MetricValues.metrics``.

    ``values_by_category`` holds what ``per_query`` returns, under ``""`` where there are no categories.
    """
    means = {
        category: {key: np.mean(value) for key, value in values.items()}
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
        resampled = _bootstrap_means(np.stack(list(values.values()), axis=1), num_resamples, rng)
        draws[category] = dict(zip(values, resampled.T, strict=True))
    tail = (1 - CONFIDENCE) / 2
    return {
        key: (float(np.quantile(means, tail)), float(np.quantile(means, 1 - tail)))
        for key, means in _over_categories(draws).items()
    }


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


def _bootstrap_means(
    values: Float64[np.ndarray, "num_queries num_metrics"], num_resamples: int, rng: np.random.Generator
) -> Float64[np.ndarray, "num_resamples num_metrics"]:
    num_queries = len(values)
    rows_per_block = max(1, DRAWS_PER_BLOCK // num_queries)
    blocks = []
    for start in range(0, num_resamples, rows_per_block):
        num_rows = min(rows_per_block, num_resamples - start)
        drawn = rng.integers(0, num_queries, (num_rows, num_queries))
        cells = drawn + num_queries * np.arange(num_rows)[:, None]
        counts = np.bincount(cells.ravel(), minlength=num_rows * num_queries).reshape(num_rows, num_queries)
        blocks.append(counts @ values / num_queries)
    return np.concatenate(blocks)


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
