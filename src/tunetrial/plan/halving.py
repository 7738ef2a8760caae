"""Rungs: where the runs of a search stop, and which of them goes on to its end.

The search of a rate is of runs that are paused a quarter of the way through their own schedule: warm-up and decay are
those of the whole run, and a run that goes on does so from its checkpoint, so nothing of it is trained twice and none
is ever of a shortened schedule. Of all rates that were tried, the best and its neighbours go on alone, with one seed:
what these runs gain shows whether the best rate moves as training goes on (`analysis.rates.at_end`). Where the best
rate's run does not hold what it had at the rung, a second seed goes on; where neither held, the rate and all above it
have fallen (`analysis.rates.standing`), and the search goes on without them. A run that diverges at a rung ends there.

What is then not known of how far the best rate moved is a loss that is allowed for by interval and tests, so that a
study at rungs settles less often than one that is exhaustive. It is no bound: where the best rate of steep curves moves
by 0.3 decades (SD), simulated searches lose 0.4 of what they would without the completed runs, and 1.6 times what they
expect to; in tiny real studies it moved as far, luck counted in, and they lost about twice (`benchmarks/b11_real.py`).

After successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943) with one rung. Of its argmax nothing is left: one
seed's best rate makes false verdicts, so all that the exhaustive search asks for is asked for at the rung.
"""

from collections.abc import Sequence

from tunetrial.analysis.rates import Rate, best_point, held_to_end, least_completed
from tunetrial.core.evidence import TrialRecord

SHARE = 1 / 4
COMPLETED = 3


def going_on(rate: Rate, ends: Sequence[TrialRecord], measurement: str) -> set[tuple[float, int]]:
    """Rates and seeds of the runs that go on to their end next; none where enough have.

    Args:
        rate: As the rungs and the runs completed so far give it.
        ends: The completed runs of the arm on the task.
    """
    place = best_point(rate.curve)
    point, held = rate.curve[place], held_to_end(rate.curve, place, ends, measurement)
    first = min(point.scores)
    asked = {(p.learning_rate, first) for p in rate.curve[max(place - 1, 0) : place + 2] if first in p.scores}
    missing = asked - {(r.trial.learning_rate, r.trial.seed) for r in ends}
    if missing or any(held.values()) or len(held) >= least_completed(point):
        return missing
    return {(point.learning_rate, min(set(point.scores) - set(held)))}
