"""GGUF files: each tensor and scale against a count of its own, what cannot be stated refused, nothing half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from test_merge import change, peft_adapter, rewrite
from tiny import make_data, make_model, make_trial
from tunetrial import models
from tunetrial.core.errors import ConfigError, IntegrityError, ModelError, StoreError
from tunetrial.engine.torch_engine import TorchEngine
from tunetrial.ship import gguf_files, gguf_head

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's, in these tests
MERGES = (("e", "r"), ("a", "t"))
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("base") / "tiny", tied=False, merges=MERGES)


def tensors(path: Path) -> dict[str, np.ndarray]:
    """What a GGUF's tensors mean, in fp32, by the package's own reader."""
    read = gguf.GGUFReader(path).tensors
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in read}


def said(path: Path, key: str) -> object:
    return gguf.GGUFReader(path).get_field(key).contents()


def turned(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in llama.cpp's order, one by one: of each head, row i and row i + size/2 become rows 2i and 2i + 1."""
    made, size = np.empty_like(weight), len(weight) // heads
    for head in range(heads):
        for i in range(size // 2):
            for half in range(2):
                made[head * size + 2 * i + half] = weight[head * size + half * size // 2 + i]
    return made


def named(weights: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The tiny model's weights under the names of a GGUF."""
    short = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    found = {}
    for name, weight in weights.items():
        path, value = name.removesuffix(".weight"), weight.float().numpy()
        if path not in short:
            _, _, layer, *rest = path.split(".")
            path, value = f"blk.{layer}.{gguf_files.OF_A_BLOCK['.'.join(rest)]}", value
        else:
            path = short[path]
        heads = {"attn_q": 4, "attn_k": 2}.get(path.split(".")[-1])
        found[f"{path}.weight"] = turned(value, heads) if heads else value
    return found


def test_an_f32_file_holds_every_weight_as_it_was(base, tmp_path):
    made = tensors(gguf_files.write_base(base, tmp_path / "base.gguf", kind="f32"))
    wanted = named(load_file(base / "model.safetensors"))
    assert made.keys() == wanted.keys() and "output.weight" in made
    assert all(np.array_equal(made[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("kind, worst", [("f16", 2**-11), ("bf16", 2**-8)])
def test_narrow_kinds_round_matrices_and_leave_norms(base, tmp_path, kind, worst):
    made = tensors(gguf_files.write_base(base, tmp_path / "base.gguf", kind=kind))
    for name, weight in named(load_file(base / "model.safetensors")).items():
        assert np.all(np.abs(made[name] - weight) <= np.abs(weight) * worst + 1e-7), name
        assert weight.ndim > 1 or np.array_equal(made[name], weight), name


def test_q8_0_keeps_a_scale_and_8_bits_of_each_weight(base, tmp_path):
    """Counted block by block: 32 weights are whole numbers up to 127 times the largest over 127, which is an fp16."""
    made = tensors(gguf_files.write_base(base, tmp_path / "base.gguf", kind="q8_0"))
    weight = named(load_file(base / "model.safetensors"))["blk.1.ffn_down.weight"]
    for block, kept in zip(weight.reshape(-1, 32), made["blk.1.ffn_down.weight"].reshape(-1, 32), strict=True):
        step = np.abs(block).max() / 127
        whole = [np.sign(x) * np.floor(abs(x) / step + 0.5) for x in block]
        assert np.allclose(
            kept, np.float32(np.float16(step)) * np.array(whole), rtol=1e-6, atol=np.float16(step) * 1e-3
        )


def test_a_base_in_bf16_with_tied_embeddings_loses_nothing_in_f32(tmp_path):
    base = make_model(tmp_path / "base", dtype=torch.bfloat16, merges=MERGES)
    made = tensors(gguf_files.write_base(base, tmp_path / "base.gguf", kind="f32"))
    wanted = named(load_file(base / "model.safetensors"))
    assert made.keys() == wanted.keys() and "output.weight" not in made
    assert all(np.array_equal(made[name], wanted[name]) for name in wanted)


def test_what_a_file_says_of_the_model_is_in_its_config(base, tmp_path):
    path = gguf_files.write_base(base, tmp_path / "base.gguf", kind="f32")
    wanted = {"embedding_length": 64, "block_count": 2, "feed_forward_length": 128, "context_length": 128}
    wanted |= {"attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16, "vocab_size": 259}
    assert all(said(path, f"llama.{key}") == value for key, value in wanted.items())
    assert said(path, "llama.rope.freq_base") == 10000 and said(path, "tokenizer.ggml.pre") == "gpt-2"
    ids = {key: said(path, f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos", "padding")}
    assert ids == {"bos": 0, "eos": 0, "padding": 0} and said(path, "tokenizer.ggml.add_bos_token") is False
    assert gguf_head.stated_base(path) == models.resolve(str(base)).fingerprint
    assert "bos_token" not in said(path, "tokenizer.chat_template")  # there is none, so nothing may be written for it


SCALES = [
    {},
    {"use_rslora": True, "lora_alpha": 3},
    {"rank_pattern": {"q_proj": 2}},
    {"use_rslora": True, "rank_pattern": {"k_proj": 1}, "alpha_pattern": {"layers.0.mlp.down_proj": 5}},
]


@pytest.mark.parametrize("settings", SCALES, ids=["lora", "rslora", "ranks", "patterns"])
def test_alpha_over_rank_is_the_scale_that_peft_computes_with(base, tmp_path, settings):
    adapter = peft_adapter(base, tmp_path / "adapter", target_modules=EVERY, **settings)
    made = gguf_files.write_adapter(adapter, base, tmp_path / "adapter.gguf")
    parts, alpha = tensors(made), said(made, "adapter.lora.alpha")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = {name: weight.detach().clone() for name, weight in plain.state_dict().items()}
    after = PeftModel.from_pretrained(plain, adapter).merge_and_unload().state_dict()
    updates = named({name: after[name] - before[name] for name in before})
    assert len(parts) == 2 * 2 * len(EVERY)
    for name, update in updates.items():
        if f"{name}.lora_a" in parts:
            a, b = parts[f"{name}.lora_a"], parts[f"{name}.lora_b"]
            assert np.allclose(alpha / len(a) * b @ a, update, atol=1e-6), name
            assert np.abs(update).max() > 1e-3
    assert (said(made, "general.type"), said(made, "adapter.type")) == ("adapter", "lora")


def test_the_root_of_the_rank_goes_into_rsloras_alpha(base, tmp_path):
    adapter = peft_adapter(base, tmp_path / "adapter", use_rslora=True, lora_alpha=3, r=4)
    assert said(gguf_files.write_adapter(adapter, base, tmp_path / "a.gguf"), "adapter.lora.alpha") == 3 * 4**0.5


REFUSED = [
    ({"use_dora": True}, "use_dora: llama.cpp has no magnitudes, got true; merge first"),
    ({"modules_to_save": ["score"]}, "llama.cpp has no head of labels, got score; train with readout: labels"),
    ({"modules_to_save": ["embed_tokens"]}, "modules_to_save: not merged, got embed_tokens"),
    ({"bias": "all"}, "bias: biases are not merged"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights: made for changed base weights, got 'pissa'; convert it"),
    ({"peft_type": "LOHA"}, "LoRA and DoRA alone"),
    ({"trainable_token_indices": [3]}, "trainable_token_indices: is more than a merge can hold"),
]


@pytest.mark.parametrize(("changed", "reason"), REFUSED, ids=[next(iter(changed)) for changed, _ in REFUSED])
def test_what_a_gguf_cannot_hold_is_refused_with_what_to_do(base, tmp_path, changed, reason):
    adapter = rewrite(peft_adapter(base, tmp_path / "adapter"), **changed)
    assert reason in gguf_files.refusal(adapter)
    with pytest.raises(ModelError, match=reason.split(":")[0]):
        gguf_files.write_adapter(adapter, base, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_an_adapter_of_embeddings_is_refused_and_a_plain_one_is_not(base, tmp_path):
    for name in ("embed_tokens", "lm_head"):
        adapter = peft_adapter(base, tmp_path / name, target_modules=[name, "q_proj"])
        assert "layers of blocks alone can be adapted in llama.cpp" in gguf_files.refusal(adapter)
    assert gguf_files.refusal(peft_adapter(base, tmp_path / "plain")) is None
    assert "no adapter, got no adapter_config.json" in gguf_files.refusal(tmp_path)
    (tmp_path / "plain" / "adapter_model.safetensors").write_bytes(b"\xff" * 40)
    assert "adapter_model.safetensors: cannot be read" in gguf_files.refusal(tmp_path / "plain")


def test_an_adapter_of_other_weights_is_refused_and_so_is_one_that_does_not_fit(base, tmp_path):
    fingerprint = models.resolve(str(base)).fingerprint
    run = (
        TorchEngine(device="cpu")
        .open(base, "fp32")
        .start(make_trial("lora", base_fingerprint=fingerprint, epochs=1, readout="labels"), make_data("classify"))
    )
    list(run.steps(None))
    run.save(tmp_path / "ours")
    made = gguf_files.write_adapter(tmp_path / "ours", base, tmp_path / "ours.gguf")
    assert gguf_head.stated_base(made) == fingerprint and said(made, "adapter.lora.alpha") == 32
    other = make_model(tmp_path / "other", tied=False)
    weights = load_file(other / "model.safetensors")
    save_file({k: w + 1e-3 for k, w in weights.items()}, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match="made for base weights .*; name the base that it was trained on"):
        gguf_files.write_adapter(tmp_path / "ours", other, tmp_path / "wrong.gguf")
    with pytest.raises(ModelError, match="does not fit the base"):
        gguf_files.write_adapter(peft_adapter(base, tmp_path / "a"), make_model(tmp_path / "wide", hidden=96), made)
    nan = change(peft_adapter(base, tmp_path / "nan"), lambda w: w | {k: v * torch.nan for k, v in list(w.items())[:1]})
    with pytest.raises(IntegrityError, match="NaN or infinity"):
        gguf_files.write_adapter(nan, base, tmp_path / "wrong.gguf")
    short = {k: v for k, v in load_file(tmp_path / "a" / "adapter_model.safetensors").items() if "layers.1" not in k}
    save_file(short, tmp_path / "a" / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="weights are missing, got none for .*layers.1"):
        gguf_files.write_adapter(tmp_path / "a", base, tmp_path / "wrong.gguf")
    assert not (tmp_path / "wrong.gguf").exists() and gguf_head.stated_base(made) == fingerprint


def altered(base: Path, to: Path, name: str, change_json) -> Path:
    shutil.copytree(base, to)
    content = json.loads((to / name).read_text())
    change_json(content)
    (to / name).write_text(json.dumps(content))
    return to


def put(path: str, value: object):
    *way, last = path.split(".")

    def change_json(content):
        for key in way:
            content = content[key]
        content[last] = value

    return change_json


SPLIT = {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Isolated", "invert": False}
STRANGE = [
    (
        "config.json",
        put("rope_parameters.rope_type", "llama3"),
        "rope_type: 'default' alone is written here, got 'llam",
    ),
    ("config.json", put("hidden_act", "gelu"), "hidden_act: 'silu' alone is written here, got 'gelu'"),
    ("config.json", put("model_type", "qwen2"), "model_type: 'llama' alone is written here, got 'qwen2'"),
    ("tokenizer.json", put("normalizer", {"type": "NFC"}), "normalizer: byte-level BPE as GPT-2's has null"),
    ("tokenizer.json", put("pre_tokenizer", SPLIT), 'pre_tokenizer.type: .* has "ByteLevel", got "Split"'),
    ("tokenizer.json", put("pre_tokenizer.add_prefix_space", True), "pre_tokenizer.add_prefix_space"),
    ("tokenizer.json", put("model.type", "WordPiece"), 'model.type: .* has "BPE", got "WordPiece"'),
    ("tokenizer.json", put("model.ignore_merges", True), "model.ignore_merges"),
    ("tokenizer.json", put("model.merges", []), "model.merges: llama.cpp wants some, got none"),
    ("tokenizer.json", lambda t: t["model"]["vocab"].pop("~"), "model.vocab: bytes left out"),
    ("tokenizer.json", lambda t: t["added_tokens"][0].update(lstrip=True), "added_tokens: <e>: lstrip"),
    ("tokenizer.json", lambda t: t["model"]["vocab"].update(zz=999), "got id 999 of 259"),
    ("tokenizer.json", lambda t: t.pop("model"), "not a tokenizer of the tokenizers library"),
]


@pytest.mark.parametrize(("name", "change_json", "reason"), STRANGE, ids=[str(n) for n in range(len(STRANGE))])
def test_what_llama_cpp_would_read_otherwise_is_refused(base, tmp_path, name, change_json, reason):
    strange = altered(base, tmp_path / "strange", name, change_json)
    with pytest.raises(ModelError, match=reason):
        gguf_files.write_base(strange, tmp_path / "base.gguf", kind="f32")
    assert [path.name for path in tmp_path.iterdir()] == ["strange"]


def test_other_weights_than_a_plain_llamas_are_named(base, tmp_path):
    weights = load_file(base / "model.safetensors")
    for number, (alter, reason) in enumerate(
        [
            (lambda w: w | {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}, "got .*q_proj.bias alone of both"),
            (
                lambda w: w | {"score.weight": torch.ones(3, 64)},
                "no head of labels, got score.weight; train with readout",
            ),
            (lambda w: {k: v for k, v in w.items() if "layers.1.mlp.up" not in k}, "got .*layers.1.mlp.up_proj"),
        ]
    ):
        folder = shutil.copytree(base, tmp_path / f"m{number}")
        save_file(alter(weights), folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=reason):
            gguf_files.write_base(folder, tmp_path / "base.gguf", kind="f32")
    large = shutil.copytree(base, tmp_path / "large")
    save_file(weights | {"lm_head.weight": weights["lm_head.weight"] + 1e6}, large / "model.safetensors")
    with pytest.raises(ModelError, match="output.weight: too large for f16, got 1e.06; use bf16 or f32"):
        gguf_files.write_base(large, tmp_path / "base.gguf", kind="f16")
    save_file(weights | {"lm_head.weight": weights["lm_head.weight"] * torch.nan}, large / "model.safetensors")
    with pytest.raises(IntegrityError, match="output.weight: NaN or infinity"):
        gguf_files.write_base(large, tmp_path / "base.gguf", kind="f32")
    with pytest.raises(ModelError, match="q8_0 wants rows of a multiple of 32 weights, got 40; use f16"):
        gguf_files.write_base(
            make_model(tmp_path / "odd", hidden=40, merges=MERGES), tmp_path / "base.gguf", kind="q8_0"
        )
    with pytest.raises(ConfigError, match="kind: not one that is written here, got 'q4_k_m'; use f32, f16, bf16, q8_0"):
        gguf_files.write_base(base, tmp_path / "base.gguf", kind="q4_k_m")
    assert not list(tmp_path.glob("*base.gguf*"))


def test_a_file_that_is_no_gguf_does_not_say_of_which_weights_it_is(base, tmp_path):
    whole = gguf_files.write_base(base, tmp_path / "base.gguf", kind="f32").read_bytes()
    for content in (b"", b"hello" * 50, b"GGUF\x03\0\0\0" + b"\xff" * 60, whole[:2000], whole[:-5000]):
        (tmp_path / "bad.gguf").write_bytes(content)
        with pytest.raises(ModelError, match="bad.gguf: not a GGUF that can be read"):
            gguf_head.stated_base(tmp_path / "bad.gguf")


def test_a_folder_that_is_not_there_or_a_disk_that_is_full_leaves_nothing(base, tmp_path):
    with pytest.raises(StoreError, match="cannot be written, got No such file or directory"):
        gguf_files.write_base(base, tmp_path / "none" / "base.gguf", kind="f32")
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here: no right to a mount namespace (unshare -rm)")
    disk = tmp_path / "disk"
    disk.mkdir()
    code = (
        "import subprocess, os; from pathlib import Path; from tunetrial.ship import gguf_files, gguf_head\n"
        f"subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=128k', 'tmpfs', {str(disk)!r}], check=True)\n"
        f"try: gguf_files.write_base(Path({str(base)!r}), Path({str(disk)!r}) / 'base.gguf', kind='f32')\n"
        f"except Exception as error: print(type(error).__name__, error, os.listdir({str(disk)!r}))"
    )
    run = subprocess.run(["unshare", "-rm", sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("StoreError") and "disk is full" in run.stdout and run.stdout.endswith("[]\n"), run


def test_a_kill_amid_writing_leaves_the_file_that_was_there(base, tmp_path):
    path = gguf_files.write_base(base, tmp_path / "base.gguf", kind="f32")
    before = path.read_bytes()
    code = (
        "from pathlib import Path; from tunetrial.ship import gguf_files, gguf_head\nprint('on', flush=True)\n"
        f"while True: gguf_files.write_base(Path({str(base)!r}), Path({str(path)!r}), kind='f32')"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"on\n"
    time.sleep(0.1)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert path.read_bytes() == before
