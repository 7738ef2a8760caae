"""Budgets: a study is made smaller until it fits, refused if it cannot, and stopped when what it may take is spent."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from test_cli import tunetrial
from test_plan import SHAPE, a_lock
from trial_study import load, write_study
from tunetrial import plan, spec
from tunetrial.core.errors import DoesNotFitError
from tunetrial.core.study import Budget, Hardware, Tuning

ALL_STEPS = [  # points, most points, looks: what a budget leaves of the default study, from most to least
    (5, 9, (5, 10)),
    (4, 6, (5, 10)),
    (3, 5, (5, 10)),
    (3, 5, (5,)),
]


def hours(lock) -> float:
    """The most trials at the geometric middle of each trial's range, counted apart from the code under test."""
    tuning, looks = lock.study.tuning, lock.study.looks
    each = plan.timed(lock, SHAPE, plan.Known()).values()
    middle = lambda one: (one.seconds.low * one.seconds.high) ** 0.5  # noqa: E731
    most = tuning.max_points * tuning.seeds
    return sum(most * middle(one.tune) + looks[-1] * middle(one.final) for one in each) / 3600


def sizes(lock):
    return lock.study.tuning.points, lock.study.tuning.max_points, lock.study.looks


def of_size(points, most, looks):
    return a_lock(tuning=Tuning(points=points, max_points=most), looks=looks)


@pytest.mark.parametrize("step", ALL_STEPS)
def test_the_largest_study_that_fits_is_taken_and_its_reductions_are_said(step):
    asked = a_lock(budget=Budget(gpu_hours=hours(of_size(*step)) * 1.0001))
    fitted = plan.fit_budget(asked, SHAPE)
    assert sizes(fitted) == step
    assert plan.reduced(asked.study, fitted.reductions) == fitted.study
    made = plan.preview(fitted, SHAPE)
    assert len(made.reductions) == sum(a != b for a, b in zip(step, ALL_STEPS[0], strict=True))
    assert all(f"reduced: {one}\n" in str(made) for one in made.reductions) and "\nbudget: " in str(made)


def test_money_is_time_at_the_price_and_the_less_of_both_binds():
    study = a_lock(budget=Budget(usd=3, gpu_hours=2), hardware=Hardware(usd_per_hour=2)).study
    assert plan.allowed_s(study) == 1.5 * 3600
    assert plan.allowed_s(a_lock(budget=Budget(usd=9, gpu_hours=2), hardware=Hardware(usd_per_hour=2)).study) == 7200
    assert plan.allowed_s(a_lock().study) is None


def test_a_study_between_its_least_and_its_most_begins_at_its_smallest():
    lock = a_lock(budget=Budget(gpu_hours=hours(of_size(*ALL_STEPS[-1])) / 3))
    assert sizes(plan.fit_budget(lock, SHAPE)) == ALL_STEPS[-1]


def test_what_cannot_end_at_the_highest_speed_is_refused_with_what_it_takes():
    smallest = of_size(*ALL_STEPS[-1])
    each = plan.timed(smallest, SHAPE, plan.Known()).values()
    least = sum((3 + 3 * 2) * one.tune.seconds.low + 5 * one.final.seconds.low for one in each) / 3600
    with pytest.raises(DoesNotFitError, match=r"^budget: the smallest study .* takes at least .* h \(.* USD\) by esti"):
        plan.fit_budget(a_lock(budget=Budget(usd=least * 1.99), hardware=Hardware(usd_per_hour=2)), SHAPE)
    plan.fit_budget(a_lock(budget=Budget(usd=least * 2.01), hardware=Hardware(usd_per_hour=2)), SHAPE)


def test_rates_that_were_listed_are_not_dropped():
    lock = a_lock(budget=Budget(gpu_hours=1e9), tuning=Tuning(learning_rate=(1e-4, 2e-4, 3e-4, 4e-4), points=4))
    small = lock.study.model_copy(update={"budget": Budget(gpu_hours=hours(lock) * 0.3)})
    fitted = plan.fit_budget(lock.model_copy(update={"study": small}), SHAPE)
    assert [r.field for r in fitted.reductions] == ["looks"]


@settings(deadline=None, max_examples=60)
@given(
    points=st.integers(3, 12),
    beyond=st.integers(0, 8),
    looks=st.lists(st.integers(2, 40), min_size=1, max_size=5, unique=True).map(lambda v: tuple(sorted(v))),
    share=st.floats(0.001, 2),
)
def test_no_budget_takes_more_than_the_protocol_can_spare(points, beyond, looks, share):
    tuning = Tuning(points=points, max_points=points + beyond)
    most = hours(a_lock(tuning=tuning, looks=looks))
    try:
        fitted = plan.fit_budget(a_lock(tuning=tuning, looks=looks, budget=Budget(gpu_hours=share * most)), SHAPE)
    except DoesNotFitError:
        return
    study = fitted.study
    assert 3 <= study.tuning.points <= points and study.tuning.points <= study.tuning.max_points <= points + beyond
    assert study.tuning.seeds == tuning.seeds and study.looks == looks[: len(study.looks)] != ()
    if share >= 1:
        assert not fitted.reductions
    if len(study.looks) < len(looks):
        assert study.tuning.points == 3
    if fitted.reductions and hours(fitted) > share * most:
        assert study.tuning.points == 3 and study.looks == looks[:1]


def test_a_study_file_with_a_budget_reads_and_writes_and_needs_a_price_for_dollars():
    text = "base_model: embedded\ntasks: [newsletter]\narms: [full, lora]\nbudget: {gpu_hours: 2, usd: 5}\n"
    study = spec.parse(text + "hardware: {usd_per_hour: 0.8}\n")
    assert study.budget == Budget(gpu_hours=2, usd=5) and spec.parse(spec.write(study)) == study
    with pytest.raises(
        spec.SpecError, match=r"^study.yaml:4: budget.usd: needs a price, got no hardware.usd_per_hour;"
    ):
        spec.parse(text)


def test_a_centre_moves_an_arms_search_alone():
    text = "base_model: embedded\ntasks: [newsletter]\narms: [full, lora]\ntuning: {centres: {lora: 2.0e-4}}\n"
    study = spec.parse(text)
    assert spec.parse(spec.write(study)) == study
    lock = a_lock(tuning=study.tuning)
    assert plan.tuning.grid(lock, "lora")[2] == 2e-4
    assert plan.tuning.grid(lock, "full") == plan.tuning.grid(a_lock(), "full")
    with pytest.raises(spec.SpecError, match="tuning.centres.lore: not an arm, got 'lore'; did you mean 'lora'"):
        spec.parse(text.replace("{lora:", "{lore:"))
    with pytest.raises(spec.SpecError, match="tuning.centres.lora: the rates are listed, so there is no centre"):
        spec.parse(text.replace("2.0e-4}", "2.0e-4}, learning_rate: [1e-4, 2e-4, 3e-4]"))


@pytest.mark.slow
def test_a_study_stops_when_its_budget_is_spent_and_goes_on_with_a_larger_one(tmp_path, monkeypatch):
    """Ten seconds, of which 30 slow steps a trial take one and a half; then as much as it wants."""
    monkeypatch.setenv("TEST_STEP_S", "0.05")
    path = write_study(tmp_path, more="hardware: {usd_per_hour: 3600}\nbudget: {usd: 10}\ntuning: {points: 3}\n")
    path.write_text(path.read_text().replace("tuning: {points: 3, max_points: 5}\n", "", 1))
    stopped = tunetrial("run", path, "--engine", "trial_engines:Slow", home=tmp_path / "home")
    assert stopped.returncode == 4, stopped.stderr
    last = stopped.stderr.splitlines()[-1]
    assert last == (
        f"tunetrial: the budget is spent; what was done is kept: raise the budget in {path} and run again to go on"
    )
    results = tmp_path / "study-results"
    before = sorted(results.glob("trials/*/record.json"))
    assert before, "no trial ended in ten seconds"
    spent = sum(json.loads((results / "spent.json").read_text())["run_s"])
    assert spent < 20 and "budget spent: " in (results / "report.md").read_text()
    path.write_text(path.read_text().replace("budget: {usd: 10}", "budget: {usd: 900}"))
    monkeypatch.setenv("TEST_STEP_S", "0")
    study = load(path, "Slow").run()
    assert study.outcome.status == "done" and set(before) < set(results.glob("trials/*/record.json"))
    decision = study.decide()
    assert spent < decision.spent["usd"].value < 900 and decision.post_hoc == ()
    assert [str(one) for one in study.outcome.evidence.lock.reductions] == [
        "looks: [5, 10] asked, [5] within the budget"
    ]


def test_plan_and_run_refuse_what_cannot_fit_with_status_4(tmp_path):
    path = write_study(tmp_path, more="budget: {gpu_hours: 0.00001}\n")
    for verb in ("plan", "run"):
        ran = tunetrial(verb, path, "--engine", "trial_engines:plain", home=tmp_path)
        assert ran.returncode == 4 and ran.stdout == "" and len(ran.stderr.splitlines()) == 1
        assert ran.stderr.startswith("tunetrial: budget: the smallest study with these arms and tasks takes at least ")
    assert not (tmp_path / "study-results" / "trials").exists()


def test_altered_times_are_refused(tmp_path):
    path = write_study(tmp_path, more="budget: {gpu_hours: 5}\n")
    (tmp_path / "study-results").mkdir()
    (tmp_path / "study-results" / "spent.json").write_text("{}")
    ran = tunetrial("run", path, "--engine", "trial_engines:plain", home=tmp_path)
    assert ran.returncode == 1 and "spent.json: not the times of runs, got 'run_s'; restore it" in ran.stderr
