"""How an answer is read from a model: by a head at the last token, by the texts of labels, or as generated text.

A reader makes the objective that is trained on examples, and predicts. All readers are asked alike.
"""

import json
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from tunetrial.core.errors import DoesNotFitError
from tunetrial.core.evidence import Example, TaskData
from tunetrial.core.records import Record
from tunetrial.engine.attention import Layout, lay_out, on_device
from tunetrial.engine.graphs import recordable
from tunetrial.engine.heads import classifier_name, make_head, summaries
from tunetrial.engine.loop import is_out_of_memory
from tunetrial.engine.place import is_cuda
from tunetrial.engine.segments import over
from tunetrial.engine.streams import stream
from tunetrial.engine.texts import Texts
from tunetrial.models import ModelShape
from tunetrial.models.adapters import READOUT

Made = TypeVar("Made")
EVALUATION_TOKENS = {"cpu": 2**11, "cuda": 2**15}


def batches_of(tokens: Sequence[Sequence[int]], members: int, device: torch.device) -> list[list[int]]:
    """Rows of like lengths, as they are evaluated together by all members of a pack.

    A batch is as many rows as make some 2,048 tokens on a CPU, whose caches hold what a layer makes of them, and some
    32,768 on a GPU, where launching a pass takes as long for few tokens as for many.
    """
    most = EVALUATION_TOKENS["cuda" if is_cuda(device) else "cpu"]
    made: list[list[int]] = []
    for row in sorted(range(len(tokens)), key=lambda row: len(tokens[row])):
        if not made or (len(made[-1]) + 1) * len(tokens[row]) * members > most:
            made.append([])
        made[-1].append(row)
    return made


def in_parts(rows: list[int], compute: Callable[[list[int]], Made]) -> Iterator[tuple[list[int], Made]]:
    """Rows and what is computed of them: all at once or, where memory runs out, in halves, and those in halves.

    Raises:
        DoesNotFitError: Not even one row fits.
    """
    waiting = [rows]
    while waiting:
        part = waiting.pop(0)
        try:
            made = compute(part)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            made = None
        if made is not None:
            yield part, made
            continue
        if len(part) == 1:
            raise DoesNotFitError(
                "evaluation: out of memory, got one row at a time; use a smaller base or shorter rows"
            )
        waiting[:0] = [part[: len(part) // 2], part[len(part) // 2 :]]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


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
        """Predictions of logits (batch, outputs). Logits that are not all finite name no label: nan, as of a number."""
        if self.kind == "classify":
            sound = logits.isfinite().all(-1).tolist()
            best = logits.argmax(-1).tolist()
            return [self.labels[index] if is_sound else math.nan for index, is_sound in zip(best, sound, strict=True)]
        return (logits[:, 0].double() * self.sd + self.mean).tolist()

    def write(self, folder: Path) -> None:
        (folder / READOUT).write_text(json.dumps(self.model_dump(), indent=1) + "\n", encoding="utf-8")

    def config(self, base: dict) -> dict:
        """The base's configuration as a sequence classifier's."""
        labels = self.labels or ("value",)
        problem = "single_label_classification" if self.kind == "classify" else "regression"
        return base | {
            "architectures": [MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[base["model_type"]]],
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
            "problem_type": problem,
        }


class Classifier(nn.Module):
    """A backbone `model` and a head `score`, for each member of a pack its own; `heads` says how they are read and
    what Hugging Face calls them."""

    def __init__(self, backbone: nn.Module, shape: ModelShape, readout: Readout, *, seeds: Sequence[int]):
        super().__init__()
        weight = next(backbone.parameters())
        self.wide = weight.dtype if weight.dtype == torch.float64 else torch.float32
        place = {"dtype": self.wide, "device": weight.device}
        generators = [torch.Generator().manual_seed(stream(seed, "head")) for seed in seeds]
        self.model, self.shape, self.readout = backbone, shape, readout
        self.score = make_head(shape, readout.outputs, generators=generators, **place)

    @property
    def device(self) -> torch.device:
        return next(self.score.parameters()).device

    def forward(self, layout: Layout) -> torch.Tensor:
        """Logits (members, rows of each, outputs) at the token that is read of each row."""
        read = summaries(self.model, layout, self.shape).to(self.wide)
        with over(layout.segments):
            return self.score(read.unflatten(0, (len(layout.segments.members), -1)))

    def losses(self, layout: Layout, targets: torch.Tensor) -> torch.Tensor:
        """One loss an example (members, rows of each): cross-entropy in nats, or squared error in units of the target's
        variance."""
        logits = self(layout)
        if self.readout.kind == "classify":
            flat = nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
            return flat.view(logits.shape[:2])
        return (logits[..., 0] - targets.view(logits.shape[:2]).to(logits)) ** 2


@dataclass(frozen=True)
class LabelledBatch:
    """Rows of members laid out, and their targets, encoded, row after row."""

    layout: Layout
    targets: torch.Tensor
    key: Hashable | None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return *self.layout.tensors, self.targets


class HeadObjective:
    """The loss of a classifier over examples; every example weighs the same."""

    def __init__(self, model: Classifier, tokens: list[list[int]], targets: Sequence[str | float]):
        self.model, self.tokens = model, tokens
        self.tokens_T = [np.asarray(row, dtype=np.int64) for row in tokens]
        self.longest = max(map(len, tokens), default=1)
        self.backbone = model.model.base_model
        self.targets, self.recordable = model.readout.encode(targets, model.device), recordable(model.model)

    def weight(self, rows: Sequence[int]) -> int:
        return len(rows)

    def batch(self, rows: Sequence[Sequence[int]], members: range) -> LabelledBatch:
        every = [row for own in rows for row in own]
        chosen = [self.tokens_T[row] for row in every]
        layout = lay_out(chosen, self.model.device, members=members, longest=self.longest)
        targets = self.targets[on_device(torch.tensor(every), self.model.device)]
        return LabelledBatch(layout, targets, key=layout.shape if self.recordable else None)

    def losses(self, batch: LabelledBatch) -> torch.Tensor:
        return self.model.losses(batch.layout, batch.targets).sum(1)


class HeadReader:
    """Reads labels or numbers from trained heads, those of all members of a pack at once."""

    task_type = "SEQ_CLS"

    def __init__(self, backbone: nn.Module, shape: ModelShape, texts: Texts, data: TaskData, *, seeds: Sequence[int]):
        self.texts, self.readout, self.members = texts, Readout.of(data), range(len(seeds))
        self.model = Classifier(backbone, shape, self.readout, seeds=seeds)

    def exported(self, name: str) -> str:
        """The name of a weight in the artifact."""
        return classifier_name(name, self.model.shape)

    def objective(self, examples: Sequence[Example]) -> HeadObjective:
        return HeadObjective(self.model, self.texts.prompts(examples), [example.target for example in examples])

    @torch.no_grad()
    def predict(self, examples: Sequence[Example]) -> list[list[str] | list[float]]:
        tokens = self.texts.prompts(examples)
        made: list[dict[int, str | float]] = [{} for _ in self.members]
        device, members = self.model.device, self.members

        def read(rows: list[int]) -> list[list[str] | list[float]]:
            layout = lay_out([tokens[row] for _ in members for row in rows], device, members=members)
            return [self.readout.decode(logits) for logits in self.model(layout)]

        for batch in batches_of(tokens, len(members), device):
            for rows, found in in_parts(batch, read):
                for own, decoded in zip(made, found, strict=True):
                    own.update(zip(rows, decoded, strict=True))
        return [[own[row] for row in range(len(tokens))] for own in made]

    def write(self, folder: Path) -> None:
        self.readout.write(folder)

    def config(self, base: dict) -> dict:
        return self.readout.config(base)
