"""Low-rank adapters: attached beside frozen linear layers, and written as PEFT reads them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import grouped_mm
from transformers.pytorch_utils import Conv1D

from tunetrial.core.errors import ModelError
from tunetrial.engine import place, tensors
from tunetrial.engine.quantised import QuantisedLinear, is_linear, matrix, sizes
from tunetrial.engine.segments import Segments, current
from tunetrial.engine.streams import stream
from tunetrial.methods import AdapterSpec
from tunetrial.methods.storage import Storage
from tunetrial.models.adapters import CONFIG, FINGERPRINT, WEIGHTS

GROUPED_ALIGNMENT = 8  # grouped products want rows of a multiple of 16 bytes
SWITCHED_OFF: ContextVar[bool] = ContextVar("switched_off", default=False)


class LoraLinear(nn.Module):
    """W x + scaling * B A x with W frozen: the sum that PEFT's Linear computes, without dropout; then W's bias.

    It holds the adapters of all members of a pack, A (members, rank, in) and B (members, out, rank), and applies to
    each token those of its member (`segments`). Lower ranks are filled up with zeros, which stay zeros: where a row of
    A and the column of B beside it are 0, so are their gradients. A member that does not adapt this layer has rank 0.

    With DoRA (Liu et al. 2024, arXiv:2402.09353) each output is times its magnitude over the norm of its row of
    W + scaling * B A, a norm that is not differentiated (section 4.3) and is the magnitude itself at the start.
    """

    def __init__(
        self,
        base: nn.Linear | Conv1D | QuantisedLinear,
        specs: Sequence[AdapterSpec | None],
        *,
        generators: Sequence[torch.Generator],
    ):
        """`specs` has None for a member that does not adapt this layer; with DoRA all do."""
        super().__init__()
        if any(spec is not None and spec.dora for spec in specs) and not all(spec and spec.dora for spec in specs):
            raise ValueError("members of a pack adapt the same layers with DoRA, or none does")
        inputs, outputs = sizes(base)
        weight = matrix(base)
        self.base = base
        self.ranks = tuple(0 if spec is None else spec.rank for spec in specs)
        self.scaling = tuple(0.0 if spec is None else spec.scaling for spec in specs)
        rank = max(self.ranks)
        if place.is_cuda(weight) and len(specs) > 1:
            rank += -rank % GROUPED_ALIGNMENT
        a = torch.zeros(len(specs), rank, inputs)
        for drawn, own, generator in zip(a, self.ranks, generators, strict=True):
            if own and not weight.is_meta:
                drawn[:own].uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
        self.lora_A = nn.Parameter(a.to(weight))
        self.lora_B = nn.Parameter(torch.zeros(len(specs), outputs, rank).to(weight))
        dora = all(spec and spec.dora for spec in specs)
        norms = _row_norms(weight).expand(len(specs), -1).clone() if dora else None
        self.lora_magnitude_vector = nn.Parameter(norms) if dora else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        segments, flat = current(), x.flatten(0, -2)
        if SWITCHED_OFF.get():
            frozen = flat @ matrix(self.base).T
            return (frozen if self.base.bias is None else frozen + self.base.bias).unflatten(0, x.shape[:-1])
        a, b, scaling = self.lora_A, self.lora_B, self.scaling
        if len(segments.members) < len(self.ranks):
            chosen = slice(segments.members.start, segments.members.stop)
            a, b, scaling = a[chosen], b[chosen], scaling[chosen]
        product = Grouped if _groups(flat) and len(scaling) > 1 else FrozenPlusLowRank
        sum_ = product.apply(flat, a, b, self.base, scaling, segments)
        if self.lora_magnitude_vector is not None:
            sum_ = sum_ * self._growth(segments, a, b, scaling, len(flat)).to(sum_.dtype)
        if self.base.bias is not None:
            sum_ = sum_ + self.base.bias
        return sum_.unflatten(0, x.shape[:-1])

    def _growth(
        self, segments: Segments, a: torch.Tensor, b: torch.Tensor, scaling: Sequence[float], count: int
    ) -> torch.Tensor:
        """DoRA's factor of each output, (1, out) for one member, else (count, out)."""
        magnitudes = self.lora_magnitude_vector[segments.members.start : segments.members.stop]
        with torch.no_grad():
            weight = matrix(self.base)
            grown = (torch.addmm(weight, b[k], a[k], alpha=factor) for k, factor in enumerate(scaling))
            norms = torch.stack([_row_norms(one) for one in grown])
        factors = magnitudes / norms
        if len(factors) == 1:
            return factors
        own = [end - start for _, start, end in segments.bounds(count)]
        parts = [factor.expand(tokens, -1) for factor, tokens in zip(factors, own, strict=True)]
        return torch.cat([*parts, factors.new_ones(count - sum(own), factors.shape[1])])


def _groups(like: torch.Tensor) -> bool:
    """Whether there is a grouped product of such tensors."""
    return place.is_cuda(like) and like.dtype == torch.bfloat16


def told_on_device(model: nn.Module) -> bool:
    """Whether adapted layers learn on the device alone which tokens are of which member."""
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    return all(len(m.ranks) == 1 or (_groups(m.lora_A) and m.lora_magnitude_vector is None) for m in layers)


class FrozenPlusLowRank(torch.autograd.Function):
    """x W^T + scaling * (x A^T) B^T with its gradients in x, A and B; sums are made in place, W has no gradient.

    A (members, rank, in) and B (members, out, rank) are multiplied member by member, each with its own tokens alone:
    what is not finite in one member stays there. W is asked of its layer anew in the backward pass: what was
    dequantised for the forward pass is not kept.
    """

    @staticmethod
    def forward(ctx, x, a, b, layer, scaling, segments):
        out = x @ matrix(layer).T
        low = x.new_empty(len(x), a.shape[1])
        for k, (_, start, end) in enumerate(segments.bounds(len(x))):
            torch.mm(x[start:end], a[k].T, out=low[start:end])
            out[start:end].addmm_(low[start:end], b[k].T, alpha=scaling[k])
        ctx.save_for_backward(x, a, b, low)
        ctx.layer, ctx.scaling, ctx.segments = layer, scaling, segments
        return out

    @staticmethod
    def backward(ctx, dy):
        x, a, b, low = ctx.saved_tensors
        dx = dy @ matrix(ctx.layer) if ctx.needs_input_grad[0] else None
        da, db = torch.empty_like(a), torch.empty_like(b)
        for k, (_, start, end) in enumerate(ctx.segments.bounds(len(x))):
            dlow, factor = dy[start:end] @ b[k], ctx.scaling[k]
            if dx is not None:
                dx[start:end].addmm_(dlow, a[k], alpha=factor)
            torch.addmm(da[k], dlow.T, x[start:end], beta=0, alpha=factor, out=da[k])
            torch.addmm(db[k], dy[start:end].T, low[start:end], beta=0, alpha=factor, out=db[k])
        return dx, da, db, None, None, None


class Grouped(torch.autograd.Function):
    """The same product in grouped multiplications, one launch for all members; bf16 on CUDA."""

    @staticmethod
    def forward(ctx, x, a, b, layer, scaling, segments):
        ends = segments.offsets(len(x), x.device)
        factor = _factor(scaling, ends, x)
        low = grouped_mm(x, a.mT, offs=ends).mul_(factor)
        ctx.save_for_backward(x, a, b, low, ends)
        ctx.layer, ctx.factor = layer, factor
        return grouped_mm(low, b.mT, offs=ends).addmm_(x, matrix(layer).T)

    @staticmethod
    def backward(ctx, dy):
        x, a, b, low, ends = ctx.saved_tensors
        dy = dy.contiguous()
        dlow = grouped_mm(dy, b, offs=ends).mul_(ctx.factor)
        dx = grouped_mm(dlow, a, offs=ends).addmm_(dy, matrix(ctx.layer)) if ctx.needs_input_grad[0] else None
        return dx, grouped_mm(dlow.mT, x, offs=ends), grouped_mm(dy.mT, low, offs=ends), None, None, None


def _factor(scaling: Sequence[float], ends: torch.Tensor, x: torch.Tensor) -> float | torch.Tensor:
    """What a token's low-rank product is times: one number, or (tokens, 1) where members differ."""
    if len(set(scaling)) == 1:
        return scaling[0]
    owner = torch.bucketize(torch.arange(len(x), device=x.device, dtype=ends.dtype), ends, right=True)
    factors = torch.stack([torch.full((), factor, dtype=x.dtype, device=x.device) for factor in scaling])
    return factors[owner.clamp_max(len(scaling) - 1)][:, None]


def attach(model: nn.Module, specs: Sequence[AdapterSpec], *, seeds: Sequence[int]) -> None:
    """Replace every target of any member by a LoraLinear; A is uniform within 1/sqrt(in), from the stream "adapter" of
    the member's seed, which is drawn from as if the member were alone."""
    generators = [torch.Generator().manual_seed(stream(seed, "adapter")) for seed in seeds]
    targets = tuple({name: None for spec in specs for name in spec.targets})
    for parent, name, path in list(slots(model, targets)):
        own = [spec if _is_target(path, spec.targets) else None for spec in specs]
        setattr(parent, name, LoraLinear(getattr(parent, name), own, generators=generators))


@contextmanager
def switched_off() -> Iterator[None]:
    """Adapted layers compute what their frozen layers do, by the products that they begin with: where B is 0 the
    numbers are the same bit for bit."""
    token = SWITCHED_OFF.set(True)
    try:
        yield
    finally:
        SWITCHED_OFF.reset(token)


def ranks(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The rank of each member in every adapted layer, by the layer's path."""
    return {path: module.ranks for path, module in model.named_modules() if isinstance(module, LoraLinear)}


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

    A and B of the one member are taken from `masters`, by their names in `model`, and multiplied in their dtype.
    `weights`, where given, are what is added to, by the names of the layers' weights: more digits than the layers hold.
    No magnitudes of DoRA.
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            delta = module.scaling[0] * (masters[f"{path}.lora_B"] @ masters[f"{path}.lora_A"])
            weight = module.base.weight if weights is None else weights[f"{path}.weight"]
            weight += (delta.T if isinstance(module.base, Conv1D) else delta).to(weight)
    detach(model)


def quantise(model: nn.Module, storage: Storage, targets: tuple[str, ...], *, device: torch.device) -> None:
    """Store the named linear layers in few bits on `device`, one after the other; their full weights are let go.

    A session does this once for all trials of one storage: `detach` leaves the layers as stored.
    """
    for parent, name, _ in list(slots(model, targets)) if storage != "plain" else ():
        setattr(parent, name, QuantisedLinear(getattr(parent, name), storage, device))


def slots(model: nn.Module, targets: tuple[str, ...]) -> Iterator[tuple[nn.Module, str, str]]:
    """Where the linear layers of these names are, and their paths."""
    for path, parent in model.named_modules():
        for name, child in parent.named_children():
            if is_linear(child) and _is_target(f"{path}.{name}", targets):
                yield parent, name, f"{path}.{name}"


def _is_target(path: str, targets: tuple[str, ...]) -> bool:
    """A name is the end of a path, as for PEFT."""
    return any(f".{path}".endswith(f".{target}") for target in targets)


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


def read_spec(folder: Path) -> AdapterSpec:
    """What an adapter folder in PEFT's layout asks to be attached; `models.adapters.read_adapter` has let it pass.

    Raises:
        ModelError: Its layers differ in rank or scale, or are not named one by one.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    unlike = [name for name in ("rank_pattern", "alpha_pattern") if config.get(name)]
    targets = config.get("target_modules")
    if unlike or not isinstance(targets, list) or not targets:
        got = f"got {unlike[0]}" if unlike else f"target_modules {json.dumps(targets)}"
        raise ModelError(
            f"{folder / CONFIG}: layers must be named, and be of one rank and scale, {got}; merge it first"
        )
    rank, root = config["r"], config.get("use_rslora", False)
    scaling = config.get("lora_alpha", 8) / (rank**0.5 if root else rank)
    return AdapterSpec(rank=rank, scaling=scaling, targets=tuple(targets), dora=bool(config.get("use_dora")))


def adapted(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLinear)}


@torch.no_grad()
def take_in(layers: Mapping[str, LoraLinear], weights: Mapping[str, torch.Tensor], *, member: int = 0) -> None:
    """Copy a saved adapter's weights, by PEFT's names, over those of a member of `adapted` layers.

    Raises:
        ModelError: They are not of these layers, or of other shapes.
    """
    own = own_weights(layers, weights, member=member)
    torch._foreach_copy_(list(places(layers, member).values()), own, non_blocking=True)


def places(layers: Mapping[str, LoraLinear], member: int) -> dict[str, torch.Tensor]:
    """Where a member's weights are, by PEFT's names and in its shapes."""
    own = {path: _own(layer, member) for path, layer in layers.items()}
    return {f"base_model.model.{path}.{name}": part for path, parts in own.items() for name, part in parts}


def own_weights(
    layers: Mapping[str, LoraLinear], weights: Mapping[str, torch.Tensor], *, member: int
) -> list[torch.Tensor]:
    """A saved adapter's weights in the order of `places`.

    Raises:
        ModelError: They are not of these layers, or of other shapes.
    """
    wanted = places(layers, member)
    strange = sorted(wanted.keys() ^ weights.keys())
    strange += [name for name in wanted.keys() & weights.keys() if wanted[name].shape != weights[name].shape]
    if strange:
        raise ModelError(f"adapter: does not fit the attached layers, got {strange[0]}; name adapters of one shape")
    return [weights[name] for name in wanted]


def _own(layer: LoraLinear, member: int) -> Iterator[tuple[str, torch.Tensor]]:
    """A member's weights in a layer, by PEFT's names, without what fills up its rank."""
    rank = layer.ranks[member]
    yield "lora_A.weight", layer.lora_A.data[member, :rank]
    yield "lora_B.weight", layer.lora_B.data[member, :, :rank]
    if layer.lora_magnitude_vector is not None:
        yield "lora_magnitude_vector", layer.lora_magnitude_vector.data[member]
