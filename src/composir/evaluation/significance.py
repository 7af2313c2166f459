"""How sure a difference of figures is: sign flips over queries, t tests over seeds, Holm over several differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from composir.evaluation.metrics import CONFIDENCE, DRAWS_PER_BLOCK

NUM_FLIPS = 10_000
"""Random sign changes of a randomisation test: its p-value is never below 1 / 10,001."""
NO_SPREAD = 1e-12
"""Figures closer than this are the same but for rounding."""


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """How sure a difference is when the models are trained again, judged by the spread of the runs."""

    test: str
    """``paired t`` where both groups have the same seeds, each once, else ``Welch t``."""
    low: float | None
    high: float | None
    """The 95 % interval of the difference; None where the runs differ but do not vary: no spread to judge by."""
    p_value: float | None
    """Two-sided; None as above, 1 where all runs are the same."""
    p_adjusted: float | None = None
    """After Holm, over all differences of the comparison."""


def sign_flip_p_value(contributions: Float64[np.ndarray, " _"], *, num_flips: int = NUM_FLIPS, seed: int = 0) -> float:
    """Return the two-sided p-value of the paired randomisation test of a sum of differences.

    If neither model were better, each query's difference could as well have had the other sign. The p-value is the
    share of random sign changes whose sum is as far from zero as the one found or further, with that one counted as
    one of them: (count + 1) / (``num_flips`` + 1) (Fisher, 1935; Phipson and Smyth, 2010).
    """
    parts = contributions[contributions != 0]  # a sign does nothing to the others
    reach = abs(parts.sum()) - NO_SPREAD * np.abs(parts).sum()
    rng = np.random.default_rng(seed)
    rows_per_block = max(1, DRAWS_PER_BLOCK // max(1, len(parts)))
    count = 0
    for start in range(0, num_flips, rows_per_block):
        num_rows = min(rows_per_block, num_flips - start)
        kept = rng.integers(0, 2, (num_rows, len(parts)), dtype=np.int8).astype(np.float64)
        sums = 2 * (kept @ parts) - parts.sum()  # those kept count as they are, the others the other way round
        count += int((np.abs(sums) >= reach).sum())
    return (count + 1) / (num_flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for how many there are, in the same order (Holm, 1979).

    The smallest of n is multiplied by n, the next by n - 1, ..., none is less than one before it or more than 1.
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, np.float64)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def over_seeds(first: Float64[np.ndarray, " _"], second: Float64[np.ndarray, " _"], *, paired: bool) -> OverSeeds:
    """Return the t test of the runs' figures, two or more of each, ``second`` minus ``first``.

    ``paired``: the runs of the same seed stand at the same place; else Welch's test (Welch, 1947).
    """
    kind = "paired t" if paired else "Welch t"
    spread = np.ptp(second - first) if paired else max(np.ptp(first), np.ptp(second))
    if spread < NO_SPREAD:
        same = abs(second.mean() - first.mean()) < NO_SPREAD
        return OverSeeds(kind, 0.0, 0.0, 1.0) if same else OverSeeds(kind, None, None, None)
    from scipy import stats  # noqa: PLC0415 (a second of import that only seeds need)

    test: Any = stats.ttest_rel(second, first) if paired else stats.ttest_ind(second, first, equal_var=False)
    interval = test.confidence_interval(CONFIDENCE)
    return OverSeeds(kind, float(interval.low), float(interval.high), float(test.pvalue))
