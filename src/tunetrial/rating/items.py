"""What is held against each other: answers to one request, in pairs and both orders, drawn by a seed."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from tunetrial.core.errors import DataError


@dataclass(frozen=True)
class Item:
    """One request and each arm's answer to it; `seed` is the training seed of the answers, where there are several."""

    id: str
    prompt: str
    answers: Mapping[str, str]
    seed: int | None = None


@dataclass(frozen=True)
class Pair:
    """Two arms' answers to one item, in the order in which they are shown."""

    item: Item
    first: str
    second: str

    @property
    def texts(self) -> tuple[str, str]:
        return self.item.answers[self.first], self.item.answers[self.second]

    @property
    def same(self) -> bool:
        """Whether both are one text, white space at the ends apart: a tie that nobody need be asked about."""
        return self.texts[0].strip() == self.texts[1].strip()

    @property
    def key(self) -> tuple[str, int | None, frozenset[str]]:
        """What both orders of a pair share."""
        return self.item.id, self.item.seed, frozenset((self.first, self.second))


def pairs(items: Sequence[Item], seed: int) -> list[Pair]:
    """Every pair of arms of every item in both orders, all of them shuffled together by the seed.

    Raises:
        DataError: An item has fewer than two answers, or occurs twice at one training seed.
    """
    _check(items, least=2)
    every = [Pair(item, *order) for item in items for order in permutations(sorted(item.answers), 2)]
    random.Random(seed).shuffle(every)
    return every


def singles(items: Sequence[Item], seed: int) -> list[tuple[Item, str]]:
    """Every item with each of its arms, shuffled by the seed; raises as `pairs`, but for single answers."""
    _check(items, least=1)
    every = [(item, arm) for item in items for arm in sorted(item.answers)]
    random.Random(seed).shuffle(every)
    return every


def _check(items: Sequence[Item], *, least: int) -> None:
    seen = set()
    for item in items:
        if len(item.answers) < least:
            raise DataError(f"item {item.id!r}: needs {least} answers, got {len(item.answers)}; give one of each arm")
        if (item.id, item.seed) in seen:
            raise DataError(f"item {item.id!r}: occurs twice at seed {item.seed}, got {len(items)} items; keep one")
        seen.add((item.id, item.seed))
