"""Whose tokens are whose: a batch of several members of a pack, laid member after member.

Linear layers of the frozen base do not care whose token they see; low-rank layers do, and are told here. Which segments
a pass is over is said around it, since between us and such a layer stand transformers' own modules:

    with over(layout.segments):
        backbone(...)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Segments:
    """Consecutive members of a pack, the rows of each in the batch, and the tokens of these rows.

    Without `tokens` every row has as many as any other: a padded batch, or one token a row. Idle tokens beyond all
    rows, which nothing reads, are nobody's, but for one member alone. `ends` (members,), int32 on the device, is where
    each member's tokens end, where that is known beforehand.
    """

    members: range
    rows: tuple[int, ...]
    tokens: tuple[int, ...] | None = None
    ends: torch.Tensor | None = None

    def by_rows(self) -> "Segments":
        """The same rows, as many tokens in each."""
        return replace(self, tokens=None, ends=None)

    def bounds(self, count: int) -> Iterator[tuple[int, int, int]]:
        """Each member with where its tokens begin and end among `count`. Of one member they are all: shapes are then
        those of the batch, of which there are few."""
        tokens = self.tokens or tuple(rows * (count // sum(self.rows)) for rows in self.rows)
        start = 0
        for member, own in zip(self.members, tokens, strict=True):
            end = count if len(tokens) == 1 else start + own
            yield member, start, end
            start = end

    def offsets(self, count: int, device: torch.device) -> torch.Tensor:
        """Where each member's tokens end among `count`, (members,) int32 on the device; idle ones go with the last, so
        that every token is written."""
        if self.ends is not None:
            return self.ends
        ends = [end for _, _, end in self.bounds(count)]
        return torch.tensor([*ends[:-1], count], dtype=torch.int32, device=device)


ALONE = Segments(range(1), (1,))
_CURRENT: ContextVar[Segments] = ContextVar("segments", default=ALONE)


@contextmanager
def over(segments: Segments) -> Iterator[None]:
    """Say whose tokens the passes within are over; otherwise all are the first member's."""
    token = _CURRENT.set(segments)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current() -> Segments:
    """Whose tokens the pass under way is over."""
    return _CURRENT.get()
