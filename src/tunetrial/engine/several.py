"""Several adapters over one resident base: asked together, or one trained from where another ended."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from tunetrial.core.engine import Session
from tunetrial.core.errors import ModelError
from tunetrial.core.evidence import TaskData
from tunetrial.core.study import Trial
from tunetrial.engine import adapters
from tunetrial.engine.combine import Adapter, LowRank, filled, of_masters, spec_of
from tunetrial.engine.language import TextReader
from tunetrial.engine.loop import does_not_fit
from tunetrial.engine.merge import PREFIX


@contextmanager
def attached(session: Session, trial: Trial, given: Sequence[Adapter]) -> Iterator["Several"]:
    """Adapters as members of one pack, over the base as the trial wants it stored; they are rounded to the compute
    dtype, as those of a run are.

    Raises:
        DoesNotFitError: They do not fit beside the base, all together.
    """
    specs = [spec_of(adapter) for adapter in given]
    try:
        with does_not_fit(f"combine: {len(given)} adapters side by side"):
            session.prepare(trial)
            adapters.attach(session.model, specs, seeds=[0] * len(specs))
            layers = adapters.adapted(session.model)
            for member, (adapter, spec) in enumerate(zip(given, specs, strict=True)):
                weights = {}
                for path, one in adapter.items():
                    weights[f"{PREFIX}{path}.lora_A.weight"] = filled(one.a, spec.rank, 0)
                    weights[f"{PREFIX}{path}.lora_B.weight"] = filled(one.b, spec.rank, 1)
                adapters.take_in(layers, weights, member=member)
        yield Several(session, len(given))
    finally:
        if session.model is not None:
            adapters.detach(session.model)


class Several:
    """Adapters in hand, which answer the rows of any task that is read as text."""

    def __init__(self, session: Session, members: int):
        self.session, self.members = session, members

    def reader(self, trial: Trial, data: TaskData) -> TextReader:
        """What reads the answers to a task, of every adapter."""
        return self.session.reader([trial] * self.members, data)


def train(session: Session, trial: Trial, data: TaskData, *, start: Adapter | None = None) -> tuple[Adapter, float]:
    """Train an adapter by the one loop, from another of its layers and rank or as a run begins; no checkpoints.

    Returns:
        What it adds to the base, fp32, and the seconds of its steps.
    Raises:
        DivergedError: Its numbers are no longer finite.
        DoesNotFitError: Memory runs out even at one example.
    """
    run = session.start(trial, data)
    scaling = run.adapter.scaling
    if start is not None:
        _begin_at(run.trainables, start, scaling)
    seconds = sum(step.seconds for step in run.steps(None))
    return of_masters(run.trainables.member(0), scaling), seconds


@torch.no_grad()
def _begin_at(trainables, start: Adapter, scaling: float) -> None:
    """Put an adapter in place of what was drawn, in the masters and, rounded, in the model."""
    taken = 0
    for name, master in trainables.member(0).items():
        path, _, part = name.partition(".")[2].rpartition(".")
        one: LowRank | None = start.get(path)
        source = None if one is None else one.a if part == "lora_A" else one.b / scaling
        if source is None or source.shape != master.shape:
            raise ModelError(f"combine: no adapter to go on from for {path}; name adapters of one arm")
        master.copy_(source)
        taken += 1
    if taken != 2 * len(start):
        raise ModelError(f"combine: the adapter to go on from has other layers, got {len(start)}; name one arm's")
    trainables.publish()
