"""What runs forgot beside what they learnt: points, frontiers over rates, and forgetting at equal learning."""

from dataclasses import replace

import numpy as np
import pytest

import planted
from tunetrial import report
from tunetrial.analysis import decide, metrics
from tunetrial.analysis.explained import explained
from tunetrial.analysis.tradeoff import frontiers
from tunetrial.core.evidence import Measurement

RATES = (3e-4, 1e-3, 3e-3)
QUALITY = {"full": 0.8, "lora": 0.8}
SLOPE = {"full": 2.0, "lora": 0.5}


def table(lost):
    """Two texts of 10 and 30 tokens that lost so many nats a token."""
    tokens_E = np.array([10, 30])
    names = {name: np.array(["1", "2"], dtype=object) for name in ("id", "cluster")}
    names["text"] = np.array(["wiki", "wiki"], dtype=object)
    base_E = 3.0 * tokens_E
    numbers = {"base_nats": base_E, "tuned_nats": base_E + lost * tokens_E, "kl": 0.1 * tokens_E}
    return {**names, "tokens": tokens_E, "bytes": 4 * tokens_E, **numbers, "agreed": tokens_E // 2}


def searched(*, slope=SLOPE, seed_sd=0.003, luck=0, arms=("full", "lora"), diverged=(), **study):
    """A search in which every arm learns 0.1, 0.2 and 0.3 above 0.4 at three rates, and forgets its slope times the
    square of that; some runs, by (arm, rate, seed), diverge."""
    held = planted.lock(arms, retention={"wiki": "wiki.txt"}, frontier=True, **study)
    found = planted.evidence(held, dict.fromkeys(arms, 0.8), rows=60)
    rng, tables = np.random.default_rng(luck), {}

    def learn(record):
        trial = record.trial
        if trial.purpose != "tune" or trial.learning_rate not in RATES:
            return record if trial.purpose != "tune" else None
        if (trial.arm.name, trial.learning_rate, trial.seed) in diverged:
            return record.model_copy(update={"status": "diverged", "reason": "loss is NaN", "measurements": {}})
        learnt = 0.1 * (1 + RATES.index(trial.learning_rate)) + rng.normal(0, seed_sd)
        tables[trial.id, "forgetting"] = table(slope[trial.arm.name] * learnt**2 + rng.normal(0, seed_sd / 10))
        value = zero(found) + learnt
        return record.model_copy(
            update={"measurements": {"validation.accuracy": Measurement(value=value, unit="share")}}
        )

    found = planted.change(found, learn)
    tables |= {(r.trial.id, "forgetting"): table(0.05) for r in found.of(purpose="final") if r.trial.arm.name in slope}
    return replace(found, tables=tables)


def zero(found):
    """The accuracy of the most frequent label on validation rows, counted here."""
    rows = found.scores[planted.one(found, "full", 1).trial.id, "validation"].target_E
    return max(np.mean(rows == label) for label in set(rows))


def test_every_run_has_its_point_above_the_best_constant():
    found = searched()
    one = {f.arm: f for f in frontiers(found)}["lora"]
    assert one.above == "the best constant answer" and len(one.points) == 5 + 9
    final = planted.one(found, "lora", 2)
    point = next(p for p in one.points if p.final and p.seed == 2)
    assert point.learnt == pytest.approx(final.measurements["validation.accuracy"].value - zero(found))
    assert point.forgotten == pytest.approx(0.05)


def test_the_untuned_base_is_where_learning_begins_if_it_has_a_score():
    found = searched(arms=("full", "lora", "base"), readout="labels")
    base = planted.one(found, "base", 1).measurements["validation.accuracy"].value
    one = {f.arm: f for f in frontiers(found)}
    assert set(one) == {"full", "lora"} and one["lora"].above == "the untuned base"
    final = planted.one(found, "lora", 1).measurements["validation.accuracy"].value
    assert next(p for p in one["lora"].points if p.final and p.seed == 1).learnt == pytest.approx(final - base)


def test_less_is_better_where_the_metric_falls():
    held = planted.lock(tuple(QUALITY), metric="mae", retention={"wiki": "wiki.txt"})
    found = planted.evidence(held, {"full": 0.4, "lora": 0.4}, rows=60)
    found = replace(found, tables={(r.trial.id, "forgetting"): table(0.1) for r in found.of(purpose="final")})
    rows = found.scores[planted.one(found, "full", 1).trial.id, "validation"].target_E
    constant = np.abs(rows - np.median(rows)).mean()
    value = planted.one(found, "lora", 1).measurements["validation.mae"].value
    one = {f.arm: f for f in frontiers(found)}["lora"]
    assert one.points[0].learnt == pytest.approx(constant - value) and one.line == () and one.equal is None
    assert metrics.find("mae").higher_is_better is False


def test_forgetting_at_equal_learning_is_what_was_planted():
    one = {f.arm: f for f in frontiers(searched())}["lora"]
    assert one.seeds == 3 and one.learning == pytest.approx(0.3, abs=0.02)
    assert one.equal[0] == pytest.approx((0.5 - 2.0) * one.learning**2, abs=0.01)
    assert one.equal[1] < one.equal[0] < one.equal[2] < 0
    # Straight between points at 0, 0.1, 0.2 and 0.3: the trapezoids of 1.5 x^2 over its range.
    assert one.apart[0] == pytest.approx(-1.5 * (0.5 * 0.01 + 0.5 * 0.05 + 0.5 * 0.13) * 0.1 / 0.3, rel=0.1)
    assert one.line[0] == pytest.approx((0, 0), abs=1e-9) and one.line[-1][1] == pytest.approx(0.5 * 0.09, rel=0.1)


def test_a_rate_at_which_a_run_diverged_is_in_no_frontier():
    whole = {f.arm: f for f in frontiers(searched())}["lora"]
    found = searched(diverged={("lora", 3e-3, 902)})
    one = {f.arm: f for f in frontiers(found)}["lora"]
    assert len(one.points) == len(whole.points) - 1 and one.learning == pytest.approx(0.2, abs=0.02)
    assert one.equal[0] == pytest.approx((0.5 - 2.0) * one.learning**2, abs=0.02)


def test_nothing_is_said_where_nothing_was_learnt_or_seeds_are_few():
    all_but_one = {("lora", rate, seed) for rate in RATES for seed in (902, 903)}
    one = {f.arm: f for f in frontiers(searched(diverged=all_but_one))}["lora"]
    assert one.equal is None and one.apart is None and one.learning is None


def test_the_report_draws_it_and_says_how_much_at_equal_learning():
    found = searched()
    decision = decide(found)
    page, text = report.html(found, decision), report.markdown(found, decision)
    assert "Forgotten for what was learnt" in page and "forgotten, nats a token" in page
    assert "where both learnt" in text and "nats a token less than full" in text
    without = decide(replace(found, tables={}))
    assert without.frontiers == () and "Forgotten for what" not in report.html(found, without)


def test_runs_of_the_search_are_known_by_the_texts_and_nothing_else_by_more_than_before():
    held = planted.lock(tuple(QUALITY), retention={"wiki": "wiki.txt"}, frontier=True)
    pins = {"mail": held.data["mail"].model_copy(update={"digests": {"train": "a", "test": "b", "text~wiki": "c"}})}
    held = held.model_copy(update={"data": pins})
    plain = held.model_copy(update={"study": held.study.model_copy(update={"frontier": False})})
    asked = {"learning_rate": 1e-3, "seed": 1}
    for purpose, same in (("tune", False), ("confirm", True), ("probe", True), ("final", True)):
        ids = {lock.trial("lora", "mail", purpose=purpose, **asked).id for lock in (held, plain)}
        assert (len(ids) == 1) == same, purpose


def drifted(*, within, arms=("full", "lora"), seeds=8):
    """Finals whose drift goes with their forgetting within arms, or only because arms differ in both."""
    held = planted.lock(arms, retention={"wiki": "wiki.txt"}, drift=("states",), looks=(seeds,))
    found = planted.evidence(held, dict.fromkeys(arms, 0.8), rows=60, seeds=seeds)
    rng, tables = np.random.default_rng(3), {}
    for record in found.of(purpose="final"):
        of_arm, own, other = 0.3 * (record.trial.arm.name == "full"), *rng.uniform(0, 0.1, 2)
        tables[record.trial.id, "forgetting"] = table(of_arm + own)
        cka = 1 - (of_arm + (own if within else other)) * np.array([0.5, 1.5, np.nan, 9.0])
        layer = np.array([0, 1, 2, 0])
        names = {"source": ["test"] * 4, "pooling": ["mean", "mean", "mean", "last"]}
        columns = {name: np.array(values, dtype=object) for name, values in names.items()}
        numbers = dict.fromkeys(("change", "cosine", "angle", "rsa", "shuffled_mean", "shuffled_sd"), cka)
        tables[record.trial.id, "states"] = {**columns, "layer": layer, "cka": cka, **numbers, "rows": layer + 9}
    return replace(found, tables=tables)


def test_drift_and_forgetting_are_correlated_over_runs_and_within_arms():
    together, apart = (explained(drifted(within=within))[0] for within in (True, False))
    assert together.within[0] > 0.99 and together.within_line[0] == pytest.approx(1)
    assert (together.runs, together.arms, together.source) == (16, ("full", "lora"), "test")
    assert apart.pooled[1] > 0 and apart.within[1] < 0 < apart.within[2]
    found = drifted(within=False)
    decision = decide(found).model_copy(update={"moved": ()})
    said = "arms differ in both, but within arms the one is not shown to go with the other"
    assert said in report.markdown(found, decision) and said in report.html(found, decision)
    assert explained(drifted(within=True, arms=("full", "lora"), seeds=2)) == ()
    assert explained(replace(found, tables={})) == ()
