"""Words from two fields, levels for looks and family, what would settle it, and the error rate of the whole."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunetrial.analysis import stats, verdict
from tunetrial.analysis.stats import Components, Estimate


def judge(estimates, margin, *, looks):
    asked = [e and verdict.by_margin(e, margin) for e in estimates]
    return verdict.judge(asked, alpha=0.05, looks=[looks] * len(asked))


def judge_one(effect, se, margin=1.0, df=20.0, family=1, looks=(5, 10), below=0.0, above=0.0):
    found = [Estimate(effect=effect, se=se, df=df, below=below, above=above), *[None] * (family - 1)]
    return judge(found, margin, looks=looks)[0]


@pytest.mark.parametrize(
    ("effect", "se", "words", "direction", "size"),
    [
        (3.0, 0.3, "BETTER", "better", "beyond"),
        (1.2, 0.3, "BETTER", "better", "unresolved"),
        (0.5, 0.1, "SAME (within your margin)", "better", "within"),
        (0.0, 0.1, "SAME (within your margin)", "unresolved", "within"),
        (-0.5, 0.1, "WORSE, negligibly", "worse", "within"),
        (-1.2, 0.3, "WORSE", "worse", "unresolved"),
        (-3.0, 0.3, "WORSE", "worse", "beyond"),
        (0.3, 0.4, "NOT WORSE", "unresolved", "unresolved"),
        (-0.3, 0.5, "CAN'T TELL YET", "unresolved", "unresolved"),
    ],
)
def test_each_cell_of_the_table_has_its_words(effect, se, words, direction, size):
    found = judge_one(effect, se)
    assert (found.words, found.direction, found.size) == (words, direction, size)


@given(st.floats(-4, 4), st.floats(0.05, 2), st.floats(2, 60), st.integers(1, 6), st.floats(0, 2), st.floats(0, 2))
def test_words_agree_with_the_interval_that_is_shown(effect, se, df, family, below, above):
    found = judge_one(effect, se, df=df, family=family, below=below, above=above)
    assert (found.direction == "better") == (found.low > 0) and (found.direction == "worse") == (found.high < 0)
    assert (found.size == "beyond") == (found.low > 1 or found.high < -1)
    if found.words in verdict.SAFE - {"BETTER"}:
        assert found.bound > -1
    if found.words == "CAN'T TELL YET":
        assert found.bound <= -1 and found.low <= 0 <= found.high
    assert found.low < found.bound < effect


@pytest.mark.parametrize(("family", "level"), [(1, 0.9720), (2, 0.9866), (3, 0.9912), (6, 0.9956)])
def test_the_level_shown_is_that_of_looks_and_family(family, level):
    assert judge_one(0.0, 1.0, family=family).level == pytest.approx(level, abs=4e-4)
    assert judge_one(0.0, 1.0, family=family, looks=(5,)).level == pytest.approx(1 - 0.05 / family)


def test_a_family_is_judged_step_by_step_as_holm_does():
    p_to_t = [(0.010, 2), (0.018, 1), (0.30, 0)]
    estimates = [Estimate(effect=-stats.t_critical(1 - p / 2, 30.0), se=1.0, df=30.0) for p, _ in p_to_t]
    found = judge(estimates, 9.0, looks=(5,))
    assert [v.direction for v in found] == ["better", "better", "unresolved"]
    assert [round(1 - v.level, 6) for v in found] == [round(0.05 / d, 6) for d in (3, 2, 1)]
    bonferroni = [p <= 0.05 / 3 for p, _ in p_to_t]
    assert bonferroni != [v.direction == "better" for v in found]


@given(st.floats(-4, 4), st.floats(0.05, 2), st.floats(0, 2), st.floats(0, 2))
def test_a_claim_is_made_if_it_would_be_made_of_each_effect_that_is_allowed(effect, se, below, above):
    found = judge_one(effect, se, below=below, above=above)
    ends = [judge_one(effect - below, se), judge_one(effect + above, se)]
    assert (found.low, found.high, found.bound) == pytest.approx((ends[0].low, ends[1].high, ends[0].bound))
    for direction in ("better", "worse"):
        assert (found.direction == direction) == all(end.direction == direction for end in ends)
    if found.direction != "worse":  # whose size has a second way to be within
        assert (found.size == "within") == all(end.size == "within" for end in ends)


def test_planned_comparisons_without_an_estimate_still_count():
    alone, among = judge_one(2.4, 1.0, df=100), judge_one(2.4, 1.0, df=100, family=4)
    assert alone.direction == "better" and among.direction == "unresolved"


# What would settle it.


def parts(seed_sd, example_sd, rest_sd, replicates=5, examples=200):
    rest = rest_sd**2
    return Components(
        replicates=replicates,
        examples=examples,
        ms_replicate=rest + examples * seed_sd**2,
        ms_example=rest + replicates * example_sd**2,
        ms_residual=rest,
    )


def ask(found, effect, margin, **rows):
    estimate = Estimate(effect=effect, se=found.se, df=found.df)
    judged = judge([estimate], margin, looks=(5, 10))[0]
    return judged, verdict.needs(found, estimate, judged, margin, **rows)


def test_what_dominates_the_interval_is_named():
    assert verdict.bound_by(parts(0.05, 0.1, 0.3)) == "seeds"
    assert verdict.bound_by(parts(0.001, 0.5, 0.3)) == "examples"


def test_noise_of_seeds_asks_for_so_many_seeds_and_they_are_enough():
    found = parts(0.05, 0.05, 0.3)
    judged, said = ask(found, 0.01, 0.03)
    assert judged.words == "CAN'T TELL YET"
    more = int(said.removeprefix("about ").removesuffix(" more seeds"))
    words = [ask(found.at(5 + n, 200), 0.01, 0.03)[0].words for n in (more - 1, more)]
    assert words[0] == "CAN'T TELL YET" and words[1] != "CAN'T TELL YET"


def test_noise_of_examples_asks_for_rows_and_says_that_seeds_are_no_help():
    found = parts(0.001, 0.4, 0.3)
    judged, said = ask(found, 0.0, 0.03)
    assert said.startswith("no number of seeds can settle this: about ") and said.endswith(" more test rows")
    more = int(said.split()[-4])
    assert ask(found.at(5, 200 + more), 0.0, 0.03)[0].words != "CAN'T TELL YET"
    assert ask(found.at(5, 200 + more // 2), 0.0, 0.03)[0].words == "CAN'T TELL YET"
    assert ask(found.at(9_999, 200), 0.0, 0.03)[0].words == "CAN'T TELL YET"
    assert int(ask(found, 0.0, 0.03, rows_per_example=3.0)[1].split()[-4]) == pytest.approx(3 * more, rel=0.1)


def test_noise_of_both_asks_for_both():
    _, said = ask(parts(0.2, 3.0, 0.3), 0.0, 0.05)
    assert "more seeds and" in said and said.endswith("more test rows together")


def test_what_tuning_may_lose_is_settled_by_no_number_of_finals():
    found = parts(0.05, 0.05, 0.3)
    open_to_it = Estimate(effect=0.01, se=found.se, df=found.df, below=0.05, above=0.02)
    judged = judge([open_to_it], 0.03, looks=(5, 10))[0]
    assert verdict.needs(found, open_to_it, judged, 0.03) == verdict.MORE_TUNING
    less = open_to_it.model_copy(update={"below": 0.02})
    assert verdict.needs(found, less, judged, 0.03).endswith(" more seeds")
    assert int(verdict.needs(found, less, judged, 0.03).split()[1]) > int(ask(found, 0.01, 0.03)[1].split()[1])


def test_a_settled_verdict_needs_nothing():
    assert ask(parts(0.001, 0.1, 0.1), 0.2, 0.03)[1] is None


# The error rate of the whole, on the arrays that a study has.


def logistic(x):
    return 1 / (1 + np.exp(-x))


def draw_arm(rng, ability_C, item_E, cluster_E, *, seed_sd=0.15, collapse=0.0, seeds=5):
    """Right or wrong, shape (R, E), of an arm whose runs vary, and of which a share collapses to chance."""
    seed_R = rng.normal(0, seed_sd, (seeds, 1)) - 1.5 * (rng.random((seeds, 1)) < collapse)
    return (rng.random((seeds, len(item_E))) < logistic(1 + item_E + ability_C[cluster_E] + seed_R)).astype(float)


def null_study(rng, kind):
    """Differences of one comparison in which nothing differs in expectation, shape (R, clusters)."""
    cluster_E = np.arange(200) // (4 if kind == "clusters" else 1)
    item_E, spread = rng.normal(0, 1.2, 200), 0.8 if kind == "clusters" else 0.0
    spreads = (0.05, 0.6) if kind == "unequal spreads" else (0.15, 0.15)
    collapse = 0.3 if kind == "collapse" else 0.0
    a, b = (
        draw_arm(rng, rng.normal(0, spread, 200), item_E, cluster_E, seed_sd=sd, collapse=collapse) for sd in spreads
    )
    diff = a - b
    if kind == "unequal spreads":
        # The logistic curve turns unequal spreads into unequal means: take the known expectation out.
        diff = diff - UNEQUAL
    return stats.cluster_values(diff, [str(c) for c in cluster_E])


def expected(sd, nodes=60):
    """Mean of a run's accuracy over items and seeds, by Gauss-Hermite quadrature."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    w = w / w.sum()
    return float(w @ logistic(1 + 1.2 * x[None, :] + sd * x[:, None]) @ w)


UNEQUAL = expected(0.05) - expected(0.6)
KINDS = ("plain", "clusters", "collapse", "unequal spreads")


def count_alarms(studies, kind, margin=0.05):
    rng, differ, lost = np.random.default_rng(KINDS.index(kind)), 0, 0
    for _ in range(studies):
        diff = null_study(rng, kind)
        found = judge([stats.crossed(diff)], margin, looks=(5,))[0]
        differ += found.direction != "unresolved"
        # The same study where the candidate is worse by just the margin: nothing may be called safe.
        shifted = judge([stats.crossed(diff - margin)], margin, looks=(5,))[0]
        lost += shifted.words in verdict.SAFE
    return differ, lost


def bound(studies, level=0.05):
    """Upper 95 % bound of the false alarms of an exact test."""
    return level * studies + 1.645 * math.sqrt(level * (1 - level) * studies)


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_null_studies_raise_no_more_than_their_alarms(kind):
    differ, lost = count_alarms(1000 if kind == "plain" else 500, kind)
    assert max(differ, lost) <= bound(1000 if kind == "plain" else 500)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_null_studies_raise_no_more_than_their_alarms(kind):
    assert max(count_alarms(10_000, kind)) <= bound(10_000)


def test_two_looks_at_growing_studies_raise_no_more_than_their_alarms():
    rng, alarms = np.random.default_rng(11), 0
    for _ in range(600):
        diff = rng.normal(0, 0.05, (10, 1)) + rng.normal(0, 0.1, (1, 100)) + rng.normal(0, 0.3, (10, 100))
        estimates = [stats.crossed(diff[:n]) for n in (5, 10)]
        alarms += any(judge([e], 0.05, looks=(5, 10))[0].direction != "unresolved" for e in estimates)
    assert alarms <= bound(600)


def test_a_family_of_three_raises_no_more_alarms_than_one():
    rng, alarms, naive = np.random.default_rng(12), 0, 0
    for _ in range(600):
        shared = rng.normal(0, 0.05, (5, 100))
        arms = [rng.normal(0, 0.02, (5, 1)) + rng.normal(0, 0.3, (5, 100)) - shared for _ in range(3)]
        estimates = [stats.crossed(diff) for diff in arms]
        found = judge(estimates, 0.05, looks=(5,))
        alarms += any(v.direction != "unresolved" for v in found)
        naive += any(e.p_not_zero() <= 0.05 for e in estimates)
    assert alarms <= bound(600) < naive


def test_words_are_one_of_the_table_for_every_pair_of_fields():
    fields = itertools.product(("better", "worse", "unresolved"), ("within", "beyond", "unresolved"), (True, False))
    assert {verdict.words(d, s, not_worse=n) for d, s, n in fields} == {
        "BETTER", "SAME (within your margin)", "NOT WORSE", "WORSE, negligibly", "WORSE", "CAN'T TELL YET",
    }  # fmt: skip
