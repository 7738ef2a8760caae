"""Backbones of Llama's kind, walked by us: transformers' modules and weights, in fewer operations.

A step of a small model is hundreds of small operations, which a CPU pays for in memory traffic and a GPU in launches.
Here a residual sum goes with the norm after it, rotation with the way into attention's grid where there is one, and
gradients are written by hand (`elementwise`). Linear layers stay whatever modules are there, so that every method works
on them. A backbone that is not known exactly is left to transformers, as is generation.

    hidden = states(model, lay_out(rows, model.device))
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from tunetrial.engine import attention, fusion, varlen
from tunetrial.engine.attention import UNPADDED, Layout
from tunetrial.engine.elementwise import Norm, SumAndNorm, SwiGLU, Turn
from tunetrial.engine.place import is_cuda
from tunetrial.engine.segments import Segments, over
from tunetrial.engine.stacks import Stack

FUSED_FROM = (
    128  # tokens of the longest row, from which torch's kernel is quicker on a CPU too where nothing is trained
)
FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
PROVEN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
RECOMPUTES: ContextVar[bool] = ContextVar("recomputes", default=False)
STACKED: ContextVar[Mapping[nn.Module, tuple[Stack, Stack]]] = ContextVar("stacked", default=MappingProxyType({}))


def states(model: PreTrainedModel, layout: Layout) -> torch.Tensor:
    """What `attention.states` gives, by the shorter way where the backbone is known."""
    if not fits(model.base_model):
        return attention.states(model, layout)
    with over(layout.segments):
        return walk(model.base_model, layout)


def fits(backbone: nn.Module) -> bool:
    """Whether `walk` is right for a backbone as it is now.

    Its modules are of known classes and nobody has hooked them or given them another forward, and `walk` gave
    transformers' states when it was first asked about. Never in fp64: transformers' norms round to fp32 there, and
    another order of operations would show.
    """
    if not _is(backbone, "Model") or backbone.config._attn_implementation != UNPADDED:
        return False
    layers, attentions = backbone.layers, [layer.self_attn for layer in backbone.layers]
    norms = [backbone.norm, *(n for layer in layers for n in (layer.input_layernorm, layer.post_attention_layernorm))]
    norms += [norm for a in attentions for norm in (getattr(a, "q_norm", None), getattr(a, "k_norm", None)) if norm]
    kinds = (layers, "DecoderLayer"), (attentions, "Attention"), (norms, "RMSNorm")
    known = all(_is(module, kind) for modules, kind in kinds for module in modules)
    return known and not backbone.training and backbone.dtype != torch.float64 and _proven(backbone)


def _is(module: nn.Module, kind: str) -> bool:
    """Whether it is transformers' own module of this kind, of a known family, as it came."""
    names = {f"transformers.models.{family}.modeling_{family}.{name}{kind}" for family, name in FAMILIES.items()}
    touched = module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
    return f"{type(module).__module__}.{type(module).__name__}" in names and not touched


@torch.no_grad()
def _proven(backbone: nn.Module) -> bool:
    """Whether both ways agree on drawn rows, by the layers and within the tolerance that attention is proven by; tried
    once. A backbone without storage cannot be tried, and is taken at its classes' word."""
    if backbone.device.type == "meta":
        return True
    if backbone not in PROVEN:
        drawn = np.random.default_rng(0)
        rows = [drawn.integers(backbone.config.vocab_size, size=length) for length in attention.PROOF_LENGTHS]
        layout = attention.lay_out(rows, backbone.device)
        with attention.shallow(backbone):
            ours, theirs = (way(backbone, layout)[: sum(map(len, rows))].float() for way in (walk, attention.states))
        PROVEN[backbone] = bool((ours - theirs).norm() <= attention.TOLERANCE[backbone.dtype] * theirs.norm())
    return PROVEN[backbone]


def walk(backbone: PreTrainedModel, layout: Layout) -> torch.Tensor:
    """The last hidden states (tokens, hidden) of a backbone that fits."""
    ids, flat = layout.ids[0], varlen.takes(backbone.embed_tokens.weight, backbone.layers[0].self_attn.head_dim)
    if not flat and len(layout.cells) == len(ids):  # one idle token at least: the grid's empty cells are filled from it
        ids = nn.functional.pad(ids, (0, attention.TOKEN_BUCKET))
    x = backbone.embed_tokens(ids)[None]
    place = Flat(backbone, layout, x) if flat else Grid(backbone, layout, len(ids), x)
    first = backbone.layers[0].input_layernorm
    h = Norm.apply(x, first.weight, first.variance_epsilon)
    norms = [*(layer.input_layernorm for layer in backbone.layers), backbone.norm][1:]
    for layer, following in zip(backbone.layers, norms, strict=True):
        block = partial(through, layer, following, place, layout.segments)
        x, h = (
            checkpoint(block, x, h, use_reentrant=False, preserve_rng_state=False) if RECOMPUTES.get() else block(x, h)
        )
    return h[0, : layout.ids.shape[1]]


def through(
    layer: nn.Module, following: nn.Module, place: "Grid | Flat", segments: Segments, x: torch.Tensor, h: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One layer: the residual stream after it, and that stream under the norm that follows."""
    with over(segments):
        norm = layer.post_attention_layernorm
        x, h = SumAndNorm.apply(x, attend(layer.self_attn, h, place), norm.weight, norm.variance_epsilon)
        return SumAndNorm.apply(x, feed_forward(layer.mlp, h), following.weight, following.variance_epsilon)


@contextmanager
def recomputing(wanted: bool) -> Iterator[None]:
    """Keep of each layer its inputs alone, and compute it again in the backward pass (Chen et al. 2016,
    arXiv:1604.06174): the same numbers with less memory, in a third more time. Layers that are not walked keep all."""
    token = RECOMPUTES.set(wanted)
    try:
        yield
    finally:
        RECOMPUTES.reset(token)


@contextmanager
def stacked(stacks: Mapping[nn.Module, tuple[Stack, Stack]]) -> Iterator[None]:
    """Multiply by stacks instead of by layers: of an attention those of its inputs and of its output, of a feed-forward
    part likewise. For answers, without gradients, of one adapter or none."""
    token = STACKED.set(stacks)
    try:
        yield
    finally:
        STACKED.reset(token)


def feed_forward(module: nn.Module, h: torch.Tensor) -> torch.Tensor:
    """down(silu(gate(h)) * up(h)), by the module itself where nothing is compiled or it is another function."""
    if module in STACKED.get():
        into, down = STACKED.get()[module]
        gate, up = into.parts(h)
        return down.parts(SwiGLU.apply(gate, up))[0]
    if not (fusion.fuses(h) and _is(module, "MLP") and isinstance(module.act_fn, nn.SiLU | SiLUActivation)):
        return module(h)
    return module.down_proj(SwiGLU.apply(module.gate_proj(h), module.up_proj(h)))


@dataclass(frozen=True)
class Places:
    """Where tokens of so many heads lie in the grid, as numbers of rows of head_dim, or of half of that.

    A flat tensor is (1, tokens, heads * head_dim); a grid is (rows, heads, longest, head_dim), and contiguous.
    """

    into: torch.Tensor
    into_swapped: torch.Tensor
    swapped: torch.Tensor
    out: torch.Tensor
    real: int

    @classmethod
    def of(cls, layout: Layout, heads: int, tokens: int) -> "Places":
        real, longest = len(layout.cells), layout.longest
        count = lambda n: torch.arange(n, device=layout.cells.device)  # noqa: E731
        token = layout.cells.new_full((layout.rows * longest,), real).index_copy_(0, layout.cells, count(real))
        into = (token.view(-1, 1, longest) * heads + count(heads)[:, None]).flatten()
        row, column = layout.cells // longest, layout.cells % longest
        out = into.new_zeros(tokens, heads)
        out[:real] = (row[:, None] * heads + count(heads)) * longest + column[:, None]
        other_half = 1 - count(2)
        swap = lambda rows: (2 * rows[:, None] + other_half).flatten()  # noqa: E731
        return cls(into, swap(into), swap(count(len(into))), out.flatten(), real)


class Grid:
    """What all layers of one pass share: places, angles by column, and what a query does not see."""

    def __init__(self, backbone: PreTrainedModel, layout: Layout, tokens: int, like: torch.Tensor):
        self.layout, self.tokens, self.like, self.config = layout, tokens, like, backbone.config
        columns = torch.arange(layout.longest, device=like.device)[None]
        cos, sin = (table[0] for table in backbone.rotary_emb(like, columns))
        half = sin.shape[1] // 2
        self.angles = cos, torch.cat([-sin[:, :half], sin[:, half:]], 1)
        self.made: dict = {}

    def places(self, heads: int) -> Places:
        if heads not in self.made:
            self.made[heads] = Places.of(self.layout, heads, self.tokens)
        return self.made[heads]

    def scaled(self, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The angles of queries: scores are then scaled."""
        if "scaled" not in self.made:
            self.made["scaled"] = tuple(table * scaling for table in self.angles)
        return self.made["scaled"]

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, size: int, scaling: float, window: int | None
    ) -> torch.Tensor:
        """Attention of (1, tokens, heads * size), turned by position."""
        many, few = (self.places(x.shape[2] // size) for x in (q, k))
        window = window if window is not None and window < self.layout.longest else None
        shape = self.layout.rows, -1, self.layout.longest, size
        q = IntoGrid.apply(q, many, size, *self.scaled(scaling)).view(shape)
        k = IntoGrid.apply(k, few, size, *self.angles).view(shape)
        v = IntoGrid.apply(v, few, size, None, None).view(shape)
        if is_cuda(q) or (self.layout.longest >= FUSED_FROM and not torch.is_grad_enabled()):
            hidden = None if window is None else self.layout.hidden(causal=True, window=window)
            mixed = attention._fused(q, k, v, 1.0, hidden=hidden)
        else:
            mixed = Softmax.apply(q, k, v, self.bias(window, q.shape[1] // k.shape[1]))
        return OutOfGrid.apply(mixed, many)

    def bias(self, window: int | None, groups: int) -> torch.Tensor:
        """-inf where a query (groups * longest) does not see a key (longest), else 0."""
        key = window, groups
        if key not in self.made:
            hidden = self.layout.hidden(causal=True, window=window)
            zeros = self.like.new_zeros(hidden.shape)
            self.made[key] = zeros.masked_fill_(hidden, -torch.inf).repeat(groups, 1)
        return self.made[key]


class Flat:
    """What all layers of one pass share where rows are attended as they lie: angles by token."""

    def __init__(self, backbone: PreTrainedModel, layout: Layout, like: torch.Tensor):
        self.layout, self.config = layout, backbone.config
        cos, sin = (table[0, :, None] for table in backbone.rotary_emb(like, layout.positions))
        half = sin.shape[2] // 2
        self.angles = cos, torch.cat([-sin[..., :half], sin[..., half:]], 2)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, size: int, scaling: float, window: int | None
    ) -> torch.Tensor:
        """Attention of (1, tokens, heads * size), turned by position."""
        q, k, v = (x.view(x.shape[1], -1, size) for x in (q, k, v))
        q, k = (Turn.apply(x, *self.angles) for x in (q, k))
        window = window if window is not None and window < self.layout.most else None
        v = v.contiguous()  # of stacked layers' outputs it is a part
        mixed = varlen.attend(q, k, v, self.layout.bounds, self.layout.most, scaling=scaling, window=window)
        return mixed.flatten(1)[None]


def attend(module: nn.Module, h: torch.Tensor, place: Grid | Flat) -> torch.Tensor:
    """Causal attention of h (1, tokens, hidden) within each row, with the module's projections."""
    into, out = STACKED.get().get(module, (None, None))
    q, k, v = (module.q_proj(h), module.k_proj(h), module.v_proj(h)) if into is None else into.parts(h)
    size = module.head_dim
    if hasattr(module, "q_norm"):
        q, k = (
            Norm.apply(x.reshape(-1, size), norm.weight, norm.variance_epsilon).view_as(x)
            for x, norm in ((q, module.q_norm), (k, module.k_norm))
        )
    window = getattr(module, "sliding_window", getattr(place.config, "sliding_window", None))
    mixed = place.attend(q, k, v, size=size, scaling=module.scaling, window=window)
    return module.o_proj(mixed) if out is None else out.parts(mixed)[0]


def _turned(x: torch.Tensor, swapped: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, sign: int) -> torch.Tensor:
    """x cos + sign * swap(x) sin for rows of head_dim in columns of the grid, with sin negative in its first half."""
    columns = -1, cos.numel()
    turned = x.view(columns) * cos.flatten()
    return turned.addcmul_(swapped.view(columns), sin.flatten(), value=sign).view_as(x)


class IntoGrid(torch.autograd.Function):
    """Tokens laid into the grid, and turned by their columns' angles (Su et al. 2021, arXiv:2104.09864) if given.

    Each pair of coordinates is turned; the gradient is turned back. Empty cells hold an idle token's numbers; their
    gradients are 0 (`OutOfGrid`), and so are those of idle tokens.
    """

    @staticmethod
    def forward(ctx, flat, places, size, cos, sin):
        ctx.places, ctx.shape = places, flat.shape
        ctx.save_for_backward(cos, sin)
        flat = flat.contiguous()
        laid = flat.view(-1, size).index_select(0, places.into)
        if cos is None:
            return laid
        return _turned(laid, flat.view(-1, size // 2).index_select(0, places.into_swapped), cos, sin, sign=1)

    @staticmethod
    def backward(ctx, dlaid):
        cos, sin = ctx.saved_tensors
        dlaid = dlaid.contiguous()
        if cos is not None:
            swapped = dlaid.view(-1, dlaid.shape[1] // 2).index_select(0, ctx.places.swapped)
            dlaid = _turned(dlaid, swapped, cos, sin, sign=-1)
        dflat = dlaid.index_select(0, ctx.places.out).view(ctx.shape)
        dflat[:, ctx.places.real :] = 0
        return dflat, None, None, None, None


class OutOfGrid(torch.autograd.Function):
    """Tokens (1, tokens, heads * head_dim) taken out of the grid (rows, heads, longest, head_dim); idle ones are 0."""

    @staticmethod
    def forward(ctx, laid, places):
        ctx.places, ctx.shape = places, laid.shape
        flat = laid.reshape(-1, laid.shape[3]).index_select(0, places.out).view(1, -1, laid.shape[1] * laid.shape[3])
        flat[:, places.real :] = 0
        return flat

    @staticmethod
    def backward(ctx, dflat):
        return dflat.reshape(-1, ctx.shape[3]).index_select(0, ctx.places.into).view(ctx.shape), None


class Softmax(torch.autograd.Function):
    """softmax(q k^T + bias) v, of (rows, heads, longest, head_dim); queries of one key head stand below each other.

    With p the probabilities, rounded as they are used: dp = dy v^T, ds = p * (dp - sum(p * dp)), dq = ds k,
    dk = ds^T q, dv = p^T dy.
    """

    @staticmethod
    def forward(ctx, q, k, v, bias):
        ctx.shape = q.shape
        k, v = k.flatten(0, 1), v.flatten(0, 1)
        q = q.reshape(len(k), -1, q.shape[3])
        wide = torch.promote_types(q.dtype, torch.float32)
        p = torch.baddbmm(bias, q, k.transpose(1, 2)).softmax(-1, dtype=wide).to(q.dtype)
        ctx.save_for_backward(q, k, v, p)
        return torch.bmm(p, v).view(ctx.shape)

    @staticmethod
    def backward(ctx, dy):
        q, k, v, p = ctx.saved_tensors
        dy = dy.reshape(q.shape)
        dp = torch.bmm(dy, v.transpose(1, 2))
        ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
        key_shape = ctx.shape[0], -1, *ctx.shape[2:]
        dq, dk, dv = torch.bmm(ds, k), torch.bmm(ds.transpose(1, 2), q), torch.bmm(p.transpose(1, 2), dy)
        return dq.view(ctx.shape), dk.view(key_shape), dv.view(key_shape), None
