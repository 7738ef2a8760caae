"""What every method answers: which weights it trains, how many, and where its learning rates lie."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from tunetrial.core.records import Record
from tunetrial.core.study import Setting
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


class PeftSpec(Record):
    """An adapter that PEFT builds: its type and the settings of its configuration."""

    peft_type: str
    settings: dict[str, Setting]


class Method(Record):
    """Base of all methods: a record of settings with the formulas that hold for them.

    `tuned`: it is trained in steps, at a learning rate that is searched for. `trains_base`: the base's own weights are
    trained. `uses_base`: it computes with the base at all. `packs`: its trials may train together over one base.
    """

    tuned: ClassVar[bool] = True
    trains_base: ClassVar[bool] = False
    uses_base: ClassVar[bool] = True
    packs: ClassVar[bool] = False

    def adapter(self, shape: ModelShape) -> AdapterSpec | PeftSpec | None:
        """The adapter that is trained and saved, if there is one.

        Raises:
            SpecError: The settings do not suit the base.
        """
        raise NotImplementedError

    @property
    def frozen_share(self) -> float:
        """The share of the steps in which the base's weights are frozen."""
        return 1.0

    def remark(self, parameters: int) -> str | None:
        """What is done on a base of so many weights that settings alone do not say, in words."""
        return None

    @property
    def storage(self) -> Storage:
        """How the frozen linear layers of the blocks are kept in memory."""
        return "plain"

    def base_bytes(self, shape: ModelShape, compute_bytes: int) -> int:
        """Bytes of the resident backbone, where weights are computed with in so many bytes."""
        return backbone_bytes(shape, self.storage, compute_bytes=compute_bytes)

    def trainable_parameters(self, shape: ModelShape, outputs: int) -> int | None:
        """Count what is trained, a readout head of `outputs` outputs included; None where no formula is known."""
        raise NotImplementedError

    def state_bytes(self, shape: ModelShape, outputs: int) -> int | None:
        """Bytes of the optimiser's moments; None where it is not known how much is trained."""
        raise NotImplementedError

    def artifact_bytes(self, shape: ModelShape, outputs: int, base_bytes_per_weight: int) -> int | None:
        """Bytes of the saved weights, without headers and tokenizer; None where no formula is known."""
        raise NotImplementedError

    def learning_rate_centre(self, parameters: int) -> float:
        """Where the search for a learning rate begins, for a base of this many weights; `tuned` methods have one."""
        raise NotImplementedError


class Trained(Method):
    """Base of the methods that are trained in steps, by AdamW."""

    optimizer_bits: Literal[32, 8] = Field(
        default=32, description="bits of the optimiser's moments: 32, or 8", examples=[8]
    )

    def state_bytes(self, shape: ModelShape, outputs: int) -> int | None:
        """Bytes of AdamW's two moments: fp32, or a byte a weight and an fp32 scale for every 256.

        In 8 bits it leaves out that tensors of fewer than 4,096 weights keep fp32 moments.
        """
        trained = self.trainable_parameters(shape, outputs)
        moment_bytes = 4.0 if self.optimizer_bits == 32 else 1 + 4 / 256
        return None if trained is None else round(2 * moment_bytes * trained)


class Untuned(Method):
    """Base of the methods that take no optimiser steps: nothing to tune, no states."""

    tuned: ClassVar[bool] = False

    def adapter(self, shape: ModelShape) -> None:
        return None

    def trainable_parameters(self, shape: ModelShape, outputs: int) -> int:
        return 0

    def state_bytes(self, shape: ModelShape, outputs: int) -> int:
        return 0


def full_centre(parameters: int) -> float:
    """2e-5 * (1e9 / parameters)**0.7 within [5e-6, 5e-4]: smaller models want larger steps.

    A starting point alone, fitted to what practice reports between 12 M and 70 B weights; the search decides.
    """
    return min(max(2e-5 * (1e9 / parameters) ** 0.7, 5e-6), 5e-4)


def count(projections: Mapping[str, tuple[int, int]], targets: tuple[str, ...], rank: int) -> int:
    """Weights of A and B over the targets of one layer: rank * (in + out) each."""
    return sum(rank * sum(projections[target]) for target in targets)
