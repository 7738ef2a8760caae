"""Drift over runs: one number a run and layer, replicates are seeds.

Layers of a run are repeated measures of it: a curve, and never a sample. What an arm's drift is, and whether two arms'
differ, is asked of the mean over layers, one number a seed (`overall`, `difference`); of single layers only to explore,
with the share of false discoveries held (`by_layer_difference`).

A run that learnt more has mostly drifted more, so two arms are also compared at equal score: where each run passes a
score on its way (`matched`), or, without checkpoints, by what is left of the difference at no difference in score
(`adjusted`). Drift is a distance; nothing here says that it is bad.

Axis letters: R replicate (seed), L layer, C checkpoint.
"""

from collections.abc import Sequence

import numpy as np
import scipy  # its statistics load at first use

from tunetrial.analysis.stats import Estimate, Floats, paired
from tunetrial.core.errors import EvidenceError
from tunetrial.core.records import Record

Course = tuple[Floats, Floats]


class LayerDrift(Record):
    """Of one layer: mean over seeds and its t interval; no interval where the seeds do not differ at all."""

    layer: int
    mean: float
    low: float | None
    high: float | None


class LayerDifference(Record):
    """Exploratory: candidate minus reference in one layer, `p` of a paired t test over seeds and `q`, that p adjusted
    for the layers tested (Benjamini & Hochberg 1995). Both None where all seeds show the same difference."""

    layer: int
    difference: float
    p: float | None
    q: float | None


def curve(drift_RL: Floats, *, level: float = 0.95) -> tuple[LayerDrift, ...]:
    """Summarise each layer over seeds. The intervals are each layer's own: no level is claimed for all together.

    Raises:
        EvidenceError: Fewer than 2 seeds, or a value that is not finite.
    """
    drift_RL = _runs(drift_RL)
    return tuple(_layer(layer, drift_R, level) for layer, drift_R in enumerate(drift_RL.T))


def _layer(layer: int, drift_R: Floats, level: float) -> LayerDrift:
    low, high = paired(drift_R).interval(level) if np.ptp(drift_R) > 0 else (None, None)
    return LayerDrift(layer=layer, mean=float(drift_R.mean()), low=low, high=high)


def overall(drift_RL: Floats) -> Estimate:
    """Estimate an arm's drift, the mean over layers, over new seeds; the rows that it was measured on are held fixed.

    Raises:
        EvidenceError: Fewer than 2 seeds, a value that is not finite, or seeds that do not differ.
    """
    return paired(_runs(drift_RL).mean(axis=1))


def difference(candidate_RL: Floats, reference_RL: Floats) -> Estimate:
    """Estimate the difference in drift, candidate minus reference, mean over layers; [r] share the seed.

    It says nothing of why: the arm that learnt more may have drifted more (`matched`, `adjusted`).

    Raises:
        EvidenceError: As `overall`, or the shapes differ.
    """
    return overall(_differences(candidate_RL, reference_RL))


def by_layer_difference(candidate_RL: Floats, reference_RL: Floats) -> tuple[LayerDifference, ...]:
    """Explore in which layers two arms drift apart; layers without spread are not among those adjusted for.

    Declaring those with q up to 0.05 keeps the expected share of false ones among them at 5 % (Benjamini & Yekutieli
    2001 for tests that depend positively on each other, which layers of one run do).

    Raises:
        EvidenceError: As `difference`, except that seeds may agree.
    """
    difference_RL = _differences(candidate_RL, reference_RL)
    spread_L = np.ptp(difference_RL, axis=0) > 0
    p = {int(layer): paired(difference_RL[:, layer]).p_not_zero() for layer in np.flatnonzero(spread_L)}
    q = dict(zip(p, scipy.stats.false_discovery_control(list(p.values())).tolist(), strict=True)) if p else {}
    return tuple(
        LayerDifference(layer=layer, difference=float(mean), p=p.get(layer), q=q.get(layer))
        for layer, mean in enumerate(difference_RL.mean(axis=0))
    )


def at_score(score_C: Floats, drift_C: Floats, score: float) -> float | None:
    """The drift of one run when it first reaches a score, linear between the checkpoints before and after.

    Args:
        score_C: By checkpoint in the order of training, higher is better; the untuned base (drift 0) may be the first.
        drift_C: Of the same checkpoints.
    Returns:
        None where the run never reaches it, or has passed it at its first checkpoint already.
    """
    score_C, drift_C = _course(score_C, drift_C)
    reached = np.flatnonzero(score_C >= score)
    if len(reached) == 0 or (reached[0] == 0 and score_C[0] > score):
        return None
    after = int(reached[0])
    if after == 0:
        return float(drift_C[0])
    part = (score - score_C[after - 1]) / (score_C[after] - score_C[after - 1])
    return float(drift_C[after - 1] + part * (drift_C[after] - drift_C[after - 1]))


def common_score(courses: Sequence[Course]) -> float:
    """The highest score that every run reaches."""
    return min(float(_course(*course)[0].max()) for course in courses)


def matched(candidate: Sequence[Course], reference: Sequence[Course], *, score: float) -> Estimate:
    """Estimate the difference in drift at equal score: candidate minus reference when each run first reaches it.

    One course (scores, drifts by checkpoint) a seed, [r] of both with the same seed. The score is taken as given:
    where it was chosen by these courses (`common_score`), it is for the score that these seeds happened to reach.
    Scores are taken as measured without error.

    Raises:
        EvidenceError: A run does not pass the score, or there are fewer than 2 pairs.
    """
    if len(candidate) != len(reference):
        raise EvidenceError(f"courses: need the same seeds, got {len(candidate)} and {len(reference)}; pair them")
    drift_AR = [[at_score(*course, score) for course in arm] for arm in (candidate, reference)]
    missing = sum(drift is None for drift_R in drift_AR for drift in drift_R)
    if missing:
        what = f"courses: {missing} of {2 * len(candidate)} runs do not pass the score {score:g} between checkpoints"
        raise EvidenceError(f"{what}; choose one that all pass, and begin courses at the untuned base")
    return paired(np.subtract(*drift_AR))


def adjusted(drift_difference_R: Floats, score_difference_R: Floats) -> Estimate:
    """Estimate the difference in drift that is left at equal score, from final runs alone: the constant of a line
    through differences in drift over differences in score, candidate minus reference on the same seed.

    It takes the relation as linear and scores as measured without error (error in scores flattens the line, and leaves
    part of what learning explains in the estimate). `matched` needs neither.

    Raises:
        EvidenceError: Fewer than 4 pairs, or no difference in score is 0 or of the other sign than the rest: equal
            score would then lie outside of what was seen.
    Source: ordinary least squares, R - 2 degrees of freedom.
    """
    y_R, x_R = (np.asarray(side, dtype=np.float64) for side in (drift_difference_R, score_difference_R))
    if y_R.shape != x_R.shape or y_R.ndim != 1 or len(y_R) < 4 or not np.isfinite([y_R, x_R]).all():
        raise EvidenceError(f"differences: need 4 or more finite pairs, got {y_R.shape} and {x_R.shape}; add seeds")
    if not x_R.min() <= 0 <= x_R.max() or np.ptp(x_R) == 0:
        got = f"differences in score from {x_R.min():g} to {x_R.max():g}"
        raise EvidenceError(f"differences: the arms' scores do not overlap, got {got}; measure drift at checkpoints")
    squares = float(((x_R - x_R.mean()) ** 2).sum())
    slope = float((x_R - x_R.mean()) @ y_R) / squares
    constant = float(y_R.mean() - slope * x_R.mean())
    df = len(y_R) - 2
    residual = float(((y_R - constant - slope * x_R) ** 2).sum()) / df
    if residual == 0:
        raise EvidenceError("differences: they lie on a line without error, no spread to judge by; check the runs")
    return Estimate(effect=constant, se=(residual * (1 / len(y_R) + float(x_R.mean()) ** 2 / squares)) ** 0.5, df=df)


def _runs(drift_RL: Floats) -> Floats:
    drift_RL = np.asarray(drift_RL, dtype=np.float64)
    if drift_RL.ndim != 2 or len(drift_RL) < 2 or drift_RL.shape[1] < 1 or not np.isfinite(drift_RL).all():
        missing = int((~np.isfinite(drift_RL)).sum())
        got = f"got shape {drift_RL.shape} with {missing} values that are not finite"
        raise EvidenceError(f"drift: need 2 or more seeds by layers, {got}; add seeds, leave out what has no value")
    return drift_RL


def _differences(candidate_RL: Floats, reference_RL: Floats) -> Floats:
    candidate_RL, reference_RL = _runs(candidate_RL), _runs(reference_RL)
    if candidate_RL.shape != reference_RL.shape:
        shapes = f"got {candidate_RL.shape} and {reference_RL.shape}"
        raise EvidenceError(f"drift: arms are not paired, {shapes}; keep the seeds and layers that both have")
    return candidate_RL - reference_RL


def _course(score_C: Floats, drift_C: Floats) -> Course:
    score_C, drift_C = (np.asarray(side, dtype=np.float64) for side in (score_C, drift_C))
    if score_C.shape != drift_C.shape or score_C.ndim != 1 or not len(score_C):
        raise EvidenceError(f"course: need a drift a score, got {score_C.shape} and {drift_C.shape}; pair them")
    if not (np.isfinite(score_C).all() and np.isfinite(drift_C).all()):
        raise EvidenceError("course: some values are not finite; leave out checkpoints of runs that diverged")
    return score_C, drift_C
