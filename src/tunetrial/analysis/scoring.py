"""Value functions between anchors, the criteria that can be weighed, and the prices and volumes that change the choice.

A value is 0 at the anchor `worst` and 1 at `best`, linear between or linear in the logarithm, and clipped outside: it
does not depend on which arms take part, so adding one never reorders the others. Weights are of the swings between
the anchors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tunetrial.analysis import metrics
from tunetrial.analysis.costs import Costs
from tunetrial.analysis.stats import Floats
from tunetrial.core.errors import ConfigError
from tunetrial.core.evidence import Flip
from tunetrial.core.scenario import SHARES, Criterion, Scenario
from tunetrial.core.study import Study

SURE = 0.8
SHAKE = 0.25
STEPS = 24


@dataclass(frozen=True)
class Scale:
    """One criterion in use: its share of the weights, and the values that mean 0 and 1."""

    name: str
    weight: float
    worst: float
    best: float
    log: bool = False

    def value(self, x: float | Floats) -> float | Floats:
        """Between 0 and 1; what is not above 0 has no logarithm and counts as the better anchor's side of it."""
        if not self.log:
            return np.clip((np.asarray(x) - self.worst) / (self.best - self.worst), 0.0, 1.0)
        least = min(self.worst, self.best)
        ratio = np.log(np.maximum(np.asarray(x), least) / self.worst)
        return np.clip(ratio / np.log(self.best / self.worst), 0.0, 1.0)

    @property
    def rises(self) -> bool:
        """Whether more is better."""
        return self.best > self.worst


def scales(scenario: Scenario, study: Study, *, floor: float | None) -> tuple[tuple[Scale, ...], dict[str, str]]:
    """The criteria that can be weighed, opinions among them, and why others cannot.

    Anchors that the user left out: for quality, the best constant prediction (0 for a correlation) and a perfect
    score; for shares never and always; for a cost, the limit of the same name and 0.
    """
    found, left = {}, {}
    metric = metrics.find(study.task(study.rule.primary).metric)
    for name, criterion in scenario.criteria.items():
        worst, best = _anchors(scenario, study, name, criterion, floor)
        if name == "quality" and criterion.worst is not None and (best > worst) != metric.higher_is_better:
            better, got = "more" if metric.higher_is_better else "less", f"got worst {worst:g} and best {best:g}"
            where = f"scenario {scenario.name}: criteria.quality"
            raise ConfigError(f"{where}: {better} {metric.name} is better, {got}; exchange worst and best")
        if worst is None or worst == best:
            left[name] = "it has no anchor `worst` and no limit"
        elif criterion.log and min(worst, best) <= 0:
            left[name] = f"a logarithm needs anchors above 0, got {worst:g} and {best:g}"
        else:
            found[name] = (criterion.weight, worst, best, criterion.log)
    found |= {name: (one.weight, one.worst, one.best, False) for name, one in scenario.opinions.items()}
    whole = sum(weight for weight, *_ in found.values())
    return tuple(Scale(name, w / whole, *anchors) for name, (w, *anchors) in found.items()), left


def _anchors(
    scenario: Scenario, study: Study, name: str, criterion: Criterion, floor: float | None
) -> tuple[float | None, float]:
    if name in SHARES:
        worst, best = 0.0, 1.0
    elif name != "quality":
        worst, best = scenario.limits.get(name), 0.0
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


def input_flips(
    what: str, scores: Callable[[float], Floats], arms: Sequence[str], *, now: float, most: float, least: float
) -> tuple[Flip, ...]:
    """The nearest prices or volumes, down to `least` and up to `most`, at which another arm is first; whole numbers
    where `now` is one.

    Found on a grid of 24 steps each way and then to the last digit: a first place held for less than a step may be
    passed over.
    """
    top, found, whole = int(scores(now).argmax()), [], isinstance(now, int)
    up = np.concatenate([[now], np.geomspace(now or most / 1e6, most, STEPS)])
    for grid in (np.linspace(now, least, STEPS), up):
        steps = [int(x) for x in dict.fromkeys(np.rint(grid).tolist())] if whole else grid.tolist()
        at = _first_change(scores, steps, top, whole=whole)
        if at is not None:
            found.append(Flip(what=what, now=now, at=at, to=arms[int(_beyond(scores, at, now).argmax())]))
    return tuple(found)


def _first_change(scores: Callable[[float], Floats], steps: Sequence[float], top: int, *, whole: bool) -> float | None:
    """Where along these steps the first arm is overtaken, by halving the step in which it is; None if nowhere."""

    def overtaken(x: float) -> bool:
        here = scores(x)
        return bool(here.max() > here[top] + 1e-12)

    for kept, lost in zip(steps, steps[1:], strict=False):
        if overtaken(lost):
            while abs(lost - kept) > (1 if whole else 1e-12 * max(abs(lost), abs(kept))):
                middle = (kept + lost) // 2 if whole else (kept + lost) / 2
                if middle in (kept, lost):
                    break
                kept, lost = (kept, middle) if overtaken(middle) else (middle, lost)
            return lost
    return None


def _beyond(scores: Callable[[float], Floats], at: float, now: float) -> Floats:
    """Scores at a flip or a hair beyond it, where two arms are equal no more."""
    return scores(at if isinstance(now, int) else at + 1e-9 * (at - now))


def opinions(scenario: Scenario, study: Study) -> Mapping[str, Mapping[str, float]]:
    """What the user says of each arm, by opinion: under its own name, or else its method's."""
    return {
        arm.name: {
            name: one.scores.get(arm.name, one.scores.get(arm.method))
            for name, one in scenario.opinions.items()
            if arm.name in one.scores or arm.method in one.scores
        }
        for arm in study.arms
    }
