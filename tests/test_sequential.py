"""Monitoring: golden values of the reference implementation, coverage while peeking at every outcome, and power."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tunetrial.analysis.sequential import confidence_sequence, lower_bounds, monitor
from tunetrial.core.errors import EvidenceError

RAMP = [((i * 7919 + 13) % 101) / 100 for i in range(400)]
BITS = [1.0 if (i * 37) % 10 < 3 else 0.0 for i in range(400)]

# confseq 0.0.11, predmix_empbern_twosided_cs(alpha=0.05, truncation=1/2): the best of its bounds so far.
GOLDEN = {
    ("ramp", 50): (0.3220690765938759, 0.6899367291618986),
    ("ramp", 400): (0.44882051364292735, 0.5511884386578761),
    ("bits", 50): (0.05905714320303268, 0.5411441566030434),
    ("bits", 400): (0.2165470815426031, 0.3871863824208803),
}


def best_bounds_by_hand(outcomes: list[float], alpha: float) -> list[float]:
    """The theorem one outcome at a time, in plain Python."""
    total, square_sum, seen, bets, gains, best, found = 0.0, 0.0, 0, 0.0, 0.0, 0.0, []
    for x in outcomes:
        variance = (0.25 + square_sum) / (seen + 1)
        mean = total / seen if seen else 0.0
        bet = min(0.5, math.sqrt(2 * math.log(1 / alpha) / (variance * (seen + 1) * math.log(seen + 2))))
        gains += bet * x - (x - mean) ** 2 * (-math.log(1 - bet) - bet)
        bets, seen, total = bets + bet, seen + 1, total + x
        square_sum += (x - (0.5 + total) / (seen + 1)) ** 2
        best = max(best, (gains - math.log(1 / alpha)) / bets)
        found.append(best)
    return found


@pytest.mark.parametrize(("name", "count"), GOLDEN)
def test_bounds_are_those_of_the_reference_implementation(name, count):
    outcomes = {"ramp": RAMP, "bits": BITS}[name]
    low_N, high_N = confidence_sequence(outcomes[:count], 0.05)
    assert (low_N[-1], high_N[-1]) == pytest.approx(GOLDEN[name, count], abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.sampled_from([0.0125, 0.05, 0.2]))
def test_bounds_are_those_counted_one_outcome_at_a_time(outcomes, alpha):
    assert lower_bounds(outcomes, alpha) == pytest.approx(best_bounds_by_hand(outcomes, alpha), abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_bounds_know_the_past_alone_and_only_narrow(outcomes):
    low_N, high_N = confidence_sequence(outcomes, 0.05)
    assert (np.diff(low_N) >= 0).all() and (np.diff(high_N) <= 0).all() and low_N[0] >= 0 and high_N[0] <= 1
    first_low_N, first_high_N = confidence_sequence(outcomes[:-1] + [1.0], 0.05)
    assert np.array_equal(low_N[:-1], first_low_N[:-1]) and np.array_equal(high_N[:-1], first_high_N[:-1])


def most(count: int, share: float) -> int:
    """How many misses a rate of `share` passes in 999 of 1,000 such tests."""
    return int(scipy.stats.binom.ppf(0.999, count, share))


def arrivals(rng: np.random.Generator, count: int, how: str, outcome_T: np.ndarray) -> np.ndarray:
    if how == "even":
        return rng.random(count) < 0.5
    if how == "rare":
        return rng.random(count) < 0.1
    if how == "one first":
        return np.arange(count) > count // 3
    # greedy: after a success of one's own more of it, after a failure less, as adaptive gateways do
    of_candidate_T, share = np.zeros(count, dtype=bool), 0.5
    for t in range(count):
        of_candidate_T[t] = rng.random() < share
        won = outcome_T[t, int(of_candidate_T[t])] > 0.5
        share = min(0.9, max(0.1, share + (0.05 if won == of_candidate_T[t] else -0.05)))
    return of_candidate_T


def draw(rng: np.random.Generator, count: int, mean: float, kind: str) -> np.ndarray:
    if kind == "bits":
        return (rng.random(count) < mean).astype(float)
    return rng.beta(8 * mean, 8 * (1 - mean), count)


@pytest.mark.parametrize("how", ["even", "rare", "one first", "greedy"])
@pytest.mark.parametrize(("kind", "means"), [("bits", (0.3, 0.3)), ("bits", (0.97, 0.97)), ("graded", (0.6, 0.7))])
def test_looking_after_every_outcome_misses_no_more_often_than_stated(how, kind, means):
    """Level 0.8, so that misses are many enough to be counted: 400 logs, each looked at 600 times."""
    rng, missed, alarms = np.random.default_rng(4), 0, 0
    for _ in range(400):
        outcome_T = np.stack([draw(rng, 600, mean, kind) for mean in means], axis=1)
        of_candidate_T = arrivals(rng, 600, how, outcome_T)
        log_T = np.where(of_candidate_T, outcome_T[:, 1], outcome_T[:, 0])
        if of_candidate_T.all() or not of_candidate_T.any():
            continue
        # bounds only narrow, so the last ones tell whether any look ever missed
        found = monitor(of_candidate_T, log_T, bounds=(0, 1), margin=0.05, level=0.8)
        missed += not found.low <= means[1] - means[0] <= found.high
        alarms += means[0] == means[1] and found.words in ("BETTER", "WORSE", "WORSE, negligibly")
    assert missed <= most(400, 0.2) and alarms <= most(400, 0.2)


def test_a_fixed_interval_looked_at_as_often_would_fail_the_same_test():
    """That the test above can fail: a t-like interval, looked at every 10 outcomes, is often wrong."""
    rng, missed = np.random.default_rng(4), 0
    count_N = np.arange(1, 601)
    for _ in range(150):
        mean_N = np.cumsum(draw(rng, 600, 0.3, "bits")) / count_N
        half_N = 1.2816 * np.sqrt(0.21 / count_N)
        missed += bool((np.abs(mean_N - 0.3) > half_N)[49::10].any())
    assert missed > most(150, 0.2)


@pytest.mark.parametrize(("means", "words"), [((0.5, 0.6), "BETTER"), ((0.6, 0.5), "WORSE")])
def test_a_planted_difference_is_found(means, words):
    rng, found = np.random.default_rng(8), []
    for _ in range(40):
        of_candidate_T = rng.random(3000) < 0.5
        log_T = (rng.random(3000) < np.where(of_candidate_T, means[1], means[0])).astype(float)
        found.append(monitor(of_candidate_T, log_T, bounds=(0, 1), margin=0.02))
    assert sum(one.words == words for one in found) >= 36
    assert all(0 < one.settled_at <= 3000 for one in found if one.words == words)


def test_versions_that_are_the_same_are_found_to_be_within_a_wide_margin():
    rng = np.random.default_rng(9)
    of_candidate_T, log_T = rng.random(4000) < 0.5, (rng.random(4000) < 0.95).astype(float)
    found = monitor(of_candidate_T, log_T, bounds=(0, 1), margin=0.1)
    assert found.words == "SAME (within your margin)" and found.settled_at < 4000
    narrow = monitor(of_candidate_T, log_T, bounds=(0, 1), margin=0.001)
    assert narrow.words == "CAN'T TELL YET" and narrow.settled_at is None


def test_what_is_settled_stays_settled_and_is_dated_by_the_log():
    rng = np.random.default_rng(10)
    of_candidate_T = rng.random(3000) < 0.5
    log_T = (rng.random(3000) < np.where(of_candidate_T, 0.8, 0.5)).astype(float)
    at = monitor(of_candidate_T, log_T, bounds=(0, 1), margin=0.02).settled_at
    for count in (at, at + 1, 3000):
        again = monitor(of_candidate_T[:count], log_T[:count], bounds=(0, 1), margin=0.02)
        assert again.words == "BETTER" and again.settled_at == at
    assert monitor(of_candidate_T[: at - 1], log_T[: at - 1], bounds=(0, 1), margin=0.02).settled_at is None


def test_other_bounds_are_other_units_and_nothing_else():
    rng = np.random.default_rng(11)
    of_candidate_T, unit_T = rng.random(500) < 0.3, rng.random(500)
    unit = monitor(of_candidate_T, unit_T, bounds=(0, 1), margin=0.1)
    stars = monitor(of_candidate_T, 1 + 4 * unit_T, bounds=(1, 5), margin=0.4)
    assert (stars.low, stars.high, stars.effect) == pytest.approx((4 * unit.low, 4 * unit.high, 4 * unit.effect))
    assert stars.words == unit.words and stars.pairs == unit.pairs == of_candidate_T.sum()


def test_a_difference_that_changes_while_it_is_watched_is_said_to():
    of_candidate_T = np.arange(8000) % 2 == 1
    log_T = np.where(np.arange(8000) < 4000, of_candidate_T, ~of_candidate_T).astype(float)
    found = monitor(of_candidate_T, log_T, bounds=(0, 1), margin=0.1)
    assert found.contradicts and found.words == "NOT COMPARABLE" and found.settled_at is None


def test_means_that_rise_and_fall_together_do_no_harm():
    """As by the time of day: no false alarm, though neither version has one mean, and a difference is still found."""
    rng, alarms, missed = np.random.default_rng(12), 0, 0
    for _ in range(100):
        of_candidate_T = rng.random(2000) < 0.5
        both_T = 0.5 + 0.3 * np.sin(np.arange(2000) / 200)
        same_T = (rng.random(2000) < both_T).astype(float)
        alarms += monitor(of_candidate_T, same_T, bounds=(0, 1), margin=0.01, level=0.8).words != "CAN'T TELL YET"
        other_T = (rng.random(2000) < both_T + 0.15 * of_candidate_T).astype(float)
        missed += monitor(of_candidate_T, other_T, bounds=(0, 1), margin=0.01).words != "BETTER"
    assert alarms <= most(100, 0.2) and missed <= 5


def test_the_nth_outcomes_of_both_are_a_pair_whatever_lies_between():
    rng = np.random.default_rng(13)
    reference_N, candidate_N = rng.random(50), rng.random(80)
    turn_T = np.r_[np.zeros(50, dtype=bool), np.ones(80, dtype=bool)]
    every = [monitor(turn_T, np.r_[reference_N, candidate_N], bounds=(0, 1), margin=0.1)]
    mixed_T = rng.permutation(turn_T)
    log_T = np.empty(130)
    log_T[~mixed_T], log_T[mixed_T] = reference_N, candidate_N
    every.append(monitor(mixed_T, log_T, bounds=(0, 1), margin=0.1))
    assert every[0] == every[1] and every[0].pairs == 50
    low_N, _ = confidence_sequence((candidate_N[:50] - reference_N + 1) / 2, 0.05)
    assert every[0].low == pytest.approx(2 * low_N[-1] - 1)
    assert every[0].effect == pytest.approx(np.mean(candidate_N[:50] - reference_N))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bounds": (1, 0)}, "bounds: need two finite numbers"),
        ({"bounds": (0, math.inf)}, "bounds: need two finite numbers"),
        ({"bounds": (0, 0.5)}, "must lie between 0 and 0.5, got 1"),
        ({"margin": 0.0}, "margin: must be above 0"),
        ({"margin": math.nan}, "margin: must be above 0"),
        ({"level": 1.0}, "level: must lie between 0 and 1"),
        ({"of_candidate_T": [True, True]}, "the reference has none"),
        ({"of_candidate_T": [False, False]}, "the candidate has none"),
        ({"of_candidate_T": [False, True, True]}, "need one version each"),
        ({"outcome_T": [0.0, math.nan]}, "must lie between 0 and 1, got nan"),
    ],
)
def test_what_makes_no_sense_is_refused(change, said):
    asked = {"of_candidate_T": [False, True], "outcome_T": [0.0, 1.0], "bounds": (0, 1), "margin": 0.1} | change
    with pytest.raises(EvidenceError, match=said):
        monitor(np.array(asked.pop("of_candidate_T")), np.array(asked.pop("outcome_T")), **asked)
