"""Whether one model is better than another: paired over the same queries and, given several seeds, over runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from composir.errors import ComposirError, nearest
from composir.evaluation.metrics import (
    NUM_RESAMPLES,
    averages,
    intervals,
    per_query,
    protocol_of,
)
from composir.evaluation.ranking import Ranking
from composir.evaluation.result import COMPOSED, Values, groups_of
from composir.evaluation.saved import Saved, split_difference
from composir.evaluation.signature import signature_text
from composir.evaluation.significance import NUM_FLIPS, OverSeeds, holm, over_seeds, sign_flip_p_value


@dataclass(frozen=True, slots=True)
class Run:
    """One result of a group."""

    path: str
    """Of its file of rankings."""
    seed: int | None
    weights: str
    """What identifies the model."""
    metrics: dict[str, float]
    """Fractions in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The figures of a group."""

    name: str
    metrics: dict[str, float]
    """Means over the runs, fractions in [0, 1]."""
    intervals: dict[str, tuple[float, float]]
    """The 95 % bootstrap intervals over queries of ``metrics``."""
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """How much higher ``b`` is than ``a``, and how sure that is on other queries and with other seeds."""

    a: str
    b: str
    metric: str
    delta: float
    """The figure of ``b`` minus that of ``a``, each the mean over its runs."""
    low: float
    high: float
    """The 95 % bootstrap interval of ``delta`` over queries (or groups), drawn within categories, the same for both."""
    p_value: float
    """Two-sided, of ``sign_flip_p_value`` over queries, or over groups of them where they belong together."""
    num_queries: int
    """Those that the metric speaks of."""
    num_seeds: int
    """Runs of either group; of the smaller one where they differ."""
    over_seeds: OverSeeds | None
    """None where a group has one run alone."""
    p_adjusted: float = 1.0
    """``p_value`` after Holm, over all differences of the comparison."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Groups of results on the same queries, side by side."""

    rows: tuple[Standing, ...]
    differences: tuple[Difference, ...]
    signature_fields: dict[str, str]
    """What was measured, by field; the weights, in which the results differ, are not among them."""

    @property
    def signature(self) -> str:
        """What was measured, as one short string."""
        return signature_text(self.signature_fields)

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``composir compare --json`` prints, made of plain JSON types."""
        return {
            "rows": [
                {**asdict(row), "intervals": {key: list(interval) for key, interval in row.intervals.items()}}
                for row in self.rows
            ],
            "differences": [asdict(difference) for difference in self.differences],
            "signature": self.signature,
            "signature_fields": dict(self.signature_fields),
        }


def compare(
    groups: Mapping[str, Sequence[Saved]],
    metrics: Sequence[str] = (),
    *,
    all_pairs: bool = False,
    num_resamples: int = NUM_RESAMPLES,
    num_flips: int = NUM_FLIPS,
    seed: int = 0,
) -> Comparison:
    """Return the figures of every group and the differences of all others to the first, or of all pairs.

    A group is one model in one or more runs; over queries, a query's value is its mean over the runs. Differences
    are of ``metrics``, or of the data set's primary one. Only the composed rankings count, and only figures that all
    results hold. ``seed`` is that of the resampling.

    Raises ``ComposirError`` for fewer than two groups, a run that is in a group twice, results whose signatures
    differ in more than the weights or whose queries or galleries differ, and a metric that is not in all of them.
    """
    if len(groups) < 2:
        given = "one group" if groups else "nothing"
        raise ComposirError(
            f"there is {given} to compare{f': {next(iter(groups))}' if groups else ''}",
            expected="two or more",
            fix="name the groups of runs apart: composir compare plain=RUN,RUN gate=RUN,RUN",
        )
    rows, means = _measure(groups, num_resamples, seed)
    results = [result for group in groups.values() for result in group]
    drawn = groups_of(_composed(results[0]))
    chosen = tuple(metrics) or (protocol_of(results[0].signature_fields["dataset"]).primary,)
    for metric in chosen:
        _check_metric(metric, rows[0].metrics, results)
    pairs = itertools.combinations(rows, 2) if all_pairs else ((rows[0], row) for row in rows[1:])
    differences = []
    for a, b in pairs:
        changes = _subtract(means[b.name], means[a.name])
        deltas = averages(changes)
        bounds = intervals(changes, drawn, num_resamples=num_resamples, seed=seed)
        for metric in chosen:
            parts, num_queries = _contributions(changes, drawn, metric)
            difference = Difference(
                a.name,
                b.name,
                metric,
                delta=deltas[metric],
                low=bounds[metric][0],
                high=bounds[metric][1],
                p_value=sign_flip_p_value(parts, num_flips=num_flips, seed=seed),
                num_queries=num_queries,
                num_seeds=min(len(a.runs), len(b.runs)),
                over_seeds=_over_seeds(a.runs, b.runs, metric),
            )
            differences.append(difference)
    fields = {name: value for name, value in results[0].signature_fields.items() if name != "weights"}
    return Comparison(rows, _adjust(differences), fields)


def standings(
    groups: Mapping[str, Sequence[Saved]], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[Standing, ...]:
    """Return the figures of every group, of one or more, as ``compare`` does, and raise what it raises of results."""
    return _measure(groups, num_resamples, seed)[0]


def _measure(
    groups: Mapping[str, Sequence[Saved]], num_resamples: int, seed: int
) -> tuple[tuple[Standing, ...], dict[str, Values]]:
    """Return the figures of every group and, by its name, every query's mean over its runs."""
    _check_groups(groups)
    results = [result for group in groups.values() for result in group]
    for result in results[1:]:
        _check_comparable(results[0], result)
    values = {name: [_values(result) for result in group] for name, group in groups.items()}
    keys = _common_keys([run for runs in values.values() for run in runs])
    means = {name: _mean_over_runs(runs, keys) for name, runs in values.items()}
    drawn = groups_of(_composed(results[0]))
    rows = tuple(
        Standing(
            name,
            metrics=averages(means[name]),
            intervals=intervals(means[name], drawn, num_resamples=num_resamples, seed=seed),
            runs=tuple(
                Run(str(result.path), result.seed, result.weights_hash, averages(_mean_over_runs([run], keys)))
                for result, run in zip(group, values[name], strict=True)
            ),
        )
        for name, group in groups.items()
    )
    return rows, means


def _check_groups(groups: Mapping[str, Sequence[Saved]]) -> None:
    for name, group in groups.items():
        if not group:
            raise ComposirError(f"the group {name} is empty", expected="one result or more in each")
        for one, other in itertools.combinations(group, 2):
            same_weights = one.weights_hash == other.weights_hash != "unknown"
            if one.path == other.path or same_weights:
                raise ComposirError(
                    f"is the same run as {one.path}, both in the group {name}",
                    file=other.path,
                    expected="each run of a group once: a copy tells nothing of other seeds",
                    fix="leave one of them out",
                )


def _check_comparable(first: Saved, other: Saved) -> None:
    """Raise ``ComposirError`` unless both were measured on the same queries by the same rules."""
    names = dict.fromkeys((*first.signature_fields, *other.signature_fields))
    found = {name: [fields.signature_fields.get(name, "none") for fields in (other, first)] for name in names}
    differing = [
        f"{name} is {theirs!r}, not {ours!r}"
        for name, (theirs, ours) in found.items()
        if theirs != ours and name != "weights"
    ]
    if differing:
        raise ComposirError(
            f"{'; '.join(differing)} as in {first.path}",
            file=other.path,
            expected="results whose signatures differ in the weights alone",
            fix="evaluate both models by the same rules and the same version, with --save-rankings",
        )
    difference = split_difference(*([ranking.split for ranking in _composed(saved)] for saved in (first, other)))
    if difference:
        raise ComposirError(
            f"{difference} in {first.path} and here",
            file=other.path,
            expected="results on the same queries and gallery",
            fix="evaluate both models on the same data root, with --save-rankings",
        )


def _check_metric(metric: str, known: Mapping[str, float], results: Sequence[Saved]) -> None:
    """Raise ``ComposirError`` unless ``metric`` is among what all results hold, naming one that lacks it."""
    if metric in known:
        return
    held = [averages(_values(result)) for result in results]
    lacking = [result for result, own in zip(results, held, strict=True) if metric not in own]
    if len(lacking) == len(results):
        raise ComposirError(
            f"no result holds a metric {metric!r}", fix=nearest(metric, {key for own in held for key in own})
        )
    raise ComposirError(
        f"its rankings do not tell {metric}",
        file=lacking[0].path,
        expected="a metric that all results hold",
        fix=f"give --metric one of: {', '.join(known)}" if known else "compare results of the same kind",
    )


def _composed(result: Saved) -> list[Ranking]:
    return sorted(result.rankings[COMPOSED], key=lambda ranking: ranking.split.category)


def _values(result: Saved) -> Values:
    return {ranking.split.category: per_query(ranking) for ranking in _composed(result)}


def _common_keys(runs: Sequence[Values]) -> list[str]:
    """Return the metrics that every category of every run holds, in the order of the first."""
    held = [metrics for run in runs for metrics in run.values()]
    return [key for key in held[0] if all(key in metrics for metrics in held)]


def _mean_over_runs(runs: Sequence[Values], keys: Sequence[str]) -> Values:
    """Return every query's mean over runs."""
    return {
        category: {key: np.mean([run[category][key] for run in runs], axis=0) for key in keys} for category in runs[0]
    }


def _subtract(values: Values, others: Values) -> Values:
    return {
        category: {key: value - others[category][key] for key, value in metrics.items()}
        for category, metrics in values.items()
    }


def _contributions(
    changes: Values, groups: Mapping[str, Int64[np.ndarray, " num_queries"]], metric: str
) -> tuple[Float64[np.ndarray, " _"], int]:
    """Return what every group of queries adds to the difference of ``metric``, and how many queries it speaks of."""
    if all(metric in metrics for metrics in changes.values()):
        columns = {category: metrics[metric] for category, metrics in changes.items()}
    else:
        category, _, key = metric.partition(".")
        columns = {category: changes[category][key]}
    parts, num_queries = [], 0
    for category, column in columns.items():
        spoken_of = ~np.isnan(column)
        count = int(spoken_of.sum())
        parts.append(np.bincount(groups[category][spoken_of], column[spoken_of] / (count * len(columns))))
        num_queries += count
    return np.concatenate(parts), num_queries


def _over_seeds(a: Sequence[Run], b: Sequence[Run], metric: str) -> OverSeeds | None:
    """Return ``over_seeds`` of a figure, paired where the seeds are the same; None where a group has one run."""
    if min(len(a), len(b)) < 2:
        return None
    seeds = [[run.seed for run in runs] for runs in (a, b)]
    paired = set(seeds[0]) == set(seeds[1]) and None not in seeds[0] and all(len(set(s)) == len(s) for s in seeds)
    if paired:
        a, b = (sorted(runs, key=lambda run: run.seed or 0) for runs in (a, b))
    first, second = (np.array([run.metrics[metric] for run in runs]) for runs in (a, b))
    return over_seeds(first, second, paired=paired)


def _adjust(differences: Sequence[Difference]) -> tuple[Difference, ...]:
    """Return the differences with their adjusted p-values, over queries and over seeds apart."""
    tests = [difference.over_seeds for difference in differences]
    known = [test.p_value for test in tests if test is not None and test.p_value is not None]
    adjusted_tests = iter(holm(known))
    return tuple(
        replace(
            difference,
            p_adjusted=adjusted,
            over_seeds=test if test is None or test.p_value is None else replace(test, p_adjusted=next(adjusted_tests)),
        )
        for difference, test, adjusted in zip(
            differences, tests, holm([one.p_value for one in differences]), strict=True
        )
    )
