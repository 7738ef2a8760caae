"""PiSSA-like adapters made ordinary ones: held against PEFT's own model and conversion; what misleads is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from test_merge import change, logits, peft_adapter, rewrite
from tiny import make_model
from tunetrial import cli
from tunetrial.core.errors import IntegrityError, ModelError, StoreError
from tunetrial.engine.convert import convert
from tunetrial.engine.merge import merge

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's, in these tests


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("base") / "tiny")


def plain(base: Path):
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def trained(base: Path, folder: Path, start: str, **settings):
    """An adapter with such a start, saved before and after weights moved; returns PEFT's model as it is then."""
    torch.manual_seed(1)
    asked = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": start}
    made = get_peft_model(plain(base), LoraConfig(**asked | settings))
    made.peft_config["default"].base_model_name_or_path = str(base)
    made.peft_config["default"].init_lora_weights = True  # as PEFT's documentation says
    made.save_pretrained(folder / "initial")
    made.peft_config["default"].init_lora_weights = start
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_" in name:
                weight.add_(torch.randn_like(weight) * 0.05)
    made.save_pretrained(folder / "trained")
    return made.eval()


STARTS = {
    "pissa": {},
    "pissa_niter_4": {},
    "olora": {"use_rslora": True},
    "PiSSA": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
}


@pytest.mark.parametrize("start", STARTS)
def test_converted_it_computes_over_the_base_what_the_trained_model_does(base, tmp_path, start):
    model = trained(base, tmp_path, start.lower(), **STARTS[start])
    made = convert(tmp_path / "trained", tmp_path / "out", initial=tmp_path / "initial")
    found = PeftModel.from_pretrained(plain(base), tmp_path / "out").eval()
    assert torch.allclose(logits(found), logits(model), atol=1e-4)
    assert not torch.allclose(logits(plain(base)), logits(model), atol=1e-2)
    assert made.rank == 8 and made.matrices == 4 and made.base_checked and made.difference < 1e-5
    merge(tmp_path / "out", tmp_path / "merged")  # an adapter like any other
    assert torch.allclose(logits(plain(tmp_path / "merged")), logits(model), atol=1e-4)


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights")
def test_each_update_is_that_of_peft_s_own_conversion(base, tmp_path):
    model = trained(base, tmp_path, "pissa")
    convert(tmp_path / "trained", tmp_path / "out", initial=tmp_path / "initial")
    shutil.copytree(tmp_path / "initial", tmp_path / "theirs_initial")
    model.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=tmp_path / "theirs_initial")
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "theirs"))
    configs = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("out", "theirs")]
    assert [c["lora_alpha"] / c["r"] for c in configs] == [1.5, 1.5] and ours.keys() == theirs.keys()
    for name in (name for name in ours if "lora_A" in name):
        b = name.replace("lora_A", "lora_B")
        assert torch.allclose(ours[b] @ ours[name], theirs[b] @ theirs[name], atol=1e-6), name


def test_a_base_in_16_bits_is_converted_and_the_rounding_of_its_rest_told(tmp_path):
    base = make_model(tmp_path / "base", dtype=torch.bfloat16)
    trained(base, tmp_path, "pissa")
    made = convert(tmp_path / "trained", tmp_path / "out", initial=tmp_path / "initial")
    assert made.difference < 1e-5 < made.rounding_difference < 0.1


def test_a_start_of_another_base_or_of_another_adapter_is_refused(base, tmp_path):
    trained(base, tmp_path, "pissa")
    other = make_model(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    torch.manual_seed(5)
    moved = {k: torch.randn_like(w) * 0.02 if "proj" in k else w for k, w in weights.items()}
    save_file(moved, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match=r"initial: not what pissa takes from this base, got .* left; name the"):
        convert(tmp_path / "trained", tmp_path / "no", initial=tmp_path / "initial", base_model=str(other))
    wide = trained(base, tmp_path / "wide", "pissa", r=2)
    assert wide is not None
    with pytest.raises(ModelError, match=r"not the start of .*, got base_model.*lora_A.weight \(4, .*\) and \(2, "):
        convert(tmp_path / "trained", tmp_path / "no", initial=tmp_path / "wide" / "initial")
    assert not (tmp_path / "no").exists()


def test_what_cannot_be_converted_says_why(base, tmp_path):
    trained(base, tmp_path, "pissa")
    ran = CliRunner().invoke(
        cli.app, ["convert", *map(str, (tmp_path / "trained", tmp_path / "no", "--initial", tmp_path / "none"))]
    )
    said = "no adapter, got no adapter_config.json; name a folder that PEFT or tunetrial saved; without the factors"
    assert ran.exit_code == 1 and said in ran.stderr and len(ran.stderr.splitlines()) == 1
    start = {"initial": tmp_path / "initial"}
    ordinary = peft_adapter(base, tmp_path / "ordinary")
    with pytest.raises(ModelError, match="over the base as it is already, got start 'True'; use it as it is"):
        convert(ordinary, tmp_path / "no", **start)
    for changed, what in (
        ({"init_lora_weights": "loftq"}, "its base is another one in few bits"),
        ({"use_dora": True}, "magnitudes are of the changed base, got DoRA"),
    ):
        copied = rewrite(shutil.copytree(tmp_path / "trained", tmp_path / what[:5]), **changed)
        with pytest.raises(ModelError, match=what):
            convert(copied, tmp_path / "no", **start)
    spoilt = shutil.copytree(tmp_path / "trained", tmp_path / "spoilt")
    change(spoilt, lambda weights: {k: w * float("nan") for k, w in weights.items()})
    with pytest.raises(IntegrityError, match="NaN or infinity"):
        convert(spoilt, tmp_path / "no", **start)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(StoreError, match="is there already"):
        convert(tmp_path / "trained", tmp_path / "full", **start)
    assert not (tmp_path / "no").exists()
