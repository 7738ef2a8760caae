"""An engine without weights: a world with planted truth that keeps the engine's contract.

It proves the statistics, since the right verdict is known, and lets everything above the engine be tested without
torch. Its records are synthetic and prove nothing about any method.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median_low, mode
from zlib import crc32

import numpy as np
import psutil
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from tunetrial import methods, models
from tunetrial.core.checkpoint import newest_checkpoint, save_checkpoint
from tunetrial.core.engine import Description, Step, Together
from tunetrial.core.errors import DivergedError, DoesNotFitError, IntegrityError
from tunetrial.core.evidence import Example, Fact, Measurement, TaskData
from tunetrial.core.records import canonical
from tunetrial.core.study import Observed, Precision, Readout, Trial, whole
from tunetrial.engine.batches import examples_digest, first_steps, learning_rate, order, token_digest
from tunetrial.engine.world import Costs, Floats, Truth, World

__all__ = ["Costs", "SimEngine", "SimRun", "SimSession", "Truth", "World"]

CHECKPOINT_EVERY = 20


@dataclass(frozen=True)
class SimEngine:
    """Opens sessions on a world."""

    world: World = World()
    synthetic: bool = True
    device_type: str = "cpu"

    def free_bytes(self) -> int:
        return psutil.virtual_memory().available

    def precision(self) -> Precision:
        return "fp32"

    def open(self, base: Path, precision: Precision) -> "SimSession":
        return SimSession(self.world, precision, base)


@dataclass(frozen=True)
class SimSession:
    """A session that reads no weights of its base."""

    world: World
    precision: Precision
    base: Path
    template_digest: str | None = None

    def lengths(self, examples: Sequence[Example], *, readout: Readout = "head") -> list[int]:
        return [len(_tokens(example, readout)) for example in examples]

    def describe(self, examples: Sequence[Example], *, readout: Readout = "head") -> Description:
        answered = [] if readout == "head" else [True]
        pieces = [[(e.prompt, False), *((str(e.target), mark) for mark in answered)] for e in examples]
        return Description(pieces=pieces, controls={}, end="")

    def start(self, trial: Trial, data: TaskData, *, micro_batch: int | None = None) -> "SimRun":
        return SimRun(self, trial, data, micro_batch)

    def start_pack(
        self, trials: Sequence[Trial], data: TaskData, *, micro_batch: int | None = None, at_once: int | None = None
    ) -> Together:
        return Together([SimRun(self, trial, data, micro_batch) for trial in trials])

    def probe(self, trial: Trial, data: TaskData, folder: Path) -> dict[str, Measurement]:
        """The planted costs, with 1 % of luck on what is timed."""
        truth = self.world.truth(trial.arm.name)
        if not truth.fits:
            raise DoesNotFitError(_does_not_fit(trial))
        costs = truth.costs
        timed = ("step", "load", "evaluate", "latency", "save")
        luck = np.exp(0.01 * self.world.deviates("probe", *self.world.run(trial), keys=timed))
        step_s = costs.step_s * float(luck[0])
        tokens = sum(self.lengths(data.splits["train"])) / len(data.splits["train"]) * trial.controls.batch_examples
        steps = {
            "step_s": Measurement(value=step_s, unit="s", n=20),
            "tokens_per_s": Measurement(value=tokens / step_s, unit="tokens/s"),
        }
        return {
            "load_s": Measurement(value=costs.load_s * float(luck[1]), unit="s"),
            **({"train_s": Measurement(value=0, unit="s")} if trial.learning_rate is None else steps),
            "evaluate_examples_per_s": Measurement(
                value=costs.evaluate_examples_per_s * float(luck[2]), unit="examples/s"
            ),
            "latency_s": Measurement(value=costs.latency_s * float(luck[3]), unit="s", n=20),
            "save_s": Measurement(value=costs.save_s * float(luck[4]), unit="s"),
            "peak_bytes": Measurement(value=costs.peak_bytes, unit="bytes"),
            "artifact_bytes": Measurement(value=costs.artifact_bytes, unit="bytes"),
            **_sizes(costs),
        }


class SimRun:
    """One trial of a world: steps with a loss that falls, then predictions of the planted quality."""

    def __init__(self, session: SimSession, trial: Trial, data: TaskData, micro_batch: int | None):
        self.session, self.trial, self.data = session, trial, data
        self.world, self.truth = session.world, session.world.truth(trial.arm.name)
        self.micro_batch = min(micro_batch or trial.controls.batch_examples, trial.controls.batch_examples)
        self.first_step = 0
        self.finished = False

    def steps(self, checkpoint: Path | None, *, most: int | None = None) -> Iterator[Step]:
        """Let the loss fall, with luck that goes on from step to step and so must survive a resume."""
        if not self.truth.fits:
            raise DoesNotFitError(_does_not_fit(self.trial))
        if self.trial.learning_rate is None:
            self.finished = True
            return
        controls, steps = self.trial.controls, len(self._order)
        stop = self.trial.stop(steps)
        length, fails_at, noise = [len(row) for row in self._tokens], self._fails_at(), self._resume(checkpoint)
        shock_S = self.world.deviates(
            "loss", *self.world.run(self.trial), keys=[str(number) for number in range(steps)]
        )
        end = 0.2 + self.truth.regret(self.trial.learning_rate)
        merge_at, rate_factor = self._warm_start(steps, most)
        for number in range(stop)[self.first_step : most]:
            if number == fails_at:
                raise DivergedError(f"step {number + 1}: numbers are no longer finite, got loss inf; lower the rate")
            peak = self.trial.learning_rate * (rate_factor if number < merge_at else 1)
            rate = learning_rate(number, steps, peak=peak, warmup_share=controls.warmup_share)
            noise = 0.9 * noise + 0.02 * float(shock_S[number])
            loss = end + math.exp(-5 * (number + 1) / steps) + noise**2
            tokens = sum(length[row] for row in self._order[number])
            yield Step(number + 1, steps, loss, loss / 2, rate, tokens, self.truth.costs.step_s)
            paused = number + 1 == stop < steps
            if checkpoint is not None and (paused or (number + 1) % CHECKPOINT_EVERY == 0):
                state = canonical({"trial": self.trial.course, "noise": noise})
                save_checkpoint(
                    checkpoint, number + 1, lambda folder, state=state: (folder / "state.json").write_text(state)
                )
        self.finished = True

    def _warm_start(self, steps: int, most: int | None) -> tuple[int, float]:
        """The steps before the merge of a warm start, and the factor of their learning rate; none without one."""
        share = self.trial.arm.settings.get("warm_start")
        if share is None:
            return 0, 1.0
        factor = methods.find(self.trial.arm).rate_factor(models.shape(self.session.base).parameters)
        return first_steps(share, steps) if most is None else min(most, steps) // 2, factor

    def _resume(self, checkpoint: Path | None) -> float:
        """Go to the newest valid checkpoint, if there is one, and return the luck that goes on."""
        found = newest_checkpoint(checkpoint) if checkpoint is not None else None
        if found is None:
            return 0.0
        step, folder = found
        state = json.loads((folder / "state.json").read_text())
        if state["trial"] != self.trial.course:
            raise IntegrityError(f"{folder}: of another trial, got {state['trial']}; remove it")
        self.first_step = step
        return state["noise"]

    def predict(self, examples: Sequence[Example]) -> list[str] | list[float]:
        """Predict with the planted quality; the steps must have come to their end."""
        if not self.finished:
            raise RuntimeError(f"trial {self.trial.id}: predict before the last step")
        regress = self.data.kind == "regress"
        shows = (self.trial.share or 1.0) >= self.truth.collapses_after
        if shows and self._happens("collapse", self.truth.collapse, self.truth.collapses_above):
            seen = [example.target for example in self.data.splits["train"]]
            return [float(median_low(seen)) if regress else mode(seen)] * len(examples)
        return self._numbers(examples) if regress else self._answers(examples)

    def likelihoods(self, examples: Sequence[Example]) -> list[tuple[float, int]]:
        """Minus the logarithm of the planted quality a token, more for examples with a larger error; a token a word."""
        nats = -math.log(self.world.quality(self.trial, self.data.kind))
        more_E = np.exp(0.25 * self._errors(examples) - 0.25**2 / 2)
        tokens = [len(example.target.split()) + 1 for example in examples]
        return [(count * nats * float(more), count) for count, more in zip(tokens, more_E, strict=True)]

    def _answers(self, examples: Sequence[Example]) -> list[str]:
        """The right label or text with the probability planted, else any other of the labels or of train's targets."""
        labels = self.data.labels or tuple(sorted({example.target for example in self.data.splits["train"]}))
        place = {label: number for number, label in enumerate(labels)}
        right_E = self._errors(examples) < ndtri(self.world.quality(self.trial, self.data.kind))
        luck_E = self._uniforms("wrong", keys=[example.id for example in examples])
        other_E = 1 + (luck_E * (len(labels) - 1)).astype(int)
        return [
            example.target if right else labels[(place.get(example.target, 0) + other) % len(labels)]
            for example, right, other in zip(examples, right_E.tolist(), other_E.tolist(), strict=True)
        ]

    def _numbers(self, examples: Sequence[Example]) -> list[float]:
        """The target and a normal error of the mean absolute size planted."""
        scale = self.world.quality(self.trial, "regress") * math.sqrt(math.pi / 2)
        error_E = self._errors(examples).tolist()
        return [float(example.target) + scale * error for example, error in zip(examples, error_E, strict=True)]

    def _errors(self, examples: Sequence[Example]) -> Floats:
        """The standard normal error of each example."""
        world, task, arm = self.world, whole(self.trial.task), self.trial.arm.name
        ids, clusters = [example.id for example in examples], [example.cluster for example in examples]
        parts = (
            (world.item, world.deviates("example", task, keys=ids)),
            (world.interaction, world.deviates("arm-example", task, arm, keys=ids)),
            (world.cluster, world.deviates("arm-cluster", task, arm, keys=clusters)),
            (world.rest, world.deviates("run-example", *world.moment(self.trial), keys=ids)),
        )
        return sum(share**0.5 * deviate_E for share, deviate_E in parts)

    def _uniforms(self, what: str, keys: Sequence[str] = ("",)) -> Floats:
        """Numbers of this run, uniform in (0, 1), one a key."""
        return ndtr(self.world.deviates(what, *self.world.run(self.trial), keys=keys))

    def _fails_at(self) -> int | None:
        """The step at which the run diverges, a third of the way; None when it does not."""
        fails = self._happens("failure", self.truth.failure, self.truth.diverges_above)
        return len(self._order) // 3 if fails else None

    def _happens(self, what: str, share: float, above: float | None) -> bool:
        """Whether what befalls a share of runs, and all above some rate, befalls this one."""
        return (above is not None and (self.trial.learning_rate or 0.0) > above) or self._uniforms(what)[0] < share

    def observe(self, data: TaskData, what: Observed) -> None:
        """No weights, so there is nothing to look at."""

    def save(self, folder: Path) -> None:
        """Write what stands for an artifact: the trial and its truth."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {"trial": self.trial.model_dump(mode="json"), "truth": self.truth.model_dump(mode="json")}
        (folder / "artifact.json").write_text(canonical(content) + "\n", encoding="utf-8")

    def verify(self, folder: Path) -> None:
        saved = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
        if saved["trial"] != self.trial.model_dump(mode="json"):
            raise IntegrityError(f"{folder}: of another trial, got {saved['trial']}; remove it")

    def facts(self) -> dict[str, Fact]:
        """What an engine with weights would say, and which world it was."""
        return {
            "device": "none",
            "compute_dtype": self.session.precision,
            "micro_batch": self.micro_batch,
            "world": self.world.digest,
        }

    def measurements(self) -> dict[str, Measurement]:
        """Sizes as planted, and what was trained on."""
        tokens = self.trial.controls.epochs * sum(map(len, self._tokens))
        return {
            **_sizes(self.truth.costs),
            "tokens": Measurement(value=tokens, unit="tokens"),
            "steps": Measurement(value=len(self._order), unit="steps"),
        }

    @property
    def token_digest(self) -> str | None:
        untrained = self.trial.learning_rate is None
        return None if untrained else token_digest(self._order, self.data.splits["train"], self._tokens)

    @property
    def examples_digest(self) -> str | None:
        untrained = self.trial.learning_rate is None
        return None if untrained else examples_digest(self._order, self.data.splits["train"])

    @cached_property
    def _order(self) -> list[NDArray[np.int64]]:
        controls, rows = self.trial.controls, len(self.data.splits["train"])
        return order(rows, epochs=controls.epochs, batch_examples=controls.batch_examples, seed=self.trial.seed)

    @cached_property
    def _tokens(self) -> list[list[int]]:
        return [_tokens(example, self.trial.controls.readout) for example in self.data.splits["train"]]


def _tokens(example: Example, readout: Readout) -> list[int]:
    """A token a word, of the target too where there is no head, and one for the end."""
    text = f"{example.prompt} {'' if readout == 'head' else example.target}"
    if example.messages is not None:
        text = f"{example.tools or ''} {example.messages}"
    return [*(crc32(word.encode()) >> 1 for word in text.split()), 0]


def _sizes(costs: Costs) -> dict[str, Measurement]:
    return {
        "trainable_parameters": Measurement(value=costs.trainable_parameters, unit="weights"),
        "optimizer_state_bytes": Measurement(value=8 * costs.trainable_parameters, unit="bytes"),
    }


def _does_not_fit(trial: Trial) -> str:
    return f"arm {trial.arm.name}: does not fit in memory even one example at a time; use a smaller base or method"
