"""Monitoring while outcomes arrive: bounds that hold at every moment at once, so that looking is free.

The mean outcome of each of two versions is bounded by a confidence sequence: with probability 1 - alpha the true means
lie within at every number of outcomes, however often one looks and whenever one stops. Each version's sequence counts
its own outcomes alone, so nothing is asked of how many go to which version, in which order, or why, as long as each
outcome of a version has the same mean given all that came before. Outcomes lie in bounds stated beforehand; nothing
else is assumed of their distribution.

Source: Waudby-Smith & Ramdas (2024), Estimating means of bounded random variables by betting, the predictable
plug-in empirical-Bernstein sequence (their theorem 2); the interval of a difference by the union of four one-sided
bounds at alpha / 4 each. That is wider than it need be, and never too short. Nothing is claimed of a mean that
changes while it is watched: where bounds contradict each other, that is said instead.

Axis letters: T outcomes in the order of the log, N outcomes of one version.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunetrial.analysis.stats import Floats
from tunetrial.analysis.verdict import words
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Words

LARGEST_BET = 0.5


@dataclass(frozen=True)
class Watched:
    """One version as seen so far: outcomes, their mean, and bounds of the true one, in units of the outcomes."""

    outcomes: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Monitoring:
    """Candidate minus reference after all outcomes of a log; `low` and `high` hold at every moment at once.

    `settled_at` is the number of logged outcomes, of both versions, after which it could have been stopped; None while
    it is open. `drifted` names the versions whose bounds contradict each other: their mean is not one number.
    """

    reference: Watched
    candidate: Watched
    effect: float
    low: float
    high: float
    words: Words
    settled_at: int | None
    drifted: tuple[str, ...]


def lower_bounds(outcome_N: Floats, alpha: float) -> Floats:
    """Lower bounds of the mean after 1, 2, ... outcomes in [0, 1]; all hold at once with probability 1 - alpha.

    With bets lambda_i that know the first i - 1 outcomes alone, the bound is
    (sum lambda_i x_i - log(1 / alpha) - sum (x_i - m_i)**2 psi(lambda_i)) / sum lambda_i with psi(l) = -log(1 - l) - l
    and m_i the mean so far, 0 at first. The bets are min(1/2, sqrt(2 log(1 / alpha) / (s_i**2 i log(1 + i)))), s_i**2
    the variance so far with one outcome of variance 1/4 added. The largest bound so far is kept.
    """
    outcome_N = np.asarray(outcome_N, dtype=np.float64)
    count_N = np.arange(1, len(outcome_N) + 1)
    sum_N = np.cumsum(outcome_N)
    mean_before_N = np.concatenate([[0.0], (sum_N / count_N)[:-1]])
    shrunk_N = (0.5 + sum_N) / (count_N + 1)
    variance_N = (0.25 + np.cumsum((outcome_N - shrunk_N) ** 2)) / (count_N + 1)
    before_N = np.concatenate([[0.25], variance_N[:-1]])
    bet_N = np.minimum(LARGEST_BET, np.sqrt(2 * np.log(1 / alpha) / (before_N * count_N * np.log1p(count_N))))
    price_N = (outcome_N - mean_before_N) ** 2 * (-np.log1p(-bet_N) - bet_N)
    bound_N = (np.cumsum(bet_N * outcome_N - price_N) - np.log(1 / alpha)) / np.cumsum(bet_N)
    return np.maximum.accumulate(np.maximum(bound_N, 0.0))


def confidence_sequence(outcome_N: Floats, alpha: float) -> tuple[Floats, Floats]:
    """Lower and upper bounds of the mean after 1, 2, ... outcomes in [0, 1]; all hold at once with 1 - alpha."""
    outcome_N = np.asarray(outcome_N, dtype=np.float64)
    return lower_bounds(outcome_N, alpha / 2), 1 - lower_bounds(1 - outcome_N, alpha / 2)


def monitor(
    of_candidate_T: NDArray[np.bool_],
    outcome_T: Floats,
    *,
    bounds: tuple[float, float],
    margin: float,
    level: float = 0.95,
) -> Monitoring:
    """Judge candidate minus reference after each logged outcome, higher being better.

    All words rest on the one interval that holds at every moment, so none of them needs a level of its own.

    Args:
        of_candidate_T: Which outcomes are the candidate's; the others are the reference's.
        bounds: Between which outcomes lie, stated before any was seen.
        margin: Smallest difference that matters, in units of the outcomes.
    Raises:
        EvidenceError: A version has no outcomes, one is out of bounds or not finite, or bounds, margin or level make
            no sense.
    """
    of_candidate_T, outcome_T = np.asarray(of_candidate_T, dtype=bool), np.asarray(outcome_T, dtype=np.float64)
    _check(of_candidate_T, outcome_T, bounds, margin, level)
    low, width = bounds[0], bounds[1] - bounds[0]
    unit_T = np.clip((outcome_T - low) / width, 0.0, 1.0)  # rounding alone can leave the bounds here
    sides, drifted = {}, []
    for name, own_T in (("reference", ~of_candidate_T), ("candidate", of_candidate_T)):
        low_N, high_N = confidence_sequence(unit_T[own_T], (1 - level) / 2)
        seen_T = np.cumsum(own_T)
        sides[name] = (np.append(0.0, low_N)[seen_T], np.append(1.0, high_N)[seen_T])
        if low_N[-1] > high_N[-1]:
            drifted.append(name)
    low_T = width * (sides["candidate"][0] - sides["reference"][1])
    high_T = width * (sides["candidate"][1] - sides["reference"][0])
    settled_T = (low_T > 0) | (high_T < 0) | ((low_T > -margin) & (high_T < margin))
    seen = {
        name: Watched(
            outcomes=int(own_T.sum()),
            mean=float(outcome_T[own_T].mean()),
            low=float(low + width * sides[name][0][-1]),
            high=float(low + width * sides[name][1][-1]),
        )
        for name, own_T in (("reference", ~of_candidate_T), ("candidate", of_candidate_T))
    }
    return Monitoring(
        **seen,
        effect=seen["candidate"].mean - seen["reference"].mean,
        low=float(low_T[-1]),
        high=float(high_T[-1]),
        words="NOT COMPARABLE" if drifted else _words(float(low_T[-1]), float(high_T[-1]), margin),
        settled_at=int(settled_T.argmax()) + 1 if settled_T[-1] and not drifted else None,
        drifted=tuple(drifted),
    )


def _words(low: float, high: float, margin: float) -> Words:
    """Read direction and size off one interval."""
    direction = "better" if low > 0 else "worse" if high < 0 else "unresolved"
    outside = low > margin or high < -margin
    size = "within" if -margin < low and high < margin else "beyond" if outside else "unresolved"
    return words(direction, size, not_worse=low > -margin)


def _check(
    of_candidate_T: NDArray[np.bool_], outcome_T: Floats, bounds: tuple[float, float], margin: float, level: float
) -> None:
    if not (np.isfinite(bounds).all() and bounds[0] < bounds[1]):
        raise EvidenceError(f"bounds: need two finite numbers, low before high, got {bounds[0]:g},{bounds[1]:g}")
    if not 0 < margin < float("inf"):
        raise EvidenceError(f"margin: must be above 0, got {margin:g}; state the smallest difference that matters")
    if not 0 < level < 1:
        raise EvidenceError(f"level: must lie between 0 and 1, got {level:g}; 0.95 is usual")
    if of_candidate_T.shape != outcome_T.shape or outcome_T.ndim != 1:
        raise EvidenceError(f"outcomes: need one version each, got {of_candidate_T.shape} for {outcome_T.shape}")
    if of_candidate_T.all() or not of_candidate_T.any():
        lacking = "reference" if of_candidate_T.any() else "candidate"
        raise EvidenceError(f"outcomes: the {lacking} has none, got {len(outcome_T)} in all; log outcomes of both")
    wrong_T = ~((bounds[0] <= outcome_T) & (outcome_T <= bounds[1]))
    if wrong_T.any():
        raise EvidenceError(
            f"outcomes: must lie between {bounds[0]:g} and {bounds[1]:g}, got {outcome_T[wrong_T][0]:g}; "
            "state bounds that hold for all"
        )
