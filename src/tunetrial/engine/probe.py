"""What an arm costs alone on the machine: load, step, evaluate, save and peak memory, each timed apart."""

import gc
import itertools
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from tunetrial.core.evidence import Measurement, TaskData
from tunetrial.core.study import Trial
from tunetrial.engine.quantised import resident_bytes

WARM_UP, TIMED, SINGLE = 4, 20, 20
SETTLED, MOST_BLOCKS = 0.95, 10


def measure(session, trial: Trial, data: TaskData, folder: Path) -> dict[str, Measurement]:
    """Run real steps of the trial until they have settled, cycling through its order, then the other phases.

    Peak memory is the device's on CUDA; on a CPU it is the process's highest resident size above what it was before
    the run began with the base in memory added, where the system tells it (Linux), and absent elsewhere.
    """
    clock = Clock(session.device)
    session.prepare(trial)
    load_s = clock.time(lambda: session.load(session.model.dtype))
    gc.collect()
    memory = Peak(session)
    run = session.start(trial, data)
    order, rate = run.loop.order, trial.learning_rate * 1e-3
    blocks = MOST_BLOCKS if session.device.type == "cuda" else 0
    timed = settled(lambda number: clock.time(lambda: run.loop.step(order[number % len(order)], rate)), blocks=blocks)
    step_s = [seconds for _, seconds in timed]
    tokens = [len(run.loop.tokens[row]) for number, _ in timed for row in order[number % len(order)]]
    peak = memory.read()
    examples = data.splits["validation"]
    run.predict(examples[:1])
    evaluate_s = clock.time(lambda: run.predict(examples))
    single_s = [clock.time(lambda e=e: run.predict([e])) for e in (examples * SINGLE)[:SINGLE]]
    save_s = clock.time(lambda: run.save(folder))
    artifact_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder)
    moments = sum(t.numel() * t.element_size() for s in run.loop.optimiser.state.values() for t in s.values() if t.ndim)
    found = {
        "load_s": Measurement(value=load_s, unit="s"),
        "base_bytes": Measurement(value=memory.base_bytes, unit="bytes"),
        "step_s": Measurement(value=statistics.median(step_s), unit="s", n=len(step_s)),
        "tokens_per_s": Measurement(value=sum(tokens) / sum(step_s), unit="tokens/s", n=len(step_s)),
        "evaluate_examples_per_s": Measurement(value=len(examples) / evaluate_s, unit="examples/s", n=len(examples)),
        "latency_s": Measurement(value=statistics.median(single_s), unit="s", n=len(single_s)),
        "save_s": Measurement(value=save_s, unit="s"),
        "artifact_bytes": Measurement(value=artifact_bytes, unit="bytes"),
        "trainable_parameters": Measurement(value=run.trainables.count(), unit="weights"),
        "optimizer_state_bytes": Measurement(value=moments, unit="bytes"),
    }
    if peak is not None:
        found["peak_bytes"] = Measurement(value=peak, unit="bytes")
    return found


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
        self.wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

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
