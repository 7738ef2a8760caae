"""How masters are moved: AdamW, and in fp16 the scale of losses."""

import math
from collections.abc import Iterable

import torch

FEWEST_IN_8_BITS, BLOCK = 4096, 256  # bitsandbytes 0.50, optim/adamw.py and optim/optimizer.py (init_state)


class Scaler:
    """The scale of losses in fp16: halved when a gradient overflows, doubled after 2,000 steps without."""

    GROW_AFTER = 2000

    def __init__(self) -> None:
        self.scale, self.sound, self.overflows = 2.0**16, 0, 0

    def accepts(self, grad_norm: float) -> bool:
        """Whether the step stands, by the norm of its unscaled gradient. At a scale of 1 it does, and has diverged."""
        if math.isfinite(grad_norm):
            return True
        if self.scale <= 1:
            return True
        self.scale, self.sound, self.overflows = self.scale / 2, 0, self.overflows + 1
        return False

    def grow(self) -> None:
        """Count a step that was taken; after so many without an overflow the scale is doubled from the next on."""
        self.sound += 1
        if self.sound % self.GROW_AFTER == 0:
            self.scale *= 2

    def facts(self) -> dict[str, float]:
        return {"loss_scale": self.scale, "overflows": self.overflows}


def optimiser(groups: list[dict], *, bits: int) -> torch.optim.Optimizer:
    """AdamW with moments in fp32, or in 8 bits with a scale for every 256 (Dettmers et al. 2021, arXiv:2110.02861).

    In 8 bits, moments of tensors of fewer than FEWEST_IN_8_BITS weights stay in fp32. Those in fp32 are there from the
    beginning, not from the first step: what memory is left for passes is then known before the first of them.
    """
    betas, eps = (0.9, 0.999), 1e-8
    if bits == 8:
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit([group for group in groups if group["params"]], lr=0.0, betas=betas, eps=eps)
    made = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)
    for weights in (weights for group in groups for weights in group["params"]):
        kept = {name: torch.zeros_like(weights) for name in ("exp_avg", "exp_avg_sq")}
        made.state[weights] = {"step": torch.zeros((), dtype=torch.float32, device=weights.device)} | kept
    return made


def moments(weights: Iterable[torch.Tensor], *, bits: int) -> list[torch.Tensor]:
    """What such an optimiser holds of these weights after a step, in size and kind; empty, and without counters."""
    weights, made = list(weights), []
    small = [one for one in weights if bits == 32 or one.numel() < FEWEST_IN_8_BITS]
    for one in small:
        made += [torch.empty_like(one), torch.empty_like(one)]
    for one in weights:
        if bits == 8 and one.numel() >= FEWEST_IN_8_BITS:
            made += [torch.empty_like(one, dtype=torch.uint8), torch.empty_like(one, dtype=torch.uint8)]
            made += [one.new_empty(-(-one.numel() // BLOCK)) for _ in range(2)]
    if len(small) < len(weights):
        made += [weights[0].new_empty(256), weights[0].new_empty(256)]  # tables of levels, signed and not
    return made
