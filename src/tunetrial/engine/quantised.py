"""Frozen weights in few bits: NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314) and 8-bit rows.

bitsandbytes is the store alone: a weight is dequantised inside our own product, in the forward pass and again in the
backward pass, and no dequantised weight outlives either. (`Linear4bit` re-packs its weights in an evaluation on some
CPUs, after which gradients are lost without an error.)
"""

import math
from functools import lru_cache
from types import ModuleType

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunetrial.core.errors import ModelError
from tunetrial.engine import meter
from tunetrial.methods.storage import NF4_BLOCK, NF4_INNER_BLOCK, Storage


class Nf4(nn.Module):
    """A matrix in 4 bits a weight, one absolute maximum per 64 weights, itself in 8 bits with one per 256 of these."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.shape, self.dtype = weight.shape, weight.dtype
        self.narrow = torch.float32 if weight.dtype == torch.float64 else weight.dtype
        stored = _empty if weight.is_meta else _quantised
        for name, tensor in stored(weight.detach().to(self.narrow).contiguous()).items():
            self.register_buffer(name, tensor)

    def matrix(self) -> torch.Tensor:
        """The weight as stored, (outputs, inputs), in the dtype that it had."""
        if self.packed.is_meta:
            return self._empty_matrix().to(self.dtype)
        functional = _bitsandbytes()
        levels, inner_levels = _levels(self.packed.device)
        inner = functional.QuantState(
            absmax=self.scales, code=inner_levels, blocksize=NF4_INNER_BLOCK, dtype=torch.float32
        )
        state = functional.QuantState(
            absmax=self.absmax,
            shape=self.shape,
            code=levels,
            blocksize=NF4_BLOCK,
            quant_type="nf4",
            dtype=self.narrow,
            offset=self.offset,
            state2=inner,
        )
        return functional.dequantize_4bit(self.packed, state).to(self.dtype)

    def _empty_matrix(self) -> torch.Tensor:
        """Without storage, by the two kernels of bitsandbytes: scales first, then weights."""
        absmax = meter.kernel(_empty_scales, (self.absmax, self.scales))
        absmax += self.offset
        return meter.kernel(_empty_weights, (self.packed, absmax, tuple(self.shape), self.narrow))


def _quantised(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    packed, state = _bitsandbytes().quantize_4bit(
        weight, blocksize=NF4_BLOCK, quant_type="nf4", compress_statistics=True
    )
    return {"packed": packed, "absmax": state.absmax, "offset": state.offset, "scales": state.state2.absmax}


def _empty(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `_quantised` gives, in shape and dtype. (Asked about a tensor of the meta device, bitsandbytes keeps a table
    there, and quantises nothing else in that process; and it takes seconds to import.)"""
    blocks = math.ceil(weight.numel() / NF4_BLOCK)
    return {
        "packed": weight.new_empty((math.ceil(weight.numel() / 2), 1), dtype=torch.uint8),
        "absmax": weight.new_empty(blocks, dtype=torch.uint8),
        "offset": weight.new_empty((), dtype=torch.float32),
        "scales": weight.new_empty(math.ceil(blocks / NF4_INNER_BLOCK), dtype=torch.float32),
    }


def _empty_scales(absmax: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return absmax.new_empty(absmax.shape, dtype=scales.dtype)


def _empty_weights(
    packed: torch.Tensor, absmax: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    return packed.new_empty(shape, dtype=dtype)


class Int8(nn.Module):
    """A matrix in 8 bits a weight and one fp32 scale a row, the row's absolute maximum / 127; rounded to nearest."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.dtype = weight.dtype
        wide = weight.detach().float()
        scale = wide.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", torch.where(scale == 0, 1.0, scale))
        self.register_buffer("packed", (wide / self.scale).round().to(torch.int8))

    def matrix(self) -> torch.Tensor:
        """The weight as stored, (outputs, inputs), in the dtype that it had."""
        return (self.packed * self.scale).to(self.dtype)


STORES: dict[Storage, type[Nf4] | type[Int8]] = {"nf4": Nf4, "int8": Int8}


class QuantisedLinear(nn.Module):
    """A frozen linear layer whose weight is stored in few bits; the bias is kept as it was."""

    def __init__(self, layer: nn.Linear | Conv1D, storage: Storage, device: torch.device):
        super().__init__()
        weight = matrix(layer).to(device)
        self.out_features, self.in_features = weight.shape
        self.stored = STORES[storage](weight)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(device), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = _Product.apply(x.flatten(0, -2), self).unflatten(0, x.shape[:-1])
        return product if self.bias is None else product + self.bias


class _Product(torch.autograd.Function):
    """x W^T with the gradient in x; W is dequantised each time."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return x @ matrix(layer).T

    @staticmethod
    def backward(ctx, dy):
        return dy @ matrix(ctx.layer), None


def matrix(layer: nn.Linear | Conv1D | QuantisedLinear) -> torch.Tensor:
    """A layer's weight, (outputs, inputs), dequantised where it is stored in few bits."""
    if isinstance(layer, QuantisedLinear):
        return layer.stored.matrix()
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def is_linear(module: nn.Module) -> bool:
    """Whether a module computes W x, or W x + b, with a weight that an adapter can stand beside."""
    return isinstance(module, nn.Linear | Conv1D | QuantisedLinear)


def sizes(layer: nn.Linear | Conv1D | QuantisedLinear) -> tuple[int, int]:
    """Inputs and outputs of a layer."""
    return (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)


def resident_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers; NF4's two tables of levels, 1088 bytes in all, are not counted."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


@lru_cache(maxsize=16)
def _levels(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The 16 levels of NF4 and the 256 of its scales."""
    functional = _bitsandbytes()
    return functional.get_4bit_type("nf4", device=device), functional.create_dynamic_map().to(device)


def _bitsandbytes() -> ModuleType:
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise ModelError(f"qlora: bitsandbytes cannot be loaded, got {error}; pip install bitsandbytes") from None
    return functional
