"""Seconds from counted work: a roofline for every kernel, and what finished trials showed of its error.

A kernel takes as long as its operations or its bytes, whichever is longer, and a fixed time besides (the roofline of
Williams, Waterman & Patterson 2009, doi:10.1145/1498765.1498785, with a start-up as Hockney has it). What products
reach depends on their shape (`core.speed.Products`), what kernels that only move bytes reach on how many those are, as
caches have it. A CPU does one after the other. A GPU computes while the host hands it the next: the slower of the two
sets the pace.

Left out: what the host does between kernels (laying out batches, reading back), which `correction` learns, and waits
for other processes of the machine.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import TrialRecord
from tunetrial.core.speed import Observed, Range, Speed, exactly
from tunetrial.core.work import Kernel

Known = TypeVar("Known")

# Before a trial was observed, a step's time by a measured speed is taken to be off by a factor whose logarithm has
# this standard deviation; and so much as PRIOR_TRIALS observations does that weigh against those that there are.
PRIOR_SD = 0.2
PRIOR_TRIALS = 2
# 90 % of a normal distribution lie within so many standard deviations.
TWO_SIDED_90 = 1.645


def seconds(work: Sequence[Kernel], speed: Speed, *, recorded: bool) -> Range:
    """How long a device takes for work, kernel after kernel.

    Args:
        recorded: Whether passes are recorded once and replayed, as CUDA graphs are: launches then take less.
    Raises:
        EvidenceError: The speed says nothing of products or attention in a kernel's dtype.
    """
    taken, launches = Counter(), 0
    for kernel in work:
        taken[kernel.kind] += kernel.count * kernel_seconds(kernel, speed)
        launches += kernel.count
    device = sum((exactly(value) * _error(speed, kind) for kind, value in taken.items()), exactly(0))
    if speed.kind == "cpu":
        return device
    launch_s = speed.recorded_launch_s if recorded else speed.launch_s
    host = exactly(launches * launch_s) * _error(speed, "launch")
    return Range(**{end: max(getattr(device, end), getattr(host, end)) for end in Range.model_fields})


def kernel_seconds(kernel: Kernel, speed: Speed) -> float:
    """One kernel on the device, as a speed has it, without its error.

    Raises:
        EvidenceError: As `seconds`.
    """
    computed = 0.0
    if kernel.kind == "product":
        if kernel.dtype not in speed.products:
            raise EvidenceError(_unknown(speed, kernel, speed.products))
        computed = speed.products[kernel.dtype].seconds(kernel.shape)
    elif kernel.kind == "attention":
        rate = _of(speed.attention_operations_per_s, kernel)
        if rate is None:
            raise EvidenceError(_unknown(speed, kernel, speed.attention_operations_per_s))
        computed = kernel.operations / rate
    curve = _of(speed.bytes_per_s, kernel)
    moved = kernel.bytes / curve.at(kernel.bytes) if curve is not None and kernel.bytes else 0.0
    return max(computed, moved) + (_of(speed.fixed_s, kernel) or 0.0)


def correction(speed: Speed, observed: Sequence[Observed], *, precision: str, method: str) -> Range | None:
    """By how much what is likely by `seconds` is to be multiplied, as observed with this speed; None without any.

    The median of the logarithms of measured over predicted, so that single slow trials do not count, drawn towards
    that of all methods in this precision, and that towards 1, as if there were PRIOR_TRIALS more. The range is to
    cover 9 trials of 10 like those observed; it claims nothing of trials beside others on the machine.
    """
    logs = {
        one.trial: (one.method, math.log(one.measured_s / one.predicted_s))
        for one in observed
        if one.speed_digest == speed.digest and one.precision == precision
    }
    if not logs:
        return None
    pooled, spread = _drawn([log for _, log in logs.values()], 0.0, PRIOR_SD)
    own = [log for name, log in logs.values() if name == method]
    centre, spread = _drawn(own, pooled, spread) if own else (pooled, max(spread, PRIOR_SD))
    half = TWO_SIDED_90 * spread
    return Range(low=math.exp(centre - half), high=math.exp(centre + half), likely=math.exp(centre))


def corrected(predicted: Range, by: Range | None) -> Range:
    """What `seconds` said, corrected where there is a correction; its own range where there is none."""
    return predicted if by is None else exactly(predicted.likely) * by


def observe(record: TrialRecord, speed: Speed, predicted_s: float) -> Observed | None:
    """What a finished trial shows of a speed: its mean step, a member's share in a pack, beside what `seconds`
    said is likely for it, uncorrected. None of a trial that measured no steps, or was simulated."""
    measured = record.measurements
    if record.synthetic or not {"train_s", "steps"} <= measured.keys() or not measured["steps"].value:
        return None
    return Observed(
        trial=record.trial.id,
        speed_digest=speed.digest,
        precision=record.trial.controls.precision,
        method=record.trial.arm.method,
        predicted_s=predicted_s,
        measured_s=measured["train_s"].value / measured["steps"].value,
    )


def _drawn(logs: Sequence[float], towards: float, prior_sd: float) -> tuple[float, float]:
    """The median drawn towards a prior, and the standard deviation of one more: that of a normal distribution with the
    same median distance from the median (1.4826 times it), the prior's weighed in."""
    found = statistics.median(logs)
    sd = 1.4826 * statistics.median(abs(log - found) for log in logs)
    weight = len(logs) / (len(logs) + PRIOR_TRIALS)
    variance = weight * sd**2 + (1 - weight) * prior_sd**2
    return towards + weight * (found - towards), math.sqrt(variance * (1 + 1 / (len(logs) + PRIOR_TRIALS)))


def _of(by_kind: Mapping[str, Known], kernel: Kernel) -> Known | None:
    """What is said of a kernel's kind in its dtype, else of its kind."""
    return by_kind.get(f"{kernel.kind} {kernel.dtype}", by_kind.get(kernel.kind))


def _error(speed: Speed, kind: str) -> Range:
    return speed.error.get(kind, exactly(1.0))


def _unknown(speed: Speed, kernel: Kernel, known: Mapping[str, object]) -> str:
    return (
        f"speed of {speed.device}: nothing is known of {kernel.kind} in {kernel.dtype}, got {', '.join(known)}; "
        "calibrate in that precision, or plan in one of these"
    )
