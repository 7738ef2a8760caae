"""What every method answers: which weights it trains, how many, and where its learning rates lie."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from tunetrial.core.records import Record
from tunetrial.methods.storage import Storage, backbone_bytes
from tunetrial.models import ModelShape


class AdapterSpec(Record):
    """Low-rank updates that the engine attaches: W + scaling * B A on each target; A (rank, in), B (out, rank) = 0.

    `dora`: rows are scaled to magnitudes of their own.
    """

    rank: int
    scaling: float
    targets: tuple[str, ...]
    dora: bool = False


class Method(Record):
    """Base of all methods: a record of settings with the formulas that hold for them."""

    optimizer_bits: Literal[32, 8] = Field(
        default=32, description="bits of the optimiser's moments: 32, or 8", examples=[8]
    )

    def adapter(self, shape: ModelShape) -> AdapterSpec | None:
        """The adapter to attach; None when the base itself is trained."""
        raise NotImplementedError

    @property
    def storage(self) -> Storage:
        """How the frozen linear layers of the blocks are kept in memory."""
        return "plain"

    def base_bytes(self, shape: ModelShape, compute_bytes: int) -> int:
        """Bytes of the resident backbone, where weights are computed with in so many bytes."""
        return backbone_bytes(shape, self.storage, compute_bytes=compute_bytes)

    def trainable_parameters(self, shape: ModelShape, outputs: int) -> int:
        """Count what is trained, the readout head of `outputs` rows (no bias) included."""
        raise NotImplementedError

    def state_bytes(self, shape: ModelShape, outputs: int) -> int:
        """Bytes of AdamW's two moments: fp32, or a byte a weight and an fp32 scale for every 256.

        In 8 bits it leaves out that tensors of fewer than 4,096 weights keep fp32 moments.
        """
        moment_bytes = 4.0 if self.optimizer_bits == 32 else 1 + 4 / 256
        return round(2 * moment_bytes * self.trainable_parameters(shape, outputs))

    def artifact_bytes(self, shape: ModelShape, outputs: int, base_bytes_per_weight: int) -> int:
        """Bytes of the saved weights, without headers and tokenizer."""
        raise NotImplementedError

    def learning_rate_centre(self, parameters: int) -> float:
        """Where the search for a learning rate begins, for a base of this many weights."""
        raise NotImplementedError


def full_centre(parameters: int) -> float:
    """2e-5 * (1e9 / parameters)**0.7 within [5e-6, 5e-4]: smaller models want larger steps.

    A starting point alone, fitted to what practice reports between 12 M and 70 B weights; the search decides.
    """
    return min(max(2e-5 * (1e9 / parameters) ** 0.7, 5e-6), 5e-4)


def count(projections: Mapping[str, tuple[int, int]], targets: tuple[str, ...], rank: int) -> int:
    """Weights of A and B over the targets of one layer: rank * (in + out) each."""
    return sum(rank * sum(projections[target]) for target in targets)
