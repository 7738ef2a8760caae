"""Few rows: what each arm did in every fold, and the difference of two arms over folds.

Each fold of each repeat has its own search of each arm's learning rate, on validation rows outside of the fold, and one
final an arm, of the same seed. The estimand is the difference to expect of two arms that are tuned and trained anew on
as many rows as a fold leaves, and tested on new rows. What a search loses is part of every difference then, and another
search is made in every fold: nothing is added for it, as it is where all finals share one tuned rate (`rates`).

Failed runs count as elsewhere (`arms`): a final that diverged, or an arm that diverged at every rate of a fold, has
the constant's value there. An arm of which more than half of the folds failed has diverged; one that is not shown to
be better than the constant and the untuned base, by the same variance as a verdict, did not train.
"""

from dataclasses import dataclass

import numpy as np

from tunetrial.analysis import arms, metrics, stats
from tunetrial.analysis.arms import Outcome
from tunetrial.analysis.stats import Estimate, Floats
from tunetrial.analysis.verdict import Verdict
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import ArmResult, ArmState, Evidence
from tunetrial.core.study import Lock, whole


@dataclass(frozen=True)
class _Fold:
    """An arm in one fold; `lost` is what a failed run counts as."""

    result: ArmResult
    lost: float

    @property
    def failed(self) -> bool:
        return self.result.failed > 0 or (not self.result.values and self.result.state in ("diverged", "did not train"))

    @property
    def value(self) -> float | None:
        """The metric; None while the final is awaited."""
        return next(iter(self.result.values.values()), self.lost if self.failed else None)

    def above(self, turn: int) -> float:
        """How much better than the constant; a failed run is as good as it."""
        return 0.0 if self.failed or self.value is None else turn * (self.value - (self.result.floor or 0.0))


def outcome(evidence: Evidence, task: str, arm: str) -> Outcome:
    """Gather an arm's folds and give its state; `parts` has one turned number a fold, by its place."""
    study = evidence.lock.study
    turn = 1 if metrics.find(study.task(task).metric).higher_is_better else -1
    untuned = None if study.arm(arm).untrained else study.untuned(arm)
    base = outcome(evidence, task, untuned) if untuned else None
    names = evidence.lock.parts(task)
    folds = [_Fold(arms.outcome(evidence, name, arm).result, arms.lost(evidence, name)) for name in names]
    known = {place: fold for place, fold in enumerate(folds, start=1) if fold.value is not None}
    worth = [fold.value for fold in known.values()]
    found = {fold.result.learning_rate for fold in folds}
    floors = [fold.result.floor for fold in folds if fold.result.floor is not None]
    parts = {place: np.array([turn * fold.value]) for place, fold in known.items()}
    result = ArmResult(
        task=task,
        arm=arm,
        state=_state(evidence, Outcome(folds[0].result, parts), folds, base, turn),
        learning_rate=found.pop() if len(found) == 1 else None,
        at_edge=any(fold.result.at_edge for fold in folds),
        values={seed: value for fold in folds for seed, value in fold.result.values.items()},
        mean=float(np.mean(worth)) if worth else None,
        sd=float(np.std(worth, ddof=1)) if len(worth) > 1 else None,
        floor=float(np.mean(floors)) if floors else None,
        base=base and base.result.mean,
        failed=sum(fold.failed for fold in folds),
    )
    return Outcome(result, parts)


def _state(evidence: Evidence, found: Outcome, folds: list[_Fold], base: Outcome | None, turn: int) -> ArmState:
    task, arm = whole(found.result.task), found.result.arm
    if arms.does_not_fit(evidence, task, arm):
        return "does not fit"
    if 2 * sum(fold.failed for fold in folds) > len(folds):
        return "diverged"
    if any(fold.value is None for fold in folds):
        return "pending"
    above = []
    if metrics.find(evidence.lock.study.task(task).metric).constant is not None:
        above.append(np.array([fold.above(turn) for fold in folds]))
    if base is not None and base.seeds == found.seeds:
        above.append((found.stack(found.seeds) - base.stack(base.seeds))[:, 0])
    return "trained" if all(_above_zero(evidence.lock, task, diff_J) for diff_J in above) else "did not train"


def _above_zero(lock: Lock, task: str, diff_J: Floats) -> bool:
    """Whether the one-sided bound of the mean lies above 0; no spread at all leaves no bound."""
    try:
        return estimate(lock, task, diff_J).p_not_below(0.0) <= 1 - lock.study.rule.level
    except EvidenceError:
        return False


def estimate(lock: Lock, task: str, diff_J: Floats) -> Estimate:
    """Estimate from one difference a fold, in the order of `Lock.parts`."""
    return stats.resampled(diff_J, test_to_train=test_to_train(lock, task))


def test_to_train(lock: Lock, task: str) -> float:
    """Rows of a fold over rows outside of it, on average.

    Those outside are all that an arm is given: by the validation rows among them its learning rate is chosen.
    """
    counts = [lock.data[name].counts for name in lock.parts(task)]
    outside = sum(count["train"] + count["validation"] for count in counts)
    return sum(count["test"] for count in counts) / outside


def tested(evidence: Evidence, task: str) -> tuple[int, int]:
    """How many rows, in how many clusters, are test rows once a repeat."""
    first = evidence.lock.parts(task)[: evidence.lock.folding(task).folds]
    rows = [arms.scored_rows(evidence, name) for name in first]
    clusters = {cluster for scores in rows if scores for cluster in scores.cluster_E}
    return sum(evidence.lock.data[name].counts["test"] for name in first), len(clusters)


def procedure(lock: Lock, task: str, judged: Verdict, *, rows: int, clusters: int) -> str:
    """Name the test, its levels and what they allow for, for the methods section of a report."""
    cut, first = lock.folding(task), lock.data[lock.parts(task)[0]].counts
    family = len(lock.study.tasks) * (len(lock.study.arms) - 1)
    return (
        f"corrected resampled t (Nadeau & Bengio 2003) over {cut} of {rows} rows in {clusters} clusters, variance "
        f"(1/{cut.splits} + {test_to_train(lock, task):.3g}) s2, df {cut.splits - 1}; a fold's arms learn from about "
        f"{first['train']} rows at rates chosen on {first['validation']} more, so what tuning loses is in every "
        f"difference; direction two-sided at {100 * judged.level:.2f} %, margin one-sided at "
        f"{100 * judged.bound_level:.2f} % with lower bound {judged.bound:.4g}; levels allow for a family of {family} "
        "(Holm); there is one look"
    )
