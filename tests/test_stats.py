"""Golden values at their printed digits, independent counts on random input, and coverage by simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.metrics import f1_score

from tunetrial.analysis import stats
from tunetrial.core.errors import EvidenceError

SLEEP = (
    np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]),
    np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]),
)
GRID = np.array([[1, 0, 2, 1], [0, 0, 1, 1], [2, 1, 2, 3]], dtype=float)


def test_crossed_gives_the_golden_values():
    parts, estimate = stats.components(GRID), stats.crossed(GRID)
    assert round(estimate.effect, 5) == 1.16667
    assert [round(v, 5) for v in (parts.ms_replicate, parts.ms_example, parts.ms_residual)] == [
        2.33333,
        1.22222,
        0.22222,
    ]
    assert [round(v, 5) for v in (parts.var_replicate, parts.var_example)] == [0.52778, 0.33333]
    assert round(estimate.se, 6) == 0.527046 and round(estimate.df, 5) == 3.44168


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 9))
def test_components_equal_a_count_by_loops(seed, replicates, examples):
    diff = np.random.default_rng(seed).normal(size=(replicates, examples)).round(2)
    mean = sum(diff.flat) / diff.size
    rows = [sum(row) / examples for row in diff]
    columns = [sum(column) / replicates for column in diff.T]
    residual = sum((diff[r, e] - rows[r] - columns[e] + mean) ** 2 for r, e in np.ndindex(*diff.shape))
    parts = stats.components(diff)
    assert parts.ms_replicate == pytest.approx(examples * sum((x - mean) ** 2 for x in rows) / (replicates - 1))
    assert parts.ms_example == pytest.approx(replicates * sum((x - mean) ** 2 for x in columns) / (examples - 1))
    assert parts.ms_residual == pytest.approx(residual / (replicates - 1) / (examples - 1), abs=1e-12)


def test_paired_gives_the_golden_values_of_the_sleep_data():
    estimate = stats.paired(SLEEP[0] - SLEEP[1])
    assert round(estimate.effect / estimate.se, 5) == -4.06213
    assert round(estimate.p_not_zero(), 8) == 0.00283289
    assert [round(x, 5) for x in estimate.interval(0.95)] == [-2.45989, -0.70011]


def test_equivalence_gives_the_golden_values():
    estimate = stats.paired(np.array([4, 7, 8, 6, 3, 2.0]) - np.array([6, 8, 7, 10, 11, 9.0]))
    assert round(estimate.p_equivalent(0.5), 7) == 0.9548544
    assert round(estimate.p_equivalent(5), 7) == 0.1713899
    assert round(estimate.p_not_below(-5), 7) == 0.1713899
    assert round((estimate.effect + 5) / estimate.se, 6) == 1.047645


def test_holm_gives_the_golden_values_and_keeps_the_order():
    assert stats.holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert stats.holm([0.04, 0.01]) == pytest.approx([0.04, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_as_the_step_down_procedure_does(p):
    for alpha in (0.01, 0.05, 0.2):
        rejected, left = set(), sorted(range(len(p)), key=lambda i: p[i])
        while left and p[left[0]] * len(left) <= alpha:
            rejected.add(left.pop(0))
        assert {i for i, q in enumerate(stats.holm(p)) if q <= alpha} == rejected


@pytest.mark.parametrize(("n", "golden"), [(3, 3.26), (4, 2.13), (5, 1.68), (8, 1.16), (10, 1.00), (20, 0.66)])
def test_detectable_effect_gives_the_golden_values(n, golden):
    assert round(stats.detectable_effect(1 / math.sqrt(n), n - 1), 2) == golden


def test_detectable_effect_is_found_as_often_as_promised():
    rng, n = np.random.default_rng(0), 6
    effect = stats.detectable_effect(1 / math.sqrt(n), n - 1, power=0.8)
    found = scipy_stats.ttest_1samp(rng.normal(effect, 1, size=(20_000, n)), 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.01)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(3, 20))
def test_macro_f1_and_its_pseudo_values_equal_a_count_that_leaves_one_out(seed, classes, examples):
    rng = np.random.default_rng(seed)
    predicted, target = rng.integers(classes, size=(2, examples))
    count = lambda p, t: f1_score(t, p, labels=range(classes), average="macro", zero_division=0)  # noqa: E731
    assert stats.macro_f1(predicted, target, classes) == pytest.approx(count(predicted, target))
    whole = count(predicted, target)
    by_hand = [
        examples * whole - (examples - 1) * count(np.delete(predicted, e), np.delete(target, e))
        for e in range(examples)
    ]
    assert stats.macro_f1_pseudo_values(predicted, target, classes) == pytest.approx(by_hand)


def test_cluster_values_are_means_of_equal_clusters_and_keep_the_mean_of_unequal_ones():
    diff = np.array([[1.0, 3.0, 5.0, 7.0], [0.0, 0.0, 6.0, 2.0]])
    assert stats.cluster_values(diff, ["b", "b", "a", "a"]).tolist() == [[6.0, 2.0], [4.0, 0.0]]
    unequal = stats.cluster_values(diff, ["a", "b", "b", "b"])
    assert unequal.mean(axis=1) == pytest.approx(diff.mean(axis=1))
    assert unequal[0] == pytest.approx([3 + (1 - 3) / 2, 3 + (0 + 2 + 4) / 2])


def simulate(rng, *, seeds, examples, seed_sd, example_sd):
    """Differences of a model with no true difference."""
    return (
        rng.normal(0, seed_sd, (seeds, 1))
        + rng.normal(0, example_sd, (1, examples))
        + rng.normal(0, 0.5, (seeds, examples))
    )


@pytest.mark.parametrize(
    ("seeds", "seed_sd", "example_sd"), [(5, 0.02, 0.2), (5, 0.0, 0.4), (10, 0.05, 0.0), (3, 0.05, 0.3)]
)
def test_crossed_interval_covers_at_least_its_level(seeds, seed_sd, example_sd):
    rng, covered = np.random.default_rng(1), 0
    for _ in range(2000):
        low, high = stats.crossed(
            simulate(rng, seeds=seeds, examples=200, seed_sd=seed_sd, example_sd=example_sd)
        ).interval(0.95)
        covered += low <= 0 <= high
    assert covered / 2000 >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 2000)


def test_an_interval_over_examples_alone_would_not_cover():
    """The mistake that `crossed` exists to prevent: it must show under the same simulation."""
    rng, covered = np.random.default_rng(1), 0
    for _ in range(500):
        mean = simulate(rng, seeds=5, examples=200, seed_sd=0.15, example_sd=0.2).mean(axis=0)
        low, high = scipy_stats.ttest_1samp(mean, 0).confidence_interval(0.95)
        covered += low <= 0 <= high
    assert covered / 500 < 0.8


@pytest.mark.parametrize(
    "diff", [np.ones((1, 5)), np.ones((5, 1)), np.ones(5), np.array([[1.0, np.nan], [1.0, 2.0]]), np.zeros((0, 0))]
)
def test_too_little_or_missing_evidence_is_refused(diff):
    with pytest.raises(EvidenceError):
        stats.crossed(diff)


def test_bad_levels_margins_and_clusters_are_refused():
    estimate = stats.crossed(GRID)
    for call in (
        lambda: estimate.interval(95),
        lambda: estimate.p_equivalent(0),
        lambda: stats.cluster_values(GRID, ["a"]),
        lambda: stats.detectable_effect(1.0, 4.0, power=80),
    ):
        with pytest.raises(EvidenceError):
            call()


def test_equal_differences_throughout_are_no_certainty():
    with pytest.raises(EvidenceError, match="all equal 0.5"):
        stats.crossed(np.full((3, 4), 0.5))
    with pytest.raises(EvidenceError, match="not all equal"):
        stats.paired(np.zeros(5))


def test_sign_flip_golden_value_by_enumeration():
    diff = SLEEP[0] - SLEEP[1]
    flips = [abs(np.mean(diff * signs)) for signs in itertools.product((1, -1), repeat=len(diff))]
    assert np.mean([flip >= abs(diff.mean()) - 1e-12 for flip in flips]) == 0.00390625
