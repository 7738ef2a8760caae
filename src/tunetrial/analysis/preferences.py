"""Which of two answers is better, said by people or judges: win rates, Bradley-Terry strengths, bias of position.

Every vote is on two answers to one item, shown without the arms' names, and every pair is shown in both orders: what is
not is refused (`check`). A tie counts half for either side, everywhere. Votes on one item hang together, as do those on
answers of one training seed: items, and seeds where there are several, are what is drawn anew, never votes.

Axis letters: I item, R seed, J rater, N vote, U ordered pair of arms, P parameter, B draw of the bootstrap.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
import scipy
from scipy import special

from tunetrial.analysis import intervals
from tunetrial.analysis.intervals import Interval
from tunetrial.analysis.stats import Floats
from tunetrial.core.errors import EvidenceError
from tunetrial.core.records import Record

RIDGE = 1e-9
STEPS, LONGEST_STEP = 60, 2.0
# A strength of 10 is odds of 22,000 to 1: further out a draw has no maximum, and its end is not known.
UNBOUNDED = 10.0
ELO = 400 / np.log(10)


class Vote(Record):
    """Of two arms' answers to one item, which a rater found better; `blind` says that no arm's name was shown.

    `seed` is the training seed that both answers come from, where there are several.
    """

    item: str
    first: str
    second: str
    winner: Literal["first", "second", "tie"]
    rater: str
    blind: bool
    seed: int | None = None

    @property
    def points(self) -> float:
        """Of the arm shown first: 1, 1/2 or 0."""
        return {"first": 1.0, "tie": 0.5, "second": 0.0}[self.winner]

    def points_of(self, arm: str) -> float:
        return self.points if arm == self.first else 1 - self.points


class Strengths(Record):
    """Bradley-Terry strengths in log odds against `reference`, whose own is 0, and what being shown first adds.

    Where the votes are `separated` no maximum exists: the strengths are then absent, and the words say why.
    """

    reference: str
    of: dict[str, Interval] = {}
    position: Interval | None = None
    items: int
    separated: str | None = None


class PositionBias(Record):
    """Whether raters go by what is shown first.

    `consistent` is the share of pairs that one rater, shown both orders, judged alike; of the items judged
    otherwise, `to_first` went to whichever was first and `to_second` to whichever was second. `p` is the exact
    two-sided sign test over items that the two are equally likely, None where there are none.
    """

    consistent: Interval
    to_first: int
    to_second: int
    p: float | None


def check(votes: Sequence[Vote]) -> None:
    """Refuse votes that were not blind, or pairs that were not shown in both orders equally often.

    Raises:
        EvidenceError: One line that names the first such item.
    """
    if not votes:
        raise EvidenceError("votes: none to go by, got 0; have answers compared")
    for vote in votes:
        if not vote.blind:
            raise EvidenceError(f"votes: {vote.rater} was shown which arm is which, got item {vote.item!r}; ask blind")
        if vote.first == vote.second:
            raise EvidenceError(f"votes: an arm against itself, got {vote.first!r} on item {vote.item!r}; leave it out")
    shown = Counter((v.item, v.seed, v.first, v.second) for v in votes)
    for (item, seed, first, second), count in shown.items():
        other = shown[item, seed, second, first]
        if count != other:
            got = f"got {first} before {second} {count} times and after it {other} times"
            raise EvidenceError(f"votes: item {item!r} was not shown in both orders alike, {got}; ask for both")


def win_rate(votes: Sequence[Vote], candidate: str, reference: str, *, level: float = 0.95) -> Interval:
    """The candidate's share of points against the reference: the mean over items of 1 a win, 1/2 a tie.

    A pair judged differently in its two orders is a tie. The interval is over new items, and over new seeds where every
    item has votes on the same several ones; raters are held fixed.

    Raises:
        EvidenceError: As `check`, or the two arms were never compared.
    """
    points = _points(_between(votes, candidate, reference), candidate)
    items, seeds = ({key[axis]: None for key in points} for axis in (0, 1))
    if len(points) == len(items) * len(seeds):
        part_RI = np.array([[np.mean(points[item, seed]) for item in items] for seed in seeds])
    else:
        by_item = {item: [value for key in points if key[0] == item for value in points[key]] for item in items}
        part_RI = np.array([[np.mean(values) for values in by_item.values()]])
    return intervals.of_share(part_RI, level=level)


def opinions(votes: Sequence[Vote], candidate: str, reference: str) -> tuple[tuple[str, ...], np.ndarray]:
    """The raters, and what each says of each item, shape (J, I): 1 for the candidate, 0 a tie, -1; NaN if not asked.

    For `ratings.alpha(..., "ordinal")`: how far a judge agrees with people. An item has its votes' sign over both
    orders and all seeds.
    """
    votes = _between(votes, candidate, reference)
    raters, items = (tuple(dict.fromkeys(getattr(vote, name) for vote in votes)) for name in ("rater", "item"))
    opinion_JI = np.full((len(raters), len(items)), np.nan)
    for j, rater in enumerate(raters):
        said = _points([vote for vote in votes if vote.rater == rater], candidate)
        for i, item in enumerate(items):
            values = [value for key in said if key[0] == item for value in said[key]]
            opinion_JI[j, i] = np.sign(np.mean(values) - 0.5) if values else np.nan
    return raters, opinion_JI


def position_bias(votes: Sequence[Vote], *, level: float = 0.95) -> PositionBias:
    """Test whether a rater's choice follows the place; raises EvidenceError if no rater saw a pair in both orders."""
    check(votes)
    pairs: dict[tuple, list[Vote]] = {}
    for vote in votes:
        key = (vote.item, vote.seed, vote.rater, *sorted((vote.first, vote.second)))
        pairs.setdefault(key, []).append(vote)
    alike: dict[str, list[float]] = {}
    lean: dict[str, float] = {}
    for (item, *_, arm, _), shown in pairs.items():
        if len({vote.first for vote in shown}) == 2:
            before, after = (
                np.mean([v.points_of(arm) for v in shown if (v.first == arm) is leads]) for leads in (True, False)
            )
            alike.setdefault(item, []).append(float(before == after))
            lean[item] = lean.get(item, 0.0) + before - after
    if not alike:
        raise EvidenceError("votes: nobody saw a pair in both orders, got one each; ask one rater for both")
    to_first, to_second = (sum(sign * value > 0 for value in lean.values()) for sign in (1, -1))
    count = to_first + to_second
    p = min(1.0, 2 * float(special.bdtr(min(to_first, to_second), count, 0.5))) if count else None
    consistent = intervals.of_share(np.array([[np.mean(values) for values in alike.values()]]), level=level)
    return PositionBias(consistent=consistent, to_first=to_first, to_second=to_second, p=p)


def bradley_terry(
    votes: Sequence[Vote], *, reference: str, seed: int, level: float = 0.95, draws: int = 1000
) -> Strengths:
    """Fit logit P(first wins) = strength of first - strength of second + position, by maximum likelihood.

    The intervals are percentiles of a bootstrap that draws items anew, and seeds independently of them where there are
    several (Owen 2007). An end beyond odds of 22,000 to 1 is None. The seed is the bootstrap's.

    Source: Bradley & Terry (1952), with the order effect of Davidson & Beaver (1977) on the logit scale; a tie counts
    half a win for each. Separation as Albert & Anderson (1984) define it, looked for by a linear program.
    Raises:
        EvidenceError: As `check`; the reference has no votes, or arms are linked to it by no chain of comparisons.
    """
    check(votes)
    arms = sorted({arm for vote in votes for arm in (vote.first, vote.second)} - {reference})
    shown = sorted({(vote.first, vote.second) for vote in votes})
    design_UP = np.array([[(a == first) - (a == second) for a in arms] + [1] for first, second in shown], dtype=float)
    if np.linalg.matrix_rank(design_UP) <= len(arms):
        raise EvidenceError(f"votes: no chain of pairs links all to {reference!r}, got {shown}; compare more pairs")
    place = {pair: u for u, pair in enumerate(shown)}
    of_vote = np.array([place[vote.first, vote.second] for vote in votes])
    points_N = np.array([vote.points for vote in votes])
    weight_BN = np.vstack([np.ones(len(votes)), _drawn(votes, draws, seed)])
    one_hot_NU = np.eye(len(shown))[of_vote]
    won_BU, total_BU = (weight_BN * points_N) @ one_hot_NU, weight_BN @ one_hot_NU
    items = len({vote.item for vote in votes})
    separated = _separated(design_UP, won_BU[0], total_BU[0], [*arms, "the first place"])
    if separated:
        return Strengths(reference=reference, items=items, separated=separated)
    found_BP = _fit(design_UP, won_BU, total_BU)
    ends_EP = np.quantile(found_BP[1:], [(1 - level) / 2, (1 + level) / 2], axis=0)
    found = [
        Interval(value=float(value), low=_bounded(low), high=_bounded(high), level=level)
        for value, low, high in zip(found_BP[0], *ends_EP, strict=True)
    ]
    return Strengths(reference=reference, of=dict(zip(arms, found, strict=False)), position=found[-1], items=items)


def elo(strength: float) -> float:
    """A strength in Elo points, 400 / ln 10 of them a unit of log odds; a scale, with no sequence of games in it."""
    return float(ELO * strength)


def probability(strength: float) -> float:
    """How often an arm of this strength beats the reference where neither has the better place."""
    return float(special.expit(strength))


def _between(votes: Sequence[Vote], candidate: str, reference: str) -> list[Vote]:
    check(votes)
    chosen = [vote for vote in votes if {vote.first, vote.second} == {candidate, reference}]
    if not chosen:
        raise EvidenceError(f"votes: {candidate} and {reference} were never compared, got 0 votes; have them compared")
    return chosen


def _points(votes: Sequence[Vote], candidate: str) -> dict[tuple[str, int | None], list[float]]:
    """The candidate's points by item and seed: one number a rater, over both orders, a tie where they disagree."""
    orders: dict[tuple, list[float]] = {}
    for vote in votes:
        orders.setdefault((vote.item, vote.seed, vote.rater), []).append(vote.points_of(candidate))
    points: dict[tuple[str, int | None], list[float]] = {}
    for (item, seed, _), values in orders.items():
        points.setdefault((item, seed), []).append(float(np.mean(values)))
    return points


def _drawn(votes: Sequence[Vote], draws: int, seed: int) -> Floats:
    """How often each vote is in each draw: its item's count, times its seed's where there are several."""
    rng, weight_BN = np.random.default_rng(seed), np.ones((draws, len(votes)))
    for of_vote in ([vote.item for vote in votes], [str(vote.seed) for vote in votes]):
        names, code_N = np.unique(of_vote, return_inverse=True)
        if len(names) > 1:
            count_BK = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
            weight_BN *= count_BK[:, code_N]
    return weight_BN


def _fit(design_UP: Floats, won_BU: Floats, total_BU: Floats) -> Floats:
    """Newton's steps for all draws at once; a draw without a maximum runs out to where ends count as unknown."""
    found_BP = np.zeros((len(won_BU), design_UP.shape[1]))
    for _ in range(STEPS):
        chance_BU = special.expit(found_BP @ design_UP.T)
        slope_BP = (won_BU - total_BU * chance_BU) @ design_UP - RIDGE * found_BP
        bend_BPP = np.einsum("bu,up,uq->bpq", total_BU * chance_BU * (1 - chance_BU), design_UP, design_UP)
        step_BP = np.linalg.solve(bend_BPP + RIDGE * np.eye(design_UP.shape[1]), slope_BP[..., None])[..., 0]
        length_B = np.abs(step_BP).max(axis=1, keepdims=True)
        found_BP += step_BP * np.minimum(1, LONGEST_STEP / np.maximum(length_B, LONGEST_STEP))
        found_BP = np.clip(found_BP, -2 * UNBOUNDED, 2 * UNBOUNDED)
        if length_B.max() < 1e-10:
            break
    return found_BP


def _bounded(end: float) -> float | None:
    return float(end) if abs(end) < UNBOUNDED else None


def _separated(design_UP: Floats, won_U: Floats, total_U: Floats, names: Sequence[str]) -> str | None:
    """In words, which parameters have no maximum: some direction that no vote speaks against, and some speak for."""
    speaks_for = [row for row, won in zip(design_UP, won_U, strict=True) if won > 0]
    against = [-row for row, lost in zip(design_UP, total_U - won_U, strict=True) if lost > 0]
    said_NP = np.array(speaks_for + against)
    result = scipy.optimize.linprog(-said_NP.sum(axis=0), A_ub=-said_NP, b_ub=np.zeros(len(said_NP)), bounds=(-1, 1))
    if -result.fun < 1e-9:
        return None
    without = [name for name, value in zip(names, result.x, strict=True) if abs(value) > 1e-9]
    return f"no vote speaks against a further strength of {', '.join(without)}: it has no maximum, ask for more votes"
