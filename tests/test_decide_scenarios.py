"""`tunetrial decide --scenario` on a finished study: argued, kept, weighed again, and enough for a page by itself."""

import base64
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trial_study import write_study
from tunetrial import Study
from tunetrial.core.errors import IntegrityError

TUNETRIAL = [sys.executable, "-c", "from tunetrial.cli import main; main()"]
OURS = """
name: ours
title: Ours <b>
criteria:
  quality: {weight: 0.4}
  year_usd: {weight: 0.4, worst: 100000, best: 1, log: true}
  latency_ms: {weight: 0.1, worst: 100, best: 1}
opinions:
  strategic fit: {weight: 0.1, scores: {full: 6, lora: 7}}
inputs:
  tenants: 30
  requests_per_month: 5000000
  retrainings_per_month: 2
  usd_per_hour: 1.5
  usd_per_gb_month: 0.1
  engineer_hours: 10
  usd_per_engineer_hour: 90
  room_gib: 0.5
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uses")
    before = os.environ.get("TUNETRIAL_HOME")
    os.environ["TUNETRIAL_HOME"] = str(folder / "home")
    path = write_study(folder, more="replicates: {looks: [5]}")
    Study.load(path, engine="sim").run().decide()
    (folder / "ours.yaml").write_text(OURS)
    yield path
    os.environ.pop("TUNETRIAL_HOME") if before is None else os.environ.update(TUNETRIAL_HOME=before)


def tunetrial(*arguments):
    return subprocess.run([*TUNETRIAL, *map(str, arguments)], capture_output=True, text=True)


def test_a_scenario_is_argued_in_lines_of_at_most_100_columns_and_trains_nothing(done):
    records = sorted(done.parent.glob("study-results/trials/*/record.json"))
    stamps = [path.stat().st_mtime_ns for path in records]
    ran = tunetrial("decide", done, "--scenario", "saas", "--scenario", done.parent / "ours.yaml")
    assert ran.returncode == 0, ran.stderr
    assert max(map(len, ran.stdout.splitlines())) <= 100
    assert "Customer-service SaaS, standard tier (saas): " in ran.stdout and "strategic fit" in ran.stdout
    assert "(your opinion)" in ran.stdout.replace("\n  ", " ") and "Weighed by quality 0.40" in ran.stdout
    assert [path.stat().st_mtime_ns for path in records] == stamps


def test_the_study_s_own_decision_stays_what_it_is(done):
    own = Study.load(done).decide()
    (weighed,) = Study.load(done).weigh("creative")
    again = Study.load(done).decide()
    assert weighed.asked.name == "creative"
    assert (own.recommendation, own.because, own.flips) == (again.recommendation, again.because, again.flips)


def test_what_was_asked_is_kept_shown_and_weighed_again_to_the_same_bytes(done):
    study = Study.load(done)
    study.weigh("saas", done.parent / "ours.yaml")
    kept = done.parent / "study-results" / "scenarios.json"
    before = kept.read_bytes()
    page = study.report().read_text()
    assert 'id="scenarios"' in page and "Ours &lt;b&gt;" in page and "Ours <b>" not in page
    assert "## Other uses" in (done.parent / "study-results" / "report.md").read_text()
    study.decide()
    assert kept.read_bytes() == before


def test_json_is_the_weighed_scenarios(done):
    ran = tunetrial("decide", done, "--scenario", "startup", "--json")
    (found,) = json.loads(ran.stdout)["weighed"]
    assert found["asked"]["name"] == "startup" and set(found["standings"]) <= {"full", "lora"}


def test_bad_use_is_one_line(done):
    ran = tunetrial("decide", done, "--scenario", "saas", "--all")
    assert (ran.returncode, ran.stdout) == (2, "") and "do not go together" in ran.stderr
    ran = tunetrial("decide", done, "--scenario", "sas")
    assert ran.returncode == 1 and ran.stderr.count("\n") == 1 and "did you mean 'saas'?" in ran.stderr


def year_usd(taken, x):
    """docs/decide.md's formulas, written down again from scenarios.json alone."""
    n, hour = x["tenants"], x["usd_per_hour"] / 3600

    def of(name):
        return taken[name]["value"] if taken[name] else 0.0

    iteration = sum(taken["cycle_s"][part]["value"] for part in ("train", "export", "test"))
    once = (of("tuning_s") + of("finals_s") + of("evaluation_s") + (n - 1) * iteration) * hour
    once += x["engineer_hours"] * x["usd_per_engineer_hour"]
    rate = of("together_per_s") if n > 1 else of("alone_per_s")
    busy = math.ceil(x["requests_per_month"] / (rate * 730 * 3600))
    room = x["room_gib"] * 2**30 - of("resident_base_bytes")
    filled = math.ceil(n / math.floor(room / of("resident_bytes")))
    month = (of("base_bytes") + n * of("artifact_bytes")) / 1e9 * x["usd_per_gb_month"]
    month += max(1, busy, filled) * 730 * x["usd_per_hour"]
    month += n * x["retrainings_per_month"] * iteration * hour
    return once + 12 * month


def test_a_page_can_weigh_again_from_the_file_alone(done):
    Study.load(done).weigh(done.parent / "ours.yaml")
    sheet = json.loads((done.parent / "study-results" / "scenarios.json").read_text())
    one = next(w for w in sheet["weighed"] if w["asked"]["name"] == "ours")
    taken = {t["arm"]: t for t in sheet["taken"]}
    assert sheet["synthetic"] is True and one["standings"]
    scores = {}
    for arm, standing in one["standings"].items():
        measured = {name: m["value"] for name, m in sheet["arms"][arm]["measured"].items()}
        measured["year_usd"] = year_usd(taken[arm], one["inputs"])
        measured["strategic fit"] = one["asked"]["opinions"]["strategic fit"]["scores"][arm]
        score = 0.0
        for w in one["weights"]:
            x, worst, best = measured[w["name"]], w["worst"], w["best"]
            assert x == pytest.approx(standing["amounts"][w["name"]][0])
            part = math.log(max(x, min(worst, best)) / worst) / math.log(best / worst) if w["log"] else None
            value = (x - worst) / (best - worst) if part is None else part
            score += w["share"] * min(max(value, 0), 1)
        assert score == pytest.approx(standing["score"])
        scores[arm] = score
    assert max(scores, key=scores.get) == next(iter(one["standings"]))
    drawn = sheet["draws"]["quality"]
    amounts = {arm: np.frombuffer(base64.b64decode(text), "<f4") for arm, text in drawn.items()}
    assert {len(values) for values in amounts.values()} == {4000}
    assert amounts["full"].mean() == pytest.approx(sheet["arms"]["full"]["measured"]["quality"]["value"], rel=0.01)
    lengths = sheet["draws"].get("run_length", {})
    assert all(np.frombuffer(base64.b64decode(t), "<f4").mean() == pytest.approx(1, rel=0.05) for t in lengths.values())


def test_a_damaged_file_of_scenarios_is_refused_and_the_old_stays(done):
    study = Study.load(done)
    study.weigh("saas")
    kept = Path(study.folder) / "scenarios.json"
    before = kept.read_text()
    kept.write_text(before[: len(before) // 2])
    for again in (study.report, study.decide):  # the first of a decision that is already made
        with pytest.raises(IntegrityError, match="not scenarios of this version, got"):
            again()
    kept.write_text(before)
    study.decide()
