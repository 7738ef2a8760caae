"""The speed of the machine at hand: found where it was measured before, else measured once and kept."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from tunetrial.core.errors import ConfigError
from tunetrial.core.evidence import TrialRecord
from tunetrial.core.speed import Observed, Speed
from tunetrial.core.study import Hardware, whole
from tunetrial.plan import Gauge, Known, catalogue
from tunetrial.plan.catalogue import Device
from tunetrial.plan.speed import assumed, fitted, observe, replays
from tunetrial.plan.timing import step_seconds
from tunetrial.store.speeds import Machine, Speeds, processor, this_machine
from tunetrial.trial.machine import driver_name, free_host_bytes

BUSY = 0.5


def known(home: Path, device: str) -> tuple[Speed, tuple[Observed, ...]] | None:
    """The speed of this machine's "cpu" or "cuda" device and what trials showed of it; None before it was measured.

    No library is loaded that computes.

    Raises:
        IntegrityError: What is kept is damaged.
    """
    machine, speeds = _machine(device), Speeds(home)
    speed = speeds.find(machine)
    return None if speed is None else (speed, speeds.observed(machine))


def gauge(home: Path, hardware: Hardware, device: str) -> Gauge | None:
    """How fast the device is that a study's trials run on: the GPU that the study names, else the "cpu" or "cuda"
    device at hand.

    It goes by what was measured here, if that is the device; else by its data sheet, and of a CPU by those of all
    classes. None of a GPU that the catalogue does not have.

    Raises:
        IntegrityError: What is kept of this machine is damaged.
    """
    named = None if hardware.gpu is None else catalogue.find(hardware.gpu)
    driver = driver_name() if device == "cuda" else None
    here = catalogue.find(driver) if driver else None
    at_hand = hardware.gpu is None or (named is not None and here is not None and named.name == here.name)
    if at_hand and (found := known(home, device)):
        speed, observed = found
        seen = f", and by {len(observed)} of its trials" if observed else ""
        said = f"this machine's speed as measured on {speed.date}{seen}"
        return Gauge((speed,), said, observed=observed, recorded=speed.recorded_launch_s > 0)
    narrower = "; `tunetrial calibrate` measures it in half a minute and narrows the range" if at_hand else ""
    place = here if hardware.gpu is None and device == "cuda" else named
    if place is not None and place.kind != "xpu":
        speed = assumed(place) if at_hand else _also_bf16(assumed(place))
        return Gauge((speed,), f"{place.title} by its data sheet{narrower}", recorded=replays(place))
    if hardware.gpu is None and device == "cpu":
        classes = tuple(assumed(one) for one in catalogue.devices().values() if one.kind == "cpu")
        return Gauge(classes, f"a CPU of any class by data sheets{narrower}")
    return None


def _also_bf16(speed: Speed) -> Speed:
    """Of a device that is not at hand: where it has no units for bf16, trials would compute in fp16, and what was
    counted here in bf16 is taken to be that."""
    products, attention = dict(speed.products), dict(speed.attention_operations_per_s)
    if "float16" in products and "bfloat16" not in products:
        products["bfloat16"], attention["attention bfloat16"] = products["float16"], attention["attention float16"]
    return speed.model_copy(update={"products": products, "attention_operations_per_s": attention})


def here(home: Path) -> tuple[Device, Gauge]:
    """This machine as a device, its GPU if it has one, with the speed that was measured of it and memory as it is free
    now.

    Raises:
        ConfigError: It was never measured, or has a GPU that the catalogue does not have.
        IntegrityError: What is kept of it is damaged.
    """
    driver = driver_name()
    kind = "cpu" if driver is None else "cuda"
    if (found := known(home, kind)) is None:
        what = "this processor" if driver is None else driver
        raise ConfigError(f"gpu: here was not measured yet, got {what}; run `tunetrial calibrate` once")
    if driver is not None:
        return catalogue.device(driver), gauge(home, Hardware(), kind)
    speed, free = found[0], int(free_host_bytes())
    rates = {"bf16": "bfloat16", "fp32": "float32"}
    made = Device(
        name="here",
        title=speed.device,
        kind="cpu",
        memory_bytes=free,
        usable_bytes=free,
        bandwidth_bytes_per_s=speed.bytes_per_s["copy"].points[-1][1],
        operations_per_s={n: speed.products[of].operations_per_s for n, of in rates.items() if of in speed.products},
        link_bytes_per_s=None,
        compute_capability=None,
        power_w=None,
        sources={},
    )
    return made, gauge(home, Hardware(), kind)


def calibrate(home: Path, device: str, *, seconds: float = 10.0) -> Speed:
    """Measure this machine's device in about so many seconds, half of them kernels and half real steps, which take as
    long as they take; keep what was found. Libraries take seconds more to load.

    Raises:
        ConfigError: There is no such device.
        StoreError: It cannot be kept.
    """
    if device == "cuda" and driver_name() is None:
        raise ConfigError("--device: there is no GPU here, got cuda; calibrate cpu, or install NVIDIA's driver")
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


def predicted(records: Iterable[TrialRecord], known: Known) -> Iterator[tuple[TrialRecord, float]]:
    """Finished trials, each with the likely seconds of its step by this machine's measured speed, uncorrected; none
    where that was not measured, and no trial that was not counted."""
    if known.gauge is None or not all(speed.measured for speed in known.gauge.speeds):
        return
    for record in records:
        counted = known.traced.get(record.trial.arm.name, {}).get(whole(record.trial.task))
        if counted is None or record.trial.purpose == "probe":
            continue
        seconds = partial(known.gauge.uncorrected, precision=record.trial.controls.precision)
        step_s = step_seconds(counted, seconds, of=record.resolved.get("pack", 1))
        if step_s is not None:
            yield record, step_s.likely


def _machine(device: str) -> Machine:
    cpu = device == "cpu"
    return this_machine(processor() if cpu else driver_name() or device, threads=1 if cpu else None)


def words(speed: Speed, home: Path) -> str:
    """What was found, and where it is kept, in a few lines."""
    tera = ", ".join(f"{of.operations_per_s / 1e12:.3g} in {name}" for name, of in speed.products.items())
    moved = speed.bytes_per_s["copy"].points[-1][1] / 1e9
    error = speed.error["product"]
    launch = speed.recorded_launch_s or speed.launch_s
    lines = [
        f"{speed.device}: {'one thread' if speed.threads == 1 else 'the whole GPU'}, measured {speed.date}",
        f"matrix products: up to {tera} (10^12 operations a second)",
        f"copies: {moved:.3g} GB a second; a kernel takes {1e6 * launch:.3g} µs besides",
        f"real steps took {speed.in_pass:.2g} × what their kernels take by themselves; times are good to a factor of "
        f"{error.high:.2g}",
    ]
    if speed.load is not None and speed.load > BUSY:
        busy = f"{speed.load:.2g} processes a core wanted to compute"
        lines.append(f"it was busy: {busy}; calibrate again when it is idle")
    return "\n".join([*lines, f"kept: {Speeds(home).path(_machine(speed.kind))}"])
