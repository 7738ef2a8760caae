"""Whole studies killed for real at random moments end byte for byte as if nothing had happened, times aside."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from test_trial import start
from trial_study import content, differences, load, write_study

KILLED = ("coordinator", "worker", "all")


def kill_once(process: subprocess.Popen, rng: random.Random, after_s: float) -> bool:
    """Kill the coordinator, one worker or all of them after so many seconds; False if it had ended by then."""
    try:
        process.wait(after_s)
        return False
    except subprocess.TimeoutExpired:
        pass
    try:
        workers = psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        return False
    what = rng.choice(KILLED)
    victims = {"coordinator": [], "worker": workers[:1], "all": workers}[what]
    for worker in victims:
        _kill(worker.pid)
    if what != "worker":
        _kill(process.pid)
        process.wait()
    return True


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def kill_again_and_again(path: Path, engine: str, *, kills: int, longest_s: float, step_s: float = 0.01) -> int:
    """Start a study again and again and kill it each time; return how many kills struck."""
    rng, struck = random.Random(kills), 0
    while struck < kills:
        process = start(path, engine, path.parent, TEST_STEP_S=str(step_s))
        while struck < kills and kill_once(process, rng, rng.uniform(0.0, longest_s)):
            struck += 1
            if process.returncode is not None:
                break
        else:
            process.kill()
        _, errors = process.communicate()
        survey_killed = "its process ended, got killed by SIGKILL" in errors
        assert process.returncode in (-signal.SIGKILL, 0, 3, *([1] if survey_killed else [])), errors
        if process.returncode == 0:
            break
    return struck


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))


def finished(path: Path, engine: str):
    study = load(path, engine).run()
    assert study.outcome.status == "done", study.outcome.failed
    return content(study)


# A step takes so long that no machine is fast enough to end the study before the last kill.
@pytest.mark.parametrize("kills,longest_s,step_s", [(2, 1.5, 0.01), pytest.param(24, 6.0, 0.2, marks=pytest.mark.slow)])
def test_a_study_killed_again_and_again_ends_with_the_same_bytes(tmp_path, kills, longest_s, step_s):
    path = write_study(tmp_path / "study")
    struck = kill_again_and_again(path, "Slow", kills=kills, longest_s=longest_s, step_s=step_s)
    assert struck == kills, f"the study ended after {struck} kills: slow it down"
    assert differences(finished(path, "plain"), finished(write_study(tmp_path / "plain"), "plain")) == []


@pytest.mark.slow
def test_a_study_of_real_weights_killed_again_and_again_ends_with_the_same_weights(tmp_path):
    """On one machine: records hold the digests of curves, scores, token streams and adapters."""
    import tiny

    tiny.make_model(tmp_path / "base")
    settings = {"base_model": "../base", "more": "precision: fp32\nreplicates: {looks: [2]}"}
    path = write_study(tmp_path / "study", **settings)
    assert kill_again_and_again(path, "torch_often", kills=6, longest_s=15.0) >= 3
    plain = write_study(tmp_path / "plain", **settings)
    assert differences(finished(path, "torch_often"), finished(plain, "torch_often")) == []


def test_workers_end_with_their_coordinator(tmp_path):
    process = start(write_study(tmp_path / "study"), "Slow", tmp_path, TEST_STEP_S="1")
    while len(workers := psutil.Process(process.pid).children()) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    _, left = psutil.wait_procs(workers, timeout=30)
    assert [worker for worker in left if worker.status() != psutil.STATUS_ZOMBIE] == []
