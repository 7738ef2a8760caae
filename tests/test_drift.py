"""Drift over runs: intervals hold their coverage, layers are no sample, and arms are compared at equal score."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, linregress

from tunetrial.analysis.drift import (
    adjusted,
    at_score,
    by_layer_difference,
    common_score,
    curve,
    difference,
    matched,
    overall,
)
from tunetrial.core.errors import EvidenceError

STUDIES = 200


def covered(hits: int) -> bool:
    """Whether so many of 200 intervals at 95 % may hold the truth by chance, to 1 in 10,000 on each side."""
    return binom.ppf(1e-4, STUDIES, 0.95) <= hits <= binom.ppf(1 - 1e-4, STUDIES, 0.95)


def runs(rng, *, seeds=5, layers=6, effect=0.0):
    """Drift by seed and layer: a run's own level, on which its layers agree, and a little of each layer."""
    level_L = np.linspace(0.1, 0.4, layers)
    return effect + level_L + rng.normal(0, 0.05, (seeds, 1)) + rng.normal(0, 0.01, (seeds, layers))


def test_intervals_of_curve_and_of_the_mean_over_layers_hold_the_truth():
    rng = np.random.default_rng(0)
    of_layer = of_mean = of_difference = 0
    for _ in range(STUDIES):
        one, other = runs(rng, effect=0.1), runs(rng)
        (layer,) = curve(one[:, 2:3])
        of_layer += layer.low <= 0.32 <= layer.high
        low, high = overall(one).interval(0.95)
        of_mean += low <= 0.35 <= high
        low, high = difference(one, other).interval(0.95)
        of_difference += low <= 0.1 <= high
    assert covered(of_layer) and covered(of_mean) and covered(of_difference)


def test_layers_add_no_degrees_of_freedom():
    rng = np.random.default_rng(1)
    few, many = runs(rng, layers=2), runs(rng, layers=48)
    assert overall(few).df == overall(many).df == 4
    assert overall(many).se > 0.01


def test_a_layer_without_spread_has_a_mean_and_no_interval():
    drift_RL = np.array([[0.0, 0.1], [0.0, 0.2], [0.0, 0.4]])
    first, second = curve(drift_RL)
    assert (first.mean, first.low, first.high) == (0, None, None)
    assert second.low < second.mean < second.high
    untested, tested = by_layer_difference(drift_RL, np.zeros((3, 2)))
    assert (untested.p, untested.q) == (None, None)
    assert tested.p == tested.q
    assert all(layer.q is None for layer in by_layer_difference(drift_RL, drift_RL))


def test_layers_are_adjusted_as_benjamini_and_hochberg_do():
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(2)
    found = by_layer_difference(runs(rng, layers=15) + np.linspace(0, 0.2, 15), runs(rng, layers=15))
    expected = multipletests([layer.p for layer in found], method="fdr_bh")[1]
    assert [layer.q for layer in found] == pytest.approx(expected)


def test_without_a_difference_layers_are_declared_in_five_percent_of_studies_at_most():
    rng = np.random.default_rng(3)
    alarms = sum(min(layer.q for layer in by_layer_difference(runs(rng), runs(rng))) <= 0.05 for _ in range(60))
    assert alarms <= binom.ppf(1 - 1e-4, 60, 0.05)


def test_drift_at_a_score_is_read_where_the_run_first_passes_it():
    score, drift = np.array([0.2, 0.6, 0.5, 0.8]), np.array([0.0, 0.4, 0.5, 0.7])
    assert at_score(score, drift, 0.4) == pytest.approx(0.2)
    assert at_score(score, drift, 0.7) == pytest.approx(0.5 + 0.2 * 2 / 3)
    assert at_score(score, drift, 0.2) == 0
    assert at_score(score, drift, 0.1) is None
    assert at_score(score, drift, 0.9) is None
    assert common_score([(score, drift), (score - 0.1, drift)]) == pytest.approx(0.7)


@given(st.floats(0.05, 0.95), st.floats(0.1, 10))
def test_drift_at_a_score_is_the_line_where_courses_are_lines(score, slope):
    course = np.linspace(0, 1, 7)
    assert at_score(course, slope * course, score) == pytest.approx(slope * score)


def course(rng, *, extra, learnt, checkpoints=6):
    """A run: its drift grows with what it has learnt, and by `extra` of the arm; it ends at a score of its own."""
    score_C = np.linspace(0, learnt + abs(rng.normal(0, 0.05)), checkpoints)
    return score_C, (1 + rng.normal(0, 0.1)) * score_C + extra * score_C


def test_at_equal_score_an_arm_that_only_learnt_more_has_not_drifted_more():
    rng = np.random.default_rng(4)
    held = raw = 0
    for _ in range(STUDIES):
        one = [course(rng, extra=0.0, learnt=0.9) for _ in range(5)]
        other = [course(rng, extra=0.0, learnt=0.6) for _ in range(5)]
        low, high = matched(one, other, score=0.5).interval(0.95)
        held += low <= 0 <= high
        ends = np.array([[c[1][-1] for c in arm] for arm in (one, other)])
        low, high = overall((ends[0] - ends[1])[:, None]).interval(0.95)
        raw += low <= 0 <= high
    assert covered(held)
    assert raw < 0.5 * STUDIES


def test_an_arm_that_drifts_more_at_equal_score_is_found():
    rng = np.random.default_rng(5)
    one = [course(rng, extra=0.5, learnt=0.6) for _ in range(8)]
    other = [course(rng, extra=0.0, learnt=0.9) for _ in range(8)]
    assert matched(one, other, score=0.5).effect == pytest.approx(0.25, abs=0.1)


def test_adjusted_is_the_constant_of_the_line_and_holds_its_coverage():
    rng = np.random.default_rng(6)
    held = tried = 0
    while tried < STUDIES:
        score_R = rng.normal(0.02, 0.03, 6)
        drift_R = 0.1 + 2 * score_R + rng.normal(0, 0.05, 6)
        if not score_R.min() <= 0 <= score_R.max():
            continue
        found = adjusted(drift_R, score_R)
        low, high = found.interval(0.95)
        held, tried = held + (low <= 0.1 <= high), tried + 1
    assert covered(held)
    line = linregress(score_R, drift_R)
    assert (found.effect, found.se, found.df) == pytest.approx((line.intercept, line.intercept_stderr, 4))


def test_what_cannot_be_matched_is_refused():
    apart = [(np.array([0.0, 0.4]), np.array([0.0, 0.1]))] * 2, [(np.array([0.0, 0.9]), np.array([0.0, 0.1]))] * 2
    with pytest.raises(EvidenceError, match="2 of 4 runs do not pass the score 0.5"):
        matched(*apart, score=0.5)
    with pytest.raises(EvidenceError, match="same seeds"):
        matched(apart[0], apart[1][:1], score=0.3)
    with pytest.raises(EvidenceError, match="do not overlap"):
        adjusted(np.arange(5.0), np.arange(1.0, 6.0))
    with pytest.raises(EvidenceError, match="4 or more"):
        adjusted(np.arange(3.0), np.arange(-1.0, 2.0))
    with pytest.raises(EvidenceError, match="2 or more seeds"):
        curve(np.ones((1, 4)))
    with pytest.raises(EvidenceError, match="1 values that are not finite"):
        curve(np.array([[1, np.nan], [1, 2]]))
    with pytest.raises(EvidenceError, match="not paired"):
        difference(np.ones((3, 4)), np.ones((2, 4)))
    with pytest.raises(EvidenceError, match="all equal"):
        overall(np.ones((3, 4)))
    with pytest.raises(EvidenceError, match="not finite"):
        at_score(np.array([np.nan]), np.array([1.0]), 0.5)
