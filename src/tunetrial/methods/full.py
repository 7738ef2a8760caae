"""`full`: every weight of the backbone is trained, with fp32 master weights."""

from typing import ClassVar

from tunetrial.methods.method import Trained, full_centre
from tunetrial.models import ModelShape


class Full(Trained):
    """Full fine-tuning. It has no settings of its own: what it shares with other arms are controls."""

    trains_base: ClassVar[bool] = True

    def adapter(self, shape: ModelShape) -> None:
        return None

    def trainable_parameters(self, shape: ModelShape, outputs: int) -> int:
        """All of the backbone and the head; an untied language-model head takes no part in a readout head's loss."""
        return shape.backbone_parameters + shape.readout_parameters(outputs)

    def artifact_bytes(self, shape: ModelShape, outputs: int, base_bytes_per_weight: int) -> int:
        """The backbone in the base's dtype and the head in fp32."""
        return shape.backbone_parameters * base_bytes_per_weight + 4 * shape.readout_parameters(outputs)

    def learning_rate_centre(self, parameters: int) -> float:
        return full_centre(parameters)
