"""What each arm holds at its peak, as counted before a study, beside what its probes measured."""

from collections.abc import Mapping, Sequence

from tunetrial.core.evidence import Evidence, Held
from tunetrial.core.work import Counted, Phase
from tunetrial.plan import estimate
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
