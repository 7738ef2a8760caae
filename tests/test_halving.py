"""Searches whose runs stop at a rung: what is asked for, what goes on, what falls, and what is kept for it."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from test_kill import finished, kill_again_and_again
from test_plan import TOP, a_lock, add, bell, empty, follow, of
from trial_study import differences, load, write_study
from tunetrial import Study, cli, plan, report
from tunetrial.analysis import compare, decide, rates
from tunetrial.core.errors import StoreError
from tunetrial.core.evidence import Measurement, TrialRecord
from tunetrial.core.study import Trial, Tuning
from tunetrial.plan.halving import SHARE
from tunetrial.report import plots, words

SEEDS = [901, 902, 903]


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))


def a_study(**tuning):
    lock = a_lock()
    asked = lock.study.model_copy(update={"tuning": Tuning(exhaustive=False, **tuning)})
    return lock.model_copy(update={"study": asked})


def unfinished(answer, gap=0.2):
    """Answers that lack something at a rung."""
    return lambda trial: answer(trial) - (gap if trial.purpose == "rung" else 0.0)


def test_every_run_of_the_search_stops_at_a_rung_and_the_rate_found_alone_goes_on():
    evidence, waves = follow(a_study(), unfinished(bell(TOP)))
    for arm in ("full", "lora"):
        rungs, ends = of(evidence, "rung", arm), of(evidence, "tune", arm)
        chosen = plan.chosen_rate(evidence, arm, "mail")
        assert sorted(len(seeds) for seeds in rungs.values())[-3:] == [3, 3, 3]
        best = chosen.curve[rates.best_point(chosen.curve)].learning_rate
        around = sorted(rungs, key=lambda rate: abs(math.log(rate / best)))[:3]
        assert ends == {rate: [901] for rate in around} and all(rungs[rate] == SEEDS for rate in around)
        assert set(of(evidence, "final", arm)) == {chosen.value}
        shares = {r.trial.share for r in evidence.of(purpose="rung", arm=arm)}
        assert shares == {SHARE} and {r.trial.share for r in evidence.of(purpose="tune", arm=arm)} == {None}
    assert compare(evidence)[1][0].words != "NOT COMPARABLE"


def test_the_report_draws_rungs_and_says_what_they_saved():
    evidence, _ = follow(a_study(), unfinished(bell(TOP)))
    panel = plots.rate_panels(evidence, {})[0]
    rungs, ends = (evidence.of(purpose=purpose) for purpose in ("rung", "tune"))
    assert len(panel.lines) == 2 and len(panel.marks) == len(rungs) + len(ends)
    assert sum("of its steps" in mark.text for mark in panel.marks) == len(rungs)
    page = report.html(evidence, decide(evidence))
    assert "stopped its runs at a rung" in page and "at rungs: no step is on record" in page
    assert "rung" not in report.summary(evidence, decide(evidence))


def with_curves(evidence, *, steps=32, seconds=0.5, timed=True):
    """The same evidence with every step of the search on record; what goes on from a rung says so."""
    curves, records = {}, []
    for record in evidence.records:
        step = {"steps": steps} | ({"seconds": seconds} if timed else {})
        if record.trial.purpose in ("rung", "tune"):
            curves[record.trial.id] = (step,) * record.trial.stop(steps)
        if record.trial.purpose == "tune":
            taken_up = {"taken_up": Measurement(value=8, unit="steps")}
            record = record.model_copy(update={"measurements": record.measurements | taken_up})
        records.append(record)
    return replace(evidence, records=tuple(records), curves=curves)


def test_the_decision_keeps_what_each_search_saved_and_the_summary_says_it():
    """Of 32 steps a rung has 8: counted by hand over rungs and over those runs that went on."""
    bare, _ = follow(a_study(), unfinished(bell(TOP)))
    evidence = with_curves(bare)
    decision = decide(evidence)
    assert [(one.task, one.arm) for one in decision.searches] == [("mail", "full"), ("mail", "lora")]
    for one in decision.searches:
        rungs, ends = (len(evidence.of(purpose=purpose, arm=one.arm)) for purpose in ("rung", "tune"))
        assert (one.runs, one.steps, one.whole_steps) == (rungs, 8 * rungs + 24 * ends, 32 * rungs)
        assert (one.train_s, one.whole_s) == (one.steps / 2, pytest.approx(one.whole_steps / 2))
    steps, whole = (sum(getattr(one, name) for one in decision.searches) for name in ("steps", "whole_steps"))
    said, share = f"{steps} of the {whole} steps of {whole // 32} runs", f"{100 * (1 - steps / whole):.0f}"
    summary = report.summary(evidence, decision)
    assert f"The search of rates stopped runs at a rung: {said}, {share}{words.THIN}% saved, about " in summary
    assert summary.count("\n") <= 12
    assert said in report.html(evidence, decision) and said in report.markdown(evidence, decision)
    untimed = decide(with_curves(bare, timed=False))
    assert {one.train_s for one in untimed.searches} == {one.whole_s for one in untimed.searches} == {None}
    assert "saved." in report.summary(evidence, untimed) and "of training" not in report.summary(evidence, untimed)


def test_an_exhaustive_study_says_nothing_of_what_a_search_saved():
    evidence = with_curves(follow(a_lock(), bell(TOP))[0])
    decision = decide(evidence)
    assert decision.searches == () and "searches" not in decision.model_dump()
    assert "saved" not in report.summary(evidence, decision)


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_the_switch_overrides_the_file_and_nothing_else_in_it(verb, tmp_path, monkeypatch):
    path, loaded = written(tmp_path / "study"), []
    monkeypatch.setattr(Study, verb, lambda study, **how: loaded.append(study) or study)
    monkeypatch.setattr(cli.study, "_run", lambda study, **how: loaded.append(study))
    for switch in ([], ["--exhaustive"]):
        CliRunner().invoke(cli.app, [verb, str(path), *switch])
    plain, exhaustive = (study.asked for study in loaded)
    assert not plain.tuning.exhaustive and exhaustive.tuning.exhaustive and plain.exhaustively() == exhaustive
    changed = {name for name in type(plain).model_fields if getattr(plain, name) != getattr(exhaustive, name)}
    assert changed == {"tuning"}


def test_a_plan_without_a_study_has_no_search_to_make_exhaustive():
    wrong = CliRunner().invoke(cli.app, ["plan", "--model", "embedded", "--exhaustive"])
    assert wrong.exit_code == 2 and "--exhaustive: not with --model" in wrong.output


def test_a_study_that_does_not_ask_for_it_has_no_rungs_and_keeps_its_digest():
    evidence, _ = follow(a_lock(), bell(TOP))
    assert not evidence.of(purpose="rung")
    assert "exhaustive" not in Tuning().model_dump() and "share" not in evidence.records[0].trial.model_dump()


def test_rungs_ask_for_what_the_exhaustive_search_asks_for_where_curves_are_alike():
    whole, _ = follow(a_lock(), bell(TOP))
    rungs, _ = follow(a_study(), unfinished(bell(TOP)))
    for arm in ("full", "lora"):
        assert of(rungs, "rung", arm) == of(whole, "tune", arm)
        found = [plan.chosen_rate(evidence, arm, "mail").value for evidence in (rungs, whole)]
        assert found[0] == pytest.approx(found[1], rel=0.01)


def late_cliff(above: float, fate=0.3):
    """A run of LoRA's above some rate ends badly, and nothing shows of it at the rung."""
    usual = bell(TOP)

    def answer(trial: Trial):
        lost = trial.arm.name == "lora" and trial.learning_rate > above and trial.purpose != "rung"
        return fate if lost else usual(trial)

    return answer


@pytest.mark.parametrize("fate", [0.3, "diverged", "undefined"])
def test_a_rate_that_does_not_hold_to_the_end_falls_and_all_above_it(fate):
    evidence, _ = follow(a_study(), late_cliff(above=1.5e-3, fate=fate))
    rate = plan.chosen_rate(evidence, "lora", "mail")
    assert rate.value <= 1.5e-3
    ends = of(evidence, "tune", "lora")
    lowest = min(rate for rate, seeds in ends.items() if seeds == SEEDS[:2])
    assert lowest > 1.5e-3
    fallen = [point for point in rate.curve if point.learning_rate >= lowest]
    assert fallen and all(point.mean is None for point in fallen)
    assert plan.chosen_rate(evidence, "full", "mail").value > 0
    assert rates.tuned(evidence, "lora", "mail") == rate
    assert compare(evidence)[1][0].words != "NOT COMPARABLE"


def test_one_run_that_is_lost_late_does_not_make_a_rate_fall():
    usual = bell(TOP)
    answer = lambda trial: 0.3 if (trial.purpose, trial.seed) == ("tune", 901) else usual(trial)  # noqa: E731
    evidence, _ = follow(a_study(), answer)
    assert sorted(of(evidence, "tune", "lora").values()) == [[901], [901], [901, 902]]


def curve_and_ends(shift, *, bend, sd, rng, lock=None):
    """Three seeds at seven rates at a rung; one seed of each at the end, whose best rate is `shift` decades lower."""
    lock, x = lock or a_study(), [0.5 * place for place in range(-3, 4)]
    rungs, ends = [], []
    for place in x:
        for seed in SEEDS:
            value = 0.7 - bend * (place - shift) ** 2 + sd * rng.standard_normal()
            asked = {"learning_rate": rates.rounded(1e-3 * 10**place), "seed": seed}
            measured = {"validation.accuracy": Measurement(value=value, unit="share")}
            rung = lock.trial("lora", "mail", **asked, purpose="rung", share=SHARE)
            rungs.append(TrialRecord(trial=rung, status="ok", measurements=measured))
            if seed == SEEDS[0]:
                value = 0.8 - bend * place**2 + sd * rng.standard_normal()
                measured = {"validation.accuracy": Measurement(value=value, unit="share")}
                trial = lock.trial("lora", "mail", **asked, purpose="tune")
                ends.append(TrialRecord(trial=trial, status="ok", measurements=measured))
    return rates.points({(r.trial.learning_rate, r.trial.seed): r for r in rungs}, "validation.accuracy"), ends


def test_a_best_rate_that_moves_is_followed_as_far_as_curves_show_it():
    """Without noise the shift is known; the formula counted by hand with it."""
    rng = np.random.default_rng(0)
    curve, ends = curve_and_ends(0.2, bend=0.1, sd=1e-6, rng=rng)
    found = rates.at_end(rates.choose(curve), ends, "validation.accuracy")
    assert math.log10(found.value / 1e-3) == pytest.approx(math.log10(rates.choose(curve).value / 1e-3) - 0.2, abs=0.01)
    assert rates.at_end(rates.choose(curve), [], "validation.accuracy").value == rates.choose(curve).value


def test_the_loss_is_half_at_most_and_of_the_size_expected_where_the_best_rate_moves_by_chance():
    rng, lock, lost, without, expected = np.random.default_rng(1), a_study(), [], [], []
    for _ in range(150):
        curve, ends = curve_and_ends(rng.normal(0, 0.3), bend=0.12, sd=0.02, rng=rng, lock=lock)
        chosen = rates.choose(curve)
        found = rates.at_end(chosen, ends, "validation.accuracy")
        if chosen.expected_regret is not None:
            lost.append(0.12 * math.log10(found.value / 1e-3) ** 2)
            without.append(0.12 * math.log10(chosen.value / 1e-3) ** 2)
            expected.append(found.expected_regret)
    assert np.mean(lost) < np.mean(without) / 2
    assert 0.5 < np.mean(expected) / np.mean(lost) < 2


@settings(max_examples=8)
@given(st.randoms(use_true_random=False), st.integers(0, 40))
def test_what_comes_next_does_not_depend_on_which_trials_ended_first(random, cut):
    lock, answer = a_study(), late_cliff(above=1.5e-3)
    evidence = empty(lock)
    for _ in range(4):
        wave = plan.next_wave(evidence)
        if wave is None or any(t.purpose == "final" for t in wave.trials):
            break
        some = random.sample(wave.trials, min(cut % 7, len(wave.trials) - 1))
        left = {t.id for t in wave.trials} - {t.id for t in some}
        assert {t.id for t in plan.next_wave(add(evidence, some, answer)).trials} >= left
        evidence = add(evidence, wave.trials, answer)


def test_a_rung_has_a_share_and_nothing_else_has():
    lock = a_study()
    rung = lock.trial("lora", "mail", learning_rate=1e-3, seed=901, purpose="rung", share=SHARE)
    end = lock.trial("lora", "mail", learning_rate=1e-3, seed=901, purpose="tune")
    assert rung.course == end.course == end.id != rung.id
    assert (rung.stop(10), rung.stop(1), end.stop(10)) == (3, 1, 10)
    for purpose, share in (("rung", None), ("tune", 0.5), ("rung", 1.0)):
        with pytest.raises(ValueError, match="share: a rung has one between 0 and 1"):
            lock.trial("lora", "mail", learning_rate=1e-3, seed=901, purpose=purpose, share=share)


def written(folder):
    path = write_study(folder)
    path.write_text(path.read_text().replace("max_points: 5}", "max_points: 5, exhaustive: false}"))
    return path


@pytest.mark.slow
def test_the_switch_stands_in_the_lock_and_what_is_decided_later_goes_by_that(tmp_path):
    path = written(tmp_path / "study")
    study = Study.load(path, engine="sim", exhaustive=True).run()
    evidence = study.outcome.evidence
    assert evidence.lock.study.tuning.exhaustive and not evidence.of(purpose="rung") and evidence.of(purpose="tune")
    assert Study.load(path, engine="sim").decide().study_digest == evidence.lock.digest
    path.write_text(path.read_text().replace("max_points: 5", "max_points: 6"))
    with pytest.raises(StoreError, match="tuning: was"):
        Study.load(path, engine="sim").decide()


@pytest.mark.slow
def test_a_study_at_rungs_goes_on_from_them_and_keeps_nothing_of_them(tmp_path):
    study = load(written(tmp_path / "study"), "plain").run()
    assert study.outcome.status == "done", study.outcome.failed
    evidence = study.outcome.evidence
    rungs, ends = evidence.of(purpose="rung"), evidence.of(purpose="tune")
    assert rungs and {r.measurements["steps"].value for r in rungs} == {8}
    for end in ends:
        assert end.measurements["taken_up"].value == 8 and end.measurements["steps"].value == 30
        curve = evidence.curves[end.trial.id]
        [rung] = [r for r in rungs if r.trial.course == end.trial.id]
        assert curve[:8] == evidence.curves[rung.trial.id] and [step["step"] for step in curve] == list(range(1, 31))
        cost = rates.search_cost(evidence, end.trial.arm.name, "mail")
        own = [r for r in rungs if r.trial.arm.name == end.trial.arm.name]
        assert (cost.runs, cost.steps, cost.whole_steps) == (len(own), 8 * len(own) + 66, 30 * len(own))
    assert not list((study.folder / "paused").iterdir())
    assert len({r.trial.arm.name for r in ends}) == 2 and len(ends) == 6


@pytest.mark.slow
def test_a_study_at_rungs_killed_again_and_again_ends_with_the_same_bytes(tmp_path):
    path = written(tmp_path / "study")
    struck = kill_again_and_again(path, "Slow", kills=3, longest_s=3.0)
    assert struck == 3, f"the study ended after {struck} kills: slow it down"
    undisturbed = finished(written(tmp_path / "other"), "plain")
    assert differences(finished(path, "plain"), undisturbed) == []
