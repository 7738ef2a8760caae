"""How the frozen base is kept in memory, and how many bytes that takes."""

from math import ceil
from typing import Literal

from tunetrial.models import ModelShape

Storage = Literal["plain", "int8", "nf4"]

NF4_BLOCK, NF4_INNER_BLOCK = 64, 256


def matrix_bytes(inputs: int, outputs: int, storage: Storage, *, compute_bytes: int) -> int:
    """Bytes of one frozen matrix.

    "plain" is the compute dtype. "int8" has a byte a weight and an fp32 scale a row. "nf4" has half a byte a weight, a
    byte a block of 64, four a block of 256 of those and four for their mean: 4.127 bits a weight (Dettmers et al. 2023,
    arXiv:2305.14314, section 3).
    """
    weights = inputs * outputs
    if storage == "nf4":
        blocks = ceil(weights / NF4_BLOCK)
        return ceil(weights / 2) + blocks + 4 * ceil(blocks / NF4_INNER_BLOCK) + 4
    return weights + 4 * outputs if storage == "int8" else compute_bytes * weights


def backbone_bytes(shape: ModelShape, storage: Storage, *, compute_bytes: int) -> int:
    """Bytes of the resident backbone: the blocks' linear layers as stored, all else in the compute dtype."""
    plain = compute_bytes * shape.backbone_parameters
    if storage == "plain":
        return plain
    saved = sum(
        compute_bytes * inputs * outputs - matrix_bytes(inputs, outputs, storage, compute_bytes=compute_bytes)
        for inputs, outputs in shape.projections.values()
    )
    return plain - shape.layers * saved
