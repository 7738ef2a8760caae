"""What an arm costs alone on the machine: load, step, evaluate, save and peak memory, each timed apart."""

import gc
import itertools
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from tunetrial.core.evidence import Measurement, TaskData
from tunetrial.core.study import Trial
from tunetrial.engine import energy
from tunetrial.engine.loop import Loop
from tunetrial.engine.quantised import resident_bytes

WARM_UP, TIMED, SINGLE = 4, 20, 20
SETTLED, MOST_BLOCKS = 0.95, 10


def measure(session, trial: Trial, data: TaskData, folder: Path) -> dict[str, Measurement]:
    """Run real steps of the trial until they have settled, cycling through its order, then the other phases.

    Peak memory is the device's on CUDA; on a CPU it is the process's highest resident size above what it was before
    the run began with the base in memory added, where the system tells it (Linux), and absent elsewhere.

    The steps of a warm start are timed before and after its merge, and a step's mean time is over both, by their
    number in a run.
    """
    clock = Clock(session.device)
    session.prepare(trial)
    load_s = clock.time(lambda: session.load(session.model.dtype))
    gc.collect()
    memory = Peak(session)
    run = session.start(trial, data)
    pace = train(run.loop, clock, rate=trial.learning_rate * 1e-3)
    peak = memory.read()
    joules = _joules(run.loop, session.device, clock, rate=trial.learning_rate * 1e-3)
    examples = data.splits["validation"]
    run.predict(examples[:1])
    evaluate_s = clock.time(lambda: run.predict(examples))
    single_s = [clock.time(lambda e=e: run.predict([e])) for e in (examples * SINGLE)[:SINGLE]]
    save_s = clock.time(lambda: run.save(folder))
    artifact_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder)
    states = run.loop.optimisers[0].state.values()
    moments = sum(tensor.numel() * tensor.element_size() for kept in states for tensor in kept.values() if tensor.ndim)
    found = {
        "load_s": Measurement(value=load_s, unit="s"),
        "base_bytes": Measurement(value=memory.base_bytes, unit="bytes"),
        "step_s": Measurement(value=pace.step_s, unit="s", n=pace.steps),
        "tokens_per_s": Measurement(value=pace.tokens_per_s, unit="tokens/s", n=pace.steps),
        "evaluate_examples_per_s": Measurement(value=len(examples) / evaluate_s, unit="examples/s", n=len(examples)),
        "latency_s": Measurement(value=statistics.median(single_s), unit="s", n=len(single_s)),
        "save_s": Measurement(value=save_s, unit="s"),
        "artifact_bytes": Measurement(value=artifact_bytes, unit="bytes"),
        "trainable_parameters": Measurement(value=run.trainables.count(), unit="weights"),
        "optimizer_state_bytes": Measurement(value=moments, unit="bytes"),
    }
    if peak is not None:
        found["peak_bytes"] = Measurement(value=peak, unit="bytes")
    if joules is not None:
        found["step_j"] = Measurement(value=joules[0], unit="J", n=joules[1])
    return found


@dataclass(frozen=True)
class Pace:
    """How fast a loop trains: the median time of a step, tokens a second, and of how many steps."""

    step_s: float
    tokens_per_s: float
    steps: int

    def then(self, other: "Pace", share: float) -> "Pace":
        """Both, one after the other: this one for a share of the steps."""
        step_s = share * self.step_s + (1 - share) * other.step_s
        token_s = share / self.tokens_per_s + (1 - share) / other.tokens_per_s
        return Pace(step_s, 1 / token_s, self.steps + other.steps)


def train(loop: Loop, clock: "Clock", *, rate: float) -> Pace:
    """Take steps of a loop, of a warm start on both sides of its merge."""
    if loop.warm_start is None:
        return _pace(loop, clock, rate)
    share = loop.merge_at / loop.steps_in_all
    first = _pace(loop, clock, rate)
    loop.merge()
    return first.then(_pace(loop, clock, rate), share)


def _pace(loop: Loop, clock: "Clock", rate: float) -> Pace:
    order, blocks = loop.courses[0].order, MOST_BLOCKS if clock.cuda else 0
    timed = settled(lambda number: clock.time(lambda: loop.step([order[number % len(order)]], [rate])), blocks=blocks)
    step_s = [seconds for _, seconds in timed]
    tokens = sum(len(loop.tokens[row]) for number, _ in timed for row in order[number % len(order)])
    return Pace(statistics.median(step_s), tokens / sum(step_s), len(step_s))


def _joules(loop: Loop, device: torch.device, clock: "Clock", *, rate: float) -> tuple[float, int] | None:
    """Energy of a settled step, and over how many; None where no GPU counts it."""
    read = energy.counter(device)
    if read is None:
        return None
    order = loop.courses[0].order
    return energy.a_step(lambda number: clock.time(lambda: loop.step([order[number % len(order)]], [rate])), read)


def settled(take: Callable[[int], float], *, blocks: int = MOST_BLOCKS) -> list[tuple[int, float]]:
    """Take numbered steps until TIMED of them are no faster than the TIMED before; these last, with their seconds.

    Kernels and memory are prepared at first use, and in a fresh process on a GPU that goes on for dozens of steps,
    each two or three times slower than the hundreds that follow: up to `blocks` more of them are taken. On a CPU
    WARM_UP steps are enough.
    """
    numbers = itertools.count()
    block = lambda size: [(number, take(number)) for number in itertools.islice(numbers, size)]  # noqa: E731
    block(WARM_UP)
    last = block(TIMED)
    for _ in range(blocks):
        before, last = last, block(TIMED)
        if _middle(last) > SETTLED * _middle(before):
            break
    return last


def _middle(timed: list[tuple[int, float]]) -> float:
    return statistics.median(seconds for _, seconds in timed)


class Clock:
    """Wall time of a call, with the device's queue empty before and after."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.wait = torch.cuda.synchronize if self.cuda else lambda: None

    def time(self, call: Callable[[], object]) -> float:
        self.wait()
        started = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - started


class Peak:
    """Peak memory from now on, the resident base included."""

    def __init__(self, session):
        self.cuda = session.device.type == "cuda"
        self.clear = Path("/proc/self/clear_refs")
        self.base_bytes = resident_bytes(session.model)
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        elif self.clear.exists():
            self.clear.write_text("5")
            self.before = psutil.Process().memory_info().rss

    def read(self) -> int | None:
        if self.cuda:
            return torch.cuda.max_memory_allocated()
        if not self.clear.exists():
            return None
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 - self.before + self.base_bytes
