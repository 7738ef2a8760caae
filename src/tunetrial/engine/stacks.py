"""Linear layers that read the same input as one matrix, adapters' A under it: what a step of `decoding` multiplies by.

qkv = Stack([layer.q_proj, layer.k_proj, layer.v_proj])
outputs = qkv.grown(qkv(x), owners)                     # W x + scaling B A x, each row by its own adapter
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from tunetrial.engine.adapters import LoraLinear

Grids = tuple[torch.Tensor, torch.Tensor]  # a layer's keys and values (rows, key heads, columns, size)


class Stack:
    """Linear layers of one input as one matrix (outputs + low, in): their weights, then A of every adapter.

    The layers' own weights become views of the stacked ones, so that they are in memory once and one adapter may take
    another's place through either; a graph that was recorded over them before holds memory that is let go.

    `b` (members, rank, outputs) is B of every adapter, 0 where it adapts nothing; `first` (outputs,) tells where among
    the low rows those begin that an output's adapters read, member 0 first; `factors` (members,) are the adapters'
    scalings in fp32. Without adapters these are None and `rank` is 0.
    """

    def __init__(self, linears: Sequence[nn.Module]):
        bases = [linear.base if isinstance(linear, LoraLinear) else linear for linear in linears]
        adapted = [linear for linear in linears if isinstance(linear, LoraLinear)]
        self.widths = widths = [base.out_features for base in bases]
        self.outputs, self.linears = sum(widths), tuple(linears)
        self.rank = max((linear.lora_A.shape[1] for linear in adapted), default=0)
        self.members = len(adapted[0].ranks) if adapted else 1
        self.low: list[tuple[int, int, int]] = []  # where outputs begin and end, and where their low rows begin
        like = bases[0].weight
        self.b = self.first = self.factors = None
        if adapted:
            self.b = like.new_zeros(self.members, self.rank, self.outputs)
            self.first = torch.zeros(self.outputs, dtype=torch.int32, device=like.device)
            scalings = [[linear.scaling[member] for linear in adapted] for member in range(self.members)]
            self.factors = torch.tensor([max(own) for own in scalings], dtype=torch.float32, device=like.device)
        self.weight = like.new_zeros(self.outputs + len(adapted) * self.members * self.rank, bases[0].in_features)
        start = 0
        for linear, base, width in zip(linears, bases, widths, strict=True):
            place = self.weight[start : start + width]
            base.weight.data = place.copy_(base.weight.data)
            if isinstance(linear, LoraLinear):
                self._beside(linear, start, start + width)
            start += width
        biases = [base.bias for base in bases]
        self.bias = None
        if any(bias is not None for bias in biases):
            none = zip(biases, widths, strict=True)
            self.bias = torch.cat([like.new_zeros(width) if bias is None else bias.data for bias, width in none])

    def _beside(self, linear: LoraLinear, start: int, end: int) -> None:
        first = len(self.low) * self.members * self.rank
        self.low.append((start, end, first))
        self.first[start:end] = first
        rank = linear.lora_A.shape[1]
        rows = self.weight[self.outputs + first : self.outputs + first + self.members * self.rank]
        linear.lora_A.data = rows.unflatten(0, (self.members, self.rank))[:, :rank].copy_(linear.lora_A.data)
        linear.lora_B.data = self.b[:, :rank, start:end].mT.copy_(linear.lora_B.data)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (rows, in) times all of the matrix (rows, outputs + low)."""
        return nn.functional.linear(x, self.weight)

    def grown(self, made: torch.Tensor, owners: torch.Tensor | None) -> torch.Tensor:
        """The layers' outputs (rows, outputs) of a product, by torch: W x + scaling B A x and biases. Whose adapter a
        row takes needs to be told where there are several."""
        out = made[:, : self.outputs]
        for start, end, first in self.low:
            low = made[:, self.outputs + first : self.outputs + first + self.members * self.rank]
            if self.members == 1:
                out[:, start:end].addmm_(low, self.b[0, :, start:end], alpha=self.scaling)
                continue
            own = low.unflatten(1, (self.members, self.rank))[torch.arange(len(made), device=made.device), owners]
            own = own * self.factors[owners, None].to(own.dtype)
            out[:, start:end] += torch.bmm(own[:, None], self.b[owners, :, start:end])[:, 0]
        return out if self.bias is None else out + self.bias

    def parts(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What each layer gives of x (1, tokens, in), with the one adapter there is, or with none."""
        made = self.grown(self(x[0]), None)
        return [part[None] for part in made.split(self.widths, 1)]

    @property
    def scaling(self) -> float:
        """The first adapter's."""
        return max(linear.scaling[0] for linear in self.linears if isinstance(linear, LoraLinear))


@dataclass(frozen=True)
class Layer:
    """A decoder layer as four products. `heads` is its attention, which sees `window` tokens back, or all; `norm` comes
    after attention, `following` after the feed-forward part."""

    heads: nn.Module
    window: int | None
    qkv: Stack
    o: Stack
    up: Stack
    down: Stack
    norm: nn.Module
    following: nn.Module


class Flow(NamedTuple):
    """The residual stream (rows, hidden), and what the next product reads: the stream under its norm, or times the
    norm's weights alone with the sums of squares (rows, parts) that it is yet to be divided by the root of."""

    x: torch.Tensor
    h: torch.Tensor
    squares: torch.Tensor | None = None


@dataclass(frozen=True)
class Step:
    """What all layers of one step share: rows' lengths and owners (rows,), angles of their new tokens (rows, size);
    what norms add to a mean square."""

    lengths: torch.Tensor
    owners: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    eps: float
