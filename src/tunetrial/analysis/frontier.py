"""What a method forgets for what it learns: the frontier of its checkpoints and rates; forgetting at equal learning.

One method learns more and forgets more at another rate or a later step; a comparison at one setting compares settings.
Here each run (seed) has points, one a rate and checkpoint, with what it learnt (higher is better) and forgot (lower is
better). Of these the frontier are the points that no other of the run beats in both. Between two neighbours on it the
frontier is taken as straight; more than a run ever learnt it cannot show.

    lora, full = Points(learning_RP, forgetting_RP), Points(...)
    at = common_reach([lora, full])                         # what every run of both learnt
    equal_learning(lora, full, learning=at).interval(0.95)  # forgetting of lora minus that of full

The least of several noisy measurements is too small, and straight lines lie above a frontier that bends upwards: give
methods as many points each, at the same steps and as many rates. Simulated with 13 to 25 points a run, intervals of
95 % cover 0.91 to 0.96. Axis letters: R run (the same seeds in both methods), P point (a rate and a checkpoint).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunetrial.analysis import stats
from tunetrial.analysis.stats import Estimate, Floats
from tunetrial.core.errors import EvidenceError


@dataclass(frozen=True)
class Points:
    """A method's runs: learning and forgetting of each point, shape (R, P), all finite.

    The base itself, which learnt and forgot nothing, may be one of the points.
    """

    learning_RP: Floats
    forgetting_RP: Floats

    def __post_init__(self):
        """
        Raises:
            EvidenceError: The shapes differ, there is no run or no point, or a value is not finite.
        """
        shapes = np.shape(self.learning_RP), np.shape(self.forgetting_RP)
        if len(shapes[0]) != 2 or shapes[0] != shapes[1] or 0 in shapes[0]:
            got = f"got shapes {shapes[0]} and {shapes[1]}"
            raise EvidenceError(f"frontier: needs learning and forgetting of every run and point, {got}; measure all")
        if not (np.isfinite(self.learning_RP).all() and np.isfinite(self.forgetting_RP).all()):
            raise EvidenceError("frontier: some values are not finite; leave out that rate and checkpoint in all runs")

    @property
    def reach_R(self) -> Floats:
        """The most that each run learnt at any point."""
        return np.max(self.learning_RP, axis=1)

    def at(self, learning: float) -> Floats:
        """The least forgetting (R,) at which each run learnt so much.

        Raises:
            EvidenceError: A run never learnt so much.
        """
        self._check(learning)
        return np.array([np.interp(learning, *front) for front in self._fronts()])

    def mean_between(self, low: float, high: float) -> Floats:
        """The frontier's mean height (R,) over a range of learning: its area / (high - low).

        Raises:
            EvidenceError: A run never learnt as much as `high`, or the range is empty.
        """
        self._check(high)
        if not low < high:
            raise EvidenceError(f"frontier: the range of learning is empty, got {low} to {high}; give low < high")
        return np.array([_mean_height(*front, low, high) for front in self._fronts()])

    def _check(self, learning: float) -> None:
        if not learning <= self.reach_R.min():
            got = f"got a run that reached {self.reach_R.min():g} at best"
            raise EvidenceError(f"frontier: learning {learning:g} was not reached, {got}; compare at less learning")

    def _fronts(self) -> list[tuple[Floats, Floats]]:
        """Learning, rising, and forgetting of each run's frontier; left of it the least forgetting goes on."""
        fronts = []
        for learning_P, forgetting_P in zip(np.asarray(self.learning_RP), np.asarray(self.forgetting_RP), strict=True):
            on = pareto(learning_P, forgetting_P)
            order = np.argsort(learning_P[on])
            fronts.append((learning_P[on][order], forgetting_P[on][order]))
        return fronts


def pareto(learning_P: Floats, forgetting_P: Floats) -> np.ndarray:
    """Which points no other beats, one bool a point: none learnt at least as much and forgot at most as much, and was
    better in one of them. Of equal points the first is taken."""
    learning_P, forgetting_P = np.asarray(learning_P), np.asarray(forgetting_P)
    order = np.lexsort((np.arange(len(learning_P)), forgetting_P, -learning_P))
    least = np.minimum.accumulate(np.concatenate([[np.inf], forgetting_P[order]]))[:-1]
    on = np.zeros(len(learning_P), dtype=bool)
    on[order] = forgetting_P[order] < least
    return on


def common_reach(methods: Sequence[Points]) -> float:
    """The most learning that every run of every method reached at some point."""
    return float(min(points.reach_R.min() for points in methods))


def equal_learning(candidate: Points, reference: Points, *, learning: float) -> Estimate:
    """Estimate how much more the candidate forgets than the reference where both learnt so much.

    Paired by seed, over new runs; texts and examples are held fixed. `learning` is taken as given: set it beforehand,
    or by `common_reach`, which makes the interval of that learning alone.

    Raises:
        EvidenceError: A run never learnt so much, fewer than 2 runs, or runs that are not paired.
    """
    _check_pairs(candidate, reference)
    return stats.paired(candidate.at(learning) - reference.at(learning))


def frontiers_apart(candidate: Points, reference: Points, *, low: float, high: float) -> Estimate:
    """Estimate how far the candidate's frontier lies above the reference's, as the mean over a range of learning; as
    `equal_learning` else."""
    _check_pairs(candidate, reference)
    return stats.paired(candidate.mean_between(low, high) - reference.mean_between(low, high))


def _check_pairs(candidate: Points, reference: Points) -> None:
    runs = [len(points.learning_RP) for points in (candidate, reference)]
    if runs[0] != runs[1]:
        raise EvidenceError(f"frontier: runs are not paired, got {runs[0]} and {runs[1]}; give the same seeds of both")


def _mean_height(learning_P: Floats, forgetting_P: Floats, low: float, high: float) -> float:
    """The mean of a piecewise straight line, by trapezoids between its corners."""
    inside = learning_P[(learning_P > low) & (learning_P < high)]
    corner = np.concatenate([[low], inside, [high]])
    return float(np.trapezoid(np.interp(corner, learning_P, forgetting_P), corner) / (high - low))
