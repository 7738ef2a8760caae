"""Low-rank adapters: attached beside frozen linear layers, and written as PEFT reads them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunetrial.engine import tensors
from tunetrial.engine.quantised import QuantisedLinear, is_linear, matrix, sizes
from tunetrial.engine.streams import stream
from tunetrial.methods import AdapterSpec
from tunetrial.methods.storage import Storage
from tunetrial.models.adapters import CONFIG, FINGERPRINT, WEIGHTS


class LoraLinear(nn.Module):
    """W x + scaling * B A x with W frozen: the sum that PEFT's Linear computes, without dropout; then W's bias.

    With DoRA (Liu et al. 2024, arXiv:2402.09353) each output is times its magnitude over the norm of its row of
    W + scaling * B A, a norm that is not differentiated (section 4.3) and is the magnitude itself at the start.
    """

    def __init__(self, base: nn.Linear | Conv1D | QuantisedLinear, spec: AdapterSpec, *, generator: torch.Generator):
        super().__init__()
        self.base, self.scaling = base, spec.scaling
        inputs, outputs = sizes(base)
        weight = matrix(base)
        drawn = torch.empty(spec.rank, inputs).uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
        self.lora_A = nn.Parameter(drawn.to(weight))
        self.lora_B = nn.Parameter(torch.zeros(outputs, spec.rank).to(weight))
        self.lora_magnitude_vector = nn.Parameter(_row_norms(weight)) if spec.dora else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sum_ = FrozenPlusLowRank.apply(x.flatten(0, -2), self.lora_A, self.lora_B, self.base, self.scaling)
        if self.lora_magnitude_vector is not None:
            sum_ = sum_ * (self.lora_magnitude_vector / self._norms()).to(sum_.dtype)
        if self.base.bias is not None:
            sum_ = sum_ + self.base.bias
        return sum_.unflatten(0, x.shape[:-1])

    @torch.no_grad()
    def _norms(self) -> torch.Tensor:
        return _row_norms(torch.addmm(matrix(self.base), self.lora_B, self.lora_A, alpha=self.scaling))


class FrozenPlusLowRank(torch.autograd.Function):
    """x W^T + scaling * (x A^T) B^T with its gradients in x, A and B; sums are made in place, W has no gradient.

    W is asked of its layer anew in the backward pass: what was dequantised for the forward pass is not kept.
    """

    @staticmethod
    def forward(ctx, x, a, b, layer, scaling):
        low = (x @ a.T).mul_(scaling)
        ctx.save_for_backward(x, a, b, low)
        ctx.layer, ctx.scaling = layer, scaling
        return (x @ matrix(layer).T).addmm_(low, b.T)

    @staticmethod
    def backward(ctx, dy):
        x, a, b, low = ctx.saved_tensors
        dlow = (dy @ b).mul_(ctx.scaling)
        dx = (dy @ matrix(ctx.layer)).addmm_(dlow, a) if ctx.needs_input_grad[0] else None
        return dx, dlow.T @ x, dy.T @ low, None, None


def attach(model: nn.Module, spec: AdapterSpec, *, seed: int) -> None:
    """Replace every target by a LoraLinear; A is uniform within 1/sqrt(in), from the trial's stream "adapter"."""
    generator = torch.Generator().manual_seed(stream(seed, "adapter"))
    for parent, name in list(_slots(model, spec.targets)):
        setattr(parent, name, LoraLinear(getattr(parent, name), spec, generator=generator))


def detach(model: nn.Module) -> None:
    """Put the frozen layers back, as they are stored."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLinear):
                setattr(parent, name, child.base)


@torch.no_grad()
def merge(
    model: nn.Module, masters: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Add scaling * B A to the weight beside it, for every LoraLinear, and put the layer back.

    A and B are taken from `masters`, by their names in `model`, and multiplied in their dtype. `weights`, where given,
    are what is added to, by the names of the layers' weights: more digits than the layers hold. No magnitudes of DoRA.
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            delta = module.scaling * (masters[f"{path}.lora_B"] @ masters[f"{path}.lora_A"])
            weight = module.base.weight if weights is None else weights[f"{path}.weight"]
            weight += (delta.T if isinstance(module.base, Conv1D) else delta).to(weight)
    detach(model)


def quantise(model: nn.Module, storage: Storage, targets: tuple[str, ...], *, device: torch.device) -> None:
    """Store the named linear layers in few bits on `device`, one after the other; their full weights are let go.

    A session does this once for all trials of one storage: `detach` leaves the layers as stored.
    """
    for parent, name in list(_slots(model, targets)) if storage != "plain" else ():
        setattr(parent, name, QuantisedLinear(getattr(parent, name), storage, device))


def _slots(model: nn.Module, targets: tuple[str, ...]) -> Iterator[tuple[nn.Module, str]]:
    """Where the linear layers of these names are: a name is the end of a path, as for PEFT."""
    for path, parent in model.named_modules():
        for name, child in parent.named_children():
            place = f".{path}.{name}"
            if is_linear(child) and any(place.endswith(f".{target}") for target in targets):
                yield parent, name


def _row_norms(weight: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of each row, in fp32 or wider."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.linalg.vector_norm(weight.detach(), dim=1, dtype=wide)


def save_peft(
    weights: dict[str, torch.Tensor],
    folder: Path,
    *,
    settings: dict,
    spec: AdapterSpec,
    base: str,
    base_fingerprint: str,
    task_type: str = "SEQ_CLS",
    transposed: bool = False,
) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, which PEFT loads for its task type.

    `weights` are fp32, by the names of the classifier ("model.layers.0.…lora_A", "score"). The base's fingerprint
    stands in the metadata of the weights, where PEFT passes it over.
    """
    named = {}
    for name, tensor in weights.items():
        bare = name.endswith((".weight", ".bias", "lora_magnitude_vector"))
        named[f"base_model.model.{name}{'' if bare else '.weight'}"] = tensor.contiguous()
    tensors.write(folder / WEIGHTS, named, metadata={"format": "pt", FINGERPRINT: base_fingerprint})
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base,
        "r": spec.rank,
        "lora_alpha": settings["alpha"],
        "use_rslora": settings["rslora"],
        "use_dora": spec.dora,
        "target_modules": sorted(spec.targets),
        "fan_in_fan_out": transposed,
        "modules_to_save": sorted({n.split(".")[0] for n in weights if "lora_" not in n}) or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
