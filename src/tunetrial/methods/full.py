"""`full`: every weight of the backbone is trained, with fp32 master weights; after a merged adapter, if so declared."""

from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from tunetrial.methods.lora import Lora
from tunetrial.methods.method import AdapterSpec, Trained, full_centre
from tunetrial.models import ModelShape

ADAPTER = ("rank", "alpha", "targets")
Absent = SkipJsonSchema[None]


class Full(Trained):
    """Full fine-tuning. What it shares with other arms are controls.

    With `warm_start` it begins as `lora`: for that share of the steps an adapter of `rank`, `alpha` and `targets` (as
    there, and with its defaults) is trained beside frozen weights. It is then merged into them, and the rest of the
    steps trains all weights. Examples, their order, the number of steps and the schedule's one warm-up and fall are
    those of every arm; a head is trained throughout. The optimiser's moments begin anew after the merge. One learning
    rate is tuned, that of all weights; the adapter's is `rate_factor` times as high.
    """

    trains_base: ClassVar[bool] = True

    warm_start: float | Absent = Field(
        default=None, gt=0, lt=1, description="share of the steps that train an adapter first", examples=[0.5]
    )
    rank: int | Absent = Field(default=None, ge=1, description="rank of the adapter of a warm start", examples=[16])
    alpha: float | Absent = Field(default=None, gt=0, description="scale of that adapter", examples=[32])
    targets: Literal["all-linear"] | tuple[str, ...] | Absent = Field(
        default=None, description="projections that it adapts", examples=["all-linear"]
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _named_as_in_lora(cls, value: object) -> object:
        return Lora.names(value)

    @model_validator(mode="before")
    @classmethod
    def _adapter_is_of_a_warm_start(cls, data: dict[str, Any]) -> dict[str, Any]:
        given = {name: data[name] for name in ADAPTER if data.get(name) is not None}
        if data.get("warm_start") is None:
            if given:
                name = next(iter(given))
                what = f"{name}: is of the adapter of a warm start, got {given[name]!r} without one"
                raise ValueError(f"{what}; add warm_start, such as 0.5, or remove it")
            return data
        try:
            settled = Lora.model_validate(given)
        except ValidationError:
            return data
        return {**data, **{name: getattr(settled, name) for name in ADAPTER}}

    @property
    def first(self) -> Lora | None:
        """The method of the first steps of a warm start."""
        if self.warm_start is None:
            return None
        return Lora(**{name: getattr(self, name) for name in ADAPTER}, optimizer_bits=self.optimizer_bits)

    @property
    def frozen_share(self) -> float:
        return self.warm_start or 0.0

    def adapter(self, shape: ModelShape) -> None:
        """None is in the artifact; that of a warm start must suit the base all the same."""
        self.first_adapter(shape)

    def first_adapter(self, shape: ModelShape) -> AdapterSpec | None:
        """The adapter of the first steps of a warm start.

        Raises:
            SpecError: The settings do not suit the base.
        """
        return None if self.first is None else self.first.adapter(shape)

    def rate_factor(self, parameters: int) -> float:
        """The adapter's learning rate over that of all weights: the ratio of the centres of `lora` and `full`."""
        return Lora().learning_rate_centre(parameters) / self.learning_rate_centre(parameters)

    def trainable_parameters(self, shape: ModelShape, outputs: int) -> int:
        """All of the backbone and the head; an untied language-model head takes no part in a readout head's loss."""
        return shape.backbone_parameters + shape.readout_parameters(outputs)

    def artifact_bytes(self, shape: ModelShape, outputs: int, base_bytes_per_weight: int) -> int:
        """The backbone in the base's dtype and the head in fp32."""
        return shape.backbone_parameters * base_bytes_per_weight + 4 * shape.readout_parameters(outputs)

    def learning_rate_centre(self, parameters: int) -> float:
        return full_centre(parameters)

    def remark(self, parameters: int) -> str | None:
        if self.warm_start is None:
            return None
        return (
            f"the first {100 * self.warm_start:g} % of the steps train a LoRA adapter of rank {self.rank} at "
            f"{self.rate_factor(parameters):.3g} times the learning rate; it is merged into the weights, and the rest "
            "trains all weights, with the optimiser's moments begun anew; peak memory and artifact are full's"
        )
