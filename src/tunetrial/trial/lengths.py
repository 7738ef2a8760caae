"""The rows of a step as a command line asks for them: all of one length, "16x512", or of the lengths in a file."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunetrial.core.errors import ConfigError

MOST = 10**7
LIKE = "rows x tokens, as in 16x512, or 16xFILE, a file of the tokens of each row"
SEED = 0  # in whose order rows of a file are taken


@dataclass(frozen=True)
class Steps:
    """Optimiser steps of `batch` rows: the tokens of the rows of the `fullest`, which memory must hold, and of the
    `least`; `mean_tokens` are those of a mean step. Where rows were longer than the base reads they are `cut`. `said`
    tells the user."""

    batch: int
    fullest: tuple[int, ...]
    least: tuple[int, ...]
    mean_tokens: float
    said: str
    cut: bool = False

    @property
    def longest(self) -> int:
        return max(self.fullest)

    @property
    def mean_share(self) -> float:
        """Where a mean step lies between the least (0) and the fullest (1)."""
        wide = sum(self.fullest) - sum(self.least)
        return (self.mean_tokens - sum(self.least)) / wide if wide else 1.0


def steps_of(asked: str, context: int) -> Steps:
    """Read `--step`; longer rows are cut at the base's context. Rows of a file are shuffled as in training.

    Raises:
        ConfigError: It is not of this form, or the file is not there or has something else than numbers in it.
    """
    found = re.fullmatch(r"\s*(.+?)\s*[x×X]\s*(.+?)\s*", asked)
    batch = whole("--step", found[1] if found else asked, LIKE)
    if found is None:
        raise ConfigError(f"--step: no tokens, got {asked.strip()[:20]!r}; give {LIKE}")
    if re.fullmatch(r"[-+]?\d+", found[2]):
        tokens = whole("--step", found[2], LIKE)
        row = min(tokens, context)
        return Steps(
            batch, (row,) * batch, (row,) * batch, batch * row, f"{batch} rows of {tokens} tokens", tokens > row
        )
    lengths = _read(found[2])
    steps = by_order([min(tokens, context) for tokens in lengths], batch, said=f"{batch} of the rows of {found[2]}")
    return replace(steps, cut=max(lengths) > context)


def by_order(lengths: Sequence[int], batch: int, *, said: str, seed: int = SEED) -> Steps:
    """The steps of an epoch over rows of these lengths, in the order of a seed."""
    from tunetrial.engine.batches import order

    steps = order(len(lengths), epochs=1, batch_examples=batch, seed=seed)
    by_tokens = sorted((tuple(lengths[row] for row in rows) for rows in steps), key=sum)
    ordered = sorted(lengths)
    ends = f"{ordered[0]} to {ordered[-1]} tokens, {ordered[len(ordered) // 2]} in the middle"
    told = f"{said}: {ends}; at most {sum(by_tokens[-1])} in a step"
    return Steps(batch, by_tokens[-1], by_tokens[0], sum(lengths) / len(steps), told)


def whole(option: str, text: str, like: str) -> int:
    """A whole number from 1 on.

    Raises:
        ConfigError: It is none; `like` says what to give.
    """
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= MOST:
        raise ConfigError(f"{option}: not a number from 1 to {MOST:,}, got {text.strip()[:20]!r}; give {like}")
    return value


def _read(name: str) -> list[int]:
    path = Path(name)
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise ConfigError(
            f"--step: neither a number nor a file of numbers, got {name[:60]!r} ({why}); give {LIKE}"
        ) from None
    if not words:
        raise ConfigError(f"--step: {name[:60]}: no lengths, got an empty file; give {LIKE}")
    return [whole(f"--step: {name[:60]}", word, "the tokens of each row, one a line") for word in words]
