"""How long it takes to look at finals besides their answers: passes over rows and texts, decompositions of matrices.

Tokens are those that `engine.observed` reads, each at what evaluating one takes, by how many times they are read. That
leaves out what is done with states on the host, and logits of whole texts: `BESIDE` has both, as two studies of a base
of 12 million weights showed them on CPUs, where it lay between 0.7 and 1.8.
"""

from collections.abc import Iterable

from tunetrial import methods
from tunetrial.core.evidence import TaskData
from tunetrial.core.pins import OBSERVED_ROWS, OBSERVED_TEXT_TOKENS, TEXT
from tunetrial.core.speed import Range, exactly
from tunetrial.core.study import Arm, Lock
from tunetrial.models import ModelShape

# How often what is looked at is read by a final's own model ("grams" are made of the states that were read), and how
# often once an arm and task: by the base; for the floors as it is, row by row, and in another dtype, which takes about
# twice as long in fp32.
READ = {"forgetting": 1, "states": 1}
READ_ONCE = {"forgetting": 1, "states": 1, "floors": 4}
BESIDE = Range(low=0.5, high=4.0, likely=1.3)
# Operations a second of LAPACK's decompositions: 0.4e11 were found on a core whose products reach 1e11 in fp32.
DECOMPOSED_PER_S = Range(low=1e10, high=4e11, likely=4e10)
TOKEN_BYTES = Range(low=2.5, high=6.0, likely=4.0)


def observing(
    lock: Lock, task: str, arm: Arm, shape: ModelShape, *, data: TaskData | None, row_tokens: Range, token_s: Range
) -> Range:
    """Seconds for one final, with its share of what is looked at once an arm and task.

    Args:
        data: Held-out texts; without them these are taken to be as long as their states are read.
        row_tokens: Of a mean row of the task.
        token_s: Of evaluating one token.
    """
    asked = lock.study.observed("final")
    counts = lock.data[lock.parts(task)[0]].counts
    texts = {split: count for split, count in counts.items() if split.startswith(TEXT)}
    lengths = {split: _text_tokens(data, split) for split in texts}
    rows = exactly(min(OBSERVED_ROWS, counts["test"])) * row_tokens
    read = {
        "forgetting": _sum(exactly(count) * lengths[split] for split, count in texts.items()),
        "states": rows + _sum(exactly(min(OBSERVED_ROWS, n)) * _cut(lengths[split]) for split, n in texts.items()),
    }
    read["floors"], share = read["states"], 1 / lock.study.looks[0]
    times = {what: READ.get(what, 0) + READ_ONCE.get(what, 0) * share for what in asked if what in read}
    passes = _sum(exactly(times[what]) * read[what] * token_s * BESIDE for what in times)
    if "weights" not in asked or not methods.find(arm).tuned:
        return passes
    operations = decompositions(arm, shape)
    rate = DECOMPOSED_PER_S
    return passes + Range(low=operations / rate.high, high=operations / rate.low, likely=operations / rate.likely)


def decompositions(arm: Arm, shape: ModelShape) -> float:
    """Operations of the singular value decompositions of base and tuned matrices, and of the update's values where it
    has full rank (Golub and Van Loan, Matrix Computations, 4th edition, figure 8.6.1: 14 m n^2 + 8 n^3 with vectors,
    4 m n^2 - 4/3 n^3 without)."""
    whole, named = methods.find(arm).trains_base, arm.settings.get("targets", "all-linear")
    targets = shape.projections if whole or named == "all-linear" else named
    total = 0.0
    for m, n in ((max(size), min(size)) for size in map(shape.projections.get, targets)):
        total += 2 * (14 * m * n**2 + 8 * n**3)
        total += 4 * m * n**2 - 4 / 3 * n**3 if whole else 0
    return shape.layers * total


def _text_tokens(data: TaskData | None, split: str) -> Range:
    if data is None:
        return exactly(OBSERVED_TEXT_TOKENS)
    size_bytes = sum(len(row.prompt.encode()) for row in data.splits[split]) / len(data.splits[split])
    ends = {"low": TOKEN_BYTES.high, "high": TOKEN_BYTES.low, "likely": TOKEN_BYTES.likely}
    return Range(**{end: 1 + size_bytes / each for end, each in ends.items()})


def _cut(tokens: Range) -> Range:
    return Range(**{end: min(OBSERVED_TEXT_TOKENS, getattr(tokens, end)) for end in ("low", "high", "likely")})


def _sum(parts: Iterable[Range]) -> Range:
    return sum(parts, exactly(0))
