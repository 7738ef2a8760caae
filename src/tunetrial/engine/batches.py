"""Which examples each optimiser step sees, in which order, and the digest that proves it equal between arms."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from tunetrial.core.evidence import Example
from tunetrial.core.records import digest
from tunetrial.engine.streams import stream


def order(rows: int, *, epochs: int, batch_examples: int, seed: int) -> list[np.ndarray]:
    """Shuffle the rows once an epoch and cut them into steps; the last step of an epoch may be smaller.

    Returns one array of row numbers a step.
    """
    steps = []
    for epoch in range(epochs):
        shuffled = np.random.default_rng(stream(seed, f"order.{epoch}")).permutation(rows)
        steps += [shuffled[first : first + batch_examples] for first in range(0, rows, batch_examples)]
    return steps


def token_digest(steps: Sequence[np.ndarray], examples: Sequence[Example], tokens: Sequence[list[int]]) -> str:
    """SHA-256 over ids and tokens of every step, in order: what "same examples, order and batch" is checked by."""
    content = hashlib.sha256()
    for step in steps:
        for row in step:
            content.update(f"{examples[row].id}:".encode())
            content.update(np.asarray(tokens[row], dtype="<i4").tobytes())
            content.update(b";")
        content.update(b"|")
    return content.hexdigest()


def examples_digest(steps: Sequence[np.ndarray], examples: Sequence[Example]) -> str:
    """SHA-256 over the ids of every step, in order: what is the same where tokenizers differ."""
    return digest([[examples[row].id for row in step] for step in steps])


def learning_rate(step: int, steps: int, *, peak: float, warmup_share: float) -> float:
    """The rate of step 0, 1, …: linear from 0 over ceil(share * steps), then linear to 0, as HF Trainer's "linear"."""
    warmup = math.ceil(steps * warmup_share)
    if step < warmup:
        return peak * step / warmup
    return peak * max(0.0, (steps - step) / max(1, steps - warmup))


def first_steps(share: float, steps: int) -> int:
    """How many of so many steps a warm start begins with: its share, rounded, and never the last step."""
    return min(round(share * steps), steps - 1)
