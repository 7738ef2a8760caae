"""What runs of a study forgot beside what they learnt, and how much each arm forgets where two learnt the same.

Every run has one point: of finals, and where the study asks for its `frontier` of every run of the search for a rate.
Learnt is the metric on validation rows, turned so that higher is better, above that of the untuned base where it has
one, else above the best constant answer: so the base lies at 0 and 0. The test rows are not looked at, and rates are
chosen without a look at any text, so that nothing here can sway a verdict.

Frontiers are of the search's runs alone: those rates at which every seed of both arms came through, and the base. There
are as few seeds as a search has (3 by default): few for an interval, and all the more telling where it is short.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tunetrial.analysis import arms, frontier, metrics
from tunetrial.analysis.frontier import Points
from tunetrial.analysis.retention import lost_by_token, usable
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Evidence
from tunetrial.core.findings import Ends, Frontier, Point

STRETCHES = 24  # of the line that is drawn

ByRate = Mapping[float, Mapping[int, Point]]  # the points of an arm's search, by rate and seed


def frontiers(evidence: Evidence) -> tuple[Frontier, ...]:
    """One for each task and arm with a run whose learning and forgetting are both known."""
    study, found = evidence.lock.study, []
    for task in (task.name for task in study.tasks if study.retention):
        points = {arm.name: _points(evidence, task, arm.name) for arm in study.arms if not arm.untrained}
        reference = arms.reference(evidence, task)
        cut = evidence.lock.folding(task) is not None
        searches = {arm: {} if cut else _by_rate(own) for arm, own in points.items()}
        for arm, own in points.items():
            if own:
                against = searches.get(reference, {}) if arm != reference else {}
                line, equal = _frontier(searches[arm]), _against(searches[arm], against, study.rule.level)
                above = "the untuned base" if study.untuned(arm) else "the best constant answer"
                named = {"task": task, "arm": arm, "reference": reference, "above": above, "level": study.rule.level}
                found.append(Frontier(**named, points=own, line=line, **equal))
    return tuple(found)


def _points(evidence: Evidence, task: str, arm: str) -> tuple[Point, ...]:
    metric, found = evidence.lock.study.task(task).metric, []
    turn = 1 if metrics.find(metric).higher_is_better else -1
    zero = {part: _zero(evidence, part, arm) for part in evidence.lock.parts(task)}
    for record in (r for purpose in ("final", "tune") for r in evidence.of(purpose=purpose, task=task, arm=arm)):
        table = evidence.tables.get((record.trial.id, "forgetting"))
        scored, start = record.measurements.get(f"validation.{metric}"), zero[record.trial.task]
        if usable(table) and scored is not None and start is not None:
            found.append(
                Point(
                    learnt=turn * (scored.value - start),
                    forgotten=lost_by_token(table),
                    rate=record.trial.learning_rate,
                    seed=record.trial.seed,
                    final=record.trial.purpose == "final",
                )
            )
    return tuple(found)


def _zero(evidence: Evidence, part: str, arm: str) -> float | None:
    """The metric of what was not tuned, on the validation rows of a task or a fold; None where it has none."""
    study = evidence.lock.study
    spec, untuned = study.task(part), study.untuned(arm)
    metric = metrics.find(spec.metric)
    if untuned is not None:
        records = evidence.of(purpose="final", task=part, arm=untuned)
        found = (r.measurements.get(f"validation.{spec.metric}") for r in records)
        return next((one.value for one in found if one is not None), None)
    if metric.constant is None:
        return None
    if metric.constant == "empty":
        return 0.0
    finals = evidence.of(purpose="final", task=part)
    rows = next((s for r in finals if arms.sound(s := evidence.scores.get((r.trial.id, "validation")))), None)
    guess = arms.constant(evidence, part)
    if rows is None or guess is None:
        return None
    guess_E = np.full(len(rows.target_E), guess, dtype=object if isinstance(guess, str) else float)
    return metrics.value(metric, replace(rows, prediction_E=guess_E))


def _by_rate(points: tuple[Point, ...]) -> ByRate:
    found: dict[float, dict[int, Point]] = {}
    for point in points:
        if not point.final and point.rate is not None:
            found.setdefault(point.rate, {})[point.seed] = point
    return found


def _whole(search: ByRate, seeds: list[int]) -> Points | None:
    """The base and the rates at which all of these seeds came through; None if at none."""
    rates = [rate for rate, runs in sorted(search.items()) if set(seeds) <= runs.keys()]
    if not rates or not seeds:
        return None
    own = [[search[rate][seed] for rate in rates] for seed in seeds]
    learning_RP, forgetting_RP = (
        np.array([[0.0, *(getattr(point, name) for point in row)] for row in own]) for name in ("learnt", "forgotten")
    )
    return Points(learning_RP, forgetting_RP)


def _seeds(*searches: ByRate) -> list[int]:
    """The seeds that each search has at a rate of most seeds."""
    most = [max((runs.keys() for runs in search.values()), key=len, default=set()) for search in searches]
    return sorted(set.intersection(*map(set, most)))


def _frontier(search: ByRate) -> tuple[tuple[float, float], ...]:
    """The mean over seeds of their frontiers, up to what each of them learnt; nothing where some learnt nothing."""
    points = _whole(search, _seeds(search))
    if points is None or not points.reach_R.min() > 0:
        return ()
    at = np.linspace(0.0, float(points.reach_R.min()), STRETCHES + 1)
    return tuple((float(learning), float(points.at(learning).mean())) for learning in at)


def _against(search: ByRate, other: ByRate, level: float) -> dict[str, float | int | Ends]:
    """How much more an arm forgets than the reference where both learnt what every run of both reached, and on average
    up to there; nothing without a frontier of both that rises."""
    seeds = _seeds(search, other) if search and other else []
    both = [_whole(one, seeds) for one in (search, other)]
    if len(seeds) < 2 or None in both:
        return {}
    reach = frontier.common_reach(both)
    if not reach > 0:
        return {}
    try:
        equal = frontier.equal_learning(*both, learning=reach)
        apart = frontier.frontiers_apart(*both, low=0.0, high=reach)
    except EvidenceError:  # no spread between seeds to judge by
        return {}
    ends = {name: (one.effect, *one.interval(level)) for name, one in (("equal", equal), ("apart", apart))}
    return {"learning": reach, "seeds": len(seeds), **ends}
