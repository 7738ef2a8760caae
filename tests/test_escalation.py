"""Escalation: steps are run while they are worth their price; the next wave depends on the records alone."""

import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest

import escalation as bench
from test_kill import kill_again_and_again
from test_plan import SHAPE
from trial_study import content, differences, load, write_study
from tunetrial import Study, methods, plan
from tunetrial.analysis import decide
from tunetrial.analysis.escalation import SCOUTS, escalated
from tunetrial.core.errors import ConfigError, DoesNotFitError, SpecError, StoreError
from tunetrial.core.evidence import Evidence
from tunetrial.core.prices import Budget, Hardware
from tunetrial.core.strategy import Escalation
from tunetrial.core.study import Arm
from tunetrial.engine.sim import Costs, SimEngine, Truth, World
from tunetrial.plan import next_wave
from tunetrial.report import html, markdown, summary
from tunetrial.spec import to_yaml
from tunetrial.trial import simulated
from tunetrial.trial.conclusion import conclude
from tunetrial.trial.pinning import pin

ROWS = {"train": 64, "validation": 300, "test": 300}
STRATEGY = "strategy: {name: escalate, margin_usd: %s}\nhardware: {usd_per_hour: 3600}\nreplicates: {looks: [3]}\n"


def rank(name: str, of: int) -> Arm:
    return Arm(name=name, method="lora", settings={"rank": of, "alpha": 2.0 * of})


ARMS = (rank("r16", 16), rank("r32", 32), rank("r64", 64), Arm(name="full", method="full"))


def locked(margin_usd: float, *, usd_per_hour: float = 6000.0, arms=ARMS, escalate: bool = True):
    """A study in which a run of twelve steps of 0.05 s costs a dollar."""
    asked = simulated.study(simulated.Planted()).model_copy(
        update={
            "arms": arms,
            "reference": arms[0].name,
            "hardware": Hardware(usd_per_hour=usd_per_hour),
            "strategy": Escalation(steps=tuple(arm.name for arm in arms), margin_usd=margin_usd) if escalate else None,
        }
    )
    return simulated.lock(asked, simulated.task_data("classify", ROWS))


def carried_out(held, gains=None, *, seed=1, **truths):
    """The study's evidence in a world where each arm has so much over 0.8."""
    centre = {arm.name: methods.find(arm).learning_rate_centre(simulated.PARAMETERS) for arm in held.study.arms}
    arms = {
        name: Truth(quality=0.8 + (gains or {}).get(name, 0.0), best_rate=at, **truths.get(name, {}))
        for name, at in centre.items()
    }
    session = SimEngine(World(seed=seed, arms=arms)).open(Path(), "fp32")
    return simulated.carry_out(held, simulated.task_data("classify", ROWS), session)


def of(evidence: Evidence) -> Counter:
    return Counter((r.trial.arm.name, r.trial.purpose) for r in evidence.records)


def states(evidence: Evidence) -> dict[str, str]:
    return {step.arm: step.state for step in escalated(evidence).steps}


@pytest.fixture(scope="module")
def modest():
    """Equal arms, each step far above its worth."""
    return carried_out(locked(margin_usd=1.0))


@pytest.fixture(scope="module")
def climbed():
    """Full fine-tuning gains much and is worth it; ranks gain nothing."""
    return carried_out(locked(margin_usd=300.0), {"full": 0.12, "r32": -0.15})


def test_steps_above_their_worth_are_passed_over_with_the_reason(modest):
    assert states(modest) == {"r16": "run", "r32": "passed over", "r64": "passed over", "full": "passed over"}
    assert {arm for arm, purpose in of(modest) if purpose in ("tune", "final")} == {"r16"}
    reasons = [step.reason for step in escalated(modest).steps]
    assert "even a perfect score would gain" in reasons[1] and "the same at a lower rank" in reasons[2]
    assert of(modest)["r32", "probe"] == 1 and ("r64", "probe") not in of(modest)
    assert ("full", "confirm") not in of(modest)


def test_what_was_not_run_is_said_and_not_compared(modest):
    decision = decide(modest)
    assert decision.recommendation == "r16"
    assert {c.candidate: c.words for c in decision.verdicts} == dict.fromkeys(("r32", "r64", "full"), "NOT COMPARABLE")
    assert all("was not run: " in c.reason for c in decision.verdicts)
    assert {r.arm: r.state for r in decision.arms}["full"] == "not run"
    text = " ".join(decision.because)
    assert "full was not run, because even a perfect score" in text and "No step was of more labels" in text
    assert "Escalation ran r16: full was not run, because" in summary(modest, decision)
    assert len(summary(modest, decision).splitlines()) <= 12


def test_steps_that_pay_are_run_and_a_rank_that_does_not_ends_the_ranks(climbed):
    assert states(climbed) == {"r16": "run", "r32": "passed over", "r64": "passed over", "full": "run"}
    counted = of(climbed)
    assert counted["r32", "confirm"] == SCOUTS and counted["full", "probe"] == 1 and counted["full", "final"] >= 5
    assert decide(climbed).recommendation == "full"


def test_gain_price_and_worth_are_as_counted_by_hand(climbed):
    """Three seeds beside the finals' over the rows that both answered; runs as the arm before took, at the probe's."""
    step = next(one for one in escalated(climbed).steps if one.arm == "r32")
    finals = {r.trial.seed: r for r in climbed.of(purpose="final", arm="r16")}
    scouts = {r.trial.seed: r for r in climbed.of(purpose="confirm", arm="r32")}
    name = "validation.accuracy"
    gains = [scouts[s].measurements[name].value - finals[s].measurements[name].value for s in (1, 2, 3)]
    assert set(scouts) == {1, 2, 3} and step.seeds == 3
    assert step.prospect.gain == pytest.approx(math.fsum(gains) / 3)
    probe = climbed.of(purpose="probe", arm="r32")[0].measurements["step_s"].value
    runs = len(climbed.of(purpose="tune", arm="r16")) + 5
    assert step.prospect.usd == pytest.approx(runs * 12 * probe / 3600 * 6000)
    assert step.prospect.net_usd == pytest.approx(step.prospect.gain * 300 / 0.02 - step.prospect.usd)
    assert step.prospect.high * 300 / 0.02 <= step.prospect.usd and "even its upper end is not worth" in step.reason


def test_runs_of_steps_that_are_weighed_have_the_rate_of_the_arm_before(climbed):
    chosen = plan.chosen_rate(climbed, "r16", "t").value
    assert {r.trial.learning_rate for r in climbed.of(purpose="confirm", arm="r32")} == {chosen}
    centres = [methods.find(arm).learning_rate_centre(simulated.PARAMETERS) for arm in (ARMS[3], ARMS[0])]
    [tried] = {r.trial.learning_rate for r in climbed.of(purpose="confirm", arm="full")}
    assert tried == pytest.approx(chosen * centres[0] / centres[1], rel=0.01)
    assert not any(n.startswith("test") for r in climbed.of(purpose="confirm") for n in r.measurements)


def test_the_next_wave_is_a_function_of_the_records_alone(climbed):
    """Any prefix that ended between waves, in any order, asks for trials of the whole, and leads to it."""
    order = [record.trial.id for record in climbed.records]
    made = {record.trial.id: record for record in climbed.records}
    known, rng = [], random.Random(1)
    while wave := next_wave(Evidence(climbed.lock, tuple(known), dict(climbed.scores), {})):
        ids = [trial.id for trial in wave.trials]
        assert set(ids) <= set(order)
        some = rng.sample(ids, rng.randint(1, len(ids)))
        known += [made[name] for name in some]
        rng.shuffle(known)
    assert {record.trial.id for record in known} == set(order)


def test_arms_that_are_run_have_the_runs_of_the_exhaustive_study(climbed):
    whole = carried_out(locked(300.0, escalate=False), {"full": 0.12, "r32": -0.15})
    kept = ("tune", "final")
    ours = {r.trial.id for r in climbed.records if r.trial.purpose in kept}
    theirs = {r.trial.id for r in whole.records if r.trial.purpose in kept and r.trial.arm.name in ("r16", "full")}
    assert ours <= theirs and {r.trial.id for r in whole.of(purpose="tune", arm="full")} <= ours
    assert len(climbed.records) < len(whole.records)
    levels = [{c.candidate: c.level for c in decide(one).verdicts} for one in (climbed, whole)]
    assert levels[0]["full"] >= 0.97, "the level of one comparison still allows for all three"


def test_a_step_that_does_not_fit_or_diverges_is_passed_over():
    arms = (ARMS[0], ARMS[3])
    for truth, said in (({"fits": False}, "does not fit"), ({"failure": 1.0}, "it diverged when it was tried")):
        found = carried_out(locked(300.0, arms=arms), full=truth)
        step = escalated(found).steps[1]
        assert step.state == "passed over" and said in step.reason
        assert decide(found).recommendation == "r16"


def test_where_the_first_step_fails_the_next_is_run():
    arms = (ARMS[0], ARMS[3])
    found = carried_out(locked(1.0, arms=arms), r16={"failure": 1.0})
    assert states(found) == {"r16": "run", "full": "run"}
    assert "no arm before it came through all its finals" in escalated(found).steps[1].reason


def test_slower_steps_cost_more():
    arms = (ARMS[0], ARMS[3])
    usd = [
        escalated(carried_out(locked(300.0, arms=arms), full={"costs": Costs(step_s=s)})).steps[1].prospect.usd
        for s in (0.05, 0.5)
    ]
    assert usd[1] == pytest.approx(10 * usd[0], rel=1e-6)


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))


def test_a_study_on_disk_stops_says_why_and_goes_on_exhaustively(tmp_path):
    path = write_study(tmp_path, arms=("lora", "full"), more=STRATEGY % 0.001)
    study = load(path, "plain").run()
    made, before = json.loads((study.folder / "plan.json").read_text()), content(study)
    assert study.outcome.status == "done" and len(before) <= made["trials"]["high"]
    assert {trial["arm"]["name"] for trial in made["first_wave"]} == {"lora"}
    evidence, decision = conclude(study.asked, study.folder)
    assert [step.state for step in decision.escalated.steps] == ["run", "passed over"]
    assert "full was not run" in markdown(evidence, decision) and "full was not run" in html(evidence, decision)
    with pytest.raises(StoreError, match="strategy: was .* run the study again"):
        dearer = Escalation(steps=("lora", "full"), margin_usd=9)
        conclude(study.asked.model_copy(update={"strategy": dearer}), study.folder)
    everything = Study.load(path, engine="trial_engines:plain", exhaustive=True).run()
    after = content(everything)
    assert {found["record"]["trial"]["arm"]["name"] for found in after.values()} == {"lora", "full"}
    same = before.keys() & after.keys()
    assert len(same) > 8 and differences({n: after[n] for n in same}, {n: before[n] for n in same}) == []
    _, decision = conclude(study.asked, study.folder)
    assert decision.escalated is None and decision.verdicts[0].effect is not None


@pytest.mark.slow
def test_a_study_killed_while_it_escalates_ends_with_the_same_bytes(tmp_path):
    more = STRATEGY % 1e6
    expected = content(load(write_study(tmp_path / "one", arms=("lora", "full"), more=more), "plain").run())
    path = write_study(tmp_path / "other", arms=("lora", "full"), more=more)
    assert kill_again_and_again(path, "Slow", kills=3, longest_s=8.0, step_s=0.02)
    assert differences(content(load(path, "plain").run()), expected) == []


def test_the_plan_has_bounds_and_a_budget_needs_but_the_first_step():
    held = locked(50.0)
    whole = held.model_copy(update={"study": held.study.exhaustively()})
    counted, without = plan.timing.counts(held), plan.timing.counts(whole)
    first, later = counted["t", "r16"], counted["t", "full"]
    assert first == without["t", "r16"] and later.all.low == 0
    assert later.all.high == without["t", "full"].all.high + 5
    made = str(plan.preview(held, SHAPE))
    assert "steps: r16 first; r32, r64, full if worth their price, weighed by a probe and 3 to 5 runs each" in made
    times = plan.timed(held, SHAPE, plan.Known())
    least = plan.budget.least_s(times, counted)
    assert least < plan.budget.least_s(times, without) / 3
    enough = held.study.model_copy(update={"budget": Budget(gpu_hours=1.01 * least / 3600)})
    assert plan.fit_budget(held.model_copy(update={"study": enough}), SHAPE).study.strategy is not None
    with pytest.raises(DoesNotFitError):
        plan.fit_budget(whole.model_copy(update={"study": enough.exhaustively()}), SHAPE)


def test_study_files_say_it_in_words_and_come_back_whole(tmp_path):
    path = write_study(tmp_path, arms=("lora", "full"), more=STRATEGY % 500)
    study = load(path, "plain").asked
    assert study.strategy == Escalation(steps=("lora", "full"), margin_usd=500) and study.reference == "lora"
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(study))
    assert load(again, "plain").asked == study
    assert study.exhaustively().strategy is None


PRICE = "hardware: {usd_per_hour: 1}\n"


@pytest.mark.parametrize(
    ("arms", "more", "said"),
    [
        (("lora", "full"), "strategy: escalate\n" + PRICE, "got no margin_usd"),
        (("lora", "full"), "strategy: {name: escalate, margin_usd: 5}\n", "got no hardware.usd_per_hour"),
        (("lora", "full"), "strategy: {name: escalate, margin_usd: 0}\n" + PRICE, "margin_usd"),
        (("lora", "full"), "strategy: fast\n" + PRICE, "strategy"),
        (("lora", "full"), "strategy: {name: escalate, margin_usd: 5, steps: [lora, ful]}\n" + PRICE, "not an arm"),
        (("lora", "full"), "strategy: {name: escalate, margin_usd: 5, steps: [lora]}\n" + PRICE, "two or more"),
        (("lora", "full"), "strategy: {name: escalate, margin_usd: 5, steps: [lora, lora]}\n" + PRICE, "two or more"),
        (("lora", "full"), "strategy: {name: escalate, margin_usd: 5, steps: [full, lora]}\n" + PRICE, "first step"),
        (
            ("lora", "full", "more"),
            "strategy: {name: escalate, margin_usd: 5, steps: [lora, full]}\n" + PRICE,
            "got none of 'more'",
        ),
    ],
)
def test_bad_strategies_are_refused_in_one_line(tmp_path, arms, more, said):
    with pytest.raises(SpecError) as caught:
        load(write_study(tmp_path, arms=arms, more=more), "plain")
    assert said in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_the_short_form_takes_the_worth_of_the_ladder(tmp_path):
    more = "strategy: escalate\nladder: {arm: lora, rows: [0.25, 0.5, 1], margin_usd: 50}\n" + PRICE
    assert load(write_study(tmp_path, arms=("lora", "full"), more=more), "plain").asked.strategy.margin_usd == 50


def test_folds_are_refused_at_once(tmp_path):
    path = write_study(tmp_path, arms=("lora", "full"), more=STRATEGY % 50)
    path.write_text(path.read_text().replace("    validation: validation.jsonl\n    test: test.jsonl\n", ""))
    with pytest.raises(ConfigError, match="strategy: mail is cut into folds, got 5; write folds: none, or add rows"):
        pin(load(path, "plain").asked, tmp_path, engine="trial_engines:plain", log=tmp_path / "log")


def test_the_benchmark_counts_both_ways_of_one_world():
    """Where full fine-tuning gains far more than any price, both end there, and weighing it is all that is lost."""
    kind = bench.KINDS["full gains much"]
    data = simulated.task_data("classify", bench.ROWS)
    found = bench.case(kind, 1, data, bench.locks(kind, data))
    assert found["last"] == "full" and found["lost"] == 0.0 and not any(found["false_directions"])
    assert -0.3 < found["saved"] < 1 and found["regret_usd"] <= 20
