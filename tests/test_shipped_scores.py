"""Scores travel with what ships: two versions of a study are compared by themselves, and the look is counted as one at
the study's own test rows."""

import json
import shutil

import numpy as np
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

import shippable
from tunetrial import Study, cli
from tunetrial.core.errors import IntegrityError
from tunetrial.ship import scores
from tunetrial.ship.order import Order
from tunetrial.ship.shipped import read_shipped
from tunetrial.store import StudyFolder, TestLedger

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's, in these tests


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return shippable.make_study(tmp_path_factory.mktemp("text"), arms=("full", "lora"), seeds=1)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def tunetrial(*words: object, status: int = 0) -> str:
    ran = CliRunner().invoke(cli.app, list(map(str, words)))
    assert ran.exit_code == status, ran.output
    return ran.output


def versions_of(study, tmp_path) -> None:
    for arm, format, alias in (("full", "merged", "champion"), ("lora", "adapter", "challenger")):
        study.ship(Order(arm=arm, format=format), tmp_path / arm)
        tunetrial("registry", "add", "mail", tmp_path / arm)
        tunetrial("registry", "promote", f"mail@{1 if arm == 'full' else 2}", "--alias", alias)


def test_versions_of_a_study_are_compared_by_what_they_brought(study, tmp_path, home):
    versions_of(study, tmp_path)
    asked = ("registry", "compare", "mail", "--margin", 0.05, "--json")
    found = json.loads(tunetrial(*asked))
    (full, folder), (lora, other) = (shippable.finals(study, arm)[0] for arm in ("full", "lora"))
    ids = [trial.scores(record)["test"].example_id_E for record, trial in ((full, folder), (lora, other))]
    means = [record.measurements["test.nll"].value for record in (full, lora)]
    assert ids[0] == ids[1] and found["comparison"]["n_examples"] == 12 and found["as_trained"]
    assert found["comparison"]["effect"] == pytest.approx(means[0] - means[1])  # turned: lower nll is better
    own = StudyFolder(study.folder).read_lock().tested("mail")
    assert found["items"] == own and found["times_opened"] == TestLedger(home).count(own) == 1
    text = tunetrial(*asked[:-1])
    assert "scores are of the runs as trained, not of merged or quantised files" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_a_lower_level_narrows_the_interval(study, tmp_path):
    versions_of(study, tmp_path)
    asked = ("registry", "compare", "mail", "--margin", 0.05, "--json")
    wide, narrow = (json.loads(tunetrial(*asked, "--level", level))["comparison"] for level in (0.95, 0.8))
    assert (wide["level"], narrow["level"]) == (0.95, 0.8)
    assert wide["low"] < narrow["low"] < narrow["effect"] < narrow["high"] < wide["high"]
    for level in ("0.3", "1", "nan"):
        assert "--level: a share from 0.5 to below 1" in tunetrial(*asked, "--level", level, status=2)


def test_tables_that_are_named_count_by_their_own_items(study, tmp_path, home):
    versions_of(study, tmp_path)
    given = ",".join(str(tmp_path / arm / scores.NAME) for arm in ("full", "lora"))
    found = json.loads(tunetrial("registry", "compare", "mail", "--margin", 0.05, "--scores", given, "--json"))
    own = StudyFolder(study.folder).read_lock().tested("mail")
    assert not found["as_trained"] and found["items"] != own and TestLedger(home).count(own) == 0


def test_what_travels_are_test_rows_alone_and_none_to_the_hub(study, tmp_path):
    study.ship(Order(arm="lora", format="vllm"), tmp_path / "vllm")
    record, folder = shippable.finals(study, "lora")[0]
    kept, whole = parquet.read_table(tmp_path / "vllm" / scores.NAME), folder.scores(record)["test"]
    assert kept.column_names == list(scores.COLUMNS) and set(kept["split"].to_pylist()) == {"test"}
    assert tuple(kept["example_id"].to_pylist()) == whole.example_id_E
    assert -np.mean(kept["score"].to_pylist()) == pytest.approx(record.measurements["test.nll"].value)
    weights = study.path.parent / "base" / "model.safetensors"
    assert read_shipped(tmp_path / "vllm").base_bytes == weights.stat().st_size
    assert read_shipped(tmp_path / "vllm").test_rows == StudyFolder(study.folder).read_lock().tested("mail")
    study.ship(Order(arm="lora", format="hub"), tmp_path / "hub")
    assert not (tmp_path / "hub" / scores.NAME).exists() and read_shipped(tmp_path / "hub").test_rows is None


def test_scores_that_were_altered_after_the_study_was_read_are_refused(study, tmp_path):
    copied = Study.load(shutil.copytree(study.path.parent, tmp_path / "study") / "study.yaml")
    copied.decide()
    path = shippable.finals(copied, "lora")[0][1].path / scores.NAME
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match=r"scores.parquet: expected SHA-256 .*, got .*; restore the file"):
        copied.ship(Order(arm="lora", format="adapter"), tmp_path / "no")
    assert not (tmp_path / "no").exists()
