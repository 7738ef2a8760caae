"""Wall time of optimiser steps, with the device's queue empty at every mark, and peak memory."""

import gc
import resource
import statistics
import time

import torch


class Laps:
    """Call `start` before the first step and `lap` after each; the first `warm` steps are cold, the rest timed in
    blocks, whose median is taken. Peak memory is counted from here on, with what is resident."""

    def __init__(self, device: str, *, warm: int, blocks: int = 5, block: int = 10):
        self.device, self.warm, self.blocks, self.block = device, warm, blocks, block
        self.count, self.tokens = 0, 0
        self.marks: list[tuple[float, int]] = []
        self.first_loss: float | None = None
        if device == "cuda":
            gc.collect()  # of what a contender before this one has left
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    @property
    def steps(self) -> int:
        """How many to take."""
        return self.warm + self.blocks * self.block

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(self) -> None:
        self.began = self.now()

    def lap(self, tokens: int) -> None:
        self.count += 1
        self.tokens += tokens
        if self.count >= self.warm and (self.count - self.warm) % self.block == 0:
            self.marks.append((self.now(), self.tokens))

    def measured(self) -> dict[str, object]:
        """Seconds of a step, real tokens a second, and seconds of the cold steps in all.

        Raises:
            ValueError: Fewer steps were taken than asked for: not the same work.
        """
        if self.count != self.steps:
            raise ValueError(f"laps: not the steps that were asked for, got {self.count} of {self.steps}")
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        spent = [after[0] - before[0] for before, after in pairs]
        rates = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairs]
        return {
            "step_s": statistics.median(spent) / self.block,
            "fastest_step_s": min(spent) / self.block,
            "tokens_per_s": statistics.median(rates),
            "cold_s": self.marks[0][0] - self.began,
            "cold_steps": self.warm,
            "timed_steps": self.steps - self.warm,
            **({} if self.first_loss is None else {"first_loss": self.first_loss}),
            "peak_bytes": peak_bytes(self.device),
        }


def peak_bytes(device: str) -> int:
    """The most memory that was allocated on the device; on a CPU the process's highest resident size, code included."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
