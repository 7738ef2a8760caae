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
from trial_study import content, load, write_study

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


def study_under_kills(folder: Path, engine: str, *, kills: int, longest_s: float, seed: int) -> int:
    """Start a study again and again and kill it each time; return how many kills struck."""
    rng, struck = random.Random(seed), 0
    path = write_study(folder / "study")
    while struck < kills:
        process = start(path, engine, folder, TEST_STEP_S="0.01")
        while struck < kills and kill_once(process, rng, rng.uniform(0.0, longest_s)):
            struck += 1
            if process.returncode is not None:
                break
        else:
            process.kill()
        _, errors = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0, 3), errors
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


@pytest.mark.parametrize("kills,longest_s", [(3, 2.0), pytest.param(24, 6.0, marks=pytest.mark.slow)])
def test_a_study_killed_again_and_again_ends_with_the_same_bytes(tmp_path, kills, longest_s):
    struck = study_under_kills(tmp_path, "Slow", kills=kills, longest_s=longest_s, seed=kills)
    assert struck == kills, f"the study ended after {struck} kills: slow it down"
    assert finished(tmp_path / "study" / "study.yaml", "plain") == finished(write_study(tmp_path / "plain"), "plain")


def test_workers_end_with_their_coordinator(tmp_path):
    process = start(write_study(tmp_path / "study"), "Slow", tmp_path, TEST_STEP_S="1")
    while len(workers := psutil.Process(process.pid).children()) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert psutil.wait_procs(workers, timeout=5)[1] == []
