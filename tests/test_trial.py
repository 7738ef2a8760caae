"""Studies carried out by real worker processes on the simulator, and what befalls them."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trial_study import content, differences, load, write_study
from tunetrial import Study
from tunetrial.core.errors import DataError, StoreError, TunetrialError
from tunetrial.models import EMBEDDED
from tunetrial.store import StudyFolder, TestLedger
from tunetrial.trial.pinning import pin
from tunetrial.trial.pool import cores

HERE = Path(__file__).parent
MOST_KEPT: list[int] = []


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A study that was carried out to its end, by an engine that fails if a seal is broken."""
    folder = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNETRIAL_HOME", str(folder / "home"))
        study = load(write_study(folder), "Sealed")
        MOST_KEPT.append(0)
        yield study.run(tell=lambda progress: MOST_KEPT.append(max(MOST_KEPT[-1], full_artifacts(study))))


def full_artifacts(study) -> int:
    """How many full models lie in the study's folder now."""
    found = 0
    for path in study.folder.glob("trials/*/artifact/artifact.json"):
        with contextlib.suppress(FileNotFoundError):  # it is being dropped
            found += json.loads(path.read_text())["trial"]["arm"]["name"] == "full"
    return found


def records(study, purpose):
    return study.outcome.evidence.of(purpose=purpose)


def test_a_study_is_carried_out_to_its_end(done):
    assert done.outcome.status == "done" and done.outcome.failed == {}
    assert {r.trial.arm.name for r in records(done, "final")} == {"full", "lora"}
    assert len(records(done, "final")) in (10, 20) and len(records(done, "probe")) == 2
    assert all(record.synthetic for record in done.outcome.evidence.records)


def test_the_test_split_is_handed_to_finals_alone(done):
    """`Sealed` raises in the worker otherwise; here that finals, and only they, have scores on it."""
    scored = {
        (record.trial.purpose, split) for record in done.outcome.evidence.records for split in _splits(done, record)
    }
    assert scored == {("tune", "validation"), ("final", "validation"), ("final", "test")}


def _splits(study, record):
    return [split for name, split in study.outcome.evidence.scores if name == record.trial.id]


def test_a_probe_has_a_fresh_worker_with_every_core(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_MARKS", str(tmp_path))
    load(write_study(tmp_path / "study"), "Signed").run()
    probes, trials = ([line.split() for line in (tmp_path / w).read_text().splitlines()] for w in ("probe", "trial"))
    assert len(probes) == len({process for process, _ in probes}) == 2
    assert {threads for _, threads in probes} == {str(cores())} and {threads for _, threads in trials} == {"1"}
    assert not {process for process, _ in probes} & {process for process, _ in trials}


def test_what_cannot_come_through_ends_before_the_first_trial(tmp_path):
    study = load(write_study(tmp_path, arms=("full", "lora")), "Unsaved")
    with pytest.raises(TunetrialError, match="preflight: lora on mail: .*artifact is not what was trained"):
        study.run()
    assert not list(study.folder.glob("trials/*")) and not (study.folder / ".preflight.tmp").exists()


def test_records_say_what_was_measured_and_how(done):
    final = records(done, "final")[0]
    assert {"train.loss", "tokens", "steps", "train_s", "evaluate_s", "artifact_bytes"} <= set(final.measurements)
    assert {"validation.accuracy", "test.accuracy", "test.macro_f1"} <= set(final.measurements)
    assert final.resolved["micro_batch"] == 4 and "python" in final.provenance
    curve = done.outcome.evidence.curves[final.trial.id]
    assert [step["step"] for step in curve] == list(range(1, 31))
    last = [step["loss"] for step in curve[-3:]]
    assert final.measurements["train.loss"].value == pytest.approx(sum(last) / 3)
    assert final.measurements["train_s"].value == pytest.approx(sum(step["seconds"] for step in curve))


def test_scores_of_a_record_are_those_of_its_metric(done):
    final = records(done, "final")[0]
    scores = done.outcome.evidence.scores[final.trial.id, "test"]
    right = sum(t == p for t, p in zip(scores.target_E, scores.prediction_E, strict=True)) / 50
    assert final.measurements["test.accuracy"].value == pytest.approx(right)


def test_a_tuning_record_holds_nothing_of_the_test_split_and_no_weights(done):
    for record in records(done, "tune"):
        assert not [name for name in record.measurements if name.startswith("test.")]
        assert record.artifacts == {} and "artifact_bytes" not in record.measurements


def test_full_weights_are_kept_for_the_median_of_the_first_look_alone_and_adapters_for_all(done):
    store = StudyFolder(done.folder)
    finals = {arm: [r for r in records(done, "final") if r.trial.arm.name == arm] for arm in ("full", "lora")}
    kept = {arm: [r for r in ran if store.trial(r.trial).artifact.exists()] for arm, ran in finals.items()}
    values = sorted(r.measurements["validation.accuracy"].value for r in finals["full"] if r.trial.seed <= 5)
    assert [r.measurements["validation.accuracy"].value for r in kept["full"]] == [values[2]]
    assert kept["lora"] == finals["lora"]
    workers = json.loads((done.folder / "plan.json").read_text())["workers"]
    assert 1 <= MOST_KEPT[-1] <= 3 + workers, "of five replicates three may at one time yet become the median"


def test_a_second_run_repeats_nothing(done, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(done.folder.parent / "home"))
    before = {path: path.stat().st_mtime_ns for path in done.folder.glob("trials/*/*")}
    again = load(done.path, "Sealed").run()
    assert again.outcome.status == "done"
    assert {path: path.stat().st_mtime_ns for path in done.folder.glob("trials/*/*")} == before


@pytest.mark.slow
def test_a_study_begun_elsewhere_is_packed_moved_and_finished_with_the_same_bytes(done, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(done.path.parent, half)
    for number, trial in enumerate(sorted((half / "study-results/trials").iterdir())):
        if number % 2:
            shutil.rmtree(trial)
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", half)
    shutil.rmtree(half)
    shutil.unpack_archive(packed, tmp_path / "elsewhere")
    moved = load(tmp_path / "elsewhere" / "study.yaml", "Sealed").run()
    assert moved.outcome.status == "done"
    assert not differences(content(moved), content(done))
    assert [v.words for v in moved.decide().verdicts] == [v.words for v in done.decide().verdicts]


def test_each_look_at_the_test_split_is_noted_once(done):
    lock = StudyFolder(done.folder).read_lock()
    openings = TestLedger(done.folder.parent / "home").openings(lock.data["mail"].digests["test"])
    looks = 1 if len(records(done, "final")) == 10 else 2
    assert [opening.what for opening in openings] == [f"mail: look {number + 1}" for number in range(looks)]
    assert {opening.study_digest for opening in openings} == {lock.digest}


@pytest.mark.slow
def test_scrambled_test_labels_leave_tuning_as_it_was(done, tmp_path):
    """The rates lock before the test labels are known, so other test labels must give the same bytes."""
    path = write_study(tmp_path / "other", label=lambda split, name: "abc"[(int(name) + (split == "test")) % 3])
    other = load(path, "Sealed").run()
    assert _tuning(other) == _tuning(done)
    assert _finals(other) != _finals(done)


def _tuning(study):
    return _bytes(study, ("tune", "probe"))


def _finals(study):
    return _bytes(study, ("final",))


def _bytes(study, purposes):
    """Curves and scores by arm, rate, seed and purpose: ids differ, since they name the data as a whole."""
    found = {}
    for one in content(study).values():
        trial = one["record"]["trial"]
        if trial["purpose"] in purposes:
            key = (trial["arm"]["name"], trial["learning_rate"], trial["seed"], trial["purpose"])
            found[key] = (one["curve"], one["scores"])
    return found


ARMS = ("full", "buggy", "unlucky", "mortal", "wild", "divergent", "huge")


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """A study in which nearly every arm is in trouble of its own."""
    folder = tmp_path_factory.mktemp("troubled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNETRIAL_HOME", str(folder / "home"))
        patch.setenv("TEST_MARKS", str(folder))
        yield load(write_study(folder, kind="regress", arms=ARMS), "Troubled").run()


def ends(study, arm):
    return {record.status for record in records(study, "tune") if record.trial.arm.name == arm}


def test_trouble_in_one_arm_costs_the_others_nothing(troubled):
    assert troubled.outcome.status == "failed"
    assert ends(troubled, "full") == ends(troubled, "unlucky") == {"ok"}


def test_a_bug_leaves_no_record_and_is_named(troubled):
    errors = [error for label, error in troubled.outcome.failed.items() if label.startswith("buggy on mail, tune")]
    assert errors and all(error == "ZeroDivisionError: a bug in one arm" for error in errors)
    assert ends(troubled, "buggy") == set()
    assert "before_step" in (troubled.folder / "worker.log").read_text()


def test_a_trial_whose_worker_died_is_taken_up_again(troubled):
    assert sorted(r.attempt for r in records(troubled, "tune") if r.trial.arm.name == "unlucky")[-2:] == [1, 2]


def test_a_trial_whose_worker_died_three_times_is_given_up_and_named(troubled):
    ((label, error),) = ((la, er) for la, er in troubled.outcome.failed.items() if la.startswith("mortal"))
    assert label.startswith("mortal on mail, tune")
    assert "its worker process died 3 times, the last one killed by SIGKILL" in error and "worker.log" in error
    assert ends(troubled, "mortal") == {"ok"}


def test_diverging_not_fitting_and_predictions_gone_wild_are_results(troubled):
    assert ends(troubled, "divergent") == ends(troubled, "wild") == {"diverged"}
    assert ends(troubled, "huge") == {"infeasible"}
    assert all(r.reason and not r.artifacts for r in troubled.outcome.evidence.records if r.status != "ok")


@pytest.mark.slow
def test_the_next_run_mends_what_failed_and_repeats_nothing(troubled, monkeypatch):
    before = content(troubled)
    mended = load(troubled.path, "plain").run()
    assert mended.outcome.status == "done"
    assert before.items() <= content(mended).items()
    assert ends(mended, "buggy") == ends(mended, "mortal") == {"ok"}


FULL_DISK = """
import subprocess, sys
from pathlib import Path
from trial_study import content, differences, write_study
from tunetrial import Study

def run(study, **folder):
    return Study.load(write_study(study), engine="trial_engines:Bulky", **folder).run()

home, disk = Path(sys.argv[1]), Path(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
full = run(home / "full", folder=disk / "results")
print(full.outcome.status, set(full.outcome.failed.values()))
before = content(full)
subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
mended = run(home / "full", folder=disk / "results")
after = content(mended)
print(mended.outcome.status, before.items() <= after.items(), differences(after, content(run(home / "roomy"))))
"""


@pytest.mark.slow
def test_a_full_disk_fails_trials_in_words_and_the_rest_is_run_when_there_is_room(tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no right to a mount namespace (unshare -rm)")
    (tmp_path / "disk").mkdir()
    command = ["unshare", "-rm", sys.executable, "-c", FULL_DISK, tmp_path, tmp_path / "disk"]
    ran = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    first, second = ran.stdout.splitlines()
    assert first.startswith("failed") and "disk is full" in first, first
    assert second == "done True []"


@pytest.fixture
def cgroup(request):
    """A memory cgroup of 400 MiB; skipped where none can be made."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root) / f"tunetrial-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(400 * 2**20))
        except OSError:
            continue
        request.addfinalizer(group.rmdir)
        return group
    pytest.skip("no memory cgroup can be made here")


@pytest.mark.slow
def test_a_trial_killed_for_memory_is_shrunk_then_infeasible(tmp_path, cgroup, monkeypatch):
    """The kernel kills: at four examples of 40 MiB beside a second worker, not at two alone; `glutton` never fits."""
    monkeypatch.setenv("TEST_CGROUP", str(cgroup))
    study = load(write_study(tmp_path, arms=("full", "lora", "glutton")), "Hungry").run()
    assert study.outcome.status == "done", study.outcome.failed
    gluttons = [r for r in records(study, "tune") if r.trial.arm.name == "glutton"]
    assert {r.status for r in gluttons} == {"infeasible"}
    assert all("killed for memory by the kernel twice" in r.reason for r in gluttons)
    assert {r.status for r in records(study, "tune") if r.trial.arm.name == "lora"} == {"ok"}


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_study_is_held_by_one_process_and_goes_on_where_that_was_stopped(done, tmp_path, number):
    path = write_study(tmp_path / "study")
    process = start(path, "Slow", tmp_path)
    wait_for_step(process, path.parent / "study-results")
    with pytest.raises(StoreError, match=f"held by process {process.pid} on "):
        load(path, "plain").run()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    store = StudyFolder(path.parent / "study-results")
    begun = [p.parent for p in store.path.glob("trials/*/curve.jsonl")]
    assert [p for p in begun if not (p / "record.json").exists()], "nothing was under way"
    assert all(record.status == "ok" for record in store.records())
    assert differences(content(load(path, "plain").run()), content(done)) == []


def start(path: Path, engine: str, home: Path, **environment: str) -> subprocess.Popen:
    """Carry a study out in a process of its own; it exits with the status of the command line."""
    code = (
        "import sys; from trial_study import load; study = load(__import__('pathlib').Path(sys.argv[1]), sys.argv[2])\n"
        "try:\n    study.run()\nexcept KeyboardInterrupt:\n    sys.exit(130)\n"
        "sys.exit({'done': 0, 'failed': 3}[study.outcome.status])"
    )
    path_of_tests = f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "TUNETRIAL_HOME": str(home / "home"), "PYTHONPATH": path_of_tests, **environment}
    command = [sys.executable, "-c", code, str(path), engine]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_step(process: subprocess.Popen, folder: Path) -> None:
    """Wait until some trial has taken a few steps."""
    while process.poll() is None:
        if any(len(p.read_bytes().splitlines()) >= 3 for p in folder.glob("trials/*/curve.jsonl")):
            return
        time.sleep(0.01)
    pytest.fail(f"ended before its first step: {process.communicate()[1]}")


def test_rows_that_are_too_long_are_left_out_and_counted(tmp_path):
    path = write_study(tmp_path / "study", more="max_tokens: 4")
    rows = path.parent / "train.jsonl"
    lines = rows.read_text().splitlines()
    lines[3] = json.dumps({**json.loads(lines[3]), "text": "one two three four five six"})
    rows.write_text("\n".join(lines) + "\n")
    asked = Study.load(path).asked
    lock = pin(asked, path.parent, engine="trial_engines:plain", log=tmp_path / "worker.log").lock
    assert lock.data["mail"].counts["train"] == 59
    assert "train: 1 of 60 rows left out: longer than 4 tokens" in lock.data["mail"].remarks


def test_too_many_rows_that_are_too_long_are_refused(tmp_path):
    path = write_study(tmp_path / "study", more="max_tokens: 3")
    with pytest.raises(
        DataError, match="mail: train: more than 10 % of the rows are longer than max_tokens, got 60 of 60"
    ):
        load(path, "plain").plan()


def test_rows_longer_than_the_base_was_made_for_are_left_out(tmp_path):
    """No position beyond the base's own context is ever computed, whatever max_tokens allows."""
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((EMBEDDED / name).read_bytes())
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4}))
    path = write_study(tmp_path / "study", base_model=str(base))
    rows = path.parent / "train.jsonl"
    lines = rows.read_text().splitlines()
    lines[3] = json.dumps({**json.loads(lines[3]), "text": "one two three four five six"})
    rows.write_text("\n".join(lines) + "\n")
    asked = Study.load(path).asked
    data = pin(asked, path.parent, engine="trial_engines:plain", log=tmp_path / "worker.log").lock.data["mail"]
    assert data.counts["train"] == 59
    assert "train: 1 of 60 rows left out: longer than the base's context of 4 tokens" in data.remarks
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 3}))
    with pytest.raises(DataError, match="longer than the base's context, got 60 of 60 above 3 tokens .*; shorten"):
        load(path, "plain").plan()


def test_an_unknown_engine_is_refused_in_one_line(tmp_path):
    with pytest.raises(TunetrialError, match="engine: not found, got 'trial_engines:none'"):
        Study.load(write_study(tmp_path), engine="trial_engines:none").plan()
