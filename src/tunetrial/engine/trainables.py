"""What is trained: parameters in the compute dtype, each with an fp32 master that the optimiser moves.

One policy for every method: the model computes in one dtype, gradients are summed and moments kept in fp32, and after
each step the masters are rounded into the model. (In pure bf16 most updates at small rates would be lost.)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn


class Trainables:
    """Named parameters and their masters; in fp32 and fp64 a parameter is its own master."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], exact: Mapping[str, torch.Tensor] | None = None):
        """`exact` gives masters of more digits than the compute dtype holds (a base stored in fp32)."""
        self.parameters = dict(parameters)
        self.masters: dict[str, torch.Tensor] = {}
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(True)
            wide = parameter.dtype in (torch.float32, torch.float64)
            source = parameter.detach() if exact is None or name not in exact else exact[name]
            self.masters[name] = parameter if wide else source.to(parameter.device, torch.float32, copy=True)
        self.narrow = [name for name in self.parameters if self.masters[name] is not self.parameters[name]]

    def collect(self) -> None:
        """Add the gradients of one micro-batch to those of the masters, in fp32."""
        for name in self.narrow:
            parameter, master = self.parameters[name], self.masters[name]
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                parameter.grad = None

    def clear(self) -> None:
        """Forget all gradients."""
        for tensor in (*self.parameters.values(), *self.masters.values()):
            tensor.grad = None

    @torch.no_grad()
    def publish(self, *, through: torch.dtype | None = None) -> None:
        """Round the masters into the model, first through another dtype if asked (that of the saved artifact)."""
        for name, parameter in self.parameters.items():
            master = self.masters[name]
            if name in self.narrow or through is not None:
                parameter.copy_(master if through is None else master.to(through))

    def count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters.values())

    def groups(self, weight_decay: float) -> list[dict]:
        """Optimiser groups: matrices decay, vectors do not."""
        masters = list(self.masters.values())
        return [
            {"params": [m for m in masters if m.ndim > 1], "weight_decay": weight_decay},
            {"params": [m for m in masters if m.ndim < 2], "weight_decay": 0.0},
        ]


@dataclass(frozen=True)
class WarmStart:
    """What a run trains before its weights: for a share of its steps other trainables, at `rate_factor` times the
    learning rate; `merge` folds their masters into the weights, and gives the weights to be trained from then on."""

    share: float
    rate_factor: float
    merge: Callable[[Mapping[str, torch.Tensor]], Trainables]
