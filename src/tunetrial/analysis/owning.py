"""What each arm costs to own: bills of what it takes, by prices and declared volumes. No files, no torch.

`own` is a pure function of what was taken (`taken.take`) and of the terms: ask again with another price or volume to
see where an answer flips. `costs_per_draw` gives what of a cost varies between seeds.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tunetrial.core.errors import EvidenceError
from tunetrial.core.money import (
    GB_BYTES,
    HOURS_PER_MONTH,
    Amount,
    Basis,
    Bill,
    EngineerHours,
    GbHours,
    GbMonths,
    GpuHours,
    Line,
    Price,
    Requests,
    Unit,
    Usd,
    cost,
    line,
)
from tunetrial.core.owning import Figure, Iteration, Owned, Ownership, Taken, Terms

SECONDS_PER_HOUR = 3600
AGAIN = ("further variants", "retraining")  # what goes by the length of a run
PRICED_BY: dict[Unit, str] = {
    "GPU-hour": "hardware.usd_per_hour",
    "engineer-hour": "costs.usd_per_engineer_hour",
    "GB-month": "costs.usd_per_gb_month",
}
ASSUMED = (
    "Rates are searched for once; each further variant is one more run at the rate found, on as many rows.",
    "Requests come evenly over the hours of the month, and machines may be as busy as they were when measured.",
    "Adapters of one base share its weights in memory and on the disk; every full model has its own. Weights alone are "
    "counted, not what requests take beside them.",
    "Runs are paid by the second, machines that serve for every hour, busy or not; starting machines and sending data "
    "cost nothing.",
)


def own(task: str, taken: Sequence[Taken], terms: Terms) -> Ownership:
    """Reckon what every arm costs, at every number of variants that the terms name.

    An item without an amount, or without a price, is left out of the totals and named with its reason. Amounts whose
    figures were measured on another machine than the one that is priced are estimates.

    Raises:
        ConfigError: A price is not one of its item's unit, or an amount is negative.
    """
    owned = tuple(_owned(each, terms, variants) for each in taken for variants in terms.variants)
    return Ownership(
        task=task,
        terms=terms,
        taken=tuple(taken),
        owned=owned,
        iterations=tuple(_iteration(each, terms) for each in taken),
        assumed=tuple(_assumed(taken, terms)),
    )


def costs_per_draw(ownership: Ownership, *, variants: int, seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """The first year's US dollars by arm, shape (S,): [s] is what it would be if every further run took as long as the
    final with seeds[s] did, against the mean of the finals with these seeds.

    Seeds are in the order given, the same for every arm, so that a decision can draw cost and quality of a seed
    together. What the study's own runs took, storage, serving and people do not vary: that is not in the spread. Where
    nothing is trained again and there is one variant, all S are equal.

    An arm is absent if it lacks the time of one of these finals, has no known cost, or if its total leaves out what
    another's has: such totals must not be compared. Seconds of a final in a pack are its share of the pack's.

    Raises:
        EvidenceError: No seeds, or so many variants were not reckoned.
    """
    if not seeds or variants not in ownership.terms.variants:
        raise EvidenceError(
            f"costs: need seeds, and variants among {ownership.terms.variants}, got {len(seeds)} seeds and {variants}"
        )
    owned = {each.arm: ownership.of(each.arm, variants) for each in ownership.taken}
    shared = set.intersection(*(set(each.left_out) for each in owned.values()))
    draws = {}
    for taken in ownership.taken:
        each = owned[taken.arm]
        year = each.first_year_usd
        if year is not None and set(each.left_out) == shared and all(seed in taken.run_s for seed in seeds):
            run_S = np.array([taken.run_s[seed] for seed in seeds])
            draws[taken.arm] = year.low + _again_usd(each) * (run_S / run_S.mean() - 1)
    return draws


class _Item(NamedTuple):
    """A line to be: an amount, or in words why there is none."""

    what: str
    amount: Amount | str
    price: Price | None
    basis: Basis = "given"


def _owned(taken: Taken, terms: Terms, variants: int) -> Owned:
    left_out: dict[str, str] = {}
    bills = {
        name: Bill(name=name, lines=tuple(_lines(items, left_out)))
        for name, items in {"once": _once(taken, terms, variants), "a month": _monthly(taken, terms, variants)}.items()
    }
    machines = _machines(taken, terms, variants) if _way(terms) == "GPU-hour" else None
    return Owned(
        arm=taken.arm,
        variants=variants,
        once=bills["once"],
        monthly=bills["a month"],
        machines=machines if isinstance(machines, int) else None,
        left_out=left_out,
    )


def _lines(items: Iterable[_Item], left_out: dict[str, str]) -> Iterator[Line]:
    for what, amount, price, basis in items:
        if isinstance(amount, str):
            left_out[what] = amount
            continue
        made = line(what, amount, price, basis=basis)
        if made.usd is None:
            left_out[what] = f"no price of a {made.unit} is known ({PRICED_BY[made.unit]})"
        yield made


def _once(taken: Taken, terms: Terms, variants: int) -> Iterator[_Item]:
    for what, figure in (("tuning", taken.tuning_s), ("finals", taken.finals_s), ("evaluation", taken.evaluation_s)):
        amount = "no times of its runs are known" if figure is None else _hours(figure.value)
        yield _Item(what, amount, terms.gpu_hour, _basis(terms))
    if variants > 1:
        yield _Item(AGAIN[0], _runs(taken, variants - 1), terms.gpu_hour, _basis(terms))
    if terms.engineer_hours is None:
        yield _Item("engineers", "no hours of engineers were declared (costs.engineer_hours)", None)
    else:
        yield _Item("engineers", EngineerHours.of(terms.engineer_hours), terms.engineer_hour)
    if terms.other_usd is not None:
        yield _Item("other", Usd.of(terms.other_usd), None)


def _monthly(taken: Taken, terms: Terms, variants: int) -> Iterator[_Item]:
    yield _storage(taken, terms, variants)
    yield _serving(taken, terms, variants)
    if terms.retrainings_per_month is None:
        yield _Item(AGAIN[1], "no retrainings a month were declared (costs.retrainings_per_month)", None)
    elif terms.retrainings_per_month:
        amount = _runs(taken, variants * terms.retrainings_per_month)
        yield _Item(AGAIN[1], amount, terms.gpu_hour, _basis(terms))


def _storage(taken: Taken, terms: Terms, variants: int) -> _Item:
    each, base = taken.artifact_bytes, taken.base_bytes
    if each is None or (taken.shares_base and base is None):
        return _Item("storage", "its size was not measured", terms.gb_month)
    size = (base.value if base else 0) + variants * each.value
    gb_bytes = (terms.gb_month and terms.gb_month.gb_bytes) or GB_BYTES
    return _Item("storage", GbMonths.of(size / gb_bytes), terms.gb_month, _least(each, base))


def _way(terms: Terms) -> Unit:
    """What serving is paid by: the user's price of a request or of memory, else hours of machines."""
    return "request" if terms.request else "GB-hour" if terms.gb_hour else "GPU-hour"


def _serving(taken: Taken, terms: Terms, variants: int) -> _Item:
    way = _way(terms)
    if terms.requests_per_month is None and way != "GB-hour":
        return _Item("serving", "no requests a month were declared (costs.requests_per_month)", None)
    if way == "request":
        return _Item("serving", Requests.of(terms.requests_per_month), terms.request)
    if way == "GB-hour":
        size = _resident_bytes(taken, variants)
        if size is None:
            return _Item("serving", "its memory was not measured", None)
        basis = _least(taken.resident_bytes, taken.resident_base_bytes)
        return _Item("serving", GbHours.of(size * terms.hours_per_month / GB_BYTES), terms.gb_hour, basis)
    machines = _machines(taken, terms, variants)
    if isinstance(machines, str):
        return _Item("serving", machines, None)
    return _Item("serving", GpuHours.of(machines * terms.hours_per_month), terms.gpu_hour, "estimated")


def _machines(taken: Taken, terms: Terms, variants: int) -> int | str:
    """How many must be on: enough for the requests and, where the room of one is known, for all weights; or in words
    why that is not known. No model lies on two machines, and adapters on another machine need the base there too."""
    rate = taken.together_per_s if variants > 1 else taken.alone_per_s
    if rate is None or terms.requests_per_month is None:
        return "its requests a second were not measured"
    busy = terms.requests_per_month / (rate.value * terms.hours_per_month * SECONDS_PER_HOUR)
    filled = 0
    if terms.room_bytes and _resident_bytes(taken, variants) is not None:
        base, each = taken.resident_base_bytes, taken.resident_bytes.value
        left = terms.room_bytes - (base.value if base else 0)
        if left < each:
            return "one does not fit into the memory of a machine"
        filled = math.ceil(variants / (left // each)) if each else 1
    return max(1, math.ceil(busy), filled)


def _resident_bytes(taken: Taken, variants: int) -> float | None:
    each, base = taken.resident_bytes, taken.resident_base_bytes
    if each is None or (taken.shares_base and base is None):
        return None
    return (base.value if base else 0) + variants * each.value


def _runs(taken: Taken, runs: float) -> GpuHours | str:
    if taken.iteration_s is None:
        return "the time of one more run was not measured"
    return _hours(runs * taken.iteration_s)


def _iteration(taken: Taken, terms: Terms) -> Iteration:
    seconds, budget = taken.iteration_s, terms.budget
    if not seconds:
        return Iteration(arm=taken.arm, seconds=seconds, usd=None, a_month=None, in_budget=None)
    usd = cost(_hours(seconds), terms.gpu_hour) if terms.gpu_hour else None
    limits = [] if budget.gpu_hours is None else [budget.gpu_hours * SECONDS_PER_HOUR / seconds]
    limits += [budget.usd / usd.low] if budget.usd is not None and usd is not None and usd.low else []
    return Iteration(
        arm=taken.arm,
        seconds=seconds,
        usd=usd,
        a_month=HOURS_PER_MONTH * SECONDS_PER_HOUR / seconds,
        in_budget=min(limits, default=None),
    )


def _hours(seconds: float) -> GpuHours:
    return GpuHours.of(seconds / SECONDS_PER_HOUR)


def _basis(terms: Terms) -> Basis:
    return "measured" if terms.on_machine else "estimated"


def _least(*figures: Figure | None) -> Basis:
    known = {figure.basis for figure in figures if figure is not None}
    return "estimated" if "estimated" in known else "given" if "given" in known else "measured"


def _again_usd(owned: Owned) -> float:
    """What of the first year's cost goes by the length of a run."""
    lines = [(each, 1) for each in owned.once.lines] + [(each, 12) for each in owned.monthly.lines]
    return sum(times * each.usd.low for each, times in lines if each.what in AGAIN and each.usd is not None)


def _assumed(taken: Sequence[Taken], terms: Terms) -> Iterator[str]:
    yield from ASSUMED
    if not terms.on_machine:
        measured = ", ".join(sorted({each.machine for each in taken if each.machine}))
        yield f"Hours were measured on {measured or 'a machine without a name'} and have another machine's price."
    if _way(terms) == "GPU-hour" and terms.room_bytes is None:
        yield "How much fits a machine is not known: machines are counted by requests alone."
