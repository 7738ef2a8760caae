"""Do you need to tune at all: the answer, its error rate where tuning helps by the margin, and what is read first."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from planted import change, evidence, lock, one
from tunetrial import report
from tunetrial.analysis import decide, need
from tunetrial.analysis.board import lay_out
from tunetrial.analysis.compare import review
from tunetrial.core.evidence import Scores

CHEAP, DEAR = {"step_s": 0.3, "peak_bytes": 2**31}, {"step_s": 0.6, "peak_bytes": 2**32}
NOTHING = {"train_s": 0.0, "peak_bytes": 2**30}
COSTS = {"full": DEAR, "lora": CHEAP, "base": NOTHING, "tfidf": NOTHING}


def study(quality, *, margin=0.05, **planted):
    costs = {arm: COSTS[arm] for arm in quality}
    return evidence(lock(tuple(quality), margin=margin), quality, costs=costs, **{"rows": 1000, **planted})


def read(found):
    d = decide(found)
    return d, report.summary(found, d).splitlines()


def test_a_base_that_is_not_worse_than_any_trained_arm_is_the_headline():
    d, lines = read(study({"full": 0.85, "lora": 0.85, "base": 0.80}, margin=0.1))
    assert (d.need.answer, d.need.arm, d.recommendation) == ("no", "base", "base")
    assert d.need.reason.startswith("base is not worse than full or lora by your margin: accuracy -0.0")
    assert lines[1] == "You need not tune: use base."
    assert lines[2].startswith("Do you need to tune at all? No: base is not worse than full or lora by your margin")
    assert d.because[0] == f"Do you need to tune at all? No: {d.need.reason}."


def test_a_base_that_is_worse_says_yes_and_by_how_much():
    d, lines = read(study({"full": 0.85, "lora": 0.85, "base": 0.6, "tfidf": 0.7}, margin=0.1))
    assert d.need.answer == "yes" and d.recommendation == "lora" and lines[1] == "Use lora."
    assert lines[2].startswith("Do you need to tune at all? Yes: base, WORSE: accuracy")
    assert "; tfidf, WORSE: accuracy" in lines[2]


def test_a_base_no_better_than_a_constant_is_no_answer_to_a_trained_arm():
    d, _ = read(study({"full": 0.85, "lora": 0.85, "base": 0.3}, margin=0.1))
    assert d.need.answer == "yes" and "base, NOT COMPARABLE: base: accuracy 0.3" in d.need.reason
    assert "is not shown to be better than a constant's" in d.need.reason
    assert d.excluded == {"base": "no better than a constant on mail"}
    assert [f.what for f in report.tables.failures(study({"full": 0.8, "base": 0.3}), d)][
        0
    ] == "no better than a constant"


def test_what_is_not_shown_is_open():
    found = study({"full": 0.83, "lora": 0.83, "base": 0.80}, margin=0.03, rows=300)
    d, lines = read(found)
    assert d.need.answer == "open" and lines[2].startswith("Do you need to tune at all? Can't tell yet: base, ")
    without = change(found, lambda r: None if (r.trial.arm.name, r.trial.purpose) == ("base", "final") else r)
    d, _ = read(without)
    assert d.need.answer == "open" and "base has 0 of 1 finals" in d.need.reason


def test_every_trained_arm_counts_not_the_reference_alone():
    """The base is not worse than the reference, and worse than the other trained arm."""
    d, lines = read(study({"full": 0.82, "lora": 0.95, "base": 0.79}, margin=0.1))
    verdict = next(c for c in d.verdicts if c.candidate == "base")
    assert verdict.words == "WORSE, negligibly" and d.need.answer != "no"
    assert d.recommendation == "lora" and lines[1] == "Use lora."
    assert d.need.answer == "yes" and "; lora, BETTER: accuracy +0.1" in d.need.reason


def test_where_the_reference_gained_nothing_the_base_is_recommended():
    d, lines = read(study({"full": 0.80, "lora": 0.80, "base": 0.80}))
    assert {r.arm: r.state for r in d.arms} == {"full": "did not train", "lora": "did not train", "base": "trained"}
    assert d.recommendation == "base" and d.need.answer == "no" and d.abstention is None
    assert lines[1] == "You need not tune: use base."
    assert "full is out, and no trained arm is better than base by the margin." in d.because


def test_where_the_reference_gained_nothing_and_nothing_is_shown_of_the_base_it_abstains():
    d, lines = read(study({"full": 0.80, "lora": 0.80, "base": 0.80}, margin=0.01))
    assert (d.recommendation, d.abstention.safe_choice, d.need.answer) == (None, "base", "open")
    assert lines[1] == "No recommendation yet."


def test_a_study_of_trained_arms_alone_is_not_asked():
    d, lines = read(study({"full": 0.8, "lora": 0.8}, margin=0.1))
    assert d.need is None and not any("need to tune" in line for line in (*lines, *d.because))


def test_a_margin_that_is_a_share_says_no_only_where_tuning_gains_nothing_that_shows():
    d, _ = read(study({"full": 0.85, "lora": 0.85, "base": 0.7}, margin="50% of gain"))
    assert d.need.answer == "yes"
    d, _ = read(study({"full": 0.85, "lora": 0.85, "base": 0.7, "tfidf": 0.85}, margin="50% of gain"))
    assert (d.need.answer, d.need.arm) == ("no", "tfidf")


@pytest.mark.parametrize("kind", ["html", "markdown"])
def test_the_share_and_the_answer_stand_in_the_report(kind):
    found = study({"full": 0.85, "lora": 0.84, "base": 0.6}, margin="90% of gain")
    d = decide(found)
    text = getattr(report, kind)(found, d)
    for said in ("Do you need to tune at all?", "of full", "gain over the untuned base", "keeps 9", "of the gain"):
        assert said in text, said


def shifted(found, rng, loss):
    """Scores in place of the planted ones: hits with the base worse by so much than either trained arm."""
    targets = np.array(["a", "b"] * 100)
    scores, ease_E = dict(found.scores), rng.normal(0, 0.5, 200)
    for arm, share in (("full", 0.8), ("lora", 0.8), ("base", 0.8 - loss)):
        for record in found.of(purpose="final", arm=arm):
            right_E = rng.random(200) < share
            wrong = np.where(targets == "a", "b", "a")
            ids = tuple(map(str, range(len(ease_E))))
            scores[record.trial.id, "test"] = Scores(ids, ids, targets, np.where(right_E, targets, wrong))
    return replace(found, scores=scores)


@pytest.mark.parametrize("studies", [15, pytest.param(400, marks=pytest.mark.slow)])
def test_no_is_false_no_more_often_than_the_level_says(studies):
    """Both trained arms are better than the base by just the margin; the base is one run on the same rows."""
    rng, planted = np.random.default_rng(3), study({"full": 0.8, "lora": 0.8, "base": 0.7}, margin=0.1, rows=200)
    bare = change(planted, lambda r: r.model_copy(update={"measurements": _kept(r)}))
    assert one(planted, "base", 1).trial.learning_rate is None
    false = 0
    for _ in range(studies):
        found = shifted(bare, rng, 0.1)
        results, cases = review(found)
        false += need.answer(lay_out(found, results, cases)).answer == "no"
    assert false <= binom.ppf(0.95, studies, 0.05)


def _kept(record):
    return {name: m for name, m in record.measurements.items() if not name.startswith("test.")}
