"""Low-rank adapters: attached beside frozen linear layers, and written as PEFT reads them."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from tunetrial.engine.streams import stream
from tunetrial.methods import AdapterSpec


class LoraLinear(nn.Module):
    """W x + scaling * B A x with W frozen and no bias: the sum that PEFT's Linear computes, without dropout."""

    def __init__(self, base: nn.Linear, *, rank: int, scaling: float, generator: torch.Generator):
        super().__init__()
        self.base, self.scaling = base, scaling
        weight = base.weight
        bound = base.in_features**-0.5
        drawn = torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(drawn.to(weight))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank).to(weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, -2)
        sum_ = FrozenPlusLowRank.apply(flat, self.base.weight, self.lora_A, self.lora_B, self.scaling)
        return sum_.unflatten(0, x.shape[:-1])


class FrozenPlusLowRank(torch.autograd.Function):
    """x W^T + scaling * (x A^T) B^T with its gradients in x, A and B; sums are made in place, W has no gradient."""

    @staticmethod
    def forward(ctx, x, weight, a, b, scaling):
        low = (x @ a.T).mul_(scaling)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scaling = scaling
        return (x @ weight.T).addmm_(low, b.T)

    @staticmethod
    def backward(ctx, dy):
        x, weight, a, b, low = ctx.saved_tensors
        dlow = (dy @ b).mul_(ctx.scaling)
        dx = (dy @ weight).addmm_(dlow, a) if ctx.needs_input_grad[0] else None
        return dx, None, dlow.T @ x, dy.T @ low, None


def attach(model: nn.Module, spec: AdapterSpec, *, seed: int) -> None:
    """Replace every target by a LoraLinear; A is uniform within 1/sqrt(in), from the trial's stream "adapter"."""
    generator = torch.Generator().manual_seed(stream(seed, "adapter"))
    for parent, name in list(_slots(model, spec.targets)):
        base = getattr(parent, name)
        setattr(parent, name, LoraLinear(base, rank=spec.rank, scaling=spec.scaling, generator=generator))


def detach(model: nn.Module) -> None:
    """Put the frozen layers back."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLinear):
                setattr(parent, name, child.base)


def _slots(model: nn.Module, targets: tuple[str, ...]) -> Iterator[tuple[nn.Module, str]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            if name in targets and isinstance(child, nn.Linear):
                yield parent, name


def save_peft(weights: dict[str, torch.Tensor], folder: Path, *, settings: dict, spec: AdapterSpec, base: str) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, which PEFT loads for sequence classification.

    `weights` are fp32, by the names of the classifier ("model.layers.0.…lora_A", "score").
    """
    named = {}
    for name, tensor in weights.items():
        suffix = "" if name.endswith(".weight") else ".weight"
        named[f"base_model.model.{name}{suffix}"] = tensor.contiguous()
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "r": spec.rank,
        "lora_alpha": settings["alpha"],
        "use_rslora": settings["rslora"],
        "target_modules": sorted(spec.targets),
        "modules_to_save": ["score"],
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
