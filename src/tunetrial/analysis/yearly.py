"""The first year's cost of each arm in a use: the only door from weighing to what arms cost to own (`owning`)."""

from collections.abc import Mapping

from tunetrial.analysis.owning import costs_per_draw, own
from tunetrial.core.errors import EvidenceError
from tunetrial.core.money import Price, Unit, given
from tunetrial.core.owning import Owned, Ownership, Terms
from tunetrial.core.scenario import Inputs

UNITS: dict[str, Unit] = {
    "usd_per_hour": "GPU-hour",
    "usd_per_gb_month": "GB-month",
    "usd_per_engineer_hour": "engineer-hour",
}


def at(known: Ownership, inputs: Inputs) -> Ownership:
    """What every arm costs at these prices and volumes, with as many variants as there are tenants; served by machines
    that are on all month."""
    terms = Terms(
        variants=(inputs.tenants,),
        requests_per_month=inputs.requests_per_month,
        retrainings_per_month=inputs.retrainings_per_month,
        engineer_hours=inputs.engineer_hours,
        gpu_hour=_price(inputs, "usd_per_hour"),
        gb_month=_price(inputs, "usd_per_gb_month"),
        engineer_hour=_price(inputs, "usd_per_engineer_hour"),
        room_bytes=None if inputs.room_gib is None else inputs.room_gib * 2**30,
    )
    return own(known.task, known.taken, terms)


def _price(inputs: Inputs, name: str) -> Price | None:
    usd = getattr(inputs, name)
    return None if usd is None else given(usd, UNITS[name], where=f"inputs.{name}")


def bills(found: Ownership) -> dict[str, Owned]:
    """The bills by arm."""
    return {one.arm: one for one in found.owned}


def comparable(found: Ownership) -> dict[str, float]:
    """The first year's US dollars by arm, of arms whose total has all that any arm's has; empty where nothing is in."""
    left = {one.arm: set(one.left_out) for one in found.owned}
    shared = set.intersection(*left.values()) if left else set()
    priced = [one for one in found.owned if left[one.arm] == shared and (one.once.lines or one.monthly.lines)]
    return {one.arm: one.first_year_usd.low for one in priced if _has_price(one)}


def why_not(found: Ownership, arm: str) -> str:
    """What an arm's total lacks that another's has; empty if nothing."""
    left = {one.arm: set(one.left_out) for one in found.owned}
    more = sorted(left.get(arm, set()) - set.intersection(*left.values()))
    return f" (its first year lacks {', '.join(more)}, which others' have)" if more else ""


def _has_price(one: Owned) -> bool:
    return any(line.usd is not None for line in (*one.once.lines, *one.monthly.lines))


def lengths(found: Ownership) -> dict[str, dict[int, float]]:
    """How long each final was, by arm and seed, as a share of the mean of those seeds that all arms with times of
    several finals have."""
    timed = {one.arm: one.run_s for one in found.taken if len(one.run_s) > 1}
    seeds = sorted(set.intersection(*map(set, timed.values()))) if timed else []
    means = {arm: sum(run_s[s] for s in seeds) / len(seeds) for arm, run_s in timed.items() if len(seeds) > 1}
    return {arm: {s: timed[arm][s] / mean for s in seeds} for arm, mean in means.items()}


def by_seed(found: Ownership, tenants: int) -> dict[str, Mapping[int, float]]:
    """The same by arm and seed, as far as further runs take as long as each final did; nothing where times lack."""
    runs = [set(one.run_s) for one in found.taken if len(one.run_s) > 1]
    seeds = sorted(set.intersection(*runs)) if runs else []
    if len(seeds) < 2:
        return {}
    try:
        drawn = costs_per_draw(found, variants=tenants, seeds=seeds)
    except EvidenceError:  # not reckoned for so many
        return {}
    return {arm: dict(zip(seeds, usd_S.tolist(), strict=True)) for arm, usd_S in drawn.items()}
