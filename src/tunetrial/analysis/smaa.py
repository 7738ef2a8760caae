"""Arms under uncertain criteria and weights: who is first, how often, and at which weights that changes.

Axis letters: B draw, A arm, J criterion. Values lie between 0 and 1, higher is better; weights are positive and sum to
1. Ties are shared: two arms that are first together are first by half each.

Source: SMAA-2 (Lahdelma & Salminen 2001).
"""

from dataclasses import dataclass

import numpy as np

from tunetrial.analysis.stats import Floats

CLOSE = 1e-12


def scores(value_BAJ: Floats, weight_BJ: Floats) -> Floats:
    """Weighted values, shape (B, A); weights of shape (J,) are the same in every draw."""
    return np.einsum("baj,bj->ba", value_BAJ, np.broadcast_to(weight_BJ, (len(value_BAJ), value_BAJ.shape[2])))


def flat_weights(rng: np.random.Generator, draws: int, criteria: int) -> Floats:
    """Weights drawn uniformly from all that sum to 1, shape (B, J)."""
    return rng.dirichlet(np.ones(criteria), draws)


def first(score_BA: Floats) -> Floats:
    """How far each arm is first in each draw, shape (B, A): 1, a share where it is tied, or 0."""
    top_BA = score_BA >= score_BA.max(axis=1, keepdims=True) - CLOSE
    return top_BA / top_BA.sum(axis=1, keepdims=True)


def acceptability(score_BA: Floats) -> Floats:
    """The share of draws in which an arm has each rank, shape (A, A): row arm, column rank from the first."""
    above_BAA = score_BA[:, None, :] > score_BA[:, :, None] + CLOSE
    below_BAA = score_BA[:, None, :] < score_BA[:, :, None] - CLOSE
    better_BA, tied_BA = above_BAA.sum(axis=2), (~above_BAA & ~below_BAA).sum(axis=2)
    ranks = range(score_BA.shape[1])
    return np.stack([((better_BA <= r) & (r < better_BA + tied_BA)) / tied_BA for r in ranks], axis=2).mean(axis=0)


def wins(score_BA: Floats) -> Floats:
    """The share of draws in which the row's arm scores above the column's, ties a half; shape (A, A)."""
    lead_BAA = score_BA[:, :, None] - score_BA[:, None, :]
    return ((lead_BAA > CLOSE) + 0.5 * (np.abs(lead_BAA) <= CLOSE)).mean(axis=0)


def central_weights(weight_BJ: Floats, score_BA: Floats) -> Floats:
    """The mean weights of the draws in which each arm is first, shape (A, J); NaN for an arm that never is."""
    first_BA = first(score_BA)
    with np.errstate(invalid="ignore"):
        return (first_BA.T @ weight_BJ) / first_BA.sum(axis=0)[:, None]


def confidence(value_BAJ: Floats, central_AJ: Floats) -> Floats:
    """How often each arm is first at its own central weights, over draws of the criteria alone; shape (A,)."""
    found_A = np.full(len(central_AJ), np.nan)
    for row, weight_J in enumerate(central_AJ):
        if np.isfinite(weight_J).all():
            found_A[row] = first(scores(value_BAJ, weight_J))[:, row].mean()
    return found_A


def dominance(good_BAJ: Floats) -> tuple[Floats, Floats]:
    """The share of draws in which the row's arm dominates the column's, shape (A, A), and in which none dominates an
    arm, shape (A,). To dominate is to be at least as good in all criteria and better in one; `good_BAJ` is in natural
    units, turned so that higher is better."""
    lead_BAAJ = good_BAJ[:, :, None, :] - good_BAJ[:, None, :, :]
    over_BAA = (lead_BAAJ >= 0).all(axis=3) & (lead_BAAJ > 0).any(axis=3)
    return over_BAA.mean(axis=0), 1 - over_BAA.any(axis=1).mean(axis=0)


@dataclass(frozen=True)
class WeightFlip:
    """At weight `at` of a criterion, the others kept in ratio, the arm `to` takes the first place."""

    criterion: int
    at: float
    to: int


def weight_flips(value_AJ: Floats, weight_J: Floats) -> tuple[WeightFlip, ...]:
    """For each criterion the nearest weights, down and up, at which another arm is first; exact, as scores are linear
    in weights."""
    found = []
    top = int((value_AJ @ weight_J).argmax())
    for j in range(len(weight_J) if len(weight_J) > 1 else 0):
        rest_A = (value_AJ @ weight_J - value_AJ[:, j] * weight_J[j]) / (1 - weight_J[j])
        gain_A, lead_A = value_AJ[top, j] - value_AJ[:, j], rest_A[top] - rest_A
        # First place at weight w: w * gain + (1 - w) * lead >= 0 for every rival.
        with np.errstate(divide="ignore", invalid="ignore"):
            at_A = lead_A / (lead_A - gain_A)
        inside = [(float(w), k) for k, w in enumerate(at_A) if k != top and 0 < w < 1]
        below = max((c for c in inside if c[0] < weight_J[j]), default=None)
        above = min((c for c in inside if c[0] >= weight_J[j]), default=None)
        found += [WeightFlip(j, w, k) for w, k in filter(None, (below, above))]
    return tuple(found)


def shaken(value_AJ: Floats, weight_J: Floats, *, by: float) -> tuple[int, int] | None:
    """The rival that some weights within a share `by` of these put first, and the criterion that does most of it; None
    if the first place survives them all.

    Exact: with every weight free between (1 - by) and (1 + by) of itself, the least lead is at a corner, and only its
    sign is asked for, which the sum of weights does not change.
    """
    top = int((value_AJ @ weight_J).argmax())
    lead_AJ = (value_AJ[top] - value_AJ) * weight_J
    least_A = lead_AJ.sum(axis=1) - by * np.abs(lead_AJ).sum(axis=1)
    least_A[top] = np.inf
    rival = int(least_A.argmin())
    if least_A[rival] >= -CLOSE:
        return None
    return rival, int(np.abs(lead_AJ[rival]).argmax())


def perfect_knowledge(value_BAJ: Floats, weight_J: Floats) -> tuple[float, Floats]:
    """What it would be worth, in score, to know all criteria before choosing, and each one alone, shape (J,).

    The gain of knowing one is E max E - max E (Raiffa & Schlaifer 1961): what others are expected to be is taken not to
    change with it, which leaves out what seeds have in common between criteria.
    """
    worth_BAJ = value_BAJ * weight_J
    score_BA, mean_AJ = worth_BAJ.sum(axis=2), worth_BAJ.mean(axis=0)
    now = mean_AJ.sum(axis=1).max()
    each_J = [
        (worth_BAJ[:, :, j] + mean_AJ.sum(axis=1) - mean_AJ[:, j]).max(axis=1).mean() - now
        for j in range(len(weight_J))
    ]
    return max(0.0, float(score_BA.max(axis=1).mean() - now)), np.maximum(0.0, each_J)
