"""Arms without a training step: the untuned base with and without examples, and a linear model of words."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from tiny import make_data, make_model, make_trial
from trial_study import write_study
from tunetrial import Study, spec
from tunetrial.core.errors import DataError, SpecError
from tunetrial.core.evidence import Example
from tunetrial.core.study import Arm, Trial
from tunetrial.engine.torch_engine import TorchEngine
from tunetrial.engine.untuned import with_shots
from tunetrial.methods import METHODS
from tunetrial.store import StudyFolder


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return TorchEngine(device="cpu").open(make_model(tmp_path_factory.mktemp("tiny"), hidden=32), "fp32")


def trial(method: str, *, seed: int = 1, readout: str = "labels", **settings) -> Trial:
    made = make_trial("lora", readout=readout, seed=seed)
    return made.model_copy(update={"learning_rate": None, "arm": Arm(name=method, method=method, settings=settings)})


def test_what_takes_no_steps_and_what_is_random_is_said_alike_by_arms_and_methods():
    for name, method in METHODS.items():
        assert Arm(name=name, method=name).untrained == (not method.tuned)
    assert Arm(name="a", method="none", settings={"shots": 0}).fixed and Arm(name="a", method="tfidf").fixed
    assert not Arm(name="a", method="none", settings={"shots": 2}).fixed and not Arm(name="a", method="full").fixed


def test_untuned_base_reads_what_a_lora_that_changes_nothing_reads(session):
    data = make_data("classify", rows=16)
    run = session.start(trial("none"), data)
    assert list(run.steps(None)) == [] and run.token_digest is None
    ours, nats = run.predict(data.splits["validation"]), run.likelihoods(data.splits["validation"])
    fresh = session.start(make_trial("lora", readout="labels"), data)
    assert ours == fresh.predict(data.splits["validation"])
    assert nats == fresh.likelihoods(data.splits["validation"])


def test_shots_are_training_rows_drawn_by_the_seed(session, tmp_path):
    data = make_data("classify", rows=32)
    shown = {}
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        run = session.start(trial("none", seed=seed, shots=2), replace(data, splits=data.splits))
        list(run.steps(None))
        run.save(tmp_path / name)
        shown[name] = json.loads((tmp_path / name / "shots.json").read_text())["shots"]
        assert set(shown[name]) <= {example.id for example in data.splits["train"]} and len(shown[name]) == 2
    assert shown["first"] == shown["again"] != shown["other"]


def test_shots_stand_before_the_prompt_with_their_answers():
    shots = [Example("s", "s", "Q: 1+1\nA: ", "2"), Example("t", "t", "Q: 2+2\nA: ", "4")]
    made = with_shots(Example("e", "e", "Q: 3+3\nA: ", "6"), shots)
    assert made.prompt == "Q: 1+1\nA: 2\n\nQ: 2+2\nA: 4\n\nQ: 3+3\nA: " and made.target == "6"


def test_shots_of_conversations_are_turns_after_the_systems():
    def talk(system, question, answer):
        roles = (("system", system), ("user", question), ("assistant", answer))
        return json.dumps([{"role": role, "content": content} for role, content in roles])

    shots = [Example("s", "s", "", "two", messages=talk("A", "1+1?", "two"))]
    made = with_shots(Example("e", "e", "", "six", messages=talk("B", "3+3?", "six")), shots)
    said = [(message["role"], message["content"]) for message in json.loads(made.messages)]
    expected = [("system", "B"), ("user", "1+1?"), ("assistant", "two"), ("user", "3+3?"), ("assistant", "six")]
    assert said == expected


def test_shots_beyond_the_context_are_refused(session):
    data = make_data("classify", rows=32)
    run = session.start(trial("none", shots=8), data)
    with pytest.raises(SpecError, match=r"^shots: 8 make a prompt of \d+ tokens, the base takes 128; use fewer shots$"):
        run.predict(data.splits["validation"])
    with pytest.raises(SpecError, match="more than there are training rows, got 64; use fewer"):
        session.start(trial("none", shots=64), data)


@pytest.mark.parametrize("kind", ["classify", "regress"])
def test_tfidf_learns_what_words_tell_and_needs_no_seed(session, kind, tmp_path):
    data = make_data(kind, rows=120)
    runs = [session.start(trial("tfidf", seed=seed, readout="head"), data) for seed in (1, 2)]
    for run in runs:
        assert list(run.steps(None)) == []
    rows = data.splits["validation"]
    first, second = (run.predict(rows) for run in runs)
    assert first == second and len(first) == len(rows)
    if kind == "classify":
        assert sum(p == e.target for p, e in zip(first, rows, strict=True)) > 0.6 * len(rows)
    else:
        targets = np.array([e.target for e in rows])
        assert np.abs(first - targets).mean() < 0.8 * np.abs(targets.mean() - targets).mean()
    runs[0].save(tmp_path)
    runs[0].verify(tmp_path)
    assert runs[0].measurements()["steps"].value == 0


def test_tfidf_is_the_best_ridge_on_validation(session):
    data = make_data("regress", rows=60)
    run = session.start(trial("tfidf", readout="head"), data)
    list(run.steps(None))
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    train, rows = data.splits["train"], data.splits["validation"]
    x, held = words.fit_transform([e.prompt for e in train]), words.transform([e.prompt for e in rows])
    y, wanted = [e.target for e in train], np.array([e.target for e in rows])
    made = [Ridge(alpha=a).fit(x, y).predict(held) for a in (0.01, 0.1, 1, 10, 100, 1000)]
    best = min(made, key=lambda predicted: np.mean((predicted - wanted) ** 2))
    assert run.predict(rows) == pytest.approx(best.tolist())


def test_tfidf_says_what_it_cannot_learn_from(session):
    data = make_data("classify", rows=20)
    alike = tuple(replace(example, target="a") for example in data.splits["train"])
    mute = tuple(replace(example, prompt="…") for example in data.splits["train"])
    for rows, message in ((alike, "all training rows have one label"), (mute, "no words in the training rows")):
        run = session.start(trial("tfidf"), replace(data, splits={**data.splits, "train": rows}))
        with pytest.raises(DataError, match=f"^tiny: tfidf: {message}"):
            list(run.steps(None))


@pytest.mark.parametrize(("method", "readout"), [("none", "labels"), ("tfidf", "head")])
def test_probe_measures_what_there_is(session, method, readout, tmp_path):
    found = session.probe(trial(method, readout=readout), make_data("classify", rows=40), tmp_path / "probe")
    assert {"train_s", "latency_s", "evaluate_examples_per_s", "artifact_bytes", "peak_bytes"} <= found.keys()
    assert "step_s" not in found and not (tmp_path / "probe").exists()
    assert (found["trainable_parameters"].value == 0) == (method == "none")


TASK = "{name: t, kind: %s, data: d.jsonl, input: '{{ x }}', target: y, metric: %s, margin: 0.1}"


@pytest.mark.parametrize(
    ("arms", "task", "more", "said"),
    [
        ("[full, none]", ("classify", "accuracy"), "", "arms.none: an untuned base has no head to read the labels of"),
        (
            "[full, none]",
            ("regress", "mae"),
            "readout: labels",
            "arms.none: an untuned base has no head to read numbers",
        ),
        ("[full, tfidf]", ("generate", "exact_match"), "", "arms.tfidf: a linear model of words writes no text"),
    ],
)
def test_what_has_nothing_to_read_is_refused_with_a_remedy(arms, task, more, said):
    with pytest.raises(SpecError) as caught:
        spec.parse(f"base_model: embedded\ntasks: [{TASK % task}]\narms: {arms}\n{more}\n")
    assert said in str(caught.value) and ("remove the arm" in str(caught.value))


def test_a_study_of_untuned_arms_reads_back():
    text = f"base_model: embedded\nreadout: labels\ntasks: [{TASK % ('classify', 'accuracy')}]\n"
    study = spec.parse(text + "arms: {full: {method: full}, none: {method: none, shots: 2}, tfidf: {method: tfidf}}\n")
    assert spec.parse(spec.write(study)) == study
    assert study.arm("none").settings == {"shots": 2} and study.arm("tfidf").settings == {}


def test_a_whole_study_answers_whether_to_tune_at_all(tmp_path):
    """On planted truth: no rates are searched for an untuned arm, one final stands for all, and it is compared."""
    path = write_study(tmp_path, arms=("full", "lora"), more="readout: labels")
    path.write_text(path.read_text().replace("method: lora, rank: 2", "method: tfidf"))
    study = Study.load(path, engine="sim")
    plan = study.plan()
    assert all(trial.arm.name == "full" for trial in plan.first_wave)
    results = study.run()
    trials = [record.trial for record in StudyFolder(results.folder).evidence().records]
    tuned = {arm: [t for t in trials if t.arm.name == arm and t.purpose == "tune"] for arm in ("full", "lora")}
    assert tuned["full"] and not tuned["lora"]
    finals = {arm: {t.seed for t in trials if t.arm.name == arm and t.purpose == "final"} for arm in ("full", "lora")}
    assert finals["lora"] == {1} < finals["full"]
    assert {t.learning_rate for t in trials if t.arm.name == "lora"} == {None}
    decision = results.decide()
    [verdict] = decision.verdicts
    assert verdict.words != "NOT COMPARABLE", verdict.reason
    assert decision.costs["lora"]["train_s"].value == 0
    assert all(check.holds for check in decision.fairness)
    assert "lora took no training steps" in str(decision.fairness)
    assert results.report().is_file()
