"""On which kind of device a tensor is computed with: its own, or, where it has no storage, the one a trace is for.

Code that goes by the device asks here, so that a pass over tensors of the meta device takes the way it takes there.

    with assumed(Place("cuda", capability=(9, 0), processors=132)):
        kind(torch.empty(2, device="meta"))       # "cuda"
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch


@dataclass(frozen=True)
class Place:
    """A device that need not be there; `capability` and `processors` (streaming multiprocessors) are CUDA's."""

    kind: Literal["cpu", "cuda"]
    capability: tuple[int, int] = (9, 0)
    processors: int = 132


def at_hand(device: torch.device) -> Place:
    """A device that is there."""
    if device.type != "cuda":
        return Place(device.type)
    found = torch.cuda.get_device_properties(device)
    return Place("cuda", (found.major, found.minor), found.multi_processor_count)


_ASSUMED: ContextVar[Place] = ContextVar("assumed")


@contextmanager
def assumed(place: Place) -> Iterator[None]:
    """Take tensors without storage to be there."""
    token = _ASSUMED.set(place)
    try:
        yield
    finally:
        _ASSUMED.reset(token)


def kind(of: torch.Tensor | torch.device) -> str:
    """ "cuda", "cpu", or whatever the device is called.

    Raises:
        LookupError: It is the meta device, and nothing is assumed.
    """
    device = of.device if isinstance(of, torch.Tensor) else of
    return _ASSUMED.get().kind if device.type == "meta" else device.type


def is_cuda(of: torch.Tensor | torch.device) -> bool:
    return kind(of) == "cuda"


def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a CUDA device."""
    return _ASSUMED.get().capability if device.type == "meta" else _capability(device)


@lru_cache(maxsize=16)
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def processors() -> int:
    """How many streaming multiprocessors are assumed."""
    return _ASSUMED.get().processors
