"""What it is worth to know more before choosing: so many more seeds, simulated before they are run.

Preposterior analysis (Raiffa & Schlaifer 1961): what a mean over S seeds will have become after k more is drawn from
what it may be now, the share k / (S + k) of the variance that comes with seeds; then the choice is made again with what
remains of it. Rows stay as they are, so what comes with them never shrinks.
"""

from typing import TYPE_CHECKING

import numpy as np

from tunetrial.analysis import scoring, smaa
from tunetrial.analysis.draws import Draws
from tunetrial.core.weighed import MoreSeeds

if TYPE_CHECKING:
    from tunetrial.analysis.weighing import Table

FUTURES = 100
MORE = (5, 10, 20)


def more_seeds(table: "Table", found: Draws) -> tuple[MoreSeeds, ...]:
    """What 5, 10 and 20 more finals of each arm are expected to bring; nothing where seeds move nothing, or where
    replicates are folds, of which there are no more."""
    if not found.by_seeds or table.board.evidence.lock.folding(table.board.primary):
        return ()
    weight_J = table.weight_J
    now = smaa.scores(table.drawn(found)[0], weight_J).mean(axis=0).max()
    told = []
    for more in MORE:
        share = more / (found.seeds + more)
        worth, settled = [], 0
        for future in range(FUTURES):
            shift = {name: part_BA[future] * share**0.5 for name, part_BA in found.by_seeds.items()}
            score_BA = smaa.scores(table.drawn(found, shift, seeds=(1 - share) ** 0.5)[0], weight_J)
            worth.append(score_BA.mean(axis=0).max())
            settled += smaa.first(score_BA).mean(axis=0).max() >= scoring.SURE
        told.append(MoreSeeds(seeds=more, gain=max(0.0, float(np.mean(worth) - now)), settles=settled / FUTURES))
    return tuple(told)


def next_spend(table: "Table", found: Draws, first_two: tuple[int, int], more: tuple[MoreSeeds, ...]) -> str:
    """The fewest more seeds that settle it as likely as not; else rows, if they are too few; else nothing."""
    enough = next((one for one in more if one.settles >= 0.5), None)
    if enough is not None:
        chance = f"which settles it in {100 * enough.settles:.0f} % of simulated futures"
        return f"{enough.seeds} more seeds of each arm, {chance}"
    by_seeds, by_rows = (_spread(table, parts, first_two) for parts in (found.by_seeds, found.by_rows))
    if by_rows > by_seeds:
        return "more test rows, not more seeds"
    arms = " and ".join(table.names[k] for k in first_two)
    return f"no more trials: {arms} are too close by these criteria for 20 more seeds to tell them apart"


def _spread(table: "Table", parts: dict, first_two: tuple[int, int]) -> float:
    """The SD that these parts give to the lead of the first over the second, in score, near what was measured."""
    lead_B = np.zeros(1)
    for scale in table.scales:
        if scale.name in parts and not scale.log:
            one, other = (parts[scale.name][:, k] for k in first_two)
            lead_B = lead_B + scale.weight * (one - other) / (scale.best - scale.worst)
    return float(np.std(lead_B))
