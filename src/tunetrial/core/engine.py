"""The accelerator seam: what trial/ asks of an engine. Examples go in; steps, predictions and facts come out.

Two engines keep it: `engine.torch_engine` (weights and devices) and `engine.sim` (planted truth, no torch).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from tunetrial.core.errors import DivergedError
from tunetrial.core.evidence import Example, Fact, Measurement, Table, TaskData
from tunetrial.core.study import Arm, Controls, Kind, Observed, Precision, Readout, Trial
from tunetrial.core.work import Counted


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


class Pack(Protocol):
    """Trials in hand that train together over one resident base, one alone among them. `steps` first, to its end; then
    `predict` and `save` as often as wanted. What one member computes does not depend on the others' numbers.

    `diverged` says of members, by number, at which step their numbers were no longer finite; such a member takes no
    further step, and the others go on.
    """

    first_step: int
    diverged: dict[int, str]

    def steps(self, checkpoints: Sequence[Path] | None, *, most: int | None = None) -> Iterator[list[Step]]:
        """Train, yielding every optimiser step of all members once; those of a member that has diverged have a loss and
        norm of nan. Of trials that are only tried the first `most` steps, with the merge of a warm start half-way. It
        ends early where all have diverged.

        With a folder a member in `checkpoints` it saves there now and then, and begins at the newest step of which all
        have a valid one, whose earlier steps are not yielded again (`first_step` says where it began).

        Raises:
            DoesNotFitError: Memory runs out even with one example of one member at once.
            IntegrityError: A checkpoint is of another trial or pack.
        """

    def predict(self, examples: Sequence[Example]) -> list[list[str] | list[float]]:
        """Of each member a label or a number for each example, in order; where the readout is text, its completion."""

    def likelihoods(self, examples: Sequence[Example]) -> list[list[tuple[float, int]]]:
        """Where the readout is text, of each member: of each target, given its prompt, the negative log-likelihood in
        nats (end of text included) and over how many tokens."""

    def save(self, member: int, folder: Path) -> None:
        """Write the artifact: an adapter, or a full model in the base's dtype, with its head."""

    def verify(self, member: int, folder: Path) -> None:
        """Read an artifact that this run saved, and check that all that was trained is in it.

        Raises:
            IntegrityError: Something is missing or differs; it is named.
        """

    def observe(self, member: int, data: TaskData, what: Observed) -> Table | None:
        """Look at what was tuned besides its answers, after the last step: what it makes of the held-out texts of
        `data`, its layers' states, its weights, each beside the base's. None of a member that was not tuned.

        Raises:
            DoesNotFitError: Memory runs out.
        """

    def facts(self, member: int) -> dict[str, Fact]:
        """How it was executed: for `TrialRecord.resolved`."""

    def measurements(self, member: int) -> dict[str, Measurement]:
        """Trainable parameters, tokens, steps."""

    def digests(self, member: int) -> tuple[str | None, str | None]:
        """Of training, in order, SHA-256 of the token stream and of the ids of the examples of every step: the one is
        equal between arms of a pair on one base, the other on any bases. None without steps."""


class Run(Protocol):
    """One trial in hand, by itself: what `Alone` makes of a pack of one, and `Together` makes packs of."""

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
        """Predict a label or a number for each example, in order; where the readout is text, its completion. What the
        model computed for it may not be finite: then it is nan, of a label too."""

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

    def observe(self, data: TaskData, what: Observed) -> Table | None:
        """As `Pack.observe`."""

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


class Alone:
    """A pack of one, as what it is."""

    def __init__(self, pack: Pack):
        self.pack = pack

    def __getattr__(self, name: str) -> object:
        return getattr(self.pack, name)

    def steps(self, checkpoint: Path | None, *, most: int | None = None) -> Iterator[Step]:
        """As `Pack.steps`.

        Raises:
            DivergedError: Its numbers were no longer finite.
        """
        for (step,) in self.pack.steps(None if checkpoint is None else [checkpoint], most=most):
            yield step
        if self.pack.diverged:
            raise DivergedError(self.pack.diverged[0])

    def predict(self, examples: Sequence[Example]) -> list[str] | list[float]:
        return self.pack.predict(examples)[0]

    def likelihoods(self, examples: Sequence[Example]) -> list[tuple[float, int]]:
        return self.pack.likelihoods(examples)[0]

    def save(self, folder: Path) -> None:
        self.pack.save(0, folder)

    def verify(self, folder: Path) -> None:
        self.pack.verify(0, folder)

    def observe(self, data: TaskData, what: Observed) -> Table | None:
        return self.pack.observe(0, data, what)

    def facts(self) -> dict[str, Fact]:
        return self.pack.facts(0)

    def measurements(self) -> dict[str, Measurement]:
        return self.pack.measurements(0)

    @property
    def token_digest(self) -> str | None:
        return self.pack.digests(0)[0]

    @property
    def examples_digest(self) -> str | None:
        return self.pack.digests(0)[1]


class Together:
    """A pack of runs that share nothing but their steps' time: of engines and methods that gain nothing by packing."""

    def __init__(self, runs: Sequence[Run]):
        self.runs, self.diverged = list(runs), {}

    @property
    def first_step(self) -> int:
        return self.runs[0].first_step

    def steps(self, checkpoints: Sequence[Path] | None, *, most: int | None = None) -> Iterator[list[Step]]:
        folders = checkpoints or [None] * len(self.runs)
        flows = [run.steps(folder, most=most) for run, folder in zip(self.runs, folders, strict=True)]
        while made := {member: step for member, flow in enumerate(flows) if (step := self._next(member, flow))}:
            lost = replace(next(iter(made.values())), loss=math.nan, grad_norm=math.nan)
            yield [made.get(member, lost) for member in range(len(self.runs))]

    def _next(self, member: int, flow: Iterator[Step]) -> Step | None:
        try:
            return None if member in self.diverged else next(flow, None)
        except DivergedError as error:
            self.diverged[member] = str(error)
            return None

    def predict(self, examples: Sequence[Example]) -> list[list[str] | list[float]]:
        return [[] if member in self.diverged else run.predict(examples) for member, run in enumerate(self.runs)]

    def likelihoods(self, examples: Sequence[Example]) -> list[list[tuple[float, int]]]:
        return [[] if member in self.diverged else run.likelihoods(examples) for member, run in enumerate(self.runs)]

    def save(self, member: int, folder: Path) -> None:
        self.runs[member].save(folder)

    def verify(self, member: int, folder: Path) -> None:
        self.runs[member].verify(folder)

    def observe(self, member: int, data: TaskData, what: Observed) -> Table | None:
        return self.runs[member].observe(data, what)

    def facts(self, member: int) -> dict[str, Fact]:
        return {**self.runs[member].facts(), "pack": len(self.runs)}

    def measurements(self, member: int) -> dict[str, Measurement]:
        return self.runs[member].measurements()

    def digests(self, member: int) -> tuple[str | None, str | None]:
        return self.runs[member].token_digest, self.runs[member].examples_digest


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

    def count(
        self,
        arm: Arm,
        controls: Controls,
        lengths: Sequence[int],
        *,
        kind: Kind,
        outputs: int,
        seed: int,
        members: int = 1,
    ) -> Counted | None:
        """Memory and work of a trial with training rows of so many tokens, in the order of a seed, counted without
        training; and of so many members that train together. None where that cannot be counted; a session may lack
        this.

        Args:
            outputs: Of a head: labels, or 1 for a number.
        """

    def start(self, trial: Trial, data: TaskData, *, micro_batch: int | None = None) -> Run:
        """Prepare a trial alone, as `start_pack` does."""

    def start_pack(
        self, trials: Sequence[Trial], data: TaskData, *, micro_batch: int | None = None, at_once: int | None = None
    ) -> Pack:
        """Prepare trials that train together (`plan.packs` says which may): attach, initialise, tokenise. It ends what
        was started before: one pack at a time.

        `micro_batch` caps the examples of a member that are computed at once, and `at_once` the members; what a step is
        made of is the controls' all the same.

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
