"""How far an arm's answers change with nothing but the seed, and how far they differ from the reference's.

Of finals that came through, on the rows of the test split that gave the verdict; it opens nothing. One that diverged
gave no answers and is left out here, as the count of seeds shows. No verdict rests on this: an arm that always gives
one wrong answer agrees with itself.
"""

import numpy as np

from tunetrial.analysis import arms, consistency, intervals, texts
from tunetrial.analysis.intervals import Interval
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Evidence, Scores
from tunetrial.core.findings import Repeats
from tunetrial.core.study import Kind

FEWEST_SEEDS = 3


def repeats(evidence: Evidence, *, level: float = 0.95) -> tuple[Repeats, ...]:
    """One for each task and arm with 3 or more finals of different seeds; none of a task in folds, whose finals have
    rows of their own, nor of an arm in which nothing is random."""
    study = evidence.lock.study
    found = []
    for task in (task for task in study.tasks if evidence.lock.folding(task.name) is None):
        answers = {arm.name: _answers(evidence, task.name, arm.name) for arm in study.arms if not arm.fixed}
        against = answers.get(arms.reference(evidence, task.name), {})
        for arm, own in answers.items():
            if len(own) >= FEWEST_SEEDS:
                other = {} if own is against else against
                found.append(_repeats(task.name, arm, task.kind, task.metric, own, other, level))
    return tuple(found)


def agreement_by_seed(evidence: Evidence, task: str, arm: str) -> dict[int, float]:
    """An arm's agreement with itself as pseudo-values by seed: they average to it and vary as its estimate does
    (`consistency.agreement_parts`). Empty for numbers, of which hardly two are the same, and where `repeats` has none.
    """
    spec, answers = evidence.lock.study.task(task), _answers(evidence, task, arm)
    if spec.kind == "regress" or evidence.lock.folding(task) is not None or len(answers) < FEWEST_SEEDS:
        return {}
    seeds, cluster_E = sorted(answers), next(iter(answers.values())).cluster_E
    part_RE = consistency.agreement_parts(_stack(answers, seeds, spec.kind, spec.metric))
    return dict(zip(seeds, intervals.clustered(part_RE, cluster_E).mean(axis=1).tolist(), strict=True))


def _answers(evidence: Evidence, task: str, arm: str) -> dict[int, Scores]:
    """Scores of an arm's finals by seed, all on the same rows."""
    finals = evidence.of(purpose="final", task=task, arm=arm)
    scored = {r.trial.seed: evidence.scores.get((r.trial.id, "test")) for r in finals if r.status == "ok"}
    rows = arms.scored_rows(evidence, task)
    return {seed: s for seed, s in scored.items() if arms.sound(s) and arms.same_rows(s, rows)}


def _repeats(
    task: str, arm: str, kind: Kind, metric: str, own: dict[int, Scores], other: dict[int, Scores], level: float
) -> Repeats:
    said_RE, cluster_E = _stack(own, sorted(own), kind, metric), next(iter(own.values())).cluster_E
    if kind == "regress":
        same = intervals.of_root(consistency.variance_parts(said_RE), cluster_E, level=level)
        beyond = consistency.icc(said_RE, level=level)
    else:
        same = intervals.of_share(consistency.agreement_parts(said_RE), cluster_E, level=level)
        beyond = consistency.alpha(said_RE, cluster_E, level=level)
    shared = sorted(own.keys() & other.keys()) if kind != "regress" else []
    churn = None
    if shared:
        both = (_stack(scores, shared, kind, metric) for scores in (own, other))
        churn = _interval(consistency.churn_parts(*both), cluster_E, level)
    return Repeats(
        task=task,
        arm=arm,
        measure="SD between seeds" if kind == "regress" else "agreement",
        same=_ends(same),
        beyond_chance=beyond and _ends(beyond),
        churn=churn and _ends(churn),
        level=level,
        seeds=len(own),
        examples=said_RE.shape[1],
    )


def _interval(part_RE: np.ndarray, cluster_E: tuple[str, ...], level: float) -> Interval | None:
    try:
        return intervals.of_share(part_RE, cluster_E, level=level)
    except EvidenceError:  # one cluster alone: nothing to judge by
        return None


def _ends(found: Interval) -> tuple[float, float | None, float | None]:
    return found.value, found.low, found.high


def _stack(scores: dict[int, Scores], seeds: list[int], kind: Kind, metric: str) -> np.ndarray:
    """Answers (R, E): numbers, labels, or texts in the one form that the metric takes for the same answer."""
    if kind == "regress":
        return np.stack([np.asarray(scores[seed].prediction_E, dtype=np.float64) for seed in seeds])
    said = [[str(one) for one in scores[seed].prediction_E] for seed in seeds]
    return np.array([[texts.canonical(metric, one) for one in row] for row in said] if kind == "generate" else said)
