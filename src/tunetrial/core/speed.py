"""How fast a device is, as measured on it or as its data sheet has it, and what finished trials showed."""

import datetime
import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from tunetrial.core.records import Record
from tunetrial.core.work import Kernel


class Range(Record):
    """A number before it is measured: between these two if the assumptions hold, and `likely` this one, where the
    parts are counted and not bounded alone."""

    low: float
    high: float
    likely: float | None = None

    def __add__(self, other: "Range") -> "Range":
        likely = None if None in (self.likely, other.likely) else self.likely + other.likely
        return Range(low=self.low + other.low, high=self.high + other.high, likely=likely)

    def __mul__(self, other: "Range") -> "Range":
        likely = None if None in (self.likely, other.likely) else self.likely * other.likely
        return Range(low=self.low * other.low, high=self.high * other.high, likely=likely)


def exactly(value: float) -> Range:
    """A number that is known."""
    return Range(low=value, high=value, likely=value)


class Curve(Record):
    """A rate that depends on a size: points (size, rate), sizes ascending, straight lines between their logarithms, and
    beyond the ends the end's rate."""

    points: tuple[tuple[float, float], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _ascends(self) -> "Curve":
        sizes = [size for size, _ in self.points]
        if sizes != sorted(set(sizes)) or sizes[0] <= 0 or any(rate <= 0 for _, rate in self.points):
            raise ValueError(f"curve: sizes must ascend and all be above 0, got {self.points}")
        return self

    def at(self, size: float) -> float:
        """The rate at a size."""
        if size <= self.points[0][0]:
            return self.points[0][1]
        for (left, low), (right, high) in zip(self.points, self.points[1:], strict=False):
            if size <= right:
                share = math.log(size / left) / math.log(right / left)
                return low * (high / low) ** share
        return self.points[-1][1]


class Products(Record):
    """How fast matrix products (m, k) × (k, n) of one dtype are.

    `operations_per_s` is what very large ones reach, and `halves` the sizes of m, n and k at each of which, the others
    being large, half of it is reached: Hockney's r∞ and n½ (Hockney & Jesshope 1981, Parallel Computers), one n½ a
    dimension. m and n count in whole tiles, as units for products compute them. Nothing is said of memory.
    """

    operations_per_s: float = Field(gt=0)
    halves: tuple[float, float, float]
    tile: int = Field(default=1, ge=1)

    def seconds(self, shape: Sequence[int]) -> float:
        """Of one product (m, n, k), or of a batch of them (batch, m, n, k), without what it waits for memory and before
        it begins."""
        *batch, m, n, k = shape
        wide, high = (-(-size // self.tile) * self.tile for size in (m, n))
        slower = math.prod(1 + half / size for half, size in zip(self.halves, (wide, high, k), strict=True))
        return math.prod(batch) * 2 * wide * high * k * slower / self.operations_per_s


class Speed(Record):
    """What a device computes and moves in a second.

    `products` are by dtype, as torch names it. `attention_operations_per_s` and `bytes_per_s`, by size of what one
    kernel moves, are by kind of kernel, with the dtype after it ("elementwise bfloat16") where that one is known apart.
    `fixed_s` is the least time of a kernel by kind, dtype or not, and of kinds it does not have, 0.

    `launch_s` is what the host takes to hand one kernel to the device, which on a CPU is part of the work, and
    `recorded_launch_s` what a kernel takes besides where passes were recorded and are replayed. `in_pass` is how many
    times longer kernels take in a pass, whose data are in no cache, than one after the other by themselves. `error` are
    times as measured over times as computed from all these, by kind, and of "launch": ranges that have `likely`.

    On a CPU `device` is the processor's name, `threads` how many compute; on a GPU `threads` is absent. `date` is when
    it was measured, or when its source was read; `versions` are those of the libraries it was measured with, and `load`
    the processes that waited for a core when it began, a core: above 1 it was measured too slow, for caches are shared.
    """

    device: str
    kind: Literal["cpu", "cuda"]
    threads: int | None = None
    measured: bool
    date: datetime.date | None
    load: float | None = None
    versions: dict[str, str] = {}
    products: dict[str, Products]
    attention_operations_per_s: dict[str, float]
    bytes_per_s: dict[str, Curve]
    fixed_s: dict[str, float]
    launch_s: float = Field(ge=0)
    recorded_launch_s: float = Field(ge=0)
    in_pass: float = Field(default=1.0, gt=0)
    error: dict[str, Range]


class Rehearsed(Record):
    """The work of a real optimiser step, and the median seconds that it took alone on the machine. `recorded` says
    whether its passes were recorded and replayed."""

    method: str
    precision: str
    work: tuple[Kernel, ...]
    recorded: bool
    step_s: float = Field(gt=0)


class Observed(Record):
    """Seconds of an optimiser step of a finished trial, a member's share in a pack, and what a speed had said of it
    uncorrected. `trial` tells observations apart."""

    trial: str
    speed_digest: str
    precision: str
    method: str
    predicted_s: float = Field(gt=0)
    measured_s: float = Field(gt=0)
