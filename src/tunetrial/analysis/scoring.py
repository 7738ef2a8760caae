"""Weighing by the user's criteria: value functions between anchors, weights, and where the first place would change.

A value is 0 at the anchor `worst` and 1 at `best`, linear between and clipped outside: it does not depend on which
arms take part, so adding one never reorders the others. Weights are of the swings between the anchors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its optimisers load at first use

from tunetrial.analysis import metrics
from tunetrial.analysis.costs import Costs
from tunetrial.analysis.stats import Estimate, Floats
from tunetrial.core.evidence import Flip
from tunetrial.core.study import Criterion, Study

DRAWS = 10_000
SURE = 0.8
SHAKE = 0.25


@dataclass(frozen=True)
class Scale:
    """One criterion in use: its share of the weights, and the values that mean 0 and 1."""

    name: str
    weight: float
    worst: float
    best: float

    def value(self, x: float | Floats) -> float | Floats:
        """Between 0 and 1."""
        return np.clip((np.asarray(x) - self.worst) / (self.best - self.worst), 0.0, 1.0)


def scales(study: Study, *, floor: float | None) -> tuple[tuple[Scale, ...], tuple[str, ...]]:
    """The criteria that can be weighed, and in words those that cannot.

    Anchors that the user left out: for quality, the best constant prediction (0 for a correlation) and a perfect
    score; for people's preference never and always; for a cost, the limit of the same name and 0.
    """
    found, left = {}, []
    for name, criterion in study.criteria.items():
        worst, best = _anchors(study, name, criterion, floor)
        if worst is None or worst == best:
            left.append(f"{name} is not weighed: it has no anchor `worst` and no limit")
        else:
            found[name] = (criterion.weight, worst, best)
    whole = sum(weight for weight, _, _ in found.values())
    return tuple(Scale(name, w / whole, worst, best) for name, (w, worst, best) in found.items()), tuple(left)


def _anchors(study: Study, name: str, criterion: Criterion, floor: float | None) -> tuple[float | None, float]:
    if name == "preference":
        worst, best = 0.0, 1.0
    elif name != "quality":
        worst, best = study.limits.get(name), 0.0
    else:
        worst = floor or 0.0
        best = 1.0 if metrics.find(study.task(study.rule.primary).metric).higher_is_better else 0.0
    return (
        worst if criterion.worst is None else criterion.worst,
        best if criterion.best is None else criterion.best,
    )


def weights(scales: Sequence[Scale]) -> Floats:
    return np.array([scale.weight for scale in scales])


def values(arms: Sequence[str], scales: Sequence[Scale], costs: Costs) -> Floats:
    """Value of each arm by each criterion, shape (arms, criteria)."""
    return np.array([[float(s.value(costs[arm][s.name].value)) for s in scales] for arm in arms])


def first_shares(
    arms: Sequence[str],
    scales: Sequence[Scale],
    costs: Costs,
    effects: Mapping[str, Estimate],
    *,
    turn: int,
) -> dict[str, float]:
    """In what share of draws each arm is first, as far as the effects are known; 1 or -1 turns an effect into quality.

    The arm without an effect is the reference, which stays where it is. Draws of different candidates are independent,
    which overstates the doubt between two of them; costs do not vary.
    """
    rng = np.random.default_rng(0)
    score = np.tile((values(arms, scales, costs) @ weights(scales))[:, None], DRAWS)
    for scale in (s for s in scales if s.name == "quality"):
        for row, arm in enumerate(arms):
            mean, effect = costs[arm]["quality"].value, effects.get(arm)
            drawn = mean + turn * effect.se * rng.standard_t(effect.df, DRAWS) if effect else mean
            score[row] += scale.weight * (scale.value(drawn) - scale.value(mean))
    first = score.argmax(axis=0)
    return {arm: float((first == row).mean()) for row, arm in enumerate(arms)}


def weight_flips(arms: Sequence[str], scales: Sequence[Scale], costs: Costs) -> tuple[Flip, ...]:
    """For each criterion the nearest weights, down and up, at which another arm is first, the others kept in ratio."""
    value, weight, found = values(arms, scales, costs), weights(scales), []
    top = int((value @ weight).argmax())
    for j, scale in enumerate(scales if len(scales) > 1 else ()):
        rest = (value @ weight - value[:, j] * weight[j]) / (1 - weight[j])
        gain, lead = value[top, j] - value[:, j], rest[top] - rest
        # First place at weight w: w * gain + (1 - w) * lead >= 0 for every rival.
        with np.errstate(divide="ignore", invalid="ignore"):
            at = lead / (lead - gain)
        inside = [(float(w), k) for k, w in enumerate(at) if k != top and 0 <= w <= 1]
        below = max((c for c in inside if c[0] < weight[j]), default=None)
        above = min((c for c in inside if c[0] >= weight[j]), default=None)
        for w, k in filter(None, (below, above)):
            found.append(Flip(what=f"weight of {scale.name}", now=float(weight[j]), at=w, to=arms[k]))
    return tuple(found)


def price_flips(arms: Sequence[str], scales: Sequence[Scale], costs: Costs, usd_per_hour: float) -> tuple[Flip, ...]:
    """The nearest prices of an hour, down to 0 and up to a hundred times, at which another arm is first."""
    money = next((j for j, s in enumerate(scales) if s.name == "cost_usd"), None)
    if money is None or usd_per_hour <= 0:
        return ()
    value, weight = values(arms, scales, costs), weights(scales)
    usd = np.array([costs[arm]["cost_usd"].value for arm in arms])

    def scores(price: float) -> Floats:
        changed = value.copy()
        changed[:, money] = scales[money].value(usd * price / usd_per_hour)
        return changed @ weight

    top, found = int(scores(usd_per_hour).argmax()), []
    for grid in (np.linspace(usd_per_hour, 0, 400), usd_per_hour * np.geomspace(1, 100, 400)):
        at = _first_change(scores, grid, top)
        if at is not None:
            price, k = at
            found.append(Flip(what="price of an hour in USD", now=usd_per_hour, at=price, to=arms[k]))
    return tuple(found)


def _first_change(scores: Callable[[float], Floats], grid: Floats, top: int) -> tuple[float, int] | None:
    """Where along a grid another arm overtakes, and which."""
    for a, b in zip(grid, grid[1:], strict=False):
        here = scores(b)
        k = int(here.argmax())
        if here[k] > here[top] + 1e-12:

            def lead(price: float, k: int = k) -> float:
                return float(scores(price)[top] - scores(price)[k])

            return (float(a) if lead(a) <= 0 else float(scipy.optimize.brentq(lead, a, b))), k
    return None


def shaken(arms: Sequence[str], scales: Sequence[Scale], costs: Costs) -> str | None:
    """The criterion whose weight, changed by a quarter of itself, changes the first place; None if none does."""
    value, weight = values(arms, scales, costs), weights(scales)
    top = int((value @ weight).argmax())
    for j, scale in enumerate(scales):
        for factor in (1 - SHAKE, 1 + SHAKE):
            changed = weight * np.where(np.arange(len(weight)) == j, factor, 1.0)
            if int((value @ changed).argmax()) != top:
                return scale.name
    return None
