"""What a ranking is worth to each query, and to each group of queries that belong together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float64, Int64

from composir.data.triplets import Split
from composir.evaluation.ranking import Ranking, first_ranks, hits, negatives

Metric = Callable[[Ranking, int], Float64[np.ndarray, " num_queries"]]
"""Each query's own value of ``NAME_at_K``, of its ranking and K; NaN where the figure does not speak of the query."""
Reduce = Callable[[Float64[np.ndarray, " group"]], float]
"""What makes one value of a group's own, which come in the order of its queries."""


def num_targets(split: Split) -> Int64[np.ndarray, " num_queries"]:
    """Return how many right answers every query has, as its data set counts them (``Query.num_listed_targets``)."""
    return np.array([query.num_listed_targets or len(query.targets) for query in split.queries], dtype=np.int64)


def average_precision(
    hits: Bool[np.ndarray, "num_queries depth"], num_targets: Int64[np.ndarray, " num_queries"], k: int
) -> Float64[np.ndarray, " num_queries"]:
    """Return AP@K: the sum over i <= K of precision(i) * rel(i), divided by min(number of right answers, K).

    Source: the official evaluator of CIRCO (Baldrati et al., ICCV 2023, arXiv 2303.15247).
    """
    best = hits[:, :k]
    precision = best.cumsum(axis=1) / np.arange(1, best.shape[1] + 1)  # (num_queries, k)
    return (precision * best).sum(axis=1) / np.minimum(num_targets, k)


def precision(ranking: Ranking, k: int) -> Float64[np.ndarray, " num_queries"]:
    """Return the share of the best K that are right answers; a place that the ranking leaves empty is a miss."""
    return hits(ranking)[:, :k].sum(axis=1) / k


def precision_without_negatives(ranking: Ranking, k: int) -> Float64[np.ndarray, " num_queries"]:
    """Return ``average_precision`` at K of the ranking from which the explicit negatives are taken out.

    An image that is also a right answer goes, too, and stays in the number of right answers. Source: the evaluator of
    PinPoint (Mahadev et al., CVPR 2026, arXiv 2603.04598), there ``mAP@K_noNeg``.
    """
    wrong = negatives(ranking)
    others_first = np.argsort(wrong, axis=1, kind="stable")
    right = np.take_along_axis(hits(ranking) & ~wrong, others_first, axis=1)
    return average_precision(right, num_targets(ranking.split), k)


def whole_precision(ranking: Ranking, k: int) -> Float64[np.ndarray, " num_queries"]:
    """Return the average precision over the query's whole gallery, whatever ``k``; needs ``Ranking.right_ranks``.

    With the right answers at ranks r_1 < r_2 < ... < r_n it is the area under the line through the precisions just
    before and at each of them: the mean over j of ((j - 1) / (r_j - 1) + j / r_j) / 2, where 0 / 0 is 1. A right answer
    whose rank is not known adds nothing. Source: the official evaluator of i-CIR (Psomas et al., NeurIPS 2025, arXiv
    2510.25387), as of Oxford and Paris before it; it divides by n + 0.00001, which is not done here.
    """
    assert ranking.right_ranks is not None
    ranks = np.sort(np.where(ranking.right_ranks > 0, ranking.right_ranks, np.inf), axis=1)
    before = np.arange(ranks.shape[1])  # right answers in front of each
    precision_before = np.where(ranks == 1, 1.0, before / np.maximum(ranks - 1, 1))
    return (precision_before + (before + 1) / ranks).sum(axis=1) / 2 / num_targets(ranking.split)


def target_found(ranking: Ranking, k: int) -> Float64[np.ndarray, " num_queries"]:
    """Return whether the annotated target is among the best K, 1 or 0."""
    return within(first_ranks(hits(ranking, annotated_only=True)), k)


def any_found(ranking: Ranking, k: int) -> Float64[np.ndarray, " num_queries"]:
    """Return whether any right answer is among the best K, 1 or 0."""
    return within(first_ranks(hits(ranking)), k)


def within(ranks: Int64[np.ndarray, " num_queries"], k: int) -> Float64[np.ndarray, " num_queries"]:
    """Return whether ranks, 0 for none, are among the best K, 1 or 0."""
    return ((ranks >= 1) & (ranks <= k)).astype(np.float64)


def negative_rate(ranking: Ranking, k: int) -> Float64[np.ndarray, " num_queries"]:
    """Return how many explicit negatives are among the best K, divided by min(their number, K); lower is better.

    0 for a query without negatives. Source: the evaluator of PinPoint (Mahadev et al., CVPR 2026, arXiv 2603.04598),
    there ``NegRecall@K``.
    """
    queries = ranking.split.queries
    num_negatives = np.array([query.num_listed_negatives or len(query.negatives) for query in queries], dtype=np.int64)
    return negatives(ranking)[:, :k].sum(axis=1) / np.clip(num_negatives, 1, k)


def group_numbers(split: Split) -> Int64[np.ndarray, " num_queries"]:
    """Return the number of every query's group, from 0 in the order of first queries; alone is a group of its own."""
    number_by_group: dict[str | int, int] = {}
    groups = (query.group or row for row, query in enumerate(split.queries))
    return np.array([number_by_group.setdefault(group, len(number_by_group)) for group in groups], np.int64)


def of_groups(metric: Metric, reduce: Reduce) -> Metric:
    """Return the metric of whole groups: ``reduce`` of the group's own values.

    A group's value stands at its first query and NaN at its others, so that every group counts once in a mean.
    """

    def of_group(ranking: Ranking, k: int) -> Float64[np.ndarray, " num_queries"]:
        values, numbers = metric(ranking, k), group_numbers(ranking.split)
        reduced = np.full(len(values), np.nan)
        order = np.argsort(numbers, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
            reduced[rows[0]] = reduce(values[rows])
        return reduced

    return of_group


def of_several(reduce: Reduce) -> Reduce:
    """Return what is NaN for a group of a single query, and ``reduce`` of any other."""
    return lambda values: float(reduce(values)) if len(values) > 1 else float("nan")


def hit_by_round(number: int) -> Reduce:
    """Return what tells whether one of a session's first ``number`` rounds found what it looks for.

    A session of fewer rounds keeps what its last one came to, so all sessions count in every round.
    """
    return lambda values: float(values[:number].max())


def last_round(values: Float64[np.ndarray, " group"]) -> float:
    """Return a session's value of its last round."""
    return float(values[-1])
