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
from tunetrial.analysis.verdict import by_margin
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
    assert round(by_margin(estimate, 0.5).p_equivalent(), 7) == 0.9548544
    assert round(by_margin(estimate, 5).p_equivalent(), 7) == 0.1713899
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
        lambda: by_margin(estimate, 0).p_equivalent(),
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


SCIENCE_LEVELS = [(1, 0.0280), (2, 0.0134), (3, 0.0088), (6, 0.0044)]


@pytest.mark.parametrize(("comparisons", "level"), SCIENCE_LEVELS)
def test_levels_of_two_looks_are_the_stated_ones(comparisons, level):
    assert stats.per_look(0.05 / comparisons, (5, 10), sides=2) == pytest.approx(level, rel=0.025)
    assert round(stats.per_look(0.05, (5, 10), sides=1), 4) == 0.0291
    assert round(stats.per_look(0.05, (4, 6, 8, 10), sides=2), 4) == 0.0181
    assert stats.per_look(0.05, (5,), sides=2) == 0.05


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("looks", [(5, 10), (3, 4, 9)])
def test_levels_hold_where_whole_studies_are_drawn(looks, sides):
    data = np.random.default_rng(5).normal(size=(100_000, looks[-1]))
    alternative = {1: "greater", 2: "two-sided"}[sides]
    p = np.min([scipy_stats.ttest_1samp(data[:, :n], 0, axis=1, alternative=alternative).pvalue for n in looks], axis=0)
    level = stats.per_look(0.05, looks, sides=sides)
    assert (p <= level).mean() == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / len(p)))
    # The mutations: every look at the full level, and Bonferroni over the looks.
    for wrong in (0.05, 0.05 / len(looks)):
        assert abs((p <= wrong).mean() - 0.05) > 4 * math.sqrt(0.05 * 0.95 / len(p))
    assert stats.over_looks(level, looks, sides=sides) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("looks", [(), (1, 5), (5, 5), (10, 5)])
def test_looks_that_do_not_rise_are_refused(looks):
    with pytest.raises(EvidenceError, match="looks: must rise"):
        stats.per_look(0.05, looks, sides=2)


def test_planned_mean_squares_are_those_that_larger_studies_have():
    parts = stats.components(GRID)
    same = parts.at(3, 4)
    assert (same.se, same.df) == pytest.approx((parts.se, parts.df))
    planned = parts.at(12, 40)
    variance = parts.var_replicate / 12 + parts.var_example / 40 + parts.ms_residual / 480
    assert planned.se == pytest.approx(math.sqrt(variance))
    flat = stats.Components(replicates=3, examples=4, ms_replicate=0.1, ms_example=0.1, ms_residual=0.2)
    assert flat.at(6, 8).se == pytest.approx(math.sqrt(0.2 / 48))


def test_components_equal_those_of_a_mixed_model_on_balanced_data():
    from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec

    seeds, examples = np.repeat(np.eye(3), 4, axis=0), np.tile(np.eye(4), (3, 1))
    spec = VCSpec(["seed", "example"], [[["s"] * 3], [["e"] * 4]], [[seeds], [examples]])
    model = MixedLM(GRID.ravel(), np.ones((12, 1)), groups=np.zeros(12), exog_vc=spec)
    fit = model.fit(reml=True)
    parts = stats.components(GRID)
    assert dict(zip(("seed", "example"), fit.vcomp, strict=True)) == pytest.approx(
        {"seed": parts.var_replicate, "example": parts.var_example}, rel=1e-3
    )
    assert fit.scale == pytest.approx(parts.ms_residual, rel=1e-3)
    assert float(fit.bse_fe[0]) == pytest.approx(parts.se, rel=1e-3)


@pytest.mark.parametrize(("n", "groups"), [(33.36713, 1), (63.76561, 2)])
def test_detectable_effect_gives_the_golden_sample_sizes(n, groups):
    assert round(stats.detectable_effect(math.sqrt(groups / n), groups * (n - 1)), 6) == 0.5


def test_holm_rejects_three_of_the_fifteen_golden_p_values():
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.324,
        0.4262,
        0.5719,
        0.6528,
        0.759,
        1,
    ]
    assert sum(q <= 0.05 for q in stats.holm(p)) == 3


@given(st.integers(0, 10_000), st.floats(0.05, 3))
def test_equivalence_equals_another_implementation_on_random_input(seed, margin):
    from statsmodels.stats.weightstats import ttost_paired

    a, b = np.random.default_rng(seed).normal(size=(2, 7))
    p, lower, upper = ttost_paired(a, b, -margin, margin)
    estimate = stats.paired(a - b)
    assert (by_margin(estimate, margin).p_equivalent(), estimate.p_not_below(-margin)) == pytest.approx(
        (p, lower[1]), abs=1e-12
    )
    if abs(lower[1] - upper[1]) > 1e-9:
        assert by_margin(estimate, margin).p_equivalent() != pytest.approx(min(lower[1], upper[1]), abs=1e-12)


def test_a_mutation_of_each_formula_misses_its_golden_value():
    parts, r, e = stats.components(GRID), 3, 4
    a, b, c = parts.ms_replicate, parts.ms_example, parts.ms_residual
    assert [round(((x) / (r * e)) ** 0.5, 6) == 0.527046 for x in (a + b - c, a + b, a, a - c, a + b + c)] == [
        True, False, False, False, False,
    ]  # fmt: skip
    dfs = [
        (a + b - c) ** 2 / (a**2 / x + b**2 / y + c**2 / (x * y)) for x, y in ((r - 1, e - 1), (r, e), (e - 1, r - 1))
    ]
    assert [round(df, 5) == 3.44168 for df in dfs] == [True, False, False]
    biased = GRID.mean(axis=1).var() * e, GRID.mean(axis=0).var() * r
    assert round(biased[0], 5) != 2.33333 and round(biased[1], 5) != 1.22222
    p = np.array([0.01, 0.02, 0.03, 0.04, 0.05])
    assert (p * np.arange(5, 0, -1)).tolist() != pytest.approx(stats.holm(p))
    sleep = SLEEP[0] - SLEEP[1]
    assert round(sleep.mean() / (sleep.std() / 10**0.5), 5) != -4.06213


def test_unequal_clusters_cover_at_least_their_level():
    rng, covered, sizes = np.random.default_rng(3), 0, np.repeat(np.arange(40), 1 + np.arange(40) % 7)
    for _ in range(1000):
        diff = simulate(rng, seeds=5, examples=len(sizes), seed_sd=0.02, example_sd=0.1)
        diff = diff + rng.normal(0, 0.3, 40)[sizes]
        low, high = stats.crossed(stats.cluster_values(diff, [str(c) for c in sizes])).interval(0.95)
        covered += low <= 0 <= high
    assert covered / 1000 >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 1000)


def test_no_spread_of_means_is_no_certainty():
    with pytest.raises(EvidenceError, match="no spread to judge by"):
        stats.crossed(np.array([[1.0, 0.0], [0.0, 1.0]]))
    with pytest.raises(EvidenceError, match="all equal"):
        stats.crossed(np.full((3, 4), 0.3) + 1e-17)
