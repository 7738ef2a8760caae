"""The speed of the machine at hand: found where it was measured before, else measured once and kept."""

from collections.abc import Iterable
from pathlib import Path

from tunetrial.core.evidence import TrialRecord
from tunetrial.core.speed import Observed, Speed
from tunetrial.plan.speed import fitted, observe
from tunetrial.store.speeds import Machine, Speeds, processor, this_machine
from tunetrial.trial.machine import driver_name


def known(home: Path, device: str) -> tuple[Speed, tuple[Observed, ...]] | None:
    """The speed of this machine's "cpu" or "cuda" device and what trials showed of it; None before it was measured.

    No library is loaded that computes.

    Raises:
        IntegrityError: What is kept is damaged.
    """
    machine, speeds = _machine(device), Speeds(home)
    speed = speeds.find(machine)
    return None if speed is None else (speed, speeds.observed(machine))


def calibrate(home: Path, device: str, *, seconds: float = 10.0) -> Speed:
    """Measure this machine's device in about so many seconds, half of them kernels and half real steps, which take as
    long as they take; keep what was found. Libraries take seconds more to load.

    Raises:
        StoreError: It cannot be kept.
    """
    from tunetrial.engine import calibration, rehearsal

    speed = fitted(calibration.calibrate(device, seconds=seconds / 2), list(rehearsal.rehearse(device)))
    Speeds(home).keep(_machine(device), speed)
    return speed


def learn(home: Path, device: str, predicted: Iterable[tuple[TrialRecord, float]]) -> int:
    """Note what finished trials of this machine showed, each with the seconds of a step that its speed, uncorrected,
    had called likely; say of how many. Without a measured speed nothing is noted.

    Raises:
        StoreError: It cannot be kept.
    """
    machine, speeds = _machine(device), Speeds(home)
    speed = speeds.find(machine)
    if speed is None:
        return 0
    found = [seen for record, step_s in predicted if (seen := observe(record, speed, step_s))]
    for seen in found:
        speeds.note(machine, seen)
    return len(found)


def _machine(device: str) -> Machine:
    cpu = device == "cpu"
    return this_machine(processor() if cpu else driver_name() or device, threads=1 if cpu else None)
