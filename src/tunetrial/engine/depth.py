"""What a pass through many layers takes, from counts through a few.

Layers are alike, so bytes and work are linear in their number wherever a pass is: before all layers, in the first, the
second or the last of them on the way forward or back, or past them. Those moments are counted apart, each is drawn on
linearly, and the highest of them is the peak: in a layer between the second and the last nothing is higher than in
both, since what is held there is linear in its place.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from tunetrial.core.work import STATES, Kernel, Part, Phase

FEW = 3


@dataclass(frozen=True)
class Reached:
    """What was reached at each moment: bytes, and what they were; `prepared` with what kernels are compiled by. Kernels
    are (kind, dtype, shape, operations, bytes) and their numbers."""

    peaks: Mapping[tuple, tuple[int, Mapping[Part, int]]]
    prepared: Mapping[tuple, int]
    kernels: Mapping[tuple, int]

    @property
    def phase(self) -> Phase:
        peak, parts = max(self.peaks.values(), key=lambda found: found[0])
        told = [total - sum(made.get(part, 0) for part in STATES) for total, made in self.peaks.values() if made]
        return Phase(
            peak_bytes=peak,
            parts={part: size for part, size in parts.items() if size},
            passing_bytes=max(told, default=None),
            work=self.work,
        )

    @property
    def prepared_bytes(self) -> int:
        return max(self.prepared.values())

    @property
    def work(self) -> tuple[Kernel, ...]:
        return tuple(
            Kernel(kind=kind, dtype=dtype, shape=shape, count=count, operations=operations, bytes=size)
            for (kind, dtype, shape, operations, size), count in sorted(self.kernels.items())
        )


def deeper(few: Reached, more: Reached, layers: int) -> Reached:
    """What is reached in so many layers, from counts in FEW and in one more."""
    steps = layers - FEW
    line = lambda a, b: a + steps * (b - a)  # noqa: E731
    peaks = {}
    for moment in few.peaks.keys() & more.peaks.keys():
        (low, low_parts), (high, high_parts) = few.peaks[moment], more.peaks[moment]
        parts = {p: line(low_parts.get(p, 0), high_parts.get(p, 0)) for p in low_parts.keys() | high_parts.keys()}
        peaks[moment] = line(low, high), parts
    both = few.prepared.keys() & more.prepared.keys()
    prepared = {moment: line(few.prepared[moment], more.prepared[moment]) for moment in both}
    return Reached(peaks, prepared, _kernels(few.kernels, more.kernels, layers))


def _kernels(few: Mapping[tuple, int], more: Mapping[tuple, int], layers: int) -> dict[tuple, int]:
    """Kernels of all layers: more of the same size, or as many of a size that grows (over all weights at once)."""
    steps = layers - FEW
    made: Counter[tuple] = Counter()
    for kernel in few.keys() & more.keys():
        made[kernel] = few[kernel] + steps * (more[kernel] - few[kernel])
    grown: dict[tuple, list[tuple]] = defaultdict(list)
    for kernel in sorted(more.keys() - few.keys(), key=lambda kernel: kernel[3:]):
        grown[*kernel[:3], more[kernel]].append(kernel)
    for kernel in sorted(few.keys() - more.keys(), key=lambda kernel: kernel[3:]):
        like = grown[*kernel[:3], few[kernel]]
        if like:
            other = like.pop(0)
            sizes = (a + steps * (b - a) for a, b in zip(kernel[3:], other[3:], strict=True))
            made[*kernel[:3], *sizes] += few[kernel]
    return dict(made)
