"""An adapter merged into its base: what comes out computes the same, and what could mislead is refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tiny import make_data, make_model, make_trial
from tunetrial import models
from tunetrial.core.errors import IntegrityError, ModelError, StoreError
from tunetrial.engine.merge import merge
from tunetrial.engine.torch_engine import TorchEngine

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's, in these tests


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("base") / "tiny")


def peft_adapter(base: Path, folder: Path, **settings) -> Path:
    """An adapter as PEFT makes and saves it, with weights that matter."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    made = get_peft_model(model, LoraConfig(**{"r": 4, "target_modules": ["q_proj", "down_proj"], **settings}))
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05)
    made.save_pretrained(folder)
    return folder


def rewrite(folder: Path, **changed) -> Path:
    """Change settings of an adapter."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    return folder


def change(folder: Path, alter) -> Path:
    """Change weights of an adapter."""
    path = folder / "adapter_model.safetensors"
    save_file(alter(load_file(path)), path)
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(60).reshape(3, 20)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True, "lora_alpha": 3}, {"use_dora": True}, {"rank_pattern": {"q_proj": 2}}],
    ids=["lora", "rslora", "dora", "ranks"],
)
def test_a_merged_model_computes_what_peft_computes_beside_the_base(base, tmp_path, settings):
    adapter = peft_adapter(base, tmp_path / "adapter", **settings)
    made = merge(adapter, tmp_path / "out", base_model=str(base))
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wanted = logits(PeftModel.from_pretrained(plain, adapter))
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32))
    assert torch.allclose(found, wanted, atol=1e-5)
    assert made.matrices == 4 and not made.base_checked and made.same_next_token == 1.0
    assert made.merge_difference < 1e-5 and made.fingerprint == models.resolve(str(tmp_path / "out")).fingerprint
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1  # weights as the umask has it, like the rest
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_each_merged_matrix_is_the_sum_by_hand(base, tmp_path):
    adapter = peft_adapter(base, tmp_path / "adapter", lora_alpha=12)
    merge(adapter, tmp_path / "out", base_model=str(base))
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    factors = load_file(adapter / "adapter_model.safetensors")
    changed = 0
    for name, weight in before.items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight"
        wanted = weight.double().numpy()
        if key.format("A") in factors:
            a, b = (factors[key.format(side)].double().numpy() for side in "AB")
            wanted, changed = wanted + 12 / 4 * b @ a, changed + 1
        assert np.allclose(after[name].double().numpy(), wanted, atol=1e-6), name
    assert changed == 4


@pytest.mark.parametrize("settings", [{}, {"dora": True}])
def test_our_own_adapter_names_its_base_and_is_held_to_it(base, tmp_path, settings):
    fingerprint = models.resolve(str(base)).fingerprint
    session = TorchEngine(device="cpu").open(base, "fp32")
    trial = make_trial("lora", settings=settings, base_fingerprint=fingerprint, epochs=1)
    run = session.start(trial, make_data("classify"))
    list(run.steps(None))
    run.save(tmp_path / "adapter")
    made = merge(tmp_path / "adapter", tmp_path / "out")
    assert made.base_checked and made.base_fingerprint == fingerprint and made.heads_left_out == ("score",)

    other = make_model(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({k: w + 1e-3 for k, w in weights.items()}, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match="made for base weights .*, got .* with fingerprint .*; name the base"):
        merge(tmp_path / "adapter", tmp_path / "wrong", base_model=str(other))
    assert not (tmp_path / "wrong").exists()


def test_a_base_in_bf16_stays_in_bf16_and_the_rounding_is_told(tmp_path):
    base = make_model(tmp_path / "base", dtype=torch.bfloat16)
    made = merge(peft_adapter(base, tmp_path / "adapter"), tmp_path / "out", base_model=str(base))
    assert {w.dtype for w in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert made.merge_difference < 1e-5 < made.rounding_difference < 0.05
    assert "as saved" in str(made) and "does not say of which weights" in str(made)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"auto_mapping": {"parent_library": "subprocess", "base_model_class": "Popen"}},
            "auto_mapping: names code of another",
        ),
        ({"peft_type": "LOHA"}, "peft_type: LoRA and DoRA alone"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: made for changed base weights"),
        ({"bias": "all"}, "bias: biases are not merged"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save: not merged, got embed_tokens"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens: is more than a merge can hold"),
        ({"r": True}, "r: not a rank, got true"),
        ({"target_modules": ["no_such_layer"]}, "does not fit the base"),
    ],
)
def test_settings_that_could_mislead_are_refused(base, tmp_path, changed, said):
    adapter = rewrite(peft_adapter(base, tmp_path / "adapter"), **changed)
    with pytest.raises(ModelError, match=said):
        merge(adapter, tmp_path / "out", base_model=str(base))
    assert not (tmp_path / "out").exists()


def renamed(weights):
    return {key.replace("layers.0", "layers.7"): weight for key, weight in weights.items()}


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (lambda w: w | {next(iter(w)): torch.full_like(w[next(iter(w))], torch.nan)}, "NaN or infinity"),
        (lambda w: {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in w.items()}, "changes nothing"),
        (renamed, "does not fit the base, got .*layers.7"),
        (lambda w: {k: v for k, v in w.items() if "layers.1" not in k}, "weights are missing, got none for .*layers.1"),
        (lambda w: {k: v[:, :-1].contiguous() if "lora_A" in k else v for k, v in w.items()}, "does not fit the base"),
    ],
    ids=["nan", "no effect", "keys that match nothing", "missing keys", "other shapes"],
)
def test_weights_that_could_mislead_are_refused(base, tmp_path, alter, said):
    adapter = change(peft_adapter(base, tmp_path / "adapter"), alter)
    with pytest.raises((ModelError, IntegrityError), match=said):
        merge(adapter, tmp_path / "out", base_model=str(base))
    assert not (tmp_path / "out").exists()


def test_what_is_no_adapter_is_named(base, tmp_path):
    with pytest.raises(ModelError, match="no adapter, got no adapter_config.json"):
        merge(base, tmp_path / "out")
    adapter = peft_adapter(base, tmp_path / "adapter")
    whole = (adapter / "adapter_model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").write_bytes(whole[:-40])
    with pytest.raises(IntegrityError, match="adapter_model.safetensors: cannot be read, got SafetensorError; restore"):
        merge(adapter, tmp_path / "out", base_model=str(base))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="got adapter_model.bin, which can run code"):
        merge(adapter, tmp_path / "out", base_model=str(base))
    (adapter / "adapter_config.json").write_text("[")
    with pytest.raises(ModelError, match="not a JSON object"):
        merge(adapter, tmp_path / "out", base_model=str(base))
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    other = peft_adapter(base, tmp_path / "other")
    with pytest.raises(StoreError, match="is there already"):
        merge(other, full, base_model=str(base))
    with pytest.raises(ModelError, match="names no base; say which with --base"):
        merge(rewrite(other, base_model_name_or_path=None), tmp_path / "out")
