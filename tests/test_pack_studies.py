"""Whole studies whose trials train together: which do, that they stay so, and what trouble in one costs others."""

from dataclasses import replace

import pytest

import tiny
from test_kill import finished, kill_again_and_again
from trial_study import content, differences, load, write_study
from tunetrial import methods, plan
from tunetrial.analysis.fairness import ledger, obstacles
from tunetrial.core.checkpoint import common_checkpoint
from tunetrial.core.evidence import Measurement
from tunetrial.core.study import Arm, Controls, Trial
from tunetrial.engine.torch_engine import TorchEngine
from tunetrial.store import StudyFolder
from tunetrial.trial.execution import Interrupted, Terms, carry_out

PACKED = {"more": "pack: 3\nreplicates: {looks: [4]}"}


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))


def trial(seed: int = 1, method: str = "lora", purpose: str = "tune", task: str = "mail", **settings) -> Trial:
    arm = Arm(name=method, method=method, settings=methods.settle(method, settings))
    controls = Controls(base_fingerprint="f", precision="fp32")
    at = {"task": task, "data_digest": task, "learning_rate": 1e-3}
    return Trial(arm=arm, controls=controls, seed=seed, purpose=purpose, **at)


def sizes(trials, most=4, **more) -> list[int]:
    return [len(pack) for pack in plan.packs(trials, most=most, **more)]


def test_what_may_train_together_does_as_evenly_as_can_be():
    lora = [trial(seed) for seed in range(9)]
    assert sizes(lora) == [3, 3, 3] and sizes(lora[:5]) == [2, 3] and sizes(lora, most=1) == [1] * 9
    ranks = [trial(1), trial(1, rank=4), trial(1, rank=8, rslora=True), trial(1, targets="q_proj")]
    assert sizes(ranks) == [4]
    assert sizes([trial(1, "qlora"), trial(2, "qlora"), trial(1), trial(2)]) == [2, 2]


@pytest.mark.parametrize(
    "other",
    [
        trial(2, "full"),
        trial(2, "qlora"),
        trial(2, dora=True),
        trial(2, optimizer_bits=8),
        trial(2, purpose="final"),
        trial(2, task="other"),
    ],
    ids=["method", "storage", "dora", "optimiser", "purpose", "task"],
)
def test_what_may_not_train_together_does_not(other):
    assert sizes([trial(1), other]) == [1, 1]


def test_probes_are_alone():
    assert sizes([trial(1, purpose="probe"), trial(2, purpose="probe")]) == [1, 1]


def test_moments_in_8_bits_do_not_pack():
    assert sizes([trial(1, optimizer_bits=8), trial(2, optimizer_bits=8)]) == [1, 1]


def test_a_trial_is_in_one_pack_alone():
    trials = [trial(seed) for seed in range(3)]
    formed = [[t.id for t in trials], [t.id for t in trials[:2]]]
    assert plan.packs(trials, most=4, formed=formed) == (tuple(trials),)


def test_packs_follow_from_the_wave_and_stay_together():
    trials = [trial(seed) for seed in range(6)]
    made = plan.packs(trials, most=4)
    assert made == plan.packs(list(trials), most=4)
    formed = [[t.id for t in pack] for pack in made]
    known = {t.id: t for t in trials}
    again = plan.packs(trials[1:5], most=4, formed=formed, known=known)
    assert again == made  # members with a record train along
    assert plan.packs(trials[3:], most=4, formed=formed, known=known) == made[1:]
    alone = [[t.id] for t in trials]
    assert plan.packs(trials, most=4, formed=alone) == tuple((t,) for t in trials)


@pytest.mark.slow
def test_a_packed_study_finds_what_the_same_study_finds_alone(tmp_path):
    packed = load(write_study(tmp_path / "packed", **PACKED), "plain").run()
    alone = load(write_study(tmp_path / "alone", more="replicates: {looks: [4]}"), "plain").run()
    found, expected = content(packed), content(alone)
    found = {name: one for name, one in found.items() if one["record"]["trial"]["purpose"] != "anchor"}
    together = {one["record"]["resolved"].pop("pack", None) for one in found.values()}
    assert {one["record"]["resolved"].pop("pack", None) for one in expected.values()} == {1, None}
    assert together == {1, 2, 3, None}
    assert differences(found, expected) == []
    for pack in StudyFolder(packed.folder).packs():
        assert 1 < len(pack) <= 3 and {found[name]["record"]["trial"]["arm"]["name"] for name in pack} == {"lora"}
    assert packed.decide().verdicts == alone.decide().verdicts


@pytest.mark.slow
def test_a_packed_study_killed_again_and_again_ends_with_the_same_bytes(tmp_path):
    path = write_study(tmp_path / "study", **PACKED)
    assert kill_again_and_again(path, "Slow", kills=3, longest_s=2.0, step_s=0.01) == 3
    plain = write_study(tmp_path / "plain", **PACKED)
    assert differences(finished(path, "plain"), finished(plain, "plain")) == []
    packs = [sorted(StudyFolder(p.parent / "study-results").packs()) for p in (path, plain)]
    assert packs[0] == packs[1]


@pytest.mark.slow
def test_trouble_of_one_member_costs_the_others_nothing(tmp_path, monkeypatch):
    """A bug and a worker that always dies: their packs are parted, and the rest of them is carried out."""
    monkeypatch.setenv("TEST_MARKS", str(tmp_path))
    arms = ("full", "lora", "buggy", "mortal", "divergent", "huge")
    study = load(write_study(tmp_path / "study", kind="regress", arms=arms, more="pack: 8"), "Troubled").run()
    assert study.outcome.status == "failed"
    assert {label.split()[0] for label in study.outcome.failed} == {"buggy", "mortal"}
    by_arm: dict[str, set[str]] = {}
    for record in study.outcome.evidence.of(purpose="tune"):
        by_arm.setdefault(record.trial.arm.name, set()).add(record.status)
    assert by_arm == {
        "full": {"ok"},
        "lora": {"ok"},
        "mortal": {"ok"},
        "divergent": {"diverged"},
        "huge": {"infeasible"},
    }
    mended = load(tmp_path / "study" / "study.yaml", "plain").run()
    assert mended.outcome.status == "done"


def test_an_arm_trained_in_packs_is_held_against_one_of_its_trials_alone(tmp_path):
    study = load(write_study(tmp_path / "study", **PACKED), "plain").run()
    [anchor] = study.outcome.evidence.of(purpose="anchor")
    finals = study.outcome.evidence.of(purpose="final", arm="lora")
    twin = next(record for record in finals if record.trial.seed == anchor.trial.seed)
    assert (anchor.resolved["pack"], twin.resolved["pack"]) == (1, 2)
    assert anchor.measurements["validation.accuracy"] == twin.measurements["validation.accuracy"]
    assert "test.accuracy" not in anchor.measurements
    [check] = [check for check in study.decide().fairness if check.what == "packed trials are as alone"]
    assert check.holds and "in a pack of 2" in check.found


@pytest.mark.slow
def test_a_pack_that_came_out_otherwise_than_alone_breaks_the_ledger(tmp_path):
    evidence = load(write_study(tmp_path / "study", **PACKED), "plain").run().outcome.evidence
    wrong = Measurement(value=0.1, unit="share")
    records = tuple(
        r.model_copy(update={"measurements": {**r.measurements, "validation.accuracy": wrong}})
        if r.trial.purpose == "anchor"
        else r
        for r in evidence.records
    )
    [check] = [c for c in ledger(replace(evidence, records=records)) if c.what == "packed trials are as alone"]
    assert not check.holds and "0.1 alone" in check.found
    assert [text for text in obstacles(replace(evidence, records=records), "mail", "lora", "full") if "alone" in text]


def test_members_of_a_parted_pack_begin_afresh_alone(tmp_path):
    """Their checkpoints are the pack's, of other shapes and rounding."""
    base = tiny.make_model(tmp_path / "base")
    data = replace(tiny.make_data("classify", rows=48), name="mail")
    pack = [t.model_copy(update={"task": "mail"}) for t in (tiny.make_trial(seed=1), tiny.make_trial(seed=2))]
    store, terms = StudyFolder(tmp_path / "study"), Terms("accuracy", synthetic=False)
    folders = [store.trial(t) for t in pack]
    session = TorchEngine(device="cpu", checkpoint_every_s=0.0).open(base, "fp32")
    with pytest.raises(Interrupted):
        carry_out(pack, data, session, folders, terms=terms, watch=Until(7))
    assert all(common_checkpoint([folder.checkpoint]) for folder in folders)
    for member, folder in zip(pack, folders, strict=True):
        [record] = carry_out([member], data, session, [folder], terms=terms, watch=Until(1000))
        assert record.status == "ok" and record.resolved["pack"] == 1
        assert [step["step"] for step in folder.curve()] == list(range(1, 31))


class Until:
    def __init__(self, step: int):
        self.step = step

    def started(self, facts) -> None:
        pass

    def stepped(self, step) -> None:
        if step.step >= self.step:
            raise Interrupted
