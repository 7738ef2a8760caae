"""Learning rates searched for with the base in NF4: which arms, how confirmed, what it lost, and how it is declared."""

import dataclasses
import math

import pytest

import planted
from test_plan import SHAPE, a_lock, add, empty
from trial_study import load, write_study
from tunetrial import methods, plan, report, spec
from tunetrial.analysis import decide, rates
from tunetrial.core.evidence import Evidence
from tunetrial.core.study import Arm, Tuning

SEEDS = (901, 902, 903)
OWN, ON_NF4 = 4e-3, 1.3e-3  # where the two curves are best


def arm(name: str, method: str, **given) -> Arm:
    return Arm(name=name, method=method, settings=methods.settle(method, given))


def with_arms(lock, *arms: Arm, on: str | None = "nf4"):
    study = lock.study.model_copy(update={"arms": arms, "tuning": Tuning(max_points=7, on=on)})
    return lock.model_copy(update={"study": study})


def a_study(**how):
    return with_arms(a_lock(), arm("full", "full"), arm("lora", "lora", rank=8), **how)


def score(trial, best: float = OWN) -> float:
    """Validation accuracy of a run: best at one rate with the base in NF4, at another as it is."""
    top = ON_NF4 if trial.arm.method == "qlora" else best if trial.arm.name == "lora" else 4e-4
    return 0.8 - 0.1 * math.log10(trial.learning_rate / top) ** 2 + 0.001 * (trial.seed % 3)


def searched(lock, answer=score) -> tuple[Evidence, list]:
    """The evidence when the first final is due, and the waves that led there."""
    evidence, waves = empty(lock), []
    while (wave := plan.next_wave(evidence)) and not any(t.purpose == "final" for t in wave.trials):
        waves.append(wave)
        evidence = add(evidence, wave.trials, answer)
    return evidence, waves


def test_arms_with_a_plain_frozen_base_are_tuned_on_nf4_and_no_other():
    arms = (
        arm("full", "full"),
        arm("lora", "lora"),
        arm("dora", "lora", dora=True),
        arm("int8", "lora", base="int8"),
        arm("qlora", "qlora"),
        arm("ia3", "peft", peft_type="IA3"),
    )
    lock = with_arms(a_lock(), *arms)
    for one in arms:
        tune = lock.trial(one.name, "mail", learning_rate=1e-3, seed=901, purpose="tune")
        others = [lock.trial(one.name, "mail", learning_rate=1e-3, seed=1, purpose=p) for p in ("confirm", "final")]
        assert [t.arm for t in others] == [one, one]
        if one.name in ("lora", "dora"):
            assert tune.arm == Arm(name=one.name, method="qlora", settings=one.settings | {"base": "nf4"})
            assert methods.find(tune.arm).storage == "nf4" and methods.find(tune.arm).dora == (one.name == "dora")
        else:
            assert tune.arm == one


def test_a_study_that_does_not_ask_for_it_keeps_its_trials():
    asked = {"learning_rate": 1e-3, "seed": 901, "purpose": "tune"}
    assert a_study(on=None).trial("lora", "mail", **asked).arm == arm("lora", "lora", rank=8)


def test_the_point_found_and_its_neighbours_are_confirmed_with_all_seeds_and_the_rate_chosen_from_them():
    evidence, waves = searched(a_study())
    confirmed = [t for wave in waves for t in wave.trials if t.purpose == "confirm"]
    assert {t.arm.name for t in confirmed} == {"lora"} and {t.seed for t in confirmed} == set(SEEDS)
    tried = sorted({t.learning_rate for t in confirmed})
    grid = sorted({r.trial.learning_rate for r in evidence.of(purpose="tune", arm="lora")})
    near = min(grid, key=lambda rate: abs(math.log(rate / ON_NF4)))
    assert set(tried[:3]) == set(grid[grid.index(near) - 1 : grid.index(near) + 2])
    assert len(confirmed) == 3 * len(tried) <= 15
    rate = plan.chosen_rate(evidence, "lora", "mail")
    assert {p.learning_rate for p in rate.curve} == set(tried) and not rate.at_edge
    assert abs(math.log10(rate.value / OWN)) < 0.05
    assert rate == rates.tuned(evidence, "lora", "mail")


def test_the_regret_is_of_the_confirmed_runs():
    found = rates.confirmation(searched(a_study())[0], "lora", "mail")
    means = {rate: 0.8 - 0.1 * math.log10(rate / OWN) ** 2 for rate in (found.searched, found.best)}
    assert found.regret == pytest.approx(means[found.best] - means[found.searched]) and found.regret > 0.005
    assert found.searched < found.best and found.seeds == 3
    agreeing, _ = searched(a_study(), lambda trial: score(trial, best=ON_NF4))
    found = rates.confirmation(agreeing, "lora", "mail")
    assert (found.regret, found.searched, found.rates) == (0.0, found.best, 3)
    assert rates.confirmation(agreeing, "full", "mail") is None


def test_a_confirmation_that_fails_everywhere_goes_lower_and_then_gives_up():
    evidence, waves = searched(a_study(), lambda t: "diverged" if t.purpose == "confirm" else score(t))
    assert plan.chosen_rate(evidence, "lora", "mail") is None
    assert len({t.learning_rate for wave in waves for t in wave.trials if t.purpose == "confirm"}) == 5
    assert next(a.state for a in decide(evidence).arms if a.arm == "lora") == "diverged"


def test_one_that_fits_in_nf4_alone_does_not_fit():
    evidence, _ = searched(a_study(), lambda t: "infeasible" if t.purpose == "confirm" else score(t))
    wave = plan.next_wave(evidence)
    assert {t.arm.name for t in wave.trials} == {"full"}


def finished() -> Evidence:
    """A planted study whose tuning of lora is as declared, with its confirmation."""
    lock = planted.lock()
    lock = with_arms(lock, arm("full", "full"), arm("lora", "lora"))
    found = planted.evidence(lock, {"full": 0.8, "lora": 0.8})
    extra = []
    for record in found.of(purpose="tune", arm="lora"):
        t = record.trial
        again = lock.trial("lora", "mail", learning_rate=t.learning_rate, seed=t.seed, purpose="confirm")
        if 3e-4 <= t.learning_rate <= 3e-3:
            extra.append(record.model_copy(update={"trial": again}))
    return dataclasses.replace(found, records=(*found.records, *extra))


def test_the_ledger_holds_what_is_declared_and_confirmed_and_nothing_less():
    found = finished()
    decision = decide(found)
    assert all(check.holds for check in decision.fairness), [c for c in decision.fairness if not c.holds]
    [budget] = [c.found for c in decision.fairness if "tuning budget" in c.what]
    assert "lora 5 rates in 15 trials on nf4, as declared, and 9 to confirm" in budget
    assert [c.words for c in decision.verdicts] != ["NOT COMPARABLE"]
    bare = dataclasses.replace(found, records=tuple(r for r in found.records if r.trial.purpose != "confirm"))
    [verdict] = decide(bare).verdicts
    assert verdict.words == "NOT COMPARABLE" and "lora was tuned on nf4 alone" in verdict.reason
    undeclared = with_arms(found.lock, *found.lock.study.arms, on=None)
    [verdict] = decide(dataclasses.replace(found, lock=undeclared)).verdicts
    assert verdict.words == "NOT COMPARABLE" and "its arm differ" in verdict.reason


def test_the_report_shows_the_regret_with_the_curves():
    found = finished()
    decision = decide(found)
    [confirmed] = decision.confirmations
    assert (confirmed.arm, confirmed.searched, confirmed.best, confirmed.regret) == ("lora", 1e-3, 1e-3, 0.0)
    page = report.html(found, decision)
    assert "NF4 chose 1e-3, regret 0" in page and "to confirm: " in page
    said = "it chose 1e-3; in fp32 the best of 3 rates, 3 seeds each, is 1e-3; regret 0"
    assert said in report.markdown(found, decision)


def test_expected_regret_of_the_verdict_is_the_confirmations():
    found = finished()
    assert len(rates.tuned(found, "lora", "mail").curve) == 3 and len(rates.tuned(found, "full", "mail").curve) == 5


def test_a_plan_says_who_is_tuned_how_and_counts_the_confirmation():
    lock, plain = a_study(), a_study(on=None)
    made, before = plan.preview(lock, SHAPE), plan.preview(plain, SHAPE)
    assert "tuned with its base in NF4, then confirmed in fp32: 3 seeds at the rate found" in made.remarks["lora"]
    assert made.remarks["full"] == "tuned as its finals are run: NF4 is for the plain base of lora alone"
    assert (made.trials.low - before.trials.low, made.trials.high - before.trials.high) == (6, 15)
    _, waves = searched(lock)
    trained = sum(len(wave.trials) for wave in waves) + 2 * lock.study.looks[0]
    assert made.trials.low <= trained + 2 <= made.trials.high and before.remarks == {}


def test_a_study_file_declares_it(tmp_path):
    path = write_study(tmp_path)
    text = path.read_text().replace("max_points: 5}", "max_points: 5, on: nf4}")
    path.write_text(text)
    asked = load(path, "plain").asked
    assert asked.tuning.on == "nf4"
    assert spec.parse(spec.to_yaml(asked), "again.yaml", root=tmp_path) == asked
    with pytest.raises(Exception, match=r"tuning.on: no arm has a frozen base in the compute dtype, got 'nf4'; remove"):
        spec.parse(text.replace("method: lora,", "method: qlora,"), "other.yaml", root=tmp_path)


def test_the_search_trains_on_nf4_and_the_confirmation_on_the_plain_base(tmp_path):
    from tiny import make_data, make_model
    from tunetrial.engine.torch_engine import TorchEngine

    base, lock = make_model(tmp_path, hidden=64), a_study()
    session, data = TorchEngine(device="cpu").open(base, "fp32"), make_data("classify", rows=8, validation=2)
    losses = {}
    for purpose, storage in (("tune", "nf4"), ("confirm", "plain")):
        run = session.start(lock.trial("lora", "mail", learning_rate=1e-3, seed=901, purpose=purpose), data)
        assert session.storage == storage
        [step] = run.steps(None, most=1)
        losses[purpose] = step.loss
    assert losses["tune"] != losses["confirm"] == pytest.approx(losses["tune"], rel=0.1)
