"""The store: what goes in comes out, in the order and under the names that the design gives."""

import dataclasses
import itertools
import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunetrial.core.checkpoint import damaged_checkpoints, newest_checkpoint, save_checkpoint
from tunetrial.core.engine import Step
from tunetrial.core.errors import EvidenceError, IntegrityError, StoreError
from tunetrial.core.evidence import Decision, Measurement, Scores, TrialRecord
from tunetrial.core.study import Arm, DataPin, Lock, Rule, Study, TaskSpec, Trial
from tunetrial.store import StudyFolder, TestLedger, TrialFolder, frames, home, median_replicate, most_kept, surplus
from tunetrial.store.retention import may_be_median

STEPS = 6


def a_lock(**changes) -> Lock:
    task = TaskSpec(name="tickets", kind="classify", metric="accuracy", margin=0.02, input="{{ text }}", target="queue")
    full, lora = Arm(name="full", method="full"), Arm(name="lora", method="lora", settings={"rank": 8})
    study = Study(
        question="Does LoRA do?",
        base_model="embedded",
        tasks=(task,),
        arms=(full, lora),
        reference="full",
        rule=Rule(primary="tickets"),
    )
    pin = DataPin(digests={"train": "a", "validation": "b", "test": "c"}, counts={"train": 9, "test": 3})
    plain = {"study": study, "base_fingerprint": "f", "parameters": 12, "precision": "fp32", "data": {"tickets": pin}}
    return Lock(**plain | changes)


def with_study(lock: Lock, **changes) -> Lock:
    return lock.model_copy(update={"study": lock.study.model_copy(update=changes)})


def a_trial(seed: int = 1, arm: str = "lora", purpose="final", lock: Lock | None = None) -> Trial:
    return (lock or a_lock()).trial(arm, "tickets", learning_rate=1e-3, seed=seed, purpose=purpose)


def a_step(step: int, steps: int = STEPS) -> Step:
    return Step(step=step, steps=steps, loss=1 / step, grad_norm=0.5, learning_rate=1e-3, tokens=64, seconds=0.25)


def some_scores(seed: int = 1) -> dict[str, Scores]:
    rng = np.random.default_rng(seed)
    ids, labels = tuple(f"row-{i}" for i in range(5)), np.array(["bug", "billing", "änderung"])
    return {s: Scores(ids, ids, rng.choice(labels, 5), rng.choice(labels, 5)) for s in ("validation", "test")}


def write_weights(folder: Path) -> None:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "weights.safetensors").write_bytes(bytes(range(256)))
    (folder / "config.json").write_text("{}")


def complete(folder: TrialFolder, trial: Trial, *, artifact: bool = False, **fields) -> TrialRecord:
    folder.begin()
    for step in range(1, STEPS + 1):
        folder.append(a_step(step))
    if artifact:
        folder.save_artifact(write_weights)
    folder.leg(2.0)
    scores = some_scores(trial.seed)
    opened = scores if trial.purpose == "final" else {"validation": scores["validation"]}
    return folder.finish(TrialRecord(**{"trial": trial, "status": "ok"} | fields), opened)


@pytest.fixture
def study(tmp_path) -> StudyFolder:
    folder = StudyFolder(tmp_path / "study")
    folder.write_lock(a_lock())
    return folder


@pytest.fixture
def finished(study) -> TrialFolder:
    complete(study.trial(a_trial()), a_trial(), artifact=True)
    return study.trial(a_trial())


def test_a_complete_trial_has_the_layout_of_the_design_and_no_more(finished):
    names = sorted(p.relative_to(finished.path).as_posix() for p in finished.path.rglob("*") if p.is_file())
    assert names == [
        "artifact/adapter/weights.safetensors",
        "artifact/config.json",
        "artifact/manifest.json",
        "curve.jsonl",
        "manifest.json",
        "record.json",
        "scores.parquet",
    ]
    assert finished.path.name == a_trial().id and finished.path.parent.name == "trials"


def test_finish_returns_what_record_reads(study):
    folder = study.trial(a_trial())
    assert not folder.done
    record = complete(folder, a_trial(), artifact=True, measurements={"steps": Measurement(value=6, unit="steps")})
    assert folder.done and folder.record() == record == study.records()[0]
    assert record.legs_s == (2.0,) and record.attempt == 1
    assert set(record.artifacts) == {"adapter/weights.safetensors", "config.json"}


def test_evidence_holds_records_scores_and_curves(study, finished):
    evidence = study.evidence()
    assert evidence.lock == a_lock() and evidence.records == (finished.record(),)
    for split, scores in some_scores().items():
        assert evidence.scores[a_trial().id, split].digest == scores.digest
    assert [line["step"] for line in evidence.curves[a_trial().id]] == list(range(1, STEPS + 1))
    assert evidence.curves[a_trial().id][1] == dataclasses.asdict(a_step(2))


def test_contributions_lie_beside_the_scores(study):
    folder, record = study.trial(a_trial()), TrialRecord(trial=a_trial(), status="diverged")
    folder.finish(record, some_scores(), {"validation": np.arange(5) / 4})
    table = pd.read_parquet(folder.path / "scores.parquet")
    assert list(table) == ["example_id", "cluster", "split", "prediction", "target", "score"]
    assert table.score[table.split == "validation"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert table.score[table.split == "test"].isna().all()


@pytest.mark.parametrize(
    ("purpose", "splits"), [("tune", ("validation", "test")), ("tune", ()), ("final", ("test",)), ("probe", ("test",))]
)
def test_an_ok_trial_has_scores_of_the_splits_that_its_purpose_opens(study, purpose, splits):
    trial = a_trial(purpose=purpose)
    scores = {split: some_scores()[split] for split in splits}
    with pytest.raises(EvidenceError, match=f"a {purpose} trial has scores of .*; score those and no others"):
        study.trial(trial).finish(TrialRecord(trial=trial, status="ok"), scores)


def test_only_trials_of_the_current_lock_are_evidence(study, finished):
    for changed in (
        with_study(a_lock(), epochs=4),
        a_lock(base_fingerprint="g"),
        a_lock(data={"tickets": DataPin(digests={"train": "z"}, counts={})}),
        with_study(a_lock(), arms=(Arm(name="lora", method="lora", settings={"rank": 4}),)),
        with_study(a_lock(), arms=(Arm(name="full", method="full"),)),
    ):
        study.write_lock(changed)
        assert study.evidence().records == () and len(study.records()) == 1
    study.write_lock(with_study(a_lock(), question="Worded otherwise?"))
    assert len(study.evidence().records) == 1


def test_synthetic_records_never_pass_for_measured_ones(study):
    complete(study.trial(a_trial()), a_trial(), synthetic=True)
    with pytest.raises(EvidenceError, match=f"{a_trial().id}: synthetic record in a study of engine torch; remove"):
        study.evidence()


def test_a_folder_with_results_keeps_its_engine(study, finished):
    with pytest.raises(StoreError, match="has results of engine torch, got sim; use a new folder"):
        study.write_lock(a_lock(engine="sim"))
    assert study.read_lock() == a_lock()


def test_locks_under_which_something_was_found_are_history(study):
    tried = with_study(a_lock(), seed=7)
    study.write_lock(tried)
    assert study.read_locks() == (tried,)  # nothing was found under the first
    complete(study.trial(a_trial()), a_trial())
    study.write_lock(tried)
    study.write_lock(a_lock())
    study.write_lock(tried)
    assert study.read_locks() == (tried, a_lock(), tried) and study.read_lock() == tried


def test_a_missing_study_is_said_to_be_missing(tmp_path):
    with pytest.raises(StoreError, match="no study here, got no study.lock.json"):
        StudyFolder(tmp_path).read_lock()


def test_the_other_files_of_a_study_are_written(study):
    empty = {name: () for name in ("verdicts", "arms", "because", "flips", "pareto", "fairness", "post_hoc")}
    decision = Decision(
        **empty,
        costs={},
        recommendation="lora",
        abstention=None,
        excluded={},
        study_digest=a_lock().digest,
        record_digests={},
        synthetic=False,
    )
    study.write_study("question: Why?\n")
    study.write_plan({"trials": 12})
    study.write_decision(decision)
    study.write_report("report.md", "# Ünd\n")
    assert (study.path / "study.yaml").read_text() == "question: Why?\n"
    assert json.loads((study.path / "plan.json").read_text()) == {"trials": 12}
    assert Decision.model_validate_json((study.path / "decision.json").read_text()) == decision
    assert (study.path / "report.md").read_text(encoding="utf-8") == "# Ünd\n"
    assert [path for path in study.path.iterdir() if path.name.startswith(".")] == []


def test_a_complete_trial_is_neither_begun_nor_finished_again(finished):
    with pytest.raises(StoreError, match="trial is complete; remove the folder"):
        finished.begin()
    with pytest.raises(StoreError, match="trial is complete; remove the folder"):
        finished.finish(TrialRecord(trial=a_trial(), status="ok"), {})


def test_a_record_goes_into_its_own_folder_only(study):
    with pytest.raises(StoreError, match=f"folder of another trial, got the record of {a_trial(2).id}"):
        study.trial(a_trial()).finish(TrialRecord(trial=a_trial(2), status="ok"), {})


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((), "must hold all its steps, got 0"),
        ((1, 2, 3), "must hold all 6 steps, got 3"),
        ((1, 2, 4, 5, 6), "with gaps"),
    ],
)
def test_an_unfinished_curve_is_never_an_ok_trial(study, steps, said):
    folder = study.trial(a_trial())
    folder.begin()
    for step in steps:
        folder.append(a_step(step))
    with pytest.raises(EvidenceError, match=said):
        folder.finish(TrialRecord(trial=a_trial(), status="ok"), some_scores())
    assert not folder.done


def test_a_diverged_trial_keeps_its_curve_and_has_no_scores(study):
    folder = study.trial(a_trial())
    folder.begin()
    folder.append(a_step(1))
    folder.append(dataclasses.replace(a_step(2), grad_norm=math.inf))
    record = folder.finish(TrialRecord(trial=a_trial(), status="diverged", reason="loss is nan"), {})
    assert record.scores_digest is None and folder.scores(record) == {} and record.legs_s == (0.5,)
    assert study.evidence().curves[a_trial().id][1]["grad_norm"] is None


def test_an_infeasible_trial_needs_no_steps(study):
    folder = study.trial(a_trial(purpose="probe"))
    folder.begin()
    folder.finish(TrialRecord(trial=a_trial(purpose="probe"), status="infeasible"), {})
    assert folder.done and folder.curve() == ()


def killed_at(folder: TrialFolder, step: int, checkpoints: tuple[int, ...]) -> None:
    """An attempt that ends after `step`, as a kill leaves it."""
    for one in range(len(folder.curve()) + 1, step + 1):
        folder.append(a_step(one))
        if one in checkpoints:
            save_checkpoint(folder.checkpoint, one, lambda path: (path / "state").write_bytes(b"state"))


def test_a_resumed_trial_has_the_curve_of_an_uninterrupted_one(study, finished):
    trial = a_trial(2)
    folder = study.trial(trial)
    assert folder.begin() == 1
    killed_at(folder, 5, checkpoints=(2, 3))
    with open(folder.path / "curve.jsonl", "ab") as file:
        file.write(b'{"step": 6, "los')  # the kill cut a line short
    assert folder.begin() == 2
    assert len(folder.curve()) == 3
    killed_at(folder, 4, checkpoints=())
    assert folder.begin() == 3
    killed_at(folder, 6, checkpoints=(6,))
    folder.leg(1.0)
    folder.leg(1.5)
    record = folder.finish(TrialRecord(trial=trial, status="ok"), some_scores(2))
    assert record.attempt == 3
    assert record.legs_s == (5 * 0.25, 0.25, 1.5)  # steps that were done twice took their time twice
    assert (folder.path / "curve.jsonl").read_bytes() == (finished.path / "curve.jsonl").read_bytes()
    assert not folder.checkpoint.exists() and folder.done


def test_a_checkpoint_ahead_of_its_curve_is_not_resumed_from(study):
    folder = study.trial(a_trial())
    folder.begin()
    killed_at(folder, 5, checkpoints=(2, 4))
    text = (folder.path / "curve.jsonl").read_bytes()
    (folder.path / "curve.jsonl").write_bytes(text[: text.index(b"\n", len(text) // 2)])  # a power loss took the rest
    folder.begin()
    assert newest_checkpoint(folder.checkpoint)[0] == len(folder.curve()) == 2


def test_dropped_weights_leave_a_valid_trial(study, finished):
    record = finished.record()
    finished.drop_artifact()
    finished.drop_artifact()
    assert not finished.artifact.exists() and finished.record() == record and len(study.evidence().records) == 1
    with pytest.raises(StoreError, match="trial is not complete"):
        study.trial(a_trial(9)).drop_artifact()


def finals(study: StudyFolder, arm: str, values: list[float]) -> list[TrialRecord]:
    records = []
    for seed, value in enumerate(values):
        trial = a_trial(seed, arm=arm)
        measured = {"validation.accuracy": Measurement(value=value, unit="share")}
        records.append(complete(study.trial(trial), trial, artifact=True, measurements=measured))
    return records


def test_retention_keeps_adapters_and_the_median_full_model(study):
    full = finals(study, "full", [0.9, 0.5, 0.7, 0.6, 0.8])
    finals(study, "lora", [0.1, 0.2])
    tune = a_trial(3, purpose="tune")
    complete(study.trial(tune), tune, artifact=True)
    doomed = surplus(study.evidence())
    assert set(doomed) == {full[i].trial.id for i in (0, 1, 3, 4)} | {tune.id}
    study.write_lock(with_study(a_lock(), keep="all"))
    assert surplus(study.evidence()) == ()


def test_weights_that_cannot_become_the_median_go_at_once_and_further_looks_change_nothing(study):
    """Of three of five known, each may yet be the middle one; of four, the lowest and highest may not."""
    full = finals(study, "full", [0.9, 0.5, 0.7])
    assert surplus(study.evidence()) == ()
    fourth = a_trial(3, arm="full")
    measured = {"validation.accuracy": Measurement(value=0.6, unit="share")}
    complete(study.trial(fourth), fourth, artifact=True, measurements=measured)
    assert set(surplus(study.evidence())) == {full[0].trial.id, full[1].trial.id}


@pytest.mark.parametrize("replicates", range(1, 12))
def test_what_may_become_the_median_is_what_some_scores_of_the_others_make_it(replicates):
    """Against every order in which the scores may come, by brute force over ranks."""
    most = 0
    for known in range(1, replicates + 1):
        pending = replicates - known
        found = {
            place
            for more in range(pending + 1)
            for below in itertools.combinations_with_replacement(range(known + 1), more)
            for place in range(known)
            if sum(b <= place for b in below) + place == (known + more - 1) // 2
        }
        kept = {place for place in range(known) if may_be_median(place, known=known, pending=pending)}
        assert kept == found
        most = max(most, len(found))
    assert most_kept(replicates) == most
    assert replicates != 5 or most == 3


def test_the_median_replicate_is_the_lower_middle_one_and_ties_go_by_seed(study):
    full = finals(study, "full", [0.9, 0.5, 0.7, 0.7])
    assert median_replicate(full, "accuracy") == full[2]
    assert median_replicate(full, "macro_f1") is None
    assert median_replicate((), "accuracy") is None


def test_frames_have_a_row_a_record_a_step_and_an_example(study, finished):
    probe = a_trial(purpose="probe")
    study.trial(probe).begin()
    measured = {"latency_s": Measurement(value=0.01, unit="s", n=20)}
    study.trial(probe).finish(TrialRecord(trial=probe, status="ok", measurements=measured), {})
    tables = frames(study.evidence())
    assert len(tables["trials"]) == 2 and len(tables["curves"]) == STEPS and len(tables["scores"]) == 10
    assert tables["trials"].set_index("purpose").latency_s.isna().to_dict() == {"final": True, "probe": False}
    assert set(tables["scores"].arm) == {"lora"} and set(tables["curves"].seed) == {1}


def test_frames_of_no_evidence_have_columns_and_no_rows(study):
    tables = frames(study.evidence())
    assert all(len(table) == 0 and {"trial", "arm", "seed"} <= set(table) for table in tables.values())


text = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
finite = st.floats(allow_nan=False, allow_infinity=False)
fact = st.none() | st.booleans() | st.integers() | finite | text


@st.composite
def records(draw):
    arm = Arm(name="a", method="m", settings=draw(st.dictionaries(text, st.booleans() | st.integers() | finite | text)))
    trial = a_trial(draw(st.integers(0, 2**63))).model_copy(update={"arm": arm})
    measured = st.builds(Measurement, value=finite, unit=text, n=st.none() | st.integers(1, 9))
    return TrialRecord(
        trial=trial,
        status=draw(st.sampled_from(["diverged", "infeasible"])),
        reason=draw(st.none() | text),
        measurements=draw(st.dictionaries(text, measured, max_size=3)),
        resolved=draw(st.dictionaries(text, fact, max_size=3)),
        provenance=draw(st.dictionaries(text, fact, max_size=3)),
    )


@st.composite
def scores(draw):
    value = draw(st.sampled_from([text, finite]))
    splits = {}
    for split in draw(st.sets(st.sampled_from(["validation", "test"]), min_size=1)):
        rows = draw(st.lists(st.tuples(text, text, value, value), min_size=1, max_size=5))
        ids, clusters, targets, predictions = zip(*rows, strict=True)
        dtype = object if value is text else np.float64
        splits[split] = Scores(ids, clusters, np.array(targets, dtype), np.array(predictions, dtype))
    return splits


@settings(max_examples=40)
@given(record=records(), given=scores())
def test_any_record_and_scores_come_back_as_they_went(tmp_path_factory, record, given):
    folder = TrialFolder(tmp_path_factory.mktemp("trials") / record.trial.id)
    kept = folder.finish(record, given)
    assert folder.record() == kept
    assert kept.model_copy(update={"scores_digest": None}) == record
    back = folder.scores(kept)
    assert {split: one.digest for split, one in back.items()} == {split: one.digest for split, one in given.items()}


def test_numbers_of_any_width_have_one_digest(study):
    folder = study.trial(a_trial())
    whole = Scores(("a", "b"), ("a", "b"), np.array([1, 2]), np.array([1.5, 2.5], np.float32))
    kept = folder.finish(TrialRecord(trial=a_trial(), status="diverged"), {"test": whole})
    assert folder.scores(kept)["test"].target_E.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prediction_E": np.array([1.0, math.nan])}, "prediction must be finite, got nan"),
        ({"prediction_E": np.array([1.0])}, "one value for each of 1 or more examples"),
        ({"prediction_E": np.array(["a", "b"])}, "must be of one kind"),
        ({"prediction_E": np.array([None, 1.0])}, "must be labels or numbers"),
        ({"example_id_E": ("a", "\ud800")}, "not valid Unicode"),
    ],
)
def test_malformed_scores_are_refused(study, changes, said):
    plain = {"example_id_E": ("a", "b"), "cluster_E": ("a", "b"), "target_E": np.ones(2), "prediction_E": np.ones(2)}
    folder = study.trial(a_trial())
    with pytest.raises(EvidenceError, match=said):
        folder.finish(TrialRecord(trial=a_trial(), status="diverged"), {"test": Scores(**plain | changes)})
    assert not folder.done


def test_splits_of_two_kinds_and_short_contributions_are_refused(study):
    one, two = Scores(("a",), ("a",), np.ones(1), np.ones(1)), some_scores()["test"]
    record, folder = TrialRecord(trial=a_trial(), status="diverged"), study.trial(a_trial())
    with pytest.raises(EvidenceError, match="one kind for all splits"):
        folder.finish(record, {"validation": one, "test": two})
    with pytest.raises(EvidenceError, match="1 examples, got 2 of score"):
        folder.finish(record, {"test": one}, {"test": np.ones(2)})


def test_the_ledger_counts_by_test_data_and_across_studies(tmp_path):
    ledger = TestLedger(tmp_path / "home")
    assert ledger.count("t1") == 0
    assert [ledger.note("t1", "s1", "look 1"), ledger.note("t1", "s2", "look 1"), ledger.note("t2", "s1", "x")] == [
        1,
        2,
        1,
    ]
    again = TestLedger(tmp_path / "home")
    assert again.count("t1") == 2 and [o.study_digest for o in again.openings("t1")] == ["s1", "s2"]


def test_the_ledger_takes_many_writers_at_once(tmp_path):
    def note(number: int) -> list[int]:
        return [TestLedger(tmp_path).note("t", f"s{number}", f"look {look}") for look in range(10)]

    with ThreadPoolExecutor(8) as pool:
        counts = [count for counts in pool.map(note, range(8)) for count in counts]
    assert sorted(counts) == list(range(1, 81)) and TestLedger(tmp_path).count("t") == 80


def test_a_line_cut_short_is_no_opening_and_spoils_none(tmp_path):
    ledger = TestLedger(tmp_path)
    ledger.note("t", "s", "look 1")
    with open(tmp_path / "test_ledger.jsonl", "ab") as file:
        file.write(b'{"test_digest": "t", ')
    assert ledger.count("t") == 1
    assert ledger.note("t", "s", "look 2") == 2


@pytest.mark.parametrize("line", [b"garbage", b"[]", b'{"test_digest": "t"}', b"\xff"])
def test_a_damaged_ledger_is_named_with_its_line(tmp_path, line):
    TestLedger(tmp_path).note("t", "s", "look 1")
    with open(tmp_path / "test_ledger.jsonl", "ab") as file:
        file.write(line + b"\n")
    with pytest.raises(IntegrityError, match=r"test_ledger.jsonl:2: not a"):
        TestLedger(tmp_path).count("t")


def test_home_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("TUNETRIAL_HOME")
    assert home() == Path.home() / ".tunetrial"


def write_state(path: Path) -> None:
    (path / "state").write_bytes(b"state" * 100)


def test_checkpoints_are_pruned_to_the_newest(tmp_path):
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, write_state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000015"]
    assert newest_checkpoint(tmp_path) == (15, tmp_path / "step-000015")
    save_checkpoint(tmp_path, 12, write_state, keep=1)  # resumed from 10: what came after is another run's
    assert [path.name for path in tmp_path.iterdir()] == ["step-000012"]
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path):
    for step in (5, 10):
        save_checkpoint(tmp_path, step, write_state)
    state = tmp_path / "step-000010" / "state"
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    assert newest_checkpoint(tmp_path) == (5, tmp_path / "step-000005")
    [damage] = damaged_checkpoints(tmp_path)
    assert str(state) in damage and "SHA-256" in damage
    save_checkpoint(tmp_path, 10, write_state)
    assert newest_checkpoint(tmp_path)[0] == 10 and damaged_checkpoints(tmp_path) == ()


def test_a_failed_checkpoint_leaves_the_earlier_ones(tmp_path):
    def fail(path: Path) -> None:
        write_state(path)
        raise RuntimeError("in the engine")

    save_checkpoint(tmp_path, 5, write_state)
    with pytest.raises(RuntimeError, match="in the engine"):
        save_checkpoint(tmp_path, 10, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]


def test_importing_the_store_loads_no_heavy_library():
    code = "import sys, tunetrial.store; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pandas", "pyarrow", "filelock", "pickle5"} & set(loaded)
