"""What each arm holds at its peak, as counted before a study, beside what its probes measured."""

from collections.abc import Mapping, Sequence

from tunetrial.core.evidence import Evidence, Held
from tunetrial.core.speed import Range
from tunetrial.core.study import Lock
from tunetrial.core.work import Counted, Phase
from tunetrial.plan import estimate
from tunetrial.plan.deployed import phases_of
from tunetrial.plan.estimate import Sizes
from tunetrial.plan.fit import CONTEXT_BYTES, RESERVE

AFTER_TRAINING = ("evaluate", "save")


def peaks(
    traced: Mapping[str, Mapping[str, Counted]], tasks: int, *, device: str, room_bytes: int | None
) -> tuple[Held, ...]:
    """The highest moment of each arm's training alone over all its tasks; arms are left out that could not be counted
    on each.

    On a GPU the device's context and the allocator's reserve come beside tensors (`plan.fit`), on a CPU what a process
    was found to grow by (`estimate.around`).

    Args:
        room_bytes: What the device has free; None where that is not known.
    """
    found = []
    for arm, counts in traced.items():
        if len(counts) == tasks:
            phase = max((_highest(one) for one in counts.values()), key=lambda one: one.peak_bytes)
            most = estimate.around(phase.peak_bytes, "cpu").high
            if device != "cpu":
                most = phase.peak_bytes * RESERVE.high + CONTEXT_BYTES[device].high
            found.append(Held(label=arm, parts=phase.parts, most_bytes=most, room_bytes=room_bytes))
    return tuple(found)


def phases(
    lock: Lock, traced: Mapping[str, Mapping[str, Counted]], sizes: Mapping[str, Sizes]
) -> dict[str, dict[str, Range]]:
    """Bytes at the peak of every phase, by arm, on the task whose training takes most; served are as many rows as a
    step has, all as long as the longest, or as a row may be. Arms are left out that could not be counted on each task.

    Args:
        sizes: Of each arm's base.
    """
    found = {}
    for arm, counts in traced.items():
        if len(counts) == len(lock.study.tasks):
            task = max(counts, key=lambda name: counts[name].fullest.training_bytes)
            head = lock.study.readout_of(task) == "head"
            found[arm] = phases_of(
                counts[task].fullest,
                lock.study.arm(arm),
                sizes[arm].shape,
                rows=lock.study.batch_examples,
                tokens=max(sizes[arm].counted.get(task, [lock.controls(task).max_tokens])),
                outputs=(len(lock.data[task].labels) or 1) if head else 0,
                precision=lock.precision,
            )
    return found


def beside(held: Sequence[Held], evidence: Evidence) -> tuple[Held, ...]:
    """The same with the most that a solo probe of the arm took on any task."""
    probes: dict[str, float] = {}
    for record in evidence.records:
        if record.trial.purpose == "probe" and "peak_bytes" in record.measurements:
            arm, peak = record.trial.arm.name, record.measurements["peak_bytes"].value
            probes[arm] = max(peak, probes.get(arm, peak))
    return tuple(one.model_copy(update={"measured_bytes": probes.get(one.label)}) for one in held)


def _highest(counted: Counted) -> Phase:
    phases = counted.fullest.phases.items()
    return max((phase for name, phase in phases if name not in AFTER_TRAINING), key=lambda phase: phase.peak_bytes)
