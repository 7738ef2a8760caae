"""What is trained: parameters in the compute dtype, each with an fp32 master that the optimiser moves.

One policy for every method: the model computes in one dtype, gradients are summed and moments kept in fp32, and after
each step the masters are rounded into the model. (In pure bf16 most updates at small rates would be lost.)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn


class Trainables:
    """Named parameters and their masters, of one run or of all members of a pack.

    Masters and gradients lie in two matrices (members, weights): norms, clipping and steps are a few operations on
    rows, however many layers there are, and a row is a member's alone. Parameters of one member in fp32 and fp64 lie in
    the matrix themselves; the others are rounded copies. In a row matrices come first, vectors last: those decay, these
    do not.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        stacked: Mapping[str, Sequence[int] | None] | None = None,
        members: int = 1,
        exact: Mapping[str, torch.Tensor] | None = None,
    ):
        """
        Args:
            parameters: All that is trained, by name.
            stacked: Those with a first dimension for the members, with the rank of each member where that is less than
                the parameter's (0 for a member that lacks it), or None.
            exact: Masters of more digits than the compute dtype holds (of a base stored in fp32).
        """
        self.parameters, self.members = dict(parameters), members
        self.stacked = dict(stacked or {})
        self.shapes = {n: p.shape[1:] if n in self.stacked else p.shape for n, p in self.parameters.items()}
        first = next(iter(self.parameters.values()))
        wide = torch.promote_types(first.dtype, torch.float32)
        ordered = sorted(self.parameters, key=lambda name: len(self.shapes[name]) < 2)
        ends = torch.tensor([0, *(self.shapes[name].numel() for name in ordered)]).cumsum(0).tolist()
        self._places = {name: (start, end) for name, start, end in zip(ordered, ends, ends[1:], strict=False)}
        self.decayed = sum(self.shapes[name].numel() for name in ordered if len(self.shapes[name]) > 1)
        self.masters = torch.empty(members, ends[-1], dtype=wide, device=first.device)
        self.gradients = torch.zeros_like(self.masters)
        self.copies = [name for name, p in self.parameters.items() if members > 1 or p.dtype != wide]
        self._rounded = [self._of(self.masters, name) for name in self.copies]
        self._sums = {name: self._of(self.gradients, name) for name in self.copies}
        for name, parameter in self.parameters.items():
            source = parameter.detach() if exact is None or name not in exact else exact[name]
            self._of(self.masters, name).copy_(source)
            if name not in self.copies:
                parameter.data = self._of(self.masters, name)
            parameter.requires_grad_(True)
        self.clear()

    def _of(self, matrix: torch.Tensor, name: str) -> torch.Tensor:
        """What is a parameter's in a matrix (members, weights), in the parameter's shape."""
        start, end = self._places[name]
        return matrix[:, start:end].view(self.parameters[name].shape)

    def member(self, number: int) -> dict[str, torch.Tensor]:
        """The masters of one member by name, of its own rank and without the dimension of members."""
        found = {}
        for name, (start, end) in self._places.items():
            ranks = self.stacked.get(name)
            rank = None if ranks is None else ranks[number]
            master = self.masters[number, start:end].view(self.shapes[name])
            if rank is None:
                found[name] = master
            elif rank:
                found[name] = master[:rank] if name.endswith("lora_A") else master[:, :rank]
        return {name: found[name] for name in self.parameters if name in found}

    def collect(self, *, first: bool) -> None:
        """Add the gradients of one micro-batch to those of the masters, in fp32; the first of a step replace them."""
        found = {name: self.parameters[name].grad for name in self.copies if self.parameters[name].grad is not None}
        sums = [self._sums[name] for name in found]
        if first:
            for name in self._sums.keys() - found.keys():
                self._sums[name].zero_()
        if found:
            (torch._foreach_copy_ if first else torch._foreach_add_)(sums, list(found.values()))
        self.drop()

    def drop(self) -> None:
        """Forget the gradients that were not yet added."""
        for name in self.copies:
            self.parameters[name].grad = None

    def clear(self) -> None:
        """Forget all gradients. Those of copies are then replaced by the first that are collected."""
        self.drop()
        for name in self.parameters.keys() - set(self.copies):
            self.parameters[name].grad = self._of(self.gradients, name).zero_()

    def norms(self) -> torch.Tensor:
        """Euclidean norm of each member's gradient, (members,)."""
        return torch.linalg.vector_norm(self.gradients, dim=1)

    @torch.no_grad()
    def publish(self, *, through: torch.dtype | None = None) -> None:
        """Round the masters into the model, first through another dtype if asked (that of the saved artifact)."""
        if through is not None:
            for name, parameter in self.parameters.items():
                parameter.copy_(self._of(self.masters, name).to(through))
        elif self.copies:
            torch._foreach_copy_([self.parameters[name] for name in self.copies], self._rounded)

    def count(self, number: int = 0) -> int:
        """The weights that a member trains."""
        return sum(master.numel() for master in self.member(number).values())

    def pieces(self, number: int, *, whole: bool) -> list[tuple[torch.Tensor, torch.Tensor, bool]]:
        """A member's masters and gradients as an optimiser is given them, and whether they decay: the matrices as one
        piece and the vectors as another, or a piece a parameter."""
        end = self.masters.shape[1]
        cuts = [(0, self.decayed), (self.decayed, end)] if whole else self._places.values()
        row, gradient = self.masters[number], self.gradients[number]
        return [(row[start:stop], gradient[start:stop], start < self.decayed) for start, stop in cuts if stop > start]


@dataclass(frozen=True)
class WarmStart:
    """What a run trains before its weights: for a share of its steps other trainables, at `rate_factor` times the
    learning rate; `merge` folds their masters into the weights, and gives the weights to be trained from then on."""

    share: float
    rate_factor: float
    merge: Callable[[Mapping[str, torch.Tensor]], Trainables]
