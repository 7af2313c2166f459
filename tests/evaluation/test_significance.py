"""How sure a difference is: every p-value by hand, by scipy, or by a short slow version that it must equal."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from composir.evaluation import over_seeds
from composir.evaluation.significance import holm, sign_flip_p_value


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [0.0, 0.0],
        [0.25],
        [0.25, 0.25],
        [1 / 3, 1 / 3, 1 / 3],
        [0.1, 0.2, 0.3],  # 0.1 + 0.2 - 0.3 is not quite zero
        [0.1, 0.2, -0.3],
        [0.125] * 6 + [-0.125] * 2 + [0.0] * 9,
        [0.01, 0.5, -0.02, 0.3, 0.07, -0.11, 0.013],
    ],
)
def test_the_p_value_is_near_the_share_of_all_sign_changes(parts):
    sums = [math.fsum(sign * part for sign, part in zip(signs, parts, strict=True))
            for signs in itertools.product((1, -1), repeat=len(parts))]  # fmt: skip
    exact = sum(abs(total) >= abs(math.fsum(parts)) - 1e-9 for total in sums) / len(sums)
    # A share of 10,000 draws is off by 0.005 at most, one standard error; four of them are allowed.
    assert sign_flip_p_value(np.array(parts)) == pytest.approx(exact, abs=0.02)
    if exact == 1:
        assert sign_flip_p_value(np.array(parts)) == 1


def test_the_p_value_equals_the_short_version():
    parts = np.random.default_rng(0).normal(0.01, 0.05, 40)
    kept = np.random.default_rng(7).integers(0, 2, (500, 40), dtype=np.int8)
    count = 0
    for row in kept.tolist():
        total = sum(part if keep else -part for keep, part in zip(row, parts.tolist(), strict=True))
        count += abs(total) >= abs(sum(parts.tolist())) - 1e-12
    assert 0 < count < 500
    assert sign_flip_p_value(parts, num_flips=500, seed=7) == (count + 1) / 501


def test_the_p_value_is_never_zero_and_does_not_depend_on_scale_or_sign():
    parts = np.full(200, 0.005)
    assert sign_flip_p_value(parts) == 1 / 10_001
    other = np.random.default_rng(1).normal(0.1, 1, 50)
    assert sign_flip_p_value(other) == sign_flip_p_value(-other) == sign_flip_p_value(1e-6 * other)


def test_the_p_value_of_no_difference_is_even():
    """Where neither is better, p-values below 0.05 are 5 % of all: here 400 pairs, 20 of them, give or take 4.4."""
    rng = np.random.default_rng(2)
    found = [sign_flip_p_value(rng.normal(0, 1, 30), num_flips=400, seed=number) for number in range(400)]
    assert 0.02 < np.mean([p <= 0.05 for p in found]) < 0.085


def test_runs_of_unequal_number_equal_scipys_welch():
    a, b = np.array([1 / 4, 0, 1 / 2]), np.array([3 / 4, 1 / 2])
    test = over_seeds(a, b, paired=False)
    expected = stats.ttest_ind(b, a, equal_var=False)
    assert test.test == "Welch t"
    assert test.p_value == pytest.approx(expected.pvalue)
    assert (test.low, test.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_pairs_of_runs_equal_scipys_paired_test():
    a, b = np.array([1 / 4, 0, 1 / 2]), np.array([3 / 4, 1 / 4, 7 / 8])
    test = over_seeds(a, b, paired=True)
    expected = stats.ttest_rel(b, a)
    assert test.test == "paired t"
    assert test.p_value == pytest.approx(expected.pvalue)
    assert (test.low, test.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_holm_by_hand():
    # In order 0.005 * 4 = 0.02, 0.01 * 3 = 0.03, 0.03 * 2 = 0.06, and 0.04 * 1, which is not less than 0.06 before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
