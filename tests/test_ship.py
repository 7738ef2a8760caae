"""Shipping an arm of a real, tiny study: what leaves computes what was trained, and what could mislead is refused."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

import shippable
import tunetrial.ship
from tunetrial import Study, cli, models
from tunetrial.core import files, manifest
from tunetrial.core.errors import ConfigError, EvidenceError, IntegrityError, ModelError, SpecError, StoreError
from tunetrial.engine.merge import DTYPES
from tunetrial.engine.quantised import Nf4
from tunetrial.engine.texts import PLAIN_TEMPLATE
from tunetrial.ship.order import FORMATS, Order
from tunetrial.ship.shipped import Shipped
from tunetrial.store import TestLedger

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's, in these tests


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Completions as answers; every arm."""
    return shippable.make_study(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """Labels read by a head."""
    return shippable.make_study(tmp_path_factory.mktemp("head"), shippable.LABELS, arms=("full", "lora"))


@pytest.fixture
def copied(text, tmp_path):
    """A study that a test may damage."""
    return Study.load(shutil.copytree(text.path.parent, tmp_path / "study") / "study.yaml")


def ship(study, to, arm="lora", format="adapter", *, score=False, **more):
    return study.ship(Order(arm=arm, format=format, **more), to, score=score)


def prompts(study):
    rows = [json.loads(line) for line in (study.path.parent / "test.jsonl").read_text().splitlines()]
    wrap = "{} =>" if study.asked.tasks[0].kind == "generate" else "{}"
    return [wrap.format(row["text"]) for row in rows]


def answers(study, model) -> list[str]:
    """What Hugging Face's model writes to the test rows, greedily."""
    tokenizer = AutoTokenizer.from_pretrained(study.path.parent / "base")
    made = []
    for prompt in prompts(study):
        ids = torch.tensor([tokenizer(prompt).input_ids])
        out = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(ids))
        made.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return made


def labels(study, model, names) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(study.path.parent / "base")
    with torch.no_grad():
        scores = [model(input_ids=torch.tensor([tokenizer(prompt).input_ids])).logits[0] for prompt in prompts(study)]
    return [names[int(one.argmax())] for one in scores]


def nats(study, model) -> list[float]:
    """How unlikely the test rows' targets are to Hugging Face's model, end of text included."""
    tokenizer, found = AutoTokenizer.from_pretrained(study.path.parent / "base"), []
    rows = [json.loads(line) for line in (study.path.parent / "test.jsonl").read_text().splitlines()]
    for row, prompt in zip(rows, prompts(study), strict=True):
        given, target = tokenizer(prompt).input_ids, tokenizer(row["target"]).input_ids + [tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([given + target])).logits[0, len(given) - 1 : -1].double()
        found.append(float(-logits.log_softmax(-1)[range(len(target)), target].sum()))
    return found


def scored(study, shipment):
    """What the run that ships answered to the test rows in the study, and how likely their targets were to it."""
    record, folder = next((r, f) for r, f in shippable.finals(study, shipment.arm) if r.trial.id == shipment.trial)
    return folder.scores(record)["test"]


def recorded(study, shipment) -> list[str]:
    return scored(study, shipment).prediction_E.tolist()


def base(study, kind=AutoModelForCausalLM, **more):
    return kind.from_pretrained(study.path.parent / "base", dtype=torch.float32, **more).eval()


# Which run


def test_the_run_with_the_median_validation_score_ships_and_the_card_says_so(text, tmp_path):
    made = ship(text, tmp_path / "out")
    by_score = sorted((r.measurements["validation.nll"].value, r.trial.seed) for r, _ in shippable.finals(text, "lora"))
    assert made.seed == by_score[1][1] and made.why == "the median validation nll of 3 runs"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{made.trial}, seed {made.seed}: the median validation nll of 3 runs" in card
    assert f"lora on mail, seed {made.seed}: the median validation nll" in str(made)


def test_of_equal_scores_the_lower_seed_ships(copied, tmp_path, monkeypatch):
    evidence, decision = copied._conclude()
    same = {"validation.nll": next(iter(evidence.of(purpose="final", arm="lora"))).measurements["validation.nll"]}
    records = tuple(r.model_copy(update={"measurements": r.measurements | same}) for r in evidence.records)
    object.__setattr__(evidence, "records", records)
    assert ship(copied, tmp_path / "out").seed == sorted(r.trial.seed for r, _ in shippable.finals(copied, "lora"))[1]


def test_another_seed_is_named_and_one_that_is_not_kept_is_refused_by_name(copied, tmp_path):
    chosen = ship(copied, tmp_path / "a", "full", "merged").seed
    other = next(r.trial.seed for r, _ in shippable.finals(copied, "full") if r.trial.seed != chosen)
    named = ship(copied, tmp_path / "b", "full", "merged", seed=other)
    assert (named.seed, named.why) == (other, "named by --seed")
    for record, folder in shippable.finals(copied, "full"):
        if record.trial.seed != other:
            folder.drop_artifact()
    with pytest.raises(EvidenceError, match=f"are not kept, got seed {chosen}, .*; kept are seed {other}: name one"):
        ship(copied, tmp_path / "c", "full", "merged")
    with pytest.raises(EvidenceError, match=f"no finished run of full on mail has seed 99; kept are seed {other}"):
        ship(copied, tmp_path / "c", "full", "merged", seed=99)
    assert not (tmp_path / "c").exists()


# Adapter


@pytest.mark.parametrize("arm", ["lora", "dora"])
def test_peft_loads_the_adapter_to_the_same_answers(text, tmp_path, arm):
    made = ship(text, tmp_path / "out", arm)
    model = PeftModel.from_pretrained(base(text), tmp_path / "out").eval()
    assert answers(text, model) == recorded(text, made)
    wanted = scored(text, made).measured["nll"]
    assert np.allclose(nats(text, model), wanted, rtol=1e-5) and not np.allclose(
        nats(text, base(text)), wanted, rtol=0.01
    )
    said = json.loads((tmp_path / "out" / "tunetrial.json").read_text())
    assert Shipped.model_validate(said).chain.passed is None and said["verdict"] == made.verdict
    assert set(said) == set(Shipped.model_fields)
    assert said["format"] == "adapter" and said["study"] == text.decide().study_digest
    assert manifest.check_manifest(tmp_path / "out").keys() >= {"adapter_model.safetensors", "README.md"}


def test_a_head_travels_with_the_adapter_and_with_the_merged_model(head, tmp_path):
    names = ("a", "b", "c")
    made = ship(head, tmp_path / "adapter")
    plain = base(head, AutoModelForSequenceClassification, num_labels=3)
    assert labels(head, PeftModel.from_pretrained(plain, tmp_path / "adapter").eval(), names) == recorded(head, made)
    merged = ship(head, tmp_path / "merged", format="merged", score=True)
    own = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert own.config.id2label == dict(enumerate(names)) and labels(head, own, names) == recorded(head, merged)
    measured = next(r for r, _ in shippable.finals(head, "lora") if r.trial.id == merged.trial).measurements
    assert merged.scores == {"merged into the base": pytest.approx(measured["test.accuracy"].value)}
    full = ship(head, tmp_path / "full", "full", "merged", score=True, dtype="bf16")
    assert shippable.weights(tmp_path / "full")["score.weight"].dtype == torch.float32
    assert full.scores.keys() == {"as shipped"}


# Merged


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_merged_model_is_saved_as_asked_and_answers_alike(text, tmp_path, dtype):
    made = ship(text, tmp_path / "out", format="merged", dtype=dtype)
    assert {w.dtype for w in shippable.weights(tmp_path / "out").values()} == {DTYPES[dtype]}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert model.dtype == DTYPES[dtype]
    assert models.resolve(str(tmp_path / "out")).fingerprint  # every file as the manifest has it
    if dtype == "fp32":
        assert np.allclose(nats(text, model), scored(text, made).measured["nll"], rtol=1e-5)
        assert answers(text, model) == recorded(text, made)


def test_a_full_model_ships_as_it_was_saved(text, tmp_path):
    made = ship(text, tmp_path / "out", "full", "merged", score=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert answers(text, model) == recorded(text, made) and made.verdict == "reference"
    record = next(r for r, _ in shippable.finals(text, "full") if r.trial.id == made.trial)
    assert made.scores["as shipped"] == pytest.approx(record.measurements["test.nll"].value, rel=1e-4)


def test_qlora_is_merged_into_the_base_or_into_what_training_saw_and_both_are_scored(text, tmp_path):
    made = ship(text, tmp_path / "plain", "qlora", "merged", score=True)
    onto = ship(text, tmp_path / "onto", "qlora", "merged", dequantised=True)
    record, folder = next((r, f) for r, f in shippable.finals(text, "qlora") if r.trial.id == made.trial)
    factors = load_file(folder.artifact / "adapter_model.safetensors")
    before = load_file(text.path.parent / "base" / "model.safetensors")
    own, other = shippable.weights(tmp_path / "plain"), shippable.weights(tmp_path / "onto")
    moved = 0
    for name, weight in before.items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight"
        wanted = seen = weight.double()
        if key.format("A") in factors:
            update = 8 / 4 * factors[key.format("B")].double() @ factors[key.format("A")].double()
            wanted, seen, moved = weight + update, Nf4(weight).matrix() + update, moved + 1
        assert torch.allclose(own[name].double(), wanted, atol=1e-6), name
        assert torch.allclose(other[name].double(), seen, atol=1e-6), name
    assert moved == 14
    scores, trained = made.scores, record.measurements["test.nll"].value
    assert scores["merged into the dequantised base"] == pytest.approx(trained, rel=1e-6)
    assert scores["merged into the base"] != pytest.approx(trained, rel=1e-6)
    assert "nearly, not exactly" in made.remarks[0] and "dequantised from nf4" in onto.remarks[0]
    uses = [
        o.what for o in TestLedger(tmp_path / "home").openings(text._conclude()[0].lock.data["mail"].digests["test"])
    ]
    assert uses == [f"mail: qlora, seed {made.seed}: scored as shipped"]
    card = (tmp_path / "plain" / "README.md").read_text()
    assert "- merged into the dequantised base: " in card and "this run, as trained" in card
    assert str(tmp_path) not in (tmp_path / "plain" / "merged_from.json").read_text()


def test_a_head_of_numbers_is_merged_to_the_same_numbers(tmp_path):
    study = shippable.make_study(tmp_path / "study", shippable.NUMBERS, arms=("lora",), seeds=1)
    made = ship(study, tmp_path / "out", format="merged", score=True)
    [(record, _)] = shippable.finals(study, "lora")
    assert made.scores["merged into the base"] == pytest.approx(record.measurements["test.mae"].value, rel=1e-5)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    meaning = json.loads((tmp_path / "out" / "readout.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([tokenizer(p).input_ids])).logits.item() for p in prompts(study)]
    found = [logit * meaning["sd"] + meaning["mean"] for logit in logits]
    assert found == pytest.approx(recorded(study, made), abs=1e-4)
    assert "logit * sd + mean" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ModelError, match="numbers are read by a head: use --format adapter or merged"):
        ship(study, tmp_path / "no", format="vllm")


# Refusals


def altered(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [altered, lambda path: path.write_bytes(path.read_bytes()[:-9]), Path.unlink])
@pytest.mark.parametrize(("arm", "format"), [("lora", "adapter"), ("full", "merged")])
def test_an_altered_truncated_or_missing_file_is_named(copied, tmp_path, damage, arm, format):
    damaged = next(shippable.finals(copied, arm)[1][1].artifact.glob("*.safetensors"))
    damage(damaged)
    with pytest.raises(IntegrityError) as refused:
        ship(copied, tmp_path / "out", arm, format)
    assert str(refused.value).startswith(f"{damaged}: ") and not (tmp_path / "out").exists()


def test_a_file_that_is_altered_after_it_was_checked_is_refused(copied, tmp_path):
    copied.decide()
    made = ship(copied, tmp_path / "first")
    folder = next(f for r, f in shippable.finals(copied, "lora") if r.trial.id == made.trial)
    weights = shippable.weights(folder.artifact)
    with_metadata = {"base_fingerprint": made.base_fingerprint}
    save_file({k: w * 1.01 for k, w in weights.items()}, folder.artifact / "adapter_model.safetensors", with_metadata)
    with pytest.raises(IntegrityError, match="adapter_model.safetensors: expected SHA-256"):
        ship(copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def reseal(folder):
    """Seal a damaged trial anew, as whoever can write there can."""
    path = folder.path / "record.json"
    content = json.loads(path.read_text())
    content.pop("seal")
    content["manifests"]["artifact/manifest.json"] = manifest.seal(folder.artifact)
    content["record"]["artifacts"] = manifest.check_manifest(folder.artifact)
    from tunetrial.store import sealed

    sealed.write(path, content)


@pytest.mark.parametrize(("arm", "format"), [("lora", "adapter"), ("lora", "merged"), ("full", "merged")])
def test_weights_that_are_not_finite_are_refused(copied, tmp_path, arm, format):
    for _, folder in shippable.finals(copied, arm):
        path = next(folder.artifact.glob("*.safetensors"))
        weights = load_file(path)
        weights[max(weights)].view(-1)[3] = torch.inf
        save_file(weights, path)
        reseal(folder)
    with pytest.raises(IntegrityError, match="NaN or infinity"):
        ship(copied, tmp_path / "out", arm, format)
    assert not (tmp_path / "out").exists()


def test_foreign_and_pickled_files_and_names_that_lead_elsewhere_are_refused(copied, tmp_path):
    foreign = shippable.finals(copied, "lora")[0][1].artifact / "adapter_model.bin"
    foreign.write_bytes(b"pickle")
    with pytest.raises(IntegrityError, match="adapter_model.bin: not in manifest.json, got a foreign file"):
        ship(copied, tmp_path / "out")
    foreign.unlink()
    for _, one in shippable.finals(copied, "lora"):
        (one.artifact / "adapter_model.safetensors").rename(one.artifact / "adapter_model.bin")
        reseal(one)
    with pytest.raises(ModelError, match="got adapter_model.bin, which can run code"):
        ship(copied, tmp_path / "out")
    for _, one in shippable.finals(copied, "full"):
        (one.artifact / "model.safetensors").rename(one.artifact / "x.pt")
        (one.artifact / "model.safetensors").symlink_to("x.pt")
        reseal(one)
    with pytest.raises(IntegrityError, match="not a file that an artifact has"):
        ship(copied, tmp_path / "out", "full", "merged")
    assert not (tmp_path / "out").exists()


def test_another_base_of_the_same_shape_is_refused(copied, tmp_path):
    path = copied.path.parent / "base" / "model.safetensors"
    save_file({k: w + 1e-3 for k, w in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(IntegrityError, match="not the base that lora was trained on, got fingerprint"):
        ship(copied, tmp_path / "out")


def test_arms_runs_and_combinations_that_cannot_be_shipped_say_what_can(text, tmp_path):
    refused = [
        (SpecError, "no such arm, got 'lroa'.*lora", {"arm": "lroa"}),
        (SpecError, "no such task, got 'males'", {"task": "males"}),
        (SpecError, "untuned has no weights of its own", {"arm": "untuned"}),
        (ConfigError, "full is trained in full and has no adapter", {"arm": "full"}),
        (ConfigError, "use merged", {"merge": True}),
        (ConfigError, "got --merge; leave it out", {"arm": "full", "format": "gguf", "merge": True}),
        (ConfigError, "--dtype is of merged weights", {"dtype": "bf16"}),
        (
            ConfigError,
            "--dtype: got --format merged and q8_0; use one of fp32, bf16",
            {"format": "merged", "dtype": "q8_0"},
        ),
        (ConfigError, "--dtype: q4_k_m is written by llama.cpp's own quantiser", {"format": "gguf", "dtype": "q4_k_m"}),
        (ConfigError, "--llama-cpp writes GGUF, got --format adapter", {"llama_cpp": Path("x")}),
        (ConfigError, "--onto: lora is on no base in few bits", {"format": "merged", "dequantised": True}),
        (ConfigError, "--onto says what to merge into", {"arm": "qlora", "format": "gguf", "dequantised": True}),
        (ConfigError, "--push-to-hub goes with --format hub", {"push_to": "me/it"}),
        (ConfigError, "--public goes with --push-to-hub", {"format": "hub", "public": True}),
        (ModelError, "vLLM serves no DoRA, .*--merge", {"arm": "dora", "format": "vllm"}),
        (ModelError, "vLLM serves adapters in 16 bits alone, got fp32", {"format": "vllm", "dtype": "fp32"}),
    ]
    for kind, said, order in refused:
        with pytest.raises(kind, match=said):
            ship(text, tmp_path / "out", **order)
    with pytest.raises(ConfigError, match="--score is of merged models, got --format adapter"):
        ship(text, tmp_path / "out", score=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["gguf", "ollama", "vllm"])
def test_a_head_is_refused_where_nothing_can_serve_it(head, tmp_path, format):
    with pytest.raises(ModelError, match=f"{format} has no place for the head .*; train with readout: labels"):
        ship(head, tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


def test_simulated_runs_have_no_weights_to_ship(copied, tmp_path):
    evidence, _ = copied._conclude()
    object.__setattr__(evidence, "records", tuple(r.model_copy(update={"synthetic": True}) for r in evidence.records))
    with pytest.raises(ConfigError, match="runs of this study are simulated"):
        ship(copied, tmp_path / "out")


# The folder


def test_a_folder_with_content_is_refused_and_an_empty_one_filled(text, tmp_path):
    (tmp_path / "out").mkdir()
    ship(text, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for to in (tmp_path / "out", tmp_path / "out" / "README.md"):
        with pytest.raises(StoreError, match="is there already; name a new folder"):
            ship(text, to)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="is there already"):
        ship(text, tmp_path / "link")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


SCRIPT = """
import resource, sys, time
from pathlib import Path
from tunetrial import Study
from tunetrial.core import manifest
from tunetrial.core.errors import StoreError
from tunetrial.ship.order import Order

study, to = Study.load(sys.argv[1]), Path(sys.argv[2])
study.decide()
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
for arm, format in (("lora", "adapter"), ("lora", "merged"), ("full", "merged")):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, most))
    try:
        study.ship(Order(arm=arm, format=format), to)
    except StoreError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        print("refused:", error, "left:", [path.name for path in to.parent.iterdir()], flush=True)
manifest.seal = lambda folder: (print("writing", flush=True), time.sleep(600))
study.ship(Order(arm="lora", format="adapter"), to)
"""


def test_a_full_disk_and_a_kill_leave_nothing_half_written(text, tmp_path):
    """A real process under a limit of the kernel's on the size of files, then killed as it writes."""
    (tmp_path / "to").mkdir()
    out = tmp_path / "to" / "out"
    command = [sys.executable, "-c", SCRIPT, text.path, out]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        refused = [process.stdout.readline() for _ in range(3)]
        assert all("cannot be written, got File too large; see to that" in line for line in refused), refused
        assert all(line.endswith(" left: []\n") for line in refused), refused
        assert process.stdout.readline() == "writing\n", process.stderr.read()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not out.exists() and [path.name[:5] for path in (tmp_path / "to").iterdir()] == [".out."]
    ship(text, out)
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["out"]


def test_what_a_living_process_is_writing_is_left_to_it(tmp_path):
    with files.new_folder(tmp_path / "out") as first:
        (first / "a").write_text("1")
        with files.new_folder(tmp_path / "out") as second:
            (second / "a").write_text("2")
        assert (tmp_path / "out" / "a").read_text() == "2" and (first / "a").exists()
        shutil.rmtree(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "1"
    with pytest.raises(StoreError, match="cannot be written"), files.new_folder(tmp_path / "late") as folder:
        (folder / "a").touch()
        shutil.copytree(folder, tmp_path / "late")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["late", "out"]


# GGUF, Ollama, vLLM


@pytest.fixture
def gguf(monkeypatch):
    """A writer of GGUF files that notes what it was asked for."""
    asked = []

    def write_base(folder, to, *, kind):
        weights = load_file(folder / "model.safetensors")
        asked.append((sorted({str(w.dtype) for w in weights.values()}), to.name, kind))
        to.write_bytes(b"GGUF")
        return to

    def write_adapter(adapter, base, to):
        asked.append((adapter.name, to.name))
        to.write_bytes(b"GGUF")
        return to

    def refusal(adapter):
        dora = json.loads((adapter / "adapter_config.json").read_text())["use_dora"]
        return "DoRA is no GGUF adapter; merge first" if dora else None

    fake = SimpleNamespace(write_base=write_base, write_adapter=write_adapter, refusal=refusal, asked=asked)
    monkeypatch.setitem(sys.modules, "tunetrial.ship.gguf_files", fake)
    monkeypatch.setattr(tunetrial.ship, "gguf_files", fake, raising=False)
    return fake


def test_gguf_is_base_and_adapter_or_one_merged_file(text, tmp_path, gguf):
    made = ship(text, tmp_path / "two", format="gguf", dtype="q8_0")
    assert gguf.asked == [(["torch.float32"], "base.gguf", "q8_0"), ("artifact", "adapter.gguf")]
    assert {"base.gguf", "adapter.gguf", "README.md", "tunetrial.json"} <= set(made.files)
    gguf.asked.clear()
    merged = ship(text, tmp_path / "one", "dora", "gguf", merge=True)
    assert gguf.asked == [(["torch.float32"], "model.gguf", "f32")]
    assert "model.gguf" in merged.files and "config.json" not in merged.files
    ship(text, tmp_path / "full", "full", "gguf", dtype="bf16")
    assert gguf.asked[-1] == (["torch.float32"], "model.gguf", "bf16")
    with pytest.raises(ModelError, match="DoRA is no GGUF adapter; merge first"):
        ship(text, tmp_path / "no", "dora", "gguf")
    assert not (tmp_path / "no").exists()


def test_ollama_has_a_modelfile_of_the_study_s_prompt(text, tmp_path, gguf):
    ship(text, tmp_path / "out", format="ollama")
    made = (tmp_path / "out" / "Modelfile").read_text()
    assert made.splitlines() == [
        "# Send the value of text",
        "FROM ./base.gguf",
        "ADAPTER ./adapter.gguf",
        'TEMPLATE """{{ .Prompt }} =>"""',
        'PARAMETER stop """<e>"""',
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        "PARAMETER num_predict 8",
    ]
    ship(text, tmp_path / "merged", "qlora", "ollama", merge=True, dequantised=True)
    assert "FROM ./model.gguf\nTEMPLATE" in (tmp_path / "merged" / "Modelfile").read_text()


def test_a_study_of_conversations_ships_with_its_template(tmp_path, gguf):
    study = shippable.make_study(tmp_path / "study", shippable.TALKS, arms=("lora",), seeds=1)
    ship(study, tmp_path / "ollama", format="ollama")
    made = (tmp_path / "ollama" / "Modelfile").read_text()
    assert "{{ range .Messages }}" in made and 'PARAMETER stop """<e>"""' in made
    served = ship(study, tmp_path / "vllm", format="vllm")
    assert f"--chat-template {tmp_path / 'vllm' / 'chat_template.jinja'}" in served.command
    assert "--chat-template ./chat_template.jinja" in (tmp_path / "vllm" / "serve.sh").read_text()
    assert (tmp_path / "vllm" / "chat_template.jinja").read_text() == PLAIN_TEMPLATE
    assert "Send conversations" in (tmp_path / "vllm" / "README.md").read_text()


def test_vllm_gets_a_command_that_a_shell_takes_apart_as_meant(text, tmp_path):
    out = tmp_path / "a 'b' $(touch x)"
    made = ship(text, out, format="vllm")
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "vllm"
    fake.write_text('#!/bin/sh\npwd\nfor one in "$@"; do echo "$one"; done\n')
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    path = {**os.environ, "PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}"}
    told = ["serve", str(text.path.parent / "base"), "--enable-lora", "--lora-modules", "lora={}", "--max-lora-rank"]
    told += ["8", "--dtype", "bfloat16", "--host", "127.0.0.1"]
    ran = subprocess.run(["sh", out / "serve.sh", "--port", "1"], env=path, capture_output=True, text=True, check=True)
    place, *words = ran.stdout.splitlines()
    assert Path(place) == out and words == [word.format(".") for word in told] + ["--port", "1"]
    ran = subprocess.run(made.command, shell=True, env=path, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ran.stdout.splitlines()[1:] == [word.replace("{}", str(out)) for word in told]
    assert not (tmp_path / "x").exists() and "vLLM was not run" in str(made)
    assert PeftModel.from_pretrained(base(text), out) is not None
    assert '"{{ text }} =&gt;"' in (out / "README.md").read_text()
    merged = ship(text, tmp_path / "merged", "dora", "vllm", merge=True, dtype="fp16")
    assert merged.command.endswith("merged --served-model-name dora --dtype float16 --host 127.0.0.1")


# The card, the command line, the Hub


def test_the_card_has_a_header_results_and_where_it_comes_from(text, tmp_path):
    made = ship(text, tmp_path / "out", "qlora")
    card = (tmp_path / "out" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header == {
        "base_model": "base",
        "library_name": "peft",
        "license": "apache-2.0",
        "tags": ["tunetrial", "qlora"],
    }
    evidence, decision = text._conclude()
    results = {a.arm: a for a in decision.arms}
    for arm in ("full (reference)", "qlora", "untuned"):
        assert f"| {arm} | {results[arm.split()[0]].mean:.3f}" in card
    assert "| dora |" not in card and f"Verdict: **{made.verdict}**" in card
    for said in (
        evidence.lock.base_fingerprint,
        decision.study_digest,
        "learning rate 1e-2",
        "48 train, 12 validation",
    ):
        assert said in card
    assert "&lt;b&gt;LoRA" in card and "<b>" not in card and str(tmp_path) not in card


def test_a_base_that_states_no_licence_is_said_to(copied, tmp_path):
    (copied.path.parent / "base" / "README.md").write_text("---\n: [\n---\n")
    ship(copied, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license:" not in card and "licence of the base: not stated" in card and "states no licence" in card


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["ship", *map(str, arguments)])


def test_the_verb_prints_what_was_shipped_and_errors_in_one_line(text, tmp_path):
    ran = invoke(text.path, "--arm", "lora", "--to", tmp_path / "out", "--json")
    assert ran.exit_code == 0, ran.stderr
    made = json.loads(ran.stdout)
    assert made["folder"] == str(tmp_path / "out") and made["files"]["README.md"] > 0 and "shipping" in ran.stderr
    again = invoke(text.path, "--arm", "lora", "--to", tmp_path / "out")
    assert again.exit_code == 1 and again.stdout == "" and again.stderr.splitlines()[-1].endswith("name a new folder")
    assert invoke(text.path, "--arm", "lora").exit_code == 2
    assert invoke(text.path, "--arm", "lora", "--to", tmp_path / "b", "--format", "zip").exit_code == 2
    assert set(FORMATS) == {"adapter", "merged", "gguf", "ollama", "vllm", "hub"}


class FakeApi:
    """The Hub's client, as far as it is used."""

    def __init__(self, fail=None):
        self.fail, self.calls = fail, []

    def create_repo(self, repo_id, **options):
        self.calls.append(("create", repo_id, options))
        if self.fail:
            raise self.fail

    def upload_folder(self, *, repo_id, folder_path, **options):
        self.calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    api = FakeApi()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    return api


def test_a_push_is_private_unless_asked_and_names_no_place_on_this_machine(text, tmp_path, hub):
    made = ship(text, tmp_path / "out", format="hub", push_to="me/lora")
    assert made.pushed == "https://huggingface.co/me/lora"
    (create, name, options), (upload, _, names) = hub.calls
    assert (create, upload, name) == ("create", "upload", "me/lora")
    assert options == {"repo_type": "model", "private": True, "exist_ok": False} and "README.md" in names
    for path in (tmp_path / "out").iterdir():
        assert str(text.path.parent).encode() not in path.read_bytes(), path
    ship(text, tmp_path / "whole", format="hub", merge=True, push_to="me/whole", public=True)
    assert hub.calls[2][2]["private"] is False and "model.safetensors" in hub.calls[3][2]
    for path in (tmp_path / "whole").iterdir():
        assert str(text.path.parent).encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("status", "said"),
    [(409, "such a repository already"), (403, "refuses access .status 403."), (500, "answered with status 500")],
)
def test_what_the_hub_refuses_is_one_line_and_the_folder_stays(text, tmp_path, hub, status, said):
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    response = httpx.Response(status, request=httpx.Request("POST", "https://huggingface.co/api"))
    hub.fail = HfHubHTTPError("long\nwords", response=response)
    with pytest.raises(ModelError, match=f"--push-to-hub: .*{said}.*the folder is kept at") as refused:
        ship(text, tmp_path / "out", format="hub", push_to="me/lora")
    assert "\n" not in str(refused.value) and (tmp_path / "out" / "README.md").exists()
    hub.fail = httpx.ConnectError("no route")
    with pytest.raises(ModelError, match="the Hub cannot be reached, got ConnectError"):
        ship(text, tmp_path / "again", format="hub", push_to="me/lora")


def test_a_push_without_token_network_or_name_is_refused_before_anything_is_written(text, tmp_path, hub, monkeypatch):
    import huggingface_hub

    for name in ("lora", "../x/y", "me/lora@main", "a/b/c"):
        with pytest.raises(ConfigError, match="--push-to-hub: not a name of a repository"):
            ship(text, tmp_path / "out", format="hub", push_to=name)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="no token is set, got me/lora; set HF_TOKEN"):
        ship(text, tmp_path / "out", format="hub", push_to="me/lora")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        ship(text, tmp_path / "out", format="hub", push_to="me/lora")
    assert not (tmp_path / "out").exists() and hub.calls == []
