"""The one training loop: every method, every engine pack of one, every device."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file

from tunetrial.core.checkpoint import newest_checkpoint, save_checkpoint
from tunetrial.core.engine import Step
from tunetrial.core.errors import DivergedError, DoesNotFitError, IntegrityError
from tunetrial.core.evidence import Example
from tunetrial.core.study import Trial
from tunetrial.engine.batches import examples_digest, first_steps, learning_rate, order, token_digest
from tunetrial.engine.tensors import write
from tunetrial.engine.trainables import Trainables, WarmStart


class Objective(Protocol):
    """What is minimised: over an optimiser step, the sum of its rows' losses divided by the sum of their weights."""

    tokens: list[list[int]]

    def weight(self, rows: Sequence[int]) -> int:
        """How much these rows weigh: their number, or their answered tokens."""

    def loss(self, rows: Sequence[int]) -> torch.Tensor:
        """The summed loss of these rows."""


class Loop:
    """AdamW over the examples of one trial, a step at a time.

    A step is `batch_examples` examples whatever the memory: they are computed in micro-batches of like lengths, and
    when memory runs out the micro-batch is halved and the same step begun again.

    In fp16 losses are scaled so that small gradients survive (Micikevicius et al. 2018, arXiv:1710.03740). Where a
    gradient overflows, the scale is halved and the same step begun again: no step is left out, so that all arms take
    equally many.

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
        trial: Trial,
        micro_batch: int | None,
        checkpoint_every_s: float,
        warm_start: WarmStart | None = None,
    ):
        controls = trial.controls
        self.objective, self.trainables, self.tokens = objective, trainables, objective.tokens
        self.trial_id, self.controls, self.peak_rate = trial.id, controls, trial.learning_rate
        self.order = order(
            len(examples), epochs=controls.epochs, batch_examples=controls.batch_examples, seed=trial.seed
        )
        self.token_digest = token_digest(self.order, examples, self.tokens)
        self.examples_digest = examples_digest(self.order, examples)
        self.micro_batch = min(micro_batch or controls.batch_examples, controls.batch_examples)
        self.checkpoint_every_s = checkpoint_every_s
        self.first_step = 0
        self.scaler = Scaler() if controls.precision == "fp16" else None
        self.device = next(iter(trainables.masters.values())).device
        self.warm_start = warm_start
        self.merge_at = 0 if warm_start is None else first_steps(warm_start.share, len(self.order))
        self.optimizer_bits = trial.arm.settings.get("optimizer_bits", 32)
        self.optimiser = self._optimiser()

    def _optimiser(self) -> torch.optim.Optimizer:
        return optimiser(self.trainables.groups(self.controls.weight_decay), bits=self.optimizer_bits)

    def merge(self) -> None:
        """End a warm start: from now on the weights that it is merged into are trained."""
        self.trainables.clear()
        self.trainables = self.warm_start.merge(self.trainables.masters)
        self.optimiser, self.warm_start = self._optimiser(), None

    def rate(self, number: int) -> float:
        """The learning rate of a step, counted from 0."""
        peak = self.peak_rate * (1 if self.warm_start is None else self.warm_start.rate_factor)
        return learning_rate(number, len(self.order), peak=peak, warmup_share=self.controls.warmup_share)

    def steps(self, checkpoint: Path | None, *, most: int | None = None) -> Iterator[Step]:
        """Train to the end, yielding each step; see `core.engine.Run.steps`."""
        if checkpoint is not None:
            self._resume(checkpoint)
        saved = time.perf_counter()
        merge_at = self.merge_at if most is None else min(most, len(self.order)) // 2
        for number in range(len(self.order))[self.first_step : most]:
            started = time.perf_counter()
            if self.warm_start is not None and number >= merge_at:
                self.merge()
            rate = self.rate(number)
            loss, grad_norm = self.step(self.order[number], rate)
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                found = f"loss {loss}, gradient norm {grad_norm}"
                raise DivergedError(f"step {number + 1}: numbers are no longer finite, got {found}; lower the rate")
            tokens = sum(len(self.tokens[row]) for row in self.order[number])
            seconds = time.perf_counter() - started
            yield Step(number + 1, len(self.order), loss, grad_norm, rate, tokens, seconds)
            if checkpoint is not None and time.perf_counter() - saved >= self.checkpoint_every_s:
                save_checkpoint(checkpoint, number + 1, self._write)
                saved = time.perf_counter()

    def step(self, rows: Sequence[int], rate: float) -> tuple[float, float]:
        """Take one optimiser step over these rows; return its mean loss and the gradient norm before clipping."""
        ordered = sorted(rows, key=lambda row: len(self.tokens[row]))
        masters = list(self.trainables.masters.values())
        while True:
            losses = self._accumulate(ordered)
            gradients = [m.grad for m in masters if m.grad is not None]
            if self.scaler is not None:
                torch._foreach_div_(gradients, self.scaler.scale)
            norm = torch.nn.utils.get_total_norm(gradients)
            loss, grad_norm = torch.stack([losses.double(), norm.double()]).tolist()
            if self.scaler is None or self.scaler.accepts(grad_norm):
                break
            self.trainables.clear()
        torch.nn.utils.clip_grads_with_norm_(masters, self.controls.clip_norm, norm)
        if math.isfinite(loss) and math.isfinite(grad_norm):
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            self.optimiser.step()
            self.trainables.publish()
        self.trainables.clear()
        return loss, grad_norm

    def _accumulate(self, rows: list[int]) -> torch.Tensor:
        """Sum the gradients of all micro-batches into the masters; return the mean loss, by the rows' weights."""
        weight = self.objective.weight(rows)
        while True:
            try:
                total = torch.zeros((), device=self.device)
                for first in range(0, len(rows), self.micro_batch):
                    loss = self.objective.loss(rows[first : first + self.micro_batch]) / weight
                    (loss if self.scaler is None else loss * self.scaler.scale).backward()
                    self.trainables.collect()
                    total = total + loss.detach()
                return total
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self.trainables.clear()
                if self.micro_batch == 1:
                    raise DoesNotFitError(
                        "train step: out of memory at one example, got a micro-batch of 1; use a smaller base or method"
                    ) from None
            self.micro_batch //= 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _write(self, folder: Path) -> None:
        """Put masters, moments and the step into a checkpoint; no pickle."""
        tensors = {f"master.{name}": master.detach() for name, master in self.trainables.masters.items()}
        counts = {}
        for name, master in self.trainables.masters.items():
            for key, value in self.optimiser.state[master].items():
                kept = tensors if isinstance(value, torch.Tensor) else counts
                kept[f"{key}.{name}"] = value
        write(folder / "state.safetensors", tensors)
        scaler = None if self.scaler is None else vars(self.scaler)
        state = {"micro_batch": self.micro_batch, "trial": self.trial_id, "counts": counts, "scaler": scaler}
        (folder / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")

    def _resume(self, checkpoint: Path) -> None:
        """Continue from the newest valid checkpoint, if there is one."""
        found = newest_checkpoint(checkpoint)
        if found is None:
            return
        step, folder = found
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state["trial"] != self.trial_id:
            raise IntegrityError(f"{folder}: of another trial, got {state['trial']}; remove it")
        if self.warm_start is not None and step > self.merge_at:
            self.merge()
        tensors = load_file(folder / "state.safetensors", device=str(self.device))
        states: dict[str, dict] = {name: {} for name in self.trainables.masters}
        for key, value in (tensors | state["counts"]).items():
            kind, name = key.split(".", 1)
            states[name][kind] = value
        with torch.no_grad():
            for name, master in self.trainables.masters.items():
                master.copy_(states[name].pop("master"))
                if states[name]:
                    self.optimiser.state[master] = states[name]
        if self.scaler is not None:
            vars(self.scaler).update(state["scaler"])
        self.trainables.publish()
        self.micro_batch, self.first_step = min(self.micro_batch, state["micro_batch"]), step


class Scaler:
    """The scale of losses in fp16: halved when a gradient overflows, doubled after 2,000 steps without."""

    GROW_AFTER = 2000

    def __init__(self) -> None:
        self.scale, self.sound, self.overflows = 2.0**16, 0, 0

    def accepts(self, grad_norm: float) -> bool:
        """Whether the step stands, by the norm of its unscaled gradient. At a scale of 1 it does, and has diverged."""
        if math.isfinite(grad_norm):
            self.sound += 1
            if self.sound % self.GROW_AFTER == 0:
                self.scale *= 2
            return True
        if self.scale <= 1:
            return True
        self.scale, self.sound, self.overflows = self.scale / 2, 0, self.overflows + 1
        return False

    def facts(self) -> dict[str, float]:
        return {"loss_scale": self.scale, "overflows": self.overflows}


def optimiser(groups: list[dict], *, bits: int) -> torch.optim.Optimizer:
    """AdamW with moments in fp32, or in 8 bits with a scale for every 256 (Dettmers et al. 2021, arXiv:2110.02861).

    In 8 bits, moments of tensors of fewer than 4,096 weights stay in fp32.
    """
    betas, eps = (0.9, 0.999), 1e-8
    if bits == 8:
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit([group for group in groups if group["params"]], lr=0.0, betas=betas, eps=eps)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)


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
