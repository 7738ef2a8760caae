"""Arms on another base than the study's: declared in the file, pinned, trained on, and told apart in every output."""

import json
import shutil
from dataclasses import replace

import pytest

from planted import change, evidence, lock
from test_plan import SHAPE, a_lock
from trial_study import load, write_study
from tunetrial import Study, models, plan, spec
from tunetrial.analysis import compare, decide, ledger
from tunetrial.core.errors import DataError, IntegrityError, ModelError, SpecError
from tunetrial.core.study import BasePin
from tunetrial.models import EMBEDDED
from tunetrial.report import markdown, summary
from tunetrial.trial.pinning import pin

HEAD = "base_model: embedded\ntasks: [newsletter]\n"
LARGER = BasePin(fingerprint="larger" * 4, parameters=1_000_000_000, revision="c" * 40)


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))


def elsewhere(held, arm="lora", base=LARGER):
    """The same lock with one arm on another base."""
    arms = tuple(a.model_copy(update={"base_model": "org/larger"}) if a.name == arm else a for a in held.study.arms)
    return held.model_copy(update={"study": held.study.model_copy(update={"arms": arms}), "others": {arm: base}})


def planted_pair(**changes):
    """Full on one base against LoRA on another, whose tokenizers make other tokens of the same examples."""
    found = evidence(elsewhere(lock()), {"full": 0.8, "lora": 0.8}, rows=120)
    ordered = {"examples_digest": "order-{}", **changes}

    def other(record):
        mine = {"token_digest": f"{record.trial.arm.name}-{record.trial.seed}"}
        mine["examples_digest"] = ordered["examples_digest"].format(record.trial.seed)
        return record.model_copy(update=mine)

    return change(found, other)


# The study file


def test_an_arm_names_its_base_and_is_written_back():
    text = HEAD + "arms:\n  full: {method: full}\n  big: {method: qlora, base_model: org/larger@v2}\n"
    study = spec.parse(text)
    assert [arm.base_model for arm in study.arms] == [None, "org/larger@v2"]
    assert "base_model" not in study.arm("big").settings
    assert (study.base_of("full"), study.base_of("big")) == ("embedded", "org/larger@v2")
    assert spec.parse(spec.write(study)) == study


def test_naming_the_studys_own_base_is_leaving_it_out():
    said = spec.parse(HEAD + "arms:\n  full: {method: full}\n  lora: {method: lora, base_model: embedded}\n")
    assert said == spec.parse(HEAD + "arms: [full, lora]\n")
    twice = "arms:\n  a: {method: lora}\n  b: {method: lora, base_model: embedded}\n"
    with pytest.raises(SpecError, match="arms.b: the same method and settings as 'a'"):
        spec.parse(HEAD + twice)
    spec.parse(HEAD + twice.replace("embedded}", "org/b}"))


@pytest.mark.parametrize(
    "arm,said",
    [
        (
            "{method: lora, base_model: 3}",
            "arms.x.base_model: must be text, got 3; give the folder or Hub id of another",
        ),
        ("{method: lora, base_model: ' '}", "arms.x.base_model: must not be blank, got ' '; give the folder or Hub id"),
        ("{method: tfidf, base_model: org/b}", "arms.x.base_model: unknown key; "),
    ],
)
def test_faults_of_an_arms_base_name_the_field(arm, said):
    with pytest.raises(SpecError) as refused:
        spec.parse(HEAD + f"arms:\n  full: {{method: full}}\n  x: {arm}\n")
    assert said in str(refused.value)


def test_the_json_schema_has_the_field_for_arms_that_use_a_base():
    arms = spec.json_schema()["$defs"]
    assert {name for name in arms if name.endswith("Arm") and "base_model" in arms[name]["properties"]} == {
        "FullArm", "LoraArm", "QLoraArm", "PeftArm", "NoTuningArm"
    }  # fmt: skip


# Identity


def test_studies_on_one_base_keep_the_digests_that_they_had():
    """Golden values from before arms could name a base."""
    held = lock()
    assert held.digest == "eb192779fc5cb1db86edfd167adbda0daeaaf12f657cc308809643005e63e6e0"
    assert held.trial("lora", "mail", learning_rate=1e-3, seed=1, purpose="final").id == "843db61581df65c9"


def test_a_trial_is_of_its_arms_base_by_fingerprint_whatever_the_base_is_called():
    held = elsewhere(lock())
    ask = {"learning_rate": 1e-3, "seed": 1, "purpose": "final"}
    full, lora = (held.trial(arm, "mail", **ask) for arm in ("full", "lora"))
    assert (full.controls.base_fingerprint, lora.controls.base_fingerprint) == ("f", LARGER.fingerprint)
    assert full.id == lock().trial("full", "mail", **ask).id and lora.id != lock().trial("lora", "mail", **ask).id
    arms = tuple(a.model_copy(update={"base_model": a.base_model and "moved"}) for a in held.study.arms)
    renamed = held.model_copy(update={"study": held.study.model_copy(update={"arms": arms})})
    assert renamed.trial("lora", "mail", **ask).id == lora.id


# The plan


def test_rates_memory_time_and_disk_are_of_each_arms_own_base():
    larger = SHAPE.model_copy(update={"layers": 2 * SHAPE.layers})
    held = elsewhere(a_lock(), base=LARGER.model_copy(update={"parameters": larger.parameters}))
    one, two = plan.preview(a_lock(), SHAPE), plan.preview(held, SHAPE, others={"lora": plan.Sizes(larger)})
    assert two.memory_bytes["full"] == one.memory_bytes["full"]
    assert two.memory_bytes["lora"] == plan.preview(a_lock(), larger).memory_bytes["lora"]
    assert two.seconds.low > one.seconds.low and two.disk_bytes.low > one.disk_bytes.low
    seconds = plan.timed(held, SHAPE, plan.Known(others={"lora": plan.Sizes(larger, {"mail": [9] * 320})}))
    assert seconds["mail", "full"] == plan.timed(a_lock(), SHAPE, plan.Known())["mail", "full"]
    counted = plan.timed(a_lock(), larger, plan.Known(counted={"mail": [9] * 320}))
    assert seconds["mail", "lora"] == counted["mail", "lora"]


def test_the_search_begins_at_the_centre_of_the_arms_own_base():
    def first(held, arm):
        return sorted({t.learning_rate for t in plan.preview(held, SHAPE).first_wave if t.arm.name == arm})

    held = elsewhere(a_lock(arms=("full", "lora")), arm="full")
    assert first(held, "lora") == first(a_lock(), "lora")
    assert first(held, "full")[2] == pytest.approx(2e-5, rel=0.02)  # 2e-5 at 1e9 weights


# Fairness and what is said of it


def test_arms_on_different_bases_are_compared_by_examples_and_the_ledger_declares_it():
    found = planted_pair()
    checks = {check.what: check for check in ledger(found)}
    assert all(check.holds for check in checks.values())
    assert "5 pairs on different bases trained on the same examples" in " ".join(c.found for c in checks.values())
    declared = checks["bases are the same, or declared to differ"].found
    assert declared == (
        "lora and full: bases differ, declared: org/larger (fingerprint largerlarger) against embedded (fingerprint f)"
    )
    assert compare(found)[1][0].words != "NOT COMPARABLE"
    same = evidence(lock(), {"full": 0.8, "lora": 0.8}, rows=120)
    assert not any("bases" in check.what for check in ledger(same))


@pytest.mark.parametrize(
    "digest,said",
    [("order-{0}-lora", "trained on different examples, or in another order"), (None, "no digest of the examples")],
)
def test_another_order_of_examples_is_refused(digest, said):
    def broken(record):
        mine = record.trial.arm.name == "lora"
        changed = digest and digest.format(record.trial.seed)
        return record.model_copy(update={"examples_digest": changed}) if mine else record

    verdict = compare(change(planted_pair(), broken))[1][0]
    assert verdict.words == "NOT COMPARABLE" and said in verdict.reason


def test_a_record_of_the_wrong_base_is_refused_and_named():
    found, scores = planted_pair(), {}

    def forged(record):
        t = record.trial
        if (t.arm.name, t.purpose, t.seed) != ("lora", "final", 2):
            return record
        wrong = t.model_copy(update={"controls": t.controls.model_copy(update={"base_fingerprint": "f"})})
        scores.update({(wrong.id, s): found.scores[t.id, s] for s in ("validation", "test")})
        return record.model_copy(update={"trial": wrong})

    changed = change(found, forged)
    verdict = compare(replace(changed, scores={**found.scores, **scores}))[1][0]
    culprit = next(trial for trial, _ in scores)
    assert verdict.words == "NOT COMPARABLE"
    assert f"trial {culprit} (lora) is of another study: its controls differ" in verdict.reason


def test_only_the_attention_may_differ_with_the_base():
    def executed(name):
        def changed(record):
            value = {name: record.trial.arm.name}
            return record.model_copy(update={"resolved": {**record.resolved, **value}})

        return compare(change(planted_pair(), changed))[1][0]

    assert executed("attention").words != "NOT COMPARABLE"
    assert "compute_dtype differs" in executed("compute_dtype").reason


def test_headline_table_summary_and_provenance_say_the_base_of_each_arm():
    costs = {"full": {"step_s": 0.5}, "lora": {"step_s": 0.3}}
    found = evidence(elsewhere(lock()), {"full": 0.8, "lora": 0.92}, rows=300, costs=costs)
    found = change(found, lambda r: r.model_copy(update={"examples_digest": f"order-{r.trial.seed}"}))
    made = decide(found)
    text = markdown(found, made)
    assert made.recommendation == "lora" and "# Use lora on org/larger." in text
    assert "vs full on embedded" in summary(found, made)
    assert "| full, reference, on embedded |" in text
    assert "base of lora" in text and LARGER.fingerprint in text and LARGER.revision in text
    assert any("lora is on another base (org/larger, full on embedded)" in reason for reason in made.because)
    same = evidence(lock(), {"full": 0.8, "lora": 0.92}, rows=300, costs=costs)
    assert "embedded" not in summary(same, decide(same))


# Carried out


def write_two_bases(folder, **changes):
    """A study of two arms, the second on a base beside the study file."""
    path = write_study(folder, more="replicates: {looks: [2]}", **changes)
    path.write_text(path.read_text().replace("rank: 2}", "rank: 2, base_model: ../larger}"))
    return path


def copy_base(folder, **config):
    """The embedded base under other weights' fingerprint: a file name is part of it."""
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((EMBEDDED / name).read_bytes())
    shutil.copy(EMBEDDED / "model.safetensors", folder / "weights.safetensors")
    if config:
        held = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**held, **config}))
    return folder


@pytest.mark.slow
def test_a_simulated_study_on_two_bases_holds_one_at_a_time_and_may_be_moved_with_them(tmp_path):
    """A row too long for one base is left out in every arm; moved together, nothing is run again."""
    copy_base(tmp_path / "here" / "larger", max_position_embeddings=4)
    path = write_two_bases(tmp_path / "here" / "study")
    lengthen(path.parent / "train.jsonl")
    study = load(path, "OneBase").run()
    assert study.outcome.status == "done" and study.outcome.failed == {}
    found = study.outcome.evidence
    held = found.lock
    assert held.others == {"lora": held.base("lora")} and held.base("lora").fingerprint != held.base_fingerprint
    assert held.base_fingerprint == models.resolve("embedded").fingerprint
    for record in found.records:
        assert record.trial.controls.base_fingerprint == held.base(record.trial.arm.name).fingerprint
    assert held.data["mail"].counts["train"] == 59
    said = "train: 1 of 60 rows left out: longer than the base's context of 4 tokens under ../larger"
    assert said in held.data["mail"].remarks
    decision = study.decide()
    assert decision.verdicts[0].words != "NOT COMPARABLE", decision.verdicts[0].reason
    assert "bases differ, declared: ../larger" in "".join(check.found for check in decision.fairness)
    assert "base_model: ../larger\n" in study.recipe("axolotl", arm="lora")
    assert "base_model: embedded\n" in study.recipe("axolotl", arm="full")
    shutil.move(tmp_path / "here", tmp_path / "there")
    again = load(tmp_path / "there" / "study" / "study.yaml", "OneBase").run()
    assert {r.digest for r in again.outcome.evidence.records} == {r.digest for r in found.records}


def lengthen(rows):
    """Make the fourth row six words long."""
    lines = rows.read_text().splitlines()
    lines[3] = json.dumps({**json.loads(lines[3]), "text": "one two three four five six"})
    rows.write_text("\n".join(lines) + "\n")


def test_pinning_checks_every_base_and_names_the_arm(tmp_path):
    larger = copy_base(tmp_path / "larger", max_position_embeddings=3)
    path = write_two_bases(tmp_path / "study")
    with pytest.raises(DataError, match=r"got 60 of 60 above 3 tokens under ../larger"):
        load(path, "plain").plan()
    shutil.copy(EMBEDDED / "config.json", larger)
    asked = Study.load(path).asked
    before = pin(asked, path.parent, engine="sim", log=tmp_path / "worker.log").lock
    (larger / "weights.safetensors").rename(larger / "other.safetensors")
    after = pin(asked, path.parent, engine="sim", log=tmp_path / "worker.log").lock
    ask = {"task": "mail", "learning_rate": 1e-3, "seed": 1, "purpose": "final"}
    assert before.trial("full", **ask) == after.trial("full", **ask)
    assert before.trial("lora", **ask) != after.trial("lora", **ask)


def test_a_base_that_cannot_be_used_is_refused_by_the_arms_name(tmp_path):
    path = write_two_bases(tmp_path / "study")
    with pytest.raises(ModelError, match="arms.lora: base_model: no folder|arms.lora: base_model: no such folder"):
        load(path, "plain").plan()
    copied = shutil.copytree(EMBEDDED, tmp_path / "larger")
    with open(copied / "model.safetensors", "ab") as weights:
        weights.write(b"x")
    with pytest.raises(IntegrityError, match="arms.lora: "):
        load(path, "plain").plan()


def test_doctor_looks_at_every_base(tmp_path):
    copy_base(tmp_path / "larger", max_position_embeddings=4)
    found = load(write_two_bases(tmp_path / "study"), "plain").doctor()
    [(name, findings)] = found.others.items()
    assert name == "../larger" and {f.what for f in findings} >= {"base", "chat template", "mail: lengths"}
    assert "context of 4 tokens" in findings[0].found


@pytest.mark.slow
def test_a_study_of_real_weights_on_two_bases_ends_in_a_verdict(tmp_path):
    """Two tokenizers and two shapes: other tokens, the same examples in the same order."""
    import tiny

    tiny.make_model(tmp_path / "base", hidden=32, layers=1)
    tiny.make_model(tmp_path / "larger", merges=(("m", "a"), ("i", "l"), ("ma", "il")))
    more = {"base_model": "../base", "label": lambda split, name: "ab"[int(name) % 2]}
    path = write_two_bases(tmp_path / "study", **more)
    study = Study.load(path, engine="trial_engines:torch_often").run()
    assert study.outcome.status == "done" and study.outcome.failed == {}
    found = study.outcome.evidence
    full, lora = ({r.trial.seed: r for r in found.of(purpose="final", arm=arm)} for arm in ("full", "lora"))
    for seed in full:
        assert full[seed].token_digest != lora[seed].token_digest
        assert full[seed].examples_digest == lora[seed].examples_digest is not None
    assert len({r.examples_digest for r in full.values()}) == 2
    assert found.lock.base("lora").parameters > found.lock.base("full").parameters
    assert not any("bases" in (v.reason or "") for v in study.decide().verdicts)
    assert "bases differ, declared: ../larger" in study.report().with_suffix(".md").read_text()
    adapter = study.folder / "trials" / lora[1].trial.id / "artifact" / "adapter_config.json"
    assert json.loads(adapter.read_text())["base_model_name_or_path"].endswith("larger")
