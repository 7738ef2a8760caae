"""Several low-rank adapters of one base combined into one, on the updates B A that they add, never on A and B apart.

Of each matrix the update is D_i = B_i A_i, its scale included. With shares w_i that sum to 1 the combination is

- weighted: sum_i w_i D_i (task arithmetic, Ilharco et al. 2023, arXiv:2212.04089). Exact: factors are laid side by
  side, so that ranks add up.
- ties (Yadav et al. 2023, arXiv:2306.01708): of each D_i the largest entries by magnitude are kept; in each place the
  sign of sum_i w_i D_i is elected, and the mean, weighted by w_i, is taken over those that have it. Where nothing is
  elected it is 0. With equal shares it is the paper's; trimmed is each matrix by itself.
- dare (Yu et al. 2024, arXiv:2311.03099): of each D_i entries are dropped at random and the others divided by the
  share that is kept, so that D_i is its expectation; then summed as weighted.

A and B apart have no signs or sizes to compare: (-B)(-A) and B A are one update. What is not of the rank that is asked
for is cut off by singular values, the best approximation of that rank (Eckart & Young 1936), and how much is lost is
said. Nothing here claims that a sum of updates does what each of them does: that is for scores to show.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tunetrial.core.combination import Recipe
from tunetrial.core.errors import ModelError
from tunetrial.engine import adapters, merge
from tunetrial.engine.streams import stream
from tunetrial.methods import AdapterSpec
from tunetrial.models import PinnedModel
from tunetrial.models.adapters import CONFIG, read_adapter


@dataclass(frozen=True)
class LowRank:
    """The update B A of one matrix (out, in): `a` (rank, in), `b` (out, rank), any scale within `b`."""

    a: torch.Tensor
    b: torch.Tensor

    @property
    def dense(self) -> torch.Tensor:
        return self.b @ self.a


Adapter = Mapping[str, LowRank]  # by the path of the layer


def read(folder: Path, base: PinnedModel) -> dict[str, LowRank]:
    """The updates of an adapter folder in PEFT's layout, fp32, by the paths of their layers.

    Raises:
        ModelError: It is no plain LoRA of one rank and scale.
        IntegrityError: It is of another base, holds NaN or infinity, or changes nothing.
    """
    found = read_adapter(folder)
    if found.method != "lora":
        what = "DoRA scales what it is added to, so it is no update to add"
        raise ModelError(f"{folder / CONFIG}: {what}, got dora; combine adapters of an arm without it")
    weights, _ = merge.adapter_weights(found, base)
    scaling = adapters.read_spec(folder).scaling
    return _by_layer({name.removeprefix(merge.PREFIX): w for name, w in weights.items()}, scaling)


def of_masters(masters: Mapping[str, torch.Tensor], scaling: float) -> dict[str, LowRank]:
    """The updates of a run that was just trained, from its masters by the names of the modules' parameters."""
    named = {name.partition(".")[2]: w.detach().float().cpu().clone() for name, w in masters.items() if "lora_" in name}
    return _by_layer({f"{name}.weight": w for name, w in named.items()}, scaling)


def _by_layer(weights: Mapping[str, torch.Tensor], scaling: float) -> dict[str, LowRank]:
    paths = sorted({name.partition(".lora_")[0] for name in weights})
    pairs = ((path, weights[f"{path}.lora_A.weight"], weights[f"{path}.lora_B.weight"]) for path in paths)
    return {path: LowRank(a.float(), scaling * b.float()) for path, a, b in pairs}


def zero(like: Adapter) -> dict[str, LowRank]:
    """An adapter that changes nothing: the base as it is."""
    return {path: LowRank(one.a[:1], torch.zeros_like(one.b[:, :1])) for path, one in like.items()}


def scaled(adapter: Adapter, factor: float) -> dict[str, LowRank]:
    """The adapter times a number."""
    return {path: replace(one, b=factor * one.b) for path, one in adapter.items()}


def combine(
    named: Mapping[str, Adapter], shares: Mapping[str, float], recipe: Recipe, *, seed: int
) -> tuple[dict[str, LowRank], float]:
    """One adapter from several, by name; the order of names has no effect.

    Args:
        shares: Of each, not negative, with the sum 1.
        seed: Of what DARE drops, with the name and the layer; nothing else is drawn.
    Returns:
        The adapter, of the recipe's rank at most (the sum of ranks if it states none), and how much of the combination
        that leaves out: the Frobenius norm over all matrices, relative to that of the whole; 0 where it is exact.
    Raises:
        ModelError: They do not adapt the same layers of the same sizes, or all that they do cancels out.
    """
    names = sorted(named)
    _check_alike({name: named[name] for name in names})
    made, lost, whole = {}, 0.0, 0.0
    for path in named[names[0]]:
        ones = [named[name][path] for name in names]
        weights = [shares[name] for name in names]
        rank = recipe.rank or sum(len(one.a) for one in ones)
        if recipe.how == "weighted":
            parts = [weight * one.b for weight, one in zip(weights, ones, strict=True)]
            side = LowRank(torch.cat([one.a for one in ones]), torch.cat(parts, 1))
            made[path], squares_K = truncated(side, rank)
        else:
            updates = [one.dense for one in ones]
            if recipe.how == "dare":
                streams = [stream(seed, f"dare:{name}:{path}") for name in names]
                updates = [dropped(u, recipe.density, seed=own) for u, own in zip(updates, streams, strict=True)]
                dense = torch.stack([w * u for w, u in zip(weights, updates, strict=True)]).sum(0)
            else:
                dense = elected([trimmed(update, recipe.density) for update in updates], weights)
            made[path], squares_K = best_of_rank(dense, rank)
        lost, whole = lost + float(squares_K[rank:].sum()), whole + float(squares_K.sum())
    if not whole:
        raise ModelError(f"combine: {recipe.how}: updates cancel out, got no entry that is not 0; use another --how")
    return made, math.sqrt(lost / whole)


def _check_alike(named: Mapping[str, Adapter]) -> None:
    first, *others = named
    shapes = {
        name: {path: (len(one.b), one.a.shape[1]) for path, one in adapter.items()} for name, adapter in named.items()
    }
    for name in others:
        if shapes[name] != shapes[first]:
            unlike = sorted(path for path, _ in shapes[name].items() ^ shapes[first].items())[0]
            raise ModelError(f"combine: adapters of {first} and {name} differ at {unlike}; combine adapters of one arm")


def trimmed(update: torch.Tensor, density: float) -> torch.Tensor:
    """The largest entries by magnitude, a share `density` of all, rounded down, one at least; 0 in place of others."""
    flat = update.flatten()
    kept = flat.abs().topk(max(1, int(density * flat.numel()))).indices
    return torch.zeros_like(flat).index_copy_(0, kept, flat[kept]).view_as(update)


def dropped(update: torch.Tensor, density: float, *, seed: int) -> torch.Tensor:
    """Each entry with probability `density`, divided by it, else 0: the update is the expectation over seeds."""
    drawn = torch.rand(update.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(drawn.to(update.device) < density, update / density, 0.0)


def elected(updates: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """In each place the weighted mean over the updates that have the sign of the weighted sum; 0 where that is 0."""
    stacked = torch.stack(list(updates))
    weight = torch.tensor(weights, dtype=stacked.dtype, device=stacked.device).view(-1, 1, 1)
    sign = (weight * stacked).sum(0).sign()
    agrees = (stacked.sign() == sign) & (sign != 0)
    share = torch.where(agrees, weight, 0.0).sum(0)
    total = torch.where(agrees, weight * stacked, 0.0).sum(0)
    return torch.where(share > 0, total / share.clamp_min(torch.finfo(share.dtype).tiny), 0.0)


def truncated(update: LowRank, rank: int) -> tuple[LowRank, torch.Tensor]:
    """The best approximation of a rank, and the squares of all singular values. The matrix itself is never made: they
    are those of a core of the rank's size. An update that is of the rank already stays as it is."""
    q_b, r_b = torch.linalg.qr(update.b)
    q_a, r_a = torch.linalg.qr(update.a.T)
    core, squares_K = best_of_rank(r_b @ r_a.T, rank)
    if len(update.a) <= rank:
        return update, squares_K
    return LowRank(core.a @ q_a.T, q_b @ core.b), squares_K


def best_of_rank(update: torch.Tensor, rank: int) -> tuple[LowRank, torch.Tensor]:
    """The best approximation of a rank of a matrix, and the squares of all its singular values."""
    u, s, vh = torch.linalg.svd(update, full_matrices=False)
    return LowRank(vh[:rank].contiguous(), u[:, :rank] * s[:rank]), s.square()


def spec_of(adapter: Adapter) -> AdapterSpec:
    """What is to be attached for an adapter, by the full paths of its layers."""
    return AdapterSpec(rank=max(len(one.a) for one in adapter.values()), scaling=1.0, targets=tuple(sorted(adapter)))


def write(adapter: Adapter, like: Path, folder: Path, *, base: PinnedModel, place: str) -> None:
    """Write the adapter as PEFT reads it, for the layers that the adapter in `like` names.

    Args:
        place: The base's name as other tools find it.
    """
    config = json.loads((like / CONFIG).read_text(encoding="utf-8"))
    rank = spec_of(adapter).rank
    weights = {f"{path}.lora_A": filled(one.a, rank, 0) for path, one in adapter.items()}
    weights |= {f"{path}.lora_B": filled(one.b, rank, 1) for path, one in adapter.items()}
    spec = AdapterSpec(rank=rank, scaling=1.0, targets=tuple(config["target_modules"]))
    adapters.save_peft(
        {name: weight.cpu() for name, weight in weights.items()},
        folder,
        settings={"alpha": rank, "rslora": False},
        spec=spec,
        base=place,
        base_fingerprint=base.fingerprint,
        task_type="CAUSAL_LM",
        transposed=bool(config.get("fan_in_fan_out")),
    )
    read_adapter(folder)


def filled(factor: torch.Tensor, rank: int, dim: int) -> torch.Tensor:
    """Zeros up to the rank: PEFT has one rank for all layers."""
    missing = rank - factor.shape[dim]
    return torch.nn.functional.pad(factor, (0, missing) if dim else (0, 0, 0, missing)) if missing else factor
