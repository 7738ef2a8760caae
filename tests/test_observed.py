"""What finals are looked at for besides their answers: the same as what was saved says, kept with the trial, and absent
with a reason where it finds no room."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import trial_study
from tiny import make_data, make_model, make_trial
from tunetrial import models
from tunetrial.core.errors import IntegrityError
from tunetrial.core.evidence import Example
from tunetrial.core.pins import given
from tunetrial.engine import states
from tunetrial.engine.heldout import contrast
from tunetrial.engine.memo import Memo
from tunetrial.engine.pairs import open_pair
from tunetrial.engine.torch_engine import TorchEngine
from tunetrial.store import StudyFolder
from tunetrial.store.observed import read_parquet, settle, table_digest, to_parquet
from tunetrial.trial.pinning import pin

TEXTS = ["The courier came late.", "A gold watch, repaired; a clock that was not.", "Bread, and then more bread."]
CPU = torch.device("cpu")


def with_texts(data):
    texts = tuple(Example(str(n), str(n // 2), text, "") for n, text in enumerate(TEXTS))
    return replace(data, splits={**data.splits, "text~notes": texts})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("readout", ["head", "labels"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_forgetting_is_what_the_saved_artifact_shows(method, readout, tied, tmp_path):
    base = models.resolve(str(make_model(tmp_path / "tiny", hidden=32, tied=tied)))
    trial = make_trial(method, rate=5e-3, base_fingerprint=base.fingerprint, epochs=2, readout=readout)
    session = TorchEngine(device="cpu").open(base.folder, "fp32")
    data = with_texts(make_data("classify", rows=32, validation=8))
    run = session.start(trial, data)
    list(run.steps(None))
    answers = run.predict(data.splits["validation"])
    table = run.observe(data, "forgetting")
    run.save(tmp_path / "made")
    expected = contrast(*open_pair(base, tmp_path / "made", torch.float32, CPU), session.tokenizer, TEXTS)
    assert table["base_nats"] == pytest.approx(expected.base.nats_E, rel=1e-5)
    assert table["tuned_nats"] == pytest.approx(expected.tuned.nats_E, rel=1e-5)
    assert table["kl"] == pytest.approx(expected.kl_E, rel=0.01, abs=1e-6)
    assert (table["kl"] > 1e-6).all()
    assert table["tokens"].tolist() == expected.base.tokens_E.tolist()
    assert (table["text"].tolist(), table["cluster"].tolist()) == (["notes"] * 3, ["0", "0", "1"])
    assert run.predict(data.splits["validation"]) == answers, "looking changed the model"


def test_a_quantised_base_is_what_a_tuned_model_is_held_against(tmp_path):
    base = models.resolve(str(make_model(tmp_path / "tiny", hidden=64)))
    session = TorchEngine(device="cpu").open(base.folder, "fp32")
    data = with_texts(make_data("classify", rows=16, validation=8))
    run = session.start(make_trial("qlora", rate=1e-9, base_fingerprint=base.fingerprint, epochs=1), data)
    list(run.steps(None))
    table = run.observe(data, "forgetting")
    assert table["tuned_nats"] == pytest.approx(table["base_nats"], rel=1e-4), "storing in four bits counted as loss"


def test_members_of_a_pack_are_looked_at_apart(tmp_path):
    base = models.resolve(str(make_model(tmp_path / "tiny", hidden=32)))
    data = with_texts(make_data("classify", rows=32, validation=8))
    trials = [make_trial("lora", rate=5e-3, seed=seed, base_fingerprint=base.fingerprint, epochs=1) for seed in (1, 2)]
    session = TorchEngine(device="cpu").open(base.folder, "fp32")
    pack = session.start_pack(trials, data)
    list(pack.steps(None))
    packed = [pack.observe(member, data, "forgetting") for member in (0, 1)]
    for trial, found in zip(trials, packed, strict=True):
        alone = session.start(trial, data)
        list(alone.steps(None))
        assert found["tuned_nats"] == pytest.approx(alone.observe(data, "forgetting")["tuned_nats"], rel=1e-4)
    assert not np.allclose(packed[0]["tuned_nats"], packed[1]["tuned_nats"], rtol=1e-6)


def test_only_finals_are_given_held_out_texts():
    data = with_texts(make_data("classify"))
    data = replace(data, splits={**data.splits, "test": (), "test~typos": ()})
    every = ("train", "validation", "text~notes", "test", "test~typos")
    assert given(data.splits, final=False, texts=False) == every[:2]
    assert given(data.splits, final=False, texts=True) == every[:3]
    assert given(data.splits, final=True, texts=True) == given(data.splits, final=True, texts=False) == every


def test_a_study_keeps_what_was_seen_and_says_what_was_not(tmp_path):
    more = "retention: {notes: notes.txt}\nfrontier: true\ndrift: [states, weights]\nreplicates: {looks: [2]}"
    path = trial_study.write_study(tmp_path, more=more)
    (tmp_path / "notes.txt").write_text("\n<|endoftext|>\n".join(TEXTS))
    study = trial_study.load(path, "Observing")
    study.run()
    store = StudyFolder(study.folder)
    evidence = store.evidence()
    finals = evidence.of(purpose="final")
    assert len(finals) == 4
    for record in finals:
        assert list(record.tables) == ["forgetting"]
        assert evidence.tables[record.trial.id, "forgetting"]["kl"].tolist() == [0.5] * 3
        assert record.resolved["states.not_observed"] == "states: does not fit, got 1 example; use a smaller model"
        assert record.measurements["forgetting.observe_s"].value >= 0
    others = {r.trial.purpose: list(r.tables) for r in evidence.records if r.trial.purpose != "final"}
    assert others == {"tune": ["forgetting"], "probe": []}, "only the search's runs are asked too, by a frontier"
    assert not any(("test" in split) for trial, split in evidence.scores if trial not in {r.trial.id for r in finals})
    assert study.decide().frontiers
    kept = store.trial(finals[0].trial).path / "forgetting.parquet"
    kept.write_bytes(to_parquet(settle({"id": ["1"], "kl": [0.1]}, "here")))
    with pytest.raises(IntegrityError, match="forgetting.parquet"):
        store.evidence()


def test_texts_are_pinned_and_mark_finals_alone(tmp_path):
    path = trial_study.write_study(tmp_path, more="retention: {notes: notes.txt}")
    (tmp_path / "notes.txt").write_text("\n<|endoftext|>\n".join(TEXTS))
    locks = []
    for more in ("", " And one more word."):
        (tmp_path / "notes.txt").write_text("\n<|endoftext|>\n".join([*TEXTS[:2], TEXTS[2] + more]))
        study = trial_study.load(path, "Hook")
        locks.append(pin(study.asked, tmp_path, engine="trial_engines:Hook", log=tmp_path / "log").lock)
    assert locks[0].data["mail"].counts["text~notes"] == 3
    asked = [
        [lock.trial("lora", "mail", learning_rate=1e-3, seed=1, purpose=purpose).id for lock in locks]
        for purpose in ("tune", "final")
    ]
    assert asked[0][0] == asked[0][1]
    assert asked[1][0] != asked[1][1]


def test_tables_keep_their_content_and_types(tmp_path):
    table = {"name": ["a", "ü"], "n": np.array([1, 2]), "x": np.array([0.5, np.nan]), "y": np.array([1.0, 2.0])}
    settled = settle(table, "here")
    path = tmp_path / "one.parquet"
    path.write_bytes(to_parquet(settled))
    back = read_parquet(path, table_digest(settled))
    assert {name: column.dtype for name, column in back.items()} == {c: v.dtype for c, v in settled.items()}
    assert table_digest(back) == table_digest(settled)
    with pytest.raises(IntegrityError, match="expected a table with SHA-256"):
        read_parquet(path, "0" * 64)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_base_is_read_once_for_all_finals_of_an_arm(method, tmp_path, monkeypatch):
    base = models.resolve(str(make_model(tmp_path / "tiny", hidden=64)))
    data = with_texts(make_data("classify", rows=32, validation=8))
    data = replace(data, splits={**data.splits, "test": data.splits["train"][:8]})
    trials = [make_trial(method, rate=5e-3, seed=seed, base_fingerprint=base.fingerprint, epochs=1) for seed in (1, 2)]
    read, passes = states._read, []
    monkeypatch.setattr(states, "_read", lambda *asked: passes.append(asked) or read(*asked))

    def looked_at(session, trial):
        passes.clear()
        run = session.start(trial, data)
        list(run.steps(None))
        found = {what: run.observe(data, what) for what in ("forgetting", "states", "grams")}
        return found, len(passes)

    engine = TorchEngine(device="cpu")
    held = engine.open(base.folder, "fp32")
    assert [looked_at(held, trial)[1] for trial in trials] == [2, 1], "what each reads: base and tuned model, then this"
    (later, passed), (alone, _) = looked_at(held, trials[1]), looked_at(engine.open(base.folder, "fp32"), trials[1])
    assert passed == 1, "a tuned model's states outlived its trial"
    for what, table in alone.items():
        for column, values in table.items():
            np.testing.assert_array_equal(later[what][column], values, err_msg=f"{what}: {column}")


def test_a_memo_keeps_the_latest_within_its_bytes():
    memo, made = Memo(most_bytes=100), []

    def recall(key, size, owner="a"):
        return memo.recall(owner, key, lambda: made.append((owner, key)) or {"x": np.zeros(size, dtype=np.uint8)})

    for key, size in (("one", 40), ("two", 40), ("one", 40), ("three", 40), ("one", 40), ("two", 40)):
        assert len(recall(key, size)["x"]) == size
    assert made == [("a", "one"), ("a", "two"), ("a", "three"), ("a", "two")], "the least asked for goes first"
    assert len(recall("large", 101)["x"]) == 101 and memo.bytes <= 100
    recall("large", 101)
    assert made[-2:] == [("a", "large")] * 2, "what is larger than all that is kept was kept"
    recall("one", 1, owner="b")
    assert made[-1] == ("b", "one"), "one owner was given another's"
    memo.clear()
    assert memo.bytes == 0
