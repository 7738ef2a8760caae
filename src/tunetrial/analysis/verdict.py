"""From estimates to words: levels for looks and family, two fields, and what would settle an open question.

Two fields, read off separately: direction (is there a difference?) and size (does it matter?).

| direction  | within margin             | beyond margin | size unresolved              |
|------------|---------------------------|---------------|------------------------------|
| better     | SAME (within your margin) | BETTER        | BETTER                       |
| worse      | WORSE, negligibly         | WORSE         | WORSE                        |
| unresolved | SAME (within your margin) | cannot occur  | NOT WORSE, or CAN'T TELL YET |

NOT WORSE says that a loss as large as the margin is ruled out. A gain that does not matter is no victory, and a loss
that does not matter is still named. Direction is a two-sided test of no difference. "Within" is two one-sided tests
against the margin, "not worse" the lower one of them; both at the one-sided level. "Beyond" is a two-sided interval
that lies outside the margins. A margin that is a share of a gain (`gains`) is judged by the same fields and words, on
linear contrasts: neither the gain nor a ratio is taken for known. Each kind of claim has its own family, all (task,
candidate) pairs of the study with Holm's procedure (1979), and levels that allow for the looks: false claims of a kind,
anywhere in the study, have probability 1 - level or less. NOT COMPARABLE is not decided here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np

from tunetrial.analysis.stats import Components, Estimate, holm, over_looks, per_look, t_critical
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Words

Direction = Literal["better", "worse", "unresolved"]
Size = Literal["within", "beyond", "unresolved"]

SAFE: frozenset[Words] = frozenset({"BETTER", "SAME (within your margin)", "NOT WORSE", "WORSE, negligibly"})
OPEN: frozenset[Words] = frozenset({"CAN'T TELL YET", "NOT WORSE"})
NO_SEEDS = "no number of seeds can settle this: "
MORE_TUNING = "more seeds of tuning: no number of finals or test rows outweighs what the tuned rates may lose"
MANY_SEEDS, MANY_EXAMPLES = 10_000, 10_000_000


@dataclass(frozen=True)
class Contrasts:
    """What one comparison is judged by, all estimates of candidate minus something.

    `effect`: minus the reference; `worst`: minus the lowest that is still not worse than it; `best`: minus the highest
    that is still the same. With a margin in the metric's unit they are effect, effect + margin and effect - margin.
    """

    effect: Estimate
    worst: Estimate
    best: Estimate

    def p_equivalent(self) -> float:
        """p of two one-sided tests (Schuirmann 1987): small says that the effect lies within the margin."""
        return max(self.worst.p_not_below(0.0), self.best.p_not_above(0.0))


def by_margin(effect: Estimate, margin: float) -> Contrasts:
    """The contrasts of a margin in the metric's unit."""
    if margin <= 0:
        raise EvidenceError(f"margin: must be above 0, got {margin}; state the smallest difference that matters")
    worst, best = (effect.model_copy(update={"effect": effect.effect + shift}) for shift in (margin, -margin))
    return Contrasts(effect, worst, best)


@dataclass(frozen=True)
class Verdict:
    """The two fields and their words; the interval of the effect holds at `level`, its lower bound at `bound_level`."""

    direction: Direction
    size: Size
    words: Words
    low: float
    high: float
    level: float
    bound: float
    bound_level: float


def judge(asked: Sequence[Contrasts | None], *, alpha: float, looks: Sequence[tuple[int, ...]]) -> list[Verdict | None]:
    """Judge a family of comparisons at one look; None stands for one that is planned and has no estimate.

    `looks` are those of each comparison: its level allows for them, and Holm's procedure for the family.
    """
    differ = _levels([c and c.effect.p_not_zero() for c in asked], alpha, looks, sides=2)
    same = _levels([c and c.p_equivalent() for c in asked], alpha, looks, sides=1)
    not_worse = _levels([c and c.worst.p_not_below(0.0) for c in asked], alpha, looks, sides=1)
    return [c and _verdict(c, *levels) for c, *levels in zip(asked, differ, same, not_worse, strict=True)]


def _levels(
    p: Sequence[float | None], alpha: float, looks: Sequence[tuple[int, ...]], *, sides: Literal[1, 2]
) -> list[float]:
    """Each comparison's level a look, so that p at or below its own level is exactly what Holm's procedure rejects."""
    known = [1.0 if x is None else over_looks(x, own, sides=sides) for x, own in zip(p, looks, strict=True)]
    rejected = sum(q <= alpha for q in holm(known))
    rank = np.argsort(np.argsort(known, kind="stable"), kind="stable")
    shares = [alpha / (len(p) - min(int(r), rejected)) for r in rank]
    return [per_look(share, own, sides=sides) for share, own in zip(shares, looks, strict=True)]


def _verdict(asked: Contrasts, differ: float, same: float, not_worse: float) -> Verdict:
    low, high = asked.effect.interval(1 - differ)
    is_not_worse = asked.worst.at_least(1 - not_worse) > 0
    direction: Direction = "better" if low > 0 else "worse" if high < 0 else "unresolved"
    # A proven loss that is proven less than the margin is within, whatever the other family's step was.
    within = asked.p_equivalent() <= same or (direction == "worse" and is_not_worse)
    outside = asked.worst.interval(1 - differ)[1] < 0 or asked.best.interval(1 - differ)[0] > 0
    size: Size = "within" if within else "beyond" if outside else "unresolved"
    return Verdict(
        direction=direction,
        size=size,
        words=words(direction, size, not_worse=is_not_worse),
        low=low,
        high=high,
        level=1 - differ,
        bound=asked.effect.at_least(1 - not_worse),
        bound_level=1 - not_worse,
    )


def words(direction: Direction, size: Size, *, not_worse: bool) -> Words:
    """The table at the head of this file."""
    if size == "within":
        return "WORSE, negligibly" if direction == "worse" else "SAME (within your margin)"
    if direction != "unresolved":
        return "BETTER" if direction == "better" else "WORSE"
    return "NOT WORSE" if not_worse else "CAN'T TELL YET"


def bound_by(parts: Components) -> Literal["seeds", "examples"]:
    """What dominates the interval: that of which infinitely many would take more from the variance."""
    seeds = max(parts.var_replicate, 0.0) / parts.replicates
    return "seeds" if seeds >= max(parts.var_example, 0.0) / parts.examples else "examples"


def needs(
    parts: Components, estimate: Estimate, verdict: Verdict, margin: float, *, rows_per_example: float = 1.0
) -> str | None:
    """Say what would settle an open verdict if effect and variances stay as they are; None for a settled one.

    An example is what `parts` counts, a cluster of `rows_per_example` rows where there are clusters. Half of the time
    it will take more: the variances are themselves estimates. A margin that is a share of a gain counts as estimated.
    """
    if verdict.words not in OPEN:
        return None
    now = (parts.replicates, parts.examples)

    def settled(replicates: int, examples: int) -> bool:
        planned = parts.at(replicates, examples)
        return _would_settle(estimate, verdict, margin, planned.se, planned.df)

    if not _would_settle(estimate, verdict, margin, 0.0, estimate.df):
        return MORE_TUNING
    seeds = least(lambda r: settled(r, now[1]), now[0], MANY_SEEDS)
    examples = least(lambda e: settled(now[0], e), now[1], MANY_EXAMPLES)
    rows = None if examples is None else _round_up((examples - now[1]) * rows_per_example)
    if seeds is not None and (bound_by(parts) == "seeds" or rows is None):
        return f"about {seeds - now[0]} more {'seed' if seeds - now[0] == 1 else 'seeds'}"
    if rows is not None:
        return (NO_SEEDS if seeds is None else "") + f"about {rows} more test rows"
    both = least(lambda r: settled(r, now[1] * r // now[0]), now[0], MANY_SEEDS)
    if both is None:
        return "no affordable number of seeds or test rows: the margin is too small for this task"
    rows = _round_up((now[1] * both // now[0] - now[1]) * rows_per_example)
    return f"about {both - now[0]} more seeds and {rows} more test rows together"


def needs_rows(estimate: Estimate, verdict: Verdict, margin: float, *, rows: int) -> str | None:
    """The same for a task in folds: more rows, if the spread between folds falls with the root of their number.

    More repeats of the same rows shrink the interval little: what folds share does not average out.
    """
    if verdict.words not in OPEN:
        return None

    def settled(planned: int) -> bool:
        return _would_settle(estimate, verdict, margin, estimate.se * (rows / planned) ** 0.5, estimate.df)

    enough = least(settled, rows, MANY_EXAMPLES)
    if enough is None:
        return "no affordable number of rows: the margin is too small for this task"
    return f"about {_round_up(enough - rows)} more rows, not more repeats"


def _would_settle(estimate: Estimate, verdict: Verdict, margin: float, se: float, df: float) -> bool:
    """Whether the same effect with this standard error would no longer be open."""
    side, both = (t_critical(tail, df) * se for tail in (1 - verdict.bound_level, (1 - verdict.level) / 2))
    gain, loss = estimate.effect - estimate.below, -estimate.effect - estimate.above
    within = margin + min(gain, loss) > side or (verdict.words == "CAN'T TELL YET" and margin + gain > side)
    return max(gain, loss) > both or within


def least(enough: Callable[[int], bool], start: int, limit: int) -> int | None:
    """The smallest number above `start` that is enough, by bisection; None if even `limit` is not."""
    low, high = start, limit
    if not enough(limit):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _round_up(rows: float) -> int:
    """Two significant digits, upwards: 283 becomes 290."""
    step = 10 ** max(0, len(str(ceil(rows))) - 2)
    return ceil(rows / step) * step
