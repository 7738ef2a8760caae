"""The frontier against brute force, forgetting at equal learning by hand, coverage, and correlations over runs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from scipy.stats import binom

from tunetrial.analysis.association import associate
from tunetrial.analysis.frontier import Points, common_reach, equal_learning, frontiers_apart, pareto
from tunetrial.core.errors import EvidenceError


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=20))
def test_the_frontier_is_what_no_other_point_beats(points):
    learning, forgetting = np.array(points, dtype=float).T
    on = pareto(learning, forgetting)
    for p in range(len(points)):
        beaten = any(
            learning[q] >= learning[p]
            and forgetting[q] <= forgetting[p]
            and (learning[q] > learning[p] or forgetting[q] < forgetting[p] or q < p)
            for q in range(len(points))
        )
        assert on[p] == (not beaten)


def test_forgetting_at_equal_learning_by_hand():
    """Corners (0, 0), (0.4, 0.1), (0.8, 0.5); (0.3, 0.3) is beaten. The second run never learnt beyond 0.6."""
    points = Points(
        np.array([[0.0, 0.3, 0.4, 0.8], [0.0, 0.2, 0.5, 0.6]]), np.array([[0.0, 0.3, 0.1, 0.5], [0.0, 0.1, 0.1, 0.3]])
    )
    assert points.at(0.6) == pytest.approx([0.3, 0.3])
    assert points.at(0.2) == pytest.approx([0.05, 0.04])
    assert points.at(-1) == pytest.approx([0, 0])  # what learnt nothing learnt as much as that
    # From 0.2 to 0.6: trapezoids 0.05..0.1 and 0.1..0.3; and 0.04..0.1 over 0.3, 0.1..0.3 over 0.1.
    assert points.mean_between(0.2, 0.6) == pytest.approx([(0.015 + 0.04) / 0.4, (0.021 + 0.02) / 0.4])
    assert common_reach([points]) == 0.6
    with pytest.raises(EvidenceError, match="0.7 was not reached"):
        points.at(0.7)
    with pytest.raises(EvidenceError, match="empty"):
        points.mean_between(0.6, 0.6)


def test_points_that_cannot_be_a_frontier_are_refused():
    for learning, forgetting, fault in (
        (np.zeros((2, 3)), np.zeros((2, 2)), "every run and point"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "every run and point"),
        (np.zeros((2, 3)), np.full((2, 3), np.nan), "not finite"),
    ):
        with pytest.raises(EvidenceError, match=fault):
            Points(learning, forgetting)
    two, three = (Points(np.ones((runs, 2)), np.ones((runs, 2))) for runs in (2, 3))
    with pytest.raises(EvidenceError, match="not paired"):
        equal_learning(two, three, learning=0.5)


def method(rng, *, cost, pace, seeds=5, noise=0.003):
    """A curve from each seed: learning saturates with steps, forgetting grows with learning times a cost."""
    steps = np.linspace(0, 1, 25)
    reach_R = rng.normal(0.8, 0.02, (seeds, 1))
    learning_RP = reach_R * (1 - np.exp(-4 * pace * steps))
    forgetting_RP = (cost + rng.normal(0, 0.05, (seeds, 1))) * learning_RP**2
    return Points(learning_RP, forgetting_RP + rng.normal(0, noise, forgetting_RP.shape) * (steps > 0))


def test_methods_on_one_frontier_are_level_though_one_goes_further_on_it():
    """Setting by setting the slower method "forgets less"; at equal learning it does not."""
    rng = np.random.default_rng(1)
    fast, slow = method(rng, cost=0.5, pace=1.5), method(rng, cost=0.5, pace=0.6)
    assert (slow.forgetting_RP[:, -1] < fast.forgetting_RP[:, -1]).all()
    low, high = equal_learning(slow, fast, learning=0.6).interval(0.95)
    assert low < 0 < high


@pytest.mark.parametrize("whole", [False, True])
def test_the_intervals_cover_the_true_difference(whole):
    """Costs 0.5 and 0.3 of learning squared: 0.2 * 0.36 apart at 0.6, and 0.2 * mean of x^2 from 0.2 to 0.6.

    Nominal 95 %; straight lines between points of a curve, and minima of noise, cost a little (0.92 is promised).
    """
    rng, count, hit = np.random.default_rng(9), 250, 0
    truth = 0.2 * (0.6**3 - 0.2**3) / 3 / 0.4 if whole else 0.2 * 0.6**2
    for _ in range(count):
        worse, better = method(rng, cost=0.5, pace=1.5), method(rng, cost=0.3, pace=0.9)
        if whole:
            low, high = frontiers_apart(worse, better, low=0.2, high=0.6).interval(0.95)
        else:
            low, high = equal_learning(worse, better, learning=0.6).interval(0.95)
        hit += low <= truth <= high
    assert binom.ppf(0.001, count, 0.93) <= hit


Y = [21, 4, 9, 12, 35, 18, 10, 22, 24, 1, 6, 8, 13, 16, 19]
X = [67, 28, 30, 28, 52, 40, 25, 37, 44, 10, 14, 20, 28, 40, 51]


def test_correlations_give_the_golden_values():
    """Of ranks: the example of statpsych's ci.spear, by the authors of the formula. Of values: scipy's Fisher z."""
    found = associate(Y, X, ["lora"] * 15)
    assert round(found.spearman.value, 7) == 0.8699639
    assert [round(end, 7) for end in found.spearman.interval] == [0.5840951, 0.9638297]
    theirs = scipy_stats.pearsonr(X, Y)
    assert found.pearson.value == pytest.approx(theirs.statistic)
    assert found.pearson.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert found.pearson_within == found.pearson and found.spearman_within == found.spearman


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.1, 5), st.floats(-3, 3))
def test_correlations_do_not_depend_on_units(seed, factor, shift):
    x, y = np.random.default_rng(seed).normal(size=(2, 12))
    names = ["a", "b"] * 6
    found, scaled = associate(x, y, names), associate(-factor * x + shift, y, names)
    for kind in ("pearson", "spearman", "pearson_within", "spearman_within"):
        own, other = getattr(found, kind), getattr(scaled, kind)
        assert other.value == pytest.approx(-own.value, abs=1e-9)
        assert other.interval == pytest.approx((-own.interval[1], -own.interval[0]), abs=1e-9)
    assert associate(np.exp(x), y, names).spearman.value == pytest.approx(found.spearman.value)


def test_a_method_that_differs_in_both_is_no_explanation():
    """Full drifts and forgets more; within each method drift says nothing of forgetting."""
    rng = np.random.default_rng(4)
    full, names = np.repeat([1.0, 0.0], 10), ["full"] * 10 + ["lora"] * 10
    found = associate(5 * full + rng.normal(size=20), 5 * full + rng.normal(size=20), names)
    assert found.pearson.interval[0] > 0.5 and found.spearman.interval[0] > 0.3
    low, high = found.pearson_within.interval
    assert low < 0 < high
    assert found.methods == ("full", "lora") and found.pearson.runs == 20


@pytest.mark.parametrize(("each", "truth"), [(6, 0.5), (10, 0.8)])
def test_the_intervals_of_correlations_cover(each, truth):
    """Normal values of a known correlation: of one method, and within two whose means are far apart."""
    rng, count = np.random.default_rng(12), 300
    of_ranks = 6 / np.pi * np.arcsin(truth / 2)
    hits = dict.fromkeys(("pearson", "spearman", "within"), 0)
    for _ in range(count):
        x, z = rng.normal(size=(2, 2 * each))
        y = truth * x + (1 - truth**2) ** 0.5 * z
        one = associate(x, y, ["lora"] * (2 * each))
        apart = np.repeat([0.0, 6.0], each)
        two = associate(x + apart, y + apart, np.repeat(["full", "lora"], each))
        for name, own, true in (
            ("pearson", one.pearson, truth),
            ("spearman", one.spearman, of_ranks),
            ("within", two.pearson_within, truth),
        ):
            hits[name] += own.interval is not None and own.interval[0] <= true <= own.interval[1]
    assert all(binom.ppf(0.001, count, 0.95) <= hit for hit in hits.values()), hits


def test_correlations_that_cannot_be_judged_are_refused_or_have_no_interval():
    exact = associate([1, 2, 3, 4, 5.0], [2, 4, 6, 8, 10.5], ["a"] * 5)
    assert exact.spearman.value == 1 and exact.spearman.interval is None
    assert exact.pearson.interval is not None
    for one, other, names, fault in (
        ([1, 2, 3], [1, 2, 3], ["a"] * 3, "4 or more"),
        ([1, 2, 3, 4], [1, 2, 3, 5], ["a", "a", "b", "b"], "5 or more"),
        ([1, 2, 3, 4], [1, 2, 3], ["a"] * 4, "every run"),
        ([1, 2, 3, np.nan], [1, 2, 3, 4], ["a"] * 4, "not finite"),
        ([1, 1, 1, 1], [1, 2, 3, 4], ["a"] * 4, "is the same"),
        ([1, 1, 1, 2, 2, 2], [1, 2, 3, 4, 5, 6], ["a"] * 3 + ["b"] * 3, "of a method"),
    ):
        with pytest.raises(EvidenceError, match=fault):
            associate(one, other, names)
