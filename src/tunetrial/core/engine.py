"""The accelerator seam: what trial/ asks of an engine. Examples go in; steps, predictions and facts come out.

Two engines keep it: `engine.torch_engine` (weights and devices) and `engine.sim` (planted truth, no torch).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tunetrial.core.evidence import Example, Fact, Measurement, TaskData
from tunetrial.core.study import Precision, Readout, Trial


@dataclass(frozen=True)
class Step:
    """One optimiser step: mean loss of its examples, gradient norm before clipping, tokens of its batch, wall time."""

    step: int
    steps: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    seconds: float


class Run(Protocol):
    """One trial in hand. `steps` first, to its end; then `predict` and `save` as often as wanted."""

    def steps(self, checkpoint: Path | None, *, most: int | None = None) -> Iterator[Step]:
        """Train, yielding every optimiser step once; of a trial that is only tried, the first `most`, with the merge
        of a warm start half-way.

        With a folder in `checkpoint` it saves there now and then, and begins at the newest valid one, whose earlier
        steps are not yielded again (`first_step` says where it began).

        Raises:
            DivergedError: Loss, gradient or weights are not finite.
            DoesNotFitError: Memory runs out even at a micro-batch of one example.
            IntegrityError: The checkpoint is another trial's.
        """

    first_step: int

    def predict(self, examples: Sequence[Example]) -> list[str] | list[float]:
        """Predict a label or a number for each example, in order; where the readout is text, its completion."""

    def likelihoods(self, examples: Sequence[Example]) -> list[tuple[float, int]]:
        """Where the readout is text: of each target, given its prompt, the negative log-likelihood in nats (end of text
        included) and over how many tokens."""

    def save(self, folder: Path) -> None:
        """Write the artifact: an adapter, or a full model in the base's dtype, with its head."""

    def verify(self, folder: Path) -> None:
        """Read an artifact that this run saved, and check that all that was trained is in it.

        Raises:
            IntegrityError: Something is missing or differs; it is named.
        """

    def facts(self) -> dict[str, Fact]:
        """How it was executed: for `TrialRecord.resolved`."""

    def measurements(self) -> dict[str, Measurement]:
        """Trainable parameters, state bytes, tokens, steps."""

    @property
    def token_digest(self) -> str | None:
        """SHA-256 of the token stream of training, in order: equal between arms of a pair on one base. None without
        steps."""

    @property
    def examples_digest(self) -> str | None:
        """SHA-256 of the ids of the examples of every step, in order: equal between arms of a pair on any bases. None
        without steps."""


@dataclass(frozen=True)
class Description:
    """How a base reads rows: each row as pieces of text, marked where they are answers that are trained on.

    `template` names the chat template, `end` and `padding` the tokens of these roles, where there are such.
    `controls` counts the rows whose own text holds a control token of the tokenizer, by token. `tools` counts the rows
    that have tools, `unseen_tools` those that read the same without them.
    """

    pieces: list[list[tuple[str, bool]]]
    controls: dict[str, int]
    template: str | None = None
    end: str | None = None
    padding: str | None = None
    tools: int = 0
    unseen_tools: int = 0


class Session(Protocol):
    """One base, resident. `template_digest` is that of the chat template by which it writes conversations, if any."""

    template_digest: str | None

    def lengths(self, examples: Sequence[Example], *, readout: Readout = "head") -> list[int]:
        """Tokens of each row as it is trained on, so that rows longer than the controls allow are dropped alike in
        every arm: those of the prompt, and without a head those of the target."""

    def describe(self, examples: Sequence[Example], *, readout: Readout = "head") -> Description:
        """Say how the base reads these rows."""

    def start(self, trial: Trial, data: TaskData, *, micro_batch: int | None = None) -> Run:
        """Prepare a trial: attach, initialise, tokenise. It ends the run started before: one at a time.

        `micro_batch` caps the examples computed at once; the effective batch is the controls' all the same.

        Raises:
            DoesNotFitError: Not even the weights and optimiser states find room.
        """

    def probe(self, trial: Trial, data: TaskData, folder: Path) -> dict[str, Measurement]:
        """Measure cost alone on the machine: load, step (20 or more, timed after warm-up), evaluate, save, peak."""


class Engine(Protocol):
    """Opens sessions. `device_type` is "cpu" or "cuda"."""

    synthetic: bool
    device_type: str

    def free_bytes(self) -> int:
        """Memory free on the device, before a base is opened."""

    def precision(self) -> Precision:
        """The compute dtype native to this machine, for a study that says "auto"."""

    def open(self, base: Path, precision: Precision) -> Session:
        """Load a base that `models.resolve` has checked."""
