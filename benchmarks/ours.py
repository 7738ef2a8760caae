"""tunetrial's side: trials made by hand, trained through the engine's public door."""

from collections.abc import Sequence
from functools import lru_cache

from contest import Measured, Options
from laps import Laps
from shapes import base, mfu
from tunetrial import methods
from tunetrial.core.errors import DivergedError
from tunetrial.core.evidence import TaskData
from tunetrial.core.study import Arm, Controls, Readout, Trial
from tunetrial.engine.torch_engine import TorchEngine, TorchSession


@lru_cache(maxsize=1)
def session(shape: str, options: Options) -> TorchSession:
    """The base of a shape in memory, computed in what the device has natively; the one last asked for stays."""
    engine = TorchEngine(device=options.device)
    return engine.open(base(shape, options.folder, options.device), engine.precision())


def trial(
    method: str,
    settings: dict[str, object],
    *,
    precision: str,
    readout: Readout = "head",
    batch: int = 16,
    seed: int = 1,
    rate: float = 1e-4,
    longest: int | None = None,
) -> Trial:
    """One epoch of `batch` examples a step; `longest` bounds a completion, where the readout is text."""
    controls = Controls(
        base_fingerprint="random",
        precision=precision,
        readout=readout,
        epochs=1,
        batch_examples=batch,
        max_tokens=8192,
        max_new_tokens=longest,
    )
    return Trial(
        arm=Arm(name=method, method=method, settings=methods.settle(method, settings)),
        controls=controls,
        task="benchmark",
        data_digest="drawn",
        learning_rate=rate,
        seed=seed,
        purpose="tune",
    )


def train(held: TorchSession, trials: Sequence[Trial], data: TaskData, laps: Laps):
    """Take all steps of trials that train together, or of one alone, and return the pack. A lap is one step of all.

    Raises:
        DivergedError: A member stopped early: not the same work.
    """
    pack = held.start_pack(trials, data)
    laps.start()
    for taken in pack.steps(None):
        laps.lap(sum(step.tokens for step in taken))
        laps.first_loss = taken[0].loss if laps.count == 1 else laps.first_loss
    if pack.diverged:
        raise DivergedError(f"benchmark: a member stopped, got {pack.diverged}; lower the rates")
    return pack


def measured(pack, laps: Laps, *, work: dict, method: str, device: str) -> Measured:
    """The laps, with the share of the device's rate that they used, and how the engine says it executed them."""
    found = laps.measured()
    return {**found, "mfu": mfu(work, method, found["tokens_per_s"], device), "settings": pack.facts(0)}
