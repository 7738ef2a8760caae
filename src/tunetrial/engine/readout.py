"""From the last token's hidden state to a label or a number: an fp32 head that every arm starts alike."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from tunetrial.core.evidence import TaskData
from tunetrial.core.records import Record
from tunetrial.engine.attention import Layout
from tunetrial.engine.streams import stream

INITIAL_SD = 0.02


class Readout(Record):
    """What the head's outputs mean: labels in order, or a number in units of the training targets' mean and sd."""

    kind: str
    labels: tuple[str, ...] = ()
    mean: float = 0.0
    sd: float = 1.0

    @classmethod
    def of(cls, data: TaskData) -> "Readout":
        """Take labels from the task, or standardise on the training targets (population sd; 1 if all are equal)."""
        if data.kind == "classify":
            return cls(kind="classify", labels=data.labels)
        targets = torch.tensor([float(e.target) for e in data.splits["train"]], dtype=torch.float64)
        return cls(kind="regress", mean=float(targets.mean()), sd=float(targets.std(correction=0)) or 1.0)

    @property
    def outputs(self) -> int:
        return len(self.labels) or 1

    def encode(self, targets: Sequence[str | float], device: torch.device) -> torch.Tensor:
        """Targets as class numbers, or standardised numbers in fp64."""
        if self.kind == "classify":
            return torch.tensor([self.labels.index(str(t)) for t in targets], device=device)
        return torch.tensor([(float(t) - self.mean) / self.sd for t in targets], dtype=torch.float64, device=device)

    def decode(self, logits: torch.Tensor) -> list[str] | list[float]:
        """Predictions of logits (batch, outputs)."""
        if self.kind == "classify":
            return [self.labels[index] for index in logits.argmax(-1).tolist()]
        return (logits[:, 0].double() * self.sd + self.mean).tolist()

    def write(self, folder: Path) -> None:
        (folder / "readout.json").write_text(json.dumps(self.model_dump(), indent=1) + "\n", encoding="utf-8")


class Classifier(nn.Module):
    """A backbone and a head, named as the Hugging Face classifier of the same weights: `model` and `score`."""

    def __init__(self, backbone: nn.Module, readout: Readout, *, seed: int):
        super().__init__()
        weight = next(backbone.parameters())
        wide = weight.dtype if weight.dtype == torch.float64 else torch.float32
        generator = torch.Generator().manual_seed(stream(seed, "head"))
        drawn = torch.empty(readout.outputs, backbone.config.hidden_size).normal_(0, INITIAL_SD, generator=generator)
        self.model, self.readout = backbone, readout
        self.score = nn.Linear(
            backbone.config.hidden_size, readout.outputs, bias=False, device=weight.device, dtype=wide
        )
        self.score.weight.data.copy_(drawn)

    @property
    def device(self) -> torch.device:
        return self.score.weight.device

    def forward(self, layout: Layout) -> torch.Tensor:
        """Logits (rows, outputs) at the last token of each row."""
        states = self.model(
            input_ids=layout.ids, position_ids=layout.positions, use_cache=False, layout=layout
        ).last_hidden_state
        return self.score(states[0, layout.last].to(self.score.weight.dtype))

    def losses(self, layout: Layout, targets: torch.Tensor) -> torch.Tensor:
        """One loss an example: cross-entropy in nats, or squared error in units of the target's variance."""
        logits = self(layout)
        if self.readout.kind == "classify":
            return nn.functional.cross_entropy(logits, targets, reduction="none")
        return (logits[:, 0] - targets.to(logits)) ** 2
