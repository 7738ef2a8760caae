"""Attention over rows laid end to end, by the flash kernel that ships with torch (Dao 2023, arXiv:2307.08691).

No grid, no mask and no copies of keys: the kernel is told where rows begin and end. It runs on CUDA devices of compute
capability 8.0 and newer, in fp16 and bf16; elsewhere attention is laid out in a grid (`attention`). Its backward pass
adds gradients of queries in no fixed order unless torch is told to be deterministic: it is told so here, around that
kernel alone, so that the same step gives the same bytes twice. `torch.nn.attention.varlen` wraps the same two
operators and leaves no place for that.

    mixed = attend(q, k, v, bounds, longest, scaling=q.shape[2] ** -0.5, window=None)
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.utils.deterministic

from tunetrial.engine import place

DTYPES = (torch.float16, torch.bfloat16)
CAPABILITY = (8, 0)
WIDEST_HEAD = 256


def takes(like: torch.Tensor, head_dim: int) -> bool:
    """Whether the kernel computes attention of such tensors: by their device, their dtype and the width of heads."""
    if not place.is_cuda(like) or like.dtype not in DTYPES:
        return False
    return place.capability(like.device) >= CAPABILITY and head_dim % 8 == 0 and head_dim <= WIDEST_HEAD


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    *,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """Causal attention within each row: (tokens, heads, head_dim), keys and values with as many heads or a divisor.

    Args:
        bounds: Where rows begin, and where the last one ends, int32 (rows + 1). Every token must be in a row: what is
            computed for others is not written, and what stood in memory would be read.
        longest: No row is longer; larger numbers cost little.
        window: How many tokens a query sees, itself included; None for all before it.
    """
    return Attention.apply(q, k, v, bounds, longest, scaling, window)


class Attention(torch.autograd.Function):
    """softmax(scaling * q k^T) v with the kernel's own gradients."""

    @staticmethod
    def forward(ctx, q, k, v, bounds, longest, scaling, window):
        mixed, sums, seed, offset = _forward(q, k, v, bounds, longest, scaling, window)
        ctx.save_for_backward(q, k, v, bounds, mixed, sums, seed, offset)
        ctx.how = longest, scaling, window
        return mixed

    @staticmethod
    def backward(ctx, dmixed):
        with repeatable():
            return *_backward(dmixed, *ctx.saved_tensors, *ctx.how), None, None, None, None


def _forward(q, k, v, bounds, longest, scaling, window) -> tuple[torch.Tensor, ...]:
    """Attention, the logarithms of its sums, and the kernel's random state, which nothing is drawn from."""
    causal, seen = _seen(window)
    made = torch.ops.aten._flash_attention_forward(
        q, k, v, bounds, bounds, longest, longest, 0.0, causal, False, scale=scaling, **seen
    )
    return made[:4]


def _backward(dmixed, q, k, v, bounds, mixed, sums, seed, offset, longest, scaling, window) -> tuple[torch.Tensor, ...]:
    """The gradients in q, k and v."""
    causal, seen = _seen(window)
    sides = bounds, bounds, longest, longest, 0.0, causal
    return torch.ops.aten._flash_attention_backward(
        dmixed, q, k, v, mixed, sums, *sides, seed, offset, scale=scaling, **seen
    )


def _seen(window: int | None) -> tuple[bool, dict[str, int]]:
    """The kernel's flag for all before, or its number of tokens before and after a query."""
    return (True, {}) if window is None else (False, {"window_size_left": window - 1, "window_size_right": 0})


@contextmanager
def repeatable() -> Iterator[None]:
    """Let kernels that can be deterministic be so, without filling new memory first; everything is written by them."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled
