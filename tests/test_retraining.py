"""A run trained once more on training and validation rows ships as itself: its rows, its score, its opening counted."""

import json

import pytest
from typer.testing import CliRunner

import shippable
from tunetrial import Study, cli, tasks
from tunetrial.core.errors import IntegrityError
from tunetrial.ship import scores
from tunetrial.ship.order import Order
from tunetrial.store import StudyFolder, TestLedger
from tunetrial.store.trial import TrialFolder

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's, in these tests


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))
    return shippable.make_study(tmp_path / "text", arms=("full", "lora"), seeds=1)


@pytest.mark.slow
def test_it_trains_on_all_rows_but_test_rows_once_and_says_so(study, tmp_path):
    (final, _) = shippable.finals(study, "lora")[0]
    asked = ["ship", str(study.path), "--arm", "lora", "--retrain-final", "--json", "--to"]
    ran = CliRunner().invoke(cli.app, [*asked, str(tmp_path / "out")])
    assert ran.exit_code == 0, ran.output
    made = json.loads(ran.stdout)
    assert made["trial"] != final.trial.id and made["seed"] == final.trial.seed
    assert made["why"].endswith("trained once more on 48 training and 12 validation rows")

    (folder,) = (study.folder / "retrained" / "trials").iterdir()
    record = TrialFolder(folder).record()
    assert (record.trial.learning_rate, record.trial.arm) == (final.trial.learning_rate, final.trial.arm)
    steps = [r.measurements["steps"].value for r in (final, record)]
    assert steps == [48 / 4 * 4, 60 / 4 * 4]  # four epochs, four rows a step
    data = tasks.load(study.asked.tasks[0], study.path.parent)
    tested = TrialFolder(folder).scores(record)["test"]
    assert set(tested.example_id_E) == {example.id for example in data.splits["test"]}

    kept = scores.read(tmp_path / "out" / scores.NAME)[0]
    assert -kept.score_E.mean() == pytest.approx(record.measurements["test.nll"].value)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trained once more on 48 training and 12 validation rows" in card
    assert "Trained on training and validation rows together, once: its test score is of this run alone." in card
    own = StudyFolder(study.folder).read_lock().tested("mail")
    ledger = TestLedger(tmp_path / "home")
    assert ledger.count(own) == 1 and "test rows opened: once" in card

    again = CliRunner().invoke(cli.app, [*asked, str(tmp_path / "again")])  # is there: neither trained nor opened again
    assert again.exit_code == 0 and json.loads(again.stdout)["trial"] == made["trial"] and ledger.count(own) == 1
    assert "training lora on 60 rows" in ran.stderr and "training lora" not in again.stderr
    assert record.trial.id not in study.decide().record_digests


def test_other_rows_than_the_study_s_are_refused_and_leave_nothing(study, tmp_path):
    rows = study.path.parent / "train.jsonl"
    rows.write_text(rows.read_text().replace("0 train", "0 again", 1))
    with pytest.raises(IntegrityError, match="mail: rows are not those of the study; restore them"):
        study.ship(Order(arm="lora", format="adapter", retrain=True), tmp_path / "no")
    assert not (tmp_path / "no").exists() and not (study.folder / "retrained" / "trials").exists()
