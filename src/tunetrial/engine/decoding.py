"""One more token of each row over a base that stays: few tall products a layer, adapters riding along.

A token of one row is bound by reading weights once and by how many kernels are launched, and an adapter beside a layer
adds kernels more than bytes: two products and a sum for every adapted layer. Here the layers that read the same input
are one matrix (query, key and value; gate and up), and the A of every adapter stands as further rows under it, so that
x A^T comes with x W^T. What is left, B times those few numbers, is added where the product's outputs are read next:
with the rotation, the residual sum or the gate. Rows may be of different adapters: each takes its own numbers.

    decoder = Decoder(causal.base_model)                # the model's own weights become views of the stacked ones
    hidden = decoder.step(tokens, lengths, grids, owners)

Models are those that `blocks` walks, with adapters of `adapters` or without. On newer CUDA devices what lies between
products are kernels of our own (`triton_kernels`); elsewhere torch's operations, the same sums.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import nn
from transformers.activations import SiLUActivation

from tunetrial.engine import attention, blocks, varlen
from tunetrial.engine.adapters import LoraLinear
from tunetrial.engine.elementwise import norm, sum_and_norm
from tunetrial.engine.stacks import Flow, Grids, Layer, Stack, Step


def takes(model: nn.Module) -> bool:
    """Whether a model's backbone is walked here: of a kind that `blocks` knows, its layers stored in full, and no DoRA,
    whose outputs are not a sum."""
    backbone = model.base_model
    if not blocks.fits(backbone) or any(not _plain_mlp(layer) for layer in backbone.layers):
        return False
    return all(_stacks(linear) for layer in backbone.layers for linear in _linears(layer))


def _plain_mlp(layer: nn.Module) -> bool:
    return isinstance(layer.mlp.act_fn, nn.SiLU | SiLUActivation)


def _stacks(linear: nn.Module) -> bool:
    if isinstance(linear, LoraLinear):
        return type(linear.base) is nn.Linear and linear.lora_magnitude_vector is None
    return type(linear) is nn.Linear


def _linears(layer: nn.Module) -> list[nn.Module]:
    heads, mlp = layer.self_attn, layer.mlp
    return [heads.q_proj, heads.k_proj, heads.v_proj, heads.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


class Way(Protocol):
    """What lies between the products of a layer."""

    def enter(self, x: torch.Tensor, norm: nn.Module) -> Flow: ...

    def add(self, flow: Flow, stack: Stack, made: torch.Tensor, owners: torch.Tensor, norm: nn.Module) -> Flow: ...

    def attend(self, flow: Flow, layer: Layer, made: torch.Tensor, step: Step, grids: Grids) -> torch.Tensor: ...

    def gate(self, flow: Flow, stack: Stack, made: torch.Tensor, step: Step) -> torch.Tensor: ...

    def leave(self, flow: Flow, norm: nn.Module) -> torch.Tensor: ...


class Decoder:
    """A backbone that takes rows one token further; its layers' weights become views of `stacks.Stack`s."""

    def __init__(self, backbone: nn.Module):
        self.backbone = backbone
        norms = [layer.input_layernorm for layer in backbone.layers][1:] + [backbone.norm]
        self.layers = []
        for layer, following in zip(backbone.layers, norms, strict=True):
            q, k, v, o, gate, up, down = _linears(layer)
            stacks = Stack([q, k, v]), Stack([o]), Stack([gate, up]), Stack([down])
            window = getattr(layer.self_attn, "sliding_window", getattr(backbone.config, "sliding_window", None))
            self.layers.append(Layer(layer.self_attn, window, *stacks, layer.post_attention_layernorm, following))
        self.way = _way(backbone)

    @property
    def stacks(self) -> dict[nn.Module, tuple[Stack, Stack]]:
        """What `blocks.stacked` takes, so that prompts are read by the same products; none where there are several
        adapters, whose tokens the layers themselves tell apart."""
        if any(layer.qkv.members > 1 or layer.up.members > 1 for layer in self.layers):
            return {}
        heads = {layer.heads: (layer.qkv, layer.o) for layer in self.layers}
        own = zip(self.backbone.layers, self.layers, strict=True)
        return heads | {layer.mlp: (stacks.up, stacks.down) for layer, stacks in own}

    @property
    def own_kernels(self) -> bool:
        """Whether kernels of our own lie between the products."""
        return not isinstance(self.way, Plain)

    def step(
        self, tokens: torch.Tensor, lengths: torch.Tensor, grids: Sequence[Grids], owners: torch.Tensor
    ) -> torch.Tensor:
        """Feed each row one token; its keys and values go into column `lengths` of the grids, which have room.

        Args:
            tokens, lengths, owners: (rows,); how long rows were before, and whose adapter each takes.
        Returns:
            The last hidden states (rows, hidden), as the backbone gives them.
        """
        way, x = self.way, self.backbone.embed_tokens(tokens)
        cos, sin = (table[0] for table in self.backbone.rotary_emb(x[None], lengths[None]))
        step = Step(lengths, owners, cos, sin, self.backbone.norm.variance_epsilon)
        flow = way.enter(x, self.backbone.layers[0].input_layernorm)
        for layer, own in zip(self.layers, grids, strict=True):
            mixed = way.attend(flow, layer, layer.qkv(flow.h), step, own)
            flow = way.add(flow, layer.o, layer.o(mixed), owners, layer.norm)
            inner = way.gate(flow, layer.up, layer.up(flow.h), step)
            flow = way.add(flow, layer.down, layer.down(inner), owners, layer.following)
        return way.leave(flow, self.backbone.norm)


def _way(backbone: nn.Module) -> Way:
    """Kernels of our own on newer CUDA devices, in 16 bits and with heads of a power of two; where torch came without
    Triton, and elsewhere, torch's operations."""
    size = backbone.layers[0].self_attn.head_dim
    if varlen.takes(backbone.embed_tokens.weight, size) and size & (size - 1) == 0 and find_spec("triton"):
        from tunetrial.engine.triton_kernels import Kernels

        return Kernels()
    return Plain()


class Plain:
    """Between products by torch's operations, rounded where transformers' modules round."""

    def enter(self, x: torch.Tensor, norm_: nn.Module) -> Flow:
        return Flow(x, norm(x, norm_.weight, norm_.variance_epsilon)[0])

    def add(self, flow: Flow, stack: Stack, made: torch.Tensor, owners: torch.Tensor, norm_: nn.Module) -> Flow:
        x, h, *_ = sum_and_norm(flow.x, stack.grown(made, owners), norm_.weight, norm_.variance_epsilon)
        return Flow(x, h)

    def attend(self, flow: Flow, layer: Layer, made: torch.Tensor, step: Step, grids: Grids) -> torch.Tensor:
        keys, values = grids
        rows, few, _, size = keys.shape
        heads = layer.qkv.grown(made, step.owners).view(rows, -1, size)
        q, k, v = heads.split((heads.shape[1] - 2 * few, few, few), 1)
        if hasattr(layer.heads, "q_norm"):
            q, k = (
                norm(part, own.weight, own.variance_epsilon)[0]
                for part, own in ((q, layer.heads.q_norm), (k, layer.heads.k_norm))
            )
        q, k = (part * step.cos[:, None] + _swapped(part) * step.sin[:, None] for part in (q, k))
        every = torch.arange(rows, device=keys.device)
        keys[every, :, step.lengths] = k
        values[every, :, step.lengths] = v
        column, own = torch.arange(keys.shape[2], device=keys.device), step.lengths[:, None, None, None]
        hidden = column > own
        if layer.window is not None:
            hidden = hidden | (column <= own - layer.window)
        # The query heads of a key head are its queries.
        mixed = attention._fused(q.unflatten(1, (few, -1)), keys, values, layer.heads.scaling, hidden=hidden)
        return mixed.reshape(rows, -1)

    def gate(self, flow: Flow, stack: Stack, made: torch.Tensor, step: Step) -> torch.Tensor:
        gate, up = stack.grown(made, step.owners).chunk(2, 1)
        return nn.functional.silu(gate) * up

    def leave(self, flow: Flow, norm_: nn.Module) -> torch.Tensor:
        return flow.h


def _swapped(x: torch.Tensor) -> torch.Tensor:
    """The halves of the last dimension exchanged, the first negated."""
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)
