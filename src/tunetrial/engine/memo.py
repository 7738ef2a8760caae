"""What a worker computes of one base again and again, kept by what it was computed from.

memo = Memo()
memo.recall(owner, key, make)        # makes it at first, and has it the next time
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
import torch

Made = TypeVar("Made", bound=torch.Tensor | Mapping[object, np.ndarray])
MOST_BYTES = 2**27


class Memo:
    """Tensors, and arrays by name, of one owner and key each. What was not asked for the longest goes first, so that
    all together take 128 MiB at most; what is larger is not kept. Nobody may write into what it gives."""

    def __init__(self, most_bytes: int = MOST_BYTES):
        self.most_bytes = most_bytes
        self._held: OrderedDict[tuple[Hashable, Hashable], object] = OrderedDict()

    def recall(self, owner: Hashable, key: Hashable, make: Callable[[], Made]) -> Made:
        if (owner, key) not in self._held:
            self._held[owner, key] = make()
        self._held.move_to_end((owner, key))
        found = self._held[owner, key]
        while self.bytes > self.most_bytes:
            self._held.popitem(last=False)
        return found

    @property
    def bytes(self) -> int:
        """What it holds."""
        return sum(map(_bytes, self._held.values()))

    def clear(self) -> None:
        self._held.clear()


def _bytes(held: object) -> int:
    return held.nbytes if isinstance(held, torch.Tensor) else sum(array.nbytes for array in held.values())
