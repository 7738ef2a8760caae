"""The store under faults: real processes killed for real, a disk that is really full, bytes that really changed."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from test_store import STEPS, a_lock, a_step, a_trial, complete, some_scores, with_study, write_state, write_weights
from tunetrial.core import files, manifest
from tunetrial.core.checkpoint import newest_checkpoint, save_checkpoint
from tunetrial.core.errors import IntegrityError, StoreError
from tunetrial.core.evidence import Scores, TrialRecord
from tunetrial.core.study import Trial
from tunetrial.store import StudyFolder, TestLedger, TrialFolder, sealed, table

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["tunetrial.store", "filelock", "hypothesis", "pandas", "pyarrow.parquet", "pytest", "safetensors.numpy"]
)


@pytest.fixture
def memory_path(tmp_path) -> Path:
    """A folder in memory where there is one: a kill spares what was written there as it does on a disk, and fsync,
    which only a power loss would show, costs nothing."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def carry_out(study: StudyFolder, trial: Trial) -> None:
    """Run or resume a trial of a toy engine, whose state is a chain of digests that only the right steps give."""
    folder = study.trial(trial)
    if folder.done:
        return
    folder.begin()
    newest = newest_checkpoint(folder.checkpoint)
    done, state = (newest[0], (newest[1] / "state").read_bytes()) if newest else (0, b"")
    for number in range(done + 1, STEPS + 1):
        state = hashlib.sha256(state + bytes([number, trial.seed % 256])).digest()
        step = a_step(number)
        folder.append(type(step)(**vars(step) | {"loss": state[0] / 7, "seconds": time.monotonic()}))
        if number % 2 == 0:
            save_checkpoint(folder.checkpoint, number, lambda path: (path / "state").write_bytes(state))  # noqa: B023
    folder.save_artifact(lambda path: (path / "weights.safetensors").write_bytes(state * 50))
    folder.finish(TrialRecord(trial=trial, status="ok"), some_scores(trial.seed))


def content(folder: TrialFolder) -> tuple:
    """All of a complete trial but times and attempts."""
    curve = [{name: value for name, value in step.items() if name != "seconds"} for step in folder.curve()]
    record = folder.record().model_copy(update={"attempt": 1, "legs_s": ()})
    paths = [p for p in folder.path.rglob("*") if p.is_file() and not p.name.startswith(".lease")]
    names = sorted(p.relative_to(folder.path).as_posix() for p in paths)
    return curve, record, names, (folder.path / "scores.parquet").read_bytes()


def hold_and_carry_out(path: Path, seeds: range, started) -> None:
    study = StudyFolder(path)
    with study.hold(wait_s=30):
        with tempfile.TemporaryDirectory(dir=path.parent) as elsewhere:
            for _ in range(2):  # what is slow the first time only would hide the rest from a kill
                carry_out(StudyFolder(Path(elsewhere)), a_trial(0))
        started.set()
        for seed in seeds:
            carry_out(study, a_trial(seed))


def test_a_study_killed_at_random_moments_ends_as_if_it_had_not_been(memory_path):
    rng = random.Random(20)
    study, plain = StudyFolder(memory_path / "killed"), StudyFolder(memory_path / "plain")
    study.write_lock(a_lock())
    carry_out(plain, a_trial(1000))
    began = time.monotonic()
    carry_out(plain, a_trial(1001))
    trial_s = time.monotonic() - began
    kills, resumed, done = 0, 0, 0
    while kills < 24 or resumed < 3 or done < 3:  # the moments must fall on both sides of a checkpoint and of an end
        started = CONTEXT.Event()
        process = CONTEXT.Process(target=hold_and_carry_out, args=(study.path, range(500), started))
        process.start()
        assert started.wait(30)
        time.sleep(rng.uniform(0, 2 * trial_s))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        assert {record.trial.seed for record in study.records()} >= set(range(done))  # none is lost
        done = len(study.records())
        resumed += newest_checkpoint(study.trial(a_trial(done)).checkpoint) is not None
        assert kills < 1000
    hold_and_carry_out(study.path, range(done + 1), CONTEXT.Event())
    for seed in range(done + 1):
        carry_out(plain, a_trial(seed))
        assert content(study.trial(a_trial(seed))) == content(plain.trial(a_trial(seed)))
    assert not list(study.path.rglob("*.tmp"))


def die_at(event: int, path: Path, act: Callable[[StudyFolder], None]) -> None:
    """Act, and SIGKILL this very process just before the given operation on a file below `path`."""
    left = [event]

    def hook(name: str, args: tuple) -> None:
        watched = name in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
        if watched and isinstance(args[0], (str, Path)) and str(args[0]).startswith(str(path)):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    study = StudyFolder(path)
    with study.hold(wait_s=30):
        sys.addaudithook(hook)
        act(study)


def run_trial(study: StudyFolder) -> None:
    carry_out(study, a_trial(2))


def change_lock(study: StudyFolder) -> None:
    study.write_lock(with_study(a_lock(), seed=5))


def drop_weights(study: StudyFolder) -> None:
    study.trial(a_trial(1)).drop_artifact()


@pytest.mark.parametrize(
    ("act", "stride"),
    [(run_trial, 9), (change_lock, 1), (drop_weights, 1), pytest.param(run_trial, 1, marks=pytest.mark.slow)],
)
def test_death_between_any_two_file_operations_is_survived(memory_path, act, stride):
    plain = StudyFolder(memory_path / "plain")
    plain.write_lock(a_lock())
    carry_out(plain, a_trial(1))
    shutil.copytree(plain.path, memory_path / "before")
    act(plain)
    expected = {record.trial.id: content(plain.trial(record.trial)) for record in plain.records()}
    event, ended = 0, False
    while not ended:
        event += stride
        study = StudyFolder(memory_path / f"death-{event}")
        shutil.copytree(memory_path / "before", study.path)
        process = CONTEXT.Process(target=die_at, args=(event, study.path, act))
        process.start()
        process.join()
        ended = process.exitcode == 0
        assert ended or process.exitcode == -signal.SIGKILL
        study.evidence()
        with study.hold():
            act(study)
            assert {record.trial.id: content(study.trial(record.trial)) for record in study.records()} == expected
        assert study.read_locks() == plain.read_locks()
        shutil.rmtree(study.path)
    assert event > 5


DAMAGES = {
    "flipped": lambda content, rng: flip(content, rng.randrange(len(content) * 8)),
    "truncated": lambda content, rng: content[: rng.randrange(len(content))],
    "extended": lambda content, rng: content + b"x",
    "missing": lambda content, rng: None,
}
FILES = [
    "record.json",
    "manifest.json",
    "curve.jsonl",
    "scores.parquet",
    "artifact/manifest.json",
    "artifact/config.json",
]


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.fixture
def study(tmp_path) -> StudyFolder:
    folder = StudyFolder(tmp_path / "study")
    folder.write_lock(a_lock())
    for seed in (1, 2):
        complete(folder.trial(a_trial(seed)), a_trial(seed), artifact=True)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damaged_evidence_is_refused_and_named(study, name, damage):
    rng = random.Random(f"{name} {damage}")
    path = study.trial(a_trial()).path / name
    good = path.read_bytes()
    for _ in range(6):
        changed = DAMAGES[damage](good, rng)
        path.unlink() if changed is None else path.write_bytes(changed)
        if name == "record.json" and changed is None:
            assert not study.trial(a_trial()).done and len(study.evidence().records) == 1
        else:
            with pytest.raises(IntegrityError) as caught:
                study.evidence()
            assert str(path) in str(caught.value) and "\n" not in str(caught.value)
            expected = (
                json.loads((path.parent / "manifest.json").read_text())["files"] if "manifest" not in name else {}
            )
            assert path.name not in expected or expected[path.name]["sha256"] in str(caught.value)
            with pytest.raises(IntegrityError):
                assert study.trial(a_trial()).done
        path.write_bytes(good)
    assert len(study.evidence().records) == 2


def test_every_flipped_bit_of_a_record_is_found(study):
    path = study.trial(a_trial()).path / "record.json"
    good = path.read_bytes()
    for bit in random.Random(3).sample(range(len(good) * 8), 400):
        path.write_bytes(flip(good, bit))
        with pytest.raises(IntegrityError, match="record.json: "):
            study.trial(a_trial()).record()


@pytest.mark.parametrize("name", ["notes.txt", "artifact/adapter/extra.bin", "artifact/training_args.bin"])
def test_a_foreign_file_is_refused_and_named(study, name):
    path = study.trial(a_trial()).path / name
    path.write_text("x")
    with pytest.raises(IntegrityError, match=f"{name}: not in manifest.json, got a foreign file; remove it"):
        study.evidence()
    path.rename(path.with_name(".DS_Store"))
    assert len(study.evidence().records) == 2


def test_lost_weights_are_not_mistaken_for_dropped_ones(study):
    shutil.rmtree(study.trial(a_trial()).artifact)
    with pytest.raises(IntegrityError, match="artifact/manifest.json: expected SHA-256 .*, got no file"):
        study.evidence()


def test_a_copied_trial_folder_is_refused(study):
    folder = study.trial(a_trial()).path
    shutil.copytree(folder, folder.with_name("0123456789abcdef"))
    with pytest.raises(IntegrityError, match=f"expected the record of trial 0123456789abcdef, got {folder.name}"):
        study.evidence()


def test_scores_of_another_trial_are_refused_even_when_sealed_anew(study):
    mine, other = study.trial(a_trial(1)).path, study.trial(a_trial(2)).path
    shutil.copy(other / "scores.parquet", mine / "scores.parquet")
    manifest.write_manifest(mine, ["curve.jsonl", "scores.parquet"])
    with pytest.raises(IntegrityError, match=r"manifest\.json: expected SHA-256"):
        study.evidence()
    record = sealed.read(mine / "record.json")
    record["manifests"]["manifest.json"] = manifest.sha256(mine / "manifest.json")
    sealed.write(mine / "record.json", record)
    digest = record["record"]["scores_digest"]
    with pytest.raises(IntegrityError, match=f"scores.parquet: expected scores with SHA-256 {digest}"):
        study.evidence()


def test_a_record_of_another_version_is_refused(study):
    path = study.trial(a_trial()).path / "record.json"
    content = sealed.read(path)
    sealed.write(path, content | {"record": content["record"] | {"schema_version": 2}})
    with pytest.raises(IntegrityError, match="not a record of this version"):
        study.records()


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_lock_is_refused(study, damage):
    path = study.path / "study.lock.json"
    good = path.read_bytes()
    for seed in range(20):
        path.write_bytes(DAMAGES[damage](good, random.Random(seed)))
        with pytest.raises(IntegrityError, match="study.lock.json: "):
            study.evidence()


def keep_hold(path: Path, held, release) -> None:
    with StudyFolder(path).hold():
        held.set()
        release.wait(60)


@pytest.fixture
def holder(tmp_path):
    held, release = CONTEXT.Event(), CONTEXT.Event()
    process = CONTEXT.Process(target=keep_hold, args=(tmp_path / "study", held, release))
    process.start()
    assert held.wait(30)
    yield process, release
    process.kill()
    process.join()


def test_a_second_process_is_told_who_holds_the_study(tmp_path, holder):
    process, _ = holder
    said = rf"study: study is held by process {process.pid} on .+ since 20.+; wait for it or stop it"
    for wait_s in (0, 0.2):
        with pytest.raises(StoreError, match=said), StudyFolder(tmp_path / "study").hold(wait_s):
            pass


def test_a_second_process_waits_for_the_first(tmp_path, holder):
    process, release = holder
    release.set()
    with StudyFolder(tmp_path / "study").hold(wait_s=30):
        process.join(5)
    assert process.exitcode == 0


def test_a_dead_holder_does_not_block(tmp_path, holder):
    process, _ = holder
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / "study" / ".lease.json").exists()  # a stale name, and nothing asks it
    with StudyFolder(tmp_path / "study").hold(wait_s=0):
        assert json.loads((tmp_path / "study" / ".lease.json").read_text())["pid"] == os.getpid()


def test_one_process_cannot_hold_a_study_twice(tmp_path):
    with StudyFolder(tmp_path).hold():
        with pytest.raises(StoreError, match=f"held by process {os.getpid()}"), StudyFolder(tmp_path).hold():
            pass
    with StudyFolder(tmp_path).hold():
        pass


def keep_trial(path: Path, held) -> None:
    """A worker whose coordinator is gone: its record is written, and it has not swept up yet."""
    folder = StudyFolder(path).trial(a_trial(1))
    with folder.hold():
        folder.save_artifact(write_weights)
        complete(folder, a_trial(1), artifact=True)
        (folder.path / ".late.tmp").write_text("in hand")
        held.set()
        time.sleep(60)


def test_an_orphaned_worker_keeps_its_trial_until_it_dies(tmp_path):
    study = StudyFolder(tmp_path)
    study.write_lock(a_lock())
    held = CONTEXT.Event()
    orphan = CONTEXT.Process(target=keep_trial, args=(study.path, held))
    orphan.start()
    assert held.wait(30)
    folder = study.trial(a_trial(1))
    with study.hold():
        assert (folder.path / ".late.tmp").exists()
    with pytest.raises(StoreError, match=f"trial is held by process {orphan.pid} on"), folder.hold(wait_s=0.1):
        pass
    orphan.kill()
    orphan.join()
    with study.hold(), folder.hold():
        assert not (folder.path / ".late.tmp").exists() and folder.done


def note_many(home: Path, noted) -> None:
    for number in range(100_000):
        noted.send(TestLedger(home).note("t", "s", f"look {number}"))


def test_the_ledger_survives_writers_killed_at_random_moments(memory_path):
    rng, acknowledged = random.Random(4), []
    for _ in range(2):
        pipes = [CONTEXT.Pipe(duplex=False) for _ in range(3)]
        writers = [CONTEXT.Process(target=note_many, args=(memory_path, sender)) for _, sender in pipes]
        for writer in writers:
            writer.start()
        assert all(receiver.poll(30) for receiver, _ in pipes)
        time.sleep(rng.uniform(0, 0.03))
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
        for writer, (receiver, sender) in zip(writers, pipes, strict=True):
            writer.join()
            sender.close()
            with contextlib.suppress(EOFError):
                while True:
                    acknowledged.append(receiver.recv())
            receiver.close()
    assert len(set(acknowledged)) == len(acknowledged) >= 6
    assert len(acknowledged) <= TestLedger(memory_path).count("t") <= len(acknowledged) + 6
    assert TestLedger(memory_path).note("t", "s", "last") == TestLedger(memory_path).count("t")


def test_content_is_on_the_disk_before_its_name_and_the_name_before_return(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace

    def spy_fsync(descriptor: int) -> None:
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def spy_replace(old: Path, new: Path) -> None:
        calls.append(("replace", new.name))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    folder = tmp_path / "folder"
    folder.mkdir()
    files.write(folder / "a", b"x")
    assert calls == [("fsync", f".a.{os.getpid()}.tmp"), ("replace", "a"), ("fsync", "folder")]
    calls.clear()
    save_checkpoint(folder, 3, write_weights)
    named = calls.index(("replace", "step-000003"))
    synced = {name for kind, name in calls[:named] if kind == "fsync"}
    assert {"weights.safetensors", "config.json", "adapter", "step-000003.tmp"} <= synced
    assert calls[named + 1] == ("fsync", "folder")
    calls.clear()
    trial = StudyFolder(tmp_path).trial(a_trial())
    complete(trial, a_trial(), artifact=True)
    named = calls.index(("replace", "record.json"))
    synced = {name for kind, name in calls[:named] if kind == "fsync"}
    assert {"curve.jsonl", "weights.safetensors", "config.json", "adapter", "artifact", trial.path.name} <= synced
    assert [name for kind, name in calls[:named] if kind == "replace"][-2:] == ["scores.parquet", "manifest.json"]


# A full disk: each scenario runs in a child process on a file system of its own, of 2 MiB.


def fill(disk: Path, leave_bytes: int) -> Path:
    ballast = disk / "ballast"
    with open(ballast, "wb") as file:
        while (free := files.free_bytes(disk)) > leave_bytes:
            file.write(bytes(min(free - leave_bytes, 65536)))
            file.flush()
    return ballast


def refused(act: Callable[[], object]) -> str:
    try:
        act()
    except StoreError as error:
        assert "disk is full" in str(error) and str(error).endswith("; free space and run again"), error
        return str(error)
    raise AssertionError("the disk was not full")


def full_disk_at_a_checkpoint(disk: Path) -> None:
    """Earlier checkpoints go first where that makes room; where it does not, they stay."""
    for write in (
        lambda path: (path / "state").write_bytes(bytes(400_000)),
        lambda path: save_file({"state": np.zeros(100_000, np.float32)}, path / "state.safetensors"),
    ):
        save_checkpoint(disk / "checkpoint", 2, write)
        ballast = fill(disk, 16_384)
        free = files.free_bytes(disk)
        assert f"step-000004: disk is full, more than {free} bytes needed" in refused(
            lambda: save_checkpoint(disk / "checkpoint", 4, write)  # noqa: B023
        )
        assert [path.name for path in (disk / "checkpoint").iterdir()] == ["step-000002"]
        assert newest_checkpoint(disk / "checkpoint")[0] == 2 and files.free_bytes(disk) == free
        ballast.unlink()
        ballast = fill(disk, 200_000)
        save_checkpoint(disk / "checkpoint", 4, write)
        assert [path.name for path in (disk / "checkpoint").iterdir()] == ["step-000004"]
        assert newest_checkpoint(disk / "checkpoint")[0] == 4
        ballast.unlink()
        save_checkpoint(disk / "checkpoint", 6, write)
        assert sorted(path.name for path in (disk / "checkpoint").iterdir()) == ["step-000004", "step-000006"]
        shutil.rmtree(disk / "checkpoint")


def full_disk_at_the_weights(disk: Path) -> None:
    folder = StudyFolder(disk).trial(a_trial())
    folder.begin()
    ballast = fill(disk, 200_000)
    weights = {"w": np.zeros(100_000, np.float32)}
    assert "artifact: disk is full" in refused(
        lambda: folder.save_artifact(lambda path: save_file(weights, path / "w.safetensors"))
    )
    assert sorted(path.name for path in folder.path.iterdir()) == ["attempts.jsonl", "curve.jsonl"]
    ballast.unlink()
    folder.save_artifact(lambda path: save_file(weights, path / "w.safetensors"))


def full_disk_at_the_record(disk: Path) -> None:
    study = StudyFolder(disk / "study")
    study.write_lock(a_lock())
    complete(study.trial(a_trial(1)), a_trial(1), artifact=True)
    ids = tuple(hashlib.sha256(bytes([i % 256, i // 256])).hexdigest() for i in range(4000))
    one = Scores(ids, ids, np.arange(4000.0), np.arange(4000.0))
    scores = {"test": one, "validation": one}
    size_bytes = len(table.to_parquet(scores, {}))
    folder, record = study.trial(a_trial(2)), TrialRecord(trial=a_trial(2), status="ok")
    for leave_bytes, said in ((100_000, f"scores.parquet: disk is full, {size_bytes} bytes needed, got "), (0, "")):
        folder.begin()
        for step in range(1, STEPS + 1):
            folder.append(a_step(step))
        ballast = fill(disk, leave_bytes)
        assert said in refused(lambda: folder.finish(record, scores))
        assert not folder.done and len(study.evidence().records) == 1 and not list(disk.rglob("*.tmp"))
        ballast.unlink()
    folder.begin()
    for step in range(1, STEPS + 1):
        folder.append(a_step(step))
    kept = folder.finish(record, scores)
    assert folder.done and folder.scores(kept)["test"].digest == scores["test"].digest and kept.attempt == 3


def full_disk_at_a_step(disk: Path) -> None:
    folder = StudyFolder(disk).trial(a_trial())
    folder.begin()
    for step in range(1, 4):
        folder.append(a_step(step, 10_000))
    save_checkpoint(folder.checkpoint, 3, write_state)
    ballast = fill(disk, 0)

    def go_on() -> None:
        for step in range(4, 10_000):
            folder.append(a_step(step, 10_000))

    assert "curve.jsonl: disk is full" in refused(go_on)
    curve = folder.curve()
    assert [line["step"] for line in curve] == list(range(1, len(curve) + 1)) and len(curve) > 3
    refused(folder.begin)  # still full: said again, nothing lost
    ballast.unlink()
    assert folder.begin() == 2 and len(folder.curve()) == 3


def full_disk_at_the_ledger_and_the_lock(disk: Path) -> None:
    ledger, study = TestLedger(disk / "home"), StudyFolder(disk / "study")
    ledger.note("t", "s", "look 1")
    study.write_lock(a_lock())
    ballast = fill(disk, 0)
    refused(lambda: study.write_lock(with_study(a_lock(), question="?" * 5000)))
    assert "test_ledger.jsonl: disk is full" in refused(
        lambda: [ledger.note("t", "s", f"look {number}") for number in range(1000)]
    )
    count = ledger.count("t")
    ballast.unlink()
    assert study.read_lock() == a_lock() and ledger.note("t", "s", "look 2") == count + 1


SCENARIOS = [value for name, value in list(globals().items()) if name.startswith("full_disk_")]


def play(disk: Path, name: str) -> None:
    """Run one scenario in this process and print how it went."""
    try:
        next(scenario for scenario in SCENARIOS if scenario.__name__ == name)(disk)
        print(f"{name}: ok")
    except BaseException:
        print(f"{name}: {traceback.format_exc()}")


@pytest.fixture(scope="module")
def small_disk_outcome(tmp_path_factory) -> str:
    """What the scenarios printed, each with a small file system mounted in a mount namespace of its own."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("a file system of 2 MiB cannot be mounted here: no right to a mount namespace (unshare -rm)")
    disk = tmp_path_factory.mktemp("disk")
    calls = "; ".join(
        f"subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', {str(disk)!r}], check=True); "
        f"play(Path({str(disk)!r}), {scenario.__name__!r})"
        for scenario in SCENARIOS
    )
    code = f"import subprocess; from pathlib import Path; from test_store_faults import play; {calls}"
    command = ["unshare", "-rm", sys.executable, "-c", code]
    run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_full_disk_fails_cleanly_and_is_recovered_from(small_disk_outcome, scenario):
    assert f"{scenario.__name__}: ok" in small_disk_outcome, small_disk_outcome


def test_free_bytes_are_those_of_the_place_to_be(tmp_path):
    assert files.free_bytes(tmp_path / "not" / "yet") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


def test_an_unwritable_folder_is_said_to_be_one(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be written, got .*; see to that and run again"):
        StudyFolder(tmp_path / "file").write_lock(a_lock())
