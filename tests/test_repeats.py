"""What a decision and its report say of an arm's answers with another seed."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

import planted
from tunetrial import report
from tunetrial.analysis import decide

QUALITY = {"full": 0.9, "lora": 0.7}


def answers(found, arm):
    return np.stack([found.scores[r.trial.id, "test"].prediction_E for r in found.of(purpose="final", arm=arm)])


def test_agreement_and_churn_are_the_shares_counted_by_hand():
    found = planted.evidence(planted.lock(), QUALITY, rows=120)
    full, lora = (answers(found, arm) for arm in QUALITY)
    said = {one.arm: one for one in decide(found).repeats}
    for arm, own in (("full", full), ("lora", lora)):
        pairs = [np.mean(a == b) for a, b in itertools.combinations(own, 2)]
        value, low, high = said[arm].same
        assert value == pytest.approx(np.mean(pairs)) and low < value < high and said[arm].seeds == 5
    assert said["lora"].churn[0] == pytest.approx(np.mean(full != lora)) and said["full"].churn is None
    assert said["full"].same[0] > said["lora"].same[0] and said["full"].beyond_chance[0] < said["full"].same[0]


def test_numbers_have_a_spread_between_seeds():
    found = planted.evidence(planted.lock(metric="mae"), {"full": 0.4, "lora": 0.6}, rows=80)
    own = answers(found, "lora").astype(float)
    said = next(one for one in decide(found).repeats if one.arm == "lora")
    assert said.measure == "SD between seeds" and said.churn is None
    assert said.same[0] == pytest.approx(np.sqrt(own.var(axis=0, ddof=1).mean()))


def test_what_diverged_is_left_out_and_fewer_than_three_seeds_say_nothing():
    found = planted.evidence(planted.lock(), QUALITY, rows=60, diverged={"lora": 2})
    said = {one.arm: one.seeds for one in decide(found).repeats}
    assert said == {"full": 5, "lora": 3}
    few = replace(found, records=tuple(r for r in found.records if r.trial.purpose != "final" or r.trial.seed < 3))
    assert len({r.trial.seed for r in few.of(purpose="final", arm="full")}) < 3 and decide(few).repeats == ()


def test_the_report_says_it_in_a_sentence_and_leaves_it_out_where_there_is_nothing():
    found = planted.evidence(planted.lock(), QUALITY, rows=120)
    decision = decide(found)
    page, text = report.html(found, decision), report.markdown(found, decision)
    assert "Another seed" in page and "with another seed" in text and "differ from the reference" in text
    assert "Another seed" not in report.html(found, decision.model_copy(update={"repeats": ()}))
