"""What a block does to each token by itself, with gradients written by hand: norms, the gated unit, rotation.

On CUDA each function here is one kernel (`fusion`); on a CPU its operations run one by one.
"""

import torch
from torch import nn

from tunetrial.engine.fusion import fused


class Norm(torch.autograd.Function):
    """w * x / rms(x) (Zhang and Sennrich 2019, arXiv:1910.07467), rounded where transformers' rounds it.

    With n = x / rms(x) and g = w * dy: dx = (g - n * mean(g * n)) / rms(x); dw = sum of dy * n over tokens.
    Where x is so large that its squares overflow, n is 0 and dx is not a number: such a run must end as diverged.
    """

    @staticmethod
    def forward(ctx, x, weight, eps):
        weighted, normed, scale = norm(x, weight, eps)
        ctx.save_for_backward(normed, scale, weight)
        return weighted

    @staticmethod
    def backward(ctx, dy):
        dx, dweight = _norm_gradients(ctx, dy, None, trained=ctx.needs_input_grad[1])
        return dx, dweight, None


class SumAndNorm(torch.autograd.Function):
    """The residual stream x + y, and its norm."""

    @staticmethod
    def forward(ctx, x, y, weight, eps):
        sum_, weighted, normed, scale = sum_and_norm(x, y, weight, eps)
        ctx.save_for_backward(normed, scale, weight)
        return sum_, weighted

    @staticmethod
    def backward(ctx, dsum, dnormed):
        dx, dweight = _norm_gradients(ctx, dnormed, dsum, trained=ctx.needs_input_grad[2])
        return dx, dx, dweight, None


@fused(-2, None, None)
def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """w * n, n and 1 / rms(x), this in fp32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    normed = (wide * scale).to(x.dtype)
    return normed * weight, normed, scale


@fused(-2, -2, None, None)
def sum_and_norm(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
    """x + y, and its norm as above."""
    sum_ = x + y
    return sum_, *norm.__wrapped__(sum_, weight, eps)


def _norm_gradients(
    ctx, dy: torch.Tensor, dsum: torch.Tensor | None, *, trained: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients in x and, where it is trained, in w."""
    normed, scale, weight = ctx.saved_tensors
    dx, products = norm_gradient(dy, normed, scale, weight, dsum, trained)
    return dx, products.flatten(0, -2).sum(0).to(weight.dtype) if trained else None


@fused(-2, -2, -2, None, -2, None)
def norm_gradient(
    dy: torch.Tensor,
    normed: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    dsum: torch.Tensor | None,
    products_too: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """dx, and what reaches x beside its norm; dy * n too if asked."""
    wide_normed, wide_dy, wide_weight = (tensor.to(scale.dtype) for tensor in (normed, dy, weight))
    products = wide_dy * wide_normed
    mean = (products @ wide_weight).div_(len(weight))[..., None]
    scale = scale.masked_fill(scale == 0, torch.nan)
    dx = (wide_dy * wide_weight).addcmul_(wide_normed, mean, value=-1).mul_(scale)
    if dsum is not None:
        dx = dx.add_(dsum)
    return dx.to(dy.dtype), products if products_too else None


class SwiGLU(torch.autograd.Function):
    """silu(g) * u (Shazeer 2020, arXiv:2002.05202), rounded where transformers' rounds it; silu(g) is not kept.

    With s the logistic function: dg = dy * u * s(g) * (1 + g * (1 - s(g))), du = dy * silu(g).
    """

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return swiglu(gate, up)

    @staticmethod
    def backward(ctx, dy):
        return swiglu_gradient(dy, *ctx.saved_tensors)


@fused(-2, -2)
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return nn.functional.silu(gate) * up


@fused(-2, -2, -2)
def swiglu_gradient(dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients in the gate and in what it lets through."""
    dtype, wide = gate.dtype, torch.promote_types(gate.dtype, torch.float32)
    dy, gate, up = (tensor.to(wide) for tensor in (dy, gate, up))
    open_ = torch.sigmoid(gate)
    return (dy * up * open_ * (1 + gate * (1 - open_))).to(dtype), (dy * gate * open_).to(dtype)


class Turn(torch.autograd.Function):
    """Heads (tokens, heads, size) turned by their tokens' angles (Su et al. 2021, arXiv:2104.09864).

    Coordinates i and i + size / 2 are a pair; cosines and sines are (tokens, 1, size), sines negative in their first
    half. The gradient is turned back.
    """

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin, 1)

    @staticmethod
    def backward(ctx, dx):
        cos, sin = ctx.saved_tensors
        return turn(dx, cos, sin, -1), None, None


@fused(0, 0, 0, None)
def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int) -> torch.Tensor:
    """x cos + sign * swap(x) sin, where swap exchanges the halves of the last dimension."""
    swapped = (
        x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    )  # compiled, a place to read from; halves put together are not
    return x * cos + swapped * (sign * sin)
