"""The learning-rate curve of an arm: its points, the rate chosen from it, and what that rate is expected to lose.

Verdicts are of arms each at its best rate, and tuning only comes near it. What the chosen rate lacks is a loss that no
final shows, since all finals have that rate; so it is estimated here, from how sure the curve is of its top.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tunetrial.analysis import metrics
from tunetrial.analysis.stats import Floats
from tunetrial.core.evidence import Confirmation, Evidence, TrialRecord
from tunetrial.core.findings import SearchCost
from tunetrial.core.records import Record

HALF_DECADE = 10**0.5
FIT_STEPS = 2
FIT_SDS = 2.5
COMPLETED = 2
# How far the best rate at a rung may lie from that at the end: a prior; tiny real runs moved as far (B11).
SHIFT_SD_DECADES = 0.3


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

    `at_edge`: it is the lowest or highest tried, and the limit of points forbids a further one. `expected_regret` is
    what the rate is expected to lose against the best one, in units of the metric; None where the best point has no
    neighbour on one side, or no rate has two scores.
    """

    value: float | None
    at_edge: bool
    how: Literal["parabola", "best point", "nothing to tune"]
    curve: tuple[Point, ...]
    expected_regret: float | None = None


def tuned(evidence: Evidence, arm: str, task: str) -> Rate | None:
    """The rate that all tuning trials of an arm on a task lead to, or those of its confirmation if it has one; None if
    there are none, or if all failed."""
    found = settled(evidence, arm, task)
    curve = _curve(evidence, found, task)
    rate = choose(curve) if curve else None
    if rate is None or not _of_rungs(found):
        return rate
    return at_end(rate, evidence.of(purpose="tune", arm=arm, task=task), _measurement(evidence, task))


def settled(evidence: Evidence, arm: str, task: str) -> tuple[TrialRecord, ...]:
    """The records that an arm's rate is chosen from, those of rates that fell after their rung as diverged."""
    found = evidence.settling(arm=arm, task=task)
    if not _of_rungs(found):
        return found
    return standing(found, evidence.of(purpose="tune", arm=arm, task=task), _measurement(evidence, task))


def _of_rungs(found: Sequence[TrialRecord]) -> bool:
    return any(record.trial.purpose == "rung" for record in found)


def at_end(rate: Rate, ends: Sequence[TrialRecord], measurement: str) -> Rate:
    """Move a rate that was found at a rung to where runs that went on to their end say that the best one is by then.

    What each run at the best point and its neighbours gained from the rung to its end, by the same seed and rows, has a
    slope over log10(rate) of 2 * bend * shift if the parabola moved by `shift` decades. That is taken together with a
    normal prior of mean 0 and SD 0.3 decades; the variance of a gain is twice that of a score. What is then not known
    of the shift is expected to lose bend * Var(shift) more. The bend is that of the three points, at least one that
    lowers a neighbour by a quarter of a score's SD. A rate may not leave the best point's neighbours.

    Where a run is missing the prior stands alone. A rate whose loss cannot be told stays as it is.
    """
    place, variance = best_point(rate.curve), _variance(rate.curve)
    near = rate.curve[max(place - 1, 0) : place + 2]
    if rate.expected_regret is None or variance is None or len(near) < 3:
        return rate
    low, high = math.log10(near[0].learning_rate), math.log10(near[2].learning_rate)
    apart, sd, top = (high - low) / 2, variance**0.5, near[1].mean
    drop = sum(FIT_SDS * sd if p.mean is None else top - p.mean for p in (near[0], near[2]))
    bend = max(drop / 2, sd / 4) / apart**2
    gains = _gains(near, points(_by_run(ends), measurement))
    if gains is None or bend == 0:
        shift, unknown = 0.0, SHIFT_SD_DECADES**2
    else:
        of_data = variance / (2 * apart * bend) ** 2
        trust = SHIFT_SD_DECADES**2 / (SHIFT_SD_DECADES**2 + of_data)
        shift, unknown = trust * (gains[2] - gains[0]) / (4 * apart * bend), trust * of_data
    value = rounded(10 ** min(max(math.log10(rate.value) + shift, low), high))
    edges = rate.curve[0].learning_rate, rate.curve[-1].learning_rate
    moved = {"value": value, "at_edge": value in edges, "expected_regret": rate.expected_regret + bend * unknown}
    return rate.model_copy(update=moved)


def _gains(near: Sequence[Point], at_end: Sequence[Point]) -> list[float] | None:
    """What the first seed that has all scores gained from the rung to the end at each of these points."""
    ended = {point.learning_rate: point.scores for point in at_end}
    seeds = set.intersection(*(set(p.scores) & set(ended.get(p.learning_rate, ())) for p in near))
    return [ended[p.learning_rate][min(seeds)] - p.scores[min(seeds)] for p in near] if seeds else None


def standing(rungs: Sequence[TrialRecord], ends: Sequence[TrialRecord], measurement: str) -> tuple[TrialRecord, ...]:
    """The records of rungs, those at fallen rates as diverged.

    A rate falls, and with it every higher one, where none of its runs that went on to their end held what it had at
    the rung (two of them, or one if no other was scored there): to diverge or collapse late is what no rung can show.
    """
    curve = points(_by_run(rungs), measurement)
    held = [(point, held_to_end(curve, place, ends, measurement)) for place, point in enumerate(curve)]
    fallen = [p for p, held_at in held if not any(held_at.values()) and len(held_at) >= least_completed(p)]
    lowest = min((point.learning_rate for point in fallen), default=math.inf)
    lost = {"status": "diverged", "measurements": {}}
    return tuple(r if r.trial.learning_rate < lowest else r.model_copy(update=lost) for r in rungs)


def _by_run(records: Sequence[TrialRecord]) -> dict[tuple[float, int], TrialRecord]:
    return {(r.trial.learning_rate, r.trial.seed): r for r in records}


def least_completed(point: Point) -> int:
    """How many of a point's runs must have gone on to their end without holding before its rate falls."""
    return max(1, min(COMPLETED, len(point.scores)))


def held_to_end(curve: Sequence[Point], place: int, ends: Sequence[TrialRecord], measurement: str) -> dict[int, bool]:
    """By seed, of the runs that went on to their end from a point of a rung's curve, whether each held its score.

    It did if it is not worse at the end than 2.5 standard deviations of a score below what it was at the rung.
    """
    point, noise = curve[place], FIT_SDS * (_variance(curve) or 0.0) ** 0.5
    own = _by_run([r for r in ends if r.trial.learning_rate == point.learning_rate])
    at_end = next(iter(points(own, measurement)), Point(learning_rate=point.learning_rate, scores={}))
    held = {seed: score >= point.scores.get(seed, math.inf) - noise for seed, score in at_end.scores.items()}
    return held | dict.fromkeys(at_end.failed, False)


def search_costs(evidence: Evidence) -> tuple[SearchCost, ...]:
    """What the searches that stopped runs at a rung took, by task and arm; none of an exhaustive study."""
    lock = evidence.lock
    if lock.study.tuning.exhaustive:
        return ()
    parts = [part for task in lock.study.tasks for part in lock.parts(task.name)]
    found = (search_cost(evidence, arm.name, part) for part in parts for arm in lock.study.arms)
    return tuple(one for one in found if one)


def search_cost(evidence: Evidence, arm: str, task: str) -> SearchCost | None:
    """What the search of an arm's rate took, from the curves of its runs; None before the first step of any.

    A run that could not go on from its rung (nothing was kept of it) was trained again, and is counted so.
    """
    by_course: dict[str, list[TrialRecord]] = {}
    for record in (*evidence.searching(arm=arm, task=task), *evidence.of(purpose="tune", arm=arm, task=task)):
        by_course.setdefault(record.trial.course, []).append(record)
    courses = [_course(evidence, records) for records in by_course.values()]
    courses = [course for course in courses if course]
    if not courses:
        return None
    steps, whole, train_s, whole_s = (list(column) for column in zip(*courses, strict=True))
    timed = None not in train_s
    return SearchCost(
        task=task,
        arm=arm,
        runs=len(courses),
        steps=sum(steps),
        whole_steps=sum(whole),
        train_s=math.fsum(train_s) if timed else None,
        whole_s=math.fsum(whole_s) if timed else None,
    )


def _course(evidence: Evidence, records: Sequence[TrialRecord]) -> tuple[int, int, float | None, float | None] | None:
    """Steps that a run took and would have taken to its end, and the seconds of both; None before its first step."""
    curves = {r.trial.id: evidence.curves.get(r.trial.id, ()) for r in records}
    longest = max(records, key=lambda r: len(curves[r.trial.id]))
    curve = curves[longest.trial.id]
    if not curve:
        return None
    again = longest.status == "ok" and "taken_up" not in longest.measurements
    taken = [step for one in (curves.values() if again else (curve,)) for step in one]
    ended = all(record.status == "ok" for record in records if curves[record.trial.id])
    whole = curve[-1]["steps"] if ended else len(curve)
    if not all("seconds" in step for step in taken):
        return len(taken), whole, None, None
    train_s = math.fsum(step["seconds"] for step in taken)
    return len(taken), whole, train_s, train_s * whole / len(taken)


def confirmation(evidence: Evidence, arm: str, task: str) -> Confirmation | None:
    """What a confirmation found of the rate that was searched for on another base; None without one, or if all runs
    failed."""
    confirmed, tried = (
        _curve(evidence, found, task)
        for found in (evidence.of(purpose="confirm", arm=arm, task=task), evidence.searching(arm=arm, task=task))
    )
    best, searched = (best_point(confirmed), choose(tried)) if confirmed and tried else (None, None)
    if best is None or searched is None:
        return None
    asked = searched.curve[nearest_point(searched)].learning_rate
    mean = next((point.mean for point in confirmed if point.learning_rate == asked), None)
    top = confirmed[best]
    return Confirmation(
        task=task,
        arm=arm,
        searched=asked,
        best=top.learning_rate,
        regret=None if mean is None else top.mean - mean,
        seeds=len(top.scores) + len(top.failed),
        rates=len(confirmed),
    )


def _curve(evidence: Evidence, found: Sequence[TrialRecord], task: str) -> tuple[Point, ...]:
    return points(_by_run(found), _measurement(evidence, task))


def _measurement(evidence: Evidence, task: str) -> str:
    return f"validation.{evidence.lock.study.task(task).metric}"


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
    best = best_point(curve)
    if best is None:
        return None
    fit = _fit(curve, best) if 0 < best < len(curve) - 1 else None
    peaked = fit is not None and fit.bend < 0
    value = rounded(10**fit.top) if peaked else curve[best].learning_rate
    return Rate(
        value=value,
        at_edge=not curve[0].learning_rate < value < curve[-1].learning_rate,
        how="parabola" if peaked else "best point",
        curve=tuple(curve),
        expected_regret=fit and fit.expected_regret,
    )


@dataclass(frozen=True)
class _Parabola:
    """bend * x**2 + slope * x + constant, x in decades from the best point, whose neighbours are at low and high.

    `covariance` is that of the coefficients, (3, 3) in this order, None where the spread of a score is not known.
    """

    centre: float
    low: float
    high: float
    bend: float
    slope: float
    covariance: Floats | None

    @property
    def top(self) -> float:
        """Where it is highest between the neighbours, as log10 of the rate; the best point if it has no top."""
        top = self.centre - self.slope / self.bend / 2 if self.bend < 0 else self.centre
        return min(max(top, self.low), self.high)

    @property
    def expected_regret(self) -> float | None:
        """What the top is expected to lose against the best rate, |bend| * Var(top), in units of the score.

        By the delta method that is Var(slope at the top) / (4 |bend|). It grows as the bend shrinks, up
        to a bend at which the top's variance is the largest that a value confined between the neighbours can have, a
        quarter of their squared distance (Popoviciu 1935). A bend smaller than that, or none, cannot be told from it
        and counts as that: no curve, however flat, makes the expected loss larger.
        """
        if self.covariance is None:
            return None
        gradient = np.array([2 * (self.top - self.centre), 1.0, 0.0])
        slope_sd = float(gradient @ self.covariance @ gradient) ** 0.5
        bend = max(-self.bend, slope_sd / (self.high - self.low))
        return slope_sd**2 / (4 * bend) if bend > 0 else 0.0


def _fit(curve: Sequence[Point], best: int) -> _Parabola:
    """Fit the parabola that `choose` describes; the best point has neighbours on both sides."""
    near = curve[max(best - FIT_STEPS, 0) : best + FIT_STEPS + 1]
    known = [(math.log10(p.learning_rate), p.mean, len(p.scores) + len(p.failed)) for p in near if p.mean is not None]
    failed = [(math.log10(p.learning_rate), -math.inf, len(p.failed)) for p in near if p.mean is None]
    log_rate_P, mean_P, seeds_P = (np.array(column) for column in zip(*sorted(known + failed), strict=True))
    variance = _variance(curve)
    reach = FIT_SDS * (variance or 0.0) ** 0.5 or float(np.ptp(mean_P[np.isfinite(mean_P)]))
    drop_P = np.minimum(curve[best].mean - mean_P, reach)
    low, centre, high = (math.log10(point.learning_rate) for point in curve[best - 1 : best + 2])
    fitted, unscaled = np.polyfit(log_rate_P - centre, -drop_P, 2, w=np.sqrt(seeds_P), cov="unscaled")
    covariance = None if variance is None else variance * unscaled
    return _Parabola(centre, low, high, float(fitted[0]), float(fitted[1]), covariance)


def _variance(curve: Sequence[Point]) -> float | None:
    """Of a score between seeds at one rate, pooled over the rates; None without two seeds anywhere."""
    spread = [statistics.variance(p.scores.values()) for p in curve if len(p.scores) > 1]
    freedom = [len(p.scores) - 1 for p in curve if len(p.scores) > 1]
    return float(np.average(spread, weights=freedom)) if spread else None


def nearest_point(rate: Rate) -> int:
    """The place on its curve of the rate tried nearest to a chosen one."""
    away = [abs(math.log(point.learning_rate / rate.value)) for point in rate.curve]
    return away.index(min(away))


def best_point(curve: Sequence[Point]) -> int | None:
    """The place of the highest mean; of equals, the lowest rate."""
    means = [-math.inf if point.mean is None else point.mean for point in curve]
    return None if max(means) == -math.inf else means.index(max(means))


def rounded(rate: float) -> float:
    """Three digits: the same rate, hence the same trial, on every machine."""
    return float(f"{rate:.3g}")
