"""What training did to each weight matrix of the blocks: spectra of update and base, how alike their directions are.

    for found in updates(pack):
        spectra.ranks(found.update_K), spectra.intruders(found.left_K)

An update is held against the weights that it was trained beside: those of a base stored in few bits are dequantised,
and what storing them cost is told apart. Biases, norms and embeddings are not looked at.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from tunetrial.analysis.stats import Floats
from tunetrial.core.errors import ModelError
from tunetrial.engine.adapters import LoraLinear
from tunetrial.engine.quantised import QuantisedLinear, is_linear, matrix

if TYPE_CHECKING:
    from tunetrial.engine.torch_engine import TorchPack

VECTORS = 20
# Up to so many rows or columns a matrix is decomposed on the host: 84 of up to 256 x 768, three times each, took a CPU
# core 2.5 to 4 s, and an H200 that up to five processes shared 3 to 29 s. Larger ones were not compared.
HOST_DECOMPOSES = 1024


@dataclass(frozen=True)
class MatrixUpdate:
    """One matrix of one member of a pack, by its path in the model, outputs by inputs; K singular values or vectors,
    largest first.

    `update_K` are the singular values of dW, for a low-rank update no more than its rank; `base_K` those of W. `left_K`
    and `right_K` belong to the first singular vectors of W + dW: the largest |cosine| of each with any singular vector
    of W. `rounding` is ||W stored in few bits - W|| / ||W||, None of a base that is stored as it is computed with.
    """

    member: int
    name: str
    shape: tuple[int, int]
    update_K: Floats
    base_K: Floats
    left_K: Floats
    right_K: Floats
    rounding: float | None


@torch.no_grad()
def updates(pack: "TorchPack", *, member: int | None = None, vectors: int = VECTORS) -> Iterator[MatrixUpdate]:
    """Look at every matrix that a pack trains, of one member or of all: those adapted, or, where the base's own weights
    are trained, all linear layers of its blocks.

    An adapter is taken as it is saved, in fp32; a full model as it is scored, rounded to the dtype that it is saved in.
    A full model's base, and the exact one of a base in few bits, is read from disk once more. It takes two singular
    value decompositions a matrix.

    Args:
        vectors: How many singular vectors of W + dW are compared with those of W.
    Raises:
        ModelError: PEFT cannot fold an adapter of this type into a weight.
    """
    exact = None
    if pack.adapter is None or any(isinstance(module, QuantisedLinear) for module in pack.model.modules()):
        exact = dict(pack.session.load(torch.float32).named_modules())
    for name, base, changes in _changes(pack, exact):
        wide = torch.promote_types(base.dtype, torch.float32)
        place = torch.device("cpu") if max(base.shape) <= HOST_DECOMPOSES else base.device
        base = base.to(place, wide)
        left, base_K, right = torch.linalg.svd(base, full_matrices=False)
        rounding = None
        if exact is not None and pack.adapter is not None:
            stored = matrix(exact[name]).to(base)
            rounding = float((base - stored).norm() / stored.norm())
        for number, change in changes:
            if member not in (None, number):
                continue
            delta = change.dense(base)
            tuned_left, _, tuned_right = torch.linalg.svd(base + delta, full_matrices=False)
            yield MatrixUpdate(
                member=number,
                name=name,
                shape=tuple(base.shape),
                update_K=_host(change.singular(delta)),
                base_K=_host(base_K),
                left_K=_host((left.T @ tuned_left[:, :vectors]).abs().amax(0)),
                right_K=_host((right @ tuned_right[:vectors].T).abs().amax(0)),
                rounding=rounding,
            )


@dataclass(frozen=True)
class _LowRank:
    """scaling * B A, rows then scaled to magnitudes where there are some (DoRA)."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    magnitudes: torch.Tensor | None

    def dense(self, base: torch.Tensor) -> torch.Tensor:
        low = (self.scaling * (self.b @ self.a)).to(base)
        if self.magnitudes is None:
            return low
        grown = base + low
        return grown * (self.magnitudes.to(base) / grown.norm(dim=1))[:, None] - base

    def singular(self, delta: torch.Tensor) -> torch.Tensor:
        """With B = Q_b R_b and A^T = Q_a R_a they are those of scaling * R_b R_a^T, which is rank by rank."""
        if self.magnitudes is not None:
            return torch.linalg.svdvals(delta)
        left, right = (torch.linalg.qr(side.double(), mode="r").R for side in (self.b, self.a.T))
        return torch.linalg.svdvals(self.scaling * left @ right.T)


@dataclass(frozen=True)
class _Dense:
    """The tuned weight itself."""

    tuned: torch.Tensor

    def dense(self, base: torch.Tensor) -> torch.Tensor:
        return self.tuned.to(base) - base

    def singular(self, delta: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(delta)


_Changes = Iterator[tuple[str, torch.Tensor, list[tuple[int, _LowRank | _Dense]]]]


def _changes(pack: "TorchPack", exact: dict[str, nn.Module] | None) -> _Changes:
    """Of each matrix its path in the base, the base's weight, and what each member made of it."""
    if pack.peft is not None:
        yield from _of_peft(pack)
        return
    if pack.adapter is not None:
        yield from _of_adapters(pack)
        return
    projections = tuple(f".{name}" for name in pack.session.shape.projections)
    for name, module in pack.session.model.named_modules():
        if is_linear(module) and f".{name}".endswith(projections):
            weight = matrix(exact[name]).to(module.weight.device)
            yield name, weight, [(0, _Dense(matrix(module)))]


def _of_adapters(pack: "TorchPack") -> _Changes:
    masters = [pack.trainables.member(number) for number in range(len(pack.trials))]
    for path, module in pack.model.named_modules():
        if not isinstance(module, LoraLinear):
            continue
        own = [
            (
                number,
                _LowRank(
                    master[f"{path}.lora_A"],
                    master[f"{path}.lora_B"],
                    module.scaling[number],
                    master.get(f"{path}.lora_magnitude_vector"),
                ),
            )
            for number, master in enumerate(masters)
            if module.ranks[number]
        ]
        yield path.partition(".")[2], matrix(module.base), own


def _of_peft(pack: "TorchPack") -> _Changes:
    """PEFT's own merge, of a copy of each layer in fp32."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in pack.session.model.named_modules():
        if not isinstance(module, BaseTunerLayer) or not is_linear(module.get_base_layer()):
            continue
        folded = copy.deepcopy(module).float()
        try:
            folded.merge(safe_merge=True)
        except (AttributeError, NotImplementedError, ValueError) as error:
            text = " ".join(str(error).split())
            kind = pack.adapter.peft_type
            raise ModelError(f"peft_type {kind}: PEFT cannot fold it into a weight, got {text}; leave it out") from None
        yield name, matrix(module.get_base_layer()), [(0, _Dense(matrix(folded.get_base_layer())))]


def _host(values: torch.Tensor) -> Floats:
    return values.double().cpu().numpy()
