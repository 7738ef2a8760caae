"""One adapter for all tasks of a real, tiny study: chosen on validation rows, scored, written; and what is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import several_tasks
from tunetrial import Study, cli
from tunetrial.analysis import arms, combined
from tunetrial.core import manifest
from tunetrial.core.combination import HOWS, Combination, Recipe
from tunetrial.core.errors import ConfigError, DivergedError, EvidenceError, IntegrityError, StoreError, TunetrialError
from tunetrial.core.evidence import TrialRecord
from tunetrial.ship.registry import Registry
from tunetrial.store import StudyFolder, TestLedger
from tunetrial.trial import combining
from tunetrial.trial.combinable import check
from tunetrial.trial.combinations import mixed, training_rows
from tunetrial.trial.hand import Hand

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's, in these tests
ALL = tuple(Recipe(how=how) for how in HOWS)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return several_tasks.make_study(tmp_path_factory.mktemp("several"), arms=("full", "lora", "qlora", "untuned"))


@pytest.fixture(scope="module")
def done(study, tmp_path_factory):
    """Every way at once: what was found, the folder, and the home of its ledger."""
    folder = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNETRIAL_HOME", str(folder / "home"))
        return study.combine("lora", ALL, folder / "out"), folder / "out", folder / "home"


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))


@pytest.fixture
def copied(study, tmp_path):
    """A study that a test may damage."""
    return Study.load(shutil.copytree(study.path.parent, tmp_path / "study") / "study.yaml")


def in_hand(study, arm: str = "lora") -> Hand:
    evidence = StudyFolder(study.folder).evidence()
    return Hand(evidence, study.path.parent, check(evidence, StudyFolder(study.folder), arm, ALL))


def test_the_setting_is_the_best_on_validation_rows(done):
    found, _, _ = done
    for made in found.made:
        assert made.chosen.mean == max(one.mean for one in made.tried)
        assert all(one.mean == pytest.approx(np.mean(list(one.kept.values()))) for one in made.tried)
    assert [len(made.tried) for made in found.made] == [9, 9, 9, 1, 2]
    assert found.written == max(found.made, key=lambda made: made.chosen.mean).recipe.how
    assert found.of("weighted").left_out == 0 and found.of("weighted").rank == 8
    assert 0 < found.of("ties").left_out < 1 and found.of("joint").rank == 4


def test_single_adapters_and_the_untuned_base_score_as_in_the_study(study, done):
    found, evidence = done[0], StudyFolder(study.folder).evidence()
    for task in ("mail", "news"):
        own = arms.outcome(evidence, task, "lora").result.mean
        assert found.scores[task][f"lora of {task}"] == pytest.approx(own, rel=1e-6)
        untuned = arms.outcome(evidence, task, "untuned").result.mean
        assert found.scores[task]["untuned base"] == found.scores[task]["untuned"] == pytest.approx(untuned, rel=1e-6)
        assert found.scores[task]["full"] == arms.outcome(evidence, task, "full").result.mean


def test_the_share_that_is_kept_is_counted_from_what_base_plus_updates_answer(study, done):
    """Independently: the dense sum is added to the base's own weights, and transformers' logits are asked."""
    found, evidence = done[0], StudyFolder(study.folder).evidence()
    chosen, hand = found.of("weighted").chosen, in_hand(study)
    tokenizer = AutoTokenizer.from_pretrained(study.path.parent / "base")
    rows = [json.loads(line) for line in (study.path.parent / "mail-validation.jsonl").read_text().splitlines()]

    def nll(updates) -> float:
        model = AutoModelForCausalLM.from_pretrained(study.path.parent / "base").eval()
        with torch.no_grad():
            for path, update in updates.items():
                model.get_submodule(path).weight += update
            lost = []
            for row in rows:
                prompt = tokenizer(f"{row['text']} =>").input_ids
                ids = torch.tensor([[*prompt, *tokenizer(row["target"]).input_ids, tokenizer.eos_token_id]])
                likely = model(ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
                lost.append(-likely.gather(1, ids[0, len(prompt) :, None]).sum() / (ids.shape[1] - len(prompt)))
        return float(np.mean(lost))

    def mean(shares, scale) -> float:
        per_seed = []
        for seed in found.seeds:
            own = {task: hand.singles[task, seed] for task in shares}
            paths = own["mail"].keys()
            per_seed.append(nll({p: scale * sum(s * own[t][p].dense for t, s in shares.items()) for p in paths}))
        return float(np.mean(per_seed))

    untuned, single = nll({}), mean({"mail": 1.0}, 1.0)
    kept = (mean(chosen.setting.shares, chosen.setting.scale) - untuned) / (single - untuned)
    assert chosen.kept["mail"] == pytest.approx(kept, rel=1e-4)
    records = [r.measurements["validation.nll"].value for r in evidence.of(purpose="final", task="mail", arm="lora")]
    assert single == pytest.approx(np.mean(records), rel=1e-5)


def test_comparisons_are_of_one_family_with_what_may_be_compared(done):
    found = done[0]
    asked = {(c.task, c.candidate, c.reference) for c in found.comparisons}
    for task in ("mail", "news"):
        for how in HOWS:
            against = {f"lora of {task}", "untuned base", "full", "qlora", "dora"} | ({"lora joint"} - {f"lora {how}"})
            assert {other for t, h, other in asked if (t, h) == (task, f"lora {how}")} == against
    for one in found.comparisons:
        if one.reference in ("full", "qlora"):  # whose rates were never searched for in this study
            assert one.words == "NOT COMPARABLE" and "was not searched for" in one.reason
        elif one.reference == "dora":  # which was never run
            assert one.words == "NOT COMPARABLE" and one.effect is None
        else:
            turn = 1 if found.metrics[one.task] == "accuracy" else -1
            means = found.scores[one.task]
            assert one.effect == pytest.approx(turn * (means[one.candidate] - means[one.reference]), abs=1e-6)
            assert one.low <= one.effect <= one.high and one.n_replicates == 2 and one.n_examples == 16
            assert f"a family of {len(found.comparisons)} (Holm)" in one.procedure


def test_storage_is_that_of_files(study, done):
    found, folder, _ = done
    stored = {one.name: one for one in found.stored}
    size = sum((folder / name).stat().st_size for name in ("adapter_model.safetensors", "adapter_config.json"))
    assert stored[f"lora {found.written}"].artifact_bytes == size and stored[f"lora {found.written}"].artifacts == 1
    artifacts = [StudyFolder(study.folder).trial(r.trial).artifact for r in in_hand(study).finals.records.values()]
    sizes = [sum(path.stat().st_size for path in artifact.rglob("*") if path.is_file()) for artifact in artifacts]
    assert stored["lora of each task"].artifact_bytes == pytest.approx(2 * np.median(sizes), rel=0.01)
    assert stored["full"].artifacts == 2 and "dora" not in stored  # which was never run
    assert stored["lora weighted"].train_s is None  # nothing was probed
    assert stored["lora joint"].train_s > 0


def test_what_is_written_is_sealed_registered_and_answers_through_peft(study, done):
    found, folder, home = done
    manifest.check_manifest(folder)
    assert Combination.model_validate_json((folder / "combination.json").read_text()) == found
    version, new = Registry.at(home / "registry").add("both", folder)
    assert new and version.shipped.arm == f"lora {found.written}" and "mail: " in version.shipped.verdict
    base = AutoModelForCausalLM.from_pretrained(study.path.parent / "base")
    plain = base(input_ids=torch.tensor([[5, 6, 7]])).logits
    tuned = PeftModel.from_pretrained(base, folder).eval()
    assert not torch.allclose(tuned(input_ids=torch.tensor([[5, 6, 7]])).logits, plain, atol=1e-3)
    card = (folder / "README.md").read_text()
    assert "Does one adapter serve both?" in card and "NOT COMPARABLE" in card


def test_the_test_ledger_counts_one_opening_for_all_that_was_asked(study, done):
    digest = StudyFolder(study.folder).read_lock().data["mail"].digests["test"]
    (opening,) = TestLedger(done[2]).openings(digest)
    said = "mail: lora combined: weighted, ties density 0.5, dare density 0.5, sequential, joint"
    assert opening.what == said and done[0].openings == {"mail": 1, "news": 1}


def test_the_same_request_writes_the_same_bytes(study, tmp_path):
    for name in ("one", "two"):
        study.combine("lora", [Recipe(how="dare", rank=3)], tmp_path / name)
    read = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two")]
    assert read[0] == read[1]
    assert json.loads((tmp_path / "one" / "adapter_config.json").read_text())["r"] == 3


def test_adapters_beside_a_base_in_four_bits_are_combined_and_asked_there(study, tmp_path):
    found = study.combine("qlora", [Recipe(how="weighted")], tmp_path / "out")
    evidence = StudyFolder(study.folder).evidence()
    for task in ("mail", "news"):
        own = arms.outcome(evidence, task, "qlora").result.mean
        assert found.scores[task][f"qlora of {task}"] == pytest.approx(own, rel=1e-6)


def test_training_goes_on_from_an_adapter_and_begins_as_a_final_does(study):
    """Training in hand is the study's: a final is made again bit for bit; with no rate an adapter stays as it is."""
    from tunetrial.engine import several

    hand = in_hand(study)
    data, seed = training_rows(hand), hand.seeds[0]
    trial, mail, news = hand.finals.trial("news", seed), hand.singles["mail", seed], hand.singles["news", seed]
    still, _ = several.train(hand.session, trial.model_copy(update={"learning_rate": 1e-30}), data["news"], start=mail)
    again, _ = several.train(hand.session, trial, data["news"])
    moved, _ = several.train(hand.session, trial, data["news"], start=mail)
    for path in mail:
        assert torch.equal(still[path].dense, mail[path].dense) and torch.equal(again[path].dense, news[path].dense)
        assert not torch.equal(moved[path].dense, news[path].dense)
    with pytest.raises(TunetrialError, match="no adapter to go on from"):
        several.train(hand.session, trial, data["news"], start={})


def test_settings_are_chosen_before_any_test_row_is_answered(study, tmp_path, monkeypatch):
    asked, answers = [], Hand.answers
    monkeypatch.setattr(Hand, "answers", lambda self, given, split: asked.append(split) or answers(self, given, split))
    study.combine("lora", [Recipe(how="weighted"), Recipe(how="ties")], tmp_path / "out")
    seeds = len(in_hand(study).seeds)
    assert asked == ["validation"] * (1 + 2 * seeds) + ["test"] * seeds


def test_joint_training_sees_the_rows_of_all_tasks(study):
    hand = in_hand(study)
    together, apart = mixed(hand), training_rows(hand)
    assert [e.id for e in together.splits["train"]] == [
        f"{name}:{e.id}" for name in ("mail", "news") for e in apart[name].splits["train"]
    ]
    assert set(together.labels) >= set(apart["news"].labels)


def test_a_rate_at_which_joint_training_diverges_is_out_and_no_other(study, tmp_path, monkeypatch):
    from tunetrial.engine import several

    train, rates = several.train, (5e-3, 1e-2)

    def burst(at):
        def trained(session, trial, data, **how):
            if trial.learning_rate in at:
                raise DivergedError("step 3: numbers are no longer finite, got loss nan; lower the rate")
            return train(session, trial, data, **how)

        monkeypatch.setattr(several, "train", trained)

    burst(rates[1:])
    made = study.combine("lora", [Recipe(how="joint")], tmp_path / "out").of("joint")
    assert [one.mean is None for one in made.tried] == [False, True] and made.chosen == made.tried[0]
    burst(rates)
    with pytest.raises(EvidenceError, match="combine: joint: no setting came through .* got 2 settings; use another"):
        study.combine("lora", [Recipe(how="joint")], tmp_path / "none")
    with pytest.raises(
        DivergedError, match="combine: sequential: news, seed 1: .* no longer finite.*; use another --how"
    ):
        study.combine("lora", [Recipe(how="sequential")], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_arm_of_which_a_final_diverged_is_refused(study):
    evidence = StudyFolder(study.folder).evidence()
    lost = evidence.of(purpose="final", task="news", arm="lora")[0]
    records = [
        TrialRecord(trial=r.trial, status="diverged", reason="loss is NaN") if r is lost else r
        for r in evidence.records
    ]
    with pytest.raises(EvidenceError, match=r"lora diverged on news, .* got 1 of 2 finals; lower the rate"):
        check(replace(evidence, records=tuple(records)), StudyFolder(study.folder), "lora", ALL)


def test_scores_of_another_machine_are_not_held_against_those_of_today(study):
    hand = in_hand(study)
    then = [hand.finals.record("news", seed).measurements["test.accuracy"].value for seed in hand.seeds]
    assert combining._unlike(hand, "news", then) == ""
    assert "score otherwise on this machine" in combining._unlike(hand, "news", [then[0] + 0.01, *then[1:]])
    assert "not defined for every seed" in combining._unlike(hand, "news", then[1:])
    record = hand.finals.records["news", hand.seeds[0]]
    bare = {name: m for name, m in record.measurements.items() if name != "test.accuracy"}
    hand.finals.records["news", hand.seeds[0]] = record.model_copy(update={"measurements": bare})
    assert "not defined for every seed" in combining._unlike(hand, "news", then)


def test_gains_below_the_margin_are_nothing_to_keep(study):
    evidence = StudyFolder(study.folder).evidence()
    asked = evidence.lock.study
    wide = tuple(task.model_copy(update={"margin": 50.0}) for task in asked.tasks)
    lock = evidence.lock.model_copy(update={"study": asked.model_copy(update={"tasks": wide})})
    found = check(replace(evidence, lock=lock), StudyFolder(study.folder), "lora", ALL)
    with pytest.raises(
        EvidenceError, match="mail: adapters gain less than the margin of 50 over the untuned base, got"
    ):
        Hand(replace(evidence, lock=lock), study.path.parent, found).check_gains()


def test_comparisons_by_hand():
    """Ten seeds and 400 rows: the difference, its sign and its verdict; an obstacle without any scores."""
    rng = np.random.default_rng(0)
    reference_RE = rng.normal(0, 0.1, (10, 400))
    about = {"task": "t", "metric": "accuracy", "margin": 0.02, "candidate": "c"}
    about |= {"cluster_E": tuple(map(str, range(400)))}
    pairs = [
        combined.Pair(**about, reference=name, candidate_RE=reference_RE + by, reference_RE=other, obstacle=obstacle)
        for name, by, other, obstacle in (
            ("better", 0.1 + rng.normal(0, 0.01, (10, 1)), reference_RE, None),
            ("worse", -0.1 + rng.normal(0, 0.01, (10, 1)), reference_RE, None),
            ("absent", 0.0, None, "it has no finals"),
        )
    ]
    better, worse, absent = combined.compare(pairs, level=0.95)
    assert (better.words, worse.words, absent.words) == ("BETTER", "WORSE", "NOT COMPARABLE")
    for one, pair in ((better, pairs[0]), (worse, pairs[1])):
        assert one.effect == pytest.approx(float((pair.candidate_RE - pair.reference_RE).mean()))
        assert one.low < one.effect < one.high
    assert absent.effect is None and absent.reason == "it has no finals"


def test_share_kept_by_hand():
    about = {"task": "t", "metric": "accuracy"}
    assert combined.share_kept([0.6, 0.7], [0.8, 0.9], 0.5, **about) == pytest.approx(0.15 / 0.35)
    assert combined.share_kept([0.4], [0.9], 0.5, **about) == pytest.approx(-0.25)
    assert combined.share_kept([2.0], [1.0], 3.0, task="t", metric="nll") == pytest.approx(0.5)
    assert combined.share_kept([0.6, None], [0.8, 0.9], 0.5, **about) is None
    for single, base, metric in ((0.4, 0.5, "accuracy"), (0.5, 0.5, "accuracy"), (3.0, 2.0, "nll")):
        with pytest.raises(EvidenceError, match="no gain to keep"):
            combined.share_kept([0.6], [single], base, task="t", metric=metric)


@pytest.mark.parametrize(
    ("arm", "change", "said"),
    [
        ("lorra", {}, "no such arm, got 'lorra'; did you mean 'lora'"),
        ("full", {}, "no low-rank updates to add, got method full"),
        ("dora", {}, "no update to add, got dora"),
        ("lora", {"readout": "head"}, "news: a head is trained beside one adapter.* write readout: labels"),
        ("lora", {"epochs": {"news": 2}}, "joint: rows of all tasks are seen equally often, got epochs mail 4, news 2"),
        ("lora", {"margin": "95% of gain"}, "news: the margin is a share of one arm's gain"),
        ("lora", {"tasks": 1}, "needs 2 or more tasks, got 1"),
        ("lora", {"engine": "sim"}, "a synthetic study has no weights"),
    ],
)
def test_refuses_what_cannot_be_combined(study, arm, change, said):
    evidence = StudyFolder(study.folder).evidence()
    asked = evidence.lock.study
    mail, news = asked.tasks
    if "epochs" in change:
        asked = asked.model_copy(update={"tasks": (mail, news.model_copy(update={"epochs": 2}))})
    if "margin" in change:
        asked = asked.model_copy(update={"tasks": (mail, news.model_copy(update=change))})
    if "tasks" in change:
        asked = asked.model_copy(update={"tasks": (mail,)})
    if "readout" in change:
        asked = asked.model_copy(update=change)
    lock = evidence.lock.model_copy(update={"study": asked} | ({"engine": "sim"} if "engine" in change else {}))
    with pytest.raises((ConfigError, EvidenceError), match=said):
        check(replace(evidence, lock=lock), StudyFolder(study.folder), arm, ALL)


@pytest.mark.parametrize(
    ("recipes", "got"), [([], "none"), ([Recipe(how="ties"), Recipe(how="ties", density=0.2)], "ties, ties")]
)
def test_refuses_no_way_and_one_way_twice(study, tmp_path, recipes, got):
    with pytest.raises(
        ConfigError, match=f"combine: needs ways to combine, each once, got {got}; name some of weighted"
    ):
        study.combine("lora", recipes, tmp_path / "out")
    assert not (tmp_path / "home").exists()


def test_refuses_too_few_kept_finals_and_opens_no_test_rows(copied, tmp_path):
    results = StudyFolder(copied.folder)
    lost = next(r for r in results.records() if (r.trial.arm.name, r.trial.task) == ("lora", "news"))
    results.trial(lost.trial).drop_artifact()
    with pytest.raises(EvidenceError, match=r"2 or more seeds .* got 1 \(mail 2, news 1\); run the study first"):
        copied.combine("lora", ALL, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("name", "said", "place"),
    [("base/model.safetensors", "not the base", -9), ("news-validation.jsonl", "validation rows are not those", 32)],
)
def test_refuses_what_is_not_the_study_s_and_writes_nothing(copied, tmp_path, name, said, place):
    path = copied.path.parent / name
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=said):
        copied.combine("lora", [Recipe(how="weighted")], tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "home").exists()


def test_refuses_an_altered_adapter_and_a_folder_that_is_there(copied, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(StoreError, match="is there already"):
        copied.combine("lora", ALL, tmp_path / "out")
    results = StudyFolder(copied.folder)
    record = next(r for r in results.records() if (r.trial.arm.name, r.trial.task) == ("lora", "news"))
    path = results.trial(record.trial).artifact / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\x80\x7f")
    with pytest.raises(IntegrityError):
        copied.combine("lora", ALL, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_verb_prints_tables_or_json_and_says_what_is_wrong(study, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(cli.app, ["combine", str(study.path), *map(str, arguments)])

    ran = run("--arm", "lora", "--to", tmp_path / "out", "--how", "weighted", "--json")
    assert ran.exit_code == 0, ran.output
    assert Combination.model_validate_json(ran.stdout).written == "weighted"
    again = run("--arm", "lora", "--to", tmp_path / "out")
    assert again.exit_code == 1 and "is there already; name a new folder" in again.stderr
    for wrong in (["--how", "soup"], ["--density", "0"], ["--density", "nan"], ["--rank", "0"]):
        assert run("--arm", "lora", "--to", tmp_path / "x", *wrong).exit_code == 2
    assert not (tmp_path / "x").exists()
