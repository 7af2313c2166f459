"""From rankings to figures: the same for a model, a file of predictions and saved rankings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from composir.errors import ComposirError
from composir.evaluation.metrics import (
    NUM_RESAMPLES,
    averages,
    check_scorable,
    intervals,
    lower_is_better,
    per_query,
    protocol_of,
    solved,
)
from composir.evaluation.ranking import Ranking, select
from composir.evaluation.signature import signature_fields, signature_text
from composir.evaluation.values import group_numbers

COMPOSED, IMAGE_ONLY, TEXT_ONLY = "composed", "image_only", "text_only"
KINDS = (COMPOSED, IMAGE_ONLY, TEXT_ONLY)
"""What a query may be asked with: both, the picture alone, the sentence alone."""

Values = dict[str, dict[str, Float64[np.ndarray, " num_queries"]]]
"""What ``per_query`` returns, by category."""


@dataclass(frozen=True, slots=True)
class Gain:
    """What composing adds to the better single modality."""

    over: str
    """``image_only`` or ``text_only``, whichever has the better figure."""
    delta: float
    """The composed figure minus that one."""
    low: float
    high: float
    """The 95 % bootstrap interval of ``delta``, over the same queries."""


@dataclass(frozen=True, slots=True)
class Audit:
    """How much of a benchmark needs the composition at all, as this model sees it.

    After arXiv 2605.14787, whose labels are over a pool of models; here the pool is the one model. A query is
    solved where its target is among the best ``k``.
    """

    k: int
    num_queries: int
    num_image_solves: int
    """Queries that the picture alone solves."""
    num_text_solves: int
    """Queries that the sentence alone solves."""
    num_shortcut_solvable: int
    """Queries that one of the two alone solves."""
    num_composition_required: int
    """Queries that only both together solve."""
    num_unresolved: int
    """Queries that are not solved at all."""
    shortcut_free: dict[str, float]
    """The composed figures on the queries that no single modality solves; empty where there are none."""
    gain: dict[str, Gain]
    """By metric key."""


@dataclass(frozen=True, slots=True)
class Rerank:
    """What re-ranking started from."""

    num_candidates: int
    """How many of each query's best were scored again."""
    ceiling: float
    """The share of queries whose target is among those: what no recall at a smaller K can pass."""
    first_stage: dict[str, float]
    """The composed figures of the rankings as they were."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The figures of a model on a split, with what it takes to read them rightly."""

    metrics: dict[str, float]
    """Fractions in [0, 1]; with categories also ``dress.recall_at_10``, the plain key being their mean."""
    intervals: dict[str, tuple[float, float]]
    """The 95 % bootstrap interval over queries of every metric."""
    baselines: dict[str, dict[str, float]]
    """The same metrics of ``image_only`` and ``text_only``; empty where they were not ranked."""
    audit: Audit | None
    """How much one modality alone explains; None without both baselines."""
    signature_fields: dict[str, str]
    """What was measured, by field."""
    rankings: dict[str, tuple[Ranking, ...]]
    """By kind (``composed``, ``image_only``, ``text_only``), one per category."""
    rerank: Rerank | None = None
    """None where the rankings are those of the embeddings."""

    @property
    def num_queries(self) -> int:
        """Over all categories."""
        return sum(len(ranking.split.queries) for ranking in self.rankings[COMPOSED])

    @property
    def num_gallery(self) -> int | None:
        """Gallery images over all categories; None where their list was not there."""
        if any(ranking.split.missing_list for ranking in self.rankings[COMPOSED]):
            return None
        return sum(len(ranking.split.gallery) for ranking in self.rankings[COMPOSED])

    @property
    def signature(self) -> str:
        """What was measured, as one short string."""
        return signature_text(self.signature_fields)

    @property
    def primary(self) -> str:
        """The key of the figure that the field compares by; it may be missing from a half file of predictions."""
        return protocol_of(self.signature_fields["dataset"]).primary

    def values(self, kind: str = COMPOSED) -> Values:
        """Return every query's own value of every figure, by category."""
        return {ranking.split.category: per_query(ranking) for ranking in self.rankings[kind]}

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``composir evaluate --json`` prints, made of plain JSON types."""
        document: dict[str, Any] = {
            "metrics": dict(self.metrics),
            "intervals": {key: list(interval) for key, interval in self.intervals.items()},
        }
        if self.baselines:
            document["baselines"] = {name: dict(metrics) for name, metrics in self.baselines.items()}
        if self.audit is not None:
            document["audit"] = asdict(self.audit)
        if self.rerank is not None:
            document["rerank"] = asdict(self.rerank)
        return document | {
            "num_queries": self.num_queries,
            "num_gallery": self.num_gallery,
            "primary_metric": self.primary,
            "signature": self.signature,
            "signature_fields": dict(self.signature_fields),
        }


def measure(
    rankings: Mapping[str, Sequence[Ranking]],
    *,
    weights_hash: str = "unknown",
    signature: Mapping[str, str] | None = None,
    rerank: Rerank | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Result:
    """Return the figures of ``rankings``, which hold ``composed`` and perhaps both baselines, one per category.

    ``weights_hash`` identifies the model in the signature, unless the rankings come with one, ``signature`` by
    field, as saved ones do; ``rerank`` says what the rankings were before they were re-ranked; ``seed`` is the
    bootstrap's. Raises ``ComposirError`` where a baseline gives other figures.
    """
    composed = rankings[COMPOSED]
    check_scorable([ranking.split for ranking in composed])
    values_by_kind = {
        kind: {ranking.split.category: per_query(ranking) for ranking in ranked} for kind, ranked in rankings.items()
    }
    figures = {kind: averages(values) for kind, values in values_by_kind.items()}
    groups = groups_of(composed)
    for kind, metrics in figures.items():
        if metrics.keys() != figures[COMPOSED].keys():
            raise ComposirError(
                f"the {kind.replace('_', ' ')} ranking gives other figures than the composed one",
                expected="files of predictions of the same kinds, with lists of the same length",
                fix="give both of CIRR's files of each, or one of each",
            )
    primary = protocol_of(composed[0].split.dataset).primary  # half of CIRR's files do not give it
    audited = all(kind in rankings for kind in KINDS) and primary in figures[COMPOSED]
    return Result(
        metrics=figures[COMPOSED],
        intervals=intervals(values_by_kind[COMPOSED], groups, num_resamples=num_resamples, seed=seed),
        baselines={kind: metrics for kind, metrics in figures.items() if kind != COMPOSED},
        audit=_audit(rankings, values_by_kind, figures, groups, num_resamples, seed) if audited else None,
        signature_fields=dict(
            signature
            or signature_fields(
                [ranking.split for ranking in composed],
                weights_hash=weights_hash,
                num_reranked=rerank.num_candidates if rerank else 0,
            )
        ),
        rankings={kind: tuple(ranked) for kind, ranked in rankings.items()},
        rerank=rerank,
    )


def groups_of(rankings: Sequence[Ranking]) -> dict[str, Int64[np.ndarray, " num_queries"]]:
    """Return the number of every query's group, by category: what intervals draw."""
    return {ranking.split.category: group_numbers(ranking.split) for ranking in rankings}


def _audit(  # noqa: PLR0917
    rankings: Mapping[str, Sequence[Ranking]],
    values_by_kind: Mapping[str, Values],
    figures: Mapping[str, Mapping[str, float]],
    groups: Mapping[str, Int64[np.ndarray, " num_queries"]],
    num_resamples: int,
    seed: int,
) -> Audit:
    solved_by = {kind: {ranking.split.category: solved(ranking) for ranking in rankings[kind]} for kind in KINDS}
    shortcut = {
        category: solved_by[IMAGE_ONLY][category] | solved_by[TEXT_ONLY][category] for category in solved_by[COMPOSED]
    }
    only_both = {category: solved_by[COMPOSED][category] & ~found for category, found in shortcut.items()}
    num_queries = sum(len(found) for found in shortcut.values())
    num_shortcut, num_only_both = _count(shortcut), _count(only_both)
    return Audit(
        k=protocol_of(rankings[COMPOSED][0].split.dataset).solved_k,
        num_queries=num_queries,
        num_image_solves=_count(solved_by[IMAGE_ONLY]),
        num_text_solves=_count(solved_by[TEXT_ONLY]),
        num_shortcut_solvable=num_shortcut,
        num_composition_required=num_only_both,
        num_unresolved=num_queries - num_shortcut - num_only_both,
        shortcut_free=_shortcut_free(rankings[COMPOSED], shortcut),
        gain=_gains(values_by_kind, figures, groups, num_resamples, seed),
    )


def _count(found: Mapping[str, Bool[np.ndarray, " num_queries"]]) -> int:
    return sum(int(part.sum()) for part in found.values())


def _shortcut_free(
    rankings: Sequence[Ranking], shortcut: Mapping[str, Bool[np.ndarray, " num_queries"]]
) -> dict[str, float]:
    """Return the figures over the queries outside ``shortcut``; a category without any does not count.

    They are computed anew, since what a group comes to depends on which of its queries are left.
    """
    rest = {
        category: per_query(select(ranking, ~shortcut[category]))
        for ranking in rankings
        if not shortcut[category := ranking.split.category].all()
    }
    if not rest:
        return {}
    spoken_of = {
        category: {key: value for key, value in metrics.items() if not np.isnan(value).all()}
        for category, metrics in rest.items()
    }
    return averages(spoken_of)


def _gains(
    values_by_kind: Mapping[str, Values],
    figures: Mapping[str, Mapping[str, float]],
    groups: Mapping[str, Int64[np.ndarray, " num_queries"]],
    num_resamples: int,
    seed: int,
) -> dict[str, Gain]:
    intervals_over = {
        kind: intervals(
            {
                category: {key: value - values_by_kind[kind][category][key] for key, value in metrics.items()}
                for category, metrics in values_by_kind[COMPOSED].items()
            },
            groups,
            num_resamples=num_resamples,
            seed=seed,
        )
        for kind in (IMAGE_ONLY, TEXT_ONLY)
    }
    gains = {}
    for key, figure in figures[COMPOSED].items():
        better = min if lower_is_better(key) else max
        over = better((IMAGE_ONLY, TEXT_ONLY), key=lambda kind: figures[kind][key])
        low, high = intervals_over[over][key]
        gains[key] = Gain(over, figure - figures[over][key], low, high)
    return gains
