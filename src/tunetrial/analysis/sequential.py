"""Monitoring while outcomes arrive: bounds that hold at every moment at once, so that looking is free.

The first outcome of the candidate is held against the first of the reference, the second against the second, and so
on; the mean difference of such pairs is bounded by a confidence sequence: with probability 1 - alpha the true one lies
within after every number of pairs, however often one looks and whenever one stops. Whether bounds ever miss is settled
by the pairs alone, so it does not matter in which order outcomes arrive, how many more one version gets, or whether a
gateway sends more to the one that does well. What is asked: outcomes lie in bounds stated beforehand, and each pair's
difference has the same mean given the pairs before. So both means may rise and fall together, with the time of day,
where both versions are served all along. Nothing is claimed of a difference that changes: where bounds contradict each
other that is said instead. Outcomes without a partner wait for one and count for nothing yet.

Source: Waudby-Smith & Ramdas (2024), Estimating means of bounded random variables by betting, the predictable plug-in
empirical-Bernstein sequence (their theorem 2), of differences mapped to [0, 1].

Axis letters: T outcomes in the order of the log, N outcomes or pairs.
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
class Monitoring:
    """Candidate minus reference after all outcomes of a log; `low` and `high` hold at every moment at once.

    `effect` is the mean difference of the pairs. `settled_at` is the number of logged outcomes, of both versions, after
    which it could have been stopped; None while it is open. `contradicts` says that no one difference fits all pairs.
    """

    pairs: int
    effect: float
    low: float
    high: float
    words: Words
    settled_at: int | None
    contradicts: bool


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
    at_N = [np.flatnonzero(own_T) for own_T in (~of_candidate_T, of_candidate_T)]
    pairs = min(map(len, at_N))
    reference_N, candidate_N = (at[:pairs] for at in at_N)
    diff_N, width = outcome_T[candidate_N] - outcome_T[reference_N], bounds[1] - bounds[0]
    unit_N = np.clip((diff_N / width + 1) / 2, 0.0, 1.0)  # rounding alone can leave the bounds here
    low_N, high_N = (width * (2 * bound_N - 1) for bound_N in confidence_sequence(unit_N, 1 - level))
    settled_N = (low_N > 0) | (high_N < 0) | ((low_N > -margin) & (high_N < margin))
    low, high, contradicts = float(low_N[-1]), float(high_N[-1]), bool(low_N[-1] > high_N[-1])
    first = int(settled_N.argmax())
    return Monitoring(
        pairs=pairs,
        effect=float(diff_N.mean()),
        low=low,
        high=high,
        words="NOT COMPARABLE" if contradicts else _words(low, high, margin),
        settled_at=None if contradicts or not settled_N[-1] else int(max(reference_N[first], candidate_N[first])) + 1,
        contradicts=contradicts,
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
