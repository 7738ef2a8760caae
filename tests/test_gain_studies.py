"""Gains in studies: the share shown, a margin that is one, the gate of the untuned base, one final for all seeds."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from planted import change, evidence, lock, one
from tunetrial import models, plan
from tunetrial.analysis import compare, decide, metrics, rates, stats
from tunetrial.analysis.gains import gains
from tunetrial.analysis.verdict import SAFE
from tunetrial.core.study import Arm
from tunetrial.engine.sim import SimEngine, Truth
from tunetrial.plan.power import power, prior
from tunetrial.trial import conclusion, simulated

ARMS = ("full", "lora", "base")
CHEAP, DEAR = {"step_s": 0.3, "peak_bytes": 2**31}, {"step_s": 0.6, "peak_bytes": 2**32}
COSTS = {"full": DEAR, "lora": CHEAP, "base": {"train_s": 0.0, "peak_bytes": 2**30}}
QUALITY = {"full": 0.85, "lora": 0.845, "base": 0.6}


def study(quality, *, margin="95% of gain", **planted):
    return evidence(lock(tuple(quality), margin=margin), quality, **{"rows": 1500, **planted})


def of(found, candidate):
    return next(c for c in compare(found)[1] if c.candidate == candidate)


def state(found, arm):
    return next(r for r in compare(found)[0] if r.arm == arm)


def over_base(found, arm):
    """Gains by hand: an arm's hits minus the base's, shape (5, rows)."""
    find = metrics.find("accuracy")

    def hits(arm, seed):
        s = found.scores[one(found, arm, seed).trial.id, "test"]
        return find.contributions(s.target_E, s.prediction_E)

    return np.stack([hits(arm, seed) - hits("base", 1) for seed in range(1, 6)])


def test_the_share_is_the_ratio_of_the_gains_with_the_interval_of_the_comparisons_level():
    found = study(QUALITY, margin=0.05)
    c = of(found, "lora")
    regret = {arm: rates.tuned(found, arm, "mail").expected_regret for arm in ("full", "lora")}
    own = gains(
        over_base(found, "lora"),
        over_base(found, "full"),
        candidate_regret=regret["lora"],
        reference_regret=regret["full"],
    )
    assert c.gain.base == "base" and c.gain.level == c.level
    means = {arm: state(found, arm).mean for arm in ARMS}
    assert c.gain.share == pytest.approx((means["lora"] - means["base"]) / (means["full"] - means["base"]))
    assert (c.gain.low, c.gain.high) == pytest.approx(own.limits(c.level))
    assert c.margin == 0.05 and c.kept_share is None
    assert of(found, "base").gain is None


@pytest.mark.parametrize(
    ("lora", "margin", "words"),
    [
        (0.93, "95% of gain", "BETTER"),
        (0.85, "80% of gain", "SAME (within your margin)"),
        (0.70, "90% of gain", "WORSE"),
        (0.85, "99% of gain", "CAN'T TELL YET"),
    ],
)
def test_a_margin_that_is_a_share_is_judged_on_the_contrast(lora, margin, words):
    found = study(QUALITY | {"lora": lora}, margin=margin)
    c, fixed = of(found, "lora"), of(replace(found, lock=lock(ARMS, margin=0.05)), "lora")
    kept = float(margin[:2]) / 100
    assert c.words == words and c.kept_share == kept
    assert (c.effect, c.low, c.high) == pytest.approx((fixed.effect, fixed.low, fixed.high), abs=0.02)
    assert c.margin == pytest.approx((1 - kept) * over_base(found, "full").mean())
    assert (c.needs is None) == (words != "CAN'T TELL YET")
    assert f"for lora minus ({kept:g} of full + {1 - kept:.4g} of base)" in c.procedure
    worst = stats.crossed(over_base(found, "lora") - kept * over_base(found, "full"))
    shown = worst.at_least(0.97) > 0
    assert shown == (words in ("BETTER", "SAME (within your margin)"))


def test_the_untuned_base_is_a_candidate_like_any_other():
    found = study(QUALITY)
    c = of(found, "base")
    assert (c.words, c.size) == ("WORSE", "beyond") and c.gain is None


@pytest.mark.parametrize("margin", ["95% of gain", 0.05])
def test_an_arm_that_is_not_shown_to_be_better_than_the_base_did_not_train(margin):
    found = study({"full": 0.8, "lora": 0.9, "base": 0.8}, margin=margin)
    assert [state(found, arm).state for arm in ARMS] == ["did not train", "trained", "trained"]
    assert state(found, "full").base == state(found, "base").mean
    for arm in ("lora", "base"):
        c = of(found, arm)
        assert c.words == "NOT COMPARABLE" and c.reason.startswith("full did not train: accuracy 0.")
        assert "is not shown to be better than base's, untuned, 0." in c.reason
        assert (c.margin is None) == (margin == "95% of gain")
    d = decide(found)
    assert d.recommendation is None and d.excluded == {"full": "did not train on mail"}


def test_a_reference_without_a_shown_gain_has_no_share_to_be_asked_for():
    held = lock(("tfidf", "lora", "base"), margin="95% of gain")
    c = of(evidence(held, {"tfidf": 0.8, "lora": 0.9, "base": 0.8}), "lora")
    what = "tfidf's gain over base is not shown, so no share of it can be asked for"
    assert (c.words, c.reason) == ("NOT COMPARABLE", what)


def test_without_a_final_of_the_base_a_share_of_the_gain_waits():
    found = study(QUALITY)
    partly = change(found, lambda r: None if (r.trial.arm.name, r.trial.purpose) == ("base", "final") else r)
    c = of(partly, "lora")
    assert (c.words, c.reason) == ("CAN'T TELL YET", "base has 0 of 1 finals") and c.margin is None
    fixed = replace(partly, lock=lock(ARMS, margin=0.05))
    assert of(fixed, "lora").effect is not None and of(fixed, "lora").gain is None


@pytest.mark.parametrize("margin", ["95% of gain", 0.05])
def test_a_base_that_was_executed_otherwise_gives_no_gain(margin):
    found = study(QUALITY, margin=margin)

    def other(record):
        if record.trial.arm.name != "base":
            return record
        return record.model_copy(update={"resolved": {**record.resolved, "device": "cuda"}})

    c = of(change(found, other), "lora")
    assert c.gain is None and (c.words == "NOT COMPARABLE") == (margin == "95% of gain")
    if c.reason:
        assert c.reason.startswith("the margin is a share of a gain: device differs: ")


def test_one_final_stands_for_every_seed_as_equal_finals_would():
    found = study(QUALITY, margin=0.05)
    alone = one(found, "base", 1)
    copies = []
    scores = dict(found.scores)
    for seed in range(2, 6):
        trial = alone.trial.model_copy(update={"seed": seed})
        copies.append(alone.model_copy(update={"trial": trial}))
        scores |= {(trial.id, s): found.scores[alone.trial.id, s] for s in ("test", "validation")}
    several = replace(found, records=(*found.records, *copies), scores=scores)
    assert compare(several)[1] == compare(found)[1]
    assert state(found, "base").values.keys() == {1} and state(found, "base").sd is None
    c, hits = of(found, "base"), over_base(found, "full")
    assert (c.n_replicates, c.effect) == (5, pytest.approx(-hits.mean()))
    assert all(check.holds for check in decide(found).fairness)
    assert "nothing in base is random" in str(decide(found).fairness)


def test_where_the_verdict_flips_is_the_share_at_which_it_changes():
    quality = {"full": 0.85, "lora": 0.85, "base": 0.6}
    found = study(quality, margin="80% of gain", costs=COSTS)
    d = decide(found)
    (flip,) = d.flips
    assert (d.recommendation, flip.to, flip.now) == ("lora", "full", 0.8)
    assert flip.what == "share of the gain to be kept on mail" and 0.8 < flip.at < 1

    def at(share):
        return decide(
            replace(found, lock=lock(ARMS, margin=f"{100 * share:.3f}".rstrip("0") + "% of gain"))
        ).recommendation

    assert at(flip.at - 0.001) == "lora" and at(flip.at + 0.001) is None


def test_the_margin_says_what_it_is_in_the_reasons():
    d = decide(study(QUALITY, margin="90% of gain"))
    said = " ".join(d.because)
    assert "your margin is 90 % of gain, here 0.02" in said and "of full's gain over the untuned base" in said


def test_an_old_margin_and_a_share_name_the_same_trials():
    fixed, share = lock(ARMS, margin=0.05), lock(ARMS, margin="95% of gain")
    asked = {"learning_rate": 1e-3, "seed": 1, "purpose": "final"}
    assert fixed.trial("full", "mail", **asked).id == share.trial("full", "mail", **asked).id


def test_a_plan_says_that_the_margin_is_not_known_yet_and_counts_one_final_of_the_base():
    locked, _, _ = planned(0)
    task = locked.study.tasks[0]
    asked = power(locked, task, prior(task))
    assert "margin 90% of gain, known in accuracy once the base is scored, on" in str(asked)
    assert asked.rows_needed is None and "no number of seeds" not in str(asked) and len(asked.detectable) == 2
    shape = models.shape(models.EMBEDDED)
    trials = plan.preview(locked, shape).trials
    alone = plan.preview(locked.model_copy(update={"study": without_base(locked.study)}), shape).trials
    assert (trials.low - alone.low, trials.high - alone.high) == (2, 2)  # one final and one probe


def without_base(study):
    return study.model_copy(update={"arms": tuple(arm for arm in study.arms if arm.name != "base")})


def test_a_share_asked_for_afterwards_is_post_hoc():
    fixed, share = lock(ARMS, margin=0.05), lock(ARMS, margin="95% of gain")
    said = conclusion.post_hoc([fixed, share])
    assert said == ("tasks.mail.margin: was 0.05, is now 95% of gain",)
    assert conclusion.post_hoc([share, fixed]) == ("tasks.mail.margin: was 95% of gain, is now 0.05",)


def planned(number):
    """A study with tuning, in which LoRA keeps just 90 % of full's gain over the base and that is the margin."""
    kind = simulated.Planted(full={"quality": 0.84}, lora={"quality": 0.816})
    data, asked = simulated.task_data("classify"), simulated.study(kind)
    task = asked.tasks[0].model_copy(update={"margin": "90% of gain"})
    asked = asked.model_copy(update={"tasks": (task,), "arms": (*asked.arms, Arm(name="base", method="none"))})
    world = simulated.world(kind, number)
    truths = world.arms | {"base": Truth(quality=0.6, seed_sd=0)}
    session = SimEngine(world.model_copy(update={"arms": truths})).open(None, "fp32")
    return simulated.lock(asked, data), data, session


@pytest.mark.parametrize("studies", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_in_whole_studies_a_loss_of_the_margin_is_not_called_safe_and_the_true_share_is_covered(studies):
    safe = missed = 0
    for number in range(studies):
        found = simulated.carry_out(*planned(number))
        finals = [(r.trial.arm.name, r.trial.seed) for r in found.of(purpose="final")]
        assert [arm for arm, _ in finals].count("base") == 1 and len(finals) >= 11
        c = of(found, "lora")
        safe += c.words in SAFE
        missed += c.gain.low is not None and not c.gain.low <= 0.9 <= c.gain.high
    assert max(safe, missed) <= binom.ppf(0.95, studies, 0.05)
