"""Every rule of the ledger holds on honest evidence, and breaks, with the culprit named, when one thing is wrong."""

from dataclasses import replace

import numpy as np
import pytest

from planted import change, evidence, lock, one
from tunetrial.analysis import compare, ledger
from tunetrial.analysis.fairness import RULES, obstacles
from tunetrial.core.study import Arm


@pytest.fixture(scope="module")
def honest():
    costs = {"full": {"step_s": 0.5}, "lora": {"step_s": 0.3}}
    return evidence(lock(), {"full": 0.8, "lora": 0.8}, rows=120, costs=costs)


def edit(found, arm="lora", seeds=(2,), purpose="final", **changes):
    """Change records of one arm; `trial` holds changes of the trial itself, whose scores move with it."""
    asked, scores = changes.pop("trial", {}), dict(found.scores)

    def edited(record):
        t = record.trial
        if (t.arm.name, t.purpose) != (arm, purpose) or (seeds and t.seed not in seeds):
            return record
        trial = t.model_copy(update=asked)
        for split in ("validation", "test"):
            if (t.id, split) in found.scores:
                scores[trial.id, split] = found.scores[t.id, split]
        return record.model_copy(update={**changes, "trial": trial})

    return replace(change(found, edited), scores=scores)


def rescore(found, split, arm="lora", seed=2, **changes):
    key = one(found, arm, seed).trial.id, split
    return replace(found, scores={**found.scores, key: replace(found.scores[key], **changes)})


def unscored(found, split):
    key = one(found, "lora", 2).trial.id, split
    return replace(found, scores={k: s for k, s in found.scores.items() if k != key})


def dropped(found, drop):
    return change(found, lambda r: None if drop(r) else r)


def tuned(r, arm="lora"):
    return r.trial.purpose == "tune" and r.trial.arm.name == arm


BROKEN = {
    "controls": (
        "controls differ",
        lambda e: edit(e, trial={"controls": e.records[0].trial.controls.model_copy(update={"epochs": 9})}),
    ),
    "data": ("data_digest differ", lambda e: edit(e, trial={"data_digest": "other"})),
    "arm settings": (
        "arm differ",
        lambda e: edit(e, trial={"arm": Arm(name="lora", method="lora", settings={"rank": 64})}),
    ),
    "synthetic": ("is synthetic in a measured study", lambda e: edit(e, synthetic=True)),
    "synthetic tuning": ("is synthetic", lambda e: edit(e, seeds=(), purpose="tune", synthetic=True)),
    "measured in a simulation": (
        "is measured in a synthetic study",
        lambda e: replace(e, lock=e.lock.model_copy(update={"engine": "sim"})),
    ),
    "two rates": (
        "lora has finals at 2 learning rates: 0.001, 0.003",
        lambda e: edit(e, trial={"learning_rate": 3e-3}),
    ),
    "a seed twice": ("lora has 2 finals of seed 2", lambda e: edit(e, seeds=(3,), trial={"seed": 2})),
    "seeds of their own": ("seeds are not paired: 1, 2, 3, 4, 5, 11", lambda e: unpaired(e)),
    "other tokens": ("seed 2: the arms trained on different token streams", lambda e: edit(e, token_digest="other")),
    "no tokens": ("seed 2: no digest of the token stream", lambda e: edit(e, token_digest=None)),
    "no test scores": ("are missing", lambda e: unscored(e, "test")),
    "no validation scores": ("are missing", lambda e: unscored(e, "validation")),
    "other examples": (
        "are of other examples",
        lambda e: rescore(e, "test", example_id_E=tuple(f"x{i}" for i in range(120))),
    ),
    "other clusters": ("are of other examples", lambda e: rescore(e, "test", cluster_E=("one",) * 120)),
    "other targets": ("are of other examples", lambda e: rescore(e, "test", target_E=np.full(120, "a"))),
    "short scores": ("are incomplete", lambda e: rescore(e, "test", prediction_E=np.full(7, "a"))),
    "altered predictions": ("its scores give", lambda e: rescore(e, "test", prediction_E=np.full(120, "b"))),
    "threads": (
        "threads differs: 2 (lora, full, lora's tuning, full's tuning), 9 (lora)",
        lambda e: edit(e, resolved={"device": "cpu", "threads": 9}),
    ),
    "an unknown fact": (
        "threads differs: 2 (lora, full, lora's tuning, full's tuning), None (lora)",
        lambda e: edit(e, resolved={"device": "cpu"}),
    ),
    "tuned on another device": (
        "device differs: 'cpu' (lora, full, lora's tuning, full's tuning), 'gpu' (full's tuning)",
        lambda e: edit(e, "full", seeds=(902,), purpose="tune", resolved={"device": "gpu", "threads": 2}),
    ),
    "edge": (
        "lora is best at the edge of the rates it tried, 0.001 to 0.01",
        lambda e: dropped(e, lambda r: tuned(r) and r.trial.learning_rate < 1e-3),
    ),
    "never tuned": ("lora has no tuning trials", lambda e: dropped(e, tuned)),
    "fewer rates": (
        "lora tried 4 rates, the study asks for 5 to 9",
        lambda e: dropped(e, lambda r: tuned(r) and r.trial.learning_rate == 3e-4),
    ),
    "fewer tuning seeds": (
        "lora was tuned on 1 of 3 seeds at 0.001",
        lambda e: dropped(e, lambda r: tuned(r) and r.trial.learning_rate == 1e-3 and r.trial.seed > 901),
    ),
    "tuned on a final's seed": (
        "lora: seed 3 is used for tuning and for a final",
        lambda e: edit(e, seeds=(902,), purpose="tune", trial={"seed": 3}),
    ),
}


def unpaired(found):
    for seed in range(1, 6):
        found = edit(found, seeds=(seed,), trial={"seed": seed + 10})
    return found


def test_honest_evidence_keeps_every_rule(honest):
    checks = ledger(honest)
    assert len(checks) == len(RULES) + 1 and all(check.holds for check in checks)
    assert obstacles(honest, "mail", "lora", "full") == []


@pytest.mark.parametrize("name", BROKEN)
def test_one_thing_wrong_is_found_named_and_ends_the_comparison(honest, name):
    said, damage = BROKEN[name]
    found = damage(honest)
    broken = [check for check in ledger(found) if not check.holds]
    assert any(said in check.found for check in broken), [check.found for check in broken]
    c = compare(found)[1][0]
    assert c.words == "NOT COMPARABLE" and said in c.reason
    assert (c.effect, c.low, c.high) == (None, None, None)


def test_the_trial_at_fault_is_named(honest):
    found = edit(honest, synthetic=True)
    assert one(found, "lora", 2).trial.id in compare(found)[1][0].reason


def test_a_smaller_micro_batch_at_the_same_batch_is_no_difference(honest):
    found = edit(honest, resolved={"device": "cpu", "threads": 2, "micro_batch": 1})
    assert obstacles(found, "mail", "lora", "full") == []


def test_an_arm_without_steps_may_say_what_steps_have_no_word_for():
    held = lock()
    study = held.study.model_copy(update={"arms": (held.study.arm("full"), Arm(name="lora", method="tfidf"))})
    held = held.model_copy(update={"study": study})
    bare = dropped(evidence(held, {"full": 0.8, "lora": 0.8}), tuned)
    for resolved, holds in (({"scikit_learn": "1.9"}, True), ({"device": "cpu"}, True), ({"device": "tpu"}, False)):
        found = edit(bare, seeds=(), resolved=resolved, trial={"learning_rate": None}, token_digest=None)
        said = [text for text in obstacles(found, "mail", "lora", "full") if "differs" in text]
        assert (said == []) == holds, said


def test_a_diverged_final_has_no_tokens_or_scores_to_compare():
    found = evidence(lock(), {"full": 0.8, "lora": 0.8}, rows=120, diverged={"lora": 1})
    assert obstacles(found, "mail", "lora", "full") == []


def test_an_unfinished_study_breaks_no_rule_of_pairs(honest):
    waiting = dropped(honest, lambda r: r.trial.purpose == "final" and r.trial.arm.name == "lora" and r.trial.seed > 3)
    assert all(check.holds for check in ledger(waiting))
    assert ledger(dropped(honest, lambda r: r.trial.purpose != "tune")) == ()


def test_a_broken_pair_leaves_the_other_pairs_alone():
    found = evidence(lock(("full", "lora", "dora")), {"full": 0.8, "lora": 0.8, "dora": 0.8}, rows=120)
    lora, dora = compare(edit(found, token_digest="other"))[1]
    assert lora.words == "NOT COMPARABLE" and dora.effect is not None
    check = next(c for c in ledger(edit(found, token_digest="other")) if not c.holds)
    assert check.found == "mail, lora and full: seed 2: the arms trained on different token streams"


def test_what_was_found_of_several_pairs_alike_is_said_once():
    found = evidence(lock(("full", "lora", "dora")), {"full": 0.8, "lora": 0.8, "dora": 0.8}, rows=120)
    said = {check.what: check.found for check in ledger(found)}
    assert said["measured and simulated trials are not mixed"] == "every comparison: all measured"
    assert said["learning rates lie inside what was searched"].startswith("mail, lora and full: lora 0.001 in")
    broken = next(c for c in ledger(edit(found, "full", token_digest="other")) if not c.holds)
    assert broken.found == "every comparison: seed 2: the arms trained on different token streams"
    missing = next(c for c in ledger(edit(found, "full", token_digest=None)) if not c.holds)
    assert missing.found == "every comparison: seed 2: no digest of the token stream is recorded"


def test_costs_of_two_machines_are_not_compared_but_quality_is(honest):
    found = edit(honest, seeds=(), purpose="probe", resolved={"device": "another"})
    broken = [check for check in ledger(found) if not check.holds]
    assert [c.found for c in broken] == ["the probes' device differs: another, cpu"]
    assert compare(found)[1][0].effect is not None


def test_a_chosen_rate_may_be_an_end_if_the_best_tried_is_not_but_never_beyond():
    for rate, held in ((1e-4, True), (1e-2, True), (5e-5, False), (2e-2, False)):
        found = evidence(lock(), {"full": 0.8, "lora": 0.8}, rows=120, rate=rate)
        assert (obstacles(found, "mail", "lora", "full") == []) == held
