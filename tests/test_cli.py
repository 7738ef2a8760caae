"""The command line as a user meets it: real processes, exit statuses, streams, widths and times."""

import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trial_study import write_study
from tunetrial import Study, __version__, cli, spec

HERE = Path(__file__).parent
TUNETRIAL = [sys.executable, "-c", "from tunetrial.cli import main; main()"]
VERBS = ("demo", "plan", "run", "report", "decide", "costs", "rate", "init", "recipe", "compare")
VERBS += ("calibrate", "selfcheck", "doctor", "merge", "convert", "ship", "serve", "bench", "gate")


def tunetrial(*arguments: object, home: Path, columns: int = 80) -> subprocess.CompletedProcess:
    path = f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "TUNETRIAL_HOME": str(home), "PYTHONPATH": path, "COLUMNS": str(columns)}
    return subprocess.run([*TUNETRIAL, *map(str, arguments)], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A study file, and what `run` said of it."""
    folder = tmp_path_factory.mktemp("cli")
    path = write_study(folder)
    return path, tunetrial("run", path, "--engine", "trial_engines:plain", home=folder / "home")


def test_run_prints_the_verdict_on_stdout_and_progress_on_stderr(done):
    path, ran = done
    assert ran.returncode == 0, ran.stderr
    assert (
        ran.stdout.startswith("SYNTHETIC") and f"Report: {path.parent / 'study-results' / 'report.html'}" in ran.stdout
    )
    assert "trials" in ran.stderr and "trials" not in ran.stdout.splitlines()[0]
    assert "Traceback" not in ran.stderr


def test_report_writes_page_and_markdown_again(done):
    path, _ = done
    folder = path.parent / "study-results"
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    ran = tunetrial("report", path, home=path.parent / "home")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == str(folder / "report.html")
    assert (folder / "report.html").read_bytes() == before


def test_decide_gives_the_same_decision_again_and_json_that_parses(done):
    path, ran = done
    again = tunetrial("decide", path, home=path.parent / "home")
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == ran.stdout.rpartition("\nReport:")[0].strip()
    made = json.loads(tunetrial("decide", path, "--json", home=path.parent / "home").stdout)
    assert made["decision"]["synthetic"] is True and made["decision"]["post_hoc"] == []


def test_a_margin_changed_after_results_is_post_hoc(done, tmp_path):
    path, _ = done
    changed = tmp_path / "study.yaml"
    changed.write_text(path.read_text().replace("margin: 0.05", "margin: 0.5"))
    copied = tmp_path / "results"
    subprocess.run(["cp", "-r", path.parent / "study-results", copied], check=True)
    ran = tunetrial("decide", changed, "--folder", copied, "--json", home=path.parent / "home")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["decision"]["post_hoc"] == ["tasks.mail.margin: was 0.05, is now 0.5"]


def test_decide_refuses_a_study_that_asks_for_other_trials(done, tmp_path):
    path, _ = done
    changed = tmp_path / "study.yaml"
    changed.write_text(path.read_text().replace("epochs: 2", "epochs: 3"))
    ran = tunetrial("decide", changed, "--folder", path.parent / "study-results", home=tmp_path)
    assert ran.returncode == 1
    assert "epochs: was 2 when trials ran, got 3; run the study again or restore it" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1 and ran.stdout == ""


def test_decide_without_results_says_so(tmp_path):
    ran = tunetrial("decide", write_study(tmp_path), home=tmp_path)
    assert ran.returncode == 1 and "no study here" in ran.stderr and len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize("verb,name", [("decide", "record.json"), ("report", "scores.parquet"), ("run", "curve.jsonl")])
def test_tampered_results_are_refused_and_named_by_every_verb(done, tmp_path, verb, name):
    path, _ = done
    copied = tmp_path / "results"
    subprocess.run(["cp", "-r", path.parent / "study-results", copied], check=True)
    tampered = sorted(copied.glob(f"trials/*/{name}"))[-1]
    content = tampered.read_bytes()
    tampered.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    engine = ["--engine", "trial_engines:plain"] if verb == "run" else []
    ran = tunetrial(verb, path, "--folder", copied, *engine, home=path.parent / "home")
    assert ran.returncode == 1 and ran.stdout == "" and "Traceback" not in ran.stderr
    assert f"{tampered}: " in ran.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_lost_record_is_no_result_until_it_is_run_again(done, tmp_path):
    path, ran = done
    copied = tmp_path / "results"
    subprocess.run(["cp", "-r", path.parent / "study-results", copied], check=True)
    final = next(p for p in sorted(copied.glob("trials/*/record.json")) if '"final"' in p.read_text())
    final.unlink()
    less = tunetrial("decide", path, "--folder", copied, home=path.parent / "home")
    assert less.returncode == 0 and "CAN'T TELL YET" in less.stdout and "4 of 5" in less.stdout, less.stdout
    again = tunetrial("run", path, "--folder", copied, "--engine", "trial_engines:plain", home=path.parent / "home")
    assert again.returncode == 0 and final.exists(), again.stderr


def test_plan_says_what_it_takes_and_trains_nothing(tmp_path):
    path = write_study(tmp_path)
    ran = tunetrial("plan", path, "--engine", "trial_engines:plain", "--json", home=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert isinstance(json.loads(ran.stdout), dict)
    assert not (tmp_path / "study-results" / "trials").exists()


def test_a_study_in_which_trials_failed_exits_with_3_and_names_them(tmp_path):
    path = write_study(tmp_path, arms=("full", "buggy"))
    ran = tunetrial("run", path, "--engine", "trial_engines:Troubled", home=tmp_path)
    assert ran.returncode == 3, ran.stderr
    assert "failed: buggy on mail, tune" in ran.stderr and "Traceback" not in ran.stderr


@pytest.mark.slow
def test_a_study_of_which_no_arm_fits_exits_with_4(tmp_path):
    path = write_study(tmp_path, arms=("huge", "vast"), more="")
    ran = tunetrial("run", path, "--engine", "trial_engines:plain", home=tmp_path)
    assert ran.returncode == 4, ran.stderr
    assert "does not fit" in ran.stdout


@pytest.mark.parametrize("text", ["base_model: embedded\n", "nonsense: [", "\x00"])
def test_a_bad_study_file_is_one_error_without_a_traceback(tmp_path, text):
    (tmp_path / "study.yaml").write_text(text)
    ran = tunetrial("run", tmp_path / "study.yaml", home=tmp_path)
    assert ran.returncode == 1 and ran.stdout == ""
    assert "study.yaml" in ran.stderr and "Traceback" not in ran.stderr


FILES_OF_BASE = {
    "truncated weights": ("model.safetensors", lambda content: content[:1000]),
    "a broken tokenizer": ("tokenizer.json", lambda content: b"{}"),
    "sizes that do not fit": ("config.json", lambda content: content.replace(b'"hidden_size": 2', b'"hidden_size": 9')),
}


SLOW = pytest.mark.slow  # each starts a worker on torch


@pytest.mark.parametrize(
    "name",
    ["truncated weights", *(pytest.param(name, marks=SLOW) for name in list(FILES_OF_BASE)[1:])],
)
def test_a_base_that_cannot_be_opened_is_named_in_one_line(copied_base, tmp_path, name):
    (copied_base / "manifest.json").unlink()
    file, damage = FILES_OF_BASE[name]
    content = (copied_base / file).read_bytes()
    (copied_base / file).write_bytes(damage(content))
    assert (copied_base / file).read_bytes() != content
    ran = tunetrial("plan", write_study(tmp_path / "study", base_model=str(copied_base)), home=tmp_path)
    assert ran.returncode == 1 and ran.stdout == ""
    [line] = ran.stderr.splitlines()
    assert line.startswith(f"tunetrial: {copied_base}: cannot be opened as a base, got ")


def test_an_arm_that_does_not_suit_the_base_is_named_with_its_field(tmp_path):
    path = write_study(tmp_path)
    path.write_text(path.read_text().replace("rank: 2", "targets: [w_q]"))
    ran = tunetrial("plan", path, "--engine", "trial_engines:plain", home=tmp_path)
    assert ran.returncode == 1
    assert ran.stderr.startswith("tunetrial: arms.lora.targets: no such projection in this base, got 'w_q'; use some")


@pytest.mark.parametrize("arguments", [("demo",), ("plan", "study.yaml"), ("run", "study.yaml")])
def test_a_folder_that_cannot_be_made_is_named_in_one_line(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path)
    Path("file").write_text("x")
    ran = tunetrial(*arguments, "--folder", "file/in", "--engine", "trial_engines:plain", home=tmp_path)
    assert ran.returncode == 1 and ran.stdout == ""
    [line] = ran.stderr.splitlines()
    assert line.startswith("tunetrial: file/in") and "cannot be written, got Not a directory; see to that" in line


@pytest.mark.parametrize(("study", "tasks"), [("demo", ["newsletter", "tickets"]), ("demo-json", ["tickets_json"])])
def test_a_demo_writes_its_study_of_built_in_tasks_and_begins(tmp_path, study, tasks):
    ran = tunetrial("demo", study, "--folder", tmp_path / "d", "--engine", "no_such:engine", home=tmp_path)
    assert ran.returncode == 1 and "no_such:engine" in ran.stderr
    asked = spec.read(tmp_path / "d" / f"{study}.yaml")
    assert [task.name for task in asked.tasks] == tasks and asked.reference == "full"


def test_what_is_no_adapter_cannot_be_merged(tmp_path):
    ran = CliRunner().invoke(cli.app, ["merge", str(tmp_path), str(tmp_path / "out")])
    assert ran.exit_code == 1
    assert ran.stderr.strip().endswith(
        "no adapter, got no adapter_config.json; name a folder that PEFT or tunetrial saved"
    )


def test_bad_usage_exits_with_2(tmp_path):
    assert tunetrial("run", home=tmp_path).returncode == 2
    assert tunetrial("run", "study.yaml", "--no-such-option", home=tmp_path).returncode == 2


@pytest.mark.parametrize("verb", [(), *((verb,) for verb in VERBS)])
def test_help_fits_60_columns(tmp_path, verb):
    ran = tunetrial(*verb, "--help", home=tmp_path, columns=60)
    assert ran.returncode == 0 and all(len(line) <= 60 for line in ran.stdout.splitlines()), ran.stdout


def test_version_is_the_package_s(tmp_path):
    assert tunetrial("--version", home=tmp_path).stdout.strip() == __version__


def test_a_verb_has_six_options_at_most_and_json():
    for command in cli.app.registered_commands:
        names = command.callback.__annotations__
        arguments = {"study", "model", "data", "adapter"} & set(names)
        # plan and bench: with a study or without, bench a server too; rate: a page, a judge or a sheet, there and back;
        # ship: six formats, and how weights are merged; serve: which engine, and where; gate: the champion, and by what
        most = {cli.plan: 10, cli.bench: 17, cli.rate: 10, cli.ship: 16, cli.serve: 7, cli.gate: 8}
        most = most.get(command.callback, 6)
        assert len(names) - 1 <= most + len(arguments) and "json" in names, command.callback.__name__
    assert {command.callback.__name__ for command in cli.app.registered_commands} == set(VERBS)


def test_help_takes_less_than_300_ms_and_loads_nothing_heavy(tmp_path):
    """Processor time, since wall time on a busy machine says nothing of the program; median of five."""
    taken_s = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert tunetrial("--help", home=tmp_path).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert statistics.median(taken_s) < 0.3
    code = "import sys\nfrom tunetrial.cli import main\ntry:\n    main()\nfinally:\n    print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True).stdout.split()
    assert "typer" in loaded
    assert not {"torch", "transformers", "numpy", "pydantic", "rich", "pandas", "pyarrow", "scipy"} & set(loaded)


def test_a_study_shows_itself_in_a_notebook(tmp_path):
    path = write_study(tmp_path, more='question: "<b>Which?</b>"')
    study = Study.load(path)
    assert repr(study) == f"<Study study.yaml: full × lora on mail; 0 trials done, in {tmp_path / 'study-results'}>"
    assert "&lt;b&gt;Which?" in study._repr_html_() and "full (reference), lora" in study._repr_html_()


def test_frames_are_those_of_the_records(done):
    path, _ = done
    frames = Study.load(path).frames()
    assert set(frames) == {"trials", "curves", "scores"}
    assert len(frames["trials"]) == len(list((path.parent / "study-results" / "trials").iterdir()))
