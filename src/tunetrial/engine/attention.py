"""Batches without padding: all rows of a batch laid end to end, so that linear layers and norms see real tokens alone.

Attention is the one place where rows must not meet: there queries, keys and values are laid out in a padded grid,
attended causally, and gathered back. What stands to the right of a row's end cannot reach its tokens, and the grid's
empty cells are never gathered: the result is that of the padded batch.

The number of tokens is rounded up to a bucket, with idle tokens that nothing reads: kernels are prepared once a shape,
and on a CPU preparing one costs more than running it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

UNPADDED = "tunetrial_unpadded"
TOKEN_BUCKET = 64


@dataclass(frozen=True)
class Layout:
    """Rows end to end: ids and positions (1, tokens), each real token's cell in the grid, the rows' last tokens."""

    ids: torch.Tensor
    positions: torch.Tensor
    cells: torch.Tensor
    last: torch.Tensor
    rows: int
    longest: int


def lay_out(tokens: Sequence[Sequence[int]], device: torch.device) -> Layout:
    """Lay rows of tokens end to end, and idle tokens after them up to the next bucket."""
    lengths = np.array([len(row) for row in tokens])
    longest = int(lengths.max())
    positions = np.concatenate([np.arange(length) for length in lengths])
    cells = positions + np.repeat(np.arange(len(lengths)) * longest, lengths)
    idle = np.zeros(-len(cells) % TOKEN_BUCKET, dtype=np.int64)
    ids = np.concatenate([*(np.asarray(row, dtype=np.int64) for row in tokens), idle])
    positions = np.concatenate([positions, idle])
    move = lambda array: torch.from_numpy(array).to(device, non_blocking=True)  # noqa: E731
    return Layout(
        move(ids)[None], move(positions)[None], move(cells), move(lengths.cumsum() - 1), len(lengths), longest
    )


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    layout: Layout,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attend causally within each row; query (1, heads, tokens, head_dim), result (1, tokens, heads, head_dim)."""
    q, k, v = (_to_grid(x, layout) for x in (query, key, value))
    if query.device.type == "cuda":
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
    else:
        mixed = _plain(q, k, v, scaling)
    gathered = mixed.transpose(1, 2).flatten(0, 1).index_select(0, layout.cells)
    idle = query.shape[2] - len(layout.cells)
    return nn.functional.pad(gathered, (0, 0, 0, 0, 0, idle))[None], None


def _to_grid(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """(1, heads, tokens, head_dim) -> (rows, heads, longest, head_dim), empty cells 0."""
    flat = x[0].transpose(0, 1)[: len(layout.cells)]
    grid = flat.new_zeros(layout.rows * layout.longest, *flat.shape[1:]).index_copy(0, layout.cells, flat)
    return grid.unflatten(0, (layout.rows, layout.longest)).transpose(1, 2)


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
    """Softmax in fp32, as transformers' own; on a CPU its backward is faster than the fused kernel's."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.transpose(2, 3) * scaling).masked_fill(future, -torch.inf)
    return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v


AttentionInterface.register(UNPADDED, attend)
AttentionMaskInterface.register(UNPADDED, lambda *_, **__: None)
