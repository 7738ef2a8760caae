"""`lora`: low-rank updates beside frozen weights (Hu et al. 2021, arXiv:2106.09685)."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tunetrial.core.errors import SpecError
from tunetrial.methods.method import AdapterSpec, Trained, count, full_centre
from tunetrial.methods.storage import Storage
from tunetrial.models import ModelShape


class Lora(Trained):
    """W + (alpha / rank) * B A on each target; rsLoRA divides by sqrt(rank) instead (Kalajdzievski 2023).

    `alpha` is twice the rank unless given. `targets` names projections, or "all-linear" for all of the blocks'. A is
    drawn as a linear layer of torch is by default, B is zero: at step 0 the model computes what the base does.

    `dora` adds a magnitude for each output (Liu et al. 2024, arXiv:2402.09353). `base` says how the frozen layers of
    the blocks are stored: as they are computed with ("plain") or in 8 bits with a scale a row ("int8"). The adapter
    that is saved is one of the plain base; on it, it computes nearly what was scored, not exactly.
    """

    packs: ClassVar[bool] = True

    rank: int = Field(default=16, ge=1, description="rank of the update of each projection", examples=[16])
    alpha: float = Field(
        default=32.0, gt=0, description="scale of the update (twice the rank if left out)", examples=[32]
    )
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear", description="projections to adapt", examples=["all-linear"]
    )
    rslora: bool = Field(
        default=False, description="choice to divide alpha by the root of the rank (rsLoRA)", examples=[True]
    )
    dora: bool = Field(default=False, description="choice to train a magnitude for each output (DoRA)", examples=[True])
    base: Literal["plain", "int8"] = Field(
        default="plain", description="storage of the frozen layers", examples=["int8"]
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _one_name_is_a_list(cls, value: object) -> object:
        return cls.names(value)

    @staticmethod
    def names(value: object) -> object:
        """Targets as given: a name alone or several joined by commas; sorted, since their order has no effect.

        Raises:
            ValueError: None is named.
        """
        if isinstance(value, str) and value != "all-linear":
            value = value.split(",")
        if isinstance(value, list | tuple):
            names = sorted({str(name).strip() for name in value})
            if not names or not all(names):
                raise ValueError("must name at least one projection, or be 'all-linear'")
            return tuple(names)
        return value

    @model_validator(mode="before")
    @classmethod
    def _alpha_defaults_to_twice_the_rank(cls, data: dict) -> dict:
        rank = data.get("rank", 16)
        if data.get("alpha") is None and isinstance(rank, int):
            return {**data, "alpha": 2.0 * rank}
        return data

    @property
    def scaling(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def target_names(self, shape: ModelShape) -> tuple[str, ...]:
        """The projections to adapt.

        Raises:
            SpecError: The base has no projection of such a name, or PEFT would take it for another one besides.
        """
        if self.targets == "all-linear":
            return tuple(shape.projections)
        unknown = [name for name in self.targets if name not in shape.projections]
        if unknown:
            known = ", ".join(shape.projections)
            raise SpecError(f"targets: no such projection in this base, got {unknown[0]!r}; use some of {known}")
        for other in set(shape.projections) - set(self.targets):
            if same := [name for name in self.targets if other.endswith(f".{name}")]:
                raise SpecError(f"targets: {same[0]!r} is the end of {other!r} too, got the one alone; name both")
        return self.targets

    def adapter(self, shape: ModelShape) -> AdapterSpec:
        targets = self.target_names(shape)
        return AdapterSpec(rank=self.rank, scaling=self.scaling, targets=targets, dora=self.dora)

    @property
    def storage(self) -> Storage:
        return self.base

    def trainable_parameters(self, shape: ModelShape, outputs: int) -> int:
        """layers * sum over targets of rank * (in + out), with DoRA of out more, and the head."""
        targets = self.target_names(shape)
        in_layer = count(shape.projections, targets, self.rank)
        magnitudes = sum(shape.projections[target][1] for target in targets) if self.dora else 0
        return shape.layers * (in_layer + magnitudes) + shape.readout_parameters(outputs)

    def artifact_bytes(self, shape: ModelShape, outputs: int, base_bytes_per_weight: int) -> int:
        """Adapter and head, both in fp32."""
        return 4 * self.trainable_parameters(shape, outputs)

    def learning_rate_centre(self, parameters: int) -> float:
        """Ten times full fine-tuning's (Schulman et al. 2025 found about ten), at most 2e-3."""
        return min(10 * full_centre(parameters), 2e-3)
