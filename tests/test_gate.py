"""`tunetrial gate`: every answer of every gate, with the status that CI goes by."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from pyarrow import parquet
from scipy import stats
from typer.testing import CliRunner

from shipped_folders import score_table, shipped
from trial_study import load, write_study
from tunetrial import cli
from tunetrial.core import manifest
from tunetrial.ship import gate as gates
from tunetrial.ship.registry import Registry
from tunetrial.store import StudyFolder, TestLedger

MORE = """
require: {mail.accuracy: ">= 0.1"}
limits: {peak_gib: 1000}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNETRIAL_HOME", str(folder / "home"))
        study = load(write_study(folder, more=MORE), "plain")
        study.run().decide()
        yield study


@pytest.fixture(autouse=True)
def _own_home(done, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))


def gate(study, *options, code=0, path=None):
    ran = CliRunner().invoke(cli.app, ["gate", str(path or study.path), "--folder", study.folder, *map(str, options)])
    assert ran.exit_code == code, (ran.stdout, ran.stderr, ran.exception)
    return ran


def answers(study, *options, code=0, path=None):
    made = json.loads(gate(study, *options, "--json", code=code, path=path).stdout)
    return {one["name"]: one["answer"] for one in made["gates"]}, made


def restated(done, tmp_path, *changes):
    """The study file with its bars changed, and a copy of the results to decide by it."""
    text = done.path.read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path = tmp_path / "study.yaml"
    path.write_text(text)
    for split in done.path.parent.glob("*.jsonl"):
        shutil.copy(split, tmp_path)
    folder = shutil.copytree(done.folder, tmp_path / "results")
    return load_at(path, folder)


def load_at(path, folder):
    from tunetrial import Study

    return Study.load(path, folder=folder)


def finals(study, arm):
    found = [r for r in StudyFolder(study.folder).records() if (r.trial.purpose, r.trial.arm.name) == ("final", arm)]
    return sorted(found, key=lambda record: record.trial.seed)


def table(study, trial):
    """Test scores of a trial by example, read without the code that is tested."""
    rows = parquet.read_table(study.folder / "trials" / trial / "scores.parquet").to_pylist()
    return {row["example_id"]: row for row in rows if row["split"] == "test"}


def folder_of(done, to, *, trial=None, arm="lora", passed=True, seal=True, files=None):
    trial = trial or finals(done, arm)[0].trial.id
    breaks = None if passed is not False else "q8_0 file"
    made = shipped(to, arm=arm, trial=trial, chain={"passed": passed, "first_break": breaks}, files=files)
    if seal:
        manifest.seal(made)
    return made


def champion(done, tmp_path, score_of, *, files=None, trial="00" * 8):
    """A registry whose champion has, on the study's own test rows, the scores that the function makes of them."""
    rows = table(done, finals(done, "full")[0].trial.id)
    made = score_table(
        np.array([score_of(row) for row in rows.values()]), ids=list(rows), targets=[r["target"] for r in rows.values()]
    )
    registry = Registry.at(tmp_path / "home" / "registry")
    kept = {"scores.parquet": made} if files is None else files
    registry.add("mail", shipped(tmp_path / "champion", trial=trial, files=kept))
    registry.promote("mail", "1", "champion")


def test_floors_and_limits_pass_and_what_is_not_asked_says_how_to_ask(done):
    said, made = answers(done, "--arm", "full")
    assert said == {
        "verdict": "PASS",
        "floors": "PASS",
        "limits": "PASS",
        "fidelity": "not asked",
        "champion": "not asked",
    }
    assert made["answer"] == "PASS" and made["arm"] == "full"
    shown = gate(done, "--arm", "full").stdout
    assert shown.startswith("gate: PASS: full on mail\n") and len(shown.splitlines()) <= 10
    assert "mail.accuracy" in shown and "is >= 0.1" in shown and "within the limit of 1000" in shown
    assert "name a folder with --shipped" in shown and "runs are simulated" in shown


def test_the_recommended_arm_is_gated_if_none_is_named(done):
    assert answers(done)[1]["arm"] == done.decide().recommendation


def test_a_missed_floor_and_an_exceeded_limit_fail(done, tmp_path):
    study = restated(done, tmp_path, (">= 0.1", ">= 0.999"), ("peak_gib: 1000", "peak_gib: 0.000001"))
    said, made = answers(study, "--arm", "full", code=1)
    assert (said["floors"], said["limits"], made["answer"]) == ("FAIL", "FAIL", "FAIL")
    assert any("is not >= 0.999" in line for gate in made["gates"] for line in gate["said"])
    assert any("changed after results" in note for note in made["notes"])


def test_every_arm_out_fails_without_a_name_too(done, tmp_path):
    study = restated(done, tmp_path, (">= 0.1", ">= 0.999"))
    said, made = answers(study, code=1)
    assert said["verdict"] == "FAIL" and made["arm"] is None
    assert [line for line in made["gates"][0]["said"] if line.startswith("full is out: mail.accuracy")]


def test_what_was_not_measured_cannot_be_told(done, tmp_path):
    study = restated(done, tmp_path)
    for record in StudyFolder(study.folder).records():
        if record.trial.purpose == "probe":
            shutil.rmtree(study.folder / "trials" / record.trial.id)
    said, made = answers(study, "--arm", "full", code=5)
    assert said["limits"] == "CAN'T TELL" and made["answer"] == "CAN'T TELL"
    assert made["gates"][2]["said"][0] == "peak_gib is limited to 1000 and was not measured"


def test_fidelity_goes_by_the_chain_of_this_very_folder(done, tmp_path):
    good = folder_of(done, tmp_path / "good")
    said, made = answers(done, "--shipped", good)
    assert said["fidelity"] == "PASS" and made["arm"] == "lora" and made["trial"] == finals(done, "lora")[0].trial.id
    broken = folder_of(done, tmp_path / "broken", passed=False)
    said, made = answers(done, "--shipped", broken, code=1)
    assert said["fidelity"] == "FAIL" and made["gates"][3]["said"] == ["the chain breaks at q8_0 file"]
    untried = folder_of(done, tmp_path / "untried", passed=None)
    assert answers(done, "--shipped", untried, code=5)[0]["fidelity"] == "CAN'T TELL"
    bare = folder_of(done, tmp_path / "bare", seal=False)
    assert answers(done, "--shipped", bare, code=5)[0]["fidelity"] == "CAN'T TELL"


def test_a_shipped_file_that_was_altered_or_added_fails(done, tmp_path):
    made = folder_of(done, tmp_path / "made")
    weights = made / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    said, told = answers(done, "--shipped", made, code=1)
    assert said["fidelity"] == "FAIL" and "not as it was shipped, got other bytes" in told["gates"][3]["said"][0]
    more = folder_of(done, tmp_path / "more")
    (more / "new.json").write_text("{}")
    assert "a file that it does not list" in gate(done, "--shipped", more, code=1).stdout


@pytest.mark.parametrize(
    ("score_of", "answer", "code"),
    [
        (lambda row: 0.0, "PASS", 0),
        (lambda row: row["score"] + (int(row["example_id"].split("-")[1]) % 2) * 0.01 + 0.5, "FAIL", 1),
        (lambda row: 1 - row["score"], None, None),
    ],
)
def test_not_worse_than_the_champion_is_a_paired_t_interval_over_items(done, tmp_path, score_of, answer, code):
    champion(done, tmp_path, score_of)
    ran = CliRunner().invoke(cli.app, ["gate", str(done.path), "--arm", "full", "--against", "mail@champion", "--json"])
    made = json.loads(ran.stdout)
    found = made["comparison"]
    own, rows = table(done, made["trial"]), table(done, finals(done, "full")[0].trial.id)
    differences = [own[name]["score"] - score_of(row) for name, row in rows.items()]
    expected = stats.ttest_1samp(differences, 0)
    ends = expected.confidence_interval(found["level"])
    assert found["effect"] == pytest.approx(np.mean(differences))
    assert (found["low"], found["high"]) == pytest.approx((ends.low, ends.high))
    last = made["gates"][4]
    words = {"BETTER": "PASS", "WORSE": "FAIL", "CAN'T TELL YET": "CAN'T TELL"}
    assert last["answer"] == words.get(found["words"], "PASS") and found["margin"] == 0.05
    assert ran.exit_code == {"PASS": 0, "FAIL": 1, "CAN'T TELL": 5}[made["answer"]]
    if answer:
        assert (last["answer"], ran.exit_code) == (answer, code)
    looks = [json.loads(line) for line in (tmp_path / "home" / "test_ledger.jsonl").read_text().splitlines()]
    assert [look["what"].rpartition(" against ")[2] for look in looks].count("mail@1") == 1


def test_a_champion_of_this_study_needs_no_table_and_the_run_itself_passes(done, tmp_path):
    ids = [record.trial.id for record in finals(done, "full")]
    own = answers(done, "--arm", "full")[1]["trial"]
    champion(done, tmp_path, lambda row: 0.0, files={}, trial=own)
    said, made = answers(done, "--arm", "full", "--against", "mail")
    assert said["champion"] == "PASS" and made["gates"][4]["said"] == ["mail@1 is this very run"]
    other = next(trial for trial in ids if trial != own)
    registry = Registry.at(tmp_path / "home" / "registry")
    registry.add("mail", shipped(tmp_path / "second", b"other", trial=other))
    made = json.loads(
        CliRunner().invoke(cli.app, ["gate", str(done.path), "--arm", "full", "--against", "mail@2", "--json"]).stdout
    )
    assert made["comparison"]["n_examples"] == 50
    lock = StudyFolder(done.folder).read_lock()
    seen = TestLedger(tmp_path / "home").openings(lock.data["mail"].digests["test"])
    assert [one.what for one in seen if one.what.endswith("against mail@2")] == [f"full (run {own[:8]}) against mail@2"]


def test_a_champion_without_scores_or_on_other_items_cannot_be_told(done, tmp_path):
    champion(done, tmp_path, lambda row: 0.0, files={})
    said, made = answers(done, "--arm", "full", "--against", "mail@champion", code=5)
    assert said["champion"] == "CAN'T TELL" and "has no scores of its own" in made["gates"][4]["said"][0]
    other = tmp_path / "other.parquet"
    other.write_bytes(score_table(np.arange(5.0)))
    said, made = answers(done, "--arm", "full", "--against", "mail@champion", "--scores", other, code=5)
    assert "must be the same for both versions" in made["gates"][4]["said"][0]


def test_bad_input_is_one_line(done, tmp_path):
    for options, code, line in (
        (("--arm", "lorra"), 1, "gate: no such arm, got 'lorra'"),
        (("--against", "mail@champion"), 1, "no such name, got 'mail'"),
        (("--shipped", tmp_path / "none"), 1, "no such folder"),
        (("--shipped", shipped(tmp_path / "alien")), 1, "was shipped from other runs than this study's"),
        (("--shipped", folder_of(done, tmp_path / "ours"), "--arm", "full"), 1, "is of arm lora, got --arm full"),
        (("--scores", tmp_path / "x"), 2, "go with --against"),
        (("--against", "mail", "--margin", 0), 2, "above 0"),
    ):
        ran = gate(done, *options, code=code)
        assert line in ran.stderr and len(ran.stderr.splitlines()) == 1 and not ran.stdout, options


def test_a_floor_is_not_told_where_finals_are_still_to_come(done):
    evidence, decision = done._conclude()
    study = evidence.lock.study.model_copy(update={"require": {"mail.accuracy": ">= 0.1"}})
    asked = replace(evidence, lock=evidence.lock.model_copy(update={"study": study}))
    waiting = [one.model_copy(update={"state": "pending"}) if one.arm == "lora" else one for one in decision.arms]
    told = {
        arm: gates._floors(asked, decision.model_copy(update={"arms": tuple(waiting)}), arm) for arm in ("full", "lora")
    }
    assert told["full"][0].holds is True
    assert told["lora"][0].holds is None and "has not all its finals" in told["lora"][0].said
