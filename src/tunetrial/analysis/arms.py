"""What each arm did on a task: its finals by seed, failed runs counted in, against the best constant prediction.

Intention to treat, fixed here for every study: a final that diverged counts as if it had predicted the constant, and
by a metric that no constant has (a likelihood) as the worst of all arms' finals on each example. An arm of which more
than half diverged has the state "diverged" and is compared with nothing.

An arm whose mean over all counted finals is not shown to be better than the constant "did not train", and so is one
that took steps and is not shown to be better than the untuned base where that has a score. It did not, even if some of
its finals are better: two that collapse in five are enough. What one run of such an arm gives cannot be relied on,
which is what a verdict is about; a mean of those that went well would be of runs chosen by their outcome. The reason
counts them. More seeds might yet show the mean to be better; the study does not go on for that, since looks settle
verdicts.

An arm in which nothing is random has one final, which stands for every seed: its scores vary with the rows alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tunetrial.analysis import metrics, rates, stats
from tunetrial.analysis.stats import Floats
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import ArmResult, ArmState, Evidence, Scores
from tunetrial.core.study import Study


@dataclass(frozen=True)
class Outcome:
    """An arm on one task: the result, and every counted final's contributions by seed, shape (E,)."""

    result: ArmResult
    parts: Mapping[int, Floats]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the finals that count, scored or diverged, in order."""
        return tuple(sorted(self.parts))

    def stack(self, seeds: tuple[int, ...]) -> Floats:
        """Contributions of these seeds, shape (R, E)."""
        return np.stack([self.parts[seed] for seed in seeds])

    def shared_look(self, other: "Outcome", looks: tuple[int, ...]) -> tuple[int, ...]:
        """The seeds of the last look that both have completed; none before the first."""
        shared = sorted(set(self.parts) & set(other.parts))
        return tuple(shared[: complete_look(len(shared), looks) or 0])


def complete_look(seeds: int, looks: tuple[int, ...]) -> int | None:
    """The last look for which so many seeds are enough; None before the first."""
    return max((look for look in looks if look <= seeds), default=None)


def reference(evidence: Evidence, task: str) -> str:
    """The arm that the others are compared with: the study's, or the first that fits where that one does not."""
    study = evidence.lock.study
    order = [study.reference, *(arm.name for arm in study.arms)]
    return next((arm for arm in order if not does_not_fit(evidence, task, arm)), study.reference)


def does_not_fit(evidence: Evidence, task: str, arm: str) -> bool:
    """Whether any trial of the arm ran out of memory at a micro-batch of one example."""
    trials = (
        r
        for purpose in ("tune", "rung", "confirm", "final", "probe")
        for r in evidence.of(purpose=purpose, task=task, arm=arm)
    )
    return any(r.status == "infeasible" for r in trials)


def scored_rows(evidence: Evidence, task: str, split: str = "test") -> Scores | None:
    """The first sound scores of a task's split: the rows that all finals must share."""
    found = (evidence.scores.get((r.trial.id, split)) for r in evidence.of(purpose="final", task=task))
    return next((scores for scores in found if sound(scores)), None)


def sound(scores: Scores | None) -> bool:
    """Whether scores are there, of one length, and finite where they are numbers."""
    if scores is None or len(scores.example_id_E) < 2:
        return False
    sides = [np.asarray(side) for side in (scores.target_E, scores.prediction_E, *scores.measured.values())]
    lengths = {len(scores.example_id_E), len(scores.cluster_E), *map(len, sides)}
    return len(lengths) == 1 and all(np.isfinite(side).all() for side in sides if side.dtype.kind in "iuf")


def same_rows(scores: Scores, others: Scores) -> bool:
    """Whether two trials were scored on the same examples, clusters and targets, in the same order."""
    rows, other_rows = ((s.example_id_E, s.cluster_E, list(s.target_E)) for s in (scores, others))
    return rows == other_rows


def constant(evidence: Evidence, task: str) -> str | float | None:
    """The best constant prediction: most frequent label, median (mae) or mean, of the validation targets.

    The validation split stands for training, whose targets are not part of the evidence; None without its scores.
    """
    spec = evidence.lock.study.task(task)
    records = evidence.of(purpose="final", task=task) + evidence.of(purpose="tune", task=task)
    found = (evidence.scores.get((r.trial.id, "validation")) for r in records)
    scores = next((s for s in found if sound(s)), None)
    if scores is None:
        return None
    if spec.kind == "regress":
        return float(np.median(scores.target_E) if spec.metric == "mae" else np.mean(scores.target_E))
    labels, count = np.unique(np.asarray(scores.target_E, dtype=str), return_counts=True)
    return str(labels[count.argmax()])


def outcome(evidence: Evidence, task: str, arm: str) -> Outcome:
    """Gather an arm's finals on a task, at the last complete look, and give its state."""
    study, finals = evidence.lock.study, evidence.of(purpose="final", task=task, arm=arm)
    metric, floor = metrics.find(study.task(task).metric), _floor(evidence, task)
    fixed, looks = study.arm(arm).fixed, evidence.lock.looks(task)
    failed = {r.trial.seed for r in finals if r.status == "diverged"}
    scored = {r.trial.seed: evidence.scores.get((r.trial.id, "test")) for r in finals if r.status == "ok"}
    scored = {seed: s for seed, s in scored.items() if sound(s) and same_rows(s, floor.rows)}
    parts = {seed: parts_of(metric, s) for seed, s in scored.items()}
    if floor.lost_E is not None:
        parts |= {seed: floor.lost_E for seed in failed}
    if fixed and parts:
        parts = dict.fromkeys(evidence.lock.final_seeds(looks[-1]), parts[min(parts)])
    seeds = sorted(failed | set(parts))
    counted = sorted(set(scored) | failed)[: 1 if fixed else complete_look(len(seeds), looks)]
    values = {seed: metrics.value(metric, scored[seed]) for seed in counted if seed in scored}
    values = {seed: value for seed, value in values.items() if value is not None}
    untuned = None if study.arm(arm).untrained else study.untuned(arm)
    base = outcome(evidence, task, untuned) if untuned else None
    worth = [values.get(seed, floor.lost) for seed in counted]
    rates = sorted({r.trial.learning_rate for r in finals} - {None})
    result = ArmResult(
        task=task,
        arm=arm,
        state="pending",
        learning_rate=rates[0] if len(rates) == 1 else None,
        at_edge=any(at_edge(evidence, task, arm, rate) for rate in rates),
        values=values,
        mean=float(np.mean(worth)) if worth else None,
        sd=float(np.std(worth, ddof=1)) if len(worth) > 1 else None,
        floor=floor.value,
        base=base and base.result.mean,
        failed=len(failed & set(counted)),
    )
    found = Outcome(result=result, parts=parts)
    state = _state(evidence, found, failed, floor, base)
    return replace(found, result=result.model_copy(update={"state": state}))


def at_edge(evidence: Evidence, task: str, arm: str, rate: float) -> bool:
    """Whether the best rate that tuning tried is an end of what it tried, or the chosen rate lies beyond the ends.

    The best has the highest mean validation score over its seeds; failed runs count as the worst run of the arm. True
    where nothing was tried, or nothing scored.
    """
    spec, tunes = evidence.lock.study.task(task), rates.settled(evidence, arm, task)
    name, turn = f"validation.{spec.metric}", 1 if metrics.find(spec.metric).higher_is_better else -1
    scored = [turn * r.measurements[name].value if name in r.measurements else None for r in tunes]
    worst = min((score for score in scored if score is not None), default=None)
    if worst is None:
        return True
    by_rate: dict[float, list[float]] = {}
    for record, score in zip(tunes, scored, strict=True):
        by_rate.setdefault(record.trial.learning_rate, []).append(worst if score is None else score)
    low, high = min(by_rate), max(by_rate)
    best = max(sorted(by_rate), key=lambda tried: np.mean(by_rate[tried]))
    return best in (low, high) or not low <= rate <= high


def lost(evidence: Evidence, task: str) -> float:
    """What a failed run counts as, in units of the metric; 0 where every run failed, and so nothing differs."""
    return _floor(evidence, task).lost


@dataclass(frozen=True)
class _Floor:
    """What a trained arm must beat on the test rows: the best constant prediction, as far as the metric has one.

    A failed final counts as `lost`, by example `lost_E`; where a constant is not defined it counts as 0.
    """

    rows: Scores | None = None
    value: float | None = None
    part_E: Floats | None = None
    lost: float = 0.0
    lost_E: Floats | None = None


def _floor(evidence: Evidence, task: str) -> _Floor:
    metric, rows = metrics.find(evidence.lock.study.task(task).metric), scored_rows(evidence, task)
    if rows is None:
        return _Floor()
    if metric.constant is None:
        return _no_floor(evidence, task, metric, rows)
    if metric.constant == "empty":
        zero_E = np.zeros(len(rows.target_E))
        return _Floor(rows, 0.0, zero_E, 0.0, zero_E)
    guess = constant(evidence, task)
    if guess is None:
        return _Floor(rows)
    guess_E = np.full(len(rows.target_E), guess, dtype=object if isinstance(guess, str) else float)
    guessed = replace(rows, prediction_E=guess_E)
    value, part_E = metrics.value(metric, guessed), parts_of(metric, guessed)
    return _Floor(rows, value, part_E, value or 0.0, part_E)


def _no_floor(evidence: Evidence, task: str, metric: metrics.Metric, rows: Scores) -> _Floor:
    found = (evidence.scores.get((r.trial.id, "test")) for r in evidence.of(purpose="final", task=task))
    worst_E = np.min([parts_of(metric, s) for s in found if sound(s) and same_rows(s, rows)], axis=0)
    return _Floor(rows, lost=float(worst_E.mean()) * (1 if metric.higher_is_better else -1), lost_E=worst_E)


def parts_of(metric: metrics.Metric, scores: Scores) -> Floats:
    """Contributions; 0 for each example where the metric is undefined, as a correlation with a constant is."""
    if metrics.value(metric, scores) is None:
        return np.zeros(len(scores.target_E))
    return metrics.contributions(metric, scores)


def _state(evidence: Evidence, found: Outcome, failed: set[int], floor: _Floor, base: Outcome | None) -> ArmState:
    study, task, arm = evidence.lock.study, found.result.task, found.result.arm
    if does_not_fit(evidence, task, arm):
        return "does not fit"
    tunes, metric = evidence.searching(task=task, arm=arm), study.task(task).metric
    settling = rates.settled(evidence, arm, task)
    if (
        not found.seeds
        and len(tunes) >= study.tuning.points
        and not any(f"validation.{metric}" in r.measurements for r in settling)
    ):
        return "diverged" if all(r.status == "diverged" for r in settling) else "did not train"
    looks = evidence.lock.looks(task)
    look = complete_look(len(failed | set(found.seeds)), looks)
    if look is None:
        return "pending"
    if 2 * len(failed & set(sorted(failed | set(found.seeds))[:look])) > look:
        return "diverged"
    if floor.lost_E is None:
        return "pending"
    above = [] if floor.part_E is None else [found.stack(found.seeds[:look]) - floor.part_E]
    if base is not None and (shared := found.shared_look(base, looks)):
        above.append(found.stack(shared) - base.stack(shared))
    return "trained" if all(_above_zero(above_RE, floor.rows, study) for above_RE in above) else "did not train"


def _above_zero(above_RE: Floats, rows: Scores, study: Study) -> bool:
    """Whether the one-sided bound of the mean lies above 0; no spread at all leaves no bound."""
    try:
        estimate = stats.crossed(stats.cluster_values(above_RE, rows.cluster_E))
    except EvidenceError:
        return False
    return estimate.p_not_below(0.0) <= stats.per_look(1 - study.rule.level, study.looks, sides=1)
