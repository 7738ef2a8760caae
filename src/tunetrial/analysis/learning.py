"""Learning curves: how soon a run has learned what it will, its area, and the best to expect of so many trials.

A plateau is the level at the end of the run's own schedule and no asymptote: a longer schedule may end higher. Training
losses are of rows that the run has seen before, from the second epoch on. Values are turned so that higher is better
(minus the loss). Axis letters: R replicate (seed), S step or evaluation, N trial, B budget in trials.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from tunetrial.analysis import stats
from tunetrial.analysis.stats import Estimate, Floats
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Evidence
from tunetrial.core.findings import Learned, Reached

FEWEST_POINTS = 5
# The last fifth: with it a straight line, which never levels off, is told from a plateau at any share from 0.9 on.
PLATEAU_SHARE = 0.2
# What the largest standardised break of independent normal noise without a change exceeds in about 5 % of curves of
# 100 points, in 7 % of 1,000 (simulated; Yao & Davis 1986 give the limit).
BREAK = 3.2


@dataclass(frozen=True)
class Course:
    """A run's training loss by optimiser step, NaN from where it diverged, and what had been taken by the end of each
    step. `usd_S` is None without a price of the hour.

    Seconds and money are of this run as it was executed, a member of a pack its share: to compare arms by cost, scale
    steps by the seconds of a step that their probes took.
    """

    loss_S: Floats
    steps_S: Floats
    examples_S: Floats
    tokens_S: Floats
    seconds_S: Floats
    usd_S: Floats | None


def course(lines: Sequence[Mapping], *, rows: int, batch_examples: int, usd_per_hour: float | None = None) -> Course:
    """Read the lines of a run's curve; an epoch's last step has the examples that are left of `rows`.

    Raises:
        EvidenceError: There are no lines, or steps are missing.
    """
    step_S = np.array([line["step"] for line in lines], dtype=np.int64)
    if not len(step_S) or (step_S != np.arange(1, len(step_S) + 1)).any():
        raise EvidenceError(f"curve: must hold steps 1, 2, …, got {step_S[:5].tolist()}; train the run again")
    loss_S = np.array([math.nan if line["loss"] is None else line["loss"] for line in lines], dtype=np.float64)
    seconds_S = np.cumsum([line["seconds"] for line in lines])
    epoch_S, within_S = np.divmod(step_S, math.ceil(rows / batch_examples))
    return Course(
        loss_S=loss_S,
        steps_S=step_S.astype(np.float64),
        examples_S=(epoch_S * rows + within_S * batch_examples).astype(np.float64),
        tokens_S=np.cumsum([line["tokens"] for line in lines]).astype(np.float64),
        seconds_S=seconds_S,
        usd_S=None if usd_per_hour is None else seconds_S / 3600 * usd_per_hour,
    )


def first_at(x_S: Floats, value_S: Floats, target: float) -> float | None:
    """Where the increasing curve fitted to the values by least squares first has the target; None if it never has.

    The isotonic fit lies at or above a level from the least argmin of the running sum of (value - level) on, so no fit
    need be made. Nothing is smoothed but what falls. Seen from late noise the place is a little early or late; how
    much depends on slope and noise there (the error falls with the cube root of the points).

    Source: the switch relation of Groeneboom (1985).
    """
    x_S, value_S = _checked(x_S, value_S)
    place = int(np.argmin(np.concatenate([[0.0], np.cumsum(value_S - target)])))
    return float(x_S[place]) if place < len(x_S) else None


def to_plateau(x_S: Floats, value_S: Floats, *, share: float, start: float | None = None) -> float | None:
    """Where a run first has this share of all that it gains, from `start` to its plateau; None if that is not seen.

    The plateau is the mean over the last fifth of the points, `start` the first value unless what the base had before
    training is known. None is "not within this run", never a missing value: the run diverged (its values end in NaN),
    or no break in the values exceeds their noise, or it has the share only within the last fifth, so that it was not
    seen to be level.

    Args:
        share: Of the gain, from 0.9 (at which a straight line is told from a plateau) to below 1.
    Raises:
        EvidenceError: Fewer than 5 points, x that does not rise, a gap in the values, or another share.
    """
    if not 0.9 <= share < 1:
        raise EvidenceError(f"share: must be at least 0.9 and below 1, got {share}; 0.9 and 0.95 are usual")
    x_S, value_S = np.asarray(x_S, dtype=np.float64), np.asarray(value_S, dtype=np.float64)
    lost_S = np.isnan(value_S)
    if lost_S.any() and lost_S[np.argmax(lost_S) :].all():
        return None
    x_S, value_S = _checked(x_S, value_S)
    last = round(len(value_S) * PLATEAU_SHARE)
    plateau, first = float(value_S[-last:].mean()), float(value_S[0]) if start is None else start
    if plateau <= first or not _breaks(value_S):
        return None
    reached = first_at(x_S, value_S, first + share * (plateau - first))
    return None if reached is None or reached >= x_S[-last] else reached


def _breaks(value_S: Floats) -> bool:
    """Whether the mean after some point exceeds that before it by more than the noise of independent values explains.

    The noise is that of second differences, which no straight line adds to: their mean square over 6.
    """
    count = len(value_S)
    before_S = np.arange(1, count)
    sum_S = np.cumsum(value_S)
    rise_S = (sum_S[-1] - sum_S[:-1]) / (count - before_S) - sum_S[:-1] / before_S
    noise = (np.mean(np.diff(value_S, 2) ** 2) / 6) ** 0.5
    return bool((rise_S > BREAK * noise * np.sqrt(1 / before_S + 1 / (count - before_S))).any())


def _checked(x_S: Floats, value_S: Floats) -> tuple[Floats, Floats]:
    x_S, value_S = np.asarray(x_S, dtype=np.float64), np.asarray(value_S, dtype=np.float64)
    if x_S.shape != value_S.shape or x_S.ndim != 1 or len(x_S) < FEWEST_POINTS:
        what = f"curve: need the same {FEWEST_POINTS} or more points of both, got {x_S.shape} and {value_S.shape}"
        raise EvidenceError(f"{what}; evaluate more often")
    if not np.isfinite(value_S).all() or not (np.diff(x_S) > 0).all():
        raise EvidenceError("curve: values must be finite and x must rise; leave out what was not evaluated")
    return x_S, value_S


def over_seeds(reached_R: Sequence[float | None], *, level: float = 0.95) -> Reached:
    """Estimate the median over seeds of where runs reach a level, runs that never did (None) counted as latest.

    The interval is between two order statistics: exact for any distribution over seeds, a share of runs that collapse
    included, if they were all trained equally long. It claims nothing about other data or rates.

    Source: the sign test's interval (Thompson 1936): the k least and k greatest left out with probability
    2 P(Binomial(R, 1/2) < k).
    Raises:
        EvidenceError: Fewer than 2 runs, or a level outside (0, 1).
    """
    runs = len(reached_R)
    if runs < 2 or not 0 < level < 1:
        raise EvidenceError(f"seeds: need 2 or more runs and a level in (0, 1), got {runs} and {level}; add seeds")
    ordered = sorted(math.inf if at is None else float(at) for at in reached_R)
    held = [1 - 2 * float(special.bdtr(k - 1, runs, 0.5)) for k in range(1, (runs + 1) // 2 + 1)]
    left_out = max([k for k, share in enumerate(held) if share >= level], default=0)
    ends = (float(np.median(ordered)), ordered[left_out], ordered[runs - 1 - left_out])
    median, low, high = (end if math.isfinite(end) else None for end in ends)
    never = sum(at is None for at in reached_R)
    return Reached(median=median, low=low, high=high, level=held[left_out], runs=runs, never=never)


def learned(evidence: Evidence, *, shares: Sequence[float] = (0.9, 0.95), level: float = 0.95) -> tuple[Learned, ...]:
    """How soon arms learn, task by task: of finals that take steps; arms with fewer than 2 of them are left out, as are
    runs of fewer steps than a plateau can be told from, and tasks in folds, which differ in rows and steps."""
    lock, study, found = evidence.lock, evidence.lock.study, []
    for task in (task.name for task in study.tasks if lock.folding(task.name) is None):
        rows = lock.data[task].counts["train"]
        for arm in (arm.name for arm in study.arms):
            curves = [evidence.curves.get(r.trial.id) for r in evidence.of(purpose="final", task=task, arm=arm)]
            curves = [lines for lines in curves if lines]
            if len(curves) < 2 or curves[0][0]["steps"] < FEWEST_POINTS:
                continue
            runs = [course(lines, rows=rows, batch_examples=study.batch_examples) for lines in curves]
            found.append(
                Learned(
                    task=task,
                    arm=arm,
                    steps={
                        share: over_seeds(_places(runs, curves[0][0]["steps"], share), level=level) for share in shares
                    },
                    mean_loss=_mean_loss(runs, level),
                    level=level,
                    usd_per_step=_usd_per_step(evidence, task, arm),
                )
            )
    return tuple(found)


def _places(runs: Sequence[Course], steps: int, share: float) -> list[float | None]:
    """Where each run has the share; one that ended before its last step diverged and so never has it."""
    return [to_plateau(run.steps_S, -run.loss_S, share=share) if len(run.loss_S) == steps else None for run in runs]


def _mean_loss(runs: Sequence[Course], level: float) -> tuple[float, float, float] | None:
    """None where a run diverged, or all are equal."""
    if len({len(run.loss_S) for run in runs}) > 1 or any(np.isnan(run.loss_S).any() for run in runs):
        return None
    loss_RS = np.stack([run.loss_S for run in runs])
    if np.ptp(loss_RS, axis=0).max() == 0:
        return None
    height = mean_height(runs[0].steps_S, loss_RS)
    return height.effect, *height.interval(level)


def _usd_per_step(evidence: Evidence, task: str, arm: str) -> float | None:
    """At the price of the hour, by the arm's probe: a run side by side with others, or in a pack, is no measure."""
    price = evidence.lock.study.hardware.usd_per_hour
    probes = evidence.of(purpose="probe", task=task, arm=arm)
    step_s = next((r.measurements["step_s"].value for r in probes if "step_s" in r.measurements), None)
    return None if price is None or step_s is None else step_s / 3600 * price


def mean_height(x_S: Floats, value_RS: Floats) -> Estimate:
    """Estimate the area under a curve over its length, the mean height over x, with seeds as replicates.

    By the trapezoidal rule. Heights compare between arms over the same x alone.

    Raises:
        EvidenceError: As `first_at` does, or fewer than 2 seeds, or all are equal.
    """
    height_R = []
    for value_S in np.asarray(value_RS, dtype=np.float64):
        x, own_S = _checked(x_S, value_S)
        height_R.append(float(np.trapezoid(own_S, x)) / float(x[-1] - x[0]))
    return stats.paired(np.array(height_R))


def expected_best(value_N: Floats, *, replace: bool = False) -> Floats:
    """The best to expect of B trials drawn from those at hand, B = 1 … N, shape (B,); higher is better.

    Drawn without replacement, which is unbiased for trials drawn independently from one space (Tang et al. 2020); with
    replacement as in Dodge et al. (2019), which is too low. A grid of rates is no such draw: of it the curve says what
    a random order of the same grid would have found. No interval is claimed.

    Source: the mean of the greatest order statistic: sum over the i-th least of C(i - 1, B - 1) / C(N, B), or
    (i/N)**B - ((i - 1)/N)**B.
    Raises:
        EvidenceError: There are no values, or one is not finite.
    """
    ordered_N = np.sort(np.asarray(value_N, dtype=np.float64))
    if ordered_N.ndim != 1 or not len(ordered_N) or not np.isfinite(ordered_N).all():
        raise EvidenceError(f"trials: need finite values, got {ordered_N.tolist()}; count failed ones as the worst")
    count = len(ordered_N)
    rank_N, budget_B = np.arange(1, count + 1), np.arange(1, count + 1)[:, None]
    if replace:
        weight_BN = (rank_N / count) ** budget_B - ((rank_N - 1) / count) ** budget_B
    else:
        weight_BN = special.comb(rank_N - 1, budget_B - 1) / special.comb(count, budget_B)
    return weight_BN @ ordered_N
