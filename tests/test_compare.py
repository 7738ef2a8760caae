"""From records to results and comparisons: states of arms, pairs, looks, clusters, what stands in the way."""

from dataclasses import replace

import numpy as np
import pytest

from planted import change, evidence, lock, one, unstated
from tunetrial.analysis import compare, extend, metrics, rates, stats
from tunetrial.core.evidence import Measurement
from tunetrial.core.study import Tuning


def verdict(found):
    return compare(found)[1][0]


def state(found, arm, task="mail"):
    return next(r for r in compare(found)[0] if r.arm == arm and r.task == task)


@pytest.mark.parametrize(
    ("lora", "margin", "words"),
    [
        (0.93, 0.05, "BETTER"),
        (0.80, 0.10, "SAME (within your margin)"),
        (0.60, 0.05, "WORSE"),
        (0.80, 0.01, "CAN'T TELL YET"),
    ],
)
def test_planted_differences_are_found(lora, margin, words):
    c = verdict(evidence(lock(margin=margin), {"full": 0.8, "lora": lora}))
    assert (c.words, c.candidate, c.reference, c.metric, c.margin) == (words, "lora", "full", "accuracy", margin)
    assert (c.n_replicates, c.n_examples, c.n_clusters) == (5, 300, 300) and c.low < c.effect < c.high
    assert (c.needs is None) == (words != "CAN'T TELL YET") and c.bound_by in ("seeds", "examples")
    assert c.level == pytest.approx(0.972, abs=1e-3) and "looks at 5, 10 seeds" in c.procedure


@pytest.mark.parametrize(
    ("metric", "margin"), [("accuracy", 0.05), ("macro_f1", 0.05), ("mae", 0.2), ("pearson", 0.05)]
)
def test_the_effect_is_the_turned_difference_of_the_means_shown_and_counted_by_hand(metric, margin):
    quality = {"full": 0.8, "lora": 0.75} if metric in ("accuracy", "macro_f1") else {"full": 1.5, "lora": 1.9}
    found = evidence(lock(metric=metric, margin=margin), quality, per_cluster=3)
    results, (c,) = compare(found)
    means = {r.arm: r.mean for r in results}
    turn = -1 if metric == "mae" else 1
    # Pseudo-values average to the jackknife's bias-corrected metric: equal up to the bias.
    assert c.effect == pytest.approx(
        turn * (means["lora"] - means["full"]), abs=1e-12 if metric in ("accuracy", "mae") else 2e-3
    )
    find = metrics.find(metric)

    def part(arm, seed):
        s = found.scores[one(found, arm, seed).trial.id, "test"]
        return find.contributions(s.target_E, s.prediction_E)

    diff = [
        [np.mean(part("lora", seed)[3 * k : 3 * k + 3] - part("full", seed)[3 * k : 3 * k + 3]) for k in range(100)]
        for seed in range(1, 6)
    ]
    estimate = stats.crossed(np.array(diff))
    assert c.effect == pytest.approx(estimate.effect)
    assert (c.low, c.high) == pytest.approx(estimate.interval(c.level))
    assert c.mde == pytest.approx(stats.detectable_effect(estimate.se, estimate.df, level=c.level))
    assert c.n_clusters == 100


def test_a_pair_is_of_one_seed_so_shuffled_seeds_change_the_interval():
    found = evidence(lock(), {"full": 0.8, "lora": 0.8}, seed_sd=0.1, luck=4)
    order = {1: 2, 2: 3, 3: 4, 4: 5, 5: 1}

    def moved(record):
        if record.trial.purpose != "final" or record.trial.arm.name != "lora":
            return record
        trial = record.trial.model_copy(update={"seed": order[record.trial.seed]})
        scores[trial.id, "test"] = found.scores[record.trial.id, "test"]
        scores[trial.id, "validation"] = found.scores[record.trial.id, "validation"]
        return record.model_copy(update={"trial": trial, "token_digest": f"mail-{trial.seed}"})

    scores = {key: s for key, s in found.scores.items()}
    shuffled = replace(change(found, moved), scores=scores)
    assert verdict(shuffled).effect == pytest.approx(verdict(found).effect)
    assert verdict(shuffled).high != pytest.approx(verdict(found).high)


def with_tuning_luck(found, sd):
    """Tuning scores that differ by seed by so much, an arm."""

    def moved(record):
        name = "validation.accuracy"
        if record.trial.purpose != "tune":
            return record
        luck = sd[record.trial.arm.name] * (record.trial.seed - 902)
        lucky = Measurement(value=record.measurements[name].value + luck, unit="share")
        return record.model_copy(update={"measurements": {name: lucky}})

    return change(found, moved)


def test_the_interval_allows_for_what_tuned_rates_are_expected_to_lose():
    planted = evidence(lock(), {"full": 0.8, "lora": 0.8})
    found = with_tuning_luck(planted, {"full": 0.04, "lora": 0.01})
    exact, c = verdict(planted), verdict(found)
    full, lora = (rates.tuned(found, arm, "mail").expected_regret for arm in ("full", "lora"))
    assert full > lora > 0
    assert (c.effect, c.level) == (exact.effect, exact.level)
    assert (c.low, c.high) == pytest.approx((exact.low - full, exact.high + lora))
    assert c.mde == pytest.approx(exact.mde + full)
    assert c.procedure.endswith(f"are expected to lose: full {full:.2g} (low end), lora {lora:.2g} (high end)")


def test_a_gain_that_tuning_may_have_lost_for_the_reference_is_no_gain():
    planted = evidence(lock(), {"full": 0.8, "lora": 0.9})
    assert verdict(planted).words == "BETTER"
    spoilt = {arm: verdict(with_tuning_luck(planted, {"full": 0.0, "lora": 0.0, arm: 2.0})) for arm in ("full", "lora")}
    assert spoilt["full"].words == "CAN'T TELL YET" and spoilt["lora"].words == "BETTER"
    assert spoilt["full"].needs.startswith("more seeds of tuning")


def test_nothing_is_allowed_where_tuning_cannot_tell_and_that_is_said():
    planted = evidence(lock(), {"full": 0.8, "lora": 0.8})
    found = with_tuning_luck(planted, {"full": 0.04, "lora": 0.01})
    one_seed = change(found, lambda r: None if r.trial.purpose == "tune" and r.trial.seed > 901 else r)
    held = one_seed.lock.model_copy(
        update={"study": one_seed.lock.study.model_copy(update={"tuning": Tuning(seeds=1)})}
    )
    c = verdict(replace(one_seed, lock=held))
    assert (c.low, c.high) == pytest.approx((verdict(planted).low, verdict(planted).high))
    assert c.procedure.endswith("nothing is allowed for the tuning of full and lora")


def test_order_of_records_and_of_scores_does_not_matter():
    found = evidence(lock(("full", "lora", "dora")), {"full": 0.8, "lora": 0.85, "dora": 0.75})
    turned = replace(found, records=found.records[::-1], scores=dict(reversed(found.scores.items())))
    assert compare(found) == compare(turned)


def test_every_task_and_candidate_is_compared_with_one_level_for_the_family():
    held = lock(("full", "lora", "dora"), tasks=("mail", "news"))
    found = compare(evidence(held, {"full": 0.8, "lora": 0.8, "dora": 0.8}))[1]
    assert [(c.task, c.candidate) for c in found] == [(t, a) for t in ("mail", "news") for a in ("lora", "dora")]
    assert [c.level for c in found] == pytest.approx([1 - stats.per_look(0.05 / 4, (5, 10), sides=2)] * 4)


# Arm states.


def test_an_arm_no_better_than_the_majority_did_not_train_and_is_not_compared():
    found = evidence(lock(), {"full": 0.8, "lora": 0.42})
    result, c = state(found, "lora"), verdict(found)
    assert result.state == "did not train" and state(found, "full").state == "trained"
    target = found.scores[one(found, "lora", 1).trial.id, "test"].target_E
    assert result.floor == pytest.approx(np.mean(target == "a"))
    assert c.words == "NOT COMPARABLE" and c.reason.startswith("lora did not train: accuracy 0.")
    assert (c.effect, c.low, c.mde) == (None, None, None)


def test_an_arm_of_which_two_finals_in_five_collapse_did_not_train_and_the_others_are_counted():
    found = unstated(evidence(lock(), {"full": 0.8, "lora": 0.8}))
    scores = dict(found.scores)
    for seed in (2, 4):
        key = one(found, "lora", seed).trial.id, "test"
        scores[key] = replace(scores[key], prediction_E=np.full(300, "a"))
    found = replace(found, scores=scores)
    result, c = state(found, "lora"), verdict(found)
    assert result.state == "did not train" and len(result.values) == 5 and not extend(found)
    assert c.words == "NOT COMPARABLE" and c.reason.endswith(", though 3 of 5 finals alone are")


def test_an_arm_that_only_says_the_constant_did_not_train():
    found = evidence(lock(), {"full": 0.8, "lora": 0.8})
    scores = {
        key: replace(s, prediction_E=np.full(300, "a")) if key[0] in ids_of(found, "lora") else s
        for key, s in found.scores.items()
    }
    assert state(replace(unstated(found), scores=scores), "lora").state == "did not train"


def ids_of(found, arm):
    return {r.trial.id for r in found.of(purpose="final", arm=arm)}


def test_the_reference_that_did_not_train_cannot_be_beaten():
    c = verdict(evidence(lock(), {"full": 0.42, "lora": 0.9}))
    assert c.words == "NOT COMPARABLE" and "full did not train" in c.reason


def test_a_correlation_has_no_floor_but_must_be_above_zero():
    found = evidence(lock(metric="pearson", margin=0.05), {"full": 1.5, "lora": 500.0})
    assert state(found, "full").state == "trained" and state(found, "full").floor is None
    assert state(found, "lora").state == "did not train"


def test_one_diverged_final_counts_as_the_constant():
    whole = evidence(lock(), {"full": 0.85, "lora": 0.85}, diverged={"lora": 1})
    result, c = state(whole, "lora"), verdict(whole)
    assert (result.failed, len(result.values), result.state) == (1, 4, "trained")
    assert result.mean == pytest.approx((sum(result.values.values()) + result.floor) / 5)
    full = state(whole, "full")
    assert c.n_replicates == 5 and c.effect == pytest.approx(result.mean - full.mean)
    assert c.words not in ("BETTER", "SAME (within your margin)")


def test_an_arm_of_which_most_diverged_has_diverged():
    found = evidence(lock(), {"full": 0.85, "lora": 0.85}, diverged={"lora": 3})
    assert state(found, "lora").state == "diverged"
    assert verdict(found).reason == "lora diverged in 3 of 5 finals"
    every = evidence(lock(), {"full": 0.85, "lora": 0.85}, diverged={"lora": 5, "full": 5})
    assert {r.state for r in compare(every)[0]} == {"diverged"}


def test_an_arm_that_diverged_at_every_rate_has_diverged_without_finals():
    def broken(r):
        if r.trial.arm.name != "lora":
            return r
        lost = r.model_copy(update={"status": status, "measurements": {}})
        return lost if r.trial.purpose == "tune" else None

    status = "diverged"
    found = change(evidence(lock(), {"full": 0.8, "lora": 0.8}), broken)
    assert state(found, "lora").state == "diverged" and verdict(found).reason == "lora diverged in every tuning trial"
    status = "ok"
    found = change(evidence(lock(), {"full": 0.8, "lora": 0.8}), broken)
    assert state(found, "lora").state == "did not train"
    assert verdict(found).reason == "lora did not train: no learning rate gave a defined accuracy"


def out_of_memory(found, arm):
    def change_one(r):
        if r.trial.arm.name != arm:
            return r
        return (
            r.model_copy(update={"status": "infeasible", "reason": "9 GiB asked"})
            if r.trial.purpose == "tune"
            else None
        )

    return change(found, change_one)


def test_a_reference_that_does_not_fit_hands_over_to_the_first_that_does():
    held = lock(("full", "lora", "dora"))
    found = out_of_memory(evidence(held, {"full": 0.8, "lora": 0.8, "dora": 0.95}), "full")
    assert state(found, "full").state == "does not fit"
    against = {c.candidate: c for c in compare(found)[1]}
    assert against["dora"].reference == "lora" and against["dora"].words == "BETTER"
    assert against["full"].reason == "full does not fit on this machine: 9 GiB asked"


def test_unfinished_arms_are_pending_and_say_what_they_wait_for():
    found = evidence(lock(), {"full": 0.8, "lora": 0.8})
    waiting = change(found, lambda r: None if r.trial.arm.name == "lora" and r.trial.seed in (4, 5) else r)
    result, c = state(waiting, "lora"), verdict(waiting)
    assert result.state == "pending" and len(result.values) == 3
    assert c.words == "CAN'T TELL YET" and c.reason == "lora has 3 of 5 finals" and c.effect is None
    assert c.needs == "the finals of the first look"
    empty = change(found, lambda r: None)
    assert {r.state for r in compare(empty)[0]} == {"pending"} and compare(empty)[0][0].mean is None
    assert not extend(waiting) and not extend(empty)


# Looks.


def test_a_study_between_looks_says_what_it_said_at_the_first():
    held = lock()
    ten = evidence(held, {"full": 0.8, "lora": 0.8}, seeds=10)
    first, seven = (
        change(ten, lambda r, n=n: r if r.trial.purpose != "final" or r.trial.seed <= n else None) for n in (5, 7)
    )
    assert compare(first) == compare(seven) and verdict(ten).n_replicates == 10
    uneven = change(
        ten, lambda r: None if r.trial.purpose == "final" and r.trial.arm.name == "lora" and r.trial.seed > 8 else r
    )
    assert verdict(uneven) == verdict(first)


def test_more_seeds_are_run_only_if_open_and_bound_by_seeds():
    noisy = evidence(lock(margin=0.02), {"full": 0.8, "lora": 0.8}, seed_sd=0.08, rows=400, item_sd=0.2, luck=2)
    assert verdict(noisy).words == "CAN'T TELL YET" and verdict(noisy).bound_by == "seeds" and extend(noisy)
    assert "more seed" in verdict(noisy).needs
    assert not extend(replace(noisy, lock=lock(margin=0.02, looks=(5,))))
    assert not extend(evidence(lock(margin=0.3), {"full": 0.8, "lora": 0.8}))
    assert not extend(evidence(lock(), {"full": 0.8, "lora": 0.5}, rows=600))


def test_rows_that_bind_are_named_and_stop_the_seeds():
    """Every seed predicts alike, and the arms differ on some rows: seeds cannot help."""
    found = evidence(lock(margin=0.01), {"full": 0.8, "lora": 0.8})
    rng = np.random.default_rng(0)
    target = found.scores[one(found, "full", 1).trial.id, "test"].target_E
    fixed = {arm: np.where(rng.random(300) < 0.8, target, "b") for arm in ("full", "lora")}
    scores = dict(found.scores)
    for arm, prediction in fixed.items():
        for seed in range(1, 6):
            wobble = prediction.copy()
            wobble[seed] = "c"
            key = one(found, arm, seed).trial.id, "test"
            scores[key] = replace(scores[key], prediction_E=wobble)
    found = replace(unstated(found), scores=scores)
    c = verdict(found)
    assert c.words == "CAN'T TELL YET" and c.bound_by == "examples" and not extend(found)
    assert c.needs.startswith("no number of seeds can settle this: about ") and "more test rows" in c.needs


def test_arms_that_predict_alike_leave_nothing_to_judge_by():
    found = evidence(lock(), {"full": 0.8, "lora": 0.8})
    scores = dict(found.scores)
    for seed in range(1, 6):
        scores[one(found, "lora", seed).trial.id, "test"] = scores[one(found, "full", seed).trial.id, "test"]
    c = verdict(replace(unstated(found), scores=scores))
    assert c.words == "CAN'T TELL YET" and "no spread to judge by" in c.reason and c.effect is None
    assert c.needs == "test rows on which the arms differ"


def test_unfair_evidence_is_not_compared_and_named():
    found = evidence(lock(), {"full": 0.8, "lora": 0.8})
    key = (one(found, "lora", 2).trial.id, "test")
    missing = replace(found, scores={k: s for k, s in found.scores.items() if k != key})
    c = verdict(missing)
    assert c.words == "NOT COMPARABLE" and key[0] in c.reason and "missing" in c.reason
    wrong = Measurement(value=0.99, unit="share")
    tampered = change(
        found,
        lambda r: r.model_copy(update={"measurements": {"test.accuracy": wrong}}) if r.trial.id == key[0] else r,
    )
    assert "0.99 is recorded" in verdict(tampered).reason and key[0] in verdict(tampered).reason
