"""Votes: golden values, an independent fit, what is refused, separation said, and coverage by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import binomtest

from tunetrial.analysis import preferences, ratings
from tunetrial.analysis.preferences import Vote
from tunetrial.core.errors import EvidenceError


def vote(item, first, second, winner, *, rater="judge", blind=True, seed=None):
    return Vote(item=str(item), first=first, second=second, winner=winner, rater=rater, blind=blind, seed=seed)


def wins(first, second, won, of, start=0):
    return [vote(start + n, first, second, "first" if n < won else "second") for n in range(of)]


def drawn(rng, strengths, *, items, position=0.0, noise=0.0, seeds=(None,), ties=0.0):
    """Votes of one rater in both orders; each item has its own taste, which its votes share."""
    votes, names = [], list(strengths)
    for item in range(items):
        taste = dict(zip(names, noise * rng.normal(size=len(names)), strict=True))
        for seed in seeds:
            for first in names:
                for second in set(names) - {first}:
                    gap = strengths[first] + taste[first] - strengths[second] - taste[second] + position
                    won = rng.random() < 1 / (1 + math.exp(-gap))
                    said = "tie" if rng.random() < ties else "first" if won else "second"
                    votes.append(vote(item, first, second, said, seed=seed))
    return votes


def test_bradley_terry_gives_the_golden_values():
    found = preferences.bradley_terry(wins("a", "b", 70, 100) + wins("b", "a", 50, 100), reference="b", seed=0)
    assert round(found.of["a"].value, 7) == round(found.position.value, 7) == 0.4236489
    assert round(preferences.probability(found.of["a"].value), 7) == 0.6043561
    assert round(preferences.elo(found.of["a"].value), 3) == 73.595


def test_strengths_of_journals_are_the_published_ones():
    """Citations among four journals (Stigler 1994, as in Agresti): row beats column; each counted in both orders."""
    table = ((714, 730, 498, 221), (33, 425, 68, 17), (320, 813, 1072, 142), (284, 276, 325, 188))
    votes = []
    for i, row in enumerate(table):
        for j, count in enumerate(row):
            if i != j:
                votes += [vote(f"{i}{j}{n}", *order) for n in range(count) for order in (
                    (str(i), str(j), "first"), (str(j), str(i), "second"))]  # fmt: skip
    found = preferences.bradley_terry(votes, reference="0", seed=0, draws=10)
    assert [round(found.of[arm].value, 5) for arm in "123"] == [-2.94907, -0.47957, 0.26895]
    assert abs(found.position.value) < 1e-8


@settings(max_examples=5)
@given(st.integers(0, 10_000))
def test_strengths_maximise_the_likelihood_and_names_do_not_matter(seed):
    votes = drawn(np.random.default_rng(seed), {"a": 0, "b": 0.5, "c": -0.3}, items=30, position=0.3, ties=0.2)
    found = preferences.bradley_terry(votes, reference="a", seed=0, draws=5)

    def loss(x):
        strength = {"a": 0.0, "b": x[0], "c": x[1]}
        gaps = np.array([strength[v.first] - strength[v.second] + x[2] for v in votes])
        points = np.array([v.points for v in votes])
        return (np.logaddexp(0, -gaps) * points + np.logaddexp(0, gaps) * (1 - points)).sum()

    best = minimize(loss, np.zeros(3), tol=1e-10).x
    assert [found.of["b"].value, found.of["c"].value, found.position.value] == pytest.approx(best, abs=1e-4)
    other = preferences.bradley_terry(votes, reference="c", seed=0, draws=5)
    assert other.of["b"].value == pytest.approx(found.of["b"].value - found.of["c"].value)


def test_same_seed_same_ends_and_another_seed_others():
    votes = drawn(np.random.default_rng(0), {"a": 0, "b": 0.5}, items=30, seeds=(1, 2, 3))
    ends = [preferences.bradley_terry(votes, reference="a", seed=seed).of["b"].low for seed in (0, 0, 1)]
    assert ends[0] == ends[1] != ends[2]


def test_separation_is_said_and_strengths_are_absent():
    found = preferences.bradley_terry(wins("a", "b", 9, 9) + wins("b", "a", 0, 9), reference="b", seed=0)
    assert found.of == {} and found.position is None and "strength of a" in found.separated
    always_first = preferences.bradley_terry(wins("a", "b", 9, 9) + wins("b", "a", 9, 9), reference="b", seed=0)
    assert "the first place" in always_first.separated
    once = preferences.bradley_terry(wins("a", "b", 9, 9) + wins("b", "a", 1, 9), reference="b", seed=0)
    assert "strength of a" in once.separated
    rare = preferences.bradley_terry(wins("a", "b", 29, 30) + wins("b", "a", 1, 30), reference="b", seed=0)
    assert rare.separated is None and rare.of["a"].low > 0 and rare.of["a"].high is None


def test_votes_that_were_not_blind_or_came_in_one_order_are_refused_in_one_line():
    both = [vote(1, "a", "b", "first"), vote(1, "b", "a", "tie")]
    for votes, said in (
        ([], "none to go by"),
        ([both[0]], "not shown in both orders"),
        ([*both, vote(2, "a", "b", "tie", blind=False)], "which arm is which"),
        ([vote(1, "a", "a", "tie")], "against itself"),
        (both + [vote(1, "c", "d", "first"), vote(1, "d", "c", "tie")], "no chain of pairs"),
    ):
        with pytest.raises(EvidenceError, match=said) as caught:
            preferences.bradley_terry(votes, reference="b", seed=0)
        assert "\n" not in str(caught.value)
    with pytest.raises(EvidenceError, match="never compared"):
        preferences.win_rate(both, "a", "c")
    people = [vote(1, "a", "b", "first", rater="x"), vote(1, "b", "a", "tie", rater="y")]
    with pytest.raises(EvidenceError, match="nobody saw a pair in both orders"):
        preferences.position_bias(people)
    assert preferences.win_rate(people, "a", "b").value == 0.75


def test_orders_that_contradict_each_other_are_a_tie():
    votes = [
        vote(1, "a", "b", "first"),
        vote(1, "b", "a", "first"),
        vote(2, "a", "b", "first"),
        vote(2, "b", "a", "second"),
    ]
    rate = preferences.win_rate(votes, "a", "b")
    assert rate.value == 0.75 and preferences.win_rate(votes, "b", "a").value == 0.25
    raters, said = preferences.opinions(votes, "a", "b")
    assert raters == ("judge",) and said.tolist() == [[0.0, 1.0]]
    assert preferences.win_rate(votes, "b", "a").low == pytest.approx(1 - rate.high)


def test_position_bias_is_an_exact_sign_test_over_items():
    votes = []
    for item in range(12):
        one, two = ("first", "first") if item < 8 else ("second", "second") if item < 10 else ("first", "second")
        votes += [vote(item, "a", "b", one), vote(item, "b", "a", two)]
    found = preferences.position_bias(votes)
    assert (found.to_first, found.to_second) == (8, 2)
    assert found.p == pytest.approx(binomtest(8, 10).pvalue)
    assert found.consistent.value == pytest.approx(2 / 12)
    fair = preferences.position_bias([vote(1, "a", "b", "first"), vote(1, "b", "a", "second")])
    assert fair.p is None and fair.consistent.value == 1


def test_judge_and_people_are_held_together_by_alpha():
    votes = [
        vote(item, first, second, winner, rater=rater)
        for rater, winners in (("judge", "ab-a"), ("people", "ab-b"))
        for item, best in enumerate(winners)
        for first, second in (("a", "b"), ("b", "a"))
        for winner in ["tie" if best == "-" else "first" if best == first else "second"]
    ]
    raters, said = preferences.opinions(votes, "a", "b")
    assert raters == ("judge", "people") and said.tolist() == [[1, -1, 0, 1], [1, -1, 0, -1]]
    assert ratings.alpha(said, "ordinal").value < 1


def strength_covers(rng, items=60):
    votes = drawn(rng, {"a": 0.0, "b": 0.6}, items=items, position=0.4)
    interval = preferences.bradley_terry(votes, reference="a", seed=0, draws=200).of["b"]
    return interval.low <= 0.6 <= interval.high


def win_rate_covers(rng, items=60):
    votes = drawn(rng, {"a": 0.0, "b": 0.0}, items=items, noise=1.0, position=0.4, seeds=(1, 2, 3))
    interval = preferences.win_rate(votes, "b", "a")
    return interval.low <= 0.5 <= interval.high


@pytest.mark.parametrize("covers", [strength_covers, win_rate_covers])
def test_intervals_cover_in_a_small_simulation(covers):
    rng = np.random.default_rng(5)
    assert np.mean([covers(rng) for _ in range(40)]) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 40)


@pytest.mark.slow
@pytest.mark.parametrize("covers", [strength_covers, win_rate_covers])
def test_intervals_cover_what_they_state(covers):
    """Percentiles of a bootstrap are a little short: 94 % at 60 items."""
    rng = np.random.default_rng(6)
    assert np.mean([covers(rng) for _ in range(1500)]) >= 0.94 - 3 * math.sqrt(0.95 * 0.05 / 1500)
