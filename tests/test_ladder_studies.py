"""Studies with a ladder: planned, carried out after the first look, resumed, cut for a budget, decided and reported."""

import json
import shutil
from collections import Counter
from dataclasses import dataclass

import pytest

from test_kill import kill_again_and_again
from test_plan import SHAPE, a_lock
from trial_study import content, differences, load, write_study
from tunetrial import Study, methods, plan
from tunetrial.core.errors import ConfigError, StoreError
from tunetrial.core.evidence import Decision
from tunetrial.core.ladder import Ladder
from tunetrial.core.study import Budget
from tunetrial.store import StudyFolder
from tunetrial.trial.conclusion import conclude, post_hoc
from tunetrial.trial.pinning import pin

LADDER = "ladder: {arm: lora, rows: [0.25, 0.5, 1], ranks: [1, 2, 4]%s}\nreplicates: {looks: [3]}\n"
PRICED = "hardware: {usd_per_hour: 3600}\n"
RUNGS = {f"mail@{name}": 3 for name in ("rows=0.25", "rows=0.5", "rank=1", "rank=4")}

LOCK_DIGEST = "0a593d8e4b959eea06ec45922a340c86ebcd3cf7052af5c3d8d32f69bf3ad74e"
FINAL_ID = "d8f5d008b7635ff4"


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))


def finished(path, engine="plain"):
    study = load(path, engine).run()
    assert study.outcome.status == "done", study.outcome.failed
    return study


@dataclass(frozen=True)
class Case:
    """A finished study, what its trials hold, its plan, decision and reports."""

    study: Study
    content: dict[str, dict]
    plan: dict
    decision: Decision
    reports: tuple[str, str]


def case(path) -> Case:
    study = finished(path)
    decision, page = study.decide(), study.report().read_text()
    made = json.loads((study.folder / "plan.json").read_text())
    return Case(study, content(study), made, decision, (page, (study.folder / "report.md").read_text()))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """A study without a ladder, and the same one with a ladder added afterwards."""
    folder = tmp_path_factory.mktemp("climbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNETRIAL_HOME", str(folder / "home"))
        without = case(write_study(folder, more="replicates: {looks: [3]}\n" + PRICED))
        yield without, case(write_study(folder, more=LADDER % ", label_usd: 0.01, margin_usd: 50" + PRICED))


def test_the_ladder_adds_its_runs_and_changes_no_other(cases):
    without, climbed = (one.content for one in cases)
    added = {name: found for name, found in climbed.items() if name not in without}
    assert Counter(found["record"]["trial"]["task"] for found in added.values()) == RUNGS
    assert {name: climbed[name] for name in without} == without
    steps = {}
    for found in added.values():
        trial = found["record"]["trial"]
        assert (trial["purpose"], trial["arm"]["name"]) == ("confirm", "lora")
        assert not any(name.startswith("test") for name in found["record"]["measurements"])
        steps[trial["task"]] = len(found["curve"])
    assert steps == {"mail@rows=0.25": 8, "mail@rows=0.5": 16, "mail@rank=1": 30, "mail@rank=4": 30}


def test_runs_that_were_lost_are_made_again_and_end_the_same(cases):
    climbed = cases[1]
    lost = [name for name in climbed.content if name not in cases[0].content][::5]
    for name in lost:
        shutil.rmtree(climbed.study.folder / "trials" / name)
    assert differences(content(finished(climbed.study.path)), climbed.content) == []


def test_a_ladder_that_is_taken_away_is_left_out(cases):
    climbed = cases[1]
    path = write_study(climbed.study.path.parent, more="replicates: {looks: [3]}\n" + PRICED)
    again = finished(path)
    assert {r.trial.task for r in StudyFolder(again.folder).evidence().records} == {"mail"}
    assert len(content(again)) == len(climbed.content)
    write_study(climbed.study.path.parent, more=LADDER % ", label_usd: 0.01, margin_usd: 50" + PRICED)
    finished(path)


def test_the_decision_holds_what_it_found(cases):
    without, climbed = (one.decision for one in cases)
    found = climbed.outlook
    assert [(one.of, one.sizes) for one in found.ascents] == [("rows", (15, 30, 60)), ("ranks", (1, 2, 4))]
    assert [one.what for one in found.prospects] == ["more labels", "more rank", "full fine-tuning"]
    assert all(one.net_usd is not None for one in found.prospects) and found.best
    assert {(one.task, one.arm) for one in climbed.learned} == {("mail", "full"), ("mail", "lora")}
    assert climbed.verdicts == without.verdicts and climbed.learned == without.learned and without.outlook is None


def test_the_report_shows_it_and_has_no_section_without_a_ladder(cases):
    for one in cases:
        page, text = one.reports
        assert "How soon they learn" in page and "Steps to 90" in page and "steps to 90 %" in text
        assert ("What to spend on next" in page) == ("What to spend on next" in text) == (one is cases[1])
    assert "<title>More rank</title>" in cases[1].reports[0] and "ladder runs: 12; seeds 1" in cases[1].reports[1]


def test_worth_may_change_afterwards_and_rungs_may_not(cases):
    study = cases[1].study
    asked, ladder = study.asked, study.asked.ladder
    dearer = asked.model_copy(update={"ladder": ladder.model_copy(update={"label_usd": 5.0})})
    _, decision = conclude(dearer, study.folder)
    assert decision.post_hoc == () and decision.outlook.prospects[0].usd > 300
    other = asked.model_copy(update={"ladder": ladder.model_copy(update={"margin_usd": 1.0})})
    _, decision = conclude(other, study.folder)
    assert decision.post_hoc == ("ladder.margin_usd: was 50.0, is now 1.0",)
    for changed in ({"arm": "full"}, {"rows": (0.5, 0.75, 1.0)}, {"ranks": ()}):
        with pytest.raises(StoreError, match=f"ladder.{next(iter(changed))}: was .* run the study again"):
            conclude(asked.model_copy(update={"ladder": ladder.model_copy(update=changed)}), study.folder)
    with pytest.raises(StoreError, match="ladder.arm: was lora when trials ran, got None"):
        conclude(asked.model_copy(update={"ladder": None}), study.folder)
    conclude(asked, study.folder)
    assert post_hoc(StudyFolder(study.folder).read_locks()) == ()


@pytest.mark.slow
def test_a_study_killed_while_it_climbs_ends_with_the_same_bytes(cases, tmp_path):
    path = write_study(tmp_path, more="replicates: {looks: [3]}\n" + PRICED)
    finished(path)
    write_study(tmp_path, more=LADDER % ", label_usd: 0.01, margin_usd: 50" + PRICED)
    assert kill_again_and_again(path, "Slow", kills=3, longest_s=8.0, step_s=0.05)
    assert differences(content(finished(path)), cases[1].content) == []


def test_rows_in_folds_are_refused_at_once(tmp_path):
    path = write_study(tmp_path, more=LADDER % "")
    path.write_text(path.read_text().replace("    validation: validation.jsonl\n    test: test.jsonl\n", ""))
    with pytest.raises(ConfigError, match="ladder: mail is cut into folds, got 5; write folds: none, or add rows"):
        pin(load(path, "plain").asked, tmp_path, engine="trial_engines:plain", log=tmp_path / "log")


def a_ladder(**study):
    """A lock with a ladder of ranks, whose arm the search gives a rate."""
    held = a_lock(**study)
    arms = (held.study.arms[0], held.study.arms[1].model_copy(update={"settings": methods.settle("lora", {})}))
    news = {"arms": arms, "ladder": Ladder(arm="lora", ranks=(8, 16, 32))}
    return held.model_copy(update={"study": held.study.model_copy(update=news)})


def test_a_budget_that_does_not_suffice_drops_the_ladder_first():
    plain = a_lock()
    timed, counted = plan.timed(plain, SHAPE, plan.Known()), plan.timing.counts(plain)
    hours = plan.budget.most_s(timed, counted) / 3600
    fitted = plan.fit_budget(a_ladder(budget=Budget(gpu_hours=hours * 1.0001)), SHAPE)
    assert fitted.study.ladder is None and fitted.study.tuning == plain.study.tuning
    assert [str(one) for one in fitted.reductions] == ["ladder: 2 rungs asked, 0 within the budget"]
    enough = plan.fit_budget(a_ladder(budget=Budget(gpu_hours=hours * 2)), SHAPE)
    assert enough.study.ladder is not None and enough.reductions == ()
    less = plan.fit_budget(a_ladder(budget=Budget(gpu_hours=hours * 0.9)), SHAPE)
    assert less.study.ladder is None and len(less.reductions) > 1
    assert plan.reduced(a_ladder().study, less.reductions).ladder is None


def test_the_plan_counts_the_runs_of_the_ladder(tmp_path):
    """Parts of the rows by their steps, ranks as whole runs, each as long as a trial of the search."""
    path = write_study(tmp_path, more=LADDER % "")
    held = pin(load(path, "plain").asked, tmp_path, engine="trial_engines:plain", log=tmp_path / "log").lock
    assert {name: pinned.counts for name, pinned in held.data.items() if "@" in name} == {
        "mail@rows=0.25": {"train": 15, "validation": 40},
        "mail@rows=0.5": {"train": 30, "validation": 40},
    }
    without = held.model_copy(update={"study": held.study.model_copy(update={"ladder": None})})
    counted, one = plan.timing.counts(held)["mail", "lora"], plan.timed(held, SHAPE, plan.Known())["mail", "lora"]
    assert sorted(counted.ladder) == [4 / 15] * 3 + [8 / 15] * 3 + [1.0] * 6
    taken = counted.laddered(one.tune)
    assert taken.train_s.high == pytest.approx((3 * 12 / 15 + 6) * one.tune.train_s.high)
    assert taken.evaluate_s.high == pytest.approx(12 * one.tune.evaluate_s.high)
    made, plain = (plan.preview(lock, SHAPE) for lock in (held, without))
    assert made.seconds.high - plain.seconds.high == pytest.approx(taken.seconds.high)
    assert made.trials.low == plain.trials.low + 12
    said = "ladder: 12 runs of lora after the first look, 3 each with 0.25, 0.5 of its rows and at rank 1, 4"
    assert said in str(made) and "ladder" not in str(plain) + plain.model_dump_json()


def test_without_a_ladder_locks_and_trials_are_as_before():
    """Digests as they were before studies could ask for one."""
    assert a_lock().digest == LOCK_DIGEST
    assert a_lock().trial("lora", "mail", learning_rate=1e-3, seed=1, purpose="final").id == FINAL_ID
