"""How each arm finds its learning rate: the same search with the same limits for every arm, on validation alone.

One seed's best rate is luck: taken at its word, it makes 10 to 27 % false verdicts at a nominal 5 %. So the best
point and its neighbours get several seeds, and the rate is the top of a parabola through the curve.

The search is replayed from its beginning whenever it is asked: what is scheduled next depends on the complete
waves before, never on which trials of a wave happened to end first, so an interrupted search goes on as it would have.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tunetrial import methods
from tunetrial.analysis import metrics
from tunetrial.core.evidence import Evidence, TrialRecord
from tunetrial.core.records import Record
from tunetrial.core.study import Lock, Trial

HALF_DECADE = 10**0.5
FIT_STEPS = 2
FIT_SDS = 2.5
FIRST_TUNING_SEED = 901


class Point(Record):
    """One rate of the curve: its validation scores by seed, turned so that higher is better; which seeds failed.

    A failed run, diverged or without a defined score, counts in `mean` as the worst score that any run of the arm
    had on the task; `mean` is None if every run here failed.
    """

    learning_rate: float
    scores: dict[int, float]
    failed: tuple[int, ...] = ()
    mean: float | None = None


class Rate(Record):
    """The learning rate chosen for an arm on a task, and the curve it was chosen from; None for one without steps.

    `at_edge`: it is the lowest or highest tried, and the limit of points forbids a further one.
    """

    value: float | None
    at_edge: bool
    how: Literal["parabola", "best point", "nothing to tune"]
    curve: tuple[Point, ...]


@dataclass(frozen=True)
class Search:
    """Where the search of an arm on a task stands: trials still to be run, or the rate, or neither if it failed."""

    pending: tuple[Trial, ...] = ()
    rate: Rate | None = None


def search(evidence: Evidence, arm: str, task: str) -> Search:
    """Replay the search and say what comes next.

    It fails, giving neither trials nor a rate, if the arm does not fit, or diverges at every rate allowed.
    """
    lock, tuning = evidence.lock, evidence.lock.study.tuning
    records = {(r.trial.learning_rate, r.trial.seed): r for r in evidence.of(purpose="tune", arm=arm, task=task)}
    if any(r.status == "infeasible" and r.trial.arm.name == arm and r.trial.task == task for r in evidence.records):
        return Search()
    if not methods.find(lock.study.arm(arm)).tuned:
        return Search(rate=Rate(value=None, at_edge=False, how="nothing to tune", curve=()))
    seeds = tuning_seeds(lock)
    asked = {(rate, seeds[0]) for rate in grid(lock, arm)}
    while True:
        pending = sorted(asked - records.keys())
        if pending:
            return Search(pending=tuple(_trial(lock, arm, task, rate, seed) for rate, seed in pending))
        curve = points({key: records[key] for key in asked}, f"validation.{lock.study.task(task).metric}")
        more = _wanted(curve, seeds, max(tuning.max_points, len(grid(lock, arm)))) - asked
        if not more:
            return Search(rate=choose(curve))
        asked |= more


def tuning_seeds(lock: Lock) -> tuple[int, ...]:
    """Seeds of tuning: no final trial ever has one of them."""
    first = 1000 * lock.study.seed + FIRST_TUNING_SEED
    return tuple(range(first, first + lock.study.tuning.seeds))


def grid(lock: Lock, arm: str) -> tuple[float, ...]:
    """The rates that the search begins with, ascending: those given, or half-decades around the arm's centre;
    none for an arm that takes no steps."""
    if not methods.find(lock.study.arm(arm)).tuned:
        return ()
    given, count = lock.study.tuning.learning_rate, lock.study.tuning.points
    if given != "auto":
        return tuple(sorted(set(given)))
    own = methods.find(lock.study.arm(arm)).learning_rate_centre(lock.parameters)
    centre = lock.study.tuning.centres.get(arm, own)
    return tuple(_rounded(centre * HALF_DECADE ** (place - (count - 1) // 2)) for place in range(count))


def points(records: Mapping[tuple[float, int], TrialRecord], measurement: str) -> tuple[Point, ...]:
    """Gather records by (rate, seed) into the curve, in order of rate."""
    higher = metrics.find(measurement.split(".", 1)[1]).higher_is_better
    sign = 1.0 if higher else -1.0
    score = {
        key: sign * record.measurements[measurement].value
        for key, record in records.items()
        if record.status == "ok" and measurement in record.measurements
    }
    worst, curve = min(score.values(), default=None), []
    for rate in sorted({rate for rate, _ in records}):
        seeds = sorted(seed for other, seed in records if other == rate)
        scores = {seed: score[rate, seed] for seed in seeds if (rate, seed) in score}
        failed = tuple(seed for seed in seeds if seed not in scores)
        total = math.fsum(scores.values()) + len(failed) * (worst or 0.0)
        mean = total / len(seeds) if scores else None
        curve.append(Point(learning_rate=rate, scores=scores, failed=failed, mean=mean))
    return tuple(curve)


def choose(curve: Sequence[Point]) -> Rate | None:
    """Choose the rate at the top of a parabola through the mean scores over log10(rate), weighted by seeds.

    It is fitted to the best point and those within two half-decades of it, and may not leave the best point's
    neighbours. A score counts as at most 2.5 standard deviations of a run below the best: how bad a bad rate is says
    nothing about where the best one lies, and a collapse on one side would otherwise push the top far to the other.
    (In simulations a free fit made up to 40 % false verdicts where curves fall off a cliff, this one 5 to 9 %.) Where
    a neighbour is missing or the parabola has no top, the best point itself. None if every run failed.
    """
    best = _best(curve)
    if best is None:
        return None
    inner = 0 < best < len(curve) - 1
    top = _top(curve, best) if inner else None
    value = curve[best].learning_rate if top is None else _rounded(10**top)
    at_edge = not curve[0].learning_rate < value < curve[-1].learning_rate
    return Rate(value=value, at_edge=at_edge, how="best point" if top is None else "parabola", curve=tuple(curve))


def _top(curve: Sequence[Point], best: int) -> float | None:
    """Where the parabola is highest, as log10 of the rate; None if it has no top."""
    near = curve[max(best - FIT_STEPS, 0) : best + FIT_STEPS + 1]
    known = [(math.log10(p.learning_rate), p.mean, len(p.scores) + len(p.failed)) for p in near if p.mean is not None]
    failed = [(math.log10(p.learning_rate), -math.inf, len(p.failed)) for p in near if p.mean is None]
    log_rate_P, mean_P, seeds_P = (np.array(column) for column in zip(*sorted(known + failed), strict=True))
    drop_P = np.minimum(curve[best].mean - mean_P, _reach(curve, mean_P[np.isfinite(mean_P)]))
    centre = math.log10(curve[best].learning_rate)
    bend, slope, _ = np.polyfit(log_rate_P - centre, -drop_P, 2, w=np.sqrt(seeds_P))
    if bend >= 0:
        return None
    low, high = (math.log10(curve[place].learning_rate) for place in (best - 1, best + 1))
    return min(max(centre - float(slope / bend) / 2, low), high)


def _reach(curve: Sequence[Point], mean_P: np.ndarray) -> float:
    """How far below the best a score counts: 2.5 pooled standard deviations between seeds of one rate.

    Without two seeds anywhere, or without spread, all of the drops that were seen.
    """
    spread = [statistics.variance(p.scores.values()) for p in curve if len(p.scores) > 1]
    freedom = [len(p.scores) - 1 for p in curve if len(p.scores) > 1]
    pooled = float(np.average(spread, weights=freedom)) ** 0.5 if spread else 0.0
    return FIT_SDS * pooled or float(np.ptp(mean_P))


def _wanted(curve: Sequence[Point], seeds: tuple[int, ...], limit: int) -> set[tuple[float, int]]:
    """All seeds at the best point and its neighbours, going beyond the ends while the limit of points allows.

    Beyond an end lies the missing neighbour of a best point there, and what a parabola points to whose top is held
    back at that end. Where every run failed, one seed half a decade lower: what diverges does so at too high a rate.
    """
    rates = [point.learning_rate for point in curve]
    lower, higher = _rounded(rates[0] / HALF_DECADE), _rounded(rates[-1] * HALF_DECADE)
    best, may_grow = _best(curve), len(rates) < limit
    if best is None:
        return {(lower, seeds[0])} if may_grow else set()
    wanted = {(rate, seed) for rate in rates[max(best - 1, 0) : best + 2] for seed in seeds}
    tried = {(point.learning_rate, seed) for point in curve for seed in (*point.scores, *point.failed)}
    value = rates[best] if wanted - tried else choose(curve).value
    beyond = lower if value <= rates[0] else higher if value >= rates[-1] else None
    return wanted | {(beyond, seed) for seed in seeds if beyond and may_grow}


def _best(curve: Sequence[Point]) -> int | None:
    """The place of the highest mean; of equals, the lowest rate."""
    means = [-math.inf if point.mean is None else point.mean for point in curve]
    return None if max(means) == -math.inf else means.index(max(means))


def _trial(lock: Lock, arm: str, task: str, rate: float, seed: int) -> Trial:
    return lock.trial(arm, task, learning_rate=rate, seed=seed, purpose="tune")


def _rounded(rate: float) -> float:
    """Three digits: the same rate, hence the same trial, on every machine."""
    return float(f"{rate:.3g}")
