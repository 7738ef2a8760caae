"""What lies between the products of one more token, as kernels for CUDA: `decoding.Plain`'s sums in fewer launches.

A norm is in two parts: the residual stream times the norm's weights goes into the product, and what comes out is
divided by the root of the mean square where it is read next, so that no kernel has to see a whole row before another
may begin. An adapter's B times its few numbers is added at those same places: it costs bytes, and no launch.

The kernels are compiled by Triton, which comes with torch for CUDA on Linux: this module is imported where it is.
"""

import torch
import triton
import triton.language as tl
from torch import nn

from tunetrial.engine.stacks import Flow, Grids, Layer, Stack, Step

BLOCK = 128  # outputs of a program
COLUMNS = 64  # keys that a program reads at a time
NO_WINDOW = 2**30


class Kernels:
    """`decoding.Way` by the kernels below."""

    def enter(self, x: torch.Tensor, norm: nn.Module) -> Flow:
        return self._add(x, None, None, None, norm)

    def add(self, flow: Flow, stack: Stack, made: torch.Tensor, owners: torch.Tensor, norm: nn.Module) -> Flow:
        return self._add(flow.x, stack, made, owners, norm)

    def _add(
        self,
        x: torch.Tensor,
        stack: Stack | None,
        made: torch.Tensor | None,
        owners: torch.Tensor | None,
        norm: nn.Module,
    ) -> Flow:
        rows, hidden = x.shape
        out, h = torch.empty_like(x), torch.empty_like(x)
        squares = x.new_empty(rows, triton.cdiv(hidden, BLOCK), dtype=torch.float32)
        made, owners = (x if made is None else made), (x if owners is None else owners)
        add[(rows, squares.shape[1])](
            x, made, *_adapters(stack, x), owners, _bias(stack, x), norm.weight, out, h, squares, hidden, made.shape[1],
            *_sizes(stack), HAS_Y=stack is not None, HAS_BIAS=_has_bias(stack), RANKS=_ranks(stack), BLOCK=BLOCK,
        )  # fmt: skip
        return Flow(out, h, squares)

    def attend(self, flow: Flow, layer: Layer, made: torch.Tensor, step: Step, grids: Grids) -> torch.Tensor:
        keys, values = grids
        rows, few, columns, size = keys.shape
        stack, own = layer.qkv, layer.heads
        many = stack.outputs // size - 2 * few
        q = made.new_empty(rows, many * size)
        norms = hasattr(own, "q_norm")
        weights = (own.q_norm.weight, own.k_norm.weight) if norms else (made, made)
        heads[(rows, many + 2 * few)](
            made, *_adapters(stack, made), step.owners, _bias(stack, made), flow.squares, *weights, step.cos, step.sin,
            step.lengths, q, keys, values, flow.x.shape[1], step.eps, own.q_norm.variance_epsilon if norms else 0.0,
            made.shape[1], *_sizes(stack), columns, MANY=many, FEW=few, SIZE=size, NORMS=norms, RANKS=_ranks(stack),
            HAS_BIAS=_has_bias(stack), **_parts(flow),
        )  # fmt: skip
        mixed = torch.empty_like(q)
        mix[(rows, many)](
            q, keys, values, step.lengths, mixed, own.scaling, columns,
            NO_WINDOW if layer.window is None else layer.window, MANY=many, FEW=few, SIZE=size, COLUMNS=COLUMNS,
        )  # fmt: skip
        return mixed

    def gate(self, flow: Flow, stack: Stack, made: torch.Tensor, step: Step) -> torch.Tensor:
        rows, inner = len(made), stack.outputs // 2
        out = made.new_empty(rows, inner)
        gate[(rows, triton.cdiv(inner, BLOCK))](
            made, *_adapters(stack, made), step.owners, _bias(stack, made), flow.squares, out, flow.x.shape[1],
            step.eps, inner, made.shape[1], *_sizes(stack), RANKS=_ranks(stack), HAS_BIAS=_has_bias(stack), BLOCK=BLOCK,
            **_parts(flow),
        )  # fmt: skip
        return out

    def leave(self, flow: Flow, norm: nn.Module) -> torch.Tensor:
        mean = flow.squares.sum(1, keepdim=True) / flow.x.shape[1]
        return (flow.h * (mean + norm.variance_epsilon).rsqrt()).to(flow.h.dtype)


def _adapters(stack: Stack | None, none: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A stack's B, where low rows begin, and scalings; any tensor where there are none."""
    return (none, none, none) if stack is None or stack.b is None else (stack.b, stack.first, stack.factors)


def _sizes(stack: Stack | None) -> tuple[int, int]:
    return (0, 0) if stack is None else (stack.outputs, stack.rank)


def _ranks(stack: Stack | None) -> int:
    return 0 if stack is None or stack.rank == 0 else triton.next_power_of_2(stack.rank)


def _has_bias(stack: Stack | None) -> bool:
    return stack is not None and stack.bias is not None


def _bias(stack: Stack | None, none: torch.Tensor) -> torch.Tensor:
    return stack.bias if _has_bias(stack) else none


def _parts(flow: Flow) -> dict[str, int]:
    count = flow.squares.shape[1]
    return {"PARTS": count, "PARTS_UP": triton.next_power_of_2(count)}


@triton.jit
def grown(y, b, first, factors, owner, row, at, cols, mask, OUT, RANK, RANKS: tl.constexpr):
    """Outputs `cols` of a row of a product, with the row's adapter; `at` is one output that reads the same low
    rows."""
    value = tl.load(y + row + cols, mask=mask, other=0.0).to(tl.float32)
    if RANKS > 0:
        r = tl.arange(0, RANKS)
        low = row + OUT + tl.load(first + at) + owner * RANK + r
        a = tl.load(y + low, mask=r < RANK, other=0.0).to(tl.float32)
        places = (owner * RANK + r)[:, None] * OUT + cols[None, :]
        tile = tl.load(b + places, mask=(r < RANK)[:, None] & mask[None, :], other=0.0).to(tl.float32)
        value += tl.sum(a[:, None] * tile, 0) * tl.load(factors + owner)
    return value


@triton.jit
def scale_of(squares, row, PARTS: tl.constexpr, PARTS_UP: tl.constexpr, hidden, eps):
    n = tl.arange(0, PARTS_UP)
    mean = tl.sum(tl.load(squares + row * PARTS + n, mask=n < PARTS, other=0.0), 0) / hidden
    return 1.0 / tl.sqrt(mean + eps)


@triton.jit
def add(
    x, y, b, first, factors, owners, bias, weight, out, h, squares,
    hidden, stride, OUT, RANK,
    RANKS: tl.constexpr, HAS_Y: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0), tl.program_id(1)
    cols = part * BLOCK + tl.arange(0, BLOCK)
    mask = cols < hidden
    value = tl.load(x + row * hidden + cols, mask=mask, other=0.0).to(tl.float32)
    if HAS_Y:
        owner = tl.load(owners + row)
        more = grown(y, b, first, factors, owner, row * stride, 0, cols, mask, OUT, RANK, RANKS)
        if HAS_BIAS:
            more += tl.load(bias + cols, mask=mask, other=0.0).to(tl.float32)
        value += more
    kept = value.to(out.dtype.element_ty)
    tl.store(out + row * hidden + cols, kept, mask=mask)
    value = kept.to(tl.float32)
    w = tl.load(weight + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(h + row * hidden + cols, (value * w).to(h.dtype.element_ty), mask=mask)
    tl.store(squares + row * tl.num_programs(1) + part, tl.sum(value * value, 0))


@triton.jit
def half(y, b, first, factors, owner, row, head, d, OUT, RANK, bias, scale, SIZE: tl.constexpr,
         RANKS: tl.constexpr, HAS_BIAS: tl.constexpr):  # fmt: skip
    cols = head * SIZE + d
    value = grown(y, b, first, factors, owner, row, head * SIZE, cols, d < SIZE, OUT, RANK, RANKS) * scale
    if HAS_BIAS:
        value += tl.load(bias + cols).to(tl.float32)
    return value


@triton.jit
def heads(
    y, b, first, factors, owners, bias, squares, q_weight, k_weight, cos, sin, lengths, q, keys, values,
    hidden, eps, head_eps, stride, OUT, RANK, columns,
    MANY: tl.constexpr, FEW: tl.constexpr, SIZE: tl.constexpr, RANKS: tl.constexpr, PARTS: tl.constexpr,
    PARTS_UP: tl.constexpr, HAS_BIAS: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    owner, length = tl.load(owners + row), tl.load(lengths + row)
    scale = scale_of(squares, row, PARTS, PARTS_UP, hidden, eps)
    d = tl.arange(0, SIZE // 2)
    lo = half(y, b, first, factors, owner, row * stride, head, d, OUT, RANK, bias, scale, SIZE, RANKS, HAS_BIAS)
    hi = half(y, b, first, factors, owner, row * stride, head, d + SIZE // 2, OUT, RANK, bias, scale, SIZE, RANKS,
              HAS_BIAS)  # fmt: skip
    turns = head < MANY + FEW
    if NORMS:
        if turns:
            w = q_weight if head < MANY else k_weight
            own = 1.0 / tl.sqrt((tl.sum(lo * lo, 0) + tl.sum(hi * hi, 0)) / SIZE + head_eps)
            lo = lo * own * tl.load(w + d).to(tl.float32)
            hi = hi * own * tl.load(w + d + SIZE // 2).to(tl.float32)
    if turns:
        c = tl.load(cos + row * SIZE + d).to(tl.float32)
        s = tl.load(sin + row * SIZE + d).to(tl.float32)
        turned = lo * c - hi * s
        hi = hi * c + lo * s
        lo = turned
    if head < MANY:
        place = q + (row * MANY + head) * SIZE
    elif turns:
        place = keys + ((row * FEW + head - MANY).to(tl.int64) * columns + length) * SIZE
    else:
        place = values + ((row * FEW + head - MANY - FEW).to(tl.int64) * columns + length) * SIZE
    tl.store(place + d, lo.to(q.dtype.element_ty))
    tl.store(place + d + SIZE // 2, hi.to(q.dtype.element_ty))


@triton.jit
def mix(
    q, keys, values, lengths, out, scaling, columns, window,
    MANY: tl.constexpr, FEW: tl.constexpr, SIZE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    d, n = tl.arange(0, SIZE), tl.arange(0, COLUMNS)
    end = tl.load(lengths + row) + 1
    begin = tl.maximum(end - window, 0)
    own = tl.load(q + (row * MANY + head) * SIZE + d).to(tl.float32) * scaling
    place = (row * FEW + head // (MANY // FEW)).to(tl.int64) * columns * SIZE
    most, total, mixed = float("-inf"), 0.0, tl.zeros((SIZE,), tl.float32)
    for start in range(begin // COLUMNS * COLUMNS, end, COLUMNS):
        at = start + n
        seen = (at >= begin) & (at < end)
        cells = place + at[:, None] * SIZE + d[None, :]
        k = tl.load(keys + cells, mask=seen[:, None], other=0.0).to(tl.float32)
        scores = tl.where(seen, tl.sum(k * own[None, :], 1), float("-inf"))
        now = tl.maximum(most, tl.max(scores, 0))
        p = tl.exp(scores - now)
        v = tl.load(values + cells, mask=seen[:, None], other=0.0).to(tl.float32)
        old = tl.exp(most - now)
        mixed = mixed * old + tl.sum(p[:, None] * v, 0)
        total = total * old + tl.sum(p, 0)
        most = now
    tl.store(out + (row * MANY + head) * SIZE + d, (mixed / total).to(out.dtype.element_ty))


@triton.jit
def gate(
    y, b, first, factors, owners, bias, squares, out, hidden, eps, inner, stride, OUT, RANK,
    RANKS: tl.constexpr, PARTS: tl.constexpr, PARTS_UP: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0), tl.program_id(1)
    cols = part * BLOCK + tl.arange(0, BLOCK)
    mask = cols < inner
    owner = tl.load(owners + row)
    scale = scale_of(squares, row, PARTS, PARTS_UP, hidden, eps)
    open_ = grown(y, b, first, factors, owner, row * stride, 0, cols, mask, OUT, RANK, RANKS) * scale
    up = grown(y, b, first, factors, owner, row * stride, inner, inner + cols, mask, OUT, RANK, RANKS) * scale
    if HAS_BIAS:
        open_ += tl.load(bias + cols, mask=mask, other=0.0).to(tl.float32)
        up += tl.load(bias + inner + cols, mask=mask, other=0.0).to(tl.float32)
    let = open_ / (1.0 + tl.exp(-open_)) * up
    tl.store(out + row * inner + cols, let.to(out.dtype.element_ty), mask=mask)
