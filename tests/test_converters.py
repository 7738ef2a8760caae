"""llama.cpp's own programs, stood in for by small ones that tell what they were asked; the real ones where named."""

import json
import os
import stat
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import shippable
from test_merge import peft_adapter, rewrite
from tiny import make_model
from tunetrial import models
from tunetrial.core.errors import ConfigError, ModelError, StoreError
from tunetrial.ship import converters, gguf_files
from tunetrial.ship.order import Order

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's, in these tests
TELL = """
import json, sys
from pathlib import Path
asked = sys.argv[1:]
adapter = Path(asked[-1])
config = json.loads((adapter / "adapter_config.json").read_text()) if adapter.is_dir() else None
names = sorted(path.name for path in adapter.iterdir()) if adapter.is_dir() else None
weights = (adapter / "adapter_model.safetensors").read_bytes().hex() if adapter.is_dir() else None
told = {"asked": asked, "config": config, "names": names, "weights": weights}
Path(asked[asked.index("--outfile") + 1]).write_text(json.dumps(told))
"""
QUANTISE = '#!/bin/sh\necho "$3" > "$2"; cat "$1" >> "$2"\n'


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def checkout(tmp_path) -> Path:
    """What looks like a checkout of llama.cpp, built."""
    folder = tmp_path / "llama.cpp"
    (folder / "build" / "bin").mkdir(parents=True)
    for name in (converters.OF_MODELS, converters.OF_ADAPTERS):
        (folder / name).write_text(TELL)
    quantiser = folder / "build" / "bin" / "llama-quantize"
    quantiser.write_text(QUANTISE)
    quantiser.chmod(quantiser.stat().st_mode | stat.S_IXUSR)
    return folder


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("llama.cpp", "adapter"))


def test_a_base_is_written_by_the_converter_in_the_kind_asked_for(base, checkout, tmp_path):
    told = json.loads(converters.write_base(base, tmp_path / "b.gguf", kind="q8_0", llama_cpp=checkout).read_text())
    assert told["asked"][0] == str(base) and told["asked"][-2:] == ["--outtype", "q8_0"]
    assert left(tmp_path) == ["b.gguf"]


def test_k_quants_are_made_of_an_f32_file_by_the_quantiser(base, checkout, tmp_path):
    made = converters.write_base(base, tmp_path / "b.gguf", kind="q4_k_m", llama_cpp=checkout).read_text()
    kind, _, told = made.partition("\n")
    assert kind == "Q4_K_M" and json.loads(told)["asked"][-2:] == ["--outtype", "f32"]
    assert left(tmp_path) == ["b.gguf"]
    (checkout / "build" / "bin" / "llama-quantize").unlink()
    with pytest.raises(ConfigError, match="--llama-cpp: no llama-quantize there, got .*; name a checkout"):
        converters.write_base(base, tmp_path / "c.gguf", kind="q4_k_m", llama_cpp=checkout)


def test_what_can_be_written_here_goes_to_the_quantiser_without_the_converter(checkout, tmp_path):
    base = make_model(tmp_path / "base", merges=(("e", "r"), ("a", "t")))
    (checkout / converters.OF_MODELS).unlink()
    converters.write_base(base, tmp_path / "b.gguf", kind="q4_k_m", llama_cpp=checkout)
    kind, _, given = (tmp_path / "b.gguf").read_bytes().partition(b"\n")
    gguf_files.write_base(base, tmp_path / "f32.gguf", kind="f32")
    assert kind == b"Q4_K_M" and given == (tmp_path / "f32.gguf").read_bytes()
    assert gguf_files.writable(base) and not gguf_files.writable(make_model(tmp_path / "bytes"))


def test_rows_that_k_quants_cannot_hold_are_said(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))
    study = shippable.make_study(tmp_path / "study", arms=("full",), seeds=1)
    made = study.ship(Order(arm="full", format="gguf", dtype="q4_k_m", llama_cpp=checkout), tmp_path / "out")
    (said,) = [one for one in made.remarks if "256" in one]
    assert said.startswith("llama.cpp keeps in more bits than q4_k_m") and "q_proj (64)" in said
    assert "down_proj (128)" in said and said in (tmp_path / "out" / "README.md").read_text().replace("\\", "")


@pytest.mark.slow
@pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP names no checkout of llama.cpp")
def test_llama_cpps_own_quantiser_makes_k_quants_of_the_embedded_base(tmp_path):
    folder = Path(os.environ["LLAMA_CPP"])
    made = converters.write_base(models.EMBEDDED, tmp_path / "q.gguf", kind="q4_k_m", llama_cpp=folder)
    read = gguf.GGUFReader(made)
    kinds = {tensor.tensor_type.name for tensor in read.tensors}
    assert kinds == {"F32", "Q4_K", "Q6_K"}
    stated = read.get_field(gguf_files.STATED).contents()
    assert stated == models.resolve(str(models.EMBEDDED)).fingerprint and made.stat().st_size < 10 * 2**20


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True, "lora_alpha": 3, "rank_pattern": {"q_proj": 2}}])
def test_the_converter_is_given_a_plain_lora_of_the_same_updates(base, checkout, tmp_path, settings):
    adapter = peft_adapter(base, tmp_path / "adapter", **settings)
    before = {name: (adapter / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}
    out = converters.write_adapter(adapter, base, tmp_path / "a.gguf", llama_cpp=checkout)
    told = json.loads(out.read_text())
    (tmp_path / "given.safetensors").write_bytes(bytes.fromhex(told["weights"]))
    given, own = load_file(tmp_path / "given.safetensors"), load_file(adapter / "adapter_model.safetensors")
    assert told["config"]["use_rslora"] is False and told["asked"][:2] == ["--base", str(base)]
    for name in (name for name in own if "lora_A" in name):
        rank, b = len(own[name]), name.replace("lora_A", "lora_B")
        trained = 3 / rank**0.5 if settings else 8 / rank
        scale = told["config"]["lora_alpha"] / rank
        assert torch.allclose(scale * given[b] @ given[name], trained * own[b] @ own[name], atol=1e-6), name
    assert before == {name: (adapter / name).read_bytes() for name in before}
    assert left(tmp_path) == ["a.gguf", "given.safetensors"]


def test_what_the_programs_say_is_passed_on_and_nothing_is_left(base, checkout, tmp_path):
    (checkout / converters.OF_MODELS).write_text(
        "import sys; print('a\\nNo such model: b', file=sys.stderr); sys.exit(3)"
    )
    with pytest.raises(ModelError, match=r"convert_hf_to_gguf.py refuses it, got status 3: No such model: b; see to"):
        converters.write_base(base, tmp_path / "b.gguf", kind="f16", llama_cpp=checkout)
    (checkout / converters.OF_MODELS).write_text("")
    with pytest.raises(StoreError, match="cannot be written, got No such file"):  # it said it was done, and was not
        converters.write_base(base, tmp_path / "b.gguf", kind="f16", llama_cpp=checkout)
    with pytest.raises(StoreError, match="cannot be written, got No such file"):
        converters.write_base(base, tmp_path / "none" / "b.gguf", kind="f16", llama_cpp=checkout)
    with pytest.raises(ConfigError, match="--llama-cpp: no convert_hf_to_gguf.py there"):
        converters.write_base(base, tmp_path / "b.gguf", kind="f16", llama_cpp=tmp_path)
    adapter = rewrite(peft_adapter(base, tmp_path / "adapter"), use_dora=True)
    with pytest.raises(ModelError, match="llama.cpp has no magnitudes"):
        converters.write_adapter(adapter, base, tmp_path / "a.gguf", llama_cpp=checkout)
    assert left(tmp_path) == []


def test_a_model_that_names_code_of_its_own_never_reaches_the_converter(checkout, tmp_path):
    """It would run that code."""
    base = make_model(tmp_path / "base")
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["x.Y", None]}}))
    with pytest.raises(
        ModelError, match="tokenizer_config.json: names code that the converter would run, got auto_map"
    ):
        converters.write_base(base, tmp_path / "b.gguf", kind="f32", llama_cpp=checkout)


@pytest.mark.slow
@pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP names no checkout of llama.cpp")
def test_llama_cpps_own_adapter_converter_writes_the_same_tensors(base, tmp_path):
    settings = {"use_rslora": True, "rank_pattern": {"k_proj": 1}, "alpha_pattern": {"layers.0.mlp.down_proj": 5}}
    targets = ["q_proj", "k_proj", "v_proj", "down_proj"]
    adapter = peft_adapter(base, tmp_path / "adapter", target_modules=targets, **settings)
    ours = gguf_files.write_adapter(adapter, base, tmp_path / "ours.gguf")
    folder = Path(os.environ["LLAMA_CPP"])
    theirs = converters.write_adapter(adapter, base, tmp_path / "theirs.gguf", llama_cpp=folder)
    read = [{t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors} for path in (ours, theirs)]
    assert read[0].keys() == read[1].keys() and len(read[0]) == 16
    assert all(np.array_equal(read[0][name], read[1][name]) for name in read[0])
    alphas = [gguf.GGUFReader(path).get_field("adapter.lora.alpha").contents() for path in (ours, theirs)]
    assert alphas[0] == alphas[1]
