"""Whole studies on planted truth, tuning included: few here, by the thousand in tools/whole_studies.py."""

import json

import pytest
from scipy.stats import binom

import whole_studies
from tunetrial.analysis import compare
from tunetrial.engine.sim import SimEngine


def carry_out(kind: str, number: int = 0):
    planted = whole_studies.KINDS[kind]
    data = whole_studies.task_data(planted.task)
    locked = whole_studies.lock(whole_studies.study(planted), data)
    return whole_studies.carry_out(locked, data, SimEngine(whole_studies.world(planted, number)).open(None, "fp32"))


def test_a_study_is_the_same_twice_and_another_world_gives_another():
    first, again, other = carry_out("null"), carry_out("null"), carry_out("null", 1)
    assert [r.digest for r in first.records] == [r.digest for r in again.records]
    assert {k: s.digest for k, s in first.scores.items()} == {k: s.digest for k, s in again.scores.items()}
    assert {r.digest for r in first.records} & {r.digest for r in other.records} == set()


def test_a_large_planted_difference_is_found():
    words = {compare(carry_out("worse by 0.05", number))[1][0].words for number in range(3)}
    assert words <= {"WORSE", "CAN'T TELL YET"} and "WORSE" in words


def test_planted_scores_are_what_the_truth_says():
    """Over many worlds the accuracy of finals is the planted one less what their rates cost."""
    planted, seen, expected = whole_studies.KINDS["null"], [], []
    for number in range(12):
        truths = whole_studies.world(planted, number).arms
        for record in carry_out("null", number).of(purpose="final"):
            seen.append(record.measurements["test.accuracy"].value)
            truth = truths[record.trial.arm.name]
            expected.append(truth.quality - truth.regret(record.trial.learning_rate))
    assert sum(seen) / len(seen) == pytest.approx(sum(expected) / len(expected), abs=0.012)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in whole_studies.KINDS if kind.startswith("null")])
def test_error_stays_nominal(kind):
    found = whole_studies.count(whole_studies.KINDS[kind], 200)
    assert found["false_direction"] <= binom.ppf(0.999, 200, 0.05)
    assert found["false_size"] <= binom.ppf(0.999, 200, 0.05)


def test_committed_counts_stay_within_the_binomial_bound():
    log = json.loads(whole_studies.LOG.read_text())
    assert set(log) == set(whole_studies.KINDS)
    for kind, found in log.items():
        if kind.startswith("null") or kind.endswith("the margin"):
            assert found["studies"] >= 1000, kind
            assert found["false_direction"] <= found["at_most"], kind
            assert found["false_size"] <= found["at_most"], kind
