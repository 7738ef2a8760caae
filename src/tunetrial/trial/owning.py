"""What a study's arms cost to own: its evidence and what was timed of it, at prices of the user's or of a day."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tunetrial import methods
from tunetrial.analysis.owning import own
from tunetrial.analysis.taken import take
from tunetrial.core.deployment import Deployment
from tunetrial.core.errors import ConfigError
from tunetrial.core.evidence import Evidence
from tunetrial.core.money import HOURS_PER_MONTH
from tunetrial.core.owning import Figure, Ownership, Taken, Terms
from tunetrial.core.prices import Costs, Hardware
from tunetrial.core.study import Arm
from tunetrial.plan import catalogue
from tunetrial.plan.catalogue import Device
from tunetrial.plan.outlay import price_of
from tunetrial.plan.upkeep import stated

USUAL_VARIANTS = (1, 4)


@dataclass(frozen=True)
class Volumes:
    """What is asked instead of what the study file says under `costs` and `hardware`; None leaves that as it is.

    A `gpu` takes the place of the study's machine, and its price that of the study's.
    """

    requests_per_month: float | None = None
    variants: int | None = None
    usd_per_engineer_hour: float | None = None
    gpu: str | None = None

    def of(self, costs: Costs) -> Costs:
        """The study's, with what is asked in place of it.

        Raises:
            ConfigError: A number that cannot be one of these.
        """
        said = {name: getattr(self, name) for name in ("requests_per_month", "variants", "usd_per_engineer_hour")}
        said = {name: value for name, value in said.items() if value is not None}
        for name, value in said.items():
            if not math.isfinite(value) or value < (1 if name == "variants" else 0):
                least = "1 or more" if name == "variants" else "0 or more"
                raise ConfigError(f"costs: {name}: must be a number, {least}, got {value}; give one")
        return Costs.model_validate(costs.model_dump() | said)


def ownership(
    evidence: Evidence,
    *,
    deployed: Deployment | None,
    run_s: Sequence[float] = (),
    asked: Volumes = Volumes(),
) -> Ownership:
    """Reckon what every arm costs with 1, 4 and as many variants as are declared.

    An hour has the user's price, else a dated one of the GPU that is named, else of the one that measured; storage the
    user's, else a dated one.

    Args:
        run_s: Wall time of each run of the study, which says how many trials went on at once.
    Raises:
        ConfigError: The GPU that is asked for is not known, or has no known price.
    """
    study = evidence.lock.study
    costs = asked.of(study.costs)
    whole = {arm.name for arm in study.arms if _is_whole(arm)}
    taken = take(evidence, whole=whole, deployed=deployed, side_by_side=_side_by_side(evidence, run_s))
    machine = next((each.machine for each in taken if each.machine is not None), None)
    measured = catalogue.find(machine) if machine else None
    if asked.gpu is not None:
        catalogue.rate(catalogue.device(asked.gpu), Hardware())
    hardware = study.hardware if asked.gpu is None else Hardware(gpu=asked.gpu)
    priced = Hardware(gpu=machine) if hardware == Hardware() else hardware
    place = catalogue.find(priced.gpu) if priced.gpu else measured
    terms = Terms(
        variants=tuple(sorted({*USUAL_VARIANTS, costs.variants})),
        requests_per_month=costs.requests_per_month,
        retrainings_per_month=costs.retrainings_per_month,
        hours_per_month=costs.hours_per_month or HOURS_PER_MONTH,
        engineer_hours=costs.engineer_hours,
        other_usd=costs.other_usd,
        gpu_hour=price_of(priced),
        gb_hour=stated(costs.usd_per_gb_hour, "GB-hour", "usd_per_gb_hour"),
        gb_month=stated(costs.usd_per_gb_month, "GB-month", "usd_per_gb_month") or catalogue.storage_rate(),
        engineer_hour=stated(costs.usd_per_engineer_hour, "engineer-hour", "usd_per_engineer_hour"),
        request=stated(costs.usd_per_request, "request", "usd_per_request"),
        room_bytes=place.usable_bytes if place else None,
        on_machine=hardware.gpu is None or place == measured,
        budget=study.budget,
    )
    return own(study.rule.primary, [_with_energy(each, measured) for each in taken], terms)


def _is_whole(arm: Arm) -> bool:
    method = methods.find(arm)
    return method.trains_base or not method.uses_base


def _side_by_side(evidence: Evidence, run_s: Sequence[float]) -> float:
    """How many trials went on at once: seconds of all of them over the wall time of the study's runs."""
    legs_s = sum(sum(record.legs_s) for record in evidence.records)
    return max(1.0, legs_s / sum(run_s)) if sum(run_s) else 1.0


def _with_energy(taken: Taken, measured: Device | None) -> Taken:
    """With the most that a run's energy can be, of a device whose power is known, where nothing counted it."""
    train = taken.cycle_s["train"]
    if taken.run_j is not None or train is None or measured is None or measured.power_w is None:
        return taken
    of = f"at most: {measured.power_w:g} W all the time ({measured.sources['power_w']})"
    return taken.model_copy(
        update={"run_j": Figure(value=measured.power_w * train.value, unit="J", basis="estimated", of=of)}
    )
