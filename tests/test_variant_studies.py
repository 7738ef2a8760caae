"""Studies whose finals answer variants of their test rows: asked for in the file, pinned, answered, kept apart."""

import json

import pytest

import trial_study
from tunetrial import Study, spec
from tunetrial.core.errors import DataError, SpecError
from tunetrial.core.study import Lock
from tunetrial.core.variants import Noise, Template
from tunetrial.plan import timing
from tunetrial.store import StudyFolder, TestLedger
from tunetrial.trial.pinning import pin

LOOKS = "replicates: {looks: [3], folds: none}"
ASKED = """id: id
    variants: [case, {name: many, kind: typos, rate: 0.5}, {name: asked, kind: template, input: 'Read {{ text }}'}]"""
FAULTS = {
    "[typo]": "[1]: no variant of its own, got 'typo'; use one of case, typos, whitespace, or describe it",
    "[{kind: case}]": "[1].name: is missing; give the name of the variant",
    "[{name: x}]": "[1]: has no kind; give the other wordings of the test rows",
    "[{name: x, kind: nois}]": "[1].kind: unknown kind, got 'nois'; use one of template, order",
    "[{name: 'X y', kind: case}]": "[1].name: must have 1 to 64 of a-z",
    "[{name: x, kind: typos, rate: 2}]": "[1].rate: must be <= 1, got 2; give the share of words",
    "[case, case]": "[2].name: given twice, got 'case'; remove one",
    "[{name: plain, kind: case}]": "[1].name: is what the rows as they are go by",
    "[{name: x, kind: order, field: text, separator: ''}]": "[1].separator: must hold at least 1, got ''",
    "[{name: x, kind: template, input: 'hi {{ other }}'}]": "[1].input: must ask for the task's own fields, text, got",
    "[{name: x, kind: template, input: 'hi {{ text '}]": "[1].input: no Jinja template",
    "[{name: x, kind: paraphrase, field: text}]": "[1]: needs the other texts from a column or a file, got neither",
    "[{name: x, kind: case, fields: [subject]}]": "[1].fields: is not shown by the prompt, got 'subject'; name",
}  # fmt: skip


def write_study(folder, asked=ASKED, more=LOOKS, **settings):
    path = trial_study.write_study(folder, more=more, **settings)
    path.write_text(path.read_text().replace("id: id", asked))
    return path


@pytest.mark.parametrize("asked", FAULTS)
def test_wrong_variants_are_refused_with_line_and_remedy(tmp_path, asked):
    path = write_study(tmp_path, f"id: id\n    variants: {asked}")
    with pytest.raises(SpecError) as refused:
        spec.read(path)
    line = next(number for number, text in enumerate(path.read_text().splitlines(), 1) if "variants" in text)
    assert str(refused.value).startswith(f"{path}:{line}: tasks.mail.variants{FAULTS[asked]}"), refused.value
    assert "\n" not in str(refused.value)


def test_a_criterion_is_for_texts(tmp_path):
    text = "base_model: embedded\ntasks: [{{name: {}, criterion: which is right}}]\narms: [full, lora]"
    with pytest.raises(SpecError, match="criterion: is for tasks that generate text, got a classify task; remove it"):
        spec.parse(text.format("tickets"))
    asked = spec.parse(text.format("tickets_json"))
    assert asked.tasks[0].criterion == "which is right" and spec.parse(spec.write(asked)) == asked


def test_variants_read_back_as_they_were_and_leave_other_studies_as_they_are(tmp_path):
    asked, plain = (
        spec.read(write_study(tmp_path / "a")),
        spec.read(trial_study.write_study(tmp_path / "b", more=LOOKS)),
    )
    assert asked.tasks[0].variants == (
        Noise(name="case", kind="case", rate=1.0),
        Noise(name="many", kind="typos", rate=0.5),
        Template(name="asked", input="Read {{ text }}"),
    )
    assert spec.parse(spec.write(asked)) == asked
    assert "variants" not in plain.model_dump_json().replace('"variants":1', "")
    built_in = spec.parse("base_model: embedded\ntasks: [{name: tickets, variants: [typos]}]\narms: [full, lora]")
    assert [one.name for one in built_in.tasks[0].variants] == ["typos"]
    assert spec.parse(spec.write(built_in)) == built_in


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A study on the simulator, which answers by the example and never by its wording."""
    folder = tmp_path_factory.mktemp("variants")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNETRIAL_HOME", str(folder / "home"))
        study = trial_study.load(write_study(folder), "plain")
        return study, study.run().decide()


def test_variants_are_pinned_and_answered_by_finals_alone(done):
    study, _ = done
    store = StudyFolder(study.folder)
    evidence, lock = store.evidence(), store.read_lock()
    pinned = lock.data["mail"]
    assert set(pinned.digests) == {"train", "validation", "test", "test~case", "test~many", "test~asked"}
    assert len(set(pinned.digests.values())) == 6 and pinned.counts["test~asked"] == pinned.counts["test"] == 50
    assert "test~asked: 50 of 50 inputs changed" in pinned.remarks
    for record in evidence.records:
        splits = {split for trial, split in evidence.scores if trial == record.trial.id}
        variants = {split for split in pinned.digests if split.startswith("test")}
        wanted = {"final": {"validation", *variants}, "probe": set()}
        assert splits == wanted.get(record.trial.purpose, {"validation"})
    final = evidence.of(purpose="final")[0]
    assert {f"test{name}.accuracy" for name in ("", "~case", "~many", "~asked")} <= set(final.measurements)
    plain, varied = (evidence.scores[final.trial.id, split] for split in ("test", "test~asked"))
    assert (plain.example_id_E, plain.cluster_E) == (varied.example_id_E, varied.cluster_E)


def test_a_plan_counts_the_rows_of_variants_and_no_held_out_text():
    rows = {"train": 100, "validation": 40, "test": 50, "test~case": 50, "test~typos": 50, "text~wiki": 9}
    assert timing.tested(rows) == 150 and timing.tested({"train": 9, "validation": 4, "test": 5}) == 5


def test_variants_open_the_test_split_once_and_train_nothing_anew(done):
    study, decision = done
    with_variants = StudyFolder(study.folder).read_lock()
    assert TestLedger(study.path.parent / "home").count(with_variants.tested("mail")) == 1
    assert decision.test_openings == {"mail": 1}
    asked = with_variants.study
    bare = asked.model_copy(update={"tasks": (asked.tasks[0].model_copy(update={"variants": ()}),)})
    data = {name: digest for name, digest in with_variants.data["mail"].digests.items() if "~" not in name}
    pins = {"mail": with_variants.data["mail"].model_copy(update={"digests": data})}
    without: Lock = with_variants.model_copy(update={"study": bare, "data": pins})
    for purpose, same in (("tune", True), ("probe", True), ("final", False)):
        how = {"learning_rate": 1e-3, "seed": 1, "purpose": purpose}
        one, other = (lock.trial("lora", "mail", **how).id for lock in (with_variants, without))
        assert (one == other) is same


def test_a_row_too_long_under_one_variant_is_left_out_under_all(tmp_path):
    path = write_study(
        tmp_path, "id: id\n    variants: [{name: long, kind: paraphrase, field: text, file: long.jsonl}]"
    )
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    texts = [
        {"id": row["id"], "text": "word " * (40 if place == 7 else 3) + str(place)} for place, row in enumerate(rows)
    ]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, texts)))
    path.write_text(path.read_text() + "max_tokens: 30\n")
    pinned = pin(spec.read(path), tmp_path, engine="trial_engines:plain", log=tmp_path / "log", counting=False)
    kept = pinned.data["mail"].splits
    assert len(kept["test"]) == len(kept["test~long"]) == 49
    assert "test-7" not in {example.id for example in (*kept["test"], *kept["test~long"])}
    said = pinned.lock.data["mail"].remarks
    assert "test~long: 1 of 50 rows left out: longer than 30 tokens" in said
    assert "test: 1 more rows left out: too long under a variant, so under none" in said


def test_variants_of_folds_and_variants_that_change_nothing_are_refused(tmp_path):
    folds = trial_study.write_study(tmp_path / "folds", more="replicates: {looks: [3]}")
    text = folds.read_text().replace("    validation: validation.jsonl\n    test: test.jsonl\n", "")
    folds.write_text(text.replace("id: id", "id: id\n    variants: [case]"))
    with pytest.raises(DataError, match="got 60 rows cut into 5 folds; name a test file"):
        Study.load(folds, engine="trial_engines:plain").plan()
    same = write_study(tmp_path / "same", "id: id\n    variants: [{name: x, kind: template, input: '{{ text }}'}]")
    with pytest.raises(DataError, match="variant x changes no input, got 0 of 50 test rows; remove it"):
        Study.load(same, engine="trial_engines:plain").plan()
