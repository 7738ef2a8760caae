"""How each arm finds its learning rate: the same search with the same limits for every arm, on validation alone.

One seed's best rate is luck: taken at its word, it makes 10 to 27 % false verdicts at a nominal 5 %. So the best
point and its neighbours get several seeds, and the rate is the top of a parabola through the curve (`analysis.rates`).

An arm that is tuned on another base (`tuning.on`) is confirmed on its own: all seeds at the tried rate nearest to what
the search chose and at its neighbours, and beyond them while the best is at an end, up to five rates. The rate is the
top of a parabola through the confirmation; what the search alone would have lost is told (`rates.confirmation`).

Unless the study says `exhaustive`, the runs of the search stop at a rung (`plan.halving`).

The search is replayed from its beginning whenever it is asked: what is scheduled next depends on the complete
waves before, never on which trials of a wave happened to end first, so an interrupted search goes on as it would have.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tunetrial import methods
from tunetrial.analysis import arms
from tunetrial.analysis.rates import (
    HALF_DECADE,
    Point,
    Rate,
    at_end,
    best_point,
    choose,
    nearest_point,
    points,
    rounded,
    standing,
)
from tunetrial.core.evidence import Evidence
from tunetrial.core.study import Lock, Purpose, Trial, whole
from tunetrial.plan.halving import SHARE, going_on

FIRST_TUNING_SEED = 901
CONFIRMED_POINTS = 5


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
    if arms.does_not_fit(evidence, whole(task), arm):
        return Search()
    if not methods.find(lock.study.arm(arm)).tuned:
        return Search(rate=Rate(value=None, at_edge=False, how="nothing to tune", curve=()))
    first, seeds = grid(lock, arm), tuning_seeds(lock)
    most = max(tuning.max_points, len(first))
    purpose = "tune" if tuning.exhaustive else "rung"
    found = _follow(evidence, arm, task, {(rate, seeds[0]) for rate in first}, purpose=purpose, most=most)
    if found.rate is None:
        return found
    if lock.study.tuned_as(arm) == lock.study.arm(arm):
        return found if tuning.exhaustive else _completed(evidence, arm, task, found)
    near = nearest_point(found.rate)
    around = [point.learning_rate for point in found.rate.curve[max(near - 1, 0) : near + 2]]
    asked = {(rate, seed) for rate in around for seed in seeds}
    return _follow(evidence, arm, task, asked, purpose="confirm", most=CONFIRMED_POINTS)


def _follow(
    evidence: Evidence, arm: str, task: str, asked: set[tuple[float, int]], *, purpose: Purpose, most: int
) -> Search:
    """Go from what is asked for to what its results ask for, up to so many rates."""
    lock, seeds, share = evidence.lock, tuning_seeds(evidence.lock), SHARE if purpose == "rung" else None
    records = {(r.trial.learning_rate, r.trial.seed): r for r in evidence.of(purpose=purpose, arm=arm, task=task)}
    measurement = _measurement(lock, task)
    if share is not None:
        rungs = standing(tuple(records.values()), evidence.of(purpose="tune", arm=arm, task=task), measurement)
        records = dict(zip(records, rungs, strict=True))
    while True:
        pending = [
            lock.trial(arm, task, learning_rate=rate, seed=seed, purpose=purpose, share=share)
            for rate, seed in sorted(asked - records.keys())
        ]
        if pending:
            return Search(pending=tuple(pending))
        curve = points({key: records[key] for key in asked}, measurement)
        more = _wanted(curve, seeds, most) - asked
        if not more and share is not None:  # what was asked for before a rate fell counts as well
            more = records.keys() - asked
        if not more:
            return Search(rate=choose(curve))
        asked = asked | more


def _completed(evidence: Evidence, arm: str, task: str, found: Search) -> Search:
    """Let runs around the rate that the rungs lead to go on to their end, and take it to where they say."""
    lock, ends = evidence.lock, evidence.of(purpose="tune", arm=arm, task=task)
    pending = [
        lock.trial(arm, task, learning_rate=rate, seed=seed, purpose="tune")
        for rate, seed in sorted(going_on(found.rate, ends, _measurement(lock, task)))
    ]
    return (
        Search(pending=tuple(pending)) if pending else Search(rate=at_end(found.rate, ends, _measurement(lock, task)))
    )


def _measurement(lock: Lock, task: str) -> str:
    return f"validation.{lock.study.task(task).metric}"


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
    own = methods.find(lock.study.arm(arm)).learning_rate_centre(lock.base(arm).parameters)
    centre = lock.study.tuning.centres.get(arm, own)
    return tuple(rounded(centre * HALF_DECADE ** (place - (count - 1) // 2)) for place in range(count))


def _wanted(curve: Sequence[Point], seeds: tuple[int, ...], limit: int) -> set[tuple[float, int]]:
    """All seeds at the best point and its neighbours, going beyond the ends while the limit of points allows.

    Beyond an end lies the missing neighbour of a best point there, and what a parabola points to whose top is held
    back at that end. Where every run failed, one seed half a decade lower: what diverges does so at too high a rate.
    """
    rates = [point.learning_rate for point in curve]
    lower, higher = rounded(rates[0] / HALF_DECADE), rounded(rates[-1] * HALF_DECADE)
    best, may_grow = best_point(curve), len(rates) < limit
    if best is None:
        return {(lower, seeds[0])} if may_grow else set()
    wanted = {(rate, seed) for rate in rates[max(best - 1, 0) : best + 2] for seed in seeds}
    tried = {(point.learning_rate, seed) for point in curve for seed in (*point.scores, *point.failed)}
    value = rates[best] if wanted - tried else choose(curve).value
    beyond = lower if value <= rates[0] else higher if value >= rates[-1] else None
    return wanted | {(beyond, seed) for seed in seeds if beyond and may_grow}
