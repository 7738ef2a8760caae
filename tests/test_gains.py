"""Shares of a gain: Fieller's interval against the test it inverts, closed forms, coverage, and when there is none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from scipy.stats import t as student

from tunetrial.analysis import stats
from tunetrial.analysis.gains import gains
from tunetrial.core.errors import EvidenceError


def scored(rng, *, candidate=0.27, reference=0.3, seeds=5, rows=200, seed_sd=0.02, item_sd=0.3, rest_sd=0.3):
    """Gains of two arms over a base that is the same at every seed, shape (2, R, E)."""
    base_E = rng.normal(0, item_sd, rows)
    arms = [
        level
        + rng.normal(0, seed_sd, (seeds, 1))
        + rng.normal(0, item_sd, rows)
        + rng.normal(0, rest_sd, (seeds, rows))
        for level in (candidate, reference)
    ]
    return np.stack(arms) - base_E


@given(st.integers(0, 10_000), st.floats(-3, 3))
def test_every_contrast_is_what_crossed_estimates(seed, share):
    candidate, reference = scored(np.random.default_rng(seed), seeds=3, rows=20)
    ours, whole = gains(candidate, reference).contrast(share), stats.crossed(candidate - share * reference)
    assert (ours.effect, ours.se, ours.df) == pytest.approx((whole.effect, whole.se, whole.df))
    own, alone = gains(candidate, reference).reference_gain, stats.crossed(reference)
    assert (own.effect, own.se, own.df) == pytest.approx((alone.effect, alone.se, alone.df))


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0, 0.02), st.floats(0, 0.02))
def test_the_limits_are_those_of_the_shares_that_the_test_does_not_reject(seed, below, above):
    """By brute force over a fine grid: the interval of the share is every share whose contrast may be 0."""
    found = gains(*scored(np.random.default_rng(seed)), candidate_regret=above, reference_regret=below)
    low, high = found.limits(0.972)
    grid = np.arange(low - 0.05, high + 0.05, 0.001)
    kept = [share for share in grid if found.contrast(share).p_not_zero() >= 0.028]
    assert (min(kept), max(kept)) == pytest.approx((low, high), abs=0.0011)
    assert low < found.share < high


def test_the_limits_solve_the_quadratic_of_fieller():
    """With t at the degrees of freedom of each limit: (a^2 - t^2 A) - 2 (ab - t^2 AB) s + (b^2 - t^2 B) s^2 = 0."""
    candidate, reference = scored(np.random.default_rng(4), seed_sd=0.05, rows=400)
    found = gains(candidate, reference)
    a, b = candidate.mean(), reference.mean()
    rows, seeds = candidate.shape[1], candidate.shape[0]

    def covariance(x, y):
        def products(u, v, axis, times):
            u, v = u.mean(axis=axis), v.mean(axis=axis)
            return times * ((u - u.mean()) * (v - v.mean())).sum() / (len(u) - 1)

        def rest(u):
            return u - u.mean(axis=1, keepdims=True) - u.mean(axis=0) + u.mean()

        residual = (rest(x) * rest(y)).sum() / (seeds - 1) / (rows - 1)
        return (products(x, y, 1, rows) + products(x, y, 0, seeds) - residual) / (seeds * rows)

    for limit, side in zip(found.limits(0.95), (0, 1), strict=True):
        t2 = student.ppf(0.975, found.contrast(limit).df) ** 2
        roots = np.roots(
            [
                b**2 - t2 * covariance(reference, reference),
                -2 * (a * b - t2 * covariance(candidate, reference)),
                a**2 - t2 * covariance(candidate, candidate),
            ]
        )
        assert sorted(roots)[side] == pytest.approx(limit, abs=1e-8)


def test_golden_values_of_a_small_layout():
    base = np.array([0.0, 1, 0, 0, 1, 0])
    candidate = np.array([[1.0, 1, 1, 0, 1, 0], [1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0]]) - base
    reference = np.array([[1.0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]]) - base
    found = gains(candidate, reference)
    assert found.means.mean_K == pytest.approx([8 / 18, 10 / 18]) and found.share == pytest.approx(0.8)
    # 18 of 18 cells by hand: sums of seeds 2, 3, 3 and 3, 3, 4; of rows 3, 0, 2, 2, 0, 1 and 3, 0, 3, 3, -1, 2.
    assert found.means.ms_replicate_KK == pytest.approx(np.array([[1, 0.5], [0.5, 1]]) / 18)
    assert found.means.ms_example_KK == pytest.approx(np.array([[22 / 45, 29 / 45], [29 / 45, 46 / 45]]))


def test_a_gain_that_is_not_shown_has_no_share():
    rng = np.random.default_rng(1)
    assert gains(*scored(rng, candidate=0.3, reference=0.0)).limits(0.95) is None
    assert gains(*scored(rng, candidate=-0.3, reference=-0.3)).limits(0.95) is None
    nearly = gains(*scored(rng, candidate=0.1, reference=0.1))
    level = 1 - nearly.reference_gain.p_not_zero()
    assert nearly.limits(level - 1e-6) is not None and nearly.limits(level + 1e-6) is None


@pytest.mark.parametrize("seed_sd", [0.0, 0.03])
def test_the_true_share_is_covered(seed_sd):
    """Where a share is told; and a 5 % test of the true one is false no more often than it says, told or not."""
    rng, studies, missed, false = np.random.default_rng(7), 1000, 0, 0
    for _ in range(studies):
        found = gains(*scored(rng, rows=100, seed_sd=seed_sd))
        limits = found.limits(0.95)
        missed += limits is not None and not limits[0] <= 0.9 <= limits[1]
        false += found.contrast(0.9).p_not_below(0.0) <= 0.05
    assert max(missed, false) <= binom.ppf(0.95, studies, 0.05)


@pytest.mark.parametrize(
    ("candidate", "reference", "said"),
    [
        (np.ones((2, 5)), np.ones((2, 4)), "need the same 2 or more seeds and examples"),
        (np.ones((1, 5)), np.ones((1, 5)), "need the same 2 or more seeds and examples"),
        (np.ones((2, 5)), np.full((2, 5), np.nan), "some values are not finite"),
    ],
)
def test_gains_that_cannot_be_paired_are_refused(candidate, reference, said):
    with pytest.raises(EvidenceError, match=said):
        gains(candidate, reference)
