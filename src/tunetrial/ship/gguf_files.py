"""GGUF files, the format of llama.cpp: of a base or merged model folder, and of a LoRA adapter.

    write_base(models.EMBEDDED, Path("base.gguf"), kind="f32")
    write_adapter(Path("adapter"), models.EMBEDDED, Path("adapter.gguf"))

Written here are plain Llamas whose tokenizer is byte-level BPE. llama.cpp's own converters write others, and K-quants
(`converters`). Tensor names, keys and the order of heads are those that llama.cpp reads:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import errno
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from tunetrial import models
from tunetrial.core import files
from tunetrial.core.errors import ConfigError, IntegrityError, ModelError
from tunetrial.engine import merge
from tunetrial.models.adapters import CONFIG, HEADS, WEIGHTS, AdapterFolder, read_adapter
from tunetrial.models.sizes import read_config
from tunetrial.ship import gguf_vocabulary
from tunetrial.ship.gguf_head import STATED, package
from tunetrial.ship.gguf_vocabulary import OTHERWISE

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

Kind = Literal["f32", "f16", "bf16", "q8_0"]
KINDS: tuple[Kind, ...] = ("f32", "f16", "bf16", "q8_0")
Q8_BLOCK = 32
LARGEST = {"F16": 65504.0, "Q8_0": 127 * 65504.0}  # q8_0 keeps a 127th of the largest in f16
OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
OF_A_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class Tensor:
    """A tensor to be: its shape, and how to read it in fp32 when its turn comes."""

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, weight: torch.Tensor) -> "Tensor":
        return cls(tuple(weight.shape), lambda: weight)

    def interleaved(self, heads: int) -> "Tensor":
        """The rows of a query or key matrix, or of a LoRA's B beside it, in llama.cpp's order.

        Hugging Face turns row i of a head with row i + size/2, llama.cpp row 2i with row 2i + 1.
        """
        rows = (heads, 2, self.shape[0] // heads // 2)
        return Tensor(self.shape, lambda: self.read().unflatten(0, rows).transpose(1, 2).flatten(0, 2).contiguous())


def write_base(folder: Path, to: Path, *, kind: Kind) -> Path:
    """Write a model folder as one GGUF, a tensor in memory at a time.

    f32 holds all that fp32, bf16 and fp16 weights say; f16 rounds fp32 and bf16 ones; bf16 rounds fp32 and fp16 ones;
    q8_0 keeps 8 bits of each weight and a scale for 32. Norms stay f32. llama.cpp rounds what it multiplies weights
    with to their kind, so that f32 alone computes what the folder does.

    Raises:
        ModelError: It is no plain Llama, or its tokenizer cannot be stated.
        ConfigError: No such kind, or the `gguf` package is not installed.
        IntegrityError: The folder's files are damaged, or not those of its manifest.
        StoreError: `to` cannot be written; nothing new is left there then.
    """
    gguf = package()
    if kind not in KINDS:
        raise ConfigError(f"kind: not one that is written here, got {kind!r}; use {', '.join(KINDS)}, or {OTHERWISE}")
    base = models.resolve(str(folder.absolute()))
    shape, names = _plain_llama(base.folder)
    writer = gguf.GGUFWriter(None, "llama")
    _describe(writer, base, shape, kind)
    gguf_vocabulary.add(writer, base.folder, shape.vocabulary)
    made = {}
    for name, tensor in _tensors(base.folder, set(names)).items():
        heads = _heads(names[name], shape)
        made[names[name]] = tensor.interleaved(heads) if heads else tensor
    _write(writer, {name: made[name] for name in names.values()}, to, kind)
    return to


def writable(base: Path) -> bool:
    """Whether a base can be written here: a plain Llama whose tokenizer can be stated."""
    gguf = package()
    try:
        shape, _ = _plain_llama(base)
        gguf_vocabulary.add(gguf.GGUFWriter(None, "llama"), base, shape.vocabulary)
    except ModelError:
        return False
    return True


def write_adapter(adapter: Path, base: Path, to: Path) -> Path:
    """Write a LoRA adapter in PEFT's layout as a GGUF beside that of its base, in f32.

    llama.cpp scales the update of each matrix by alpha over the matrix's rank, whatever it was trained with: alpha is
    rewritten so that this is the trained scale (rsLoRA), and where it is not for some matrices (alphas or ranks by
    pattern) their B is multiplied by what is missing.

    Raises:
        ModelError: The adapter cannot be a GGUF (`refusal`), or it does not fit the base.
        IntegrityError: It is of other base weights, holds NaN, or changes nothing.
        ConfigError: The `gguf` package is not installed.
        StoreError: `to` cannot be written; nothing new is left there then.
    """
    gguf, reason = package(), refusal(adapter)
    if reason is not None:
        raise ModelError(reason)
    read, pinned = read_adapter(adapter), models.resolve(str(base.absolute()))
    shape, names = _plain_llama(pinned.folder)
    weights, _ = merge.adapter_weights(read, pinned)
    alpha, factors = rescaled(weights, trained_scales(read, weights, pinned.folder))
    made = {}
    for path, factor in factors.items():
        name = names[f"{path.removeprefix(merge.PREFIX)}.weight"]
        b, heads = Tensor.of(weights[f"{path}.lora_B.weight"].float() * factor), _heads(name, shape)
        made[f"{name}.lora_a"] = Tensor.of(weights[f"{path}.lora_A.weight"].float())
        made[f"{name}.lora_b"] = b.interleaved(heads) if heads else b
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_string(STATED, pinned.fingerprint)
    _write(writer, made, to, "f32")
    return to


def refusal(adapter: Path) -> str | None:
    """Say why an adapter cannot be a GGUF, and what to do; None if it can. Of its weights the names are looked at."""
    try:
        read = read_adapter(adapter)
        with safe_open(adapter / WEIGHTS, framework="pt") as file:
            names = sorted(file.keys())
    except ModelError as error:
        return str(error)
    except (SafetensorError, OSError) as error:
        return f"{adapter / WEIGHTS}: cannot be read, got {type(error).__name__}; restore the file"
    where, merged = adapter / CONFIG, "merge first (tunetrial merge), and write the merged model"
    if read.method == "dora":
        return f"{where}: use_dora: llama.cpp has no magnitudes, got true; {merged}"
    if read.heads:
        got = f"got {read.heads[0]}"
        return f"{where}: modules_to_save: llama.cpp has no head of labels, {got}; train with readout: labels"
    outside = [name for name in names if ".layers." not in name]
    if outside:
        return (
            f"{where}: target_modules: layers of blocks alone can be adapted in llama.cpp, got {outside[0]}; {merged}"
        )
    return None


def trained_scales(read: AdapterFolder, weights: Mapping[str, torch.Tensor], base: Path) -> dict[str, float]:
    """What PEFT multiplies B A by, by the path of each adapted layer; no weights of the base are read.

    Raises:
        ModelError: The adapter's keys or sizes are not those of the base.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base, trust_remote_code=False))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter", category=UserWarning)
        attached = merge.attach_by_peft(model, read, dict(weights))
    adapted = {path: module for path, module in attached.named_modules() if hasattr(module, "lora_A")}
    return {path: float(module.scaling[attached.active_adapter]) for path, module in adapted.items()}


def rescaled(weights: Mapping[str, torch.Tensor], scales: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """The alpha by which alpha over the rank is the trained scale of most matrices, and what B is to be multiplied by
    besides in each: 1 where that is the scale."""
    ranks = {path: len(weights[f"{path}.lora_A.weight"]) for path in scales}
    [(alpha, _)] = Counter(scale * ranks[path] for path, scale in scales.items()).most_common(1)
    return alpha, {path: scale * ranks[path] / alpha for path, scale in scales.items()}


def _plain_llama(folder: Path) -> tuple[models.ModelShape, dict[str, str]]:
    """Check that llama.cpp's `llama` computes what this model does; its shape, and the GGUF's name of each weight."""
    config, shape = read_config(folder / "config.json"), models.shape(folder)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    wanted: dict[str, tuple[Any, Any]] = {
        "model_type": (config.get("model_type"), "llama"),
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "attention_bias": (bool(config.get("attention_bias")), False),
        "mlp_bias": (bool(config.get("mlp_bias")), False),
    }
    for name, (found, plain) in wanted.items():
        if found != plain:
            raise ModelError(
                f"{folder / 'config.json'}: {name}: {plain!r} alone is written here, got {found!r}; {OTHERWISE}"
            )
    names = {hf: gguf for hf, gguf in OUTSIDE.items() if not (shape.tied and hf == "lm_head.weight")}
    for layer in range(shape.layers):
        block = {f"model.layers.{layer}.{hf}.weight": f"blk.{layer}.{gguf}.weight" for hf, gguf in OF_A_BLOCK.items()}
        names |= block
    return shape, names


def _heads(name: str, shape: models.ModelShape) -> int:
    """How many heads a matrix turns by their positions; 0 for one that is not turned."""
    return {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(name.split(".")[-2], 0)


def _describe(writer: "GGUFWriter", base: models.PinnedModel, shape: models.ModelShape, kind: Kind) -> None:
    """The keys that say what the model is."""
    gguf, config = package(), read_config(base.folder / "config.json")
    types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(base.folder.name)
    writer.add_file_type(gguf.LlamaFileType[types[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string(STATED, base.fingerprint)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    rope = config.get("rope_parameters") or {}
    writer.add_rope_freq_base(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_vocab_size(shape.vocabulary)


def _tensors(folder: Path, names: set[str]) -> dict[str, Tensor]:
    """The named weights of a folder, none of which is read yet.

    Raises:
        ModelError: One is missing, or there are others.
        IntegrityError: A file cannot be read.
    """
    found: dict[str, Tensor] = {}
    for path in models.weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():
                    found[name] = Tensor(tuple(file.get_slice(name).get_shape()), lambda p=path, n=name: _read(p, n))
        except (SafetensorError, OSError) as error:
            raise IntegrityError(f"{path}: cannot be read, got {type(error).__name__}; restore the file") from None
    for head in sorted(name for name in found if name.split(".")[0] in HEADS):
        raise ModelError(f"{folder}: llama.cpp has no head of labels, got {head}; train with readout: labels")
    left = set(found) - names - {"lm_head.weight"}  # beside a tied embedding an output layer is not looked at
    for strange in sorted(left | names - set(found))[:1]:
        raise ModelError(f"{folder}: not the weights of a plain Llama, got {strange} alone of both; {OTHERWISE}")
    return {name: found[name] for name in names}


def _read(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name).float()


def _write(writer: "GGUFWriter", tensors: Mapping[str, Tensor], to: Path, kind: Kind) -> None:
    """Write the file whole or not at all: matrices in their kind, norms in f32."""
    gguf = package()
    types = {
        name: gguf.GGMLQuantizationType[kind.upper() if len(t.shape) > 1 else "F32"] for name, t in tensors.items()
    }
    total_bytes = 0
    for name, tensor in tensors.items():
        if types[name].name == "Q8_0" and tensor.shape[-1] % Q8_BLOCK:
            got = f"got {tensor.shape[-1]}"
            raise ModelError(f"{name}: q8_0 wants rows of a multiple of {Q8_BLOCK} weights, {got}; use f16 or bf16")
        size_bytes = math.prod(gguf.quants.quant_shape_to_byte_shape(tensor.shape, types[name]))
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size_bytes, raw_dtype=types[name])
        total_bytes += size_bytes
    with files.replacing(to, total_bytes) as temporary:
        try:
            writer.write_header_to_file(temporary)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, tensor in tensors.items():
                writer.write_tensor_data(_stored(name, tensor.read(), types[name]))
            writer.flush()
        except OSError as error:  # numpy says that less was written, and not why
            raise error if error.errno else OSError(errno.ENOSPC, str(error)) from error
        finally:
            with suppress(OSError):
                writer.close()


def _stored(name: str, weight: torch.Tensor, kind: "GGMLQuantizationType") -> np.ndarray:
    """A weight as it will lie in the file."""
    largest = float(weight.abs().max())
    if not math.isfinite(largest):
        raise IntegrityError(f"{name}: NaN or infinity among its weights; restore the model's files")
    if largest > LARGEST.get(kind.name, math.inf):
        raise ModelError(f"{name}: too large for {kind.name.lower()}, got {largest:.3g}; use bf16 or f32")
    return package().quants.quantize(weight.contiguous().numpy(), kind)
