"""What a study costs beside its trials: engineers for it, and storage and requests of what is then used."""

from collections.abc import Iterator, Mapping

from tunetrial import methods
from tunetrial.core.money import (
    GB_BYTES,
    Account,
    Bill,
    EngineerHours,
    GbMonths,
    Line,
    Price,
    Requests,
    Unit,
    line,
)
from tunetrial.core.speed import Range
from tunetrial.core.study import Arm, Lock
from tunetrial.models import ModelShape
from tunetrial.plan import catalogue, estimate
from tunetrial.plan.estimate import Sizes


def upkeep(lock: Lock, sizes: Mapping[str, Sizes], outputs: int) -> Account | None:
    """Bills by arm of storage and requests over the months that the study names, and one of engineers; None where the
    study says nothing of costs.

    Of a full model every variant is kept whole; adapters lie beside the one base that they share. Prices are the
    user's; of storage else the middle one of the catalogue's, with its source. What has no price has no cost.

    Args:
        sizes: Those of each arm's base.
        outputs: Outputs of a head.
    """
    costs = lock.study.costs
    bills = []
    if costs.months is not None:
        arms = ((arm, tuple(_of(lock, arm, sizes[arm.name].shape, outputs))) for arm in lock.study.arms)
        bills += [Bill(name=arm.name, lines=lines) for arm, lines in arms]
    if costs.engineer_hours is not None:
        price = stated(costs.usd_per_engineer_hour, "engineer-hour", "usd_per_engineer_hour")
        hours = line("engineers", EngineerHours.of(costs.engineer_hours), price, basis="given")
        bills.append(Bill(name="the study", lines=(hours,)))
    return Account(bills=tuple(bills)) if bills else None


def _of(lock: Lock, arm: Arm, shape: ModelShape, outputs: int) -> Iterator[Line]:
    costs = lock.study.costs
    price = stated(costs.usd_per_gb_month, "GB-month", "usd_per_gb_month") or catalogue.storage_rate()
    size, months = _bytes(arm, shape, outputs, variants=costs.variants), costs.months
    ends = (end * months / ((price and price.gb_bytes) or GB_BYTES) for end in (size.low, size.high))
    yield line(f"storage of {costs.variants}", GbMonths.of(*ends), price, basis="estimated")
    if costs.requests_per_month is not None:
        price = stated(costs.usd_per_request, "request", "usd_per_request")
        yield line("requests", Requests.of(costs.requests_per_month * months), price, basis="given")


def _bytes(arm: Arm, shape: ModelShape, outputs: int, *, variants: int) -> Range:
    """What so many variants take on the disk, with the base where they are used with it."""
    method, each = methods.find(arm), estimate.artifact_bytes(arm, shape, outputs=outputs)
    shared = shape.parameters * shape.bytes_per_weight if method.uses_base and not method.trains_base else 0
    return Range(low=shared + variants * each.low, high=shared + variants * each.high)


def stated(usd: float | None, unit: Unit, field: str) -> Price | None:
    """The user's price under `costs` in a study file; None where none is given."""
    return None if usd is None else catalogue.given(usd, unit, where=f"costs.{field}")
