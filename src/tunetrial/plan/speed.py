"""Seconds from counted work: a roofline for every kernel, and what finished trials showed of its error.

A kernel takes as long as its operations or its bytes, whichever is longer, and a fixed time besides (the roofline of
Williams, Waterman & Patterson 2009, doi:10.1145/1498765.1498785, with a start-up as Hockney has it). What products
reach depends on their shape (`core.speed.Products`), what kernels that only move bytes reach on how many those are, as
caches have it. Kernels follow each other, a launch with each, on a CPU and where passes are recorded. Elsewhere a GPU
computes while the host hands it the next: the slower of the two sets the pace.

Two constants of a machine no timing of single kernels tells, and `fitted` finds them from real steps: what the host
takes for each kernel, and how much slower kernels are in a pass. Left out are waits for other processes.
"""

import datetime
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar, get_args

from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import TrialRecord
from tunetrial.core.speed import Curve, Observed, Products, Range, Rehearsed, Speed, exactly
from tunetrial.core.work import Kernel
from tunetrial.plan.catalogue import Device

Known = TypeVar("Known")

# Before a trial was observed, a step's time by a measured speed is taken to be off by a factor whose logarithm has
# this standard deviation; and so much as PRIOR_TRIALS observations does that weigh against those that there are.
PRIOR_SD = 0.2
PRIOR_TRIALS = 2
# 90 % of a normal distribution lie within so many standard deviations.
TWO_SIDED_90 = 1.645
# What steps of one machine differ by from day to day, even where a handful of them fit better.
LEAST_ERROR = 1.2
# Between which the two constants lie: kernels do not take less time in a pass, but for what calibration is off by.
IN_PASS, LAUNCHES_S = (0.5, 50.0), (1e-9, 1e-2)

# Sizes of m, n and k at which products reach half a rate, and tiles, on a GPU and (True) a CPU: rounded from what
# calibration finds on one CPU core with AMX; those of GPUs are those of a thread block (128 × 128 × 64 in CUTLASS).
HALVES = {False: (128.0, 128.0, 64.0), True: (16.0, 4.0, 8.0)}
TILES = {False: 64, True: 16}
# An H200 was found at 1.25 times the time of its data sheet's rate for the largest products, and at 2.0 to 2.7 for a
# pass of 1.1 and 7 billion weights; at 2 to 4 times that of its bandwidth for elementwise kernels, and 1.4 for AdamW
# (benchmarks/README.md). Flash attention reaches 35 to 70 % of a rate (Dao 2023, arXiv:2307.08691, section 4). A CPU
# core with AMX was found at 3 to 13 times the time of both cores' products, and at 2 to 12 of their bandwidth.
REACHED = {
    "cuda": {
        "product": Range(low=1.2, high=2.7, likely=1.8),
        "attention": Range(low=1.4, high=5.0, likely=2.5),
        "elementwise": Range(low=1.3, high=4.0, likely=2.5),
        "copy": Range(low=1.1, high=3.0, likely=1.7),
        "optimiser": Range(low=1.1, high=2.5, likely=1.4),
        "launch": Range(low=0.5, high=3.0, likely=1.0),
    },
    "cpu": {
        "product": Range(low=2.0, high=26.0, likely=7.0),
        "attention": Range(low=2.0, high=50.0, likely=10.0),
        "elementwise": Range(low=2.0, high=20.0, likely=6.0),
        "copy": Range(low=1.5, high=15.0, likely=4.0),
        "optimiser": Range(low=1.0, high=10.0, likely=3.0),
        "launch": Range(low=0.5, high=4.0, likely=1.5),
    },
}
# Of one kernel, by PyTorch from Python with what lies between it and the next, and where replayed. On an H200's host a
# step of 993 counted kernels took 48 µs for each; replayed, calibration found 0.7 µs. A faster host takes a third.
LAUNCH_S, RECORDED_LAUNCH_S = 3e-5, 1.5e-6
REPLAYED_FROM = 8.0


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
    computed = sum((exactly(speed.in_pass * value) * _error(speed, kind) for kind, value in taken.items()), exactly(0))
    host = exactly(launches * (speed.recorded_launch_s if recorded else speed.launch_s)) * _error(speed, "launch")
    if recorded or speed.kind == "cpu":
        return computed + host
    return Range(**{end: max(getattr(computed, end), getattr(host, end)) for end in Range.model_fields})


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


def fitted(speed: Speed, steps: Sequence[Rehearsed]) -> Speed:
    """The speed with `in_pass` and the time of a launch by which real steps' times are least off (least squares of
    logarithms), and with an error as wide as these steps leave, but no less than LEAST_ERROR.

    Steps of few tokens tell the launches, those of many the rest: both are needed. Where some were recorded, those are
    the ones that are fitted, and the others, which the host is to have been too slow for, tell a launch of its own.

    Raises:
        EvidenceError: There are fewer than 2 steps of the kind that is fitted.
    """
    import numpy as np
    from scipy.optimize import least_squares

    recorded = any(step.recorded for step in steps)
    others, steps = ([step for step in steps if step.recorded is kind] for kind in (not recorded, recorded))
    if len(steps) < 2:
        raise EvidenceError(f"speed of {speed.device}: cannot be fitted, got {len(steps)} steps; rehearse 2 or more")
    if others:
        each = [step.step_s / sum(kernel.count for kernel in step.work) for step in others]
        speed = speed.model_copy(update={"launch_s": statistics.geometric_mean(each)})
    launch, kinds = "recorded_launch_s" if recorded else "launch_s", get_args(Kernel.model_fields["kind"].annotation)

    def with_(at: Sequence[float], error: Range) -> Speed:
        in_pass, launch_s = np.exp(at).tolist()
        errors = dict.fromkeys((*kinds, "launch"), error)
        return speed.model_copy(update={"in_pass": in_pass, launch: launch_s, "error": errors})

    def logs(at: Sequence[float]) -> list[float]:
        tried = with_(at, exactly(1.0))
        return [math.log(step.step_s / seconds(step.work, tried, recorded=recorded).likely) for step in steps]

    # It begins with the most that either constant can be by itself, at which both matter to some step.
    alone = speed.model_copy(update={"in_pass": 1.0, launch: 0.0, "error": {}})
    most = [
        min(step.step_s / seconds(step.work, alone, recorded=recorded).likely for step in steps),
        min(step.step_s / sum(kernel.count for kernel in step.work) for step in steps),
    ]
    low, high = np.log([IN_PASS, LAUNCHES_S]).T
    found = least_squares(logs, np.clip(np.log(most), low + 0.01, high - 0.01), bounds=(low, high))
    half = max(math.log(LEAST_ERROR), TWO_SIDED_90 * math.sqrt((found.fun**2).mean()))
    return with_(found.x, Range(low=math.exp(-half), high=math.exp(half), likely=1.0))


def assumed(device: Device) -> Speed:
    """What a device that is not at hand may reach: its makers' figures, and how far from such figures programs were
    found to stay (REACHED), which makes wide ranges.

    Of a CPU's class, one thread, as a worker has it.
    """
    rates = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    rates = {name: rate for name, of in rates.items() if (rate := device.operations_per_s.get(of))}
    cpu = device.kind == "cpu"
    moved = Curve(points=((1.0, device.bandwidth_bytes_per_s),))
    read = device.sources["bandwidth_bytes_per_s"].date
    return Speed(
        device=device.title,
        kind="cpu" if cpu else "cuda",
        threads=1 if cpu else None,
        measured=False,
        date=None if read is None else datetime.date.fromisoformat(read),
        products={
            name: Products(operations_per_s=rate, halves=HALVES[cpu], tile=TILES[cpu]) for name, rate in rates.items()
        },
        attention_operations_per_s={f"attention {name}": rate for name, rate in rates.items()},
        bytes_per_s=dict.fromkeys(("product", "attention", "elementwise", "copy", "optimiser"), moved),
        fixed_s={},
        launch_s=LAUNCH_S,
        recorded_launch_s=RECORDED_LAUNCH_S,
        error=REACHED["cpu" if cpu else "cuda"],
    )


def replays(device: Device) -> bool:
    """Whether passes are recorded and replayed on a device, as on CUDA's from this compute capability on."""
    return device.compute_capability is not None and float(device.compute_capability) >= REPLAYED_FROM


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
