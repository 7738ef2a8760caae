"""How far an arm's answers change with the wording of the inputs, and which arm holds up better on its worst.

Of finals that came through, on the test rows as they are and under every variant that the task asks for; it opens
nothing. Seeds and rows are crossed in every interval; the variants are those that were tried, and nothing is claimed of
others. No verdict rests on this: an arm that always gives one wrong answer agrees with itself under any wording.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tunetrial.analysis import arms, consistency, intervals, metrics, texts
from tunetrial.analysis.intervals import Interval
from tunetrial.analysis.stats import Floats
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Evidence, Scores
from tunetrial.core.findings import Ends, Wordings
from tunetrial.core.pins import VARIANT
from tunetrial.core.study import TaskSpec
from tunetrial.core.variants import PLAIN

FEWEST_SEEDS = 2
UNBOUNDED_UNITS = ("nats a token", "bits a byte")


@dataclass(frozen=True)
class Told:
    """What one arm said to every variant, by seed: one Scores a variant, the rows as they are first."""

    spec: TaskSpec
    by_seed: Mapping[int, tuple[Scores, ...]]
    fixed: bool

    @property
    def names(self) -> list[str]:
        return [PLAIN, *(variant.name for variant in self.spec.variants)]

    @property
    def cluster_E(self) -> tuple[str, ...]:
        return next(iter(self.by_seed.values()))[0].cluster_E

    def stack(self, of: Callable[[Scores], np.ndarray], seeds: Sequence[int]) -> np.ndarray:
        """Something of every seed, variant and example, shape (R, V, E); an arm in which nothing is random has one
        final, which stands for every seed."""
        only = next(iter(self.by_seed.values())) if self.fixed else None
        return np.stack([[of(one) for one in self.by_seed.get(seed, only)] for seed in seeds])


def wordings(evidence: Evidence, *, level: float = 0.95) -> tuple[Wordings, ...]:
    """One for each arm with 2 or more finals of different seeds (or one in which nothing is random) on each task that
    asks for variants."""
    study, found = evidence.lock.study, []
    for spec in (spec for spec in study.tasks if spec.variants):
        told = {arm.name: _told(evidence, spec, arm.name) for arm in study.arms}
        reference = arms.reference(evidence, spec.name)
        for arm, own in told.items():
            if len(own.by_seed) >= (1 if own.fixed else FEWEST_SEEDS):
                against = told[reference] if arm != reference and told[reference].by_seed else None
                found.append(_wordings(arm, own, reference, against, level))
    return tuple(found)


def _told(evidence: Evidence, spec: TaskSpec, arm: str) -> Told:
    """Of finals with sound scores of all variants, all on the same rows."""
    splits = ["test", *(f"{VARIANT}{variant.name}" for variant in spec.variants)]
    rows, by_seed = arms.scored_rows(evidence, spec.name), {}
    for record in evidence.of(purpose="final", task=spec.name, arm=arm):
        scores = tuple(evidence.scores.get((record.trial.id, split)) for split in splits)
        if record.status == "ok" and all(arms.sound(one) and arms.same_rows(one, rows) for one in scores):
            by_seed[record.trial.seed] = scores
    return Told(spec, by_seed, evidence.lock.study.arm(arm).fixed)


def _wordings(arm: str, own: Told, reference: str, against: Told | None, level: float) -> Wordings:
    metric, seeds, cluster_E = metrics.find(own.spec.metric), sorted(own.by_seed), own.cluster_E
    part_RVE = own.stack(_parts(metric), seeds)
    worst = consistency.worst_variant(part_RVE, own.names, cluster_E, level=level)
    turn = 1 if metric.higher_is_better else -1
    right_RVE = None if _right(own.spec, metric) is None else own.stack(_right(own.spec, metric), seeds)
    everywhere = None if right_RVE is None else consistency.right_everywhere_parts(right_RVE)
    return Wordings(
        task=own.spec.name,
        arm=arm,
        scores=dict(zip(own.names, (turn * part_RVE.mean(axis=(0, 2))).tolist(), strict=True)),
        worst=worst.variant,
        worst_score=_turned(worst.score, turn),
        **_same(own, seeds, level),
        right=None if right_RVE is None else float(right_RVE[:, 0].mean()),
        right_everywhere=None if everywhere is None else _ends(intervals.of_share(everywhere, cluster_E, level=level)),
        sources=_sources(right_RVE if right_RVE is not None else part_RVE if metric.is_mean else None),
        **({} if against is None else _gaps(own, reference, against, metric, level)),
        level=level,
        seeds=len(seeds),
        examples=part_RVE.shape[2],
    )


def _same(own: Told, seeds: Sequence[int], level: float) -> dict[str, object]:
    """How far answers stay the same: labels and texts by agreement, numbers by their spread."""
    if own.spec.kind == "regress":
        said_RVE = own.stack(lambda scores: np.asarray(scores.prediction_E, dtype=np.float64), seeds)
        found = intervals.of_root(consistency.variant_variance_parts(said_RVE), own.cluster_E, level=level)
        return {"measure": "SD between variants", "same": _ends(found)}
    said_RVE = own.stack(lambda scores: _canonical(own.spec, scores), seeds)
    found = intervals.of_share(consistency.variant_agreement_parts(said_RVE), own.cluster_E, level=level)
    return {"measure": "agreement", "same": _ends(found)}


def _canonical(spec: TaskSpec, scores: Scores) -> np.ndarray:
    said = [str(one) for one in scores.prediction_E]
    return np.array([texts.canonical(spec.metric, one) for one in said] if spec.kind == "generate" else said, object)


def _parts(metric: metrics.Metric) -> Callable[[Scores], Floats]:
    """Contributions to the metric; 0 for each example where it is not defined, as in verdicts."""

    def of(scores: Scores) -> Floats:
        if metrics.value(metric, scores) is None:
            return np.zeros(len(scores.target_E))
        return metrics.contributions(metric, scores)

    return of


def _right(spec: TaskSpec, metric: metrics.Metric) -> Callable[[Scores], Floats] | None:
    """Whether an answer is right: the target's label, or a text of the full score; None where nothing is."""
    if spec.kind == "classify":
        return lambda scores: np.array(
            [p == t for p, t in zip(scores.prediction_E, scores.target_E, strict=True)], float
        )
    if spec.kind == "regress" or not metric.is_mean or metric.unit in UNBOUNDED_UNITS:
        return None
    return lambda scores: (_parts(metric)(scores) >= 1 - 1e-12).astype(np.float64)


def _sources(score_RVE: Floats | None) -> dict[str, float]:
    if score_RVE is None or min(score_RVE.shape) < 2:
        return {}
    return consistency.sources(score_RVE).model_dump()


def _gaps(own: Told, reference: str, against: Told, metric: metrics.Metric, level: float) -> dict[str, object]:
    """The arm minus the reference on whichever variant is each one's worst, and on rows right under all variants."""
    if own.fixed or against.fixed:
        seeds = sorted(against.by_seed if own.fixed else own.by_seed)
    else:
        seeds = sorted(own.by_seed.keys() & against.by_seed.keys())
    if not seeds:
        return {"against": reference}
    cluster_E, right = own.cluster_E, _right(own.spec, metric)
    both = [side.stack(_parts(metric), seeds) for side in (own, against)]
    worst = _defined(lambda: consistency.compare_worst(*both, own.names, cluster_E, level=level))
    gap = None
    if right is not None:
        everywhere = [consistency.right_everywhere_parts(side.stack(right, seeds)) for side in (own, against)]
        gap = _defined(lambda: consistency.compare(*everywhere, cluster_E, level=level))
    return {"against": reference, "worst_gap": worst, "right_gap": gap}


def _defined(compare: Callable[[], Interval]) -> Ends | None:
    try:
        return _ends(compare())
    except EvidenceError:  # no spread to judge by
        return None


def _ends(found: Interval) -> Ends:
    return found.value, found.low, found.high


def _turned(found: Interval, turn: int) -> Ends:
    """In units of the metric, where less may be better."""
    return _ends(found) if turn > 0 else (-found.value, _minus(found.high), _minus(found.low))


def _minus(end: float | None) -> float | None:
    return None if end is None else -end
