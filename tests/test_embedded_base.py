"""The base model that ships: shape, format, tokenizer, that it learned English, and that damage is refused."""

import json
import os
import pickle
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import tiny
from tunetrial import models
from tunetrial.core.errors import IntegrityError, ModelError
from tunetrial.engine.torch_engine import TorchEngine

WEIGHTS = models.EMBEDDED / "model.safetensors"
TOKENIZER = AutoTokenizer.from_pretrained(models.EMBEDDED)


@pytest.fixture
def tokenizer():
    return TOKENIZER


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(models.EMBEDDED, dtype=torch.float32)


def test_shape_is_the_promised_one(model):
    config = AutoConfig.from_pretrained(models.EMBEDDED)
    assert config.model_type == "llama" and config.tie_word_embeddings
    assert config.max_position_embeddings == 512 and config.vocab_size == 8192
    assert config.hidden_size % 256 == 0 and config.intermediate_size % 256 == 0  # K-quants need blocks of 256
    layer = 4 * 256 * 256 + 3 * 256 * 768 + 2 * 256
    assert sum(p.numel() for p in model.parameters()) == 8192 * 256 + 12 * layer + 256 == 12_327_168


def test_weights_are_small_bf16_safetensors_and_nothing_is_pickled():
    assert WEIGHTS.stat().st_size <= 26e6
    with safe_open(WEIGHTS, "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}
    names = {path.name for path in models.EMBEDDED.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_pre_tokenizer_is_plain_byte_level_without_normaliser():
    stored = json.loads((models.EMBEDDED / "tokenizer.json").read_text())
    assert stored["normalizer"] is None
    wanted = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    assert {key: stored["pre_tokenizer"][key] for key in wanted} == wanted
    assert len(stored["model"]["vocab"]) == 8192


def test_pre_tokenizer_splits_as_gpt2_does(outside_data, tokenizer):
    gpt2 = AutoTokenizer.from_pretrained(outside_data / "models/tokenizer_gpt2").backend_tokenizer.pre_tokenizer
    ours = tokenizer.backend_tokenizer.pre_tokenizer
    for text in (
        "I'll pay 1,250.50 by the 3rd!",
        "  two  spaces\n\n\ttabs",
        "naïve café — “quoted” 漢字 🙂",
        "don't.Stop",
    ):
        assert ours.pre_tokenize_str(text) == gpt2.pre_tokenize_str(text)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_tokenizer_round_trips_any_text(text):
    if "<|endoftext|>" not in text and "<|pad|>" not in text:
        assert TOKENIZER.decode(TOKENIZER(text).input_ids) == text


def nats(model, tokenizer, text: str) -> float:
    ids = tokenizer(tokenizer.bos_token + text, return_tensors="pt").input_ids
    with torch.no_grad():
        return float(model(ids, labels=ids).loss)


def test_it_prefers_english_to_the_same_words_shuffled(model, tokenizer):
    english = "The old woman opened the door and looked out into the street, but there was nobody there."
    shuffled = "street the nobody woman looked into and the there old The out was, there but opened door."
    assert nats(model, tokenizer, english) < 3.0 < 5.0 < nats(model, tokenizer, shuffled)


def test_it_continues_a_prompt_in_readable_english(model, tokenizer):
    torch.manual_seed(0)
    prompt = tokenizer("She looked out of the window and saw", return_tensors="pt")
    made = tokenizer.decode(model.generate(**prompt, max_new_tokens=48, do_sample=True)[0])
    words = [word.strip(".,;:!?\"'()-").lower() for word in made.split()]
    known = [word for word in words if tokenizer(" " + word).input_ids[1:] == []]
    assert len(words) >= 25 and len(known) / len(words) > 0.7  # whole words of the vocabulary, not fragments


def test_resolve_returns_the_same_fingerprint_for_a_copy(copied_base):
    ours, copy = models.resolve("embedded"), models.resolve(str(copied_base))
    assert ours.fingerprint == copy.fingerprint and len(ours.fingerprint) == 64
    assert ours.folder == models.EMBEDDED


def test_fingerprint_follows_the_weights(copied_base):
    (copied_base / "manifest.json").unlink()
    before = models.resolve(str(copied_base)).fingerprint
    with open(copied_base / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00")
    assert models.resolve(str(copied_base)).fingerprint != before


def remove(path):
    path.unlink()


def truncate(path):
    with open(path, "r+b") as file:
        file.truncate(1000)


def flip_one_bit(path):
    with open(path, "r+b") as file:
        file.seek(5_000_000)
        byte = file.read(1)[0]
        file.seek(5_000_000)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("damage", [remove, truncate, flip_one_bit])
def test_damaged_weights_are_refused_in_one_line(monkeypatch, copied_base, damage):
    expected = json.loads((copied_base / "manifest.json").read_text())["files"]["model.safetensors"]["sha256"]
    monkeypatch.setattr(models, "EMBEDDED", copied_base)
    damage(copied_base / "model.safetensors")
    with pytest.raises(IntegrityError) as refused:
        models.resolve("embedded")
    message = str(refused.value)
    assert "model.safetensors" in message and expected in message and "\n" not in message


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", "{}", '{"files": {}}', '{"files": []}', '{"files": {"model.safetensors": {}}}']
)
def test_damaged_manifest_is_refused(monkeypatch, copied_base, content):
    manifest = copied_base / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    monkeypatch.setattr(models, "EMBEDDED", copied_base)
    with pytest.raises(IntegrityError, match="manifest.json"):
        models.resolve("embedded")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_manifest_that_leaves_a_file_out_is_refused(copied_base, name):
    manifest = copied_base / "manifest.json"
    listed = json.loads(manifest.read_text())
    del listed["files"][name]
    manifest.write_text(json.dumps(listed))
    with pytest.raises(IntegrityError, match=f"{name}: not listed in manifest.json"):
        models.resolve(str(copied_base))


def test_an_added_weight_file_is_refused(copied_base):
    (copied_base / "extra.safetensors").write_bytes(b"")
    with pytest.raises(IntegrityError, match="extra.safetensors: not listed"):
        models.resolve(str(copied_base))


def test_other_folders_are_refused_with_a_reason(tmp_path):
    with pytest.raises(ModelError, match="no such folder, got 'nowhere'"):
        models.resolve("nowhere")
    with pytest.raises(ModelError, match="no config.json"):
        models.resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"got weights in \.bin; save the model as safetensors"):
        models.resolve(str(tmp_path))


@dataclass(frozen=True)
class Trap:
    """Makes a folder when it is unpickled."""

    folder: str

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_pickle_is_never_opened(tmp_path):
    base, sprung = tiny.make_model(tmp_path / "base"), tmp_path / "sprung"
    trap = pickle.dumps(Trap(str(sprung)))
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.bin"):
        (base / name).write_bytes(trap)
    models.resolve(str(base))
    run = TorchEngine(device="cpu").open(base, "fp32").start(tiny.make_trial(epochs=1), tiny.make_data("classify"))
    (tmp_path / "checkpoint" / "step-000001").mkdir(parents=True)
    (tmp_path / "checkpoint" / "step-000001" / "optimizer.pt").write_bytes(trap)
    list(run.steps(tmp_path / "checkpoint"))
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no [*].safetensors, got weights in .bin, .pt"):
        models.resolve(str(base))
    assert not sprung.exists()
    pickle.loads(trap)
    assert sprung.exists()


def test_real_models_resolve(outside_data):
    prints = {
        models.resolve(str(outside_data / "models" / n / "hf")).fingerprint for n in ("stories260k", "babyllama_105")
    }
    assert len(prints) == 2
