"""Studies of text: what a trial measures and keeps, what an arm must beat, and a whole study to its verdict."""

import json
from dataclasses import replace

import numpy as np
import pytest

import planted
from trial_study import load
from tunetrial import tasks
from tunetrial.analysis import arms, decide, metrics
from tunetrial.core.errors import EvidenceError, IntegrityError
from tunetrial.core.evidence import Scores, TrialRecord
from tunetrial.core.study import Arm, Controls, DataPin, Lock, Rule, Study, TaskSpec, Trial
from tunetrial.engine.sim import SimEngine, Truth, World
from tunetrial.store import StudyFolder
from tunetrial.trial.execution import Terms, carry_out

SCHEMA = '{"type": "object", "required": ["n"]}'


class Watch:
    def started(self, facts): ...

    def stepped(self, step): ...


def trial(purpose: str = "final") -> Trial:
    controls = Controls(base_fingerprint="f", precision="fp32", readout="text", max_new_tokens=16, batch_examples=16)
    arm = Arm(name="lora", method="lora")
    return Trial(arm=arm, controls=controls, task="t", data_digest="d", learning_rate=1e-3, seed=1, purpose=purpose)


def code(tmp_path, rows: int = 60):
    """A task of code: the n-th completion sets n, and so do its tests."""
    made = [{"q": f"set n to {n}", "a": f'{{"n": {n}}}', "t": f"assert {{}} != {n}"} for n in range(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    spec = dict(name="t", kind="generate", metric="exact_match", margin=0.1, data="rows.jsonl")
    return tasks.load(TaskSpec(**spec, input="{{ q }}", target="a", tests="t"), tmp_path)


def carried_out(tmp_path, *, quality: float = 0.7, purpose: str = "final"):
    engine = SimEngine(World(arms={"lora": Truth(quality=quality, best_rate=1e-3, seed_sd=0)}))
    folder = StudyFolder(tmp_path / "study").trial(trial(purpose))
    terms = Terms("exact_match", synthetic=True, json_schema=SCHEMA)
    data = code(tmp_path)
    session = engine.open(tmp_path, "fp32")
    [record] = carry_out([trial(purpose)], data, session, [folder], terms=terms, watch=Watch())
    return record, folder


def test_another_schema_is_another_trial():
    """Its answers would be held against another schema than the records say."""
    ids = {}
    for schema in (None, SCHEMA, '{"type": "object"}'):
        spec = TaskSpec(name="t", kind="generate", metric="chrf", margin=0.1, data="d", json_schema=schema)
        arms_ = (Arm(name="full", method="full"),)
        study = Study(question="", base_model="b", tasks=(spec,), arms=arms_, reference="full", rule=Rule(primary="t"))
        pins = {"t": DataPin(digests={"train": "x"}, counts={"train": 1})}
        lock = Lock(study=study, base_fingerprint="f", parameters=1, precision="fp32", data=pins)
        ids[schema] = lock.trial("full", "t", learning_rate=1e-3, seed=1, purpose="tune").id
    assert len(set(ids.values())) == 3


def test_a_trial_of_text_measures_every_metric_and_keeps_texts_and_columns(tmp_path):
    record, folder = carried_out(tmp_path)
    named = {name.removeprefix("test.") for name in record.measurements if name.startswith("test.")}
    assert named == {metric.name for metric in metrics.of_kind("generate")}
    scores = folder.scores(record)["test"]
    assert set(scores.measured) == {"nll", "tokens", "schema_valid", "tests_pass"}
    assert all(isinstance(text, str) for text in scores.prediction_E)
    right = np.mean(scores.target_E == scores.prediction_E)
    assert record.measurements["test.exact_match"].value == right
    assert record.measurements["test.nll"].value == pytest.approx(
        scores.measured["nll"].sum() / scores.measured["tokens"].sum()
    )
    assert record.measurements["test.schema_valid"].value == 1 == record.measurements["test.valid_json"].value
    assert record.measurements["test.tests_pass"].value == scores.measured["tests_pass"].mean() == 1
    assert "no network" in record.resolved["sandbox"] or record.resolved["sandbox"] == "limits alone"
    with pytest.raises(IntegrityError, match="expected scores with SHA-256"):
        path = folder.path / "scores.parquet"
        _spoil(path)
        folder.scores(record)


def _spoil(path):
    from pyarrow import compute, parquet

    table = parquet.read_table(path)
    column = table.column_names.index("measured.nll")
    parquet.write_table(table.set_column(column, "measured.nll", compute.add(table["measured.nll"], 1e-9)), path)


def test_a_tuning_trial_of_text_sees_no_test_rows(tmp_path):
    record, _ = carried_out(tmp_path, purpose="tune")
    assert "validation.nll" in record.measurements and not any(n.startswith("test.") for n in record.measurements)


def test_the_simulator_plants_what_a_text_study_finds(tmp_path):
    """The share of right completions, a likelihood that follows it, and the same again for the same seed."""
    world = World(arms={"lora": Truth(quality=0.7, best_rate=1e-3, seed_sd=0)})
    data = code(tmp_path, rows=3000)
    run = SimEngine(world).open(tmp_path, "fp32").start(trial(), data)
    for _ in run.steps(None):
        pass
    rows = data.splits["train"]
    said = run.predict(rows)
    assert np.mean([s == e.target for s, e in zip(said, rows, strict=True)]) == pytest.approx(0.7, abs=0.03)
    assert set(said) <= {e.target for e in rows} and said == run.predict(rows)
    nll, tokens = np.sum(run.likelihoods(rows), axis=0)
    assert nll / tokens == pytest.approx(-np.log(0.7), rel=0.03)
    other = SimEngine(world).open(tmp_path, "fp32").start(trial().model_copy(update={"seed": 2}), data)
    for _ in other.steps(None):
        pass
    assert other.predict(rows) != said


def test_measured_columns_must_be_finite_and_one_an_example(tmp_path):
    ids, said = ("a", "b"), np.array(["x", "y"], dtype=object)
    folder = StudyFolder(tmp_path).trial(trial("tune"))
    for column in (np.array([1.0, np.inf]), np.array([1.0]), np.array(["a", "b"])):
        folder.begin()
        record = TrialRecord(trial=trial("tune"), status="ok")
        with pytest.raises(EvidenceError, match="validation scores: nll needs a finite number for each example"):
            folder.finish(record, {"validation": Scores(ids, ids, said, said, {"nll": column})})


# What an arm must beat


@pytest.mark.parametrize(
    ("metric", "quality", "words"),
    [
        ("exact_match", {"full": 0.8, "lora": 0.8}, "SAME (within your margin)"),
        ("nll", {"full": 0.8, "lora": 0.5}, "BETTER"),
        ("nll", {"full": 0.5, "lora": 0.8}, "WORSE"),
    ],
)
def test_verdicts_on_texts(metric, quality, words):
    found = planted.evidence(planted.lock(metric=metric, margin=0.1), quality)
    decision = decide(found)
    assert [c.words for c in decision.verdicts] == [words]
    assert {a.state for a in decision.arms} == {"trained"}
    assert all(check.holds for check in decision.fairness), decision.fairness


def test_the_floor_of_texts_is_the_most_frequent_target_and_a_likelihood_has_none():
    of = {m: planted.evidence(planted.lock(metric=m), {"full": 0.8, "lora": 0.8}) for m in ("exact_match", "nll")}
    result = arms.outcome(of["exact_match"], "mail", "full").result
    rows = arms.scored_rows(of["exact_match"], "mail")
    assert result.floor == np.mean(rows.target_E == arms.constant(of["exact_match"], "mail"))
    assert arms.outcome(of["nll"], "mail", "full").result.floor is None


def test_an_arm_that_writes_the_most_frequent_target_did_not_train():
    found = planted.evidence(planted.lock(metric="exact_match"), {"full": 0.8, "lora": 0.8})
    constant = arms.constant(found, "mail")
    lora = {r.trial.id for r in found.of(purpose="final", arm="lora")}
    said = {
        key: replace(s, prediction_E=np.full(len(s.target_E), constant)) if key[0] in lora else s
        for key, s in found.scores.items()
    }
    assert arms.outcome(replace(found, scores=said), "mail", "lora").result.state == "did not train"


def test_a_final_that_diverged_counts_as_the_worst_likelihood_on_each_example():
    found = planted.evidence(planted.lock(metric="nll"), {"full": 0.8, "lora": 0.5}, diverged={"lora": 1})
    outcome = arms.outcome(found, "mail", "lora")
    finals = [found.scores[r.trial.id, "test"] for r in found.of(purpose="final") if r.status == "ok"]
    parts = [metrics.contributions(metrics.find("nll"), s) for s in finals]
    assert outcome.parts[1] == pytest.approx(np.min(parts, axis=0))
    assert outcome.result.failed == 1 and outcome.result.state == "trained"
    assert outcome.result.mean > np.mean(list(outcome.result.values.values())), "a failure costs"
    assert outcome.result.mean == pytest.approx((sum(outcome.result.values.values()) - outcome.parts[1].mean()) / 5)


def test_finals_without_the_measured_column_are_not_scored():
    found = planted.evidence(planted.lock(metric="nll"), {"full": 0.8, "lora": 0.5})
    key = next(key for key in found.scores if key[1] == "test")
    broken = replace(found.scores[key], measured={"nll": np.full(len(found.scores[key].target_E), np.nan)})
    assert not arms.sound(broken)


# A whole study


@pytest.mark.slow
def test_a_study_of_conversations_runs_to_its_verdict_and_report(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))
    for split, rows in (("train", 60), ("validation", 40), ("test", 80)):
        said = [
            [{"from": "human", "value": f"{split} {n} <b>?"}, {"from": "gpt", "value": f"<script>{n % 3}</script>"}]
            for n in range(rows)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps({"conversations": c}) + "\n" for c in said))
    (tmp_path / "study.yaml").write_text("""
base_model: embedded
tasks:
  - {name: mail, data: train.jsonl, validation: validation.jsonl, test: test.jsonl, kind: generate,
     messages: conversations, metric: exact_match, margin: 0.1}
arms: [full, lora]
replicates: {looks: [3]}
tuning: {points: 3, max_points: 3}
epochs: 1
""")
    study = load(tmp_path / "study.yaml", "plain").run()
    assert study.outcome.status == "done" and study.outcome.failed == {}
    decision = study.decide()
    assert {a.state for a in decision.arms} == {"trained"} and decision.verdicts[0].metric == "exact_match"
    page, frame = study.report().read_text(), study.frames()["scores"]
    assert "<script>0" not in page and "exact match" in page and "training loss, nats a token" in page
    assert {"nll", "tokens"} <= set(frame.columns) and frame["prediction"].str.startswith("<script>").all()
    final = study.outcome.evidence.of(purpose="final")[0].trial
    assert (final.controls.readout, final.controls.max_new_tokens) == ("text", 128)
