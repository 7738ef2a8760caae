"""Recommendation, abstention, exclusions, scoring and flip points, each against a count of its own."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planted import change, evidence, lock, unstated
from tunetrial.analysis import costs as costs_of
from tunetrial.analysis import decide, scoring, smaa
from tunetrial.analysis.scoring import Scale
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Measurement
from tunetrial.core.study import Criterion, Hardware

CHEAP = {"step_s": 0.3, "peak_bytes": 2 * 2**30, "artifact_bytes": 3 * 2**20, "latency_s": 0.012}
DEAR = {"step_s": 0.6, "peak_bytes": 4 * 2**30, "artifact_bytes": 48 * 2**20, "latency_s": 0.010}
BOTH = {"full": DEAR, "lora": CHEAP}
NOISY = {"seed_sd": 0.08, "rows": 400, "item_sd": 0.2, "luck": 2}


def weighed(**criteria):
    return {name: Criterion(**criterion) for name, criterion in criteria.items()}


def decided(quality, *, margin=0.05, costs=BOTH, arms=("full", "lora"), study=None, **planted):
    return decide(evidence(lock(arms, margin=margin, **(study or {})), quality, costs=costs, **planted))


# Without criteria.


def test_the_cheaper_of_two_that_are_the_same_is_recommended():
    d = decided({"full": 0.8, "lora": 0.8}, margin=0.1)
    assert d.recommendation == "lora" and d.abstention is None
    assert d.because[0].startswith("lora on mail: SAME (within your margin): accuracy ")
    assert "your margin is 0.1" in d.because[0] and "5 paired seeds and 300 test rows" in d.because[0]
    assert "lora is the cheapest (training time, then peak memory" in d.because[1]
    assert (
        d.because[2]
        == "lora: one training run 30 s (full: 60), peak memory 2 GiB (full: 4), saved artifact 3 MiB (full: 48)."
    )
    assert all(line.endswith(".") and "\n" not in line for line in d.because)


def test_the_reference_is_recommended_where_it_is_the_cheaper():
    d = decided({"full": 0.8, "lora": 0.8}, margin=0.1, costs={"full": CHEAP, "lora": DEAR})
    assert d.recommendation == "full" and d.flips == ()


def test_the_worse_is_not_recommended_however_cheap():
    d = decided({"full": 0.85, "lora": 0.6})
    assert d.recommendation == "full"
    assert "full is the only arm that is shown to be safe." in d.because


def test_the_better_is_recommended_however_dear():
    d = decided({"full": 0.8, "lora": 0.93}, costs={"full": CHEAP, "lora": DEAR})
    assert d.recommendation == "lora"
    (flip,) = d.flips
    assert flip.to == "full" and flip.at > d.verdicts[0].effect > flip.now


def test_the_margin_at_which_it_would_flip_is_where_the_verdict_changes():
    d = decided({"full": 0.8, "lora": 0.8}, margin=0.1)
    (flip,) = d.flips
    assert (flip.what, flip.now, flip.to) == ("margin of mail (accuracy)", 0.1, "full") and 0 < flip.at < 0.1
    assert decided({"full": 0.8, "lora": 0.8}, margin=flip.at * 1.001).recommendation == "lora"
    assert decided({"full": 0.8, "lora": 0.8}, margin=flip.at * 0.999).recommendation is None


def test_an_open_verdict_of_a_cheaper_arm_is_an_abstention_with_a_safe_choice():
    d = decided({"full": 0.8, "lora": 0.8}, margin=0.02, **NOISY)
    c, a = d.verdicts[0], d.abstention
    assert d.recommendation is None and a.safe_choice == "full"
    assert a.reason.startswith("lora is cheaper than full, and its verdict is open: CAN'T TELL YET: accuracy ")
    assert a.next_spend == c.needs and "more seed" in a.next_spend
    assert f"choosing full forgoes at most {c.high:.3f} accuracy against lora" in a.at_worst
    assert f"choosing lora may lose {-c.low:.3f} accuracy" in a.at_worst


def test_rows_are_the_next_spend_where_rows_bind():
    """Every seed of an arm predicts alike but for one row, so more seeds would show nothing new."""
    found = evidence(lock(margin=0.02), {"full": 0.8, "lora": 0.8}, costs=BOTH)
    scores = dict(found.scores)
    for arm in ("full", "lora"):
        finals = found.of(purpose="final", arm=arm)
        for record in finals:
            alike = found.scores[finals[0].trial.id, "test"].prediction_E.copy()
            alike[record.trial.seed] = "c"
            key = record.trial.id, "test"
            scores[key] = replace(scores[key], prediction_E=alike)

    d = decide(replace(unstated(found), scores=scores))
    assert d.recommendation is None and d.verdicts[0].bound_by == "examples"
    assert d.abstention.next_spend.endswith(" more test rows, not more seeds")


def test_an_open_verdict_of_a_dearer_arm_is_no_reason_to_wait():
    d = decided({"full": 0.8, "lora": 0.8}, margin=0.02, costs={"full": CHEAP, "lora": DEAR}, **NOISY)
    assert d.verdicts[0].words == "CAN'T TELL YET" and d.recommendation == "full"


def test_what_was_not_measured_cannot_choose():
    d = decided({"full": 0.8, "lora": 0.8}, margin=0.1, costs=None)
    assert d.recommendation is None and "cannot be told apart by cost" in d.abstention.reason
    assert d.abstention.next_spend.startswith("a probe of every arm") and d.abstention.safe_choice in ("full", "lora")
    assert set(d.costs["full"]) == {"quality"}


def test_costs_of_two_machines_do_not_choose():
    found = evidence(lock(margin=0.1), {"full": 0.8, "lora": 0.8}, costs=BOTH)
    other = {"device": "another"}
    mixed = change(
        found,
        lambda r: (
            r.model_copy(update={"resolved": other}) if (r.trial.purpose, r.trial.arm.name) == ("probe", "lora") else r
        ),
    )
    d = decide(mixed)
    assert d.recommendation is None and "Costs are not compared: the probes' device differs: another, cpu." in d.because


def test_unfair_evidence_of_the_cheaper_arm_abstains_and_says_what_to_mend():
    found = evidence(lock(margin=0.1), {"full": 0.8, "lora": 0.8}, costs=BOTH)
    broken = change(found, lambda r: r.model_copy(update={"token_digest": "x"}) if r.trial.arm.name == "lora" else r)
    d = decide(broken)
    assert d.recommendation is None and d.abstention.safe_choice == "full"
    assert "different token streams" in d.abstention.next_spend


# Who is out.


def test_limits_and_floors_put_arms_out_before_anything_is_weighed():
    d = decided({"full": 0.8, "lora": 0.8}, margin=0.1, study={"limits": {"peak_gib": 1.5}})
    assert d.excluded == {
        "full": "peak_gib 4 is above the limit of 1.5",
        "lora": "peak_gib 2 is above the limit of 1.5",
    }
    assert d.recommendation is None and d.abstention.safe_choice is None and d.pareto == ()
    one_out = decided({"full": 0.8, "lora": 0.8}, margin=0.1, study={"limits": {"peak_gib": 3}})
    assert one_out.recommendation == "lora" and list(one_out.excluded) == ["full"]
    floor = decided({"full": 0.9, "lora": 0.7}, study={"require": {"mail.accuracy": ">= 0.8"}})
    assert floor.recommendation == "full" and floor.excluded["lora"].endswith(" is not >= 0.8")
    unmeasured = decided({"full": 0.8, "lora": 0.8}, study={"limits": {"forgetting_nats": 0.1}})
    assert unmeasured.excluded["full"] == "forgetting_nats is limited to 0.1 and was not measured"


@pytest.mark.parametrize("text", ["1.5", "<= many", "== 3", ""])
def test_a_floor_that_is_no_condition_is_refused(text):
    with pytest.raises(EvidenceError, match="require.mail.accuracy: not a condition"):
        decided({"full": 0.8, "lora": 0.8}, study={"require": {"mail.accuracy": text}})


def test_a_floor_on_another_metric_is_read_from_the_records_and_missing_is_missing():
    d = decided({"full": 0.8, "lora": 0.8}, study={"require": {"mail.mcc": ">= 0.1"}})
    assert d.excluded["full"] == "mail.mcc must be >= 0.1 and was not measured in every final"


def test_an_arm_that_did_not_train_is_out_and_not_beaten():
    d = decided({"full": 0.42, "lora": 0.9})
    assert d.recommendation is None and d.excluded == {"full": "did not train on mail"}
    assert d.abstention.safe_choice == "lora" and "nothing to compare with" in d.abstention.reason
    assert "learning rates at which full trains" in d.abstention.next_spend


def test_a_reference_that_does_not_fit_is_no_dead_end():
    def lost(r):
        if r.trial.arm.name != "full":
            return r
        return r.model_copy(update={"status": "infeasible"}) if r.trial.purpose == "tune" else None

    arms = ("full", "lora", "dora")
    found = evidence(lock(arms), {"full": 0.8, "lora": 0.8, "dora": 0.93}, costs=BOTH | {"dora": DEAR})
    d = decide(change(found, lost))
    assert d.recommendation == "dora"
    assert d.because[0] == "full does not fit on this machine, so the others are compared with lora."


def test_nothing_run_yet_is_an_abstention_not_an_error():
    found = change(evidence(lock(), {"full": 0.8, "lora": 0.8}), lambda r: None)
    d = decide(found)
    assert d.recommendation is None and d.abstention.next_spend == "the finals of the first look"
    assert d.abstention.safe_choice is None and d.fairness == () and d.pareto == ()


def test_what_weakens_the_evidence_is_said():
    found = evidence(lock(tasks=("mail", "news")), {"full": 0.8, "lora": 0.8}, costs=BOTH)
    d = decide(found, test_openings={"mail": 3, "news": 1}, post_hoc=["tasks.mail.margin: was 1, is now 2"])
    text = "\n".join(d.because)
    assert "The test rows of mail have been opened 3 times" in text and "rows of news" not in text
    assert "Changed after results were known: tasks.mail.margin: was 1, is now 2." in text
    assert "lora on news, which does not decide: " in text
    assert d.post_hoc == ("tasks.mail.margin: was 1, is now 2",)
    assert d.study_digest == found.lock.digest and len(d.record_digests) == len(found.records)
    assert d.test_openings == {"mail": 3, "news": 1}
    assert not d.synthetic and d == decide(found, test_openings=d.test_openings, post_hoc=d.post_hoc)


# With criteria.

CRITERIA = weighed(quality={"weight": 1, "worst": 0.5, "best": 1.0}, train_s={"weight": 1, "worst": 100, "best": 0})


def test_scores_are_the_weighted_values_between_the_anchors():
    d = decided({"full": 0.8, "lora": 0.8}, study={"criteria": CRITERIA})
    mean = {r.arm: r.mean for r in d.arms}
    by_hand = {arm: 0.5 * (mean[arm] - 0.5) / 0.5 + 0.5 * (100 - s) / 100 for arm, s in (("full", 60), ("lora", 30))}
    assert f"lora {by_hand['lora']:.3f} leads full {by_hand['full']:.3f}" in d.because[2]
    assert d.recommendation == "lora" and d.because[4].startswith("lora is first in 100 % of draws, and in ")


def test_a_close_score_abstains_and_asks_for_what_would_tell():
    quality = weighed(quality={"weight": 1, "worst": 0.5, "best": 1.0}, train_s={"weight": 0.01, "worst": 100})
    d = decided({"full": 0.8, "lora": 0.8}, margin=0.02, study={"criteria": quality}, **NOISY)
    assert d.recommendation is None and "80 % is asked for" in d.abstention.reason
    assert d.abstention.safe_choice == "full" and "more" in d.abstention.next_spend


def test_a_first_place_that_hangs_on_a_weight_abstains_and_names_it():
    near = weighed(quality={"weight": 0.61, "worst": 0.5, "best": 1.0}, train_s={"weight": 0.39, "worst": 100})
    d = decided({"full": 0.9, "lora": 0.78}, study={"criteria": near}, costs={"full": DEAR, "lora": CHEAP})
    assert "changes by a quarter" in d.abstention.reason and "settle how much" in d.abstention.next_spend


def test_criteria_without_quality_weigh_only_safe_arms():
    d = decided({"full": 0.9, "lora": 0.6}, study={"criteria": weighed(train_s={"weight": 1, "worst": 100})})
    assert d.recommendation == "full"
    assert any(line.startswith("lora is not weighed: WORSE: accuracy") for line in d.because)


def test_absent_measurements_and_anchors_are_said_and_never_zero():
    criteria = CRITERIA | weighed(storage_mib={"weight": 1}, latency_ms={"weight": 1, "worst": 50})
    bare = {k: v for k, v in CHEAP.items() if k != "latency_s"}
    d = decided({"full": 0.8, "lora": 0.8}, study={"criteria": criteria}, costs={"full": DEAR, "lora": bare})
    assert "storage_mib is not weighed: it has no anchor `worst` and no limit." in d.because
    assert "lora is not weighed: latency_ms was not measured." in d.because
    assert d.recommendation == "full" and "latency_ms" not in d.costs["lora"]


def test_costs_are_in_their_units_and_price_is_never_assumed():
    d = decided({"full": 0.8, "lora": 0.8}, study={"hardware": Hardware(usd_per_hour=3.6)})
    own = d.costs["full"]
    assert (own["train_s"].value, own["train_s"].unit) == (pytest.approx(60), "s")
    assert (own["cost_usd"].value, own["cost_usd"].unit) == (pytest.approx(0.06), "USD")
    assert (own["peak_gib"].value, own["storage_mib"].value, own["latency_ms"].value) == (4, 48, pytest.approx(10))
    assert "cost_usd" not in decided({"full": 0.8, "lora": 0.8}).costs["full"]


# Flip points, fronts and draws against counts of their own.

SCALES = (Scale("quality", 0.5, 0.0, 1.0), Scale("train_s", 0.3, 100.0, 0.0), Scale("cost_usd", 0.2, 10.0, 0.0))


def table(seed, arms=3):
    rng = np.random.default_rng(seed)
    spans = {"quality": 1.0, "train_s": 100.0, "cost_usd": 10.0}
    return {f"a{i}": {n: Measurement(value=rng.uniform(0, s), unit="u") for n, s in spans.items()} for i in range(arms)}


def first_by_hand(costs, weights, price=1.0):
    scores = {}
    for arm, own in costs.items():
        total = 0.0
        for scale, weight in zip(SCALES, weights, strict=True):
            x = own[scale.name].value * (price if scale.name == "cost_usd" else 1.0)
            total += weight * min(max((x - scale.worst) / (scale.best - scale.worst), 0), 1)
        scores[arm] = total
    return max(scores, key=scores.get)


@given(st.integers(0, 5000))
def test_weight_flips_are_where_the_first_place_changes(seed):
    costs = table(seed)
    start = [s.weight for s in SCALES]

    def first(j, w):
        return first_by_hand(costs, [w if i == j else x * (1 - w) / (1 - start[j]) for i, x in enumerate(start)])

    names = list(costs)
    flips = smaa.weight_flips(scoring.values(names, SCALES, costs), scoring.weights(SCALES))
    for j in range(len(SCALES)):
        top, at = first(j, start[j]), sorted(f.at for f in flips if f.criterion == j)
        for flip in (f for f in flips if f.criterion == j):
            away = 1 if flip.at > start[j] else -1
            assert first(j, flip.at - away * 1e-6) == top
            if 1e-6 < flip.at < 1 - 1e-6:
                assert first(j, flip.at + away * 1e-6) == names[flip.to]
        inside = [
            w
            for w in np.linspace(0.001, 0.999, 300)
            if (not at or at[0] > start[j] or w > at[0]) and (not at or at[-1] < start[j] or w < at[-1])
        ]
        assert all(first(j, w) == top for w in inside)


@given(st.integers(0, 5000))
def test_price_flips_are_where_the_first_place_changes(seed):
    costs, weights = table(seed), [s.weight for s in SCALES]
    top, names, value = first_by_hand(costs, weights), list(costs), scoring.values(list(costs), SCALES, costs)

    def scores(price):
        usd = np.array([costs[arm]["cost_usd"].value for arm in names]) * price / 2.0
        return value[:, :2] @ scoring.weights(SCALES[:2]) + SCALES[2].weight * SCALES[2].value(usd)

    for flip in scoring.input_flips("price", scores, names, now=2.0, most=200.0, least=0.0):
        away = 1 if flip.at > 2 else -1
        assert first_by_hand(costs, weights, (flip.at + away * 1e-3) / 2) == flip.to
        assert first_by_hand(costs, weights, (flip.at - away * 1e-3) / 2) == top


def test_adding_an_arm_never_reorders_the_others():
    few, many = table(7, 3), table(7, 6)
    assert all(few[arm] == many[arm] for arm in few)
    scores = [
        dict(zip(t, scoring.values(list(t), SCALES, t) @ scoring.weights(SCALES), strict=True)) for t in (few, many)
    ]
    assert {arm: scores[1][arm] for arm in few} == pytest.approx(scores[0])


@given(st.integers(0, 5000), st.booleans())
def test_the_front_holds_exactly_those_that_none_dominates(seed, higher):
    costs = table(seed, 5)
    sign = -1 if higher else 1
    points = {a: (sign * m["quality"].value, m["train_s"].value, m["cost_usd"].value) for a, m in costs.items()}
    front = {
        a
        for a, p in points.items()
        if not any(q != p and all(x <= y for x, y in zip(q, p, strict=True)) for q in points.values())
    }
    assert set(costs_of.pareto(list(costs), costs, higher_is_better=higher)) == front


def test_the_cheapest_goes_by_the_order_and_treats_a_tenth_as_equal():
    def arm(train_s, gib, mib):
        return {n: Measurement(value=v, unit="u") for n, v in zip(costs_of.ORDER, (train_s, gib, mib), strict=True)}

    costs = {"a": arm(10, 5, 1), "b": arm(10.9, 4, 9), "c": arm(11.1, 1, 1)}
    assert costs_of.cheapest(["a", "b", "c"], costs) == "b"
    assert costs_of.cheapest(["a", "c"], costs) == "a"
    assert costs_of.cheapest(["a", "d"], costs | {"d": {}}) is None and costs_of.cheapest(["d"], {"d": {}}) == "d"
