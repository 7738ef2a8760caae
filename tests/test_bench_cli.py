"""`tunetrial bench` as a user meets it: real processes, a trained study, what is refused, what a killed one leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest
from typer.testing import CliRunner

from test_cli import TUNETRIAL, tunetrial
from tiny import make_model
from trial_study import write_study
from tunetrial import cli
from tunetrial.core.deployment import Bench
from tunetrial.core.errors import IntegrityError
from tunetrial.store import StudyFolder
from tunetrial.trial.worker import Service

SHORT = ("--batches", "1,4", "--prompt", 6, "--seconds", 0)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("base") / "tiny")


def bench(*arguments: object):
    return CliRunner().invoke(cli.app, ["bench", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give a study file, --base or --endpoint, and one of them alone"),
        (("study.yaml", "--base", "embedded"), "give a study file, --base or --endpoint, and one of them alone"),
        (("study.yaml", "--rank", 4, "--targets", "q_proj"), "--rank, --targets: not with a study file; leave it out"),
        (("--base", "embedded", "--arms", "lora"), "--arms: not with --base; leave it out"),
        (("--base", "embedded", "--requests", 4), "--requests: not with --base; leave it out"),
        (
            ("--endpoint", "http://127.0.0.1:1/v1", "--batches", "1", "--folder", "x"),
            "--batches, --folder: not with --endpoint; leave it out",
        ),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(arguments, said):
    ran = bench(*arguments)
    assert ran.exit_code == 2 and ran.stderr.strip() == f"tunetrial: bench: {said}" and ran.stdout == ""


@pytest.mark.parametrize("batches", ["", "0", "1,", "1,x", "-1", "1.5"])
def test_batches_are_whole_numbers(batches):
    ran = bench("--base", "embedded", "--batches", batches)
    assert ran.exit_code == 1 and ran.stdout == ""
    assert f"--batches: must be whole numbers above 0, got {batches!r}; say 1,8" in ran.stderr


@pytest.mark.parametrize("option", ["--prompt", "--tokens"])
def test_tokens_are_above_0(option):
    ran = bench("--base", "embedded", option, 0)
    assert ran.exit_code == 1 and f"bench: {option}: must be 1 or more, got 0" in ran.stderr


def test_a_base_that_is_not_there_is_named_in_one_line(tmp_path):
    ran = bench("--base", tmp_path / "none")
    assert ran.exit_code == 1 and len(ran.stderr.splitlines()) == 1 and "no such folder" in ran.stderr


@pytest.mark.slow
def test_a_synthetic_study_has_nothing_to_deploy(tmp_path):
    path = write_study(tmp_path)
    assert tunetrial("run", path, "--engine", "sim", home=tmp_path / "home").returncode == 0
    ran = bench(path)
    assert ran.exit_code == 1 and "a synthetic study has no weights, got engine sim" in ran.stderr
    assert StudyFolder(tmp_path / "study-results").bench() is None


HOW = ("--rank", 4, "--targets", "q_proj,v_proj", "--tokens", 3, "--sessions", 1)


def check(printed: str) -> None:
    """What is printed of random adapters over a base, as JSON."""
    made = json.loads(printed)
    found = Bench.model_validate(made["bench"])
    works = [(work.batch, work.prompt_tokens, work.new_tokens) for work in found.asked.works]
    assert works == [(1, 6, 1), (1, 6, 3), (4, 6, 1), (4, 6, 3)]
    setups = {timing["contender"]["setup"] for timing in made["deployment"]["timings"]}
    assert setups == {"base", "merged", "separate", "swapped", "mixed"}
    assert found.artifact_bytes["lora separate"] < found.artifact_bytes["lora merged"] / 3
    assert found.artifact_bytes["lora swapped"] == 8 * found.artifact_bytes["lora separate"]


def test_random_adapters_over_a_base_are_timed_without_a_study(base, monkeypatch):
    """What workers are ordered to do is done here, without processes of their own."""

    def answer(order: dict, log: Path) -> dict:
        said: list[dict] = []
        getattr(Service(said.append, Event()), order["do"])(order)
        return said[-1]

    monkeypatch.setattr("tunetrial.trial.bench._ask", answer)
    ran = bench("--base", base, *HOW, *SHORT, "--json")
    assert ran.exit_code == 0, ran.stderr
    check(ran.stdout)


@pytest.mark.slow
def test_sessions_are_processes_that_leave_nothing_behind(base, tmp_path):
    ran = tunetrial("bench", "--base", base, *HOW, *SHORT, "--json", home=tmp_path)
    assert ran.returncode == 0, ran.stderr
    check(ran.stdout)
    assert "session 1 of 1" in ran.stderr and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def study(base, tmp_path_factory) -> Path:
    """A trained study of one full model and three adapters, on the tiny base."""
    path = write_study(tmp_path_factory.mktemp("study"), base_model=str(base), more="replicates: {looks: [3]}")
    ran = tunetrial("run", path, home=path.parent / "home")
    assert ran.returncode == 0, ran.stderr
    return path


@pytest.mark.slow
def test_a_study_s_finals_are_timed_as_they_are_deployed_and_kept_in_its_folder(study):
    ran = tunetrial("bench", study, "--sessions", 2, *SHORT, home=study.parent / "home", columns=100)
    assert ran.returncode == 0, ran.stderr
    store = StudyFolder(study.parent / "study-results")
    found = store.bench()
    setups = {(o.contender.setup, o.contender.arm) for o in found.sessions[0].opened}
    lora = {(setup, "lora") for setup in ("merged", "separate", "swapped", "mixed")}
    assert setups == {("base", None), ("full", "full"), *lora}
    assert {w.new_tokens for w in found.asked.works} == {1}  # it labels: nothing is written
    assert len(found.sessions) == 2 and found.sessions[0].order_digest != found.sessions[1].order_digest
    assert all(len(line) <= 100 for line in ran.stdout.splitlines() if line.startswith("  ")), ran.stdout
    assert "engine lora separate takes" in ran.stdout and "engine full takes" in ran.stdout
    assert not list(store.path.glob(".bench.*"))
    assert tunetrial("decide", study, home=study.parent / "home").returncode == 0  # the folder stays what it was


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--arms", "lorra"), "--arms: no such arm, got 'lorra'; use some of full, lora"),
        (("--tokens", 4), "--tokens: mail writes no text, got 4; leave it out"),
        (("--prompt", 200), "longer than the base's context of 128, got 201 tokens"),
    ],
)
def test_what_a_study_cannot_be_asked_is_one_line(study, arguments, said):
    ran = tunetrial("bench", study, *arguments, "--sessions", 1, home=study.parent / "home")
    assert ran.returncode == 1 and ran.stdout == "" and said in ran.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_killed_bench_leaves_results_alone_and_the_next_one_clears_up(study):
    store = StudyFolder(study.parent / "study-results")
    before = sorted(path.name for path in store.path.iterdir() if not path.name.startswith("."))
    command = [*TUNETRIAL, "bench", str(study), "--arms", "lora", "--sessions", "1", *map(str, SHORT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    began = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    while not list(store.path.glob(".bench.*/lora")) and time.monotonic() < until:
        time.sleep(0.05)
    began.send_signal(signal.SIGKILL)
    began.communicate()
    assert list(store.path.glob(".bench.*"))
    after = {path.name for path in store.path.iterdir() if not path.name.startswith(".")}
    assert after - set(before) <= {"worker.log", "lock"}
    ran = tunetrial("bench", study, "--arms", "lora", "--sessions", 1, *SHORT, home=study.parent / "home")
    assert ran.returncode == 0, ran.stderr
    assert not list(store.path.glob(".bench.*")) and "nothing can be told from it" in ran.stdout


@pytest.mark.slow
def test_an_altered_bench_is_refused(study):
    store = StudyFolder(study.parent / "study-results")
    if store.bench() is None:
        assert tunetrial("bench", study, "--sessions", 1, *SHORT, home=study.parent / "home").returncode == 0
    path = store.path / "bench.json"
    whole = path.read_text()
    path.write_text(whole.replace('"load_s": 0', '"load_s": 1', 1))
    with pytest.raises(IntegrityError, match="bench.json: expected content with SHA-256"):
        store.bench()
    path.write_text(whole)
