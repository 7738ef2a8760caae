"""The one training loop: every method, alone or in a pack, every device."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open

from tunetrial.core.checkpoint import common_checkpoint, save_checkpoint
from tunetrial.core.engine import Step
from tunetrial.core.errors import DoesNotFitError, IntegrityError
from tunetrial.core.evidence import Example
from tunetrial.core.study import Trial
from tunetrial.engine import blocks
from tunetrial.engine.attention import on_device
from tunetrial.engine.batches import examples_digest, first_steps, learning_rate, order, token_digest
from tunetrial.engine.graphs import CudaGraphs, Replay
from tunetrial.engine.optimisers import Scaler, optimiser
from tunetrial.engine.tensors import write
from tunetrial.engine.trainables import Trainables, WarmStart

CLIP_EPSILON = 1e-6  # as torch.nn.utils.clip_grad_norm_ has it


class Objective(Protocol):
    """What is minimised: over an optimiser step of a member, the sum of its rows' losses divided by the sum of their
    weights."""

    backbone: torch.nn.Module
    tokens: list[list[int]]

    def weight(self, rows: Sequence[int]) -> int:
        """How much these rows weigh: their number, or their answered tokens."""

    def batch(self, rows: Sequence[Sequence[int]], members: range) -> object:
        """Rows of each of these members, on the device."""

    def losses(self, batch: object) -> torch.Tensor:
        """The summed loss of each member's rows (members,)."""


class Course:
    """What is one trial's own in a loop: which rows each step sees, and how far the rate goes up."""

    def __init__(self, trial: Trial, examples: Sequence[Example], tokens: Sequence[list[int]]):
        controls = trial.controls
        self.trial, self.peak_rate = trial, trial.learning_rate
        self.order = order(
            len(examples), epochs=controls.epochs, batch_examples=controls.batch_examples, seed=trial.seed
        )
        self.token_digest = token_digest(self.order, examples, tokens)
        self.examples_digest = examples_digest(self.order, examples)
        self.scaler = Scaler() if controls.precision == "fp16" else None


class Loop:
    """AdamW over the examples of a trial, or of all trials of a pack, a step at a time.

    Members of a pack share passes over the base and nothing else: each has its own rows, rate, loss, norm, clipping,
    moments and scale. One whose numbers are no longer finite is left as it was before that step and takes no further
    one; the others do not notice.

    A step is `batch_examples` examples of each member whatever the memory: they are computed in micro-batches of like
    lengths, and when memory runs out fewer members are computed at once, then fewer examples, then layers anew in the
    backward pass, and the same step is begun again.

    In fp16 losses are scaled so that small gradients survive (Micikevicius et al. 2018, arXiv:1710.03740). Where a
    gradient overflows, the member's scale is halved and the same step begun again: no step is left out, so that all
    arms take equally many.

    With a warm start the trainables it is given are trained in the first steps alone; then those that it merges into,
    with moments begun anew. Rows, their order and the schedule know nothing of it. What a checkpoint holds is told by
    its step: one at the merge is from before it.
    """

    def __init__(
        self,
        objective: Objective,
        trainables: Trainables,
        examples: Sequence[Example],
        *,
        trials: Sequence[Trial],
        micro_batch: int | None,
        at_once: int | None,
        checkpoint_every_s: float,
        warm_start: WarmStart | None = None,
    ):
        controls = trials[0].controls
        self.objective, self.trainables, self.tokens = objective, trainables, objective.tokens
        self.controls = controls
        self.courses = [Course(trial, examples, self.tokens) for trial in trials]
        self.steps_in_all = len(self.courses[0].order)
        self.stop = trials[0].stop(self.steps_in_all)
        self.micro_batch = min(micro_batch or controls.batch_examples, controls.batch_examples)
        self.at_once = min(at_once or len(trials), len(trials))
        self.checkpoint_every_s = checkpoint_every_s
        self.first_step = 0
        self.diverged: dict[int, str] = {}
        self.device = trainables.masters.device
        self.warm_start, self.recomputes = warm_start, False
        self.merge_at = 0 if warm_start is None else first_steps(warm_start.share, self.steps_in_all)
        self.optimizer_bits = trials[0].arm.settings.get("optimizer_bits", 32)
        self.replay = self._replay()
        self.ahead: tuple[list, range, object] | None = None

    def _replay(self) -> Replay | None:
        """What records passes, on CUDA. It does not hold the loop, which holds it: memory is let go with the loop."""
        if self.device.type != "cuda":
            return None
        return Replay(self._pass(), CudaGraphs(), abandon=self.trainables.drop)

    def _pass(self) -> Callable[..., torch.Tensor]:
        return partial(forward_and_backward, self.objective, self.trainables, self.recomputes)

    @cached_property
    def optimisers(self) -> list[torch.optim.Optimizer]:
        """One a member, over its rows of masters and gradients."""
        made = []
        for member in range(len(self.courses)):
            groups = []
            for master, gradient, decays in self.pieces(member):
                master.grad = gradient
                groups.append({"params": [master], "weight_decay": self.controls.weight_decay if decays else 0.0})
            made.append(optimiser(groups, bits=self.optimizer_bits))
        return made

    def pieces(self, member: int) -> list[tuple[torch.Tensor, torch.Tensor, bool]]:
        """What its optimiser is given; see `Trainables.pieces`."""
        return self.trainables.pieces(member, whole=self.optimizer_bits == 32)

    def merge(self) -> None:
        """End a warm start: from now on the weights that it is merged into are trained."""
        self.trainables.clear()
        self.trainables = self.warm_start.merge(self.trainables.member(0))
        self.__dict__.pop("optimisers", None)
        self.replay, self.warm_start = self._replay(), None

    def rate(self, member: int, number: int) -> float:
        """The learning rate of a member's step, counted from 0."""
        peak = self.courses[member].peak_rate * (1 if self.warm_start is None else self.warm_start.rate_factor)
        return learning_rate(number, self.steps_in_all, peak=peak, warmup_share=self.controls.warmup_share)

    def steps(self, checkpoints: Sequence[Path] | None, *, most: int | None = None) -> Iterator[list[Step]]:
        """Train to the end, yielding each step of every member; see `core.engine.Pack.steps`."""
        if checkpoints is not None:
            self._resume(checkpoints)
        saved = time.perf_counter()
        merge_at = self.merge_at if most is None else min(most, self.steps_in_all) // 2
        for number in range(self.stop)[self.first_step : most]:
            started = time.perf_counter()
            if self.warm_start is not None and number >= merge_at:
                self.merge()
            rows = [course.order[number] for course in self.courses]
            rates = [self.rate(member, number) for member in range(len(rows))]
            after = number + 1
            following = [course.order[after] for course in self.courses] if after < self.stop else None
            found = self.step(rows, rates, following)
            seconds = (time.perf_counter() - started) / len(rows)
            for member, (loss, norm) in enumerate(found):
                if member not in self.diverged and not (math.isfinite(loss) and math.isfinite(norm)):
                    got = f"loss {loss}, gradient norm {norm}"
                    what = f"step {number + 1}: numbers are no longer finite, got {got}; lower the rate"
                    self.diverged[member] = what
            if len(self.diverged) == len(rows):
                return
            yield [
                Step(
                    number + 1,
                    self.steps_in_all,
                    *(found[member] if member not in self.diverged else (math.nan, math.nan)),
                    rates[member],
                    sum(len(self.tokens[row]) for row in rows[member]),
                    seconds,
                )
                for member in range(len(rows))
            ]
            paused = after == self.stop < self.steps_in_all
            if checkpoints is not None and (paused or time.perf_counter() - saved >= self.checkpoint_every_s):
                for member, folder in enumerate(checkpoints):
                    pack = None if paused else self.pack
                    save_checkpoint(folder, after, partial(self._write, member=member, pack=pack))
                saved = time.perf_counter()
        if self.replay is not None:
            self.replay.forget()

    def step(
        self,
        rows: Sequence[Sequence[int]],
        rates: Sequence[float],
        following: Sequence[Sequence[int]] | None = None,
    ) -> list[tuple[float, float]]:
        """Take one optimiser step over these rows of each member; return each one's mean loss and the norm of its
        gradient before clipping.

        Rows of the `following` step, if given, are laid out while the device is busy with this one.
        """
        ordered = self._by_length(rows)
        gradients, accepted = self.trainables.gradients, set(self.diverged)
        optimisers = self.optimisers  # with what they hold, before memory is taken by the first pass
        while True:
            losses = self.accumulate(ordered)
            if following is not None:
                first, members = next(self.parts(self._by_length(following)))
                self.ahead = first, members, self.objective.batch(first, members)
            for course, gradient in zip(self.courses, gradients, strict=True):
                if course.scaler is not None:
                    gradient.div_(course.scaler.scale)
            norms = self.trainables.norms()
            found = list(zip(*torch.stack([losses.double(), norms.double()]).tolist(), strict=True))
            for member, course in enumerate(self.courses):
                if member not in accepted and (course.scaler is None or course.scaler.accepts(found[member][1])):
                    accepted.add(member)
            if len(accepted) == len(rows):
                break
            self.trainables.clear()
        for member, (loss, norm) in enumerate(found):
            if member not in self.diverged and math.isfinite(loss) and math.isfinite(norm):
                if self.courses[member].scaler is not None:
                    self.courses[member].scaler.grow()
                self.move(optimisers[member], gradients[member], norm, rates[member])
        self.trainables.publish()
        self.trainables.clear()
        return found

    def move(self, optimiser: torch.optim.Optimizer, gradient: torch.Tensor, norm: float, rate: float) -> None:
        """Clip a member's gradient, of this norm, and take its step."""
        if norm + CLIP_EPSILON > self.controls.clip_norm:
            gradient.mul_(self.controls.clip_norm / (norm + CLIP_EPSILON))
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()

    def _by_length(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        return [sorted(own, key=lambda row: len(self.tokens[row])) for own in rows]

    def parts(self, rows: list[list[int]]) -> Iterator[tuple[list[list[int]], range]]:
        """The passes of a step: rows of so many members as are computed at once, a micro-batch of each."""
        for first in range(0, len(rows), self.at_once):
            members = range(first, min(first + self.at_once, len(rows)))
            for start in range(0, len(rows[0]), self.micro_batch):
                yield [rows[member][start : start + self.micro_batch] for member in members], members

    def _batch(self, rows: list[list[int]], members: range) -> object:
        """These rows on the device, as they were laid out ahead if they were."""
        ahead, self.ahead = self.ahead, None
        if ahead is not None and ahead[:2] == (rows, members):
            return ahead[2]
        return self.objective.batch(rows, members)

    def accumulate(self, rows: list[list[int]]) -> torch.Tensor:
        """Sum the gradients of all micro-batches into the masters'; return each member's mean loss, by its rows'
        weights."""
        wide = self.trainables.masters.dtype
        weights = torch.tensor([float(self.objective.weight(own)) for own in rows])
        scales = torch.tensor([1.0 if c.scaler is None else c.scaler.scale for c in self.courses])
        factors = on_device((scales / weights).to(wide), self.device)
        weights = on_device(weights.to(wide), self.device)
        while True:
            pass_ = self.replay or self._pass()
            try:
                totals = torch.zeros(len(rows), dtype=wide, device=self.device)
                for number, (chosen, members) in enumerate(self.parts(rows)):
                    own = slice(members.start, members.stop)
                    totals[own] += pass_(self._batch(chosen, members), factors[own], number == 0)
                return totals / weights
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self.trainables.clear()
                if self.replay is not None and self.replay.forget("out of memory"):
                    torch.cuda.empty_cache()
                    continue
                if self.micro_batch == 1 and self.at_once == 1 and (self.recomputes or not self._can_recompute()):
                    raise DoesNotFitError(
                        "train step: out of memory at one example, got a micro-batch of 1; use a smaller base or method"
                    ) from None
            if self.at_once > 1:
                self.at_once //= 2
            elif self.micro_batch > 1:
                self.micro_batch //= 2
            else:
                self.recomputes = True
                self.replay = self._replay()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _can_recompute(self) -> bool:
        """Whether the layers are walked, which alone can be computed again."""
        return blocks.fits(self.objective.backbone)

    def _write(self, folder: Path, *, member: int, pack: list[str] | None) -> None:
        """Put a member's masters, moments and step into a checkpoint; no pickle.

        `pack` are the courses that go on from it together; None at the end of a rung, where that is left open.
        """
        held: dict[str, torch.Tensor] = {"masters": self.trainables.masters[member]}
        counts = {}
        for place, group in enumerate(self.optimisers[member].param_groups):
            for key, value in self.optimisers[member].state[group["params"][0]].items():
                kept = held if isinstance(value, torch.Tensor) else counts
                kept[f"{place}.{key}"] = value
        write(folder / "state.safetensors", held)
        course = self.courses[member]
        state = {
            "trial": course.trial.course,
            "pack": pack,
            "micro_batch": self.micro_batch,
            "at_once": self.at_once,
            "recomputes": self.recomputes,
            "counts": counts,
            "scaler": None if course.scaler is None else vars(course.scaler),
            "diverged": self.diverged.get(member),
        }
        (folder / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")

    @property
    def pack(self) -> list[str]:
        """The courses that are trained together."""
        return [course.trial.course for course in self.courses]

    def _resume(self, checkpoints: Sequence[Path]) -> None:
        """Continue from the newest valid checkpoint that all members have, if there is one."""
        found = common_checkpoint(checkpoints)
        if found is None:
            return
        step, folders = found
        states = [json.loads((folder / "state.json").read_text(encoding="utf-8")) for folder in folders]
        for course, folder, state in zip(self.pack, folders, states, strict=True):
            if state["trial"] != course or state["pack"] not in (None, self.pack):
                kind = "pack" if state["trial"] in self.pack else "trial"
                raise IntegrityError(f"{folder}: of another {kind}, got {state['trial']}; remove it")
        if self.warm_start is not None and step > self.merge_at:
            self.merge()
        for member, (folder, state) in enumerate(zip(folders, states, strict=True)):
            self._read(folder, state, member)
            self.at_once = min(self.at_once, state["at_once"])
            self.micro_batch = min(self.micro_batch, state["micro_batch"])
            self.recomputes = self.recomputes or state["recomputes"]
        self.replay = self._replay()
        self.trainables.publish()
        self.first_step = step

    def _read(self, folder: Path, state: dict, member: int) -> None:
        moments: dict[int, dict] = {}
        with safe_open(folder / "state.safetensors", framework="pt") as file:  # the device holds no masters twice
            self.trainables.masters[member].copy_(file.get_tensor("masters"))
            kept = {key: file.get_tensor(key).to(self.device) for key in file.keys() if key != "masters"}
        for key, value in (kept | state["counts"]).items():
            place, kind = key.split(".", 1)
            moments.setdefault(int(place), {})[kind] = value
        for place, group in enumerate(self.optimisers[member].param_groups):
            if place in moments:
                self.optimisers[member].state[group["params"][0]] = moments[place]
        if state["scaler"] is not None:
            vars(self.courses[member].scaler).update(state["scaler"])
        if state["diverged"] is not None:
            self.diverged[member] = state["diverged"]


def forward_and_backward(
    objective: Objective,
    trainables: Trainables,
    recomputes: bool,
    batch: object,
    factors: torch.Tensor,
    first: bool,
) -> torch.Tensor:
    """Add the gradients of a batch's losses times factors to the masters', or replace them by the first of a step.

    Returns the losses (members,).
    """
    with blocks.recomputing(recomputes):
        losses = objective.losses(batch)
    (losses * factors.to(losses)).sum().backward()
    trainables.collect(first=first)
    return losses.detach()


def is_out_of_memory(error: BaseException) -> bool:
    """Tell running out of memory, on a GPU or the host, from other failures."""
    texts = ("can't allocate memory", "not enough memory", "out of memory", "bad allocation")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in texts)


@contextmanager
def does_not_fit(what: str) -> Iterator[None]:
    """Turn running out of memory into a result."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        first_line = str(error).partition("\n")[0]
        raise DoesNotFitError(f"{what}: out of memory, got {first_line}; use a smaller base or method") from None
