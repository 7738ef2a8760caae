"""Bases of real shapes with random weights, and how much work a token of theirs is."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from tunetrial import models

TENSOR_FLOP_PER_S = 788e12  # bf16 products of random 8192 × 8192 matrices on one NVIDIA H200, measured


@dataclass(frozen=True)
class Shape:
    """A Llama."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int = 32000
    context: int = 8192

    def multiplied(self, *, text: bool) -> int:
        """Weights that every token is multiplied by: those of the blocks, and where text is read the language-model
        head's; never the embedding table's."""
        kv = self.hidden // self.heads * self.kv_heads
        layer = 2 * self.hidden * (self.hidden + kv) + 3 * self.hidden * self.intermediate
        return self.layers * layer + (self.vocabulary * self.hidden if text else 0)

    def flop(self, method: str, *, text: bool) -> int:
        """Floating-point operations of training on one token, attention's own products left out.

        Two a weight forward and two backward to the activations; full fine-tuning two more for the weights' gradients.
        Source: Kaplan et al. (2020), arXiv:2001.08361, section 2.1, whose 6N this splits.
        """
        return (6 if method == "full" else 4) * self.multiplied(text=text)


SHAPES = {
    "tiny": Shape(layers=2, hidden=64, heads=4, kv_heads=2, intermediate=128, vocabulary=8192),
    "embedded": Shape(layers=12, hidden=256, heads=4, kv_heads=4, intermediate=768, vocabulary=8192, context=512),
    "1.1B": Shape(layers=22, hidden=2048, heads=32, kv_heads=4, intermediate=5632),
    "7B": Shape(layers=32, hidden=4096, heads=32, kv_heads=32, intermediate=11008),
    "8B": Shape(layers=32, hidden=4096, heads=32, kv_heads=8, intermediate=14336, vocabulary=128256),
}


def mfu(work: dict, method: str, tokens_per_s: float, device: str) -> float | None:
    """Share of the device's measured product rate that real tokens, padding apart, make use of; None on a CPU.

    `work` is a case's: its shape, and its rows, which are of text where there are answers.
    """
    if device != "cuda":
        return None
    flop = SHAPES[work["shape"]].flop(method, text=work.get("rows") == "alpaca")
    return flop * tokens_per_s / TENSOR_FLOP_PER_S


def base(name: str, folder: Path, device: str) -> Path:
    """The folder of a base: the embedded one, or one of random bf16 weights, which is written once and then found."""
    if name == "embedded":
        return models.EMBEDDED
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    made, shape = folder / name, SHAPES[name]
    if (made / "config.json").exists():
        return made
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        dtype="bfloat16",
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    partial = folder / f"{name}.partial"
    model.save_pretrained(partial, max_shard_size="40GB")
    for file in models.EMBEDDED.glob("tokenizer*"):
        shutil.copy(file, partial)
    tokenizer = json.loads((partial / "tokenizer_config.json").read_text(encoding="utf-8"))
    told = tokenizer | {"model_max_length": shape.context}
    (partial / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")
    partial.rename(made)
    return made
